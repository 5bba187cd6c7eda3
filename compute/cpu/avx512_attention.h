/*
 * avx512_attention.h - attention of the avx512 table: that of AVX2 bit for bit, with vectors twice as long. What is joined and how
 * large scratch and partials are is avx2_attention.h's.
 */
#ifndef SHIMMY_CPU_AVX512_ATTENTION_H
#define SHIMMY_CPU_AVX512_ATTENTION_H

#include "compute/cpu/kernels.h"

void sh_avx512_attention(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch);
void sh_avx512_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch);

#endif
