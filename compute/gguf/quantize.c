/* The reference quantisers: the way in, and the types whose scale is taken from the largest magnitude. */
#include "compute/gguf/quantize.h"

/* Scale so that the value of largest magnitude is exactly -8: both signs then use the wider side where it is needed. */
static void block_q4_0(const float *x, uint8_t *b) {
    const float d = sh_largest(x, 32) / -8;
    const float inverse = d != 0 ? 1 / d : 0;
    sh_put_half(b, d);
    for (int i = 0; i < 16; i++) {
        const int low = sh_nearest(x[i] * inverse, -8, 7) + 8, high = sh_nearest(x[i + 16] * inverse, -8, 7) + 8;
        b[2 + i] = (uint8_t)(low | high << 4);
    }
}

static void block_q8_0(const float *x, uint8_t *b) {
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    const float d = largest / 127;
    const float inverse = d != 0 ? 1 / d : 0;
    sh_put_half(b, d);
    for (int i = 0; i < 32; i++) b[2 + i] = (uint8_t)(int8_t)sh_nearest(x[i] * inverse, -127, 127);
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
    case SH_TYPE_Q4_1: block = sh_quantize_q4_1; break;
    case SH_TYPE_Q5_0: block = sh_quantize_q5_0; break;
    case SH_TYPE_Q5_1: block = sh_quantize_q5_1; break;
    case SH_TYPE_Q8_0: block = block_q8_0; break;
    case SH_TYPE_Q2_K: block = sh_quantize_q2_k; break;
    case SH_TYPE_Q3_K: block = sh_quantize_q3_k; break;
    case SH_TYPE_Q4_K: block = sh_quantize_q4_k; break;
    case SH_TYPE_Q5_K: block = sh_quantize_q5_k; break;
    case SH_TYPE_Q6_K: block = sh_quantize_q6_k; break;
    case SH_TYPE_IQ4_NL: block = sh_quantize_iq4_nl; break;
    case SH_TYPE_IQ4_XS: block = sh_quantize_iq4_xs; break;
    case SH_TYPE_IQ2_S: block = sh_quantize_iq2_s; break;
    case SH_TYPE_IQ3_XXS: block = sh_quantize_iq3_xxs; break;
    case SH_TYPE_IQ3_S: block = sh_quantize_iq3_s; break;
    case SH_TYPE_MXFP4: block = sh_quantize_mxfp4; break;
    case SH_TYPE_TQ1_0: block = sh_quantize_tq1_0; break;
    case SH_TYPE_TQ2_0: block = sh_quantize_tq2_0; break;
    default: return false;
    }
    SH_ASSERT(count % info->block_elements == 0);
    for (uint64_t i = 0; i < count; i += info->block_elements, b += info->block_bytes) block(src + i, b);
    return true;
}
