"""Squared loss on the same rows under any coupling and strength, at the exact minimum.

A search fits the same rows dozens of times. For squared loss with plain penalties a basis for each
task in which its Gram matrix is diagonal, found once, serves them all: a fit is a few products.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone

from fastmtl.estimators import label_weights
from fastmtl.evidence import Relations, posterior
from fastmtl.linear import MultiTaskSGDRegressor
from fastmtl.relations import Data, coordinates, width_for

MOST_NUMBERS = 2e7  # in the rows of X as float64
RIDGE = {
    "loss": "squared_error",
    "shared_penalty": "l2",
    "task_penalty": "l2",
    "early_stopping": False,
    "callbacks": None,
}


class RidgeFits:
    """Fits of one estimator on the same observations, at any alpha and given coupling."""

    @classmethod
    def of(cls, estimator, X, y, tasks, sample_weight):
        """None where the fits are no ridge regressions of few enough features."""
        if not isinstance(estimator, MultiTaskSGDRegressor) or any(
            getattr(estimator, name) != value for name, value in RIDGE.items()
        ):
            return None
        if estimator._solver() != "saga" or not estimator.alpha > 0:
            return None
        fits = cls(estimator, X, y, tasks, sample_weight)
        rows, d = fits.training[0].X.shape
        small = d <= width_for(fits.training[0].n_tasks) and rows * d <= MOST_NUMBERS
        return fits if small else None

    def __init__(self, estimator, X, y, tasks, sample_weight):
        self.model = clone(estimator)
        observations = self.model._observe(X, y, tasks, sample_weight, reset=True)
        self.training = observations, self.model._encode(observations)
        self.weight = label_weights(self.model, *self.training)
        self.problems = {}

    def fit(self, **parameters):
        """The estimator with these parameters, fitted."""
        model = copy.copy(self.model).set_params(**parameters)
        relations, _ = model._relate(self.training)
        state, (mixing, kappa) = model._start(self.training, False, relations)
        kind = model._intercept_kind()
        summary, root, flat, means = self._problem(kind)
        scale = 1 / np.sqrt(model.alpha * self.training[0].weight.sum())
        prior = Relations(scale * mixing, scale**2 * kappa, root, 1.0)
        at = posterior(summary, prior, flat)
        d = self.training[0].X.shape[1]
        wide = state.dense(d)
        wide.shared[:, 0, :d], wide.specific[:, :d] = scale * at.shared[:, :d], at.specific[:, :d]
        if kind == "coupled":
            wide.shared[:, 0, -1] = scale * at.shared[:, d]
            wide.specific[:, -1] = at.specific[:, d]
        if flat:
            wide.intercept[0] = at.offset
        if kind == "free":
            wide.specific[:, -1] = means[1] - np.sum(means[0] * at.vectors, axis=1)
        state.take(wide)
        done = {"n_iter": 0, "best_iter": 0, "history": []}
        model._store(self.training, state, relations.factors, done)
        return model

    def _problem(self, kind):
        """A diagonalised summary, L, whether an offset is free, and what was centred about."""
        if kind not in self.problems:
            observations, classes = self.training
            X, row = observations.X, observations.row
            target, means = np.asarray(classes.code, dtype=np.float64), None
            if kind == "free":
                X = np.asarray(X[row].toarray() if sp.issparse(X) else X[row], dtype=np.float64)
                row, target = np.arange(len(X)), target.copy()
                means = np.zeros((observations.n_tasks, X.shape[1])), np.zeros(observations.n_tasks)
                for t, (begin, end) in enumerate(itertools.pairwise(observations.task_start)):
                    own = slice(begin, end)
                    if (weight := self.weight[own]).sum() > 0:
                        means[0][t], means[1][t] = (
                            np.average(part[own], axis=0, weights=weight) for part in (X, target)
                        )
                        X[own] -= means[0][t]
                        target[own] -= means[1][t]
            rows, root = coordinates(X, "none" if kind == "free" else kind)
            flat = kind in ("shared", "coupled")
            families = [(target, self.weight)]
            data = Data(rows, row, observations.task_start, families, "squared", flat)
            summary = data.summary(0, None)
            summary.diagonalise(root, flat)
            self.problems[kind] = summary, root, flat, means
        return self.problems[kind]
