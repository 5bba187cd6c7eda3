/*
 * avx512_math.h - avx2_math.h's exp and tanh of 16 floats: lane by lane the same bits.
 */
#ifndef SHIMMY_CPU_AVX512_MATH_H
#define SHIMMY_CPU_AVX512_MATH_H

#include "compute/cpu/avx2_math.h"

static inline __m512 sh_avx512_exp(__m512 x) {
    const __m512 highest = _mm512_set1_ps(88.72283f), lowest = _mm512_set1_ps(-87.33654f);
    const __m512 in = _mm512_max_ps(lowest, _mm512_min_ps(highest, x)); /* the second operand is returned where one is NaN */
    const __m512 n =
        _mm512_roundscale_ps(_mm512_mul_ps(in, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), in);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.428606765330187e-06f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    /* One rounding where avx2_math.h multiplies twice by powers of two, of which the first never rounds. */
    const __m512 y = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ), p, n);
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, highest, _CMP_GT_OQ), _mm512_set1_ps(__builtin_inff()));
}

static inline __m512 sh_avx512_tanh(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), e = sh_avx512_exp(_mm512_add_ps(x, x));
    return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
}

#endif
