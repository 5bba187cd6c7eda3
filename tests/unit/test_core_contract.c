/*
 * The numerics contract: for one device and model, logits are the same bits whether a sequence runs alone or among others, whole
 * or in chunks, on a shared prefix or on its own, from the host's token or the device's, in one segment or in two.
 *
 * Runs on small generated models, on every device of $SHIMMY_TEST_DEVICES; with SHIMMY_TEST_FULL=1 also on two layers of real
 * dimensions (2048/5632, 32/4 heads, vocabulary 128k, context 8k), where kernels take other tiles and work is cut otherwise. Not on the
 * reference executor, whose kernels have one way for all sizes; half of those layers run there all the same, in two segments.
 */
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- the models ---- */

struct subject { /* a model file, and how long the sequences on it are */
    char path[256];
    enum sh_kv_type kv;
    uint32_t n; /* tokens of a sequence; they end in their third page */
    bool real;  /* real dimensions: logits of a few rows only */
    bool few;   /* a subset of the variants: where each costs much, */
    bool fewest; /* and of the sequences */
};
enum { MAX_SUBJECTS = 8 };
static struct subject subjects[MAX_SUBJECTS];
static uint32_t n_subjects;
static double spent[CORE_MAX_DEVICES][MAX_SUBJECTS]; /* seconds of a core */

/* Rows at a page's ends. */
static bool observe_few(uint32_t position) { return position % 32 == 0 || position % 32 == 31 || position == 69; }

static void add_subject(const char *name, struct genmodel_params params, enum sh_kv_type kv, uint32_t n) {
    struct sh_error err = {0};
    struct subject *s = &subjects[n_subjects++];
    assert_true(n_subjects <= MAX_SUBJECTS);
    snprintf(s->path, sizeof s->path, "%s", test_scratch(name));
    s->kv = kv;
    s->n = n;
    s->real = params.vocab >= 100000;
    core_ok(genmodel_write(s->path, &params, &err), &err);
}

static bool full_run(void) {
    const char *full = getenv("SHIMMY_TEST_FULL");
    return full != NULL && full[0] == '1';
}

static int write_models(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "Q4_K_M";
    add_subject("k.gguf", p, SH_KV_F16, 70);
    /* odd everywhere: three query heads for each of two, biases, head size other than embd / heads, tied */
    p = genmodel_defaults();
    p.type = "Q8_0";
    p.heads = 6;
    p.kv_heads = 2;
    p.head_dim = 48;
    p.embd = 160;
    p.ff = 352;
    p.vocab = 523;
    p.layers = 3;
    p.bias = p.tied = true;
    add_subject("odd.gguf", p, SH_KV_F32, 70);
    p = genmodel_defaults();
    p.type = "F16";
    p.kv_heads = 4;
    p.rope_freqs = true;
    add_subject("half.gguf", p, SH_KV_F16, 70);
    p.type = "Q4_0";
    p.kv_heads = 1;
    add_subject("four.gguf", p, SH_KV_F32, 70);
    if (full_run()) {
        p = genmodel_defaults();
        p.layers = 2;
        p.embd = 2048;
        p.ff = 5632;
        p.heads = 32;
        p.kv_heads = 4;
        p.head_dim = 64;
        p.vocab = 128000;
        p.context = 8192;
        p.vocab_kind = GENMODEL_BPE;
        p.type = "Q4_K_M";
        add_subject("real.gguf", p, SH_KV_F16, 70);
    }
    return 0;
}

/* Runs a test for every device and model; on a software device, where a step costs tens of milliseconds and at real dimensions seconds, for two of
 * them, and in a full run for all, of which two get all variants. */
typedef void (*contract_fn)(struct core_model *m, const struct subject *s, const char *device);
static void for_each(contract_fn test) {
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    for (uint32_t d = 0; d < n; d++) {
        for (uint32_t i = 0; i < n_subjects; i++) {
            struct subject s = subjects[i];
            const struct sh_context_params params = {.size = sizeof params,
                                                     .kv_type = s.kv,
                                                     .max_sequences = 34,
                                                     .max_batch_rows = 512,
                                                     .max_outputs = 160,
                                                     .kv_tokens = 34 * 192};
            struct core_model m;
            if (s.real && strcmp(names[d], "cpu-scalar") == 0) continue; /* one way for all sizes */
            core_load(&m, names[d], s.path, &params);
            const bool software = sh_device_get_info(m.devices[0])->kind == SH_DEVICE_SOFTWARE, slow = software && !full_run();
            s.few = s.real || slow || (software && i >= 2);
            s.fewest = s.real && software;
            if (s.real) m.observe = observe_few;
            if (!slow || i < 2) {
                const double begin = core_cpu_seconds();
                test(&m, &s, names[d]);
                spent[d][i] += core_cpu_seconds() - begin;
            }
            core_unload(&m);
        }
    }
}

static int tell(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    for (uint32_t d = 0; d < n; d++)
        for (uint32_t i = 0; i < n_subjects; i++)
            if (spent[d][i] > 0)
                print_message("RAN the contract of %s on %s, %.0f s of a core\n", strrchr(subjects[i].path, '/') + 1, names[d], spent[d][i]);
            else print_message("RAN no contract of %s on %s%s\n", strrchr(subjects[i].path, '/') + 1, names[d], full_run() ? "" : "; SHIMMY_TEST_FULL=1 does");
    return 0;
}

/* ---- helpers ---- */

static int32_t *random_tokens(const struct core_model *m, uint32_t n, uint64_t seed) {
    struct test_rng rng = {seed};
    int32_t *tokens = calloc(n, sizeof *tokens);
    assert_non_null(tokens);
    for (uint32_t i = 0; i < n; i++) tokens[i] = (int32_t)(test_random(&rng) % m->n_vocab);
    return tokens;
}

static float *rows_of(const struct core_model *m, uint32_t n) {
    float *rows = calloc((size_t)n * m->n_vocab, sizeof *rows);
    assert_non_null(rows);
    return rows;
}

/* Logits of every position of a sequence that runs alone and whole: what all others must equal. */
static float *reference(struct core_model *m, const int32_t *tokens, uint32_t n) {
    float *logits = rows_of(m, n);
    const uint32_t sequence = core_sequence(m);
    core_prefill(m, sequence, tokens, n, 0, logits, NULL);
    sh_sequence_destroy(m->context, sequence);
    for (size_t i = 0; i < (size_t)n * m->n_vocab; i++) assert_true(isfinite(logits[i]));
    return logits;
}

static void same_rows(const struct core_model *m, const float *found, const float *expected, uint32_t n, const char *what,
                      uint32_t detail) {
    for (uint32_t r = 0; r < n; r++) {
        const float *a = found + (size_t)r * m->n_vocab, *b = expected + (size_t)r * m->n_vocab;
        if (memcmp(a, b, m->n_vocab * sizeof *a) == 0) continue;
        double largest = 0;
        uint32_t differing = 0;
        for (uint32_t t = 0; t < m->n_vocab; t++) {
            differing += memcmp(&a[t], &b[t], sizeof a[t]) != 0;
            largest = fmax(largest, fabs((double)a[t] - (double)b[t]));
        }
        fail_msg("%s (%u): row %u differs in %u of %u logits, by up to %.3g", what, detail, r, differing, m->n_vocab, largest);
    }
}

static bool is_tier(const struct core_model *m, const char *tier) {
    return strcmp(sh_device_get_info(m->devices[0])->tier, tier) == 0;
}

/* ---- chunked = whole ---- */

static void chunked(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    static const uint32_t chunks[] = {1, 2, 3, 7, 8, 31, 32, 33, 63, 65};
    int32_t *tokens = random_tokens(m, s->n, 1);
    float *whole = reference(m, tokens, s->n), *found = rows_of(m, s->n);
    for (size_t i = s->fewest ? 4 : 0; i < sizeof chunks / sizeof chunks[0]; i += s->few ? 4 : 1) { /* rows one by one: see decoded */
        const uint32_t sequence = core_sequence(m);
        core_prefill(m, sequence, tokens, s->n, chunks[i], found, NULL);
        sh_sequence_destroy(m->context, sequence);
        same_rows(m, found, whole, s->n, "chunks of", chunks[i]);
    }
    free(tokens);
    free(whole);
    free(found);
}
static void chunked_equals_whole(void **state) {
    (void)state;
    for_each(chunked);
}

/* ---- alone = batched ---- */

struct companion {
    uint32_t sequence, fed;
    int32_t *tokens;
};

/* One batch: `count[i]` more rows of each companion, in order; the logits of companion `watched` go to `found` rows. */
static void feed_all(struct core_model *m, struct companion *c, const uint32_t *count, uint32_t n, uint32_t watched,
                     float *found) {
    struct sh_row rows[512];
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < count[i]; k++) {
            assert_true(n_rows < 512);
            const uint32_t position = c[i].fed++;
            rows[n_rows++] =
                (struct sh_row){.sequence = c[i].sequence,
                                .token = c[i].tokens[position],
                                .position = position,
                                .outputs = i == watched && (m->observe == NULL || m->observe(position)) ? SH_OUT_LOGITS : 0};
        }
    const struct sh_batch batch = {.rows = rows, .n_rows = n_rows};
    struct sh_error err = {0};
    struct sh_results results;
    sh_ticket ticket;
    core_ok(sh_submit(m->context, &batch, &ticket, &err), &err);
    core_ok(sh_wait(m->context, ticket, -1, &results, &err), &err);
    for (uint32_t i = 0; i < results.count; i++)
        memcpy(found + (size_t)results.items[i].position * m->n_vocab, results.items[i].logits, m->n_vocab * sizeof *found);
}

static void batched(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    static const uint32_t others[] = {1, 2, 7, 31};
    struct test_rng rng = {5};
    const size_t first = s->fewest ? 1 : s->few ? 2 : 0;
    for (size_t o = first; o < (s->few ? first + 1 : sizeof others / sizeof others[0]); o++) {
        const uint32_t n = others[o] + 1, watched = (uint32_t)(test_random(&rng) % n);
        struct companion c[32] = {0};
        for (uint32_t i = 0; i < n; i++) {
            c[i].sequence = core_sequence(m);
            c[i].tokens = random_tokens(m, s->n, 100 + i);
        }
        float *alone = reference(m, c[watched].tokens, s->n), *found = rows_of(m, s->n);
        while (c[watched].fed < s->n) { /* ragged chunks first, then single tokens of all */
            uint32_t count[32];
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t left = s->n - c[i].fed, at_most = c[watched].fed < s->n / 2 ? 13 : 1;
                count[i] = 1 + (uint32_t)(test_random(&rng) % at_most);
                if (count[i] > left) count[i] = left;
            }
            feed_all(m, c, count, n, watched, found);
        }
        same_rows(m, found, alone, s->n, "among others", others[o]);
        for (uint32_t i = 0; i < n; i++) {
            sh_sequence_destroy(m->context, c[i].sequence);
            free(c[i].tokens);
        }
        free(alone);
        free(found);
    }
}
static void alone_equals_batched(void **state) {
    (void)state;
    for_each(batched);
}

/* ---- decode = prefill, where the roles share an arithmetic ---- */

static void decoded(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    int32_t *tokens = random_tokens(m, s->n, 2);
    float *whole = reference(m, tokens, s->n), *found = rows_of(m, s->n);
    const uint32_t sequence = core_sequence(m);
    for (uint32_t i = 0; i < s->n; i++) {
        float *row = found + (size_t)i * m->n_vocab;
        core_step(m, sequence, tokens[i], SH_ROLE_GENERATED, row);
        if (m->observe != NULL && !m->observe(i)) memset(row, 0, m->n_vocab * sizeof *row); /* as in `whole` */
    }
    if (is_tier(m, "scalar") || is_tier(m, "base")) {
        same_rows(m, found, whole, s->n, "decoded", 0);
    } else { /* 8-bit activations in one role alone: as much as they may be off the exact values (see test_core_parity) */
        for (uint32_t r = 0; r < s->n; r++) {
            double mean = 0, squares = 0;
            for (uint32_t t = 0; t < m->n_vocab; t++)
                mean += ((double)found[(size_t)r * m->n_vocab + t] - (double)whole[(size_t)r * m->n_vocab + t]) / m->n_vocab;
            for (uint32_t t = 0; t < m->n_vocab; t++) {
                const double d = (double)found[(size_t)r * m->n_vocab + t] - (double)whole[(size_t)r * m->n_vocab + t] - mean;
                squares += d * d / m->n_vocab;
            }
            assert_true(sqrt(squares) < 0.15);
        }
    }
    free(tokens);
    free(whole);
    free(found);
}
static void decode_equals_prefill(void **state) {
    (void)state;
    for_each(decoded);
}

/* ---- shared prefix = recomputed; copy on write; truncation ---- */

static void shared(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    static const uint32_t lengths[] = {1, 31, 32, 33, 64, 66};
    struct sh_error err = {0};
    int32_t *tokens = random_tokens(m, s->n, 3), *other = random_tokens(m, s->n, 4);
    float *whole = reference(m, tokens, s->n), *found = rows_of(m, s->n);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i += s->few ? 3 : 1) {
        const uint32_t l = lengths[i], source = core_sequence(m), copy = core_sequence(m), third = core_sequence(m);
        core_prefill(m, source, tokens, l + 2, 0, NULL, NULL);
        core_ok(sh_sequence_copy(m->context, copy, source, l, &err), &err);
        core_ok(sh_sequence_copy(m->context, third, source, l, &err), &err);
        memcpy(other, tokens, l * sizeof *other); /* the copy goes another way behind the shared part */
        float *expected = reference(m, other, s->n);
        core_prefill(m, copy, other + l, s->n - l, 5, found, NULL);
        same_rows(m, found, expected + (size_t)l * m->n_vocab, s->n - l, "behind a shared prefix of", l);
        core_prefill(m, source, tokens + l + 2, s->n - l - 2, 0, found, NULL);
        same_rows(m, found, whole + (size_t)(l + 2) * m->n_vocab, s->n - l - 2, "the source of a copy of", l);
        sh_sequence_destroy(m->context, source);
        core_prefill(m, third, tokens + l, s->n - l, 0, found, NULL);
        same_rows(m, found, whole + (size_t)l * m->n_vocab, s->n - l, "a copy whose source is gone, of", l);
        sh_sequence_destroy(m->context, copy);
        sh_sequence_destroy(m->context, third);
        free(expected);
    }
    struct sh_context_stats stats;
    sh_context_get_stats(m->context, &stats);
    assert_int_equal(stats.pages_used, 0);
    assert_int_equal(stats.sequences, 0);
    free(tokens);
    free(other);
    free(whole);
    free(found);
}
static void shared_prefix_equals_recomputed(void **state) {
    (void)state;
    for_each(shared);
}

static void truncated(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    static const uint32_t lengths[] = {69, 64, 63, 33, 32, 31, 1, 0};
    struct sh_error err = {0};
    int32_t *tokens = random_tokens(m, s->n, 6), *junk = random_tokens(m, s->n, 7);
    float *whole = reference(m, tokens, s->n), *found = rows_of(m, s->n);
    const uint32_t sequence = core_sequence(m);
    core_prefill(m, sequence, tokens, s->n, 0, NULL, NULL);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i += s->few ? 3 : 1) {
        const uint32_t l = lengths[i];
        core_ok(sh_sequence_truncate(m->context, sequence, l, &err), &err);
        assert_int_equal(sh_sequence_length(m->context, sequence), l);
        core_prefill(m, sequence, junk, s->n - l, 0, NULL, NULL); /* something else first: it must be forgotten */
        core_ok(sh_sequence_truncate(m->context, sequence, l, &err), &err);
        core_prefill(m, sequence, tokens + l, s->n - l, 0, found, NULL);
        same_rows(m, found, whole + (size_t)l * m->n_vocab, s->n - l, "after truncation to", l);
    }
    free(tokens);
    free(junk);
    free(whole);
    free(found);
}
static void truncated_equals_recomputed(void **state) {
    (void)state;
    for_each(truncated);
}

/* ---- the device's token = the host's; two in flight ---- */

static void set_sampler(struct core_model *m, uint32_t sequence, uint32_t kind) {
    const struct sh_sampler_params kinds[] = {
        {.size = sizeof kinds[0]}, /* greedy */
        {.size = sizeof kinds[0], .temperature = 0.9f, .seed = 77, .choice = kind},
        {.size = sizeof kinds[0], .temperature = 1.1f, .seed = 5, .top_k = 30, .top_p = 0.9f},
        {.size = sizeof kinds[0], .temperature = 1.3f, .seed = 6, .repeat_penalty = 1.2f, .frequency_penalty = 0.3f},
        {.size = sizeof kinds[0], .temperature = 2, .seed = 7, .mirostat = 2, .mirostat_tau = 3, .dry_multiplier = 1, .min_tokens = 4},
        {.size = sizeof kinds[0], .temperature = 1.2f, .seed = 8, .typical_p = 0.9f, .top_n_sigma = 2, .xtc_probability = 0.5f},
    };
    struct sh_error err = {0};
    core_ok(sh_sequence_set_sampler(m->context, sequence, &kinds[kind % SH_COUNT(kinds)], &err), &err);
}

enum { STREAMS = 6, STEPS = 40 }; /* or FEW_STEPS */
#define FEW_STEPS 8

/* Prompt, then `steps` tokens of STREAMS sequences, each step submitted before the last is waited for; tokens and logits as they
 * come. */
static void run_referring(struct core_model *m, int32_t *const prompts[STREAMS], const uint32_t *lengths, uint32_t steps,
                          int32_t tokens[STEPS][STREAMS], float *logits) {
    struct sh_error err = {0};
    struct sh_results results;
    uint32_t sequences[STREAMS];
    for (uint32_t i = 0; i < STREAMS; i++) {
        sequences[i] = core_sequence(m);
        set_sampler(m, sequences[i], i);
        core_prefill(m, sequences[i], prompts[i], lengths[i] - 1, 0, NULL, NULL);
    }
    sh_ticket last = 0;
    for (uint32_t step = 0; step <= steps; step++) {
        sh_ticket ticket = 0;
        struct sh_row rows[STREAMS];
        for (uint32_t i = 0; i < STREAMS && step < steps; i++)
            rows[i] = (struct sh_row){
                .sequence = sequences[i],
                .input = step == 0 ? SH_INPUT_TOKEN : SH_INPUT_SAMPLED,
                .role = step == 0 ? SH_ROLE_PROMPT : SH_ROLE_GENERATED,
                .token = prompts[i][lengths[i] - 1],
                .ticket = last,
                .sampled_row = i,
                .position = lengths[i] - 1 + step,
                .outputs = SH_OUT_SAMPLE | SH_OUT_LOGITS,
            };
        const struct sh_batch batch = {.rows = rows, .n_rows = STREAMS};
        if (step < steps) core_ok(sh_submit(m->context, &batch, &ticket, &err), &err);
        if (step > 0) {
            core_ok(sh_wait(m->context, last, -1, &results, &err), &err);
            assert_int_equal(results.count, STREAMS);
            for (uint32_t i = 0; i < STREAMS; i++) {
                tokens[step - 1][i] = results.items[i].token;
                memcpy(logits + ((size_t)(step - 1) * STREAMS + i) * m->n_vocab, results.items[i].logits,
                       m->n_vocab * sizeof *logits);
            }
        }
        last = ticket;
    }
    for (uint32_t i = 0; i < STREAMS; i++) sh_sequence_destroy(m->context, sequences[i]);
}

static void referred(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    const uint32_t steps = s->few ? FEW_STEPS : STEPS;
    int32_t *prompts[STREAMS], tokens[STEPS][STREAMS];
    uint32_t lengths[STREAMS];
    for (uint32_t i = 0; i < STREAMS; i++) {
        lengths[i] = 3 + 14 * i; /* some reach a page's end while decoding */
        prompts[i] = random_tokens(m, lengths[i], 40 + i);
    }
    float *logits = rows_of(m, STEPS * STREAMS), *found = rows_of(m, STEPS);
    run_referring(m, prompts, lengths, steps, tokens, logits);
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < STREAMS; i++) { /* alone, each token taken to the host and given back */
        const uint32_t sequence = core_sequence(m);
        set_sampler(m, sequence, i);
        core_prefill(m, sequence, prompts[i], lengths[i] - 1, 0, NULL, NULL);
        int32_t token = prompts[i][lengths[i] - 1];
        for (uint32_t step = 0; step < steps; step++) {
            token = core_step(m, sequence, token, step == 0 ? SH_ROLE_PROMPT : SH_ROLE_GENERATED, found);
            assert_int_equal(token, tokens[step][i]);
            distinct += step > 0 && token != tokens[step - 1][i];
            same_rows(m, found, logits + ((size_t)step * STREAMS + i) * m->n_vocab, 1, "host token at step", step);
        }
        /* taken back by half of the tokens they come again, whatever the sampler looks back at */
        struct sh_error err = {0};
        const uint32_t half = steps / 2;
        core_ok(sh_sequence_truncate(m->context, sequence, lengths[i] - 1 + half, &err), &err);
        token = tokens[half - 1][i];
        for (uint32_t step = half; step < steps; step++) {
            token = core_step(m, sequence, token, SH_ROLE_GENERATED, found);
            assert_int_equal(token, tokens[step][i]);
        }
        sh_sequence_destroy(m->context, sequence);
        free(prompts[i]);
    }
    assert_true(distinct > steps); /* the greedy one may repeat itself */
    free(logits);
    free(found);
}
static void sampled_reference_equals_host_token(void **state) {
    (void)state;
    for_each(referred);
}

/* ---- two segments = one ---- */

static void split(struct core_model *m, const struct subject *s, const char *device) {
    int32_t *tokens = random_tokens(m, s->n, 8);
    float *whole = reference(m, tokens, s->n), *found = rows_of(m, s->n);
    const struct sh_context_params params = {.size = sizeof params, .kv_type = s->kv, .max_outputs = 160};
    char names[128];
    snprintf(names, sizeof names, "%s+%s", device, device);
    struct core_model two;
    core_load_split(&two, names, s->path, &params);
    struct sh_model_info info;
    sh_model_get_info(two.model, &info);
    assert_int_equal(info.n_segments, 2);
    two.observe = m->observe;
    const uint32_t sequence = core_sequence(&two);
    core_prefill(&two, sequence, tokens, s->n, 41, found, NULL);
    same_rows(m, found, whole, s->n, "two segments", 2);
    core_unload(&two);

    if (!is_tier(m, "scalar")) { /* half of the layers on the reference executor */
        snprintf(names, sizeof names, "cpu-scalar+%s", device);
        core_load_split(&two, names, s->path, &params);
        two.observe = m->observe;
        core_prefill(&two, core_sequence(&two), tokens, s->n, 0, found, NULL);
        const double allowed = is_tier(m, "base") ? 2e-3 : 0.6; /* of a logit; see test_core_parity */
        for (size_t i = 0; i < (size_t)s->n * m->n_vocab; i++) assert_true(fabs((double)found[i] - (double)whole[i]) < allowed);
        core_unload(&two);
    }
    free(tokens);
    free(whole);
    free(found);
}
static void two_segments_equal_one(void **state) {
    (void)state;
    for_each(split);
}

/* Overlapping steps over two segments, host sampling and references included. */
static void split_overlap(struct core_model *m, const struct subject *s, const char *device) {
    int32_t *prompts[STREAMS], one[STEPS][STREAMS] = {0}, two[STEPS][STREAMS] = {0};
    const uint32_t steps = s->few ? FEW_STEPS : STEPS;
    uint32_t lengths[STREAMS];
    for (uint32_t i = 0; i < STREAMS; i++) {
        lengths[i] = 5 + 9 * i;
        prompts[i] = random_tokens(m, lengths[i], 60 + i);
    }
    float *logits = rows_of(m, STEPS * STREAMS), *found = rows_of(m, STEPS * STREAMS);
    run_referring(m, prompts, lengths, steps, one, logits);
    const struct sh_context_params params = {.size = sizeof params, .kv_type = s->kv, .kv_tokens = STREAMS * 128};
    char names[128];
    snprintf(names, sizeof names, "%s+%s", device, device);
    struct core_model halves;
    core_load_split(&halves, names, s->path, &params);
    run_referring(&halves, prompts, lengths, steps, two, found);
    assert_memory_equal(one, two, sizeof one);
    same_rows(m, found, logits, steps * STREAMS, "two segments, overlapped", 2);
    core_unload(&halves);
    for (uint32_t i = 0; i < STREAMS; i++) free(prompts[i]);
    free(logits);
    free(found);
}
static void two_segments_overlap(void **state) {
    (void)state;
    for_each(split_overlap);
}

/* ---- order ---- */

static void in_order(struct core_model *m, const struct subject *s, const char *device) {
    (void)device;
    struct sh_error err = {0};
    int32_t *tokens = random_tokens(m, s->n, 9);
    float *whole = reference(m, tokens, s->n), *found = rows_of(m, s->n);
    const uint32_t sequence = core_sequence(m);
    struct sh_row rows[512];
    for (uint32_t i = 0; i < s->n; i++)
        rows[i] = (struct sh_row){.sequence = sequence,
                                  .token = tokens[i],
                                  .position = i,
                                  .outputs = m->observe == NULL || m->observe(i) ? SH_OUT_LOGITS : 0};
    const uint32_t half = s->n / 2; /* the second half is submitted while the first, which it attends to, is in flight */
    const struct sh_batch first = {.rows = rows, .n_rows = half}, second = {.rows = rows + half, .n_rows = s->n - half};
    sh_ticket a, b, c;
    struct sh_results results;
    core_ok(sh_submit(m->context, &first, &a, &err), &err);
    core_ok(sh_submit(m->context, &second, &b, &err), &err);
    assert_int_equal(sh_sequence_length(m->context, sequence), s->n);
    assert_int_equal(sh_submit(m->context, &second, &c, &err), SH_ERR_BUSY);
    assert_int_equal(sh_sequence_truncate(m->context, sequence, 1, &err), SH_ERR_BUSY);
    assert_int_equal(sh_wait(m->context, b, -1, &results, &err), SH_ERR_INVALID);
    for (int i = 0; i < 2; i++) {
        enum sh_code code;
        while ((code = sh_wait(m->context, i == 0 ? a : b, 100000, &results, &err)) == SH_ERR_TIMEOUT) continue;
        core_ok(code, &err);
        for (uint32_t r = 0; r < results.count; r++)
            memcpy(found + (size_t)results.items[r].position * m->n_vocab, results.items[r].logits, m->n_vocab * sizeof *found);
    }
    assert_int_equal(sh_wait(m->context, b, -1, &results, &err), SH_ERR_INVALID);
    same_rows(m, found, whole, s->n, "two in flight", 2);
    free(tokens);
    free(whole);
    free(found);
}
static void two_in_flight_keep_order(void **state) {
    (void)state;
    for_each(in_order);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunked_equals_whole),        cmocka_unit_test(alone_equals_batched),
        cmocka_unit_test(decode_equals_prefill),       cmocka_unit_test(shared_prefix_equals_recomputed),
        cmocka_unit_test(truncated_equals_recomputed), cmocka_unit_test(sampled_reference_equals_host_token),
        cmocka_unit_test(two_segments_equal_one),      cmocka_unit_test(two_segments_overlap),
        cmocka_unit_test(two_in_flight_keep_order),
    };
    return cmocka_run_group_tests_name("core_contract", tests, write_models, tell);
}
