/* Gram tiles: a register-tiled product whose result passes through the kernel function before it
 * leaves the registers, so that the function's cost hides behind the product and the stores.
 *
 * Y is packed into panels of PANEL columns, k by k; a block of BLOCK_ROWS rows of X runs over a
 * panel with all its sums in registers. Deep products (d > DEPTH) keep sums in a scratch tile, so
 * that a panel's slice stays in the first-level cache. The symmetric matrix keeps a copy of a
 * tile's panel, which stays in that cache too, and writes it transposed when the panel is done.
 * Double results wanted as float are rounded from a scratch tile.
 */
#include "simd/vector_math.h"

#if TARGET_LEVEL == 2
#define BLOCK_ROWS 4
#define PANEL_VECS 3
#elif TARGET_LEVEL == 1
#define BLOCK_ROWS 4
#define PANEL_VECS 3
#else
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

static void NAME(pack)(const void *Y_, int64_t y_stride, int64_t m, int64_t d, void *panel_) {
    const real *Y = (const real *)Y_;
    real *panel = (real *)panel_;
    for (int64_t j = 0; j < PANEL; j += LANES) {
        int64_t k = 0;
        for (; m - j >= LANES && k + LANES <= d; k += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++) square[a] = load(Y + (j + a) * y_stride + k);
            transpose_square(square);
#pragma GCC unroll 16
            for (int a = 0; a < LANES; a++) store(panel + (k + a) * PANEL + j, square[a]);
        }
        for (; k < d; k++)
            for (int64_t a = j; a < j + LANES; a++)
                panel[k * PANEL + a] = a < m ? Y[a * y_stride + k] : 0;
    }
}

/* One block of rows against one panel. `function` and `sink` are constants where it is inlined.
 * `aside` takes the copy of a mirrored panel, or the gradient's running sums, two vectors a row. */
static inline __attribute__((always_inline)) void NAME(block)(
    const gram_problem *P, const int32_t function, const int sink, int64_t i, int64_t rows,
    int64_t j, int64_t columns, int64_t depth, int64_t depth_end, real *sums, real *out,
    int64_t out_stride, real *aside) {
    const real *row[BLOCK_ROWS];
    for (int b = 0; b < BLOCK_ROWS; b++)
        row[b] = (const real *)P->X + (i + (b < rows ? b : rows - 1)) * P->x_stride;
    const real *panel = (const real *)P->packed + j * P->d + depth * PANEL;
    vec sum[BLOCK_ROWS][PANEL_VECS];
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK_ROWS; b++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++)
            sum[b][v] = depth ? load(sums + b * PANEL + v * LANES) : splat(0);
    for (int64_t k = depth; k < depth_end; k++, panel += PANEL) {
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
    const vec scale = splat((real)P->scale), shift = splat((real)P->shift);
    const real *row_term = (const real *)P->row_term, *column_term = (const real *)P->column_term;
    if (depth_end == P->d && rows == BLOCK_ROWS && columns == PANEL && sink != TO_GRADIENT) {
        /* The common case, without a branch between vectors that depends on more than a flag. */
        const int32_t stream = P->stream, degree = P->degree;
#pragma GCC unroll 8
        for (int b = 0; b < BLOCK_ROWS; b++)
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) {
                /* added in an order that makes (i, j) and (j, i) equal to the last bit */
                const vec own =
                    row_term ? shift + (splat(row_term[i + b]) + load(column_term + j + v * LANES))
                             : shift;
                const vec z = NAME(kernel_function)(function, degree, scale * sum[b][v] + own);
                real *target = out + b * out_stride + v * LANES;
                if (stream) NAME(stream)(target, z);
                else store(target, z);
                if (sink == TO_MIRROR) store(aside + b * PANEL + v * LANES, z);
            }
        return;
    }
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK_ROWS; b++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) store(sums + b * PANEL + v * LANES, sum[b][v]);
    if (depth_end < P->d) return;
    for (int b = 0; b < rows; b++) {
        for (int v = 0; v < PANEL_VECS; v++) {
            const int left = (int)(columns - v * LANES);
            if (left <= 0) break;
            vec own = shift;
            if (row_term) {
                const real *term = column_term + j + v * LANES;
                own += splat(row_term[i + b]) + (left >= LANES ? load(term) : load_partial(term, left));
            }
            const vec product = load(sums + b * PANEL + v * LANES);
            const vec z = NAME(kernel_function)(function, P->degree, scale * product + own);
            if (sink == TO_GRADIENT) {
                const real *at = (const real *)P->weights + (i + b) * P->weight_stride + j + v * LANES;
                const vec weighted = z * (left >= LANES ? load(at) : load_partial(at, left));
                real *totals = aside + 2 * b * LANES;
                store(totals, load(totals) + weighted);
                store(totals + LANES, load(totals + LANES) + weighted * product);
                continue;
            }
            real *target = out + b * out_stride + v * LANES;
            if (left < LANES) store_partial(target, z, left);
            else if (P->stream) NAME(stream)(target, z);
            else store(target, z);
            if (sink == TO_MIRROR) store(aside + b * PANEL + v * LANES, z);
        }
    }
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
    static void NAME(label)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,            \
                            int64_t j_end, real *sums, real *out, int64_t stride, real *aside) {   \
        int64_t depth = 0;                                                                         \
        do {                                                                                       \
            const int64_t depth_end = P->d - depth > DEPTH ? depth + DEPTH : P->d;                 \
            real *own = sums;                                                                      \
            for (int64_t c = j; c < j_end; c += PANEL) {                                           \
                const int64_t columns = j_end - c < PANEL ? j_end - c : PANEL;                     \
                for (int64_t b = i; b < i_end; b += BLOCK_ROWS, own += BLOCK_ROWS * PANEL)         \
                    NAME(block)(P, constant, sink, b,                                              \
                                i_end - b < BLOCK_ROWS ? i_end - b : BLOCK_ROWS, c, columns,       \
                                depth, depth_end, own, out + (b - i) * stride + (c - j), stride,   \
                                aside + (b - i) * (sink == TO_MIRROR ? PANEL : 2 * LANES));        \
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
TILE_OF(logistic_gradient, GRAM_LOGISTIC_SLOPE, TO_GRADIENT)
TILE_OF(tanh_gradient, GRAM_TANH_SLOPE, TO_GRADIENT)

typedef void NAME(tile_function)(const gram_problem *, int64_t, int64_t, int64_t, int64_t, real *,
                                 real *, int64_t, real *);
/* In the order of the enum of functions. */
static NAME(tile_function) *const NAME(to_out)[] = {
    NAME(linear), NAME(logistic), NAME(tanh), NAME(exp), NAME(power), NAME(logistic_slope),
    NAME(tanh_slope),
};
static NAME(tile_function) *const NAME(to_mirror)[] = {
    NAME(linear_mirrored), NAME(logistic_mirrored), NAME(tanh_mirrored), NAME(exp_mirrored),
    NAME(power_mirrored), NAME(logistic_slope_mirrored), NAME(tanh_slope_mirrored),
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

/* A tile on the diagonal is computed whole: entries and their mirror images go through the same
 * operations. */
static void NAME(mirrored_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                                int64_t j_end, void *scratch) {
    if (i == j) {
        NAME(tile)(P, i, i_end, j, j_end, scratch);
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
    PANEL, TILE_ROWS, TILE_PANELS * PANEL, NAME(pack), NAME(tile), NAME(mirrored_tile),
    NAME(product_tile), NAME(gradient_tile),
};
#undef BLOCK_ROWS
#undef PANEL_VECS
#undef PANEL
#undef DEPTH
#undef TILE_ROWS
#undef TILE_PANELS
#undef SUMS
#undef TILE_OF
#undef TILES_OF
#include "simd/vector_math_end.h"
