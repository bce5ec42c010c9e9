"""Newton's method: smooth losses at their exact minimum."""

import ctypes

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from fastmtl import (
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    TaskCoupling,
    linear_direct,
    linear_newton,
)
from fastmtl.reference.linear_sgd import LOSSES

ALPHA, KAPPA = 0.01, 0.4
REGRESSION = ["squared_error", "huber", "squared_epsilon_insensitive", "poisson"]
CLASSIFICATION = ["squared_hinge", "modified_huber", "log_loss"]
CODES = {function.__name__: function for function in LOSSES}


def problem(loss, n=300, d=5, n_tasks=4, seed=0):
    rng = np.random.default_rng(seed)
    X, task = rng.normal(size=(n, d)), rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    score = np.einsum("ij,ij->i", X, weights[task]) + 0.5 * task
    if loss == "poisson":
        return X, rng.poisson(np.exp(0.4 * score)), task
    if loss in REGRESSION:
        return X, score + rng.standard_t(2, size=n), task
    return X, np.where(score + rng.logistic(size=n) > 0, "yes", "no"), task


def estimator(loss, **settings):
    kind = MultiTaskSGDRegressor if loss in REGRESSION else MultiTaskSGDClassifier
    given = {"solver": "newton", "alpha": ALPHA, "tol": 1e-10, **settings}
    if loss == "huber":
        given["epsilon"] = 0.7
    return kind(loss=loss, coupling=TaskCoupling.mean(KAPPA), **given)


def copied(X, task):
    own = [np.where(task[:, None] == t, np.sqrt(KAPPA) * X, 0.0) for t in range(task.max() + 1)]
    return np.hstack([X, *own])


def steepest(model, X, y, task, weight):
    """The greatest entry of the objective's gradient, by the losses' definitions."""
    if isinstance(model, MultiTaskSGDClassifier):
        score, target = model.decision_function(X, tasks=task), np.where(y == "yes", 1.0, -1.0)
    else:
        score, target = model.predict(X, tasks=task), y
        score = np.log(score) if model.loss == "poisson" else score
    parameter = {"huber": 0.7, "squared_epsilon_insensitive": 0.1, "squared_hinge": 1.0}
    loss, parameter = CODES[model.loss], parameter.get(model.loss, 0.0)
    slope = weight * [loss(*point, parameter)[1] for point in zip(target, score)] / weight.sum()
    own = (task == np.arange(model.n_tasks_)[:, None]) * slope
    gradient = [
        slope @ X + ALPHA * model.shared_coef_[0],
        own @ X + ALPHA / KAPPA * model.task_coef_,
    ]
    if model.task_intercept == "free":
        gradient.append(own.sum(axis=1))
    else:
        gradient.append(slope.sum())
    if model.task_intercept == "coupled":
        # The shared intercept is free, and so bears no more than the tasks' own leave it.
        departures = model.intercept_ - model.intercept_.mean()
        shrunk = ALPHA * np.linalg.solve(np.ones((4, 4)) + KAPPA * np.eye(4), departures)
        gradient.append(own.sum(axis=1) + shrunk - shrunk.mean())
    return max(np.abs(part).max() for part in gradient)


@pytest.mark.parametrize("task_intercept", ["coupled", "free", "shared"])
@pytest.mark.parametrize("loss", [*REGRESSION, *CLASSIFICATION])
def test_no_gradient_is_left(loss, task_intercept):
    X, y, task = problem(loss)
    weight = np.random.default_rng(1).uniform(0.2, 2.0, len(X))
    model = estimator(loss, task_intercept=task_intercept)
    model.fit(X, y, tasks=task, sample_weight=weight)
    assert steepest(model, X, y, task, weight) < 1e-8


def test_it_is_scikit_learn_s_logistic_regression_on_copied_features():
    X, y, task = problem("log_loss")
    model = estimator("log_loss", task_intercept="shared").fit(X, y, tasks=task)
    wide = copied(X, task)
    peer = LogisticRegression(C=1 / (ALPHA * len(y)), tol=1e-12, solver="newton-cg")
    peer.fit(wide, y)
    np.testing.assert_allclose(
        model.predict_proba(X, tasks=task), peer.predict_proba(wide), atol=1e-9
    )


def test_it_is_scikit_learn_s_poisson_regression_on_copied_features():
    X, y, task = problem("poisson")
    model = estimator("poisson", task_intercept="shared").fit(X, y, tasks=task)
    wide = copied(X, task)
    peer = PoissonRegressor(alpha=ALPHA, tol=1e-12, solver="newton-cholesky").fit(wide, y)
    np.testing.assert_allclose(model.predict(X, tasks=task), peer.predict(wide), rtol=1e-7)


@pytest.mark.parametrize("layout", ["float32", "csr", "matrix", "blocks", "threads"])
def test_the_layout_makes_no_difference(layout, monkeypatch):
    X, y, task = problem("log_loss")
    X = X.astype(np.float32).astype(np.float64)
    expected = estimator("log_loss").fit(X, y, tasks=task)
    model, given = estimator("log_loss"), X
    if layout == "float32":
        given = X.astype(np.float32)
    elif layout == "csr":
        given = sp.csr_array(np.where(np.abs(X) > 1, X, 0.0))
        expected.fit(given.toarray(), y, tasks=task)
    elif layout == "threads":
        model.set_params(n_threads=2)
    elif layout == "blocks":  # Gram matrices are summed twice rather than kept
        monkeypatch.setattr(linear_direct, "KEPT_BYTES", 0)
        monkeypatch.setattr(linear_direct, "BLOCK_BYTES", 1)
    if layout == "matrix":
        Y = np.full((len(y), 4), np.nan)
        Y[np.arange(len(y)), task] = y == "yes"
        model.fit(X, Y)
        scores = model.decision_function(X)[np.arange(len(y)), task]
    else:
        model.fit(given, y, tasks=task)
        scores = model.decision_function(given, tasks=task)
    tolerance = 1e-4 if layout == "float32" else 1e-9
    peer = expected.decision_function(given if layout == "csr" else X, tasks=task)
    np.testing.assert_allclose(scores, peer, atol=tolerance)


def test_it_is_taken_where_it_is_cheap():
    X, y, task = problem("log_loss")
    settings = {"alpha": ALPHA, "tol": 1e-10}
    newton = MultiTaskSGDClassifier(**settings, solver="newton").fit(X, y, tasks=task)
    auto = MultiTaskSGDClassifier(**settings).fit(X, y, tasks=task)
    assert auto.n_iter_ < 10
    np.testing.assert_array_equal(auto.coef_, newton.coef_)
    asked = MultiTaskSGDClassifier(**settings, callbacks=lambda epoch: epoch.epoch == 12)
    assert asked.fit(X, y, tasks=task).n_iter_ == 12
    wide = np.random.default_rng(0).normal(size=(len(X), 400))
    strong = MultiTaskSGDClassifier(alpha=1.0)
    problem_of_many = strong._observe(wide, y, task, None, reset=True)
    factors = TaskCoupling.mean().factor(4)
    assert not linear_newton.pays(strong, problem_of_many, factors)


def test_direct_solutions_are_taken_at_more_features_where_a_weak_penalty_wants_many_epochs():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(900, 160)), rng.integers(3, size=900)
    y = X[:, 0] + X[:, 1] * (task == 1) + rng.normal(size=900)
    for kind, solver, target in (
        (MultiTaskSGDRegressor, "cholesky", y),
        (MultiTaskSGDClassifier, "newton", y > 0),
    ):
        for alpha, same in ((1e-6, True), (10.0, False)):
            auto = kind(alpha=alpha, random_state=0).fit(X, target, tasks=task)
            direct = kind(alpha=alpha, solver=solver).fit(X, target, tasks=task)
            assert np.array_equal(auto.coef_, direct.coef_) == same
            assert auto.history_[-1]["objective"] == pytest.approx(
                direct.history_[-1]["objective"], rel=2e-4
            )


def test_it_goes_on_from_an_earlier_fit():
    X, y, task = problem("log_loss")
    model = estimator("log_loss", warm_start=True).fit(X, y, tasks=task)
    first, coef = model.n_iter_, model.coef_
    assert model.fit(X, y, tasks=task).n_iter_ < first
    np.testing.assert_allclose(model.coef_, coef, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_steps_that_go_too_far_are_shortened(scale):
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(400, 3)) * scale, np.arange(400) % 2
    y = rng.poisson(np.exp(np.minimum(3 * X[:, 0] / scale, 12)))
    model = estimator("poisson", alpha=1e-6 * scale**2, tol=0.0).fit(X, y, tasks=task)
    objective = [entry["objective"] for entry in model.history_]
    assert np.all(np.diff(objective) <= 0)
    slope = model.predict(X, tasks=task) - y
    own = np.array([slope[task == t] @ X[task == t] for t in range(2)]) / len(y)
    rounding = 1e-8 * (y @ np.abs(X)).max() / len(y)
    np.testing.assert_allclose(own, -1e-6 * scale**2 / KAPPA * model.task_coef_, atol=rounding)


def test_separable_classes_end_where_the_penalty_holds_them():
    X, task = np.random.default_rng(0).normal(size=(100, 2)), np.arange(100) % 2
    y = np.where(X[:, 0] > 0, "yes", "no")
    model = estimator("log_loss", alpha=1e-9, task_intercept="shared").fit(X, y, tasks=task)
    wide = copied(X, task)
    peer = LogisticRegression(C=1e9 / 100, tol=1e-14, solver="newton-cholesky", max_iter=1000)
    peer.fit(wide, y)
    np.testing.assert_allclose(
        model.decision_function(X, tasks=task), peer.decision_function(wide), rtol=1e-4
    )


def test_one_class_that_weighs_is_certain():
    X, y, task = problem("log_loss")
    weight = np.where(y == "yes", 1.0, 0.0)
    model = estimator("log_loss").fit(X, y, tasks=task, sample_weight=weight)
    assert np.all(model.predict_proba(X, tasks=task)[:, 1] > 1 - 1e-9)
    assert model.n_iter_ < 50


def test_too_few_steps_are_said():
    X, y, task = problem("log_loss")
    with pytest.warns(ConvergenceWarning, match="within max_iter=2 steps of Newton's method"):
        model = estimator("log_loss", max_iter=2).fit(X, y, tasks=task)
    assert model.n_iter_ == len(model.history_) == 2


def test_an_interrupted_fit_keeps_what_it_has(monkeypatch):
    X, y, task = problem("log_loss")
    aim, calls = linear_newton.Newton.aim, []

    def interrupted(self, point):
        calls.append(point)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return aim(self, point)

    monkeypatch.setattr(linear_newton.Newton, "aim", interrupted)
    with pytest.warns(ConvergenceWarning, match="kept are the parameters of epoch 2"):
        model = estimator("log_loss").fit(X, y, tasks=task)
    monkeypatch.undo()
    with pytest.warns(ConvergenceWarning):
        two = estimator("log_loss", max_iter=2).fit(X, y, tasks=task)
    np.testing.assert_array_equal(model.coef_, two.coef_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, "alpha is 0; solver='newton' needs a positive alpha"),
        ({"task_penalty": "l1"}, "task_penalty is 'l1'; solver='newton' takes 'l2'"),
        ({"early_stopping": True}, "early_stopping is True; solver='newton' takes False"),
    ],
)
def test_what_it_does_not_take_is_refused(settings, message):
    X, y, task = problem("log_loss")
    with pytest.raises(ValueError, match=message):
        MultiTaskSGDClassifier(solver="newton", **settings).fit(X, y, tasks=task)


def test_a_loss_of_ones_own_is_refused():
    X, y, task = problem("squared_error")

    @ctypes.CFUNCTYPE(
        ctypes.c_double, ctypes.c_double, ctypes.c_double, ctypes.POINTER(ctypes.c_double)
    )
    def loss(y, p, slope):
        slope[0] = p - y
        return (p - y) ** 2 / 2

    with pytest.raises(ValueError, match=r"solver='newton' takes 'squared_error', 'huber'"):
        MultiTaskSGDRegressor(loss=loss, solver="newton").fit(X, y, tasks=task)


def test_several_classes_are_refused():
    X, _, task = problem("log_loss")
    with pytest.raises(
        ValueError, match="more than two classes, which make a softmax; solver='newton'"
    ):
        MultiTaskSGDClassifier(solver="newton").fit(X, np.arange(len(X)) % 3, tasks=task)


def test_features_too_many_for_the_machine_are_refused(monkeypatch):
    monkeypatch.setattr(linear_direct, "machine_memory", lambda: 1e4)
    X, y, task = problem("log_loss")
    with pytest.raises(MemoryError, match=r"solver='newton' needs .* use solver='saga'"):
        estimator("log_loss").fit(X, y, tasks=task)
