/* The table of chunk passes of dual_cd_kernels.h, as its callers see it. */
#ifndef FASTMTL_DUAL_CD_H
#define FASTMTL_DUAL_CD_H
#include <stddef.h>
#include <stdint.h>
#include "simd/levels.h"

#define DUAL_CD_TABLE(real, suffix)                                                              \
    typedef struct {                                                                             \
        void (*step)(                                                                            \
            const real *row_i, const real *row_j, const int32_t *column, ptrdiff_t n,            \
            double step_i, double step_j, const double *up, const double *down,                  \
            double *gradient, double *extremes);                                                 \
        ptrdiff_t (*partner)(                                                                    \
            const real *row_i, const int32_t *column, ptrdiff_t n, double coupling,              \
            double slope, double curvature, double tiny, const double *gradient,                 \
            const double *down, const double *diagonal, double *gain);                           \
    } dual_cd_table##suffix;                                                                     \
    extern const dual_cd_table##suffix dual_cd_table##suffix##_base, dual_cd_table##suffix##_avx2, \
        dual_cd_table##suffix##_avx512;

DUAL_CD_TABLE(float, _f32)
DUAL_CD_TABLE(double, _f64)

static const dual_cd_table_f32 *dual_cd_pick_f32(int level) {
    return SIMD_PICK(level, dual_cd_table_f32);
}
static const dual_cd_table_f64 *dual_cd_pick_f64(int level) {
    return SIMD_PICK(level, dual_cd_table_f64);
}
#endif
