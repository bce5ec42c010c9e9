"""Networks: a trunk of layers with coupled linear heads, trained whole epochs at a time.

The table of layers, one row a layer, and the meaning of every argument are described in
``fastmtl.reference.network``; the arithmetic is in ``network_kernels.h``.
"""

from cython cimport floating
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

import numpy as np

from fastmtl._core.cpu cimport simd_level

cdef extern from "network.h" nogil:
    enum:
        SET_BATCH
        N_SETTINGS
        N_COLUMNS

    ctypedef struct network_job:
        const int64_t *layers
        int64_t n_layers
        const void *X
        int64_t x_stride
        const int32_t *lengths
        const int64_t *sample_row
        const int64_t *sample_start
        const int32_t *task
        const double *target
        const double *weight
        const int64_t *order
        int64_t n_order
        const int64_t *head_start
        const int64_t *head_row
        const void *head_mix
        int64_t mix_width, n_head_rows, head_offset, n_parameters, max_outputs, n_tasks, n_threads
        const int32_t *loss
        const double *loss_parameter
        void *parameters
        void *state
        void *gradient
        const double *settings
        double *layer_norms
        double *task_loss
        void *workspace
        void *features

    ctypedef struct network_table:
        size_t (*workspace)(const network_job *job, int64_t batch, int training) noexcept nogil
        int (*train)(const network_job *job) noexcept nogil
        void (*forward)(const network_job *job) noexcept nogil

    const network_table *network_kernels(int level, int is_f32)


def network_forward(
    const int64_t[:, ::1] layers,
    const floating[:, ::1] X,
    const int32_t[::1] lengths,
    const floating[::1] parameters,
    int64_t batch,
):
    """Features of the trunk's last layer for every row of X."""
    cdef network_job job
    cdef const network_table *kernels = network_kernels(simd_level, floating is float)
    cdef double[::1] settings = np.zeros(N_SETTINGS)
    cdef int64_t n_features = layers[layers.shape[0] - 1, 5]
    features_array = np.empty((X.shape[0], n_features), np.float32 if floating is float else np.float64)
    cdef floating[:, ::1] features = features_array
    if X.shape[0] == 0:
        return features_array
    job.layers = &layers[0, 0]
    job.n_layers = layers.shape[0]
    job.X = &X[0, 0]
    job.x_stride = X.shape[1]
    job.lengths = &lengths[0] if lengths.shape[0] else NULL
    job.n_order = X.shape[0]
    job.parameters = <void *>&parameters[0] if parameters.shape[0] else NULL
    settings[SET_BATCH] = min(batch, X.shape[0])
    job.settings = &settings[0]
    job.max_outputs = 0
    job.n_threads = 1
    job.features = &features[0, 0]
    job.workspace = malloc(kernels.workspace(&job, min(batch, X.shape[0]), 0))
    if job.workspace == NULL:
        raise MemoryError("no memory for the network's buffers; use a smaller batch")
    with nogil:
        kernels.forward(&job)
        free(job.workspace)
    return features_array


def network_train(
    const int64_t[:, ::1] layers,
    const floating[:, ::1] X,
    const int32_t[::1] lengths,
    const int64_t[::1] sample_row,
    const int64_t[::1] sample_start,
    const int32_t[::1] task,
    const double[::1] target,
    const double[::1] weight,
    const int64_t[::1] order,
    const int64_t[::1] head_start,
    const int64_t[:, ::1] head_row,
    const floating[:, ::1] head_mix,
    const int32_t[::1] loss,
    const double[::1] loss_parameter,
    int64_t head_offset,
    int64_t n_head_rows,
    int64_t max_outputs,
    floating[::1] parameters,
    floating[:, ::1] state,
    floating[::1] gradient,
    const double[::1] settings,
    double[::1] layer_norms,
    double[::1] task_loss,
    int64_t n_threads,
):
    """Train on the samples of `order`; return 0, or 1 where a loss or gradient was not finite."""
    cdef network_job job
    cdef const network_table *kernels = network_kernels(simd_level, floating is float)
    cdef int status
    if order.shape[0] == 0:
        return 0
    job.layers = &layers[0, 0]
    job.n_layers = layers.shape[0]
    job.X = &X[0, 0]
    job.x_stride = X.shape[1]
    job.lengths = &lengths[0] if lengths.shape[0] else NULL
    job.sample_row = &sample_row[0]
    job.sample_start = &sample_start[0]
    job.task = &task[0]
    job.target = &target[0]
    job.weight = &weight[0]
    job.order = &order[0]
    job.n_order = order.shape[0]
    job.head_start = &head_start[0]
    job.head_row = &head_row[0, 0]
    job.head_mix = &head_mix[0, 0]
    job.mix_width = head_mix.shape[1]
    job.n_head_rows = n_head_rows
    job.head_offset = head_offset
    job.n_parameters = parameters.shape[0]
    job.max_outputs = max_outputs
    job.n_tasks = task_loss.shape[0]
    job.n_threads = max(1, min(n_threads, <int64_t>settings[SET_BATCH]))
    job.loss = &loss[0]
    job.loss_parameter = &loss_parameter[0]
    job.parameters = &parameters[0]
    job.state = &state[0, 0]
    job.gradient = &gradient[0]
    job.settings = &settings[0]
    job.layer_norms = &layer_norms[0]
    job.task_loss = &task_loss[0]
    job.workspace = malloc(kernels.workspace(&job, <int64_t>settings[SET_BATCH], 1))
    if job.workspace == NULL:
        raise MemoryError("no memory for the network's buffers; use a smaller batch_size")
    with nogil:
        status = kernels.train(&job)
        free(job.workspace)
    return status
