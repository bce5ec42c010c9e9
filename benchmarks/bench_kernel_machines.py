"""Kernel machines against scikit-learn, each peer in the same run.

    python benchmarks/bench_kernel_machines.py fit --rows 4000
    python benchmarks/bench_kernel_machines.py large --rows 1000000
    python benchmarks/bench_kernel_machines.py data        # needs FASTMTL_DATA

``fit`` times the solver on one Gram matrix, the whole fit with the Gram matrix, and the pooled
problem; ``large`` times Nyström features with the linear engine; ``data`` scores real data sets.
Each line has the ratio (peer / fastmtl) first.
"""

import argparse
import os
import platform
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from fastmtl._core.dual_cd import minimise
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import fastmtl
from fastmtl import (
    MultiTaskSGDClassifier,
    MultiTaskSVC,
    MultiTaskSVR,
    SigmoidNystroem,
    TaskCoupling,
    make_kernel_sgd,
)


def best_of(repeats, call):
    seconds = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        answer = call()
        seconds = min(seconds, time.perf_counter() - began)
    return seconds, answer


def report(what, peer, ours, note=""):
    print(
        f"{peer / ours:6.1f} x  {what}: peer {peer:.3f} s, fastmtl {ours:.3f} s  {note}", flush=True
    )


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def related_tasks(n, n_tasks=20, d=20, seed=0):
    rng = np.random.default_rng(seed)
    tasks = np.sort(rng.integers(0, n_tasks, n))
    X = rng.normal(size=(n, d))
    w = rng.normal(size=d) + 0.7 * rng.normal(size=(n_tasks, d))
    y = np.sign(np.tanh((X * w[tasks]).sum(axis=1)) + 0.5 * rng.normal(size=n))
    return X, tasks, y


def dual_objective(libsvm, gram, y):
    beta = np.zeros(len(y))
    beta[libsvm.support_] = libsvm.dual_coef_[0]
    return y @ beta - 0.5 * beta @ gram @ beta


def solve(gram, tasks, y):
    """The compiled solver alone, on the problem that libsvm gets."""
    n, n_tasks = len(y), tasks.max() + 1
    beta, gradient = np.zeros(n), -y
    minimise(
        gram,
        None,
        np.diagonal(gram).astype(np.float64),
        np.arange(n, dtype=np.int32),
        tasks.astype(np.int32),
        np.zeros(n_tasks, dtype=np.int32),
        np.ones((n_tasks, 1)),
        np.ones(n_tasks),
        np.minimum(0.0, y),
        np.maximum(0.0, y),
        np.zeros(n),
        0.0,
        1e-3,
        10**7,
        False,
        beta,
        gradient,
        None,
    )


def fit(n, kernels=("sigmoid", "rbf")):
    X, tasks, y = related_tasks(n)
    d = X.shape[1]
    before = peak()
    settings = {"gamma": 1 / d, "sigma": 1 / d, "task_intercept": "shared"}
    ours = {}
    for name in kernels:
        for dtype in (np.float64, np.float32):
            model = MultiTaskSVC(kernel=name, **settings)
            rows = X.astype(dtype)
            ours[name, dtype] = best_of(3, lambda m=model, r=rows: m.fit(r, y, tasks=tasks))
    print(
        f"memory above the data: {peak() - before:.2f} GB; float64 Gram {n * n * 8 / 2**30:.2f} GB"
    )
    for name in kernels:

        def gram_in_numpy(name=name):
            if name == "sigmoid":
                return 1 / (1 + np.exp(-(X @ X.T) / d))
            squares = (X**2).sum(axis=1)
            return np.exp(-(squares[:, None] + squares - 2 * X @ X.T) / d)

        gram_seconds, gram = best_of(3, gram_in_numpy)
        couple_seconds, coupled = best_of(3, lambda g=gram: g * (1 + (tasks[:, None] == tasks)))
        libsvm = SVC(kernel="precomputed", cache_size=1000)
        solve_seconds, libsvm = best_of(3, lambda s=libsvm, g=coupled: s.fit(g, y))
        peer = gram_seconds + couple_seconds + solve_seconds
        objective = dual_objective(libsvm, coupled, y)
        del coupled
        for dtype in (np.float64, np.float32):
            seconds, model = ours[name, dtype]
            gap = abs(model.objective_ - model.duality_gap_ - objective) / objective
            label = f"{name}, n={n}, T=20, {np.dtype(dtype)}, Gram and fit"
            report(label, peer, seconds, f"dual objectives differ by {gap:.1e} relative")
            given = gram.astype(dtype)
            solver, _ = best_of(3, lambda g=given: solve(g, tasks, y))
            report(f"{name}, n={n}, {np.dtype(dtype)}, solver on one Gram", solve_seconds, solver)
        del gram
    pooled = {"coupling": "pooled", "task_intercept": "shared", "kernel": "rbf", "gamma": 1 / d}
    peer, _ = best_of(3, lambda: SVC(gamma=1 / d).fit(X, y))
    seconds, _ = best_of(3, lambda: MultiTaskSVC(**pooled).fit(X, y, tasks=tasks))
    report(f"pooled rbf, n={n}, against SVC(kernel='rbf')", peer, seconds)
    quarter = n * n * 8 / 2**20 / 4  # of a float64 Gram: half the rows, which both keep in float32
    peer, _ = best_of(2, lambda: SVC(gamma=1 / d, cache_size=quarter).fit(X, y))
    for coupling in ("pooled", "mean"):
        rows = MultiTaskSVC(cache_size=quarter, **pooled | {"coupling": coupling})
        seconds, _ = best_of(2, lambda m=rows: m.fit(X, y, tasks=tasks))
        report(f"{coupling} rbf, n={n}, a cache of {quarter:.0f} MB each", peer, seconds)


def curved_tasks(n, n_tasks=100, d=28, seed=0):
    rng = np.random.default_rng(seed)
    scale = 1.5 * 0.8 ** np.arange(d)
    X = (rng.normal(size=(n, d)) * scale).astype(np.float32)
    tasks = rng.integers(0, n_tasks, n)
    weights = rng.normal(size=6) + 0.5 * rng.normal(size=(n_tasks, 6))
    curved = np.column_stack([X[:, 0] ** 2 - 2, X[:, 1] * X[:, 2], X[:, 0] * X[:, 3]])
    signal = (np.column_stack([curved, X[:, :3]]) * weights[tasks]).sum(axis=1)
    y = (signal + 0.3 * rng.normal(size=n) > 0).astype(np.int8)
    return X, tasks, y


def large(n, m):
    X, tasks, y = curved_tasks(n)
    train, test = slice(0, n * 9 // 10), slice(n * 9 // 10, n)
    gamma = 0.05
    print(f"{n} rows (a tenth for testing), 28 features, 100 tasks, {m} landmarks")
    linear = MultiTaskSGDClassifier(solver="sgd", max_iter=5, tol=None, random_state=0)
    linear.fit(X[train], y[train], tasks=tasks[train])
    print(f"linear, mean: accuracy {linear.score(X[test], y[test], tasks=tasks[test]):.4f}")
    ours = None
    for coupling in ("mean", "pooled", "independent"):
        machine = make_kernel_sgd(
            MultiTaskSGDClassifier(loss="hinge", alpha=1e-6, coupling=coupling),
            feature_map=SigmoidNystroem(m, kernel="rbf", gamma=gamma),
            cache_size=min(400, 0.9 * n * m * 4 / 2**21),
            n_passes=1,
            random_state=0,
        )
        seconds, _ = best_of(1, lambda k=machine: k.fit(X[train], y[train], tasks=tasks[train]))
        score = machine.score(X[test], y[test], tasks=tasks[test])
        print(
            f"Nystroem + SGD, {coupling}: {seconds:.1f} s in one pass, accuracy {score:.4f}, "
            f"peak {peak():.2f} GB",
            flush=True,
        )
        ours = ours or seconds
    k = min(n * 9 // 10, 100_000)  # the peer keeps all features in memory

    def peer():
        features = Nystroem(gamma=gamma, n_components=m, random_state=0).fit(X[:k])
        model = SGDClassifier(alpha=1e-6, max_iter=1, tol=None, random_state=0)
        return features, model.fit(features.transform(X[:k]), y[:k])

    seconds, (features, model) = best_of(1, peer)
    correct = model.score(features.transform(X[test][:50_000]), y[test][:50_000])
    seconds *= n * 0.9 / k
    report(
        f"Nystroem + SGDClassifier, pooled (timed on {k} rows, scaled)",
        seconds,
        ours,
        f"accuracy {correct:.4f}",
    )


def mean_auc(model, X, y, tasks):
    scores = model.decision_function(X, tasks=tasks)
    return np.mean([roc_auc_score(y[tasks == t], scores[tasks == t]) for t in np.unique(tasks)])


def landmine(folder):
    data = np.load(folder / "landmine.npz")
    X = StandardScaler().fit_transform(data["X"].astype(np.float64))
    y, tasks = data["y"].astype(int), data["task"].astype(int)
    alike = np.where((np.arange(29)[:, None] < 15) == (np.arange(29) < 15), 1.0, 0.2)
    couplings = {
        "pooled": "pooled",
        "independent": "independent",
        "mean": TaskCoupling.mean(0.3),
        "two grounds": TaskCoupling.from_covariance(alike + 0.3 * np.eye(29)),
        "learn": "learn",
    }
    for name, coupling in couplings.items():
        scores = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            train = np.zeros(len(y), dtype=bool)
            for t in range(29):
                for label in (0, 1):
                    own = np.flatnonzero((tasks == t) & (y == label))
                    train[rng.permutation(own)[: len(own) // 2]] = True
            model = MultiTaskSVC(
                kernel="rbf",
                gamma=0.01,
                C=0.1,
                coupling=coupling,
                loss="squared_hinge",
                class_weight="balanced",
            ).fit(X[train], y[train], tasks=tasks[train])
            scores.append(mean_auc(model, X[~train], y[~train], tasks[~train]))
        print(f"landmine, {name}: average AUC {np.mean(scores):.3f} (3 splits)", flush=True)


def school(folder):
    data = np.load(folder / "school.npz")
    X, y, tasks = data["X"].astype(np.float64), data["y"].astype(np.float64), data["task"]
    X = StandardScaler().fit_transform(X[:, X.std(axis=0) > 0])
    rng = np.random.default_rng(0)
    train = np.zeros(len(y), dtype=bool)
    for t in np.unique(tasks):
        own = rng.permutation(np.flatnonzero(tasks == t))
        train[own[: round(0.75 * len(own))]] = True
    centre = y[train].mean()
    # A constant feature is an intercept of each task, shrunk toward the shared one.
    linear = np.column_stack([X, np.ones(len(X))])
    for name, coupling in {
        "pooled": "pooled",
        "independent": TaskCoupling.independent(0.3),
        "mean": TaskCoupling.mean(0.1),
        "learn": "learn",
    }.items():
        for kernel, rows in (("linear", linear), ("rbf", X)):
            model = MultiTaskSVR(
                kernel=kernel,
                gamma=0.005,
                coupling=coupling,
                loss="squared_epsilon_insensitive",
                epsilon=0.0,
                C=1 / 60 if kernel == "linear" else 0.5,
                task_intercept="shared",
                cache_size=2000,
                tol=1e-2,
            )
            seconds, _ = best_of(
                1, lambda m=model, r=rows: m.fit(r[train], y[train] - centre, tasks=tasks[train])
            )
            error = y[~train] - centre - model.predict(rows[~train], tasks=tasks[~train])
            explained = 1 - (error**2).sum() / ((y[~train] - centre) ** 2).sum()
            print(
                f"school, {name}, {kernel}: explained variance {explained:.3f}, {seconds:.1f} s",
                flush=True,
            )


def newsgroups(folder):
    data = np.load(folder / "newsgroups.npz")
    for pair in ("comp_sci", "rec_talk"):
        parts = [data[f"{pair}_{part}"] for part in ("data", "indices", "indptr", "shape")]
        X = sp.csr_matrix(tuple(parts[:3]), shape=tuple(parts[3])).astype(np.float64)
        y, tasks = data[f"{pair}_y"].astype(int), data[f"{pair}_task"].astype(int)
        for share in (0.05, 0.3):
            for coupling in ("pooled", "independent", "mean", "learn"):
                scores = []
                for seed in range(3):
                    train = np.random.default_rng(seed).random(len(y)) < share
                    model = MultiTaskSVC(kernel="linear", coupling=coupling)
                    model.fit(X[train], y[train], tasks=tasks[train])
                    scores.append(model.score(X[~train], y[~train], tasks=tasks[~train]))
                print(
                    f"newsgroups {pair}, {share:.0%} for training, {coupling}: accuracy "
                    f"{np.mean(scores):.3f}",
                    flush=True,
                )


def real_data():
    folder = os.environ.get("FASTMTL_DATA")
    if not folder:
        raise SystemExit("set FASTMTL_DATA to the folder with the data sets")
    for run in (landmine, school, newsgroups):
        run(Path(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["fit", "large", "data"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--landmarks", type=int, default=1000)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if arguments.what == "fit":
        fit(arguments.rows or 4000)
    elif arguments.what == "large":
        large(arguments.rows or 1_000_000, arguments.landmarks)
    else:
        real_data()
    config = fastmtl.get_config()
    print(f"{platform.machine()}, {config['simd']}, {config['threads']} threads")


if __name__ == "__main__":
    main()
