/* Packing of matrices 8 rows at a time: AVX2. */
#include "compute/cpu/avx2_matmul.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 8

typedef __m256i vec;

/* Rows q and q + 4 in the two parts of a vector: then each part is a square of 4 words. */
INLINE void transpose(const uint8_t *rows, uint64_t stride, vec out[4]) {
    __m256i part[4];
    for (uint32_t q = 0; q < 4; q++)
        part[q] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)(rows + q * stride))),
                                          _mm_loadu_si128((const void *)(rows + (q + 4) * stride)), 1);
    const __m256i a = _mm256_unpacklo_epi32(part[0], part[1]), b = _mm256_unpackhi_epi32(part[0], part[1]),
                  c = _mm256_unpacklo_epi32(part[2], part[3]), d = _mm256_unpackhi_epi32(part[2], part[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}
INLINE void store(uint8_t *to, vec v) { _mm256_storeu_si256((void *)to, v); }
INLINE void halves(vec v, uint8_t *low, uint8_t *high) {
    const __m256i split = _mm256_packus_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0xFFFF)), _mm256_srli_epi32(v, 16));
    const __m256i ordered = _mm256_permute4x64_epi64(split, 0xD8);
    _mm_storeu_si128((void *)low, _mm256_castsi256_si128(ordered));
    _mm_storeu_si128((void *)high, _mm256_extracti128_si256(ordered, 1));
}
INLINE vec both(vec v, uint32_t mask) { return _mm256_and_si256(v, _mm256_set1_epi32((int)mask)); }
INLINE vec either(vec v, vec w) { return _mm256_or_si256(v, w); }
INLINE vec right(vec v, uint32_t n) { return _mm256_srli_epi32(v, (int)n); }

#include "compute/cpu/pack_group.h"

void sh_avx2_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {
    pack_rows(w, row0, n_rows, src, sh_lanes8_pack);
}
