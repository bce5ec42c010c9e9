"""Support vector machines and kernel ridge whose tasks share one kernel.

The kernel between (x, task s) and (x', task t) is ``C[s, t] · k(x, x')`` with the coupling's
covariance C. k is evaluated once on the rows of X, whatever the number of tasks and classes; the
solvers in ``kernel_training`` apply C as they go. This file validates, states the problems, and
turns their solutions into predictions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.validation import check_is_fitted

from fastmtl.config import resolve_threads
from fastmtl.coupling import Factors, TaskRelations, resolve_coupling
from fastmtl.estimators import (
    check_number,
    check_word,
    in_form,
    label_weights,
    score_in_form,
    unchanged_on_error,
)
from fastmtl.kernel_training import KERNELS, Problem, kernel_of, solve_duals, solve_ridge
from fastmtl.observations import Classes, encode_classes, is_list_form, observe, query
from fastmtl.relations import families, learn_relations, width_for

__all__ = ["MultiTaskKernelRidge", "MultiTaskSVC", "MultiTaskSVR"]

BLOCK_ENTRIES = 4_000_000  # of the Gram matrix between queries and training rows, at a time


class _KernelMachine(TaskRelations, BaseEstimator):
    """What the three estimators share: kernels, Gram matrices, intercepts and predictions."""

    _classification = False

    def fit(self, X, y, *, tasks=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
            With ``kernel="precomputed"`` the Gram matrix (n, n) of the rows, not a list. float32
            and float64 are kept as they come.
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
        UserWarning
            If the kernel turns out not to be positive semi-definite.
        """
        with unchanged_on_error(self):
            return self._fit(X, y, tasks, sample_weight)

    def _fit(self, X, y, tasks, sample_weight):
        self._check_settings()
        if isinstance(self.kernel, str) and self.kernel == "precomputed":
            _check_precomputed(self, X)
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
        rows, source, row = self._rows(observations)
        by_row = np.bincount(row, observations.weight, minlength=rows.shape[0])
        kernel = kernel_of(self, rows, by_row)
        coupling = resolve_coupling(self.coupling)
        if coupling.learning is None:
            factors = coupling.factor(observations.n_tasks)
        else:
            data = observations, classes, weight
            factors = self._learned_factors(kernel, rows, row, data, coupling.learning)
        problems = [
            Problem(row[kept], observations.task[kept], target, weight[kept], present)
            for kept, target, present in self._problems(observations, classes, weight)
        ]
        outputs, projection = self._solve(self, kernel, rows, problems, factors)
        self._store(observations, classes, factors, kernel, rows, source, outputs, projection)
        return self

    def _check_settings(self):
        check_word(self, "task_intercept", ("free", "shared"))
        check_word(self, "unseen_tasks", ("shared", "error"))
        check_word(self, "indefinite", ("smo", "clip", "flip"))
        check_number(self, "cache_size", low=0.0, open_low=True)
        if not callable(self.kernel):
            check_word(self, "kernel", (*KERNELS, "precomputed"))
        for name in ("sigma", "gamma"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value in ("scale", "auto")):
                if isinstance(value, str):
                    raise ValueError(f"{name} is {value!r}; pass 'scale', 'auto' or a number > 0")
                check_number(self, name, low=0.0, open_low=True)
        check_number(self, "c")
        check_number(self, "coef0")
        check_number(self, "degree", low=1, integer=True)
        resolve_coupling(self.coupling)
        resolve_threads(self.n_threads)

    def _encode(self, observations):
        everything = [np.arange(1)] * observations.n_tasks
        return Classes(np.arange(1), everything, True, observations.target)

    def _rows(self, observations):
        """Training rows in task order where each has one task; their places in X; each label's."""
        X, row = observations.X, observations.row
        if self.kernel == "precomputed" or observations.form == "matrix":
            return X, np.arange(X.shape[0]), row
        if not np.array_equal(row, np.arange(len(row))):
            X = X[row]
        return X, row, np.arange(len(row))

    def _learned_factors(self, kernel, rows, row, data, learning):
        """B and κ learned on Nyström features of the kernel, Φ Φᵀ ≈ K through some of the rows."""
        if (learning.feature_covariance, learning.scale) != ("identity", "unit"):
            raise ValueError(
                f"coupling is {self.coupling!r}; kernel machines take TaskCoupling.learn with rank "
                "alone: they have no features to scale, and their own strength of penalty"
            )
        observations, classes, weight = data
        n = rows.shape[0]
        chosen = np.random.RandomState(0).permutation(n)[: width_for(observations.n_tasks)]
        if kernel is None:
            across = np.asarray(rows[:, chosen], dtype=np.float64)
        else:
            across = np.asarray(
                kernel(rows, rows[chosen], n_threads=self.n_threads), dtype=np.float64
            )
        inner = across[chosen]
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        kept = values > 1e-8 * values[-1]
        learned = learn_relations(
            across @ (vectors[:, kept] / np.sqrt(values[kept])),
            row,
            observations.task_start,
            families(observations, classes, weight),
            "log" if self._classification else "squared",
            self.task_intercept if self.fit_intercept else "none",
            rank=learning.rank,
        )
        return Factors(learned.mixing, learned.kappa)

    def _store(self, observations, classes, factors, kernel, rows, source, outputs, projection):
        n_rows = rows.shape[0]
        used = np.zeros(n_rows, dtype=bool)
        for output in outputs:
            used[output.row[output.beta != 0]] = True
        support = np.flatnonzero(used)
        support = support[np.argsort(source[support], kind="stable")]
        self.support_ = source[support]
        self.dual_coef_ = _dual_coef(outputs, support, n_rows, observations)
        if projection is not None:
            support = np.arange(n_rows)
        place = np.full(n_rows, -1)
        place[support] = np.arange(len(support))
        for output in outputs:
            kept = output.beta != 0
            output.row = place[output.row[kept]]
            output.task, output.beta = output.task[kept], output.beta[kept]
        self._outputs = outputs
        self._projection = projection
        self._columns = source[support]
        self._support_rows = None if kernel is None else rows[support]
        self._kernel_function = kernel
        self._classes = classes
        self.mixing_, self.kappa_ = factors
        self.tasks_ = observations.tasks
        self.n_tasks_ = observations.n_tasks
        self.input_form_ = observations.form
        for name in ("intercept", "n_iter", "objective", "gap"):
            values = [getattr(output, name) for output in outputs]
            value = values[0] if len(values) == 1 else np.stack(values, axis=-1)
            setattr(self, {"gap": "duality_gap_"}.get(name, f"{name}_"), value)

    def _weights(self, task):
        """Coefficients of the support rows in the model of one task: (n_support, n_outputs).

        Code -1 stands for a task never seen: the mean of the tasks' shared parts.
        """
        mixing = self.mixing_[task] if task >= 0 else self.mixing_.mean(axis=0)
        weights = np.zeros((len(self._columns), len(self._outputs)))
        for k, output in enumerate(self._outputs):
            share = self.mixing_[output.task] @ mixing
            if task >= 0:
                share += np.where(output.task == task, self.kappa_[task], 0.0)
            weights[:, k] = np.bincount(output.row, share * output.beta, minlength=len(weights))
        return weights if self._projection is None else self._projection @ weights

    def _intercepts(self, task):
        if task >= 0:
            return np.array(
                [o.intercept[task] if o.present[task] else -np.inf for o in self._outputs]
            )
        return np.array([o.intercept[o.present].mean() for o in self._outputs])

    def _query_gram(self, X, support=slice(None)):
        if self._kernel_function is None:
            return X[:, self._columns[support]]
        return self._kernel_function(X, self._support_rows[support], n_threads=self.n_threads)

    def _scores(self, X, tasks):
        """Scores of queries: (n, n_outputs), or (n, n_tasks, n_outputs) in the matrix form."""
        check_is_fitted(self, "tasks_")
        if self._kernel_function is None:
            _check_query_gram(self, X)
        queries = query(self, X, tasks=tasks)
        X, n_outputs = queries.X, len(self._outputs)
        n = X.shape[0]
        block = max(1, BLOCK_ENTRIES // max(1, len(self._columns)))
        if queries.task is None:
            codes = np.arange(self.n_tasks_)
            weights = np.concatenate([self._weights(t) for t in codes], axis=1)
            scores = np.empty((n, weights.shape[1]))
            for begin in range(0, n, block):
                part = slice(begin, begin + block)
                scores[part] = self._query_gram(X[part]) @ weights
            scores += np.concatenate([self._intercepts(t) for t in codes])
            return queries, scores.reshape(n, self.n_tasks_, n_outputs)
        scores = np.empty((n, n_outputs))
        order = np.argsort(queries.task, kind="stable")
        cuts = np.flatnonzero(np.diff(queries.task[order])) + 1
        pending, size = [], 0
        groups = np.split(order, cuts) if n else []
        share_rows = self.mixing_.shape[1] > 0 or self._projection is not None
        for g, rows in enumerate(groups):
            pending.append(rows)
            size += len(rows)
            if share_rows and size < block and g + 1 < len(groups):
                continue
            self._score_together(X, queries.task, pending, block, scores)
            pending, size = [], 0
        return queries, scores

    def _score_together(self, X, task, groups, block, scores):
        """Score queries of a few tasks by blocks of the Gram matrix over the rows they need."""
        codes = [task[rows[0]] for rows in groups]
        weights = [self._weights(t) for t in codes]
        needed = np.flatnonzero(np.any([(w != 0).any(axis=1) for w in weights], axis=0))
        everything = np.concatenate(groups)
        ends = np.cumsum([len(rows) for rows in groups])
        own = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
        intercepts = [self._intercepts(t) for t in codes]
        for begin in range(0, len(everything), block):
            rows = everything[begin : begin + block]
            if len(needed):
                gram = self._query_gram(X[rows], needed)
            for g in range(own[begin], own[begin + len(rows) - 1] + 1):
                low = max(begin, ends[g] - len(groups[g])) - begin
                high = min(begin + len(rows), ends[g]) - begin
                value = gram[low:high] @ weights[g][needed] if len(needed) else 0.0
                scores[rows[low:high]] = value + intercepts[g]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.kernel != "precomputed"
        tags.input_tags.pairwise = isinstance(self.kernel, str) and self.kernel == "precomputed"
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


class _SupportVectorMachine(_KernelMachine):
    _solve = staticmethod(solve_duals)

    def _check_settings(self):
        super()._check_settings()
        check_word(self, "loss", self._losses)
        check_number(self, "C", low=0.0, open_low=True)
        check_number(self, "tol", low=0.0, open_low=True)
        check_number(self, "max_iter", low=-1, integer=True)
        if self.max_iter == 0:
            raise ValueError("max_iter is 0; pass a positive integer, or -1 for no limit")


class MultiTaskSVC(ClassifierMixin, _SupportVectorMachine):
    """Support vector classification of many related tasks with one shared kernel.

    The kernel between (x, task s) and (x', task t) is ``C[s, t] k(x, x')``, where the coupling's
    covariance C says how tasks relate [1]_. Over f in the space of that kernel and free intercepts
    the fit minimises

        ``½ ‖f‖² + C Σ_t task_weight_t Σ_i weight_i loss(y_i (f_t(x_i) + b_t))``

    by coordinate descent on the dual with second-order choice of pairs [2]_. Use it where each task
    has tens to thousands of rows and a linear model is not enough; beyond some ten thousand rows in
    all, see :func:`make_kernel_sgd`.

    The sigmoid kernels are not positive semi-definite in general [3]_; see `indefinite`.

    Parameters
    ----------
    C : float, default=1.0
        Weight of the losses against the penalty, positive. Not the coupling's covariance.
    kernel : str or callable, default="sigmoid"
        ``"sigmoid"`` is the logistic ``1 / (1 + exp(-sigma (x·x' + c)))``, ``"tanh"`` is
        ``tanh(gamma x·x' + coef0)``, ``"rbf"`` is ``exp(-gamma ‖x - x'‖²)``, ``"poly"`` is
        ``(gamma x·x' + coef0)^degree``, ``"linear"`` is ``x·x'``; ``"precomputed"`` takes Gram
        matrices for X; a callable maps (n, d) and (m, d) to a Gram matrix (n, m).
    sigma, gamma : {"scale", "auto"} or float, default="scale"
        ``"scale"`` is ``1 / (d · X.var())``, rows weighted by `sample_weight`, and ``"auto"`` is
        ``1 / d``.
    c, coef0 : float, default=0.0
    degree : int, default=3
    coupling : {"mean", "independent", "pooled", "learn"} or TaskCoupling, default="mean"
        How tasks share. With ``"independent"`` they share the Gram matrix only; ``"learn"`` finds C
        from the data before the fit, as :meth:`TaskCoupling.learn` does, on Nyström features of
        some landmarks in place of the kernel.
    loss : {"hinge", "squared_hinge"}, default="hinge"
    task_weight : None, "balanced", dict or array-like of shape (n_tasks,), default=None
        Weights of the tasks' summed losses; ``"balanced"`` weighs their means alike.
    class_weight : None, "balanced" or dict, default=None
        Weights of classes, multiplied with `sample_weight`; ``"balanced"`` works within each task.
    fit_intercept : bool, default=True
    task_intercept : {"free", "shared"}, default="free"
        An intercept for each task, not penalised, or one for all.
    indefinite : {"smo", "clip", "flip"}, default="smo"
        What to do about negative eigenvalues of the Gram matrix. ``"smo"`` keeps the kernel and
        steps to the bound where the curvature is negative [3]_: the solution is a stationary point
        of a problem that is not convex. ``"clip"`` sets negative eigenvalues to zero and ``"flip"``
        changes their sign, which costs an eigendecomposition, O(n³), and makes the problem convex;
        the kernel of new rows is mapped alike. Each warns when it met an indefinite kernel.
    tol : float, default=1e-3
        The greatest violation of the optimality conditions to leave, as in libsvm. From 1e-5 on the
        Gram matrix is kept in float32, also as in libsvm, of entries computed in the dtype of X;
        except where entries differ by less than a hundredth of their size, on average.
    max_iter : int, default=-1
        The most steps per class, -1 for libsvm's limit of ten million or 100 n. Their number grows
        with C and the size of the Gram matrix's entries: standardise X. With ``kernel="linear"``
        :class:`MultiTaskSGDClassifier` with this loss, ``alpha=1 / (C * n)`` and this
        `task_intercept` has the same solution and does not slow down.
    shrinking : bool, default=False
        Leave settled samples out of the steps, and check them at the end. With the whole Gram
        matrix in memory it seldom pays.
    cache_size : float, default=1000
        Megabytes for the Gram matrix. Where it does not fit, rows are computed as needed and the
        recently used ones kept.
    task_column : int, str or None, default=None
        The column of X that holds the task labels, so that pipelines and searches need not route
        `tasks`.
    unseen_tasks : {"shared", "error"}, default="shared"
        A task not seen in training is predicted with the shared part and the mean intercept, or
        refused.
    n_threads : int or None, default=None
        Threads of the Gram matrix, and over the classes' problems where there are several. None
        and -1 take all cores.
    verbose : bool, default=False
        Show the steps taken and the violation left, with tqdm.

    Attributes
    ----------
    support_ : ndarray of shape (n_support,)
        Rows of X (stacked, for a list) that are support vectors of any task or class, ascending.
    dual_coef_ : ndarray of shape (n_outputs, n_support)
        Signed dual coefficients y_i α_i. One output where tasks have two classes, else one per
        class; for Y (n, n_tasks) these for each task in turn.
    intercept_ : ndarray of shape (n_tasks,) or (n_tasks, n_classes)
    n_iter_ : int or ndarray of shape (n_classes,)
        Steps taken.
    objective_, duality_gap_ : float or ndarray of shape (n_classes,)
        The primal objective, and how far at most it is above the minimum (where the kernel is
        positive semi-definite).
    classes_ : ndarray, or list of ndarray
        The class labels; for Y (n, n_tasks) a list with those of each task.
    task_classes_ : list of ndarray
    tasks_ : ndarray of shape (n_tasks,)
    mixing_, kappa_ : ndarray of shape (n_tasks, R) and (n_tasks,)
        B and κ of the coupling.
    n_tasks_, n_features_in_ : int

    See Also
    --------
    MultiTaskSVR : the same for numbers.
    make_kernel_sgd : for many more rows.
    sklearn.calibration.CalibratedClassifierCV : gives it probabilities (set `task_column`, and pass
        :class:`TaskStratifiedKFold` as `cv`, so that each fold has both classes of each task).

    References
    ----------
    .. [1] T. Evgeniou, C. Micchelli and M. Pontil, "Learning multiple tasks with kernel methods",
       JMLR 6, 2005.
    .. [2] R.-E. Fan, P.-H. Chen and C.-J. Lin, "Working set selection using second order
       information for training SVM", JMLR 6, 2005.
    .. [3] H.-T. Lin and C.-J. Lin, "A study on sigmoid kernels for SVM and the training of non-PSD
       kernels by SMO-type methods", technical report, National Taiwan University, 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSVC
    >>> rng = np.random.default_rng(0)
    >>> X, tasks = rng.normal(size=(120, 2)), np.repeat(["a", "b", "c"], 40)
    >>> y = np.where((X**2).sum(axis=1) < 1.5, "in", "out")
    >>> model = MultiTaskSVC(kernel="rbf", C=10).fit(X, y, tasks=tasks)
    >>> model.predict([[0.0, 0.0], [2.0, 2.0]], tasks=["a", "b"])
    array(['in', 'out'], dtype='<U3')
    """

    _classification = True
    _losses = ("hinge", "squared_hinge")

    def __init__(
        self,
        *,
        C=1.0,
        kernel="sigmoid",
        sigma="scale",
        c=0.0,
        gamma="scale",
        coef0=0.0,
        degree=3,
        coupling="mean",
        loss="hinge",
        task_weight=None,
        class_weight=None,
        fit_intercept=True,
        task_intercept="free",
        indefinite="smo",
        tol=1e-3,
        max_iter=-1,
        shrinking=False,
        cache_size=1000,
        task_column=None,
        unseen_tasks="shared",
        n_threads=None,
        verbose=False,
    ):
        self.C = C
        self.kernel = kernel
        self.sigma = sigma
        self.c = c
        self.gamma = gamma
        self.coef0 = coef0
        self.degree = degree
        self.coupling = coupling
        self.loss = loss
        self.task_weight = task_weight
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.task_intercept = task_intercept
        self.indefinite = indefinite
        self.tol = tol
        self.max_iter = max_iter
        self.shrinking = shrinking
        self.cache_size = cache_size
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.n_threads = n_threads
        self.verbose = verbose

    def _encode(self, observations):
        classes = encode_classes(observations)
        if self.fit_intercept and self.task_intercept == "free":
            start = observations.task_start
            lonely = [
                t
                for t in range(observations.n_tasks)
                if len(np.unique(classes.code[start[t] : start[t + 1]])) < 2
            ]
            if lonely:
                names = observations.tasks[lonely[:5]].tolist()
                raise ValueError(
                    f"y has one class only in {len(lonely)} tasks, for example {names!r}; an "
                    "intercept per task needs two: drop them, set task_intercept='shared', or, in "
                    "cross-validation, split by TaskStratifiedKFold"
                )
        return classes

    def _problems(self, observations, classes, weight):
        """(observations, ±1 targets, tasks that have it) of each binary problem."""
        task, n_tasks = observations.task, observations.n_tasks
        if classes.binary:
            kept = np.flatnonzero(weight > 0)
            return [(kept, classes.code[kept], np.ones(n_tasks, dtype=bool))]
        own = np.concatenate(
            [classes.task_classes[t][_codes(classes, observations, t)] for t in range(n_tasks)]
        )
        problems = []
        for k in range(len(classes.classes)):
            present = np.array([k in of_task for of_task in classes.task_classes])
            kept = np.flatnonzero((weight > 0) & present[task])
            problems.append((kept, np.where(own[kept] == k, 1.0, -1.0), present))
        return problems

    def _store(self, observations, classes, *rest):
        super()._store(observations, classes, *rest)
        self.task_classes_ = [classes.classes[own] for own in classes.task_classes]
        self.classes_ = self.task_classes_ if observations.form == "matrix" else classes.classes

    def decision_function(self, X, *, tasks=None):
        """Scores of the classes.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
            With ``kernel="precomputed"`` the kernel between the rows and all training rows,
            (n, n_train).
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) scores all
            tasks for each row.

        Returns
        -------
        scores : ndarray or list of ndarray
            Two classes per task: (n,), positive for the second class, or (n, n_tasks) in the matrix
            form. More: (n, n_classes) with -inf for classes that the task of the row lacks, or in
            the matrix form a list with (n, n_classes_t) for each task.
        """
        queries, scores = self._scores(X, tasks)
        if self._classes.binary:
            return in_form(scores[..., 0], queries)
        if queries.task is None:
            return [scores[:, t, own] for t, own in enumerate(self._classes.task_classes)]
        return in_form(scores, queries)

    def predict(self, X, *, tasks=None):
        """Predict class labels.

        Parameters
        ----------
        X, tasks
            As in :meth:`decision_function`.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        queries, scores = self._scores(X, tasks)
        classes = self._classes.classes
        if not self._classes.binary:
            return in_form(classes[scores.argmax(axis=-1)], queries)
        pairs = np.array(self._classes.task_classes)
        best = (scores[..., 0] > 0).astype(int)
        if queries.task is None:
            return classes[pairs[np.arange(self.n_tasks_), best]]
        if len(classes) > 2 and (queries.task < 0).any():
            raise ValueError(
                "tasks has unseen labels, and the tasks' classes differ, so theirs are not known"
            )
        return in_form(classes[pairs[queries.task, best]], queries)

    def score(self, X, y, sample_weight=None, *, tasks=None):
        """Share of labels predicted right, missing labels left out.

        Parameters
        ----------
        X, y, tasks
            As in :meth:`fit`. Over Y (n, n_tasks) it is the mean over the tasks.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        score : float
        """
        return score_in_form(accuracy_score, y, self.predict(X, tasks=tasks), sample_weight)


class _Regressor(RegressorMixin):
    def _problems(self, observations, classes, weight):
        kept = np.flatnonzero(weight > 0)
        return [(kept, classes.code[kept], np.ones(observations.n_tasks, dtype=bool))]

    def predict(self, X, *, tasks=None):
        """Predict targets.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
            With ``kernel="precomputed"`` the kernel between the rows and all training rows,
            (n, n_train).
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) predicts all
            tasks for each row.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        queries, scores = self._scores(X, tasks)
        return in_form(scores[..., 0], queries)

    def score(self, X, y, sample_weight=None, *, tasks=None):
        """R², the share of variance explained.

        Parameters
        ----------
        X, y, tasks
            As in :meth:`fit`. Over Y (n, n_tasks) it is the mean of the tasks' R².
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        score : float
        """
        return score_in_form(r2_score, y, self.predict(X, tasks=tasks), sample_weight)


class MultiTaskSVR(_Regressor, _SupportVectorMachine):
    """Support vector regression on many related tasks with one shared kernel.

    The model, the kernels and the solver are those of :class:`MultiTaskSVC`; the loss is
    ``max(0, |y - f_t(x) - b_t| - epsilon)`` or its square.

    Parameters
    ----------
    C : float, default=1.0
        Weight of the losses against the penalty, positive.
    epsilon : float, default=0.1
        Errors up to here cost nothing; in units of y, non-negative.
    kernel : str or callable, default="sigmoid"
        ``"sigmoid"``, ``"tanh"``, ``"rbf"``, ``"poly"``, ``"linear"``, ``"precomputed"`` or a
        callable; see :class:`MultiTaskSVC`.
    sigma, gamma : {"scale", "auto"} or float, default="scale"
    c, coef0 : float, default=0.0
    degree : int, default=3
    coupling : {"mean", "independent", "pooled", "learn"} or TaskCoupling, default="mean"
    loss : {"epsilon_insensitive", "squared_epsilon_insensitive"}, default="epsilon_insensitive"
    task_weight : None, "balanced", dict or array-like of shape (n_tasks,), default=None
    fit_intercept : bool, default=True
    task_intercept : {"free", "shared"}, default="free"
    indefinite : {"smo", "clip", "flip"}, default="smo"
    tol : float, default=1e-3
    max_iter : int, default=-1
        As in :class:`MultiTaskSVC`; the linear engine is :class:`MultiTaskSGDRegressor`.
    shrinking : bool, default=False
    cache_size : float, default=1000
    task_column : int, str or None, default=None
    unseen_tasks : {"shared", "error"}, default="shared"
    n_threads : int or None, default=None
    verbose : bool, default=False
        As in :class:`MultiTaskSVC`; a regression is one problem.

    Attributes
    ----------
    support_, dual_coef_, intercept_, n_iter_, objective_, duality_gap_, tasks_, mixing_, kappa_
        As in :class:`MultiTaskSVC`.

    See Also
    --------
    MultiTaskSVC : the same for class labels, with the parameters in full.
    MultiTaskKernelRidge : squared error, solved in closed form.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSVR
    >>> X = np.linspace(0, 6, 80)[:, None]
    >>> Y = np.column_stack([np.sin(X[:, 0]), np.sin(X[:, 0]) + 1])
    >>> model = MultiTaskSVR(kernel="rbf", gamma=1.0, C=10, epsilon=0.01).fit(X, Y)
    >>> model.predict([[np.pi / 2]]).round(1)
    array([[1., 2.]])
    """

    _losses = ("epsilon_insensitive", "squared_epsilon_insensitive")

    def __init__(
        self,
        *,
        C=1.0,
        epsilon=0.1,
        kernel="sigmoid",
        sigma="scale",
        c=0.0,
        gamma="scale",
        coef0=0.0,
        degree=3,
        coupling="mean",
        loss="epsilon_insensitive",
        task_weight=None,
        fit_intercept=True,
        task_intercept="free",
        indefinite="smo",
        tol=1e-3,
        max_iter=-1,
        shrinking=False,
        cache_size=1000,
        task_column=None,
        unseen_tasks="shared",
        n_threads=None,
        verbose=False,
    ):
        self.C = C
        self.epsilon = epsilon
        self.kernel = kernel
        self.sigma = sigma
        self.c = c
        self.gamma = gamma
        self.coef0 = coef0
        self.degree = degree
        self.coupling = coupling
        self.loss = loss
        self.task_weight = task_weight
        self.fit_intercept = fit_intercept
        self.task_intercept = task_intercept
        self.indefinite = indefinite
        self.tol = tol
        self.max_iter = max_iter
        self.shrinking = shrinking
        self.cache_size = cache_size
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.n_threads = n_threads
        self.verbose = verbose

    def _check_settings(self):
        super()._check_settings()
        check_number(self, "epsilon", low=0.0)


class MultiTaskKernelRidge(_Regressor, _KernelMachine):
    """Kernel ridge regression on many related tasks with one shared kernel, in closed form.

    It minimises ``Σ_t task_weight_t Σ_i weight_i (y_i - f_t(x_i) - b_t)² + alpha ‖f‖²`` over f in
    the space of the kernel ``C[s, t] k(x, x')`` and free intercepts, by one factorisation of the
    system over all labels: O(n³) time and O(n²) memory in their number n.

    Parameters
    ----------
    alpha : float, default=1.0
        Strength of the penalty, positive.
    kernel : str or callable, default="sigmoid"
        ``"sigmoid"``, ``"tanh"``, ``"rbf"``, ``"poly"``, ``"linear"``, ``"precomputed"`` or a
        callable; see :class:`MultiTaskSVC`.
    sigma, gamma : {"scale", "auto"} or float, default="scale"
    c, coef0 : float, default=0.0
    degree : int, default=3
    coupling : {"mean", "independent", "pooled", "learn"} or TaskCoupling, default="mean"
    task_weight : None, "balanced", dict or array-like of shape (n_tasks,), default=None
    fit_intercept : bool, default=True
    task_intercept : {"free", "shared"}, default="free"
    indefinite : {"smo", "clip", "flip"}, default="clip"
        ``"clip"`` and ``"flip"`` are as in :class:`MultiTaskSVC`. ``"smo"`` takes the kernel as it
        is: the solution then is a stationary point, and a poor one where a negative eigenvalue is
        near ``-alpha``.
    cache_size : float, default=1000
        Megabytes that the Gram matrix may take; a larger one is refused.
    task_column : int, str or None, default=None
    unseen_tasks : {"shared", "error"}, default="shared"
    n_threads : int or None, default=None
        Threads of the Gram matrix; the factorisation uses those of BLAS.

    Attributes
    ----------
    support_, dual_coef_, intercept_, tasks_, mixing_, kappa_
        As in :class:`MultiTaskSVC`; every row with a label is a support vector.
    objective_ : float

    See Also
    --------
    MultiTaskSVR : sparse in the rows it keeps.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskKernelRidge
    >>> X = np.linspace(0, 6, 80)[:, None]
    >>> Y = np.column_stack([np.sin(X[:, 0]), np.sin(X[:, 0]) + 1])
    >>> model = MultiTaskKernelRidge(kernel="rbf", gamma=1.0, alpha=1e-3).fit(X, Y)
    >>> model.predict([[np.pi / 2]]).round(1)
    array([[1., 2.]])
    """

    _solve = staticmethod(solve_ridge)

    def __init__(
        self,
        *,
        alpha=1.0,
        kernel="sigmoid",
        sigma="scale",
        c=0.0,
        gamma="scale",
        coef0=0.0,
        degree=3,
        coupling="mean",
        task_weight=None,
        fit_intercept=True,
        task_intercept="free",
        indefinite="clip",
        cache_size=1000,
        task_column=None,
        unseen_tasks="shared",
        n_threads=None,
    ):
        self.alpha = alpha
        self.kernel = kernel
        self.sigma = sigma
        self.c = c
        self.gamma = gamma
        self.coef0 = coef0
        self.degree = degree
        self.coupling = coupling
        self.task_weight = task_weight
        self.fit_intercept = fit_intercept
        self.task_intercept = task_intercept
        self.indefinite = indefinite
        self.cache_size = cache_size
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.n_threads = n_threads

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # the default sigmoid kernel is nearly constant
        return tags

    def _check_settings(self):
        super()._check_settings()
        check_number(self, "alpha", low=0.0, open_low=True)


def _codes(classes, observations, t):
    own = slice(observations.task_start[t], observations.task_start[t + 1])
    code = classes.code[own]
    return ((code + 1) / 2 if classes.binary else code).astype(int)


def _dual_coef(outputs, support, n_rows, observations):
    """Coefficients by output and support row; in the matrix form by task and output."""
    by_task = observations.form == "matrix"
    n_tasks = observations.n_tasks if by_task else 1
    coef = np.zeros((n_tasks, len(outputs), n_rows))
    for k, output in enumerate(outputs):
        coef[output.task if by_task else 0, k, output.row] = output.beta
    return coef.reshape(-1, n_rows)[:, support]


def _check_precomputed(model, X):
    if is_list_form(X) or model.task_column is not None:
        what = "task_column is set" if model.task_column is not None else "X is a list of matrices"
        raise ValueError(
            f"{what}, but kernel='precomputed' needs one Gram matrix (n, n); pass it with tasks="
        )
    if sp.issparse(X):
        raise ValueError("X is sparse; kernel='precomputed' needs a dense Gram matrix")
    shape = np.shape(X)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"X has shape {shape}, but kernel='precomputed' needs a square Gram matrix, (n, n)"
        )


def _check_query_gram(model, X):
    shape = np.shape(X)
    if len(shape) != 2 or shape[1] != model.n_features_in_:
        raise ValueError(
            f"X has shape {shape}; with kernel='precomputed' pass the kernel between the new rows "
            f"and all training rows, (n, {model.n_features_in_})"
        )
