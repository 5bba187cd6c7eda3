/* client.c - connecting to the control socket, framing, and turning Varlink errors into sentences. */
#include "cli/client.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct client {
    int fd;
    struct sockaddr_un address;
    char *buffer;
    size_t used, capacity; /* bytes received and not yet taken */
    char error[1024], error_name[256];
};

/* What the signal handler may touch. */
static volatile sig_atomic_t open_fd = -1, interrupted;

/* Shutting the socket down (rather than only setting a flag) leaves no moment in which the signal could be missed. */
static void on_interrupt(int signal_number) {
    interrupted = signal_number;
    if (open_fd >= 0) shutdown(open_fd, SHUT_RDWR);
}

/* ---- connecting ---- */

static bool connect_to(struct client *client, const char *path, char *error, size_t error_size) {
    size_t used = strlen(error), length = strlen(path);
    const char *comma = used ? "; " : "";
    client->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (length >= sizeof client->address.sun_path) {
        snprintf(error + used, error_size - used, "%s%s: %zu bytes long, a socket's path has at most %zu", comma, path, length,
                 sizeof client->address.sun_path - 1);
        return false;
    }
    memcpy(client->address.sun_path, path, length + 1);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd >= 0 && connect(client->fd, (const struct sockaddr *)&client->address, sizeof client->address) == 0)
        return true;
    const char *why = errno == ECONNREFUSED ? "nobody listens there" : strerror(errno);
    snprintf(error + used, error_size - used, "%s%s: %s", comma, path, why);
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
    return false;
}

static bool connect_somewhere(struct client *client, const char *path, char *error, size_t error_size) {
    const char *variable = getenv("SHIMMY_SOCKET"), *runtime = getenv("XDG_RUNTIME_DIR");
    if (!path && variable && *variable) path = variable;
    if (path) return connect_to(client, path, error, error_size);
    if (runtime && *runtime) {
        char user[4096];
        snprintf(user, sizeof user, "%s/shimmy/control.sock", runtime);
        if (connect_to(client, user, error, error_size)) return true;
    }
    return connect_to(client, "/run/shimmy/control.sock", error, error_size);
}

struct client *client_open(const char *path, char *error, size_t error_size) {
    *error = 0;
    struct client *client = calloc(1, sizeof *client);
    if (!client) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    client->fd = -1;
    if (!connect_somewhere(client, path, error, error_size)) {
        free(client);
        return NULL;
    }
    return client;
}

void client_close(struct client *client) {
    if (!client) return;
    if (open_fd == client->fd) {
        open_fd = -1;
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        interrupted = 0;
    }
    close(client->fd);
    free(client->buffer);
    free(client);
}

const char *client_path(const struct client *client) { return client->address.sun_path; }
const char *client_error(const struct client *client) { return client->error; }
const char *client_error_name(const struct client *client) { return client->error_name; }

/* ---- messages ---- */

/* From the first call on: before it (a prompt is typed) a signal ends the process as it always does. */
static void catch_interrupts(struct client *client) {
    open_fd = client->fd;
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool client_call(struct client *client, const char *method, json_t *parameters, bool more) {
    if (open_fd != client->fd) catch_interrupts(client);
    char full[128];
    snprintf(full, sizeof full, "io.shimmy.Daemon.%s", method);
    json_t *call = json_pack("{s:s, s:o}", "method", full, "parameters", parameters ? parameters : json_object());
    if (call && more) json_object_set_new(call, "more", json_true());
    char *text = call ? json_dumps(call, JSON_COMPACT) : NULL;
    json_decref(call);
    if (!text) {
        snprintf(client->error, sizeof client->error, "out of memory");
        return false;
    }
    size_t length = strlen(text) + 1; /* the NUL ends the message */
    if (length > CLIENT_MESSAGE_MAX) {
        snprintf(client->error, sizeof client->error, "the request has %zu bytes, a message at most %d", length,
                 CLIENT_MESSAGE_MAX);
        free(text);
        return false;
    }
    for (size_t sent = 0; sent < length;) {
        ssize_t n = send(client->fd, text + sent, length - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR && !interrupted) continue;
        if (n < 0 && interrupted) break; /* client_next says so */
        if (n < 0) {
            snprintf(client->error, sizeof client->error, "%s: sending: %s", client_path(client), strerror(errno));
            free(text);
            return false;
        }
        sent += (size_t)n;
    }
    free(text);
    return true;
}

int client_signal(void) { return interrupted; }

static enum client_result gone(struct client *client, const char *why) {
    if (interrupted) return CLIENT_INTERRUPTED;
    snprintf(client->error, sizeof client->error, "%s: %s", client_path(client), why);
    return CLIENT_GONE;
}

/* Receives until a whole message stands at the buffer's begin; *length counts it without its NUL. */
static enum client_result receive(struct client *client, size_t *length) {
    size_t looked = 0;
    for (;;) {
        const char *end = client->used > looked ? memchr(client->buffer + looked, 0, client->used - looked) : NULL;
        if (end) {
            *length = (size_t)(end - client->buffer);
            return CLIENT_REPLY;
        }
        looked = client->used;
        if (client->used > CLIENT_MESSAGE_MAX) return gone(client, "the daemon sent a message of more than 16 MiB");
        if (client->used == client->capacity) {
            size_t capacity = client->capacity ? client->capacity * 2 : 4096;
            char *buffer = realloc(client->buffer, capacity);
            if (!buffer) return gone(client, "out of memory");
            client->buffer = buffer;
            client->capacity = capacity;
        }
        ssize_t n = recv(client->fd, client->buffer + client->used, client->capacity - client->used, 0);
        if (n < 0 && errno == EINTR && !interrupted) continue;
        if (n < 0) return gone(client, strerror(errno));
        if (n == 0) return gone(client, "the daemon closed the connection (see its log)");
        client->used += (size_t)n;
    }
}

/* "message" of the error's parameters where there is one; the standard Varlink errors carry a name instead. */
static void describe_error(struct client *client, const char *name, const json_t *parameters) {
    snprintf(client->error_name, sizeof client->error_name, "%s", name);
    const char *message = json_string_value(json_object_get(parameters, "message"));
    if (message) {
        snprintf(client->error, sizeof client->error, "%s", message);
        return;
    }
    const char *method = json_string_value(json_object_get(parameters, "method"));
    const char *parameter = json_string_value(json_object_get(parameters, "parameter"));
    snprintf(client->error, sizeof client->error, "%s%s%s", name, method || parameter ? ": " : "",
             method      ? method
             : parameter ? parameter
                         : "");
}

enum client_result client_next(struct client *client, json_t **parameters, bool *continues) {
    *parameters = NULL;
    *continues = false;
    client->error[0] = client->error_name[0] = 0;
    size_t length = 0;
    enum client_result result = receive(client, &length);
    if (result != CLIENT_REPLY) return result;

    json_error_t why;
    json_t *reply = json_loadb(client->buffer, length, JSON_ALLOW_NUL, &why);
    client->used -= length + 1;
    memmove(client->buffer, client->buffer + length + 1, client->used);
    if (!json_is_object(reply)) {
        json_decref(reply);
        return gone(client, "what the daemon sent is no JSON object");
    }
    *parameters = json_incref(json_object_get(reply, "parameters"));
    if (!json_is_object(*parameters)) {
        json_decref(*parameters);
        *parameters = json_object();
    }
    *continues = json_is_true(json_object_get(reply, "continues"));
    const char *name = json_string_value(json_object_get(reply, "error"));
    if (name) {
        describe_error(client, name, *parameters);
        *continues = false;
        result = CLIENT_ERROR;
    }
    json_decref(reply);
    return result;
}
