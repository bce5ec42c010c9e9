/* Compiles one kernel text for every instruction set and both dtypes.
 *
 * A module's NAME_kernels.c defines KERNELS as the quoted name of its text and includes this file.
 * The text is then read once per target and dtype with these set:
 *
 *   real        float or double
 *   IS_F32      1 for float, 0 for double
 *   VEC_BYTES   width of a vector register: 64, 32 or 16 (0: the compiler has no vector types)
 *   vec, LANES  the vector of `real` and its number of lanes (scalar and 1 where VEC_BYTES is 0)
 *   ivec        the integer vector that comparisons of `vec` yield
 *   NAME(f)     f with the suffix of dtype and target: f_f64_avx512
 *
 * Regions, not per-file flags, choose the instruction set: nothing outside a region, and so no
 * inline function of the C library, can end up with instructions that the plainest CPU lacks.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>
#include "simd/levels.h"

#if !defined(__GNUC__)
#define __attribute__(list)
#endif

#define JOIN_(a, b, c) a##b##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(f) JOIN(f, DTYPE_SUFFIX, TARGET_SUFFIX)

#if FASTMTL_X86_TARGETS
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define TARGET_SUFFIX _avx512
#define TARGET_LEVEL 2
#define VEC_BYTES 64
#include "simd/each_dtype.h"
#undef TARGET_SUFFIX
#undef TARGET_LEVEL
#undef VEC_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define TARGET_SUFFIX _avx2
#define TARGET_LEVEL 1
#define VEC_BYTES 32
#include "simd/each_dtype.h"
#undef TARGET_SUFFIX
#undef TARGET_LEVEL
#undef VEC_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif /* FASTMTL_X86_TARGETS */

#define TARGET_SUFFIX _base
#define TARGET_LEVEL 0
#if defined(__GNUC__)
#define VEC_BYTES 16
#else
#define VEC_BYTES 0
#endif
#include "simd/each_dtype.h"
#undef TARGET_SUFFIX
#undef TARGET_LEVEL
#undef VEC_BYTES
