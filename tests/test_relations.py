"""Learned relations: the evidence is the Gaussian's own density, planted relations are found, and
the fit under what was found is the least of the objective that it states."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from closed_form import coupled_ridge
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from sklearn.base import clone

from fastmtl import (
    MultiTaskKernelRidge,
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    MultiTaskSVC,
    MultiTaskSVR,
    TaskCoupling,
    linear_kernel,
)
from fastmtl.evidence import Relations, Summary, posterior
from fastmtl.relations import Data, _first, _moved, modes


def draw(C, d, n, seed, noise=1.0):
    """Tasks of n rows each, whose vectors have the covariance C."""
    rng = np.random.default_rng(seed)
    n_tasks = len(C)
    W = np.linalg.cholesky(C + 1e-9 * np.eye(n_tasks)) @ rng.normal(size=(n_tasks, d))
    task = np.repeat(np.arange(n_tasks), n)
    X = rng.normal(size=(n_tasks * n, d))
    y = np.einsum("ij,ij->i", X, W[task]) + noise * rng.normal(size=len(X))
    return X, y, task, W


def groups(n_tasks, n_groups):
    g = np.arange(n_tasks) * n_groups // n_tasks
    return 0.9 * (g[:, None] == g) + 0.1 * np.eye(n_tasks)


def chain(n_tasks):
    A = np.diag(np.ones(n_tasks - 1), 1)
    A = A + A.T
    return np.linalg.inv(np.diag(A.sum(axis=0)) - A + 0.2 * np.eye(n_tasks))


def opposed(n_tasks):
    sign = np.where(np.arange(n_tasks) < n_tasks // 2, 1.0, -1.0)
    return 0.8 * np.outer(sign, sign) + 0.2 * np.eye(n_tasks)


def with_outliers(n_tasks, n_outliers):
    C = 0.9 * np.ones((n_tasks, n_tasks))
    C[-n_outliers:] = C[:, -n_outliers:] = 0.0
    C[-n_outliers:, -n_outliers:] = 0.9 * np.eye(n_outliers)
    return C + 0.1 * np.eye(n_tasks)


def agreement(found, C):
    scale = 1 / np.sqrt(np.diag(C))
    above = np.triu_indices(len(C), 1)
    return np.corrcoef(found[above], (C * scale[:, None] * scale)[above])[0, 1]


def small_summary(n_tasks=4, p=4, n=50):
    rng = np.random.default_rng(0)
    Z = np.column_stack([rng.normal(size=(n, p - 1)), np.ones(n)])
    task = np.sort(rng.integers(n_tasks, size=n))
    y = Z @ rng.normal(size=p) + rng.normal(size=n)
    gram = np.stack([Z[task == t].T @ Z[task == t] for t in range(n_tasks)])
    moment = np.stack([Z[task == t].T @ y[task == t] for t in range(n_tasks)])
    return Summary(gram, moment, float(y @ y), n), Z, task, y


def parameters(n_shared, q, p=4, n_tasks=4):
    rng = np.random.default_rng(1)
    L = np.zeros((p, q))
    L[:q] = np.tril(rng.normal(size=(q, q)))
    return [rng.normal(size=(n_tasks, n_shared)), rng.normal(size=n_tasks) / 2, L, np.array(-0.3)]


@pytest.mark.parametrize("n_shared", [0, 1, 3])
def test_evidence_is_the_density_of_the_targets(n_shared):
    summary, Z, task, y = small_summary()
    B, log_kappa, L, log_noise = parameters(n_shared, 4)
    relations = Relations(B, np.exp(log_kappa), L, np.exp(log_noise))
    covariance = relations.covariance()[np.ix_(task, task)] * (Z @ L @ L.T @ Z.T)
    covariance += np.exp(log_noise) * np.eye(len(y))
    want = multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    found = posterior(summary, relations, False)
    assert -found.value - len(y) / 2 * np.log(2 * np.pi) == pytest.approx(want, rel=1e-10)
    # The posterior mean of the vectors, by the Gaussian conditional.
    cross = relations.covariance()[:, task][:, :, None] * (Z @ L @ L.T)[None]
    mean = np.einsum("tid,i->td", cross, np.linalg.solve(covariance, y))
    np.testing.assert_allclose(found.vectors, mean, atol=1e-9)


@pytest.mark.parametrize(("flat", "q"), [(False, 4), (True, 4), (True, 3)])
@pytest.mark.parametrize("n_shared", [0, 2])
def test_gradient_of_the_evidence(n_shared, flat, q):
    summary, *_ = small_summary()
    given = parameters(n_shared, q)
    shapes = [part.shape for part in given]
    ends = np.cumsum([part.size for part in given])[:-1]

    def value(flattened):
        B, log_kappa, L, log_noise = (
            part.reshape(shape) for part, shape in zip(np.split(flattened, ends), shapes)
        )
        return posterior(summary, Relations(B, np.exp(log_kappa), L, np.exp(log_noise)), flat).value

    at = np.concatenate([part.ravel() for part in given])
    B, log_kappa, L, log_noise = given
    relations = Relations(B, np.exp(log_kappa), L, np.exp(log_noise))
    gradient = posterior(summary, relations, flat, gradient=True).gradient
    found = np.concatenate([np.ravel(part) for part in gradient])
    np.testing.assert_allclose(found, approx_fprime(at, value, 1e-7), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("flat", "q"), [(False, 4), (True, 4), (True, 3)])
@pytest.mark.parametrize("n_shared", [0, 1, 3])
def test_evidence_in_the_bases_of_the_tasks_is_the_same(n_shared, flat, q):
    summary, *_ = small_summary()
    B, log_kappa, L, log_noise = parameters(n_shared, q)
    relations = Relations(B, np.exp(log_kappa), L, np.exp(log_noise))
    want, left = posterior(summary, relations, flat, gradient=True), summary.left(relations)
    summary.diagonalise(L, flat)
    found = posterior(summary, relations, flat, gradient=True)
    for name in ("value", "shared", "specific", "offset", "vectors"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), atol=1e-9)
    for part in (0, 1, 3):
        np.testing.assert_allclose(found.gradient[part], want.gradient[part], atol=1e-9)
    np.testing.assert_allclose(summary.left(relations), left, atol=1e-9)
    # another L is not served by these bases
    other = Relations(B, np.exp(log_kappa), 2 * L, np.exp(log_noise))
    fresh = Summary(summary.gram, summary.moment, summary.square, summary.count)
    want = posterior(fresh, other, flat).value
    assert posterior(summary, other, flat).value == want


@pytest.mark.parametrize(
    ("C", "d"),
    [(groups(12, 3), 60), (chain(10), 120), (opposed(12), 20), (with_outliers(12, 2), 40)],
    ids=["groups", "chain", "opposed", "outliers"],
)
def test_planted_relations_are_found(C, d):
    X, y, task, W = draw(C, d, 2 * d, seed=0)
    model = MultiTaskSGDRegressor(coupling=TaskCoupling.learn(scale="evidence"), random_state=0)
    model.fit(X, y, tasks=task)
    assert agreement(model.task_correlation_, C) >= 0.9
    independent = [
        np.linalg.lstsq(X[task == t], y[task == t], rcond=None)[0] for t in range(len(C))
    ]
    error = np.sum((model.coef_ - W) ** 2, axis=1)
    alone = np.sum((independent - W) ** 2, axis=1)
    # Scores R² on fresh rows: X is standard normal, so they follow from the vectors.
    total = np.sum(W**2, axis=1) + 1.0
    assert ((error - alone) / total).max() < 0.01


def test_tasks_whose_rows_are_alike_may_have_vectors_that_are_alike():
    rng = np.random.default_rng(0)
    site = rng.normal(size=(40, 1))
    task = np.repeat(np.arange(40), 12)
    X = rng.normal(size=(480, 10)) + site[task] * rng.normal(size=10)
    errors = {}
    for related in (True, False):
        W = site * rng.normal(size=10) + 0.1 * rng.normal(size=(40, 10))
        W = W if related else W[rng.permutation(40)]
        y = np.einsum("ij,ij->i", X, W[task]) + 3.0 * rng.normal(size=480)
        for coupling in ("learn", "mean", TaskCoupling.low_rank(1)):
            model = MultiTaskSGDRegressor(coupling=coupling, alpha=0.02, random_state=0)
            W_found = model.fit(X, y, tasks=task).coef_
            errors[related, str(coupling)] = np.sum((W_found - W) ** 2)
        if related:
            model = MultiTaskSGDRegressor(coupling="learn", random_state=0).fit(X, y, tasks=task)
            assert agreement(model.task_correlation_, site @ site.T + 0.01 * np.eye(40)) > 0.8
    assert errors[True, "learn"] < 0.5 * errors[True, "mean"]
    assert errors[True, "learn"] < errors[True, "TaskCoupling.learn(rank=1)"]
    assert errors[False, "learn"] < 1.2 * errors[False, "mean"]


def test_two_small_tasks_keep_the_relations_of_mean():
    X, y, task, _ = draw(0.5 + 0.5 * np.eye(2), 10, 20, seed=0, noise=0.5)
    label = classes_of(X, 5 * y, np.random.default_rng(0))
    for target, Model in ((y, MultiTaskSGDRegressor), (label, MultiTaskSGDClassifier)):
        model = Model(coupling="learn", alpha=0.1, random_state=0).fit(X, target, tasks=task)
        np.testing.assert_allclose(model.task_covariance_, 0.5 + 0.5 * np.eye(2), atol=1e-9)


def test_size_of_a_prior_is_found_from_far_off_by_the_evidence_about_its_modes():
    X, y, *_ = draw(groups(4, 2), 8, 60, seed=0, noise=0.0)
    label = 2.0 * classes_of(X, y, np.random.default_rng(0)) - 1
    data = Data(X, np.arange(240), np.arange(0, 241, 60), [(label, np.ones(240))], "log", False)
    relations, starts = _first(data, np.eye(8))
    far = replace(relations, mixing=relations.mixing / 20, kappa=relations.kappa / 400)
    value, found, (at, _) = _moved(data, (np.inf, far, (starts, None)), (1, 1), (1, 0), (0, 1))
    for shared in (-1.0, 0.0, 1.0):
        for own in (-1.0, 0.0, 1.0):
            near = replace(
                found, mixing=np.exp(shared) * found.mixing, kappa=np.exp(2 * own) * found.kappa
            )
            assert value < modes(data, near, at)[0][0].value + 0.5


def test_unrelated_tasks_are_left_unrelated():
    X, y, task, _ = draw(np.eye(8), 20, 60, seed=0)
    model = MultiTaskSGDRegressor(coupling="learn", alpha=1e-3).fit(X, y, tasks=task)
    off = ~np.eye(8, dtype=bool)
    assert np.abs(model.task_correlation_[off]).max() < 0.3


@pytest.mark.parametrize("intercept", ["coupled", "shared", "free", "none"])
def test_fit_is_the_closed_form_under_what_was_learned(intercept):
    X, y, task, _ = draw(groups(6, 2), 8, 30, seed=1)
    model = MultiTaskSGDRegressor(
        coupling="learn",
        alpha=0.05,
        fit_intercept=intercept != "none",
        task_intercept="coupled" if intercept == "none" else intercept,
        tol=1e-8,
        random_state=0,
    ).fit(X, y + 2.0 * (intercept != "none"), tasks=task)
    coef, offset = coupled_ridge(
        X, y + 2.0 * (intercept != "none"), task, model.mixing_, model.kappa_, 0.05, intercept
    )
    np.testing.assert_allclose(model.coef_, coef, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, offset, atol=1e-6)
    if intercept != "free":  # whose prior is wide, not flat, while learning
        assert model.n_iter_ <= 5  # it starts from the mode
    assert np.trace(model.task_covariance_) == pytest.approx(6.0)


@pytest.mark.parametrize("features", ["diagonal", "full"])
@pytest.mark.parametrize("intercept", ["coupled", "shared", "free"])
def test_feature_covariance_is_ridge_on_mapped_features(features, intercept):
    X, y, task, _ = draw(opposed(6), 6, 40, seed=2)
    X = X * np.linspace(0.3, 3.0, 6)
    model = MultiTaskSGDRegressor(
        coupling=TaskCoupling.learn(rank=1, feature_covariance=features),
        alpha=0.05,
        task_intercept=intercept,
        tol=1e-8,
        random_state=0,
    ).fit(X, y, tasks=task)
    relations = model._relations
    mapped = X @ relations.matrix + relations.shift
    coef, offset = coupled_ridge(mapped, y, task, model.mixing_, model.kappa_, 0.05, intercept)
    want = np.einsum("ij,ij->i", mapped, coef[task]) + offset[task]
    np.testing.assert_allclose(model.predict(X, tasks=task), want, atol=1e-5)
    whole = model.mixing_ @ model.shared_coef_ + model.task_coef_
    np.testing.assert_allclose(whole, model.coef_, atol=1e-8)


def test_feature_covariance_finds_the_useful_features():
    rng = np.random.default_rng(0)
    scales = np.r_[np.ones(5), np.full(15, 0.03)]
    W = rng.normal(size=(20, 20)) * scales
    task = np.repeat(np.arange(20), 25)
    X = rng.normal(size=(500, 20))
    y = np.einsum("ij,ij->i", X, W[task]) + rng.normal(size=500)
    errors = {}
    for features in ("identity", "diagonal", "full"):
        coupling = TaskCoupling.learn(feature_covariance=features, scale="evidence")
        model = MultiTaskSGDRegressor(coupling=coupling, random_state=0).fit(X, y, tasks=task)
        errors[features] = np.sum((model.coef_ - W) ** 2)
    assert errors["diagonal"] < 0.7 * errors["identity"]
    assert errors["full"] < 0.8 * errors["identity"]


def test_evidence_sets_the_strength_whatever_alpha_is():
    X, y, task, _ = draw(groups(6, 2), 8, 30, seed=1)
    coupling = TaskCoupling.learn(scale="evidence")
    one, other = (
        MultiTaskSGDRegressor(coupling=coupling, alpha=alpha, tol=1e-7, random_state=0).fit(
            X, y, tasks=task
        )
        for alpha in (1e-4, 1.0)
    )
    np.testing.assert_allclose(one.coef_, other.coef_, atol=1e-4)


def classes_of(X, y, rng):
    return (rng.random(len(y)) < 1 / (1 + np.exp(-y))).astype(int)


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, np.asfortranarray])
def test_classifier_finds_the_groups(layout):
    rng = np.random.default_rng(0)
    X, y, task, _ = draw(opposed(8), 10, 150, seed=3, noise=0.0)
    label = classes_of(X, y, rng)
    model = MultiTaskSGDClassifier(coupling="learn", alpha=0.01, random_state=0)
    model.fit(layout(X), label, tasks=task)
    assert agreement(model.task_correlation_, opposed(8)) > 0.9
    assert model.n_iter_ <= 10


def test_softmax_and_poisson_and_robust_losses_learn():
    rng = np.random.default_rng(0)
    X, y, task, _ = draw(opposed(6), 8, 100, seed=4, noise=0.0)
    three = np.digitize(y + rng.logistic(size=len(y)), [-1.0, 1.0])
    model = MultiTaskSGDClassifier(coupling=TaskCoupling.low_rank(1), alpha=0.01, random_state=0)
    assert agreement(model.fit(X, three, tasks=task).task_correlation_, opposed(6)) > 0.9
    counts = rng.poisson(np.exp(0.4 * y))
    for loss, target in (("poisson", counts), ("huber", y), ("epsilon_insensitive", y)):
        model = MultiTaskSGDRegressor(
            loss=loss, coupling=TaskCoupling.low_rank(1), alpha=0.01, tol=1e-3, random_state=0
        ).fit(X, target, tasks=task)
        assert agreement(model.task_correlation_, opposed(6)) > 0.9
        assert model.mixing_.shape == (6, 1)


def test_many_sparse_features():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(12, 400)) * (rng.random((12, 400)) < 0.1)
    hidden, y, task, _ = draw(opposed(6), 12, 200, seed=5)
    X = sp.csr_matrix(hidden @ basis)
    model = MultiTaskSGDRegressor(coupling=TaskCoupling.low_rank(1), alpha=0.01, random_state=0)
    model.fit(X, y, tasks=task)
    assert agreement(model.task_correlation_, opposed(6)) > 0.9
    with pytest.raises(ValueError, match="feature_covariance is 'diagonal', which takes at most"):
        MultiTaskSGDRegressor(coupling=TaskCoupling.learn(feature_covariance="diagonal")).fit(
            X, y, tasks=task
        )


def test_the_three_forms_learn_alike():
    X, y, task, _ = draw(groups(4, 2), 5, 25, seed=6)
    long = MultiTaskSGDRegressor(coupling="learn", random_state=0).fit(X, y, tasks=task)
    parts = MultiTaskSGDRegressor(coupling="learn", random_state=0).fit(
        np.split(X, 4), np.split(y, 4)
    )
    Y = np.full((100, 4), np.nan)
    Y[np.arange(100), task] = y
    matrix = MultiTaskSGDRegressor(coupling="learn", random_state=0).fit(X, Y)
    for other in (parts, matrix):
        np.testing.assert_array_equal(other.task_covariance_, long.task_covariance_)
        np.testing.assert_array_equal(other.coef_, long.coef_)


def test_learned_relations_serve_later_batches_and_new_tasks():
    X, y, task, _ = draw(groups(4, 2), 5, 60, seed=7)
    first = task < 3
    model = MultiTaskSGDRegressor(coupling="learn", alpha=0.01, random_state=0)
    model.partial_fit(X[first], y[first], tasks=task[first])
    kept = model.task_covariance_
    model.partial_fit(X, y, tasks=task)
    np.testing.assert_array_equal(model.task_covariance_[:3, :3], kept)
    assert model.coef_.shape == (4, 5)
    float32 = MultiTaskSGDRegressor(coupling="learn", random_state=0).fit(
        X.astype(np.float32), y, tasks=task
    )
    assert float32.coef_.dtype == np.float32
    one = MultiTaskSGDRegressor(coupling="learn").fit(X, y)
    assert one.task_covariance_.shape == (1, 1)


def test_correlation_of_a_given_coupling():
    X, y, task, _ = draw(np.eye(2), 3, 10, seed=8)
    C = np.array([[4.0, 1.0], [1.0, 1.0]])
    model = MultiTaskSGDRegressor(coupling=TaskCoupling.from_covariance(C)).fit(X, y, tasks=task)
    np.testing.assert_allclose(model.task_covariance_, C, atol=1e-12)
    np.testing.assert_allclose(model.task_correlation_, [[1.0, 0.5], [0.5, 1.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TaskCoupling.learn(rank=0), "rank is 0; pass 'auto' or an integer"),
        (lambda: TaskCoupling.learn(feature_covariance="banded"), "feature_covariance is 'banded'"),
        (lambda: TaskCoupling.learn(scale=2), "scale is 2; pass one of 'unit', 'evidence'"),
        (lambda: TaskCoupling.low_rank("auto"), "rank is 'auto'; pass an integer"),
        (lambda: TaskCoupling.low_rank(2, learn=False), "low_rank learns B"),
        (lambda: TaskCoupling.learn().factor(3), "which only a fit makes known"),
    ],
)
def test_what_is_wrong_is_said(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_what_the_data_cannot_do_is_said():
    X, y, task, _ = draw(np.eye(2), 3, 10, seed=9)
    full = TaskCoupling.learn(feature_covariance="full")
    with pytest.raises(ValueError, match="feature_covariance is 'full' and X is sparse"):
        MultiTaskSGDRegressor(coupling=full).fit(sp.csr_matrix(X), y, tasks=task)
    with pytest.raises(ValueError, match="alpha is 0; scale='evidence'"):
        MultiTaskSGDRegressor(coupling=TaskCoupling.learn(scale="evidence"), alpha=0.0).fit(
            X, y, tasks=task
        )


def new_task(model, coef, n=6, noise=0.1):
    rng = np.random.default_rng(10)
    X = rng.normal(size=(n, len(coef)))
    return X, X @ coef + 0.5 + noise * rng.normal(size=n)


@pytest.mark.parametrize("intercept", ["coupled", "shared", "free", "none"])
def test_added_task_is_the_closed_form_over_its_own_vector(intercept):
    X, y, task, W = draw(0.7 + 0.3 * np.eye(5), 4, 40, seed=11)
    model = MultiTaskSGDRegressor(
        coupling=TaskCoupling.mean(0.5),
        alpha=0.02,
        fit_intercept=intercept != "none",
        task_intercept="coupled" if intercept == "none" else intercept,
        random_state=0,
    ).fit(X, y, tasks=task)
    kept = model.coef_.copy()
    new_X, new_y = new_task(model, W.mean(axis=0))
    model.add_task(new_X, new_y, 9)
    z = new_X if intercept in ("shared", "none") else np.column_stack([new_X, np.ones(6)])
    shared = model.shared_coef_[0]
    offset = model._state.intercept[0] if intercept in ("shared", "coupled") else 0.0
    if intercept == "coupled":
        offset += model._state.shared[0, 0, -1]
    ridge = 206 * 0.02 / 0.5 * np.eye(z.shape[1])
    if intercept == "free":
        ridge[-1, -1] = 0.0
    v = np.linalg.solve(z.T @ z + ridge, z.T @ (new_y - new_X @ shared - offset))
    np.testing.assert_allclose(model.coef_[5], shared + v[:4], atol=1e-6)
    want = new_X @ (shared + v[:4]) + offset + (v[4] if len(v) > 4 else 0.0)
    np.testing.assert_allclose(model.predict(new_X, tasks=[9] * 6), want, atol=1e-6)
    np.testing.assert_array_equal(model.coef_[:5], kept)
    assert model.tasks_.tolist() == [0, 1, 2, 3, 4, 9]
    model.partial_fit(new_X, new_y, tasks=[9] * 6)


def test_added_task_finds_its_group():
    X, y, task, W = draw(opposed(8), 10, 60, seed=12)
    model = MultiTaskSGDRegressor(coupling=TaskCoupling.low_rank(1), alpha=1e-3, random_state=0)
    model.fit(X, y, tasks=task)
    for label, side in (("first", W[:4].mean(axis=0)), ("second", W[4:].mean(axis=0))):
        model_of = MultiTaskSGDRegressor(
            coupling=TaskCoupling.low_rank(1), alpha=1e-3, random_state=0
        ).fit(X, y, tasks=task)
        model_of.add_task(*new_task(model, side), label)
        own = model_of.task_correlation_[-1]
        near, far = (own[:4], own[4:8]) if label == "first" else (own[4:8], own[:4])
        assert near.min() > 0.5 > -0.5 > far.max()
        alone = np.linalg.lstsq(new_task(model, side)[0], new_task(model, side)[1], rcond=None)[0]
        assert np.sum((model_of.coef_[-1] - side) ** 2) < 0.3 * np.sum((alone - side) ** 2)


def test_added_task_of_a_classifier():
    rng = np.random.default_rng(0)
    X, y, task, _ = draw(0.9 + 0.1 * np.eye(4), 5, 200, seed=13, noise=0.0)
    label = np.where(classes_of(X, y, rng) == 1, "yes", "no")
    model = MultiTaskSGDClassifier(alpha=0.01, random_state=0)
    model.fit(X[task < 3], label[task < 3], tasks=task[task < 3])
    unseen = model.score(X[task == 3], label[task == 3], tasks=task[task == 3])
    model.add_task(X[task == 3][:40], label[task == 3][:40], 3)
    assert model.score(X[task == 3], label[task == 3], tasks=task[task == 3]) >= unseen - 0.02
    assert model.task_classes_[3].tolist() == ["no", "yes"]


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({}, {"label": 1}, "label is 1, which is a task already"),
        ({"loss": "quantile"}, {"label": 5}, "loss is 'quantile', which has kinks"),
        ({}, {"label": 5, "form": "list"}, "fitted on the 'list' form"),
    ],
)
def test_a_task_that_cannot_be_added_is_refused(settings, arguments, words):
    X, y, task, _ = draw(np.eye(2), 3, 20, seed=14)
    model = MultiTaskSGDRegressor(**settings, tol=1e-2, max_iter=200, random_state=0)
    if arguments.pop("form", "long") == "list":
        model.fit(np.split(X, 2), np.split(y, 2))
    else:
        model.fit(X, y, tasks=task)
    with pytest.raises(ValueError, match=words):
        model.add_task(X[:4], y[:4], **arguments)


@pytest.mark.parametrize("kernel", ["linear", "rbf", "precomputed"])
@pytest.mark.parametrize("kind", ["svc", "svr", "ridge"])
def test_kernel_machines_learn_relations(kind, kernel):
    rng = np.random.default_rng(0)
    X, y, task, _ = draw(opposed(6), 15, 60, seed=15, noise=0.5)
    model = {
        "svc": MultiTaskSVC(kernel=kernel, coupling="learn"),
        "svr": MultiTaskSVR(kernel=kernel, coupling="learn"),
        "ridge": MultiTaskKernelRidge(kernel=kernel, coupling=TaskCoupling.low_rank(1)),
    }[kind]
    target = classes_of(X, y, rng) if kind == "svc" else y
    rows = linear_kernel(X) if kernel == "precomputed" else X
    model.fit(rows, target, tasks=task)
    assert agreement(model.task_correlation_, opposed(6)) > 0.9
    assert np.trace(model.task_covariance_) == pytest.approx(6.0)
    given = (
        clone(model)
        .set_params(coupling=TaskCoupling.from_factors(model.mixing_, model.kappa_))
        .fit(rows, target, tasks=task)
    )
    np.testing.assert_array_equal(given.dual_coef_, model.dual_coef_)


def test_kernel_machines_have_no_features_to_scale():
    X, y, task, _ = draw(np.eye(2), 3, 10, seed=9)
    with pytest.raises(ValueError, match=r"kernel machines take .* with rank"):
        MultiTaskSVR(coupling=TaskCoupling.learn(scale="evidence")).fit(X, y, tasks=task)
