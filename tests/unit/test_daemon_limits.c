/* test_daemon_limits.c - clients and their limits, with a clock of the test's own: buckets, debts, connections, keys, what is forgotten. */
#include "daemon/hash.h"
#include "daemon/limits.h"

#include "compute/base.h"
#include "daemon/text.h"
#include "tests/unit/shared.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static const uint64_t SECOND = 1000000000u;

static struct limits *limits_with(struct limits_rates rates) {
    struct limits *limits;
    struct sh_error err;
    assert_int_equal(limits_create(&limits, &err), SH_OK);
    assert_int_equal(limits_configure(limits, &rates, "", "", &err), SH_OK);
    return limits;
}

static enum limits_verdict once(struct limits *limits, uint64_t client, uint64_t now, struct limits_state *state) {
    const enum limits_verdict verdict = limits_begin(limits, client, now, state);
    if (verdict == LIMITS_GO) limits_end(limits, client);
    return verdict;
}

static void test_no_limits(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){0});
    struct limits_state s;
    for (int i = 0; i < 1000; i++) assert_int_equal(limits_begin(limits, 7, SECOND, &s), LIMITS_GO);
    assert_true(s.requests == 0 && s.tokens == 0);
    limits_charge(limits, 7, UINT64_MAX / 2, SECOND);
    assert_int_equal(limits_begin(limits, 7, SECOND, &s), LIMITS_GO);
    limits_destroy(limits);
}

static void test_request_bucket(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){.requests = 60, .burst = 3});
    struct limits_state s;
    uint64_t now = 1000 * SECOND;
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
        assert_int_equal(s.requests, 60);
        assert_int_equal(s.requests_left, 2 - i);
    }
    assert_int_equal(once(limits, 7, now, &s), LIMITS_REQUESTS);
    assert_int_equal(s.retry_s, 1);
    assert_true(s.requests_reset_s > 2.99 && s.requests_reset_s < 3.01);
    assert_int_equal(once(limits, 8, now, &s), LIMITS_GO); /* another client has its own */
    now += SECOND * 99 / 100;
    assert_int_equal(once(limits, 7, now, &s), LIMITS_REQUESTS);
    now += SECOND / 50; /* one a second */
    assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
    assert_int_equal(once(limits, 7, now, &s), LIMITS_REQUESTS);
    now += 3600 * SECOND; /* a long rest fills the bucket, and no more */
    for (int i = 0; i < 3; i++) assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
    assert_int_equal(once(limits, 7, now, &s), LIMITS_REQUESTS);
    limits_destroy(limits);

    limits = limits_with((struct limits_rates){.requests = 2}); /* the wait is told in whole seconds, rounded up */
    now = SECOND;
    assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
    assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
    assert_int_equal(once(limits, 7, now, &s), LIMITS_REQUESTS);
    assert_int_equal(s.retry_s, 30);
    assert_int_equal(once(limits, 7, now + 29 * SECOND + SECOND / 2, &s), LIMITS_REQUESTS);
    assert_int_equal(s.retry_s, 1);
    assert_int_equal(once(limits, 7, now + 30 * SECOND, &s), LIMITS_GO);
    limits_destroy(limits);
}

static void test_token_debt(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){.tokens = 600}); /* ten a second */
    struct limits_state s;
    const uint64_t now = 50 * SECOND;
    assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
    assert_true(s.tokens == 600 && s.tokens_left == 600 && s.requests == 0);
    limits_charge(limits, 7, 599, now);
    assert_int_equal(once(limits, 7, now, &s), LIMITS_GO);
    assert_int_equal(s.tokens_left, 1);
    limits_charge(limits, 7, 301, now); /* more than was there: to be paid back first */
    assert_int_equal(once(limits, 7, now, &s), LIMITS_TOKENS);
    assert_int_equal(s.tokens_left, 0);
    assert_int_equal(s.retry_s, 31);
    assert_int_equal(once(limits, 7, now + 30 * SECOND, &s), LIMITS_TOKENS);
    assert_int_equal(once(limits, 7, now + 31 * SECOND, &s), LIMITS_GO);
    limits_destroy(limits);
}

static void test_running(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){.running = 2});
    struct limits_state s;
    assert_int_equal(limits_begin(limits, 7, 1, &s), LIMITS_GO);
    assert_int_equal(limits_begin(limits, 7, 1, &s), LIMITS_GO);
    assert_int_equal(limits_begin(limits, 7, 1, &s), LIMITS_RUNNING);
    assert_int_equal(limits_begin(limits, 8, 1, &s), LIMITS_GO);
    limits_end(limits, 7);
    assert_int_equal(limits_begin(limits, 7, 1, &s), LIMITS_GO);
    limits_destroy(limits);
}

static void test_connections(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){.connections = 2});
    for (int i = 0; i < 3; i++) {
        assert_false(limits_too_many_connections(limits, 7, 0));
        limits_connect(limits, 7, 1);
    }
    assert_true(limits_too_many_connections(limits, 7, 0));
    assert_false(limits_too_many_connections(limits, 7, 1));
    assert_false(limits_too_many_connections(limits, 8, 0));
    limits_disconnect(limits, 7);
    assert_false(limits_too_many_connections(limits, 7, 0));
    limits_destroy(limits);
}

/* A flood of addresses is forgotten again; who has spent something is not forgotten for it. */
static void test_forgetting(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){.requests = 5});
    struct limits_state s;
    const uint64_t now = SECOND, spender = text_hash("spender", 7);
    for (int i = 0; i < 5; i++) assert_int_equal(once(limits, spender, now, &s), LIMITS_GO);
    for (uint64_t i = 1; i <= 3u * LIMITS_CLIENTS_MAX; i++) {
        const uint64_t id = text_hash(&i, sizeof i);
        assert_int_equal(once(limits, id, now, &s), LIMITS_GO);
    }
    assert_int_equal(once(limits, spender, now, &s), LIMITS_REQUESTS);
    limits_destroy(limits);
}

static void test_addresses(void **state) {
    (void)state;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = 1}, b = a;
    struct sockaddr_in6 c = {.sin6_family = AF_INET6}, d = c, e = c, mapped = c;
    inet_pton(AF_INET, "10.0.0.1", &a.sin_addr);
    inet_pton(AF_INET, "10.0.0.2", &b.sin_addr);
    inet_pton(AF_INET6, "2001:db8:1:2::1", &c.sin6_addr);
    inet_pton(AF_INET6, "2001:db8:1:2:ffff::9", &d.sin6_addr);
    inet_pton(AF_INET6, "2001:db8:1:3::1", &e.sin6_addr);
    inet_pton(AF_INET6, "::ffff:10.0.0.1", &mapped.sin6_addr);
    const uint64_t id = limits_address((struct sockaddr *)&a);
    a.sin_port = 2;
    assert_true(limits_address((struct sockaddr *)&a) == id);
    assert_true(limits_address((struct sockaddr *)&b) != id);
    assert_true(limits_address((struct sockaddr *)&mapped) == id);
    assert_true(limits_address((struct sockaddr *)&c) == limits_address((struct sockaddr *)&d));
    assert_true(limits_address((struct sockaddr *)&c) != limits_address((struct sockaddr *)&e));
}

static void test_salts(void **state) {
    (void)state;
    assert_true(limits_salt(0, NULL) == 0);
    assert_true(limits_salt(1, NULL) == limits_salt(1, NULL) && limits_salt(1, "a") == limits_salt(1, "a"));
    assert_true(limits_salt(1, "") != limits_salt(1, NULL));
    /* the paper's example, and those of 0, 7 and 8 bytes from its authors' vectors */
    const uint64_t key[2] = {0x0706050403020100ull, 0x0F0E0D0C0B0A0908ull};
    unsigned char bytes[15];
    for (unsigned char i = 0; i < 15; i++) bytes[i] = i;
    assert_true(hash_keyed(key, bytes, 15) == 0xA129CA6149BE45E5ull);
    assert_true(hash_keyed(key, bytes, 0) == 0x726FDB47DD0E0E31ull);
    assert_true(hash_keyed(key, bytes, 7) == 0xAB0200F58B01D137ull);
    assert_true(hash_keyed(key, bytes, 8) == 0x93F5F5799A932462ull);
    assert_true(limits_salt(0, "a") != 0 && limits_salt(0, "a") != limits_salt(0, "b"));
    assert_true(limits_salt(1, NULL) != 0 && limits_salt(1, NULL) != limits_salt(2, NULL));
    assert_true(limits_salt(1, "a") != limits_salt(1, NULL) && limits_salt(1, "a") != limits_salt(2, "a"));
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void refuse_keys(struct limits *limits, const char *path, const char *text, const char *words) {
    const struct limits_rates none = {0};
    struct sh_error err;
    write_file(path, text);
    assert_int_not_equal(limits_configure(limits, &none, "sesame", path, &err), SH_OK);
    if (!strstr(err.message, words)) fail_msg("%s: %s", text, err.message);
    if (strstr(err.message, "secret")) fail_msg("a key is told: %s", err.message);
}

static void test_keys(void **state) {
    (void)state;
    const char *path = test_scratch("api-keys");
    struct limits *limits = limits_with((struct limits_rates){0});
    struct limits_client client, other;
    const struct limits_rates none = {0};
    struct sh_error err;
    assert_false(limits_has_keys(limits));
    assert_false(limits_find_key(limits, "", &client));
    write_file(path, "# keys\n\nsecret-1 the editor\n  secret-2\t\r\n");
    assert_int_equal(limits_configure(limits, &none, "sesame", path, &err), SH_OK);
    assert_true(limits_has_keys(limits));
    assert_true(limits_find_key(limits, "secret-1", &client));
    assert_string_equal(client.name, "the editor");
    assert_true(limits_find_key(limits, "secret-2", &other));
    assert_string_equal(other.name, "");
    assert_true(client.id != other.id && client.id && other.id);
    assert_true(limits_find_key(limits, "sesame", &client));
    assert_false(limits_find_key(limits, "secret", &client));
    assert_false(limits_find_key(limits, "secret-11", &client));
    assert_false(limits_find_key(limits, "", &client));

    refuse_keys(limits, path, "# nothing\n", "no keys");
    refuse_keys(limits, path, "secret\nsecret again\n", ":2: the key is there twice");
    refuse_keys(limits, path, "sesame\n", "twice");
    refuse_keys(limits, path, "secret\xc3\xa9\n", "not ASCII");
    char longest[LIMITS_KEY_BYTES + 10] = {0};
    memset(longest, 'k', sizeof longest - 1);
    refuse_keys(limits, path, longest, "265 bytes");
    unlink(path);
    assert_int_equal(limits_configure(limits, &none, "", path, &err), SH_ERR_IO);
    assert_true(limits_find_key(limits, "secret-1", &client)); /* what was refused has changed nothing */
    assert_int_equal(limits_configure(limits, &none, "", "", &err), SH_OK);
    assert_false(limits_has_keys(limits));
    limits_destroy(limits);
}

static void test_reconfigured_rates(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){.requests = 10});
    struct limits_state s;
    struct sh_error err;
    for (int i = 0; i < 10; i++) assert_int_equal(once(limits, 7, SECOND, &s), LIMITS_GO);
    assert_int_equal(once(limits, 7, SECOND, &s), LIMITS_REQUESTS);
    const struct limits_rates more = {.requests = 20}, none = {0};
    assert_int_equal(limits_configure(limits, &more, "", "", &err), SH_OK); /* what was spent stays */
    for (int i = 0; i < 10; i++) assert_int_equal(once(limits, 7, SECOND, &s), LIMITS_GO);
    assert_int_equal(once(limits, 7, SECOND, &s), LIMITS_REQUESTS);
    assert_int_equal(limits_configure(limits, &none, "", "", &err), SH_OK);
    assert_int_equal(once(limits, 7, SECOND, &s), LIMITS_GO);
    limits_destroy(limits);
}

static void test_estimates(void **state) {
    (void)state;
    struct limits *limits = limits_with((struct limits_rates){0});
    assert_int_equal(limits_estimate_wait(limits, "m", 50, 1), 1); /* nothing is known */
    limits_note_service(limits, "m", 4);
    assert_int_equal(limits_estimate_wait(limits, "m", 9, 1), 40);
    assert_int_equal(limits_estimate_wait(limits, "m", 9, 8), 5);
    assert_int_equal(limits_estimate_wait(limits, "m", 100000, 1), 600);
    for (int i = 0; i < 60; i++) limits_note_service(limits, "m", 0.01);
    assert_int_equal(limits_estimate_wait(limits, "m", 9, 1), 1);
    limits_destroy(limits);
}

static void test_durations(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t seconds;
    } good[] = {{"5m", 300},  {"1h30m", 5400}, {"300", 300},     {"-1", -1},       {"-1s", -1},        {"0", 0},    {"0s", 0},        {"-0", 0},
                {"300ms", 1}, {"1.5h", 5400},  {"2h0m0.5s", 7201}, {"+10s", 10}, {"999999h", 1000000000}, {"1us", 1}, {"\xc2\xb5s", -9}, {"1\xc2\xb5s", 1}};
    for (size_t i = 0; i < SH_COUNT(good); i++) {
        int64_t seconds = -5;
        const bool fine = text_duration(good[i].text, &seconds);
        if (good[i].seconds == -9 ? fine : !fine || seconds != good[i].seconds)
            fail_msg("\"%s\": %s, %lld", good[i].text, fine ? "read" : "refused", (long long)seconds);
    }
    static const char *const bad[] = {"", "-", "m", "5 m", "5x", "1h30", "..", "1.2.3s", ".", "5m-1s", "inf", "0x10", "1e3s", "--1s", " 5m"};
    for (size_t i = 0; i < SH_COUNT(bad); i++) {
        int64_t seconds;
        if (text_duration(bad[i], &seconds)) fail_msg("\"%s\" is taken for %lld", bad[i], (long long)seconds);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_limits),    cmocka_unit_test(test_request_bucket),     cmocka_unit_test(test_token_debt),
        cmocka_unit_test(test_running),      cmocka_unit_test(test_connections),        cmocka_unit_test(test_forgetting),
        cmocka_unit_test(test_addresses),    cmocka_unit_test(test_salts),              cmocka_unit_test(test_keys),
        cmocka_unit_test(test_estimates),    cmocka_unit_test(test_reconfigured_rates), cmocka_unit_test(test_durations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
