"""Kernel matrices, the logistic sigmoid first: computed tile by tile, on all cores.

The logistic kernel is ``1 / (1 + exp(-sigma (x·y + c)))`` and the tanh kernel
``tanh(gamma x·y + coef0)``. They are one family: ``logistic(z) = ½ + ½ tanh(z / 2)``. Neither is
positive semi-definite in general.
"""

from __future__ import annotations

import numbers

import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_array

from fastmtl._core import gram as core
from fastmtl.config import resolve_threads

__all__ = ["linear_kernel", "polynomial_kernel", "rbf_kernel", "sigmoid_kernel", "tanh_kernel"]

LINEAR, LOGISTIC, TANH, EXP, POWER = range(5)
FLOATS = (np.float64, np.float32)
CACHE_LINE = 64


def sigmoid_kernel(X, Y=None, *, sigma=1.0, c=0.0, out=None, n_threads=None):
    """Logistic sigmoid kernel ``1 / (1 + exp(-sigma (x·y + c)))``.

    Parameters
    ----------
    X : array-like or sparse matrix of shape (n, d)
        float32 and float64 are kept (float32 only if both inputs are); other dtypes become float64.
    Y : array-like or sparse matrix of shape (m, d), default=None
        None means X itself; the result is then exactly symmetric, in half the time.
    sigma : float, default=1.0
        Slope. Where ``sigma * x·y`` stays small all entries are near ½, where it is large they are
        0 or 1; standardised features want about ``1 / d``.
    c : float, default=0.0
        Offset added to the inner product.
    out : ndarray of shape (n, m), default=None
        Where to write, of the result's dtype and any layout, a memory map included. Reusing `out`
        saves the page faults of fresh memory.
    n_threads : int or None, default=None
        Threads; None takes all cores where the matrix is large enough to pay.

    Returns
    -------
    K : ndarray of shape (n, m)
        `out` where it was given. Values in [0, 1], within 4 ulp of the logistic function of the
        computed argument; exactly 0 and 1 at infinite arguments.

    Raises
    ------
    ValueError
        If an input has the wrong shape or kind, or contains NaN or infinity.

    Notes
    -----
    The kernel is not positive semi-definite in general [1]_.

    References
    ----------
    .. [1] H.-T. Lin and C.-J. Lin, "A study on sigmoid kernels for SVM and the training of non-PSD
       kernels by SMO-type methods", 2003.

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.sigmoid_kernel([[0.0, 0.0], [1.0, 2.0]], [[1.0, 1.0]]).round(4)
    array([[0.5   ],
           [0.9526]])
    """
    sigma, c = _number(sigma, "sigma"), _number(c, "c")
    return _gram(X, Y, out, n_threads, LOGISTIC, sigma, sigma * c)


def tanh_kernel(X, Y=None, *, gamma=None, coef0=1.0, out=None, n_threads=None):
    """Hyperbolic tangent kernel ``tanh(gamma x·y + coef0)``, scikit-learn's ``sigmoid_kernel``.

    Parameters
    ----------
    X, Y, out, n_threads
        As in :func:`sigmoid_kernel`.
    gamma : float or None, default=None
        Slope; None means ``1 / d``.
    coef0 : float, default=1.0
        Offset.

    Returns
    -------
    K : ndarray of shape (n, m)
        Values in [-1, 1].

    Raises
    ------
    ValueError
        If an input has the wrong shape or kind, or contains NaN or infinity.

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.tanh_kernel([[1.0, 0.0]], coef0=0.0).round(4)
    array([[0.4621]])
    """
    gamma = _gamma(gamma, X)
    return _gram(X, Y, out, n_threads, TANH, gamma, _number(coef0, "coef0"))


def linear_kernel(X, Y=None, *, out=None, n_threads=None):
    """Inner products ``x·y``.

    Parameters
    ----------
    X, Y, out, n_threads
        As in :func:`sigmoid_kernel`.

    Returns
    -------
    K : ndarray of shape (n, m)

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.linear_kernel([[1.0, 2.0]], [[3.0, 4.0]])
    array([[11.]])
    """
    return _gram(X, Y, out, n_threads, LINEAR, 1.0, 0.0)


def polynomial_kernel(X, Y=None, *, degree=3, gamma=None, coef0=1.0, out=None, n_threads=None):
    """Polynomial kernel ``(gamma x·y + coef0) ** degree``.

    Parameters
    ----------
    X, Y, out, n_threads
        As in :func:`sigmoid_kernel`.
    degree : int, default=3
        From 0 to 100.
    gamma : float or None, default=None
        Slope; None means ``1 / d``.
    coef0 : float, default=1.0
        Offset.

    Returns
    -------
    K : ndarray of shape (n, m)

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.polynomial_kernel([[1.0]], [[2.0]], degree=2)
    array([[9.]])
    """
    if not isinstance(degree, numbers.Integral) or not 0 <= degree <= 100:
        raise ValueError(f"degree is {degree!r}; pass an integer from 0 to 100")
    gamma = _gamma(gamma, X)
    return _gram(X, Y, out, n_threads, POWER, gamma, _number(coef0, "coef0"), int(degree))


def rbf_kernel(X, Y=None, *, gamma=None, out=None, n_threads=None):
    """Gaussian kernel ``exp(-gamma ‖x - y‖²)``.

    Parameters
    ----------
    X, Y, out, n_threads
        As in :func:`sigmoid_kernel`.
    gamma : float or None, default=None
        Inverse squared width; None means ``1 / d``.

    Returns
    -------
    K : ndarray of shape (n, m)
        Values in [0, 1].

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.rbf_kernel([[0.0]], [[1.0]], gamma=1.0).round(4)
    array([[0.3679]])
    """
    gamma = _gamma(gamma, X)
    return _gram(X, Y, out, n_threads, EXP, 2.0 * gamma, 0.0, distance=gamma)


def _gram(X, Y, out, n_threads, function, scale, shift, degree=0, *, distance=None):
    X = _rows(X, "X")
    Y = None if Y is None else _rows(Y, "Y")
    other = X if Y is None else Y
    if X.shape[1] != other.shape[1]:
        raise ValueError(
            f"Y has {other.shape[1]} features, X has {X.shape[1]}; both must have as many"
        )
    if X.dtype != other.dtype:
        X, other = X.astype(np.float64, copy=False), other.astype(np.float64, copy=False)
        Y = other
    n, m, dtype = X.shape[0], other.shape[0], X.dtype
    if out is None:
        out = _empty(n, m, dtype)
    else:
        _check_out(out, (n, m), dtype)
    if sp.issparse(X) or sp.issparse(other):
        return _sparse_gram(
            X, other, out, n_threads, function, scale, shift, degree, distance, Y is None
        )
    row_term = column_term = None
    if distance is not None:
        row_term = -distance * np.einsum("ij,ij->i", X, X)
        column_term = row_term if Y is None else -distance * np.einsum("ij,ij->i", Y, Y)
    work = n * m * (X.shape[1] + 16)
    threads = resolve_threads(n_threads, work=work, work_per_thread=1_000_000)
    arguments = (function, scale, shift, degree)
    if m <= 1 or out.strides[1] == out.itemsize:
        core.gram(X, Y, out, *arguments, row_term, column_term, threads)
    elif n <= 1 or out.strides[0] == out.itemsize:  # Fortran order: its transpose, swapped
        first, second = (X, None) if Y is None else (Y, X)
        core.gram(first, second, out.T, *arguments, column_term, row_term, threads)
    else:
        result = _empty(n, m, dtype)
        core.gram(X, Y, result, *arguments, row_term, column_term, threads)
        out[...] = result
    return out


def _sparse_gram(X, Y, out, n_threads, function, scale, shift, degree, distance, symmetric):
    """SciPy's sparse product, then the kernel function over blocks of it."""
    row_term = column_term = None
    if distance is not None:
        row_term, column_term = (-distance * _squared_lengths(A) for A in (X, Y))
    if not sp.issparse(Y):
        Y = sp.csr_array(Y)
    transposed = sp.csc_array(Y.T)
    block = max(1, 4_000_000 // max(1, out.shape[1]))
    for begin in range(0, out.shape[0], block):
        rows = slice(begin, begin + block)
        if sp.issparse(X):
            product = (X[rows] @ transposed).toarray()
        else:
            product = np.ascontiguousarray((transposed.T @ X[rows].T).T)
        # The product of one feature with 1: the same epilogue, on numbers that are ready.
        _apply(
            np.ascontiguousarray(product, dtype=out.dtype),
            out[rows],
            function,
            scale,
            shift,
            degree,
            None if row_term is None else row_term[rows],
            column_term,
        )
    if symmetric:
        upper = np.triu_indices_from(out, 1)
        out.T[upper] = out[upper]
    return out


def _apply(product, out, function, scale, shift, degree, row_term, column_term):
    if row_term is not None:
        product = scale * product + row_term[:, None] + column_term
        scale = 1.0
    flat = product.reshape(-1, 1)
    values = np.empty_like(flat)
    one = np.ones((1, 1), dtype=flat.dtype)
    core.gram(flat, one, values, function, scale, shift, degree, None, None, 1)
    out[...] = values.reshape(product.shape)


def _squared_lengths(X):
    if sp.issparse(X):
        return np.asarray(X.multiply(X).sum(axis=1)).ravel()
    return np.einsum("ij,ij->i", X, X)


def _rows(X, name):
    """X as 2-D, finite, float32 or float64, with contiguous rows; without a copy where it is so."""
    if (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in FLOATS
        and X.dtype.isnative
        and X.size
        and X.strides[1] == X.itemsize
        and X.strides[0] >= X.strides[1] * X.shape[1]
        and X.strides[0] % X.itemsize == 0
        and np.isfinite(np.add.reduce(X, axis=None))
    ):
        return X
    if isinstance(X, list | tuple):
        X = np.asarray(X)
    return check_array(
        X, accept_sparse="csr", dtype=FLOATS, order="C", input_name=name, estimator="the kernel"
    )


def _check_out(out, shape, dtype):
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out is a {type(out).__name__}; pass a numpy array")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; the result has {shape} and {dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writeable array")


def _empty(n, m, dtype):
    """Uninitialised (n, m), starting at a cache line so that stores can bypass the cache."""
    itemsize = np.dtype(dtype).itemsize
    extra = CACHE_LINE // itemsize
    flat = np.empty(n * m + extra, dtype=dtype)
    skip = -flat.ctypes.data % CACHE_LINE // itemsize
    return flat[skip : skip + n * m].reshape(n, m)


def _number(value, name):
    if not isinstance(value, numbers.Real) or not np.isfinite(value):
        raise ValueError(f"{name} is {value!r}; pass a finite number")
    return float(value)


def _gamma(gamma, X):
    if gamma is not None:
        return _number(gamma, "gamma")
    d = X.shape[1] if hasattr(X, "shape") and len(X.shape) == 2 else np.shape(X)[-1]
    return 1.0 / max(1, d)
