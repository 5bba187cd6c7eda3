/* Masks: the sampler with one against a vocabulary that has the mask's tokens alone, and rows with masks on every executor: in one batch
 * with others, overlapped, over two segments. */
#include "compute/sample/sample.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/guarded.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

/* ---- the sampler ---- */

enum { N = 75, WORDS = (N + 31) / 32 };

static int32_t pick(const struct sh_sampler_params *params, const float *logits, const uint32_t *mask,
                    const struct sh_token_history *history, uint32_t position) {
    struct sh_sampler *s = NULL;
    int32_t token = -2;
    struct sh_sampler_params p = *params;
    p.size = sizeof p;
    core_ok(sh_sampler_create(&p, N, &s, &error), &error);
    core_ok(sh_sampler_pick(s, logits, mask, history, position, &token, &error), &error);
    sh_sampler_destroy(s);
    return token;
}

/* `most` tokens at random (all for N); bits beyond the vocabulary are set. */
static void random_mask(uint32_t *mask, uint32_t n_vocab, uint32_t most, struct test_rng *rng) {
    const uint32_t words = sh_mask_words(n_vocab);
    memset(mask, most >= n_vocab ? 0xff : 0, words * 4);
    for (uint32_t i = 0; i < most && most < n_vocab; i++) {
        const uint32_t t = (uint32_t)(test_random(rng) % n_vocab);
        mask[t / 32] |= 1u << t % 32;
    }
    if (n_vocab % 32 != 0) mask[words - 1] |= ~0u << n_vocab % 32;
}

static void counts(void **state) {
    (void)state;
    uint32_t mask[3] = {0, 0, 0};
    assert_int_equal(sh_mask_words(1), 1);
    assert_int_equal(sh_mask_words(32), 1);
    assert_int_equal(sh_mask_words(33), 2);
    assert_int_equal(sh_mask_words(UINT32_MAX), 1u << 27);
    assert_int_equal(sh_mask_count(mask, 75), 0);
    mask[2] = ~0u << 11; /* 75 and beyond */
    assert_int_equal(sh_mask_count(mask, 75), 0);
    assert_int_equal(sh_mask_count(mask, 76), 1);
    assert_int_equal(sh_mask_count(mask, 96), 2);
    mask[0] = 1u << 31;
    assert_int_equal(sh_mask_count(mask, 75), 1);
    assert_true(sh_mask_has(mask, 31) && !sh_mask_has(mask, 30));
    mask[1] = 1;
    assert_int_equal(sh_mask_count(mask, 75), 2);
    mask[1] = 0, mask[0] = 3;
    assert_int_equal(sh_mask_count(mask, 32), 2);
}

static const int32_t forbidden[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const uint32_t ones[] = {1, 1, 1, 1, 1, 1};
static const struct sh_logit_bias bias[] = {{13, -INFINITY}, {14, -INFINITY}, {15, 4}, {16, -2}};

static const struct sh_sampler_params settings[] = {
    {.temperature = 0},
    {.temperature = 1},
    {.temperature = 0.7f, .top_k = 3},
    {.temperature = 1, .top_k = 60, .top_p = 0.9f},
    {.temperature = 1, .min_p = 0.2f, .top_p = 0.5f},
    {.temperature = 2, .typical_p = 0.5f, .top_n_sigma = 1},
    {.temperature = 1, .xtc_probability = 1, .xtc_threshold = 0.05f},
    {.temperature = 1, .mirostat = 2, .mirostat_tau = 2},
    {.temperature = 1, .bias = bias, .n_bias = SH_COUNT(bias), .repeat_penalty = 1.3f, .frequency_penalty = 0.5f},
    {.temperature = 0, .bias = bias, .n_bias = SH_COUNT(bias), .presence_penalty = 3, .dry_multiplier = 2},
    {.temperature = 1, .top_k = 5, .min_tokens = 1000, .end_tokens = forbidden, .n_end_tokens = SH_COUNT(forbidden)},
    {.temperature = 0, .bad_words = {.tokens = forbidden, .lengths = ones, .count = SH_COUNT(ones)}},
};

/* The logits that a vocabulary of the mask's tokens alone would have. */
static void cut(const float *logits, const uint32_t *mask, float *out) {
    for (uint32_t t = 0; t < N; t++) out[t] = sh_mask_has(mask, t) ? logits[t] : -INFINITY;
}

static void only_the_masks_tokens(void **state) {
    (void)state;
    struct test_rng rng = {31};
    int32_t tokens[40];
    uint8_t roles[40];
    uint32_t outside = 0, fell_back = 0, ends = 0;
    for (uint32_t round = 0; round < 200; round++) {
        float logits[N], alone[N];
        uint32_t *mask = test_guarded(WORDS * 4);
        static const uint32_t most[] = {1, 2, 5, 40, N};
        for (int t = 0; t < N; t++) logits[t] = 2 * test_normal(&rng);
        if (round % 3 == 0)
            for (int t = 0; t < N; t += 7) logits[t] = NAN;
        random_mask(mask, N, most[round % SH_COUNT(most)], &rng);
        if (round % 3 == 0) mask[1] |= 1u << 1; /* 33: a number */
        if (round % 4 == 1) memset(mask, 0, WORDS * 4), mask[0] = 3u << (1 + round % 13); /* two of those that are forbidden below */
        for (int i = 0; i < 40; i++) {
            tokens[i] = (int32_t)(test_random(&rng) % N);
            roles[i] = i < 20 ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
        }
        const struct sh_token_history history = {.tokens = tokens, .roles = roles, .count = 40};
        cut(logits, mask, alone);
        for (size_t k = 0; k < SH_COUNT(settings); k++) {
            const int32_t token = pick(&settings[k], logits, mask, &history, 40);
            assert_in_range(token, 0, N - 1);
            assert_true(sh_mask_has(mask, (uint32_t)token));
            assert_false(isnan(logits[token]));
            bool banned = true; /* does what was forbidden leave nothing of the mask? */
            for (uint32_t t = 0; t < N && banned; t++) {
                const bool by_list = (settings[k].n_end_tokens > 0 && t >= 1 && t <= SH_COUNT(forbidden)) ||
                                     (settings[k].bad_words.count > 0 && t >= 1 && t <= SH_COUNT(ones));
                const bool by_bias = settings[k].n_bias > 0 && (t == 13 || t == 14);
                banned = !sh_mask_has(mask, t) || isnan(logits[t]) || by_list || by_bias;
            }
            const struct sh_sampler_params plain = {.temperature = settings[k].temperature, .top_k = settings[k].top_k};
            assert_int_equal(token, pick(banned ? &plain : &settings[k], alone, NULL, &history, 40));
            outside += token != pick(&settings[k], logits, NULL, &history, 40);
            fell_back += banned;
            ends += token >= 1 && token <= 12 && settings[k].n_end_tokens > 0;
        }
        test_release(mask, WORDS * 4);
    }
    assert_true(outside > 500 && fell_back > 10 && ends > 0); /* the cases were there */
}

/* Logits at their ends, as greedy and drawn choices see them. */
static void at_the_ends(void **state) {
    (void)state;
    float logits[N];
    const struct sh_token_history none = {0};
    const uint32_t mask[WORDS] = {1u << 3 | 1u << 9, 1u << 1, ~0u << 11};
    for (size_t k = 0; k < SH_COUNT(settings); k++) {
        for (int t = 0; t < N; t++) logits[t] = (float)t;
        logits[3] = logits[9] = logits[33] = -INFINITY;
        assert_int_equal(pick(&settings[k], logits, mask, &none, 0), 3); /* the lowest of equals, not token 0 */
        logits[3] = NAN;
        assert_int_equal(pick(&settings[k], logits, mask, &none, 0), 9);
        logits[33] = -1e30f;
        assert_int_equal(pick(&settings[k], logits, mask, &none, 0), 33);
        logits[0] = logits[33] = INFINITY;
        assert_int_equal(pick(&settings[k], logits, mask, &none, 0), 33);
        logits[9] = logits[33] = NAN;
        struct sh_sampler_params p = settings[k];
        struct sh_sampler *s = NULL;
        int32_t token;
        p.size = sizeof p;
        core_ok(sh_sampler_create(&p, N, &s, &error), &error);
        assert_int_equal(sh_sampler_pick(s, logits, mask, &none, 0, &token, &error), SH_ERR_DEVICE);
        logits[9] = 0; /* it is as good as before */
        core_ok(sh_sampler_pick(s, logits, mask, &none, 0, &token, &error), &error);
        assert_int_equal(token, 9);
        sh_sampler_destroy(s);
    }
}

/* A token that was the only possible one leaves mirostat where it was, as one that was not drawn at all does. */
static void mirostat_learns_from_choices(void **state) {
    (void)state;
    struct test_rng rng = {8};
    const struct sh_sampler_params p = {.size = sizeof p, .temperature = 1.5f, .mirostat = 2, .mirostat_tau = 1, .mirostat_eta = 0.9f};
    struct sh_sampler *drawn = NULL, *written = NULL;
    core_ok(sh_sampler_create(&p, N, &drawn, &error), &error);
    core_ok(sh_sampler_create(&p, N, &written, &error), &error);
    int32_t tokens[120];
    uint8_t roles[120] = {0};
    struct sh_token_history history = {.tokens = tokens, .roles = roles};
    for (uint32_t i = 0; i < 120; i++) {
        float logits[N];
        int32_t other;
        uint32_t mask[WORDS] = {0};
        for (int t = 0; t < N; t++) logits[t] = 2 * test_normal(&rng);
        history.count = i;
        const uint32_t only = (uint32_t)(test_random(&rng) % N);
        mask[only / 32] |= 1u << only % 32;
        core_ok(sh_sampler_pick(drawn, logits, i % 3 == 1 ? mask : NULL, &history, i, &tokens[i], &error), &error);
        if (i % 3 == 1) {
            assert_int_equal(tokens[i], only);
        } else {
            core_ok(sh_sampler_pick(written, logits, NULL, &history, i, &other, &error), &error);
            assert_int_equal(tokens[i], other);
        }
    }
    sh_sampler_destroy(drawn);
    sh_sampler_destroy(written);
}

/* ---- rows ---- */

enum { VOCAB = 517, MASK_WORDS = (VOCAB + 31) / 32, STREAMS = 7, STEPS = 14 };
static char model_path[256];

static int write_model(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.vocab = VOCAB;
    p.layers = 3;
    snprintf(model_path, sizeof model_path, "%s", test_scratch("mask.gguf"));
    core_ok(genmodel_write(model_path, &p, &error), &error);
    return 0;
}

/* Greedy and drawn, on a device and on the host. */
static struct sh_sampler_params sampler_of(uint32_t stream) {
    static const struct sh_sampler_params kinds[] = {
        {.size = sizeof kinds[0]},
        {.size = sizeof kinds[0], .temperature = 0.9f, .seed = 7, .choice = 2},
        {.size = sizeof kinds[0], .temperature = 1.4f, .seed = 3},
        {.size = sizeof kinds[0], .temperature = 1, .seed = 5, .top_k = 20, .repeat_penalty = 1.2f},
        {.size = sizeof kinds[0], .temperature = 0.8f, .seed = 11, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f},
    };
    return kinds[stream % SH_COUNT(kinds)];
}

/* The mask of a stream's row at a step; false: it has none there. The last stream never has one. */
static bool mask_of(uint32_t stream, uint32_t step, uint32_t mask[MASK_WORDS]) {
    struct test_rng rng = {1000 + stream * 100 + step};
    static const uint32_t most[] = {3, 1, 300, VOCAB, 40};
    if (stream == STREAMS - 1 || (stream + step) % 4 == 3) return false;
    random_mask(mask, VOCAB, most[(stream + 2 * step) % SH_COUNT(most)], &rng);
    if ((stream + step) % 4 == 1) { /* all but one, which the plain draw would take as likely as any */
        memset(mask, 0xff, MASK_WORDS * 4);
        mask[(stream * 5 + step) % MASK_WORDS] &= ~(1u << step);
    }
    return true;
}

/* Every step is submitted before the last is waited for, where `overlap`; masks are overwritten as soon as they are submitted. */
static void decode(struct core_model *m, const uint32_t *streams, uint32_t n, bool overlap, int32_t tokens[STEPS][STREAMS],
                   float *logits) {
    uint32_t sequences[STREAMS];
    sh_ticket last = 0;
    uint32_t suited = 0, on_device = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct sh_sampler_params params = sampler_of(streams[i]);
        sequences[i] = core_sequence(m);
        core_ok(sh_sequence_set_sampler(m->context, sequences[i], &params, &error), &error);
        suited += params.repeat_penalty == 0;
        on_device += sh_sequence_samples_on_device(m->context, sequences[i]);
    }
    assert_true(on_device == 0 || on_device == suited);
    for (uint32_t step = 0; step <= STEPS; step++) {
        struct sh_row rows[STREAMS];
        uint32_t *masks[STREAMS];
        sh_ticket ticket = 0;
        for (uint32_t i = 0; i < n; i++) {
            masks[i] = test_guarded(MASK_WORDS * 4);
            const bool has = mask_of(streams[i], step, masks[i]);
            rows[i] = (struct sh_row){.sequence = sequences[i],
                                      .input = step == 0 ? SH_INPUT_TOKEN : SH_INPUT_SAMPLED,
                                      .role = step == 0 ? SH_ROLE_PROMPT : SH_ROLE_GENERATED,
                                      .token = (int32_t)(3 + streams[i]),
                                      .ticket = last,
                                      .sampled_row = i,
                                      .position = step,
                                      .outputs = SH_OUT_SAMPLE | SH_OUT_LOGITS,
                                      .mask = has ? masks[i] : NULL};
        }
        for (int turn = 0; turn < 2; turn++) { /* submit this one and wait for the last, or the other way round */
            if ((turn == 0) == overlap && step < STEPS)
                core_ok(sh_submit(m->context, &(struct sh_batch){rows, n}, &ticket, &error), &error);
            if ((turn == 0) == overlap) {
                for (uint32_t i = 0; i < n; i++) memset(masks[i], 0, MASK_WORDS * 4);
            } else if (step > 0) {
                struct sh_results results;
                core_ok(sh_wait(m->context, last, -1, &results, &error), &error);
                assert_int_equal(results.count, n);
                for (uint32_t i = 0; i < n; i++) {
                    tokens[step - 1][streams[i]] = results.items[i].token;
                    memcpy(logits + ((size_t)(step - 1) * STREAMS + streams[i]) * VOCAB, results.items[i].logits, VOCAB * sizeof *logits);
                }
            }
        }
        for (uint32_t i = 0; i < n; i++) test_release(masks[i], MASK_WORDS * 4);
        last = ticket;
    }
    for (uint32_t i = 0; i < n; i++) sh_sequence_destroy(m->context, sequences[i]);
}

/* Each token is the host sampler's from the same logits, history and mask. */
static void check_tokens(const int32_t tokens[STEPS][STREAMS], const float *logits) {
    uint32_t changed = 0;
    for (uint32_t stream = 0; stream < STREAMS; stream++) {
        const struct sh_sampler_params params = sampler_of(stream);
        struct sh_sampler *sampler = NULL;
        core_ok(sh_sampler_create(&params, VOCAB, &sampler, &error), &error);
        int32_t history[STEPS + 1] = {(int32_t)(3 + stream)};
        uint8_t roles[STEPS + 1] = {SH_ROLE_PROMPT};
        for (uint32_t step = 0; step < STEPS; step++) {
            uint32_t mask[MASK_WORDS];
            const bool has = mask_of(stream, step, mask);
            const float *row = logits + ((size_t)step * STREAMS + stream) * VOCAB;
            const struct sh_token_history before = {.tokens = history, .roles = roles, .count = step + 1};
            int32_t want, free_choice;
            core_ok(sh_sampler_pick(sampler, row, has ? mask : NULL, &before, step + 1, &want, &error), &error);
            core_ok(sh_sampler_pick(sampler, row, NULL, &before, step + 1, &free_choice, &error), &error);
            assert_int_equal(tokens[step][stream], want);
            changed += want != free_choice;
            history[step + 1] = want;
            roles[step + 1] = SH_ROLE_GENERATED;
        }
        sh_sampler_destroy(sampler);
    }
    assert_true(changed > STREAMS * STEPS / 4);
}

static void rows_with_and_without(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names), all[STREAMS] = {0, 1, 2, 3, 4, 5, 6};
    float *logits = calloc((size_t)STEPS * STREAMS * VOCAB, sizeof *logits), *found = calloc((size_t)STEPS * STREAMS * VOCAB, sizeof *found);
    assert_true(logits != NULL && found != NULL);
    for (uint32_t d = 0; d < n_devices; d++) {
        struct core_model m;
        int32_t together[STEPS][STREAMS], alone[STEPS][STREAMS];
        core_load(&m, names[d], model_path, NULL);
        assert_int_equal(m.n_vocab, VOCAB);
        decode(&m, all, STREAMS, true, together, logits);
        check_tokens(together, logits);
        decode(&m, all, STREAMS, false, alone, found);
        assert_memory_equal(together, alone, sizeof alone);
        for (uint32_t i = 0; i < STREAMS; i++) decode(&m, &all[i], 1, i % 2 != 0, alone, found);
        assert_memory_equal(together, alone, sizeof alone);
        core_unload(&m);

        char two[128];
        snprintf(two, sizeof two, "%s+%s", names[d], names[d]);
        core_load_split(&m, two, model_path, NULL);
        decode(&m, all, STREAMS, true, alone, found);
        assert_memory_equal(together, alone, sizeof alone);
        core_unload(&m);
    }
    free(logits);
    free(found);
}

/* Log-probs are those of the raw distribution, of a token that the mask forced as of others. */
static void logprobs_know_no_mask(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++) {
        struct core_model m;
        core_load(&m, names[d], model_path, NULL);
        uint32_t mask[MASK_WORDS] = {0};
        mask[MASK_WORDS - 1] = ~0u << (VOCAB - 1) % 32; /* the last token, and bits that count for nothing */
        const struct sh_row row = {.sequence = core_sequence(&m),
                                   .token = 9,
                                   .outputs = SH_OUT_SAMPLE | SH_OUT_LOGITS | SH_OUT_LOGPROBS,
                                   .n_top = 3,
                                   .mask = mask};
        sh_ticket ticket;
        struct sh_results results;
        core_ok(sh_submit(m.context, &(struct sh_batch){&row, 1}, &ticket, &error), &error);
        core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
        struct sh_top top[3];
        float logprob;
        assert_int_equal(results.items[0].token, VOCAB - 1);
        sh_logprobs(results.items[0].logits, VOCAB, VOCAB - 1, &logprob, top, 3);
        assert_memory_equal(&results.items[0].logprob, &logprob, sizeof logprob);
        assert_memory_equal(results.items[0].top, top, sizeof top);
        core_unload(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts),
        cmocka_unit_test(only_the_masks_tokens),
        cmocka_unit_test(at_the_ends),
        cmocka_unit_test(mirostat_learns_from_choices),
        cmocka_unit_test(rows_with_and_without),
        cmocka_unit_test(logprobs_know_no_mask),
    };
    return cmocka_run_group_tests_name("core_mask", tests, write_model, NULL);
}
