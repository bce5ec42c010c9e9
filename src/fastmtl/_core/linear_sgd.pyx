"""Per-sample SGD and SAGA for linear models with shared and task-specific parameters.

The equations are in ``linear_sgd_kernels.h``; here are the doors: arrays in, pointers out, threads.
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uintptr_t

from libc.string cimport memcpy

import numpy as np

from fastmtl._core.cpu cimport simd_level

cdef extern from "linear_sgd.h" nogil:
    ctypedef struct point_loss:
        pass
    point_loss point_loss_of(int code, double parameter, void *user)
    double point_loss_at(const point_loss *loss, double y, double p, double *gradient)
    int LOSS_POISSON, MOST_JOINT

    ctypedef struct sgd_sample:
        int64_t row
        double target
        double weight
        double curvature
        int32_t task
        int32_t unused

    ctypedef struct sgd_problem:
        const void *X
        const int32_t *indices
        const int32_t *position
        const int64_t *indptr
        int64_t row_stride, d, stride
        const sgd_sample *samples
        const double *mixing
        const double *kappa
        const double *task_rarity
        const double *class_rarity
        const double *task_alpha
        const int64_t *head_start
        const int32_t *head_class
        const int64_t *vector_start
        void *shared
        void *specific
        double *intercept
        int64_t n_heads
        int32_t n_shared, n_classes, intercept_kind, softmax
        double alpha
        point_loss loss
        double smoothness
        int32_t poisson
        double rate_scale, rate_offset, rate_power
        double *shared_scale
        double *specific_scale
        double *memory
        int64_t memory_stride, n_samples
        void *shared_average
        void *specific_average
        double *intercept_average
        const void *shared_spread
        const void *specific_spread
        double *scratch
        int64_t pool
        int32_t specific_cached
        double shared_l1, shared_l2, task_l1, task_l2, clip
        int64_t pace, average_from
        double *shared_squares
        double *specific_squares
        double *intercept_squares
        double *shared_drift
        double *specific_drift
        double *intercept_drift

    ctypedef double (*sgd_function)(
        const sgd_problem *, const int64_t *, int64_t, int64_t) noexcept nogil

    ctypedef struct sgd_table:
        sgd_function sgd_dense
        sgd_function sgd_csr
        sgd_function saga_dense
        sgd_function saga_csr
        sgd_function sgd_general
        sgd_function saga_general
        sgd_function dual_dense
        sgd_function dual_csr
        sgd_function dual_joint
        void (*losses_dense)(const sgd_problem *, double *) noexcept nogil
        void (*losses_csr)(const sgd_problem *, double *) noexcept nogil
        void (*settle)(const sgd_problem *) noexcept nogil

    const sgd_table *sgd_table_f64(int level)
    const sgd_table *sgd_table_f32(int level)

ctypedef fused real:
    float
    double

cdef enum:
    MAX_THREADS = 256
    APART = 16
    CACHE_BYTES = 1 << 20
    LINE = 64


cdef const void *_address(array, bint writable):
    # The buffer behind a contiguous array; the caller keeps the array alive.
    if not array.flags.c_contiguous or (writable and not array.flags.writeable):
        raise ValueError("array must be C-contiguous, and writeable where it is an output")
    cdef uintptr_t address = array.ctypes.data
    return <const void *>address


cdef const sgd_table *_table(array):
    if array.dtype == np.float64:
        return sgd_table_f64(simd_level)
    if array.dtype == np.float32:
        return sgd_table_f32(simd_level)
    raise TypeError(f"dtype must be float32 or float64, got {array.dtype}")


cdef int _fill(sgd_problem *P, X, const sgd_sample[::1] samples, shared, specific,
               double[::1] intercept, tuple coupling, tuple heads, tuple loss, tuple penalty,
               tuple schedule) except -1:
    if not (X.dtype == shared.dtype == specific.dtype):
        raise TypeError("X, shared and specific must have one dtype")
    cdef const double[:, ::1] mixing = coupling[0]
    cdef const double[::1] kappa = coupling[1]
    cdef const int64_t[::1] head_start = heads[0]
    cdef const int32_t[::1] head_class = heads[1]
    cdef const double[::1] task_rarity = penalty[1]
    cdef const double[::1] class_rarity = penalty[2]
    cdef const double[::1] task_alpha = penalty[4]
    cdef int64_t t
    P.X = _address(X, False)
    P.samples = &samples[0] if samples.shape[0] else NULL
    P.n_samples = samples.shape[0]
    P.mixing = &mixing[0, 0] if mixing.shape[0] and mixing.shape[1] else NULL
    P.kappa = &kappa[0]
    P.task_rarity = &task_rarity[0]
    P.class_rarity = &class_rarity[0]
    P.task_alpha = &task_alpha[0]
    P.head_start = &head_start[0]
    P.head_class = &head_class[0]
    P.n_heads = head_class.shape[0]
    P.shared = <void *>_address(shared, True)
    P.specific = <void *>_address(specific, True)
    P.intercept = &intercept[0]
    P.n_shared = shared.shape[0]
    P.n_classes = shared.shape[1]
    P.stride = shared.shape[2]
    if P.stride * X.itemsize % 64:
        raise ValueError("parameter vectors must be padded to a multiple of 64 bytes")
    P.alpha = penalty[0]
    P.intercept_kind = penalty[3]
    P.softmax = loss[0] < 0
    cdef uintptr_t user = loss[3]
    P.loss = point_loss_of(max(0, loss[0]), loss[1], <void *>user)
    P.smoothness = loss[2]
    P.poisson = loss[0] == LOSS_POISSON
    P.rate_scale, P.rate_offset, P.rate_power = schedule[:3]
    P.pool = schedule[4] if len(schedule) > 4 else 0
    P.specific_cached = specific.nbytes <= CACHE_BYTES
    P.shared_spread = P.specific_spread = NULL
    P.intercept_squares = P.intercept_drift = NULL
    P.shared_squares = P.specific_squares = P.shared_drift = P.specific_drift = NULL
    P.pace = 1
    P.memory_stride = 1
    for t in range(kappa.shape[0]):
        if head_start[t + 1] - head_start[t] > P.memory_stride:
            P.memory_stride = head_start[t + 1] - head_start[t]
    return 0


cdef int _fill_dense(sgd_problem *P, X, specific) except -1:
    if specific.shape[1] != P.stride:
        raise ValueError("shared and specific vectors must be of one length")
    P.d = X.shape[1]
    P.row_stride = X.shape[1]
    P.indices = P.position = NULL
    P.indptr = P.vector_start = NULL
    return 0


cdef int _fill_csr(sgd_problem *P, const int32_t[::1] indices, const int64_t[::1] indptr,
                   const int32_t[::1] position, tuple heads, specific) except -1:
    cdef const int64_t[::1] vector_start = heads[2]
    if position.shape[0] != indices.shape[0] or specific.size != vector_start[P.n_heads]:
        raise ValueError("an entry of X needs a position, and specific the length of its vectors")
    P.d = 0
    P.row_stride = 0
    P.indices = &indices[0] if indices.shape[0] else NULL
    P.position = &position[0] if position.shape[0] else NULL
    P.indptr = &indptr[0]
    P.vector_start = &vector_start[0]
    return 0


cdef double _run(sgd_function function, sgd_problem *P, const int64_t[::1] order, int64_t step,
                 shared, specific, intercept, tuple parts, bint csr, tuple beside=()) except? -1:
    """Run each thread's part of `order`; merge what threads share after each of `n_blocks`.

    `beside` are arrays like shared and intercept, in turn, that are merged as they are.
    """
    cdef const int64_t[:, ::1] bounds = parts[0]
    cdef int64_t n_blocks = parts[1], n_vectors = shared.shape[0] * shared.shape[1], drawn
    cdef int n_threads = bounds.shape[0], k
    cdef int64_t begin, end, block, copy_bytes
    cdef double total = 0.0
    cdef bint single = shared.dtype == np.float32
    if not 1 <= n_threads <= MAX_THREADS or bounds.shape[1] != 2 or n_blocks < 1:
        raise ValueError(f"parts must be of 1 to {MAX_THREADS} threads, and have blocks")
    for k in range(n_threads):
        if not 0 <= bounds[k, 0] <= bounds[k, 1] <= order.shape[0]:
            raise ValueError("parts must lie within order")
    # Threads write to these in every step: two lines lie between one's and the next one's.
    cdef double[:, ::1] scratch = np.zeros((n_threads, 2 * P.memory_stride + APART))
    cdef double[:, ::1] shared_scale = np.ones((n_threads, n_vectors + APART))
    cdef double[::1] specific_scale = np.ones(P.n_heads)
    cdef const sgd_table *table = _table(shared)
    P.specific_scale = &specific_scale[0]
    if n_threads == 1:
        begin, end = bounds[0, 0], bounds[0, 1]
        P.scratch = &scratch[0, 0]
        P.shared_scale = &shared_scale[0, 0]
        with nogil:
            total = function(P, &order[begin], end - begin, step) if end > begin else 0.0
            if csr:
                table.settle(P)
        if csr:
            shared *= np.reshape(shared_scale[0, :n_vectors], (*shared.shape[:2], 1)).astype(
                shared.dtype)
        return total

    cdef sgd_problem problems[MAX_THREADS]
    cdef double totals[MAX_THREADS]
    cdef int64_t begins[MAX_THREADS]
    cdef int64_t lengths[MAX_THREADS]
    cdef const int64_t[::1] split_start = parts[2][0]
    cdef const int64_t[::1] split_heads = parts[2][1]
    cdef const double[::1] split_share = parts[2][2]
    cdef int64_t n_split = split_start.shape[0] - 1
    copy_bytes = shared.nbytes + APART * sizeof(double)
    copies = np.zeros(n_threads * copy_bytes + LINE, dtype=np.uint8)
    copies = copies[-<uintptr_t>_address(copies, True) % LINE:][: n_threads * copy_bytes]
    copies.reshape(n_threads, -1)[:, : shared.nbytes] = np.asarray(shared).reshape(-1).view(np.uint8)
    cdef uintptr_t copy_address = <uintptr_t>_address(copies, True)
    cdef double[:, ::1] intercepts = np.zeros((n_threads, intercept.shape[0] + APART))
    np.asarray(intercepts)[:, : intercept.shape[0]] = intercept
    others = [tuple([array.copy() for array in beside]) for _ in range(n_threads)]
    for k in range(n_threads):
        problems[k] = P[0]
        problems[k].shared = <void *>(copy_address + k * copy_bytes)
        problems[k].intercept = &intercepts[k, 0]
        problems[k].scratch = &scratch[k, 0]
        problems[k].shared_scale = &shared_scale[k, 0]
        _point_beside(&problems[k], others[k])
    for block in range(n_blocks):
        drawn = 0
        for k in range(n_threads):
            begin, end = bounds[k, 0], bounds[k, 1]
            begins[k] = begin + (end - begin) * block // n_blocks
            lengths[k] = begin + (end - begin) * (block + 1) // n_blocks - begins[k]
            drawn += lengths[k]
        if not drawn:
            continue
        for k in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
            totals[k] = 0.0
            if lengths[k]:
                totals[k] = function(&problems[k], &order[begins[k]], lengths[k], step)
        for k in range(n_threads):
            total += totals[k]
        if single:
            _merge(P, problems, lengths, drawn, n_vectors, n_threads, <float *>P.shared)
        else:
            _merge(P, problems, lengths, drawn, n_vectors, n_threads, <double *>P.shared)
        if n_split and single:
            _merge_split(P, n_split, &split_start[0], &split_heads[0], &split_share[0],
                         <float *>P.specific)
        elif n_split:
            _merge_split(P, n_split, &split_start[0], &split_heads[0], &split_share[0],
                         <double *>P.specific)
        if beside:
            _merge_beside(beside, others, [<double>lengths[k] / drawn for k in range(n_threads)])
        step += drawn // n_threads * P.pace
    if csr:
        table.settle(P)
    return total


cdef void _merge(sgd_problem *P, sgd_problem *problems, const int64_t *lengths, int64_t drawn,
                 int64_t n_vectors, int n_threads, real *shared) noexcept nogil:
    """The threads' shared parts become their mean weighted by draws, in `P` and in each thread."""
    cdef int64_t h, i
    cdef int k
    cdef double total
    cdef real *merged
    cdef double weight[MAX_THREADS]
    for h in range(n_vectors):
        merged = shared + h * P.stride
        for k in range(n_threads):
            weight[k] = <double>lengths[k] / drawn * problems[k].shared_scale[h]
            problems[k].shared_scale[h] = 1.0
        for i in range(P.stride):
            total = 0.0
            for k in range(n_threads):
                total += weight[k] * (<real *>problems[k].shared + h * P.stride)[i]
            merged[i] = <real>total
        for k in range(n_threads):
            memcpy(<real *>problems[k].shared + h * P.stride, merged, P.stride * sizeof(real))
    for h in range(P.n_classes):
        total = 0.0
        for k in range(n_threads):
            total += <double>lengths[k] / drawn * problems[k].intercept[h]
        P.intercept[h] = total
        for k in range(n_threads):
            problems[k].intercept[h] = total


cdef void _merge_split(sgd_problem *P, int64_t n_split, const int64_t *start, const int64_t *heads,
                       const double *share, real *specific) noexcept nogil:
    """Heads that several threads have a copy of become the mean of these, weighted by `share`."""
    cdef int64_t g, i, n
    cdef const int64_t *head
    for g in range(n_split):
        head, n = heads + start[g], start[g + 1] - start[g]
        _mean_of_copies(P, specific, head, share + start[g], n)
        for i in range(n):
            P.specific_scale[head[i]] = 1.0
        if P.specific_squares != NULL:
            _mean_of_copies(P, P.specific_squares, head, share + start[g], n)
        if P.specific_drift != NULL:
            _mean_of_copies(P, P.specific_drift, head, share + start[g], n)


cdef void _mean_of_copies(const sgd_problem *P, real *vectors, const int64_t *head,
                          const double *share, int64_t n) noexcept nogil:
    cdef int64_t i, j, length = P.stride
    cdef double total
    if P.vector_start != NULL:
        length = P.vector_start[head[0] + 1] - P.vector_start[head[0]]
    for j in range(length):
        total = 0.0
        for i in range(n):
            total += share[i] * P.specific_scale[head[i]] * vectors[_vector_at(P, head[i]) + j]
        for i in range(n):
            vectors[_vector_at(P, head[i]) + j] = <real>total


cdef inline int64_t _vector_at(const sgd_problem *P, int64_t head) noexcept nogil:
    return P.vector_start[head] if P.vector_start != NULL else head * P.stride


def sgd_dense(X, const sgd_sample[::1] samples, const int64_t[::1] order, shared, specific,
              intercept, tuple coupling, tuple heads, tuple loss, tuple penalty, tuple schedule,
              tuple parts):
    """Run SGD over the samples in `order` on dense rows; return the sum of weighted losses.

    See :func:`fastmtl.reference.linear_sgd.sgd_dense`.
    """
    cdef sgd_problem P
    _fill(&P, X, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_dense(&P, X, specific)
    return _run(_table(X).sgd_dense, &P, order, schedule[3], shared, specific, intercept, parts,
                False)


def sgd_csr(data, indices, indptr, position, const sgd_sample[::1] samples,
            const int64_t[::1] order, shared, specific, intercept, tuple coupling, tuple heads,
            tuple loss, tuple penalty, tuple schedule, tuple parts):
    """The same on CSR rows.

    See :func:`fastmtl.reference.linear_sgd.sgd_csr`.
    """
    cdef sgd_problem P
    _fill(&P, data, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_csr(&P, indices, indptr, position, heads, specific)
    return _run(_table(data).sgd_csr, &P, order, schedule[3], shared, specific, intercept, parts,
                True)


cdef int _fill_saga(sgd_problem *P, memory, averages) except -1:
    cdef double[:, ::1] last = memory
    cdef double[::1] intercept_average = averages[2]
    if last.shape[1] != P.memory_stride or last.shape[0] != P.n_samples:
        raise ValueError("memory must have a row per sample and a column per head")
    P.memory = &last[0, 0]
    P.shared_average = <void *>_address(averages[0], True)
    P.specific_average = <void *>_address(averages[1], True)
    P.intercept_average = &intercept_average[0]
    return 0


cdef tuple _whole(order):
    return np.array([[0, len(order)]]), 1


def saga_dense(X, const sgd_sample[::1] samples, const int64_t[::1] order, shared, specific,
               intercept, tuple coupling, tuple heads, tuple loss, tuple penalty, tuple schedule,
               memory, tuple averages):
    """Run SAGA over the samples in `order` on dense rows; return the sum of weighted losses.

    See :func:`fastmtl.reference.linear_sgd.saga_dense`.
    """
    cdef sgd_problem P
    _fill(&P, X, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_dense(&P, X, specific)
    _fill_saga(&P, memory, averages)
    return _run(_table(X).saga_dense, &P, order, 0, shared, specific, intercept,
                _whole(order), False)


def saga_csr(data, indices, indptr, position, const sgd_sample[::1] samples,
             const int64_t[::1] order, shared, specific, intercept, tuple coupling, tuple heads, tuple loss, tuple penalty,
             tuple schedule, memory, tuple averages, tuple spreads):
    """The same on CSR rows; `spreads` are n / (rows that have the coordinate).

    See :func:`fastmtl.reference.linear_sgd.saga_csr`.
    """
    cdef sgd_problem P
    _fill(&P, data, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_csr(&P, indices, indptr, position, heads, specific)
    _fill_saga(&P, memory, averages)
    P.shared_spread = _address(spreads[0], False)
    P.specific_spread = _address(spreads[1], False)
    return _run(_table(data).saga_csr, &P, order, 0, shared, specific, intercept,
                _whole(order), False)


cdef int _fill_dual(sgd_problem *P, memory) except -1:
    cdef double[:, ::1] held = memory
    if held.shape[1] != 3 or held.shape[0] != P.n_samples:
        raise ValueError("memory must have a row per sample, of slope, conjugate and score")
    if P.softmax or P.n_classes != 1 or not P.alpha > 0:
        raise ValueError("the dual needs one head per task and a positive alpha")
    P.memory = &held[0, 0]
    return 0


def dual_dense(X, const sgd_sample[::1] samples, const int64_t[::1] order, shared, specific,
               intercept, tuple coupling, tuple heads, tuple loss, tuple penalty, memory):
    """Run dual coordinate ascent over the samples in `order` on dense rows.

    See :func:`fastmtl.reference.linear_sgd.dual_dense`.
    """
    cdef sgd_problem P
    _fill(&P, X, samples, shared, specific, intercept, coupling, heads, loss, penalty, (1, 0, 0))
    _fill_dense(&P, X, specific)
    _fill_dual(&P, memory)
    _run(_table(X).dual_dense, &P, order, 0, shared, specific, intercept, _whole(order), False)


def dual_csr(data, indices, indptr, position, const sgd_sample[::1] samples,
             const int64_t[::1] order, shared, specific, intercept, tuple coupling, tuple heads,
             tuple loss, tuple penalty, memory):
    """The same on CSR rows."""
    cdef sgd_problem P
    _fill(&P, data, samples, shared, specific, intercept, coupling, heads, loss, penalty, (1, 0, 0))
    _fill_csr(&P, indices, indptr, position, heads, specific)
    _fill_dual(&P, memory)
    _run(_table(data).dual_csr, &P, order, 0, shared, specific, intercept, _whole(order), False)


def dual_joint_csr(data, const int32_t[::1] indices, const int64_t[::1] indptr,
                   const sgd_sample[::1] samples, const int64_t[::1] order, double[:, ::1] weights,
                   double[::1] intercept, const double[:, ::1] covariance, tuple loss,
                   double alpha, int intercept_kind, memory):
    """The same on CSR rows of few tasks, whose coefficients lie side by side.

    See :func:`fastmtl.reference.linear_sgd.dual_joint_csr`.
    """
    cdef sgd_problem P
    cdef int64_t tasks = weights.shape[1]
    cdef uintptr_t user = loss[3]
    if tasks not in (1, 2, 4, MOST_JOINT) or not tasks == covariance.shape[0] == covariance.shape[1]:
        raise ValueError(f"weights and covariance must be of 1, 2, 4 or {MOST_JOINT} tasks")
    P.X = _address(data, False)
    P.indices = &indices[0] if indices.shape[0] else NULL
    P.position = NULL
    P.indptr = &indptr[0]
    P.samples = &samples[0] if samples.shape[0] else NULL
    P.n_samples = samples.shape[0]
    P.mixing = &covariance[0, 0]
    P.n_heads = tasks
    P.stride = weights.shape[0]
    P.specific = &weights[0, 0]
    P.intercept = &intercept[0]
    P.intercept_kind = intercept_kind
    P.alpha = alpha
    P.loss = point_loss_of(loss[0], loss[1], <void *>user)
    P.softmax, P.n_classes = loss[0] < 0, intercept.shape[0]
    _fill_dual(&P, memory)
    cdef const sgd_table *table = _table(data)
    if order.shape[0]:
        with nogil:
            table.dual_joint(&P, &order[0], order.shape[0], 0)


def _merge_beside(beside, others, weights):
    for j, array in enumerate(beside):
        array[...] = sum(weight * other[j] for weight, other in zip(weights, others))
        for other in others:
            other[j][...] = array


cdef int _point_beside(sgd_problem *P, tuple beside) except -1:
    """AdaGrad's sums and the averages' drifts of what all tasks share, as the thread has them."""
    cdef double *pointers[4]
    cdef int i
    for i in range(len(beside)):
        if beside[i].dtype != np.float64:
            raise TypeError("squares and drift must be float64")
        pointers[i] = <double *>_address(beside[i], True)
    i = 0
    if P.intercept_squares != NULL:
        P.shared_squares, P.intercept_squares = pointers[0], pointers[1]
        i = 2
    if P.intercept_drift != NULL:
        P.shared_drift, P.intercept_drift = pointers[i], pointers[i + 1]
    return 0


cdef tuple _fill_general(sgd_problem *P, tuple shares, tuple extras, int n_threads):
    """Returns what is merged beside the shared parameters."""
    cdef double[::1] intercept
    clip, average_from, squares, drift = extras
    P.shared_l1, P.shared_l2, P.task_l1, P.task_l2 = shares
    P.clip = clip
    P.average_from = average_from
    P.pace = n_threads
    beside = ()
    if squares is not None:
        intercept = squares[2]
        P.specific_squares = <double *>_address(squares[1], True)
        P.intercept_squares = &intercept[0]
        beside += (squares[0], squares[2])
    if drift is not None:
        intercept = drift[2]
        P.specific_drift = <double *>_address(drift[1], True)
        P.intercept_drift = &intercept[0]
        beside += (drift[0], drift[2])
    _point_beside(P, beside)
    return beside


def sgd_general_dense(X, const sgd_sample[::1] samples, const int64_t[::1] order, shared, specific,
                      intercept, tuple coupling, tuple heads, tuple loss, tuple penalty,
                      tuple schedule, tuple shares, tuple extras, tuple parts):
    """Run SGD with sparse penalties, AdaGrad, averaging or clipping on dense rows.

    See :func:`fastmtl.reference.linear_sgd.sgd_general_dense`.
    """
    cdef sgd_problem P
    _fill(&P, X, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_dense(&P, X, specific)
    beside = _fill_general(&P, shares, extras, len(parts[0]))
    return _run(_table(X).sgd_general, &P, order, schedule[3], shared, specific, intercept, parts,
                False, beside)


def sgd_general_csr(data, indices, indptr, position, const sgd_sample[::1] samples,
                    const int64_t[::1] order, shared, specific, intercept, tuple coupling, tuple heads, tuple loss,
                    tuple penalty, tuple schedule, tuple shares, tuple extras, tuple spreads,
                    tuple parts):
    """The same on CSR rows; `spreads` are 1 / P(a draw touches the coordinate).

    See :func:`fastmtl.reference.linear_sgd.sgd_general_csr`.
    """
    cdef sgd_problem P
    _fill(&P, data, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_csr(&P, indices, indptr, position, heads, specific)
    beside = _fill_general(&P, shares, extras, len(parts[0]))
    P.shared_spread = _address(spreads[0], False)
    P.specific_spread = _address(spreads[1], False)
    return _run(_table(data).sgd_general, &P, order, schedule[3], shared, specific, intercept,
                parts, True, beside)


def saga_general_dense(X, const sgd_sample[::1] samples, const int64_t[::1] order, shared,
                       specific, intercept, tuple coupling, tuple heads, tuple loss, tuple penalty,
                       tuple schedule, tuple shares, memory, tuple averages):
    """Run SAGA with sparse penalties over the samples in `order` on dense rows.

    See :func:`fastmtl.reference.linear_sgd.saga_general_dense`.
    """
    cdef sgd_problem P
    _fill(&P, X, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_dense(&P, X, specific)
    _fill_saga(&P, memory, averages)
    P.shared_l1, P.shared_l2, P.task_l1, P.task_l2 = shares
    return _run(_table(X).saga_general, &P, order, 0, shared, specific, intercept,
                _whole(order), False)


def saga_general_csr(data, indices, indptr, position, const sgd_sample[::1] samples,
                     const int64_t[::1] order, shared, specific, intercept, tuple coupling,
                     tuple heads, tuple loss, tuple penalty, tuple schedule, tuple shares, memory,
                     tuple averages, tuple spreads):
    """The same on CSR rows; `spreads` are n / (rows that have the coordinate).

    See :func:`fastmtl.reference.linear_sgd.saga_general_csr`.
    """
    cdef sgd_problem P
    _fill(&P, data, samples, shared, specific, intercept, coupling, heads, loss, penalty, schedule)
    _fill_csr(&P, indices, indptr, position, heads, specific)
    _fill_saga(&P, memory, averages)
    P.shared_l1, P.shared_l2, P.task_l1, P.task_l2 = shares
    P.shared_spread = _address(spreads[0], False)
    P.specific_spread = _address(spreads[1], False)
    return _run(_table(data).saga_general, &P, order, 0, shared, specific, intercept,
                _whole(order), True)


cdef int _losses(void (*function)(const sgd_problem *, double *) noexcept nogil, sgd_problem *P,
                 double[::1] task_loss, int n_threads) except -1:
    """Each thread sums the losses of as many samples."""
    cdef sgd_problem problems[MAX_THREADS]
    cdef int64_t n = P.n_samples, n_tasks = task_loss.shape[0], t, begin
    cdef int k
    n_threads = max(1, min(n_threads, MAX_THREADS))
    cdef double[:, ::1] scratch = np.empty((n_threads, 2 * P.memory_stride + APART))
    cdef double[:, ::1] sums = np.zeros((n_threads, n_tasks + APART))
    for k in range(n_threads):
        problems[k] = P[0]
        begin = n * k // n_threads
        problems[k].samples = P.samples + begin
        problems[k].n_samples = n * (k + 1) // n_threads - begin
        problems[k].scratch = &scratch[k, 0]
    if n_threads == 1:
        with nogil:
            function(problems, &sums[0, 0])
    else:
        for k in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
            function(&problems[k], &sums[k, 0])
    for k in range(n_threads):
        for t in range(n_tasks):
            task_loss[t] += sums[k, t]
    return 0


def losses_dense(X, const sgd_sample[::1] samples, shared, specific, intercept, tuple coupling,
                 tuple heads, tuple loss, tuple penalty, double[::1] task_loss, int n_threads):
    """Add each sample's weighted loss to its task's entry of `task_loss`."""
    cdef sgd_problem P
    _fill(&P, X, samples, shared, specific, intercept, coupling, heads, loss, penalty, (1, 0, 0))
    _fill_dense(&P, X, specific)
    _losses(_table(X).losses_dense, &P, task_loss, n_threads)


def losses_csr(data, indices, indptr, position, const sgd_sample[::1] samples, shared, specific,
               intercept, tuple coupling, tuple heads, tuple loss, tuple penalty,
               double[::1] task_loss, int n_threads):
    """The same on CSR rows."""
    cdef sgd_problem P
    _fill(&P, data, samples, shared, specific, intercept, coupling, heads, loss, penalty, (1, 0, 0))
    _fill_csr(&P, indices, indptr, position, heads, specific)
    cdef double[::1] ones = np.ones(max(P.n_heads, shared.shape[0] * shared.shape[1]))
    P.shared_scale = &ones[0]
    P.specific_scale = &ones[0]
    _losses(_table(data).losses_csr, &P, task_loss, n_threads)


def point_losses(int code, double parameter, const double[::1] target, const double[::1] score,
                 double[::1] value, double[::1] gradient, uintptr_t user=0):
    """Write the loss of each (target, score) and its derivative in the score."""
    cdef int64_t i, n = target.shape[0]
    cdef point_loss loss = point_loss_of(code, parameter, <void *>user)
    if not (score.shape[0] == value.shape[0] == gradient.shape[0] == n):
        raise ValueError("target, score, value and gradient must be of one length")
    with nogil:
        for i in range(n):
            value[i] = point_loss_at(&loss, target[i], score[i], &gradient[i])


def squared_lengths(const real[::1] data, const int64_t[::1] indptr, double[::1] lengths):
    """Write ‖x‖² of each row of a CSR matrix."""
    cdef int64_t i, z
    cdef double total
    if indptr.shape[0] != lengths.shape[0] + 1 or indptr[lengths.shape[0]] > data.shape[0]:
        raise ValueError("lengths must be of one row each, whose entries are in data")
    with nogil:
        for i in range(lengths.shape[0]):
            total = 0.0
            for z in range(indptr[i], indptr[i + 1]):
                total += <double>data[z] * data[z]
            lengths[i] = total


def find_columns(const int32_t[::1] indices, const int64_t[::1] indptr, const int64_t[::1] row,
                 const int64_t[::1] task_start, const int32_t[::1] known,
                 const int64_t[::1] known_start, int64_t d, int32_t[::1] position, bint grow):
    """Write where each entry's column stands in the list of its task; return the lists.

    See :func:`fastmtl.reference.linear_sgd.find_columns`.
    """
    cdef int64_t t, i, z, begin, entries = 0, found = 0, n_tasks = task_start.shape[0] - 1
    cdef int32_t column
    if known_start.shape[0] != n_tasks + 1 or position.shape[0] != indices.shape[0]:
        raise ValueError("known_start is per task, and position per entry of X")
    if grow:
        for i in range(task_start[n_tasks]):
            entries += indptr[row[i] + 1] - indptr[row[i]]
    cdef int32_t[::1] columns = np.empty(known.shape[0] + entries, dtype=np.int32)
    cdef int64_t[::1] start = np.zeros(n_tasks + 1, dtype=np.int64)
    cdef int32_t[::1] place = np.full(d, -1, dtype=np.int32)
    with nogil:
        for t in range(n_tasks):
            begin = found
            for i in range(known_start[t], known_start[t + 1]):
                columns[found] = known[i]
                place[known[i]] = <int32_t>(found - begin)
                found += 1
            for i in range(task_start[t], task_start[t + 1]):
                for z in range(indptr[row[i]], indptr[row[i] + 1]):
                    column = indices[z]
                    if grow and place[column] < 0:
                        columns[found] = column
                        place[column] = <int32_t>(found - begin)
                        found += 1
                    position[z] = place[column]
            for i in range(begin, found):
                place[columns[i]] = -1
            start[t + 1] = found
    return np.array(columns[:found]), np.asarray(start)
