"""NumPy twin of the compiled ridge regressions: the same matrices by their definitions."""

import itertools

import numpy as np
import scipy.sparse as sp


def grams_dense(X, row, task_start, weight, target, gram, centred, n_threads):
    """Write each task's Σ w z zᵀ with z = (x, 1, y) into `gram` (T, p, p).

    Samples ``task_start[t]:task_start[t + 1]`` are task t's. With `centred`, x is relative to the
    task's first row, and all but the row and column of the constant are about the weighted means.
    """
    _grams(X, row, task_start, weight, target, gram, centred, centred)


def grams_csr(data, indices, indptr, d, row, task_start, weight, target, gram, centred, n_threads):
    """As `grams_dense`, of a CSR matrix with sorted columns, which are not shifted."""
    X = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, d)).toarray()
    _grams(X, row, task_start, weight, target, gram, centred, False)


def _grams(X, row, task_start, weight, target, gram, centred, shifted):
    gram[:] = 0.0
    d = X.shape[1]
    for t, (begin, end) in enumerate(itertools.pairwise(task_start)):
        if begin == end:
            continue
        own = slice(begin, end)
        rows, w = X[row[own]].astype(np.float64), weight[own]
        if shifted:
            rows -= rows[0]
        z = np.column_stack([rows, np.ones(len(rows)), target[own]])
        if centred and w.sum() > 0:
            mean = w @ z / w.sum()
            constant = w @ z
            z = z - mean
            gram[t, : d + 2, : d + 2] = (z.T * w) @ z
            gram[t, d, : d + 2] = gram[t, : d + 2, d] = constant
        else:
            gram[t, : d + 2, : d + 2] = (z.T * w) @ z


def scores_dense(X, row, task_start, vectors, out, n_threads):
    """Write ``x·w + b`` of each sample into `out`, with its task's (w, b) = vectors[t, : d + 1]."""
    d = X.shape[1]
    for vector, (begin, end) in zip(vectors, itertools.pairwise(task_start)):
        out[begin:end] = X[row[begin:end]].astype(np.float64) @ vector[:d] + vector[d]


def scores_csr(data, indices, indptr, d, row, task_start, vectors, out, n_threads):
    """As `scores_dense`, of the rows of a CSR matrix."""
    X = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, d)).toarray()
    scores_dense(X, row, task_start, vectors, out, n_threads)


def eliminate(gram, own, scale, weight, total, n_threads):
    """Add ``Σ_t weight[t, k] (G_t − G_t:q (G_t,qq + 1/scale_t)⁻¹ G_t,q:)`` to total[k].

    q are the first `own` coordinates; where the scale is zero the task has nothing of its own.
    """
    for G, s, w in zip(gram, scale, weight):
        across = G[:own]
        inner = np.eye(own) + s * G[:own, :own]
        left = G - s * across.T @ np.linalg.solve(inner, across)
        total += w[:, None, None] * left


def own_parts(gram, own, scale, vectors, out, n_threads):
    """Write ``v_t = −(G_t,qq + 1/scale_t)⁻¹ G_t,q: u_t`` into `out`, zero beyond q.

    `vectors` (T, p) are (u, offset, −1): what is shared, to which v_t is added.
    """
    out[:] = 0.0
    for t, (G, s) in enumerate(zip(gram, scale)):
        inner = np.eye(own) + s * G[:own, :own]
        out[t, :own] = -s * np.linalg.solve(inner, G[:own] @ vectors[t])
