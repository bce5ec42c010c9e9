/* Forward, backward and update of a network, for one (dtype, instruction set).
 *
 * Weights lie input-major, (n_in, n_out), so that both y = Wᵀx and the rank-1 update run along
 * rows; at batch 1 the backward pass reads and writes each weight once, update included.
 */
#define INLINE static inline __attribute__((always_inline))
#if !defined(__GNUC__)
#undef INLINE
#define INLINE static inline
#endif

#define part_load NAME(part_load_)
#define part_store NAME(part_store_)
#define add_lanes NAME(add_lanes_)
#define layer NAME(layer_t)
#if IS_F32
#define real_sqrt sqrtf
#else
#define real_sqrt sqrt
#endif
#define net NAME(net_t)

#if TARGET_LEVEL == 2 && IS_F32
INLINE vec part_load(const real *p, int n) { return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void part_store(real *p, vec v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
INLINE real add_lanes(vec v) { return _mm512_reduce_add_ps((__m512)v); }
#elif TARGET_LEVEL == 2
INLINE vec part_load(const real *p, int n) { return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p); }
INLINE void part_store(real *p, vec v, int n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v); }
INLINE real add_lanes(vec v) { return _mm512_reduce_add_pd((__m512d)v); }
#else
INLINE vec part_load(const real *p, int n) {
    real buffer[LANES];
    for (int i = 0; i < LANES; i++) buffer[i] = i < n ? p[i] : (real)0;
    return load(buffer);
}
INLINE void part_store(real *p, vec v, int n) {
    real buffer[LANES];
    store(buffer, v);
    for (int i = 0; i < n; i++) p[i] = buffer[i];
}
INLINE real add_lanes(vec v) { return sum_lanes(v); }
#endif

#include "simd/vector_math.h"

#define MAP_IN_PLACE(name, function)                                                        \
    static void NAME(name)(real *x, ptrdiff_t n) {                                          \
        ptrdiff_t i = 0;                                                                    \
        for (; i + LANES <= n; i += LANES) store(x + i, function(load(x + i)));             \
        if (i < n) part_store(x + i, function(part_load(x + i, (int)(n - i))), (int)(n - i)); \
    }
MAP_IN_PLACE(logistic_, vlogistic)
MAP_IN_PLACE(tanh_, vtanh)
#undef MAP_IN_PLACE

/* C = beta C + alpha A B, with A[m, k] at A[m rs + k cs] and rows of B and C contiguous. */
INLINE void NAME(tile_)(const int MR, const int NV, int last, ptrdiff_t K, const real *A, ptrdiff_t rs,
                        ptrdiff_t cs, const real *B, ptrdiff_t ldb, real *C, ptrdiff_t ldc, real alpha,
                        real beta) {
    vec acc[8][8];
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) acc[m][v] = splat(0);
    for (ptrdiff_t k = 0; k < K; k++) {
        vec b[8];
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++)
            b[v] = v == NV - 1 && last < LANES ? part_load(B + k * ldb + v * LANES, last) : load(B + k * ldb + v * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            vec a = splat(A[m * rs + k * cs]);
#pragma GCC unroll 8
            for (int v = 0; v < NV; v++) acc[m][v] += a * b[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            real *c = C + m * ldc + v * LANES;
            vec r = splat(alpha) * acc[m][v];
            if (v == NV - 1 && last < LANES) {
                if (beta != 0) r += splat(beta) * part_load(c, last);
                part_store(c, r, last);
            } else {
                if (beta != 0) r += splat(beta) * load(c);
                store(c, r);
            }
        }
}

#if TARGET_LEVEL == 2
#define GEMM_NV 4
#define GEMM_MR 6
#else
#define GEMM_NV 2
#define GEMM_MR 4
#endif

#define ROW_BLOCK 192
#define GEMM_ROWS(NV, LAST)                                                                        \
    do {                                                                                           \
        ptrdiff_t m = 0;                                                                           \
        for (; m + GEMM_MR <= M; m += GEMM_MR)                                                     \
            NAME(tile_)(GEMM_MR, NV, LAST, kb, a + m * rs, rs, cs, b, ldb, c + m * ldc, ldc, alpha, be); \
        for (; m + 2 <= M; m += 2)                                                                 \
            NAME(tile_)(2, NV, LAST, kb, a + m * rs, rs, cs, b, ldb, c + m * ldc, ldc, alpha, be);   \
        if (m < M) NAME(tile_)(1, NV, LAST, kb, a + m * rs, rs, cs, b, ldb, c + m * ldc, ldc, alpha, be); \
    } while (0)

static void NAME(gemm_)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *A, ptrdiff_t rs, ptrdiff_t cs,
                        const real *B, ptrdiff_t ldb, real *C, ptrdiff_t ldc, real alpha, real beta) {
    const ptrdiff_t K_BLOCK = 256;
    ptrdiff_t k0 = 0;
    do {
        ptrdiff_t kb = K - k0 < K_BLOCK ? K - k0 : K_BLOCK;
        real be = k0 ? (real)1 : beta;
        ptrdiff_t n = 0;
        const real *a = A + k0 * cs;
        for (; n + GEMM_NV * LANES <= N; n += GEMM_NV * LANES) {
            const real *b = B + k0 * ldb + n;
            real *c = C + n;
            GEMM_ROWS(GEMM_NV, LANES);
        }
#if GEMM_NV > 2
        for (; n + 2 * LANES <= N; n += 2 * LANES) {
            const real *b = B + k0 * ldb + n;
            real *c = C + n;
            GEMM_ROWS(2, LANES);
        }
#endif
        for (; n + LANES <= N; n += LANES) {
            const real *b = B + k0 * ldb + n;
            real *c = C + n;
            GEMM_ROWS(1, LANES);
        }
        if (n < N) {
            const real *b = B + k0 * ldb + n;
            real *c = C + n;
            int last = (int)(N - n);
            GEMM_ROWS(1, last);
        }
        k0 += kb;
    } while (k0 < K);
}

/* y += x A for one row x: many accumulators hide the latency; zeros of x are skipped on request. */
INLINE void NAME(row_times_block_)(const int NV, ptrdiff_t K, const real *x, const real *A, ptrdiff_t lda,
                                   real *y, int skip) {
    vec acc[8];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) acc[v] = load(y + v * LANES);
    for (ptrdiff_t k = 0; k < K; k++) {
        if (skip && x[k] == 0) continue;
        vec a = splat(x[k]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) acc[v] += a * load(A + k * lda + v * LANES);
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) store(y + v * LANES, acc[v]);
}
static void NAME(row_times_)(ptrdiff_t K, ptrdiff_t N, const real *x, const real *A, real *y) {
    ptrdiff_t n = 0;
    int skip = K * N > 65536;
    for (; n + 8 * LANES <= N; n += 8 * LANES) NAME(row_times_block_)(8, K, x, A + n, N, y + n, skip);
    for (; n + 4 * LANES <= N; n += 4 * LANES) NAME(row_times_block_)(4, K, x, A + n, N, y + n, skip);
    for (; n + 2 * LANES <= N; n += 2 * LANES) NAME(row_times_block_)(2, K, x, A + n, N, y + n, skip);
    for (; n + LANES <= N; n += LANES) NAME(row_times_block_)(1, K, x, A + n, N, y + n, skip);
    if (n < N) {
        int last = (int)(N - n);
        vec acc = part_load(y + n, last);
        for (ptrdiff_t k = 0; k < K; k++) acc += splat(x[k]) * part_load(A + k * N + n, last);
        part_store(y + n, acc, last);
    }
}

/* One row of weights at batch 1: returns w·g, and writes out ← beta w + scale g. */
INLINE real NAME(row_backward_)(ptrdiff_t n, const real *w, const real *g, real *out, real scale, real beta) {
    vec total_0 = splat(0), total_1 = splat(0), s = splat(scale), be = splat(beta);
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vec w0 = load(w + i), w1 = load(w + i + LANES), g0 = load(g + i), g1 = load(g + i + LANES);
        total_0 += w0 * g0;
        total_1 += w1 * g1;
        store(out + i, be * w0 + s * g0);
        store(out + i + LANES, be * w1 + s * g1);
    }
    for (; i + LANES <= n; i += LANES) {
        vec w0 = load(w + i), g0 = load(g + i);
        total_0 += w0 * g0;
        store(out + i, be * w0 + s * g0);
    }
    if (i < n) {
        vec w0 = part_load(w + i, (int)(n - i)), g0 = part_load(g + i, (int)(n - i));
        total_1 += w0 * g0;
        part_store(out + i, be * w0 + s * g0, (int)(n - i));
    }
    return add_lanes(total_0 + total_1);
}
INLINE void NAME(axpy_)(ptrdiff_t n, real a, const real *x, real *y) {
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + splat(a) * load(x + i));
    for (; i < n; i++) y[i] += a * x[i];
}
/* b (cols, rows) = aᵀ; padded, the rest of each row of b is set to zero */
static void NAME(transpose_)(ptrdiff_t rows, ptrdiff_t cols, const real *a, ptrdiff_t lda, real *b, ptrdiff_t ldb) {
    for (ptrdiff_t j0 = 0; j0 < cols; j0 += 16)
        for (ptrdiff_t i = 0; i < rows; i++) {
            ptrdiff_t j1 = j0 + 16 < cols ? j0 + 16 : cols;
            for (ptrdiff_t j = j0; j < j1; j++) b[j * ldb + i] = a[i * lda + j];
        }
}
static void NAME(transpose_padded_)(ptrdiff_t rows, ptrdiff_t cols, const real *a, ptrdiff_t lda, real *b, ptrdiff_t ldb) {
    NAME(transpose_)(rows, cols, a, lda, b, ldb);
    for (ptrdiff_t j = 0; j < cols; j++)
        for (ptrdiff_t i = rows; i < ldb; i++) b[j * ldb + i] = 0;
}

static void NAME(activate_)(int64_t act, real *y, real *pre, ptrdiff_t n) {
    switch (act) {
    case ACT_RELU:
        for (ptrdiff_t i = 0; i < n; i++) y[i] = y[i] < 0 ? (real)0 : y[i]; /* NaN stays NaN */
        break;
    case ACT_LEAKY_RELU:
        for (ptrdiff_t i = 0; i < n; i++) y[i] = y[i] < 0 ? (real)0.01 * y[i] : y[i];
        break;
    case ACT_TANH: NAME(tanh_)(y, n); break;
    case ACT_LOGISTIC: NAME(logistic_)(y, n); break;
    case ACT_GELU:
        memcpy(pre, y, (size_t)n * sizeof(real));
        for (ptrdiff_t i = 0; i < n; i++) y[i] = (real)(0.5 * y[i] * (1.0 + erf(y[i] * 0.70710678118654752440)));
        break;
    default: break;
    }
}
static void NAME(activate_backward_)(int64_t act, const real *y, const real *pre, real *g, ptrdiff_t n) {
    switch (act) {
    case ACT_RELU: for (ptrdiff_t i = 0; i < n; i++) g[i] = y[i] > 0 ? g[i] : (real)0; break;
    case ACT_LEAKY_RELU: for (ptrdiff_t i = 0; i < n; i++) g[i] = y[i] > 0 ? g[i] : (real)0.01 * g[i]; break;
    case ACT_TANH: for (ptrdiff_t i = 0; i < n; i++) g[i] *= 1 - y[i] * y[i]; break;
    case ACT_LOGISTIC: for (ptrdiff_t i = 0; i < n; i++) g[i] *= y[i] * (1 - y[i]); break;
    case ACT_GELU:
        for (ptrdiff_t i = 0; i < n; i++) {
            double x = pre[i];
            g[i] *= (real)(0.5 * (1.0 + erf(x * 0.70710678118654752440)) + x * 0.39894228040143267794 * exp(-0.5 * x * x));
        }
        break;
    default: break;
    }
}

typedef struct {
    const int64_t *row; /* its line of the table */
    real *value, *own, *pre, *grad, *cache;
    int wants_grad; /* something below it has parameters */
} layer;

typedef struct {
    const network_job *job;
    layer *layers;
    int64_t n_layers, batch, n_features;
    int64_t first, own, total; /* where its rows lie in the step's batch, how many, of how many */
    double *task_loss, loss;
    real *transposed, *transposed_2, *weights_t, *windows, *outputs;
    real *scores, *slopes, *heads_t; /* of all heads at once; NULL where a sample has few of them */
    int32_t *lengths;
    int64_t *rows;
    real *parameters;
    int training;
    uint64_t step;
    int64_t only;    /* the task whose labels alone count; -1: all */
    real head_scale; /* the heads are this times what is stored, so that shrinking them is O(1) */
} net;

#define TAKE(type, count) (type *)NAME(take_)(&at, base, sizeof(type) * (size_t)(count))
static void *NAME(take_)(size_t *at, char *base, size_t bytes) {
    char *p = base ? base + *at : NULL;
    *at += (bytes + 127) / 64 * 64;
    return p;
}

static int64_t NAME(cache_size_)(const int64_t *row, int64_t batch) {
    int64_t steps = row[COL_D0], units = row[COL_D2];
    switch (row[COL_KIND]) {
    case LAYER_MAXPOOL2D: case LAYER_DROPOUT: return batch * row[COL_N_OUT];
    case LAYER_LAYERNORM: return batch * (row[COL_N_OUT] + 1);
    /* hidden states (steps + 1), gates, and dh, dc of one step */
    case LAYER_RNN: return batch * units * (2 * steps + 1 + 2);
    case LAYER_LSTM: return batch * units * (steps + 1 + 4 * steps + steps + 1 + steps + 2);
    case LAYER_GRU: return batch * units * (steps + 1 + 3 * steps + 3 * steps + 3 * steps + 4);
    default: return 0;
    }
}

/* Lay the buffers out from `base`; with base NULL only the size is wanted. */
static size_t NAME(lay_out_)(net *n, const network_job *job, int64_t batch, int training, char *base) {
    size_t at = 0;
    layer scratch;
    int64_t widest = 1, largest = 1, windows_size = 1;
    int64_t padded = (batch + LANES - 1) / LANES * LANES;
    layer *layers = TAKE(layer, job->n_layers);
    for (int64_t i = 0; i < job->n_layers; i++) {
        layer *l = base ? layers + i : &scratch;
        const int64_t *row = l->row = job->layers + i * N_COLUMNS;
        int64_t size = batch * row[COL_N_OUT];
        l->value = l->own = TAKE(real, size);
        l->pre = row[COL_ACT] == ACT_GELU ? TAKE(real, size) : NULL;
        l->grad = training ? TAKE(real, size) : NULL;
        l->cache = TAKE(real, NAME(cache_size_)(row, batch));
        if (base) {
            l->wants_grad = row[COL_N_WEIGHTS] > 0;
            if (row[COL_IN] >= 0) l->wants_grad |= layers[row[COL_IN]].wants_grad;
            if (row[COL_IN2] >= 0) l->wants_grad |= layers[row[COL_IN2]].wants_grad;
        }
        if (row[COL_N_OUT] > widest) widest = row[COL_N_OUT];
        if (row[COL_N_IN] > widest) widest = row[COL_N_IN];
        if (row[COL_KIND] != LAYER_DENSE && row[COL_N_WEIGHTS] > largest) largest = row[COL_N_WEIGHTS];
        if (row[COL_KIND] == LAYER_CONV2D) {
            int64_t own = row[COL_N_OUT] / row[COL_D4] * row[COL_D3] * row[COL_D3] * row[COL_D2];
            windows_size = own > windows_size ? own : windows_size;
        }
    }
    real *transposed = training ? TAKE(real, widest * padded) : NULL;
    real *transposed_2 = training ? TAKE(real, ROW_BLOCK * padded) : NULL;
    real *weights_t = TAKE(real, largest);
    real *windows = TAKE(real, windows_size);
    real *outputs = training ? TAKE(real, batch * job->max_outputs) : NULL;
    int64_t rows_of_heads = job->n_head_rows, F = job->layers[(job->n_layers - 1) * N_COLUMNS + COL_N_OUT];
    int whole = training && batch > 1 && rows_of_heads <= 2 * job->max_outputs * job->mix_width;
    real *scores = whole ? TAKE(real, batch * rows_of_heads) : NULL;
    real *slopes = whole ? TAKE(real, batch * rows_of_heads) : NULL;
    real *heads_t = whole ? TAKE(real, F * rows_of_heads) : NULL;
    int32_t *lengths = TAKE(int32_t, batch);
    int64_t *rows = TAKE(int64_t, batch);
    if (base) {
        n->job = job;
        n->layers = layers;
        n->n_layers = job->n_layers;
        n->batch = batch;
        n->n_features = F;
        n->transposed = transposed;
        n->transposed_2 = transposed_2;
        n->weights_t = weights_t;
        n->windows = windows;
        n->outputs = outputs;
        n->scores = scores;
        n->slopes = slopes;
        n->heads_t = heads_t;
        n->lengths = lengths;
        n->rows = rows;
        n->parameters = (real *)job->parameters;
        n->training = training;
        n->step = 0;
        n->first = n->own = 0;
        n->total = batch;
        n->only = -1;
        n->head_scale = 1;
        n->task_loss = job->task_loss;
    }
    return at + 64;
}

static uint64_t NAME(hash_)(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* -- recurrent layers: Z[t] = x_t Wx + h_{t-1} Wh + b, steps outermost in every buffer ---------- */

static void NAME(recurrent_forward_)(net *n, layer *l, int64_t b) {
    const int64_t *row = l->row;
    int64_t steps = row[COL_D0], feat = row[COL_D1], u = row[COL_D2], sequences = row[COL_D3];
    int64_t kind = row[COL_KIND], gates = kind == LAYER_LSTM ? 4 : kind == LAYER_GRU ? 3 : 1, G = gates * u;
    const real *Wx = n->parameters + row[COL_OFFSET], *Wh = Wx + feat * G, *bias = Wh + u * G;
    const real *x = n->layers[row[COL_IN]].value;
    real *H = l->cache, *Z = H + b * u * (steps + 1);
    real *C = Z + b * G * steps, *T = C + b * u * (steps + 1); /* LSTM: cells and their tanh */
    real *A = Z + b * G * steps;                                /* GRU: h Wh, with b_hn on its last third */
    int64_t longest = 0;
    for (int64_t i = 0; i < b; i++) longest = n->lengths[i] > longest ? n->lengths[i] : longest;
    for (int64_t i = 0; i < b; i++) {
        int64_t own = n->lengths[i];
        for (int64_t t = 0; t < longest; t++) memcpy(Z + (t * b + i) * G, bias, (size_t)G * sizeof(real));
        NAME(gemm_)(own, G, feat, x + i * steps * feat, feat, 1, Wx, G, Z + i * G, b * G, 1, 1);
    }
    memset(H, 0, (size_t)(b * u) * sizeof(real));
    if (kind == LAYER_LSTM) memset(C, 0, (size_t)(b * u) * sizeof(real));
    for (int64_t t = 0; t < longest; t++) {
        real *h = H + t * b * u, *next = h + b * u, *z = Z + t * b * G;
        if (kind == LAYER_GRU) {
            real *a = A + t * b * G;
            NAME(gemm_)(b, G, u, h, u, 1, Wh, G, a, G, 1, 0);
            for (int64_t i = 0; i < b; i++) NAME(axpy_)(u, 1, bias + G, a + i * G + 2 * u);
        } else {
            NAME(gemm_)(b, G, u, h, u, 1, Wh, G, z, G, 1, 1);
        }
        for (int64_t i = 0; i < b; i++) {
            real *g = z + i * G, *hi = h + i * u, *ni = next + i * u;
            if (t >= n->lengths[i]) { /* past its end: the state stays, the gates pass no gradient */
                memcpy(ni, hi, (size_t)u * sizeof(real));
                if (kind == LAYER_LSTM) memcpy(C + ((t + 1) * b + i) * u, C + (t * b + i) * u, (size_t)u * sizeof(real));
                continue;
            }
            if (kind == LAYER_RNN) {
                NAME(tanh_)(g, u);
                memcpy(ni, g, (size_t)u * sizeof(real));
            } else if (kind == LAYER_LSTM) {
                real *c = C + (t * b + i) * u, *cn = C + ((t + 1) * b + i) * u, *tc = T + (t * b + i) * u;
                NAME(logistic_)(g, 2 * u);
                NAME(tanh_)(g + 2 * u, u);
                NAME(logistic_)(g + 3 * u, u);
                for (int64_t j = 0; j < u; j++) tc[j] = cn[j] = g[u + j] * c[j] + g[j] * g[2 * u + j];
                NAME(tanh_)(tc, u);
                for (int64_t j = 0; j < u; j++) ni[j] = g[3 * u + j] * tc[j];
            } else {
                real *a = A + (t * b + i) * G;
                for (int64_t j = 0; j < 2 * u; j++) g[j] += a[j];
                NAME(logistic_)(g, 2 * u);
                for (int64_t j = 0; j < u; j++) g[2 * u + j] += g[j] * a[2 * u + j];
                NAME(tanh_)(g + 2 * u, u);
                for (int64_t j = 0; j < u; j++) ni[j] = g[2 * u + j] + g[u + j] * (hi[j] - g[2 * u + j]);
            }
        }
    }
    for (int64_t i = 0; i < b; i++) {
        if (!sequences) {
            memcpy(l->value + i * u, H + (longest * b + i) * u, (size_t)u * sizeof(real));
            continue;
        }
        for (int64_t t = 0; t < steps; t++) {
            real *out = l->value + (i * steps + t) * u;
            if (t < n->lengths[i]) memcpy(out, H + ((t + 1) * b + i) * u, (size_t)u * sizeof(real));
            else memset(out, 0, (size_t)u * sizeof(real));
        }
    }
}

/* The weights at `out` become beta out + alpha (their gradient). */
static void NAME(recurrent_backward_)(net *n, layer *l, int64_t b, real *out, real alpha, real beta) {
    const int64_t *row = l->row;
    int64_t steps = row[COL_D0], feat = row[COL_D1], u = row[COL_D2], sequences = row[COL_D3];
    int64_t kind = row[COL_KIND], gates = kind == LAYER_LSTM ? 4 : kind == LAYER_GRU ? 3 : 1, G = gates * u;
    const real *Wx = n->parameters + row[COL_OFFSET], *Wh = Wx + feat * G;
    layer *below = n->layers + row[COL_IN];
    real *H = l->cache, *Z = H + b * u * (steps + 1);
    real *C = Z + b * G * steps, *T = C + b * u * (steps + 1);
    real *A = Z + b * G * steps, *D = A + b * G * steps; /* GRU: what reaches h Wh */
    real *dh = kind == LAYER_RNN ? Z + b * G * steps : kind == LAYER_LSTM ? T + b * u * steps : D + b * G * steps;
    real *dc = dh + b * u;
    int64_t longest = 0;
    for (int64_t i = 0; i < b; i++) longest = n->lengths[i] > longest ? n->lengths[i] : longest;
    NAME(transpose_)(u, G, Wh, G, n->weights_t, u);
    memset(dh, 0, (size_t)(2 * b * u) * sizeof(real));
    if (!sequences) memcpy(dh, l->grad, (size_t)(b * u) * sizeof(real));
    for (int64_t t = longest - 1; t >= 0; t--) {
        real *z = Z + t * b * G, *h = H + t * b * u;
        for (int64_t i = 0; i < b; i++) {
            real *g = z + i * G, *dhi = dh + i * u, *dci = dc + i * u;
            if (t >= n->lengths[i]) {
                memset(g, 0, (size_t)G * sizeof(real));
                if (kind == LAYER_GRU) memset(D + (t * b + i) * G, 0, (size_t)G * sizeof(real));
                continue;
            }
            if (sequences) NAME(axpy_)(u, 1, l->grad + (i * steps + t) * u, dhi);
            if (kind == LAYER_RNN) {
                for (int64_t j = 0; j < u; j++) g[j] = dhi[j] * (1 - g[j] * g[j]);
            } else if (kind == LAYER_LSTM) {
                const real *c = C + (t * b + i) * u, *tc = T + (t * b + i) * u;
                for (int64_t j = 0; j < u; j++) {
                    real in = g[j], forget = g[u + j], cell = g[2 * u + j], o = g[3 * u + j];
                    real d = dci[j] + dhi[j] * o * (1 - tc[j] * tc[j]);
                    g[j] = d * cell * in * (1 - in);
                    g[u + j] = d * c[j] * forget * (1 - forget);
                    g[2 * u + j] = d * in * (1 - cell * cell);
                    g[3 * u + j] = dhi[j] * tc[j] * o * (1 - o);
                    dci[j] = d * forget;
                }
            } else {
                const real *a = A + (t * b + i) * G, *hi = h + i * u;
                real *d = D + (t * b + i) * G;
                for (int64_t j = 0; j < u; j++) {
                    real r = g[j], zz = g[u + j], c = g[2 * u + j];
                    real dn = dhi[j] * (1 - zz) * (1 - c * c);
                    real dz = dhi[j] * (hi[j] - c) * zz * (1 - zz);
                    real dr = dn * a[2 * u + j] * r * (1 - r);
                    g[j] = d[j] = dr;
                    g[u + j] = d[u + j] = dz;
                    g[2 * u + j] = dn;
                    d[2 * u + j] = dn * r;
                    dci[j] = dhi[j] * zz; /* the direct way to the state before */
                }
            }
        }
        /* Rows past their end have zero gates: keep their dh. */
        if (kind == LAYER_GRU) {
            for (int64_t i = 0; i < b; i++)
                if (t < n->lengths[i]) memcpy(dh + i * u, dc + i * u, (size_t)u * sizeof(real));
            NAME(gemm_)(b, u, G, D + t * b * G, G, 1, n->weights_t, u, dh, u, 1, 1);
        } else {
            for (int64_t i = 0; i < b; i++)
                if (t < n->lengths[i]) memset(dh + i * u, 0, (size_t)u * sizeof(real));
            NAME(gemm_)(b, u, G, z, G, 1, n->weights_t, u, dh, u, 1, 1);
        }
    }
    if (below->wants_grad) {
        NAME(transpose_)(feat, G, Wx, G, n->weights_t, feat);
        memset(below->grad, 0, (size_t)(b * steps * feat) * sizeof(real));
        for (int64_t i = 0; i < b; i++)
            NAME(gemm_)(n->lengths[i], feat, G, Z + i * G, b * G, 1, n->weights_t, feat, below->grad + i * steps * feat, feat, 1, 0);
    }
    if (beta != 1)
        for (int64_t i = 0; i < row[COL_N_WEIGHTS]; i++) out[i] *= beta;
    real *gx = out, *gh = out + feat * G, *gb = gh + u * G;
    for (int64_t i = 0; i < b; i++)
        NAME(gemm_)(feat, G, n->lengths[i], below->value + i * steps * feat, 1, feat, Z + i * G, b * G, gx, G, alpha, 1);
    NAME(gemm_)(u, G, longest * b, H, 1, u, kind == LAYER_GRU ? D : Z, G, gh, G, alpha, 1);
    for (int64_t k = 0; k < longest * b; k++) {
        NAME(axpy_)(G, alpha, Z + k * G, gb);
        if (kind == LAYER_GRU) NAME(axpy_)(u, alpha, D + k * G + 2 * u, gb + G);
    }
}

/* -- convolution: one sample's windows side by side, then one product ---------------------------- */

typedef struct {
    ptrdiff_t H, W, c, k, f, stride, ho, wo, top, left;
} NAME(conv_t);

/* "same" padding makes as many outputs as there are strides, the odd row and column at the end. */
INLINE NAME(conv_t) NAME(conv_)(const int64_t *row) {
    NAME(conv_t) v = {row[COL_D0], row[COL_D1], row[COL_D2], row[COL_D3], row[COL_D4], row[COL_D5], 0, 0, 0, 0};
    if (row[COL_D6]) {
        v.ho = (v.H + v.stride - 1) / v.stride;
        v.wo = (v.W + v.stride - 1) / v.stride;
        v.top = (v.ho - 1) * v.stride + v.k - v.H;
        v.left = (v.wo - 1) * v.stride + v.k - v.W;
        v.top = v.top > 0 ? v.top / 2 : 0;
        v.left = v.left > 0 ? v.left / 2 : 0;
    } else {
        v.ho = (v.H - v.k) / v.stride + 1;
        v.wo = (v.W - v.k) / v.stride + 1;
    }
    return v;
}

static void NAME(windows_)(const NAME(conv_t) v, const real *x, real *windows) {
    for (ptrdiff_t y = 0; y < v.ho; y++)
        for (ptrdiff_t p = 0; p < v.wo; p++) {
            ptrdiff_t first = p * v.stride - v.left;
            ptrdiff_t from = first < 0 ? -first : 0, to = first + v.k > v.W ? v.W - first : v.k;
            for (ptrdiff_t ky = 0; ky < v.k; ky++, windows += v.k * v.c) {
                ptrdiff_t line = y * v.stride + ky - v.top;
                if (line < 0 || line >= v.H) {
                    memset(windows, 0, (size_t)(v.k * v.c) * sizeof(real));
                    continue;
                }
                const real *in = x + (line * v.W + first) * v.c;
                if (to - from == v.k && v.k * v.c <= LANES) { /* the next windows overwrite what is beyond */
                    store(windows, part_load(in, (int)(v.k * v.c)));
                    continue;
                }
                for (ptrdiff_t j = 0; j < from * v.c; j++) windows[j] = 0;
                for (ptrdiff_t j = from * v.c; j < to * v.c; j++) windows[j] = in[j];
                for (ptrdiff_t j = to * v.c; j < v.k * v.c; j++) windows[j] = 0;
            }
        }
}

static void NAME(conv_forward_)(net *n, layer *l, int64_t b) {
    const int64_t *row = l->row;
    const NAME(conv_t) v = NAME(conv_)(row);
    ptrdiff_t size = v.k * v.k * v.c, pixels = v.ho * v.wo;
    const real *w = n->parameters + row[COL_OFFSET], *bias = w + size * v.f;
    const real *x = n->layers[row[COL_IN]].value;
    for (int64_t i = 0; i < b; i++) {
        real *out = l->value + i * row[COL_N_OUT];
        NAME(windows_)(v, x + i * row[COL_N_IN], n->windows);
        for (ptrdiff_t p = 0; p < pixels; p++) memcpy(out + p * v.f, bias, (size_t)v.f * sizeof(real));
        NAME(gemm_)(pixels, v.f, size, n->windows, size, 1, w, v.f, out, v.f, 1, 1);
    }
}

/* What offset q of the kernel saw, from the gradients of the outputs in line y. */
static void NAME(conv_scatter_)(const NAME(conv_t) v, ptrdiff_t y, ptrdiff_t q, const real *g, const real *weights_t, real *below) {
    ptrdiff_t line = y * v.stride + q / v.k - v.top, at = q % v.k - v.left;
    if (line < 0 || line >= v.H || at >= v.W) return;
    ptrdiff_t first = at < 0 ? (v.stride - 1 - at) / v.stride : 0;
    ptrdiff_t last = (v.W - 1 - at) / v.stride + 1;
    if (last > v.wo) last = v.wo;
    if (first >= last) return;
    NAME(gemm_)(last - first, v.c, v.f, g + (y * v.wo + first) * v.f, v.f, 1, weights_t + q * v.c * v.f, v.c,
                below + (line * v.W + first * v.stride + at) * v.c, v.stride * v.c, 1, 1);
}

static void NAME(conv_backward_)(net *n, layer *l, int64_t b, real *out, real alpha, real beta) {
    const int64_t *row = l->row;
    const NAME(conv_t) v = NAME(conv_)(row);
    ptrdiff_t size = v.k * v.k * v.c, pixels = v.ho * v.wo;
    const real *w = n->parameters + row[COL_OFFSET];
    layer *below = n->layers + row[COL_IN];
    if (below->wants_grad) {
        memset(below->grad, 0, (size_t)(b * row[COL_N_IN]) * sizeof(real));
        for (ptrdiff_t q = 0; q < v.k * v.k; q++)
            NAME(transpose_)(v.c, v.f, w + q * v.c * v.f, v.f, n->weights_t + q * v.c * v.f, v.c);
        for (int64_t i = 0; i < b; i++)
            for (ptrdiff_t y = 0; y < v.ho; y++)
                for (ptrdiff_t q = 0; q < v.k * v.k; q++)
                    NAME(conv_scatter_)(v, y, q, l->grad + i * row[COL_N_OUT], n->weights_t, below->grad + i * row[COL_N_IN]);
    }
    if (beta != 1)
        for (int64_t i = 0; i < row[COL_N_WEIGHTS]; i++) out[i] *= beta;
    for (int64_t i = 0; i < b; i++) {
        const real *g = l->grad + i * row[COL_N_OUT];
        NAME(windows_)(v, below->value + i * row[COL_N_IN], n->windows);
        NAME(gemm_)(size, v.f, pixels, n->windows, 1, size, g, v.f, out, v.f, alpha, 1);
        for (ptrdiff_t p = 0; p < pixels; p++) NAME(axpy_)(v.f, alpha, g + p * v.f, out + size * v.f);
    }
}

static void NAME(network_forward_batch_)(net *n, int64_t b) {
    const network_job *job = n->job;
    for (int64_t li = 0; li < n->n_layers; li++) {
        layer *l = n->layers + li;
        const int64_t *row = l->row;
        int64_t n_in = row[COL_N_IN], n_out = row[COL_N_OUT];
        const real *x = row[COL_IN] >= 0 ? n->layers[row[COL_IN]].value : NULL;
        switch (row[COL_KIND]) {
        case LAYER_INPUT:
            l->value = b == 1 ? (real *)job->X + n->rows[0] * job->x_stride + row[COL_D0] : l->own;
            if (b > 1)
                for (int64_t i = 0; i < b; i++)
                    memcpy(l->own + i * n_out, (const real *)job->X + n->rows[i] * job->x_stride + row[COL_D0], (size_t)n_out * sizeof(real));
            break;
        case LAYER_DENSE: {
            const real *w = n->parameters + row[COL_OFFSET], *bias = w + n_in * n_out;
            for (int64_t i = 0; i < b; i++) memcpy(l->value + i * n_out, bias, (size_t)n_out * sizeof(real));
            if (b == 1) NAME(row_times_)(n_in, n_out, x, w, l->value);
            else NAME(gemm_)(b, n_out, n_in, x, n_in, 1, w, n_out, l->value, n_out, 1, 1);
            break;
        }
        case LAYER_CONV2D: NAME(conv_forward_)(n, l, b); break;
        case LAYER_MAXPOOL2D: {
            int64_t H = row[COL_D0], W = row[COL_D1], c = row[COL_D2], k = row[COL_D3], ho = H / k, wo = W / k;
            for (int64_t i = 0; i < b; i++)
                for (int64_t y = 0; y < ho; y++)
                    for (int64_t p = 0; p < wo; p++) {
                        real *out = l->value + i * n_out + (y * wo + p) * c, *which = l->cache + i * n_out + (y * wo + p) * c;
                        const real *first = x + i * n_in + (y * k * W + p * k) * c;
                        for (int64_t j = 0; j < c; j++) { out[j] = first[j]; which[j] = 0; }
                        for (int64_t q = 1; q < k * k; q++) {
                            const real *in = first + (q / k * W + q % k) * c;
                            real rank = (real)q;
                            for (int64_t j = 0; j < c; j++) {
                                int more = in[j] > out[j] || in[j] != in[j];
                                which[j] = more ? rank : which[j];
                                out[j] = more ? in[j] : out[j];
                            }
                        }
                    }
            break;
        }
        case LAYER_CONCAT: {
            layer *first = n->layers + row[COL_IN], *second = n->layers + row[COL_IN2];
            int64_t n1 = first->row[COL_N_OUT], n2 = second->row[COL_N_OUT];
            for (int64_t i = 0; i < b; i++) {
                memcpy(l->value + i * n_out, first->value + i * n1, (size_t)n1 * sizeof(real));
                memcpy(l->value + i * n_out + n1, second->value + i * n2, (size_t)n2 * sizeof(real));
            }
            break;
        }
        case LAYER_DROPOUT: {
            uint64_t threshold = (uint64_t)row[COL_D0]; /* rate in units of 2^-32 */
            real keep = (real)(1.0 / (1.0 - (double)threshold / 4294967296.0));
            uint64_t key = NAME(hash_)((uint64_t)job->settings[SET_SEED] * 0x9e3779b97f4a7c15ULL + n->step * 0xd1b54a32d192ed03ULL + (uint64_t)li + ((uint64_t)(n->only + 1) << 32));
            for (int64_t i = 0; i < b * n_out; i++) {
                real m = !n->training ? (real)1 : (NAME(hash_)(key + (uint64_t)(n->first * n_out + i) * 0x9e3779b97f4a7c15ULL) >> 32) < threshold ? (real)0 : keep;
                l->cache[i] = m;
                l->value[i] = m * x[i];
            }
            break;
        }
        case LAYER_LAYERNORM: {
            const real *gain = n->parameters + row[COL_OFFSET], *bias = gain + n_out;
            for (int64_t i = 0; i < b; i++) {
                double mean = 0, spread = 0;
                for (int64_t j = 0; j < n_out; j++) mean += x[i * n_out + j];
                mean /= (double)n_out;
                for (int64_t j = 0; j < n_out; j++) spread += (x[i * n_out + j] - mean) * (x[i * n_out + j] - mean);
                real inverse = (real)(1.0 / sqrt(spread / (double)n_out + 1e-5));
                real *normal = l->cache + i * (n_out + 1);
                normal[n_out] = inverse;
                for (int64_t j = 0; j < n_out; j++) {
                    normal[j] = (x[i * n_out + j] - (real)mean) * inverse;
                    l->value[i * n_out + j] = normal[j] * gain[j] + bias[j];
                }
            }
            break;
        }
        default: NAME(recurrent_forward_)(n, l, b); break;
        }
        if (row[COL_ACT]) NAME(activate_)(row[COL_ACT], l->value, l->pre, b * n_out);
    }
}

/* Gradients go to `gradient` (fused 0), or straight into the weights, w ← beta w - rate grad. Where
 * threads work together, weights of dense layers are left to dense_weights_. */
static void NAME(network_backward_)(net *n, int64_t b, int fused, real *gradient, real rate, double decay) {
    const int together = n->job->n_threads > 1;
    for (int64_t li = n->n_layers - 1; li >= 0; li--) {
        layer *l = n->layers + li;
        const int64_t *row = l->row;
        if (!l->wants_grad) continue;
        int64_t n_in = row[COL_N_IN], n_out = row[COL_N_OUT], offset = row[COL_OFFSET];
        int64_t n_own = row[COL_N_WEIGHTS] + row[COL_N_BIAS];
        layer *below = row[COL_IN] >= 0 ? n->layers + row[COL_IN] : NULL;
        real *out = (fused ? n->parameters : gradient) + offset;
        real alpha = fused ? -rate : (real)1, beta = fused ? (real)(1.0 - rate * decay) : (real)0;
        if (row[COL_ACT]) NAME(activate_backward_)(row[COL_ACT], l->value, l->pre, l->grad, b * n_out);
        switch (row[COL_KIND]) {
        case LAYER_DENSE: {
            const real *w = n->parameters + offset;
            real *gb = out + n_in * n_out;
            if (!fused && !together) memset(gb, 0, (size_t)n_out * sizeof(real));
            if (b == 1 && !together) {
                const real *x = below->value;
                /* A zero input of a relu layer gets no gradient: its row can be left alone. */
                int skip = fused && beta == 1 && n_in * n_out > 65536;
                int rectified = below->row[COL_ACT] == ACT_RELU || !below->wants_grad;
                for (int64_t i = 0; i < n_in; i++) {
                    if (skip && x[i] == 0) {
                        if (below->wants_grad) below->grad[i] = rectified ? 0 : dot(w + i * n_out, l->grad, n_out);
                        continue;
                    }
                    real g = NAME(row_backward_)(n_out, w + i * n_out, l->grad, out + i * n_out, alpha * x[i], beta);
                    if (below->wants_grad) below->grad[i] = g;
                }
            } else {
                /* Block by block of input units, so that weights are still in cache for their update. */
                int64_t padded = (b + LANES - 1) / LANES * LANES;
                if (below->wants_grad) NAME(transpose_padded_)(b, n_out, l->grad, n_out, n->transposed, padded);
                for (int64_t i = 0; i < n_in; i += ROW_BLOCK) {
                    int64_t rows = n_in - i < ROW_BLOCK ? n_in - i : ROW_BLOCK;
                    if (below->wants_grad) {
                        NAME(gemm_)(rows, padded, n_out, w + i * n_out, n_out, 1, n->transposed, padded, n->transposed_2, padded, 1, 0);
                        NAME(transpose_)(rows, b, n->transposed_2, padded, below->grad + i, n_in);
                    }
                    if (!together)
                        NAME(gemm_)(rows, n_out, b, below->value + i, 1, n_in, l->grad, n_out, out + i * n_out, n_out, alpha, beta);
                }
            }
            for (int64_t i = 0; i < b && !together; i++) NAME(axpy_)(n_out, alpha, l->grad + i * n_out, gb);
            break;
        }
        case LAYER_MAXPOOL2D: {
            int64_t H = row[COL_D0], W = row[COL_D1], c = row[COL_D2], k = row[COL_D3], ho = H / k, wo = W / k;
            int64_t whole = ho * k == H && wo * k == W;
            if (!whole) memset(below->grad, 0, (size_t)(b * n_in) * sizeof(real));
            for (int64_t i = 0; i < b; i++)
                for (int64_t y = 0; y < ho; y++)
                    for (int64_t p = 0; p < wo; p++) {
                        const real *g = l->grad + i * n_out + (y * wo + p) * c, *which = l->cache + i * n_out + (y * wo + p) * c;
                        for (int64_t q = 0; q < k * k; q++) {
                            real *in = below->grad + i * n_in + ((y * k + q / k) * W + p * k + q % k) * c, rank = (real)q;
                            for (int64_t j = 0; j < c; j++) in[j] = which[j] == rank ? g[j] : (real)0;
                        }
                    }
            break;
        }
        case LAYER_CONCAT: {
            layer *second = n->layers + row[COL_IN2];
            int64_t n1 = below->row[COL_N_OUT], n2 = second->row[COL_N_OUT];
            for (int64_t i = 0; i < b; i++) {
                memcpy(below->grad + i * n1, l->grad + i * n_out, (size_t)n1 * sizeof(real));
                memcpy(second->grad + i * n2, l->grad + i * n_out + n1, (size_t)n2 * sizeof(real));
            }
            break;
        }
        case LAYER_DROPOUT:
            for (int64_t i = 0; i < b * n_out; i++) below->grad[i] = l->grad[i] * l->cache[i];
            break;
        case LAYER_LAYERNORM: {
            const real *gain = n->parameters + offset;
            for (int64_t i = 0; i < b && below->wants_grad; i++) {
                const real *normal = l->cache + i * (n_out + 1), *g = l->grad + i * n_out;
                double mean = 0, along = 0;
                for (int64_t j = 0; j < n_out; j++) {
                    mean += g[j] * gain[j];
                    along += g[j] * gain[j] * normal[j];
                }
                mean /= (double)n_out;
                along /= (double)n_out;
                for (int64_t j = 0; j < n_out; j++)
                    below->grad[i * n_out + j] = normal[n_out] * (g[j] * gain[j] - (real)mean - normal[j] * (real)along);
            }
            if (!fused) memset(out, 0, (size_t)n_own * sizeof(real));
            for (int64_t i = 0; i < b; i++)
                for (int64_t j = 0; j < n_out; j++) {
                    out[j] += alpha * l->grad[i * n_out + j] * l->cache[i * (n_out + 1) + j];
                    out[n_out + j] += alpha * l->grad[i * n_out + j];
                }
            break;
        }
        case LAYER_CONV2D: case LAYER_RNN: case LAYER_LSTM: case LAYER_GRU: {
            if (!fused) memset(out, 0, (size_t)n_own * sizeof(real));
            if (row[COL_KIND] == LAYER_CONV2D) NAME(conv_backward_)(n, l, b, out, alpha, beta);
            else NAME(recurrent_backward_)(n, l, b, out, alpha, beta);
            break;
        }
        default: break;
        }
    }
}

/* Heads: output o of task t is Σ_e mix[o, e] (H[row[o, e]]·f + c[row[o, e]]). Gradients of the
 * outputs are left in n->outputs, or by rows of H in n->slopes, those of the features in the last
 * layer's grad. */
static double NAME(heads_)(net *n, int64_t b, const int64_t *samples) {
    const network_job *job = n->job;
    int64_t F = n->n_features, E = job->mix_width;
    const real *H = n->parameters + job->head_offset, *c = H + job->n_head_rows * F;
    const real *mix = (const real *)job->head_mix;
    layer *top = n->layers + n->n_layers - 1;
    double total = 0, share = 1.0 / (double)n->total;
    real *p = n->outputs;
    int64_t R = job->n_head_rows;
    if (n->scores) {
        NAME(transpose_)(R, F, H, F, n->heads_t, R);
        NAME(gemm_)(b, R, F, top->value, F, 1, n->heads_t, R, n->scores, R, 1, 0);
        memset(n->slopes, 0, (size_t)(b * R) * sizeof(real));
    }
    for (int64_t i = 0; i < b; i++) {
        const real *f = top->value + i * F;
        real *df = top->grad + i * F;
#if VEC_BYTES
        if (i + 1 < b) { /* samples are drawn at random: their labels lie apart */
            int64_t next = job->sample_start[samples[i + 1]];
            __builtin_prefetch(job->target + next);
            __builtin_prefetch(job->weight + next);
            __builtin_prefetch(job->task + next);
        }
#endif
        if (!n->scores) memset(df, 0, (size_t)F * sizeof(real));
        for (int64_t ob = job->sample_start[samples[i]]; ob < job->sample_start[samples[i] + 1]; ob++) {
            int32_t t = job->task[ob];
            if (n->only >= 0 && t != n->only) continue;
            int64_t first = job->head_start[t], width = job->head_start[t + 1] - first;
            double scale = job->weight[ob] * share, y = job->target[ob], value;
            for (int64_t o = 0; o < width; o++) {
                real s = 0;
                for (int64_t e = 0; e < E; e++) {
                    int64_t k = (first + o) * E + e, r = job->head_row[k];
                    if (mix[k] != 0) s += mix[k] * ((n->scores ? n->scores[i * R + r] : dot(H + r * F, f, F)) + c[r]);
                }
                p[o] = n->head_scale * s;
            }
            if (job->loss[t] == LOSS_SOFTMAX) {
                double top_score = p[0], sum = 0;
                int64_t label = (int64_t)y;
                for (int64_t o = 1; o < width; o++) top_score = p[o] > top_score ? p[o] : top_score;
                double own = p[label];
                for (int64_t o = 0; o < width; o++) {
                    p[o] = (real)exp(p[o] - top_score);
                    sum += p[o];
                }
                value = log(sum) + top_score - own;
                for (int64_t o = 0; o < width; o++) p[o] = (real)(scale * (p[o] / sum - (o == label)));
            } else {
                point_loss loss = point_loss_of(job->loss[t], job->loss_parameter[t], NULL);
                double g;
                value = point_loss_at(&loss, y, p[0], &g);
                p[0] = (real)(scale * g);
            }
            total += job->weight[ob] * value;
            n->task_loss[t] += job->weight[ob] * value;
            for (int64_t o = 0; o < width; o++)
                for (int64_t e = 0; e < E; e++) {
                    int64_t k = (first + o) * E + e;
                    if (n->scores) n->slopes[i * R + job->head_row[k]] += mix[k] * p[o];
                    else if (mix[k] != 0) NAME(axpy_)(F, n->head_scale * mix[k] * p[o], H + job->head_row[k] * F, df);
                }
            p += width;
        }
    }
    if (n->scores) NAME(gemm_)(b, F, R, n->slopes, R, 1, H, F, top->grad, F, n->head_scale, 0);
    return total;
}
static void NAME(heads_update_)(net *n, int64_t b, const int64_t *samples, real *H, real alpha) {
    const network_job *job = n->job;
    int64_t F = n->n_features, E = job->mix_width;
    const real *mix = (const real *)job->head_mix, *p = n->outputs;
    real *c = H + job->n_head_rows * F;
    layer *top = n->layers + n->n_layers - 1;
    if (n->scores) {
        int64_t R = job->n_head_rows;
        NAME(gemm_)(R, F, b, n->slopes, 1, R, top->value, F, H, F, alpha, 1);
        for (int64_t i = 0; i < b; i++) NAME(axpy_)(R, alpha, n->slopes + i * R, c);
        return;
    }
    for (int64_t i = 0; i < b; i++)
        for (int64_t ob = job->sample_start[samples[i]]; ob < job->sample_start[samples[i] + 1]; ob++) {
            int64_t t = job->task[ob], first = job->head_start[t], width = job->head_start[t + 1] - first;
            if (n->only >= 0 && t != n->only) continue;
            for (int64_t o = 0; o < width; o++)
                for (int64_t e = 0; e < E; e++) {
                    int64_t k = (first + o) * E + e, r = job->head_row[k];
                    if (mix[k] == 0) continue;
                    NAME(axpy_)(F, alpha * mix[k] * p[o], top->value + i * F, H + r * F);
                    c[r] += alpha * mix[k] * p[o];
                }
            p += width;
        }
}

/* Put the common factor of the heads into what is stored. */
static void NAME(rescale_heads_)(net *n) {
    real *H = n->parameters + n->job->head_offset;
    for (int64_t i = 0; i < n->job->n_head_rows * (n->n_features + 1); i++) H[i] *= n->head_scale;
    n->head_scale = 1;
}

static double NAME(norm2_)(const real *g, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += (double)g[i] * g[i];
    return total;
}

/* One block of parameters: a step of the optimiser on gradient `scale · g + decay · w`. */
static void NAME(step_)(const double *set, int64_t n, real *restrict w, const real *restrict g, real *restrict m, real *restrict v, real scale,
                        real decay, double correction_1, double correction_2) {
    int optimiser = (int)set[SET_OPTIMISER];
    real rate = (real)set[SET_RATE], mu = (real)set[SET_MOMENTUM], beta2 = (real)set[SET_BETA2];
    real epsilon = (real)set[SET_EPSILON], fix = (real)(1.0 / sqrt(correction_2)), step = (real)(set[SET_RATE] / correction_1);
    if (set[SET_DECOUPLED] != 0) {
        for (int64_t i = 0; i < n; i++) w[i] *= 1 - rate * decay;
        decay = 0;
    }
    if (optimiser == OPT_SGD)
        for (int64_t i = 0; i < n; i++) w[i] -= rate * (scale * g[i] + decay * w[i]);
    else if (optimiser == OPT_MOMENTUM)
        for (int64_t i = 0; i < n; i++) {
            m[i] = mu * m[i] + (scale * g[i] + decay * w[i]);
            w[i] -= rate * m[i];
        }
    else if (optimiser == OPT_NESTEROV)
        for (int64_t i = 0; i < n; i++) {
            real d = scale * g[i] + decay * w[i];
            m[i] = mu * m[i] + d;
            w[i] -= rate * (d + mu * m[i]);
        }
    else
        for (int64_t i = 0; i < n; i++) {
            real d = scale * g[i] + decay * w[i];
            m[i] = mu * m[i] + (1 - mu) * d;
            v[i] = beta2 * v[i] + (1 - beta2) * d * d;
            w[i] -= step * m[i] / (real_sqrt(v[i]) * fix + epsilon);
        }
}

static void NAME(fill_)(net *n, int64_t b, const int64_t *rows_of, const int64_t *which, int64_t first) {
    int64_t steps = INT32_MAX;
    for (int64_t i = 0; i < b; i++) {
        int64_t r = which ? which[i] : first + i;
        n->rows[i] = rows_of ? rows_of[r] : r;
    }
    for (int64_t li = 0; li < n->n_layers; li++)
        if (n->layers[li].row[COL_KIND] >= LAYER_RNN && n->layers[li].row[COL_KIND] <= LAYER_GRU && n->layers[li].row[COL_D0] < steps)
            steps = n->layers[li].row[COL_D0];
    for (int64_t i = 0; i < b; i++) n->lengths[i] = n->job->lengths ? n->job->lengths[n->rows[i]] : (int32_t)steps;
}

/* One thread's part of a step: gradients of its rows into G. Returns the sum of their losses. */
static double NAME(gradient_)(net *n, int64_t b, const int64_t *samples, real *G) {
    const network_job *job = n->job;
    int64_t n_heads = job->n_head_rows * (n->n_features + 1);
    if (b <= 0) {
        if (job->settings[SET_RATE] >= 0) memset(G, 0, (size_t)job->n_parameters * sizeof(real));
        return 0;
    }
    NAME(fill_)(n, b, job->sample_row, samples, 0);
    NAME(network_forward_batch_)(n, b);
    double value = NAME(heads_)(n, b, samples);
    if (job->settings[SET_RATE] < 0) return value;
    memset(G + job->head_offset, 0, (size_t)n_heads * sizeof(real));
    NAME(heads_update_)(n, b, samples, G + job->head_offset, 1);
    NAME(network_backward_)(n, b, 0, G, 0, 0);
    return value;
}

/* Weights of the dense layers from the rows of all nets, thread k's share of the input units: each is
 * read and written once, by one thread, and needs no gradient of its own where `fused`. */
static void NAME(dense_weights_)(const net *nets, int threads, int k, int fused, real *G) {
    const double *set = nets[0].job->settings;
    real *base = fused ? nets[0].parameters : G;
    real alpha = fused ? (real)-set[SET_RATE] : (real)1;
    real beta = fused ? (real)(1.0 - set[SET_RATE] * set[SET_DECAY]) : (real)0;
    for (int64_t li = 0; li < nets[0].n_layers; li++) {
        const int64_t *row = nets[0].layers[li].row;
        if (row[COL_KIND] != LAYER_DENSE) continue;
        int64_t n_in = row[COL_N_IN], n_out = row[COL_N_OUT];
        int64_t begin = n_in * k / threads, end = n_in * (k + 1) / threads;
        real *out = base + row[COL_OFFSET], *bias = out + n_in * n_out;
        for (int64_t i = begin; i < end; i += ROW_BLOCK) {
            int64_t rows = end - i < ROW_BLOCK ? end - i : ROW_BLOCK;
            for (int j = 0; j < threads && nets[j].own > 0; j++)
                NAME(gemm_)(rows, n_out, nets[j].own, nets[j].layers[row[COL_IN]].value + i, 1, n_in,
                            nets[j].layers[li].grad, n_out, out + i * n_out, n_out, alpha, j ? (real)1 : beta);
        }
        if (k) continue;
        if (!fused) memset(bias, 0, (size_t)n_out * sizeof(real));
        for (int j = 0; j < threads; j++)
            for (int64_t i = 0; i < nets[j].own; i++) NAME(axpy_)(n_out, alpha, nets[j].layers[li].grad + i * n_out, bias);
    }
}

/* The same by all threads; summed in a fixed order, so that results do not depend on timing. With
 * `fused` dense layers take their step at once, unless the loss is not finite. */
static double NAME(gradient_of_all_)(net *nets, real **gradients, int64_t b, int64_t total, int fused, const int64_t *samples) {
    const network_job *job = nets[0].job;
    int threads = (int)job->n_threads;
    int64_t share = (b + threads - 1) / threads;
    double value = 0;
    for (int k = 1; k < threads; k++) nets[k].step = nets[0].step;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int k = 0; k < threads; k++) {
        int64_t first = k * share, own = b - first < share ? b - first : share;
        nets[k].first = first;
        nets[k].own = own;
        nets[k].total = total;
        memset(nets[k].task_loss, 0, sizeof(double) * (size_t)job->n_tasks);
        nets[k].loss = NAME(gradient_)(nets + k, own, samples + (own > 0 ? first : 0), gradients[k]);
    }
    for (int k = 0; k < threads; k++) {
        value += nets[k].loss;
        for (int64_t t = 0; t < job->n_tasks; t++) job->task_loss[t] += nets[k].task_loss[t];
    }
    if (job->settings[SET_RATE] < 0 || !(fabs(value) < 1e300)) return value;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int k = 0; k < threads; k++) {
        NAME(dense_weights_)(nets, threads, k, fused, gradients[0]);
        for (int64_t li = 0; li <= nets[0].n_layers; li++) {
            const int64_t *row = li < nets[0].n_layers ? nets[0].layers[li].row : NULL;
            if (row && row[COL_KIND] == LAYER_DENSE) continue;
            int64_t at = row ? row[COL_OFFSET] : job->head_offset;
            int64_t n = row ? row[COL_N_WEIGHTS] + row[COL_N_BIAS] : job->n_parameters - job->head_offset;
            for (int j = 1; j < threads; j++)
                for (int64_t i = at + n * k / threads; i < at + n * (k + 1) / threads; i++) gradients[0][i] += gradients[j][i];
        }
    }
    return value;
}

static double NAME(gradient_of_)(net *nets, real **gradients, int64_t b, int64_t total, int fused, const int64_t *samples) {
    if (nets[0].job->n_threads > 1) return NAME(gradient_of_all_)(nets, gradients, b, total, fused, samples);
    nets[0].total = total;
    return NAME(gradient_)(nets, b, samples, gradients[0]);
}

/* Gradient surgery (Yu et al., 2020) on the trunk: a task's gradient loses what opposes another's.
 *
 * Projections stay in the span of the tasks' gradients g_1 … g_m, so they are worked out on the
 * matrix of products g_i·g_j alone, and only the sum Σ_j c_j g_j is formed. */
typedef struct {
    real **gradients; /* of the trunk, by task */
    real *heads;
    double *gram, *own, *total;
    int64_t *samples, *order;
    uint64_t *draws;
    char *seen;
    int64_t most; /* tasks that a batch can hold */
} NAME(surgery_t);

static size_t NAME(lay_out_surgery_)(NAME(surgery_t) *s, const network_job *job, int64_t batch, char *base) {
    size_t at = 0;
    NAME(surgery_t) room;
    int64_t T = room.most = batch * job->max_outputs < job->n_tasks ? batch * job->max_outputs : job->n_tasks;
    room.gradients = TAKE(real *, T);
    room.heads = TAKE(real, job->n_parameters - job->head_offset);
    room.gram = TAKE(double, T * T);
    room.own = TAKE(double, T);
    room.total = TAKE(double, T);
    room.samples = TAKE(int64_t, batch);
    room.order = TAKE(int64_t, T);
    room.draws = TAKE(uint64_t, T);
    room.seen = TAKE(char, job->n_tasks);
    for (int64_t t = 0; t < T; t++) {
        real *own = TAKE(real, job->head_offset);
        if (base) room.gradients[t] = own;
    }
    if (base) *s = room;
    return at + 64;
}

/* The coefficients of the sum of the m projected gradients. */
static void NAME(project_)(const NAME(surgery_t) *s, int64_t m, uint64_t key) {
    int64_t width = s->most;
    for (int64_t i = 0; i < m; i++) s->total[i] = 0;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < m; j++) {
            uint64_t draw = NAME(hash_)(key + (uint64_t)(i * m + j) * 0x9e3779b97f4a7c15ULL);
            int64_t at = j;
            for (; at > 0 && s->draws[at - 1] > draw; at--) {
                s->draws[at] = s->draws[at - 1];
                s->order[at] = s->order[at - 1];
            }
            s->draws[at] = draw;
            s->order[at] = j;
            s->own[j] = j == i;
        }
        for (int64_t r = 0; r < m; r++) {
            int64_t j = s->order[r];
            double along = 0, length = s->gram[j * width + j];
            if (j == i || length == 0) continue;
            for (int64_t k = 0; k < m; k++) along += s->own[k] * s->gram[k * width + j];
            if (along < 0) s->own[j] -= along / length;
        }
        for (int64_t j = 0; j < m; j++) s->total[j] += s->own[j];
    }
}

static double NAME(long_dot_)(const real *a, const real *b, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i += 4096) total += dot(a + i, b + i, n - i < 4096 ? n - i : 4096);
    return total;
}

/* As gradient_of_, with a pass for each task over the samples that have it. */
static double NAME(gradient_by_task_)(net *nets, real **gradients, const NAME(surgery_t) *s, int64_t b, const int64_t *samples) {
    const network_job *job = nets[0].job;
    int64_t m = 0, trunk = job->head_offset, n_heads = job->n_parameters - trunk;
    real *G = gradients[0];
    double value = 0;
    memset(s->seen, 0, (size_t)job->n_tasks);
    memset(s->heads, 0, (size_t)n_heads * sizeof(real));
    for (int64_t i = 0; i < b; i++)
        for (int64_t ob = job->sample_start[samples[i]]; ob < job->sample_start[samples[i] + 1]; ob++) s->seen[job->task[ob]] = 1;
    for (int64_t t = 0; t < job->n_tasks; t++) {
        int64_t own = 0;
        if (!s->seen[t]) continue;
        for (int64_t i = 0; i < b; i++)
            for (int64_t ob = job->sample_start[samples[i]]; ob < job->sample_start[samples[i] + 1]; ob++)
                if (job->task[ob] == t) {
                    s->samples[own++] = samples[i];
                    break;
                }
        for (int64_t k = 0; k < job->n_threads; k++) nets[k].only = t;
        value += NAME(gradient_of_)(nets, gradients, own, b, 0, s->samples);
        memcpy(s->gradients[m], G, (size_t)trunk * sizeof(real));
        NAME(axpy_)(n_heads, 1, G + trunk, s->heads);
        for (int64_t j = 0; j <= m; j++) s->gram[m * s->most + j] = NAME(long_dot_)(s->gradients[m], s->gradients[j], trunk);
        m++;
    }
    for (int64_t k = 0; k < job->n_threads; k++) nets[k].only = -1;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++) s->gram[i * s->most + j] = s->gram[(i > j ? i : j) * s->most + (i > j ? j : i)];
    NAME(project_)(s, m, NAME(hash_)((uint64_t)job->settings[SET_SEED] + nets[0].step * 0xd1b54a32d192ed03ULL));
    memset(G, 0, (size_t)trunk * sizeof(real));
    for (int64_t j = 0; j < m; j++) NAME(axpy_)(trunk, (real)s->total[j], s->gradients[j], G);
    memcpy(G + trunk, s->heads, (size_t)n_heads * sizeof(real));
    return value;
}

/* The same, shared out among the threads; elementwise, so that their number does not matter. */
static void NAME(step_of_all_)(int threads, const double *set, int64_t n, real *w, const real *g, real *m, real *v, real scale,
                               real decay, double correction_1, double correction_2) {
    if (n < 65536) threads = 1;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int k = 0; k < threads; k++) {
        int64_t at = n * k / threads, own = n * (k + 1) / threads - at;
        NAME(step_)(set, own, w + at, g + at, m + at, v + at, scale, decay, correction_1, correction_2);
    }
}

/* Threads share a step's batch evenly: each has a net, and all but the first a gradient, of its own. */
static size_t NAME(network_workspace_)(const network_job *job, int64_t batch, int training) {
    int64_t threads = training ? job->n_threads : 1, share = (batch + threads - 1) / threads;
    size_t own = NAME(lay_out_)(NULL, job, share, training, NULL), all = own;
    if (threads > 1)
        all = (size_t)threads * (own + sizeof(net) + 128 + sizeof(double) * (size_t)(job->n_tasks + 16) +
                                 sizeof(real) * (size_t)(job->n_parameters + 32));
    if (training && job->settings[SET_SURGERY] != 0) all += NAME(lay_out_surgery_)(NULL, job, batch, NULL) + 64;
    return all;
}

static int NAME(network_train_)(const network_job *job) {
    const double *set = job->settings;
    int64_t batch = (int64_t)set[SET_BATCH], F, P = job->n_parameters;
    int64_t threads = job->n_threads, share = (batch + threads - 1) / threads;
    net alone, *nets = &alone;
    real *G = (real *)job->gradient, *first_gradient[1] = {G}, **gradients = first_gradient;
    size_t at = 0, own = NAME(lay_out_)(NULL, job, share, 1, NULL);
    char *base = (char *)job->workspace;
    memset(&alone, 0, sizeof alone);
    if (threads == 1) {
        NAME(lay_out_)(&alone, job, batch, 1, TAKE(char, own));
    } else {
        nets = TAKE(net, threads);
        gradients = TAKE(real *, threads);
        for (int64_t k = 0; k < threads; k++) {
            char *room = TAKE(char, own);
            NAME(lay_out_)(nets + k, job, share, 1, room);
            nets[k].task_loss = TAKE(double, job->n_tasks);
            gradients[k] = k ? TAKE(real, P) : G;
        }
    }
    NAME(surgery_t) surgery;
    memset(&surgery, 0, sizeof surgery);
    int apart = set[SET_SURGERY] != 0;
    if (apart) NAME(lay_out_surgery_)(&surgery, job, batch, base + at);
    for (int64_t k = 0; k < threads; k++) nets[k].training = set[SET_RATE] > 0;
    F = nets[0].n_features;
    net *n = nets;
    real *w = n->parameters, *m = (real *)job->state, *v = m + P;
    real rate = (real)set[SET_RATE];
    int64_t n_heads = job->n_head_rows * (F + 1);
    int plain = set[SET_RATE] > 0 && set[SET_OPTIMISER] == OPT_SGD && set[SET_CLIP] == 0 && !apart;
    real shrink = (real)(1.0 - set[SET_RATE] * set[SET_ALPHA]);
    for (int64_t done = 0; done < job->n_order; done += batch) {
        int64_t b = job->n_order - done < batch ? job->n_order - done : batch;
        const int64_t *samples = job->order + done;
        int last = done + b >= job->n_order, fused = plain && !last;
        n->step = (uint64_t)set[SET_STEP] + (uint64_t)(done / batch);
        n->total = b;
        double value;
        if (fused && threads == 1) {
            NAME(fill_)(n, b, job->sample_row, samples, 0);
            NAME(network_forward_batch_)(n, b);
            value = NAME(heads_)(n, b, samples);
            if (!(fabs(value) < 1e300)) return 1;
            n->head_scale *= shrink;
            if (!(fabs(n->head_scale) > 1e-3 && fabs(n->head_scale) < 1e3)) NAME(rescale_heads_)(n);
            NAME(heads_update_)(n, b, samples, w + job->head_offset, -rate / n->head_scale);
            NAME(network_backward_)(n, b, 1, NULL, rate, set[SET_DECAY]);
            continue;
        }
        if (n->head_scale != 1) NAME(rescale_heads_)(n);
        value = apart ? NAME(gradient_by_task_)(nets, gradients, &surgery, b, samples) : NAME(gradient_of_)(nets, gradients, b, b, fused, samples);
        if (!(fabs(value) < 1e300)) return 1;
        if (set[SET_RATE] < 0) continue; /* losses only */
        if (last || set[SET_CLIP] != 0) {
            double total = 0;
            for (int64_t li = 0; li < n->n_layers; li++) {
                const int64_t *row = n->layers[li].row;
                total += job->layer_norms[li] = NAME(norm2_)(G + row[COL_OFFSET], row[COL_N_WEIGHTS] + row[COL_N_BIAS]);
            }
            total += job->layer_norms[n->n_layers] = NAME(norm2_)(G + job->head_offset, n_heads);
            if (!(total < 1e300)) return 1;
        }
        real scale = 1;
        if (set[SET_CLIP] != 0) {
            double total = 0;
            for (int64_t li = 0; li <= n->n_layers; li++) total += job->layer_norms[li];
            if (sqrt(total) > set[SET_CLIP]) scale = (real)(set[SET_CLIP] / sqrt(total));
        }
        if (set[SET_RATE] == 0) continue; /* gradients only */
        double count = (double)(n->step + 1);
        double c1 = 1.0 - pow(set[SET_MOMENTUM], count), c2 = 1.0 - pow(set[SET_BETA2], count);
        for (int64_t li = 0; li < n->n_layers; li++) {
            const int64_t *row = n->layers[li].row;
            int64_t at = row[COL_OFFSET], weights = row[COL_N_WEIGHTS];
            if (fused && row[COL_KIND] == LAYER_DENSE) continue;
            real decay = row[COL_KIND] == LAYER_LAYERNORM ? 0 : (real)set[SET_DECAY];
            NAME(step_of_all_)((int)threads, set, weights, w + at, G + at, m + at, v + at, scale, decay, c1, c2);
            at += weights;
            NAME(step_)(set, row[COL_N_BIAS], w + at, G + at, m + at, v + at, scale, 0, c1, c2);
        }
        int64_t at = job->head_offset;
        NAME(step_of_all_)((int)threads, set, n_heads, w + at, G + at, m + at, v + at, scale, (real)set[SET_ALPHA], c1, c2);
    }
    return 0;
}

static void NAME(network_forward_)(const network_job *job) {
    net n;
    memset(&n, 0, sizeof n);
    int64_t batch = (int64_t)job->settings[SET_BATCH];
    NAME(lay_out_)(&n, job, batch, 0, (char *)job->workspace);
    real *own_value = n.layers[n.n_layers - 1].value;
    for (int64_t done = 0; done < job->n_order; done += batch) {
        int64_t b = job->n_order - done < batch ? job->n_order - done : batch;
        NAME(fill_)(&n, b, NULL, NULL, done);
        NAME(network_forward_batch_)(&n, b);
        memcpy((real *)job->features + done * n.n_features, n.layers[n.n_layers - 1].value, (size_t)(b * n.n_features) * sizeof(real));
        n.layers[n.n_layers - 1].value = own_value;
    }
}

const network_table NAME(network_table) = {
    NAME(network_workspace_),
    NAME(network_train_),
    NAME(network_forward_),
};

#undef INLINE
#undef part_load
#undef part_store
#undef add_lanes
#include "simd/vector_math_end.h"
#undef layer
#undef real_sqrt
#undef net
#undef GEMM_NV
#undef GEMM_MR
#undef GEMM_ROWS
#undef ROW_BLOCK
#undef TAKE
