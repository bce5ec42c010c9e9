"""Networks against PyTorch eager and scikit-learn's MLPRegressor: time of a training step.

``python benchmarks/bench_network.py`` prints the ratio first, then µs per sample (forward, backward
and the step of plain SGD; float32). Every peer has the same architecture, batch and optimiser, and
runs in the same process; both are shown at their best thread count. Other modes: ``quality``
compares accuracy on real data, same recipe over several seeds, and the time to PyTorch's accuracy;
``sharing`` couplings of the heads, and a network for each task; ``defaults`` estimators as they
come (all three need the folder named by FASTMTL_DATA); ``tasks`` times 10,000 heads; ``memory``
watches 100 epochs on 100,000 rows.
"""

import argparse
import os
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor

import fastmtl
from fastmtl import (
    MultiTaskNetworkClassifier,
    MultiTaskNetworkRegressor,
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
)
from fastmtl.layers import LSTM, Concat, Conv2D, Dense, Flatten, MaxPool2D

IMAGE = [Conv2D(32, 3), MaxPool2D(2), Flatten()]


def best_of(function, repeats=5):
    function()
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best


def mlp(n, rng):
    X, y = rng.normal(size=(n, 28)).astype(np.float32), rng.normal(size=n)
    return X, y, rng.integers(10, size=n), [Dense(64), Dense(32)], MultiTaskNetworkRegressor


def cnn(n, rng):
    X = tuple(rng.random((n, 28, 28, 1)).astype(np.float32) for _ in range(2))
    Y = np.column_stack([rng.permutation(n) % 10, rng.permutation(n) % 10])
    trunk = [Concat(IMAGE, IMAGE), Dense(128), Dense(64)]
    return X, Y, None, trunk, MultiTaskNetworkClassifier


def lstm(n, rng):
    X = rng.normal(size=(n, 128, 9)).astype(np.float32)
    return X, rng.permutation(n) % 6, None, [LSTM(32)], MultiTaskNetworkClassifier


# name: data, batch, samples of fastmtl, steps of PyTorch
CASES = {
    "MLP 28-64-32, 10 tasks": [(mlp, 1, 20000, 300), (mlp, 32, 40000, 200), (mlp, 256, 80000, 100)],
    "two-input CNN": [(cnn, 1, 400, 60), (cnn, 32, 2560, 24)],
    "LSTM 128 x 9, 32 units": [(lstm, 1, 300, 40), (lstm, 32, 2560, 20)],
}


def ours(case, batch, n, threads):
    """Seconds per sample of whole epochs, and the fitted model."""
    X, y, tasks, trunk, kind = case(n, np.random.default_rng(0))
    model = kind(
        trunk=trunk,
        coupling="independent",
        alpha=0.0,
        weight_decay=0.0,
        solver="sgd",
        learning_rate_init=1e-3,
        batch_size=batch,
        max_iter=6,
        n_threads=threads,
        random_state=0,
    )
    model.fit(X, y, tasks=tasks)
    return min(entry["seconds"] for entry in model.history_) / n, model


def torchs(case, batch, steps, model, threads):
    """Seconds per sample of PyTorch's eager loop on the same network."""
    import torch

    torch.set_num_threads(threads)
    X, y, tasks, _, _ = case(batch * steps, np.random.default_rng(0))
    inputs = [torch.from_numpy(part) for part in (X if isinstance(X, tuple) else (X,))]
    module = model.to_torch()
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    entropy = torch.nn.functional.cross_entropy
    target = torch.from_numpy(y if case is not mlp else y.astype(np.float32))
    if tasks is not None:
        tasks = torch.from_numpy(tasks)[:, None]
    widths = [len(own) for own in model.task_classes_] if case is not mlp else None
    # Independent heads are one plain matrix: the coupling's bookkeeping is not charged to PyTorch.
    head = torch.nn.Linear(model.coef_.shape[1], len(model.coef_))
    optimiser.add_param_group({"params": head.parameters()})

    def epoch():
        for i in range(0, batch * steps, batch):
            part = slice(i, i + batch)
            own = [x[part] for x in inputs]
            scores = head(module.features(own))
            optimiser.zero_grad()
            if case is mlp:
                error = scores.gather(1, tasks[part])[:, 0] - target[part]
                loss = 0.5 * (error * error).mean()
            elif target.ndim == 1:
                loss = entropy(scores, target[part])
            else:
                loss = sum(
                    entropy(s, t)
                    for s, t in zip(scores.split(widths, 1), target[part].T, strict=True)
                )
            loss.backward()
            optimiser.step()

    return best_of(epoch, 3) / (batch * steps)


def speed():
    fastmtl.show_config()
    print(f"\n{'ratio':>8}{'fastmtl':>12}{'peer':>12}   µs per sample of a training step")
    for name, rows in CASES.items():
        for case, batch, n, steps in rows:
            counts = sorted({1, os.cpu_count() or 1})
            own = [(*ours(case, batch, n, t), t) for t in (counts if batch > 1 else [1])]
            mine, model, own_threads = min(own, key=lambda found: found[0])
            try:
                import torch
            except ImportError:
                print(f"{'':>8}{1e6 * mine:12.2f}{'':>12}   {name}, batch {batch} (no PyTorch)")
                continue
            theirs, threads = min((torchs(case, batch, steps, model, t), t) for t in counts)
            print(
                f"{theirs / mine:8.1f}{1e6 * mine:12.2f}{1e6 * theirs:12.1f}   {name}, batch "
                f"{batch}; threads {own_threads}, {threads}; PyTorch {torch.__version__}"
            )
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20000, 28)).astype(np.float32)
    Y = rng.normal(size=(20000, 10)).astype(np.float32)
    for batch in (32, 200):
        model = MultiTaskNetworkRegressor(
            coupling="independent", batch_size=batch, max_iter=4, random_state=0
        ).fit(X, Y)
        mine = min(entry["seconds"] for entry in model.history_) / len(X)
        peer = MLPRegressor(hidden_layer_sizes=(64, 32), batch_size=batch, max_iter=2, tol=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = best_of(lambda peer=peer: peer.fit(X, Y), 1) / (2 * len(X))
        print(
            f"{theirs / mine:8.1f}{1e6 * mine:12.2f}{1e6 * theirs:12.1f}   MLP 28-64-32, 10 "
            f"outputs, Adam, batch {batch}; scikit-learn MLPRegressor"
        )


def sarcos(folder):
    with np.load(folder / "sarcos_test.npz") as file:
        X, Y = file["X"].astype(np.float32), file["Y"].astype(np.float32)
    X, Y = (X - X.mean(0)) / X.std(0), (Y - Y.mean(0)) / Y.std(0)
    name = "SARCOS (its test part, split 3 : 1), 7 torques, R²"
    return name, X, Y, {}, [Dense(128), Dense(64)], MultiTaskNetworkRegressor, 40, 1


def pairs(folder):
    with np.load(folder / "mnist_test10k.npz") as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    images, half = (images[..., None] / 255).astype(np.float32), 2000
    X = images[:half], images[half : 2 * half]
    Y = np.column_stack([labels[:half], labels[half : 2 * half]])
    trunk = [Concat(IMAGE, IMAGE), Dense(128), Dense(64)]
    return "MNIST pairs, two softmaxes, accuracy", X, Y, {}, trunk, MultiTaskNetworkClassifier, 8, 2


def vowels(folder):
    """Speakers as tasks: the last frame's first coefficient from the frames before it."""
    with np.load(folder / "japanese_vowels.npz") as file:
        X, length, speaker = file["X"].astype(np.float32), file["length"], file["speaker"]
    rows = np.arange(len(X))
    y = X[rows, length - 1, 0]
    X[rows, length - 1] = 0
    X, y = X[:, :-1] / X.std(), (y - y.mean()) / y.std()
    more = {"tasks": speaker, "lengths": length - 1}
    name = "Japanese vowels, 9 speakers as tasks, next frame, R²"
    trunk = [LSTM(32, forget_bias=0.0)]  # as PyTorch's
    return name, X, y, more, trunk, MultiTaskNetworkRegressor, 60, 1


def rows_of(X, part):
    return tuple(x[part] for x in X) if isinstance(X, tuple) else X[part]


def torch_epochs(model, X, y, more, batch, rate, seed, start):
    """Adam on the equivalent module: yields it and the seconds of each epoch.

    It starts from the weights of `model` ("same"), or from PyTorch's own distributions ("own").
    """
    import torch

    torch.manual_seed(seed)
    module = model.to_torch()
    if start == "own":
        for layer in module.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        F = model.coef_.shape[1]
        with torch.no_grad():
            module.head.uniform_(-1 / np.sqrt(F), 1 / np.sqrt(F))
            module.head_intercept.zero_()
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate)
    inputs = [torch.from_numpy(x) for x in (X if isinstance(X, tuple) else (X,))]
    more = {name: torch.from_numpy(np.asarray(value, np.int64)) for name, value in more.items()}
    labels, target = y.dtype.kind == "i", torch.from_numpy(y)
    widths = [len(own) for own in model.task_classes_] if labels else None
    while True:
        began = time.perf_counter()
        for rows in torch.randperm(len(y)).split(batch):
            lengths = more["lengths"][rows] if "lengths" in more else None
            scores = module([x[rows] for x in inputs], lengths)
            if labels:
                loss = sum(
                    torch.nn.functional.cross_entropy(s, t)
                    for s, t in zip(scores.split(widths, 1), target[rows].T, strict=True)
                )
            else:
                if "tasks" in more:
                    scores = scores.gather(1, more["tasks"][rows][:, None])[:, 0]
                loss = 0.5 * ((scores - target[rows]) ** 2).sum() / len(rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        yield module, time.perf_counter() - began


def torch_score(module, model, X, y, more):
    import torch

    inputs = [torch.from_numpy(x) for x in (X if isinstance(X, tuple) else (X,))]
    lengths = torch.from_numpy(more["lengths"].astype(np.int64)) if "lengths" in more else None
    with torch.no_grad():
        scores = module(inputs, lengths).numpy()
    if y.dtype.kind == "i":
        parts = np.split(scores, model._state.head_start[1:-1], axis=1)
        return float((np.column_stack([part.argmax(1) for part in parts]) == y).mean())
    if "tasks" in more:
        scores = scores[np.arange(len(y)), more["tasks"]]
    return r2_score(y, scores)


def first_at(curve, quality):
    """Seconds until a curve of (seconds, score) is as good; its end where it never is."""
    return next((seconds for seconds, score in curve if score >= quality), curve[-1][0])


SETS = {"sarcos": sarcos, "pairs": pairs, "vowels": vowels}


def quality(seeds, start, chosen):
    import torch

    folder = Path(os.environ["FASTMTL_DATA"])
    for key in chosen:
        name, X, y, more, trunk, kind, epochs, threads = SETS[key](folder)
        torch.set_num_threads(threads)
        rows = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(y))
            train, test = order[: len(y) * 3 // 4], order[len(y) * 3 // 4 :]
            own = {key: value[train] for key, value in more.items()}
            held = {key: value[test] for key, value in more.items()}
            model, begun = (
                kind(
                    trunk=trunk,
                    coupling="independent",
                    alpha=0.0,
                    weight_decay=0.0,
                    n_threads=threads,
                    learning_rate_init=rate,
                    random_state=np.random.RandomState(seed),
                )
                for rate in (1e-3, 1e-30)
            )
            settings = {} if y.dtype.kind != "i" else {"classes": np.unique(y)}
            begun.partial_fit(rows_of(X, train), y[train], **settings, **own)
            mine, theirs = [], []
            for _ in range(2 * epochs):
                model.partial_fit(rows_of(X, train), y[train], **settings, **own)
                spent = (mine[-1][0] if mine else 0.0) + model.history_[-1]["seconds"]
                mine.append((spent, model.score(rows_of(X, test), y[test], **held)))
            peer = torch_epochs(begun, rows_of(X, train), y[train], own, 32, 1e-3, seed, start)
            for (module, seconds), _ in zip(peer, range(epochs)):
                spent = (theirs[-1][0] if theirs else 0.0) + seconds
                score = torch_score(module, model, rows_of(X, test), y[test], held)
                theirs.append((spent, score))
            target = theirs[-1][1]
            times = first_at(mine, target), first_at(theirs, target)
            rows.append((mine[epochs - 1][1], target, mine[epochs - 1][0], theirs[-1][0], *times))
        own, theirs, seconds, peer, *reached = np.array(rows).T
        print(
            f"{reached[1].mean() / reached[0].mean():6.1f} times sooner at PyTorch's quality, "
            f"{peer.mean() / seconds.mean():.1f} times faster; fastmtl {own.mean():.4f} ± "
            f"{own.std():.4f}, PyTorch {theirs.mean():.4f} ± {theirs.std():.4f} after {epochs} "
            f"epochs ({seconds.mean():.2f} s, {peer.mean():.2f} s); to that quality "
            f"{reached[0].mean():.2f} s, {reached[1].mean():.2f} s: {name}, {seeds} seeds, "
            f"{threads} threads each, start: {start}"
        )


def sharing(seeds):
    """A trunk shared by small tasks, its heads coupled in several ways, and networks apart."""
    school(seeds)
    landmine(seeds)


def pupils(seed):
    """School: X, y, the school, and three of four pupils of each to train on."""
    with np.load(Path(os.environ["FASTMTL_DATA"]) / "school.npz") as file:
        X, y, task = file["X"].astype(np.float64), file["y"].astype(np.float64), file["task"]
    X = X[:, X.std(0) > 0]
    rng, train = np.random.default_rng(seed), np.zeros(len(y), dtype=bool)
    for t in np.unique(task):
        own = rng.permutation(np.flatnonzero(task == t))
        train[own[: round(0.75 * len(own))]] = True
    return (X - X.mean(0)) / X.std(0), y, task, train


def explained(y, train, guess):
    truth = y[~train] - y[train].mean()
    return 1 - ((y[~train] - guess) ** 2).sum() / (truth**2).sum()


def fields(seed):
    """Landmine: X, y, the field, and half the rows to train on."""
    with np.load(Path(os.environ["FASTMTL_DATA"]) / "landmine.npz") as file:
        X, y, task = file["X"].astype(np.float64), file["y"].astype(int), file["task"]
    return (X - X.mean(0)) / X.std(0), y, task, np.random.default_rng(seed).random(len(y)) < 0.5


def average_auc(y, task, scores):
    return np.mean([roc_auc_score(y[task == t], scores[task == t]) for t in np.unique(task)])


def school(seeds):
    settings = {"hidden_layer_sizes": (32,), "max_iter": 60, "early_stopping": True}
    settings |= {"alpha": 1e-3, "weight_decay": 1e-3}
    found = []
    for seed in range(seeds):
        X, y, task, train = pupils(seed)
        guesses = []
        for coupling in ("mean", "learn", "pooled"):
            model = MultiTaskNetworkRegressor(coupling=coupling, random_state=seed, **settings)
            model.fit(X[train], y[train], tasks=task[train])
            guesses.append(model.predict(X[~train], tasks=task[~train]))
        apart = np.empty((~train).sum())
        for t in np.unique(task):
            model = MultiTaskNetworkRegressor(random_state=seed, **settings)
            model.fit(X[train & (task == t)], y[train & (task == t)])
            apart[task[~train] == t] = model.predict(X[~train & (task == t)])
        found.append([explained(y, train, guess) for guess in (*guesses, apart)])
    names = ("mean", "learn", "pooled", "a network each")
    for name, column in zip(names, zip(*found)):
        print(f"{np.mean(column):8.4f} ± {np.std(column):.4f} explained variance: School, {name}")


def landmine(seeds):
    settings = {"hidden_layer_sizes": (16,), "max_iter": 20, "alpha": 1e-2, "weight_decay": 1e-3}
    couplings = "mean", "learn", "pooled", "independent"
    found, ground = [], np.arange(29) < 15
    for seed in range(seeds):
        X, y, task, train = fields(seed)
        for coupling in couplings:
            model = MultiTaskNetworkClassifier(coupling=coupling, random_state=seed, **settings)
            model.fit(X[train], y[train], tasks=task[train])
            scores = model.decision_function(X[~train], tasks=task[~train])
            found.append(average_auc(y[~train], task[~train], scores))
            if coupling == "learn":
                R = model.task_correlation_
                print(
                    f"{'':19}correlation across the two kinds of ground, seed {seed}: "
                    f"{R[ground][:, ~ground].mean():.2f}"
                )
    for name, column in zip(couplings, np.reshape(found, (seeds, -1)).T):
        print(f"{np.mean(column):8.4f} ± {np.std(column):.4f} average AUC: Landmine, {name}")


def answers(model, X, **more):
    if hasattr(model, "decision_function"):
        return model.decision_function(X, **more)
    if hasattr(model, "predict_proba"):
        return model.predict_proba(X)[:, 1]
    return model.predict(X, **more)


def together(model, X, y, train, task):
    model.fit(X[train], y[train], tasks=task[train])
    return answers(model, X[~train], tasks=task[~train])


def pooled(model, X, y, train, task):
    return answers(model.fit(X[train], y[train]), X[~train])


def as_columns(model, X, y, train, task):
    return pooled(model, np.hstack([X, task[:, None] == np.unique(task)]), y, train, task)


def apart(model, X, y, train, task):
    guess = np.empty((~train).sum())
    for t in np.unique(task):
        own = task == t
        guess[own[~train]] = pooled(model, X[own], y[own], train[own], None)
    return guess


def by_column(model, X, y, train, task):
    return pooled(MultiOutputRegressor(model), X, y, train, task)


def defaults(seeds):
    """Estimators as they come: networks and linear models of tasks, scikit-learn's networks."""
    warnings.simplefilter("ignore")  # scikit-learn's do not converge within their epochs
    regressors = MultiTaskNetworkRegressor, MultiTaskSGDRegressor, MLPRegressor
    classifiers = MultiTaskNetworkClassifier, MultiTaskSGDClassifier, MLPClassifier
    found = {}
    for seed in range(seeds):
        X, y, task, train = pupils(seed)
        sets = [("School", regressors, X, y, train, task, partial(explained, y, train))]
        X, y, task, train = fields(seed)
        score = partial(average_auc, y[~train], task[~train])
        sets.append(("Landmine", classifiers, X, y, train, task, score))
        _, X, y, *_ = sarcos(Path(os.environ["FASTMTL_DATA"]))
        train = np.random.default_rng(seed).permutation(len(y)) < len(y) * 3 // 4
        score = partial(r2_score, y[~train])
        sets.append(("SARCOS", regressors, X, y, train, None, score))
        for data, (network, linear, peer), X, y, train, task, score in sets:
            first = pooled if task is None else together
            ways = [("network", first, network), ("linear model", first, linear)]
            if task is None:
                ways += [("one MLP", pooled, peer), ("MLPs apart", by_column, peer)]
            else:
                ways += [("one MLP, tasks as columns", as_columns, peer)]
                ways += [("one MLP, pooled", pooled, peer), ("MLPs apart", apart, peer)]
            for name, way, kind in ways:
                model = kind(random_state=seed)
                began = time.perf_counter()
                guess = way(model, X, y, train, task)
                spent = time.perf_counter() - began
                found.setdefault((data, name), []).append((score(guess), spent))
    for (data, name), rows in found.items():
        scores, seconds = np.transpose(rows)
        print(
            f"{scores.mean():8.4f} ± {scores.std():.4f} in {seconds.mean():5.1f} s: {data}, {name}"
        )


def many_tasks():
    """A step touches the heads of its tasks alone, penalty or not."""
    rng = np.random.default_rng(0)
    n = 100_000
    X, y = rng.normal(size=(n, 28)).astype(np.float32), rng.normal(size=n)
    for batch in (1, 32):
        for alpha in (0.0, 1e-3):
            found = []
            for n_tasks in (10, 10_000):
                tasks = np.arange(n) % n_tasks
                model = MultiTaskNetworkRegressor(
                    solver="sgd",
                    alpha=alpha,
                    weight_decay=0.0,
                    batch_size=batch,
                    max_iter=3,
                    random_state=0,
                ).fit(X, y, tasks=tasks)
                found.append(1e6 * min(entry["seconds"] for entry in model.history_) / n)
            print(
                f"{found[1] / found[0]:8.2f}{found[1]:12.2f}{found[0]:12.2f}   µs per sample, "
                f"10,000 heads against 10; batch {batch}, alpha {alpha:g}"
            )


def memory():
    """Resident memory over 100 epochs on 100,000 rows."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100_000, 28)).astype(np.float32), rng.normal(size=100_000)
    page, seen = os.sysconf("SC_PAGE_SIZE"), []

    def note(epoch):
        seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)
        return 1e-3

    MultiTaskNetworkRegressor(max_iter=100, learning_rate=note, random_state=0).fit(
        X, y, tasks=rng.integers(100, size=len(y))
    )
    print(f"{seen[9]:.1f} MB resident at epoch 10, {seen[-1]:.1f} MB at epoch 100")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = ("speed", "quality", "sharing", "defaults", "tasks", "memory")
    parser.add_argument("mode", nargs="?", choices=modes, default="speed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--start", choices=("own", "same"), default="same", help="PyTorch's initial weights"
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    if options.mode == "quality":
        quality(options.seeds, options.start, options.sets)
    elif options.mode in ("sharing", "defaults"):
        {"sharing": sharing, "defaults": defaults}[options.mode](options.seeds)
    else:
        {"speed": speed, "tasks": many_tasks, "memory": memory}[options.mode]()


if __name__ == "__main__":
    main()
