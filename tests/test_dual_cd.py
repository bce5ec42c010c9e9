"""The dual solver reaches libsvm's optimum, with tasks and without."""

import numpy as np
import pytest
from fastmtl._core.dual_cd import minimise
from sklearn.svm import SVC, SVR

from fastmtl.row_cache import RowCache


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    n_tasks, n = 5, 300
    X = rng.normal(size=(n, 4))
    task = np.sort(rng.integers(0, n_tasks, n)).astype(np.int32)
    signal = np.sin(X[:, 0] + 0.3 * task) + X[:, 1] + 0.2 * rng.normal(size=n)
    gram = np.exp(-0.25 * ((X[:, None] - X[None]) ** 2).sum(-1))
    return (gram + gram.T) / 2, task, signal


def solve(gram, task, target, lower, upper, *, epsilon=0.0, ridge=0.0, **options):
    n, n_tasks = len(target), task.max() + 1
    beta, gradient = np.zeros(n), -np.asarray(target, dtype=float)
    settings = {
        "diagonal": np.diag(gram).astype(float),
        "cache": None,
        "tick": None,
        "group": np.zeros(n_tasks, dtype=np.int32),
        "mixing": np.ones((n_tasks, 1)),
        "kappa": np.full(n_tasks, 0.5),
        "tol": 1e-6,
        "max_iter": 10**6,
        "shrinking": False,
    } | options
    n_iter, violation, n_negative = minimise(
        gram=gram,
        row=np.arange(n, dtype=np.int32),
        task=task,
        lower=lower,
        upper=upper,
        ridge=np.full(n, ridge),
        epsilon=epsilon,
        beta=beta,
        gradient=gradient,
        **settings,
    )
    return beta, gradient, n_iter, violation, n_negative


@pytest.mark.parametrize("shrinking", [False, True])
@pytest.mark.parametrize("C", [0.5, 20.0])
def test_hinge_equals_libsvm_on_the_coupled_gram(data, C, shrinking):
    gram, task, signal = data
    y = np.sign(signal)
    coupled = gram * (1 + 0.5 * (task[:, None] == task))
    libsvm = SVC(kernel="precomputed", C=C, tol=1e-6).fit(coupled, y)
    beta, gradient, *_ = solve(
        gram, task, y, np.minimum(0, C * y), np.maximum(0, C * y), shrinking=shrinking
    )
    expected = np.zeros(len(y))
    expected[libsvm.support_] = libsvm.dual_coef_[0]
    np.testing.assert_allclose(coupled @ beta, coupled @ expected, atol=1e-3)
    np.testing.assert_allclose(gradient, coupled @ beta - y, atol=1e-9)
    objective = 0.5 * beta @ coupled @ beta - y @ beta
    assert objective == pytest.approx(0.5 * expected @ coupled @ expected - y @ expected, rel=1e-7)


def test_epsilon_insensitive_equals_libsvm(data):
    gram, task, signal = data
    coupled = gram * (1 + 0.5 * (task[:, None] == task))
    libsvm = SVR(kernel="precomputed", C=2.0, epsilon=0.1, tol=1e-6).fit(coupled, signal)
    bound = np.full(len(signal), 2.0)
    beta, *_ = solve(gram, task, signal, -bound, bound, epsilon=0.1)
    expected = np.zeros(len(signal))
    expected[libsvm.support_] = libsvm.dual_coef_[0]
    np.testing.assert_allclose(coupled @ beta, coupled @ expected, atol=1e-3)


def test_intercept_per_task_balances_each_task(data):
    gram, task, signal = data
    y = np.sign(signal)
    beta, _, _, violation, _ = solve(
        gram,
        task,
        y,
        np.minimum(0, y),
        np.maximum(0, y),
        group=np.arange(task.max() + 1, dtype=np.int32),
    )
    assert violation <= 1e-6
    assert np.abs(beta).sum() > 10
    np.testing.assert_allclose(np.bincount(task, beta), 0, atol=1e-9)


def test_independent_tasks_equal_one_libsvm_each(data):
    gram, task, signal = data
    y = np.sign(signal)
    n_tasks = task.max() + 1
    beta, *_ = solve(
        gram,
        task,
        y,
        np.minimum(0, y),
        np.maximum(0, y),
        group=np.arange(n_tasks, dtype=np.int32),
        mixing=np.empty((n_tasks, 0)),
        kappa=np.ones(n_tasks),
    )
    for t in range(n_tasks):
        own = task == t
        libsvm = SVC(kernel="precomputed", tol=1e-6).fit(gram[np.ix_(own, own)], y[own])
        expected = np.zeros(own.sum())
        expected[libsvm.support_] = libsvm.dual_coef_[0]
        block = gram[np.ix_(own, own)]
        np.testing.assert_allclose(block @ beta[own], block @ expected, atol=1e-3)


@pytest.mark.parametrize("n_slots", [2, 7, 60, 300])
@pytest.mark.parametrize("shrinking", [False, True])
def test_row_cache_gives_the_steps_of_the_whole_gram(data, n_slots, shrinking):
    gram, task, signal = data
    y = np.sign(signal)
    asked = []

    def compute(rows, out):
        asked.append(len(rows))
        out[...] = gram[rows]

    cache = RowCache(compute, 300, n_slots * 300, gram.dtype)
    assert cache.rows.size + cache._scratch.size <= n_slots * 300
    bounds = np.minimum(0, y), np.maximum(0, y)
    whole = solve(gram, task, y, *bounds, shrinking=shrinking)
    by_rows = solve(
        cache.rows,
        task,
        y,
        *bounds,
        shrinking=shrinking,
        cache=cache,
        diagonal=np.diag(gram).copy(),
    )
    np.testing.assert_array_equal(by_rows[0], whole[0])
    assert by_rows[2] == whole[2]
    there = cache.slot_of >= 0
    np.testing.assert_array_equal(cache.rows[cache.slot_of[there]], gram[there])
    assert max(asked) == {2: 1, 7: 1, 60: 15, 300: 16}[n_slots]
    if n_slots == 300:
        assert sum(asked) == there.sum() <= 300


def test_an_error_while_fetching_a_row_reaches_the_caller(data):
    gram, task, signal = data

    def compute(rows, out):
        raise ValueError("no such row")

    cache = RowCache(compute, 300, 30 * 300, gram.dtype)
    with pytest.raises(ValueError, match="no such row"):
        solve(
            cache.rows,
            task,
            np.sign(signal),
            -np.ones(300),
            np.ones(300),
            cache=cache,
            diagonal=np.ones(300),
        )


def test_an_objective_without_a_minimum_is_told(data):
    gram, task, signal = data
    y = np.sign(signal)
    n = len(y)
    infinite = np.full(n, np.inf)
    *_, violation, n_negative = solve(
        gram - 2 * np.eye(n), task, y, -infinite, infinite, ridge=0.0, max_iter=1000
    )
    assert violation == np.inf
    assert n_negative == 1
