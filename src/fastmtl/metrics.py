"""Scores of each task and their averages, for every form of data, and scorers for searches.

A metric is one function of a task's targets, predictions and a stack of weights, so that the same
text scores a task once and its thousand bootstrap resamples.
"""

from __future__ import annotations

import inspect
import warnings
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import UndefinedMetricWarning

from fastmtl.observations import is_list_form, split_task_column, task_codes

__all__ = ["make_task_scorer", "task_scores"]

AVERAGES = ("macro", "micro", "worst", "pooled")


class Metric(NamedTuple):
    """``function(truth (n,), predicted (n, …), weight (B, n)) -> (B,)``, NaN where undefined."""

    name: str
    function: object
    response: str  # what of a model it scores: "predict", "score" or "proba"
    greater_is_better: bool


class TaskPart(NamedTuple):
    """One task's labels, predictions and weights, and which rows they are."""

    truth: np.ndarray
    predicted: np.ndarray
    weight: np.ndarray
    row: np.ndarray


def _ratio(above, below):
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _mean(values, weight):
    return _ratio(weight @ values, weight.sum(axis=1))


def _r2(truth, predicted, weight):
    # about a fixed centre, or the difference of squares would lose digits
    centred = truth - truth.mean()
    total = weight @ centred**2 - _ratio((weight @ centred) ** 2, weight.sum(axis=1))
    varies = total > 1e-12 * np.maximum(weight @ centred**2, 1e-300)
    error = weight @ (truth - predicted) ** 2
    return np.where(varies, 1 - _ratio(error, np.where(varies, total, 0.0)), np.nan)


def _explained_variance(truth, predicted, weight):
    residual = truth - predicted
    bias = _mean(residual - residual.mean(), weight)
    spread = weight @ (residual - residual.mean()) ** 2 - weight.sum(axis=1) * bias**2
    centred = truth - truth.mean()
    total = weight @ centred**2 - _ratio((weight @ centred) ** 2, weight.sum(axis=1))
    varies = total > 1e-12 * np.maximum(weight @ centred**2, 1e-300)
    return np.where(varies, 1 - _ratio(spread, np.where(varies, total, 0.0)), np.nan)


def _squared(truth, predicted, weight):
    return _mean((truth - predicted) ** 2, weight)


def _absolute(truth, predicted, weight):
    return _mean(np.abs(truth - predicted), weight)


def _accuracy(truth, predicted, weight):
    return _mean((truth == predicted).astype(float), weight)


def _log_loss(position, proba, weight):
    eps = np.finfo(proba.dtype).eps
    own = proba[np.arange(len(position)), position]
    return _mean(-np.log(np.clip(own, eps, 1 - eps), dtype=float), weight)


def _roc_auc(position, scores, weight):
    if scores.ndim == 2:
        present = np.unique(position)
        if len(present) > 2:
            each = [_two_class_auc(position == k, scores[:, k], weight) for k in present]
            return np.mean(each, axis=0)
        positive = position == present[-1]
        odds = scores[:, present[-1]] / np.maximum(scores[:, present].sum(axis=1), 1e-300)
        return _two_class_auc(positive, odds, weight) if len(present) == 2 else _none(weight)
    return _two_class_auc(position == 1, scores, weight)


def _two_class_auc(positive, score, weight):
    """The chance that a positive has the higher score, ties counting half."""
    if not len(score):
        return _none(weight)
    order = np.argsort(score, kind="stable")
    begins = np.flatnonzero(np.diff(score[order], prepend=-np.inf) != 0)
    weight = weight[:, order]
    ups = np.add.reduceat(weight * positive[order], begins, axis=1)
    downs = np.add.reduceat(weight * ~positive[order], begins, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    return _ratio(np.sum(ups * below, axis=1), ups.sum(axis=1) * downs.sum(axis=1))


def _none(weight):
    return np.full(len(weight), np.nan)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("r2", _r2, "predict", True),
        Metric("explained_variance", _explained_variance, "predict", True),
        Metric("mse", _squared, "predict", False),
        Metric("mae", _absolute, "predict", False),
        Metric("accuracy", _accuracy, "predict", True),
        Metric("roc_auc", _roc_auc, "score", True),
        Metric("log_loss", _log_loss, "proba", False),
    )
}


def resolve_metric(metric, greater_is_better=True):
    """Return the `Metric` of a name or a callable ``f(y_true, y_pred[, sample_weight])``."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    if not callable(metric):
        raise ValueError(
            f"metric is {metric!r}; pass one of {', '.join(map(repr, METRICS))} or a callable "
            "f(y_true, y_pred)"
        )
    weighted = "sample_weight" in inspect.signature(metric).parameters

    def function(truth, predicted, weight):
        if not len(truth):
            return _none(weight)
        if weighted:
            return np.array([metric(truth, predicted, sample_weight=w) for w in weight])
        if not (weight == np.round(weight)).all():
            raise ValueError("sample_weight is given, but the metric takes no sample_weight")
        # whole weights are repeated rows
        repeated = [np.repeat(np.arange(len(truth)), w.astype(np.int64)) for w in weight]
        return np.array([metric(truth[rows], predicted[rows]) for rows in repeated])

    name = getattr(metric, "__name__", "metric")
    return Metric(name, function, "predict", greater_is_better)


def task_scores(
    y_true,
    y_pred,
    *,
    tasks=None,
    metric="r2",
    average=None,
    sample_weight=None,
    labels=None,
    greater_is_better=True,
):
    """Score each task, and average over tasks.

    Parameters
    ----------
    y_true : array-like of shape (n,) or (n, n_tasks), or list of arrays
        Targets in one of the three forms; NaN (or None) in a matrix is a missing label.
    y_pred : array-like or list of arrays
        Predictions in the same form. For ``"roc_auc"`` scores (larger for the class that sorts
        last) or probabilities, for ``"log_loss"`` probabilities: (n,) of the last class or
        (n, n_classes), and in the matrix form (n, n_tasks) or a list of (n, n_classes_t), as
        `predict_proba` returns them.
    tasks : array-like of shape (n,), default=None
        The task label of each row (long form). Without it a 1-D `y_true` is one task.
    metric : str or callable, default="r2"
        ``"r2"``, ``"explained_variance"``, ``"mse"``, ``"mae"``, ``"accuracy"``, ``"roc_auc"``
        (with more than two classes, the mean of one class against the rest), ``"log_loss"``, or a
        callable ``f(y_true, y_pred)``, which may take `sample_weight`.
    average : {None, "macro", "micro", "worst", "pooled"}, default=None
        None returns every task's score. ``"macro"`` is their plain mean, ``"micro"`` their mean
        weighted by the tasks' labels (or sample weights), ``"worst"`` the worst of them, and
        ``"pooled"`` one score over all labels as if there were one task. For ``"mse"``,
        ``"accuracy"`` and ``"log_loss"`` micro and pooled agree.
    sample_weight : array-like of shape (n,) or (n, n_tasks), or list, default=None
        Non-negative.
    labels : array-like or list of array-like, default=None
        The classes that columns of probabilities stand for, for ``"roc_auc"`` and ``"log_loss"``
        (in the matrix form a list with those of each task); by default those of `y_true`.
    greater_is_better : bool, default=True
        Of a callable metric: which scores are worst.

    Returns
    -------
    scores : ndarray of shape (n_tasks,) or float
        In the order of sorted labels, columns or list positions. NaN for a task that has no score:
        one class (``"roc_auc"``), constant targets (``"r2"``, ``"explained_variance"``), or no
        label.

    Raises
    ------
    ValueError
        If an argument has the wrong shape, or names no metric or average.

    Warns
    -----
    UndefinedMetricWarning
        If averages leave out tasks without a score. All undefined gives NaN.

    Examples
    --------
    >>> from fastmtl import task_scores
    >>> y, predicted = [0, 1, 5, 9], [1, 1, 5, 7]
    >>> task_scores(y, predicted, tasks=["a", "a", "b", "b"], metric="mse")
    array([0.5, 2. ])
    >>> task_scores(y, predicted, tasks=["a", "a", "b", "b"], metric="mse", average="worst")
    2.0
    """
    metric = resolve_metric(metric, greater_is_better)
    check_average(average)
    _, parts = by_task(y_true, y_pred, tasks, sample_weight, metric, labels)
    return averaged(metric, parts, average)


def check_average(average):
    if average is not None and not (isinstance(average, str) and average in AVERAGES):
        raise ValueError(
            f"average is {average!r}; pass one of {', '.join(map(repr, AVERAGES))} or None"
        )


def averaged(metric, parts, average):
    """The scores of tasks' parts, or their average."""
    if average == "pooled":
        return float(score_part(metric, joined(parts))[0])
    scores = np.array([score_part(metric, part)[0] for part in parts])
    if average is None:
        return scores
    weight = np.array([part.weight.sum() for part in parts])
    undefined = np.isnan(scores)
    if undefined.any():
        some = np.flatnonzero(undefined)
        warnings.warn(
            f"{metric.name} is undefined for {len(some)} of {len(scores)} tasks (positions "
            f"{some[:5].tolist()}{' …' if len(some) > 5 else ''}: one class, constant targets or "
            "no labels); the average leaves them out",
            UndefinedMetricWarning,
            stacklevel=3,
        )
    return average_of(metric, scores, weight, average)


def average_of(metric, scores, weight, average):
    """The macro, micro or worst average of scores (T,), leaving out NaN."""
    defined = ~np.isnan(scores)
    scores, weight = scores[defined], weight[defined]
    if not len(scores):
        return float("nan")
    if average == "macro":
        return float(scores.mean())
    if average == "micro":
        return float(np.average(scores, weights=weight))
    return float(scores.min() if metric.greater_is_better else scores.max())


def score_part(metric, part, weight=None):
    """One task's score under each row of `weight` (B, n); by default under its own weight."""
    weight = part.weight[None] if weight is None else weight
    if not (part.weight > 0).any():
        return _none(weight)
    return np.asarray(metric.function(part.truth, part.predicted, weight), dtype=np.float64)


def joined(parts):
    return TaskPart(*(np.concatenate(column) for column in zip(*parts)))


def by_task(y_true, y_pred, tasks, sample_weight, metric, labels=None):
    """Bring targets and predictions of any form together: (labels of tasks, list of TaskPart)."""
    if _is_list(y_true):
        return _list_parts(y_true, y_pred, tasks, sample_weight, metric, labels)
    truth = y_true.to_numpy() if hasattr(y_true, "to_numpy") else np.asarray(y_true)
    if truth.ndim == 2 and tasks is None:
        return _matrix_parts(y_true, truth, y_pred, sample_weight, metric, labels)
    if truth.ndim == 2 and truth.shape[1] == 1:
        truth = truth.ravel()
    if truth.ndim != 1:
        raise ValueError(
            f"y_true has shape {truth.shape} and tasks is {'' if tasks is None else 'not '}None; "
            "pass (n,) with tasks, or (n, n_tasks) without"
        )
    predicted = np.asarray(y_pred)
    if len(predicted) != len(truth):
        raise ValueError(f"y_pred has {len(predicted)} rows for {len(truth)} of y_true")
    names, code = (np.arange(1), np.zeros(len(truth), dtype=np.int32))
    if tasks is not None:
        names, code = task_codes(tasks, len(truth))
    weight = _weights(sample_weight, truth.shape)
    truth, predicted = prepared(truth, predicted, metric, labels)
    order = np.argsort(code, kind="stable")
    cuts = np.cumsum(np.bincount(code, minlength=len(names)))[:-1]
    rows = np.split(order, cuts)
    return names, [TaskPart(truth[own], predicted[own], weight[own], own) for own in rows]


def _is_list(y):
    return isinstance(y, list | tuple) and len(y) > 0 and all(np.ndim(part) == 1 for part in y)


def _list_parts(y_true, y_pred, tasks, sample_weight, metric, labels):
    if tasks is not None:
        raise ValueError("y_true is a list with one array per task; tasks cannot be given as well")
    sizes = [len(part) for part in y_true]
    if (
        not isinstance(y_pred, list | tuple)
        or [np.size(part, 0) if np.ndim(part) else -1 for part in y_pred] != sizes
    ):
        raise ValueError("y_pred must be a list with one array per task, sized like y_true")
    if sample_weight is not None:
        if [len(part) for part in sample_weight] != sizes:
            raise ValueError("sample_weight must be a list with one array per task, like y_true")
        sample_weight = np.concatenate([np.asarray(part) for part in sample_weight])
    code = np.repeat(np.arange(len(sizes)), sizes)
    truth, predicted = np.concatenate(y_true), np.concatenate(y_pred)
    names, parts = by_task(truth, predicted, code, sample_weight, metric, labels)
    present = dict(zip(names.tolist(), parts))
    nothing = TaskPart(*(column[:0] for column in parts[0]))
    return np.arange(len(sizes)), [present.get(t, nothing) for t in range(len(sizes))]


def _matrix_parts(given, truth, y_pred, sample_weight, metric, labels):
    n, n_tasks = truth.shape
    is_list = isinstance(y_pred, list | tuple) and all(np.ndim(part) >= 1 for part in y_pred)
    columns = list(y_pred) if is_list and len(y_pred) == n_tasks and n != n_tasks else None
    if columns is None and is_list and all(np.ndim(part) == 2 for part in y_pred):
        columns = list(y_pred)
    if columns is None:
        columns = list(np.asarray(y_pred).T)
    if len(columns) != n_tasks or any(len(column) != n for column in columns):
        raise ValueError(
            f"y_pred has {len(columns)} columns of {[len(c) for c in columns[:3]]} rows for y_true "
            f"of shape {truth.shape}"
        )
    names = np.asarray(given.columns) if hasattr(given, "columns") else np.arange(n_tasks)
    if sample_weight is not None and np.ndim(sample_weight) == 1:
        sample_weight = np.repeat(np.asarray(sample_weight)[:, None], n_tasks, axis=1)
    weight = _weights(sample_weight, truth.shape)
    if labels is None or np.ndim(labels[0]) == 0:
        labels = [labels] * n_tasks
    parts = []
    for t in range(n_tasks):
        row = np.flatnonzero(present_labels(truth[:, t]))
        own = truth[row, t]
        if own.dtype.kind == "O" and len(own):
            own = np.array(own.tolist())
        own, predicted = prepared(own, np.asarray(columns[t])[row], metric, labels[t])
        parts.append(TaskPart(own, predicted, weight[row, t], row))
    return names, parts


def present_labels(column):
    """Where an array of targets has a label: not NaN, not None."""
    if column.dtype.kind == "O":
        flat = [value is not None and value == value for value in column.ravel()]
        return np.array(flat, dtype=bool).reshape(column.shape)
    return ~np.isnan(column) if column.dtype.kind == "f" else np.ones(column.shape, dtype=bool)


def prepared(truth, predicted, metric, labels):
    """Targets as the metric wants them: numbers, labels, or positions among the classes."""
    if metric.response == "predict":
        if metric.name in METRICS and metric.name != "accuracy":
            truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
            if predicted.ndim != 1:
                raise ValueError(f"y_pred has shape {predicted.shape}; {metric.name} needs (n,)")
        elif truth.dtype.kind in "fiub" and predicted.dtype.kind in "fiub":
            predicted = predicted.astype(np.result_type(truth, predicted))
        return truth, predicted
    classes = np.unique(truth) if labels is None else np.asarray(labels)
    position = np.searchsorted(np.sort(classes), truth)
    position = np.minimum(position, max(len(classes) - 1, 0))
    if len(truth) and not (np.sort(classes)[position] == truth).all():
        raise ValueError(f"y_true has classes that are not among labels {classes.tolist()!r}")
    position = np.argsort(classes, kind="stable")[position]
    predicted = predicted.astype(np.float64)
    if predicted.ndim == 1 and len(classes) == 1 and len(truth):
        # of one class it is unknown whether it is the last, unless it is plainly 1 or True
        position = position + int(classes[0] in (1, True))
    if predicted.ndim == 1 and len(classes) > 2:
        raise ValueError(
            f"y_pred has shape {predicted.shape} for {len(classes)} classes; {metric.name} needs "
            "(n, n_classes)"
        )
    if predicted.ndim == 2 and predicted.shape[1] < len(classes):
        raise ValueError(
            f"y_pred has {predicted.shape[1]} columns for {len(classes)} classes in y_true"
        )
    if predicted.ndim == 2 and labels is None and predicted.shape[1] > len(classes):
        raise ValueError(
            f"y_pred has {predicted.shape[1]} columns but y_true has {len(classes)} classes; pass "
            "labels, the classes of the columns"
        )
    if predicted.ndim == 1 and metric.response == "proba":
        predicted = np.column_stack([1 - predicted, predicted])
    return position, predicted


def _weights(sample_weight, shape):
    if sample_weight is None:
        return np.ones(shape)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != shape:
        raise ValueError(f"sample_weight has shape {weight.shape}; pass shape {shape}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("sample_weight must be finite and non-negative")
    return weight


def respond(estimator, X, metric, tasks=None):
    """What `metric` scores of a fitted model: (prediction, labels of its columns or None)."""
    extra = {} if tasks is None else {"tasks": tasks}
    if metric.response == "predict":
        return estimator.predict(X, **extra), None
    labels = estimator.classes_
    if metric.response == "score" and hasattr(estimator, "decision_function"):
        scores = estimator.decision_function(X, **extra)
        sample = scores[0] if isinstance(scores, list) else scores
        matrix = estimator_is_matrix(labels) and not isinstance(scores, list)
        if np.ndim(sample) == 1 or matrix:
            return scores, labels
    return estimator.predict_proba(X, **extra), labels


def estimator_is_matrix(classes):
    """Whether ``classes_`` is a list with those of each task."""
    return isinstance(classes, list)


class TaskScorer(BaseEstimator):
    """What `make_task_scorer` returns: call it with (estimator, X, y)."""

    def __init__(self, metric="r2", average="macro", task_column=None, greater_is_better=True):
        self.metric = metric
        self.average = average
        self.task_column = task_column
        self.greater_is_better = greater_is_better

    def __call__(self, estimator, X, y, *, tasks=None, sample_weight=None):
        metric = resolve_metric(self.metric, self.greater_is_better)
        extra = tasks
        if tasks is None and not is_list_form(X):
            column = self._column(estimator)
            if column is not None:
                tasks = split_task_column(X, column)[1]
        predicted, labels = respond(estimator, X, metric, extra)
        _, parts = by_task(y, predicted, tasks, sample_weight, metric, labels)
        sign = 1.0 if metric.greater_is_better else -1.0
        return sign * averaged(metric, parts, self.average)

    def score(self, X, y, *, tasks=None, sample_weight=None):
        """Only names the metadata that `set_score_request` can route; call the scorer instead."""
        raise TypeError("a scorer is called with (estimator, X, y)")

    def _column(self, estimator):
        if self.task_column is not None:
            return self.task_column
        if not hasattr(estimator, "steps"):
            return getattr(estimator, "task_column", None)
        if getattr(estimator.steps[-1][1], "task_column", None) is not None:
            raise ValueError(
                "task_column is None, and the pipeline's own counts columns after its "
                "transformers; pass make_task_scorer the column of the X that comes in"
            )
        return None


def make_task_scorer(metric="r2", average="macro", *, task_column=None, greater_is_better=True):
    """Make a scorer of tasks for `GridSearchCV`, `cross_val_score` and the like.

    Parameters
    ----------
    metric : str or callable, default="r2"
        See :func:`task_scores`. ``"roc_auc"`` reads the model's `decision_function` or, failing
        that, `predict_proba`; ``"log_loss"`` reads `predict_proba`.
    average : {"macro", "micro", "worst", "pooled"}, default="macro"
    task_column : int or str, default=None
        The column of X with the task labels; by default that of the estimator. With a pipeline
        name it here. Then no metadata need be routed.
    greater_is_better : bool, default=True
        Of a callable metric.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, tasks=None, sample_weight=None)``; losses come with a negative
        sign, so that greater is better. With metadata routing switched on, ask for the tasks by
        ``make_task_scorer(…).set_score_request(tasks=True)``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import cross_val_score
    >>> from fastmtl import MultiTaskSGDRegressor, TaskStratifiedKFold, datasets, make_task_scorer
    >>> X, y, tasks = datasets.make_multitask_regression(n_tasks=5, random_state=0)
    >>> model = MultiTaskSGDRegressor(alpha=0.01, task_column=0)
    >>> X = np.column_stack([tasks, X])
    >>> scorer = make_task_scorer("r2", average="worst")
    >>> cv = TaskStratifiedKFold(5, task_column=0)
    >>> cross_val_score(model, X, y, scoring=scorer, cv=cv).shape
    (5,)
    """
    resolve_metric(metric)
    check_average(average)
    if average is None:
        raise ValueError("average is None; a scorer returns one number, so pass an average")
    return TaskScorer(metric, average, task_column, greater_is_better)
