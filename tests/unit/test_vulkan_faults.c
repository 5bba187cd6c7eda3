/*
 * A device that fails: tests/faults/vk_layer.c, loaded beneath the executor as any layer is, makes calls of the driver fail where the script
 * says. What fails is an error with its reason, what it cost is one load, one context or one step, and everything is given back.
 */
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <libgen.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define DEVICE "llvmpipe"
static struct sh_error error;
static char file[256], script[256], hits[300];
static bool there; /* a device with the layer beneath */

static void faults(const char *rules) {
    test_write_file(script, rules, strlen(rules));
    unlink(hits);
}
static void no_faults(void) { unlink(script); }
static bool happened(void) { return access(hits, F_OK) == 0; }

static uint64_t bytes_held(struct sh_device *device) {
    struct sh_device_memory memory;
    sh_device_get_memory(device, &memory);
    return memory.weights_bytes + memory.cache_bytes + memory.activation_bytes + memory.staging_bytes;
}

static int set_up(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.embd = 64;
    p.head_dim = 16;
    p.ff = 96;
    p.type = "Q8_0";
    snprintf(file, sizeof file, "%s", test_scratch("small.gguf"));
    snprintf(script, sizeof script, "%s", test_scratch("faults"));
    snprintf(hits, sizeof hits, "%s.hits", script);
    setenv("SHIMMY_VK_FAULTS", script, 1);
    core_ok(genmodel_write(file, &p, &error), &error);

    struct sh_device_info infos[16];
    uint32_t count = 0, chosen = 0;
    core_ok(sh_device_enumerate(infos, 16, &count, &error), &error);
    there = sh_device_select(infos, count, DEVICE, &chosen, &error) == SH_OK;
    return 0;
}
#define NEEDS_DEVICE()                                                                                                           \
    do {                                                                                                                         \
        if (!there) TEST_SKIP("no Vulkan device '%s'", DEVICE);                                                                  \
    } while (0)

static enum sh_code try_submit(struct core_model *m, uint32_t sequence, int32_t token, sh_ticket *ticket) {
    const struct sh_row row = {.sequence = sequence,
                               .token = token,
                               .position = sh_sequence_length(m->context, sequence),
                               .outputs = SH_OUT_SAMPLE};
    return sh_submit(m->context, &(struct sh_batch){&row, 1}, ticket, &error);
}

static enum sh_code try_step(struct core_model *m, uint32_t sequence, int32_t token, int32_t *sampled) {
    sh_ticket ticket;
    struct sh_results results;
    enum sh_code code = try_submit(m, sequence, token, &ticket);
    if (code == SH_OK) code = sh_wait(m->context, ticket, -1, &results, &error);
    if (code == SH_OK && sampled) *sampled = results.items[0].token;
    return code;
}

/* Greedy tokens from a token on. */
enum { RUN = 6 };
static void run(struct core_model *m, uint32_t sequence, int32_t *tokens) {
    int32_t token = 5;
    for (int i = 0; i < RUN; i++) {
        core_ok(try_step(m, sequence, token, &tokens[i]), &error);
        token = tokens[i];
    }
}

static enum sh_code try_load(struct sh_device *device, struct core_model *m) {
    *m = (struct core_model){0};
    const struct sh_model_params params = {.size = sizeof params, .path = file};
    enum sh_code code = sh_model_load(&device, 1, &params, &m->model, &error);
    if (code == SH_OK) code = sh_context_create(m->model, NULL, &m->context, &error);
    if (code != SH_OK) {
        sh_model_unload(m->model);
        m->model = NULL;
    }
    return code;
}

/* Each allocation of a load and of its context in turn: the load is refused, says what is missing, and leaves nothing behind. */
static void device_memory_ends_at_every_allocation(void **state) {
    (void)state;
    NEEDS_DEVICE();
    struct sh_device *device = core_open_device(DEVICE);
    const uint64_t before = bytes_held(device);
    struct core_model m;
    uint32_t failed = 0;
    for (uint32_t skip = 0;; skip++) {
        char rule[80];
        snprintf(rule, sizeof rule, "vkAllocateMemory %u 0 VK_ERROR_OUT_OF_DEVICE_MEMORY", skip);
        faults(rule);
        const enum sh_code code = try_load(device, &m);
        if (code == SH_OK) break;
        assert_int_equal(code, SH_ERR_NO_DEVICE_MEMORY);
        assert_non_null(strstr(error.message, "no device memory"));
        assert_true(happened());
        assert_int_equal(bytes_held(device), before);
        failed++;
        assert_true(failed < 100);
    }
    assert_true(failed >= 3); /* weights, activations, parameters at least */
    no_faults();
    sh_context_destroy(m.context);
    sh_model_unload(m.model);
    assert_int_equal(bytes_held(device), before);
    sh_device_close(device);
}

/* A step that finds no memory, be it for cache pages or in the driver, fails alone, and another sequence's tokens are what they are without. */
static void a_step_without_memory_fails_alone(void **state) {
    (void)state;
    NEEDS_DEVICE();
    static const char *const rules[] = {
        "vkAllocateMemory 0 0 VK_ERROR_OUT_OF_DEVICE_MEMORY",
        "vkQueueSubmit 0 1 VK_ERROR_OUT_OF_DEVICE_MEMORY",
        "vkQueueSubmit 0 1 VK_ERROR_OUT_OF_HOST_MEMORY",
    };
    int32_t want[RUN], got[RUN];
    struct core_model m;
    core_load(&m, DEVICE, file, NULL);
    uint32_t sequence = core_sequence(&m);
    run(&m, sequence, want);
    sh_sequence_destroy(m.context, sequence);
    core_unload(&m);

    core_load(&m, DEVICE, file, NULL);
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) { /* the first finds no pages yet: the pool has to grow */
        sequence = core_sequence(&m);
        faults(rules[i]);
        const enum sh_code code = try_step(&m, sequence, 5, NULL);
        assert_int_equal(code, i == 2 ? SH_ERR_NO_MEMORY : SH_ERR_NO_DEVICE_MEMORY);
        assert_true(happened());
        assert_int_equal(sh_sequence_length(m.context, sequence), 0);
        no_faults();
        run(&m, sequence, got);
        assert_memory_equal(got, want, sizeof want);
        sh_sequence_destroy(m.context, sequence);
    }
    struct sh_context_stats stats;
    sh_context_get_stats(m.context, &stats);
    assert_int_equal(stats.pages_used, 0);
    core_unload(&m);
}

/* No memory to wait with says nothing about the step: it is waited for otherwise. */
static void a_failed_wait_is_no_failed_step(void **state) {
    (void)state;
    NEEDS_DEVICE();
    int32_t want[RUN], got[RUN];
    struct core_model m;
    core_load(&m, DEVICE, file, NULL);
    run(&m, core_sequence(&m), want);
    faults("vkWaitSemaphores 2 1 VK_ERROR_OUT_OF_HOST_MEMORY");
    run(&m, core_sequence(&m), got);
    assert_true(happened());
    assert_memory_equal(got, want, sizeof want);
    no_faults();
    core_unload(&m);
}

/* Lost at the submission, at the wait, or while it is waited for otherwise: everything on the device fails from then on and can be closed;
 * opened anew it works, and a model on another device never noticed. */
static void a_lost_device_is_opened_anew(void **state) {
    (void)state;
    NEEDS_DEVICE();
    static const char *const rules[] = {
        "vkQueueSubmit 3 1 VK_ERROR_DEVICE_LOST",
        "vkWaitSemaphores 3 1 VK_ERROR_DEVICE_LOST",
        "vkWaitSemaphores 3 1 VK_ERROR_OUT_OF_HOST_MEMORY\nvkDeviceWaitIdle 0 1 VK_ERROR_DEVICE_LOST",
    };
    int32_t want[RUN], got[RUN], other_want[RUN], other_got[RUN];
    struct core_model m, other;
    core_load(&other, "cpu-scalar", file, NULL);
    run(&other, core_sequence(&other), other_want);
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        core_load(&m, DEVICE, file, NULL);
        run(&m, core_sequence(&m), i == 0 ? want : got);
        if (i > 0) assert_memory_equal(got, want, sizeof want);
        faults(rules[i]);
        const uint32_t sequence = core_sequence(&m);
        enum sh_code code = SH_OK;
        for (int n = 0; n < RUN && code == SH_OK; n++) code = try_step(&m, sequence, 5, NULL);
        assert_int_equal(code, SH_ERR_DEVICE_LOST);
        assert_non_null(strstr(error.message, "lost"));
        assert_true(happened());
        assert_int_equal(try_step(&m, sequence, 5, NULL), SH_ERR_DEVICE_LOST);
        struct core_model second = {0};
        assert_int_equal(try_load(m.devices[0], &second), SH_ERR_DEVICE_LOST);
        no_faults();
        core_unload(&m);
        run(&other, core_sequence(&other), other_got);
        assert_memory_equal(other_got, other_want, sizeof other_want);
    }
    core_load(&m, DEVICE, file, NULL);
    run(&m, core_sequence(&m), got);
    assert_memory_equal(got, want, sizeof want);
    core_unload(&m);
    core_unload(&other);
}

/* A step that does not end is waited for as long as the caller says; when it ends after all, it counts. */
static void a_wait_has_a_limit(void **state) {
    (void)state;
    NEEDS_DEVICE();
    struct core_model m;
    core_load(&m, DEVICE, file, NULL);
    int32_t want = 0;
    core_ok(try_step(&m, core_sequence(&m), 5, &want), &error);
    const uint32_t sequence = core_sequence(&m);
    faults("vkWaitSemaphores 0 0 HOLD");
    sh_ticket ticket;
    struct sh_results results;
    core_ok(try_submit(&m, sequence, 5, &ticket), &error);
    for (int i = 0; i < 2; i++) assert_int_equal(sh_wait(m.context, ticket, 20000000, &results, &error), SH_ERR_TIMEOUT);
    assert_true(happened());
    no_faults();
    core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
    assert_int_equal(results.items[0].token, want);
    core_unload(&m);
}

/* The layer lies beside this program's folder; the driver's loader reads these at the first instance. */
static void load_the_layer(void) {
    char program[512], path[700];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    snprintf(path, sizeof path, "%s/../faults", dirname(program));
    setenv("VK_LAYER_PATH", path, 1);
    setenv("VK_INSTANCE_LAYERS", "VK_LAYER_SHIMMY_faults", 1);
}

int main(void) {
    load_the_layer();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(device_memory_ends_at_every_allocation),
        cmocka_unit_test(a_step_without_memory_fails_alone),
        cmocka_unit_test(a_failed_wait_is_no_failed_step),
        cmocka_unit_test(a_lost_device_is_opened_anew),
        cmocka_unit_test(a_wait_has_a_limit),
    };
    return cmocka_run_group_tests_name("vulkan_faults", tests, set_up, NULL);
}
