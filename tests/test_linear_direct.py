"""The direct solver of squared loss: the exact minimum, whatever the shape of the problem."""

import numpy as np
import pytest
import scipy.sparse as sp
from closed_form import coupled_ridge
from sklearn.linear_model import Ridge

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling, linear_direct
from fastmtl.observations import distinct, observe


def problem(n=200, d=5, n_tasks=4, seed=0):
    rng = np.random.default_rng(seed)
    X, task = rng.normal(size=(n, d)) + 0.3, rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + task + rng.normal(size=n) + 20.0
    return X, y, task


def direct(**settings):
    return MultiTaskSGDRegressor(**{"solver": "cholesky", "alpha": 0.03, **settings})


def easy_adapt(X, task, kappa):
    own = np.concatenate([np.where(task[:, None] == t, X, 0) for t in range(task.max() + 1)], 1)
    return np.column_stack([X, np.sqrt(kappa) * own])


def test_it_is_scikit_learn_s_ridge_on_copied_features():
    X, y, task = problem()
    weight = np.random.default_rng(1).uniform(0.2, 3.0, len(y))
    coupling = TaskCoupling.mean(0.3)
    model = direct(coupling=coupling, task_intercept="shared")
    model.fit(X, y, tasks=task, sample_weight=weight)
    wide = easy_adapt(X, task, 0.3)
    peer = Ridge(alpha=0.03 * weight.sum(), tol=1e-12).fit(wide, y, sample_weight=weight)
    np.testing.assert_allclose(model.predict(X, tasks=task), peer.predict(wide), rtol=1e-11)
    np.testing.assert_allclose(model.shared_coef_[0], peer.coef_[:5], rtol=1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        {"d": 1},
        {"n_tasks": 1},
        {"n": 60, "d": 40, "n_tasks": 12},  # fewer rows than features in each task
        {"n": 400, "d": 70, "n_tasks": 3},
        {"n": 9, "d": 3, "n_tasks": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("task_intercept", ["coupled", "free", "shared", None])
def test_every_shape_is_the_closed_form(shape, task_intercept):
    X, y, task = problem(**shape)
    task = np.unique(task, return_inverse=True)[1]
    rng = np.random.default_rng(2)
    n_tasks = task.max() + 1
    factors = rng.normal(size=(n_tasks, 2)), np.append(0.0, rng.uniform(0.1, 2.0, n_tasks - 1))
    model = direct(
        coupling=TaskCoupling.from_factors(*factors),
        fit_intercept=task_intercept is not None,
        task_intercept=task_intercept or "shared",
    )
    coef, intercept = coupled_ridge(X, y, task, *factors, 0.03, task_intercept or "none")
    size = np.abs(coef).max()
    for data, atol in ((X, 1e-9), (sp.csr_matrix(X), 1e-9), (X.astype(np.float32), 1e-5)):
        model.fit(data, y, tasks=task)
        np.testing.assert_allclose(model.coef_, coef, rtol=0, atol=atol * size)
        np.testing.assert_allclose(model.intercept_, intercept, rtol=0, atol=20 * atol * size)
        assert model.coef_.dtype == data.dtype


@pytest.mark.parametrize("coupling", ["mean", "pooled", TaskCoupling.low_rank(2)], ids=str)
def test_saga_ends_there_too_and_reports_the_same_objective(coupling):
    X, y, task = problem()
    settings = {"coupling": coupling, "task_weight": "balanced", "random_state": 0}
    model = direct(**settings).fit(X, y, tasks=task)
    saga = direct(**settings, tol=1e-10, max_iter=20_000).set_params(solver="saga")
    saga.fit(X, y, tasks=task)
    np.testing.assert_allclose(model.coef_, saga.coef_, atol=1e-8)
    np.testing.assert_allclose(model.intercept_, saga.intercept_, atol=1e-7)
    objective = model.history_[0]["objective"]
    assert objective == pytest.approx(saga.history_[-1]["objective"], rel=1e-9)
    assert model.n_iter_ == model.best_iter_ == len(model.history_) == 1


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6])
def test_saga_goes_on_until_the_least_is_near_under_a_weak_penalty_too(alpha):
    X, y, task = problem(n=300, d=40, n_tasks=4)
    least = direct(alpha=alpha).fit(X, y, tasks=task).history_[0]["objective"]
    saga = direct(alpha=alpha, random_state=0, max_iter=20_000).set_params(solver="saga")
    objective = saga.fit(X, y, tasks=task).history_[-1]["objective"]
    assert least * (1 - 1e-9) <= objective <= least * (1 + 2 * saga.tol)


def test_a_sparse_x_without_entries_leaves_each_task_its_mean():
    y, task = np.arange(500.0), np.arange(500) % 5
    model = MultiTaskSGDRegressor(coupling="independent")
    model.fit(sp.csr_matrix((500, 50)), y, tasks=task)
    np.testing.assert_allclose(model.intercept_, 247.5 + np.arange(5), rtol=1e-6)


def test_a_loss_that_can_be_zero_ends_saga():
    X = np.random.default_rng(0).normal(size=(20, 60))
    y = X[:, 0] + 2.0
    saga = MultiTaskSGDRegressor(solver="saga", alpha=0.0, max_iter=20_000, random_state=0)
    history = saga.fit(X, y, tasks=np.arange(20) % 2).history_
    assert len(history) < 20_000
    assert history[-1]["objective"] < 1e-6 * y.var()


def test_a_task_with_most_of_the_rows_and_one_with_none():
    X, y, task = problem(n=700, n_tasks=5)
    task[100:] = 2
    weight = np.where(task == 4, 0.0, 1.0)
    model = direct().fit(X, y, tasks=task, sample_weight=weight)
    left = direct().fit(X[task < 4], y[task < 4], tasks=task[task < 4])
    np.testing.assert_allclose(model.coef_[:4], left.coef_, rtol=1e-10)
    np.testing.assert_allclose(model.coef_[4], left.shared_coef_[0], rtol=1e-10)
    for n_threads in (2, 3):
        split = direct(n_threads=n_threads).fit(X, y, tasks=task, sample_weight=weight)
        np.testing.assert_allclose(split.coef_, model.coef_, rtol=1e-11)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("task_intercept", ["coupled", "free"])
def test_gram_matrices_by_the_block_give_the_same_fit(monkeypatch, task_intercept, sparse):
    X, y, task = problem(n_tasks=11)
    X = sp.csr_matrix(np.where(X > 0.5, X, 0.0)) if sparse else X
    whole = direct(task_intercept=task_intercept).fit(X, y, tasks=task)
    monkeypatch.setattr(linear_direct, "KEPT_BYTES", 0)
    monkeypatch.setattr(linear_direct, "BLOCK_BYTES", 4 * 8 * 8**2)
    parts = direct(task_intercept=task_intercept).fit(X, y, tasks=task)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-12)
    np.testing.assert_allclose(parts.intercept_, whole.intercept_, rtol=1e-12)


def test_features_that_repeat_or_never_vary():
    X, y, task = problem()
    X = np.column_stack([X, X[:, 0], np.full(len(X), 1e5), np.zeros(len(X))])
    for alpha, rtol in ((0.03, 1e-9), (1e-18, 0.02)):  # rounding divides what repeats
        model = direct(alpha=alpha, coupling="independent").fit(X, y, tasks=task)
        assert np.abs(model.coef_[:, -1]).max() == 0
        np.testing.assert_allclose(model.coef_[:, 0], model.coef_[:, 5], rtol=rtol)
        for t in range(4):
            own = task == t
            peer = Ridge(alpha=max(alpha, 1e-9) * len(y), solver="svd").fit(X[own], y[own])
            predicted = model.predict(X[own], tasks=task[own])
            np.testing.assert_allclose(predicted, peer.predict(X[own]), rtol=1e-6)


def test_auto_solves_directly_unless_something_asks_for_epochs():
    X, y, task = problem()
    assert MultiTaskSGDRegressor().fit(X, y, tasks=task).n_iter_ == 1
    assert MultiTaskSGDRegressor(n_threads=2).fit(X, y, tasks=task).n_iter_ == 1
    for settings in (
        {"callbacks": lambda epoch: False},
        {"early_stopping": True},
        {"loss": "huber"},
        {"task_penalty": "l1", "alpha": 0.01},
        {"learning_rate": "adagrad", "eta0": 0.5},
        {"sampling": "block"},
        {"alpha": 0.0},
    ):
        model = MultiTaskSGDRegressor(**settings, random_state=0).fit(X, y, tasks=task)
        assert model.n_iter_ > 1, settings


def test_auto_runs_epochs_where_they_cost_less():
    rng = np.random.default_rng(0)
    X = sp.random(300, 3000, 0.002, "csr", random_state=rng)
    y, task = rng.normal(size=300), rng.integers(10, size=300)
    model = MultiTaskSGDRegressor(alpha=0.01, random_state=0).fit(X, y, tasks=task)
    assert model.n_iter_ > 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.0}, "alpha is 0; solver='cholesky' needs a positive alpha"),
        ({"loss": "huber"}, "loss is 'huber'; solver='cholesky' takes 'squared_error'"),
        ({"shared_penalty": "l1"}, "shared_penalty is 'l1'; solver='cholesky' takes 'l2'"),
        ({"task_penalty": None}, "task_penalty is None; solver='cholesky' takes 'l2'"),
        ({"early_stopping": True}, "early_stopping is True; solver='cholesky' takes False"),
        ({"callbacks": print}, "callbacks is .*; solver='cholesky' takes None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_it_cannot_solve_is_refused(settings, words):
    X, y, task = problem()
    with pytest.raises(ValueError, match=words):
        direct(**settings).fit(X, y, tasks=task)


def test_a_classifier_and_too_many_features_are_refused(monkeypatch):
    X, y, task = problem()
    with pytest.raises(ValueError, match="loss is 'log_loss'; solver='cholesky' takes"):
        MultiTaskSGDClassifier(solver="cholesky").fit(X, y > 20, tasks=task)
    monkeypatch.setattr(linear_direct, "machine_memory", lambda: 1e4)
    with pytest.raises(MemoryError, match=r"X has 5 features and B 1 columns; .*'saga'"):
        direct().fit(X, y, tasks=task)


def test_partial_fit_goes_on_from_the_minimum():
    X, y, task = problem(n=2000)
    model = direct(alpha=1e-3).fit(X, y, tasks=task)
    before, score = model.coef_.copy(), model.score(X, y, tasks=task)
    model.partial_fit(X, y, tasks=task)
    assert not np.array_equal(model.coef_, before)
    assert model.score(X, y, tasks=task) > score - 0.01


@pytest.mark.parametrize("kind", ["i1", "u1", "i8", "u8"])
def test_labels_are_numbered_and_ordered_as_by_a_sort(kind):
    rng = np.random.default_rng(0)
    low, high = (-100, 100) if kind[0] == "i" else (30, 250)
    for values in (rng.integers(low, high, 300), np.arange(70_000) % 69_000 % high):
        values = values.astype(kind)
        labels, code = distinct(values)
        want = np.unique(values, return_inverse=True)
        assert np.array_equal(labels, want[0]) and labels.dtype == want[0].dtype
        assert np.array_equal(code, want[1])
    X, task = rng.normal(size=(70_000, 1)), np.arange(70_000) % 69_000  # beyond 16 bits
    order = observe(MultiTaskSGDRegressor(), X, X[:, 0], tasks=task).row
    assert np.array_equal(order, np.argsort(task, kind="stable"))


@pytest.mark.parametrize("solver", ["cholesky", "newton"])
def test_squares_that_overflow_are_named(solver):
    X, y, task = problem()
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="standardise them"):
        MultiTaskSGDRegressor(solver=solver).fit(X * 1e200, y, tasks=task)
