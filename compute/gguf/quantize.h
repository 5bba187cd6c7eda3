/*
 * quantize.h - what the files of the reference quantisers share; sh_quantize in quant.h is the way in. Each sh_quantize_ function
 * writes one block from its values.
 */
#ifndef SHIMMY_QUANTIZE_H
#define SHIMMY_QUANTIZE_H

#include "compute/gguf/quant.h"

#include <math.h>

static inline void sh_put_half(uint8_t *p, float v) {
    const uint16_t h = sh_f32_to_f16(v);
    memcpy(p, &h, 2);
}

/* What a reader will see after the scale has been stored as half. */
static inline float sh_as_half(float v) { return sh_f16_to_f32(sh_f32_to_f16(v)); }

static inline int sh_nearest(float v, int low, int high) {
    if (!(v > (float)low)) return low; /* NaN too */
    return v >= (float)high ? high : (int)lrintf(v);
}

/* The value of largest magnitude, with its sign; 0 if all are 0 or NaN. */
static inline float sh_largest(const float *x, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    return largest;
}

void sh_quantize_q4_1(const float *x, uint8_t *b);
void sh_quantize_q5_0(const float *x, uint8_t *b);
void sh_quantize_q5_1(const float *x, uint8_t *b);
void sh_quantize_q2_k(const float *x, uint8_t *b);
void sh_quantize_q3_k(const float *x, uint8_t *b);
void sh_quantize_q4_k(const float *x, uint8_t *b);
void sh_quantize_q5_k(const float *x, uint8_t *b);
void sh_quantize_q6_k(const float *x, uint8_t *b);
void sh_quantize_iq4_nl(const float *x, uint8_t *b);
void sh_quantize_iq4_xs(const float *x, uint8_t *b);
void sh_quantize_iq2_s(const float *x, uint8_t *b);
void sh_quantize_iq3_xxs(const float *x, uint8_t *b);
void sh_quantize_iq3_s(const float *x, uint8_t *b);
void sh_quantize_mxfp4(const float *x, uint8_t *b);
void sh_quantize_tq1_0(const float *x, uint8_t *b);
void sh_quantize_tq2_0(const float *x, uint8_t *b);

#endif
