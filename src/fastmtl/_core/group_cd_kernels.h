/* Block coordinate descent's passes over one task's part of one column; see group_cd.h. */

/* Σ x r */
static double NAME(product_)(const real *x, const int32_t *row, const real *r, ptrdiff_t n) {
    if (!row) return dot(x, r, n);
    double total_0 = 0, total_1 = 0;
    ptrdiff_t i = 0;
    for (; i + 2 <= n; i += 2) {
        total_0 += x[row[i]] * r[i];
        total_1 += x[row[i + 1]] * r[i + 1];
    }
    if (i < n) total_0 += x[row[i]] * r[i];
    return total_0 + total_1;
}

/* r ← r − step w x */
static void NAME(move_)(
    const real *x, const int32_t *row, const real *w, double step, real *r, ptrdiff_t n
) {
    ptrdiff_t i = 0;
    if (row) {
        for (; i < n; i++) r[i] -= (real)step * w[i] * x[row[i]];
        return;
    }
    const vec s = splat((real)step);
    for (; i + LANES <= n; i += LANES) store(r + i, load(r + i) - s * load(w + i) * load(x + i));
    for (; i < n; i++) r[i] -= (real)step * w[i] * x[i];
}

/* Σ w x and Σ w x² */
static void NAME(moments_)(
    const real *x, const int32_t *row, const real *w, ptrdiff_t n, double *both
) {
    double sum = 0, square = 0;
    ptrdiff_t i = 0;
    if (!row) {
        vec sums = splat(0), squares = splat(0);
        for (; i + LANES <= n; i += LANES) {
            vec value = load(x + i), weighted = load(w + i) * value;
            sums += weighted;
            squares += weighted * value;
        }
        sum = sum_lanes(sums);
        square = sum_lanes(squares);
    }
    for (; i < n; i++) {
        double value = x[row ? row[i] : i], weighted = w[i] * value;
        sum += weighted;
        square += weighted * value;
    }
    both[0] = sum;
    both[1] = square;
}

const struct NAME(group_cd_table_t) {
    double (*product)(const real *, const int32_t *, const real *, ptrdiff_t);
    void (*move)(const real *, const int32_t *, const real *, double, real *, ptrdiff_t);
    void (*moments)(const real *, const int32_t *, const real *, ptrdiff_t, double *);
} NAME(group_cd_table) = {NAME(product_), NAME(move_), NAME(moments_)};
