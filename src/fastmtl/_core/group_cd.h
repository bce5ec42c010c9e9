/* The passes of group_cd_kernels.h over one task's part of one column, as their callers see them.
 * `row` maps its observations to entries of the column; null: they are consecutive. */
#ifndef FASTMTL_GROUP_CD_H
#define FASTMTL_GROUP_CD_H
#include <stddef.h>
#include <stdint.h>
#include "simd/levels.h"

#define GROUP_CD_TABLE(real, suffix)                                                             \
    typedef struct {                                                                             \
        double (*product)(const real *x, const int32_t *row, const real *r, ptrdiff_t n);        \
        void (*move)(                                                                            \
            const real *x, const int32_t *row, const real *w, double step, real *r, ptrdiff_t n); \
        void (*moments)(                                                                         \
            const real *x, const int32_t *row, const real *w, ptrdiff_t n, double *both);        \
    } group_cd_table##suffix;                                                                    \
    extern const group_cd_table##suffix group_cd_table##suffix##_base,                           \
        group_cd_table##suffix##_avx2, group_cd_table##suffix##_avx512;

GROUP_CD_TABLE(float, _f32)
GROUP_CD_TABLE(double, _f64)

static const group_cd_table_f32 *group_cd_pick_f32(int level) {
    return SIMD_PICK(level, group_cd_table_f32);
}
static const group_cd_table_f64 *group_cd_pick_f64(int level) {
    return SIMD_PICK(level, group_cd_table_f64);
}
#endif
