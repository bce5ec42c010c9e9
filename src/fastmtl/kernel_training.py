"""Training of the kernel machines: kernels, Gram matrices, dual problems and their solutions.

The dual solver is ``_core.dual_cd``; the estimators, which pass themselves for their parameters,
are in ``kernel_machines``.
"""

from __future__ import annotations

import threading
import warnings
from concurrent import futures
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from sklearn.exceptions import ConvergenceWarning

from fastmtl._core.dual_cd import minimise
from fastmtl.config import resolve_threads
from fastmtl.estimators import progress
from fastmtl.kernels import (
    CheckedRows,
    empty_matrix,
    kernel_scale,
    linear_kernel,
    polynomial_kernel,
    rbf_kernel,
    sigmoid_kernel,
    tanh_kernel,
)
from fastmtl.psd import nearest_psd
from fastmtl.row_cache import RowCache

LIBSVM_LIMIT = 10_000_000
ROUNDING = 1e-7  # eigenvalues this far below zero, relative to the greatest, count as zero
# Where the rounding of a float32 Gram matrix would show: below this tolerance, and where entries
# differ by less than this share of their size.
SMALL_TOL = 1e-5
SMALL_SPREAD = 1e-2

# name: (function of two matrices, the estimator's parameters that it takes)
KERNELS = {
    "sigmoid": (sigmoid_kernel, ("sigma", "c")),
    "tanh": (tanh_kernel, ("gamma", "coef0")),
    "rbf": (rbf_kernel, ("gamma",)),
    "poly": (polynomial_kernel, ("gamma", "coef0", "degree")),
    "linear": (linear_kernel, ()),
}


@dataclass
class Kernel:
    """k as a function of two matrices, its output checked where it is the user's own."""

    function: object
    arguments: dict
    own: bool  # the user's callable

    def __call__(self, X, Y=None, *, n_threads=None, out=None):
        """The Gram matrix of X and Y, or of X with itself."""
        if not self.own:
            return self.function(X, Y, **self.arguments, n_threads=n_threads, out=out)
        Y = X if Y is None else Y
        gram = self.function(X, Y)
        gram = np.asarray(gram)
        wanted = (X.shape[0], Y.shape[0])
        if gram.shape != wanted or gram.dtype.kind not in "fiu":
            raise ValueError(
                f"kernel returned an array of shape {gram.shape} and dtype {gram.dtype} for "
                f"{wanted[0]} and {wanted[1]} rows; it must return real numbers of shape {wanted}"
            )
        if not np.isfinite(gram).all():
            raise ValueError("kernel returned NaN or infinity; it must be finite on every pair")
        if out is None:
            return gram
        out[...] = gram
        return out

    def diagonal(self, X):
        parts = [slice(i, i + 64) for i in range(0, X.shape[0], 64)]
        return np.concatenate([np.diagonal(self(X[part], n_threads=1)) for part in parts])


@dataclass
class Problem:
    """The labels of one expansion to find."""

    row: np.ndarray
    task: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    present: np.ndarray  # bool (T,): the tasks that have it


@dataclass
class Output:
    """One expansion: Σ_i β_i C[t, task_i] k(x, row_i) + intercept_t."""

    row: np.ndarray
    task: np.ndarray
    beta: np.ndarray
    intercept: np.ndarray  # (T,)
    present: np.ndarray  # bool (T,): the tasks that have this output
    n_iter: int = 0
    objective: float = 0.0
    gap: float = 0.0


class Watch:
    """Progress of solves, perhaps in several threads, and what stops them all."""

    def __init__(self, verbose):
        self.bar = progress(None, unit="step") if verbose else None
        self.lock = threading.Lock()
        self.stopped = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def ticker(self):
        """What one solve calls with its steps so far and the violation left."""
        before = 0

        def tick(n_iter, violation):
            nonlocal before
            if self.stopped:
                raise InterruptedError("the solve of another class has failed or was interrupted")
            if self.bar is not None:
                with self.lock:
                    self.bar.set_postfix(violation=f"{violation:.2g}", refresh=False)
                    self.bar.update(n_iter - before)
                    before = n_iter

        return tick

    def wait(self, solves):
        """The answers of solves in threads, awake now and then for Ctrl-C."""
        try:
            left = solves
            while left:
                done, left = futures.wait(left, timeout=0.2, return_when=futures.FIRST_EXCEPTION)
                for solve in done:
                    solve.result()
            return [solve.result() for solve in solves]
        except BaseException:
            self.stopped = True
            for solve in solves:
                solve.cancel()
            raise


def kernel_of(model, X, weight):
    """The kernel of the settings, or None for a precomputed one."""
    if callable(model.kernel):
        return Kernel(model.kernel, {}, own=True)
    if model.kernel == "precomputed":
        return None
    function, names = KERNELS[model.kernel]
    arguments = {name: getattr(model, name) for name in names}
    for name in ("sigma", "gamma"):
        if isinstance(arguments.get(name), str):
            arguments[name] = kernel_scale(X, arguments[name], name, weight)
    return Kernel(function, arguments, own=False)


def _whole_gram(model, kernel, rows, dtype):
    """The whole Gram matrix, or None where it exceeds `cache_size`."""
    n = rows.shape[0]
    if kernel is None:
        _check_symmetric(rows, "X is a precomputed Gram matrix that")
        return rows
    if n * n * np.dtype(dtype).itemsize > model.cache_size * 2**20:
        return None
    if not kernel.own:
        return kernel(rows, n_threads=model.n_threads, out=empty_matrix(n, n, dtype))
    gram = kernel(rows)
    _check_symmetric(gram, "kernel returned a Gram matrix that")
    return np.ascontiguousarray(gram, dtype=rows.dtype)


def _repaired(model, gram):
    """The Gram matrix with its negative eigenvalues gone, and what maps k(x, ·) to match it."""
    if model.indefinite == "smo":
        return gram, None
    if gram is None:
        raise ValueError(
            f"indefinite={model.indefinite!r} needs the whole Gram matrix, which exceeds "
            f"cache_size={model.cache_size:g} MB; raise cache_size, or use indefinite='smo'"
        )
    if _is_definite(gram):
        return gram, None
    repaired = nearest_psd(gram, model.indefinite)
    values = repaired.eigenvalues
    if values[0] >= -ROUNDING * values[-1]:
        return gram, None
    warnings.warn(
        f"the kernel is not positive semi-definite on these rows: {np.sum(values < 0)} of "
        f"{len(values)} eigenvalues are negative (the least is {values[0]:.3g}, the greatest "
        f"{values[-1]:.3g}); indefinite={model.indefinite!r} repairs them",
        UserWarning,
        stacklevel=5,
    )
    return repaired.gram, repaired.projection


def _is_definite(gram):
    """Whether a Cholesky factor exists but for rounding, at a tenth of the eigenvalues' cost."""
    shifted = gram.copy()
    shifted[np.diag_indices(len(gram))] += ROUNDING * np.trace(gram) / len(gram)
    try:
        scipy.linalg.cholesky(shifted, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return False
    return True


def _check_symmetric(gram, what):
    """Refuse an asymmetric Gram matrix, by tiles so as to need no second one."""
    parts = [slice(begin, begin + 256) for begin in range(0, gram.shape[0], 256)]
    largest = asymmetry = 0.0
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            tile = gram[rows, columns]
            largest = max(largest, float(tile.max()), -float(tile.min()))
            difference = tile - gram[columns, rows].T
            asymmetry = max(asymmetry, float(difference.max()), -float(difference.min()))
    limit = 1e-4 if gram.dtype == np.float32 else 1e-8
    if asymmetry > limit * max(largest, 1e-300):
        raise ValueError(
            f"{what} is not symmetric: entries differ from their mirror by up to {asymmetry:.3g}; "
            "a kernel needs k(x, x') = k(x', x)"
        )


def _intercept_groups(model, n_tasks):
    """Tasks of one group share an intercept; -1 for none."""
    if not model.fit_intercept:
        return np.full(n_tasks, -1)
    return np.arange(n_tasks) if model.task_intercept == "free" else np.zeros(n_tasks, dtype=int)


def _gram_dtype(model, kernel, rows):
    """float32, as in libsvm, unless a spectrum, a small tol or a flat kernel needs every digit."""
    if kernel is None or kernel.own or model.indefinite != "smo" or model.tol < SMALL_TOL:
        return rows.dtype
    some = kernel(rows[:: rows.shape[0] // 64 + 1], n_threads=1)
    spread = np.diagonal(some).mean() - some.mean()  # half the mean squared distance
    return np.dtype(np.float32) if spread > SMALL_SPREAD * np.abs(some).max() else rows.dtype


def solve_duals(model, kernel, rows, problems, factors):
    """The output of each problem of a support vector machine, and what maps k(x, ·) to match."""
    dtype = _gram_dtype(model, kernel, rows)
    gram, projection = _repaired(model, _whole_gram(model, kernel, rows, dtype))
    diagonal = np.diagonal(gram) if gram is not None else kernel.diagonal(rows)
    diagonal = diagonal.astype(np.float64)
    group = _intercept_groups(model, len(factors.kappa))
    n_jobs = min(len(problems), resolve_threads(model.n_threads))
    threads = model.n_threads if n_jobs == 1 else 1

    columns = rows if gram is not None or kernel.own else CheckedRows(rows)

    def compute(wanted, out):
        kernel(rows[wanted], columns, n_threads=threads, out=out)

    def solve(problem):
        cache, entries = None, gram
        if gram is None:
            room = model.cache_size * 2**20 / n_jobs / dtype.itemsize
            cache = RowCache(compute, rows.shape[0], room, dtype)
            entries = cache.rows
        given = entries, cache, diagonal
        return _solve_dual(model, watch.ticker(), given, problem, group, factors)

    watch = Watch(model.verbose)
    with watch:
        if n_jobs > 1:
            with futures.ThreadPoolExecutor(n_jobs) as pool:
                solved = watch.wait([pool.submit(solve, problem) for problem in problems])
        else:
            solved = [solve(problem) for problem in problems]
    outputs, violations, n_negative = zip(*solved)
    _warn(model, max(violations), sum(n_negative), len(outputs))
    return list(outputs), projection


def _solve_dual(model, tick, gram, problem, group, factors):
    row, task, target = problem.row, problem.task, problem.target
    n, bound = len(row), model.C * problem.weight
    epsilon = float(getattr(model, "epsilon", 0.0))
    lower, upper = -bound, bound.copy()
    if model._classification:
        lower, upper = np.minimum(0.0, target * bound), np.maximum(0.0, target * bound)
    ridge = np.zeros(n)
    if model.loss.startswith("squared"):
        ridge = 0.5 / bound
        lower = np.where(lower < 0, -np.inf, 0.0)
        upper = np.where(upper > 0, np.inf, 0.0)
    limit = max(LIBSVM_LIMIT, 100 * n) if model.max_iter == -1 else model.max_iter
    beta, gradient = np.zeros(n), -target
    n_iter, violation, n_negative = minimise(
        *gram,
        row.astype(np.int32),
        task,
        group.astype(np.int32),
        *factors,
        lower,
        upper,
        ridge,
        epsilon,
        float(model.tol),
        limit,
        bool(model.shrinking),
        beta,
        gradient,
        tick,
    )
    tick(n_iter, violation)
    if violation == np.inf:
        raise ValueError(
            f"loss={model.loss!r} has no minimum with this kernel, which is not positive "
            "semi-definite; use indefinite='clip' or 'flip', or a loss without the square"
        )
    intercept = _free_intercepts(beta, gradient, lower, upper, epsilon, group, task)
    fitted = gradient + target - ridge * beta
    output = Output(row, task, beta, intercept, problem.present, n_iter)
    dual = (
        0.5 * beta @ fitted
        + 0.5 * beta @ (ridge * beta)
        - target @ beta
        + epsilon * np.abs(beta).sum()
    )
    residual = target - fitted - intercept[task]
    if model._classification:
        slack = np.maximum(0.0, target * residual)
    else:
        slack = np.maximum(0.0, np.abs(residual) - epsilon)
    if model.loss.startswith("squared"):
        slack = slack**2
    output.objective = float(0.5 * beta @ fitted + bound @ slack)
    output.gap = float(output.objective + dual)
    return output, violation, n_negative


def _without_a_kernel(model, n_outputs):
    """The same model by the linear engine, whose steps do not slow down with the scale of X."""
    if model.kernel != "linear" or n_outputs > 1:
        return ""
    engine = "MultiTaskSGDClassifier" if model._classification else "MultiTaskSGDRegressor"
    return (
        f"; {engine}(loss={model.loss!r}, alpha=1 / (C * n_labels), "
        f"task_intercept={model.task_intercept!r}) has this model's solution"
    )


def _warn(model, violation, n_negative, n_outputs):
    if violation > model.tol:
        warnings.warn(
            f"optimality is violated by {violation:.3g}, more than tol={model.tol:g}, after "
            f"max_iter={model.max_iter} steps; standardise X, lower C, or raise max_iter or tol"
            + _without_a_kernel(model, n_outputs),
            ConvergenceWarning,
            stacklevel=5,
        )
    if n_negative:
        warnings.warn(
            f"the kernel is not positive semi-definite: {n_negative} steps met negative "
            "curvature, so the solution is a stationary point and need not be the minimum; "
            "indefinite='clip' or 'flip' repairs the kernel",
            UserWarning,
            stacklevel=5,
        )


def _free_intercepts(beta, gradient, lower, upper, epsilon, group, task):
    """The intercept of each task: the mean of what its unbounded samples ask for.

    Where none is unbounded, the middle of the interval that the bounded ones allow, or its end
    where it has one end only.
    """
    n_groups = group.max(initial=-1) + 1
    up = gradient + np.where(beta >= 0, epsilon, -epsilon)
    down = gradient + np.where(beta > 0, epsilon, -epsilon)
    own = group[task]
    intercept = np.zeros(n_groups + 1)  # the last: no intercept
    for g in range(n_groups):
        mine = own == g
        free = mine & (beta > lower) & (beta < upper) & ((beta != 0) | (epsilon == 0))
        if free.any():
            intercept[g] = -up[free].mean()
            continue
        ends = []
        if (mine & (beta < upper)).any():
            ends.append(up[mine & (beta < upper)].min())
        if (mine & (beta > lower)).any():
            ends.append(down[mine & (beta > lower)].max())
        intercept[g] = -np.mean(ends) if ends else 0.0
    return intercept[group]


def solve_ridge(model, kernel, rows, problems, factors):
    """The output of kernel ridge in closed form, and what maps k(x, ·) to match."""
    gram, projection = _repaired(model, _whole_gram(model, kernel, rows, rows.dtype))
    if gram is None:
        raise ValueError(
            f"the Gram matrix of {rows.shape[0]} rows exceeds cache_size="
            f"{model.cache_size:g} MB; raise cache_size, or use MultiTaskSVR or make_kernel_sgd"
        )
    (problem,) = problems
    row, task, target, weight = problem.row, problem.task, problem.target, problem.weight
    n, group = len(row), _intercept_groups(model, len(factors.kappa))
    coupled = gram[np.ix_(row, row)].astype(np.float64)
    coupled *= factors.covariance()[np.ix_(task, task)]
    system = coupled.copy()
    system[np.diag_indices(n)] += model.alpha / weight
    if model.fit_intercept:
        # The intercepts make Σ β = 0 in each group.
        present, own = np.unique(group[task], return_inverse=True)
        members = np.zeros((n, len(present)))
        members[np.arange(n), own] = 1.0
        solved = _factor_and_solve(system, np.column_stack([target, members]))
        b = np.linalg.solve(members.T @ solved[:, 1:], members.T @ solved[:, 0])
        beta = solved[:, 0] - solved[:, 1:] @ b
        intercept = np.full(group.max() + 1, b.mean())
        intercept[present] = b
        intercept = intercept[group]
    else:
        beta = _factor_and_solve(system, target)
        intercept = np.zeros(len(group))
    fitted = coupled @ beta
    residual = target - fitted - intercept[task]
    objective = float(weight @ residual**2 + model.alpha * beta @ fitted)
    return [Output(row, task, beta, intercept, problem.present, objective=objective)], projection


def _factor_and_solve(system, sides):
    try:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(system), sides)
    except scipy.linalg.LinAlgError:
        warnings.warn(
            "the kernel is not positive semi-definite (and alpha does not make up for it), so "
            "the solution is a stationary point and need not be the minimum; "
            "indefinite='clip' or 'flip' repairs the kernel",
            UserWarning,
            stacklevel=5,
        )
        return scipy.linalg.solve(system, sides, assume_a="sym")
