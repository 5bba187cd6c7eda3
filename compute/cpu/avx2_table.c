/* Products of the AVX2 table for the types with few bits: Q4_1, Q5_0, Q5_1, Q2_K and the table types. Bounds: an operand's quant
 * is at most 127, a multiply-add of bytes makes pairs of products. */
#include "compute/cpu/avx2_dot.h"

INLINE __m256i shifted(__m256i v, int left) { /* left < 0: right. Bits cross bytes: to be masked */
    return left > 0 ? _mm256_slli_epi16(v, left) : left < 0 ? _mm256_srli_epi16(v, -left) : v;
}
INLINE __m256i bits(__m256i v, char mask) { return _mm256_and_si256(v, _mm256_set1_epi8(mask)); }
INLINE __m256i lookup_of(const struct rows *rows) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)rows->lookup->values));
}
INLINE __m256 bfloats(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
/* Pairs of products of signed values, |v| <= 127. */
INLINE __m256i signed_pairs(__m256i v, __m256i x) { return _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x, v)); }

/* Q4_1, Q5_0, Q5_1: quants of 4 bits, or 5 where `high`; `min`, or quants that stand for -16..15. Four vectors,
 * 4 * 2 * 31 * 127 = 31,496, fit into 16 bits. */
INLINE void dot_five(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n, const bool high, const bool min) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    const int high_at = min ? 32 : 16, quants_at = high_at + (high ? 32 : 0);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += quants_at + 128) {
        fetch(w, (uint32_t)quants_at + 128);
        const __m256i fifth = high ? load(w + high_at) : _mm256_setzero_si256();
        __m256i even[MAX_TILE], odd[MAX_TILE];
        UNROLLED (i, n) even[i] = odd[i] = _mm256_setzero_si256();
        UNROLLED (v, 4) {
            const __m256i both = load(w + quants_at + 32 * v);
            __m256i lo = low_nibbles(both), hi = high_nibbles(both);
            if (high) { /* bit v of a byte belongs to the low half, bit 4 + v to the high one */
                lo = _mm256_or_si256(lo, bits(shifted(fifth, 4 - v), 16));
                hi = _mm256_or_si256(hi, bits(shifted(fifth, -v), 16));
            }
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                even[i] = _mm256_add_epi16(even[i], _mm256_maddubs_epi16(lo, word(x)));
                odd[i] = _mm256_add_epi16(odd[i], _mm256_maddubs_epi16(hi, word(x + 16)));
            }
        }
        const __m256 d = halves(w);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            const __m256i sum = word(x + sums + 4 * b);
            const __m256 dx = _mm256_set1_ps(real(x + scales + 4 * b));
            __m256i dot = _mm256_add_epi32(pairs_to_sum(even[i]), pairs_to_sum(odd[i]));
            if (min) acc[i] = _mm256_fmadd_ps(_mm256_mul_ps(halves(w + 16), dx), _mm256_cvtepi32_ps(sum), acc[i]);
            else dot = _mm256_sub_epi32(dot, _mm256_slli_epi32(sum, 4));
            acc[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(dot), acc[i]);
        }
    }
}
INLINE void dot_q4_1(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    dot_five(w, rows, acc, n, false, true);
}
INLINE void dot_q5_0(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    dot_five(w, rows, acc, n, true, false);
}
INLINE void dot_q5_1(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    dot_five(w, rows, acc, n, true, true);
}

/* Ends a block of a table type: acc += d (dx dot). */
INLINE __m256 add_table(__m256 d, float dx, __m256i dot, __m256 acc) {
    return _mm256_fmadd_ps(d, _mm256_mul_ps(_mm256_set1_ps(dx), _mm256_cvtepi32_ps(dot)), acc);
}

/* IQ4_NL: values up to 127, every pair, 2 * 127 * 127 = 32,258, is widened before it is added. */
INLINE void dot_iq4_nl(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols);
    const __m256i values = lookup_of(rows);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += 8 * SH_LANES_TABLE_32) {
        fetch(w, 8 * SH_LANES_TABLE_32);
        __m256i dot[MAX_TILE];
        UNROLLED (i, n) dot[i] = _mm256_setzero_si256();
        UNROLLED (v, 4) {
            const __m256i both = load(w + 16 + 32 * v);
            const __m256i lo = _mm256_shuffle_epi8(values, low_nibbles(both)),
                          hi = _mm256_shuffle_epi8(values, high_nibbles(both));
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                dot[i] = _mm256_add_epi32(dot[i], pairs_to_sum(signed_pairs(lo, word(x))));
                dot[i] = _mm256_add_epi32(dot[i], pairs_to_sum(signed_pairs(hi, word(x + 16))));
            }
        }
        const __m256 d = halves(w);
        UNROLLED (i, n) acc[i] = add_table(d, real(rows->x + i * rows->stride + scales + 4 * b), dot[i], acc[i]);
    }
}

/* MXFP4: values 0..24 stand for -12..12; four vectors, 4 * 2 * 24 * 127 = 24,384, fit into 16 bits. */
INLINE void dot_mxfp4(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    const __m256i values = lookup_of(rows), lowest = _mm256_set1_epi32(rows->lookup->lowest);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += 8 * SH_LANES_TABLE_32) {
        fetch(w, 8 * SH_LANES_TABLE_32);
        __m256i even[MAX_TILE], odd[MAX_TILE];
        UNROLLED (i, n) even[i] = odd[i] = _mm256_setzero_si256();
        UNROLLED (v, 4) {
            const __m256i both = load(w + 16 + 32 * v);
            const __m256i lo = _mm256_shuffle_epi8(values, low_nibbles(both)),
                          hi = _mm256_shuffle_epi8(values, high_nibbles(both));
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                even[i] = _mm256_add_epi16(even[i], _mm256_maddubs_epi16(lo, word(x)));
                odd[i] = _mm256_add_epi16(odd[i], _mm256_maddubs_epi16(hi, word(x + 16)));
            }
        }
        const __m256 d = bfloats(w);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            __m256i dot = _mm256_add_epi32(pairs_to_sum(even[i]), pairs_to_sum(odd[i]));
            dot = _mm256_add_epi32(dot, _mm256_mullo_epi32(lowest, word(x + sums + 4 * b)));
            acc[i] = add_table(d, real(x + scales + 4 * b), dot, acc[i]);
        }
    }
}

/* Ends a block of 256: adds lowest * (sum of scale * sum of quants), then acc += d (dx dot). */
INLINE void finish_table(const uint8_t *w, const struct rows *rows, uint64_t b, const __m256i *dots, __m256 *acc, const int n,
                         const bool offset) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols);
    const __m256i lowest = _mm256_set1_epi32(rows->lookup->lowest);
    const __m256 d = _mm256_loadu_ps((const void *)w);
    UNROLLED (i, n) {
        const uint8_t *x = rows->x + i * rows->stride;
        __m256i dot = dots[i];
        if (offset) {
            __m256i sum = _mm256_setzero_si256();
            UNROLLED (p, 8) {
                const __m256i s = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 32 + 16 * p)));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(s, word(x + sums16 + 32 * b + 4 * p)));
            }
            dot = _mm256_add_epi32(dot, _mm256_mullo_epi32(lowest, sum));
        }
        acc[i] = add_table(d, real(x + scales + 4 * b), dot, acc[i]);
    }
}

/* Tables of 16 values. `run`: how many pairs may be added in 16 bits; 4 with values from 0 to 31 (31,496), 1 from 0 to 124
 * (2 * 124 * 127 = 31,496), 0 for signed values up to 127. */
INLINE void dot_table_16(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n, const int run) {
    const __m256i values = lookup_of(rows);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_TABLE_16) {
        __m256i dots[MAX_TILE];
        UNROLLED (i, n) dots[i] = _mm256_setzero_si256();
        for (int c = 0; c < 4; c++) { /* 32 elements from low nibbles, 32 from high ones */
            const uint8_t *q = w + 160 + 256 * c;
            fetch(q, 2 * SH_LANES_TABLE_16);
            const __m256i low_pair = pair_of(w + 32 + 32 * c), high_pair = pair_of(w + 48 + 32 * c);
            UNROLLED (sub, 2) {
                const __m256i low_scale = signed_scale_of(low_pair, sub), high_scale = signed_scale_of(high_pair, sub);
                __m256i low[MAX_TILE], high[MAX_TILE];
                UNROLLED (i, n) low[i] = high[i] = _mm256_setzero_si256();
                UNROLLED (u, 4) {
                    const int v = 4 * sub + u;
                    const __m256i both = load(q + 32 * v);
                    const __m256i lo = _mm256_shuffle_epi8(values, low_nibbles(both)),
                                  hi = _mm256_shuffle_epi8(values, high_nibbles(both));
                    UNROLLED (i, n) {
                        const uint8_t *x = rows->x + i * rows->stride + 256 * b + 64 * c + 4 * v;
                        const __m256i first = run == 0 ? signed_pairs(lo, word(x)) : _mm256_maddubs_epi16(lo, word(x));
                        const __m256i second = run == 0 ? signed_pairs(hi, word(x + 32)) : _mm256_maddubs_epi16(hi, word(x + 32));
                        if (run == 4) {
                            low[i] = _mm256_add_epi16(low[i], first);
                            high[i] = _mm256_add_epi16(high[i], second);
                        } else {
                            dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(first, low_scale));
                            dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(second, high_scale));
                        }
                    }
                }
                if (run == 4)
                    UNROLLED (i, n) {
                        dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(low[i], low_scale));
                        dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(high[i], high_scale));
                    }
            }
        }
        finish_table(w, rows, b, dots, acc, n, run != 0);
    }
}
INLINE void dot_iq4_xs(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) { dot_table_16(w, rows, acc, n, 0); }
INLINE void dot_iq3_xxs(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) { dot_table_16(w, rows, acc, n, 1); }
INLINE void dot_iq3_s(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) { dot_table_16(w, rows, acc, n, 4); }

/* Tables of 8 values: bit pairs [half][8], run r of 32 elements at pair r of each byte; third bits [half][4]: of vector v of run
 * r in vector v % 4, bit 2r + v / 4. `run` as above: 4 with values from 0 to 31, 1 from 0 to 124. */
INLINE void dot_table_8(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n, const int run) {
    const __m256i values = lookup_of(rows);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_TABLE_8) {
        __m256i dots[MAX_TILE];
        UNROLLED (i, n) dots[i] = _mm256_setzero_si256();
        for (int h = 0; h < 2; h++) {
            const uint8_t *third = w + 160 + 128 * h, *pairs = w + 416 + 256 * h;
            fetch(third, 128);
            fetch(pairs, 256 + 80);
            UNROLLED (r, 4) {
                const __m256i pair = pair_of(w + 32 + 16 * (4 * h + r));
                UNROLLED (sub, 2) {
                    const __m256i scale = signed_scale_of(pair, sub);
                    __m256i sum[MAX_TILE];
                    UNROLLED (i, n) sum[i] = _mm256_setzero_si256();
                    UNROLLED (u, 4) {
                        const int v = 4 * sub + u;
                        const __m256i low = bits(shifted(load(pairs + 32 * v), -2 * r), 3);
                        const __m256i top = bits(shifted(load(third + 32 * u), 2 - 2 * r - sub), 4);
                        const __m256i value = _mm256_shuffle_epi8(values, _mm256_or_si256(low, top));
                        UNROLLED (i, n) {
                            const uint8_t *x = rows->x + i * rows->stride + 256 * b + 128 * h + 32 * r + 4 * v;
                            const __m256i products = _mm256_maddubs_epi16(value, word(x));
                            if (run == 4) sum[i] = _mm256_add_epi16(sum[i], products);
                            else dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(products, scale));
                        }
                    }
                    if (run == 4)
                        UNROLLED (i, n) dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(sum[i], scale));
                }
            }
        }
        finish_table(w, rows, b, dots, acc, n, true);
    }
}
INLINE void dot_iq2(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) { dot_table_8(w, rows, acc, n, 1); }
INLINE void dot_narrow_8(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) { dot_table_8(w, rows, acc, n, 4); }

/* Ternary: bit pairs 0..3 stand for -1..2, without scales. Half a block, 32 * 2 * 3 * 127 = 24,384, fits into 16 bits. */
INLINE void dot_ternary(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums32 = sh_lanes_sums32_at(rows->cols);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_TERNARY) {
        __m256i dots[MAX_TILE];
        UNROLLED (i, n) dots[i] = _mm256_setzero_si256();
        for (int h = 0; h < 2; h++) {
            const uint8_t *pairs = w + 32 + 256 * h;
            fetch(pairs, 4 * SH_LANES_TERNARY);
            __m256i sum[MAX_TILE];
            UNROLLED (i, n) sum[i] = _mm256_setzero_si256();
            UNROLLED (v, 8) {
                const __m256i four = load(pairs + 32 * v);
                UNROLLED (r, 4) {
                    const __m256i q = bits(shifted(four, -2 * r), 3);
                    UNROLLED (i, n) {
                        const uint8_t *x = rows->x + i * rows->stride + 256 * b + 128 * h + 32 * r + 4 * v;
                        sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(q, word(x)));
                    }
                }
            }
            UNROLLED (i, n) dots[i] = _mm256_add_epi32(dots[i], pairs_to_sum(sum[i]));
        }
        const __m256 d = _mm256_loadu_ps((const void *)w);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            __m128i sum = _mm_madd_epi16(_mm_loadu_si128((const void *)(x + sums32 + 16 * b)), _mm_set1_epi16(1));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
            acc[i] = add_table(d, real(x + scales + 4 * b), _mm256_sub_epi32(dots[i], _mm256_broadcastd_epi32(sum)), acc[i]);
        }
    }
}

/* Q2_K: bit pairs as in a table of 8, scales 0..15 in the low halves of their bytes, mins in the high ones. */
INLINE void dot_q2_k(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_Q2_K) {
        __m256i dots[MAX_TILE];
        UNROLLED (i, n) dots[i] = _mm256_setzero_si256();
        for (int h = 0; h < 2; h++) {
            const uint8_t *pairs = w + 160 + 256 * h;
            fetch(pairs, 4 * SH_LANES_Q2_K);
            UNROLLED (r, 4) {
                const __m256i pair = low_nibbles(pair_of(w + 32 + 16 * (4 * h + r)));
                UNROLLED (sub, 2) {
                    const __m256i scale = scale_of(pair, sub);
                    __m256i sum[MAX_TILE];
                    UNROLLED (i, n) sum[i] = _mm256_setzero_si256();
                    UNROLLED (u, 4) {
                        const int v = 4 * sub + u;
                        const __m256i q = bits(shifted(load(pairs + 32 * v), -2 * r), 3);
                        UNROLLED (i, n) {
                            const uint8_t *x = rows->x + i * rows->stride + 256 * b + 128 * h + 32 * r + 4 * v;
                            sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(q, word(x)));
                        }
                    }
                    UNROLLED (i, n) dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(sum[i], scale));
                }
            }
        }
        const __m256 d = halves(w), dmin = halves(w + 16);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            __m256i mins = _mm256_setzero_si256();
            UNROLLED (p, 8) {
                const __m256i m = high_nibbles(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(w + 32 + 16 * p))));
                mins = _mm256_add_epi32(mins, _mm256_madd_epi16(m, word(x + sums16 + 32 * b + 4 * p)));
            }
            const __m256 dx = _mm256_set1_ps(real(x + scales + 4 * b));
            acc[i] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, dx), _mm256_cvtepi32_ps(mins), acc[i]);
            acc[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(dots[i]), acc[i]);
        }
    }
}

#define EVEN_TILES(dot) TILE(dot, 1) TILE(dot, 2) TILE(dot, 4) /* three at once are rare, and code */
EVEN_TILES(dot_q4_1)
EVEN_TILES(dot_q5_0)
EVEN_TILES(dot_q5_1)
EVEN_TILES(dot_iq4_nl)
EVEN_TILES(dot_mxfp4)
EVEN_TILES(dot_iq4_xs)
EVEN_TILES(dot_iq3_xxs)
EVEN_TILES(dot_iq3_s)
EVEN_TILES(dot_iq2)
EVEN_TILES(dot_narrow_8)
EVEN_TILES(dot_ternary)
EVEN_TILES(dot_q2_k)

#define TILES_OF(dot) ((struct tiles){{dot##_1, dot##_2, NULL, dot##_4}})
bool sh_avx2_table_tiles(uint32_t type, struct tiles *out) {
    switch (type) {
    case SH_TYPE_Q4_1: *out = TILES_OF(dot_q4_1); return true;
    case SH_TYPE_Q5_0: *out = TILES_OF(dot_q5_0); return true;
    case SH_TYPE_Q5_1: *out = TILES_OF(dot_q5_1); return true;
    case SH_TYPE_IQ4_NL: *out = TILES_OF(dot_iq4_nl); return true;
    case SH_TYPE_MXFP4: *out = TILES_OF(dot_mxfp4); return true;
    case SH_TYPE_IQ4_XS: *out = TILES_OF(dot_iq4_xs); return true;
    case SH_TYPE_IQ3_XXS: *out = TILES_OF(dot_iq3_xxs); return true;
    case SH_TYPE_IQ3_S: *out = TILES_OF(dot_iq3_s); return true;
    case SH_TYPE_IQ2_XXS:
    case SH_TYPE_IQ2_XS:
    case SH_TYPE_IQ2_S: *out = TILES_OF(dot_iq2); return true;
    case SH_TYPE_IQ1_S:
    case SH_TYPE_IQ1_M:
    case SH_TYPE_Q3_K: *out = TILES_OF(dot_narrow_8); return true;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: *out = TILES_OF(dot_ternary); return true;
    case SH_TYPE_Q2_K: *out = TILES_OF(dot_q2_k); return true;
    default: return false;
    }
}
