/* The avx512 table: that of AVX2 with products, their operands, attention and GLUs 16 lanes wide. */
#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx2_recurrent.h"
#include "compute/cpu/avx512_attention.h"
#include "compute/cpu/avx512_matmul.h"
#include "compute/cpu/avx512_ops.h"
#include "compute/cpu/lanes.h"

#include <cpuid.h>

/* __builtin_cpu_supports also asks whether the system saves the registers. */
static bool available(void) {
    return sh_avx2_available() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

const struct sh_cpu_kernels sh_cpu_avx512 = {
    .tier = "avx512",
    .requires = "AVX2, FMA, F16C and AVX-512 F, BW, DQ, VL and VNNI",
    .available = available,
    .matmul = sh_avx512_matmul,
    .matmul_scratch = sh_avx512_matmul_scratch,
#include "compute/cpu/avx512_entries.h"
};
