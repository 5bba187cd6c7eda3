/*
 * vnni_wide.h - products of several operand rows, included after vnni_dot.h: each block of a group is unpacked once, to bytes in
 * the order of its elements, and meets all operand rows before the next one; their sums wait in memory meanwhile. The arithmetic
 * is that of vnni_dot.h.
 */
#ifndef SHIMMY_CPU_VNNI_WIDE_H
#define SHIMMY_CPU_VNNI_WIDE_H

#include "compute/cpu/vnni_dot.h"

#define MOST_RESIDENT 128 /* operand rows whose sums wait at a time */

#define FLOAT_UNIT                                                                                                               \
    128 /* weights of a row that are made floats at a time: with a tile's operands they stay in the first-level cache */

struct wide {
    union {
        struct {
            struct unit unit;
            float sums[MOST_RESIDENT + MAX_TILE][LANES];
        };
        struct {
            float values[FLOAT_UNIT][LANES];
            float chains[MOST_RESIDENT][4][LANES];
        };
    };
};

/* ---- products of a unit with n operand rows, whose sums begin at `at`; two chains of products for each, which take turns
 * ---- */

INLINE void multiply_32(struct unit *u, const struct rows *rows, uint64_t b, int n_blocks, float (*at)[LANES], const int n,
                        const enum ending ending) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    floats acc[MAX_TILE];
    UNROLLED (i, n) acc[i] = load_floats(at[i]);
    for (int k = 0; k < n_blocks; k++, b++) {
        ints dot[MAX_TILE], more[MAX_TILE];
        UNROLLED (i, n) {
            dot[i] = ending == MINIMUM ? none() : offset_of(rows->x + i * rows->stride + sums + 4 * b, rows->lowest);
            more[i] = none();
        }
        UNROLLED (v, 4) {
            const ints first = load(u->q[8 * k + v]), second = load(u->q[8 * k + 4 + v]);
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                dot[i] = dot4(dot[i], first, word(x));
                more[i] = dot4(more[i], second, word(x + 16));
            }
        }
        UNROLLED (i, n) dot[i] = add(dot[i], more[i]);
        const floats d = load_floats(u->d[k]);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride, *dx = x + scales + 4 * b;
            if (ending == MINIMUM)
                acc[i] = fma_of(times(load_floats(u->m[k]), real(dx)), to_floats(word(x + sums + 4 * b)), acc[i]);
            acc[i] = ending == TABLE ? add_table(d, dx, dot[i], acc[i]) : add_block(d, dx, dot[i], acc[i]);
        }
    }
    UNROLLED (i, n) store_floats(at[i], acc[i]);
}

/* `vectors` of a sub-block, 0: no sub-blocks; `small`: what four of them sum to fits into 16 bits; `minima`: pairs of them, 4
 * with sums of 32 quants or 8 with those of 16; `offsets`: there are such. */
INLINE void multiply_256(struct unit *u, const struct rows *rows, uint64_t b, float (*at)[LANES], const int n, const int vectors,
                         const bool small, const int minima, const bool offsets, const enum ending ending) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols),
                   sums32 = sh_lanes_sums32_at(rows->cols);
    ints sums[MAX_TILE];
    UNROLLED (i, n) sums[i] = none();
    if (offsets)
        UNROLLED (p, 8) {
            const ints o = load(u->offsets[p]);
            UNROLLED (i, n) sums[i] = dot2(sums[i], o, word(rows->x + i * rows->stride + sums16 + 32 * b + 4 * p));
        }
    if (vectors == 0)
        UNROLLED (p, 4)
            UNROLLED (i, n) sums[i] = dot2(sums[i], all32(-1), word(rows->x + i * rows->stride + sums32 + 16 * b + 4 * p));
    const int v_per = vectors == 0 ? 1 : vectors; /* divides, where nothing reads it */
    const int run = vectors == 8 && !small ? 8 : 4;
    for (int j = 0; j < 64; j += 2 * run) {
        ints dot[MAX_TILE], more[MAX_TILE];
        UNROLLED (i, n) dot[i] = more[i] = none();
        UNROLLED (v, run) {
            const ints first = load(u->q[j + v]), second = load(u->q[j + run + v]);
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 256 * b + 4 * (uint32_t)(j + v);
                dot[i] = dot4(dot[i], first, word(x));
                more[i] = dot4(more[i], second, word(x + 4 * run));
            }
        }
        if (vectors == 0) {
            UNROLLED (i, n) sums[i] = add(sums[i], add(dot[i], more[i]));
            continue;
        }
        const ints scale = load(u->scale[j / v_per]), next = load(u->scale[(j + run) / v_per]);
        UNROLLED (i, n) {
            sums[i] = small ? dot2(sums[i], dot[i], scale) : add(sums[i], mul(dot[i], scale));
            sums[i] = small ? dot2(sums[i], more[i], next) : add(sums[i], mul(more[i], next));
        }
    }
    const floats d = load_floats(u->d[0]), m = minima > 0 ? load_floats(u->m[0]) : zeros();
    UNROLLED (i, n) {
        const uint8_t *x = rows->x + i * rows->stride, *dx = x + scales + 4 * b;
        floats acc = load_floats(at[i]);
        if (minima > 0) {
            ints min = none();
            UNROLLED (p, minima)
                min = dot2(min, load(u->minima[p]), word(x + (minima == 4 ? sums32 + 16 * b : sums16 + 32 * b) + 4 * p));
            acc = fnma_of(times(m, real(dx)), to_floats(min), acc);
        }
        store_floats(at[i], ending == TABLE ? add_table(d, dx, sums[i], acc) : add_block(d, dx, sums[i], acc));
    }
}

typedef void wide_fn(struct unit *u, const struct rows *rows, uint64_t b, int n_blocks, float (*at)[LANES]);
#define WIDE_TILE_32(name, n, ending)                                                                                            \
    static void name##_##n(struct unit *u, const struct rows *rows, uint64_t b, int n_blocks, float(*at)[LANES]) {               \
        multiply_32(u, rows, b, n_blocks, at, n, ending);                                                                        \
    }
#define WIDE_TILE_256(name, n, ...)                                                                                              \
    static void name##_##n(struct unit *u, const struct rows *rows, uint64_t b, int n_blocks, float(*at)[LANES]) {               \
        (void)n_blocks;                                                                                                          \
        multiply_256(u, rows, b, at, n, __VA_ARGS__);                                                                            \
    }
#if MAX_TILE >= 8
#define WIDE(kind, name, ...)                                                                                                    \
    WIDE_TILE_##kind(name, 1, __VA_ARGS__) WIDE_TILE_##kind(name, 2, __VA_ARGS__) WIDE_TILE_##kind(name, 4, __VA_ARGS__)         \
        WIDE_TILE_##kind(name, 8, __VA_ARGS__) static wide_fn *const name[] = {name##_1, name##_2, name##_4, name##_8};
#else
#define WIDE(kind, name, ...)                                                                                                    \
    WIDE_TILE_##kind(name, 1, __VA_ARGS__) WIDE_TILE_##kind(name, 2, __VA_ARGS__)                                                \
        WIDE_TILE_##kind(name, 4, __VA_ARGS__) static wide_fn *const name[] = {name##_1, name##_2, name##_4};
#endif
WIDE(32, wide_32, FACTORS)
WIDE(32, wide_32_min, MINIMUM)
WIDE(32, wide_32_table, TABLE)
WIDE(256, wide_q4_k, 8, true, 4, false, FACTORS)
WIDE(256, wide_q5_k, 8, false, 4, false, FACTORS)
WIDE(256, wide_q6_k, 4, false, 0, true, FACTORS)
WIDE(256, wide_q2_k, 4, true, 8, false, FACTORS)
WIDE(256, wide_table, 4, false, 0, true, TABLE)
WIDE(256, wide_ternary, 0, false, 0, false, TABLE)

/* wide[k] multiplies 1 << k operand rows; NULL: floats, which are not unpacked. */
static wide_fn *const *wide_of(uint32_t type) {
    switch (type) {
    case SH_TYPE_F32:
    case SH_TYPE_F16:
    case SH_TYPE_BF16: return NULL;
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q5_0:
    case SH_TYPE_Q8_0: return wide_32;
    case SH_TYPE_Q4_1:
    case SH_TYPE_Q5_1: return wide_32_min;
    case SH_TYPE_IQ4_NL:
    case SH_TYPE_MXFP4: return wide_32_table;
    case SH_TYPE_Q2_K: return wide_q2_k;
    case SH_TYPE_Q4_K: return wide_q4_k;
    case SH_TYPE_Q5_K: return wide_q5_k;
    case SH_TYPE_Q6_K: return wide_q6_k;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return wide_ternary;
    default: return wide_table;
    }
}

/* One group with `n` resident operand rows, the first of which is row r of all. What is left after the first tiles has a tile
 * of the next power of two where it can begin among rows that were computed before: their sums lie twice, and are taken once. */
static void wide_group(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r, uint32_t n,
                       const struct rows *first, struct wide *s) {
    wide_fn *const *const wide = wide_of(m->w->type);
    const uint64_t block = sh_type_info(m->w->type)->block_elements, n_blocks = m->w->cols / block;
    const uint64_t per_unit = block == 32 ? UNIT_BLOCKS : 1, block_bytes = group_bytes / n_blocks;
    const uint8_t *w = (const uint8_t *)m->w->data + group * group_bytes;
    const uint32_t n_tiles = n / MAX_TILE + (n % MAX_TILE != 0);
    for (uint32_t i = 0; i < n + MAX_TILE; i++) store_floats(s->sums[i], zeros());
    uint32_t first_row = 0, new_row = 0; /* of the last tile; those before new_row were computed before */
    for (uint64_t b = 0; b < n_blocks; b += per_unit) {
        const int some = (int)sh_min_u64(per_unit, n_blocks - b);
        const uint64_t bytes = (uint64_t)some * block_bytes, share = sh_align_up(bytes / n_tiles + 1, 64);
        unpack_unit(m->w->type, &s->unit, w, some, first);
        struct rows rows = *first;
        uint64_t fetched = 0;
        for (uint32_t i = 0, k = MAX_TILE_BITS; i < n; i += 1u << k) {
            for (const uint64_t end = sh_min_u64(bytes, fetched + share); fetched < end; fetched += 64)
                _mm_prefetch((const char *)w + AHEAD + fetched, _MM_HINT_T0);
            while (1u << k > n || (k > 0 && 1u << (k - 1) >= n - i)) k--;
            new_row = i;
            first_row = n - i < 1u << k ? n - (1u << k) : i;
            rows.x = first->x + first_row * rows.stride;
            wide[k](&s->unit, &rows, b, some, &s->sums[i]);
        }
        w += bytes;
    }
    for (uint32_t i = 0; i < n; i++)
        finish(m, group * LANES, r + i, load_floats(s->sums[i < new_row ? i : new_row + (i - first_row)]));
}

/* ---- floats ---- */

INLINE floats float_weights(uint32_t type, const uint8_t *w, uint64_t k) {
    return type == SH_TYPE_F32   ? load_floats(w + 4 * LANES * k)
           : type == SH_TYPE_F16 ? load_halves(w + 2 * LANES * k)
                                 : load_bfloats(w + 2 * LANES * k);
}

/* Goes on with the chains of n operand rows by n_k weights, from x on; n_k is a multiple of 4. */
INLINE void add_chains(const float (*w)[LANES], uint64_t n_k, const uint8_t *x, uint64_t stride, float (*at)[4][LANES],
                       const int n) {
    floats c[FLOAT_TILE][4];
    UNROLLED (i, n)
        UNROLLED (j, 4) c[i][j] = load_floats(at[i][j]);
    for (uint64_t k = 0; k < n_k; k += 4)
        UNROLLED (j, 4) {
            const floats wk = load_floats(w[k + (uint64_t)j]);
            UNROLLED (i, n) c[i][j] = fma_of(wk, real(x + (uint64_t)i * stride + 4 * (k + (uint64_t)j)), c[i][j]);
        }
    UNROLLED (i, n)
        UNROLLED (j, 4) store_floats(at[i][j], c[i][j]);
}

/* As wide_group, for types without blocks. */
static void wide_floats(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r, uint32_t n,
                        const struct rows *first, struct wide *s) {
    const uint32_t type = m->w->type;
    const uint64_t cols = sh_align_up(m->w->cols, 4); /* zeros, in matrix and operands */
    const uint8_t *w = (const uint8_t *)m->w->data + group * group_bytes;
    for (uint32_t i = 0; i < n; i++)
        UNROLLED (j, 4) store_floats(s->chains[i][j], zeros());
    for (uint64_t k0 = 0; k0 < cols; k0 += FLOAT_UNIT) {
        const uint64_t n_k = sh_min_u64(FLOAT_UNIT, cols - k0);
        for (uint64_t k = 0; k < n_k; k++) store_floats(s->values[k], float_weights(type, w, k0 + k));
        const uint8_t *x = first->x + 4 * k0;
        uint32_t i = 0;
        for (; i + FLOAT_TILE <= n; i += FLOAT_TILE)
            add_chains(s->values, n_k, x + i * first->stride, first->stride, &s->chains[i], FLOAT_TILE);
        for (; i < n; i++) add_chains(s->values, n_k, x + i * first->stride, first->stride, &s->chains[i], 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        floats c[4];
        UNROLLED (j, 4) c[j] = load_floats(s->chains[i][j]);
        finish(m, group * LANES, r + i, plus(plus(c[0], c[1]), plus(c[2], c[3])));
    }
}

static uint64_t matmul_scratch(uint64_t cols) {
    (void)cols;
    return sizeof(struct wide);
}

/* One group with operand rows [r0, r1) by the tiles of vnni_dot.h. */
static void narrow(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r0, uint32_t r1,
                   const struct tiles *tiles, struct rows *rows) {
    uint32_t k = SH_COUNT(tiles->of);
    for (uint32_t r = r0; r < r1; r += k) {
        if (k > r1 - r) k = r1 - r;
        while (tiles->of[k - 1] == NULL) k--;
        rows->x = (const uint8_t *)m->x + r * rows->stride;
        tiles->of[k - 1](m, group, group_bytes, r, rows);
    }
}

static void matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    const uint32_t type = m->w->type;
    const struct tiles tiles = tiles_of(type);
    const uint64_t group_bytes = sh_lanes_group_bytes(LANES, type, m->w->cols);
    const uint64_t stride = sh_lanes_operand_bytes(sh_lanes_operand(type), m->w->cols);
    const uint32_t fits = (uint32_t)sh_max_u64(MAX_TILE, RESIDENT_BYTES / stride / MAX_TILE * MAX_TILE);
    const uint32_t resident = fits < MOST_RESIDENT ? fits : MOST_RESIDENT;
    struct rows rows = {.stride = stride, .cols = m->w->cols};
    values_of(type, &rows);
    rows.lowest = lowest_of_32(type, rows.lowest);
    for (uint32_t r0 = 0; r0 < m->n_rows; r0 += resident) {
        const uint32_t r1 = (uint32_t)sh_min_u64(r0 + resident, m->n_rows);
        const uint32_t n = r1 - r0;
        const bool blocks = wide_of(type) != NULL, wide = blocks && (n > MAX_TILE || tiles.of[n - 1] == NULL);
        for (uint64_t g = group0; g < group1; g++) {
            rows.x = (const uint8_t *)m->x + r0 * stride;
            if (wide) wide_group(m, g, group_bytes, r0, n, &rows, scratch);
            else if (!blocks && n > MAX_TILE) wide_floats(m, g, group_bytes, r0, n, &rows, scratch);
            else narrow(m, g, group_bytes, r0, r1, &tiles, &rows);
        }
    }
}

#endif
