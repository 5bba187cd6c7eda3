/* The largest logits of a row against a whole sort, and short lists: what they keep against sums in double precision, and that it is
 * the same token whether the list is made of the row or of what is left when all else is taken out. */
#include "compute/sample/sampler.h"
#include "tests/unit/guarded.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

static int by_rank(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    return sh_candidate_before(x, y) ? -1 : sh_candidate_before(y, x);
}

/* All that take part, ranked. */
static uint32_t rank_all(const float *logits, const uint32_t *mask, uint32_t n, double least, struct candidate *ranked) {
    uint32_t count = 0;
    for (uint32_t t = 0; t < n; t++)
        if (!isnan(logits[t]) && logits[t] > -INFINITY && (double)logits[t] >= least && (mask == NULL || sh_mask_has(mask, t)))
            ranked[count++] = (struct candidate){.token = (int32_t)t, .logit = logits[t]};
    qsort(ranked, count, sizeof *ranked, by_rank);
    return count;
}

/* kind 0: as they come; 1: many ties; 2: few values, both zeros, infinities and NaN among them; 3: nearly all NaN or -infinity; 4: rising. */
enum { KINDS = 5 };
static void fill(float *logits, uint32_t n, uint32_t kind, struct test_rng *rng) {
    static const float odd[] = {0.0f, -0.0f, 1, -1, -INFINITY, NAN, 0x1p-140f, -0x1p-140f};
    for (uint32_t t = 0; t < n; t++) {
        logits[t] = 4 * test_normal(rng);
        if (kind == 1) logits[t] = roundf(logits[t]);
        if (kind == 2) logits[t] = odd[test_random(rng) % SH_COUNT(odd)];
        if (kind == 3 && test_random(rng) % 64 != 0) logits[t] = test_random(rng) % 2 != 0 ? NAN : -INFINITY;
        if (kind == 4) logits[t] = (float)t * 0.01f;
    }
    if (kind == 2 && n > 40) logits[37] = INFINITY;
}

static uint32_t *random_mask(uint32_t n, struct test_rng *rng) {
    uint32_t *mask = test_guarded(sh_mask_words(n) * 4);
    for (uint32_t w = 0; w < sh_mask_words(n); w++)
        mask[w] = test_random(rng) % 3 == 0 ? 0 : (uint32_t)test_random(rng); /* bits from n on count for nothing */
    return mask;
}

static void the_largest_are_those_of_a_sort(void **state) {
    (void)state;
    static const uint32_t sizes[] = {1, 2, 31, 32, 33, 97, 1000, 4129}, counts[] = {1, 2, 3, 40, 255, 256, 1000};
    struct test_rng rng = {5};
    struct candidate ranked[4129];
    uint32_t fewer = 0, masked = 0;
    for (size_t i = 0; i < SH_COUNT(sizes); i++)
        for (uint32_t kind = 0; kind < KINDS; kind++)
            for (size_t k = 0; k < SH_COUNT(counts); k++) {
                const uint32_t n = sizes[i], most = counts[k];
                float *logits = test_guarded(n * 4ull);
                fill(logits, n, kind, &rng);
                uint32_t *mask = k % 2 == 0 ? NULL : random_mask(n, &rng);
                const double least = k % 3 == 2 ? 0.5 : -INFINITY;
                const uint32_t all = rank_all(logits, mask, n, least, ranked);
                struct candidate *top = test_guarded(most * sizeof *top);
                const uint32_t found = sh_sampler_top(logits, mask, n, least, most, top);
                assert_int_equal(found, all < most ? all : most);
                for (uint32_t c = 0; c < found; c++) {
                    assert_int_equal(top[c].token, ranked[c].token);
                    assert_memory_equal(&top[c].logit, &ranked[c].logit, 4);
                }
                fewer += all < most;
                masked += mask != NULL;
                test_release(top, most * sizeof *top);
                if (mask != NULL) test_release(mask, sh_mask_words(n) * 4);
                test_release(logits, n * 4ull);
            }
    assert_true(fewer > 0 && masked > 0);
}

static const struct sh_sampler_params settings[] = {
    {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f}, /* what every client begins with */
    {.temperature = 1.3f, .top_k = 1},
    {.temperature = 0.6f, .top_k = 7, .top_p = 0.5f},
    {.temperature = 1, .top_k = 200, .min_p = 0.01f},
    {.temperature = 4, .top_k = 256, .top_p = 0.999f, .seed = 1ull << 50},
    {.temperature = 30, .top_k = 256, .choice = 3},
    {.temperature = 1, .top_k = 33, .top_p = 1e-6f},
    {.temperature = 1e-3f, .top_k = 33, .min_p = 1},
};

/* How many of a ranked list top_p and min_p keep, in double precision; *sure: no cut is within the arithmetic's error of a logit. */
static uint32_t keep(const struct sh_sampler_params *p, const struct candidate *list, uint32_t n, bool *sure) {
    const double slack = 0x1p-14; /* sums of 256 terms are off by 2^-16, exp by 80 * 2^-24 and a rounding */
    double total = 0, mass = 0;
    *sure = true;
    for (uint32_t k = 0; k < n; k++) total += exp((double)list[k].logit - (double)list[0].logit);
    uint32_t kept = 0;
    for (; kept < n; kept++) {
        const double likely = exp((double)list[kept].logit - (double)list[0].logit);
        if (kept > 0) {
            const bool nucleus = p->top_p > 0 && p->top_p < 1;
            if (nucleus) *sure = *sure && fabs(mass - (double)p->top_p * total) > slack * total;
            *sure = *sure && fabs(likely - (double)p->min_p) > slack * (double)p->min_p;
            if ((nucleus && mass >= (double)p->top_p * total) || likely < (double)p->min_p) break;
        }
        mass += likely;
    }
    return kept;
}

static void short_lists_keep_what_the_filters_say(void **state) {
    (void)state;
    enum { N = 3001, ROUNDS = 60 };
    struct test_rng rng = {77};
    static float logits[N], left[N];
    struct candidate ranked[N];
    uint32_t certain = 0, cut = 0, infinite = 0;
    for (size_t i = 0; i < SH_COUNT(settings); i++) {
        struct sh_sampler_params p = settings[i];
        struct sh_sampler *s = NULL;
        p.size = sizeof p;
        assert_int_equal(sh_sampler_create(&p, N, &s, &error), SH_OK);
        assert_true(sh_sampler_has_short_list(s) && sh_sampler_suits_device(s));
        for (uint32_t round = 0; round < ROUNDS; round++) {
            fill(logits, N, round % KINDS, &rng);
            uint32_t *mask = round % 3 == 2 ? random_mask(N, &rng) : NULL;
            uint32_t n = rank_all(logits, mask, N, -INFINITY, ranked);
            const struct sh_token_history none = {0};
            int32_t token = -2, again = -2;
            assert_int_equal(sh_sampler_pick(s, logits, mask, &none, round, &token, &error), SH_OK);
            if (n > p.top_k) n = p.top_k;
            for (uint32_t t = 0; t < N; t++) left[t] = -INFINITY;
            for (uint32_t k = 0; k < n; k++) left[ranked[k].token] = ranked[k].logit;
            assert_int_equal(sh_sampler_pick(s, left, NULL, &none, round, &again, &error), SH_OK);
            assert_int_equal(again, token);
            if (mask != NULL) test_release(mask, sh_mask_words(N) * 4);
            if (isinf(ranked[0].logit)) {
                assert_int_equal(token, ranked[0].token);
                infinite++;
                continue;
            }
            bool sure;
            const uint32_t kept = keep(&p, ranked, n, &sure);
            if (!sure) continue;
            assert_int_equal(sh_sampler_cut(s, ranked, n), kept);
            int32_t best = -1;
            float best_key = -INFINITY;
            for (uint32_t k = 0; k < kept; k++) {
                const float key = ranked[k].logit * (1 / p.temperature) + sh_gumbel(p.seed, p.choice, round, (uint32_t)ranked[k].token);
                if (best >= 0 && (key < best_key || (key == best_key && ranked[k].token > best))) continue;
                best = ranked[k].token;
                best_key = key;
            }
            assert_int_equal(token, best);
            certain++;
            cut += kept < n;
        }
        sh_sampler_destroy(s);
    }
    assert_true(certain > SH_COUNT(settings) * ROUNDS / 2 && cut > SH_COUNT(settings) * ROUNDS / 4 && infinite > 0);
}

/* What has no short list: the condition is one function, and these are its edges. */
static void what_makes_a_short_list(void **state) {
    (void)state;
    enum { N = 300 };
    const struct sh_logit_bias bias = {.token = 3, .bias = 1};
    const struct {
        struct sh_sampler_params p;
        bool short_list, device;
    } rows[] = {
        {{.temperature = 0, .top_k = 40, .top_p = 0.9f}, false, true},
        {{.temperature = 1}, false, true},
        {{.temperature = 1, .top_k = 256}, true, true},
        {{.temperature = 1, .top_k = 257}, false, false},
        {{.temperature = 1, .top_k = N}, false, true},
        {{.temperature = 1, .top_p = 0.9f}, false, false},
        {{.temperature = 1, .top_k = N + 5, .min_p = 0.1f}, false, false},
        {{.temperature = 1, .top_k = 5, .typical_p = 0.9f}, false, false},
        {{.temperature = 1, .top_k = 5, .top_n_sigma = 1}, false, false},
        {{.temperature = 1, .top_k = 5, .xtc_probability = 0.5f}, false, false},
        {{.temperature = 1, .top_k = 5, .mirostat = 2}, false, false},
        {{.temperature = 1, .top_k = 5, .repeat_penalty = 1.1f}, true, false},
        {{.temperature = 1, .top_k = 5, .bias = &bias, .n_bias = 1}, true, false},
    };
    for (size_t i = 0; i < SH_COUNT(rows); i++) {
        struct sh_sampler_params p = rows[i].p;
        struct sh_sampler *s = NULL;
        p.size = sizeof p;
        assert_int_equal(sh_sampler_create(&p, N, &s, &error), SH_OK);
        assert_int_equal(sh_sampler_has_short_list(s), rows[i].short_list);
        assert_int_equal(sh_sampler_suits_device(s), rows[i].device);
        sh_sampler_destroy(s);
    }
}

/* The functions of draw.h: below one unit in the last place, over all random numbers there are for the logarithms. */
static void logarithm_and_exponential_are_precise(void **state) {
    (void)state;
    double ln_worst = 0, gumbel_worst = 0, exp_worst = 0;
    for (uint32_t k = 0; k < 1u << 23; k++) {
        const float u = sh_unit(k << 9), inner = -sh_ln(u);
        const double want = -log((double)u);
        ln_worst = fmax(ln_worst, fabs((double)inner - want) / ldexp(1, ilogb(want) - 23));
        if (k % 8 != 0) continue; /* the outer one near 0 is as precise as its argument */
        const double outer = log((double)inner);
        gumbel_worst = fmax(gumbel_worst, fabs((double)sh_ln(inner) - outer) / ldexp(1, ilogb(outer == 0 ? 1 : outer) - 23));
    }
    for (uint32_t i = 0; i <= 4000000; i++) {
        const float x = -(float)i * 2e-5f;
        exp_worst = fmax(exp_worst, fabs((double)sh_exp_down(x) - exp((double)x)) / ldexp(1, ilogb(exp((double)x)) - 23));
    }
    assert_true(ln_worst < 1 && gumbel_worst < 1 && exp_worst < 1);
    assert_true(sh_exp_down(0) == 1 && sh_exp_down(-80.1f) == 0 && sh_exp_down(-INFINITY) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_largest_are_those_of_a_sort),
        cmocka_unit_test(short_lists_keep_what_the_filters_say),
        cmocka_unit_test(what_makes_a_short_list),
        cmocka_unit_test(logarithm_and_exponential_are_precise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
