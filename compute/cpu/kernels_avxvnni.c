/* The avxvnni table: that of AVX2 with the products of AVX-VNNI, on the same packed matrices. */
#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx2_recurrent.h"
#include "compute/cpu/avxvnni_matmul.h"
#include "compute/cpu/lanes.h"

#include <cpuid.h>

static bool available(void) {
    unsigned a, b, c, d;
    return sh_avx2_available() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1); /* no compiler knows its name yet */
}

const struct sh_cpu_kernels sh_cpu_avxvnni = {
    .tier = "avxvnni",
    .requires = "AVX2, FMA, F16C and AVX-VNNI",
    .available = available,
    .group_rows = 8,
    .matrix_bytes = sh_lanes8_matrix_bytes,
    .pack = sh_avx2_pack,
    .unpack = sh_lanes8_unpack,
    .operand = sh_lanes_operand,
    .operand_bytes = sh_lanes_operand_bytes,
    .prepare = sh_avx2_prepare,
    .matmul = sh_avxvnni_matmul,
    .matmul_scratch = sh_avxvnni_matmul_scratch,
    .norm = sh_avx2_norm,
    .add = sh_avx2_add,
    .unary = sh_avx2_unary,
    .glu = sh_avx2_glu,
    .expert_sum = sh_avx2_expert_sum,
    .rope = sh_avx2_rope,
    .cache_store = sh_avx2_cache_store,
    .conv = sh_avx2_conv,
    .scan = sh_avx2_scan,
    .delta_net = sh_avx2_delta_net,
    .attention = sh_avx2_attention,
    .attention_rows = sh_avx2_attention_rows,
    .attention_scratch = sh_avx2_attention_scratch,
    .attention_split = SH_AVX2_ATTENTION_SPLIT,
    .attention_part = sh_avx2_attention_part,
    .attention_join = sh_avx2_attention_join,
    .attention_partial = sh_avx2_attention_partial,
};
