/* Packing of matrices 16 rows at a time: AVX-512 F and BW. */
#include "compute/cpu/avx512_matmul.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef __m512i vec;

INLINE __m128i row16(const uint8_t *rows, uint64_t stride, uint32_t row) {
    return _mm_loadu_si128((const void *)(rows + row * stride));
}

/* Rows q, q + 4, q + 8, q + 12 in the four parts of a vector: then each part is a square of 4 words. */
INLINE void transpose(const uint8_t *rows, uint64_t stride, vec out[4]) {
    __m512i part[4];
    for (uint32_t q = 0; q < 4; q++) {
        part[q] = _mm512_castsi128_si512(row16(rows, stride, q));
        part[q] = _mm512_inserti32x4(part[q], row16(rows, stride, q + 4), 1);
        part[q] = _mm512_inserti32x4(part[q], row16(rows, stride, q + 8), 2);
        part[q] = _mm512_inserti32x4(part[q], row16(rows, stride, q + 12), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(part[0], part[1]), b = _mm512_unpackhi_epi32(part[0], part[1]),
                  c = _mm512_unpacklo_epi32(part[2], part[3]), d = _mm512_unpackhi_epi32(part[2], part[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}
INLINE void store(uint8_t *to, vec v) { _mm512_storeu_si512(to, v); }
INLINE void halves(vec v, uint8_t *low, uint8_t *high) {
    _mm256_storeu_si256((void *)low, _mm512_cvtepi32_epi16(v));
    _mm256_storeu_si256((void *)high, _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
}
INLINE vec both(vec v, uint32_t mask) { return _mm512_and_si512(v, _mm512_set1_epi32((int)mask)); }
INLINE vec either(vec v, vec w) { return _mm512_or_si512(v, w); }
INLINE vec right(vec v, uint32_t n) { return _mm512_srli_epi32(v, n); }

#include "compute/cpu/pack_group.h"

void sh_avx512_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {
    pack_rows(w, row0, n_rows, src, sh_lanes16_pack);
}
