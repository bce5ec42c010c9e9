#include "gram.h"
#define KERNELS "gram_kernels.h"
#include "simd/each_target.h"

const gram_table *gram_table_f64(int level) { return SIMD_PICK(level, gram_table_f64); }
const gram_table *gram_table_f32(int level) { return SIMD_PICK(level, gram_table_f32); }
