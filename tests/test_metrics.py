"""Scores per task are scikit-learn's on that task's rows, in every form of data."""

import numpy as np
import pytest
import sklearn
from sklearn import metrics as peer
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fastmtl import (
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    TaskStratifiedKFold,
    datasets,
    make_task_scorer,
    task_scores,
)
from fastmtl.metrics import METRICS, TaskPart, score_part

PEERS = {
    "r2": peer.r2_score,
    "explained_variance": peer.explained_variance_score,
    "mse": peer.mean_squared_error,
    "mae": peer.mean_absolute_error,
    "accuracy": peer.accuracy_score,
    "roc_auc": peer.roc_auc_score,
    "log_loss": peer.log_loss,
}


def made(metric, seed=0, n=200, n_tasks=3):
    rng = np.random.default_rng(seed)
    tasks = rng.choice(list("abc")[:n_tasks], size=n)
    weight = rng.uniform(0.1, 2, size=n)
    if metric in ("roc_auc", "log_loss", "accuracy"):
        truth = rng.integers(2, size=n)
        predicted = np.clip(np.round(0.3 * truth + rng.uniform(size=n) * 0.7, 1), 0.05, 0.95)
        return truth, predicted > 0.5 if metric == "accuracy" else predicted, tasks, weight
    truth = rng.normal(size=n) + 100
    return truth, truth + rng.normal(size=n) * 0.7 + 0.2, tasks, weight


def test_every_metric_has_a_peer():
    assert set(PEERS) == set(METRICS)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metric", PEERS)
def test_scores_are_those_of_scikit_learn_on_each_task(metric, weighted):
    y, predicted, tasks, weight = made(metric)
    weight = weight if weighted else np.ones(len(y))
    want = [
        PEERS[metric](y[tasks == t], predicted[tasks == t], sample_weight=weight[tasks == t])
        for t in "abc"
    ]
    arguments = {"tasks": tasks, "metric": metric, "sample_weight": weight}
    np.testing.assert_allclose(task_scores(y, predicted, **arguments), want, rtol=1e-10)

    size = [weight[tasks == t].sum() for t in "abc"]
    worst = max(want) if metric in ("mse", "mae", "log_loss") else min(want)
    for average, value in {
        "macro": np.mean(want),
        "micro": np.average(want, weights=size),
        "worst": worst,
        "pooled": PEERS[metric](y, predicted, sample_weight=weight),
    }.items():
        got = task_scores(y, predicted, average=average, **arguments)
        assert got == pytest.approx(value, rel=1e-10), average


@pytest.mark.parametrize("metric", PEERS)
def test_weights_of_resamples_are_repeated_rows(metric):
    y, predicted, _, _ = made(metric, n=40)
    draws = np.random.default_rng(1).integers(40, size=(20, 40))
    counts = np.array([np.bincount(draw, minlength=40) for draw in draws]).astype(float)
    if metric == "log_loss":
        predicted = np.column_stack([1 - predicted, predicted])
    part = TaskPart(y, predicted, np.ones(40), np.arange(40))
    want = [PEERS[metric](y[draw], predicted[draw]) for draw in draws]
    np.testing.assert_allclose(score_part(METRICS[metric], part, counts), want, rtol=1e-9)


@pytest.mark.parametrize("metric", PEERS)
def test_the_three_forms_score_alike(metric):
    rng = np.random.default_rng(0)
    y, predicted, _, _ = made(metric, n=120)
    Y, P = y.reshape(40, 3).astype(float), predicted.reshape(40, 3).astype(float)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    has = ~np.isnan(Y)
    want = [PEERS[metric](Y[has[:, t], t], P[has[:, t], t]) for t in range(3)]
    np.testing.assert_allclose(task_scores(Y, P, metric=metric), want, rtol=1e-10)
    as_list = [Y[has[:, t], t] for t in range(3)], [P[has[:, t], t] for t in range(3)]
    np.testing.assert_allclose(task_scores(*as_list, metric=metric), want, rtol=1e-10)
    if metric in ("roc_auc", "log_loss"):
        proba = [np.column_stack([1 - P[:, t], P[:, t]]) for t in range(3)]
        np.testing.assert_allclose(task_scores(Y, proba, metric=metric), want, rtol=1e-10)


def test_matrix_of_objects_may_have_none():
    Y = np.array([["a", None], ["b", "x"], ["a", "y"]], dtype=object)
    P = np.array([["a", "x"], ["a", "x"], ["a", "y"]], dtype=object)
    assert task_scores(Y, P, metric="accuracy").tolist() == [2 / 3, 1.0]


def test_more_than_two_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    proba = rng.dirichlet(np.ones(3), size=300)
    tasks = rng.integers(2, size=300)
    for metric, function in {
        "log_loss": peer.log_loss,
        "roc_auc": lambda y, p: peer.roc_auc_score(y, p, multi_class="ovr"),
    }.items():
        got = task_scores(y, proba, tasks=tasks, metric=metric)
        want = [function(y[tasks == t], proba[tasks == t]) for t in range(2)]
        np.testing.assert_allclose(got, want)


def test_undefined_tasks_are_nan_and_left_out_of_averages():
    y, p = [0, 1, 1, 1, 0, 1], [0.2, 0.9, 0.5, 0.5, 0.6, 0.4]
    tasks = [0, 0, 1, 1, 2, 2]
    scores = task_scores(y, p, tasks=tasks, metric="roc_auc")
    np.testing.assert_array_equal(scores, [1.0, np.nan, 0.0])
    for average, want in {"macro": 0.5, "micro": 0.5, "worst": 0.0}.items():
        with pytest.warns(UndefinedMetricWarning, match=r"undefined for 1 of 3 tasks .*\[1\]"):
            assert task_scores(y, p, tasks=tasks, metric="roc_auc", average=average) == want
    assert np.isnan(task_scores([3.0, 3.0], [1.0, 2.0], metric="r2")).all()
    empty = task_scores(np.array([[1.0, np.nan], [2.0, np.nan]]), np.ones((2, 2)), metric="mse")
    np.testing.assert_array_equal(empty, [0.5, np.nan])
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(task_scores([3.0, 3.0], [1.0, 2.0], average="macro"))


def test_a_callable_metric_may_take_weights():
    y, predicted, tasks, weight = made("mae")
    for function, w in [
        (peer.median_absolute_error, weight),
        (lambda a, b: abs(a - b).max(), None),
    ]:
        want = [
            function(
                y[tasks == t],
                predicted[tasks == t],
                **({} if w is None else {"sample_weight": w[tasks == t]}),
            )
            for t in "abc"
        ]
        got = task_scores(y, predicted, tasks=tasks, metric=function, sample_weight=w)
        np.testing.assert_allclose(got, want)
    lowest = task_scores(
        y,
        predicted,
        tasks=tasks,
        metric=lambda a, b: abs(a - b).max(),
        average="worst",
        greater_is_better=False,
    )
    assert lowest == np.abs(y - predicted).max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "rmse"}, "metric is 'rmse'"),
        ({"average": "median"}, "average is 'median'"),
        ({"tasks": [0]}, "tasks has 1 labels for 2 rows"),
        ({"y_pred": [1.0]}, "y_pred has 1 rows for 2"),
        ({"sample_weight": [1.0, -1.0]}, "non-negative"),
        ({"sample_weight": [1.0]}, r"sample_weight has shape \(1,\)"),
        ({"y_true": np.ones((2, 2)), "tasks": [0, 1]}, r"y_true has shape \(2, 2\)"),
        ({"y_true": np.ones((2, 2)), "y_pred": np.ones((2, 3))}, "y_pred has 3 columns"),
        ({"y_true": [[1.0], [2.0, 3.0]], "y_pred": [1.0, 2.0]}, "sized like y_true"),
        ({"y_true": [0, 1], "y_pred": np.ones((2, 3)), "metric": "log_loss"}, "pass labels"),
    ],
)
def test_bad_arguments_are_named(change, words):
    arguments = {"y_true": [1.0, 2.0], "y_pred": [1.0, 1.0], **change}
    with pytest.raises(ValueError, match=words):
        task_scores(**arguments)


def column_data(classify=False):
    make = (
        datasets.make_multitask_classification if classify else datasets.make_multitask_regression
    )
    X, y, tasks = make(30, 4, 5, random_state=0)
    return np.column_stack([X, tasks]), y, tasks


@pytest.mark.parametrize("metric", ["r2", "mse"])
def test_scorer_of_a_task_column_needs_no_routing(metric):
    X, y, tasks = column_data()
    model = MultiTaskSGDRegressor(alpha=0.01, task_column=4, random_state=0)
    scorer = make_task_scorer(metric, average="macro")
    cv = TaskStratifiedKFold(3, task_column=4)
    got = cross_val_score(model, X, y, scoring=scorer, cv=cv)
    for (train, test), value in zip(cv.split(X, y), got):
        predicted = model.fit(X[train], y[train]).predict(X[test])
        each = [
            PEERS[metric](y[test][tasks[test] == t], predicted[tasks[test] == t]) for t in range(5)
        ]
        assert value == pytest.approx(np.mean(each) * (1 if metric == "r2" else -1))


def test_scorer_in_a_pipeline_wants_the_column_of_its_own_input():
    X, y, _ = column_data()
    last_first = FunctionTransformer(lambda X: X[:, ::-1])
    pipe = make_pipeline(last_first, MultiTaskSGDRegressor(alpha=0.01, task_column=0))
    pipe.fit(X, y)
    with pytest.raises(ValueError, match="pass make_task_scorer the column"):
        make_task_scorer("r2")(pipe, X, y)
    assert make_task_scorer("r2", task_column=4)(pipe, X, y) > 0.5


def test_scorer_takes_routed_tasks():
    X, y, tasks = datasets.make_multitask_classification(60, 4, 5, random_state=0)
    with sklearn.config_context(enable_metadata_routing=True):
        model = MultiTaskSGDClassifier(random_state=0).set_fit_request(tasks=True)
        scorer = make_task_scorer("roc_auc", average="worst").set_score_request(tasks=True)
        grid = GridSearchCV(
            model, {"alpha": [1e-3, 1e-1]}, scoring=scorer, cv=TaskStratifiedKFold(3)
        )
        grid.fit(X, y, tasks=tasks, groups=tasks)
    train, test = next(TaskStratifiedKFold(3).split(X, y, tasks))
    fold = MultiTaskSGDClassifier(alpha=1e-3, random_state=0)
    fold.fit(X[train], y[train], tasks=tasks[train])
    scores = fold.decision_function(X[test], tasks=tasks[test])
    each = [
        peer.roc_auc_score(y[test][tasks[test] == t], scores[tasks[test] == t]) for t in range(5)
    ]
    assert grid.cv_results_["split0_test_score"][0] == pytest.approx(min(each))


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "log_loss"])
def test_scorer_of_a_matrix_with_missing_labels(metric):
    X, Y, _ = datasets.make_multitask_classification(80, 4, 3, missing=0.2, random_state=0)
    model = MultiTaskSGDClassifier(alpha=0.01, random_state=0)
    scorer = make_task_scorer(metric)
    got = cross_val_score(model, X, Y, scoring=scorer, cv=KFold(2))
    model.fit(X[40:], Y[40:])
    predicted = (
        model.predict(X) if metric == "accuracy" else [p[:, 1] for p in model.predict_proba(X)]
    )
    predicted = np.asarray(predicted).reshape(3, 80).T if metric != "accuracy" else predicted
    has = ~np.isnan(Y[:40])
    each = [PEERS[metric](Y[:40][has[:, t], t], predicted[:40][has[:, t], t]) for t in range(3)]
    assert got[0] == pytest.approx(np.mean(each) * (-1 if metric == "log_loss" else 1), rel=1e-9)


def test_a_scorer_needs_an_average():
    with pytest.raises(ValueError, match="average is None"):
        make_task_scorer("r2", average=None)
