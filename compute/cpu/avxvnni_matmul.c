/* The products of vnni_dot.h with 256-bit vectors. */
#include "compute/cpu/avxvnni_matmul.h"

#include "compute/cpu/avxvnni_vector.h"
#include "compute/cpu/vnni_wide.h"

void sh_avxvnni_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    matmul(m, group0, group1, scratch);
}

uint64_t sh_avxvnni_matmul_scratch(uint64_t cols) { return matmul_scratch(cols); }
