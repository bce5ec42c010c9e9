"""Every loss against an independent solver of the same problem, on EasyAdapt features."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import (
    HuberRegressor,
    LogisticRegression,
    PoissonRegressor,
    QuantileRegressor,
)
from sklearn.svm import LinearSVC

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling
from fastmtl.linear_problem import LOSSES
from fastmtl.reference.linear_sgd import point_losses

EXACT = {"tol": 1e-12, "max_iter": 50_000, "random_state": 0}
PATIENT = {
    "learning_rate": "adaptive",
    "n_iter_no_change": 60,
    "max_iter": 20_000,
    "tol": 1e-12,
    "random_state": 0,
}
KAPPA = 0.3


def data(seed=0, n=200, d=4):
    rng = np.random.default_rng(seed)
    task = rng.integers(3, size=n)
    X = rng.normal(size=(n, d))
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(3, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + rng.standard_t(3, size=n)
    return X, y, task


def easy_adapt(X, task):
    """Features once for all and once per task (Daumé, 2007), scaled by the coupling."""
    return np.hstack(
        [X, *(np.where((task == t)[:, None], np.sqrt(KAPPA) * X, 0.0) for t in range(3))]
    )


def value(loss, parameter, y, scores):
    losses, gradient = np.empty(len(y)), np.empty(len(y))
    point_losses(LOSSES[loss][0], parameter, np.asarray(y, dtype=float), scores, losses, gradient)
    return losses, gradient


def settings(alpha, **more):
    return {"alpha": alpha, "coupling": TaskCoupling.mean(KAPPA), "fit_intercept": False, **more}


def scores(model, X, task):
    return np.einsum("ij,ij->i", X, model.coef_[task]) + model.intercept_[task]


def test_huber_is_huber_regressor_with_its_scale_fixed():
    X, y, task = data()
    features = easy_adapt(X, task)
    peer = HuberRegressor(epsilon=1.5, alpha=0.7, fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(features, y)
    # Its objective is Σ σ H_ε(r/σ) + α‖w‖², and σ H_ε(r/σ) = (2/σ) times our loss at δ = εσ.
    delta, alpha = 1.5 * peer.scale_, 0.7 * peer.scale_ / len(y)
    model = MultiTaskSGDRegressor(loss="huber", epsilon=delta, **settings(alpha), **EXACT)
    got = scores(model.fit(X, y, tasks=task), X, task)
    assert 0.02 < np.mean(np.abs(y - got) > delta) < 0.5
    # Its L-BFGS stops at about 1e-4; started there with σ fixed, BFGS goes on to 1e-6.
    np.testing.assert_allclose(got, peer.predict(features), atol=2e-4)
    found = _quasi_newton("huber", delta, y, features, alpha, peer.coef_)
    np.testing.assert_allclose(got, features @ found, atol=1e-6)


def _quasi_newton(loss, parameter, y, features, alpha, start):
    def objective(w):
        losses, gradient = value(loss, parameter, y, features @ w)
        slope = features.T @ gradient / len(y) + alpha * w
        return losses.mean() + 0.5 * alpha * w @ w, slope

    return minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x


@pytest.mark.parametrize("solver", ["dual", "saga"])
def test_log_loss_with_a_shared_intercept_is_logistic_regression(solver):
    X, y, task = data()
    y, alpha = y > 0.5, 0.02
    model = MultiTaskSGDClassifier(
        alpha=alpha,
        solver=solver,
        coupling=TaskCoupling.mean(KAPPA),
        task_intercept="shared",
        **EXACT,
    ).fit(X, y, tasks=task)
    peer = LogisticRegression(C=1 / (alpha * len(y)), solver="newton-cholesky", tol=1e-12)
    peer.fit(easy_adapt(X, task), y)
    want = peer.decision_function(easy_adapt(X, task))
    np.testing.assert_allclose(scores(model, X, task), want, atol=1e-6)


@pytest.mark.parametrize("solver", ["dual", "saga"])
def test_squared_hinge_is_linear_svc(solver):
    X, y, task = data()
    y, alpha = y > 0, 0.02
    model = MultiTaskSGDClassifier(loss="squared_hinge", solver=solver, **settings(alpha), **EXACT)
    model.fit(X, y, tasks=task)
    peer = LinearSVC(C=1 / (alpha * len(y)), fit_intercept=False, tol=1e-12, max_iter=100_000)
    peer.fit(easy_adapt(X, task), y)
    want = peer.decision_function(easy_adapt(X, task))
    np.testing.assert_allclose(scores(model, X, task), want, atol=1e-6)


@pytest.mark.parametrize("solver", ["dual", "saga"])
@pytest.mark.parametrize(
    ("loss", "target"), [("squared_epsilon_insensitive", "real"), ("modified_huber", "sign")]
)
def test_the_other_smooth_losses_are_at_the_minimum_that_a_quasi_newton_method_finds(
    loss, target, solver
):
    X, y, task = data()
    features, alpha, parameter = easy_adapt(X, task), 0.02, 0.3
    code = np.where(y > 0, 1.0, -1.0) if target == "sign" else y
    start = np.zeros(features.shape[1])
    found = _quasi_newton(loss, parameter, code, features, alpha, start)
    if target == "sign":
        model = MultiTaskSGDClassifier(loss=loss, solver=solver, **settings(alpha), **EXACT)
    else:
        more = {"epsilon": 0.3, **settings(alpha), **EXACT}
        model = MultiTaskSGDRegressor(loss=loss, solver=solver, **more)
    model.fit(X, code, tasks=task)
    np.testing.assert_allclose(scores(model, X, task), features @ found, atol=1e-6)


def test_poisson_is_poisson_regressor():
    X, y, task = data()
    y = np.random.default_rng(1).poisson(np.exp(0.3 * X[:, 0] - 0.2 * X[:, 1] + 0.1 * task))
    features, alpha = easy_adapt(X, task), 0.1
    peer = PoissonRegressor(alpha=alpha, solver="newton-cholesky", fit_intercept=False, tol=1e-12)
    peer.fit(features, y)
    model = MultiTaskSGDRegressor(loss="poisson", **PATIENT, **settings(alpha))
    model.fit(X, y, tasks=task)
    best = value("poisson", 0.0, y, features @ peer.coef_)[0].mean()
    best += 0.5 * alpha * peer.coef_ @ peer.coef_
    # Nothing bounds the loss's curvature; the last digits of SGD are slow to come.
    assert best - 1e-9 <= model.history_[-1]["objective"] <= best + 1e-6
    np.testing.assert_allclose(scores(model, X, task), features @ peer.coef_, atol=1e-3)
    model.set_params(solver="dual", **EXACT).fit(X, y, tasks=task)
    np.testing.assert_allclose(scores(model, X, task), features @ peer.coef_, atol=1e-6)


@pytest.mark.parametrize("loss", ["quantile", "epsilon_insensitive", "hinge"])
def test_losses_with_kinks_come_to_the_objective_of_an_exact_solver(loss):
    # SGD cannot rest on a kink: its last digits are those of its last rate, so values are compared,
    # and scores with those of the dual, which can.
    X, y, task = data()
    features, alpha = easy_adapt(X, task), 0.05
    if loss == "quantile":
        parameter, code = 0.3, y
        found = _exact(loss, parameter, code, features, alpha)
        model = MultiTaskSGDRegressor(loss=loss, quantile=0.3, **settings(alpha))
    elif loss == "hinge":
        parameter, code = 1.0, np.where(y > 0, 1.0, -1.0)
        found = LinearSVC(
            loss="hinge", C=1 / (alpha * len(y)), fit_intercept=False, tol=1e-8, max_iter=10**6
        )
        found = found.fit(features, code).coef_[0]
        model = MultiTaskSGDClassifier(loss=loss, **settings(alpha))
    else:
        parameter, code = 0.1, y
        found = _exact(loss, parameter, code, features, alpha)
        model = MultiTaskSGDRegressor(loss=loss, epsilon=0.1, **settings(alpha))
    best = value(loss, parameter, code, features @ found)[0].mean() + 0.5 * alpha * found @ found
    model.set_params(**PATIENT)
    model.fit(X, code, tasks=task)
    got = model.history_[-1]["objective"]
    assert best * (1 - 1e-7) <= got <= best * (1 + 1e-5)
    model.set_params(solver="dual", **EXACT).fit(X, code, tasks=task)
    np.testing.assert_allclose(model.history_[-1]["objective"], best, rtol=1e-9)
    np.testing.assert_allclose(scores(model, X, task), features @ found, atol=1e-4)


def _exact(loss, parameter, y, features, alpha):
    """The minimum of a piecewise linear loss plus ½ alpha ‖w‖², by its dual.

    The dual of Σ f_i(w·x_i) / n + ½ alpha ‖w‖² has w = −Xᵀa / alpha with each a_i in the range of
    the loss's slopes, over n; L-BFGS-B solves the box constraints.
    """
    n = len(y)
    gram = features @ features.T / alpha
    if loss == "quantile":
        low, high, insensitive = -parameter / n, (1 - parameter) / n, 0.0
    else:
        low, high, insensitive = -1 / n, 1 / n, parameter

    # a = up − down splits |a|, the cost of the insensitive zone.
    def dual(z):
        a = z[:n] - z[n:]
        slope = gram @ a + y
        gain = np.concatenate([slope, -slope]) + insensitive
        return 0.5 * a @ gram @ a + a @ y + insensitive * z.sum(), gain

    bounds = [(0, high)] * n + [(0, -low)] * n
    options = {"maxiter": 200_000, "maxfun": 400_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 50}
    found = minimize(dual, np.zeros(2 * n), jac=True, bounds=bounds, options=options)
    return -features.T @ (found.x[:n] - found.x[n:]) / alpha


def test_the_median_with_an_l1_penalty_comes_to_quantile_regressor_s_objective():
    X, y, task = data()
    features, alpha = easy_adapt(X, task), 0.05
    peer = QuantileRegressor(quantile=0.5, alpha=alpha, fit_intercept=False, solver="highs")
    coef = peer.fit(features, y).coef_
    best = value("quantile", 0.5, y, features @ coef)[0].mean() + alpha * np.abs(coef).sum()
    model = MultiTaskSGDRegressor(
        loss="quantile",
        shared_penalty="l1",
        task_penalty="l1",
        **PATIENT,
        **settings(alpha),
    ).fit(X, y, tasks=task)
    got = model.history_[-1]["objective"]
    assert best * (1 - 1e-7) <= got <= best * (1 + 1e-5)
