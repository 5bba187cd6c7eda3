/*
 * Pipelines: a context makes all that its steps will ask for, with several threads, and no other; a driver that fails to make one costs
 * that context and nothing else; threads that want the same kernel share it.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

static const struct tiny_params small = {
    .n_layers = 2,
    .n_embd = 128,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 32,
    .n_ff = 128,
    .n_vocab = 100,
    .context = 128,
    .type = SH_TYPE_Q8_0,
    .pairing = SH_ROPE_ADJACENT,
    .seed = 5,
};
static const struct sh_exec_context_params params = {
    .max_rows = 64, .max_outputs = 64, .max_sequences = 2, .max_pages_per_sequence = 4};

/* The driver's function, and what stands before it in these tests. */
static PFN_vkCreateComputePipelines driver;
static _Atomic uint32_t calls, inside, most_inside, fail_from;

static VKAPI_ATTR VkResult VKAPI_CALL watched(VkDevice device, VkPipelineCache cache, uint32_t n, const VkComputePipelineCreateInfo *infos,
                                              const VkAllocationCallbacks *callbacks, VkPipeline *made) {
    const uint32_t call = atomic_fetch_add(&calls, 1), now = atomic_fetch_add(&inside, 1) + 1;
    uint32_t most = atomic_load(&most_inside);
    while (most < now && !atomic_compare_exchange_weak(&most_inside, &most, now)) continue;
    const struct timespec nap = {0, 5000000};
    nanosleep(&nap, NULL); /* so that others come */
    const VkResult result = call >= atomic_load(&fail_from) ? VK_ERROR_OUT_OF_HOST_MEMORY : driver(device, cache, n, infos, callbacks, made);
    atomic_fetch_sub(&inside, 1);
    return result;
}
static void watch(struct sh_device *device, uint32_t fail) {
    struct sh_vulkan *vk = sh_vulkan_of(device);
    driver = vk->CreateComputePipelines;
    vk->CreateComputePipelines = watched;
    atomic_store(&calls, 0);
    atomic_store(&most_inside, 0);
    atomic_store(&fail_from, fail);
}
static void unwatch(struct sh_device *device) { sh_vulkan_of(device)->CreateComputePipelines = driver; }

static uint32_t cores(void) {
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return (uint32_t)CPU_COUNT(&set);
}

static void a_context_makes_what_its_steps_take(void **state) {
    (void)state;
    struct sh_device *device = OPS_OPEN_VULKAN();
    struct tiny *t = tiny_create(&small);
    const struct sh_segment segment = tiny_segment(t);
    struct sh_exec_model *model = tiny_load(t, device, &segment);
    struct sh_exec_context *context, *again;
    struct sh_error err = {0};
    watch(device, UINT32_MAX);
    OK(device->executor->context_create(model, &params, &context, &err));
    const uint32_t made = sh_vk_pipelines_made_for_test(sh_vulkan_of(device));
    assert_int_equal(atomic_load(&calls), made); /* each once */
    assert_in_range(made, 10, 40);
    if (cores() > 1) assert_true(atomic_load(&most_inside) > 1);
    assert_true(atomic_load(&most_inside) <= cores());

    OK(device->executor->pool_reserve(context, 0, 8, &err));
    int32_t tokens[64];
    for (int32_t i = 0; i < 64; i++) tokens[i] = i;
    uint32_t at = 0;
    for (uint32_t n = 1; at + n < 120; n = n * 3 + 1) { /* 1, 4, 13, 40 rows */
        free(tiny_run(t, device, context, at & 1, tokens, n, at, 0, SH_ROLE_PROMPT));
        at += n;
    }
    OK(device->executor->context_create(model, &params, &again, &err));
    assert_int_equal(atomic_load(&calls), made);
    unwatch(device);
    device->executor->context_destroy(again);
    device->executor->context_destroy(context);
    device->executor->model_destroy(model);
    ops_close(device);
    tiny_destroy(t);
}

static void a_kernel_that_cannot_be_made_costs_the_context(void **state) {
    (void)state;
    struct sh_device *device = OPS_OPEN_VULKAN();
    struct tiny *t = tiny_create(&small);
    const struct sh_segment segment = tiny_segment(t);
    struct sh_exec_model *model = tiny_load(t, device, &segment);
    struct sh_device_memory before, after;
    struct sh_exec_context *context;
    struct sh_error err = {0};
    device->executor->device_memory(device, &before);
    watch(device, 7);
    assert_int_equal(device->executor->context_create(model, &params, &context, &err), SH_ERR_NO_MEMORY);
    assert_non_null(strstr(err.message, "no host memory"));
    assert_null(context);
    assert_int_equal(sh_vk_pipelines_made_for_test(sh_vulkan_of(device)), 7);
    assert_true(atomic_load(&calls) <= 7 + cores()); /* nothing new was begun */
    device->executor->device_memory(device, &after);
    assert_int_equal(after.activation_bytes + after.staging_bytes, before.activation_bytes + before.staging_bytes);
    unwatch(device);
    OK(device->executor->context_create(model, &params, &context, &err)); /* the device is as good as before */
    device->executor->context_destroy(context);
    device->executor->model_destroy(model);
    ops_close(device);
    tiny_destroy(t);
}

static void *ask(void *arg) {
    struct sh_error err = {0};
    bool wanted[SH_KERNEL_COUNT] = {[SH_KERNEL_add] = true, [SH_KERNEL_norm] = true, [SH_KERNEL_gather] = true, [SH_KERNEL_copy] = true};
    return sh_vk_pipelines_make(arg, wanted, &err) == SH_OK ? arg : NULL;
}
static void threads_share_a_kernel(void **state) {
    (void)state;
    struct sh_device *device = OPS_OPEN_VULKAN();
    struct sh_vulkan *vk = sh_vulkan_of(device);
    pthread_t threads[4];
    watch(device, UINT32_MAX);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, ask, vk), 0);
    for (int i = 0; i < 4; i++) {
        void *result;
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_ptr_equal(result, vk);
    }
    assert_int_equal(atomic_load(&calls), 4);
    assert_int_equal(sh_vk_pipelines_made_for_test(vk), 4);
    unwatch(device);
    ops_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_context_makes_what_its_steps_take),
        cmocka_unit_test(a_kernel_that_cannot_be_made_costs_the_context),
        cmocka_unit_test(threads_share_a_kernel),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
