/*
 * vnni_unit.h - what the products of vnni_dot.h, vnni_wide.h and amx_dot.h share, in the words of a header of vectors (avx512_vector.h,
 * avxvnni_vector.h), which is included before: operand rows, the ends of blocks and of rows, and a unit of a group's blocks
 * unpacked to bytes.
 */
#ifndef SHIMMY_CPU_VNNI_UNIT_H
#define SHIMMY_CPU_VNNI_UNIT_H

#include "compute/cpu/lanes.h"

#define UNROLLED(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#define V (4 * LANES) /* bytes of a vector */

/* How far ahead of the dot product weights are fetched: a page, which the hardware's own prefetching does not cross. */
#define AHEAD 4096

struct rows { /* the operand rows of a tile */
    const uint8_t *x;
    uint64_t stride, cols;
    int32_t lowest;     /* of a table type's values */
    uint8_t values[16]; /* those values, less `lowest` */
};

INLINE int32_t word_at(const void *p) {
    int32_t w;
    memcpy(&w, p, sizeof w);
    return w;
}
INLINE ints word(const void *p) { return all32(word_at(p)); } /* four bytes to all lanes */
INLINE floats real(const void *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return all(f);
}
INLINE ints low_nibbles(ints v) { return both(v, all8(15)); }
INLINE ints high_nibbles(ints v) { return both(right(v, 4), all8(15)); }
INLINE void fetch(const uint8_t *w, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)w + AHEAD + i, _MM_HINT_T0);
}
/* The same to the second level: measured to be faster for blocks of 32 (Q4_0 5 %), slower for those of 256 (Q4_K 1.5 %). */
INLINE void fetch_far(const uint8_t *w, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)w + AHEAD + i, _MM_HINT_T1);
}

/* Ends a block of 32: acc += d dx dot. */
INLINE floats add_block(floats d, const uint8_t *dx, ints dot, floats acc) {
    return fma_of(times(d, real(dx)), to_floats(dot), acc);
}
/* Ends a block of a table type: acc += d (dx dot). */
INLINE floats add_table(floats d, const uint8_t *dx, ints dot, floats acc) {
    return fma_of(d, times(real(dx), to_floats(dot)), acc);
}
/* How a block ends. */
enum ending { FACTORS, MINIMUM, TABLE }; /* acc += (d dx) dot; before it acc += (m dx) sum; acc += d (dx dot) */

/* `factor` times the sum of a block's quants, which lies in 16 bits. */
INLINE ints offset_of(const uint8_t *sum, int32_t factor) { return dot2(none(), all32(factor & 0xFFFF), word(sum)); }

/* Adds bias, then residual, and stores the lanes that are rows of the matrix. */
INLINE void finish(const struct sh_cpu_matmul *m, uint64_t row, uint32_t r, floats y) {
    const uint64_t at = r * m->w->rows + row, some = m->w->rows - row;
    if (m->bias != NULL) y = plus(y, load_some(m->bias + row, some));
    if (m->residual != NULL) y = plus(y, load_some(m->residual + at, some));
    store_some(m->out + at, some, y);
}

static void values_of(uint32_t type, struct rows *rows) {
    const struct sh_table_type *table = sh_table_type(type);
    if (table == NULL) return;
    for (int i = 0; i < 16; i++)
        if (table->values[i] < rows->lowest) rows->lowest = table->values[i];
    for (int i = 0; i < 16; i++) rows->values[i] = (uint8_t)(table->values[i] - rows->lowest);
}

/* What is added to the bytes of a block of 32 without minima. */
static int32_t lowest_of_32(uint32_t type, int32_t lowest_value) {
    return type == SH_TYPE_Q4_0 ? -8 : type == SH_TYPE_Q5_0 ? -16 : type == SH_TYPE_Q8_0 ? -128 : lowest_value;
}

/* ---- units ---- */

#define UNIT_BLOCKS 8 /* of 32, unpacked at a time; of 256: one */

/* What was unpacked. */
struct unit {
    uint8_t q[64][V];              /* vector j: elements 4j..4j + 3 of each row, made unsigned */
    int32_t scale[16][LANES];      /* of sub-blocks */
    int16_t minima[8][2 * LANES];  /* pairs, times the sums of the operand's quants */
    int16_t offsets[8][2 * LANES]; /* the same: what the bytes have too much, times the scales */
    float d[UNIT_BLOCKS][LANES], m[UNIT_BLOCKS][LANES];
};

/* ---- unpacking: w is the first block of a unit ---- */

/* `at`: of the first low nibbles; the high ones' vectors are `apart` further. */
INLINE void put_nibbles(struct unit *u, int at, int apart, ints packed) {
    store(u->q[at], low_nibbles(packed));
    store(u->q[at + apart], high_nibbles(packed));
}
INLINE void put_scales(struct unit *u, const uint8_t *scales, int n_pairs, bool negative) {
    for (int p = 0; p < n_pairs; p++) {
        const ints two = pairs(scales + 2 * LANES * p);
        store(u->scale[2 * p], negative ? first_s8(two) : first_u8(two));
        store(u->scale[2 * p + 1], negative ? second_s8(two) : second_u8(two));
    }
}
/* offsets = lowest * scale, which 16 bits hold: |lowest| <= 127, |scale| <= 128. */
INLINE void put_offsets(struct unit *u, const uint8_t *scales, int32_t lowest) {
    for (int p = 0; p < 8; p++) store(u->offsets[p], mul16(wide_s8(scales + 2 * LANES * p), all16(lowest)));
}
INLINE void put_k(struct unit *u, const uint8_t *w) {
    store_floats(u->d[0], load_halves(w));
    store_floats(u->m[0], load_halves(w + 2 * LANES));
}

INLINE void unpack_32(struct unit *u, const uint8_t *w, int n_blocks, const bool high, const bool min) {
    const int high_at = (min ? 4 : 2) * LANES, quants_at = high_at + (high ? V : 0);
    for (int k = 0; k < n_blocks; k++, w += quants_at + 4 * V) {
        const ints fifth = high ? load(w + high_at) : none();
        UNROLLED (v, 4) {
            const ints packed = load(w + quants_at + V * v);
            ints lo = low_nibbles(packed), hi = high_nibbles(packed);
            if (high) {
                lo = either(lo, both(left(fifth, 4 - v), all8(16)));
                hi = either(hi, both(right(fifth, v), all8(16)));
            }
            store(u->q[8 * k + v], lo);
            store(u->q[8 * k + 4 + v], hi);
        }
        store_floats(u->d[k], load_halves(w));
        if (min) store_floats(u->m[k], load_halves(w + 2 * LANES));
    }
}
INLINE void unpack_q8_0(struct unit *u, const uint8_t *w, int n_blocks) {
    for (int k = 0; k < n_blocks; k++, w += LANES * SH_LANES_Q8_0) {
        UNROLLED (v, 8) store(u->q[8 * k + v], flip(load(w + 2 * LANES + V * v), all8(-128)));
        store_floats(u->d[k], load_halves(w));
    }
}
INLINE void unpack_table_32(struct unit *u, const uint8_t *w, int n_blocks, const bool bfloat, const uint8_t *values) {
    for (int k = 0; k < n_blocks; k++, w += LANES * SH_LANES_TABLE_32) {
        UNROLLED (v, 4) {
            const ints packed = load(w + 2 * LANES + V * v);
            store(u->q[8 * k + v], look_up(values, low_nibbles(packed)));
            store(u->q[8 * k + 4 + v], look_up(values, high_nibbles(packed)));
        }
        store_floats(u->d[k], bfloat ? load_bfloats(w) : load_halves(w));
    }
}
INLINE void unpack_q4_k(struct unit *u, const uint8_t *w) {
    put_k(u, w);
    put_scales(u, w + 4 * LANES, 4, false);
    UNROLLED (p, 4) store(u->minima[p], wide_u8(w + 12 * LANES + 2 * LANES * p));
    for (int c = 0; c < 4; c++)
        UNROLLED (v, 8) put_nibbles(u, 16 * c + v, 8, load(w + 20 * LANES + V * (8 * c + v)));
}
INLINE void unpack_q5_k(struct unit *u, const uint8_t *w) {
    put_k(u, w);
    put_scales(u, w + 4 * LANES, 4, false);
    UNROLLED (p, 4) store(u->minima[p], wide_u8(w + 12 * LANES + 2 * LANES * p));
    UNROLLED (c, 4)
        UNROLLED (v, 8) {
            const ints packed = load(w + 52 * LANES + V * (8 * c + v)), top = right(load(w + 20 * LANES + V * v), 2 * c);
            store(u->q[16 * c + v], either(low_nibbles(packed), both(left(top, 4), all8(16))));
            store(u->q[16 * c + 8 + v], either(high_nibbles(packed), both(left(top, 3), all8(16))));
        }
}
/* Of half h: vector 8 a + v and, from the high nibbles, vector 16 + 8 a + v, 0..63. */
INLINE void vectors_of_q6_k(const uint8_t *w, int h, int a, int v, ints *low, ints *high) {
    const ints packed = load(w + 82 * LANES + V * (16 * h + 8 * a + v));
    const ints top = right(load(w + 18 * LANES + V * (8 * h + v)), 2 * a);
    *low = either(low_nibbles(packed), both(left(top, 4), all8(0x30)));
    *high = either(high_nibbles(packed), both(top, all8(0x30)));
}
INLINE void unpack_q6_k(struct unit *u, const uint8_t *w) {
    store_floats(u->d[0], load_halves(w));
    put_scales(u, w + 2 * LANES, 8, true);
    put_offsets(u, w + 2 * LANES, -32);
    for (int h = 0; h < 2; h++)
        UNROLLED (a, 2)
            UNROLLED (v, 8) {
                ints low, high;
                vectors_of_q6_k(w, h, a, v, &low, &high);
                store(u->q[32 * h + 8 * a + v], low);
                store(u->q[32 * h + 8 * a + 16 + v], high);
            }
}
INLINE void unpack_q2_k(struct unit *u, const uint8_t *w) {
    put_k(u, w);
    UNROLLED (p, 8) {
        const ints two = pairs(w + 4 * LANES + 2 * LANES * p);
        store(u->scale[2 * p], low_nibbles(first_u8(two)));
        store(u->scale[2 * p + 1], low_nibbles(second_u8(two)));
        store(u->minima[p], both(right(wide_u8(w + 4 * LANES + 2 * LANES * p), 4), all8(15)));
    }
    for (int h = 0; h < 2; h++)
        UNROLLED (r, 4)
            UNROLLED (v, 8) store(u->q[32 * h + 8 * r + v], both(right(load(w + 20 * LANES + V * (8 * h + v)), 2 * r), all8(3)));
}
INLINE void put_table(struct unit *u, const uint8_t *w, int32_t lowest) {
    store_floats(u->d[0], load_floats(w));
    put_scales(u, w + 4 * LANES, 8, true);
    put_offsets(u, w + 4 * LANES, lowest);
}
INLINE void unpack_table_16(struct unit *u, const uint8_t *w, const struct rows *rows) {
    put_table(u, w, rows->lowest);
    for (int c = 0; c < 4; c++)
        UNROLLED (v, 8) {
            const ints packed = load(w + 20 * LANES + V * (8 * c + v));
            store(u->q[16 * c + v], look_up(rows->values, low_nibbles(packed)));
            store(u->q[16 * c + 8 + v], look_up(rows->values, high_nibbles(packed)));
        }
}
INLINE void unpack_table_8(struct unit *u, const uint8_t *w, const struct rows *rows) {
    put_table(u, w, rows->lowest);
    for (int h = 0; h < 2; h++)
        UNROLLED (r, 4)
            UNROLLED (v, 8) {
                const ints low = both(right(load(w + 52 * LANES + V * (8 * h + v)), 2 * r), all8(3));
                const ints third = right(load(w + 20 * LANES + V * (4 * h + v % 4)), 2 * r + v / 4);
                store(u->q[32 * h + 8 * r + v], look_up(rows->values, either(low, both(left(third, 2), all8(4)))));
            }
}
INLINE void unpack_ternary(struct unit *u, const uint8_t *w) {
    store_floats(u->d[0], load_floats(w));
    for (int h = 0; h < 2; h++)
        UNROLLED (v, 8) {
            const ints four = load(w + 4 * LANES + V * (8 * h + v));
            UNROLLED (r, 4) store(u->q[32 * h + 8 * r + v], both(right(four, 2 * r), all8(3)));
        }
}

/* Bytes of `n_blocks` blocks of a unit. */
static void unpack_unit(uint32_t type, struct unit *u, const uint8_t *w, int n_blocks, const struct rows *rows) {
    switch (type) {
    case SH_TYPE_Q4_0: unpack_32(u, w, n_blocks, false, false); break;
    case SH_TYPE_Q4_1: unpack_32(u, w, n_blocks, false, true); break;
    case SH_TYPE_Q5_0: unpack_32(u, w, n_blocks, true, false); break;
    case SH_TYPE_Q5_1: unpack_32(u, w, n_blocks, true, true); break;
    case SH_TYPE_Q8_0: unpack_q8_0(u, w, n_blocks); break;
    case SH_TYPE_IQ4_NL: unpack_table_32(u, w, n_blocks, false, rows->values); break;
    case SH_TYPE_MXFP4: unpack_table_32(u, w, n_blocks, true, rows->values); break;
    case SH_TYPE_Q2_K: unpack_q2_k(u, w); break;
    case SH_TYPE_Q4_K: unpack_q4_k(u, w); break;
    case SH_TYPE_Q5_K: unpack_q5_k(u, w); break;
    case SH_TYPE_Q6_K: unpack_q6_k(u, w); break;
    case SH_TYPE_IQ3_XXS:
    case SH_TYPE_IQ3_S:
    case SH_TYPE_IQ4_XS: unpack_table_16(u, w, rows); break;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: unpack_ternary(u, w); break;
    default: unpack_table_8(u, w, rows); break;
    }
}

#endif
