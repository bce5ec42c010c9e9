"""Small problems: tasks of no, few and many samples, dense, sparse and sparser rows."""

import numpy as np
import scipy.sparse as sp

# Sums of squares and products of solves, whose rounding the largest entry does not bound alone.
TOLERANCE = {
    "grams_dense": 10,
    "grams_csr": 10,
    "scores_dense": 10,
    "scores_csr": 10,
    "eliminate": 30,
    "own_parts": 300,
}

SIZES = [19, 0, 3, 150, 1]


def samples(rng, n_rows):
    start = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
    n = int(start[-1])
    for weight in [np.ones(n), rng.uniform(0.5, 2.0, n)]:
        for centred in [False, True]:
            yield {
                "row": rng.integers(n_rows, size=n),
                "task_start": start,
                "weight": weight,
                "target": rng.normal(size=n) + 1.0,
                "centred": centred,
                "n_threads": 1,
            }


def padded(d):
    return (d + 2 + 7) // 8 * 8


def room(d):
    return np.empty((len(SIZES), padded(d), padded(d)))


def grams_dense(rng, dtype):
    for d in [1, 6, 21, 62]:
        X = (rng.normal(size=(200, d)) + 0.3).astype(dtype)
        for case in samples(rng, len(X)):
            yield {"X": X, **case, "gram": room(d)}


def grams_csr(rng, dtype):
    for d, density in [(9, 0.6), (40, 0.1)]:
        X = sp.random(200, d, density, "csr", random_state=rng, dtype=np.float64).astype(dtype)
        places = {"indices": X.indices.astype(np.int32), "indptr": X.indptr.astype(np.int64)}
        for case in samples(rng, 200):
            yield {"data": X.data, **places, "d": d, **case, "gram": room(d)}


def scored(rng, n_rows, d):
    case = next(samples(rng, n_rows))
    n = len(case["row"])
    for width in [d + 1, padded(d)]:
        yield {
            "row": case["row"],
            "task_start": case["task_start"],
            "vectors": rng.normal(size=(len(SIZES), width)),
            "out": np.empty(n),
            "n_threads": 1,
        }


def scores_dense(rng, dtype):
    for d in [1, 8, 21]:
        X = rng.normal(size=(200, d)).astype(dtype)
        for case in scored(rng, len(X), d):
            yield {"X": X, **case}


def scores_csr(rng, dtype):
    X = sp.random(200, 30, 0.2, "csr", random_state=rng, dtype=np.float64).astype(dtype)
    places = {"indices": X.indices.astype(np.int32), "indptr": X.indptr.astype(np.int64)}
    for case in scored(rng, 200, 30):
        yield {"data": X.data, **places, "d": 30, **case}


def systems(rng):
    for d, coupled in [(1, True), (5, False), (14, True), (33, False), (62, True)]:
        p = padded(d)
        gram = np.zeros((len(SIZES), p, p))
        for t, size in enumerate(SIZES):
            z = rng.normal(size=(size, d + 2)) + 0.2
            z[:, d] = 1.0
            gram[t, : d + 2, : d + 2] = z.T @ z
        yield gram, d + coupled


def eliminate(rng, dtype):
    for gram, own in systems(rng):
        for n_sums in [1, 3]:
            yield {
                "gram": gram,
                "own": own,
                "scale": np.array([0.5, 1.0, 0.0, 2.0, 0.1]),
                "weight": rng.normal(size=(len(gram), n_sums)),
                "total": np.ones((n_sums, *gram.shape[1:])),
                "n_threads": 1,
            }


def own_parts(rng, dtype):
    for gram, own in systems(rng):
        vectors = rng.normal(size=gram.shape[:2])
        yield {
            "gram": gram,
            "own": own,
            "scale": np.array([0.5, 1.0, 0.0, 2.0, 0.1]),
            "vectors": vectors,
            "out": np.empty_like(vectors),
            "n_threads": 1,
        }


CASES = {
    "grams_dense": grams_dense,
    "grams_csr": grams_csr,
    "scores_dense": scores_dense,
    "scores_csr": scores_csr,
    "eliminate": eliminate,
    "own_parts": own_parts,
}
