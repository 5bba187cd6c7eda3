/*
 * avx2_dot.h - what the dot products of the AVX2 table share: loads, scales, the end of a tile. For avx2_matmul.c and
 * avx2_table.c only.
 *
 * A dot product is of one group of 8 weight rows with `n` operand rows: acc[i] = 8 sums of operand row i.
 */
#ifndef SHIMMY_CPU_AVX2_DOT_H
#define SHIMMY_CPU_AVX2_DOT_H

#include "compute/cpu/avx2_math.h"
#include "compute/cpu/lanes.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#define MAX_TILE 4 /* activation rows that share one pass over a group of weights */

/* How far ahead of the dot product weights are fetched: a page, which the hardware's own prefetching does not cross. From 3 to
 * 8 KiB decode is equally fast, at 1.5 KiB 10 % slower. */
#define PREFETCH 4096

/* The values of a table type as bytes; from `lowest` on (so 0 to 127 at most) where the sum of the operand's quants makes up for
 * it, else lowest = 0. */
struct sh_avx2_lookup {
    uint8_t values[16];
    int32_t lowest;
};

struct rows { /* the operand rows of a tile */
    const uint8_t *x;
    uint64_t stride, cols;
    const struct sh_avx2_lookup *lookup; /* table types only */
};

INLINE __m256i load(const void *p) { return _mm256_loadu_si256(p); }
INLINE __m256 halves(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE __m256i word(const void *p) { /* four bytes to all lanes */
    int32_t w;
    memcpy(&w, p, sizeof w);
    return _mm256_set1_epi32(w);
}
INLINE float real(const void *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}
INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE __m256i high_nibbles(__m256i v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
INLINE __m256i pairs_to_sum(__m256i v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
INLINE void fetch(const uint8_t *w, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)w + PREFETCH + i, _MM_HINT_T0);
}

/* The scale of sub-block 2p + odd of each row as two equal 16-bit numbers. Both halves of `pair` hold [row][2] bytes of all rows;
 * the lower lanes pick rows 0..3, the upper ones rows 4..7. */
INLINE __m256i scale_of(__m256i pair, int odd) {
    const __m256i pick = _mm256_setr_epi8(0, -1, 0, -1, 2, -1, 2, -1, 4, -1, 4, -1, 6, -1, 6, -1, 8, -1, 8, -1, 10, -1, 10, -1,
                                          12, -1, 12, -1, 14, -1, 14, -1);
    return _mm256_shuffle_epi8(odd ? _mm256_srli_epi16(pair, 8) : pair, pick);
}
INLINE __m256i signed_scale_of(__m256i pair, int odd) { /* sign-extended: the byte is shifted down from the upper half */
    const __m256i pick = _mm256_setr_epi8(-1, 0, -1, 0, -1, 2, -1, 2, -1, 4, -1, 4, -1, 6, -1, 6, -1, 8, -1, 8, -1, 10, -1, 10,
                                          -1, 12, -1, 12, -1, 14, -1, 14);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(odd ? _mm256_srli_epi16(pair, 8) : pair, pick), 8);
}
INLINE __m256i pair_of(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p)); }

/* Adds bias, then residual, and stores the lanes that are rows of the matrix. */
INLINE void finish(const struct sh_cpu_matmul *m, uint64_t row, uint32_t r, __m256 y) {
    const uint64_t at = r * m->w->rows + row;
    if (row + 8 <= m->w->rows) {
        if (m->bias != NULL) y = _mm256_add_ps(y, _mm256_loadu_ps(m->bias + row));
        if (m->residual != NULL) y = _mm256_add_ps(y, _mm256_loadu_ps(m->residual + at));
        _mm256_storeu_ps(m->out + at, y);
        return;
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, y);
    for (uint64_t i = 0; row + i < m->w->rows; i++) {
        float value = lanes[i];
        if (m->bias != NULL) value += m->bias[row + i];
        if (m->residual != NULL) value += m->residual[at + i];
        m->out[at + i] = value;
    }
}

typedef void tile_fn(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r, const struct rows *rows);

#define TILE(dot, n)                                                                                                             \
    static void dot##_##n(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r,                       \
                          const struct rows *rows) {                                                                             \
        __m256 acc[n];                                                                                                           \
        UNROLLED (i, n) acc[i] = _mm256_setzero_ps();                                                                            \
        dot((const uint8_t *)m->w->data + group * group_bytes, rows, acc, n);                                                    \
        UNROLLED (i, n) finish(m, group * 8, r + (uint32_t)i, acc[i]);                                                           \
    }
#define TILES(dot) TILE(dot, 1) TILE(dot, 2) TILE(dot, 3) TILE(dot, 4)

/* of[n - 1] computes n operand rows; NULL: not by one tile. */
struct tiles {
    tile_fn *of[MAX_TILE];
};
/* Of Q4_1, Q5_0, Q5_1, Q2_K and the table types; false for others. */
bool sh_avx2_table_tiles(uint32_t type, struct tiles *out);

#endif
