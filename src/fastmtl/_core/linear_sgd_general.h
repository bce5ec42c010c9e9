/* The steps beyond plain ones: l1 and elastic-net penalties, AdaGrad, averaging, clipping.
 *
 * A vector w is `root` times a whitened one, u: root is 1 for s_r and √κ_t for v_t. With q_i a
 * coordinate of the loss's gradient in u, and η_i its rate,
 *
 *   u_i ← soft(u_i − η_i q_i, η_i λ₁) / (1 + η_i λ₂)        soft(z, c) = sign(z) max(|z| − c, 0)
 *
 * where λ₁ and λ₂ are the penalty's strengths times how seldom the coordinate is touched, so that
 * a row of CSR touches its own coordinates only and zeros are exact. AdaGrad (Duchi, Hazan and
 * Singer, 2011) has η_i = η / √(Σ q_i²) and otherwise η_i = η, damped as in the plain step.
 *
 * Averaging is lazy too. If the j-th step changes a coordinate by δ_j, the mean of its values after
 * steps 1..m is its last value − (1/m) Σ_j (j − 1) δ_j; that sum is the coordinate's `drift`.
 */
enum { NAME(block) = 64 / sizeof(real) }; /* vectors are a multiple of it */
#define BLOCK NAME(block)

typedef struct {
    double root, l1, l2, rate, lag;
} NAME(rule);

typedef struct {
    const real *x;
    const int32_t *indices;
    int64_t length;
    int dense;
    vec unit; /* dense: what the row has in the intercept's place */
} NAME(row);

static inline double NAME(soft)(double z, double threshold) {
    return z > threshold ? z - threshold : z < -threshold ? z + threshold : 0.0;
}

static inline void NAME(general_coordinate)(real *w, double *squares, double *drift, double q,
                                            double seldom, const NAME(rule) *rule) {
    double rate = rule->rate;
    if (squares) {
        *squares += q * q;
        rate = *squares > 0 ? rate / sqrt(*squares) : 0.0;
    }
    const double before = *w, weight = rate * seldom;
    const double moved = NAME(soft)(before - rule->root * rate * q, rule->root * weight * rule->l1);
    *w = (real)(moved / (1.0 + weight * rule->l2));
    if (drift) *drift += rule->lag * ((double)*w - before);
}

/* soft() of a vector; a NaN stays one. */
static inline vec NAME(soft_lanes)(vec z, vec threshold) {
#if VEC_BYTES
    const ivec sign = (ivec)z & (ivec)splat((real)-0.0);
    const vec excess = (vec)((ivec)z ^ sign) - threshold;
    return (vec)(((ivec)excess | sign) & ~(excess <= splat(0)));
#else
    return (real)NAME(soft)(z, threshold);
#endif
}

/* sums ← sums + factor a b, in doubles whatever the dtype; returned rounded to it. */
static inline vec NAME(add_products)(double *sums, double factor, vec a, vec b) {
#if IS_F32 && TARGET_LEVEL == 1 /* which GCC makes no vectors of */
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a));
    __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1));
    low *= factor * _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)b));
    high *= factor * _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)b, 1));
    low += _mm256_loadu_pd(sums);
    high += _mm256_loadu_pd(sums + 4);
    _mm256_storeu_pd(sums, low);
    _mm256_storeu_pd(sums + 4, high);
    return (vec)_mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
#elif IS_F32 || !VEC_BYTES
    real left[LANES], right[LANES];
    double total[LANES];
    store(left, a);
    store(right, b);
    memcpy(total, sums, sizeof total);
    for (int l = 0; l < LANES; l++) {
        total[l] += factor * left[l] * right[l];
        left[l] = (real)total[l];
    }
    memcpy(sums, total, sizeof total);
    return load(left);
#else
    const vec total = load(sums) + splat(factor) * a * b;
    store(sums, total);
    return total;
#endif
}

/* The same of LANES coordinates of a dense row, in the data's dtype but for the sums. */
static inline void NAME(general_block)(real *w, double *squares, double *drift, vec x, vec c,
                                       vec seldom, vec keep, const NAME(rule) *rule) {
    const vec before = load(w), q = c * x;
    vec rate = splat((real)rule->rate);
    if (squares) {
        const vec sum = NAME(add_products)(squares, 1.0, q, q);
#if VEC_BYTES
        rate = (vec)((ivec)(rate / vsqrt(sum)) & (sum > splat(0)));
#else
        rate = sum > 0 ? rate / vsqrt(sum) : 0;
#endif
        keep = splat(1) / (splat(1) + rate * seldom * splat((real)rule->l2));
    }
    const vec reach = splat((real)rule->root) * rate;
    const vec after = keep * NAME(soft_lanes)(before - reach * q, reach * seldom * splat((real)rule->l1));
    store(w, after);
    if (drift) NAME(add_products)(drift, rule->lag, after - before, splat(1));
}

/* A whole vector of a dense row; with `unit` set, its intercept as a coordinate like any. */
static inline void NAME(general_dense)(real *w, double *squares, double *drift, const real *x,
                                       int64_t d, int64_t stride, vec unit, real c, real seldom,
                                       const NAME(rule) *rule) {
    const vec keep = splat((real)(1.0 / (1.0 + rule->rate * seldom * rule->l2)));
    for (int64_t i = 0; i < stride; i += LANES)
        NAME(general_block)(w + i, squares ? squares + i : NULL, drift ? drift + i : NULL,
                            i + LANES <= d ? load(x + i) : NAME(row_tail)(x, i, d, stride, unit),
                            splat(c), splat(seldom), keep, rule);
}

/* `c` x is the gradient; `seldom` holds for the intercept, and where there is no `spread`. */
static inline void NAME(general_vector)(real *w, double *squares, double *drift, NAME(row) row,
                                        double c, const real *spread, double seldom,
                                        const NAME(rule) *rule, int64_t last, int intercept) {
    if (row.dense) {
        NAME(general_dense)(w, squares, drift, row.x, row.length, last + 1, row.unit, (real)c,
                            (real)seldom, rule);
        return;
    }
    for (int64_t z = 0; z < row.length; z++) {
        const int64_t i = row.indices[z];
        NAME(general_coordinate)(w + i, squares ? squares + i : NULL, drift ? drift + i : NULL,
                                 c * row.x[z], spread ? spread[i] : seldom, rule);
    }
    if (intercept)
        NAME(general_coordinate)(w + last, squares ? squares + last : NULL,
                                 drift ? drift + last : NULL, c, seldom, rule);
}

static inline void NAME(general_intercept)(const sgd_problem *P, int64_t class_, double g,
                                           const NAME(rule) *rule) {
    double rate = rule->rate;
    if (P->intercept_squares) {
        double *squares = P->intercept_squares + class_;
        *squares += g * g;
        rate = *squares > 0 ? rate / sqrt(*squares) : 0.0;
    }
    P->intercept[class_] -= rate * g;
    if (P->intercept_drift) P->intercept_drift[class_] -= rule->lag * rate * g;
}

/* Shortens a sample's gradient over all it touches, of length |g| √curvature, to `clip`. */
static inline void NAME(clip_gradient)(const sgd_problem *P, const sgd_sample *sample, double *g,
                                       int64_t heads) {
    double squares = 0.0;
    for (int64_t j = 0; j < heads; j++) squares += g[j] * g[j];
    const double root = sqrt(sample->curvature), length = sqrt(squares) * root;
    if (!(length > P->clip)) return;
    if (heads == 1)
        g[0] = copysign(P->clip / root, g[0]); /* an overflow, too, has a direction */
    else
        for (int64_t j = 0; j < heads; j++) g[j] *= P->clip / length;
}

static inline NAME(row) NAME(row_of)(const sgd_problem *P, const sgd_sample *sample, vec unit) {
    const real *X = (const real *)P->X;
    if (!P->indptr) return (NAME(row)){X + sample->row * P->row_stride, NULL, P->d, 1, unit};
    const int64_t begin = P->indptr[sample->row];
    return (NAME(row)){X + begin, P->indices + begin, P->indptr[sample->row + 1] - begin, 0, unit};
}

/* The same row, as the task's own vectors have it. */
static inline NAME(row) NAME(own_row)(const sgd_problem *P, const sgd_sample *sample, vec unit) {
    NAME(row) row = NAME(row_of)(P, sample, unit);
    if (P->indptr) row.indices = P->position + P->indptr[sample->row];
    return row;
}

static inline void NAME(scores_any)(const sgd_problem *P, const sgd_sample *sample, vec unit,
                                    double *score) {
    if (P->indptr)
        NAME(scores_csr)(P, sample, score);
    else
        NAME(scores_dense)(P, sample, unit, score);
}

static double NAME(sgd_general)(const sgd_problem *P, const int64_t *order, int64_t count,
                                int64_t step) {
    real *shared = (real *)P->shared, *specific = (real *)P->specific;
    const real *shared_spread = (const real *)P->shared_spread;
    const real *specific_spread = (const real *)P->specific_spread;
    const int64_t stride = P->stride, last = stride - 1, R = P->n_shared;
    const int coupled = P->intercept_kind == INTERCEPT_COUPLED, common = NAME(has_common_intercept)(P);
    const vec unit = NAME(unit_vector)(P);
    double *score = P->scratch, *g = P->scratch + P->memory_stride, total = 0.0;

    for (int64_t k = 0; k < count; k++, step += P->pace) {
        if (!P->indptr) NAME(fetch_ahead)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const int64_t task = sample->task, first = P->head_start[task];
        const int64_t heads = P->head_start[task + 1] - first;
        const double *mixing = P->mixing + task * R, kappa = P->kappa[task];
        const NAME(row) row = NAME(row_of)(P, sample, unit), own = NAME(own_row)(P, sample, unit);

        NAME(scores_any)(P, sample, unit, score);
        total += NAME(derivatives)(P, sample, score, g, heads);
        if (P->clip > 0) NAME(clip_gradient)(P, sample, g, heads);

        const double rate = NAME(rate_at)(P, step);
        const double damping = P->intercept_squares ? 1.0 : NAME(damped)(P, sample, rate, g[0]);
        const double lag = step > P->average_from ? (double)(step - P->average_from) : 0.0;
        const NAME(rule) for_shared = {1.0, P->alpha * P->shared_l1, P->alpha * P->shared_l2, rate, lag};
        const NAME(rule) for_task = {sqrt(kappa), P->alpha * P->task_l1, P->alpha * P->task_l2, rate, lag};
        const NAME(rule) unpenalised = {1.0, 0.0, 0.0, rate, lag};
        for (int64_t j = 0; j < heads; j++) {
            const int64_t class_ = P->head_class[first + j], head = NAME(vector_at)(P, first + j);
            const int64_t end = NAME(last_of)(P, first + j);
            const double move = damping * g[j];
            for (int64_t r = 0; r < R; r++) {
                const int64_t at = (r * P->n_classes + class_) * stride;
                NAME(general_vector)(shared + at, P->shared_squares ? P->shared_squares + at : NULL,
                                     P->shared_drift ? P->shared_drift + at : NULL, row,
                                     mixing[r] * move,
                                     shared_spread ? shared_spread + class_ * stride : NULL,
                                     P->class_rarity[class_], &for_shared, last, coupled);
            }
            double *squares = P->specific_squares ? P->specific_squares + head : NULL;
            double *drift = P->specific_drift ? P->specific_drift + head : NULL;
            const real intercept = specific[head + end];
            const double lag_before = drift ? drift[end] : 0.0;
            if (kappa > 0)
                NAME(general_vector)(specific + head, squares, drift, own, for_task.root * move,
                                     specific_spread ? specific_spread + P->vector_start[first] : NULL,
                                     P->task_rarity[task], &for_task, end, coupled);
            if (P->intercept_kind == INTERCEPT_FREE) {
                specific[head + end] = intercept; /* not shrunk */
                if (drift) drift[end] = lag_before;
                NAME(general_coordinate)(specific + head + end, squares ? squares + end : NULL,
                                         drift ? drift + end : NULL, move, 0.0, &unpenalised);
            }
            if (common) NAME(general_intercept)(P, class_, move, &unpenalised);
        }
    }
    return total;
}

/* w ← keep soft(w − step x − rate a, threshold),  a ← a + move x, of a dense row; in doubles, for
 * what they round to bounds how near the minimum SAGA comes. */
static inline void NAME(saga_soft_step)(real *w, real *a, double keep, double threshold, double step,
                                        double rate, double move, const real *x, int64_t d,
                                        int64_t stride, vec unit) {
    for (int64_t i = 0; i < stride; i += BLOCK) {
        real row[BLOCK];
        for (int64_t l = i; l < i + BLOCK; l += LANES)
            store(row + (l - i), l + LANES <= d ? load(x + l) : NAME(row_tail)(x, l, d, stride, unit));
#if IS_F32 || !VEC_BYTES
        real before[BLOCK], after[BLOCK], average[BLOCK];
        memcpy(before, w + i, sizeof before);
        memcpy(average, a + i, sizeof average);
        for (int l = 0; l < BLOCK; l++) {
            const double z = before[l] - step * row[l] - rate * average[l];
            const double at_most = z < threshold ? z : threshold;
            after[l] = (real)(keep * (z - (at_most > -threshold ? at_most : -threshold)));
            average[l] = (real)(average[l] + move * row[l]);
        }
        memcpy(w + i, after, sizeof after);
        memcpy(a + i, average, sizeof average);
#else
        for (int64_t l = 0; l < BLOCK; l += LANES) {
            const vec x_l = load(row + l), mean = load(a + i + l);
            const vec z = load(w + i + l) - splat(step) * x_l - splat(rate) * mean;
            store(w + i + l, splat(keep) * NAME(soft_lanes)(z, splat(threshold)));
            store(a + i + l, mean + splat(move) * x_l);
        }
#endif
    }
}

/* w ← prox(w − rate root² (c x + seldom a)),  a ← a + c x / n */
static inline void NAME(saga_general_vector)(const sgd_problem *P, real *w, real *a, NAME(row) row,
                                             double c, const real *spread, double seldom,
                                             const NAME(rule) *rule, int64_t last, int intercept) {
    const double step = rule->rate * rule->root * rule->root, share = c / (double)P->n_samples;
    if (row.dense) {
        const double weight = rule->rate * seldom;
        NAME(saga_soft_step)(w, a, 1.0 / (1.0 + weight * rule->l2), rule->root * weight * rule->l1,
                             step * c, step * seldom, share, row.x, row.length, last + 1, row.unit);
        return;
    }
    for (int64_t z = 0; z < row.length + intercept; z++) {
        const int at_end = z == row.length;
        const int64_t i = at_end ? last : row.indices[z];
        const double x = at_end ? 1.0 : row.x[z], often = spread && !at_end ? spread[i] : seldom;
        const double weight = rule->rate * often;
        const double moved = NAME(soft)(w[i] - step * (c * x + often * a[i]),
                                        rule->root * weight * rule->l1);
        w[i] = (real)(moved / (1.0 + weight * rule->l2));
        a[i] += (real)(share * x);
    }
}

static double NAME(saga_general)(const sgd_problem *P, const int64_t *order, int64_t count,
                                 int64_t step) {
    real *shared = (real *)P->shared, *specific = (real *)P->specific;
    real *shared_average = (real *)P->shared_average, *specific_average = (real *)P->specific_average;
    const real *shared_spread = (const real *)P->shared_spread;
    const real *specific_spread = (const real *)P->specific_spread;
    const int64_t stride = P->stride, last = stride - 1, R = P->n_shared;
    const int coupled = P->intercept_kind == INTERCEPT_COUPLED, common = NAME(has_common_intercept)(P);
    const vec unit = NAME(unit_vector)(P);
    const double rate = P->rate_scale, share = 1.0 / (double)P->n_samples;
    const NAME(rule) for_shared = {1.0, P->alpha * P->shared_l1, P->alpha * P->shared_l2, rate, 0.0};
    double *score = P->scratch, *g = P->scratch + P->memory_stride, total = 0.0;
    (void)step;

    for (int64_t k = 0; k < count; k++) {
        if (!P->indptr) NAME(fetch_ahead)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const int64_t task = sample->task, first = P->head_start[task];
        const int64_t heads = P->head_start[task + 1] - first;
        const double *mixing = P->mixing + task * R, kappa = P->kappa[task];
        const double rarity = P->task_rarity[task];
        const NAME(row) row = NAME(row_of)(P, sample, unit), own = NAME(own_row)(P, sample, unit);
        const double own_alpha = P->task_alpha[task];
        const NAME(rule) for_task = {sqrt(kappa), sqrt(P->alpha * own_alpha) * P->task_l1,
                                     own_alpha * P->task_l2, rate, 0.0};
        double *memory = P->memory + order[k] * P->memory_stride;

        NAME(scores_any)(P, sample, unit, score);
        total += NAME(derivatives)(P, sample, score, g, heads);
        for (int64_t j = 0; j < heads; j++) {
            const int64_t class_ = P->head_class[first + j], head = NAME(vector_at)(P, first + j);
            const int64_t end = NAME(last_of)(P, first + j);
            const double change = g[j] - memory[j], class_rarity = P->class_rarity[class_];
            memory[j] = g[j];
            for (int64_t r = 0; r < R; r++) {
                const int64_t at = (r * P->n_classes + class_) * stride;
                NAME(saga_general_vector)(P, shared + at, shared_average + at, row,
                                          mixing[r] * change,
                                          shared_spread ? shared_spread + class_ * stride : NULL,
                                          class_rarity, &for_shared, last, coupled);
            }
            real *v = specific + head, *a = specific_average + head;
            const double intercept = v[end], average = a[end];
            if (kappa > 0)
                NAME(saga_general_vector)(P, v, a, own, change,
                                          specific_spread ? specific_spread + P->vector_start[first] : NULL,
                                          rarity, &for_task, end, coupled);
            if (P->intercept_kind == INTERCEPT_FREE) {
                v[end] = (real)(intercept - rate * (change + rarity * average));
                a[end] = (real)(average + share * change);
            }
            if (common) {
                P->intercept[class_] -= rate * (change + class_rarity * P->intercept_average[class_]);
                P->intercept_average[class_] += share * change;
            }
        }
    }
    return total;
}
#undef BLOCK
