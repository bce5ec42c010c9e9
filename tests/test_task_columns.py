import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling
from fastmtl.task_columns import find_columns

TOLERANCE = {np.float64: 1e-9, np.float32: 1e-3}


def few_columns(n=300, d=40, n_tasks=6, seed=0, dtype=np.float64):
    """Rows of a task have entries in a third of the columns, and some of the task's own."""
    rng = np.random.default_rng(seed)
    task = rng.integers(n_tasks, size=n)
    allowed = rng.random((n_tasks, d)) < 0.3
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.4) * allowed[task]
    weights = rng.normal(size=d) + rng.normal(size=(n_tasks, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + 0.3 * rng.normal(size=n)
    return sp.csr_matrix(X.astype(dtype)), y, task


@pytest.fixture
def in_full(monkeypatch):
    """Makes a fit keep all columns of all tasks; threads merge them as often as fewer."""
    monkeypatch.setattr("fastmtl.linear_training.WORTH_MERGING", 0)

    def fit(model, *arguments, method="fit", **named):
        with monkeypatch.context() as patch:
            patch.setattr("fastmtl.linear.columns_worth_keeping", lambda *_: False)
            return getattr(model, method)(*arguments, **named)

    return fit


SETTINGS = {
    "saga": {"solver": "saga", "tol": 1e-3},
    "saga free": {"solver": "saga", "task_intercept": "free"},
    "saga l1": {"solver": "saga", "task_penalty": "l1", "alpha": 0.01},
    "sgd": {"solver": "sgd"},
    "sgd free": {"solver": "sgd", "task_intercept": "free"},
    "sgd shared": {"solver": "sgd", "task_intercept": "shared"},
    "two threads": {"solver": "sgd", "n_threads": 2},
    "independent": {"solver": "sgd", "coupling": "independent"},
    "rank 2": {
        "solver": "sgd",
        "coupling": TaskCoupling.from_factors(np.random.default_rng(1).normal(size=(6, 2)), 0.5),
    },
    "adagrad": {"learning_rate": "adagrad", "task_penalty": "elasticnet"},
    "average": {"learning_rate": "constant", "eta0": 0.01, "average": True},
    "early": {"early_stopping": True, "solver": "sgd"},
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_tasks_own_columns_do_as_well_as_all(name, dtype, in_full):
    X, y, task = few_columns(dtype=dtype)
    model = MultiTaskSGDRegressor(max_iter=6, random_state=0, **SETTINGS[name])
    short, full = model.fit(X, y, tasks=task), None
    assert short._state.columns is not None
    kept = short._state.specific.size
    full = in_full(MultiTaskSGDRegressor(**model.get_params()), X, y, tasks=task)
    assert full._state.columns is None and kept < 0.6 * full._state.specific.size
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(short.coef_, full.coef_, **close)
    np.testing.assert_allclose(short.intercept_, full.intercept_, **close)
    difference = short.task_coef_ - full.task_coef_
    np.testing.assert_allclose(difference.toarray(), 0, **close)
    asked = np.where(task == 5, 77, task)  # a task never seen, and columns new to a task
    rows = X[::-1]
    np.testing.assert_allclose(
        short.predict(rows, tasks=asked), full.predict(rows, tasks=asked), **close
    )
    np.testing.assert_allclose(
        short.predict(rows.toarray(), tasks=asked), full.predict(rows, tasks=asked), **close
    )
    for one, other in zip(short.history_, full.history_, strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=TOLERANCE[dtype])


@pytest.mark.parametrize("solver", ["sgd", "saga"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_softmax_and_its_probabilities(solver, in_full):
    X, score, task = few_columns()
    y = np.digitize(score, [-1, 1])
    y[task == 3] = np.where(score > 0, 2, 0)[task == 3]
    model = MultiTaskSGDClassifier(solver=solver, max_iter=5, random_state=0)
    short = model.fit(X, y, tasks=task)
    full = in_full(MultiTaskSGDClassifier(**model.get_params()), X, y, tasks=task)
    assert short._state.columns is not None and full._state.columns is None
    for one, other in zip(short.coef_, full.coef_, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    for one, other in zip(short.task_coef_, full.task_coef_, strict=True):
        assert sp.issparse(one) and one.shape == other.shape
        np.testing.assert_allclose(one.toarray(), other.toarray(), atol=1e-9)
    for one, other in zip(short.intercept_, full.intercept_, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    asked = np.where(task == 5, 77, task)
    np.testing.assert_allclose(
        short.predict_proba(X, tasks=asked), full.predict_proba(X, tasks=asked), atol=1e-9
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_matrix_form_keeps_columns_where_labels_are_few(in_full):
    rng = np.random.default_rng(0)
    X = sp.random(60, 3000, density=0.002, format="csr", random_state=0)
    Y = np.where(rng.random((60, 6)) < 0.3, rng.normal(size=(60, 6)), np.nan)
    Y[:6, :] = np.where(np.eye(6) > 0, 1.0, Y[:6])
    model = MultiTaskSGDRegressor(max_iter=5, random_state=0)
    short = model.fit(X, Y)
    full = in_full(MultiTaskSGDRegressor(**model.get_params()), X, Y)
    assert short._state.columns is not None and full._state.columns is None
    np.testing.assert_allclose(short.coef_, full.coef_, atol=1e-9)
    np.testing.assert_allclose(short.predict(X), full.predict(X), atol=1e-9)
    X = sp.csr_matrix(rng.normal(size=(60, 20)))
    many = MultiTaskSGDRegressor(max_iter=2).fit(X, rng.normal(size=(60, 6)))
    assert many._state.columns is None and sp.issparse(many.task_coef_)


@pytest.mark.parametrize(
    "settings",
    [{}, {"learning_rate": "adagrad"}, {"average": True, "learning_rate": "constant", "eta0": 0.1}],
    ids=["plain", "adagrad", "average"],
)
def test_columns_and_tasks_that_come_with_later_batches(settings, in_full):
    X, y, task = few_columns()
    model = MultiTaskSGDRegressor(random_state=0, **settings)
    full = MultiTaskSGDRegressor(random_state=0, **settings)
    order = np.argsort(task % 4, kind="stable")
    sizes = []
    for rows in np.array_split(order, 5):
        model.partial_fit(X[rows], y[rows], tasks=task[rows])
        sizes.append(model._state.specific.size)
        in_full(full, X[rows], y[rows], tasks=task[rows], method="partial_fit")
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert full._state.columns is None
    np.testing.assert_allclose(model.coef_, full.coef_, atol=1e-9)
    model.partial_fit(X.toarray(), y, tasks=task)  # a dense batch keeps all
    full.partial_fit(X.toarray(), y, tasks=task)
    assert model._state.columns is None and isinstance(model.task_coef_, np.ndarray)
    np.testing.assert_allclose(model.coef_, full.coef_, atol=1e-9)


@pytest.mark.parametrize("kind", ["coupled", "free", "shared"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_warm_start_goes_on_with_other_tasks_and_rows(kind, in_full):
    X, y, task = few_columns()
    settings = {"task_intercept": kind, "warm_start": True, "max_iter": 3, "random_state": 0}
    model, full = MultiTaskSGDRegressor(**settings), MultiTaskSGDRegressor(**settings)
    for rows in (task < 5, task > 1):
        model.fit(X[rows], y[rows], tasks=task[rows])
        in_full(full, X[rows], y[rows], tasks=task[rows])
    assert model._state.columns is not None and full._state.columns is None
    np.testing.assert_allclose(model.coef_, full.coef_, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, full.intercept_, atol=1e-9)


def test_a_task_added_later_keeps_its_own_columns():
    X, y, task = few_columns()
    first = task < 5
    model = MultiTaskSGDRegressor(alpha=0.01, random_state=0).fit(
        X[first], y[first], tasks=task[first]
    )
    dense = MultiTaskSGDRegressor(alpha=0.01, random_state=0).fit(
        X[first].toarray(), y[first], tasks=task[first]
    )
    model.add_task(X[~first], y[~first], 5)
    dense.add_task(X[~first].toarray(), y[~first], 5)
    assert set(model.task_coef_[5].indices) <= set(X[~first].indices)
    np.testing.assert_allclose(model.coef_, dense.coef_, atol=1e-2)
    np.testing.assert_allclose(
        model.predict(X, tasks=task),
        np.einsum("ij,ij->i", X.toarray(), model.coef_[task]) + model.intercept_[task],
        atol=1e-9,
    )


def test_relations_learned_with_sparse_rows_start_where_those_of_dense_rows_do():
    X, y, task = few_columns(d=12)
    settings = {"coupling": "learn", "random_state": 0, "tol": 1e-6}
    sparse = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task)
    dense = MultiTaskSGDRegressor(**settings).fit(X.toarray(), y, tasks=task)
    assert sparse._state.columns is not None
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-3)


def test_memory_follows_the_entries():
    n_tasks, d, per_task, filled = 2000, 1_000_000, 10, 20
    rng = np.random.default_rng(0)
    n = n_tasks * per_task
    X = sp.csr_matrix(
        (rng.normal(size=n * filled), rng.integers(d, size=n * filled), np.arange(n + 1) * filled),
        shape=(n, d),
    )
    X.sum_duplicates()
    task, y = np.repeat(np.arange(n_tasks), per_task), rng.normal(size=n)
    for solver in ("sgd", "saga"):
        model = MultiTaskSGDRegressor(solver=solver, max_iter=2, tol=None)
        tracemalloc.start()
        model.fit(X, y, tasks=task).predict(X, tasks=task)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 * X.nnz + 100 * d < n_tasks * d * 8 / 50
    assert model.task_coef_.nnz <= X.nnz and model.intercept_.shape == (n_tasks,)


def test_coefficients_of_all_columns_are_refused_where_memory_ends(monkeypatch):
    X, y, task = few_columns()
    model = MultiTaskSGDRegressor(random_state=0).fit(X, y, tasks=task)
    monkeypatch.setattr("fastmtl.row_blocks.machine_memory", lambda: 3000)
    with pytest.raises(MemoryError, match=r"coef_ has shape \(6, 40\)"):
        model.coef_  # noqa: B018
    assert model.task_coef_.shape == (6, 40) and model.intercept_.shape == (6,)
    np.testing.assert_allclose(
        model.predict(X, tasks=task),
        (X @ model.shared_coef_.T)[:, 0]
        + np.asarray(X.multiply(model.task_coef_[task]).sum(axis=1))[:, 0]
        + model.intercept_[task],
        atol=1e-9,
    )


def test_columns_are_listed_as_they_first_appear():
    X = sp.csr_matrix([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    columns, position = find_columns(X, np.arange(3), np.array([0, 2, 3]))
    assert columns.column.tolist() == [1, 2, 0, 3] and columns.start.tolist() == [0, 3, 4]
    assert position.tolist() == [0, 1, 2, 0, 0]
    moved = columns.of_tasks(np.array([1, -1, 0]))
    assert moved.column.tolist() == [3, 1, 2, 0] and moved.start.tolist() == [0, 1, 1, 4]
    for a, b in itertools.pairwise(moved.start):
        assert len(set(moved.column[a:b])) == b - a
