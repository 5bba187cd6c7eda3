/*
 * The Vulkan matmul kernels against sums in double precision, as is the scalar reference: every layout, odd sizes, NaN where
 * nothing may be read, guards where nothing may be written.
 *
 * Tolerances. A float32 chain of L additions of terms with sum of magnitudes S is off by at most L * 2^-24 * S; roundings of
 * independent signs give sqrt(L) * 2^-24 * S / sqrt(3) as the standard deviation, and the tests allow 4 * sqrt(L) * 2^-24 * S,
 * seven deviations: an element that is left out or multiplied by the wrong scale shows at every size used here. L is K for the
 * scalar reference (ascending k) and K / 32 + 32 for the kernels (32 lanes, then the lanes).
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* One of each layout; test_vulkan_types.c shows that every type's elements are what they should be. */
static const uint32_t types[] = {SH_TYPE_F32,  SH_TYPE_F16,   SH_TYPE_BF16,   SH_TYPE_Q4_0, SH_TYPE_Q4_1,
                                 SH_TYPE_Q5_1, SH_TYPE_Q8_0,  SH_TYPE_Q2_K,   SH_TYPE_Q4_K, SH_TYPE_Q5_K,
                                 SH_TYPE_Q6_K, SH_TYPE_MXFP4, SH_TYPE_IQ4_XS, SH_TYPE_Q3_K};
#define EPS 0x1p-24

/* ---- matmul ---- */

struct product { /* by sums in double, with the sum of magnitudes */
    float *y;
    double *magnitude;
};
static struct product multiply(uint32_t type, const void *w, uint32_t cols, uint32_t n, const float *x, uint32_t rows,
                               const float *bias, const float *residual) {
    struct product p = {malloc((size_t)rows * n * sizeof(float)), malloc((size_t)rows * n * sizeof(double))};
    float *row = malloc(cols * sizeof *row);
    assert_true(p.y && p.magnitude && row);
    for (uint32_t o = 0; o < n; o++) {
        assert_true(sh_dequantize(type, (const uint8_t *)w + o * sh_type_row_bytes(type, cols), row, cols));
        for (uint32_t r = 0; r < rows; r++) {
            double sum = 0, magnitude = 0;
            for (uint32_t k = 0; k < cols; k++) {
                const double term = (double)row[k] * (double)x[(size_t)r * cols + k];
                sum += term;
                magnitude += fabs(term);
            }
            const size_t i = (size_t)r * n + o;
            if (bias) sum += (double)bias[o], magnitude += fabs((double)bias[o]);
            if (residual) sum += (double)residual[i], magnitude += fabs((double)residual[i]);
            p.y[i] = (float)sum;
            p.magnitude[i] = magnitude;
        }
    }
    free(row);
    return p;
}

static void check_product(const char *name, const float *got, const struct product *want, double chain, size_t n) {
    double *bound = malloc(n * sizeof *bound);
    assert_non_null(bound);
    for (size_t i = 0; i < n; i++) bound[i] = (4 * sqrt(chain) + 2) * EPS * want->magnitude[i];
    ops_compare(name, got, want->y, bound, n);
    free(bound);
}

static void matmul_case(struct sh_device *vulkan, struct sh_device *cpu, uint32_t type, uint32_t rows, uint32_t cols, uint32_t n,
                        bool bias, bool residual) {
    char name[128];
    snprintf(name, sizeof name, "matmul %s rows=%u cols=%u n=%u bias=%d residual=%d", sh_type_info(type)->name, rows, cols, n,
             bias, residual);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {type * 1000003 + rows * 10007 + cols * 101 + n};
    void *w = ops_random_matrix(type, cols, n, &rng);
    float *x = ops_random_floats((size_t)rows * cols, 1, &rng), *b = ops_random_floats(n, 1, &rng),
          *r = ops_random_floats((size_t)rows * n, 1, &rng);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.x = ops_input(&ops, cols);
    op.w = ops_weight(&ops, type, cols, n, w);
    if (bias) op.bias = ops_weight(&ops, SH_TYPE_F32, n, 1, b);
    if (residual) op.residual = ops_input(&ops, n);
    op.out = ops_activation(&ops, n, SH_ROWS_ALL);
    ops_push(&ops, &op);
    const struct ops_step step = {.n_rows = rows, .inputs = {x, r}};
    const struct product want = multiply(type, w, cols, n, x, rows, bias ? b : NULL, residual ? r : NULL);
    struct sh_device *const devices[] = {vulkan, cpu};
    for (int d = 0; d < 2; d++) {
        if (!devices[d]) continue;
        struct ops_model m;
        ops_load(&ops, devices[d], SH_KV_F32, rows, 2, &m);
        float *y = ops_run(&ops, &m, &step, op.out);
        check_product(name, y, &want, d == 0 ? cols / 32.0 + 32 : cols, (size_t)rows * n);
        free(y);
        ops_unload(&m);
    }
    free(want.y);
    free(want.magnitude);
    free(w);
    free(x);
    free(b);
    free(r);
}

static void matmul_of_every_layout(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN(), *cpu = ops_open_cpu();
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        const uint32_t block = sh_type_info(types[t])->block_elements;
        const uint32_t cols[] = {block == 1 ? 1 : block, block == 1 ? 172 : 3 * block,
                                 block == 256 ? 2304 : 1056 + (block == 1 ? 5 : 0)};
        static const uint32_t outputs[] = {1, 77, 130}, rows[] = {1, 2, 3, 5, 16, 17, 70};
        for (size_t c = 0; c < SH_COUNT(cols); c++)
            for (size_t n = 0; n < SH_COUNT(outputs); n++)
                for (size_t r = 0; r < SH_COUNT(rows); r++)
                    if ((c + n + r + t) % 4 == 0) {
                        sh_vulkan_of(vulkan)->like_gpu = rows[r] < 16 || (c + t) % 2 == 0;
                        matmul_case(vulkan, cpu, types[t], rows[r], cols[c], outputs[n], (r + n) % 3 == 0, (r + c) % 3 == 1);
                    }
    }
    ops_close(cpu);
    ops_close(vulkan);
}

/* More outputs than a grid has groups: the kernel must stride. */
static void matmul_of_262144_rows(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    matmul_case(vulkan, NULL, SH_TYPE_Q8_0, 1, 64, 262144, false, false);
    matmul_case(vulkan, NULL, SH_TYPE_Q4_0, 1, 32, 262144, true, false);
    ops_close(vulkan);
}

/* A weight in many row parts, and through the staging ring: as on a device whose memory the host cannot write. */
static void weights_in_parts_and_staged(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    sh_vulkan_of(vulkan)->stage_always = true;
    sh_vk_part_bytes_for_test(40000);
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        matmul_case(vulkan, NULL, types[t], 3, 512, 301, true, true);
        matmul_case(vulkan, NULL, types[t], 33, 512, 301, false, true);
    }
    sh_vk_part_bytes_for_test(0);
    matmul_case(vulkan, NULL, SH_TYPE_F32, 1, 4096, 4100, false, false); /* 64 MiB: four turns of the ring */
    ops_close(vulkan);
}

/* A tensor beyond 2 GiB: three row parts. Its data is one block of rows over and over, so that the test needs the memory once. */
static void tensor_over_2_gib(void **state) {
    (void)state;
    const char *full = getenv("SHIMMY_TEST_FULL");
    if (!full || strcmp(full, "1") != 0) TEST_SKIP("takes 2.2 GiB and a minute; SHIMMY_TEST_FULL=1 runs it");
    enum { COLS = 8192, N = 270000, BLOCK = 1000 };
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    if (vulkan->info.free_bytes && vulkan->info.free_bytes < 5ull << 30)
        TEST_SKIP("%llu bytes free", (unsigned long long)vulkan->info.free_bytes);
    struct test_rng rng = {5};
    uint8_t *w = ops_random_matrix(SH_TYPE_Q8_0, COLS, BLOCK, &rng);
    float *x = ops_random_floats(COLS, 1, &rng);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.x = ops_input(&ops, COLS);
    op.w = ops_weight(&ops, SH_TYPE_Q8_0, COLS, N, w);
    op.out = ops_activation(&ops, N, SH_ROWS_ALL);
    ops_push(&ops, &op);
    const struct sh_executor *e = vulkan->executor;
    struct sh_segment segment = {.program = &ops.program, .n_ops = 1, .n_inputs = 1, .inputs = {op.x}};
    struct ops_model m = {.device = vulkan};
    struct sh_error err = {0};
    assert_int_equal(e->model_create(vulkan, &segment, 1, &m.model, &err), SH_OK);
    for (uint32_t row = 0; row < N; row += BLOCK) assert_int_equal(e->weight_rows(m.model, op.w, row, BLOCK, w, &err), SH_OK);
    assert_int_equal(e->model_finish(m.model, &err), SH_OK);
    assert_true(e->model_bytes(m.model) > 2ull << 30);
    const struct sh_exec_context_params params = {
        .max_rows = 1, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = 1};
    assert_int_equal(e->context_create(m.model, &params, &m.context, &err), SH_OK);
    const struct ops_step step = {.n_rows = 1, .inputs = {x}};
    float *y = ops_run(&ops, &m, &step, op.out);
    const struct product want = multiply(SH_TYPE_Q8_0, w, COLS, BLOCK, x, 1, NULL, NULL);
    for (uint32_t row = 0; row < N; row += BLOCK) check_product("tensor over 2 GiB", y + row, &want, COLS / 32.0 + 32, BLOCK);
    free(y);
    free(want.y);
    free(want.magnitude);
    free(w);
    free(x);
    ops_unload(&m);
    ops_close(vulkan);
}

/* The numerics contract: a row's bits do not depend on how many rows are computed with it, whichever kernel that chooses, of those for GPUs
 * and those for software devices. */
static void same_bits_for_any_number_of_rows(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const uint32_t cols[] = {2048, 5632, 14336};
    static const uint32_t counts[] = {1, 3, 8, 9, 33};
    enum { ROWS = 64, N = 21 };
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        for (size_t c = 0; c < SH_COUNT(cols); c++) {
            char name[128];
            snprintf(name, sizeof name, "rows %s cols=%u", sh_type_info(types[t])->name, cols[c]);
            if (!ops_wanted(name)) continue;
            struct test_rng rng = {types[t] * 77 + cols[c]};
            void *w = ops_random_matrix(types[t], cols[c], N, &rng);
            float *x = ops_random_floats((size_t)ROWS * cols[c], 1, &rng), *r = ops_random_floats((size_t)ROWS * N, 1, &rng);
            struct ops ops;
            ops_init(&ops);
            struct sh_op op = ops_op(SH_OP_MATMUL);
            op.x = ops_input(&ops, cols[c]);
            op.residual = ops_input(&ops, N);
            op.w = ops_weight(&ops, types[t], cols[c], N, w);
            op.out = ops_activation(&ops, N, SH_ROWS_ALL);
            ops_push(&ops, &op);
            float *want = NULL;
            for (int like_gpu = 1; like_gpu >= 0; like_gpu--) {
                sh_vulkan_of(vulkan)->like_gpu = like_gpu == 1;
                struct ops_model m;
                ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
                const struct ops_step all = {.n_rows = ROWS, .inputs = {x, r}};
                float *found = ops_run(&ops, &m, &all, op.out);
                if (want) ops_compare(name, found, want, NULL, (size_t)ROWS * N);
                if (want) free(found);
                else want = found;
                for (size_t i = 0; i < SH_COUNT(counts); i++) {
                    if (!like_gpu && counts[i] <= 8) continue; /* the same kernels for both */
                    const uint32_t first = (ROWS - counts[i]) / 2;
                    const struct ops_step some = {.n_rows = counts[i],
                                                  .inputs = {x + (size_t)first * cols[c], r + (size_t)first * N}};
                    float *got = ops_run(&ops, &m, &some, op.out);
                    ops_compare(name, got, want + (size_t)first * N, NULL, (size_t)counts[i] * N);
                    free(got);
                }
                ops_unload(&m);
            }
            free(want);
            free(w);
            free(x);
            free(r);
        }
    }
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_of_every_layout),           cmocka_unit_test(matmul_of_262144_rows),
        cmocka_unit_test(weights_in_parts_and_staged),      cmocka_unit_test(tensor_over_2_gib),
        cmocka_unit_test(same_bits_for_any_number_of_rows),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
