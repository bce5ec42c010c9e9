"""Nyström features of sigmoid kernels, and the linear engine on them."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmtl import (
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    SigmoidNystroem,
    make_kernel_sgd,
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(600, 4))
    tasks = rng.integers(0, 5, 600)
    y = (X**2).sum(axis=1) + 0.3 * tasks < 4
    return X, tasks, y


def logistic_gram(X, sigma, c):
    return 1 / (1 + np.exp(-sigma * (X @ X.T + c)))


EXPECTED_FAILURES = {
    "check_classifier_multioutput": "classes_ is a list for Y (n, n_tasks)",
    "check_sample_weight_equivalence_on_dense_data": "landmarks are drawn by row",
    "check_sample_weight_equivalence_on_sparse_data": "landmarks are drawn by row",
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        SigmoidNystroem(5, sigma=0.1),
        make_kernel_sgd(feature_map=SigmoidNystroem(20), random_state=0),
    ],
    expected_failed_checks=lambda estimator: (
        {} if isinstance(estimator, SigmoidNystroem) else EXPECTED_FAILURES
    ),
)
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def test_all_rows_as_landmarks_give_the_kernel_s_positive_part(data):
    X = data[0][:80]
    gram = logistic_gram(X, 0.5, -1.0)
    values, vectors = np.linalg.eigh(gram)
    assert values[0] < -0.01
    for how, repaired in [("clip", np.maximum(values, 0)), ("flip", np.abs(values))]:
        features = SigmoidNystroem(80, sigma=0.5, c=-1.0, indefinite=how).fit_transform(X)
        np.testing.assert_allclose(
            features @ features.T, (vectors * repaired) @ vectors.T, atol=1e-8
        )


@pytest.mark.parametrize("landmarks", ["uniform", "kmeans", "leverage"])
def test_error_falls_with_the_number_of_landmarks(data, landmarks):
    X = data[0]
    gram = logistic_gram(X, 0.1, 0.0)
    errors = []
    for m in [5, 20, 80]:
        features = SigmoidNystroem(m, sigma=0.1, landmarks=landmarks, random_state=0)
        mapped = features.fit_transform(X)
        errors.append(np.linalg.norm(mapped @ mapped.T - gram) / np.linalg.norm(gram))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.005


def test_rbf_map_spans_what_scikit_learns_does_from_the_same_landmarks(data):
    X = data[0]
    ours = SigmoidNystroem(40, kernel="rbf", gamma=0.2, random_state=1).fit(X)
    K_xz = rbf_kernel(X, ours.components_, gamma=0.2)
    K_zz = rbf_kernel(ours.components_, gamma=0.2)
    mapped = ours.transform(X)
    np.testing.assert_allclose(mapped @ mapped.T, K_xz @ np.linalg.solve(K_zz, K_xz.T), atol=1e-6)
    theirs = Nystroem(gamma=0.2, n_components=40, random_state=1).fit_transform(X)
    exact = rbf_kernel(X, gamma=0.2)
    error = np.linalg.norm(mapped @ mapped.T - exact)
    assert error < 1.5 * np.linalg.norm(theirs @ theirs.T - exact)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_many_landmarks_and_rows_give_the_projection_onto_the_kept_part(dtype):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(2500, 6))
    ours = SigmoidNystroem(250, sigma=0.5, c=-1.0, random_state=1).fit(X.astype(dtype))
    Z = ours.components_.astype(np.float64)
    values, vectors = np.linalg.eigh(1 / (1 + np.exp(-0.5 * (Z @ Z.T - 1.0))))
    width = ours.normalization_.shape[1]
    assert 96 < width < 250
    assert not np.triu(ours.normalization_, 1).any()
    inverse = (vectors[:, -width:] / values[-width:]) @ vectors[:, -width:].T
    K_xz = 1 / (1 + np.exp(-0.5 * (X[2000:] @ Z.T - 1.0)))
    mapped = ours.transform(X.astype(dtype))
    assert mapped.dtype == dtype
    atol = 1e-7 if dtype == np.float64 else 2e-2
    np.testing.assert_allclose(mapped[2000:] @ mapped[2000:].T, K_xz @ inverse @ K_xz.T, atol=atol)


def test_dtype_layout_and_sparsity(data):
    X = data[0]
    plain = SigmoidNystroem(30, sigma=0.1, random_state=2)
    expected = plain.fit_transform(X)
    gram = expected @ expected.T
    for other in [sp.csr_matrix(X), np.asfortranarray(X), X.astype(">f8")]:
        got = plain.fit_transform(other)
        np.testing.assert_allclose(got @ got.T, gram, atol=1e-9)
    single = plain.fit_transform(X.astype(np.float32))
    assert single.dtype == np.float32
    # float32 leaves out more of the smallest eigenvalues, which outliers need.
    exact = logistic_gram(X, 0.1, 0.0)
    error = np.linalg.norm(gram - exact)
    assert np.linalg.norm(single @ single.T - exact) < 1.5 * error + 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "n_components is 0"),
        ({"kernel": "poly"}, "kernel is 'poly'"),
        ({"landmarks": "all"}, "landmarks is 'all'"),
        ({"indefinite": "smo"}, "indefinite is 'smo'"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"kernel": "tanh", "gamma": 1e-30, "coef0": -1.0}, "no positive eigenvalue"),
    ],
)
def test_bad_settings_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        SigmoidNystroem(**({"n_components": 10} | settings)).fit(data[0])


def test_kernel_sgd_is_the_model_on_the_features(data):
    X, tasks, y = data
    feature_map = SigmoidNystroem(50, kernel="rbf", random_state=0)
    model = MultiTaskSGDClassifier(random_state=0)
    machine = make_kernel_sgd(model, feature_map=feature_map).fit(X, y, tasks=tasks)
    features = feature_map.fit_transform(X)
    expected = model.fit(features, y, tasks=tasks)
    np.testing.assert_array_equal(
        machine.decision_function(X, tasks=tasks),
        expected.decision_function(features, tasks=tasks),
    )
    assert machine.score(X, y, tasks=tasks) > 0.85
    linear = MultiTaskSGDClassifier(random_state=0).fit(X, y, tasks=tasks)
    assert machine.score(X, y, tasks=tasks) > linear.score(X, y, tasks=tasks) + 0.15


def test_every_form_and_a_task_column(data):
    X, tasks, y = data
    settings = {"feature_map": SigmoidNystroem(30, random_state=0), "random_state": 0}
    model = MultiTaskSGDClassifier()
    long = make_kernel_sgd(model, **settings).fit(X, y, tasks=tasks)
    column = make_kernel_sgd(model, task_column=-1, **settings)
    column.fit(np.column_stack([X, tasks]), y)
    np.testing.assert_array_equal(
        column.decision_function(np.column_stack([X, tasks])),
        long.decision_function(X, tasks=tasks),
    )
    proba = column.predict_proba(np.column_stack([X, tasks]))
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    parts = [X[tasks == t] for t in range(5)]
    listed = make_kernel_sgd(model, **settings).fit(parts, [y[tasks == t] for t in range(5)])
    assert [len(p) for p in listed.predict(parts)] == [len(p) for p in parts]
    Y = np.column_stack([y, ~y])
    matrix = make_kernel_sgd(model, **settings).fit(X, Y)
    assert matrix.predict(X).shape == Y.shape
    assert [p.shape for p in matrix.predict_proba(X)] == [(600, 2)] * 2


@pytest.mark.parametrize("form", ["long", "list", "matrix"])
def test_blocks_reach_the_score_of_the_whole(data, form):
    X, tasks, y = data
    settings = {
        "feature_map": SigmoidNystroem(50, kernel="rbf", random_state=0),
        "n_passes": 30,
        "random_state": 0,
    }
    model = MultiTaskSGDClassifier(alpha=1e-3)
    keywords = {"tasks": tasks} if form == "long" else {}
    asked = dict(keywords)
    data_ = (X, y)
    if form == "list":
        data_ = [X[tasks == t] for t in range(5)], [y[tasks == t] for t in range(5)]
    elif form == "matrix":
        data_ = (X, np.column_stack([y, ~y]))
    whole = make_kernel_sgd(model, **settings).fit(*data_, **keywords)
    blocks = make_kernel_sgd(model, cache_size=0.05, **settings).fit(*data_, **keywords)
    if form == "list":  # the blocks' model is fitted in long form
        asked = {"tasks": np.sort(tasks)}
        data_ = np.concatenate(data_[0]), np.concatenate(data_[1])
        assert list(blocks.tasks_) == list(whole.tasks_)
    assert blocks.score(*data_, **asked) > 0.85
    small = blocks.decision_function(data_[0], **asked)
    large = blocks.set_params(cache_size=1000).decision_function(data_[0], **asked)
    np.testing.assert_allclose(small, large, atol=1e-12)


def test_regression_and_refusals(data):
    X, tasks, _ = data
    target = np.cos(X[:, 0]) + tasks
    machine = make_kernel_sgd(
        MultiTaskSGDRegressor(), feature_map=SigmoidNystroem(60, kernel="rbf"), random_state=0
    )
    assert machine.fit(X, target, tasks=tasks).score(X, target, tasks=tasks) > 0.8
    assert not hasattr(machine, "decision_function")
    with pytest.raises(ValueError, match="cache_size is 0"):
        make_kernel_sgd(cache_size=0).fit(X, target)


def test_blocks_take_missing_labels(data):
    X, _, y = data
    Y = np.column_stack([y, ~y, X[:, 0] > 0]).astype(float)
    rng = np.random.default_rng(0)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    Y[:, 2][rng.permutation(600)[:590]] = np.nan  # most blocks have no label of this task
    machine = make_kernel_sgd(
        MultiTaskSGDClassifier(alpha=1e-3),
        feature_map=SigmoidNystroem(50, kernel="rbf", random_state=0),
        n_passes=30,
        cache_size=0.05,
        random_state=0,
    )
    truth = np.column_stack([y, ~y])
    assert (machine.fit(X, Y).predict(X)[:, :2] == truth).mean() > 0.85
    as_objects = np.where(np.isnan(Y), None, Y.astype(object))
    again = machine.fit(X, as_objects).predict(X)
    assert (again[:, :2].astype(bool) == truth).mean() > 0.85
    empty = Y.copy()
    empty[:, 1] = np.nan
    with pytest.raises(ValueError, match="no label at all for task 1"):
        machine.fit(X, empty)
