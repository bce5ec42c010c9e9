"""Squared loss with plain penalties at its exact minimum, without epochs.

Each task's vector is eliminated in its own Gram matrix, which leaves one system for what is shared;
its solution gives every task's own part. See `_core.ridge` for the loops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from fastmtl._core import ridge
from fastmtl.config import resolve_threads
from fastmtl.estimators import label_weights, progress
from fastmtl.evidence import padded, shared_part
from fastmtl.kernels import empty_matrix
from fastmtl.linear_problem import n_parameters, squared_lengths
from fastmtl.row_blocks import machine_memory

KEPT_BYTES = 1 << 28  # of Gram matrices; of more, each pass sums them again
BLOCK_BYTES = 1 << 24  # of Gram matrices at a time, to find them in the cache
ROUNDING = 16 * np.finfo(np.float64).eps
# Epochs that SAGA or the dual need: where it is easy, or by the steepness of losses beside alpha.
EPOCHS, EPOCHS_BY_STEEPNESS, MOST_EPOCHS = 10, 3, 200
FEW_A_PARAMETER, MANY_A_PARAMETER = 0.3, 3  # samples
STEPS_SO_FAR = 20  # epochs after which SGD's default rate has settled, should `partial_fit` follow


@dataclass
class Solution:
    shared: np.ndarray  # (R, q): q is d, and one more where the intercept is coupled
    specific: np.ndarray  # (T, q)
    offset: float  # the shared intercept
    own_intercept: np.ndarray | None  # (T,), where it is free
    value: float  # losses and penalties, summed


class Ridge:
    """Ridge regressions on the same observations, under any factors of C and strength."""

    def __init__(self, observations, target, weight, kind, n_threads):
        X = observations.X
        self.observations = observations
        self.kind, self.free = kind, kind == "free"
        self.d, self.n_threads = X.shape[1], n_threads
        self.width = padded(self.d)
        if sp.issparse(X):
            indices, indptr = X.indices.astype(np.int32, copy=False), X.indptr.astype(np.int64)
            self.function, self.rows = ridge.grams_csr, (X.data, indices, indptr, self.d)
        else:
            self.function, self.rows = ridge.grams_dense, (X,)
        each = 8 * self.width**2
        self.per_block = max(1, BLOCK_BYTES // each)
        self.keeps = observations.n_tasks * each <= KEPT_BYTES
        self.rooms = []
        self.weigh(target, weight)

    def weigh(self, target, weight):
        """Take these targets and weights, in place of those before."""
        target = np.asarray(target, dtype=np.float64)
        # Where an intercept takes it up again, a large mean would only cost digits.
        self.mean = 0.0
        if self.kind != "none":  # not by BLAS, whose threads would wake, and wait in the cores
            self.mean = float(np.einsum("i,i", weight, target) / weight.sum())
        self.target, self.weight, self.summed = target - self.mean, weight, False

    def grams(self):
        """(tasks, Gram matrices of (x, 1, y)), block by block."""
        start, n_tasks = self.observations.task_start, self.observations.n_tasks
        size = min(self.per_block, n_tasks)
        for block, begin in enumerate(range(0, n_tasks, size)):
            tasks, place = slice(begin, min(begin + size, n_tasks)), block if self.keeps else 0
            if place == len(self.rooms):
                self.rooms.append(empty_matrix(size, self.width**2, np.float64))
            room = self.rooms[place].reshape(size, self.width, self.width)
            gram = room[: tasks.stop - begin]
            if not self.summed:
                self.function(
                    *self.rows,
                    self.observations.row,
                    start[begin : tasks.stop + 1],
                    self.weight,
                    self.target,
                    gram,
                    self.free,
                    self.n_threads,
                )
            yield tasks, gram
        self.summed = self.keeps

    def solve(self, factors, strength):
        """The minimum of Σ weight ½ (y − p)² + strength (½ Σ ‖s_r‖² + ½ Σ ‖v_t‖² / κ_t)."""
        mixing, kappa = factors
        (n_tasks, n_shared), d = mixing.shape, self.d
        q, flat = d + (self.kind == "coupled"), self.kind in ("shared", "coupled")
        pairs = np.triu_indices(n_shared + 1)
        columns = np.column_stack([mixing, np.ones(n_tasks)])
        weight = np.ascontiguousarray(columns[:, pairs[0]] * columns[:, pairs[1]])
        total = np.zeros((len(pairs[0]), self.width, self.width))
        scale = np.empty(n_tasks)
        for tasks, gram in self.grams():
            # A penalty that rounding would swallow is raised to one that it does not.
            most = np.einsum("tii->ti", gram)[:, :q].max(axis=1, initial=0.0)
            least = ROUNDING * self.width * most
            own = np.maximum(strength, kappa[tasks] * least)
            scale[tasks] = kappa[tasks] / own
            ridge.eliminate(gram, q, scale[tasks], weight[tasks], total, self.n_threads)

        if not np.isfinite(total).all():
            raise ValueError(
                "X or y has entries so large that sums of their squares overflow; standardise them"
            )
        sums = np.empty((n_shared + 1, n_shared + 1, self.width, self.width))
        sums[pairs] = total
        sums[pairs[::-1]] = total
        target = d + 1
        edge = None
        if flat:
            edge = sums[-1, :-1, d, :q], sums[-1, -1, d, d], sums[-1, -1, d, target]
        right = sums[-1, :-1, target, :q]
        b, _, theta, _ = shared_part(sums[:-1, :-1, :q, :q], right, edge, strength)
        shared = theta[: n_shared * q].reshape(n_shared, q)
        offset = float(theta[-1]) if flat else 0.0
        value = 0.5 * (sums[-1, -1, target, target] - b @ theta)

        vectors, own = np.zeros((n_tasks, self.width)), np.empty((n_tasks, self.width))
        vectors[:, :q] = mixing @ shared
        vectors[:, d] += offset
        vectors[:, target] = -1.0
        intercept = np.zeros(n_tasks) if self.free else None
        for tasks, gram in self.grams():
            ridge.own_parts(gram, q, scale[tasks], vectors[tasks], own[tasks], self.n_threads)
            if self.free:
                whole = vectors[tasks] + own[tasks]
                count = gram[:, d, d]
                gap = -np.einsum("tj,tj->t", gram[:, d], whole)
                np.divide(gap, count, out=intercept[tasks], where=count > 0)
        if self.free:
            start = self.observations.task_start
            some = np.flatnonzero(np.diff(start))
            w = (vectors + own)[some, :d]
            intercept[some] += self.mean
            if not sp.issparse(self.observations.X):
                first = self.observations.X[self.observations.row[start[some]]]
                intercept[some] -= np.einsum("tj,tj->t", first, w)
        elif flat:
            offset += self.mean
        return Solution(shared, own[:, :q], offset, intercept, value)


def put(solution, state, d):
    """Set the parameters of a state to a solution."""
    wide = state.dense(d)
    coupled = solution.shared.shape[1] > d
    wide.shared[:, 0, :d], wide.specific[:, :d] = solution.shared[:, :d], solution.specific[:, :d]
    if coupled:
        wide.shared[:, 0, -1] = solution.shared[:, d]
        wide.specific[:, -1] = solution.specific[:, d]
    if solution.own_intercept is not None:
        wide.specific[:, -1] = solution.own_intercept
    wide.intercept[0] = solution.offset
    state.take(wide)


def problem_of(model, training):
    observations, classes = training
    weight = label_weights(model, observations, classes)
    work = len(observations.row) * observations.X.shape[1] ** 2
    n_threads = resolve_threads(model.n_threads, work=work)
    return Ridge(observations, classes.code, weight, model._intercept_kind(), n_threads)


def fit(model, training, state, factors, max_iter=1, history=(), problem=None):
    """Put the minimum into `state`; returns what `linear_training.train` does.

    `history` has the epochs that another solver took before.
    """
    history, began = gone_on(history)
    bar = progress(1, "solution") if model.verbose else None
    observations, d = training[0], training[0].X.shape[1]
    check_room(d, factors.mixing.shape[1], "cholesky")
    problem = problem or problem_of(model, training)
    total = observations.weight.sum()
    solution = problem.solve(factors, model.alpha * total)
    put(solution, state, d)
    state.steps += STEPS_SO_FAR * len(observations.row)
    history.append(entry(history, "cholesky", max(solution.value, 0.0) / total, began))
    if bar is not None:
        bar.update()
        bar.close()
    return {"state": state, "n_iter": len(history), "best_iter": len(history), "history": history}


def gone_on(history):
    """The epochs so far, to be added to, and when the first of them began."""
    return list(history), time.perf_counter() - (history[-1]["seconds"] if history else 0.0)


def entry(history, solver, objective, began):
    """What the history gets of one more step."""
    return {
        "epoch": len(history) + 1,
        "objective": objective,
        "seconds": time.perf_counter() - began,
        "solver": solver,
    }


def check_room(d, n_shared, solver):
    needed, memory = room_for(d, n_shared), machine_memory()
    if needed > memory / 2:
        raise MemoryError(
            f"X has {d} features and B {n_shared} columns; solver={solver!r} needs "
            f"{needed / 1e9:.3g} GB on a machine with {memory / 1e9:.3g} GB; use solver='saga'"
        )


def room_for(d, n_shared):
    """Bytes of the shared part's sums and system."""
    size, pairs = n_shared * (d + 1) + 1, (n_shared + 1) * (n_shared + 2) // 2
    return 8 * (2 * size**2 + 3 * pairs * padded(d) ** 2)


def pays(model, observations, factors):
    """Whether the direct solution costs less than the epochs that would take its place."""
    cost = price(model, observations, factors)
    return beats_epochs(cost, EPOCHS, model, observations, factors)


def price(model, observations, factors, *, hard=False):
    """How many epochs of SAGA cost as much, `hard` or not; infinitely many where memory lacks."""
    direct, epoch = costs(observations, factors)
    return direct / epoch


def beats_epochs(cost, easy, model, observations, factors):
    """Whether a solution at the cost of so many epochs of SAGA is sooner done than by epochs.

    There are few, `easy` at most, where the penalty is strong, where the samples are few beside the
    parameters (for the dual), and of squared errors where they are many (for SAGA).
    """
    if cost < easy or cost >= MOST_EPOCHS:
        return cost < easy
    n, parameters = len(observations.row), n_parameters(observations, factors)
    many = model.loss == "squared_error" and n > MANY_A_PARAMETER * parameters
    if many or n < FEW_A_PARAMETER * parameters:
        return False
    gain = np.mean(np.sum(factors.mixing**2, axis=1) + factors.kappa)
    steep = model._smoothness() * gain * squared_lengths(observations.X).mean() / (model.alpha * n)
    return bool(cost < max(easy, EPOCHS_BY_STEEPNESS * steep))


def costs(observations, factors):
    """Of the direct solution, infinite where memory lacks, and of an epoch of SAGA.

    Nanoseconds on one core, by measurements: a sample's share of a Gram matrix, the elimination of
    a task, the sums and the system of the shared part; and SAGA's step.
    """
    X, n, n_tasks = observations.X, len(observations.row), observations.n_tasks
    n_shared, d = factors.mixing.shape[1], X.shape[1]
    p, size = padded(d), n_shared * (d + 1) + 1
    if sp.issparse(X):
        filled = X.nnz / max(X.shape[0], 1)
        sample, step = min(0.05 * p**2 + filled, filled**2), 15 + 4 * filled
    else:
        sample, step = 0.05 * p**2, 15 + 0.6 * d
    passes = 1 + (8 * n_tasks * p**2 > KEPT_BYTES)
    pairs = (n_shared + 1) * (n_shared + 2) / 2
    direct = passes * n * sample + n_tasks * (0.1 * p**3 + 0.1 * pairs * p**2) + 0.01 * size**3
    if room_for(d, n_shared) >= machine_memory() / 4:
        direct = np.inf
    return direct, n * (n_shared + 1) * step
