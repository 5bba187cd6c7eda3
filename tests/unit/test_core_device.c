/* Which device is taken for which wish, and what is said about the others. */
#include "compute/engine.h"
#include "tests/unit/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct sh_error error;

static struct sh_device_info device(enum sh_device_kind kind, const char *name, bool usable) {
    struct sh_device_info info = {.kind = kind, .usable = usable};
    snprintf(info.name, sizeof info.name, "%s", name);
    if (!usable) snprintf(info.reason, sizeof info.reason, "lacks bufferDeviceAddress");
    return info;
}

/* The name that is chosen, or the error's code name. Every device must carry a reason, exactly the chosen one the mark. */
static const char *choose(struct sh_device_info *infos, uint32_t n, const char *want) {
    uint32_t chosen = 99;
    const enum sh_code code = sh_device_select(infos, n, want, &chosen, &error);
    uint32_t selected = 0;
    for (uint32_t i = 0; i < n; i++) selected += infos[i].selected;
    if (code != SH_OK) {
        assert_int_equal(selected, 0);
        assert_true(error.message[0] != '\0');
        return sh_code_name(code);
    }
    assert_in_range(chosen, 0, n - 1);
    assert_int_equal(selected, 1);
    assert_true(infos[chosen].selected);
    for (uint32_t i = 0; i < n; i++) assert_true(infos[i].reason[0] != '\0');
    return infos[chosen].name;
}

static void auto_prefers_gpus_and_never_software(void **state) {
    (void)state;
    struct sh_device_info all[] = {
        device(SH_DEVICE_CPU, "Example CPU", true),    device(SH_DEVICE_SOFTWARE, "llvmpipe", true),
        device(SH_DEVICE_VIRTUAL, "Virtio GPU", true), device(SH_DEVICE_INTEGRATED, "Iris Graphics", true),
        device(SH_DEVICE_DISCRETE, "Radeon RX", true), device(SH_DEVICE_DISCRETE, "GeForce RTX", true),
    };
    assert_string_equal(choose(all, 6, NULL), "Radeon RX");
    assert_non_null(strstr(all[1].reason, "asked for by name"));
    assert_non_null(strstr(all[5].reason, "first of its kind"));
    assert_string_equal(choose(all, 4, "AUTO"), "Iris Graphics");
    assert_string_equal(choose(all, 3, "auto"), "Virtio GPU");
    assert_string_equal(choose(all, 2, "auto"), "Example CPU");
    all[4] = device(SH_DEVICE_DISCRETE, "Radeon RX", false);
    assert_string_equal(choose(all, 6, "auto"), "GeForce RTX");
    assert_string_equal(all[4].reason, "lacks bufferDeviceAddress");
    struct sh_device_info none[] = {device(SH_DEVICE_CPU, "CPU", false), device(SH_DEVICE_SOFTWARE, "llvmpipe", true)};
    assert_string_equal(choose(none, 2, "auto"), "not_found");
}

static void names_are_parts_and_must_be_clear(void **state) {
    (void)state;
    struct sh_device_info all[] = {
        device(SH_DEVICE_CPU, "Example CPU 9000", true),    device(SH_DEVICE_SOFTWARE, "llvmpipe (LLVM 15)", true),
        device(SH_DEVICE_DISCRETE, "Radeon RX 7600", true), device(SH_DEVICE_DISCRETE, "Radeon RX 7600 XT", true),
        device(SH_DEVICE_DISCRETE, "GeForce", false),
    };
    assert_string_equal(choose(all, 5, "cpu"), "Example CPU 9000");
    assert_string_equal(choose(all, 5, "Cpu"), "Example CPU 9000");
    assert_string_equal(choose(all, 5, "LLVMPIPE"), "llvmpipe (LLVM 15)");
    assert_non_null(strstr(all[1].reason, "LLVMPIPE"));
    assert_string_equal(choose(all, 5, "xt"), "Radeon RX 7600 XT");
    assert_string_equal(choose(all, 5, "radeon rx 7600"), "Radeon RX 7600"); /* the whole of one name */
    assert_string_equal(choose(all, 5, "radeon"), "invalid");
    assert_non_null(strstr(error.message, "'Radeon RX 7600', 'Radeon RX 7600 XT'"));
    assert_string_equal(choose(all, 5, "arc"), "not_found");
    assert_non_null(strstr(error.message, "'Example CPU 9000'"));
    assert_string_equal(choose(all, 5, "geforce"), "unsupported");
    assert_non_null(strstr(error.message, "bufferDeviceAddress"));
    assert_string_equal(choose(all, 5, ""), "invalid");
    char long_name[600];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    assert_string_equal(choose(all, 5, long_name), "not_found");
}

static void the_cpu_is_always_listed_and_opens(void **state) {
    (void)state;
    struct sh_device_info infos[1];
    uint32_t count = 9;
    core_ok(sh_device_enumerate(infos, 1, &count, &error), &error);
    assert_int_equal(count, 1);
    assert_int_equal(infos[0].kind, SH_DEVICE_CPU);
    assert_true(infos[0].usable && infos[0].memory_bytes > 0);
    struct sh_device *opened = NULL;
    const struct sh_device_params params = {.size = sizeof params, .info = infos};
    core_ok(sh_device_open(&params, &opened, &error), &error);
    assert_string_equal(sh_device_get_info(opened)->name, infos[0].name);
    assert_int_equal(sh_device_validation_count(opened), 0);
    sh_device_close(opened);
    sh_device_close(NULL);
    const struct sh_device_params nothing = {.size = sizeof nothing};
    assert_int_equal(sh_device_open(&nothing, &opened, &error), SH_ERR_INVALID);
    assert_null(opened);
    const struct sh_device_params wrong = {.size = sizeof wrong, .info = infos, .tier = "mmx"};
    assert_int_equal(sh_device_open(&wrong, &opened, &error), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.message, "mmx"));
    core_ok(sh_device_enumerate(infos, 0, &count, &error), &error);
    assert_int_equal(count, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_prefers_gpus_and_never_software),
        cmocka_unit_test(names_are_parts_and_must_be_clear),
        cmocka_unit_test(the_cpu_is_always_listed_and_opens),
    };
    return cmocka_run_group_tests_name("core_device", tests, NULL, NULL);
}
