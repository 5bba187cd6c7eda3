/*
 * draw.h - the arithmetic of the draw and of the filters before it, written once, read by C and by GLSL: from the same logits host and
 * device compute the same token.
 *
 * All of it is float32, made of what every machine rounds correctly (sums, products, conversions) and of integers: no division, no
 * function of a library. C is compiled with -ffp-contract=off; in GLSL each variable is `precise`.
 */
#ifndef SHIMMY_DRAW_H
#define SHIMMY_DRAW_H

#define SH_SHORT_LIST 256 /* the largest top_k of a short list: see compute/sample/sample.h */

#ifdef VULKAN
#define SH_DRAW_UINT uint
#define SH_DRAW_FLOAT precise float
#define SH_DRAW_FUNCTION
#define SH_DRAW_BITS(x) floatBitsToUint(x)
#define SH_DRAW_NUMBER(u) uintBitsToFloat(u)
#define SH_DRAW_CONVERT(u) float(u)
#else
#include <stdint.h>
#include <string.h>
static inline uint32_t sh_draw_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float sh_draw_number(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
#define SH_DRAW_UINT uint32_t
#define SH_DRAW_FLOAT float
#define SH_DRAW_FUNCTION static inline
#define SH_DRAW_BITS(x) sh_draw_bits(x)
#define SH_DRAW_NUMBER(u) sh_draw_number(u)
#define SH_DRAW_CONVERT(u) ((float)(u))
#endif

/* Natural logarithm of a positive normal number: x = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), and log(1 + f) =
 * f - f^2 / 2 + f^3 P(f), P fitted to 2^-28 of the result. f is exact, also near 1, where the largest Gumbel numbers come from. Its
 * error is below one unit in the last place. */
SH_DRAW_FUNCTION float sh_ln(float x) {
    SH_DRAW_UINT u = SH_DRAW_BITS(x) + (0x3f800000u - 0x3f3504f3u);
    SH_DRAW_FLOAT e = SH_DRAW_CONVERT(u >> 23) - 127.0f;
    SH_DRAW_FLOAT f = SH_DRAW_NUMBER((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    SH_DRAW_FLOAT square = f * f;
    SH_DRAW_FLOAT p = 0.06971611f;
    p = p * f - 0.11479734f;
    p = p * f + 0.1168542f;
    p = p * f - 0.12425687f;
    p = p * f + 0.14249058f;
    p = p * f - 0.16667803f;
    p = p * f + 0.20000716f;
    p = p * f - 0.24999997f;
    p = p * f + 0.33333331f;
    SH_DRAW_FLOAT tail = square * (f * p) + e * 9.0580006145e-06f; /* of log(2), the rest of what is exact as e * 0.69313812256 */
    SH_DRAW_FLOAT y = ((tail - 0.5f * square) + f) + e * 0.69313812256f;
    return y;
}

/* exp of a number that is not above 0; 0 below -80. x = n log(2) + r, exp(r) = 1 + r + r^2 Q(r), Q fitted to 2^-30. Its error
 * is below one unit in the last place. */
SH_DRAW_FUNCTION float sh_exp_down(float x) {
    if (!(x >= -80.0f)) return 0.0f;
    SH_DRAW_FLOAT shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the nearest integer is in the low bits */
    SH_DRAW_FLOAT n = shifted - 12582912.0f;
    SH_DRAW_FLOAT r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    SH_DRAW_FLOAT q = 0.0001989108f;
    q = q * r + 0.0013933731f;
    q = q * r + 0.0083333105f;
    q = q * r + 0.041666463f;
    q = q * r + 0.16666667f;
    q = q * r + 0.5f;
    SH_DRAW_FLOAT y = ((q * (r * r)) + r) + 1.0f;
    return SH_DRAW_NUMBER(SH_DRAW_BITS(y) + (SH_DRAW_BITS(shifted) << 23));
}

/* A word of random bits as a number in (0, 1): 23 bits and a half, exact. */
SH_DRAW_FUNCTION float sh_unit(SH_DRAW_UINT word) {
    SH_DRAW_FLOAT u = (SH_DRAW_CONVERT(word >> 9) + 0.5f) * 1.1920928955078125e-07f;
    return u;
}

SH_DRAW_FUNCTION float sh_gumbel_of(SH_DRAW_UINT word) { return -sh_ln(-sh_ln(sh_unit(word))); }

#endif
