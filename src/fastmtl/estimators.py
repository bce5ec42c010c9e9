"""What estimators have in common: settings checked, task weights, answers in the form asked.

Nothing here knows of a model; a model passes itself for its parameters' names and values.
"""

from __future__ import annotations

import numbers
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp
from sklearn.utils.validation import check_is_fitted

from fastmtl.row_blocks import in_blocks


@contextmanager
def unchanged_on_error(model):
    """Take back every attribute that the block set, if it raises."""
    before = dict(vars(model))
    try:
        yield
    except BaseException:
        vars(model).clear()
        vars(model).update(before)
        raise


class OnnxMixin:
    def to_onnx(self):
        """Build the equivalent ONNX model (extra ``onnx``).

        Returns
        -------
        model : onnx.ModelProto
            In float32. Its inputs are ``X`` (``X_0``, ``X_1``, … where there are several) without
            a task column, and ``lengths`` (int32) where the fit had them. A regressor's output is
            ``predictions`` (n, n_tasks). A classifier's are ``scores`` (n, n_outputs) and, with log
            loss, ``probabilities`` (n, n_tasks, 2) where each task has two classes and one score,
            else ``probabilities_<k>`` (n, n_classes) for the k-th of ``tasks_``. Where kinds are
            mixed, regression tasks have ``predictions_<k>`` (n, 1) instead. The task labels are in
            the model's metadata, ``tasks``, as JSON.

        Raises
        ------
        ImportError
            If onnx is not installed.

        Examples
        --------
        Save it with ``onnx.save(model.to_onnx(), "model.onnx")`` and run it anywhere, for example
        by ``onnxruntime.InferenceSession("model.onnx").run(None, {"X": X})``.
        """
        check_is_fitted(self, "tasks_")
        from fastmtl.onnx_export import export

        return export(self)


def check_word(model, name, words):
    value = getattr(model, name)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} is {value!r}; pass one of {', '.join(map(repr, words))}")


def check_number(
    model, name, *, low=-np.inf, high=np.inf, open_low=False, none=False, integer=False
):
    value = getattr(model, name)
    if value is None and none:
        return
    kind = numbers.Integral if integer else numbers.Real
    if (
        isinstance(value, kind)
        and not isinstance(value, bool | np.bool_)
        and (low < value if open_low else low <= value)
        and (value < high if open_low and np.isfinite(high) else value <= high)
        and np.isfinite(value)
    ):
        return
    wanted = "an integer" if integer else "a finite number"
    if np.isfinite(low):
        wanted += f" {'>' if open_low else '>='} {low:g}"
    if np.isfinite(high):
        wanted += f" and < {high:g}"
    raise ValueError(f"{name} is {value!r}; pass {wanted}{' or None' if none else ''}")


def task_weights(model, observations):
    given, labels = model.task_weight, observations.tasks
    sizes = np.bincount(observations.task, observations.weight, minlength=observations.n_tasks)
    if given is None:
        return np.ones(len(labels))
    if isinstance(given, str):
        if given != "balanced":
            raise ValueError(f"task_weight is {given!r}; pass 'balanced', a dict, an array or None")
        return sizes.sum() / (len(labels) * np.maximum(sizes, 1e-300))
    if isinstance(given, dict):
        unknown = set(given) - set(labels.tolist())
        if unknown:
            raise ValueError(f"task_weight names {unknown!r}, which are not tasks of the data")
        weights = np.array([given.get(label, 1.0) for label in labels.tolist()], dtype=np.float64)
    else:
        weights = np.asarray(given, dtype=np.float64)
        if weights.shape != (len(labels),):
            raise ValueError(
                f"task_weight has shape {weights.shape} for {len(labels)} tasks; pass one each"
            )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("task_weight must be finite and non-negative")
    return weights


def class_weights(model, observations, classes):
    if model.class_weight is None:
        return np.ones(len(classes.code))
    own_position = ((classes.code + 1) / 2 if classes.binary else classes.code).astype(int)
    start = observations.task_start
    weights = np.ones(len(own_position))
    if isinstance(model.class_weight, dict):
        unknown = set(model.class_weight) - set(classes.classes.tolist())
        if unknown:
            raise ValueError(f"class_weight names {unknown!r}, which are not classes of y")
        by_class = np.array([model.class_weight.get(c, 1.0) for c in classes.classes.tolist()])
        if not (np.isfinite(by_class).all() and (by_class >= 0).all()):
            raise ValueError("class_weight must be finite and non-negative")
    elif model.class_weight != "balanced":
        raise ValueError(f"class_weight is {model.class_weight!r}; pass None, 'balanced' or a dict")
    for t, own in enumerate(classes.task_classes):
        part = slice(start[t], start[t + 1])
        if isinstance(model.class_weight, dict):
            weights[part] = by_class[own][own_position[part]]
        else:
            count = np.bincount(own_position[part], observations.weight[part], minlength=len(own))
            scale = count.sum() / (np.count_nonzero(count) * np.maximum(count, 1e-300))
            weights[part] = scale[own_position[part]]
    return weights


def label_weights(model, observations, classes):
    """sample_weight · task_weight · class_weight of each label."""
    weight = observations.weight
    if model.task_weight is not None:
        weight = weight * task_weights(model, observations)[observations.task]
    if model._classification:
        weight = weight * class_weights(model, observations, classes)
    if not (weight > 0).any():
        raise ValueError(
            "the product of sample_weight, task_weight and class_weight is zero everywhere"
        )
    return weight


def rowwise_scores(X, weights, task):
    """x_i · w of the row's task, plus its intercept; code -1 takes the last row of weights."""
    if sp.issparse(X):
        scores = np.empty(X.shape[0], dtype=weights.dtype)
        order = np.argsort(task, kind="stable")
        cuts = np.flatnonzero(np.diff(task[order])) + 1
        for rows in np.split(order, cuts):
            if len(rows):
                own = weights[task[rows[0]]]
                scores[rows] = X[rows] @ own[:-1] + own[-1]
        return scores
    scores = weights[task, -1].copy()
    for rows, block in in_blocks(X):
        scores[rows] += np.einsum("ij,ij->i", block, weights[task[rows], :-1])
    return scores


def in_form(values, queries):
    return np.split(values, queries.splits) if queries.splits is not None else values


def score_in_form(metric, y, predicted, sample_weight):
    def plain(labels):
        """Objects as what they are: scikit-learn's metrics know no truth values among them."""
        labels = np.asarray(labels)
        return np.array(labels.tolist()) if labels.dtype == object else labels

    if isinstance(predicted, list):
        truth, answer = np.concatenate(y), np.concatenate(predicted)
        return metric(plain(truth), plain(answer), sample_weight=sample_weight)
    y = np.asarray(y)
    if predicted.ndim == 1:
        truth = y.ravel() if y.shape == (len(y), 1) else y
        return metric(plain(truth), plain(predicted), sample_weight=sample_weight)
    if y.shape != predicted.shape:
        raise ValueError(f"y has shape {y.shape}; the model predicts {predicted.shape}")
    scores = []
    for t in range(y.shape[1]):
        has = np.array([v is not None and v == v for v in y[:, t]])
        weight = None if sample_weight is None else np.asarray(sample_weight)[has]
        if has.any():
            truth = y[has, t].astype(predicted.dtype)
            answer = plain(predicted[has, t])
            scores.append(metric(plain(truth), answer, sample_weight=weight))
    return float(np.mean(scores))


def progress(max_iter, unit="epoch"):
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            "verbose needs tqdm; install it with: pip install 'fastmtl[progress]'"
        ) from None
    return tqdm(total=max_iter, unit=unit)
