"""Training of the linear models: a problem as the core sees it, epochs, and when to stop.

The numeric loops are in ``_core.linear_sgd``; the estimators are in ``linear``.
"""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from fastmtl._core import linear_sgd
from fastmtl._core import random as core_random
from fastmtl.config import resolve_threads
from fastmtl.estimators import label_weights, progress
from fastmtl.kernels import empty_matrix
from fastmtl.linear_threads import Team
from fastmtl.monitoring import Best, Epoch, as_callbacks
from fastmtl.row_blocks import Pages, bounds, in_blocks
from fastmtl.task_columns import TaskColumns, find_columns, ragged

# name: (code in the core, bound on the second derivative; None: none, and 1 tames long rows)
LOSSES = {
    "squared_error": (0, 1.0),
    "huber": (1, 1.0),
    "epsilon_insensitive": (2, None),
    "squared_epsilon_insensitive": (3, 2.0),
    "quantile": (4, None),
    "poisson": (5, None),
    "hinge": (6, None),
    "squared_hinge": (7, 2.0),
    "modified_huber": (8, 2.0),
    "log_loss": (9, 0.25),
}
SOFTMAX = (-1, 0.5)
PLAIN = (0.0, 1.0, 0.0, 1.0)  # l1 and l2 of the shared vectors, and of the tasks' own
INTERCEPTS = {"none": 0, "shared": 1, "coupled": 2, "free": 3}
COMMON_INTERCEPT = (INTERCEPTS["shared"], INTERCEPTS["coupled"])
SAMPLE = np.dtype(
    [
        ("row", np.int64),
        ("target", np.float64),
        ("weight", np.float64),
        ("curvature", np.float64),
        ("task", np.int32),
        ("unused", np.int32),
    ]
)
WORK_PER_CALL = 300_000_000  # multiplications, well under a second, so that Ctrl-C is heard
MOST_STEPS_PER_CALL = 2_000_000
BLOCKS_PER_EPOCH = 16
LINE = 64
WORTH_MERGING = 20  # multiplications of steps, for each number that threads merge
# Samples near one another in memory are fetched together, and mixed with those of 63 other places.
# Rows of CSR are longer, and want room in the cache for the parameters they touch.
POOL, SPARSE_POOL, POOL_BLOCK = 512, 128, 8
# How far SAGA steps along a task's own vector, relative to the shared ones, where κ is smaller: the
# proximal step bears any penalty, so only the loss limits the steps (from 0.3 to 1 work alike).
LEAST_OWN_GAIN = 0.3
# The default rate falls from there on: draws of samples per parameter, and epochs at most.
DRAWS_TO_SETTLE, MOST_EPOCHS_TO_SETTLE = 10, 20
PACKED_BYTES = 1 << 28  # a copy in task order pays for itself within a few epochs


@dataclass
class State:
    """Parameters as the core sees them: vectors are padded, and last comes their intercept."""

    shared: np.ndarray  # (R, K, stride)
    specific: np.ndarray  # (heads, stride), or with `columns` all heads' own one after the other
    intercept: np.ndarray  # (K,)
    head_start: np.ndarray
    head_class: np.ndarray
    steps: int = 0
    # Float64, each like the parameters: AdaGrad's sums of squares, and how far averages lag behind
    squares: tuple | None = None
    drift: tuple | None = None
    average_from: int = 0
    running: State | None = None  # where steps go on, if the parameters are averages
    columns: TaskColumns | None = None  # where specific vectors are not zero, for a sparse X

    @property
    def vector_start(self):
        """Where each head's vector begins in `specific`, flattened."""
        if self.columns is not None:
            return self.columns.vector_start(self.head_start)
        return np.arange(len(self.specific) + 1, dtype=np.int64) * self.specific.shape[1]

    def of_heads(self, values):
        """A value of each head, for each coordinate of `specific`."""
        if self.columns is None:
            return values[:, None]
        return np.repeat(values, np.diff(self.vector_start))

    def dense(self, d):
        """The state with specific vectors of all `d` features; itself, if it has these."""
        if self.columns is None:
            return self
        vectors = self.columns.matrix(self.specific, self.head_start, d).toarray()
        specific = np.zeros((len(vectors), self.shared.shape[2]), dtype=self.specific.dtype)
        specific[:, :d] = vectors
        specific[:, -1] = self.specific[self.vector_start[1:] - 1]
        return replace(self, specific=specific, columns=None)

    def take(self, wide):
        """Set the specific vectors to those of the dense state `wide`."""
        if wide is not self:
            begin = self.vector_start
            sizes = np.diff(begin) - 1
            heads = np.repeat(np.arange(len(sizes)), sizes)
            starts = np.repeat(self.columns.start[:-1], np.diff(self.head_start))
            columns = self.columns.column[ragged(starts, sizes)]
            self.specific[ragged(begin[:-1], sizes)] = wide.specific[heads, columns]
            self.specific[begin[1:] - 1] = wide.specific[:, -1]

    @property
    def parameters(self):
        return self.shared, self.specific, self.intercept

    def carry_on(self, previous, move, *, adagrad, average):
        """Take `squares` and `drift` over from an earlier state, or begin them, as asked for."""
        names = ("shared", "specific", "intercept")
        for name, wanted in (("squares", adagrad), ("drift", average is not False)):
            if wanted:
                arrays = tuple(np.zeros(array.shape) for array in self.parameters)
                earlier = getattr(previous, name, None)
                if earlier is not None:
                    old = replace(previous, **dict(zip(names, earlier)))
                    move(old, replace(self, **dict(zip(names, arrays))))
                setattr(self, name, arrays)
        for array in self.squares or ():
            np.abs(array, out=array)  # halves of one score for two classes have its sign
        if getattr(previous, "drift", None) is not None:
            self.average_from = previous.average_from
        else:
            self.average_from = max(0 if average is True else int(average), self.steps)

    def averaged(self):
        """The state with the parameters' averages so far, where there are any."""
        count = self.steps - self.average_from
        if self.drift is None or count <= 0:
            return self
        means = [w - (d / count).astype(w.dtype) for w, d in zip(self.parameters, self.drift)]
        names = ("shared", "specific", "intercept")
        return replace(self, **dict(zip(names, means)), running=self)


def zero_vectors(shape, dtype):
    """Zeros that begin with a cache line, so that a vector lies in no more lines than it must."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)


def carry(earlier, now, d):
    """Start a state from an earlier one, class by class of each task, as their labels say.

    `earlier` and `now` are (State, Classes, task labels); `d` is the number of features.
    """
    (old, old_classes, old_tasks), (new, classes, tasks) = earlier, now
    if len(old.shared) != len(new.shared) or (classes.binary and not old_classes.binary):
        raise ValueError(
            "the earlier fit had another coupling or more classes; fit anew (warm_start=False)"
        )
    if classes.binary and len(classes.classes) > 1:
        firsts = {old_classes.classes[own[0]] for own in old_classes.task_classes}
        if firsts & {classes.classes[own[1]] for own in classes.task_classes}:
            raise ValueError(
                "the first of two classes in the earlier fit is now the second; fit anew "
                "(warm_start=False)"
            )
    position = {label: t for t, label in enumerate(tasks.tolist())}
    task_now = np.array([position.get(label, -1) for label in old_tasks.tolist()])
    position = {label: k for k, label in enumerate(classes.classes.tolist())}
    class_now = np.array([position.get(label, -1) for label in old_classes.classes.tolist()])
    old_task = np.repeat(np.arange(len(old_tasks)), np.diff(old.head_start))
    if classes.binary:
        head, share, class_of = np.arange(len(old_task)), 1.0, np.zeros(len(old_task), dtype=int)
    elif not old_classes.binary:
        head, share, class_of = np.arange(len(old_task)), 1.0, class_now[old.head_class]
    else:  # one score for the second of two classes against the first: half of it for each
        head, share = np.repeat(np.arange(len(old_task)), 2), np.tile([-0.5, 0.5], len(old_task))
        class_of = class_now[np.concatenate(old_classes.task_classes)]
    share = np.broadcast_to(share, head.shape)
    stays = (task_now[old_task[head]] >= 0) & (class_of >= 0)
    head, share, class_of = head[stays], share[stays], class_of[stays]

    mix = np.zeros((len(new.intercept), len(old.intercept)))
    mix[class_of, old.head_class[head]] = share
    used = slice(d), slice(-1, None)  # what lies between is padding
    for part in used:
        new.shared[..., part] = np.einsum("kc,rcj->rkj", mix, old.shared[..., part])
    new.intercept[:] = mix @ old.intercept

    n_classes = len(new.intercept)
    new_task = np.repeat(np.arange(len(tasks)), np.diff(new.head_start))
    new_key = new_task * n_classes + new.head_class  # increasing
    key = task_now[old_task[head]] * n_classes + class_of
    at = np.minimum(np.searchsorted(new_key, key), len(new_key) - 1)
    found = new_key[at] == key
    head, share, at = head[found], share[found], at[found]
    if new.columns is None:
        specific = old.dense(d).specific
        for part in used:
            new.specific[at, part] = share[:, None] * specific[head, part]
    else:  # columns known before come first
        begin, begin_now = old.vector_start, new.vector_start
        sizes = np.diff(begin)[head] - 1
        moved = np.repeat(share, sizes) * old.specific[ragged(begin[head], sizes)]
        new.specific[ragged(begin_now[at], sizes)] = moved
        new.specific[begin_now[at + 1] - 1] = share * old.specific[begin[head + 1] - 1]
    new.steps = old.steps


def train(model, training, held_out, state, factors, max_iter, *, partial=False):
    """Run epochs until the objective settles; changes `state` in place.

    `training` and `held_out` are pairs (Observations, Classes); `held_out` may be None.
    """
    solver = "sgd" if partial else model._solver()
    problem = _problem(model, *training, state, factors, solver)
    if max_iter > 2:
        problem.pack()
    judge = None if held_out is None else _problem(model, *held_out, state, factors, "sgd")
    rng = check_random_state(model.random_state)
    if partial and state.steps:
        rng = np.random.RandomState((rng.randint(2**31) + state.steps) % 2**32)
    team = Team(problem, 1 if solver == "saga" else problem.n_threads)
    if solver == "saga":
        _divide(problem, state, factors)
        run, settled = _saga(problem, state, model.tol)
    else:
        run, settled = _sgd(problem, state, model, team)
    adaptive = solver == "sgd" and model.learning_rate == "adaptive"
    if judge is not None and not adaptive:
        settled = _no_longer_better(model.tol, model.n_iter_no_change)
    exact = model.tol is not None and judge is None and problem.reading is None
    callbacks, history, best = as_callbacks(model.callbacks), [], Best()

    def fitted_copy():
        return model._copy_as_fitted(training, copy.deepcopy(answer), factors, list(history), best)

    began = time.perf_counter()
    bar = progress(max_iter) if model.verbose else None
    stopped = interrupted = False
    answer, epoch = state, 0
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            for epoch in range(1, max_iter + 1):
                draws = _orders(problem, team, int(rng.randint(0, 2**31 - 1)))
                total = sum(run(*part) for part in draws)
                if solver == "saga":
                    _divide(problem, state, factors)
                # Summed while the steps went on; what is judged below is exact.
                answer = state.averaged()
                loss = problem.loss_value(answer) if exact else total / len(problem.samples)
                entry = {"epoch": epoch, "objective": loss + problem.penalty_value(answer)}
                _check_finite(model, entry["objective"], answer, epoch)
                if judge is not None:
                    entry["validation_loss"] = judge.loss_value(answer)
                entry["seconds"] = time.perf_counter() - began
                history.append(entry)
                criterion = entry["objective" if judge is None else "validation_loss"]
                best.offer(epoch, criterion, answer.parameters)
                if bar is not None:
                    shown = {k: f"{v:.6g}" for k, v in entry.items() if k.endswith(("ive", "loss"))}
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
                told = {"validation_loss": None, **entry, "_fitted_copy": fitted_copy}
                asked = [callback(Epoch(**told)) for callback in callbacks]
                stopped = any(asked) or ((adaptive or model.tol is not None) and settled(criterion))
                if stopped:
                    break
    except KeyboardInterrupt:
        if not best.epoch:
            raise
        stopped = interrupted = True
    finally:
        if bar is not None:
            bar.close()
    if interrupted or judge is not None:
        best.restore(answer.parameters)
        kept = best.epoch
    else:
        kept = len(history)
    if interrupted:
        warnings.warn(
            f"interrupted in epoch {epoch}; kept are the parameters of epoch {kept}, the best so "
            "far",
            ConvergenceWarning,
            stacklevel=3,
        )
    if not (stopped or partial or model.tol is None):
        warnings.warn(
            f"not converged to tol={model.tol:g} within max_iter={max_iter} epochs; raise max_iter "
            "or tol, or standardise X",
            ConvergenceWarning,
            stacklevel=3,
        )
    return {"state": answer, "n_iter": len(history), "best_iter": kept, "history": history}


def _no_longer_better(tol, n_iter_no_change):
    """Whether the held-out loss has not fallen by `tol`, relative, for that many epochs."""
    reached, waited = np.inf, 0

    def settled(loss):
        nonlocal reached, waited
        better = loss < reached - tol * abs(reached) if np.isfinite(reached) else loss < reached
        reached, waited = (loss, 0) if better else (reached, waited + 1)
        return waited >= n_iter_no_change

    return settled


class _Reading:
    """The samples of each block of rows of X, to read X in order of blocks."""

    def __init__(self, X, row):
        self._rows, self._pages = bounds(X), Pages(X)
        self._by_row = np.argsort(row, kind="stable")
        self._cuts = np.searchsorted(row[self._by_row], self._rows)
        self.n_blocks = len(self._rows) - 1

    def blocks(self, order):
        """Yield the samples of the blocks in `order`, fetching each next one ahead."""
        for block, following in zip(order, np.append(order[1:], order[-1])):
            self._pages.fetch(*self._rows[following : following + 2])
            yield self._by_row[self._cuts[block] : self._cuts[block + 1]]
            self._pages.release(*self._rows[block : block + 2])


@dataclass
class _Problem:
    data: tuple
    dense: bool
    samples: np.ndarray
    task_start: np.ndarray
    present: np.ndarray
    arguments: tuple  # coupling, heads, loss, penalty, of the core's functions
    alpha: float
    kappa: np.ndarray
    head_task: np.ndarray
    coupled: bool
    free: bool
    chance: np.ndarray
    by_task: bool
    pooled: int  # how many draws are mixed at a time; 0: all
    smoothness: float
    schedule: tuple
    steps_per_call: int
    reading: _Reading | None
    shares: tuple
    probability: np.ndarray
    groups: tuple | None
    clip: float
    n_threads: int

    def pack(self):
        """Put the rows of a small X in the order of the samples, for faster draws."""
        row, n_bytes = self.samples["row"], sum(array.nbytes for array in self.data)
        n_rows = len(self.data[0]) if self.dense else len(self.data[2]) - 1
        if self.reading is not None or n_bytes > PACKED_BYTES or len(row) > n_rows:
            return
        if np.any(np.diff(row) < 0):
            if self.dense:
                X = self.data[0]
                packed = empty_matrix(len(row), X.shape[1], X.dtype)
                self.data = (np.take(X, row, axis=0, out=packed, mode="clip"),)
            else:
                data, indices, indptr, position = self.data
                lengths = np.diff(indptr)[row]
                at, starts = ragged(indptr[row], lengths), np.concatenate([[0], np.cumsum(lengths)])
                self.data = data[at], indices[at], starts, position[at]
            row[:] = np.arange(len(row))

    @property
    def pool(self):
        """How many draws apart samples come from one neighbourhood of X; 0: from anywhere."""
        jumps = np.count_nonzero(np.diff(self.samples["row"]) < 0)
        return self.pooled if jumps * POOL_BLOCK < len(self.samples) else 0

    def loss_value(self, state):
        task_loss = np.zeros(len(self.chance))
        function = linear_sgd.losses_dense if self.dense else linear_sgd.losses_csr
        for part in self._parts():
            function(
                *self.data, part, *state.parameters, *self.arguments, task_loss, self.n_threads
            )
        if self.groups is not None:
            return float(task_loss.sum())
        counts = np.diff(self.task_start)
        return float(task_loss[counts > 0] @ (self.chance / np.maximum(counts, 1))[counts > 0])

    def _parts(self):
        """All samples in an order that is good to read them in, in parts of a call each."""
        if self.reading is not None:
            for order in self.reading.blocks(np.arange(self.reading.n_blocks)):
                yield self.samples[order]
            return
        for begin in range(0, len(self.samples), self.steps_per_call):
            part = self.samples[begin : begin + self.steps_per_call]
            if self.groups is not None:  # the draws of a task are not even
                part = part.copy()
                part["weight"] *= self.probability[begin : begin + self.steps_per_call]
            yield part

    def gradient_norm(self, state, averages):
        """Length of the objective's gradient in the whitened parameters, from SAGA's averages."""
        shared_average, specific_average, intercept_average = averages
        used = slice(None) if self.coupled else slice(-1)
        l1, l2 = (self.alpha * share for share in self.shares[:2])
        shared = _steepest(shared_average[..., used], state.shared[..., used], l1, l2)
        kappa = state.of_heads(self.kappa[self.head_task])
        root = np.sqrt(np.where(kappa > 0, kappa, 1.0))
        l1, l2 = (self.alpha * share for share in self.shares[2:])
        whitened = self._penalised(state, state.specific) / root
        gradient = root * self._penalised(state, specific_average)
        specific = _steepest(gradient, whitened, l1, l2) * (kappa > 0)
        squares = np.sum(shared**2) + np.sum(specific**2)
        if self.free:
            squares += np.sum(specific_average.reshape(-1)[state.vector_start[1:] - 1] ** 2)
        else:
            squares += np.sum(intercept_average**2)
        return np.sqrt(squares)

    def penalty_value(self, state):
        shared = state.shared if self.coupled else state.shared[..., :-1]
        shared_l1, shared_l2, task_l1, task_l2 = self.shares
        total = 0.5 * shared_l2 * np.sum(np.square(shared, dtype=np.float64))
        if shared_l1:
            total += shared_l1 * np.abs(shared).sum(dtype=np.float64)
        specific, kappa = self._penalised(state, state.specific), self.kappa[self.head_task]
        own, kappa = kappa > 0, np.where(kappa > 0, kappa, 1.0)
        if state.columns is None:
            squares = np.einsum("ij,ij->i", specific, specific)
        elif own.all() and (kappa == kappa[0]).all():  # spares an array like the vectors
            squares = np.full(len(kappa), np.einsum("i,i->", specific, specific) / len(kappa))
        else:
            squares = np.add.reduceat(specific * specific, state.vector_start[:-1])
        total += 0.5 * task_l2 * np.sum((squares / kappa)[own])
        if task_l1:
            lengths = np.abs(specific) / state.of_heads(np.sqrt(kappa))
            total += task_l1 * np.sum(lengths * state.of_heads(own), dtype=np.float64)
        return self.alpha * total

    def _penalised(self, state, specific):
        """Vectors like the specific ones, without intercepts that bear no penalty."""
        if self.coupled:
            return specific
        if state.columns is None:
            return specific[:, :-1]
        kept = specific.copy()
        kept[state.vector_start[1:] - 1] = 0.0
        return kept


def _steepest(gradient, u, l1, l2):
    """The shortest subgradient of a loss with this gradient plus l1 ‖u‖₁ + ½ l2 ‖u‖²."""
    smooth = gradient + l2 * u
    if not l1:
        return smooth
    at_zero = np.sign(smooth) * np.maximum(np.abs(smooth) - l1, 0.0)
    return np.where(u != 0, smooth + l1 * np.sign(u), at_zero)


def penalty_shares(model):
    """How strong (shared l1, shared l2, task l1, task l2) are, as multiples of alpha."""
    of = {
        "l2": (0.0, 1.0),
        "l1": (1.0, 0.0),
        "elasticnet": (model.l1_ratio, 1.0 - model.l1_ratio),
        None: (0.0, 0.0),
    }
    return (*of[model.shared_penalty], *of[model.task_penalty])


def _problem(model, observations, classes, state, factors, solver):
    X = observations.X
    kind = model._intercept_kind()
    code, parameter, smoothness, user = model._loss_setting(classes)
    weight = label_weights(model, observations, classes)
    kept = np.flatnonzero(weight > 0)
    n, task = len(kept), observations.task[kept]
    counts = np.bincount(task, minlength=observations.n_tasks)
    task_start = np.concatenate([[0], np.cumsum(counts)])
    present = np.flatnonzero(counts)
    by_task = model.sampling in ("task", "balanced") and solver == "sgd"
    if by_task:
        chance = (counts > 0) / len(present)
    else:
        chance = counts / n
    # Each draw's weight is its share of the objective over the chance of the draw.
    probability, groups = chance[task] / counts[task], None
    if by_task and model.sampling == "balanced" and model._classification:
        groups, probability = _groups(task, classes.code[kept], chance)
    per_draw = probability * observations.weight.sum()
    samples = np.zeros(n, dtype=SAMPLE)
    samples["row"] = observations.row[kept]
    samples["task"] = task
    samples["target"] = classes.code[kept]
    samples["weight"] = weight[kept] / per_draw

    coupled = kind == "coupled"
    lengths = _squared_lengths(X)[samples["row"]] + coupled
    common_gain, own_gain = (factors.mixing**2).sum(axis=1), factors.kappa
    if solver == "saga":
        longer = np.maximum(own_gain, LEAST_OWN_GAIN * common_gain)
        own_gain = np.where(own_gain > 0, longer, 0.0)
    gain = common_gain + own_gain
    task_alpha = model.alpha * own_gain / np.where(own_gain > 0, factors.kappa, 1.0)
    samples["curvature"] = gain[task] * lengths + (kind in ("shared", "coupled")) + (kind == "free")

    with np.errstate(divide="ignore"):
        task_rarity = np.where(counts > 0, 1.0 / chance, 0.0)
    has_class = np.zeros((observations.n_tasks, len(state.intercept)), dtype=bool)
    head_task = np.repeat(np.arange(observations.n_tasks), np.diff(state.head_start))
    has_class[head_task, state.head_class] = True
    seen = chance @ has_class
    class_rarity = np.where(seen > 0, 1.0 / np.maximum(seen, 1e-300), 0.0)

    bound = 1.0 if smoothness is None else smoothness
    curvature = bound * samples["weight"] * samples["curvature"]
    shares = penalty_shares(model)
    convexity = float(model.alpha) * min(
        [shares[1]] * (len(state.shared) > 0) + [shares[3]] * bool((factors.kappa > 0).any())
    )
    n_vectors = factors.mixing.shape[1] + (factors.kappa[head_task] > 0).sum()
    settling = min(MOST_EPOCHS_TO_SETTLE * n, DRAWS_TO_SETTLE * (n_vectors + 1) * X.shape[1])
    stretch = _stretch(model, samples) if solver == "sgd" else 1.0
    schedule, damping = _schedule(model, curvature / stretch, bound / stretch, settling, convexity)
    heads = (state.head_start, state.head_class)
    if sp.issparse(X):
        heads += (state.vector_start,)
    arguments = (
        (factors.mixing, own_gain),
        heads,
        (code, parameter, damping, user),
        (float(model.alpha), task_rarity, class_rarity, INTERCEPTS[kind], task_alpha),
    )
    if sp.issparse(X):
        X, samples["row"] = _own_rows(X, samples["row"], state.columns)
        data = (X.data, X.indices.astype(np.int32, copy=False), X.indptr.astype(np.int64))
        if state.columns is None:
            data += (data[1],)
        else:
            data += find_columns(X, samples["row"].copy(), task_start, state.columns, False)[1:]
    else:
        data = (X,)
    pool = SPARSE_POOL if sp.issparse(X) else POOL
    return _Problem(
        data,
        not sp.issparse(X),
        samples,
        task_start,
        present,
        arguments,
        float(model.alpha),
        factors.kappa,
        head_task,
        coupled,
        kind == "free",
        chance,
        by_task,
        pool if solver == "sgd" and model.sampling == "uniform" and n >= 16 * pool else 0,
        bound,
        schedule,
        _steps_per_call(X, state),
        _Reading(X, samples["row"]) if model.sampling == "block" else None,
        shares,
        probability,
        groups,
        float(model.clip_gradient or 0.0),
        resolve_threads(model.n_threads, work=n * X.shape[1]),
    )


def columns_worth_keeping(X, row, n_heads):
    """Whether vectors that have a task's own columns only are smaller than those that have all."""
    if len(row) <= X.shape[0] and np.bincount(row, minlength=1).max() <= 1:
        return True
    return 2 * np.diff(X.indptr)[row].sum() < n_heads * X.shape[1]


def _own_rows(X, row, columns):
    """X and rows of it, such that a row belongs to one task only where tasks differ in columns."""
    if columns is None or np.bincount(row, minlength=1).max() <= 1:
        return X, row
    return X[row], np.arange(len(row))


def constant_score(user, target, weight):
    """Where the scores of a user's own loss start: the targets' mean or zero, as it likes better.

    The mean is right for losses that compare p with y, and far off for those with a link.
    """
    target = np.ascontiguousarray(target, dtype=np.float64)
    value, gradient = np.empty_like(target), np.empty_like(target)
    starts, losses = [float(np.average(target, weights=weight)), 0.0], []
    for start in starts:
        score = np.full_like(target, start)
        linear_sgd.point_losses(0, 0.0, target, score, value, gradient, user)
        losses.append(weight @ value)
    return starts[0] if losses[0] < losses[1] else 0.0


def _steps_per_call(X, state):
    # An entry of CSR waits for its place in the parameters: count it as eight.
    row_length = 8 * X.nnz / X.shape[0] if sp.issparse(X) else X.shape[1]
    heads = np.diff(state.head_start).mean() * (len(state.shared) + 1)
    return int(np.clip(WORK_PER_CALL / ((row_length + 1) * heads), 1, MOST_STEPS_PER_CALL))


def _groups(task, code, chance):
    """Each task's classes as groups to draw from, and the chance of each sample."""
    member = np.lexsort((code, task))
    first = np.append(True, (np.diff(task[member]) != 0) | (np.diff(code[member]) != 0))
    group_start = np.append(np.flatnonzero(first), len(task))
    group_task = task[member][first]
    of_task = np.bincount(group_task, minlength=len(chance))
    share = chance[group_task] / of_task[group_task] / np.diff(group_start)
    probability = np.empty(len(task))
    probability[member] = np.repeat(share, np.diff(group_start))
    task_start = np.concatenate([[0], np.cumsum(of_task)])
    return (group_start, member, task_start), probability


def _stretch(model, samples):
    """How much longer steps must be where slopes are bounded: by what the targets are spread."""
    steepest = {
        "epsilon_insensitive": 1.0,
        "quantile": 1.0,
        "huber": getattr(model, "epsilon", 1.0),
    }
    if not isinstance(model.loss, str) or model.loss not in steepest:
        return 1.0
    spread = samples["target"].std() / steepest[model.loss]
    return max(spread, 1.0) if np.isfinite(spread) else 1.0


def _schedule(model, curvature, bound, settling, convexity):
    """(scale, offset, power) of the rate, and the smoothness that damps long rows.

    After `settling` steps the default rate is half of the first.
    """
    if model.learning_rate == "adagrad":
        return (model.eta0 or 0.1, 0.0, 0.0), 0.0
    alpha = float(model.alpha)
    if model.learning_rate == "constant":
        return (model.eta0, 0.0, 0.0), 0.0
    if model.learning_rate == "invscaling":
        return (model.eta0, 1.0, model.power_t), 0.0
    if model.learning_rate == "optimal":
        # Bottou's heuristic: the first step is as large as a typical weight.
        first = model.eta0 or np.sqrt(1.0 / np.sqrt(alpha))
        return (1.0 / alpha, 1.0 / (alpha * first), 1.0), 0.0
    first = model.eta0 or 1.0 / max(curvature.mean(), 1e-12)
    if model.learning_rate == "adaptive":
        return (first, 0.0, 0.0), bound
    decay = max(convexity / 2, 1.0 / (settling * first))
    return (1.0 / decay, 1.0 / (decay * first), 1.0), bound


def _orders(problem, team, seed):
    """The draws of one epoch in parts of a call each: an order of samples, and where in it what
    each thread draws begins and ends."""
    if problem.reading is not None:
        turn = np.arange(problem.reading.n_blocks)
        core_random.shuffle(turn, seed)
        for k, order in enumerate(problem.reading.blocks(turn)):
            order = order.copy()
            core_random.shuffle(order, seed + 1 + k)
            yield from _calls(problem, *team.regroup(order))
        return
    order, bounds = team.order, team.cuts
    if problem.groups is not None:
        core_random.draw_balanced(order, *problem.groups, problem.present, seed)
        order, bounds = team.regroup(order)
    elif problem.by_task:
        core_random.draw_by_task(order, problem.task_start, problem.present, seed)
        order, bounds = team.regroup(order)
    elif problem.pooled:
        blocks = np.empty(len(order) // POOL_BLOCK + len(bounds), dtype=np.int64)
        core_random.shuffle_pools(order, bounds, blocks, POOL_BLOCK, problem.pooled, seed)
    else:
        order[:] = np.arange(len(order))
        for k, (begin, end) in enumerate(itertools.pairwise(bounds)):
            core_random.shuffle(order[begin:end], seed + k)
    yield from _calls(problem, order, bounds)


def _calls(problem, order, bounds):
    begin, length = bounds[:-1], np.diff(bounds)
    n_calls = -(-len(order) // problem.steps_per_call)
    for call in range(n_calls):
        ends = length * call // n_calls, length * (call + 1) // n_calls
        yield order, np.stack([begin + ends[0], begin + ends[1]], axis=1)


def _sgd(problem, state, model, team):
    tol, n_iter_no_change = model.tol, model.n_iter_no_change
    pool = problem.pool
    schedule, general = list(problem.schedule), ()
    specific = team.with_copies(state.specific)
    state.specific = specific[: len(state.specific)]
    if (
        problem.shares != PLAIN
        or problem.clip
        or state.squares is not None
        or state.drift is not None
    ):
        sums = []
        for name in ("squares", "drift"):
            three = getattr(state, name)
            if three is not None:
                own = team.with_copies(three[1])
                setattr(state, name, (three[0], own[: len(three[1])], three[2]))
                three = three[0], own, three[2]
            sums.append(three)
        general = (problem.shares, (problem.clip, state.average_from, *sums))
        function = linear_sgd.sgd_general_dense
        if not problem.dense:
            function = linear_sgd.sgd_general_csr
            of_classes, of_tasks = _spreads(problem, state)
            general += ((of_classes, team.with_copies(of_tasks)),)
    else:
        function = linear_sgd.sgd_dense if problem.dense else linear_sgd.sgd_csr
    merged = len(team.cuts) * state.shared.size + 2 * (specific.size - state.specific.size)
    work = len(problem.samples) * WORK_PER_CALL / problem.steps_per_call
    blocks_per_epoch = min(BLOCKS_PER_EPOCH, work / (1 + WORTH_MERGING * merged))

    def run(order, bounds):
        drawn = int((bounds[:, 1] - bounds[:, 0]).sum())
        n_blocks = max(1, round(blocks_per_epoch * drawn / len(problem.samples)))
        total = function(
            *problem.data,
            team.samples,
            order,
            state.shared,
            specific,
            state.intercept,
            *team.arguments,
            (*schedule, state.steps, pool),
            *general,
            (bounds, n_blocks, team.split),
        )
        state.steps += drawn
        return total

    recent = []

    def settled(objective):
        recent.append(objective)
        last = recent[-n_iter_no_change - 1 :]
        changes = np.abs(np.diff(last))
        return len(changes) == n_iter_no_change and bool(
            (changes <= tol * max(abs(objective), 1e-300)).all()
        )

    if model.learning_rate == "adaptive":
        return run, _slower_where_stuck(schedule, tol or 0.0, n_iter_no_change)
    return run, settled


def _slower_where_stuck(schedule, tol, n_iter_no_change):
    """Divide the rate by 5 where nothing was gained for some epochs; settled when it is tiny."""
    smallest, reached, waited = 1e-6 * schedule[0], np.inf, 0

    def settled(value):
        nonlocal reached, waited
        better = not np.isfinite(reached) or value < reached - tol * abs(reached)
        reached, waited = min(reached, value), 0 if better else waited + 1
        if waited >= n_iter_no_change:
            schedule[0], waited = schedule[0] / 5, 0
        return schedule[0] < smallest

    return settled


def _saga(problem, state, tol):
    n = len(problem.samples)
    memory = np.zeros((n, int(np.diff(state.head_start).max())))
    averages = tuple(np.zeros_like(a) for a in state.parameters)
    samples = problem.samples
    if state.specific.any() and memory.shape[1] == 1:
        _remember(problem, state, memory[:, 0], averages)
    steepest = float((problem.smoothness * samples["weight"] * samples["curvature"]).max())
    schedule = (1.0 / (3.0 * max(steepest, 1e-12)), 0.0, 0.0, 0)
    extra = () if problem.dense else (_spreads(problem, state),)
    general = ()
    if problem.shares != PLAIN:
        general = (problem.shares,)
        function = linear_sgd.saga_general_dense if problem.dense else linear_sgd.saga_general_csr
    else:
        function = linear_sgd.saga_dense if problem.dense else linear_sgd.saga_csr

    def run(order, bounds):
        order = order[slice(*bounds[0])]
        state.steps += len(order)
        return function(
            *problem.data,
            samples,
            order,
            state.shared,
            state.specific,
            state.intercept,
            *problem.arguments,
            schedule,
            *general,
            memory,
            averages,
            *extra,
        )

    typical = []
    reachable = 50 * np.finfo(state.specific.dtype).eps

    def settled(objective):
        """Whether the gradient is small beside that of a typical sample of the first epoch."""
        if not typical:
            squares = (memory**2).sum(axis=1) * samples["curvature"]
            typical.append(np.sqrt(squares.mean()))
        return problem.gradient_norm(state, averages) <= max(tol, reachable) * typical[0]

    return run, settled


def _divide(problem, state, factors):
    """Divide each w_t and intercept into shared and own parts with the least penalty.

    SAGA is slow in the directions that leave all of these as they are, for only alpha bends the
    objective there. On CSR a coordinate that none of a task's rows has gets no own part, so w_t
    cannot stay.
    """
    (mixing, kappa), present = factors, np.isin(problem.head_task, problem.present)
    if problem.shares != PLAIN or not (kappa[problem.present] > 0).all():
        return
    n_shared, last = len(state.shared), state.vector_start[1:] - 1
    if state.columns is None:
        specific = state.specific
    else:
        specific = state.specific[last, None]
    for k in range(len(state.intercept)):
        mine = (state.head_class == k) & present
        if not mine.any():
            continue
        heads = slice(None) if mine.all() else np.flatnonzero(mine)
        B, kappas = mixing[problem.head_task[heads]], kappa[problem.head_task[heads]]
        parts = [(slice(-1), B)] if problem.dense else []
        if problem.coupled:  # beside the shared intercept, which has no penalty
            parts.append((slice(-1, None), np.column_stack([B, np.ones(len(B))])))
        for part, basis in parts:
            weighed = basis.T / kappas
            gap = weighed @ specific[heads, part]
            gap[:n_shared] -= state.shared[:, k, part]
            system = weighed @ basis
            system[range(n_shared), range(n_shared)] += 1.0
            change = np.linalg.solve(system, gap)
            specific[heads, part] -= basis @ change
            state.shared[:, k, part] += change[:n_shared]
            if len(change) > n_shared:
                state.intercept[k] += change[-1, 0]
    if state.columns is not None:
        state.specific[last] = specific[:, 0]


def _remember(problem, state, memory, averages):
    """Derivatives at the state as it is and what they average to, so that a good start stays so."""
    if not problem.dense:
        _remember_sparse(problem, state, memory, averages)
        return
    samples, X = problem.samples, problem.data[0]
    (mixing, kappa), _, (code, parameter, _, user), (_, _, _, kind, _) = problem.arguments
    weights = np.einsum("tr,rj->tj", mixing, state.shared[:, 0]) + state.specific
    shared, specific, intercept = averages
    d, n = X.shape[1], len(samples)
    value, slope = np.empty(n), np.empty(n)
    for t, (begin, end) in enumerate(zip(problem.task_start, problem.task_start[1:])):
        own = slice(begin, end)
        if begin == end:
            continue
        rows = X[samples["row"][own]]
        offset = weights[t, -1] + (state.intercept[0] if kind in COMMON_INTERCEPT else 0.0)
        scores = (rows @ weights[t, :d]).astype(np.float64) + offset
        target = np.ascontiguousarray(samples["target"][own])
        slots = value[own], slope[own]
        linear_sgd.point_losses(code, parameter, target, scores, *slots, user)
        memory[own] = samples["weight"][own] * slope[own]
        whole = np.append(memory[own] @ rows, memory[own].sum()) / n
        if kind in COMMON_INTERCEPT:
            intercept[0] += whole[-1]
        if kind != INTERCEPTS["coupled"]:
            whole[-1] = 0.0
        shared[:, 0, :d] += np.outer(mixing[t], whole[:-1]).astype(shared.dtype)
        shared[:, 0, -1] += (mixing[t] * whole[-1]).astype(shared.dtype)
        if kappa[t] > 0:
            specific[t, :d] = whole[:-1]
            specific[t, -1] = whole[-1]
        if kind == INTERCEPTS["free"]:
            specific[t, -1] = memory[own].sum() / n


def _remember_sparse(problem, state, memory, averages):
    (mixing, kappa), _, (code, parameter, _, user), (_, _, _, kind, _) = problem.arguments
    shared, specific, intercept = averages
    samples, n, d = problem.samples, len(problem.samples), state.shared.shape[2] - 1
    row, task, last = samples["row"], samples["task"], state.vector_start[1:] - 1
    at, sample, own = _entries(problem, state)
    data, indices, indptr, _ = problem.data
    X = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, d))
    flat = state.specific.reshape(-1)
    offset = mixing @ state.shared[:, 0, -1] + flat[last]
    if kind in COMMON_INTERCEPT:
        offset += state.intercept[0]
    scores = offset[task] + np.bincount(sample, data[at] * flat[own], minlength=n)
    for r in range(len(shared)):
        scores += mixing[task, r] * (X @ state.shared[r, 0, :d])[row]
    target, value, slope = samples["target"].copy(), np.empty(n), np.empty(n)
    linear_sgd.point_losses(code, parameter, target, scores, value, slope, user)
    memory[:] = samples["weight"] * slope

    part = (memory / n)[sample] * data[at]
    own_part = np.bincount(own, part, minlength=flat.size) * (kappa > 0)[problem.head_task].repeat(
        np.diff(state.vector_start)
    )
    sums = np.bincount(task, memory, minlength=len(kappa)) / n
    if kind == INTERCEPTS["coupled"]:
        shared[:, 0, -1] = mixing.T @ sums
        own_part[last] = sums * (kappa > 0)
    elif kind == INTERCEPTS["free"]:
        own_part[last] = sums
    specific[...] = own_part.reshape(specific.shape)
    for r in range(len(shared)):
        shared[r, 0, :d] = np.bincount(indices[at], part * mixing[task[sample], r], minlength=d)
    if kind in COMMON_INTERCEPT:
        intercept[0] = sums.sum()


def _entries(problem, state):
    """Of the entries of all samples' rows: where they are in X, their sample, and their place in
    their task's (first) vector, as `specific` has it flat."""
    _, _, indptr, position = problem.data
    lengths = np.diff(indptr)[problem.samples["row"]]
    at = ragged(indptr[problem.samples["row"]], lengths)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    first = state.vector_start[state.head_start[problem.samples["task"]]]
    return at, sample, position[at] + first[sample]


def _spreads(problem, state):
    """1 / P(a draw has a coordinate): of each class, and of each task like its first vector."""
    at, sample, own = _entries(problem, state)
    column, task = problem.data[1][at], problem.samples["task"][sample]
    chance = problem.probability[sample]
    has_class = np.zeros((state.shared.shape[1], len(problem.kappa)))
    has_class[state.head_class, problem.head_task] = 1.0
    stride, dtype = state.shared.shape[2], state.specific.dtype
    of_classes = np.array([np.bincount(column, chance * has[task], stride) for has in has_class])
    of_tasks = np.bincount(own, chance, minlength=state.specific.size)
    return tuple(
        np.divide(1.0, c, out=np.zeros_like(c), where=c > 0).astype(dtype)
        for c in (of_classes, of_tasks)
    )


def _squared_lengths(X):
    lengths = np.empty(X.shape[0])
    for rows, block in in_blocks(X):
        if sp.issparse(X):
            lengths[rows] = np.asarray(block.multiply(block).sum(axis=1)).ravel()
        else:
            lengths[rows] = np.einsum("ij,ij->i", block, block, dtype=np.float64)
    return lengths


def _check_finite(model, objective, state, epoch):
    if np.isfinite(objective) and np.isfinite(state.specific.sum()):
        return
    remedy = (
        "lower eta0, or use learning_rate='auto'"
        if model.learning_rate != "auto" or model.eta0
        else "standardise X and y"
    )
    raise FloatingPointError(
        f"the parameters diverged in epoch {epoch} (the objective is {objective}); {remedy}"
    )
