/* test_daemon_pace.c - the budget of a step, on made-up machines: prompts get on, and those that run hardly notice. No clock. */
#include "compute/base.h"
#include "daemon/pace.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* Nanoseconds of a step of so many rows. */
typedef double (*machine_fn)(uint32_t rows);
static double cpu(uint32_t rows) { return 50e6 + 8e6 * rows; }
static double slow_cpu(uint32_t rows) { return 5e6 + 60e6 * rows; }
static double gpu(uint32_t rows) { return 12e6 + 0.02e6 * rows; }
static double tiles(uint32_t rows) { return 10e6 + 30e6 * ((rows + 15) / 16); } /* sixteen rows in the time of one */
static double nothing(uint32_t rows) { return 1e6 + 0 * rows; }

enum { PROMPT = 2000, DECODING = 8 };

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Eight texts run; a prompt arrives. What the steps take then, by the 95th percentile, and how many there are. */
static void arrive(machine_fn machine, uint32_t share, double jitter, double *p95, uint32_t *steps) {
    struct pace pace;
    struct test_rng rng = {5};
    static double took[PROMPT];
    pace_init(&pace, 512);
    for (uint32_t i = 0; i < 50; i++) pace_step(&pace, DECODING, 0, (uint64_t)machine(DECODING));
    uint32_t left = PROMPT, n = 0;
    while (left > 0) {
        uint32_t rows = pace_prompt_rows(&pace, DECODING, 1, share);
        if (rows > left) rows = left;
        assert_true(n < PROMPT);
        took[n] = machine(DECODING + rows) * (1 + jitter * (double)(test_random(&rng) % 1000) / 1000);
        pace_step(&pace, DECODING, rows, (uint64_t)took[n++]);
        left -= rows;
    }
    qsort(took, n, sizeof *took, ascending);
    *p95 = took[n - 1 - n / 20] / machine(DECODING);
    *steps = n;
}

static void bounded(void **state) {
    (void)state;
    static const machine_fn machines[] = {cpu, slow_cpu, gpu, tiles, nothing};
    /* not more steps than the least share that is always given makes, and on a machine where rows cost little next to none */
    static const uint32_t most[] = {400, 520, 60, 300, 60};
    for (uint32_t i = 0; i < SH_COUNT(machines); i++) {
        for (uint32_t noisy = 0; noisy < 2; noisy++) {
            double p95;
            uint32_t steps;
            arrive(machines[i], 60, noisy ? 0.2 : 0, &p95, &steps);
            if (p95 >= 1.95 || steps > most[i]) fail_msg("machine %u: %.2f times as long, %u steps", i, p95, steps);
        }
    }
}

/* More share, fewer steps. */
static void share_counts(void **state) {
    (void)state;
    double p95;
    uint32_t little, much;
    arrive(cpu, 30, 0, &p95, &little);
    assert_true(p95 < 1.5);
    arrive(cpu, 200, 0, &p95, &much);
    assert_true(p95 < 3.3);
    assert_true(much * 3 < little);
}

/* Prompts alone: steps that take neither long nor little, whatever the machine. */
static void alone(void **state) {
    (void)state;
    static const machine_fn machines[] = {cpu, slow_cpu, gpu};
    for (uint32_t i = 0; i < SH_COUNT(machines); i++) {
        struct pace pace;
        pace_init(&pace, 512);
        for (uint32_t k = 0; k < 20; k++) {
            const uint32_t rows = pace_prompt_rows(&pace, 0, 1, 60);
            assert_in_range(rows, 16, 512);
            pace_step(&pace, 0, rows, (uint64_t)machines[i](rows));
        }
        const uint32_t rows = pace_prompt_rows(&pace, 0, 1, 60);
        if (rows > 16) assert_true(machines[i](rows) <= 500e6);
        if (rows < 512) assert_true(machines[i](2 * rows) > 150e6);
    }
    struct pace small;
    pace_init(&small, 3);
    assert_int_equal(pace_prompt_rows(&small, 0, 1, 60), 3);
    pace_step(&small, 2, 0, 1000);
    assert_int_equal(pace_prompt_rows(&small, 2, 1, 60), 3);
}

/* What was never measured is measured first, and again after a while; a single slow step does not make a rule. */
static void measuring(void **state) {
    (void)state;
    struct pace pace;
    pace_init(&pace, 512);
    assert_int_equal(pace_prompt_rows(&pace, 4, 1, 60), 0);
    pace_step(&pace, 4, 0, (uint64_t)cpu(4));
    uint32_t without = 0;
    for (uint32_t i = 0; i < 200; i++) {
        const uint32_t rows = pace_prompt_rows(&pace, 4, 1, 60);
        without += rows == 0;
        pace_step(&pace, 4, rows, (uint64_t)cpu(4 + rows));
    }
    assert_in_range(without, 2, 5);
    const double before = pace_decode_ns(&pace, 4);
    pace_step(&pace, 4, 0, 100 * (uint64_t)cpu(4));
    assert_true(pace_decode_ns(&pace, 4) < 2 * before);
    /* between and beside what is known */
    pace_step(&pace, 12, 0, (uint64_t)(before * 3));
    const double middle = pace_decode_ns(&pace, 8);
    assert_true(middle > before && middle < before * 3.01);
    assert_true(pace_decode_ns(&pace, 40) == pace_decode_ns(&pace, 12));
    for (uint32_t rows = 1; rows < 70000; rows = rows * 3 / 2 + 1) pace_step(&pace, rows, rows / 2, 1000000);
}

/* Those who wait get more together, but steps stay bearable; one who waits gets what it always does. */
static void crowd(void **state) {
    (void)state;
    struct pace pace;
    pace_init(&pace, 512);
    pace_step(&pace, 2, 0, (uint64_t)cpu(2));
    for (uint32_t i = 0; i < 20; i++) {
        const uint32_t rows = pace_prompt_rows(&pace, 2, 12, 60);
        pace_step(&pace, 2, rows, (uint64_t)cpu(2 + rows));
    }
    const uint32_t one = pace_prompt_rows(&pace, 2, 1, 60), many = pace_prompt_rows(&pace, 2, 12, 60);
    assert_true(many >= 4 * one);
    assert_true(cpu(2 + many) <= 260e6 && cpu(2 + pace_prompt_rows(&pace, 2, 1000, 60)) <= 260e6);
    const uint32_t two = pace_prompt_rows(&pace, 2, 2, 60);
    assert_in_range(two, 2 * one - 2, 2 * one + 2);
    /* where the least share is longer than that already, it is all that they get */
    pace_init(&pace, 512);
    for (uint32_t i = 0; i < 20; i++) pace_step(&pace, 8, i % 2 == 0 ? 0 : 4, (uint64_t)slow_cpu(8 + (i % 2 == 0 ? 0 : 4)));
    assert_int_equal(pace_prompt_rows(&pace, 8, 12, 60), pace_prompt_rows(&pace, 8, 1, 60));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bounded), cmocka_unit_test(share_counts), cmocka_unit_test(alone),
                                       cmocka_unit_test(measuring), cmocka_unit_test(crowd)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
