/* What the door (network.pyx) and the kernels of networks agree on. */
#ifndef FASTMTL_NETWORK_H
#define FASTMTL_NETWORK_H
#include <stddef.h>
#include <stdint.h>
#include "losses.h"
#include "simd/levels.h"

enum { LAYER_INPUT, LAYER_DENSE, LAYER_CONV2D, LAYER_MAXPOOL2D, LAYER_CONCAT, LAYER_RNN,
       LAYER_LSTM, LAYER_GRU, LAYER_DROPOUT, LAYER_LAYERNORM };
enum { ACT_IDENTITY, ACT_RELU, ACT_LEAKY_RELU, ACT_TANH, ACT_LOGISTIC, ACT_GELU };
enum { OPT_SGD, OPT_MOMENTUM, OPT_NESTEROV, OPT_ADAM };

/* One row of the table of layers; see reference/network.py for the meaning of the columns. */
enum { COL_KIND, COL_ACT, COL_IN, COL_IN2, COL_N_IN, COL_N_OUT, COL_OFFSET, COL_N_WEIGHTS,
       COL_N_BIAS, COL_D0, COL_D1, COL_D2, COL_D3, COL_D4, COL_D5, COL_D6, N_COLUMNS };
enum { SET_OPTIMISER, SET_BATCH, SET_RATE, SET_ALPHA, SET_DECAY, SET_MOMENTUM, SET_BETA2,
       SET_EPSILON, SET_CLIP, SET_STEP, SET_SEED, SET_DECOUPLED, SET_SURGERY, N_SETTINGS };
enum { LOSS_SOFTMAX = 100 };

typedef struct {
    const int64_t *layers;
    int64_t n_layers;
    const void *X;
    int64_t x_stride;
    const int32_t *lengths;
    const int64_t *sample_row, *sample_start;
    const int32_t *task;
    const double *target, *weight;
    const int64_t *order;
    int64_t n_order;
    const int64_t *head_start, *head_row;
    const void *head_mix;
    int64_t mix_width, n_head_rows, head_offset, n_parameters, max_outputs, n_tasks, n_threads;
    const int32_t *loss;
    const double *loss_parameter;
    void *parameters, *state, *gradient;
    const double *settings;
    double *layer_norms; /* (n_layers + 1): squared gradient norms of the last step */
    double *task_loss;   /* (n_tasks): sums of weighted losses */
    void *workspace;
    void *features; /* forward only */
} network_job;

typedef struct {
    size_t (*workspace)(const network_job *job, int64_t batch, int training);
    int (*train)(const network_job *job);
    void (*forward)(const network_job *job);
} network_table;

const network_table *network_kernels(int level, int is_f32);
#endif
