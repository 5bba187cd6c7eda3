/*
 * lanes8.h - the packed layouts of matrices for kernels with eight 32-bit lanes: groups of 8 rows, so that a lane is a row and a
 * dot product needs no sum across lanes. A row's quants stay in the order in which the file has them, cut into words of 4 bytes;
 * word i of the 8 rows makes one 32-byte vector. Table types (compute/gguf/quant.h) are stored by their codes, in few
 * layouts. Missing rows of the last group are zero.
 *
 * Per group, per block, in this order (bytes):
 *   F32        per k: [8] float; k padded with zeros to a multiple of 4        F16, BF16: the same with 2-byte elements
 *   Q4_0   144 d f16[8]; 4 vectors: vector v holds elements 4v..4v+3 (low nibbles) and 16+4v..16+4v+3 (high)
 *   Q4_1   160 d f16[8]; m f16[8]; 4 vectors as Q4_0
 *   Q5_0   176 d f16[8]; 1 vector of fifth bits: of element 4p + j bit p of byte j; 4 vectors as Q4_0
 *   Q5_1   192 d f16[8]; m f16[8]; fifth bits; 4 vectors
 *   Q8_0   272 d f16[8]; 8 vectors: elements 4v..4v+3
 *   Q4_K  1184 d f16[8]; dmin f16[8]; scales u8[4][8][2]; mins u8[4][8][2]; 32 vectors: chunk c = v / 8 holds sub-block 2c
 *              (low nibbles) and 2c+1 (high), elements 4(v%8).. of each
 *   Q5_K  1440 as Q4_K up to the mins; 8 vectors of high bits: bit s of a byte belongs to sub-block s; then 32 of nibbles
 *   Q6_K  1680 d f16[8]; scales i8[8][8][2]; 16 vectors of bit pairs, [half][8]; 32 vectors of nibbles, [half][2][8]: see
 *              dot_q6_k in avx2_matmul.c
 *   Q2_K   672 d f16[8]; dmin f16[8]; scales (low halves) and mins (high) u8[8][8][2]; 16 vectors of bit pairs, [half][8]: bits
 *              2r, 2r + 1 of vector v are elements 128 half + 32r + 4v..
 *   IQ4_NL 144 d f16[8]; 4 vectors of codes as Q4_0
 *   MXFP4  144 the same with d bf16[8], which holds every power of two from 2^-128 on
 *   IQ3_XXS, IQ3_S, IQ4_XS: tables of 16
 *         1184 d float[8]; scales i8[8][8][2]; 32 vectors of codes as Q4_K
 *   IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, Q3_K: tables of 8
 *          928 d float[8]; scales i8[8][8][2]; 8 vectors of the codes' third bits, [half][4]: bit 2r + v / 4 of vector v % 4
 *              belongs to run r's vector v; 16 vectors of the lower two bits as Q2_K
 *   TQ1_0, TQ2_0: tables of 4, scales 1
 *          544 d float[8]; 16 vectors of codes as Q2_K
 * Scales and mins stand in pairs [pair][row][2] of neighbouring sub-blocks, as a multiply-add of 16-bit pairs wants them.
 *
 * Plain C without intrinsics: any instruction set with eight lanes may use it. Thread-safety: pure.
 */
#ifndef SHIMMY_CPU_LANES8_H
#define SHIMMY_CPU_LANES8_H

#include "compute/cpu/kernels.h"

#define SH_LANES8_Q4_0 144
#define SH_LANES8_Q8_0 272
#define SH_LANES8_Q4_K 1184
#define SH_LANES8_Q5_K 1440
#define SH_LANES8_Q6_K 1680
#define SH_LANES8_Q4_1 160
#define SH_LANES8_Q5_0 176
#define SH_LANES8_Q5_1 192
#define SH_LANES8_Q2_K 672
#define SH_LANES8_TABLE_32 144
#define SH_LANES8_TABLE_16 1184
#define SH_LANES8_TABLE_8 928
#define SH_LANES8_TERNARY 544

uint64_t sh_lanes8_group_bytes(uint32_t type, uint64_t cols);
uint64_t sh_lanes8_matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows);
void sh_lanes8_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);
void sh_lanes8_unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out);

/* Operands. FLOAT: floats, zeros up to a multiple of 4. Q8_32: i8[cols], then per 32 float scale, then per 32 i32 sum of quants.
 * Q8_256: i8[cols], per 256 float scale, per 16 i16 sum, per 32 i16 sum. Parts are 32-byte aligned; quants lie in -127..127. */
enum sh_lanes8_operand { SH_LANES8_FLOAT, SH_LANES8_Q8_32, SH_LANES8_Q8_256 };
uint32_t sh_lanes8_operand(uint32_t type);
uint64_t sh_lanes8_operand_bytes(uint32_t operand, uint64_t cols);
static inline uint64_t sh_lanes8_scales_at(uint64_t cols) { return sh_align_up(cols, 32); }
static inline uint64_t sh_lanes8_sums_at(uint32_t operand, uint64_t cols) { /* the first sums: i32 per 32, or i16 per 16 */
    return sh_lanes8_scales_at(cols) + sh_align_up(cols / (operand == SH_LANES8_Q8_32 ? 32 : 256) * sizeof(float), 32);
}
static inline uint64_t sh_lanes8_sums32_at(uint64_t cols) { /* Q8_256: i16 per 32 */
    return sh_lanes8_sums_at(SH_LANES8_Q8_256, cols) + sh_align_up(cols / 16 * sizeof(int16_t), 32);
}

#endif
