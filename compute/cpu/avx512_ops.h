/*
 * avx512_ops.h - GLUs and operands of the avx512 table: those of AVX2 bit for bit, with vectors twice as long.
 */
#ifndef SHIMMY_CPU_AVX512_OPS_H
#define SHIMMY_CPU_AVX512_OPS_H

#include "compute/cpu/kernels.h"

void sh_avx512_glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                   float *out);
void sh_avx512_prepare(uint32_t operand, const float *x, uint64_t cols, uint32_t n_rows, void *out);

#endif
