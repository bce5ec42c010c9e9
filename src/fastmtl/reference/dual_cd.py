"""NumPy twin of the compiled dual coordinate descent: the same steps in the same order."""

import numpy as np

SHRINK_EVERY = 1000
TINY = 1e-12


def minimise(
    gram,
    cache,
    diagonal,
    row,
    task,
    group,
    mixing,
    kappa,
    lower,
    upper,
    ridge,
    epsilon,
    tol,
    max_iter,
    shrinking,
    beta,
    gradient,
    tick,
):
    """Minimise ½ βᵀ(Q + diag(ridge))β − targetᵀβ + ε‖β‖₁ in place.

    ``Q_ij = C[task_i, task_j] k(row_i, row_j)`` with ``C = B Bᵀ + diag(κ)``, subject to
    ``lower ≤ β ≤ upper`` and ``Σ β = 0`` in each group. Returns the number of steps, the violation
    left and the number of steps along negative curvature. `tick` is for long runs only.
    """
    C = mixing @ mixing.T + np.diag(kappa)
    curvature = C[task, task] * diagonal[row] + ridge
    member = group[task]
    active = np.arange(len(row))
    settled = then = None  # β and its gradient when the first observations were left out
    countdown = shrink_every = min(len(row), SHRINK_EVERY)
    n_iter = n_negative = 0
    violation = 0.0
    clock = 0 if cache is None else cache.used.max()

    def hold(r, others, urgency):
        """Have one row of the Gram matrix; a missing one comes with the most urgent others."""
        nonlocal clock
        if cache is not None:
            if cache.slot_of[r] < 0:
                cache.fetch(r, others, urgency)
            clock += 1
            cache.used[cache.slot_of[r]] = clock

    def gram_row(r):
        return gram[r if cache is None else cache.slot_of[r]].astype(np.float64)

    def hessian_row(i, columns):
        return C[task[i], task[columns]] * gram_row(row[i])[row[columns]]

    def slopes(columns):
        up = np.where(beta[columns] >= 0, epsilon, -epsilon)
        down = np.where(beta[columns] > 0, epsilon, -epsilon)
        up[beta[columns] >= upper[columns]] = np.inf
        down[beta[columns] <= lower[columns]] = -np.inf
        return gradient[columns] + up, gradient[columns] + down

    def urgent(up, down, low, high):
        least = np.array([low.get(g, 0.0) for g in member[active]])
        greatest = np.array([high.get(g, 0.0) for g in member[active]])
        return row[active], np.maximum(greatest - up, down - least)

    while len(row):
        up, down = slopes(active)
        alone = member[active] < 0
        singles = np.maximum(-up, down)[alone].max(initial=0.0)
        violation, best = singles, -1
        low, high = {}, {}
        for g in range(group.max(initial=-1) + 1):
            mine = member[active] == g
            low[g], high[g] = up[mine].min(initial=np.inf), down[mine].max(initial=-np.inf)
            if high[g] - low[g] > violation:
                violation, best = high[g] - low[g], g

        if violation <= tol or n_iter >= max_iter:
            if settled is None:
                break
            inactive = np.setdiff1d(np.arange(len(row)), active)
            gradient[inactive] = then[inactive]
            moved = beta != settled
            for i in np.flatnonzero(moved):
                hold(row[i], row, moved.astype(np.float64))
                gradient[inactive] += (beta[i] - settled[i]) * hessian_row(i, inactive)
            active, settled, countdown = np.arange(len(row)), None, shrink_every
            continue

        if shrinking and countdown == 0:
            countdown = shrink_every
            above = np.array([singles if g < 0 else high[g] for g in member[active]])
            below = np.array([-singles if g < 0 else low[g] for g in member[active]])
            keep = ~((up > above) & (down < below))
            if settled is None and not keep.all():
                settled, then = beta.copy(), gradient.copy()
            active = active[keep]
            continue
        countdown -= 1

        if best >= 0:
            mine = member[active] == best
            i = active[np.argmin(np.where(mine, up, np.inf))]
            slope = low[best]
            hold(row[i], *urgent(up, down, low, high))
            apart = np.where(mine, down - slope, -np.inf)
            bend = curvature[i] + curvature[active] - 2 * hessian_row(i, active)
            gain = np.where(apart > 0, apart**2 / np.maximum(bend, TINY), -1.0)
            at = np.argmax(gain)
            j = active[at]
            hold(row[j], *urgent(up, down, low, high))
            bend, step = bend[at], apart[at]
            size = curvature[i] + curvature[j]
            moves = [(i, 1), (j, -1)]
        else:
            # Of equal violations: the first task's, and in it those upwards.
            first = np.argmax(np.where(alone, np.maximum(-up, down), -np.inf))
            mine = task[active] == task[active[first]]
            upwards = (-up[mine]).max() >= down[mine].max()
            at = np.argmax(np.where(mine, -up if upwards else down, -np.inf))
            i = active[at]
            hold(row[i], *urgent(up, down, low, high))
            bend = size = curvature[i]
            step = singles
            moves = [(i, 1 if upwards else -1)]
        n_negative += bend < -1e-6 * abs(size)

        room = np.inf
        for k, sign in moves:
            bound = upper[k] if sign > 0 else lower[k]
            if epsilon > 0 and sign * beta[k] < 0:
                bound = 0.0
            room = min(room, abs(bound - beta[k]))
        if bend <= 0 and room == np.inf:
            violation = np.inf
            break
        step = min(step / max(bend, TINY), room)
        n_iter += 1
        for k, sign in moves:
            after = beta[k] + sign * step
            if abs(after - upper[k]) <= 1e-14 * abs(after):
                after = upper[k]
            elif abs(after - lower[k]) <= 1e-14 * abs(after):
                after = lower[k]
            elif abs(after) <= 1e-15 * step:
                after = 0.0
            beta[k] = after
            gradient[k] += sign * step * ridge[k]
            gradient[active] += sign * step * hessian_row(k, active)
    return n_iter, violation, n_negative
