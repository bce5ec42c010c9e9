/* exp, logistic and tanh of a vector, for any target and dtype; included inside a kernel text.
 *
 * exp(x) = 2^n · p(r) with n = round(x / ln 2) and r in ±ln 2 / 2, ln 2 in two parts so that r is
 * exact to rounding, p the Taylor polynomial to below half an ulp. The logistic is taken from
 * e = exp(−|z|) ≤ 1, as 1 / (1 + e) or e / (1 + e), so nothing overflows, tiny results keep their
 * relative accuracy, infinities give 0 and 1, and NaN stays NaN.
 */
#define select_lanes NAME(select_lanes_)
#define vexp_negative NAME(vexp_negative_)
#define vlogistic NAME(vlogistic_)
#define vtanh NAME(vtanh_)

#if VEC_BYTES

static inline vec select_lanes(ivec mask, vec yes, vec no) {
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

/* exp(x) for x ≤ 0 */
static inline vec vexp_negative(vec x) {
#if IS_F32
    const vec lowest = splat(-104.0f), magic = splat(12582912.0f);
    x = select_lanes(x < lowest, lowest, x);
    const vec shifted = x * splat(1.44269504088896341f) + magic;
    const vec n = shifted - magic;
    vec r = x - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    vec p = splat(1.0f / 5040);
    p = p * r + splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
#else
    const vec lowest = splat(-746.0), magic = splat(6755399441055744.0);
    x = select_lanes(x < lowest, lowest, x);
    const vec shifted = x * splat(1.4426950408889634) + magic;
    const vec n = shifted - magic;
    vec r = x - n * splat(6.93147180369123816490e-01);
    r = r - n * splat(1.90821492927058770002e-10);
    vec p = splat(1.0 / 6227020800);
    p = p * r + splat(1.0 / 479001600);
    p = p * r + splat(1.0 / 39916800);
    p = p * r + splat(1.0 / 3628800);
    p = p * r + splat(1.0 / 362880);
    p = p * r + splat(1.0 / 40320);
    p = p * r + splat(1.0 / 5040);
    p = p * r + splat(1.0 / 720);
    p = p * r + splat(1.0 / 120);
    p = p * r + splat(1.0 / 24);
    p = p * r + splat(1.0 / 6);
    p = p * r + splat(0.5);
    p = p * r + splat(1.0);
    p = p * r + splat(1.0);
#endif
#if TARGET_LEVEL == 2 && IS_F32
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#elif TARGET_LEVEL == 2
    return (vec)_mm512_scalef_pd((__m512d)p, (__m512d)n);
#else
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

static inline vec vlogistic(vec z) {
    const ivec negative = z < splat(0);
    const vec e = vexp_negative(select_lanes(negative, z, -z));
    return select_lanes(negative, e, splat(1)) / (splat(1) + e);
}

/* tanh z = ±(1 − e) / (1 + e) with e = exp(−2|z|); near 0, where that cancels, its series. */
static inline vec vtanh(vec z) {
    const ivec negative = z < splat(0);
    const vec size = select_lanes(negative, -z, z);
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
    return select_lanes(negative, -result, result);
}

#else /* no vector types: the C library's functions on one number */

static inline vec vexp_negative(vec x) { return (real)exp((double)x); }
static inline vec vlogistic(vec z) {
    const double e = exp(-fabs((double)z));
    return (real)((z < 0 ? e : 1.0) / (1.0 + e));
}
static inline vec vtanh(vec z) { return (real)tanh((double)z); }

#endif
