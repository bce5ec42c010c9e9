"""Ridge regressions on the same rows under any coupling and strength, for searches.

A search fits the same rows dozens of times; their Gram matrices are summed once.
"""

from __future__ import annotations

import copy

from sklearn.base import clone

from fastmtl import linear_direct
from fastmtl.linear import MultiTaskSGDRegressor
from fastmtl.linear_training import at_once


class RidgeFits:
    """Fits of one estimator on the same observations, at any alpha and given coupling."""

    @classmethod
    def of(cls, estimator, X, y, tasks, sample_weight):
        """None where the estimator would not be fitted directly."""
        if not isinstance(estimator, MultiTaskSGDRegressor):
            return None
        fits = cls(estimator, X, y, tasks, sample_weight)
        model = clone(estimator).set_params(coupling="mean")
        factors = model._relate(fits.training)[0].factors
        return fits if at_once(model, fits.training, factors) is linear_direct else None

    def __init__(self, estimator, X, y, tasks, sample_weight):
        self.model = clone(estimator)
        observations = self.model._observe(X, y, tasks, sample_weight, reset=True)
        self.training = observations, self.model._encode(observations)
        self.problems = {}

    def fit(self, **parameters):
        """The estimator with these parameters, fitted."""
        model = copy.copy(self.model).set_params(**parameters)
        relations, _ = model._relate(self.training)
        state, factors = model._start(self.training, False, relations)
        problem = self._problem(model)
        result = linear_direct.fit(model, self.training, state, factors, problem=problem)
        model._store(self.training, state, factors, result)
        return model

    def _problem(self, model):
        kind = model._intercept_kind()
        if kind not in self.problems:
            self.problems[kind] = linear_direct.problem_of(model, self.training)
        return self.problems[kind]
