/*
 * The Vulkan executor's steps on a small llama: recordings are replayed, tokens stay on the device, pages are copied, errors
 * leave the context usable, and the validation layer has nothing to say.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <glob.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

static const struct tiny_params small = {
    .n_layers = 2,
    .n_embd = 256,
    .n_heads = 8,
    .n_kv_heads = 2,
    .head_dim = 32,
    .n_ff = 512,
    .n_vocab = 500,
    .context = 512,
    .type = SH_TYPE_Q4_K,
    .pairing = SH_ROPE_ADJACENT,
    .bias = true,
    .seed = 3,
};
#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

struct bench {
    struct tiny *t;
    struct sh_device *device;
    struct sh_exec_model *model;
    struct sh_exec_context *context;
    const uint32_t *mask; /* of every token that submit_one samples */
    uint32_t top_k;       /* the same */
};
static struct bench open_bench(const struct tiny_params *params, const char *test, bool validation, uint32_t max_pages) {
    struct bench b = {.t = tiny_create(params), .device = ops_open_vulkan(test, validation)};
    const struct sh_segment segment = tiny_segment(b.t);
    b.model = tiny_load(b.t, b.device, &segment);
    const struct sh_exec_context_params p = {
        .max_rows = 320, .max_outputs = 320, .max_sequences = 8, .max_pages_per_sequence = max_pages};
    struct sh_error err = {0};
    OK(b.device->executor->context_create(b.model, &p, &b.context, &err));
    OK(b.device->executor->pool_reserve(b.context, 0, 32, &err));
    return b;
}
static void close_bench(struct bench *b) {
    b->device->executor->context_destroy(b->context);
    b->device->executor->model_destroy(b->model);
    ops_close(b->device);
    tiny_destroy(b->t);
}

static const uint32_t ascending[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                       16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

/* One row of one sequence on ascending pages, sampled on the device. */
static void submit_one(struct bench *b, uint32_t slot, int32_t token, uint32_t sampled_from, uint32_t position,
                       float temperature) {
    const struct sh_step_row row = {
        .token = token, .sampled_from = sampled_from, .position = position, .role = SH_ROLE_GENERATED};
    const uint32_t *pages[] = {ascending};
    const struct sh_step_sequence sequence = {.n_rows = 1, .pages = pages, .n_pages = position / SH_PAGE_TOKENS + 1};
    const struct sh_step_output output = {.sample = true,
                                          .temperature = temperature,
                                          .top_k = b->top_k,
                                          .top_p = 0.9f,
                                          .seed = 9,
                                          .position = position + 1,
                                          .mask = b->mask};
    const struct sh_step step = {
        .rows = &row, .n_rows = 1, .sequences = &sequence, .n_sequences = 1, .outputs = &output, .n_outputs = 1};
    struct sh_error err = {0};
    OK(b->device->executor->submit(b->context, slot, 0, &step, &err));
}
static int32_t wait_one(struct bench *b, uint32_t slot) {
    struct sh_step_result result;
    struct sh_error err = {0};
    OK(b->device->executor->wait(b->context, slot, -1, &result, &err));
    return result.tokens[0];
}

/* A prompt, then steps that are submitted before the one before is known to the host. */
static void decode_overlapped(struct bench *b, uint32_t n_prompt, uint32_t n, float temperature, int32_t *tokens) {
    int32_t *prompt = calloc(n_prompt, sizeof *prompt);
    assert_non_null(prompt);
    for (uint32_t i = 0; i < n_prompt; i++) prompt[i] = (int32_t)(i * 37 % b->t->params.n_vocab);
    if (n_prompt > 1) free(tiny_run(b->t, b->device, b->context, 0, prompt, n_prompt - 1, 0, 0, SH_ROLE_PROMPT));
    submit_one(b, 1, prompt[n_prompt - 1], SH_NONE, n_prompt - 1, temperature);
    for (uint32_t i = 1; i < n; i++) {
        submit_one(b, (i + 1) & 1, 0, 0, n_prompt - 1 + i, temperature);
        tokens[i - 1] = wait_one(b, i & 1);
    }
    tokens[n - 1] = wait_one(b, n & 1);
    free(prompt);
}

static uint32_t one_in_three[16]; /* of the vocabulary of 500 */
static int fill_mask(void **state) {
    (void)state;
    for (uint32_t t = 0; t < 512; t += 3) one_in_three[t / 32] |= 1u << t % 32;
    return 0;
}

static void validation_is_silent(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, true, 12);
    int32_t tokens[50];
    decode_overlapped(&b, 300, 50, 0.8f, tokens);
    b.mask = one_in_three;
    decode_overlapped(&b, 3, 20, 0.8f, tokens);
    assert_int_equal(b.device->executor->validation_count(b.device), 0);
    close_bench(&b);
}

static void decoding_is_a_replay(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 16);
    int32_t tokens[120];
    decode_overlapped(&b, 40, 3, 0, tokens);
    const uint64_t before = sh_vk_recordings_for_test(b.context);
    decode_overlapped(&b, 1, 120, 0, tokens);
    assert_int_equal(sh_vk_recordings_for_test(b.context), before); /* one per slot, made by the first three tokens */
    b.mask = one_in_three; /* the same recordings, whatever is masked */
    decode_overlapped(&b, 1, 60, 1.5f, tokens);
    for (int i = 0; i < 60; i++) assert_int_equal(tokens[i] % 3, 0);
    assert_int_equal(sh_vk_recordings_for_test(b.context), before);
    close_bench(&b);
}

/* Tokens that never left the device are those that the host would have fed. */
static void sampled_tokens_stay_on_the_device(void **state) {
    (void)state;
    for (int t = 0; t < 3; t++) {
        const float temperature = t ? 1.2f : 0;
        struct bench b = open_bench(&small, __func__, false, 16);
        b.top_k = t == 2 ? 40 : 0;
        int32_t overlapped[60], fed[60];
        decode_overlapped(&b, 7, 60, temperature, overlapped);
        int32_t prompt[6];
        for (int i = 0; i < 6; i++) prompt[i] = i * 37 % (int32_t)small.n_vocab;
        free(tiny_run(b.t, b.device, b.context, 0, prompt, 6, 0, 0, SH_ROLE_PROMPT));
        int32_t token = 6 * 37 % (int32_t)small.n_vocab;
        for (uint32_t i = 0; i < 60; i++) {
            submit_one(&b, i & 1, token, SH_NONE, 6 + i, temperature);
            fed[i] = token = wait_one(&b, i & 1);
        }
        assert_memory_equal(overlapped, fed, sizeof fed);
        close_bench(&b);
    }
}

/* Sequences of one step give the bits that each gives alone, and a prompt the bits of any chunking, also with f16 pages in
 * another order. */
static void batched_is_alone(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 16);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    enum { N = 5, LENGTH = 50 };
    int32_t tokens[N][LENGTH];
    float *alone[N];
    for (uint32_t s = 0; s < N; s++) {
        for (uint32_t i = 0; i < LENGTH; i++) tokens[s][i] = (int32_t)((s * 91 + i * 7) % small.n_vocab);
        free(tiny_run(b.t, b.device, b.context, 0, tokens[s], 20, 0, 0, SH_ROLE_PROMPT));
        alone[s] = tiny_run(b.t, b.device, b.context, 0, tokens[s] + 20, 30, 20, 0, SH_ROLE_PROMPT); /* crosses a page */
    }
    struct sh_step_row rows[N * LENGTH];
    struct sh_step_sequence sequences[N];
    struct sh_step_output outputs[N * 3];
    uint32_t pages[N][2], n_rows = 0, n_outputs = 0;
    const uint32_t *tables[N][1];
    for (uint32_t s = 0; s < N; s++) {
        pages[s][0] = 31 - 2 * s;
        pages[s][1] = 2 * s;
        tables[s][0] = pages[s];
        sequences[s] = (struct sh_step_sequence){.first_row = n_rows, .n_rows = LENGTH, .pages = tables[s], .n_pages = 2};
        for (uint32_t i = 0; i < LENGTH; i++) {
            rows[n_rows] = (struct sh_step_row){.token = tokens[s][i], .sampled_from = SH_NONE, .sequence = s, .position = i};
            if (i == 20 || i == 33 || i == LENGTH - 1)
                outputs[n_outputs++] = (struct sh_step_output){.row = n_rows, .want_logits = true};
            n_rows++;
        }
    }
    const struct sh_step step = {
        .rows = rows, .n_rows = n_rows, .sequences = sequences, .n_sequences = N, .outputs = outputs, .n_outputs = n_outputs};
    OK(e->submit(b.context, 1, 0, &step, &err));
    struct sh_step_result result;
    OK(e->wait(b.context, 1, -1, &result, &err));
    const size_t row_bytes = small.n_vocab * sizeof(float);
    for (uint32_t s = 0; s < N; s++) {
        assert_memory_equal(result.logits[3 * s], alone[s], row_bytes);
        assert_memory_equal(result.logits[3 * s + 1], alone[s] + 13 * small.n_vocab, row_bytes);
        assert_memory_equal(result.logits[3 * s + 2], alone[s] + 29 * small.n_vocab, row_bytes);
        free(alone[s]);
    }
    close_bench(&b);
}

static void logits_agree_with_double(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 16);
    int32_t tokens[40];
    for (uint32_t i = 0; i < 40; i++) tokens[i] = (int32_t)(i * 131 % small.n_vocab);
    float *got = tiny_run(b.t, b.device, b.context, 0, tokens, 31, 0, 0, SH_ROLE_PROMPT), *want = tiny_reference(b.t, tokens, 31);
    /* An f16 cache rounds keys and values to 2^-11; sums of some hundred terms through two layers add 1e-5. */
    const float tolerance = 2e-3f * test_max_magnitude(want, 31 * (size_t)small.n_vocab);
    const float most = test_max_difference(got, want, 31 * (size_t)small.n_vocab);
    if (!(most <= tolerance)) fail_msg("largest difference %g, allowed %g", (double)most, (double)tolerance);
    free(got);
    free(want);
    close_bench(&b);
}

static void copied_page_continues_alike(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 16);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    int32_t tokens[20];
    for (uint32_t i = 0; i < 20; i++) tokens[i] = (int32_t)(i * 17 % small.n_vocab);
    float *want = tiny_run(b.t, b.device, b.context, 0, tokens, 20, 0, 5, SH_ROLE_PROMPT);
    OK(e->page_copy(b.context, 0, 5, 9, 11, &err));
    float *got = tiny_run(b.t, b.device, b.context, 0, tokens + 11, 9, 11, 9, SH_ROLE_PROMPT);
    assert_memory_equal(got, want + 11 * (size_t)small.n_vocab, 9 * small.n_vocab * sizeof *got);
    for (uint32_t i = 0; i < 40; i++) OK(e->page_copy(b.context, 0, 9, 10 + i % 3, 32, &err)); /* more than are kept under way */
    assert_int_equal(e->page_copy(b.context, 0, 9, 32, 1, &err), SH_ERR_INVALID);
    free(got);
    got = tiny_run(b.t, b.device, b.context, 0, tokens + 19, 1, 19, 11, SH_ROLE_GENERATED);
    assert_memory_equal(got, want + 19 * (size_t)small.n_vocab, small.n_vocab * sizeof *got);
    free(got);
    free(want);
    close_bench(&b);
}

static void refused_steps_leave_the_context_usable(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 2);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    const uint32_t bad_pages[] = {32, 0};
    const uint32_t *pages[] = {bad_pages};
    struct sh_step_row row = {.token = 1, .sampled_from = SH_NONE};
    struct sh_step_sequence sequence = {.n_rows = 1, .pages = pages, .n_pages = 1};
    const struct sh_step step = {.rows = &row, .n_rows = 1, .sequences = &sequence, .n_sequences = 1};
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID); /* no such page */
    sequence.n_pages = 3;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID); /* more pages than the context was made for */
    sequence.n_pages = 1;
    pages[0] = ascending;
    row.position = 32;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID); /* beyond the pages */
    row.position = 0;
    row.sampled_from = 3;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID); /* nothing was sampled there */
    const struct sh_step many = {.n_rows = 321};
    assert_int_equal(e->submit(b.context, 0, 0, &many, &err), SH_ERR_LIMIT);
    row.sampled_from = SH_NONE;
    OK(e->submit(b.context, 0, 0, &step, &err));
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_BUSY);
    struct sh_step_result result;
    OK(e->wait(b.context, 0, -1, &result, &err));
    assert_int_equal(e->wait(b.context, 0, -1, &result, &err), SH_ERR_INVALID);
    close_bench(&b);
}

/* A row whose logits are not numbers gets no token; the others of its step do, and the device works on. */
static void nan_logits_cost_their_row(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 2);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    float embedding[2][256];
    for (int i = 0; i < 256; i++) {
        embedding[0][i] = NAN;
        embedding[1][i] = (float)(i % 7);
    }
    const uint32_t *pages[] = {ascending}, *others[] = {ascending + 1};
    struct sh_step_row rows[] = {{.sampled_from = SH_NONE, .embedding = embedding[0]},
                                 {.sampled_from = SH_NONE, .embedding = embedding[1], .sequence = 1}};
    const struct sh_step_sequence sequences[] = {{.n_rows = 1, .pages = pages, .n_pages = 1},
                                                 {.first_row = 1, .n_rows = 1, .pages = others, .n_pages = 1}};
    const struct sh_step_output outputs[] = {{.row = 0, .sample = true}, {.row = 1, .sample = true}};
    const struct sh_step both = {
        .rows = rows, .n_rows = 2, .sequences = sequences, .n_sequences = 2, .outputs = outputs, .n_outputs = 2};
    const struct sh_step_sequence alone = {.n_rows = 1, .pages = others, .n_pages = 1};
    const struct sh_step second = {
        .rows = rows + 1, .n_rows = 1, .sequences = &alone, .n_sequences = 1, .outputs = outputs, .n_outputs = 1};
    struct sh_step_result result;
    OK(e->submit(b.context, 0, 0, &both, &err));
    OK(e->wait(b.context, 0, -1, &result, &err));
    assert_int_equal(result.tokens[0], -1);
    const int32_t token = result.tokens[1];
    assert_true(token >= 0);
    rows[1].sequence = 0;
    OK(e->submit(b.context, 1, 0, &second, &err));
    OK(e->wait(b.context, 1, -1, &result, &err));
    assert_int_equal(result.tokens[0], token);
    close_bench(&b);
}

/* What the kernels' 32-bit indices cannot reach is refused with the figures, before memory is taken for it. */
static void contexts_beyond_the_indices_are_refused(void **state) {
    (void)state;
    struct tiny_params wide = small;
    wide.n_ff = 33024; /* gate and up stand side by side */
    struct bench b = open_bench(&wide, __func__, false, 2);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    struct sh_exec_context *context = NULL;
    struct sh_device_memory before, after;
    e->device_memory(b.device, &before);
    const struct sh_exec_context_params rows = {
        .max_rows = 65535, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = 2};
    assert_int_equal(e->context_create(b.model, &rows, &context, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "65535 rows of 66048 floats"));
    e->device_memory(b.device, &after);
    assert_memory_equal(&before, &after, sizeof before);
    close_bench(&b);
}

/* So are heads larger than the kernels' shared memory, before the weights are loaded. */
static void large_heads_are_refused(void **state) {
    (void)state;
    struct tiny_params large = small;
    large.n_heads = large.n_kv_heads = 1;
    large.head_dim = 544;
    large.type = SH_TYPE_Q8_0;
    struct tiny *t = tiny_create(&large);
    struct sh_device *device = ops_open_vulkan(__func__, false);
    const struct sh_segment segment = tiny_segment(t);
    struct sh_exec_model *model = NULL;
    struct sh_error err = {0};
    assert_int_equal(device->executor->model_create(device, &segment, 1, &model, &err), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "keys of 544 and values of 544 dimensions, the kernels take up to 576 and 512"));
    assert_null(model);
    ops_close(device);
    tiny_destroy(t);
}

/* After a lost device everything fails in the same way, and what was made can be destroyed. */
static void a_lost_device_is_an_ordinary_error(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 2);
    struct sh_error err = {0};
    assert_int_equal(sh_vk_fail(sh_vulkan_of(b.device), VK_ERROR_DEVICE_LOST, "test", &err), SH_ERR_DEVICE_LOST);
    const struct sh_step step = {.n_rows = 1};
    assert_int_equal(b.device->executor->submit(b.context, 0, 0, &step, &err), SH_ERR_DEVICE_LOST);
    assert_int_equal(b.device->executor->pool_reserve(b.context, 0, 64, &err), SH_ERR_DEVICE_LOST);
    close_bench(&b);
}

static VKAPI_ATTR VkResult VKAPI_CALL cannot_wait(VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t timeout_ns) {
    (void)device, (void)info, (void)timeout_ns;
    return VK_ERROR_OUT_OF_HOST_MEMORY;
}
static VKAPI_ATTR VkResult VKAPI_CALL cannot_idle(VkDevice device) {
    (void)device;
    return VK_ERROR_OUT_OF_HOST_MEMORY;
}
/* A wait that fails for want of memory says nothing about the step: the whole device is waited for, and the step's results are good.
 * Where that fails too, nothing is known of the device any more. */
static void a_failed_wait_does_not_free_what_runs(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 2);
    struct sh_vulkan *vk = sh_vulkan_of(b.device);
    const PFN_vkWaitSemaphores wait = vk->WaitSemaphores;
    struct sh_step_result result;
    struct sh_error err = {0};
    int32_t tokens[2];
    for (int round = 0; round < 2; round++) {
        submit_one(&b, 0, 7, SH_NONE, 0, 0);
        if (round == 1) vk->WaitSemaphores = cannot_wait;
        tokens[round] = wait_one(&b, 0);
    }
    assert_int_equal(tokens[1], tokens[0]);
    vk->WaitSemaphores = wait;
    submit_one(&b, 0, 7, SH_NONE, 0, 0);
    const PFN_vkDeviceWaitIdle idle = vk->DeviceWaitIdle;
    vk->WaitSemaphores = cannot_wait;
    vk->DeviceWaitIdle = cannot_idle;
    assert_int_equal(b.device->executor->wait(b.context, 0, -1, &result, &err), SH_ERR_DEVICE_LOST);
    assert_int_equal(b.device->executor->pool_reserve(b.context, 0, 64, &err), SH_ERR_DEVICE_LOST);
    vk->WaitSemaphores = wait;
    vk->DeviceWaitIdle = idle;
    assert_int_equal(vk->DeviceWaitIdle(vk->device), VK_SUCCESS); /* before its memory goes */
    close_bench(&b);
}

struct worker {
    struct bench *bench;
    int32_t tokens[30];
};
static void *work(void *arg) {
    struct worker *w = arg;
    decode_overlapped(w->bench, 9, 30, 0.5f, w->tokens);
    return NULL;
}
/* Two contexts of one model, each in a thread of its own. */
static void contexts_run_side_by_side(void **state) {
    (void)state;
    struct bench b = open_bench(&small, __func__, false, 16), other = b;
    struct sh_error err = {0};
    const struct sh_exec_context_params p = {.max_rows = 64, .max_outputs = 64, .max_sequences = 1, .max_pages_per_sequence = 16};
    OK(b.device->executor->context_create(b.model, &p, &other.context, &err));
    OK(b.device->executor->pool_reserve(other.context, 0, 16, &err));
    struct worker one = {.bench = &b}, two = {.bench = &other};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, work, &two), 0);
    work(&one);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_memory_equal(one.tokens, two.tokens, sizeof one.tokens);
    b.device->executor->context_destroy(other.context);
    close_bench(&b);
}

/* The one cache file of a folder; its path in path. */
static uint8_t *read_cache(const char *dir, char path[640], size_t *bytes) {
    glob_t found;
    char pattern[560];
    snprintf(pattern, sizeof pattern, "%s/pipelines-*.bin", dir);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    snprintf(path, 640, "%s", found.gl_pathv[0]);
    globfree(&found);
    return test_read_file(path, bytes);
}

/* The pipeline cache is written and read again; a damaged one is not given to the driver but replaced. */
static void pipeline_cache_survives(void **state) {
    (void)state;
    struct sh_device *first = OPS_OPEN_VULKAN();
    const struct sh_device_info info = first->info;
    ops_close(first);
    char dir[512], path[640];
    snprintf(dir, sizeof dir, "%s", test_scratch("cache"));
    assert_int_equal(mkdir(dir, 0700), 0);
    const struct sh_device_params params = {.size = sizeof params, .info = &info, .cache_dir = dir};
    for (int round = 0; round < 3; round++) {
        struct sh_device *device = NULL;
        struct sh_error err = {0};
        OK(sh_vulkan_open(&params, &device, &err));
        VkPipeline pipeline;
        OK(sh_vk_pipeline(sh_vulkan_of(device), SH_KERNEL_add, &pipeline, &err));
        device->executor->device_close(device);
        size_t bytes;
        uint8_t *data = read_cache(dir, path, &bytes);
        assert_true(bytes > 16);
        uint32_t length;
        memcpy(&length, data + 4, 4);
        assert_int_equal(length + 16, bytes); /* whole again after the damage of the round before */
        memset(data + 16, 0x5a, bytes - 16);
        if (round < 2) test_write_file(path, data, bytes - (size_t)round); /* other bytes, then also too short */
        free(data);
    }
    remove(path);
    remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(validation_is_silent),
        cmocka_unit_test(decoding_is_a_replay),
        cmocka_unit_test(sampled_tokens_stay_on_the_device),
        cmocka_unit_test(batched_is_alone),
        cmocka_unit_test(logits_agree_with_double),
        cmocka_unit_test(copied_page_continues_alike),
        cmocka_unit_test(refused_steps_leave_the_context_usable),
        cmocka_unit_test(nan_logits_cost_their_row),
        cmocka_unit_test(contexts_beyond_the_indices_are_refused),
        cmocka_unit_test(large_heads_are_refused),
        cmocka_unit_test(a_lost_device_is_an_ordinary_error),
        cmocka_unit_test(a_failed_wait_does_not_free_what_runs),
        cmocka_unit_test(contexts_run_side_by_side),
        cmocka_unit_test(pipeline_cache_survives),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, fill_mask, NULL);
}
