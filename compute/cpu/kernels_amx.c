/* The amx table: that of AVX-512 with tiles for products of many rows. */
#include "compute/cpu/amx_matmul.h"
#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx2_recurrent.h"
#include "compute/cpu/avx512_attention.h"
#include "compute/cpu/avx512_matmul.h"
#include "compute/cpu/avx512_ops.h"
#include "compute/cpu/lanes.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Tiles are used only if the CPU has them, the kernel lets this process have them (it keeps 8 KiB more for each thread that does), and
 * they are seen to work. */

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl */
#define TILE_DATA 18              /* the number of the state component */

static bool permitted(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false; /* AMX-TILE, AMX-INT8 */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

bool sh_amx_agrees(sh_amx_fn *tiled) {
    enum { COLS = 512, WEIGHTS = 16, ROWS = 41 }; /* three tiles, the last one shared with the second */
    static const struct {
        uint32_t type, scale_at; /* of d in a block */
    } checks[] = {{SH_TYPE_Q8_0, 0}, {SH_TYPE_Q4_K, 0}, {SH_TYPE_Q6_K, 208}};
    bool same = true;
    uint32_t random = 1;
    for (size_t k = 0; same && k < SH_COUNT(checks); k++) {
        const uint32_t type = checks[k].type, operand = sh_lanes_operand(type);
        const struct sh_type_info *info = sh_type_info(type);
        const uint64_t file_bytes = sh_type_row_bytes(type, COLS) * WEIGHTS,
                       packed_bytes = sh_lanes16_matrix_bytes(type, COLS, WEIGHTS);
        const uint64_t operand_bytes = sh_lanes_operand_bytes(operand, COLS) * ROWS, out_floats = ROWS * WEIGHTS;
        float *const x = malloc(ROWS * COLS * sizeof *x), *const out = malloc(2 * out_floats * sizeof *out);
        uint8_t *const file = malloc(file_bytes), *const packed = sh_alloc_aligned(packed_bytes);
        void *const operands = sh_alloc_aligned(operand_bytes), *const scratch = sh_alloc_aligned(sh_amx_matmul_scratch(COLS));
        same = x != NULL && out != NULL && file != NULL && packed != NULL && operands != NULL && scratch != NULL;
        if (same) {
            for (uint64_t i = 0; i < file_bytes; i++) file[i] = (uint8_t)((random = random * 1664525 + 1013904223) >> 24);
            for (uint64_t at = checks[k].scale_at; at < file_bytes; at += info->block_bytes)
                memset(file + at, 0x2E, type == SH_TYPE_Q4_K ? 4 : 2); /* d, dmin: 0.09 */
            for (uint64_t i = 0; i < ROWS * COLS; i++)
                x[i] = (float)((random = random * 1664525 + 1013904223) >> 8) * 0x1p-23f - 1.0f;
            const struct sh_cpu_matrix w = {.type = type, .cols = COLS, .rows = WEIGHTS, .data = packed};
            struct sh_cpu_matmul m = {.w = &w, .x = operands, .n_rows = ROWS, .out = out};
            memset(packed, 0, packed_bytes);
            sh_lanes16_pack(&w, 0, WEIGHTS, file);
            sh_avx2_prepare(operand, x, COLS, ROWS, operands);
            tiled(&m, 0, 1, scratch);
            m.out = out + out_floats;
            sh_avx512_matmul(&m, 0, 1, scratch);
            same = memcmp(out, m.out, out_floats * sizeof *out) == 0;
        }
        free(x);
        free(out);
        free(file);
        free(packed);
        free(operands);
        free(scratch);
    }
    return same;
}

static bool works(void) {
    if (!sh_cpu_avx512.available() || !permitted()) return false;
    if (sh_amx_agrees(sh_amx_matmul)) return true;
    sh_log(SH_LOG_WARNING,
           "amx: products of this CPU's tiles differ from those of avx512, or memory was lacking for the comparison; "
           "amx is not used");
    return false;
}

/* Asked and checked once; two threads may both do so at the same time, with the same result. */
static bool available(void) {
    static atomic_int known; /* 0 not yet, 1 no, 2 yes */
    int state = atomic_load(&known);
    if (state == 0) atomic_store(&known, state = works() ? 2 : 1);
    return state == 2;
}

const struct sh_cpu_kernels sh_cpu_amx = {
    .tier = "amx",
    .requires = "AVX2, FMA, F16C, AVX-512 F, BW, DQ, VL and VNNI, AMX TILE and INT8, and a kernel that permits tiles",
    .available = available,
    .matmul = sh_amx_matmul,
    .matmul_scratch = sh_amx_matmul_scratch,
#include "compute/cpu/avx512_entries.h"
};
