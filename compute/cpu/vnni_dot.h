/*
 * vnni_dot.h - matrix products with instructions that multiply and add four bytes at once, for vectors of any width: a source
 * file includes a vector header (avx512_vector.h, avxvnni_vector.h), then this one, and gets `matmul`.
 *
 * The arithmetic is that of the AVX2 products (kernels.h), bit for bit: sums inside a block are exact integers here and there,
 * and the float operations on them are the same in the same order. Weights are made unsigned by adding -lowest to them, which
 * the sum of the operand's quants takes back.
 *
 * A dot product is of one group of LANES weight rows with `n` operand rows: acc[i] = the sums of operand row i. Weights are
 * unpacked once for all n. A sum of at most 32,767 meets its scale as a 16-bit number with dot2, whose second product is with 0;
 * larger ones need mul, which takes twice as long.
 */
#ifndef SHIMMY_CPU_VNNI_DOT_H
#define SHIMMY_CPU_VNNI_DOT_H

#include "compute/cpu/vnni_unit.h"

#define RESIDENT_BYTES (512u << 10) /* of operand rows that are walked again and again: they stay in the second-level cache */

/* ---- blocks of 32 ---- */

/* Quants of 4 bits, or 5 where `high`; with a minimum where `min`, else less `offset`. */
INLINE void dot_32(const uint8_t *w, const struct rows *rows, floats *acc, const int n, const bool high, const bool min,
                   const int offset) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    const int high_at = (min ? 4 : 2) * LANES, quants_at = high_at + (high ? V : 0);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += quants_at + 4 * V) {
        fetch_far(w, (uint32_t)quants_at + 4 * V);
        const ints fifth = high ? load(w + high_at) : none();
        ints dot[MAX_TILE];
        UNROLLED (i, n) dot[i] = min ? none() : offset_of(rows->x + i * rows->stride + sums + 4 * b, -offset);
        UNROLLED (v, 4) {
            const ints packed = load(w + quants_at + V * v);
            ints lo = low_nibbles(packed), hi = high_nibbles(packed);
            if (high) { /* bit v of a byte belongs to the low half, bit 4 + v to the high one */
                lo = either(lo, both(left(fifth, 4 - v), all8(16)));
                hi = either(hi, both(right(fifth, v), all8(16)));
            }
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                dot[i] = dot4(dot[i], lo, word(x));
                dot[i] = dot4(dot[i], hi, word(x + 16));
            }
        }
        const floats d = load_halves(w);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            if (min)
                acc[i] = fma_of(times(load_halves(w + 2 * LANES), real(x + scales + 4 * b)), to_floats(word(x + sums + 4 * b)),
                                acc[i]);
            acc[i] = add_block(d, x + scales + 4 * b, dot[i], acc[i]);
        }
    }
}
INLINE void dot_q4_0(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    dot_32(w, rows, acc, n, false, false, 8);
}
INLINE void dot_q4_1(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    dot_32(w, rows, acc, n, false, true, 0);
}
INLINE void dot_q5_0(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    dot_32(w, rows, acc, n, true, false, 16);
}
INLINE void dot_q5_1(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    dot_32(w, rows, acc, n, true, true, 0);
}

INLINE void dot_q8_0(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += LANES * SH_LANES_Q8_0) {
        fetch_far(w, LANES * SH_LANES_Q8_0);
        ints dot[MAX_TILE];
        UNROLLED (i, n) dot[i] = offset_of(rows->x + i * rows->stride + sums + 4 * b, -128);
        UNROLLED (v, 8) {
            const ints q = flip(load(w + 2 * LANES + V * v), all8(-128)); /* q + 128 */
            UNROLLED (i, n) dot[i] = dot4(dot[i], q, word(rows->x + i * rows->stride + 32 * b + 4 * v));
        }
        const floats d = load_halves(w);
        UNROLLED (i, n) acc[i] = add_block(d, rows->x + i * rows->stride + scales + 4 * b, dot[i], acc[i]);
    }
}

/* IQ4_NL, MXFP4 (`bfloat`: the kind of d). */
INLINE void dot_table_32(const uint8_t *w, const struct rows *rows, floats *acc, const int n, const bool bfloat) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += LANES * SH_LANES_TABLE_32) {
        fetch_far(w, LANES * SH_LANES_TABLE_32);
        ints dot[MAX_TILE];
        UNROLLED (i, n) dot[i] = offset_of(rows->x + i * rows->stride + sums + 4 * b, rows->lowest);
        UNROLLED (v, 4) {
            const ints packed = load(w + 2 * LANES + V * v);
            const ints lo = look_up(rows->values, low_nibbles(packed)), hi = look_up(rows->values, high_nibbles(packed));
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                dot[i] = dot4(dot[i], lo, word(x));
                dot[i] = dot4(dot[i], hi, word(x + 16));
            }
        }
        const floats d = bfloat ? load_bfloats(w) : load_halves(w);
        UNROLLED (i, n) acc[i] = add_table(d, rows->x + i * rows->stride + scales + 4 * b, dot[i], acc[i]);
    }
}
INLINE void dot_iq4_nl(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    dot_table_32(w, rows, acc, n, false);
}
INLINE void dot_mxfp4(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    dot_table_32(w, rows, acc, n, true);
}

/* ---- blocks of 256 ---- */

/* Ends a K block: acc += d dx sums - dmin dx mins, the mins' term first. */
INLINE void finish_k(const uint8_t *w, const uint8_t *x, uint64_t scale_at, ints mins, ints sums, floats *acc) {
    const floats dx = real(x + scale_at);
    *acc = fnma_of(times(load_halves(w + 2 * LANES), dx), to_floats(mins), *acc);
    *acc = fma_of(times(load_halves(w), dx), to_floats(sums), *acc);
}
INLINE void finish_eight(const uint8_t *w, const struct rows *rows, uint64_t b, const ints *sums, floats *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums32 = sh_lanes_sums32_at(rows->cols);
    ints mins[MAX_TILE];
    UNROLLED (i, n) mins[i] = none();
    UNROLLED (p, 4) {
        const ints m = wide_u8(w + 12 * LANES + 2 * LANES * p);
        UNROLLED (i, n) mins[i] = dot2(mins[i], m, word(rows->x + i * rows->stride + sums32 + 16 * b + 4 * p));
    }
    UNROLLED (i, n) finish_k(w, rows->x + i * rows->stride, scales + 4 * b, mins[i], sums[i], &acc[i]);
}

/* Half a sub-block is 16 * 15 * 127 = 30,480 at most. */
INLINE void dot_q4_k(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_Q4_K) {
        ints sums[MAX_TILE];
        UNROLLED (i, n) sums[i] = none();
        for (int c = 0; c < 4; c++) {
            const uint8_t *q = w + 20 * LANES + 8 * V * c;
            fetch(q, LANES * SH_LANES_Q4_K / 4);
            const ints scales = pairs(w + 4 * LANES + 2 * LANES * c);
            for (int part = 0; part < 2; part++)
                UNROLLED (high, 2) {
                    ints dot[MAX_TILE];
                    UNROLLED (i, n) dot[i] = none();
                    UNROLLED (v, 4) {
                        const ints packed = load(q + V * (4 * part + v)), q4 = high ? high_nibbles(packed) : low_nibbles(packed);
                        UNROLLED (i, n)
                            dot[i] = dot4(dot[i], q4,
                                          word(rows->x + i * rows->stride + 256 * b + 64 * c + 32 * high + 16 * part + 4 * v));
                    }
                    const ints scale = high ? second_u8(scales) : first_u8(scales);
                    UNROLLED (i, n) sums[i] = dot2(sums[i], dot[i], scale);
                }
        }
        finish_eight(w, rows, b, sums, acc, n);
    }
}

INLINE void dot_q5_k(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_Q5_K) {
        ints sums[MAX_TILE];
        UNROLLED (i, n) sums[i] = none();
        for (int c = 0; c < 4; c++) {
            const uint8_t *q = w + 52 * LANES + 8 * V * c;
            fetch(q, LANES * SH_LANES_Q5_K / 4);
            const ints scales = pairs(w + 4 * LANES + 2 * LANES * c);
            ints low[MAX_TILE], high[MAX_TILE];
            UNROLLED (i, n) low[i] = high[i] = none();
            UNROLLED (v, 8) {
                const ints packed = load(q + V * v);
                /* bits 2c and 2c + 1 of each byte, moved to bit 4: what comes in from the neighbouring byte is masked away */
                const ints top = right(load(w + 20 * LANES + V * v), 2 * c);
                const ints lo = either(low_nibbles(packed), both(left(top, 4), all8(16)));
                const ints hi = either(high_nibbles(packed), both(left(top, 3), all8(16)));
                UNROLLED (i, n) {
                    const uint8_t *x = rows->x + i * rows->stride + 256 * b + 64 * c + 4 * v;
                    low[i] = dot4(low[i], lo, word(x));
                    high[i] = dot4(high[i], hi, word(x + 32));
                }
            }
            UNROLLED (i, n) {
                sums[i] = add(sums[i], mul(low[i], first_u8(scales)));
                sums[i] = add(sums[i], mul(high[i], second_u8(scales)));
            }
        }
        finish_eight(w, rows, b, sums, acc, n);
    }
}

/* sums[i] = sum of scale * (sum of a sub-block's quants); `scales`: eight vectors of pairs. */
INLINE void scaled_sums(const uint8_t *scales, const struct rows *rows, uint64_t b, ints *sums, const int n) {
    const uint64_t sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols);
    UNROLLED (i, n) sums[i] = none();
    UNROLLED (p, 8) {
        const ints s = wide_s8(scales + 2 * LANES * p);
        UNROLLED (i, n) sums[i] = dot2(sums[i], s, word(rows->x + i * rows->stride + sums16 + 32 * b + 4 * p));
    }
}

/* Quants 0..63 stand for -32..31. Half h of a block: nibbles [a][v] and bit pairs [v]; low nibbles with bits 2a, 2a+1 are
 * elements 128h + 32a + 4v.., high nibbles with bits 2a+4, 2a+5 those 64 further. Element e belongs to sub-block e / 16. */
INLINE void dot_q6_k(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_Q6_K) {
        ints sums[MAX_TILE];
        scaled_sums(w + 2 * LANES, rows, b, sums, n);
        UNROLLED (i, n) sums[i] = sub(none(), left32(sums[i], 5));
        for (int part = 0; part < 4; part++) { /* 2h + a: 32 elements from low nibbles, 32 from high ones */
            const int h = part / 2, a = part % 2;
            const uint8_t *q = w + 82 * LANES + 8 * V * part, *top_bits = w + 18 * LANES + 8 * V * h;
            fetch(q, LANES * SH_LANES_Q6_K / 4);
            const ints low_scales = pairs(w + 2 * LANES * (1 + 4 * h + a)), high_scales = pairs(w + 2 * LANES * (3 + 4 * h + a));
            for (int second = 0; second < 2; second++) {
                const ints low_scale = second ? second_s8(low_scales) : first_s8(low_scales);
                const ints high_scale = second ? second_s8(high_scales) : first_s8(high_scales);
                ints low[MAX_TILE], high[MAX_TILE];
                UNROLLED (i, n) low[i] = high[i] = none();
                UNROLLED (u, 4) {
                    const int v = 4 * second + u;
                    const ints packed = load(q + V * v), top = right(load(top_bits + V * v), 2 * a);
                    const ints lo = either(low_nibbles(packed), both(left(top, 4), all8(0x30)));
                    const ints hi = either(high_nibbles(packed), both(top, all8(0x30)));
                    UNROLLED (i, n) {
                        const uint8_t *x = rows->x + i * rows->stride + 256 * b + 128 * h + 32 * a + 4 * v;
                        low[i] = dot4(low[i], lo, word(x));
                        high[i] = dot4(high[i], hi, word(x + 64));
                    }
                }
                UNROLLED (i, n) {
                    sums[i] = add(sums[i], mul(low[i], low_scale));
                    sums[i] = add(sums[i], mul(high[i], high_scale));
                }
            }
        }
        const floats d = load_halves(w);
        UNROLLED (i, n) acc[i] = add_block(d, rows->x + i * rows->stride + scales + 4 * b, sums[i], acc[i]);
    }
}

/* Q2_K: bit pairs as in a table of 8, scales 0..15 in the low halves of their bytes, mins in the high ones. A sub-block is
 * 16 * 3 * 127 = 6,096 at most. */
INLINE void dot_q2_k(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_Q2_K) {
        ints sums[MAX_TILE], mins[MAX_TILE];
        UNROLLED (i, n) sums[i] = mins[i] = none();
        for (int h = 0; h < 2; h++) {
            const uint8_t *q = w + 20 * LANES + 8 * V * h;
            fetch(q, LANES * SH_LANES_Q2_K / 2);
            for (int r = 0; r < 4; r++) {
                const ints scale = low_nibbles(pairs(w + 4 * LANES + 2 * LANES * (4 * h + r)));
                UNROLLED (second, 2) {
                    ints dot[MAX_TILE];
                    UNROLLED (i, n) dot[i] = none();
                    UNROLLED (u, 4) {
                        const int v = 4 * second + u;
                        const ints two = both(right(load(q + V * v), 2 * r), all8(3));
                        UNROLLED (i, n)
                            dot[i] = dot4(dot[i], two, word(rows->x + i * rows->stride + 256 * b + 128 * h + 32 * r + 4 * v));
                    }
                    UNROLLED (i, n) sums[i] = dot2(sums[i], dot[i], second ? second_u8(scale) : first_u8(scale));
                }
            }
        }
        UNROLLED (p, 8) {
            const ints m = both(right(wide_u8(w + 4 * LANES + 2 * LANES * p), 4), all8(15));
            UNROLLED (i, n) mins[i] = dot2(mins[i], m, word(rows->x + i * rows->stride + sums16 + 32 * b + 4 * p));
        }
        UNROLLED (i, n) finish_k(w, rows->x + i * rows->stride, scales + 4 * b, mins[i], sums[i], &acc[i]);
    }
}

/* Starts the sums of a block of 256 of a table type: lowest * (sum of scale * sum of quants). */
INLINE void start_table(const uint8_t *w, const struct rows *rows, uint64_t b, ints *sums, const int n) {
    scaled_sums(w + 4 * LANES, rows, b, sums, n);
    UNROLLED (i, n) sums[i] = mul(sums[i], all32(rows->lowest));
}
INLINE void finish_table(const uint8_t *w, const struct rows *rows, uint64_t b, const ints *sums, floats *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols);
    const floats d = load_floats(w);
    UNROLLED (i, n) acc[i] = add_table(d, rows->x + i * rows->stride + scales + 4 * b, sums[i], acc[i]);
}

INLINE void dot_table_16(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_TABLE_16) {
        ints sums[MAX_TILE];
        start_table(w, rows, b, sums, n);
        for (int c = 0; c < 4; c++) { /* 32 elements from low nibbles, 32 from high ones */
            const uint8_t *q = w + 20 * LANES + 8 * V * c;
            fetch(q, LANES * SH_LANES_TABLE_16 / 4);
            const ints low_scales = pairs(w + 4 * LANES * (1 + c)), high_scales = pairs(w + 4 * LANES * (1 + c) + 2 * LANES);
            for (int second = 0; second < 2; second++) {
                const ints low_scale = second ? second_s8(low_scales) : first_s8(low_scales);
                const ints high_scale = second ? second_s8(high_scales) : first_s8(high_scales);
                ints low[MAX_TILE], high[MAX_TILE];
                UNROLLED (i, n) low[i] = high[i] = none();
                UNROLLED (u, 4) {
                    const int v = 4 * second + u;
                    const ints packed = load(q + V * v);
                    const ints lo = look_up(rows->values, low_nibbles(packed)), hi = look_up(rows->values, high_nibbles(packed));
                    UNROLLED (i, n) {
                        const uint8_t *x = rows->x + i * rows->stride + 256 * b + 64 * c + 4 * v;
                        low[i] = dot4(low[i], lo, word(x));
                        high[i] = dot4(high[i], hi, word(x + 32));
                    }
                }
                UNROLLED (i, n) {
                    sums[i] = add(sums[i], mul(low[i], low_scale));
                    sums[i] = add(sums[i], mul(high[i], high_scale));
                }
            }
        }
        finish_table(w, rows, b, sums, acc, n);
    }
}

/* Bit pairs [half][8], run r of 32 elements at pair r of each byte; third bits [half][4]: of vector v of run r in vector v %
 * 4, bit 2r + v / 4. */
INLINE void dot_table_8(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_TABLE_8) {
        ints sums[MAX_TILE];
        start_table(w, rows, b, sums, n);
        for (int h = 0; h < 2; h++) {
            const uint8_t *third = w + 20 * LANES + 4 * V * h, *q = w + 52 * LANES + 8 * V * h;
            fetch(third, 4 * V);
            fetch(q, 8 * V + 10 * LANES);
            for (int r = 0; r < 4; r++) {
                const ints scale = pairs(w + 4 * LANES + 2 * LANES * (4 * h + r));
                UNROLLED (second, 2) {
                    ints dot[MAX_TILE];
                    UNROLLED (i, n) dot[i] = none();
                    UNROLLED (u, 4) {
                        const int v = 4 * second + u;
                        const ints low = both(right(load(q + V * v), 2 * r), all8(3));
                        const ints top = both(left(right(load(third + V * u), 2 * r + second), 2), all8(4));
                        const ints value = look_up(rows->values, either(low, top));
                        UNROLLED (i, n)
                            dot[i] = dot4(dot[i], value, word(rows->x + i * rows->stride + 256 * b + 128 * h + 32 * r + 4 * v));
                    }
                    UNROLLED (i, n) sums[i] = add(sums[i], mul(dot[i], second ? second_s8(scale) : first_s8(scale)));
                }
            }
        }
        finish_table(w, rows, b, sums, acc, n);
    }
}

/* Bit pairs 0..3 stand for -1..2, without scales. */
INLINE void dot_ternary(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {
    const uint64_t sums32 = sh_lanes_sums32_at(rows->cols);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += LANES * SH_LANES_TERNARY) {
        ints dot[MAX_TILE];
        UNROLLED (i, n) dot[i] = none();
        UNROLLED (p, 4)
            UNROLLED (i, n) dot[i] = dot2(dot[i], all32(-1), word(rows->x + i * rows->stride + sums32 + 16 * b + 4 * p));
        for (int h = 0; h < 2; h++) {
            const uint8_t *q = w + 4 * LANES + 8 * V * h;
            fetch(q, LANES * SH_LANES_TERNARY / 2);
            for (int v = 0; v < 8; v++) {
                const ints four = load(q + V * v);
                UNROLLED (r, 4) {
                    const ints two = both(right(four, 2 * r), all8(3));
                    UNROLLED (i, n)
                        dot[i] = dot4(dot[i], two, word(rows->x + i * rows->stride + 256 * b + 128 * h + 32 * r + 4 * v));
                }
            }
        }
        finish_table(w, rows, b, dot, acc, n);
    }
}

/* ---- floats: four chains per output, by k mod 4, joined as (0 + 1) + (2 + 3) ---- */

#define DOT_FLOATS(name, weights, bytes)                                                                                         \
    INLINE void name(const uint8_t *w, const struct rows *rows, floats *acc, const int n) {                                      \
        floats c[FLOAT_TILE][4];                                                                                                 \
        UNROLLED (i, n)                                                                                                          \
            UNROLLED (j, 4) c[i][j] = zeros();                                                                                   \
        for (uint64_t k = 0; k < rows->cols; k += 4, w += 4 * LANES * (bytes)) {                                                 \
            fetch(w, 4 * LANES * (bytes));                                                                                       \
            UNROLLED (j, 4) {                                                                                                    \
                const floats wk = weights(w + j * LANES * (bytes));                                                              \
                UNROLLED (i, n) c[i][j] = fma_of(wk, real(rows->x + i * rows->stride + 4 * (k + (uint64_t)j)), c[i][j]);         \
            }                                                                                                                    \
        }                                                                                                                        \
        UNROLLED (i, n) acc[i] = plus(plus(c[i][0], c[i][1]), plus(c[i][2], c[i][3]));                                           \
    }
DOT_FLOATS(dot_f32, load_floats, 4)
DOT_FLOATS(dot_f16, load_halves, 2)
DOT_FLOATS(dot_bf16, load_bfloats, 2)

/* ---- tiles ---- */

typedef void tile_fn(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r, const struct rows *rows);

#define TILE(dot, n)                                                                                                             \
    static void dot##_##n(const struct sh_cpu_matmul *m, uint64_t group, uint64_t group_bytes, uint32_t r,                       \
                          const struct rows *rows) {                                                                             \
        floats acc[n];                                                                                                           \
        UNROLLED (i, n) acc[i] = zeros();                                                                                        \
        dot((const uint8_t *)m->w->data + group * group_bytes, rows, acc, n);                                                    \
        UNROLLED (i, n) finish(m, group *LANES, r + (uint32_t)i, acc[i]);                                                        \
    }

/* of[n - 1] computes n operand rows; NULL: not by one tile. The types that most models have get every width; the others have
 * one and two rows here, more by vnni_wide.h. */
struct tiles {
    tile_fn *of[MAX_TILE];
};
#define SOME_TILES(dot) TILE(dot, 1) TILE(dot, 2)
#define SOME_TILES_OF(dot) ((struct tiles){{dot##_1, dot##_2}})
#if MAX_TILE == 8
#define ALL_TILES(dot) TILE(dot, 1) TILE(dot, 2) TILE(dot, 3) TILE(dot, 4) TILE(dot, 5) TILE(dot, 6) TILE(dot, 7) TILE(dot, 8)
#define ALL_TILES_OF(dot) ((struct tiles){{dot##_1, dot##_2, dot##_3, dot##_4, dot##_5, dot##_6, dot##_7, dot##_8}})
#define FLOAT_TILES(dot) TILE(dot, 1) TILE(dot, 2) TILE(dot, 4)
#define FLOAT_TILES_OF(dot) ((struct tiles){{dot##_1, dot##_2, NULL, dot##_4}})
#else
#define ALL_TILES(dot) TILE(dot, 1) TILE(dot, 2) TILE(dot, 3) TILE(dot, 4)
#define ALL_TILES_OF(dot) ((struct tiles){{dot##_1, dot##_2, dot##_3, dot##_4}})
#define FLOAT_TILES(dot) TILE(dot, 1) TILE(dot, 2)
#define FLOAT_TILES_OF(dot) ((struct tiles){{dot##_1, dot##_2}})
#endif

FLOAT_TILES(dot_f32)
FLOAT_TILES(dot_f16)
FLOAT_TILES(dot_bf16)
ALL_TILES(dot_q4_0)
SOME_TILES(dot_q4_1)
SOME_TILES(dot_q5_0)
SOME_TILES(dot_q5_1)
ALL_TILES(dot_q8_0)
SOME_TILES(dot_q2_k)
ALL_TILES(dot_q4_k)
ALL_TILES(dot_q5_k)
ALL_TILES(dot_q6_k)
SOME_TILES(dot_iq4_nl)
SOME_TILES(dot_mxfp4)
SOME_TILES(dot_table_16)
SOME_TILES(dot_table_8)
SOME_TILES(dot_ternary)

static struct tiles tiles_of(uint32_t type) {
    switch (type) {
    case SH_TYPE_F32: return FLOAT_TILES_OF(dot_f32);
    case SH_TYPE_F16: return FLOAT_TILES_OF(dot_f16);
    case SH_TYPE_BF16: return FLOAT_TILES_OF(dot_bf16);
    case SH_TYPE_Q4_0: return ALL_TILES_OF(dot_q4_0);
    case SH_TYPE_Q4_1: return SOME_TILES_OF(dot_q4_1);
    case SH_TYPE_Q5_0: return SOME_TILES_OF(dot_q5_0);
    case SH_TYPE_Q5_1: return SOME_TILES_OF(dot_q5_1);
    case SH_TYPE_Q8_0: return ALL_TILES_OF(dot_q8_0);
    case SH_TYPE_Q2_K: return SOME_TILES_OF(dot_q2_k);
    case SH_TYPE_Q4_K: return ALL_TILES_OF(dot_q4_k);
    case SH_TYPE_Q5_K: return ALL_TILES_OF(dot_q5_k);
    case SH_TYPE_Q6_K: return ALL_TILES_OF(dot_q6_k);
    case SH_TYPE_IQ4_NL: return SOME_TILES_OF(dot_iq4_nl);
    case SH_TYPE_MXFP4: return SOME_TILES_OF(dot_mxfp4);
    case SH_TYPE_IQ3_XXS:
    case SH_TYPE_IQ3_S:
    case SH_TYPE_IQ4_XS: return SOME_TILES_OF(dot_table_16);
    case SH_TYPE_IQ1_S:
    case SH_TYPE_IQ1_M:
    case SH_TYPE_IQ2_XXS:
    case SH_TYPE_IQ2_XS:
    case SH_TYPE_IQ2_S:
    case SH_TYPE_Q3_K: return SOME_TILES_OF(dot_table_8);
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return SOME_TILES_OF(dot_ternary);
    default: break;
    }
    SH_ASSERT(false);
    return (struct tiles){{NULL}};
}

#endif
