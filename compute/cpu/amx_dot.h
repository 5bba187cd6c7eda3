/*
 * amx_dot.h - products of 16 and more operand rows by tiles: a source file includes a header of tile operations (amx_tiles.h), then
 * this one, and gets `tiled_matmul`. Matrices are those of the avx512 table.
 *
 * The arithmetic is that of the AVX2 products (kernels.h), bit for bit: sums inside a block are exact integers, and the float
 * operations on them are those of vnni_wide.h. A word of a packed group, four elements of 16 rows, is a row of a tile of weights, so
 * a block that is unpacked to bytes is tiles already; operand rows are tiles as they are.
 *   Blocks of 32: a product of tiles with k = 32 each.
 *   Blocks of 256: S = sum of (scale * quant) * operand. scale * quant is split into two signed bytes, high * 2^shift + low, so that S
 *     is high sums * 2^shift + low sums, each four products of tiles with k = 64 and no scale in between. Q4_K and Q2_K: quants of
 *     at most 15 times the scale's bits from 3 on, and times its lower three, at most 15 * 7 = 105. The others: |scale * quant| is at
 *     most 128 * 127, of which the bits from 7 on lie in -127..127, the lower ones in 0..127. Each sum stays below 256 * 127 * 127.
 * Rows and shapes that are left over are computed by sh_avx512_matmul.
 */
#ifndef SHIMMY_CPU_AMX_DOT_H
#define SHIMMY_CPU_AMX_DOT_H

#include "compute/cpu/avx512_matmul.h"
#include "compute/cpu/avx512_vector.h"
#include "compute/cpu/vnni_unit.h"

#define TILE_ROWS 16
#define MOST_ROWS 256             /* operand rows whose sums wait at a time; unpacking is shared by so many */
#define RESIDENT_BYTES (1u << 20) /* of operand rows: half of the second-level cache of CPUs that have tiles */

struct tiled {
    struct unit unit;
    int8_t high[64][V], low[64][V]; /* of the unit's weights; blocks of 32 are in `low` alone */
    int32_t dots[2][UNIT_BLOCKS][TILE_ROWS]
                [LANES]; /* what tiles gave, of two turns: one is computed while the other is added up */
    float sums[MOST_ROWS + 2 * TILE_ROWS][LANES];
};

/* ---- weights as signed bytes ---- */

/* A scale as both 16-bit halves of its lane. */
INLINE ints scale_pair(const int32_t *scale) {
    const ints s = load(scale);
    return either(both(s, all32(0xFFFF)), left32(s, 16));
}

/* `vectors` of a sub-block. Two bytes of a 16-bit number are multiplied at once: neither product carries. */
INLINE void split_scales(struct tiled *t, const int vectors) {
    for (int j = 0; j < 64; j += vectors) {
        const ints scale = scale_pair(t->unit.scale[j / vectors]), high = right(scale, 3), low = both(scale, all16(7));
        UNROLLED (v, vectors) {
            const ints q = load(t->unit.q[j + v]);
            store(t->high[j + v], mul16(q, high));
            store(t->low[j + v], mul16(q, low));
        }
    }
}

/* `vectors` of a sub-block, 0: all scales are 1; `lowest`: what the quants have been made unsigned with. */
INLINE void split_products(struct tiled *t, const int vectors, int lowest) {
    const __mmask64 odd = UINT64_C(0xAAAAAAAAAAAAAAAA);
    const ints offset = all16(lowest);
    for (int j = 0; j < 64; j += 4) {
        const ints scale = vectors == 0 ? all16(1) : scale_pair(t->unit.scale[j / (vectors == 0 ? 4 : vectors)]);
        UNROLLED (v, 4) {
            const ints q = load(t->unit.q[j + v]);
            const ints even_q = _mm512_add_epi16(both(q, all16(255)), offset), odd_q = _mm512_add_epi16(right(q, 8), offset);
            const ints a = mul16(even_q, scale), b = mul16(odd_q, scale);
            store(t->high[j + v], _mm512_mask_blend_epi8(odd, right(a, 7), left(b, 1)));
            store(t->low[j + v], both(_mm512_mask_blend_epi8(odd, a, left(b, 8)), all8(127)));
        }
    }
}

static void split(uint32_t type, struct tiled *t, const struct rows *rows) {
    switch (type) {
    case SH_TYPE_Q4_K: split_scales(t, 8); break;
    case SH_TYPE_Q2_K: split_scales(t, 4); break;
    case SH_TYPE_Q5_K: split_products(t, 8, 0); break;
    case SH_TYPE_Q6_K: split_products(t, 4, -32); break;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: split_products(t, 0, rows->lowest); break;
    default: split_products(t, 4, rows->lowest); break;
    }
}
static void sign(struct tiled *t, int n_blocks, const struct rows *rows) {
    for (int j = 0; j < 8 * n_blocks; j++) store(t->low[j], _mm512_add_epi8(load(t->unit.q[j]), all8(rows->lowest)));
}

/* ---- turns: one tile of operand rows of blocks of 32, two of a block of 256 ---- */

/* x: the first of n_blocks blocks of 16 rows; dots[k]: block k. */
static void multiply_32(const struct tiled *t, const uint8_t *x, uint64_t stride, int n_blocks,
                        int32_t (*dots)[TILE_ROWS][LANES]) {
#define BLOCK(k, c, a, b)                                                                                                        \
    if ((k) < n_blocks) {                                                                                                        \
        TILE_ZERO(c);                                                                                                            \
        TILE_LOAD(a, x + 32 * (k), stride);                                                                                      \
        TILE_LOAD(b, t->low[8 * (k)], V);                                                                                        \
        TILE_DOT(c, a, b);                                                                                                       \
        TILE_STORE(c, dots[k], V);                                                                                               \
    }
    for (int k = 0; k < n_blocks; k += 4) {
        BLOCK(k, 0, 4, 6)
        BLOCK(k + 1, 1, 5, 7)
        BLOCK(k + 2, 2, 4, 6)
        BLOCK(k + 3, 3, 5, 7)
    }
#undef BLOCK
}

/* x, y: a block of 16 rows each, y may be NULL; dots: high and low sums of x, then of y. */
static void multiply_256(const struct tiled *t, const uint8_t *x, const uint8_t *y, uint64_t stride,
                         int32_t (*dots)[TILE_ROWS][LANES]) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int j = 0; j < 4; j++) {
        TILE_LOAD(4, x + 64 * j, stride);
        TILE_LOAD(6, t->high[16 * j], V);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, t->low[16 * j], V);
        TILE_DOT(1, 4, 7);
        if (y == NULL) continue;
        TILE_LOAD(5, y + 64 * j, stride);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, dots[0], V);
    TILE_STORE(1, dots[1], V);
    if (y == NULL) return;
    TILE_STORE(2, dots[2], V);
    TILE_STORE(3, dots[3], V);
}

/* Adds the blocks from b on of 16 rows, the first of which is rows->x, to their sums. */
INLINE void end_32(const struct tiled *t, const struct rows *rows, uint64_t b, int n_blocks,
                   const int32_t (*dots)[TILE_ROWS][LANES], float (*at)[LANES], const enum ending ending) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols) + 4 * b, sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols) + 4 * b;
    for (int i = 0; i < TILE_ROWS; i++) {
        const uint8_t *x = rows->x + (uint64_t)i * rows->stride;
        floats acc = load_floats(at[i]);
        for (int k = 0; k < n_blocks; k++) {
            const uint8_t *dx = x + scales + 4 * k;
            const floats d = load_floats(t->unit.d[k]);
            if (ending == MINIMUM)
                acc = fma_of(times(load_floats(t->unit.m[k]), real(dx)), to_floats(word(x + sums + 4 * k)), acc);
            acc = ending == TABLE ? add_table(d, dx, load(dots[k][i]), acc) : add_block(d, dx, load(dots[k][i]), acc);
        }
        store_floats(at[i], acc);
    }
}
INLINE void end_256(const struct tiled *t, const struct rows *rows, uint64_t b, int shift,
                    const int32_t (*dots)[TILE_ROWS][LANES], float (*at)[LANES], const int minima, const enum ending ending) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols) + 4 * b;
    const uint64_t sums =
        minima == 4 ? sh_lanes_sums32_at(rows->cols) + 16 * b : sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols) + 32 * b;
    const floats d = load_floats(t->unit.d[0]), m = minima > 0 ? load_floats(t->unit.m[0]) : zeros();
    for (int i = 0; i < TILE_ROWS; i++) {
        const uint8_t *x = rows->x + (uint64_t)i * rows->stride, *dx = x + scales;
        const ints sum = add(left32(load(dots[0][i]), shift), load(dots[1][i]));
        floats acc = load_floats(at[i]);
        if (minima > 0) {
            ints min = none();
            UNROLLED (p, minima) min = dot2(min, load(t->unit.minima[p]), word(x + sums + 4 * p));
            acc = fnma_of(times(m, real(dx)), to_floats(min), acc);
        }
        store_floats(at[i], ending == TABLE ? add_table(d, dx, sum, acc) : add_block(d, dx, sum, acc));
    }
}

/* The rows of tile i of n >= 16 operand rows begin here: the last tile takes rows once more, whose sums then lie twice. */
static uint32_t first_of(uint32_t i, uint32_t n) { return i * TILE_ROWS < n - TILE_ROWS ? i * TILE_ROWS : n - TILE_ROWS; }

static void end_tile(uint32_t type, struct tiled *t, const struct rows *rows, uint64_t b, int n_blocks,
                     const int32_t (*dots)[TILE_ROWS][LANES], float (*at)[LANES]) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q5_0:
    case SH_TYPE_Q8_0: end_32(t, rows, b, n_blocks, dots, at, FACTORS); break;
    case SH_TYPE_Q4_1:
    case SH_TYPE_Q5_1: end_32(t, rows, b, n_blocks, dots, at, MINIMUM); break;
    case SH_TYPE_IQ4_NL:
    case SH_TYPE_MXFP4: end_32(t, rows, b, n_blocks, dots, at, TABLE); break;
    case SH_TYPE_Q4_K: end_256(t, rows, b, 3, dots, at, 4, FACTORS); break;
    case SH_TYPE_Q5_K: end_256(t, rows, b, 7, dots, at, 4, FACTORS); break;
    case SH_TYPE_Q2_K: end_256(t, rows, b, 3, dots, at, 8, FACTORS); break;
    case SH_TYPE_Q6_K: end_256(t, rows, b, 7, dots, at, 0, FACTORS); break;
    default: end_256(t, rows, b, 7, dots, at, 0, TABLE); break;
    }
}

/* One group with n >= 16 operand rows, the first of which is row r of all. */
static void tiled_group(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r, uint32_t n,
                        const struct rows *first, struct tiled *t) {
    const uint32_t type = m->w->type, n_tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
    const uint64_t block = sh_type_info(type)->block_elements, n_blocks = m->w->cols / block;
    const uint64_t per_unit = block == 32 ? UNIT_BLOCKS : 1, block_bytes = group_bytes / n_blocks;
    const uint32_t per_turn = block == 32 ? 1 : 2;
    const uint8_t *w = (const uint8_t *)m->w->data + group * group_bytes;
    for (uint32_t i = 0; i < n_tiles * TILE_ROWS; i++) store_floats(t->sums[i], zeros());
    for (uint64_t b = 0; b < n_blocks; b += per_unit) {
        const int some = (int)sh_min_u64(per_unit, n_blocks - b);
        unpack_unit(type, &t->unit, w, some, first);
        fetch(w, (uint32_t)((uint64_t)some * block_bytes));
        w += (uint64_t)some * block_bytes;
        if (block == 32) sign(t, some, first);
        else split(type, t, first);
        for (uint32_t i = 0, turn = 0; i < n_tiles + per_turn; i += per_turn, turn ^= 1) {
            if (i < n_tiles) { /* begins before what the last turn gave is added up: the two run side by side */
                const uint8_t *x = first->x + first_of(i, n) * first->stride + block * b;
                const uint8_t *y = i + 1 < n_tiles ? first->x + first_of(i + 1, n) * first->stride + block * b : NULL;
                if (block == 32) multiply_32(t, x, first->stride, some, t->dots[turn]);
                else multiply_256(t, x, y, first->stride, t->dots[turn]);
            }
            for (uint32_t k = 0; i > 0 && k < per_turn && i - per_turn + k < n_tiles; k++) {
                const uint32_t tile = i - per_turn + k;
                struct rows rows = *first;
                rows.x = first->x + first_of(tile, n) * first->stride;
                end_tile(type, t, &rows, b, some, t->dots[turn ^ 1] + 2 * k, &t->sums[tile * TILE_ROWS]);
            }
        }
    }
    const uint32_t last = n_tiles - 1;
    for (uint32_t i = 0; i < n; i++)
        finish(m, group * LANES, r + i,
               load_floats(t->sums[i < last * TILE_ROWS ? i : last * TILE_ROWS + (i - first_of(last, n))]));
}

static uint64_t tiled_scratch(uint64_t cols) { return sh_max_u64(sizeof(struct tiled), sh_avx512_matmul_scratch(cols)); }

static void tiled_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    const uint32_t type = m->w->type;
    const uint64_t block = sh_type_info(type)->block_elements;
    if (m->n_rows < TILE_ROWS || block == 1) {
        sh_avx512_matmul(m, group0, group1, scratch);
        return;
    }
    const uint64_t group_bytes = sh_lanes_group_bytes(LANES, type, m->w->cols);
    struct rows rows = {.stride = sh_lanes_operand_bytes(sh_lanes_operand(type), m->w->cols), .cols = m->w->cols};
    values_of(type, &rows);
    rows.lowest = lowest_of_32(type, rows.lowest);
    const uint32_t fits = (uint32_t)sh_max_u64(2 * TILE_ROWS, RESIDENT_BYTES / rows.stride / TILE_ROWS * TILE_ROWS);
    const uint32_t resident = fits < MOST_ROWS ? fits : MOST_ROWS;
    tiles_begin(block == 32 ? 32 : 64);
    for (uint32_t r0 = 0, n; r0 < m->n_rows; r0 += n) {
        n = m->n_rows - r0;
        if (n >= resident + TILE_ROWS) n = resident; /* what is left is a tile at least */
        rows.x = (const uint8_t *)m->x + r0 * rows.stride;
        for (uint64_t g = group0; g < group1; g++) tiled_group(m, g, group_bytes, r0, n, &rows, scratch);
    }
    tiles_end();
}

#endif
