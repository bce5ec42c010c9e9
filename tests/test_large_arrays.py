"""X of more than 2³¹ numbers, most of whose pages are the same few: rows repeated k times are rows
of weight k, and tasks that are met late have rows behind number 2³¹ alone.

Run where FASTMTL_LARGE is set, on Linux: a minute, 0.7 GB of memory.
"""

import ctypes
import mmap
import os
import sys

import numpy as np
import pytest

from fastmtl import MultiTaskSGDRegressor

pytestmark = pytest.mark.skipif(
    not (os.environ.get("FASTMTL_LARGE") and sys.platform == "linux"),
    reason="takes minutes; set FASTMTL_LARGE on Linux",
)

TIMES, EARLY, N_TASKS = 640, 520, 3
FIXED, NORESERVE = 0x10, 0x4000


@pytest.fixture
def repeated():
    """A function that stacks copies of an array of whole pages, all at the same place in memory."""
    libc, mapped = ctypes.CDLL(None, use_errno=True), []
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def of(tile):
        assert tile.nbytes % mmap.PAGESIZE == 0
        size = TIMES * tile.nbytes
        file = os.memfd_create("tile")
        with os.fdopen(os.dup(file), "wb") as out:
            out.write(tile.tobytes())
        anywhere = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        base = libc.mmap(None, size, mmap.PROT_READ, anywhere, -1, 0)
        mapped.append((base, size))
        for k in range(TIMES):
            at, here = base + k * tile.nbytes, mmap.MAP_SHARED | FIXED
            assert libc.mmap(at, tile.nbytes, mmap.PROT_READ, here, file, 0) == at
        os.close(file)
        whole = np.frombuffer((ctypes.c_char * size).from_address(base), dtype=tile.dtype)
        assert whole.size > 2**31
        return whole.reshape(-1, *tile.shape[1:])

    yield of
    for base, size in mapped:
        libc.munmap(base, size)


def problem(rows, d, seed=0):
    """A tile's rows, its tasks, and targets; the tasks of late copies are others."""
    rng = np.random.default_rng(seed)
    tile = rng.standard_normal((rows, d), dtype=np.float32)
    task = rng.integers(N_TASKS, size=rows)
    common = rng.normal(size=d)
    weights = (common + rng.normal(size=(2 * N_TASKS, d))) / np.sqrt(d)
    target = [np.einsum("ij,ij->i", tile, weights[task + k * N_TASKS]) for k in range(2)]
    return tile, task, [y + 0.1 * rng.normal(size=rows) for y in target]


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(
    ("rows", "d", "settings", "atol"),
    [
        (16896, 250, {"solver": "cholesky"}, 1e-6),
        (1023, 4096, {"solver": "saga", "max_iter": 12}, 5e-3),
        (1023, 4096, {"solver": "sgd", "max_iter": 3}, 0.05),
        (1023, 4096, {"solver": "sgd", "max_iter": 3, "average": True}, 0.05),
    ],
    ids=["cholesky", "saga", "sgd", "averaged sgd"],
)
def test_repeated_rows_are_rows_of_a_weight(rows, d, settings, atol, repeated):
    tile, task, target = problem(rows, d)
    copies, settings = [EARLY, TIMES - EARLY], {"alpha": 1.0, "random_state": 0, **settings}
    tasks = [task, task + N_TASKS]
    every = np.concatenate([np.tile(own, k) for own, k in zip(tasks, copies)])
    y = np.concatenate([np.tile(own, k) for own, k in zip(target, copies)])
    X = repeated(tile)
    large = MultiTaskSGDRegressor(**settings, tol=None, n_threads=2)
    large.fit(X, y, tasks=every)

    few, weight = np.tile(tile, (2, 1)), np.repeat(copies, rows)
    small = MultiTaskSGDRegressor(alpha=1.0, solver="cholesky" if d < 1000 else "saga", tol=1e-9)
    small.fit(few, np.concatenate(target), tasks=np.concatenate(tasks), sample_weight=weight)
    size = np.abs(small.coef_).max()
    np.testing.assert_allclose(large.coef_, small.coef_, atol=atol * size)
    np.testing.assert_allclose(large.intercept_, small.intercept_, atol=atol)  # y is about 1

    predicted = large.predict(X, tasks=every).reshape(TIMES, rows)
    for own, part in zip(tasks, (predicted[:EARLY], predicted[EARLY:])):
        expected = large.predict(tile, tasks=own)
        np.testing.assert_allclose(part, np.broadcast_to(expected, part.shape), rtol=1e-5)
