#include "compute/cpu/avx512_ops.h"

#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx512_math.h"
#include "compute/cpu/lanes.h"

/* ---- GLU: the usual activations, the others are AVX2's ---- */

/* x / (1 + exp(-a)) */
static inline __m512 logistic(__m512 x, __m512 a) {
    const __m512 e = sh_avx512_exp(_mm512_sub_ps(_mm512_setzero_ps(), a));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}
static inline __m512 gelu(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    return logistic(x, _mm512_mul_ps(inner, _mm512_set1_ps(2 * 0.797884560802865356f)));
}

void sh_avx512_glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                   float *out) {
    if ((act != SH_GLU_SILU && act != SH_GLU_GELU) || gate_width != width) {
        sh_avx2_glu(act, gate, gate_width, up, n_rows, width, out);
        return;
    }
    const uint64_t n = (uint64_t)n_rows * width;
    for (uint64_t i = 0; i < n; i += 16) {
        const __mmask16 some = (__mmask16)(n - i >= 16 ? 0xFFFFu : (1u << (n - i)) - 1);
        const __m512 x = _mm512_maskz_loadu_ps(some, gate + i), y = _mm512_maskz_loadu_ps(some, up + i);
        _mm512_mask_storeu_ps(out + i, some, _mm512_mul_ps(act == SH_GLU_SILU ? logistic(x, x) : gelu(x), y));
    }
}

/* ---- operands ---- */

static inline __m512 magnitude(const float *x) { return _mm512_abs_ps(_mm512_loadu_ps(x)); }
static inline float largest(__m512 v) {
    return sh_avx2_max(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
/* As AVX2's block_scale(). */
static inline __m512 inverse_of(float most, float *scale) {
    *scale = most / 127.0f;
    return _mm512_set1_ps(most >= 0x1p-119f ? 127.0f / most : 0.0f);
}
/* 16 quants, to nearest even; as bytes. */
static inline __m128i quants(const float *x, __m512 inverse) {
    return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse)));
}
/* 64 quants are stored; the sum of each 16 is in all four lanes of its quarter. */
static inline __m512i quantise64(const float *x, __m512 inverse, int8_t *out) {
    __m512i q = _mm512_castsi128_si512(quants(x, inverse));
    q = _mm512_inserti32x4(q, quants(x + 16, inverse), 1);
    q = _mm512_inserti32x4(q, quants(x + 32, inverse), 2);
    q = _mm512_inserti32x4(q, quants(x + 48, inverse), 3);
    _mm512_storeu_si512(out, q);
    __m512i s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), q);
    s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, 0x4E));
    return _mm512_add_epi32(s, _mm512_shuffle_epi32(s, 0xB1));
}

static void prepare_32(const float *x, uint64_t cols, uint8_t *out) {
    int8_t *q = (int8_t *)out;
    float *scales = (float *)(void *)(out + sh_lanes_scales_at(cols));
    int32_t *sums = (int32_t *)(void *)(out + sh_lanes_sums_at(SH_LANES_Q8_32, cols));
    for (uint64_t b = 0; b < cols / 32; b++, x += 32, q += 32) {
        const __m512 inverse = inverse_of(largest(_mm512_max_ps(magnitude(x), magnitude(x + 16))), &scales[b]);
        const __m256i both = _mm256_set_m128i(quants(x + 16, inverse), quants(x, inverse));
        _mm256_storeu_si256((void *)q, both);
        const __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), both);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
        sums[b] = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
    }
}

static void prepare_256(const float *x, uint64_t cols, uint8_t *out) {
    int8_t *q = (int8_t *)out;
    float *scales = (float *)(void *)(out + sh_lanes_scales_at(cols));
    int16_t *sums16 = (int16_t *)(void *)(out + sh_lanes_sums_at(SH_LANES_Q8_256, cols));
    int16_t *sums32 = (int16_t *)(void *)(out + sh_lanes_sums32_at(cols));
    const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    for (uint64_t b = 0; b < cols / 256; b++) {
        __m512 m[4];
        for (uint32_t i = 0; i < 4; i++) m[i] = magnitude(x + 16 * i);
        for (uint32_t i = 4; i < 16; i++) m[i % 4] = _mm512_max_ps(m[i % 4], magnitude(x + 16 * i));
        const __m512 inverse = inverse_of(largest(_mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3]))), &scales[b]);
        for (uint32_t i = 0; i < 256; i += 64, x += 64, q += 64, sums16 += 4, sums32 += 2) {
            const __m128i four = _mm512_castsi512_si128(_mm512_permutexvar_epi32(pick, quantise64(x, inverse, q)));
            _mm_storel_epi64((void *)sums16, _mm_packs_epi32(four, four));
            const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)); /* 0 + 1 in lane 0, 2 + 3 in lane 2 */
            sums32[0] = (int16_t)_mm_extract_epi32(two, 0);
            sums32[1] = (int16_t)_mm_extract_epi32(two, 2);
        }
    }
}

void sh_avx512_prepare(uint32_t operand, const float *x, uint64_t cols, uint32_t n_rows, void *out) {
    if (operand == SH_LANES_FLOAT) {
        sh_avx2_prepare(operand, x, cols, n_rows, out);
        return;
    }
    const uint64_t stride = sh_lanes_operand_bytes(operand, cols);
    for (uint32_t r = 0; r < n_rows; r++, x += cols) {
        if (operand == SH_LANES_Q8_32) prepare_32(x, cols, (uint8_t *)out + r * stride);
        else prepare_256(x, cols, (uint8_t *)out + r * stride);
    }
}
