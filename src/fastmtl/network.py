"""Networks: a trunk of layers shared by all tasks, and a linear head per task on its features.

The estimators turn data into observations, run epochs of the compiled engine, and store what came
out. The heads are the linear model of the library, ``w_t = Σ_r B[t, r] s_r + v_t`` on the trunk's
features, so `coupling` means here what it means there.
"""

from __future__ import annotations

import numbers
import time
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastmtl._core import network as core
from fastmtl.config import resolve_threads
from fastmtl.coupling import resolve_coupling
from fastmtl.estimators import (
    check_number,
    check_word,
    in_form,
    progress,
    rowwise_scores,
    score_in_form,
    task_weights,
)
from fastmtl.layers import Dense, Trunk, blocks, compile_trunk, initial_parameters
from fastmtl.linear import MultiTaskSGDClassifier
from fastmtl.observations import Classes, encode_classes, observe, query

__all__ = ["MultiTaskNetwork", "MultiTaskNetworkClassifier", "MultiTaskNetworkRegressor"]

LOSSES = {"squared_error": 0, "huber": 1, "quantile": 4, "poisson": 5, "log_loss": 9}
SOFTMAX = 100
OPTIMISERS = {"sgd": 0, "momentum": 1, "nesterov": 2, "adam": 3, "adamw": 3}
WORK_PER_CALL = 3_000_000_000  # multiply-adds, a fraction of a second, so that Ctrl-C is heard
PREDICT_BATCH = 256


@dataclass
class _State:
    trunk: Trunk
    shapes: list
    parameters: np.ndarray  # the trunk's, then the heads' rows, then their intercepts
    moments: np.ndarray
    head_start: np.ndarray
    head_class: np.ndarray
    head_row: np.ndarray
    head_mix: np.ndarray
    n_shared: int
    n_classes: int
    steps: int = 0

    @property
    def n_head_rows(self):
        return (len(self.parameters) - self.trunk.n_parameters) // (self.trunk.n_features + 1)

    def heads(self):
        """H (n_head_rows, n_features) and its intercepts, views."""
        cut = self.trunk.n_parameters + self.n_head_rows * self.trunk.n_features
        H = self.parameters[self.trunk.n_parameters : cut]
        return H.reshape(self.n_head_rows, self.trunk.n_features), self.parameters[cut:]


class _MultiTaskNetwork(TransformerMixin, BaseEstimator):
    def __init__(
        self,
        *,
        trunk=None,
        hidden_layer_sizes=(64, 32),
        activation="relu",
        coupling="mean",
        alpha=1e-4,
        weight_decay=0.0,
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
        self.trunk = trunk
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.coupling = coupling
        self.alpha = alpha
        self.weight_decay = weight_decay
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.momentum = momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.clip_norm = clip_norm
        self.task_weight = task_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.dtype = dtype
        self.task_column = task_column
        self.unseen_tasks = unseen_tasks
        self.warm_start = warm_start
        self.n_threads = n_threads
        self.random_state = random_state
        self.verbose = verbose

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X, y, *, tasks=None, sample_weight=None, lengths=None):
        """Fit the network.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, height, width, channels) or (n, steps, features)
            What the trunk reads; a tuple of such arrays where the trunk starts with ``Concat``; a
            list with one of either per task in the list form.
        y : array-like of shape (n,) or (n, n_tasks), or list of arrays
            Targets: one per row with `tasks`; or a column per task, NaN (or None) where a label is
            missing; or a list with an array per task for a list X.
        tasks : array-like of shape (n,), default=None
            The task label of each row. Without it, a 1-D `y` is one task.
        sample_weight : array-like of shape (n,) or (n, n_tasks), or list, default=None
            Non-negative weights of the losses.
        lengths : array-like of int of shape (n,), or list, default=None
            For recurrent trunks, how many steps of each row are real, from 1 to the number of
            steps. None: all.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If an argument has the wrong shape, kind or values; the message names it.
        FloatingPointError
            If training diverges. The estimator is left as it was.
        """
        warm = getattr(self, "_state", None) if self.warm_start else None
        return self._fit(X, y, tasks, sample_weight, lengths, warm, self.max_iter, None)

    def _fit(self, X, y, tasks, sample_weight, lengths, previous, max_iter, known):
        self._check_settings()
        X, shapes, has_lengths = _flatten(self, X, lengths)
        vectors = [len(shape) for shape in shapes] == [1]  # whose width `observe` checks
        if (
            previous is not None
            and not (vectors and [len(shape) for shape in previous.shapes] == [1])
            and (previous.shapes, self._has_lengths) != (shapes, has_lengths)
        ):
            raise ValueError(
                f"X has samples of shape {shapes}, but the earlier fit had {previous.shapes}, or "
                "lengths were given to only one of them"
            )
        observations = observe(
            self,
            X,
            y,
            tasks=tasks,
            sample_weight=sample_weight,
            classification=self._classification,
            reset=previous is None,
            known=None if previous is None else self.tasks_,
        )
        if sp.issparse(observations.X):
            raise ValueError("X is a sparse matrix; networks need a dense array, X.toarray()")
        classes = self._encode(observations, known)
        seed = check_random_state(self.random_state)
        rng = np.random.default_rng(seed.randint(2**31))
        state, factors = self._start(observations, classes, shapes, previous, rng)
        task_weight = self.task_weight
        if isinstance(task_weight, str) and task_weight == "uncertainty":
            weights = np.ones(observations.n_tasks)
        else:
            weights = task_weights(self, observations)
        history = _train(self, observations, classes, state, weights, rng, max_iter, has_lengths)
        self._state, self._classes, self._has_lengths = state, classes, has_lengths
        self.tasks_, self.n_tasks_ = observations.tasks, observations.n_tasks
        self.input_form_ = observations.form
        self.mixing_, self.kappa_ = factors.mixing, factors.kappa
        self.n_iter_ = len(history)
        self.history_ = history
        self.t_ = state.steps
        self._store_classes()
        return self

    def _store_classes(self):
        pass

    def _loss_codes(self, observations, classes):
        code = LOSSES[self.loss] if classes.binary else SOFTMAX
        return np.full(observations.n_tasks, code, dtype=np.int32)

    def _check_settings(self):
        for name in ("alpha", "weight_decay", "tol"):
            check_number(self, name, low=0.0)
        check_number(self, "learning_rate_init", low=0.0, open_low=True)
        check_number(self, "epsilon", low=0.0, open_low=True)
        for name in ("momentum", "beta_1", "beta_2"):
            check_number(self, name, low=0.0, high=1.0)
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is 1; pass a number below 1")
        check_number(self, "validation_fraction", low=0.0, high=1.0, open_low=True)
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            check_number(self, name, low=1, integer=True)
        check_number(self, "clip_norm", low=0.0, open_low=True, none=True)
        self._check_loss()
        check_word(self, "solver", tuple(OPTIMISERS))
        check_word(self, "unseen_tasks", ("shared", "error"))
        if not callable(self.learning_rate):
            check_word(self, "learning_rate", ("constant", "cosine", "invscaling"))
        try:
            known_dtype = np.dtype(self.dtype) in (np.float32, np.float64)
        except TypeError:
            known_dtype = False
        if not known_dtype:
            raise ValueError(f"dtype is {self.dtype!r}; pass 'float32' or 'float64'")
        resolve_coupling(self.coupling)
        resolve_threads(self.n_threads)

    def _check_loss(self):
        check_word(self, "loss", self._losses)

    def _layers(self):
        if self.trunk is not None:
            return self.trunk
        sizes = self.hidden_layer_sizes
        sizes = (sizes,) if isinstance(sizes, numbers.Integral) else sizes
        return [Dense(units, self.activation) for units in sizes]

    def _start(self, observations, classes, shapes, previous, rng):
        n_tasks = observations.n_tasks
        factors = resolve_coupling(self.coupling).factor(n_tasks)
        if classes.binary:
            n_classes, per_task = 1, [np.zeros(1, dtype=np.int64)] * n_tasks
        else:
            n_classes, per_task = len(classes.classes), classes.task_classes
        head_class = np.concatenate(per_task).astype(np.int64)
        widths = [len(own) for own in per_task]
        head_start = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
        n_shared, n_heads = factors.mixing.shape[1], len(head_class)
        owner = np.repeat(np.arange(n_tasks), widths)
        # Own vectors are kept as v_t / sqrt(κ_t): every parameter then has the same plain penalty.
        mix = np.column_stack([factors.mixing[owner], np.sqrt(factors.kappa[owner])])
        row = np.column_stack(
            [r * n_classes + head_class for r in range(n_shared)]
            + [n_shared * n_classes + np.arange(n_heads)]
        )
        n_head_rows = n_shared * n_classes + n_heads
        if not factors.kappa.any():
            mix, row, n_head_rows = mix[:, :-1], row[:, :-1], n_shared * n_classes
        dtype = np.dtype(self.dtype)
        if previous is None:
            trunk = compile_trunk(self._layers(), shapes)
        else:
            trunk = previous.trunk
        F = trunk.n_features
        scale = 1 / np.sqrt(F * mix.shape[1])
        parameters = np.concatenate(
            [
                initial_parameters(trunk, rng),
                rng.uniform(-scale, scale, n_head_rows * F),
                np.zeros(n_head_rows),
            ]
        ).astype(dtype)
        state = _State(
            trunk,
            shapes,
            parameters,
            np.zeros((2, len(parameters)), dtype),
            head_start,
            head_class,
            np.ascontiguousarray(row, dtype=np.int64),
            np.ascontiguousarray(mix, dtype=dtype),
            n_shared,
            n_classes,
        )
        if previous is not None:
            kept = len(previous.head_class)
            if (
                (previous.n_shared, previous.n_classes) != (n_shared, n_classes)
                or previous.head_mix.shape[1] != mix.shape[1]
                or n_heads < kept
                or not np.array_equal(previous.head_class, head_class[:kept])
            ):
                raise ValueError(
                    "the earlier fit had another coupling, other features or other classes; "
                    "fit anew (warm_start=False)"
                )
            _carry_over(previous, state)
        return state, factors

    # -- what a fitted network holds -------------------------------------------------------------

    def get_weights(self):
        """Return copies of all parameters.

        Returns
        -------
        weights : dict of str to ndarray
            ``"<line>.<layer>.<name>"`` for the trunk, in the order of its layers; ``"shared"`` and
            ``"shared_intercept"``, the heads' s_r as (R, n_outputs, n_features) and (R, n_outputs);
            ``"own"`` and ``"own_intercept"``, the v_t divided by sqrt(κ_t), one row per output of
            each task (absent where every κ is 0).
        """
        check_is_fitted(self, "_state")
        return {name: view.copy() for name, view in _views(self._state).items()}

    def set_weights(self, weights):
        """Replace parameters.

        Parameters
        ----------
        weights : dict of str to array-like
            As :meth:`get_weights` gives; names left out keep their values.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If a name is unknown, or an array has another shape or is not finite.
        """
        check_is_fitted(self, "_state")
        views = _views(self._state)
        checked = {}
        for name, value in weights.items():
            if name not in views:
                raise ValueError(f"weights has {name!r}; the names are {', '.join(views)}")
            value = np.asarray(value, dtype=self._state.parameters.dtype)
            if value.shape != views[name].shape:
                raise ValueError(
                    f"weights[{name!r}] has shape {value.shape}; pass shape {views[name].shape}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"weights[{name!r}] contains NaN or infinity")
            checked[name] = value
        for name, value in checked.items():
            views[name][...] = value
        return self

    def _weights(self):
        H, intercept = self._state.heads()
        mix, row = self._state.head_mix, self._state.head_row
        weights = np.einsum("je,jef->jf", mix, H[row])
        return np.column_stack([weights, np.einsum("je,je->j", mix, intercept[row])])

    def _shared_weights(self):
        H, intercept = self._state.heads()
        R, K = self._state.n_shared, self._state.n_classes
        table = np.column_stack([H, intercept])[: R * K].reshape(R, K, H.shape[1] + 1)
        return np.einsum("r,rkf->kf", self.mixing_.mean(axis=0), table)

    @property
    def coef_(self):
        """w_t on the trunk's features: (n_tasks, n_features), or with softmax a row per output."""
        check_is_fitted(self, "_state")
        return self._weights()[:, :-1]

    @property
    def intercept_(self):
        """Intercepts of the heads, (n_tasks,), or with softmax one per output."""
        check_is_fitted(self, "_state")
        return self._weights()[:, -1]

    @property
    def _one_output(self):
        return self._classes.binary

    def _features(self, X):
        state = self._state
        X, lengths = _split_lengths(X, state, self._has_lengths)
        return core.network_forward(state.trunk.table, X, lengths, state.parameters, PREDICT_BATCH)

    def _scores(self, X, tasks):
        queries = query(self, X, tasks=tasks)
        features = self._features(queries.X)
        weights = self._weights()
        if queries.task is None:
            return queries, features @ weights[:, :-1].T + weights[:, -1]
        shared = self._shared_weights().astype(weights.dtype)
        if self._one_output:
            return queries, rowwise_scores(features, np.vstack([weights, shared]), queries.task)
        state = self._state
        scores = np.full((len(features), state.n_classes), -np.inf, dtype=weights.dtype)
        for t in np.unique(queries.task):
            rows = np.flatnonzero(queries.task == t)
            if t < 0:
                own, columns = shared, np.arange(state.n_classes)
            else:
                heads = slice(state.head_start[t], state.head_start[t + 1])
                own, columns = weights[heads], state.head_class[heads]
            scores[np.ix_(rows, columns)] = features[rows] @ own[:, :-1].T + own[:, -1]
        return queries, scores

    def transform(self, X, *, lengths=None):
        """Return the trunk's features, for another model to stand on.

        Parameters
        ----------
        X : array-like or tuple of them
            As in :meth:`fit`, but never a list.
        lengths : array-like of int of shape (n,), default=None

        Returns
        -------
        features : ndarray of shape (n, n_features)
            In the network's dtype.
        """
        check_is_fitted(self, "_state")
        X = self._flat(X, lengths)
        X = query_features(self, X)
        return self._features(X)

    def get_feature_names_out(self, input_features=None):
        """Names of what :meth:`transform` returns."""
        check_is_fitted(self, "_state")
        name = type(self).__name__.lower()
        return np.array([f"{name}{i}" for i in range(self._state.trunk.n_features)], dtype=object)

    def _flat(self, X, lengths):
        check_is_fitted(self, "_state")
        if self.task_column is not None and lengths is None:
            return X
        X, shapes, has_lengths = _flatten(self, X, lengths)
        if shapes != self._state.shapes:
            given = list(shapes)
            if [int(np.prod(s)) for s in given] != [int(np.prod(s)) for s in self._state.shapes]:
                return X  # the number of features is reported in scikit-learn's words
            raise ValueError(f"X has samples of shape {given}; in training {self._state.shapes}")
        if has_lengths != self._has_lengths:
            raise ValueError("lengths must be given to predict exactly where they were to fit")
        return X

    def to_torch(self):
        """Build the equivalent ``torch.nn.Module`` (extra ``torch``).

        Returns
        -------
        module : torch.nn.Module
            ``module(X, lengths=None)`` takes what :meth:`fit` takes as X, as a tensor or a tuple of
            tensors, and returns all heads' outputs, (n, n_outputs): a column per task, or with
            softmax a column per task and class. Its parameters are copies, trainable.

        Raises
        ------
        ImportError
            If PyTorch is not installed.
        """
        check_is_fitted(self, "_state")
        from fastmtl.torch_module import build

        return build(self)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


def query_features(estimator, X):
    """Check rows for `transform`, which asks for no task."""
    from fastmtl.observations import _check_X, split_task_column

    if estimator.task_column is not None:
        X, _ = split_task_column(X, estimator.task_column)
    return _check_X(estimator, X, reset=False)


class MultiTaskNetworkRegressor(RegressorMixin, _MultiTaskNetwork):
    """Regression on many related tasks by a network with a shared trunk and a head per task.

    Task t predicts ``w_t · f(x) + b_t`` with f the trunk's features and
    ``w_t = Σ_r B[t, r] s_r + v_t`` as in :class:`MultiTaskSGDRegressor`. A step takes `batch_size`
    rows and follows the gradient of the sum of the losses of all their labels, divided by the
    number of rows, plus ``alpha (½ Σ_r ‖s_r‖² + ½ Σ_t ‖v_t‖² / κ_t)`` over the heads (intercepts
    included) and ``weight_decay ½ ‖W‖²`` over the trunk's weights (biases left out).
    Standardise X, and y where its scale is far from 1.

    Parameters
    ----------
    loss : {"squared_error", "huber", "quantile", "poisson"}, default="squared_error"
        ``½(y−p)²``; quadratic within 1 and linear beyond; the median's; or with a log link, where
        `predict` returns rates.
    trunk : list of layers or None, default=None
        Layers of ``fastmtl.layers``. None stands for dense layers of `hidden_layer_sizes`.
    hidden_layer_sizes : tuple of int or int, default=(64, 32)
    activation : str, default="relu"
        Of the dense layers of `hidden_layer_sizes`; see :class:`fastmtl.layers.Dense`.
    coupling : {"mean", "independent", "pooled"} or TaskCoupling, default="mean"
        How the heads share: one shared head plus a task's own, nothing, or all.
    alpha : float, default=1e-4
        Penalty of the heads, non-negative.
    weight_decay : float, default=0.0
        Penalty of the trunk's weights, non-negative.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov"}, default="adam"
        Adam [1]_; Adam with both penalties as decoupled decay [2]_; or SGD, plain or with momentum.
    learning_rate_init : float, default=0.001
        First step size.
    learning_rate : {"constant", "cosine", "invscaling"} or callable, default="constant"
        Step size of each epoch: the first; falling to 0 along half a cosine over `max_iter`; the
        first divided by the square root of the epoch's number; or ``learning_rate(epoch)``, epochs
        counted from 0.
    batch_size : int, default=32
        Rows per step; 1 is per-sample SGD, which has a code path of its own.
    max_iter : int, default=100
        The most epochs.
    momentum : float, default=0.9
        Of ``"momentum"`` and ``"nesterov"``, in [0, 1).
    beta_1, beta_2, epsilon : float, default=0.9, 0.999, 1e-8
        Of Adam.
    clip_norm : float or None, default=None
        Gradients longer than this are shortened to it.
    task_weight : None, "balanced", "uncertainty", dict or array-like, default=None
        Weights of the tasks' summed losses. ``"balanced"`` weighs their means alike;
        ``"uncertainty"`` learns them [3]_: before each epoch a task's weight is set to the exact
        minimiser of ``exp(-s) L + ½ s``, half the inverse of its mean loss L of the epoch before.
    early_stopping : bool, default=False
        Keep `validation_fraction` of the rows aside, stop when their loss has not improved by
        `tol` for `n_iter_no_change` epochs, and return to the best epoch's weights.
    validation_fraction : float, default=0.1
    n_iter_no_change : int, default=10
    tol : float, default=1e-4
    dtype : {"float32", "float64"}, default="float32"
        In which the network computes, and predicts.
    task_column : int, str or None, default=None
        The column of a two-dimensional X that holds the task labels.
    unseen_tasks : {"shared", "error"}, default="shared"
        A task not seen in training is predicted with the shared head, or refused.
    warm_start : bool, default=False
        Start `fit` from the last solution.
    n_threads : int or None, default=1
        Threads that share each batch; they pay where a batch is a millisecond of work or more. The
        result depends on their number, not on timing. None and -1 take all cores.
    random_state : int, RandomState or None, default=None
        Seed of the initial weights, the order of rows, dropout and the validation rows.
    verbose : int, default=0
        1 shows a progress bar (needs the extra ``progress``).

    Attributes
    ----------
    tasks_ : ndarray of shape (n_tasks,)
        Task labels: sorted, or column numbers of Y, or positions in the list.
    coef_, intercept_ : ndarray of shape (n_tasks, n_features) and (n_tasks,)
        The heads.
    mixing_, kappa_ : ndarray of shape (n_tasks, R) and (n_tasks,)
        B and κ of the coupling.
    n_tasks_, n_iter_, n_features_in_ : int
    history_ : list of dict
        Of each epoch: ``loss`` (weighted sum over the labels, divided by the rows), ``task_loss``
        (means by task), ``gradient_norms`` (by layer, then the heads; of the last batch),
        ``learning_rate``, ``seconds``, and with early stopping ``validation_loss`` and
        ``validation_task_loss``.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    .. [2] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019.
    .. [3] A. Kendall, Y. Gal and R. Cipolla, "Multi-task learning using uncertainty to weigh
       losses for scene geometry and semantics", CVPR 2018.

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

    def __init__(
        self,
        *,
        loss="squared_error",
        trunk=None,
        hidden_layer_sizes=(64, 32),
        activation="relu",
        coupling="mean",
        alpha=1e-4,
        weight_decay=0.0,
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


class MultiTaskNetworkClassifier(ClassifierMixin, _MultiTaskNetwork):
    """Classification on many related tasks by a network with a shared trunk and a head per task.

    As :class:`MultiTaskNetworkRegressor`, with log loss. Where each task has two classes there is
    one score per task; with more, each task has a softmax over its own classes, of any number, and
    tasks that have a class in common share its vector. Forms of the data and the classes of a task
    are those of :class:`MultiTaskSGDClassifier`.

    Parameters
    ----------
    trunk, hidden_layer_sizes, activation
        The layers; see :class:`MultiTaskNetworkRegressor`.
    coupling, alpha, weight_decay
        How heads share, and the penalties.
    solver, learning_rate_init, learning_rate, batch_size, max_iter
        The optimiser.
    momentum, beta_1, beta_2, epsilon, clip_norm
        Its details.
    task_weight, early_stopping, validation_fraction, n_iter_no_change, tol
        Weights of the tasks, and when to stop.
    dtype, task_column, unseen_tasks, warm_start, n_threads, random_state, verbose
        All as in :class:`MultiTaskNetworkRegressor`.

    Attributes
    ----------
    classes_ : ndarray, or list of ndarray
        The class labels; for Y (n, n_tasks) a list with those of each task.
    task_classes_ : list of ndarray
        The class labels of each task, in every form.
    tasks_, coef_, intercept_, mixing_, kappa_, n_tasks_, n_iter_, n_features_in_, history_
        As in :class:`MultiTaskNetworkRegressor`; with softmax, ``coef_`` has a row per task and
        class.

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


class MultiTaskNetwork(_MultiTaskNetwork):
    """Regression and classification tasks in one network, with a loss for each task.

    Trunk, heads and training are those of :class:`MultiTaskNetworkRegressor`. A task with
    ``"log_loss"`` has a softmax over its own classes, which are numbers in y; the others have one
    output. The shared heads are shared among the regression tasks, and by class among the others.

    Parameters
    ----------
    loss : str, list of str or dict, default="squared_error"
        ``"squared_error"``, ``"huber"``, ``"quantile"``, ``"poisson"`` or ``"log_loss"``: one for
        all tasks, one for each in the order of ``tasks_``, or by task label.
    trunk, hidden_layer_sizes, activation
        The layers; see :class:`MultiTaskNetworkRegressor`.
    coupling, alpha, weight_decay
        How heads share, and the penalties. The default coupling is ``"independent"`` here.
    solver, learning_rate_init, learning_rate, batch_size, max_iter
        The optimiser.
    momentum, beta_1, beta_2, epsilon, clip_norm
        Its details.
    task_weight, early_stopping, validation_fraction, n_iter_no_change, tol
        Weights of the tasks, and when to stop; ``"uncertainty"`` balances unlike losses.
    dtype, task_column, unseen_tasks, warm_start, n_threads, random_state, verbose
        As in :class:`MultiTaskNetworkRegressor`; unseen tasks are always refused.

    Attributes
    ----------
    task_classes_ : list of ndarray or None
        The classes of each task; None for a regression task.
    tasks_, coef_, intercept_, mixing_, kappa_, n_tasks_, n_iter_, n_features_in_, history_
        As in :class:`MultiTaskNetworkRegressor`, with a row of ``coef_`` per output.

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
        trunk=None,
        hidden_layer_sizes=(64, 32),
        activation="relu",
        coupling="independent",
        alpha=1e-4,
        weight_decay=0.0,
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

    def _check_loss(self):
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


# -- data ----------------------------------------------------------------------------------------


def _flatten(model, X, lengths):
    """X as one matrix (or a list of them), lengths as its last column; and the samples' shapes."""
    if isinstance(X, list) and X and all(isinstance(p, tuple) or np.ndim(p) >= 2 for p in X):
        if lengths is not None and (
            not isinstance(lengths, list | tuple) or len(lengths) != len(X)
        ):
            raise ValueError(f"lengths must be a list of {len(X)} arrays, one per task, like X")
        parts = [
            _flatten_one(model, part, None if lengths is None else lengths[t])
            for t, part in enumerate(X)
        ]
        if any(shapes != parts[0][1] for _, shapes in parts):
            raise ValueError(f"X has samples of different shapes: {[s for _, s in parts][:4]}")
        return [part for part, _ in parts], parts[0][1], lengths is not None
    X, shapes = _flatten_one(model, X, lengths)
    return X, shapes, lengths is not None


def _flatten_one(model, X, lengths):
    if not isinstance(X, tuple):
        if (
            lengths is None
            and getattr(X, "ndim", np.asarray(X).ndim if not sp.issparse(X) else 2) <= 2
        ):
            width = X.shape[1] if hasattr(X, "shape") and len(X.shape) == 2 else None
            if width is None:
                X = np.asarray(X)
                width = X.shape[1] if X.ndim == 2 else 0
            return X, [(width - (model.task_column is not None),)]
        X = (X,)
    if model.task_column is not None:
        raise ValueError("task_column needs a two-dimensional X; pass tasks= instead")
    inputs = [np.asarray(part) for part in X]
    n = len(inputs[0])
    for i, part in enumerate(inputs):
        if part.ndim < 2 or len(part) != n:
            raise ValueError(
                f"input {i} of X has shape {part.shape}; pass arrays with {n} rows and two "
                "dimensions or more"
            )
    shapes = [part.shape[1:] for part in inputs]
    flat = [part.reshape(n, -1) for part in inputs]
    if lengths is not None:
        if inputs[0].ndim != 3:
            raise ValueError("lengths is given, but X is not of shape (n, steps, features)")
        lengths = np.asarray(lengths)
        steps = inputs[0].shape[1]
        if lengths.shape != (n,) or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"lengths has shape {lengths.shape} and dtype {lengths.dtype}; pass {n} integers"
            )
        if n and not (lengths.min() >= 1 and lengths.max() <= steps):
            raise ValueError(
                f"lengths run from {lengths.min()} to {lengths.max()}; pass 1 to {steps} steps"
            )
        # What lies past a sequence's end is never read, so NaN may stand there.
        past = np.arange(steps) >= lengths[:, None]
        first = np.where(past[..., None], inputs[0].dtype.type(0), inputs[0])
        flat[0] = first.reshape(n, -1)
        flat.append(lengths[:, None].astype(np.float64))
    return (flat[0] if len(flat) == 1 else np.hstack(flat)), shapes


def _split_lengths(X, state, has_lengths):
    """The matrix and the lengths as the core takes them."""
    lengths = np.empty(0, dtype=np.int32)
    if has_lengths:
        X, lengths = X[:, :-1], np.ascontiguousarray(X[:, -1], dtype=np.int32)
    return np.ascontiguousarray(X, dtype=state.parameters.dtype), lengths


# -- parameters ----------------------------------------------------------------------------------


def _views(state):
    """Named views of all parameters."""
    found = {}
    for line, layer in enumerate(state.trunk.layers):
        for name, where, shape in blocks(state.trunk, line):
            key = f"{line}.{type(layer).__name__.lower()}.{name}"
            found[key] = state.parameters[where].reshape(shape)
    H, intercept = state.heads()
    cut = state.n_shared * state.n_classes
    if cut:
        found["shared"] = H[:cut].reshape(state.n_shared, state.n_classes, -1)
        found["shared_intercept"] = intercept[:cut].reshape(state.n_shared, state.n_classes)
    if len(H) > cut:
        found["own"], found["own_intercept"] = H[cut:], intercept[cut:]
    return found


def _carry_over(previous, state):
    """Continue from an earlier state that has as many tasks or fewer."""
    old, new = previous.trunk.n_parameters, state.trunk.n_parameters
    state.parameters[:new] = previous.parameters[:old]
    state.moments[:, :new] = previous.moments[:, :old]
    state.steps = previous.steps
    before, after = _views(previous), _views(state)
    for name in ("shared", "shared_intercept", "own", "own_intercept"):
        if name in before:
            after[name][: len(before[name])] = before[name]
    F, rows_old, rows_new = state.trunk.n_features, previous.n_head_rows, state.n_head_rows
    for was, now in zip(previous.moments, state.moments):
        now[new : new + rows_old * F] = was[old : old + rows_old * F]
        cut = new + rows_new * F
        now[cut : cut + rows_old] = was[old + rows_old * F :]


# -- training ------------------------------------------------------------------------------------


def _train(model, observations, classes, state, task_weight, rng, max_iter, has_lengths):
    """Run epochs on `state` in place; return the history."""
    by_row = np.argsort(observations.row, kind="stable")
    row, task = observations.row[by_row], np.ascontiguousarray(observations.task[by_row])
    target = np.ascontiguousarray(classes.code[by_row], dtype=np.float64)
    sample_weight = observations.weight[by_row]
    sample_row, first = np.unique(row, return_index=True)
    sample_start = np.append(first, len(row)).astype(np.int64)
    n, n_tasks = len(sample_row), observations.n_tasks
    X, lengths = _split_lengths(observations.X, state, has_lengths)
    trunk, _dtype = state.trunk, state.parameters.dtype
    codes = model._loss_codes(observations, classes)
    widths = np.diff(state.head_start)[task]
    fixed = {
        "layers": trunk.table,
        "X": X,
        "lengths": lengths,
        "sample_row": sample_row.astype(np.int64),
        "sample_start": sample_start,
        "task": task,
        "target": target,
        "head_start": state.head_start,
        "head_row": state.head_row,
        "head_mix": state.head_mix,
        "loss": codes,
        "loss_parameter": np.where(codes == LOSSES["quantile"], 0.5, 1.0),
        "head_offset": trunk.n_parameters,
        "n_head_rows": state.n_head_rows,
        "max_outputs": int(np.add.reduceat(widths, sample_start[:-1]).max()),
        "gradient": np.zeros_like(state.parameters),
        "n_threads": resolve_threads(model.n_threads),
    }
    training, held_out = np.arange(n), None
    if model.early_stopping:
        shuffled = rng.permutation(n)
        n_held = max(1, round(model.validation_fraction * n))
        if n_held >= n:
            raise ValueError(
                f"validation_fraction is {model.validation_fraction}, which leaves no row of {n} "
                "to train on; lower it"
            )
        held_out, training = np.sort(shuffled[:n_held]), np.sort(shuffled[n_held:])
    optimiser = OPTIMISERS[model.solver]
    batch = min(model.batch_size, len(training))
    settings = np.zeros(12)
    settings[0], settings[1] = optimiser, batch
    settings[3], settings[4] = model.alpha, model.weight_decay
    settings[5] = model.beta_1 if optimiser == 3 else model.momentum
    settings[6], settings[7] = model.beta_2, model.epsilon
    settings[8] = model.clip_norm or 0.0
    settings[10] = rng.integers(2**31)
    settings[11] = model.solver == "adamw"
    rows_per_call = max(1, WORK_PER_CALL // (3 * trunk.work * batch)) * batch
    count = _task_counts(task, sample_weight, sample_start, training, n_tasks)
    uncertain = isinstance(model.task_weight, str) and model.task_weight == "uncertainty"

    norms = np.zeros(len(trunk.table) + 1)
    history, best, best_parameters, waited = [], np.inf, None, 0
    bar = progress(max_iter) if model.verbose else None
    try:
        for epoch in range(max_iter):
            started = time.perf_counter()
            rate = settings[2] = _rate(model, epoch, max_iter)
            weight = sample_weight * task_weight[task]
            order = training[rng.permutation(len(training))]
            task_loss = np.zeros(n_tasks)
            for begin in range(0, len(order), rows_per_call):
                part = order[begin : begin + rows_per_call]
                settings[9] = state.steps
                status = core.network_train(
                    order=part,
                    weight=weight,
                    parameters=state.parameters,
                    state=state.moments,
                    settings=settings,
                    layer_norms=norms,
                    task_loss=task_loss,
                    **fixed,
                )
                if status or not np.isfinite(state.parameters).all():
                    raise FloatingPointError(_diverged(model, trunk, norms, epoch))
                state.steps += -(-len(part) // batch)
            gradient_norms = np.sqrt(norms)
            mean_loss = task_loss / np.maximum(task_weight * count, 1e-300)
            entry = {
                "loss": float(task_loss.sum() / len(training)),
                "task_loss": mean_loss,
                "gradient_norms": gradient_norms,
                "learning_rate": float(rate),
            }
            if uncertain:
                task_weight = 0.5 / np.maximum(mean_loss, 1e-6)
            if held_out is not None:
                checking = settings.copy()
                checking[1], checking[2] = min(PREDICT_BATCH, len(held_out)), 0.0
                held_loss = np.zeros(n_tasks)
                core.network_train(
                    order=held_out,
                    weight=weight,
                    parameters=state.parameters,
                    state=state.moments,
                    settings=checking,
                    layer_norms=np.zeros_like(norms),
                    task_loss=held_loss,
                    **fixed,
                )
                entry["validation_loss"] = float(held_loss.sum() / len(held_out))
                held_count = _task_counts(task, weight, sample_start, held_out, n_tasks)
                with np.errstate(invalid="ignore"):
                    entry["validation_task_loss"] = held_loss / held_count
            entry["seconds"] = time.perf_counter() - started
            history.append(entry)
            if bar is not None:
                bar.update()
                bar.set_postfix(loss=f"{entry['loss']:.4g}")
            if held_out is not None:
                if entry["validation_loss"] < best - model.tol:
                    waited = 0
                else:
                    waited += 1
                if entry["validation_loss"] < best:
                    best, best_parameters = entry["validation_loss"], state.parameters.copy()
                if waited >= model.n_iter_no_change:
                    break
    finally:
        if bar is not None:
            bar.close()
    if best_parameters is not None:
        state.parameters[...] = best_parameters
    _warn_if_vanished(trunk, history[-1]["gradient_norms"])
    return history


def _task_counts(task, weight, sample_start, samples, n_tasks):
    """Summed weights of the labels of each task among the samples."""
    chosen = np.zeros(len(sample_start) - 1)
    chosen[samples] = 1
    return np.bincount(task, weight * np.repeat(chosen, np.diff(sample_start)), n_tasks)


def _rate(model, epoch, max_iter):
    first = model.learning_rate_init
    if callable(model.learning_rate):
        rate = float(model.learning_rate(epoch))
        if not 0 < rate < np.inf:
            raise ValueError(f"learning_rate({epoch}) is {rate}; return a positive finite number")
        return rate
    if model.learning_rate == "cosine":
        return first * 0.5 * (1 + np.cos(np.pi * epoch / max_iter))
    if model.learning_rate == "invscaling":
        return first / np.sqrt(epoch + 1)
    return first


def _diverged(model, trunk, norms, epoch):
    remedies = [f"lower learning_rate_init (now {model.learning_rate_init:g})"]
    if model.clip_norm is None:
        remedies.append("set clip_norm, for example to 1.0")
    remedies.append("standardise X and y")
    return f"training diverged in epoch {epoch + 1}: {', or '.join(remedies)}"


def _warn_if_vanished(trunk, norms):
    lines = np.flatnonzero(trunk.table[:, 7] > 0)
    if len(lines) and norms[-1] > 0 and norms[lines].max() < 1e-9 * norms[-1]:
        warnings.warn(
            "the gradient does not reach the trunk (it vanished on the way, or all its units are "
            "inactive); lower learning_rate_init, use activation='leaky_relu' or add LayerNorm()",
            ConvergenceWarning,
            stacklevel=4,
        )
