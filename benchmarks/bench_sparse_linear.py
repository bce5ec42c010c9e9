"""Joint feature selection (L21) against scikit-learn and skglm on a common X.

Run ``python benchmarks/bench_sparse_linear.py``. Every solver gets the loosest of its tolerances
that brings the objective within 1e-6 of the best known, relative to it. skglm is left out where it
is not installed.
"""

import statistics
import time
import warnings

import numpy as np
from sklearn.linear_model import MultiTaskLasso

from fastmtl import MultiTaskSparseRegressor

REPEATS = 7
TOLERANCES = [10.0**-k for k in range(2, 11)]


def problem(n, d, n_tasks):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(n, 1))
    weights = np.zeros((d, n_tasks))
    weights[:: d // 20] = rng.normal(size=(len(range(0, d, d // 20)), n_tasks))
    return np.asfortranarray(X), X @ weights + rng.normal(size=(n, n_tasks))


def solvers(alpha, n_tasks):
    """name: tolerance -> fitted (coef (T, d), intercept (T,))"""

    def fastmtl(X, Y, tol):
        return MultiTaskSparseRegressor(alpha=alpha / n_tasks, tol=tol).fit(X, Y)

    def scikit_learn(X, Y, tol):
        return MultiTaskLasso(alpha=alpha, tol=tol, max_iter=100_000).fit(X, Y)

    found = {"fastmtl": fastmtl, "scikit-learn": scikit_learn}
    try:
        import skglm

        found["skglm"] = lambda X, Y, tol: skglm.MultiTaskLasso(alpha=alpha, tol=tol).fit(X, Y)
    except ImportError:
        print("skglm is not installed: left out")
    return found


def objective(model, X, Y, alpha):
    residual = Y - X @ model.coef_.T - model.intercept_
    lengths = np.linalg.norm(model.coef_, axis=0)
    return np.sum(residual**2) / (2 * len(X)) + alpha * lengths.sum()


def main():
    print("seconds to within 1e-6 of the best objective; ratios to fastmtl")
    for n, d, n_tasks in [(1000, 500, 20), (300, 3000, 20), (5000, 200, 100)]:
        X, Y = problem(n, d, n_tasks)
        centred = (X - X.mean(axis=0)).T @ (Y - Y.mean(axis=0)) / n
        for share in (0.5, 0.1, 0.02):
            alpha = share * np.linalg.norm(centred, axis=1).max()
            fits = solvers(alpha, n_tasks)
            best = objective(fits["fastmtl"](X, Y, 1e-11), X, Y, alpha)
            tols = {}
            for name, fit in fits.items():
                fit(X, Y, 0.1)  # compiles, where the peer does that
                tols[name] = next(
                    (
                        tol
                        for tol in TOLERANCES
                        if objective(fit(X, Y, tol), X, Y, alpha) <= best * (1 + 1e-6)
                    ),
                    None,
                )
            times = {name: [] for name, tol in tols.items() if tol is not None}
            for _ in range(REPEATS):
                for name, spent in times.items():
                    began = time.perf_counter()
                    fits[name](X, Y, tols[name])
                    spent.append(time.perf_counter() - began)
            middle = {name: statistics.median(spent) for name, spent in times.items()}
            row = f"n={n:5d} d={d:5d} T={n_tasks:4d} alpha={share:4.2f} max:"
            row += f" {middle['fastmtl'] * 1e3:8.1f} ms"
            for name in fits:
                if name != "fastmtl":
                    ratio = middle.get(name, np.nan) / middle["fastmtl"]
                    row += f"  {name} {ratio:6.2f} x"
            print(row, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
