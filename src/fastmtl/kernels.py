"""Kernel matrices, the logistic sigmoid first: computed tile by tile, on all cores.

The logistic kernel is ``1 / (1 + exp(-sigma (x·y + c)))`` and the tanh kernel
``tanh(gamma x·y + coef0)``. They are one family: ``logistic(z) = ½ + ½ tanh(z / 2)``. Neither is
positive semi-definite in general.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator
from scipy.special import expit
from sklearn.utils import check_array

from fastmtl._core import gram as core
from fastmtl._core.memory import Block
from fastmtl.config import resolve_threads

__all__ = [
    "SigmoidOperator",
    "iter_gram",
    "kernel_gradient",
    "linear_kernel",
    "polynomial_kernel",
    "rbf_kernel",
    "sigmoid_kernel",
    "tanh_kernel",
]

LINEAR, LOGISTIC, TANH, EXP, POWER, LOGISTIC_SLOPE, TANH_SLOPE = range(7)
FLOATS = (np.float64, np.float32)
NATIVE_FLOATS = tuple(map(np.dtype, FLOATS))
CACHE_LINE = 64
GRADIENT_ROWS = 1024  # treated at a time, so that broadcast or converted weights stay small
LARGE = 1 << 23  # bytes; from here on huge pages pay
WORK_PER_THREAD = 1_000_000  # multiply-adds; below, waking a thread costs more than it does


def sigmoid_kernel(X, Y=None, *, sigma=1.0, c=0.0, out=None, n_threads=None):
    """Logistic sigmoid kernel ``1 / (1 + exp(-sigma (x·y + c)))``.

    Parameters
    ----------
    X : array-like or sparse matrix of shape (n, d)
        float32 and float64 are kept (float32 only if both inputs are); other dtypes become float64.
    Y : array-like or sparse matrix of shape (m, d), default=None
        None means X itself; the result is then exactly symmetric, in as little as half the time.
    sigma : float or {"scale", "auto"}, default=1.0
        Slope. Where ``sigma * x·y`` stays small all entries are near ½, where it is large they are
        0 or 1. ``"scale"`` is ``1 / (d · X.var())``, which gives the inner products of standardised
        rows a spread of about ``1 / √d``, and ``"auto"`` is ``1 / d``.
    c : float, default=0.0
        Offset added to the inner product.
    out : ndarray of shape (n, m), default=None
        Where to write, of the result's dtype and any layout, a memory map included. Reusing `out`
        saves the page faults of fresh memory. float32 for float64 rows computes in float64 and
        rounds what it stores.
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

    The computed argument has the rounding errors of an inner product of d features, or of d + 2:
    on AVX-512 with 8 to 128 features Y is multiplied by sigma first.

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
    sigma, c = _sigma(sigma, X), _number(c, "c")
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


KERNELS = {
    "sigmoid": sigmoid_kernel,
    "tanh": tanh_kernel,
    "linear": linear_kernel,
    "poly": polynomial_kernel,
    "rbf": rbf_kernel,
}


def iter_gram(X, Y=None, *, kernel="sigmoid", block_rows=1024, n_threads=None, **parameters):
    """Yield a Gram matrix block by block of rows, for one larger than memory.

    Parameters
    ----------
    X, Y
        As in :func:`sigmoid_kernel`.
    kernel : {"sigmoid", "tanh", "linear", "poly", "rbf"}, default="sigmoid"
        Which kernel; `parameters` are those of its function.
    block_rows : int, default=1024
        Rows of a block, the last one perhaps fewer.
    n_threads : int or None, default=None
        As in :func:`sigmoid_kernel`.

    Yields
    ------
    rows : slice
        The rows of X.
    block : ndarray of shape (rows, m)
        Their kernel values. The next block overwrites it: copy what you keep.

    Raises
    ------
    ValueError
        If `kernel` is another word or `block_rows` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> import fastmtl
    >>> [block.shape for _, block in fastmtl.iter_gram(np.eye(5), block_rows=2)]
    [(2, 5), (2, 5), (1, 5)]
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; pass one of {', '.join(map(repr, KERNELS))}")
    if not isinstance(block_rows, numbers.Integral) or block_rows < 1:
        raise ValueError(f"block_rows is {block_rows!r}; pass a positive integer")
    X = _rows(X, "X")
    Y = X if Y is None else _rows(Y, "Y")
    for name in ("sigma", "gamma"):
        if isinstance(parameters.get(name), str):
            parameters[name] = kernel_scale(X, parameters[name], name)
    dtype = X.dtype if X.dtype == Y.dtype else np.dtype(np.float64)
    buffer = empty_matrix(min(block_rows, X.shape[0]), Y.shape[0], dtype)

    def blocks():
        for begin in range(0, X.shape[0], block_rows):
            rows = slice(begin, min(begin + block_rows, X.shape[0]))
            out = buffer[: rows.stop - begin]
            yield rows, KERNELS[kernel](X[rows], Y, out=out, n_threads=n_threads, **parameters)

    return blocks()


class SigmoidOperator(LinearOperator):
    """A sigmoid Gram matrix as a linear operator: products without the matrix.

    ``op @ v`` computes each tile of the Gram matrix in the cache and multiplies it there, so that
    memory stays O(n + tile). SciPy's iterative solvers (``eigsh``, ``cg``, ``svds``) accept it.

    Parameters
    ----------
    X : array-like of shape (n, d)
        float32 and float64 are kept.
    Y : array-like of shape (m, d), default=None
        None means X itself.
    sigma, c : float, default=1.0 and 0.0
        As in :func:`sigmoid_kernel`; with ``form="tanh"`` they are gamma and coef0 of
        :func:`tanh_kernel`.
    form : {"logistic", "tanh"}, default="logistic"
        Which sigmoid.
    n_threads : int or None, default=None
        As in :func:`sigmoid_kernel`.

    Attributes
    ----------
    shape : tuple
        (n, m).
    dtype : dtype
        Of the products.

    Examples
    --------
    >>> import numpy as np
    >>> import fastmtl
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> op = fastmtl.SigmoidOperator(X, sigma=0.5)
    >>> v = np.ones(50)
    >>> bool(np.allclose(op @ v, fastmtl.sigmoid_kernel(X, sigma=0.5) @ v))
    True
    """

    def __init__(self, X, Y=None, *, sigma=1.0, c=0.0, form="logistic", n_threads=None):
        _check_form(form)
        if sp.issparse(X) or sp.issparse(Y):
            raise ValueError("X and Y must be dense; for sparse rows use iter_gram")
        self.X = _rows(X, "X")
        self.Y = self.X if Y is None else _rows(Y, "Y")
        self.X, self.Y = _same_features(self.X, self.Y)
        self.sigma, self.c, self.form = _sigma(sigma, self.X), _number(c, "c"), form
        self.n_threads = n_threads
        resolve_threads(n_threads)
        super().__init__(self.X.dtype, (self.X.shape[0], self.Y.shape[0]))

    def _multiply(self, X, Y, V):
        vectors = np.ascontiguousarray(np.asarray(V, dtype=X.dtype).T)
        out = np.empty((X.shape[0], vectors.shape[0]), dtype=X.dtype)
        work = X.shape[0] * Y.shape[0] * (X.shape[1] + 16)
        threads = resolve_threads(self.n_threads, work=work, work_per_thread=WORK_PER_THREAD)
        if self.form == "logistic":
            setting = (LOGISTIC, self.sigma, self.sigma * self.c)
        else:
            setting = (TANH, self.sigma, self.c)
        core.gram_product(X, Y, vectors, out, *setting, 0, None, None, threads)
        return out

    def _matvec(self, v):
        return self._multiply(self.X, self.Y, np.reshape(v, (-1, 1))).ravel()

    def _matmat(self, V):
        return self._multiply(self.X, self.Y, V)

    def _rmatvec(self, v):
        return self._multiply(self.Y, self.X, np.reshape(v, (-1, 1))).ravel()

    def _rmatmat(self, V):
        return self._multiply(self.Y, self.X, V)

    def _adjoint(self):
        return SigmoidOperator(
            self.Y, self.X, sigma=self.sigma, c=self.c, form=self.form, n_threads=self.n_threads
        )

    _transpose = _adjoint

    def diagonal(self):
        """The diagonal of the matrix, (min(n, m),)."""
        n = min(self.shape)
        z = np.einsum("ij,ij->i", self.X[:n], self.Y[:n])
        if self.form == "tanh":
            return np.tanh(self.sigma * z + self.c)
        return expit(self.sigma * (z + self.c))


def kernel_gradient(X, Y=None, W=None, *, sigma=1.0, c=0.0, form="logistic", n_threads=None):
    """Gradient of ``Σ_ij W_ij K_ij`` in sigma and c, for tuning a sigmoid kernel.

    Parameters
    ----------
    X, Y, n_threads
        As in :func:`sigmoid_kernel`.
    W : array-like of shape (n, m), default=None
        Weights, brought to the dtype of X and Y; None means ones.
    sigma, c : float, default=1.0 and 0.0
        Where to take the gradient; with ``form="tanh"`` they are gamma and coef0 of
        :func:`tanh_kernel`.
    form : {"logistic", "tanh"}, default="logistic"
        Which sigmoid.

    Returns
    -------
    gradient : ndarray of shape (2,)
        ``Σ W_ij ∂K_ij/∂sigma`` and ``Σ W_ij ∂K_ij/∂c``, float64. Neither the Gram matrix nor its
        derivative is formed.

    Raises
    ------
    ValueError
        If `W` has another shape than the Gram matrix, or `form` is another word.

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.kernel_gradient([[0.0]], [[1.0]], c=2.0, sigma=0.0)
    array([0.5, 0. ])
    """
    _check_form(form)
    X = _rows(X, "X")
    Y = X if Y is None else _rows(Y, "Y")
    X, Y = _same_features(X, Y)
    sigma, c = _sigma(sigma, X), _number(c, "c")
    shape = (X.shape[0], Y.shape[0])
    if W is None:
        W = np.broadcast_to(np.ones(1, dtype=X.dtype), shape)
    else:
        W = check_array(W, dtype=X.dtype, input_name="W")
        if W.shape != shape:
            raise ValueError(f"W has shape {W.shape}, the Gram matrix has {shape}")
    function = LOGISTIC_SLOPE if form == "logistic" else TANH_SLOPE
    shift = sigma * c if form == "logistic" else c
    total, inner = np.zeros(2)
    for begin in range(0, shape[0], GRADIENT_ROWS):
        rows = slice(begin, begin + GRADIENT_ROWS)
        weights = np.ascontiguousarray(W[rows])
        if sp.issparse(X) or sp.issparse(Y):
            # The products of rows are the only feature, and 1 its weight.
            first = linear_kernel(X[rows], Y).reshape(-1, 1)
            second, weights = np.ones((1, 1), dtype=X.dtype), weights.reshape(-1, 1)
        else:
            first, second = X[rows], Y
        sums = np.empty((first.shape[0], 2))
        work = first.shape[0] * second.shape[0] * (first.shape[1] + 16)
        threads = resolve_threads(n_threads, work=work, work_per_thread=WORK_PER_THREAD)
        core.gram_gradient(first, second, weights, sums, function, sigma, shift, threads)
        total, inner = (total, inner) + sums.sum(axis=0)
    if form == "logistic":
        return np.array([inner + c * total, sigma * total])
    return np.array([inner, total])


def kernel_scale(X, word, name, weight=None):
    """``1 / d`` for ``"auto"``; for ``"scale"`` also over the variance of X's weighted entries."""
    d = X.shape[1]
    if word == "auto":
        return 1.0 / d
    if word != "scale":
        raise ValueError(f"{name} is {word!r}; pass a finite number, 'scale' or 'auto'")
    weight = np.ones(X.shape[0]) if weight is None else weight
    squares = weight @ _squared_lengths(X).astype(np.float64)
    count = d * weight.sum()
    variance = float(squares) / count - (np.sum(weight @ X) / count) ** 2
    return 1.0 / (d * variance) if variance > 0 else 1.0 / d


class CheckedRows:
    """What many Gram matrices take as Y: rows checked once, their squared lengths kept."""

    def __init__(self, Y):
        self.rows = _rows(Y, "Y")
        self.squared_lengths = _squared_lengths(self.rows)


def _gram(X, Y, out, n_threads, function, scale, shift, degree=0, *, distance=None):
    X, squares = _rows(X, "X"), None
    if isinstance(Y, CheckedRows):
        Y, squares = Y.rows, Y.squared_lengths
    elif Y is not None:
        Y = _rows(Y, "Y")
    if Y is not None:
        X, Y = _same_features(X, Y)
    other = X if Y is None else Y
    n, m, dtype = X.shape[0], other.shape[0], X.dtype
    if out is None:
        out = empty_matrix(n, m, dtype)
    else:
        _check_out(out, (n, m), dtype)
        dtype = out.dtype
    if sp.issparse(X) or sp.issparse(other):
        return _sparse_gram(
            X, other, out, n_threads, function, scale, shift, degree, distance, Y is None
        )
    row_term = column_term = None
    if distance is not None:
        row_term = -distance * _squared_lengths(X)
        if squares is None and Y is not None:
            squares = _squared_lengths(Y)
        column_term = row_term if Y is None else -distance * squares
    work = n * m * (X.shape[1] + 16)
    threads = resolve_threads(n_threads, work=work, work_per_thread=WORK_PER_THREAD)
    arguments = (function, scale, shift, degree)
    plain = out.flags.aligned
    if plain and (m <= 1 or out.strides[1] == out.itemsize):
        core.gram(X, Y, out, *arguments, row_term, column_term, threads)
    elif plain and (n <= 1 or out.strides[0] == out.itemsize):  # Fortran order: transposed
        first, second = (X, None) if Y is None else (Y, X)
        core.gram(first, second, out.T, *arguments, column_term, row_term, threads)
    else:
        result = empty_matrix(n, m, dtype)
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
            np.ascontiguousarray(product),
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
    return np.einsum("ij,ij->i", X, X, dtype=np.float64).astype(X.dtype)


def _rows(X, name):
    """X as 2-D, finite, float32 or float64, with contiguous rows; without a copy where it is so."""
    if (
        type(X) is np.ndarray
        and X.dtype in NATIVE_FLOATS
        and X.dtype.isnative
        and X.flags.aligned
        and X.ndim == 2
        and X.size
        and (X.flags.c_contiguous or _has_plain_rows(X))
        and math.isfinite(np.einsum("ij,ij->", X, X))  # no is not certain: squares may overflow
    ):
        return X
    if isinstance(X, list | tuple):
        X = np.asarray(X)
    X = check_array(
        X, accept_sparse="csr", dtype=FLOATS, order="C", input_name=name, estimator="the kernel"
    )
    return X if sp.issparse(X) else np.require(X, requirements="A")


def _has_plain_rows(X):
    row, item = X.strides
    return item == X.itemsize and row >= item * X.shape[1] and row % item == 0


def _same_features(X, Y):
    """X and Y in one dtype, float32 only if both are; an error unless they are as wide."""
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"Y has {Y.shape[1]} features, X has {X.shape[1]}; both must have as many")
    if X.dtype != Y.dtype:
        X, Y = X.astype(np.float64, copy=False), Y.astype(np.float64, copy=False)
    return X, Y


def _check_form(form):
    if form not in ("logistic", "tanh"):
        raise ValueError(f"form is {form!r}; pass 'logistic' or 'tanh'")


def _check_out(out, shape, dtype):
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out is a {type(out).__name__}; pass a numpy array")
    if out.shape != shape or (out.dtype != dtype and out.dtype != np.float32):
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; the result has {shape} and {dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writeable array")


def empty_matrix(n, m, dtype, large=LARGE):
    """Uninitialised (n, m), starting at a cache line so that stores can bypass the cache."""
    itemsize = np.dtype(dtype).itemsize
    if n * m * itemsize >= large:
        try:
            return np.frombuffer(Block(n * m * itemsize), dtype=dtype).reshape(n, m)
        except MemoryError:  # or a system without such blocks: NumPy has the last word
            pass
    flat = np.empty(n * m + CACHE_LINE // itemsize, dtype=dtype)
    skip = -flat.ctypes.data % CACHE_LINE // itemsize
    return flat[skip : skip + n * m].reshape(n, m)


def _number(value, name):
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; pass a finite number")
    return float(value)


def _sigma(sigma, X):
    if isinstance(sigma, str):
        return kernel_scale(_rows(X, "X"), sigma, "sigma")
    return _number(sigma, "sigma")


def _gamma(gamma, X):
    if gamma is not None:
        return _number(gamma, "gamma")
    d = X.shape[1] if hasattr(X, "shape") and len(X.shape) == 2 else np.shape(X)[-1]
    return 1.0 / max(1, d)
