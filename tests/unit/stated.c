#include "tests/unit/stated.h"

#include "compute/gguf/quant.h"

#include <math.h>
#include <stdlib.h>

static float half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return sh_f16_to_f32(h);
}

/* Quant of element e (0..31 or 0..255) of a block, and for K types its scale and min. */
static int quant(uint32_t type, const uint8_t *block, uint32_t e, int *scale, int *min) {
    *scale = 1;
    *min = 0;
    switch (type) {
    case SH_TYPE_Q4_0: return (e < 16 ? block[2 + e] & 15 : block[2 + e - 16] >> 4) - 8;
    case SH_TYPE_Q8_0: return (int8_t)block[2 + e];
    case SH_TYPE_Q4_1: return e < 16 ? block[4 + e] & 15 : block[4 + e - 16] >> 4;
    case SH_TYPE_Q5_0:
    case SH_TYPE_Q5_1: {
        const uint8_t *high = block + (type == SH_TYPE_Q5_0 ? 2 : 4), nibbles = high[4 + e % 16];
        const int q = (e < 16 ? nibbles & 15 : nibbles >> 4) | (high[e / 8] >> e % 8 & 1) << 4;
        return type == SH_TYPE_Q5_0 ? q - 16 : q;
    }
    case SH_TYPE_Q2_K:
        *scale = block[e / 16] & 15;
        *min = block[e / 16] >> 4;
        return block[16 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3;
    case SH_TYPE_Q6_K: {
        const uint32_t h = e / 128, l = e % 128, byte = 64 * h + l % 64;
        *scale = (int8_t)block[192 + e / 16];
        const int low = l < 64 ? block[byte] & 15 : block[byte] >> 4;
        return (low | (block[128 + 32 * h + l % 32] >> (l / 32 * 2) & 3) << 4) - 32;
    }
    default: { /* Q4_K, Q5_K */
        const uint32_t s = e / 32, at = type == SH_TYPE_Q4_K ? 16 : 48;
        const uint8_t *packed = block + 4;
        *scale = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | (packed[s - 4] >> 6) << 4;
        *min = s < 4 ? packed[s + 4] & 63 : packed[s + 4] >> 4 | (packed[s] >> 6) << 4;
        const uint8_t byte = block[at + e / 64 * 32 + e % 32];
        const int low = e % 64 < 32 ? byte & 15 : byte >> 4;
        return type == SH_TYPE_Q4_K ? low : low | (block[16 + e % 32] >> s & 1) << 4;
    }
    }
}

/* A row's weights as integers: scale * quant and min of every element, and the blocks' d and dmin. */
struct row {
    int *weights, *mins;
    float *d, *dmin;
};

static void read_row(uint32_t type, const uint8_t *row, uint64_t cols, const struct row *out) {
    const struct sh_type_info *info = sh_type_info(type);
    const struct sh_table_type *table = sh_table_type(type);
    for (uint64_t b = 0; b < cols / info->block_elements; b++, row += info->block_bytes) {
        uint8_t codes[256];
        int8_t scales[16];
        if (table != NULL) sh_table_decode(type, row, codes, scales, &out->d[b]);
        else out->d[b] = half_at(row + stated_scale_at(type));
        out->dmin[b] = stated_has_min(type) ? half_at(row + stated_scale_at(type) + 2) : 0;
        for (uint32_t e = 0; e < info->block_elements; e++) {
            int scale, min = 0;
            const int q = table != NULL ? table->values[codes[e]] : quant(type, row, e, &scale, &min);
            if (table != NULL) scale = scales[e / 16];
            out->weights[b * info->block_elements + e] = scale * q;
            out->mins[b * info->block_elements + e] = min;
        }
    }
}

static float quantised(uint32_t type, const struct row *row, const float *x, uint64_t cols) {
    const uint32_t n = sh_type_info(type)->block_elements;
    float y = 0.0f;
    for (uint64_t b = 0; b < cols / n; b++, x += n) {
        float most = 0.0f;
        for (uint32_t e = 0; e < n; e++) most = fmaxf(most, fabsf(x[e]));
        const float dx = most / 127.0f, inverse = most >= 0x1p-119f ? 127.0f / most : 0.0f;
        int sums = 0, mins = 0, all = 0;
        for (uint32_t e = 0; e < n; e++) {
            const int a = (int)lrintf(x[e] * inverse);
            sums += row->weights[b * n + e] * a;
            mins += row->mins[b * n + e] * a;
            all += a;
        }
        if (sh_table_type(type) != NULL) {
            y = fmaf(row->d[b], dx * (float)sums, y);
            continue;
        }
        if (type == SH_TYPE_Q4_1 || type == SH_TYPE_Q5_1) y = fmaf(row->dmin[b] * dx, (float)all, y);
        else if (stated_has_min(type)) y = fmaf(-(row->dmin[b] * dx), (float)mins, y);
        y = fmaf(row->d[b] * dx, (float)sums, y);
    }
    return y;
}

static float floats(const float *w, const float *x, uint64_t cols) {
    float s[4] = {0};
    for (uint64_t k = 0; k < cols; k++) s[k % 4] = fmaf(w[k], x[k], s[k % 4]);
    return (s[0] + s[1]) + (s[2] + s[3]);
}

void stated_products(uint32_t type, const uint8_t *row, uint64_t cols, const float *x, uint64_t x_stride, uint32_t n, float *y) {
    const bool blocks = sh_type_info(type)->block_elements > 1;
    float *values = malloc(2 * cols * sizeof *values);
    int *integers = malloc(2 * cols * sizeof *integers);
    SH_ASSERT(values != NULL && integers != NULL);
    const struct row r = {integers, integers + cols, values, values + cols};
    if (blocks) read_row(type, row, cols, &r);
    else sh_dequantize(type, row, values, cols);
    for (uint32_t t = 0; t < n; t++, x += x_stride) y[t] = blocks ? quantised(type, &r, x, cols) : floats(values, x, cols);
    free(values);
    free(integers);
}

uint32_t stated_scale_at(uint32_t type) {
    switch (type) {
    case SH_TYPE_Q2_K: return 80;
    case SH_TYPE_Q3_K: return 108;
    case SH_TYPE_Q6_K: return 208;
    case SH_TYPE_TQ1_0: return 52;
    case SH_TYPE_TQ2_0: return 64;
    default: return 0;
    }
}
void stated_set_scale(uint32_t type, uint8_t *block, uint16_t d) {
    if (type == SH_TYPE_IQ1_M)
        for (int i = 0; i < 4; i++) block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (d >> (4 * i) & 15) << 4);
    else memcpy(block + stated_scale_at(type), &d, 2);
}
bool stated_has_min(uint32_t type) {
    return type == SH_TYPE_Q4_1 || type == SH_TYPE_Q5_1 || type == SH_TYPE_Q2_K || type == SH_TYPE_Q4_K || type == SH_TYPE_Q5_K;
}
