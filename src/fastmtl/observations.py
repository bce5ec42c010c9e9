"""The three input forms, one meaning: observations (row, task, target, weight) over one X.

* long:   ``X (n, d), y (n,), tasks (n,)``, or the labels in a column of X (``task_column``)
* matrix: ``X (n, d), Y (n, T)`` with NaN (or None) for a missing label
* list:   ``[X_1, …, X_T], [y_1, …, y_T]``

`observe` turns any of them into `Observations`, always in the same order (by task, then as given),
so that equal data give equal fits. `query` does the same for prediction. Every message about bad
input that concerns data, rather than one estimator's settings, is here.
"""

from __future__ import annotations

import numbers
import warnings
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from fastmtl._core.labels import by_code, encode
from fastmtl.row_blocks import validated

__all__ = [
    "Classes",
    "Observations",
    "Queries",
    "encode_classes",
    "observe",
    "query",
    "task_codes",
]

FLOATS = (np.float64, np.float32)


@dataclass
class Observations:
    """Labelled rows in task order: rows of task t are ``task_start[t]:task_start[t + 1]``.

    Attributes
    ----------
    X : ndarray (n_rows, d), C-contiguous, or CSR matrix; float32 or float64
    row : int64 (n,), the row of X of each observation
    task : int32 (n,), non-decreasing task codes
    target : ndarray (n,), float64, or class labels as they came
    weight : float64 (n,), sample weights (ones where none were given)
    task_start : int64 (T + 1,)
    tasks : ndarray (T,), the labels
    form : "single", "long", "matrix" or "list"
    """

    X: object
    row: np.ndarray
    task: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    task_start: np.ndarray
    tasks: np.ndarray
    form: str

    @property
    def n_tasks(self):
        return len(self.tasks)

    @property
    def task_sizes(self):
        return np.diff(self.task_start)

    def take(self, index):
        """The observations at `index` (increasing) over the same X, with the same tasks."""
        return replace(
            self,
            row=self.row[index],
            task=self.task[index],
            target=self.target[index],
            weight=self.weight[index],
            task_start=np.searchsorted(self.task[index], np.arange(self.n_tasks + 1)),
        )


@dataclass
class Queries:
    """Rows to predict: X, and the code of each row's task (-1: unseen), or None for every task."""

    X: object
    task: np.ndarray | None
    splits: np.ndarray | None  # where to cut the answer into a list, for the list form


@dataclass
class Classes:
    """Class labels of all tasks as numbers.

    ``classes`` is the union, sorted; ``task_classes[t]`` are the positions in it that task t has.
    With ``binary`` each task has two, and ``code`` is +1 for the second of its two and -1 for the
    first; otherwise ``code`` is the position in ``task_classes[t]``. ``seen[t]`` are those of its
    labels that came, and ``declared`` says that the classes were given beforehand.
    """

    classes: np.ndarray
    task_classes: list
    binary: bool
    code: np.ndarray
    seen: list | None = None
    declared: bool = False


def is_list_form(X):
    """Whether X is a list of matrices, one a task, rather than one matrix as nested lists."""
    return (
        isinstance(X, list | tuple)
        and len(X) > 0
        and all(sp.issparse(part) or np.ndim(part) == 2 for part in X)
    )


def observe(
    estimator, X, y, *, tasks=None, sample_weight=None, classification=False, reset=True, known=None
):
    """Check the data of one fit and return them as `Observations`.

    Parameters
    ----------
    estimator : estimator
        Gets ``n_features_in_`` and ``feature_names_in_`` (checked instead with ``reset=False``);
        its ``task_column``, where it has one, names the column of X with the tasks.
    X, y, tasks, sample_weight
        One of the three forms.
    classification : bool, default=False
        Targets are labels of any kind, not numbers.
    reset : bool, default=True
        False for later calls of ``partial_fit``.
    known : ndarray or None
        Task labels that come first, in this order (``partial_fit``); new ones are appended.

    Raises
    ------
    ValueError
        Naming the argument, what came and what was expected.
    """
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None; "
            "pass y (n,), Y (n, n_tasks), or a list with one y per task"
        )
    task_column = getattr(estimator, "task_column", None)
    if is_list_form(X):
        if tasks is not None or task_column is not None:
            raise ValueError("X is a list with one matrix per task; tasks cannot be given as well")
        X, y, tasks, sample_weight = stack_list(X, y, sample_weight)
        form = "list"
    else:
        if task_column is not None:
            if tasks is not None:
                raise ValueError("both tasks and task_column are given; pass one of them")
            X, tasks = split_task_column(X, task_column)
        form = "long" if tasks is not None else "single"
    X = _check_X(estimator, X, reset=reset)
    n_rows = X.shape[0]

    if form == "list":
        labels, code = np.arange(int(tasks[-1]) + 1), tasks
        y = _check_target(y, classification)
    elif (y if hasattr(y, "columns") or sp.issparse(y) else np.asarray(y)).ndim == 2:
        if form == "long":
            if np.shape(y)[1] != 1:
                raise ValueError(
                    f"y has shape {np.shape(y)} and tasks is given; with tasks (one label per row "
                    "of X) pass y of shape (n,)"
                )
            y = np.asarray(y).ravel()
            labels, code = task_codes(tasks, n_rows)
            y = _check_target(y, classification)
        else:
            form = "matrix"
            return _observe_matrix(X, y, sample_weight, classification, known)
    else:
        y = _check_target(y, classification)
        if form == "long":
            labels, code = task_codes(tasks, n_rows)
        else:
            labels, code = np.arange(1), np.zeros(n_rows, dtype=np.int32)
    if len(y) != n_rows:
        raise ValueError(
            f"y has {len(y)} entries for {n_rows} rows of X (inconsistent numbers of samples); "
            "pass one target per row"
        )
    if known is not None:
        labels, code = _merge_known(known, labels, code)
    weight = None if sample_weight is None else _check_weight(sample_weight, (n_rows,))
    return _in_task_order(X, None, code, y, weight, labels, form)


def query(estimator, X, *, tasks=None):
    """Check the rows to predict and return them as `Queries`.

    Reads the estimator's ``tasks_``, ``task_column``, ``unseen_tasks`` and ``input_form_``.
    """
    task_column = getattr(estimator, "task_column", None)
    splits = None
    if is_list_form(X):
        if len(X) != len(estimator.tasks_):
            raise ValueError(
                f"X is a list of {len(X)} matrices for {len(estimator.tasks_)} tasks; "
                "pass one per task"
            )
        splits = np.cumsum([part.shape[0] if hasattr(part, "shape") else len(part) for part in X])
        code = np.repeat(np.arange(len(X), dtype=np.int32), np.diff(np.concatenate([[0], splits])))
        X = _check_X(estimator, _vstack(X), reset=False)
        return Queries(X, code, splits[:-1])
    if task_column is not None and tasks is None:
        X, tasks = split_task_column(X, task_column)
    X = _check_X(estimator, X, reset=False)
    if tasks is not None:
        return Queries(X, find_tasks(estimator, tasks, X.shape[0]), None)
    if estimator.input_form_ == "single":
        return Queries(X, np.zeros(X.shape[0], dtype=np.int32), None)
    if estimator.input_form_ == "matrix":
        return Queries(X, None, None)
    raise ValueError(
        "tasks is missing: the model was fitted on several tasks; pass tasks=, one label per row "
        "of X, or a list with one matrix per task"
    )


def find_tasks(estimator, tasks, n_rows):
    """Codes of known task labels, -1 for unseen ones where ``unseen_tasks="shared"`` allows."""
    labels, code = task_codes(tasks, n_rows)
    position = {label: i for i, label in enumerate(estimator.tasks_.tolist())}
    found = np.array([position.get(label, -1) for label in labels.tolist()], dtype=np.int32)
    if (found < 0).any() and getattr(estimator, "unseen_tasks", "shared") == "error":
        unseen = labels[found < 0]
        raise ValueError(
            f"tasks has {len(unseen)} labels that were not in training, for example "
            f"{unseen.tolist()[:3]!r}; fit with them, or set unseen_tasks='shared' to predict "
            "them with the shared part"
        )
    if len(found) and (found < 0).all():
        given, known = labels.tolist(), estimator.tasks_.tolist()
        texts = [{isinstance(label, str) for label in labels} for labels in (given, known)]
        if texts[0].isdisjoint(texts[1]):
            warnings.warn(
                f"tasks has labels like {given[0]!r}, but the model was fitted with labels like "
                f"{known[0]!r}, and knows none of them; all rows are predicted with the shared "
                "part",
                UserWarning,
                stacklevel=2,
            )
    return found[code]


def task_codes(tasks, n_rows):
    """Return the sorted distinct labels and, for each row, the position of its own (int32)."""
    if isinstance(tasks, list) and tasks and isinstance(tasks[0], tuple):
        values = np.empty(len(tasks), dtype=object)  # a tuple is a label, not a row of labels
        values[:] = tasks
    else:
        values = np.asarray(tasks)
    if values.ndim != 1:
        raise ValueError(f"tasks has shape {values.shape}; pass one label per row, shape (n,)")
    if len(values) != n_rows:
        raise ValueError(
            f"tasks has {len(values)} labels for {n_rows} rows of X; pass one label per row"
        )
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        raise ValueError("tasks contains NaN or infinity; every row needs a task label")
    if values.dtype.kind == "O" and any(v is None or v != v for v in values):
        raise ValueError("tasks contains None or NaN; every row needs a task label")
    try:
        labels, code = distinct(values)
    except TypeError:  # labels of mixed types have no order: keep that of first appearance
        position = {}
        code = np.array([position.setdefault(value, len(position)) for value in values])
        labels = np.empty(len(position), dtype=object)
        labels[:] = list(position)
    return labels, code.astype(np.int32, copy=False)


def distinct(values):
    """``np.unique(values, return_inverse=True)``, without a sort of integers close together."""
    if values.dtype.kind in "iu" and len(values):
        least, most = int(values.min()), int(values.max())
        if most - least < 4 * len(values) and most < 1 << 63:  # no more memory than labels take
            place = np.zeros(most - least + 1, dtype=np.int32)
            code = np.empty(len(values), dtype=np.int32)
            encode(np.ascontiguousarray(values, dtype=np.int64), least, place, code)
            return (np.flatnonzero(place >= 0) + least).astype(values.dtype), code
    return np.unique(values, return_inverse=True)


def split_task_column(X, task_column):
    """Take the column of task labels out of X (ndarray, sparse matrix or DataFrame)."""
    if hasattr(X, "columns") and hasattr(X, "iloc"):
        if isinstance(task_column, numbers.Integral) and task_column not in X.columns:
            task_column = X.columns[task_column]
        if task_column not in X.columns:
            raise ValueError(
                f"task_column is {task_column!r}, which is not a column of X; "
                f"the columns are {list(X.columns)[:10]!r}"
            )
        return X.drop(columns=[task_column]), X[task_column].to_numpy()
    if not isinstance(task_column, numbers.Integral):
        raise ValueError(
            f"task_column is {task_column!r}, but X has no column names; pass an integer index"
        )
    if sp.issparse(X):
        X = X.tocsc()
    elif not hasattr(X, "shape"):
        X = np.asarray(X)
    if X.ndim != 2:
        raise ValueError(f"X has {X.ndim} dimensions; task_column needs a 2-D X")
    n_columns = X.shape[1]
    if not -n_columns <= task_column < n_columns:
        raise ValueError(f"task_column is {task_column}, but X has {n_columns} columns")
    task_column %= n_columns
    others = np.delete(np.arange(n_columns), task_column)
    if sp.issparse(X):
        return X[:, others].tocsr(), X[:, [task_column]].toarray().ravel()
    return X[:, others], X[:, task_column]


def encode_classes(observations, known=None, earlier=None):
    """Number the class labels of all tasks; see `Classes`.

    A task in which only one class was seen takes the union of all classes, so that the shared part
    can serve it; with a single class in all the data there is nothing to learn, and it is refused.

    Parameters
    ----------
    observations : Observations
    known : ndarray or None
        Labels that every task has, seen or not.
    earlier : Classes or None
        Those of an earlier batch, whose tasks come first; labels seen then count as seen now.

    Raises
    ------
    ValueError
        If all targets are of one class.
    """
    labels = observations.target
    try:
        classes, code = distinct(labels)
    except TypeError:
        raise ValueError(
            "y mixes labels of different types (for example str and int); use one type"
        ) from None
    for given in (known, None if earlier is None else earlier.classes):
        if given is not None:
            if (given.dtype.kind in "US") != (classes.dtype.kind in "US"):
                raise ValueError(
                    f"y has labels such as {classes.tolist()[0]!r} where those known are such as "
                    f"{given.tolist()[0]!r}; use one type"
                )
            union = np.union1d(given, classes)
            code = np.searchsorted(union, classes)[code]
            classes = union
    if len(classes) < 2:
        raise ValueError(
            f"y has one class only ({classes.tolist()[0]!r}); a classifier needs at least two "
            "classes in the data"
        )
    start = observations.task_start
    seen = [
        np.flatnonzero(np.bincount(code[start[t] : start[t + 1]], minlength=1))
        for t in range(observations.n_tasks)
    ]
    if earlier is not None:
        place = np.searchsorted(classes, earlier.classes)
        for t, own in enumerate(earlier.seen):
            seen[t] = np.union1d(seen[t], place[own])
    one_label_space = observations.form != "matrix" and len(classes) == 2
    everything = np.arange(len(classes))
    if known is not None or one_label_space:
        task_classes = [everything for _ in seen]
    else:
        task_classes = [own if len(own) > 1 else everything for own in seen]
    binary = all(len(own) == 2 for own in task_classes) and (earlier is None or earlier.binary)
    if binary:
        # One output serves all tasks only if no label is the first class here and the second there.
        first = {own[0] for own in task_classes}
        second = {own[1] for own in task_classes}
        binary = not first & second
    own_code = np.empty(len(code), dtype=np.float64)
    for t, own in enumerate(task_classes):
        part = slice(start[t], start[t + 1])
        whole = len(own) == len(classes)
        own_code[part] = code[part] if whole else np.searchsorted(own, code[part])
    if binary:
        own_code = 2.0 * own_code - 1.0
    return Classes(classes, task_classes, binary, own_code, seen, known is not None)


def _check_X(estimator, X, *, reset):
    def validate(X):
        return validate_data(
            estimator,
            X=X,
            reset=reset,
            accept_sparse="csr",
            dtype=FLOATS,
            order="C",
            accept_large_sparse=True,
        )

    try:
        X = validated(validate, X)
    except ValueError as error:
        if not str(error).startswith("could not convert string to float"):
            raise
        text = str(error).partition(": ")[2]
        raise ValueError(
            f"X holds text ({text}), which is not a number; encode it, or if it is the column of "
            "task labels, name that by task_column="
        ) from None
    if not sp.issparse(X):
        return X
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    return X


def _check_target(y, classification):
    if sp.issparse(y):
        raise ValueError("y is a sparse matrix; pass a dense array")
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y has shape {y.shape}; pass one target per row, shape (n,)")
    if classification:
        if y.dtype.kind == "c":
            raise ValueError("y is complex; Complex data not supported as class labels")
        if y.dtype.kind == "f":
            if not np.isfinite(y).all():
                raise ValueError("y (class labels) contains NaN or infinity; drop those rows")
            if (y != np.floor(y)).any():
                raise ValueError(
                    "Unknown label type: y is continuous; a classifier needs discrete labels, "
                    "for numbers use a regressor"
                )
        elif y.dtype.kind == "O" and any(v is None or v != v for v in y):
            raise ValueError("y (class labels) contains None or NaN; drop those rows")
        return y
    if y.dtype.kind in "OUS":
        try:
            y = y.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"y holds what is not a number ({error}); for class labels use a classifier"
            ) from None
    return check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")


def _observe_matrix(X, Y, sample_weight, classification, known):
    labels = np.asarray(Y.columns) if hasattr(Y, "columns") else None
    if sp.issparse(Y):
        raise ValueError("y is a sparse matrix; pass a dense array with NaN for a missing label")
    Y = np.asarray(Y)
    n_rows, n_tasks = Y.shape
    if n_rows != X.shape[0]:
        raise ValueError(
            f"y has {n_rows} rows for {X.shape[0]} rows of X (inconsistent numbers of samples)"
        )
    if n_tasks == 0:
        raise ValueError("y has no column; pass one per task")
    if Y.dtype.kind == "c":
        raise ValueError("y is complex; Complex data not supported")
    if Y.dtype.kind == "O":
        present = np.array([[v is not None and v == v for v in line] for line in Y], dtype=bool)
    elif Y.dtype.kind == "f":
        present = ~np.isnan(Y)
    else:
        present = np.ones(Y.shape, dtype=bool)
    if labels is None:
        labels = np.arange(n_tasks)
    empty = np.flatnonzero(~present.any(axis=0))
    if len(empty) and known is None:
        raise ValueError(
            f"y has no label at all for task {labels.tolist()[empty[0]]!r} (column {empty[0]}); "
            "drop the column or supply labels"
        )
    task, row = np.nonzero(present.T)
    target = _check_target(Y[row, task], classification)
    if known is not None:
        labels, task = _merge_known(known, labels, task.astype(np.int32))
    if sample_weight is not None and np.asarray(sample_weight).ndim == 2:
        weight = _check_weight(sample_weight, Y.shape, present)[row, task]
    else:
        weight = _check_weight(sample_weight, (n_rows,))[row]
    return _in_task_order(X, row.astype(np.int64), task, target, weight, labels, "matrix")


def stack_list(X, y, sample_weight):
    if not isinstance(y, list | tuple) or len(y) != len(X):
        came = f"a list of {len(y)}" if isinstance(y, list | tuple) else f"a {type(y).__name__}"
        raise ValueError(
            f"y is {came} for a list of {len(X)} matrices in X; pass a list with one y per task"
        )
    sizes = []
    for t, (part, target) in enumerate(zip(X, y)):
        rows = part.shape[0] if hasattr(part, "shape") else len(part)
        if rows == 0:
            raise ValueError(f"X[{t}] has no rows; drop the task or supply samples")
        if np.ndim(target) != 1 or len(target) != rows:
            raise ValueError(
                f"y[{t}] has shape {np.shape(target)} for {rows} rows of X[{t}]; "
                "pass one target per row"
            )
        sizes.append(rows)
    if sample_weight is not None:
        if not isinstance(sample_weight, list | tuple) or [len(w) for w in sample_weight] != sizes:
            raise ValueError("sample_weight must be a list with one array per task, sized like y")
        sample_weight = np.concatenate([np.asarray(w) for w in sample_weight])
    tasks = np.repeat(np.arange(len(X), dtype=np.int32), sizes)
    return _vstack(X), np.concatenate([np.asarray(t) for t in y]), tasks, sample_weight


def _vstack(parts):
    widths = {part.shape[1] if hasattr(part, "shape") else len(part[0]) for part in parts}
    if len(widths) > 1:
        raise ValueError(f"the matrices in X have {sorted(widths)} columns; all must have as many")
    if any(sp.issparse(part) for part in parts):
        return sp.vstack(parts, format="csr")
    return np.concatenate([np.asarray(part) for part in parts])


def _merge_known(known, labels, code):
    position = {label: i for i, label in enumerate(known.tolist())}
    merged = np.array(
        [position.setdefault(label, len(position)) for label in labels.tolist()], dtype=np.int32
    )
    new = [label for label in labels.tolist() if position[label] >= len(known)]
    if new:
        kind = np.result_type(known, labels) if known.dtype.kind == labels.dtype.kind else object
        joined = np.empty(len(position), dtype=kind)
        joined[: len(known)] = known
        joined[len(known) :] = new
        known = joined
    return known, merged[code]


def _check_weight(sample_weight, shape, needed=None):
    if sample_weight is None:
        return np.ones(shape)
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(shape, float(sample_weight))
    weight = np.asarray(sample_weight)
    if weight.dtype.kind not in "fiub":
        raise ValueError(f"sample_weight has dtype {weight.dtype}; pass real numbers")
    if weight.shape != shape:
        wanted = "(n,) or (n, n_tasks)" if needed is not None else f"{shape}"
        raise ValueError(f"sample_weight has shape {weight.shape}; pass shape {wanted}")
    weight = weight.astype(np.float64)
    used = weight if needed is None else weight[needed]
    if not np.isfinite(used).all():
        raise ValueError("sample_weight contains NaN or infinity; pass finite numbers")
    if used.size and used.min() < 0:
        raise ValueError(
            f"sample_weight has a negative entry ({used.min():.3g}); weights must be ≥ 0"
        )
    if used.size and used.max() == 0:
        raise ValueError("sample_weight is zero for every sample; some weight must be positive")
    return weight


def _in_task_order(X, row, code, target, weight, labels, form):
    """`row` and `weight` may be None: each row once, and weights of one."""
    n_tasks = len(labels)
    code = np.ascontiguousarray(code, dtype=np.int32)
    start, order = np.empty(n_tasks + 1, dtype=np.int64), np.empty(len(code), dtype=np.int64)
    if not by_code(code, start, order):
        target = target[order]
        row = order if row is None else row[order]
        weight = weight if weight is None else weight[order]
        code = np.repeat(np.arange(n_tasks, dtype=np.int32), np.diff(start))
    if row is None:
        row = order
    if weight is None:
        weight = np.ones(len(code))
    return Observations(
        X,
        np.ascontiguousarray(row, dtype=np.int64),
        code,
        np.ascontiguousarray(target),
        np.ascontiguousarray(weight),
        start,
        labels,
        form,
    )
