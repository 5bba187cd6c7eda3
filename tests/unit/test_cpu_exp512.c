/* The exp and tanh of the AVX-512 kernels against those of AVX2: the same bits. Compiled for AVX-512 (mk/cpu.mk), run where the CPU has it. */
#include "compute/cpu/avx512_math.h"
#include "compute/cpu/kernels.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define STEP 61u /* of the bit patterns of floats; 1 passes, too, in half a minute */

static bool same(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && (a[i] == a[i] || b[i] == b[i])) return false; /* one NaN is as good as another */
    return true;
}

static void test_cpu_exp_of_16_is_that_of_8(void **state) {
    (void)state;
    if (!sh_cpu_avx512.available()) TEST_SKIP("this CPU has no AVX-512 F, BW, DQ, VL and VNNI");
    for (uint64_t bits = 0; bits < UINT64_C(1) << 32; bits += UINT64_C(16) * STEP) {
        uint32_t pattern[16];
        float x[16], wide[16], narrow[16];
        for (uint32_t i = 0; i < 16; i++) pattern[i] = (uint32_t)(bits + i * STEP);
        memcpy(x, pattern, sizeof x);
        _mm512_storeu_ps(wide, sh_avx512_exp(_mm512_loadu_ps(x)));
        for (int i = 0; i < 16; i += 8) _mm256_storeu_ps(narrow + i, sh_avx2_exp(_mm256_loadu_ps(x + i)));
        if (!same(wide, narrow, 16)) fail_msg("exp of one of 16 floats from 0x%08x on by steps of %u", pattern[0], STEP);
        _mm512_storeu_ps(wide, sh_avx512_tanh(_mm512_loadu_ps(x)));
        for (int i = 0; i < 16; i += 8) _mm256_storeu_ps(narrow + i, sh_avx2_tanh(_mm256_loadu_ps(x + i)));
        if (!same(wide, narrow, 16)) fail_msg("tanh of one of 16 floats from 0x%08x on by steps of %u", pattern[0], STEP);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cpu_exp_of_16_is_that_of_8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
