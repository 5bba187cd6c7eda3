/* The CPU executor against a plain double-precision forward pass, and the equalities of the numerics contract, for every
 * instruction set that this machine has. */
#include "compute/cpu/kernels.h"
#include "compute/cpu/pool.h"
#include "tests/unit/tiny_llama.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define N_TOKENS 77

static const struct tiny_params f32_params = {
    .n_layers = 2,
    .n_embd = 96,
    .n_heads = 6,
    .n_kv_heads = 2,
    .head_dim = 16,
    .n_ff = 172,
    .n_vocab = 301,
    .context = 128,
    .type = SH_TYPE_F32,
    .pairing = SH_ROPE_ADJACENT,
    .bias = true,
    .seed = 11,
};

static struct sh_device *open_cpu(const char *tier, uint32_t threads) {
    const struct sh_device_params params = {.size = sizeof params, .tier = tier, .threads = threads};
    struct sh_device *device = NULL;
    struct sh_error err = {0};
    if (sh_cpu_open(&params, &device, &err) != SH_OK) fail_msg("%s", err.message);
    return device;
}

static struct sh_exec_context *open_context(struct sh_device *device, struct sh_exec_model *model, enum sh_kv_type kv_type) {
    const struct sh_exec_context_params params = {
        .kv_type = kv_type, .max_rows = 128, .max_outputs = 128, .max_sequences = 4, .max_pages_per_sequence = 24};
    struct sh_exec_context *context = NULL;
    struct sh_error err = {0};
    if (device->executor->context_create(model, &params, &context, &err) != SH_OK) fail_msg("%s", err.message);
    return context;
}

static void some_tokens(int32_t *tokens, uint32_t n, uint32_t n_vocab, uint64_t seed) {
    struct test_rng rng = {seed};
    for (uint32_t i = 0; i < n; i++) tokens[i] = (int32_t)(test_random(&rng) % n_vocab);
}

struct bench { /* a device, a model on it, a context */
    struct tiny *t;
    struct sh_device *device;
    struct sh_exec_model *model;
    struct sh_exec_context *context;
};
static struct bench open_bench(const struct tiny_params *params, const char *tier, uint32_t threads, enum sh_kv_type kv_type) {
    struct bench b = {.t = tiny_create(params), .device = open_cpu(tier, threads)};
    const struct sh_segment segment = tiny_segment(b.t);
    b.model = tiny_load(b.t, b.device, &segment);
    b.context = open_context(b.device, b.model, kv_type);
    return b;
}
static void close_bench(struct bench *b) {
    const struct sh_executor *e = b->device->executor;
    e->context_destroy(b->context);
    e->model_destroy(b->model);
    struct sh_device_memory memory;
    e->device_memory(b->device, &memory);
    assert_int_equal(memory.weights_bytes + memory.cache_bytes + memory.activation_bytes + memory.staging_bytes, 0);
    e->device_close(b->device);
    tiny_destroy(b->t);
}

#define FOR_EACH_TIER(k)                                                                                                         \
    for (uint32_t tier_ = 0; tier_ < sh_cpu_n_tables; tier_++)                                                                   \
        for (const struct sh_cpu_kernels *k = sh_cpu_tables[tier_]; k != NULL && k->available(); k = NULL)

/* Relative to the largest logit. Float sums of some hundred terms through two layers stay within 1e-5; an f16 cache rounds keys
 * and values to 2^-11; 8-bit activations of the vector tiers to 2^-8 of a block's largest, in every matmul of the model. */
static void check_against_reference(const struct tiny_params *params, enum sh_kv_type kv_type, bool exact_activations) {
    FOR_EACH_TIER (k) {
        const bool exact = exact_activations || k == &sh_cpu_scalar;
        const float tolerance = !exact ? 0.03f : kv_type == SH_KV_F16 ? 2e-3f : 1e-5f;
        struct bench b = open_bench(params, k->tier, 2, kv_type);
        int32_t tokens[N_TOKENS];
        some_tokens(tokens, N_TOKENS, params->n_vocab, 5);
        float *expected = tiny_reference(b.t, tokens, N_TOKENS);
        float *found = tiny_run(b.t, b.device, b.context, 0, tokens, N_TOKENS, 0, 0, SH_ROLE_PROMPT);
        const size_t n = (size_t)N_TOKENS * params->n_vocab;
        const float difference = test_max_difference(found, expected, n) / test_max_magnitude(expected, n);
        if (!(difference <= tolerance))
            fail_msg("%s: relative difference %g, expected at most %g", k->tier, (double)difference, (double)tolerance);
        free(expected);
        free(found);
        close_bench(&b);
    }
}

static void test_cpu_reference_f32(void **state) {
    (void)state;
    check_against_reference(&f32_params, SH_KV_F32, true);
    struct tiny_params p = f32_params;
    p.pairing = SH_ROPE_HALVES;
    p.bias = false;
    p.tied = true;
    check_against_reference(&p, SH_KV_F32, true);
}

static void test_cpu_reference_f16_cache(void **state) {
    (void)state;
    check_against_reference(&f32_params, SH_KV_F16, true);
}

static void test_cpu_reference_types(void **state) {
    (void)state;
    static const uint32_t types[] = {SH_TYPE_F16,    SH_TYPE_BF16,  SH_TYPE_Q4_0,    SH_TYPE_Q4_1,  SH_TYPE_Q5_0,
                                     SH_TYPE_Q5_1,   SH_TYPE_Q8_0,  SH_TYPE_Q2_K,    SH_TYPE_Q3_K,  SH_TYPE_Q4_K,
                                     SH_TYPE_Q5_K,   SH_TYPE_Q6_K,  SH_TYPE_IQ1_S,   SH_TYPE_IQ1_M, SH_TYPE_IQ2_XXS,
                                     SH_TYPE_IQ2_XS, SH_TYPE_IQ2_S, SH_TYPE_IQ3_XXS, SH_TYPE_IQ3_S, SH_TYPE_IQ4_NL,
                                     SH_TYPE_IQ4_XS, SH_TYPE_MXFP4, SH_TYPE_TQ1_0,   SH_TYPE_TQ2_0};
    for (size_t i = 0; i < SH_COUNT(types); i++) {
        struct tiny_params p = f32_params;
        p.n_embd = p.n_ff = 256;
        p.n_heads = 4;
        p.head_dim = 64;
        p.type = types[i];
        p.tied = i % 2 == 0;
        check_against_reference(&p, SH_KV_F32, types[i] == SH_TYPE_F16 || types[i] == SH_TYPE_BF16);
    }
}

/* Chunks of any size, one by one, other threads, other slots, other pages, either role: the same bits. */
static void test_cpu_same_bits(void **state) {
    (void)state;
    static const uint32_t types[] = {SH_TYPE_F32,  SH_TYPE_Q4_0,   SH_TYPE_Q8_0,   SH_TYPE_Q4_K,  SH_TYPE_Q6_K, SH_TYPE_Q5_1,
                                     SH_TYPE_Q2_K, SH_TYPE_IQ2_XS, SH_TYPE_IQ4_XS, SH_TYPE_MXFP4, SH_TYPE_TQ2_0};
    for (size_t i = 0; i < SH_COUNT(types); i++)
        FOR_EACH_TIER (k) {
            struct tiny_params p = f32_params;
            p.n_embd = p.n_ff = 256;
            p.n_heads = 4;
            p.head_dim = 64;
            p.type = types[i];
            int32_t tokens[N_TOKENS];
            some_tokens(tokens, N_TOKENS, p.n_vocab, 6);
            struct bench b = open_bench(&p, k->tier, 1, SH_KV_F16);
            struct bench wide = open_bench(&p, k->tier, 5, SH_KV_F16);
            const size_t row = p.n_vocab * sizeof(float);
            float *whole = tiny_run(b.t, b.device, b.context, 0, tokens, N_TOKENS, 0, 0, SH_ROLE_PROMPT);
            static const uint32_t chunks[] = {1, 3, 8, 33, 1, 2, 29};
            uint32_t at = 0;
            for (uint32_t c = 0; at < N_TOKENS; c++) {
                const uint32_t n = chunks[c] < N_TOKENS - at ? chunks[c] : N_TOKENS - at;
                const enum sh_role role = c % 2 == 0 ? SH_ROLE_GENERATED : SH_ROLE_PROMPT;
                float *part = tiny_run(wide.t, wide.device, wide.context, c % 2, tokens + at, n, at, 4, role);
                assert_memory_equal(part, whole + (size_t)at * p.n_vocab, n * row);
                free(part);
                at += n;
            }
            free(whole);
            close_bench(&wide);
            close_bench(&b);
        }
}

/* A cache so long that few rows are shared out in parts among many threads, against one thread that shares nothing. */
static void test_cpu_long_cache(void **state) {
    (void)state;
    struct tiny_params p = f32_params;
    p.context = 700;
    p.n_layers = 1;
    int32_t tokens[640];
    some_tokens(tokens, 640, p.n_vocab, 13);
    FOR_EACH_TIER (k) {
        struct bench b = open_bench(&p, k->tier, 1, SH_KV_F16), wide = open_bench(&p, k->tier, 4, SH_KV_F16);
        for (uint32_t at = 0; at < 640;) {
            const uint32_t n = at < 600 ? 120 : 1 + at % 3;
            float *expected = tiny_run(b.t, b.device, b.context, 0, tokens + at, n, at, 0, SH_ROLE_PROMPT);
            float *found = tiny_run(wide.t, wide.device, wide.context, 0, tokens + at, n, at, 0, SH_ROLE_PROMPT);
            assert_memory_equal(found, expected, n * p.n_vocab * sizeof *found);
            free(expected);
            free(found);
            at += n;
        }
        close_bench(&wide);
        close_bench(&b);
    }
}

/* Two sequences of one step give what each gives alone; a shared first page with a copied second one is a sequence of its own. */
static void test_cpu_batched_equals_alone(void **state) {
    (void)state;
    struct bench b = open_bench(&f32_params, NULL, 2, SH_KV_F16);
    const struct sh_executor *e = b.device->executor;
    const uint32_t n_vocab = f32_params.n_vocab;
    int32_t tokens[2][40];
    some_tokens(tokens[0], 40, n_vocab, 7);
    some_tokens(tokens[1], 40, n_vocab, 8);
    memcpy(tokens[1], tokens[0], 37 * sizeof(int32_t)); /* they part after 37 tokens */
    float *alone[2];
    for (uint32_t s = 0; s < 2; s++) alone[s] = tiny_run(b.t, b.device, b.context, s, tokens[s], 40, 0, 2 * s, SH_ROLE_PROMPT);

    struct sh_error err = {0};
    assert_int_equal(e->pool_reserve(b.context, 0, 8, &err), SH_OK);
    float *prefix = tiny_run(b.t, b.device, b.context, 0, tokens[0], 37, 0, 4, SH_ROLE_PROMPT);
    assert_int_equal(e->page_copy(b.context, 0, 5, 6, 37 - SH_PAGE_TOKENS, &err), SH_OK);
    static const uint32_t pages[2][2] = {{4, 5}, {4, 6}};
    const uint32_t *const groups[2][1] = {{pages[0]}, {pages[1]}};
    struct sh_step_row rows[6];
    struct sh_step_output outputs[6];
    struct sh_step_sequence sequences[2];
    for (uint32_t s = 0; s < 2; s++) {
        sequences[s] = (struct sh_step_sequence){.first_row = 3 * s, .n_rows = 3, .pages = groups[s], .n_pages = 2};
        for (uint32_t i = 0; i < 3; i++) {
            rows[3 * s + i] =
                (struct sh_step_row){.token = tokens[s][37 + i], .sampled_from = SH_NONE, .sequence = s, .position = 37 + i};
            outputs[3 * s + i] = (struct sh_step_output){.row = 3 * s + i, .want_logits = true, .want_hidden = i == 1};
        }
    }
    const struct sh_step step = {
        .rows = rows, .n_rows = 6, .sequences = sequences, .n_sequences = 2, .outputs = outputs, .n_outputs = 6};
    assert_int_equal(e->submit(b.context, 1, 0, &step, &err), SH_OK);
    struct sh_step_result result;
    assert_int_equal(e->wait(b.context, 1, -1, &result, &err), SH_OK);
    for (uint32_t i = 0; i < 6; i++) {
        assert_memory_equal(result.logits[i], alone[i / 3] + (size_t)(37 + i % 3) * n_vocab, n_vocab * sizeof(float));
        assert_int_equal(result.hidden[i] != NULL, i % 3 == 1);
        assert_int_equal(result.tokens[i], -1);
    }
    assert_true(result.busy_ns > 0);
    free(prefix);
    free(alone[0]);
    free(alone[1]);
    close_bench(&b);
}

/* Two steps in flight run in order; what is in flight may be awaited with a time limit; its slot cannot be taken. */
static void test_cpu_two_in_flight(void **state) {
    (void)state;
    struct tiny_params p = f32_params;
    p.n_embd = 1024;
    p.n_ff = 2048;
    struct bench b = open_bench(&p, "scalar", 1, SH_KV_F16);
    const struct sh_executor *e = b.device->executor;
    int32_t tokens[80];
    some_tokens(tokens, 80, p.n_vocab, 9);
    float *expected = tiny_run(b.t, b.device, b.context, 0, tokens, 80, 0, 4, SH_ROLE_PROMPT);

    struct sh_step_row rows[80];
    for (uint32_t i = 0; i < 80; i++) rows[i] = (struct sh_step_row){.token = tokens[i], .sampled_from = SH_NONE, .position = i};
    static const uint32_t pages[3] = {0, 1, 2};
    const uint32_t *const groups[1] = {pages};
    struct sh_step_output output = {.row = 39, .want_logits = true};
    struct sh_step_sequence sequence = {.n_rows = 40, .pages = groups, .n_pages = 3};
    struct sh_step step = {
        .rows = rows, .n_rows = 40, .sequences = &sequence, .n_sequences = 1, .outputs = &output, .n_outputs = 1};
    struct sh_error err = {0};
    struct sh_step_result result;
    assert_int_equal(e->wait(b.context, 1, -1, &result, &err), SH_ERR_INVALID);
    assert_int_equal(e->submit(b.context, 1, 0, &step, &err), SH_OK);
    step.rows = rows + 40;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_OK);
    assert_int_equal(e->submit(b.context, 1, 0, &step, &err), SH_ERR_BUSY);
    assert_int_equal(e->wait(b.context, 0, 0, &result, &err), SH_ERR_TIMEOUT);
    memset(rows, 0, sizeof rows); /* the caller's again */
    assert_int_equal(e->wait(b.context, 1, -1, &result, &err), SH_OK);
    assert_memory_equal(result.logits[0], expected + 39 * p.n_vocab, p.n_vocab * sizeof(float));
    assert_int_equal(e->wait(b.context, 0, INT64_C(60000000000), &result, &err), SH_OK);
    assert_memory_equal(result.logits[0], expected + 79 * p.n_vocab, p.n_vocab * sizeof(float));

    for (uint32_t i = 0; i < 80; i++) rows[i] = (struct sh_step_row){.token = tokens[i], .sampled_from = SH_NONE, .position = i};
    step.rows = rows;
    assert_int_equal(e->submit(b.context, 1, 0, &step, &err), SH_OK); /* destroyed in flight: close_bench */
    free(expected);
    close_bench(&b);
}

static uint32_t activation(const struct tiny *t, const char *name) {
    for (uint32_t i = 0; i < t->program->n_activations; i++)
        if (strcmp(t->program->activations[i].name, name) == 0) return i;
    fail_msg("no activation %s", name);
    return SH_NONE;
}

/* The first layer's norm of the embedding is easily recomputed; what fusion took away is not there; inputs may be embeddings. */
static void test_cpu_captures_and_embeddings(void **state) {
    (void)state;
    struct bench b = open_bench(&f32_params, NULL, 2, SH_KV_F32);
    const struct sh_executor *e = b.device->executor;
    const uint32_t n = f32_params.n_embd;
    struct sh_error err = {0};
    assert_int_equal(e->pool_reserve(b.context, 0, 1, &err), SH_OK);
    float own[96];
    for (uint32_t i = 0; i < n; i++) own[i] = (float)i / 7.0f - 3.0f;
    const struct sh_step_row rows[2] = {{.token = 17, .sampled_from = SH_NONE},
                                        {.sampled_from = SH_NONE, .embedding = own, .position = 1}};
    static const uint32_t pages[1] = {0};
    const uint32_t *const groups[1] = {pages};
    const struct sh_step_sequence sequence = {.n_rows = 2, .pages = groups, .n_pages = 1};
    const uint32_t wanted[3] = {activation(b.t, "embd"), activation(b.t, "blk.0.attn_norm"),
                                activation(b.t, "blk.0.attn_output")};
    const struct sh_step step = {
        .rows = rows, .n_rows = 2, .sequences = &sequence, .n_sequences = 1, .capture = wanted, .n_capture = 3};
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_OK);
    struct sh_step_result result;
    assert_int_equal(e->wait(b.context, 0, -1, &result, &err), SH_OK);
    float expected[2][96];
    for (uint32_t w = 0; w < b.t->program->n_weights; w++) {
        const char *name = b.t->program->weights[w].name;
        if (strcmp(name, "token_embd") == 0) memcpy(expected[0], b.t->values[w] + 17 * n, sizeof expected[0]);
    }
    memcpy(expected[1], own, sizeof own);
    assert_memory_equal(result.captured[0], expected, sizeof expected);
    for (uint32_t w = 0; w < b.t->program->n_weights; w++)
        if (strcmp(b.t->program->weights[w].name, "blk.0.attn_norm") == 0) {
            float normed[2][96];
            const struct sh_ref_norm norm = {.kind = SH_NORM_RMS, .n_groups = 1, .width = n, .eps = 1e-5f, .w = b.t->values[w]};
            sh_ref_norm(&norm, expected[0], 2, normed[0]);
            assert_true(test_max_difference(result.captured[1], normed[0], 2 * n) < 1e-5f);
        }
    assert_null(result.captured[2]); /* it became the sum with the residual */
    close_bench(&b);
}

static void test_cpu_bad_steps(void **state) {
    (void)state;
    struct bench b = open_bench(&f32_params, NULL, 1, SH_KV_F16);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    assert_int_equal(e->pool_reserve(b.context, 0, 1, &err), SH_OK);
    assert_int_equal(e->pool_reserve(b.context, 1, 1, &err), SH_ERR_INVALID);
    assert_int_equal(e->page_copy(b.context, 0, 0, 1u << 30, 1, &err), SH_ERR_INVALID);
    const uint32_t good = 0, bad = 1u << 30;
    const uint32_t *good_pages[1] = {&good}, *bad_pages[1] = {&bad};
    struct sh_step_row row = {.token = 1, .sampled_from = SH_NONE};
    struct sh_step_sequence sequence = {.n_rows = 1, .pages = good_pages, .n_pages = 1};
    const struct sh_step step = {.rows = &row, .n_rows = 1, .sequences = &sequence, .n_sequences = 1};
    row.token = (int32_t)f32_params.n_vocab;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID);
    row.token = -1;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID);
    row.token = 1;
    row.position = SH_PAGE_TOKENS;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID);
    row.position = 0;
    sequence.pages = bad_pages;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID);
    sequence.pages = good_pages;
    row.sampled_from = 0;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_ERR_INVALID);
    row.sampled_from = SH_NONE;
    assert_int_equal(e->submit(b.context, 0, 0, &step, &err), SH_OK);
    close_bench(&b);
}

/* The same program on two CPU devices, cut after the first layer, gives the bits of one. */
static void test_cpu_two_segments(void **state) {
    (void)state;
    struct bench b = open_bench(&f32_params, "scalar", 2, SH_KV_F16);
    struct sh_device *second = open_cpu("scalar", 1);
    const struct sh_executor *e = b.device->executor;
    int32_t tokens[9];
    some_tokens(tokens, 9, f32_params.n_vocab, 12);
    float *expected = tiny_run(b.t, b.device, b.context, 0, tokens, 9, 0, 0, SH_ROLE_PROMPT);

    static const uint32_t device_of_layer[2] = {0, 1};
    struct sh_segment *segments;
    uint32_t n_segments;
    struct sh_error err = {0};
    uint32_t device_of_op[64];
    assert_true(b.t->program->n_ops <= 64);
    sh_program_place(b.t->program, device_of_layer, 0, 0, device_of_op);
    assert_int_equal(sh_program_cut(b.t->program, device_of_op, &segments, &n_segments, &err), SH_OK);
    assert_int_equal(n_segments, 2);
    struct sh_device *devices[2] = {b.device, second};
    struct sh_exec_model *models[2];
    struct sh_exec_context *contexts[2];
    struct sh_step_row rows[9];
    for (uint32_t i = 0; i < 9; i++) rows[i] = (struct sh_step_row){.token = tokens[i], .sampled_from = SH_NONE, .position = i};
    static const uint32_t pages[1] = {0};
    const uint32_t *const groups[1] = {pages};
    const struct sh_step_output output = {.row = 8, .want_logits = true};
    const struct sh_step_sequence sequence = {.n_rows = 9, .pages = groups, .n_pages = 1};
    struct sh_step step = {
        .rows = rows, .n_rows = 9, .sequences = &sequence, .n_sequences = 1, .outputs = &output, .n_outputs = 1};
    struct sh_step_result result = {0};
    for (uint32_t s = 0; s < 2; s++) {
        models[s] = tiny_load(b.t, devices[s], &segments[s]);
        contexts[s] = open_context(devices[s], models[s], SH_KV_F16);
        assert_int_equal(e->pool_reserve(contexts[s], 0, 1, &err), SH_OK);
        for (uint32_t i = 0; i < segments[s].n_inputs; i++) {
            assert_int_equal(segments[s].inputs[i], segments[0].outputs[i]);
            step.inputs[i] = result.outputs[i];
        }
        if (e->submit(contexts[s], 0, 0, &step, &err) != SH_OK) fail_msg("%s", err.message);
        assert_int_equal(e->wait(contexts[s], 0, -1, &result, &err), SH_OK);
    }
    assert_memory_equal(result.logits[0], expected + 8 * f32_params.n_vocab, f32_params.n_vocab * sizeof(float));
    for (uint32_t s = 0; s < 2; s++) {
        e->context_destroy(contexts[s]);
        e->model_destroy(models[s]);
    }
    e->device_close(second);
    free(segments);
    free(expected);
    close_bench(&b);
}

/* What does not fit is refused before anything is taken, with what is needed and what there is. */
static void test_cpu_memory_is_refused(void **state) {
    (void)state;
    struct bench b = open_bench(&f32_params, NULL, 1, SH_KV_F16);
    const struct sh_executor *e = b.device->executor;
    struct sh_error err = {0};
    struct sh_device_memory before, after;
    e->device_memory(b.device, &before);
    assert_true(before.weights_bytes > 0 && before.activation_bytes > 0);
    const struct sh_segment segment = tiny_segment(b.t);
    struct sh_exec_model *model = NULL;
    uint64_t *rows = NULL;
    for (uint32_t w = 0; w < b.t->program->n_weights; w++)
        if (strcmp(b.t->program->weights[w].name, "output") == 0) rows = &b.t->program->weights[w].rows;
    assert_non_null(rows);
    const uint64_t kept = *rows;
    *rows = UINT64_C(1) << 36; /* 2^36 * 96 * 4 bytes */
    assert_int_equal(e->model_create(b.device, &segment, 1, &model, &err), SH_ERR_NO_MEMORY);
    assert_non_null(strstr(err.message, "25165824 MiB"));
    assert_non_null(strstr(err.message, "available"));
    *rows = UINT64_C(1) << 60;
    assert_int_equal(e->model_create(b.device, &segment, 1, &model, &err), SH_ERR_FORMAT);
    assert_null(model);
    *rows = kept;
    assert_int_equal(e->pool_reserve(b.context, 0, UINT32_MAX, &err), SH_ERR_NO_MEMORY);
    assert_non_null(strstr(err.message, "MiB"));
    const struct sh_exec_context_params params = {
        .max_rows = 1u << 31, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = 1};
    struct sh_exec_context *context = NULL;
    assert_int_equal(e->context_create(b.model, &params, &context, &err), SH_ERR_NO_MEMORY);
    assert_null(context);
    e->device_memory(b.device, &after);
    assert_memory_equal(&before, &after, sizeof before);
    close_bench(&b);
}

static void test_cpu_instruction_set_is_forced(void **state) {
    (void)state;
    struct sh_device *device = NULL;
    struct sh_error err = {0};
    struct sh_device_params params = {.size = sizeof params, .tier = "mmx"};
    assert_int_equal(sh_cpu_open(&params, &device, &err), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "mmx"));
    assert_non_null(strstr(err.message, "scalar"));
    assert_null(device);
    params.tier = NULL;
    setenv("SHIMMY_CPU", "scalar", 1);
    assert_int_equal(sh_cpu_open(&params, &device, &err), SH_OK);
    assert_string_equal(device->info.tier, "scalar");
    device->executor->device_close(device);
    setenv("SHIMMY_CPU", "nonsense", 1);
    assert_int_equal(sh_cpu_open(&params, &device, &err), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "nonsense"));
    struct sh_device_info info;
    sh_cpu_describe(&info);
    assert_false(info.usable);
    unsetenv("SHIMMY_CPU");
    sh_cpu_describe(&info);
    assert_true(info.usable);
    assert_int_equal(info.kind, SH_DEVICE_CPU);
    assert_true(info.memory_bytes > 0 && info.free_bytes <= info.memory_bytes);
    params.threads = SH_POOL_MAX_WORKERS + 1;
    assert_int_equal(sh_cpu_open(&params, &device, &err), SH_ERR_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_reference_f32),     cmocka_unit_test(test_cpu_reference_f16_cache),
        cmocka_unit_test(test_cpu_reference_types),   cmocka_unit_test(test_cpu_same_bits),
        cmocka_unit_test(test_cpu_long_cache),        cmocka_unit_test(test_cpu_batched_equals_alone),
        cmocka_unit_test(test_cpu_two_in_flight),     cmocka_unit_test(test_cpu_captures_and_embeddings),
        cmocka_unit_test(test_cpu_bad_steps),         cmocka_unit_test(test_cpu_two_segments),
        cmocka_unit_test(test_cpu_memory_is_refused), cmocka_unit_test(test_cpu_instruction_set_is_forced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
