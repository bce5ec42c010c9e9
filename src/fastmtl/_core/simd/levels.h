/* Which instruction sets this build holds, and which this machine can run. */
#ifndef FASTMTL_LEVELS_H
#define FASTMTL_LEVELS_H

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define FASTMTL_X86_TARGETS 1
#else
#define FASTMTL_X86_TARGETS 0
#endif

enum { SIMD_BASE = 0, SIMD_AVX2 = 1, SIMD_AVX512 = 2 };

/* The highest level that both the CPU and the operating system (saved register state) support. */
static inline int simd_detect(void) {
#if FASTMTL_X86_TARGETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return SIMD_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SIMD_AVX2;
#endif
    return SIMD_BASE;
}

static inline const char *simd_base_name(void) {
#if defined(__aarch64__)
    return "neon";
#else
    return "base";
#endif
}

/* One entry per level; a level that this build lacks falls back to the base kernels. */
#if FASTMTL_X86_TARGETS
#define SIMD_PICK(level, prefix) \
    ((level) == SIMD_AVX512 ? &prefix##_avx512 : (level) == SIMD_AVX2 ? &prefix##_avx2 : &prefix##_base)
#else
#define SIMD_PICK(level, prefix) ((void)(level), &prefix##_base)
#endif

#endif
