/*
 * avxvnni_vector.h - the vectors of vnni_dot.h with 8 lanes: AVX2, FMA, F16C and AVX-VNNI. The same names as avx512_vector.h.
 */
#ifndef SHIMMY_CPU_AVXVNNI_VECTOR_H
#define SHIMMY_CPU_AVXVNNI_VECTOR_H

#include "compute/cpu/avx2_math.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define MAX_TILE 4 /* 4 sums of a block, 4 over blocks and 4 scaled ones fill 12 of 16 registers */
#define WIDE_ROWS 3 /* of two groups: 6 sums of a block, 6 over blocks, two vectors of weights and one of operands */
#define FLOAT_TILE 2 /* of four chains each */

typedef __m256i ints;
typedef __m256 floats;

INLINE ints load(const void *p) { return _mm256_loadu_si256(p); }
INLINE void store(void *p, ints v) { _mm256_store_si256(p, v); } /* aligned */
INLINE ints none(void) { return _mm256_setzero_si256(); }
INLINE ints all8(int value) { return _mm256_set1_epi8((char)value); }
INLINE ints all32(int32_t value) { return _mm256_set1_epi32(value); }
INLINE ints both(ints a, ints b) { return _mm256_and_si256(a, b); }
INLINE ints either(ints a, ints b) { return _mm256_or_si256(a, b); }
INLINE ints flip(ints a, ints b) { return _mm256_xor_si256(a, b); }
INLINE ints add(ints a, ints b) { return _mm256_add_epi32(a, b); }
INLINE ints add8(ints a, ints b) { return _mm256_add_epi8(a, b); }
INLINE ints sub(ints a, ints b) { return _mm256_sub_epi32(a, b); }
INLINE ints mul(ints a, ints b) { return _mm256_mullo_epi32(a, b); }
INLINE ints mul16(ints a, ints b) { return _mm256_mullo_epi16(a, b); }
INLINE ints all16(int value) { return _mm256_set1_epi16((short)value); }
INLINE ints right(ints v, int n) { return _mm256_srl_epi16(v, _mm_cvtsi32_si128(n)); } /* 16-bit: bits cross bytes */
INLINE ints left(ints v, int n) { return _mm256_sll_epi16(v, _mm_cvtsi32_si128(n)); }
INLINE ints left32(ints v, int n) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(n)); }
INLINE ints dot4(ints sum, ints unsigned8, ints signed8) { return _mm256_dpbusd_avx_epi32(sum, unsigned8, signed8); }
INLINE ints dot2(ints sum, ints a16, ints b16) { return _mm256_dpwssd_avx_epi32(sum, a16, b16); }
INLINE ints look_up(const uint8_t values[16], ints codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)values)), codes);
}
/* LANES pairs of bytes as 16-bit numbers; as the two bytes of a 32-bit lane; one of the two, as the lane's number. */
INLINE ints wide_u8(const void *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128(p)); }
INLINE ints wide_s8(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(p)); }
INLINE ints pairs(const void *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(p)); }
INLINE ints first_u8(ints pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi32(255)); }
INLINE ints second_u8(ints pairs) { return _mm256_srli_epi32(pairs, 8); }
INLINE ints first_s8(ints pairs) { return _mm256_srai_epi32(_mm256_slli_epi32(pairs, 24), 24); }
INLINE ints second_s8(ints pairs) { return _mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 24); }

INLINE floats zeros(void) { return _mm256_setzero_ps(); }
INLINE floats all(float value) { return _mm256_set1_ps(value); }
INLINE floats load_floats(const void *p) { return _mm256_loadu_ps(p); }
INLINE void store_floats(float *p, floats v) { _mm256_store_ps(p, v); } /* aligned */
INLINE floats load_halves(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE floats load_bfloats(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
INLINE floats plus(floats a, floats b) { return _mm256_add_ps(a, b); }
INLINE floats times(floats a, floats b) { return _mm256_mul_ps(a, b); }
INLINE floats fma_of(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE floats fnma_of(floats a, floats b, floats c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE floats to_floats(ints v) { return _mm256_cvtepi32_ps(v); }
/* The first n lanes; the rest is 0, and not written. */
INLINE floats load_some(const float *p, uint64_t n) { return sh_avx2_load(p, n); }
INLINE void store_some(float *p, uint64_t n, floats v) { sh_avx2_store(p, n, v); }

#endif
