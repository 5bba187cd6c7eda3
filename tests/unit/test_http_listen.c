/* test_http_listen.c - addresses: lists, port 0, IPv6, the next free port of auto, what is refused. */
#include "daemon/http/internal.h"

#include "compute/base.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static bool has_ipv6(void) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    if (fd >= 0) close(fd);
    return ok;
}

static void close_all(struct http_socket *sockets, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) close(sockets[i].fd);
}

static void test_port_zero_and_lists(void **state) {
    (void)state;
    struct http_socket s[HTTP_SOCKETS_MAX];
    struct sh_error err;
    uint32_t n;
    assert_int_equal(http_listen_open("127.0.0.1:0, localhost:0", s, &n, &err), SH_OK);
    assert_int_equal(n, 2);
    assert_true(strncmp(s[0].address, "http://127.0.0.1:", 17) == 0 && strcmp(s[0].address + 17, "0") != 0);
    assert_true(s[0].loopback && s[1].loopback);
    /* What is bound is kept: the same port is taken. */
    struct http_socket again[HTTP_SOCKETS_MAX];
    uint32_t m;
    assert_int_equal(http_listen_open(s[0].address + 7, again, &m, &err), SH_ERR_BUSY);
    assert_int_equal(m, 0);
    assert_true(strstr(err.message, "port 0") != NULL);
    close_all(s, n);
    if (!has_ipv6()) {
        print_message("SKIP test_port_zero_and_lists, IPv6 part: this machine has no IPv6 loopback\n");
        return;
    }
    assert_int_equal(http_listen_open("[::1]:0", s, &n, &err), SH_OK);
    assert_true(strncmp(s[0].address, "http://[::1]:", 13) == 0 && s[0].loopback);
    close_all(s, n);
}

static void test_auto_takes_the_next_free_port(void **state) {
    (void)state;
    struct http_socket first[HTTP_SOCKETS_MAX], second[HTTP_SOCKETS_MAX];
    struct sh_error err;
    uint32_t n, m;
    int a, b;
    assert_int_equal(http_listen_open("auto", first, &n, &err), SH_OK);
    assert_int_equal(http_listen_open("auto", second, &m, &err), SH_OK);
    assert_int_equal(sscanf(first[0].address, "http://127.0.0.1:%d", &a), 1);
    assert_int_equal(sscanf(second[0].address, "http://127.0.0.1:%d", &b), 1);
    assert_true(a >= 11435 && b > a && b <= 11535);
    close_all(first, n);
    close_all(second, m);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "8080",
                                      ":8080",
                                      "localhost",
                                      "localhost:",
                                      "localhost:x",
                                      "localhost:99999",
                                      "127.0.0.1:0,",
                                      "::1:0",
                                      "[]:0",
                                      "no.such.host.invalid:0"};
    struct http_socket s[HTTP_SOCKETS_MAX];
    struct sh_error err;
    uint32_t n;
    for (size_t i = 0; i < SH_COUNT(bad); i++) {
        if (http_listen_open(bad[i], s, &n, &err) != SH_ERR_INVALID) fail_msg("\"%s\" was not refused", bad[i]);
        assert_int_equal(n, 0);
        assert_true(strstr(err.message, "listen") != NULL);
    }
    assert_int_equal(http_listen_adopt(STDERR_FILENO, &s[0], &err), SH_ERR_INVALID);
}

static void test_routes(void **state) {
    (void)state;
    const char *rest;
    assert_string_equal(http_route_find("/v1/models", &rest)->label, "/v1/models");
    assert_string_equal(http_route_find("/v1/models/a/b", &rest)->label, "/v1/models/{id}");
    assert_string_equal(rest, "a/b");
    assert_null(http_route_find("/v1/models/", &rest));
    assert_null(http_route_find("/v1", &rest));
    assert_null(http_route_find("/healthz", &rest));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_port_zero_and_lists),
        cmocka_unit_test(test_auto_takes_the_next_free_port),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_routes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
