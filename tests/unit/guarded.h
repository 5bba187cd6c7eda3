/*
 * guarded.h - buffers between guard bytes, for tests of kernels; and the tables of CPU kernels that this machine runs.
 */
#ifndef SHIMMY_TESTS_GUARDED_H
#define SHIMMY_TESTS_GUARDED_H

#include "compute/cpu/kernels.h"
#include "tests/unit/tiny_llama.h"

/* 64-byte aligned, content 0xA5 as the guards; an allocation that fails, fails the running test. */
void *test_guarded(uint64_t bytes);
/* Fails the running test where a guard was written to. */
void test_release(void *p, uint64_t bytes);
float *test_guarded_floats(uint64_t n, float amplitude, struct test_rng *rng); /* in [-amplitude, amplitude) */
void test_release_floats(float *p, uint64_t n);

#define FOR_EACH_TIER(k)                                                                                                         \
    for (uint32_t tier_ = 0; tier_ < sh_cpu_n_tables; tier_++)                                                                   \
        for (const struct sh_cpu_kernels *k = sh_cpu_tables[tier_]; k != NULL && k->available(); k = NULL)

#endif
