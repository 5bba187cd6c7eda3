/*
 * Where layers and experts lie: a model cut across devices there and back gives the same logits, bit for bit where both are the same
 * executor; experts that are kept on the host take nothing on the device, by the device's own counters; and what is planned without
 * loading is what a load then takes.
 */
#include "compute/program/executor.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/parity.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct sh_error error;

enum { TOKENS = 45, LAYERS = 5 };

struct loaded { /* a model on two devices, and a context on it */
    struct sh_device *devices[2];
    struct sh_model *model;
    struct sh_context *context;
    struct sh_model_info info;
};

struct place {
    const char *devices[2];
    struct sh_placement placement[32];
    uint32_t n_placement, n_host_layers;
};

static void place_load(struct loaded *l, const struct place *place, const char *path) {
    *l = (struct loaded){.devices = {core_open_device(place->devices[0]), core_open_device(place->devices[1])}};
    const struct sh_model_params params = {.size = sizeof params,
                                           .path = path,
                                           .placement = place->n_placement > 0 ? place->placement : NULL,
                                           .n_placement = place->n_placement,
                                           .n_host_layers = place->n_host_layers,
                                           .host_device = 1};
    const struct sh_context_params context = {.size = sizeof context, .kv_type = SH_KV_F32, .max_outputs = TOKENS};
    core_ok(sh_model_load(l->devices, 2, &params, &l->model, &error), &error);
    core_ok(sh_context_create(l->model, &context, &l->context, &error), &error);
    sh_model_get_info(l->model, &l->info);
}

static void place_unload(struct loaded *l) {
    sh_context_destroy(l->context);
    sh_model_unload(l->model);
    for (int i = 0; i < 2; i++) sh_device_close(l->devices[i]);
}

/* Of an encoder: hidden states of as many rows of a text as the caller takes for rows of logits. */
static float *hidden_of(struct loaded *l) {
    float *hidden = calloc((size_t)5 * l->info.n_vocab, sizeof *hidden);
    assert_true(hidden != NULL && l->info.n_embd <= l->info.n_vocab);
    struct sh_row rows[TOKENS];
    uint32_t s = 0;
    sh_ticket ticket;
    struct sh_results results;
    core_ok(sh_sequence_create(l->context, &s, &error), &error);
    for (uint32_t i = 0; i < TOKENS; i++)
        rows[i] = (struct sh_row){.sequence = s,
                                  .token = (int32_t)(3 + i * 37 % (l->info.n_vocab - 3)),
                                  .position = i,
                                  .outputs = i + 5 >= TOKENS ? SH_OUT_HIDDEN : 0};
    core_ok(sh_submit(l->context, &(struct sh_batch){rows, TOKENS}, &ticket, &error), &error);
    core_ok(sh_wait(l->context, ticket, -1, &results, &error), &error);
    assert_int_equal(results.count, 5);
    for (uint32_t i = 0; i < 5; i++)
        memcpy(hidden + (size_t)i * l->info.n_vocab, results.items[i].hidden, l->info.n_embd * sizeof *hidden);
    sh_sequence_destroy(l->context, s);
    return hidden;
}

/* Logits of the last row of TOKENS tokens and of four decoded after it, the prompt in chunks with two steps in flight. */
enum { ROWS = 5 };
static float *logits_of(struct loaded *l) {
    if (l->info.encoder) return hidden_of(l);
    const uint32_t n_vocab = l->info.n_vocab;
    float *logits = calloc((size_t)ROWS * n_vocab, sizeof *logits);
    assert_non_null(logits);
    uint32_t s = 0, in_flight = 0, row = 0;
    core_ok(sh_sequence_create(l->context, &s, &error), &error);
    sh_ticket tickets[2];
    struct sh_results results;
    for (uint32_t at = 0; at < TOKENS + 4;) {
        const uint32_t n = at >= TOKENS ? 1 : TOKENS - at < 17 ? TOKENS - at : 17;
        struct sh_row rows[17];
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct sh_row){.sequence = s,
                                      .token = (int32_t)(3 + (at + i) * 37 % (n_vocab - 3)),
                                      .position = at + i,
                                      .outputs = at + i + 1 >= TOKENS ? SH_OUT_LOGITS : 0};
        if (in_flight == 2) {
            core_ok(sh_wait(l->context, tickets[0], -1, &results, &error), &error);
            for (uint32_t i = 0; i < results.count; i++)
                memcpy(logits + (size_t)row++ * n_vocab, results.items[i].logits, n_vocab * sizeof *logits);
            tickets[0] = tickets[1];
            in_flight--;
        }
        core_ok(sh_submit(l->context, &(struct sh_batch){rows, n}, &tickets[in_flight++], &error), &error);
        at += n;
    }
    for (uint32_t k = 0; k < in_flight; k++) {
        core_ok(sh_wait(l->context, tickets[k], -1, &results, &error), &error);
        for (uint32_t i = 0; i < results.count; i++)
            memcpy(logits + (size_t)row++ * n_vocab, results.items[i].logits, n_vocab * sizeof *logits);
    }
    assert_int_equal(row, ROWS);
    sh_sequence_destroy(l->context, s);
    return logits;
}

/* The largest difference of a logit; NaN if one is not a number. */
static double difference(const float *a, const float *b, uint32_t n) {
    double largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= largest)) largest = d;
    }
    return largest;
}

static bool have_llvmpipe(void) {
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    for (uint32_t i = 0; i < n; i++)
        if (strncmp(names[i], "cpu", 3) != 0) return true;
    return false;
}

/* Compares a placement with everything on cpu-scalar. Two executors that keep float activations differ by 1e-3 at most. */
static void compare(const char *path, const struct place *place, uint32_t n_segments) {
    const struct place whole = {.devices = {"cpu-scalar", "cpu-scalar"}};
    struct loaded l;
    place_load(&l, &whole, path);
    assert_int_equal(l.info.n_segments, 1);
    float *expected = logits_of(&l);
    place_unload(&l);
    place_load(&l, place, path);
    if (n_segments > 0) assert_int_equal(l.info.n_segments, n_segments);
    else if (l.info.n_segments == 1)
        fail_msg("%s: the experts of %u layers are to be on the host, and none are", path, place->n_host_layers);
    float *found = logits_of(&l);
    const uint32_t n = ROWS * l.info.n_vocab;
    if (strcmp(place->devices[0], place->devices[1]) == 0) assert_memory_equal(found, expected, n * sizeof *found);
    else if (!(difference(found, expected, n) <= 1e-3))
        fail_msg("%s on %s and %s, %u layers' experts there: logits differ by %.3g", path, place->devices[0], place->devices[1],
                 place->n_host_layers, difference(found, expected, n));
    place_unload(&l);
    free(expected);
    free(found);
}

static void there_and_back(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "F32";
    p.layers = LAYERS;
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("layers.gguf"));
    core_ok(genmodel_write(path, &p, &error), &error);
    struct place places[] = {
        {.placement = {{0, 2, 0}, {2, 1, 1}, {3, 2, 0}}, .n_placement = 3},
        {.placement = {{0, 1, 1}, {1, 3, 0}, {4, 1, 1}}, .n_placement = 3},
        {.placement = {{0, 1, 0}, {1, 1, 1}, {2, 1, 0}, {3, 1, 1}, {4, 1, 0}}, .n_placement = 5},
    };
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        places[i].devices[0] = places[i].devices[1] = "cpu-scalar";
        compare(path, &places[i], places[i].n_placement);
        if (!have_llvmpipe()) continue;
        places[i].devices[0] = "llvmpipe";
        compare(path, &places[i], places[i].n_placement);
    }
}

static uint32_t layers_of(const char *path) {
    const struct place whole = {.devices = {"cpu-scalar", "cpu-scalar"}};
    struct loaded l;
    place_load(&l, &whole, path);
    const uint32_t n_layers = l.info.n_layers;
    place_unload(&l);
    return n_layers;
}

/* Windows, recurrent states, compressed keys, encoders: layers take turns on two devices. */
static void every_kind_of_state_there_and_back(void **state) {
    (void)state;
    static const char *const few[] = {"qwen35-Q8_0", "lfm2-Q8_0", "mamba-F16", "gemma3-Q8_0", "deepseek2-mla-F16", "bert-F16"};
    for (uint32_t i = 0; i < parity_count; i++) {
        const char *name = parity_table[i].name;
        bool wanted = parity_full() && strcmp(parity_table[i].family, "llama") != 0;
        for (size_t k = 0; k < sizeof few / sizeof few[0]; k++) wanted = wanted || strcmp(few[k], name) == 0;
        if (!wanted) continue;
        char relative[64];
        snprintf(relative, sizeof relative, "parity/%s.gguf", name);
        const char *path = TEST_SHARED(relative);
        struct place place = {.devices = {"cpu-scalar", "cpu-scalar"}};
        const uint32_t n_layers = layers_of(path);
        for (; place.n_placement < n_layers; place.n_placement++)
            place.placement[place.n_placement] = (struct sh_placement){place.n_placement, 1, place.n_placement % 2};
        compare(path, &place, n_layers);
    }
}

static void experts_on_the_host(void **state) {
    (void)state;
    for (uint32_t i = 0; i < parity_count; i++) {
        const struct parity_entry *e = &parity_table[i];
        if (strcmp(e->family, "experts") != 0 && strcmp(e->family, "mla") != 0) continue;
        const bool brief = e->brief || strcmp(e->name, "mixtral-Q8_0") == 0;
        if (!brief && !parity_full()) continue;
        char relative[64];
        snprintf(relative, sizeof relative, "parity/%s.gguf", e->name);
        const char *path = TEST_SHARED(relative);
        for (int fast = 0; fast < 2; fast++) {
            if (fast && (!have_llvmpipe() || !brief)) continue;
            struct place place = {.devices = {fast ? "llvmpipe" : "cpu-scalar", "cpu-scalar"}, .n_host_layers = UINT32_MAX};
            compare(path, &place, 0);
            /* of one layer: there only where the first has experts */
            place.n_host_layers = strcmp(e->name, "mixtral-Q8_0") == 0 ? 1 : layers_of(path);
            compare(path, &place, 0);
        }
    }
}

/* Bytes that the file stores of tensors whose names have this in them, and of all. */
static uint64_t stored_bytes(const char *path, const char *part) {
    struct sh_file *file = NULL;
    core_ok(sh_file_open(path, &file, &error), &error);
    uint64_t bytes = 0;
    struct sh_file_tensor t;
    for (uint64_t i = 0; sh_file_get_tensor(file, i, &t); i++)
        if (strstr(t.name, part) != NULL) bytes += t.bytes;
    sh_file_close(file);
    return bytes;
}

/* With the experts of all layers on the host the device holds less by all of them, and none of them. */
static void experts_take_no_device_memory(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/mixtral-Q8_0.gguf");
    const uint64_t experts = stored_bytes(path, "_exps."), rest = stored_bytes(path, "") - experts;
    assert_true(experts > 0);
    static const char *const first[] = {"cpu-scalar", "llvmpipe"};
    for (int k = 0; k < (have_llvmpipe() ? 2 : 1); k++) {
        struct sh_device_memory all, without, host;
        struct loaded l;
        struct place place = {.devices = {first[k], "cpu-scalar"}};
        place_load(&l, &place, path);
        sh_device_get_memory(l.devices[0], &all);
        place_unload(&l);
        place.n_host_layers = UINT32_MAX;
        place_load(&l, &place, path);
        sh_device_get_memory(l.devices[0], &without);
        sh_device_get_memory(l.devices[1], &host);
        assert_int_equal(l.info.weights_bytes[0], without.weights_bytes);
        assert_int_equal(l.info.weights_bytes[1], host.weights_bytes);
        place_unload(&l);
        assert_true(all.weights_bytes - without.weights_bytes >= experts);
        /* vectors and the rotation table are kept as floats, and allocations are rounded up */
        assert_true(without.weights_bytes < rest + (256u << 10));
        assert_true(host.weights_bytes >= experts && host.weights_bytes < experts + experts / 8 + (64u << 10));
    }
}

/* ---- plans ---- */

static enum sh_code plan(struct sh_device *const devices[2], const char *path, uint32_t n_layers, uint32_t n_host_layers,
                         struct sh_plan *out) {
    const struct sh_model_params params = {.size = sizeof params, .path = path, .n_host_layers = n_host_layers};
    const struct sh_context_params context = {.size = sizeof context, .max_batch_rows = 64};
    return sh_model_plan(devices, &params, &context, n_layers, out, &error);
}

/* What is planned is what the load takes: within 2 % and what is rounded up. */
static void plans_are_kept(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "Q4_K_M";
    p.layers = LAYERS;
    p.embd = 512;
    p.ff = 1024;
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("plan.gguf"));
    core_ok(genmodel_write(path, &p, &error), &error);
    static const char *const names[] = {"cpu-avx2", "llvmpipe", "cpu-scalar"};
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        if (k == 1 && !have_llvmpipe()) continue;
        struct sh_device *devices[2] = {core_open_device(names[k]), core_open_device("cpu-scalar")};
        for (uint32_t n = 0; n <= LAYERS + 1; n++) {
            struct sh_plan planned;
            core_ok(plan(devices, path, n, 0, &planned), &error);
            const uint32_t on_device = n < LAYERS ? n : LAYERS;
            assert_int_equal(planned.n_layers, LAYERS);
            assert_int_equal(planned.n_device_layers, on_device);
            assert_int_equal(planned.n_placement, on_device == 0 || on_device == LAYERS ? 1 : 2);
            const struct sh_model_params params = {
                .size = sizeof params, .path = path, .placement = planned.placement, .n_placement = planned.n_placement};
            struct sh_model *model = NULL;
            struct sh_model_info info;
            core_ok(sh_model_load(devices, 2, &params, &model, &error), &error);
            sh_model_get_info(model, &info);
            for (int d = 0; d < 2; d++) {
                const uint64_t found = info.weights_bytes[d], expected = planned.weights_bytes[d];
                assert_true(found >= expected - expected / 50 && found <= expected + expected / 50 + (128u << 10));
                if (expected == 0) assert_int_equal(found, 0);
            }
            sh_model_unload(model);
        }
        sh_device_close(devices[0]);
        sh_device_close(devices[1]);
    }
}

/* auto takes as many layers as fit, one at a time; a number that does not fit is refused with the figures. */
static void plans_fit(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "F16";
    p.layers = LAYERS;
    p.embd = 1024;
    p.ff = 4096;
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("fit.gguf"));
    core_ok(genmodel_write(path, &p, &error), &error);
    struct sh_device *devices[2] = {core_open_device("cpu-scalar"), core_open_device("cpu-scalar")};
    const uint64_t machine = devices[0]->info.memory_bytes;
    struct sh_plan all, one;
    core_ok(plan(devices, path, SH_LAYERS_AUTO, 0, &all), &error);
    assert_int_equal(all.n_device_layers, LAYERS);
    core_ok(plan(devices, path, 1, 0, &one), &error);
    uint32_t seen = 0, last = 0;
    for (uint64_t room = 0; room < machine && last < LAYERS; room += 2u << 20) {
        struct sh_plan planned;
        devices[0]->info.memory_bytes = room + 1; /* 0 would be: not known */
        core_ok(plan(devices, path, SH_LAYERS_AUTO, 0, &planned), &error);
        assert_in_range(planned.n_device_layers, last, LAYERS);
        seen |= 1u << planned.n_device_layers;
        last = planned.n_device_layers;
        assert_true(planned.weights_bytes[0] + planned.cache_bytes[0] + planned.activation_bytes[0] <= room);
        assert_true(last == 0 || planned.weights_bytes[0] >= one.weights_bytes[0]);
        if (last == LAYERS) continue;
        assert_int_equal(plan(devices, path, last + 1, 0, &planned), SH_ERR_NO_DEVICE_MEMORY);
        assert_non_null(strstr(error.message, "MiB"));
        assert_non_null(strstr(error.message, "fit.gguf"));
    }
    assert_int_equal(seen, (2u << LAYERS) - 1); /* every number of layers, from none to all */
    devices[1]->info.memory_bytes = 1u << 20;
    devices[0]->info.memory_bytes = 1u << 20;
    assert_int_equal(plan(devices, path, SH_LAYERS_AUTO, 0, &one), SH_ERR_NO_MEMORY);
    assert_non_null(strstr(error.message, "host memory"));
    sh_device_close(devices[0]);
    sh_device_close(devices[1]);
}

/* An encoder gives an output for every row of a text. Room for as many rows of logits, which it has not, would be most of its plan: a
 * larger vocabulary changes nothing about what steps take. */
static void encoders_take_no_room_for_logits(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/bert-F16.gguf");
    struct sh_device *devices[2] = {core_open_device("cpu-scalar"), core_open_device("cpu-scalar")};
    struct rewrite *r = rewrite_open(path);
    const struct sh_tensor *embedding = sh_gguf_tensor(rewrite_source(r), "token_embd.weight");
    const uint64_t dims[2] = {embedding->dims[0], 16 * embedding->dims[1]};
    rewrite_shape(r, "token_embd.weight", 2, dims);
    rewrite_drop_key(r, "tokenizer.ggml.tokens");
    char larger[256];
    snprintf(larger, sizeof larger, "%s", test_scratch("larger.gguf"));
    rewrite_save(r, larger);
    struct sh_plan planned, with_more;
    core_ok(plan(devices, path, SH_LAYERS_AUTO, 0, &planned), &error);
    core_ok(plan(devices, larger, SH_LAYERS_AUTO, 0, &with_more), &error);
    assert_true(with_more.weights_bytes[0] > planned.weights_bytes[0]);
    assert_int_equal(with_more.activation_bytes[0], planned.activation_bytes[0]);
    sh_device_close(devices[0]);
    sh_device_close(devices[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back),      cmocka_unit_test(every_kind_of_state_there_and_back),
        cmocka_unit_test(experts_on_the_host), cmocka_unit_test(experts_take_no_device_memory),
        cmocka_unit_test(plans_are_kept),      cmocka_unit_test(plans_fit),
        cmocka_unit_test(encoders_take_no_room_for_logits),
    };
    return cmocka_run_group_tests_name("core_placement", tests, NULL, NULL);
}
