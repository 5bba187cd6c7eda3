/*
 * test_daemon_speculate.c - guesses verified against a model: the tokens are those of sampling one by one, whatever the sampler and whoever
 * guesses; a draft model that is the model itself is right every time at any temperature; what does not fit is refused; what fails costs
 * guesses alone.
 */
#include "daemon/draft_model.h"
#include "daemon/speculate.h"

#include "compute/base.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

enum { TEXTS = 3, LENGTH = 80, MOST = 8, N_PROMPT = 40 };

static struct sh_error error;
static struct core_model target, twin, stranger;
static const struct sh_context_params context_params = {
    .size = sizeof context_params, .max_sequences = 8, .max_batch_rows = 128, .max_outputs = 128, .kv_tokens = 8 * 256};
static int32_t prompts[TEXTS][N_PROMPT];

static void write_model(const char *path, uint64_t seed, uint32_t vocab) {
    struct genmodel_params p = genmodel_defaults();
    p.layers = 1;
    p.embd = 64;
    p.heads = 2;
    p.kv_heads = 1;
    p.head_dim = 32;
    p.ff = 64;
    p.vocab = vocab;
    p.type = "F32";
    p.seed = seed;
    core_ok(genmodel_write(path, &p, &error), &error);
}

static void load(struct core_model *m, const char *file, uint64_t seed, uint32_t vocab) {
    char path[300];
    snprintf(path, sizeof path, "/tmp/shimmy-speculate-%d-%s.gguf", (int)getpid(), file);
    write_model(path, seed, vocab);
    core_load(m, "cpu", path, &context_params);
    unlink(path);
}

static int begin(void **state) {
    (void)state;
    load(&target, "target", 5, 300);
    load(&twin, "twin", 5, 300);
    load(&stranger, "stranger", 6, 300);
    struct test_rng rng = {3};
    for (uint32_t t = 0; t < TEXTS; t++)
        for (uint32_t i = 0; i < N_PROMPT; i++)
            prompts[t][i] = i < 24 ? (int32_t)(3 + test_random(&rng) % 290) : prompts[t][i - 24]; /* it repeats itself */
    return 0;
}

static int end(void **state) {
    (void)state;
    core_unload(&target);
    core_unload(&twin);
    core_unload(&stranger);
    return 0;
}

/* ---- one by one ---- */

static void sample_plainly(const struct sh_sampler_params *sampler, uint32_t text, int32_t *out) {
    const uint32_t sequence = core_sequence(&target);
    core_ok(sh_sequence_set_sampler(target.context, sequence, sampler, &error), &error);
    core_prefill(&target, sequence, prompts[text], N_PROMPT - 1, 0, NULL, NULL);
    int32_t token = prompts[text][N_PROMPT - 1];
    for (uint32_t i = 0; i < LENGTH; i++)
        out[i] = token = core_step(&target, sequence, token, i == 0 ? SH_ROLE_PROMPT : SH_ROLE_GENERATED, NULL);
    sh_sequence_destroy(target.context, sequence);
}

/* ---- with guesses ---- */

struct text {
    uint32_t sequence, at, n_tokens; /* at: rows submitted */
    int32_t tokens[N_PROMPT + LENGTH];
    struct speculation *s;
    struct speculate_ask ask;
};
struct tally {
    uint64_t steps, guessed, right;
};

static void begin_text(struct text *t, struct speculator *sp, const struct sh_sampler_params *sampler, uint32_t index) {
    *t = (struct text){.sequence = core_sequence(&target), .at = N_PROMPT - 1, .n_tokens = N_PROMPT};
    memcpy(t->tokens, prompts[index], sizeof prompts[index]);
    core_ok(sh_sequence_set_sampler(target.context, t->sequence, sampler, &error), &error);
    core_prefill(&target, t->sequence, prompts[index], N_PROMPT - 1, 0, NULL, NULL);
    const struct gen_params params = {.prompt = prompts[index], .n_prompt = N_PROMPT, .n_choices = 1};
    t->s = speculation_create(sp, &params, sampler);
}

static void add_rows(struct text *t, struct sh_row *rows, uint32_t *n) {
    for (uint32_t i = 0; i <= t->ask.n_guess; i++)
        rows[(*n)++] = (struct sh_row){.sequence = t->sequence,
                                       .input = SH_INPUT_TOKEN,
                                       .role = t->at + i < N_PROMPT ? SH_ROLE_PROMPT : SH_ROLE_GENERATED,
                                       .token = i == 0 ? t->tokens[t->at] : t->ask.guess[i - 1],
                                       .position = t->at + i,
                                       .outputs = SH_OUT_SAMPLE};
}

static void take(struct text *t, const struct sh_result *items, struct tally *tally) {
    uint32_t right = 0;
    for (uint32_t i = 0; i <= t->ask.n_guess; i++) {
        const int32_t token = items[i].token;
        assert_true(token >= 0 && items[i].sequence == t->sequence);
        t->tokens[t->n_tokens++] = token;
        speculation_token(t->s, token);
        if (i == t->ask.n_guess || token != t->ask.guess[i]) break;
        right++;
    }
    tally->guessed += t->ask.n_guess;
    tally->right += right;
    speculation_verified(t->s, right, false);
    t->at = t->n_tokens - 1;
    core_ok(sh_sequence_truncate(target.context, t->sequence, t->at, &error), &error);
}

/* Runs all texts together to their ends and compares each with itself alone. */
static struct tally speculate(struct speculator *sp, const struct sh_sampler_params *sampler, bool suspend) {
    static int32_t plain[LENGTH];
    static struct text texts[TEXTS];
    struct tally tally = {0};
    for (uint32_t t = 0; t < TEXTS; t++) {
        struct sh_sampler_params own = *sampler;
        own.choice = t;
        begin_text(&texts[t], sp, &own, t);
    }
    for (;;) {
        struct sh_row rows[TEXTS * (MOST + 1)];
        struct speculate_ask asks[TEXTS];
        struct text *whose[TEXTS];
        uint32_t n = 0, n_asks = 0;
        for (uint32_t t = 0; t < TEXTS; t++) {
            const uint32_t left = N_PROMPT + LENGTH - texts[t].n_tokens;
            if (left == 0) continue;
            whose[n_asks] = &texts[t];
            asks[n_asks++] = (struct speculate_ask){.s = texts[t].s, .most = left - 1};
        }
        if (n_asks == 0) break;
        speculator_guess(sp, n_asks, n_asks, SH_COUNT(rows) - n_asks, asks, n_asks);
        for (uint32_t i = 0; i < n_asks; i++) {
            assert_true(asks[i].n_guess <= asks[i].most && asks[i].n_guess <= MOST);
            whose[i]->ask = asks[i];
            add_rows(whose[i], rows, &n);
        }
        sh_ticket ticket;
        struct sh_results results;
        core_ok(sh_submit(target.context, &(struct sh_batch){rows, n}, &ticket, &error), &error);
        core_ok(sh_wait(target.context, ticket, -1, &results, &error), &error);
        assert_int_equal(results.count, n);
        for (uint32_t i = 0, at = 0; i < n_asks; i++) {
            take(whose[i], results.items + at, &tally);
            at += 1 + asks[i].n_guess;
        }
        if (suspend && tally.steps % 7 == 0) speculation_suspend(texts[tally.steps % TEXTS].s);
        tally.steps++;
    }
    for (uint32_t t = 0; t < TEXTS; t++) {
        struct sh_sampler_params own = *sampler;
        own.choice = t;
        sample_plainly(&own, t, plain);
        assert_memory_equal(texts[t].tokens + N_PROMPT, plain, sizeof plain);
        speculation_destroy(texts[t].s);
        sh_sequence_destroy(target.context, texts[t].sequence);
    }
    return tally;
}

/* A speculator for which rows cost next to nothing, so that it always guesses. */
static struct speculator *create(struct sh_model *draft, bool lookup) {
    const struct speculator_params params = {
        .model = target.model, .context = &context_params, .draft = draft, .lookup = lookup, .draft_tokens = MOST, .id = "m"};
    struct speculator *sp;
    core_ok(speculator_create(&params, &sp, &error), &error);
    assert_non_null(sp);
    for (uint32_t rows = 1; rows < 100; rows++) speculator_step(sp, rows, false, 1000000000 + rows);
    return sp;
}

static const int32_t bad_tokens[] = {20, 21, 30}, ends[] = {2, 40, 41}, breakers[] = {50, 51};
static const uint32_t bad_lengths[] = {1, 2}, breaker_lengths[] = {1, 1};
static const struct sh_logit_bias biases[] = {{60, 2}, {61, -INFINITY}};
static const struct sh_sampler_params samplers[] = {
    {.temperature = 0},
    {.temperature = 1, .seed = 7},
    {.temperature = 0.4f, .seed = 8, .top_k = 20, .top_p = 0.9f, .min_p = 0.02f},
    {.temperature = 1.5f, .seed = 9, .repeat_penalty = 1.3f, .repeat_last_n = 16, .frequency_penalty = 0.3f, .presence_penalty = 0.2f},
    {.temperature = 0, .repeat_penalty = 1.1f, .presence_penalty = 0.5f},
    {.temperature = 0.8f, .seed = 10, .dry_multiplier = 2, .dry_breakers = {breakers, breaker_lengths, 2}},
    {.temperature = 1, .seed = 11, .mirostat = 2, .mirostat_tau = 3, .mirostat_eta = 0.2f},
    {.temperature = 1, .seed = 12, .min_tokens = 50, .end_tokens = ends, .n_end_tokens = 3, .bad_words = {bad_tokens, bad_lengths, 2}},
    {.temperature = 1, .seed = 13, .bias = biases, .n_bias = 2, .typical_p = 0.8f, .top_n_sigma = 2},
    {.temperature = 0.7f, .seed = 14, .xtc_probability = 0.5f, .xtc_threshold = 0.05f},
};

static void test_same_tokens(void **state) {
    (void)state;
    struct tally lookups = {0};
    for (uint32_t i = 0; i < SH_COUNT(samplers); i++) {
        struct sh_sampler_params sampler = samplers[i];
        sampler.size = sizeof sampler;
        struct speculator *sp = create(NULL, true);
        const struct tally lookup = speculate(sp, &sampler, false);
        lookups.guessed += lookup.guessed;
        lookups.right += lookup.right;
        speculator_destroy(sp);
        sp = create(stranger.model, i % 2 == 0); /* mostly wrong */
        const struct tally wrong = speculate(sp, &sampler, true);
        assert_true(wrong.guessed > 0 && wrong.right < wrong.guessed);
        speculator_destroy(sp);
    }
    assert_true(lookups.right > 20 && lookups.right < lookups.guessed);
}

/* The same weights, the same noise: every guess is right, and three or more tokens come out of a step. What mirostat aims at is not known to the
 * one who guesses, who never drew. */
static void test_twin(void **state) {
    (void)state;
    for (uint32_t i = 0; i < SH_COUNT(samplers); i++) {
        struct sh_sampler_params sampler = samplers[i];
        sampler.size = sizeof sampler;
        struct speculator *sp = create(twin.model, false);
        const struct tally tally = speculate(sp, &sampler, false);
        if (sampler.mirostat == 0) assert_int_equal(tally.right, tally.guessed);
        else assert_true(tally.right > 0);
        if (sampler.mirostat == 0) assert_true(tally.steps * 3 < LENGTH);
        speculator_destroy(sp);
    }
}

/* Where a row more is a token's time more nothing is guessed, but for a try now and then. */
static void test_off_where_it_does_not_pay(void **state) {
    (void)state;
    struct sh_sampler_params sampler = {.size = sizeof sampler, .temperature = 2, .seed = 3};
    const struct speculator_params params = {
        .model = target.model, .context = &context_params, .draft = stranger.model, .lookup = true, .draft_tokens = MOST, .id = "m"};
    struct speculator *sp;
    core_ok(speculator_create(&params, &sp, &error), &error);
    for (uint32_t rows = 1; rows < 100; rows++) speculator_step(sp, rows, false, 1000000000ull * rows);
    const struct tally tally = speculate(sp, &sampler, false);
    assert_int_equal(tally.guessed, 0);
    assert_int_equal(tally.steps, LENGTH);
    speculator_destroy(sp);
}

static void test_who_may_draft(void **state) {
    (void)state;
    core_ok(draft_model_check(target.model, stranger.model, &error), &error);
    struct core_model other;
    load(&other, "larger", 5, 2000);
    assert_int_equal(draft_model_check(target.model, other.model, &error), SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "2000"));
    assert_non_null(strstr(error.message, "300"));
    const struct speculator_params params = {
        .model = target.model, .context = &context_params, .draft = other.model, .draft_tokens = 4, .id = "m"};
    struct speculator *sp;
    assert_int_equal(speculator_create(&params, &sp, &error), SH_ERR_INVALID);
    core_unload(&other);

    /* Some tokens more, or fewer: padding. Those are never proposed, and a text that has one goes without guesses. */
    load(&other, "padded", 5, 310);
    core_ok(draft_model_check(target.model, other.model, &error), &error);
    core_ok(draft_model_check(other.model, target.model, &error), &error);
    sp = create(other.model, false);
    struct sh_sampler_params sampler = {.size = sizeof sampler, .temperature = 3, .seed = 3};
    speculate(sp, &sampler, false);
    speculator_destroy(sp);
    core_unload(&other);

    /* Nothing to guess with, nothing wanted. */
    const struct speculator_params none = {.model = target.model, .context = &context_params, .draft_tokens = 4, .id = "m"};
    core_ok(speculator_create(&none, &sp, &error), &error);
    assert_null(sp);
    sp = create(NULL, true);
    struct gen_params request = {.prompt = prompts[0], .n_prompt = N_PROMPT, .n_choices = 1, .speculation = GEN_SPECULATION_OFF};
    assert_null(speculation_create(sp, &request, &sampler));
    speculation_token(NULL, 3);
    speculation_suspend(NULL);
    assert_false(speculation_promising(NULL));
    speculation_destroy(NULL);
    speculator_destroy(sp);
}

/* The draft's context is too small for its texts: the answers are the same. */
static void test_draft_without_room(void **state) {
    (void)state;
    struct sh_context_params small = context_params;
    small.kv_tokens = 64;
    small.max_sequences = 2;
    const struct speculator_params params = {
        .model = target.model, .context = &small, .draft = twin.model, .draft_tokens = MOST, .id = "m"};
    struct speculator *sp;
    core_ok(speculator_create(&params, &sp, &error), &error);
    for (uint32_t rows = 1; rows < 100; rows++) speculator_step(sp, rows, false, 1000000000 + rows);
    struct sh_sampler_params sampler = {.size = sizeof sampler, .temperature = 1, .seed = 3};
    speculate(sp, &sampler, false);
    speculator_destroy(sp);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_tokens), cmocka_unit_test(test_twin),
        cmocka_unit_test(test_off_where_it_does_not_pay), cmocka_unit_test(test_who_may_draft),
        cmocka_unit_test(test_draft_without_room),
    };
    return cmocka_run_group_tests_name("daemon_speculate", tests, begin, end);
}
