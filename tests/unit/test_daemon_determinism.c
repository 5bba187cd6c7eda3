/*
 * test_daemon_determinism.c - a request gets the same tokens, texts and log-probs whether it runs alone or among 31 others, with and without
 * reuse of prefixes, preemption and speculation. Random requests (prompts that share beginnings, lengths, samplers, choices, grammars, stop
 * strings) run one by one on a runner that does nothing of that kind, and all at once on runners that do everything, while some
 * are cancelled; whatever came is compared bit for bit. Models of every kind of memory, on every device under test (core.h). SHIMMY_TEST_FULL=1
 * takes all of it on every device, and on CPUs more rounds; SHIMMY_TEST_SEED another seed than 1; SHIMMY_TEST_LOG=1 says how much there was of each.
 */
#include "compute/base.h"
#include "compute/grammar/grammar.h"
#include "daemon/generation_private.h"
#include "daemon/log.h"
#include "daemon/scheduler.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/parity.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

enum { REQUESTS = 32, FEW = 8, TOKENS_MAX = 100, CHOICES = 3, PROMPT_MAX = 160, BEGINNINGS = 4, TEXT_MAX = TOKENS_MAX * 40,
       TINY_CACHE = 5 * 32, LEAST_CACHE = 11 * 32 /* what the largest request can need: 159 + 24 tokens, three times but for the prompt's whole pages */ };

static struct sh_error error;
static uint64_t seed = 1;

/* ---- requests ---- */

struct request {
    struct gen_params params;
    int32_t prompt[PROMPT_MAX];
    char stop[8];
    const char *stops[1], *words[1];
    struct sh_logit_bias bias[2];
    uint32_t cancel_after; /* tokens of the first choice, in the busy run; 0: it is not cancelled */
};

struct said {
    int32_t tokens[CHOICES][TOKENS_MAX];
    float logprobs[CHOICES][TOKENS_MAX];
    uint32_t count[CHOICES];
    char text[CHOICES][TEXT_MAX];
    enum gen_finish finish[CHOICES];
    int32_t stop_index[CHOICES];
    enum gen_finish end;
    char reason[sizeof error.message];
};

static uint32_t below(struct test_rng *rng, uint32_t n) { return (uint32_t)(test_random(rng) % n); }
static bool one_in(struct test_rng *rng, uint32_t n) { return below(rng, n) == 0; }

static void draw_sampler(struct test_rng *rng, struct request *q, uint32_t n_vocab) {
    struct sh_sampler_params *s = &q->params.sampler;
    s->size = sizeof *s;
    s->seed = test_random(rng);
    if (!one_in(rng, 3)) s->temperature = test_uniform(rng, 0.3f, 1.5f);
    if (one_in(rng, 3)) s->top_k = 1 + below(rng, 40);
    if (one_in(rng, 3)) s->top_p = test_uniform(rng, 0.3f, 1);
    if (one_in(rng, 5)) s->min_p = 0.05f;
    if (one_in(rng, 4)) s->repeat_penalty = test_uniform(rng, 1, 1.5f);
    if (one_in(rng, 5)) s->frequency_penalty = 0.4f;
    if (one_in(rng, 5)) s->presence_penalty = 0.4f;
    if (one_in(rng, 6)) s->dry_multiplier = 1;
    if (one_in(rng, 6)) s->mirostat = 2;
    if (one_in(rng, 6)) s->xtc_probability = 0.5f;
    if (one_in(rng, 6)) s->typical_p = 0.9f;
    if (one_in(rng, 4)) s->min_tokens = below(rng, 20);
    if (!one_in(rng, 5)) return;
    for (uint32_t i = 0; i < 2; i++)
        q->bias[i] = (struct sh_logit_bias){.token = (int32_t)below(rng, n_vocab), .bias = test_uniform(rng, -3, 3)};
    s->bias = q->bias;
    s->n_bias = 2;
}

/* Half of the prompts begin as others do, some go on by repeating themselves. */
static void draw_prompt(struct test_rng *rng, struct request *q, uint32_t n_vocab, uint32_t most) {
    struct test_rng shared = {1000 + below(rng, BEGINNINGS)};
    uint32_t n = 1 + below(rng, most), same = one_in(rng, 2) ? 32 + below(rng, 64) : 0;
    if (one_in(rng, 8)) n = 1;
    for (uint32_t i = 0; i < n; i++) q->prompt[i] = (int32_t)(3 + test_random(i < same ? &shared : rng) % (n_vocab - 3));
    if (n > 60 && one_in(rng, 2)) memcpy(q->prompt + n - 25, q->prompt + n - 60, 25 * sizeof *q->prompt);
    q->params.prompt = q->prompt;
    q->params.n_prompt = n;
}

/* One that `grows`: a short prompt and a long answer, so that many are admitted which a small cache cannot hold to their ends. */
static void draw(struct test_rng *rng, struct request *q, bool grows, uint32_t n_vocab, uint32_t most, struct sh_grammar *grammar) {
    *q = (struct request){.params = {.n_choices = one_in(rng, 4) ? 1 + below(rng, CHOICES) : 1, .max_tokens = 1 + below(rng, 24)}};
    if (grows) q->params.n_choices = 1;
    if (grows) q->params.max_tokens = 60 + below(rng, TOKENS_MAX - 60);
    draw_prompt(rng, q, n_vocab, grows ? 12 : most);
    draw_sampler(rng, q, n_vocab);
    q->params.ignore_eos = grows || !one_in(rng, 4);
    q->params.logprobs = one_in(rng, 3);
    q->params.n_top = q->params.logprobs ? below(rng, 3) : 0;
    if (!grows && one_in(rng, 4)) {
        q->stop[0] = (char)('a' + below(rng, 26));
        if (one_in(rng, 2)) q->stop[1] = (char)('a' + below(rng, 26));
        q->stops[0] = q->stop;
        q->params.stops = q->stops;
        q->params.n_stops = 1;
    }
    if (one_in(rng, 5)) {
        q->words[0] = one_in(rng, 2) ? "e" : "the";
        q->params.bad_words = q->words;
        q->params.n_bad_words = 1;
    }
    if (grammar && !grows && one_in(rng, 3)) q->params.grammar = grammar;
    q->params.priority = one_in(rng, 4) ? GEN_PRIORITY_LOW : GEN_PRIORITY_NORMAL;
    q->params.client = below(rng, 3);
    q->params.salt = one_in(rng, 6) ? 1 : 0;
    if (one_in(rng, 6)) q->cancel_after = 1 + below(rng, 10);
}

/* ---- running them ---- */

static void nothing(void *user) { (void)user; }
static void lost(void *user, const struct sh_error *err) {
    (void)user;
    fail_msg("%s", err->message);
}

static void take(struct said *said, const struct gen_event *event) {
    const uint32_t c = event->choice;
    if (event->kind == GEN_EVENT_TOKEN) {
        assert_true(said->count[c] < TOKENS_MAX);
        said->logprobs[c][said->count[c]] = event->logprob ? event->logprob->logprob : 0;
        said->tokens[c][said->count[c]++] = event->token;
    }
    if (event->kind == GEN_EVENT_TOKEN || event->kind == GEN_EVENT_CHOICE) {
        assert_int_equal(said->finish[c], GEN_RUNNING);
        assert_true(strlen(said->text[c]) + event->text_length < TEXT_MAX);
        strcat(said->text[c], event->text);
    }
    if (event->kind == GEN_EVENT_CHOICE) {
        said->finish[c] = event->finish;
        said->stop_index[c] = event->stop_index;
    }
    if (event->kind != GEN_EVENT_END) return;
    said->end = event->finish;
    snprintf(said->reason, sizeof said->reason, "%s", event->error.message);
}

/* Submits all, and takes what comes until all have ended. */
static void run_all(struct runner *runner, const struct request *requests, uint32_t n, bool cancels, struct said *said,
                    struct gen_usage *total) {
    struct generation *g[REQUESTS];
    uint32_t live = n;
    memset(said, 0, n * sizeof *said);
    for (uint32_t i = 0; i < n; i++) {
        core_ok(gen_create(&requests[i].params, &g[i], &error), &error);
        core_ok(runner_enqueue(runner, g[i], &error), &error);
    }
    const uint64_t limit = sh_now_ns() + 300000000000ull;
    while (live > 0) {
        bool any = false;
        for (uint32_t i = 0; i < n; i++) {
            struct gen_event event;
            while (said[i].end == GEN_RUNNING && gen_next(g[i], &event)) {
                take(&said[i], &event);
                gen_event_finish(&event);
                any = true;
                if (cancels && requests[i].cancel_after > 0 && said[i].count[0] == requests[i].cancel_after) gen_cancel(g[i], "enough");
                live -= said[i].end != GEN_RUNNING;
            }
        }
        if (sh_now_ns() > limit) fail_msg("%u of %u requests have not ended after five minutes", live, n);
        if (!any) usleep(200);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct gen_usage usage;
        gen_get_usage(g[i], &usage);
        total->cached_tokens += usage.cached_tokens;
        total->draft_tokens += usage.draft_tokens;
        total->accepted_tokens += usage.accepted_tokens;
        total->preemptions += usage.preemptions;
        assert_true(usage.accepted_tokens <= usage.draft_tokens);
        gen_release(g[i]);
    }
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    assert_int_equal(stats.running + stats.queued, 0);
    assert_int_equal(stats.context.sequences, 0);
    assert_int_equal(stats.context.pages_used, 0);
}

/* What one that was cancelled said is the beginning of the whole. */
static void compare(const struct request *q, const struct said *alone, const struct said *busy, uint32_t index) {
    const bool cancelled = q->cancel_after > 0 && busy->end == GEN_CANCELLED;
    if (busy->end == GEN_FAILED) fail_msg("request %u failed: %s", index, busy->reason);
    if (!cancelled) assert_int_equal(busy->end, alone->end);
    for (uint32_t c = 0; c < q->params.n_choices; c++) {
        for (uint32_t k = 0; k < busy->count[c]; k++)
            if (k >= alone->count[c] || busy->tokens[c][k] != alone->tokens[c][k])
                fail_msg("request %u, choice %u: token %u is %d; alone it is %d (of %u)", index, c, k, busy->tokens[c][k],
                         alone->tokens[c][k], alone->count[c]);
        assert_memory_equal(busy->logprobs[c], alone->logprobs[c], busy->count[c] * sizeof(float));
        if (cancelled) continue;
        assert_int_equal(busy->count[c], alone->count[c]);
        assert_string_equal(busy->text[c], alone->text[c]);
        assert_int_equal(busy->finish[c], alone->finish[c]);
        assert_int_equal(busy->stop_index[c], alone->stop_index[c]);
    }
}

/* ---- models, devices, runners ---- */

struct subject {
    const char *name, *path;
    bool recurrent;
};

static void write_model(const char *path, uint32_t experts, uint64_t weights) {
    struct genmodel_params p = genmodel_defaults();
    p.embd = 128;
    p.heads = 2;
    p.kv_heads = 1;
    p.ff = 128;
    p.experts = experts;
    p.experts_used = experts > 0 ? 2 : 0;
    p.pieces = true;
    p.seed = weights;
    core_ok(genmodel_write(path, &p, &error), &error);
}

static void write_windowed(const char *path) {
    const char *plain = test_scratch("plain.gguf");
    write_model(plain, 0, 11);
    struct rewrite *r = rewrite_open(plain);
    rewrite_u32(r, "llama.attention.sliding_window", 40);
    rewrite_save(r, path);
}

static struct runner *create(struct sh_model *model, struct sh_model *draft, uint32_t sequences, uint32_t kv_tokens, bool everything,
                             bool overlap) {
    const struct runner_params params = {
        .context = {.size = sizeof params.context,
                    .max_sequences = sequences,
                    .max_batch_rows = 128,
                    .kv_tokens = kv_tokens,
                    .reuse_tokens = everything ? kv_tokens : 0},
        .prefill_chunk = everything ? 64 : 128,
        .prefill_share = 50,
        .max_queue = REQUESTS,
        .draft = draft,
        .lookup = everything,
        .draft_tokens = everything ? 6 : 0,
        .overlap = overlap,
        .id = "m",
        .idle = nothing,
        .lost = lost};
    struct runner *runner;
    core_ok(runner_create(model, &params, &runner, &error), &error);
    return runner;
}

static struct sh_grammar *make_grammar(const struct sh_vocab *vocab) {
    static const char text[] = "root ::= \"{\\\"\" [a-z]{2,6} \"\\\": \" [0-9]+ (\", \" [0-9]+){0,4} \"}\"";
    struct sh_grammar *grammar = NULL;
    core_ok(sh_grammar_create(vocab, SH_GRAMMAR_GBNF, text, strlen(text), &grammar, &error), &error);
    return grammar;
}

static struct sh_model *load(struct sh_device *device, const char *path) {
    const struct sh_model_params params = {.size = sizeof params, .path = path, .context_length = 256};
    struct sh_model *model;
    core_ok(sh_model_load(&device, 1, &params, &model, &error), &error);
    return model;
}

/* One model on one device: alone, then under every kind of load. */
static void test_subject(const struct subject *subject, const char *device_name, uint32_t n, uint32_t rounds) {
    struct sh_device *device = core_open_device(device_name);
    struct sh_model *model = load(device, subject->path), *twin = subject->recurrent ? NULL : load(device, subject->path);
    struct sh_grammar *grammar = make_grammar(sh_model_vocab(model));
    const bool slow = strncmp(device_name, "cpu", 3) != 0;
    struct sh_model_info info;
    sh_model_get_info(model, &info);
    struct request *requests = calloc(n, sizeof *requests);
    struct said *alone = calloc(n, sizeof *alone), *busy = calloc(n, sizeof *busy);
    assert_true(requests && alone && busy);
    struct gen_usage total = {0};
    for (uint32_t round = 0; round < rounds; round++) {
        struct test_rng rng = {seed * 1000 + round};
        for (uint32_t i = 0; i < n; i++) draw(&rng, &requests[i], i < n / 2, info.n_vocab, slow ? 60 : PROMPT_MAX - 1, grammar);
        struct runner *quiet = create(model, NULL, CHOICES, 3 * 256, false, false);
        for (uint32_t i = 0; i < n; i++) {
            struct gen_usage unused = {0};
            requests[i].params.no_reuse = true;
            requests[i].params.speculation = GEN_SPECULATION_OFF;
            run_all(quiet, &requests[i], 1, false, &alone[i], &unused);
            requests[i].params.no_reuse = one_in(&rng, 8);
            requests[i].params.speculation = one_in(&rng, 8) ? GEN_SPECULATION_OFF : GEN_SPECULATION_CONFIGURED;
        }
        runner_destroy(quiet);
        /* with room for all, with a cache that is too small, and those that grow with one that is much too small; each without and with a
         * draft model */
        static const uint32_t caches[] = {REQUESTS * 256, LEAST_CACHE, TINY_CACHE};
        for (uint32_t kind = slow && !parity_full() ? 3 : 0; kind < 2 * SH_COUNT(caches); kind++) {
            const uint32_t cache = caches[kind / 2], some = cache == TINY_CACHE ? n / 2 : n;
            struct runner *runner = create(model, kind % 2 ? twin : NULL, kind < 2 ? REQUESTS : 16, cache, true, slow || kind == 3);
            for (uint32_t again = 0; again < 2; again++) { /* the second time much of it is known */
                run_all(runner, requests, some, again == 0, busy, &total);
                for (uint32_t i = 0; i < some; i++) compare(&requests[i], &alone[i], &busy[i], i);
            }
            runner_destroy(runner);
        }
    }
    /* Otherwise nothing of this was tried. */
    assert_true(total.cached_tokens > 0);
    if (n == REQUESTS) assert_true(total.preemptions > 0);
    if (n == REQUESTS && !subject->recurrent) assert_true(total.accepted_tokens > 0);
    if (getenv("SHIMMY_TEST_LOG"))
        print_message("%s on %s: %u cached, %u guessed, %u right, %u preempted\n", subject->name, device_name, total.cached_tokens,
                      total.draft_tokens, total.accepted_tokens, total.preemptions);
    sh_grammar_unref(grammar);
    sh_model_unload(model);
    sh_model_unload(twin);
    sh_device_close(device);
    free(requests);
    free(alone);
    free(busy);
}

/* In the brief run of the CPU's tables the first and the last, and of other devices the model named first. */
static void on_all_devices(const struct subject *subject, bool brief) {
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    for (uint32_t d = 0; d < n; d++) {
        const bool cpu = strncmp(names[d], "cpu", 3) == 0, end = d == 0 || d + 1 == n || strncmp(names[d + 1], "cpu", 3) != 0;
        if (!parity_full() && (cpu ? !end : !brief)) continue;
        const bool all = parity_full() || (cpu && (d > 0 || n == 1));
        test_subject(subject, names[d], all ? REQUESTS : FEW, parity_full() && cpu ? 4 : 1);
    }
}

static void test_dense(void **state) {
    (void)state;
    const struct subject subject = {.name = "dense", .path = test_scratch("dense.gguf")};
    write_model(subject.path, 0, 11);
    on_all_devices(&subject, true);
}

static void test_experts(void **state) {
    (void)state;
    const struct subject subject = {.name = "experts", .path = test_scratch("experts.gguf")};
    write_model(subject.path, 4, 12);
    on_all_devices(&subject, false);
}

static void test_windowed(void **state) {
    (void)state;
    const struct subject subject = {.name = "windowed", .path = test_scratch("windowed.gguf")};
    write_windowed(subject.path);
    on_all_devices(&subject, false);
}

static void test_recurrent(void **state) {
    (void)state;
    const struct subject subject = {.name = "recurrent", .path = TEST_SHARED("parity/lfm2-Q8_0.gguf"), .recurrent = true};
    on_all_devices(&subject, false);
}

int main(void) {
    log_set_level(getenv("SHIMMY_TEST_LOG") ? SH_LOG_DEBUG : (enum sh_log_level)0);
    if (getenv("SHIMMY_TEST_SEED")) seed = strtoull(getenv("SHIMMY_TEST_SEED"), NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_windowed),
        cmocka_unit_test(test_recurrent),
    };
    return cmocka_run_group_tests_name("daemon_determinism", tests, NULL, NULL);
}
