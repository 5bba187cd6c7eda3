/*
 * avx512_vector.h - the vectors of vnni_dot.h with 16 lanes: AVX-512 F, BW, DQ, VL and VNNI. The same names as avxvnni_vector.h.
 */
#ifndef SHIMMY_CPU_AVX512_VECTOR_H
#define SHIMMY_CPU_AVX512_VECTOR_H

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define MAX_TILE 8 /* 8 sums of a block, 8 over blocks and 8 scaled ones fill 24 of 32 registers */
#define WIDE_ROWS 6 /* of two groups: 12 sums of a block, 12 over blocks, two vectors of weights and one of operands */
#define FLOAT_TILE 4 /* of four chains each */

typedef __m512i ints;
typedef __m512 floats;

INLINE ints load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void store(void *p, ints v) { _mm512_store_si512(p, v); } /* aligned */
INLINE ints none(void) { return _mm512_setzero_si512(); }
INLINE ints all8(int value) { return _mm512_set1_epi8((char)value); }
INLINE ints all32(int32_t value) { return _mm512_set1_epi32(value); }
INLINE ints both(ints a, ints b) { return _mm512_and_si512(a, b); }
INLINE ints either(ints a, ints b) { return _mm512_or_si512(a, b); }
INLINE ints flip(ints a, ints b) { return _mm512_xor_si512(a, b); }
INLINE ints add(ints a, ints b) { return _mm512_add_epi32(a, b); }
INLINE ints add8(ints a, ints b) { return _mm512_add_epi8(a, b); }
INLINE ints sub(ints a, ints b) { return _mm512_sub_epi32(a, b); }
INLINE ints mul(ints a, ints b) { return _mm512_mullo_epi32(a, b); }
INLINE ints mul16(ints a, ints b) { return _mm512_mullo_epi16(a, b); }
INLINE ints all16(int value) { return _mm512_set1_epi16((short)value); }
INLINE ints right(ints v, int n) { return _mm512_srl_epi16(v, _mm_cvtsi32_si128(n)); } /* 16-bit: bits cross bytes */
INLINE ints left(ints v, int n) { return _mm512_sll_epi16(v, _mm_cvtsi32_si128(n)); }
INLINE ints left32(ints v, int n) { return _mm512_sll_epi32(v, _mm_cvtsi32_si128(n)); }
INLINE ints dot4(ints sum, ints unsigned8, ints signed8) { return _mm512_dpbusd_epi32(sum, unsigned8, signed8); }
INLINE ints dot2(ints sum, ints a16, ints b16) { return _mm512_dpwssd_epi32(sum, a16, b16); }
INLINE ints look_up(const uint8_t values[16], ints codes) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)values)), codes);
}
/* LANES pairs of bytes as 16-bit numbers; as the two bytes of a 32-bit lane; one of the two, as the lane's number. */
INLINE ints wide_u8(const void *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256(p)); }
INLINE ints wide_s8(const void *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(p)); }
INLINE ints pairs(const void *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(p)); }
INLINE ints first_u8(ints pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi32(255)); }
INLINE ints second_u8(ints pairs) { return _mm512_srli_epi32(pairs, 8); }
INLINE ints first_s8(ints pairs) { return _mm512_srai_epi32(_mm512_slli_epi32(pairs, 24), 24); }
INLINE ints second_s8(ints pairs) { return _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 24); }

INLINE floats zeros(void) { return _mm512_setzero_ps(); }
INLINE floats all(float value) { return _mm512_set1_ps(value); }
INLINE floats load_floats(const void *p) { return _mm512_loadu_ps(p); }
INLINE void store_floats(float *p, floats v) { _mm512_store_ps(p, v); } /* aligned */
INLINE floats load_halves(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
INLINE floats load_bfloats(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
INLINE floats plus(floats a, floats b) { return _mm512_add_ps(a, b); }
INLINE floats times(floats a, floats b) { return _mm512_mul_ps(a, b); }
INLINE floats fma_of(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE floats fnma_of(floats a, floats b, floats c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE floats to_floats(ints v) { return _mm512_cvtepi32_ps(v); }
/* The first n lanes; the rest is 0, and not written. */
INLINE floats load_some(const float *p, uint64_t n) {
    return _mm512_maskz_loadu_ps((__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1), p);
}
INLINE void store_some(float *p, uint64_t n, floats v) {
    _mm512_mask_storeu_ps(p, (__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1), v);
}

#endif
