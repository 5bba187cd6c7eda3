/*
 * test_daemon_scheduler.c - many generations at once on one runner: each gets what it gets alone, whatever they share, however few pages there are,
 * and whoever leaves; who comes first; and nothing is left behind.
 */
#include "compute/base.h"
#include "compute/grammar/grammar.h"
#include "compute/program/executor.h"
#include "daemon/generation_private.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/scheduler.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef __SANITIZE_THREAD__
enum { THREADS_ALONE = 1 }; /* what threads do to each other is looked for: that takes fewer requests and rounds, each of which costs a hundredfold */
#else
enum { THREADS_ALONE = 0 };
#endif
enum { MANY = 64, MOST_TOKENS = 64, CHOICES = 3, CONTEXT = 256 };

static const char *path;
static atomic_uint starts;

/* ---- front ends ------------------------------------------------------------------------------------------ */

struct said {
    int32_t tokens[CHOICES][MOST_TOKENS];
    float logprobs[CHOICES][MOST_TOKENS];
    uint32_t count[CHOICES];
    enum gen_finish finish[CHOICES], end;
    uint32_t n_prompt; /* events of the prompt */
};

struct request {
    int32_t prompt[CONTEXT];
    struct gen_params params;
    struct generation *g;
    struct said said;
    struct gen_usage usage;
    struct sh_error err;
    atomic_uint started; /* as the how manieth; 0: not yet */
};

static void notify(void *user) {
    struct request *q = user;
    unsigned none = 0;
    if (atomic_load(&q->started) == 0) atomic_compare_exchange_strong(&q->started, &none, atomic_fetch_add(&starts, 1) + 1);
}

static void prepare(struct request *q, uint32_t first, uint32_t n_prompt, uint32_t max_tokens) {
    memset(q, 0, sizeof *q);
    for (uint32_t i = 0; i < n_prompt; i++) q->prompt[i] = (int32_t)(3 + (first * 61 + i * 37 + i * i) % 500);
    q->params = (struct gen_params){.prompt = q->prompt,
                                    .n_prompt = n_prompt,
                                    .n_choices = 1,
                                    .max_tokens = max_tokens,
                                    .ignore_eos = true,
                                    .sampler = {.size = sizeof(struct sh_sampler_params), .seed = first},
                                    .notify = notify,
                                    .user = q};
}

static void submit(struct runner *runner, struct request *q) {
    struct sh_error err;
    atomic_store(&q->started, 0);
    memset(&q->said, 0, sizeof q->said);
    core_ok(gen_create(&q->params, &q->g, &err), &err);
    core_ok(runner_enqueue(runner, q->g, &err), &err);
}

/* Takes what is there; true: the end was among it. */
static bool take(struct request *q) {
    struct gen_event event;
    while (q->said.end == GEN_RUNNING && gen_next(q->g, &event)) {
        struct said *said = &q->said;
        if (event.kind == GEN_EVENT_TOKEN) {
            assert_true(said->count[event.choice] < MOST_TOKENS);
            if (event.logprob) said->logprobs[event.choice][said->count[event.choice]] = event.logprob->logprob;
            said->tokens[event.choice][said->count[event.choice]++] = event.token;
        }
        said->n_prompt += event.kind == GEN_EVENT_PROMPT;
        if (event.kind == GEN_EVENT_CHOICE) said->finish[event.choice] = event.finish;
        if (event.kind == GEN_EVENT_END) {
            said->end = event.finish;
            q->err = event.error;
        }
        gen_event_finish(&event);
    }
    return q->said.end != GEN_RUNNING;
}

static void follow_all(struct request *requests, uint32_t n) {
    const uint64_t limit = sh_now_ns() + 600000000000ull; /* under a sanitizer, and others at work */
    for (uint32_t left = n; left > 0;) {
        left = 0;
        for (uint32_t i = 0; i < n; i++)
            if (requests[i].g && !take(&requests[i])) left++;
        if (left > 0) usleep(200);
        if (sh_now_ns() > limit) fail_msg("%u of %u do not end", left, n);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!requests[i].g) continue;
        gen_get_usage(requests[i].g, &requests[i].usage);
        gen_release(requests[i].g);
        requests[i].g = NULL;
    }
}

static void nothing_left(struct runner *runner) {
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    assert_int_equal(stats.running + stats.queued, 0);
    assert_int_equal(stats.context.sequences, 0);
    assert_int_equal(stats.context.pages_used, 0);
}

/* ---- runners ---------------------------------------------------------------------------------------------- */

static void idle(void *user) { (void)user; }
static void lost(void *user, const struct sh_error *err) {
    (void)user;
    fail_msg("%s", err->message);
}

static struct runner *make_with(struct core_model *m, uint32_t sequences, uint64_t kv_tokens, bool overlap, bool lookup) {
    struct sh_error err;
    struct runner *runner;
    const struct runner_params params = {.context = {.size = sizeof params.context,
                                                     .max_sequences = sequences,
                                                     .max_batch_rows = 128,
                                                     .kv_tokens = kv_tokens,
                                                     .reuse_tokens = 512},
                                         .prefill_chunk = 32,
                                         .prefill_share = 100,
                                         .max_queue = 256,
                                         .overlap = overlap,
                                         .lookup = lookup,
                                         .draft_tokens = lookup ? 4 : 0,
                                         .id = "m",
                                         .idle = idle,
                                         .lost = lost};
    core_ok(runner_create(m->model, &params, &runner, &err), &err);
    return runner;
}

static struct runner *make(struct core_model *m, uint32_t sequences, uint64_t kv_tokens, bool overlap) {
    return make_with(m, sequences, kv_tokens, overlap, false);
}

/* All kinds of requests: samplers of the device and of the host, several choices, log-probs, grammars, prompts that share their beginning
 * and such that do not. */
static void mixed(struct request *requests, uint32_t n, struct sh_grammar *grammar) {
    struct test_rng rng = {11};
    for (uint32_t i = 0; i < n; i++) {
        struct request *q = &requests[i];
        const uint32_t n_prompt = i % 7 == 0 ? 1 + (uint32_t)(test_random(&rng) % 4) : 1 + (uint32_t)(test_random(&rng) % 120);
        prepare(q, i % 3 == 0 ? 1000 : i, n_prompt, 1 + (uint32_t)(test_random(&rng) % 60));
        q->params.sampler.seed = i;
        q->params.client = i % 5;
        q->params.priority = i % 4 == 3 ? GEN_PRIORITY_LOW : GEN_PRIORITY_NORMAL;
        q->params.sampler.temperature = i % 2 ? 1.2f : 0;
        if (i % 5 == 1) q->params.sampler.top_k = 40;
        if (i % 6 == 2) q->params.sampler.repeat_penalty = 1.3f, q->params.sampler.presence_penalty = 0.5f;
        if (i % 8 == 5) q->params.sampler.mirostat = 2;
        q->params.logprobs = i % 9 == 4;
        q->params.echo_logprobs = i % 18 == 4;
        if (i % 10 == 6) q->params.n_choices = CHOICES;
        q->params.no_reuse = i % 13 == 12;
        if (i % 11 == 7) q->params.grammar = grammar, q->params.ignore_eos = false;
    }
}

/* Texts with a part that is forced, longer than a step gives room for among others. */
static struct sh_grammar *make_grammar(const struct sh_vocab *vocab) {
    struct sh_error err;
    struct sh_grammar *grammar;
    struct sh_gr *gr = sh_gr_create();
    assert_non_null(gr);
    const sh_gr_expr letters = sh_gr_repeat(gr, sh_gr_class(gr, &(struct sh_gr_range){'a', 'z'}, 1, false), 4, 12);
    const sh_gr_expr parts[] = {letters, sh_gr_text(gr, "<1234567890>", 12), letters, sh_gr_text(gr, ".", 1), letters};
    core_ok(sh_gr_compile(gr, sh_gr_sequence(gr, parts, SH_COUNT(parts)), vocab, &grammar, &err), &err);
    sh_gr_destroy(gr);
    return grammar;
}

static void compare(const struct request *requests, const struct said *want, uint32_t n, const char *what) {
    for (uint32_t i = 0; i < n; i++) {
        if (requests[i].said.end != GEN_STOP) fail_msg("%s, request %u: %s", what, i, requests[i].err.message);
        if (memcmp(&requests[i].said, &want[i], sizeof want[i]) != 0) fail_msg("%s: request %u says something else", what, i);
    }
}

static void together_as_alone(const char *device, const char *file, uint32_t n) {
    struct core_model m;
    struct request *requests = calloc(n, sizeof *requests);
    struct said *want = calloc(n, sizeof *want);
    assert_non_null(requests);
    assert_non_null(want);
    core_load(&m, device, file, NULL);
    struct sh_grammar *grammar = make_grammar(sh_model_vocab(m.model));
    mixed(requests, n, grammar);
    struct runner *one = make(&m, CHOICES, 4 * CONTEXT, false);
    for (uint32_t i = 0; i < n; i++) {
        const bool no_reuse = requests[i].params.no_reuse;
        requests[i].params.no_reuse = true;
        submit(one, &requests[i]);
        follow_all(&requests[i], 1);
        requests[i].params.no_reuse = no_reuse;
        want[i] = requests[i].said;
        assert_int_equal(want[i].end, GEN_STOP);
        assert_int_equal(requests[i].usage.cached_tokens, 0);
    }
    nothing_left(one);
    runner_destroy(one);
    for (uint32_t pages = 0; pages < 2; pages++) {
        for (uint32_t overlap = 0; overlap < 2; overlap++) {
            if (THREADS_ALONE && overlap == pages) continue;
            struct runner *runner = make(&m, MANY, pages ? 416 : (uint64_t)MANY * CONTEXT, overlap);
            for (uint32_t round = 0; round < 2; round++) {
                for (uint32_t i = 0; i < n; i++) submit(runner, &requests[i]);
                follow_all(requests, n);
                compare(requests, want, n, pages ? overlap ? "few pages, overlapping" : "few pages" : overlap ? "overlapping" : "at once");
                nothing_left(runner);
            }
            struct runner_stats stats;
            runner_get_stats(runner, &stats);
            if (!pages) assert_int_equal(stats.preemptions, 0); /* with few most rounds have some; see preemption for one that is certain */
            assert_true(THREADS_ALONE || stats.context.reused_tokens > 0);
            runner_destroy(runner);
        }
    }
    sh_grammar_unref(grammar);
    core_unload(&m);
    free(requests);
    free(want);
}

static void many_at_once(void **state) {
    (void)state;
    together_as_alone("cpu", path, THREADS_ALONE ? 24 : MANY);
}

/* Models that remember otherwise: a recurrent state, both kinds, a window. */
static void kinds_of_state(void **state) {
    (void)state;
    static const char *const names[] = {"mamba-F16", "qwen35-Q8_0", "gemma2-F16"};
    for (size_t i = THREADS_ALONE; i < SH_COUNT(names); i++) {
        char file[64];
        snprintf(file, sizeof file, "parity/%s.gguf", names[i]);
        if (access(TEST_SHARED(file), R_OK) != 0) {
            print_message("SKIP: %s is not here\n", file);
            continue;
        }
        together_as_alone("cpu", TEST_SHARED(file), THREADS_ALONE ? 8 : 24);
    }
}

/* ---- who comes first ---------------------------------------------------------------------------------------- */

/* One sequence: the clients take turns, a client's own come in order, low priority last; a request that came later does not overtake. */
static void order(void **state) {
    (void)state;
    static const struct {
        uint64_t client;
        enum gen_priority priority;
        uint32_t place;
    } rows[] = {{1, GEN_PRIORITY_NORMAL, 1}, {1, GEN_PRIORITY_NORMAL, 4}, {1, GEN_PRIORITY_NORMAL, 6}, {1, GEN_PRIORITY_LOW, 8},
                {2, GEN_PRIORITY_NORMAL, 2}, {3, GEN_PRIORITY_LOW, 7},    {4, GEN_PRIORITY_NORMAL, 3}, {2, GEN_PRIORITY_NORMAL, 5}};
    struct core_model m;
    static struct request blocker, requests[SH_COUNT(rows)];
    core_load(&m, "cpu", path, NULL);
    struct runner *runner = make(&m, 1, CONTEXT, false);
    prepare(&blocker, 99, 1, 0);
    blocker.params.client = 9;
    blocker.params.max_tokens = 0;
    submit(runner, &blocker);
    while (atomic_load(&blocker.started) == 0) usleep(100);
    for (uint32_t i = 0; i < SH_COUNT(rows); i++) {
        prepare(&requests[i], i, 5, 2);
        requests[i].params.client = rows[i].client;
        requests[i].params.priority = rows[i].priority;
        submit(runner, &requests[i]);
    }
    atomic_store(&starts, 0);
    gen_cancel(blocker.g, "enough");
    gen_release(blocker.g);
    follow_all(requests, SH_COUNT(rows));
    for (uint32_t i = 0; i < SH_COUNT(rows); i++) assert_int_equal(atomic_load(&requests[i].started), rows[i].place);
    nothing_left(runner);
    runner_destroy(runner);
    core_unload(&m);
}

/* Pages for some: low priority gives way, whoever came first; everybody gets done. */
static void preemption(void **state) {
    (void)state;
    struct core_model m;
    static struct request requests[5];
    core_load(&m, "cpu", path, NULL);
    struct runner *runner = make(&m, 8, 256, false);
    for (uint32_t i = 0; i < SH_COUNT(requests); i++) {
        prepare(&requests[i], i, 20, 60);
        requests[i].params.priority = i < 3 ? GEN_PRIORITY_LOW : GEN_PRIORITY_NORMAL;
        submit(runner, &requests[i]);
    }
    follow_all(requests, SH_COUNT(requests));
    uint32_t low = 0, normal = 0;
    for (uint32_t i = 0; i < SH_COUNT(requests); i++) {
        assert_int_equal(requests[i].said.end, GEN_STOP);
        assert_int_equal(requests[i].said.count[0], 60);
        if (i < 3) low += requests[i].usage.preemptions;
        else normal += requests[i].usage.preemptions;
    }
    assert_true(low > 0);
    assert_int_equal(normal, 0);
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    assert_int_equal(stats.preemptions, low);
    nothing_left(runner);

    /* A prompt that does not fit alone fails with the figures, and costs nobody else anything. */
    prepare(&requests[0], 0, 250, 60);
    prepare(&requests[1], 1, 20, 30);
    requests[0].params.n_choices = 3;
    requests[0].params.max_tokens = 6;
    runner_destroy(runner);
    runner = make(&m, 8, 96, false);
    submit(runner, &requests[0]);
    submit(runner, &requests[1]);
    follow_all(requests, 2);
    assert_int_equal(requests[0].said.end, GEN_FAILED);
    assert_int_equal(requests[0].err.code, SH_ERR_LIMIT);
    assert_non_null(strstr(requests[0].err.message, "holds 96 in all"));
    assert_int_equal(requests[1].said.end, GEN_STOP);
    assert_int_equal(requests[1].said.count[0], 30);
    nothing_left(runner);

    /* One that outgrows the cache ends there: 96 tokens are stored, and one more was sampled of the last. */
    prepare(&requests[0], 3, 40, 70);
    submit(runner, &requests[0]);
    follow_all(requests, 1);
    assert_int_equal(requests[0].said.end, GEN_STOP);
    assert_int_equal(requests[0].said.finish[0], GEN_LENGTH);
    assert_int_equal(requests[0].said.count[0], 57);
    nothing_left(runner);
    runner_destroy(runner);
    core_unload(&m);
}

/* ---- beginnings ---------------------------------------------------------------------------------------------- */

static uint64_t computed(struct runner *runner) {
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    return stats.prompt_tokens;
}

static void reuse(void **state) {
    (void)state;
    struct core_model m;
    static struct request requests[8];
    core_load(&m, "cpu", path, NULL);
    struct runner *runner = make(&m, 8, 2048, false);
    struct sh_context_stats stats;
    struct runner_stats all;
    runner_get_stats(runner, &all);
    stats = all.context;
    const uint32_t page = stats.page_tokens;

    prepare(&requests[0], 5, 130, 40);
    submit(runner, &requests[0]);
    follow_all(requests, 1);
    assert_int_equal(requests[0].usage.cached_tokens, 0);
    assert_int_equal(computed(runner), 130);
    const struct said first = requests[0].said;
    submit(runner, &requests[0]);
    follow_all(requests, 1);
    assert_int_equal(requests[0].usage.cached_tokens, 129 / page * page);
    assert_memory_equal(&requests[0].said, &first, sizeof first);
    assert_int_equal(computed(runner), 130 + 130 - 129 / page * page);
    /* the last token of a prompt that is whole pages is computed, since it samples */
    prepare(&requests[1], 5, 128 / page * page, 1);
    submit(runner, &requests[1]);
    follow_all(&requests[1], 1);
    assert_int_equal(requests[1].usage.cached_tokens, 128 / page * page - page);
    /* the next turn: the answer is part of the prompt */
    prepare(&requests[1], 5, 130, 5);
    memcpy(requests[1].prompt + 130, first.tokens[0], 40 * sizeof(int32_t));
    requests[1].params.n_prompt = 180;
    submit(runner, &requests[1]);
    follow_all(&requests[1], 1);
    assert_true(requests[1].usage.cached_tokens >= 130 / page * page);
    /* not with another salt, nor where it is not wanted */
    prepare(&requests[1], 5, 130, 3);
    requests[1].params.salt = 7;
    submit(runner, &requests[1]);
    follow_all(&requests[1], 1);
    assert_int_equal(requests[1].usage.cached_tokens, 0);
    requests[1].params.salt = 0;
    requests[1].params.no_reuse = true;
    submit(runner, &requests[1]);
    follow_all(&requests[1], 1);
    assert_int_equal(requests[1].usage.cached_tokens, 0);

    /* Eight at once with the same long beginning: it is computed once. */
    const uint64_t before = computed(runner);
    for (uint32_t i = 0; i < 8; i++) {
        prepare(&requests[i], 77, 200, 4);
        for (uint32_t k = 192; k < 200; k++) requests[i].prompt[k] = (int32_t)(5 + i + k);
        submit(runner, &requests[i]);
    }
    follow_all(requests, 8);
    assert_int_equal(computed(runner) - before, 200 + 7 * (200 - 192 / page * page));
    nothing_left(runner);
    runner_destroy(runner);
    core_unload(&m);
}

/* A session is saved under its name, and another runner finds it; while others run. */
static void sessions(void **state) {
    (void)state;
    struct core_model m;
    static struct request requests[3];
    struct sh_error err;
    uint32_t saved = 0, restored = 0;
    core_load(&m, "cpu", path, NULL);
    struct runner *one = make(&m, 4, 1024, true), *two = make(&m, 4, 1024, false);
    FILE *file = tmpfile();
    assert_non_null(file);
    prepare(&requests[0], 5, 100, 40);
    requests[0].params.session = "talk";
    requests[0].params.salt = 3;
    submit(one, &requests[0]);
    follow_all(requests, 1);
    prepare(&requests[1], 9, 100, 60);
    submit(one, &requests[1]);
    prepare(&requests[2], 7, 60, 60);
    submit(two, &requests[2]);
    assert_int_equal(runner_save_session(one, "other", 3, fileno(file), &saved, &err), SH_ERR_NOT_FOUND);
    assert_int_equal(runner_save_session(one, "talk", 4, fileno(file), &saved, &err), SH_ERR_NOT_FOUND);
    uint32_t n_stuck; /* then nobody waits for its thread */
    free(runner_set_stuck(one, "it is stuck", &n_stuck));
    assert_int_equal(runner_save_session(one, "talk", 3, fileno(file), &saved, &err), SH_ERR_DEVICE);
    assert_string_equal(err.message, "it is stuck");
    free(runner_set_stuck(one, NULL, &n_stuck));
    core_ok(runner_save_session(one, "talk", 3, fileno(file), &saved, &err), &err);
    assert_in_range(saved, 96, 140);
    rewind(file);
    core_ok(runner_restore_session(two, "again", 8, fileno(file), &restored, &err), &err);
    assert_int_equal(restored, saved);
    follow_all(requests + 1, 2);
    const struct said want = requests[0].said;
    requests[0].params.salt = 8;
    submit(two, &requests[0]);
    follow_all(requests, 1);
    assert_int_equal(requests[0].usage.cached_tokens, 96);
    assert_memory_equal(&requests[0].said, &want, sizeof want);
    /* what was restored can be saved, and what is no such file costs nothing */
    rewind(file);
    core_ok(runner_save_session(two, "again", 8, fileno(file), &saved, &err), &err);
    assert_int_equal(runner_restore_session(two, "bad", 8, fileno(file), &restored, &err), SH_ERR_FORMAT);
    /* many names: the oldest are forgotten */
    for (uint32_t i = 0; i < 70; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%u", i);
        prepare(&requests[0], i, 33, 1);
        requests[0].params.session = name;
        submit(one, &requests[0]);
        follow_all(requests, 1);
    }
    assert_int_equal(runner_save_session(one, "talk", 3, fileno(file), &saved, &err), SH_ERR_NOT_FOUND);
    assert_int_equal(runner_save_session(one, "s5", 0, fileno(file), &saved, &err), SH_ERR_NOT_FOUND);
    core_ok(runner_save_session(one, "s69", 0, fileno(file), &saved, &err), &err);
    assert_int_equal(saved, 32);
    nothing_left(one);
    nothing_left(two);
    fclose(file);
    runner_destroy(one);
    runner_destroy(two);
    core_unload(&m);
}

/* ---- steps that fail --------------------------------------------------------------------------------------------- */

enum { GUILTY = 507 /* no prompt has this token but one that is to make steps fail */ };

static struct shaky { /* an executor whose steps fail: */
    const struct sh_executor *real;
    struct sh_executor executor;
    uint32_t ceiling;  /* those of more sequences; 0: never */
    uint32_t one_in;   /* one of so many, at random, that are of several requests for sure; 0: never */
    enum sh_code code; /* how */
    uint32_t slow_us;  /* so long each takes at least */
    struct test_rng rng;
    bool doomed[2]; /* by slot */
    uint32_t failures;
} shaky;

static enum sh_code shaky_submit(struct sh_exec_context *context, uint32_t slot, uint32_t segment, const struct sh_step *step,
                                 struct sh_error *err) {
    bool guilty = false;
    for (uint32_t i = 0; i < step->n_rows; i++)
        guilty = guilty || (step->rows[i].token == GUILTY && step->rows[i].role == SH_ROLE_PROMPT);
    shaky.doomed[slot] = guilty || (shaky.ceiling > 0 && step->n_sequences > shaky.ceiling) ||
                         (shaky.one_in > 0 && step->n_sequences > CHOICES && test_random(&shaky.rng) % shaky.one_in == 0);
    return shaky.real->submit(context, slot, segment, step, err);
}

static enum sh_code shaky_wait(struct sh_exec_context *context, uint32_t slot, int64_t timeout_ns, struct sh_step_result *result,
                               struct sh_error *err) {
    const enum sh_code code = shaky.real->wait(context, slot, timeout_ns, result, err);
    if (shaky.slow_us > 0) usleep(shaky.slow_us);
    if (code != SH_OK || !shaky.doomed[slot]) return code;
    shaky.failures++;
    return sh_fail(err, shaky.code, "this step is to fail");
}

static void shake(struct core_model *m) {
    shaky = (struct shaky){.real = m->devices[0]->executor, .executor = *m->devices[0]->executor, .rng = {5}};
    shaky.executor.submit = shaky_submit;
    shaky.executor.wait = shaky_wait;
    m->devices[0]->executor = &shaky.executor;
}

/* One of low priority computes what another's prompt begins with, too: that one does not wait behind all who come after it, whose prompts go first. */
static void no_waiting_for_low_priority(void **state) {
    (void)state;
    struct core_model m;
    static struct request low, same, others[12];
    core_load(&m, "cpu", path, NULL);
    shake(&m);
    struct runner *runner = make(&m, 8, 8 * CONTEXT, false);
    shaky.slow_us = 2000;
    prepare(&low, 3, 250, 2);
    low.params.priority = GEN_PRIORITY_LOW;
    submit(runner, &low);
    while (atomic_load(&low.started) == 0) usleep(100);
    atomic_store(&starts, 0);
    prepare(&same, 3, 250, 2);
    submit(runner, &same);
    for (uint32_t i = 0; i < SH_COUNT(others); i++) {
        prepare(&others[i], 20 + i, 200, 2);
        submit(runner, &others[i]);
    }
    follow_all(others, SH_COUNT(others));
    follow_all(&same, 1);
    follow_all(&low, 1);
    assert_int_equal(atomic_load(&same.started), 1);
    assert_memory_equal(&same.said, &low.said, sizeof low.said);
    nothing_left(runner);
    runner_destroy(runner);
    m.devices[0]->executor = shaky.real;
    core_unload(&m);
}

/* Whatever fails, those that do not make it fail by themselves get what they get alone, and those that do get the reason. */
static void fail_steps_of(const char *file, uint32_t every) {
    enum { N = 20 };
    static const struct {
        uint32_t ceiling, one_in;
        bool guilty, overlap, lookup;
        enum sh_code code;
    } rows[] = {
        {3, 0, false, false, false, SH_ERR_NO_DEVICE_MEMORY}, {CHOICES, 0, false, true, false, SH_ERR_NO_MEMORY},
        {0, 4, false, false, true, SH_ERR_DEVICE},            {0, 4, false, true, true, SH_ERR_NO_DEVICE_MEMORY},
        {0, 0, true, false, false, SH_ERR_DEVICE},            {0, 0, true, true, true, SH_ERR_NO_DEVICE_MEMORY},
    };
    struct core_model m;
    static struct request requests[N + 1];
    static struct said want[N];
    core_load(&m, "cpu", file, NULL);
    struct sh_grammar *grammar = make_grammar(sh_model_vocab(m.model));
    mixed(requests, N, grammar);
    struct runner *runner = make(&m, CHOICES, 4 * CONTEXT, false);
    for (uint32_t i = 0; i < N; i++) {
        submit(runner, &requests[i]);
        follow_all(&requests[i], 1);
        want[i] = requests[i].said;
    }
    runner_destroy(runner);
    shake(&m);
    for (size_t k = 0; k < SH_COUNT(rows); k += every) {
        runner = make_with(&m, MANY, 4096, rows[k].overlap, rows[k].lookup);
        shaky.ceiling = rows[k].ceiling;
        shaky.one_in = rows[k].one_in;
        shaky.code = rows[k].code;
        shaky.failures = 0;
        const uint32_t n = rows[k].guilty ? N + 1 : N;
        prepare(&requests[N], 3, 90, 5);
        requests[N].prompt[70] = GUILTY;
        for (uint32_t i = 0; i < n; i++) submit(runner, &requests[(i + N / 2) % n]);
        follow_all(requests, n);
        compare(requests, want, N, "steps that fail");
        assert_true(shaky.failures > 0);
        if (rows[k].guilty) {
            assert_int_equal(requests[N].said.end, GEN_FAILED);
            assert_int_equal(requests[N].err.code, rows[k].code);
            assert_string_equal(requests[N].err.message, "this step is to fail");
        }
        shaky.ceiling = shaky.one_in = 0;
        nothing_left(runner);
        runner_destroy(runner);
    }
    m.devices[0]->executor = shaky.real;
    sh_grammar_unref(grammar);
    core_unload(&m);
}

static void failing_steps(void **state) {
    (void)state;
    fail_steps_of(path, THREADS_ALONE ? 3 : 1);
    fail_steps_of(TEST_SHARED("parity/qwen35-Q8_0.gguf"), 3); /* a recurrent state besides, */
    fail_steps_of(TEST_SHARED("parity/gemma2-F16.gguf"), 3);  /* a window */
}

/* ---- leaving ---------------------------------------------------------------------------------------------------- */

static double metric(const char *line) {
    size_t length;
    char *all = metrics_text(&length), *at = all ? strstr(all, line) : NULL;
    assert_non_null(all);
    const double value = at ? strtod(at + strlen(line), NULL) : 0;
    free(all);
    return value;
}

static struct runner *stormy;

static void *storm(void *user) {
    struct test_rng rng = {(uint64_t)(uintptr_t)user};
    struct request *q = calloc(1, sizeof *q);
    const char *wrong = q ? NULL : "no memory";
    for (int i = 0; i < 60 && !wrong; i++) {
        prepare(q, (uint32_t)(test_random(&rng) % 4), 1 + (uint32_t)(test_random(&rng) % 150), 1 + (uint32_t)(test_random(&rng) % 40));
        q->params.n_choices = 1 + (uint32_t)(test_random(&rng) % CHOICES);
        q->params.sampler.temperature = 1;
        q->params.priority = test_random(&rng) % 2 ? GEN_PRIORITY_LOW : GEN_PRIORITY_NORMAL;
        q->params.client = test_random(&rng) % 100;
        if (test_random(&rng) % 4 == 0) q->params.deadline_ns = sh_now_ns() + test_random(&rng) % 5000000;
        if (gen_create(&q->params, &q->g, NULL) != SH_OK) wrong = "no generation";
        if (!wrong && runner_enqueue(stormy, q->g, NULL) == SH_OK) {
            const uint64_t what = test_random(&rng) % 4;
            if (what < 2) usleep((unsigned)(test_random(&rng) % 5000));
            if (what == 1) gen_cancel_id(gen_id(q->g), "storm");
            if (what == 2) gen_cancel(q->g, "storm");
            if (what == 3) {
                struct gen_event event = {0};
                for (int wait = 0; wait < 60000 && event.kind != GEN_EVENT_END; wait++) {
                    while (event.kind != GEN_EVENT_END && gen_next(q->g, &event)) gen_event_finish(&event);
                    if (event.kind != GEN_EVENT_END) usleep(500);
                }
                if (event.kind != GEN_EVENT_END) wrong = "no end";
            }
        }
        if (q->g) gen_release(q->g);
    }
    free(q);
    return (void *)(uintptr_t)wrong;
}

/* Threads that submit, cancel, are late and leave, with pages for few: each that was accepted ends once, and nothing is left. */
static void storms(void **state) {
    (void)state;
    struct core_model m;
    core_load(&m, "cpu", path, NULL);
    for (uint32_t overlap = 0; overlap < 2; overlap++) {
        pthread_t threads[6];
        stormy = make(&m, 8, 512, overlap);
        for (uintptr_t i = 0; i < SH_COUNT(threads); i++)
            assert_int_equal(pthread_create(&threads[i], NULL, storm, (void *)(i + 1)), 0);
        for (uint32_t i = 0; i < SH_COUNT(threads); i++) {
            void *wrong;
            pthread_join(threads[i], &wrong);
            if (wrong) fail_msg("%s", (const char *)wrong);
        }
        struct runner_stats stats;
        for (int i = 0; i < 5000; i++) {
            runner_get_stats(stormy, &stats);
            if (stats.running + stats.queued == 0) break;
            usleep(1000);
        }
        nothing_left(stormy);
        runner_destroy(stormy);
    }
    assert_true(metric("\nshimmy_generations_accepted_total ") > 0);
    assert_true(metric("\nshimmy_generations_accepted_total ") ==
                metric("\nshimmy_generations_ended_total{result=\"finished\"} ") +
                    metric("\nshimmy_generations_ended_total{result=\"failed\"} ") +
                    metric("\nshimmy_generations_ended_total{result=\"cancelled\"} "));
    assert_true(metric("\nshimmy_requests_running ") == 0);
    assert_true(metric("\nshimmy_requests_queued ") == 0);
    core_unload(&m);
}

/* A runner that goes while all is under way ends everything. */
static void shutdown_at_work(void **state) {
    (void)state;
    struct core_model m;
    static struct request requests[40];
    core_load(&m, "cpu", path, NULL);
    struct runner *runner = make(&m, 8, 512, true);
    for (uint32_t i = 0; i < SH_COUNT(requests); i++) {
        prepare(&requests[i], i, 50, 60);
        submit(runner, &requests[i]);
    }
    usleep(20000);
    runner_destroy(runner);
    follow_all(requests, SH_COUNT(requests));
    for (uint32_t i = 0; i < SH_COUNT(requests); i++) assert_true(requests[i].said.end == GEN_CANCELLED || requests[i].said.end == GEN_STOP);
    assert_int_equal(requests[39].said.end, GEN_CANCELLED);
    assert_string_equal(requests[39].err.message, "shutdown");
    core_unload(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_at_once), cmocka_unit_test(kinds_of_state), cmocka_unit_test(order), cmocka_unit_test(preemption),
        cmocka_unit_test(reuse),        cmocka_unit_test(sessions),       cmocka_unit_test(failing_steps),
        cmocka_unit_test(no_waiting_for_low_priority), cmocka_unit_test(storms),
        cmocka_unit_test(shutdown_at_work),
    };
    struct sh_error err;
    struct genmodel_params params = genmodel_defaults();
    log_set_level((enum sh_log_level)0); /* some are to fail */
    params.layers = 1;
    params.embd = 128;
    params.heads = 2;
    params.kv_heads = 1;
    params.ff = 256;
    params.context = CONTEXT;
    path = test_scratch("m.gguf");
    core_ok(genmodel_write(path, &params, &err), &err);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
