"""The coefficients of few tasks side by side, column by column of a sparse X.

A dual step on task t changes every w_u by ``C[t, u]`` times the same row, so with all of them in
one line of memory it gathers and scatters once, where shared and own vectors would take both twice.
The split is that of the least penalty: with ``A = W C⁻¹``, ``S = A B`` and ``v_t = κ_t a_t``.
"""

from __future__ import annotations

import numpy as np

MOST_TASKS = 8  # a cache line of float64


def fits(X, state, n_tasks, kind):
    """Whether coefficients side by side are possible, and take no more memory than X's entries."""
    lanes = _lanes(n_tasks)
    one_head = len(state.head_class) == n_tasks
    few = lanes <= MOST_TASKS and state.shared.shape[2] * lanes <= X.nnz
    return few and one_head and kind != "free"


def _lanes(n_tasks):
    return 1 << (n_tasks - 1).bit_length()


class Joint:
    def __init__(self, state, factors):
        mixing, kappa = factors
        n_tasks, stride = len(kappa), state.shared.shape[2]
        lanes = _lanes(n_tasks)
        self.covariance = np.zeros((lanes, lanes))
        self.covariance[:n_tasks, :n_tasks] = factors.covariance()
        # S = W to_shared; v_t is what w_t has beyond that.
        if (kappa > 0).all():  # the same without the inverse, for κ far below B
            weighed = mixing / kappa[:, None]
            system = mixing.T @ weighed
            system[np.diag_indices_from(system)] += 1.0
            to_shared = np.linalg.solve(system, weighed.T).T
        else:
            to_shared = np.linalg.pinv(factors.covariance(), hermitian=True) @ mixing
        self.to_shared, self.to_own = np.zeros((lanes, mixing.shape[1])), np.zeros((lanes, n_tasks))
        self.to_shared[:n_tasks] = to_shared
        self.to_own[:n_tasks] = (np.eye(n_tasks) - to_shared @ mixing.T) * (kappa > 0)
        if state.columns is None:  # of each coordinate of specific, its column and its task
            column = np.tile(np.arange(stride), n_tasks)
            task = np.repeat(np.arange(n_tasks), stride)
        else:
            task = np.repeat(np.arange(n_tasks), np.diff(state.vector_start))
            own = state.columns.column.astype(np.int64)
            column = np.insert(own, state.columns.start[1:], stride - 1)
        self.own = column * n_tasks + task
        self.weights = np.zeros((stride, lanes))
        self.weights[column, task] = state.specific.reshape(-1)
        self.weights[:, :n_tasks] += state.shared[:, 0].T @ mixing.T

    def put(self, state):
        """Set the state's vectors to those of the least penalty that have these coefficients."""
        state.shared[:, 0] = (self.weights @ self.to_shared).T
        own = np.take(self.weights @ self.to_own, self.own)
        state.specific[...] = own.reshape(state.specific.shape)

    def vectors(self, dtype):
        """All w_t, (T, stride)."""
        return self.weights.T[: self.to_own.shape[1]].astype(dtype, order="C")
