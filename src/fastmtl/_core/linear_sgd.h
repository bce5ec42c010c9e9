/* What the per-sample solvers see: one struct, both dtypes (arrays of `real` are void here). */
#ifndef FASTMTL_LINEAR_SGD_H
#define FASTMTL_LINEAR_SGD_H
#include <stdint.h>
#include "losses.h"
#include "simd/levels.h"

/* One observation, packed so that a random draw costs one cache line. */
typedef struct {
    int64_t row;
    double target;    /* number, +1/-1, or position among the task's classes */
    double weight;    /* multiplies the loss */
    double curvature; /* squared length of the row in the metric of the parameters */
    int32_t task;
    int32_t unused;
} sgd_sample;

#define MOST_JOINT 8 /* tasks: a cache line */

enum { INTERCEPT_NONE, INTERCEPT_SHARED, INTERCEPT_COUPLED, INTERCEPT_FREE };

/* Parameters: `shared` (n_shared, n_classes, stride), `specific` (heads, stride), stride a multiple
 * of 64 bytes: d features, zeros, and last the vector's intercept. Heads of task t are head_start[t] .. head_start[t + 1].
 * With CSR, head h's vector is vector_start[h] .. vector_start[h + 1] of `specific`, and an entry of
 * X lies at `position` in the vectors of its row's task: these may be short, without the columns
 * that the task's rows lack. */
typedef struct {
    const void *X; /* dense rows, or the values of CSR */
    const int32_t *indices;
    const int32_t *position;
    const int64_t *indptr;
    int64_t row_stride, d, stride; /* d: of dense rows */
    const sgd_sample *samples;
    const double *mixing, *kappa;
    /* 1 / P(a draw touches the task), and the same for tasks that have a class */
    const double *task_rarity, *class_rarity;
    const int64_t *head_start;
    const int32_t *head_class;
    const int64_t *vector_start;
    void *shared, *specific;
    double *intercept; /* (n_classes,), never penalised */
    int64_t n_heads;
    int32_t n_shared, n_classes, intercept_kind, softmax;
    double alpha;
    const double *task_alpha; /* SAGA: alpha times (kappa here over the true one) */
    point_loss loss;
    double smoothness; /* bound on the loss's second derivative; 0 switches the damping off */
    int32_t poisson;
    double rate_scale, rate_offset, rate_power;
    /* CSR: the shrinkage of a vector is a factor beside it */
    double *shared_scale, *specific_scale;
    /* SAGA: last derivative of each sample and head, and the averages that follow from them */
    double *memory;
    int64_t memory_stride, n_samples;
    void *shared_average, *specific_average;
    double *intercept_average;
    const void *shared_spread, *specific_spread;
    double *scratch; /* 2 * most heads of a task */
    int64_t pool; /* draws this far apart lie near one another in memory; 0: anywhere */
    int32_t specific_cached; /* fits a core's cache: nothing to prefetch */
    /* The general steps: shares of alpha, and what is NULL or 0 where it is not asked for */
    double shared_l1, shared_l2, task_l1, task_l2;
    double clip;
    int64_t pace, average_from; /* steps that pass with each draw, one a thread; first averaged */
    double *shared_squares, *specific_squares, *intercept_squares;
    double *shared_drift, *specific_drift, *intercept_drift;
} sgd_problem;

/* Runs the samples in `order`; returns the sum of their weighted losses, each before its step. */
typedef double (*sgd_function)(const sgd_problem *, const int64_t *order, int64_t count, int64_t step);

typedef struct {
    sgd_function sgd_dense, sgd_csr, saga_dense, saga_csr;
    sgd_function sgd_general, saga_general;
    /* `memory` (n, 3): slopes, conjugates, scores; no sum. The joint one has (stride, n_heads)
     * float64 coefficients in `specific`, and (n_heads, n_heads) of the tasks' C in `mixing`. */
    sgd_function dual_dense, dual_csr, dual_joint;
    void (*losses_dense)(const sgd_problem *, double *task_loss);
    void (*losses_csr)(const sgd_problem *, double *task_loss);
    void (*settle)(const sgd_problem *); /* multiplies the factors of CSR out */
} sgd_table;

const sgd_table *sgd_table_f64(int level);
const sgd_table *sgd_table_f32(int level);

#endif
