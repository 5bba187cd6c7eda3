/*
 * What goes wrong, and that it costs one load or one step: bad files, cancelled loads, refused batches, full caches, and devices
 * that fail in the middle of a step, which an executor that fails on demand stands in for.
 */
#include "compute/gguf/quant.h"
#include "compute/gguf/write.h"
#include "compute/program/executor.h"
#include "compute/sample/sample.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error error;
static char small[256]; /* a model file that is right */

static int write_small(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "F32";
    p.embd = 64;
    p.head_dim = 16;
    p.ff = 96;
    snprintf(small, sizeof small, "%s", test_scratch("small.gguf"));
    core_ok(genmodel_write(small, &p, &error), &error);
    return 0;
}

/* ---- files that are wrong ---- */

struct fault { /* what differs from a right file of one layer, embedding 32, four heads of 8, feed-forward 64, vocabulary 16 */
    const char *key; /* "llama." is put before it */
    uint32_t value;
    const char *skip;    /* a tensor left out */
    const char *reshape; /* a tensor with one more row */
    const char *retype;  /* a tensor written as Q4_1, which is not computed */
    const char *extra;   /* a tensor more */
    uint32_t vectors;    /* the type of norms; 0 is F32 */
    const char *architecture;
    enum sh_code code;
    const char *words[3]; /* of the message */
};

static void write_tiny(const char *path, const struct fault *f) {
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        {"block_count", 1},
        {"embedding_length", 32},
        {"feed_forward_length", 64},
        {"attention.head_count", 4},
        {"attention.head_count_kv", 2},
        {"context_length", 64},
        {"rope.dimension_count", 8},
        {"expert_count", 0},
    };
    static const struct {
        const char *name;
        uint32_t rank;
        uint64_t dims[2];
    } tensors[] = {
        {"token_embd.weight", 2, {32, 16}},        {"output_norm.weight", 1, {32, 1}},     {"blk.0.attn_norm.weight", 1, {32, 1}},
        {"blk.0.attn_q.weight", 2, {32, 32}},      {"blk.0.attn_k.weight", 2, {32, 16}},   {"blk.0.attn_v.weight", 2, {32, 16}},
        {"blk.0.attn_output.weight", 2, {32, 32}}, {"blk.0.ffn_norm.weight", 1, {32, 1}},  {"blk.0.ffn_gate.weight", 2, {32, 64}},
        {"blk.0.ffn_up.weight", 2, {32, 64}},      {"blk.0.ffn_down.weight", 2, {64, 32}},
    };
    struct sh_gguf_writer *w = NULL;
    core_ok(sh_gguf_writer_create(path, 3, 0, &w, &error), &error);
    const char *architecture = f->architecture != NULL ? f->architecture : "llama";
    sh_gguf_add_str(w, "general.architecture", architecture, strlen(architecture));
    bool known = false;
    for (size_t i = 0; i < SH_COUNT(keys); i++) {
        char key[64];
        snprintf(key, sizeof key, "llama.%s", keys[i].key);
        const bool this = f->key != NULL && strcmp(f->key, keys[i].key) == 0;
        known = known || this;
        if (this && f->value == SH_NONE) continue; /* left out */
        sh_gguf_add_u32(w, key, this ? f->value : keys[i].value);
    }
    if (f->key != NULL && !known) {
        char key[64];
        snprintf(key, sizeof key, "llama.%s", f->key);
        sh_gguf_add_u32(w, key, f->value);
    }
    sh_gguf_add_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    char pieces[16][4];
    struct sh_str tokens[16];
    float scores[16] = {0};
    int32_t types[16];
    for (int i = 0; i < 16; i++) {
        snprintf(pieces[i], sizeof pieces[i], "%c", 'a' + i);
        tokens[i] = (struct sh_str){pieces[i], 1};
        types[i] = 1;
    }
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, 16);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, 16);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, 16);
    uint64_t bytes[SH_COUNT(tensors) + 1] = {0};
    for (size_t i = 0; i < SH_COUNT(tensors); i++) {
        uint64_t dims[2] = {tensors[i].dims[0], tensors[i].dims[1]};
        if (f->skip != NULL && strcmp(f->skip, tensors[i].name) == 0) continue;
        if (f->reshape != NULL && strcmp(f->reshape, tensors[i].name) == 0) dims[tensors[i].rank - 1]++;
        const bool other = f->retype != NULL && strcmp(f->retype, tensors[i].name) == 0;
        const uint32_t type = other ? 9 /* Q8_1 */ : tensors[i].rank == 1 ? f->vectors : SH_TYPE_F32;
        sh_gguf_add_tensor(w, tensors[i].name, type, tensors[i].rank, dims);
        bytes[i] = sh_type_row_bytes(type, dims[0]) * dims[1];
    }
    if (f->extra != NULL) {
        sh_gguf_add_tensor(w, f->extra, SH_TYPE_F32, 1, (const uint64_t[]){32});
        bytes[SH_COUNT(tensors)] = 32 * sizeof(float);
    }
    core_ok(sh_gguf_writer_begin(w, &error), &error);
    for (size_t i = 0; i < SH_COUNT(bytes); i++) {
        float values[2200] = {0};
        uint8_t stored[sizeof values] = {0};
        const bool vector = i < SH_COUNT(tensors) && tensors[i].rank == 1;
        for (int k = 0; k < 2200; k++) /* exact in half precision too */
            values[k] = vector ? (float)(k % 5 + 4) / 4 : (float)((k * 7 + (int)i) % 17 - 8) / 16;
        const uint32_t type = vector ? f->vectors : SH_TYPE_F32;
        assert_true(bytes[i] <= sizeof stored && sh_quantize(type, values, stored, type == SH_TYPE_F32 ? 2200 : 32));
        if (bytes[i] > 0) core_ok(sh_gguf_writer_data(w, stored, bytes[i], &error), &error);
    }
    core_ok(sh_gguf_writer_finish(w, &error), &error);
    sh_gguf_writer_destroy(w);
}

static enum sh_code try_load(const char *path, uint32_t context, float rope_scale, struct sh_model **model) {
    struct sh_device *device = core_open_device("cpu-scalar");
    const struct sh_model_params params = {
        .size = sizeof params, .path = path, .context_length = context, .rope_scale = rope_scale};
    error = (struct sh_error){0};
    const enum sh_code code = sh_model_load(&device, 1, &params, model, &error);
    if (code == SH_OK) { /* the caller only looks at it */
        struct sh_context *c = NULL;
        core_ok(sh_context_create(*model, NULL, &c, &error), &error);
        sh_context_destroy(c);
        sh_model_unload(*model);
    }
    sh_device_close(device);
    return code;
}

static void wrong_files_are_refused_and_named(void **state) {
    (void)state;
    static const struct fault faults[] = {
        {.code = SH_OK},
        {.architecture = "hyena", .code = SH_ERR_UNSUPPORTED, .words = {"'hyena'", "--supported"}},
        {.architecture = "", .code = SH_ERR_FORMAT, .words = {"general.architecture"}},
        {.key = "block_count", .value = 0, .code = SH_ERR_FORMAT, .words = {"llama.block_count", "is 0", "1 to"}},
        {.key = "block_count", .value = SH_NONE, .code = SH_ERR_FORMAT, .words = {"llama.block_count"}},
        {.key = "block_count", .value = 2, .code = SH_ERR_FORMAT, .words = {"'blk.1.", "missing"}},
        {.key = "block_count", .value = 4000000000u, .code = SH_ERR_FORMAT, .words = {"llama.block_count", "4000000000"}},
        {.key = "embedding_length", .value = 0, .code = SH_ERR_FORMAT, .words = {"llama.embedding_length"}},
        {.key = "embedding_length", .value = 1u << 30, .code = SH_ERR_FORMAT, .words = {"llama.embedding_length"}},
        {.key = "embedding_length", .value = 64, .code = SH_ERR_FORMAT, .words = {"token_embd.weight", "[32, 16]", "[64, 16]"}},
        {.key = "embedding_length", .value = 30, .code = SH_ERR_FORMAT, .words = {"key_length", "30", "4"}},
        {.key = "feed_forward_length", .value = 0, .code = SH_ERR_FORMAT, .words = {"llama.feed_forward_length"}},
        {.key = "feed_forward_length", .value = 65, .code = SH_ERR_FORMAT, .words = {"ffn_gate", "[32, 64]", "[32, 65]"}},
        {.key = "attention.head_count", .value = 0, .code = SH_ERR_FORMAT, .words = {"attention.head_count"}},
        {.key = "attention.head_count", .value = 5, .code = SH_ERR_FORMAT, .words = {"attention.head_count", "is 5", "multiple"}},
        {.key = "attention.head_count_kv", .value = 0, .code = SH_ERR_FORMAT, .words = {"attention.head_count_kv"}},
        {.key = "attention.head_count_kv", .value = 3, .code = SH_ERR_FORMAT, .words = {"head_count", "multiple", "3"}},
        {.key = "attention.key_length", .value = 0, .code = SH_ERR_FORMAT, .words = {"attention.key_length"}},
        {.key = "attention.key_length", .value = 16, .code = SH_ERR_FORMAT, .words = {"attn_q.weight", "[32, 64]"}},
        {.key = "attention.value_length", .value = 1u << 31, .code = SH_ERR_FORMAT, .words = {"attention.value_length"}},
        {.key = "rope.dimension_count", .value = 7, .code = SH_ERR_FORMAT, .words = {"7", "even"}},
        {.key = "rope.dimension_count", .value = 10, .code = SH_ERR_FORMAT, .words = {"rope.dimension_count", "10"}},
        {.key = "rope.dimension_count", .value = 0, .code = SH_ERR_FORMAT, .words = {"rope.dimension_count"}},
        {.key = "context_length", .value = 0, .code = SH_ERR_FORMAT, .words = {"llama.context_length"}},
        {.key = "context_length", .value = UINT32_MAX - 1, .code = SH_ERR_FORMAT, .words = {"llama.context_length"}},
        {.key = "expert_count", .value = 8, .code = SH_ERR_FORMAT, .words = {"llama.expert_used_count", "none"}},
        {.key = "rope.scaling.type", .value = 1, .code = SH_ERR_FORMAT, .words = {"rope.scaling.type"}},
        {.skip = "token_embd.weight", .code = SH_ERR_FORMAT, .words = {"token_embd.weight", "missing"}},
        {.skip = "output_norm.weight", .code = SH_ERR_FORMAT, .words = {"output_norm.weight", "missing", "[32]"}},
        {.skip = "blk.0.ffn_down.weight", .code = SH_ERR_FORMAT, .words = {"blk.0.ffn_down.weight", "missing", "[64, 32]"}},
        {.reshape = "token_embd.weight", .code = SH_ERR_FORMAT, .words = {"token_embd.weight", "17", "16"}},
        {.reshape = "blk.0.attn_k.weight", .code = SH_ERR_FORMAT, .words = {"blk.0.attn_k.weight", "[32, 17]", "[32, 16]"}},
        {.reshape = "blk.0.attn_norm.weight", .code = SH_ERR_FORMAT, .words = {"blk.0.attn_norm.weight", "[33]", "[32]"}},
        {.retype = "blk.0.ffn_up.weight", .code = SH_ERR_UNSUPPORTED, .words = {"blk.0.ffn_up.weight", "Q8_1", "Q4_0"}},
        {.retype = "blk.0.ffn_norm.weight", .code = SH_ERR_UNSUPPORTED, .words = {"blk.0.ffn_norm.weight", "Q8_1", "F16"}},
        {.extra = "blk.0.attn_sub_norm.weight", .code = SH_ERR_UNSUPPORTED, .words = {"blk.0.attn_sub_norm.weight", "llama"}},
        {.extra = "rope_freqs.weight", .code = SH_ERR_FORMAT, .words = {"rope_freqs.weight", "32", "4"}},
        {.extra = "blk.0.attn_q.bias", .code = SH_OK},
        {.extra = "blk.0.attn_k.bias", .code = SH_ERR_FORMAT, .words = {"blk.0.attn_k.bias", "[32]", "[16]"}},
    };
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("tiny.gguf"));
    for (size_t i = 0; i < SH_COUNT(faults); i++) {
        write_tiny(path, &faults[i]);
        struct sh_model *model = NULL;
        const enum sh_code code = try_load(path, 0, 0, &model);
        if (code != faults[i].code) fail_msg("fault %zu: %s: %s", i, sh_code_name(code), error.message);
        for (int w = 0; w < 3 && faults[i].words[w] != NULL; w++)
            if (strstr(error.message, faults[i].words[w]) == NULL)
                fail_msg("fault %zu: no '%s' in: %s", i, faults[i].words[w], error.message);
        if (code != SH_OK) assert_non_null(strstr(error.message, "tiny.gguf"));
        struct sh_file *file = NULL; /* sh_file_check says the same without loading */
        struct sh_error check = {0};
        core_ok(sh_file_open(path, &file, &check), &check);
        assert_int_equal(sh_file_check(file, &check), code);
        if (code != SH_OK) assert_string_equal(check.message, error.message);
        sh_file_close(file);
    }
}

/* A path longer than a message does not crowd out what is wrong. */
static void long_paths_leave_room_for_the_reason(void **state) {
    (void)state;
    char path[2000];
    snprintf(path, sizeof path, "%s", test_scratch("long"));
    for (int i = 0; i < 4; i++) {
        assert_int_equal(mkdir(path, 0700), 0);
        const size_t length = strlen(path);
        memset(path + length, 'd', 200);
        snprintf(path + length + 200, sizeof path - length - 200, "%s", i < 3 ? "" : ".gguf");
        path[length] = '/';
    }
    static const struct fault faults[] = {
        {.architecture = "hyena", .words = {"'hyena'"}},
        {.key = "block_count", .value = 0, .words = {"block_count"}},
        {.skip = "output_norm.weight", .words = {"output_norm.weight' is missing"}},
    };
    for (size_t i = 0; i < SH_COUNT(faults); i++) {
        write_tiny(path, &faults[i]);
        struct sh_model *model = NULL;
        assert_int_not_equal(try_load(path, 0, 0, &model), SH_OK);
        if (strstr(error.message, faults[i].words[0]) == NULL) fail_msg("fault %zu: %s", i, error.message);
    }
    assert_int_equal(unlink(path), 0);
    for (int i = 0; i < 4; i++) {
        *strrchr(path, '/') = '\0';
        assert_int_equal(rmdir(path), 0);
    }
}

/* Norms in half precision, and a model in shards, are the same model. */
static void logits_of(const char *path, float *logits, uint32_t n_vocab) {
    struct core_model m;
    core_load(&m, "cpu-scalar", path, NULL);
    assert_int_equal(m.n_vocab, n_vocab);
    const int32_t tokens[] = {3, 1, 4, 1, 5, 9, 2, 6};
    core_prefill(&m, core_sequence(&m), tokens, 8, 0, NULL, logits);
    core_unload(&m);
}

static void vectors_in_half_precision(void **state) {
    (void)state;
    static const uint32_t types[] = {SH_TYPE_F32, SH_TYPE_F16, SH_TYPE_BF16};
    float expected[16], found[16];
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("vectors.gguf"));
    for (size_t i = 0; i < SH_COUNT(types); i++) {
        write_tiny(path, &(struct fault){.vectors = types[i]});
        logits_of(path, i == 0 ? expected : found, 16);
        if (i > 0) assert_memory_equal(found, expected, sizeof expected);
    }
    assert_true(expected[0] != expected[1] && isfinite(expected[0]));
}

static void shards_are_one_model(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    float expected[512], found[512];
    char whole[256], parts[256], shard[300];
    snprintf(whole, sizeof whole, "%s", test_scratch("whole.gguf"));
    snprintf(parts, sizeof parts, "%s", test_scratch("parts.gguf"));
    core_ok(genmodel_write(whole, &p, &error), &error);
    p.shards = 3;
    core_ok(genmodel_write(parts, &p, &error), &error);
    logits_of(whole, expected, 512);
    for (uint32_t i = 0; i < 3; i++) {
        genmodel_shard_path(parts, i, 3, shard, sizeof shard);
        logits_of(shard, found, 512);
        assert_memory_equal(found, expected, sizeof expected);
    }
}

static void context_lengths(void **state) {
    (void)state;
    char path[256];
    struct sh_model *model = NULL;
    snprintf(path, sizeof path, "%s", test_scratch("context.gguf"));
    write_tiny(path, &(struct fault){.code = SH_OK}); /* native: 64 */
    core_ok(try_load(path, 64, 0, &model), &error);
    core_ok(try_load(path, 1, 0, &model), &error);
    core_ok(try_load(path, 256, 4, &model), &error);
    assert_int_equal(try_load(path, 65, 0, &model), SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "65"));
    assert_non_null(strstr(error.message, "64"));
    assert_int_equal(try_load(path, 257, 4, &model), SH_ERR_INVALID);
    write_tiny(path, &(struct fault){.key = "context_length", .value = 1u << 24});
    core_ok(try_load(path, 0, 0, &model), &error); /* the default is much less */
    write_tiny(path, &(struct fault){.code = SH_OK});
    assert_int_equal(try_load(path, 64, 0.5f, &model), SH_ERR_INVALID);
    assert_int_equal(try_load(path, 64, NAN, &model), SH_ERR_INVALID);
    assert_int_equal(try_load("/nonexistent/model.gguf", 0, 0, &model), SH_ERR_NOT_FOUND);
    assert_non_null(strstr(error.message, "/nonexistent/model.gguf"));
}

/* ---- loading ---- */

struct watch {
    double last;
    uint32_t calls, stop_at;
    enum sh_load_phase phase, last_phase;
    const char *truncate;
};

static bool watch_progress(void *user, enum sh_load_phase phase, double fraction) {
    struct watch *w = user;
    assert_true(fraction >= w->last && fraction <= 1);
    assert_true(phase >= w->last_phase);
    w->last = fraction;
    w->last_phase = phase;
    w->calls++;
    if (w->truncate != NULL && phase == SH_LOAD_WEIGHTS) assert_int_equal(truncate(w->truncate, 3000), 0);
    return w->stop_at == 0 || w->calls < w->stop_at;
}

static enum sh_code load_watched(struct sh_device *device, const char *path, struct watch *w, struct sh_model **model) {
    const struct sh_model_params params = {.size = sizeof params, .path = path, .progress = watch_progress, .progress_user = w};
    return sh_model_load(&device, 1, &params, model, &error);
}

static void loads_can_be_cancelled_at_every_call(void **state) {
    (void)state;
    struct sh_device *device = core_open_device("cpu-scalar");
    struct sh_model *model = NULL;
    struct watch all = {0};
    core_ok(load_watched(device, small, &all, &model), &error);
    assert_true(all.last == 1 && all.last_phase == SH_LOAD_DONE && all.calls > 10);
    sh_model_unload(model);
    for (uint32_t stop = 1; stop <= all.calls; stop++) {
        struct watch w = {.stop_at = stop};
        model = (struct sh_model *)&w;
        assert_int_equal(load_watched(device, small, &w, &model), SH_ERR_CANCELLED);
        assert_null(model);
        assert_int_equal(w.calls, stop);
    }
    struct sh_device_memory memory;
    sh_device_get_memory(device, &memory);
    assert_int_equal(memory.weights_bytes, 0);
    sh_device_close(device);
}

static void files_that_shrink_while_they_are_read(void **state) {
    (void)state;
    size_t bytes;
    void *data = test_read_file(small, &bytes);
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("shrinks.gguf"));
    test_write_file(path, data, bytes);
    free(data);
    struct sh_device *device = core_open_device("cpu-scalar");
    struct sh_model *model = NULL;
    struct watch w = {.truncate = path};
    assert_int_equal(load_watched(device, path, &w, &model), SH_ERR_IO);
    assert_non_null(strstr(error.message, path));
    assert_non_null(strstr(error.message, ".weight"));
    sh_device_close(device);
}

static void after_load_the_file_is_not_needed(void **state) {
    (void)state;
    size_t bytes;
    void *data = test_read_file(small, &bytes);
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("goes.gguf"));
    test_write_file(path, data, bytes);
    free(data);
    struct core_model kept, gone;
    core_load(&kept, "cpu-scalar", small, NULL);
    core_load(&gone, "cpu-scalar", path, NULL);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(unlink(path), 0);
    float a[1024], b[1024];
    assert_in_range(kept.n_vocab, 1, 1024);
    const int32_t tokens[] = {5, 6, 7, 300};
    core_prefill(&kept, core_sequence(&kept), tokens, 4, 0, NULL, a);
    core_prefill(&gone, core_sequence(&gone), tokens, 4, 0, NULL, b);
    assert_memory_equal(a, b, kept.n_vocab * sizeof *a);
    core_unload(&kept);
    core_unload(&gone);
}

static void placements_are_checked(void **state) {
    (void)state;
    struct sh_device *devices[2] = {core_open_device("cpu-scalar"), core_open_device("cpu-scalar")};
    static const struct {
        struct sh_placement p[3];
        uint32_t n;
        enum sh_code code;
    } cases[] = {
        {{{0, 2, 0}}, 1, SH_OK},
        {{{0, 1, 0}, {1, 1, 1}}, 2, SH_OK},
        {{{0, 1, 1}, {1, 1, 0}}, 2, SH_OK},
        {{{0, 1, 0}}, 1, SH_ERR_INVALID},
        {{{1, 1, 0}}, 1, SH_ERR_INVALID},
        {{{0, 3, 0}}, 1, SH_ERR_INVALID},
        {{{0, 2, 0}, {2, 0, 1}}, 2, SH_ERR_INVALID},
        {{{0, 1, 0}, {1, UINT32_MAX, 1}}, 2, SH_ERR_INVALID},
        {{{0, 1, 0}, {1, 1, 2}}, 2, SH_ERR_INVALID},
        {{{0, 1, 0}, {0, 1, 1}}, 2, SH_ERR_INVALID},
    };
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        struct sh_model *model = NULL;
        const struct sh_model_params params = {
            .size = sizeof params, .path = small, .placement = cases[i].p, .n_placement = cases[i].n};
        assert_int_equal(sh_model_load(devices, 2, &params, &model, &error), cases[i].code);
        sh_model_unload(model);
    }
    struct sh_model *model = NULL;
    const struct sh_model_params params = {.size = sizeof params, .path = small};
    assert_int_equal(sh_model_load(devices, 0, &params, &model, &error), SH_ERR_INVALID);
    assert_int_equal(sh_model_load(devices, 9, &params, &model, &error), SH_ERR_INVALID);
    sh_device_close(devices[0]);
    sh_device_close(devices[1]);
}

static void what_does_not_fit_is_refused_with_figures(void **state) {
    (void)state;
    struct sh_device *device = core_open_device("cpu-scalar");
    struct sh_model *model = NULL;
    struct sh_context *context = NULL;
    const struct sh_model_params params = {.size = sizeof params, .path = small};
    core_ok(sh_model_load(&device, 1, &params, &model, &error), &error);
    struct sh_device_memory held;
    sh_device_get_memory(device, &held);
    const uint64_t page = 2ull * 2 * 2 * 16 * 32 * 4; /* layers, K and V, heads, head size, tokens, float */
    const struct sh_context_params f32 = {.size = sizeof f32, .kv_type = SH_KV_F32};
    device->info.memory_bytes = held.weights_bytes + held.cache_bytes + held.activation_bytes + held.staging_bytes + 8 * page - 1;
    assert_int_equal(sh_context_create(model, &f32, &context, &error), SH_ERR_NO_MEMORY);
    assert_null(context);
    assert_non_null(strstr(error.message, "256 tokens (f32)"));
    device->info.memory_bytes++;
    core_ok(sh_context_create(model, &f32, &context, &error), &error);
    sh_context_destroy(context);
    struct sh_model *second = NULL;
    device->info.memory_bytes = held.weights_bytes + 1;
    assert_int_equal(sh_model_load(&device, 1, &params, &second, &error), SH_ERR_NO_MEMORY);
    assert_non_null(strstr(error.message, "the model needs"));
    sh_model_unload(model);
    sh_device_close(device);
}

/* Each part of a split model holds the cache of its own layers, not of all. */
static void split_caches_are_as_large_as_whole_ones(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.layers = 8;
    p.heads = p.kv_heads = 8;
    p.head_dim = 256; /* a page of all layers and f32: 4 MiB */
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("pages.gguf"));
    core_ok(genmodel_write(path, &p, &error), &error);
    const struct sh_context_params params = {.size = sizeof params, .kv_type = SH_KV_F32};
    const char *const devices[] = {"cpu-scalar", "cpu-scalar+cpu-scalar"};
    const int32_t tokens[] = {1, 2, 3};
    struct sh_context_stats stats[2];
    float logits[2][1024];
    for (int split = 0; split < 2; split++) {
        struct core_model m;
        core_load_split(&m, devices[split], path, &params);
        core_prefill(&m, core_sequence(&m), tokens, 3, 0, NULL, logits[split]);
        sh_context_get_stats(m.context, &stats[split]);
        core_unload(&m);
    }
    assert_true(stats[0].cache_bytes >= 8 * (4u << 20)); /* eight pages are the whole context */
    assert_true(stats[1].cache_bytes <= stats[0].cache_bytes);
    assert_memory_equal(logits[0], logits[1], p.vocab * sizeof(float));
}

/* ---- batches ---- */

struct snapshot {
    struct sh_context_stats stats;
    uint32_t lengths[3];
};

static struct snapshot look(const struct core_model *m, const uint32_t s[3]) {
    struct snapshot shot;
    memset(&shot, 0, sizeof shot);
    sh_context_get_stats(m->context, &shot.stats);
    for (int i = 0; i < 3; i++) shot.lengths[i] = sh_sequence_length(m->context, s[i]);
    return shot;
}

static void refused_batches_change_nothing(void **state) {
    (void)state;
    const struct sh_context_params params = {.size = sizeof params, .max_sequences = 4, .max_batch_rows = 40, .max_outputs = 3};
    struct core_model m;
    core_load(&m, "cpu-scalar", small, &params);
    int32_t tokens[40];
    for (int i = 0; i < 40; i++) tokens[i] = 3 + 7 * i;
    const uint32_t s[3] = {core_sequence(&m), core_sequence(&m), core_sequence(&m)};
    const uint32_t gone = core_sequence(&m);
    sh_sequence_destroy(m.context, gone);
    float before[1024], after[1024];
    core_prefill(&m, s[0], tokens, 35, 0, NULL, NULL);
    core_prefill(&m, s[1], tokens, 3, 0, NULL, NULL);
    const uint32_t n_vocab = m.n_vocab, nothing[16] = {0}, something[16] = {1};

    /* One ticket that sampled its row 1, waited for. */
    sh_ticket sampled;
    struct sh_results results;
    const struct sh_row two[] = {{.sequence = s[1], .token = 9, .position = 3, .outputs = SH_OUT_LOGITS},
                                 {.sequence = s[1], .token = 9, .position = 4, .outputs = SH_OUT_SAMPLE}};
    core_ok(sh_submit(m.context, &(struct sh_batch){two, 2}, &sampled, &error), &error);
    core_ok(sh_wait(m.context, sampled, -1, &results, &error), &error);

#define GOOD                                                                                                                     \
    { .sequence = s[0], .token = 1, .position = 35 }
    const struct {
        struct sh_row rows[5];
        uint32_t n;
        enum sh_code code;
        const char *word;
    } cases[] = {
        {{GOOD}, 0, SH_ERR_INVALID, "no rows"},
        {{GOOD, {.sequence = gone, .token = 1}}, 2, SH_ERR_INVALID, "sequence 3"},
        {{GOOD, {.sequence = 99, .token = 1}}, 2, SH_ERR_INVALID, "99"},
        {{GOOD, {.sequence = s[0], .token = -1, .position = 36}}, 2, SH_ERR_INVALID, "token -1"},
        {{GOOD, {.sequence = s[0], .token = (int32_t)n_vocab, .position = 36}}, 2, SH_ERR_INVALID, "token 512"},
        {{GOOD, {.sequence = s[0], .token = INT32_MIN, .position = 36}}, 2, SH_ERR_INVALID, "token"},
        {{GOOD, {.sequence = s[0], .token = 1, .position = 37}}, 2, SH_ERR_INVALID, "position 37"},
        {{GOOD, {.sequence = s[0], .token = 1, .position = 35}}, 2, SH_ERR_INVALID, "position 35"},
        {{GOOD, {.sequence = s[1], .token = 1, .position = 4}}, 2, SH_ERR_INVALID, "expected 5"},
        {{GOOD, {.sequence = s[2], .token = 1}, {.sequence = s[0], .token = 1, .position = 36}}, 3, SH_ERR_INVALID, "together"},
        {{GOOD, {.sequence = s[0], .input = SH_INPUT_EMBEDDING, .position = 36}}, 2, SH_ERR_INVALID, "NULL"},
        {{GOOD, {.sequence = s[0], .input = (enum sh_input)9, .position = 36}}, 2, SH_ERR_INVALID, "input 9"},
        {{GOOD, {.sequence = s[0], .token = 1, .role = (enum sh_role)7, .position = 36}}, 2, SH_ERR_INVALID, "role 7"},
        {{GOOD, {.sequence = s[0], .token = 1, .outputs = 64, .position = 36}}, 2, SH_ERR_INVALID, "outputs"},
        {{GOOD, {.sequence = s[0], .token = 1, .outputs = SH_OUT_LOGPROBS, .position = 36}}, 2, SH_ERR_INVALID, "sample"},
        {{GOOD, {.sequence = s[0], .token = 1, .outputs = SH_OUT_SAMPLE | SH_OUT_LOGPROBS, .n_top = 65, .position = 36}},
         2,
         SH_ERR_INVALID,
         "n_top"},
        {{GOOD, {.sequence = s[0], .token = 1, .outputs = SH_OUT_SAMPLE, .mask = nothing, .position = 36}},
         2,
         SH_ERR_INVALID,
         "the mask allows none"},
        {{GOOD, {.sequence = s[0], .token = 1, .outputs = SH_OUT_LOGITS, .mask = something, .position = 36}},
         2,
         SH_ERR_INVALID,
         "samples no token"},
        {{GOOD, {.sequence = s[0], .input = SH_INPUT_SAMPLED, .position = 36}}, 2, SH_ERR_INVALID, "ticket 0"},
        {{GOOD, {.sequence = s[0], .input = SH_INPUT_SAMPLED, .ticket = sampled + 1, .position = 36}},
         2,
         SH_ERR_INVALID,
         "ticket"},
        {{GOOD, {.sequence = s[0], .input = SH_INPUT_SAMPLED, .ticket = sampled - 2, .position = 36}},
         2,
         SH_ERR_INVALID,
         "ticket"},
        {{GOOD, {.sequence = s[0], .input = SH_INPUT_SAMPLED, .ticket = sampled, .sampled_row = 0, .position = 36}},
         2,
         SH_ERR_INVALID,
         "not sampled"},
        {{GOOD, {.sequence = s[0], .input = SH_INPUT_SAMPLED, .ticket = sampled, .sampled_row = 5, .position = 36}},
         2,
         SH_ERR_INVALID,
         "not sampled"},
        {{{.sequence = s[2], .token = 1, .outputs = 2},
          {.sequence = s[2], .token = 1, .position = 1, .outputs = 2},
          {.sequence = s[2], .token = 1, .position = 2, .outputs = 2},
          {.sequence = s[2], .token = 1, .position = 3, .outputs = 2}},
         4,
         SH_ERR_LIMIT,
         "ask for an output"},
    };
#undef GOOD
    const struct snapshot shot = look(&m, s);
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        sh_ticket ticket;
        const enum sh_code code = sh_submit(m.context, &(struct sh_batch){cases[i].rows, cases[i].n}, &ticket, &error);
        if (code != cases[i].code || strstr(error.message, cases[i].word) == NULL)
            fail_msg("case %zu: %s: %s", i, sh_code_name(code), error.message);
        const struct snapshot now = look(&m, s);
        assert_memory_equal(&now, &shot, sizeof shot);
    }
    struct sh_row many[41];
    for (uint32_t i = 0; i < 41; i++) many[i] = (struct sh_row){.sequence = s[2], .token = 1, .position = i};
    sh_ticket ticket;
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){many, 41}, &ticket, &error), SH_ERR_LIMIT);

    core_prefill(&m, s[0], tokens + 35, 5, 0, NULL, after);
    core_prefill(&m, s[2], tokens, 40, 0, NULL, before);
    assert_memory_equal(before, after, m.n_vocab * sizeof *before);
    core_unload(&m);
}

static void a_context_ends_at_its_length(void **state) {
    (void)state;
    struct core_model m;
    core_load(&m, "cpu-scalar", small, NULL);
    int32_t tokens[256] = {0};
    const uint32_t s = core_sequence(&m);
    core_prefill(&m, s, tokens, 256, 0, NULL, NULL);
    const struct sh_row row = {.sequence = s, .token = 1, .position = 256};
    sh_ticket ticket;
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){&row, 1}, &ticket, &error), SH_ERR_LIMIT);
    assert_non_null(strstr(error.message, "256"));
    assert_int_equal(sh_sequence_length(m.context, s), 256);
    core_unload(&m);
}

static void sequences_are_limited_and_checked(void **state) {
    (void)state;
    const struct sh_context_params params = {.size = sizeof params, .max_sequences = 2};
    struct core_model m;
    core_load(&m, "cpu-scalar", small, &params);
    const int32_t tokens[] = {1, 2, 3};
    uint32_t a = core_sequence(&m), b = core_sequence(&m), c;
    assert_int_equal(sh_sequence_create(m.context, &c, &error), SH_ERR_LIMIT);
    core_prefill(&m, a, tokens, 3, 0, NULL, NULL);
    assert_int_equal(sh_sequence_copy(m.context, b, a, 4, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_copy(m.context, a, a, 1, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_copy(m.context, a, b, 0, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_copy(m.context, 7, a, 1, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_truncate(m.context, a, 4, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_truncate(m.context, 7, 0, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_length(m.context, 7), 0);
    sh_sequence_destroy(m.context, 7);
    sh_sequence_destroy(m.context, b);
    sh_sequence_destroy(m.context, b);
    core_ok(sh_sequence_create(m.context, &c, &error), &error);
    assert_int_equal(c, b);
    core_ok(sh_sequence_copy(m.context, c, a, 0, &error), &error);
    assert_int_equal(sh_sequence_length(m.context, c), 0);
    core_unload(&m);
    const struct sh_context_params wrong[] = {
        {.size = sizeof wrong[0], .kv_type = (enum sh_kv_type)5},
        {.size = sizeof wrong[0], .max_sequences = UINT32_MAX},
        {.size = sizeof wrong[0], .max_batch_rows = UINT32_MAX},
        {.size = sizeof wrong[0], .kv_tokens = UINT64_MAX},
    };
    struct sh_device *device = core_open_device("cpu-scalar");
    struct sh_model *model = NULL;
    const struct sh_model_params load = {.size = sizeof load, .path = small};
    core_ok(sh_model_load(&device, 1, &load, &model, &error), &error);
    for (size_t i = 0; i < SH_COUNT(wrong); i++) {
        struct sh_context *context = NULL;
        assert_int_equal(sh_context_create(model, &wrong[i], &context, &error), SH_ERR_INVALID);
        assert_null(context);
    }
    sh_model_unload(model);
    sh_device_close(device);
}

static void a_full_cache_refuses_and_goes_on(void **state) {
    (void)state;
    const struct sh_context_params params = {.size = sizeof params, .kv_tokens = 3 * 32};
    struct core_model m;
    core_load(&m, "cpu-scalar", small, &params);
    int32_t tokens[96];
    for (int i = 0; i < 96; i++) tokens[i] = 1 + i;
    float alone[1024], again[1024];
    const uint32_t first = core_sequence(&m);
    core_prefill(&m, first, tokens, 70, 0, NULL, alone);
    sh_sequence_destroy(m.context, first);

    const uint32_t a = core_sequence(&m), b = core_sequence(&m), c = core_sequence(&m), all[3] = {a, b, c};
    core_prefill(&m, a, tokens, 33, 0, NULL, NULL);
    core_ok(sh_sequence_copy(m.context, b, a, 33, &error), &error); /* two pages, both shared */
    struct snapshot shot = look(&m, all);
    assert_int_equal(shot.stats.pages_used, 2);
    assert_int_equal(shot.stats.pages_total, 3);
    /* b must copy its second page and a go on to a third: one of the two is too many */
    struct sh_row rows[40];
    for (uint32_t i = 0; i < 32; i++) rows[i] = (struct sh_row){.sequence = b, .token = 5, .position = 33 + i};
    sh_ticket ticket;
    struct sh_results results;
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){rows, 32}, &ticket, &error), SH_ERR_NO_PAGES);
    assert_non_null(strstr(error.message, "3 cache pages"));
    struct snapshot now = look(&m, all);
    assert_memory_equal(&now, &shot, sizeof shot);
    core_ok(sh_submit(m.context, &(struct sh_batch){rows, 31}, &ticket, &error), &error);
    core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
    rows[0] = (struct sh_row){.sequence = c, .token = 5};
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){rows, 1}, &ticket, &error), SH_ERR_NO_PAGES);
    sh_sequence_destroy(m.context, b);
    core_prefill(&m, a, tokens + 33, 37, 0, NULL, again);
    assert_memory_equal(alone, again, m.n_vocab * sizeof *alone);
    core_unload(&m);
}

/* ---- devices that fail ---- */

/*
 * An executor around the CPU's: it fails submits, waits and reservations on demand, and samples "on the device" (greedily, or by
 * temperature, on the logits of the step before), so that tokens are handed on without the host.
 */
static struct {
    const struct sh_executor *real;
    struct sh_executor table;
    int fail_submit, fail_wait, fail_reserve; /* the n-th call from now fails; 0: never */
    enum sh_code with;
    bool nan_logits;
    uint32_t handed_on;
    struct fake_slot {
        struct sh_step_output outputs[64];
        uint32_t n_outputs;
        int32_t tokens[64];
        float *logits[64];
        bool done;
        struct sh_step_result result;
    } slots[SH_SLOTS];
    uint32_t n_vocab;
} fake;

static enum sh_code fail_now(struct sh_error *err) { return sh_fail(err, fake.with, "this device fails on demand"); }

static enum sh_code fake_reserve(struct sh_exec_context *c, uint32_t group, uint32_t n, struct sh_error *err) {
    if (fake.fail_reserve > 0 && --fake.fail_reserve == 0) return fail_now(err);
    return fake.real->pool_reserve(c, group, n, err);
}

static enum sh_code finish_fake(struct sh_exec_context *c, uint32_t slot, int64_t timeout, struct sh_error *err) {
    struct fake_slot *s = &fake.slots[slot];
    if (s->done) return SH_OK;
    const enum sh_code code = fake.real->wait(c, slot, timeout, &s->result, err);
    if (code != SH_OK) return code;
    s->done = true;
    for (uint32_t i = 0; i < s->n_outputs; i++) {
        s->tokens[i] = -1;
        if (s->result.logits[i] == NULL) continue;
        memcpy(s->logits[i], s->result.logits[i], fake.n_vocab * sizeof(float));
        for (uint32_t t = 0; fake.nan_logits && i == 0 && t < fake.n_vocab; t++) s->logits[i][t] = NAN;
        if (!s->outputs[i].sample) continue;
        const struct sh_step_output *o = &s->outputs[i];
        float best_key = -INFINITY;
        for (uint32_t t = 0; t < fake.n_vocab; t++) {
            const float logit = s->logits[i][t];
            const float key =
                o->temperature == 0 ? logit : logit * (1 / o->temperature) + sh_gumbel(o->seed, o->choice, o->position, t);
            if (key > best_key) {
                best_key = key;
                s->tokens[i] = (int32_t)t;
            }
        }
    }
    return SH_OK;
}

static enum sh_code fake_submit(struct sh_exec_context *c, uint32_t slot, uint32_t segment, const struct sh_step *step,
                                struct sh_error *err) {
    if (fake.fail_submit > 0 && --fake.fail_submit == 0) return fail_now(err);
    struct fake_slot *s = &fake.slots[slot];
    struct sh_step copy = *step;
    struct sh_step_row rows[512];
    assert_true(step->n_rows <= 512 && step->n_outputs <= 64);
    memcpy(rows, step->rows, step->n_rows * sizeof *rows);
    for (uint32_t i = 0; i < step->n_rows; i++) {
        if (rows[i].sampled_from == SH_NONE) continue;
        struct sh_error ignored;
        assert_int_equal(finish_fake(c, 1 - slot, -1, &ignored), SH_OK);
        rows[i].token = fake.slots[1 - slot].tokens[rows[i].sampled_from];
        rows[i].sampled_from = SH_NONE;
        fake.handed_on++;
    }
    s->done = false;
    s->n_outputs = step->n_outputs;
    struct sh_step_output outputs[64];
    for (uint32_t i = 0; i < step->n_outputs; i++) {
        s->outputs[i] = outputs[i] = step->outputs[i];
        outputs[i].want_logits = outputs[i].want_logits || outputs[i].sample;
        outputs[i].sample = false;
        if (s->logits[i] == NULL) s->logits[i] = calloc(fake.n_vocab, sizeof(float));
        assert_non_null(s->logits[i]);
    }
    copy.rows = rows;
    copy.outputs = outputs;
    return fake.real->submit(c, slot, segment, &copy, err);
}

static enum sh_code fake_wait(struct sh_exec_context *c, uint32_t slot, int64_t timeout, struct sh_step_result *result,
                              struct sh_error *err) {
    const enum sh_code code = finish_fake(c, slot, timeout, err);
    if (code != SH_OK) return code;
    if (fake.fail_wait > 0 && --fake.fail_wait == 0) return fail_now(err);
    *result = fake.slots[slot].result;
    result->tokens = fake.slots[slot].tokens;
    result->logits = (const float *const *)fake.slots[slot].logits;
    return SH_OK;
}

static void load_failing(struct core_model *m, const struct sh_context_params *params) {
    memset(&fake, 0, sizeof fake);
    fake.with = SH_ERR_DEVICE;
    m->observe = NULL;
    *m = (struct core_model){.devices = {core_open_device("cpu-scalar")}};
    const struct sh_model_params load = {.size = sizeof load, .path = small};
    core_ok(sh_model_load(m->devices, 1, &load, &m->model, &error), &error);
    fake.real = m->devices[0]->executor;
    fake.table = *fake.real;
    fake.table.submit = fake_submit;
    fake.table.wait = fake_wait;
    fake.table.pool_reserve = fake_reserve;
    fake.table.device_sampling = true;
    m->devices[0]->executor = &fake.table;
    struct sh_model_info info;
    sh_model_get_info(m->model, &info);
    fake.n_vocab = m->n_vocab = info.n_vocab;
    core_ok(sh_context_create(m->model, params, &m->context, &error), &error);
}

static void unload_failing(struct core_model *m) {
    core_unload(m);
    for (int s = 0; s < SH_SLOTS; s++)
        for (int i = 0; i < 64; i++) free(fake.slots[s].logits[i]);
}

static sh_ticket submit_rows(struct core_model *m, const struct sh_row *rows, uint32_t n) {
    sh_ticket ticket;
    core_ok(sh_submit(m->context, &(struct sh_batch){rows, n}, &ticket, &error), &error);
    return ticket;
}

static void a_failed_submit_changes_nothing(void **state) {
    (void)state;
    struct core_model m;
    load_failing(&m, NULL);
    int32_t tokens[80];
    for (int i = 0; i < 80; i++) tokens[i] = 2 + i;
    const uint32_t all[3] = {core_sequence(&m), core_sequence(&m), core_sequence(&m)};
    float expected[1024], found[1024];
    core_prefill(&m, all[2], tokens, 80, 0, NULL, expected);
    core_prefill(&m, all[0], tokens, 40, 0, NULL, NULL);
    core_ok(sh_sequence_copy(m.context, all[1], all[0], 40, &error), &error);
    const struct snapshot shot = look(&m, all);
    struct sh_row rows[80];
    for (uint32_t i = 0; i < 40; i++) {
        rows[i] = (struct sh_row){.sequence = all[0], .token = tokens[40 + i], .position = 40 + i};
        rows[40 + i] = (struct sh_row){.sequence = all[1], .token = tokens[40 + i], .position = 40 + i};
    }
    for (int round = 0; round < 3; round++) {
        fake.fail_submit = 1;
        sh_ticket ticket;
        assert_int_equal(sh_submit(m.context, &(struct sh_batch){rows, 80}, &ticket, &error), SH_ERR_DEVICE);
        assert_non_null(strstr(error.message, "on demand"));
        const struct snapshot now = look(&m, all);
        assert_memory_equal(&now, &shot, sizeof shot);
    }
    for (int i = 0; i < 2; i++) {
        core_prefill(&m, all[i], tokens + 40, 40, 0, NULL, found);
        assert_memory_equal(found, expected, m.n_vocab * sizeof *found);
    }
    unload_failing(&m);
}

/* What a step sampled that was waited for last can be referred to until another has taken its place: one that does not begin has not. */
static void a_batch_that_did_not_begin_can_come_again(void **state) {
    (void)state;
    struct core_model m;
    load_failing(&m, NULL);
    const uint32_t a = core_sequence(&m), b = core_sequence(&m);
    const struct sh_row first = {.sequence = a, .token = 3, .outputs = SH_OUT_SAMPLE}, other = {.sequence = b, .token = 4};
    const sh_ticket ticket = submit_rows(&m, &first, 1);
    struct sh_results results;
    core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
    const int32_t sampled = results.items[0].token;
    const sh_ticket between = submit_rows(&m, &other, 1); /* the next one takes the first one's place */
    const struct sh_row rows[] = {
        {.sequence = a, .input = SH_INPUT_SAMPLED, .ticket = ticket, .position = 1, .outputs = SH_OUT_SAMPLE},
        {.sequence = b, .token = 5, .position = 1, .outputs = SH_OUT_LOGITS}};
    for (int round = 0; round < 2; round++) {
        fake.fail_submit = 1;
        sh_ticket none;
        assert_int_equal(sh_submit(m.context, &(struct sh_batch){rows, 2}, &none, &error), SH_ERR_DEVICE);
        assert_non_null(strstr(error.message, "on demand"));
    }
    const sh_ticket again = submit_rows(&m, rows, 2);
    core_ok(sh_wait(m.context, between, -1, &results, &error), &error);
    core_ok(sh_wait(m.context, again, -1, &results, &error), &error);
    const int32_t found = results.items[0].token;
    const uint32_t alone = core_sequence(&m);
    assert_int_equal(core_step(&m, alone, 3, SH_ROLE_PROMPT, NULL), sampled);
    assert_int_equal(core_step(&m, alone, sampled, SH_ROLE_GENERATED, NULL), found);
    unload_failing(&m);
}

static void a_cache_that_cannot_grow_changes_nothing(void **state) {
    (void)state;
    struct core_model m;
    const struct sh_context_params params = {.size = sizeof params, .kv_tokens = 100 * 32};
    load_failing(&m, &params);
    fake.fail_reserve = 1;
    fake.with = SH_ERR_NO_DEVICE_MEMORY;
    const uint32_t s = core_sequence(&m), all[3] = {s, s, s};
    const struct snapshot shot = look(&m, all);
    const struct sh_row row = {.sequence = s, .token = 1};
    sh_ticket ticket;
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){&row, 1}, &ticket, &error), SH_ERR_NO_DEVICE_MEMORY);
    const struct snapshot now = look(&m, all);
    assert_memory_equal(&now, &shot, sizeof shot);
    struct sh_results results;
    ticket = submit_rows(&m, &row, 1);
    core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
    unload_failing(&m);
}

/* A step fails, and so does the one in flight behind it that builds on it; an independent one does not. */
static void failed_steps_are_undone(void **state) {
    (void)state;
    for (int dependent = 0; dependent < 3; dependent++) {
        struct core_model m;
        load_failing(&m, NULL);
        const int32_t tokens[] = {9, 8, 7, 6, 5, 4, 3};
        float expected[1024], found[1024];
        const uint32_t a = core_sequence(&m), b = core_sequence(&m), alone = core_sequence(&m), all[3] = {a, b, alone};
        core_prefill(&m, alone, tokens, 7, 0, NULL, expected);
        core_prefill(&m, a, tokens, 4, 0, NULL, NULL);
        core_prefill(&m, b, tokens, 4, 0, NULL, NULL);
        const struct snapshot shot = look(&m, all);
        const struct sh_row first = {.sequence = a, .token = tokens[4], .position = 4, .outputs = SH_OUT_SAMPLE};
        struct sh_row second = {.sequence = b, .token = tokens[4], .position = 4, .outputs = SH_OUT_LOGITS};
        if (dependent == 1) second = (struct sh_row){.sequence = a, .token = tokens[5], .position = 5};
        const sh_ticket x = submit_rows(&m, &first, 1);
        if (dependent == 2)
            second =
                (struct sh_row){.sequence = b, .input = SH_INPUT_SAMPLED, .ticket = x, .position = 4, .outputs = SH_OUT_LOGITS};
        const sh_ticket y = submit_rows(&m, &second, 1);
        fake.fail_wait = 1;
        struct sh_results results;
        assert_int_equal(sh_wait(m.context, x, -1, &results, &error), SH_ERR_DEVICE);
        assert_int_equal(results.count, 0);
        assert_int_equal(sh_sequence_length(m.context, a), 4);
        const struct sh_row stale = {.sequence = alone, .input = SH_INPUT_SAMPLED, .ticket = x, .position = 7};
        sh_ticket none;
        assert_int_equal(sh_submit(m.context, &(struct sh_batch){&stale, 1}, &none, &error), SH_ERR_INVALID);
        assert_int_equal(sh_wait(m.context, y, -1, &results, &error), dependent == 0 ? SH_OK : SH_ERR_DEVICE);
        assert_int_equal(sh_sequence_length(m.context, b), dependent == 0 ? 5 : 4);
        if (dependent != 0) {
            const struct snapshot now = look(&m, all);
            assert_memory_equal(&now, &shot, sizeof shot);
        }
        core_prefill(&m, a, tokens + 4, 3, 0, NULL, found); /* it goes on as if nothing had been */
        assert_memory_equal(found, expected, m.n_vocab * sizeof *found);
        const uint32_t length = sh_sequence_length(m.context, b);
        core_prefill(&m, b, tokens + length, 7 - length, 0, NULL, found);
        assert_memory_equal(found, expected, m.n_vocab * sizeof *found);
        unload_failing(&m);
    }
}

static void a_lost_device_stays_lost(void **state) {
    (void)state;
    struct core_model m;
    load_failing(&m, NULL);
    const struct sh_row row = {.sequence = core_sequence(&m), .token = 1};
    sh_ticket ticket = submit_rows(&m, &row, 1);
    fake.fail_wait = 1;
    fake.with = SH_ERR_DEVICE_LOST;
    struct sh_results results;
    assert_int_equal(sh_wait(m.context, ticket, -1, &results, &error), SH_ERR_DEVICE_LOST);
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){&row, 1}, &ticket, &error), SH_ERR_DEVICE_LOST);
    unload_failing(&m);
}

static void destroyed_in_flight_returns_at_the_wait(void **state) {
    (void)state;
    const struct sh_context_params params = {.size = sizeof params, .max_sequences = 1};
    struct core_model m;
    load_failing(&m, &params);
    const uint32_t s = core_sequence(&m);
    const struct sh_row row = {.sequence = s, .token = 1, .outputs = SH_OUT_SAMPLE};
    const sh_ticket ticket = submit_rows(&m, &row, 1);
    sh_sequence_destroy(m.context, s);
    uint32_t other;
    assert_int_equal(sh_sequence_create(m.context, &other, &error), SH_ERR_LIMIT);
    assert_int_equal(sh_sequence_length(m.context, s), 0);
    sh_ticket none;
    assert_int_equal(sh_submit(m.context, &(struct sh_batch){&row, 1}, &none, &error), SH_ERR_INVALID);
    struct sh_results results;
    core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
    assert_int_equal(results.count, 1);
    struct sh_context_stats stats;
    sh_context_get_stats(m.context, &stats);
    assert_int_equal(stats.pages_used, 0);
    core_ok(sh_sequence_create(m.context, &other, &error), &error);
    unload_failing(&m);
}

static void a_row_without_numbers_fails_alone(void **state) {
    (void)state;
    for (int on_host = 0; on_host < 2; on_host++) {
        struct core_model m;
        load_failing(&m, NULL);
        const uint32_t a = core_sequence(&m), b = core_sequence(&m);
        const struct sh_sampler_params filtered = {.size = sizeof filtered, .temperature = 1, .top_k = 5, .typical_p = 0.9f};
        if (on_host) {
            core_ok(sh_sequence_set_sampler(m.context, a, &filtered, &error), &error);
            core_ok(sh_sequence_set_sampler(m.context, b, &filtered, &error), &error);
        }
        fake.nan_logits = true; /* of the first output */
        const struct sh_row rows[] = {{.sequence = a, .token = 1, .outputs = SH_OUT_SAMPLE},
                                      {.sequence = b, .token = 1, .outputs = SH_OUT_SAMPLE}};
        const sh_ticket ticket = submit_rows(&m, rows, 2);
        struct sh_results results;
        core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
        assert_int_equal(results.items[0].token, -1);
        assert_int_equal(results.items[0].code, SH_ERR_DEVICE);
        assert_int_equal(results.items[1].code, SH_OK);
        assert_in_range(results.items[1].token, 0, m.n_vocab - 1);
        const struct sh_row next = {.sequence = a, .input = SH_INPUT_SAMPLED, .ticket = ticket, .position = 1};
        sh_ticket none;
        assert_int_equal(sh_submit(m.context, &(struct sh_batch){&next, 1}, &none, &error), SH_ERR_INVALID);
        assert_non_null(strstr(error.message, "not numbers"));
        unload_failing(&m);
    }
}

/* Tokens that the device handed on by itself are in the history by the time that a penalty looks for them. */
static void generate_with_late_penalties(bool overlapped, bool beside, int32_t tokens[30]) {
    struct core_model m;
    load_failing(&m, NULL);
    const uint32_t n = beside ? 2 : 1, sequences[2] = {core_sequence(&m), core_sequence(&m)};
    const struct sh_sampler_params warm = {.size = sizeof warm, .temperature = 1.5f, .seed = 3};
    const struct sh_sampler_params filtered = {.size = sizeof filtered, .temperature = 1, .top_k = 5, .typical_p = 0.9f};
    struct sh_row rows[2];
    for (uint32_t k = 0; k < 2; k++) {
        core_ok(sh_sequence_set_sampler(m.context, sequences[k], k == 0 ? &warm : &filtered, &error), &error);
        rows[k] = (struct sh_row){.sequence = sequences[k], .token = 17, .outputs = SH_OUT_SAMPLE};
    }
    sh_ticket last = submit_rows(&m, rows, n);
    struct sh_results results;
    for (uint32_t i = 0; i < 30; i++) {
        sh_ticket next = 0;
        for (uint32_t k = 0; k < n; k++)
            rows[k] = (struct sh_row){.sequence = sequences[k],
                                      .role = SH_ROLE_GENERATED,
                                      .input = SH_INPUT_SAMPLED,
                                      .ticket = last,
                                      .sampled_row = k,
                                      .position = i + 1,
                                      .outputs = SH_OUT_SAMPLE};
        if (overlapped && i + 1 < 20) next = submit_rows(&m, rows, n);
        core_ok(sh_wait(m.context, last, -1, &results, &error), &error);
        tokens[i] = results.items[0].token;
        if (i == 20) { /* from here on with a bounty on what was generated, on the host */
            const struct sh_sampler_params penalised = {
                .size = sizeof penalised, .temperature = 1.5f, .seed = 3, .presence_penalty = -100};
            core_ok(sh_sequence_set_sampler(m.context, sequences[0], &penalised, &error), &error);
        }
        if (next == 0) next = submit_rows(&m, rows, n);
        last = next;
    }
    core_ok(sh_wait(m.context, last, -1, &results, &error), &error);
    if (overlapped && !beside) assert_int_equal(fake.handed_on, 19);
    for (int i = 21; i < 30; i++) { /* so high a bounty always repeats */
        int k = 0;
        while (k < i && tokens[k] != tokens[i]) k++;
        assert_true(k < i);
    }
    unload_failing(&m);
}

/* Alone, and beside a sequence whose token only the host can sample. */
static void handed_on_tokens_reach_the_history(void **state) {
    (void)state;
    for (int beside = 0; beside < 2; beside++) {
        int32_t tokens[2][30];
        for (int overlapped = 0; overlapped < 2; overlapped++)
            generate_with_late_penalties(overlapped, beside, tokens[overlapped]);
        assert_memory_equal(tokens[0], tokens[1], sizeof tokens[0]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_files_are_refused_and_named),
        cmocka_unit_test(long_paths_leave_room_for_the_reason),
        cmocka_unit_test(vectors_in_half_precision),
        cmocka_unit_test(shards_are_one_model),
        cmocka_unit_test(context_lengths),
        cmocka_unit_test(loads_can_be_cancelled_at_every_call),
        cmocka_unit_test(files_that_shrink_while_they_are_read),
        cmocka_unit_test(after_load_the_file_is_not_needed),
        cmocka_unit_test(placements_are_checked),
        cmocka_unit_test(what_does_not_fit_is_refused_with_figures),
        cmocka_unit_test(split_caches_are_as_large_as_whole_ones),
        cmocka_unit_test(refused_batches_change_nothing),
        cmocka_unit_test(a_context_ends_at_its_length),
        cmocka_unit_test(sequences_are_limited_and_checked),
        cmocka_unit_test(a_full_cache_refuses_and_goes_on),
        cmocka_unit_test(a_failed_submit_changes_nothing),
        cmocka_unit_test(a_batch_that_did_not_begin_can_come_again),
        cmocka_unit_test(a_cache_that_cannot_grow_changes_nothing),
        cmocka_unit_test(failed_steps_are_undone),
        cmocka_unit_test(a_lost_device_stays_lost),
        cmocka_unit_test(destroyed_in_flight_returns_at_the_wait),
        cmocka_unit_test(a_row_without_numbers_fails_alone),
        cmocka_unit_test(handed_on_tokens_reach_the_history),
    };
    return cmocka_run_group_tests_name("core_failure", tests, write_small, NULL);
}
