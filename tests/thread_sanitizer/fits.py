"""What runs on several threads, on data so small that ThreadSanitizer is done soon.

With the argument ``race``, a race instead: two parts of `shuffle_pools` overlap.
"""

import itertools
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor

import network_trunks
import numpy as np
import scipy.sparse as sp

import fastmtl
from fastmtl import layers
from fastmtl._core import random

N, D, T, WIDE = 480, 6, 9, 3000

rng = np.random.default_rng(0)
X = rng.normal(size=(N, D))
task = rng.integers(T, size=N)
giant = rng.choice(3, p=[0.05, 0.9, 0.05], size=N)
y = X @ rng.normal(size=D) + 0.3 * task
label = np.digitize(y, np.quantile(y, [0.3, 0.7]))
words = sp.random_array((N, WIDE), density=0.004, format="csr", rng=rng)
words += sp.csr_array((np.ones(N), (np.arange(N), task)), shape=words.shape)


def product(**choices):
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values))


def linear():
    regressor, classifier = fastmtl.MultiTaskSGDRegressor, fastmtl.MultiTaskSGDClassifier
    fixed = {"max_iter": 3, "tol": None, "random_state": 0}
    steps = (
        {},
        {"learning_rate": "adagrad"},
        {"average": True},
        {"clip_gradient": 1.0},
        {"shared_penalty": "l1", "task_penalty": "elasticnet"},
    )
    couplings = "pooled", "independent", fastmtl.TaskCoupling.from_factors(np.eye(T)[:, :2], 1.0)
    for rows in (X, X.astype(np.float32), sp.csr_array(X), words):
        for step, of in itertools.product(steps, (task, giant)):
            yield regressor(**fixed, **step, solver="sgd"), rows, y, of
            yield classifier(**fixed, **step, solver="sgd"), rows, label, of
        for options in product(coupling=couplings, sampling=("uniform", "task", "balanced")):
            yield classifier(**fixed, **options, solver="sgd"), rows, y > 0, task
        yield classifier(**fixed, solver="saga"), rows, label, task
        yield classifier(**fixed, solver="dual"), rows, y > 0, task
    for rows, coupling in itertools.product((X, sp.csr_array(X)), couplings):
        yield regressor(**fixed, solver="cholesky", coupling=coupling), rows, y, task
        newton = classifier(**{**fixed, "tol": 1e-4}, solver="newton", coupling=coupling)
        yield newton, rows, y > 0, task
    yield regressor(**fixed, coupling="learn"), X, y, task
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/X.npy", X)
        rows = np.load(f"{folder}/X.npy", mmap_mode="r")
        yield regressor(**fixed, solver="sgd", sampling="block"), rows, y, task
        yield regressor(**fixed, solver="cholesky"), rows, y, task


def others():
    for rows in (X, sp.csr_array(X)):
        yield fastmtl.MultiTaskSparseRegressor(alpha=0.1), rows, y, task
        yield fastmtl.MultiTaskSparseClassifier(alpha=0.01), rows, label, task
    yield fastmtl.MultiTaskSVC(), X, label, task
    yield fastmtl.MultiTaskSVC(cache_size=0.1), X, label, task
    yield fastmtl.MultiTaskSVR(), X, y, task
    yield fastmtl.MultiTaskKernelRidge(), X, y, task


def networks():
    regressor = fastmtl.MultiTaskNetworkRegressor
    fixed = {"max_iter": 2, "tol": 0.0, "random_state": 0}
    for solver in ("sgd", "momentum", "nesterov", "adam", "adamw"):
        yield regressor(**fixed, solver=solver), X, y, task
    for trunk, shape, with_lengths in network_trunks.TRUNKS.values():
        _, rows, lengths = network_trunks.data(shape, with_lengths)
        model = regressor(trunk=trunk, **fixed, batch_size=8)
        yield model, rows, y[:24], np.arange(24) % 3, {"lengths": lengths} if with_lengths else {}
    large = [layers.Dense(300), layers.Dropout(0.2), layers.Dense(300)]
    for options in (
        {},
        {"coupling": "learn"},
        {"gradient_surgery": "pcgrad"},
        {"task_weight": "gradnorm"},
        {"clip_norm": 1.0},
        {"weight_decay": 0.01},
    ):
        yield regressor(trunk=large, **fixed, **options), X, y, task
    yield fastmtl.MultiTaskNetworkClassifier(trunk=large, **fixed), X, label, task


def grams(n_threads):
    points = rng.normal(size=(700, 5))
    for kernel in ("sigmoid", "tanh", "rbf", "polynomial", "linear"):
        function = getattr(fastmtl, f"{kernel}_kernel")
        for dtype in (np.float32, np.float64):
            rows = points.astype(dtype)
            function(rows, n_threads=n_threads)
            function(rows, rows[:99], n_threads=n_threads)
    for form in ("logistic", "tanh"):
        operator = fastmtl.SigmoidOperator(points, form=form, n_threads=n_threads)
        operator @ rng.normal(size=(700, 3))
        fastmtl.kernel_gradient(points, form=form, n_threads=n_threads)


def fit(case, n_threads):
    model, rows, target, of, *more = case
    model.set_params(n_threads=n_threads)
    model.fit(rows, target, tasks=of, **(more[0] if more else {}))
    model.predict(rows, tasks=of, **(more[0] if more else {}))


def race():
    n = 512
    random.shuffle_pools(
        np.empty(n, dtype=np.int64), np.array([0, n, 0, n]), np.empty(n, dtype=np.int64), 8, 64, 0
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "race" in sys.argv:
        race()
        sys.exit()
    done = 0
    for n_threads in (2, 3, 4):
        grams(n_threads)
        for cases in (linear, others, networks):
            for case in cases():
                fit(case, n_threads)
                done += 1
    few = [case for cases in (linear, others, networks) for case in cases()][::3]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(fit, few, itertools.repeat(2)))
    print(f"{done} fits on 2, 3 and 4 threads, {len(few)} fits by three callers at once")
