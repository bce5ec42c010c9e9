#include "linear_sgd.h"
#define KERNELS "linear_sgd_kernels.h"
#include "simd/each_target.h"

const sgd_table *sgd_table_f64(int level) { return SIMD_PICK(level, sgd_table_f64); }
const sgd_table *sgd_table_f32(int level) { return SIMD_PICK(level, sgd_table_f32); }
