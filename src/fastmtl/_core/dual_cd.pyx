"""Dual coordinate descent for kernel machines whose tasks share one Gram matrix.

    minimise  ½ βᵀ(Q + diag(ridge))β − targetᵀβ + ε‖β‖₁,   lower ≤ β ≤ upper,
    Q_ij = C[task_i, task_j] · k(row_i, row_j),   C = B Bᵀ + diag(κ),
    Σ β_i = 0 over the observations of each group of tasks that has a free intercept.

Hinge and ε-insensitive losses have finite bounds, their squares a ridge 1/(2 C_i) instead. β is
signed, so a regression has one variable a sample, whose ε-term bends at zero: a step stops there.
Each iteration takes the group that violates optimality most, the observation that most wants to
go up in it, and the partner of second-order choice (Fan, Chen & Lin 2005); an observation without
a group moves alone. One pass over two Gram rows then updates the gradient and finds the extremes.
"""

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memset

from fastmtl._core.cpu cimport simd_level

cdef extern from "dual_cd.h" nogil:
    ctypedef struct dual_cd_table_f32:
        void (*step)(const float *, const float *, const int32_t *, ptrdiff_t, double, double,
                     const double *, const double *, double *, double *) noexcept nogil
        ptrdiff_t (*partner)(const float *, const int32_t *, ptrdiff_t, double, double, double,
                             double, const double *, const double *, const double *,
                             double *) noexcept nogil
    ctypedef struct dual_cd_table_f64:
        void (*step)(const double *, const double *, const int32_t *, ptrdiff_t, double, double,
                     const double *, const double *, double *, double *) noexcept nogil
        ptrdiff_t (*partner)(const double *, const int32_t *, ptrdiff_t, double, double, double,
                             double, const double *, const double *, const double *,
                             double *) noexcept nogil
    const dual_cd_table_f32 *dual_cd_pick_f32(int level)
    const dual_cd_table_f64 *dual_cd_pick_f64(int level)

ctypedef fused real:
    float
    double

cdef enum:
    CHUNK = 512
    SHRINK_EVERY = 1000
    SIGNALS_AFTER = 1 << 25  # numbers read: some tens of milliseconds

cdef double TINY = 1e-12  # stands for a curvature that is not positive (Lin & Lin 2003)


cdef struct Active:
    # The observations in play, packed in task order, and the chunks they fall into.
    ptrdiff_t n, n_chunks
    int32_t *column
    int64_t *observation
    double *gradient
    double *up
    double *down
    double *diagonal
    int64_t *start
    int32_t *chunk_task
    uint8_t *consecutive
    double *extremes


cdef struct Slots:
    # Where each Gram row is in the buffer; null where all rows are there in order.
    const int32_t *of_row
    int64_t *used
    int64_t clock


cdef inline void offsets(
    double beta, double lower, double upper, double epsilon, double *up, double *down
) noexcept nogil:
    # What the ε-term adds to the slope of going up and of going down; infinite at a bound.
    up[0] = INFINITY if beta >= upper else epsilon if beta >= 0 else -epsilon
    down[0] = -INFINITY if beta <= lower else epsilon if beta > 0 else -epsilon


cdef inline void scan(Active *active, ptrdiff_t chunk) noexcept nogil:
    cdef ptrdiff_t k
    cdef double least = INFINITY, greatest = -INFINITY
    for k in range(active.start[chunk], active.start[chunk + 1]):
        least = min(least, active.gradient[k] + active.up[k])
        greatest = max(greatest, active.gradient[k] + active.down[k])
    active.extremes[2 * chunk] = least
    active.extremes[2 * chunk + 1] = greatest


cdef void divide(Active *active, const int32_t *task) noexcept nogil:
    # Cut the packed observations into chunks of one task each.
    cdef ptrdiff_t k, begin = 0, chunk = 0
    cdef bint consecutive = True
    for k in range(active.n):
        if k + 1 < active.n and k + 1 - begin < CHUNK and (
            task[active.observation[k + 1]] == task[active.observation[k]]
        ):
            consecutive &= active.column[k + 1] == active.column[k] + 1
            continue
        active.start[chunk] = begin
        active.start[chunk + 1] = k + 1
        active.chunk_task[chunk] = task[active.observation[k]]
        active.consecutive[chunk] = consecutive
        scan(active, chunk)
        chunk += 1
        begin = k + 1
        consecutive = True
    active.n_chunks = chunk


cdef inline void covariance_row(
    const double *mixing, const double *kappa, ptrdiff_t n_tasks, ptrdiff_t rank, ptrdiff_t task,
    double *out
) noexcept nogil:
    cdef ptrdiff_t t, r
    cdef double total
    for t in range(n_tasks):
        total = 0
        for r in range(rank):
            total += mixing[task * rank + r] * mixing[t * rank + r]
        out[t] = total
    out[task] += kappa[task]


cdef ptrdiff_t hold(
    Slots *slots, ptrdiff_t row, cache, others, double[::1] urgency, Active *active,
    const double *low, const double *high, const int32_t *group
) except -1 nogil:
    """Return the place of a Gram row in the buffer; a missing one comes with what may follow.

    Urgent are the observations in play that violate optimality; or, with `active` null, those for
    which the caller has filled `urgency`.
    """
    cdef ptrdiff_t slot = row, chunk, k, count = urgency.shape[0]
    cdef int32_t g
    cdef double least, greatest
    if slots.of_row == NULL:
        return row
    if slots.of_row[row] < 0:
        if active != NULL:
            count = active.n
            for chunk in range(active.n_chunks):
                g = group[active.chunk_task[chunk]]
                least = 0 if g < 0 else low[g]
                greatest = 0 if g < 0 else high[g]
                for k in range(active.start[chunk], active.start[chunk + 1]):
                    urgency[k] = max(greatest - active.gradient[k] - active.up[k],
                                     active.gradient[k] + active.down[k] - least)
        with gil:
            cache.fetch(row, others[:count], np.asarray(urgency)[:count])
    slot = slots.of_row[row]
    slots.clock += 1
    slots.used[slot] = slots.clock
    return slot


cdef inline void update(
    Active *active, const real *row_i, const real *row_j, const double *c_i, const double *c_j,
    double step_i, double step_j, ptrdiff_t chunk_i, ptrdiff_t chunk_j
) noexcept nogil:
    cdef ptrdiff_t chunk, begin, size, shift
    cdef int32_t task
    cdef const int32_t *column
    cdef const dual_cd_table_f32 *table_f32 = dual_cd_pick_f32(simd_level)
    cdef const dual_cd_table_f64 *table_f64 = dual_cd_pick_f64(simd_level)
    for chunk in range(active.n_chunks):
        task = active.chunk_task[chunk]
        if c_i[task] == 0 and c_j[task] == 0 and chunk != chunk_i and chunk != chunk_j:
            continue
        begin = active.start[chunk]
        size = active.start[chunk + 1] - begin
        shift = active.column[begin] if active.consecutive[chunk] else 0
        column = NULL if active.consecutive[chunk] else active.column + begin
        if real is float:
            table_f32.step(
                row_i + shift, row_j + shift, column, size, step_i * c_i[task],
                step_j * c_j[task], active.up + begin, active.down + begin,
                active.gradient + begin, active.extremes + 2 * chunk,
            )
        else:
            table_f64.step(
                row_i + shift, row_j + shift, column, size, step_i * c_i[task],
                step_j * c_j[task], active.up + begin, active.down + begin,
                active.gradient + begin, active.extremes + 2 * chunk,
            )


cdef inline ptrdiff_t partner(
    Active *active, const real *row_i, ptrdiff_t chunk, double coupling, double slope,
    double curvature, double *gain
) noexcept nogil:
    cdef ptrdiff_t begin = active.start[chunk], size = active.start[chunk + 1] - begin, found
    cdef ptrdiff_t shift = active.column[begin] if active.consecutive[chunk] else 0
    cdef const int32_t *column = NULL if active.consecutive[chunk] else active.column + begin
    if real is float:
        found = dual_cd_pick_f32(simd_level).partner(
            row_i + shift, column, size, coupling, slope, curvature, TINY,
            active.gradient + begin, active.down + begin, active.diagonal + begin, gain,
        )
    else:
        found = dual_cd_pick_f64(simd_level).partner(
            row_i + shift, column, size, coupling, slope, curvature, TINY,
            active.gradient + begin, active.down + begin, active.diagonal + begin, gain,
        )
    return found if found < 0 else begin + found


def minimise(
    const real[:, ::1] gram, cache, const double[::1] diagonal, const int32_t[::1] row,
    const int32_t[::1] task, const int32_t[::1] group, const double[:, ::1] mixing,
    const double[::1] kappa, const double[::1] lower, const double[::1] upper,
    const double[::1] ridge, double epsilon, double tol, int64_t max_iter, bint shrinking,
    double[::1] beta, double[::1] gradient, tick,
):
    """Minimise the dual in place.

    Parameters
    ----------
    gram : (n_rows, n_rows) Gram matrix, or (n_slots, n_rows) buffer of rows with n_slots >= 2
    cache : None, or what fills the buffer, as :class:`fastmtl.row_cache.RowCache` does
    diagonal : (n_rows,) of the Gram matrix
    row, task : (n,) of each observation; task must not decrease
    group : (n_tasks,) tasks of one group share an intercept; -1 for none
    mixing, kappa : B (n_tasks, n_shared) and κ (n_tasks,)
    lower, upper, ridge : (n,), lower <= 0 <= upper
    epsilon : half-width of the insensitive tube
    tol : greatest violation of optimality to leave
    max_iter : number of steps at most
    shrinking : leave out observations that look settled at a bound until the end
    beta, gradient : (n,) in and out; gradient is that of the objective without the ε-term
    tick : None, or a callable (n_iter, violation), called some times a second

    Returns
    -------
    n_iter : number of steps
    violation : the greatest left; infinite if the objective has no minimum
    n_negative : number of steps along negative curvature
    """
    cdef ptrdiff_t n = row.shape[0], n_rows = diagonal.shape[0], n_tasks = kappa.shape[0]
    cdef ptrdiff_t rank = mixing.shape[1], n_groups = np.max(group, initial=-1) + 1
    cdef ptrdiff_t chunk_limit = n // CHUNK + n_tasks + 2, width = gram.shape[1]
    columns = np.empty(n + chunk_limit, dtype=np.int32)
    cdef int32_t[::1] int_work = columns
    cdef int64_t[::1] long_work = np.empty(n + chunk_limit, dtype=np.int64)
    cdef double[::1] work = np.empty(4 * n + 2 * chunk_limit)
    cdef uint8_t[::1] flags = np.zeros(n + chunk_limit, dtype=np.uint8)
    cdef double[::1] settled = np.empty(n if shrinking else 0)
    cdef double[::1] couple_i = np.empty(n_tasks), couple_j = np.empty(n_tasks)
    cdef double[::1] variance = (np.square(mixing).sum(axis=1) + kappa)
    cdef double[::1] low = np.empty(n_groups + 1), high = np.empty(n_groups + 1)
    cdef double[::1] urgency = np.empty(n if cache is not None else 0)
    cdef const int32_t[::1] slot_of
    cdef int64_t[::1] used

    if n == 0:
        return 0, 0.0, 0
    cdef Active active
    active.n = 0
    active.n_chunks = 0
    active.column = &int_work[0]
    active.chunk_task = &int_work[0] + n
    active.observation = &long_work[0]
    active.start = &long_work[0] + n
    active.gradient = &work[0]
    active.up = &work[0] + n
    active.down = &work[0] + 2 * n
    active.diagonal = &work[0] + 3 * n
    active.extremes = &work[0] + 4 * n
    cdef uint8_t *inactive = &flags[0]
    active.consecutive = &flags[0] + n
    rows = np.asarray(row)
    cdef Slots slots
    slots.of_row = NULL
    if cache is not None:
        slot_of, used = cache.slot_of, cache.used
        slots.of_row = &slot_of[0]
        slots.used = &used[0]
        slots.clock = np.max(used)

    cdef const real *entries = &gram[0, 0]
    cdef const real *row_i
    cdef const real *row_j
    cdef const double *c_j
    cdef const double *shared = &mixing[0, 0] if rank else NULL
    cdef int64_t n_iter = 0, n_negative = 0, countdown = min(n, SHRINK_EVERY)
    cdef int64_t signals = 0
    cdef ptrdiff_t chunk, k, i, j, kept, chunk_i, chunk_j, best_group, best_chunk, found, first
    cdef ptrdiff_t known_task = -1, o_i, o_j
    cdef int32_t g
    cdef double violation = 0, singles, v, slope, gain, bend, step, room, scale
    cdef bint shrunk = False, upwards

    for i in range(n):
        add(&active, i, row[i], gradient[i], beta[i], lower[i], upper[i], epsilon,
            variance[task[i]] * diagonal[row[i]] + ridge[i])
    divide(&active, &task[0])

    with nogil:
        while True:
            for g in range(n_groups):
                low[g] = INFINITY
                high[g] = -INFINITY
            best_chunk = -1
            best_group = -1
            singles = 0
            for chunk in range(active.n_chunks):
                g = group[active.chunk_task[chunk]]
                if g < 0:
                    v = max(-active.extremes[2 * chunk], active.extremes[2 * chunk + 1])
                    if v > singles:
                        singles = v
                        best_chunk = chunk
                else:
                    low[g] = min(low[g], active.extremes[2 * chunk])
                    high[g] = max(high[g], active.extremes[2 * chunk + 1])
            violation = singles
            for g in range(n_groups):
                if high[g] - low[g] > violation:
                    violation = high[g] - low[g]
                    best_group = g

            if violation <= tol or n_iter >= max_iter:
                if not shrunk:
                    break
                # Bring the settled observations back, their gradients moved by what changed since.
                for k in range(active.n):
                    gradient[active.observation[k]] = active.gradient[k]
                active.n = 0
                for i in range(n):
                    if inactive[i]:
                        add(&active, i, row[i], gradient[i], beta[i], lower[i], upper[i], epsilon,
                            0)
                divide(&active, &task[0])
                if slots.of_row != NULL:
                    for i in range(n):
                        urgency[i] = beta[i] != settled[i]
                i = 0
                while i < n:
                    if beta[i] == settled[i]:
                        i += 1
                        continue
                    j = i + 1
                    while j < n and (beta[j] == settled[j] or task[j] != task[i]):
                        if task[j] != task[i]:
                            j = n
                            break
                        j += 1
                    covariance_row(shared, &kappa[0], n_tasks, rank, task[i], &couple_i[0])
                    row_i = entries + hold(
                        &slots, row[i], cache, rows, urgency, NULL, NULL, NULL, NULL) * width
                    if j < n:
                        row_j = entries + hold(
                            &slots, row[j], cache, rows, urgency, NULL, NULL, NULL, NULL) * width
                        update(&active, row_i, row_j, &couple_i[0], &couple_i[0],
                               beta[i] - settled[i], beta[j] - settled[j], -1, -1)
                        i = j + 1
                    else:
                        update(&active, row_i, row_i, &couple_i[0], &couple_i[0],
                               beta[i] - settled[i], 0, -1, -1)
                        i += 1
                    # One step may have skipped a range; nothing in between had changed.
                known_task = -1
                for k in range(active.n):
                    gradient[active.observation[k]] = active.gradient[k]
                active.n = 0
                for i in range(n):
                    inactive[i] = 0
                    add(&active, i, row[i], gradient[i], beta[i], lower[i], upper[i], epsilon,
                        variance[task[i]] * diagonal[row[i]] + ridge[i])
                divide(&active, &task[0])
                shrunk = False
                countdown = min(n, SHRINK_EVERY)
                continue

            if shrinking and countdown == 0:
                countdown = min(n, SHRINK_EVERY)
                if not shrunk:
                    for k in range(active.n):
                        gradient[active.observation[k]] = active.gradient[k]
                    settled[:] = beta
                kept = 0
                for k in range(active.n):
                    o_i = active.observation[k]
                    g = group[task[o_i]]
                    if (
                        active.gradient[k] + active.up[k] > (singles if g < 0 else high[g])
                        and active.gradient[k] + active.down[k] < (-singles if g < 0 else low[g])
                    ):
                        inactive[o_i] = 1
                        shrunk = True
                        continue
                    active.observation[kept] = o_i
                    active.column[kept] = active.column[k]
                    active.gradient[kept] = active.gradient[k]
                    active.up[kept] = active.up[k]
                    active.down[kept] = active.down[k]
                    active.diagonal[kept] = active.diagonal[k]
                    kept += 1
                if kept < active.n:
                    active.n = kept
                    divide(&active, &task[0])
                continue
            countdown -= 1

            # The observation with the greatest slope: upwards, unless it moves alone.
            i = -1
            chunk_i = -1
            if best_group >= 0:
                upwards = True
                slope = low[best_group]
                for chunk in range(active.n_chunks):
                    if (
                        group[active.chunk_task[chunk]] == best_group
                        and active.extremes[2 * chunk] == slope
                    ):
                        chunk_i = chunk
                        break
            else:
                chunk_i = best_chunk
                upwards = -active.extremes[2 * chunk_i] >= active.extremes[2 * chunk_i + 1]
                slope = active.extremes[2 * chunk_i + (0 if upwards else 1)]
            for k in range(active.start[chunk_i], active.start[chunk_i + 1]):
                if active.gradient[k] + (active.up[k] if upwards else active.down[k]) == slope:
                    i = k
                    break
            o_i = active.observation[i]
            row_i = entries + hold(
                &slots, row[o_i], cache, columns, urgency, &active, &low[0], &high[0],
                &group[0]) * width
            if task[o_i] != known_task:
                known_task = task[o_i]
                covariance_row(shared, &kappa[0], n_tasks, rank, known_task, &couple_i[0])

            if best_group >= 0:
                j = -1
                chunk_j = -1
                gain = -1
                for chunk in range(active.n_chunks):
                    if (
                        group[active.chunk_task[chunk]] == best_group
                        and active.extremes[2 * chunk + 1] > slope
                    ):
                        found = partner(
                            &active, row_i, chunk, couple_i[active.chunk_task[chunk]], slope,
                            active.diagonal[i], &gain,
                        )
                        if found >= 0:
                            j = found
                            chunk_j = chunk
                o_j = active.observation[j]
                row_j = entries + hold(
                    &slots, row[o_j], cache, columns, urgency, &active, &low[0], &high[0],
                    &group[0]) * width
                scale = active.diagonal[i] + active.diagonal[j]
                bend = scale - 2 * couple_i[task[o_j]] * row_i[row[o_j]]
                step = active.gradient[j] + active.down[j] - slope
            else:
                j = i
                o_j = o_i
                chunk_j = chunk_i
                row_j = row_i
                scale = fabs(active.diagonal[i])
                bend = active.diagonal[i]
                step = fabs(slope)
            if bend < -1e-6 * fabs(scale):
                n_negative += 1
            step /= max(bend, TINY)

            # Stop at the bounds, and where the ε-term bends.
            if upwards:
                room = -beta[o_i] if beta[o_i] < 0 and epsilon > 0 else upper[o_i] - beta[o_i]
            else:
                room = beta[o_i] if beta[o_i] > 0 and epsilon > 0 else beta[o_i] - lower[o_i]
            if j != i:
                v = beta[o_j] if beta[o_j] > 0 and epsilon > 0 else beta[o_j] - lower[o_j]
                room = min(room, v)
            if bend <= 0 and room == INFINITY:
                violation = INFINITY
                break
            step = min(step, room)
            n_iter += 1
            if j != i:
                move(&active, j, o_j, -step, ridge[o_j], lower[o_j], upper[o_j], epsilon,
                     &beta[0])
                c_j = &couple_i[0]
                if task[o_j] != known_task:
                    covariance_row(shared, &kappa[0], n_tasks, rank, task[o_j], &couple_j[0])
                    c_j = &couple_j[0]
                move(&active, i, o_i, step, ridge[o_i], lower[o_i], upper[o_i], epsilon, &beta[0])
                update(&active, row_i, row_j, &couple_i[0], c_j, step, -step, chunk_i, chunk_j)
            else:
                step = step if upwards else -step
                move(&active, i, o_i, step, ridge[o_i], lower[o_i], upper[o_i], epsilon, &beta[0])
                update(&active, row_i, row_i, &couple_i[0], &couple_i[0], step, 0, chunk_i,
                       chunk_i)
            signals += active.n
            if signals >= SIGNALS_AFTER:
                signals = 0
                with gil:
                    PyErr_CheckSignals()
                    if tick is not None:
                        tick(n_iter, violation)
        for k in range(active.n):
            gradient[active.observation[k]] = active.gradient[k]
    return n_iter, violation, n_negative


cdef inline void add(
    Active *active, ptrdiff_t observation, int32_t column, double gradient, double beta,
    double lower, double upper, double epsilon, double diagonal
) noexcept nogil:
    cdef ptrdiff_t k = active.n
    active.observation[k] = observation
    active.column[k] = column
    active.gradient[k] = gradient
    active.diagonal[k] = diagonal
    offsets(beta, lower, upper, epsilon, active.up + k, active.down + k)
    active.n += 1


cdef inline void move(
    Active *active, ptrdiff_t k, ptrdiff_t observation, double step, double ridge, double lower,
    double upper, double epsilon, double *beta
) noexcept nogil:
    cdef double before = beta[observation], after = before + step
    # Rounding must not leave a variable just beside where it was to stop.
    if fabs(after - upper) <= 1e-14 * fabs(after):
        after = upper
    elif fabs(after - lower) <= 1e-14 * fabs(after):
        after = lower
    elif fabs(after) <= 1e-15 * fabs(step):
        after = 0
    beta[observation] = after
    active.gradient[k] += ridge * step
    offsets(after, lower, upper, epsilon, active.up + k, active.down + k)
