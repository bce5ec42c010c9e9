"""What watches a fit from outside its loops: held-out labels, the best epoch, callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["Best", "Epoch", "as_callbacks", "hold_out"]

LARGE = 1 << 20  # bytes of parameters
WORTH_COPYING = 20  # times as long passes without a copy as one takes


@dataclass(frozen=True)
class Epoch:
    """What a callback is told after each epoch; read-only.

    Attributes
    ----------
    epoch : int, from 1
    objective : float
    validation_loss : float or None
        Mean loss of the held-out labels, with ``early_stopping=True``.
    seconds : float
        Since the epochs began.
    model : estimator
        A fitted copy of the estimator as it is after this epoch, made when it is asked for.
    """

    epoch: int
    objective: float
    validation_loss: float | None
    seconds: float
    _fitted_copy: Callable = field(repr=False)

    @property
    def model(self):
        return self._fitted_copy()


def as_callbacks(given):
    """`callbacks` as a list of functions."""
    callbacks = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(
                f"callbacks has {callback!r}; pass a function of one argument, a list of them, "
                "or None"
            )
    return callbacks


class Best:
    """A copy of the parameters with the smallest value so far, whole even after an interrupt.

    Without `exact` large parameters, which take long to copy, are copied at intervals: the best of
    the epochs that were copied is kept.
    """

    def __init__(self, exact):
        self.epoch, self.value, self._copies, self._whole = 0, np.inf, None, False
        self._exact, self._next = exact, 0.0

    def offer(self, epoch, value, arrays):
        began = time.perf_counter()
        if self.epoch and (not value < self.value or began < self._next):
            return
        self.epoch, self.value, self._whole = epoch, value, False
        if self._copies is None:
            self._copies = [np.empty_like(array) for array in arrays]
        for copy, array in zip(self._copies, arrays):
            np.copyto(copy, array)
        self._whole = True
        if not self._exact and sum(copy.nbytes for copy in self._copies) > LARGE:
            now = time.perf_counter()
            self._next = now + WORTH_COPYING * (now - began)

    def restore(self, arrays):
        # Interrupted while copying, `arrays` are the best themselves.
        if self._whole:
            for copy, array in zip(self._copies, arrays):
                np.copyto(array, copy)


def hold_out(observations, classes, fraction, rng, *, by_class):
    """Set a share of each task's labels aside.

    Parameters
    ----------
    observations : Observations
    classes : Classes
    fraction : float in (0, 1)
        Task t gives ``floor(fraction * n_t)`` labels, so small tasks train with all of theirs.
    rng : RandomState
    by_class : bool
        Each class of a task gives its share, to within one label. At least one label of each class
        of each task trains.

    Returns
    -------
    training, held_out : pairs (Observations, Classes)

    Raises
    ------
    ValueError
        If no task is large enough to give a label.
    """
    chosen = np.flatnonzero(observations.weight > 0)
    task = observations.task[chosen]
    kind = classes.code[chosen] if by_class else np.zeros(len(chosen))
    order = np.lexsort((rng.random_sample(len(chosen)), kind, task))
    chosen, task, kind = chosen[order], task[order], kind[order]
    first = np.append(True, (np.diff(task) != 0) | (np.diff(kind) != 0))
    chosen, free_task = chosen[~first], task[~first]

    sizes = np.bincount(task, minlength=observations.n_tasks)
    free = np.bincount(free_task, minlength=observations.n_tasks)
    wanted = np.minimum(np.floor(fraction * sizes + 1e-9).astype(np.int64), free)
    if not wanted.any():
        raise ValueError(
            f"validation_fraction is {fraction:g} and the largest task has {sizes.max()} labels, "
            "so no task can give one for validation; raise it, or set early_stopping=False"
        )
    # Every (free / wanted)-th of a task's free labels, which lie in order of their class.
    place = np.arange(len(chosen)) - (np.cumsum(free) - free)[free_task]
    offset = rng.randint(0, np.maximum(free, 1))[free_task]
    wanted, free = wanted[free_task], free[free_task]
    given = ((place + 1) * wanted + offset) // free > (place * wanted + offset) // free
    held = np.zeros(len(observations.task), dtype=bool)
    held[chosen[given]] = True
    return tuple(
        (observations.take(index), replace(classes, code=classes.code[index]))
        for index in (np.flatnonzero(~held), np.flatnonzero(held))
    )
