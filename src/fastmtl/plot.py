"""Pictures of relations between tasks, of choices along the pooling path, and of transfer.

Every function draws on the Axes given, or on new ones, and returns them. Needs matplotlib, the
extra ``plot``.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

__all__ = [
    "objective_history",
    "pooling_path",
    "similarity_graph",
    "similarity_heatmap",
    "transfer_report",
]

MANY = 60  # labels that an axis can show
HELPED, HURT, UNSURE = "tab:blue", "tab:red", "0.6"


def _axes(ax, **size):
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            "plots need matplotlib; install it with: pip install 'fastmtl[plot]'"
        ) from None
    return plt.subplots(layout="constrained", **size)[1]


def _matrix(similarity, labels):
    """The matrix and the labels of what may also be a fitted model or a `TaskSimilarity`."""
    if hasattr(similarity, "task_correlation_"):
        labels = similarity.tasks_ if labels is None else labels
        similarity = similarity.task_correlation_
    elif hasattr(similarity, "matrix"):
        labels = similarity.labels if labels is None else labels
        similarity = similarity.matrix
    elif hasattr(similarity, "columns") and labels is None:
        labels = similarity.columns
    matrix = np.asarray(similarity, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"similarity has shape {matrix.shape}; pass a square matrix, a row a task")
    if not np.isfinite(matrix).all():
        raise ValueError("similarity contains NaN or infinity; pass finite numbers")
    labels = range(len(matrix)) if labels is None else labels
    if len(labels) != len(matrix):
        raise ValueError(f"labels has {len(labels)} entries for {len(matrix)} tasks")
    return (matrix + matrix.T) / 2, [str(label) for label in labels]


def cluster_order(matrix):
    """Order of tasks that puts like beside like: leaves of average linkage, ordered optimally."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    distance = matrix.max() - matrix
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def similarity_heatmap(similarity, *, labels=None, cluster=True, ax=None):
    """Draw similarities of tasks as a heat map, like beside like.

    Parameters
    ----------
    similarity : ndarray of shape (n_tasks, n_tasks), DataFrame, TaskSimilarity or fitted model
        A model gives its ``task_correlation_``.
    labels : sequence of n_tasks, default=None
        Names of the tasks.
    cluster : bool, default=True
        Order the tasks by hierarchical clustering (average linkage).
    ax : matplotlib Axes, default=None

    Returns
    -------
    ax : matplotlib Axes
        Colours are symmetric about zero where there are negative entries. Up to 60 tasks are named.
    """
    matrix, labels = _matrix(similarity, labels)
    order = cluster_order(matrix) if cluster else np.arange(len(matrix))
    ax = _axes(ax)
    signed = matrix.min() < 0
    reach = np.abs(matrix).max() or 1.0
    image = ax.imshow(
        matrix[np.ix_(order, order)],
        cmap="RdBu_r" if signed else "viridis",
        vmin=-reach if signed else matrix.min(),
        vmax=reach if signed else matrix.max(),
        interpolation="nearest",
    )
    ax.figure.colorbar(image, ax=ax, label="similarity")
    if len(labels) <= MANY:
        names = [labels[t] for t in order]
        size = {"fontsize": 9 if len(labels) <= 30 else 6}
        ax.set_xticks(range(len(names)), names, rotation=90, **size)
        ax.set_yticks(range(len(names)), names, **size)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"{len(labels)} tasks")
    return ax


def similarity_graph(similarity, *, labels=None, threshold=0.5, ax=None):
    """Draw tasks on a circle, joined where they are alike (or opposed).

    Parameters
    ----------
    similarity, labels
        As in :func:`similarity_heatmap`.
    threshold : float, default=0.5
        Pairs whose absolute similarity is at least this share of the largest between two tasks are
        joined; in [0, 1].
    ax : matplotlib Axes, default=None

    Returns
    -------
    ax : matplotlib Axes
        Blue lines join tasks that are alike, dashed red ones tasks that are opposed; the wider the
        stronger. Neighbours on the circle are alike.
    """
    matrix, labels = _matrix(similarity, labels)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}; pass a number in [0, 1]")
    ax = _axes(ax, figsize=(6, 6))
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    n = len(matrix)
    angle = np.empty(n)
    angle[cluster_order(matrix)] = 2 * np.pi * np.arange(n) / n
    place = np.column_stack([np.cos(angle), np.sin(angle)])
    first, second = np.triu_indices(n, 1)
    strength = matrix[first, second]
    reach = np.abs(strength).max() if len(strength) else 0.0
    for sign, color, style in ((1, HELPED, "-"), (-1, HURT, "--")):
        kept = (sign * strength > 0) & (np.abs(strength) >= threshold * reach)
        share = np.abs(strength[kept]) / (reach or 1.0)
        lines = np.stack([place[first[kept]], place[second[kept]]], axis=1)
        colors = [to_rgba(color, 0.15 + 0.6 * s**2) for s in share]
        joined = LineCollection(
            lines, linewidths=0.3 + 2.2 * share**2, colors=colors, linestyles=style, zorder=1
        )
        joined.set_label("alike" if sign > 0 else "opposed")
        ax.add_collection(joined)
    ax.scatter(*place.T, s=60 if n <= 30 else 20, color="0.2", zorder=2)
    for t in range(n if n <= MANY else 0):
        turn = np.degrees(angle[t])
        flip = 90 < turn % 360 < 270
        ax.text(
            *(1.08 * place[t]),
            labels[t],
            rotation=turn + 180 if flip else turn,
            rotation_mode="anchor",
            ha="right" if flip else "left",
            va="center",
            fontsize=9 if n <= 30 else 6,
        )
    ax.set_xlim(-1.45, 1.45)
    ax.set_ylim(-1.45, 1.45)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def pooling_path(path, *, ax=None):
    """Draw scores from independent tasks to pooled ones, with their standard errors over folds.

    Parameters
    ----------
    path : PoolingPath
    ax : matplotlib Axes, default=None

    Returns
    -------
    ax : matplotlib Axes
        A line per alpha over the points of the path, and a star at the best.
    """
    ax = _axes(ax)
    points = np.arange(len(path.kappas))
    spread = path.fold_scores.std(axis=2) / np.sqrt(path.fold_scores.shape[2])
    for alpha, mean, error in zip(path.alphas, path.mean_scores, spread):
        ax.errorbar(points, mean, error, marker="o", capsize=2, label=f"{alpha:.3g}")
    a, k = path.best_index
    ax.plot(k, path.mean_scores[a, k], "*", color="k", markersize=14, zorder=5, label="best")
    names = {np.inf: "∞\nindependent", 0.0: "0\npooled"}
    ax.set_xticks(points, [names.get(kappa, f"{kappa:.2g}") for kappa in path.kappas])
    ax.set_xlabel("κ")
    ax.set_ylabel(f"{path.metric} ({path.average})")
    ax.legend(title="strength")
    return ax


def transfer_report(report, *, ax=None, over="independent"):
    """Draw each task's gain with its confidence interval, from the greatest loss upwards.

    Parameters
    ----------
    report : TransferReport
    ax : matplotlib Axes, default=None
    over : {"independent", "pooled"}, default="independent"

    Returns
    -------
    ax : matplotlib Axes
        Blue tasks gain, red ones lose, grey ones have zero in their interval. Tasks without a score
        are left out.
    """
    if over not in report.gain:
        raise ValueError(f"over is {over!r}; pass 'independent' or 'pooled'")
    gain, interval = report.gain[over], report.interval[over]
    order = np.argsort(gain)[: np.sum(~np.isnan(gain))]
    ax = _axes(ax, figsize=(6, min(12, 1.5 + 0.22 * len(order))))
    gain, interval = gain[order], interval[order]
    colors = np.where(interval[:, 0] > 0, HELPED, np.where(interval[:, 1] < 0, HURT, UNSURE))
    place = np.arange(len(order))
    ax.hlines(place, interval[:, 0], interval[:, 1], color=colors.tolist())
    ax.scatter(gain, place, color=colors.tolist(), s=18 if len(order) <= MANY else 6, zorder=3)
    ax.axvline(0.0, color="k", linewidth=0.8)
    mean = report.mean_gain[over][0]
    ax.axvline(mean, color="k", linewidth=0.8, linestyle=":", label=f"mean {mean:+.3g}")
    if len(order) <= MANY:
        ax.set_yticks(place, [str(report.tasks[t]) for t in order])
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{len(order)} tasks")
    ax.set_ylim(-1, len(order))
    ax.set_xlabel(f"gain in {report.metric} over {over}")
    ax.legend(loc="lower right")
    return ax


def objective_history(models, *, against="epoch", ax=None):
    """Draw the objective of fitted models over their epochs (of networks, the loss).

    Parameters
    ----------
    models : estimator with ``history_``, or dict of them by name
        Linear and sparse models, whose rounds count as epochs, and networks.
    against : {"epoch", "seconds"}, default="epoch"
        Of sparse models only epochs are known.
    ax : matplotlib Axes, default=None

    Returns
    -------
    ax : matplotlib Axes
        A line per model.
    """
    if against not in ("epoch", "seconds"):
        raise ValueError(f"against is {against!r}; pass 'epoch' or 'seconds'")
    models = models if isinstance(models, dict) else {type(models).__name__: models}
    for name, model in models.items():
        if not hasattr(model, "history_"):
            raise ValueError(
                f"model {name!r} has no history_; pass fitted linear models or networks"
            )
        if against == "seconds" and "seconds" not in model.history_[0]:
            raise ValueError(f"model {name!r} has no seconds in its history_; pass against='epoch'")
    ax = _axes(ax)
    losses = ["loss" in model.history_[0] for model in models.values()]
    for (name, model), network in zip(models.items(), losses):
        history = model.history_
        places = np.arange(1, len(history) + 1)
        if against == "seconds":
            places = [entry["seconds"] for entry in history]
            places = np.cumsum(places) if network else places  # networks give each epoch's own
        values = [entry["loss" if network else "objective"] for entry in history]
        ax.plot(places, values, marker="." if len(history) < 30 else None, label=name)
    ax.set_xlabel(against)
    ax.set_ylabel("loss" if all(losses) else "objective, or loss" if any(losses) else "objective")
    ax.legend()
    return ax
