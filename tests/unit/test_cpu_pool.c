/* The thread pool: every item once, by at most the asked workers; steps in order, loads behind them; idle costs no time. */
#include "compute/cpu/pool.h"
#include "tests/unit/shared.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#define ITEMS 1003

struct counts {
    atomic_uint seen[ITEMS];
    atomic_uint highest_worker;
};

static void count(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    struct counts *c = arg;
    for (uint64_t i = begin; i < end; i++) atomic_fetch_add(&c->seen[i], 1);
    unsigned highest = atomic_load(&c->highest_worker);
    while (worker > highest && !atomic_compare_exchange_weak(&c->highest_worker, &highest, worker)) {
    }
}

static struct sh_pool *acquire(uint32_t workers) {
    struct sh_pool *pool = NULL;
    struct sh_error err = {0};
    if (sh_pool_acquire(workers, &pool, &err) != SH_OK) fail_msg("%s", err.message);
    return pool;
}

static void test_pool_every_item_once(void **state) {
    (void)state;
    struct sh_pool *pool = acquire(5), *same = acquire(2);
    assert_ptr_equal(pool, same);
    static struct counts c;
    sh_pool_enter(pool, SH_POOL_STEP);
    for (uint32_t round = 0; round < 300; round++) {
        memset(&c, 0, sizeof c);
        const uint32_t workers = 1 + round % 7; /* more than there are is no mistake */
        const uint64_t n = round % 3 == 0 ? ITEMS : round % 50, grain = 1 + round % 9;
        sh_pool_run(pool, workers, n, grain, count, &c);
        for (uint64_t i = 0; i < ITEMS; i++) assert_int_equal(atomic_load(&c.seen[i]), i < n ? 1 : 0);
        assert_true(atomic_load(&c.highest_worker) < workers);
    }
    sh_pool_leave(pool);
    sh_pool_release(same);
    sh_pool_release(pool);
}

struct section {
    uint32_t number; /* of the run; 0 once it is over */
    atomic_uint done;
};
static void within(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    struct section *s = arg;
    (void)worker;
    for (uint64_t i = begin; i < end; i++)
        if (*(volatile uint32_t *)&s->number != 0) atomic_fetch_add(&s->done, 1);
}

/* Many short runs with more workers than cores, so that many come late: none touches a run that is over, none is missing from one
 * it took an item of. */
static void test_pool_late_workers(void **state) {
    (void)state;
    struct sh_pool *pool = acquire(9);
    struct section sections[2] = {0};
    for (uint32_t round = 1; round <= 20000; round++) {
        if (round % 64 == 1) sh_pool_enter(pool, round % 128 == 1 ? SH_POOL_STEP : SH_POOL_LOAD);
        struct section *s = &sections[round % 2];
        const uint32_t n = 2 + round % 17;
        atomic_store(&s->done, 0);
        *(volatile uint32_t *)&s->number = round;
        sh_pool_run(pool, 2 + round % 8, n, 1, within, s);
        assert_int_equal(atomic_load(&s->done), n);
        *(volatile uint32_t *)&s->number = 0;
        if (round > 1) assert_int_equal(atomic_load(&sections[(round + 1) % 2].done), 2 + (round - 1) % 17); /* nor since */
        if (round % 64 == 0 || round == 20000) sh_pool_leave(pool);
    }
    sh_pool_release(pool);
}

struct turn {
    struct sh_pool *pool;
    enum sh_pool_use use;
    atomic_uint *order;
    unsigned came;
};
static void *take_turn(void *arg) {
    struct turn *t = arg;
    sh_pool_enter(t->pool, t->use);
    t->came = atomic_fetch_add(t->order, 1);
    sh_pool_leave(t->pool);
    return NULL;
}
static void pause_ms(long ms) { nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL); }

/* While a load holds the pool, and takes more than it has earned, another load comes first, then two steps: the steps go in
 * order, the load last. */
static void test_pool_load_yields(void **state) {
    (void)state;
    struct sh_pool *pool = acquire(2);
    atomic_uint order = 0;
    struct turn turns[3] = {{pool, SH_POOL_LOAD, &order, 9}, {pool, SH_POOL_STEP, &order, 9}, {pool, SH_POOL_STEP, &order, 9}};
    pthread_t threads[3];
    sh_pool_enter(pool, SH_POOL_LOAD);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, take_turn, &turns[i]), 0);
        pause_ms(60);
    }
    sh_pool_leave(pool);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    assert_int_equal(turns[1].came, 0);
    assert_int_equal(turns[2].came, 1);
    assert_int_equal(turns[0].came, 2);
    sh_pool_release(pool);
}

/* After a long step a load that waits goes before the next step. */
static void test_pool_steps_earn_loads_time(void **state) {
    (void)state;
    struct sh_pool *pool = acquire(2);
    atomic_uint order = 0;
    struct turn turns[2] = {{pool, SH_POOL_STEP, &order, 9}, {pool, SH_POOL_LOAD, &order, 9}};
    pthread_t threads[2];
    sh_pool_enter(pool, SH_POOL_STEP);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, take_turn, &turns[i]), 0);
        pause_ms(60);
    }
    sh_pool_leave(pool);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    assert_int_equal(turns[1].came, 0);
    assert_int_equal(turns[0].came, 1);
    sh_pool_release(pool);
}

struct stepper {
    struct sh_pool *pool;
    atomic_bool *stop;
    atomic_uint *steps;
};
static void *step_on_and_on(void *arg) {
    struct stepper *s = arg;
    while (!atomic_load(s->stop)) {
        sh_pool_enter(s->pool, SH_POOL_STEP);
        pause_ms(1);
        atomic_fetch_add(s->steps, 1);
        sh_pool_leave(s->pool);
    }
    return NULL;
}

/* Three threads whose steps leave no gap between them: every piece of a load still gets its turn after a few steps. */
static void test_pool_load_is_not_starved(void **state) {
    (void)state;
    struct sh_pool *pool = acquire(2);
    atomic_bool stop = false;
    atomic_uint steps = 0;
    struct stepper stepper = {pool, &stop, &steps};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&threads[i], NULL, step_on_and_on, &stepper), 0);
    while (atomic_load(&steps) < 6) pause_ms(1);
    for (int piece = 0; piece < 10; piece++) {
        const unsigned before = atomic_load(&steps);
        sh_pool_enter(pool, SH_POOL_LOAD);
        assert_true(atomic_load(&steps) - before <=
                    200); /* a few, and what passed before it stood in the queue: this thread may be held up */
        sh_pool_leave(pool);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    sh_pool_release(pool);
}

static uint64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void test_pool_idle_costs_nothing(void **state) {
    (void)state;
    struct sh_pool *pool = acquire(4);
    static struct counts c;
    memset(&c, 0, sizeof c);
    sh_pool_enter(pool, SH_POOL_STEP);
    sh_pool_run(pool, 4, ITEMS, 1, count, &c);
    sh_pool_leave(pool);
    pause_ms(20); /* whoever still spins stops */
    const uint64_t before = cpu_ns();
    pause_ms(300);
    assert_true(cpu_ns() - before < 20000000); /* of 1200 ms that four spinning threads would burn */
    sh_pool_release(pool);
}

static void test_pool_limits(void **state) {
    (void)state;
    struct sh_pool *pool;
    struct sh_error err = {0};
    assert_int_equal(sh_pool_acquire(0, &pool, &err), SH_ERR_INVALID);
    assert_int_equal(sh_pool_acquire(SH_POOL_MAX_WORKERS + 1, &pool, &err), SH_ERR_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_every_item_once),
        cmocka_unit_test(test_pool_late_workers),
        cmocka_unit_test(test_pool_load_yields),
        cmocka_unit_test(test_pool_steps_earn_loads_time),
        cmocka_unit_test(test_pool_load_is_not_starved),
        cmocka_unit_test(test_pool_idle_costs_nothing),
        cmocka_unit_test(test_pool_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
