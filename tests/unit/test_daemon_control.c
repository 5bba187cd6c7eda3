/* test_daemon_control.c - the control socket as its clients see it: the protocol, every method, and what happens when clients
 * leave. */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/devices.h"
#include "daemon/metrics.h"
#include "daemon/generation.h"
#include "daemon/models_private.h"
#include "daemon/work.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/shared.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

static struct config *config;
static struct control *control;
static pthread_t server;
static atomic_bool stopping;
static char socket_path[108];

static void *serve(void *unused) {
    (void)unused;
    struct pollfd p = {.fd = control_fd(control), .events = POLLIN};
    while (!atomic_load(&stopping))
        if (poll(&p, 1, 20) > 0) control_dispatch(control);
    return NULL;
}

/* ---- a client ---------------------------------------------------------------------------------------- */

struct peer {
    int fd;
    char *buffer;
    size_t have;
    char terminator;
};

static struct peer peer_open(char terminator) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, socket_path);
    struct peer peer = {
        .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), .buffer = malloc(40 << 20), .terminator = terminator};
    assert_non_null(peer.buffer);
    assert_true(peer.fd >= 0);
    assert_int_equal(connect(peer.fd, (struct sockaddr *)&address, sizeof address), 0);
    return peer;
}

static void peer_close(struct peer *peer) {
    close(peer->fd);
    free(peer->buffer);
}

static void peer_send(struct peer *peer, const char *text) {
    size_t length = strlen(text);
    char *message = malloc(length + 1);
    assert_non_null(message);
    memcpy(message, text, length);
    message[length] = peer->terminator;
    for (size_t at = 0; at <= length;) {
        ssize_t n = send(peer->fd, message + at, length + 1 - at, MSG_NOSIGNAL);
        if (n <= 0) fail_msg("send: %s", strerror(errno));
        at += (size_t)n;
    }
    free(message);
}

/* The next message, NULL at the connection's end. */
static json_t *peer_receive(struct peer *peer) {
    for (;;) {
        char *end = memchr(peer->buffer, peer->terminator, peer->have);
        if (end) {
            json_error_t error;
            json_t *message = json_loadb(peer->buffer, (size_t)(end - peer->buffer), JSON_ALLOW_NUL, &error);
            if (!message) fail_msg("%s", error.text);
            peer->have -= (size_t)(end + 1 - peer->buffer);
            memmove(peer->buffer, end + 1, peer->have);
            return message;
        }
        struct pollfd p = {.fd = peer->fd, .events = POLLIN};
        if (poll(&p, 1, 60000) <= 0) fail_msg("no answer for 60 s");
        ssize_t n = recv(peer->fd, peer->buffer + peer->have, (40 << 20) - peer->have, 0);
        if (n <= 0) return NULL;
        peer->have += (size_t)n;
    }
}

static json_t *peer_call(struct peer *peer, const char *text) {
    peer_send(peer, text);
    json_t *answer = peer_receive(peer);
    if (!answer) fail_msg("closed after %s", text);
    return answer;
}

static json_t *at(const json_t *json, const char *path) {
    char copy[200];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *part = strtok(copy, "/"); part && json; part = strtok(NULL, "/"))
        json = json_is_array(json) ? json_array_get(json, (size_t)atoi(part)) : json_object_get(json, part);
    return (json_t *)json;
}

static const char *text_at(const json_t *json, const char *path) {
    const char *text = json_string_value(at(json, path));
    if (!text) fail_msg("no string %s in %s", path, json_dumps(json, 0));
    return text;
}

static void assert_error(json_t *answer, const char *name) {
    assert_string_equal(text_at(answer, "error"), name);
    json_decref(answer);
}

/* ---- the protocol ------------------------------------------------------------------------------------ */

static void test_service(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    json_t *info = peer_call(&peer, "{\"method\":\"org.varlink.service.GetInfo\"}");
    assert_string_equal(text_at(info, "parameters/interfaces/1"), "io.shimmy.Daemon");
    assert_string_equal(text_at(info, "parameters/version"), sh_version());
    json_decref(info);
    json_t *own = peer_call(
        &peer,
        "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"io.shimmy.Daemon\"}}");
    size_t size;
    char *file = test_read_file("daemon/control/io.shimmy.Daemon.varlink", &size);
    assert_int_equal(strlen(text_at(own, "parameters/description")), size);
    assert_memory_equal(text_at(own, "parameters/description"), file, size);
    free(file);
    json_decref(own);
    json_t *service = peer_call(
        &peer,
        "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.varlink.service\"}}");
    assert_non_null(strstr(text_at(service, "parameters/description"), "method GetInfo()"));
    json_decref(service);
    assert_error(
        peer_call(&peer, "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"a.b\"}}"),
        "org.varlink.service.InterfaceNotFound");
    assert_error(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Nothing\"}"), "org.varlink.service.MethodNotFound");
    assert_error(peer_call(&peer, "{\"method\":\"org.varlink.service.Nothing\"}"), "org.varlink.service.MethodNotFound");
    assert_error(peer_call(&peer, "{\"method\":\"a.b.C\"}"), "org.varlink.service.InterfaceNotFound");
    assert_error(peer_call(&peer, "{\"method\":\"Status\"}"), "org.varlink.service.InterfaceNotFound");
    peer_close(&peer);
}

/* Every method of the description has a function, every function a description, and every error that it names is known to the
 * manual. */
static void test_interface(void **state) {
    (void)state;
    size_t size;
    char *manual = test_read_file("man/shimmyd-control.7", &size);
    manual = realloc(manual, size + 1);
    manual[size] = 0;
    uint32_t described = 0, errors = 0;
    for (const char *line = control_interface_text; line; line = strchr(line, '\n'), line += line != NULL) {
        char name[64];
        if (sscanf(line, "method %63[A-Za-z]", name) == 1) {
            bool found = false;
            for (const struct method *method = control_methods; method->name; method++) found |= strcmp(method->name, name) == 0;
            if (!found) fail_msg("method %s is described and not there", name);
            described++;
        } else if (sscanf(line, "error %63[A-Za-z]", name) == 1) {
            errors++;
        } else {
            continue;
        }
        if (!strstr(manual, name)) fail_msg("shimmyd-control(7) does not name %s", name);
    }
    uint32_t there = 0;
    while (control_methods[there].name) there++;
    assert_int_equal(described, there);
    assert_true(errors >= 10);
    free(manual);
}

#define GENERATE "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"x\","

static void test_parameters(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    static const struct {
        const char *call, *parameter;
    } cases[] = {
        {"{\"method\":\"io.shimmy.Daemon.Status\",\"parameters\":{\"x\":1}}", "x"},
        {"{\"method\":\"io.shimmy.Daemon.List\",\"parameters\":{\"rescan\":1}}", "rescan"},
        {"{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{}}", "model"},
        {"{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":null}}", "model"},
        {"{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"a\\u0000b\"}}", "model"},
        {"{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"m\",\"context_length\":1.5}}", "context_length"},
        {"{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"m\",\"context_length\":-1}}", "context_length"},
        {"{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"m\",\"kv_type\":\"q8\"}}", "kv_type"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\"}}", "prompt"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"\",\"prompt_tokens\":[]}}",
         "prompt"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"x\",\"temperature\":-1}}",
         "temperature"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"x\",\"logprobs\":21}}",
         "logprobs"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"x\",\"stop\":[\"\"]}}", "stop"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"x\",\"logit_bias\":[{\"token\":"
         "1}]}}",
         "logit_bias"},
        {GENERATE "\"typical_p\":2}}", "typical_p"},
        {GENERATE "\"top_n_sigma\":-1}}", "top_n_sigma"},
        {GENERATE "\"xtc_probability\":1.5}}", "xtc_probability"},
        {GENERATE "\"xtc_threshold\":0}}", "xtc_threshold"},
        {GENERATE "\"dry_multiplier\":-1}}", "dry_multiplier"},
        {GENERATE "\"dry_base\":0.5}}", "dry_base"},
        {GENERATE "\"dry_allowed_length\":0}}", "dry_allowed_length"},
        {GENERATE "\"dry_penalty_last_n\":-1}}", "dry_penalty_last_n"},
        {GENERATE "\"dry_sequence_breakers\":[\"\"]}}", "dry_sequence_breakers"},
        {GENERATE "\"mirostat\":1}}", "mirostat"},
        {GENERATE "\"mirostat_tau\":-1}}", "mirostat_tau"},
        {GENERATE "\"mirostat_eta\":\"x\"}}", "mirostat_eta"},
        {GENERATE "\"min_tokens\":-1}}", "min_tokens"},
        {GENERATE "\"stop_token_ids\":[-1]}}", "stop_token_ids"},
        {GENERATE "\"bad_words\":[1]}}", "bad_words"},
        {GENERATE "\"grammar\":{}}}", "grammar"},
        {GENERATE "\"grammar\":\"root ::= (\"}}", "grammar"},
        {GENERATE "\"json_schema\":\"{}\"}}", "json_schema"},
        {GENERATE "\"json_schema\":{\"type\":\"strange\"}}}", "json_schema"},
        {GENERATE "\"json_schema\":{\"not\":{}}}}", "json_schema"},
        {GENERATE "\"regex\":\"(\"}}", "regex"},
        {GENERATE "\"choices\":[1]}}", "choices"},
        {GENERATE "\"choices\":\"a\"}}", "choices"},
        {GENERATE "\"grammar\":\"root ::= \\\"a\\\"\",\"regex\":\"a\"}}", "regex"},
        {"{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt_tokens\":[1,\"2\"]}}",
         "prompt_tokens"},
        {"{\"method\":\"io.shimmy.Daemon.Tokenize\",\"parameters\":{\"model\":\"m\"}}", "content"},
        {"{\"method\":\"io.shimmy.Daemon.Detokenize\",\"parameters\":{\"model\":\"m\",\"tokens\":[-1]}}", "tokens"},
        {"{\"method\":\"io.shimmy.Daemon.Cancel\",\"parameters\":{\"id\":\"7\"}}", "id"},
    };
    for (uint32_t i = 0; i < SH_COUNT(cases); i++) {
        json_t *answer = peer_call(&peer, cases[i].call);
        if (strcmp(text_at(answer, "error"), "org.varlink.service.InvalidParameter") != 0)
            fail_msg("%s: %s", cases[i].call, text_at(answer, "error"));
        assert_string_equal(text_at(answer, "parameters/parameter"), cases[i].parameter);
        json_decref(answer);
    }
    assert_error(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Cancel\",\"parameters\":{\"id\":999999}}"),
                 "io.shimmy.Daemon.GenerationNotFound");
    assert_error(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"nothing-like-it\"}}"),
                 "io.shimmy.Daemon.ModelNotFound");
    assert_error(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Unload\",\"parameters\":{\"model\":\"other\"}}"),
                 "io.shimmy.Daemon.ModelNotLoaded");
    peer_close(&peer);
}

static void test_messages(void **state) {
    (void)state;
    static const char *const refused[] = {"hello",
                                          "[]",
                                          "{\"method\":}",
                                          "{\"method\":5}",
                                          "{\"parameters\":{}}",
                                          "{\"method\":\"a.b\",\"parameters\":5}",
                                          "{\"method\":\"a.b\",\"more\":1}",
                                          "{\"method\":\"a.b\",\"method\":\"a.c\"}",
                                          "{} x"};
    for (uint32_t i = 0; i < SH_COUNT(refused); i++) {
        struct peer peer = peer_open('\n');
        assert_error(peer_call(&peer, refused[i]), "io.shimmy.Daemon.InvalidMessage");
        assert_null(peer_receive(&peer)); /* and closed */
        peer_close(&peer);
    }
    /* Line feeds work for a person, several calls may be sent at once, and answers keep their order. */
    struct peer person = peer_open('\n');
    peer_send(&person, "{\"method\":\n\"io.shimmy.Daemon.List\"}\n{\"method\":\"io.shimmy.Daemon.List\",\"oneway\":true}\n"
                       "{\"method\":\"org.varlink.service.GetInfo\"}");
    json_t *first = peer_receive(&person), *second = peer_receive(&person);
    assert_true(json_is_array(at(first, "parameters/models")));
    assert_non_null(at(second, "parameters/vendor")); /* nothing in between: that call wanted no answer */
    json_decref(first);
    json_decref(second);
    /* A half-close: what was asked is still answered, then the connection ends. */
    peer_send(&person, "{\"method\":\"io.shimmy.Daemon.Status\"}");
    shutdown(person.fd, SHUT_WR);
    json_t *answer = peer_receive(&person);
    assert_string_equal(text_at(answer, "parameters/version"), sh_version());
    json_decref(answer);
    assert_null(peer_receive(&person));
    peer_close(&person);

    /* 15 MiB of text there and back. */
    struct peer big = peer_open(0);
    size_t size = 15 << 20;
    char *text = malloc(size + 200);
    int head = sprintf(text, "{\"method\":\"io.shimmy.Daemon.Tokenize\",\"parameters\":{\"model\":\"m\",\"x\":\"");
    memset(text + head, 'a', size);
    strcpy(text + (size_t)head + size, "\"}}");
    assert_error(peer_call(&big, text), "org.varlink.service.InvalidParameter");
    size = 17 << 20;
    text = realloc(text, size + 200);
    memset(text + head, 'a', size);
    strcpy(text + (size_t)head + size, "\"}}");
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(big.fd, text + sent, size - sent, MSG_NOSIGNAL);
        if (n <= 0) break; /* it stopped listening: the answer says why */
        sent += (size_t)n;
    }
    json_t *last = peer_receive(&big);
    if (last) assert_error(last, "io.shimmy.Daemon.InvalidMessage");
    free(text);
    peer_close(&big);
}

static void test_status(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    json_t *status = peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Status\",\"parameters\":{}}");
    assert_string_equal(text_at(status, "parameters/socket"), socket_path);
    assert_string_equal(text_at(status, "parameters/http/0"), "http://127.0.0.1:1");
    assert_string_equal(text_at(status, "parameters/state"), "running");
    const json_t *device = at(status, "parameters/devices/0"), *one = at(status, "parameters/models/1");
    static const char *const device_keys[] = {"name", "kind", "selected", "reason", "memory_bytes"};
    static const char *const model_keys[] = {"id", "path", "state", "arch", "type", "size_bytes", "error"};
    for (uint32_t i = 0; i < SH_COUNT(device_keys); i++) assert_non_null(json_object_get(device, device_keys[i]));
    for (uint32_t i = 0; i < SH_COUNT(model_keys); i++) assert_non_null(json_object_get(one, model_keys[i]));
    assert_string_equal(text_at(one, "arch"), "llama");
    assert_string_equal(text_at(one, "type"), "Q8_0");
    assert_true(json_is_null(json_object_get(one, "error")));
    assert_true(json_is_null(at(status, "parameters/device_error")));
    json_decref(status);
    json_t *devices = peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Devices\"}");
    assert_true(json_array_size(at(devices, "parameters/devices")) >= 1);
    json_decref(devices);
    peer_close(&peer);
    struct stat st;
    assert_int_equal(stat(socket_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
}

/* ---- models and text --------------------------------------------------------------------------------- */

static void test_load(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    peer_send(&peer, "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"M\"},\"more\":true}");
    double fraction = -1;
    uint32_t steps = 0;
    for (bool more = true; more; steps++) {
        json_t *answer = peer_receive(&peer);
        assert_non_null(answer);
        assert_null(at(answer, "error"));
        assert_true(json_number_value(at(answer, "parameters/fraction")) >= fraction);
        fraction = json_number_value(at(answer, "parameters/fraction"));
        more = json_is_true(json_object_get(answer, "continues"));
        if (steps == 0) assert_string_equal(text_at(answer, "parameters/phase"), "queued");
        if (!more) {
            assert_string_equal(text_at(answer, "parameters/phase"), "done");
            assert_string_equal(text_at(answer, "parameters/model/state"), "ready");
            assert_int_equal(json_integer_value(at(answer, "parameters/model/context_length")), 256);
        }
        json_decref(answer);
    }
    assert_true(fraction == 1 && steps >= 2);
    assert_error(
        peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"m\",\"context_length\":64}}"),
        "io.shimmy.Daemon.LoadFailed");
    json_t *again = peer_call(
        &peer, "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"m\",\"context_length\":64,\"reload\":true}}");
    assert_int_equal(json_integer_value(at(again, "parameters/model/context_length")), 64);
    json_decref(again);
    json_t *unloaded = peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Unload\",\"parameters\":{\"model\":\"m\"}}");
    assert_null(at(unloaded, "error"));
    json_decref(unloaded);
    assert_int_equal(room_state("m"), MODEL_DISCOVERED);
    assert_error(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"broken\"}}"),
                 "io.shimmy.Daemon.LoadFailed");
    peer_close(&peer);
}

static void test_text(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    json_t *tokens = peer_call(
        &peer,
        "{\"method\":\"io.shimmy.Daemon.Tokenize\",\"parameters\":{\"model\":\"m\",\"content\":\"Hello w\\u00f6rld\\u0000!\"}}");
    json_t *ids = at(tokens, "parameters/tokens");
    assert_true(json_array_size(ids) > 3);
    json_t *call = json_pack("{ss s{ss sO}}", "method", "io.shimmy.Daemon.Detokenize", "parameters", "model", "m", "tokens", ids);
    char *text = json_dumps(call, 0);
    json_t *back = peer_call(&peer, text);
    json_t *content = at(back, "parameters/content");
    assert_int_equal(json_string_length(content), 14);
    assert_memory_equal(json_string_value(content), "Hello w\xc3\xb6rld\0!", 14);
    free(text);
    json_decref(call);
    json_decref(back);
    json_decref(tokens);
    assert_error(
        peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Detokenize\",\"parameters\":{\"model\":\"m\",\"tokens\":[1000000]}}"),
        "io.shimmy.Daemon.TokenizeFailed");
    assert_error(
        peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Tokenize\",\"parameters\":{\"model\":\"broken\",\"content\":\"x\"}}"),
        "io.shimmy.Daemon.TokenizeFailed");
    peer_close(&peer);
}

static void test_template(void **state) {
    (void)state;
    static const char hello[] = "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]";
    static const struct {
        const char *more, *text, *template, *source;
    } cases[] = {
        {"", "User: Hello\nAssistant:", "plain", "built-in"},
        {",\"chat_template\":\"chatml\"", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "chatml", "built-in"},
        {",\"add_generation_prompt\":false", "User: Hello\n", "plain", "built-in"},
    };
    struct peer peer = peer_open(0);
    char line[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(line, sizeof line, "{\"method\":\"io.shimmy.Daemon.Template\",\"parameters\":{%s%s}}", hello, cases[i].more);
        json_t *reply = peer_call(&peer, line);
        assert_string_equal(json_string_value(at(reply, "parameters/text")), cases[i].text);
        assert_string_equal(json_string_value(at(reply, "parameters/template")), cases[i].template);
        assert_string_equal(json_string_value(at(reply, "parameters/source")), cases[i].source);
        assert_true(json_array_size(at(reply, "parameters/tokens")) > 3);
        json_decref(reply);
    }
    static const char *const refused[] = {
        "\"model\":\"m\",\"messages\":[]", "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"chat_template\":\"nonsense\"",
        "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"continue_last\":true",
        "\"model\":\"broken\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        snprintf(line, sizeof line, "{\"method\":\"io.shimmy.Daemon.Template\",\"parameters\":{%s}}", refused[i]);
        assert_error(peer_call(&peer, line), "io.shimmy.Daemon.TemplateFailed");
    }
    snprintf(line, sizeof line, "{\"method\":\"io.shimmy.Daemon.Template\",\"parameters\":{%s,\"variables\":[]}}", hello);
    assert_error(peer_call(&peer, line), "org.varlink.service.InvalidParameter");
    peer_close(&peer);
}

static json_t *embed(struct peer *peer, const char *rest) {
    char text[400];
    snprintf(text, sizeof text, "{\"method\":\"io.shimmy.Daemon.Embed\",%s}", rest);
    return peer_call(peer, text);
}

static void test_embed(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    json_t *all = embed(&peer, "\"parameters\":{\"model\":\"m\",\"texts\":[\"Hello\",\"w\\u00f6rld\"],\"dimensions\":5}");
    assert_int_equal(json_array_size(at(all, "parameters/embeddings")), 2);
    assert_int_equal(json_array_size(at(all, "parameters/embeddings/0")), 5);
    assert_string_equal(text_at(all, "parameters/model"), "m");
    const json_int_t tokens = json_integer_value(at(all, "parameters/usage/prompt_tokens"));
    assert_true(tokens >= 4);
    double sum = 0;
    for (size_t i = 0; i < 5; i++) {
        const double x = json_number_value(json_array_get(at(all, "parameters/embeddings/1"), i));
        sum += x * x;
    }
    assert_true(sum > 0.999 && sum < 1.001);
    /* one by one, the same */
    json_t *first = embed(&peer, "\"more\":true,\"parameters\":{\"model\":\"m\",\"texts\":[\"Hello\",\"w\\u00f6rld\"],\"dimensions\":5}");
    assert_true(json_is_integer(at(first, "parameters/id")) && json_is_true(at(first, "continues")));
    for (json_int_t i = 0; i < 2; i++) {
        json_t *one = peer_receive(&peer);
        assert_int_equal(json_integer_value(at(one, "parameters/index")), i);
        assert_true(json_equal(at(one, "parameters/embedding"), json_array_get(at(all, "parameters/embeddings"), (size_t)i)));
        json_decref(one);
    }
    json_t *last = peer_receive(&peer);
    assert_null(at(last, "continues"));
    assert_int_equal(json_integer_value(at(last, "parameters/usage/prompt_tokens")), tokens);
    json_decref(last);
    json_decref(first);
    json_decref(all);
    json_t *ids = embed(&peer, "\"parameters\":{\"model\":\"m\",\"tokens\":[[1,5],[1]]}");
    assert_int_equal(json_integer_value(at(ids, "parameters/usage/prompt_tokens")), 3);
    json_decref(ids);

    static const struct {
        const char *parameters, *error;
    } wrong[] = {
        {"\"model\":\"m\"", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"texts\":[]", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"texts\":[\"a\"],\"tokens\":[[1]]", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"texts\":[\"a\",\"\"]", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"texts\":[1]", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"tokens\":[1]", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"tokens\":[[1,-1]]", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"texts\":[\"a\"],\"dimensions\":0", "org.varlink.service.InvalidParameter"},
        {"\"model\":\"m\",\"texts\":[\"a\"],\"dimensions\":100000", "io.shimmy.Daemon.GenerationFailed"},
        {"\"model\":\"m\",\"tokens\":[[1000000]]", "io.shimmy.Daemon.GenerationFailed"},
        {"\"model\":\"none\",\"texts\":[\"a\"]", "io.shimmy.Daemon.ModelNotFound"},
        {"\"model\":\"broken\",\"texts\":[\"a\"]", "io.shimmy.Daemon.LoadFailed"},
    };
    for (size_t i = 0; i < SH_COUNT(wrong); i++) {
        char rest[200];
        snprintf(rest, sizeof rest, "\"parameters\":{%s}", wrong[i].parameters);
        assert_error(embed(&peer, rest), wrong[i].error);
    }
    peer_close(&peer);
}

static void test_generate(void **state) {
    (void)state;
    struct peer peer = peer_open(0);
    /* At once, from text, two choices; the model loads by itself. */
    json_t *whole =
        peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"Once\",\"n\":2,"
                         "\"seed\":11,\"max_tokens\":12,\"ignore_eos\":true}}");
    assert_null(at(whole, "error"));
    assert_int_equal(json_array_size(at(whole, "parameters/choices")), 2);
    assert_int_equal(json_array_size(at(whole, "parameters/choices/0/tokens")), 12);
    assert_int_equal(json_integer_value(at(whole, "parameters/usage/completion_tokens")), 24);
    assert_int_equal(json_integer_value(at(whole, "parameters/seed")), 11);
    assert_true(json_number_value(at(whole, "parameters/timings/load_ms")) > 0);
    assert_string_equal(text_at(whole, "parameters/choices/1/finish_reason"), "length");

    /* Held to a form. */
    json_t *held = peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"Once\",\"n\":2,"
                                    "\"seed\":11,\"ignore_eos\":true,\"choices\":[\"ab\",\"cd\"]}}");
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "parameters/choices/%d/text", i);
        const char *text = text_at(held, path);
        assert_true(strcmp(text, "ab") == 0 || strcmp(text, "cd") == 0);
        snprintf(path, sizeof path, "parameters/choices/%d/finish_reason", i);
        assert_string_equal(text_at(held, path), "stop");
    }
    json_decref(held);

    /* Streamed: the same tokens and the same text. */
    peer_send(
        &peer,
        "{\"method\":\"io.shimmy.Daemon.Generate\",\"more\":true,\"parameters\":{\"model\":\"m\",\"prompt\":\"Once\",\"n\":2,"
        "\"seed\":11,\"max_tokens\":12,\"ignore_eos\":true,\"logprobs\":2}}");
    json_t *first = peer_receive(&peer);
    assert_true(json_integer_value(at(first, "parameters/id")) > 0);
    assert_string_equal(text_at(first, "parameters/model"), "m");
    assert_true(json_is_true(at(first, "continues")));
    json_decref(first);
    char texts[2][2000] = {"", ""};
    json_t *tokens[2] = {json_array(), json_array()};
    bool more = true;
    while (more) {
        json_t *answer = peer_receive(&peer);
        assert_non_null(answer);
        more = json_is_true(at(answer, "continues"));
        if (more) {
            json_int_t choice = json_integer_value(at(answer, "parameters/choice"));
            strcat(texts[choice], text_at(answer, "parameters/text"));
            json_t *token = at(answer, "parameters/token");
            if (token) {
                json_array_append(tokens[choice], token);
                assert_int_equal(json_array_size(at(answer, "parameters/top")), 2);
                assert_true(json_number_value(at(answer, "parameters/logprob")) <= 0);
            } else {
                assert_string_equal(text_at(answer, "parameters/finished/finish_reason"), "length");
            }
        } else {
            assert_int_equal(json_array_size(at(answer, "parameters/choices")), 2);
            assert_true(json_number_value(at(answer, "parameters/timings/generated_per_second")) > 0);
        }
        json_decref(answer);
    }
    for (int i = 0; i < 2; i++) {
        char path[60];
        snprintf(path, sizeof path, "parameters/choices/%d/tokens", i);
        assert_true(json_equal(tokens[i], at(whole, path)));
        snprintf(path, sizeof path, "parameters/choices/%d/text", i);
        assert_string_equal(texts[i], text_at(whole, path));
        json_decref(tokens[i]);
    }
    json_decref(whole);

    json_t *by_ids =
        peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt_tokens\":[1,5,9],"
                         "\"temperature\":0,\"max_tokens\":3,\"logit_bias\":[{\"token\":42,\"bias\":1000}]}}");
    assert_int_equal(json_integer_value(at(by_ids, "parameters/choices/0/tokens/2")), 42);
    json_decref(by_ids);
    json_t *too_long = json_array();
    for (int i = 0; i < 300; i++) json_array_append_new(too_long, json_integer(7));
    json_t *call =
        json_pack("{ss s{ss so}}", "method", "io.shimmy.Daemon.Generate", "parameters", "model", "m", "prompt_tokens", too_long);
    char *text = json_dumps(call, 0);
    json_t *refused = peer_call(&peer, text);
    assert_string_equal(text_at(refused, "parameters/code"), "limit");
    assert_error(refused, "io.shimmy.Daemon.GenerationFailed");
    free(text);
    json_decref(call);
    assert_error(
        peer_call(&peer,
                  "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":200,"
                  "\"ignore_eos\":true,\"timeout_seconds\":0.001}}"),
        "io.shimmy.Daemon.Cancelled");
    peer_close(&peer);
}

static void counts(uint32_t *running, uint32_t *queued) {
    struct model *model;
    struct model_view view;
    assert_int_equal(models_resolve("m", &model, NULL), SH_OK);
    model_get_view(model, &view);
    *running = view.running;
    *queued = view.queued;
    model_view_finish(&view);
    model_unref(model);
}

static void assert_soon(uint32_t want_running, uint32_t want_queued) {
    uint32_t running = 0, queued = 0;
    for (int i = 0; i < 1000; i++) {
        counts(&running, &queued);
        if (running == want_running && queued == want_queued) return;
        usleep(1000);
    }
    fail_msg("running %u, queued %u after a second: expected %u, %u", running, queued, want_running, want_queued);
}

/* A slow model: the prompt's context is small, so what is needed is time. It is given by a queue that the first request holds
 * up. */
static json_int_t start_long(struct peer *peer) {
    peer_send(peer, "{\"method\":\"io.shimmy.Daemon.Generate\",\"more\":true,\"parameters\":{\"model\":\"m\",\"prompt\":\"x\","
                    "\"n\":8,\"ignore_eos\":true}}");
    json_t *first = peer_receive(peer);
    json_int_t id = json_integer_value(at(first, "parameters/id"));
    assert_true(id > 0);
    json_decref(first);
    return id;
}

static json_t *last_answer(struct peer *peer) {
    for (;;) {
        json_t *answer = peer_receive(peer);
        if (!answer || !json_is_true(at(answer, "continues"))) return answer;
        json_decref(answer);
    }
}

static void test_leaving(void **state) {
    (void)state;
    model_unref(room_load("m"));
    struct peer runs = peer_open(0), waits = peer_open(0), another = peer_open(0), watcher = peer_open(0);
    json_int_t running_id = start_long(&runs);
    json_int_t waiting_id = start_long(&waits);
    assert_int_not_equal(running_id, waiting_id);
    start_long(&another);
    assert_soon(1, 2);
    /* One that waits leaves: its place is free at once. */
    peer_close(&another);
    another = peer_open(0);
    assert_soon(1, 1);
    /* Cancel from elsewhere, of one that waits: its client is told. The socket answers others all the while. */
    char call[120];
    snprintf(call, sizeof call, "{\"method\":\"io.shimmy.Daemon.Cancel\",\"parameters\":{\"id\":%lld}}", (long long)waiting_id);
    json_t *cancelled = peer_call(&watcher, call);
    assert_null(at(cancelled, "error"));
    json_decref(cancelled);
    json_t *end = last_answer(&waits);
    assert_string_equal(text_at(end, "parameters/reason"), "cancelled");
    assert_error(end, "io.shimmy.Daemon.Cancelled");
    /* What a client sends before it closes is done, though nobody reads an answer. */
    json_int_t third_id = start_long(&another);
    struct peer passing = peer_open(0);
    snprintf(call, sizeof call, "{\"method\":\"io.shimmy.Daemon.Cancel\",\"oneway\":true,\"parameters\":{\"id\":%lld}}",
             (long long)third_id);
    peer_send(&passing, call);
    peer_close(&passing);
    end = last_answer(&another);
    assert_string_equal(text_at(end, "parameters/reason"), "cancelled");
    json_decref(end);
    /* The one that runs leaves. */
    peer_close(&runs);
    assert_soon(0, 0);
    snprintf(call, sizeof call, "{\"method\":\"io.shimmy.Daemon.Cancel\",\"parameters\":{\"id\":%lld}}", (long long)waiting_id);
    assert_error(peer_call(&watcher, call), "io.shimmy.Daemon.GenerationNotFound");
    peer_close(&another);
    peer_close(&waits);
    peer_close(&watcher);
}

/* A client that does not read its answers holds nobody up; one that reads late gets them all. */
static void test_slow_reader(void **state) {
    (void)state;
    struct peer slow = peer_open(0), quick = peer_open(0);
    enum { CALLS = 400 };
    for (int i = 0; i < CALLS; i++)
        peer_send(
            &slow,
            "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"io.shimmy.Daemon\"}}");
    json_t *answer = peer_call(&quick, "{\"method\":\"org.varlink.service.GetInfo\"}");
    assert_null(at(answer, "error"));
    json_decref(answer);
    for (int i = 0; i < CALLS; i++) {
        answer = peer_receive(&slow);
        assert_non_null(answer);
        assert_non_null(at(answer, "parameters/description"));
        json_decref(answer);
    }
    peer_close(&slow);
    peer_close(&quick);
}

static double refused_as_busy(void) {
    size_t length;
    char *text = metrics_text(&length);
    const char *line = text ? strstr(text, "shimmy_requests_refused_total{reason=\"queue_full\"} ") : NULL;
    const double count = line ? strtod(strchr(line, ' '), NULL) : 0;
    free(text);
    return count;
}

static void ask_all_at_once(void) {
    struct peer peers[100];
    const double before = refused_as_busy();
    for (int i = 0; i < 100; i++) {
        peers[i] = peer_open(i % 2 ? '\n' : 0);
        peer_send(&peers[i], "{\"method\":\"io.shimmy.Daemon.Generate\","
                             "\"parameters\":{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":2,\"ignore_eos\":true}}");
    }
    uint32_t done = 0, busy = 0;
    for (int i = 0; i < 100; i++) {
        json_t *answer = peer_receive(&peers[i]);
        assert_non_null(answer);
        const char *error = json_string_value(at(answer, "error"));
        if (error) assert_string_equal(error, "io.shimmy.Daemon.Busy");
        if (error) busy++;
        else done++;
        json_decref(answer);
        peer_close(&peers[i]);
    }
    assert_int_equal(done + busy, 100);
    assert_true(done >= 1);
    assert_true(refused_as_busy() - before == busy);
}

static void test_many_clients(void **state) {
    (void)state;
    ask_all_at_once();
    struct peer peer = peer_open(0);
    json_decref(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Unload\",\"parameters\":{\"model\":\"m\"}}"));
    peer_close(&peer);
    assert_true(room_wait_state("m", MODEL_DISCOVERED));
    ask_all_at_once(); /* for the load, and then for sequences */
}

struct block { /* keeps a thread of work.h busy until `go` */
    struct work work;
    atomic_bool running, done;
};
static atomic_bool go;

static void run_block(struct work *work) {
    atomic_store(&((struct block *)work)->running, true);
    while (!atomic_load(&go)) usleep(1000);
}

static void block_done(struct work *work, bool ran) {
    (void)ran;
    atomic_store(&((struct block *)work)->done, true);
}

/* The model goes while requests for it are being tokenised: they wait for it to be loaded again, and then there is not room for all. */
static void test_busy_after_a_load(void **state) {
    (void)state;
    enum { CALLS = 20 };
    static struct block blocks[3];
    struct peer peers[CALLS], peer = peer_open(0);
    json_decref(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"m\"}}"));
    const double before = refused_as_busy();
    for (size_t i = 0; i < SH_COUNT(blocks); i++) {
        blocks[i].work = (struct work){.run = run_block, .done = block_done};
        work_submit(&blocks[i].work);
    }
    for (size_t i = 0; i < SH_COUNT(blocks); i++)
        while (!atomic_load(&blocks[i].running)) usleep(1000);
    for (int i = 0; i < CALLS; i++) {
        peers[i] = peer_open(0);
        peer_send(&peers[i], "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":"
                             "{\"model\":\"m\",\"prompt\":\"x\",\"n\":8,\"max_tokens\":60,\"ignore_eos\":true}}");
    }
    usleep(100000); /* they have the model, and wait for a thread */
    json_decref(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Unload\",\"parameters\":{\"model\":\"m\"}}"));
    assert_true(room_wait_state("m", MODEL_DISCOVERED));
    atomic_store(&go, true);
    uint32_t busy = 0;
    for (int i = 0; i < CALLS; i++) {
        json_t *answer = peer_receive(&peers[i]);
        assert_non_null(answer);
        const char *error = json_string_value(at(answer, "error"));
        if (error) assert_string_equal(error, "io.shimmy.Daemon.Busy");
        busy += error != NULL;
        json_decref(answer);
        peer_close(&peers[i]);
    }
    assert_true(busy > 0 && busy < CALLS); /* 16 may wait, and one has all sequences */
    assert_true(refused_as_busy() - before == busy);
    for (size_t i = 0; i < SH_COUNT(blocks); i++)
        while (!atomic_load(&blocks[i].done)) usleep(1000);
    peer_close(&peer);
}

/* ---- the socket's file ------------------------------------------------------------------------------- */

static void test_socket_file(void **state) {
    (void)state;
    struct control *second = NULL;
    struct sh_error err;
    struct control_params params = {.path = socket_path, .inherited_fd = -1};
    assert_int_equal(control_start(&params, &second, &err), SH_ERR_BUSY);
    assert_non_null(strstr(err.message, "another shimmyd listens there"));
    struct stat st;
    assert_int_equal(stat(socket_path, &st), 0);

    char path[108];
    snprintf(path, sizeof path, "%s", test_scratch("a"));
    char *slash = strrchr(path, '/');
    strcpy(slash, "/new-directory/s");
    params.path = path;
    assert_int_equal(control_start(&params, &second, &err), SH_OK);
    control_stop(second);
    assert_int_equal(access(path, F_OK), -1);

    /* Left over by one that crashed: replaced. */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    assert_int_equal(control_start(&params, &second, &err), SH_OK);
    /* Somebody else's by the time we end: it stays. */
    assert_int_equal(unlink(path), 0);
    test_write_file(path, "x", 1);
    control_stop(second);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(control_start(&params, &second, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "something else is there"));
    unlink(path);
    *strrchr(path, '/') = 0;
    rmdir(path);

    char long_path[300];
    memset(long_path, 'x', sizeof long_path);
    long_path[0] = '/';
    long_path[sizeof long_path - 1] = 0;
    params.path = long_path;
    assert_int_equal(control_start(&params, &second, &err), SH_ERR_INVALID);
}

static void test_default_path(void **state) {
    (void)state;
    char path[300];
    struct sh_error err;
    setenv("RUNTIME_DIRECTORY", "/run/shimmy:/run/other", 1);
    assert_int_equal(control_default_path(path, sizeof path, &err), SH_OK);
    assert_string_equal(path, "/run/shimmy/control.sock");
    unsetenv("RUNTIME_DIRECTORY");
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(control_default_path(path, sizeof path, &err), SH_OK);
    assert_string_equal(path, "/run/user/7/shimmy/control.sock");
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(control_default_path(path, sizeof path, &err), SH_ERR_INVALID);
}

static int setup(void **state) {
    (void)state;
    static const char *const addresses[] = {"http://127.0.0.1:1", NULL};
    const char *directory = room_directory("control");
    char path[600];
    room_model(directory, "m.gguf", 2, "m");
    room_model(directory, "other.gguf", 1, "o");
    snprintf(path, sizeof path, "%s/broken.gguf", directory);
    test_write_file(path, "GGUF", 4);
    config = room_config("--model-dir", directory, "--device", "cpu", "--max-batch-rows", "32", "--max-queue", "16", "--max-sequences", "8", NULL);
    snprintf(socket_path, sizeof socket_path, "%s/s", directory);
    struct control_params params = {.path = socket_path, .inherited_fd = -1, .http_addresses = addresses};
    struct sh_error err;
    assert_int_equal(control_start(&params, &control, &err), SH_OK);
    room_start(config);
    while (!devices_probed()) usleep(1000); /* the room's probe wakes nobody */
    assert_int_equal(pthread_create(&server, NULL, serve, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    models_stop_accepting();
    models_stop(1000000000);
    atomic_store(&stopping, true);
    pthread_join(server, NULL);
    control_stop(control);
    devices_stop();
    config_unref(config);
    return 0;
}

static void test_discover(void **state) {
    (void)state;
    char path[700];
    snprintf(path, sizeof path, "%s/left.gguf", config->model_dirs[0]);
    assert_int_equal(symlink("/nonexistent/x.gguf", path), 0);
    struct peer peer = peer_open(0);
    json_t *answer = peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Discover\"}");
    const json_t *item;
    size_t i, found = 0, told = 0;
    json_array_foreach(at(answer, "parameters/models"), i, item) {
        found += strcmp(text_at(item, "id"), "m") == 0;
        assert_true(json_is_array(at(item, "names")));
    }
    json_array_foreach(at(answer, "parameters/left_out"), i, item) {
        if (!strstr(text_at(item, "path"), "/left.gguf")) continue;
        told++;
        assert_non_null(strstr(text_at(item, "reason"), "/nonexistent/x.gguf"));
    }
    assert_int_equal(found, 1);
    assert_int_equal(told, 1);
    assert_true(json_integer_value(at(answer, "parameters/roots/0/models")) >= 1);
    assert_true(json_is_null(at(answer, "parameters/roots/0/error")));
    assert_true(json_is_real(at(answer, "parameters/milliseconds")));
    json_decref(answer);
    unlink(path);
    answer = peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.List\",\"parameters\":{\"rescan\":true}}");
    assert_true(json_array_size(at(answer, "parameters/models")) >= 1);
    json_decref(answer);
    assert_error(peer_call(&peer, "{\"method\":\"io.shimmy.Daemon.Discover\",\"parameters\":{\"x\":1}}"), "org.varlink.service.InvalidParameter");
    peer_close(&peer);

    /* One that leaves before the answer harms nobody. */
    for (int n = 0; n < 20; n++) {
        peer = peer_open(0);
        peer_send(&peer, "{\"method\":\"io.shimmy.Daemon.Discover\"}");
        peer_close(&peer);
    }
}

/* As in the first moments of a daemon: what is not known yet may come to be, and only who asks for it waits. */
static void test_unknown_names_wait_alone(void **state) {
    (void)state;
    struct peer other = peer_open(0);
    json_decref(peer_call(&other, "{\"method\":\"io.shimmy.Daemon.List\",\"parameters\":{\"rescan\":true}}")); /* no search is left */
    models_on_settled(control_wake, control);
    pthread_mutex_lock(&registry.lock);
    registry.scanned = false;
    registry.patience_ns = sh_now_ns() + 60000000000ull;
    pthread_mutex_unlock(&registry.lock);
    assert_false(models_settled());
    static const char *const waiting[] = {
        "{\"method\":\"io.shimmy.Daemon.Tokenize\",\"parameters\":{\"model\":\"soon\",\"content\":\"x\"}}",
        "{\"method\":\"io.shimmy.Daemon.Embed\",\"parameters\":{\"model\":\"soon\",\"texts\":[\"x\"]}}",
        "{\"method\":\"io.shimmy.Daemon.Load\",\"parameters\":{\"model\":\"soon\"}}",
        "{\"method\":\"io.shimmy.Daemon.Generate\",\"parameters\":{\"model\":\"soon\",\"prompt\":\"x\"}}",
    };
    struct peer peers[SH_COUNT(waiting)], gone = peer_open(0);
    for (uint32_t i = 0; i < SH_COUNT(waiting); i++) {
        peers[i] = peer_open(0);
        peer_send(&peers[i], waiting[i]);
    }
    peer_send(&gone, waiting[1]);
    for (int round = 0; round < 3; round++) { /* others are served meanwhile, and waking early changes nothing */
        json_decref(peer_call(&other, "{\"method\":\"io.shimmy.Daemon.Status\"}"));
        json_t *tokens =
            peer_call(&other, "{\"method\":\"io.shimmy.Daemon.Tokenize\",\"parameters\":{\"model\":\"m\",\"content\":\"x\"}}");
        assert_true(json_is_array(at(tokens, "parameters/tokens")));
        json_decref(tokens);
        control_wake(control);
    }
    peer_close(&gone);
    for (uint32_t i = 0; i < SH_COUNT(waiting); i++) {
        struct pollfd p = {.fd = peers[i].fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 0), 0);
    }
    pthread_mutex_lock(&registry.lock);
    registry.scanned = true;
    registry.settled(registry.settled_user);
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < SH_COUNT(waiting); i++) {
        assert_error(peer_receive(&peers[i]), "io.shimmy.Daemon.ModelNotFound");
        peer_close(&peers[i]);
    }
    peer_close(&other);
    models_on_settled(NULL, NULL);
}

int main(int argc, char **argv) {
    int status;
    if (daemon_room_main(argc, argv, &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_service),      cmocka_unit_test(test_interface),    cmocka_unit_test(test_embed),    cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_messages),     cmocka_unit_test(test_status),       cmocka_unit_test(test_load),
        cmocka_unit_test(test_text), cmocka_unit_test(test_template),         cmocka_unit_test(test_generate),     cmocka_unit_test(test_leaving),
        cmocka_unit_test(test_slow_reader),  cmocka_unit_test(test_many_clients), cmocka_unit_test(test_busy_after_a_load),
        cmocka_unit_test(test_socket_file),
        cmocka_unit_test(test_default_path), cmocka_unit_test(test_unknown_names_wait_alone),
        cmocka_unit_test(test_discover), /* leaves searches behind */
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
