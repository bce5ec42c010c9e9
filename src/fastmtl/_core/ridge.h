/* The kernels of ridge_kernels.h as their callers see them: sizes `p` are multiples of 8.
 *
 * A packed row is √w (x, 1, y, 0 …), so that one symmetric product of rows holds all sums of a task.
 */
#ifndef FASTMTL_RIDGE_H
#define FASTMTL_RIDGE_H
#include <stddef.h>
#include <stdint.h>
#include "simd/levels.h"

#define RIDGE_ROWS_TABLE(real, suffix)                                                            \
    typedef struct {                                                                              \
        void (*pack)(const real *X, ptrdiff_t d, const int64_t *row, const real *origin,          \
                     const double *weight, const double *target, ptrdiff_t n, ptrdiff_t stride,   \
                     double *packed);                                                             \
        void (*pack_sparse)(const real *data, const int32_t *indices, const int64_t *indptr,      \
                            ptrdiff_t d, const int64_t *row, const double *weight,                \
                            const double *target, ptrdiff_t n, ptrdiff_t stride, double *packed); \
        void (*scatter)(const real *data, const int32_t *indices, const int64_t *indptr,          \
                        ptrdiff_t d, const int64_t *row, const double *weight,                    \
                        const double *target, ptrdiff_t n, double *gram, ptrdiff_t p);            \
        void (*scores)(const real *X, ptrdiff_t d, const int64_t *row, ptrdiff_t n,               \
                       const double *vector, double *out);                                        \
        void (*scores_sparse)(const real *data, const int32_t *indices, const int64_t *indptr,    \
                              ptrdiff_t d, const int64_t *row, ptrdiff_t n, const double *vector, \
                              double *out);                                                       \
    } ridge_rows##suffix;                                                                         \
    extern const ridge_rows##suffix ridge_rows##suffix##_base, ridge_rows##suffix##_avx2,         \
        ridge_rows##suffix##_avx512;

RIDGE_ROWS_TABLE(float, _f32)
RIDGE_ROWS_TABLE(double, _f64)

/* Rows of X to fetch while those before them are multiplied, a cache line at a time. */
typedef struct {
    const char *X;
    const int64_t *row;
    ptrdiff_t n, row_bytes, at;
} ridge_fetch;

typedef struct {
    void (*update)(const double *packed, ptrdiff_t n, ptrdiff_t stride, double *gram, ptrdiff_t p,
                   ridge_fetch next);
    void (*finish)(double *gram, ptrdiff_t p, ptrdiff_t d, int centred);
    void (*eliminate)(const double *gram, ptrdiff_t p, ptrdiff_t own, double scale, double *work,
                      double *left);
    void (*own_part)(const double *gram, ptrdiff_t p, ptrdiff_t own, double scale,
                     const double *vector, double *work, double *out);
    void (*add)(const double *x, double factor, double *y, ptrdiff_t n);
} ridge_table_f64;
extern const ridge_table_f64 ridge_table_f64_base, ridge_table_f64_avx2, ridge_table_f64_avx512;

/* Rows are 8 numbers longer where a power of two would put them all in the same cache sets. */
static inline ptrdiff_t ridge_stride(ptrdiff_t width) { return width + (width % 64 == 0 ? 8 : 0); }

static inline const ridge_rows_f32 *ridge_rows_of_f32(int level) {
    return SIMD_PICK(level, ridge_rows_f32);
}
static inline const ridge_rows_f64 *ridge_rows_of_f64(int level) {
    return SIMD_PICK(level, ridge_rows_f64);
}
static inline const ridge_table_f64 *ridge_pick(int level) { return SIMD_PICK(level, ridge_table_f64); }
#endif
