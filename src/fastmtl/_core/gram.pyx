"""Gram matrices ``f(scale x_i·y_j + shift + row_term_i + column_term_j)``, tiled over threads."""

from cython.parallel cimport prange
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.math cimport fma
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastmtl._core.cpu cimport simd_level

cdef extern from "gram.h" nogil:
    enum:
        SIMD_BASE, GRAM_LOGISTIC, GRAM_TANH_SLOPE, GRAM_LOGISTIC_2

    ctypedef struct gram_problem:
        const void *X
        int64_t n, d, x_stride
        const void *packed
        int64_t m
        const void *row_term
        const void *column_term
        int64_t row_term_stride
        double scale, shift, factor, factor_rest
        int32_t function, degree
        void *out
        int64_t out_stride
        int32_t stream, narrow
        const void *vectors
        int64_t vector_stride, n_vectors
        const void *weights
        int64_t weight_stride

    ctypedef struct gram_table:
        int64_t panel, tile_rows, tile_columns
        int base_2
        void (*pack)(const void *, int64_t, int64_t, int64_t, double, double,
                     void *) noexcept nogil
        double (*squares)(const void *, int64_t, int64_t, int64_t) noexcept nogil
        void (*tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                     void *) noexcept nogil
        void (*mirrored_tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                              void *) noexcept nogil
        void (*product_tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                             void *) noexcept nogil
        void (*gradient_tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                              void *) noexcept nogil

    const gram_table *gram_table_f64(int level)
    const gram_table *gram_table_f32(int level)

cdef enum:
    PACKED_BYTES = 1 << 22   # of Y at a time: it stays in the outer cache
    STREAM_BYTES = 1 << 23   # outputs beyond the caches are written past them
    CACHE_LINE = 64
    ROWS_PER_TURN = 64       # see _turns; fewer do not pay for packing Y again
    MIRROR_FROM = 32         # features; of fewer, streams save more than half the arithmetic does
    SMALL = 768              # rows; below, tiles shrink so that all threads have some
    FOLD_FROM = 8            # features; see _fold. Of more than FOLD_TO, the product takes all time
    FOLD_TO = 128

cdef double LOG2_E = 1.4426950408889634, LOG2_E_REST = 2.0355273740931033e-17

cdef enum:
    PLAIN, MIRRORED, PRODUCT, GRADIENT


cdef class _Rows:
    """A view of a matrix (or vector) with contiguous rows: what the C side needs to know of it."""

    cdef Py_buffer view
    cdef bint held
    cdef char *data
    cdef char letter
    cdef int64_t size, n, d, stride

    def __cinit__(self, array, str name, int ndim=2, bint writable=False):
        self.held = False
        PyObject_GetBuffer(
            array, &self.view, PyBUF_STRIDES | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
        )
        self.held = True
        cdef Py_buffer *view = &self.view
        self.letter = view.format[0]
        if (self.letter != b"d" and self.letter != b"f") or view.format[1] != 0:
            raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
        if view.ndim != ndim:
            raise ValueError(f"{name} must have {ndim} dimensions, got {view.ndim}")
        self.data = <char *>view.buf
        self.size = view.itemsize
        self.n = view.shape[0]
        self.d = view.shape[1] if ndim == 2 else 1
        self.stride = view.strides[0] // self.size
        if view.strides[ndim - 1] != self.size and view.shape[ndim - 1] > 1:
            raise ValueError(f"rows of {name} must be contiguous")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef inline char *_aligned(char *p) noexcept nogil:
    return <char *>((<uintptr_t>p + CACHE_LINE - 1) & ~<uintptr_t>(CACHE_LINE - 1))


def gram(X, Y, out, int function, double scale, double shift, int degree, row_term, column_term,
         int n_threads):
    """Fill `out`; with Y None, the symmetric Gram of X, computed once and mirrored.

    See :func:`fastmtl.reference.gram.gram`.
    """
    cdef gram_problem P
    cdef _Rows x = _Rows(X, "X"), y = x if Y is None else _Rows(Y, "Y")
    cdef _Rows to = _Rows(out, "out", 2, True)
    if to.n != x.n or to.d != y.n or (to.letter != x.letter and to.letter != b"f"):
        raise ValueError("shapes or dtypes do not agree")
    _state(&P, x, to, function, scale, shift, degree)
    P.narrow = to.letter != x.letter
    terms = _terms(&P, x, y, row_term, column_term)
    P.stream = simd_level > SIMD_BASE and x.n * y.n * to.size >= STREAM_BYTES
    _pass(&P, x, y, MIRRORED if Y is None else PLAIN, n_threads)


def gram_product(X, Y, vectors, out, int function, double scale, double shift, int degree, row_term,
                 column_term, int n_threads):
    """Fill `out` (n, k) with the Gram of X and Y times the k rows of `vectors`, tile by tile.

    See :func:`fastmtl.reference.gram.gram_product`.
    """
    cdef gram_problem P
    cdef _Rows x = _Rows(X, "X"), y = _Rows(Y, "Y"), v = _Rows(vectors, "vectors")
    cdef _Rows to = _Rows(out, "out", 2, True)
    if to.n != x.n or to.d != v.n or v.d != y.n or v.letter != x.letter or to.letter != x.letter:
        raise ValueError("shapes or dtypes do not agree")
    out[...] = 0
    _state(&P, x, to, function, scale, shift, degree)
    terms = _terms(&P, x, y, row_term, column_term)
    P.vectors = v.data
    P.vector_stride = v.stride
    P.n_vectors = v.n
    _pass(&P, x, y, PRODUCT, n_threads)


def gram_gradient(X, Y, weights, out, int function, double scale, double shift, int n_threads):
    """Fill `out` (n, 2), float64, with the rows' sums of a weighted Gram's derivatives.

    See :func:`fastmtl.reference.gram.gram_gradient`.
    """
    cdef gram_problem P
    cdef _Rows x = _Rows(X, "X"), y = _Rows(Y, "Y"), w = _Rows(weights, "weights")
    cdef _Rows to = _Rows(out, "out", 2, True)
    if (to.n != x.n or to.d != 2 or to.letter != b"d" or w.n != x.n or w.d != y.n
            or w.letter != x.letter):
        raise ValueError("shapes or dtypes do not agree")
    out[...] = 0
    _state(&P, x, to, function, scale, shift, 0)
    P.weights = w.data
    P.weight_stride = w.stride
    _pass(&P, x, y, GRADIENT, n_threads)


cdef _state(gram_problem *P, _Rows x, _Rows out, int function, double scale, double shift,
            int degree):
    if not 0 <= function <= GRAM_TANH_SLOPE:
        raise ValueError(f"function {function} is unknown")
    P.X = x.data
    P.n = x.n
    P.d = x.d
    P.x_stride = x.stride
    P.row_term = P.column_term = NULL
    P.row_term_stride = 1
    P.scale = scale
    P.shift = shift
    P.factor = 1
    P.factor_rest = 0
    P.function = function
    P.degree = degree
    P.out = out.data
    P.out_stride = out.stride
    P.stream = P.narrow = 0
    P.vectors = P.weights = NULL
    P.vector_stride = P.n_vectors = P.weight_stride = 0


cdef tuple _terms(gram_problem *P, _Rows x, _Rows y, row_term, column_term):
    """Sets them; valid while what it returns is held."""
    if (row_term is None) != (column_term is None):
        raise ValueError("row_term and column_term come together")
    if row_term is None:
        return ()
    cdef _Rows row = _Rows(row_term, "row_term", 1), column = _Rows(column_term, "column_term", 1)
    if row.n != x.n or column.n != y.n or row.letter != x.letter or column.letter != x.letter:
        raise ValueError("shapes or dtypes do not agree")
    P.row_term = row.data
    P.column_term = column.data
    return row, column


cdef struct plan:
    # How a pass goes over its tiles.
    const gram_table *table
    int64_t size, out_size, tile_rows, tile_columns, columns_at_once, scratch_size
    char *scratch
    int n_threads


cdef _pass(gram_problem *P, _Rows x, _Rows y, int task, int n_threads):
    cdef plan at
    cdef int64_t n, m = y.n, d = x.d, whole, turn, turns
    if y.d != d or y.letter != x.letter:
        raise ValueError("shapes or dtypes do not agree")
    if x.n == 0 or m == 0:
        return
    at.size = x.size
    at.out_size = 4 if P.narrow else x.size
    at.n_threads = n_threads
    at.table = gram_table_f64(simd_level) if x.size == 8 else gram_table_f32(simd_level)
    at.tile_rows = at.table.tile_rows
    at.tile_columns = at.table.tile_columns
    cdef bint fold = task != GRADIENT and P.function == GRAM_LOGISTIC and at.table.base_2
    if (task == MIRRORED and P.stream and d < MIRROR_FROM
            and P.out_stride * at.out_size % CACHE_LINE != 0):
        # Turns can stream it whole; without a factor on one side it is symmetric all the same.
        task, fold = PLAIN, False
    turns = _turns(P, task, at.out_size)
    n = x.n // turns
    whole = (m + at.table.panel - 1) // at.table.panel * at.table.panel
    if task == MIRRORED:
        # Square tiles on one grid for rows and columns; the whole of X is packed at once.
        if n < SMALL:
            at.tile_rows //= 2
        at.tile_columns = at.tile_rows
        at.columns_at_once = whole
    else:
        if n < SMALL:  # enough tiles for all threads
            at.tile_rows = min(at.tile_rows, (n // (4 * n_threads) + 8) // 8 * 8)
        at.columns_at_once = (
            max(1, PACKED_BYTES // (max(1, d) * at.size) // at.tile_columns) * at.tile_columns
        )
        at.columns_at_once = min(at.columns_at_once, whole)
    at.scratch_size = (
        2 * (at.table.tile_rows + 8) * at.table.tile_columns * at.size + CACHE_LINE
    ) // CACHE_LINE * CACHE_LINE
    cdef char *memory = <char *>malloc(
        n_threads * at.scratch_size + at.columns_at_once * d * at.size + CACHE_LINE
    )
    if memory == NULL:
        raise MemoryError("no memory for the tiles of a Gram matrix")
    at.scratch = _aligned(memory)
    with nogil:
        if fold:
            _fold(at.table, P, y.data, y.stride, m, at.size)
        for turn in range(turns):
            _from_a_line(P, turn, turns, y.data, y.stride, m, task, &at)
        free(memory)


cdef int64_t _turns(gram_problem *P, int task, int64_t out_size) noexcept nogil:
    """Of how many rows of `out` one is as far from a cache line as the first.

    Streams start on lines: every such row makes a Gram matrix whose columns can be cut at them.
    """
    cdef int64_t turns = 1
    while P.stream and turns * P.out_stride * out_size % CACHE_LINE:
        turns *= 2
        P.stream = task == PLAIN and P.n >= ROWS_PER_TURN * turns
    return turns if P.stream else 1


cdef void _from_a_line(const gram_problem *P, int64_t turn, int64_t turns, char *y,
                       int64_t y_stride, int64_t m, int task, const plan *at) noexcept nogil:
    """Every turns-th row; the columns before a cache line alone, without streams."""
    cdef int64_t lead = 0, past, i, j
    cdef gram_problem part = P[0]
    cdef char *out
    _skip(&part, turn, at.size, at.out_size)
    part.n = (P.n - turn + turns - 1) // turns
    part.x_stride *= turns
    part.out_stride *= turns
    part.row_term_stride *= turns
    if part.stream:
        past = <uintptr_t>part.out % CACHE_LINE
        lead = min(m, (CACHE_LINE - past) % CACHE_LINE // at.out_size)
    if lead:
        part.stream = 0
        _columns(&part, y, y_stride, lead, PLAIN, at)
        part.stream = 1
        if task == MIRRORED:
            out = <char *>part.out
            for i in range(lead):
                for j in range(i + 1, m):
                    memcpy(out + (i * part.out_stride + j) * at.out_size,
                           out + (j * part.out_stride + i) * at.out_size, at.out_size)
            _skip(&part, lead, at.size, at.out_size)
        part.out = <char *>part.out + lead * at.out_size
        if part.column_term != NULL:
            part.column_term = <const char *>part.column_term + lead * at.size
    if m > lead:
        _columns(&part, y + lead * y_stride * at.size, y_stride, m - lead, task, at)


cdef inline void _skip(gram_problem *P, int64_t rows, int64_t size, int64_t out_size) noexcept nogil:
    P.n -= rows
    P.X = <const char *>P.X + rows * P.x_stride * size
    P.out = <char *>P.out + rows * P.out_stride * out_size
    if P.row_term != NULL:
        P.row_term = <const char *>P.row_term + rows * size


cdef void _fold(const gram_table *table, gram_problem *P, const char *y, int64_t y_stride,
                int64_t m, int64_t size) noexcept nogil:
    """Lets packing multiply Y by scale · log2(e), so that the sums are arguments of base 2.

    That rounds each product once more, as one feature more would: not with so few features that
    this could be seen, nor where the numbers are so large that a product might overflow.
    """
    cdef double limit = 2.0**1000 if size == 8 else 2.0**120, factor = P.scale * LOG2_E
    if P.d < FOLD_FROM or P.d > FOLD_TO or P.row_term != NULL:
        return
    if not (table.squares(P.X, P.n, P.d, P.x_stride) < limit
            and factor * factor < limit
            and factor * factor * table.squares(y, m, P.d, y_stride) < limit):
        return
    P.function = GRAM_LOGISTIC_2
    P.factor = factor
    P.factor_rest = fma(P.scale, LOG2_E, -factor) + P.scale * LOG2_E_REST
    P.shift *= LOG2_E


cdef void _columns(const gram_problem *P, char *y, int64_t y_stride, int64_t m, int task,
                   const plan *at) noexcept nogil:
    """Packs and passes over as many columns at a time as the outer cache holds."""
    cdef int64_t begin = 0, width, p, n_panels, panel = at.table.panel, d = P.d, size = at.size
    cdef char *packed = at.scratch + at.n_threads * at.scratch_size
    cdef gram_problem part = P[0]
    part.packed = packed
    while begin < m:
        width = min(at.columns_at_once, m - begin)
        n_panels = (width + panel - 1) // panel
        for p in prange(n_panels, num_threads=at.n_threads, schedule="static"):
            at.table.pack(y + (begin + p * panel) * y_stride * size, y_stride,
                          min(panel, width - p * panel), d, P.factor, P.factor_rest,
                          packed + p * panel * d * size)
        part.m = width
        if task <= MIRRORED:
            part.out = <char *>P.out + begin * at.out_size
        elif task == PRODUCT:
            part.vectors = <const char *>P.vectors + begin * size
        else:
            part.weights = <const char *>P.weights + begin * size
        if P.column_term != NULL:
            part.column_term = <const char *>P.column_term + begin * size
        _tiles(&part, task, at)
        begin += width


cdef void _tiles(const gram_problem *P, int task, const plan *at) noexcept nogil:
    cdef int64_t tiles_across = (P.m + at.tile_columns - 1) // at.tile_columns
    cdef int64_t tiles = (P.n + at.tile_rows - 1) // at.tile_rows * tiles_across
    # A product's or gradient's rows belong to one thread.
    cdef int64_t chunk, chunks = at.n_threads * 16, unit = 1 if task <= MIRRORED else tiles_across
    if chunks > tiles // unit:
        chunks = tiles // unit
    # Each turn of the loop is a run of tiles, in the scratch of the thread that takes it.
    for chunk in prange(chunks, num_threads=at.n_threads, schedule="dynamic", chunksize=1):
        _run_of_tiles(P, task, tiles // unit * chunk // chunks * unit,
                      tiles // unit * (chunk + 1) // chunks * unit, tiles_across, at,
                      at.scratch + _thread_number() * at.scratch_size)


cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static int fastmtl_thread_number(void) { return omp_get_thread_num(); }
    #else
    static int fastmtl_thread_number(void) { return 0; }
    #endif
    """
    int _thread_number "fastmtl_thread_number"() noexcept nogil


cdef void _run_of_tiles(const gram_problem *P, int task, int64_t begin, int64_t end,
                        int64_t tiles_across, const plan *at, char *scratch) noexcept nogil:
    cdef const gram_table *table = at.table
    cdef int64_t t, i, j, i_end, j_end
    for t in range(begin, end):
        i = t // tiles_across * at.tile_rows
        j = t % tiles_across * at.tile_columns
        i_end = min(i + at.tile_rows, P.n)
        j_end = min(j + at.tile_columns, P.m)
        if task == PLAIN:
            table.tile(P, i, i_end, j, j_end, scratch)
        elif task == PRODUCT:
            table.product_tile(P, i, i_end, j, j_end, scratch)
        elif task == GRADIENT:
            table.gradient_tile(P, i, i_end, j, j_end, scratch)
        elif j >= i:
            table.mirrored_tile(P, i, i_end, j, j_end, scratch)
