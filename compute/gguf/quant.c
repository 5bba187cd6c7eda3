/* Reference dequantisation: one block at a time, in the order of the file's bytes. Table types are decoded in quant_table.c. */
#include "compute/gguf/quant.h"

static float half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return sh_f16_to_f32(h);
}

/* d:f16, 32 nibbles: element e < 16 is the low half of byte e, else the high half of byte e - 16. value = d * (q - 8) */
static void block_q4_0(const uint8_t *b, float *y) {
    const float d = half_at(b);
    for (int e = 0; e < 16; e++) {
        y[e] = d * (float)((b[2 + e] & 15) - 8);
        y[e + 16] = d * (float)((b[2 + e] >> 4) - 8);
    }
}

/* d, m:f16, nibbles as in Q4_0. value = d * q + m */
static void block_q4_1(const uint8_t *b, float *y) {
    const float d = half_at(b), m = half_at(b + 2);
    for (int e = 0; e < 16; e++) {
        y[e] = d * (float)(b[4 + e] & 15) + m;
        y[e + 16] = d * (float)(b[4 + e] >> 4) + m;
    }
}

/* The quant of element e: a nibble as in Q4_0, and bit e of the four bytes in front of them as its fifth bit. */
static int five_bits(const uint8_t *high, int e) {
    const uint8_t byte = high[4 + e % 16];
    return (e < 16 ? byte & 15 : byte >> 4) | (high[e / 8] >> (e % 8) & 1) << 4;
}

/* d:f16, 32 fifth bits, nibbles. value = d * (q - 16) */
static void block_q5_0(const uint8_t *b, float *y) {
    const float d = half_at(b);
    for (int e = 0; e < 32; e++) y[e] = d * (float)(five_bits(b + 2, e) - 16);
}

/* d, m:f16, 32 fifth bits, nibbles. value = d * q + m */
static void block_q5_1(const uint8_t *b, float *y) {
    const float d = half_at(b), m = half_at(b + 2);
    for (int e = 0; e < 32; e++) y[e] = d * (float)five_bits(b + 4, e) + m;
}

/* d:f16, 32 signed bytes. value = d * q */
static void block_q8_0(const uint8_t *b, float *y) {
    const float d = half_at(b);
    for (int e = 0; e < 32; e++) y[e] = d * (float)(int8_t)b[2 + e];
}

void sh_k_scale_min(const uint8_t packed[12], uint32_t j, uint8_t *scale, uint8_t *min) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4));
        *min = (uint8_t)((packed[j + 4] >> 4) | ((packed[j] >> 6) << 4));
    }
}

/* 16 bytes of a scale (low half) and a min, 64 bytes of bit pairs, d, dmin:f16. Run r of half h (32 elements) takes pair r of the
 * half's 32 bytes; a scale and a min serve 16 elements. value = (d * scale) * q - (dmin * min) */
static void block_q2_k(const uint8_t *b, float *y) {
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int e = 0; e < 256; e++) {
        const float ds = d * (float)(b[e / 16] & 15), dm = dmin * (float)(b[e / 16] >> 4);
        *y++ = ds * (float)(b[16 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3) - dm;
    }
}

/* d, dmin:f16, 12 bytes of eight 6-bit scales and mins, 128 bytes: 32 bytes serve two sub-blocks of 32, low halves first.
 * value = (d * scale) * q - (dmin * min) */
static void block_q4_k(const uint8_t *b, float *y) {
    const float d = half_at(b), dmin = half_at(b + 2);
    for (uint32_t s = 0; s < 8; s++) {
        const uint8_t *q = b + 16 + s / 2 * 32;
        uint8_t scale, min;
        sh_k_scale_min(b + 4, s, &scale, &min);
        const float ds = d * (float)scale, dm = dmin * (float)min;
        for (int e = 0; e < 32; e++) *y++ = ds * (float)(s % 2 ? q[e] >> 4 : q[e] & 15) - dm;
    }
}

/* As Q4_K, with 32 bytes before the halves that hold the fifth bit: bit s of byte e for element e of sub-block s. */
static void block_q5_k(const uint8_t *b, float *y) {
    const float d = half_at(b), dmin = half_at(b + 2);
    const uint8_t *high = b + 16;
    for (uint32_t s = 0; s < 8; s++) {
        const uint8_t *q = b + 48 + s / 2 * 32;
        uint8_t scale, min;
        sh_k_scale_min(b + 4, s, &scale, &min);
        const float ds = d * (float)scale, dm = dmin * (float)min;
        for (int e = 0; e < 32; e++) *y++ = ds * (float)((s % 2 ? q[e] >> 4 : q[e] & 15) | ((high[e] >> s & 1) << 4)) - dm;
    }
}

/* 128 bytes of low halves, 64 bytes of upper bit pairs, 16 signed scales (of 16 elements each), d:f16.
 * Each half of the block (128 elements) is four runs of 32: run r takes its low bits from byte e (r even) or e + 32 (r odd) of
 * the half's 64, the low half of it for r < 2, and its upper bits from pair r of byte e of the half's 32.
 * value = (d * scale) * (q - 32) */
static void block_q6_k(const uint8_t *b, float *y) {
    const float d = half_at(b + 208);
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = b + half * 64, *high = b + 128 + half * 32, *scales = b + 192 + half * 8;
        for (int r = 0; r < 4; r++) {
            for (int e = 0; e < 32; e++) {
                const uint8_t byte = low[e + (r & 1) * 32];
                const int q = (r < 2 ? byte & 15 : byte >> 4) | ((high[e] >> (2 * r) & 3) << 4);
                *y++ = d * (float)(int8_t)scales[2 * r + e / 16] * (float)(q - 32);
            }
        }
    }
}

/* Of a table type; the products are exact, so their order does not matter. */
static void block_table(uint32_t type, const struct sh_table_type *table, const uint8_t *b, float *y) {
    uint8_t codes[256];
    int8_t scales[16];
    float d;
    sh_table_decode(type, b, codes, scales, &d);
    for (uint32_t e = 0; e < table->block; e++) y[e] = d * (float)scales[e / 16] * (float)table->values[codes[e]];
}

bool sh_dequantize(uint32_t type, const void *src, float *dst, uint64_t count) {
    const struct sh_type_info *info = sh_type_info(type);
    const struct sh_table_type *table = sh_table_type(type);
    if (info == NULL || !info->computable) return false;
    SH_ASSERT(count % info->block_elements == 0);
    const uint8_t *b = src;
    uint16_t half;
    void (*block)(const uint8_t *, float *) = NULL;
    switch (type) {
    case SH_TYPE_F32: memcpy(dst, src, (size_t)count * 4); return true;
    case SH_TYPE_F16:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(&half, b + 2 * i, 2);
            dst[i] = sh_f16_to_f32(half);
        }
        return true;
    case SH_TYPE_BF16:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(&half, b + 2 * i, 2);
            dst[i] = sh_bf16_to_f32(half);
        }
        return true;
    case SH_TYPE_Q4_0: block = block_q4_0; break;
    case SH_TYPE_Q4_1: block = block_q4_1; break;
    case SH_TYPE_Q5_0: block = block_q5_0; break;
    case SH_TYPE_Q5_1: block = block_q5_1; break;
    case SH_TYPE_Q8_0: block = block_q8_0; break;
    case SH_TYPE_Q2_K: block = block_q2_k; break;
    case SH_TYPE_Q4_K: block = block_q4_k; break;
    case SH_TYPE_Q5_K: block = block_q5_k; break;
    case SH_TYPE_Q6_K: block = block_q6_k; break;
    default: break;
    }
    for (uint64_t i = 0; i < count; i += info->block_elements, b += info->block_bytes) {
        if (table != NULL) block_table(type, table, b, dst + i);
        else block(b, dst + i);
    }
    return true;
}
