#include "compute/cpu/avx2_matmul.h"

#include "compute/cpu/avx2_dot.h"

/* Activation rows whose operands are walked again and again for the groups of a piece: they stay in the second-level cache. */
#define RESIDENT_BYTES (256u << 10)

/* ---- operands ---- */

/* Scale of a block with that largest magnitude, and the factor that makes quants of it. */
INLINE void block_scale(float most, float *scale, __m256 *inverse) {
    *scale = most / 127.0f;
    *inverse = _mm256_set1_ps(most >= 0x1p-119f ? 127.0f / most : 0.0f); /* finite */
}

INLINE __m256 magnitude(const float *x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x)); }

/* Quants of 16 floats, to nearest even; returns their sum. */
INLINE int32_t quantise16(const float *x, __m256 inverse, int8_t *out) {
    const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
    const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)out, bytes);
    const __m256i pairs = _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), _mm256_set1_epi16(1));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

static void prepare_32(const float *x, uint64_t cols, uint8_t *out) {
    int8_t *q = (int8_t *)out;
    float *scales = (float *)(void *)(out + sh_lanes_scales_at(cols));
    int32_t *sums = (int32_t *)(void *)(out + sh_lanes_sums_at(SH_LANES_Q8_32, cols));
    for (uint64_t b = 0; b < cols / 32; b++, x += 32, q += 32) {
        const __m256 m =
            _mm256_max_ps(_mm256_max_ps(magnitude(x), magnitude(x + 8)), _mm256_max_ps(magnitude(x + 16), magnitude(x + 24)));
        __m256 inverse;
        block_scale(sh_avx2_max(m), &scales[b], &inverse);
        sums[b] = quantise16(x, inverse, q) + quantise16(x + 16, inverse, q + 16);
    }
}

static void prepare_256(const float *x, uint64_t cols, uint8_t *out) {
    int8_t *q = (int8_t *)out;
    float *scales = (float *)(void *)(out + sh_lanes_scales_at(cols));
    int16_t *sums16 = (int16_t *)(void *)(out + sh_lanes_sums_at(SH_LANES_Q8_256, cols));
    int16_t *sums32 = (int16_t *)(void *)(out + sh_lanes_sums32_at(cols));
    for (uint64_t b = 0; b < cols / 256; b++) {
        __m256 m[4]; /* chains that do not wait for each other */
        UNROLLED (i, 4) m[i] = magnitude(x + 8 * i);
        for (uint32_t i = 32; i < 256; i += 32) UNROLLED (j, 4) m[j] = _mm256_max_ps(m[j], magnitude(x + i + 8 * (uint32_t)j));
        __m256 inverse;
        block_scale(sh_avx2_max(_mm256_max_ps(_mm256_max_ps(m[0], m[1]), _mm256_max_ps(m[2], m[3]))), &scales[b], &inverse);
        for (uint32_t i = 0; i < 256; i += 32, x += 32, q += 32) {
            const int32_t low = quantise16(x, inverse, q), high = quantise16(x + 16, inverse, q + 16);
            *sums16++ = (int16_t)low;
            *sums16++ = (int16_t)high;
            *sums32++ = (int16_t)(low + high);
        }
    }
}

static void prepare_floats(const float *x, uint64_t cols, uint64_t bytes, uint8_t *out) {
    memcpy(out, x, cols * sizeof *x);
    memset(out + cols * sizeof *x, 0, bytes - cols * sizeof *x);
}

void sh_avx2_prepare(uint32_t operand, const float *x, uint64_t cols, uint32_t n_rows, void *out) {
    const uint64_t stride = sh_lanes_operand_bytes(operand, cols);
    for (uint32_t r = 0; r < n_rows; r++, x += cols) {
        uint8_t *to = (uint8_t *)out + r * stride;
        switch (operand) {
        case SH_LANES_Q8_32: prepare_32(x, cols, to); break;
        case SH_LANES_Q8_256: prepare_256(x, cols, to); break;
        default: prepare_floats(x, cols, stride, to); break;
        }
    }
}

/* ---- dot products: one group of 8 weight rows with `n` operand rows, acc[i] = 8 sums of operand row i ---- */

/* A 16-bit sum takes eight product pairs: at most 8 * 2 * 15 * 127 = 30,480. */
INLINE void dot_q4_0(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums = sh_lanes_sums_at(SH_LANES_Q8_32, rows->cols);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += 8 * SH_LANES_Q4_0) {
        fetch(w, 8 * SH_LANES_Q4_0);
        __m256i s[MAX_TILE];
        UNROLLED (i, n) s[i] = _mm256_setzero_si256();
        UNROLLED (v, 4) {
            const __m256i both = load(w + 16 + 32 * v), low = low_nibbles(both), high = high_nibbles(both);
            UNROLLED (i, n) {
                const uint8_t *x = rows->x + i * rows->stride + 32 * b + 4 * v;
                s[i] = _mm256_add_epi16(s[i], _mm256_maddubs_epi16(low, word(x)));
                s[i] = _mm256_add_epi16(s[i], _mm256_maddubs_epi16(high, word(x + 16)));
            }
        }
        const __m256 d = halves(w);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            const __m256i dot = _mm256_sub_epi32(pairs_to_sum(s[i]), _mm256_slli_epi32(word(x + sums + 4 * b), 3));
            const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(real(x + scales + 4 * b)));
            acc[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), acc[i]);
        }
    }
}

/* A product pair is at most 2 * 128 * 127 = 32,512, so every pair is widened before it is added. */
INLINE void dot_q8_0(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols);
    for (uint64_t b = 0; b < rows->cols / 32; b++, w += 8 * SH_LANES_Q8_0) {
        fetch(w, 8 * SH_LANES_Q8_0);
        __m256i s[MAX_TILE];
        UNROLLED (i, n) s[i] = _mm256_setzero_si256();
        UNROLLED (v, 8) {
            const __m256i q = load(w + 16 + 32 * v), size = _mm256_abs_epi8(q);
            UNROLLED (i, n) {
                const __m256i x = word(rows->x + i * rows->stride + 32 * b + 4 * v);
                s[i] = _mm256_add_epi32(s[i], pairs_to_sum(_mm256_maddubs_epi16(size, _mm256_sign_epi8(x, q))));
            }
        }
        const __m256 d = halves(w);
        UNROLLED (i, n) {
            const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(real(rows->x + i * rows->stride + scales + 4 * b)));
            acc[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(s[i]), acc[i]);
        }
    }
}

/* Ends a K block: acc += d dx sums - dmin dx mins, the mins' term first. */
INLINE void finish_k(const uint8_t *w, const struct rows *rows, uint64_t b, const __m256i *sums, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums32 = sh_lanes_sums32_at(rows->cols);
    const __m256 d = halves(w), dmin = halves(w + 16);
    UNROLLED (i, n) {
        const uint8_t *x = rows->x + i * rows->stride;
        __m256i mins = _mm256_setzero_si256();
        UNROLLED (p, 4) {
            const __m256i m = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(w + 96 + 16 * p)));
            mins = _mm256_add_epi32(mins, _mm256_madd_epi16(m, word(x + sums32 + 16 * b + 4 * p)));
        }
        const __m256 dx = _mm256_set1_ps(real(x + scales + 4 * b));
        acc[i] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, dx), _mm256_cvtepi32_ps(mins), acc[i]);
        acc[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(sums[i]), acc[i]);
    }
}

INLINE void dot_q4_k(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_Q4_K) {
        __m256i sums[MAX_TILE];
        UNROLLED (i, n) sums[i] = _mm256_setzero_si256();
        for (int c = 0; c < 4; c++) {
            const uint8_t *q = w + 160 + 256 * c;
            fetch(q, 296);
            __m256i low[MAX_TILE], high[MAX_TILE];
            UNROLLED (i, n) low[i] = high[i] = _mm256_setzero_si256();
            UNROLLED (v, 8) {
                const __m256i both = load(q + 32 * v), lo = low_nibbles(both), hi = high_nibbles(both);
                UNROLLED (i, n) {
                    const uint8_t *x = rows->x + i * rows->stride + 256 * b + 64 * c + 4 * v;
                    low[i] = _mm256_add_epi16(low[i], _mm256_maddubs_epi16(lo, word(x)));
                    high[i] = _mm256_add_epi16(high[i], _mm256_maddubs_epi16(hi, word(x + 32)));
                }
            }
            const __m256i pair = pair_of(w + 32 + 16 * c);
            const __m256i even = scale_of(pair, 0), odd = scale_of(pair, 1);
            UNROLLED (i, n) {
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(low[i], even));
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(high[i], odd));
            }
        }
        finish_k(w, rows, b, sums, acc, n);
    }
}

/* Quants reach 31: four vectors, 4 * 2 * 31 * 127 = 31,496, fit into 16 bits, eight do not. */
INLINE void dot_q5_k(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const __m256i bit = _mm256_set1_epi8(16);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_Q5_K) {
        __m256i sums[MAX_TILE];
        UNROLLED (i, n) sums[i] = _mm256_setzero_si256();
        for (int c = 0; c < 4; c++) {
            const uint8_t *q = w + 416 + 256 * c;
            fetch(q, 360);
            const __m256i pair = pair_of(w + 32 + 16 * c), even = scale_of(pair, 0), odd = scale_of(pair, 1);
            for (int half = 0; half < 2; half++) {
                __m256i low[MAX_TILE], high[MAX_TILE];
                UNROLLED (i, n) low[i] = high[i] = _mm256_setzero_si256();
                UNROLLED (u, 4) {
                    const int v = 4 * half + u;
                    const __m256i both = load(q + 32 * v);
                    /* bits 2c and 2c + 1 of each byte, moved to bit 4: what comes in from the neighbouring byte is masked away */
                    const __m256i top = _mm256_srl_epi16(load(w + 160 + 32 * v), _mm_cvtsi32_si128(2 * c));
                    const __m256i lo_bit = _mm256_and_si256(_mm256_slli_epi16(top, 4), bit);
                    const __m256i hi_bit = _mm256_and_si256(_mm256_slli_epi16(top, 3), bit);
                    const __m256i lo = _mm256_or_si256(low_nibbles(both), lo_bit),
                                  hi = _mm256_or_si256(high_nibbles(both), hi_bit);
                    UNROLLED (i, n) {
                        const uint8_t *x = rows->x + i * rows->stride + 256 * b + 64 * c + 4 * v;
                        low[i] = _mm256_add_epi16(low[i], _mm256_maddubs_epi16(lo, word(x)));
                        high[i] = _mm256_add_epi16(high[i], _mm256_maddubs_epi16(hi, word(x + 32)));
                    }
                }
                UNROLLED (i, n) {
                    sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(low[i], even));
                    sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(high[i], odd));
                }
            }
        }
        finish_k(w, rows, b, sums, acc, n);
    }
}

/* Quants 0..63 stand for -32..31. Two vectors, 2 * 2 * 63 * 127 = 32,004, fit into 16 bits; a sub-block of 16 is four vectors.
 * Half h of a block: nibbles [a][v] and bit pairs [v]; low nibbles with bits 2a, 2a+1 are elements 128h + 32a + 4v.., high
 * nibbles with bits 2a+4, 2a+5 those 64 further. Element e belongs to sub-block e / 16. */
INLINE void dot_q6_k(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {
    const uint64_t scales = sh_lanes_scales_at(rows->cols), sums16 = sh_lanes_sums_at(SH_LANES_Q8_256, rows->cols);
    const __m256i bits = _mm256_set1_epi8(0x30);
    for (uint64_t b = 0; b < rows->cols / 256; b++, w += 8 * SH_LANES_Q6_K) {
        __m256i sums[MAX_TILE];
        UNROLLED (i, n) sums[i] = _mm256_setzero_si256();
        for (int part = 0; part < 4; part++) { /* 2h + a: 32 elements from low nibbles, 32 from high ones */
            const int h = part / 2, a = part % 2;
            const uint8_t *q = w + 656 + 256 * part;
            fetch(q, 420);
            const __m256i low_pair = pair_of(w + 16 + 16 * (4 * h + a)), high_pair = pair_of(w + 16 + 16 * (4 * h + 2 + a));
            for (int sub = 0; sub < 2; sub++) {
                const __m256i low_scale = sub ? signed_scale_of(low_pair, 1) : signed_scale_of(low_pair, 0);
                const __m256i high_scale = sub ? signed_scale_of(high_pair, 1) : signed_scale_of(high_pair, 0);
                UNROLLED (two, 2) {
                    __m256i low[MAX_TILE], high[MAX_TILE];
                    UNROLLED (u, 2) {
                        const int v = 4 * sub + 2 * two + u;
                        const __m256i both = load(q + 32 * v);
                        const __m256i top = _mm256_srl_epi16(load(w + 144 + 256 * h + 32 * v), _mm_cvtsi32_si128(2 * a));
                        const __m256i lo = _mm256_or_si256(low_nibbles(both), _mm256_and_si256(_mm256_slli_epi16(top, 4), bits));
                        const __m256i hi = _mm256_or_si256(high_nibbles(both), _mm256_and_si256(top, bits));
                        UNROLLED (i, n) {
                            const uint8_t *x = rows->x + i * rows->stride + 256 * b + 128 * h + 32 * a + 4 * v;
                            const __m256i first = _mm256_maddubs_epi16(lo, word(x)),
                                          second = _mm256_maddubs_epi16(hi, word(x + 64));
                            low[i] = u == 0 ? first : _mm256_add_epi16(low[i], first);
                            high[i] = u == 0 ? second : _mm256_add_epi16(high[i], second);
                        }
                    }
                    UNROLLED (i, n) {
                        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(low[i], low_scale));
                        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(high[i], high_scale));
                    }
                }
            }
        }
        const __m256 d = halves(w);
        UNROLLED (i, n) {
            const uint8_t *x = rows->x + i * rows->stride;
            __m256i offset = _mm256_setzero_si256(); /* sum of scale * sum of quants */
            UNROLLED (p, 8) {
                const __m256i s = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 16 + 16 * p)));
                offset = _mm256_add_epi32(offset, _mm256_madd_epi16(s, word(x + sums16 + 32 * b + 4 * p)));
            }
            const __m256i dot = _mm256_sub_epi32(sums[i], _mm256_slli_epi32(offset, 5));
            const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(real(x + scales + 4 * b)));
            acc[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), acc[i]);
        }
    }
}

/* Four chains per output, by k mod 4, joined as (0 + 1) + (2 + 3). */
INLINE __m256 weights_f32(const uint8_t *w) { return _mm256_loadu_ps((const void *)w); }
INLINE __m256 weights_f16(const uint8_t *w) { return halves(w); }
INLINE __m256 weights_bf16(const uint8_t *w) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)w)), 16));
}
#define DOT_FLOATS(name, weights, bytes)                                                                                         \
    INLINE void name(const uint8_t *w, const struct rows *rows, __m256 *acc, const int n) {                                      \
        __m256 c[2][4];                                                                                                          \
        UNROLLED (i, n)                                                                                                          \
            UNROLLED (j, 4) c[i][j] = _mm256_setzero_ps();                                                                       \
        for (uint64_t k = 0; k < rows->cols; k += 4, w += 4 * 8 * (bytes)) {                                                     \
            fetch(w, 4 * 8 * (bytes));                                                                                           \
            UNROLLED (j, 4) {                                                                                                    \
                const __m256 wk = weights(w + j * 8 * (bytes));                                                                  \
                UNROLLED (i, n)                                                                                                  \
                    c[i][j] =                                                                                                    \
                        _mm256_fmadd_ps(wk, _mm256_set1_ps(real(rows->x + i * rows->stride + 4 * (k + (uint64_t)j))), c[i][j]);  \
            }                                                                                                                    \
        }                                                                                                                        \
        UNROLLED (i, n) acc[i] = _mm256_add_ps(_mm256_add_ps(c[i][0], c[i][1]), _mm256_add_ps(c[i][2], c[i][3]));                \
    }
DOT_FLOATS(dot_f32, weights_f32, 4)
DOT_FLOATS(dot_f16, weights_f16, 2)
DOT_FLOATS(dot_bf16, weights_bf16, 2)

/* ---- tiles ---- */

TILES(dot_q4_0)
TILES(dot_q8_0)
TILES(dot_q4_k)
TILES(dot_q5_k)
TILES(dot_q6_k)
TILE(dot_f32, 1)
TILE(dot_f32, 2)
TILE(dot_f16, 1)
TILE(dot_f16, 2)
TILE(dot_bf16, 1)
TILE(dot_bf16, 2)

static struct tiles tiles_of(uint32_t type) {
    switch (type) {
    case SH_TYPE_Q4_0: return (struct tiles){{dot_q4_0_1, dot_q4_0_2, dot_q4_0_3, dot_q4_0_4}};
    case SH_TYPE_Q8_0: return (struct tiles){{dot_q8_0_1, dot_q8_0_2, dot_q8_0_3, dot_q8_0_4}};
    case SH_TYPE_Q4_K: return (struct tiles){{dot_q4_k_1, dot_q4_k_2, dot_q4_k_3, dot_q4_k_4}};
    case SH_TYPE_Q5_K: return (struct tiles){{dot_q5_k_1, dot_q5_k_2, dot_q5_k_3, dot_q5_k_4}};
    case SH_TYPE_Q6_K: return (struct tiles){{dot_q6_k_1, dot_q6_k_2, dot_q6_k_3, dot_q6_k_4}};
    case SH_TYPE_F16: return (struct tiles){{dot_f16_1, dot_f16_2}};
    case SH_TYPE_BF16: return (struct tiles){{dot_bf16_1, dot_bf16_2}};
    case SH_TYPE_F32: return (struct tiles){{dot_f32_1, dot_f32_2}};
    default: break;
    }
    struct tiles tiles = {{NULL}};
    SH_ASSERT(sh_avx2_table_tiles(type, &tiles));
    return tiles;
}

/* The sums of products of values and quants need 16 bits: values of -127..113 keep their sign, others are made positive. */
static struct sh_avx2_lookup lookup_of(uint32_t type) {
    struct sh_avx2_lookup lookup = {.lowest = 0};
    const struct sh_table_type *table = sh_table_type(type);
    if (table == NULL) return lookup;
    for (int i = 0; i < 16; i++)
        if (table->values[i] < lookup.lowest) lookup.lowest = table->values[i];
    if (lookup.lowest == -127) lookup.lowest = 0;
    for (int i = 0; i < 16; i++) lookup.values[i] = (uint8_t)(table->values[i] - lookup.lowest);
    return lookup;
}

void sh_avx2_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    (void)scratch;
    const struct tiles tiles = tiles_of(m->w->type);
    const struct sh_avx2_lookup lookup = lookup_of(m->w->type);
    const uint32_t widest = tiles.of[MAX_TILE - 1] != NULL ? MAX_TILE : 2;
    const uint64_t group_bytes = sh_lanes_group_bytes(8, m->w->type, m->w->cols);
    const uint64_t stride = sh_lanes_operand_bytes(sh_lanes_operand(m->w->type), m->w->cols);
    const uint32_t resident = (uint32_t)sh_max_u64(widest, RESIDENT_BYTES / stride / widest * widest);
    for (uint32_t r0 = 0; r0 < m->n_rows; r0 += resident) {
        const uint32_t r1 = (uint32_t)sh_min_u64(r0 + resident, m->n_rows);
        for (uint64_t g = group0; g < group1; g++)
            for (uint32_t r = r0; r < r1;) {
                uint32_t n = r1 - r < widest ? r1 - r : widest;
                while (tiles.of[n - 1] == NULL) n--;
                const struct rows rows = {(const uint8_t *)m->x + r * stride, stride, m->w->cols, &lookup};
                tiles.of[n - 1](m, g, group_bytes, r, &rows);
                r += n;
            }
    }
}
