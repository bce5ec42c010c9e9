"""Gram matrices ``f(scale x_i·y_j + shift + row_term_i + column_term_j)``."""

import numpy as np
from scipy.special import expit

__all__ = ["gram", "gram_gradient", "gram_product"]


def gram(X, Y, out, function, scale, shift, degree, row_term, column_term, n_threads):
    """Fill `out`; with Y None, the symmetric Gram of X.

    `function`: 0 linear, 1 logistic, 2 tanh, 3 exp (of what is at most 0), 4 power `degree`,
    5 and 6 the derivatives of 1 and 2.
    """
    Y = X if Y is None else Y
    z = scale * (X.astype(np.float64) @ Y.astype(np.float64).T) + shift
    if row_term is not None:
        z += row_term.astype(np.float64)[:, None]
    if column_term is not None:
        z += column_term.astype(np.float64)
    functions = (
        lambda z: z,
        expit,
        np.tanh,
        lambda z: np.exp(np.minimum(z, 0.0)),
        lambda z: z**degree,
        lambda z: expit(z) * expit(-z),
        lambda z: 4 * expit(2 * z) * expit(-2 * z),
    )
    out[...] = functions[function](z)


def gram_product(
    X, Y, vectors, out, function, scale, shift, degree, row_term, column_term, n_threads
):
    """Fill `out` (n, k) with the Gram of X and Y times the k rows of `vectors`."""
    K = np.empty((len(X), len(Y)))
    gram(X, Y, K, function, scale, shift, degree, row_term, column_term, n_threads)
    out[...] = K @ vectors.astype(np.float64).T


def gram_gradient(X, Y, weights, out, function, scale, shift, n_threads):
    """Fill `out` (n, 2), float64, with the rows' sums of a weighted Gram's derivatives.

    With `function` 5 or 6, f', these are Σ_j w_ij f'(z_ij) and Σ_j w_ij f'(z_ij) x_i·y_j: the
    derivatives of Σ_j w_ij f(z_ij) in `shift` and in `scale`.
    """
    slope, inner = np.empty((2, len(X), len(Y)))
    gram(X, Y, slope, function, scale, shift, 0, None, None, n_threads)
    gram(X, Y, inner, 0, 1.0, 0.0, 0, None, None, n_threads)
    slope *= weights
    out[:, 0] = slope.sum(axis=1)
    out[:, 1] = (slope * inner).sum(axis=1)
