/*
 * avx2_recurrent.h - convolution, selective scan and delta net with AVX2 and FMA; contracts as of kernels.h and ref.h.
 */
#ifndef SHIMMY_CPU_AVX2_RECURRENT_H
#define SHIMMY_CPU_AVX2_RECURRENT_H

#include "compute/cpu/kernels.h"

void sh_avx2_conv(const struct sh_ref_conv *c, uint32_t c0, uint32_t c1);
void sh_avx2_scan(const struct sh_ref_scan *s, uint32_t c0, uint32_t c1);
void sh_avx2_delta_net(const struct sh_ref_delta *d, uint32_t h, uint32_t j0, uint32_t j1, float *scratch);

#endif
