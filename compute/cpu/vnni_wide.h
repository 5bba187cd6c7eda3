/*
 * vnni_wide.h - products of several operand rows, included after vnni_dot.h. The arithmetic is that of vnni_dot.h.
 *
 * Two groups are multiplied together: each block of them is unpacked once, to bytes in the order of its elements, and meets all
 * operand rows before the next one, WIDE_ROWS of them at a time, whose sums wait in memory meanwhile. So a word of an operand row
 * that is loaded meets two vectors of weights, and what the tile waits for is its multiplications alone, not its loads.
 */
#ifndef SHIMMY_CPU_VNNI_WIDE_H
#define SHIMMY_CPU_VNNI_WIDE_H

#include "compute/cpu/vnni_dot.h"

#define MOST_RESIDENT 132                          /* operand rows whose sums wait at a time: whole tiles */
#define LEAST_ROWS (WIDE_ROWS / 2 + WIDE_ROWS % 2) /* of a tile, where three rows or more are shared out evenly */
#define WIDE_TILES (WIDE_ROWS - LEAST_ROWS + 1)    /* 2 or 4 */

#define FLOAT_UNIT                                                                                                               \
    128 /* weights of a row that are made floats at a time: with a tile's operands they stay in the first-level cache */

_Static_assert(MOST_RESIDENT % WIDE_ROWS == 0, "resident rows are rounded up to whole tiles");

typedef float pair_sums[2][LANES]; /* of one operand row with a row of two groups */

/* Units of two groups, and what products of signed weights want besides: then `q` of the units is signed. */
struct pair {
    struct unit units[2];
    int32_t start[2][32][LANES];    /* -128 times the sum of each two vectors */
    uint8_t turned[WIDE_ROWS][256]; /* a tile's operands, plus 128 */
};

struct wide {
    union {
        struct {
            struct pair pair;
            pair_sums sums[MOST_RESIDENT];
        };
        struct {
            float values[FLOAT_UNIT][LANES];
            float chains[MOST_RESIDENT][4][LANES];
        };
    };
};

/* ---- products of two units with n operand rows, whose sums begin at `at` ---- */

/* Where the rows of a tile begin. The compiler must not know how they lie to each other: it would keep a pointer for each row and
 * each of its parts, more than there are registers. */
INLINE void rows_of(const struct rows *rows, const uint8_t *row[WIDE_ROWS], const int n) {
    UNROLLED (i, n) {
        row[i] = rows->x + (uint64_t)i * rows->stride;
        __asm__("" : "+r"(row[i]));
    }
}

INLINE void multiply_32(const struct pair *pair, const struct rows *rows, uint64_t b, int n_blocks, pair_sums *at, const int n,
                        const enum ending ending) {
    const struct unit *u = pair->units;
    uint64_t x = 32 * b, scales = sh_lanes_scales_at(rows->cols) + 4 * b,
             sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols) + 4 * b;
    const uint8_t *row[WIDE_ROWS];
    rows_of(rows, row, n);
    floats acc[2][WIDE_ROWS];
    UNROLLED (i, n)
        UNROLLED (g, 2) acc[g][i] = load_floats(at[i][g]);
    for (int k = 0; k < n_blocks; k++, x += 32, scales += 4, sums += 4) {
        ints dot[2][WIDE_ROWS];
        UNROLLED (i, n) dot[0][i] = dot[1][i] = ending == MINIMUM ? none() : offset_of(row[i] + sums, rows->lowest);
        UNROLLED (v, 8) {
            const ints first = load(u[0].q[8 * k + v]), second = load(u[1].q[8 * k + v]);
            UNROLLED (i, n) {
                const ints four = word(row[i] + x + 4 * v);
                dot[0][i] = dot4(dot[0][i], first, four);
                dot[1][i] = dot4(dot[1][i], second, four);
            }
        }
        UNROLLED (i, n) {
            const uint8_t *dx = row[i] + scales;
            if (ending == MINIMUM) {
                const floats sum = to_floats(word(row[i] + sums));
                UNROLLED (g, 2) acc[g][i] = fma_of(times(load_floats(u[g].m[k]), real(dx)), sum, acc[g][i]);
            }
            UNROLLED (g, 2) {
                const floats d = load_floats(u[g].d[k]);
                acc[g][i] = ending == TABLE ? add_table(d, dx, dot[g][i], acc[g][i]) : add_block(d, dx, dot[g][i], acc[g][i]);
            }
        }
    }
    UNROLLED (i, n)
        UNROLLED (g, 2) store_floats(at[i][g], acc[g][i]);
}

/* `vectors` of a sub-block, 0: no sub-blocks; `small`: so many of them sum to what fits into 16 bits, 0: none that pays;
 * `minima`: pairs of them, 4 with sums of 32 quants or 8 with those of 16; `offsets`: there are such. The minima come first:
 * their chain of operations then runs beside the end of the tile before. `turned`: operands become unsigned here, so that weights
 * can be signed: -32..31 times eight operands stay below 2^15, 0..63 do not, and there are no offsets to add. */
INLINE void multiply_256(struct pair *pair, const struct rows *rows, uint64_t b, pair_sums *at, const int n, const int vectors,
                         const int small, const int minima, const bool offsets, const bool turned, const enum ending ending) {
    const struct unit *u = pair->units;
    const uint64_t scales = sh_lanes_scales_at(rows->cols) + 4 * b,
                   sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols) + 32 * b,
                   sums32 = sh_lanes_sums32_at(rows->cols) + 16 * b;
    const uint8_t *row[WIDE_ROWS];
    rows_of(rows, row, n);
    if (minima > 0)
        UNROLLED (g, 2) {
            const floats m = load_floats(u[g].m[0]);
            ints pairs[8];
            UNROLLED (p, minima) pairs[p] = load(u[g].minima[p]);
            UNROLLED (i, n) {
                ints min = none();
                UNROLLED (p, minima) min = dot2(min, pairs[p], word(row[i] + (minima == 4 ? sums32 : sums16) + 4 * p));
                store_floats(at[i][g], fnma_of(times(m, real(row[i] + scales)), to_floats(min), load_floats(at[i][g])));
            }
        }
    ints sums[2][WIDE_ROWS];
    UNROLLED (i, n) sums[0][i] = sums[1][i] = none();
    if (offsets)
        UNROLLED (p, 8) {
            const ints first = load(u[0].offsets[p]), second = load(u[1].offsets[p]);
            UNROLLED (i, n) {
                const ints two = word(row[i] + sums16 + 4 * p);
                sums[0][i] = dot2(sums[0][i], first, two);
                sums[1][i] = dot2(sums[1][i], second, two);
            }
        }
    if (vectors == 0)
        UNROLLED (i, n) {
            UNROLLED (p, 4) sums[0][i] = dot2(sums[0][i], all32(-1), word(row[i] + sums32 + 4 * p));
            sums[1][i] = sums[0][i];
        }
    uint64_t x = 256 * b;
    if (turned) {
        UNROLLED (i, n) {
            for (int v = 0; v < 256; v += V) store(&pair->turned[i][v], flip(load(row[i] + x + v), all8(-128)));
        }
    }
    const int v_per = vectors == 0 ? 1 : vectors; /* divides, where nothing reads it */
    const int run = small > 0 ? small : vectors == 8 ? 8 : 4;
    for (int j = 0; j < 64; j += run, x += 4 * run) {
        ints dot[2][WIDE_ROWS];
        UNROLLED (i, n)
            UNROLLED (g, 2) dot[g][i] = turned ? load(pair->start[g][j / 2]) : vectors == 0 ? sums[g][i] : none();
        UNROLLED (v, run) {
            const ints first = load(u[0].q[j + v]), second = load(u[1].q[j + v]);
            UNROLLED (i, n) {
                const ints four = turned ? word(&pair->turned[i][4 * (j + v)]) : word(row[i] + x + 4 * v);
                dot[0][i] = turned ? dot4(dot[0][i], four, first) : dot4(dot[0][i], first, four);
                dot[1][i] = turned ? dot4(dot[1][i], four, second) : dot4(dot[1][i], second, four);
            }
        }
        UNROLLED (g, 2) {
            const ints scale = load(u[g].scale[j / v_per % 16]);
            UNROLLED (i, n)
                sums[g][i] = vectors == 0 ? dot[g][i]
                             : small > 0  ? dot2(sums[g][i], dot[g][i], scale)
                                          : add(sums[g][i], mul(dot[g][i], scale));
        }
    }
    const floats d[2] = {load_floats(u[0].d[0]), load_floats(u[1].d[0])};
    UNROLLED (i, n)
        UNROLLED (g, 2) {
            const uint8_t *dx = row[i] + scales;
            const floats acc = load_floats(at[i][g]);
            store_floats(at[i][g], ending == TABLE ? add_table(d[g], dx, sums[g][i], acc) : add_block(d[g], dx, sums[g][i], acc));
        }
}

typedef void wide_fn(struct pair *pair, const struct rows *rows, uint64_t b, int n_blocks, pair_sums *at);
#define WIDE_TILE_32(name, k, ending)                                                                                            \
    static void name##_##k(struct pair *pair, const struct rows *rows, uint64_t b, int n_blocks, pair_sums *at) {                \
        multiply_32(pair, rows, b, n_blocks, at, LEAST_ROWS + k, ending);                                                        \
    }
#define WIDE_TILE_256(name, k, ...)                                                                                              \
    static void name##_##k(struct pair *pair, const struct rows *rows, uint64_t b, int n_blocks, pair_sums *at) {                \
        (void)n_blocks;                                                                                                          \
        multiply_256(pair, rows, b, at, LEAST_ROWS + k, __VA_ARGS__);                                                            \
    }
#if WIDE_ROWS == 6
#define WIDE(kind, name, ...)                                                                                                    \
    WIDE_TILE_##kind(name, 0, __VA_ARGS__) WIDE_TILE_##kind(name, 1, __VA_ARGS__) WIDE_TILE_##kind(name, 2, __VA_ARGS__)         \
        WIDE_TILE_##kind(name, 3, __VA_ARGS__) static wide_fn *const name[WIDE_TILES] = {name##_0, name##_1, name##_2, name##_3};
#else
#define WIDE(kind, name, ...)                                                                                                    \
    WIDE_TILE_##kind(name, 0, __VA_ARGS__) WIDE_TILE_##kind(name, 1, __VA_ARGS__) static wide_fn *const name[WIDE_TILES] = {     \
        name##_0, name##_1};
#endif
WIDE(32, wide_32, FACTORS)
WIDE(32, wide_32_min, MINIMUM)
WIDE(32, wide_32_table, TABLE)
WIDE(256, wide_q4_k, 8, 4, 4, false, false, FACTORS)
WIDE(256, wide_q5_k, 8, 0, 4, false, false, FACTORS)
WIDE(256, wide_q6_k, 4, 2, 0, false, true, FACTORS)
WIDE(256, wide_q2_k, 4, 4, 8, false, false, FACTORS)
WIDE(256, wide_q3_k, 4, 4, 0, true, false, TABLE)
WIDE(256, wide_table, 4, 0, 0, true, false, TABLE)
WIDE(256, wide_ternary, 0, 0, 0, false, false, TABLE)

/* Signed scales as 16-bit numbers beside a 0, as dot2 wants them. */
INLINE void shorten_scales(struct unit *u) {
    for (int j = 0; j < 16; j++) store(u->scale[j], both(load(u->scale[j]), all32(0xFFFF)));
}
/* Vectors j and j + 1 of a group, 0..63 for -32..31, as signed weights. */
INLINE void put_signed(struct pair *pair, int g, int j, ints first, ints second) {
    first = add8(first, all8(-32));
    second = add8(second, all8(-32));
    store(pair->units[g].q[j], first);
    store(pair->units[g].q[j + 1], second);
    store(pair->start[g][j / 2], sub(none(), dot4(dot4(none(), all8(-128), first), all8(-128), second))); /* 128, as that is unsigned */
}
/* As unpack_q6_k, but signed. */
INLINE void unpack_signed_q6_k(struct pair *pair, int g, const uint8_t *w) {
    struct unit *u = &pair->units[g];
    store_floats(u->d[0], load_halves(w));
    put_scales(u, w + 2 * LANES, 8, true);
    shorten_scales(u);
    for (int h = 0; h < 2; h++)
        UNROLLED (a, 2)
            for (int v = 0; v < 8; v += 2) {
                ints low[2], high[2];
                UNROLLED (i, 2) vectors_of_q6_k(w, h, a, v + i, &low[i], &high[i]);
                put_signed(pair, g, 32 * h + 8 * a + v, low[0], low[1]);
                put_signed(pair, g, 32 * h + 8 * a + 16 + v, high[0], high[1]);
            }
}

/* wide[k] multiplies LEAST_ROWS + k operand rows; NULL: floats, which are not unpacked. */
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
    case SH_TYPE_Q3_K: return wide_q3_k; /* 16 quants of at most 7, once unsigned: 14,224 */
    case SH_TYPE_Q4_K: return wide_q4_k;
    case SH_TYPE_Q5_K: return wide_q5_k;
    case SH_TYPE_Q6_K: return wide_q6_k;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return wide_ternary;
    default: return wide_table;
    }
}

/* Asks for byte `at` of two groups; what would lie behind them, for that of the next two. To the second level: the first is full of
 * what the tile at work reads. */
INLINE void fetch_pair(const uint8_t *groups, uint64_t at, uint64_t group_bytes) {
    if (at >= group_bytes) at += group_bytes;
    _mm_prefetch((const char *)groups + at, _MM_HINT_T1);
    _mm_prefetch((const char *)groups + group_bytes + at, _MM_HINT_T1);
}

/* Groups `group` and the next one with n >= 3 resident operand rows, the first of which is row r of all. Tiles differ by a row
 * at most: one of two or three rows has too few products under way to hide how long each takes. */
static void wide_pair(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r, uint32_t n,
                      const struct rows *first, struct wide *s) {
    const uint32_t type = m->w->type;
    wide_fn *const *const wide = wide_of(type);
    const uint64_t block = sh_type_info(type)->block_elements, n_blocks = m->w->cols / block;
    const uint64_t per_unit = block == 32 ? UNIT_BLOCKS : 1, block_bytes = group_bytes / n_blocks;
    const uint8_t *const groups = (const uint8_t *)m->w->data + group * group_bytes;
    const uint32_t n_tiles = (n + WIDE_ROWS - 1) / WIDE_ROWS;
    for (uint64_t b = 0; b < n_blocks; b += per_unit) {
        const int some = (int)sh_min_u64(per_unit, n_blocks - b);
        const uint64_t done = b * block_bytes, bytes = (uint64_t)some * block_bytes, share = sh_align_up(bytes / n_tiles + 1, 64);
        for (int g = 0; g < 2; g++) {
            const uint8_t *w = groups + (uint64_t)g * group_bytes + done;
            if (type == SH_TYPE_Q6_K) {
                unpack_signed_q6_k(&s->pair, g, w);
                continue;
            }
            unpack_unit(type, &s->pair.units[g], w, some, first);
            if (type == SH_TYPE_Q3_K) shorten_scales(&s->pair.units[g]);
        }
        struct rows rows = *first;
        uint64_t fetched = 0;
        for (uint32_t tile = 0, i = 0, n_rows; tile < n_tiles; tile++, i += n_rows) {
            n_rows = (n - i) / (n_tiles - tile);
            for (const uint64_t end = sh_min_u64(bytes, fetched + share); fetched < end; fetched += 64)
                fetch_pair(groups, done + fetched + AHEAD, group_bytes);
            pair_sums *const sums = &s->sums[i];
            if (b == 0)
                for (uint32_t k = 0; k < n_rows; k++)
                    UNROLLED (g, 2) store_floats(sums[k][g], zeros());
            rows.x = first->x + i * rows.stride;
            wide[n_rows - LEAST_ROWS](&s->pair, &rows, b, some, sums);
            if (b + per_unit >= n_blocks)
                for (uint32_t k = 0; k < n_rows; k++)
                    UNROLLED (g, 2) finish(m, (group + (uint64_t)g) * LANES, r + i + k, load_floats(sums[k][g]));
        }
    }
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

/* As wide_pair, for one group and types without blocks. */
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
    const uint32_t fits = (uint32_t)sh_max_u64(MAX_TILE, RESIDENT_BYTES / stride);
    const uint32_t most = fits < MOST_RESIDENT ? fits : MOST_RESIDENT, n_parts = (m->n_rows + most - 1) / most;
    const uint32_t resident = n_parts > 1 ? (uint32_t)sh_align_up((m->n_rows + n_parts - 1) / n_parts, WIDE_ROWS) : m->n_rows;
    struct rows rows = {.stride = stride, .cols = m->w->cols};
    values_of(type, &rows);
    rows.lowest = lowest_of_32(type, rows.lowest);
    for (uint32_t r0 = 0; r0 < m->n_rows; r0 += resident) {
        const uint32_t r1 = (uint32_t)sh_min_u64(r0 + resident, m->n_rows);
        const uint32_t n = r1 - r0;
        const bool blocks = wide_of(type) != NULL, wide = blocks && (n > MAX_TILE || tiles.of[n - 1] == NULL);
        for (uint64_t g = group0; g < group1; g++) {
            rows.x = (const uint8_t *)m->x + r0 * stride;
            if (wide && g + 1 < group1) wide_pair(m, g++, group_bytes, r0, n, &rows, scratch);
            else if (!blocks && n > MAX_TILE) wide_floats(m, g, group_bytes, r0, n, &rows, scratch);
            else narrow(m, g, group_bytes, r0, r1, &tiles, &rows);
        }
    }
}

#endif
