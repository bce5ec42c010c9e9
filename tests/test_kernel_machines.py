"""Kernel machines against libsvm, closed forms and each other."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel, sigmoid_kernel
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmtl import (
    MultiTaskKernelRidge,
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    MultiTaskSVC,
    MultiTaskSVR,
    TaskCoupling,
)

EXPECTED_FAILURES = {
    MultiTaskSVC: {
        "check_classifier_multioutput": "classes_ is a list for Y (n, n_tasks)",
        "check_sample_weight_equivalence_on_dense_data": "equal to tol, not to rounding",
        "check_sample_weight_equivalence_on_sparse_data": "equal to tol, not to rounding",
    },
    MultiTaskKernelRidge: {
        "check_sample_weight_equivalence_on_dense_data": "repeated rows change what is clipped",
        "check_sample_weight_equivalence_on_sparse_data": "repeated rows change what is clipped",
    },
}


@pytest.mark.filterwarnings("ignore:the kernel is not positive:UserWarning")
@parametrize_with_checks(
    [MultiTaskSVC(), MultiTaskSVR(), MultiTaskKernelRidge()],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES.get(type(estimator), {}),
)
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


POOLED = {"coupling": "pooled", "task_intercept": "shared"}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    n_tasks, n = 4, 240
    X = rng.normal(size=(n, 5))
    tasks = rng.integers(0, n_tasks, n)
    signal = np.sin(X[:, 0] + 0.4 * tasks) + X[:, 1] * X[:, 2] + 0.1 * rng.normal(size=n)
    return X, tasks, signal


KERNELS = {
    "rbf": ({"kernel": "rbf", "gamma": 0.2}, {"kernel": "rbf", "gamma": 0.2}),
    "tanh": (
        {"kernel": "tanh", "gamma": 0.01, "coef0": 0.0},
        {"kernel": "sigmoid", "gamma": 0.01, "coef0": 0.0},
    ),
    "poly": (
        {"kernel": "poly", "gamma": 0.2, "coef0": 1.0, "degree": 2},
        {"kernel": "poly", "gamma": 0.2, "coef0": 1.0, "degree": 2},
    ),
    "linear": ({"kernel": "linear"}, {"kernel": "linear"}),
}


@pytest.mark.filterwarnings("ignore:the kernel is not positive:UserWarning")
@pytest.mark.parametrize("name", KERNELS)
def test_pooled_svc_is_libsvm(data, name):
    X, tasks, signal = data
    y = np.where(signal > 0, "yes", "no")
    ours, theirs = KERNELS[name]
    model = MultiTaskSVC(C=2.0, tol=1e-5, **POOLED, **ours).fit(X, y, tasks=tasks)
    libsvm = SVC(C=2.0, tol=1e-5, **theirs).fit(X, y)
    np.testing.assert_allclose(
        model.decision_function(X[:50], tasks=tasks[:50]),
        libsvm.decision_function(X[:50]),
        atol=1e-3,
    )
    np.testing.assert_array_equal(model.predict(X, tasks=tasks), libsvm.predict(X))
    np.testing.assert_allclose(model.intercept_, libsvm.intercept_[0], atol=1e-3)


@pytest.mark.parametrize("name", ["rbf", "poly"])
def test_pooled_svr_is_libsvm(data, name):
    X, tasks, signal = data
    ours, theirs = KERNELS[name]
    model = MultiTaskSVR(tol=1e-5, epsilon=0.05, **POOLED, **ours).fit(X, signal, tasks=tasks)
    libsvm = SVR(tol=1e-5, epsilon=0.05, **theirs).fit(X, signal)
    np.testing.assert_allclose(model.predict(X, tasks=tasks), libsvm.predict(X), atol=1e-3)


def test_precomputed_gram_with_a_kernel_between_tasks_is_libsvm(data):
    X, tasks, signal = data
    y = signal > 0
    gram = rbf_kernel(X, gamma=0.2)
    C = np.full((4, 4), 0.3) + np.diag([0.5, 0.6, 0.7, 0.8])
    coupled = gram * C[np.ix_(tasks, tasks)]
    libsvm = SVC(kernel="precomputed", tol=1e-5).fit(coupled, y)
    model = MultiTaskSVC(
        kernel="precomputed",
        coupling=TaskCoupling.from_covariance(C),
        task_intercept="shared",
        tol=1e-5,
    ).fit(gram, y, tasks=tasks)
    np.testing.assert_allclose(
        model.decision_function(gram, tasks=tasks), libsvm.decision_function(coupled), atol=1e-3
    )
    assert model.objective_ == pytest.approx(
        MultiTaskSVC(
            kernel="rbf",
            gamma=0.2,
            coupling=TaskCoupling.from_covariance(C),
            task_intercept="shared",
            tol=1e-5,
        )
        .fit(X, y, tasks=tasks)
        .objective_,
        rel=1e-6,
    )


@pytest.mark.parametrize("name", ["rbf", "tanh"])
@pytest.mark.filterwarnings("ignore:the kernel is not positive:UserWarning")
def test_independent_coupling_is_one_libsvm_per_task(data, name):
    X, tasks, signal = data
    y = signal > 0
    ours, theirs = KERNELS[name]
    model = MultiTaskSVC(coupling="independent", tol=1e-5, **ours).fit(X, y, tasks=tasks)
    for t in range(4):
        own = tasks == t
        libsvm = SVC(tol=1e-5, **theirs).fit(X[own], y[own])
        np.testing.assert_allclose(
            model.decision_function(X, tasks=np.full(len(X), t)),
            libsvm.decision_function(X),
            atol=1e-3,
        )


def test_logistic_kernel_equals_tanh_kernel_with_half_sigma_and_half_C(data):
    X, tasks, signal = data
    y = signal > 0
    # logistic = ½ + ½ tanh; an intercept absorbs the constant where C[s, t] is constant.
    common = {"tol": 1e-6, "indefinite": "clip"} | POOLED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        logistic = MultiTaskSVC(kernel="sigmoid", sigma=0.02, c=1.0, C=4.0, **common)
        tanh = MultiTaskSVC(kernel="tanh", gamma=0.01, coef0=0.01, C=2.0, **common)
        logistic.fit(X, y, tasks=tasks)
        tanh.fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        logistic.decision_function(X, tasks=tasks),
        tanh.decision_function(X, tasks=tasks),
        atol=2e-3,
    )


def test_three_forms_give_one_fit(data):
    X, _, signal = data
    Y = np.column_stack([signal > 0, X[:, 0] > 0, X[:, 1] + signal > 0])
    matrix = MultiTaskSVC(kernel="rbf", tol=1e-6).fit(X, Y)
    stacked, y, tasks = np.tile(X, (3, 1)), Y.T.ravel(), np.repeat([0, 1, 2], len(X))
    shuffle = np.random.default_rng(0).permutation(len(y))
    long = MultiTaskSVC(kernel="rbf", tol=1e-6).fit(
        stacked[shuffle], y[shuffle], tasks=tasks[shuffle]
    )
    listed = MultiTaskSVC(kernel="rbf", tol=1e-6).fit([X] * 3, list(Y.T))
    expected = matrix.decision_function(X)
    assert expected.shape == (len(X), 3)
    for t in range(3):
        own = long.decision_function(X, tasks=np.full(len(X), t))
        np.testing.assert_allclose(own, expected[:, t], atol=1e-4)
    np.testing.assert_allclose(
        np.column_stack(listed.decision_function([X] * 3)), expected, atol=1e-4
    )
    assert matrix.dual_coef_.shape == (3, len(matrix.support_))
    for t in range(3):
        np.testing.assert_allclose(matrix.dual_coef_[t].sum(), 0, atol=1e-9)


def test_missing_labels_are_left_out(data):
    X, _, signal = data
    Y = np.column_stack([signal, X[:, 0]])
    Y[::3, 0] = np.nan
    Y[1::4, 1] = np.nan
    model = MultiTaskSVR(kernel="rbf", gamma=0.2, coupling="independent", tol=1e-6).fit(X, Y)
    for t in range(2):
        has = ~np.isnan(Y[:, t])
        alone = SVR(gamma=0.2, tol=1e-6).fit(X[has], Y[has, t])
        np.testing.assert_allclose(model.predict(X)[:, t], alone.predict(X), atol=1e-3)


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_duality_gap_closes_with_tol(data, loss):
    X, tasks, signal = data
    y = signal > 0
    gaps = []
    for tol in [1e-1, 1e-3, 1e-6]:
        model = MultiTaskSVC(kernel="rbf", loss=loss, tol=tol).fit(X, y, tasks=tasks)
        gaps.append(model.duality_gap_ / model.objective_)
    assert -1e-12 < gaps[2] < 1e-5
    assert gaps[2] < gaps[0]


def test_squared_hinge_satisfies_its_optimality_condition(data):
    X, tasks, signal = data
    y = np.where(signal > 0, 1.0, -1.0)
    model = MultiTaskSVC(kernel="rbf", loss="squared_hinge", C=3.0, tol=1e-8)
    model.fit(X, y, tasks=tasks)
    slack = np.maximum(0, 1 - y * model.decision_function(X, tasks=tasks))
    expected = np.zeros(len(y))
    expected[model.support_] = model.dual_coef_[0]
    np.testing.assert_allclose(expected, 2 * 3.0 * y * slack, atol=1e-6)


def test_squared_epsilon_insensitive_without_a_tube_is_kernel_ridge(data):
    X, tasks, signal = data
    svr = MultiTaskSVR(
        kernel="rbf", loss="squared_epsilon_insensitive", epsilon=0.0, C=5.0, tol=1e-9
    ).fit(X, signal, tasks=tasks)
    ridge = MultiTaskKernelRidge(kernel="rbf", alpha=0.1).fit(X, signal, tasks=tasks)
    np.testing.assert_allclose(
        svr.predict(X, tasks=tasks), ridge.predict(X, tasks=tasks), atol=1e-6
    )


def test_kernel_ridge_is_scikit_learns_on_the_coupled_gram(data):
    X, tasks, signal = data
    weight = np.random.default_rng(1).uniform(0.5, 2, len(signal))
    gram = rbf_kernel(X, gamma=0.2) * (1 + (tasks[:, None] == tasks))
    expected = KernelRidge(alpha=0.3, kernel="precomputed").fit(gram, signal, sample_weight=weight)
    model = MultiTaskKernelRidge(kernel="rbf", gamma=0.2, alpha=0.3, fit_intercept=False)
    model.fit(X, signal, tasks=tasks, sample_weight=weight)
    np.testing.assert_allclose(model.predict(X, tasks=tasks), expected.predict(gram), atol=1e-9)


def test_several_classes_are_one_against_the_rest(data):
    X, tasks, signal = data
    y = np.digitize(signal, [-0.5, 0.5])
    model = MultiTaskSVC(kernel="rbf", gamma=0.2, tol=1e-6, n_threads=2).fit(X, y, tasks=tasks)
    scores = model.decision_function(X, tasks=tasks)
    for k in range(3):
        one = MultiTaskSVC(kernel="rbf", gamma=0.2, tol=1e-6).fit(X, y == k, tasks=tasks)
        np.testing.assert_allclose(scores[:, k], one.decision_function(X, tasks=tasks), atol=1e-4)
    np.testing.assert_array_equal(model.predict(X, tasks=tasks), scores.argmax(axis=1))
    assert model.n_iter_.shape == (3,)
    assert model.dual_coef_.shape == (3, len(model.support_))


def test_matrix_form_with_own_classes_per_task(data):
    X, _, signal = data
    Y = np.column_stack([np.digitize(signal, [-0.5, 0.5]), np.where(X[:, 0] > 0, 3, 4)])
    model = MultiTaskSVC(kernel="rbf", C=5.0).fit(X, Y)
    assert [list(own) for own in model.classes_] == [[0, 1, 2], [3, 4]]
    assert [part.shape for part in model.decision_function(X)] == [(240, 3), (240, 2)]
    predicted = model.predict(X)
    assert set(predicted[:, 1]) == {3, 4}
    assert model.score(X, Y) > 0.85


def test_row_buffer_gives_the_whole_gram_s_fit(data):
    X, tasks, signal = data
    y = signal > 0
    whole = MultiTaskSVC(kernel="rbf", tol=1e-6).fit(X, y, tasks=tasks)
    by_rows = MultiTaskSVC(kernel="rbf", tol=1e-6, cache_size=0.05).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        by_rows.decision_function(X, tasks=tasks),
        whole.decision_function(X, tasks=tasks),
        atol=1e-5,
    )
    three = np.digitize(signal, [-0.5, 0.5])
    model = MultiTaskSVC(kernel="rbf", cache_size=0.05, n_threads=2, shrinking=True)
    assert model.fit(X, three, tasks=tasks).score(X, three, tasks=tasks) > 0.8


def test_shrinking_changes_nothing_but_the_path(data):
    X, tasks, signal = data
    y = signal > 0
    plain = MultiTaskSVC(kernel="rbf", C=50, tol=1e-6).fit(X, y, tasks=tasks)
    shrunk = MultiTaskSVC(kernel="rbf", C=50, tol=1e-6, shrinking=True).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        shrunk.decision_function(X, tasks=tasks),
        plain.decision_function(X, tasks=tasks),
        atol=1e-4,
    )
    assert shrunk.duality_gap_ / shrunk.objective_ < 1e-5


def test_weights_bound_the_coefficients(data):
    X, tasks, signal = data
    y = signal > 0
    weight = np.random.default_rng(2).uniform(0, 2, len(y))
    weight[:20] = 0
    model = MultiTaskSVC(
        kernel="rbf", C=0.5, task_weight=[1, 2, 3, 4], class_weight={True: 2.0}
    ).fit(X, y, tasks=tasks, sample_weight=weight)
    bound = 0.5 * weight * np.array([1, 2, 3, 4])[tasks] * np.where(y, 2.0, 1.0)
    coef = np.zeros(len(y))
    coef[model.support_] = model.dual_coef_[0]
    assert (np.abs(coef) <= bound * (1 + 1e-12)).all()
    assert (np.abs(coef) == pytest.approx(bound)) is False
    assert np.isclose(np.abs(coef), bound)[bound > 0].mean() > 0.1


def test_integer_weights_are_repeated_rows(data):
    X, tasks, signal = data
    weight = np.random.default_rng(3).integers(0, 3, len(signal))
    once = MultiTaskSVR(kernel="rbf", gamma=0.2, tol=1e-7).fit(
        X, signal, tasks=tasks, sample_weight=weight
    )
    again = np.repeat(np.arange(len(signal)), weight)
    repeated = MultiTaskSVR(kernel="rbf", gamma=0.2, tol=1e-7).fit(
        X[again], signal[again], tasks=tasks[again]
    )
    np.testing.assert_allclose(
        once.predict(X, tasks=tasks), repeated.predict(X, tasks=tasks), atol=1e-5
    )


@pytest.mark.parametrize("convert", [np.float32, sp.csr_matrix, np.asfortranarray], ids=str)
def test_dtypes_and_layouts_agree(data, convert):
    X, tasks, signal = data
    y = signal > 0
    plain = MultiTaskSVC(tol=1e-5, indefinite="clip")
    other = convert(X) if convert is not np.float32 else X.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = plain.fit(X, y, tasks=tasks).decision_function(X, tasks=tasks)
        got = clone(plain).fit(other, y, tasks=tasks).decision_function(other, tasks=tasks)
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_unseen_task_has_the_shared_part(data):
    X, tasks, signal = data
    model = MultiTaskSVR(kernel="rbf").fit(X, signal, tasks=tasks)
    unseen = model.predict(X[:5], tasks=[99] * 5)
    per_task = [model.predict(X[:5], tasks=[t] * 5) for t in range(4)]
    coef = np.zeros(len(X))
    coef[model.support_] = model.dual_coef_[0]
    shared = rbf_kernel(X[:5], X, gamma=1 / (5 * X.var())) @ coef + model.intercept_.mean()
    np.testing.assert_allclose(unseen, shared, atol=1e-9)
    assert np.ptp(per_task, axis=0).min() > 1e-3
    with pytest.raises(ValueError, match="not in training"):
        model.set_params(unseen_tasks="error").predict(X[:5], tasks=[99] * 5)


@pytest.mark.parametrize("how", ["clip", "flip"])
def test_repaired_kernel_is_the_repaired_gram_s_machine(data, how):
    X, tasks, signal = data
    y = signal > 0
    gram = sigmoid_kernel(X, gamma=0.5, coef0=-1.0)
    values, vectors = np.linalg.eigh(gram)
    assert values[0] < -1
    values = np.maximum(values, 0) if how == "clip" else np.abs(values)
    expected = SVC(kernel="precomputed", tol=1e-6).fit((vectors * values) @ vectors.T, y)
    model = MultiTaskSVC(kernel="tanh", gamma=0.5, coef0=-1.0, indefinite=how, tol=1e-6, **POOLED)
    with pytest.warns(UserWarning, match="eigenvalues are negative"):
        model.fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        model.decision_function(X, tasks=tasks),
        expected.decision_function((vectors * values) @ vectors.T),
        atol=2e-3,
    )
    assert model.duality_gap_ / model.objective_ < 1e-4


def test_negative_curvature_is_told(data):
    X, tasks, signal = data
    model = MultiTaskSVC(kernel="tanh", gamma=0.5, coef0=-1.0)
    with pytest.warns(UserWarning, match="negative curvature"):
        model.fit(X, signal > 0, tasks=tasks)
    assert np.isfinite(model.decision_function(X, tasks=tasks)).all()
    ridge = MultiTaskKernelRidge(kernel="tanh", gamma=0.5, coef0=-1.0, indefinite="smo")
    with pytest.warns(UserWarning, match="stationary point"):
        ridge.fit(X, signal, tasks=tasks)


def test_ridge_clips_an_indefinite_kernel_unless_told_otherwise(data):
    X, tasks, signal = data
    settings = {"kernel": "tanh", "gamma": 0.5, "coef0": -1.0, "alpha": 0.3}
    with pytest.warns(UserWarning, match="eigenvalues are negative"):
        ridge = MultiTaskKernelRidge(coupling="pooled", fit_intercept=False, **settings)
        ridge.fit(X, signal, tasks=tasks)
    values, vectors = np.linalg.eigh(np.tanh(0.5 * X @ X.T - 1.0))
    gram = (vectors * np.maximum(values, 0)) @ vectors.T
    expected = gram @ np.linalg.solve(gram + 0.3 * np.eye(len(X)), signal)
    np.testing.assert_allclose(ridge.predict(X, tasks=tasks), expected, atol=1e-8)


def test_max_iter_warns(data):
    X, tasks, signal = data
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        model = MultiTaskSVC(kernel="rbf", max_iter=3).fit(X, signal > 0, tasks=tasks)
    assert model.n_iter_ == 3


@pytest.mark.parametrize(
    "machine, engine",
    [(MultiTaskSVC, MultiTaskSGDClassifier), (MultiTaskSVR, MultiTaskSGDRegressor)],
)
@pytest.mark.parametrize("task_intercept", ["free", "shared"])
def test_what_a_slow_linear_machine_is_told_to_take_has_its_solution(
    data, machine, engine, task_intercept
):
    X, tasks, signal = data
    y = signal if machine is MultiTaskSVR else signal > 0
    machine = machine(kernel="linear", task_intercept=task_intercept, C=0.5)
    with pytest.warns(ConvergenceWarning, match=f"standardise X.*{engine.__name__}"):
        clone(machine).set_params(max_iter=3).fit(X, y, tasks=tasks)
    machine.set_params(tol=1e-7).fit(X, y, tasks=tasks)
    told = engine(loss=machine.loss, alpha=1 / (0.5 * len(X)), task_intercept=task_intercept)
    told.set_params(solver="newton", tol=1e-9).fit(X, y, tasks=tasks)
    answers = [
        model.predict(X, tasks=tasks) if y is signal else model.decision_function(X, tasks=tasks)
        for model in (told, machine)
    ]
    np.testing.assert_allclose(*answers, atol=2e-4)  # the objective is flat near its minimum


def test_calibration_and_search_work_through_a_task_column(data):
    X, tasks, signal = data
    with_tasks = np.column_stack([X, tasks])
    y = signal > 0
    svc = MultiTaskSVC(kernel="rbf", gamma=0.2, task_column=-1)
    for method in ["sigmoid", "isotonic"]:
        model = CalibratedClassifierCV(svc, method=method, cv=3).fit(with_tasks, y)
        proba = model.predict_proba(with_tasks)
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        assert ((proba[:, 1] > 0.5) == y).mean() > 0.8
    search = GridSearchCV(svc, {"C": [0.1, 10.0]}, cv=3).fit(with_tasks, y)
    assert search.best_params_["C"] == 10.0


def test_callable_kernel_is_the_named_one(data):
    X, tasks, signal = data
    # A named kernel's Gram matrix is float32 at the default tol, and float64 at small ones.
    for tol, atol in ((1e-3, 1e-6), (1e-6, 1e-9)):
        own, named = (
            MultiTaskSVC(kernel=kernel, gamma=0.3, tol=tol)
            .fit(X, signal > 0, tasks=tasks)
            .decision_function(X, tasks=tasks)
            for kernel in (lambda a, b: rbf_kernel(a, b, gamma=0.3), "rbf")
        )
        np.testing.assert_allclose(own, named, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": 0.0}, "C is 0.0; pass a finite number > 0"),
        ({"C": -1}, "C is -1"),
        ({"C": np.nan}, "C is nan"),
        ({"kernel": "gaussian"}, "kernel is 'gaussian'; pass one of"),
        ({"gamma": "wide"}, "gamma is 'wide'"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"indefinite": "ignore"}, "indefinite is 'ignore'"),
        ({"loss": "log_loss"}, "loss is 'log_loss'"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"cache_size": 0}, "cache_size is 0"),
        ({"coupling": np.eye(4)}, "coupling is a bare matrix"),
        ({"coupling": TaskCoupling.learn(scale="evidence")}, "take TaskCoupling.learn with rank"),
        ({"task_weight": [1.0]}, "task_weight has shape"),
        ({"kernel": lambda a, b: np.full((len(a), len(b)), np.nan)}, "kernel returned NaN"),
        ({"kernel": lambda a, b: np.ones(3)}, r"kernel returned an array of shape \(3,\)"),
        ({"kernel": lambda a, b: a @ (b + 1).T}, "is not symmetric"),
        ({"indefinite": "clip", "cache_size": 0.01}, "needs the whole Gram matrix"),
        (
            {"loss": "squared_hinge", "kernel": "tanh", "gamma": 0.5, "coef0": -1, "C": 1e9},
            "has no minimum",
        ),
    ],
)
def test_bad_settings_are_refused(data, settings, message):
    X, tasks, signal = data
    model = MultiTaskSVC(**settings)
    with pytest.raises(ValueError, match=message):
        model.fit(X, signal > 0, tasks=tasks)
    assert not hasattr(model, "tasks_")


def test_bad_data_is_refused(data):
    X, tasks, signal = data
    y = signal > 0
    y_one = y.copy()
    y_one[tasks == 2] = True
    with pytest.raises(ValueError, match=r"one class only in 1 tasks.*2"):
        MultiTaskSVC().fit(X, y_one, tasks=tasks)
    shared = MultiTaskSVC(kernel="rbf", task_intercept="shared").fit(X, y_one, tasks=tasks)
    assert shared.predict(X, tasks=tasks)[tasks == 2].all()
    gram = rbf_kernel(X)
    precomputed = MultiTaskSVC(kernel="precomputed")
    with pytest.raises(ValueError, match=r"X has shape \(240, 5\).*square"):
        precomputed.fit(X, y, tasks=tasks)
    crooked = gram.copy()
    crooked[0, 5] += 1
    with pytest.raises(ValueError, match="not symmetric"):
        precomputed.fit(crooked, y, tasks=tasks)
    with pytest.raises(ValueError, match="NaN"):
        precomputed.fit(np.full((240, 240), np.nan), y, tasks=tasks)
    with pytest.raises(ValueError, match="X is a list of matrices"):
        precomputed.fit([gram, gram], [y, y])
    with pytest.raises(ValueError, match=r"X has shape \(10, 7\).*\(n, 240\)"):
        precomputed.fit(gram, y, tasks=tasks).predict(np.ones((10, 7)), tasks=tasks[:10])
    with pytest.raises(ValueError, match="exceeds cache_size"):
        MultiTaskKernelRidge(cache_size=0.01).fit(X, signal, tasks=tasks)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 40),
    n_tasks=st.integers(1, 5),
    C=st.floats(1e-3, 1e3),
    epsilon=st.floats(0, 1),
)
def test_svr_is_feasible_and_optimal_on_any_data(seed, n, n_tasks, C, epsilon):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, 2)), rng.normal(size=n)
    tasks = rng.integers(0, n_tasks, n)
    model = MultiTaskSVR(kernel="rbf", C=C, epsilon=epsilon, tol=1e-6).fit(X, y, tasks=tasks)
    beta = np.zeros(n)
    beta[model.support_] = model.dual_coef_[0]
    assert (np.abs(beta) <= C * (1 + 1e-9)).all()
    for t in np.unique(tasks):
        assert abs(beta[tasks == t].sum()) <= 1e-8 * max(1, C)
    assert abs(model.duality_gap_) <= 1e-4 * max(1.0, C)
    expected = np.maximum(0, np.abs(y - model.predict(X, tasks=tasks)) - epsilon).sum() * C
    gram = rbf_kernel(X, gamma=1 / (2 * X.var())) * (1 + (tasks[:, None] == tasks))
    assert model.objective_ == pytest.approx(expected + 0.5 * beta @ gram @ beta, abs=1e-6 * C)


def test_linear_kernel_ridge_is_ridge_on_shared_and_own_copies_of_the_features(data):
    X, tasks, signal = data
    own = np.zeros((len(X), 4, 5))
    own[np.arange(len(X)), tasks] = X
    copies = np.column_stack([X, np.sqrt(0.3) * own.reshape(len(X), -1)])
    expected = Ridge(alpha=2.0, fit_intercept=False).fit(copies, signal).predict(copies)
    model = MultiTaskKernelRidge(
        kernel="linear", alpha=2.0, coupling=TaskCoupling.mean(0.3), fit_intercept=False
    ).fit(X, signal, tasks=tasks)
    np.testing.assert_allclose(model.predict(X, tasks=tasks), expected, atol=1e-9)


def test_linear_kernel_ridge_is_where_the_linear_engine_converges(data):
    X, tasks, signal = data
    ridge = MultiTaskKernelRidge(kernel="linear", alpha=2.0, fit_intercept=False)
    sgd = MultiTaskSGDRegressor(
        alpha=2.0 / len(X), fit_intercept=False, solver="saga", tol=1e-10, random_state=0
    )
    np.testing.assert_allclose(
        sgd.fit(X, signal, tasks=tasks).predict(X, tasks=tasks),
        ridge.fit(X, signal, tasks=tasks).predict(X, tasks=tasks),
        atol=1e-5,
    )


def test_read_only_and_memory_mapped_rows_are_taken_as_they_are(data, tmp_path):
    X, tasks, signal = data
    gram = rbf_kernel(X, gamma=0.2)
    np.save(tmp_path / "gram.npy", gram)
    mapped = np.load(tmp_path / "gram.npy", mmap_mode="r")
    model = MultiTaskSVC(kernel="precomputed").fit(mapped, signal > 0, tasks=tasks)
    expected = MultiTaskSVC(kernel="rbf", gamma=0.2).fit(X, signal > 0, tasks=tasks)
    np.testing.assert_allclose(
        model.decision_function(mapped, tasks=tasks),
        expected.decision_function(X, tasks=tasks),
        atol=5e-3,
    )


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_verbose_shows_every_step(data, capsys, n_outputs):
    X, tasks, signal = data
    y = signal > 0 if n_outputs == 1 else np.digitize(signal, [-0.5, 0.5])
    model = MultiTaskSVC(kernel="rbf", verbose=True, n_threads=1).fit(X, y, tasks=tasks)
    assert f"{np.sum(model.n_iter_)}step" in capsys.readouterr().err
    MultiTaskSVC(kernel="rbf").fit(X, y, tasks=tasks)
    assert capsys.readouterr().err == ""


INTERRUPTED = """
import signal, threading, time
import numpy as np
from fastmtl import MultiTaskSVC

rng = np.random.default_rng(0)
X, y = rng.normal(size=(4000, 3)), rng.integers(0, {n_classes}, 4000)
model = MultiTaskSVC(
    kernel="rbf", C=1e6, tol=1e-9, n_threads=2, max_iter=10**9, cache_size={cache_size}
)

def interrupt():
    global asked
    asked = time.perf_counter()
    signal.raise_signal(signal.SIGINT)

threading.Timer(1.5, interrupt).start()
try:
    model.fit(X, y)
except KeyboardInterrupt:
    print("stopped after", time.perf_counter() - asked, hasattr(model, "tasks_"))
"""


@pytest.mark.parametrize(("n_classes", "cache_size"), [(2, 1000), (3, 1000), (2, 20)])
def test_ctrl_c_stops_a_long_solve_at_once(n_classes, cache_size):
    finished = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(n_classes=n_classes, cache_size=cache_size)],
        capture_output=True,
        text=True,
        timeout=60,  # the solve itself would take hours
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.startswith("stopped after")
    assert finished.stdout.split()[-1] == "False"


@pytest.mark.parametrize("machine", [MultiTaskSVC, MultiTaskSVR, MultiTaskKernelRidge])
def test_learned_relations_find_opposite_groups_and_beat_the_mean(machine):
    rng = np.random.default_rng(4)
    n_tasks, n = 8, 60
    sign = np.where(np.arange(n_tasks) < 4, 1.0, -1.0)
    tasks = np.repeat(np.arange(n_tasks), n)
    X = rng.normal(size=(len(tasks), 2))
    signal = sign[tasks] * (np.sin(2 * X[:, 0]) + X[:, 1] ** 2 - 1)
    train = np.tile(np.arange(n) < 20, n_tasks)
    noisy = signal + 0.3 * rng.normal(size=len(tasks))
    y, truth = (noisy > 0, signal > 0) if machine is MultiTaskSVC else (noisy, signal)
    scores = {}
    for coupling in ("learn", "mean", "independent"):
        model = machine(kernel="rbf", gamma=0.5, coupling=coupling)
        model.fit(X[train], y[train], tasks=tasks[train])
        scores[coupling] = model.score(X[~train], truth[~train], tasks=tasks[~train])
        if coupling == "learn":
            C = model.mixing_ @ model.mixing_.T + np.diag(model.kappa_)
            scale = np.sqrt(np.diag(C))
            correlation = C / np.outer(scale, scale)
            assert np.mean(scale**2) == pytest.approx(1)
    assert scores["learn"] > max(scores["mean"], scores["independent"]) + 0.02
    alike = np.outer(sign, sign) > 0
    off = ~np.eye(n_tasks, dtype=bool)
    assert correlation[alike & off].min() > 0.3
    assert correlation[~alike].max() < -0.3


def test_learned_relations_take_every_kernel_and_form(data):
    X, tasks, signal = data
    y = np.digitize(signal, [-0.5, 0.5])
    gram = rbf_kernel(X, gamma=0.2)
    named = MultiTaskSVC(kernel="rbf", gamma=0.2, coupling="learn").fit(X, y, tasks=tasks)
    given = MultiTaskSVC(kernel="precomputed", coupling="learn").fit(gram, y, tasks=tasks)
    np.testing.assert_allclose(
        given.mixing_ @ given.mixing_.T, named.mixing_ @ named.mixing_.T, atol=0.3
    )
    Y = np.column_stack([signal, X[:, 0]])
    Y[::3, 0] = np.nan
    model = MultiTaskSVR(kernel="rbf", coupling=TaskCoupling.low_rank(1)).fit(X, Y)
    assert model.mixing_.shape == (2, 1)
    assert model.score(X, Y) > 0.5


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine, load_iris])
@pytest.mark.parametrize("name", ["rbf", "tanh", "precomputed"])
def test_decision_function_on_scikit_learns_own_data_is_libsvms(load, name):
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    y = (y == 1).astype(int)
    d = X.shape[1]
    ours, theirs = {
        "rbf": ({"kernel": "rbf", "gamma": 1 / d}, {"kernel": "rbf", "gamma": 1 / d}),
        "tanh": (
            {"kernel": "tanh", "gamma": 0.01 / d, "coef0": 0.0},
            {"kernel": "sigmoid", "gamma": 0.01 / d, "coef0": 0.0},
        ),
        "precomputed": ({"kernel": "precomputed"}, {"kernel": "precomputed"}),
    }[name]
    rows = rbf_kernel(X, gamma=0.5 / d) if name == "precomputed" else X
    tasks = np.arange(len(X)) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = MultiTaskSVC(tol=1e-6, **POOLED, **ours).fit(rows, y, tasks=tasks)
    libsvm = SVC(tol=1e-6, **theirs).fit(rows, y)
    np.testing.assert_allclose(
        model.decision_function(rows, tasks=tasks), libsvm.decision_function(rows), atol=1e-3
    )


def test_svr_on_scikit_learns_diabetes_is_libsvms():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    model = MultiTaskSVR(kernel="rbf", gamma=20.0, tol=1e-6, **POOLED)
    model.fit(X, y, tasks=np.arange(len(X)) % 4)
    libsvm = SVR(gamma=20.0, tol=1e-6).fit(X, y)
    np.testing.assert_allclose(
        model.predict(X, tasks=np.arange(len(X)) % 4), libsvm.predict(X), atol=1e-3
    )


def test_a_failed_refit_leaves_the_machine_as_it_was(data):
    X, tasks, signal = data
    model = MultiTaskSVC(kernel="rbf").fit(X, signal > 0, tasks=tasks)
    before = model.decision_function(X, tasks=tasks)
    with pytest.raises(ValueError, match="one class only"):
        model.fit(X[:, :1], np.ones(len(X)), tasks=tasks)
    np.testing.assert_array_equal(model.decision_function(X, tasks=tasks), before)


def test_a_linear_machine_far_from_the_origin_is_the_one_at_the_origin(data):
    # There float32 entries would be off by more than the rows' distances.
    X, tasks, signal = data
    far, near = (
        MultiTaskSVC(kernel="linear", coupling="pooled", task_intercept="shared", tol=1e-4).fit(
            X + shift, signal > 0, tasks=tasks
        )
        for shift in (1e4, 0.0)
    )
    assert far.objective_ == pytest.approx(near.objective_, rel=1e-5)
