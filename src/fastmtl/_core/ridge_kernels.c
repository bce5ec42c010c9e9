#include "ridge.h"
#define KERNELS "ridge_kernels.h"
#include "simd/each_target.h"
