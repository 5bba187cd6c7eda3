/*
 * Q4_1, Q5_0, Q5_1 and the K types. For each block of 32, or sub-block of a K type, candidate grids are tried, for each grid
 * scale (and minimum) are fitted to the rounded values by least squares, weighted in K types, and the fit with the smallest
 * squared error stays. In K types the sub-blocks' scales are themselves rounded to the block's scale, and the values are rounded again to what
 * will be read back.
 */
#include "compute/gguf/quantize.h"

/* What an error costs at each value of a block: large values matter more, small ones still count. */
static void weigh(const float *x, float weight[256]) {
    float square = 0;
    for (int i = 0; i < 256; i++) square += x[i] * x[i];
    for (int i = 0; i < 256; i++) weight[i] = sqrtf(square / 256 + x[i] * x[i]);
}

struct grid { /* value = scale * q - min */
    float scale, min;
};

struct shape { /* sub-blocks of n values, quants 0..levels, scales and mins 0..top; or with a minimum of any sign: top = 0 */
    int n, levels, top;
};

struct fit { /* what does not depend on the quants, computed once */
    const float *x, *weight;
    const struct shape *shape;
    float sum_w, sum_wx;
};

/* Rounds the values to a grid, then fits the grid to the quants; false if they determine none. *error is that of the new grid
 * with these quants. */
static bool refit(const struct fit *f, struct grid *g, float *error) {
    float sum_wq = 0, sum_wqq = 0, sum_wxq = 0;
    float q[32];
    const float inverse = 1 / g->scale;
    for (int i = 0; i < f->shape->n; i++) {
        q[i] = (float)sh_nearest((f->x[i] + g->min) * inverse, 0, f->shape->levels);
        const float wq = f->weight[i] * q[i];
        sum_wq += wq;
        sum_wqq += wq * q[i];
        sum_wxq += wq * f->x[i];
    }
    const float determinant = f->sum_w * sum_wqq - sum_wq * sum_wq;
    if (!(determinant > 0)) return false;
    g->scale = (f->sum_w * sum_wxq - f->sum_wx * sum_wq) / determinant;
    g->min = (sum_wq * sum_wxq - sum_wqq * f->sum_wx) / determinant;
    if (g->min < 0 && f->shape->top > 0) { /* the file stores no negative one */
        g->min = 0;
        g->scale = sum_wxq / sum_wqq;
    }
    *error = 0;
    for (int i = 0; i < f->shape->n; i++) {
        const float difference = g->scale * q[i] - g->min - f->x[i];
        *error += f->weight[i] * difference * difference;
    }
    return g->scale > 0;
}

/* A sub-block of values on a grid of 0..levels with a minimum, of at most zero in K types. Candidates shrink and widen the grid that
 * spans the values; each is rounded and fitted in turn until that gains nothing. */
static struct grid fit_min_grid(const float *x, const float *weight, const struct shape *shape) {
    struct fit f = {x, weight, shape, 0, 0};
    float low = x[0], high = x[0];
    for (int i = 0; i < shape->n; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
        f.sum_w += weight[i];
        f.sum_wx += weight[i] * x[i];
    }
    if (shape->top > 0) low = fminf(low, 0);
    if (!(high > low)) return (struct grid){0, -low};
    struct grid best = {(high - low) / (float)shape->levels, -low};
    float best_error = INFINITY;
    for (int c = 0; c < 21; c++) {
        struct grid g = {(high - low) / ((float)shape->levels - 1.0f + 0.1f * (float)c), -low};
        float last = INFINITY, error;
        for (int turn = 0; turn < 4 && refit(&f, &g, &error) && error < last; turn++) {
            last = error;
            if (error >= best_error) continue;
            best_error = error;
            best = g;
        }
    }
    return best;
}

/* Rounding scale and min moved the grid: takes the best of the rounded pair and its neighbours, and rounds the values to it. */
static void settle(const float *x, const float *weight, const struct shape *shape, float d, float dmin, uint8_t *scale,
                   uint8_t *min, uint8_t q[32]) {
    const int scale0 = *scale, min0 = *min;
    float best_error = INFINITY;
    memset(q, 0, (size_t)shape->n);
    for (int k = 0; k < 9; k++) {
        const int s = scale0 + (k % 3 + 1) % 3 - 1, m = min0 + (k / 3 + 1) % 3 - 1; /* the pair itself first */
        if (s < 0 || s > shape->top || m < 0 || m > shape->top) continue;
        const float ds = d * (float)s, dm = dmin * (float)m, inverse = ds > 0 ? 1 / ds : 0;
        float error = 0;
        uint8_t rounded[32];
        for (int i = 0; i < shape->n; i++) {
            rounded[i] = (uint8_t)sh_nearest((x[i] + dm) * inverse, 0, shape->levels);
            const float difference = ds * (float)rounded[i] - dm - x[i];
            error += weight[i] * difference * difference;
        }
        if (!(error < best_error)) continue;
        best_error = error;
        *scale = (uint8_t)s;
        *min = (uint8_t)m;
        memcpy(q, rounded, (size_t)shape->n);
    }
}

struct with_mins { /* what a block of a type with minima stores */
    float d, dmin;
    uint8_t scale[16], min[16], q[256];
};

static void quantize_with_mins(const float *x, const struct shape *shape, struct with_mins *out) {
    struct grid grids[16];
    float weight[256], largest_scale = 0, largest_min = 0;
    const int n_sub = 256 / shape->n;
    weigh(x, weight);
    for (int s = 0; s < n_sub; s++) {
        grids[s] = fit_min_grid(x + shape->n * s, weight + shape->n * s, shape);
        largest_scale = fmaxf(largest_scale, grids[s].scale);
        largest_min = fmaxf(largest_min, grids[s].min);
    }
    out->d = sh_as_half(largest_scale / (float)shape->top);
    out->dmin = sh_as_half(largest_min / (float)shape->top);
    for (int s = 0; s < n_sub; s++) {
        out->scale[s] = (uint8_t)(out->d > 0 ? sh_nearest(grids[s].scale / out->d, 0, shape->top) : 0);
        out->min[s] = (uint8_t)(out->dmin > 0 ? sh_nearest(grids[s].min / out->dmin, 0, shape->top) : 0);
        settle(x + shape->n * s, weight + shape->n * s, shape, out->d, out->dmin, &out->scale[s], &out->min[s],
               out->q + shape->n * s);
    }
}

/* The twelve bytes of eight scales and mins, the inverse of sh_k_scale_min. */
static void pack_scale_min(uint8_t packed[12], const uint8_t scale[8], const uint8_t min[8]) {
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scale[j] | (scale[j + 4] >> 4) << 6);
        packed[j + 4] = (uint8_t)(min[j] | (min[j + 4] >> 4) << 6);
        packed[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
}

/* d, dmin and the twelve bytes. */
static void put_head(const struct with_mins *m, uint8_t *b) {
    sh_put_half(b, m->d);
    sh_put_half(b + 2, m->dmin);
    pack_scale_min(b + 4, m->scale, m->min);
}

void sh_quantize_q4_k(const float *x, uint8_t *b) {
    struct with_mins m;
    quantize_with_mins(x, &(struct shape){32, 15, 63}, &m);
    put_head(&m, b);
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = m.q + i / 32 * 64 + i % 32;
        b[16 + i] = (uint8_t)(pair[0] | pair[32] << 4);
    }
}

void sh_quantize_q5_k(const float *x, uint8_t *b) {
    struct with_mins m;
    quantize_with_mins(x, &(struct shape){32, 31, 63}, &m);
    put_head(&m, b);
    memset(b + 16, 0, 32);
    for (int i = 0; i < 256; i++) b[16 + i % 32] = (uint8_t)(b[16 + i % 32] | (m.q[i] >> 4) << (i / 32));
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = m.q + i / 32 * 64 + i % 32;
        b[48 + i] = (uint8_t)((pair[0] & 15) | (pair[32] & 15) << 4);
    }
}

/* The lower two bits of 256 quants: run r of half h is pair r of the half's 32 bytes. */
static void put_pairs(const uint8_t *q, uint8_t *b) {
    memset(b, 0, 64);
    for (int e = 0; e < 256; e++) {
        uint8_t *byte = b + e / 128 * 32 + e % 32;
        *byte = (uint8_t)(*byte | (q[e] & 3) << (e % 128 / 32 * 2));
    }
}

void sh_quantize_q2_k(const float *x, uint8_t *b) {
    struct with_mins m;
    quantize_with_mins(x, &(struct shape){16, 3, 15}, &m);
    for (int s = 0; s < 16; s++) b[s] = (uint8_t)(m.scale[s] | m.min[s] << 4);
    put_pairs(m.q, b + 16);
    sh_put_half(b + 80, m.d);
    sh_put_half(b + 82, m.dmin);
}

/* n values on -low..low - 1 times a signed scale. */
static float fit_signed_scale(const float *x, const float *weight, int n, int low) {
    const float largest = sh_largest(x, n);
    if (largest == 0) return 0;
    float best = 0, best_gain = -1;
    for (int c = -9; c <= 9; c++) {
        const float inverse = -((float)low + 0.1f * (float)c) / largest;
        float sum_xq = 0, sum_qq = 0;
        for (int i = 0; i < n; i++) {
            const float q = (float)sh_nearest(x[i] * inverse, -low, low - 1), wq = weight[i] * q;
            sum_xq += wq * x[i];
            sum_qq += wq * q;
        }
        /* the best scale for these quants is sum_xq / sum_qq; it lowers the squared error by sum_xq^2 / sum_qq */
        if (sum_qq > 0 && sum_xq * sum_xq > best_gain * sum_qq) {
            best = sum_xq / sum_qq;
            best_gain = sum_xq * sum_xq / sum_qq;
        }
    }
    return best;
}

/* Sixteen signed scales of sub-blocks on -low..low - 1, stored as -top..top - 1 times *d, and the quants, from 0. */
static void quantize_signed(const float *x, int low, int top, float *d, int8_t scale[16], uint8_t q[256]) {
    float scales[16], weight[256];
    weigh(x, weight);
    for (int s = 0; s < 16; s++) scales[s] = fit_signed_scale(x + 16 * s, weight + 16 * s, 16, low);
    *d = sh_as_half(sh_largest(scales, 16) / (float)-top);
    for (int s = 0; s < 16; s++) {
        scale[s] = (int8_t)(*d != 0 ? sh_nearest(scales[s] / *d, -top, top - 1) : 0);
        const float ds = *d * (float)scale[s];
        for (int e = 16 * s; e < 16 * s + 16; e++) q[e] = (uint8_t)((ds != 0 ? sh_nearest(x[e] / ds, -low, low - 1) : 0) + low);
    }
}

void sh_quantize_q3_k(const float *x, uint8_t *b) {
    int8_t scale[16];
    uint8_t q[256];
    float d;
    quantize_signed(x, 4, 32, &d, scale, q);
    memset(b, 0, 32);
    memset(b + 96, 0, 12);
    for (int e = 0; e < 256; e++) b[e % 32] = (uint8_t)(b[e % 32] | (q[e] >> 2) << (e / 32));
    put_pairs(q, b + 32);
    for (int s = 0; s < 16; s++) {
        const int bits = scale[s] + 32;
        b[96 + s % 8] = (uint8_t)(b[96 + s % 8] | (bits & 15) << (s < 8 ? 0 : 4));
        b[104 + s % 4] = (uint8_t)(b[104 + s % 4] | (bits >> 4) << (2 * (s / 4)));
    }
    sh_put_half(b + 108, d);
}

void sh_quantize_q6_k(const float *x, uint8_t *b) {
    int8_t scale[16];
    uint8_t q[256];
    float d;
    quantize_signed(x, 32, 128, &d, scale, q);
    memset(b, 0, 192);
    for (int e = 0; e < 256; e++) {
        const int half = e / 128, run = e % 128 / 32, i = e % 32;
        uint8_t *low = b + 64 * half + 32 * (run & 1) + i, *high = b + 128 + 32 * half + i;
        *low = (uint8_t)(*low | (q[e] & 15) << (run < 2 ? 0 : 4));
        *high = (uint8_t)(*high | (q[e] >> 4) << (2 * run));
    }
    memcpy(b + 192, scale, 16);
    sh_put_half(b + 208, d);
}

/* Nibbles and fifth bits of 32 quants; `high` is NULL where there are none. */
static void put_five(const uint8_t *q, uint8_t *high, uint8_t *nibbles) {
    for (int i = 0; i < 16; i++) nibbles[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
    if (high == NULL) return;
    memset(high, 0, 4);
    for (int i = 0; i < 32; i++) high[i / 8] = (uint8_t)(high[i / 8] | (q[i] >> 4) << (i % 8));
}

static const float equal_weights[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* Scale and minimum of 32 values to b, their quants. */
static void quantize_with_min(const float *x, int levels, uint8_t *b, uint8_t q[32]) {
    const struct grid g = fit_min_grid(x, equal_weights, &(struct shape){32, levels, 0});
    const float d = sh_as_half(g.scale), min = sh_as_half(-g.min), inverse = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)sh_nearest((x[i] - min) * inverse, 0, levels);
    sh_put_half(b, d);
    sh_put_half(b + 2, min);
}

void sh_quantize_q4_1(const float *x, uint8_t *b) {
    uint8_t q[32];
    quantize_with_min(x, 15, b, q);
    put_five(q, NULL, b + 4);
}

void sh_quantize_q5_1(const float *x, uint8_t *b) {
    uint8_t q[32];
    quantize_with_min(x, 31, b, q);
    put_five(q, b + 4, b + 8);
}

void sh_quantize_q5_0(const float *x, uint8_t *b) {
    const float d = sh_as_half(fit_signed_scale(x, equal_weights, 32, 16)), inverse = d != 0 ? 1 / d : 0;
    uint8_t q[32];
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)(sh_nearest(x[i] * inverse, -16, 15) + 16);
    sh_put_half(b, d);
    put_five(q, b + 2, b + 6);
}
