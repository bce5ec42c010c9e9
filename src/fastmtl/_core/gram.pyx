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

from fastmtl._core.cpu cimport simd_level

cdef extern from "gram.h" nogil:
    enum:
        GRAM_LOGISTIC, GRAM_TANH_SLOPE, GRAM_LOGISTIC_2

    ctypedef struct gram_problem:
        const void *X
        int64_t n, d, x_stride
        const void *packed
        int64_t m
        const void *row_term
        const void *column_term
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
    cdef _Rows to = _Rows(out, "out", 2, True), row = None, column = None
    if (row_term is None) != (column_term is None):
        raise ValueError("row_term and column_term come together")
    if row_term is not None:
        row, column = _Rows(row_term, "row_term", 1), _Rows(column_term, "column_term", 1)
        if row.n != x.n or column.n != y.n or row.letter != x.letter or column.letter != x.letter:
            raise ValueError("shapes or dtypes do not agree")
    if to.n != x.n or to.d != y.n or (to.letter != x.letter and to.letter != b"f"):
        raise ValueError("shapes or dtypes do not agree")
    _state(&P, x, to, function, scale, shift, degree)
    P.narrow = to.letter != x.letter
    if row is not None:
        P.row_term = row.data
        P.column_term = column.data
    P.stream = (
        x.n * y.n * to.size >= STREAM_BYTES
        and <uintptr_t>to.data % CACHE_LINE == 0
        and to.stride * to.size % CACHE_LINE == 0
    )
    _pass(&P, x, y, MIRRORED if Y is None else PLAIN, n_threads)


def gram_product(X, Y, vectors, out, int function, double scale, double shift, int degree, row_term,
                 column_term, int n_threads):
    """Fill `out` (n, k) with the Gram of X and Y times the k rows of `vectors`, tile by tile.

    See :func:`fastmtl.reference.gram.gram_product`.
    """
    cdef gram_problem P
    cdef _Rows x = _Rows(X, "X"), y = _Rows(Y, "Y"), v = _Rows(vectors, "vectors")
    cdef _Rows to = _Rows(out, "out", 2, True), row = None, column = None
    if (row_term is None) != (column_term is None):
        raise ValueError("row_term and column_term come together")
    if row_term is not None:
        row, column = _Rows(row_term, "row_term", 1), _Rows(column_term, "column_term", 1)
        if row.n != x.n or column.n != y.n or row.letter != x.letter or column.letter != x.letter:
            raise ValueError("shapes or dtypes do not agree")
    if to.n != x.n or to.d != v.n or v.d != y.n or v.letter != x.letter or to.letter != x.letter:
        raise ValueError("shapes or dtypes do not agree")
    out[...] = 0
    _state(&P, x, to, function, scale, shift, degree)
    if row is not None:
        P.row_term = row.data
        P.column_term = column.data
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


cdef _pass(gram_problem *P, _Rows x, _Rows y, int task, int n_threads):
    cdef const gram_table *table
    cdef int64_t size = x.size, n = x.n, m = y.n, d = x.d
    if y.d != d or y.letter != x.letter:
        raise ValueError("shapes or dtypes do not agree")
    if n == 0 or m == 0:
        return
    table = gram_table_f64(simd_level) if size == 8 else gram_table_f32(simd_level)
    cdef int64_t tile_rows = table.tile_rows, tile_columns = table.tile_columns
    cdef int64_t panel = table.panel, columns_at_once, whole = (m + panel - 1) // panel * panel
    if task == MIRRORED:
        # Square tiles on one grid for rows and columns; the whole of X is packed at once.
        if n < SMALL:
            tile_rows //= 2
        tile_columns = tile_rows
        columns_at_once = whole
    else:
        if n < SMALL:  # enough tiles for all threads
            tile_rows = min(tile_rows, (n // (4 * n_threads) + 8) // 8 * 8)
        columns_at_once = max(1, PACKED_BYTES // (max(1, d) * size) // tile_columns) * tile_columns
        columns_at_once = min(columns_at_once, whole)
    cdef int64_t scratch_size = (
        2 * (table.tile_rows + 8) * table.tile_columns * size + CACHE_LINE
    ) // CACHE_LINE * CACHE_LINE
    cdef char *memory = <char *>malloc(
        n_threads * scratch_size + columns_at_once * d * size + CACHE_LINE
    )
    if memory == NULL:
        raise MemoryError("no memory for the tiles of a Gram matrix")
    with nogil:
        if task != GRADIENT and P.function == GRAM_LOGISTIC and table.base_2:
            _fold(table, P, y.data, y.stride, m, size)
        _columns(table, P, y.data, y.stride, m, size, columns_at_once, task, tile_rows,
                 tile_columns, _aligned(memory), scratch_size, n_threads)
        free(memory)


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


cdef void _columns(const gram_table *table, gram_problem *P, char *y, int64_t y_stride, int64_t m,
                   int64_t size, int64_t columns_at_once, int task, int64_t tile_rows,
                   int64_t tile_columns, char *scratch, int64_t scratch_size,
                   int n_threads) noexcept nogil:
    """Packs and passes over as many columns at a time as the outer cache holds."""
    cdef int64_t begin = 0, width, p, tiles, tiles_across, n_panels, panel = table.panel, d = P.d
    cdef char *packed = scratch + n_threads * scratch_size
    cdef gram_problem part = P[0]
    part.packed = packed
    while begin < m:
        width = min(columns_at_once, m - begin)
        n_panels = (width + panel - 1) // panel
        for p in prange(n_panels, num_threads=n_threads, schedule="static"):
            table.pack(y + (begin + p * panel) * y_stride * size, y_stride,
                       min(panel, width - p * panel), d, P.factor, P.factor_rest,
                       packed + p * panel * d * size)
        part.m = width
        if task <= MIRRORED:
            part.out = <char *>P.out + begin * (4 if P.narrow else size)
        elif task == PRODUCT:
            part.vectors = <const char *>P.vectors + begin * size
        else:
            part.weights = <const char *>P.weights + begin * size
        if P.column_term != NULL:
            part.column_term = <const char *>P.column_term + begin * size
        tiles_across = (width + tile_columns - 1) // tile_columns
        tiles = (P.n + tile_rows - 1) // tile_rows * tiles_across
        _tiles(table, &part, task, tiles, tiles_across, tile_rows, tile_columns, scratch,
               scratch_size, n_threads)
        begin += width


cdef void _tiles(const gram_table *table, const gram_problem *P, int task, int64_t tiles,
                 int64_t tiles_across, int64_t tile_rows, int64_t tile_columns, char *scratch,
                 int64_t scratch_size, int n_threads) noexcept nogil:
    # A product's or gradient's rows belong to one thread.
    cdef int64_t chunk, chunks = n_threads * 16, unit = 1 if task <= MIRRORED else tiles_across
    if chunks > tiles // unit:
        chunks = tiles // unit
    # Each turn of the loop is a run of tiles, in the scratch of the thread that takes it.
    for chunk in prange(chunks, num_threads=n_threads, schedule="dynamic", chunksize=1):
        _run_of_tiles(table, P, task, tiles // unit * chunk // chunks * unit,
                      tiles // unit * (chunk + 1) // chunks * unit, tiles_across, tile_rows,
                      tile_columns, scratch + _thread_number() * scratch_size)


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


cdef void _run_of_tiles(const gram_table *table, const gram_problem *P, int task, int64_t begin,
                        int64_t end, int64_t tiles_across, int64_t tile_rows, int64_t tile_columns,
                        char *scratch) noexcept nogil:
    cdef int64_t t, i, j, i_end, j_end
    for t in range(begin, end):
        i = t // tiles_across * tile_rows
        j = t % tiles_across * tile_columns
        i_end = min(i + tile_rows, P.n)
        j_end = min(j + tile_columns, P.m)
        if task == PLAIN:
            table.tile(P, i, i_end, j, j_end, scratch)
        elif task == PRODUCT:
            table.product_tile(P, i, i_end, j, j_end, scratch)
        elif task == GRADIENT:
            table.gradient_tile(P, i, i_end, j, j_end, scratch)
        elif j >= i:
            table.mirrored_tile(P, i, i_end, j, j_end, scratch)
