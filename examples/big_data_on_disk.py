"""Data larger than memory: a memory map read in blocks, with little of it resident at a time.

Run as ``python big_data_on_disk.py N_ROWS N_FEATURES`` for other sizes. The file is sparse: rows
that are not written take no space on disk, yet are read like any others.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from fastmtl import MultiTaskSGDRegressor

n_rows, n_features = map(int, sys.argv[1:3] if len(sys.argv) > 2 else (40_000, 256))
rng = np.random.default_rng(0)
n_written = min(n_rows, 20_000)
written = np.unique(
    np.append(rng.integers(n_rows, size=n_written), np.arange(n_rows - 100, n_rows))
)
truth = rng.normal(size=16)


def memory():
    """What of this process is in memory now and was at most, in MB (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {name: int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")}


def report(epoch):
    print(f"epoch {epoch.epoch}: {epoch.seconds:.1f} s, objective {epoch.objective:.2g}", memory())


with tempfile.TemporaryDirectory() as folder:
    shape = (n_rows, n_features)
    X = np.memmap(Path(folder) / "X", dtype=np.float32, mode="w+", shape=shape)
    y, task = np.zeros(n_rows), np.arange(n_rows) % 20
    for row in written:
        X[row, :16] = rng.normal(size=16)
        y[row] = X[row, :16] @ truth
    X.flush()
    del X

    X = np.memmap(Path(folder) / "X", dtype=np.float32, mode="r", shape=shape)
    print(f"{X.nbytes / 1e9:.3g} GB on disk, {X.size / 2**31:.3g} times 2^31 numbers", memory())
    model = MultiTaskSGDRegressor(
        sampling="block", alpha=1e-7, max_iter=3, tol=None, random_state=0, callbacks=report
    )
    model.fit(X, y, tasks=task)
    last = slice(n_rows - 100, n_rows)
    residual = model.predict(X[last], tasks=task[last]) - y[last]
    explained = 1 - np.mean(residual**2) / np.mean(y[last] ** 2)
    print(f"explained variance of the last 100 rows of the file: {explained:.4f}")
    del X
