"""A user's own loss is checked at the door and then as good as a built-in one."""

import copy
import ctypes
import math
import pickle

import numpy as np
import pytest
from scipy import LowLevelCallable
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
from setuptools.errors import CompileError, LinkError
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, PointLoss

DOUBLE = ctypes.c_double
TYPE = ctypes.CFUNCTYPE(DOUBLE, DOUBLE, DOUBLE, ctypes.POINTER(DOUBLE))
SOURCE = """
#include <math.h>
double squared(double y, double p, double *gradient) {
    *gradient = p - y;
    return 0.5 * (p - y) * (p - y);
}
double logistic(double y, double p, double *gradient) {
    double margin = y * p, small = exp(-fabs(margin));
    *gradient = -y * (margin > 0 ? small : 1.0) / (1.0 + small);
    return log1p(small) + (margin > 0 ? 0.0 : -margin);
}
double poisson(double y, double p, double *gradient) {
    *gradient = exp(p) - y;
    return exp(p) - y * p;
}
"""


@TYPE
def squared_callback(y, p, gradient):
    gradient[0] = p - y
    return 0.5 * (p - y) * (p - y)


@TYPE
def absolute_callback(y, p, gradient):
    gradient[0] = float(np.sign(p - y))
    return abs(p - y)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loss")
    (folder / "loss.c").write_text(SOURCE)
    compiler = new_compiler()
    customize_compiler(compiler)
    try:
        objects = compiler.compile(
            [str(folder / "loss.c")], output_dir="/", extra_postargs=["-O1", "-fPIC"]
        )
        compiler.link_shared_object(objects, str(folder / "loss.so"))
    except (CompileError, LinkError):
        pytest.skip("there is no C compiler")
    loaded = ctypes.CDLL(str(folder / "loss.so"))
    for name in ("squared", "logistic", "poisson"):
        function = getattr(loaded, name)
        function.argtypes = [DOUBLE, DOUBLE, ctypes.POINTER(DOUBLE)]
        function.restype = DOUBLE
    return loaded


def data(seed=0, n=200, d=5):
    rng = np.random.default_rng(seed)
    X, task = rng.normal(size=(n, d)), rng.integers(3, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(3, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + task + rng.normal(size=n)
    return X, y, task


def spellings(function):
    pointer = ctypes.cast(function, ctypes.c_void_p).value
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    return {
        "ctypes": function,
        "LowLevelCallable": LowLevelCallable(function),
        "PointLoss": PointLoss(function),
        "capsule": make(pointer, NAME, None),
    }


NAME = b"double (double, double, double *) noexcept nogil"  # a capsule does not copy its name


@pytest.mark.parametrize("spelling", ["ctypes", "LowLevelCallable", "PointLoss", "capsule"])
def test_a_compiled_squared_error_gives_the_model_of_the_built_in_one(spelling, library):
    X, y, task = data()
    settings = {"solver": "sgd", "max_iter": 5, "tol": None, "random_state": 0, "n_threads": 2}
    want = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task)
    got = MultiTaskSGDRegressor(loss=spellings(library.squared)[spelling], **settings)
    got.fit(X, y, tasks=task)
    # What the compiler fuses around an inlined loss may differ in the last bits.
    np.testing.assert_allclose(got.coef_, want.coef_, rtol=1e-12)
    np.testing.assert_allclose(got.intercept_, want.intercept_, rtol=1e-12)


@pytest.mark.parametrize("solver", ["sgd", "saga"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_compiled_logistic_loss_gives_the_built_in_classifier(solver, dtype, library):
    X, y, task = data()
    X, y = X.astype(dtype), np.where(y > 0, "high", "low")
    settings = {
        "solver": solver,
        "max_iter": 20,
        "tol": None,
        "random_state": 0,
        "fit_intercept": False,  # the built-in loss starts its intercept at the log-odds
    }
    want = MultiTaskSGDClassifier(**settings).fit(X, y, tasks=task)
    got = MultiTaskSGDClassifier(loss=PointLoss(library.logistic, smoothness=0.25), **settings)
    got.fit(X, y, tasks=task)
    if solver == "saga":
        np.testing.assert_allclose(got.coef_, want.coef_, rtol=1e-6)
    else:
        np.testing.assert_allclose(got.coef_, want.coef_, rtol=1e-4)
    assert np.array_equal(got.predict(X, tasks=task), want.predict(X, tasks=task))
    with pytest.raises(AttributeError, match="predict_proba needs loss='log_loss'"):
        got.predict_proba(X, tasks=task)


def test_a_callback_to_python_works_too():
    X, y, task = data()
    settings = {"alpha": 0.05, "tol": 1e-10, "max_iter": 5000, "random_state": 0}
    want = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task)
    loss = PointLoss(squared_callback, smoothness=1.0)
    got = MultiTaskSGDRegressor(loss=loss, **settings).fit(X, y, tasks=task)
    np.testing.assert_allclose(got.coef_, want.coef_, atol=1e-7)


def test_scores_start_at_the_mean_or_at_zero_as_the_loss_has_it(library):
    X, y, task = data()
    model = MultiTaskSGDRegressor(loss=library.squared, solver="sgd", eta0=1e-12, max_iter=1)
    model.set_params(tol=None).fit(X, y, tasks=task)
    np.testing.assert_allclose(model.intercept_, y.mean(), rtol=1e-6)
    model = MultiTaskSGDRegressor(loss=library.poisson, solver="sgd", eta0=1e-12, max_iter=1)
    model.set_params(tol=None).fit(X, y + 100, tasks=task)
    np.testing.assert_allclose(model.intercept_, 0.0, atol=1e-6)


def test_numba_cfunc():
    numba = pytest.importorskip("numba")

    @numba.cfunc("float64(float64, float64, CPointer(float64))")
    def squared(y, p, gradient):
        gradient[0] = p - y
        return 0.5 * (p - y) * (p - y)

    @numba.cfunc("float64(float64, float64)")
    def short(y, p):
        return 0.5 * (p - y) * (p - y)

    X, y, task = data()
    settings = {"solver": "sgd", "max_iter": 5, "tol": None, "random_state": 0}
    want = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task)
    for loss in (squared, squared.ctypes, PointLoss(squared)):
        got = MultiTaskSGDRegressor(loss=loss, **settings).fit(X, y, tasks=task)
        np.testing.assert_allclose(got.coef_, want.coef_, rtol=1e-12)
    with pytest.raises(TypeError, match=r"signature '\(float64, float64\) -> float64'"):
        MultiTaskSGDRegressor(loss=short).fit(X, y, tasks=task)


def test_what_is_not_such_a_function_is_refused():
    X, y, task = data()
    two = ctypes.CFUNCTYPE(DOUBLE, DOUBLE, DOUBLE)(lambda y, p: 0.0)
    for loss, words in [
        (math.cos, "pass a compiled function double"),
        (3.0, "loss is 3.0; pass a compiled function"),
        (None, "loss is None; pass a compiled function"),
        (two, r"loss has the signature 'double \(double, double\)'"),
        (LowLevelCallable(two), "loss has the signature"),
    ]:
        model = MultiTaskSGDRegressor(loss=loss)
        with pytest.raises(TypeError, match=words):
            model.fit(X, y, tasks=task)
        assert not hasattr(model, "tasks_")
    bound = LowLevelCallable(squared_callback, user_data=ctypes.c_void_p(8))
    with pytest.raises(ValueError, match="user_data bound"):
        PointLoss(bound)
    for smoothness in (0.0, -1.0, np.inf, "1"):
        with pytest.raises(ValueError, match="smoothness is"):
            PointLoss(squared_callback, smoothness=smoothness)
    with pytest.raises(ValueError, match="no bounded slope"):
        MultiTaskSGDRegressor(loss=PointLoss(absolute_callback), solver="saga").fit(X, y)
    with pytest.raises(ValueError, match="more than two classes"):
        MultiTaskSGDClassifier(loss=squared_callback).fit(X, np.arange(len(y)) % 3)


def test_a_loss_that_yields_nan_is_said_to_diverge():
    @TYPE
    def broken(y, p, gradient):
        gradient[0] = math.nan
        return math.nan

    X, y, task = data()
    with pytest.raises(FloatingPointError, match="diverged in epoch 1"):
        MultiTaskSGDRegressor(loss=broken).fit(X, y, tasks=task)


def test_estimators_with_a_loss_of_ones_own_clone_and_search():
    X, y, task = data()
    loss = PointLoss(squared_callback, smoothness=1.0)
    assert clone(MultiTaskSGDRegressor(loss=loss)).loss is loss
    assert copy.deepcopy(loss) is loss
    assert repr(loss).startswith("PointLoss(<")
    rows = np.column_stack([task, X])
    model = MultiTaskSGDRegressor(loss=loss, task_column=0, max_iter=20, tol=None)
    search = GridSearchCV(model, {"alpha": [1e-3, 1e3]}, cv=2).fit(rows, y)
    assert search.best_params_ == {"alpha": 1e-3}
    # A function pointer means nothing in another process; that is said by ctypes itself.
    with pytest.raises(ValueError, match="pointers cannot be pickled"):
        pickle.dumps(loss)
