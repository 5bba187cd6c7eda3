/*
 * avx512_matmul.h - matrix products of the avx512 table on the layouts of lanes.h with 16 lanes; the arithmetic is stated in kernels.h.
 */
#ifndef SHIMMY_CPU_AVX512_MATMUL_H
#define SHIMMY_CPU_AVX512_MATMUL_H

#include "compute/cpu/kernels.h"

void sh_avx512_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
uint64_t sh_avx512_matmul_scratch(uint64_t cols);
/* As sh_lanes16_pack, byte for byte (avx512_pack.c). */
void sh_avx512_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);

#endif
