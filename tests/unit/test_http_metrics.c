/* test_http_metrics.c - the exposition: shape, escaping, histograms, the cap on series, promtool's opinion. */
#include "daemon/metrics.h"

#include "compute/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static void assert_line(const char *line) {
    size_t length;
    char *text = metrics_text(&length);
    assert_non_null(text);
    assert_int_equal(strlen(text), length);
    char *wanted = NULL;
    assert_true(asprintf(&wanted, "\n%s\n", line) > 0);
    if (!strstr(text, wanted)) fail_msg("no line '%s' in:\n%s", line, text);
    free(wanted);
    free(text);
}

static uint32_t count_lines(const char *prefix) {
    size_t length;
    char *text = metrics_text(&length);
    assert_non_null(text);
    uint32_t n = 0;
    for (const char *p = text; (p = strstr(p, prefix)) != NULL; p++) n += p > text && p[-1] == '\n';
    free(text);
    return n;
}

static void test_unlabelled_families_start_at_zero(void **state) {
    (void)state;
    assert_line("shimmy_requests_running 0");
    assert_line("# TYPE shimmy_requests_running gauge");
    assert_line("shimmy_time_to_first_token_seconds_bucket{le=\"+Inf\"} 0");
    assert_line("shimmy_time_to_first_token_seconds_count 0");
}

static void test_counters_and_gauges(void **state) {
    (void)state;
    const char *labels[] = {"/v1/completions", "200"};
    metric_add(METRIC_REQUESTS, labels, 1);
    metric_add(METRIC_REQUESTS, labels, 2);
    assert_line("shimmy_requests_total{route=\"/v1/completions\",code=\"200\"} 3");
    metric_add(METRIC_REQUESTS_RUNNING, NULL, 2);
    metric_add(METRIC_REQUESTS_RUNNING, NULL, -1);
    assert_line("shimmy_requests_running 1");
    metric_set(METRIC_REQUESTS_RUNNING, NULL, 0);
    const char *memory[] = {"cpu", "weights"};
    metric_set(METRIC_DEVICE_MEMORY, memory, 123456789012.0);
    assert_line("shimmy_device_memory_bytes{device=\"cpu\",kind=\"weights\"} 123456789012");
    const char *model[] = {"m"};
    metric_set(METRIC_MODEL_LOAD_SECONDS, model, 0.1);
    assert_line("shimmy_model_load_seconds{model=\"m\"} 0.1");
}

static void test_labels_are_escaped(void **state) {
    (void)state;
    const char *labels[] = {"a\"b\\c\nd"};
    metric_add(METRIC_PROMPT_TOKENS, labels, 5);
    assert_line("shimmy_prompt_tokens_total{model=\"a\\\"b\\\\c\\nd\"} 5");
    const char *latin1[] = {"caf\xe9-\xf0\x9f\x99\x82-\xed\xa0\x80"};
    metric_add(METRIC_PROMPT_TOKENS, latin1, 7);
    assert_line("shimmy_prompt_tokens_total{model=\"caf?-\xf0\x9f\x99\x82-???\"} 7");
}

static void test_histogram_is_cumulative(void **state) {
    (void)state;
    const char *labels[] = {"/health"};
    metric_observe(METRIC_REQUEST_DURATION, labels, 0.001); /* a bound belongs to its bucket */
    metric_observe(METRIC_REQUEST_DURATION, labels, 0.02);
    metric_observe(METRIC_REQUEST_DURATION, labels, 1000);
    assert_line("shimmy_request_duration_seconds_bucket{route=\"/health\",le=\"0.001\"} 1");
    assert_line("shimmy_request_duration_seconds_bucket{route=\"/health\",le=\"0.01\"} 1");
    assert_line("shimmy_request_duration_seconds_bucket{route=\"/health\",le=\"0.025\"} 2");
    assert_line("shimmy_request_duration_seconds_bucket{route=\"/health\",le=\"300\"} 2");
    assert_line("shimmy_request_duration_seconds_bucket{route=\"/health\",le=\"+Inf\"} 3");
    assert_line("shimmy_request_duration_seconds_sum{route=\"/health\"} 1000.021");
    assert_line("shimmy_request_duration_seconds_count{route=\"/health\"} 3");
}

static void test_series_are_removed_and_capped(void **state) {
    (void)state;
    const char *first[] = {"first"}, *last[] = {"last"};
    metric_set(METRIC_KV_PAGES_USED, first, 1);
    metric_set(METRIC_KV_PAGES_USED, last, 2);
    metric_remove(METRIC_KV_PAGES_USED, last);
    metric_remove(METRIC_KV_PAGES_USED, last);
    assert_int_equal(count_lines("shimmy_kv_pages_used{"), 1);
    metric_set(METRIC_KV_PAGES_USED, last, 3); /* appended behind the right end */
    assert_line("shimmy_kv_pages_used{model=\"last\"} 3");
    metric_remove(METRIC_KV_PAGES_USED, first);
    assert_int_equal(count_lines("shimmy_kv_pages_used{"), 1);
    for (int i = 0; i < 2000; i++) {
        char route[32];
        snprintf(route, sizeof(route), "/r%d", i);
        const char *labels[] = {route, "404"};
        metric_add(METRIC_REQUESTS, labels, 1);
    }
    assert_int_equal(count_lines("shimmy_requests_total{"), 1000);
    assert_line("shimmy_requests_total{route=\"/r997\",code=\"404\"} 1");
    assert_line("shimmy_requests_total{route=\"other\",code=\"other\"} 1002");
}

static void test_promtool_accepts(void **state) {
    (void)state;
    if (system("command -v promtool >/dev/null 2>&1") != 0) {
        print_message("SKIP test_promtool_accepts: promtool (package prometheus) is not installed\n");
        skip();
    }
    const char *model[] = {"m"}, *state_labels[] = {"m", "ready"}, *version[] = {"0"};
    metric_set(METRIC_KV_PAGES_TOTAL, model, 64);
    metric_set(METRIC_MODEL_STATE, state_labels, 1);
    metric_set(METRIC_BUILD_INFO, version, 1);
    metric_add(METRIC_FORCED_TOKENS, model, 3);
    metric_observe(METRIC_GRAMMAR_MASK, NULL, 3e-6);
    assert_line("shimmy_grammar_mask_seconds_bucket{le=\"5e-06\"} 1");
    assert_line("shimmy_grammar_mask_seconds_bucket{le=\"2.5e-06\"} 0");
    size_t length;
    char *text = metrics_text(&length);
    FILE *pipe = popen("promtool check metrics >&2", "w");
    assert_non_null(pipe);
    assert_int_equal(fwrite(text, 1, length, pipe), length);
    assert_int_equal(pclose(pipe), 0);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unlabelled_families_start_at_zero),
        cmocka_unit_test(test_counters_and_gauges),
        cmocka_unit_test(test_labels_are_escaped),
        cmocka_unit_test(test_histogram_is_cumulative),
        cmocka_unit_test(test_series_are_removed_and_capped),
        cmocka_unit_test(test_promtool_accepts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
