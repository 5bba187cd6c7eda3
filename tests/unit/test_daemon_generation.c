/* test_daemon_generation.c - the ring between a runner and a front end: order, the limit, who is told what, and references. */
#include "compute/base.h"
#include "daemon/generation_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static uint32_t notified;

static void count_notify(void *user) {
    (void)user;
    notified++;
}

static struct generation *create(void) {
    static const int32_t prompt[] = {1, 2, 3};
    static const char *const stops[] = {"end"};
    static const struct sh_logit_bias bias[] = {{5, 1.0f}};
    static const int32_t shown[] = {7, 8};
    struct gen_params params = {.prompt = prompt,
                                .n_prompt = 3,
                                .n_choices = 1,
                                .stops = stops,
                                .n_stops = 1,
                                .shown = shown,
                                .n_shown = 2,
                                .sampler = {.bias = bias, .n_bias = 1},
                                .notify = count_notify};
    struct generation *g = NULL;
    struct sh_error err;
    notified = 0;
    assert_int_equal(gen_create(&params, &g, &err), SH_OK);
    assert_ptr_not_equal(g->params.prompt, prompt);
    assert_ptr_not_equal(g->params.sampler.bias, bias);
    assert_ptr_not_equal(g->params.shown, shown);
    assert_memory_equal(g->params.shown, shown, sizeof shown);
    assert_string_equal(g->params.stops[0], "end");
    return g;
}

static void push(struct generation *g, enum gen_event_kind kind, int32_t token) {
    struct gen_event event = {.kind = kind, .token = token, .text = strdup("x"), .text_length = 1};
    assert_non_null(event.text);
    gen_push(g, &event);
}

static void test_order(void **state) {
    (void)state;
    struct generation *g = create();
    struct gen_event event;
    assert_false(gen_next(g, &event));
    for (int32_t i = 0; i < 100; i++) push(g, GEN_EVENT_TOKEN, i);
    assert_int_equal(notified, 1); /* only when it was empty */
    for (int32_t i = 0; i < 50; i++) {
        assert_true(gen_next(g, &event));
        assert_int_equal(event.token, i);
        assert_string_equal(event.text, "x");
        gen_event_finish(&event);
    }
    for (int32_t i = 100; i < 300; i++) push(g, GEN_EVENT_TOKEN, i);
    for (int32_t i = 50; i < 300; i++) {
        assert_true(gen_next(g, &event));
        assert_int_equal(event.token, i);
        gen_event_finish(&event);
    }
    assert_false(gen_next(g, &event));
    push(g, GEN_EVENT_TOKEN, 1);
    assert_int_equal(notified, 2);
    gen_release(g); /* with an event inside */
}

static void test_slow_reader(void **state) {
    (void)state;
    struct generation *g = create();
    for (int32_t i = 0; i < GEN_RING_EVENTS; i++) push(g, GEN_EVENT_TOKEN, i);
    assert_false(atomic_load(&g->cancelled));
    push(g, GEN_EVENT_TOKEN, GEN_RING_EVENTS);
    assert_true(atomic_load(&g->cancelled));
    gen_end(g, GEN_CANCELLED, NULL);
    struct gen_event event;
    for (int32_t i = 0; i < GEN_RING_EVENTS; i++) {
        assert_true(gen_next(g, &event));
        assert_int_equal(event.token, i);
        gen_event_finish(&event);
    }
    assert_true(gen_next(g, &event));
    assert_int_equal(event.kind, GEN_EVENT_END);
    assert_int_equal(event.finish, GEN_CANCELLED);
    assert_string_equal(event.error.message, "slow reader");
    gen_event_finish(&event);
    assert_false(gen_next(g, &event));
    gen_release(g);
}

/* A prompt's events are as many as the prompt is long: they are not what a slow reader is cut off for. */
static void test_prompt_events_are_free(void **state) {
    (void)state;
    struct generation *g = create();
    for (int32_t i = 0; i < GEN_RING_EVENTS + 10; i++) push(g, GEN_EVENT_PROMPT, i);
    push(g, GEN_EVENT_TOKEN, 0);
    assert_false(atomic_load(&g->cancelled));
    gen_release(g);
}

static void test_end_is_last_and_once(void **state) {
    (void)state;
    struct generation *g = create();
    struct sh_error err;
    sh_fail(&err, SH_ERR_NO_PAGES, "full");
    gen_end(g, GEN_FAILED, &err);
    gen_end(g, GEN_STOP, NULL);
    push(g, GEN_EVENT_TOKEN, 1);
    struct gen_event event;
    assert_true(gen_next(g, &event));
    assert_int_equal(event.finish, GEN_FAILED);
    assert_int_equal(event.error.code, SH_ERR_NO_PAGES);
    assert_string_equal(event.error.message, "full");
    gen_event_finish(&event);
    assert_false(gen_next(g, &event));
    gen_release(g);
}

static void test_cancel(void **state) {
    (void)state;
    struct generation *g = create();
    uint64_t id = gen_id(g);
    gen_cancel(g, "first");
    gen_cancel(g, "second");
    assert_true(gen_cancel_id(id, "third"));
    gen_end(g, GEN_CANCELLED, NULL);
    assert_false(gen_cancel_id(id, "fourth")); /* ended */
    struct gen_event event;
    assert_true(gen_next(g, &event));
    assert_string_equal(event.error.message, "first");
    gen_event_finish(&event);
    gen_release(g);
    assert_false(gen_cancel_id(id, "fifth")); /* gone */
}

/* The runner's reference outlives the front end's, which is not told any more. */
static void test_release_before_end(void **state) {
    (void)state;
    struct generation *g = create();
    atomic_fetch_add(&g->refs, 1);
    gen_release(g);
    push(g, GEN_EVENT_TOKEN, 1);
    gen_end(g, GEN_CANCELLED, NULL);
    assert_int_equal(notified, 0);
    assert_true(atomic_load(&g->cancelled));
    gen_unref(g);
    gen_release(NULL);
}

static void test_refused(void **state) {
    (void)state;
    static const int32_t prompt[] = {1};
    struct sh_error err;
    struct generation *g;
    struct gen_params none = {.prompt = prompt, .n_choices = 1}, zero = {.prompt = prompt, .n_prompt = 1},
                      top = {.prompt = prompt, .n_prompt = 1, .n_choices = 1, .n_top = 21};
    assert_int_equal(gen_create(&none, &g, &err), SH_ERR_INVALID);
    assert_int_equal(gen_create(&zero, &g, &err), SH_ERR_INVALID);
    assert_int_equal(gen_create(&top, &g, &err), SH_ERR_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_prompt_events_are_free),
        cmocka_unit_test(test_end_is_last_and_once),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_release_before_end),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
