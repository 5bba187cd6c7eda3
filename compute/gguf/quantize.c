/*
 * The reference quantisers. Blocks with one scale (Q4_0, Q8_0) take it from the largest magnitude. K types search: for each
 * sub-block, candidate grids are tried, for each grid scale (and minimum) are fitted to the rounded values by weighted least
 * squares, and the fit with the smallest weighted squared error stays. Then the sub-blocks' scales are themselves rounded to the
 * block's scale, and the values are rounded again to what will be read back.
 */
#include "compute/gguf/quant.h"

#include <math.h>

static void put_half(uint8_t *p, float v) {
    const uint16_t h = sh_f32_to_f16(v);
    memcpy(p, &h, 2);
}

/* What a reader will see after the scale has been stored as half. */
static float as_half(float v) { return sh_f16_to_f32(sh_f32_to_f16(v)); }

static int nearest(float v, int low, int high) {
    if (!(v > (float)low)) return low; /* NaN too */
    return v >= (float)high ? high : (int)lrintf(v);
}

/* Scale so that the value of largest magnitude is exactly -8: both signs then use the wider side where it is needed. */
static void block_q4_0(const float *x, uint8_t *b) {
    float largest = 0;
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    const float d = largest / -8;
    const float inverse = d != 0 ? 1 / d : 0;
    put_half(b, d);
    for (int i = 0; i < 16; i++) {
        const int low = nearest(x[i] * inverse, -8, 7) + 8, high = nearest(x[i + 16] * inverse, -8, 7) + 8;
        b[2 + i] = (uint8_t)(low | high << 4);
    }
}

static void block_q8_0(const float *x, uint8_t *b) {
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    const float d = largest / 127;
    const float inverse = d != 0 ? 1 / d : 0;
    put_half(b, d);
    for (int i = 0; i < 32; i++) b[2 + i] = (uint8_t)(int8_t)nearest(x[i] * inverse, -127, 127);
}

/* What an error costs at each value of a block: large values matter more, small ones still count. */
static void weigh(const float *x, float weight[256]) {
    float square = 0;
    for (int i = 0; i < 256; i++) square += x[i] * x[i];
    for (int i = 0; i < 256; i++) weight[i] = sqrtf(square / 256 + x[i] * x[i]);
}

struct grid { /* value = scale * q - min, min >= 0 */
    float scale, min;
};

struct fit { /* what does not depend on the quants, computed once */
    const float *x, *weight;
    int levels;
    float sum_w, sum_wx;
};

/* Rounds the values to a grid, then fits the grid to the quants; false if they determine none. *error is that of the new grid
 * with these quants. */
static bool refit(const struct fit *f, struct grid *g, float *error) {
    float sum_wq = 0, sum_wqq = 0, sum_wxq = 0;
    float q[32];
    const float inverse = 1 / g->scale;
    for (int i = 0; i < 32; i++) {
        q[i] = (float)nearest((f->x[i] + g->min) * inverse, 0, f->levels);
        const float wq = f->weight[i] * q[i];
        sum_wq += wq;
        sum_wqq += wq * q[i];
        sum_wxq += wq * f->x[i];
    }
    const float determinant = f->sum_w * sum_wqq - sum_wq * sum_wq;
    if (!(determinant > 0)) return false;
    g->scale = (f->sum_w * sum_wxq - f->sum_wx * sum_wq) / determinant;
    g->min = (sum_wq * sum_wxq - sum_wqq * f->sum_wx) / determinant;
    if (g->min < 0) { /* the file stores no negative minimum */
        g->min = 0;
        g->scale = sum_wxq / sum_wqq;
    }
    *error = 0;
    for (int i = 0; i < 32; i++) {
        const float difference = g->scale * q[i] - g->min - f->x[i];
        *error += f->weight[i] * difference * difference;
    }
    return g->scale > 0;
}

/* 32 values on a grid of 0..levels with a minimum of at most zero. Candidates shrink and widen the grid that spans the values;
 * each is rounded and fitted in turn until that gains nothing. */
static struct grid fit_min_grid(const float *x, const float *weight, int levels, float first, float step, int candidates) {
    struct fit f = {x, weight, levels, 0, 0};
    float low = x[0], high = x[0];
    for (int i = 0; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
        f.sum_w += weight[i];
        f.sum_wx += weight[i] * x[i];
    }
    low = fminf(low, 0);
    if (!(high > low)) return (struct grid){0, -low};
    struct grid best = {(high - low) / (float)levels, -low};
    float best_error = INFINITY;
    for (int c = 0; c < candidates; c++) {
        struct grid g = {(high - low) / ((float)levels + first + step * (float)c), -low};
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
static void settle(const float *x, const float *weight, int levels, float d, float dmin, uint8_t *scale, uint8_t *min,
                   uint8_t q[32]) {
    const int scale0 = *scale, min0 = *min;
    float best_error = INFINITY;
    memset(q, 0, 32);
    for (int k = 0; k < 9; k++) {
        const int s = scale0 + (k % 3 + 1) % 3 - 1, m = min0 + (k / 3 + 1) % 3 - 1; /* the pair itself first */
        if (s < 0 || s > 63 || m < 0 || m > 63) continue;
        const float ds = d * (float)s, dm = dmin * (float)m, inverse = ds > 0 ? 1 / ds : 0;
        float error = 0;
        uint8_t rounded[32];
        for (int i = 0; i < 32; i++) {
            rounded[i] = (uint8_t)nearest((x[i] + dm) * inverse, 0, levels);
            const float difference = ds * (float)rounded[i] - dm - x[i];
            error += weight[i] * difference * difference;
        }
        if (!(error < best_error)) continue;
        best_error = error;
        *scale = (uint8_t)s;
        *min = (uint8_t)m;
        memcpy(q, rounded, sizeof rounded);
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

/* Scales, mins and quants of Q4_K and Q5_K; b begins with d, dmin and the twelve bytes. */
static void quantize_with_mins(const float *x, uint8_t *b, int levels, float first, float step, int candidates, uint8_t q[256]) {
    struct grid grids[8];
    float weight[256], largest_scale = 0, largest_min = 0;
    weigh(x, weight);
    for (int s = 0; s < 8; s++) {
        grids[s] = fit_min_grid(x + 32 * s, weight + 32 * s, levels, first, step, candidates);
        largest_scale = fmaxf(largest_scale, grids[s].scale);
        largest_min = fmaxf(largest_min, grids[s].min);
    }
    const float d = as_half(largest_scale / 63), dmin = as_half(largest_min / 63);
    uint8_t scale[8], min[8];
    for (int s = 0; s < 8; s++) {
        scale[s] = (uint8_t)(d > 0 ? nearest(grids[s].scale / d, 0, 63) : 0);
        min[s] = (uint8_t)(dmin > 0 ? nearest(grids[s].min / dmin, 0, 63) : 0);
        settle(x + 32 * s, weight + 32 * s, levels, d, dmin, &scale[s], &min[s], q + 32 * s);
    }
    put_half(b, d);
    put_half(b + 2, dmin);
    pack_scale_min(b + 4, scale, min);
}

static void block_q4_k(const float *x, uint8_t *b) {
    uint8_t q[256];
    quantize_with_mins(x, b, 15, -1.0f, 0.1f, 21, q);
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = q + i / 32 * 64 + i % 32;
        b[16 + i] = (uint8_t)(pair[0] | pair[32] << 4);
    }
}

static void block_q5_k(const float *x, uint8_t *b) {
    uint8_t q[256];
    quantize_with_mins(x, b, 31, -1.0f, 0.1f, 21, q);
    memset(b + 16, 0, 32);
    for (int i = 0; i < 256; i++) b[16 + i % 32] = (uint8_t)(b[16 + i % 32] | (q[i] >> 4) << (i / 32));
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = q + i / 32 * 64 + i % 32;
        b[48 + i] = (uint8_t)((pair[0] & 15) | (pair[32] & 15) << 4);
    }
}

/* 16 values on -32..31 times a signed scale. */
static float fit_signed_scale(const float *x, const float *weight) {
    float largest = 0;
    for (int i = 0; i < 16; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    if (largest == 0) return 0;
    float best = 0, best_gain = -1;
    for (int c = -9; c <= 9; c++) {
        const float inverse = -(32 + 0.1f * (float)c) / largest;
        float sum_xq = 0, sum_qq = 0;
        for (int i = 0; i < 16; i++) {
            const float q = (float)nearest(x[i] * inverse, -32, 31), wq = weight[i] * q;
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

static void block_q6_k(const float *x, uint8_t *b) {
    float scales[16], weight[256], largest = 0;
    weigh(x, weight);
    for (int s = 0; s < 16; s++) {
        scales[s] = fit_signed_scale(x + 16 * s, weight + 16 * s);
        if (fabsf(scales[s]) > fabsf(largest)) largest = scales[s];
    }
    const float d = as_half(largest / -128);
    memset(b, 0, 192);
    put_half(b + 208, d);
    for (int s = 0; s < 16; s++) {
        const int scale = d != 0 ? nearest(scales[s] / d, -128, 127) : 0;
        const float ds = d * (float)scale;
        b[192 + s] = (uint8_t)(int8_t)scale;
        for (int e = 16 * s; e < 16 * s + 16; e++) {
            const int q = (ds != 0 ? nearest(x[e] / ds, -32, 31) : 0) + 32;
            const int half = e / 128, run = e % 128 / 32, i = e % 32;
            uint8_t *low = b + 64 * half + 32 * (run & 1) + i, *high = b + 128 + 32 * half + i;
            *low = (uint8_t)(*low | (q & 15) << (run < 2 ? 0 : 4));
            *high = (uint8_t)(*high | (q >> 4) << (2 * run));
        }
    }
}

bool sh_quantize(uint32_t type, const float *src, void *dst, uint64_t count) {
    const struct sh_type_info *info = sh_type_info(type);
    uint8_t *b = dst;
    uint16_t half;
    void (*block)(const float *, uint8_t *);
    switch (type) {
    case SH_TYPE_F32: memcpy(dst, src, (size_t)count * 4); return true;
    case SH_TYPE_F16:
    case SH_TYPE_BF16:
        for (uint64_t i = 0; i < count; i++) {
            half = type == SH_TYPE_F16 ? sh_f32_to_f16(src[i]) : sh_f32_to_bf16(src[i]);
            memcpy(b + 2 * i, &half, 2);
        }
        return true;
    case SH_TYPE_Q4_0: block = block_q4_0; break;
    case SH_TYPE_Q8_0: block = block_q8_0; break;
    case SH_TYPE_Q4_K: block = block_q4_k; break;
    case SH_TYPE_Q5_K: block = block_q5_k; break;
    case SH_TYPE_Q6_K: block = block_q6_k; break;
    default: return false;
    }
    SH_ASSERT(count % info->block_elements == 0);
    for (uint64_t i = 0; i < count; i += info->block_elements, b += info->block_bytes) block(src + i, b);
    return true;
}
