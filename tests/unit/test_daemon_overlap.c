/*
 * test_daemon_overlap.c - a runner that keeps two steps in flight gives what one gives that waits for each: the same tokens, texts and ends,
 * and nothing is left behind. On every device under test (core.h).
 */
#include "compute/base.h"
#include "compute/grammar/grammar.h"
#include "daemon/generation_private.h"
#include "daemon/scheduler.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

enum { TOKENS_MAX = 200, CHOICES = 3 };

struct said { /* by one generation */
    int32_t tokens[CHOICES][TOKENS_MAX];
    uint32_t count[CHOICES];
    char text[CHOICES][TOKENS_MAX * 40];
    enum gen_finish finish[CHOICES];
    int32_t stop_index[CHOICES];
    enum gen_finish end;
};

static void nothing(void *user) { (void)user; }
static void lost(void *user, const struct sh_error *err) {
    (void)user;
    fail_msg("%s", err->message);
}

/* Runs a generation to its end, or cancels it after `cancel_after` tokens of the first choice. */
static void run(struct runner *runner, const struct gen_params *params, uint32_t cancel_after, struct said *said) {
    struct generation *g;
    struct sh_error err;
    memset(said, 0, sizeof *said);
    core_ok(gen_create(params, &g, &err), &err);
    core_ok(runner_enqueue(runner, g, &err), &err);
    uint64_t limit = sh_now_ns() + 60000000000ull;
    while (said->end == GEN_RUNNING) {
        struct gen_event event;
        if (!gen_next(g, &event)) {
            if (sh_now_ns() > limit) fail_msg("no end");
            usleep(200);
            continue;
        }
        if (event.kind == GEN_EVENT_TOKEN) {
            assert_true(said->count[event.choice] < TOKENS_MAX);
            said->tokens[event.choice][said->count[event.choice]++] = event.token;
            if (event.choice == 0 && said->count[0] == cancel_after) gen_cancel(g, "enough");
        }
        if (event.kind == GEN_EVENT_TOKEN || event.kind == GEN_EVENT_CHOICE) strcat(said->text[event.choice], event.text);
        if (event.kind == GEN_EVENT_CHOICE) {
            assert_int_equal(said->finish[event.choice], GEN_RUNNING);
            said->finish[event.choice] = event.finish;
            said->stop_index[event.choice] = event.stop_index;
        }
        if (event.kind == GEN_EVENT_END) said->end = event.finish;
        if (event.kind == GEN_EVENT_END && event.finish == GEN_FAILED) fail_msg("%s", event.error.message);
        gen_event_finish(&event);
    }
    gen_release(g);
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    assert_int_equal(stats.running + stats.queued, 0);
    assert_int_equal(stats.context.sequences, 0);
    assert_int_equal(stats.context.pages_used, 0);
}

static void compare(struct runner *one, struct runner *two, const struct gen_params *params, struct said *a, struct said *b) {
    run(one, params, 0, a);
    run(two, params, 0, b);
    assert_memory_equal(a, b, sizeof *a);
    assert_int_equal(a->end, GEN_STOP);
}

/* Held to a grammar with runs of tokens that are forced, longer than a step: the device's draws under a mask, the host's, tokens that are
 * written down and tokens that are each sampled give the same. */
static void with_grammar(struct runner *one, struct runner *two, const struct sh_vocab *vocab, struct gen_params gen, struct said *a,
                         struct said *b) {
    struct sh_error err;
    struct sh_gr *gr = sh_gr_create();
    assert_non_null(gr);
    const sh_gr_expr digit = sh_gr_class(gr, &(struct sh_gr_range){'0', '9'}, 1, false),
                     letters = sh_gr_repeat(gr, sh_gr_class(gr, &(struct sh_gr_range){'a', 'z'}, 1, false), 4, 9);
    const sh_gr_expr parts[] = {digit, sh_gr_text(gr, "<1234567890>", 12), letters, sh_gr_text(gr, ".", 1), digit};
    core_ok(sh_gr_compile(gr, sh_gr_sequence(gr, parts, SH_COUNT(parts)), vocab, &gen.grammar, &err), &err);
    sh_gr_destroy(gr);
    gen.ignore_eos = false;
    for (uint32_t i = 0; i < 6; i++) {
        gen.n_choices = i % 2 ? CHOICES : 1;
        gen.sampler.temperature = i < 2 ? 0 : 1.3f;
        gen.sampler.seed = i;
        gen.logprobs = false;
        compare(one, two, &gen, a, b);
        for (uint32_t c = 0; c < gen.n_choices; c++) {
            assert_int_equal(a->finish[c], GEN_STOP);
            assert_memory_equal(a->text[c] + 1, "<1234567890>", 12);
            assert_in_range(strlen(a->text[c]), 19, 24);
        }
        gen.logprobs = true;
        run(two, &gen, 0, b);
        assert_memory_equal(a, b, sizeof *a);
    }
    sh_grammar_unref(gen.grammar);
}

static void test_device(const char *name, const char *path) {
    struct core_model m;
    struct sh_error err;
    struct said *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    assert_non_null(a);
    assert_non_null(b);
    core_load(&m, name, path, NULL);
    struct runner_params params = {
        .context = {.size = sizeof params.context, .max_sequences = 4, .max_batch_rows = 32, .kv_tokens = 1024},
        .prefill_chunk = 8,
        .max_queue = 1,
        .id = "m",
        .idle = nothing,
        .lost = lost};
    struct runner *one, *two;
    core_ok(runner_create(m.model, &params, &one, &err), &err);
    params.overlap = true;
    core_ok(runner_create(m.model, &params, &two, &err), &err);

    int32_t prompt[50];
    for (int i = 0; i < 50; i++) prompt[i] = 10 + (i * 37) % 480;
    struct gen_params gen = {.prompt = prompt,
                             .n_prompt = 50,
                             .n_choices = 1,
                             .max_tokens = 40,
                             .ignore_eos = true,
                             .sampler = {.size = sizeof gen.sampler, .seed = 3}};
    compare(one, two, &gen, a, b);
    assert_int_equal(a->count[0], 40);

    /* A stop string in the middle: a step is under way then whose token nobody wants. */
    char stop[16] = "";
    size_t at = strlen(a->text[0]) / 2, end;
    while (((unsigned char)a->text[0][at] & 0xC0) == 0x80) at++;
    end = at;
    for (int i = 0; i < 3; i++) end += sh_utf8_length(a->text[0] + end, strlen(a->text[0] + end));
    memcpy(stop, a->text[0] + at, end - at);
    const char *const stops[] = {stop};
    gen.stops = stops;
    gen.n_stops = 1;
    compare(one, two, &gen, a, b);
    assert_int_equal(a->finish[0], GEN_STOP);
    assert_int_equal(a->stop_index[0], 0);
    gen.n_stops = 0;

    /* Choices that end at different times, drawn at a temperature. */
    gen.n_choices = CHOICES;
    gen.sampler.temperature = 1;
    gen.ignore_eos = false;
    compare(one, two, &gen, a, b);
    for (uint32_t c = 0; c < CHOICES; c++) assert_int_not_equal(a->finish[c], GEN_RUNNING);
    /* With the filters that the device has, too. */
    gen.sampler.top_k = 40;
    gen.sampler.top_p = 0.95f;
    gen.sampler.min_p = 0.05f;
    compare(one, two, &gen, a, b);
    gen.sampler.top_p = gen.sampler.min_p = 0;
    /* What the host has to sample waits for the host. */
    gen.sampler.top_k = 5;
    gen.sampler.presence_penalty = 0.5f;
    compare(one, two, &gen, a, b);
    gen.sampler.top_k = 0;
    gen.sampler.presence_penalty = 0;
    with_grammar(one, two, sh_model_vocab(m.model), gen, a, b);
    /* A prompt of one token, one generated, and the context's end. */
    gen.n_prompt = 1;
    gen.max_tokens = 1;
    gen.ignore_eos = true;
    compare(one, two, &gen, a, b);
    assert_int_equal(a->count[1], 1);
    gen.n_prompt = 50;
    gen.max_tokens = 0;
    gen.n_choices = 1;
    struct sh_model_info info;
    sh_model_get_info(m.model, &info);
    compare(one, two, &gen, a, b);
    assert_int_equal(a->count[0], info.context_length - 50 + 1);

    /* Cancelled with steps in flight: what was said until then is the beginning of the whole. */
    run(two, &gen, 7, b);
    assert_int_equal(b->end, GEN_CANCELLED);
    assert_true(b->count[0] >= 7);
    assert_memory_equal(a->tokens[0], b->tokens[0], b->count[0] * sizeof(int32_t));

    runner_destroy(one);
    runner_destroy(two);
    core_unload(&m);
    free(a);
    free(b);
}

static void test_overlap(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES], *path = test_scratch("m.gguf");
    struct sh_error err;
    struct genmodel_params params = genmodel_defaults();
    params.layers = 1;
    params.embd = 128;
    params.heads = 2;
    params.kv_heads = 1;
    params.ff = 256;
    params.context = 96;
    params.type = "Q8_0";
    core_ok(genmodel_write(path, &params, &err), &err);
    uint32_t count = core_devices(names);
    assert_true(count > 0);
    for (uint32_t i = 0; i < count; i++) test_device(names[i], path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_overlap)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
