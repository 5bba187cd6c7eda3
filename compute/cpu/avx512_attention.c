#include "compute/cpu/avx512_attention.h"

#include "compute/cpu/avx2_attention.h"

#include <immintrin.h>
#include <string.h>

#define SPLIT SH_AVX2_ATTENTION_SPLIT
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

/* Eight elements of a row from d on; those from dim on are 0. */
INLINE __m256 eight(const struct sh_avx2_piece *p, uint32_t t, uint32_t d) {
    const __mmask8 some = (__mmask8)(p->dim - d >= 8 ? 255 : (1u << (p->dim - d)) - 1);
    if (p->type == SH_KV_F32) return _mm256_maskz_loadu_ps(some, (const float *)p->src + (size_t)t * p->stride + d);
    return _mm256_cvtph_ps(_mm_maskz_loadu_epi16(some, (const uint16_t *)p->src + (size_t)t * p->stride + d));
}

INLINE __m512 sixteen(const struct sh_avx2_piece *p, uint32_t t, uint32_t d, const enum sh_kv_type type) {
    if (type == SH_KV_F32) return _mm512_loadu_ps((const float *)p->src + (size_t)t * p->stride + d);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)p->src + (size_t)t * p->stride + d)));
}

/* The keys of positions as [position / 2][d / 8][2][8], zeros up to a multiple of eight positions. */
INLINE void pair_whole(const struct sh_avx2_piece *p, const enum sh_kv_type type) { /* dim is a multiple of 16 */
    for (uint32_t t = 0; t < p->n; t++) {
        float *out = p->rows + (size_t)(t / 2 * 2) * p->pad + t % 2 * 8;
        for (uint32_t d = 0; d < p->dim; d += 16, out += 32) {
            const __m512 v = sixteen(p, t, d, type);
            _mm256_storeu_ps(out, _mm512_castps512_ps256(v));
            _mm256_storeu_ps(out + 16, _mm512_extractf32x8_ps(v, 1));
        }
    }
}
static void pair_keys(const struct sh_avx2_piece *p) {
    const bool whole = p->dim % 16 == 0;
    if (whole && p->type == SH_KV_F16) pair_whole(p, SH_KV_F16);
    else if (whole) pair_whole(p, SH_KV_F32);
    for (uint32_t t = whole ? p->n : 0; t < (p->n + 7) / 8 * 8; t++) {
        float *out = p->rows + (size_t)(t / 2 * 2) * p->pad + t % 2 * 8;
        for (uint32_t d = 0; d < p->pad; d += 8, out += 16)
            _mm256_storeu_ps(out, t < p->n ? eight(p, t, d) : _mm256_setzero_ps());
    }
}

INLINE void copy_whole(const struct sh_avx2_piece *p, const enum sh_kv_type type) { /* dim is a multiple of 16 */
    for (uint32_t t = 0; t < p->n; t++)
        for (uint32_t d = 0; d < p->dim; d += 16) _mm512_storeu_ps(p->rows + (size_t)t * p->pad + d, sixteen(p, t, d, type));
}
static void copy_values(const struct sh_avx2_piece *p) {
    const bool whole = p->dim % 16 == 0;
    if (whole && p->type == SH_KV_F16) copy_whole(p, SH_KV_F16);
    else if (whole) copy_whole(p, SH_KV_F32);
    for (uint32_t t = whole ? p->n : 0; t < p->n; t++)
        for (uint32_t d = 0; d < p->pad; d += 8) _mm256_storeu_ps(p->rows + (size_t)t * p->pad + d, eight(p, t, d));
}

/* The sums of the eight lanes of each half of v[0..3], each as sh_avx2_sum makes it: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 +
 * 7)). */
INLINE __m256 sums_of(const __m512 *v) {
    __m512 quads[2]; /* 0 + 4, 1 + 5, 2 + 6, 3 + 7 of the positions 0, 1, 2, 3; and of 4, 5, 6, 7 */
    UNROLLED (i, 2)
        quads[i] =
            _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xDD));
    const __m512d a = _mm512_castps_pd(quads[0]), b = _mm512_castps_pd(quads[1]);
    /* even, odd sums of position k, then of k + 4, in the k-th 128 bits */
    const __m512 halves = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    const __m512 sums = _mm512_add_ps(halves, _mm512_movehdup_ps(halves));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums));
}

/* Eight positions of `heads` heads. */
INLINE void score_eight(const struct sh_avx2_piece *p, uint32_t h, uint32_t t, const int heads) {
    const float *keys = p->rows + (size_t)t * p->pad;
    __m512 sum[2][4];
    UNROLLED (i, heads)
        UNROLLED (j, 4) sum[i][j] = _mm512_setzero_ps();
    for (uint32_t d = 0; d < p->pad; d += 8) {
        __m512 q[2];
        UNROLLED (i, heads) q[i] = _mm512_broadcast_f32x8(_mm256_loadu_ps(p->q + (size_t)(h + (uint32_t)i) * p->pad + d));
        UNROLLED (j, 4) {
            const __m512 k = _mm512_loadu_ps(keys + (size_t)j * 2 * p->pad + 2 * d);
            UNROLLED (i, heads) sum[i][j] = _mm512_fmadd_ps(q[i], k, sum[i][j]);
        }
    }
    const __mmask8 some = (__mmask8)(p->n - t >= 8 ? 255 : (1u << (p->n - t)) - 1);
    UNROLLED (i, heads)
        _mm256_mask_storeu_ps(p->scores + (size_t)(h + (uint32_t)i) * SPLIT + t, some,
                              _mm256_mul_ps(sums_of(sum[i]), _mm256_set1_ps(p->scale)));
}

static void scores_of_piece(const struct sh_avx2_piece *p) {
    pair_keys(p);
    for (uint32_t t = 0; t < p->n; t += 8) {
        uint32_t h = 0;
        for (; h + 2 <= p->n_heads; h += 2) score_eight(p, h, t, 2);
        if (h < p->n_heads) score_eight(p, h, t, 1);
    }
}

/* Up to 64 dimensions from d on, of which `some` in the last 16, of `heads` heads: chains over the positions in ascending
 * order. */
INLINE void accumulate(const struct sh_avx2_piece *p, uint32_t h, uint32_t d, __mmask16 some, const int heads,
                       const int vectors) {
    __m512 sum[2][4];
    float *out[2];
    const float *weights[2];
    UNROLLED (i, heads) {
        out[i] = p->values + (size_t)(h + (uint32_t)i) * p->pad + d;
        weights[i] = p->scores + (size_t)(h + (uint32_t)i) * SPLIT;
        UNROLLED (j, vectors) sum[i][j] = _mm512_maskz_loadu_ps(j + 1 == vectors ? some : 0xFFFF, out[i] + 16 * j);
    }
    const float *row = p->rows + d;
    for (uint32_t t = 0; t < p->n; t++, row += p->pad)
        UNROLLED (j, vectors) {
            const __m512 v = _mm512_maskz_loadu_ps(j + 1 == vectors ? some : 0xFFFF, row + 16 * j);
            UNROLLED (i, heads) sum[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(weights[i][t]), v, sum[i][j]);
        }
    UNROLLED (i, heads)
        UNROLLED (j, vectors) _mm512_mask_storeu_ps(out[i] + 16 * j, j + 1 == vectors ? some : 0xFFFF, sum[i][j]);
}

INLINE void accumulate_heads(const struct sh_avx2_piece *p, uint32_t h, const int heads) {
    uint32_t d = 0;
    for (; d + 64 <= p->pad; d += 64) accumulate(p, h, d, 0xFFFF, heads, 4);
    for (; d < p->pad; d += 16) accumulate(p, h, d, p->pad - d >= 16 ? 0xFFFF : 0xFF, heads, 1);
}

static void values_of_piece(const struct sh_avx2_piece *p) {
    copy_values(p);
    uint32_t h = 0;
    for (; h + 2 <= p->n_heads; h += 2) accumulate_heads(p, h, 2);
    if (h < p->n_heads) accumulate_heads(p, h, 1);
}

static const struct sh_avx2_pieces pieces = {scores_of_piece, values_of_piece};

void sh_avx512_attention(const struct sh_ref_attention *a, void *scratch) { sh_avx2_attention_by(&pieces, a, scratch); }
void sh_avx512_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch) {
    sh_avx2_part_by(&pieces, a, part, partial, scratch);
}
