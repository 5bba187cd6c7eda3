/*
 * The Vulkan matmul kernels of the tier intdot: every quantised layout at odd sizes against sums in double over the same activations of 8
 * bits, the same bits for any number of rows, and what becomes of activations that are zero, tiny or no numbers. See products.h.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/products.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* Of each layout one type; Q5_0 has an offset of its own in its layout. */
static const uint32_t types[] = {SH_TYPE_Q4_0, SH_TYPE_Q4_1, SH_TYPE_Q5_0, SH_TYPE_Q5_1,  SH_TYPE_Q8_0,   SH_TYPE_Q2_K,
                                 SH_TYPE_Q4_K, SH_TYPE_Q5_K, SH_TYPE_Q6_K, SH_TYPE_MXFP4, SH_TYPE_IQ4_XS, SH_TYPE_Q3_K};

static void products_of_every_layout(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "intdot");
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        const uint32_t block = sh_type_info(types[t])->block_elements;
        const uint32_t cols[] = {block, 3 * block, block == 256 ? 2304 : 1056};
        static const uint32_t outputs[] = {1, 77, 130}, rows[] = {1, 3, 5, 17, 70};
        for (size_t c = 0; c < SH_COUNT(cols); c++)
            for (size_t n = 0; n < SH_COUNT(outputs); n++)
                for (size_t r = 0; r < SH_COUNT(rows); r++)
                    if ((c + n + r + t) % 4 == 0)
                        products_case(vulkan, NULL, types[t], rows[r], cols[c], outputs[n], (r + n) % 3 == 0, (r + c) % 3 == 1);
    }
    products_case(vulkan, NULL, SH_TYPE_F16, 3, 96, 40, true, true); /* not quantised: float activations */
    ops_close(vulkan);
}

static void parts(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "intdot");
    sh_vk_part_bytes_for_test(40000);
    products_case(vulkan, NULL, SH_TYPE_Q4_K, 3, 512, 301, true, true);
    products_case(vulkan, NULL, SH_TYPE_Q8_0, 33, 512, 301, false, true);
    sh_vk_part_bytes_for_test(0);
    ops_close(vulkan);
}

static void same_bits_for_any_number_of_rows(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "intdot");
    products_same_bits(vulkan, types, SH_COUNT(types));
    ops_close(vulkan);
}

/* The kernels for many rows by cooperative matrices have the bits of those for few, which are the tier intdot's. */
static void cooperative_matrices(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "coopmat");
    for (size_t t = 0; t < SH_COUNT(types); t++) products_case(vulkan, NULL, types[t], 17 + 20 * (uint32_t)(t % 3), 768, 77, t % 2 == 0, t % 3 == 0);
    products_same_bits(vulkan, types, SH_COUNT(types));
    ops_close(vulkan);
}

/* One input with a unit of each kind; the weights are ones. */
static void what_has_no_eight_bits(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "intdot");
    enum { COLS = 32, ROWS = 12 };
    float x[ROWS * COLS] = {0}, ones[COLS];
    uint8_t w[34];
    for (int i = 0; i < COLS; i++) ones[i] = 1;
    assert_true(sh_quantize(SH_TYPE_Q8_0, ones, w, COLS));
    const float special[] = {0, 0x1p-130f, NAN, INFINITY, -INFINITY, 0x1p100f};
    for (size_t i = 0; i < SH_COUNT(special); i++) x[i * COLS + 7] = special[i];
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.x = ops_input(&ops, COLS);
    op.w = ops_weight(&ops, SH_TYPE_Q8_0, COLS, 1, w);
    op.out = ops_activation(&ops, 1, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
    static const uint32_t counts[] = {6, ROWS}; /* a kernel for few rows, one for many */
    for (size_t c = 0; c < SH_COUNT(counts); c++) {
        const struct ops_step step = {.n_rows = counts[c], .inputs = {x}};
        float *y = ops_run(&ops, &m, &step, op.out);
        assert_true(y[0] == 0 && y[1] == 0);
        assert_true(isnan(y[2]) && isnan(y[3]) && isnan(y[4]));
        assert_true(fabsf(y[5] - 0x1p100f) <= 0x1p100f * 0x1p-11f); /* Q8_0's 1 has a scale in half precision */
        free(y);
    }
    ops_unload(&m);
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_layout),
        cmocka_unit_test(parts),
        cmocka_unit_test(same_bits_for_any_number_of_rows),
        cmocka_unit_test(cooperative_matrices),
        cmocka_unit_test(what_has_no_eight_bits),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
