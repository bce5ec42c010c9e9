"""Splitters that know tasks: each task spread over the folds, or whole tasks left out."""

from __future__ import annotations

import numbers

import numpy as np
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target

from fastmtl.metrics import present_labels
from fastmtl.observations import split_task_column, task_codes

__all__ = ["LeaveTasksOut", "TaskStratifiedKFold"]


class _TaskSplitter(BaseCrossValidator):
    __metadata_request__split = {"groups": True}

    def get_n_splits(self, X=None, y=None, groups=None):
        """Return the number of folds."""
        return self.n_splits

    def split(self, X, y=None, groups=None):
        """Yield the rows of the training and the test part of each fold.

        Parameters
        ----------
        X : array-like of shape (n, d)
        y : array-like of shape (n,) or (n, n_tasks), default=None
        groups : array-like of shape (n,), default=None
            The task label of each row. Without it, `task_column` names them in X.

        Yields
        ------
        train, test : ndarray of int
        """
        self._check()
        yield from super().split(X, y, groups)

    def _check(self):
        if not isinstance(self.n_splits, numbers.Integral) or self.n_splits < 2:
            raise ValueError(f"n_splits is {self.n_splits!r}; pass an integer >= 2")
        if self.random_state is not None and not self.shuffle:
            raise ValueError("random_state is given but shuffle is False; set shuffle=True")

    def _tasks(self, X, groups):
        if groups is None and self.task_column is not None:
            groups = split_task_column(X, self.task_column)[1]
        return None if groups is None else task_codes(groups, _n_rows(X))[1]

    def _iter_test_masks(self, X=None, y=None, groups=None):
        fold = self._folds(X, y, groups)
        for k in range(self.n_splits):
            yield fold == k

    def __repr__(self):
        return (
            f"{type(self).__name__}(n_splits={self.n_splits}, shuffle={self.shuffle}, "
            f"random_state={self.random_state}, task_column={self.task_column!r})"
        )


class TaskStratifiedKFold(_TaskSplitter):
    """K folds over which each task's rows are spread evenly, and for class labels each class.

    The sizes of a task in any two folds differ by one row at most, and so do those of a class
    within a task. Whole-number targets count as classes, which spreads their values evenly.
    With Y (n, n_tasks) and NaN for missing labels, each row is dealt to the fold that lacks most of
    its rarest label (iterative stratification [1]_), so labels are spread as evenly as whole rows
    allow.

    A task with a single row is absent from the training part of one fold: models predict it there
    as an unseen task.

    Parameters
    ----------
    n_splits : int, default=5
    shuffle : bool, default=False
        Shuffle the rows of each task before dealing them out.
    random_state : int, RandomState or None, default=None
        Seed of `shuffle`.
    task_column : int or str, default=None
        The column of X with the task labels, where they do not come as `groups`.

    See Also
    --------
    LeaveTasksOut : folds that hold out whole tasks.

    References
    ----------
    .. [1] K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the stratification of multi-label data",
       ECML PKDD 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import TaskStratifiedKFold
    >>> tasks = np.array(["a"] * 4 + ["b"] * 6)
    >>> for train, test in TaskStratifiedKFold(2).split(np.zeros((10, 1)), groups=tasks):
    ...     print(tasks[test])
    ['a' 'a' 'b' 'b' 'b']
    ['a' 'a' 'b' 'b' 'b']
    """

    def __init__(self, n_splits=5, *, shuffle=False, random_state=None, task_column=None):
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.task_column = task_column

    def _folds(self, X, y, groups):
        n = _n_rows(X)
        if self.n_splits > n:
            raise ValueError(f"n_splits is {self.n_splits} for {n} rows; pass at most {n}")
        rng = check_random_state(self.random_state) if self.shuffle else None
        task = self._tasks(X, groups)
        if y is not None and np.ndim(y) == 2 and np.shape(y)[1] > 1 and task is None:
            return _matrix_folds(np.asarray(y), self.n_splits, rng)
        task = np.zeros(n, dtype=np.int32) if task is None else task
        label = np.zeros(n, dtype=np.int64)
        if y is not None and type_of_target(y) in ("binary", "multiclass"):
            label = np.unique(np.ravel(y), return_inverse=True)[1]
        order = np.arange(n) if rng is None else rng.permutation(n)
        order = order[np.lexsort((label[order], task[order]))]
        # Dealing all strata in one round-robin evens out tasks, classes and folds at once.
        fold = np.empty(n, dtype=np.int64)
        fold[order] = np.arange(n) % self.n_splits
        return fold


class LeaveTasksOut(_TaskSplitter):
    """Folds that hold out whole tasks, to see how a model serves tasks it has never met.

    Tasks are dealt out, the largest first, to the fold with the fewest rows.

    Parameters
    ----------
    n_splits : int, default=5
        At most the number of tasks; as many leave one task out at a time.
    shuffle : bool, default=False
        Take tasks of equal size in random order.
    random_state : int, RandomState or None, default=None
    task_column : int or str, default=None
        The column of X with the task labels, where they do not come as `groups`.

    See Also
    --------
    TaskStratifiedKFold : folds in which every task takes part.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import LeaveTasksOut
    >>> tasks = np.array(["a", "a", "b", "c", "c", "c"])
    >>> for train, test in LeaveTasksOut(3).split(np.zeros((6, 1)), groups=tasks):
    ...     print(tasks[train], tasks[test])
    ['a' 'a' 'b'] ['c' 'c' 'c']
    ['b' 'c' 'c' 'c'] ['a' 'a']
    ['a' 'a' 'c' 'c' 'c'] ['b']
    """

    def __init__(self, n_splits=5, *, shuffle=False, random_state=None, task_column=None):
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.task_column = task_column

    def _folds(self, X, y, groups):
        task = self._tasks(X, groups)
        if task is None:
            raise ValueError(
                "groups is None; pass the task label of each row as groups, or task_column. A "
                "matrix Y has no rows of one task alone: bring it into the long form first"
            )
        sizes = np.bincount(task)
        if self.n_splits > len(sizes):
            raise ValueError(
                f"n_splits is {self.n_splits} for {len(sizes)} tasks; pass at most {len(sizes)}"
            )
        order = np.arange(len(sizes))
        if self.shuffle:
            order = check_random_state(self.random_state).permutation(order)
        order = order[np.argsort(-sizes[order], kind="stable")]
        fold_of, load = np.empty(len(sizes), dtype=np.int64), np.zeros(self.n_splits)
        filled = np.zeros(self.n_splits, dtype=np.int64)
        for t in order:
            k = np.lexsort((load, filled > 0))[0] if (filled == 0).any() else np.argmin(load)
            fold_of[t] = k
            load[k] += sizes[t]
            filled[k] += 1
        return fold_of[task]


def _n_rows(X):
    return X.shape[0] if hasattr(X, "shape") else len(X)


def _matrix_folds(Y, n_splits, rng):
    """Iterative stratification of rows by what labels they have."""
    n, n_tasks = Y.shape
    present = present_labels(Y)
    columns = []
    for t in range(n_tasks):
        own, some = Y[:, t], present[:, t]
        column = np.array(own[some].tolist())
        if some.any() and type_of_target(column) in ("binary", "multiclass"):
            values, code = np.unique(column, return_inverse=True)
            if len(values) <= max(2, some.sum() // n_splits):
                for k in range(len(values)):
                    has = np.zeros(n, dtype=bool)
                    has[np.flatnonzero(some)[code == k]] = True
                    columns.append(has)
                continue
        columns.append(some)
    has = np.column_stack(columns)
    order = np.arange(n) if rng is None else rng.permutation(n)
    fold = np.full(n, -1)
    wanted = np.repeat(has.sum(axis=0)[:, None] / n_splits, n_splits, axis=1)
    room = np.full(n_splits, n / n_splits)
    remaining = has.sum(axis=0)
    while (remaining > 0).any():
        rarest = np.argmin(np.where(remaining > 0, remaining, n + 1))
        for i in order[has[order, rarest] & (fold[order] < 0)]:
            k = np.lexsort((-room, -wanted[rarest]))[0]
            fold[i] = k
            wanted[has[i], k] -= 1
            room[k] -= 1
            remaining = remaining - has[i]
    for i in order[fold[order] < 0]:  # rows without any label
        fold[i] = k = np.argmax(room)
        room[k] -= 1
    return fold
