"""Small dual problems of every kind: hinge, squared hinge, ε-insensitive; with and without groups.

A free pair's slopes are equal after its step but for rounding, so compiled and NumPy solvers may
part at a later choice between the two: the problems stop well before.
"""

import numpy as np

from fastmtl.row_cache import RowCache

# Steps amplify rounding: each divides by a curvature, and a hundred of them follow one another.
TOLERANCE = {"minimise": 100}


class Rows(RowCache, list):
    """A cache of Gram rows, which the walk sees as an empty list."""

    def __init__(self, gram, n_slots):
        def compute(rows, out):
            out[...] = gram[rows]

        super().__init__(compute, gram.shape[1], n_slots * gram.shape[1], gram.dtype)

    def fetch(self, row, others, urgency):
        # Slopes that a step made equal differ by rounding, which must not choose rows.
        super().fetch(row, others, np.zeros(len(others)))


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
    cache = None
    if slots is not None:
        cache = Rows(gram, slots)
        gram = cache.rows
    return {
        "gram": gram,
        "cache": cache,
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
        "tick": None,
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
    for groups, shrinking in [("none", False), ("task", True)]:
        yield problem(
            rng,
            dtype,
            loss="hinge",
            groups=groups,
            per_task=15,
            max_iter=50,
            shrinking=shrinking,
            slots=9,
        )


CASES = {"minimise": minimise}
