/* Gram tiles: a register-tiled product whose result passes through the kernel function before it
 * leaves the registers, so that the function's cost hides behind the product and the stores.
 *
 * Y is packed into panels of PANEL columns, k by k; a block of BLOCK_ROWS rows of X runs over a
 * panel with all its sums in registers. Deep products (d > DEPTH) keep sums in a scratch tile, so
 * that a panel's slice stays in the first-level cache.
 */
#include "simd/vector_math.h"

#if TARGET_LEVEL == 2
#define BLOCK_ROWS 8
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
#define TILE_ROWS 96
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
    for (int64_t j = 0; j < PANEL; j++) {
        if (j < m) {
            const real *y = Y + j * y_stride;
            for (int64_t k = 0; k < d; k++) panel[k * PANEL + j] = y[k];
        } else {
            for (int64_t k = 0; k < d; k++) panel[k * PANEL + j] = 0;
        }
    }
}

/* One block of rows against one panel. `function` is a constant where it is inlined. */
static inline __attribute__((always_inline)) void NAME(block)(
    const gram_problem *P, const int32_t function, int64_t i, int64_t rows, int64_t j,
    int64_t columns, int64_t depth, int64_t depth_end, real *sums, real *out, int64_t out_stride,
    int stream) {
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
    if (depth_end < P->d) {
#pragma GCC unroll 8
        for (int b = 0; b < BLOCK_ROWS; b++)
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECS; v++) store(sums + b * PANEL + v * LANES, sum[b][v]);
        return;
    }
    const vec scale = splat((real)P->scale), shift = splat((real)P->shift);
    const real *row_term = (const real *)P->row_term, *column_term = (const real *)P->column_term;
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK_ROWS; b++) {
        if (b >= rows) break;
        const vec own = row_term ? shift + splat(row_term[i + b]) : shift;
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECS; v++) {
            const int left = (int)(columns - v * LANES);
            vec z = scale * sum[b][v] + own;
            if (column_term && left > 0)
                z += left >= LANES ? load(column_term + j + v * LANES)
                                   : load_partial(column_term + j + v * LANES, left);
            z = NAME(kernel_function)(function, P->degree, z);
            real *target = out + b * out_stride + v * LANES;
            if (left >= LANES) {
                if (stream) NAME(stream)(target, z);
                else store(target, z);
            } else if (left > 0) {
                store_partial(target, z, left);
            }
        }
    }
}

#define TILE_OF(label, constant)                                                                   \
    static void NAME(label)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,            \
                            int64_t j_end, real *sums, real *out, int64_t stride, int stream) {    \
        int64_t depth = 0;                                                                         \
        do {                                                                                       \
            const int64_t depth_end = P->d - depth > DEPTH ? depth + DEPTH : P->d;                 \
            real *own = sums;                                                                      \
            for (int64_t c = j; c < j_end; c += PANEL)                                             \
                for (int64_t b = i; b < i_end; b += BLOCK_ROWS, own += BLOCK_ROWS * PANEL)         \
                    NAME(block)(P, constant, b, i_end - b < BLOCK_ROWS ? i_end - b : BLOCK_ROWS,   \
                                c, j_end - c < PANEL ? j_end - c : PANEL, depth, depth_end, own,   \
                                out + (b - i) * stride + (c - j), stride, stream);                 \
            depth = depth_end;                                                                     \
        } while (depth < P->d);                                                                    \
    }
TILE_OF(linear_tile, GRAM_LINEAR)
TILE_OF(logistic_tile, GRAM_LOGISTIC)
TILE_OF(tanh_tile, GRAM_TANH)
TILE_OF(exp_tile, GRAM_EXP)
TILE_OF(power_tile, GRAM_POWER)

static void NAME(tile_to)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                          real *sums, real *out, int64_t stride, int stream) {
    switch (P->function) {
    case GRAM_LOGISTIC: NAME(logistic_tile)(P, i, i_end, j, j_end, sums, out, stride, stream); break;
    case GRAM_TANH: NAME(tanh_tile)(P, i, i_end, j, j_end, sums, out, stride, stream); break;
    case GRAM_EXP: NAME(exp_tile)(P, i, i_end, j, j_end, sums, out, stride, stream); break;
    case GRAM_POWER: NAME(power_tile)(P, i, i_end, j, j_end, sums, out, stride, stream); break;
    default: NAME(linear_tile)(P, i, i_end, j, j_end, sums, out, stride, stream);
    }
}

static void NAME(tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                       void *scratch) {
    NAME(tile_to)(P, i, i_end, j, j_end, (real *)scratch,
                  (real *)P->out + i * P->out_stride + j, P->out_stride, P->stream);
}

/* The upper tile goes to a buffer, and from there to both places; on the diagonal the lower half
 * is taken from the upper, so that the result is exactly symmetric. */
static void NAME(mirrored_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                                int64_t j_end, void *scratch) {
    real *sums = (real *)scratch, *tile = sums + (TILE_ROWS + BLOCK_ROWS) * TILE_PANELS * PANEL;
    real *out = (real *)P->out;
    const int64_t stride = TILE_PANELS * PANEL, columns = j_end - j;
    NAME(tile_to)(P, i, i_end, j, j_end, sums, tile, stride, 0);
    for (int64_t a = i; a < i_end; a++) {
        const real *from = tile + (a - i) * stride;
        real *to = out + a * P->out_stride + j;
        int64_t c = a > j ? a - j : 0; /* below the diagonal the mirror image is right */
        if (P->stream && c == 0) {
            for (; c + LANES <= columns; c += LANES) NAME(stream)(to + c, load(from + c));
        } else {
            for (; c + LANES <= columns; c += LANES) store(to + c, load(from + c));
        }
        for (; c < columns; c++) to[c] = from[c];
    }
    for (int64_t b = i; b < i_end; b += LANES) {
        const int64_t b_end = b + LANES < i_end ? b + LANES : i_end;
        for (int64_t c = j > b ? j : b; c < j_end; c++) {
            const real *from = tile + (b - i) * stride + (c - j);
            real *to = out + c * P->out_stride;
            if (b_end - b == LANES && c >= b_end) {
                real line[LANES] __attribute__((aligned(64)));
                for (int a = 0; a < LANES; a++) line[a] = from[a * stride];
                if (P->stream) NAME(stream)(to + b, load(line));
                else store(to + b, load(line));
            } else {
                for (int64_t a = b; a < b_end && a < c; a++) to[a] = from[(a - b) * stride];
            }
        }
    }
}

static void NAME(product_tile)(const gram_problem *P, int64_t i, int64_t i_end, int64_t j,
                               int64_t j_end, void *scratch) {
    real *sums = (real *)scratch, *tile = sums + (TILE_ROWS + BLOCK_ROWS) * TILE_PANELS * PANEL;
    const int64_t stride = TILE_PANELS * PANEL;
    NAME(tile_to)(P, i, i_end, j, j_end, sums, tile, stride, 0);
    for (int64_t a = i; a < i_end; a++) {
        real *out = (real *)P->out + a * P->out_stride;
        const real *v = (const real *)P->vectors + j;
        for (int64_t k = 0; k < P->n_vectors; k++, v += P->vector_stride)
            out[k] += dot(tile + (a - i) * stride, v, j_end - j);
    }
}

static const gram_table NAME(gram_table) = {
    PANEL, TILE_ROWS, TILE_PANELS * PANEL, NAME(pack), NAME(tile), NAME(mirrored_tile),
    NAME(product_tile),
};
#undef BLOCK_ROWS
#undef PANEL_VECS
#undef PANEL
#undef DEPTH
#undef TILE_ROWS
#undef TILE_PANELS
#undef TILE_OF
#include "simd/vector_math_end.h"
