/* Losses of one point, in five rules:
 *
 * 1. A loss is one function: value(y, p) returned, its derivative (a subgradient where there is
 *    none) in p written to *gradient. The pair shares its exponential.
 * 2. All arithmetic is double whatever the data's dtype: one point costs less than its row.
 * 3. Solvers hold a `point_loss`; they call it once a sample, never once an element.
 * 4. A classifier's target is +1 or -1; a user's own loss has the same C signature.
 * 5. At a kink the subgradient is the one of smallest magnitude, so that a fitted point stays put.
 */
#ifndef FASTMTL_LOSSES_H
#define FASTMTL_LOSSES_H
#include <math.h>

typedef double (*point_loss_function)(double y, double p, double parameter, double *gradient);
typedef double (*user_loss_function)(double y, double p, double *gradient);

typedef struct {
    point_loss_function function;
    user_loss_function user;
    double parameter;
    int code; /* functions have an address in each file that includes them */
} point_loss;

enum {
    LOSS_SQUARED_ERROR, LOSS_HUBER, LOSS_EPSILON_INSENSITIVE, LOSS_SQUARED_EPSILON_INSENSITIVE,
    LOSS_QUANTILE, LOSS_POISSON, LOSS_HINGE, LOSS_SQUARED_HINGE, LOSS_MODIFIED_HUBER, LOSS_LOG,
    LOSS_COUNT
};

static double squared_error_(double y, double p, double parameter, double *gradient) {
    (void)parameter;
    *gradient = p - y;
    return 0.5 * (p - y) * (p - y);
}

/* Quadratic within `delta` of the target, linear beyond. */
static double huber_(double y, double p, double delta, double *gradient) {
    double r = p - y;
    if (fabs(r) <= delta) {
        *gradient = r;
        return 0.5 * r * r;
    }
    *gradient = r > 0 ? delta : -delta;
    return delta * (fabs(r) - 0.5 * delta);
}

static double epsilon_insensitive_(double y, double p, double epsilon, double *gradient) {
    double r = p - y;
    *gradient = r > epsilon ? 1.0 : r < -epsilon ? -1.0 : 0.0;
    return fmax(0.0, fabs(r) - epsilon);
}

static double squared_epsilon_insensitive_(double y, double p, double epsilon, double *gradient) {
    double r = p - y, excess = fmax(0.0, fabs(r) - epsilon);
    *gradient = r > 0 ? 2.0 * excess : -2.0 * excess;
    return excess * excess;
}

/* The pinball loss of the given quantile in (0, 1). */
static double quantile_(double y, double p, double quantile, double *gradient) {
    double r = y - p;
    *gradient = r > 0 ? -quantile : r < 0 ? 1.0 - quantile : 0.0;
    return r > 0 ? quantile * r : (quantile - 1.0) * r;
}

/* Half the Poisson deviance up to a constant, with the log link: exp(p) - y p. */
static double poisson_(double y, double p, double parameter, double *gradient) {
    (void)parameter;
    double rate = exp(p);
    *gradient = rate - y;
    return rate - y * p;
}

static double hinge_(double y, double p, double threshold, double *gradient) {
    double margin = y * p;
    *gradient = margin < threshold ? -y : 0.0;
    return fmax(0.0, threshold - margin);
}

static double squared_hinge_(double y, double p, double threshold, double *gradient) {
    double slack = fmax(0.0, threshold - y * p);
    *gradient = -2.0 * y * slack;
    return slack * slack;
}

/* Squared hinge near the boundary, linear beyond a margin of -1 (Zhang, 2004). */
static double modified_huber_(double y, double p, double parameter, double *gradient) {
    (void)parameter;
    double margin = y * p;
    if (margin >= 1.0) {
        *gradient = 0.0;
        return 0.0;
    }
    if (margin >= -1.0) {
        *gradient = -2.0 * y * (1.0 - margin);
        return (1.0 - margin) * (1.0 - margin);
    }
    *gradient = -4.0 * y;
    return -4.0 * margin;
}

static double log_loss_(double y, double p, double parameter, double *gradient) {
    (void)parameter;
    double margin = y * p;
    double small = exp(-fabs(margin)); /* never overflows */
    *gradient = -y * (margin > 0 ? small : 1.0) / (1.0 + small);
    const double one_more = 1.0 + small; /* log1p, at half the price: what rounding took is put back */
    return log(one_more) - ((one_more - 1.0) - small) / one_more + (margin > 0 ? 0.0 : -margin);
}

static double user_(double y, double p, double parameter, double *gradient) {
    (void)y; (void)p; (void)parameter; (void)gradient;
    return NAN; /* never called: `user` is set */
}

static inline point_loss point_loss_of(int code, double parameter, void *user) {
    static const point_loss_function functions[LOSS_COUNT] = {
        squared_error_, huber_, epsilon_insensitive_, squared_epsilon_insensitive_, quantile_,
        poisson_, hinge_, squared_hinge_, modified_huber_, log_loss_,
    };
    point_loss loss;
    loss.user = (user_loss_function)user;
    loss.function = user ? user_ : functions[code];
    loss.parameter = parameter;
    loss.code = user ? LOSS_COUNT : code;
    return loss;
}

static inline double point_loss_at(const point_loss *loss, double y, double p, double *gradient) {
    if (loss->code == LOSS_SQUARED_ERROR) { /* the commonest waits for no call */
        *gradient = p - y;
        return 0.5 * (p - y) * (p - y);
    }
    if (loss->user) return loss->user(y, p, gradient);
    return loss->function(y, p, loss->parameter, gradient);
}

#endif
