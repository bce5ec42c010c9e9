"""Training of the linear models: epochs, solvers, and when to stop.

The numeric loops are in ``_core.linear_sgd``; the estimators are in ``linear``.
"""

from __future__ import annotations

import copy
import itertools
import time
import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from fastmtl import linear_direct, linear_newton
from fastmtl._core import linear_sgd
from fastmtl._core import random as core_random
from fastmtl.coupling import Factors
from fastmtl.estimators import progress
from fastmtl.linear_joint import Joint
from fastmtl.linear_problem import (
    COMMON_INTERCEPT,
    INTERCEPTS,
    PLAIN,
    POOL_BLOCK,
    WORK_PER_CALL,
    describe,
)
from fastmtl.linear_threads import Team
from fastmtl.monitoring import Best, Epoch, as_callbacks
from fastmtl.task_columns import ragged

BLOCKS_PER_EPOCH = 16
EXACT = {"cholesky": linear_direct, "newton": linear_newton}  # do not mind how X is scaled
WORTH_WAITING = 10  # times the most epochs, for an exact solution in place of an unfinished one
LEAST_SLOWED = 1e-4  # of a move, where the dual's intercepts go on as if forever
WORTH_MERGING = 20  # multiplications of steps, for each number that threads merge


def train(model, training, held_out, state, factors, max_iter, *, partial=False):
    """Run epochs until the objective settles; changes `state` in place.

    `training` and `held_out` are pairs (Observations, Classes); `held_out` may be None.
    """
    if model.solver in ("newton", "dual") and not (partial or training[1].binary):
        raise ValueError(
            f"a task has more than two classes, which make a softmax; solver={model.solver!r} "
            "takes losses of one score, use 'saga' or 'sgd'"
        )
    patience = np.inf
    if not partial:
        if direct := at_once(model, training, factors):
            return direct.fit(model, training, state, factors, max_iter)
        direct, patience = _successor(model, training, factors, max_iter)
    solver = "sgd" if partial else model._iterative()
    problem = describe(model, *training, state, factors, solver)
    solver = problem.solver
    if max_iter > 2:
        problem.pack()
    judge = None if held_out is None else describe(model, *held_out, state, factors, "sgd")
    rng = check_random_state(model.random_state)
    if partial and state.steps:
        rng = np.random.RandomState((rng.randint(2**31) + state.steps) % 2**32)
    team = Team(problem, problem.n_threads if solver == "sgd" else 1)
    if solver == "saga":
        _divide(problem, state, factors)
        run, settled, pace = _saga(problem, state, model.tol)
    elif solver == "dual":
        run, settled = _dual(problem, state, model.tol)
    else:
        run, settled = _sgd(problem, state, model, team)
    adaptive = solver == "sgd" and model.learning_rate == "adaptive"
    judged = adaptive or model.tol is not None
    if judge is not None and not adaptive:
        settled = _no_longer_better(model.tol, model.n_iter_no_change)
    exact = model.tol is not None and judge is None and problem.reading is None
    exact = exact or solver == "dual"  # whose gap takes nothing less
    callbacks, history, best = as_callbacks(model.callbacks), [], Best(judge is not None)

    def fitted_copy():
        return model._copy_as_fitted(training, copy.deepcopy(answer), factors, list(history), best)

    began = time.perf_counter()
    bar = progress(max_iter) if model.verbose else None
    stopped = interrupted = False
    answer, epoch = state, 0
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            for epoch in range(1, max_iter + 1):
                draws = _orders(problem, team, int(rng.randint(0, 2**31 - 1)))
                total = sum(run(*part) for part in draws)
                if solver == "saga":
                    _divide(problem, state, factors)
                # Summed while the steps went on; what is judged below is exact.
                answer = state.averaged()
                loss = problem.loss_value(answer) if exact else total / len(problem.samples)
                penalty = problem.penalty_value(answer)
                entry = {"epoch": epoch, "objective": loss + penalty}
                if solver == "saga":
                    pace(entry["objective"])
                if solver != "dual":  # which may begin beyond what has a finite exponential
                    _check_finite(model, entry["objective"], answer, epoch)
                if judge is not None:
                    entry["validation_loss"] = judge.loss_value(answer)
                entry["seconds"] = time.perf_counter() - began
                history.append({**entry, "solver": solver})
                criterion = entry["objective" if judge is None else "validation_loss"]
                best.offer(epoch, criterion, answer.parameters)
                if bar is not None:
                    shown = {k: f"{v:.6g}" for k, v in entry.items() if k.endswith(("ive", "loss"))}
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
                told = {"validation_loss": None, **entry, "_fitted_copy": fitted_copy}
                asked = [callback(Epoch(**told)) for callback in callbacks]
                stopped = any(asked) or (judged and settled(criterion, penalty))
                if stopped or epoch >= patience:
                    break
    except KeyboardInterrupt:
        if not best.epoch:
            raise
        stopped = interrupted = True
    finally:
        if bar is not None:
            bar.close()
    if solver == "dual":
        _check_finite(model, history[-1]["objective"], answer, epoch)
    if interrupted or judge is not None:
        best.restore(answer.parameters)
        kept = best.epoch
    else:
        kept = len(history)
    if interrupted:
        warnings.warn(
            f"interrupted in epoch {epoch}; kept are the parameters of epoch {kept}, the best so "
            "far",
            ConvergenceWarning,
            stacklevel=3,
        )
    if not stopped and epoch >= patience:
        return direct.fit(model, training, answer, factors, max_iter, history)
    if not (stopped or partial or model.tol is None):
        better = [f"take solver={name!r}, " for name in EXACT if not model._unlike(name)]
        better = better[:1] if training[1].binary else []
        warnings.warn(
            f"not converged to tol={model.tol:g} within max_iter={max_iter} epochs; raise max_iter "
            f"or tol, {''.join(better)}or standardise X",
            ConvergenceWarning,
            stacklevel=3,
        )
    return {"state": answer, "n_iter": len(history), "best_iter": kept, "history": history}


def at_once(model, training, factors):
    """The module that solves a problem without epochs: as asked for, or because that is cheaper."""
    exact = EXACT.get(model._exact(training[1]))
    if exact and (model.solver != "auto" or exact.pays(model, training[0], factors)):
        return exact
    return None


def _successor(model, training, factors, max_iter):
    """The module with an exact solution that "auto" may take, and after how many epochs in vain.

    That is when as much was spent as it costs: the sum is at most twice what the better one takes.
    """
    exact = EXACT.get(model._exact(training[1]))
    price = exact.price(model, training[0], factors, hard=True) if exact else np.inf
    if price > WORTH_WAITING * max_iter:
        return None, np.inf
    return exact, min(price, max_iter)


def _no_longer_better(tol, n_iter_no_change):
    """Whether the held-out loss has not fallen by `tol`, relative, for that many epochs."""
    reached, waited = np.inf, 0

    def settled(loss, _):
        nonlocal reached, waited
        better = loss < reached - tol * abs(reached) if np.isfinite(reached) else loss < reached
        reached, waited = (loss, 0) if better else (reached, waited + 1)
        return waited >= n_iter_no_change

    return settled


def _orders(problem, team, seed):
    """The draws of one epoch in parts of a call each: an order of samples, and where in it what
    each thread draws begins and ends."""
    if problem.reading is not None:
        turn = np.arange(problem.reading.n_blocks)
        core_random.shuffle(turn, seed)
        for k, order in enumerate(problem.reading.blocks(turn)):
            order = order.copy()
            core_random.shuffle(order, seed + 1 + k)
            yield from _calls(problem, *team.regroup(order))
        return
    order, bounds = team.order, team.cuts
    if problem.groups is not None:
        core_random.draw_balanced(order, *problem.groups, problem.present, seed)
        order, bounds = team.regroup(order)
    elif problem.by_task:
        core_random.draw_by_task(order, problem.task_start, problem.present, seed)
        order, bounds = team.regroup(order)
    elif problem.pooled:
        blocks = np.empty(len(order) // POOL_BLOCK + len(bounds), dtype=np.int64)
        core_random.shuffle_pools(order, bounds, blocks, POOL_BLOCK, problem.pooled, seed)
    else:
        order[:] = np.arange(len(order))
        for k, (begin, end) in enumerate(itertools.pairwise(bounds)):
            core_random.shuffle(order[begin:end], seed + k)
    yield from _calls(problem, order, bounds)


def _calls(problem, order, bounds):
    begin, length = bounds[:-1], np.diff(bounds)
    n_calls = -(-len(order) // problem.steps_per_call)
    for call in range(n_calls):
        ends = length * call // n_calls, length * (call + 1) // n_calls
        yield order, np.stack([begin + ends[0], begin + ends[1]], axis=1)


def _sgd(problem, state, model, team):
    tol, n_iter_no_change = model.tol, model.n_iter_no_change
    pool = problem.pool
    schedule, general = list(problem.schedule), ()
    specific = team.with_copies(state.specific)
    state.specific = specific[: len(state.specific)]
    if (
        problem.shares != PLAIN
        or problem.clip
        or state.squares is not None
        or state.drift is not None
    ):
        sums = []
        for name in ("squares", "drift"):
            three = getattr(state, name)
            if three is not None:
                own = team.with_copies(three[1])
                setattr(state, name, (three[0], own[: len(three[1])], three[2]))
                three = three[0], own, three[2]
            sums.append(three)
        general = (problem.shares, (problem.clip, state.average_from, *sums))
        function = linear_sgd.sgd_general_dense
        if not problem.dense:
            function = linear_sgd.sgd_general_csr
            of_classes, of_tasks = _spreads(problem, state)
            general += ((of_classes, team.with_copies(of_tasks)),)
    else:
        function = linear_sgd.sgd_dense if problem.dense else linear_sgd.sgd_csr
    merged = len(team.cuts) * state.shared.size + 2 * (specific.size - state.specific.size)
    work = len(problem.samples) * WORK_PER_CALL / problem.steps_per_call
    blocks_per_epoch = min(BLOCKS_PER_EPOCH, work / (1 + WORTH_MERGING * merged))

    def run(order, bounds):
        drawn = int((bounds[:, 1] - bounds[:, 0]).sum())
        n_blocks = max(1, round(blocks_per_epoch * drawn / len(problem.samples)))
        total = function(
            *problem.data,
            team.samples,
            order,
            state.shared,
            specific,
            state.intercept,
            *team.arguments,
            (*schedule, state.steps, pool),
            *general,
            (bounds, n_blocks, team.split),
        )
        state.steps += drawn
        return total

    recent = []

    def settled(objective, _):
        recent.append(objective)
        last = recent[-n_iter_no_change - 1 :]
        changes = np.abs(np.diff(last))
        return len(changes) == n_iter_no_change and bool(
            (changes <= tol * max(abs(objective), 1e-300)).all()
        )

    if model.learning_rate == "adaptive":
        return run, _slower_where_stuck(schedule, tol or 0.0, n_iter_no_change)
    return run, settled


def _slower_where_stuck(schedule, tol, n_iter_no_change):
    """Divide the rate by 5 where nothing was gained for some epochs; settled when it is tiny."""
    smallest, reached, waited = 1e-6 * schedule[0], np.inf, 0

    def settled(value, _):
        nonlocal reached, waited
        better = not np.isfinite(reached) or value < reached - tol * abs(reached)
        reached, waited = min(reached, value), 0 if better else waited + 1
        if waited >= n_iter_no_change:
            schedule[0], waited = schedule[0] / 5, 0
        return schedule[0] < smallest

    return settled


def _saga(problem, state, tol):
    n = len(problem.samples)
    memory = np.zeros((n, int(np.diff(state.head_start).max())))
    averages = tuple(np.zeros_like(a) for a in state.parameters)
    samples = problem.samples
    if state.specific.any() and memory.shape[1] == 1:
        _remember(problem, state, memory[:, 0], averages)
    steepest = float((problem.smoothness * samples["weight"] * samples["curvature"]).max())
    # Steps of 1 / (3 L) are known to converge; thrice as long ones nearly always do, and sooner.
    safe = 1.0 / (3.0 * max(steepest, 1e-12))
    rate, objectives = 3.0 * safe, []
    extra = () if problem.dense else (_spreads(problem, state),)
    general = ()
    if problem.shares != PLAIN:
        general = (problem.shares,)
        function = linear_sgd.saga_general_dense if problem.dense else linear_sgd.saga_general_csr
    else:
        function = linear_sgd.saga_dense if problem.dense else linear_sgd.saga_csr

    def run(order, bounds):
        order = order[slice(*bounds[0])]
        state.steps += len(order)
        return function(
            *problem.data,
            samples,
            order,
            state.shared,
            state.specific,
            state.intercept,
            *problem.arguments,
            (rate, 0.0, 0.0, 0),
            *general,
            memory,
            averages,
            *extra,
        )

    def pace(objective):
        """Take the safe steps once the objective rises by more than is of interest."""
        nonlocal rate
        if objectives and not objective <= objectives[-1] * (1 + reachable) and rate > safe:
            rate = safe
            objectives.clear()
        objectives.append(objective)

    typical, first = [], []
    reachable = max(tol or 0.0, 50 * np.finfo(state.specific.dtype).eps)

    def settled(objective, _):
        """Whether the gradient is small beside that of a typical sample of the first epoch, and
        what the last falls of the objective let expect of those to come is little."""
        if not typical:
            squares = (memory**2).sum(axis=1) * samples["curvature"]
            typical.append(np.sqrt(squares.mean()))
            first.append(abs(objective))
        if problem.gradient_norm(state, averages) > reachable * typical[0]:
            return False
        least = reachable * first[0]  # where a loss that can be zero nears it
        return _still_to_fall(objectives) <= reachable * max(abs(objective), least)

    return run, settled, pace


def _still_to_fall(objectives):
    """What is left of falls that go on as the last two, each the same share of the one before."""
    before, last = -np.diff(objectives[-3:]) if len(objectives) > 2 else (0.0, np.inf)
    if last <= 0:
        return 0.0
    return last**2 / (before - last) if before > last else np.inf


def _dual(problem, state, tol):
    samples, n = problem.samples, len(problem.samples)
    memory = np.zeros((n, 3))
    memory[:, 2] = np.nan
    if state.shared.any() or state.specific.any():
        memory[:, 0] = _as_dual(problem, state)
    pulls = samples["weight"] * memory[:, 0] / n
    if problem.free:
        free, at = state.specific.reshape(-1), state.intercept_place
        pulls = np.bincount(samples["task"], pulls, len(problem.kappa))
    else:
        free, at = state.intercept, slice(None)
        pulls = pulls.sum() if problem.arguments[3][3] in COMMON_INTERCEPT else 0.0
    # b − c = −Σ w g / (α n) holds throughout
    center, drawn, follow = free[at] + pulls / problem.alpha, 0, _Follow()
    function = linear_sgd.dual_dense if problem.dense else linear_sgd.dual_csr
    if problem.beside:
        problem.joint = Joint(state, Factors(*problem.arguments[0]))
    joint, (_, _, loss, (_, _, _, kind, _)) = problem.joint, problem.arguments

    def run(order, bounds):
        nonlocal drawn
        order = order[slice(*bounds[0])]
        if drawn >= n:  # an epoch is over: what held the intercepts back no longer does
            drift = free[at] - center
            center[:] = follow(free[at], drift)
            free[at] = center + drift
            drawn = 0
        drawn += len(order)
        state.steps += len(order)
        if joint:
            linear_sgd.dual_joint_csr(
                *problem.data[:3],
                samples,
                order,
                joint.weights,
                state.intercept,
                joint.covariance,
                loss,
                problem.alpha,
                kind,
                memory,
            )
            joint.put(state)
        else:
            parameters = state.shared, state.specific, state.intercept
            function(*problem.data, samples, order, *parameters, *problem.arguments, memory)
        return 0.0

    typical, moved = [], [np.finfo(float).max]  # nothing is known of how far the first went

    def settled(objective, penalty):
        """Whether the dual's objective, which is never above the least, is near enough."""
        if not typical:
            typical.append(np.mean((samples["weight"] * memory[:, 0]) ** 2 * samples["curvature"]))
        drift = free[at] - center
        gap = objective + penalty + samples["weight"] @ memory[:, 1] / n
        moved.append(np.linalg.norm(drift))
        gap += problem.alpha * (drift @ free[at] + moved[-1] * _still_to_move(*moved[-2:]))
        # No longer a gradient than SAGA stops at would do: gap <= length² / (2 alpha).
        enough = min(tol * abs(objective), tol**2 * typical[0] / (2 * problem.alpha))
        rounding = 50 * np.finfo(state.specific.dtype).eps * abs(objective)
        return abs(gap) <= max(enough, rounding)  # far below zero it is rounding, and says nothing

    return run, settled


class _Follow:
    """Where the center of the intercepts goes once they came by a drift from it to a place.

    There and further, as in their last move: Güler's method, begun anew where that was too far.
    """

    def __init__(self):
        self.speed, self.place = 1.0, None

    def __call__(self, place, drift):
        place, last = np.array(place), self.place
        self.place = place
        if last is None:
            return place
        slower = np.where(drift * (place - last) < 0, 1.0, self.speed)
        self.speed = (1.0 + np.sqrt(1.0 + 4.0 * slower**2)) / 2.0
        return place + (slower - 1.0) / self.speed * (place - last)


def _still_to_move(before, last):
    """How far from their end intercepts are at most that moved so far in the last two epochs.

    The dual bounds what they cost about their center, which may be far from where they end.
    """
    share = min(last / before, 1.0 - LEAST_SLOWED) if before else 0.0
    return max(before, last / (1.0 - share) ** 2)  # for a share of such moves is its root


def _as_dual(problem, state):
    """Dual variables of samples that lead near the state; sets it to where they lead."""
    slopes, averages = np.zeros(len(problem.samples)), [np.zeros_like(a) for a in state.parameters]
    _remember(problem, state, slopes, averages)
    slopes /= problem.samples["weight"]
    kappa = state.of_heads(problem.kappa[problem.head_task])
    if problem.free:  # what the intercepts' slopes add up to says nothing about a vector
        averages[1].reshape(-1)[state.intercept_place] = 0.0
    to_shared, to_own = -averages[0] / problem.alpha, -averages[1] * kappa / problem.alpha
    # A share of all slopes is as good a start; this one is nearest to the state.
    along = np.vdot(to_shared, state.shared) + np.vdot(to_own, state.specific)
    share = along / max(np.vdot(to_shared, to_shared) + np.vdot(to_own, to_own), 1e-300)
    share = min(max(share, 0.0), 1.0)
    own_intercepts = state.specific.reshape(-1)[state.intercept_place].copy()
    state.shared[...] = share * to_shared
    state.specific[...] = share * to_own
    if problem.free:
        state.specific.reshape(-1)[state.intercept_place] = own_intercepts
    return share * slopes


def _divide(problem, state, factors):
    """Divide each w_t and intercept into shared and own parts with the least penalty.

    SAGA is slow in the directions that leave all of these as they are, for only alpha bends the
    objective there. On CSR a coordinate that none of a task's rows has gets no own part, so w_t
    cannot stay.
    """
    (mixing, kappa), present = factors, np.isin(problem.head_task, problem.present)
    if problem.shares != PLAIN or not (kappa[problem.present] > 0).all():
        return
    n_shared, last = len(state.shared), state.intercept_place
    if state.columns is None:
        specific = state.specific
    else:
        specific = state.specific[last, None]
    for k in range(len(state.intercept)):
        mine = (state.head_class == k) & present
        if not mine.any():
            continue
        heads = slice(None) if mine.all() else np.flatnonzero(mine)
        B, kappas = mixing[problem.head_task[heads]], kappa[problem.head_task[heads]]
        parts = [(slice(-1), B)] if problem.dense else []
        if problem.coupled:  # beside the shared intercept, which has no penalty
            parts.append((slice(-1, None), np.column_stack([B, np.ones(len(B))])))
        for part, basis in parts:
            weighed = basis.T / kappas
            gap = weighed @ specific[heads, part]
            gap[:n_shared] -= state.shared[:, k, part]
            system = weighed @ basis
            system[range(n_shared), range(n_shared)] += 1.0
            change = np.linalg.solve(system, gap)
            specific[heads, part] -= basis @ change
            state.shared[:, k, part] += change[:n_shared]
            if len(change) > n_shared:
                state.intercept[k] += change[-1, 0]
    if state.columns is not None:
        state.specific[last] = specific[:, 0]


def _remember(problem, state, memory, averages):
    """Derivatives at the state as it is and what they average to, so that a good start stays so."""
    if not problem.dense:
        _remember_sparse(problem, state, memory, averages)
        return
    samples, X = problem.samples, problem.data[0]
    (mixing, kappa), _, (code, parameter, _, user), (_, _, _, kind, _) = problem.arguments
    weights = np.einsum("tr,rj->tj", mixing, state.shared[:, 0]) + state.specific
    shared, specific, intercept = averages
    d, n = X.shape[1], len(samples)
    value, slope = np.empty(n), np.empty(n)
    for t, (begin, end) in enumerate(zip(problem.task_start, problem.task_start[1:])):
        own = slice(begin, end)
        if begin == end:
            continue
        rows = X[samples["row"][own]]
        offset = weights[t, -1] + (state.intercept[0] if kind in COMMON_INTERCEPT else 0.0)
        scores = (rows @ weights[t, :d]).astype(np.float64) + offset
        target = np.ascontiguousarray(samples["target"][own])
        slots = value[own], slope[own]
        linear_sgd.point_losses(code, parameter, target, scores, *slots, user)
        memory[own] = samples["weight"][own] * slope[own]
        whole = np.append(memory[own] @ rows, memory[own].sum()) / n
        if kind in COMMON_INTERCEPT:
            intercept[0] += whole[-1]
        if kind != INTERCEPTS["coupled"]:
            whole[-1] = 0.0
        shared[:, 0, :d] += np.outer(mixing[t], whole[:-1]).astype(shared.dtype)
        shared[:, 0, -1] += (mixing[t] * whole[-1]).astype(shared.dtype)
        if kappa[t] > 0:
            specific[t, :d] = whole[:-1]
            specific[t, -1] = whole[-1]
        if kind == INTERCEPTS["free"]:
            specific[t, -1] = memory[own].sum() / n


def _remember_sparse(problem, state, memory, averages):
    (mixing, kappa), _, (code, parameter, _, user), (_, _, _, kind, _) = problem.arguments
    shared, specific, intercept = averages
    samples, n, d = problem.samples, len(problem.samples), state.shared.shape[2] - 1
    row, task, last = samples["row"], samples["task"], state.intercept_place
    at, sample, own = _entries(problem, state)
    data, indices, indptr, _ = problem.data
    X = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, d))
    flat = state.specific.reshape(-1)
    offset = mixing @ state.shared[:, 0, -1] + flat[last]
    if kind in COMMON_INTERCEPT:
        offset += state.intercept[0]
    scores = offset[task] + np.bincount(sample, data[at] * flat[own], minlength=n)
    for r in range(len(shared)):
        scores += mixing[task, r] * (X @ state.shared[r, 0, :d])[row]
    target, value, slope = samples["target"].copy(), np.empty(n), np.empty(n)
    linear_sgd.point_losses(code, parameter, target, scores, value, slope, user)
    memory[:] = samples["weight"] * slope

    part = (memory / n)[sample] * data[at]
    own_part = np.bincount(own, part, minlength=flat.size) * (kappa > 0)[problem.head_task].repeat(
        np.diff(state.vector_start)
    )
    sums = np.bincount(task, memory, minlength=len(kappa)) / n
    if kind == INTERCEPTS["coupled"]:
        shared[:, 0, -1] = mixing.T @ sums
        own_part[last] = sums * (kappa > 0)
    elif kind == INTERCEPTS["free"]:
        own_part[last] = sums
    specific[...] = own_part.reshape(specific.shape)
    for r in range(len(shared)):
        shared[r, 0, :d] = np.bincount(indices[at], part * mixing[task[sample], r], minlength=d)
    if kind in COMMON_INTERCEPT:
        intercept[0] = sums.sum()


def _entries(problem, state):
    """Of the entries of all samples' rows: where they are in X, their sample, and their place in
    their task's (first) vector, as `specific` has it flat."""
    _, _, indptr, position = problem.data
    lengths = np.diff(indptr)[problem.samples["row"]]
    at = ragged(indptr[problem.samples["row"]], lengths)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    first = state.vector_start[state.head_start[problem.samples["task"]]]
    return at, sample, position[at] + first[sample]


def _spreads(problem, state):
    """1 / P(a draw has a coordinate): of each class, and of each task like its first vector."""
    at, sample, own = _entries(problem, state)
    column, task = problem.data[1][at], problem.samples["task"][sample]
    chance = problem.probability[sample]
    has_class = np.zeros((state.shared.shape[1], len(problem.kappa)))
    has_class[state.head_class, problem.head_task] = 1.0
    stride, dtype = state.shared.shape[2], state.specific.dtype
    of_classes = np.array([np.bincount(column, chance * has[task], stride) for has in has_class])
    of_tasks = np.bincount(own, chance, minlength=state.specific.size)
    return tuple(
        np.divide(1.0, c, out=np.zeros(c.shape), where=c > 0).astype(dtype)
        for c in (of_classes, of_tasks)
    )


def _check_finite(model, objective, state, epoch):
    # The penalty has seen all but the intercepts.
    intercepts = state.specific.reshape(-1)[state.intercept_place]
    if np.isfinite(objective) and np.isfinite(intercepts.sum()):
        return
    remedy = (
        "lower eta0, or use learning_rate='auto'"
        if model.learning_rate != "auto" or model.eta0
        else "standardise X and y"
    )
    raise FloatingPointError(
        f"the parameters diverged in epoch {epoch} (the objective is {objective}); {remedy}"
    )
