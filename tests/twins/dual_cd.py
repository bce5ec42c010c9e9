"""Small dual problems of every kind: hinge, squared hinge, ε-insensitive; with and without groups.

A free pair's slopes are equal after its step but for rounding, so compiled and NumPy solvers may
part at a later choice between the two: the problems stop well before.
"""

import numpy as np

# Steps amplify rounding: each divides by a curvature, and a hundred of them follow one another.
TOLERANCE = {"minimise": 100}


class RowBuffer(list):
    """A buffer of Gram rows and the callable that fills it; the walk sees an empty list."""

    def __init__(self, gram, n_slots):
        super().__init__()
        self.gram = gram
        self.rows = np.zeros((n_slots, gram.shape[1]), dtype=gram.dtype)

    def __call__(self, row, slot):
        self.rows[slot] = self.gram[row]


def problem(
    rng,
    dtype,
    *,
    loss,
    groups,
    per_task=40,
    shared_rows=False,
    slots=None,
    max_iter=40,
    shrinking=False,
):
    n_tasks = 3
    n_rows = per_task if shared_rows else n_tasks * per_task
    X = rng.normal(size=(n_rows, 4))
    gram = np.exp(-0.3 * ((X[:, None] - X[None]) ** 2).sum(-1))
    gram = np.ascontiguousarray((gram + gram.T) / 2, dtype=dtype)
    n = n_tasks * per_task
    task = np.repeat(np.arange(n_tasks), per_task).astype(np.int32)
    row = np.arange(n, dtype=np.int32) % n_rows
    if groups == "gathered":
        row = rng.permutation(n_rows).astype(np.int32)
    group = {"task": [0, 1, 2], "shared": [0, 0, 0], "none": [-1, -1, -1]}.get(groups, [0, 1, -1])
    signal = np.sin(X[row, 0] + task) + 0.1 * rng.normal(size=n)
    bound = rng.uniform(0.5, 2.0, n)
    ridge, epsilon = np.zeros(n), 0.0
    if loss == "epsilon":
        target, lower, upper, epsilon = signal, -bound, bound, 0.1
    else:
        target = np.sign(signal)
        lower, upper = np.minimum(0, target * bound), np.maximum(0, target * bound)
    if loss == "squared":
        ridge = 0.5 / bound
        lower, upper = np.where(lower < 0, -np.inf, 0), np.where(upper > 0, np.inf, 0)
    mixing = np.array([[1.0, 0.2], [0.9, 0.0], [1.1, -0.3]])
    if groups == "apart":
        mixing = np.empty((3, 0))
    fetch = None
    if slots is not None:
        fetch = RowBuffer(gram, slots)
        gram = fetch.rows
    return {
        "gram": gram,
        "fetch": fetch,
        "diagonal": np.ones(n_rows),
        "row": row,
        "task": task,
        "group": np.array(group, dtype=np.int32),
        "mixing": mixing,
        "kappa": np.array([0.5, 0.4, 0.6]),
        "lower": lower,
        "upper": upper,
        "ridge": ridge,
        "epsilon": epsilon,
        "tol": 1e-3,
        "max_iter": max_iter,
        "shrinking": shrinking,
        "beta": np.zeros(n),
        "gradient": -target,
    }


def minimise(rng, dtype):
    for loss in ["hinge", "squared", "epsilon"]:
        for groups in ["task", "shared", "none", "mixed", "gathered", "apart"]:
            yield problem(rng, dtype, loss=loss, groups=groups)
        yield problem(rng, dtype, loss=loss, groups="task", shared_rows=True)
        yield problem(rng, dtype, loss=loss, groups="task", slots=5)
        yield problem(rng, dtype, loss=loss, groups="task", max_iter=0)
        yield problem(
            rng, dtype, loss=loss, groups="task", per_task=15, max_iter=50, shrinking=True
        )
        yield problem(
            rng, dtype, loss=loss, groups="none", per_task=15, max_iter=50, shrinking=True
        )


CASES = {"minimise": minimise}
