"""Kernels that are not positive semi-definite: how far off, and the nearest one that is.

The sigmoid kernels are indefinite in general (Lin and Lin, 2003). `kernel_diagnostics` says whether
that, or saturation, matters on your data; `nearest_psd` repairs a Gram matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.utils import check_array, check_random_state

from fastmtl.kernels import sigmoid_kernel

__all__ = ["RepairedKernel", "kernel_diagnostics", "nearest_psd"]

CHANGE = {"clip": 1.0, "flip": 2.0, "shift": 0.0}  # how often a negative part is taken away


class RepairedKernel(NamedTuple):
    """What :func:`nearest_psd` returns: a Gram matrix, and how to treat new rows alike."""

    gram: np.ndarray
    projection: np.ndarray
    eigenvalues: np.ndarray

    def transform(self, K_new):
        """Kernel values of new rows with the training rows, repaired to match: (m, n)."""
        return K_new @ self.projection


def nearest_psd(K, method="clip"):
    """Return a positive semi-definite Gram matrix near a symmetric one.

    Parameters
    ----------
    K : array-like of shape (n, n)
        Symmetric.
    method : {"clip", "flip", "shift"}, default="clip"
        Negative eigenvalues become zero (the nearest matrix in Frobenius norm), change sign, or
        all eigenvalues rise by the same amount until none is negative.

    Returns
    -------
    repaired : RepairedKernel
        ``gram`` (n, n); ``projection`` (n, n) with ``gram == K @ projection`` for ``"clip"`` and
        ``"flip"``, which new rows' kernel values need as well (``transform``; for ``"shift"`` they
        stay as they are); ``eigenvalues`` (n,) of K, ascending.

    Raises
    ------
    ValueError
        If `K` is not square, symmetric and finite, or `method` is another word.

    References
    ----------
    .. [1] Y. Chen, E. Garcia, M. Gupta, A. Rahimi and L. Cazzanti, "Similarity-based
       classification: concepts and algorithms", JMLR 10, 2009.

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.nearest_psd([[0.0, 1.0], [1.0, 0.0]], "flip").gram.round(12)
    array([[1., 0.],
           [0., 1.]])
    """
    if method not in CHANGE:
        raise ValueError(f"method is {method!r}; pass one of {', '.join(map(repr, CHANGE))}")
    K = _check_symmetric(K)
    values, vectors = np.linalg.eigh(K.astype(np.float64))
    projection = np.eye(len(K))
    if values[0] >= 0:
        return RepairedKernel(K, projection, values)
    if method == "shift":
        return RepairedKernel(K + np.diag(np.full(len(K), -values[0], K.dtype)), projection, values)
    negative = vectors[:, values < 0]
    projection -= CHANGE[method] * negative @ negative.T
    gram = K - CHANGE[method] * (negative * values[values < 0]) @ negative.T
    gram = np.ascontiguousarray((gram + gram.T) / 2, dtype=K.dtype)
    return RepairedKernel(gram, projection, values)


def kernel_diagnostics(X, *, sigma="scale", c=0.0, precomputed=False, n_rows=2000, random_state=0):
    """Say whether a sigmoid kernel can tell these rows apart, and whether it is indefinite.

    Parameters
    ----------
    X : array-like or sparse matrix of shape (n, d), or (n, n) with `precomputed`
        Rows, or a Gram matrix of values in [0, 1].
    sigma, c
        As in :func:`sigmoid_kernel`.
    precomputed : bool, default=False
        `X` is a Gram matrix.
    n_rows : int, default=2000
        With more rows, that many are drawn.
    random_state : int, RandomState or None, default=0
        Seed of the draw.

    Returns
    -------
    diagnostics : dict
        ``"saturated"``, the share of entries below 0.01 or above 0.99; ``"flat"``, the share within
        0.01 of ½, where learning is slow; ``"smallest_eigenvalue"`` and ``"largest_eigenvalue"``;
        ``"negative_share"``, the negative part of the spectrum's absolute sum; and
        ``"effective_rank"``, the exponential of the spectrum's entropy, from 1 to n.

    Examples
    --------
    >>> import numpy as np
    >>> import fastmtl
    >>> X = np.random.default_rng(0).normal(size=(100, 5))
    >>> fastmtl.kernel_diagnostics(X, sigma=1e-4)["flat"]
    1.0
    """
    n = X.shape[0] if hasattr(X, "shape") else len(X)
    rows = slice(None)
    if n > n_rows:
        rows = np.sort(check_random_state(random_state).choice(n, n_rows, replace=False))
    if precomputed:
        K = _check_symmetric(X)
        K = K if n <= n_rows else K[np.ix_(rows, rows)]
    else:
        X = X if hasattr(X, "shape") else np.asarray(X)
        K = sigmoid_kernel(X[rows], sigma=sigma, c=c)
    values = np.linalg.eigvalsh(K.astype(np.float64))
    size = np.abs(values)
    share = size[size > 0] / size.sum()
    return {
        "saturated": float(np.mean((K < 0.01) | (K > 0.99))),
        "flat": float(np.mean(np.abs(K - 0.5) < 0.01)),
        "smallest_eigenvalue": float(values[0]),
        "largest_eigenvalue": float(values[-1]),
        "negative_share": float(size[values < 0].sum() / size.sum()),
        "effective_rank": float(np.exp(-np.sum(share * np.log(share)))),
    }


def _check_symmetric(K):
    K = check_array(K, dtype=(np.float64, np.float32), input_name="K")
    if K.shape[0] != K.shape[1]:
        raise ValueError(f"K has shape {K.shape}; pass a square Gram matrix")
    difference = np.abs(K - K.T).max()
    if difference > 1e-5 * max(np.abs(K).max(), np.finfo(K.dtype).tiny):
        raise ValueError(
            f"K is not symmetric: entries differ from their mirror by up to {difference:.3g}"
        )
    return K
