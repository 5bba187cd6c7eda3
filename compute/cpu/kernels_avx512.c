/* The avx512 table: that of AVX2 with products and attention 16 lanes wide. */
#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx2_recurrent.h"
#include "compute/cpu/avx512_attention.h"
#include "compute/cpu/avx512_matmul.h"
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
    .group_rows = 16,
    .matrix_bytes = sh_lanes16_matrix_bytes,
    .pack = sh_avx512_pack,
    .unpack = sh_lanes16_unpack,
    .operand = sh_lanes_operand,
    .operand_bytes = sh_lanes_operand_bytes,
    .prepare = sh_avx2_prepare,
    .matmul = sh_avx512_matmul,
    .matmul_scratch = sh_avx512_matmul_scratch,
    .norm = sh_avx2_norm,
    .add = sh_avx2_add,
    .unary = sh_avx2_unary,
    .glu = sh_avx2_glu,
    .expert_sum = sh_avx2_expert_sum,
    .conv = sh_avx2_conv,
    .scan = sh_avx2_scan,
    .delta_net = sh_avx2_delta_net,
    .attention = sh_avx512_attention,
    .attention_rows = sh_avx2_attention_rows,
    .attention_scratch = sh_avx2_attention_scratch,
    .attention_split = SH_AVX2_ATTENTION_SPLIT,
    .attention_part = sh_avx512_attention_part,
    .attention_join = sh_avx2_attention_join,
    .attention_partial = sh_avx2_attention_partial,
};
