"""Losses with plain penalties at their minimum, by Newton's method.

A step minimises the quadratic model of the losses about the present scores, which is a ridge
regression with the losses' second derivatives for weights: `linear_direct.Ridge` solves it exactly,
and a line search keeps the objective falling. Losses with kinks take the steps of
`linear_interior`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning

from fastmtl._core import linear_sgd, ridge
from fastmtl.estimators import progress
from fastmtl.kernels import empty_matrix
from fastmtl.linear_direct import (
    EPOCHS,
    STEPS_SO_FAR,
    Solution,
    beats_epochs,
    check_room,
    costs,
    entry,
    gone_on,
    problem_of,
    put,
)
from fastmtl.linear_interior import KINKS, Interior
from fastmtl.linear_problem import LOSSES, PACKED_BYTES, n_parameters

# The second derivative from the target, the loss, its derivative, and the loss's parameter.
CURVATURES = {
    "squared_error": lambda y, value, slope, parameter: np.ones_like(slope),
    "huber": lambda y, value, slope, delta: np.abs(slope) < delta,
    "squared_epsilon_insensitive": lambda y, value, slope, parameter: 2.0 * (value > 0),
    "poisson": lambda y, value, slope, parameter: slope + y,
    "squared_hinge": lambda y, value, slope, parameter: 2.0 * (value > 0),
    "modified_huber": lambda y, value, slope, parameter: 2.0 * ((value > 0) & (value < 4)),
    "log_loss": lambda y, value, slope, parameter: np.abs(slope) * (1.0 - np.abs(slope)),
}
STEPS = 8  # that a fit takes, give or take three
HARD_STEPS = 30  # where epochs did not do; with kinks ridge regressions, two of them a step
KINKED_GAP = 1e-2  # of the gap that would do after a step of Newton's
KINKED_ROUNDING = 1e-8  # weights of all sizes leave so much of a gap
SGD_EPOCHS = 3000  # of SAGA take as long as those that SGD may take, and not get there
DUAL_EPOCHS = 100  # that it takes by the dual where samples are fewer than parameters
LEAST_CURVATURE = 1e-12  # of the steepest sample's, so that each has a target
ENOUGH = 1e-4  # of the descent that a step's slope promises
SHORTEST = 2.0**-40
ROUNDING = 1e-14
NS_OF_LOSS = 40  # to read a loss, on one core


@dataclass
class Point:
    """Parameters, the scores they give, and the objective, summed over samples."""

    solution: Solution
    score: np.ndarray
    loss: np.ndarray
    slope: np.ndarray
    value: float


class Newton:
    stuck = False

    def __init__(self, model, training, factors):
        self.observations, self.factors = packed(training[0]), factors
        classes = training[1]
        self.problem = problem_of(model, (self.observations, classes))
        self.d, self.kind, self.weight = self.problem.d, self.problem.kind, self.problem.weight
        self.q = self.d + (self.kind == "coupled")
        self.target = np.ascontiguousarray(classes.code, dtype=np.float64)
        self.code, self.parameter = model._loss_setting(classes)[:2]
        self.curvature = CURVATURES.get(model.loss)
        self.strength = model.alpha * self.observations.weight.sum()
        sparse = sp.issparse(self.observations.X)
        self.scores = ridge.scores_csr if sparse else ridge.scores_dense

    def start(self, state):
        wide, q = state.dense(self.d), slice(self.q)
        free = self.kind == "free"

        def used(vectors):
            vectors = np.asarray(vectors, dtype=np.float64)
            return np.concatenate([vectors[..., : self.d], vectors[..., -1:]], axis=-1)

        shared, specific = used(wide.shared[:, 0]), used(wide.specific)
        own = specific[:, -1].copy() if free else None
        return self.at(
            Solution(shared[:, q], specific[:, q], float(wide.intercept[0]), own, np.nan)
        )

    def at(self, solution):
        vectors = np.zeros((len(solution.specific), self.d + 1))
        vectors[:, : self.q] = self.factors.mixing @ solution.shared + solution.specific
        vectors[:, -1] += solution.offset
        if solution.own_intercept is not None:
            vectors[:, -1] += solution.own_intercept
        score = np.empty(len(self.target))
        observations = self.observations
        self.scores(
            *self.problem.rows,
            observations.row,
            observations.task_start,
            vectors,
            score,
            self.problem.n_threads,
        )
        return self.judge(solution, score)

    def judge(self, solution, score):
        loss, slope = np.empty_like(score), np.empty_like(score)
        linear_sgd.point_losses(self.code, self.parameter, self.target, score, loss, slope)
        value = np.einsum("i,i", self.weight, loss) + 0.5 * self.strength * self.inner(
            solution, solution
        )
        return Point(solution, score, loss, slope, value)

    def inner(self, one, other):
        """Of the whitened parameters that bear a penalty."""
        kappa = self.factors.kappa
        own = np.einsum("tj,tj->t", one.specific, other.specific)
        own = np.divide(own, kappa, out=np.zeros_like(own), where=kappa > 0)
        return np.sum(one.shared * other.shared) + own.sum()

    def aim(self, point):
        """Where the quadratic model about a point is least."""
        curvature = self.curvature(self.target, point.loss, point.slope, self.parameter)
        curvature = np.asarray(curvature, dtype=np.float64)
        most = curvature.max(where=self.weight > 0, initial=0.0) or 1.0
        curvature = np.maximum(curvature, LEAST_CURVATURE * most)
        self.problem.weigh(point.score - point.slope / curvature, self.weight * curvature)
        return self.at(self.problem.solve(self.factors, self.strength))

    def step(self, point):
        return self.search(point, self.aim(point))

    def search(self, point, aim):
        """The first of the points 1, ½, ¼ … of the way that is low enough, and the slope there."""
        change = np.einsum("i,i,i", point.slope, self.weight, aim.score - point.score)
        change += self.strength * (
            self.inner(point.solution, aim.solution) - self.inner(point.solution, point.solution)
        )
        share, trial = 1.0, aim
        while not trial.value <= point.value + ENOUGH * share * change:
            share /= 2
            if share < SHORTEST:
                return point, change
            trial = self.move(point, aim, share)
        return trial, change

    def move(self, point, aim, share):
        score = point.score + share * (aim.score - point.score)
        return self.judge(between(point.solution, aim.solution, share), score)


def packed(observations):
    """The observations with X in their order, where a copy is small: it is read several times."""
    X, row = observations.X, observations.row
    n_bytes = X.data.nbytes + X.indices.nbytes if sp.issparse(X) else X.nbytes
    if n_bytes > PACKED_BYTES or len(row) > X.shape[0] or not np.any(np.diff(row) < 0):
        return observations
    if sp.issparse(X):
        X = X[row]
    else:
        X = np.take(X, row, axis=0, out=empty_matrix(len(row), X.shape[1], X.dtype), mode="clip")
    return replace(observations, X=X, row=np.arange(len(row)))


def between(one, other, share):
    def mix(a, b):
        return None if a is None else a + share * (b - a)

    return Solution(
        mix(one.shared, other.shared),
        mix(one.specific, other.specific),
        mix(one.offset, other.offset),
        mix(one.own_intercept, other.own_intercept),
        np.nan,
    )


def fit(model, training, state, factors, max_iter, history=()):
    """Put the minimum into `state`; returns what `linear_training.train` does.

    `history` has the epochs that another solver took before.
    """
    check_room(training[0].X.shape[1], factors.mixing.shape[1], "newton")
    history, began = gone_on(history)
    bar = progress(max_iter, "step") if model.verbose else None
    total, tol = training[0].weight.sum(), model.tol or 0.0
    point, settled, step, first = None, False, 0, 0.0
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            newton = Newton(model, training, factors)
            point = newton.start(state)
            if not np.isfinite(point.value):
                raise FloatingPointError(
                    f"the objective is {point.value} where solver='newton' starts; fit anew "
                    "(warm_start=False), or standardise X"
                )
            kinked = model.loss in KINKS
            method = Interior(newton, model.loss, point) if kinked else newton
            while not (settled or method.stuck) and step < max_iter:
                step += 1
                before = point
                point, change = method.step(point)
                history.append(entry(history, "newton", point.value / total, began))
                if bar is not None:
                    shown = f"{history[-1]['objective']:.6g}"
                    bar.set_postfix({"objective": shown}, refresh=False)
                    bar.update()
                size = np.einsum("i,i", newton.weight, np.abs(before.loss)) + abs(before.value)
                first = first or size
                # The step halves the digits that are missing, so few are after it; a loss that
                # falls for ever, as that of one class does, falls far enough.
                enough = max(max(tol, ROUNDING) * size, ROUNDING * first)
                if kinked:  # whose steps end at a bound, and leave a share of what was missing
                    settled = -change <= max(KINKED_GAP * enough, KINKED_ROUNDING * size)
                else:
                    settled = point is before or -change <= enough
    except KeyboardInterrupt:
        if point is None or not history:
            raise
        warnings.warn(
            f"interrupted in step {step}; kept are the parameters of epoch {len(history)}, the "
            "best so far",
            ConvergenceWarning,
            stacklevel=4,
        )
        settled = True
    finally:
        if bar is not None:
            bar.close()
    if not settled:
        warnings.warn(
            f"not converged to tol={tol:g} within max_iter={max_iter} steps of Newton's method; "
            "raise max_iter or tol, or standardise X",
            ConvergenceWarning,
            stacklevel=4,
        )
    put(point.solution, state, newton.d)
    state.steps += STEPS_SO_FAR * len(training[0].row)
    return {"state": state, "n_iter": len(history), "best_iter": len(history), "history": history}


def pays(model, observations, factors):
    """Whether Newton's method costs less than the epochs that would take its place."""
    cost = price(model, observations, factors)
    if LOSSES[model.loss][1] is None:
        few = len(observations.row) < n_parameters(observations, factors)
        return cost < (DUAL_EPOCHS if model.loss in KINKS and few else SGD_EPOCHS)
    return beats_epochs(cost, 2 * EPOCHS, model, observations, factors)


def price(model, observations, factors, *, hard=False):
    """How many epochs of SAGA cost as much; infinitely many where memory lacks.

    `hard` problems are those where epochs did not do.
    """
    direct, epoch = costs(observations, factors)
    n, filled = len(observations.row), observations.X.shape[1]
    if sp.issparse(observations.X):
        filled = observations.X.nnz / max(observations.X.shape[0], 1)
    step = direct + n * (NS_OF_LOSS + filled)
    return (HARD_STEPS if hard or model.loss in KINKS else STEPS) * step / epoch


def takes(loss):
    return isinstance(loss, str) and (loss in CURVATURES or loss in KINKS)
