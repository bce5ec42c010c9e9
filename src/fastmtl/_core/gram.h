/* The Gram engine's tasks, dtype-free (arrays of `real` are void here). */
#ifndef FASTMTL_GRAM_H
#define FASTMTL_GRAM_H
#include <stdint.h>
#include "simd/levels.h"

enum {
    GRAM_LINEAR, GRAM_LOGISTIC, GRAM_TANH, GRAM_EXP, GRAM_POWER, GRAM_LOGISTIC_SLOPE,
    GRAM_TANH_SLOPE,
    GRAM_LOGISTIC_2, /* 1 / (1 + 2^−z), for tables with base_2: never asked for from outside */
};
enum { TO_OUT, TO_MIRROR, TO_GRADIENT };

/* out[i, j] = f(scale * x_i·y_j + shift + row_term[i] + column_term[j]) */
typedef struct {
    const void *X;        /* n rows of d, x_stride apart */
    int64_t n, d, x_stride;
    const void *packed;   /* columns 0 .. m of this call, in panels: see pack */
    int64_t m;
    const void *row_term, *column_term; /* or both NULL */
    int64_t row_term_stride;
    double scale, shift;
    double factor, factor_rest; /* of Y as it is packed */
    int32_t function, degree;
    void *out;            /* out_stride apart */
    int64_t out_stride;
    int32_t stream;       /* write past the cache: `out` is large and each row starts a line */
    int32_t narrow;       /* out is float, though X and Y are double */
    /* for products: rows of m numbers, vector_stride apart, each one vector */
    const void *vectors;
    int64_t vector_stride, n_vectors;
    /* for gradients: one weight an entry */
    const void *weights;
    int64_t weight_stride;
} gram_problem;

typedef struct {
    int64_t panel;       /* columns of a panel */
    int64_t tile_rows, tile_columns;
    int base_2;          /* whether there is a GRAM_LOGISTIC_2 */
    /* Packs m rows of Y, times factor + factor_rest, rounded once. */
    void (*pack)(const void *Y, int64_t y_stride, int64_t m, int64_t d, double factor,
                 double factor_rest, void *panel);
    double (*squares)(const void *X, int64_t n, int64_t d, int64_t x_stride); /* their sum */
    /* The tile of rows i .. i_end and panel-aligned columns j .. j_end. The scratch of all of these
     * is 2 * (tile_rows + 8) * tile_columns. */
    void (*tile)(const gram_problem *, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                 void *scratch);
    /* The same, written to out[i.., j..] and mirrored to out[j.., i..]. */
    void (*mirrored_tile)(const gram_problem *, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                          void *scratch);
    /* Adds the tile times the vectors to out[i.., vector]. */
    void (*product_tile)(const gram_problem *, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                         void *scratch);
    /* Adds Σ_j weight·f' and Σ_j weight·f'·x·y to out[i.., 0 and 1], which are double. */
    void (*gradient_tile)(const gram_problem *, int64_t i, int64_t i_end, int64_t j, int64_t j_end,
                          void *scratch);
} gram_table;

const gram_table *gram_table_f64(int level);
const gram_table *gram_table_f32(int level);

#endif
