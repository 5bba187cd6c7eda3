/*
 * avx2_ops.h - the small operations of the AVX2 table (kernels.h), which the tables with wider or other products take over, and what
 * they begin with in asking the CPU.
 */
#ifndef SHIMMY_CPU_AVX2_OPS_H
#define SHIMMY_CPU_AVX2_OPS_H

#include "compute/cpu/kernels.h"

bool sh_avx2_available(void);                   /* AVX2, FMA and F16C */
uint64_t sh_avx2_matmul_scratch(uint64_t cols); /* 0 */

void sh_avx2_norm(const struct sh_ref_norm *n, const float *x, uint32_t n_rows, float *out);
void sh_avx2_add(const float *x, const float *y, uint64_t n, float *out);
void sh_avx2_unary(enum sh_unary kind, float a, const float *x, uint64_t n, float *out);
void sh_avx2_glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                 float *out);
void sh_avx2_expert_sum(const float *x, const float *route, uint32_t n_used, uint32_t width, float *out);

#endif
