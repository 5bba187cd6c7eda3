/* The products of amx_dot.h with the instructions of AMX. */
#include "compute/cpu/amx_matmul.h"

#include "compute/cpu/amx_tiles.h"

#include "compute/cpu/amx_dot.h"

void sh_amx_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    tiled_matmul(m, group0, group1, scratch);
}

uint64_t sh_amx_matmul_scratch(uint64_t cols) { return tiled_scratch(cols); }
