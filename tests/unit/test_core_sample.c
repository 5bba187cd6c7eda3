/* Random numbers against published vectors, the sampler against naive computations and against the distribution it should draw
 * from. */
#include "compute/sample/sample.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

/* Known answers of Random123 1.14 (kat_vectors, "philox4x32 10"). */
static void philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < SH_COUNT(vectors); i++) {
        uint32_t out[4];
        sh_philox4x32_10(vectors[i].counter, vectors[i].key, out);
        assert_memory_equal(out, vectors[i].expected, sizeof out);
    }
}

/* Gumbel(0, 1) has mean 0.57722 and variance pi^2 / 6; 2^18 draws put their errors' deviations at 0.0025 and 0.007. */
static void gumbel_moments(void **state) {
    (void)state;
    double sum = 0, squares = 0;
    const uint32_t n = 1u << 18;
    for (uint32_t i = 0; i < n; i++) {
        const double g = (double)sh_gumbel(7, i >> 14, (i >> 10) & 15, i & 1023);
        assert_true(g > -2.9 && g < 16.7);
        sum += g;
        squares += g * g;
    }
    const double mean = sum / n, variance = squares / n - mean * mean;
    assert_true(fabs(mean - 0.5772156649) < 0.0125);
    assert_true(fabs(variance - 1.6449340668) < 0.035);
}

enum { N = 50 };

static int32_t pick(const struct sh_sampler_params *params, const float *logits, uint32_t n,
                    const struct sh_token_history *history, uint32_t position) {
    struct sh_sampler *s = NULL;
    struct sh_token_history none = {0};
    int32_t token = -2;
    assert_int_equal(sh_sampler_create(params, n, &s, &error), SH_OK);
    assert_int_equal(sh_sampler_pick(s, logits, NULL, history != NULL ? history : &none, position, &token, &error), SH_OK);
    sh_sampler_destroy(s);
    return token;
}

/* Chi-square of drawn counts against probabilities [N]; tokens of probability 0 must not appear. Returns the statistic and its
 * degrees. */
static double chi_square(const uint32_t *counts, const double *p, uint32_t draws, uint32_t *degrees) {
    double statistic = 0, rest_p = 0;
    uint32_t rest = 0, cells = 0;
    for (int t = 0; t < N; t++) {
        if (p[t] == 0) assert_int_equal(counts[t], 0);
        if (p[t] * draws < 8) { /* rare ones share a cell */
            rest_p += p[t];
            rest += counts[t];
            continue;
        }
        const double expected = p[t] * draws, d = counts[t] - expected;
        statistic += d * d / expected;
        cells++;
    }
    if (rest_p * draws >= 1) {
        const double expected = rest_p * draws, d = rest - expected;
        statistic += d * d / expected;
        cells++;
    }
    *degrees = cells - 1;
    return statistic;
}

static void draw_many(const struct sh_sampler_params *params, const float *logits, const double *p) {
    uint32_t counts[N] = {0}, degrees;
    const uint32_t draws = 20000;
    struct sh_sampler *s = NULL;
    const struct sh_token_history none = {0};
    assert_int_equal(sh_sampler_create(params, N, &s, &error), SH_OK);
    for (uint32_t i = 0; i < draws; i++) {
        int32_t token;
        assert_int_equal(sh_sampler_pick(s, logits, NULL, &none, i, &token, &error), SH_OK);
        assert_in_range(token, 0, N - 1);
        counts[token]++;
    }
    sh_sampler_destroy(s);
    const double statistic = chi_square(counts, p, draws, &degrees);
    /* mean d, variance 2d: five deviations; fixed seeds make this the same in every run */
    if (degrees > 0) assert_true(statistic < degrees + 5 * sqrt(2.0 * degrees) + 5);
}

/* The naive filter: sort everything, cut, renormalise. */
struct ranked {
    int32_t token;
    double logit;
};
static int by_rank(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

static void naive(const struct sh_sampler_params *s, const float *logits, double *p) {
    struct ranked r[N];
    for (int t = 0; t < N; t++) r[t] = (struct ranked){t, (double)logits[t]};
    qsort(r, N, sizeof r[0], by_rank);
    uint32_t n = s->top_k > 0 && s->top_k < N ? s->top_k : N;
    double total = 0, mass = 0;
    for (uint32_t i = 0; i < n; i++) total += exp(r[i].logit - r[0].logit);
    if (s->top_p > 0 && s->top_p < 1) {
        uint32_t kept = 0;
        while (kept < n && (kept == 0 || mass < (double)s->top_p * total)) mass += exp(r[kept++].logit - r[0].logit);
        n = kept;
    }
    if (s->min_p > 0) {
        uint32_t kept = 0;
        while (kept < n && exp(r[kept].logit - r[0].logit) >= (double)s->min_p) kept++;
        n = kept > 0 ? kept : 1;
    }
    total = 0;
    for (int t = 0; t < N; t++) p[t] = 0;
    for (uint32_t i = 0; i < n; i++) total += exp((r[i].logit - r[0].logit) / (double)s->temperature);
    for (uint32_t i = 0; i < n; i++) p[r[i].token] = exp((r[i].logit - r[0].logit) / (double)s->temperature) / total;
}

static void draws_follow_the_filtered_distribution(void **state) {
    (void)state;
    struct test_rng rng = {3};
    float logits[N];
    for (int t = 0; t < N; t++) logits[t] = 2 * test_normal(&rng);
    logits[11] = logits[12]; /* a tie */
    const struct sh_sampler_params settings[] = {
        {.temperature = 1},
        {.temperature = 0.5f},
        {.temperature = 2.5f, .seed = 9},
        {.temperature = 1, .top_k = 1},
        {.temperature = 1, .top_k = 7},
        {.temperature = 1, .top_k = 49, .seed = UINT64_MAX},
        {.temperature = 1, .top_p = 0.7f},
        {.temperature = 0.8f, .top_p = 0.95f},
        {.temperature = 1, .top_p = 0.01f},
        {.temperature = 1, .min_p = 0.05f},
        {.temperature = 1.5f, .min_p = 1},
        {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .seed = 1ull << 40},
        {.temperature = 1.2f, .top_k = 12, .top_p = 0.8f, .choice = 3},
    };
    for (size_t i = 0; i < SH_COUNT(settings); i++) {
        struct sh_sampler_params s = settings[i];
        double p[N];
        s.size = sizeof s;
        naive(&s, logits, p);
        draw_many(&s, logits, p);
    }
}

/* The same numbers give the same token; each of seed, choice and position changes the draw. */
static void draws_are_functions_of_seed_choice_position(void **state) {
    (void)state;
    struct test_rng rng = {5};
    float logits[N];
    for (int t = 0; t < N; t++) logits[t] = test_normal(&rng);
    struct sh_sampler_params a = {.size = sizeof a, .temperature = 1, .seed = 42}, b = a;
    uint32_t same_seed = 0, same_choice = 0, same_position = 0;
    for (uint32_t position = 0; position < 400; position++) {
        const int32_t token = pick(&a, logits, N, NULL, position);
        assert_int_equal(token, pick(&a, logits, N, NULL, position));
        b = a;
        b.seed = 43;
        same_seed += token == pick(&b, logits, N, NULL, position);
        b = a;
        b.choice = 1;
        same_choice += token == pick(&b, logits, N, NULL, position);
        same_position += token == pick(&a, logits, N, NULL, position + 1000);
        b = a;
        b.top_k = N - 1; /* a filter that removes a token nobody draws leaves the draw as it was */
        double p[N];
        naive(&b, logits, p);
        if (p[token] > 0) assert_int_equal(token, pick(&b, logits, N, NULL, position));
    }
    assert_true(same_seed < 80 && same_choice < 80 && same_position < 80); /* by chance about 400 / 30 */
}

/* Skipping tokens that cannot win is exact: the whole sum, computed plainly, has the same winner. */
static void skipping_is_exact(void **state) {
    (void)state;
    enum { WIDE = 3000 };
    static float logits[WIDE];
    struct test_rng rng = {11};
    for (uint32_t round = 0; round < 200; round++) {
        const float spread = round % 4 == 0 ? 30.0f : 3.0f;
        for (int t = 0; t < WIDE; t++) logits[t] = spread * test_normal(&rng);
        const struct sh_sampler_params s = {.size = sizeof s, .temperature = round % 3 == 0 ? 5.0f : 0.9f, .seed = round};
        int32_t best = 0;
        float best_key = -INFINITY;
        for (uint32_t t = 0; t < WIDE; t++) {
            const float key = logits[t] * (1 / s.temperature) + sh_gumbel(s.seed, 0, round, t);
            if (key > best_key) {
                best = (int32_t)t;
                best_key = key;
            }
        }
        assert_int_equal(pick(&s, logits, WIDE, NULL, round), best);
    }
}

static void greedy_takes_the_largest_and_the_lowest_id(void **state) {
    (void)state;
    const float nan_value = nanf("");
    const struct sh_sampler_params greedy = {.size = sizeof greedy};
    const float plain[] = {1, 5, 5, 2}, with_nan[] = {nan_value, -3, nan_value, -2},
                minus[] = {-INFINITY, -INFINITY, -7, -INFINITY};
    const float infinite[] = {1, INFINITY, 2, INFINITY};
    assert_int_equal(pick(&greedy, plain, 4, NULL, 0), 1);
    assert_int_equal(pick(&greedy, with_nan, 4, NULL, 0), 3);
    assert_int_equal(pick(&greedy, minus, 4, NULL, 0), 2);
    for (uint32_t position = 0; position < 50; position++) {
        const struct sh_sampler_params hot = {.size = sizeof hot, .temperature = 3},
                                       narrow = {.size = sizeof narrow, .temperature = 3, .top_k = 3};
        assert_int_not_equal(pick(&hot, with_nan, 4, NULL, position), 0);
        assert_int_not_equal(pick(&hot, with_nan, 4, NULL, position), 2);
        assert_int_equal(pick(&hot, minus, 4, NULL, position), 2);
        assert_int_equal(pick(&narrow, minus, 4, NULL, position), 2);
        assert_int_equal(pick(&narrow, infinite, 4, NULL, position), 1);
    }
    struct sh_sampler *s = NULL;
    const float nothing[] = {nan_value, nan_value};
    const struct sh_token_history none = {0};
    int32_t token;
    assert_int_equal(sh_sampler_create(&greedy, 2, &s, &error), SH_OK);
    assert_true(sh_sampler_suits_device(s));
    assert_int_equal(sh_sampler_pick(s, nothing, NULL, &none, 0, &token, &error), SH_ERR_DEVICE);
    sh_sampler_destroy(s);
}

/* Bias and penalties against the formulae, seen through the greedy choice: the expected logits are computed plainly. */
static void bias_and_penalties(void **state) {
    (void)state;
    struct test_rng rng = {17};
    for (int round = 0; round < 300; round++) {
        float logits[N];
        int32_t tokens[200];
        uint8_t roles[200];
        const uint32_t count = (uint32_t)(test_random(&rng) % 200);
        for (int t = 0; t < N; t++) logits[t] = 2 * test_normal(&rng);
        for (uint32_t i = 0; i < count; i++) {
            tokens[i] = (int32_t)(test_random(&rng) % (N + 1)) - 1; /* -1: an embedding */
            roles[i] = i < count / 3 ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
        }
        const struct sh_logit_bias bias[] = {{3, 1.5f}, {7, -INFINITY}, {3, 0.25f}};
        const struct sh_sampler_params s = {
            .size = sizeof s,
            .repeat_penalty = round % 2 ? 1.3f : 0,
            .repeat_last_n = round % 3 ? 20 : 0,
            .frequency_penalty = round % 5 ? 0.2f : 0,
            .presence_penalty = round % 7 ? -0.4f : 0,
            .bias = bias,
            .n_bias = round % 11 ? 3 : 0,
        };
        float expected[N];
        for (int t = 0; t < N; t++) {
            float l = logits[t];
            for (uint32_t i = 0; i < s.n_bias; i++)
                if (bias[i].token == t) l += bias[i].bias;
            const uint32_t window = s.repeat_last_n != 0 ? s.repeat_last_n : 64;
            bool recent = false;
            uint32_t generated = 0;
            for (uint32_t i = 0; i < count; i++) {
                if (tokens[i] != t) continue;
                recent = recent || i + window >= count;
                generated += roles[i] == SH_ROLE_GENERATED;
            }
            if (recent && s.repeat_penalty != 0) l = l > 0 ? l / s.repeat_penalty : l * s.repeat_penalty;
            if (generated > 0) l -= (float)generated * s.frequency_penalty + s.presence_penalty;
            expected[t] = l;
        }
        int32_t best = 0;
        for (int t = 1; t < N; t++)
            if (expected[t] > expected[best]) best = t;
        const struct sh_token_history history = {.tokens = tokens, .roles = roles, .count = count};
        struct sh_sampler *sampler = NULL;
        assert_int_equal(sh_sampler_create(&s, N, &sampler, &error), SH_OK);
        for (int again = 0; again < 2; again++) { /* nothing of the first pick is left behind */
            int32_t token;
            assert_int_equal(sh_sampler_pick(sampler, logits, NULL, &history, count, &token, &error), SH_OK);
            assert_int_equal(token, best);
        }
        sh_sampler_destroy(sampler);
    }
}

static void logprobs_are_of_the_raw_distribution(void **state) {
    (void)state;
    struct test_rng rng = {23};
    for (int round = 0; round < 100; round++) {
        float logits[N];
        struct ranked ranks[N];
        for (int t = 0; t < N; t++) logits[t] = floorf(4 * test_normal(&rng)) / 2; /* ties */
        double sum = 0;
        for (int t = 0; t < N; t++) sum += exp((double)logits[t]);
        for (int t = 0; t < N; t++) ranks[t] = (struct ranked){t, (double)logits[t]};
        qsort(ranks, N, sizeof ranks[0], by_rank);
        const uint32_t n_top = (uint32_t)round % (N + 1);
        struct sh_top top[N];
        float logprob;
        sh_logprobs(logits, N, 13, &logprob, top, n_top);
        assert_true(fabs((double)logprob - ((double)logits[13] - log(sum))) < 1e-5);
        for (uint32_t i = 0; i < n_top; i++) {
            assert_int_equal(top[i].token, ranks[i].token);
            assert_true(fabs((double)top[i].logprob - (ranks[i].logit - log(sum))) < 1e-5);
        }
    }
}

/* Logits and temperatures at the ends of what a float holds: a token and log-probs that are numbers or -infinity. */
static void extremes(void **state) {
    (void)state;
    float logits[N];
    for (int t = 0; t < N; t++) logits[t] = (float)(t * 7 % 11) + (float)(t == 30) * 20;
    const float cold[] = {1e-3f, 1e-20f, 1e-38f, 1e-40f, 1e-45f};
    for (size_t i = 0; i < SH_COUNT(cold); i++)
        for (int sign = 0; sign < 2; sign++) {
            const struct sh_sampler_params plain = {.size = sizeof plain, .temperature = cold[i], .seed = 8};
            const struct sh_sampler_params filtered = {.size = sizeof filtered, .temperature = cold[i], .seed = 8, .top_k = 9, .top_p = 1e-30f};
            float shifted[N];
            for (int t = 0; t < N; t++) shifted[t] = logits[t] - (sign ? 100.0f : 0.0f);
            assert_int_equal(pick(&plain, shifted, N, NULL, 3), 30);
            assert_int_equal(pick(&filtered, shifted, N, NULL, 3), 30);
        }
    static const struct {
        float logits[4], expected[4];
    } cases[] = {
        {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, {-1.3862944f, -1.3862944f, -1.3862944f, -1.3862944f}},
        {{1, INFINITY, 2, INFINITY}, {-INFINITY, -0.6931472f, -INFINITY, -0.6931472f}},
        {{1, -INFINITY, 1, -INFINITY}, {-0.6931472f, -INFINITY, -0.6931472f, -INFINITY}},
    };
    for (size_t i = 0; i < SH_COUNT(cases); i++)
        for (int32_t t = 0; t < 4; t++) {
            float logprob;
            struct sh_top top[4];
            sh_logprobs(cases[i].logits, 4, t, &logprob, top, 4);
            const float expected = cases[i].expected[t];
            assert_true(logprob == expected || fabsf(logprob - expected) < 1e-6f);
            for (int k = 0; k < 4; k++)
                if (top[k].token == t) assert_true(top[k].logprob == logprob);
        }
}

static void wrong_parameters_are_named(void **state) {
    (void)state;
    const struct sh_logit_bias outside = {N, 1}, infinite = {1, INFINITY};
    const struct {
        struct sh_sampler_params params;
        const char *word;
    } wrong[] = {
        {{.temperature = -1}, "temperature"},
        {{.temperature = nanf("")}, "temperature"},
        {{.top_p = -0.1f}, "top_p"},
        {{.min_p = 1.5f}, "min_p"},
        {{.repeat_penalty = -2}, "repeat_penalty"},
        {{.frequency_penalty = INFINITY}, "frequency"},
        {{.presence_penalty = nanf("")}, "presence"},
        {{.bias = &outside, .n_bias = 1}, "token 50"},
        {{.bias = &infinite, .n_bias = 1}, "token 1"},
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
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(gumbel_moments),
        cmocka_unit_test(draws_follow_the_filtered_distribution),
        cmocka_unit_test(draws_are_functions_of_seed_choice_position),
        cmocka_unit_test(skipping_is_exact),
        cmocka_unit_test(greedy_takes_the_largest_and_the_lowest_id),
        cmocka_unit_test(bias_and_penalties),
        cmocka_unit_test(logprobs_are_of_the_raw_distribution),
        cmocka_unit_test(extremes),
        cmocka_unit_test(wrong_parameters_are_named),
    };
    return cmocka_run_group_tests_name("core_sample", tests, NULL, NULL);
}
