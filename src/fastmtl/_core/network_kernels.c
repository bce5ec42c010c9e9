#include "network.h"
#define KERNELS "network_kernels.h"
#include "simd/each_target.h"

const network_table *network_kernels(int level, int is_f32) {
    if (is_f32) return SIMD_PICK(level, network_table_f32);
    return SIMD_PICK(level, network_table_f64);
}
