/* One target, both dtypes: see each_target.h. No include guard: read once per target. */
#define real double
#define IS_F32 0
#define DTYPE_SUFFIX _f64
#define INT_LANE int64_t
#include "simd/vector.h"
#include KERNELS
#include "simd/vector_end.h"
#undef real
#undef IS_F32
#undef DTYPE_SUFFIX
#undef INT_LANE

#define real float
#define IS_F32 1
#define DTYPE_SUFFIX _f32
#define INT_LANE int32_t
#include "simd/vector.h"
#include KERNELS
#include "simd/vector_end.h"
#undef real
#undef IS_F32
#undef DTYPE_SUFFIX
#undef INT_LANE
