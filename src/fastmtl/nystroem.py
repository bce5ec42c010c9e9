"""Kernel machines for many rows: Nyström features of a sigmoid kernel, then the linear engine.

`SigmoidNystroem` maps x to features whose inner products approximate the kernel; `make_kernel_sgd`
joins it with a linear multi-task model, block by block where the features exceed the memory.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
    is_classifier,
)
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from fastmtl._core import gram as core
from fastmtl.config import resolve_threads
from fastmtl.estimators import check_number, check_word, score_in_form
from fastmtl.kernel_training import KERNELS
from fastmtl.kernels import LINEAR, WORK_PER_THREAD, empty_matrix, kernel_scale
from fastmtl.linear import MultiTaskSGDClassifier
from fastmtl.observations import is_list_form, split_task_column

__all__ = ["SigmoidNystroem", "make_kernel_sgd"]

BLOCK_ROWS = 2048
CANDIDATES_PER_LANDMARK = 4
FEATURES_AT_ONCE = 96  # whole panels of the product, for both dtypes


class SigmoidNystroem(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features whose inner products approximate a sigmoid kernel.

    With landmarks z_1, …, z_m and ``K_zz = U Λ Uᵀ`` the features of x are
    ``k(x, z) U |Λ|^(-1/2) Q`` [1]_; the rotation Q leaves inner products as they are and makes the
    matrix after k(x, z) lower triangular, for half the work. A sigmoid kernel may have negative
    eigenvalues; their part is left out or has its sign changed, see `indefinite`.

    Parameters
    ----------
    n_components : int, default=100
        The number of landmarks; at most the number of rows is used.
    kernel : {"sigmoid", "tanh", "rbf"}, default="sigmoid"
        ``"sigmoid"`` is the logistic ``1 / (1 + exp(-sigma (x·z + c)))``, ``"tanh"`` is
        ``tanh(gamma x·z + coef0)``, ``"rbf"`` is ``exp(-gamma ‖x - z‖²)``.
    sigma, gamma : {"scale", "auto"} or float, default="scale"
        ``"scale"`` is ``1 / (d · X.var())``, ``"auto"`` is ``1 / d``.
    c, coef0 : float, default=0.0
    landmarks : {"uniform", "kmeans", "leverage"}, default="uniform"
        Rows drawn evenly; centres of k-means over a sample; or rows drawn from a sample by their
        ridge leverage scores, which favours rows that the others do not span [2]_.
    indefinite : {"clip", "flip"}, default="clip"
        ``"clip"`` drops the eigenvectors of negative eigenvalues, ``"flip"`` keeps them with the
        eigenvalue's magnitude.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    components_ : ndarray of shape (n_landmarks, d)
        The landmarks.
    normalization_ : ndarray of shape (n_landmarks, n_features_out)
        ``U |Λ|^(-1/2) Q``, zero above its diagonal; eigenvalues below the precision of the dtype
        are left out.
    eigenvalues_ : ndarray of shape (n_landmarks,)
        Of the kernel on the landmarks, ascending; negative ones show how indefinite it is.
    n_features_in_ : int

    References
    ----------
    .. [1] C. Williams and M. Seeger, "Using the Nyström method to speed up kernel machines",
       NeurIPS 2001.
    .. [2] A. Alaoui and M. Mahoney, "Fast randomized kernel ridge regression with statistical
       guarantees", NeurIPS 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import SigmoidNystroem
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> features = SigmoidNystroem(n_components=50, sigma=0.1, random_state=0).fit_transform(X)
    >>> kernel = 1 / (1 + np.exp(-0.1 * X @ X.T))
    >>> bool(np.abs(features @ features.T - kernel).max() < 0.01)
    True
    """

    def __init__(
        self,
        n_components=100,
        *,
        kernel="sigmoid",
        sigma="scale",
        c=0.0,
        gamma="scale",
        coef0=0.0,
        landmarks="uniform",
        indefinite="clip",
        random_state=None,
    ):
        self.n_components = n_components
        self.kernel = kernel
        self.sigma = sigma
        self.c = c
        self.gamma = gamma
        self.coef0 = coef0
        self.landmarks = landmarks
        self.indefinite = indefinite
        self.random_state = random_state

    def fit(self, X, y=None):
        """Choose the landmarks.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d)
            float32 and float64 are kept as they come; other dtypes become float64.
        y : ignored

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If a parameter is out of its range, X is not as expected, or the kernel has no positive
            eigenvalue on the landmarks.
        """
        check_number(self, "n_components", low=1, integer=True)
        check_word(self, "kernel", ("sigmoid", "tanh", "rbf"))
        check_word(self, "landmarks", ("uniform", "kmeans", "leverage"))
        check_word(self, "indefinite", ("clip", "flip"))
        for name in ("sigma", "gamma"):
            if getattr(self, name) not in ("scale", "auto"):
                check_number(self, name, low=0.0, open_low=True)
        check_number(self, "c")
        check_number(self, "coef0")
        X = self._validate(X, reset=True)
        rng = check_random_state(self.random_state)
        function, names = KERNELS[self.kernel]
        arguments = {name: getattr(self, name) for name in names}
        for name in ("sigma", "gamma"):
            if isinstance(arguments.get(name), str):
                arguments[name] = kernel_scale(X, arguments[name], name)
        landmarks = self._choose(X, rng, lambda a, b: function(a, b, **arguments))
        gram = np.asarray(function(landmarks, landmarks, **arguments), dtype=np.float64)
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        magnitude = np.abs(values) if self.indefinite == "flip" else values
        # Below this the eigenvectors are noise, and dividing by them would raise it.
        floor = 10 * np.finfo(X.dtype).eps * np.abs(values).max()
        kept = np.flatnonzero(magnitude > floor)[::-1]
        if not len(kept):
            raise ValueError(
                "the kernel has no positive eigenvalue on the landmarks; choose other parameters, "
                "or indefinite='flip'"
            )
        self.components_ = landmarks
        self.eigenvalues_ = values
        whitening = vectors[:, kept] / np.sqrt(magnitude[kept])
        rotation = np.linalg.qr(whitening[: len(kept)].T)[0]
        self.normalization_ = np.tril(whitening @ rotation).astype(X.dtype)
        self._arguments = arguments
        return self

    def _choose(self, X, rng, kernel):
        n, m = X.shape[0], min(self.n_components, X.shape[0])
        if self.landmarks == "uniform" or m == n:
            return X[np.sort(rng.choice(n, m, replace=False))]
        n_candidates = min(n, CANDIDATES_PER_LANDMARK * m)
        candidates = X[np.sort(rng.choice(n, n_candidates, replace=False))]
        if self.landmarks == "kmeans":
            means = MiniBatchKMeans(m, n_init=1, max_iter=20, random_state=rng)
            centres = means.fit(candidates).cluster_centers_
            return np.ascontiguousarray(centres, dtype=X.dtype)
        gram = np.asarray(kernel(candidates, candidates), dtype=np.float64)
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        values = np.abs(values)
        # The ridge at which about m dimensions count.
        ridge = max(values.sum() - np.sort(values)[-m:].sum(), 1e-10 * values.sum()) / m
        leverage = np.square(vectors) @ (values / (values + ridge))
        chosen = rng.choice(n_candidates, m, replace=False, p=leverage / leverage.sum())
        return candidates[np.sort(chosen)]

    def transform(self, X):
        """Map rows to features.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d)
            Worked through by blocks of rows; beyond the answer it needs memory for one block only.

        Returns
        -------
        features : ndarray of shape (n, n_features_out), float32 for float32 X
        """
        check_is_fitted(self, "components_")
        X = self._validate(X, reset=False)
        function = KERNELS[self.kernel][0]
        dtype = np.result_type(X.dtype, self.normalization_.dtype)
        landmarks = self.components_.astype(dtype, copy=False)
        # Both products by the same engine: the threads of two would get in each other's way.
        projection = np.ascontiguousarray(self.normalization_.T, dtype=dtype)
        threads = resolve_threads(
            None, work=X.shape[0] * projection.size, work_per_thread=WORK_PER_THREAD
        )
        features = empty_matrix(X.shape[0], len(projection), dtype)
        buffer = np.empty((min(BLOCK_ROWS, X.shape[0]), landmarks.shape[0]), dtype=dtype)
        for begin in range(0, X.shape[0], BLOCK_ROWS):
            rows = X[begin : begin + BLOCK_ROWS].astype(dtype, copy=False)
            gram = function(rows, landmarks, out=buffer[: rows.shape[0]], **self._arguments)
            for first in range(0, len(projection), FEATURES_AT_ONCE):
                some = slice(first, first + FEATURES_AT_ONCE)
                out = features[begin : begin + BLOCK_ROWS, some]
                core.gram(
                    gram[:, first:],
                    projection[some, first:],
                    out,
                    *(LINEAR, 1.0, 0.0, 0, None, None, threads),
                )
        return features

    def _validate(self, X, *, reset):
        return validate_data(
            self,
            X=X,
            reset=reset,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            order="C",
        )

    @property
    def _n_features_out(self):
        return self.normalization_.shape[1]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def make_kernel_sgd(
    model=None,
    *,
    feature_map=None,
    task_column=None,
    cache_size=1000,
    n_passes=5,
    random_state=None,
):
    """Join a feature map with a linear multi-task model: kernel machines for millions of rows.

    Parameters
    ----------
    model : MultiTaskSGDClassifier or MultiTaskSGDRegressor, default=None
        None takes ``MultiTaskSGDClassifier()``. Its coupling, penalty and loss are
        those of the kernel machine.
    feature_map : transformer, default=None
        None takes ``SigmoidNystroem(1000)``.
    task_column : int, str or None, default=None
        The column of X that holds the task labels; it does not enter the feature map.
    cache_size : float, default=1000
        Megabytes that the features may take. Beyond, they are made block by block, and the model
        passes `n_passes` times over the blocks in random order with `partial_fit`.
    n_passes : int, default=5
    random_state : int, RandomState or None, default=None
        The seed of the blocks' order, of the model and of the map, where theirs is None.

    Returns
    -------
    estimator : estimator
        With ``fit(X, y, tasks=…)``, ``predict``, ``score`` and, for a classifier,
        ``decision_function`` and ``predict_proba``; fitted, it has ``feature_map_`` and ``model_``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSGDClassifier, SigmoidNystroem, make_kernel_sgd
    >>> rng = np.random.default_rng(0)
    >>> X, tasks = rng.normal(size=(400, 2)), rng.integers(0, 3, 400)
    >>> y = (X**2).sum(axis=1) < 1.4
    >>> machine = make_kernel_sgd(
    ...     MultiTaskSGDClassifier(alpha=1e-4),
    ...     feature_map=SigmoidNystroem(100, kernel="rbf"),
    ...     random_state=0,
    ... )
    >>> machine.fit(X, y, tasks=tasks).score(X, y, tasks=tasks) > 0.9
    True
    """
    return KernelSGD(
        model,
        feature_map=feature_map,
        task_column=task_column,
        cache_size=cache_size,
        n_passes=n_passes,
        random_state=random_state,
    )


def _model_has(name):
    def check(machine):
        model = machine._own_model() if not hasattr(machine, "model_") else machine.model_
        getattr(model, name)
        if name == "predict_proba" and getattr(model, "loss", name) != "log_loss":
            raise AttributeError(f"predict_proba needs loss='log_loss', but loss is {model.loss!r}")
        return True

    return check


class KernelSGD(BaseEstimator):
    """A feature map and a linear multi-task model as one estimator; see `make_kernel_sgd`."""

    def __init__(
        self,
        model=None,
        *,
        feature_map=None,
        task_column=None,
        cache_size=1000,
        n_passes=5,
        random_state=None,
    ):
        self.model = model
        self.feature_map = feature_map
        self.task_column = task_column
        self.cache_size = cache_size
        self.n_passes = n_passes
        self.random_state = random_state

    def _own_model(self):
        return MultiTaskSGDClassifier() if self.model is None else self.model

    def fit(self, X, y, *, tasks=None, sample_weight=None):
        """Fit the map on the rows of X, then the model on their features.

        Parameters
        ----------
        X, y, tasks, sample_weight
            In one of the three forms of :class:`MultiTaskSGDClassifier`, missing labels included.

        Returns
        -------
        self : object
        """
        check_number(self, "cache_size", low=0.0, open_low=True)
        check_number(self, "n_passes", low=1, integer=True)
        rng = check_random_state(self.random_state)
        X, tasks = self._split(X, tasks)
        model = self._seeded(self._own_model(), rng)
        given = SigmoidNystroem(1000) if self.feature_map is None else self.feature_map
        feature_map = self._seeded(given, rng)
        feature_map.fit(_stacked(X))
        n = _stacked_length(X)
        width = feature_map.transform(_first_row(X))
        if n * width.shape[1] * width.dtype.itemsize <= self.cache_size * 2**20:
            if is_list_form(X):
                features = [feature_map.transform(part) for part in X]
            else:
                features = feature_map.transform(X)
            model.fit(features, y, tasks=tasks, sample_weight=sample_weight)
        else:
            self._fit_by_blocks(model, feature_map, X, y, tasks, sample_weight, width, rng)
        self.model_, self.feature_map_ = model, feature_map
        return self

    def _seeded(self, estimator, rng):
        estimator = clone(estimator)
        parameters = estimator.get_params(deep=False)
        if "random_state" in parameters and parameters["random_state"] is None:
            estimator.set_params(random_state=rng.randint(2**31 - 1))
        return estimator

    def _fit_by_blocks(self, model, feature_map, X, y, tasks, sample_weight, width, rng):
        if is_list_form(X):
            sizes = [part.shape[0] for part in X]
            tasks = np.repeat(np.arange(len(X)), sizes)
            y = np.concatenate([np.asarray(part) for part in y])
            if sample_weight is not None:
                sample_weight = np.concatenate([np.asarray(w) for w in sample_weight])
            X = _stacked(X)
        y = np.asarray(y)
        n = X.shape[0]
        if len(y) != n:
            raise ValueError(f"y has {len(y)} entries for {n} rows of X; pass one target per row")
        if tasks is not None:
            tasks = np.asarray(tasks)
            if tasks.shape != (n,):
                raise ValueError(
                    f"tasks has shape {tasks.shape} for {n} rows of X; pass one label per row"
                )
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight)
        present = _present(y)
        known = {"classes": np.unique(y[present])} if is_classifier(model) else {}
        room = self.cache_size * 2**20 / (width.shape[1] * width.dtype.itemsize)
        size = int(max(1, min(n, room // 2, 64 * BLOCK_ROWS)))
        first = np.zeros(0, dtype=np.int64)
        if tasks is not None:  # the first block must know every task, for their sorted order
            first = np.unique(tasks, return_index=True)[1]
        elif y.ndim == 2:
            first = np.unique(present.argmax(axis=0))
        for passed in range(self.n_passes):
            order = rng.permutation(n)
            if passed == 0:
                order = np.concatenate([first, np.setdiff1d(order, first, assume_unique=True)])
                order[len(first) :] = rng.permutation(order[len(first) :])
                size = max(size, len(first))
            for begin in range(0, n, size):
                rows = order[begin : begin + size]
                model.partial_fit(
                    feature_map.transform(X[rows]),
                    y[rows],
                    **known,
                    tasks=None if tasks is None else tasks[rows],
                    sample_weight=None if sample_weight is None else sample_weight[rows],
                )
                known = {}

    def _split(self, X, tasks):
        if self.task_column is None:
            if is_list_form(X):
                return [
                    part.tocsr() if sp.issparse(part) else np.asarray(part) for part in X
                ], tasks
            return (X.tocsr() if sp.issparse(X) else np.asarray(X)), tasks
        if tasks is not None:
            raise ValueError("both tasks and task_column are given; pass one of them")
        X, tasks = split_task_column(X, self.task_column)
        return (X if sp.issparse(X) else np.asarray(X)), tasks

    def _call(self, name, X, tasks):
        """Call the model's method on the features, by blocks where they exceed `cache_size`."""
        check_is_fitted(self, "model_")
        X, tasks = self._split(X, tasks)
        method = getattr(self.model_, name)
        if is_list_form(X):
            return method([self.feature_map_.transform(part) for part in X])
        n = X.shape[0]
        width = self.feature_map_.transform(X[:1])
        size = int(max(1, self.cache_size * 2**20 // (width.shape[1] * width.dtype.itemsize)))
        if size >= n:
            return method(self.feature_map_.transform(X), tasks=tasks)
        answers = []
        for begin in range(0, n, size):
            part = slice(begin, begin + size)
            own = None if tasks is None else np.asarray(tasks)[part]
            answers.append(method(self.feature_map_.transform(X[part]), tasks=own))
        if isinstance(answers[0], list):
            return [np.concatenate(parts) for parts in zip(*answers)]
        return np.concatenate(answers)

    def predict(self, X, *, tasks=None):
        """Predict targets or class labels, as the model does.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
        tasks : array-like of shape (n,), default=None

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        return self._call("predict", X, tasks)

    @available_if(_model_has("decision_function"))
    def decision_function(self, X, *, tasks=None):
        """Scores of the classes, as the model gives them."""
        return self._call("decision_function", X, tasks)

    @available_if(_model_has("predict_proba"))
    def predict_proba(self, X, *, tasks=None):
        """Class probabilities, where the model's loss is ``"log_loss"``."""
        return self._call("predict_proba", X, tasks)

    def score(self, X, y, sample_weight=None, *, tasks=None):
        """The model's score: accuracy, or R²."""
        metric = accuracy_score if is_classifier(self) else r2_score
        return score_in_form(metric, y, self.predict(X, tasks=tasks), sample_weight)

    @property
    def classes_(self):
        """The model's class labels."""
        return self.model_.classes_

    @property
    def tasks_(self):
        """The model's task labels."""
        return self.model_.tasks_

    @property
    def n_features_in_(self):
        """The number of features before the map, without the task column."""
        return self.feature_map_.n_features_in_

    def __sklearn_tags__(self):
        return get_tags(self._own_model())


def _present(y):
    """Which labels are there: neither NaN nor None."""
    if y.dtype.kind == "f":
        return ~np.isnan(y)
    if y.dtype.kind != "O":
        return np.ones(y.shape, dtype=bool)
    return np.array([v is not None and v == v for v in y.ravel()], dtype=bool).reshape(y.shape)


def _stacked(X):
    if not is_list_form(X):
        return X
    return sp.vstack(X, format="csr") if any(map(sp.issparse, X)) else np.concatenate(X)


def _stacked_length(X):
    return sum(part.shape[0] for part in X) if is_list_form(X) else X.shape[0]


def _first_row(X):
    return X[0][:1] if is_list_form(X) else X[:1]
