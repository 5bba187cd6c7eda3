/* The elementwise and row-wise kernels of every table against the scalar reference. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_cpu_rows_ops(void **state) {
    (void)state;
    struct test_rng rng = {5};
    static const uint32_t widths[] = {1, 7, 8, 64, 173, 2048};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(widths); i++) {
            const uint32_t width = widths[i];
            const uint64_t n = 3 * (uint64_t)width, bytes = n * sizeof(float);
            float *x = test_guarded_floats(n, 9.0f, &rng), *y = test_guarded_floats(n, 5.0f, &rng), *w = test_guarded_floats(width, 1.0f, &rng);
            float *found = test_guarded(bytes), *expected = test_guarded(bytes);
            const struct sh_ref_norm norm = {.kind = SH_NORM_RMS, .n_groups = 1, .width = width, .eps = 1e-5f, .w = w};
            k->norm(&norm, x, 3, found);
            sh_ref_norm(&norm, x, 3, expected);
            /* sums of `width` squares differ by width roundings, halved by the square root; then three products */
            for (uint64_t e = 0; e < n; e++)
                assert_true(fabsf(found[e] - expected[e]) <= fabsf(expected[e]) * ((float)width + 8) * 0x1p-24f);
            k->add(x, y, n, found);
            sh_ref_add(x, y, n, expected);
            assert_memory_equal(found, expected, bytes);
            for (uint64_t e = 0; e < n; e++) x[e] *= 11.0f; /* up to +-99: past where exp over- and underflows */
            k->glu(SH_GLU_SILU, x, width, y, 3, width, found);
            sh_ref_glu(SH_GLU_SILU, x, width, y, 3, width, expected);
            for (uint64_t e = 0; e < n;
                 e++) /* below -87.3 our exp is infinite one step earlier than expf: a result below 1e-35 becomes 0 */
                if (!(fabsf(found[e] - expected[e]) <= fabsf(expected[e]) * 6e-7f + 1e-35f))
                    fail_msg("%s: silu(%.9g) * %.9g: found %.9g, expected %.9g", k->tier, (double)x[e], (double)y[e],
                             (double)found[e], (double)expected[e]);
            test_release(x, bytes);
            test_release(y, bytes);
            test_release(w, width * sizeof *w);
            test_release(found, bytes);
            test_release(expected, bytes);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cpu_rows_ops)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
