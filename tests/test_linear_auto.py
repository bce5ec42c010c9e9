"""What solver="auto" does where the solver that it took first does not get there."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling
from fastmtl.reference.linear_sgd import LOSSES

KAPPA = 0.5
GIVEN = {"coupling": TaskCoupling.mean(KAPPA), "task_intercept": "shared", "random_state": 0}
CODES = {function.__name__: function for function in LOSSES}


def unlike_columns(n=120, d=80, n_tasks=6):
    """Sparse rows whose columns differ in scale by seven powers of ten, and copied features."""
    rng = np.random.default_rng(0)
    X = sp.random(n, d, density=0.1, random_state=0, format="csr")
    task = rng.integers(n_tasks, size=n)
    y = X @ rng.normal(size=d)
    y = y / y.std() + 0.3 * rng.normal(size=n)
    X = sp.csr_matrix(X @ sp.diags(10.0 ** rng.uniform(-3, 4, size=d)))
    own = [sp.diags(np.sqrt(KAPPA) * (task == t)) @ X for t in range(n_tasks)]
    return X, y, task, sp.hstack([X, *own]).toarray()


def objective(loss, alpha, target, score, weights):
    values = [CODES[loss](*point, 0.0)[0] for point in zip(target, score)]
    return np.mean(values) + 0.5 * alpha * np.sum(weights**2)


def of_model(model, X, target, task):
    """The objective of the fitted parameters, by the loss's definition."""
    score = X.multiply(model.coef_[task]).sum(axis=1).A1 + model.intercept_[task]
    weights = np.append(model.shared_coef_, model.task_coef_.toarray() / np.sqrt(KAPPA))
    return objective(model.loss, model.alpha, target, score, weights)


def solvers(model):
    return list(dict.fromkeys(entry["solver"] for entry in model.history_))


@pytest.mark.parametrize("alpha", [1e-2, 1e-6])
def test_squared_errors_end_with_the_direct_solution(alpha):
    X, y, task, wide = unlike_columns()
    model = MultiTaskSGDRegressor(alpha=alpha, **GIVEN).fit(X, y, tasks=task)
    assert solvers(model) == ["dual", "cholesky"]
    assert [entry["epoch"] for entry in model.history_] == list(range(1, model.n_iter_ + 1))
    assert np.all(np.diff([entry["seconds"] for entry in model.history_]) > 0)
    # The residuals, which the free intercept lets sum to zero, are the dual's solution.
    n = len(y)
    rows = np.column_stack([wide @ wide.T / (alpha * n) + np.eye(n), np.ones(n)])
    residual = np.linalg.solve(np.vstack([rows, np.append(np.ones(n), 0.0)]), np.append(y, 0.0))[:n]
    least = np.mean(residual * y) / 2
    assert model.history_[-1]["objective"] == pytest.approx(least, rel=1e-7)
    assert of_model(model, X, y, task) == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("alpha", [1e-2, 1e-6])
def test_log_losses_end_by_newton_s_method(alpha):
    X, y, task, wide = unlike_columns()
    y = np.where(y > 0, 1.0, -1.0)
    model = MultiTaskSGDClassifier(alpha=alpha, tol=1e-6, **GIVEN).fit(X, y, tasks=task)
    assert solvers(model) == ["dual", "newton"]
    peer = LogisticRegression(
        C=1 / (alpha * len(y)), tol=1e-10, solver="newton-cholesky", max_iter=1000
    )
    rotated = np.linalg.qr(wide.T)[1].T  # as many columns as rows
    peer.fit(rotated, y)
    least = objective("log_loss", alpha, y, peer.decision_function(rotated), peer.coef_)
    assert least * (1 - 1e-6) < of_model(model, X, y, task) < least * (1 + 1e-6)


@pytest.mark.parametrize(
    "loss", ["huber", "quantile", "epsilon_insensitive", "squared_hinge", "hinge"]
)
def test_others_end_where_newton_s_method_does(loss):
    X, y, task, _ = unlike_columns()
    kind = MultiTaskSGDRegressor
    if "hinge" in loss:
        kind, y = MultiTaskSGDClassifier, y > 0
    given = {"loss": loss, "alpha": 1e-2, **GIVEN}
    auto = kind(**given).fit(X, y, tasks=task)
    assert solvers(auto) == ["dual", "newton"]
    least = kind(solver="newton", tol=1e-9, **given).fit(X, y, tasks=task).history_[-1]["objective"]
    assert least * (1 - 1e-8) < auto.history_[-1]["objective"] < least * (1 + 2e-6)


@pytest.mark.parametrize("settings", [{"task_penalty": "l1"}, {"loss": "hinge"}, {}])
def test_threads_do_not_change_what_is_solved(settings):
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(150, 60)), np.repeat(np.arange(50), 3)
    y = X[:, 0] + rng.normal(size=150) > 0
    one, two = (
        MultiTaskSGDClassifier(alpha=0.01, n_threads=k, random_state=0, **settings) for k in (1, 2)
    )
    coef = one.fit(X, y, tasks=task).coef_
    np.testing.assert_array_equal(two.fit(X, y, tasks=task).coef_, coef)
    assert solvers(one) == solvers(two) == (["saga"] if "task_penalty" in settings else ["dual"])


def test_what_converges_in_time_is_left_as_it_was_and_few_epochs_are_still_said():
    X, y, task, _ = unlike_columns()
    X.data = np.random.default_rng(1).normal(size=X.nnz)
    auto = MultiTaskSGDClassifier(alpha=1e-2, **GIVEN).fit(X, y > 0, tasks=task)
    dual = MultiTaskSGDClassifier(alpha=1e-2, solver="dual", **GIVEN).fit(X, y > 0, tasks=task)
    assert solvers(auto) == ["dual"]
    np.testing.assert_array_equal(auto.coef_, dual.coef_)
    with pytest.warns(ConvergenceWarning, match="within max_iter=2 epochs; .* solver='newton'"):
        auto.set_params(max_iter=2).fit(X, y > 0, tasks=task)
