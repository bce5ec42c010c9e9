#define KERNELS "group_cd_kernels.h"
#include "simd/each_target.h"
