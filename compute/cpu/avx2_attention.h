/*
 * avx2_attention.h - attention of the AVX2 table; the arithmetic is stated in kernels.h.
 */
#ifndef SHIMMY_CPU_AVX2_ATTENTION_H
#define SHIMMY_CPU_AVX2_ATTENTION_H

#include "compute/cpu/kernels.h"

void sh_avx2_attention(const struct sh_cpu_attention *a, void *scratch);
uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim);

#endif
