"""Which columns of a sparse X each task's rows have, and vectors that are kept at these alone.

A coordinate of v_t that no row of task t fills stays zero under every penalty and step, so nothing
is lost, and memory follows the entries of X rather than tasks times columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from fastmtl._core import linear_sgd

__all__ = ["TaskColumns", "find_columns", "ragged"]


@dataclass
class TaskColumns:
    """Task t has the columns ``column[start[t]:start[t + 1]]``, as they first appear in its rows.

    A vector of the task has their coefficients, in this order, and last its intercept; the vectors
    of all heads lie one after the other. In the order of first appearance the entries of a row
    are often neighbours, and frequent columns come early.
    """

    start: np.ndarray  # int64 (T + 1,)
    column: np.ndarray  # int32

    def vector_start(self, head_start):
        """Where each head's vector begins: int64 (heads + 1,)."""
        widths = np.repeat(np.diff(self.start) + 1, np.diff(head_start))
        return np.concatenate([[0], np.cumsum(widths)])

    def of_tasks(self, task):
        """The columns of the tasks at these positions, none for -1."""
        sizes = np.where(task >= 0, np.diff(self.start)[task], 0) if len(self.start) > 1 else 0
        sizes = np.broadcast_to(sizes, task.shape)
        start = np.concatenate([[0], np.cumsum(sizes)])
        return TaskColumns(start, self.column[ragged(self.start[:-1][task], sizes)])

    def appended(self, columns):
        """With one more task."""
        return TaskColumns(
            np.append(self.start, self.start[-1] + len(columns)),
            np.concatenate([self.column, columns.astype(np.int32)]),
        )

    def matrix(self, flat, head_start, d):
        """Vectors without their intercepts as a CSR matrix (heads, d)."""
        begin, heads = self.vector_start(head_start), np.diff(head_start)
        sizes = np.diff(begin) - 1
        columns = self.column[ragged(np.repeat(self.start[:-1], heads), sizes)]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        answer = sp.csr_matrix(
            (flat[ragged(begin[:-1], sizes)], columns, indptr), shape=(len(sizes), d)
        )
        answer.sort_indices()
        return answer


def ragged(begin, sizes):
    """``begin[i], begin[i] + 1, …``, `sizes[i]` of them, one after the other."""
    first = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(begin - first, sizes)


def find_columns(X, row, task_start, known=None, grow=True):
    """The columns of each task, those `known` first, and the place of each entry of X among them.

    Parameters
    ----------
    X : CSR matrix
    row : int64 (n,)
        Rows of X, task after task, none twice.
    task_start : int64 (T + 1,)
    known : TaskColumns or None
    grow : bool, default=True
        False leaves the columns as they are known; entries elsewhere have the place -1.

    Returns
    -------
    columns : TaskColumns
    position : int32 (nnz,)
    """
    if known is None:
        known = TaskColumns(np.zeros(len(task_start), dtype=np.int64), np.zeros(0, dtype=np.int32))
    position = np.zeros(len(X.indices), dtype=np.int32)
    column, start = linear_sgd.find_columns(
        X.indices.astype(np.int32, copy=False),
        X.indptr.astype(np.int64, copy=False),
        row,
        task_start.astype(np.int64, copy=False),
        known.column,
        known.start,
        X.shape[1],
        position,
        grow,
    )
    return TaskColumns(start, column), position
