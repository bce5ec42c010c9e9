"""Linear models with shared and task-specific parameters, one random sample at a time or directly.

`MultiTaskSGDRegressor` and `MultiTaskSGDClassifier` turn data into observations, run epochs of the
compiled solver, and store what came out. The numeric loops are in ``_core.linear_sgd``.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastmtl import linear_newton
from fastmtl.config import resolve_threads
from fastmtl.coupling import Factors, TaskRelations, resolve_coupling
from fastmtl.estimators import (
    OnnxMixin,
    check_number,
    check_word,
    in_form,
    rowwise_scores,
    score_in_form,
    unchanged_on_error,
)
from fastmtl.linear_problem import LOSSES, SOFTMAX, columns_worth_keeping, constant_score
from fastmtl.linear_relations import LinearRelations, adapt_task, learn_linear
from fastmtl.linear_state import State, carry, zero_vectors
from fastmtl.linear_training import train
from fastmtl.losses import as_point_loss
from fastmtl.monitoring import as_callbacks, hold_out
from fastmtl.observations import Classes, encode_classes, observe, query
from fastmtl.row_blocks import check_fits_memory, warn_if_larger_than_memory
from fastmtl.task_columns import find_columns

__all__ = ["MultiTaskSGDClassifier", "MultiTaskSGDRegressor"]


class _MultiTaskSGD(TaskRelations, OnnxMixin, BaseEstimator):
    def fit(self, X, y, *, tasks=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
            float32 and float64 are kept as they come; other dtypes become float64.
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
        FloatingPointError
            If the steps diverge. The estimator is left as it was.
        """
        with unchanged_on_error(self):
            self._check_settings()
            warm = self.warm_start and hasattr(self, "_state")
            observations = self._observe(X, y, tasks, sample_weight, reset=not warm)
            training, held_out = (observations, self._encode(observations)), None
            if self.early_stopping:
                rng = check_random_state(self.random_state)
                training, held_out = hold_out(
                    *training, self.validation_fraction, rng, by_class=self._classification
                )
            relations, set_state = self._relate(training)
            training = relations.mapped_data(training)
            held_out = held_out and relations.mapped_data(held_out)
            go_on = warm and not set_state
            state, factors = self._start(training, go_on, relations, held_out)
            if set_state:
                set_state(state)
            result = train(self, training, held_out, state, factors, self.max_iter)
            self._store(training, result["state"], factors, result)
        return self

    def _partial_fit(self, X, y, tasks, sample_weight, known_classes):
        with unchanged_on_error(self):
            self._check_settings()
            if self.early_stopping:
                raise ValueError(
                    "early_stopping is True; partial_fit runs one epoch at a time and cannot hold "
                    "labels out, set early_stopping=False"
                )
            first = not hasattr(self, "_state")
            known = None if first else self.tasks_
            observations = self._observe(X, y, tasks, sample_weight, reset=first, known=known)
            if not first and observations.form != self.input_form_:
                raise ValueError(
                    f"the data has {observations.form!r} form, but the first call had "
                    f"{self.input_form_!r}; keep to one form"
                )
            earlier = None if first else self._classes
            training = observations, self._encode(observations, known_classes, earlier)
            relations, set_state = self._relate(training, None if first else self._relations)
            training = relations.mapped_data(training)
            state, factors = self._start(training, not first, relations)
            if set_state:
                set_state(state)
            result = train(self, training, None, state, factors, 1, partial=True)
            self._store(training, result["state"], factors, result)
        return self

    def add_task(self, X, y, label, *, sample_weight=None):
        """Add a task with few samples, without fitting the others again.

        The shared vectors stay, and so does every other task. The new task's own vector v_t is the
        exact minimiser of the objective over it; where rows of B differ, as in learned and
        low-rank couplings, its row b_t of B is found with it, under the normal prior that the other
        rows suggest. Its κ is the mean of theirs.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d)
        y : array-like of shape (n,)
            For a classifier, labels that it knows.
        label : hashable
            The new task's label, which no other task has.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If the task exists, the model was fitted on Y (n, n_tasks) or on a list, it has a
            softmax, or its loss has kinks (`partial_fit` takes those).

        Examples
        --------
        >>> import numpy as np
        >>> from fastmtl import MultiTaskSGDRegressor
        >>> rng = np.random.default_rng(0)
        >>> X, shop = rng.normal(size=(300, 2)), np.repeat(["a", "b", "c"], 100)
        >>> model = MultiTaskSGDRegressor().fit(X, X @ [1.0, -2.0], tasks=shop)
        >>> model.add_task(X[:3], X[:3] @ [1.0, -2.0] + 1.0, "d").tasks_.tolist()
        ['a', 'b', 'c', 'd']
        """
        check_is_fitted(self, "tasks_")
        if self.input_form_ not in ("long", "single"):
            raise ValueError(
                f"add_task needs a model fitted with task labels, but this one was fitted on the "
                f"{self.input_form_!r} form"
            )
        if not self._one_output:
            raise ValueError("add_task needs one score per task, but this model has a softmax")
        if self._smoothness() is None and self.loss != "poisson":
            raise ValueError(f"loss is {self.loss!r}, which has kinks; use partial_fit instead")
        if label in self.tasks_.tolist():
            raise ValueError(f"label is {label!r}, which is a task already; use partial_fit")
        labels = np.empty(X.shape[0] if hasattr(X, "shape") else len(X), dtype=object)
        labels[:] = [label] * len(labels)
        known = self._classes.classes if self._classification else None
        with unchanged_on_error(self):
            observations = self._observe(
                X, y, labels, sample_weight, reset=False, known=self.tasks_
            )
            training = observations, self._encode(observations, known)
            training = self._relations.mapped_data(training)
            row, kappa, own, total = adapt_task(self, training, self._intercept_kind())
            factors = Factors(np.vstack([self.mixing_, row]), np.append(self.kappa_, kappa))
            self._relations = replace(self._relations, factors=factors)
            result = {"n_iter": self.n_iter_, "best_iter": self.best_iter_}
            state = _with_head(self._state, own, self.n_features_in_)
            self._store(training, state, factors, {**result, "history": self.history_})
            self._label_weight = total
        return self

    def _check_settings(self):
        check_number(self, "alpha", low=0.0)
        check_number(self, "tol", low=0.0, none=True)
        check_number(self, "eta0", low=0.0, open_low=True, none=True)
        check_number(self, "power_t")
        check_number(self, "max_iter", low=1, integer=True)
        check_number(self, "n_iter_no_change", low=1, integer=True)
        check_number(self, "validation_fraction", low=0.0, high=1.0, open_low=True)
        if as_point_loss(self.loss) is None:
            check_word(self, "loss", self._losses)
        check_word(self, "solver", ("auto", "cholesky", "newton", "dual", "saga", "sgd"))
        check_word(self, "sampling", ("uniform", "task", "balanced", "block"))
        check_word(self, "task_intercept", ("coupled", "free", "shared"))
        check_word(self, "unseen_tasks", ("shared", "error"))
        check_word(
            self,
            "learning_rate",
            ("auto", "constant", "invscaling", "optimal", "adaptive", "adagrad"),
        )
        check_number(self, "l1_ratio", low=0.0, high=1.0)
        for name in ("shared_penalty", "task_penalty"):
            if getattr(self, name) is not None:
                check_word(self, name, ("l2", "l1", "elasticnet"))
        check_number(self, "clip_gradient", low=0.0, open_low=True, none=True)
        if not isinstance(self.average, bool | np.bool_):
            check_number(self, "average", low=1, integer=True)
        if self.learning_rate in ("constant", "invscaling") and self.eta0 is None:
            raise ValueError(
                f"eta0 is None; learning_rate={self.learning_rate!r} needs a positive eta0"
            )
        if self.learning_rate == "optimal" and self.alpha == 0:
            raise ValueError("alpha is 0; learning_rate='optimal' needs a positive alpha")
        if self.solver == "saga" and self._smoothness() is None:
            smooth = [name for name in self._losses if LOSSES[name][1] is not None]
            raise ValueError(
                f"loss is {self.loss!r}, whose derivative has no bounded slope; solver='saga' "
                f"takes {', '.join(map(repr, smooth))}, or a PointLoss with smoothness"
            )
        if self.solver in ("cholesky", "newton") and (unlike := self._unlike(self.solver)):
            raise ValueError(unlike)
        if self.solver == "dual" and not self._takes_dual():
            raise ValueError(
                f"alpha is {self.alpha:g}, shared_penalty {self.shared_penalty!r}, task_penalty "
                f"{self.task_penalty!r}; solver='dual' takes a positive alpha and 'l2'"
            )
        resolve_coupling(self.coupling)
        resolve_threads(self.n_threads)
        as_callbacks(self.callbacks)

    def _unlike(self, solver):
        """What keeps a direct solver from the fit, as an error says it; None if nothing."""
        if solver == "newton" and not linear_newton.takes(self.loss):
            smooth = ", ".join(repr(name) for name in self._losses if linear_newton.takes(name))
            return f"loss is {self.loss!r}; solver='newton' takes {smooth}, use another solver"
        wanted = {
            "loss": self.loss if solver == "newton" else "squared_error",
            "shared_penalty": "l2",
            "task_penalty": "l2",
            "early_stopping": False,
            "callbacks": None,
        }
        for name, value in wanted.items():
            given = getattr(self, name)
            if not (given is value or (isinstance(given, str) and given == value)):
                return f"{name} is {given!r}; solver={solver!r} takes {value!r}, use another solver"
        if self.alpha == 0:
            return f"alpha is 0; solver={solver!r} needs a positive alpha, use 'saga'"
        return None

    def _takes_dual(self):
        """Whether the objective has the dual, and is fit for it unasked: that a user's own loss is
        convex, only users know, and Poisson's slopes lose their digits where rows are long."""
        known = isinstance(self.loss, str) and self.loss != "poisson"
        known = known or self.solver == "dual"
        return known and self.alpha > 0 and self.shared_penalty == self.task_penalty == "l2"

    def _exact(self, classes):
        """The solver without epochs that was asked for or that "auto" may take, if any."""
        if self.solver != "auto":
            return self.solver
        if self._asks_for_epochs():
            return None
        if not self._unlike("cholesky"):
            return "cholesky"
        return "newton" if classes.binary and not self._unlike("newton") else None

    def _asks_for_epochs(self):
        return self.sampling != "uniform" or self.tol is None or self._asks_for_sgd()

    def _iterative(self):
        """The solver that runs epochs, if any does; "auto" where the problem says which."""
        return "sgd" if self.solver == "auto" and self._asks_for_sgd() else self.solver

    def _gains_by_a_start(self):
        """Whether a fit is sooner done that starts where one of another penalty ended."""
        return self._iterative() != "sgd" and self._smoothness() is not None

    def _asks_for_sgd(self):
        """Whether a setting that SGD alone has is not as by default."""
        alone = {"learning_rate": "auto", "eta0": None, "average": False, "clip_gradient": None}
        return self.sampling in ("task", "balanced") or any(
            getattr(self, name) != value for name, value in alone.items()
        )

    def _smoothness(self):
        own = as_point_loss(self.loss)
        return LOSSES[self.loss][1] if own is None else own.smoothness

    def _observe(self, X, y, tasks, sample_weight, *, reset, known=None):
        if self.sampling != "block":
            warn_if_larger_than_memory(X)
        return observe(
            self,
            X,
            y,
            tasks=tasks,
            sample_weight=sample_weight,
            classification=self._classification,
            reset=reset,
            known=known,
        )

    def _relate(self, training, earlier=None):
        """The tasks' relations, and what sets a state to the mode where they were just learned."""
        n_tasks = training[0].n_tasks
        coupling = resolve_coupling(self.coupling)
        if coupling.learning is None:
            return LinearRelations(coupling.factor(n_tasks)), None
        if earlier is not None:
            return earlier.extended(n_tasks), None
        return learn_linear(self, training, coupling.learning)

    def _start(self, training, go_on, relations, held_out=None):
        """Parameters to start from: zero, or those of the earlier fit to `go_on` from."""
        self._relations = relations
        observations, classes = training
        d = observations.X.shape[1]
        n_tasks, factors = observations.n_tasks, relations.factors
        if classes.binary:
            n_classes, per_task = 1, [np.zeros(1, dtype=np.int32)] * n_tasks
        else:
            n_classes, per_task = len(classes.classes), classes.task_classes
        head_start = np.concatenate([[0], np.cumsum([len(own) for own in per_task])])
        head_class = np.concatenate(per_task).astype(np.int32)
        dtype = observations.X.dtype
        lanes = 64 // dtype.itemsize
        stride = (d + lanes) // lanes * lanes
        shared = zero_vectors((factors.mixing.shape[1], n_classes, stride), dtype)
        earlier = self._state if go_on else None
        columns = self._columns(observations, held_out, earlier, len(head_class))
        if columns is None:
            specific = zero_vectors((len(head_class), stride), dtype)
        else:
            specific = np.zeros(columns.vector_start(head_start)[-1], dtype=dtype)
        head_start = head_start.astype(np.int64)
        intercept = np.zeros(n_classes)
        state = State(shared, specific, intercept, head_start, head_class, columns=columns)
        if go_on and self.average is not False:
            earlier = earlier.running or earlier

        def move(old, new):
            carry((old, self._classes, self.tasks_), (new, classes, observations.tasks), d)

        if go_on:
            move(earlier, state)
        adagrad = self.learning_rate == "adagrad"
        state.carry_on(earlier, move, adagrad=adagrad, average=self.average)
        if not go_on and self.fit_intercept:
            self._start_intercept(state, observations, classes)
        return state, factors

    def _columns(self, observations, held_out, earlier, n_heads):
        """The columns that tasks keep coefficients of, or None for all."""
        X, row, task = observations.X, observations.row, observations.task
        if not sp.issparse(X) or (earlier is not None and earlier.columns is None):
            return None
        if held_out is not None:
            row = np.concatenate([row, held_out[0].row])
            task = np.concatenate([task, held_out[0].task])
            order = np.argsort(task, kind="stable")
            row, task = row[order], task[order]
        if not columns_worth_keeping(X, row, n_heads):
            return None
        known = None
        if earlier is not None:
            position = {label: t for t, label in enumerate(self.tasks_.tolist())}
            before = [position.get(label, -1) for label in observations.tasks.tolist()]
            known = earlier.columns.of_tasks(np.array(before))
        start = np.searchsorted(task, np.arange(observations.n_tasks + 1))
        return find_columns(X, row, start, known)[0]

    def _intercept_kind(self):
        if not self.fit_intercept:
            return "none"
        if self.task_intercept == "coupled" and not resolve_coupling(self.coupling).has_shared_part:
            return "free"
        return self.task_intercept

    def _start_intercept(self, state, observations, classes):
        if not classes.binary:
            return
        kind = self._intercept_kind()
        start = self._constant_score(classes.code, observations.weight)
        if kind == "free":
            bounds, last = observations.task_start, state.intercept_place
            for t in range(observations.n_tasks):
                own = slice(bounds[t], bounds[t + 1])
                if bounds[t + 1] > bounds[t] and observations.weight[own].sum() > 0:
                    score = self._constant_score(classes.code[own], observations.weight[own])
                    state.specific.reshape(-1)[last[t]] = score
        else:
            state.intercept[0] = start

    def _copy_as_fitted(self, training, state, factors, history, best):
        fitted = copy.copy(self)
        result = {"n_iter": len(history), "best_iter": best.epoch, "history": history}
        fitted._store(training, state, factors, result)
        return fitted

    def _store(self, training, state, factors, result):
        observations, classes = training
        self._state = state
        self._classes = classes
        self._label_weight = observations.weight.sum()
        self.tasks_ = observations.tasks
        self.n_tasks_ = observations.n_tasks
        self.input_form_ = observations.form
        self.mixing_ = factors.mixing
        self.kappa_ = factors.kappa
        self.n_iter_ = result["n_iter"]
        self.best_iter_ = result["best_iter"]
        self.history_ = result["history"]
        self.t_ = state.steps
        self._sparse = sp.issparse(observations.X)

    @property
    def shared_coef_(self):
        """Shared vectors s_r: (R, d), or (R, n_classes, d) with softmax."""
        check_is_fitted(self, "tasks_")
        shared = self._unpad(self._state.shared)[..., :-1]
        return shared[:, 0] if self._one_output else shared

    @property
    def task_coef_(self):
        """Task-specific vectors v_t: (T, d), or with softmax a list of (n_classes_t, d); CSR
        matrices after a fit on a sparse X."""
        check_is_fitted(self, "tasks_")
        if self._compact:
            state = self._state
            heads = state.columns.matrix(state.specific, state.head_start, self.n_features_in_)
            return self._by_task(heads)
        heads = self._unpad(self._state.dense(self.n_features_in_).specific)[:, :-1]
        return self._by_task(sp.csr_matrix(heads) if self._sparse else heads)

    @property
    def coef_(self):
        """w_t = Σ_r B[t, r] s_r + v_t: (T, d), or with softmax a list of (n_classes_t, d); dense,
        and refused (MemoryError) where that is more than half of the machine's memory."""
        check_is_fitted(self, "tasks_")
        return self._by_task(self._weights()[:, :-1])

    @property
    def intercept_(self):
        """Intercepts, shared and task-specific parts together: (T,), or with softmax a list."""
        check_is_fitted(self, "tasks_")
        if not self._compact:
            return self._by_task(self._weights()[:, -1])
        return self._by_task(self._intercepts())

    @property
    def _one_output(self):
        return self._classes.binary

    def _by_task(self, heads):
        if self._one_output:
            return heads
        parts = [heads[a:b] for a, b in itertools.pairwise(self._state.head_start)]
        return parts[0] if self.input_form_ == "single" else parts

    def _unpad(self, vectors):
        d = self.n_features_in_
        unpadded = np.concatenate([vectors[..., :d], vectors[..., -1:]], axis=-1)
        return self._relations.original(unpadded)

    def _weights(self):
        """All heads with their intercepts, (heads, d + 1)."""
        state, d = self._state, self.n_features_in_
        check_fits_memory(len(state.head_class), d, state.shared.dtype)
        state = state.dense(d)
        task_of_head = np.repeat(np.arange(self.n_tasks_), np.diff(state.head_start))
        weights = state.specific.copy()
        for r in range(len(state.shared)):
            weights += (
                self.mixing_[task_of_head, r, None] * state.shared[r, state.head_class]
            ).astype(weights.dtype)
        weights[:, -1] += state.intercept[state.head_class].astype(weights.dtype)
        return self._unpad(weights)

    @property
    def _compact(self):
        # Where the features were mapped, there is a matrix of all features anyway.
        return self._state.columns is not None and self._relations.matrix is None

    def _intercepts(self):
        state = self._state
        last = state.shared[:, state.head_class, -1]
        head_task = np.repeat(np.arange(self.n_tasks_), np.diff(state.head_start))
        intercepts = state.specific[state.intercept_place] + state.intercept[state.head_class]
        intercepts += np.einsum("hr,rh->h", self.mixing_[head_task], last)
        return intercepts.astype(state.shared.dtype)

    def _compact_scores(self, queries):
        """As `_scores`, from the coefficients that each task keeps."""
        state, task, d = self._state, queries.task, self.n_features_in_
        X = sp.csr_matrix(queries.X)
        R, K, _ = state.shared.shape
        base = X @ state.shared[..., :d].reshape(R * K, d).T if R else np.zeros(0, X.dtype)
        base = np.reshape(base, (X.shape[0], R, K))
        if task is None:
            own = state.columns.matrix(state.specific, state.head_start, d)
            scores = (X @ own.T).toarray() + self._intercepts()
            mixing = np.repeat(self.mixing_, np.diff(state.head_start), axis=0)
            for r in range(R):
                scores += base[:, r, state.head_class] * mixing[:, r]
            return scores.astype(X.dtype, copy=False)
        mixing = np.vstack([self.mixing_, self.mixing_.mean(axis=0)])
        shared = np.einsum("nr,nrk->nk", mixing[task], base)
        unseen = self._shared_weights()[:, -1]
        scores = np.where((task < 0)[:, None], shared + unseen, -np.inf)
        order = np.argsort(task, kind="stable")
        order = order[np.searchsorted(task[order], 0) :]
        start = np.searchsorted(task[order], np.arange(self.n_tasks_ + 1))
        _, position = find_columns(X, order, start, state.columns, grow=False)
        intercepts, heads = self._intercepts(), np.diff(state.head_start)[task] * (task >= 0)
        # All own vectors in a row, and last a zero, for columns that a task has nothing at.
        flat = np.append(state.specific, np.zeros(1, dtype=state.specific.dtype))
        index = np.int32 if len(flat) <= np.iinfo(np.int32).max else np.int64
        begin, lengths, unknown = state.vector_start.astype(index), np.diff(X.indptr), position < 0
        for j in range(heads.max(initial=0)):
            rows = np.flatnonzero(heads > j)
            head = np.where(heads > j, state.head_start[task] + j, 0)
            place = np.repeat(begin[head], lengths)
            place += position
            place[unknown] = len(flat) - 1
            shape = X.shape[0], len(flat)
            own = sp.csr_matrix((X.data, place, X.indptr), shape=shape) @ flat
            head = head[rows]
            columns = state.head_class[head]
            scores[rows, columns] = shared[rows, columns] + own[rows] + intercepts[head]
        scores = scores.astype(X.dtype, copy=False)
        return scores[:, 0] if self._one_output else scores

    def _shared_weights(self):
        """What a task never seen is predicted with: (K, d + 1), the mean task's shared part."""
        state = self._state
        weights = np.einsum("r,rkj->kj", self.mixing_.mean(axis=0), state.shared)
        weights[:, -1] += state.intercept
        return self._unpad(weights)

    def _scores(self, X, tasks):
        """Scores of queries: (n,) or (n, K), or for the matrix form (n, heads)."""
        check_is_fitted(self, "tasks_")
        queries = query(self, X, tasks=tasks)
        if self._compact:
            return queries, self._compact_scores(queries)
        X, weights = queries.X, self._weights().astype(queries.X.dtype, copy=False)
        if queries.task is None:
            return queries, np.asarray(X @ weights[:, :-1].T) + weights[:, -1]
        if self._one_output:
            unseen = self._shared_weights()[0].astype(weights.dtype)
            return queries, rowwise_scores(X, np.vstack([weights, unseen]), queries.task)
        state = self._state
        scores = np.full((X.shape[0], len(state.intercept)), -np.inf, dtype=weights.dtype)
        for t in np.unique(queries.task):
            rows = np.flatnonzero(queries.task == t)
            if t < 0:
                own, columns = self._shared_weights().astype(weights.dtype), slice(None)
            else:
                heads = slice(state.head_start[t], state.head_start[t + 1])
                own, columns = weights[heads], state.head_class[heads]
            part = np.asarray(X[rows] @ own[:, :-1].T) + own[:, -1]
            scores[np.ix_(rows, np.arange(scores.shape[1])[columns])] = part
        return queries, scores

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


class MultiTaskSGDRegressor(RegressorMixin, _MultiTaskSGD):
    """Linear regression on many related tasks, by per-sample stochastic gradient descent.

    Task t predicts ``x · w_t + b_t`` with ``w_t = Σ_r B[t, r] s_r + v_t``: vectors ``s_r`` shared
    by all tasks and a task's own ``v_t``. The fit minimises

        ``(1/n) Σ_t task_weight_t Σ_i weight_i loss(y_i, x_i·w_t + b_t)
        + alpha (½ Σ_r ‖s_r‖² + ½ Σ_t ‖v_t‖² / κ_t)``

    where n is the number of labels (each counted by its sample weight). Use it where tasks are many
    and each has too little data for a model of its own. `shared_penalty` and `task_penalty` put
    other penalties in place of ½‖s_r‖² and of ½‖u_t‖², where ``u_t = v_t / √κ_t``.

    Parameters
    ----------
    loss : str, PointLoss or compiled function, default="squared_error"
        ``"squared_error"`` (½(y−p)²), ``"huber"``, ``"epsilon_insensitive"``,
        ``"squared_epsilon_insensitive"``, ``"quantile"`` or ``"poisson"`` (log link; `predict`
        returns rates). Where there is no derivative the smallest subgradient is taken. A loss of
        your own is a compiled function; see :class:`PointLoss`.
    alpha : float, default=1e-4
        Strength of the penalty, non-negative.
    shared_penalty, task_penalty : {"l2", "l1", "elasticnet"} or None, default="l2"
        The penalty of a shared vector u = s_r, and of a task's own u = v_t / √κ_t: ½‖u‖², ‖u‖₁,
        ``l1_ratio ‖u‖₁ + ½ (1 − l1_ratio) ‖u‖²``, or none. With ``"l1"`` and ``"elasticnet"``
        coefficients become exactly zero; ``task_penalty="l1"`` says that a task differs from the
        others in few features.
    l1_ratio : float in [0, 1], default=0.15
        See `shared_penalty`.
    coupling : {"mean", "independent", "pooled", "learn"} or TaskCoupling, default="mean"
        How tasks share: ``"mean"`` is one shared vector plus a task's own, ``"independent"`` is one
        model per task, ``"pooled"`` one model for all; ``"learn"`` finds the tasks' relations
        from the data (:meth:`TaskCoupling.learn`).
    solver : {"auto", "cholesky", "newton", "dual", "saga", "sgd"}, default="auto"
        ``"cholesky"`` solves for the exact minimum: squared error with l2 penalties and a positive
        alpha, in one pass over X that costs d²/2 multiplications a sample and d³ a task. It has no
        epochs (`n_iter_` is 1), no use for a warm start, and takes neither `early_stopping` nor
        `callbacks`. ``"newton"`` does the same for any loss but a :class:`PointLoss`, with the
        losses' second derivatives for weights, in some six steps (`max_iter` at most), and from the
        last solution with `warm_start`; for losses with kinks (``"hinge"``, ``"quantile"``,
        ``"epsilon_insensitive"``) by an interior point method [4]_, in some 15. The others draw a
        random sample per step. ``"saga"`` [2]_ remembers each sample's last derivative (a number
        per label and class) and so converges linearly to the exact minimum, without a rate to tune,
        where the loss is smooth. ``"dual"`` [3]_ maximises the dual in one sample's slope after the
        other: exactly, for any convex loss, kinks and ``"poisson"`` included, whatever the rows'
        lengths, with l2 penalties and a positive alpha; a weak alpha makes it slow where samples
        are many. ``"sgd"`` takes any loss, streams, and has an epoch in half the time, but nears
        the minimum only as its rate decays.
        ``"auto"`` takes ``"cholesky"`` where it applies and costs less than ten epochs of
        ``"saga"``, as it does up to some 250 features with as many samples a task, and ``"newton"``
        where that costs less than twenty (of either up to 200 where a weak penalty wants them, and
        3,000 for kinks and ``"poisson"``, whose alternative is not there by then), unless
        ``tol=None`` or `sampling` asks for epochs; else
        ``"dual"`` where the samples are fewer than the parameters (of a classifier, up to eight
        times as many), the penalty is strong, or some rows are much longer than others; else
        ``"saga"`` for a smooth loss and ``"sgd"`` for others. Where epochs have cost in
        vain what the exact solution takes, or reached `max_iter`, it goes on to that
        (``"solver"`` in `history_`). Where something is set that ``"sgd"`` alone has, it takes
        that: `sampling` by task, `learning_rate`, `eta0`, `average` or `clip_gradient`.
        `partial_fit` always uses ``"sgd"``.
    sampling : {"uniform", "task", "balanced", "block"}, default="uniform"
        How samples are drawn. The objective is the same, because a sample that is drawn more often
        weighs less when it is; to change the objective, set `task_weight`. ``"uniform"`` shuffles
        them all in each epoch. ``"task"`` draws a task, then one of its samples, and so attends
        sooner to small tasks; ``"balanced"`` draws a task, for a classifier one of its classes, and
        then a sample of these (only ``"sgd"`` does either). ``"block"`` takes blocks of 32 MB of
        neighbouring rows in random order, and each block's samples in random order: for an
        ``np.memmap`` larger than memory, which is then read a block at a time.
    task_weight : None, "balanced", dict or array-like of shape (n_tasks,), default=None
        The weight of each task's loss, which is a *sum* over its samples: large tasks count more.
        ``"balanced"`` gives ``n / (n_tasks * n_t)``, that is, all tasks' *mean* losses count alike.
    fit_intercept : bool, default=True
        Whether to have intercepts.
    task_intercept : {"coupled", "free", "shared"}, default="coupled"
        The shared intercept is never penalised. A task's own is shrunk toward it like any
        coefficient (``"coupled"``), not penalised (``"free"``), or absent (``"shared"``). Where the
        coupling shares nothing, ``"coupled"`` means ``"free"``.
    epsilon : float, default=0.1
        Threshold of ``"huber"`` and the ``epsilon_insensitive`` losses, in units of y.
    quantile : float, default=0.5
        The quantile of ``loss="quantile"``, in (0, 1).
    max_iter : int, default=1000
        The most epochs, or steps of ``"newton"``.
    tol : float or None, default=1e-4
        ``"sgd"`` stops when the objective's relative change stays within `tol` for
        `n_iter_no_change` epochs; ``"saga"`` when the length of the objective's gradient is `tol`
        times that of a typical sample and the objective, going on as in its last three epochs, will
        not fall by more than `tol`, relative; ``"newton"`` after a step that gains less than `tol`,
        relative, which leaves about its square; ``"dual"`` when the objective is sure to be as near
        the least as such a gradient implies, and within `tol` of it, relative. None runs `max_iter`
        epochs and spares the check.
    n_iter_no_change : int, default=5
        See `tol` and `early_stopping`.
    early_stopping : bool, default=False
        Hold labels of each task out, stop when their mean loss has not fallen by `tol` (relative)
        for `n_iter_no_change` epochs, and keep the parameters of the best epoch. With ``tol=None``
        all `max_iter` epochs run, and the best is kept. Not with `partial_fit`.
    validation_fraction : float, default=0.1
        The share of each task's labels that is held out, in (0, 1), rounded down: a task with fewer
        than ``1 / validation_fraction`` labels trains with all of them.
    learning_rate : str, default="auto"
        The steps of ``"sgd"``. ``"auto"`` starts at the inverse mean curvature, decays as the
        penalty allows, and damps the step of long rows, so it needs no tuning and does not diverge.
        ``"constant"``, ``"invscaling"`` and ``"optimal"`` are scikit-learn's: ``eta0``,
        ``eta0 / t**power_t`` and ``1 / (alpha (t0 + t))``. ``"adaptive"`` starts as ``"auto"`` does
        (or at `eta0`), stays, and divides the rate by 5 whenever the objective, or with
        `early_stopping` the held-out loss, has not fallen by `tol`, relative, for
        `n_iter_no_change` epochs; it stops at a millionth of the first rate. ``"adagrad"`` gives
        each coordinate its own rate, `eta0` over the root of its squared derivatives so far, for
        rare features and for features of unlike scales.
    eta0 : float or None, default=None
        First rate; needed by ``"constant"`` and ``"invscaling"``; for ``"adagrad"`` None is 0.1.
    power_t : float, default=0.25
        Exponent of ``"invscaling"``.
    average : bool or int, default=False
        Whether the answer is the mean of the parameters over all steps of ``"sgd"`` (Polyak and
        Ruppert) rather than the last, from the first step, or from the step of that number. It
        suits ``"constant"`` and ``"invscaling"`` rates. A mean is seldom exactly zero.
    clip_gradient : float or None, default=None
        The most length of a sample's gradient over all the (whitened) parameters it touches, its
        weight included; a longer one is shortened before its step.
    task_column : int, str or None, default=None
        The column of X that holds the task labels, so that pipelines and searches need not route
        `tasks`.
    unseen_tasks : {"shared", "error"}, default="shared"
        A task not seen in training is predicted with the shared part alone, or refused.
    warm_start : bool, default=False
        Start `fit` from the last solution (``"cholesky"`` needs no start).
    n_threads : int or None, default=1
        Threads of ``"cholesky"``, ``"newton"`` and ``"sgd"``; the steps of ``"saga"`` and
        ``"dual"`` follow one another on one. In ``"sgd"`` each thread owns whole tasks, and the
        shared part is averaged several times an epoch: its result depends on the number of threads,
        not on timing. What ``"auto"`` takes does not. None and -1 take all cores.
    random_state : int, RandomState or None, default=None
        Seed of the order of samples and of the labels held out.
    callbacks : callable or list of callables, default=None
        Called after each epoch with one argument, whose ``epoch``, ``objective``,
        ``validation_loss`` (None without early stopping), ``seconds`` and ``model`` (a fitted copy
        of the estimator as it then is) may be read. A true return value ends the fit.
    verbose : int, default=0
        1 shows a progress bar (needs the extra ``progress``).

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, d)
        w_t.
    intercept_ : ndarray of shape (n_tasks,)
    shared_coef_ : ndarray of shape (R, d)
        s_r.
    task_coef_ : ndarray or, after a fit on a sparse X, CSR matrix of shape (n_tasks, d)
        v_t.
    tasks_ : ndarray of shape (n_tasks,)
        Task labels: sorted, or column numbers of Y, or positions in the list.
    mixing_, kappa_ : ndarray of shape (n_tasks, R) and (n_tasks,)
        B and κ of the coupling, given or learned.
    task_covariance_, task_correlation_ : ndarray of shape (n_tasks, n_tasks)
        C = B Bᵀ + diag(κ), and C scaled to a diagonal of ones.
    n_tasks_, n_iter_, n_features_in_ : int
    best_iter_ : int
        The epoch whose parameters are kept: the last, unless early stopping or an interrupt
        (Ctrl-C, which keeps the best epoch so far and warns) chose an earlier one. Of epochs that
        are short beside a copy of the parameters, not each is there to be kept by an interrupt.
    history_ : list of dict
        ``epoch``, ``solver``, ``objective``, ``seconds`` since the start, and with early stopping
        ``validation_loss``, after each epoch. The objective is exact where it decides when to stop;
        with early stopping, ``tol=None`` or ``sampling="block"`` its loss is the mean met on the
        way.

    See Also
    --------
    MultiTaskSGDClassifier : the same for class labels.
    TaskCoupling : what `coupling` takes beside words.

    References
    ----------
    .. [1] T. Evgeniou and M. Pontil, "Regularized multi-task learning", KDD 2004.
    .. [2] A. Defazio, F. Bach and S. Lacoste-Julien, "SAGA: a fast incremental gradient method",
       NeurIPS 2014.
    .. [3] S. Shalev-Shwartz and T. Zhang, "Stochastic dual coordinate ascent methods for
       regularized loss minimization", JMLR 14, 2013.
    .. [4] S. Mehrotra, "On the implementation of a primal-dual interior point method", SIAM Journal
       on Optimization 2, 1992.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSGDRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2))
    >>> shop = rng.integers(3, size=300)
    >>> y = X @ [1.0, -2.0] + 0.5 * shop
    >>> model = MultiTaskSGDRegressor(random_state=0).fit(X, y, tasks=shop)
    >>> model.coef_.round(1)
    array([[ 1., -2.],
           [ 1., -2.],
           [ 1., -2.]])
    >>> model.predict([[1.0, 1.0]], tasks=[2]).round(1)
    array([-0.])
    """

    _classification = False
    _losses = tuple(LOSSES)[:6]

    def __init__(
        self,
        *,
        loss="squared_error",
        alpha=1e-4,
        shared_penalty="l2",
        task_penalty="l2",
        l1_ratio=0.15,
        coupling="mean",
        solver="auto",
        sampling="uniform",
        task_weight=None,
        fit_intercept=True,
        task_intercept="coupled",
        epsilon=0.1,
        quantile=0.5,
        max_iter=1000,
        tol=1e-4,
        n_iter_no_change=5,
        early_stopping=False,
        validation_fraction=0.1,
        learning_rate="auto",
        eta0=None,
        power_t=0.25,
        average=False,
        clip_gradient=None,
        task_column=None,
        unseen_tasks="shared",
        warm_start=False,
        n_threads=1,
        random_state=None,
        callbacks=None,
        verbose=0,
    ):
        self.loss = loss
        self.alpha = alpha
        self.shared_penalty = shared_penalty
        self.task_penalty = task_penalty
        self.l1_ratio = l1_ratio
        self.coupling = coupling
        self.solver = solver
        self.sampling = sampling
        self.task_weight = task_weight
        self.fit_intercept = fit_intercept
        self.task_intercept = task_intercept
        self.epsilon = epsilon
        self.quantile = quantile
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.average = average
        self.clip_gradient = clip_gradient
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.warm_start = warm_start
        self.n_threads = n_threads
        self.random_state = random_state
        self.callbacks = callbacks
        self.verbose = verbose

    def _check_settings(self):
        super()._check_settings()
        check_number(self, "epsilon", low=0.0)
        check_number(self, "quantile", low=0.0, high=1.0, open_low=True)

    def partial_fit(self, X, y, *, tasks=None, sample_weight=None):
        """Run one epoch over a batch; new tasks may appear at any call.

        Parameters
        ----------
        X, y, tasks, sample_weight
            As in :meth:`fit`, in the same form at every call.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            As in :meth:`fit`, or if the form or the number of features changes.
        """
        return self._partial_fit(X, y, tasks, sample_weight, None)

    def _encode(self, observations, known=None, earlier=None):
        if self.loss == "poisson" and observations.target.min() < 0:
            raise ValueError(
                f"y has a negative entry ({observations.target.min():.3g}); "
                "loss='poisson' needs counts or rates, y ≥ 0"
            )
        return Classes(np.zeros(1), [np.zeros(1)] * observations.n_tasks, True, observations.target)

    def _loss_setting(self, classes):
        own = as_point_loss(self.loss)
        if own is not None:
            return 0, 0.0, own.smoothness, own.address
        code, smoothness = LOSSES[self.loss]
        parameter = self.quantile if self.loss == "quantile" else self.epsilon
        return code, float(parameter), smoothness, 0

    def _constant_score(self, target, weight):
        own = as_point_loss(self.loss)
        if own is not None:
            return constant_score(own.address, target, weight)
        if self.loss == "quantile":
            return float(np.quantile(target, self.quantile))
        mean = float(weight @ target / weight.sum())
        return np.log(max(mean, 1e-6)) if self.loss == "poisson" else mean

    def predict(self, X, *, tasks=None):
        """Predict targets.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) predicts all
            tasks for each row.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
            In the form of the input, with the dtype of X.

        Raises
        ------
        ValueError
            If `tasks` is missing, or names unseen tasks with ``unseen_tasks="error"``.
        """
        queries, scores = self._scores(X, tasks)
        if self.loss == "poisson":
            scores = np.exp(scores)
        return in_form(scores, queries)

    def score(self, X, y, sample_weight=None, *, tasks=None):
        """Coefficient of determination R².

        Parameters
        ----------
        X, y, tasks
            As in :meth:`fit`. Over Y (n, n_tasks) it is the mean of the tasks' R², missing labels
            left out; in the other forms one R² over all rows.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        score : float
        """
        predicted = self.predict(X, tasks=tasks)
        return score_in_form(r2_score, y, predicted, sample_weight)


class MultiTaskSGDClassifier(ClassifierMixin, _MultiTaskSGD):
    """Linear classification on many related tasks, by per-sample stochastic gradient descent.

    The model and the objective are those of :class:`MultiTaskSGDRegressor`; the loss is that of a
    classifier. Where each task has two classes there is one score per task; with more, each task
    has a softmax over its own classes, and tasks that have a class in common share its vector. It
    takes Y of shape (n, n_tasks) where ``MultiOutputClassifier(LogisticRegression())`` does.

    In the long and the list form all tasks draw on one set of labels; with two labels in all, each
    task has both. In the matrix form each column has its own. A task in which only one class was
    seen is given all classes of the data, and leans on the shared part.

    Parameters
    ----------
    loss : str, PointLoss or compiled function, default="log_loss"
        ``"log_loss"``, ``"hinge"``, ``"squared_hinge"`` or ``"modified_huber"``. More than two
        classes per task need ``"log_loss"``, which is then the softmax's cross-entropy. A loss of
        your own is a compiled function of a target that is +1 or -1; see :class:`PointLoss`.
    alpha : float, default=1e-4
        Strength of the penalty, non-negative.
    shared_penalty, task_penalty : {"l2", "l1", "elasticnet"} or None, default="l2"
    l1_ratio : float in [0, 1], default=0.15
        See :class:`MultiTaskSGDRegressor`.
    coupling : {"mean", "independent", "pooled", "learn"} or TaskCoupling, default="mean"
        How tasks share; see :class:`MultiTaskSGDRegressor`.
    solver : {"auto", "newton", "dual", "saga", "sgd"}, default="auto"
        See :class:`MultiTaskSGDRegressor`; its ``"cholesky"`` has no loss of a classifier, and
        ``"newton"`` and ``"dual"`` no softmax.
    sampling : {"uniform", "task", "balanced", "block"}, default="uniform"
        Draw samples evenly, a task first, a task and then a class, or from one block of rows after
        the other.
    task_weight : None, "balanced", dict or array-like of shape (n_tasks,), default=None
        Weights of the tasks' summed losses; ``"balanced"`` weighs their means alike.
    class_weight : None or "balanced" or dict, default=None
        Weights of classes, by label, multiplied with `sample_weight`; ``"balanced"`` gives
        ``n_t / (n_classes_t * count)`` within each task.
    fit_intercept : bool, default=True
    task_intercept : {"coupled", "free", "shared"}, default="coupled"
        See :class:`MultiTaskSGDRegressor`.
    max_iter : int, default=1000
    tol : float or None, default=1e-4
    n_iter_no_change : int, default=5
    early_stopping : bool, default=False
    validation_fraction : float, default=0.1
        As in :class:`MultiTaskSGDRegressor`; each class of a task gives its share, and keeps at
        least one label to train with.
    learning_rate : str, default="auto"
    eta0 : float or None, default=None
    power_t : float, default=0.25
    average : bool or int, default=False
    clip_gradient : float or None, default=None
    task_column : int, str or None, default=None
    unseen_tasks : {"shared", "error"}, default="shared"
    warm_start : bool, default=False
    n_threads : int or None, default=1
    random_state : int, RandomState or None, default=None
    callbacks : callable or list of callables, default=None
    verbose : int, default=0
        As in :class:`MultiTaskSGDRegressor`.

    Attributes
    ----------
    classes_ : ndarray, or list of ndarray
        The class labels; for Y (n, n_tasks) a list with those of each task.
    task_classes_ : list of ndarray
        The class labels of each task, in every form.
    coef_, intercept_, shared_coef_, task_coef_
        As in :class:`MultiTaskSGDRegressor`; with softmax `coef_`, `task_coef_` and `intercept_`
        are lists with (n_classes_t, d) and (n_classes_t,) for each task, and `shared_coef_` is
        (R, n_classes, d).
    tasks_, n_tasks_, n_iter_, best_iter_, history_, mixing_, kappa_, n_features_in_
        As in :class:`MultiTaskSGDRegressor`.

    See Also
    --------
    MultiTaskSGDRegressor : the same for numbers, with the parameters in full.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSGDClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> Y = np.column_stack([X[:, 0] > 0, X[:, 0] + X[:, 1] > 0])
    >>> model = MultiTaskSGDClassifier(random_state=0).fit(X, Y)
    >>> model.predict([[2.0, -1.0], [-2.0, 1.0]])
    array([[ True,  True],
           [False, False]])
    >>> [p.shape for p in model.predict_proba(X)]
    [(200, 2), (200, 2)]
    """

    _classification = True
    _losses = tuple(LOSSES)[6:]

    def __init__(
        self,
        *,
        loss="log_loss",
        alpha=1e-4,
        shared_penalty="l2",
        task_penalty="l2",
        l1_ratio=0.15,
        coupling="mean",
        solver="auto",
        sampling="uniform",
        task_weight=None,
        class_weight=None,
        fit_intercept=True,
        task_intercept="coupled",
        max_iter=1000,
        tol=1e-4,
        n_iter_no_change=5,
        early_stopping=False,
        validation_fraction=0.1,
        learning_rate="auto",
        eta0=None,
        power_t=0.25,
        average=False,
        clip_gradient=None,
        task_column=None,
        unseen_tasks="shared",
        warm_start=False,
        n_threads=1,
        random_state=None,
        callbacks=None,
        verbose=0,
    ):
        self.loss = loss
        self.alpha = alpha
        self.shared_penalty = shared_penalty
        self.task_penalty = task_penalty
        self.l1_ratio = l1_ratio
        self.coupling = coupling
        self.solver = solver
        self.sampling = sampling
        self.task_weight = task_weight
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.task_intercept = task_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.average = average
        self.clip_gradient = clip_gradient
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.warm_start = warm_start
        self.n_threads = n_threads
        self.random_state = random_state
        self.callbacks = callbacks
        self.verbose = verbose

    def partial_fit(self, X, y, classes=None, *, tasks=None, sample_weight=None):
        """Run one epoch over a batch; new tasks and new classes may appear at any call.

        After each call a task has the classes that a :meth:`fit` on all batches so far would give
        it. A class that is new to a task starts from what other tasks share of it, or from zero;
        when tasks of two classes each become tasks of several, the score w·x of a task's second
        class becomes -w·x/2 and w·x/2 of the two, which predicts the same.

        Parameters
        ----------
        X, y, tasks, sample_weight
            As in :meth:`fit`, in the same form at every call.
        classes : array-like, default=None
            Labels that every task has from now on, seen or not. Once given, `y` may have no others
            until they are given too. None leaves it to the labels that come.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            As in :meth:`fit`, or if `classes` was given and lacks a label that came.
        """
        earlier = getattr(self, "_classes", None)
        if classes is not None:
            classes = np.unique(classes)
            lost = [] if earlier is None else np.setdiff1d(earlier.classes, classes).tolist()
            if lost:
                raise ValueError(
                    f"classes is {classes.tolist()!r}, which lacks {lost!r} of earlier calls; pass "
                    "all, or None"
                )
        elif earlier is not None and earlier.declared:
            classes = earlier.classes
        return self._partial_fit(X, y, tasks, sample_weight, classes)

    def _encode(self, observations, known=None, earlier=None):
        classes = encode_classes(observations, known, earlier)
        if known is not None and len(classes.classes) != len(known):
            new = np.setdiff1d(classes.classes, known)
            raise ValueError(
                f"y has labels {new.tolist()[:5]!r} that are not among classes {known.tolist()!r}; "
                "pass classes that include them"
            )
        if not classes.binary and self.loss != "log_loss":
            raise ValueError(
                f"loss is {self.loss!r} and a task has more than two classes; use loss='log_loss'"
            )
        return classes

    def _loss_setting(self, classes):
        if not classes.binary:
            return SOFTMAX[0], 1.0, SOFTMAX[1], 0
        own = as_point_loss(self.loss)
        if own is not None:
            return 0, 0.0, own.smoothness, own.address
        code, smoothness = LOSSES[self.loss]
        return code, 1.0, smoothness, 0

    def _constant_score(self, code, weight):
        if self.loss != "log_loss":
            return 0.0
        share = np.clip(np.average(code > 0, weights=weight), 1e-3, 1 - 1e-3)
        return float(np.log(share / (1 - share)))

    def _store(self, training, state, factors, result):
        super()._store(training, state, factors, result)
        observations, classes = training
        self.task_classes_ = [classes.classes[own] for own in classes.task_classes]
        self.classes_ = self.task_classes_ if observations.form == "matrix" else classes.classes

    def decision_function(self, X, *, tasks=None):
        """Scores of the classes.

        Parameters
        ----------
        X, tasks
            As in :meth:`predict`.

        Returns
        -------
        scores : ndarray or list of ndarray
            Two classes per task: (n,), positive for the second class, or (n, n_tasks) in the matrix
            form. More: (n, n_classes) with -inf for classes that the row's task lacks, or in
            the matrix form a list with (n, n_classes_t) for each task.
        """
        queries, scores = self._scores(X, tasks)
        if queries.task is None and not self._one_output:
            return np.split(scores, self._state.head_start[1:-1], axis=1)
        return in_form(scores, queries)

    def predict(self, X, *, tasks=None):
        """Predict class labels.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) predicts all
            tasks for each row.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        queries, scores = self._scores(X, tasks)
        if queries.task is None:
            columns = []
            for t, own in enumerate(self.task_classes_):
                heads = slice(self._state.head_start[t], self._state.head_start[t + 1])
                part = scores[:, heads]
                best = (part[:, 0] > 0).astype(int) if self._one_output else part.argmax(axis=1)
                columns.append(own[best])
            return np.column_stack(columns)
        if not self._one_output:
            return in_form(self._classes.classes[scores.argmax(axis=1)], queries)
        pairs = np.array(self._classes.task_classes)
        unseen = pairs[0] if len(self._classes.classes) == 2 else None
        if unseen is None and (queries.task < 0).any():
            raise ValueError(
                "tasks has unseen labels, and the tasks' classes differ, so theirs are not known"
            )
        which = pairs[queries.task, (scores > 0).astype(int)]
        return in_form(self._classes.classes[which], queries)

    def predict_proba(self, X, *, tasks=None):
        """Class probabilities; only with ``loss="log_loss"``.

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
        if self.loss != "log_loss":
            raise AttributeError(
                f"predict_proba needs loss='log_loss', but loss is {self.loss!r}; wrap the model "
                "in sklearn.calibration.CalibratedClassifierCV"
            )
        queries, scores = self._scores(X, tasks)
        if queries.task is None:
            if self._one_output:
                return [_two_columns(scores[:, t]) for t in range(self.n_tasks_)]
            parts = np.split(scores, self._state.head_start[1:-1], axis=1)
            return [softmax(part, axis=1) for part in parts]
        if not self._one_output:
            return in_form(softmax(scores, axis=1), queries)
        proba = np.zeros((len(scores), len(self._classes.classes)), dtype=scores.dtype)
        pairs = np.array(self._classes.task_classes)[queries.task]
        np.put_along_axis(proba, pairs, _two_columns(scores), axis=1)
        return in_form(proba, queries)

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
        predicted = self.predict(X, tasks=tasks)
        return score_in_form(accuracy_score, y, predicted, sample_weight)


def _with_head(state, vector, d):
    """The state with one more task, of one head: features, and the intercept where there is one."""
    head_start = np.append(state.head_start, state.head_start[-1] + 1)
    head_class = np.append(state.head_class, np.zeros(1, dtype=np.int32))
    intercept = vector[d] if len(vector) > d else 0.0
    if state.columns is None:
        head = np.zeros((1, state.specific.shape[1]), dtype=state.specific.dtype)
        head[0, :d], head[0, -1] = vector[:d], intercept
        columns, specific = None, np.vstack([state.specific, head])
    else:
        own = np.flatnonzero(vector[:d])
        columns = state.columns.appended(own)
        specific = np.concatenate([state.specific, np.append(vector[own], intercept)])
        specific = specific.astype(state.specific.dtype)
    return replace(
        state, specific=specific, head_start=head_start, head_class=head_class, columns=columns
    )


def _two_columns(scores):
    second = expit(scores)
    return np.column_stack([1 - second, second])
