/*
 * LoRA adapters: a model with an adapter computes what the same model computes whose weights have B A merged into them, for plain, fused
 * and expert weights; and adapters that do not fit are refused by name.
 */
#include "tests/unit/core.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RANK = 4, PROMPT = 12, MAX_TARGETS = 8 };
#define ALPHA 8.0f
#define SCALE 0.5f

struct target {
    const char *name;
    uint64_t cols, rows, n; /* n matrices: experts */
};

static float *random_values(uint64_t n, float amplitude, struct test_rng *rng) {
    float *v = malloc(n * sizeof *v);
    assert_non_null(v);
    for (uint64_t i = 0; i < n; i++) v[i] = test_uniform(rng, -amplitude, amplitude);
    return v;
}

static void describe(struct rewrite *adapter, const char *architecture) {
    rewrite_str(adapter, "general.type", "adapter");
    rewrite_str(adapter, "general.architecture", architecture);
    rewrite_str(adapter, "adapter.type", "lora");
    rewrite_f32(adapter, "adapter.lora.alpha", ALPHA);
}

/* Adds A and B of one tensor to the adapter, and their product to the merged model. */
static void adapt(struct rewrite *adapter, struct rewrite *merged, const struct target *t, struct test_rng *rng) {
    float *a = random_values(t->cols * RANK * t->n, 0.4f, rng), *b = random_values(RANK * t->rows * t->n, 0.4f, rng);
    uint64_t count;
    float *w = rewrite_values(merged, t->name, &count);
    assert_int_equal(count, t->cols * t->rows * t->n);
    for (uint64_t m = 0; m < t->n; m++)
        for (uint64_t row = 0; row < t->rows; row++)
            for (uint64_t col = 0; col < t->cols; col++) {
                double sum = 0;
                for (uint64_t r = 0; r < RANK; r++)
                    sum += (double)b[(m * t->rows + row) * RANK + r] * (double)a[(m * RANK + r) * t->cols + col];
                w[(m * t->rows + row) * t->cols + col] += (float)((double)SCALE * (double)ALPHA / RANK * sum);
            }
    const uint32_t rank = t->n > 1 ? 3 : 2;
    const uint64_t dims[3] = {t->cols, t->rows, t->n}, dims_a[3] = {t->cols, RANK, t->n}, dims_b[3] = {RANK, t->rows, t->n};
    char name[80];
    snprintf(name, sizeof name, "%s.lora_a", t->name);
    rewrite_tensor_f32(adapter, name, rank, dims_a, a);
    snprintf(name, sizeof name, "%s.lora_b", t->name);
    rewrite_tensor_f32(adapter, name, rank, dims_b, b);
    rewrite_tensor_f32(merged, t->name, rank, dims, w);
    free(a);
    free(b);
    free(w);
}

/* The logits of the prompt's last token, malloc'd. */
static float *logits_of(const char *device, const char *path, const struct sh_lora *lora, uint32_t n_lora, uint32_t *n_vocab) {
    struct core_model m = {.devices = {core_open_device(device)}};
    struct sh_error err = {0};
    const struct sh_model_params params = {.size = sizeof params, .path = path, .lora = lora, .n_lora = n_lora};
    core_ok(sh_model_load(m.devices, 1, &params, &m.model, &err), &err);
    const struct sh_context_params context = {.size = sizeof context, .kv_type = SH_KV_F32};
    core_ok(sh_context_create(m.model, &context, &m.context, &err), &err);
    struct sh_model_info info;
    sh_model_get_info(m.model, &info);
    *n_vocab = m.n_vocab = info.n_vocab;
    int32_t tokens[PROMPT];
    for (int i = 0; i < PROMPT; i++) tokens[i] = 1 + i * 37 % 400;
    float *logits = calloc(m.n_vocab, sizeof *logits);
    assert_non_null(logits);
    core_prefill(&m, core_sequence(&m), tokens, PROMPT, 0, NULL, logits);
    core_unload(&m);
    return logits;
}

static double largest_difference(const float *a, const float *b, uint32_t n) {
    double most = 0;
    for (uint32_t i = 0; i < n; i++) most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

/* Both sides multiply in float32, one of them with B A rounded into the weights: logits of size 10 differ by some 1e-5 relative. Devices that
 * round activations to 8 bits for quantised weights cannot be compared with a merged model in F32. */
static void equals_merged(const char *file, const char *architecture, const struct target *targets, size_t n, bool quantised) {
    char name[96];
    snprintf(name, sizeof name, "parity/%s.gguf", file);
    const char *base = TEST_SHARED(name);
    char adapter_path[256], merged_path[256];
    snprintf(adapter_path, sizeof adapter_path, "%s", test_scratch("adapter.gguf"));
    snprintf(merged_path, sizeof merged_path, "%s", test_scratch("merged.gguf"));
    struct rewrite *adapter = rewrite_empty(), *merged = rewrite_open(base);
    struct test_rng rng = {5};
    describe(adapter, architecture);
    for (size_t i = 0; i < n; i++) adapt(adapter, merged, &targets[i], &rng);
    rewrite_save(adapter, adapter_path);
    rewrite_save(merged, merged_path);

    const char *devices[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(devices);
    for (uint32_t d = 0; d < n_devices; d++) {
        if (quantised && strncmp(devices[d], "cpu", 3) == 0 && strcmp(devices[d], "cpu-scalar") != 0) continue;
        const struct sh_lora lora = {.path = adapter_path, .scale = SCALE};
        uint32_t n_vocab;
        float *plain = logits_of(devices[d], base, NULL, 0, &n_vocab);
        float *adapted = logits_of(devices[d], base, &lora, 1, &n_vocab);
        float *expected = logits_of(devices[d], merged_path, NULL, 0, &n_vocab);
        const double off = largest_difference(adapted, expected, n_vocab), effect = largest_difference(adapted, plain, n_vocab);
        if (!(off < 1e-3) || !(effect > 0.2))
            fail_msg("%s on %s: off by %g from the merged model, expected below 1e-3; the adapter moves logits by %g", file, devices[d],
                     off, effect);
        free(plain);
        free(adapted);
        free(expected);
    }
}

static void plain_weights(void **state) {
    (void)state;
    static const struct target targets[] = {
        {"blk.0.attn_q.weight", 128, 128, 1},   {"blk.0.attn_v.weight", 128, 64, 1}, {"blk.1.attn_output.weight", 128, 128, 1},
        {"blk.1.ffn_down.weight", 192, 128, 1}, {"output.weight", 128, 512, 1},
    };
    equals_merged("llama-F32", "llama", targets, 5, false);
}

static void fused_weights(void **state) {
    (void)state;
    static const struct target targets[] = {{"blk.0.attn_qkv.weight", 128, 256, 1}, {"blk.1.ffn_up.weight", 128, 384, 1}};
    equals_merged("phi3-Q8_0", "phi3", targets, 2, true);
}

static void expert_weights(void **state) {
    (void)state;
    static const struct target targets[] = {
        {"blk.0.ffn_gate_exps.weight", 128, 192, 4}, {"blk.1.ffn_down_exps.weight", 192, 128, 4}, {"blk.1.attn_k.weight", 128, 64, 1}};
    equals_merged("mixtral-Q8_0", "llama", targets, 3, true);
}

/* Two adapters add up, whatever tensors they share. */
static void two_adapters(void **state) {
    (void)state;
    const char *base = TEST_SHARED("parity/llama-F32.gguf");
    static const struct target targets[] = {{"blk.0.attn_q.weight", 128, 128, 1}, {"blk.1.ffn_up.weight", 128, 192, 1}};
    char path[2][256], merged_path[2][256];
    struct test_rng rng = {9};
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s", test_scratch(i == 0 ? "first.gguf" : "second.gguf"));
        snprintf(merged_path[i], sizeof merged_path[i], "%s", test_scratch(i == 0 ? "once.gguf" : "twice.gguf"));
        struct rewrite *adapter = rewrite_empty(), *merged = rewrite_open(i == 0 ? base : merged_path[0]);
        describe(adapter, "llama");
        for (int t = 0; t <= i; t++) adapt(adapter, merged, &targets[t], &rng);
        rewrite_save(adapter, path[i]);
        rewrite_save(merged, merged_path[i]);
    }
    const struct sh_lora lora[2] = {{.path = path[0], .scale = SCALE}, {.path = path[1], .scale = SCALE}};
    uint32_t n_vocab;
    float *adapted = logits_of("cpu-scalar", base, lora, 2, &n_vocab), *expected = logits_of("cpu-scalar", merged_path[1], NULL, 0, &n_vocab);
    const double off = largest_difference(adapted, expected, n_vocab);
    if (!(off < 1e-3)) fail_msg("off by %g from the model with both merged", off);
    free(adapted);
    free(expected);
}

/* ---- refusals ---- */

static void refuses(struct rewrite *adapter, const char *base, enum sh_code code, const char *why) {
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("wrong.gguf"));
    rewrite_save(adapter, path);
    struct sh_device *device = core_open_device("cpu-scalar");
    const struct sh_lora lora = {.path = path};
    const struct sh_model_params params = {.size = sizeof params, .path = base, .lora = &lora, .n_lora = 1};
    struct sh_model *model = NULL;
    struct sh_error err = {0};
    assert_int_equal(sh_model_load(&device, 1, &params, &model, &err), code);
    if (strstr(err.message, why) == NULL) fail_msg("expected '%s' in: %s", why, err.message);
    assert_null(model);
    sh_device_close(device);
}

static void wrong_adapters(void **state) {
    (void)state;
    const char *base = TEST_SHARED("parity/llama-F32.gguf");
    const uint64_t dims_a[2] = {128, RANK}, dims_b[2] = {RANK, 128}, other_rank[2] = {RANK + 1, 128}, other_cols[2] = {64, RANK};
    static const float zeros[256 * 8];

    struct rewrite *r = rewrite_empty();
    describe(r, "llama");
    refuses(r, base, SH_ERR_FORMAT, "no tensors");

    r = rewrite_empty();
    describe(r, "qwen2");
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_a", 2, dims_a, zeros);
    refuses(r, base, SH_ERR_UNSUPPORTED, "'general.architecture' is 'qwen2', expected 'llama'");

    r = rewrite_empty();
    describe(r, "llama");
    rewrite_str(r, "adapter.type", "control_vector");
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_a", 2, dims_a, zeros);
    refuses(r, base, SH_ERR_UNSUPPORTED, "'adapter.type' is 'control_vector'");

    r = rewrite_empty();
    describe(r, "llama");
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_a", 2, dims_a, zeros);
    refuses(r, base, SH_ERR_FORMAT, "'blk.0.attn_q.weight.lora_b' is missing");

    r = rewrite_empty();
    describe(r, "llama");
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_a", 2, dims_a, zeros);
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_b", 2, other_rank, zeros);
    refuses(r, base, SH_ERR_FORMAT, "has rank 4 in lora_a and 5 in lora_b");

    r = rewrite_empty();
    describe(r, "llama");
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_a", 2, other_cols, zeros);
    rewrite_tensor_f32(r, "blk.0.attn_q.weight.lora_b", 2, dims_b, zeros);
    refuses(r, base, SH_ERR_FORMAT, "'blk.0.attn_q.weight.lora_a' has shape [64, 4], expected [128, 4]");

    r = rewrite_empty();
    describe(r, "llama");
    rewrite_tensor_f32(r, "token_embd.weight.lora_a", 2, dims_a, zeros);
    rewrite_tensor_f32(r, "token_embd.weight.lora_b", 2, dims_b, zeros);
    refuses(r, base, SH_ERR_UNSUPPORTED, "'token_embd.weight.lora_a' adapts nothing");

    refuses(rewrite_open(base), base, SH_ERR_UNSUPPORTED, "'general.type'");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_weights),  cmocka_unit_test(fused_weights),  cmocka_unit_test(expert_weights),
        cmocka_unit_test(two_adapters),   cmocka_unit_test(wrong_adapters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
