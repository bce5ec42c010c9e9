"""Learning how tasks are related: the marginal likelihood of C, maximised.

Task t's vector has the prior covariance ``C = B Bᵀ + diag(κ)`` with the other tasks', in each
coordinate alike (or up to a feature covariance Ω = L Lᵀ). Integrated over the vectors, the data's
likelihood is a function of B, κ, Ω and the noise alone, and it does not reward what a fit of many
small tasks rewards: a C that follows the noise in the fitted vectors.

Losses that are not quadratic enter by their quadratic expansion about the posterior mode (Laplace).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.special
from scipy.optimize import minimize
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import ThreadpoolController

from fastmtl._core import ridge
from fastmtl.evidence import Posterior, Relations, Summary, padded, posterior

MAX_RANK = 12
MAX_ROUNDS = 6  # of expansion and search, for losses that are not quadratic
MODE_STEPS = 15
SEARCH_STEPS = 60
MEMORY = 1.5e7  # numbers in the stack of the tasks' Gram matrices
MAX_WIDTH = 128  # features; relations of more are learned on their leading components
FREE = 30.0  # prior standard deviation of an intercept that is not coupled, beside coefficients
FLOOR = 1e-2  # the least κ_t beside the mean variance: no task collapses on the shared part
FEATURE_SHRINKAGE = 20.0  # tasks' worth of belief that features are uncorrelated in Ω
ALIKE = 2  # directions in which the means of tasks' rows differ
DECISIVE = 5.0  # log evidence that leaving the relations of "mean", or freeing a column, must gain
LITTLE = 0.03  # log evidence that the last steps of a search must gain
STEPS, MANY_STEPS = 2, 5  # these; many where columns of B are free, which begin near a saddle
PATIENCE = 3  # steps of a search without such a gain
KAPPA_SPREAD = 1.0  # prior standard deviation of log κ_t about its mean


class _Search:
    """The likelihood of one kind of relations as a function of a flat vector, for L-BFGS-B.

    `rank` 0 is B = b 1, the shared vector with a free strength; `spread` frees each κ_t;
    `features` is how Ω may differ from the identity. Beside them B has `start.alike`, of a free
    strength.
    """

    def __init__(self, summaries, data, rank, spread, features, start):
        self.summaries, self.flat, self.noisy = summaries, data.flat, data.loss == "squared"
        self.rank, self.spread, self.features = rank, spread, features
        self.start, self.last = start, None
        self.n_tasks = len(start.kappa)
        self.p, self.q = start.root.shape
        self.lower = np.tril_indices(self.q, -1)
        if features == "identity":
            for summary in summaries:
                summary.diagonalise(start.root, self.flat)
        else:
            self.summaries = [replace(summary, spectrum=None) for summary in summaries]

    def initial(self):
        start, q = self.start, self.q
        mean_log = np.mean(np.log(start.kappa))
        scales = np.log(np.diag(start.root[:q]))
        unit = start.root[:q] / np.exp(scales)[:, None]
        cut = start.n_free
        mixing = start.mixing[:, :cut].ravel() if self.rank else [np.log(start.mixing[0, 0])]
        alike = []
        if start.alike is not None:
            alike = [np.log(np.linalg.norm(start.mixing[:, cut:]) / np.linalg.norm(start.alike))]
        parts = {
            "mixing": mixing,
            "alike": alike,
            "level": [mean_log],
            "spread": np.log(start.kappa) - mean_log if self.spread else [],
            "scales": scales if self.features != "identity" else [],
            "unit": unit[self.lower] if self.features == "full" else [],
            "noise": [np.log(start.noise)] if self.noisy else [],
        }
        self.ends = np.cumsum([0] + [len(part) for part in parts.values()])
        self.units = self._units(parts)
        self.names = list(parts)
        reach = {"level": 8.0, "spread": 5.0, "scales": 4.0, "noise": 8.0, "alike": 8.0}
        reach["mixing"] = np.inf if self.rank else 6.0
        self.origin = np.concatenate([np.asarray(part, dtype=float) for part in parts.values()])
        bounds = []
        for name, begin, end in zip(parts, self.ends, self.ends[1:]):
            bound = reach.get(name, np.inf)
            bounds += [(-bound / unit, bound / unit) for unit in self.units[begin:end]]
        return np.zeros(len(self.origin)), bounds

    def _units(self, parts):
        """Of each number, about what changes the likelihood by ½, so that a search is round.

        By the information at the start, with shared vectors as long as their prior has them. The
        expansion of a loss that is not quadratic holds near the start only: its steps stay short.
        """
        units = np.ones(self.ends[-1])
        if not self.noisy:
            return units
        kappa, left = self.start.kappa, sum(summary.left(self.start) for summary in self.summaries)
        own = 0.5 * kappa**2 * np.sum(np.square(left), axis=(1, 2))
        information = {
            "mixing": 2.0 * self.q,
            "alike": 2.0 * self.q,
            "level": own.sum(),
            "spread": own + 1 / KAPPA_SPREAD**2,
            "scales": 4.0 * own.sum() / self.q,
            "unit": 2.0 * own.sum() / self.q,
            "noise": 0.5 * sum(summary.count for summary in self.summaries),
        }
        if self.rank:
            information["mixing"] = np.repeat(np.trace(left, axis1=1, axis2=2), self.rank)
        for name, begin, end in zip(parts, self.ends, self.ends[1:]):
            if name in information and end > begin:
                units[begin:end] = np.maximum(information[name], 1e-3) ** -0.5
        return units

    def relations(self, x):
        x = self.origin + self.units * x
        part = {n: x[a:b] for n, a, b in zip(self.names, self.ends, self.ends[1:])}
        if self.rank:
            mixing = part["mixing"].reshape(self.n_tasks, self.rank)
        else:
            mixing = np.full((self.n_tasks, 1), np.exp(part["mixing"][0]))
        if self.start.alike is not None:
            mixing = np.column_stack([mixing, np.exp(part["alike"][0]) * self.start.alike])
        kappa = np.exp(part["level"][0] + np.zeros(self.n_tasks))
        if self.spread:
            kappa = kappa * np.exp(part["spread"])
        root = self.start.root
        if self.features != "identity":
            unit = np.eye(self.q)
            if self.features == "full":
                unit[self.lower] = part["unit"]
            root = np.zeros((self.p, self.q))
            root[: self.q] = unit * np.exp(part["scales"])[:, None]
        noise = np.exp(part["noise"][0]) if self.noisy else 1.0
        return Relations(mixing, kappa, root, noise, not self.rank, self.start.alike)

    def __call__(self, x):
        if self.last is not None and np.array_equal(x, self.last[0]):
            return self.last[1:]
        relations = self.relations(x)
        root = relations.root
        try:
            value, by_kappa, by_root = self.prior(relations)
            by_mixing, by_noise, self.at = 0.0, 0.0, []
            for summary in self.summaries:
                found = posterior(summary, relations, self.flat, gradient=True)
                self.at.append(found)
                value += found.value
                by_mixing = by_mixing + found.gradient[0]
                by_kappa = by_kappa + found.gradient[1]
                by_root = by_root if self.features == "identity" else by_root + found.gradient[2]
                by_noise += found.gradient[3]
        except np.linalg.LinAlgError:
            return 1e300, np.zeros_like(x)
        by_strength, cut = by_mixing * relations.mixing, relations.n_free
        parts = [by_mixing[:, :cut].ravel() if self.rank else [by_strength[:, 0].sum()]]
        if relations.alike is not None:
            parts.append([by_strength[:, cut:].sum()])
        parts.append([by_kappa.sum()])
        if self.spread:
            parts.append(by_kappa)
        if self.features != "identity":
            parts.append(np.sum(by_root[: self.q] * root[: self.q], axis=1))
        if self.features == "full":
            parts.append((by_root[: self.q] * np.diag(root)[:, None])[self.lower])
        if self.noisy:
            parts.append([by_noise])
        self.last = x.copy(), value, self.units * np.concatenate(parts)
        return self.last[1:]

    def prior(self, relations):
        """Negative log prior of κ and Ω, and its gradients in log κ and L."""
        value, by_kappa, by_root = 0.0, 0.0, 0.0
        if self.spread:
            logs = np.log(relations.kappa)
            by_kappa = (logs - logs.mean()) / KAPPA_SPREAD**2
            value += 0.5 * np.sum((logs - logs.mean()) ** 2) / KAPPA_SPREAD**2
        if self.features == "full":
            # Inverse Wishart about the diagonal matrix that suits Ω best, diag(Ω⁻¹)⁻¹.
            root = relations.root[: self.q]
            inverse = np.linalg.inv(root)
            precision = inverse.T @ inverse
            partial = 1 / np.diag(precision)
            value += FEATURE_SHRINKAGE * (np.log(np.diag(root)).sum() - 0.5 * np.log(partial).sum())
            by_root = np.zeros_like(relations.root)
            by_root[: self.q] = FEATURE_SHRINKAGE * (inverse.T - precision * partial @ inverse.T)
        return value, by_kappa, by_root

    def run(self, careful, little):
        """Minimise until steps gain `little`; a `careful` search ends, too, where gains no longer
        pay for B's freedom."""
        x, bounds = self.initial()
        best = np.inf, x
        later, values = 0, [self(x)[0]]
        steps = (MANY_STEPS if self.rank else STEPS) if self.noisy else 1

        def watch(intermediate_result):
            nonlocal best, later
            value, x = intermediate_result.fun, intermediate_result.x
            values.append(value)
            if careful:
                value += _mixing_cost(self.relations(x), (self.at, self.summaries))
                later = later + 1 if value > best[0] else 0
                if value < best[0]:
                    best = value, x.copy()
            settled = len(values) > steps and values[-1 - steps] - values[-1] < little
            if settled or later >= PATIENCE:
                raise StopIteration

        found = minimize(
            self,
            x,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": SEARCH_STEPS, "gtol": 1e-2, "ftol": 0.0, "maxcor": 20},
            callback=watch,
        )
        x = best[1] if careful and found.nit else found.x
        return self.relations(x), float(self(x)[0] if careful else found.fun)


@dataclass
class Data:
    """Rows of X (m, p) and, in task order, the observations: families of targets share them.

    A constant is the last column where there is an intercept; `flat` says that a shared intercept
    without a prior stands beside the vectors.
    """

    rows: np.ndarray
    row: np.ndarray
    task_start: np.ndarray
    families: list  # of (target (n,), weight (n,))
    loss: str  # "squared", "log" (targets ±1) or "poisson"
    flat: bool
    quadratic: dict = field(default_factory=dict)  # summaries that are the same everywhere

    @property
    def n_tasks(self):
        return len(self.task_start) - 1

    def by_task(self):
        for t, (begin, end) in enumerate(zip(self.task_start, self.task_start[1:])):
            if end > begin:
                yield t, slice(begin, end), self.rows[self.row[begin:end]]

    def scores(self, vectors):
        scores = np.empty(len(self.row))
        for t, own, rows in self.by_task():
            scores[own] = rows @ vectors[t]
        return scores

    def losses(self, family, scores):
        target, weight = self.families[family]
        if self.loss == "log":
            return float(weight @ np.logaddexp(0.0, -target * scores))
        return float(weight @ (np.exp(scores) - target * scores))

    def summary(self, family, vectors):
        """The quadratic expansion about `vectors` (T, p); for squared loss the same about any."""
        target, weight = self.families[family]
        if self.loss == "squared":
            if family not in self.quadratic:
                p = self.rows.shape[1]
                whole = np.empty((self.n_tasks, padded(p), padded(p)))
                places = np.asarray(self.row, np.int64), self.task_start, weight, target
                ridge.grams_dense(self.rows, *places, whole, False, 1)
                gram, moment = np.ascontiguousarray(whole[:, :p, :p]), whole[:, :p, p + 1]
                square, count = float(whole[:, p + 1, p + 1].sum()), float(np.sum(weight > 0))
                self.quadratic[family] = Summary(gram, moment, square, count)
            return self.quadratic[family]
        scores = self.scores(vectors)
        if self.loss == "log":
            tail = scipy.special.expit(-target * scores)
            slope, curve = -weight * target * tail, weight * tail * (1 - tail)
        else:
            curve = weight * np.exp(scores)
            slope = curve - weight * target
        gram, moment = self._products(curve, curve * scores - slope)
        quadratic = np.einsum("ti,tij,tj->", vectors, gram, vectors, optimize=True)
        square = 2 * self.losses(family, scores) - quadratic + 2 * np.sum(moment * vectors)
        return Summary(gram, moment, square, 0.0)

    def _products(self, weight, target):
        """Σ w z zᵀ and Σ target z over each task's rows."""
        p = self.rows.shape[1]
        gram, moment = np.zeros((self.n_tasks, p, p)), np.zeros((self.n_tasks, p))
        for t, own, rows in self.by_task():
            gram[t] = (rows * weight[own, None]).T @ rows
            moment[t] = target[own] @ rows
        return gram, moment


def modes(data, relations, starts):
    """Posterior modes of all families, by damped Newton steps, and the expansions about them."""
    found, summaries = [], []
    for family, now in enumerate(starts):
        summary = data.summary(family, now.vectors)
        if data.loss == "squared":
            now = posterior(summary, relations, data.flat)
        else:
            for _ in range(MODE_STEPS):
                step = posterior(summary, relations, data.flat)
                now, gain = _damped(data, relations, family, now, step)
                summary = data.summary(family, now.vectors)
                if gain < 1e-2:
                    break
            now.value = posterior(summary, relations, data.flat).value
        found.append(now)
        summaries.append(summary)
    return found, summaries


def _damped(data, relations, family, old, new):
    """The point towards `new` that lowers the penalised loss, and by how much it does."""

    def objective(at):
        penalty = np.sum(at.shared**2) + np.sum(at.specific**2 / relations.kappa[:, None])
        return data.losses(family, data.scores(at.vectors)) + 0.5 * penalty

    before = objective(old)
    share, at = 1.0, new
    while not (after := objective(at)) <= before and share > 1e-4:
        share /= 2
        at = Posterior(
            new.value,
            old.shared + share * (new.shared - old.shared),
            old.specific + share * (new.specific - old.specific),
            old.offset + share * (new.offset - old.offset),
            old.vectors + share * (new.vectors - old.vectors),
        )
    return at, before - after


def _mixing_cost(relations, found):
    """What freeing B costs in evidence: Laplace's approximation under rows of B ~ N(mean, Λ).

    Λ is the rows' own covariance, so the cost is ½ Σ_t log |1 + Λ I_t| + ½ T R with I_t the
    information of the data on row t.
    """
    B = relations.mixing[:, : relations.n_free]
    spread = np.cov(B.T, ddof=0).reshape(B.shape[1], -1)
    information = 0.0
    for at, summary in zip(*found):
        shared = at.shared[: B.shape[1]]
        information = information + shared @ summary.left(relations) @ shared.T
    _, logs = np.linalg.slogdet(np.eye(B.shape[1]) + spread @ information)
    return 0.5 * (logs.sum() + B.size)


def learn(data, root, *, rank="auto", features="identity"):
    """Maximise the evidence over the relations, and choose their rank by it.

    Parameters
    ----------
    data : Data
        Its weights sum to n where the solver divides by n.
    root : ndarray of shape (p, q)
        L to start from; with ``features="identity"`` it stays.
    rank : int or "auto", default="auto"
        Columns of B. ``"auto"`` starts from one shared vector (B = b 1) and frees B, a column at a
        time, for as long as the evidence, less what B's own freedom costs, grows.
    features : {"identity", "diagonal", "full"}, default="identity"

    Returns
    -------
    relations : Relations
    starts : list of Posterior
    value : float
        Negative log evidence, with the cost of what was freed.
    """
    with _threadpools().limit(limits=1, user_api="blas"):  # small products: threads would wait
        return _learn(data, root, rank, features)


@functools.cache
def _threadpools():
    # NumPy's and SciPy's are loaded by now, and a search for them costs milliseconds.
    return ThreadpoolController()


def _learn(data, root, rank, features):
    relations, starts = _first(data, root)
    if data.loss == "squared":  # the first search would do so
        for family in range(len(starts)):
            data.summary(family, None).diagonalise(root, data.flat)
    now = _rounds(data, relations, modes(data, relations, starts), 0)
    if data.loss != "squared":
        now = _moved(data, now, (1, 1), (1, 0), (0, 1))
    if rank == "auto" and data.n_tasks > 1:
        now = _default(data, now)
    best = now
    if rank == "auto" and (alike := _alike(data)) is not None:
        now = _rounds(data, *_with_alike(now, alike), 0)
        cost = 0.5 * np.log(data.n_tasks)
        if now[0] + cost < best[0]:
            best = now[0] + cost, *now[1:]
        now = best
    most = min(data.n_tasks, root.shape[1], MAX_RANK) if rank == "auto" else rank
    for columns in range(1, most + 1) if data.n_tasks > 1 else ():
        promising, relations, found = _with_column(data, now, columns)
        # The promise of the first, when little is shared as yet, is too often missed.
        if rank == "auto" and columns > 1 and not promising:
            break
        passing = rank != "auto" and columns < most  # the next column's search goes on from here
        little = DECISIVE if passing else LITTLE
        now = _rounds(data, relations, found, columns, careful=rank == "auto", little=little)
        cost = _mixing_cost(*now[1:])
        if rank != "auto" or now[0] + cost + DECISIVE < best[0]:
            best = now[0] + cost, *now[1:]
        elif columns - _freed(best) >= 2:
            break
    if features != "identity":
        now = _rounds(data, *best[1:], _freed(best), features=features)
        best = now[0] + (_mixing_cost(*now[1:]) if _freed(best) else 0.0), *now[1:]
    if data.n_tasks > 2 and _tasks_differ_in_size(data, best):
        freed = _rounds(data, *best[1:], _freed(best), spread=True, features=features)
        value = freed[0] + _spread_cost(data, root)
        value += _mixing_cost(*freed[1:]) if _freed(best) else 0.0
        if value < best[0]:
            best = value, *freed[1:]
    value, relations, (starts, _) = best
    return relations, starts, value


def _moved(data, now, *directions):
    """Relations with log(b²) and log(κ) moved in these directions while the evidence grows.

    A search holds the expansion of a loss that is not quadratic where it is, and misses that larger
    vectors flatten the loss: where classes are nearly separable it ends far from the best size.
    """
    for step in (np.log(4.0), np.log(2.0)):
        moves = [(way * s, way * k) for s, k in directions for way in (step, -step)]
        still = 0
        while still < len(moves):
            then = _scaled(data, now, *moves[0])
            if then[0] < now[0] - 0.5:
                now, still = then, 0
            else:
                moves, still = moves[1:] + moves[:1], still + 1
    return now


def _scaled(data, now, shared, own):
    _, relations, (starts, _) = now
    size = np.exp(shared / 2)
    starts = [replace(at, shared=at.shared / size) for at in starts]
    mixing, kappa = size * relations.mixing, np.exp(own) * relations.kappa
    relations = replace(relations, mixing=mixing, kappa=kappa)
    found = modes(data, relations, starts)
    return sum(at.value for at in found[0]), relations, found


def _default(data, now):
    """The relations of ``"mean"``, κ = b², where the evidence for another κ is not decisive."""
    relations = now[1]
    b, kappa = relations.mixing[0, 0] ** 2, relations.kappa[0]
    middle = (b + kappa) / 2
    even = _scaled(data, now, np.log(middle / b), np.log(middle / kappa))
    if even[0] > now[0] + 10 * DECISIVE:
        return now
    even = _moved(data, even, (1, 1))
    return even if even[0] < now[0] + DECISIVE else now


def _freed(now):
    return 0 if now[1].plain else now[1].n_free


def _alike(data):
    """Where tasks lie along the main directions in which the means of their rows differ, or None.

    Columns of B in proportion to it make tasks related whose rows look alike.
    """
    width = data.rows.shape[1] - bool(np.ptp(data.rows[:, -1]) == 0)
    mean = np.zeros((data.n_tasks, width))
    square = np.zeros(width)
    for t, _, rows in data.by_task():
        mean[t] = rows[:, :width].mean(axis=0)
        square += np.sum(np.square(rows[:, :width] - mean[t]), axis=0)
    mean = mean - mean.mean(axis=0)
    within = np.sqrt(square / len(data.row) + np.mean(mean**2, axis=0))
    varies = within > 0
    left, size, _ = np.linalg.svd(mean[:, varies] / within[varies], full_matrices=False)
    kept = np.flatnonzero(size[:ALIKE] > 1e-6 * np.sqrt(mean.size))
    if data.n_tasks <= ALIKE + 1 or not len(kept):
        return None
    alike = left[:, kept] * size[kept]
    return alike * np.sqrt(data.n_tasks) / np.linalg.norm(alike)


def _with_alike(now, alike):
    """Relations with columns of B in proportion to `alike`, of a tenth of κ's size at first."""
    _, relations, (starts, summaries) = now
    more = np.sqrt(0.1 * relations.kappa.mean()) * alike
    starts = [_inserted(at, 1, alike.shape[1]) for at in starts]
    relations = replace(relations, mixing=np.column_stack([relations.mixing, more]), alike=alike)
    return relations, (starts, summaries)


def _inserted(at, place, count=1):
    """A posterior with more shared vectors, as yet zero."""
    q = at.shared.shape[1]
    return replace(at, shared=np.insert(at.shared, [place] * count, np.zeros(q), axis=0))


def _spread_cost(data, root):
    return 0.5 * data.n_tasks * np.log1p(root.shape[1] / 2 * KAPPA_SPREAD**2)


def _tasks_differ_in_size(data, now):
    """Whether the score in log κ_t promises more than freeing κ costs."""
    _, relations, (_, summaries) = now
    q = relations.root.shape[1]
    score = 0.0
    for summary in summaries:
        gradient = posterior(summary, relations, data.flat, gradient=True).gradient[1]
        score = score + gradient
    gain = 0.5 * np.sum(score**2) / (q * len(summaries) / 4 + 1 / KAPPA_SPREAD**2)
    return gain > 0.5 * _spread_cost(data, relations.root)


def _first(data, root):
    """One shared vector and tasks about it, of a size that the targets suggest."""
    length = np.mean([np.sum(rows**2) / len(rows) for _, _, rows in data.by_task()])
    target, weight = data.families[0]
    mean = np.average(target, weights=weight)
    spread = np.average((target - mean) ** 2, weights=weight)
    signal, noise = {"squared": (0.3 * spread, 0.7 * spread), "log": (2.0, 1.0)}.get(
        data.loss, (0.5, 1.0)
    )
    size = max(signal, 1e-12) / max(length, 1e-12)
    relations = Relations(
        np.full((data.n_tasks, 1), np.sqrt(0.7 * size)),
        np.full(data.n_tasks, 0.3 * size),
        root,
        max(noise, 1e-12),
    )
    q = root.shape[1]
    starts = []
    for target, weight in data.families:
        mean = float(np.average(target, weights=weight))
        if data.loss == "log":
            mean = float(scipy.special.logit(np.clip((1 + mean) / 2, 1e-6, 1 - 1e-6)))
        elif data.loss == "poisson":
            mean = float(np.log(max(mean, 1e-6)))
        vectors = np.zeros((data.n_tasks, len(root)))
        offset = mean if data.flat else 0.0
        vectors[:, -1] += offset
        starts.append(
            Posterior(0.0, np.zeros((1, q)), np.zeros((data.n_tasks, q)), offset, vectors)
        )
    return relations, starts


def _with_column(data, now, columns):
    """B with its first column freed, or with one more; and whether that promises anything.

    The new column multiplies the main direction that the task-specific parts have in common. With
    the direction taken as known, rows B_t ~ N(0, λ) have the evidence ½ Σ_t (score_t² /
    (information_t + 1/λ) - log(1 + λ information_t)): promising, if some λ makes it positive.
    """
    _, relations, (starts, summaries) = now
    specific = np.concatenate([at.specific for at in starts], axis=1)
    left, _, right = np.linalg.svd(specific, full_matrices=False)
    direction = left[:, :1] * np.sign(left[:, 0].sum() or 1.0)
    q = relations.root.shape[1]
    trials = [(right[0].reshape(len(starts), q), specific.shape[1])]
    if columns == 1:
        trials.append((np.array([at.shared[0] for at in starts]), 0))
    best = -np.inf
    for trial, n_unknown in trials:
        score, information = 0.0, 0.0
        for at, summary, own in zip(starts, summaries, trial):
            # with v_t at its best the slope in u_t is that of v_t's own prior
            score = score + at.specific @ own / relations.kappa
            information = information + np.maximum(summary.left(relations) @ own @ own, 0.0)
        for spread in np.geomspace(1e-3, 1e3, 25) / max(np.mean(information), 1e-300):
            gain = score**2 / (information + 1 / spread) - np.log1p(spread * information)
            unknown = n_unknown * np.log1p(spread * information.sum() / max(n_unknown, 1))
            best = max(best, 0.5 * (gain.sum() - unknown))
    mixing = relations.mixing
    size = 0.5 * np.sqrt(data.n_tasks * relations.kappa.mean())
    if columns > 1:
        mixing = np.insert(mixing, relations.n_free, size * direction[:, 0], axis=1)
        starts = [_inserted(at, relations.n_free) for at in starts]
    elif mixing[0, 0] ** 2 < relations.kappa.mean():
        mixing = mixing.copy()
        mixing[:, :1] += size * direction  # B = b 1 with b near 0 is a saddle
    return best > DECISIVE, replace(relations, mixing=mixing), (starts, summaries)


def _rounds(
    data,
    relations,
    found,
    columns,
    *,
    spread=False,
    features="identity",
    careful=False,
    little=LITTLE,
):
    """Search and expand in turn; return (value, relations, (posteriors, summaries))."""
    value = np.inf
    for _ in range(1 if data.loss == "squared" else MAX_ROUNDS):
        search = _Search(found[1], data, columns, spread, features, relations)
        relations, new = search.run(careful, little)
        found = modes(data, relations, found[0])
        if abs(value - new) < 0.1:
            break
        value = new
    value = sum(at.value for at in found[0]) + search.prior(relations)[0]
    return value, relations, found


@dataclass
class Learned:
    """What was learned: relations of unit mean variance, and where the vectors are under them.

    `strength` is what the evidence would have the penalty multiplied by, beside the summed losses.
    Vectors w of the solver are ``root @ w`` in the data's coordinates, intercept last.
    """

    mixing: np.ndarray
    kappa: np.ndarray
    root: np.ndarray
    strength: float
    log_evidence: float
    data: Data
    starts: list
    components: np.ndarray | None  # (d, p), where features are many

    def modes_at(self, strength):
        """(shared, specific, offset) of each family, least in losses + strength × penalty."""
        scale = 1 / np.sqrt(strength)
        relations = Relations(scale * self.mixing, scale**2 * self.kappa, self.root, 1.0)
        starts = [replace(at, shared=at.shared / scale) for at in self.starts]
        found, _ = modes(self.data, relations, starts)
        return [(scale * at.shared, at.specific, at.offset) for at in found]


def families(observations, classes, weight):
    """One target for each class's vectors: the classes of a softmax against the rest."""
    if classes.binary:
        return [(np.asarray(classes.code, dtype=np.float64), weight)]
    code = np.asarray(classes.code, dtype=np.int64)
    families = []
    for k in range(len(classes.classes)):
        position = [np.flatnonzero(own == k) for own in classes.task_classes]
        position = np.array([p[0] if len(p) else -1 for p in position])[observations.task]
        target = np.where(code == position, 1.0, -1.0)
        families.append((target, np.where(position >= 0, weight, 0.0)))
    return families


def width_for(n_tasks):
    """The most features that relations of so many tasks are learned on."""
    return max(2, min(MAX_WIDTH, int(np.sqrt(MEMORY / n_tasks))))


def coordinates(X, intercept):
    """Rows with a constant last, where there is an intercept, and L for an Ω of features alike."""
    rows = np.ascontiguousarray(X.toarray() if sp.issparse(X) else X, dtype=np.float64)
    p = rows.shape[1]
    if intercept == "none":
        return rows, np.eye(p)
    rows, root = np.column_stack([rows, np.ones(len(rows))]), np.eye(p + 1)
    if intercept == "shared":
        root = root[:, :p]
    elif intercept == "free":
        root[-1, -1] = FREE
    return rows, root


def learn_relations(
    X, row, task_start, families, loss, intercept, *, rank="auto", features="identity"
):
    """Learn relations from observations as the estimators hold them.

    Parameters
    ----------
    X : ndarray or sparse matrix of shape (m, d)
    row, task_start : the row of X of each observation, in task order, and where tasks begin
    families : list of (target (n,), weight (n,))
        One for each output with vectors of its own; all share C.
    loss : {"squared", "log", "poisson"}
    intercept : {"none", "shared", "coupled", "free"}
    rank, features : see `learn`

    Returns
    -------
    learned : Learned
    """
    n_tasks, d = len(task_start) - 1, X.shape[1]
    width = width_for(n_tasks)
    components = None
    if d > width:
        if features != "identity":
            raise ValueError(
                f"feature_covariance is {features!r}, which takes at most {width} features for "
                f"{n_tasks} tasks, but X has {d}; use 'identity'"
            )
        components = randomized_svd(X, width, random_state=0)[2].T
        X = X @ components
    rows, root = coordinates(X, intercept)
    data = Data(rows, row, task_start, families, loss, intercept in ("shared", "coupled"))
    relations, starts, value = learn(data, root, rank=rank, features=features)
    return _normalised(relations, starts, value, data, components, intercept)


def _normalised(relations, starts, value, data, components, intercept):
    """Unit mean variance; columns of B orthogonal, the strongest first; κ above its floor."""
    B, kappa, root = relations.mixing, relations.kappa, relations.root
    if intercept == "coupled":
        size = root[-1, -1]
    else:
        d = len(root) - (intercept != "none")
        size = np.sqrt(np.sum(root[:d, :d] ** 2) / d)
    level = np.mean(np.sum(B**2, axis=1) + kappa)
    kappa = np.maximum(kappa, FLOOR * level)
    level = np.mean(np.sum(B**2, axis=1) + kappa)
    left, values, turn = np.linalg.svd(B, full_matrices=False)
    sign = np.where(left.sum(axis=0) < 0, -1.0, 1.0)
    starts = [
        replace(
            at,
            shared=size * np.sqrt(level) * sign[:, None] * (turn @ at.shared),
            specific=size * at.specific,
        )
        for at in starts
    ]
    return Learned(
        np.ascontiguousarray(left * values * sign / np.sqrt(level)),
        kappa / level,
        root / size,
        relations.noise / (level * size**2),
        -value,
        data,
        starts,
        components,
    )
