/* Ridge regression's dense kernels; see ridge.h. One register tile serves symmetric products, the
 * Cholesky factor and both triangular solves: rows of C gain or lose Σ_k a_k b_kᵀ. */

#if IS_F32
#define RIDGE_ROWS ridge_rows_f32
#else
#define RIDGE_ROWS ridge_rows_f64
#endif

static void NAME(pack_)(
    const real *X, ptrdiff_t d, const int64_t *row, const real *origin, const double *weight,
    const double *target, ptrdiff_t n, ptrdiff_t stride, double *packed) {
    for (ptrdiff_t i = 0; i < n; i++, packed += stride) {
        const real *x = X + row[i] * d;
        const double root = sqrt(weight[i]);
        if (origin)
            for (ptrdiff_t k = 0; k < d; k++) packed[k] = root * ((double)x[k] - (double)origin[k]);
        else
            for (ptrdiff_t k = 0; k < d; k++) packed[k] = root * (double)x[k];
        packed[d] = root;
        packed[d + 1] = root * target[i];
        for (ptrdiff_t k = d + 2; k < stride; k++) packed[k] = 0;
    }
}

static void NAME(pack_sparse_)(
    const real *data, const int32_t *indices, const int64_t *indptr, ptrdiff_t d,
    const int64_t *row, const double *weight, const double *target, ptrdiff_t n, ptrdiff_t stride,
    double *packed) {
    memset(packed, 0, (size_t)(n * stride) * sizeof(double));
    for (ptrdiff_t i = 0; i < n; i++, packed += stride) {
        const double root = sqrt(weight[i]);
        for (int64_t z = indptr[row[i]]; z < indptr[row[i] + 1]; z++)
            packed[indices[z]] = root * (double)data[z];
        packed[d] = root;
        packed[d + 1] = root * target[i];
    }
}

/* The upper triangle of gram += w (x, 1, y)(x, 1, y)ᵀ, entry by entry. */
static void NAME(scatter_)(
    const real *data, const int32_t *indices, const int64_t *indptr, ptrdiff_t d,
    const int64_t *row, const double *weight, const double *target, ptrdiff_t n, double *gram,
    ptrdiff_t p) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const int64_t end = indptr[row[i] + 1];
        const double w = weight[i], y = target[i];
        for (int64_t z = indptr[row[i]]; z < end; z++) {
            double *line = gram + (ptrdiff_t)indices[z] * p;
            const double value = w * (double)data[z];
            for (int64_t other = z; other < end; other++)
                line[indices[other]] += value * (double)data[other];
            line[d] += value;
            line[d + 1] += value * y;
        }
        gram[d * p + d] += w;
        gram[d * p + d + 1] += w * y;
        gram[(d + 1) * p + d + 1] += w * y * y;
    }
}

/* out = x·v + v_d: eight sums, which the compiler keeps in vectors. */
static void NAME(scores_)(const real *X, ptrdiff_t d, const int64_t *row, ptrdiff_t n,
                          const double *vector, double *out) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const real *x = X + row[i] * d;
        double sums[8] = {0}, score = vector[d];
        ptrdiff_t k = 0;
        for (; k + 8 <= d; k += 8)
            for (int l = 0; l < 8; l++) sums[l] += (double)x[k + l] * vector[k + l];
        for (; k < d; k++) score += (double)x[k] * vector[k];
        for (int l = 0; l < 8; l++) score += sums[l];
        out[i] = score;
    }
}

static void NAME(scores_sparse_)(const real *data, const int32_t *indices, const int64_t *indptr,
                                 ptrdiff_t d, const int64_t *row, ptrdiff_t n,
                                 const double *vector, double *out) {
    for (ptrdiff_t i = 0; i < n; i++) {
        double score = vector[d];
        for (int64_t z = indptr[row[i]]; z < indptr[row[i] + 1]; z++)
            score += (double)data[z] * vector[indices[z]];
        out[i] = score;
    }
}

const RIDGE_ROWS NAME(ridge_rows) = {
    NAME(pack_), NAME(pack_sparse_), NAME(scatter_), NAME(scores_), NAME(scores_sparse_)};
#undef RIDGE_ROWS

#if !IS_F32
#if TARGET_LEVEL == 2
#define TILE_ROWS 8
#define TILE_VECS 3
#elif TARGET_LEVEL == 1
#define TILE_ROWS 4
#define TILE_VECS 3
#else
#define TILE_ROWS 4
#define TILE_VECS 2
#endif

/* Two cache lines of a coming row, to the second cache: it waits for twice as many as the first. */
static inline __attribute__((always_inline)) void NAME(fetch_lines)(ridge_fetch *next) {
    if (next->n == 0) return;
    const ptrdiff_t last = next->row_bytes - 1, second = next->at + 64;
#if defined(__GNUC__)
    const char *x = next->X + *next->row * next->row_bytes;
    __builtin_prefetch(x + next->at, 0, 2);
    __builtin_prefetch(x + (second < last ? second : last), 0, 2);
#endif
    next->at += 128;
    if (second < last) return;
    next->at = 0;
    next->row++;
    next->n--;
}

static inline __attribute__((always_inline)) void NAME(tile)(
    const double *A, ptrdiff_t a_step, ptrdiff_t a_row, const double *B, ptrdiff_t b_step,
    ptrdiff_t n, double *C, ptrdiff_t c_step, const int vecs, const int subtract,
    ridge_fetch *next) {
    vec sum[TILE_ROWS][TILE_VECS];
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) sum[r][v] = load(C + r * c_step + v * LANES);
    for (ptrdiff_t k = 0; k < n; k++) {
        if (next) NAME(fetch_lines)(next);
        vec b[TILE_VECS];
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) b[v] = load(B + k * b_step + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            const vec a = splat(A[k * a_step + r * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) {
                if (subtract) sum[r][v] -= a * b[v];
                else sum[r][v] += a * b[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) store(C + r * c_step + v * LANES, sum[r][v]);
}

/* TILE_ROWS rows of C, of any multiple of LANES columns. */
static inline __attribute__((always_inline)) void NAME(band)(
    const double *A, ptrdiff_t a_step, ptrdiff_t a_row, const double *B, ptrdiff_t b_step,
    ptrdiff_t n, double *C, ptrdiff_t c_step, ptrdiff_t columns, const int subtract,
    ridge_fetch *next) {
    ptrdiff_t j = 0;
    for (; j + TILE_VECS * LANES <= columns; j += TILE_VECS * LANES)
        NAME(tile)(A, a_step, a_row, B + j, b_step, n, C + j, c_step, TILE_VECS, subtract, next);
    if (TILE_VECS > 2 && j + 2 * LANES <= columns) {
        NAME(tile)(A, a_step, a_row, B + j, b_step, n, C + j, c_step, 2, subtract, next);
        j += 2 * LANES;
    }
    if (j < columns) NAME(tile)(A, a_step, a_row, B + j, b_step, n, C + j, c_step, 1, subtract, next);
}

static void NAME(update_)(
    const double *packed, ptrdiff_t n, ptrdiff_t stride, double *gram, ptrdiff_t p,
    ridge_fetch next) {
    for (ptrdiff_t i = 0; i < p; i += TILE_ROWS)
        NAME(band)(
            packed + i, stride, 1, packed + i, stride, n, gram + i * p + i, p, p - i, 0, &next);
}

/* Both triangles from the upper; where `centred`, all but the constant's row about the means. */
static void NAME(finish_)(double *gram, ptrdiff_t p, ptrdiff_t d, int centred) {
    for (ptrdiff_t i = 0; i < p; i += LANES)
        for (ptrdiff_t j = i; j < p; j += LANES) {
            vec square[LANES];
#pragma GCC unroll 8
            for (int l = 0; l < LANES; l++) square[l] = load(gram + (i + l) * p + j);
            if (i == j) {
                double whole[LANES * LANES];
                for (int l = 0; l < LANES; l++)
                    for (int k = 0; k < LANES; k++)
                        whole[l * LANES + k] = gram[(i + (l < k ? l : k)) * p + j + (l < k ? k : l)];
                for (int l = 0; l < LANES; l++) store(gram + (i + l) * p + j, load(whole + l * LANES));
                continue;
            }
            transpose_square(square);
#pragma GCC unroll 8
            for (int l = 0; l < LANES; l++) store(gram + (j + l) * p + i, square[l]);
        }
    const double *sums = gram + d * p, total = sums[d];
    if (!centred || !(total > 0)) return;
    for (ptrdiff_t i = 0; i < p; i++) {
        double *line = gram + i * p;
        const double kept = line[d], mean = kept / total;
        if (i == d) continue;
        for (ptrdiff_t j = 0; j < p; j++) line[j] -= mean * sums[j];
        line[d] = kept;
    }
}

static void NAME(add_)(const double *x, double factor, double *y, ptrdiff_t n) {
    const vec f = splat(factor);
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + f * load(x + i));
    for (; i < n; i++) y[i] += factor * x[i];
}

/* Rows (M | R) of a symmetric M (size × size): M = UᵀU, R ← U⁻ᵀR. U's diagonal is left inverted. */
static void NAME(factor)(double *rows, ptrdiff_t size, ptrdiff_t width, ptrdiff_t stride) {
    for (ptrdiff_t i = 0; i < size; i += TILE_ROWS) {
        double *block = rows + i * stride;
        NAME(band)(rows + i, stride, 1, rows + i, stride, i, block + i, stride, width - i, 1, NULL);
        for (int r = 0; r < TILE_ROWS; r++) {
            double *line = block + r * stride;
            const double pivot = line[i + r], inverse = pivot > 0 ? 1 / sqrt(pivot) : 0;
            const vec scale = splat(inverse);
            for (ptrdiff_t j = i; j < width; j += LANES) store(line + j, scale * load(line + j));
            for (int below = r + 1; below < TILE_ROWS; below++)
                NAME(add_)(line + i, -line[i + below], block + below * stride + i, width - i);
            line[i + r] = inverse;
        }
    }
}

/* R ← U⁻¹R. */
static void NAME(back)(double *rows, ptrdiff_t size, ptrdiff_t width, ptrdiff_t stride) {
    for (ptrdiff_t i = size - TILE_ROWS; i >= 0; i -= TILE_ROWS) {
        double *block = rows + i * stride;
        const ptrdiff_t after = i + TILE_ROWS;
        NAME(band)(
            block + after, 1, stride, rows + after * stride + size, stride, size - after,
            block + size, stride, width - size, 1, NULL);
        for (int r = TILE_ROWS - 1; r >= 0; r--) {
            double *line = block + r * stride;
            const vec inverse = splat(line[i + r]);
            for (ptrdiff_t j = size; j < width; j += LANES) store(line + j, inverse * load(line + j));
            for (int above = 0; above < r; above++)
                NAME(add_)(
                    line + size, -block[above * stride + i + r], block + above * stride + size,
                    width - size);
        }
    }
}

/* Rows (1 + scale G | …) over the own coordinates, then the identity up to a multiple of 8. */
static ptrdiff_t NAME(prepare)(
    const double *gram, ptrdiff_t p, ptrdiff_t own, double scale, ptrdiff_t more, double *work) {
    const ptrdiff_t size = (own + 7) / 8 * 8, stride = ridge_stride(size + more);
    for (ptrdiff_t i = 0; i < size; i++) {
        double *line = work + i * stride;
        memset(line + i, 0, (size_t)(size + more - i) * sizeof(double));
        if (i < own) NAME(add_)(gram + i * p + i, scale, line + i, own - i);
        line[i] += 1;
    }
    return size;
}

/* left = G − G_:q (G_qq + 1/scale)⁻¹ G_q: ; its rows q are (1 + scale G_qq)⁻¹ G_q: . */
static void NAME(eliminate_)(
    const double *gram, ptrdiff_t p, ptrdiff_t own, double scale, double *work, double *left) {
    if (!(scale > 0)) {
        memcpy(left, gram, (size_t)(p * p) * sizeof(double));
        return;
    }
    const ptrdiff_t size = NAME(prepare)(gram, p, own, scale, p, work);
    const ptrdiff_t stride = ridge_stride(size + p);
    for (ptrdiff_t i = 0; i < own; i++)
        memcpy(work + i * stride + size, gram + i * p, (size_t)p * sizeof(double));
    NAME(factor)(work, size, size + p, stride);
    NAME(back)(work, size, size + p, stride);
    for (ptrdiff_t i = 0; i < own; i++)
        memcpy(left + i * p, work + i * stride + size, (size_t)p * sizeof(double));
    for (ptrdiff_t i = own; i < p; i++) {
        double *line = left + i * p;
        if (gram[i * p + i] == 0) {
            memset(line, 0, (size_t)p * sizeof(double));
            continue;
        }
        for (ptrdiff_t j = 0; j < own; j++) line[j] = left[j * p + i];
        for (ptrdiff_t j = own; j < p; j++) line[j] = gram[i * p + j];
        for (ptrdiff_t k = 0; k < own; k++) {
            const double factor = scale * gram[i * p + k];
            for (ptrdiff_t j = own; j < p; j++) line[j] -= factor * left[k * p + j];
        }
    }
}

/* out = −(G_qq + 1/scale)⁻¹ G_q: vector, whose last coordinate, of y, is −1. */
static void NAME(own_part_)(
    const double *gram, ptrdiff_t p, ptrdiff_t own, double scale, const double *vector,
    double *work, double *out) {
    memset(out, 0, (size_t)p * sizeof(double));
    if (!(scale > 0)) return;
    const ptrdiff_t size = NAME(prepare)(gram, p, own, scale, 8, work);
    const ptrdiff_t stride = ridge_stride(size + 8);
    for (ptrdiff_t i = 0; i < own; i++)
        work[i * stride + size] = -scale * dot(gram + i * p, vector, p);
    NAME(factor)(work, size, size + 8, stride);
    NAME(back)(work, size, size + 8, stride);
    for (ptrdiff_t i = 0; i < own; i++) out[i] = work[i * stride + size];
}

const ridge_table_f64 NAME(ridge_table) = {
    NAME(update_), NAME(finish_), NAME(eliminate_), NAME(own_part_), NAME(add_)};
#undef TILE_ROWS
#undef TILE_VECS
#endif
