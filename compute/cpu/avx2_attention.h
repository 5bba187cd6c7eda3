/*
 * avx2_attention.h - attention of the AVX2 table; the arithmetic is stated in kernels.h.
 */
#ifndef SHIMMY_CPU_AVX2_ATTENTION_H
#define SHIMMY_CPU_AVX2_ATTENTION_H

#include "compute/cpu/kernels.h"

#define SH_AVX2_ATTENTION_SPLIT 256

void sh_avx2_attention(const struct sh_ref_attention *a, void *scratch);
void sh_avx2_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch);
void sh_avx2_attention_join(const struct sh_ref_attention *a, float *partials);
uint64_t sh_avx2_attention_partial(uint32_t n_heads, uint32_t v_dim);
uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim);

#endif
