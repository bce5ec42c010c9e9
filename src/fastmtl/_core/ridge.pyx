"""Ridge regressions of many tasks that share a few vectors, by their Gram matrices.

With z = (x, 1, y) task t's data are G_t = Σ w z zᵀ. Its own vector, over the first q coordinates
(the features, or these and the constant), is eliminated exactly, which leaves what the data say of
the shared part: G − G_:q (G_qq + 1/scale)⁻¹ G_q:. Matrices are square in p, a multiple of 8 that is
at least d + 2, and zero beyond d + 2. All sums are in double.
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmtl._core.cpu cimport simd_level

cdef extern from "ridge.h" nogil:
    ctypedef struct ridge_rows_f32:
        void (*pack)(const float *, ptrdiff_t, const int64_t *, const float *, const double *,
                     const double *, ptrdiff_t, ptrdiff_t, double *) noexcept nogil
        void (*pack_sparse)(const float *, const int32_t *, const int64_t *, ptrdiff_t,
                            const int64_t *, const double *, const double *, ptrdiff_t, ptrdiff_t,
                            double *) noexcept nogil
        void (*scatter)(const float *, const int32_t *, const int64_t *, ptrdiff_t,
                        const int64_t *, const double *, const double *, ptrdiff_t, double *,
                        ptrdiff_t) noexcept nogil
        void (*scores)(const float *, ptrdiff_t, const int64_t *, ptrdiff_t, const double *,
                       double *) noexcept nogil
        void (*scores_sparse)(const float *, const int32_t *, const int64_t *, ptrdiff_t,
                              const int64_t *, ptrdiff_t, const double *, double *) noexcept nogil
    ctypedef struct ridge_rows_f64:
        void (*pack)(const double *, ptrdiff_t, const int64_t *, const double *, const double *,
                     const double *, ptrdiff_t, ptrdiff_t, double *) noexcept nogil
        void (*pack_sparse)(const double *, const int32_t *, const int64_t *, ptrdiff_t,
                            const int64_t *, const double *, const double *, ptrdiff_t, ptrdiff_t,
                            double *) noexcept nogil
        void (*scatter)(const double *, const int32_t *, const int64_t *, ptrdiff_t,
                        const int64_t *, const double *, const double *, ptrdiff_t, double *,
                        ptrdiff_t) noexcept nogil
        void (*scores)(const double *, ptrdiff_t, const int64_t *, ptrdiff_t, const double *,
                       double *) noexcept nogil
        void (*scores_sparse)(const double *, const int32_t *, const int64_t *, ptrdiff_t,
                              const int64_t *, ptrdiff_t, const double *, double *) noexcept nogil
    ctypedef struct ridge_fetch:
        const char *X
        const int64_t *row
        ptrdiff_t n, row_bytes, at
    ctypedef struct ridge_table_f64:
        void (*update)(const double *, ptrdiff_t, ptrdiff_t, double *, ptrdiff_t,
                       ridge_fetch) noexcept nogil
        void (*finish)(double *, ptrdiff_t, ptrdiff_t, int) noexcept nogil
        void (*eliminate)(const double *, ptrdiff_t, ptrdiff_t, double, double *,
                          double *) noexcept nogil
        void (*own_part)(const double *, ptrdiff_t, ptrdiff_t, double, const double *, double *,
                         double *) noexcept nogil
        void (*add)(const double *, double, double *, ptrdiff_t) noexcept nogil
    ptrdiff_t ridge_stride(ptrdiff_t width)
    const ridge_rows_f32 *ridge_rows_of_f32(int level)
    const ridge_rows_f64 *ridge_rows_of_f64(int level)
    const ridge_table_f64 *ridge_pick(int level)

ctypedef fused real:
    float
    double

cdef enum:
    PACKED_ROWS = 64
    SPARSE = 4  # rows with fewer than a SPARSE-th of their entries are summed entry by entry

cdef struct Samples:
    # In task order; `indptr` is null where rows are dense.
    const int32_t *indices
    const int64_t *indptr
    const int64_t *row
    const int64_t *task_start
    const double *weight
    const double *target
    ptrdiff_t d, p, n_tasks
    bint centred


cdef int check_square(const double[:, :, ::1] gram, ptrdiff_t d) except -1:
    if gram.shape[1] != gram.shape[2] or gram.shape[1] % 8 or gram.shape[1] < d + 2:
        raise ValueError("gram must be (n_tasks, p, p) with p >= d + 2, a multiple of 8")
    return 0


cdef void sum_rows(const real *X, const Samples *at, ptrdiff_t task, ptrdiff_t begin, ptrdiff_t end,
                   double *packed, double *gram) noexcept nogil:
    # Adds the upper triangle of Σ w z zᵀ over samples of one task.
    cdef ptrdiff_t i, n, filled = 0, stride = ridge_stride(at.p)
    cdef const real *origin = NULL
    cdef ridge_fetch following
    following.X = <const char *>X
    following.row_bytes = at.d * sizeof(real)
    following.at = 0
    if at.indptr != NULL:
        for i in range(begin, end):
            filled += at.indptr[at.row[i] + 1] - at.indptr[at.row[i]]
        if SPARSE * filled < (end - begin) * at.d:
            if real is float:
                ridge_rows_of_f32(simd_level).scatter(
                    X, at.indices, at.indptr, at.d, at.row + begin, at.weight + begin,
                    at.target + begin, end - begin, gram, at.p)
            else:
                ridge_rows_of_f64(simd_level).scatter(
                    X, at.indices, at.indptr, at.d, at.row + begin, at.weight + begin,
                    at.target + begin, end - begin, gram, at.p)
            return
    elif at.centred:
        origin = X + at.row[at.task_start[task]] * at.d
    while begin < end:
        n = min(PACKED_ROWS, end - begin)
        if at.indptr != NULL:
            if real is float:
                ridge_rows_of_f32(simd_level).pack_sparse(
                    X, at.indices, at.indptr, at.d, at.row + begin, at.weight + begin,
                    at.target + begin, n, stride, packed)
            else:
                ridge_rows_of_f64(simd_level).pack_sparse(
                    X, at.indices, at.indptr, at.d, at.row + begin, at.weight + begin,
                    at.target + begin, n, stride, packed)
        else:
            if real is float:
                ridge_rows_of_f32(simd_level).pack(
                    X, at.d, at.row + begin, origin, at.weight + begin, at.target + begin, n,
                    stride, packed)
            else:
                ridge_rows_of_f64(simd_level).pack(
                    X, at.d, at.row + begin, origin, at.weight + begin, at.target + begin, n,
                    stride, packed)
        begin += n
        following.row = at.row + begin
        following.n = 0
        if at.indptr == NULL:
            following.n = min(PACKED_ROWS, at.task_start[at.n_tasks] - begin)
        ridge_pick(simd_level).update(packed, n, stride, gram, at.p, following)


cdef ptrdiff_t task_of(const Samples *at, ptrdiff_t sample) noexcept nogil:
    cdef ptrdiff_t low = 0, high = at.n_tasks, middle
    while high - low > 1:
        middle = (low + high) // 2
        if at.task_start[middle] <= sample:
            low = middle
        else:
            high = middle
    return low


cdef void sum_part(const real *X, const Samples *at, ptrdiff_t begin, ptrdiff_t end,
                   double *scratch, double *gram) noexcept nogil:
    # Adds a thread's samples; those of its first and last task, which other threads may have too,
    # go to two matrices of its own.
    cdef ptrdiff_t size = at.p * at.p, t, last
    if begin == end:
        return
    t = task_of(at, begin)
    while begin < end:
        last = min(end, at.task_start[t + 1])
        if last > begin:
            if begin > at.task_start[t]:
                sum_rows(X, at, t, begin, last, scratch + 2 * size, scratch)
            elif last < at.task_start[t + 1]:
                sum_rows(X, at, t, begin, last, scratch + 2 * size, scratch + size)
            else:
                sum_rows(X, at, t, begin, last, scratch + 2 * size, gram + t * size)
            begin = last
        t += 1


cdef sum_all(const real *X, Samples *at, double[:, :, ::1] gram, int n_threads):
    cdef ptrdiff_t n = at.task_start[at.n_tasks], p = at.p, size = p * p, t, k, begin, end
    cdef ptrdiff_t first = at.task_start[0]
    cdef ptrdiff_t room = 2 * size + PACKED_ROWS * ridge_stride(p)
    cdef double *out = &gram[0, 0, 0]
    cdef double *scratch = <double *>calloc(n_threads * room, sizeof(double))
    if scratch == NULL:
        raise MemoryError("no memory to sum Gram matrices in")
    with nogil:
        for t in prange(at.n_tasks, num_threads=n_threads, schedule="static"):
            memset(out + t * size, 0, size * sizeof(double))
        for k in prange(n_threads, num_threads=n_threads, schedule="static"):
            sum_part(X, at, first + (n - first) * k // n_threads,
                     first + (n - first) * (k + 1) // n_threads, scratch + k * room, out)
        for k in range(n_threads):
            begin = first + (n - first) * k // n_threads
            end = first + (n - first) * (k + 1) // n_threads
            if begin < end:
                ridge_pick(simd_level).add(
                    scratch + k * room, 1.0, out + task_of(at, begin) * size, size)
                ridge_pick(simd_level).add(
                    scratch + k * room + size, 1.0, out + task_of(at, end - 1) * size, size)
        for t in prange(at.n_tasks, num_threads=n_threads, schedule="static"):
            ridge_pick(simd_level).finish(out + t * size, p, at.d, at.centred)
    free(scratch)


cdef Samples samples_of(ptrdiff_t n_rows, ptrdiff_t d, const int64_t[::1] row,
                        const int64_t[::1] task_start, const double[::1] weight,
                        const double[::1] target, ptrdiff_t n_tasks, ptrdiff_t p,
                        bint centred) except *:
    cdef Samples at
    cdef ptrdiff_t i, n = row.shape[0]
    at.n_tasks = task_start.shape[0] - 1
    at.p = p
    if n_tasks != at.n_tasks:
        raise ValueError("task_start must have an entry more than there are tasks")
    if weight.shape[0] != n or target.shape[0] != n:
        raise ValueError("row, weight and target must be of one length")
    if at.n_tasks < 1 or task_start[0] < 0 or task_start[at.n_tasks] > n:
        raise ValueError("task_start must lie within the samples")
    for i in range(at.n_tasks):
        if task_start[i] > task_start[i + 1]:
            raise ValueError("task_start must not decrease")
    for i in range(task_start[0], task_start[at.n_tasks]):
        if not 0 <= row[i] < n_rows:
            raise ValueError("row must be rows of X")
    at.row = &row[0] if n else NULL
    at.weight = &weight[0] if n else NULL
    at.target = &target[0] if n else NULL
    at.task_start = &task_start[0]
    at.indices = NULL
    at.indptr = NULL
    at.d = d
    at.centred = centred
    return at


def grams_dense(const real[:, ::1] X, const int64_t[::1] row, const int64_t[::1] task_start,
                const double[::1] weight, const double[::1] target, double[:, :, ::1] gram,
                bint centred, int n_threads):
    """Write each task's Σ w z zᵀ with z = (x, 1, y) into `gram` (T, p, p).

    Samples ``task_start[t]:task_start[t + 1]`` are task t's. With `centred`, x is relative to the
    task's first row, and all but the row and column of the constant are about the weighted means.
    """
    check_square(gram, X.shape[1])
    cdef Samples at = samples_of(X.shape[0], X.shape[1], row, task_start, weight, target,
                                 gram.shape[0], gram.shape[1], centred)
    if at.n_tasks:
        sum_all(&X[0, 0] if X.shape[0] and X.shape[1] else <const real *>NULL, &at, gram, n_threads)


def grams_csr(const real[::1] data, const int32_t[::1] indices, const int64_t[::1] indptr,
              int64_t d, const int64_t[::1] row, const int64_t[::1] task_start,
              const double[::1] weight, const double[::1] target, double[:, :, ::1] gram,
              bint centred, int n_threads):
    """As `grams_dense`, of a CSR matrix with sorted columns, which are not shifted."""
    check_square(gram, d)
    cdef Samples at = samples_of(indptr.shape[0] - 1, d, row, task_start, weight, target,
                                 gram.shape[0], gram.shape[1], centred)
    cdef const real *values = &data[0] if data.shape[0] else <const real *>NULL
    check_csr(data.shape[0], indices.shape[0], indptr)
    at.indices = &indices[0] if indices.shape[0] else NULL
    at.indptr = &indptr[0]
    sum_all(values, &at, gram, n_threads)


cdef void eliminate_part(const double *gram, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t p,
                         ptrdiff_t own, const double *scale, const double *weight,
                         ptrdiff_t n_sums, double *work, double *total) noexcept nogil:
    cdef const ridge_table_f64 *table = ridge_pick(simd_level)
    cdef ptrdiff_t t, k, size = p * p
    cdef double *left = work
    for t in range(begin, end):
        table.eliminate(gram + t * size, p, own, scale[t], work + size, left)
        for k in range(n_sums):
            if weight[t * n_sums + k] != 0:
                table.add(left, weight[t * n_sums + k], total + k * size, size)


def eliminate(const double[:, :, ::1] gram, int64_t own, const double[::1] scale,
              const double[:, ::1] weight, double[:, :, ::1] total, int n_threads):
    """Add ``Σ_t weight[t, k] (G_t − G_t:q (G_t,qq + 1/scale_t)⁻¹ G_t,q:)`` to total[k].

    q are the first `own` coordinates; where the scale is zero the task has nothing of its own.
    """
    cdef ptrdiff_t n_tasks = gram.shape[0], p = gram.shape[1], size = p * p, k, i
    cdef ptrdiff_t n_sums = weight.shape[1], whole = (own + 7) // 8 * 8
    if p != gram.shape[2] or p % 8 or not 0 <= own <= p:
        raise ValueError("gram must be (n_tasks, p, p) with p >= own, a multiple of 8")
    if scale.shape[0] != n_tasks or weight.shape[0] != n_tasks:
        raise ValueError("scale and weight must have an entry per task")
    if total.shape[0] != n_sums or total.shape[1] != p or total.shape[2] != p:
        raise ValueError("total must be like gram, with one matrix for each column of weight")
    if n_tasks == 0:
        return
    n_threads = <int>min(n_threads, n_tasks)
    cdef ptrdiff_t room = (n_sums + 1) * size + whole * ridge_stride(whole + p)
    cdef double *scratch = <double *>calloc(n_threads * room, sizeof(double))
    if scratch == NULL:
        raise MemoryError("no memory to eliminate tasks in")
    cdef const double *weights = &weight[0, 0] if n_sums else NULL
    cdef double *out = &total[0, 0, 0] if n_sums else NULL
    for k in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
        eliminate_part(&gram[0, 0, 0], n_tasks * k // n_threads, n_tasks * (k + 1) // n_threads, p,
                       own, &scale[0], weights, n_sums, scratch + k * room + n_sums * size,
                       scratch + k * room)
    for k in range(n_threads):
        for i in range(n_sums):
            ridge_pick(simd_level).add(
                scratch + k * room + i * size, 1.0, out + i * size, size)
    free(scratch)


cdef void own_part(const double *gram, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t p, ptrdiff_t own,
                   const double *scale, const double *vector, double *work,
                   double *out) noexcept nogil:
    cdef ptrdiff_t t
    for t in range(begin, end):
        ridge_pick(simd_level).own_part(gram + t * p * p, p, own, scale[t], vector + t * p, work,
                                        out + t * p)


def own_parts(const double[:, :, ::1] gram, int64_t own, const double[::1] scale,
              const double[:, ::1] vectors, double[:, ::1] out, int n_threads):
    """Write ``v_t = −(G_t,qq + 1/scale_t)⁻¹ G_t,q: u_t`` into `out`, zero beyond q.

    `vectors` (T, p) are (u, offset, −1): what is shared, to which v_t is added.
    """
    cdef ptrdiff_t n_tasks = gram.shape[0], p = gram.shape[1], whole = (own + 7) // 8 * 8, k
    if p != gram.shape[2] or p % 8 or not 0 <= own <= p:
        raise ValueError("gram must be (n_tasks, p, p) with p >= own, a multiple of 8")
    if scale.shape[0] != n_tasks or vectors.shape[0] != n_tasks or out.shape[0] != n_tasks:
        raise ValueError("scale, vectors and out must have an entry per task")
    if vectors.shape[1] != p or out.shape[1] != p:
        raise ValueError("vectors and out must be as wide as gram")
    if n_tasks == 0:
        return
    cdef ptrdiff_t room = whole * ridge_stride(whole + 8)
    cdef double *scratch = <double *>calloc(n_threads * (room + 8), sizeof(double))
    if scratch == NULL:
        raise MemoryError("no memory to solve tasks in")
    for k in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
        own_part(&gram[0, 0, 0], n_tasks * k // n_threads, n_tasks * (k + 1) // n_threads, p, own,
                 &scale[0], &vectors[0, 0], scratch + k * room, &out[0, 0])
    free(scratch)


cdef void score_part(const real *X, const Samples *at, ptrdiff_t begin, ptrdiff_t end,
                     const double *vectors, double *out) noexcept nogil:
    cdef ptrdiff_t t, last
    if begin == end:
        return
    t = task_of(at, begin)
    while begin < end:
        last = min(end, at.task_start[t + 1])
        if at.indptr == NULL:
            if real is float:
                ridge_rows_of_f32(simd_level).scores(
                    X, at.d, at.row + begin, last - begin, vectors + t * at.p, out + begin)
            else:
                ridge_rows_of_f64(simd_level).scores(
                    X, at.d, at.row + begin, last - begin, vectors + t * at.p, out + begin)
        elif real is float:
            ridge_rows_of_f32(simd_level).scores_sparse(
                X, at.indices, at.indptr, at.d, at.row + begin, last - begin, vectors + t * at.p,
                out + begin)
        else:
            ridge_rows_of_f64(simd_level).scores_sparse(
                X, at.indices, at.indptr, at.d, at.row + begin, last - begin, vectors + t * at.p,
                out + begin)
        begin = max(begin, last)
        t += 1


cdef score_all(const real *X, Samples *at, const double[:, ::1] vectors, double[::1] out,
               int n_threads):
    cdef ptrdiff_t first = at.task_start[0], n = at.task_start[at.n_tasks], k
    cdef const double *all_vectors = &vectors[0, 0]
    cdef double *scores = &out[0] if out.shape[0] else NULL
    for k in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
        score_part(X, at, first + (n - first) * k // n_threads,
                   first + (n - first) * (k + 1) // n_threads, all_vectors, scores)


cdef int check_csr(ptrdiff_t n_data, ptrdiff_t n_indices, const int64_t[::1] indptr) except -1:
    if indptr[indptr.shape[0] - 1] > min(n_data, n_indices):
        raise ValueError("indptr must lie within data and indices")
    return 0


cdef Samples scored_of(ptrdiff_t n_rows, ptrdiff_t d, const int64_t[::1] row,
                       const int64_t[::1] task_start, const double[:, ::1] vectors,
                       double[::1] out) except *:
    if vectors.shape[1] <= d:
        raise ValueError("vectors must have d + 1 columns or more")
    return samples_of(n_rows, d, row, task_start, out, out, vectors.shape[0], vectors.shape[1],
                      False)


def scores_dense(const real[:, ::1] X, const int64_t[::1] row, const int64_t[::1] task_start,
                 const double[:, ::1] vectors, double[::1] out, int n_threads):
    """Write ``x·w + b`` of each sample into `out`, with its task's (w, b) = vectors[t, : d + 1]."""
    cdef Samples at = scored_of(X.shape[0], X.shape[1], row, task_start, vectors, out)
    score_all(&X[0, 0] if X.shape[0] and X.shape[1] else <const real *>NULL, &at, vectors, out,
              n_threads)


def scores_csr(const real[::1] data, const int32_t[::1] indices, const int64_t[::1] indptr,
               int64_t d, const int64_t[::1] row, const int64_t[::1] task_start,
               const double[:, ::1] vectors, double[::1] out, int n_threads):
    """As `scores_dense`, of the rows of a CSR matrix."""
    cdef Samples at = scored_of(indptr.shape[0] - 1, d, row, task_start, vectors, out)
    check_csr(data.shape[0], indices.shape[0], indptr)
    at.indices = &indices[0] if indices.shape[0] else NULL
    at.indptr = &indptr[0]
    score_all(&data[0] if data.shape[0] else <const real *>NULL, &at, vectors, out, n_threads)
