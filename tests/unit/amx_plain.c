#include "tests/unit/amx_plain.h"

#if defined(__x86_64__)

#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx2_recurrent.h"
#include "compute/cpu/avx512_attention.h"
#include "compute/cpu/avx512_matmul.h"
#include "compute/cpu/avx512_ops.h"
#include "tests/unit/plain_tiles.h"

#include "compute/cpu/amx_dot.h"

void amx_plain_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    tiled_matmul(m, group0, group1, scratch);
}

static bool available(void) { return sh_cpu_avx512.available(); }

const struct sh_cpu_kernels amx_plain = {
    .tier = "amx-plain",
    .requires = "the avx512 table",
    .available = available,
    .matmul = amx_plain_matmul,
    .matmul_scratch = tiled_scratch,
#include "compute/cpu/avx512_entries.h"
};

#endif
