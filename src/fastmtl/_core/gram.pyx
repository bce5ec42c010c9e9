"""Gram matrices ``f(scale x_i·y_j + shift + row_term_i + column_term_j)``, tiled over threads."""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uintptr_t

import numpy as np

from fastmtl._core.cpu cimport simd_level

cdef extern from "gram.h" nogil:
    ctypedef struct gram_problem:
        const void *X
        int64_t n, d, x_stride
        const void *packed
        int64_t m
        const void *row_term
        const void *column_term
        double scale, shift
        int32_t function, degree
        void *out
        int64_t out_stride
        int32_t stream
        const void *vectors
        int64_t vector_stride, n_vectors

    ctypedef struct gram_table:
        int64_t panel, tile_rows, tile_columns
        void (*pack)(const void *, int64_t, int64_t, int64_t, void *) noexcept nogil
        void (*tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                     void *) noexcept nogil
        void (*mirrored_tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                              void *) noexcept nogil
        void (*product_tile)(const gram_problem *, int64_t, int64_t, int64_t, int64_t,
                             void *) noexcept nogil

    const gram_table *gram_table_f64(int level)
    const gram_table *gram_table_f32(int level)

cdef enum:
    PACKED_BYTES = 1 << 22   # of Y at a time: it stays in the outer cache
    STREAM_BYTES = 1 << 23   # outputs beyond the caches are written past them
    CACHE_LINE = 64


cdef inline char *_address(array):
    cdef uintptr_t address = array.ctypes.data
    return <char *>address


cdef inline char *_aligned(char *p) noexcept nogil:
    return <char *>((<uintptr_t>p + CACHE_LINE - 1) & ~<uintptr_t>(CACHE_LINE - 1))


def gram(X, Y, out, int function, double scale, double shift, int degree, row_term, column_term,
         int n_threads):
    """Fill `out`; with Y None, the symmetric Gram of X, computed once and mirrored.

    See :func:`fastmtl.reference.gram.gram`.
    """
    other = X if Y is None else Y
    if out.shape[0] != X.shape[0] or out.shape[1] != other.shape[0]:
        raise ValueError("shapes do not agree")
    _pass(X, other, out, None, Y is None, function, scale, shift, degree, row_term, column_term,
          n_threads)


def gram_product(X, Y, vectors, out, int function, double scale, double shift, int degree, row_term,
                 column_term, int n_threads):
    """Fill `out` (n, k) with the Gram of X and Y times the k rows of `vectors`, tile by tile.

    See :func:`fastmtl.reference.gram.gram_product`.
    """
    if out.shape[0] != X.shape[0] or out.shape[1] != vectors.shape[0] or (
        vectors.shape[1] != Y.shape[0] or vectors.dtype != X.dtype
    ):
        raise ValueError("shapes or dtypes do not agree")
    out[...] = 0
    _pass(X, Y, out, vectors, False, function, scale, shift, degree, row_term, column_term,
          n_threads)


cdef _pass(X, other, out, vectors, bint symmetric, int function, double scale, double shift,
           int degree, row_term, column_term, int n_threads):
    if not (X.dtype == other.dtype == out.dtype):
        raise TypeError("X, Y and out must have one dtype")
    cdef const gram_table *table
    if X.dtype == np.float64:
        table = gram_table_f64(simd_level)
    elif X.dtype == np.float32:
        table = gram_table_f32(simd_level)
    else:
        raise TypeError(f"dtype must be float32 or float64, got {X.dtype}")
    cdef int64_t size = X.itemsize, n = X.shape[0], m = other.shape[0], d = X.shape[1]
    if other.shape[1] != d:
        raise ValueError("shapes do not agree")
    if n == 0 or m == 0:
        return
    if (d > 1 and (X.strides[1] != size or other.strides[1] != size)) or (
        out.shape[1] > 1 and out.strides[1] != size
    ):
        raise ValueError("rows of X, Y and out must be contiguous")

    cdef gram_problem P
    cdef int64_t y_stride = other.strides[0] // size
    cdef char *y = _address(other)
    P.X = _address(X)
    P.n = n
    P.d = d
    P.x_stride = X.strides[0] // size
    P.scale = scale
    P.shift = shift
    P.function = function
    P.degree = degree
    P.row_term = _address(row_term) if row_term is not None else NULL
    cdef char *column_terms = _address(column_term) if column_term is not None else NULL
    cdef char *first_out = _address(out)
    P.out_stride = out.strides[0] // size
    P.stream = (
        vectors is None
        and n * m * size >= STREAM_BYTES
        and <uintptr_t>first_out % CACHE_LINE == 0
        and out.strides[0] % CACHE_LINE == 0
    )

    cdef char *first_vector = NULL
    P.vectors = NULL
    P.vector_stride = P.n_vectors = 0
    if vectors is not None:
        if m > 1 and vectors.strides[1] != size:
            raise ValueError("rows of vectors must be contiguous")
        first_vector = _address(vectors)
        P.n_vectors = vectors.shape[0]
        P.vector_stride = vectors.strides[0] // size

    cdef int64_t panel = table.panel, columns_at_once, n_panels
    columns_at_once = max(table.tile_columns,
                          PACKED_BYTES // (max(1, d) * size) // table.tile_columns
                          * table.tile_columns)
    if symmetric:
        # Square tiles on one grid for rows and columns; the whole of X is packed at once.
        columns_at_once = (m + panel - 1) // panel * panel
    columns_at_once = min(columns_at_once, (m + panel - 1) // panel * panel)
    packed_array = np.empty(columns_at_once * d * size + CACHE_LINE, dtype=np.uint8)
    cdef char *packed = _aligned(_address(packed_array))
    P.packed = packed
    cdef int64_t scratch_size = (
        2 * (table.tile_rows + 8) * table.tile_columns * size + CACHE_LINE
    ) // CACHE_LINE * CACHE_LINE
    scratch_array = np.empty(n_threads * scratch_size + CACHE_LINE, dtype=np.uint8)
    cdef char *scratch = _aligned(_address(scratch_array))

    cdef int64_t begin = 0, width, p, tiles, tiles_across, tile_rows = table.tile_rows
    cdef int64_t tile_columns = table.tile_columns
    if symmetric:
        tile_rows = tile_columns = table.tile_columns // panel * panel
        if tile_rows > table.tile_rows:
            tile_rows = tile_columns = max(panel, table.tile_rows // panel * panel)
    while begin < m:
        width = min(columns_at_once, m - begin)
        n_panels = (width + panel - 1) // panel
        for p in prange(n_panels, nogil=True, num_threads=n_threads, schedule="static"):
            table.pack(y + (begin + p * panel) * y_stride * size, y_stride,
                       min(panel, width - p * panel), d, packed + p * panel * d * size)
        P.m = width
        if first_vector != NULL:
            P.vectors = first_vector + begin * size
            P.out = first_out
        else:
            P.out = first_out + begin * size
        P.column_term = column_terms + begin * size if column_terms != NULL else NULL
        tiles_across = (width + tile_columns - 1) // tile_columns
        tiles = (n + tile_rows - 1) // tile_rows * tiles_across
        with nogil:
            _tiles(table, &P, tiles, tiles_across, tile_rows, tile_columns, symmetric, scratch,
                   scratch_size, n_threads)
        begin += width


cdef void _tiles(const gram_table *table, const gram_problem *P, int64_t tiles,
                 int64_t tiles_across, int64_t tile_rows, int64_t tile_columns, bint symmetric,
                 char *scratch, int64_t scratch_size, int n_threads) noexcept nogil:
    cdef int64_t chunk, chunks = n_threads * 8, unit = 1
    if P.vectors != NULL:
        unit = tiles_across  # a product's rows belong to one thread
    if chunks > tiles // unit:
        chunks = tiles // unit
    # Each turn of the loop is a run of tiles, in the scratch of the thread that takes it.
    for chunk in prange(chunks, num_threads=n_threads, schedule="dynamic", chunksize=1):
        _run_of_tiles(table, P, tiles // unit * chunk // chunks * unit,
                      tiles // unit * (chunk + 1) // chunks * unit, tiles_across, tile_rows, tile_columns, symmetric,
                      scratch + _thread_number() * scratch_size)


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


cdef void _run_of_tiles(const gram_table *table, const gram_problem *P, int64_t begin, int64_t end,
                        int64_t tiles_across, int64_t tile_rows, int64_t tile_columns,
                        bint symmetric, char *scratch) noexcept nogil:
    cdef int64_t t, i, j, i_end, j_end
    for t in range(begin, end):
        i = t // tiles_across * tile_rows
        j = t % tiles_across * tile_columns
        i_end = min(i + tile_rows, P.n)
        j_end = min(j + tile_columns, P.m)
        if P.vectors != NULL:
            table.product_tile(P, i, i_end, j, j_end, scratch)
        elif not symmetric:
            table.tile(P, i, i_end, j, j_end, scratch)
        elif j >= i:
            table.mirrored_tile(P, i, i_end, j, j_end, scratch)
