/*
 * One model in two forms of file computes the same bits on the scalar CPU: fused and separate projections, MLA's keys split and
 * not, layers that only predict further tokens, groups of experts that exclude nothing.
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

enum { N_TOKENS = 40 };

static struct rewrite *parity_file(const char *name) {
    char relative[128];
    snprintf(relative, sizeof relative, "parity/%s.gguf", name);
    return rewrite_open(TEST_SHARED(relative));
}

/* Logits, or of an encoder hidden states, of every position of one prompt; malloc'd. */
static float *run(const char *path, size_t *n) {
    struct core_model m;
    core_load(&m, "cpu-scalar", path,
              &(struct sh_context_params){.size = sizeof(struct sh_context_params), .kv_type = SH_KV_F32});
    struct sh_model_info info;
    sh_model_get_info(m.model, &info);
    const uint32_t width = info.has_logits ? info.n_vocab : info.n_embd;
    const uint32_t sequence = core_sequence(&m);
    struct sh_row rows[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++)
        rows[i] = (struct sh_row){.sequence = sequence,
                                  .token = (int32_t)(5 + i * 37 % 500),
                                  .position = i,
                                  .outputs = info.has_logits ? SH_OUT_LOGITS : SH_OUT_HIDDEN};
    struct sh_error err = {0};
    struct sh_results results;
    sh_ticket ticket;
    core_ok(sh_submit(m.context, &(struct sh_batch){.rows = rows, .n_rows = N_TOKENS}, &ticket, &err), &err);
    core_ok(sh_wait(m.context, ticket, -1, &results, &err), &err);
    assert_int_equal(results.count, N_TOKENS);
    *n = (size_t)N_TOKENS * width;
    float *out = malloc(*n * sizeof *out);
    assert_non_null(out);
    for (uint32_t i = 0; i < N_TOKENS; i++)
        memcpy(out + (size_t)i * width, info.has_logits ? results.items[i].logits : results.items[i].hidden, width * sizeof *out);
    for (size_t i = 0; i < *n; i++) assert_true(isfinite(out[i]));
    core_unload(&m);
    return out;
}

static void same_bits(struct rewrite *a, struct rewrite *b, bool equal) {
    char paths[2][512];
    snprintf(paths[0], sizeof paths[0], "%s", test_scratch("a.gguf"));
    snprintf(paths[1], sizeof paths[1], "%s", test_scratch("b.gguf"));
    rewrite_save(a, paths[0]);
    rewrite_save(b, paths[1]);
    size_t n_a, n_b;
    float *x = run(paths[0], &n_a), *y = run(paths[1], &n_b);
    assert_int_equal(n_a, n_b);
    assert_int_equal(memcmp(x, y, n_a * sizeof *x) == 0, equal);
    free(x);
    free(y);
}

static void layer_tensor(char name[64], uint32_t layer, const char *stem) { snprintf(name, 64, "blk.%u.%s", layer, stem); }

static const struct sh_tensor *source_tensor(const struct rewrite *r, const char *name) {
    const struct sh_tensor *t = sh_gguf_tensor(rewrite_source(r), name);
    assert_non_null(t);
    return t;
}

/* q, k and v one below the other in attn_qkv, in F32; the other file has the three in F32. */
static void fused_projections_equal_separate_ones(void **state) {
    (void)state;
    struct rewrite *separate = parity_file("bert-F16"), *fused = parity_file("bert-F16");
    static const char *const parts[3] = {"attn_q", "attn_k", "attn_v"};
    for (uint32_t l = 0; l < 2; l++)
        for (int bias = 0; bias < 2; bias++) {
            float *all = NULL;
            uint64_t total = 0;
            char name[64], stem[32];
            for (int p = 0; p < 3; p++) {
                snprintf(stem, sizeof stem, "%s.%s", parts[p], bias ? "bias" : "weight");
                layer_tensor(name, l, stem);
                uint64_t count;
                float *values = rewrite_values(separate, name, &count);
                rewrite_tensor_f32(separate, name, bias ? 1 : 2, source_tensor(separate, name)->dims, values);
                all = realloc(all, (total + count) * sizeof *all);
                assert_non_null(all);
                memcpy(all + total, values, count * sizeof *all);
                total += count;
                free(values);
                rewrite_drop_tensor(fused, name);
            }
            layer_tensor(name, l, bias ? "attn_qkv.bias" : "attn_qkv.weight");
            const uint64_t dims[2] = {bias ? total : 128, bias ? 1 : total / 128};
            rewrite_tensor_f32(fused, name, bias ? 1 : 2, dims, all);
            free(all);
        }
    same_bits(separate, fused, true);
}

/* attn_kv_b in F32, and the same numbers as attn_k_b (transposed per head) and attn_v_b. */
static void split_keys_and_values_of_mla_equal_joint_ones(void **state) {
    (void)state;
    enum { HEADS = 4, RANK = 64, NOPE = 32, VALUE = 32 };
    struct rewrite *joint = parity_file("deepseek2-Q8_0"), *split = parity_file("deepseek2-Q8_0");
    for (uint32_t l = 0; l < 2; l++) {
        char name[64];
        layer_tensor(name, l, "attn_kv_b.weight");
        uint64_t count;
        float *values = rewrite_values(joint, name, &count);
        assert_int_equal(count, HEADS * (NOPE + VALUE) * RANK);
        rewrite_tensor_f32(joint, name, 2, source_tensor(joint, name)->dims, values);
        float *keys = malloc(sizeof(float) * HEADS * RANK * NOPE), *heads = malloc(sizeof(float) * HEADS * VALUE * RANK);
        assert_true(keys != NULL && heads != NULL);
        for (int h = 0; h < HEADS; h++) {
            const float *head = values + (size_t)h * (NOPE + VALUE) * RANK;
            for (int c = 0; c < RANK; c++)
                for (int k = 0; k < NOPE; k++) keys[(h * RANK + c) * NOPE + k] = head[k * RANK + c];
            memcpy(heads + (size_t)h * VALUE * RANK, head + NOPE * RANK, sizeof(float) * VALUE * RANK);
        }
        rewrite_drop_tensor(split, name);
        layer_tensor(name, l, "attn_k_b.weight");
        rewrite_tensor_f32(split, name, 3, (const uint64_t[]){NOPE, RANK, HEADS}, keys);
        layer_tensor(name, l, "attn_v_b.weight");
        rewrite_tensor_f32(split, name, 3, (const uint64_t[]){RANK, VALUE, HEADS}, heads);
        free(values);
        free(keys);
        free(heads);
    }
    rewrite_u32(split, "deepseek2.attention.head_count_kv", 1);
    rewrite_u32(split, "deepseek2.attention.key_length", RANK + 32);
    rewrite_u32(split, "deepseek2.attention.value_length", RANK);
    rewrite_u32(split, "deepseek2.attention.key_length_mla", NOPE + 32);
    rewrite_u32(split, "deepseek2.attention.value_length_mla", VALUE);
    same_bits(joint, split, true);
}

static void predictor_layers_change_nothing(void **state) {
    (void)state;
    struct rewrite *plain = parity_file("glm4moe-Q8_0"), *more = parity_file("glm4moe-Q8_0");
    rewrite_u32(more, "glm4moe.block_count", 3);
    rewrite_u32(more, "glm4moe.nextn_predict_layers", 1);
    float *ones = malloc(sizeof(float) * 256 * 128);
    assert_non_null(ones);
    for (int i = 0; i < 256 * 128; i++) ones[i] = 1;
    rewrite_tensor_f32(more, "blk.2.attn_norm.weight", 1, (const uint64_t[]){128}, ones);
    rewrite_tensor_f32(more, "blk.2.nextn.eh_proj.weight", 2, (const uint64_t[]){256, 128}, ones);
    free(ones);
    same_bits(plain, more, true);
}

/* All groups may be chosen from: nothing is excluded. One of two: the second best expert may be. */
static void groups_of_experts_exclude(void **state) {
    (void)state;
    for (uint32_t used = 1; used <= 2; used++) {
        struct rewrite *plain = parity_file("deepseek2-v3-Q8_0"), *grouped = parity_file("deepseek2-v3-Q8_0");
        rewrite_u32(grouped, "deepseek2.expert_group_count", 2);
        rewrite_u32(grouped, "deepseek2.expert_group_used_count", used);
        same_bits(plain, grouped, used == 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fused_projections_equal_separate_ones),
        cmocka_unit_test(split_keys_and_values_of_mla_equal_joint_ones),
        cmocka_unit_test(predictor_layers_change_nothing),
        cmocka_unit_test(groups_of_experts_exclude),
    };
    return cmocka_run_group_tests_name("model_forms", tests, NULL, NULL);
}
