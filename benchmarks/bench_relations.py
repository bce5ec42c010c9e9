"""Learned relations: what they gain on real tasks, what they cost, and a full-gradient solver.

Run ``python benchmarks/bench_relations.py [accuracy|school|time|objective|figure]``; real
data need ``FASTMTL_DATA`` (see fastmtl.datasets). The models that do not learn their relations are
given their best strength of penalty in hindsight, on the test part; the learned ones choose theirs
on the training part.
"""

import statistics
import sys
import time
import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

import fastmtl
from fastmtl import (
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
    MultiTaskSGDRegressorCV,
    TaskCoupling,
    datasets,
)

STRENGTHS = 10.0 ** np.arange(-5, 1)
LEARNED = {
    "learned": TaskCoupling.learn(scale="evidence"),
    "learned, features too": TaskCoupling.learn(scale="evidence", feature_covariance="full"),
}
GIVEN = {"pooled": "pooled", "independent": "independent", "shared + specific": "mean"}


def read(name):
    with np.load(datasets.get_data_home() / name) as arrays:
        return {key: arrays[key] for key in arrays.files}


def part(rng, groups, share):
    """A boolean mask with that share of each group's rows."""
    chosen = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        own = rng.permutation(np.flatnonzero(groups == group))
        chosen[own[: round(share * len(own))]] = True
    return chosen


def standardised(X, train):
    X = X[:, X.std(axis=0) > 0].astype(np.float64)
    return (X - X[train].mean(axis=0)) / X[train].std(axis=0)


def school(seed):
    X, y, task = datasets.fetch_school(return_X_y=True)
    train = part(np.random.default_rng(seed), task, 0.75)
    y = y.astype(np.float64) - y[train].mean()
    truth = y[~train]

    def score(predicted):
        return 1 - np.sum((truth - predicted) ** 2) / np.sum((truth - truth.mean()) ** 2)

    return MultiTaskSGDRegressor, standardised(X, train), y, task, train, score


def landmine(seed):
    X, y, task = datasets.fetch_landmine(return_X_y=True)
    train = part(np.random.default_rng(seed), 2 * task + y, 0.5)

    def score(scores):
        own, truth = task[~train], y[~train]
        return np.mean([roc_auc_score(truth[own == t], scores[own == t]) for t in np.unique(own)])

    return MultiTaskSGDClassifier, standardised(X, train), y, task, train, score


def newsgroups(name):
    def load(seed):
        raw = read("newsgroups.npz")
        keys = ("data", "indices", "indptr")
        arrays = tuple(raw[f"{name}_{key}"] for key in keys)
        X = sp.csr_matrix(arrays, shape=tuple(raw[f"{name}_shape"])).astype(np.float64)
        y, task = raw[f"{name}_y"], raw[f"{name}_task"]
        train = part(np.random.default_rng(seed), 2 * task + y, 0.05)

        def score(scores):
            return np.mean((scores > 0) == y[~train])

        return MultiTaskSGDClassifier, X, y, task, train, score

    return load


def sarcos(seed):
    raw = read("sarcos_test.npz")
    X, Y = raw["X"], raw["Y"].astype(np.float64)
    n, n_tasks = Y.shape
    rng = np.random.default_rng(seed)
    rows, task = np.repeat(np.arange(n), n_tasks), np.tile(np.arange(n_tasks), n)
    known = np.array([rng.permutation(n) < 50 for _ in range(n_tasks)]).T.ravel()
    X = standardised(X, np.unique(rows[known]))
    Y = (Y - Y.mean(axis=0)) / Y.std(axis=0)

    def score(predicted):
        return 1 - np.mean((Y.ravel()[~known] - predicted) ** 2)

    return MultiTaskSGDRegressor, X[rows], Y.ravel(), task, known, score


SETS = {
    "School, explained variance": (school, 5),
    "Landmine, mean AUC": (landmine, 5),
    "Newsgroups comp/sci, accuracy, 5 % train": (newsgroups("comp_sci"), 5),
    "Newsgroups rec/talk, accuracy, 5 % train": (newsgroups("rec_talk"), 5),
    "SARCOS, 50 labels a torque, R²": (sarcos, 5),
}


def scores_of(model, X, task):
    answer = getattr(model, "decision_function", model.predict)
    return answer(X, tasks=task)


def accuracy():
    for title, (load, n_seeds) in SETS.items():
        table, seconds = {}, {}
        for seed in range(n_seeds):
            kind, X, y, task, train, score = load(seed)

            def fit(coupling, alpha, data=(kind, X, y, task, train)):
                kind, X, y, task, train = data
                model = kind(coupling=coupling, alpha=alpha, random_state=0)
                began = time.perf_counter()
                model.fit(X[train], y[train], tasks=task[train])
                return scores_of(model, X[~train], task[~train]), time.perf_counter() - began

            for name, coupling in GIVEN.items():
                tried = [fit(coupling, alpha) for alpha in STRENGTHS]
                best = max(tried, key=lambda pair: score(pair[0]))
                table.setdefault(name, []).append(score(best[0]))
                seconds.setdefault(name, []).append(best[1])
            for name, coupling in LEARNED.items():
                if sp.issparse(X) and "features" in name:
                    continue
                predicted, spent = fit(coupling, 1e-3)
                table.setdefault(name, []).append(score(predicted))
                seconds.setdefault(name, []).append(spent)
        print(f"\n{title}: mean and standard deviation over {n_seeds} splits; seconds a fit")
        for name, values in table.items():
            spent = statistics.median(seconds[name])
            print(f"  {name:<30}{np.mean(values):8.4f} ± {np.std(values):.4f}{spent:8.2f}")


def chosen():
    """School by the estimator that chooses strength and coupling on the training part."""
    print("\nSchool, MultiTaskSGDRegressorCV: explained variance of the test part, seconds, choice")
    scores = []
    for seed in range(5):
        _, X, y, task, train, score = school(seed)
        began = time.perf_counter()
        model = MultiTaskSGDRegressorCV(random_state=0).fit(X[train], y[train], tasks=task[train])
        spent = time.perf_counter() - began
        scores.append(score(model.predict(X[~train], tasks=task[~train])))
        print(f"  seed {seed}{scores[-1]:9.4f}{spent:8.1f} s   {model.coupling_}")
    print(f"  mean  {np.mean(scores):9.4f} ± {np.std(scores):.4f}")


def median_seconds(functions, rounds=5):
    """Medians over interleaved rounds."""
    spent = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(spent, functions):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in spent]


def full_gradient(parts, K, alpha, goal, grams=False):
    """Accelerated gradient steps on all tasks' vectors, as RMTL and MALSAR take, in NumPy.

    They multiply by each task's rows in every step; `grams` multiplies by X_t' X_t, found once.
    """
    n = sum(len(y) for _, y in parts)
    n_tasks, d = len(parts), parts[0][0].shape[1]
    steepest = max(np.linalg.norm(X, 2) ** 2 for X, _ in parts) / n
    step = 1 / (steepest + alpha * np.linalg.eigvalsh(K)[-1])
    W = V = np.zeros((n_tasks, d))
    if grams:
        gram = np.stack([X.T @ X for X, _ in parts]) / n
        moment = np.stack([X.T @ y for X, y in parts]) / n
        square = sum(y @ y for _, y in parts) / n
    momentum, steps = 1.0, 0
    while True:
        gradient = alpha * K @ V
        if grams:
            gradient += np.einsum("tij,tj->ti", gram, V) - moment
        else:
            for t, (X, y) in enumerate(parts):
                gradient[t] += X.T @ (X @ V[t] - y) / n
        old, W = W, V - step * gradient
        new = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        V = W + (momentum - 1) / new * (W - old)
        momentum, steps = new, steps + 1
        if steps % 10 == 0:
            if grams:
                loss = np.sum(W * (np.einsum("tij,tj->ti", gram, W) / 2 - moment)) + square / 2
            else:
                loss = sum(np.sum((X @ w - y) ** 2) for (X, y), w in zip(parts, W)) / (2 * n)
            if loss + alpha / 2 * np.sum(K * (W @ W.T)) <= goal:
                return steps


def cost():
    kind, X, y, task, train, _ = school(0)
    X, y, task = X[train], y[train], task[train]
    alpha = 30 / len(y)

    def fit(coupling, **settings):
        return lambda: kind(coupling=coupling, alpha=alpha, random_state=0, **settings).fit(
            X, y, tasks=task
        )

    epochs, mean, learned = median_seconds([fit("mean", solver="saga"), fit("mean"), fit("learn")])
    print("\nlearning relations beside fitting with given ones, School, 139 tasks")
    for name, given in (("fitted by epochs (SAGA)", epochs), ("fitted directly", mean)):
        print(
            f"  learned / mean {name} {learned / given:6.2f}   "
            f"({1e3 * learned:.0f} ms, {1e3 * given:.1f} ms)"
        )

    print("\nan epoch of SGD with R shared vectors, relative to one; bound (R + 1) / 2 × 1.3")
    rng = np.random.default_rng(0)
    n, d = 200_000, 28
    wide, own = rng.normal(size=(n, d)) / np.sqrt(d), rng.integers(100, size=n)
    target = wide[:, 0] + rng.normal(size=n)
    per_epoch = {}
    for n_shared in (1, 2, 4, 8):
        coupling = TaskCoupling.from_factors(rng.normal(size=(100, n_shared)), 1.0)

        def run(epochs, coupling=coupling):
            model = kind(coupling=coupling, solver="sgd", tol=None, max_iter=epochs)
            return lambda: model.fit(wide, target, tasks=own)

        few, many = median_seconds([run(2), run(7)], rounds=3)
        per_epoch[n_shared] = (many - few) / 5
        ratio = per_epoch[n_shared] / per_epoch[1]
        print(f"  R = {n_shared}: {ratio:5.2f}   (bound {(n_shared + 1) / 2 * 1.3:.2f})")


def objectives():
    """Seconds until the objective is within a share of its minimum, ours and full gradients'."""
    kind, X, y, task, train, _ = school(0)
    X, y, task = X[train], y[train], task[train]
    kappa, alpha = 0.1, 30 / len(y)
    parts = [(X[task == t], y[task == t]) for t in range(139)]
    K = np.linalg.inv(np.ones((139, 139)) + kappa * np.eye(139))
    settings = {"coupling": TaskCoupling.mean(kappa), "alpha": alpha, "fit_intercept": False}
    exact = kind(**settings, solver="saga", tol=1e-9, max_iter=5000, random_state=0)
    least = exact.fit(X, y, tasks=task).history_[-1]["objective"]
    print("\naccelerated full gradients (NumPy) beside fastmtl, School, to the same objective")
    for share in (1e-3, 1e-4, 1e-6):
        goal = least * (1 + share)

        def ours(goal=goal):
            model = kind(**settings).fit(X, y, tasks=task)
            assert model.history_[-1]["objective"] <= goal

        def theirs(goal=goal, grams=False):
            return full_gradient(parts, K, alpha, goal, grams)

        seconds, peer, with_grams = median_seconds(
            [ours, theirs, lambda: theirs(grams=True)], rounds=3
        )
        print(
            f"  within {share:.0e}: NumPy / fastmtl {peer / seconds:5.1f}   "
            f"({1e3 * peer:.0f} ms in {theirs()} steps, {1e3 * seconds:.1f} ms); "
            f"with Gram matrices {with_grams / seconds:.1f}"
        )


def figure(path="docs/landmine_relations.png"):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    X, y, task = datasets.fetch_landmine(return_X_y=True)
    X = standardised(X, np.ones(len(X), dtype=bool))
    model = MultiTaskSGDClassifier(coupling=LEARNED["learned, features too"], random_state=0)
    model.fit(X, y, tasks=task)
    fig, axes = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    shown = axes.imshow(model.task_correlation_, vmin=-1, vmax=1, cmap="RdBu_r")
    for line in (axes.axhline, axes.axvline):
        line(14.5, color="black", linewidth=0.8)
    axes.set(title="Learned correlations of the Landmine tasks", xlabel="task", ylabel="task")
    fig.colorbar(shown)
    fig.savefig(path, dpi=110)
    ground = np.arange(29) < 15
    same = (ground[:, None] == ground) & ~np.eye(29, dtype=bool)
    C = model.task_correlation_
    print(
        f"\nLandmine, all rows: mean correlation {C[same].mean():.2f} within a type of ground, "
        f"{C[ground][:, ~ground].mean():.2f} between; B has {model.mixing_.shape[1]} columns"
    )


def main():
    warnings.simplefilter("ignore")
    fastmtl.show_config()
    parts = {
        "accuracy": accuracy,
        "school": chosen,
        "time": cost,
        "objective": objectives,
        "figure": figure,
    }
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
