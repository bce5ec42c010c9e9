"""The training of networks: where parameters lie, how they start, epochs and when to stop.

The estimators of ``network.py`` hand over observations and settings; whole epochs run in
``_core.network``, and what remains here happens once an epoch.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastmtl._core import network as core
from fastmtl.config import resolve_threads
from fastmtl.coupling import resolve_coupling
from fastmtl.estimators import progress
from fastmtl.layers import Trunk, blocks, compile_trunk, initial_parameters

LOSSES = {"squared_error": 0, "huber": 1, "quantile": 4, "poisson": 5, "log_loss": 9}
SOFTMAX = 100
OPTIMISERS = {"sgd": 0, "momentum": 1, "nesterov": 2, "adam": 3, "adamw": 3}
WORK_PER_CALL = 3_000_000_000  # multiply-adds, a fraction of a second, so that Ctrl-C is heard
PREDICT_BATCH = 256


@dataclass
class State:
    trunk: Trunk
    shapes: list
    parameters: np.ndarray  # the trunk's, then the heads' rows, then their intercepts
    moments: np.ndarray
    head_start: np.ndarray
    head_class: np.ndarray
    head_row: np.ndarray
    head_mix: np.ndarray
    n_shared: int
    n_classes: int
    steps: int = 0

    @property
    def n_head_rows(self):
        return (len(self.parameters) - self.trunk.n_parameters) // (self.trunk.n_features + 1)

    def heads(self):
        """H (n_head_rows, n_features) and its intercepts, views."""
        cut = self.trunk.n_parameters + self.n_head_rows * self.trunk.n_features
        H = self.parameters[self.trunk.n_parameters : cut]
        return H.reshape(self.n_head_rows, self.trunk.n_features), self.parameters[cut:]


def start(model, observations, classes, shapes, previous, rng):
    n_tasks = observations.n_tasks
    factors = resolve_coupling(model.coupling).factor(n_tasks)
    if classes.binary:
        n_classes, per_task = 1, [np.zeros(1, dtype=np.int64)] * n_tasks
    else:
        n_classes, per_task = len(classes.classes), classes.task_classes
    head_class = np.concatenate(per_task).astype(np.int64)
    widths = [len(own) for own in per_task]
    head_start = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    n_shared, n_heads = factors.mixing.shape[1], len(head_class)
    owner = np.repeat(np.arange(n_tasks), widths)
    # Own vectors are kept as v_t / sqrt(κ_t): every parameter then has the same plain penalty.
    mix = np.column_stack([factors.mixing[owner], np.sqrt(factors.kappa[owner])])
    row = np.column_stack(
        [r * n_classes + head_class for r in range(n_shared)]
        + [n_shared * n_classes + np.arange(n_heads)]
    )
    n_head_rows = n_shared * n_classes + n_heads
    if not factors.kappa.any():
        mix, row, n_head_rows = mix[:, :-1], row[:, :-1], n_shared * n_classes
    dtype = np.dtype(model.dtype)
    if previous is None:
        trunk = compile_trunk(model._layers(), shapes)
    else:
        trunk = previous.trunk
    F = trunk.n_features
    scale = 1 / np.sqrt(F * mix.shape[1])
    parameters = np.concatenate(
        [
            initial_parameters(trunk, rng),
            rng.uniform(-scale, scale, n_head_rows * F),
            np.zeros(n_head_rows),
        ]
    ).astype(dtype)
    state = State(
        trunk,
        shapes,
        parameters,
        np.zeros((2, len(parameters)), dtype),
        head_start,
        head_class,
        np.ascontiguousarray(row, dtype=np.int64),
        np.ascontiguousarray(mix, dtype=dtype),
        n_shared,
        n_classes,
    )
    if previous is not None:
        kept = len(previous.head_class)
        if (
            (previous.n_shared, previous.n_classes) != (n_shared, n_classes)
            or previous.head_mix.shape[1] != mix.shape[1]
            or n_heads < kept
            or not np.array_equal(previous.head_class, head_class[:kept])
        ):
            raise ValueError(
                "the earlier fit had another coupling, other features or other classes; "
                "fit anew (warm_start=False)"
            )
        carry_over(previous, state)
    return state, factors


def named_views(state):
    """Named views of all parameters."""
    found = {}
    for line, layer in enumerate(state.trunk.layers):
        for name, where, shape in blocks(state.trunk, line):
            key = f"{line}.{type(layer).__name__.lower()}.{name}"
            found[key] = state.parameters[where].reshape(shape)
    H, intercept = state.heads()
    cut = state.n_shared * state.n_classes
    if cut:
        found["shared"] = H[:cut].reshape(state.n_shared, state.n_classes, -1)
        found["shared_intercept"] = intercept[:cut].reshape(state.n_shared, state.n_classes)
    if len(H) > cut:
        found["own"], found["own_intercept"] = H[cut:], intercept[cut:]
    return found


def carry_over(previous, state):
    """Continue from an earlier state that has as many tasks or fewer."""
    old, new = previous.trunk.n_parameters, state.trunk.n_parameters
    state.parameters[:new] = previous.parameters[:old]
    state.moments[:, :new] = previous.moments[:, :old]
    state.steps = previous.steps
    before, after = named_views(previous), named_views(state)
    for name in ("shared", "shared_intercept", "own", "own_intercept"):
        if name in before:
            after[name][: len(before[name])] = before[name]
    F, rows_old, rows_new = state.trunk.n_features, previous.n_head_rows, state.n_head_rows
    for was, now in zip(previous.moments, state.moments):
        now[new : new + rows_old * F] = was[old : old + rows_old * F]
        cut = new + rows_new * F
        now[cut : cut + rows_old] = was[old + rows_old * F :]


def split_lengths(X, state, has_lengths):
    """The matrix and the lengths as the core takes them."""
    lengths = np.empty(0, dtype=np.int32)
    if has_lengths:
        X, lengths = X[:, :-1], np.ascontiguousarray(X[:, -1], dtype=np.int32)
    return np.ascontiguousarray(X, dtype=state.parameters.dtype), lengths


def train(model, observations, classes, state, task_weight, rng, max_iter, has_lengths):
    """Run epochs on `state` in place; return the history."""
    by_row = np.argsort(observations.row, kind="stable")
    row, task = observations.row[by_row], np.ascontiguousarray(observations.task[by_row])
    target = np.ascontiguousarray(classes.code[by_row], dtype=np.float64)
    sample_weight = observations.weight[by_row]
    sample_row, first = np.unique(row, return_index=True)
    sample_start = np.append(first, len(row)).astype(np.int64)
    n, n_tasks = len(sample_row), observations.n_tasks
    X, lengths = split_lengths(observations.X, state, has_lengths)
    trunk, _dtype = state.trunk, state.parameters.dtype
    codes = model._loss_codes(observations, classes)
    widths = np.diff(state.head_start)[task]
    fixed = {
        "layers": trunk.table,
        "X": X,
        "lengths": lengths,
        "sample_row": sample_row.astype(np.int64),
        "sample_start": sample_start,
        "task": task,
        "target": target,
        "head_start": state.head_start,
        "head_row": state.head_row,
        "head_mix": state.head_mix,
        "loss": codes,
        "loss_parameter": np.where(codes == LOSSES["quantile"], 0.5, 1.0),
        "head_offset": trunk.n_parameters,
        "n_head_rows": state.n_head_rows,
        "max_outputs": int(np.add.reduceat(widths, sample_start[:-1]).max()),
        "gradient": np.zeros_like(state.parameters),
        "n_threads": resolve_threads(model.n_threads),
    }
    training, held_out = np.arange(n), None
    if model.early_stopping:
        shuffled = rng.permutation(n)
        n_held = max(1, round(model.validation_fraction * n))
        if n_held >= n:
            raise ValueError(
                f"validation_fraction is {model.validation_fraction}, which leaves no row of {n} "
                "to train on; lower it"
            )
        held_out, training = np.sort(shuffled[:n_held]), np.sort(shuffled[n_held:])
    optimiser = OPTIMISERS[model.solver]
    batch = min(model.batch_size, len(training))
    settings = np.zeros(13)
    settings[0], settings[1] = optimiser, batch
    settings[3], settings[4] = model.alpha, model.weight_decay
    settings[5] = model.beta_1 if optimiser == 3 else model.momentum
    settings[6], settings[7] = model.beta_2, model.epsilon
    settings[8] = model.clip_norm or 0.0
    settings[10] = rng.integers(2**31)
    settings[11] = model.solver == "adamw"
    rows_per_call = max(1, WORK_PER_CALL // (3 * trunk.work * batch)) * batch
    count = _task_counts(task, sample_weight, sample_start, training, n_tasks)
    uncertain = isinstance(model.task_weight, str) and model.task_weight == "uncertainty"

    norms = np.zeros(len(trunk.table) + 1)
    history, best, best_parameters, waited = [], np.inf, None, 0
    bar = progress(max_iter) if model.verbose else None
    try:
        for epoch in range(max_iter):
            started = time.perf_counter()
            rate = settings[2] = _rate(model, epoch, max_iter)
            weight = sample_weight * task_weight[task]
            order = training[rng.permutation(len(training))]
            task_loss = np.zeros(n_tasks)
            for begin in range(0, len(order), rows_per_call):
                part = order[begin : begin + rows_per_call]
                settings[9] = state.steps
                status = core.network_train(
                    order=part,
                    weight=weight,
                    parameters=state.parameters,
                    state=state.moments,
                    settings=settings,
                    layer_norms=norms,
                    task_loss=task_loss,
                    **fixed,
                )
                if status or not np.isfinite(state.parameters).all():
                    raise FloatingPointError(_diverged(model, trunk, norms, epoch))
                state.steps += -(-len(part) // batch)
            gradient_norms = np.sqrt(norms)
            mean_loss = task_loss / np.maximum(task_weight * count, 1e-300)
            entry = {
                "loss": float(task_loss.sum() / len(training)),
                "task_loss": mean_loss,
                "gradient_norms": gradient_norms,
                "learning_rate": float(rate),
            }
            if uncertain:
                task_weight = 0.5 / np.maximum(mean_loss, 1e-6)
            if held_out is not None:
                checking = settings.copy()
                checking[1], checking[2] = min(PREDICT_BATCH, len(held_out)), 0.0
                held_loss = np.zeros(n_tasks)
                core.network_train(
                    order=held_out,
                    weight=weight,
                    parameters=state.parameters,
                    state=state.moments,
                    settings=checking,
                    layer_norms=np.zeros_like(norms),
                    task_loss=held_loss,
                    **fixed,
                )
                entry["validation_loss"] = float(held_loss.sum() / len(held_out))
                held_count = _task_counts(task, weight, sample_start, held_out, n_tasks)
                with np.errstate(invalid="ignore"):
                    entry["validation_task_loss"] = held_loss / held_count
            entry["seconds"] = time.perf_counter() - started
            history.append(entry)
            if bar is not None:
                bar.update()
                bar.set_postfix(loss=f"{entry['loss']:.4g}")
            if held_out is not None:
                if entry["validation_loss"] < best - model.tol:
                    waited = 0
                else:
                    waited += 1
                if entry["validation_loss"] < best:
                    best, best_parameters = entry["validation_loss"], state.parameters.copy()
                if waited >= model.n_iter_no_change:
                    break
    finally:
        if bar is not None:
            bar.close()
    if best_parameters is not None:
        state.parameters[...] = best_parameters
    _warn_if_vanished(trunk, history[-1]["gradient_norms"])
    return history


def _task_counts(task, weight, sample_start, samples, n_tasks):
    """Summed weights of the labels of each task among the samples."""
    chosen = np.zeros(len(sample_start) - 1)
    chosen[samples] = 1
    return np.bincount(task, weight * np.repeat(chosen, np.diff(sample_start)), n_tasks)


def _rate(model, epoch, max_iter):
    first = model.learning_rate_init
    if callable(model.learning_rate):
        rate = float(model.learning_rate(epoch))
        if not 0 < rate < np.inf:
            raise ValueError(f"learning_rate({epoch}) is {rate}; return a positive finite number")
        return rate
    if model.learning_rate == "cosine":
        return first * 0.5 * (1 + np.cos(np.pi * epoch / max_iter))
    if model.learning_rate == "invscaling":
        return first / np.sqrt(epoch + 1)
    return first


def _diverged(model, trunk, norms, epoch):
    remedies = [f"lower learning_rate_init (now {model.learning_rate_init:g})"]
    if model.clip_norm is None:
        remedies.append("set clip_norm, for example to 1.0")
    remedies.append("standardise X and y")
    return f"training diverged in epoch {epoch + 1}: {', or '.join(remedies)}"


def _warn_if_vanished(trunk, norms):
    lines = np.flatnonzero(trunk.table[:, 7] > 0)
    if len(lines) and norms[-1] > 0 and norms[lines].max() < 1e-9 * norms[-1]:
        warnings.warn(
            "the gradient does not reach the trunk (it vanished on the way, or all its units are "
            "inactive); lower learning_rate_init, use activation='leaky_relu' or add LayerNorm()",
            ConvergenceWarning,
            stacklevel=4,
        )
