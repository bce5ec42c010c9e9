"""Linear models that select features: jointly for all tasks, and for single tasks beside.

`MultiTaskSparseRegressor` and `MultiTaskSparseClassifier` set up weighted least-squares problems
(the loss itself, or its second-order model in each round) for block coordinate descent; the
numeric loops are in ``_core.group_cd``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from fastmtl._core import group_cd, linear_sgd
from fastmtl.config import resolve_threads
from fastmtl.coupling import Factors
from fastmtl.estimators import check_number, check_word, label_weights, progress
from fastmtl.linear import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.linear_problem import LOSSES
from fastmtl.linear_relations import LinearRelations
from fastmtl.linear_state import State
from fastmtl.observations import encode_classes, observe

__all__ = ["MultiTaskSparseClassifier", "MultiTaskSparseRegressor"]

FIRST_FEATURES = 64  # that descent starts from, where there are more
FLAT = 1e-6  # what a second derivative counts at least, relative to its bound


@dataclass
class _Problem:
    """Heads (one a task, or one a task and class) over columns of X; an entry per head's label."""

    columns: tuple  # X, indices, indptr, row, head_start of the core's functions
    n_features: int
    head: np.ndarray
    target: np.ndarray
    weight: np.ndarray  # of each entry, summing to one over labels
    loss: tuple  # code, parameter, bound on the second derivative
    dtype: np.dtype

    @property
    def common_rows(self):
        """Whether most heads have a label at most rows, so that one matrix product serves all."""
        X, _, indptr, row, start = self.columns
        n_heads = len(start) - 1
        full = n_heads * (len(X) // max(self.n_features, 1))
        return indptr is None and n_heads > 1 and len(row) > 0.3 * full

    def gradient(self, moved, out, n_threads):
        """−Σ x (w r) of each feature and head, into `out` (d, heads)."""
        if not self.common_rows:
            group_cd.gradients(*self.columns, moved, out, n_threads)
            return
        columns = self.columns[0].reshape(self.n_features, -1)
        spread = np.zeros((columns.shape[1], out.shape[1]), dtype=self.dtype)
        spread[self.columns[3], self.head] = moved
        np.negative(columns @ spread, out=out)

    def scores(self, coef, intercept):
        X, indices, indptr, row, start = self.columns
        used = np.flatnonzero(coef.any(axis=0))
        if indptr is not None:
            feature = np.repeat(np.arange(self.n_features), np.diff(indptr))
            products = X * coef[self.head[indices], feature]
            return intercept[self.head] + np.bincount(indices, products, minlength=len(row))
        columns = X.reshape(self.n_features, -1)[used]
        scores = intercept[self.head]
        if self.common_rows:
            return scores + (coef[:, used] @ columns)[self.head, row]
        for h in range(len(start) - 1):
            part = slice(start[h], start[h + 1])
            scores[part] += coef[h, used] @ columns[:, row[part]]
        return scores

    def derivatives(self, scores):
        """The loss, and its first and second derivative at each entry, weighted."""
        code, parameter, bound = self.loss
        value, first = np.empty_like(scores), np.empty_like(scores)
        linear_sgd.point_losses(code, parameter, self.target, scores, value, first)
        if code == LOSSES["log_loss"][0]:
            second = expit(scores) * expit(-scores)
        elif code == LOSSES["poisson"][0]:
            second = np.exp(scores)
        elif code == LOSSES["huber"][0]:
            second = (np.abs(scores - self.target) <= parameter).astype(float)
        elif code == LOSSES["squared_hinge"][0]:
            second = 2.0 * (self.target * scores < 1)
        else:
            second = np.ones_like(scores)
        second = np.maximum(second, FLAT * (bound or 1.0))
        return float(self.weight @ value), self.weight * first, self.weight * second


class _MultiTaskSparse(BaseEstimator):
    def fit(self, X, y, *, tasks=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
            float32 and float64 are kept as they come; other dtypes become float64. A copy by
            columns is made. Features should be of one scale: all pay the same penalty.
        y : array-like of shape (n,) or (n, n_tasks), or list of arrays
            Targets: one per row with `tasks`; or a column per task, NaN (or None) where a label is
            missing; or a list with an array per task for a list X.
        tasks : array-like of shape (n,), default=None
            The task label of each row, of any hashable kind. Without it, a 1-D `y` is one task.
        sample_weight : array-like of shape (n,) or (n, n_tasks), or list, default=None
            Non-negative. A weight of 2 is the row given twice, a weight of 0 the row left out.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If an argument has the wrong shape, kind or values; the message names it.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` ends the fit before `tol` is reached.
        """
        self._check_settings()
        observations = observe(
            self,
            X,
            y,
            tasks=tasks,
            sample_weight=sample_weight,
            classification=self._classification,
        )
        classes = self._encode(observations)
        weight = label_weights(self, observations, classes)
        per_task = [np.zeros(1, np.int32)] * observations.n_tasks
        if not classes.binary:
            per_task = [own.astype(np.int32) for own in classes.task_classes]
        head_start = np.concatenate([[0], np.cumsum([len(own) for own in per_task])])
        problem = _problem(observations, classes, weight, head_start, self._loss_setting(classes))
        start = getattr(self, "_solution", None) if self.warm_start else None
        solution, history, alpha_max = _minimise(self, problem, len(classes.classes), start)
        self._store(observations, classes, np.concatenate(per_task), head_start, solution)
        self.history_, self.n_iter_, self.alpha_max_ = history, len(history), alpha_max
        return self

    def _check_settings(self):
        check_number(self, "alpha", low=0.0)
        check_number(self, "task_alpha", low=0.0, none=True)
        check_number(self, "tol", low=0.0, open_low=True)
        check_number(self, "max_iter", low=1, integer=True)
        check_word(self, "loss", self._losses)
        check_word(self, "unseen_tasks", ("shared", "error"))
        resolve_threads(self.n_threads)

    def _store(self, observations, classes, head_class, head_start, solution):
        joint, own, intercept = solution
        dtype = observations.X.dtype
        lanes = 64 // dtype.itemsize
        n_heads, d = joint.shape
        specific = np.zeros((n_heads, (d + lanes) // lanes * lanes), dtype=dtype)
        specific[:, :d] = joint + own
        specific[:, -1] = intercept
        n_classes = 1 if classes.binary else len(classes.classes)
        shared = np.zeros((0, n_classes, specific.shape[1]), dtype=dtype)
        self._state = State(
            shared, specific, np.zeros(n_classes), head_start.astype(np.int64), head_class
        )
        self._solution = solution
        self._classes = classes
        self.tasks_ = observations.tasks
        self.n_tasks_ = observations.n_tasks
        self.input_form_ = observations.form
        self.mixing_ = np.zeros((observations.n_tasks, 0))
        self._relations = LinearRelations(Factors(self.mixing_, np.zeros(observations.n_tasks)))

    _compact = False
    coef_ = MultiTaskSGDRegressor.coef_
    intercept_ = MultiTaskSGDRegressor.intercept_
    _by_task = MultiTaskSGDRegressor._by_task
    _one_output = MultiTaskSGDRegressor._one_output
    _scores = MultiTaskSGDRegressor._scores
    _unpad = MultiTaskSGDRegressor._unpad
    _weights = MultiTaskSGDRegressor._weights

    def _shared_weights(self):
        heads, state = self._weights(), self._state
        weights = np.zeros((len(state.intercept), heads.shape[1]), dtype=heads.dtype)
        np.add.at(weights, state.head_class, heads)
        counts = np.bincount(state.head_class, minlength=len(weights))
        return weights / np.maximum(counts, 1)[:, None].astype(heads.dtype)

    @property
    def sparse_coef_(self):
        """`coef_` as a CSR matrix (T, d), or with more than two classes a list of them."""
        coef = self.coef_
        return [sp.csr_matrix(c) for c in coef] if isinstance(coef, list) else sp.csr_matrix(coef)

    @property
    def joint_coef_(self):
        """The row-sparse part of `coef_`, whose features serve all tasks."""
        check_is_fitted(self, "tasks_")
        return self._by_task(self._solution[0].astype(self._state.specific.dtype))

    @property
    def task_coef_(self):
        """The part of `coef_` that is sparse entry by entry (zero without `task_alpha`)."""
        check_is_fitted(self, "tasks_")
        return self._by_task(self._solution[1].astype(self._state.specific.dtype))

    @property
    def joint_features_(self):
        """Positions of the features that all tasks share, ascending."""
        check_is_fitted(self, "tasks_")
        return np.flatnonzero(self._solution[0].any(axis=0))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


class MultiTaskSparseRegressor(RegressorMixin, _MultiTaskSparse):
    """Linear regression that selects the same features for all tasks, and a few for single ones.

    Task t predicts ``x · w_t + b_t`` with ``w_t = p_t + q_t``. The fit minimises

        ``(1/n) Σ_t task_weight_t Σ_i weight_i loss(y_i, x_i·w_t + b_t)
        + alpha Σ_j ‖(p_1j, …, p_Tj)‖ + task_alpha Σ_tj |q_tj|``

    where n is the number of labels (each counted by its sample weight). The norm over tasks of a
    feature's coefficients, L21, makes whole features drop out [1]_; with `task_alpha`, the dirty
    model [2]_, a feature can also serve single tasks. Intercepts are free.

    Parameters
    ----------
    loss : {"squared_error", "huber", "poisson"}, default="squared_error"
        ``"squared_error"`` is ½(y−p)²; ``"poisson"`` has a log link, and `predict` returns rates.
    alpha : float, default=0.01
        Strength of the penalty on features that tasks share, non-negative. From `alpha_max_` on,
        none is selected. For one X (n, d) with Y (n, n_tasks) and no missing label,
        ``sklearn.linear_model.MultiTaskLasso`` has the same solution at ``alpha * n_tasks``.
    task_alpha : float, default=None
        Strength of the penalty on coefficients of single tasks, non-negative; None: there are none.
        It matters between ``alpha / sqrt(n_tasks)``, below which nothing is shared, and ``alpha``,
        above which nothing is a task's own.
    epsilon : float, default=1.35
        Where ``"huber"`` turns linear, in units of y, positive.
    fit_intercept : bool, default=True
        Whether each task has an intercept, which is not penalised.
    task_weight : None, "balanced", dict or array-like of shape (n_tasks,), default=None
        The weight of each task's loss, a *sum* over its samples. ``"balanced"`` gives
        ``n / (n_tasks * n_t)``: all tasks' mean losses count alike.
    tol : float, default=1e-5
        Stop when the optimality conditions are violated by at most `tol` times `alpha_max_`.
    max_iter : int, default=100
        Most rounds: each looks at all features, then descends over those that matter.
    warm_start : bool, default=False
        Whether to start from the earlier fit, as along a path of `alpha`.
    task_column : int or str, default=None
        Column of X with the task labels, instead of ``fit(..., tasks=)``.
    unseen_tasks : {"error", "shared"}, default="error"
        Whether `predict` refuses tasks that were not in training, or takes the mean of all tasks.
    n_threads : int, default=None
        For the passes over all features; None means 1 or ``FASTMTL_NUM_THREADS``.
    verbose : bool, default=False
        Whether to show progress (needs ``fastmtl[progress]``).

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, d)
        p_t + q_t, with exact zeros; `sparse_coef_` has it as a CSR matrix.
    joint_coef_, task_coef_ : ndarray of shape (n_tasks, d)
        The parts p_t and q_t.
    joint_features_ : ndarray of int
        The features that all tasks share.
    intercept_ : ndarray of shape (n_tasks,)
    alpha_max_ : float
        The least `alpha` at which no feature would be shared, as seen from the fit's start.
    tasks_, n_tasks_, n_features_in_, n_iter_
    history_ : list of dict
        ``round``, ``objective``, ``violation`` and the number of ``features`` in play.

    See Also
    --------
    MultiTaskSparseClassifier : the same for classes.
    MultiTaskSGDRegressor : when tasks share directions rather than features.

    References
    ----------
    .. [1] A. Argyriou, T. Evgeniou and M. Pontil, "Multi-task feature learning", NIPS 2006;
       G. Obozinski, B. Taskar and M. Jordan, "Joint covariate selection and joint subspace
       selection for multiple classification problems", Statistics and Computing 20, 2010.
    .. [2] A. Jalali, P. Ravikumar, S. Sanghavi and C. Ruan, "A dirty model for multi-task
       learning", NIPS 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSparseRegressor
    >>> rng = np.random.default_rng(0)
    >>> X, tasks = rng.normal(size=(200, 30)), np.arange(200) % 4
    >>> y = (1 + tasks) * X[:, 3] - X[:, 7] + 0.1 * rng.normal(size=200)
    >>> model = MultiTaskSparseRegressor(alpha=0.1).fit(X, y, tasks=tasks)
    >>> model.joint_features_
    array([3, 7])
    """

    _classification = False
    _losses = ("squared_error", "huber", "poisson")
    _encode = MultiTaskSGDRegressor._encode
    predict = MultiTaskSGDRegressor.predict
    score = MultiTaskSGDRegressor.score

    def __init__(
        self,
        *,
        loss="squared_error",
        alpha=0.01,
        task_alpha=None,
        epsilon=1.35,
        fit_intercept=True,
        task_weight=None,
        tol=1e-5,
        max_iter=100,
        warm_start=False,
        task_column=None,
        unseen_tasks="error",
        n_threads=None,
        verbose=False,
    ):
        self.loss = loss
        self.alpha = alpha
        self.task_alpha = task_alpha
        self.epsilon = epsilon
        self.fit_intercept = fit_intercept
        self.task_weight = task_weight
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.n_threads = n_threads
        self.verbose = verbose

    def _check_settings(self):
        super()._check_settings()
        check_number(self, "epsilon", low=0.0, open_low=True)

    def _loss_setting(self, classes):
        code, bound = LOSSES[self.loss]
        return code, float(self.epsilon), bound


class MultiTaskSparseClassifier(ClassifierMixin, _MultiTaskSparse):
    """Linear classification that selects features for all tasks, and a few for single ones.

    The penalties are those of :class:`MultiTaskSparseRegressor`. Where each task has two classes
    there is one vector per task; with more, one per class against the rest of its task, all of them
    tied into the features' norms.

    Parameters
    ----------
    loss : {"log_loss", "squared_hinge"}, default="log_loss"
        Only ``"log_loss"`` gives probabilities.
    alpha : float, default=1e-3
        Strength of the penalty on features that tasks share, non-negative.
    task_alpha : float, default=None
        Strength of the penalty on coefficients of single tasks, non-negative; None: there are none.
    class_weight : None, "balanced" or dict, default=None
        ``"balanced"`` weighs classes, within each task, inversely to their frequency.
    fit_intercept, task_weight, tol, max_iter, warm_start, task_column, unseen_tasks, n_threads, \
verbose
        As for :class:`MultiTaskSparseRegressor`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, d), or list of ndarray (n_classes_t, d)
        With exact zeros; `sparse_coef_` has it as CSR.
    joint_coef_, task_coef_
        The two parts of `coef_`, of its shape.
    joint_features_ : ndarray of int
        The features that all tasks share.
    intercept_ : ndarray of shape (n_tasks,), or list
    classes_ : ndarray, or list of ndarray
        The class labels; for Y (n, n_tasks) a list with those of each task.
    task_classes_ : list of ndarray
    alpha_max_, tasks_, n_tasks_, n_features_in_, n_iter_, history_
        As for :class:`MultiTaskSparseRegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSparseClassifier
    >>> rng = np.random.default_rng(0)
    >>> X, tasks = rng.normal(size=(300, 20)), np.arange(300) % 3
    >>> y = (1 + tasks) * X[:, 4] - X[:, 9] > 0
    >>> model = MultiTaskSparseClassifier(alpha=0.03).fit(X, y, tasks=tasks)
    >>> model.joint_features_
    array([4, 9])
    """

    _classification = True
    _losses = ("log_loss", "squared_hinge")
    decision_function = MultiTaskSGDClassifier.decision_function
    predict = MultiTaskSGDClassifier.predict
    score = MultiTaskSGDClassifier.score

    def __init__(
        self,
        *,
        loss="log_loss",
        alpha=1e-3,
        task_alpha=None,
        fit_intercept=True,
        task_weight=None,
        class_weight=None,
        tol=1e-5,
        max_iter=100,
        warm_start=False,
        task_column=None,
        unseen_tasks="error",
        n_threads=None,
        verbose=False,
    ):
        self.loss = loss
        self.alpha = alpha
        self.task_alpha = task_alpha
        self.fit_intercept = fit_intercept
        self.task_weight = task_weight
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.n_threads = n_threads
        self.verbose = verbose

    def _encode(self, observations):
        classes = encode_classes(observations)
        start = observations.task_start
        lonely = [
            t
            for t in range(observations.n_tasks)
            if len(np.unique(classes.code[start[t] : start[t + 1]])) < 2
        ]
        if lonely and self.fit_intercept:
            names = observations.tasks[lonely[:5]].tolist()
            raise ValueError(
                f"y has one class only in {len(lonely)} tasks, for example {names!r}; an "
                "intercept per task needs two: drop them, or set fit_intercept=False"
            )
        return classes

    def _loss_setting(self, classes):
        code, bound = LOSSES[self.loss]
        return code, 1.0, bound

    def predict_proba(self, X, *, tasks=None):
        """Class probabilities; only with ``loss="log_loss"``.

        With more than two classes they are those of each class against the rest, scaled to sum to
        one.

        Parameters
        ----------
        X, tasks
            As in :meth:`predict`.

        Returns
        -------
        proba : ndarray of shape (n, n_classes) or list of ndarray
            Columns in the order of ``classes_``, zero for classes that the row's task does not
            have. In the matrix form a list with (n, n_classes_t) for each task.

        Raises
        ------
        AttributeError
            If the loss is not ``"log_loss"``.
        """
        check_is_fitted(self, "tasks_")
        if self._one_output or self.loss != "log_loss":
            return MultiTaskSGDClassifier.predict_proba(self, X, tasks=tasks)
        scores = self.decision_function(X, tasks=tasks)
        return [_shares(s) for s in scores] if isinstance(scores, list) else _shares(scores)

    def _store(self, observations, classes, *rest):
        super()._store(observations, classes, *rest)
        self.task_classes_ = [classes.classes[own] for own in classes.task_classes]
        self.classes_ = self.task_classes_ if observations.form == "matrix" else classes.classes


def _shares(scores):
    proba = expit(scores)
    return proba / proba.sum(axis=1, keepdims=True)


def _problem(observations, classes, weight, head_start, loss):
    """Entries for each head of a task and each of its labels, in head order."""
    kept = np.flatnonzero(weight > 0)
    task = observations.task[kept]
    counts = np.bincount(task, minlength=observations.n_tasks)
    task_start = np.concatenate([[0], np.cumsum(counts)])
    n_heads = np.diff(head_start)
    head_task = np.repeat(np.arange(observations.n_tasks), n_heads)
    entries = counts[head_task]
    start = np.concatenate([[0], np.cumsum(entries)])
    label = np.arange(start[-1]) - np.repeat(start[:-1] - task_start[head_task], entries)
    head = np.repeat(np.arange(len(head_task)), entries)
    code = classes.code[kept].astype(np.float64)
    target = code[label]
    if not classes.binary:
        target = np.where(target == head - head_start[head_task[head]], 1.0, -1.0)
    X, row = observations.X, observations.row[kept]
    d = X.shape[1]
    if sp.issparse(X):
        columns = X[row[label]].tocsc()
        columns.sort_indices()
        places = (columns.data, columns.indices.astype(np.int32), columns.indptr.astype(np.int64))
        row = np.arange(len(label), dtype=np.int32)
    else:
        if observations.form != "matrix":
            X, row = X[row], np.arange(len(row))
        places = (np.ascontiguousarray(X.T).ravel(), None, None)
        row = row[label].astype(np.int32)
    return _Problem(
        columns=(*places, row, start.astype(np.int64)),
        n_features=d,
        head=head,
        target=target,
        weight=weight[kept][label] / observations.weight.sum(),
        loss=loss,
        dtype=X.dtype,
    )


def _minimise(model, problem, n_classes, start):
    """Rounds of second-order models until the optimality conditions hold."""
    n_heads, d = len(problem.columns[-1]) - 1, problem.n_features
    alpha = float(model.alpha)
    beta = np.inf if model.task_alpha is None else float(model.task_alpha)
    n_threads = resolve_threads(model.n_threads)
    joint, own, intercept = (np.zeros((n_heads, d)), np.zeros((n_heads, d)), np.zeros(n_heads))
    if start is not None:
        if start[0].shape != joint.shape:
            raise ValueError(
                "the earlier fit had other tasks, features or classes; fit anew (warm_start=False)"
            )
        joint, own, intercept = (part.copy() for part in start)
        if not np.isfinite(beta):
            own[:] = 0.0
    scores = problem.scores(joint + own, intercept)
    if model.fit_intercept and start is None:
        scores, intercept = _fit_intercepts(problem, scores, intercept)
    quadratic = problem.loss[0] == LOSSES["squared_error"][0]
    slope, curvature = np.zeros((d, n_heads)), np.zeros((d, n_heads))
    gradient = np.empty((d, n_heads))
    reachable = 200 * np.finfo(problem.dtype).eps
    tol, size, alpha_max, history, known = max(model.tol, reachable), FIRST_FEATURES, None, [], None
    bar = progress(model.max_iter) if model.verbose else None
    try:
        for _ in range(model.max_iter):
            value, first, second = problem.derivatives(scores)
            moved, weight = (-first).astype(problem.dtype), second.astype(problem.dtype)
            problem.gradient(moved, gradient, n_threads)
            lengths = np.linalg.norm(gradient, axis=1)
            objective = value + _penalty(alpha, beta, joint, own)
            if alpha_max is None:
                alpha_max = float(lengths.max(initial=0.0))
            violation = _violation(gradient.T, lengths, alpha, beta, joint, own)
            sums = np.bincount(problem.head, first, minlength=n_heads)
            worst = max(violation.max(initial=0.0), np.abs(sums).max() * model.fit_intercept)
            history.append(
                {
                    "round": len(history) + 1,
                    "objective": objective,
                    "violation": worst,
                    "features": int((joint + own).any(axis=0).sum()),
                }
            )
            if bar is not None:
                bar.set_postfix(objective=f"{objective:.6g}", refresh=False)
                bar.update()
            if worst <= tol * max(alpha_max, alpha):
                return (joint, own, intercept), history, alpha_max

            features = _in_play(violation, joint, own, size)
            size = max(size, 2 * len(features))
            total = np.bincount(problem.head, second, minlength=n_heads) * model.fit_intercept
            missing = features if known is None or not quadratic else np.setdiff1d(features, known)
            known = features if known is None else np.union1d(known, features)
            group_cd.moments(*problem.columns, weight, total, missing, slope, curvature, n_threads)
            offset = np.divide(sums, total, out=np.zeros(n_heads), where=total > 0)
            blocks = tuple(np.ascontiguousarray(part.T) for part in (joint, own))
            group_cd.descend(
                *problem.columns,
                weight,
                total,
                slope,
                curvature,
                alpha,
                beta,
                features,
                1000,
                max(0.1 * tol * max(alpha_max, alpha), 0.01 * worst),
                moved,
                offset,
                *blocks,
            )
            proposed = (blocks[0].T.copy(), blocks[1].T.copy(), intercept - offset)
            reached = problem.scores(proposed[0] + proposed[1], proposed[2])
            if quadratic:
                (joint, own, intercept), scores = proposed, reached
                continue
            step = _line_search(
                problem, scores, reached, first, alpha, beta, (joint, own), proposed, objective
            )
            joint, own, intercept = (
                old + step * (new - old) for old, new in zip((joint, own, intercept), proposed)
            )
            scores = scores + step * (reached - scores)
    finally:
        if bar is not None:
            bar.close()
    warnings.warn(
        f"not converged to tol={model.tol:g} within max_iter={model.max_iter} rounds (the "
        f"violation is {worst:.2g}); raise max_iter or tol, or standardise X",
        ConvergenceWarning,
        stacklevel=3,
    )
    return (joint, own, intercept), history, alpha_max


def _fit_intercepts(problem, scores, intercept):
    """Newton's steps on the intercepts alone."""
    n_heads = len(intercept)
    for _ in range(50):
        _, first, second = problem.derivatives(scores)
        slopes = np.bincount(problem.head, first, minlength=n_heads)
        bends = np.bincount(problem.head, second, minlength=n_heads)
        step = np.divide(-slopes, bends, out=np.zeros(n_heads), where=bends > 0)
        step = np.clip(step, -2.0, 2.0) if problem.loss[0] != 0 else step
        intercept = intercept + step
        scores = scores + step[problem.head]
        if np.abs(slopes).max() <= 1e-12 * max(1.0, np.abs(first).sum()):
            break
    return scores, intercept


def _penalty(alpha, beta, joint, own):
    value = alpha * np.linalg.norm(joint, axis=0).sum()
    return value + (beta * np.abs(own).sum() if np.isfinite(beta) else 0.0)


def _violation(gradient, lengths, alpha, beta, joint, own):
    """How far each feature's subgradients are from holding zero: (d,)."""
    size = np.linalg.norm(joint, axis=0)
    shared = size > 0
    violation = np.maximum(lengths - alpha, 0.0)
    pull = gradient[:, shared] + alpha * joint[:, shared] / size[shared]
    violation[shared] = np.linalg.norm(pull, axis=0)
    if np.isfinite(beta):
        alone = np.where(
            own != 0, np.abs(gradient + beta * np.sign(own)), np.maximum(np.abs(gradient) - beta, 0)
        )
        violation = np.maximum(violation, alone.max(axis=0))
    return violation


def _in_play(violation, joint, own, size):
    used = (joint + own).any(axis=0) | joint.any(axis=0)
    worst = np.argsort(-violation, kind="stable")[: max(size, int(used.sum()))]
    used[worst[violation[worst] > 0]] = True
    return np.flatnonzero(used)


def _line_search(problem, scores, reached, first, alpha, beta, old, new, objective):
    slope = float(first @ (reached - scores))
    slope += _penalty(alpha, beta, *new[:2]) - _penalty(alpha, beta, *old)
    step = 1.0
    while step > 1e-10:
        value = problem.derivatives(scores + step * (reached - scores))[0]
        mixed = [o + step * (n - o) for o, n in zip(old, new)]
        if value + _penalty(alpha, beta, *mixed) <= objective + 1e-4 * step * slope + 1e-14:
            return step
        step /= 2
    return step
