"""The linear models against scikit-learn and Vowpal Wabbit: epochs, and objectives over seconds.

Run ``python benchmarks/bench_linear.py [school] [epochs] [csr] [wide] [vw] [race] [solvers]
[threads] [scale]`` (default: all).

* school: explained variance against closed forms
* epochs, csr, vw: seconds of an epoch, as the difference of two fits, so that what is done once is
  not counted; ``vw`` needs ``pip install vowpalwabbit``
* wide: memory of a fit of 2,000 tasks with 1,000,000 columns
* race: seconds to within 1 % of the optimal objective, and ``results/objective_*.png`` of it
* solvers: what ``solver="auto"`` takes, under weaker and weaker penalties, beside other solvers
* threads: an epoch on two threads where one task has nine rows of ten, and where all are pooled
* scale: 5,000,000 rows of 100,000 tasks in float32: seconds, memory, R² against one pooled model

School and the text set need ``FASTMTL_DATA`` (see fastmtl.datasets); pictures need matplotlib.
"""

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
import tracemalloc
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor

import fastmtl
from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling, datasets

RESULTS = Path(__file__).parent / "results"

ROUNDS = 5
SOLVERS = "dual", "saga"
MOST_SECONDS = 30  # of a peer in a race
HASH_ROOM = 64  # places for each coefficient of Vowpal Wabbit


def seconds(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def timed(function):
    """Median seconds of a few calls, if they are short, and the last answer."""
    spent = []
    while len(spent) < ROUNDS and (not spent or sum(spent) < 1):
        began = time.perf_counter()
        answer = function()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent), answer


def epoch_seconds(make):
    """Median seconds per extra epoch of ``make(max_iter)()``, over interleaved pairs."""
    few, many = 3, 8  # fits of two epochs leave the rows as they lie, longer ones sort them once
    return statistics.median(
        (seconds(make(many)) - seconds(make(few))) / (many - few) for _ in range(ROUNDS)
    )


def ours(X, y, task, n_threads=1, **settings):
    def make(max_iter):
        model = MultiTaskSGDRegressor(
            **{"solver": "sgd", **settings}, tol=None, max_iter=max_iter, n_threads=n_threads
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


def csr_epochs():
    n, d, n_tasks, filled = 20_000, 100_000, 50, 100
    print(f"\nCSR epoch, {filled} non-zeros a row, {d:,} columns, T = {n_tasks}; ratio to fastmtl")
    rng = np.random.default_rng(0)
    indices = rng.integers(d, size=n * filled)
    X = sp.csr_matrix(
        (rng.normal(size=n * filled), indices, np.arange(n + 1) * filled), shape=(n, d)
    )
    X.sum_duplicates()
    task = rng.integers(n_tasks, size=n)
    y = rng.normal(size=n)
    own = sp.csr_matrix(
        (X.data, X.indices + np.int64(d) * np.repeat(task, np.diff(X.indptr)), X.indptr),
        shape=(n, d * n_tasks),
    )
    wide = sp.hstack([X, own], format="csr")
    for dtype in (np.float64, np.float32):
        one = epoch_seconds(ours(X.astype(dtype), y, task))
        peer = epoch_seconds(plain(wide.astype(dtype), y))
        label = f"f{8 * np.dtype(dtype).itemsize}"
        print(f"  {label}: SGDRegressor on EasyAdapt {peer / one:.1f} times", end="")
        print(f"; {1e9 * one / n:.0f} ns a sample")


def wide_memory():
    n_tasks, d, per_task, filled = 2000, 1_000_000, 50, 50
    n = n_tasks * per_task
    print(f"\nmemory, CSR of {n * filled:,} entries, {d:,} columns, T = {n_tasks:,}")
    rng = np.random.default_rng(0)
    indices, indptr = rng.integers(d, size=n * filled), np.arange(n + 1) * filled
    X = sp.csr_matrix((rng.normal(size=n * filled), indices, indptr), shape=(n, d))
    X.sum_duplicates()
    task, y = np.repeat(np.arange(n_tasks), per_task), rng.normal(size=n)
    for solver in ("sgd", "saga"):
        tracemalloc.start()
        spent = seconds(ours(X, y, task, **{"solver": solver})(3))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        less, size = n_tasks * d * 8 / peak, X.data.nbytes + X.indices.nbytes
        print(f"  {solver}: {less:.0f} times less than full vectors; {peak / 1e6:.0f} MB beside")
        print(f"    X of {size / 1e6:.0f} MB, 3 epochs in {spent:.1f} s")


def vowpal_wabbit():
    if importlib.util.find_spec("vowpalwabbit") is None:
        print("\nVowpal Wabbit is not installed (pip install vowpalwabbit): left out")
        return
    from vowpalwabbit import Workspace

    n, d, n_tasks = 50_000, 28, 100
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    y, task = X[:, 0] + rng.normal(size=n), rng.integers(n_tasks, size=n)
    lines = (
        f"{target:.6g} |x {' '.join(f'{j}:{value:.6g}' for j, value in enumerate(row))} |t {t}"
        for row, target, t in zip(X, y, task)
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.txt")
        data.write_text("\n".join(lines))

        def make(passes):
            cache = Path(folder, f"{passes}.cache")
            words = f"-d {data} --cache_file {cache} -k --passes {passes} --holdout_off -q xt"
            return lambda: Workspace(f"{words} -b 18 --quiet").finish()

        peer = epoch_seconds(make)
    one = epoch_seconds(ours(X, y, task))
    print(f"\nepoch, d = {d}, T = {n_tasks}: Vowpal Wabbit -q takes {peer / one:.0f} times as long")
    print(f"  {1e9 * peer / n:.0f} ns and {1e9 * one / n:.0f} ns a sample")


def logistic(margin):
    return np.logaddexp(0.0, -margin)


def adapted(X, task):
    """X with a column of ones, and its EasyAdapt features, both CSR."""
    ones = np.ones((len(task), 1))
    if not sp.issparse(X):
        with_one = np.hstack([X, ones])
        return sp.csr_matrix(with_one), easy_adapt(with_one, task)
    with_one = sp.hstack([X, ones], format="csr")
    d = with_one.shape[1]
    shift = np.int64(d) * np.repeat(task, np.diff(with_one.indptr))
    own = sp.csr_matrix(
        (with_one.data, with_one.indices + shift, with_one.indptr),
        shape=(len(task), d * (1 + task.max())),
    )
    return with_one, sp.hstack([with_one, own], format="csr")


def race(name, X, y, task, alpha, classify):
    """Objectives over seconds, all of the same problem; the peers get EasyAdapt features.

    A peer without epochs is fitted to one tolerance after the other, each fit on its own; none
    starts another after `MOST_SECONDS`. What it takes to build the wide features is not counted.
    Short fits are repeated, ours and theirs, and their median counts. "fastmtl" is the estimator as
    it comes; its solvers with epochs follow, each made to run them.
    """
    n = len(y)
    with_one, wide = adapted(X, task)

    def objective(coef, intercept=0.0):
        score = wide @ coef + intercept
        losses = logistic(y * score) if classify else 0.5 * (y - score) ** 2
        return losses.mean() + 0.5 * alpha * coef @ coef

    def ladder(fits):
        """(seconds, objective) of one fit after the other."""
        curve = []
        for fit in fits:
            spent, answer = timed(fit)
            curve.append((spent, objective(*(answer() if callable(answer) else answer))))
            if sum(spent for spent, _ in curve) > MOST_SECONDS or done(curve):
                break
        return curve

    def done(curve):
        return curve[-1][1] < 1.001 * least

    def linear(peer):
        peer.fit(wide, y)
        return peer.coef_.ravel(), float(np.squeeze(peer.intercept_))

    Ours = MultiTaskSGDClassifier if classify else MultiTaskSGDRegressor
    kind = {"loss": "log_loss"} if classify else {}
    exact = Ours(alpha=alpha, max_iter=2000, tol=1e-8, **kind)
    least = exact.fit(X, y, tasks=task).history_[-1]["objective"]
    curves = {}
    for label, more in (
        ("fastmtl", {}),
        ("fastmtl sgd", {"solver": "sgd", "max_iter": 30, "tol": 1e-7}),
        ("fastmtl saga", {"solver": "saga", "max_iter": 30, "tol": 1e-7}),
    ):
        model = Ours(alpha=alpha, random_state=0, **kind, **more)
        spent, _ = timed(lambda model=model: model.fit(X, y, tasks=task))
        before = spent - model.history_[-1]["seconds"]
        curves[label] = [
            (before + entry["seconds"], entry["objective"]) for entry in model.history_
        ]

    if classify:
        curves["LogisticRegression"] = ladder(
            lambda m=m: linear(LogisticRegression(C=1 / (n * alpha), tol=1e-8, max_iter=m))
            for m in (3, 6, 10, 20, 40, 80, 160, 320, 640)
        )
    else:
        curves["Ridge"] = ladder(
            lambda tol=tol: linear(Ridge(alpha=n * alpha, solver="sparse_cg", tol=tol))
            for tol in 10.0 ** -np.arange(1, 9)
        )
    Peer = SGDClassifier if classify else SGDRegressor
    for label, more in (
        (Peer.__name__, {}),
        (f"{Peer.__name__} averaged", {"average": True}),
    ):
        peer, spent, curve = Peer(alpha=alpha, random_state=0, **kind, **more), 0.0, []
        known = (np.unique(y),) if classify else ()
        while spent < MOST_SECONDS and len(curve) < 300 and not (curve and done(curve)):
            spent += seconds(lambda peer=peer, known=known: peer.partial_fit(wide, y, *known))
            curve.append((spent, objective(peer.coef_.ravel(), peer.intercept_[0])))
        curves[label] = curve
    if importlib.util.find_spec("vowpalwabbit") is not None:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "data.txt")
            write_vowpal_wabbit(data, with_one, y, task)
            shape = with_one.shape[1], 2 + task.max()
            # Its squared error is not halved, so its penalty is twice as strong; L-BFGS takes that
            # of the sum of all losses.
            words = "--loss_function logistic" if classify else "--loss_function squared"
            strength = alpha * (1 if classify else 2)
            for label, more, passes in (
                ("Vowpal Wabbit", f"--l2 {strength}", (1, 2, 4, 8, 16, 32, 64)),
                (
                    "Vowpal Wabbit --bfgs",
                    f"--l2 {n * strength} --bfgs --termination 0",
                    (5, 10, 20, 30, 40),
                ),
            ):
                curves[label] = ladder(
                    lambda m=m, more=more: run_vowpal_wabbit(data, f"{words} {more}", m, shape)
                    for m in passes
                )

    reached = {
        label: next((at for at, value in curve if value <= 1.01 * least), np.inf)
        for label, curve in curves.items()
    }
    first = reached["fastmtl"]
    print(f"  {name}")
    for label, at in reached.items():
        if np.isfinite(at):
            print(f"    {label:<24}{at / first:8.1f} times as long{1e3 * at:10.1f} ms")
        else:
            spent = max(at for at, _ in curves[label])
            above = 100 * (min(value for _, value in curves[label]) / least - 1)
            print(f"    {label:<24}{spent / first:8.1f} times as long: still {above:.1f} % above")
            if label == "Vowpal Wabbit":
                print(
                    "      (its online --l2 shrinks all weights by the step as it is before its "
                    "rates per weight: another problem's minimum)"
                )
    draw(name, curves, least)


def write_vowpal_wabbit(path, X, y, task):
    """Names begin with a letter: numbers are not hashed, and pairs of them fall on one another."""
    with path.open("w") as file:
        for i in range(len(y)):
            own = slice(X.indptr[i], X.indptr[i + 1])
            row = " ".join(f"f{j}:{v:.6g}" for j, v in zip(X.indices[own], X.data[own]))
            file.write(f"{y[i]:.6g} |x {row} |t t{task[i]}\n")


def run_vowpal_wabbit(data, words, passes, shape):
    """Train for that many passes; return a function that reads the coefficients of EasyAdapt."""
    from vowpalwabbit import Workspace

    model, text, cache = (data.with_suffix(end) for end in (".model", ".text", f".{passes}.cache"))
    bits = int(np.ceil(np.log2(HASH_ROOM * shape[0] * shape[1])))
    words += f" -q xt --ignore_linear t --noconstant -b {bits} --quiet --predict_only_model"
    passes = f"--cache_file {cache} -k --passes {passes} --holdout_off"
    Workspace(f"-d {data} -f {model} {passes} {words}").finish()

    def read():
        test = f"-d {data} -t -i {model} --invert_hash {text} --quiet --predict_only_model"
        Workspace(test).finish()
        coef = np.zeros(shape[::-1])
        for line in text.read_text().splitlines():
            name, _, value = line.rpartition(":")
            name = name.partition(":")[0]
            parts = dict(part.split("^") for part in name.split("*") if "^" in part)
            if "x" in parts and len(parts) == name.count("^"):
                row = int(parts["t"][1:]) + 1 if "t" in parts else 0
                coef[row, int(parts["x"][1:])] = float(value)
        return (coef.ravel(),)

    return read


def draw(name, curves, best):
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for label, curve in curves.items():
        at, values = np.array([(at, value) for at, value in curve if value < 1e3 * best]).T
        axes.plot(at, np.maximum(values / best - 1, 1e-9), marker="o", markersize=3, label=label)
    axes.axhline(0.01, color="grey", linewidth=0.5)
    axes.set(
        xscale="log", yscale="log", xlabel="seconds", ylabel="objective / least − 1", title=name
    )
    axes.legend()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"objective_{name.lower().split()[0]}.png", dpi=120)


def races():
    print("\nseconds to within 1 % of the least objective, relative to fastmtl as it comes")
    home = datasets.get_data_home()
    if (home / "school.npz").is_file():
        X, y, task = datasets.fetch_school(return_X_y=True)
        X = X[:, X.std(axis=0) > 0].astype(np.float64)
        X = np.ascontiguousarray((X - X.mean(axis=0)) / X.std(axis=0))
        y = (y - y.mean()).astype(np.float64)
        race("School", X, y, task, 30 / len(y), False)
    if (home / "landmine.npz").is_file():
        X, y, task = datasets.fetch_landmine(return_X_y=True)
        X = X.astype(np.float64)
        X = np.ascontiguousarray((X - X.mean(axis=0)) / X.std(axis=0))
        y = np.where(y == y.max(), 1.0, -1.0)
        race("Landmine", X, y, task, 1e-3, True)
    if (home / "newsgroups.npz").is_file():
        with np.load(home / "newsgroups.npz") as held:
            part = {key[9:]: held[key] for key in held.files if key.startswith("comp_sci_")}
        X = sp.csr_matrix((part["data"], part["indices"], part["indptr"]), shape=part["shape"])
        y, task = np.where(part["y"] > 0, 1.0, -1.0), part["task"].astype(np.int64)
        race("Newsgroups comp/sci", X.astype(np.float64), y, task, 1e-3, True)
    rng = np.random.default_rng(0)
    n, d, n_tasks = 1_000_000, 20, 1000
    X, task = rng.normal(size=(n, d)), rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + rng.normal(size=n)
    race("Synthetic n = 1,000,000, T = 1,000", X, y, task, 1e-5, False)


def counts(rng, n, d, n_tasks):
    """Rows of counts, with few columns that most rows have and many that few have."""
    chance = 1 / np.arange(1, d + 1)
    words = np.exp(rng.normal(3.7, 0.6, size=n)).astype(int) + 3
    columns = rng.choice(d, size=words.sum(), p=chance / chance.sum())
    indptr = np.concatenate([[0], np.cumsum(words)])
    X = sp.csr_matrix((np.ones(words.sum()), columns, indptr), shape=(n, d))
    X.sum_duplicates()
    task = rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    score = np.asarray(X.multiply(weights[task]).sum(axis=1)).ravel()
    return X, score / score.std(), task


def numbers(rng, n, d, n_tasks):
    X, task = rng.normal(size=(n, d)), rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(n_tasks, d))
    return X, np.einsum("ij,ij->i", X, weights[task]) / np.sqrt(d), task


def solvers():
    print("\nunder weaker and weaker penalties: ms, and above the least objective of all four")
    print(f"{'':>44}" + "".join(f"{name:>17}" for name in ("fastmtl", *SOLVERS, "scikit-learn")))
    for make, n, d, n_tasks in (
        (numbers, 4000, 300, 20),
        (numbers, 20_000, 200, 1000),
        (numbers, 20_000, 400, 5),
        (counts, 4000, 5000, 5),
    ):
        X, score, task = make(np.random.default_rng(0), n, d, n_tasks)
        y, wide = 2 * score + 0.5 * np.random.default_rng(1).normal(size=n), adapted(X, task)[1]
        for classify, alpha in itertools.product((False, True), (1e-2, 1e-4, 1e-6)):
            found = compared(X, np.sign(y) if classify else y, task, wide, alpha, classify)
            least = min(value for _, value in found)
            kind = "log loss" if classify else "squared"
            print(f"  {make.__name__:<8}{n:>7,} x {d:<5,}{n_tasks:>5} {kind:<9}{alpha:6g}", end="")
            print("".join(f"{1e3 * spent:8.0f}{value / least - 1:9.0e}" for spent, value in found))


def compared(X, y, task, wide, alpha, classify):
    """Seconds and objectives, of fastmtl as it comes, its other solvers, and scikit-learn."""
    found, n = [], len(y)
    kind = MultiTaskSGDClassifier if classify else MultiTaskSGDRegressor
    for solver in ("auto", *SOLVERS):
        model = kind(alpha=alpha, solver=solver, random_state=0, max_iter=300)
        spent, _ = timed(partial(model.fit, X, y, tasks=task))
        found.append((spent, model.history_[-1]["objective"]))
    peer = Ridge(n * alpha) if not classify else LogisticRegression(C=1 / (n * alpha), max_iter=300)
    spent, _ = timed(partial(peer.fit, wide, y))
    if classify:
        losses = logistic(y * peer.decision_function(wide))
    else:
        losses = 0.5 * (y - peer.predict(wide)) ** 2
    found.append((spent, losses.mean() + 0.5 * alpha * np.sum(peer.coef_**2)))
    return found


def threads():
    n, d = 400_000, 28
    print(f"\nan epoch on one thread over one on two, n = {n:,}, d = {d}")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    even = rng.integers(100, size=n)
    for name, task, settings in (
        ("100 tasks", even, {}),
        ("one task has 90 % of the rows", np.where(rng.random(n) < 0.9, 50, even), {}),
        ("one model, pooled", even, {"coupling": "pooled"}),
    ):
        y = X[:, 0] + rng.normal(size=n)
        one, two = (epoch_seconds(ours(X, y, task, n_threads=k, **settings)) for k in (1, 2))
        print(f"  {name:<32}{one / two:6.2f}{1e9 * two / n:10.1f} ns a sample")


def scale():
    n, d, n_tasks, dtype = 5_000_000, 50, 100_000, np.float32
    print(f"\n{n:,} rows, {d} features, {n_tasks:,} tasks, float32")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=dtype)
    task = rng.integers(n_tasks, size=n)
    common, spread = rng.normal(size=d).astype(dtype), dtype(0.5)
    weights = common + spread * rng.standard_normal((n_tasks, d), dtype=dtype)
    y = np.empty(n, dtype=dtype)
    for begin in range(0, n, 100_000):
        part = slice(begin, begin + 100_000)
        y[part] = np.einsum("ij,ij->i", X[part], weights[task[part]])
    y += rng.standard_normal(n, dtype=dtype)
    test = slice(n - 500_000, n)
    train = slice(0, n - 500_000)
    for n_threads in (1, 2):
        for coupling in ("pooled", TaskCoupling.mean(0.25)):
            began = time.perf_counter()
            model = MultiTaskSGDRegressor(
                alpha=1e-6,
                coupling=coupling,
                solver="sgd",
                max_iter=8,
                tol=None,
                n_threads=n_threads,
                random_state=0,
            )
            model.fit(X[train], y[train], tasks=task[train])
            spent = time.perf_counter() - began
            epoch = np.diff([entry["seconds"] for entry in model.history_])
            score = model.score(X[test], y[test], tasks=task[test])
            name = coupling if isinstance(coupling, str) else "w_0 + v_t"
            print(
                f"  {name:<10} {n_threads} thread{'s' * (n_threads > 1)}: epoch "
                f"{statistics.median(epoch):.2f} s, fit {spent:.1f} s, R² of held-out rows "
                f"{score:.3f}; most memory so far {peak_bytes() / 1e9:.2f} GB, "
                f"of which X is {X.nbytes / 1e9:.2f} GB"
            )


def peak_bytes():
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PARTS = {
    "school": school,
    "epochs": epochs,
    "csr": csr_epochs,
    "wide": wide_memory,
    "vw": vowpal_wabbit,
    "race": races,
    "solvers": solvers,
    "threads": threads,
    "scale": scale,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["all", *PARTS], default="all", metavar="part")
    given = parser.parse_args().parts
    asked = list(PARTS) if "all" in given else given
    warnings.simplefilter("ignore")
    fastmtl.show_config()
    have_school = (datasets.get_data_home() / "school.npz").is_file()
    for name in asked:
        if name != "school" or have_school:
            PARTS[name]()


if __name__ == "__main__":
    main()
