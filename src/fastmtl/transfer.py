"""Whether sharing helped: each task's gain over a model of its own and over one for all."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from fastmtl.metrics import average_of, resolve_metric, score_part
from fastmtl.model_selection import TaskData, coupling_parameter, default_metric, import_pandas

__all__ = ["TransferReport", "transfer_report"]

OTHERS = ("independent", "pooled")
AVERAGES = ("macro", "micro", "worst")
CHUNK = 4_000_000  # weights of resamples at a time


def transfer_report(
    estimator,
    X,
    y,
    tasks=None,
    *,
    cv=5,
    metric=None,
    confidence=0.95,
    n_resamples=1000,
    sample_weight=None,
    n_jobs=None,
    random_state=0,
):
    """Compare a model with its independent and its pooled version, task by task.

    The three are fitted on the same folds and predict the rows left out. A task's score is taken
    over all of its left-out rows, and its gain is the difference of scores, positive where the
    model is better (the sign of losses is turned).

    The confidence interval of a gain is the percentile interval of a paired bootstrap: the task's
    rows are drawn with replacement, and the two models scored on the same draw. It says how sure
    the gain is given these fits, for other rows of the task; it does not redo the fits, and
    so leaves out what other training data would change. With many tasks some intervals miss
    zero by chance: the report says how many to expect.

    Parameters
    ----------
    estimator : estimator
        Any with a parameter `coupling` (linear models, kernel machines, networks, or a pipeline
        around one): its versions are clones with ``coupling="independent"`` and ``"pooled"`` and
        all else equal. For :class:`MultiTaskSGDRegressorCV` and the classifier's, `couplings` is
        set instead, so that each version chooses its own strength, which is fairer.
    X, y, tasks, sample_weight
        The data in one of the three forms; with a `task_column` no `tasks`.
    cv : int, splitter or iterable of (train, test), default=5
        A number means ``TaskStratifiedKFold(cv, shuffle=True, random_state=0)``. A row may be left
        out once at most.
    metric : str or callable, default=None
        See :func:`task_scores`; None is ``"mse"`` for regressors, and for classifiers
        ``"log_loss"`` with ``loss="log_loss"`` and ``"accuracy"`` otherwise.
    confidence : float, default=0.95
        In (0, 1).
    n_resamples : int, default=1000
        Of the bootstrap, at least 20.
    n_jobs : int, default=None
        Threads over folds and versions (joblib).
    random_state : int, RandomState or None, default=0
        Seed of the bootstrap.

    Returns
    -------
    report : TransferReport
        ``print(report)`` for text, ``report.to_frame()``, ``report.plot()``.

    Raises
    ------
    ValueError
        If an argument is out of range, or the estimator has no `coupling`.

    Examples
    --------
    >>> from fastmtl import MultiTaskSGDRegressor, datasets, transfer_report
    >>> X, y, tasks = datasets.make_multitask_regression(
    ...     15, 10, 6, kappa=0.1, noise=2.0, random_state=0
    ... )
    >>> model = MultiTaskSGDRegressor(alpha=0.05, random_state=0)
    >>> report = transfer_report(model, X, y, tasks, cv=3)
    >>> bool(report.mean_gain["independent"][0] > 0)
    True
    >>> report.hurt
    []
    """
    metric = resolve_metric(default_metric(estimator) if metric is None else metric)
    if not isinstance(confidence, numbers.Real) or not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; pass a number in (0, 1)")
    if not isinstance(n_resamples, numbers.Integral) or n_resamples < 20:
        raise ValueError(f"n_resamples is {n_resamples!r}; pass an integer >= 20")
    versions = _versions(estimator)
    data = TaskData(estimator, X, y, tasks, sample_weight)
    folds = data.folds(cv)
    rows = np.concatenate([test for _, test in folds])
    if len(np.unique(rows)) < len(rows):
        raise ValueError("cv leaves some rows out more than once; pass a splitter into folds")

    def predictions(model, fold):
        model = data.fit(clone(model), fold[0])
        return data.respond(model, fold[1], metric)

    jobs = [(name, fold) for name in versions for fold in folds]
    found = joblib.Parallel(n_jobs, prefer="threads")(
        joblib.delayed(predictions)(versions[name], fold) for name, fold in jobs
    )
    parts = {}
    for v, name in enumerate(versions):
        own = found[v * len(folds) : (v + 1) * len(folds)]
        columns = [np.concatenate(column) for column in zip(*own)]
        parts[name] = data.parts(columns, rows, metric)
    return _compare(estimator, data, parts, metric, confidence, n_resamples, random_state)


def _versions(estimator):
    """The model, and its clones that share nothing and everything."""
    if "couplings" in estimator.get_params():
        set_word = {word: {"couplings": [word]} for word in OTHERS}
    else:
        name = coupling_parameter(estimator)
        set_word = {word: {name: word} for word in OTHERS}
    changed = {word: clone(estimator).set_params(**set_word[word]) for word in OTHERS}
    return {"model": estimator, **changed}


def _compare(estimator, data, parts, metric, confidence, n_resamples, random_state):
    rng = check_random_state(random_state)
    sign = 1.0 if metric.greater_is_better else -1.0
    n_tasks = data.n_tasks
    scores = {
        name: np.array([score_part(metric, part)[0] for part in own]) for name, own in parts.items()
    }
    draws = {name: np.empty((n_tasks, n_resamples)) for name in OTHERS}
    for t in range(n_tasks):
        resampled = _resampled(rng, metric, [parts[name][t] for name in parts], n_resamples)
        for name, other in zip(OTHERS, resampled[1:]):
            draws[name][t] = sign * (resampled[0] - other)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    weight = np.array([part.weight.sum() for part in parts["model"]])
    interval, mean_gain = {}, {}
    for name in OTHERS:
        interval[name] = np.full((n_tasks, 2), np.nan)
        for t in np.flatnonzero(~np.isnan(draws[name]).all(axis=1)):
            interval[name][t] = np.nanpercentile(draws[name][t], tails)
        gain = sign * (scores["model"] - scores[name])
        defined = ~np.isnan(gain)
        if not defined.any():
            mean_gain[name] = (float("nan"),) * 3
            continue
        with_score = draws[name][defined]
        count = np.maximum((~np.isnan(with_score)).sum(axis=0), 1)
        means = np.nansum(with_score, axis=0) / count
        low, high = np.percentile(means, tails)
        mean_gain[name] = float(gain[defined].mean()), float(low), float(high)
    return TransferReport(
        estimator=type(estimator).__name__,
        tasks=data.tasks,
        n_labels=np.array([len(part.truth) for part in parts["model"]]),
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        confidence=float(confidence),
        scores=scores,
        averages={
            name: {kind: average_of(metric, own, weight, kind) for kind in AVERAGES}
            for name, own in scores.items()
        },
        gain={name: sign * (scores["model"] - scores[name]) for name in OTHERS},
        interval=interval,
        mean_gain=mean_gain,
    )


def _resampled(rng, metric, versions, n_resamples):
    """Scores of each version of one task's predictions on the same draws of its rows."""
    n = len(versions[0].truth)
    found = np.full((len(versions), n_resamples), np.nan)
    step = max(1, CHUNK // max(n, 1))
    for begin in range(0, n_resamples if n else 0, step):
        some = slice(begin, min(begin + step, n_resamples))
        counts = rng.multinomial(n, np.full(n, 1 / n), size=some.stop - some.start)
        for v, part in enumerate(versions):
            found[v, some] = score_part(metric, part, counts * part.weight)
    return found


@dataclass
class TransferReport:
    """Scores and gains of each task; made by :func:`transfer_report`.

    Attributes
    ----------
    tasks : ndarray of shape (n_tasks,)
    n_labels : ndarray of shape (n_tasks,)
        Labels of each task that were predicted while left out.
    scores : dict of ndarray (n_tasks,)
        Of ``"model"``, ``"independent"`` and ``"pooled"``; NaN where the metric is undefined.
    averages : dict of dict
        ``averages["model"]["macro"]``, ``"micro"`` (weighted by labels), ``"worst"``.
    gain : dict of ndarray (n_tasks,)
        Over ``"independent"`` and ``"pooled"``; positive is better.
    interval : dict of ndarray (n_tasks, 2)
        Confidence interval of the gain.
    mean_gain : dict of (gain, low, high)
        The plain mean over tasks and its interval.
    metric : str
    greater_is_better : bool
    confidence : float
    """

    estimator: str
    tasks: np.ndarray
    n_labels: np.ndarray
    metric: str
    greater_is_better: bool
    confidence: float
    scores: dict
    averages: dict
    gain: dict
    interval: dict
    mean_gain: dict

    def hurt_by(self, other="independent"):
        """Tasks for which `other` is better, with the whole interval below zero."""
        return self.tasks[self.interval[other][:, 1] < 0].tolist()

    def helped_over(self, other="independent"):
        """Tasks for which the model is better, with the whole interval above zero."""
        return self.tasks[self.interval[other][:, 0] > 0].tolist()

    @property
    def hurt(self):
        """Negative transfer: tasks that a model of their own serves better."""
        return self.hurt_by("independent")

    @property
    def helped(self):
        """Tasks that the model serves better than one of their own."""
        return self.helped_over("independent")

    def __str__(self):
        better = "larger" if self.greater_is_better else "smaller"
        lines = [
            f"Transfer of {self.estimator} over {len(self.tasks)} tasks: {self.metric} of rows "
            f"left out ({better} is better)",
            "",
            f"{'':24}{'model':>12}{'independent':>13}{'pooled':>12}",
        ]
        titles = {"macro": "mean of tasks", "micro": "weighted by labels", "worst": "worst task"}
        for kind, title in titles.items():
            model, own, pooled = (self.averages[name][kind] for name in self.scores)
            lines.append(f"{title:24}{model:>12.5g}{own:>13.5g}{pooled:>12.5g}")
        by_chance = len(self.tasks) * (1 - self.confidence) / 2
        for other in OTHERS:
            mean, low, high = self.mean_gain[other]
            hurt, helped = self.hurt_by(other), self.helped_over(other)
            lines += [
                "",
                f"Gain over {other}: {mean:+.4g}, interval [{low:+.4g}, {high:+.4g}] at "
                f"{100 * self.confidence:g} %",
                f"  helped {len(helped)}, hurt {len(hurt)} (by chance alone about {by_chance:.1f} "
                "each)",
            ]
            if hurt:
                position = {label: t for t, label in enumerate(self.tasks.tolist())}
                worst = sorted(hurt, key=lambda label: self.gain[other][position[label]])
                named = ", ".join(
                    f"{label} ({self.gain[other][position[label]]:+.3g})" for label in worst[:5]
                )
                lines.append(f"  hurt most: {named}{', …' if len(worst) > 5 else ''}")
        return "\n".join(lines)

    def to_frame(self):
        """Return a DataFrame with a line per task (needs the extra ``pandas``)."""
        columns = {"n_labels": self.n_labels, **self.scores}
        for other in OTHERS:
            columns[f"gain_over_{other}"] = self.gain[other]
            columns[f"low_over_{other}"] = self.interval[other][:, 0]
            columns[f"high_over_{other}"] = self.interval[other][:, 1]
        pandas = import_pandas()
        return pandas.DataFrame(columns, index=pandas.Index(self.tasks, name="task"))

    def plot(self, ax=None, *, over="independent"):
        """Draw the gains; see :func:`fastmtl.plot.transfer_report`."""
        from fastmtl import plot

        return plot.transfer_report(self, ax=ax, over=over)
