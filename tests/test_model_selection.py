"""The pooling path and the choice of couplings, against fits made one by one."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmtl import (
    LeaveTasksOut,
    MultiTaskKernelRidge,
    MultiTaskNetworkRegressor,
    MultiTaskSGDClassifier,
    MultiTaskSGDClassifierCV,
    MultiTaskSGDRegressor,
    MultiTaskSGDRegressorCV,
    MultiTaskSVC,
    TaskCoupling,
    TaskStratifiedKFold,
    datasets,
    pooling_path,
)

EXACT = {"tol": 1e-9, "max_iter": 20_000, "random_state": 0}
CV = TaskStratifiedKFold(3)


def made(classify=False, n=25, n_tasks=6, **arguments):
    make = (
        datasets.make_multitask_classification if classify else datasets.make_multitask_regression
    )
    return make(n, 5, n_tasks, random_state=0, **arguments)


def fold_scores(model, X, y, tasks, metric, response="predict"):
    found = []
    for train, test in CV.split(X, y, tasks):
        model.fit(X[train], y[train], tasks=tasks[train])
        found.append(metric(y[test], getattr(model, response)(X[test], tasks=tasks[test])))
    return found


@pytest.mark.parametrize("kind", ["sgd", "kernel ridge", "pipeline"])
def test_points_of_the_path_are_plain_fits(kind):
    X, y, tasks = made()
    data = {"tasks": tasks}
    model = MultiTaskSGDRegressor(**EXACT)
    if kind == "kernel ridge":
        model = MultiTaskKernelRidge(kernel="linear")
    if kind == "pipeline":
        # the tasks, in a list, one matrix each
        X, y = [X[tasks == t] for t in range(6)], [y[tasks == t] for t in range(6)]
        data = {}
    path = pooling_path(model, X, y, **data, kappas=[0, 0.5, np.inf], alphas=[0.02, 0.2], cv=CV)
    if kind == "pipeline":
        X, y = np.concatenate(X), np.concatenate(y)
    assert path.kappas.tolist() == [np.inf, 0.5, 0.0]
    for a, alpha in enumerate([0.02, 0.2]):
        for k, (coupling, scale) in enumerate(
            [("independent", 1.0), (TaskCoupling.mean(0.5), 1.5), ("pooled", 1.0)]
        ):
            own = clone(model).set_params(alpha=alpha * scale, coupling=coupling)
            want = fold_scores(own, X, y, tasks, mean_squared_error)
            np.testing.assert_allclose(path.fold_scores[a, k], want, rtol=1e-6)
    assert path.task_scores.shape == (2, 3, 3, 6)
    weights = np.array(
        [[np.sum(tasks[te] == t) for t in range(6)] for _, te in CV.split(X, y, tasks)]
    )
    micro = np.sum(path.task_scores * weights, axis=3) / weights.sum(axis=1)
    np.testing.assert_allclose(micro, path.fold_scores)
    a, k = np.unravel_index(np.argmin(path.fold_scores.mean(axis=2)), (2, 3))
    assert (path.best_alpha, path.best_kappa) == (path.alphas[a], path.kappas[k])
    assert path.best_score == path.fold_scores[a, k].mean()
    best = path.best_estimator
    np.testing.assert_allclose(
        np.mean(fold_scores(best, X, y, tasks, mean_squared_error)), path.best_score, rtol=1e-6
    )


def test_path_of_classifiers_scores_their_probabilities():
    X, y, tasks = made(classify=True)
    model = MultiTaskSGDClassifier(**EXACT)
    path = pooling_path(model, X, y, tasks, kappas=[0, 1, np.inf], alphas=[0.05], cv=CV, n_jobs=2)
    want = fold_scores(model.set_params(alpha=0.1), X, y, tasks, log_loss, "predict_proba")
    np.testing.assert_allclose(path.fold_scores[0, 1], want, rtol=1e-6)
    assert path.metric == "log_loss" and not path.greater_is_better
    svm = pooling_path(MultiTaskSVC(C=2.0), X, y, tasks, kappas=[0, 1], cv=CV, average="worst")
    assert svm.metric == "accuracy" and svm.alphas.tolist() == [2.0]
    assert svm.best_params["C"] == 2.0 / (1 + svm.best_kappa)


def test_path_of_a_matrix_with_missing_labels():
    X, Y, _ = made(n=60, missing=0.3, n_tasks=3)
    path = pooling_path(
        MultiTaskSGDRegressor(**EXACT), X, Y, kappas=[1.0], alphas=[0.1], cv=KFold(3)
    )
    train, test = next(KFold(3).split(X))
    model = MultiTaskSGDRegressor(alpha=0.2, **EXACT).fit(X[train], Y[train])
    error = np.square(Y[test] - model.predict(X[test]))
    np.testing.assert_allclose(path.task_scores[0, 0, 0], np.nanmean(error, axis=0), rtol=1e-6)
    assert path.fold_scores[0, 0, 0] == pytest.approx(np.nanmean(error), rel=1e-6)


def test_path_of_networks_and_of_unseen_tasks():
    X, y, tasks = made()
    network = MultiTaskNetworkRegressor(hidden_layer_sizes=(4,), max_iter=3, random_state=0)
    path = pooling_path(network, X, y, tasks, kappas=[0, 1, np.inf], cv=2)
    assert np.isfinite(path.fold_scores).all()
    unseen = pooling_path(
        MultiTaskSGDRegressor(alpha=0.01), X, y, tasks, n_kappa=4, cv=LeaveTasksOut(3)
    )
    # independent tasks know nothing of a new one
    assert unseen.fold_scores[0, 0].mean() > 2 * unseen.best_score
    assert np.isnan(unseen.task_scores[0, 0]).sum() == 12


@pytest.mark.parametrize("kappa", [0.02, 20.0])
def test_the_kappa_of_the_truth_is_found(kappa):
    X, y, tasks = datasets.make_multitask_regression(
        20, 10, 30, kappa=kappa, noise=2.0, random_state=0
    )
    base = MultiTaskSGDRegressor(random_state=0)
    path = pooling_path(base, X, y, tasks, kappas=[0, 0.02, 1, 20, 100], alphas=[4 / 600])
    assert (path.best_kappa < 0.5) == (kappa < 1)


def test_path_as_a_frame():
    X, y, tasks = made()
    path = pooling_path(MultiTaskSGDRegressor(alpha=0.1), X, y, tasks, n_kappa=3, cv=2)
    frame = path.to_frame()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 6
    got = frame[(frame.kappa == 0) & (frame.fold == 1)].mse.item()
    assert got == path.fold_scores[0, 2, 1]
    lines = str(path).splitlines()
    assert len(lines) == 2 + 3 and sum("<- best" in line for line in lines) == 1
    assert lines[4].split()[:3] == ["0", "0.1", f"{path.fold_scores[0, 2].mean():.5g}"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_kappa": 2}, "n_kappa is 2"),
        ({"kappas": [-1.0]}, r"kappas is \[-1.0\]"),
        ({"alphas": [0.0]}, r"alphas is \[0.0\]"),
        ({"cv": 1}, "cv is 1"),
        ({"metric": "rmse"}, "metric is 'rmse'"),
        ({"average": "median"}, "average is 'median'"),
        ({"estimator": StandardScaler()}, "StandardScaler with 0 parameters called coupling"),
        (
            {"estimator": make_pipeline(StandardScaler(), MultiTaskSGDRegressor(task_column=0))},
            "counts columns after",
        ),
        ({"y": np.ones(3)}, "y has 3 entries for 150 rows"),
    ],
)
def test_bad_arguments_of_the_path_are_named(change, words):
    X, y, tasks = made()
    arguments = {"estimator": MultiTaskSGDRegressor(), "X": X, "y": y, "tasks": tasks, **change}
    with pytest.raises(ValueError, match=words):
        pooling_path(**arguments)


@pytest.mark.parametrize("classify", [False, True])
def test_cv_keeps_the_best_of_its_candidates_and_fits_it_on_all(classify):
    X, y, tasks = made(classify)
    Base = MultiTaskSGDClassifier if classify else MultiTaskSGDRegressor
    Search = MultiTaskSGDClassifierCV if classify else MultiTaskSGDRegressorCV
    graph = TaskCoupling.from_graph(np.ones((6, 6)), ridge=1.0)
    model = Search(
        Base(**EXACT),
        couplings=["independent", "pooled", "mean", graph],
        alphas=[0.05, 0.5],
        cv=CV,
        n_jobs=2,
    ).fit(X, y, tasks=tasks)
    results = model.cv_results_
    metric, response = (log_loss, "predict_proba") if classify else (mean_squared_error, "predict")
    for i in range(0, len(results["params"]), 4):
        own = Base(**EXACT, **results["params"][i])
        want = -np.array(fold_scores(own, X, y, tasks, metric, response))
        got = [results[f"split{k}_test_score"][i] for k in range(3)]
        np.testing.assert_allclose(got, want, rtol=1e-5)
    best = np.argmax(results["mean_test_score"])
    assert model.best_params_ == results["params"][best] and results["rank_test_score"][best] == 1
    assert set(results["param_coupling"]) >= {"independent", "pooled", repr(graph)}
    plain = Base(alpha=model.alpha_, coupling=model.coupling_, **EXACT).fit(X, y, tasks=tasks)
    assert np.array_equal(model.coef_, plain.coef_)
    assert np.array_equal(model.predict(X, tasks=tasks), plain.predict(X, tasks=tasks))
    assert model.score(X, y, tasks=tasks) == plain.score(X, y, tasks=tasks)
    assert np.array_equal(model.tasks_, plain.tasks_) and model.n_tasks_ == 6
    assert np.array_equal(model.intercept_, plain.intercept_)


def test_verbose_counts_the_fits_of_the_search(capfd):
    X, y, tasks = made()
    search = MultiTaskSGDRegressorCV(
        alphas=[0.1, 0.2], kappas=[1.0], couplings=["mean", "pooled", "learn"], cv=3, refine=1
    )
    quiet = search.fit(X, y, tasks=tasks)
    assert capfd.readouterr().err == ""
    loud = clone(search).set_params(verbose=1).fit(X, y, tasks=tasks)
    n_fits = 3 * len(loud.cv_results_["params"])
    assert f"{n_fits}/{n_fits}" in capfd.readouterr().err
    assert loud.best_params_ == quiet.best_params_


def test_refining_goes_on_past_the_end_of_the_grid():
    X, y, tasks = made()
    coarse = MultiTaskSGDRegressorCV(
        alphas=[10.0, 20.0], kappas=[50.0], couplings=["mean"], refine=0
    )
    fine = clone(coarse).set_params(refine=2).fit(X, y, tasks=tasks)
    assert fine.cv_results_["param_alpha"].min() < coarse.fit(X, y, tasks=tasks).alpha_
    assert fine.best_score_ > coarse.best_score_


def test_cv_of_every_form_and_of_one_task():
    X, Y, _ = made(n=60, missing=0.2, n_tasks=3)
    row, task = np.nonzero(~np.isnan(Y))
    model = MultiTaskSGDRegressorCV(alphas=[0.05, 0.5], refine=0, random_state=0)
    matrix = clone(model).fit(X, Y)
    assert matrix.predict(X).shape == Y.shape
    long = clone(model).fit(sp.csr_matrix(X[row]), Y[row, task], tasks=task)
    assert long.coef_.shape == matrix.coef_.shape
    listed = clone(model).fit(
        [X[row][task == t] for t in range(3)], [Y[row, task][task == t] for t in range(3)]
    )
    ordered = np.argsort(task, kind="stable")
    again = clone(model).fit(X[row][ordered], Y[row, task][ordered], tasks=task[ordered])
    assert np.array_equal(listed.coef_, again.coef_)
    single = clone(model).fit(X, np.nan_to_num(Y[:, 0]))
    assert single.coupling_ == "pooled" and single.predict(X).shape == (60,)


def test_cv_of_a_task_column():
    X, y, tasks = made()
    frame = pd.DataFrame(X, columns=list("abcde")).assign(school=tasks)
    base = MultiTaskSGDRegressor(task_column="school")
    search = {"alphas": [0.05, 0.5], "refine": 0, "random_state": 0}
    model = MultiTaskSGDRegressorCV(base, **search).fit(frame, y)
    assert model.n_tasks_ == 6 and model.predict(frame).shape == y.shape
    assert list(model.feature_names_in_) == list("abcde")
    plain = MultiTaskSGDRegressorCV(**search)
    assert np.array_equal(plain.fit(X, y, tasks=tasks).coef_, model.coef_)


def test_classes_absent_from_folds_are_survived():
    X, y, tasks = made(classify=True)
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=len(y))
    y[y == 2] = 0
    y[:2] = 2  # two rows of the third class: a fold of two may miss it
    model = MultiTaskSGDClassifierCV(
        alphas=[0.1], kappas=[1.0], couplings=["mean", "pooled"], refine=0, cv=4
    ).fit(X, y, tasks=tasks)
    assert model.predict_proba(X, tasks=tasks).shape == (len(y), 3)
    assert np.isfinite(model.best_score_)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"estimator": MultiTaskSGDClassifier()}, "pass a MultiTaskSGDRegressor"),
        ({"estimator": MultiTaskSGDRegressor(tol=-1)}, "tol is -1"),
        ({"couplings": "mean"}, "couplings is 'mean'"),
        ({"couplings": ["friends"]}, "coupling is 'friends'"),
        ({"kappas": [0.0]}, "kappas is"),
        ({"alphas": 0}, "alphas is 0"),
        ({"alphas": [-1.0]}, "alphas is"),
        ({"refine": -1}, "refine is -1"),
        ({"average": None}, "average is None"),
        ({"metric": "rmse"}, "metric is 'rmse'"),
    ],
)
def test_bad_settings_of_cv_are_named(change, words):
    X, y, tasks = made()
    with pytest.raises(ValueError, match=words):
        MultiTaskSGDRegressorCV(**change).fit(X, y, tasks=tasks)


SMALL = {"alphas": [0.1], "kappas": [1.0], "refine": 0, "cv": 2}
SMALL["couplings"] = ["independent", "pooled", "mean"]
WEIGHTS = "folds deal out rows, so a repeated row and a weight of 2 fall differently"
EXPECTED = dict.fromkeys(
    (
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    ),
    WEIGHTS,
)
LIST = "predict_proba is a list with one array per task, as MultiOutputClassifier's"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [MultiTaskSGDRegressorCV(**SMALL), MultiTaskSGDClassifierCV(**SMALL)],
    expected_failed_checks=lambda estimator: (
        {**EXPECTED, "check_classifier_multioutput": LIST}
        if isinstance(estimator, MultiTaskSGDClassifierCV)
        else {}
    ),
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_only_the_model_kept_warns_of_convergence():
    X, y, tasks = made()
    base = MultiTaskSGDRegressor(solver="saga", max_iter=2, tol=1e-12)
    with pytest.warns(ConvergenceWarning) as caught:
        MultiTaskSGDRegressorCV(base, alphas=2, couplings=["mean"], refine=0).fit(X, y, tasks=tasks)
    assert len(caught) == 1


def test_learned_relations_are_candidates_and_win_where_tasks_oppose_each_other():
    X, y, tasks, _ = datasets.make_multitask_regression(
        20, 10, 12, relation="negative", kappa=0.05, noise=2.0, coef=True, random_state=0
    )
    search = MultiTaskSGDRegressorCV(alphas=3, refine=0, cv=3, random_state=0)
    model = search.fit(X, y, tasks=tasks)
    assert model.coupling_.learning is not None and np.isnan(model.kappa_)
    learned = [p for p in model.cv_results_["params"] if not isinstance(p["coupling"], str)]
    learned = [p for p in learned if p["coupling"].learning is not None]
    assert len(learned) == 2  # the strength comes from the data: one candidate each
