"""Transfer reports against scores and intervals computed another way."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import log_loss, mean_squared_error, r2_score, roc_auc_score
from sklearn.model_selection import ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmtl import (
    MultiTaskKernelRidge,
    MultiTaskNetworkRegressor,
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    MultiTaskSGDRegressorCV,
    MultiTaskSVC,
    TaskStratifiedKFold,
    datasets,
    transfer_report,
)

CV = TaskStratifiedKFold(3)
BASE = MultiTaskSGDRegressor(alpha=0.1, random_state=0)


def made(kind="regression", n=30, n_tasks=5, **arguments):
    make = getattr(datasets, f"make_multitask_{kind}")
    return make(n, 6, n_tasks, random_state=0, **arguments)


def left_out(model, X, y, tasks, response="predict"):
    found = [None] * len(y)
    for train, test in CV.split(X, y, tasks):
        model.fit(X[train], y[train], tasks=tasks[train])
        for i, value in zip(test, getattr(model, response)(X[test], tasks=tasks[test])):
            found[i] = value
    return np.array(found)


@pytest.mark.parametrize("metric", ["mse", "r2"])
def test_scores_and_gains_are_of_predictions_left_out(metric):
    X, y, tasks = made()
    report = transfer_report(BASE, X, y, tasks, cv=CV, metric=metric, n_jobs=2)
    function, sign = (mean_squared_error, -1) if metric == "mse" else (r2_score, 1)
    for name, coupling in {
        "model": "mean",
        "independent": "independent",
        "pooled": "pooled",
    }.items():
        model = MultiTaskSGDRegressor(alpha=0.1, coupling=coupling, random_state=0)
        predicted = left_out(model, X, y, tasks)
        want = [function(y[tasks == t], predicted[tasks == t]) for t in range(5)]
        np.testing.assert_allclose(report.scores[name], want, rtol=1e-9)
        average = report.averages[name]
        assert average["macro"] == pytest.approx(np.mean(want))
        assert average["worst"] == pytest.approx(max(want) if metric == "mse" else min(want))
    for name in ("independent", "pooled"):
        gain = sign * (report.scores["model"] - report.scores[name])
        np.testing.assert_allclose(report.gain[name], gain)
        assert report.mean_gain[name][0] == pytest.approx(gain.mean())
        assert (report.interval[name][:, 0] <= gain).all()
        assert (report.interval[name][:, 1] >= gain).all()
    assert report.n_labels.tolist() == [30] * 5


def test_intervals_are_those_of_scipy():
    X, y, tasks = made(n=150, n_tasks=3)
    report = transfer_report(BASE, X, y, tasks, cv=CV, n_resamples=5000)
    errors = {}
    for coupling in ("mean", "independent"):
        model = MultiTaskSGDRegressor(alpha=0.1, coupling=coupling, random_state=0)
        errors[coupling] = (y - left_out(model, X, y, tasks)) ** 2
    difference = errors["independent"] - errors["mean"]
    for t in range(3):
        own = difference[tasks == t]
        peer = stats.bootstrap(
            (own,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        got, width = report.interval["independent"][t], peer.high - peer.low
        # the quantiles of 5000 resamples scatter by about 2 % of the width
        np.testing.assert_allclose(got, peer, atol=0.06 * width)
        t_interval = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
        np.testing.assert_allclose(got, t_interval, atol=0.15 * width)
    mean = [difference[tasks == t].mean() for t in range(3)]
    error = np.sqrt(sum(stats.sem(difference[tasks == t]) ** 2 for t in range(3))) / 3
    wide = np.mean(mean) + 1.96 * error * np.array([-1, 1])
    np.testing.assert_allclose(report.mean_gain["independent"][1:], wide, atol=0.3 * error)


def test_a_task_of_the_opposite_sign_is_found_hurt():
    X, y, tasks = made(n=60, kappa=0.02, noise=3.0, n_tasks=8)
    y[tasks == 3] *= -1
    model = MultiTaskSGDRegressor(alpha=0.02, coupling="pooled", random_state=0)
    report = transfer_report(model, X, y, tasks, cv=CV)
    assert 3 in report.hurt and np.argmin(report.gain["independent"]) == 3
    assert report.hurt_by("pooled") == [] == report.helped_over("pooled")
    assert np.array_equal(report.gain["pooled"], np.zeros(8))
    text = str(report)
    assert "Transfer of MultiTaskSGDRegressor over 8 tasks: mse" in text
    assert f"hurt {len(report.hurt)} (by chance alone about 0.2 each)" in text
    assert f"hurt most: 3 ({report.gain['independent'][3]:+.3g})" in text
    rows = [line.split() for line in text.splitlines()]
    worst = next(row for row in rows if row[:2] == ["worst", "task"])
    assert float(worst[2]) == pytest.approx(max(report.scores["model"]), rel=1e-4)


def test_frame_has_a_line_per_task():
    X, y, tasks = made()
    names = np.array(list("edcba"))[tasks]
    report = transfer_report(BASE, X, y, names, cv=CV)
    frame = report.to_frame()
    assert isinstance(frame, pd.DataFrame) and frame.index.tolist() == list("abcde")
    np.testing.assert_array_equal(frame.gain_over_pooled, report.gain["pooled"])
    np.testing.assert_array_equal(frame.low_over_independent, report.interval["independent"][:, 0])


@pytest.mark.parametrize("metric", [None, "roc_auc", "accuracy"])
def test_classifiers(metric):
    X, y, tasks = made("classification")
    model = MultiTaskSGDClassifier(alpha=0.05, random_state=0)
    report = transfer_report(model, X, y, tasks, cv=CV, metric=metric, n_resamples=50)
    response = "predict" if metric == "accuracy" else "predict_proba"
    predicted = left_out(model, X, y, tasks, response)
    function = {
        None: log_loss,
        "roc_auc": lambda y, p: roc_auc_score(y, p[:, 1]),
        "accuracy": lambda y, p: np.mean(y == p),
    }[metric]
    want = [function(y[tasks == t], predicted[tasks == t]) for t in range(5)]
    np.testing.assert_allclose(report.scores["model"], want)


def test_kernel_machines_networks_and_pipelines():
    X, y, tasks = made()
    small = {"cv": 2, "n_resamples": 20}
    network = MultiTaskNetworkRegressor(hidden_layer_sizes=(4,), max_iter=3, random_state=0)
    for model in (MultiTaskKernelRidge(kernel="linear"), network):
        report = transfer_report(model, X, y, tasks, **small)
        assert np.isfinite(list(report.scores.values())).all()
        assert not np.array_equal(report.scores["model"], report.scores["independent"])
    ridge = transfer_report(MultiTaskKernelRidge(kernel="linear", alpha=5.0), X, y, tasks, cv=CV)
    own = left_out(
        MultiTaskKernelRidge(kernel="linear", alpha=5.0, coupling="independent"), X, y, tasks
    )
    want = [mean_squared_error(y[tasks == t], own[tasks == t]) for t in range(5)]
    np.testing.assert_allclose(ridge.scores["independent"], want)
    svm = transfer_report(MultiTaskSVC(), X, (y > 0).astype(int), tasks, **small)
    assert svm.metric == "accuracy"
    single = transfer_report(make_pipeline(StandardScaler(), BASE), X, y, **small)
    assert single.tasks.tolist() == [0]


def test_a_search_sets_its_candidates():
    X, y, tasks = made()
    search = MultiTaskSGDRegressorCV(
        alphas=[0.1], kappas=[0.3], couplings=["mean"], refine=0, cv=2, random_state=0
    )
    report = transfer_report(search, X, y, tasks, cv=CV)
    own = left_out(
        MultiTaskSGDRegressor(alpha=0.1, coupling="independent", random_state=0), X, y, tasks
    )
    want = [mean_squared_error(y[tasks == t], own[tasks == t]) for t in range(5)]
    np.testing.assert_allclose(report.scores["independent"], want)


def test_matrix_with_missing_labels_and_a_task_without_a_score():
    X, Y, _ = made("classification", n=60, n_tasks=3, missing=0.3)
    has = ~np.isnan(Y)
    model = MultiTaskSGDClassifier(alpha=0.05, random_state=0)
    report = transfer_report(model, X, Y, cv=3, metric="roc_auc", n_resamples=20)
    assert report.n_labels.tolist() == has.sum(axis=0).tolist()
    X, y, tasks = made("classification")
    y[tasks == 2] = 1
    report = transfer_report(model, X, y, tasks, cv=3, metric="roc_auc", n_resamples=20)
    assert np.isnan(report.gain["pooled"]).tolist() == [False, False, True, False, False]
    assert (
        np.isnan(report.interval["pooled"][2]).all()
        and np.isfinite(report.mean_gain["pooled"]).all()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"n_resamples": 3}, "n_resamples is 3"),
        ({"metric": "rmse"}, "metric is 'rmse'"),
        ({"cv": ShuffleSplit(4, random_state=0, test_size=0.5)}, "more than once"),
        ({"estimator": StandardScaler()}, "0 parameters called coupling"),
    ],
)
def test_bad_arguments_are_named(change, words):
    X, y, tasks = made()
    with pytest.raises(ValueError, match=words):
        transfer_report(**{"estimator": BASE, "X": X, "y": y, "tasks": tasks, **change})
