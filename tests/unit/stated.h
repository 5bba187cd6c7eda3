/*
 * stated.h - the arithmetic that compute/cpu/kernels.h states for the matrix products of the AVX2 table, in plain C from the file's
 * blocks, one element after the other.
 */
#ifndef SHIMMY_TESTS_STATED_H
#define SHIMMY_TESTS_STATED_H

#include <stdint.h>

/* y[t] = weight row (file layout, cols elements) . x[t], for n operand rows x_stride floats apart. */
void stated_products(uint32_t type, const uint8_t *row, uint64_t cols, const float *x, uint64_t x_stride, uint32_t n, float *y);

/* Where a block's d lies, and how to set it: IQ1_M has it in pieces. Not for MXFP4. */
uint32_t stated_scale_at(uint32_t type);
void stated_set_scale(uint32_t type, uint8_t *block, uint16_t d);
/* Whether the two bytes after d are the scale of minima, or the minimum. */
_Bool stated_has_min(uint32_t type);

#endif
