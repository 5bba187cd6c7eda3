/* test_daemon_draft.c - guesses: lookup against a plain search, and what pays. */
#include "daemon/draft.h"

#include "compute/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t random_state = 1;
static uint32_t random_below(uint32_t n) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ z >> 31) % n);
}

/* ---- lookup ---- */

/* The same by looking everywhere, the latest first. */
static uint32_t guess_plainly(const int32_t *tokens, uint32_t base, uint32_t count, uint32_t max, int32_t *guess, uint32_t *run) {
    static const uint32_t lengths[] = {8, 6, 4, 3, 2};
    *run = 0;
    for (uint32_t i = 0; i < SH_COUNT(lengths); i++) {
        const uint32_t n = lengths[i];
        for (uint32_t place = count; place-- > base + n;) {
            if (memcmp(tokens + place - n, tokens + count - n, n * sizeof *tokens) != 0) continue;
            for (uint32_t k = 0; k < max; k++) guess[k] = place + k < count ? tokens[place + k] : guess[place + k - count];
            *run = n;
            return max;
        }
    }
    return 0;
}

static void compare(const struct draft_index *index, const int32_t *tokens, uint32_t count, uint32_t max) {
    int32_t guess[DRAFT_MAX], expected[DRAFT_MAX];
    uint32_t run, expected_run;
    const uint32_t n = draft_index_guess(index, tokens, max, guess, &run);
    assert_int_equal(n, guess_plainly(tokens, index->base, count, max, expected, &expected_run));
    assert_int_equal(run, expected_run);
    assert_memory_equal(guess, expected, n * sizeof *guess);
}

/* Texts of few words, which repeat all the time, and of many; taken in token by token and in leaps. */
static void test_lookup(void **state) {
    (void)state;
    static const uint32_t vocabularies[] = {1, 2, 3, 7, 40, 1000};
    enum { LENGTH = 700 };
    int32_t tokens[LENGTH];
    uint32_t found = 0;
    for (uint32_t v = 0; v < SH_COUNT(vocabularies); v++) {
        for (uint32_t leaps = 0; leaps < 2; leaps++) {
            struct draft_index index = {0};
            for (uint32_t i = 0; i < LENGTH; i++) tokens[i] = (int32_t)random_below(vocabularies[v]);
            /* a passage of it again, as an answer that quotes its question */
            memcpy(tokens + 400, tokens + 100, 200 * sizeof *tokens);
            for (uint32_t count = 0; count <= LENGTH; count += leaps ? 1 + random_below(60) : 1) {
                assert_true(draft_index_push(&index, tokens, count));
                compare(&index, tokens, count, 1 + random_below(DRAFT_MAX));
                uint32_t run;
                int32_t guess[4];
                if (vocabularies[v] == 1000 && count >= 420 && count < 590 && draft_index_guess(&index, tokens, 4, guess, &run) == 4 && run == 8) {
                    assert_memory_equal(guess, tokens + count, sizeof guess);
                    found++;
                }
            }
            draft_index_finish(&index);
            assert_null(index.slots);
        }
    }
    assert_true(found > 150);
}

/* A text longer than what is remembered: at least the later half of that is found, and memory stays bounded. */
static void test_long(void **state) {
    (void)state;
    const uint32_t length = 3 * DRAFT_INDEX_TOKENS;
    int32_t *tokens = sh_calloc(length, sizeof *tokens);
    assert_non_null(tokens);
    for (uint32_t i = 0; i < length; i++) tokens[i] = (int32_t)random_below(50);
    struct draft_index index = {0}, late = {0};
    for (uint32_t count = 1; count <= length; count++) {
        assert_true(draft_index_push(&index, tokens, count));
        assert_true(count - index.base <= DRAFT_INDEX_TOKENS);
        if (count > DRAFT_INDEX_TOKENS) assert_true(count - index.base >= DRAFT_INDEX_TOKENS / 2);
        if (count % 4999 == 0) compare(&index, tokens, count, 5);
    }
    assert_true(index.capacity <= 16 * DRAFT_INDEX_TOKENS);
    assert_true(draft_index_push(&late, tokens, length - 1));
    compare(&late, tokens, length - 1, 5);
    assert_int_equal(late.base, length - 1 - DRAFT_INDEX_TOKENS);
    draft_index_finish(&index);
    draft_index_finish(&late);
    free(tokens);
}

/* ---- rates, costs ---- */

static void test_rate(void **state) {
    (void)state;
    struct draft_rate rate = {0};
    assert_true(draft_rate_get(&rate, 0.5, 4) == 0.5);
    draft_rate_add(&rate, 3, 1);
    const double after = draft_rate_get(&rate, 0.5, 4);
    assert_true(after > 0.5 && after < 0.75);
    for (int i = 0; i < 300; i++) draft_rate_add(&rate, 9, 1);
    assert_true(draft_rate_get(&rate, 0, 1) > 0.8);
    for (int i = 0; i < 60; i++) draft_rate_add(&rate, 0, 1); /* old tries fade */
    assert_true(draft_rate_get(&rate, 1, 1) < 0.3);
}

static void test_cost(void **state) {
    (void)state;
    struct draft_cost cost = {0};
    assert_true(draft_cost_get(&cost, 2) / draft_cost_get(&cost, 1) < 1.15);
    draft_cost_add(&cost, 128, 1280000);
    assert_true(draft_cost_get(&cost, 128) == 1280000);
    assert_true(draft_cost_get(&cost, 1) == 10000); /* not known yet: to be tried */
    draft_cost_add(&cost, 1, 100000);
    assert_true(draft_cost_get(&cost, 1) == 100000);
    assert_true(draft_cost_get(&cost, 64) > 600000 && draft_cost_get(&cost, 64) < 800000);
    assert_true(draft_cost_get(&cost, 256) > 1280000);
    draft_cost_add(&cost, 4, 90000); /* a measurement that is less than that of fewer rows */
    assert_true(draft_cost_get(&cost, 4) == 100000);
    for (uint32_t rows = 1; rows < 5000; rows++) {
        assert_true(draft_cost_get(&cost, rows + 1) >= draft_cost_get(&cost, rows));
        draft_cost_add(&cost, rows, 1000 * (rows > 8 ? rows : 8));
    }
    for (int i = 0; i < 400; i++) draft_cost_add(&cost, 1 + i % 2, 8000);
    assert_true(draft_cost_get(&cost, 2) < 9000);
    draft_cost_add(&cost, 2, 8000000000); /* the machine slept */
    assert_true(draft_cost_get(&cost, 2) < 12000);
}

/* ---- what pays ---- */

static struct draft_cost cost_of(double fixed, double per_row) {
    struct draft_cost cost = {0};
    for (uint32_t rows = 1; rows <= 512; rows++) draft_cost_add(&cost, rows, (uint64_t)(fixed + per_row * rows));
    return cost;
}

static void test_plan(void **state) {
    (void)state;
    const struct draft_cost cheap = cost_of(1e7, 1e5), linear = cost_of(1e3, 1e7);
    struct draft_share one = {.rate = 0.9, .most = 16};
    draft_plan(&cheap, NULL, 1, 1, 100, &one, 1);
    assert_true(one.length >= 12);
    draft_plan(&cheap, NULL, 1, 1, 5, &one, 1); /* no more room */
    assert_int_equal(one.length, 5);
    draft_plan(&linear, NULL, 1, 1, 100, &one, 1); /* a row more is a token's time more */
    assert_int_equal(one.length, 0);
    one = (struct draft_share){.rate = 0.05, .most = 16};
    draft_plan(&cheap, NULL, 1, 1, 100, &one, 1);
    assert_true(one.length <= 1);
    one = (struct draft_share){.rate = 0.9, .most = 16, .modelled = true};
    draft_plan(&cheap, &cheap, 1, 1, 100, &one, 1); /* the one who guesses takes as long as the model itself */
    assert_int_equal(one.length, 0);
    const struct draft_cost tiny = cost_of(1e5, 1e3);
    draft_plan(&cheap, &tiny, 1, 1, 100, &one, 1);
    assert_true(one.length >= 8);

    /* Many: the surer ones get more; in a full batch whose rows cost, none gets any. */
    struct draft_share many[32];
    for (uint32_t i = 0; i < SH_COUNT(many); i++) many[i] = (struct draft_share){.rate = 0.5 + 0.014 * i, .most = 8};
    draft_plan(&cheap, NULL, 32, 32, 480, many, SH_COUNT(many));
    assert_true(many[31].length > many[0].length);
    uint32_t total = 0;
    for (uint32_t i = 0; i < SH_COUNT(many); i++) {
        if (i > 0) assert_true(many[i].length >= many[i - 1].length);
        total += many[i].length;
    }
    assert_true(total > 32);
    draft_plan(&linear, NULL, 32, 32, 480, many, SH_COUNT(many));
    for (uint32_t i = 0; i < SH_COUNT(many); i++) assert_int_equal(many[i].length, 0);

    /* Who gets no guesses does not wait much longer for those who do. */
    const struct draft_cost flat = cost_of(1e7, 1e6);
    struct draft_share sure = {.rate = 0.98, .most = 30};
    draft_plan(&flat, NULL, 1, 1, 100, &sure, 1);
    assert_true(sure.length > 10);
    draft_plan(&flat, NULL, 2, 2, 100, &sure, 1);
    assert_in_range(sure.length, 2, 4);

    /* Rows that are free up to a tile's end are taken although the first of them is not. */
    struct draft_cost tile = {0};
    draft_cost_add(&tile, 1, 1000000);
    for (uint32_t rows = 2; rows <= 16; rows++) draft_cost_add(&tile, rows, 2000000);
    one = (struct draft_share){.rate = 0.95, .most = 15};
    draft_plan(&tile, NULL, 1, 1, 100, &one, 1);
    assert_true(one.length >= 10);
}

static void test_pace(void **state) {
    (void)state;
    struct draft_pace pace = {0};
    assert_true(draft_pace_most(&pace, 8) > 0);
    assert_int_equal(draft_pace_most(&pace, 2), 2);
    assert_false(draft_pace_due(&pace));
    draft_pace_result(&pace, 4, 4, 16);
    assert_int_equal(draft_pace_most(&pace, 16), 8);
    draft_pace_result(&pace, 8, 8, 12);
    assert_int_equal(draft_pace_most(&pace, 12), 12);
    draft_pace_result(&pace, 2, 2, 12); /* there was room for no more */
    assert_int_equal(draft_pace_most(&pace, 12), 12);
    draft_pace_result(&pace, 12, 5, 12);
    assert_int_equal(draft_pace_most(&pace, 12), 6);
    draft_pace_result(&pace, 6, 0, 12);
    assert_int_equal(draft_pace_most(&pace, 12), 1);

    /* Tries that fail become rarer, but do not end; one that succeeds makes them frequent again. */
    uint32_t before = 0;
    for (int i = 0; i < 20; i++) {
        uint32_t waited = 0;
        while (!draft_pace_due(&pace)) {
            draft_pace_token(&pace);
            waited++;
        }
        assert_true(waited >= before && waited <= 1024);
        before = waited;
        draft_pace_result(&pace, 1, 0, 12);
    }
    assert_int_equal(before, 1024);
    draft_pace_result(&pace, 1, 1, 12);
    for (int i = 0; i < 64; i++) draft_pace_token(&pace);
    assert_true(draft_pace_due(&pace));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup), cmocka_unit_test(test_long), cmocka_unit_test(test_rate),
        cmocka_unit_test(test_cost),   cmocka_unit_test(test_plan), cmocka_unit_test(test_pace),
    };
    return cmocka_run_group_tests_name("daemon_draft", tests, NULL, NULL);
}
