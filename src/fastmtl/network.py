"""Networks: a trunk of layers shared by all tasks, and a linear head per task on its features.

The heads are the linear model of the library, ``w_t = Σ_r B[t, r] s_r + v_t`` on the trunk's
features, so `coupling` means here what it means there. What the estimators share is in
``network_base.py``; training is in ``network_training.py``.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from fastmtl.estimators import check_number, in_form, score_in_form
from fastmtl.linear import MultiTaskSGDClassifier
from fastmtl.network_base import NetworkBase, documented
from fastmtl.network_state import LOSSES, SOFTMAX
from fastmtl.observations import Classes, encode_classes, query

__all__ = ["MultiTaskNetwork", "MultiTaskNetworkClassifier", "MultiTaskNetworkRegressor"]


class _WithLosses(NetworkBase):
    def __init__(
        self,
        *,
        loss="squared_error",
        huber_delta=1.0,
        quantile=0.5,
        trunk=None,
        hidden_layer_sizes=(64, 32),
        activation="relu",
        coupling="mean",
        alpha=1e-3,
        weight_decay=2e-3,
        solver="adam",
        learning_rate_init=1e-3,
        learning_rate="constant",
        batch_size=32,
        max_iter=100,
        momentum=0.9,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        clip_norm=None,
        gradient_surgery=None,
        task_weight=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        dtype="float32",
        task_column=None,
        unseen_tasks="shared",
        warm_start=False,
        n_threads=1,
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            trunk=trunk,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            coupling=coupling,
            alpha=alpha,
            weight_decay=weight_decay,
            solver=solver,
            learning_rate_init=learning_rate_init,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
            momentum=momentum,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            clip_norm=clip_norm,
            gradient_surgery=gradient_surgery,
            task_weight=task_weight,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            dtype=dtype,
            task_column=task_column,
            unseen_tasks=unseen_tasks,
            warm_start=warm_start,
            n_threads=n_threads,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss
        self.huber_delta = huber_delta
        self.quantile = quantile

    def _check_loss(self):
        self._check_loss_words()
        check_number(self, "huber_delta", low=0.0, open_low=True)
        check_number(self, "quantile", low=0.0, high=1.0, open_low=True)

    def _loss_parameters(self, codes):
        return np.where(codes == LOSSES["quantile"], self.quantile, self.huber_delta).astype(float)


@documented
class MultiTaskNetworkRegressor(RegressorMixin, _WithLosses):
    """Regression on many related tasks by a network with a shared trunk and a head per task.

    Task t predicts ``w_t · f(x) + b_t`` with f the trunk's features and
    ``w_t = Σ_r B[t, r] s_r + v_t`` as in :class:`MultiTaskSGDRegressor`. A step takes `batch_size`
    rows and follows the gradient of the sum of the losses of all their labels, divided by the
    number of rows, plus ``alpha (½ Σ_r ‖s_r‖² + ½ Σ_t ‖v_t‖² / κ_t)`` over the heads (intercepts
    included) and ``weight_decay ½ ‖W‖²`` over the trunk's weights (biases left out).

    All this is on standardised targets: y less the mean of all labels, divided by their standard
    deviation, of the first batch with :meth:`partial_fit`; with ``"poisson"`` y divided by its mean
    alone. So y may be in any unit, and `predict`, ``coef_`` and ``intercept_`` are in it; `alpha`,
    `tol` and ``history_`` are not. Tasks that are in different units want to be standardised each
    by its own. X wants to be standardised too.

    Parameters
    ----------
    loss : {"squared_error", "huber", "quantile", "poisson"}, default="squared_error"
        ``½(y−p)²``; quadratic within `huber_delta` and linear beyond; the pinball loss of
        `quantile`; or with a log link, where `predict` returns rates.
    huber_delta : float, default=1.0
        In units of y, positive.
    quantile : float, default=0.5
        In (0, 1).
    {settings}

    Attributes
    ----------
    tasks_ : ndarray of shape (n_tasks,)
        Task labels: sorted, or column numbers of Y, or positions in the list.
    coef_, intercept_ : ndarray of shape (n_tasks, n_features) and (n_tasks,)
        The heads.
    mixing_, kappa_ : ndarray of shape (n_tasks, R) and (n_tasks,)
        B and κ of the coupling, given or learned.
    task_covariance_, task_correlation_ : ndarray of shape (n_tasks, n_tasks)
        C = B Bᵀ + diag(κ), and the same scaled to a diagonal of ones.
    n_tasks_, n_iter_, n_features_in_ : int
    history_ : list of dict
        Of each epoch, on standardised targets: ``loss`` (weighted sum over the labels, divided by
        the rows), ``task_loss`` (means by task), ``gradient_norms`` (by layer, then the heads; of
        the last batch), ``learning_rate``, ``seconds``; with early stopping ``validation_loss``
        and ``validation_task_loss``; and ``task_weight`` where it is learned.

    {references}

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskNetworkRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 2))
    >>> Y = np.column_stack([np.sin(X[:, 0]), np.sin(X[:, 0]) + X[:, 1]])
    >>> model = MultiTaskNetworkRegressor(hidden_layer_sizes=(32,), random_state=0).fit(X, Y)
    >>> model.predict(X).shape
    (500, 2)
    >>> model.score(X, Y) > 0.95
    True
    """

    _classification = False
    _losses = ("squared_error", "huber", "quantile", "poisson")

    def _encode(self, observations, known=None):
        if self.loss == "poisson" and observations.target.min() < 0:
            raise ValueError(
                f"y has a negative entry ({observations.target.min():.3g}); "
                "loss='poisson' needs counts or rates, y ≥ 0"
            )
        return Classes(np.zeros(1), [np.zeros(1)] * observations.n_tasks, True, observations.target)

    def partial_fit(self, X, y, *, tasks=None, sample_weight=None, lengths=None):
        """Run one epoch over a batch; new tasks may appear at any call.

        Parameters
        ----------
        X, y, tasks, sample_weight, lengths
            As in :meth:`fit`, in the same form at every call.

        Returns
        -------
        self : object
        """
        previous = getattr(self, "_state", None)
        return self._fit(X, y, tasks, sample_weight, lengths, previous, 1, None)

    def predict(self, X, *, tasks=None, lengths=None):
        """Predict targets.

        Parameters
        ----------
        X, lengths
            As in :meth:`fit`.
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) predicts all
            tasks for each row.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
            In the form of the input.
        """
        queries, scores = self._scores(self._flat(X, lengths), tasks)
        if self.loss == "poisson":
            scores = np.exp(scores)
        return in_form(scores, queries)

    def score(self, X, y, sample_weight=None, *, tasks=None, lengths=None):
        """Coefficient of determination R², the mean of the tasks' over Y (n, n_tasks).

        Parameters
        ----------
        X, y, tasks, lengths
            As in :meth:`fit`.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        score : float
        """
        return score_in_form(
            r2_score, y, self.predict(X, tasks=tasks, lengths=lengths), sample_weight
        )


@documented
class MultiTaskNetworkClassifier(ClassifierMixin, NetworkBase):
    """Classification on many related tasks by a network with a shared trunk and a head per task.

    As :class:`MultiTaskNetworkRegressor`, with log loss. Where each task has two classes there is
    one score per task; with more, each task has a softmax over its own classes, of any number, and
    tasks that have a class in common share its vector. Forms of the data and the classes of a task
    are those of :class:`MultiTaskSGDClassifier`.

    Parameters
    ----------
    {settings}

    Attributes
    ----------
    classes_ : ndarray, or list of ndarray
        The class labels; for Y (n, n_tasks) a list with those of each task.
    task_classes_ : list of ndarray
        The class labels of each task, in every form.
    task_covariance_, task_correlation_
    tasks_, coef_, intercept_, mixing_, kappa_, n_tasks_, n_iter_, n_features_in_, history_
        As in :class:`MultiTaskNetworkRegressor`; with softmax, ``coef_`` has a row per task and
        class.

    {references}

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskNetworkClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(600, 2))
    >>> Y = np.column_stack([X[:, 0] * X[:, 1] > 0, np.abs(X[:, 0]) > 1])
    >>> model = MultiTaskNetworkClassifier(hidden_layer_sizes=(32,), random_state=0).fit(X, Y)
    >>> model.score(X, Y) > 0.95
    True
    """

    _classification = True
    _losses = ("log_loss",)
    loss = "log_loss"

    def _encode(self, observations, known=None):
        classes = encode_classes(observations, known)
        if known is not None and len(classes.classes) != len(known):
            new = np.setdiff1d(classes.classes, known)
            raise ValueError(
                f"y has labels {new.tolist()[:5]!r} that are not among classes {known.tolist()!r}; "
                "pass all labels as classes at the first call of partial_fit"
            )
        return classes

    def _store_classes(self):
        union = self._classes.classes
        self.task_classes_ = [union[own] for own in self._classes.task_classes]
        self.classes_ = self.task_classes_ if self.input_form_ == "matrix" else union

    def partial_fit(self, X, y, classes=None, *, tasks=None, sample_weight=None, lengths=None):
        """Run one epoch over a batch; new tasks may appear at any call.

        Parameters
        ----------
        X, y, tasks, sample_weight, lengths
            As in :meth:`fit`, in the same form at every call.
        classes : array-like, default=None
            All labels that will ever come; needed at the first call.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            As in :meth:`fit`, or if `classes` is missing at the first call or differs later.
        """
        previous = getattr(self, "_state", None)
        if previous is None:
            if classes is None:
                raise ValueError(
                    "classes is None; pass all labels at the first call of partial_fit"
                )
            known = np.unique(classes)
        else:
            known = self._classes.classes
            if classes is not None and not np.array_equal(np.unique(classes), known):
                raise ValueError(f"classes differs from that of the first call, {known.tolist()!r}")
        return self._fit(X, y, tasks, sample_weight, lengths, previous, 1, known)

    def decision_function(self, X, *, tasks=None, lengths=None):
        """Scores of the classes, shaped as those of :class:`MultiTaskSGDClassifier`.

        Parameters
        ----------
        X, tasks, lengths
            As in :meth:`predict`.

        Returns
        -------
        scores : ndarray or list of ndarray
        """
        return MultiTaskSGDClassifier.decision_function(self, self._flat(X, lengths), tasks=tasks)

    def predict(self, X, *, tasks=None, lengths=None):
        """Predict class labels.

        Parameters
        ----------
        X, lengths
            As in :meth:`fit`.
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) predicts all
            tasks for each row.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        return MultiTaskSGDClassifier.predict(self, self._flat(X, lengths), tasks=tasks)

    def predict_proba(self, X, *, tasks=None, lengths=None):
        """Class probabilities, shaped as those of :class:`MultiTaskSGDClassifier`.

        Parameters
        ----------
        X, tasks, lengths
            As in :meth:`predict`.

        Returns
        -------
        proba : ndarray of shape (n, n_classes) or list of ndarray
        """
        return MultiTaskSGDClassifier.predict_proba(self, self._flat(X, lengths), tasks=tasks)

    def score(self, X, y, sample_weight=None, *, tasks=None, lengths=None):
        """Share of labels predicted right; over Y (n, n_tasks) the mean over the tasks.

        Parameters
        ----------
        X, y, tasks, lengths
            As in :meth:`fit`.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        score : float
        """
        predicted = self.predict(X, tasks=tasks, lengths=lengths)
        return score_in_form(accuracy_score, y, predicted, sample_weight)


@documented
class MultiTaskNetwork(_WithLosses):
    """Regression and classification tasks in one network, with a loss for each task.

    Trunk, heads and training are those of :class:`MultiTaskNetworkRegressor`. A task with
    ``"log_loss"`` has a softmax over its own classes, which are numbers in y; the others have one
    output. The shared heads are shared among the regression tasks, and by class among the others.
    One mean and one standard deviation serve all regression tasks but Poisson's, one mean those.
    A coupling that is learned needs losses of one kind, and unseen tasks are always refused.

    Parameters
    ----------
    loss : str, list of str or dict, default="squared_error"
        ``"squared_error"``, ``"huber"``, ``"quantile"``, ``"poisson"`` or ``"log_loss"``: one for
        all tasks, one for each in the order of ``tasks_``, or by task label.
    huber_delta : float, default=1.0
        Of ``"huber"``, in units of y, positive.
    quantile : float, default=0.5
        Of ``"quantile"``, in (0, 1).
    {settings}

    Attributes
    ----------
    task_classes_ : list of ndarray or None
        The classes of each task; None for a regression task.
    task_covariance_, task_correlation_
    tasks_, coef_, intercept_, mixing_, kappa_, n_tasks_, n_iter_, n_features_in_, history_
        As in :class:`MultiTaskNetworkRegressor`, with a row of ``coef_`` per output.

    {references}

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskNetwork
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(600, 2))
    >>> product = X[:, 0] * X[:, 1]
    >>> Y = np.column_stack([product, product > 0])
    >>> model = MultiTaskNetwork(loss=["squared_error", "log_loss"], random_state=0).fit(X, Y)
    >>> model.score(X, Y) > 0.9
    True
    """

    _classification = False

    def __init__(
        self,
        *,
        loss="squared_error",
        huber_delta=1.0,
        quantile=0.5,
        trunk=None,
        hidden_layer_sizes=(64, 32),
        activation="relu",
        coupling="independent",
        alpha=1e-3,
        weight_decay=2e-3,
        solver="adam",
        learning_rate_init=1e-3,
        learning_rate="constant",
        batch_size=32,
        max_iter=100,
        momentum=0.9,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        clip_norm=None,
        gradient_surgery=None,
        task_weight=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        dtype="float32",
        task_column=None,
        unseen_tasks="shared",
        warm_start=False,
        n_threads=1,
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            trunk=trunk,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            coupling=coupling,
            alpha=alpha,
            weight_decay=weight_decay,
            solver=solver,
            learning_rate_init=learning_rate_init,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
            momentum=momentum,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            clip_norm=clip_norm,
            gradient_surgery=gradient_surgery,
            task_weight=task_weight,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            dtype=dtype,
            task_column=task_column,
            unseen_tasks=unseen_tasks,
            warm_start=warm_start,
            n_threads=n_threads,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss
        self.huber_delta = huber_delta
        self.quantile = quantile

    def _check_loss_words(self):
        given = self.loss
        if isinstance(given, str):
            words = [given]
        elif isinstance(given, dict):
            words = list(given.values())
        elif isinstance(given, list | tuple):
            words = list(given)
        else:
            words = [given]
        for word in words:
            if not isinstance(word, str) or word not in LOSSES:
                raise ValueError(
                    f"loss is {given!r}; pass one of {', '.join(map(repr, LOSSES))}, a list with "
                    "one per task, or a dict by task"
                )

    def _losses_of(self, tasks):
        if isinstance(self.loss, str):
            return [self.loss] * len(tasks)
        if isinstance(self.loss, dict):
            labels = tasks.tolist()
            if set(self.loss) != set(labels):
                raise ValueError(
                    f"loss has keys {list(self.loss)!r}; pass one for each task, {labels!r}"
                )
            return [self.loss[label] for label in labels]
        if len(self.loss) != len(tasks):
            raise ValueError(f"loss has {len(self.loss)} entries for {len(tasks)} tasks")
        return list(self.loss)

    def _encode(self, observations, known=None):
        losses = self._losses_of(observations.tasks)
        start, target = observations.task_start, observations.target
        parts = [target[start[t] : start[t + 1]] for t in range(observations.n_tasks)]
        own = [np.unique(part) if loss == "log_loss" else None for part, loss in zip(parts, losses)]
        for label, classes, part, loss in zip(observations.tasks, own, parts, losses):
            if classes is not None and len(classes) < 2:
                raise ValueError(f"y has one class only ({classes[0]:g}) for task {label!r}")
            if loss == "poisson" and len(part) and part.min() < 0:
                raise ValueError(
                    f"y has a negative entry for task {label!r}, whose loss is poisson"
                )
        lists = [classes for classes in own if classes is not None]
        union = np.unique(np.concatenate(lists)) if lists else np.empty(0)
        # Output 0 is that of the regression tasks; the classes follow.
        columns = [
            np.zeros(1, dtype=np.int64) if c is None else 1 + np.searchsorted(union, c) for c in own
        ]
        code = target.astype(np.float64).copy()
        for t, classes in enumerate(own):
            if classes is not None:
                code[start[t] : start[t + 1]] = np.searchsorted(classes, parts[t])
        self._own_classes = own
        return Classes(np.concatenate([[np.nan], union]), columns, False, code)

    def _loss_codes(self, observations, classes):
        losses = self._losses_of(observations.tasks)
        codes = [SOFTMAX if loss == "log_loss" else LOSSES[loss] for loss in losses]
        return np.array(codes, dtype=np.int32)

    def _store_classes(self):
        self.task_classes_ = self.__dict__.pop("_own_classes")

    def _all_outputs(self, X, lengths):
        features = self.transform(X, lengths=lengths)
        weights = self._weights()
        scores = features @ weights[:, :-1].T + weights[:, -1]
        return np.split(scores, self._state.head_start[1:-1], axis=1)

    def _answer(self, t, scores):
        if self.task_classes_[t] is not None:
            return self.task_classes_[t][scores.argmax(axis=1)]
        if self._losses_of(self.tasks_)[t] == "poisson":
            return np.exp(scores[:, 0])
        return scores[:, 0]

    def predict(self, X, *, tasks=None, lengths=None):
        """Predict numbers, or classes where a task's loss is ``"log_loss"``.

        Parameters
        ----------
        X, lengths
            As in :meth:`fit`.
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a model fitted on Y (n, n_tasks) predicts all
            tasks for each row.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        queries = query(self, self._flat(X, lengths), tasks=tasks)
        features, weights = self._features(queries.X), self._weights()
        scores = features @ weights[:, :-1].T + weights[:, -1]
        parts = np.split(scores, self._state.head_start[1:-1], axis=1)
        if queries.task is None:
            return np.column_stack([self._answer(t, part) for t, part in enumerate(parts)])
        if (queries.task < 0).any():
            raise ValueError("tasks has labels that were not in training; their loss is not known")
        answers = np.empty(len(scores))
        for t in np.unique(queries.task):
            rows = queries.task == t
            answers[rows] = self._answer(t, parts[t][rows])
        return in_form(answers, queries)

    def _has_classes(self):
        return "log_loss" in (self.loss.values() if isinstance(self.loss, dict) else self.loss)

    @available_if(_has_classes)
    def predict_proba(self, X, *, lengths=None):
        """Class probabilities of every classification task for every row.

        Parameters
        ----------
        X, lengths
            As in :meth:`transform`.

        Returns
        -------
        proba : list of ndarray of shape (n, n_classes_t), or None for regression tasks
        """
        check_is_fitted(self, "_state")
        return [
            None if classes is None else softmax(part, axis=1)
            for classes, part in zip(self.task_classes_, self._all_outputs(X, lengths))
        ]

    def score(self, X, y, *, tasks=None, lengths=None):
        """Mean over the tasks of R² (regression) or accuracy (classification).

        Parameters
        ----------
        X, y, tasks, lengths
            As in :meth:`fit`.

        Returns
        -------
        score : float
        """
        check_is_fitted(self, "_state")
        predicted = self.predict(X, tasks=tasks, lengths=lengths)
        if isinstance(predicted, list):
            pairs = list(zip(y, predicted))
        elif predicted.ndim == 2:
            y = np.asarray(y, dtype=np.float64)
            pairs = [
                (column[~np.isnan(column)], p[~np.isnan(column)])
                for column, p in zip(y.T, predicted.T)
            ]
        elif tasks is None and self.task_column is None:
            pairs = [(np.ravel(y), predicted)]
        else:
            code = query(self, self._flat(X, lengths), tasks=tasks).task
            y = np.asarray(y, dtype=np.float64)
            pairs = [(y[code == t], predicted[code == t]) for t in range(self.n_tasks_)]
        scores = [
            (r2_score if classes is None else accuracy_score)(truth, guess)
            for classes, (truth, guess) in zip(self.task_classes_, pairs)
            if len(truth)
        ]
        return float(np.mean(scores))
