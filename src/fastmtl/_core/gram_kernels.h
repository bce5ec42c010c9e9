/* Gram tiles: a register-tiled product whose result passes through the kernel function before it
 * leaves the registers, so that the function's cost hides behind the product and the stores.
 *
 * Y is packed into panels of PANEL columns, k by k; a block of BLOCK_ROWS rows of X runs over a
 * panel with all its sums in registers. The function is applied to a block's sums among the
 * multiply-adds of the next block: its long chains of dependent instructions, and its divisions
 * above all, then wait beside work that does not. Deep products (d > DEPTH) keep sums in a scratch
 * tile, so that a panel's slice stays in the first-level cache. The symmetric matrix keeps a copy of
 * a tile's panel, which stays in that cache too, and writes it transposed when the panel is done.
 * Double results wanted as float are rounded from a scratch tile.
 */
#include "simd/vector_math.h"

#if TARGET_LEVEL == 2
#define BLOCK_ROWS 4
#define PANEL_VECS 3
#define OVERLAP 1 /* registers suffice for a block's sums and a row's function */
#elif TARGET_LEVEL == 1
#define OVERLAP 0
#define BLOCK_ROWS 4
#define PANEL_VECS 3
#else
#define OVERLAP 0
#define BLOCK_ROWS 4
#define PANEL_VECS 2
#endif
#define PANEL (PANEL_VECS * LANES)
#define DEPTH 256
#define TILE_ROWS 96 /* a multiple of PANEL and of LANES on every target */
#define TILE_PANELS (240 / PANEL + (240 % PANEL != 0))

static inline void NAME(stream)(real *p, vec v) {
#if TARGET_LEVEL == 2 && IS_F32
    _mm512_stream_ps(p, (__m512)v);
#elif TARGET_LEVEL == 2
    _mm512_stream_pd(p, (__m512d)v);
#elif TARGET_LEVEL == 1 && IS_F32
    _mm256_stream_ps(p, (__m256)v);
#elif TARGET_LEVEL == 1
    _mm256_stream_pd(p, (__m256d)v);
#else
    store(p, v);
#endif
}

static inline vec NAME(kernel_function)(int32_t function, int32_t degree, vec z) {
    switch (function) {
    case GRAM_LOGISTIC: return vlogistic(z);
#if TARGET_LEVEL == 2
    case GRAM_LOGISTIC_2: return vlogistic_2(z);
#endif
    case GRAM_TANH: return vtanh(z);
    case GRAM_LOGISTIC_SLOPE: return vlogistic_slope(z);
    case GRAM_TANH_SLOPE: return splat(4) * vlogistic_slope(splat(2) * z);
    case GRAM_EXP: {
        /* A squared distance rounded below zero is zero; NaN stays. */
#if VEC_BYTES
        return vexp_negative(select_lanes(z > splat(0), splat(0), z));
#else
        return vexp_negative(z > 0 ? 0 : z);
#endif
    }
    case GRAM_POWER: {
        vec power = splat(1), base = z;
        for (int32_t left = degree; left > 0; left /= 2, base *= base)
            if (left & 1) power *= base;
        return power;
    }
    default: return z;
    }
}

/* y (factor + rest): where instructions do not fuse, rest is 0. */
static inline vec NAME(scaled)(vec y, vec factor, vec rest) { return y * factor + y * rest; }

static double NAME(squares)(const void *X, int64_t n, int64_t d, int64_t x_stride) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        const real *row = (const real *)X + i * x_stride;
        total += (double)dot(row, row, d);
    }
    return total;
}

static void NAME(pack)(const void *Y_, int64_t y_stride, int64_t m, int64_t d, double factor_,
                       double factor_rest, void *panel_) {
    const real *Y = (const real *)Y_, factor = (real)factor_;
    const real rest = (real)(factor_ - (double)factor + factor_rest);
    const vec factors = splat(factor), rests = splat(rest);
    real *panel = (real *)panel_;
    for (int64_t j = 0; j < PANEL; j += LANES) {
        int64_t k = 0;
        for (; m - j >= LANES && k + LANES <= d; k += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++) square[a] = load(Y + (j + a) * y_stride + k);
            transpose_square(square);
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++)
                store(panel + (k + a) * PANEL + j, NAME(scaled)(square[a], factors, rests));
        }
        for (; k < d; k++) {
            real column[LANES];
            for (int64_t a = 0; a < LANES; a++)
                column[a] = j + a < m ? Y[(j + a) * y_stride + k] : 0;
            store(panel + k * PANEL + j, NAME(scaled)(load(column), factors, rests));
        }
    }
}

/* A block whose sums are ready; no rows: nothing waits. */
typedef struct {
    const real *sums;
    int64_t i, rows, j, columns;
    real *out; /* of its first number */
    int64_t out_stride;
    real *aside; /* of its first row: a mirrored panel's copy, or a gradient's two sums */
} NAME(pending);

/* What the function is applied to: `function` is a constant where this is inlined. */
static inline __attribute__((always_inline)) vec NAME(argument)(const int32_t function, vec scale,
                                                                vec product, vec own) {
    return function == GRAM_LOGISTIC_2 ? product + own : scale * product + own;
}

/* The function of a block that an edge cuts or a gradient sums, and of a panel's last block. */
static inline __attribute__((always_inline)) void NAME(finish)(
    const gram_problem *P, const int32_t function, const int sink, const NAME(pending) *done) {
    const vec scale = splat((real)P->scale), shift = splat((real)P->shift);
    const real *row_term = (const real *)P->row_term;
    for (int64_t b = 0; b < done->rows; b++)
        for (int64_t c = 0; c < done->columns; c += LANES) {
            const int left = (int)(done->columns - c);
            vec own = shift;
            if (row_term) {
                const real *term = (const real *)P->column_term + done->j + c;
                own += splat(row_term[(done->i + b) * P->row_term_stride]) +
                       (left >= LANES ? load(term) : load_partial(term, left));
            }
            const vec product = load(done->sums + b * PANEL + c);
            const vec z = NAME(kernel_function)(function, P->degree,
                                                NAME(argument)(function, scale, product, own));
            if (sink == TO_GRADIENT) {
                const real *at =
                    (const real *)P->weights + (done->i + b) * P->weight_stride + done->j + c;
                const vec weighted = z * (left >= LANES ? load(at) : load_partial(at, left));
                real *totals = done->aside + 2 * b * LANES;
                store(totals, load(totals) + weighted);
                store(totals + LANES, load(totals + LANES) + weighted * product);
                continue;
            }
            real *target = done->out + b * done->out_stride + c;
            if (left < LANES) store_partial(target, z, left);
            else if (P->stream) NAME(stream)(target, z);
            else store(target, z);
            if (sink == TO_MIRROR) store(done->aside + b * PANEL + c, z);
        }
}

/* One row of a whole block, without a branch between vectors. */
static inline __attribute__((always_inline)) void NAME(finish_row)(
    const gram_problem *P, const int32_t function, const int sink, const NAME(pending) *done,
    int64_t b) {
    const vec scale = splat((real)P->scale), shift = splat((real)P->shift);
    vec own[PANEL_VECS];
#pragma GCC unroll 4
    for (int v = 0; v < PANEL_VECS; v++) own[v] = shift;
    if (function != GRAM_LOGISTIC_2 && P->row_term) {
        /* added in an order that makes (i, j) and (j, i) equal to the last bit */
        const vec row_term =
            splat(((const real *)P->row_term)[(done->i + b) * P->row_term_stride]);
        const real *column_term = (const real *)P->column_term + done->j;
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) own[v] += row_term + load(column_term + v * LANES);
    }
    vec z[PANEL_VECS];
#pragma GCC unroll 4
    for (int v = 0; v < PANEL_VECS; v++) {
        const vec product = load(done->sums + b * PANEL + v * LANES);
        z[v] = NAME(kernel_function)(function, P->degree,
                                     NAME(argument)(function, scale, product, own[v]));
    }
    real *target = done->out + b * done->out_stride;
    if (P->stream)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) NAME(stream)(target + v * LANES, z[v]);
    else
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) store(target + v * LANES, z[v]);
    if (sink == TO_MIRROR)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) store(done->aside + b * PANEL + v * LANES, z[v]);
}

/* Adds the products of features k .. end, of which `panel` starts with the first. */
static inline __attribute__((always_inline)) void NAME(add_products)(
    vec sum[BLOCK_ROWS][PANEL_VECS], const real *const *row, const real *panel, int64_t k,
    int64_t end) {
    for (; k < end; k++, panel += PANEL) {
        vec y[PANEL_VECS];
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) y[v] = load(panel + v * LANES);
#pragma GCC unroll 8
        for (int b = 0; b < BLOCK_ROWS; b++) {
            const vec x = splat(row[b][k]);
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) sum[b][v] += x * y[v];
        }
    }
}

/* One block of rows against one panel, and the function of the block before. */
static inline __attribute__((always_inline)) void NAME(block)(
    const gram_problem *P, const int32_t function, const int sink, int64_t i, int64_t rows,
    int64_t j, int64_t depth, int64_t depth_end, real *sums, const NAME(pending) *before,
    void (*const finish)(const gram_problem *, const NAME(pending) *)) {
    const real *row[BLOCK_ROWS];
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK_ROWS; b++)
        row[b] = (const real *)P->X + (i + (b < rows ? b : rows - 1)) * P->x_stride;
    const real *panel = (const real *)P->packed + j * P->d + depth * PANEL;
    const int whole =
        sink != TO_GRADIENT && before->rows == BLOCK_ROWS && before->columns == PANEL;
    if (!whole) finish(P, before);
    else if (!OVERLAP)
        for (int64_t b = 0; b < BLOCK_ROWS; b++) NAME(finish_row)(P, function, sink, before, b);
    vec sum[BLOCK_ROWS][PANEL_VECS];
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK_ROWS; b++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++)
            sum[b][v] = depth ? load(sums + b * PANEL + v * LANES) : splat(0);
    int64_t k = depth;
    if (OVERLAP && whole) {
        const int64_t part = (depth_end - depth) / BLOCK_ROWS;
        for (int64_t b = 0; b < BLOCK_ROWS; b++, k += part) {
            NAME(add_products)(sum, row, panel + (k - depth) * PANEL, k, k + part);
            NAME(finish_row)(P, function, sink, before, b);
        }
    }
    NAME(add_products)(sum, row, panel + (k - depth) * PANEL, k, depth_end);
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK_ROWS; b++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) store(sums + b * PANEL + v * LANES, sum[b][v]);
}

/* `at` (rows of PANEL) transposed to `out`: `columns` lines of `rows` numbers each. */
static void NAME(mirror)(const real *at, int64_t rows, int64_t columns, real *out,
                         int64_t out_stride, int32_t stream) {
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES)
        for (int64_t r = 0; r + LANES <= rows; r += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++) square[a] = load(at + (r + a) * PANEL + c);
            transpose_square(square);
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++) {
                real *target = out + (c + a) * out_stride + r;
                if (stream) NAME(stream)(target, square[a]);
                else store(target, square[a]);
            }
        }
    const int64_t whole_rows = rows / LANES * LANES, whole_columns = c;
    for (c = 0; c < columns; c++)
        for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)
            out[c * out_stride + r] = at[r * PANEL + c];
}

#define TILE_OF(label, constant, sink)                                                             \
    static __attribute__((noinline)) void NAME(label##_finish)(const gram_problem *P,              \
                                                               const NAME(pending) *done) {        \
        NAME(finish)(P, constant, sink, done);                                                     \
    }                                                                                              \
    static void NAME(label)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,            \
                            int64_t j_end, real *sums, real *out, int64_t stride, real *aside) {   \
        NAME(pending) before = {NULL, 0, 0, 0, 0, NULL, stride, NULL};                             \
        int64_t depth = 0;                                                                         \
        do {                                                                                       \
            const int64_t depth_end = P->d - depth > DEPTH ? depth + DEPTH : P->d;                 \
            real *own = sums;                                                                      \
            for (int64_t c = j; c < j_end; c += PANEL) {                                           \
                const int64_t columns = j_end - c < PANEL ? j_end - c : PANEL;                     \
                for (int64_t b = i; b < i_end; b += BLOCK_ROWS) {                                  \
                    const int64_t rows = i_end - b < BLOCK_ROWS ? i_end - b : BLOCK_ROWS;          \
                    NAME(block)(P, constant, sink, b, rows, c, depth, depth_end, own, &before,     \
                                NAME(label##_finish));                                             \
                    before.sums = own;                                                             \
                    before.i = b;                                                                  \
                    before.rows = depth_end == P->d ? rows : 0;                                    \
                    before.j = c;                                                                  \
                    before.columns = columns;                                                      \
                    before.out = out + (b - i) * stride + (c - j);                                 \
                    before.aside = aside + (b - i) * (sink == TO_MIRROR ? PANEL : 2 * LANES);      \
                    own += own == sums || P->d > DEPTH ? BLOCK_ROWS * PANEL : -BLOCK_ROWS * PANEL; \
                }                                                                                  \
                if (depth_end == P->d && (sink == TO_MIRROR || c + PANEL >= j_end)) {              \
                    NAME(label##_finish)(P, &before);                                              \
                    before.rows = 0;                                                               \
                }                                                                                  \
                if (sink == TO_MIRROR && depth_end == P->d)                                        \
                    NAME(mirror)(aside, i_end - i, columns,                                        \
                                 (real *)P->out + c * P->out_stride + i, P->out_stride,            \
                                 P->stream);                                                       \
            }                                                                                      \
            depth = depth_end;                                                                     \
        } while (depth < P->d);                                                                    \
    }
#define TILES_OF(label, constant)                                                                  \
    TILE_OF(label, constant, TO_OUT)                                                               \
    TILE_OF(label##_mirrored, constant, TO_MIRROR)
TILES_OF(linear, GRAM_LINEAR)
TILES_OF(logistic, GRAM_LOGISTIC)
TILES_OF(tanh, GRAM_TANH)
TILES_OF(exp, GRAM_EXP)
TILES_OF(power, GRAM_POWER)
TILES_OF(logistic_slope, GRAM_LOGISTIC_SLOPE)
TILES_OF(tanh_slope, GRAM_TANH_SLOPE)
#if TARGET_LEVEL == 2
TILES_OF(logistic_2, GRAM_LOGISTIC_2)
#endif
TILE_OF(logistic_gradient, GRAM_LOGISTIC_SLOPE, TO_GRADIENT)
TILE_OF(tanh_gradient, GRAM_TANH_SLOPE, TO_GRADIENT)

typedef void NAME(tile_function)(const gram_problem *, int64_t, int64_t, int64_t, int64_t, real *,
                                 real *, int64_t, real *);
/* In the order of the enum of functions. */
static NAME(tile_function) *const NAME(to_out)[] = {
    NAME(linear), NAME(logistic), NAME(tanh), NAME(exp), NAME(power), NAME(logistic_slope),
    NAME(tanh_slope),
#if TARGET_LEVEL == 2
    NAME(logistic_2),
#endif
};
static NAME(tile_function) *const NAME(to_mirror)[] = {
    NAME(linear_mirrored), NAME(logistic_mirrored), NAME(tanh_mirrored), NAME(exp_mirrored),
    NAME(power_mirrored), NAME(logistic_slope_mirrored), NAME(tanh_slope_mirrored),
#if TARGET_LEVEL == 2
    NAME(logistic_2_mirrored),
#endif
};

#define SUMS ((TILE_ROWS + BLOCK_ROWS) * TILE_PANELS * PANEL)

#if !IS_F32
/* LANES doubles as floats. */
static inline void NAME(narrow)(float *p, vec v, int32_t stream) {
#if VEC_BYTES
    typedef float narrow_t __attribute__((vector_size(LANES * sizeof(float))));
    typedef float unaligned_t
        __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
    const narrow_t rounded = __builtin_convertvector(v, narrow_t);
#if TARGET_LEVEL == 2
    if (stream) _mm256_stream_ps(p, (__m256)rounded);
    else *(unaligned_t *)p = rounded;
#elif TARGET_LEVEL == 1
    if (stream) _mm_stream_ps(p, (__m128)rounded);
    else *(unaligned_t *)p = rounded;
#else
    *(unaligned_t *)p = rounded;
#endif
#else
    *p = (float)v;
#endif
}

/* The tile in scratch, then in out[i.., j..] and, where wanted, out[j.., i..] as floats. */
static void NAME(narrow_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                              int64_t j_end, int mirrored, real *scratch) {
    real *tile = scratch + SUMS;
    const int64_t stride = TILE_PANELS * PANEL, rows = i_end - i, columns = j_end - j;
    const int64_t whole_rows = rows / LANES * LANES, whole_columns = columns / LANES * LANES;
    gram_problem cached = *P;
    cached.stream = 0;
    NAME(to_out)[P->function](&cached, i, i_end, j, j_end, scratch, tile, stride, NULL);
    float *out = (float *)P->out + i * P->out_stride + j;
    for (int64_t r = 0; r < rows; r++, out += P->out_stride) {
        for (int64_t c = 0; c < whole_columns; c += LANES)
            NAME(narrow)(out + c, load(tile + r * stride + c), P->stream);
        for (int64_t c = whole_columns; c < columns; c++) out[c] = (float)tile[r * stride + c];
    }
    if (!mirrored) return;
    out = (float *)P->out + j * P->out_stride + i;
    for (int64_t c = 0; c < whole_columns; c += LANES)
        for (int64_t r = 0; r < whole_rows; r += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++) square[a] = load(tile + (r + a) * stride + c);
            transpose_square(square);
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++)
                NAME(narrow)(out + (c + a) * P->out_stride + r, square[a], P->stream);
        }
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)
            out[c * P->out_stride + r] = (float)tile[r * stride + c];
}
#endif

static void NAME(tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                       void *scratch) {
#if !IS_F32
    if (P->narrow) {
        NAME(narrow_tile)(P, i, i_end, j, j_end, 0, (real *)scratch);
        return;
    }
#endif
    NAME(to_out)[P->function](P, i, i_end, j, j_end, (real *)scratch,
                              (real *)P->out + i * P->out_stride + j, P->out_stride, NULL);
}

/* A tile on the diagonal, its lower half copied from the upper one. */
static void NAME(diagonal_tile)(const gram_problem *P, int64_t i, int64_t i_end, real *scratch) {
    real *tile = scratch + SUMS;
    const int64_t stride = TILE_ROWS + LANES, rows = i_end - i;
    gram_problem cached = *P;
    cached.stream = 0;
    NAME(to_out)[P->function](&cached, i, i_end, i, i_end, scratch, tile, stride, NULL);
    for (int64_t a = 0; a < rows; a++) {
        for (int64_t b = 0; b < a; b++) tile[a * stride + b] = tile[b * stride + a];
        const int64_t at = (i + a) * P->out_stride + i;
        if (P->narrow)
            for (int64_t b = 0; b < rows; b++)
                ((float *)P->out)[at + b] = (float)tile[a * stride + b];
        else memcpy((real *)P->out + at, tile + a * stride, (size_t)rows * sizeof(real));
    }
}

/* Computed whole, a tile on the diagonal is symmetric: entries and their mirror images go through
 * the same operations, but for the factor that a packed row has and a row of X has not. */
static void NAME(mirrored_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                                int64_t j_end, void *scratch) {
    if (i == j) {
        if (P->function == GRAM_LOGISTIC_2) NAME(diagonal_tile)(P, i, i_end, (real *)scratch);
        else NAME(tile)(P, i, i_end, j, j_end, scratch);
        return;
    }
    real *sums = (real *)scratch;
#if !IS_F32
    if (P->narrow) {
        NAME(narrow_tile)(P, i, i_end, j, j_end, 1, sums);
        return;
    }
#endif
    NAME(to_mirror)[P->function](P, i, i_end, j, j_end, sums,
                                 (real *)P->out + i * P->out_stride + j, P->out_stride,
                                 sums + SUMS);
}

static void NAME(product_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                               int64_t j_end, void *scratch) {
    real *sums = (real *)scratch, *tile = sums + SUMS;
    const int64_t stride = TILE_PANELS * PANEL;
    NAME(to_out)[P->function](P, i, i_end, j, j_end, sums, tile, stride, NULL);
    for (int64_t a = i; a < i_end; a++) {
        real *out = (real *)P->out + a * P->out_stride;
        const real *v = (const real *)P->vectors + j;
        for (int64_t k = 0; k < P->n_vectors; k++, v += P->vector_stride)
            out[k] += dot(tile + (a - i) * stride, v, j_end - j);
    }
}

static void NAME(gradient_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                                int64_t j_end, void *scratch) {
    real *sums = (real *)scratch, *totals = sums + SUMS;
    for (int64_t k = 0; k < 2 * (i_end - i) * LANES; k++) totals[k] = 0;
    if (P->function == GRAM_TANH_SLOPE)
        NAME(tanh_gradient)(P, i, i_end, j, j_end, sums, NULL, 0, totals);
    else
        NAME(logistic_gradient)(P, i, i_end, j, j_end, sums, NULL, 0, totals);
    for (int64_t a = i; a < i_end; a++, totals += 2 * LANES) {
        double *out = (double *)P->out + a * P->out_stride;
        for (int lane = 0; lane < LANES; lane++) {
            out[0] += (double)totals[lane];
            out[1] += (double)totals[LANES + lane];
        }
    }
}

static const gram_table NAME(gram_table) = {
    PANEL, TILE_ROWS, TILE_PANELS * PANEL, TARGET_LEVEL == 2, NAME(pack), NAME(squares),
    NAME(tile), NAME(mirrored_tile), NAME(product_tile), NAME(gradient_tile),
};
#undef BLOCK_ROWS
#undef PANEL_VECS
#undef OVERLAP
#undef PANEL
#undef DEPTH
#undef TILE_ROWS
#undef TILE_PANELS
#undef SUMS
#undef TILE_OF
#undef TILES_OF
#include "simd/vector_math_end.h"
