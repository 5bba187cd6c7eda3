/*
 * quant.h - the reference (de)quantisation of every computable type: scalar C, the truth that all kernels are tested against.
 * Block layouts: reference/peers section 2 and ggml's format documentation. `count` is elements, a multiple of the type's block.
 */
#ifndef SHIMMY_QUANT_H
#define SHIMMY_QUANT_H

#include "compute/gguf/gguf.h"

/* dst[i] = value of element i. F32 copies. False only for a type that is not computable. */
bool sh_dequantize(uint32_t type, const void *src, float *dst, uint64_t count);

/* Sub-block j (0..7) of the twelve bytes of packed 6-bit scales and mins that Q4_K and Q5_K share. */
void sh_k_scale_min(const uint8_t packed[12], uint32_t j, uint8_t *scale, uint8_t *min);

/*
 * Table types: those whose elements take at most 16 values up to a scale (IQ1_S, IQ1_M, IQ2_*, IQ3_*, IQ4_NL, IQ4_XS, MXFP4,
 * TQ1_0, TQ2_0, Q3_K): element i = d * scale[i / 16] * values[code[i]], exact in float32 in any order, since the bits of the three
 * factors fit 24. The executors repack them all into a few layouts of codes: 4 bits, or 3 and 2 where a type has at most 8 and 4
 * values (codes 0 to 7 of IQ1, IQ2 and Q3_K, 0 to 3 of TQ1_0 and TQ2_0).
 */
struct sh_table_type {
    int8_t values[16];
    uint32_t block; /* elements: 32 (scales are 1) or 256 */
};
const struct sh_table_type *sh_table_type(uint32_t type); /* NULL: not one of them */
/* One block: codes [block], scales [block / 16], d. Scales lie in -32..31, values in -127..113. d is any half (also infinite or
 * NaN), that divided by 4 or 8, or a power of two from 2^-128 to 2^127 (MXFP4, whose values may so overflow to infinity). */
void sh_table_decode(uint32_t type, const void *block, uint8_t *codes, int8_t *scales, float *d);

/* The reference quantisers, without importance matrix; deterministic. False for a type without one. */
bool sh_quantize(uint32_t type, const float *src, void *dst, uint64_t count);

#endif
