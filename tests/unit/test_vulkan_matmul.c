/*
 * The Vulkan matmul kernels of the tier base: see products.h. Every layout, odd sizes, NaN where nothing may be read, guards where nothing may
 * be written.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/products.h"
#include "tests/unit/tiny_llama.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* One of each layout; test_vulkan_types.c shows that every type's elements are what they should be. */
static const uint32_t types[] = {SH_TYPE_F32,  SH_TYPE_F16,   SH_TYPE_BF16,   SH_TYPE_Q4_0, SH_TYPE_Q4_1,
                                 SH_TYPE_Q5_1, SH_TYPE_Q8_0,  SH_TYPE_Q2_K,   SH_TYPE_Q4_K, SH_TYPE_Q5_K,
                                 SH_TYPE_Q6_K, SH_TYPE_MXFP4, SH_TYPE_IQ4_XS, SH_TYPE_Q3_K};

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
                        sh_vulkan_of(vulkan)->like_gpu = (rows[r] > 1 && rows[r] < 16) || (c + t) % 2 == 0;
                        products_case(vulkan, cpu, types[t], rows[r], cols[c], outputs[n], (r + n) % 3 == 0, (r + c) % 3 == 1);
                    }
    }
    ops_close(cpu);
    ops_close(vulkan);
}

/* More outputs than a grid has groups: the kernel must stride. */
static void matmul_of_262144_rows(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    products_case(vulkan, NULL, SH_TYPE_Q8_0, 1, 64, 262144, false, false);
    products_case(vulkan, NULL, SH_TYPE_Q4_0, 1, 32, 262144, true, false);
    ops_close(vulkan);
}

/* A weight in many row parts, and through the staging ring: as on a device whose memory the host cannot write. */
static void weights_in_parts_and_staged(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    sh_vulkan_of(vulkan)->stage_always = true;
    sh_vk_part_bytes_for_test(40000);
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        products_case(vulkan, NULL, types[t], 3, 512, 301, true, true);
        products_case(vulkan, NULL, types[t], 33, 512, 301, false, true);
    }
    sh_vk_part_bytes_for_test(0);
    products_case(vulkan, NULL, SH_TYPE_F32, 1, 4096, 4100, false, false); /* 64 MiB: four turns of the ring */
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
    const struct product want = products_multiply(SH_TYPE_Q8_0, w, COLS, BLOCK, x, 1, NULL, NULL);
    for (uint32_t row = 0; row < N; row += BLOCK) products_check("tensor over 2 GiB", y + row, &want, COLS / 32.0 + 32, BLOCK);
    free(y);
    free(want.y);
    free(want.magnitude);
    free(w);
    free(x);
    ops_unload(&m);
    ops_close(vulkan);
}

static void same_bits_for_any_number_of_rows(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    products_same_bits(vulkan, types, SH_COUNT(types));
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
