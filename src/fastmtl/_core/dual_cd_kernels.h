/* The passes of dual coordinate descent over one chunk of observations of one task.
 *
 * A chunk reads two Gram rows, of either dtype; `column` maps its observations to Gram columns, and
 * is null where they are consecutive (the rows are then offset by the caller). Gradients, offsets
 * and steps are double throughout: they accumulate over many steps, Gram entries do not.
 */
#if VEC_BYTES
#define DLANES ((int)(VEC_BYTES / sizeof(double)))
typedef double NAME(dvec_t) __attribute__((vector_size(VEC_BYTES)));
typedef double NAME(dvec_unaligned_t)
    __attribute__((vector_size(VEC_BYTES), aligned(sizeof(double)), may_alias));
typedef int64_t NAME(dmask_t) __attribute__((vector_size(VEC_BYTES)));
typedef real NAME(gram_t) __attribute__((vector_size(DLANES * sizeof(real))));
typedef real NAME(gram_unaligned_t)
    __attribute__((vector_size(DLANES * sizeof(real)), aligned(sizeof(real)), may_alias));
#else
#define DLANES 1
typedef double NAME(dvec_t);
typedef int64_t NAME(dmask_t);
#endif
#define AHEAD 1024 /* entries; the hardware stops at each page */
#define dvec NAME(dvec_t)
#define dmask NAME(dmask_t)

#if VEC_BYTES
static inline dvec NAME(dload_)(const double *p) { return *(const NAME(dvec_unaligned_t) *)p; }
static inline void NAME(dstore_)(double *p, dvec v) { *(NAME(dvec_unaligned_t) *)p = v; }
static inline dvec NAME(dsplat_)(double a) { return a - (dvec){0}; }
static inline dvec NAME(choose_)(dmask where, dvec yes, dvec no) {
    return (dvec)(((dmask)yes & where) | ((dmask)no & ~where));
}
static inline dvec NAME(entries_)(const real *row, const int32_t *column, ptrdiff_t at) {
    if (!column) {
#if IS_F32
        return __builtin_convertvector((NAME(gram_t))*(const NAME(gram_unaligned_t) *)(row + at), dvec);
#else
        return *(const NAME(gram_unaligned_t) *)(row + at);
#endif
    }
#if FASTMTL_X86_TARGETS && TARGET_LEVEL == 2
    __m256i index = _mm256_loadu_si256((const __m256i *)(column + at));
#if IS_F32
    return (dvec)_mm512_cvtps_pd(_mm256_i32gather_ps(row, index, 4));
#else
    return (dvec)_mm512_i32gather_pd(index, row, 8);
#endif
#else
    dvec v;
    for (int lane = 0; lane < DLANES; lane++) v[lane] = row[column[at + lane]];
    return v;
#endif
}
#if FASTMTL_X86_TARGETS && TARGET_LEVEL == 2
#define LEAST(a, b) ((dvec)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define GREATEST(a, b) ((dvec)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
static inline int NAME(any_)(dmask where) { return _mm512_movepi64_mask((__m512i)where) != 0; }
#elif FASTMTL_X86_TARGETS && TARGET_LEVEL == 1
#define LEAST(a, b) ((dvec)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define GREATEST(a, b) ((dvec)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
static inline int NAME(any_)(dmask where) { return _mm256_movemask_pd((__m256d)where) != 0; }
#else
#define LEAST(a, b) NAME(choose_)((a) < (b), a, b)
#define GREATEST(a, b) NAME(choose_)((a) > (b), a, b)
static inline int NAME(any_)(dmask where) {
    int64_t any = 0;
    for (int lane = 0; lane < DLANES; lane++) any |= where[lane];
    return any != 0;
}
#endif
#endif

/* gradient += step_i k_i + step_j k_j; then the least slope of the observations that may go up and
 * the greatest of those that may go down: extremes[0], extremes[1]. */
static void NAME(step_chunk_)(
    const real *row_i, const real *row_j, const int32_t *column, ptrdiff_t n, double step_i,
    double step_j, const double *up, const double *down, double *gradient, double *extremes
) {
    double least = INFINITY, greatest = -INFINITY;
    ptrdiff_t at = 0;
#if VEC_BYTES
    dvec a = NAME(dsplat_)(step_i), b = NAME(dsplat_)(step_j);
    dvec low = NAME(dsplat_)(INFINITY), high = NAME(dsplat_)(-INFINITY);
    if (column) {
        for (; at + DLANES <= n; at += DLANES) {
            dvec g = NAME(dload_)(gradient + at) + a * NAME(entries_)(row_i, column, at) +
                     b * NAME(entries_)(row_j, column, at);
            NAME(dstore_)(gradient + at, g);
            low = LEAST(low, g + NAME(dload_)(up + at));
            high = GREATEST(high, g + NAME(dload_)(down + at));
        }
    } else {
        dvec low_1 = low, high_1 = high;
        for (; at + 2 * DLANES <= n; at += 2 * DLANES) {
            ptrdiff_t at_1 = at + DLANES;
            __builtin_prefetch(row_i + at + AHEAD);
            __builtin_prefetch(row_j + at + AHEAD);
#if !IS_F32
            __builtin_prefetch(row_i + at_1 + AHEAD);
            __builtin_prefetch(row_j + at_1 + AHEAD);
#endif
            dvec g = NAME(dload_)(gradient + at) + a * NAME(entries_)(row_i, NULL, at) +
                     b * NAME(entries_)(row_j, NULL, at);
            dvec g_1 = NAME(dload_)(gradient + at_1) + a * NAME(entries_)(row_i, NULL, at_1) +
                       b * NAME(entries_)(row_j, NULL, at_1);
            NAME(dstore_)(gradient + at, g);
            NAME(dstore_)(gradient + at_1, g_1);
            low = LEAST(low, g + NAME(dload_)(up + at));
            high = GREATEST(high, g + NAME(dload_)(down + at));
            low_1 = LEAST(low_1, g_1 + NAME(dload_)(up + at_1));
            high_1 = GREATEST(high_1, g_1 + NAME(dload_)(down + at_1));
        }
        low = LEAST(low, low_1);
        high = GREATEST(high, high_1);
    }
    for (int lane = 0; lane < DLANES; lane++) {
        if (low[lane] < least) least = low[lane];
        if (high[lane] > greatest) greatest = high[lane];
    }
#endif
    for (; at < n; at++) {
        ptrdiff_t entry = column ? column[at] : at;
        double g = gradient[at] + step_i * row_i[entry] + step_j * row_j[entry];
        gradient[at] = g;
        if (g + up[at] < least) least = g + up[at];
        if (g + down[at] > greatest) greatest = g + down[at];
    }
    extremes[0] = least;
    extremes[1] = greatest;
}

/* The partner of an observation that goes up with slope `slope` and own curvature `curvature`: the
 * one of the greatest (difference of slopes)² / curvature (Fan, Chen & Lin 2005, eq. 8). A pair
 * without curvature counts as `tiny`. Returns its place in the chunk, or -1 if none beats *gain. */
static ptrdiff_t NAME(partner_chunk_)(
    const real *row_i, const int32_t *column, ptrdiff_t n, double coupling, double slope,
    double curvature, double tiny, const double *gradient, const double *down,
    const double *diagonal, double *gain
) {
    double best = *gain;
    ptrdiff_t found = -1, at = 0;
#if VEC_BYTES
    /* Few observations beat all before them, so a product sieves and only those are divided; the
     * margin is for its rounding. */
    const double margin = 1 - 1e-12;
    dvec most = NAME(dsplat_)(best * margin), base = NAME(dsplat_)(slope);
    dvec twice = NAME(dsplat_)(2 * coupling), own = NAME(dsplat_)(curvature);
    dvec least = NAME(dsplat_)(tiny);
    for (; at + DLANES <= n; at += DLANES) {
        if (!column) __builtin_prefetch(row_i + at + AHEAD);
        dvec apart = NAME(dload_)(gradient + at) + NAME(dload_)(down + at) - base;
        dvec bend = own + NAME(dload_)(diagonal + at) - twice * NAME(entries_)(row_i, column, at);
        bend = GREATEST(bend, least);
        if (!NAME(any_)((apart * apart > most * bend) & (apart > 0))) continue;
        for (int lane = 0; lane < DLANES; lane++) {
            double score = apart[lane] * apart[lane] / bend[lane];
            if (apart[lane] > 0 && score > best) {
                best = score;
                found = at + lane;
            }
        }
        most = NAME(dsplat_)(best * margin);
    }
#endif
    for (; at < n; at++) {
        double apart = gradient[at] + down[at] - slope;
        if (!(apart > 0)) continue;
        double bend = curvature + diagonal[at] - 2 * coupling * row_i[column ? column[at] : at];
        double score = apart * apart / (bend > tiny ? bend : tiny);
        if (score > best) {
            best = score;
            found = at;
        }
    }
    *gain = best;
    return found;
}

const struct NAME(dual_cd_table_t) {
    void (*step)(
        const real *, const real *, const int32_t *, ptrdiff_t, double, double, const double *,
        const double *, double *, double *);
    ptrdiff_t (*partner)(
        const real *, const int32_t *, ptrdiff_t, double, double, double, double, const double *,
        const double *, const double *, double *);
} NAME(dual_cd_table) = {NAME(step_chunk_), NAME(partner_chunk_)};

#undef DLANES
#undef dvec
#undef AHEAD
#undef dmask
#undef LEAST
#undef GREATEST
