/*
 * The tuner (compute/vulkan/tune.h): what is measured as fastest is chosen, unless its bits are others; a choice is kept in a file, comes back
 * with the next opening, and does not change while a device is open; a file that is damaged, foreign or of other shapes is replaced.
 */
#include "compute/vulkan/tune.h"
#include "compute/vulkan/cachefile.h"
#include "compute/vulkan/shapes.h"
#include "tests/unit/ops_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

#define MAGIC 0x31544b56u
static const uint32_t kernels[] = {SH_KERNEL_column_f16, SH_KERNEL_matmul_r1o4_f16};

/* ---- what stands between the tuner and the driver ---- */

static PFN_vkGetQueryPoolResults real_results;
static PFN_vkCmdDispatch real_dispatch;
static uint32_t favourite, rounds, dispatches;
static bool forget_favourite; /* its dispatches are not recorded: what it makes is wrong */

/* Timestamps of a device on which one shape is fast. */
static VKAPI_ATTR VkResult VKAPI_CALL told(VkDevice device, VkQueryPool pool, uint32_t first, uint32_t n, size_t bytes, void *data,
                                           VkDeviceSize stride, VkQueryResultFlags flags) {
    const VkResult result = real_results(device, pool, first, n, bytes, data, stride, flags);
    uint64_t *stamps = data;
    for (uint32_t i = 1; i < n; i++) stamps[i] = stamps[i - 1] + (i - 1 == favourite ? 100 : 1000);
    rounds++;
    dispatches = 0;
    return result;
}
static VKAPI_ATTR void VKAPI_CALL counted(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    if (dispatches++ == favourite && forget_favourite) return;
    real_dispatch(commands, x, y, z);
}
static void stand_between(struct sh_vulkan *vk) {
    real_results = vk->GetQueryPoolResults;
    real_dispatch = vk->CmdDispatch;
    vk->GetQueryPoolResults = told;
    vk->CmdDispatch = counted;
    rounds = dispatches = 0;
}

/* ---- devices ---- */

static struct sh_vulkan *open_tuned(const char *dir, enum sh_tune tune) {
    struct sh_device *probe = OPS_OPEN_VULKAN();
    const struct sh_device_info info = probe->info;
    ops_close(probe);
    const struct sh_device_params params = {.size = sizeof params, .info = &info, .cache_dir = dir, .tier = "base", .tune = tune};
    struct sh_device *device = NULL;
    struct sh_error err = {0};
    OK(sh_vulkan_open(&params, &device, &err));
    return sh_vulkan_of(device);
}
static void close_tuned(struct sh_vulkan *vk) { ops_close(&vk->base); }

static void make(struct sh_vulkan *vk) {
    bool wanted[SH_KERNEL_COUNT] = {[SH_KERNEL_add] = true};
    for (size_t i = 0; i < SH_COUNT(kernels); i++) wanted[kernels[i]] = true;
    struct sh_error err = {0};
    OK(sh_vk_pipelines_make(vk, wanted, &err));
}

static void scratch_dir(char dir[512], const char *name) {
    snprintf(dir, 512, "%s", test_scratch(name));
    assert_int_equal(mkdir(dir, 0700), 0);
}

/* Opens and makes until the file knows all: a busy machine may not measure more than one kernel in its time. */
static void measure_all(const char *dir) {
    for (size_t i = 0; i < SH_COUNT(kernels); i++) {
        struct sh_vulkan *vk = open_tuned(dir, SH_TUNE_ON);
        const uint32_t known = sh_vk_tuned_for_test(vk, false);
        make(vk);
        assert_true(known == SH_COUNT(kernels) || sh_vk_tuned_for_test(vk, true) > 0);
        close_tuned(vk);
    }
}

/* ---- tests ---- */

static void software_devices_are_measured_when_asked(void **state) {
    (void)state;
    static const enum sh_tune tunes[] = {SH_TUNE_OFF, SH_TUNE_AUTO, SH_TUNE_ON};
    for (size_t i = 0; i < SH_COUNT(tunes); i++) {
        struct sh_vulkan *vk = open_tuned(NULL, tunes[i]);
        const bool software = vk->base.info.kind == SH_DEVICE_SOFTWARE;
        assert_true((vk->tuner != NULL) == (tunes[i] == SH_TUNE_ON || (tunes[i] == SH_TUNE_AUTO && !software)));
        close_tuned(vk);
    }
}

static void the_fastest_is_chosen(void **state) {
    (void)state;
    const uint32_t kernel = kernels[0];
    uint32_t n;
    assert_non_null(sh_vk_shapes(kernel, &n));
    bool wanted[SH_KERNEL_COUNT] = {false};
    wanted[kernel] = true;
    for (favourite = 0; favourite < n; favourite++) {
        struct sh_vulkan *vk = open_tuned(NULL, SH_TUNE_ON);
        stand_between(vk);
        struct sh_error err = {0};
        OK(sh_vk_pipelines_make(vk, wanted, &err));
        assert_in_range(rounds, 2, 4);
        assert_int_equal(sh_vk_tuned_for_test(vk, true), 1);
        assert_ptr_equal(sh_vk_shape(vk, kernel), &sh_vk_shapes(kernel, &n)[favourite]);
        const uint32_t before = rounds;
        favourite = (favourite + 1) % n; /* another one would be faster now: too late */
        OK(sh_vk_pipelines_make(vk, wanted, &err));
        assert_int_equal(rounds, before);
        assert_false(sh_vk_shape_set(vk, kernel, favourite));
        favourite = (favourite + n - 1) % n;
        assert_ptr_equal(sh_vk_shape(vk, kernel), &sh_vk_shapes(kernel, &n)[favourite]);
        close_tuned(vk);
    }
}

static void other_bits_are_not_chosen(void **state) {
    (void)state;
    const uint32_t kernel = kernels[0];
    struct sh_vulkan *vk = open_tuned(NULL, SH_TUNE_ON);
    const uint32_t of_table = sh_vk_shape_of_table(vk, kernel);
    uint32_t n;
    favourite = of_table == 0 ? 1 : 0;
    forget_favourite = true;
    stand_between(vk);
    bool wanted[SH_KERNEL_COUNT] = {false};
    wanted[kernel] = true;
    struct sh_error err = {0};
    OK(sh_vk_pipelines_make(vk, wanted, &err));
    forget_favourite = false;
    assert_int_equal(sh_vk_tuned_for_test(vk, true), 1);
    assert_ptr_equal(sh_vk_shape(vk, kernel), &sh_vk_shapes(kernel, &n)[of_table]);
    close_tuned(vk);
}

static void choices_are_kept(void **state) {
    (void)state;
    char dir[512], path[SH_VK_CACHE_PATH];
    scratch_dir(dir, "tune");
    measure_all(dir);
    const struct sh_vk_shape *chosen[SH_COUNT(kernels)];
    for (int round = 0; round < 2; round++) {
        struct sh_vulkan *vk = open_tuned(dir, SH_TUNE_ON);
        sh_vk_cache_path(vk, dir, "shapes", path);
        make(vk);
        assert_int_equal(sh_vk_tuned_for_test(vk, false), SH_COUNT(kernels));
        assert_int_equal(sh_vk_tuned_for_test(vk, true), 0);
        for (size_t i = 0; i < SH_COUNT(kernels); i++) {
            if (round) assert_ptr_equal(sh_vk_shape(vk, kernels[i]), chosen[i]);
            chosen[i] = sh_vk_shape(vk, kernels[i]);
        }
        close_tuned(vk);
    }
    struct sh_vulkan *off = open_tuned(dir, SH_TUNE_OFF); /* does not read it */
    for (size_t i = 0; i < SH_COUNT(kernels); i++) {
        uint32_t n;
        assert_ptr_equal(sh_vk_shape(off, kernels[i]), &sh_vk_shapes(kernels[i], &n)[sh_vk_shape_of_table(off, kernels[i])]);
    }
    close_tuned(off);
}

static uint32_t known_of(const char *dir) {
    struct sh_vulkan *vk = open_tuned(dir, SH_TUNE_ON);
    const uint32_t n = sh_vk_tuned_for_test(vk, false);
    close_tuned(vk);
    return n;
}

static void a_file_that_is_not_ours_is_replaced(void **state) {
    (void)state;
    char dir[512], path[SH_VK_CACHE_PATH];
    scratch_dir(dir, "tune-damaged");
    measure_all(dir);
    struct sh_vulkan *vk = open_tuned(dir, SH_TUNE_ON);
    sh_vk_cache_path(vk, dir, "shapes", path);
    const uint64_t key = sh_vk_cache_key(vk);
    close_tuned(vk);
    assert_int_equal(known_of(dir), SH_COUNT(kernels));
    size_t bytes;
    uint8_t *data = test_read_file(path, &bytes);
    struct {
        uint64_t key;
        uint32_t kernel, threads, across, rows, outputs;
    } foreign = {key ^ 1, kernels[0], 64, 0, 1, 128}, odd = {key, kernels[0], 77, 0, 1, 154}, beyond = {key, SH_KERNEL_COUNT, 64, 0, 1, 128},
      no_product = {key, SH_KERNEL_add, 64, 0, 1, 128}, good = {key, kernels[0], 64, 0, 1, 128};
    const size_t size = sizeof key + 5 * sizeof(uint32_t);

    data[bytes - 3] ^= 0x40;
    test_write_file(path, data, bytes); /* other bytes */
    assert_int_equal(known_of(dir), 0);
    measure_all(dir); /* which writes it anew */
    assert_int_equal(known_of(dir), SH_COUNT(kernels));
    test_write_file(path, data, bytes - 7); /* too short */
    assert_int_equal(known_of(dir), 0);
    test_write_file(path, data, 5);
    assert_int_equal(known_of(dir), 0);
    assert_true(sh_vk_cache_write(path, MAGIC + 1, &good, size)); /* of something else */
    assert_int_equal(known_of(dir), 0);
    assert_true(sh_vk_cache_write(path, MAGIC, &foreign, size)); /* of another device, driver or build */
    assert_int_equal(known_of(dir), 0);
    assert_true(sh_vk_cache_write(path, MAGIC, &odd, size)); /* a shape that there is not */
    assert_int_equal(known_of(dir), 0);
    assert_true(sh_vk_cache_write(path, MAGIC, &beyond, size));
    assert_int_equal(known_of(dir), 0);
    assert_true(sh_vk_cache_write(path, MAGIC, &no_product, size));
    assert_int_equal(known_of(dir), 0);
    assert_true(sh_vk_cache_write(path, MAGIC, &good, size));
    assert_int_equal(known_of(dir), 1);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(software_devices_are_measured_when_asked),
        cmocka_unit_test(the_fastest_is_chosen),
        cmocka_unit_test(other_bits_are_not_chosen),
        cmocka_unit_test(choices_are_kept),
        cmocka_unit_test(a_file_that_is_not_ours_is_replaced),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
