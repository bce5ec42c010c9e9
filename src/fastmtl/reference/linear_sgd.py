"""Per-sample SGD, SAGA and dual ascent for linear models with shared and task-specific parameters.

All solvers take the same description of a problem:

samples : structured array (n,) of `SAMPLE`
order : int64 (m,), which samples to draw, in order
shared : (R, K, stride), `specific` : (heads, stride), `intercept` : float64 (K,)
    Parameters, changed in place. A vector is d features, zeros up to a multiple of 64 bytes, and
    last its intercept.
coupling : (mixing (T, R), kappa (T,))
heads : (head_start int64 (T + 1,), head_class int32 (heads,))
    Heads of task t are ``head_start[t]:head_start[t + 1]``; each belongs to one of K classes.
    For CSR there is vector_start int64 (heads + 1,) besides: head h's vector is
    ``vector_start[h]:vector_start[h + 1]`` of `specific`, flattened, its intercept last.
position : int32, one of each entry of CSR
    Where the entry's coefficient stands in the vectors of the task that has the row. These may be
    short: what no row of a task has is left out.
loss : (code, parameter, smoothness, address)
    A code of `LOSSES`, or -1 for softmax; `smoothness` bounds the second derivative (0 switches
    the damping of long rows off); `address` of a user's own C function, or 0.
penalty : (alpha, task_rarity (T,), class_rarity (K,), intercept_kind, task_alpha (T,))
    Rarities are 1 / P(a draw touches the task, or a task that has the class). SAGA may step in
    another metric: with γ in the place of κ in `coupling`, `task_alpha` is ``alpha γ / κ``.
schedule : (scale, offset, power, step[, pool])
    The rate at step k is ``scale / (offset + k) ** power``. `pool` promises that draws that far
    apart have rows near one another, which says what to fetch ahead.
parts : (bounds int64 (n_threads, 2), n_blocks, split)
    Thread k runs ``order[bounds[k, 0]:bounds[k, 1]]`` in `n_blocks` blocks. After each of them the
    shared part is averaged, weighted by draws. No two threads draw one task: where they must, each
    has a task of its own for its part of the samples, with heads of its own, and `split` names
    these. ``split = (start, heads, share)``: heads ``heads[start[g]:start[g + 1]]`` are averaged,
    weighted by `share`, after each block. One thread needs no `split`.

The general steps take besides:

shares : (shared_l1, shared_l2, task_l1, task_l2)
    How strong the penalties are, as multiples of alpha.
extras : (clip, average_from, squares, drift)
    The longest gradient of a sample (0: any); the step from which on averages are taken; AdaGrad's
    sums and the averages' drifts, each None or float64 arrays like shared, specific and intercept.
"""

import ctypes
import itertools

import numpy as np

__all__ = [
    "dual_csr",
    "dual_dense",
    "dual_joint_csr",
    "find_columns",
    "losses_csr",
    "losses_dense",
    "point_losses",
    "saga_csr",
    "saga_dense",
    "saga_general_csr",
    "saga_general_dense",
    "sgd_csr",
    "sgd_dense",
    "sgd_general_csr",
    "sgd_general_dense",
    "squared_lengths",
]

SLOPE_ACCURACY, STRAIGHT_ACCURACY = 1e-3, 1e-10
MOST_TRIALS, PATIENCE, FARTHEST = 100, 6, 1e300
SHORT_STEP, LOGISTIC_ACCURACY = 0.3, 5e-3
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
NONE, SHARED, COUPLED, FREE = range(4)
POISSON = 5


def squared_error(y, p, parameter):
    return 0.5 * (p - y) ** 2, p - y


def huber(y, p, delta):
    r = p - y
    if abs(r) <= delta:
        return 0.5 * r * r, r
    return delta * (abs(r) - 0.5 * delta), np.sign(r) * delta


def epsilon_insensitive(y, p, epsilon):
    r = p - y
    return max(0.0, abs(r) - epsilon), np.sign(r) * (abs(r) > epsilon)


def squared_epsilon_insensitive(y, p, epsilon):
    r = p - y
    excess = max(0.0, abs(r) - epsilon)
    return excess**2, 2 * np.sign(r) * excess


def quantile(y, p, q):
    r = y - p
    return max(q * r, (q - 1) * r), (-q if r > 0 else 1 - q if r < 0 else 0.0)


def poisson(y, p, parameter):
    return np.exp(p) - y * p, np.exp(p) - y


def hinge(y, p, threshold):
    return max(0.0, threshold - y * p), (-y if y * p < threshold else 0.0)


def squared_hinge(y, p, threshold):
    slack = max(0.0, threshold - y * p)
    return slack**2, -2 * y * slack


def modified_huber(y, p, parameter):
    margin = y * p
    if margin >= 1:
        return 0.0, 0.0
    if margin >= -1:
        return (1 - margin) ** 2, -2 * y * (1 - margin)
    return -4 * margin, -4 * y


def log_loss(y, p, parameter):
    return np.logaddexp(0.0, -y * p), -y * np.exp(-np.logaddexp(0.0, y * p))


LOSSES = (
    squared_error,
    huber,
    epsilon_insensitive,
    squared_epsilon_insensitive,
    quantile,
    poisson,
    hinge,
    squared_hinge,
    modified_huber,
    log_loss,
)


def _point_loss(code, parameter, user):
    if not user:
        return lambda y, p: LOSSES[code](y, p, parameter)
    double = ctypes.c_double
    function = ctypes.CFUNCTYPE(double, double, double, ctypes.POINTER(double))(user)
    gradient = double()
    return lambda y, p: (function(y, p, gradient), gradient.value)


def point_losses(code, parameter, target, score, value, gradient, user=0):
    """Write the loss of each (target, score) and its derivative in the score."""
    if not len(target) == len(score) == len(value) == len(gradient):
        raise ValueError("target, score, value and gradient must be of one length")
    loss = _point_loss(code, parameter, user)
    for i in range(len(target)):
        value[i], gradient[i] = loss(target[i], score[i])


def _derivatives(loss, sample, scores):
    code, parameter, _, user = loss
    weight = sample["weight"]
    if code >= 0:
        value, gradient = _point_loss(code, parameter, user)(sample["target"], scores[0])
        return weight * value, np.array([weight * gradient])
    own = int(sample["target"])
    top = scores.max()
    exponentials = np.exp(scores - top)
    gradient = weight * exponentials / exponentials.sum()
    gradient[own] -= weight
    return weight * (np.log(exponentials.sum()) + top - scores[own]), gradient


def _own_vectors(specific, heads, task):
    """The vectors of a task's heads, (heads of the task, width); a view."""
    first, end = heads[0][task : task + 2]
    if len(heads) == 2:
        return specific[first:end]
    start = heads[2]
    return specific.reshape(-1)[start[first] : start[end]].reshape(end - first, -1)


def _scores(x, own_x, task, shared, specific, intercept, coupling, heads, kind):
    mixing, _ = coupling
    classes = heads[1][heads[0][task] : heads[0][task + 1]]
    w = np.einsum("r,rkj->kj", mixing[task], shared[:, classes].astype(np.float64))
    v = _own_vectors(specific, heads, task)
    scores = w[:, :-1] @ x + w[:, -1] + v[:, :-1] @ own_x + v[:, -1]
    if kind in (SHARED, COUPLED):
        scores = scores + intercept[classes]
    return scores, v, classes


def _run_thread(rows, samples, order, shared, specific, intercept, *settings, step):
    coupling, heads, loss, penalty, schedule = settings
    mixing, kappa = coupling
    alpha, task_rarity, class_rarity, kind, _ = penalty
    total = 0.0
    for k in order:
        sample = samples[k]
        task = sample["task"]
        x, own_x = rows(sample["row"], _own_vectors(specific, heads, task).shape[1] - 1)
        scores, own, classes = _scores(
            x, own_x, task, shared, specific, intercept, coupling, heads, kind
        )
        value, g = _derivatives(loss, sample, scores)
        total += value

        rate = schedule[0] / (schedule[1] + step) ** schedule[2]
        smoothness = loss[2]
        if loss[0] == POISSON:
            smoothness = abs(g[0]) / max(sample["weight"], 1e-300) + sample["target"]
        move = rate * g / (1 + rate * smoothness * sample["weight"] * sample["curvature"])
        keep_shared = 1 / (1 + rate * alpha * class_rarity[classes])
        keep = 1 / (1 + rate * alpha * task_rarity[task])
        one = 1.0 if kind == COUPLED else 0.0
        for r in range(len(shared)):
            shared[r, classes] -= mixing[task, r] * np.outer(move, np.append(x, one))
            shared[r, classes] *= keep_shared[:, None]
        v = own.astype(np.float64)
        if kind == FREE:
            free = v[:, -1] - move
        v = keep * (v - kappa[task] * np.outer(move, np.append(own_x, one)))
        if kind == FREE:
            v[:, -1] = free
        own[...] = v
        if kind in (SHARED, COUPLED):
            intercept[classes] -= move
        step += 1
    return total


def _run(rows, samples, order, shared, specific, intercept, *settings, parts):
    step, bounds = settings[-1][3], parts[0]
    if len(bounds) == 1:
        order = order[slice(*bounds[0])]
        return _run_thread(rows, samples, order, shared, specific, intercept, *settings, step=step)
    _, n_blocks, split = parts
    total = 0.0
    for block in range(n_blocks):
        ran, drawn = [], 0
        for begin, end in bounds:
            own = order[_block(begin, end, block, n_blocks)]
            copies = shared.copy(), intercept.copy()
            total += _run_thread(
                rows, samples, own, copies[0], specific, copies[1], *settings, step=step
            )
            ran.append((len(own), *copies))
            drawn += len(own)
        if drawn:
            shared[...] = sum(n / drawn * s for n, s, _ in ran)
            intercept[...] = sum(n / drawn * b for n, _, b in ran)
            _merge_split(split, settings[1], specific)
        step += drawn // len(bounds)
    return total


def _block(begin, end, block, n_blocks):
    return slice(
        begin + (end - begin) * block // n_blocks, begin + (end - begin) * (block + 1) // n_blocks
    )


def _merge_split(split, heads, *arrays):
    start, copies, share = split
    for begin, end in itertools.pairwise(start):
        own = copies[begin:end]
        for vectors in arrays:
            if vectors.ndim == 1:
                at = heads[2][own][:, None] + np.arange(np.diff(heads[2])[own[0]])
            else:
                at = own
            vectors[at] = share[begin:end] @ vectors[at]


def _dense_rows(X, width):
    padded = np.zeros((len(X), width))
    padded[:, : X.shape[1]] = X
    return lambda row, own_width: (padded[row], padded[row])


def _csr_rows(data, indices, indptr, position, d):
    """A row as the shared vectors have it, and as its task's own do."""

    def rows(row, own_width):
        x, own_x = np.zeros(d), np.zeros(own_width)
        entries = slice(indptr[row], indptr[row + 1])
        x[indices[entries]] = data[entries]
        own_x[position[entries]] = data[entries]
        return x, own_x

    return rows


def sgd_dense(
    X,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    parts,
):
    """Run SGD over the samples in `order` on dense rows; return the sum of weighted losses.

    With g the weighted derivative of the loss, damped by ``1 / (1 + η h w ‖x‖²_C)``:
    ``s_r ← (s_r − η B[t,r] g x) / (1 + η α)`` and ``v_t ← (v_t − η κ_t g x) / (1 + η α / P(t))``.
    """
    return _run(
        _dense_rows(X, specific.shape[1] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        parts=parts,
    )


def sgd_csr(
    data,
    indices,
    indptr,
    position,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    parts,
):
    """The same on CSR rows."""
    return _run(
        _csr_rows(data, indices, indptr, position, shared.shape[2] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        parts=parts,
    )


def _saga(
    rows, samples, order, shared, specific, intercept, *settings, shares=(0, 1, 0, 1), **saga
):
    memory, averages, spreads = saga["memory"], saga["averages"], saga["spreads"]
    coupling, heads, loss, penalty, schedule = settings
    mixing, kappa = coupling
    alpha, task_rarity, class_rarity, kind, task_alpha = penalty
    shared_average, specific_average, intercept_average = averages
    rate, n = schedule[0], len(samples)
    total = 0.0
    for k in order:
        sample = samples[k]
        task = sample["task"]
        a = _own_vectors(specific_average, heads, task)
        x, own_x = rows(sample["row"], a.shape[1] - 1)
        scores, v, classes = _scores(
            x, own_x, task, shared, specific, intercept, coupling, heads, kind
        )
        value, g = _derivatives(loss, sample, scores)
        total += value
        change = g - memory[k, : len(g)]
        memory[k, : len(g)] = g
        # How much more seldom than every draw a coordinate is touched; 0 leaves it alone.
        often = np.tile(class_rarity[classes, None], (1, len(x) + 1))
        often_own = np.full(len(own_x) + 1, task_rarity[task])
        if spreads is not None:
            often[:, :-1] = np.where(x != 0, spreads[0][classes, :-1], 0.0)
            spread = _own_vectors(spreads[1], heads, task)[0, :-1]
            often_own[:-1] = np.where(own_x != 0, spread, 0.0)
        coefficient = np.append(np.ones(len(x)), float(kind == COUPLED))
        shared_gradient = np.outer(change, np.append(x, float(kind == COUPLED)))
        gradient = np.outer(change, np.append(own_x, 1.0))
        for r in range(len(shared)):
            s, mean = shared[r, classes], shared_average[r, classes]
            moved = s - rate * (mixing[task, r] * shared_gradient + often * mean)
            moved = _soft(moved, rate * alpha * shares[0] * (often * coefficient))
            shared[r, classes] = moved / (1 + rate * alpha * shares[1] * often)
            shared_average[r, classes] = mean + mixing[task, r] * shared_gradient / n
        gain = np.full(len(own_x) + 1, kappa[task])
        gain[-1] = {COUPLED: kappa[task], FREE: 1.0}.get(kind, 0.0)
        shrink = often_own.copy()
        if kind != COUPLED:
            shrink[-1] = 0.0
        moved = v - rate * gain * (gradient + often_own * a)
        moved = _soft(
            moved, rate * np.sqrt(kappa[task] * alpha * task_alpha[task]) * shares[2] * shrink
        )
        v[...] = moved / (1 + rate * task_alpha[task] * shares[3] * shrink)
        touched = gradient * (gain > 0)
        a += touched / n
        if kind in (SHARED, COUPLED):
            intercept[classes] -= rate * (
                change + class_rarity[classes] * intercept_average[classes]
            )
            intercept_average[classes] += change / n
    return total


def saga_dense(
    X,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    memory,
    averages,
):
    """Run SAGA over the samples in `order` on dense rows; return the sum of weighted losses.

    `memory` (n, most heads of a task) holds the last derivatives, `averages` (like shared, specific
    and intercept) what they average to. With Δ the change of a sample's derivative,
    ``s_r ← (s_r − η (B[t,r] Δ x + ā_r)) / (1 + η α)``, and the same for ``v_t``, whose average and
    penalty enter 1 / P(t) times as strongly because only draws of its task touch it.
    """
    return _saga(
        _dense_rows(X, specific.shape[1] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        memory=memory,
        averages=averages,
        spreads=None,
    )


def saga_csr(
    data,
    indices,
    indptr,
    position,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    memory,
    averages,
    spreads,
):
    """The same on CSR rows; `spreads` are n / (rows that have the coordinate)."""
    return _saga(
        _csr_rows(data, indices, indptr, position, shared.shape[2] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        memory=memory,
        averages=averages,
        spreads=spreads,
    )


def _implicit_slope(at, p, c, held):
    """(g', its conjugate, a score of that slope) where g' = ℓ'(p − c (g' − g)).

    `at` is the loss of a score and its slope, `held` the same three of g; before the first step
    the score is NaN. That score and p enclose the root. Tried is the root of the quadratic that has
    both ends' slopes and, on average, that between their values; where that leaves much, where the
    tangents at both ends meet: at a kink between them that is the kink, and tried again it stays
    where it is. If these trials do not end, some halve the logarithm of the distance from p.
    """
    g, conjugate, b = held
    value_a, slope_a = at(p)
    gap = slope_a - g
    if p == b:
        return held
    if gap == 0:
        return g, g * p - value_a, p
    toward, a, off_a = -1.0 if gap > 0 else 1.0, p, gap
    value_b, slope_b = g * b - conjugate, g
    if np.isnan(b):
        b = p + toward * min(c * abs(gap), FARTHEST)
        value_b, slope_b = at(b)
    off_b, q, value, slope = slope_b - g - (p - b) / c, b, value_b, slope_b
    near_root, straight = True, slope_b == slope_a
    for trial in range(1, MOST_TRIALS):
        moved = (p - q) / c
        accuracy = STRAIGHT_ACCURACY if straight else SLOPE_ACCURACY
        if abs(slope - g - moved) <= accuracy * min(abs(slope - g), abs(moved)):
            break
        low, high, near = min(a, b), max(a, b), 1e-13 * (abs(a) + abs(b))
        with np.errstate(all="ignore"):
            meet = (value_b - value_a + slope_a * a - slope_b * b) / np.float64(slope_a - slope_b)
            bend = 6.0 * (value_b - value_a) / np.float64(b - a) - 3.0 * (slope_a + slope_b)
            line = off_b - off_a + bend
            root = np.sqrt(line * line + 4.0 * bend * off_a)
            share = 2.0 * off_a / (np.copysign(root, off_a) - line)
        if abs(meet - a) <= near or abs(meet - b) <= near or high - low <= near:
            kink, value = (a, value_a) if abs(meet - a) <= near else (b, value_b)
            slope = min(max(g + (p - kink) / c, min(slope_a, slope_b)), max(slope_a, slope_b))
            q = min(max(p - c * (slope - g), low), high)  # further, where a straight piece begins
            value += slope * (q - kink)
            break
        q = a + (b - a) * share if near_root else meet
        if not low < q < high:
            q = 0.5 * (a + b)
        if trial >= PATIENCE and trial % 3 == 0:
            close, far = sorted((abs(p - a), abs(p - b)))
            close = max(close, 1e-3 * (1.0 + abs(p)))
            if far > 4.0 * close:
                q = p + toward * np.sqrt(close) * np.sqrt(far)
        value, slope = at(q)
        off = slope - (g + (p - q) / c)
        near_root = abs(off) < 0.1 * min(abs(off_a), abs(off_b))
        straight = slope in (slope_a, slope_b)
        if (off > 0) == (off_a > 0):
            a, value_a, slope_a, off_a = q, value, slope, off
        else:
            b, value_b, slope_b, off_b = q, value, slope, off
    return slope, slope * q - value, q


def _implicit_logistic(y, p, c, held):
    """The same of the log loss: with the margin m = y p and a = −y g, u = m + c (σ(−u) − a).

    Steps are Halley's, first from the margin that a belongs to; the last one's change of σ is its
    series, and not evaluated.
    """
    margin, a = y * p, abs(held[0])
    start = np.log((1 - a) / a) if np.isnan(held[2]) else y * held[2]
    low = max(margin - c * a, min(start, margin))
    high = min(margin + c * (1 - a), max(start, margin))
    if np.isinf(start):  # from 0, where σ is ½
        u = min(max((margin + c * (0.5 - a)) / (1 + 0.25 * c), low), high)
    else:
        bend, off = c * (a - a * a), start - margin
        steep = 1 + bend
        u = start - off * steep / (steep * steep - bend * (a - 0.5) * off)
        if not low <= u <= high:
            u = 0.5 * (low + high)
    for _ in range(MOST_TRIALS):
        share = 1 / (1 + np.exp(u))
        bend, off = share - share * share, u - margin - c * (share - a)
        steep = 1 + c * bend
        step = off * steep / (steep * steep - c * bend * (share - 0.5) * off)
        after = u - step
        if abs(step) <= SHORT_STEP and not abs(step) ** 3 > LOGISTIC_ACCURACY * abs(after - start):
            u, share = after, share + bend * step * (1 - (share - 0.5) * step)
            break
        low, high = (low, u) if off > 0 else (u, high)
        u = after if low <= after <= high else 0.5 * (low + high)
    conjugate = sum(part * np.log(part) for part in (share, 1 - share) if part > 0)
    return -y * share, conjugate, y * u


def _dual_move(sample, p, reach, loss, held):
    """Renew what is remembered of a sample; return how far its row enters the parameters."""
    function, y = _point_loss(loss[0], loss[1], loss[3]), sample["target"]
    before, c = held[0], reach * sample["curvature"]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if LOSSES[loss[0]] is log_loss and not loss[3]:
            held[:] = _implicit_logistic(y, p, c, held)
        else:
            held[:] = _implicit_slope(lambda score: function(y, score), p, c, held)
    return reach * (held[0] - before)


def _dual(
    rows, samples, order, shared, specific, intercept, coupling, heads, loss, penalty, memory
):
    (mixing, kappa), (alpha, _, _, kind, _) = coupling, penalty
    for k in order:
        sample, task = samples[k], samples[k]["task"]
        x, own_x = rows(sample["row"], _own_vectors(specific, heads, task).shape[1] - 1)
        (p,), (v,), _ = _scores(x, own_x, task, shared, specific, intercept, coupling, heads, kind)
        move = _dual_move(sample, p, sample["weight"] / (alpha * len(samples)), loss, memory[k])
        shared[:, 0] -= np.outer(mixing[task] * move, np.append(x, kind == COUPLED))
        gain = np.full(len(v), kappa[task])
        gain[-1] = {COUPLED: kappa[task], FREE: 1.0}.get(kind, 0.0)
        v -= gain * move * np.append(own_x, 1.0)
        if kind in (SHARED, COUPLED):
            intercept[0] -= move


def dual_dense(
    X, samples, order, shared, specific, intercept, coupling, heads, loss, penalty, memory
):
    """Run dual coordinate ascent over the samples in `order`.

    `memory` (n, 3) holds each sample's dual variable, the slope g of its loss, the loss's conjugate
    there, and a score of that slope, NaN before the first step. A step sets g to what maximises the
    dual: with c = w ‖x‖²_C / (α n), the solution of ``g' = ℓ'(p − c (g' − g))``; then
    ``s_r ← s_r − B[t,r] w (g' − g) x / (α n)``, and the same for ``v_t`` with κ_t and for
    intercepts without a penalty, with 1.
    """
    rows = _dense_rows(X, specific.shape[1] - 1)
    _dual(rows, samples, order, shared, specific, intercept, coupling, heads, loss, penalty, memory)


def dual_csr(
    data,
    indices,
    indptr,
    position,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    memory,
):
    """The same on CSR rows."""
    rows = _csr_rows(data, indices, indptr, position, shared.shape[2] - 1)
    _dual(rows, samples, order, shared, specific, intercept, coupling, heads, loss, penalty, memory)


def dual_joint_csr(
    data,
    indices,
    indptr,
    samples,
    order,
    weights,
    intercept,
    covariance,
    loss,
    alpha,
    intercept_kind,
    memory,
):
    """The same on CSR rows of few tasks, whose coefficients lie side by side.

    ``weights[j, t]`` (stride, T) is what column j has in w_t = Σ_r B[t, r] s_r + v_t, its last row
    the tasks' intercepts beside the common one, and `covariance` is C: a step on task t is
    ``w_u ← w_u − C[t, u] w (g' − g) x / (α n)`` for all tasks u.
    """
    rows = _csr_rows(data, indices, indptr, indices, len(weights) - 1)
    for k in order:
        sample, task = samples[k], samples[k]["task"]
        x = np.append(rows(sample["row"], len(weights) - 1)[0], intercept_kind == COUPLED)
        common = intercept[0] if intercept_kind in (SHARED, COUPLED) else 0.0
        p = x.astype(np.float64) @ weights[:, task] + common
        move = _dual_move(sample, p, sample["weight"] / (alpha * len(samples)), loss, memory[k])
        weights -= np.outer(x, covariance[task] * move)
        if intercept_kind in (SHARED, COUPLED):
            intercept[0] -= move


def _soft(z, threshold):
    return np.sign(z) * np.maximum(np.abs(z) - threshold, 0.0)


def _clipped(g, clip, curvature):
    length = np.linalg.norm(g) * np.sqrt(curvature)
    return g * (clip / length) if clip > 0 and length > clip else g


def _general_step(w, squares, drift, q, seldom, root, l1, l2, rate, lag):
    """One vector's step, in place; AdaGrad's sums and drifts may be None."""
    if squares is not None:
        squares += q * q
        rate = np.divide(rate, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
    before = w.astype(np.float64)
    weight = rate * seldom
    w[...] = _soft(before - root * rate * q, root * weight * l1) / (1 + weight * l2)
    if drift is not None:
        drift += lag * (w - before)


def _run_general(rows, samples, order, shared, specific, intercept, *settings, **general):
    coupling, heads, loss, penalty, schedule = settings
    mixing, kappa = coupling
    alpha, task_rarity, class_rarity, kind, _ = penalty
    shared_l1, shared_l2, task_l1, task_l2 = (alpha * share for share in general["shares"])
    clip, average_from, squares, drift = general["extras"]
    spreads, step, pace = general["spreads"], general["step"], general["pace"]
    none = (None, None, None)
    shared_squares, specific_squares, intercept_squares = squares or none
    shared_drift, specific_drift, intercept_drift = drift or none

    def part(array, *at):
        return None if array is None else array[at]

    total = 0.0
    for k in order:
        sample = samples[k]
        task = sample["task"]
        x, own_x = rows(sample["row"], _own_vectors(specific, heads, task).shape[1] - 1)
        scores, own, classes = _scores(
            x, own_x, task, shared, specific, intercept, coupling, heads, kind
        )
        value, g = _derivatives(loss, sample, scores)
        total += value
        g = _clipped(g, clip, sample["curvature"])
        rate = schedule[0] / (schedule[1] + step) ** schedule[2]
        move = g
        if squares is None:
            smoothness = loss[2]
            if loss[0] == POISSON:
                smoothness = abs(g[0]) / max(sample["weight"], 1e-300) + sample["target"]
            move = g / (1 + rate * smoothness * sample["weight"] * sample["curvature"])
        lag = max(0.0, step - average_from)
        row, own_row = np.append(x, kind == COUPLED), np.append(own_x, kind == COUPLED)
        touched, own_touched = row != 0, own_row != 0
        if spreads is None:
            touched[:-1] = own_touched[:-1] = True
        own_squares, own_drift = (
            None if array is None else _own_vectors(array, heads, task)
            for array in (specific_squares, specific_drift)
        )
        for j, class_ in enumerate(classes):
            seldom = np.full(len(row), class_rarity[class_])
            if spreads is not None:
                seldom[:-1] = spreads[0][class_, :-1]
            for r in range(len(shared)):
                at = (r, class_, touched)
                w, a, b = shared[at], part(shared_squares, *at), part(shared_drift, *at)
                q = mixing[task, r] * move[j] * row[touched]
                _general_step(w, a, b, q, seldom[touched], 1.0, shared_l1, shared_l2, rate, lag)
                _put(at, (shared, w), (shared_squares, a), (shared_drift, b))
            if kappa[task] > 0:
                root = np.sqrt(kappa[task])
                seldom = np.full(len(own_row), task_rarity[task])
                if spreads is not None:
                    seldom[:-1] = _own_vectors(spreads[1], heads, task)[0, :-1]
                at = (j, own_touched)
                w, a, b = own[at], part(own_squares, *at), part(own_drift, *at)
                q = root * move[j] * own_row[own_touched]
                _general_step(w, a, b, q, seldom[own_touched], root, task_l1, task_l2, rate, lag)
                _put(at, (own, w), (own_squares, a), (own_drift, b))
            plain = {"seldom": 0.0, "root": 1.0, "l1": 0.0, "l2": 0.0, "rate": rate, "lag": lag}
            if kind == FREE:
                at = (j, slice(-1, None))
                rest = part(own_squares, *at), part(own_drift, *at)
                _general_step(own[at], *rest, move[j], **plain)
            if kind in (SHARED, COUPLED):
                at = slice(class_, class_ + 1)
                rest = part(intercept_squares, at), part(intercept_drift, at)
                _general_step(intercept[at], *rest, move[j], **plain)
        step += pace
    return total


def _put(at, *pairs):
    for array, value in pairs:
        if array is not None:
            array[at] = value


def _general(rows, samples, order, shared, specific, intercept, *settings, **general):
    parts, step = general.pop("parts"), settings[-1][3]
    bounds = parts[0]
    if len(bounds) == 1:
        return _run_general(
            rows,
            samples,
            order[slice(*bounds[0])],
            shared,
            specific,
            intercept,
            *settings,
            **general,
            step=step,
            pace=1,
        )
    _, n_blocks, split = parts
    clip, average_from, squares, drift = general.pop("extras")
    merged = [shared, intercept]
    for three in (squares, drift):
        if three is not None:
            merged += [three[0], three[2]]
    total = 0.0
    for block in range(n_blocks):
        ran, drawn = [], 0
        for begin, end in bounds:
            own = order[_block(begin, end, block, n_blocks)]
            copies = [array.copy() for array in merged]
            rest = iter(copies[2:])
            extras = [
                None if three is None else (next(rest), three[1], next(rest))
                for three in (squares, drift)
            ]
            total += _run_general(
                rows,
                samples,
                own,
                copies[0],
                specific,
                copies[1],
                *settings,
                **general,
                extras=(clip, average_from, *extras),
                step=step,
                pace=len(bounds),
            )
            ran.append((len(own), copies))
            drawn += len(own)
        if drawn:
            for i, array in enumerate(merged):
                array[...] = sum(n / drawn * copies[i] for n, copies in ran)
            own_vectors = [three[1] for three in (squares, drift) if three is not None]
            _merge_split(split, settings[1], specific, *own_vectors)
        step += drawn // len(bounds) * len(bounds)
    return total


def sgd_general_dense(
    X,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    shares,
    extras,
    parts,
):
    """Run SGD with sparse penalties, AdaGrad, averaging or clipping on dense rows.

    In the whitened parameters (s_r itself, and u_t = v_t / √κ_t) with q the loss's gradient,
    ``u ← soft(u − η q, η λ₁) / (1 + η λ₂)``, where ``η = rate / √Σq²`` for AdaGrad. A coordinate's
    drift sums (j − 1) times its change at the j-th averaged step, so that the mean over m steps is
    the last value minus drift / m.
    """
    return _general(
        _dense_rows(X, specific.shape[1] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        shares=shares,
        extras=extras,
        spreads=None,
        parts=parts,
    )


def sgd_general_csr(
    data,
    indices,
    indptr,
    position,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    shares,
    extras,
    spreads,
    parts,
):
    """The same on CSR rows; `spreads` are 1 / P(a draw touches the coordinate)."""
    return _general(
        _csr_rows(data, indices, indptr, position, shared.shape[2] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        shares=shares,
        extras=extras,
        spreads=spreads,
        parts=parts,
    )


def saga_general_dense(
    X,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    shares,
    memory,
    averages,
):
    """Run SAGA with sparse penalties over the samples in `order` on dense rows.

    The step is that of :func:`saga_dense`, with the shrinkage of :func:`sgd_general_dense`.
    """
    return _saga(
        _dense_rows(X, specific.shape[1] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        memory=memory,
        averages=averages,
        spreads=None,
        shares=shares,
    )


def saga_general_csr(
    data,
    indices,
    indptr,
    position,
    samples,
    order,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    schedule,
    shares,
    memory,
    averages,
    spreads,
):
    """The same on CSR rows; `spreads` are n / (rows that have the coordinate)."""
    return _saga(
        _csr_rows(data, indices, indptr, position, shared.shape[2] - 1),
        samples,
        order,
        shared,
        specific,
        intercept,
        coupling,
        heads,
        loss,
        penalty,
        schedule,
        memory=memory,
        averages=averages,
        spreads=spreads,
        shares=shares,
    )


def _losses(rows, samples, shared, specific, intercept, coupling, heads, loss, penalty, task_loss):
    for sample in samples:
        task = sample["task"]
        x, own_x = rows(sample["row"], _own_vectors(specific, heads, task).shape[1] - 1)
        scores, _, _ = _scores(
            x, own_x, task, shared, specific, intercept, coupling, heads, penalty[3]
        )
        task_loss[task] += _derivatives(loss, sample, scores)[0]


def losses_dense(
    X, samples, shared, specific, intercept, coupling, heads, loss, penalty, task_loss, n_threads
):
    """Add each sample's weighted loss to its task's entry of `task_loss`."""
    rows = _dense_rows(X, specific.shape[1] - 1)
    _losses(rows, samples, shared, specific, intercept, coupling, heads, loss, penalty, task_loss)


def losses_csr(
    data,
    indices,
    indptr,
    position,
    samples,
    shared,
    specific,
    intercept,
    coupling,
    heads,
    loss,
    penalty,
    task_loss,
    n_threads,
):
    """The same on CSR rows."""
    rows = _csr_rows(data, indices, indptr, position, shared.shape[2] - 1)
    _losses(rows, samples, shared, specific, intercept, coupling, heads, loss, penalty, task_loss)


def squared_lengths(data, indptr, lengths):
    """Write ‖x‖² of each row of a CSR matrix."""
    for i, (begin, end) in enumerate(itertools.pairwise(indptr)):
        lengths[i] = np.sum(data[begin:end].astype(np.float64) ** 2)


def find_columns(indices, indptr, row, task_start, known, known_start, d, position, grow):
    """Write where each entry's column stands in the list of its task; return the lists.

    Rows of task t are ``row[task_start[t]:task_start[t + 1]]``, and the columns that it is known to
    have are ``known[known_start[t]:known_start[t + 1]]``. With `grow` the others of its rows follow
    as they first appear; without, entries in them have the position -1. Returns the columns of all
    tasks, int32, and where each task's begin, int64 (T + 1,).
    """
    columns, start = [], [0]
    for t in range(len(task_start) - 1):
        own = known[known_start[t] : known_start[t + 1]].tolist()
        place = {column: i for i, column in enumerate(own)}
        for i in row[task_start[t] : task_start[t + 1]]:
            for z in range(indptr[i], indptr[i + 1]):
                column = int(indices[z])
                if grow and column not in place:
                    place[column] = len(own)
                    own.append(column)
                position[z] = place.get(column, -1)
        columns += own
        start.append(len(columns))
    return np.array(columns, dtype=np.int32), np.array(start, dtype=np.int64)
