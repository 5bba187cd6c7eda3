/*
 * products.h - MATMULs on a Vulkan device against sums in double precision, and against themselves for other numbers of rows.
 *
 * Tolerances. A float32 chain of L additions of terms with sum of magnitudes S is off by at most L * 2^-24 * S; roundings of
 * independent signs give sqrt(L) * 2^-24 * S / sqrt(3) as the standard deviation, and the tests allow 4 * sqrt(L) * 2^-24 * S,
 * seven deviations: an element that is left out or multiplied by the wrong scale shows at every size used here. L is K for the
 * scalar reference (ascending k) and K / 32 + 32 for the kernels (32 lanes, then the lanes). In the tier intdot a quantised matrix
 * meets activations of 8 bits: they are made here by the same rule, so that what is left are the roundings of a chain of at most
 * four additions for each unit of a lane, which is no longer than that.
 */
#ifndef SHIMMY_TESTS_PRODUCTS_H
#define SHIMMY_TESTS_PRODUCTS_H

#include "tests/unit/ops_harness.h"

struct product { /* by sums in double, with the sum of magnitudes */
    float *y;
    double *magnitude;
};
struct product products_multiply(uint32_t type, const void *w, uint32_t cols, uint32_t n, const float *x, uint32_t rows,
                                 const float *bias, const float *residual);
void products_check(const char *name, const float *got, const struct product *want, double chain, size_t n);

/* One product with random data on `vulkan`, in its tier, and on `cpu`, the scalar reference, unless that is NULL. */
void products_case(struct sh_device *vulkan, struct sh_device *cpu, uint32_t type, uint32_t rows, uint32_t cols, uint32_t n, bool bias,
                   bool residual);

/* The numerics contract: a row's bits do not depend on how many rows are computed with it, whichever kernel that chooses, of those for GPUs
 * and those for software devices. */
void products_same_bits(struct sh_device *vulkan, const uint32_t *types, size_t n_types);

#endif
