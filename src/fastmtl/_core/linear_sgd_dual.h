/* Dual coordinate ascent (Shalev-Shwartz and Zhang, 2013), for any convex loss and l2 penalties.
 *
 * A sample's dual variable is the slope g of its loss; with them the parameters are, at any time,
 *
 *   s_r = −1/(α n) Σ w B[t,r] g x        v_t = −κ_t/(α n) Σ_t w g x
 *
 * and an intercept without a penalty has α/2 (b − c)², whose center c follows b from epoch to epoch
 * (the method of multipliers). A step maximises the dual in one g, which is where the slope that
 * the step leads to is g itself: no rate to choose, no bound on the loss's second derivative.
 */
#define SLOPE_ACCURACY 1e-3
#define STRAIGHT_ACCURACY 1e-10 /* the next trial is exact, and tells one score from others */
#define MOST_TRIALS 100
#define PATIENCE 6
#define FARTHEST 1e300
#define SHORT_STEP 0.3 /* of a margin: beyond, the series is none */
#define LOGISTIC_ACCURACY 5e-3 /* of a margin's change: the step's cube is six times its error */

/* What is remembered of a sample: `conjugate` is that of its loss at `slope`, which is a slope at
 * `score`; that is NaN before the first step. */
typedef struct {
    double slope, conjugate, score;
} NAME(dual_sample);

/* g' = ℓ'(p − c (g' − g)), which lies between g and ℓ'(p); `value` and `slope` are those at p.
 *
 * The score that has the slope g, where it is known, and p enclose the root. Tried is the root of
 * the quadratic that has both ends' slopes and, on average, that between their values; where that
 * leaves much, where the tangents at both ends meet: at a kink between them that is the kink, and
 * tried again it stays where it is. The slope of an exponential sends a far end off by many powers
 * of ten: if these trials do not end, some halve the logarithm of the distance from p. */
static void NAME(implicit_slope)(const point_loss *loss, double y, double p, double c,
                                 NAME(dual_sample) *held) {
    if (p == held->score) return;
    double slope, value = point_loss_at(loss, y, p, &slope);
    const double g = held->slope, gap = slope - g, toward = gap > 0 ? -1.0 : 1.0;
    if (!(gap != 0.0)) {
        held->conjugate = g * p - value;
        held->score = p;
        return;
    }
    double a = p, value_a = value, slope_a = slope, off_a = gap;
    double b = held->score, value_b = g * b - held->conjugate, slope_b = g;
    if (isnan(b)) {
        b = p + toward * fmin(c * fabs(gap), FARTHEST);
        value_b = point_loss_at(loss, y, b, &slope_b);
    }
    double off_b = slope_b - g - (p - b) / c, q = b;
    int near_root = 1, straight = slope_b == slope_a;
    value = value_b, slope = slope_b;
    for (int trial = 1; trial < MOST_TRIALS; trial++) {
        const double moved = (p - q) / c, least = fmin(fabs(slope - g), fabs(moved));
        if (fabs(slope - g - moved) <= (straight ? STRAIGHT_ACCURACY : SLOPE_ACCURACY) * least) break;
        const double low = fmin(a, b), high = fmax(a, b), near = 1e-13 * (fabs(a) + fabs(b));
        const double meet = (value_b - value_a + slope_a * a - slope_b * b) / (slope_a - slope_b);
        if (fabs(meet - a) <= near || fabs(meet - b) <= near || high - low <= near) {
            const double kink = fabs(meet - a) <= near ? a : b;
            value = kink == a ? value_a : value_b;
            slope = fmin(fmax(g + (p - kink) / c, fmin(slope_a, slope_b)), fmax(slope_a, slope_b));
            q = fmin(fmax(p - c * (slope - g), low), high); /* further, where a straight piece begins */
            value += slope * (q - kink);
            break;
        }
        q = meet;
        if (near_root) {
            const double bend = 6.0 * (value_b - value_a) / (b - a) - 3.0 * (slope_a + slope_b);
            const double line = off_b - off_a + bend;
            const double root = sqrt(line * line + 4.0 * bend * off_a);
            q = a + (b - a) * (2.0 * off_a / (copysign(root, off_a) - line));
        }
        if (!(q > low && q < high)) q = 0.5 * (a + b);
        if (trial >= PATIENCE && trial % 3 == 0) {
            const double far = fmax(fabs(p - a), fabs(p - b));
            const double close = fmax(fmin(fabs(p - a), fabs(p - b)), 1e-3 * (1.0 + fabs(p)));
            if (far > 4.0 * close) q = p + toward * sqrt(close) * sqrt(far);
        }
        value = point_loss_at(loss, y, q, &slope);
        const double off = slope - (g + (p - q) / c);
        near_root = fabs(off) < 0.1 * fmin(fabs(off_a), fabs(off_b));
        straight = slope == slope_a || slope == slope_b;
        if ((off > 0) == (off_a > 0)) {
            a = q, value_a = value, slope_a = slope, off_a = off;
        } else {
            b = q, value_b = value, slope_b = slope, off_b = off;
        }
    }
    held->slope = slope;
    held->conjugate = slope * q - value;
    held->score = q;
}

/* The same of the log loss, at the price of an exponential where a sample has been before: with the
 * margin m = y p, a = −y g and σ the logistic, sought is the u = m + c (σ(−u) − a). Steps are
 * Halley's, the first of them from the margin that a belongs to, where no σ need be evaluated, and
 * the last one's change of σ is its series. */
static inline void NAME(implicit_logistic)(double y, double p, double c, NAME(dual_sample) *held) {
    const double margin = y * p, a = fabs(held->slope);
    const double from = isnan(held->score) ? log((1.0 - a) / a) : y * held->score;
    const double least = from < margin ? from : margin, most = from < margin ? margin : from;
    double low = margin - c * a, high = margin + c * (1.0 - a), u, share = a;
    low = least > low ? least : low;
    high = most < high ? most : high;
    if (isinf(from)) { /* from 0, where σ is ½ */
        u = (margin + c * (0.5 - a)) / (1.0 + 0.25 * c);
        u = u > high ? high : u < low ? low : u;
    } else {
        const double bend = c * (a - a * a), steep = 1.0 + bend, off = from - margin;
        u = from - off * steep / (steep * steep - bend * (a - 0.5) * off);
        if (!(u >= low && u <= high)) u = 0.5 * (low + high);
    }
    for (int trial = 0; trial < MOST_TRIALS; trial++) {
        const double s = 1.0 / (1.0 + exp(u)), bend = s - s * s, steep = 1.0 + c * bend;
        const double off = u - margin - c * (s - a);
        const double step = off * steep / (steep * steep - c * bend * (s - 0.5) * off);
        const double next = u - step, error = fabs(step * step * step);
        share = s + bend * step * (1.0 - (s - 0.5) * step);
        if (fabs(step) <= SHORT_STEP && !(error > LOGISTIC_ACCURACY * fabs(next - from))) {
            u = next;
            break;
        }
        share = s;
        if (off > 0) high = u;
        else low = u;
        u = next >= low && next <= high ? next : 0.5 * (low + high);
    }
    held->slope = -y * share;
    held->conjugate = (share > 0 ? share * log(share) : 0.0) +
                      (share < 1 ? (1.0 - share) * log(1.0 - share) : 0.0);
    held->score = y * u;
}

/* Renews what is remembered of a sample; returns how far its row enters the parameters. */
static inline double NAME(dual_move)(const sgd_problem *P, int64_t i, double score) {
    const sgd_sample *z = P->samples + i;
    NAME(dual_sample) *held = (NAME(dual_sample) *)P->memory + i;
    const double reach = z->weight / (P->alpha * (double)P->n_samples), before = held->slope;
    const double c = reach * z->curvature;
    if (P->loss.code == LOSS_LOG) NAME(implicit_logistic)(z->target, score, c, held);
    else NAME(implicit_slope)(&P->loss, z->target, score, c, held);
    return reach * (held->slope - before);
}

static double NAME(dual_dense)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    const int64_t d = P->d, stride = P->stride, R = P->n_shared;
    const int common = NAME(has_common_intercept)(P), free = P->intercept_kind == INTERCEPT_FREE;
    const vec unit = NAME(unit_vector)(P);
    double score;
    (void)step;
    for (int64_t k = 0; k < count; k++) {
        NAME(fetch_ahead)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const real *x = (const real *)P->X + sample->row * P->row_stride;
        const double *mixing = P->mixing + sample->task * R, kappa = P->kappa[sample->task];
        real *s = (real *)P->shared, *v = (real *)P->specific + P->head_start[sample->task] * stride;
        NAME(scores_dense)(P, sample, unit, &score);
        const double move = NAME(dual_move)(P, order[k], score);
        if (move == 0.0) continue;
        for (int64_t r = 0; r < R; r++, s += stride)
            NAME(shrink_and_step)(s, 1, (real)(mixing[r] * move), x, d, stride, unit);
        const double free_intercept = v[stride - 1] - move;
        if (kappa > 0) NAME(shrink_and_step)(v, 1, (real)(kappa * move), x, d, stride, unit);
        if (free) v[stride - 1] = (real)free_intercept;
        if (common) P->intercept[0] -= move;
    }
    return 0.0;
}

static double NAME(dual_csr)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    const int64_t stride = P->stride, R = P->n_shared;
    const int coupled = P->intercept_kind == INTERCEPT_COUPLED;
    const int common = NAME(has_common_intercept)(P), free = P->intercept_kind == INTERCEPT_FREE;
    double score;
    (void)step;
    for (int64_t k = 0; k < count; k++) {
        NAME(fetch_rows)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const int64_t begin = P->indptr[sample->row], n = P->indptr[sample->row + 1] - begin;
        const real *x = (const real *)P->X + begin;
        const int64_t head = P->head_start[sample->task];
        const double *mixing = P->mixing + sample->task * R, kappa = P->kappa[sample->task];
        real *s = (real *)P->shared, *v = (real *)P->specific + P->vector_start[head];
        NAME(scores_csr)(P, sample, &score);
        const double move = NAME(dual_move)(P, order[k], score);
        if (move == 0.0) continue;
        const int together = R == 1 && kappa > 0;
        if (together)
            NAME(push_entries)((real)(mixing[0] * move), s, (real)(kappa * move), v, x,
                               P->indices + begin, P->position + begin, n, v, NULL, 0);
        else if (kappa > 0)
            NAME(push_sparse)((real)(kappa * move), v, x, P->position + begin, n);
        for (int64_t r = 0; r < R; r++, s += stride) {
            if (!together) NAME(push_sparse)((real)(mixing[r] * move), s, x, P->indices + begin, n);
            if (coupled) s[stride - 1] -= (real)(mixing[r] * move);
        }
        const double gain = free ? 1.0 : coupled ? kappa : 0.0;
        v[NAME(last_of)(P, head)] -= (real)(gain * move);
        if (common) P->intercept[0] -= move;
    }
    return 0.0;
}

/* CSR with few tasks: the coefficients w_t of all of them lie side by side at each column, so that a
 * score gathers once and a step, w_u −= C[t,u] move x for every task u, scatters once. They are
 * float64 whatever the rows are, for s_r and v_t follow from what w_t differ by. */
#if VEC_BYTES
#define ENTRY(tasks, own, push, x)                                                            \
    {                                                                                         \
        typedef double line __attribute__((vector_size(8 * tasks), aligned(8), may_alias));   \
        *(line *)(own) -= *(const line *)(push) * (x);                                        \
    }
#else
#define ENTRY(tasks, own, push, x) \
    for (int u = 0; u < tasks; u++) (own)[u] -= (push)[u] * (x);
#endif
#define PUSH_JOINT(tasks)                                                                         \
    static inline void NAME(push_joint_##tasks)(double *weights, const double *push, const real *x, \
                                                const int32_t *at, int64_t n) {                   \
        for (int64_t z = 0; z < n; z++)                                                           \
            ENTRY(tasks, weights + (int64_t)at[z] * tasks, push, (double)x[z])                    \
    }
PUSH_JOINT(1)
PUSH_JOINT(2)
PUSH_JOINT(4)
PUSH_JOINT(8)
#undef PUSH_JOINT
#undef ENTRY

typedef void (*NAME(joint_push))(double *, const double *, const real *, const int32_t *, int64_t);

static inline __attribute__((always_inline)) void NAME(dual_joint_of)(
    const sgd_problem *P, const int64_t *order, int64_t count, const int tasks, NAME(joint_push) entries) {
    double *weights = (double *)P->specific, *last = weights + (P->stride - 1) * tasks;
    const int coupled = P->intercept_kind == INTERCEPT_COUPLED, common = NAME(has_common_intercept)(P);
    for (int64_t k = 0; k < count; k++) {
        NAME(fetch_rows)(P, order, k, count);
        const sgd_sample *sample = P->samples + order[k];
        const int64_t begin = P->indptr[sample->row], n = P->indptr[sample->row + 1] - begin;
        const real *x = (const real *)P->X + begin;
        const int32_t *at = P->indices + begin;
        const double *w = weights + sample->task, *covariance = P->mixing + sample->task * tasks;
        double total_0 = 0, total_1 = 0, total_2 = 0, total_3 = 0, push[MOST_JOINT];
        int64_t z = 0;
        for (; z + 4 <= n; z += 4) {
            total_0 += w[(int64_t)at[z] * tasks] * x[z];
            total_1 += w[(int64_t)at[z + 1] * tasks] * x[z + 1];
            total_2 += w[(int64_t)at[z + 2] * tasks] * x[z + 2];
            total_3 += w[(int64_t)at[z + 3] * tasks] * x[z + 3];
        }
        for (; z < n; z++) total_0 += w[(int64_t)at[z] * tasks] * x[z];
        const double score = (total_0 + total_1) + (total_2 + total_3) + last[sample->task] +
                             (common ? P->intercept[0] : 0.0);
        const double move = NAME(dual_move)(P, order[k], score);
        if (move == 0.0) continue;
        for (int u = 0; u < tasks; u++) push[u] = covariance[u] * move;
        entries(weights, push, x, at, n);
        if (coupled)
            for (int u = 0; u < tasks; u++) last[u] -= push[u];
        if (common) P->intercept[0] -= move;
    }
}

static double NAME(dual_joint)(const sgd_problem *P, const int64_t *order, int64_t count, int64_t step) {
    (void)step;
    switch (P->n_heads) {
    case 1: NAME(dual_joint_of)(P, order, count, 1, NAME(push_joint_1)); break;
    case 2: NAME(dual_joint_of)(P, order, count, 2, NAME(push_joint_2)); break;
    case 4: NAME(dual_joint_of)(P, order, count, 4, NAME(push_joint_4)); break;
    default: NAME(dual_joint_of)(P, order, count, MOST_JOINT, NAME(push_joint_8));
    }
    return 0.0;
}
#undef SLOPE_ACCURACY
#undef STRAIGHT_ACCURACY
#undef MOST_TRIALS
#undef PATIENCE
#undef FARTHEST
#undef SHORT_STEP
#undef LOGISTIC_ACCURACY
