"""Epochs of the linear models against scikit-learn's SGD, and School against its closed form.

Run ``python benchmarks/bench_linear.py``; School needs ``FASTMTL_DATA`` (see fastmtl.datasets).
An epoch's time is the difference of two fits, so that what is done once is not counted.
"""

import statistics
import time
import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import Ridge, SGDRegressor

import fastmtl
from fastmtl import MultiTaskSGDRegressor, TaskCoupling, datasets

ROUNDS = 5


def seconds(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def epoch_seconds(make):
    """Median seconds per extra epoch of ``make(max_iter)()``, over interleaved pairs."""
    few, many = 2, 7
    return statistics.median(
        (seconds(make(many)) - seconds(make(few))) / (many - few) for _ in range(ROUNDS)
    )


def ours(X, y, task, n_threads=1, **settings):
    def make(max_iter):
        model = MultiTaskSGDRegressor(
            solver="sgd", tol=None, max_iter=max_iter, n_threads=n_threads, **settings
        )
        return lambda: model.fit(X, y, tasks=task)

    return make


def plain(X, y):
    def make(max_iter):
        model = SGDRegressor(tol=None, max_iter=max_iter, eta0=1e-4)
        return lambda: model.fit(X, y)

    return make


def easy_adapt(X, task, kappa=1.0):
    """Each row's features once for all tasks and once for its own: CSR."""
    n, d = X.shape
    columns = np.concatenate(
        [
            np.broadcast_to(np.arange(d), (n, d)),
            d * (1 + task.astype(np.int64))[:, None] + np.arange(d),
        ],
        axis=1,
    )
    data = np.concatenate([X, np.sqrt(kappa) * X], axis=1).ravel()
    indptr = np.arange(n + 1) * 2 * d
    return sp.csr_matrix((data, columns.ravel(), indptr), shape=(n, d * (2 + task.max())))


def epochs():
    print("\nper-sample epoch, n = 200,000, T = 100, shared + specific; ratios to fastmtl")
    print(f"{'':>12}{'scikit-learn':>14}{'EasyAdapt CSR':>15}{'2 threads':>11}{'ns/sample':>11}")
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        for d in (28, 100, 1000):
            n = 200_000 if d < 1000 else 20_000
            X = (rng.normal(size=(n, d)) / np.sqrt(d)).astype(dtype)
            task = rng.integers(100, size=n)
            y = X[:, 0] + rng.normal(size=n)
            one = epoch_seconds(ours(X, y, task))
            two = epoch_seconds(ours(X, y, task, n_threads=2))
            peer = epoch_seconds(plain(X, y))
            adapted = epoch_seconds(plain(easy_adapt(X, task), y)) if d < 1000 else np.nan
            label = f"f{8 * np.dtype(dtype).itemsize}, {d}"
            print(
                f"{label:>12}{peer / one:14.1f}{adapted / one:15.1f}{one / two:11.2f}"
                f"{1e9 * one / n:11.1f}"
            )


def closed_form(X, y, task, kappa, alpha):
    """w_0 + v_t ridge with coupled intercepts: the shared block after eliminating each task's."""
    n, d = X.shape
    Z = np.column_stack([X, np.ones(n)])
    own = [np.flatnonzero(task == t) for t in range(task.max() + 1)]
    left, right = np.diag(np.r_[np.full(d, alpha), 0.0]), np.zeros(d + 1)
    parts = []
    for rows in own:
        gram, moment = Z[rows].T @ Z[rows] / n, Z[rows].T @ y[rows] / n
        if kappa > 0:
            inner = np.linalg.inv(gram + alpha / kappa * np.eye(d + 1))
            left += gram - gram @ inner @ gram
            right += moment - gram @ inner @ moment
            parts.append((inner, gram, moment))
        else:
            left += gram
            right += moment
    shared = np.linalg.solve(left, right)
    if kappa == 0:
        return np.tile(shared, (len(own), 1))
    return np.array([shared + inner @ (moment - gram @ shared) for inner, gram, moment in parts])


def independent_form(X, y, task, alpha):
    n, _d = X.shape
    weights = []
    for t in range(task.max() + 1):
        rows = task == t
        peer = Ridge(alpha=alpha * n).fit(X[rows], y[rows])
        weights.append(np.r_[peer.coef_, peer.intercept_])
    return np.array(weights)


def school():
    X, y, task = datasets.fetch_school(return_X_y=True)
    X, y = X[:, X.std(axis=0) > 0].astype(np.float64), y.astype(np.float64)
    print("\nSchool, explained variance of the test part, mean over seeds 0-4; time per fit")
    kinds = {
        "w_0 + v_t": (TaskCoupling.mean(0.1), lambda *a: closed_form(*a[:3], 0.1, a[3])),
        "pooled": ("pooled", lambda *a: closed_form(*a[:3], 0.0, a[3])),
        "independent": ("independent", independent_form),
    }
    rows = {}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        train = np.zeros(len(y), dtype=bool)
        for t in range(139):
            own = rng.permutation(np.flatnonzero(task == t))
            train[own[: round(0.75 * len(own))]] = True
        Z = (X - X[train].mean(axis=0)) / X[train].std(axis=0)
        target = y - y[train].mean()
        alpha = 30 / train.sum()
        a, b, ta, tb = Z[train], Z[~train], task[train], task[~train]
        truth = target[~train]
        total = np.sum((truth - truth.mean()) ** 2)

        def note(name, began, predicted, truth=truth, total=total):
            spent = time.perf_counter() - began
            variance = 1 - np.sum((truth - predicted()) ** 2) / total
            rows.setdefault(name, []).append((variance, spent))

        for name, (coupling, solve) in kinds.items():
            began = time.perf_counter()
            model = MultiTaskSGDRegressor(alpha=alpha, coupling=coupling, random_state=seed)
            model.fit(a, target[train], tasks=ta)
            note(f"{name}, fastmtl", began, lambda m=model, b=b, tb=tb: m.predict(b, tasks=tb))
            began = time.perf_counter()
            w = solve(a, target[train], ta, alpha)
            note(
                f"{name}, closed form",
                began,
                lambda w=w, b=b, tb=tb: np.einsum("ij,ij->i", b, w[tb, :-1]) + w[tb, -1],
            )
        wide, wide_test = (
            easy_adapt(np.column_stack([part, np.ones(len(part))]), ids, 0.1)
            for part, ids in ((a, ta), (b, tb))
        )
        for label, peer in (
            ("EasyAdapt + Ridge", Ridge(alpha=30.0, solver="sparse_cg", tol=1e-6)),
            ("EasyAdapt + SGDRegressor", SGDRegressor(alpha=alpha, max_iter=200, tol=1e-4)),
        ):
            began = time.perf_counter()
            peer.fit(wide, target[train])
            note(label, began, lambda p=peer, w=wide_test: p.predict(w))
    for name, values in rows.items():
        variance = np.mean([v for v, _ in values])
        spent = statistics.median([s for _, s in values])
        print(f"  {name:<28}{variance:8.4f}{1e3 * spent:10.1f} ms")


def main():
    warnings.simplefilter("ignore")
    fastmtl.show_config()
    if (datasets.get_data_home() / "school.npz").is_file():
        school()
    epochs()


if __name__ == "__main__":
    main()
