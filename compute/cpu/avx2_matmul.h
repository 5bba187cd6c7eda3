/*
 * avx2_matmul.h - operands and matrix products of the AVX2 table on the layouts of lanes.h; the arithmetic is stated in
 * kernels.h.
 */
#ifndef SHIMMY_CPU_AVX2_MATMUL_H
#define SHIMMY_CPU_AVX2_MATMUL_H

#include "compute/cpu/kernels.h"

void sh_avx2_prepare(uint32_t operand, const float *x, uint64_t cols, uint32_t n_rows, void *out);
void sh_avx2_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
/* As sh_lanes8_pack, byte for byte (avx2_pack.c). */
void sh_avx2_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);

#endif
