#include "tests/unit/guarded.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define GUARD 256

void *test_guarded(uint64_t bytes) {
    uint8_t *p = sh_alloc_aligned(bytes + 2 * GUARD);
    assert_non_null(p);
    memset(p, 0xA5, bytes + 2 * GUARD);
    return p + GUARD;
}

void test_release(void *p, uint64_t bytes) {
    uint8_t *base = (uint8_t *)p - GUARD;
    for (uint64_t i = 0; i < GUARD; i++) {
        assert_int_equal(base[i], 0xA5);
        assert_int_equal(base[GUARD + bytes + i], 0xA5);
    }
    free(base);
}

float *test_guarded_floats(uint64_t n, float amplitude, struct test_rng *rng) {
    float *f = test_guarded(n * sizeof *f);
    for (uint64_t i = 0; i < n; i++) f[i] = test_uniform(rng, -amplitude, amplitude);
    return f;
}

void test_release_floats(float *p, uint64_t n) { test_release(p, n * sizeof *p); }
