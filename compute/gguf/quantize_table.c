/* Table types: IQ4 by a search for the scale, MXFP4 by the exponent of the largest magnitude, ternary types by that magnitude. */
#include "compute/gguf/quantize.h"

static uint8_t nearest_code(const int8_t values[16], float v) {
    uint8_t best = 0;
    for (uint8_t c = 1; c < 16; c++)
        if (fabsf((float)values[c] - v) < fabsf((float)values[best] - v)) best = c;
    return best;
}

/* Scale of 32 values: candidates move the largest magnitude around the table's end of -127; each is fitted by least squares. */
static float fit_iq4(const int8_t values[16], const float *x) {
    const float largest = sh_largest(x, 32);
    if (largest == 0) return 0;
    float best = 0, best_gain = -1;
    for (int c = -8; c <= 8; c++) {
        const float inverse = (2.0f * (float)c - 127.0f) / largest;
        float sum_xq = 0, sum_qq = 0;
        for (int i = 0; i < 32; i++) {
            const float q = (float)values[nearest_code(values, x[i] * inverse)];
            sum_xq += q * x[i];
            sum_qq += q * q;
        }
        if (sum_xq * sum_xq > best_gain * sum_qq) {
            best = sum_xq / sum_qq;
            best_gain = sum_xq * sum_xq / sum_qq;
        }
    }
    return best;
}

/* Sixteen bytes of the codes of 32 values at this scale. */
static void put_codes(const int8_t values[16], const float *x, float d, uint8_t *q) {
    const float inverse = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 16; i++)
        q[i] = (uint8_t)(nearest_code(values, x[i] * inverse) | nearest_code(values, x[i + 16] * inverse) << 4);
}

void sh_quantize_iq4_nl(const float *x, uint8_t *b) {
    const int8_t *values = sh_table_type(SH_TYPE_IQ4_NL)->values;
    const float d = sh_as_half(fit_iq4(values, x));
    sh_put_half(b, d);
    put_codes(values, x, d, b + 2);
}

void sh_quantize_iq4_xs(const float *x, uint8_t *b) {
    const int8_t *values = sh_table_type(SH_TYPE_IQ4_XS)->values;
    float scales[8];
    uint32_t high = 0;
    for (int g = 0; g < 8; g++) scales[g] = fit_iq4(values, x + 32 * g);
    const float d = sh_as_half(sh_largest(scales, 8) / -32);
    memset(b + 4, 0, 4);
    for (int g = 0; g < 8; g++) {
        const int scale = d != 0 ? sh_nearest(scales[g] / d, -32, 31) : 0;
        const uint32_t bits = (uint32_t)(scale + 32);
        b[4 + g / 2] = (uint8_t)(b[4 + g / 2] | (bits & 15) << (4 * (g % 2)));
        high |= bits >> 4 << (2 * g);
        put_codes(values, x + 32 * g, d * (float)scale, b + 8 + 16 * g);
    }
    sh_put_half(b, d);
    b[2] = (uint8_t)high;
    b[3] = (uint8_t)(high >> 8);
}

/* As the OCP microscaling specification has it: the scale's exponent is that of the largest magnitude, less that of the largest
 * E2M1 number, which is 2. */
void sh_quantize_mxfp4(const float *x, uint8_t *b) {
    const int8_t *values = sh_table_type(SH_TYPE_MXFP4)->values; /* twice the numbers */
    const float largest = fabsf(sh_largest(x, 32));
    const int exponent = largest > 0 && largest <= 0x1.fffffep127f ? ilogbf(largest) - 2 : -127;
    b[0] = (uint8_t)(exponent < -127 ? 0 : exponent + 127);
    for (int i = 0; i < 16; i++)
        b[1 + i] = (uint8_t)(nearest_code(values, ldexpf(x[i], 1 - (b[0] - 127))) |
                             nearest_code(values, ldexpf(x[i + 16], 1 - (b[0] - 127))) << 4);
}

/* Quants 0..2 of 256 values, their scale to the two bytes at d. */
static void quantize_ternary(const float *x, uint8_t q[256], uint8_t *d) {
    const float scale = fabsf(sh_largest(x, 256)), inverse = scale > 0 ? 1 / scale : 0;
    for (int e = 0; e < 256; e++) q[e] = (uint8_t)(sh_nearest(x[e] * inverse, -1, 1) + 1);
    sh_put_half(d, scale);
}

/* `n` digits, `step` apart, as a fraction of 256, rounded up: five digits, of which some may be missing. */
static uint8_t put_digits(const uint8_t *q, int n, int step) {
    int number = 0;
    for (int i = 0; i < 5; i++) number = 3 * number + (i < n ? q[i * step] : 0);
    return (uint8_t)((number * 256 + 242) / 243);
}

void sh_quantize_tq1_0(const float *x, uint8_t *b) {
    uint8_t q[256];
    quantize_ternary(x, q, b + 52);
    for (int i = 0; i < 32; i++) b[i] = put_digits(q + i, 5, 32);
    for (int i = 0; i < 16; i++) b[32 + i] = put_digits(q + 160 + i, 5, 16);
    for (int i = 0; i < 4; i++) b[48 + i] = put_digits(q + 240 + i, 4, 4);
}

void sh_quantize_tq2_0(const float *x, uint8_t *b) {
    uint8_t q[256];
    quantize_ternary(x, q, b + 64);
    memset(b, 0, 64);
    for (int e = 0; e < 256; e++) {
        uint8_t *byte = b + e / 128 * 32 + e % 32;
        *byte = (uint8_t)(*byte | q[e] << (e % 128 / 32 * 2));
    }
}
