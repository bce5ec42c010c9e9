"""Block coordinate descent for features that tasks select together (and alone).

    minimise  ½ Σ_i w_i (z_i − x_i·(p + q)_task(i) − b_task(i))² + α Σ_j ‖P_j‖ + β Σ_tj |Q_tj|

over P (row-sparse: a feature j serves all tasks or none), Q (sparse entry by entry) and a free
intercept b per task. The residual is kept times its weight, `moved` = w r, but for the intercepts'
share: `offset_t`, which every task's weighted residuals have added to them to sum to zero, so that
the intercepts are at their best after each step without a pass of their own.

Columns: the transpose of dense rows flattened, with `row` mapping observations to their entries;
or CSC (`indices`, `indptr`), whose rows are the observations themselves. Observations are in task
order.
"""

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.math cimport fabs, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t

from fastmtl._core.cpu cimport simd_level

cdef extern from "group_cd.h" nogil:
    ctypedef struct group_cd_table_f32:
        double (*product)(const float *, const int32_t *, const float *, ptrdiff_t) noexcept nogil
        void (*move)(const float *, const int32_t *, const float *, double, float *,
                     ptrdiff_t) noexcept nogil
        void (*moments)(const float *, const int32_t *, const float *, ptrdiff_t,
                        double *) noexcept nogil
    ctypedef struct group_cd_table_f64:
        double (*product)(const double *, const int32_t *, const double *, ptrdiff_t) noexcept nogil
        void (*move)(const double *, const int32_t *, const double *, double, double *,
                     ptrdiff_t) noexcept nogil
        void (*moments)(const double *, const int32_t *, const double *, ptrdiff_t,
                        double *) noexcept nogil
    const group_cd_table_f32 *group_cd_pick_f32(int level)
    const group_cd_table_f64 *group_cd_pick_f64(int level)

ctypedef fused real:
    float
    double

cdef struct Layout:
    # Where the observations of each task are in a column; `indptr` is null for dense columns.
    const int32_t *indices
    const int64_t *indptr
    const int32_t *row
    const int64_t *task_start
    const uint8_t *consecutive
    ptrdiff_t n_rows, n_tasks


cdef inline ptrdiff_t part(const Layout *at, ptrdiff_t task, ptrdiff_t begin, ptrdiff_t end) \
        noexcept nogil:
    # The end of the task's entries of a sparse column that begin at `begin`.
    while begin < end and at.indices[begin] < at.task_start[task + 1]:
        begin += 1
    return begin


cdef void products(const real *X, const Layout *at, ptrdiff_t column, const real *moved,
                   double *out) noexcept nogil:
    # Σ x w r of each task.
    cdef ptrdiff_t t, z, begin, end
    cdef double total
    cdef const real *x
    if at.indptr != NULL:
        begin = at.indptr[column]
        for t in range(at.n_tasks):
            end = part(at, t, begin, at.indptr[column + 1])
            total = 0
            for z in range(begin, end):
                total += X[z] * moved[at.indices[z]]
            out[t] = total
            begin = end
        return
    for t in range(at.n_tasks):
        begin = at.task_start[t]
        end = at.task_start[t + 1]
        if begin == end:
            out[t] = 0
            continue
        x = X + column * at.n_rows
        if at.consecutive[t]:
            x += at.row[begin]
        if real is float:
            out[t] = group_cd_pick_f32(simd_level).product(
                x, NULL if at.consecutive[t] else at.row + begin, moved + begin, end - begin)
        else:
            out[t] = group_cd_pick_f64(simd_level).product(
                x, NULL if at.consecutive[t] else at.row + begin, moved + begin, end - begin)


cdef void move(const real *X, const Layout *at, ptrdiff_t column, const real *weight,
               const double *step, real *moved) noexcept nogil:
    # w r ← w r − step_t w x
    cdef ptrdiff_t t, z, begin, end
    cdef const real *x
    if at.indptr != NULL:
        begin = at.indptr[column]
        for t in range(at.n_tasks):
            end = part(at, t, begin, at.indptr[column + 1])
            for z in range(begin, end):
                moved[at.indices[z]] -= <real>(step[t] * weight[at.indices[z]] * X[z])
            begin = end
        return
    for t in range(at.n_tasks):
        begin = at.task_start[t]
        end = at.task_start[t + 1]
        if step[t] == 0 or begin == end:
            continue
        x = X + column * at.n_rows
        if at.consecutive[t]:
            x += at.row[begin]
        if real is float:
            group_cd_pick_f32(simd_level).move(
                x, NULL if at.consecutive[t] else at.row + begin, weight + begin, step[t],
                moved + begin, end - begin)
        else:
            group_cd_pick_f64(simd_level).move(
                x, NULL if at.consecutive[t] else at.row + begin, weight + begin, step[t],
                moved + begin, end - begin)


cdef void moments_of(const real *X, const Layout *at, ptrdiff_t column, const real *weight,
                     const double *total, double *slope, double *curvature) noexcept nogil:
    # Σ w x and Σ w x² of each task, the latter about the task's mean where `total` is positive.
    cdef ptrdiff_t t, z, begin, end
    cdef double both[2]
    cdef const real *x
    if at.indptr != NULL:
        begin = at.indptr[column]
    for t in range(at.n_tasks):
        both[0] = 0
        both[1] = 0
        if at.indptr != NULL:
            end = part(at, t, begin, at.indptr[column + 1])
            for z in range(begin, end):
                both[0] += weight[at.indices[z]] * <double>X[z]
                both[1] += weight[at.indices[z]] * <double>X[z] * X[z]
            begin = end
        elif at.task_start[t + 1] > at.task_start[t]:
            begin = at.task_start[t]
            x = X + column * at.n_rows
            if at.consecutive[t]:
                x += at.row[begin]
            if real is float:
                group_cd_pick_f32(simd_level).moments(
                    x, NULL if at.consecutive[t] else at.row + begin, weight + begin,
                    at.task_start[t + 1] - begin, both)
            else:
                group_cd_pick_f64(simd_level).moments(
                    x, NULL if at.consecutive[t] else at.row + begin, weight + begin,
                    at.task_start[t + 1] - begin, both)
        slope[t] = both[0]
        curvature[t] = both[1]
        if total[t] > 0:
            curvature[t] = max(0.0, both[1] - both[0] * both[0] / total[t])


cdef void shrink_block(ptrdiff_t n, const double *curvature, double alpha, double *target) \
        noexcept nogil:
    """Overwrite target b with argmin_p Σ_t (½ H_t p_t² − b_t p_t) + α ‖p‖.

    p_t = b_t ρ / (H_t ρ + α), where the length ρ of p solves Σ_t (b_t / (H_t ρ + α))² = 1, a convex
    and decreasing function of ρ. Newton's steps start from the root for the largest H_t alone, below
    the true one, and where all H_t are equal it is the root.
    """
    cdef ptrdiff_t t, k
    cdef double length = 0, steepest = 0, value, slope, term, share, last
    if alpha == 0:
        for t in range(n):
            target[t] = target[t] / curvature[t] if curvature[t] > 0 else 0.0
        return
    for t in range(n):
        length += target[t] * target[t]
        steepest = max(steepest, curvature[t])
    if length <= alpha * alpha:
        for t in range(n):
            target[t] = 0
        return
    length = (sqrt(length) - alpha) / steepest
    for k in range(100):
        value = 0
        slope = 0
        for t in range(n):
            share = 1.0 / (curvature[t] * length + alpha)
            term = target[t] * share
            value += term * term
            slope += term * term * curvature[t] * share
        # Newton on 1/√value − 1, nearly linear in ρ.
        if slope == 0:
            break
        last = length
        length += (sqrt(value) - 1) * value / slope
        if fabs(length - last) <= 1e-15 * length:
            break
    for t in range(n):
        target[t] *= length / (curvature[t] * length + alpha)


cdef inline double shrink(double target, double curvature, double beta) noexcept nogil:
    if curvature <= 0 or fabs(target) <= beta:
        return 0
    return (target - beta if target > 0 else target + beta) / curvature


cdef class _Columns:
    # Checks the arrays that say where things are, and holds them while raw pointers point there.
    cdef Layout layout
    cdef object kept

    def __init__(self, size, const int32_t[::1] indices, const int64_t[::1] indptr,
                 const int32_t[::1] row, const int64_t[::1] task_start, ptrdiff_t n_features):
        cdef ptrdiff_t t, i, n = row.shape[0], n_tasks = task_start.shape[0] - 1
        cdef bint run
        if n_tasks < 1 or task_start[0] != 0 or task_start[n_tasks] != n:
            raise ValueError("task_start must run from 0 to the number of observations")
        if (indices is None) != (indptr is None):
            raise ValueError("indices and indptr must be given together")
        flags = np.zeros(n_tasks, dtype=np.uint8)
        cdef uint8_t[::1] consecutive = flags
        self.layout.n_tasks = n_tasks
        self.layout.n_rows = n
        self.layout.indices = NULL
        self.layout.indptr = NULL
        if indptr is None:
            if size % max(n_features, 1):
                raise ValueError("X must hold one column of equal length per feature")
            self.layout.n_rows = size // max(n_features, 1)
            for t in range(n_tasks):
                run = True
                for i in range(task_start[t], task_start[t + 1]):
                    if not 0 <= row[i] < self.layout.n_rows:
                        raise ValueError("row must be places in a column of X")
                    run = run and row[i] == row[task_start[t]] + i - task_start[t]
                consecutive[t] = run
        else:
            if indptr.shape[0] != n_features + 1 or indptr[n_features] > indices.shape[0]:
                raise ValueError("indptr must have an entry more than there are features")
            if indices.shape[0]:
                self.layout.indices = &indices[0]
            self.layout.indptr = &indptr[0]
        self.layout.row = &row[0] if n else NULL
        self.layout.task_start = &task_start[0]
        self.layout.consecutive = &consecutive[0]
        self.kept = (indices, indptr, row, task_start, flags)


def moments(const real[::1] X, const int32_t[::1] indices, const int64_t[::1] indptr,
            const int32_t[::1] row, const int64_t[::1] task_start, const real[::1] weight,
            const double[::1] total, const int64_t[::1] features, double[:, ::1] slope,
            double[:, ::1] curvature, int n_threads):
    """Write Σ w x and Σ w x² of features (d, T), the latter centred where `total` is positive."""
    cdef _Columns columns = _Columns(X.shape[0], indices, indptr, row, task_start, slope.shape[0])
    cdef ptrdiff_t f
    cdef const real *values = &X[0] if X.shape[0] else NULL
    cdef const real *w = &weight[0]
    cdef const Layout *at = &columns.layout
    for f in prange(features.shape[0], nogil=True, num_threads=n_threads, schedule="static"):
        moments_of(values, at, features[f], w, &total[0], &slope[features[f], 0],
                   &curvature[features[f], 0])


def gradients(const real[::1] X, const int32_t[::1] indices, const int64_t[::1] indptr,
              const int32_t[::1] row, const int64_t[::1] task_start, const real[::1] moved,
              double[:, ::1] gradient, int n_threads):
    """Write −Σ_i x_i (w r)_i of each feature and task into `gradient` (d, T)."""
    cdef _Columns columns = _Columns(
        X.shape[0], indices, indptr, row, task_start, gradient.shape[0])
    cdef ptrdiff_t j, t, n_tasks = gradient.shape[1]
    cdef const real *values = &X[0] if X.shape[0] else NULL
    cdef const real *residual = &moved[0]
    cdef const Layout *at = &columns.layout
    for j in prange(gradient.shape[0], nogil=True, num_threads=n_threads, schedule="static"):
        products(values, at, j, residual, &gradient[j, 0])
        for t in range(n_tasks):
            gradient[j, t] = -gradient[j, t]


def descend(const real[::1] X, const int32_t[::1] indices, const int64_t[::1] indptr,
            const int32_t[::1] row, const int64_t[::1] task_start, const real[::1] weight,
            const double[::1] total, const double[:, ::1] slope, const double[:, ::1] curvature,
            double alpha, double beta, const int64_t[::1] features, int64_t max_epochs, double tol,
            real[::1] moved, double[::1] offset, double[:, ::1] joint, double[:, ::1] own):
    """Cycle over the blocks of `features` until the largest step is below `tol`.

    A step counts by the gradient it makes up for, H |δ|. Changes `joint` (P), `own` (Q), `moved`
    and `offset` in place; an infinite `beta` leaves `own` at zero. Returns the number of cycles and
    the largest step of the last.
    """
    cdef _Columns columns = _Columns(X.shape[0], indices, indptr, row, task_start, slope.shape[0])
    cdef ptrdiff_t t, f, j, n_tasks = task_start.shape[0] - 1
    cdef int64_t epoch = 0
    cdef double largest = 0, least_step
    cdef bint stirred, dirty = beta < 1e300
    scratch = np.empty((3, n_tasks))
    cdef double[:, ::1] room = scratch
    cdef double *push = &room[0, 0]
    cdef double *target = &room[1, 0]
    cdef double *step = &room[2, 0]
    cdef const real *values = &X[0] if X.shape[0] else NULL
    cdef const Layout *at = &columns.layout
    cdef const double *H
    while epoch < max_epochs:
        epoch += 1
        largest = 0
        for f in range(features.shape[0]):
            if f & 63 == 0:
                PyErr_CheckSignals()
            with nogil:
                j = features[f]
                H = &curvature[j, 0]
                products(values, at, j, &moved[0], push)
                for t in range(n_tasks):
                    push[t] += offset[t] * slope[j, t]  # −gradient
                    target[t] = push[t] + H[t] * joint[j, t]
                shrink_block(n_tasks, H, alpha, target)
                stirred = False
                for t in range(n_tasks):
                    step[t] = target[t] - joint[j, t]
                    joint[j, t] = target[t]
                    if dirty:
                        least_step = own[j, t]
                        own[j, t] = shrink(
                            push[t] + H[t] * (least_step - step[t]), H[t], beta)
                        step[t] += own[j, t] - least_step
                    stirred = stirred or step[t] != 0
                    largest = max(largest, H[t] * fabs(step[t]))
                if stirred:
                    move(values, at, j, &weight[0], step, &moved[0])
                    for t in range(n_tasks):
                        if total[t] > 0:
                            offset[t] += step[t] * slope[j, t] / total[t]
        if largest <= tol:
            break
    return epoch, largest
