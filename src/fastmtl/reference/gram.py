"""Gram matrices ``f(scale x_i·y_j + shift + row_term_i + column_term_j)``."""

import numpy as np
from scipy.special import expit

__all__ = ["gram", "gram_product"]


def gram(X, Y, out, function, scale, shift, degree, row_term, column_term, n_threads):
    """Fill `out`; with Y None, the symmetric Gram of X.

    `function`: 0 linear, 1 logistic, 2 tanh, 3 exp (of what is at most 0), 4 power `degree`.
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
    )
    out[...] = functions[function](z)


def gram_product(
    X, Y, vectors, out, function, scale, shift, degree, row_term, column_term, n_threads
):
    """Fill `out` (n, k) with the Gram of X and Y times the k rows of `vectors`."""
    K = np.empty((len(X), len(Y)))
    gram(X, Y, K, function, scale, shift, degree, row_term, column_term, n_threads)
    out[...] = K @ vectors.astype(np.float64).T
