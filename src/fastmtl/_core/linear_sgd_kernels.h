/* Per-sample SGD and SAGA over shared and task-specific parameters; see linear_sgd.h.
 *
 * One sample (x, y) of task t, derivative g of its loss, rate η, λ_t = α / P(task t is drawn), and
 * likewise λ_c for the tasks that have class c (α itself where all have it):
 *
 *   s_r ← (s_r − η B[t,r] g x) / (1 + η λ_c)        v_t ← (v_t − η κ_t g x) / (1 + η λ_t)
 *
 * which is SGD in the whitened parameters, with the penalty taken implicitly so that no α is too
 * large. g is damped by 1 / (1 + η h ‖x‖²_C), h bounding the second derivative of the loss: for the
 * squared error that is the implicit step itself, and a long row cannot overshoot.
 */
#define PREFETCH_AHEAD 6
#define PREFETCH_LINES 16
#define CSR_AHEAD 8
#define CSR_MOST 256 /* entries of a row that are fetched ahead */
#define LOSS_BLOCK 64

/* Parameter vectors are padded to whole vector registers: stores that a later load of the same
 * place cannot take from whole (masked or scalar ones) stall the loop. The last coordinate is the
 * intercept; a row's tail is completed with zeros and, in that last place, `unit`. */
static inline vec NAME(row_tail)(const real *x, int64_t i, int64_t d, int64_t stride, vec unit) {
    vec tail = i < d ? load_partial(x + i, (int)(d - i)) : splat(0);
    return i + LANES == stride ? tail + unit : tail;
}

static inline vec NAME(unit_vector)(const sgd_problem *P) {
    real lanes[LANES] = {0};
    lanes[LANES - 1] = P->intercept_kind == INTERCEPT_COUPLED;
    return load(lanes);
}

/* Σ_i (b s_i + v_i) x_i */
static inline real NAME(dot_pair)(real b, const real *s, const real *v, const real *x, int64_t d,
                                  int64_t stride, vec unit) {
    vec mix = splat(b), total_0 = splat(0), total_1 = splat(0);
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES) {
        total_0 += (mix * load(s + i) + load(v + i)) * load(x + i);
        total_1 += (mix * load(s + i + LANES) + load(v + i + LANES)) * load(x + i + LANES);
    }
    if (i + LANES <= d) {
        total_0 += (mix * load(s + i) + load(v + i)) * load(x + i);
        i += LANES;
    }
    for (; i < stride; i += LANES)
        total_1 += (mix * load(s + i) + load(v + i)) * NAME(row_tail)(x, i, d, stride, unit);
    return sum_lanes(total_0 + total_1);
}

static inline real NAME(dot_one)(const real *w, const real *x, int64_t d, int64_t stride, vec unit) {
    vec total_0 = splat(0), total_1 = splat(0);
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES) {
        total_0 += load(w + i) * load(x + i);
        total_1 += load(w + i + LANES) * load(x + i + LANES);
    }
    if (i + LANES <= d) {
        total_0 += load(w + i) * load(x + i);
        i += LANES;
    }
    for (; i < stride; i += LANES) total_1 += load(w + i) * NAME(row_tail)(x, i, d, stride, unit);
    return sum_lanes(total_0 + total_1);
}

/* w ← keep w − step x */
static inline void NAME(shrink_and_step)(real *w, real keep, real step, const real *x, int64_t d,
                                         int64_t stride, vec unit) {
    vec k = splat(keep), g = splat(step);
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) store(w + i, k * load(w + i) - g * load(x + i));
    for (; i < stride; i += LANES)
        store(w + i, k * load(w + i) - g * NAME(row_tail)(x, i, d, stride, unit));
}

/* SAGA's step on one vector and its average gradient a (m = 1/n):
 * w ← keep (w − step x − rate a),  a ← a + move x */
static inline void NAME(saga_step)(real *w, real *a, real keep, real step, real rate, real move,
                                   const real *x, int64_t d, int64_t stride, vec unit) {
    vec k = splat(keep), g = splat(step), r = splat(rate), m = splat(move);
    for (int64_t i = 0; i < stride; i += LANES) {
        vec row = i + LANES <= d ? load(x + i) : NAME(row_tail)(x, i, d, stride, unit);
        vec average = load(a + i);
        store(w + i, k * (load(w + i) - g * row - r * average));
        store(a + i, average + m * row);
    }
}

/* Derivatives of one sample's loss in its scores; returns the weighted loss. */
static inline double NAME(derivatives)(const sgd_problem *P, const sgd_sample *z, const double *score,
                                       double *g, int64_t heads) {
    if (!P->softmax) {
        double value = point_loss_at(&P->loss, z->target, score[0], g);
        g[0] *= z->weight;
        return z->weight * value;
    }
    int64_t own = (int64_t)z->target;
    double top = score[0], total = 0.0;
    for (int64_t j = 1; j < heads; j++) top = score[j] > top ? score[j] : top;
    for (int64_t j = 0; j < heads; j++) total += g[j] = exp(score[j] - top);
    for (int64_t j = 0; j < heads; j++) g[j] *= z->weight / total;
    g[own] -= z->weight;
    return z->weight * (log(total) + top - score[own]);
}

static inline double NAME(rate_at)(const sgd_problem *P, int64_t step) {
    double t = P->rate_offset + (double)step;
    if (P->rate_power == 1.0) return P->rate_scale / t;
    if (P->rate_power == 0.0) return P->rate_scale;
    return P->rate_scale / pow(t, P->rate_power);
}

static inline void NAME(rates)(const sgd_problem *P, int64_t step, int64_t n, double *rate) {
    const double scale = P->rate_scale, offset = P->rate_offset + (double)step;
    if (P->rate_power == 1.0)
        for (int32_t i = 0; i < n; i++) rate[i] = scale / (offset + i);
    else
        for (int32_t i = 0; i < n; i++) rate[i] = NAME(rate_at)(P, step + i);
}

static inline double NAME(damped)(const sgd_problem *P, const sgd_sample *z, double rate, double g) {
    double smoothness = P->poisson ? fabs(g) / fmax(z->weight, 1e-300) + z->target : P->smoothness;
    return 1.0 / (1.0 + rate * smoothness * z->weight * z->curvature);
}

/* What of an intercept's step a kind takes: how much of g enters, and what is kept. */
static inline double NAME(task_intercept_gain)(const sgd_problem *P, double kappa) {
    return P->intercept_kind == INTERCEPT_COUPLED ? kappa : P->intercept_kind == INTERCEPT_FREE;
}

static inline int NAME(has_common_intercept)(const sgd_problem *P) {
    return P->intercept_kind == INTERCEPT_SHARED || P->intercept_kind == INTERCEPT_COUPLED;
}

/* The scores of a sample's heads. */
static inline void NAME(scores_dense)(const sgd_problem *P, const sgd_sample *sample, vec unit,
                                      double *score) {
    const real *x = (const real *)P->X + sample->row * P->row_stride;
    const real *shared = (const real *)P->shared, *specific = (const real *)P->specific;
    const int64_t d = P->d, stride = P->stride, R = P->n_shared, class_block = stride * P->n_classes;
    const int64_t first = P->head_start[sample->task], end = P->head_start[sample->task + 1];
    const double *mixing = P->mixing + sample->task * R, kappa = P->kappa[sample->task];
    const int common = NAME(has_common_intercept)(P), free = P->intercept_kind == INTERCEPT_FREE;
    for (int64_t h = first; h < end; h++) {
        const int64_t class_ = P->head_class[h];
        const real *v = specific + h * stride, *s = shared + class_ * stride;
        double p = (common ? P->intercept[class_] : 0.0) + (free ? v[stride - 1] : 0.0);
        if (R == 1 && kappa > 0) {
            p += NAME(dot_pair)((real)mixing[0], s, v, x, d, stride, unit);
        } else {
            if (kappa > 0) p += NAME(dot_one)(v, x, d, stride, unit);
            for (int64_t r = 0; r < R; r++, s += class_block)
                p += mixing[r] * NAME(dot_one)(s, x, d, stride, unit);
        }
        score[h - first] = p;
    }
}

/* Where head h's vector begins, and where in it the intercept is. */
static inline int64_t NAME(vector_at)(const sgd_problem *P, int64_t h) {
    return P->vector_start ? P->vector_start[h] : h * P->stride;
}

static inline int64_t NAME(last_of)(const sgd_problem *P, int64_t h) {
    return P->vector_start ? P->vector_start[h + 1] - P->vector_start[h] - 1 : P->stride - 1;
}

/* Σ_z (b s[at_z] + c v[own_z]) x_z; four sums, for each waits for its last addition. */
static inline real NAME(dot_entries)(real b, const real *s, real c, const real *v, const real *x,
                                     const int32_t *at, const int32_t *own, int64_t n) {
    real total_0 = 0, total_1 = 0, total_2 = 0, total_3 = 0;
    int64_t z = 0;
    for (; z + 4 <= n; z += 4) {
        total_0 += (b * s[at[z]] + c * v[own[z]]) * x[z];
        total_1 += (b * s[at[z + 1]] + c * v[own[z + 1]]) * x[z + 1];
        total_2 += (b * s[at[z + 2]] + c * v[own[z + 2]]) * x[z + 2];
        total_3 += (b * s[at[z + 3]] + c * v[own[z + 3]]) * x[z + 3];
    }
    for (; z < n; z++) total_0 += (b * s[at[z]] + c * v[own[z]]) * x[z];
    return (total_0 + total_1) + (total_2 + total_3);
}

static inline real NAME(dot_sparse)(const real *w, const real *x, const int32_t *at, int64_t n) {
    real total_0 = 0, total_1 = 0, total_2 = 0, total_3 = 0;
    int64_t z = 0;
    for (; z + 4 <= n; z += 4) {
        total_0 += w[at[z]] * x[z];
        total_1 += w[at[z + 1]] * x[z + 1];
        total_2 += w[at[z + 2]] * x[z + 2];
        total_3 += w[at[z + 3]] * x[z + 3];
    }
    for (; z < n; z++) total_0 += w[at[z]] * x[z];
    return (total_0 + total_1) + (total_2 + total_3);
}

static inline void NAME(scores_csr)(const sgd_problem *P, const sgd_sample *sample, double *score) {
    const int64_t begin = P->indptr[sample->row], n = P->indptr[sample->row + 1] - begin;
    const real *x = (const real *)P->X + begin;
    const int32_t *at = P->indices + begin, *own = P->position + begin;
    const int64_t stride = P->stride, R = P->n_shared, class_block = stride * P->n_classes;
    const int64_t first = P->head_start[sample->task], end = P->head_start[sample->task + 1];
    const double *mixing = P->mixing + sample->task * R;
    const int common = NAME(has_common_intercept)(P);
    for (int64_t h = first; h < end; h++) {
        const int64_t class_ = P->head_class[h];
        const real *s = (const real *)P->shared + class_ * stride;
        const real *v = (const real *)P->specific + P->vector_start[h];
        const double scale = P->specific_scale[h];
        double p = (common ? P->intercept[class_] : 0.0) + scale * v[NAME(last_of)(P, h)];
        if (R == 1) {
            const double b = mixing[0] * P->shared_scale[class_];
            p += b * s[stride - 1] + NAME(dot_entries)((real)b, s, (real)scale, v, x, at, own, n);
        } else {
            p += scale * NAME(dot_sparse)(v, x, own, n);
            for (int64_t r = 0; r < R; r++, s += class_block)
                p += mixing[r] * P->shared_scale[r * P->n_classes + class_] *
                     (s[stride - 1] + NAME(dot_sparse)(s, x, at, n));
        }
        score[h - first] = p;
    }
}

/* log(1 + exp(−m)) of n margins m, to two ulp. A loop that compilers turn into vectors: e = exp(−|m|)
 * by powers of 2 and the polynomial of simd/vector_math.h, and log(1 + e) = 2 artanh(e / (2 + e)) by
 * its series, from twice 1 where e is large. */
static void NAME(log_losses)(const double *margin, double *value, int64_t n) {
    const double magic = 6755399441055744.0;
    for (int64_t i = 0; i < n; i++) {
        const double least = -fabs(margin[i]), x = least < -708.0 ? -708.0 : least;
        const double shifted = x * 1.4426950408889634 + magic, k = shifted - magic;
        const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
        double p = 2.50000616028356667e-8, power;
        int64_t bits, zero;
        p = p * r + 2.7630248379211444e-7;
        p = p * r + 2.75575863738401637e-6;
        p = p * r + 0.0000248014930989065507;
        p = p * r + 0.000198412695065786877;
        p = p * r + 0.00138888889436301129;
        p = p * r + 0.00833333333349446166;
        p = p * r + 0.0416666666665301586;
        p = p * r + 0.166666666666664125;
        p = p * r + 0.500000000000001063;
        p = p * r + 1.0;
        p = p * r + 1.0;
        memcpy(&bits, &shifted, sizeof bits);
        memcpy(&zero, &magic, sizeof zero);
        bits = (bits - zero + 1023) << 52;
        memcpy(&power, &bits, sizeof power);
        const double e = p * power;
        const int large = e > 0.41421356237309505;
        const double z = (large ? e - 1.0 : e) / (large ? e + 3.0 : e + 2.0), square = z * z;
        double q = 1.0 / 23;
        q = q * square + 1.0 / 21;
        q = q * square + 1.0 / 19;
        q = q * square + 1.0 / 17;
        q = q * square + 1.0 / 15;
        q = q * square + 1.0 / 13;
        q = q * square + 1.0 / 11;
        q = q * square + 1.0 / 9;
        q = q * square + 1.0 / 7;
        q = q * square + 1.0 / 5;
        q = q * square + 1.0 / 3;
        value[i] = 2.0 * z + 2.0 * z * square * q + (large ? 0.69314718055994530942 : 0.0) +
                   (margin[i] > 0 ? 0.0 : -margin[i]);
    }
}

/* Adds the weighted losses to their tasks'; those of margins alone by the block. */
static inline __attribute__((always_inline)) void NAME(sum_losses)(const sgd_problem *P, int sparse, double *task_loss) {
    const vec unit = NAME(unit_vector)(P);
    const int logistic = P->loss.code == LOSS_LOG && !P->softmax;
    double *score = P->scratch, *g = P->scratch + P->memory_stride;
    double margin[LOSS_BLOCK], value[LOSS_BLOCK];
    for (int64_t begin = 0; begin < P->n_samples; begin += LOSS_BLOCK) {
        const sgd_sample *samples = P->samples + begin;
        const int64_t n = P->n_samples - begin < LOSS_BLOCK ? P->n_samples - begin : LOSS_BLOCK;
        for (int64_t i = 0; i < n; i++) {
            const sgd_sample *z = samples + i;
            if (sparse) NAME(scores_csr)(P, z, score);
            else NAME(scores_dense)(P, z, unit, score);
            if (logistic) margin[i] = z->target * score[0];
            else
                task_loss[z->task] += NAME(derivatives)(
                    P, z, score, g, P->head_start[z->task + 1] - P->head_start[z->task]);
        }
        if (!logistic) continue;
        NAME(log_losses)(margin, value, n);
        for (int64_t i = 0; i < n; i++) task_loss[samples[i].task] += samples[i].weight * value[i];
    }
}

/* The weighted loss of each task at the parameters as they are. */
static void NAME(losses_dense)(const sgd_problem *P, double *task_loss) {
    NAME(sum_losses)(P, 0, task_loss);
}

static void NAME(losses_csr)(const sgd_problem *P, double *task_loss) {
    NAME(sum_losses)(P, 1, task_loss);
}

/* The commonest problem, dense rows with one head a task and one shared vector, has a loop of its
 * own. What a step needs and no parameter decides (addresses, rates, every division) is staged
 * ahead. Samples go in pairs: the second score is what it was before the first step, plus g times
 * a product of the two rows. So one pass over the vectors takes two steps and has the products of
 * the next pair, and the shared vector is read and written half as often. */
#define STAGE 32
#define RING (2 * STAGE)
#define ROWS_AHEAD 16
#define SAMPLES_AHEAD (3 * STAGE)

typedef struct {
    const real *row[RING];
    real *specific[RING];
    double target[RING], mixing[RING], weight[RING];
    double move[RING], keep_shared[RING], keep[RING];
    double push_shared[RING], push[RING]; /* move, as each vector takes it */
} NAME(sgd_ring);

static inline int NAME(is_simple)(const sgd_problem *P) {
    /* Rows beyond a page gain nothing from being staged: the general loop is faster there. */
    return P->n_classes == 1 && P->n_shared == 1 && !P->softmax && !P->poisson &&
           P->intercept_kind != INTERCEPT_FREE && P->stride * (int64_t)sizeof(real) <= 4096;
}

static inline void NAME(stage)(const sgd_problem *P, const int64_t *order, int64_t from, int64_t count,
                               int64_t step, NAME(sgd_ring) *ring) {
    const int64_t slot = from & (RING - 1), n = count - from < STAGE ? count - from : STAGE;
    double rate[STAGE], curvature[STAGE], rarity[STAGE], kappa[STAGE];
    for (int64_t i = 0; i < n; i++) {
        const sgd_sample *z = P->samples + order[from + i];
        ring->row[slot + i] = (const real *)P->X + z->row * P->row_stride;
        ring->specific[slot + i] = (real *)P->specific + P->head_start[z->task] * P->stride;
        ring->target[slot + i] = z->target;
        ring->weight[slot + i] = z->weight;
        ring->mixing[slot + i] = P->mixing[z->task];
        curvature[i] = z->curvature;
        rarity[i] = P->task_rarity[z->task];
        kappa[i] = P->kappa[z->task];
    }
    NAME(rates)(P, step + from, n, rate);
    for (int64_t i = 0; i < n; i++) {
        const double weight = ring->weight[slot + i], shrink = rate[i] * P->alpha;
        const double move = rate[i] * weight / (1.0 + rate[i] * P->smoothness * weight * curvature[i]);
        const double keep_shared = 1.0 / (1.0 + shrink * P->class_rarity[0]);
        const double keep = 1.0 / (1.0 + shrink * rarity[i]);
        ring->move[slot + i] = move;
        ring->keep_shared[slot + i] = keep_shared;
        ring->keep[slot + i] = keep;
        ring->push_shared[slot + i] = keep_shared * ring->mixing[slot + i] * move;
        ring->push[slot + i] = keep * kappa[i] * move;
    }
    if (n % 2) { /* the last one's partner is a sample that changes nothing */
        const int64_t last = slot + n - 1, none = slot + n;
        ring->row[none] = ring->row[last];
        ring->specific[none] = ring->specific[last];
        ring->target[none] = ring->target[last];
        ring->mixing[none] = ring->mixing[last];
        ring->keep_shared[none] = ring->keep[none] = 1.0;
        ring->weight[none] = ring->move[none] = ring->push_shared[none] = ring->push[none] = 0.0;
    }
}

/* Fetches what draws to come need; always inline as `fetch_ahead` is. */
static inline __attribute__((always_inline)) void NAME(fetch_staged)(
    const sgd_problem *P, const int64_t *order, const NAME(sgd_ring) *ring, int64_t k, int64_t count) {
    const int64_t lines = (P->d * (int64_t)sizeof(real) + 63) / 64 + 1; /* rows need not be aligned */
    const int64_t ahead_lines = lines < PREFETCH_LINES ? lines : PREFETCH_LINES;
    const int64_t own_lines = P->specific_cached ? 0 : ahead_lines;
    const int64_t samples_ahead = P->pool + SAMPLES_AHEAD;
    if (k + samples_ahead < count) __builtin_prefetch(P->samples + order[k + samples_ahead]);
    if (P->pool && k + P->pool < count) {
        const sgd_sample *far = P->samples + order[k + P->pool];
        const char *row = (const char *)((const real *)P->X + far->row * P->row_stride);
        for (int64_t line = 0; line < ahead_lines; line++) __builtin_prefetch(row + 64 * line, 0, 2);
    }
    if (k + ROWS_AHEAD < count) {
        const char *row = (const char *)ring->row[(k + ROWS_AHEAD) & (RING - 1)];
        const char *own = (const char *)ring->specific[(k + ROWS_AHEAD) & (RING - 1)];
        for (int64_t line = 0; line < ahead_lines; line++) __builtin_prefetch(row + 64 * line);
        for (int64_t line = 0; line < own_lines; line++) __builtin_prefetch(own + 64 * line, 1);
    }
}

/* Of one block of coordinates: s ← keep s − push x − push' x', and v ← keep v − push x of either
 * row's own vector (which may be one). Then the products of the next two rows, z, with the shared
 * vector, with their own, u, and with each other. */
static inline __attribute__((always_inline)) void NAME(step_pair)(
    real *s, real *const v[2], const real *const u[2], int64_t c, vec x_0, vec x_1, vec z_0, vec z_1,
    vec keep, const vec push[2], const vec own_keep[2], const vec own_push[2], vec shared[2],
    vec own[2], vec *between) {
    const vec moved = keep * load(s + c) - push[0] * x_0 - push[1] * x_1;
    store(s + c, moved);
    store(v[0] + c, own_keep[0] * load(v[0] + c) - own_push[0] * x_0);
    store(v[1] + c, own_keep[1] * load(v[1] + c) - own_push[1] * x_1);
    shared[0] += moved * z_0;
    shared[1] += moved * z_1;
    own[0] += load(u[0] + c) * z_0;
    own[1] += load(u[1] + c) * z_1;
    *between += z_0 * z_1;
}

static double NAME(sgd_dense_simple)(const sgd_problem *P, const int64_t *order, int64_t count,
                                     int64_t step) {
    NAME(sgd_ring) ring;
    real *s = (real *)P->shared;
    const int64_t d = P->d, stride = P->stride;
    const int common = NAME(has_common_intercept)(P);
    const vec unit = NAME(unit_vector)(P);
    const point_loss loss = P->loss;
    double total = 0.0, intercept = common ? P->intercept[0] : 0.0;
    double first = 0.0, second = 0.0, pull = 0.0; /* scores; what a first g takes off the second */
    if (count == 0) return total;

    NAME(stage)(P, order, 0, count, step, &ring);
    for (int64_t k = -2; k < count; k += 2) { /* the pass before the first pair takes no steps */
        const int64_t i = k < 0 ? 0 : k & (RING - 1), j = k + 2 < count ? (k + 2) & (RING - 1) : i;
        real *const v[2] = {ring.specific[i], ring.specific[i + 1]};
        vec keep = splat(1), push[2] = {splat(0), splat(0)};
        vec own_keep[2] = {splat(1), splat(1)}, own_push[2] = {splat(0), splat(0)};
        if (k >= 0) {
            double g, next_g;
            if (k % STAGE == 0 && k + STAGE < count)
                NAME(stage)(P, order, k + STAGE, count, step, &ring);
            NAME(fetch_staged)(P, order, &ring, k, count);
            NAME(fetch_staged)(P, order, &ring, k + 1, count);
            total += ring.weight[i] * point_loss_at(&loss, ring.target[i], first + intercept, &g);
            if (common) intercept -= ring.move[i] * g;
            second += intercept - g * pull;
            total += ring.weight[i + 1] * point_loss_at(&loss, ring.target[i + 1], second, &next_g);
            if (common) intercept -= ring.move[i + 1] * next_g;
            keep = splat((real)(ring.keep_shared[i] * ring.keep_shared[i + 1]));
            push[0] = splat((real)(ring.keep_shared[i + 1] * ring.push_shared[i] * g));
            push[1] = splat((real)(ring.push_shared[i + 1] * next_g));
            own_keep[0] = splat((real)ring.keep[i]), own_keep[1] = splat((real)ring.keep[i + 1]);
            own_push[0] = splat((real)(ring.push[i] * g));
            own_push[1] = splat((real)(ring.push[i + 1] * next_g));
        }
        const real *const u[2] = {ring.specific[j], ring.specific[j + 1]};
        const real *x_0 = ring.row[i], *x_1 = ring.row[i + 1];
        const real *z_0 = ring.row[j], *z_1 = ring.row[j + 1];
        vec shared[2] = {splat(0), splat(0)}, own[2] = {splat(0), splat(0)}, between = splat(0);
        int64_t c = 0;
        for (; c + LANES <= d; c += LANES)
            NAME(step_pair)(s, v, u, c, load(x_0 + c), load(x_1 + c), load(z_0 + c), load(z_1 + c),
                            keep, push, own_keep, own_push, shared, own, &between);
        for (; c < stride; c += LANES)
            NAME(step_pair)(s, v, u, c, NAME(row_tail)(x_0, c, d, stride, unit),
                            NAME(row_tail)(x_1, c, d, stride, unit),
                            NAME(row_tail)(z_0, c, d, stride, unit),
                            NAME(row_tail)(z_1, c, d, stride, unit), keep, push, own_keep, own_push,
                            shared, own, &between);
        const double mixing = ring.mixing[j + 1];
        const double kept = u[0] == u[1] ? ring.keep[j] : 1.0;
        const double pushed = u[0] == u[1] ? ring.push[j] : 0.0;
        first = sum_lanes(splat((real)ring.mixing[j]) * shared[0] + own[0]);
        second = sum_lanes(splat((real)(mixing * ring.keep_shared[j])) * shared[1] +
                           splat((real)kept) * own[1]);
        pull = (mixing * ring.push_shared[j] + pushed) * sum_lanes(between);
    }
    if (common) P->intercept[0] = intercept;
    return total;
}

/* Fetches the rows and heads of coming draws of dense rows. Always inline: GCC takes a function of
 * prefetches alone for one without effect, and drops calls of it. */
static inline __attribute__((always_inline)) void NAME(fetch_ahead)(const sgd_problem *P, const int64_t *order, int64_t k, int64_t count) {
    const int64_t lines = (P->d * (int64_t)sizeof(real) + 63) / 64 + 1; /* rows need not be aligned */
    const int64_t ahead_lines = lines < PREFETCH_LINES ? lines : PREFETCH_LINES;
    if (k + 2 * PREFETCH_AHEAD < count)
        __builtin_prefetch(P->samples + order[k + 2 * PREFETCH_AHEAD]);
    if (k + PREFETCH_AHEAD >= count) return;
    const sgd_sample *next = P->samples + order[k + PREFETCH_AHEAD];
    const char *row = (const char *)((const real *)P->X + next->row * P->row_stride);
    const char *head = (const char *)((const real *)P->specific + P->head_start[next->task] * P->stride);
    for (int64_t line = 0; line < ahead_lines; line++) {
        __builtin_prefetch(row + 64 * line);
        __builtin_prefetch(head + 64 * line, 1);
    }
}

static double NAME(sgd_dense)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    if (NAME(is_simple)(P)) return NAME(sgd_dense_simple)(P, order, count, step);
    const real *X = (const real *)P->X;
    real *shared = (real *)P->shared, *specific = (real *)P->specific;
    const int64_t d = P->d, stride = P->stride, R = P->n_shared, class_block = stride * P->n_classes;
    const int common = NAME(has_common_intercept)(P), free = P->intercept_kind == INTERCEPT_FREE;
    const vec unit = NAME(unit_vector)(P);
    double *score = P->scratch, *g = P->scratch + P->memory_stride, total = 0.0;

    for (int64_t k = 0; k < count; k++, step++) {
        NAME(fetch_ahead)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const int64_t task = sample->task, first = P->head_start[task];
        const int64_t heads = P->head_start[task + 1] - first;
        const real *x = X + sample->row * P->row_stride;
        const double *mixing = P->mixing + task * R, kappa = P->kappa[task];

        NAME(scores_dense)(P, sample, unit, score);
        total += NAME(derivatives)(P, sample, score, g, heads);

        const double rate = NAME(rate_at)(P, step);
        const double damping = rate * NAME(damped)(P, sample, rate, g[0]);
        const double keep = 1.0 / (1.0 + rate * P->alpha * P->task_rarity[task]);
        for (int64_t j = 0; j < heads; j++) {
            const int64_t class_ = P->head_class[first + j];
            const double move = damping * g[j];
            const double keep_shared = 1.0 / (1.0 + rate * P->alpha * P->class_rarity[class_]);
            real *v = specific + (first + j) * stride, *s = shared + class_ * stride;
            for (int64_t r = 0; r < R; r++, s += class_block) {
                const double push = keep_shared * mixing[r] * move;
                NAME(shrink_and_step)(s, (real)keep_shared, (real)push, x, d, stride, unit);
            }
            const double free_intercept = free ? v[stride - 1] - move : 0.0;
            if (kappa > 0)
                NAME(shrink_and_step)(v, (real)keep, (real)(keep * kappa * move), x, d, stride, unit);
            if (free) v[stride - 1] = (real)free_intercept;
            if (common) P->intercept[class_] -= move;
        }
    }
    return total;
}

/* Multiplies a scaled vector out, so that its factor is one again. */
static inline void NAME(unscale)(real *w, double *scale, int64_t n) {
    const real factor = (real)*scale;
    if (factor == 1) return;
    for (int64_t i = 0; i < n; i++) w[i] *= factor;
    *scale = 1.0;
}

static void NAME(settle)(const sgd_problem *P) {
    for (int64_t h = 0; h < P->n_heads; h++)
        NAME(unscale)((real *)P->specific + P->vector_start[h], P->specific_scale + h,
                      NAME(last_of)(P, h) + 1);
}

#define SMALLEST_SCALE 1e-4

/* s[at_z] ← s[at_z] − b x_z, v[own_z] ← v[own_z] − c x_z; meanwhile the next row's places in its
 * v, which seldom are in a near cache, are fetched. */
static inline void NAME(push_entries)(real b, real *s, real c, real *v, const real *x, const int32_t *at,
                                      const int32_t *own, int64_t n, const real *next_v,
                                      const int32_t *next_own, int64_t n_next) {
    const int64_t both = n < n_next ? n : n_next;
    int64_t z = 0;
    for (; z < both; z++) {
        __builtin_prefetch(next_v + next_own[z], 1);
        s[at[z]] -= b * x[z];
        v[own[z]] -= c * x[z];
    }
    for (int64_t y = z; y < n_next; y++) __builtin_prefetch(next_v + next_own[y], 1);
    for (; z < n; z++) {
        s[at[z]] -= b * x[z];
        v[own[z]] -= c * x[z];
    }
}

static inline void NAME(push_sparse)(real b, real *w, const real *x, const int32_t *at, int64_t n) {
    for (int64_t z = 0; z < n; z++) w[at[z]] -= b * x[z];
}

static inline void NAME(fetch)(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at, 0, 2);
}

/* Fetches the rows of coming draws; always inline as `fetch_ahead` is. */
static inline __attribute__((always_inline)) void NAME(fetch_rows)(const sgd_problem *P, const int64_t *order, int64_t k, int64_t count) {
    if (k + 4 * CSR_AHEAD < count) __builtin_prefetch(P->samples + order[k + 4 * CSR_AHEAD]);
    if (k + 2 * CSR_AHEAD < count)
        __builtin_prefetch(P->indptr + P->samples[order[k + 2 * CSR_AHEAD]].row);
    if (k + CSR_AHEAD < count) {
        const int64_t row = P->samples[order[k + CSR_AHEAD]].row, begin = P->indptr[row];
        const int64_t n = P->indptr[row + 1] - begin < CSR_MOST ? P->indptr[row + 1] - begin : CSR_MOST;
        NAME(fetch)((const real *)P->X + begin, n * (int64_t)sizeof(real) + 64);
        NAME(fetch)(P->indices + begin, n * (int64_t)sizeof(int32_t) + 64);
        if (P->position) NAME(fetch)(P->position + begin, n * (int64_t)sizeof(int32_t) + 64);
    }
}

static double NAME(sgd_csr)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    const real *data = (const real *)P->X;
    real *shared = (real *)P->shared, *specific = (real *)P->specific;
    const int64_t stride = P->stride, last = stride - 1, R = P->n_shared, class_block = stride * P->n_classes;
    const int coupled = P->intercept_kind == INTERCEPT_COUPLED, common = NAME(has_common_intercept)(P);
    double *score = P->scratch, *g = P->scratch + P->memory_stride, total = 0.0;

    for (int64_t k = 0; k < count; k++, step++) {
        NAME(fetch_rows)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const int64_t task = sample->task, first = P->head_start[task];
        const int64_t heads = P->head_start[task + 1] - first;
        const int64_t begin = P->indptr[sample->row], n = P->indptr[sample->row + 1] - begin;
        const real *x = data + begin;
        const int32_t *at = P->indices + begin, *own = P->position + begin;
        const double *mixing = P->mixing + task * R, kappa = P->kappa[task];

        NAME(scores_csr)(P, sample, score);
        total += NAME(derivatives)(P, sample, score, g, heads);

        const double rate = NAME(rate_at)(P, step);
        const double damping = rate * NAME(damped)(P, sample, rate, g[0]);
        const double keep = 1.0 / (1.0 + rate * P->alpha * P->task_rarity[task]);
        const sgd_sample *next = P->samples + order[k + 1 < count ? k + 1 : k];
        const int64_t next_begin = P->indptr[next->row];
        const int64_t n_next = P->indptr[next->row + 1] - next_begin;
        const real *next_v = specific + P->vector_start[P->head_start[next->task]];
        for (int64_t j = 0; j < heads; j++) {
            const int64_t class_ = P->head_class[first + j];
            const double move = damping * g[j];
            const double keep_shared = 1.0 / (1.0 + rate * P->alpha * P->class_rarity[class_]);
            real *v = specific + P->vector_start[first + j], *s = shared + class_ * stride;
            real *own_intercept = v + NAME(last_of)(P, first + j);
            double *scale = P->specific_scale + first + j;
            const double push = kappa * move / *scale;
            const int together = R == 1 && kappa > 0;
            if (together)
                NAME(push_entries)((real)(mixing[0] * move / P->shared_scale[class_]), s, (real)push,
                                   v, x, at, own, n, next_v, P->position + next_begin,
                                   j == 0 ? n_next : 0);
            else if (kappa > 0)
                NAME(push_sparse)((real)push, v, x, own, n);
            for (int64_t r = 0; r < R; r++, s += class_block) {
                double *factor = P->shared_scale + r * P->n_classes + class_;
                const double part = mixing[r] * move / *factor;
                if (!together) NAME(push_sparse)((real)part, s, x, at, n);
                if (coupled) s[last] -= (real)part;
                *factor *= keep_shared;
                if (*factor < SMALLEST_SCALE) NAME(unscale)(s, factor, stride);
            }
            const double free_intercept = *own_intercept * *scale - move;
            if (coupled) *own_intercept -= (real)push;
            *scale *= keep;
            if (P->intercept_kind == INTERCEPT_FREE) *own_intercept = (real)(free_intercept / *scale);
            if (*scale < SMALLEST_SCALE) NAME(unscale)(v, scale, NAME(last_of)(P, first + j) + 1);
            if (common) P->intercept[class_] -= move;
        }
    }
    return total;
}

/* SAGA (Defazio, Bach and Lacoste-Julien, 2014), the penalty as its proximal step. `specific` is
 * touched only when its task is drawn, so its average gradient enters n / n_t times as strongly
 * (task_rarity), which keeps the step unbiased (Leblond, Pedregosa, Lacoste-Julien, 2017).
 * The averages hold (1/n) Σ B g x and (1/n) Σ_t g x. */
static double NAME(saga_dense)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    const real *X = (const real *)P->X;
    real *shared = (real *)P->shared, *specific = (real *)P->specific;
    real *shared_average = (real *)P->shared_average, *specific_average = (real *)P->specific_average;
    const int64_t d = P->d, stride = P->stride, R = P->n_shared, class_block = stride * P->n_classes;
    const int common = NAME(has_common_intercept)(P), free = P->intercept_kind == INTERCEPT_FREE;
    const vec unit = NAME(unit_vector)(P);
    const int64_t lines = (d * (int64_t)sizeof(real) + 63) / 64 + 1;
    const int64_t ahead_lines = lines < PREFETCH_LINES ? lines : PREFETCH_LINES;
    const double share = 1.0 / (double)P->n_samples, rate = P->rate_scale;
    double *score = P->scratch, *g = P->scratch + P->memory_stride, total = 0.0;
    (void)step;

    for (int64_t k = 0; k < count; k++) {
        if (k + 2 * PREFETCH_AHEAD < count)
            __builtin_prefetch(P->samples + order[k + 2 * PREFETCH_AHEAD]);
        if (k + PREFETCH_AHEAD < count) {
            const char *row = (const char *)(X + P->samples[order[k + PREFETCH_AHEAD]].row * P->row_stride);
            for (int64_t line = 0; line < ahead_lines; line++) __builtin_prefetch(row + 64 * line);
        }
        const sgd_sample *sample = P->samples + order[k];
        const int64_t task = sample->task, first = P->head_start[task];
        const int64_t heads = P->head_start[task + 1] - first;
        const real *x = X + sample->row * P->row_stride;
        const double *mixing = P->mixing + task * R, kappa = P->kappa[task];
        const double rarity = P->task_rarity[task];
        double *memory = P->memory + order[k] * P->memory_stride;

        NAME(scores_dense)(P, sample, unit, score);
        total += NAME(derivatives)(P, sample, score, g, heads);

        const double keep = 1.0 / (1.0 + rate * P->task_alpha[task] * rarity);
        for (int64_t j = 0; j < heads; j++) {
            const int64_t class_ = P->head_class[first + j];
            const double change = g[j] - memory[j];
            const double class_rarity = P->class_rarity[class_];
            const double keep_shared = 1.0 / (1.0 + rate * P->alpha * class_rarity);
            memory[j] = g[j];
            real *v = specific + (first + j) * stride, *s = shared + class_ * stride;
            real *a = shared_average + class_ * stride;
            for (int64_t r = 0; r < R; r++, s += class_block, a += class_block) {
                const double push = mixing[r] * change;
                NAME(saga_step)(s, a, (real)keep_shared, (real)(rate * push),
                                (real)(rate * class_rarity), (real)(share * push), x, d, stride,
                                unit);
            }
            a = specific_average + (first + j) * stride;
            const double intercept = v[stride - 1], average = a[stride - 1];
            if (kappa > 0)
                NAME(saga_step)(v, a, (real)keep, (real)(rate * kappa * change),
                                (real)(rate * kappa * rarity), (real)(share * change), x, d, stride,
                                unit);
            if (free) {
                v[stride - 1] = (real)(intercept - rate * (change + rarity * average));
                a[stride - 1] = (real)(average + share * change);
            }
            if (common) {
                P->intercept[class_] -= rate * (change + class_rarity * P->intercept_average[class_]);
                P->intercept_average[class_] += share * change;
            }
        }
    }
    return total;
}

/* The same on CSR: a coordinate is touched only where the row has it, so its average and its
 * shrinkage enter n / (rows that have it) times as strongly (`*_spread`). */
static double NAME(saga_csr)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    const real *data = (const real *)P->X;
    real *shared = (real *)P->shared, *specific = (real *)P->specific;
    real *shared_average = (real *)P->shared_average, *specific_average = (real *)P->specific_average;
    const real *shared_spread = (const real *)P->shared_spread;
    const real *specific_spread = (const real *)P->specific_spread;
    const int64_t stride = P->stride, last = stride - 1, R = P->n_shared, class_block = stride * P->n_classes;
    const int coupled = P->intercept_kind == INTERCEPT_COUPLED, common = NAME(has_common_intercept)(P);
    const double share = 1.0 / (double)P->n_samples, rate = P->rate_scale, alpha = P->alpha;
    double *score = P->scratch, *g = P->scratch + P->memory_stride, total = 0.0;
    (void)step;

    for (int64_t k = 0; k < count; k++) {
        const sgd_sample *sample = P->samples + order[k];
        const int64_t task = sample->task, first = P->head_start[task];
        const int64_t heads = P->head_start[task + 1] - first;
        const int64_t begin = P->indptr[sample->row], end = P->indptr[sample->row + 1];
        const double *mixing = P->mixing + task * R, kappa = P->kappa[task];
        const double rarity = P->task_rarity[task], own_alpha = P->task_alpha[task];
        const real *spread = specific_spread + P->vector_start[first];
        double *memory = P->memory + order[k] * P->memory_stride;

        NAME(scores_csr)(P, sample, score);
        total += NAME(derivatives)(P, sample, score, g, heads);

        for (int64_t j = 0; j < heads; j++) {
            const int64_t class_ = P->head_class[first + j];
            const double change = g[j] - memory[j];
            const double class_rarity = P->class_rarity[class_];
            const real *class_spread = shared_spread + class_ * stride;
            memory[j] = g[j];
            real *v = specific + P->vector_start[first + j], *s = shared + class_ * stride;
            real *a = shared_average + class_ * stride;
            for (int64_t r = 0; r < R; r++, s += class_block, a += class_block) {
                const double push = mixing[r] * change;
                for (int64_t z = begin; z < end; z++) {
                    const int32_t i = P->indices[z];
                    const double often = class_spread[i];
                    const double moved = s[i] - rate * (push * data[z] + often * a[i]);
                    s[i] = (real)(moved / (1.0 + rate * alpha * often));
                    a[i] += (real)(share * push * data[z]);
                }
                if (coupled) {
                    s[last] = (real)((s[last] - rate * (push + class_rarity * a[last])) /
                                  (1.0 + rate * alpha * class_rarity));
                    a[last] += (real)(share * push);
                }
            }
            a = specific_average + P->vector_start[first + j];
            if (kappa > 0)
                for (int64_t z = begin; z < end; z++) {
                    const int32_t i = P->position[z];
                    const double often = spread[i];
                    const double moved = v[i] - rate * kappa * (change * data[z] + often * a[i]);
                    v[i] = (real)(moved / (1.0 + rate * own_alpha * often));
                    a[i] += (real)(share * change * data[z]);
                }
            const double gain = NAME(task_intercept_gain)(P, kappa);
            const int64_t end_of_v = NAME(last_of)(P, first + j);
            const double moved = v[end_of_v] - rate * gain * (change + rarity * a[end_of_v]);
            v[end_of_v] = (real)(coupled ? moved / (1.0 + rate * own_alpha * rarity) : moved);
            if (gain > 0) a[end_of_v] += (real)(share * change);
            if (common) {
                P->intercept[class_] -= rate * (change + class_rarity * P->intercept_average[class_]);
                P->intercept_average[class_] += share * change;
            }
        }
    }
    return total;
}

#include "linear_sgd_general.h"
#include "linear_sgd_dual.h"

static const sgd_table NAME(sgd_table) = {
    NAME(sgd_dense), NAME(sgd_csr), NAME(saga_dense), NAME(saga_csr),
    NAME(sgd_general), NAME(saga_general), NAME(dual_dense), NAME(dual_csr), NAME(dual_joint),
    NAME(losses_dense), NAME(losses_csr),
    NAME(settle),
};
#undef PREFETCH_AHEAD
#undef PREFETCH_LINES
#undef CSR_AHEAD
#undef CSR_MOST
#undef LOSS_BLOCK
#undef STAGE
#undef RING
#undef ROWS_AHEAD
#undef SAMPLES_AHEAD
#undef SMALLEST_SCALE
