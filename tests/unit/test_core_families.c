/*
 * The numerics contract for every architecture: on the vectors' models (one of each family, all of them with SHIMMY_TEST_FULL=1) and
 * every device under test, logits are the same bits whether a sequence runs alone or among others, whole or in chunks, as prompt or token by token,
 * on a copied prefix or on its own; windows and recurrent states go back only as far as they can, and say so; windows give
 * their pages back. Encoders: the same, of texts that enter whole.
 */
#include "compute/state/context.h"
#include "tests/unit/core.h"
#include "tests/unit/parity.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

enum { N = 75, SPLIT = 50, LONG = 192, MAX_ROWS = 200 };

struct subject {
    const char *name, *device;
    struct core_model m;
    struct sh_model_info info;
    bool windowed, few;
    uint32_t width; /* floats of a row's result */
    int32_t tokens[MAX_ROWS], others[2][MAX_ROWS];
    float *alone; /* [N][width] what every row of `tokens` gives when it runs alone and whole */
};

static void load(struct subject *s, const char *path, struct sh_device *device, enum sh_kv_type kv) {
    s->m = (struct core_model){.devices = {device}};
    const struct sh_model_params params = {.size = sizeof params, .path = path};
    const struct sh_context_params context = {.size = sizeof context,
                                              .kv_type = kv,
                                              .max_sequences = 6,
                                              .max_batch_rows = MAX_ROWS,
                                              .max_outputs = MAX_ROWS,
                                              .kv_tokens = 6 * 256};
    const enum sh_code code = sh_model_load(s->m.devices, 1, &params, &s->m.model, &error);
    if (code != SH_OK) fail_msg("%s on %s: %s", s->name, s->device, error.message);
    core_ok(sh_context_create(s->m.model, &context, &s->m.context, &error), &error);
    sh_model_get_info(s->m.model, &s->info);
    s->m.n_vocab = s->info.n_vocab;
    s->width = s->info.has_logits ? s->info.n_vocab : s->info.n_embd;
    s->windowed = s->info.window_bytes_per_sequence_f16 > 0;
    struct test_rng rng = {7};
    for (uint32_t i = 0; i < MAX_ROWS; i++) {
        s->tokens[i] = (int32_t)(3 + test_random(&rng) % (s->m.n_vocab - 3));
        for (int k = 0; k < 2; k++) s->others[k][i] = (int32_t)(3 + test_random(&rng) % (s->m.n_vocab - 3));
    }
}

/* ---- rows ---- */

struct part { /* rows of one sequence in a batch */
    uint32_t sequence;
    const int32_t *tokens;
    uint32_t n;
    enum sh_role role;
};

/* One step; results of the rows of part `watched` go to *found, in order. */
static void step(struct subject *s, const struct part *parts, uint32_t n_parts, uint32_t watched, float *found) {
    struct sh_row rows[MAX_ROWS];
    uint32_t n = 0;
    const uint32_t asked = s->info.has_logits ? SH_OUT_LOGITS : SH_OUT_HIDDEN | SH_OUT_POOLED;
    for (uint32_t i = 0; i < n_parts; i++) {
        const uint32_t begin = sh_sequence_length(s->m.context, parts[i].sequence);
        for (uint32_t k = 0; k < parts[i].n; k++)
            rows[n++] = (struct sh_row){.sequence = parts[i].sequence,
                                        .role = parts[i].role,
                                        .token = parts[i].tokens[begin + k],
                                        .position = begin + k,
                                        .outputs = i == watched ? asked : 0};
    }
    sh_ticket ticket;
    struct sh_results results;
    core_ok(sh_submit(s->m.context, &(struct sh_batch){rows, n}, &ticket, &error), &error);
    core_ok(sh_wait(s->m.context, ticket, -1, &results, &error), &error);
    if (watched >= n_parts) return;
    assert_int_equal(results.count, parts[watched].n);
    for (uint32_t i = 0; i < results.count; i++) {
        const float *values = s->info.has_logits ? results.items[i].logits : results.items[i].hidden;
        memcpy(found + (size_t)i * s->width, values, s->width * sizeof *found);
    }
}

static void feed(struct subject *s, uint32_t sequence, uint32_t n, enum sh_role role, float *found) {
    const struct part part = {sequence, s->tokens, n, role};
    step(s, &part, 1, found != NULL ? 0 : 1, found);
}

static void same(const struct subject *s, const float *found, uint32_t from, uint32_t n, const char *what) {
    for (uint32_t r = 0; r < n; r++) {
        const float *a = found + (size_t)r * s->width, *b = s->alone + (size_t)(from + r) * s->width;
        if (memcmp(a, b, s->width * sizeof *a) == 0) continue;
        double largest = 0;
        for (uint32_t i = 0; i < s->width; i++) largest = fmax(largest, fabs((double)a[i] - (double)b[i]));
        fail_msg("%s on %s: %s: row %u differs by up to %.3g", s->name, s->device, what, from + r, largest);
    }
}

/* ---- decoders ---- */

static void chunks(struct subject *s, float *found) {
    static const uint32_t sizes[] = {33, 7};
    for (uint32_t i = 0; i < (s->few ? 1u : 2u); i++) {
        const uint32_t q = core_sequence(&s->m);
        for (uint32_t at = 0; at < N; at += sizes[i])
            feed(s, q, N - at < sizes[i] ? N - at : sizes[i], SH_ROLE_PROMPT, found + (size_t)at * s->width);
        sh_sequence_destroy(s->m.context, q);
        same(s, found, 0, N, "in chunks");
    }
    const uint32_t q = core_sequence(&s->m), begin = s->few ? N - 8 : 20; /* across a page's end */
    feed(s, q, begin, SH_ROLE_PROMPT, found);
    for (uint32_t at = begin; at < N; at++) feed(s, q, 1, SH_ROLE_GENERATED, found + (size_t)at * s->width);
    sh_sequence_destroy(s->m.context, q);
    same(s, found, 0, N, "token by token");
}

static void among_others(struct subject *s, float *found) {
    const uint32_t q = core_sequence(&s->m), a = core_sequence(&s->m), b = core_sequence(&s->m);
    const struct part first[] = {
        {a, s->others[0], 20, SH_ROLE_PROMPT}, {q, s->tokens, 30, SH_ROLE_PROMPT}, {b, s->others[1], 1, SH_ROLE_PROMPT}};
    const struct part second[] = {{q, s->tokens, N - 31, SH_ROLE_PROMPT}, {b, s->others[1], 60, SH_ROLE_PROMPT}};
    const struct part third[] = {
        {b, s->others[1], 1, SH_ROLE_GENERATED}, {a, s->others[0], 1, SH_ROLE_GENERATED}, {q, s->tokens, 1, SH_ROLE_GENERATED}};
    step(s, first, 3, 1, found);
    step(s, second, 2, 0, found + (size_t)30 * s->width);
    step(s, third, 3, 2, found + (size_t)(N - 1) * s->width);
    same(s, found, 0, N, "among others");
    sh_sequence_destroy(s->m.context, q);
    sh_sequence_destroy(s->m.context, a);
    sh_sequence_destroy(s->m.context, b);
}

/* A copied prefix, at the present length and at a snapshot's; and back to it. */
static void reused(struct subject *s, float *found) {
    struct sh_context *c = s->m.context;
    const uint32_t q = core_sequence(&s->m), copy = core_sequence(&s->m), late = core_sequence(&s->m);
    const bool recurrent = s->info.state_bytes_per_sequence > 0;
    feed(s, q, SPLIT, SH_ROLE_PROMPT, NULL);
    core_ok(sh_sequence_snapshot(c, q, &error), &error);
    core_ok(sh_sequence_copy(c, copy, q, SPLIT, &error), &error);
    const struct part both[] = {{q, s->tokens, N - SPLIT, SH_ROLE_PROMPT}, {copy, s->tokens, N - SPLIT, SH_ROLE_PROMPT}};
    step(s, both, 2, 1, found);
    same(s, found, SPLIT, N - SPLIT, "on a copied prefix");
    /* A window of 32 at 75 tokens holds positions from 32 on, a page's beginning: of what a row at 50 sees 19 to 31 are gone. */
    const enum sh_code back = s->windowed ? SH_ERR_UNSUPPORTED : SH_OK;
    assert_int_equal(sh_sequence_copy(c, late, q, SPLIT, &error), back);
    if (back == SH_OK) {
        feed(s, late, N - SPLIT, SH_ROLE_PROMPT, found);
        same(s, found, SPLIT, N - SPLIT, "on a prefix copied later");
    }
    assert_int_equal(sh_sequence_truncate(c, q, SPLIT, &error), back);
    if (back == SH_OK) {
        feed(s, q, N - SPLIT, SH_ROLE_PROMPT, found);
        same(s, found, SPLIT, N - SPLIT, "taken back");
    } else {
        assert_non_null(strstr(error.message, "window of 32"));
    }
    assert_int_equal(sh_sequence_length(c, q), N);
    assert_int_equal(sh_sequence_truncate(c, q, N - 3, &error), recurrent ? SH_ERR_UNSUPPORTED : SH_OK);
    if (recurrent) {
        assert_non_null(strstr(error.message, "recurrent"));
    } else {
        feed(s, q, 3, SH_ROLE_PROMPT, found);
        same(s, found, N - 3, 3, "a few tokens back");
    }
    core_ok(sh_sequence_truncate(c, q, 0, &error), &error);
    feed(s, q, SPLIT, SH_ROLE_PROMPT, found);
    same(s, found, 0, SPLIT, "from the beginning again");
    sh_sequence_destroy(c, q);
    sh_sequence_destroy(c, copy);
    sh_sequence_destroy(c, late);
}

/* Pages of a long sequence: all in paged groups, the window's in windowed ones, one state. */
static void pages_held(struct subject *s) {
    const uint32_t q = core_sequence(&s->m);
    const struct part long_one = {q, s->others[0], LONG / 2, SH_ROLE_PROMPT};
    step(s, &long_one, 1, 1, NULL);
    step(s, &long_one, 1, 1, NULL);
    uint32_t least = 0, most = 0;
    for (uint32_t g = 0; g < s->m.context->n_groups; g++) {
        const struct sh_state_group *group = sh_context_group(s->m.context, g);
        const bool paged = group->kind == SH_STATE_PAGED, windowed = group->kind == SH_STATE_WINDOWED;
        least += paged ? LONG / 32 : 1;
        most += paged ? LONG / 32 : windowed ? (group->window + 30) / 32 + 1 : 1;
        if (windowed) assert_true(group->window < LONG - 64);
    }
    struct sh_context_stats stats;
    sh_context_get_stats(s->m.context, &stats);
    assert_in_range(stats.pages_used, least, most);
    sh_sequence_destroy(s->m.context, q);
    sh_context_get_stats(s->m.context, &stats);
    assert_int_equal(stats.pages_used, 0);
}

/* ---- encoders ---- */

static void encoder(struct subject *s, float *found) {
    struct sh_context *c = s->m.context;
    const uint32_t q = core_sequence(&s->m), a = core_sequence(&s->m), b = core_sequence(&s->m);
    const struct part parts[] = {
        {a, s->others[0], 33, SH_ROLE_PROMPT}, {q, s->tokens, N, SH_ROLE_PROMPT}, {b, s->others[1], 1, SH_ROLE_PROMPT}};
    step(s, parts, 3, 1, found);
    same(s, found, 0, N, "among others");
    struct sh_context_stats stats;
    sh_context_get_stats(c, &stats);
    assert_int_equal(stats.pages_used, 0);
    const struct sh_row more = {.sequence = q, .token = 4, .position = N, .outputs = SH_OUT_HIDDEN};
    sh_ticket ticket;
    assert_int_equal(sh_submit(c, &(struct sh_batch){&more, 1}, &ticket, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_copy(c, core_sequence(&s->m), q, N, &error), SH_ERR_UNSUPPORTED);
    sh_sequence_destroy(c, a);
    core_ok(sh_sequence_truncate(c, q, 0, &error), &error);
    feed(s, q, N, SH_ROLE_PROMPT, found);
    same(s, found, 0, N, "again");
}

/* ---- all of them ---- */

/* From another one here: what a type does to the numbers of rows is test_vulkan_matmul's and test_vulkan_types'. */
static bool differs_in_type_alone(const struct parity_entry *e) {
    return e->brief && strncmp(e->name, "llama-", 6) == 0 && strcmp(e->name, "llama-Q4_K_M") != 0;
}

static void check(const struct parity_entry *e, const char *device_name, struct sh_device *device, enum sh_kv_type kv) {
    const char *name = e->name;
    struct subject *s = calloc(1, sizeof *s);
    assert_non_null(s);
    char relative[128];
    snprintf(relative, sizeof relative, "parity/%s.gguf", name);
    s->name = name;
    s->device = device_name;
    s->few = sh_device_get_info(device)->kind == SH_DEVICE_SOFTWARE && (!parity_full() || differs_in_type_alone(e));
    load(s, TEST_SHARED(relative), device, kv);
    float *found = calloc((size_t)N * s->width, sizeof *found);
    s->alone = calloc((size_t)N * s->width, sizeof *s->alone);
    assert_true(found != NULL && s->alone != NULL);
    const uint32_t q = core_sequence(&s->m);
    feed(s, q, N, SH_ROLE_PROMPT, s->alone);
    sh_sequence_destroy(s->m.context, q);
    for (size_t i = 0; i < (size_t)N * s->width; i++)
        if (!isfinite(s->alone[i])) fail_msg("%s on %s: row %zu is not numbers", name, device_name, i / s->width);
    if (s->info.encoder) {
        encoder(s, found);
    } else {
        chunks(s, found);
        among_others(s, found);
        reused(s, found);
        pages_held(s);
    }
    free(found);
    free(s->alone);
    sh_context_destroy(s->m.context);
    sh_model_unload(s->m.model);
    free(s);
}

/* The other types of llama have test_core_contract. On a software device, where a model's pipelines take seconds: experts and
 * windows, recurrent and paged layers side by side, an encoder. */
static bool wanted(const struct parity_entry *e, bool software) {
    static const char *const few[] = {"gpt-oss-MXFP4", "qwen35-Q8_0", "bert-F16"};
    if (parity_full()) return true;
    for (size_t i = 0; i < SH_COUNT(few) && software; i++)
        if (strcmp(e->name, few[i]) == 0) return true;
    return !software && e->brief && !differs_in_type_alone(e);
}

static void every_architecture(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    uint32_t ran = 0;
    for (uint32_t d = 0; d < n; d++) {
        struct sh_device *device = core_open_device(names[d]);
        const bool software = sh_device_get_info(device)->kind == SH_DEVICE_SOFTWARE;
        const uint32_t before = ran;
        const double begin = core_cpu_seconds();
        for (uint32_t i = 0; i < parity_count; i++) {
            if (!wanted(&parity_table[i], software)) continue;
            check(&parity_table[i], names[d], device, ran++ % 2 ? SH_KV_F32 : SH_KV_F16);
        }
        sh_device_close(device);
        print_message("RAN the numerics contract on %u of %u models on %s, %.0f s of a core%s\n", ran - before, (uint32_t)parity_count, names[d],
                      core_cpu_seconds() - begin,
                      parity_full() ? "" : "; SHIMMY_TEST_FULL=1 runs them all");
    }
    assert_true(ran >= n * 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_architecture)};
    return cmocka_run_group_tests_name("core_families", tests, NULL, NULL);
}
