"""How far to share, chosen by cross-validation: the path from independent tasks to pooled ones.

Tasks about a common mean have ``C = 11ᵀ + κ I`` and the penalty alpha C⁻¹. Raising κ alone also
weakens the penalty, so a grid over alpha and κ would be skewed. Here strengths are those *at unit
variance*, ``a``: every coefficient has the prior variance 1/a whatever κ, with correlation
``1 / (1 + κ)`` between tasks; the model then has ``alpha = a (1 + κ)``. κ = ∞ is one model per task
and κ = 0 one for all, both with ``alpha = a``.
"""

from __future__ import annotations

import numbers
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import joblib
import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import _safe_indexing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from fastmtl.coupling import TaskCoupling, resolve_coupling
from fastmtl.estimators import progress
from fastmtl.linear import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.metrics import (
    TaskPart,
    average_of,
    check_average,
    joined,
    prepared,
    present_labels,
    resolve_metric,
    respond,
    score_part,
)
from fastmtl.observations import is_list_form, split_task_column, stack_list, task_codes
from fastmtl.ridge_fits import RidgeFits
from fastmtl.splitters import TaskStratifiedKFold

__all__ = ["MultiTaskSGDClassifierCV", "MultiTaskSGDRegressorCV", "PoolingPath", "pooling_path"]


class TaskData:
    """Data of any form, whose rows can be fitted, predicted and scored task by task.

    The list form becomes the long one, which gives identical fits.
    """

    def __init__(self, estimator, X, y, tasks=None, sample_weight=None):
        if is_list_form(X):
            if tasks is not None:
                raise ValueError("X is a list with one matrix per task; tasks cannot be given too")
            X, y, tasks, sample_weight = stack_list(X, y, sample_weight)
        if sp.issparse(X):
            X = X.tocsr()
        elif not hasattr(X, "shape") and not isinstance(X, tuple):
            X = np.asarray(X)
        self.X, self.passed_tasks = X, None if tasks is None else np.asarray(tasks)
        self.y = y.to_numpy() if hasattr(y, "to_numpy") else np.asarray(y)
        self.n_rows = X[0].shape[0] if isinstance(X, tuple) else X.shape[0]
        if len(self.y) != self.n_rows:
            raise ValueError(
                f"y has {len(self.y)} entries for {self.n_rows} rows of X (inconsistent numbers "
                "of samples); pass one target per row"
            )
        self.weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        column = column_of(estimator)
        if tasks is None and column is not None:
            tasks = split_task_column(X, column)[1]
        self.matrix = tasks is None and self.y.ndim == 2
        if self.matrix:
            self.present = present_labels(self.y)
            n_tasks = self.y.shape[1]
            self.tasks = np.asarray(y.columns) if hasattr(y, "columns") else np.arange(n_tasks)
            self.code = None
        else:
            if self.y.ndim == 2 and self.y.shape[1] == 1:
                self.y = self.y.ravel()
            if self.y.ndim != 1:
                raise ValueError(f"y has shape {self.y.shape}; with tasks pass shape (n,)")
            if tasks is None:
                self.tasks = np.arange(1)
                self.code = np.zeros(self.n_rows, dtype=np.int32)
            else:
                self.tasks, self.code = task_codes(tasks, self.n_rows)
        self.classes = None
        if is_classifier(estimator):
            columns = [self._column(t)[1] for t in range(len(self.tasks))]
            self.classes = [np.unique(own) for own in (columns if self.matrix else [self.y])]

    @property
    def n_tasks(self):
        return len(self.tasks)

    def _column(self, t):
        """Rows with a label of task t, and the labels."""
        if not self.matrix:
            rows = np.flatnonzero(self.code == t)
            return rows, self.y[rows]
        rows = np.flatnonzero(self.present[:, t])
        own = self.y[rows, t]
        return rows, np.array(own.tolist()) if own.dtype.kind == "O" and len(own) else own

    def folds(self, cv):
        """Training and test rows: `cv` is a number of folds, a splitter or an iterable."""
        if isinstance(cv, numbers.Integral) and not isinstance(cv, bool):
            if cv < 2:
                raise ValueError(f"cv is {cv}; pass at least 2 folds")
            if self.n_rows < 2:
                raise ValueError(
                    f"cross-validation needs at least 2 rows, but X has 1 sample "
                    f"(n_samples={self.n_rows})"
                )
            cv = TaskStratifiedKFold(min(cv, self.n_rows), shuffle=True, random_state=0)
        if hasattr(cv, "split"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The groups parameter is ignored")
                return list(cv.split(np.zeros((self.n_rows, 1)), self.y, self.code))
        return [(np.asarray(train), np.asarray(test)) for train, test in cv]

    def fit(self, estimator, rows):
        arguments = {}
        if self.passed_tasks is not None:
            arguments["tasks"] = self.passed_tasks[rows]
        if self.weight is not None:
            arguments["sample_weight"] = self.weight[rows]
        return estimator.fit(self._rows(rows), self.y[rows], **arguments)

    def exact_fits(self, estimator, folds):
        """For each fold `RidgeFits` on its training rows, or None where there are none."""
        found = []
        for train, _ in folds:
            parts = (None if a is None else a[train] for a in (self.passed_tasks, self.weight))
            found.append(RidgeFits.of(estimator, self._rows(train), self.y[train], *parts))
        return found

    def _rows(self, rows):
        if isinstance(self.X, tuple):  # the inputs of a network
            return tuple(part[rows] for part in self.X)
        return _safe_indexing(self.X, rows)

    def respond(self, estimator, rows, metric):
        """What the metric scores, one array for each column of y, classes in their full order."""
        own = None if self.passed_tasks is None else self.passed_tasks[rows]
        if metric.response == "score" and any(len(each) > 2 for each in self.classes):
            metric = metric._replace(response="proba")
        predicted, labels = respond(estimator, self._rows(rows), metric, own)
        if not self.matrix:
            predicted, labels = [predicted], [labels]
        elif not isinstance(predicted, list):
            predicted = list(np.asarray(predicted).T)
        if metric.response == "predict":
            return [np.asarray(column) for column in predicted]
        return [_all_classes(*each) for each in zip(predicted, labels, self.classes)]

    def parts(self, columns, rows, metric):
        """The `TaskPart` of each task, from predictions of some rows."""
        if self.matrix:
            groups = [np.flatnonzero(self.present[rows, t]) for t in range(self.n_tasks)]
        else:
            order = np.argsort(self.code[rows], kind="stable")
            count = np.bincount(self.code[rows], minlength=self.n_tasks)
            groups = np.split(order, np.cumsum(count)[:-1])
        found = []
        for t, local in enumerate(groups):
            at, own = rows[local], t if self.matrix else 0
            truth = self.y[at, t] if self.matrix else self.y[at]
            if truth.dtype.kind == "O" and len(truth):
                truth = np.array(truth.tolist())
            labels = None if metric.response == "predict" else self.classes[own]
            weight = np.ones(len(at)) if self.weight is None else self.weight[at]
            weight = weight[:, t] if weight.ndim == 2 else weight
            truth, predicted = prepared(truth, columns[own][local], metric, labels)
            found.append(TaskPart(truth, predicted, weight, at))
        return found

    def scores(self, estimator, rows, metric, average):
        """Each task's score on some rows, and the average."""
        parts = self.parts(self.respond(estimator, rows, metric), rows, metric)
        each = np.array([score_part(metric, part)[0] for part in parts])
        if average == "pooled":
            return each, float(score_part(metric, joined(parts))[0])
        weight = np.array([part.weight.sum() for part in parts])
        return each, average_of(metric, each, weight, average)


def _all_classes(predicted, labels, classes):
    """Columns of probabilities for all classes, zero for those that the model never saw."""
    predicted = np.asarray(predicted)
    if predicted.ndim == 1 or len(labels) == len(classes):
        return predicted
    wide = np.zeros((len(predicted), len(classes)), dtype=predicted.dtype)
    wide[:, np.searchsorted(classes, labels)] = predicted
    return wide


def column_of(estimator):
    """The task column of an estimator, or of the one inside a search over SGD models."""
    if hasattr(estimator, "steps"):
        if getattr(estimator.steps[-1][1], "task_column", None) is not None:
            raise ValueError(
                "the last step of the pipeline has a task_column, which counts columns after its "
                "transformers; pass tasks instead, with metadata routing, or transform X beforehand"
            )
        return None
    return getattr(estimator, "task_column", None)


def default_metric(estimator):
    """Squared error, or for classifiers the log loss where there are probabilities."""
    if not is_classifier(estimator):
        return "mse"
    loss = getattr(getattr(estimator, "estimator", None) or estimator, "loss", None)
    return "log_loss" if loss == "log_loss" else "accuracy"


def coupling_parameter(estimator):
    """The name of the parameter that couples tasks, as `set_params` takes it."""
    names = [n for n in estimator.get_params() if n == "coupling" or n.endswith("__coupling")]
    if len(names) != 1:
        raise ValueError(
            f"estimator is {type(estimator).__name__} with {len(names)} parameters called coupling "
            f"({names}); pass an estimator, or a pipeline around one, that has exactly one"
        )
    return names[0]


def parameters_at(estimator, kappa, strength):
    """The parameters of an estimator for κ and a strength at unit variance."""
    coupling = coupling_parameter(estimator)
    prefix = coupling[: -len("coupling")]
    if kappa == 0 or np.isinf(kappa):
        word, scale = ("pooled" if kappa == 0 else "independent"), 1.0
    else:
        word, scale = TaskCoupling.mean(float(kappa)), 1.0 + kappa
    name = strength_parameter(estimator)
    own = strength / scale if name == prefix + "C" else strength * scale
    return {coupling: word, name: float(own)}


def strength_parameter(estimator):
    prefix = coupling_parameter(estimator)[: -len("coupling")]
    names = estimator.get_params()
    return prefix + "alpha" if prefix + "alpha" in names else prefix + "C"


def _path_of_fold(estimator, data, fold, ridge, kappas, strength, metric, average):
    """Scores along the path on one fold: from pooled outwards, each fit starting at the last."""
    train, test = fold
    model = clone(estimator)
    warm = ridge is None and hasattr(model, "_gains_by_a_start") and model._gains_by_a_start()
    if warm:
        model.set_params(warm_start=True)
    found = {}
    for kappa in sorted(kappas):
        if np.isinf(kappa) and warm:
            model = clone(estimator)  # has no shared part to start from
        parameters = parameters_at(estimator, kappa, strength)
        if ridge is not None:
            model = ridge.fit(**parameters)
        else:
            data.fit(model.set_params(**parameters), train)
        found[kappa] = data.scores(model, test, metric, average)
    each, averaged = zip(*(found[kappa] for kappa in kappas))
    return np.array(each), np.array(averaged)


def pooling_path(
    estimator,
    X,
    y,
    tasks=None,
    *,
    n_kappa=9,
    kappas=None,
    alphas=None,
    cv=5,
    metric=None,
    average="micro",
    sample_weight=None,
    n_jobs=None,
):
    """Cross-validate an estimator from independent tasks to pooled ones.

    Along the path the prior variance of every coefficient stays what it is while the correlation
    between tasks, ``1 / (1 + κ)``, goes from 0 to 1; the ends are exactly the couplings
    ``"independent"`` and ``"pooled"`` with the same alpha. In between the model has
    ``TaskCoupling.mean(κ)`` with ``alpha (1 + κ)`` (``C / (1 + κ)`` where it has a C).

    Parameters
    ----------
    estimator : estimator
        Any with a parameter `coupling`: linear models, kernel machines, networks, or a pipeline
        around one. Linear models of a smooth loss start each fit at the last one's solution, unless
        SGD solves them.
    X, y, tasks, sample_weight
        The data in one of the three forms; with a `task_column` no `tasks`.
    n_kappa : int, default=9
        Points on the path, at least 3: ∞, then κ from 100 to 0.01 evenly in the logarithm, then 0.
    kappas : array-like, default=None
        The points themselves, in [0, ∞].
    alphas : array-like, default=None
        Strengths (values of alpha, or C) at the ends of the path; None is the estimator's own.
    cv : int, splitter or iterable of (train, test), default=5
        A number means ``TaskStratifiedKFold(cv, shuffle=True, random_state=0)``. Splitters get the
        tasks as groups, so ``LeaveTasksOut(5)`` measures the service of unseen tasks.
    metric : str or callable, default=None
        See :func:`task_scores`; None is ``"mse"`` for regressors, and for classifiers
        ``"log_loss"`` with ``loss="log_loss"`` and ``"accuracy"`` otherwise.
    average : {"micro", "macro", "worst", "pooled"}, default="micro"
        How a fold's scores are averaged over tasks.
    n_jobs : int, default=None
        Threads over folds and strengths (joblib).

    Returns
    -------
    path : PoolingPath

    Raises
    ------
    ValueError
        If an argument is out of range, or the estimator has no `coupling`.

    Examples
    --------
    >>> from fastmtl import MultiTaskSGDRegressor, datasets, pooling_path
    >>> X, y, tasks = datasets.make_multitask_regression(30, 10, 8, kappa=0.1, random_state=0)
    >>> path = pooling_path(MultiTaskSGDRegressor(alpha=0.01), X, y, tasks, n_kappa=5)
    >>> path.kappas
    array([  inf, 1.e+02, 1.e+00, 1.e-02, 0.e+00])
    >>> 0 < path.best_kappa < 100
    True
    """
    kappas = _check_kappas(kappas, n_kappa)
    name = strength_parameter(estimator)
    if alphas is None:
        alphas = [estimator.get_params()[name]]
    alphas = _positive(alphas, "alphas")
    metric = resolve_metric(default_metric(estimator) if metric is None else metric)
    check_average(average)
    data = TaskData(estimator, X, y, tasks, sample_weight)
    folds = data.folds(cv)
    exact = data.exact_fits(estimator, folds)
    found = joblib.Parallel(n_jobs, prefer="threads")(
        joblib.delayed(_path_of_fold)(estimator, data, *fold, kappas, alpha, metric, average)
        for alpha in alphas
        for fold in zip(folds, exact)
    )
    shape = (len(alphas), len(folds), len(kappas))
    each = np.array([f[0] for f in found]).reshape(*shape, data.n_tasks)
    averaged = np.array([f[1] for f in found]).reshape(shape)
    return PoolingPath(
        estimator=estimator,
        kappas=kappas,
        alphas=alphas,
        fold_scores=averaged.transpose(0, 2, 1),
        task_scores=each.transpose(0, 2, 1, 3),
        tasks=data.tasks,
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        average=average,
    )


@dataclass
class PoolingPath:
    """Scores from independent tasks to pooled ones; made by :func:`pooling_path`.

    Attributes
    ----------
    kappas : ndarray of shape (n_kappa,)
    alphas : ndarray of shape (n_alphas,)
        Strengths at unit variance.
    fold_scores : ndarray of shape (n_alphas, n_kappa, n_folds)
        The metric, averaged over tasks.
    task_scores : ndarray of shape (n_alphas, n_kappa, n_folds, n_tasks)
        NaN where a task has no score in a fold.
    tasks : ndarray of shape (n_tasks,)
    metric, average : str
    greater_is_better : bool
    """

    estimator: object
    kappas: np.ndarray
    alphas: np.ndarray
    fold_scores: np.ndarray
    task_scores: np.ndarray
    tasks: np.ndarray
    metric: str
    greater_is_better: bool
    average: str

    @property
    def mean_scores(self):
        """Means over folds: (n_alphas, n_kappa)."""
        return self.fold_scores.mean(axis=2)

    @property
    def best_index(self):
        """Positions (alpha, kappa) of the best mean score."""
        means = self.mean_scores if self.greater_is_better else -self.mean_scores
        if np.isnan(means).all():
            raise ValueError(f"{self.metric} is undefined on every fold; choose another metric")
        return np.unravel_index(np.nanargmax(means), means.shape)

    @property
    def best_alpha(self):
        """The best strength at unit variance."""
        return float(self.alphas[self.best_index[0]])

    @property
    def best_kappa(self):
        return float(self.kappas[self.best_index[1]])

    @property
    def best_score(self):
        return float(self.mean_scores[self.best_index])

    @property
    def best_params(self):
        """What `set_params` takes to make the best model."""
        return parameters_at(self.estimator, self.best_kappa, self.best_alpha)

    @property
    def best_estimator(self):
        """A clone of the estimator with the best parameters, not fitted."""
        return clone(self.estimator).set_params(**self.best_params)

    def to_frame(self):
        """Return a DataFrame with a line per alpha, kappa and fold (needs the extra ``pandas``)."""
        pandas = import_pandas()
        index = pandas.MultiIndex.from_product(
            [self.alphas, self.kappas, range(self.fold_scores.shape[2])],
            names=["alpha", "kappa", "fold"],
        )
        return pandas.DataFrame({self.metric: self.fold_scores.ravel()}, index=index).reset_index()

    def __str__(self):
        """The mean score of each kappa at its best alpha, with the deviation over folds."""
        better, best = (
            ("larger", np.nanargmax) if self.greater_is_better else ("smaller", np.nanargmin)
        )
        n_folds, means, chosen = self.fold_scores.shape[2], self.mean_scores, self.best_index
        lines = [
            f"{self.metric} ({self.average}) over {n_folds} folds, {better} is better",
            f"{'kappa':>10}{'alpha':>12}{'mean':>12}{'std':>12}",
        ]
        for k, kappa in enumerate(self.kappas):
            of_alpha = means[:, k]
            a = 0 if np.isnan(of_alpha).all() else best(of_alpha)
            deviation = self.fold_scores[a, k].std()
            note = {np.inf: "independent", 0.0: "pooled"}.get(kappa, "")
            mark = "<- best" if (a, k) == chosen else ""
            line = f"{kappa:>10.4g}{self.alphas[a]:>12.4g}{of_alpha[a]:>12.5g}{deviation:>12.3g}"
            lines.append(f"{line}  {note} {mark}".rstrip())
        return "\n".join(lines)

    def plot(self, ax=None):
        """Draw the path; see :func:`fastmtl.plot.pooling_path`."""
        from fastmtl import plot

        return plot.pooling_path(self, ax=ax)


def import_pandas():
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "to_frame needs pandas; install it with: pip install 'fastmtl[pandas]'"
        ) from None
    return pandas


def _check_kappas(kappas, n_kappa):
    if kappas is None:
        if not isinstance(n_kappa, numbers.Integral) or n_kappa < 3:
            raise ValueError(f"n_kappa is {n_kappa!r}; pass an integer >= 3")
        return np.concatenate([[np.inf], np.logspace(2, -2, n_kappa - 2), [0.0]])
    kappas = np.asarray(kappas, dtype=np.float64)
    if kappas.ndim != 1 or not len(kappas) or np.isnan(kappas).any() or (kappas < 0).any():
        raise ValueError(f"kappas is {kappas.tolist()!r}; pass numbers from 0 to infinity")
    return np.sort(np.unique(kappas))[::-1]


def _positive(values, name):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"{name} is {values.tolist()!r}; pass positive finite numbers")
    return values


WORDS = ("independent", "pooled", "mean")
DEFAULT = (*WORDS, "learn")
MANY_FEATURES = 64  # beyond, learning their covariance costs more than all other candidates


class _MultiTaskSGDCV(BaseEstimator):
    def __init__(
        self,
        estimator=None,
        *,
        alphas=5,
        kappas=(10.0, 1.0, 0.1, 0.01),
        couplings=DEFAULT,
        cv=5,
        metric=None,
        average="micro",
        refine=2,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.alphas = alphas
        self.kappas = kappas
        self.couplings = couplings
        self.cv = cv
        self.metric = metric
        self.average = average
        self.refine = refine
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, *, tasks=None, sample_weight=None):
        """Choose strength and coupling by cross-validation, and fit on all of the data.

        Parameters
        ----------
        X, y, tasks, sample_weight
            The data in one of the three forms; see `fit` of the model chosen among.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If an argument has the wrong shape, kind or values; the message names it.
        """
        base = self._check_settings()
        probe = clone(base)
        observations = probe._observe(X, y, tasks, sample_weight, reset=True)
        probe._encode(observations)
        data = TaskData(base, X, y, tasks, sample_weight)
        folds = self._usable(data, data.folds(self.cv))
        with warnings.catch_warnings():
            # a candidate too weak to converge loses; the model kept says so itself, below
            warnings.simplefilter("ignore", ConvergenceWarning)
            with progress(0, "fit") if self.verbose else nullcontext() as bar:
                self._search(base, data, folds, self._first_grid(observations), bar)
        best = clone(base).set_params(**self.best_params_)
        arguments = {} if tasks is None else {"tasks": tasks}
        self.best_estimator_ = best.fit(X, y, sample_weight=sample_weight, **arguments)
        for name in ("n_features_in_", "feature_names_in_", "classes_"):
            if hasattr(best, name):
                setattr(self, name, getattr(best, name))
            elif hasattr(self, name):
                delattr(self, name)
        return self

    def _check_settings(self):
        base = self._model() if self.estimator is None else self.estimator
        if not isinstance(base, self._model):
            raise ValueError(
                f"estimator is {base!r}; pass a {self._model.__name__}, whose alpha and coupling "
                "are chosen"
            )
        base._check_settings()
        if self.random_state is not None:
            base = clone(base).set_params(random_state=self.random_state)
        if isinstance(self.couplings, str | TaskCoupling) or not len(self.couplings):
            raise ValueError(f"couplings is {self.couplings!r}; pass a list of candidates")
        for coupling in self.couplings:
            resolve_coupling(coupling)
        _positive(self.kappas, "kappas")
        if isinstance(self.alphas, numbers.Integral):
            if self.alphas < 1:
                raise ValueError(f"alphas is {self.alphas}; pass at least 1, or strengths")
        else:
            _positive(self.alphas, "alphas")
        if not isinstance(self.refine, numbers.Integral) or self.refine < 0:
            raise ValueError(f"refine is {self.refine!r}; pass an integer >= 0")
        resolve_metric(self._metric(base))
        check_average(self.average)
        if self.average is None:
            raise ValueError("average is None; pass one, for a choice needs a single number")
        return base

    def _metric(self, base):
        return default_metric(base) if self.metric is None else self.metric

    def _usable(self, data, folds):
        """Folds with anything to learn: a classifier's training part needs two classes."""
        if data.classes is None:
            return folds
        y, has = data.y, data.present if data.matrix else np.ones(len(data.y), dtype=bool)

        def classes(rows):
            return len(np.unique(y[rows][has[rows]].tolist()))

        kept = [fold for fold in folds if classes(fold[0]) > 1]
        if not kept:
            raise ValueError("every fold's training part has one class only; pass fewer folds (cv)")
        return kept

    def _first_grid(self, observations):
        """Strengths and the κ that go with each, and the couplings that have no κ."""
        if isinstance(self.alphas, numbers.Integral):
            X, n = observations.X, observations.weight.sum()
            squares = X.multiply(X).sum() if sp.issparse(X) else np.sum(np.square(X, dtype=float))
            length = float(squares) / X.shape[0] or 1.0
            ratio = np.logspace(1.5, -1.5, self.alphas) if self.alphas > 1 else np.ones(1)
            alphas = length / (n * ratio)
        else:
            alphas = np.unique(_positive(self.alphas, "alphas"))
        words = [c for c in self.couplings if isinstance(c, str)]
        kappas = []
        if observations.n_tasks == 1 and set(words) & set(WORDS):
            kappas = [0.0]
        else:
            kappas += [np.inf] if "independent" in words else []
            kappas += sorted(map(float, self.kappas), reverse=True) if "mean" in words else []
            kappas += [0.0] if "pooled" in words else []
        others = [c for c in self.couplings if not (isinstance(c, str) and c in DEFAULT)]
        if "learn" in words and observations.n_tasks > 1:
            others.append(TaskCoupling.learn(scale="evidence"))
            if not sp.issparse(observations.X) and observations.X.shape[1] <= MANY_FEATURES:
                both = TaskCoupling.learn(feature_covariance="full", scale="evidence")
                others.append(both)
        return alphas, kappas or ([0.0] if not others else []), others

    def _search(self, base, data, folds, grid, bar):
        metric = resolve_metric(self._metric(base))
        sign = 1.0 if metric.greater_is_better else -1.0
        alphas, kappas, others = grid
        found = {}  # (coupling's place, strength, kappa): scores of folds
        folds = list(zip(folds, data.exact_fits(base, folds)))

        def run(function, jobs):
            def counted(n_fits, *arguments):
                result = function(base, data, *arguments, metric, self.average)
                if bar is not None:
                    bar.update(n_fits)
                return result

            if bar is not None:
                bar.total += sum(n_fits for n_fits, *_ in jobs)
                bar.refresh()
            return joblib.Parallel(self.n_jobs, prefer="threads")(
                joblib.delayed(counted)(*job) for job in jobs
            )

        def path(alphas, kappas):
            # a strength already seen with these κ is not fitted again
            jobs = []
            for alpha in alphas:
                new = [k for k in kappas if (None, alpha, k) not in found]
                jobs += [(len(new), *fold, new, alpha) for fold in folds] if new else []
            for (*_, new, alpha), (_, averaged) in zip(jobs, run(_path_of_fold, jobs)):
                for kappa, score in zip(new, averaged):
                    found.setdefault((None, alpha, kappa), []).append(sign * score)

        def fixed(place, alphas):
            learning = others[place].learning if hasattr(others[place], "learning") else None
            if learning is not None and learning.scale == "evidence":
                alphas = [base.alpha]  # which has no part in the fit
            new = [{"coupling": others[place], "alpha": alpha} for alpha in alphas]
            new = [own for own in new if (place, own["alpha"], np.nan) not in found]
            jobs = [(1, *fold, own) for own in new for fold in folds]
            for (*_, own), score in zip(jobs, run(_fit_and_score, jobs)):
                found.setdefault((place, own["alpha"], np.nan), []).append(sign * score)

        if kappas:
            path(alphas, kappas)
        for place in range(len(others)):
            fixed(place, alphas)
        step = np.log(alphas[1] / alphas[0]) if len(alphas) > 1 else 0.0
        kappa_step = np.log(10.0)
        if "mean" in self.couplings and len(self.kappas) > 1:
            ordered = np.sort(np.asarray(self.kappas, dtype=float))
            kappa_step = np.mean(np.diff(np.log(ordered)))
        for _ in range(self.refine):
            if bar is not None:
                bar.set_postfix(best=f"{max(map(np.mean, found.values())):.6g}")
            step, kappa_step = step / 2, kappa_step / 2
            place, alpha, kappa = _best(found)
            near = [alpha * np.exp(-step), alpha, alpha * np.exp(step)] if step else [alpha]
            if place is not None:
                fixed(place, near)
            else:
                around = [kappa]
                if 0 < kappa < np.inf and kappa_step:
                    around = [kappa * np.exp(kappa_step), kappa, kappa * np.exp(-kappa_step)]
                path(near, around)
        self._keep(base, others, found)

    def _keep(self, base, others, found):
        params = [
            parameters_at(base, kappa, alpha)
            if place is None
            else {"coupling": others[place], "alpha": float(alpha)}
            for place, alpha, kappa in found
        ]
        scores = np.array(list(found.values()))
        means = scores.mean(axis=1)
        if np.isnan(means).all():
            raise ValueError(f"metric {self._metric(base)!r} is undefined on every fold")
        order = np.argsort(np.argsort(-means, kind="stable"))
        self.cv_results_ = {
            "params": params,
            "param_alpha": np.array([p["alpha"] for p in params]),
            "param_kappa": np.array([kappa for _, _, kappa in found]),
            "param_coupling": [_word(p["coupling"]) for p in params],
            "mean_test_score": means,
            "std_test_score": scores.std(axis=1),
            "rank_test_score": order + 1,
            **{f"split{k}_test_score": scores[:, k] for k in range(scores.shape[1])},
        }
        best = int(np.nanargmax(means))
        self.best_index_, self.best_score_ = best, float(means[best])
        self.best_params_ = params[best]
        self.alpha_ = params[best]["alpha"]
        self.kappa_ = float(self.cv_results_["param_kappa"][best])
        self.coupling_ = params[best]["coupling"]

    def _fitted(self):
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_

    @property
    def task_column(self):
        return getattr(self.estimator, "task_column", None)

    @property
    def coef_(self):
        """w_t of the model chosen."""
        return self._fitted().coef_

    @property
    def intercept_(self):
        return self._fitted().intercept_

    @property
    def tasks_(self):
        return self._fitted().tasks_

    @property
    def n_tasks_(self):
        return self._fitted().n_tasks_

    def predict(self, X, *, tasks=None):
        """Predict with the model chosen.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n, d), or list of them
        tasks : array-like of shape (n,), default=None

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_tasks), or list of ndarray
        """
        return self._fitted().predict(X, tasks=tasks)

    def score(self, X, y, sample_weight=None, *, tasks=None):
        """Score the model chosen by its own `score`: R² or accuracy.

        Parameters
        ----------
        X, y, tasks
            As in :meth:`fit`.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        score : float
        """
        return self._fitted().score(X, y, sample_weight, tasks=tasks)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


def _word(coupling):
    return coupling if isinstance(coupling, str) else repr(coupling)


def _best(found):
    means = np.array([np.mean(scores) for scores in found.values()])
    if np.isnan(means).all():
        return next(iter(found))
    return list(found)[int(np.nanargmax(means))]


def _fit_and_score(estimator, data, fold, ridge, parameters, metric, average):
    if ridge is not None and resolve_coupling(parameters["coupling"]).learning is None:
        model = ridge.fit(**parameters)
    else:
        model = data.fit(clone(estimator).set_params(**parameters), fold[0])
    return data.scores(model, fold[1], metric, average)[1]


class MultiTaskSGDRegressorCV(RegressorMixin, _MultiTaskSGDCV):
    """Linear regression on many tasks that chooses how strongly to penalise and how far to share.

    Every candidate is cross-validated on the training data alone, in folds that spread each task;
    then the best is fitted on all of it. The first round tries `alphas` × `kappas`; further rounds
    halve the steps around the best, beyond the ends of the grid where the best lies there.

    Parameters
    ----------
    estimator : MultiTaskSGDRegressor, default=None
        The model whose other settings (loss, intercepts, `task_column`, …) are used.
    alphas : int or array-like, default=5
        Strengths *at unit variance*: each coefficient has the prior variance ``1 / alphas`` in
        units of the mean loss, whatever κ, so the two axes of the grid hardly interact; the model
        fitted has ``alpha = alphas (1 + κ)``. A number of strengths means that many from
        ``mean ‖x‖² / (n r)`` with the ratio r of signal to noise from 30 to 0.03.
    kappas : array-like, default=(10, 1, 0.1, 0.01)
        Candidates for κ of ``TaskCoupling.mean(κ)``; positive.
    couplings : list, default=("independent", "pooled", "mean", "learn")
        Kinds of coupling to choose among. ``"learn"`` is ``TaskCoupling.learn(scale="evidence")``,
        which takes the strength from the data; where X is dense with at most 64 features, also with
        ``feature_covariance="full"``. Any other :class:`TaskCoupling` is tried with each of
        `alphas`.
    cv : int, splitter or iterable of (train, test), default=5
        A number means ``TaskStratifiedKFold(cv, shuffle=True, random_state=0)``. Splitters get the
        tasks as groups.
    metric : str or callable, default=None
        See :func:`task_scores`. None is ``"mse"`` (for the classifier ``"log_loss"``, or
        ``"accuracy"`` where the loss gives no probabilities).
    average : {"micro", "macro", "worst", "pooled"}, default="micro"
        How a fold's scores are averaged over tasks.
    refine : int, default=2
        Rounds after the first.
    n_jobs : int, default=None
        Threads over folds and strengths (joblib).
    random_state : int, RandomState or None, default=None
        Seed of every fit; None leaves that of `estimator`.
    verbose : int, default=0
        1 shows a progress bar over the fits of the search (needs the extra ``progress``).

    Attributes
    ----------
    best_estimator_ : MultiTaskSGDRegressor
        Fitted on all data.
    best_params_ : dict
        ``alpha`` and ``coupling`` of `best_estimator_`.
    alpha_, kappa_, coupling_
        The same, with κ (0: pooled, inf: independent, NaN: a coupling without κ).
    best_score_ : float
        Mean over folds; losses have a negative sign.
    cv_results_ : dict
        As in scikit-learn's `GridSearchCV`: ``params``, ``mean_test_score``, ``std_test_score``,
        ``rank_test_score``, ``split0_test_score`` and so on, an entry per candidate.
    coef_, intercept_, tasks_, n_tasks_, n_features_in_
        Of `best_estimator_`.

    See Also
    --------
    pooling_path : the scores along κ, with a plot.
    transfer_report : whether sharing helped each task.

    Examples
    --------
    >>> from fastmtl import MultiTaskSGDRegressorCV, datasets
    >>> X, y, tasks = datasets.make_multitask_regression(20, 10, 10, kappa=0.1, random_state=0)
    >>> search = MultiTaskSGDRegressorCV(alphas=3, couplings=["mean"], cv=3, refine=1)
    >>> model = search.fit(X, y, tasks=tasks)
    >>> model.kappa_ < 1
    True
    """

    _model = MultiTaskSGDRegressor
    score = _MultiTaskSGDCV.score  # before RegressorMixin's


class MultiTaskSGDClassifierCV(ClassifierMixin, _MultiTaskSGDCV):
    """Linear classification on many tasks that chooses its penalty and how far to share.

    The parameters, the search and the attributes are those of :class:`MultiTaskSGDRegressorCV`;
    the estimator is a :class:`MultiTaskSGDClassifier`.

    Parameters
    ----------
    estimator : MultiTaskSGDClassifier, default=None
    alphas : int or array-like, default=5
    kappas : array-like, default=(10, 1, 0.1, 0.01)
    couplings : list, default=("independent", "pooled", "mean", "learn")
    cv : int, splitter or iterable of (train, test), default=5
    metric : str or callable, default=None
    average : {"micro", "macro", "worst", "pooled"}, default="micro"
    refine : int, default=2
    n_jobs : int, default=None
    random_state : int, RandomState or None, default=None
    verbose : int, default=0
        As in :class:`MultiTaskSGDRegressorCV`.

    Attributes
    ----------
    classes_ : ndarray, or list of ndarray
        As in :class:`MultiTaskSGDClassifier`.
    best_estimator_, best_params_, alpha_, kappa_, coupling_, best_score_, cv_results_
        As in :class:`MultiTaskSGDRegressorCV`.

    Examples
    --------
    >>> from fastmtl import MultiTaskSGDClassifierCV, datasets
    >>> X, y, tasks = datasets.make_multitask_classification(30, 5, 4, random_state=0)
    >>> model = MultiTaskSGDClassifierCV(alphas=3, couplings=["mean"], refine=0, cv=3)
    >>> model = model.fit(X, y, tasks=tasks)
    >>> model.predict_proba(X[:2], tasks=tasks[:2]).shape
    (2, 2)
    """

    _model = MultiTaskSGDClassifier
    score = _MultiTaskSGDCV.score  # before ClassifierMixin's

    def decision_function(self, X, *, tasks=None):
        """Scores of the classes; see :meth:`MultiTaskSGDClassifier.decision_function`."""
        return self._fitted().decision_function(X, tasks=tasks)

    @available_if(lambda self: getattr(self.estimator, "loss", "log_loss") == "log_loss")
    def predict_proba(self, X, *, tasks=None):
        """Class probabilities; see :meth:`MultiTaskSGDClassifier.predict_proba`."""
        return self._fitted().predict_proba(X, tasks=tasks)
