#include "compute/cpu/avx2_attention.h"

#include "compute/cpu/avx2_math.h"

/* The words of wide_attention.h with eight lanes. Eight chains keep the multiply-add units busy and leave registers for what they
 * read. */
#define LANES 8
#define SCORE_TILE 4
#define VALUE_TILE 2
typedef __m256 floats;

static inline floats zero(void) { return _mm256_setzero_ps(); }
static inline floats all(float x) { return _mm256_set1_ps(x); }
static inline floats load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, floats v) { _mm256_storeu_ps(p, v); }
static inline floats halves(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
static inline floats fma_of(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline floats mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
static inline floats plus(floats a, floats b) { return _mm256_add_ps(a, b); }
static inline floats minus(floats a, floats b) { return _mm256_sub_ps(a, b); }
static inline floats over(floats a, floats b) { return _mm256_div_ps(a, b); }
static inline floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
static inline floats exp_of(floats v) { return sh_avx2_exp(v); }
static inline floats tanh_of(floats v) { return sh_avx2_tanh(v); }
static inline float largest(floats v) { return sh_avx2_max(v); }
static inline float sum_of(const floats *v) { return sh_avx2_sum(_mm256_add_ps(v[0], v[1])); }
static inline void turn(const float *src, size_t src_stride, float *out, size_t out_stride) {
    sh_avx2_turn(src, src_stride, out, out_stride);
}

#include "compute/cpu/wide_attention.h"

uint64_t sh_avx2_attention_partial(uint32_t n_heads, uint32_t v_dim) {
    return (uint64_t)n_heads * pad16(v_dim) + 2 * (uint64_t)pad16(n_heads);
}

struct sh_avx2_partial sh_avx2_partial_at(uint32_t n_queries, uint32_t v_dim, float *at) {
    float *most = at + (size_t)n_queries * pad16(v_dim);
    return (struct sh_avx2_partial){at, most, most + pad16(n_queries)};
}

uint32_t sh_avx2_attention_rows(uint32_t n_heads) {
    return n_heads < SH_AVX2_ATTENTION_QUERIES ? SH_AVX2_ATTENTION_QUERIES / n_heads : 1;
}

uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim) {
    (void)n_positions;
    const uint64_t n = (uint64_t)sh_avx2_attention_rows(n_heads) * n_heads;
    return (PIECE * ((uint64_t)k_dim + pad16(v_dim)) + n * (SCORES + k_dim) +
            2 * sh_avx2_attention_partial((uint32_t)n, v_dim)) * sizeof(float);
}

void sh_avx2_attention_join(const struct sh_ref_attention *a, float *partials) {
    const uint32_t v_dim = a->cache->v_dim, n_parts = (a->end - 1) / SPLIT - a->first / SPLIT + 1;
    const uint64_t stride = sh_avx2_attention_partial(a->n_heads, v_dim);
    const struct sh_avx2_partial total = sh_avx2_partial_at(a->n_heads, v_dim, partials);
    for (uint32_t p = 1; p < n_parts; p++) {
        const struct sh_avx2_partial part = sh_avx2_partial_at(a->n_heads, v_dim, partials + p * stride);
        for (uint32_t h = 0; h < a->n_heads; h++) join(&total, &part, h, pad16(v_dim));
    }
    for (uint32_t h = 0; h < a->n_heads; h++) finish(a, h, &total, h);
}

void sh_avx2_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch) {
    attention_of_part(a, part, partial, scratch);
}
void sh_avx2_attention(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch) {
    attention_of_rows(rows, n_rows, scratch);
}
