"""What the estimators of networks share: settings, forms of X, weights in and out, features."""

from __future__ import annotations

import inspect
import numbers
import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastmtl._core import network as core
from fastmtl.config import resolve_threads
from fastmtl.coupling import TaskRelations, resolve_coupling
from fastmtl.estimators import OnnxMixin, check_number, check_word, rowwise_scores, task_weights
from fastmtl.layers import Dense
from fastmtl.network_relations import evidence_of
from fastmtl.network_state import LOSSES, SOFTMAX, named_views, start
from fastmtl.network_training import (
    LEARNED,
    OPTIMISERS,
    PREDICT_BATCH,
    split_lengths,
    train,
)
from fastmtl.observations import observe, query

SETTINGS = """\
trunk : list of layers or None, default=None
    Layers of ``fastmtl.layers``. None stands for dense layers of `hidden_layer_sizes`.
hidden_layer_sizes : tuple of int or int, default=(64, 32)
activation : str, default="relu"
    Of the dense layers of `hidden_layer_sizes`; see :class:`fastmtl.layers.Dense`.
coupling : {"mean", "independent", "pooled", "learn"} or TaskCoupling, default="{coupling}"
    How the heads share: one shared head plus a task's own, nothing, all, or relations that are
    learned while the trunk is: after 4, 16, 64, … epochs C maximises the marginal likelihood of
    the labels given the features (:meth:`TaskCoupling.learn`, of which networks take `rank`),
    and training goes on from the same heads under it.
alpha : float, default=1e-3
    Penalty of the heads, non-negative.
weight_decay : float, default=0.002
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
gradient_surgery : None or "pcgrad", default=None
    ``"pcgrad"`` takes from each task's gradient of the trunk what opposes another's [4]_, at
    the price of a pass for each task in a batch.
task_weight : None, "balanced", "uncertainty", "gradnorm", dict or array-like, default=None
    Weights of the tasks' summed losses. ``"balanced"`` weighs their means alike. Two are
    learned, set anew before each epoch: ``"uncertainty"`` [3]_ takes the exact minimiser of
    ``exp(-s) L + ½ s``, half the inverse of a task's mean loss L of the epoch before;
    ``"gradnorm"`` [5]_ the weights at which the lengths of the tasks' gradients, in the last
    shared layer, are proportional to ``r**1.5``, where r is the share of its first loss that a
    task still has.
early_stopping : bool, default=False
    Keep `validation_fraction` of the rows aside, stop when their loss has not improved by
    `tol` for `n_iter_no_change` epochs, and return to the best epoch's weights. With learned
    task weights that loss is the mean of the logarithms of the tasks' mean losses.
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
"""

REFERENCES = """\
References
----------
.. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.
.. [2] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019.
.. [3] A. Kendall, Y. Gal and R. Cipolla, "Multi-task learning using uncertainty to weigh
   losses for scene geometry and semantics", CVPR 2018.
.. [4] T. Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020.
.. [5] Z. Chen et al., "GradNorm: gradient normalization for adaptive loss balancing in deep
   multitask networks", ICML 2018.
"""


def documented(cls):
    """Fill in what the docstrings of all networks have in common."""
    if cls.__doc__ is not None:  # as it is under python -OO
        coupling = inspect.signature(cls).parameters["coupling"].default
        text = inspect.cleandoc(cls.__doc__).replace("{references}\n", REFERENCES)
        cls.__doc__ = text.replace("{settings}\n", SETTINGS.replace("{coupling}", coupling))
    return cls


class NetworkBase(OnnxMixin, TaskRelations, TransformerMixin, BaseEstimator):
    def __init__(
        self,
        *,
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
        self.gradient_surgery = gradient_surgery
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

        Warns
        -----
        UserWarning
            If features are far from unit scale: a root mean square above 30, or all below 0.01.
        ConvergenceWarning
            If the gradient does not reach a layer.
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
        if previous is None:
            _warn_of_scale(observations.X[:, :-1] if has_lengths else observations.X)
        classes = self._encode(observations, known)
        seed = check_random_state(self.random_state)
        rng = np.random.default_rng(seed.randint(2**31))
        if resolve_coupling(self.coupling).learning is not None:
            evidence_of(self._loss_codes(observations, classes))
        state = start(self, observations, classes, shapes, previous, rng)
        weights = self.task_weight
        if not (isinstance(weights, str) and weights in LEARNED):
            weights = task_weights(self, observations)
        history, state = train(
            self, observations, classes, state, weights, rng, max_iter, has_lengths
        )
        self._state, self._classes, self._has_lengths = state, classes, has_lengths
        self.tasks_, self.n_tasks_ = observations.tasks, observations.n_tasks
        self.input_form_ = observations.form
        self.mixing_, self.kappa_ = state.factors
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

    def _loss_parameters(self, codes):
        return np.zeros(len(codes))

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
        if self.gradient_surgery is not None:
            check_word(self, "gradient_surgery", ("pcgrad",))
        if not callable(self.learning_rate):
            check_word(self, "learning_rate", ("constant", "cosine", "invscaling"))
        try:
            known_dtype = np.dtype(self.dtype) in (np.float32, np.float64)
        except TypeError:
            known_dtype = False
        if not known_dtype:
            raise ValueError(f"dtype is {self.dtype!r}; pass 'float32' or 'float64'")
        learning = resolve_coupling(self.coupling).learning
        if learning is not None and learning[1:] != ("identity", "unit"):
            raise ValueError(
                f"coupling is {self.coupling!r}; networks take TaskCoupling.learn with rank alone: "
                "their features are learned anyway, and alpha is the strength of the penalty"
            )
        resolve_threads(self.n_threads)

    def _check_loss(self):
        self._check_loss_words()

    def _check_loss_words(self):
        check_word(self, "loss", self._losses)

    def _layers(self):
        if self.trunk is not None:
            return self.trunk
        sizes = self.hidden_layer_sizes
        sizes = (sizes,) if isinstance(sizes, numbers.Integral) else sizes
        return [Dense(units, self.activation) for units in sizes]

    # -- what a fitted network holds -------------------------------------------------------------

    def get_weights(self):
        """Return copies of all parameters.

        Returns
        -------
        weights : dict of str to ndarray
            ``"<line>.<layer>.<name>"`` for the trunk, in the order of its layers; ``"shared"`` and
            ``"shared_intercept"``, the heads' s_r as (R, n_outputs, n_features) and (R, n_outputs);
            ``"own"`` and ``"own_intercept"``, the v_t divided by sqrt(κ_t), one row per output of
            each task (absent where every κ is 0). Of regression, ``"targets"``, (2, 2): what the
            heads' outputs are multiplied by and then shifted by, for numbers and for logarithms of
            rates. All else is in the units of standardised targets.
        """
        check_is_fitted(self, "_state")
        return {name: view.copy() for name, view in named_views(self._state).items()}

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
        views = named_views(self._state)
        checked = {}
        for name, value in weights.items():
            if name not in views:
                raise ValueError(f"weights has {name!r}; the names are {', '.join(views)}")
            value = np.asarray(value, dtype=views[name].dtype)
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
        return self._state.in_units(self._state.head_weights())

    def _shared_weights(self):
        H, intercept = self._state.heads()
        R, K = self._state.n_shared, self._state.n_classes
        table = np.column_stack([H, intercept])[: R * K].reshape(R, K, H.shape[1] + 1)
        shared = np.einsum("r,rkf->kf", self.mixing_.mean(axis=0), table)
        return self._state.in_units(shared.astype(H.dtype), [0] * K)

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
        X, lengths = split_lengths(X, state, self._has_lengths)
        return core.network_forward(state.trunk.table, X, lengths, state.parameters, PREDICT_BATCH)

    def _scores(self, X, tasks):
        queries = query(self, X, tasks=tasks)
        features = self._features(queries.X)
        weights = self._weights()
        if queries.task is None:
            return queries, features @ weights[:, :-1].T + weights[:, -1]
        shared = self._shared_weights()
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
        tags.transformer_tags.preserves_dtype = [np.dtype(self.dtype).name]
        return tags


def _warn_of_scale(X):
    scale = np.sqrt(np.einsum("ij,ij->j", X, X, dtype=np.float64) / len(X))
    large, most = int(np.count_nonzero(scale > 30)), scale.max(initial=0.0)
    if large:
        found = f"{large} of {len(scale)} features with a root mean square above 30"
    elif 0 < most < 0.01:
        found = "no feature with a root mean square above 0.01"
    else:
        return
    warnings.warn(
        f"X has {found} (the greatest is {most:.3g}); networks learn from features near zero and "
        "of unit scale: standardise X, for example by StandardScaler() before the network",
        UserWarning,
        stacklevel=4,
    )


def query_features(estimator, X):
    """Check rows for `transform`, which asks for no task."""
    from fastmtl.observations import _check_X, split_task_column

    if estimator.task_column is not None:
        X, _ = split_task_column(X, estimator.task_column)
    return _check_X(estimator, X, reset=False)


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
