"""Dual coordinate ascent: the minimum that SAGA finds, by another road."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor

from fastmtl import (
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    TaskCoupling,
    linear_direct,
    linear_newton,
)

EXACT = {"tol": 1e-11, "max_iter": 20_000, "random_state": 0}


def data(n=300, d=6, n_tasks=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.5)
    task = rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    score = np.einsum("ij,ij->i", X, weights[task]) + 0.5 * task
    return X, np.where(score + rng.logistic(size=n) > 0.5, 1, 0), task


def by_epochs_alone(monkeypatch):
    for module in (linear_newton, linear_direct):
        monkeypatch.setattr(module, "price", lambda *_, **__: np.inf)


def parameters(model):
    return np.column_stack([model.coef_, model.intercept_])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("kind", ["coupled", "free", "shared", None])
@pytest.mark.parametrize("coupling", ["mean", "independent", "pooled"])
def test_every_intercept_and_coupling_has_saga_s_minimum(coupling, kind, form):
    X, y, task = data()
    given = {"alpha": 0.02, "coupling": coupling, "fit_intercept": kind is not None, **EXACT}
    given["task_intercept"] = kind or "coupled"
    weight = np.random.default_rng(1).uniform(0.2, 2.0, size=len(y))
    models = [
        MultiTaskSGDClassifier(solver=solver, **given).fit(
            form(X), y, tasks=task, sample_weight=weight
        )
        for solver in ("dual", "saga")
    ]
    np.testing.assert_allclose(*map(parameters, models), atol=2e-6)


def test_two_shared_vectors_and_float32():
    X, y, task = data()
    covariance = np.cov(np.random.default_rng(0).normal(size=(4, 9)))
    coupling = TaskCoupling.from_covariance(covariance)
    given = {"alpha": 0.02, "loss": "huber", "epsilon": 0.4, "coupling": coupling, **EXACT}
    want = MultiTaskSGDRegressor(solver="saga", **given).fit(X, y, tasks=task)
    got = MultiTaskSGDRegressor(solver="dual", **given).fit(X, y, tasks=task)
    single = MultiTaskSGDRegressor(solver="dual", **{**given, "tol": 1e-6})
    single.fit(X.astype(np.float32), y, tasks=task)
    np.testing.assert_allclose(parameters(got), parameters(want), atol=2e-6)
    np.testing.assert_allclose(parameters(single), parameters(want), atol=2e-3)


def test_the_gap_bounds_how_far_the_objective_is_from_the_least():
    X, y, task = data()
    given = {"loss": "hinge", "solver": "dual", "alpha": 0.01, "fit_intercept": False}
    least = MultiTaskSGDClassifier(**given, **EXACT).fit(X, y, tasks=task).history_[-1]["objective"]
    for tol in (1e-2, 1e-4):
        model = MultiTaskSGDClassifier(tol=tol, max_iter=5000, random_state=1, **given)
        model.fit(X, y, tasks=task)
        assert least <= model.history_[-1]["objective"] <= least * (1 + tol)


def test_a_warm_start_goes_on_from_where_the_last_fit_ended():
    X, y, task = data()
    given = {"solver": "dual", "alpha": 0.02, "max_iter": 3000, "random_state": 0}
    model = MultiTaskSGDClassifier(warm_start=True, tol=1e-8, **given).fit(X, y, tasks=task)
    cold, before = model.n_iter_, parameters(model)
    model.fit(X, y, tasks=task)
    assert model.n_iter_ <= 2 < cold
    np.testing.assert_allclose(parameters(model), before, atol=1e-3)
    model.set_params(alpha=0.04).fit(X, y, tasks=task)
    given["alpha"] = 0.04
    anew = MultiTaskSGDClassifier(tol=1e-8, **given).fit(X, y, tasks=task)
    np.testing.assert_allclose(parameters(model), parameters(anew), atol=1e-3)


def test_counts_whose_first_slopes_span_many_powers_of_ten():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(400, 10)), np.arange(400) % 5
    y = rng.poisson(np.exp(0.8 * X[:, 0] + 0.3))
    model = MultiTaskSGDRegressor(
        loss="poisson", solver="dual", coupling="pooled", alpha=0.01, **EXACT
    ).fit(X, y, tasks=task)
    peer = PoissonRegressor(alpha=0.01, tol=1e-10, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(model.coef_[0], peer.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_[0], peer.intercept_, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_objective_that_stays_infinite_is_said():
    given = {"loss": "poisson", "solver": "dual", "alpha": 1e-9, "fit_intercept": False}
    with pytest.raises(FloatingPointError, match="objective is inf"):
        for seed in range(10):  # in half of the orders the row with the large score comes first
            model = MultiTaskSGDRegressor(max_iter=1, random_state=seed, **given)
            model.fit([[1.0], [1000.0]], [900, 0], tasks=[0, 0])


def test_auto_takes_it_where_rows_are_of_unlike_lengths(monkeypatch):
    by_epochs_alone(monkeypatch)
    X, y, task = data()
    X = X * np.exp(2 * np.random.default_rng(0).normal(size=(len(X), 1)))
    given = {"alpha": 0.01, "random_state": 0, "max_iter": 5000}
    auto = MultiTaskSGDClassifier(**given).fit(X, y, tasks=task)
    dual = MultiTaskSGDClassifier(solver="dual", **given).fit(X, y, tasks=task)
    assert auto.history_[-1]["objective"] == dual.history_[-1]["objective"]


@pytest.mark.parametrize("loss", ["log_loss", "squared_hinge", "hinge"])
def test_auto_takes_it_for_classifiers_of_few_samples_a_parameter(loss, monkeypatch):
    by_epochs_alone(monkeypatch)
    X, y, task = data(n=300, d=30)
    given = {"loss": loss, "alpha": 1e-4, "random_state": 0, "max_iter": 20_000}
    auto = MultiTaskSGDClassifier(**given).fit(X, y, tasks=task)
    exact = MultiTaskSGDClassifier(**given, solver="dual").set_params(tol=1e-6)
    least = exact.fit(X, y, tasks=task).history_[-1]["objective"]
    assert least * (1 - 1e-6) <= auto.history_[-1]["objective"] <= least * (1 + 1.1e-4)


@pytest.mark.parametrize("loss", ["squared_error", "huber", "quantile", "epsilon_insensitive"])
def test_auto_takes_it_for_regressions_of_fewer_samples_than_parameters(loss, monkeypatch):
    by_epochs_alone(monkeypatch)
    X, _, task = data(n=150, d=60)
    y = X @ np.random.default_rng(2).normal(size=60)
    given = {"loss": loss, "alpha": 1e-4, "random_state": 0, "max_iter": 20_000}
    auto = MultiTaskSGDRegressor(**given).fit(X, y, tasks=task)
    exact = MultiTaskSGDRegressor(**given, solver="dual").set_params(tol=1e-6)
    least = exact.fit(X, y, tasks=task).history_[-1]["objective"]
    assert least * (1 - 1e-6) <= auto.history_[-1]["objective"] <= least * (1 + 1.1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alpha": 0.0}, "alpha is 0, .* solver='dual' takes a positive alpha"),
        ({"task_penalty": "l1"}, "task_penalty 'l1'; solver='dual' takes"),
    ],
)
def test_what_has_no_such_dual_is_refused(given, said):
    X, y, task = data()
    with pytest.raises(ValueError, match=said):
        MultiTaskSGDClassifier(solver="dual", **given).fit(X, y, tasks=task)


def test_a_softmax_is_refused():
    X, y, task = data()
    with pytest.raises(ValueError, match=r"more than two classes.*solver='dual' takes"):
        MultiTaskSGDClassifier(solver="dual").fit(X, y + (X[:, 0] > 0), tasks=task)


@pytest.mark.parametrize("coupling", ["mean", "independent", "pooled", TaskCoupling.mean(1e-4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_coefficients_side_by_side_have_the_split_of_least_penalty(coupling, dtype):
    """Few tasks on CSR keep all w_t at each column; the same rows as an array keep s and v."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(240, 12)) * (rng.random((240, 12)) < 0.5)
    X[:80, 3] = 0.0  # a column that a task lacks
    task = np.repeat(np.arange(3), 80)
    y = X[:, 0] + X[:, 1] * (task - 1) + rng.normal(size=240) > 0
    given = {"solver": "dual", "alpha": 0.02, "coupling": coupling, "random_state": 0}
    given |= {"tol": 1e-8 if dtype == np.float64 else 1e-5, "max_iter": 3000}
    sparse = MultiTaskSGDClassifier(**given).fit(sp.csr_matrix(X, dtype=dtype), y, tasks=task)
    assert sparse._state.columns is not None
    dense = MultiTaskSGDClassifier(**given).fit(X, y, tasks=task)
    objectives = [model.history_[-1]["objective"] for model in (sparse, dense)]
    np.testing.assert_allclose(*objectives, rtol=1e-7 if dtype == np.float64 else 1e-5)
    atol = 1e-4 if dtype == np.float64 else 1e-2
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=atol)
    np.testing.assert_allclose(sparse.intercept_, dense.intercept_, atol=atol)
    np.testing.assert_allclose(sparse.shared_coef_, dense.shared_coef_, atol=atol)
    np.testing.assert_allclose(sparse.task_coef_.toarray(), dense.task_coef_, atol=atol)


def test_poisson_s_dual_that_lost_its_digits_is_not_taken_for_the_minimum():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(200, 100)), np.repeat([0, 1], 100)
    X = sp.csr_matrix(np.floor(3 * np.abs(X) / rng.uniform(size=X.shape)) * (np.abs(X) > 1.5))
    y = rng.poisson(2.0, size=200)
    given = {"loss": "poisson", "random_state": 0}
    best = MultiTaskSGDRegressor(solver="newton", **given).fit(X, y, tasks=task)
    best = best.history_[-1]["objective"]
    auto = MultiTaskSGDRegressor(**given).fit(X, y, tasks=task)
    assert auto.history_[-1]["objective"] < best + 1e-3 * abs(best)
    dual = MultiTaskSGDRegressor(solver="dual", max_iter=30, **given)
    with pytest.raises((ConvergenceWarning, FloatingPointError)):
        dual.fit(X, y, tasks=task)


def test_counts_whose_intercept_flew_off_are_not_taken_for_the_minimum():
    rng = np.random.default_rng(2)
    chance = 1 / np.arange(1, 41)
    words = np.exp(rng.normal(3.7, 0.6, size=500)).astype(int) + 3
    column = rng.choice(40, size=words.sum(), p=chance / chance.sum())
    X, task = np.zeros((500, 40)), rng.integers(3, size=500)
    np.add.at(X, (np.repeat(np.arange(500), words), column), 1.0)
    weights = rng.normal(size=40) + 0.5 * rng.normal(size=(3, 40))
    score = np.einsum("ij,ij->i", X, weights[task])
    y = rng.poisson(np.exp(np.clip(score / score.std(), -5, 3)))
    dual = MultiTaskSGDRegressor(loss="poisson", alpha=1e-5, solver="dual", random_state=0)
    with pytest.raises((ConvergenceWarning, FloatingPointError)):
        dual.set_params(max_iter=50).fit(X, y, tasks=task)


@pytest.mark.parametrize("loss", ["squared_error", "squared_epsilon_insensitive"])
def test_intercepts_of_many_tasks_that_still_move_are_waited_for(loss):
    rng = np.random.default_rng(1)
    X, task = rng.normal(size=(1000, 50)), rng.integers(200, size=1000)
    y = X @ rng.normal(size=50) + task % 3
    y = y / y.std() + 0.3 * rng.normal(size=1000)
    given = {"loss": loss, "alpha": 0.01, "task_intercept": "free"}
    dual = MultiTaskSGDRegressor(solver="dual", random_state=0, **given).fit(X, y, tasks=task)
    exact = MultiTaskSGDRegressor(solver="newton", tol=1e-8, **given).fit(X, y, tasks=task)
    least = exact.history_[-1]["objective"]
    assert dual.history_[-1]["objective"] == pytest.approx(least, rel=2e-5)
    assert dual.n_iter_ < 60  # 250 if centers went to where the intercepts are, no further
