/* The exp of the AVX2 kernels against that of the C library in double. Compiled for AVX2 (mk/cpu.mk), run where the CPU has it. */
#include "compute/cpu/avx2_math.h"
#include "compute/cpu/kernels.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static float one(float x) { return _mm256_cvtss_f32(sh_avx2_exp(_mm256_set1_ps(x))); }

static void test_cpu_exp_is_close(void **state) {
    (void)state;
    if (!sh_cpu_avx2.available()) TEST_SKIP("this CPU has no AVX2, FMA and F16C");
    double most = 0;
    for (int i = -8730000; i <= 8870000; i += 7) { /* all of the range in which the result is a normal number */
        const float x = (float)i * 1e-5f;
        const double expected = exp((double)x);
        most = fmax(most, fabs((double)one(x) - expected) / expected);
    }
    if (!(most < 2e-7)) fail_msg("relative error %g, expected below 2e-7", most);
    assert_true(one(0.0f) == 1.0f);
}

static void test_cpu_exp_at_its_ends(void **state) {
    (void)state;
    if (!sh_cpu_avx2.available()) TEST_SKIP("this CPU has no AVX2, FMA and F16C");
    assert_true(one(-87.5f) == 0.0f);
    assert_true(one(-INFINITY) == 0.0f);
    assert_true(isinf(one(88.8f)) && one(88.8f) > 0);
    assert_true(isinf(one(INFINITY)) && one(INFINITY) > 0);
    assert_true(isnan(one(NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_exp_is_close),
        cmocka_unit_test(test_cpu_exp_at_its_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
