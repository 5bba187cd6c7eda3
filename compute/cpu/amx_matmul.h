/*
 * amx_matmul.h - matrix products of the amx table, on the matrices of the avx512 table; the arithmetic is stated in kernels.h.
 */
#ifndef SHIMMY_CPU_AMX_MATMUL_H
#define SHIMMY_CPU_AMX_MATMUL_H

#include "compute/cpu/kernels.h"

void sh_amx_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
uint64_t sh_amx_matmul_scratch(uint64_t cols);

/* Whether such products have the bits of sh_avx512_matmul: a few types and tiles, in some 200 microseconds. The table is taken only
 * where they do. False, too, where memory is lacking. Needs AVX-512 and what `tiled` needs. */
typedef void sh_amx_fn(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
bool sh_amx_agrees(sh_amx_fn *tiled);

#endif
