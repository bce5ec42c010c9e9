"""A network's parameters: where they lie, how they start, and the heads under another coupling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastmtl.coupling import Factors, resolve_coupling
from fastmtl.layers import Trunk, blocks, compile_trunk, initial_parameters

LOSSES = {"squared_error": 0, "huber": 1, "quantile": 4, "poisson": 5, "log_loss": 9}
SOFTMAX = 100


@dataclass
class State:
    trunk: Trunk
    shapes: list
    factors: Factors
    parameters: np.ndarray  # the trunk's, then the heads' rows, then their intercepts
    moments: np.ndarray
    head_start: np.ndarray
    head_class: np.ndarray
    head_row: np.ndarray
    head_mix: np.ndarray
    n_classes: int
    kind: np.ndarray  # of each output: 0 a class, 1 a number, 2 the logarithm of a rate
    units: np.ndarray  # of each kind: what outputs are multiplied by, then shifted by
    steps: int = 0
    epochs: int = 0
    learned: bool = False  # whether B and κ were

    @property
    def n_shared(self):
        return self.factors.mixing.shape[1]

    @property
    def n_head_rows(self):
        return len(self.parameters[self.trunk.n_parameters :]) // (self.trunk.n_features + 1)

    def heads(self, values=None):
        """H (n_head_rows, n_features) and its intercepts, or what stands for them in `values`."""
        values = self.parameters if values is None else values
        cut = self.trunk.n_parameters + self.n_head_rows * self.trunk.n_features
        H = values[self.trunk.n_parameters : cut]
        return H.reshape(self.n_head_rows, self.trunk.n_features), values[cut:]

    def head_weights(self):
        """w of each output, (n_outputs, n_features + 1), intercept last."""
        H, intercept = self.heads()
        weights = np.einsum("je,jef->jf", self.head_mix, H[self.head_row])
        own = np.einsum("je,je->j", self.head_mix, intercept[self.head_row])
        return np.column_stack([weights, own])

    def in_units(self, weights, outputs=slice(None)):
        """Weights of these outputs as they are on targets that were not standardised."""
        scale, shift = self.units[self.kind[outputs]].astype(weights.dtype).T
        weights = weights * scale[:, None]
        weights[:, -1] += shift
        return weights

    def standardised(self, target, task):
        """What is trained on: numbers of mean 0 and scale 1, rates of mean 1, or class codes."""
        kind = self.kind[self.head_start[task]]
        scale, shift = self.units[kind].T
        rate = np.exp(np.where(kind == 2, shift, 0.0))
        return np.where(kind == 2, target / rate, (target - shift) / scale)


def target_units(kind, target, weight):
    """(scale, shift) of classes, numbers and rates, from labels of these kinds."""
    units = np.array([[1.0, 0.0]] * 3)
    for k in (1, 2):
        own = (kind == k) & (weight > 0)
        if not own.any():
            continue
        mean = np.average(target[own], weights=weight[own])
        if k == 1:
            gap = target[own] - mean
            most = np.abs(gap).max()
            if most > 1e-12 * abs(mean):  # else a constant, but for rounding
                scale = most * np.sqrt(np.average((gap / most) ** 2, weights=weight[own]))
            else:
                scale = abs(mean) or 1.0
            units[1] = scale, mean
        elif mean > 0:
            units[2] = 1.0, np.log(mean)
    return units


def lay_out(trunk, shapes, factors, head_start, head_class, n_classes, dtype, kind, units):
    """A state whose parameters are all zero."""
    n_shared, n_heads = factors.mixing.shape[1], len(head_class)
    owner = np.repeat(np.arange(len(factors.kappa)), np.diff(head_start))
    # Own vectors are kept as v_t / sqrt(κ_t): every parameter then has the same plain penalty.
    mix = np.column_stack([factors.mixing[owner], np.sqrt(factors.kappa[owner])])
    row = np.column_stack(
        [r * n_classes + head_class for r in range(n_shared)]
        + [n_shared * n_classes + np.arange(n_heads)]
    )
    n_head_rows = n_shared * n_classes + n_heads
    if not factors.kappa.any():
        mix, row, n_head_rows = mix[:, :-1], row[:, :-1], n_shared * n_classes
    size = trunk.n_parameters + n_head_rows * (trunk.n_features + 1)
    return State(
        trunk,
        shapes,
        factors,
        np.zeros(size, dtype),
        np.zeros((2, size), dtype),
        head_start,
        head_class,
        np.ascontiguousarray(row, dtype=np.int64),
        np.ascontiguousarray(mix, dtype=dtype),
        n_classes,
        kind,
        units,
    )


def start(model, observations, classes, shapes, previous, rng):
    n_tasks, coupling = observations.n_tasks, resolve_coupling(model.coupling)
    if coupling.learning is None:
        factors = coupling.factor(n_tasks)
    elif previous is not None:
        factors = previous.factors.extended(n_tasks)
    else:  # until there are features to learn on
        factors = Factors(np.full((n_tasks, 1), np.sqrt(0.5)), np.full(n_tasks, 0.5))
    if classes.binary:
        n_classes, per_task = 1, [np.zeros(1, dtype=np.int64)] * n_tasks
    else:
        n_classes, per_task = len(classes.classes), classes.task_classes
    head_class = np.concatenate(per_task).astype(np.int64)
    widths = [len(own) for own in per_task]
    head_start = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    trunk = compile_trunk(model._layers(), shapes) if previous is None else previous.trunk
    dtype = np.dtype(model.dtype)
    codes = model._loss_codes(observations, classes)
    kind = np.where(codes >= LOSSES["log_loss"], 0, np.where(codes == LOSSES["poisson"], 2, 1))
    if previous is None:
        task = observations.task
        units = target_units(kind[task], classes.code, observations.weight)
    else:
        units = previous.units.copy()
    kind = np.repeat(kind, widths)
    state = lay_out(trunk, shapes, factors, head_start, head_class, n_classes, dtype, kind, units)
    state.parameters[: trunk.n_parameters] = initial_parameters(trunk, rng)
    H = state.heads()[0]
    scale = 1 / np.sqrt(H.shape[1] * state.head_mix.shape[1])
    H[...] = rng.uniform(-scale, scale, H.shape)
    if previous is not None:
        kept = len(previous.head_class)
        if (
            (previous.n_shared, previous.n_classes) != (state.n_shared, n_classes)
            or previous.head_mix.shape[1] != state.head_mix.shape[1]
            or len(head_class) < kept
            or not np.array_equal(previous.head_class, head_class[:kept])
        ):
            raise ValueError(
                "the earlier fit had another coupling, other features or other classes; "
                "fit anew (warm_start=False)"
            )
        carry_over(previous, state)
    return state


def recoupled(state, factors):
    """The same heads under another B and κ > 0, split where the penalty is least; the moments too.

    With w = B s + v that is ``s = Bᵀ C⁻¹ w``. A gradient of w is one of s through Bᵀ and one of
    v / sqrt(κ) through sqrt(κ); the mean square of s's adds up those of its tasks.
    """
    new = lay_out(
        state.trunk,
        state.shapes,
        factors,
        state.head_start,
        state.head_class,
        state.n_classes,
        state.parameters.dtype,
        state.kind,
        state.units,
    )
    new = replace(new, steps=state.steps, epochs=state.epochs, learned=True)
    n_trunk = state.trunk.n_parameters
    owner = np.repeat(np.arange(len(factors.kappa)), np.diff(state.head_start))
    new.parameters[:n_trunk] = state.parameters[:n_trunk]
    new.moments[:, :n_trunk] = state.moments[:, :n_trunk]
    weights = state.head_weights().astype(np.float64)
    B, root = factors.mixing[owner], np.sqrt(factors.kappa[owner])[:, None]
    shared = np.zeros((state.n_classes, B.shape[1], weights.shape[1]))
    for k in range(state.n_classes):
        own = state.head_class == k
        scaled = B[own] / root[own]
        inner = np.eye(B.shape[1]) + scaled.T @ scaled
        shared[k] = np.linalg.solve(inner, scaled.T @ (weights[own] / root[own]))
    specific = (weights - np.einsum("jr,jrf->jf", B, shared[state.head_class])) / root
    _set_heads(new, new.parameters, shared, specific)
    if state.factors.kappa.all():
        before = np.sqrt(state.factors.kappa[owner])[:, None]
        for power, was, now in zip((1, 2), state.moments, new.moments):
            own = np.column_stack(state.heads(was))[-len(owner) :] / before**power
            shared[...] = 0
            np.add.at(shared, state.head_class, (B**power)[:, :, None] * own[:, None])
            _set_heads(new, now, shared, own * root**power)
    return new


def _set_heads(state, values, shared, own):
    rows = np.vstack([shared.transpose(1, 0, 2).reshape(-1, own.shape[1]), own])
    H, intercept = state.heads(values)
    H[...], intercept[...] = rows[:, :-1], rows[:, -1]


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
    if state.kind.any():
        found["targets"] = state.units[1:]
    return found


def carry_over(previous, state):
    """Continue from an earlier state that has as many tasks or fewer."""
    old, new = previous.trunk.n_parameters, state.trunk.n_parameters
    state.parameters[:new] = previous.parameters[:old]
    state.moments[:, :new] = previous.moments[:, :old]
    state.steps, state.epochs = previous.steps, previous.epochs
    state.learned = previous.learned
    before, after = named_views(previous), named_views(state)
    for name in ("shared", "shared_intercept", "own", "own_intercept"):
        if name in before:
            after[name][: len(before[name])] = before[name]
    F, rows_old, rows_new = state.trunk.n_features, previous.n_head_rows, state.n_head_rows
    for was, now in zip(previous.moments, state.moments):
        now[new : new + rows_old * F] = was[old : old + rows_old * F]
        cut = new + rows_new * F
        now[cut : cut + rows_old] = was[old + rows_old * F :]
