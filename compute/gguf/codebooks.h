/*
 * codebooks.h - the codebooks of the IQ1, IQ2 and IQ3 types. An entry holds the indices of its elements, the first one in the
 * lowest bits: 8 elements of 2 bits, or 4 elements of 3 bits (IQ3).
 *
 *   IQ1  index - 1: -1, 0, 1      IQ2  magnitudes 8, 25, 43
 *   IQ3_XXS  magnitudes 4, 12, 20, 28, 36, 44, 52, 62      IQ3_S  magnitudes 1, 3, 5, 7, 9, 11, 13, 15
 *
 * Constant data.
 */
#ifndef SHIMMY_CODEBOOKS_H
#define SHIMMY_CODEBOOKS_H

#include <stdint.h>

extern const uint16_t sh_codebook_iq1[2048]; /* IQ1_S and IQ1_M */
extern const uint16_t sh_codebook_iq2_xxs[256];
extern const uint16_t sh_codebook_iq2_xs[512];
extern const uint16_t sh_codebook_iq2_s[1024];
extern const uint16_t sh_codebook_iq3_xxs[256];
extern const uint16_t sh_codebook_iq3_s[512];

#endif
