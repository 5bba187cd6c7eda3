/* Routing against its formula in double precision, its order of equals, and logits that are no numbers. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define MOST 64

static double softmax(const double *x, uint32_t n, uint32_t at) {
    double sum = 0;
    for (uint32_t e = 0; e < n; e++) sum += exp(x[e] - x[at]);
    return 1 / sum;
}

/* How many of [0, n) come before i in descending order, the lower first of equals. */
static uint32_t rank(const double *score, const bool *allowed, uint32_t n, uint32_t i) {
    uint32_t before = 0;
    for (uint32_t e = 0; e < n; e++)
        before += (allowed == NULL || allowed[e]) && (score[e] > score[i] || (!(score[e] < score[i]) && e < i));
    return before;
}

static void allow_groups(const struct sh_ref_route *r, const double *score, bool *allowed) {
    const uint32_t size = r->n_expert / r->n_groups;
    double best[MOST];
    for (uint32_t g = 0; g < r->n_groups; g++) {
        best[g] = 0;
        for (uint32_t e = 0; e < size; e++)
            if (rank(score + g * size, NULL, size, e) < 2) best[g] += score[g * size + e];
    }
    for (uint32_t e = 0; e < r->n_expert; e++) allowed[e] = rank(best, NULL, r->n_groups, e / size) < r->n_groups_used;
}

/* By ranks instead of by repeated choice. */
static void expect(const struct sh_ref_route *r, const float *logits, const float *bias, uint32_t *ids, double *weights) {
    double x[MOST], p[MOST], score[MOST], chosen[MOST], sum = 0;
    bool allowed[MOST];
    for (uint32_t e = 0; e < r->n_expert; e++) x[e] = (double)logits[e];
    for (uint32_t e = 0; e < r->n_expert; e++) {
        p[e] = r->gating == SH_GATE_SOFTMAX   ? softmax(x, r->n_expert, e)
               : r->gating == SH_GATE_SIGMOID ? 1 / (1 + exp(-x[e]))
                                              : x[e];
        score[e] = p[e] + (bias != NULL ? (double)bias[e] : 0);
        allowed[e] = true;
    }
    if (r->n_groups > 1) allow_groups(r, score, allowed);
    for (uint32_t e = 0; e < r->n_expert; e++) {
        const uint32_t j = rank(score, allowed, r->n_expert, e);
        if (!allowed[e] || j >= r->n_used) continue;
        ids[j] = e;
        chosen[j] = p[e];
    }
    for (uint32_t j = 0; j < r->n_used; j++) {
        weights[j] = r->gating == SH_GATE_SOFTMAX_CHOSEN ? softmax(chosen, r->n_used, j) : chosen[j];
        sum += weights[j];
    }
    for (uint32_t j = 0; j < r->n_used; j++) weights[j] *= (double)r->scale / (r->normalise ? fmax(sum, 0x1p-14) : 1);
}

static float *run(const struct sh_ref_route *r, const float *logits, const float *bias) {
    float *scratch = test_guarded(SH_REF_ROUTE_SCRATCH(r->n_expert) * sizeof(float)),
          *out = test_guarded(2 * r->n_used * sizeof(float));
    sh_ref_route(r, logits, bias, scratch, out);
    test_release_floats(scratch, SH_REF_ROUTE_SCRATCH(r->n_expert));
    return out;
}

static void check(const struct sh_ref_route *r, const float *logits, const float *bias) {
    uint32_t ids[MOST];
    double weights[MOST];
    expect(r, logits, bias, ids, weights);
    float *out = run(r, logits, bias);
    for (uint32_t j = 0; j < r->n_used; j++) {
        assert_true(out[j] == (float)ids[j]);
        /* n_expert roundings in the sums, those of exp, and that of its argument, which is at most 60 here */
        if (!(fabs((double)out[r->n_used + j] - weights[j]) <= (2 * r->n_expert + 84) * 0x1p-24 * fabs(weights[j])))
            fail_msg("gating %d, %u of %u, place %u: weight %.9g, expected %.9g", (int)r->gating, r->n_used, r->n_expert, j,
                     (double)out[r->n_used + j], weights[j]);
    }
    test_release_floats(out, 2 * r->n_used);
}

static const struct sh_ref_route cases[] = {
    {1, 1, SH_GATE_SOFTMAX, true, 1, 0, 0},           {7, 3, SH_GATE_SOFTMAX, false, 1, 0, 0},
    {60, 4, SH_GATE_SOFTMAX, true, 2.5f, 0, 0},       {32, 4, SH_GATE_SOFTMAX_CHOSEN, false, 1, 0, 0},
    {5, 5, SH_GATE_SOFTMAX_CHOSEN, true, 0.5f, 1, 1}, {64, 6, SH_GATE_SIGMOID, true, 1.7f, 0, 0},
    {64, 8, SH_GATE_SIGMOID, true, 2.5f, 8, 4},       {16, 2, SH_GATE_SOFTMAX, false, 16, 8, 1},
    {12, 4, SH_GATE_SIGMOID, false, 1, 4, 2},         {9, 2, SH_GATE_SOFTMAX, true, 1, 9, 2},
};

static void test_cpu_route(void **state) {
    (void)state;
    struct test_rng rng = {1};
    for (size_t i = 0; i < SH_COUNT(cases); i++)
        for (uint32_t round = 0; round < 200; round++) {
            const uint32_t n = cases[i].n_expert;
            const bool sigmoid = cases[i].gating == SH_GATE_SIGMOID; /* which makes 1 of all that is large */
            float *logits = test_guarded_floats(n, round % 2 || sigmoid ? 3.0f : 30.0f, &rng),
                  *bias = test_guarded_floats(n, 0.5f, &rng);
            check(&cases[i], logits, NULL);
            check(&cases[i], logits, bias);
            test_release_floats(logits, n);
            test_release_floats(bias, n);
        }
}

static void test_cpu_route_equal_logits(void **state) {
    (void)state;
    const float logits[8] = {1, 2, 2, 1, 2, 0, 2, 1};
    static const float expected[3] = {1, 2, 4};
    for (int gating = 0; gating < 3; gating++) {
        const struct sh_ref_route r = {8, 3, (enum sh_gating)gating, true, 1, 0, 0};
        float *out = run(&r, logits, NULL);
        assert_memory_equal(out, expected, sizeof expected);
        test_release_floats(out, 6);
    }
    const float pairs[8] = {1, 2, 2, 1, 2, 1, 2, 1}; /* all groups of two score alike */
    const struct sh_ref_route r = {8, 2, SH_GATE_SIGMOID, true, 1, 4, 2};
    float *out = run(&r, pairs, NULL);
    assert_true(out[0] == 1 && out[1] == 2);
    test_release_floats(out, 4);
}

/* Whatever the logits are, the numbers are different ones that exist. */
static void test_cpu_route_hostile(void **state) {
    (void)state;
    struct test_rng rng = {2};
    static const float bad[] = {NAN, -INFINITY, INFINITY, 3e38f, -3e38f, 0.0f, 1.0f};
    for (size_t i = 0; i < SH_COUNT(cases); i++)
        for (uint32_t round = 0; round < 100; round++) {
            const struct sh_ref_route *r = &cases[i];
            float *logits = test_guarded(r->n_expert * sizeof *logits), *bias = test_guarded(r->n_expert * sizeof *bias);
            for (uint32_t e = 0; e < r->n_expert; e++) {
                logits[e] = bad[round < SH_COUNT(bad) ? round : test_random(&rng) % SH_COUNT(bad)];
                bias[e] = bad[test_random(&rng) % SH_COUNT(bad)];
            }
            float *out = run(r, logits, round % 2 ? bias : NULL);
            bool seen[MOST] = {false};
            for (uint32_t j = 0; j < r->n_used; j++) {
                assert_true(out[j] >= 0 && out[j] < (float)r->n_expert && out[j] == floorf(out[j]));
                assert_false(seen[(uint32_t)out[j]]);
                seen[(uint32_t)out[j]] = true;
            }
            test_release_floats(out, 2 * r->n_used);
            test_release_floats(logits, r->n_expert);
            test_release_floats(bias, r->n_expert);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_route),
        cmocka_unit_test(test_cpu_route_equal_logits),
        cmocka_unit_test(test_cpu_route_hostile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
