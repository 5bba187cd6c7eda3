/*
 * avx512_attention.h - attention of the avx512 table: that of AVX2 bit for bit, with two positions in a vector of keys and 16
 * dimensions in one of values.
 */
#ifndef SHIMMY_CPU_AVX512_ATTENTION_H
#define SHIMMY_CPU_AVX512_ATTENTION_H

#include "compute/cpu/kernels.h"

void sh_avx512_attention(const struct sh_ref_attention *a, void *scratch);
void sh_avx512_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch);

#endif
