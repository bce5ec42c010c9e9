"""How alike tasks are: by their parameters, their predictions, their functions, or their data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from fastmtl.kernels import kernel_scale, rbf_kernel, sigmoid_kernel
from fastmtl.observations import is_list_form, task_codes

__all__ = ["TaskSimilarity", "task_similarity"]

METHODS = ("parameters", "predictions", "functions", "data")
BLOCK = 4_000_000  # entries of a kernel matrix held at a time


@dataclass
class TaskSimilarity:
    """Similarities of tasks with their labels.

    Attributes
    ----------
    matrix : ndarray of shape (n_tasks, n_tasks)
        Symmetric; 1 on the diagonal, at most 1 elsewhere.
    labels : ndarray of shape (n_tasks,)
    method : str
    """

    matrix: np.ndarray
    labels: np.ndarray
    method: str

    def to_frame(self):
        """The matrix as a DataFrame with the labels on both axes (extra ``pandas``)."""
        try:
            import pandas as pd
        except ImportError:
            raise ImportError(
                "to_frame needs pandas; install it with: pip install 'fastmtl[pandas]'"
            ) from None
        return pd.DataFrame(self.matrix, index=self.labels, columns=self.labels)


def task_similarity(
    source, y=None, tasks=None, *, method=None, X=None, kernel="rbf", gamma="scale", c=0.0
):
    """Measure how alike tasks are.

    Parameters
    ----------
    source : fitted model, or array-like of shape (n, d), or list of them
        A model for the methods that compare what it learned, or the rows X for ``"data"``.
    y : array-like of shape (n,), or list, default=None
        With ``"data"``, numeric targets (classes as numbers) that take part in the comparison, as
        one more standardised feature. Without it the tasks' inputs alone are compared.
    tasks : array-like of shape (n,), default=None
        The task of each row of `source`; not with a list.
    method : {"parameters", "predictions", "functions", "data"}, default=None
        * ``"parameters"``: the cosine of coefficient vectors;
        * ``"predictions"``: the correlation of the tasks' predictions (scores, for a classifier)
          on the common rows `X`;
        * ``"functions"``: the cosine of the tasks' functions as weighted basis functions, with the
          inner product ``Σ_ij β_si β_tj k(x_i, x_j)`` of a kernel machine; for a linear model,
          ``w_s · M w_t`` with M the second moments of `X`;
        * ``"data"``: the cosine of kernel mean embeddings [1]_, ``mean k(x, x')`` over rows x of
          one task and x' of the other.

        None takes ``"parameters"`` for a model that has them, else ``"functions"``, and ``"data"``
        for data.
    X : array-like of shape (m, d), default=None
        Common rows, for ``"predictions"``, and for ``"functions"`` of a linear model.
    kernel : {"rbf", "sigmoid"}, default="rbf"
        Of ``"data"``; ``"sigmoid"`` is the logistic ``1 / (1 + exp(-gamma (x·x' + c)))``.
    gamma : "scale" or float, default="scale"
        The kernel's scale; ``"scale"`` is that of the kernel machines.
    c : float, default=0.0
        See `kernel`.

    Returns
    -------
    similarity : TaskSimilarity

    Raises
    ------
    ValueError
        If what the method needs is missing; the message names it.

    References
    ----------
    .. [1] A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf and A. Smola, "A kernel two-sample
       test", JMLR 13, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSGDRegressor, task_similarity
    >>> rng = np.random.default_rng(0)
    >>> X, task = rng.normal(size=(300, 2)), np.repeat(["a", "b", "c"], 100)
    >>> y = X[:, 0] * np.repeat([1.0, 1.0, -1.0], 100)
    >>> model = MultiTaskSGDRegressor(coupling="independent").fit(X, y, tasks=task)
    >>> task_similarity(model).matrix.round(2)
    array([[ 1.,  1., -1.],
           [ 1.,  1., -1.],
           [-1., -1.,  1.]])
    """
    is_model = hasattr(source, "fit")
    if method is None:
        method = "data"
        if is_model:
            method = "parameters" if hasattr(source, "coef_") else "functions"
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method is {method!r}; pass one of {', '.join(map(repr, METHODS))}")
    if is_model == (method == "data"):
        wanted = "rows X with tasks=" if method == "data" else "a fitted model"
        raise ValueError(f"method={method!r} compares {wanted}, but source is {type(source)}")
    if not is_model:
        return _of_data(source, y, tasks, kernel, gamma, c)
    check_is_fitted(source, "tasks_")
    inner = {"parameters": _parameters, "predictions": _predictions, "functions": _functions}
    return TaskSimilarity(_cosines(inner[method](source, X)), source.tasks_.copy(), method)


def _cosines(inner):
    """Inner products to cosines; a task whose vector is 0, but for rounding, is like no other."""
    length = np.sqrt(np.maximum(np.diag(inner), 0.0))
    some = length > 1e-12 * length.max()
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=some)
    matrix = np.clip(inner * scale[:, None] * scale, -1.0, 1.0)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1.0)
    return matrix


def _coefficients(model):
    coef = getattr(model, "coef_", None)
    if not isinstance(coef, np.ndarray) or coef.ndim != 2 or len(coef) != model.n_tasks_:
        raise ValueError(
            f"{type(model).__name__} has no coefficient vector for each task; "
            "use method='predictions'"
        )
    return np.asarray(coef, dtype=np.float64)


def _parameters(model, X):
    coef = _coefficients(model)
    return coef @ coef.T


def _common_rows(X, method):
    if X is None:
        raise ValueError(f"X is missing; method={method!r} compares the tasks on common rows")
    return check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32], input_name="X")


def _predictions(model, X):
    X = _common_rows(X, "predictions")
    answer = getattr(model, "decision_function", model.predict)
    columns = []
    for label in model.tasks_:
        if getattr(model, "input_form_", "long") == "single":
            scores = answer(X)
        elif model.input_form_ == "matrix":
            scores = np.asarray(answer(X))
            columns = list(scores.T)
            break
        else:
            labels = np.empty(X.shape[0], dtype=object)
            labels[:] = [label] * len(labels)
            scores = answer(X, tasks=labels)
        columns.append(scores)
    scores = np.asarray(columns, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError("method='predictions' needs one score per task, but the model has more")
    scores -= scores.mean(axis=1, keepdims=True)
    return scores @ scores.T


def _functions(model, X):
    if not hasattr(model, "dual_coef_"):
        coef = _coefficients(model)
        X = _common_rows(X, "functions")
        return coef @ (X.T @ (X @ coef.T)) / X.shape[0]
    if len(model._outputs) > 1 or model._kernel_function is None:
        raise ValueError(
            "method='functions' needs one output and a kernel function; use 'predictions'"
        )
    weights = np.column_stack([model._weights(t)[:, 0] for t in range(model.n_tasks_)])
    rows = model._support_rows
    inner = np.zeros((model.n_tasks_, model.n_tasks_))
    block = max(1, BLOCK // max(1, rows.shape[0]))
    for begin in range(0, rows.shape[0], block):
        part = slice(begin, begin + block)
        inner += weights[part].T @ (model._query_gram(rows[part]) @ weights)
    return inner


def _of_data(X, y, tasks, kernel, gamma, c):
    if is_list_form(X):
        if tasks is not None:
            raise ValueError("X is a list with one matrix per task; tasks cannot be given as well")
        sizes = [part.shape[0] if hasattr(part, "shape") else len(part) for part in X]
        tasks = np.repeat(np.arange(len(X)), sizes)
        X = sp.vstack(X) if any(map(sp.issparse, X)) else np.concatenate(list(map(np.asarray, X)))
        y = None if y is None else np.concatenate(list(map(np.asarray, y)))
    if tasks is None:
        raise ValueError("tasks is missing; method='data' needs the task of each row")
    X = check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32], input_name="X")
    labels, code = task_codes(tasks, X.shape[0])
    if y is not None:
        y = check_array(y, ensure_2d=False, dtype=X.dtype, input_name="y").ravel()
        if len(y) != X.shape[0]:
            raise ValueError(f"y has {len(y)} entries for {X.shape[0]} rows of X")
        column = ((y - y.mean()) / (y.std() or 1.0))[:, None]
        stack = sp.hstack if sp.issparse(X) else np.hstack
        X = stack([X, column])
        X = sp.csr_matrix(X) if sp.issparse(X) else X
    if kernel not in ("rbf", "sigmoid"):
        raise ValueError(f"kernel is {kernel!r}; pass 'rbf' or 'sigmoid'")
    name = "gamma" if kernel == "rbf" else "sigma"
    scale = kernel_scale(X, gamma, name, None) if isinstance(gamma, str) else gamma
    order = np.argsort(code, kind="stable")
    X, code = X[order], code[order]
    starts = np.searchsorted(code, np.arange(len(labels)))
    sizes = np.bincount(code)
    means = np.zeros((len(labels), len(labels)))
    block = max(1, BLOCK // len(code))
    for begin in range(0, len(code), block):
        part = slice(begin, begin + block)
        if kernel == "rbf":
            gram = rbf_kernel(X[part], X, gamma=scale)
        else:
            gram = sigmoid_kernel(X[part], X, sigma=scale, c=c)
        sums = np.add.reduceat(gram, starts, axis=1, dtype=np.float64)
        np.add.at(means, code[part], sums)
    return TaskSimilarity(_cosines(means / sizes[:, None] / sizes), labels, "data")
