"""NumPy twin of the compiled block coordinate descent: the same blocks in the same order."""

import numpy as np
from scipy.optimize import brentq


def _column(X, indices, indptr, row, n_features, j):
    """The values of feature j at every observation."""
    if indptr is None:
        return X.reshape(n_features, -1)[j, row].astype(np.float64)
    column = np.zeros(len(row))
    part = slice(indptr[j], indptr[j + 1])
    column[indices[part]] = X[part]
    return column


def _by_task(values, task_start):
    n_tasks = len(task_start) - 1
    task = np.repeat(np.arange(n_tasks), np.diff(task_start))
    return np.bincount(task, values, minlength=n_tasks)


def moments(
    X,
    indices,
    indptr,
    row,
    task_start,
    weight,
    total,
    features,
    slope,
    curvature,
    n_threads,
):
    """Write Σ w x and Σ w x² of features (d, T), the latter centred where `total` is positive."""
    for j in features:
        x = _column(X, indices, indptr, row, len(slope), j)
        slope[j] = _by_task(weight * x, task_start)
        curvature[j] = _by_task(weight * x * x, task_start)
        centred = total > 0
        curvature[j, centred] -= slope[j, centred] ** 2 / total[centred]
        curvature[j] = np.maximum(curvature[j], 0.0)


def gradients(X, indices, indptr, row, task_start, moved, gradient, n_threads):
    """Write −Σ_i x_i (w r)_i of each feature and task into `gradient` (d, T)."""
    for j in range(len(gradient)):
        x = _column(X, indices, indptr, row, len(gradient), j)
        gradient[j] = -_by_task(x * moved, task_start)


def descend(
    X,
    indices,
    indptr,
    row,
    task_start,
    weight,
    total,
    slope,
    curvature,
    alpha,
    beta,
    features,
    max_epochs,
    tol,
    moved,
    offset,
    joint,
    own,
):
    """Cycle over the blocks of `features` until the largest step is below `tol`.

    A step counts by the gradient it makes up for, H |δ|. Changes `joint` (P), `own` (Q), `moved`
    and `offset` in place; an infinite `beta` leaves `own` at zero. Returns the number of cycles and
    the largest step of the last.
    """
    task = np.repeat(np.arange(len(task_start) - 1), np.diff(task_start))
    epoch, largest = 0, 0.0
    while epoch < max_epochs:
        epoch, largest = epoch + 1, 0.0
        for j in features:
            x, H = _column(X, indices, indptr, row, len(slope), j), curvature[j]
            push = _by_task(x * moved, task_start) + offset * slope[j]
            step = _shrink_block(push + H * joint[j], H, alpha) - joint[j]
            joint[j] += step
            if np.isfinite(beta):
                before = own[j].copy()
                target = push + H * (before - step)
                shrunk = np.sign(target) * np.maximum(np.abs(target) - beta, 0.0)
                own[j] = np.divide(shrunk, H, out=np.zeros_like(H), where=H > 0)
                step += own[j] - before
            largest = max(largest, np.max(H * np.abs(step)))
            moved -= step[task] * weight * x
            offset += np.divide(step * slope[j], total, out=np.zeros_like(total), where=total > 0)
        if largest <= tol:
            break
    return epoch, largest


def _shrink_block(target, curvature, alpha):
    """argmin_p Σ_t (½ H_t p_t² − b_t p_t) + α ‖p‖."""
    if alpha == 0:
        return np.divide(target, curvature, out=np.zeros_like(target), where=curvature > 0)
    if np.linalg.norm(target) <= alpha:
        return np.zeros_like(target)

    def excess(length):
        return np.linalg.norm(target / (curvature * length + alpha)) - 1

    bound = (np.linalg.norm(target) - alpha) / curvature[target != 0].min()
    length = brentq(excess, 0.0, bound * (1 + 1e-9), xtol=1e-300, rtol=1e-15)
    return target * length / (curvature * length + alpha)
