"""Learned relations in the linear models: what to learn from, and the parameters to start with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from fastmtl._core.linear_sgd import point_losses
from fastmtl.coupling import Factors
from fastmtl.estimators import label_weights
from fastmtl.relations import families, learn_relations


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
        return replace(self, factors=self.factors.extended(n_tasks))


def learn_linear(model, training, learning):
    """Learn relations for a linear model; also return a function that sets a state to the mode."""
    observations, classes = training
    if learning.feature_covariance == "full" and sp.issparse(observations.X):
        raise ValueError(
            "feature_covariance is 'full' and X is sparse; use 'diagonal', which keeps it so"
        )
    weight = label_weights(model, observations, classes)
    kind = model._intercept_kind()
    loss = {True: "log", False: "poisson" if model.loss == "poisson" else "squared"}
    learned = learn_relations(
        observations.X,
        observations.row,
        observations.task_start,
        families(observations, classes, weight),
        loss[model._classification],
        kind,
        rank=learning.rank,
        features=learning.feature_covariance,
    )
    total, d = observations.weight.sum(), observations.X.shape[1]
    mixing, kappa, strength = learned.mixing, learned.kappa, model.alpha * total
    if learning.scale == "evidence":
        if not model.alpha > 0:
            raise ValueError("alpha is 0; scale='evidence' adjusts C to a positive alpha")
        ratio = strength / learned.strength
        mixing, kappa = np.sqrt(ratio) * mixing, ratio * kappa
    matrix = shift = None
    if learning.feature_covariance != "identity":
        matrix = np.ascontiguousarray(learned.root[:d, :d])
        shift = learned.root[d, :d].copy() if kind in ("coupled", "free") else np.zeros(d)
    relations = LinearRelations(Factors(mixing, kappa), matrix, shift, learned.log_evidence)
    at = learned.strength if learning.scale == "evidence" or strength == 0 else strength

    def start(state):
        wide = state.dense(d)
        _set_state(wide, learned, learned.modes_at(at), kind, np.sqrt(strength / at or 1.0))
        state.take(wide)

    return relations, start


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


def adapt_task(model, training, kind):
    """Row of B, κ and parameters of the last task of the data, all else held: (b, κ, v), and n.

    Minimises ``Σ weight loss + n alpha (½ ‖v‖² / κ + ½ σ_s² (b - b̄)·Λ⁻¹ (b - b̄))`` with b̄ and Λ
    the mean and covariance of the rows of B, and σ_s² the variance of the shared vectors'
    entries, in whose units the penalty is: rows that do not vary stay at b̄.
    """
    observations, classes = training
    state, (mixing, kappa) = model._state, model._relations.factors
    X = observations.X[observations.row]
    n, d = X.shape
    with_intercept = kind in ("coupled", "free")
    z = np.asarray(X.toarray() if sp.issparse(X) else X, dtype=np.float64)
    z = np.column_stack([z, np.ones(n)]) if with_intercept else z
    S = state.shared[:, 0, :d].astype(np.float64)
    if with_intercept:
        S = np.column_stack([S, state.shared[:, 0, -1]])
    mean, own_kappa = mixing.mean(axis=0), kappa.mean()
    across = z @ S.T
    base = across @ mean + (state.intercept[0] if kind in ("shared", "coupled") else 0.0)
    # b = b̄ + root β and v = √κ ν: β and ν have plain penalties.
    centred = mixing - mean
    _, sizes, vectors = np.linalg.svd(centred, full_matrices=False)
    varies = sizes > 1e-6 * np.sqrt(np.sum(mixing**2))
    root = (vectors[varies].T * sizes[varies]) / np.sqrt(len(mixing))
    scale = np.full(z.shape[1], np.sqrt(own_kappa))
    weight = label_weights(model, observations, classes)
    total = model._label_weight + observations.weight.sum()
    strength = model.alpha * total
    penalty = np.full(root.shape[1] + z.shape[1], strength)
    penalty[: root.shape[1]] *= np.mean(S**2) if S.size else 0.0
    if kind == "free":
        scale[-1], penalty[-1] = 1.0, 0.0
    design = np.column_stack([across @ root, z * scale])
    target = np.asarray(classes.code, dtype=np.float64)
    code, parameter, _, user = model._loss_setting(classes)
    value, slope = np.empty(n), np.empty(n)

    def objective(theta):
        point_losses(code, parameter, target, base + design @ theta, value, slope, user)
        loss = weight @ value + 0.5 * penalty @ theta**2
        return loss, design.T @ (weight * slope) + penalty * theta

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9 * weight.sum()}
    start = np.zeros(design.shape[1])
    theta = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    cut = root.shape[1]
    return mean + root @ theta[:cut], own_kappa, scale * theta[cut:], total
