"""Small problems: dense and sparse columns, rows shared by tasks or not, intercepts or none."""

import numpy as np
import scipy.sparse as sp

# Every block's step follows from those before it, which amplifies rounding.
TOLERANCE = {"descend": 30, "moments": 5}

SIZES = [19, 0, 7, 33]


def layouts(rng, dtype):
    start = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
    n, d = int(start[-1]), 5
    own_rows = np.arange(n, dtype=np.int32)
    shared_rows = np.concatenate([np.sort(rng.permutation(40)[:size]) for size in SIZES])
    for row in [own_rows, shared_rows.astype(np.int32)]:
        columns = rng.normal(size=(d, int(row.max()) + 1)) + 0.3
        yield np.ascontiguousarray(columns.ravel(), dtype=dtype), None, None, row, start, d
    matrix = sp.random(n, d, 0.3, "csc", random_state=rng, dtype=np.float64).astype(dtype)
    yield (
        matrix.data,
        matrix.indices.astype(np.int32),
        matrix.indptr.astype(np.int64),
        own_rows,
        start,
        d,
    )


def problems(rng, dtype):
    for X, indices, indptr, row, start, d in layouts(rng, dtype):
        n, n_tasks = len(row), len(start) - 1
        task = np.repeat(np.arange(n_tasks), np.diff(start))
        weight = (rng.uniform(0.5, 2.0, n) / n).astype(dtype)
        for intercept in [True, False]:
            total = np.bincount(task, weight, minlength=n_tasks) * intercept
            target = rng.normal(size=n) + 0.5
            places = {"X": X, "indices": indices, "indptr": indptr, "row": row, "task_start": start}
            yield places, weight, total, (weight * target).astype(dtype), task, d


def moments(rng, dtype):
    for places, weight, total, _, _, d in problems(rng, dtype):
        for features in [np.arange(d), np.array([3, 1])]:
            yield {
                **places,
                "weight": weight,
                "total": total,
                "features": features.astype(np.int64),
                "slope": np.zeros((d, len(SIZES))),
                "curvature": np.zeros((d, len(SIZES))),
                "n_threads": 1,
            }


def gradients(rng, dtype):
    for places, _, _, moved, _, d in problems(rng, dtype):
        yield {**places, "moved": moved, "gradient": np.empty((d, len(SIZES))), "n_threads": 1}


def descend(rng, dtype):
    from fastmtl.reference import group_cd

    for places, weight, total, moved, task, d in problems(rng, dtype):
        slope, curvature = np.zeros((d, len(SIZES))), np.zeros((d, len(SIZES)))
        features = np.arange(d)
        group_cd.moments(
            **places,
            weight=weight,
            total=total,
            features=features,
            slope=slope,
            curvature=curvature,
            n_threads=1,
        )
        offset = np.zeros(len(SIZES))
        sums = np.bincount(task, moved.astype(np.float64), minlength=len(SIZES))
        np.divide(-sums, total, out=offset, where=total > 0)
        for alpha, beta, epochs in [(0.02, np.inf, 2), (0.02, 0.015, 2), (0.0, np.inf, 1)]:
            yield {
                **places,
                "weight": weight,
                "total": total,
                "slope": slope,
                "curvature": curvature,
                "alpha": alpha,
                "beta": beta,
                "features": np.array([4, 0, 2], dtype=np.int64),
                "max_epochs": epochs,
                "tol": 0.0,
                "moved": moved.copy(),
                "offset": offset.copy(),
                "joint": np.zeros((d, len(SIZES))),
                "own": np.zeros((d, len(SIZES))),
            }


CASES = {"moments": moments, "gradients": gradients, "descend": descend}
