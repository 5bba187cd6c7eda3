/*
 * amx_plain.h - the amx table with its tiles in plain C: everything of it but the instructions, on any CPU that has the avx512 table.
 */
#ifndef SHIMMY_TESTS_AMX_PLAIN_H
#define SHIMMY_TESTS_AMX_PLAIN_H

#include "compute/cpu/kernels.h"

#if defined(__x86_64__)
extern const struct sh_cpu_kernels amx_plain; /* its name is "amx-plain" */
void amx_plain_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
#endif

#endif
