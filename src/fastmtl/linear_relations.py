"""Learned relations in the linear models: what to learn from, and the parameters to start with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from fastmtl.coupling import Factors
from fastmtl.estimators import task_weights
from fastmtl.relations import learn_relations


@dataclass
class LinearRelations:
    """Factors of C for the tasks of the first fit, and the features' common covariance Ω.

    The solver sees ``x @ matrix + shift``, in which Ω is the identity; None where it is anyway.
    """

    factors: Factors
    matrix: np.ndarray | None = None
    shift: np.ndarray | None = None
    log_evidence: float | None = None

    def mapped_data(self, data):
        observations, classes = data
        if self.matrix is None:
            return data
        X = observations.X
        if sp.issparse(X):
            mapped = sp.csr_matrix(X @ sp.diags(np.diag(self.matrix)), dtype=X.dtype)
        else:
            mapped = np.ascontiguousarray(X @ self.matrix + self.shift, dtype=X.dtype)
        return replace(observations, X=mapped), classes

    def original(self, vectors):
        """Vectors of the solver, (…, d + 1) with the intercept last, in the data's features."""
        if self.matrix is None:
            return vectors
        answer = np.empty_like(vectors)
        answer[..., :-1] = vectors[..., :-1] @ self.matrix.T
        answer[..., -1] = vectors[..., -1] + vectors[..., :-1] @ self.shift
        return answer

    def mapped(self, vectors):
        """The inverse of `original`."""
        if self.matrix is None:
            return vectors
        answer = np.empty_like(vectors)
        answer[..., :-1] = np.linalg.solve(self.matrix, vectors[..., :-1, None])[..., 0]
        answer[..., -1] = vectors[..., -1] - answer[..., :-1] @ self.shift
        return answer

    def extended(self, n_tasks):
        """With a row of B and κ for each task that came later: the mean of those known."""
        mixing, kappa = self.factors
        new = n_tasks - len(kappa)
        mixing = np.vstack([mixing, np.tile(mixing.mean(axis=0), (new, 1))])
        return replace(self, factors=Factors(mixing, np.append(kappa, [kappa.mean()] * new)))


def learn_linear(model, training, learning):
    """Learn relations for a linear model; also return a function that sets a state to the mode."""
    observations, classes = training
    if learning.feature_covariance == "full" and sp.issparse(observations.X):
        raise ValueError(
            "feature_covariance is 'full' and X is sparse; use 'diagonal', which keeps it so"
        )
    weight = observations.weight * task_weights(model, observations)[observations.task]
    if model._classification:
        weight = weight * model._class_weights(observations, classes)
    kind = model._intercept_kind()
    loss = {True: "log", False: "poisson" if model.loss == "poisson" else "squared"}
    learned = learn_relations(
        observations.X,
        observations.row,
        observations.task_start,
        _families(observations, classes, weight),
        loss[model._classification],
        kind,
        rank=learning.rank,
        features=learning.feature_covariance,
    )
    total = observations.weight.sum()
    mixing, kappa, strength = learned.mixing, learned.kappa, model.alpha * total
    if learning.scale == "evidence":
        if not model.alpha > 0:
            raise ValueError("alpha is 0; scale='evidence' adjusts C to a positive alpha")
        ratio = strength / learned.strength
        mixing, kappa = np.sqrt(ratio) * mixing, ratio * kappa
    matrix = shift = None
    if learning.feature_covariance != "identity":
        d = observations.X.shape[1]
        matrix = np.ascontiguousarray(learned.root[:d, :d])
        shift = learned.root[d, :d].copy() if kind in ("coupled", "free") else np.zeros(d)
    relations = LinearRelations(Factors(mixing, kappa), matrix, shift, learned.log_evidence)
    at = learned.strength if learning.scale == "evidence" or strength == 0 else strength

    def start(state):
        _set_state(state, learned, learned.modes_at(at), kind, np.sqrt(strength / at or 1.0))

    return relations, start


def _families(observations, classes, weight):
    """One target for each class's vectors: the classes of a softmax against the rest."""
    if classes.binary:
        return [(np.asarray(classes.code, dtype=np.float64), weight)]
    code = np.asarray(classes.code, dtype=np.int64)
    families = []
    for k in range(len(classes.classes)):
        position = [np.flatnonzero(own == k) for own in classes.task_classes]
        position = np.array([p[0] if len(p) else -1 for p in position])[observations.task]
        target = np.where(code == position, 1.0, -1.0)
        families.append((target, np.where(position >= 0, weight, 0.0)))
    return families


def _set_state(state, learned, found, kind, scale):
    components, d = learned.components, learned.root.shape[0] - (kind != "none")
    head_task = np.repeat(np.arange(len(learned.kappa)), np.diff(state.head_start))
    for k, (shared, specific, offset) in enumerate(found):
        heads = np.flatnonzero(state.head_class == k)
        own = specific[head_task[heads]]
        if kind == "free":
            state.specific[heads, -1] = learned.root[-1, -1] * (
                learned.mixing[head_task[heads]] @ shared[:, -1] + own[:, -1]
            )
        else:
            state.intercept[k] = offset
        if kind == "coupled":
            state.shared[:, k, -1] = shared[:, -1] / scale
            state.specific[heads, -1] = own[:, -1]
        shared, own = shared[:, :d], own[:, :d]
        if components is not None:
            shared, own = shared @ components.T, own @ components.T
        state.shared[:, k, : shared.shape[1]] = shared / scale
        state.specific[heads, : own.shape[1]] = own
