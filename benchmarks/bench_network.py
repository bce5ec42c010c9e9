"""Networks against PyTorch eager and scikit-learn's MLPRegressor: time of a training step.

``python benchmarks/bench_network.py`` prints the ratio first, then µs per sample (forward, backward
and the step of plain SGD; float32). Every peer has the same architecture, batch and optimiser, and
runs in the same process; both are shown at their best thread count. ``--quality`` compares accuracy
on real data instead, same recipe over several seeds; it needs the folder named by FASTMTL_DATA.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.neural_network import MLPRegressor

import fastmtl
from fastmtl import MultiTaskNetworkClassifier, MultiTaskNetworkRegressor
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
    "two-input CNN": [(cnn, 1, 200, 40), (cnn, 32, 640, 8)],
    "LSTM 128 x 9, 32 units": [(lstm, 1, 300, 40), (lstm, 32, 1280, 10)],
}


def ours(case, batch, n, threads):
    """Seconds per sample of whole epochs, and the fitted model."""
    X, y, tasks, trunk, kind = case(n, np.random.default_rng(0))
    model = kind(
        trunk=trunk,
        coupling="independent",
        alpha=0.0,
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


def torch_fit(model, X, Y, epochs, batch, rate, seed):
    """Adam on the equivalent module from its own start; returns the module and seconds."""
    import torch

    torch.manual_seed(seed)
    module = model.to_torch()
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    F = model.coef_.shape[1]
    with torch.no_grad():
        module.head.uniform_(-1 / np.sqrt(F), 1 / np.sqrt(F))
        module.head_intercept.zero_()
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate)
    inputs = [torch.from_numpy(x) for x in (X if isinstance(X, tuple) else (X,))]
    labels = Y.dtype.kind == "i"
    target = torch.from_numpy(Y)
    widths = [len(own) for own in model.task_classes_] if labels else None
    n = len(Y)
    began = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(n).split(batch):
            own = [x[rows] for x in inputs]
            scores = module(own if len(own) > 1 else own[0])
            if labels:
                loss = sum(
                    torch.nn.functional.cross_entropy(s, t)
                    for s, t in zip(scores.split(widths, 1), target[rows].T, strict=True)
                )
            else:
                loss = 0.5 * ((scores - target[rows]) ** 2).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return module, time.perf_counter() - began


def sarcos(folder):
    with np.load(folder / "sarcos_test.npz") as file:
        X, Y = file["X"].astype(np.float32), file["Y"].astype(np.float32)
    X, Y = (X - X.mean(0)) / X.std(0), (Y - Y.mean(0)) / Y.std(0)
    trunk, kind = [Dense(128), Dense(64)], MultiTaskNetworkRegressor
    return "SARCOS (test part), 7 torques, R²", X, Y, trunk, kind, 40, 32


def digits(folder):
    with np.load(folder / "mnist_test10k.npz") as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    images = (images[..., None] / 255).astype(np.float32)
    half = 2000
    X = images[:half], images[half : 2 * half]
    Y = np.column_stack([labels[:half], labels[half : 2 * half]])
    trunk = [Concat(IMAGE, IMAGE), Dense(128), Dense(64)]
    name = "MNIST pairs, 2 softmax heads, accuracy"
    return name, X, Y, trunk, MultiTaskNetworkClassifier, 6, 32


def quality(seeds):
    import torch

    folder = Path(os.environ["FASTMTL_DATA"])
    torch.set_num_threads(os.cpu_count() or 1)
    for load in (sarcos, digits):
        name, X, Y, trunk, kind, epochs, batch = load(folder)
        rows = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(Y))
            train, test = order[: len(Y) * 3 // 4], order[len(Y) * 3 // 4 :]

            def take(part, X=X):
                return tuple(x[part] for x in X) if isinstance(X, tuple) else X[part]

            model = kind(
                trunk=trunk,
                coupling="independent",
                alpha=0.0,
                batch_size=batch,
                max_iter=epochs,
                random_state=seed,
            ).fit(take(train), Y[train])
            seconds = sum(entry["seconds"] for entry in model.history_)
            own = model.score(take(test), Y[test])
            module, torch_seconds = torch_fit(
                model, take(train), Y[train], epochs, batch, model.learning_rate_init, seed
            )
            with torch.no_grad():
                inputs = take(test)
                inputs = inputs if isinstance(inputs, tuple) else (inputs,)
                inputs = [torch.from_numpy(x) for x in inputs]
                scores = module(inputs if len(inputs) > 1 else inputs[0]).numpy()
            if Y.dtype.kind == "i":
                parts = np.split(scores, model._state.head_start[1:-1], axis=1)
                found = np.column_stack([part.argmax(1) for part in parts])
                theirs = float((found == Y[test]).mean())
            else:
                spread = ((Y[test] - Y[test].mean(0)) ** 2).sum(0)
                theirs = float((1 - ((Y[test] - scores) ** 2).sum(0) / spread).mean())
            rows.append((own, theirs, seconds, torch_seconds))
        own, theirs, mine, peer = np.array(rows).T
        print(
            f"{peer.mean() / mine.mean():6.1f} times faster; fastmtl {own.mean():.4f} ± "
            f"{own.std():.4f}, PyTorch {theirs.mean():.4f} ± {theirs.std():.4f}; "
            f"{mine.mean():.2f} s, {peer.mean():.2f} s: {name}, {epochs} epochs, {seeds} seeds"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quality", action="store_true", help="compare accuracy on real data")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.quality:
        quality(options.seeds)
    else:
        speed()


if __name__ == "__main__":
    main()
