/* shapes.c - the shapes of each family of kernels, and the table of vendors. */
#include "compute/vulkan/shapes.h"

#include "compute/glsl/params.h"

enum family { MATMUL_R1O2, MATMUL_R1O4, MATMUL_R4O4, DOT_R1O4, DOT_R4O2, TILE, DOT_TILE, COOP, WIDE, COLUMN, FAMILIES };

#define OF_LAYOUTS(name) SH_KERNEL_##name##_f32, SH_KERNEL_##name##_table8
#define OF_QUANTS(name) SH_KERNEL_##name##_q4_0, SH_KERNEL_##name##_table8

/* One to eight groups of 32 lanes, which make `outputs` outputs each for `rows` rows. */
#define BY_GROUPS(rows, outputs) {{32, 0, rows, outputs}, {64, 0, rows, 2 * (outputs)}, {128, 0, rows, 4 * (outputs)}, {256, 0, rows, 8 * (outputs)}}, 4
/* Tiles of threads that have 4 by 4 results each. */
#define TILES {{256, 16, 64, 64}, {128, 16, 32, 64}, {128, 8, 64, 32}, {64, 8, 32, 32}}, 4

static const struct {
    uint32_t first, last; /* kernels */
    struct sh_vk_shape shapes[SH_VK_MAX_SHAPES];
    uint32_t n;
} families[FAMILIES] = {
    [MATMUL_R1O2] = {OF_LAYOUTS(matmul_r1o2), BY_GROUPS(1, 2)},
    [MATMUL_R1O4] = {OF_LAYOUTS(matmul_r1o4), BY_GROUPS(1, 4)},
    [MATMUL_R4O4] = {OF_LAYOUTS(matmul_r4o4), BY_GROUPS(4, 4)},
    [DOT_R1O4] = {OF_QUANTS(dot_r1o4), BY_GROUPS(1, 4)},
    [DOT_R4O2] = {OF_QUANTS(dot_r4o2), BY_GROUPS(4, 2)},
    [TILE] = {OF_LAYOUTS(tile), TILES},
    [DOT_TILE] = {OF_QUANTS(dot_tile), TILES},
    [COOP] = {OF_QUANTS(coop), {{256, 0, 64, 64}}, 1},
    [WIDE] = {OF_LAYOUTS(wide), {{32, 0, 16, 32}, {64, 0, 16, 64}, {128, 0, 16, 128}}, 3},
    [COLUMN] = {OF_LAYOUTS(column), {{32, 0, 1, 64}, {64, 0, 1, 128}, {128, 0, 1, 256}}, 3},
};

/*
 * The table of vendors: an index into a family's shapes. None of these GPUs has been measured: the rows follow from how the hardware is built.
 *
 * NVIDIA  A multiprocessor has four schedulers: workgroups of four warps give each one, and few enough outputs (8 to 16) that matrices of 2,000
 *         outputs still make more workgroups than there are multiprocessors. Tiles of 64 by 64: eight warps, and four products for each value
 *         that is read from shared memory.
 * AMD     The same, but for int8 products of one row, which stage nothing in shared memory: a workgroup of 64 is one wave or two, so that
 *         none waits for the slowest of four when the sums are added. With float activations 64 lanes would fill shared memory
 *         with more copies of them (RADV: 14 waves for a SIMD of RDNA3 in place of 20).
 * INTEL   Threads of 8 to 32 lanes, whose workgroup has to be resident on one core as a whole: as AMD for products of one row, and tiles of
 *         half the threads for many, so that several workgroups hide each other's barriers.
 * OTHER   What runs well on most: 128 lanes, tiles of 64 by 64.
 * SOFTWARE  A subgroup is a vector of a CPU, and threads take workgroups whole: the more of these there are, the better they are shared out.
 */
enum vendor { NVIDIA, AMD, INTEL, OTHER, SOFTWARE };
static const uint8_t table[][FAMILIES] = {
    /*            r1o2 r1o4 r4o4 dot1 dot4 tile dot_tile coop wide column */
    [NVIDIA] =   {2,   2,   2,   2,   2,   0,   0,       0,   1,   1},
    [AMD] =      {2,   2,   2,   1,   2,   0,   0,       0,   1,   1},
    [INTEL] =    {2,   2,   2,   1,   2,   1,   1,       0,   1,   1},
    [OTHER] =    {2,   2,   2,   2,   2,   0,   0,       0,   1,   1},
    [SOFTWARE] = {2,   2,   2,   2,   2,   0,   0,       0,   1,   1},
};

static enum vendor vendor_of(const struct sh_vulkan *vk) {
    if (vk->base.info.kind == SH_DEVICE_SOFTWARE) return SOFTWARE;
    switch (vk->vendor_id) { /* of PCI */
    case 0x10de: return NVIDIA;
    case 0x1002:
    case 0x1022: return AMD;
    case 0x8086: return INTEL;
    default: return OTHER;
    }
}

static enum family family_of(uint32_t kernel) {
    uint32_t f = 0;
    while (f < FAMILIES && (kernel < families[f].first || kernel > families[f].last)) f++;
    return (enum family)f;
}

const struct sh_vk_shape *sh_vk_shapes(uint32_t kernel, uint32_t *n) {
    const enum family f = family_of(kernel);
    *n = f < FAMILIES ? families[f].n : 0;
    return f < FAMILIES ? families[f].shapes : NULL;
}

uint32_t sh_vk_shape_layout(uint32_t kernel, bool *quants) {
    const enum family f = family_of(kernel);
    SH_ASSERT(f < FAMILIES);
    *quants = f == DOT_R1O4 || f == DOT_R4O2 || f == DOT_TILE || f == COOP;
    return kernel - families[f].first + (*quants ? SH_LAYOUT_Q4_0 : SH_LAYOUT_F32);
}

uint32_t sh_vk_shape_of_table(const struct sh_vulkan *vk, uint32_t kernel) {
    const enum family f = family_of(kernel);
    return f < FAMILIES ? table[vendor_of(vk)][f] : 0;
}
