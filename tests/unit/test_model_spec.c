/*
 * What metadata makes of a program: rotation tables against formulas written anew here, windows and their patterns, values by layer,
 * and keys that would change what is computed refused by name. The files are those of ../shared/parity with keys changed.
 */
#include "compute/model/build_model.h"
#include "tests/unit/core.h"
#include "tests/unit/parity.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

struct built {
    struct sh_gguf *g;
    struct sh_program *program;
    struct sh_spec spec;
    enum sh_code code;
};

static struct rewrite *change(const char *file) {
    char relative[96];
    snprintf(relative, sizeof relative, "parity/%s.gguf", file);
    return rewrite_open(TEST_SHARED(relative));
}

static struct built build_for(struct rewrite *r, uint32_t context, float rope_scale) {
    struct built b = {0};
    const char *path = test_scratch("changed.gguf");
    rewrite_save(r, path);
    core_ok(sh_gguf_open(path, &b.g, &error), &error);
    const struct sh_model_params params = {
        .size = sizeof params, .path = path, .context_length = context, .rope_scale = rope_scale};
    error = (struct sh_error){0};
    b.code = sh_model_build(b.g, &params, NULL, &b.spec, &b.program, &error);
    return b;
}

static struct built build(struct rewrite *r) {
    struct built b = build_for(r, 256, 0);
    core_ok(b.code, &error);
    return b;
}

static void finish(struct built *b) {
    sh_program_destroy(b->program);
    sh_gguf_close(b->g);
    *b = (struct built){0};
}

/* The first op of the kind in a layer. */
static const struct sh_op *op_of(const struct built *b, uint32_t layer, enum sh_op_kind kind) {
    for (uint32_t i = 0; i < b->program->n_ops; i++)
        if (b->program->ops[i].layer == layer && b->program->ops[i].kind == kind) return &b->program->ops[i];
    fail_msg("layer %u has no op %s", layer, sh_op_name(kind));
    return NULL;
}

static const struct sh_weight *table_of(const struct built *b, uint32_t layer) {
    const struct sh_op *op = op_of(b, layer, SH_OP_ROPE_CACHE);
    assert_int_not_equal(op->w, SH_NONE);
    return &b->program->weights[op->w];
}

/* cos and sin of every position and pair against the angles per position [pairs] and the magnitude. */
static void expect_table(const struct sh_weight *table, const double *theta, uint32_t pairs, double magnitude) {
    assert_int_equal(table->cols, 2 * pairs);
    for (uint64_t p = 0; p < table->rows; p++)
        for (uint32_t i = 0; i < pairs; i++) {
            const float *pair = table->constant + p * table->cols + 2 * i;
            const double angle = (double)p * theta[i];
            if (fabs((double)pair[0] - magnitude * cos(angle)) > 1e-6 || fabs((double)pair[1] - magnitude * sin(angle)) > 1e-6)
                fail_msg("position %llu, pair %u: (%g, %g), expected (%g, %g)", (unsigned long long)p, i, (double)pair[0],
                         (double)pair[1], magnitude * cos(angle), magnitude * sin(angle));
        }
}

static void plain_angles(double *theta, uint32_t pairs, double base) {
    for (uint32_t i = 0; i < pairs; i++) theta[i] = pow(base, -(double)i / pairs);
}

/* ---- rotation ---- */

enum { PAIRS = 16 }; /* of most files: heads of 32 */

/* By wavelength: a pair that turns t times over the original context; the ramp lies between the (whole) pairs that turn beta_fast and
 * beta_slow times. */
static void yarn_angles(double *theta, double base, double factor, double original, double fast, double slow,
                        double extrapolation) {
    plain_angles(theta, PAIRS, base);
    const double per_pair = log(base) / PAIRS; /* of the logarithm of the wavelength */
    const double first = floor(log(original / fast / (2 * M_PI)) / per_pair),
                 last = ceil(log(original / slow / (2 * M_PI)) / per_pair);
    const double low = first > 0 ? first : 0, high = last < 2 * PAIRS - 1 ? last : 2 * PAIRS - 1;
    for (int i = 0; i < PAIRS; i++) {
        double stretched = i <= low ? 0 : i >= high ? 1 : (i - low) / (high - low);
        stretched = 1 - (1 - stretched) * extrapolation;
        theta[i] = theta[i] * (1 - stretched) + theta[i] / factor * stretched;
    }
}

static void yarn_in_its_variants(void **state) {
    (void)state;
    static const struct {
        const char *key;
        float value;
        double factor, fast, slow, extrapolation, magnitude;
    } variants[] = {
        {"llama.rope.scaling.factor", 4, 4, 32, 1, 1, 1 + 0.1 * 1.3862943611198906},
        {"llama.rope.scaling.factor", 16, 16, 32, 1, 1, 1 + 0.1 * 2.772588722239781},
        {"llama.rope.scaling.attn_factor", 0.5f, 4, 32, 1, 1, 0.5 * (1 + 0.1 * 1.3862943611198906)},
        {"llama.rope.scaling.yarn_attn_factor", 2, 4, 32, 1, 1, 2 * (1 + 0.1 * 1.3862943611198906)},
        {"llama.rope.scaling.yarn_beta_fast", 8, 4, 8, 1, 1, 1 + 0.1 * 1.3862943611198906},
        {"llama.rope.scaling.yarn_beta_slow", 3, 4, 32, 3, 1, 1 + 0.1 * 1.3862943611198906},
        {"llama.rope.scaling.yarn_ext_factor", 0.25f, 4, 32, 1, 0.25, 1 + 0.1 * 1.3862943611198906},
        {"llama.rope.scaling.yarn_ext_factor", 0, 4, 32, 1, 0, 1}, /* linear in all but name */
        {"llama.rope.scaling.yarn_log_multiplier", 1, 4, 32, 1, 1, 1},
        {"llama.rope.scaling.yarn_log_multiplier", 0.5f, 4, 32, 1, 1,
         (1 + 0.1 * 1.3862943611198906) / (1 + 0.05 * 1.3862943611198906)},
    };
    for (size_t i = 0; i < SH_COUNT(variants); i++) {
        struct rewrite *r = change("llama-yarn-Q8_0");
        rewrite_f32(r, variants[i].key, variants[i].value);
        struct built b = build(r);
        double theta[PAIRS];
        yarn_angles(theta, 10000, variants[i].factor, 64, variants[i].fast, variants[i].slow, variants[i].extrapolation);
        expect_table(table_of(&b, 1), theta, PAIRS, variants[i].magnitude);
        finish(&b);
    }
}

/* The configured context chooses the divisors. */
static void longrope_goes_by_the_configured_context(void **state) {
    (void)state;
    static const uint32_t contexts[] = {64, 65, 256};
    for (size_t c = 0; c < SH_COUNT(contexts); c++) {
        struct rewrite *r = change("phi3-longrope-Q8_0");
        uint64_t count;
        float *factors = rewrite_values(r, contexts[c] > 64 ? "rope_factors_long.weight" : "rope_factors_short.weight", &count);
        assert_int_equal(count, PAIRS);
        struct built b = build_for(r, contexts[c], 0);
        core_ok(b.code, &error);
        double theta[PAIRS];
        plain_angles(theta, PAIRS, 10000);
        for (int i = 0; i < PAIRS; i++) theta[i] /= (double)factors[i];
        assert_int_equal(table_of(&b, 0)->rows, contexts[c]);
        expect_table(table_of(&b, 0), theta, PAIRS, (double)1.154700517654419f);
        free(factors);
        finish(&b);
    }
    /* named as a scaling type, too; then both tensors must be there */
    struct rewrite *r = change("phi3-longrope-Q8_0");
    rewrite_str(r, "phi3.rope.scaling.type", "longrope");
    struct built b = build(r);
    assert_int_equal(b.spec.rope.scaling, SH_ROPE_LONG);
    finish(&b);
    r = change("phi3-Q8_0");
    rewrite_str(r, "phi3.rope.scaling.type", "longrope");
    b = build_for(r, 256, 0);
    assert_int_equal(b.code, SH_ERR_FORMAT);
    assert_non_null(strstr(error.message, "rope_factors_long.weight"));
    finish(&b);
    r = change("phi3-longrope-Q8_0");
    rewrite_drop_tensor(r, "rope_factors_long.weight");
    b = build_for(r, 256, 0);
    assert_int_equal(b.code, SH_ERR_FORMAT);
    assert_non_null(strstr(error.message, "'rope_factors_long.weight' is missing"));
    finish(&b);
}

/* Layers with a window turn by a table of their own, which neither the file's scaling nor the user's extension touches. */
static void local_and_global_rotation(void **state) {
    (void)state;
    double local[PAIRS], global[PAIRS];
    plain_angles(local, PAIRS, 10000);
    plain_angles(global, PAIRS, 1000000);
    for (int i = 0; i < PAIRS; i++) global[i] /= 8 * 2;
    struct built b = build_for(change("gemma3-Q8_0"), 512, 2);
    core_ok(b.code, &error);
    for (uint32_t l = 0; l < 6; l++) {
        assert_int_equal(op_of(&b, l, SH_OP_ATTENTION)->attn.window, l < 5 ? 32 : 0);
        expect_table(table_of(&b, l), l < 5 ? local : global, PAIRS, 1);
    }
    uint32_t tables = 0;
    for (uint32_t w = 0; w < b.program->n_weights; w++) tables += b.program->weights[w].constant != NULL;
    assert_int_equal(tables, 2); /* one for all layers of a kind */
    assert_int_equal(b.program->n_groups, 2);
    finish(&b);

    struct rewrite *r = change("gemma3-Q8_0");
    rewrite_f32(r, "gemma3.rope.freq_base_swa", 50000);
    plain_angles(local, PAIRS, 50000);
    b = build(r);
    expect_table(table_of(&b, 0), local, PAIRS, 1);
    finish(&b);
}

static void layers_without_rotation(void **state) {
    (void)state;
    struct built b = build(change("smollm3-Q8_0"));
    for (uint32_t l = 0; l < 4; l++) assert_int_equal(op_of(&b, l, SH_OP_ROPE_CACHE)->rope.n_rot, l == 3 ? 0 : 2 * PAIRS);
    finish(&b);
    b = build(change("cohere2-Q8_0"));
    for (uint32_t l = 0; l < 4; l++) assert_int_equal(op_of(&b, l, SH_OP_ROPE_CACHE)->rope.n_rot, l == 3 ? 0 : 2 * PAIRS);
    finish(&b);
    struct rewrite *r = change("granite-Q8_0");
    rewrite_bool(r, "granite.rope.scaling.finetuned", false);
    b = build(r);
    assert_int_equal(op_of(&b, 0, SH_OP_ROPE_CACHE)->rope.n_rot, 0);
    finish(&b);
    b = build_for(change("bloom-Q8_0"), 256, 2); /* nothing that a scale could stretch */
    assert_int_equal(b.code, SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "rope_scale"));
    finish(&b);
}

/* ---- windows ---- */

static void windows_and_their_patterns(void **state) {
    (void)state;
    static const uint32_t other[] = {0, 1}, both[] = {1, 1};
    struct rewrite *r = change("gemma2-F16"); /* layers 0 and 1; the even one has the window */
    rewrite_u32s(r, "gemma2.attention.sliding_window_pattern", both, 2);
    struct built b = build(r);
    for (uint32_t l = 0; l < 2; l++) assert_int_equal(op_of(&b, l, SH_OP_ATTENTION)->attn.window, 32);
    finish(&b);
    r = change("gemma2-F16");
    rewrite_u32(r, "gemma2.attention.sliding_window_pattern", 1); /* none of them */
    b = build(r);
    for (uint32_t l = 0; l < 2; l++) assert_int_equal(op_of(&b, l, SH_OP_ATTENTION)->attn.window, 0);
    assert_int_equal(b.program->n_groups, 1);
    finish(&b);
    r = change("gemma2-F16");
    rewrite_u32s(r, "gemma2.attention.sliding_window_pattern", other, 2);
    b = build(r);
    for (uint32_t l = 0; l < 2; l++) assert_int_equal(op_of(&b, l, SH_OP_ATTENTION)->attn.window, l == 1 ? 32 : 0);
    finish(&b);
    r = change("gemma2-F16");
    rewrite_u32s(r, "gemma2.attention.sliding_window_pattern", other, 1); /* too few */
    b = build_for(r, 256, 0);
    assert_int_equal(b.code, SH_ERR_FORMAT);
    assert_non_null(strstr(error.message, "gemma2.attention.sliding_window_pattern"));
    finish(&b);

    /* one that is as long as the context hides nothing, yet its layers are still those that rotate */
    r = change("cohere2-Q8_0");
    rewrite_u32(r, "cohere2.attention.sliding_window", 256);
    b = build(r);
    for (uint32_t l = 0; l < 4; l++) {
        assert_int_equal(op_of(&b, l, SH_OP_ATTENTION)->attn.window, 0);
        assert_int_equal(op_of(&b, l, SH_OP_ROPE_CACHE)->rope.n_rot, l == 3 ? 0 : 2 * PAIRS);
    }
    assert_int_equal(b.program->n_groups, 1);
    finish(&b);

    r = change("llama-tied-Q8_0"); /* Mistral 7B v0.1 */
    rewrite_u32(r, "llama.attention.sliding_window", 100);
    b = build(r);
    assert_int_equal(b.program->n_groups, 1);
    assert_int_equal(b.program->groups[0].kind, SH_STATE_WINDOWED);
    assert_int_equal(b.program->groups[0].window, 100);
    finish(&b);
}

/* ---- by layer ---- */

static void arrays_by_layer(void **state) {
    (void)state;
    static const uint32_t kv[] = {2, 4}, ff[] = {192, 64};
    static const uint64_t wide[] = {128, 128}, up[] = {128, 64}, down[] = {64, 128};
    struct rewrite *r = change("llama-tied-Q8_0");
    rewrite_u32s(r, "llama.attention.head_count_kv", kv, 2);
    rewrite_u32s(r, "llama.feed_forward_length", ff, 2);
    rewrite_shape(r, "blk.1.attn_k.weight", 2, wide);
    rewrite_shape(r, "blk.1.attn_v.weight", 2, wide);
    rewrite_shape(r, "blk.1.ffn_gate.weight", 2, up);
    rewrite_shape(r, "blk.1.ffn_up.weight", 2, up);
    rewrite_shape(r, "blk.1.ffn_down.weight", 2, down);
    struct built b = build(r);
    assert_int_equal(b.program->n_groups, 2);
    assert_int_equal(op_of(&b, 0, SH_OP_ATTENTION)->attn.n_kv_heads, 2);
    assert_int_equal(op_of(&b, 1, SH_OP_ATTENTION)->attn.n_kv_heads, 4);
    assert_int_equal(b.spec.n_kv_heads, 4);
    assert_int_equal(b.spec.n_ff, 192);
    finish(&b);
}

/* ---- refusals ---- */

struct refusal {
    const char *file, *key;
    float value; /* of type f32, or u32 if `whole`, or a string */
    bool whole;
    const char *text;
    enum sh_code code;
    const char *word;
};

static void set(struct rewrite *r, const struct refusal *f) {
    if (f->text != NULL) rewrite_str(r, f->key, f->text);
    else if (f->whole) rewrite_u32(r, f->key, (uint32_t)f->value);
    else rewrite_f32(r, f->key, f->value);
}

static void keys_that_would_be_left_out_are_refused(void **state) {
    (void)state;
    static const struct refusal refusals[] = {
        {"qwen2-Q8_0", "qwen2.attention.sliding_window", 128, true, NULL, SH_ERR_UNSUPPORTED, "'qwen2'"},
        {"qwen2-Q8_0", "qwen2.attention.scale", 0.25f, false, NULL, SH_ERR_UNSUPPORTED, "'qwen2'"},
        {"llama-tied-Q8_0", "llama.logit_scale", 0.25f, false, NULL, SH_ERR_UNSUPPORTED, "'llama'"},
        {"llama-tied-Q8_0", "llama.final_logit_softcapping", 30, false, NULL, SH_ERR_UNSUPPORTED, "'llama'"},
        {"llama-tied-Q8_0", "llama.embedding_scale", 12, false, NULL, SH_ERR_UNSUPPORTED, "'llama'"},
        {"llama-tied-Q8_0", "llama.attention.clamp_kqv", 8, false, NULL, SH_ERR_UNSUPPORTED, "'llama'"},
        {"llama-tied-Q8_0", "llama.something_new", 3, true, NULL, SH_ERR_UNSUPPORTED, "something_new"},
        {"olmo-Q8_0", "olmo.attention.max_alibi_bias", 8, false, NULL, SH_ERR_UNSUPPORTED, "'olmo'"},
        {"qwen3-Q8_0", "qwen3.expert_count", 8, true, NULL, SH_ERR_UNSUPPORTED, "without experts"},
        {"llama-tied-Q8_0", "llama.rope.scaling.type", 0, false, "dynamic", SH_ERR_UNSUPPORTED, "'dynamic'"},
        {"llama-yarn-Q8_0", "llama.rope.scaling.factor", 0.5f, false, NULL, SH_ERR_FORMAT, "at least 1"},
        {"llama-tied-Q8_0", "llama.rope.freq_base", -1, false, NULL, SH_ERR_FORMAT, "-1"},
        {"llama-tied-Q8_0", "llama.attention.layer_norm_rms_epsilon", NAN, false, NULL, SH_ERR_FORMAT, "nan"},
        {"llama-tied-Q8_0", "llama.attention.layer_norm_rms_epsilon", 0, false, NULL, SH_ERR_FORMAT, "is 0"},
        {"granite-Q8_0", "granite.logit_scale", 0, false, NULL, SH_ERR_FORMAT, "is 0"},
        {"cohere2-Q8_0", "cohere2.attention.sliding_window", 0, true, NULL, SH_ERR_FORMAT, "is 0"},
        {"mistral3-Q8_0", "mistral3.attention.temperature_scale", INFINITY, false, NULL, SH_ERR_FORMAT, "inf"},
        {"mistral3-Q8_0", "mistral3.rope.scaling.original_context_length", 0, true, NULL, SH_ERR_FORMAT, "is 0"},
    };
    for (size_t i = 0; i < SH_COUNT(refusals); i++) {
        const struct refusal *f = &refusals[i];
        struct rewrite *r = change(f->file);
        set(r, f);
        struct built b = build_for(r, 256, 0);
        if (b.code != f->code || strstr(error.message, f->key) == NULL || strstr(error.message, f->word) == NULL)
            fail_msg("%s of %s: %s: %s", f->key, f->file, sh_code_name(b.code), error.message);
        if (b.code == SH_OK) sh_program_destroy(b.program);
        b.program = NULL;
        finish(&b);
    }

    struct rewrite *r = change("qwen2-Q8_0");
    rewrite_bool(r, "qwen2.attention.causal", false);
    struct built b = build_for(r, 256, 0);
    assert_int_equal(b.code, SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.message, "qwen2.attention.causal"));
    finish(&b);
    static const char *const needed[][2] = {
        {"gpt2-Q8_0", "gpt2.attention.layer_norm_epsilon"},
        {"qwen3-Q8_0", "qwen3.attention.layer_norm_rms_epsilon"},
        {"granite-Q8_0", "granite.logit_scale"},
        {"command-r-F16", "command-r.logit_scale"},
        {"phi3-Q8_0", "phi3.feed_forward_length"},
        {"gemma-Q8_0", "gemma.attention.head_count"},
    };
    for (size_t i = 0; i < SH_COUNT(needed); i++) {
        r = change(needed[i][0]);
        rewrite_drop_key(r, needed[i][1]);
        b = build_for(r, 256, 0);
        if (b.code != SH_ERR_FORMAT || strstr(error.message, needed[i][1]) == NULL)
            fail_msg("without %s: %s: %s", needed[i][1], sh_code_name(b.code), error.message);
        finish(&b);
    }
}

/* Keys that say what is so anyway do not stand in the way. */
static void neutral_keys_are_let_pass(void **state) {
    (void)state;
    static const struct refusal harmless[] = {
        {"llama-tied-Q8_0", "llama.vocab_size", 512, true, NULL, SH_OK, NULL},
        {"llama-tied-Q8_0", "llama.tensor_data_layout", 0, false, "Meta AI original pth", SH_OK, NULL},
        {"llama-tied-Q8_0", "llama.expert_used_count", 0, true, NULL, SH_OK, NULL},
        {"llama-tied-Q8_0", "llama.logit_scale", 1, false, NULL, SH_OK, NULL},
        {"llama-tied-Q8_0", "llama.rope.scaling.type", 0, false, "none", SH_OK, NULL},
        {"qwen2-Q8_0", "qwen2.attention.sliding_window", 0, true, NULL, SH_OK, NULL},
        {"granite-Q8_0", "granite.expert_shared_feed_forward_length", 8192, true, NULL, SH_OK, NULL}, /* Granite 4 micro */
        {"granite-Q8_0", "granite.ssm.state_size", 128, true, NULL, SH_OK, NULL},
        {"qwen2-Q8_0", "qwen2.attention.sliding_window", 131072, true, NULL, SH_OK, NULL},
        {"gpt2-Q8_0", "gpt2.rope.freq_base", 10000, false, NULL, SH_OK, NULL},
    };
    for (size_t i = 0; i < SH_COUNT(harmless); i++) {
        struct rewrite *r = change(harmless[i].file);
        set(r, &harmless[i]);
        struct built b = build_for(r, 256, 0);
        if (b.code != SH_OK) fail_msg("%s: %s", harmless[i].key, error.message);
        finish(&b);
    }
}

/* ---- any value of any key ---- */

static void set_any(struct rewrite *r, const char *key, struct test_rng *rng) {
    static const uint32_t whole[] = {0,   1,   2,    3,     5,        7,        31,       33,        64,
                                     255, 257, 4096, 65537, 1u << 20, 1u << 24, 1u << 31, UINT32_MAX};
    static const float real[] = {0, -1, 0.5f, 1, 1.5f, 1e-30f, 1e30f, INFINITY, -INFINITY, NAN, 3e9f};
    uint32_t list[8];
    for (int i = 0; i < 8; i++) list[i] = whole[test_random(rng) % SH_COUNT(whole)];
    switch (test_random(rng) % 6) {
    case 0:
    case 1: rewrite_u32(r, key, list[0]); break;
    case 2: rewrite_f32(r, key, real[test_random(rng) % SH_COUNT(real)]); break;
    case 3: rewrite_u32s(r, key, list, test_random(rng) % 9); break;
    case 4: rewrite_bool(r, key, test_random(rng) % 2 == 0); break;
    default: rewrite_str(r, key, test_random(rng) % 2 == 0 ? "yarn" : ""); break;
    }
}

/* Whatever a key says, the file is computed or refused with a reason. One or two keys at once, of every architecture. */
static void any_value_is_computed_or_refused(void **state) {
    (void)state;
    struct test_rng rng = {3};
    char path[512]; /* what test_scratch lends is used again after a few calls */
    snprintf(path, sizeof path, "%s", test_scratch("any.gguf"));
    uint32_t refused = 0, computed = 0;
    for (uint32_t f = 0; f < parity_count; f++) {
        if (strncmp(parity_table[f].name, "llama-", 6) == 0 && !parity_table[f].brief) continue;
        for (int round = 0; round < (parity_full() ? 100 : 6); round++) {
            struct rewrite *r = change(parity_table[f].name);
            const struct sh_gguf *g = rewrite_source(r);
            for (uint64_t keys = 1 + test_random(&rng) % 2; keys > 0;) {
                const struct sh_kv *kv = sh_gguf_kv_at(g, test_random(&rng) % sh_gguf_kv_count(g));
                if (strncmp(kv->key, "tokenizer.", 10) == 0 || strncmp(kv->key, "general.", 8) == 0) continue;
                set_any(r, kv->key, &rng);
                keys--;
            }
            rewrite_save(r, path);
            struct sh_file *opened = NULL;
            core_ok(sh_file_open(path, &opened, &error), &error);
            error = (struct sh_error){0};
            const enum sh_code code = sh_file_check(opened, &error);
            sh_file_close(opened);
            if (code == SH_OK) computed++;
            else refused++;
            assert_true(code == SH_OK || ((code == SH_ERR_FORMAT || code == SH_ERR_UNSUPPORTED) && error.message[0] != '\0'));
        }
    }
    assert_true(refused > computed && computed > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(yarn_in_its_variants),
        cmocka_unit_test(longrope_goes_by_the_configured_context),
        cmocka_unit_test(local_and_global_rotation),
        cmocka_unit_test(layers_without_rotation),
        cmocka_unit_test(windows_and_their_patterns),
        cmocka_unit_test(arrays_by_layer),
        cmocka_unit_test(keys_that_would_be_left_out_are_refused),
        cmocka_unit_test(neutral_keys_are_let_pass),
        cmocka_unit_test(any_value_is_computed_or_refused),
    };
    return cmocka_run_group_tests_name("model_spec", tests, NULL, NULL);
}
