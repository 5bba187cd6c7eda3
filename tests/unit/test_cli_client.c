/* The control socket's client: framing, errors in words, sizes, and the order in which sockets are looked for. */
#include "cli/client.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

/* A daemon for one connection: reads one NUL-terminated call, answers with given bytes in pieces of given size, and ends. */
struct peer {
    char path[108];
    int fd;
    pthread_t thread;
    const char *answer;
    size_t length, piece;
    char call[4096];
};
static char directory[] = "/tmp/shimmyctl-test-XXXXXX";

static void *serve(void *user) {
    struct peer *peer = user;
    int fd = accept(peer->fd, NULL, NULL);
    size_t used = 0;
    while (used < sizeof peer->call && read(fd, peer->call + used, 1) == 1 && peer->call[used]) used++;
    for (size_t sent = 0; sent < peer->length;) {
        size_t n = peer->length - sent < peer->piece ? peer->length - sent : peer->piece;
        ssize_t done = send(fd, peer->answer + sent, n, MSG_NOSIGNAL);
        if (done <= 0) break;
        sent += (size_t)done;
    }
    close(fd);
    return NULL;
}

static void peer_start(struct peer *peer, const char *name, const char *answer, size_t length, size_t piece) {
    memset(peer, 0, sizeof *peer);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(peer->path, sizeof peer->path, "%s/%s", directory, name);
    memcpy(address.sun_path, peer->path, sizeof peer->path);
    unlink(peer->path);
    peer->answer = answer;
    peer->length = length;
    peer->piece = piece;
    peer->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(peer->fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(peer->fd, 4), 0);
    pthread_create(&peer->thread, NULL, serve, peer);
}
static void peer_join(struct peer *peer) {
    pthread_join(peer->thread, NULL);
    close(peer->fd);
    unlink(peer->path);
}

static struct client *open_at(const char *path) {
    char error[512];
    struct client *client = client_open(path, error, sizeof error);
    if (!client) fail_msg("%s", error);
    return client;
}

static void streams_reply_by_reply(void **state) {
    (void)state;
    static const char answer[] =
        "{\"parameters\":{\"n\":1},\"continues\":true}\0{\"parameters\":{\"n\":2},\"continues\":true}\0{\"parameters\":{}}";
    for (size_t piece = 1; piece < sizeof answer; piece += 13) {
        struct peer peer;
        peer_start(&peer, "s", answer, sizeof answer, piece);
        struct client *client = open_at(peer.path);
        assert_true(client_call(client, "Load", json_pack("{s:s}", "model", "m"), true));
        for (int n = 1; n <= 3; n++) {
            json_t *parameters;
            bool continues;
            assert_int_equal(client_next(client, &parameters, &continues), CLIENT_REPLY);
            assert_int_equal(continues, n < 3);
            assert_int_equal(json_integer_value(json_object_get(parameters, "n")), n < 3 ? n : 0);
            json_decref(parameters);
        }
        client_close(client);
        peer_join(&peer);
        json_t *call = json_loads(peer.call, 0, NULL);
        assert_string_equal(json_string_value(json_object_get(call, "method")), "io.shimmy.Daemon.Load");
        assert_true(json_is_true(json_object_get(call, "more")));
        assert_string_equal(json_string_value(json_object_get(json_object_get(call, "parameters"), "model")), "m");
        json_decref(call);
    }
}

static enum client_result ask(const char *answer, size_t length, char *message, char *name) {
    struct peer peer;
    peer_start(&peer, "s", answer, length, 65536);
    struct client *client = open_at(peer.path);
    assert_true(client_call(client, "Status", NULL, false));
    json_t *parameters;
    bool continues;
    enum client_result result = client_next(client, &parameters, &continues);
    json_decref(parameters);
    snprintf(message, 512, "%s", client_error(client));
    snprintf(name, 256, "%s", client_error_name(client));
    client_close(client);
    peer_join(&peer);
    return result;
}

static void errors_become_sentences(void **state) {
    (void)state;
    char message[512], name[256];
    static const char with_message[] =
        "{\"error\":\"io.shimmy.Daemon.Busy\",\"parameters\":{\"message\":\"the queue of m is full\"}}";
    assert_int_equal(ask(with_message, sizeof with_message, message, name), CLIENT_ERROR);
    assert_string_equal(message, "the queue of m is full");
    assert_string_equal(name, "io.shimmy.Daemon.Busy");
    static const char standard[] =
        "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"top_k\"}}";
    assert_int_equal(ask(standard, sizeof standard, message, name), CLIENT_ERROR);
    assert_string_equal(message, "org.varlink.service.InvalidParameter: top_k");
    static const char bare[] = "{\"error\":\"x.y.Z\"}";
    assert_int_equal(ask(bare, sizeof bare, message, name), CLIENT_ERROR);
    assert_string_equal(message, "x.y.Z");
}

static void a_broken_daemon_is_no_crash(void **state) {
    (void)state;
    char message[512], name[256];
    assert_int_equal(ask("", 0, message, name), CLIENT_GONE);
    assert_non_null(strstr(message, "closed the connection"));
    assert_int_equal(ask("{\"parameters\":", 14, message, name), CLIENT_GONE);
    assert_int_equal(ask("nonsense", 9, message, name), CLIENT_GONE);
    assert_non_null(strstr(message, "no JSON object"));
    assert_int_equal(ask("[1]", 4, message, name), CLIENT_GONE);

    size_t length = CLIENT_MESSAGE_MAX + (1 << 20);
    char *endless = malloc(length);
    assert_non_null(endless);
    memset(endless, ' ', length);
    assert_int_equal(ask(endless, length, message, name), CLIENT_GONE);
    assert_non_null(strstr(message, "16 MiB"));
    free(endless);
}

static void large_messages_pass(void **state) {
    (void)state;
    size_t length = 3 << 20;
    char *answer = malloc(length), message[512], name[256];
    assert_non_null(answer);
    memset(answer, ' ', length);
    memcpy(answer, "{\"parameters\":{}", 16);
    memcpy(answer + length - 2, "}", 2);
    assert_int_equal(ask(answer, length, message, name), CLIENT_REPLY);
    free(answer);
}

static void sockets_are_looked_for_in_order(void **state) {
    (void)state;
    char runtime[64], path[128], error[1024];
    snprintf(runtime, sizeof runtime, "%s/runtime", directory);
    snprintf(path, sizeof path, "%s/shimmy", runtime);
    mkdir(runtime, 0700);
    mkdir(path, 0700);
    setenv("XDG_RUNTIME_DIR", runtime, 1);
    unsetenv("SHIMMY_SOCKET");

    struct peer user, variable, flag;
    peer_start(&user, "runtime/shimmy/control.sock", "", 0, 1);
    struct client *client = open_at(NULL);
    assert_string_equal(client_path(client), user.path);
    client_close(client);
    peer_join(&user);

    peer_start(&variable, "variable", "", 0, 1);
    setenv("SHIMMY_SOCKET", variable.path, 1);
    peer_start(&flag, "flag", "", 0, 1);
    client = open_at(flag.path);
    assert_string_equal(client_path(client), flag.path);
    client_close(client);
    client = open_at(NULL);
    assert_string_equal(client_path(client), variable.path);
    client_close(client);
    peer_join(&variable);
    peer_join(&flag);

    /* What was asked for and is not there is not replaced by another daemon. */
    assert_null(client_open("/nowhere/a.sock", error, sizeof error));
    assert_non_null(strstr(error, "/nowhere/a.sock: No such file"));
    assert_null(strstr(error, "; "));
    char longer[200];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_null(client_open(longer, error, sizeof error));
    assert_non_null(strstr(error, "199 bytes"));
    unsetenv("SHIMMY_SOCKET");
    rmdir(path);
    rmdir(runtime);
}

static void an_interrupt_ends_the_wait(void **state) {
    (void)state;
    char path[108];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(path, sizeof path, "%s/silent", directory);
    memcpy(address.sun_path, path, sizeof path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 1), 0);
    struct client *client = open_at(path);
    assert_true(client_call(client, "Generate", NULL, true));
    raise(SIGINT);
    json_t *parameters;
    bool continues;
    assert_int_equal(client_next(client, &parameters, &continues), CLIENT_INTERRUPTED);
    assert_null(parameters);
    client_close(client);
    close(fd);
    unlink(path);
}

int main(void) {
    if (!mkdtemp(directory)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_reply_by_reply),
        cmocka_unit_test(errors_become_sentences),
        cmocka_unit_test(a_broken_daemon_is_no_crash),
        cmocka_unit_test(large_messages_pass),
        cmocka_unit_test(sockets_are_looked_for_in_order),
        cmocka_unit_test(an_interrupt_ends_the_wait), /* last: the flag stays set */
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(directory);
    return failed;
}
