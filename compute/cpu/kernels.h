/*
 * kernels.h - the table of kernels of one instruction set. The executor decides what is computed and on how many threads; a table
 * decides how a matrix is stored, how activations are prepared for it, and with which arithmetic.
 *
 * Arithmetic of each table, identical for any number of rows, threads, chunks, and both roles (so decode equals prefill bit for
 * bit):
 *
 * scalar: ref.h. Matrices stay in file layout.
 *
 * avx2 (AVX2, FMA, F16C; layouts of lanes.h): fma(a, b, c) is one rounding.
 *   F32, F16, BF16 matrices: float activations; four sums per output by k mod 4, each an fma chain in ascending k from 0,
 *     joined as (s0 + s1) + (s2 + s3).
 *   Q4_0, Q8_0: activations become int8 in blocks of 32: scale dx = most / 127 with most the block's largest magnitude, quant =
 *     nearest even of x * (127 / most), all 0 where most is below 2^-119. The integer dot product of a block is exact. Over
 *     blocks in ascending order y = fma(d * dx, dot, y).
 *   Q4_K, Q5_K: the same in blocks of 256. S = sum over sub-blocks of scale * dot and M = sum of min * (sum of the sub-block's
 *     activation quants) are exact integers; per block y = fma(-(dmin * dx), M, y), then y = fma(d * dx, S, y).
 *   Q6_K: S = sum over the 16 sub-blocks of scale * dot (quants -32..31), exact; y = fma(d * dx, S, y).
 *   Q4_1, Q5_0, Q5_1: as Q4_0 in blocks of 32; with a minimum first y = fma(m * dx, sum of the activation quants, y).
 *   Q2_K: as Q4_K, with 16 sub-blocks of 16.
 *   Table types, in blocks of 32 (IQ4_NL, MXFP4) or 256 activations (the rest): S = sum of scale * (dot of values and quants) is
 *     an exact integer; y = fma(d, dx * S, y), so that d, a power of two up to 2^127 in MXFP4, meets a product of ordinary size: no
 *     infinity times 0, no scale lost as subnormal.
 *   Integer sums: a pair of products in 16 bits holds |v| <= 127 with quants of at most 127 (32,258). Where pairs are added in 16
 *     bits, values are made non-negative (0..31: four pairs, 31,496) and the offset comes back with the sums of the quants. In 32
 *     bits a block of 256 stays below 256 * 127 * 127 * 32 = 1.4e8, rounded once when it becomes a float.
 *   Norms: sums have 32 lanes (i mod 32), of squares as fma chains; lanes i, i + 8, i + 16, i + 24 joined as (0 + 1) + (2 + 3), then
 *     the eight by sh_avx2_sum; then as scalar.
 *   Functions with exp, and softmax, use sh_avx2_exp, relative error below 2e-7; gelu(x) is x / (1 + exp(-2 u)), tanh(x) is 1 - 2 / (exp(2
 *     x) + 1); gelu with erf is the scalar one.
 *   expert_sum and conv: fma chains in ascending order from 0; conv of more than 8 taps is the scalar one.
 *   scan: h = fma(exp(delta * a), h, b * (delta * x)), delta as scalar; the sum over states has 8 lanes (s mod 8), fma chains.
 *   delta_net: with s' = g * s, sums over k_dim are fma chains in ascending order; s = fma(k, change, s'); gates as scalar.
 *   Attention: a score is one fma chain over d in ascending order from 0, times the scale, then as scalar with the tanh above; a
 *     softmax over the positions seen of each 256 (those from a multiple of 256 to the next one) with that part's own maximum, its
 *     sum by 16 lanes (position mod 16) in ascending order, joined as i + (i + 8) and by sh_avx2_sum, its values an fma chain in
 *     ascending position from 0; parts are joined in ascending order by rescaling to the larger maximum, the sink last. The parts
 *     depend on the positions seen alone, and rows that are computed together do not touch each other.
 *
 * avxvnni (AVX2, FMA, F16C, AVX-VNNI; 8 lanes of lanes.h), avx512 (those and AVX-512 F, BW, DQ, VL, VNNI; 16 lanes): bit for bit that
 *   of avx2. Sums inside a block are exact integers whichever instructions make them; the float operations on them, and all
 *   other kernels, are the same in the same order.
 * amx (those of avx512 and AMX TILE, INT8; 16 lanes): bit for bit that of avx512, too. 16 and more rows of types with blocks are
 *   multiplied by tiles (amx_dot.h), everything else by avx512's own kernels.
 *
 * Thread-safety: tables are constant; their functions are pure apart from what they write through their arguments. Different
 * items (row groups, rows) may be computed at the same time.
 */
#ifndef SHIMMY_CPU_KERNELS_H
#define SHIMMY_CPU_KERNELS_H

#include "compute/cpu/ref.h"

/* A matrix as one table stores it. Groups of `group_rows` rows are the unit of work. */
struct sh_cpu_matrix {
    uint32_t type; /* enum sh_type */
    uint64_t cols, rows;
    void *data; /* matrix_bytes(type, cols, rows); zeroed before packing; 64-byte aligned */
};

/* out[r][n] = x[r] . w[n] (+ bias[n]) (+ residual[r][n]), added in this order, for the rows n of some groups. */
struct sh_cpu_matmul {
    const struct sh_cpu_matrix *w;
    const void *x; /* n_rows operands, as prepare() writes them */
    uint32_t n_rows;
    const float *bias;     /* [rows] or NULL */
    const float *residual; /* [n_rows][rows] or NULL; may be out */
    float *out;            /* [n_rows][rows] */
};

struct sh_cpu_kernels {
    const char *tier;     /* "scalar": the name that forces it */
    const char *requires; /* of the CPU, for messages; "" = nothing */
    bool (*available)(void);

    /* ---- matrices ---- */
    uint32_t group_rows;
    uint64_t (*matrix_bytes)(uint32_t type, uint64_t cols, uint64_t rows);
    /* Stores file-layout rows [row0, row0 + n_rows). Different rows may be packed at the same time. */
    void (*pack)(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);
    /* out[cols] = row `row` dequantised, exactly as quant.h does. */
    void (*unpack)(const struct sh_cpu_matrix *w, uint64_t row, float *out);

    /* ---- operands: activations as the matmul of a weight type reads them ---- */
    uint32_t (*operand)(uint32_t type);                         /* a small number: equal numbers share prepared operands */
    uint64_t (*operand_bytes)(uint32_t operand, uint64_t cols); /* of one row; a multiple of 64 */
    void (*prepare)(uint32_t operand, const float *x, uint64_t cols, uint32_t n_rows, void *out);

    /* Groups [group0, group1); scratch: matmul_scratch(cols) bytes, 64-byte aligned. */
    void (*matmul)(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
    uint64_t (*matmul_scratch)(uint64_t cols);

    /* ---- the rest; shapes as in ref.h ---- */
    void (*norm)(const struct sh_ref_norm *norm, const float *x, uint32_t n_rows, float *out);
    void (*add)(const float *x, const float *y, uint64_t n, float *out);
    void (*unary)(enum sh_unary kind, float a, const float *x, uint64_t n, float *out);
    void (*glu)(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                float *out);
    void (*expert_sum)(const float *x, const float *route, uint32_t n_used, uint32_t width, float *out);
    void (*rope)(const struct sh_ref_rope *rope, const float *x, const float *table, float *out);         /* the bits of ref.h's */
    void (*cache_store)(const struct sh_ref_cache *cache, uint32_t position, const float *k, const float *v); /* the same */
    void (*conv)(const struct sh_ref_conv *c, uint32_t c0, uint32_t c1);
    void (*scan)(const struct sh_ref_scan *s, uint32_t c0, uint32_t c1);
    void (*delta_net)(const struct sh_ref_delta *d, uint32_t h, uint32_t j0, uint32_t j1, float *scratch);

    /* Attention of the heads of one kv head, of up to attention_rows(n_heads) rows of one sequence: their cache, kv_head, n_heads,
     * scale, softcap, slopes and sinks are equal, and every page of a position from the first to the last that any of them sees is
     * there. Rows have the same results alone. A table may compute a row in parts of `attention_split` positions, which are
     * joined in ascending order: then parts may run at the same time with the same result. Parts begin at multiples of
     * attention_split; part 0 is the one of the first position seen. */
    void (*attention)(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch);
    uint32_t (*attention_rows)(uint32_t n_heads);
    /* Bytes, for attention_rows(n_heads) rows of n_positions each. */
    uint64_t (*attention_scratch)(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim);
    uint32_t attention_split; /* 0: not in parts, and the rest is NULL */
    void (*attention_part)(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch);
    /* `partials`: those of all parts, one after the other; overwritten. */
    void (*attention_join)(const struct sh_ref_attention *a, float *partials);
    uint64_t (*attention_partial)(uint32_t n_heads, uint32_t v_dim); /* floats of one part's, a multiple of 8 */
};

/* All tables that this binary has, best first. */
extern const struct sh_cpu_kernels *const sh_cpu_tables[];
extern const uint32_t sh_cpu_n_tables;

extern const struct sh_cpu_kernels sh_cpu_scalar;
#if defined(__x86_64__)
extern const struct sh_cpu_kernels sh_cpu_avx2, sh_cpu_avxvnni, sh_cpu_avx512, sh_cpu_amx;
#endif

#endif
