"""The interior point method: losses with kinks at their exact minimum."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import QuantileRegressor
from sklearn.svm import SVC, SVR

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling
from fastmtl.linear_newton import pays

ALPHA, KAPPA = 0.003, 0.4
KINKED = ["hinge", "quantile", "epsilon_insensitive"]


def problem(loss, n=240, d=4, n_tasks=4, seed=0):
    rng = np.random.default_rng(seed)
    X, task = rng.normal(size=(n, d)), rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    score = np.einsum("ij,ij->i", X, weights[task]) + 0.5 * task + rng.standard_t(3, size=n)
    return X, np.where(score > 0, 1.0, -1.0) if loss == "hinge" else score, task


def estimator(loss, **settings):
    kind = MultiTaskSGDClassifier if loss == "hinge" else MultiTaskSGDRegressor
    if loss == "quantile":
        settings = {"quantile": 0.7, **settings}
    given = {"alpha": ALPHA, "coupling": TaskCoupling.mean(KAPPA), "random_state": 0}
    return kind(loss=loss, **{**given, **settings})


def objective(model):
    return model.history_[-1]["objective"]


def copied(X, task):
    own = [np.where(task[:, None] == t, np.sqrt(KAPPA) * X, 0.0) for t in range(task.max() + 1)]
    return np.hstack([X, *own])


@pytest.mark.parametrize("loss", ["hinge", "epsilon_insensitive"])
def test_it_is_scikit_learn_s_machine_on_copied_features(loss):
    X, y, task = problem(loss)
    weight = np.random.default_rng(1).integers(0, 3, size=len(y)).astype(float)
    model = estimator(loss, solver="newton", tol=1e-9, task_intercept="shared")
    model.fit(X, y, tasks=task, sample_weight=weight)
    settings = {"kernel": "linear", "C": 1 / (ALPHA * weight.sum()), "tol": 1e-9}
    machine = SVC(**settings) if loss == "hinge" else SVR(epsilon=0.1, **settings)
    wide = copied(X, task)
    machine.fit(wide, y, sample_weight=weight)
    if loss == "hinge":
        want, got = machine.decision_function(wide), model.decision_function(X, tasks=task)
    else:
        want, got = machine.predict(wide), model.predict(X, tasks=task)
    # An objective within 1e-8 leaves scores about the root of that.
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_without_much_penalty_it_is_quantile_regression():
    X, y, _ = problem("quantile")
    model = estimator("quantile", alpha=1e-9, coupling="pooled").fit(X, y)
    peer = QuantileRegressor(quantile=0.7, alpha=0.0).fit(X, y)
    np.testing.assert_allclose(model.coef_[0], peer.coef_, atol=1e-4)
    np.testing.assert_allclose(model.intercept_, peer.intercept_, atol=1e-4)


@pytest.mark.parametrize("task_intercept", ["coupled", "free", "shared"])
@pytest.mark.parametrize("loss", KINKED)
def test_the_dual_has_the_same_minimum(loss, task_intercept):
    X, y, task = problem(loss, n=120)
    weight = np.random.default_rng(1).uniform(0.2, 2.0, len(y))
    settings = {"alpha": 0.1, "task_intercept": task_intercept}
    newton = estimator(loss, solver="newton", tol=1e-8, **settings)
    dual = estimator(loss, solver="dual", tol=1e-7, max_iter=3000, **settings)
    for model in newton, dual:
        model.fit(X, y, tasks=task, sample_weight=weight)
    np.testing.assert_allclose(objective(newton), objective(dual), rtol=1e-6)


@pytest.mark.parametrize("loss", KINKED)
def test_it_is_what_auto_takes_and_it_is_there(loss):
    """Where neither steps of SGD nor of the dual get to the minimum in a thousand epochs."""
    X, y, task = problem(loss, n=600, d=10)
    X = X * np.logspace(-1, 1, 10)
    auto = estimator(loss, alpha=1e-5).fit(X, y, tasks=task)
    assert auto.n_iter_ < 40
    exact = estimator(loss, alpha=1e-5, solver="newton", tol=1e-10).fit(X, y, tasks=task)
    assert objective(auto) <= objective(exact) * (1 + 1e-5)
    for solver in ("sgd", "dual"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer = estimator(loss, alpha=1e-5, solver=solver).fit(X, y, tasks=task)
        assert objective(auto) < objective(peer)


def test_auto_takes_the_dual_for_more_features_than_samples():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(60, 200)), np.repeat([0, 1, 2], 20)
    y = np.where(X[:, 0] > 0, 1.0, -1.0)
    auto = estimator("hinge").fit(X, y, tasks=task)
    dual = estimator("hinge", solver="dual").fit(X, y, tasks=task)
    np.testing.assert_array_equal(auto.coef_, dual.coef_)
    observations = auto._observe(X, y, task, None, reset=True)
    assert not pays(auto, observations, TaskCoupling.mean().factor(3))


@pytest.mark.parametrize("layout", ["float32", "csr", "threads", "far"])
def test_the_layout_makes_no_difference(layout):
    X, y, task = problem("epsilon_insensitive")
    X = np.where(np.abs(X) > 0.5, X, 0.0).astype(np.float32).astype(np.float64)
    settings = {"solver": "newton", "tol": 1e-8}
    want = estimator("epsilon_insensitive", **settings).fit(X, y, tasks=task)
    want = want.predict(X, tasks=task)
    model, given, shift = estimator("epsilon_insensitive", **settings), X, 0.0
    if layout == "float32":
        given = X.astype(np.float32)
    elif layout == "csr":
        given = sp.csr_matrix(X)
    elif layout == "threads":
        model.set_params(n_threads=2)
    else:
        shift = 1e5
        model.set_params(tol=1e-4)
    got = model.fit(given, y + shift, tasks=task).predict(given, tasks=task) - shift
    np.testing.assert_allclose(got, want, atol=1e-2 if layout == "far" else 1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_the_target_are_no_matter(scale):
    X, y, task = problem("quantile")
    want = estimator("quantile", alpha=1e-6).fit(X, y, tasks=task)
    got = estimator("quantile", alpha=1e-6 / scale).fit(X, y * scale, tasks=task)
    np.testing.assert_allclose(objective(got), objective(want) * scale, rtol=1e-5)


def test_what_rounding_keeps_from_it_is_said_and_is_still_the_best_there_is():
    X, y, task = problem("quantile", d=8)
    X = X * np.logspace(-4, 5, 8)
    with pytest.warns(ConvergenceWarning, match="standardise X"):
        newton = estimator("quantile", alpha=1e-9, solver="newton").fit(X, y, tasks=task)
    assert newton.n_iter_ < 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        sgd = estimator("quantile", alpha=1e-9, solver="sgd").fit(X, y, tasks=task)
    assert objective(newton) < objective(sgd)


def test_a_loss_that_can_vanish_does():
    X, y, task = problem("epsilon_insensitive")
    model = estimator("epsilon_insensitive", epsilon=100.0, solver="newton").fit(X, y, tasks=task)
    assert objective(model) < 1e-9
    assert np.abs(model.coef_).max() < 1e-3
