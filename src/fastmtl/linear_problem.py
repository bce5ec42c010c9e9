"""A fit of the linear models as the core sees it: samples, weights, penalties and the rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from fastmtl._core import linear_sgd
from fastmtl.config import resolve_threads
from fastmtl.estimators import label_weights
from fastmtl.kernels import empty_matrix
from fastmtl.linear_joint import Joint, fits
from fastmtl.row_blocks import Pages, bounds, in_blocks
from fastmtl.task_columns import find_columns, ragged

# name: (code in the core, bound on the second derivative; None: none, and 1 tames long rows)
LOSSES = {
    "squared_error": (0, 1.0),
    "huber": (1, 1.0),
    "epsilon_insensitive": (2, None),
    "squared_epsilon_insensitive": (3, 2.0),
    "quantile": (4, None),
    "poisson": (5, None),
    "hinge": (6, None),
    "squared_hinge": (7, 2.0),
    "modified_huber": (8, 2.0),
    "log_loss": (9, 0.25),
}
SOFTMAX = (-1, 0.5)
PLAIN = (0.0, 1.0, 0.0, 1.0)  # l1 and l2 of the shared vectors, and of the tasks' own
INTERCEPTS = {"none": 0, "shared": 1, "coupled": 2, "free": 3}
COMMON_INTERCEPT = (INTERCEPTS["shared"], INTERCEPTS["coupled"])
SAMPLE = np.dtype(
    [
        ("row", np.int64),
        ("target", np.float64),
        ("weight", np.float64),
        ("curvature", np.float64),
        ("task", np.int32),
        ("unused", np.int32),
    ]
)
WORK_PER_CALL = 300_000_000  # multiplications, well under a second, so that Ctrl-C is heard
MOST_STEPS_PER_CALL = 2_000_000
# Samples near one another in memory are fetched together, and mixed with those of 63 other places;
# of 31 where the rows of two pools would fill a core's cache. Rows of CSR are longer, and want room
# in the cache for the parameters they touch.
POOL, WIDE_POOL, SPARSE_POOL, POOL_BLOCK = 512, 256, 128, 8
POOL_BYTES = 1 << 18
# How far SAGA steps along a task's own vector, relative to the shared ones, where κ is smaller: the
# proximal step bears any penalty, so only the loss limits the steps (from 0.3 to 1 work alike).
LEAST_OWN_GAIN = 0.3
# While SAGA gains as much as the longest row is longer than others; and the samples a parameter up
# to which it gains less, for alpha alone bends its objective in most directions: more of a
# classifier's, most of which end where their loss is flat.
EPOCHS_OF_DUAL, SAMPLES_OF_DUAL, CLASSIFIED_OF_DUAL = 5, 0.75, 8
# The default rate falls from there on: draws of samples per parameter, but as many as cost nothing,
# and epochs at most.
DRAWS_TO_SETTLE, LEAST_TO_SETTLE, MOST_EPOCHS_TO_SETTLE = 10, 1_000, 20
PACKED_BYTES = 1 << 28  # a copy in task order pays for itself within a few epochs


class Reading:
    """The samples of each block of rows of X, to read X in order of blocks."""

    def __init__(self, X, row):
        self._rows, self._pages = bounds(X), Pages(X)
        self._by_row = np.argsort(row, kind="stable")
        self._cuts = np.searchsorted(row[self._by_row], self._rows)
        self.n_blocks = len(self._rows) - 1

    def blocks(self, order):
        """Yield the samples of the blocks in `order`, fetching each next one ahead."""
        for block, following in zip(order, np.append(order[1:], order[-1])):
            self._pages.fetch(*self._rows[following : following + 2])
            yield self._by_row[self._cuts[block] : self._cuts[block + 1]]
            self._pages.release(*self._rows[block : block + 2])


@dataclass
class Problem:
    solver: str
    data: tuple
    dense: bool
    samples: np.ndarray
    task_start: np.ndarray
    present: np.ndarray
    arguments: tuple  # coupling, heads, loss, penalty, of the core's functions
    alpha: float
    kappa: np.ndarray
    head_task: np.ndarray
    coupled: bool
    free: bool
    chance: np.ndarray
    by_task: bool
    pooled: int  # how many draws are mixed at a time; 0: all
    smoothness: float
    schedule: tuple
    steps_per_call: int
    reading: Reading | None
    shares: tuple
    probability: np.ndarray
    groups: tuple | None
    clip: float
    n_threads: int
    beside: bool  # the dual keeps all tasks' coefficients of a column together
    joint: Joint | None = None

    def pack(self):
        """Put the rows of a small X in the order of the samples, for faster draws."""
        row, n_bytes = self.samples["row"], sum(array.nbytes for array in self.data)
        n_rows = len(self.data[0]) if self.dense else len(self.data[2]) - 1
        if self.reading is not None or n_bytes > PACKED_BYTES or len(row) > n_rows:
            return
        if np.any(np.diff(row) < 0):
            if self.dense:
                X = self.data[0]
                packed = empty_matrix(len(row), X.shape[1], X.dtype)
                self.data = (np.take(X, row, axis=0, out=packed, mode="clip"),)
            else:
                data, indices, indptr, position = self.data
                lengths = np.diff(indptr)[row]
                at, starts = ragged(indptr[row], lengths), np.concatenate([[0], np.cumsum(lengths)])
                position = position[at] if len(position) else position
                self.data = data[at], indices[at], starts, position
            row[:] = np.arange(len(row))

    @property
    def pool(self):
        """How many draws apart samples come from one neighbourhood of X; 0: from anywhere."""
        jumps = np.count_nonzero(np.diff(self.samples["row"]) < 0)
        return self.pooled if jumps * POOL_BLOCK < len(self.samples) else 0

    def loss_value(self, state):
        task_loss = np.zeros(len(self.chance))
        function = linear_sgd.losses_dense if self.dense else linear_sgd.losses_csr
        data, parameters, arguments = self.data, state.parameters, self.arguments
        if self.joint:  # whole vectors, and none that is shared
            vectors, (mixing, kappa) = self.joint.vectors(data[0].dtype), arguments[0]
            starts = vectors.shape[1] * np.arange(len(vectors) + 1)
            data = (*data[:3], data[1])
            parameters = state.shared[:0], vectors, state.intercept
            heads = (*arguments[1][:2], starts)
            arguments = ((np.ascontiguousarray(mixing[:, :0]), kappa), heads, *arguments[2:])
        for part in self._parts():
            function(*data, part, *parameters, *arguments, task_loss, self.n_threads)
        if self.groups is not None:
            return float(task_loss.sum())
        counts = np.diff(self.task_start)
        return float(task_loss[counts > 0] @ (self.chance / np.maximum(counts, 1))[counts > 0])

    def _parts(self):
        """All samples in an order that is good to read them in, in parts of a call each."""
        if self.reading is not None:
            for order in self.reading.blocks(np.arange(self.reading.n_blocks)):
                yield self.samples[order]
            return
        for begin in range(0, len(self.samples), self.steps_per_call):
            part = self.samples[begin : begin + self.steps_per_call]
            if self.groups is not None:  # the draws of a task are not even
                part = part.copy()
                part["weight"] *= self.probability[begin : begin + self.steps_per_call]
            yield part

    def gradient_norm(self, state, averages):
        """Length of the objective's gradient in the whitened parameters, from SAGA's averages."""
        shared_average, specific_average, intercept_average = averages
        used = slice(None) if self.coupled else slice(-1)
        l1, l2 = (self.alpha * share for share in self.shares[:2])
        shared = _steepest(shared_average[..., used], state.shared[..., used], l1, l2)
        kappa = state.of_heads(self.kappa[self.head_task])
        root = np.sqrt(np.where(kappa > 0, kappa, 1.0))
        l1, l2 = (self.alpha * share for share in self.shares[2:])
        whitened = self._penalised(state, state.specific) / root
        gradient = root * self._penalised(state, specific_average)
        specific = _steepest(gradient, whitened, l1, l2) * (kappa > 0)
        squares = np.sum(shared**2) + np.sum(specific**2)
        if self.free:
            squares += np.sum(specific_average.reshape(-1)[state.intercept_place] ** 2)
        else:
            squares += np.sum(intercept_average**2)
        return np.sqrt(squares)

    def penalty_value(self, state):
        shared = state.shared if self.coupled else state.shared[..., :-1]
        shared_l1, shared_l2, task_l1, task_l2 = self.shares
        total = 0.5 * shared_l2 * np.sum(np.square(shared, dtype=np.float64))
        if shared_l1:
            total += shared_l1 * np.abs(shared).sum(dtype=np.float64)
        specific, kappa = self._penalised(state, state.specific), self.kappa[self.head_task]
        own, kappa = kappa > 0, np.where(kappa > 0, kappa, 1.0)
        if state.columns is None:
            squares = np.einsum("ij,ij->i", specific, specific)
        elif own.all() and (kappa == kappa[0]).all():  # spares an array like the vectors
            squares = np.full(len(kappa), np.einsum("i,i->", specific, specific) / len(kappa))
        else:
            squares = np.add.reduceat(specific * specific, state.vector_start[:-1])
        total += 0.5 * task_l2 * np.sum((squares / kappa)[own])
        if task_l1:
            lengths = np.abs(specific) / state.of_heads(np.sqrt(kappa))
            total += task_l1 * np.sum(lengths * state.of_heads(own), dtype=np.float64)
        return self.alpha * total

    def _penalised(self, state, specific):
        """Vectors like the specific ones, without intercepts that bear no penalty."""
        if self.coupled:
            return specific
        if state.columns is None:
            return specific[:, :-1]
        kept = specific.copy()
        kept[state.intercept_place] = 0.0
        return kept


def _steepest(gradient, u, l1, l2):
    """The shortest subgradient of a loss with this gradient plus l1 ‖u‖₁ + ½ l2 ‖u‖²."""
    smooth = gradient + l2 * u
    if not l1:
        return smooth
    at_zero = np.sign(smooth) * np.maximum(np.abs(smooth) - l1, 0.0)
    return np.where(u != 0, smooth + l1 * np.sign(u), at_zero)


def empty_samples(n, dtype=SAMPLE):
    # Draws come from all over the samples: huge pages pay sooner than for what is read in order.
    return empty_matrix(n, 1, dtype, large=1 << 22)[:, 0]


def penalty_shares(model):
    """How strong (shared l1, shared l2, task l1, task l2) are, as multiples of alpha."""
    of = {
        "l2": (0.0, 1.0),
        "l1": (1.0, 0.0),
        "elasticnet": (model.l1_ratio, 1.0 - model.l1_ratio),
        None: (0.0, 0.0),
    }
    return (*of[model.shared_penalty], *of[model.task_penalty])


def describe(model, observations, classes, state, factors, solver):
    """The `Problem` of a fit; "auto" takes the dual if that pays, else SAGA, else SGD."""
    X = observations.X
    kind = model._intercept_kind()
    code, parameter, smoothness, user = model._loss_setting(classes)
    weight = label_weights(model, observations, classes)
    kept = np.flatnonzero(weight > 0)
    n, task = len(kept), observations.task[kept]
    counts = np.bincount(task, minlength=observations.n_tasks)
    task_start = np.concatenate([[0], np.cumsum(counts)])
    present = np.flatnonzero(counts)
    by_task = model.sampling in ("task", "balanced") and solver == "sgd"
    if by_task:
        chance = (counts > 0) / len(present)
    else:
        chance = counts / n
    # Each draw's weight is its share of the objective over the chance of the draw.
    probability, groups = chance[task] / counts[task], None
    if by_task and model.sampling == "balanced" and model._classification:
        groups, probability = _groups(task, classes.code[kept], chance)
    per_draw = probability * observations.weight.sum()
    samples = empty_samples(n)
    samples["unused"] = 0
    samples["row"] = observations.row[kept]
    samples["task"] = task
    samples["target"] = classes.code[kept]
    samples["weight"] = weight[kept] / per_draw

    coupled = kind == "coupled"
    lengths = squared_lengths(X)[samples["row"]] + coupled
    common_gain, own_gain = (factors.mixing**2).sum(axis=1), factors.kappa
    bound = 1.0 if smoothness is None else smoothness

    def curvature():
        samples["curvature"] = (common_gain + own_gain)[task] * lengths + (kind != "none")
        return bound * samples["weight"] * samples["curvature"]

    if solver == "auto":
        solver = "sgd" if smoothness is None else "saga"
        # Where X is read by blocks, judging the dual would read it twice an epoch.
        open_to_dual = model._takes_dual() and model.sampling != "block" and code >= 0
        if open_to_dual and dual_pays(model, observations, factors, curvature()):
            solver = "dual"
    if solver == "saga":
        longer = np.maximum(own_gain, LEAST_OWN_GAIN * common_gain)
        own_gain = np.where(own_gain > 0, longer, 0.0)
    task_alpha = model.alpha * own_gain / np.where(own_gain > 0, factors.kappa, 1.0)
    slopes = curvature()

    with np.errstate(divide="ignore"):
        task_rarity = np.where(counts > 0, 1.0 / chance, 0.0)
    has_class = np.zeros((observations.n_tasks, len(state.intercept)), dtype=bool)
    head_task = np.repeat(np.arange(observations.n_tasks), np.diff(state.head_start))
    has_class[head_task, state.head_class] = True
    seen = chance @ has_class
    class_rarity = np.where(seen > 0, 1.0 / np.maximum(seen, 1e-300), 0.0)

    shares = penalty_shares(model)
    convexity = float(model.alpha) * min(
        [shares[1]] * (len(state.shared) > 0) + [shares[3]] * bool((factors.kappa > 0).any())
    )
    n_vectors = factors.mixing.shape[1] + (factors.kappa[head_task] > 0).sum()
    settling = max(LEAST_TO_SETTLE, DRAWS_TO_SETTLE * (n_vectors + 1) * X.shape[1])
    settling = min(settling, MOST_EPOCHS_TO_SETTLE * n)
    stretch = _stretch(model, samples) if solver == "sgd" else 1.0
    schedule, damping = _schedule(model, slopes / stretch, bound / stretch, settling, convexity)
    heads = (state.head_start, state.head_class)
    if sp.issparse(X):
        heads += (state.vector_start,)
    arguments = (
        (factors.mixing, own_gain),
        heads,
        (code, parameter, damping, user),
        (float(model.alpha), task_rarity, class_rarity, INTERCEPTS[kind], task_alpha),
    )
    beside = sp.issparse(X) and solver == "dual" and fits(X, state, len(factors.kappa), kind)
    if sp.issparse(X):
        X, samples["row"] = _own_rows(X, samples["row"], state.columns)
        data = (X.data, X.indices.astype(np.int32, copy=False), X.indptr.astype(np.int64))
        if beside and not (state.shared.any() or state.specific.any()):
            data += (data[1][:0],)  # positions serve a start from elsewhere alone
        elif state.columns is None:
            data += (data[1],)
        else:
            data += find_columns(X, samples["row"].copy(), task_start, state.columns, False)[1:]
    else:
        data = (X,)
    if sp.issparse(X):
        pool = SPARSE_POOL
    else:
        pool = POOL if POOL * X.shape[1] * X.dtype.itemsize <= POOL_BYTES else WIDE_POOL
    return Problem(
        solver,
        data,
        not sp.issparse(X),
        samples,
        task_start,
        present,
        arguments,
        float(model.alpha),
        factors.kappa,
        head_task,
        coupled,
        kind == "free",
        chance,
        by_task,
        pool if solver != "saga" and model.sampling == "uniform" and n >= 16 * pool else 0,
        bound,
        schedule,
        _steps_per_call(X, state),
        Reading(X, samples["row"]) if model.sampling == "block" else None,
        shares,
        probability,
        groups,
        float(model.clip_gradient or 0.0),
        resolve_threads(model.n_threads, work=n * X.shape[1]),
        beside,
    )


def n_parameters(observations, factors):
    """Coefficients that samples have a say in; tasks' own are no more than a sparse X's entries."""
    X, (mixing, kappa) = observations.X, factors
    own = X.shape[1] * np.count_nonzero(kappa[np.diff(observations.task_start) > 0])
    if sp.issparse(X):
        own = min(own, len(observations.row) * X.nnz / max(X.shape[0], 1))
    return mixing.shape[1] * X.shape[1] + own


def dual_pays(model, observations, factors, curvature):
    """Whether the dual is solved sooner than SAGA or SGD near the minimum.

    What slows SAGA down is the longest row, which all steps are short for; the dual has a step for
    each row, and is slowed down by a weak penalty alone.
    """
    most = CLASSIFIED_OF_DUAL if model._classification else SAMPLES_OF_DUAL
    if len(curvature) <= most * n_parameters(observations, factors):
        return True
    steep = curvature.mean() / (model.alpha * len(curvature))
    return bool(steep * curvature.mean() <= EPOCHS_OF_DUAL * curvature.max())


def columns_worth_keeping(X, row, n_heads):
    """Whether vectors that have a task's own columns only are smaller than those that have all."""
    if len(row) <= X.shape[0] and np.bincount(row, minlength=1).max() <= 1:
        return True
    return 2 * np.diff(X.indptr)[row].sum() < n_heads * X.shape[1]


def _own_rows(X, row, columns):
    """X and rows of it, such that a row belongs to one task only where tasks differ in columns."""
    if columns is None or np.bincount(row, minlength=1).max() <= 1:
        return X, row
    return X[row], np.arange(len(row))


def constant_score(user, target, weight):
    """Where the scores of a user's own loss start: the targets' mean or zero, as it likes better.

    The mean is right for losses that compare p with y, and far off for those with a link.
    """
    target = np.ascontiguousarray(target, dtype=np.float64)
    value, gradient = np.empty_like(target), np.empty_like(target)
    starts, losses = [float(np.average(target, weights=weight)), 0.0], []
    for start in starts:
        score = np.full_like(target, start)
        linear_sgd.point_losses(0, 0.0, target, score, value, gradient, user)
        losses.append(weight @ value)
    return starts[0] if losses[0] < losses[1] else 0.0


def _steps_per_call(X, state):
    # An entry of CSR waits for its place in the parameters: count it as eight.
    row_length = 8 * X.nnz / X.shape[0] if sp.issparse(X) else X.shape[1]
    heads = np.diff(state.head_start).mean() * (len(state.shared) + 1)
    return int(max(1, min(WORK_PER_CALL / ((row_length + 1) * heads), MOST_STEPS_PER_CALL)))


def _groups(task, code, chance):
    """Each task's classes as groups to draw from, and the chance of each sample."""
    member = np.lexsort((code, task))
    first = np.append(True, (np.diff(task[member]) != 0) | (np.diff(code[member]) != 0))
    group_start = np.append(np.flatnonzero(first), len(task))
    group_task = task[member][first]
    of_task = np.bincount(group_task, minlength=len(chance))
    share = chance[group_task] / of_task[group_task] / np.diff(group_start)
    probability = np.empty(len(task))
    probability[member] = np.repeat(share, np.diff(group_start))
    task_start = np.concatenate([[0], np.cumsum(of_task)])
    return (group_start, member, task_start), probability


def _schedule(model, curvature, bound, settling, convexity):
    """(scale, offset, power) of the rate, and the smoothness that damps long rows.

    After `settling` steps the default rate is half of the first.
    """
    if model.learning_rate == "adagrad":
        return (model.eta0 or 0.1, 0.0, 0.0), 0.0
    alpha = float(model.alpha)
    if model.learning_rate == "constant":
        return (model.eta0, 0.0, 0.0), 0.0
    if model.learning_rate == "invscaling":
        return (model.eta0, 1.0, model.power_t), 0.0
    if model.learning_rate == "optimal":
        # Bottou's heuristic: the first step is as large as a typical weight.
        first = model.eta0 or np.sqrt(1.0 / np.sqrt(alpha))
        return (1.0 / alpha, 1.0 / (alpha * first), 1.0), 0.0
    first = model.eta0 or 1.0 / max(curvature.mean(), 1e-12)
    if model.learning_rate == "adaptive":
        return (first, 0.0, 0.0), bound
    decay = max(convexity / 2, 1.0 / (settling * first))
    return (1.0 / decay, 1.0 / (decay * first), 1.0), bound


def squared_lengths(X):
    lengths = np.empty(X.shape[0])
    if sp.issparse(X):
        linear_sgd.squared_lengths(X.data, X.indptr.astype(np.int64, copy=False), lengths)
        return lengths
    for rows, block in in_blocks(X):
        with np.errstate(over="ignore"):  # in double precision only if it must be: it converts
            squares = np.einsum("ij,ij->i", block, block)
        if not np.isfinite(squares).all():
            squares = np.einsum("ij,ij->i", block, block, dtype=np.float64)
        lengths[rows] = squares
    return lengths


def _stretch(model, samples):
    """How much longer steps must be where slopes are bounded: by what the targets are spread."""
    steepest = {
        "epsilon_insensitive": 1.0,
        "quantile": 1.0,
        "huber": getattr(model, "epsilon", 1.0),
    }
    if not isinstance(model.loss, str) or model.loss not in steepest:
        return 1.0
    spread = samples["target"].std() / steepest[model.loss]
    return max(spread, 1.0) if np.isfinite(spread) else 1.0
