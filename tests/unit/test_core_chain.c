/* The stages of the sampler's chain against plain formulations: sorted arrays and sums in double, quadratic searches, states that are
 * carried along instead of being derived. The draw itself (Gumbel) is test_core_sample's subject; here it only picks among what a stage
 * should have left, so that one wrong candidate shows as another token. */
#include "compute/sample/sampler.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { N = 50, MANY = 400 };

static struct sh_error error;

static struct sh_sampler *create(struct sh_sampler_params params) {
    struct sh_sampler *s = NULL;
    params.size = sizeof params;
    if (sh_sampler_create(&params, N, &s, &error) != SH_OK) fail_msg("%s", error.message);
    return s;
}

static int32_t pick(struct sh_sampler *s, const float *logits, const int32_t *tokens, const uint8_t *roles, uint32_t count) {
    const struct sh_token_history history = {.tokens = tokens, .roles = roles, .count = count};
    int32_t token = -2;
    assert_int_equal(sh_sampler_pick(s, logits, NULL, &history, count, &token, &error), SH_OK);
    return token;
}

/* ---- filters ---- */

struct ranked {
    int32_t token;
    double logit, p, key;
};

static int by_logit(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

static int by_key(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return by_logit(a, b);
}

static void softmax(struct ranked *r, uint32_t n) {
    double total = 0;
    for (uint32_t i = 0; i < n; i++) total += exp(r[i].logit);
    for (uint32_t i = 0; i < n; i++) r[i].p = exp(r[i].logit) / total;
}

/* Every stage renormalises and sorts anew. */
static uint32_t plain_filter(const struct sh_sampler_params *s, const float *logits, uint32_t position, struct ranked *r) {
    uint32_t n = 0, kept;
    double mean = 0, variance = 0;
    for (int t = 0; t < N; t++) r[n++] = (struct ranked){.token = t, .logit = (double)logits[t]};
    qsort(r, n, sizeof *r, by_logit);
    if (s->top_n_sigma > 0) {
        for (uint32_t i = 0; i < n; i++) mean += r[i].logit / n;
        for (uint32_t i = 0; i < n; i++) variance += pow(r[i].logit - mean, 2) / n;
        for (kept = 0; kept < n && r[kept].logit >= r[0].logit - (double)s->top_n_sigma * sqrt(variance);) kept++;
        n = kept;
    }
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    if (s->typical_p > 0 && s->typical_p < 1) {
        double entropy = 0, mass = 0;
        softmax(r, n);
        for (uint32_t i = 0; i < n; i++) entropy -= r[i].p * log(r[i].p);
        for (uint32_t i = 0; i < n; i++) r[i].key = fabs(-log(r[i].p) - entropy);
        qsort(r, n, sizeof *r, by_key);
        for (kept = 0; kept < n && mass <= (double)s->typical_p;) mass += r[kept++].p;
        n = kept;
        qsort(r, n, sizeof *r, by_logit);
    }
    if (s->top_p > 0 && s->top_p < 1) {
        double mass = 0;
        softmax(r, n);
        for (kept = 0; kept < n && mass < (double)s->top_p;) mass += r[kept++].p;
        n = kept;
    }
    if (s->min_p > 0) {
        softmax(r, n);
        for (kept = 1; kept < n && r[kept].p >= (double)s->min_p * r[0].p;) kept++;
        n = kept;
    }
    if (s->xtc_probability > 0) {
        uint32_t words[4];
        const uint32_t counter[4] = {s->choice, position, 0, 1}, key[2] = {(uint32_t)s->seed, (uint32_t)(s->seed >> 32)};
        sh_philox4x32_10(counter, key, words);
        if ((floor(words[0] / 512.0) + 0.5) / 8388608.0 <= (double)s->xtc_probability) {
            softmax(r, n);
            uint32_t last = 0;
            for (uint32_t i = 0; i < n && r[i].p >= (double)s->xtc_threshold; i++) last = i;
            memmove(r, r + last, (n - last) * sizeof *r);
            n -= last;
        }
    }
    return n;
}

static int32_t plain_draw(const struct sh_sampler_params *s, const struct ranked *r, uint32_t n, uint32_t position) {
    int32_t best = -1;
    float best_key = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float key =
            (float)r[i].logit * (1 / s->temperature) + sh_gumbel(s->seed, s->choice, position, (uint32_t)r[i].token);
        if (best < 0 || key > best_key) {
            best = r[i].token;
            best_key = key;
        }
    }
    return best;
}

static void filters_are_the_plain_chain(void **state) {
    (void)state;
    struct test_rng rng = {31};
    const struct sh_sampler_params settings[] = {
        {.temperature = 1, .top_n_sigma = 1},
        {.temperature = 2, .top_n_sigma = 0.3f, .top_p = 0.8f},
        {.temperature = 1, .typical_p = 0.5f},
        {.temperature = 1.5f, .typical_p = 0.2f, .top_k = 20},
        {.temperature = 1, .typical_p = 0.9f, .top_p = 0.6f, .min_p = 0.1f},
        {.temperature = 1, .min_p = 0.05f},
        {.temperature = 1, .top_p = 0.9f, .min_p = 0.02f},
        {.temperature = 2, .top_n_sigma = 2, .min_p = 0.2f},
        {.temperature = 3, .xtc_probability = 1, .xtc_threshold = 0.1f},
        {.temperature = 1, .xtc_probability = 0.5f, .xtc_threshold = 0.05f, .top_k = 12, .seed = 1ull << 41},
        {.temperature = 3, .xtc_probability = 1, .xtc_threshold = 0.6f},
        {.temperature = 3, .xtc_probability = 1, .xtc_threshold = 1e-30f}, /* all but the least likely */
        {.temperature = 0.7f, .top_n_sigma = 2, .top_k = 30, .typical_p = 0.8f, .top_p = 0.95f, .min_p = 0.05f, .xtc_probability = 0.5f,
         .xtc_threshold = 0.1f, .choice = 2, .seed = 9},
    };
    uint32_t smaller = 0;
    for (size_t i = 0; i < SH_COUNT(settings); i++) {
        struct sh_sampler *s = create(settings[i]);
        assert_false(sh_sampler_suits_device(s));
        for (uint32_t position = 0; position < MANY; position++) {
            float logits[N];
            struct ranked r[N];
            for (int t = 0; t < N; t++) logits[t] = 2 * test_normal(&rng);
            logits[11] = logits[12]; /* a tie */
            const uint32_t n = plain_filter(&settings[i], logits, position, r);
            smaller += n < N;
            uint32_t first;
            float largest = -INFINITY;
            for (int t = 0; t < N; t++) largest = fmaxf(largest, logits[t]);
            assert_int_equal(sh_sampler_filter(s, logits, largest, position, &first), n);
            const struct sh_token_history none = {0};
            int32_t token;
            assert_int_equal(sh_sampler_pick(s, logits, NULL, &none, position, &token, &error), SH_OK);
            assert_int_equal(token, plain_draw(&settings[i], r, n, position));
        }
        sh_sampler_destroy(s);
    }
    assert_true(smaller > SH_COUNT(settings) * MANY / 2);
}

/* XTC's number is not one of the draw's, and is there as often as asked. */
static void xtc_has_its_own_numbers(void **state) {
    (void)state;
    float logits[N];
    for (int t = 0; t < N; t++) logits[t] = t == 3 ? 10 : t == 4 ? 9.9f : -30;
    struct sh_sampler *s = create((struct sh_sampler_params){.temperature = 0.01f, .xtc_probability = 0.25f, .seed = 4});
    const struct sh_token_history none = {0};
    uint32_t second = 0;
    for (uint32_t position = 0; position < 4000; position++) {
        int32_t token;
        assert_int_equal(sh_sampler_pick(s, logits, NULL, &none, position, &token, &error), SH_OK);
        assert_true(token == 3 || token == 4);
        assert_int_equal(token == 4, sh_uniform(4, 0, position) <= 0.25f);
        second += token == 4;
    }
    assert_in_range(second, 850, 1150); /* 1000 expected, deviation 27 */
    sh_sampler_destroy(s);
}

/* ---- edits ---- */

/* DRY in words: t loses m * base^(n - allowed), n the most tokens before some earlier t that are also the latest ones, without going
 * over a breaker. */
static double plain_dry(const struct sh_sampler_params *s, const int32_t *h, uint32_t count, int32_t t) {
    const uint32_t from = s->dry_penalty_last_n > 0 && s->dry_penalty_last_n < count ? count - s->dry_penalty_last_n : 0;
    uint32_t limit = count - from, longest = 0;
    const int32_t *breaker = s->dry_breakers.tokens;
    uint32_t best_begin = 0, best_length = 0;
    bool found = false;
    for (uint32_t b = 0; b < s->dry_breakers.count; b++) { /* the one whose head stands last; of those the longest */
        const uint32_t n = s->dry_breakers.lengths[b];
        for (uint32_t i = from; i + n <= count; i++)
            if (memcmp(h + i, breaker, n * sizeof *h) == 0 && (!found || i > best_begin || (i == best_begin && n > best_length))) {
                found = true;
                best_begin = i;
                best_length = n;
            }
        if (n == 1 && breaker[0] == t) return 0;
        breaker += n;
    }
    if (found) limit = count - best_begin - best_length;
    for (uint32_t i = from; i < count; i++) {
        if (h[i] != t) continue;
        uint32_t n = 0;
        while (n < i - from && n < limit && h[i - 1 - n] >= 0 && h[i - 1 - n] == h[count - 1 - n]) n++;
        if (n > longest) longest = n;
    }
    return longest >= s->dry_allowed_length ? (double)s->dry_multiplier * pow((double)s->dry_base, longest - s->dry_allowed_length) : 0;
}

static void dry_is_the_quadratic_search(void **state) {
    (void)state;
    struct test_rng rng = {57};
    const int32_t breakers[] = {7, 5, 6, 5, 5, 6, 4};
    const uint32_t lengths[] = {1, 2, 3, 1};
    uint32_t punished = 0;
    for (uint32_t round = 0; round < 600; round++) {
        int32_t tokens[120];
        const uint32_t count = (uint32_t)(test_random(&rng) % 120), alphabet = 2 + round % 7;
        for (uint32_t i = 0; i < count; i++) tokens[i] = test_random(&rng) % 40 == 0 ? -1 : (int32_t)(test_random(&rng) % alphabet);
        for (uint32_t i = 20; i < count && round % 3 == 0; i++) tokens[i] = tokens[i - 9]; /* long ones */
        const struct sh_sampler_params params = {.dry_multiplier = 0.5f,
                                                 .dry_base = round % 2 ? 1.75f : 1,
                                                 .dry_allowed_length = 1 + round % 3,
                                                 .dry_penalty_last_n = round % 5 ? 0 : 30,
                                                 .dry_breakers = {breakers, lengths, round % 4}};
        struct sh_sampler *s = create(params);
        const uint8_t roles[120] = {0};
        const struct sh_token_history history = {tokens, roles, count};
        float logits[N];
        for (int t = 0; t < N; t++) logits[t] = test_normal(&rng);
        for (int again = 0; again < 2; again++) {
            assert_int_equal(sh_sampler_edit(s, logits, &history, &error), SH_OK);
            for (int t = 0; t < N; t++) {
                const double penalty = plain_dry(&params, tokens, count, t), expected = (double)logits[t] - penalty;
                punished += penalty > 0;
                if (fabs((double)s->logits[t] - expected) > 1e-6 * (1 + fabs(expected)))
                    fail_msg("round %u, token %d: %g, expected %g", round, t, (double)s->logits[t], expected);
            }
        }
        sh_sampler_destroy(s);
    }
    assert_true(punished > 500);
    /* a repetition so long that the power would not fit in a float is a finite penalty */
    int32_t same[3000] = {0};
    uint8_t roles[3000] = {0};
    struct sh_sampler *s = create((struct sh_sampler_params){.dry_multiplier = 100, .dry_base = 50});
    float logits[N] = {0};
    const struct sh_token_history history = {same, roles, SH_COUNT(same)};
    assert_int_equal(sh_sampler_edit(s, logits, &history, &error), SH_OK);
    assert_true(isfinite(s->logits[0]) && s->logits[0] < -1e36f && s->logits[1] == 0);
    sh_sampler_destroy(s);
}

static void what_may_not_be_drawn(void **state) {
    (void)state;
    struct test_rng rng = {71};
    const int32_t words[] = {4, 1, 2, 3, 3, 3}, ends[] = {0, 9};
    const uint32_t lengths[] = {1, 2, 3};
    uint32_t forbidden = 0;
    for (uint32_t round = 0; round < 500; round++) {
        int32_t tokens[30];
        uint8_t roles[30];
        const uint32_t count = (uint32_t)(test_random(&rng) % 30), n_prompt = count > 0 ? (uint32_t)(test_random(&rng) % count) : 0;
        for (uint32_t i = 0; i < count; i++) {
            tokens[i] = (int32_t)(test_random(&rng) % 4);
            roles[i] = i < n_prompt ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
        }
        struct sh_sampler *s = create((struct sh_sampler_params){.min_tokens = round % 2 ? 8 : 0,
                                                                 .end_tokens = ends,
                                                                 .n_end_tokens = 2,
                                                                 .bad_words = {words, lengths, 3}});
        const struct sh_token_history history = {tokens, roles, count};
        float logits[N];
        for (int t = 0; t < N; t++) logits[t] = test_normal(&rng);
        assert_int_equal(sh_sampler_edit(s, logits, &history, &error), SH_OK);
        const uint32_t generated = count - n_prompt;
        for (int t = 0; t < N; t++) {
            bool no = t == 4 || (round % 2 && generated < 8 && (t == 0 || t == 9));
            no = no || (t == 2 && generated >= 1 && tokens[count - 1] == 1);
            no = no || (t == 3 && generated >= 2 && tokens[count - 1] == 3 && tokens[count - 2] == 3);
            forbidden += no;
            assert_true(s->logits[t] == (no ? -INFINITY : logits[t]));
        }
        assert_false(sh_sampler_suits_device(s));
        sh_sampler_destroy(s);
    }
    assert_true(forbidden > 700);
}

/* ---- mirostat ---- */

/* One token by the algorithm as published (Basu et al., 2021; version 2), mu carried along. */
static int32_t plain_mirostat(const struct sh_sampler_params *s, const float *logits, uint32_t position, double *mu) {
    struct ranked r[N];
    uint32_t n = 1;
    for (int t = 0; t < N; t++) r[t] = (struct ranked){.token = t, .logit = (double)logits[t] / (double)s->temperature};
    qsort(r, N, sizeof *r, by_logit);
    softmax(r, N);
    while (n < N && -log2(r[n].p) <= *mu) n++;
    softmax(r, n);
    int32_t best = -1;
    float best_key = 0;
    double surprise = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float key = logits[r[i].token] / s->temperature + sh_gumbel(s->seed, s->choice, position, (uint32_t)r[i].token);
        if (best >= 0 && key <= best_key) continue;
        best = r[i].token;
        best_key = key;
        surprise = -log2(r[i].p);
    }
    *mu -= (double)s->mirostat_eta * (surprise - (double)s->mirostat_tau);
    return best;
}

/* The tokens from `from` on against the plain algorithm, which begins there with `mu`. */
static void follow_mirostat(struct sh_sampler *s, float (*logits)[N], int32_t *tokens, const uint8_t *roles, uint32_t from, double mu) {
    const struct sh_sampler_params params = *sh_sampler_params(s);
    for (uint32_t p = from; p < from + 100; p++) {
        const int32_t expected = plain_mirostat(&params, logits[p], p, &mu);
        tokens[p] = pick(s, logits[p], tokens, roles, p);
        assert_int_equal(tokens[p], expected);
    }
}

static void mirostat_carries_mu(void **state) {
    (void)state;
    struct test_rng rng = {83};
    static float logits[MANY][N];
    for (int i = 0; i < MANY; i++)
        for (int t = 0; t < N; t++) logits[i][t] = 3 * test_normal(&rng);
    const struct sh_sampler_params params = {
        .temperature = 0.9f, .mirostat = 2, .mirostat_tau = 1.5f, .mirostat_eta = 0.6f, .seed = 12, .top_k = 1 /* not looked at */};
    enum { PROMPT = 5 };
    int32_t tokens[MANY] = {0}, expected[MANY] = {0};
    uint8_t roles[MANY] = {0};
    double mus[MANY + 1];
    mus[PROMPT] = 2 * (double)params.mirostat_tau;
    for (uint32_t p = PROMPT; p < MANY; p++) {
        mus[p + 1] = mus[p];
        expected[p] = plain_mirostat(&params, logits[p], p, &mus[p + 1]);
        roles[p] = SH_ROLE_GENERATED;
    }
    assert_true(fabs(mus[MANY] - mus[PROMPT]) > 0.01);
    struct sh_sampler *s = create(params);
    assert_false(sh_sampler_suits_device(s));
    for (uint32_t p = PROMPT; p < MANY; p++) {
        tokens[p] = pick(s, logits[p], tokens, roles, p);
        assert_int_equal(tokens[p], expected[p]);
        /* picked again, and taken back by some tokens and drawn again: the same */
        assert_int_equal(pick(s, logits[p], tokens, roles, p), expected[p]);
        if (p % 7 != 0 || p < PROMPT + 6) continue;
        const uint32_t back = p - (uint32_t)(test_random(&rng) % 6);
        sh_sampler_truncate(s, back);
        for (uint32_t q = back; q <= p; q++) assert_int_equal(pick(s, logits[q], tokens, roles, q), expected[q]);
    }
    /* taken back, and another token in its place, one that nobody drew: it does not count */
    sh_sampler_truncate(s, 100);
    tokens[100] = (tokens[100] + 1) % N;
    follow_mirostat(s, logits, tokens, roles, 101, mus[100]);
    /* back to the prompt, then the same tokens without having been drawn: as new */
    sh_sampler_truncate(s, 2);
    memcpy(tokens, expected, sizeof tokens);
    follow_mirostat(s, logits, tokens, roles, 200, mus[PROMPT]);
    sh_sampler_destroy(s);
}

/* ---- strings ---- */

static uint32_t offset_of(const struct sh_token_lists *l, uint32_t index) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < index; i++) at += l->lengths[i];
    return at;
}

static bool has_list(const struct sh_token_lists *l, const int32_t *tokens, size_t n) {
    for (uint32_t i = 0; i < l->count; i++)
        if (l->lengths[i] == n && memcmp(l->tokens + offset_of(l, i), tokens, n * sizeof *tokens) == 0) return true;
    return false;
}

static void check_words(const struct sh_vocab *v) {
    static const char *const words[] = {"hello", "  a", "x y z", "\n"};
    struct sh_token_lists lists;
    uint32_t expected = 0;
    assert_int_equal(sh_bad_words(v, words, SH_COUNT(words), &lists, &error), SH_OK);
    for (size_t i = 0; i < SH_COUNT(words); i++) {
        int32_t *ids[2];
        size_t n[2];
        for (int spaced = 0; spaced < 2; spaced++) {
            char text[32];
            snprintf(text, sizeof text, "%s%s", spaced ? " " : "", words[i] + strspn(words[i], " "));
            assert_int_equal(sh_tokenize(v, text, strlen(text), 0, &ids[spaced], &n[spaced], &error), SH_OK);
        }
        assert_true(has_list(&lists, ids[0], n[0]));
        expected++;
        if (n[0] == n[1] && ids[0][0] != ids[1][0]) {
            assert_true(has_list(&lists, ids[1], n[1]));
            expected++;
        }
        free(ids[0]);
        free(ids[1]);
    }
    assert_int_equal(lists.count, expected);
    sh_token_lists_finish(&lists);
    assert_null(lists.tokens);
    const char *const blank[] = {"ok", "  "};
    assert_int_equal(sh_bad_words(v, blank, 2, &lists, &error), SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "bad_words[1]"));
    assert_int_equal(lists.count, 0);
}

static void check_breakers(const struct sh_vocab *v) {
    static const char *const texts[] = {":", "ab", "the"};
    for (size_t b = 0; b < SH_COUNT(texts); b++) {
        struct sh_token_lists lists;
        const char *text = texts[b];
        uint32_t expected = 0;
        assert_int_equal(sh_dry_breakers(v, &text, 1, &lists, &error), SH_OK);
        for (int32_t t = 0; t < (int32_t)sh_vocab_size(v); t++) {
            size_t n;
            const char *piece = sh_vocab_piece(v, t, true, &n);
            char copy[256];
            assert_true(n < sizeof copy);
            memcpy(copy, piece, n);
            copy[n] = 0;
            if (strlen(copy) == n && strstr(copy, text)) {
                assert_true(has_list(&lists, &t, 1));
                expected++;
                continue;
            }
            for (size_t k = 1; k < strlen(text) && k <= n; k++) {
                int32_t *rest, all[32] = {t};
                size_t n_rest;
                if (strncmp(copy + n - k, text, k) != 0) continue;
                assert_int_equal(sh_tokenize(v, text + k, strlen(text) - k, 0, &rest, &n_rest, &error), SH_OK);
                memcpy(all + 1, rest, n_rest * sizeof *rest);
                assert_true(has_list(&lists, all, n_rest + 1));
                expected++;
                free(rest);
            }
        }
        assert_true(expected > 0);
        assert_int_equal(lists.count, expected);
        sh_token_lists_finish(&lists);
    }
    const char *const empty[] = {"", NULL};
    struct sh_token_lists lists;
    assert_int_equal(sh_dry_breakers(v, empty, 1, &lists, &error), SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "dry_sequence_breakers[0]"));
}

static void strings_become_tokens(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        const char *path = test_scratch(kind == 0 ? "chain-spm.gguf" : "chain-bpe.gguf");
        struct genmodel_params p = genmodel_defaults();
        p.vocab_kind = kind == 0 ? GENMODEL_SPM : GENMODEL_BPE;
        assert_int_equal(genmodel_write(path, &p, &error), SH_OK);
        struct sh_vocab *v = NULL;
        assert_int_equal(sh_vocab_open(path, &v, &error), SH_OK);
        check_words(v);
        check_breakers(v);
        sh_vocab_close(v);
    }
}

static void wrong_parameters_are_named(void **state) {
    (void)state;
    const int32_t outside[] = {N}, inside[] = {1};
    const uint32_t one[] = {1}, none[] = {0};
    const struct {
        struct sh_sampler_params params;
        const char *word;
    } wrong[] = {
        {{.top_n_sigma = -1}, "top_n_sigma"},
        {{.typical_p = nanf("")}, "typical_p"},
        {{.xtc_probability = 1.5f}, "xtc_probability"},
        {{.xtc_threshold = -0.1f}, "xtc_threshold"},
        {{.dry_multiplier = -1}, "dry_multiplier"},
        {{.dry_base = 0.5f}, "dry_base"},
        {{.mirostat = 1}, "mirostat is 1"},
        {{.mirostat_tau = -1}, "mirostat_tau"},
        {{.mirostat_eta = INFINITY}, "mirostat_eta"},
        {{.end_tokens = outside, .n_end_tokens = 1}, "token 50"},
        {{.dry_breakers = {outside, one, 1}}, "dry_breakers for token 50"},
        {{.bad_words = {outside, one, 1}}, "bad_words for token 50"},
        {{.bad_words = {inside, none, 1}}, "list 0 of bad_words"},
    };
    for (size_t i = 0; i < SH_COUNT(wrong); i++) {
        struct sh_sampler_params p = wrong[i].params;
        struct sh_sampler *s = NULL;
        p.size = sizeof p;
        assert_int_equal(sh_sampler_create(&p, N, &s, &error), SH_ERR_INVALID);
        assert_non_null(strstr(error.message, wrong[i].word));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_are_the_plain_chain), cmocka_unit_test(xtc_has_its_own_numbers),
        cmocka_unit_test(dry_is_the_quadratic_search), cmocka_unit_test(what_may_not_be_drawn),
        cmocka_unit_test(mirostat_carries_mu),         cmocka_unit_test(strings_become_tokens),
        cmocka_unit_test(wrong_parameters_are_named),
    };
    return cmocka_run_group_tests_name("core_chain", tests, NULL, NULL);
}
