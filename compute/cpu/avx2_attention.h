/*
 * avx2_attention.h - rotation, the cache and attention of the AVX2 table; the arithmetic is stated in kernels.h, attention's code is
 * wide_attention.h.
 */
#ifndef SHIMMY_CPU_AVX2_ATTENTION_H
#define SHIMMY_CPU_AVX2_ATTENTION_H

#include "compute/cpu/kernels.h"
#include "compute/program/executor.h"

#define SH_AVX2_ATTENTION_SPLIT 256 /* positions whose softmax is computed together; parts are joined in ascending order */
#define SH_AVX2_ATTENTION_PIECE SH_PAGE_TOKENS /* what is made floats of at a time: a page's positions */
#define SH_AVX2_ATTENTION_QUERIES 64 /* heads times rows that are computed together, unless a row has more heads */
#define SH_AVX2_ATTENTION_SCORES (SH_AVX2_ATTENTION_SPLIT + 16) /* from one query's scores to the next one's: not a power of two, so that
                                                                  they do not compete for the same lines of the cache */

/* A partial of some queries: values [n][v_dim rounded up to 16], not yet divided by the sum; then of each the largest score and
 * the sum of exp(score - largest). */
struct sh_avx2_partial {
    float *values, *most, *sum;
};
struct sh_avx2_partial sh_avx2_partial_at(uint32_t n_queries, uint32_t v_dim, float *at);

void sh_avx2_rope(const struct sh_ref_rope *rope, const float *x, const float *table, float *out);
void sh_avx2_cache_store(const struct sh_ref_cache *cache, uint32_t position, const float *k, const float *v);

void sh_avx2_attention(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch);
void sh_avx2_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch);
void sh_avx2_attention_join(const struct sh_ref_attention *a, float *partials);
uint64_t sh_avx2_attention_partial(uint32_t n_heads, uint32_t v_dim);
uint32_t sh_avx2_attention_rows(uint32_t n_heads);
uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim);

#endif
