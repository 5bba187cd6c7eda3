/* test_daemon_response_cache.c - kept answers: what is one request and what another, what is not kept, order, age and room. */
#include "daemon/response_cache.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const uint64_t SECOND = 1000000000u, LOAD = 77;
static const int32_t prompt[] = {1, 2, 3};

static void configure(uint32_t entries, uint64_t bytes, uint32_t ttl_s) {
    const struct config config = {
        .response_cache = entries > 0, .response_cache_entries = entries, .response_cache_bytes = bytes, .response_cache_ttl_s = ttl_s};
    response_cache_configure(&config);
}

static struct gen_params usual(void) {
    return (struct gen_params){.prompt = prompt,
                               .n_prompt = 3,
                               .n_choices = 1,
                               .max_tokens = 5,
                               .sampler = {.size = sizeof(struct sh_sampler_params), .temperature = 0.8f, .seed = 42},
                               .repeatable = true};
}

static void add(struct response_record *record, enum gen_event_kind kind, int32_t token, const char *text, bool logprob) {
    struct gen_event event = {.kind = kind, .token = token, .text = (char *)text, .text_length = strlen(text), .stop_index = -1,
                              .finish = kind == GEN_EVENT_CHOICE ? GEN_STOP : GEN_RUNNING};
    struct gen_logprob value = {.token = token, .logprob = -0.5f};
    if (logprob) event.logprob = &value;
    response_record_add(record, &event);
}

/* Asks as if for the first time, and answers with `text` if it is not there. True: it was. */
static bool ask(const struct gen_params *params, uint64_t instance, uint64_t now, const char *text) {
    struct response_record *record;
    struct response *found = response_cache_find(params, instance, now, &record);
    if (found) {
        assert_null(record);
        struct gen_event event;
        uint32_t index = 0;
        assert_true(response_event(found, &index, &event));
        assert_int_equal(event.kind, GEN_EVENT_STARTED);
        gen_event_finish(&event);
        assert_true(response_event(found, &index, &event));
        assert_string_equal(event.text, text);
        assert_int_equal(event.token, 9);
        assert_true(event.logprob && event.logprob->logprob == -0.5f);
        gen_event_finish(&event);
        assert_true(response_event(found, &index, &event));
        assert_true(event.kind == GEN_EVENT_CHOICE && event.finish == GEN_STOP);
        gen_event_finish(&event);
        assert_false(response_event(found, &index, &event));
        struct gen_usage usage;
        response_usage(found, &usage);
        assert_true(usage.replayed && usage.prompt_tokens == 3 && usage.cached_tokens == 3 && usage.completion_tokens == 1);
        assert_true(usage.prefill_ns == 0 && usage.draft_tokens == 0);
        response_unref(found);
        return true;
    }
    if (!record) return false;
    add(record, GEN_EVENT_STARTED, -1, "", false);
    add(record, GEN_EVENT_TOKEN, 9, text, true);
    add(record, GEN_EVENT_CHOICE, -1, "", false);
    const struct gen_usage usage = {.prompt_tokens = 3, .completion_tokens = 1, .prefill_ns = 5, .draft_tokens = 4};
    response_record_finish(record, true, &usage, now);
    return false;
}

static bool is_kept(const struct gen_params *params, uint64_t now) {
    struct response_record *record;
    struct response *found = response_cache_find(params, LOAD, now, &record);
    response_record_finish(record, false, NULL, now);
    response_unref(found);
    return found != NULL;
}

static void test_hit(void **state) {
    (void)state;
    configure(10, 1 << 20, 60);
    const struct gen_params params = usual();
    assert_false(ask(&params, LOAD, SECOND, "one"));
    assert_true(ask(&params, LOAD, SECOND, "one"));
    assert_true(ask(&params, LOAD, SECOND, "one"));
    configure(0, 1, 1); /* off: nothing is left */
    assert_false(ask(&params, LOAD, SECOND, "two"));
    configure(10, 1 << 20, 60);
    assert_false(ask(&params, LOAD, SECOND, "two"));
    configure(0, 1, 1);
}

/* Everything that decides an answer tells requests apart. */
static void test_keys(void **state) {
    (void)state;
    configure(100, 1 << 20, 60);
    static const int32_t other_prompt[] = {1, 2, 4}, ids[] = {5};
    static const char *const texts[] = {"a", "b"}, *const joined[] = {"ab"};
    static const struct sh_logit_bias bias[] = {{3, 1.5f}};
    int grammar;
    const struct gen_params base = usual();
    struct gen_params p;
    assert_false(ask(&base, LOAD, SECOND, "base"));
#define DIFFERS(...)                                                                                                             \
    do {                                                                                                                         \
        p = usual();                                                                                                             \
        __VA_ARGS__;                                                                                                             \
        if (ask(&p, LOAD, SECOND, "other")) fail_msg("%s is the same request", #__VA_ARGS__);                                    \
        if (!is_kept(&p, SECOND)) fail_msg("%s is not kept", #__VA_ARGS__);                                                      \
    } while (0)
    DIFFERS(p.prompt = other_prompt);
    DIFFERS(p.n_prompt = 2);
    DIFFERS(p.n_choices = 2);
    DIFFERS(p.max_tokens = 6);
    DIFFERS(p.salt = 1);
    DIFFERS(p.sampler.seed = 43);
    DIFFERS(p.sampler.temperature = 0.9f);
    DIFFERS(p.sampler.temperature = 0);
    DIFFERS(p.sampler.top_k = 1);
    DIFFERS(p.sampler.top_p = 0.5f);
    DIFFERS(p.sampler.min_p = 0.5f);
    DIFFERS(p.sampler.repeat_penalty = 2);
    DIFFERS(p.sampler.repeat_last_n = 2);
    DIFFERS(p.sampler.frequency_penalty = 2);
    DIFFERS(p.sampler.presence_penalty = 2);
    DIFFERS(p.sampler.top_n_sigma = 2);
    DIFFERS(p.sampler.typical_p = 0.5f);
    DIFFERS(p.sampler.xtc_probability = 0.5f);
    DIFFERS(p.sampler.xtc_threshold = 0.5f);
    DIFFERS(p.sampler.dry_multiplier = 0.5f);
    DIFFERS(p.sampler.dry_base = 1.5f);
    DIFFERS(p.sampler.dry_allowed_length = 5);
    DIFFERS(p.sampler.dry_penalty_last_n = 5);
    DIFFERS(p.sampler.mirostat = 2);
    DIFFERS(p.sampler.mirostat_tau = 2);
    DIFFERS(p.sampler.mirostat_eta = 2);
    DIFFERS(p.sampler.min_tokens = 2);
    DIFFERS(p.sampler.bias = bias; p.sampler.n_bias = 1);
    DIFFERS(p.stops = texts; p.n_stops = 2);
    DIFFERS(p.stops = joined; p.n_stops = 1);
    DIFFERS(p.bad_words = texts; p.n_bad_words = 2);
    DIFFERS(p.dry_breakers = texts; p.n_dry_breakers = 2);
    DIFFERS(p.stop_tokens = ids; p.n_stop_tokens = 1);
    DIFFERS(p.shown = ids; p.n_shown = 1);
    DIFFERS(p.ignore_eos = true);
    DIFFERS(p.special = true);
    DIFFERS(p.logprobs = true);
    DIFFERS(p.logprobs = true; p.n_top = 3);
    DIFFERS(p.logprobs = true; p.echo_logprobs = true);
    DIFFERS(p.grammar = (struct sh_grammar *)&grammar; p.grammar_source = "x"; p.n_grammar_source = 1);
    DIFFERS(p.grammar = (struct sh_grammar *)&grammar; p.grammar_source = "y"; p.n_grammar_source = 1);
#undef DIFFERS
    assert_false(ask(&base, LOAD + 1, SECOND, "another load"));
    assert_true(ask(&base, LOAD, SECOND, "base"));
    /* What decides nothing does not. */
    p = usual();
    p.priority = GEN_PRIORITY_LOW;
    p.client = 5;
    p.deadline_ns = 7;
    p.speculation = GEN_SPECULATION_OFF;
    assert_true(ask(&p, LOAD, SECOND, "base"));
    p = usual();
    p.sampler.temperature = 0;
    p.sampler.seed = 4711; /* greedy */
    assert_true(ask(&p, LOAD, SECOND, "other"));
    configure(0, 1, 1);
}

static void test_not_kept(void **state) {
    (void)state;
    configure(10, 1 << 20, 60);
    static const uint32_t lengths[] = {3};
    int grammar;
    struct gen_params p;
#define NOT_KEPT(...)                                                                                                            \
    do {                                                                                                                         \
        p = usual();                                                                                                             \
        __VA_ARGS__;                                                                                                             \
        struct response_record *none;                                                                                            \
        assert_null(response_cache_find(&p, LOAD, SECOND, &none));                                                               \
        if (none) fail_msg("%s would be kept", #__VA_ARGS__);                                                                    \
    } while (0)
    NOT_KEPT(p.repeatable = false);
    NOT_KEPT(p.no_reuse = true);
    NOT_KEPT(p.session = "s");
    NOT_KEPT(p.text_lengths = lengths; p.n_texts = 1);
    NOT_KEPT(p.grammar = (struct sh_grammar *)&grammar);
#undef NOT_KEPT
    struct response_record *record;
    p = usual();
    assert_null(response_cache_find(&p, LOAD, SECOND, &record)); /* cancelled or failed */
    add(record, GEN_EVENT_TOKEN, 9, "half an answ", false);
    response_record_finish(record, false, NULL, SECOND);
    assert_false(is_kept(&p, SECOND));
    const struct gen_usage usage = {.prompt_tokens = 3};
    char text[1025];
    memset(text, 'x', 1024);
    text[1024] = 0;
    for (int extra = 0; extra < 2; extra++) { /* 8192 bytes are, one more are not */
        p.max_tokens = 100 + (uint32_t)extra;
        assert_null(response_cache_find(&p, LOAD, SECOND, &record));
        for (int i = 0; i < 8; i++) add(record, GEN_EVENT_TOKEN, 9, text, false);
        if (extra) add(record, GEN_EVENT_CHOICE, -1, "x", false);
        response_record_finish(record, true, &usage, SECOND);
        assert_true(is_kept(&p, SECOND) == !extra);
    }
    p.max_tokens = 7; /* more tokens than a ring holds */
    assert_null(response_cache_find(&p, LOAD, SECOND, &record));
    for (int i = 0; i < GEN_RING_EVENTS; i++) add(record, GEN_EVENT_TOKEN, 9, "", false);
    response_record_finish(record, true, &usage, SECOND);
    assert_false(is_kept(&p, SECOND));
    for (uint32_t n = RESPONSE_EVENTS; n <= RESPONSE_EVENTS + 1; n++) { /* a long prompt's log-probs */
        p.max_tokens = n;
        configure(10, 1 << 24, 60);
        assert_null(response_cache_find(&p, LOAD, SECOND, &record));
        for (uint32_t i = 0; i < n; i++) add(record, GEN_EVENT_PROMPT, 9, "", true);
        response_record_finish(record, true, &usage, SECOND);
        assert_true(is_kept(&p, SECOND) == (n == RESPONSE_EVENTS));
    }
    configure(0, 1, 1);
}

static void test_least_recently_used_goes(void **state) {
    (void)state;
    configure(3, 1 << 20, 60);
    struct gen_params p[4];
    for (uint32_t i = 0; i < 4; i++) {
        p[i] = usual();
        p[i].max_tokens = i + 1;
    }
    for (uint32_t i = 0; i < 3; i++) assert_false(ask(&p[i], LOAD, SECOND, "x"));
    assert_true(ask(&p[0], LOAD, SECOND, "x")); /* now the second is the one that was used longest ago */
    assert_false(ask(&p[3], LOAD, SECOND, "x"));
    assert_true(is_kept(&p[0], SECOND));
    assert_false(is_kept(&p[1], SECOND));
    assert_true(is_kept(&p[2], SECOND));
    assert_true(is_kept(&p[3], SECOND));
    configure(1, 1 << 20, 60); /* less room: the one used last stays */
    assert_true(is_kept(&p[3], SECOND));
    assert_false(is_kept(&p[2], SECOND));
    configure(100, 2500, 60); /* by bytes: each takes several hundred */
    for (uint32_t i = 0; i < 4; i++) ask(&p[i], LOAD, SECOND, "x");
    uint32_t kept = 0;
    for (uint32_t i = 0; i < 4; i++) kept += is_kept(&p[i], SECOND);
    assert_in_range(kept, 1, 3);
    assert_true(is_kept(&p[3], SECOND));
    configure(0, 1, 1);
}

static void test_age(void **state) {
    (void)state;
    configure(10, 1 << 20, 60);
    const struct gen_params p = usual();
    struct gen_params q = usual();
    q.max_tokens = 1;
    assert_false(ask(&p, LOAD, SECOND, "x"));
    assert_true(ask(&p, LOAD, 61 * SECOND, "x"));
    assert_false(is_kept(&p, 62 * SECOND)); /* use does not make it younger */
    assert_false(ask(&p, LOAD, 100 * SECOND, "x"));
    assert_false(ask(&q, LOAD, 300 * SECOND, "x")); /* sweeps out the old one */
    size_t length;
    char *text = metrics_text(&length);
    assert_non_null(strstr(text, "\nshimmy_response_cache_entries 1\n"));
    assert_non_null(strstr(text, "\nshimmy_response_cache_evictions_total{reason=\"age\"} 2\n"));
    free(text);
    configure(0, 1, 1);
}

/* An answer that is being read stays whole though it is dropped. */
static void test_dropped_while_read(void **state) {
    (void)state;
    configure(10, 1 << 20, 60);
    const struct gen_params p = usual();
    assert_false(ask(&p, LOAD, SECOND, "x"));
    struct response_record *record;
    struct response *held = response_cache_find(&p, LOAD, SECOND, &record);
    assert_non_null(held);
    configure(0, 1, 1);
    struct gen_event event;
    uint32_t index = 0;
    while (response_event(held, &index, &event)) gen_event_finish(&event);
    assert_int_equal(index, 3);
    response_unref(held);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hit),  cmocka_unit_test(test_keys), cmocka_unit_test(test_not_kept), cmocka_unit_test(test_least_recently_used_goes),
        cmocka_unit_test(test_age), cmocka_unit_test(test_dropped_while_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
