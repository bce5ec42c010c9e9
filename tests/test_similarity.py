"""task_similarity: each method equals its definition, and finds which tasks are alike."""

import numpy as np
import pytest

from fastmtl import (
    MultiTaskKernelRidge,
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    rbf_kernel,
    sigmoid_kernel,
    task_similarity,
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(2, 4))[[0, 0, 1]] + 0.1 * rng.normal(size=(3, 4))
    task = np.repeat(["a", "b", "c"], [40, 60, 50])
    X = rng.normal(size=(150, 4))
    y = np.einsum("ij,ij->i", X, W[np.unique(task, return_inverse=True)[1]])
    return X, y + 0.1 * rng.normal(size=150), task


def cosine(inner):
    length = np.sqrt(np.diag(inner))
    return inner / np.outer(length, length)


def test_parameters_predictions_and_functions_of_a_linear_model(data):
    X, y, task = data
    model = MultiTaskSGDRegressor(coupling="independent", random_state=0).fit(X, y, tasks=task)
    found = task_similarity(model)
    np.testing.assert_allclose(found.matrix, cosine(model.coef_ @ model.coef_.T), atol=1e-12)
    assert found.labels.tolist() == ["a", "b", "c"]
    assert found.matrix[0, 1] > 0.9 > found.matrix[0, 2]
    by_prediction = task_similarity(model, method="predictions", X=X).matrix
    scores = X @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(by_prediction, np.corrcoef(scores.T), atol=1e-10)
    by_function = task_similarity(model, method="functions", X=X).matrix
    np.testing.assert_allclose(
        by_function, cosine((X @ model.coef_.T).T @ (X @ model.coef_.T)), atol=1e-10
    )
    frame = found.to_frame()
    assert frame.loc["a", "b"] == found.matrix[0, 1]


@pytest.mark.parametrize("coupling", ["mean", "independent"])
def test_functions_of_a_kernel_machine_are_inner_products_of_expansions(data, coupling):
    X, y, task = data
    model = MultiTaskKernelRidge(kernel="rbf", gamma=0.3, coupling=coupling).fit(X, y, tasks=task)
    beta = np.zeros((3, 150))
    C = model.task_covariance_
    codes = np.unique(task, return_inverse=True)[1]
    for t in range(3):
        beta[t, model.support_] = C[t, codes[model.support_]] * model.dual_coef_.ravel()
    want = cosine(beta @ rbf_kernel(X, gamma=0.3) @ beta.T)
    np.testing.assert_allclose(task_similarity(model).matrix, want, atol=1e-10)


@pytest.mark.parametrize("kernel", ["rbf", "sigmoid"])
@pytest.mark.parametrize("form", ["long", "list"])
def test_data_are_compared_by_kernel_mean_embeddings(data, kernel, form):
    X, y, task = data
    X = X + np.where(task == "c", 1.0, 0.0)[:, None]
    if kernel == "rbf":
        gram = rbf_kernel(X, gamma=0.2)
    else:
        gram = sigmoid_kernel(X, sigma=0.2, c=1.0)
    own = (task[:, None] == np.array(["a", "b", "c"])) / [40, 60, 50]
    arguments = (X,) if form == "long" else ([X[task == t] for t in "abc"],)
    settings = {"tasks": task} if form == "long" else {}
    found = task_similarity(*arguments, **settings, kernel=kernel, gamma=0.2, c=1.0)
    np.testing.assert_allclose(found.matrix, cosine(own.T @ gram @ own), atol=1e-10)
    with_target = task_similarity(X, y, task, kernel=kernel, gamma=0.2, c=1.0).matrix
    assert not np.allclose(with_target, found.matrix, atol=1e-3)


def test_classifier_in_the_matrix_form(data):
    X, y, _ = data
    Y = np.column_stack([y > 0, y > 0.1, y < 0]).astype(float)
    model = MultiTaskSGDClassifier(random_state=0).fit(X, Y)
    found = task_similarity(model, method="predictions", X=X).matrix
    np.testing.assert_allclose(found, np.corrcoef(model.decision_function(X).T), atol=1e-10)
    assert found[0, 1] > 0.9 and found[0, 2] < -0.9


def test_a_task_without_a_vector_is_like_no_other():
    X = np.eye(4)
    model = MultiTaskSGDRegressor(coupling="independent", fit_intercept=False, random_state=0)
    model.fit(X, [1.0, 1.0, 0.0, 0.0], tasks=[0, 0, 1, 1])
    np.testing.assert_array_equal(task_similarity(model).matrix, np.eye(2))


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (("model",), {"method": "colour"}, "method is 'colour'"),
        (("model",), {"method": "predictions"}, "X is missing"),
        (("model",), {"method": "data"}, "compares rows X with tasks="),
        (("rows",), {"method": "parameters"}, "compares a fitted model"),
        (("rows",), {}, "tasks is missing"),
        (("rows",), {"tasks": [0, 1], "kernel": "cosine"}, "kernel is 'cosine'"),
        (("rows", [1.0]), {"tasks": [0, 1]}, "y has 1 entries for 2 rows"),
    ],
)
def test_what_is_missing_is_said(data, arguments, settings, words):
    X, y, task = data
    model = MultiTaskSGDRegressor(max_iter=2, tol=None).fit(X, y, tasks=task)
    source = model if arguments[0] == "model" else np.eye(2)
    with pytest.raises(ValueError, match=words):
        task_similarity(source, *arguments[1:], **settings)


def test_a_task_of_a_constant_target_is_like_no_other():
    X = np.random.default_rng(0).normal(size=(80, 3))
    tasks = np.repeat(np.arange(4), 20)
    y = np.where(tasks == 2, 3.0, X[:, 0])
    model = MultiTaskSGDRegressor(coupling="independent").fit(X, y, tasks=tasks)
    want = np.ones((4, 4))
    want[2], want[:, 2], want[2, 2] = 0, 0, 1
    for method in ("parameters", "predictions", "functions"):
        given = None if method == "parameters" else X
        matrix = task_similarity(model, method=method, X=given).matrix
        np.testing.assert_allclose(matrix, want, atol=1e-6)
