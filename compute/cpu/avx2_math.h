/*
 * avx2_math.h - exp of eight floats and what follows from it, the fixed sum of eight lanes, eight rows turned into columns, and
 * loads of fewer than eight.
 */
#ifndef SHIMMY_CPU_AVX2_MATH_H
#define SHIMMY_CPU_AVX2_MATH_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* Eight floats from x; those from n on are 0, and are not written. */
static inline __m256 sh_avx2_load(const float *x, uint64_t n) {
    if (n >= 8) return _mm256_loadu_ps(x);
    float lanes[8] = {0};
    memcpy(lanes, x, n * sizeof *x);
    return _mm256_loadu_ps(lanes);
}
static inline void sh_avx2_store(float *out, uint64_t n, __m256 v) {
    if (n >= 8) {
        _mm256_storeu_ps(out, v);
        return;
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, v);
    memcpy(out, lanes, n * sizeof *out);
}

/* ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) */
static inline float sh_avx2_sum(__m256 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float sh_avx2_max(__m256 v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2 by a two-part ln 2; exp(r) by its Taylor series to r^7, whose
 * remainder is below 6e-9. Relative error below 2e-7 (tested). Below -87.3 the result is 0, above 88.7 infinity; NaN stays NaN.
 */
static inline __m256 sh_avx2_exp(__m256 x) {
    const __m256 highest = _mm256_set1_ps(88.72283f), lowest = _mm256_set1_ps(-87.33654f);
    const __m256 in = _mm256_max_ps(lowest, _mm256_min_ps(highest, x)); /* the second operand is returned where one is NaN */
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(in, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145751953125f), in);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.428606765330187e-06f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    /* 2^n in two factors, since n may be 128 */
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    __m256 y = _mm256_mul_ps(_mm256_mul_ps(p, a), b);
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, lowest, _CMP_LT_OQ), y);
    return _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), _mm256_cmp_ps(x, highest, _CMP_GT_OQ));
}

/* 1 - 2 / (exp(2 x) + 1): absolute error below 2e-7; NaN stays NaN. */
static inline __m256 sh_avx2_tanh(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), e = sh_avx2_exp(_mm256_add_ps(x, x));
    return _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
}

/* out[j][i] = src[i][j], eight by eight; strides in floats. */
static inline void sh_avx2_turn(const float *src, size_t src_stride, float *out, size_t out_stride) {
    __m256 row[8], pair[8], quad[8];
    for (int i = 0; i < 8; i++) row[i] = _mm256_loadu_ps(src + (size_t)i * src_stride);
    for (int i = 0; i < 4; i++) { /* 00 10 01 11 | 04 14 05 15, and 02 12 03 13 | 06 16 07 17 */
        pair[2 * i] = _mm256_unpacklo_ps(row[2 * i], row[2 * i + 1]);
        pair[2 * i + 1] = _mm256_unpackhi_ps(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) /* quad[4 i + c]: columns c and c + 4 of rows 4 i.. */
        for (int half = 0; half < 2; half++) {
            const __m256 a = pair[4 * i + half], b = pair[4 * i + 2 + half];
            quad[4 * i + 2 * half] = _mm256_shuffle_ps(a, b, 0x44);
            quad[4 * i + 2 * half + 1] = _mm256_shuffle_ps(a, b, 0xEE);
        }
    for (int c = 0; c < 4; c++) {
        _mm256_storeu_ps(out + (size_t)c * out_stride, _mm256_permute2f128_ps(quad[c], quad[4 + c], 0x20));
        _mm256_storeu_ps(out + (size_t)(c + 4) * out_stride, _mm256_permute2f128_ps(quad[c], quad[4 + c], 0x31));
    }
}

#endif
