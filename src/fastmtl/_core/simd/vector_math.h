/* exp, logistic and tanh of a vector, for any target and dtype; included inside a kernel text.
 *
 * exp(x) = 2^n · p(r) with n the multiple of ln 2's 1/STEPS nearest to x / ln 2, r the rest, ln 2 in
 * two parts so that r is exact to rounding, and p the minimax polynomial (from its second power on)
 * to below half an ulp. AVX-512 has STEPS = 16 or 32, the fractional powers of 2 held in two
 * registers, so that half the polynomial is saved; the others have STEPS = 1. The logistic is taken
 * from e = exp(−|z|) ≤ 1, as 1 / (1 + e) or e / (1 + e) (on AVX-512, from both parts of a quotient
 * that is a power of 2), so nothing overflows, tiny results keep their relative accuracy, infinities
 * give 0 and 1, and NaN stays NaN.
 */
#define select_lanes NAME(select_lanes_)
#define if_negative NAME(if_negative_)
#define at_least NAME(at_least_)
#define minus_size NAME(minus_size_)
#define power_table NAME(power_table_)
#define at_most NAME(at_most_)
#define logistic_of_rest NAME(logistic_of_rest_)
#define vexp_negative NAME(vexp_negative_)
#define vlogistic NAME(vlogistic_)
#define vlogistic_2 NAME(vlogistic_2_)
#define vlogistic_slope NAME(vlogistic_slope_)
#define vtanh NAME(vtanh_)

#if VEC_BYTES

static inline vec select_lanes(ivec mask, vec yes, vec no) {
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

static inline vec minus_size(vec z) { return (vec)((ivec)z | (ivec)splat((real)-0.0)); }

/* By the sign bit: −0 and negative NaN count as negative. */
static inline vec if_negative(vec z, vec yes, vec no) {
#if TARGET_LEVEL == 2 && IS_F32
    return (vec)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)z), (__m512)no, (__m512)yes);
#elif TARGET_LEVEL == 2
    return (vec)_mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)z), (__m512d)no, (__m512d)yes);
#elif TARGET_LEVEL == 1 && IS_F32
    return (vec)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)z);
#elif TARGET_LEVEL == 1
    return (vec)_mm256_blendv_pd((__m256d)no, (__m256d)yes, (__m256d)z);
#else
    return select_lanes((ivec)z >> (8 * (int)sizeof(real) - 1), yes, no);
#endif
}

/* max(lowest, x) that keeps a NaN in x */
static inline vec at_least(vec lowest, vec x) {
#if TARGET_LEVEL == 2 && IS_F32
    return (vec)_mm512_max_ps((__m512)lowest, (__m512)x);
#elif TARGET_LEVEL == 2
    return (vec)_mm512_max_pd((__m512d)lowest, (__m512d)x);
#elif TARGET_LEVEL == 1 && IS_F32
    return (vec)_mm256_max_ps((__m256)lowest, (__m256)x);
#elif TARGET_LEVEL == 1
    return (vec)_mm256_max_pd((__m256d)lowest, (__m256d)x);
#else
    return select_lanes(x < lowest, lowest, x);
#endif
}

#if TARGET_LEVEL == 2 && IS_F32
static const float power_table[32] __attribute__((aligned(64))) = {
    1.0f, 1.021897149f, 1.044273782f, 1.067140401f, 1.090507733f, 1.114386743f,
    1.138788635f, 1.163724859f, 1.189207115f, 1.21524736f, 1.241857812f, 1.269050957f,
    1.296839555f, 1.325236643f, 1.354255547f, 1.383909882f, 1.414213562f, 1.445180807f,
    1.476826146f, 1.509164428f, 1.542210825f, 1.575980845f, 1.610490332f, 1.645755478f,
    1.681792831f, 1.718619298f, 1.75625216f, 1.794709075f, 1.834008086f, 1.874167634f,
    1.915206561f, 1.957144124f,
};
#elif TARGET_LEVEL == 2
static const double power_table[16] __attribute__((aligned(64))) = {
    1.0, 1.04427378242741384, 1.09050773266525766, 1.13878863475669165,
    1.18920711500272107, 1.24185781207348405, 1.29683955465100967, 1.35425554693689273,
    1.41421356237309505, 1.47682614593949931, 1.54221082540794082, 1.61049033194925431,
    1.68179283050742909, 1.75625216037329948, 1.83400808640934246, 1.91520656139714729,
};
#endif

/* exp(x) for x ≤ 0 */
static inline vec vexp_negative(vec x) {
#if TARGET_LEVEL == 2 && IS_F32
    const vec magic = splat(12582912.0f / 32);
#elif TARGET_LEVEL == 2
    const vec magic = splat(6755399441055744.0 / 16);
#else
    const vec magic = splat((real)(IS_F32 ? 12582912.0 : 6755399441055744.0));
#endif
    x = at_least(splat((real)(IS_F32 ? -104.0 : -746.0)), x);
    const vec shifted = x * splat((real)1.4426950408889634) + magic;
    const vec n = shifted - magic;
#if IS_F32
    vec r = x - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
#else
    vec r = x - n * splat(6.93147180369123816490e-01);
    r = r - n * splat(1.90821492927058770002e-10);
#endif
#if TARGET_LEVEL == 2
    /* The low bits of `shifted` are the fraction of n. */
#if IS_F32
    const vec power = (vec)_mm512_permutex2var_ps(
        _mm512_load_ps(power_table), (__m512i)shifted, _mm512_load_ps(power_table + 16));
    vec p = splat(0.500011058761520228f);
    p = p * r + splat(1.00001474522929247f);
    p = p * r;
    p = p * power + power;
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const vec power = (vec)_mm512_permutex2var_pd(
        _mm512_load_pd(power_table), (__m512i)shifted, _mm512_load_pd(power_table + 8));
    vec p = splat(0.00138885940074739073);
    p = p * r + splat(0.00833347194847556543);
    p = p * r + splat(0.0416666666932605393);
    p = p * r + splat(0.166666666644170712);
    p = p * r + splat(0.499999999999996041);
    p = p * r + splat(1.0);
    p = p * r;
    p = p * power + power;
    return (vec)_mm512_scalef_pd((__m512d)p, (__m512d)n);
#endif
#else
#if IS_F32
    vec p = splat(0.00138145986466640345f);
    p = p * r + splat(0.00836871687972813995f);
    p = p * r + splat(0.0416683880453139967f);
    p = p * r + splat(0.166665206317094969f);
    p = p * r + splat(0.499999934477964868f);
#else
    vec p = splat(2.50000616028356667e-8);
    p = p * r + splat(2.7630248379211444e-7);
    p = p * r + splat(2.75575863738401637e-6);
    p = p * r + splat(0.0000248014930989065507);
    p = p * r + splat(0.000198412695065786877);
    p = p * r + splat(0.00138888889436301129);
    p = p * r + splat(0.00833333333349446166);
    p = p * r + splat(0.0416666666665301586);
    p = p * r + splat(0.166666666666664125);
    p = p * r + splat(0.500000000000001063);
#endif
    p = p * r + splat(1);
    p = p * r + splat(1);
    /* 2^n in two factors, so that results below the smallest normal number come out right. The
     * low bits of `shifted` are n; those of `half` are about n / 2. */
    const vec half = n * splat((real)0.5) + magic;
    const ivec first = (ivec)half - (ivec)magic;
    const ivec second = (ivec)shifted - (ivec)magic - first;
#if IS_F32
    return p * (vec)((first + 127) << 23) * (vec)((second + 127) << 23);
#else
    return p * (vec)((first + 1023) << 52) * (vec)((second + 1023) << 52);
#endif
#endif
}

#if TARGET_LEVEL == 2
/* min(highest, x) that keeps a NaN in x */
static inline vec at_most(vec highest, vec x) {
#if IS_F32
    return (vec)_mm512_min_ps((__m512)highest, (__m512)x);
#else
    return (vec)_mm512_min_pd((__m512d)highest, (__m512d)x);
#endif
}

/* 1 / (1 + 2^−(m + r)) with m a multiple of 1/STEPS, whose fraction `shifted` ends in. With
 * K = r·coth(r·ln 2 / 2), 2^−r is (K − r) / (K + r) and K is even in r: few terms. The logistic is
 * then 2^m (K + r) / (2^m (K + r) + (K − r)). */
static inline vec logistic_of_rest(vec shifted, vec m, vec r) {
#if IS_F32
    vec power = (vec)_mm512_permutex2var_ps(
        _mm512_load_ps(power_table), (__m512i)shifted, _mm512_load_ps(power_table + 16));
    power = (vec)_mm512_scalef_ps((__m512)power, (__m512)m);
    const vec k = splat(2.88541123f);
#else
    vec power = (vec)_mm512_permutex2var_pd(
        _mm512_load_pd(power_table), (__m512i)shifted, _mm512_load_pd(power_table + 8));
    power = (vec)_mm512_scalef_pd((__m512d)power, (__m512d)m);
    const vec square = r * r;
    vec k = splat(-0.000925052945680964853) * square + splat(0.115524530087624846);
    k = k * square + splat(2.8853900817779268);
#endif
    const vec part = power * (k + r);
    return part / ((k - r) + part);
}

/* z + POWER_MAGIC is z rounded to a multiple of 1/STEPS, whose integer the low bits are. */
#define POWER_MAGIC splat((real)(IS_F32 ? 12582912.0 / 32 : 6755399441055744.0 / 16))

static inline vec vlogistic(vec z) {
    z = at_most(splat(60), at_least(splat((real)(IS_F32 ? -104 : -746)), z));
    const vec log2_e = splat((real)1.4426950408889634);
    const vec shifted = z * log2_e + POWER_MAGIC;
    const vec m = shifted - POWER_MAGIC;
    const vec r = z * splat((real)(IS_F32 ? 1.9259629911e-8 : 2.0355273740931033e-17)) +
                  (z * log2_e - m);
    return logistic_of_rest(shifted, m, r);
}

/* 1 / (1 + 2^−z): m and r cost additions only. */
static inline vec vlogistic_2(vec z) {
    z = at_most(splat(64), at_least(splat((real)(IS_F32 ? -160 : -1100)), z));
    const vec shifted = z + POWER_MAGIC;
    const vec m = shifted - POWER_MAGIC;
    return logistic_of_rest(shifted, m, z - m);
}
#else
static inline vec vlogistic(vec z) {
    const vec e = vexp_negative(minus_size(z));
    return if_negative(z, e, splat(1)) / (splat(1) + e);
}
#endif

/* The derivative e / (1 + e)², which keeps its relative accuracy in both tails */
static inline vec vlogistic_slope(vec z) {
    const vec e = vexp_negative(minus_size(z)), whole = splat(1) + e;
    return e / (whole * whole);
}

/* tanh z = ±(1 − e) / (1 + e) with e = exp(−2|z|); near 0, where that cancels, its series. */
static inline vec vtanh(vec z) {
    const vec size = -minus_size(z);
    const vec e = vexp_negative(splat(-2) * size);
    const vec far = (splat(1) - e) / (splat(1) + e);
    const vec square = z * z;
    vec near = splat((real)(-1382.0 / 155925));
    near = near * square + splat((real)(62.0 / 2835));
    near = near * square + splat((real)(-17.0 / 315));
    near = near * square + splat((real)(2.0 / 15));
    near = near * square + splat((real)(-1.0 / 3));
    near = size + size * square * near;
    const vec result = select_lanes(size < splat((real)(IS_F32 ? 0.25 : 0.05)), near, far);
    return if_negative(z, -result, result);
}

#else /* no vector types: the C library's functions on one number */

static inline vec vexp_negative(vec x) { return (real)exp((double)x); }
static inline vec vlogistic(vec z) {
    const double e = exp(-fabs((double)z));
    return (real)((z < 0 ? e : 1.0) / (1.0 + e));
}
static inline vec vlogistic_slope(vec z) {
    const double e = exp(-fabs((double)z));
    return (real)(e / ((1.0 + e) * (1.0 + e)));
}
static inline vec vtanh(vec z) { return (real)tanh((double)z); }

#endif
