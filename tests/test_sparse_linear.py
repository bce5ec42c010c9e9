"""Joint feature selection against peers, a plain proximal-gradient solver, and its own promises."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LogisticRegression, MultiTaskLasso
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmtl import MultiTaskSparseClassifier, MultiTaskSparseRegressor

EXACT = {"tol": 1e-10, "max_iter": 1000}


def problem(seed=0, n=120, d=15, n_tasks=4):
    rng = np.random.default_rng(seed)
    task = np.sort(rng.integers(n_tasks, size=n))
    task[:n_tasks] = np.arange(n_tasks)
    X = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + rng.normal(size=d)
    weights = np.zeros((n_tasks, d))
    weights[:, :3] = rng.normal(size=(n_tasks, 3))
    weights[1, 5] = 2.0
    y = np.einsum("ij,ij->i", X, weights[task]) + rng.normal(size=n) + task
    return X, y, task


def losses(name, y, p):
    """(values, derivatives) written out plainly."""
    if name == "squared_error":
        return 0.5 * (y - p) ** 2, p - y
    if name == "huber":
        r = p - y
        inside = np.abs(r) <= 1.35
        return np.where(inside, r**2 / 2, 1.35 * (np.abs(r) - 0.675)), np.clip(r, -1.35, 1.35)
    if name == "poisson":
        return np.exp(p) - y * p, np.exp(p) - y
    if name == "log_loss":
        return np.logaddexp(0, -y * p), -y * expit(-y * p)
    slack = np.maximum(0, 1 - y * p)
    return slack**2, -2 * y * slack


def objective(name, X, y, task, joint, own, intercept, alpha, task_alpha, weight):
    p = np.einsum("ij,ij->i", X, (joint + own)[task]) + intercept[task]
    smooth = np.sum(weight * losses(name, y, p)[0]) / len(y)
    return smooth + alpha * np.linalg.norm(joint, axis=0).sum() + task_alpha * np.abs(own).sum()


def descend(name, X, y, task, alpha, task_alpha, weight, n_steps=60_000):
    """FISTA with restarts and backtracking on (P, Q, b) at once: slow and simple."""
    n, d = X.shape
    n_tasks = task.max() + 1

    def smooth(z):
        p = np.einsum("ij,ij->i", X, (z[0] + z[1])[task, :]) + z[2][task, 0]
        value, g = losses(name, y, p)
        full = np.zeros((n_tasks, d))
        np.add.at(full, task, (weight * g / n)[:, None] * X)
        bias = np.bincount(task, weight * g / n, minlength=n_tasks)[:, None]
        return np.sum(weight * value) / n, (full, full, bias)

    def prox(z, step):
        joint, own, bias = z
        length = np.linalg.norm(joint, axis=0)
        joint = joint * np.maximum(0, 1 - step * alpha / np.maximum(length, 1e-300))
        if np.isfinite(task_alpha):
            own = np.sign(own) * np.maximum(np.abs(own) - step * task_alpha, 0)
        else:
            own = np.zeros_like(own)
        return joint, own, bias

    z = (np.zeros((n_tasks, d)), np.zeros((n_tasks, d)), np.zeros((n_tasks, 1)))
    ahead, momentum, step = z, 1.0, 1.0
    for _ in range(n_steps):
        value, gradient = smooth(ahead)
        while True:
            new = prox(tuple(a - step * g for a, g in zip(ahead, gradient)), step)
            move = [b - a for a, b in zip(ahead, new)]
            model = sum(np.sum(g * m) + np.sum(m * m) / (2 * step) for g, m in zip(gradient, move))
            if smooth(new)[0] <= value + model + 1e-15:
                break
            step /= 2
        restart = sum(np.sum((a - b) * (b - c)) for a, b, c in zip(ahead, new, z)) > 0
        grown = 1.0 if restart else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        factor = 0.0 if restart else (momentum - 1) / grown
        ahead = tuple(b + factor * (b - c) for b, c in zip(new, z))
        moved = max(np.abs(b - c).max() for b, c in zip(new, z))
        z, momentum = new, grown
        if moved < 1e-13:
            break
    own = z[1] if np.isfinite(task_alpha) else np.zeros_like(z[1])
    return z[0], own, z[2][:, 0]


def test_it_is_scikit_learn_s_multi_task_lasso_on_a_common_X():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 30)) + 0.5
    Y = X[:, :4] @ rng.normal(size=(4, 6)) + rng.normal(size=(80, 6)) + 3
    for alpha in [0.05, 0.3, 1.0]:
        peer = MultiTaskLasso(alpha=alpha, tol=1e-12, max_iter=100_000).fit(X, Y)
        model = MultiTaskSparseRegressor(alpha=alpha / 6, **EXACT).fit(X, Y)
        np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-7)
        np.testing.assert_allclose(model.intercept_, peer.intercept_, atol=1e-7)
        np.testing.assert_array_equal(model.coef_ == 0, peer.coef_ == 0)
        np.testing.assert_array_equal(model.joint_features_, np.flatnonzero(peer.coef_.any(axis=0)))


def test_more_features_than_rows_and_a_working_set():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 700))
    Y = X[:, :5] @ rng.normal(size=(5, 3)) + 0.1 * rng.normal(size=(60, 3))
    peer = MultiTaskLasso(alpha=0.1, tol=1e-12, max_iter=100_000).fit(X, Y)
    model = MultiTaskSparseRegressor(alpha=0.1 / 3, **EXACT).fit(X, Y)
    np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-6)


def test_where_nothing_is_shared_each_task_is_a_lasso():
    X, y, task = problem()
    alpha = 0.02
    model = MultiTaskSparseRegressor(alpha=1.0, task_alpha=alpha, **EXACT).fit(X, y, tasks=task)
    assert not model.joint_coef_.any()
    for t in range(4):
        own = task == t
        peer = Lasso(alpha=alpha * len(y) / own.sum(), tol=1e-13, max_iter=100_000)
        peer.fit(X[own], y[own])
        np.testing.assert_allclose(model.task_coef_[t], peer.coef_, atol=1e-7)


def test_one_task_is_the_l1_logistic_regression():
    X, y, _ = problem(n=200)
    y = y > np.median(y)
    model = MultiTaskSparseClassifier(alpha=0.02, **EXACT).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LogisticRegression(
            penalty="l1", C=1 / (0.02 * len(y)), solver="saga", tol=1e-11, max_iter=200_000
        ).fit(X, y)
    np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, peer.intercept_, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X), peer.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("task_alpha", [None, 0.02], ids=["l21", "dirty"])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "poisson", "log_loss", "squared_hinge"])
def test_objective_is_that_of_a_proximal_gradient_solver(loss, task_alpha):
    X, y, task = problem(n=90, d=6, n_tasks=3)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    kind = MultiTaskSparseRegressor
    if loss == "poisson":
        y = np.random.default_rng(0).poisson(np.exp(np.clip(y / 4, -2, 2))).astype(float)
    elif loss in ("log_loss", "squared_hinge"):
        y, kind = np.where(y > np.median(y), 1.0, -1.0), MultiTaskSparseClassifier
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(y))
    weight *= len(y) / weight.sum()
    alpha = 0.03
    model = kind(loss=loss, alpha=alpha, task_alpha=task_alpha, **EXACT)
    model.fit(X, y, tasks=task, sample_weight=weight)
    beta = np.inf if task_alpha is None else task_alpha
    truth = descend(loss, X, y, task, alpha, beta, weight)
    finite = 0.0 if task_alpha is None else task_alpha
    settings_ = (alpha, finite, weight)
    mine = (model.joint_coef_, model.task_coef_, model.intercept_)
    best = objective(loss, X, y, task, *truth, *settings_)
    reached = objective(loss, X, y, task, *mine, *settings_)
    assert abs(reached - best) <= 1e-8 * max(1, abs(best))
    np.testing.assert_allclose(model.history_[-1]["objective"], reached, rtol=1e-9)
    np.testing.assert_allclose(model.coef_, truth[0] + truth[1], atol=2e-4)


def test_several_classes_are_one_against_the_rest_with_features_in_common():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(240, 8)), np.arange(240) % 2
    y = (X[:, :2] @ rng.normal(size=(2, 3)) * 2 + rng.gumbel(size=(240, 3))).argmax(axis=1)
    alpha = 0.05
    model = MultiTaskSparseClassifier(alpha=alpha, **EXACT).fit(X, y, tasks=task)
    # The same as six two-class tasks, each given its rows again.
    rows = [np.flatnonzero(task == t) for t in range(2) for _ in range(3)]
    targets = [y[own] == k % 3 for k, own in enumerate(rows)]
    flat = MultiTaskSparseClassifier(alpha=alpha / 3, **EXACT)
    flat.fit([X[own] for own in rows], targets)
    np.testing.assert_allclose(np.vstack(model.coef_), flat.coef_, atol=1e-8)
    assert 0 < len(model.joint_features_) < 8
    scores = X @ flat.coef_.T + flat.intercept_
    proba = expit(np.where(task[:, None] == 0, scores[:, :3], scores[:, 3:]))
    want = proba / proba.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X, tasks=task), want, atol=1e-7)
    np.testing.assert_array_equal(model.predict(X, tasks=task), want.argmax(axis=1))


@pytest.mark.parametrize("task_alpha", [None, 0.03])
def test_forms_layouts_and_dtypes_agree(task_alpha):
    X, y, task = problem()
    model = MultiTaskSparseRegressor(alpha=0.04, task_alpha=task_alpha, **EXACT)
    want = clone(model).fit(X, y, tasks=task).coef_
    parts = [task == t for t in range(4)]
    listed = clone(model).fit([X[p] for p in parts], [y[p] for p in parts]).coef_
    np.testing.assert_allclose(listed, want, atol=1e-9)
    Y = np.full((len(y), 4), np.nan)
    Y[np.arange(len(y)), task] = y
    np.testing.assert_allclose(clone(model).fit(X, Y).coef_, want, atol=1e-9)
    for variant in [np.asfortranarray(X), X[::-1][::-1], X.astype(">f8"), sp.csr_matrix(X)]:
        np.testing.assert_allclose(clone(model).fit(variant, y, tasks=task).coef_, want, atol=1e-8)
    single = clone(model).set_params(tol=1e-6).fit(X.astype(np.float32), y, tasks=task)
    assert single.coef_.dtype == np.float32
    np.testing.assert_allclose(single.coef_, want, atol=5e-3)
    shuffled = np.random.default_rng(0).permutation(len(y))
    mixed = clone(model).fit(X[shuffled], y[shuffled], tasks=task[shuffled])
    np.testing.assert_allclose(mixed.coef_, want, atol=1e-9)
    two = clone(model).set_params(n_threads=2).fit(X, y, tasks=task)
    np.testing.assert_array_equal(two.coef_, want)


def test_weights_are_repetitions_and_zero_weight_is_absence():
    X, y, task = problem()
    twice = np.arange(len(y)) % 3 == 0
    model = MultiTaskSparseRegressor(alpha=0.05, **EXACT)
    repeated = clone(model).fit(
        np.vstack([X, X[twice]]), np.append(y, y[twice]), tasks=np.append(task, task[twice])
    )
    weighted = clone(model).fit(X, y, tasks=task, sample_weight=1.0 + twice)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-8)
    dropped = clone(model).fit(X, y, tasks=task, sample_weight=1.0 * ~twice)
    kept = clone(model).fit(X[~twice], y[~twice], tasks=task[~twice])
    np.testing.assert_allclose(dropped.coef_, kept.coef_, atol=1e-8)


def test_the_dirty_model_finds_what_is_shared_and_what_is_one_task_s():
    rng = np.random.default_rng(0)
    weights = np.zeros((6, 40))
    weights[:, :3] = rng.choice([-1, 1], size=(6, 3)) * rng.uniform(1, 2, (6, 3))
    weights[2, 10], weights[4, 20] = 2.0, -2.0
    X, task = rng.normal(size=(1200, 40)), np.arange(1200) % 6
    y = np.einsum("ij,ij->i", X, weights[task]) + 0.1 * rng.normal(size=1200)
    model = MultiTaskSparseRegressor(alpha=0.05, task_alpha=0.035).fit(X, y, tasks=task)
    np.testing.assert_array_equal(model.joint_features_, [0, 1, 2])
    assert set(zip(*np.nonzero(model.task_coef_[:, 3:]))) == {(2, 7), (4, 17)}
    assert model.sparse_coef_.nnz == np.count_nonzero(model.coef_)


def test_alpha_max_is_where_the_last_feature_goes():
    X, y, task = problem()
    for kind, target in [
        (MultiTaskSparseRegressor, y),
        (MultiTaskSparseClassifier, X[:, 0] > X[:, 0].mean()),
    ]:
        top = kind(alpha=1e6).fit(X, target, tasks=task).alpha_max_
        assert not kind(alpha=top * 1.0001).fit(X, target, tasks=task).coef_.any()
        assert kind(alpha=top * 0.99).fit(X, target, tasks=task).coef_.any()


def test_a_warm_start_starts_where_the_last_fit_ended():
    X, y, task = problem()
    model = MultiTaskSparseRegressor(alpha=0.05, warm_start=True, **EXACT).fit(X, y, tasks=task)
    near = model.set_params(alpha=0.049).fit(X, y, tasks=task).history_[0]["violation"]
    cold = MultiTaskSparseRegressor(alpha=0.049, **EXACT).fit(X, y, tasks=task)
    assert near < 0.05 * cold.history_[0]["violation"]
    np.testing.assert_allclose(model.coef_, cold.coef_, atol=1e-8)
    with pytest.raises(ValueError, match="warm_start=False"):
        model.fit(X[:, :5], y, tasks=task)


def test_unseen_tasks_are_refused_or_take_the_mean():
    X, y, task = problem()
    model = MultiTaskSparseRegressor().fit(X, y, tasks=task)
    with pytest.raises(ValueError, match="not in training"):
        model.predict(X[:2], tasks=[0, 99])
    model.set_params(unseen_tasks="shared")
    want = X[:2] @ model.coef_.mean(axis=0) + model.intercept_.mean()
    np.testing.assert_allclose(model.predict(X[:2], tasks=[99, 99]), want)


@pytest.mark.parametrize(
    ("settings_", "match"),
    [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"task_alpha": -1.0}, "task_alpha is -1"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"tol": 0.0}, "tol is 0"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"unseen_tasks": "mean"}, "unseen_tasks is 'mean'"),
    ],
)
def test_bad_settings_are_named(settings_, match):
    X, y, task = problem()
    with pytest.raises(ValueError, match=match):
        MultiTaskSparseRegressor(**settings_).fit(X, y, tasks=task)


def test_bad_data_is_named():
    X, y, task = problem()
    with pytest.raises(ValueError, match="NaN"):
        MultiTaskSparseRegressor().fit(np.where(X > 2, np.nan, X), y, tasks=task)
    with pytest.raises(ValueError, match="zero everywhere"):
        MultiTaskSparseRegressor(task_weight=np.zeros(4)).fit(X, y, tasks=task)
    with pytest.raises(ValueError, match=r"one class only in 1 tasks, for example \[2\]"):
        MultiTaskSparseClassifier().fit(X, (X[:, 0] > 1) | (task == 2), tasks=task)
    squared_hinge = MultiTaskSparseClassifier(loss="squared_hinge").fit(X, y > 0)
    with pytest.raises(AttributeError, match="needs loss='log_loss'"):
        squared_hinge.predict_proba(X)
    with pytest.raises(ValueError, match="negative entry"):
        MultiTaskSparseRegressor(loss="poisson").fit(X, -np.abs(y), tasks=task)


def test_too_few_rounds_are_said():
    X, y, task = problem()
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        MultiTaskSparseRegressor(max_iter=1).fit(X, y, tasks=task)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 1.0), st.booleans())
def test_the_violation_reported_is_the_violation(seed, alpha, intercept):
    X, y, task = problem(seed, n=40, d=6, n_tasks=3)
    model = MultiTaskSparseRegressor(alpha=alpha, fit_intercept=intercept, tol=1e-8, max_iter=500)
    model.fit(X, y, tasks=task)
    residual = model.predict(X, tasks=task) - y
    gradient = np.array([(residual * (task == t)) @ X / len(y) for t in range(3)])
    size = np.linalg.norm(model.coef_, axis=0)
    unit = np.divide(model.coef_, size, out=np.zeros_like(gradient), where=size > 0)
    excess = np.linalg.norm(gradient + alpha * unit, axis=0) - np.where(size > 0, 0, alpha)
    assert excess.max() <= 1e-7 * max(model.alpha_max_, alpha)


@parametrize_with_checks(
    [MultiTaskSparseRegressor(), MultiTaskSparseClassifier()],
    expected_failed_checks=lambda estimator: (
        {"check_classifier_multioutput": "predict_proba is a list of arrays, one a task"}
        if isinstance(estimator, MultiTaskSparseClassifier)
        else {}
    ),
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)
