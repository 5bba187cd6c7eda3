/*
 * Generations that are interrupted, on real executors: a sequence that gives up its pages and comes back, and one that enters guesses and
 * takes the wrong ones back, draw the tokens that an undisturbed one draws, whatever its sampler remembers.
 */
#include "compute/state/context.h"
#include "tests/unit/core.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;
static char llama[256];

enum { PROMPT = 70, ANSWER = 48, ALL = PROMPT + ANSWER, GUESSES = 7 };

static int write_model(void **state) {
    (void)state;
    core_write_small(llama, sizeof llama, "resume.gguf");
    return 0;
}

static const struct sh_sampler_params samplers[] = {
    {.size = sizeof samplers[0], .temperature = 0.9f, .seed = 5},
    {.size = sizeof samplers[0], .temperature = 1.0f, .seed = 6, .mirostat = 2, .mirostat_tau = 3, .mirostat_eta = 0.3f},
    {.size = sizeof samplers[0],
     .temperature = 0.8f,
     .seed = 7,
     .repeat_penalty = 1.3f,
     .frequency_penalty = 0.4f,
     .presence_penalty = 0.3f,
     .dry_multiplier = 0.8f,
     .top_k = 40},
    {.size = sizeof samplers[0], .temperature = 0.8f, .seed = 8, .mirostat = 2, .repeat_penalty = 1.2f, .dry_multiplier = 0.8f},
    {.size = sizeof samplers[0]},
};

struct run {
    struct core_model m;
    int32_t tokens[ALL + GUESSES + 1]; /* the prompt, and what was drawn */
    uint32_t sequence;
    struct test_rng rng;
};

static uint32_t below(struct run *r, uint32_t n) { return (uint32_t)(test_random(&r->rng) % n); }

static bool begin(struct run *r, const char *device, const char *path, const struct sh_sampler_params *sampler) {
    const struct sh_context_params context = {.size = sizeof context, .kv_tokens = 1024, .reuse_tokens = 512, .back_tokens = 64};
    *r = (struct run){.rng = {3}};
    core_load(&r->m, device, path, &context);
    for (uint32_t i = 0; i < PROMPT; i++) r->tokens[i] = (int32_t)(3 + below(r, 90));
    r->sequence = core_sequence(&r->m);
    core_ok(sh_sequence_set_sampler(r->m.context, r->sequence, sampler, &error), &error);
    return true;
}

static void end(struct run *r) {
    sh_sequence_destroy(r->m.context, r->sequence);
    struct sh_context_stats stats;
    sh_context_get_stats(r->m.context, &stats);
    assert_int_equal(stats.pages_used, 0);
    core_unload(&r->m);
}

/* Enters tokens [length, end); the last `asking` rows ask for samples, which go to drawn. */
static enum sh_code enter(struct run *r, uint32_t end_of, uint32_t asking, int32_t *drawn) {
    struct sh_row rows[ALL + GUESSES + 1];
    uint32_t n = 0;
    for (uint32_t p = sh_sequence_length(r->m.context, r->sequence); p < end_of; p++)
        rows[n++] = (struct sh_row){.sequence = r->sequence,
                                    .role = p < PROMPT ? SH_ROLE_PROMPT : SH_ROLE_GENERATED,
                                    .token = r->tokens[p],
                                    .position = p,
                                    .outputs = p + asking >= end_of ? SH_OUT_SAMPLE : 0};
    if (n == 0) return SH_OK;
    sh_ticket ticket;
    struct sh_results results;
    core_ok(sh_submit(r->m.context, &(struct sh_batch){rows, n}, &ticket, &error), &error);
    const enum sh_code code = sh_wait(r->m.context, ticket, -1, &results, &error);
    if (code != SH_OK) return code;
    assert_int_equal(results.count, asking);
    for (uint32_t i = 0; i < asking; i++) {
        assert_int_equal(results.items[i].code, SH_OK);
        drawn[i] = results.items[i].token;
    }
    return SH_OK;
}

static void undisturbed(struct run *r) {
    for (uint32_t at = PROMPT; at < ALL; at++) core_ok(enter(r, at, 1, &r->tokens[at]), &error);
}

/* A submission that fails while the sequence is on its way back: the sampler must not forget what is still to come. */
static const struct sh_executor *real;
static int fail_wait;
static enum sh_code failing_wait(struct sh_exec_context *c, uint32_t slot, int64_t timeout, struct sh_step_result *result,
                                 struct sh_error *err) {
    const enum sh_code code = real->wait(c, slot, timeout, result, err);
    if (code == SH_OK && fail_wait > 0 && --fail_wait == 0) return sh_fail(err, SH_ERR_DEVICE, "fails on demand");
    return code;
}

static void come_back(struct run *r, uint32_t length, bool takes_part) {
    uint32_t reused = 0;
    core_ok(sh_sequence_suspend(r->m.context, r->sequence, &error), &error);
    struct sh_context_stats stats;
    sh_context_get_stats(r->m.context, &stats);
    assert_int_equal(stats.pages_used, 0);
    if (takes_part) {
        enum sh_role roles[ALL];
        for (uint32_t i = 0; i < length; i++) roles[i] = i < PROMPT ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
        core_ok(sh_sequence_reuse(r->m.context, r->sequence, r->tokens, roles, length, 0, &reused, &error), &error);
    }
    if (below(r, 2) == 0 && reused < length) {
        fail_wait = 1;
        assert_int_equal(enter(r, length, 0, NULL), SH_ERR_DEVICE);
        assert_int_equal(sh_sequence_length(r->m.context, r->sequence), reused);
    }
    const uint32_t half = reused + (length - reused) / 2;
    core_ok(enter(r, half, 0, NULL), &error);
    core_ok(enter(r, length, 0, NULL), &error);
}

static void interrupted(struct run *r, bool takes_part) {
    static struct sh_executor table;
    real = r->m.devices[0]->executor;
    table = *real;
    table.wait = failing_wait;
    r->m.devices[0]->executor = &table;
    uint32_t reused = 0;
    if (takes_part) core_ok(sh_sequence_reuse(r->m.context, r->sequence, NULL, NULL, 0, 0, &reused, &error), &error);
    for (uint32_t at = PROMPT; at < ALL; at++) {
        core_ok(enter(r, at, 1, &r->tokens[at]), &error);
        if (below(r, 9) == 0) come_back(r, at, takes_part);
    }
    r->m.devices[0]->executor = real;
}

/* With guesses behind the last token, right ones and wrong ones; those that are not drawn are taken back. */
static void guessed(struct run *r, const int32_t *expected) {
    uint32_t at = PROMPT; /* tokens that are certain; the last one is not entered yet, but for the prompt's */
    core_ok(enter(r, at, 1, &r->tokens[at]), &error);
    at++;
    while (at < ALL) {
        const uint32_t n = below(r, GUESSES + 1);
        const uint32_t wrong = below(r, 2 * GUESSES);
        int32_t drawn[GUESSES + 1];
        for (uint32_t i = 0; i < n; i++)
            r->tokens[at + i] = at + i < ALL && i != wrong ? expected[at + i] : (int32_t)below(r, 90) + 3;
        int32_t guesses[GUESSES + 1];
        memcpy(guesses, r->tokens + at, n * sizeof *guesses);
        core_ok(enter(r, at + n, n + 1, drawn), &error);
        uint32_t right = 0;
        while (right < n && guesses[right] == drawn[right]) right++;
        core_ok(sh_sequence_truncate(r->m.context, r->sequence, at + right, &error), &error);
        memcpy(r->tokens + at, drawn, (right + 1) * sizeof *drawn);
        at += right + 1;
    }
}

static void compare(const struct run *found, const int32_t *expected, size_t sampler, const char *device, const char *what) {
    for (uint32_t i = PROMPT; i < ALL; i++)
        if (found->tokens[i] != expected[i])
            fail_msg("%s, sampler %zu: %s: token %u is %d, undisturbed %d", device, sampler, what, i, found->tokens[i],
                     expected[i]);
}

static void on_a_model(const char *device, const char *path, uint32_t n_samplers, bool can_guess) {
    struct run *r = calloc(1, sizeof *r);
    assert_non_null(r);
    for (size_t i = 0; i < n_samplers; i++) {
        int32_t expected[ALL];
        begin(r, device, path, &samplers[i]);
        undisturbed(r);
        memcpy(expected, r->tokens, sizeof expected);
        end(r);
        for (int takes_part = 0; takes_part < 2; takes_part++) {
            begin(r, device, path, &samplers[i]);
            interrupted(r, takes_part);
            compare(r, expected, i, device, takes_part ? "suspended and reused" : "suspended and computed again");
            end(r);
        }
        if (!can_guess) continue;
        begin(r, device, path, &samplers[i]);
        guessed(r, expected);
        compare(r, expected, i, device, "with guesses");
        end(r);
    }
    free(r);
}

static void every_device(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++) {
        struct sh_device *device = core_open_device(names[d]);
        const bool software = sh_device_get_info(device)->kind == SH_DEVICE_SOFTWARE; /* one sampler there, one on the host */
        sh_device_close(device);
        on_a_model(names[d], llama, software ? 2 : SH_COUNT(samplers), true);
    }
}

static void windows_and_recurrent_layers(void **state) {
    (void)state;
    on_a_model("cpu", TEST_SHARED("parity/gpt-oss-MXFP4.gguf"), 3, true);
    on_a_model("cpu", TEST_SHARED("parity/lfm2-Q8_0.gguf"), 3, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_device), cmocka_unit_test(windows_and_recurrent_layers)};
    return cmocka_run_group_tests_name("core_resume", tests, write_model, NULL);
}
