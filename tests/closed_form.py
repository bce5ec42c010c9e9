"""The ridge solution of a coupled system, by one dense solve: the truth for linear models."""

import numpy as np


def coupled_ridge(X, y, task, mixing, kappa, alpha, intercept, weight=None):
    """Minimise (1/Σw) Σ w ½(y − p)² + alpha (½Σ‖s_r‖² + ½Σ‖v_t‖²/κ_t); returns (coef, intercept).

    `intercept`: "none", "shared", "coupled" or "free", as the linear models name them.
    """
    n, d = X.shape
    n_tasks, n_shared = mixing.shape
    weight = np.ones(n) if weight is None else weight
    rows = np.column_stack([X, np.ones(n)]) if intercept == "coupled" else X
    own = task[:, None] == np.arange(n_tasks)
    blocks = [mixing[task, r, None] * rows for r in range(n_shared)]
    blocks += [np.where(own[:, [t]], np.sqrt(kappa[t]) * rows, 0.0) for t in range(n_tasks)]
    design = np.column_stack([*blocks, np.empty((n, 0))])
    penalty = np.full(design.shape[1], alpha)
    if intercept in ("shared", "coupled"):
        design = np.column_stack([design, np.ones(n)])
        penalty = np.append(penalty, 0.0)
    elif intercept == "free":
        design = np.column_stack([design, own])
        penalty = np.append(penalty, np.zeros(n_tasks))
    gram = (design * weight[:, None]).T @ design / weight.sum()
    solution = np.linalg.solve(gram + np.diag(penalty), design.T @ (weight * y) / weight.sum())

    width = rows.shape[1]
    parts = solution[: (n_shared + n_tasks) * width].reshape(n_shared + n_tasks, width)
    vectors = mixing @ parts[:n_shared] + np.sqrt(kappa)[:, None] * parts[n_shared:]
    rest = solution[(n_shared + n_tasks) * width :]
    offset = {"none": 0.0, "shared": rest, "coupled": rest, "free": rest}[intercept]
    if intercept == "coupled":
        return vectors[:, :d], vectors[:, d] + offset
    return vectors, np.zeros(n_tasks) + offset
