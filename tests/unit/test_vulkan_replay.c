/*
 * A step in steady state is a replay: the host fills the parameter block and submits what was recorded once. Counted are the driver's calls,
 * for steps of every size that a bucket holds, across pages and splits of the cache, with masks, temperatures and outputs that come and go;
 * and two steps in flight are computed by the device without a word of the host between them. And counted is what a layer of a llama costs in
 * dispatches.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

static const struct tiny_params small = {
    .n_layers = 1,
    .n_embd = 64,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 16,
    .n_ff = 64,
    .n_vocab = 100,
    .context = 512,
    .type = SH_TYPE_Q8_0,
    .pairing = SH_ROPE_ADJACENT,
    .seed = 7,
};
enum { SEQUENCES = 8, PAGES = 10 };

/* ---- the driver's calls ---- */

static struct {
    uint32_t begun, dispatches, submissions, waits, memory;
} calls;
static struct sh_vulkan driver; /* its functions as they were */

static VKAPI_ATTR VkResult VKAPI_CALL begin(VkCommandBuffer commands, const VkCommandBufferBeginInfo *info) {
    calls.begun++;
    return driver.BeginCommandBuffer(commands, info);
}
static VKAPI_ATTR void VKAPI_CALL dispatch(VkCommandBuffer commands, VkBuffer buffer, VkDeviceSize offset) {
    calls.dispatches++;
    driver.CmdDispatchIndirect(commands, buffer, offset);
}
static VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t n, const VkSubmitInfo *submits, VkFence fence) {
    calls.submissions += n;
    return driver.QueueSubmit(queue, n, submits, fence);
}
static VKAPI_ATTR VkResult VKAPI_CALL wait(VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t timeout) {
    calls.waits++;
    return driver.WaitSemaphores(device, info, timeout);
}
static VKAPI_ATTR VkResult VKAPI_CALL allocate(VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *callbacks,
                                               VkDeviceMemory *memory) {
    calls.memory++;
    return driver.AllocateMemory(device, info, callbacks, memory);
}

struct bench {
    struct tiny *t;
    struct sh_device *device;
    struct sh_exec_model *model;
    struct sh_exec_context *context;
};
static struct bench open_bench_of(const char *test, const struct tiny_params *params, const char *tier) {
    struct bench b = {.t = tiny_create(params), .device = ops_open_vulkan_tier(test, tier)};
    const struct sh_segment segment = tiny_segment(b.t);
    struct sh_error err = {0};
    b.model = tiny_load(b.t, b.device, &segment);
    const struct sh_exec_context_params p = {
        .max_rows = 32, .max_outputs = 32, .max_sequences = SEQUENCES, .max_pages_per_sequence = PAGES};
    OK(b.device->executor->context_create(b.model, &p, &b.context, &err));
    OK(b.device->executor->pool_reserve(b.context, 0, SEQUENCES * PAGES, &err));
    struct sh_vulkan *vk = sh_vulkan_of(b.device);
    driver = *vk;
    vk->BeginCommandBuffer = begin;
    vk->CmdDispatchIndirect = dispatch;
    vk->QueueSubmit = submit;
    vk->WaitSemaphores = wait;
    vk->AllocateMemory = allocate;
    return b;
}
static struct bench open_bench(const char *test) { return open_bench_of(test, &small, "base"); }
static void close_bench(struct bench *b) {
    b->device->executor->context_destroy(b->context);
    b->device->executor->model_destroy(b->model);
    ops_close(b->device);
    tiny_destroy(b->t);
}

static uint32_t even_tokens[4]; /* of the vocabulary of 100 */

/* One row of each of n sequences at `position`, sampled; the token is the last step's of the same sequence if `follow`. */
struct one_step {
    uint32_t slot, n, position;
    bool follow, masked, logits;
    float temperature;
};
static void submit_step(struct bench *b, const struct one_step *s) {
    struct sh_step_row rows[SEQUENCES];
    struct sh_step_sequence sequences[SEQUENCES];
    struct sh_step_output outputs[SEQUENCES];
    uint32_t pages[SEQUENCES][PAGES];
    const uint32_t *tables[SEQUENCES][1];
    for (uint32_t i = 0; i < s->n; i++) {
        for (uint32_t p = 0; p < PAGES; p++) pages[i][p] = i * PAGES + p;
        tables[i][0] = pages[i];
        rows[i] = (struct sh_step_row){.token = (int32_t)(i + s->position) % 100,
                                       .sampled_from = s->follow ? i : SH_NONE,
                                       .sequence = i,
                                       .position = s->position,
                                       .role = SH_ROLE_GENERATED};
        sequences[i] = (struct sh_step_sequence){
            .first_row = i, .n_rows = 1, .pages = tables[i], .n_pages = s->position / SH_PAGE_TOKENS + 1};
        outputs[i] = (struct sh_step_output){.row = i,
                                             .sample = true,
                                             .temperature = s->temperature,
                                             .seed = 3,
                                             .choice = i,
                                             .position = s->position + 1,
                                             .want_logits = s->logits,
                                             .mask = s->masked ? even_tokens : NULL};
    }
    const struct sh_step step = {
        .rows = rows, .n_rows = s->n, .sequences = sequences, .n_sequences = s->n, .outputs = outputs, .n_outputs = s->n};
    struct sh_error err = {0};
    OK(b->device->executor->submit(b->context, s->slot, 0, &step, &err));
}
static void wait_step(struct bench *b, uint32_t slot, int32_t *tokens, uint32_t n) {
    struct sh_step_result result;
    struct sh_error err = {0};
    OK(b->device->executor->wait(b->context, slot, -1, &result, &err));
    if (tokens) memcpy(tokens, result.tokens, n * sizeof *tokens);
}

static void a_step_in_steady_state_is_a_submission(void **state) {
    (void)state;
    struct bench b = open_bench(__func__);
    /* Each size once in each slot, with everything that a step may want. */
    for (uint32_t n = 1; n <= SEQUENCES; n *= 2)
        for (uint32_t slot = 0; slot < 2; slot++) {
            submit_step(&b, &(struct one_step){.slot = slot, .n = n, .masked = true, .logits = true});
            wait_step(&b, slot, NULL, n);
        }
    for (uint32_t n = 1; n <= SEQUENCES; n *= 2) /* what grew for the larger made the smaller ones anew */
        for (uint32_t slot = 0; slot < 2; slot++) {
            submit_step(&b, &(struct one_step){.slot = slot, .n = n});
            wait_step(&b, slot, NULL, n);
        }
    assert_true(calls.dispatches > 0 && calls.begun > 0);
    const uint64_t recordings = sh_vk_recordings_for_test(b.context);
    memset(&calls, 0, sizeof calls);
    uint32_t steps = 0;
    for (uint32_t position = 1; position < 300; position += position < 250 && position > 40 ? 23 : 1) { /* over a split's border at 256 */
        const uint32_t n = 1 + position % SEQUENCES;
        submit_step(&b, &(struct one_step){.slot = steps & 1,
                                           .n = n,
                                           .position = position,
                                           .masked = position % 3 == 0,
                                           .logits = position % 5 == 0,
                                           .temperature = position % 2 ? 0.7f : 0});
        wait_step(&b, steps & 1, NULL, n);
        steps++;
    }
    assert_int_equal(sh_vk_recordings_for_test(b.context), recordings);
    assert_int_equal(calls.begun, 0);
    assert_int_equal(calls.dispatches, 0);
    assert_int_equal(calls.memory, 0);
    assert_int_equal(calls.submissions, steps); /* the model is too small to be cut */
    assert_int_equal(calls.waits, steps);
    close_bench(&b);
}

/* The step after is submitted before the one before is waited for, takes its tokens on the device, and is done when the host first looks. */
static void the_device_goes_on_alone(void **state) {
    (void)state;
    enum { STEPS = 40, N = 3 };
    struct bench b = open_bench(__func__);
    int32_t overlapped[STEPS][N], one_by_one[STEPS][N];
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < STEPS; i += 2) {
            for (uint32_t k = 0; k < 2; k++) {
                submit_step(&b, &(struct one_step){.slot = k, .n = N, .position = i + k, .follow = i + k > 0, .temperature = 0.9f});
                if (pass == 0) wait_step(&b, k, one_by_one[i + k], N);
            }
            if (pass == 0) continue;
            memset(&calls, 0, sizeof calls);
            wait_step(&b, 1, overlapped[i + 1], N); /* of the later: the earlier was never asked for */
            assert_int_equal(calls.submissions, 0);
            wait_step(&b, 0, overlapped[i], N);
        }
    }
    assert_memory_equal(overlapped, one_by_one, sizeof overlapped);
    close_bench(&b);
}

/* Of a step of n rows, for each layer. */
static uint32_t count_dispatches(const char *test, const char *tier, bool bias, uint32_t n) {
    uint32_t counted[2];
    for (uint32_t i = 0; i < 2; i++) {
        struct tiny_params params = small;
        params.n_layers = 1 + i;
        params.bias = bias;
        params.head_dim = 32; /* a unit of int8 */
        struct bench b = open_bench_of(test, &params, tier);
        memset(&calls, 0, sizeof calls);
        submit_step(&b, &(struct one_step){.n = n});
        wait_step(&b, 0, NULL, n);
        counted[i] = calls.dispatches;
        close_bench(&b);
    }
    return counted[1] - counted[0];
}

/* Norm; q, k and v; rotation and cache; attention in two; output with its residual; norm; gate, up and GLU; down with its residual. With
 * activations of 8 bits the norms and attention make these, and one more those of what the GLU gives. */
static void a_layer_is_nine_dispatches(void **state) {
    (void)state;
    for (uint32_t n = 1; n <= SEQUENCES; n += SEQUENCES - 1) {
        assert_int_equal(count_dispatches(__func__, "base", false, n), 9);
        assert_int_equal(count_dispatches(__func__, "base", true, n), 9);
        assert_int_equal(count_dispatches(__func__, "intdot", true, n), 10);
    }
}

static int fill_mask(void **state) {
    (void)state;
    for (uint32_t t = 0; t < 128; t += 2) even_tokens[t / 32] |= 1u << t % 32;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_in_steady_state_is_a_submission),
        cmocka_unit_test(the_device_goes_on_alone),
        cmocka_unit_test(a_layer_is_nine_dispatches),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, fill_mask, NULL);
}
