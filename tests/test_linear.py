"""The linear models against closed forms, peers, and their own promises."""

import signal
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from closed_form import coupled_ridge
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling, datasets

EXACT = {"solver": "saga", "tol": 1e-12, "max_iter": 50_000, "random_state": 0}
COVARIANCE = np.array([[2.0, 1.0, -0.5], [1.0, 1.5, 0.0], [-0.5, 0.0, 1.0]])
COUPLINGS = {
    "mean": "mean",
    "mean 0.1": TaskCoupling.mean(kappa=0.1),
    "independent": "independent",
    "pooled": "pooled",
    "covariance": TaskCoupling.from_covariance(COVARIANCE),
    "singular covariance": TaskCoupling.from_covariance(np.ones((3, 3)) + np.diag([1.0, 0, 0])),
    "precision": TaskCoupling.from_precision(np.linalg.inv(COVARIANCE)),
    "graph": TaskCoupling.from_graph([[0, 1, 0], [1, 0, 2], [0, 2, 0]], ridge=0.5),
}


def regression(seed=0, n=150, d=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    task = rng.integers(3, size=n)
    X = rng.normal(size=(n, d)).astype(dtype)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(3, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + task + rng.normal(size=n) + 5
    return X, y, task


def classification(seed=0, n=300, d=4, n_classes=2):
    rng = np.random.default_rng(seed)
    task = rng.integers(3, size=n)
    X = rng.normal(size=(n, d))
    weights = rng.normal(size=(d, n_classes)) + 0.5 * rng.normal(size=(3, d, n_classes))
    scores = np.einsum("ij,ijk->ik", X, weights[task]) + 0.5 * rng.normal(size=(n, n_classes))
    return X, scores.argmax(axis=1), task


@pytest.mark.parametrize("solver", ["cholesky", "saga"])
@pytest.mark.parametrize("task_intercept", ["coupled", "free", "shared"])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_fit_is_the_closed_form_of_the_coupled_system(coupling, task_intercept, sparse, solver):
    X, y, task = regression()
    if sparse:
        X[np.abs(X) < 0.4] = 0.0
    model = MultiTaskSGDRegressor(
        **{**EXACT, "solver": solver},
        alpha=0.05,
        coupling=COUPLINGS[coupling],
        task_intercept=task_intercept,
    )
    model.fit(sp.csr_matrix(X) if sparse else X, y, tasks=task)
    kind = task_intercept
    if coupling == "independent" and kind == "coupled":
        kind = "free"
    coef, intercept = coupled_ridge(X, y, task, model.mixing_, model.kappa_, 0.05, kind)
    np.testing.assert_allclose(model.coef_, coef, rtol=0, atol=1e-7 * np.abs(coef).max())
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-7)
    rebuilt = model.mixing_ @ model.shared_coef_ + model.task_coef_
    np.testing.assert_allclose(rebuilt, model.coef_, atol=1e-12)


def test_penalty_of_a_precision_is_half_the_sum_of_its_inner_products():
    X, y, task = regression()
    K, alpha = np.linalg.inv(COVARIANCE), 0.05
    coupling = TaskCoupling.from_precision(K)
    model = MultiTaskSGDRegressor(alpha=alpha, coupling=coupling, fit_intercept=False, **EXACT)
    model.fit(X, y, tasks=task)
    # Setting the gradient of (1/n) Σ ½(y − x·w_t)² + ½ alpha Σ K_ij w_i·w_j to zero.
    own = task[:, None] == np.arange(3)
    design = (own[:, :, None] * X[:, None, :]).reshape(len(y), -1)
    penalty = alpha * np.kron(K, np.eye(X.shape[1]))
    truth = np.linalg.solve(design.T @ design / len(y) + penalty, design.T @ y / len(y))
    np.testing.assert_allclose(model.coef_.ravel(), truth, atol=1e-9)


def test_evgeniou_and_pontil_identity():
    # λ₀‖w₀‖² + λ₁Σ‖v_t‖² minimised over w₀ equals ½ ΣK_ij w_i·w_j with this K.
    shared, own, n_tasks = 0.7, 0.3, 4
    K = 2 * own * (np.eye(n_tasks) - own / (shared + n_tasks * own))
    covariance = TaskCoupling.mean(kappa=shared / own).covariance(n_tasks) / (2 * shared)
    np.testing.assert_allclose(np.linalg.inv(K), covariance, atol=1e-12)


def test_independent_is_one_plain_model_per_task_and_pooled_one_for_all():
    X, y, task = regression()
    independent = MultiTaskSGDRegressor(alpha=0.02, coupling="independent", **EXACT)
    independent.fit(X, y, tasks=task)
    for t in range(3):
        own = task == t
        # scikit-learn's Ridge penalises the summed squared error: alpha n, whatever the task.
        peer = Ridge(alpha=0.02 * len(y)).fit(X[own], y[own])
        np.testing.assert_allclose(independent.coef_[t], peer.coef_, rtol=1e-7)
    pooled = MultiTaskSGDRegressor(alpha=0.02, coupling="pooled", task_intercept="shared", **EXACT)
    pooled.fit(X, y, tasks=task)
    peer = Ridge(alpha=0.02 * len(y)).fit(X, y)
    np.testing.assert_allclose(pooled.coef_, np.tile(peer.coef_, (3, 1)), rtol=1e-7)
    np.testing.assert_allclose(pooled.intercept_, peer.intercept_, rtol=1e-7)


def easy_adapt(X, task, kappa):
    """Features once for all and once per task (Daumé, 2007), scaled by the coupling."""
    own = [np.where((task == t)[:, None], np.sqrt(kappa) * X, 0.0) for t in np.unique(task)]
    return np.hstack([X, *own])


@pytest.mark.parametrize(
    ("loss", "peer", "scale"),
    [
        ("log_loss", lambda C: LogisticRegression(C=C, fit_intercept=False, tol=1e-10), 1.0),
        # liblinear's squared hinge has no factor 1/2 either
        (
            "squared_hinge",
            lambda C: LinearSVC(C=C, fit_intercept=False, tol=1e-10, max_iter=100_000),
            1.0,
        ),
    ],
)
def test_mean_coupling_is_a_plain_classifier_on_easy_adapt_features(loss, peer, scale):
    X, y, task = classification()
    alpha, kappa = 0.02, 0.3
    model = MultiTaskSGDClassifier(
        loss=loss, alpha=alpha, coupling=TaskCoupling.mean(kappa), fit_intercept=False, **EXACT
    ).fit(X, y, tasks=task)
    fitted = peer(scale / (alpha * len(y))).fit(easy_adapt(X, task, kappa), y)
    want = fitted.decision_function(easy_adapt(X, task, kappa))
    np.testing.assert_allclose(
        model.decision_function(X, tasks=task), want, atol=1e-6 * np.abs(want).max()
    )


@pytest.mark.parametrize("coupling", ["independent", "pooled"])
def test_softmax_is_multinomial_logistic_regression(coupling):
    X, y, task = classification(n_classes=3)
    alpha = 0.05
    model = MultiTaskSGDClassifier(
        alpha=alpha,
        coupling=coupling,
        task_intercept="free" if coupling == "independent" else "shared",
        **EXACT,
    ).fit(X, y, tasks=task)
    groups = [task == t for t in range(3)] if coupling == "independent" else [task >= 0]
    for own in groups:
        peer = LogisticRegression(C=1 / (alpha * len(y)), tol=1e-10, max_iter=1000)
        peer.fit(X[own], y[own])
        np.testing.assert_allclose(
            model.predict_proba(X[own], tasks=task[own]), peer.predict_proba(X[own]), atol=1e-6
        )


def test_tasks_with_different_classes_share_those_in_common():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    task = np.repeat([0, 1], 200)
    y = np.where(task == 0, X[:, 0] > 0, np.digitize(X[:, 1], [-0.5, 0.5]) + 1)
    model = MultiTaskSGDClassifier(alpha=1e-3, random_state=0).fit(X, y, tasks=task)
    assert [own.tolist() for own in model.task_classes_] == [[0, 1], [1, 2, 3]]
    proba = model.predict_proba(X, tasks=task)
    assert proba.shape == (400, 4)
    assert np.all(proba[task == 0, 2:] == 0) and np.all(proba[task == 1, 0] == 0)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    assert model.score(X, y, tasks=task) > 0.9
    assert model.shared_coef_.shape == (1, 4, 3)
    assert [w.shape for w in model.coef_] == [(2, 3), (3, 3)]


def test_a_one_class_task_leans_on_the_shared_part():
    X, y, task = classification()
    y[task == 1] = 1
    model = MultiTaskSGDClassifier(alpha=0.01, random_state=0).fit(X, y, tasks=task)
    cosine = model.coef_[1] @ model.shared_coef_[0]
    cosine /= np.linalg.norm(model.coef_[1]) * np.linalg.norm(model.shared_coef_[0])
    assert cosine > 0.7
    assert np.mean(model.predict(X[task == 1], tasks=task[task == 1]) == 1) > 0.9


def forms(X, Y):
    """The same data in the three forms: Y (n, T) with NaN for a missing label."""
    row, task = np.nonzero(~np.isnan(Y))
    missing = [np.flatnonzero(~np.isnan(Y[:, t])) for t in range(Y.shape[1])]
    return {
        "matrix": (X, Y, {}),
        "long": (X[row], Y[row, task], {"tasks": task}),
        "list": ([X[own] for own in missing], [Y[own, t] for t, own in enumerate(missing)], {}),
    }


@pytest.mark.parametrize("solver", ["saga", "sgd"])
@pytest.mark.parametrize("classify", [False, True])
def test_the_three_forms_give_identical_fits(solver, classify):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5))
    Y = X @ rng.normal(size=(5, 4)) + rng.normal(size=(60, 4))
    if classify:
        Y = (Y > 0).astype(float)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    Estimator = MultiTaskSGDClassifier if classify else MultiTaskSGDRegressor
    fitted = {}
    for name, (data, target, extra) in forms(X, Y).items():
        model = Estimator(alpha=0.01, solver=solver, max_iter=30, tol=None, random_state=3)
        fitted[name] = model.fit(data, target, **extra)
    for name in ("long", "list"):
        assert np.array_equal(fitted[name].coef_, fitted["matrix"].coef_)
        assert np.array_equal(fitted[name].intercept_, fitted["matrix"].intercept_)
    all_tasks = fitted["matrix"].predict(X)
    assert all_tasks.shape == (60, 4)
    for t in range(4):
        one = fitted["long"].predict(X, tasks=np.full(60, t))
        np.testing.assert_allclose(one.astype(float), all_tasks[:, t].astype(float), rtol=1e-10)
    as_list = fitted["list"].predict([X, X[:3], X[:0], X])
    assert [len(part) for part in as_list] == [60, 3, 0, 60]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_rows_drawn_from_pools_give_identical_fits_near_the_minimum(n_threads):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 9))
    Y = X @ rng.normal(size=(9, 4)) + 0.1 * rng.normal(size=(3000, 4))
    Y[rng.random(Y.shape) < 0.1] = np.nan
    given = forms(X, Y)
    data, target, extra = given["long"]
    mixed = rng.permutation(len(target))
    in_task = np.argsort(extra["tasks"][mixed], kind="stable")
    given["list"] = (
        [data[mixed][in_task][extra["tasks"][mixed][in_task] == t] for t in range(4)],
        [target[mixed][in_task][extra["tasks"][mixed][in_task] == t] for t in range(4)],
        {},
    )
    given["long"] = (data[mixed], target[mixed], {"tasks": extra["tasks"][mixed]})
    settings = {"alpha": 0.01, "random_state": 3}
    fitted = {
        name: MultiTaskSGDRegressor(
            solver="sgd", max_iter=20, tol=None, n_threads=n_threads, **settings
        ).fit(data, target, **extra)
        for name, (data, target, extra) in given.items()
    }
    assert np.array_equal(fitted["long"].coef_, fitted["list"].coef_)
    exact = MultiTaskSGDRegressor(solver="saga", tol=1e-8, max_iter=1000, **settings).fit(X, Y)
    for model in fitted.values():
        np.testing.assert_allclose(model.coef_, exact.coef_, atol=0.02)


def test_matrix_form_is_a_drop_in_for_multi_output_logistic_regression():
    X, Y = datasets.load_diabetes_tasks(return_X_y=True)
    Y = np.column_stack([np.where(Y[:, 0] > 0, "high", "low"), np.where(Y[:, 6] > 0, "yes", "no")])
    alpha = 1 / (Y.size * 0.1)  # C = 0.1: the objective's n counts all labels
    model = MultiTaskSGDClassifier(alpha=alpha, coupling="independent", **EXACT).fit(X, Y)
    peer = MultiOutputClassifier(LogisticRegression(C=0.1, tol=1e-10, max_iter=1000)).fit(X, Y)
    assert np.array_equal(model.predict(X), peer.predict(X))
    assert [c.tolist() for c in model.classes_] == [c.tolist() for c in peer.classes_]
    for ours, theirs in zip(model.predict_proba(X), peer.predict_proba(X)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert model.decision_function(X).shape == Y.shape


def test_the_default_coupling_beats_multi_output_logistic_regression_on_related_labels():
    right = []
    for seed in range(5):
        X, Y, _ = datasets.make_multitask_classification(
            440, n_tasks=8, missing=0.0, sharpness=4.0, random_state=seed
        )
        train, test = slice(0, 40), slice(40, None)
        alpha = 1 / Y[train].size  # C = 1
        ours = MultiTaskSGDClassifier(alpha=alpha, random_state=0).fit(X[train], Y[train])
        peer = MultiOutputClassifier(LogisticRegression(C=1.0)).fit(X[train], Y[train])
        right.append([np.mean(m.predict(X[test]) == Y[test]) for m in (ours, peer)])
        shapes = [[p.shape for p in m.predict_proba(X[test])] for m in (ours, peer)]
        assert shapes[0] == shapes[1] == [(400, 2)] * 8
    ours, peer = np.transpose(right)
    assert np.all(ours > peer) and np.mean(ours - peer) > 0.01


@pytest.mark.parametrize("loss", MultiTaskSGDRegressor._losses)
def test_sgd_comes_near_the_minimum_for_every_regression_loss(loss):
    X, y, task = regression(n=600)
    if loss == "poisson":
        y = np.random.default_rng(0).poisson(np.exp(0.3 * X[:, 0] + 0.1 * task))
    model = MultiTaskSGDRegressor(
        loss=loss, solver="sgd", alpha=0.02, tol=1e-6, max_iter=400, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y, tasks=task)
    # No random direction may lead downhill by more than the tolerance of SGD.
    rng = np.random.default_rng(1)
    base = objective(model, X, y, task, model.coef_)
    for _ in range(20):
        step = 0.05 * rng.normal(size=X.shape[1])
        assert objective(model, X, y, task, model.coef_ + step, step) > base - 2e-3 * abs(base)


def objective(model, X, y, task, coef, shared_step=0.0):
    from fastmtl.linear_problem import LOSSES
    from fastmtl.reference.linear_sgd import point_losses

    scores = np.einsum("ij,ij->i", X, coef[task]) + model.intercept_[task]
    value, gradient = np.empty(len(y)), np.empty(len(y))
    parameter = model.quantile if model.loss == "quantile" else model.epsilon
    point_losses(LOSSES[model.loss][0], parameter, y.astype(float), scores, value, gradient)
    shared = model.shared_coef_ + shared_step
    penalty = 0.5 * np.sum(shared**2) + 0.5 * np.sum(model.task_coef_**2 / model.kappa_[:, None])
    return value.mean() + model.alpha * penalty


@pytest.mark.parametrize("learning_rate", ["constant", "invscaling", "optimal", "auto"])
def test_every_learning_rate_learns(learning_rate):
    X, y, task = regression(n=1000)
    model = MultiTaskSGDRegressor(
        solver="sgd",
        learning_rate=learning_rate,
        eta0=0.01,
        alpha=1e-2,
        tol=None,
        max_iter=30,
        random_state=0,
    ).fit(X, y - 5, tasks=task)
    best = MultiTaskSGDRegressor(alpha=1e-2, **EXACT).fit(X, y - 5, tasks=task)
    assert model.score(X, y - 5, tasks=task) > best.score(X, y - 5, tasks=task) - 0.02


def test_the_default_does_not_diverge_on_unscaled_data():
    X, y, task = regression()
    X = X * [1e-3, 1.0, 1e3, 1e5]
    for solver in ("sgd", "saga"):
        model = MultiTaskSGDRegressor(solver=solver, max_iter=20, tol=None).fit(X, y, tasks=task)
        assert np.isfinite(model.coef_).all()
        assert np.mean((model.predict(X, tasks=task) - y) ** 2) < np.mean(y**2)


def test_divergence_is_said_and_nothing_is_half_fitted():
    X, y, task = regression()
    model = MultiTaskSGDRegressor(solver="sgd", learning_rate="constant", eta0=1e3)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch .*lower eta0"):
        model.fit(X, y, tasks=task)
    assert not hasattr(model, "tasks_")


@pytest.mark.parametrize("solver", ["saga", "sgd"])
def test_float32_is_kept_and_equals_float64_to_its_precision(solver):
    X, y, task = regression()
    settings = {"alpha": 0.05, "solver": solver, "max_iter": 50, "tol": None, "random_state": 0}
    wide = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task)
    narrow = MultiTaskSGDRegressor(**settings).fit(X.astype(np.float32), y, tasks=task)
    assert narrow.coef_.dtype == np.float32
    assert narrow.predict(X.astype(np.float32), tasks=task).dtype == np.float32
    np.testing.assert_allclose(narrow.coef_, wide.coef_, atol=2e-4)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_same_seed_and_threads_give_the_same_bits(sparse):
    X, y, _ = regression(n=400)
    task = np.arange(400) % 7
    if sparse:
        X = sp.csr_matrix(X)
    results = {}
    for n_threads in (1, 2, 3):
        for _ in range(2):
            model = MultiTaskSGDRegressor(
                solver="sgd", n_threads=n_threads, random_state=1, max_iter=60, tol=None
            ).fit(X, y, tasks=task)
            results.setdefault(n_threads, []).append(model.coef_)
        assert np.array_equal(*results[n_threads])
    np.testing.assert_allclose(results[2][0], results[1][0], atol=0.1)


def test_two_python_threads_fit_at_once():
    X, y, task = regression()
    settings = {"solver": "sgd", "n_threads": 2, "random_state": 0, "max_iter": 20, "tol": None}
    want = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task).coef_
    found = [None, None]

    def fit(k):
        found[k] = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task).coef_

    threads = [threading.Thread(target=fit, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(found[0], want) and np.array_equal(found[1], want)


def test_sample_weights_are_repetitions():
    X, y, task = regression()
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, size=len(y))
    weighted = MultiTaskSGDRegressor(alpha=0.05, **EXACT).fit(
        X, y, tasks=task, sample_weight=weight
    )
    again = np.repeat(np.arange(len(y)), weight)
    repeated = MultiTaskSGDRegressor(alpha=0.05, **EXACT).fit(X[again], y[again], tasks=task[again])
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-7)


def test_task_weight_multiplies_the_task_s_loss():
    X, y, task = regression()
    by_task = {0: 3.0, 2: 0.5}
    weight = np.array([3.0, 1.0, 0.5])[task]
    model = MultiTaskSGDRegressor(alpha=0.05, task_weight=by_task, **EXACT).fit(X, y, tasks=task)
    # The objective's n counts labels, so the penalty of the weighted problem is rescaled.
    scale = len(y) / weight.sum()
    coef, _ = coupled_ridge(
        X, y, task, model.mixing_, model.kappa_, 0.05 * scale, "coupled", weight
    )
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-7)
    same = MultiTaskSGDRegressor(alpha=0.05, task_weight=[3.0, 1.0, 0.5], **EXACT)
    np.testing.assert_allclose(same.fit(X, y, tasks=task).coef_, coef, rtol=1e-7)
    balanced = MultiTaskSGDRegressor(alpha=0.05, task_weight="balanced", **EXACT)
    sizes = np.bincount(task)
    explicit = MultiTaskSGDRegressor(alpha=0.05, task_weight=len(y) / (3 * sizes), **EXACT)
    np.testing.assert_allclose(
        balanced.fit(X, y, tasks=task).coef_, explicit.fit(X, y, tasks=task).coef_, rtol=1e-9
    )


def test_class_weight_is_a_sample_weight_by_class():
    X, y, task = classification()
    settings = {"alpha": 0.02, **EXACT}
    model = MultiTaskSGDClassifier(class_weight={0: 1.0, 1: 5.0}, **settings)
    model.fit(X, y, tasks=task)
    share = np.where(y == 1, 5.0, 1.0)
    plain = MultiTaskSGDClassifier(**{**settings, "alpha": 0.02 * len(y) / share.sum()})
    plain.fit(X, y, tasks=task, sample_weight=share)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-6)


def test_drawing_the_task_first_has_the_same_minimum():
    rng = np.random.default_rng(0)
    X, y, task = regression(n=900)
    keep = (task == 0) | (rng.random(900) < 0.3)
    X, y, task = X[keep], y[keep], task[keep]
    model = MultiTaskSGDRegressor(
        sampling="task", alpha=0.05, tol=None, max_iter=600, random_state=0
    ).fit(X, y, tasks=task)
    coef, _ = coupled_ridge(X, y, task, model.mixing_, model.kappa_, 0.05, "coupled")
    np.testing.assert_allclose(model.coef_, coef, atol=0.05)


def test_partial_fit_streams_and_takes_new_tasks():
    X, y, task = regression(n=1500)
    model = MultiTaskSGDRegressor(alpha=0.01, random_state=0)
    first = task < 2
    for _ in range(20):
        model.partial_fit(X[first], y[first], tasks=task[first])
    assert model.n_tasks_ == 2
    for _ in range(20):
        model.partial_fit(X, y, tasks=task)
    assert model.tasks_.tolist() == [0, 1, 2]
    whole = MultiTaskSGDRegressor(alpha=0.01, **EXACT).fit(X, y, tasks=task)
    assert model.score(X, y, tasks=task) > whole.score(X, y, tasks=task) - 0.02


def test_partial_fit_of_a_classifier_needs_its_classes():
    X, y, task = classification(n_classes=3)
    model = MultiTaskSGDClassifier(random_state=0)
    two = y < 2
    model.partial_fit(X[two], y[two], classes=[0, 1, 2], tasks=task[two])
    model.partial_fit(X, y, tasks=task)
    assert model.predict_proba(X, tasks=task).shape == (300, 3)
    with pytest.raises(ValueError, match=r"labels \[7\].*classes \[0, 1, 2\]"):
        model.partial_fit(X[:2], [7, 0], tasks=task[:2])


@pytest.mark.parametrize("kappas", [(100, 1), (1, 100), (10, 0.1)])
def test_a_warm_start_under_another_coupling_is_no_slower_than_a_cold_one(kappas):
    X, y, task = datasets.make_multitask_regression(60, 5, 6, random_state=0)
    settings = {"solver": "saga", "tol": 1e-6, "random_state": 0}
    warm = MultiTaskSGDRegressor(**settings, warm_start=True)
    cold = MultiTaskSGDRegressor(**settings)
    for kappa in kappas:
        settings = {"coupling": TaskCoupling.mean(kappa), "alpha": 1e-4 * (1 + kappa)}
        warm.set_params(**settings).fit(X, y, tasks=task)
        cold.set_params(**settings).fit(X, y, tasks=task)
    assert warm.n_iter_ < cold.n_iter_
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-3)


def test_warm_start_continues():
    X, y, task = regression()
    settings = {"solver": "saga", "alpha": 0.01, "tol": 1e-8, "max_iter": 5000}
    model = MultiTaskSGDRegressor(**settings, warm_start=True)
    model.fit(X, y, tasks=task)
    cold = model.n_iter_
    assert model.fit(X, y, tasks=task).n_iter_ < 0.75 * cold


def test_max_iter_warns_and_history_falls():
    X, y, task = regression()
    few = {"solver": "saga", "tol": 1e-10, "max_iter": 2}
    with pytest.warns(ConvergenceWarning, match="max_iter=2 epochs; .* solver='cholesky', or"):
        MultiTaskSGDRegressor(**few).fit(X, y, tasks=task)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol, or standardise X"):
        MultiTaskSGDRegressor(**few, task_penalty="l1").fit(X, y, tasks=task)
    with pytest.warns(ConvergenceWarning, match="take solver='newton', or standardise X"):
        MultiTaskSGDClassifier(**few).fit(X, y > 0, tasks=task)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol, or standardise X"):
        MultiTaskSGDClassifier(**few).fit(X, np.arange(len(X)) % 3, tasks=task)
    model = MultiTaskSGDRegressor(solver="saga", alpha=0.01, random_state=0).fit(X, y, tasks=task)
    values = [step["objective"] for step in model.history_]
    assert len(values) == model.n_iter_ > 3
    assert values[-1] < values[0]


def test_an_interrupt_keeps_the_model_so_far():
    X, y, task = regression()
    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    model = MultiTaskSGDRegressor(tol=None, max_iter=10_000_000)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch"):
        model.fit(X, y, tasks=task)
    assert 1 <= model.n_iter_ < 10_000_000
    assert model.score(X, y, tasks=task) > 0.5


def test_verbose_shows_a_bar_and_missing_tqdm_names_the_extra(capfd, monkeypatch):
    X, y, task = regression()
    MultiTaskSGDRegressor(verbose=1, max_iter=3, tol=None).fit(X, y, tasks=task)
    assert "3/3" in capfd.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"fastmtl\[progress\]"):
        MultiTaskSGDRegressor(verbose=1).fit(X, y, tasks=task)


def test_unseen_tasks_take_the_shared_part_or_are_refused():
    X, y, task = regression()
    model = MultiTaskSGDRegressor(alpha=0.01, random_state=0).fit(X, y, tasks=task)
    want = X @ model.shared_coef_[0] + model._shared_weights()[0, -1]
    np.testing.assert_allclose(model.predict(X, tasks=np.full(len(X), 99)), want)
    model.unseen_tasks = "error"
    with pytest.raises(ValueError, match=r"tasks has 1 labels that were not in training.*99"):
        model.predict(X, tasks=np.full(len(X), 99))


def test_task_column_works_in_pipelines_and_searches():
    X, y, task = regression()
    names = np.array(["north", "south", "west"])[task]
    frame = pd.DataFrame(X, columns=list("abcd")).assign(region=names)
    want = MultiTaskSGDRegressor(alpha=0.05, **EXACT).fit(X, y, tasks=names)
    model = MultiTaskSGDRegressor(alpha=0.05, task_column="region", **EXACT).fit(frame, y)
    np.testing.assert_allclose(model.coef_, want.coef_)
    np.testing.assert_allclose(model.predict(frame), want.predict(X, tasks=names))
    with_codes = np.column_stack([X[:, :2], task, X[:, 2:]])
    by_index = MultiTaskSGDRegressor(alpha=0.05, task_column=2, **EXACT).fit(with_codes, y)
    np.testing.assert_allclose(by_index.coef_, want.coef_)
    by_end = MultiTaskSGDRegressor(alpha=0.05, task_column=-3, **EXACT)
    np.testing.assert_allclose(by_end.fit(sp.csr_matrix(with_codes), y).coef_, want.coef_)

    scale = make_column_transformer(
        (StandardScaler(), list("abcd")), remainder="passthrough", verbose_feature_names_out=False
    ).set_output(transform="pandas")
    pipeline = make_pipeline(scale, MultiTaskSGDRegressor(task_column="region", random_state=0))
    scores = cross_val_score(pipeline, frame, y, cv=3)
    assert scores.min() > 0.5
    search = GridSearchCV(pipeline, {"multitasksgdregressor__alpha": [1e-3, 1e3]}, cv=3)
    assert search.fit(frame, y).best_params_["multitasksgdregressor__alpha"] == 1e-3


def test_metadata_routing_passes_tasks():
    import sklearn

    X, y, task = regression()
    with sklearn.config_context(enable_metadata_routing=True):
        model = (
            MultiTaskSGDRegressor(alpha=0.01, random_state=0)
            .set_fit_request(tasks=True)
            .set_score_request(tasks=True)
        )
        search = GridSearchCV(model, {"alpha": [0.01, 10.0]}, cv=3).fit(X, y, tasks=task)
        scores = cross_val_score(model, X, y, params={"tasks": task}, cv=3)
    assert search.best_params_["alpha"] == 0.01
    assert scores.min() > 0.5


def test_clone_and_params_round_trip():
    model = MultiTaskSGDClassifier(
        alpha=0.5, coupling=TaskCoupling.mean(0.2), class_weight="balanced"
    )
    assert clone(model).get_params() == model.get_params()


def test_awkward_but_good_input_gives_the_same_fit(tmp_path):
    X, y, task = regression()
    settings = {"alpha": 0.05, "max_iter": 20, "tol": None, "random_state": 0}
    want = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task).coef_
    mapped = np.memmap(tmp_path / "x", dtype=np.float64, mode="w+", shape=X.shape)
    mapped[:] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    y_read_only = y.copy()
    y_read_only.flags.writeable = False
    for awkward in [
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X.astype(">f8"),
        X.tolist(),
        mapped,
        read_only,
        pd.DataFrame(X),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = MultiTaskSGDRegressor(**settings).fit(awkward, y_read_only, tasks=list(task))
        assert np.array_equal(model.coef_, want)
    for sparse in (sp.csr_matrix(X), sp.csc_matrix(X), sp.coo_array(X), sp.csr_array(X)):
        model = MultiTaskSGDRegressor(**settings).fit(sparse, y, tasks=task)
        np.testing.assert_allclose(model.coef_, want, rtol=1e-3)
    wide = sp.csr_matrix(X)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    np.testing.assert_allclose(
        MultiTaskSGDRegressor(**settings).fit(wide, y, tasks=task).coef_, want, rtol=1e-3
    )
    integers = np.round(X * 3).astype(int)
    model = MultiTaskSGDRegressor(**settings).fit(integers, y, tasks=task)
    assert model.coef_.dtype == np.float64


@pytest.mark.parametrize("form", ["long", "matrix", "list"])
def test_truth_values_and_none_among_objects_are_labels(form):
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(120, 3)), np.arange(120) % 2
    y = (X[:, 0] > 0).astype(object)
    model = MultiTaskSGDClassifier(alpha=0.01)
    if form == "long":
        given, tasks = (X, y), {"tasks": task}
    elif form == "matrix":
        given, tasks = (X, np.where(task[:, None] == [0, 1], y[:, None], None)), {}
    else:
        given, tasks = ([X[::2], X[1::2]], [y[::2], y[1::2]]), {}
    assert model.fit(*given, **tasks).score(*given, **tasks) == pytest.approx(
        MultiTaskSGDClassifier(alpha=0.01)
        .fit(X, y.astype(bool), tasks=task)
        .score(X, y.astype(bool), tasks=task),
        abs=1e-12,
    )


def test_a_tuple_is_a_label():
    X, y, task = datasets.make_multitask_regression(8, 3, 4, random_state=0)
    pairs = [("north", int(t)) for t in task]
    model = MultiTaskSGDRegressor(random_state=0).fit(X, y, tasks=pairs)
    assert model.tasks_.tolist() == [("north", t) for t in range(len(model.tasks_))]
    want = MultiTaskSGDRegressor(random_state=0).fit(X, y, tasks=task)
    np.testing.assert_array_equal(model.predict(X, tasks=pairs), want.predict(X, tasks=task))


BAD = [
    ({"X": [[np.nan, 1.0], [0.0, 1.0]]}, "X contains NaN"),
    ({"X": [[np.inf, 1.0], [0.0, 1.0]]}, "X contains infinity"),
    ({"X": np.empty((0, 2))}, "0 sample"),
    ({"X": [1.0, 2.0]}, "Expected 2D array"),
    ({"X": np.array([[1j, 0], [0, 1]])}, "Complex data not supported"),
    ({"X": np.array([["a", "b"], ["c", "d"]])}, r"X holds text \(.*'a'.*task_column"),
    ({"y": None}, "requires y to be passed"),
    ({"y": [0.0, np.nan]}, "y contains NaN"),
    ({"y": ["low", "high"]}, r"y holds what is not a number \(.*'low'.* use a classifier"),
    ({"y": [0.0]}, "y has 1 entries for 2 rows of X"),
    ({"y": [[0.0, 1.0], [1.0, 0.0]]}, r"y has shape \(2, 2\) and tasks is given"),
    ({"tasks": [0]}, "tasks has 1 labels for 2 rows of X; pass one label per row"),
    ({"tasks": [[0, 1]]}, r"tasks has shape \(1, 2\)"),
    ({"tasks": [0.0, np.nan]}, "tasks contains NaN"),
    ({"tasks": np.array(["a", None], dtype=object)}, "tasks contains None"),
    ({"sample_weight": [1.0]}, r"sample_weight has shape \(1,\)"),
    ({"sample_weight": [1.0, -1.0]}, "sample_weight has a negative entry"),
    ({"sample_weight": [np.nan, 1.0]}, "sample_weight contains NaN"),
    ({"sample_weight": [0.0, 0.0]}, "sample_weight is zero for every sample"),
    ({"X": [np.eye(2), np.eye(2)]}, "X is a list .* tasks cannot be given"),
    ({"alpha": -1.0}, "alpha is -1.0; pass a finite number >= 0"),
    ({"alpha": np.nan}, "alpha is nan"),
    ({"alpha": "small"}, "alpha is 'small'"),
    ({"loss": "cubed"}, "loss is 'cubed'; pass one of 'squared_error'"),
    ({"coupling": "friends"}, "coupling is 'friends'; pass one of 'mean'"),
    ({"coupling": np.eye(2)}, "coupling is a bare matrix; .*from_covariance"),
    ({"coupling": TaskCoupling.from_covariance(np.eye(3))}, "made for 3 tasks, .* has 2"),
    ({"solver": "simplex"}, "solver is 'simplex'"),
    ({"solver": "saga", "loss": "quantile"}, "solver='saga' takes 'squared_error'"),
    ({"sampling": "all"}, "sampling is 'all'"),
    ({"task_intercept": "none"}, "task_intercept is 'none'"),
    ({"task_weight": "heavy"}, "task_weight is 'heavy'"),
    ({"task_weight": {5: 1.0}}, r"task_weight names \{5\}"),
    ({"task_weight": [1.0]}, r"task_weight has shape \(1,\) for 2 tasks"),
    ({"task_weight": [1.0, -1.0]}, "task_weight must be finite and non-negative"),
    ({"max_iter": 0}, "max_iter is 0; pass an integer >= 1"),
    ({"tol": -1.0}, "tol is -1.0"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
    ({"learning_rate": "constant"}, "eta0 is None; .* needs a positive eta0"),
    ({"learning_rate": "optimal", "alpha": 0.0}, "alpha is 0; learning_rate='optimal'"),
    ({"n_threads": 0}, "n_threads is 0"),
    ({"task_column": 0}, "both tasks and task_column are given"),
    ({"loss": "poisson", "y": [1.0, -2.0]}, "y has a negative entry .* loss='poisson'"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_bad_input_is_named_and_leaves_no_trace(change, words):
    data = {"X": np.eye(2), "y": [0.0, 1.0], "tasks": [0, 1], "sample_weight": None}
    data = {name: change.get(name, value) for name, value in data.items()}
    model = MultiTaskSGDRegressor(**{k: v for k, v in change.items() if k not in data})
    with pytest.raises((ValueError, TypeError), match=words):
        model.fit(data.pop("X"), data.pop("y"), **data)
    assert not hasattr(model, "tasks_")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": [1, 1]}, "y has one class only"),
        ({"y": [0.5, 1.5]}, "Unknown label type"),
        ({"y": np.array([1, None], dtype=object)}, r"y \(class labels\) contains None"),
        ({"y": [np.nan, 1.0]}, r"y \(class labels\) contains NaN"),
        ({"y": np.array([1, "a"], dtype=object)}, "y mixes labels of different types"),
        ({"class_weight": {7: 1.0}}, r"class_weight names \{7\}"),
        ({"class_weight": "heavy"}, "class_weight is 'heavy'"),
    ],
)
def test_bad_labels_are_named(change, words):
    y = change.pop("y", [0, 1]) if "y" in change else [0, 1]
    with pytest.raises(ValueError, match=words):
        MultiTaskSGDClassifier(**change).fit(np.eye(2), y, tasks=[0, 1])


def test_more_than_two_classes_need_log_loss():
    X, y, task = classification(n_classes=3)
    with pytest.raises(ValueError, match="use loss='log_loss'"):
        MultiTaskSGDClassifier(loss="hinge").fit(X, y, tasks=task)


def test_bad_lists_and_matrices_are_named():
    X = [np.eye(2), np.ones((3, 2))]
    model = MultiTaskSGDRegressor()
    with pytest.raises(ValueError, match="y is a list of 1 for a list of 2 matrices"):
        model.fit(X, [[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"y\[1\] has shape \(2,\) for 3 rows of X\[1\]"):
        model.fit(X, [[0.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"X\[1\] has no rows"):
        model.fit([np.eye(2), np.empty((0, 2))], [[0.0, 1.0], []])
    with pytest.raises(ValueError, match=r"have \[2, 3\] columns"):
        model.fit([np.eye(2), np.eye(3)], [[0.0, 1.0], [0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="no label at all for task 1"):
        model.fit(np.eye(2), [[0.0, np.nan], [1.0, np.nan]])
    model.fit(np.eye(2), [0.0, 1.0], tasks=["a", "b"])
    with pytest.raises(ValueError, match="tasks is missing"):
        model.predict(np.eye(2))


def test_predict_before_fit_and_wrong_width_are_refused():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        MultiTaskSGDRegressor().predict(np.eye(2))
    X, y, task = regression()
    model = MultiTaskSGDRegressor().fit(X, y, tasks=task)
    with pytest.raises(ValueError, match=r"5 features.*expecting 4"):
        model.predict(np.ones((1, 5)), tasks=[0])


WEIGHTS = "its steps are random, so a repeated row and a weight of 2 take different paths"
LIST = "predict_proba is a list with one array per task, as MultiOutputClassifier's"


def expected_failures(estimator):
    failures = {}
    random_steps = estimator.solver == "sgd" or isinstance(estimator, MultiTaskSGDClassifier)
    if random_steps and estimator.tol > 1e-9:
        failures = dict.fromkeys(
            (
                "check_sample_weight_equivalence_on_dense_data",
                "check_sample_weight_equivalence_on_sparse_data",
            ),
            WEIGHTS,
        )
    if isinstance(estimator, MultiTaskSGDClassifier):
        failures["check_classifier_multioutput"] = LIST
    return failures


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        MultiTaskSGDRegressor(),
        MultiTaskSGDClassifier(),
        MultiTaskSGDRegressor(solver="sgd", max_iter=200),
        MultiTaskSGDClassifier(solver="sgd", max_iter=200),
        MultiTaskSGDRegressor(solver="saga", alpha=0.3, tol=1e-13, max_iter=20_000),
        MultiTaskSGDClassifier(alpha=0.5, tol=1e-13, max_iter=20_000),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_school_explained_variance_is_that_of_the_closed_form():
    try:
        X, y, task = datasets.fetch_school(return_X_y=True)
    except FileNotFoundError:
        pytest.skip("the School data are not in the data folder")
    some = task < 40  # the dense solve of all 139 takes a minute
    X, y, task = X[some, :-1].astype(np.float64), y[some].astype(np.float64), task[some]
    X = X[:, X.std(axis=0) > 0]
    rng = np.random.default_rng(0)
    train = np.zeros(len(y), dtype=bool)
    for t in range(40):
        own = rng.permutation(np.flatnonzero(task == t))
        train[own[: round(0.75 * len(own))]] = True
    X = (X - X[train].mean(axis=0)) / X[train].std(axis=0)
    y = y - y[train].mean()
    for coupling, kind in [
        (TaskCoupling.mean(0.1), "coupled"),
        ("pooled", "coupled"),
        ("independent", "free"),
    ]:
        model = MultiTaskSGDRegressor(
            alpha=30 / train.sum(), coupling=coupling, random_state=0
        ).fit(X[train], y[train], tasks=task[train])
        coef, intercept = coupled_ridge(
            X[train], y[train], task[train], model.mixing_, model.kappa_, model.alpha, kind
        )
        truth = y[~train]
        total = np.sum((truth - truth.mean()) ** 2)
        closed = np.einsum("ij,ij->i", X[~train], coef[task[~train]]) + intercept[task[~train]]
        want = 1 - np.sum((truth - closed) ** 2) / total
        got = 1 - np.sum((truth - model.predict(X[~train], tasks=task[~train])) ** 2) / total
        assert got == pytest.approx(want, abs=1e-3)


def test_labels_of_another_kind_are_not_taken_for_new_tasks_in_silence():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(60, 2)), np.repeat([0, 1, 2], 20)
    model = MultiTaskSGDRegressor().fit(X, X[:, 0] + task, tasks=task)
    with pytest.warns(UserWarning, match=r"labels like '0', .* with labels like 0, and knows none"):
        model.predict(X, tasks=task.astype(str))
    model.predict(X, tasks=task + 10)  # new tasks, which is what unseen_tasks="shared" is for
