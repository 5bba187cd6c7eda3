/*
 * The shapes of workgroups (compute/vulkan/shapes.h): whichever a kernel has, it gives the same bits, at odd sizes, with NaN where nothing may
 * be read and guards where nothing may be written.
 */
#include "compute/vulkan/shapes.h"
#include "tests/unit/ops_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* Of each way in which a unit is loaded one type; unless SHIMMY_TEST_FULL=1 one for the kernels of GPUs, one for those of software devices and
 * one for the tier intdot: a driver's compiler takes most of the time, and it is test_vulkan_matmul.c and test_vulkan_dots.c that go through
 * all layouts. */
static const uint32_t types[] = {SH_TYPE_Q8_0, SH_TYPE_MXFP4, SH_TYPE_Q4_K, SH_TYPE_F16, SH_TYPE_Q3_K};
static bool wanted_here(size_t type, bool base, bool like_gpu) {
    const char *full = getenv("SHIMMY_TEST_FULL");
    return (full && strcmp(full, "1") == 0) || type == (!base ? 2 : like_gpu ? 0 : 1);
}
static const uint32_t counts[] = {1, 3, 19, 70}; /* of rows: a kernel for one, one for a few, tiles that are not full */

struct product_of { /* one product, all of `counts` one behind the other */
    uint32_t type, cols, n;
    bool like_gpu;
};

static float *run(struct sh_device *device, const struct product_of *of, size_t *n_floats) {
    struct test_rng rng = {of->type * 31 + of->cols};
    const uint32_t most = counts[SH_COUNT(counts) - 1];
    void *w = ops_random_matrix(of->type, of->cols, of->n, &rng);
    float *x = ops_random_floats((size_t)most * of->cols, 1, &rng), *r = ops_random_floats((size_t)most * of->n, 1, &rng);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.x = ops_input(&ops, of->cols);
    op.residual = ops_input(&ops, of->n);
    op.w = ops_weight(&ops, of->type, of->cols, of->n, w);
    op.out = ops_activation(&ops, of->n, SH_ROWS_ALL);
    ops_push(&ops, &op);
    sh_vulkan_of(device)->like_gpu = of->like_gpu;
    struct ops_model m;
    ops_load(&ops, device, SH_KV_F32, most, 2, &m);
    *n_floats = 0;
    for (size_t i = 0; i < SH_COUNT(counts); i++) *n_floats += (size_t)counts[i] * of->n;
    float *all = malloc(*n_floats * sizeof *all), *to = all;
    assert_non_null(all);
    for (size_t i = 0; i < SH_COUNT(counts); i++) {
        const struct ops_step step = {.n_rows = counts[i], .inputs = {x, r}};
        float *y = ops_run(&ops, &m, &step, op.out);
        memcpy(to, y, (size_t)counts[i] * of->n * sizeof *y);
        to += (size_t)counts[i] * of->n;
        free(y);
    }
    ops_unload(&m);
    free(w);
    free(x);
    free(r);
    return all;
}

/* In a tier, for GPUs and for software devices. */
static void all_shapes(const char *test, const char *tier) {
    const bool base = strcmp(tier, "base") == 0;
    enum { CASES = 3 * SH_COUNT(types) };
    float *want[CASES] = {0};
    for (uint32_t index = 0; index < SH_VK_MAX_SHAPES; index++) {
        struct sh_device *device = ops_open_vulkan_tier(test, tier);
        sh_vk_shapes_for_test(sh_vulkan_of(device), index);
        uint32_t at = 0;
        for (size_t t = 0; t < SH_COUNT(types); t++) {
            const uint32_t block = sh_type_info(types[t])->block_elements;
            const struct product_of cases[] = {
                {types[t], block == 1 ? 77 : 3 * block, 133, true},
                {types[t], block == 256 ? 2304 : 1056, 131, true},
                {types[t], 288 - 288 % (block == 1 ? 32 : block), 131, false},
            };
            for (size_t c = 0; c < SH_COUNT(cases); c++) {
                if (!wanted_here(t, base, cases[c].like_gpu)) continue;
                if (!base && (!cases[c].like_gpu || block == 1)) continue; /* the same kernels, and those of base */
                char name[96];
                snprintf(name, sizeof name, "shape %u of %s %s cols=%u n=%u gpu=%d", index, tier, sh_type_info(types[t])->name, cases[c].cols,
                         cases[c].n, cases[c].like_gpu);
                if (!ops_wanted(name)) continue;
                size_t n;
                float *got = run(device, &cases[c], &n);
                if (want[at]) ops_compare(name, got, want[at], NULL, n);
                if (want[at]) free(got);
                else want[at] = got;
                at++;
            }
        }
        ops_close(device);
    }
    for (size_t i = 0; i < CASES; i++) free(want[i]);
}

static void shapes_of_the_tier_base(void **state) {
    (void)state;
    all_shapes(__func__, "base");
}

static void shapes_of_the_tier_intdot(void **state) {
    (void)state;
    all_shapes(__func__, "intdot");
}

/* What a shape promises: threads that make up the tile, sizes that every device has room for, and all of them different. */
static void shapes_are_sound(void **state) {
    (void)state;
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) {
        uint32_t n;
        const struct sh_vk_shape *shapes = sh_vk_shapes(k, &n);
        assert_true((shapes != NULL) == (n > 0));
        assert_true(n <= SH_VK_MAX_SHAPES);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(shapes[i].threads >= 32 && shapes[i].threads <= 256);
            assert_true(shapes[i].rows > 0 && shapes[i].outputs > 0);
            if (shapes[i].across) {
                assert_int_equal(shapes[i].outputs, 4 * shapes[i].across);
                assert_int_equal(shapes[i].rows, 4 * (shapes[i].threads / shapes[i].across));
            }
            for (uint32_t j = 0; j < i; j++) assert_memory_not_equal(&shapes[i], &shapes[j], sizeof *shapes);
        }
    }
    static const uint32_t vendors[] = {0x10de, 0x1002, 0x8086, 0x5143};
    for (size_t v = 0; v < SH_COUNT(vendors) + 1; v++) {
        struct sh_vulkan vk = {.vendor_id = v < SH_COUNT(vendors) ? vendors[v] : 0,
                               .base.info.kind = v < SH_COUNT(vendors) ? SH_DEVICE_DISCRETE : SH_DEVICE_SOFTWARE};
        for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) {
            uint32_t n;
            if (sh_vk_shapes(k, &n)) assert_true(sh_vk_shape_of_table(&vk, k) < n);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_sound),
        cmocka_unit_test(shapes_of_the_tier_base),
        cmocka_unit_test(shapes_of_the_tier_intdot),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
