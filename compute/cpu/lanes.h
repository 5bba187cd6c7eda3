/*
 * lanes.h - the packed layouts of matrices for kernels with L = 8 or 16 lanes of 32 bits: groups of L rows, so that a lane is a row
 * and a dot product needs no sum across lanes. A row's quants stay in the order in which the file has them, cut into words of 4
 * bytes; word i of the L rows makes one vector of 4 L bytes. Table types (compute/gguf/quant.h) are stored by their codes, in few
 * layouts. Missing rows of the last group are zero.
 *
 * Per group, per block, in this order (the number: bytes per lane, L times that in all):
 *   F32        per k: [L] float; k padded with zeros to a multiple of 4        F16, BF16: the same with 2-byte elements
 *   Q4_0    18 d f16[L]; 4 vectors: vector v holds elements 4v..4v+3 (low nibbles) and 16+4v..16+4v+3 (high)
 *   Q4_1    20 d f16[L]; m f16[L]; 4 vectors as Q4_0
 *   Q5_0    22 d f16[L]; 1 vector of fifth bits: of element 4p + j bit p of byte j; 4 vectors as Q4_0
 *   Q5_1    24 d f16[L]; m f16[L]; fifth bits; 4 vectors
 *   Q8_0    34 d f16[L]; 8 vectors: elements 4v..4v+3
 *   Q4_K   148 d f16[L]; dmin f16[L]; scales u8[4][L][2]; mins u8[4][L][2]; 32 vectors: chunk c = v / 8 holds sub-block 2c
 *              (low nibbles) and 2c+1 (high), elements 4(v%8).. of each
 *   Q5_K   180 as Q4_K up to the mins; 8 vectors of high bits: bit s of a byte belongs to sub-block s; then 32 of nibbles
 *   Q6_K   210 d f16[L]; scales i8[8][L][2]; 16 vectors of bit pairs, [half][8]; 32 vectors of nibbles, [half][2][8]: see
 *              dot_q6_k in avx2_matmul.c
 *   Q2_K    84 d f16[L]; dmin f16[L]; scales (low halves) and mins (high) u8[8][L][2]; 16 vectors of bit pairs, [half][8]: bits
 *              2r, 2r + 1 of vector v are elements 128 half + 32r + 4v..
 *   IQ4_NL  18 d f16[L]; 4 vectors of codes as Q4_0
 *   MXFP4   18 the same with d bf16[L], which holds every power of two from 2^-128 on
 *   IQ3_XXS, IQ3_S, IQ4_XS: tables of 16
 *          148 d float[L]; scales i8[8][L][2]; 32 vectors of codes as Q4_K
 *   IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, Q3_K: tables of 8
 *          116 d float[L]; scales i8[8][L][2]; 8 vectors of the codes' third bits, [half][4]: bit 2r + v / 4 of vector v % 4
 *              belongs to run r's vector v; 16 vectors of the lower two bits as Q2_K
 *   TQ1_0, TQ2_0: tables of 4, scales 1
 *           68 d float[L]; 16 vectors of codes as Q2_K
 * Scales and mins stand in pairs [pair][row][2] of neighbouring sub-blocks, as a multiply-add of 16-bit pairs wants them.
 *
 * Plain C without intrinsics: any instruction set with that many lanes may use it. Thread-safety: pure.
 */
#ifndef SHIMMY_CPU_LANES_H
#define SHIMMY_CPU_LANES_H

#include "compute/cpu/kernels.h"

/* Bytes that one lane has of a block. */
#define SH_LANES_Q4_0 18
#define SH_LANES_Q8_0 34
#define SH_LANES_Q4_K 148
#define SH_LANES_Q5_K 180
#define SH_LANES_Q6_K 210
#define SH_LANES_Q4_1 20
#define SH_LANES_Q5_0 22
#define SH_LANES_Q5_1 24
#define SH_LANES_Q2_K 84
#define SH_LANES_TABLE_32 18
#define SH_LANES_TABLE_16 148
#define SH_LANES_TABLE_8 116
#define SH_LANES_TERNARY 68

uint64_t sh_lanes_group_bytes(uint32_t lanes, uint32_t type, uint64_t cols);
uint64_t sh_lanes8_matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows);
uint64_t sh_lanes16_matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows);
void sh_lanes8_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);
void sh_lanes16_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);
void sh_lanes8_unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out);
void sh_lanes16_unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out);

/* Operands. FLOAT: floats, zeros up to a multiple of 4. Q8_32: i8[cols], then per 32 float scale, then per 32 i32 sum of quants.
 * Q8_256: i8[cols], per 256 float scale, per 16 i16 sum, per 32 i16 sum. Parts are 32-byte aligned; quants lie in -127..127. */
enum sh_lanes_operand { SH_LANES_FLOAT, SH_LANES_Q8_32, SH_LANES_Q8_256 };
uint32_t sh_lanes_operand(uint32_t type);
uint64_t sh_lanes_operand_bytes(uint32_t operand, uint64_t cols);
static inline uint64_t sh_lanes_scales_at(uint64_t cols) { return sh_align_up(cols, 32); }
static inline uint64_t sh_lanes_sums_at(uint32_t operand, uint64_t cols) { /* the first sums: i32 per 32, or i16 per 16 */
    return sh_lanes_scales_at(cols) + sh_align_up(cols / (operand == SH_LANES_Q8_32 ? 32 : 256) * sizeof(float), 32);
}
static inline uint64_t sh_lanes_sums32_at(uint64_t cols) { /* Q8_256: i16 per 32 */
    return sh_lanes_sums_at(SH_LANES_Q8_256, cols) + sh_align_up(cols / 16 * sizeof(int16_t), 32);
}

#endif
