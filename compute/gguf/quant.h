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

/* The reference quantisers, without importance matrix; deterministic. False for a type without one. */
bool sh_quantize(uint32_t type, const float *src, void *dst, uint64_t count);

#endif
