"""Inputs for fastmtl._core.network."""

import numpy as np

# Twenty steps of training in float32 carry the rounding of each step to the next.
TOLERANCE = {"network_train": 10, "network_forward": 2}
SERIAL = {"network_train"}  # the same by any number of threads


def row(kind, activation, below, n_in, n_out, offset, weights=0, biases=0, sizes=(), second=-1):
    sizes = list(sizes) + [0] * (7 - len(sizes))
    return [kind, activation, below, second, n_in, n_out, offset, weights, biases, *sizes]


def dense(below, n_in, n_out, offset, activation=1):
    return row(1, activation, below, n_in, n_out, offset, n_in * n_out, n_out)


def recurrent(kind, below, steps, d, u, offset, sequences=0):
    gates = {5: 1, 6: 4, 7: 3}[kind]
    biases = (4 if kind == 7 else gates) * u
    n_out = steps * u if sequences else u
    sizes = (steps, d, u, sequences)
    return row(kind, 0, below, steps * d, n_out, offset, (d + u) * gates * u, biases, sizes)


def source(width, first=0):
    return row(0, 0, -1, 0, width, 0, sizes=(first,))


def trunks():
    """(name, table, uses lengths)"""
    yield "input", [source(5)], False
    for activation in range(6):
        rows = [source(7), dense(0, 7, 19, 0, activation), dense(1, 19, 33, 152, activation)]
        yield f"dense {activation}", rows, False
    yield "large dense", [source(300), dense(0, 300, 260, 0), dense(1, 260, 16, 78260)], False
    conv = [
        source(49),
        source(49, 49),
        row(2, 1, 0, 49, 100, 0, 36, 4, (7, 7, 1, 3, 4, 1)),
        row(3, 0, 2, 100, 16, 0, sizes=(5, 5, 4, 2)),
        row(2, 3, 1, 49, 100, 40, 36, 4, (7, 7, 1, 3, 4, 1)),
        row(2, 1, 4, 100, 48, 80, 48, 3, (5, 5, 4, 2, 3, 1)),
        row(3, 0, 5, 48, 12, 0, sizes=(4, 4, 3, 2)),
        row(4, 0, 3, 28, 28, 0, second=6),
        dense(7, 28, 6, 131),
    ]
    yield "conv", conv, False
    for h, w, k, stride, same in [
        (7, 6, 3, 2, 0),
        (7, 6, 3, 1, 1),
        (6, 9, 4, 3, 1),
        (5, 4, 2, 3, 1),
    ]:
        ho = -(-h // stride) if same else (h - k) // stride + 1
        wo = -(-w // stride) if same else (w - k) // stride + 1
        rows = [source(2 * h * w)]
        rows += [row(2, 3, 0, 2 * h * w, 3 * h * w, 0, 6, 3, (h, w, 2, 1, 3, 1))]
        sizes = (h, w, 3, k, 5, stride, same)
        rows += [row(2, 1, 1, 3 * h * w, ho * wo * 5, 9, k * k * 15, 5, sizes)]
        yield f"conv {h} {w} {k} {stride} {same}", rows, False
    for kind, name in [(5, "rnn"), (6, "lstm"), (7, "gru")]:
        rows = [source(18)]
        rows += [recurrent(kind, 0, 6, 3, 5, 0, 1)]
        size = rows[1][7] + rows[1][8]
        rows += [recurrent(kind, 1, 6, 5, 4, size)]
        for lengths in (False, True):
            yield name, rows, lengths
    yield "dropout", [source(7), dense(0, 7, 9, 0), row(8, 0, 1, 9, 9, 0, sizes=(1 << 30,))], False
    norm = [source(7), dense(0, 7, 9, 0, 0), row(9, 1, 1, 9, 9, 72, 9, 9), dense(2, 9, 4, 90, 3)]
    yield "layernorm", norm, False


def trunk_case(rng, dtype, rows, with_lengths, n=11):
    layers = np.array(rows, np.int64)
    width = max(r[9] + r[5] for r in rows if r[0] == 0)
    size = int((layers[:, 6] + layers[:, 7] + layers[:, 8]).max())
    X = rng.normal(size=(n, width)).astype(dtype)
    if width == 49 * 2:
        X = np.round(X, 1).astype(dtype)
    lengths = rng.integers(1, 7, n).astype(np.int32) if with_lengths else np.empty(0, np.int32)
    return layers, X, lengths, size


def forward_cases(rng, dtype):
    for _, rows, with_lengths in trunks():
        layers, X, lengths, size = trunk_case(rng, dtype, rows, with_lengths)
        parameters = (0.3 * rng.normal(size=size)).astype(dtype)
        for batch in (1, 4, 64):
            yield {
                "layers": layers,
                "X": X,
                "lengths": lengths,
                "parameters": parameters,
                "batch": batch,
            }


def train_case(rng, dtype, rows, with_lengths, optimiser=0, batch=1, **settings):
    layers, X, lengths, size = trunk_case(rng, dtype, rows, with_lengths)
    n, F, T = len(X), int(layers[-1, 5]), 4
    width = np.array([1, 3, 1, 1])
    head_start = np.concatenate([[0], np.cumsum(width)])
    # Every output mixes a shared row with its own; the last task has nothing of its own.
    shared = np.array([0, 0, 1, 2, 0, 0])
    head_row = np.stack([shared, 3 + np.arange(6)], 1).astype(np.int64)
    head_mix = np.stack([rng.uniform(0.5, 1, 6), rng.uniform(0.5, 1, 6)], 1).astype(dtype)
    head_mix[-1, 1] = 0
    present = [sorted(rng.choice(T, rng.integers(1, T + 1), replace=False)) for _ in range(n)]
    sample_start = np.concatenate([[0], np.cumsum([len(p) for p in present])])
    task = np.concatenate(present).astype(np.int32)
    target = np.where(task == 1, rng.integers(0, 3, len(task)), rng.normal(size=len(task)))
    target[task == 2] = np.sign(target[task == 2])
    n_parameters = size + 9 * (F + 1)
    names = ["alpha", "decay", "momentum", "clip", "decoupled", "surgery"]
    at = [3, 4, 5, 8, 11, 12]
    values = np.zeros(13)
    values[[0, 1, 2, 5, 6, 7, 10]] = [optimiser, batch, 0.01, 0.9, 0.999, 1e-8, 77]
    for name, value in settings.items():
        values[2 if name == "rate" else at[names.index(name)]] = value
    return {
        "layers": layers,
        "X": X,
        "lengths": lengths,
        "sample_row": rng.permutation(n).astype(np.int64),
        "sample_start": sample_start.astype(np.int64),
        "task": task,
        "target": target,
        "weight": rng.uniform(0.5, 1.5, len(task)),
        "order": np.concatenate([rng.permutation(n), rng.permutation(n)])[:20].astype(np.int64),
        "head_start": head_start.astype(np.int64),
        "head_row": head_row,
        "head_mix": head_mix,
        "loss": np.array([0, 100, 9, 1], np.int32),
        "loss_parameter": np.array([0, 0, 0, 0.4]),
        "head_offset": size,
        "n_head_rows": 9,
        "max_outputs": 6,
        "parameters": ((0.05 if size > 9000 else 0.2) * rng.normal(size=n_parameters)).astype(
            dtype
        ),
        "state": np.zeros((2, n_parameters), dtype),
        "gradient": np.zeros(n_parameters, dtype),
        "settings": values,
        "layer_norms": np.zeros(len(rows) + 1),
        "task_loss": np.zeros(T),
        "n_threads": 1,
    }


def train_cases(rng, dtype):
    for _, rows, with_lengths in trunks():
        for batch, alpha, decay in ((1, 0, 0), (1, 0.1, 0.2), (3, 0.1, 0.2), (8, 0, 0)):
            yield train_case(rng, dtype, rows, with_lengths, 0, batch, alpha=alpha, decay=decay)
        yield train_case(rng, dtype, rows, with_lengths, 1, 4, momentum=0.8, decay=0.1, clip=0.5)
        yield train_case(rng, dtype, rows, with_lengths, 1, 6, momentum=0.8, surgery=1)
    rows = [source(7), dense(0, 7, 19, 0, 3)]
    yield train_case(rng, dtype, rows, False, 2, 1, momentum=0.8, alpha=0.1)
    yield train_case(rng, dtype, rows, False, 3, 3, rate=0.003, alpha=0.1)
    yield train_case(rng, dtype, rows, False, 3, 3, rate=0.003, alpha=0.1, decay=0.3, decoupled=1)
    yield train_case(rng, dtype, rows, False, 0, 4, rate=0)
    yield train_case(rng, dtype, rows, False, 0, 4, rate=-1, alpha=0.1)
    for alpha in (30.0, 100.0, 120.0):  # the heads shrink by 0.7, to nothing, and past it
        yield train_case(rng, dtype, rows, False, 0, 1, alpha=alpha)


CASES = {"network_forward": forward_cases, "network_train": train_cases}
