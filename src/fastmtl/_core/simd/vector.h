/* The vector type of one (target, dtype), and the few operations on it that C's operators lack. */
#if VEC_BYTES
typedef real NAME(vec_t) __attribute__((vector_size(VEC_BYTES)));
typedef real NAME(vec_unaligned_t) __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));
typedef INT_LANE NAME(ivec_t) __attribute__((vector_size(VEC_BYTES)));
#define LANES ((int)(VEC_BYTES / sizeof(real)))
#else
typedef real NAME(vec_t);
typedef real NAME(vec_unaligned_t);
typedef INT_LANE NAME(ivec_t);
#define LANES 1
#endif
#define vec NAME(vec_t)
#define ivec NAME(ivec_t)

#define load NAME(load_)
#define store NAME(store_)
#define splat NAME(splat_)
#define sum_lanes NAME(sum_lanes_)
#define dot NAME(dot_)

static inline vec load(const real *p) { return *(const NAME(vec_unaligned_t) *)p; }
static inline void store(real *p, vec v) { *(NAME(vec_unaligned_t) *)p = v; }
#if VEC_BYTES
static inline vec splat(real a) { return a - (vec){0}; }
#if TARGET_LEVEL == 2 && IS_F32
static inline real sum_lanes(vec v) { return _mm512_reduce_add_ps((__m512)v); }
#elif TARGET_LEVEL == 2
static inline real sum_lanes(vec v) { return _mm512_reduce_add_pd((__m512d)v); }
#else
static inline real sum_lanes(vec v) {
    real buffer[LANES];
    memcpy(buffer, &v, sizeof v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) buffer[i] += buffer[i + half];
    return buffer[0];
}
#endif
#else
static inline vec splat(real a) { return a; }
static inline real sum_lanes(vec v) { return v; }
#endif

#define vsqrt NAME(vsqrt_)
static inline vec vsqrt(vec v) {
#if TARGET_LEVEL == 2 && IS_F32
    return (vec)_mm512_sqrt_ps((__m512)v);
#elif TARGET_LEVEL == 2
    return (vec)_mm512_sqrt_pd((__m512d)v);
#elif TARGET_LEVEL == 1 && IS_F32
    return (vec)_mm256_sqrt_ps((__m256)v);
#elif TARGET_LEVEL == 1
    return (vec)_mm256_sqrt_pd((__m256d)v);
#else
    real lanes[LANES];
    store(lanes, v);
    for (int l = 0; l < LANES; l++) lanes[l] = (real)sqrt(lanes[l]);
    return load(lanes);
#endif
}

/* The first n < LANES elements, the other lanes zero; nothing beyond them is touched. */
#define load_partial NAME(load_partial_)
#define store_partial NAME(store_partial_)
#if TARGET_LEVEL == 2 && IS_F32
static inline vec load_partial(const real *p, int n) {
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void store_partial(real *p, vec v, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
#elif TARGET_LEVEL == 2
static inline vec load_partial(const real *p, int n) {
    return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
static inline void store_partial(real *p, vec v, int n) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#else
static inline vec load_partial(const real *p, int n) {
    real buffer[LANES] = {0};
    for (int i = 0; i < n; i++) buffer[i] = p[i];
    return load(buffer);
}
static inline void store_partial(real *p, vec v, int n) {
    real buffer[LANES];
    store(buffer, v);
    for (int i = 0; i < n; i++) p[i] = buffer[i];
}
#endif

/* x·y over n elements. */
static inline real dot(const real *x, const real *y, ptrdiff_t n) {
    vec total_0 = splat(0), total_1 = splat(0);
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        total_0 += load(x + i) * load(y + i);
        total_1 += load(x + i + LANES) * load(y + i + LANES);
    }
    if (i + LANES <= n) {
        total_0 += load(x + i) * load(y + i);
        i += LANES;
    }
    real total = sum_lanes(total_0 + total_1);
    for (; i < n; i++) total += x[i] * y[i];
    return total;
}

/* LANES vectors of LANES numbers, transposed in place: after round h the h×h squares are right. */
#define transpose_square NAME(transpose_square_)
static inline __attribute__((always_inline)) void transpose_square(vec *rows) {
#if VEC_BYTES && defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 4
    for (int half = 1; half < LANES; half *= 2) {
        ivec low, high;
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) {
            low[l] = l & half ? LANES + l - half : l;
            high[l] = l & half ? LANES + l : l + half;
        }
#pragma GCC unroll 16
        for (int a = 0; a < LANES; a++) {
            if (a & half) continue;
            const vec upper = rows[a], lower = rows[a + half];
            rows[a] = __builtin_shuffle(upper, lower, low);
            rows[a + half] = __builtin_shuffle(upper, lower, high);
        }
    }
#elif VEC_BYTES
    for (int a = 1; a < LANES; a++)
        for (int b = 0; b < a; b++) {
            const real kept = rows[a][b];
            rows[a][b] = rows[b][a];
            rows[b][a] = kept;
        }
#else
    (void)rows;
#endif
}
