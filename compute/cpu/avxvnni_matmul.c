/* The products of vnni_dot.h with 256-bit vectors. */
#include "compute/cpu/avxvnni_matmul.h"

#include "compute/cpu/avxvnni_vector.h"
#include "compute/cpu/vnni_dot.h"

void sh_avxvnni_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    matmul(m, group0, group1, scratch);
}
