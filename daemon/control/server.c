/* server.c - see control.h: the listening socket, its clients, and the life of calls. */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/control/varlink.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/text.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    CLIENTS_MAX = 512,
    READ_CHUNK = 65536,
    OUTPUT_HIGH = 256 << 10, /* streams pause above this much unwritten output */
    OUTPUT_MAX = 64 << 20,   /* a client beyond this is dropped */
    TURN_MESSAGES = 64,      /* of one client before others have their turn */
};

#define STALL_NS 30000000000ull /* unless control_configure says otherwise */

struct client {
    struct control *control;
    struct client *next, **previous;
    int fd;
    uint64_t owner;
    uint32_t events; /* what epoll watches */
    struct frame_reader reader;
    char *output;
    size_t output_length, output_capacity, output_sent;
    uint64_t moved_ns; /* when there was nothing to be read, or some of it was read */
    struct call *call; /* being answered */
    bool paused;       /* its turn is over, though messages are left */
    bool half_closed;  /* it writes nothing more, but may read */
    bool closing;      /* to be closed when everything is written */
    bool dead;         /* to be freed at the end of control_dispatch */
};

struct control {
    int epoll, listener, wake_fd;
    int timer; /* ticks while some client has something to read */
    bool ticking;
    int spare; /* given up for a moment to refuse a client when there are no descriptors left */
    char *path;
    bool inherited;
    struct file_id {
        dev_t device;
        ino_t inode;
    } socket_file; /* as we made it: another daemon's is not removed */
    struct client *clients;
    uint32_t n_clients;
    struct control_state state;

    pthread_mutex_t wake_lock;
    struct call *posted; /* wake_lock */
    bool wake_parked;    /* wake_lock; parked calls and paused clients go on */
};

const struct control_state *control_state(const struct control *control) { return &control->state; }

/* ---- calls ------------------------------------------------------------------------------------------- */

struct call *call_ref(struct call *call) {
    __atomic_add_fetch(&call->refs, 1, __ATOMIC_RELAXED);
    return call;
}

void call_unref(struct call *call) {
    if (__atomic_sub_fetch(&call->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    if (call->free_state) call->free_state(call);
    json_decref(call->request);
    free(call);
}

void control_wake(void *user) {
    struct control *control = user;
    pthread_mutex_lock(&control->wake_lock);
    control->wake_parked = true;
    pthread_mutex_unlock(&control->wake_lock);
    eventfd_write(control->wake_fd, 1);
}

void call_post(struct call *call) {
    struct control *control = call->control;
    pthread_mutex_lock(&control->wake_lock);
    bool news = !call->posted;
    if (news) {
        call->posted = true;
        call->next_posted = control->posted;
        control->posted = call_ref(call);
    }
    pthread_mutex_unlock(&control->wake_lock);
    if (news) eventfd_write(control->wake_fd, 1);
}

void call_park(struct call *call) { call->parked = true; }

/* ---- output ------------------------------------------------------------------------------------------ */

static void set_events(struct client *client) {
    uint32_t events = 0;
    /* What comes while a call is answered is read ahead up to one message's size, then left in the kernel. */
    if (!client->half_closed && !client->closing && frame_reader_room(&client->reader) > 0) events |= EPOLLIN | EPOLLRDHUP;
    if (client->output_sent < client->output_length) events |= EPOLLOUT;
    if (events == client->events) return;
    client->events = events;
    struct epoll_event event = {.events = events, .data.ptr = client};
    epoll_ctl(client->control->epoll, EPOLL_CTL_MOD, client->fd, &event);
}

static void drop_call(struct client *client) {
    struct call *call = client->call;
    client->call = NULL;
    if (!call) return;
    call->client = NULL;
    call->parked = false;
    if (call->left) call->left(call);
    call_unref(call);
}

static void kill_client(struct client *client) {
    if (client->dead) return;
    client->dead = true;
    drop_call(client);
    epoll_ctl(client->control->epoll, EPOLL_CTL_DEL, client->fd, NULL);
    close(client->fd);
    client->fd = -1;
}

static void tick_while_needed(struct control *control, bool needed) {
    if (control->ticking == needed) return;
    control->ticking = needed;
    const struct itimerspec every = {.it_interval.tv_sec = needed, .it_value.tv_sec = needed};
    timerfd_settime(control->timer, 0, &every, NULL);
}

/* Those who read nothing of what waits for them are let go. */
static void scan_stalled(struct control *control) {
    uint64_t ticks, now = sh_now_ns();
    bool any = false;
    if (read(control->timer, &ticks, sizeof ticks) < 0) return;
    for (struct client *client = control->clients; client; client = client->next) {
        if (client->dead || client->output_sent == client->output_length) continue;
        if (now > client->moved_ns + control->state.stall_ns) {
            const char *const labels[] = {"stalled"};
            metric_add(METRIC_CONNECTIONS_CUT, labels, 1);
            log_warning("control client dropped: it does not read its answers");
            kill_client(client);
        } else {
            any = true;
        }
    }
    tick_while_needed(control, any);
}

static void flush_client(struct client *client) {
    while (client->output_sent < client->output_length) {
        ssize_t n =
            send(client->fd, client->output + client->output_sent, client->output_length - client->output_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            kill_client(client);
            return;
        }
        client->output_sent += (size_t)n;
        client->moved_ns = sh_now_ns();
    }
    if (client->output_sent < client->output_length) tick_while_needed(client->control, true);
    if (client->output_sent == client->output_length) {
        client->output_sent = client->output_length = 0;
        if (client->output_capacity > OUTPUT_HIGH) { /* a long answer's buffer is not kept */
            free(client->output);
            client->output = NULL;
            client->output_capacity = 0;
        }
    }
}

static void write_message(struct client *client, json_t *message) {
    char *text = json_dumps(message, JSON_COMPACT);
    size_t length = text ? strlen(text) + 1 : 0; /* the terminator takes the NUL's place */
    size_t pending = client->output_length - client->output_sent;
    if (!text || pending + length > OUTPUT_MAX) {
        log_warning("control client dropped: %s", text ? "it does not read its answers" : "no memory for an answer");
        free(text);
        client->closing = true;
        client->output_length = client->output_sent = 0;
        return;
    }
    text[length - 1] = client->reader.terminator;
    if (client->output_sent > 0) memmove(client->output, client->output + client->output_sent, pending);
    client->output_length = pending;
    client->output_sent = 0;
    if (pending + length > client->output_capacity) {
        size_t capacity = (pending + length) * 2;
        char *grown = realloc(client->output, capacity);
        if (!grown) {
            client->closing = true;
            client->output_length = 0;
            free(text);
            return;
        }
        client->output = grown;
        client->output_capacity = capacity;
    }
    if (pending == 0) client->moved_ns = sh_now_ns();
    memcpy(client->output + pending, text, length);
    client->output_length += length;
    free(text);
}

static void answer(struct call *call, json_t *message, bool continues) {
    struct client *client = call->client;
    if (client && message && !call->oneway) write_message(client, message);
    json_decref(message);
    if (!client || continues) return;
    client->call = NULL;
    call->client = NULL;
    call_unref(call);
}

void call_reply(struct call *call, json_t *parameters, bool continues) {
    if (!parameters) parameters = json_object();
    json_t *message = json_pack("{so}", "parameters", parameters);
    if (continues) json_object_set_new(message, "continues", json_true());
    answer(call, message, continues);
}

static void answer_error(struct call *call, const char *interface, const char *name, json_t *parameters) {
    char full[128];
    snprintf(full, sizeof full, "%s.%s", interface, name);
    answer(call, json_pack("{ss so}", "error", full, "parameters", parameters ? parameters : json_object()), false);
}

void call_error(struct call *call, const char *name, json_t *parameters) {
    answer_error(call, "io.shimmy.Daemon", name, parameters);
}

void call_service_error(struct call *call, const char *name, json_t *parameters) {
    answer_error(call, "org.varlink.service", name, parameters);
}

void call_invalid_parameter(struct call *call, const char *parameter, const char *fmt, ...) {
    char message[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    call_service_error(call, "InvalidParameter", json_pack("{ss ss}", "parameter", parameter, "message", message));
}

bool call_can_write(const struct call *call) {
    return call->client && call->client->output_length - call->client->output_sent < OUTPUT_HIGH;
}

/* ---- input ------------------------------------------------------------------------------------------- */

/* The connection cannot go on: a last word, then it is closed. */
static void refuse_message(struct client *client, const char *why) {
    json_t *message = json_pack("{ss s{ss}}", "error", "io.shimmy.Daemon.InvalidMessage", "parameters", "message", why);
    write_message(client, message);
    json_decref(message);
    client->closing = true;
}

static void start_call(struct client *client, const char *text, size_t length) {
    json_error_t error;
    json_t *request = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!request) {
        char why[240];
        snprintf(why, sizeof why, "the message is not valid JSON: %s at byte %d", error.text, error.position);
        refuse_message(client, why);
        return;
    }
    json_t *parameters = json_object_get(request, "parameters");
    if (parameters && json_is_null(parameters)) json_object_del(request, "parameters");
    if (!json_object_get(request, "parameters")) json_object_set_new(request, "parameters", json_object());
    parameters = json_object_get(request, "parameters");
    const json_t *more = json_object_get(request, "more"), *oneway = json_object_get(request, "oneway");
    const char *why =
        !json_is_string(json_object_get(request, "method")) ? "the message has no string `method`"
        : !json_is_object(parameters)                       ? "`parameters` is not an object"
        : (more && !json_is_boolean(more) && !json_is_null(more)) || (oneway && !json_is_boolean(oneway) && !json_is_null(oneway))
            ? "`more` and `oneway` are true or false"
            : NULL;
    struct call *call = why ? NULL : sh_calloc(1, sizeof *call);
    if (!call) {
        json_decref(request);
        refuse_message(client, why ? why : "no memory");
        return;
    }
    call->refs = 1;
    call->control = client->control;
    call->client = client;
    call->request = request;
    call->parameters = parameters;
    call->owner = client->owner;
    call->more = json_is_true(more);
    call->oneway = json_is_true(oneway);
    client->call = call;
    service_run(call);
}

/* Takes messages until one is left unanswered for now, or there are none. */
static void run_messages(struct client *client) {
    for (uint32_t taken = 0;
         !client->call && !client->closing && !client->dead && client->output_length - client->output_sent < OUTPUT_HIGH;
         taken++) {
        if (taken == TURN_MESSAGES) {
            client->paused = true;
            control_wake(client->control);
            return;
        }
        char *text;
        size_t length;
        const char *why;
        switch (frame_reader_next(&client->reader, &text, &length, &why)) {
        case FRAME_MESSAGE: start_call(client, text, length); break;
        case FRAME_BAD: refuse_message(client, why); break;
        case FRAME_NONE:
            if (client->half_closed) client->closing = true;
            return;
        }
    }
}

/* After anything has happened to a client: go on with its messages, write, and see whether it is done with. */
static void settle(struct client *client) {
    for (;;) {
        if (client->dead) return;
        run_messages(client);
        size_t before = client->output_length - client->output_sent;
        flush_client(client);
        if (client->dead) return;
        bool drained = before >= OUTPUT_HIGH && client->output_length - client->output_sent < OUTPUT_HIGH;
        if (drained && client->call && client->call->wake) client->call->wake(client->call);
        else if (!drained) break;
    }
    if (client->closing && client->output_length == 0) {
        kill_client(client);
        return;
    }
    set_events(client);
}

static void read_client(struct client *client) {
    static char chunk[READ_CHUNK]; /* main's thread alone */
    size_t room = frame_reader_room(&client->reader);
    while (room > 0) {
        ssize_t n = recv(client->fd, chunk, room < sizeof chunk ? room : sizeof chunk, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) {
            kill_client(client);
            return;
        }
        if (n == 0) {
            client->half_closed = true;
            return;
        }
        if (!frame_reader_append(&client->reader, chunk, (size_t)n)) {
            refuse_message(client, "no memory for the message");
            return;
        }
        if ((size_t)n < sizeof chunk) return; /* others have their turn */
        room = frame_reader_room(&client->reader);
    }
}

static void client_event(struct client *client, uint32_t events) {
    if (client->dead) return;
    /* EPOLLRDHUP alone is a half-close, as of `printf ... | socat`: such a client still reads. EPOLLHUP: it is gone, but
     * what it sent before (a `oneway` Cancel) is done. */
    if (events & (EPOLLHUP | EPOLLERR)) {
        if (events & EPOLLIN) read_client(client);
        run_messages(client);
        kill_client(client);
        return;
    }
    if (events & (EPOLLIN | EPOLLRDHUP)) read_client(client);
    settle(client);
}

static uint64_t owner_of(int fd) {
    struct ucred who = {.uid = (uid_t)-1};
    socklen_t length = sizeof who;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length);
    const uint64_t parts[2] = {UINT64_MAX, who.uid}; /* no address and no key has this form */
    const uint64_t owner = text_hash(parts, sizeof parts);
    return owner ? owner : 1;
}

static void accept_clients(struct control *control) {
    for (;;) {
        int fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && errno == EINTR) continue;
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
            /* Left in the backlog it would wake us again and again. */
            close(control->spare);
            fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (fd >= 0) close(fd);
            control->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
            log_warning("control client refused: no file descriptors are left");
            if (fd < 0) return;
            continue;
        }
        if (fd < 0) return;
        struct client *client = control->n_clients < CLIENTS_MAX ? sh_calloc(1, sizeof *client) : NULL;
        if (!client) {
            log_warning("control client refused: there are %u already", control->n_clients);
            close(fd);
            continue;
        }
        client->control = control;
        client->fd = fd;
        client->owner = owner_of(fd);
        client->events = EPOLLIN | EPOLLRDHUP;
        struct epoll_event event = {.events = client->events, .data.ptr = client};
        if (epoll_ctl(control->epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
            log_warning("control client refused: %s", strerror(errno));
            close(fd);
            free(client);
            continue;
        }
        client->next = control->clients;
        client->previous = &control->clients;
        if (client->next) client->next->previous = &client->next;
        control->clients = client;
        control->n_clients++;
        metric_set(METRIC_CONTROL_CONNECTIONS, NULL, control->n_clients);
    }
}

/* ---- dispatch ---------------------------------------------------------------------------------------- */

/* A method that parked its call begins anew. */
static void forget_state(struct call *call) {
    if (call->free_state) call->free_state(call);
    call->state = NULL;
    call->wake = call->left = call->free_state = NULL;
}

static void run_posted(struct control *control) {
    eventfd_t ignored;
    eventfd_read(control->wake_fd, &ignored);
    pthread_mutex_lock(&control->wake_lock);
    struct call *calls = control->posted, *next;
    for (struct call *call = calls; call; call = call->next_posted) call->posted = false;
    bool parked = control->wake_parked;
    control->posted = NULL;
    control->wake_parked = false;
    /* Once unlocked a call may be posted again, which overwrites its link: take the list apart first. */
    uint32_t count = 0;
    for (struct call *call = calls; call; call = call->next_posted) count++;
    struct call **list = sh_calloc(count + 1ull, sizeof(struct call *));
    count = 0;
    for (struct call *call = calls; call && list; call = next) {
        next = call->next_posted;
        list[count++] = call;
    }
    pthread_mutex_unlock(&control->wake_lock);
    for (uint32_t i = 0; i < count; i++) {
        struct client *client = list[i]->client;
        if (client && list[i]->wake) {
            list[i]->wake(list[i]);
            settle(client);
        }
        call_unref(list[i]);
    }
    free(list);
    for (struct client *client = control->clients; client && parked; client = client->next) {
        if (client->dead || !(client->paused || (client->call && client->call->parked))) continue;
        client->paused = false;
        if (client->call && client->call->parked) {
            client->call->parked = false;
            forget_state(client->call);
            service_run(client->call);
        }
        settle(client);
    }
}

static void bury_dead(struct control *control) {
    for (struct client *client = control->clients, *next; client; client = next) {
        next = client->next;
        if (!client->dead) continue;
        *client->previous = client->next;
        if (client->next) client->next->previous = client->previous;
        frame_reader_finish(&client->reader);
        free(client->output);
        free(client);
        control->n_clients--;
        metric_set(METRIC_CONTROL_CONNECTIONS, NULL, control->n_clients);
    }
}

void control_dispatch(struct control *control) {
    struct epoll_event events[64];
    int count = epoll_wait(control->epoll, events, SH_COUNT(events), 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == &control->listener) accept_clients(control);
        else if (events[i].data.ptr == &control->wake_fd) run_posted(control);
        else if (events[i].data.ptr == &control->timer) scan_stalled(control);
        else client_event(events[i].data.ptr, events[i].events);
    }
    bury_dead(control);
}

/* ---- start and stop ---------------------------------------------------------------------------------- */

enum sh_code control_default_path(char *out, size_t cap, struct sh_error *err) {
    const char *runtime = getenv("RUNTIME_DIRECTORY"), *xdg = getenv("XDG_RUNTIME_DIR");
    int length;
    if (runtime && *runtime) length = snprintf(out, cap, "%.*s/control.sock", (int)strcspn(runtime, ":"), runtime);
    else if (xdg && *xdg) length = snprintf(out, cap, "%s/shimmy/control.sock", xdg);
    else
        return sh_fail(
            err, SH_ERR_INVALID,
            "no place for the control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set, give --socket PATH");
    if (length < 0 || (size_t)length >= cap) return sh_fail(err, SH_ERR_INVALID, "the control socket's path is too long");
    return SH_OK;
}

static enum sh_code address_of(const char *path, struct sockaddr_un *address, struct sh_error *err) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address->sun_path)
        return sh_fail(err, SH_ERR_INVALID, "control socket %s: the path has %zu bytes, a Unix socket's may have %zu", path,
                       strlen(path), sizeof address->sun_path - 1);
    strcpy(address->sun_path, path);
    return SH_OK;
}

/* Removes a socket file that nobody listens on. Anything else in its place is an error. */
static enum sh_code clear_stale(const char *path, const struct sockaddr_un *address, struct sh_error *err) {
    struct stat st;
    if (lstat(path, &st) != 0) return SH_OK;
    if (!S_ISSOCK(st.st_mode))
        return sh_fail(err, SH_ERR_INVALID, "control socket %s: something else is there: remove it, or give --socket PATH", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return sh_fail(err, SH_ERR_IO, "control socket %s: %s", path, strerror(errno));
    int rc = connect(fd, (const struct sockaddr *)address, sizeof *address), why = errno;
    close(fd);
    /* Only a refused connection proves that nobody listens: a full backlog (EAGAIN) is a living daemon. */
    if (rc == 0 || why != ECONNREFUSED)
        return sh_fail(err, SH_ERR_BUSY, "control socket %s: another shimmyd %s: stop it, or give --socket PATH", path,
                       rc == 0 || why == EAGAIN ? "listens there" : strerror(why));
    log_info("control socket %s: nobody listens on the old one, it is replaced", path);
    if (unlink(path) != 0 && errno != ENOENT)
        return sh_fail(err, SH_ERR_IO, "control socket %s: cannot be replaced: %s", path, strerror(errno));
    return SH_OK;
}

static enum sh_code listen_at(struct control *control, struct sh_error *err) {
    struct sockaddr_un address;
    enum sh_code code = address_of(control->path, &address, err);
    if (code) return code;
    char directory[sizeof address.sun_path];
    strcpy(directory, control->path);
    char *slash = strrchr(directory, '/');
    if (slash && slash != directory) {
        *slash = 0;
        if (mkdir(directory, 0755) != 0 && errno != EEXIST)
            return sh_fail(err, SH_ERR_IO, "control socket %s: directory %s cannot be made: %s", control->path, directory,
                           strerror(errno));
    }
    code = clear_stale(control->path, &address, err);
    if (code) return code;
    control->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (control->listener < 0) return sh_fail(err, SH_ERR_IO, "control socket: %s", strerror(errno));
    /* The mode is right from the first moment: nobody can connect in between. */
    mode_t mask = umask(0117);
    int rc = bind(control->listener, (struct sockaddr *)&address, sizeof address);
    umask(mask);
    struct stat st;
    if (rc != 0 || listen(control->listener, 128) != 0 || lstat(control->path, &st) != 0)
        return sh_fail(err, SH_ERR_IO, "control socket %s: %s", control->path, strerror(errno));
    control->socket_file = (struct file_id){st.st_dev, st.st_ino};
    return SH_OK;
}

/* systemd made it and bound it: only its path is asked for. */
static enum sh_code take_inherited(struct control *control, int fd, struct sh_error *err) {
    struct sockaddr_un address = {0};
    socklen_t length = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0 || address.sun_family != AF_UNIX)
        return sh_fail(err, SH_ERR_INVALID, "the socket that systemd named control is not a Unix socket");
    control->listener = fd;
    control->inherited = true;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    free(control->path);
    control->path = strdup(address.sun_path);
    return control->path ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory");
}

enum sh_code control_start(const struct control_params *params, struct control **out, struct sh_error *err) {
    struct control *control = sh_calloc(1, sizeof *control);
    if (!control) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the control socket");
    control->epoll = control->listener = control->wake_fd = control->timer = -1;
    control->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pthread_mutex_init(&control->wake_lock, NULL);
    char path[4096];
    enum sh_code code = SH_OK;
    if (params->inherited_fd >= 0) {
        code = take_inherited(control, params->inherited_fd, err);
    } else {
        if (*params->path) snprintf(path, sizeof path, "%s", params->path);
        else code = control_default_path(path, sizeof path, err);
        if (code == SH_OK && !(control->path = strdup(path))) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory");
        if (code == SH_OK) code = listen_at(control, err);
    }
    if (code == SH_OK) {
        control->epoll = epoll_create1(EPOLL_CLOEXEC);
        control->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        control->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        struct epoll_event listener = {.events = EPOLLIN, .data.ptr = &control->listener};
        struct epoll_event wake = {.events = EPOLLIN, .data.ptr = &control->wake_fd};
        struct epoll_event tick = {.events = EPOLLIN, .data.ptr = &control->timer};
        if (control->epoll < 0 || control->wake_fd < 0 || control->timer < 0 ||
            epoll_ctl(control->epoll, EPOLL_CTL_ADD, control->timer, &tick) != 0 ||
            epoll_ctl(control->epoll, EPOLL_CTL_ADD, control->listener, &listener) != 0 ||
            epoll_ctl(control->epoll, EPOLL_CTL_ADD, control->wake_fd, &wake) != 0)
            code = sh_fail(err, SH_ERR_IO, "control socket %s: %s", control->path, strerror(errno));
    }
    if (code) {
        control_stop(control);
        return code;
    }
    control->state =
        (struct control_state){.path = control->path, .http_addresses = params->http_addresses, .started_ns = sh_now_ns(), .stall_ns = STALL_NS};
    *out = control;
    return SH_OK;
}

void control_configure(struct control *control, const struct config *config) {
    control->state.max_prompt_tokens = config->max_prompt_tokens;
    control->state.separate_clients = config->separate_clients;
    control->state.stall_ns = config->stall_timeout_s * 1000000000ull;
}

int control_fd(const struct control *control) { return control->epoll; }
const char *control_path(const struct control *control) { return control->path; }
void control_set_stopping(struct control *control) { control->state.stopping = true; }

bool control_is_quiet(const struct control *control) {
    for (const struct client *client = control->clients; client; client = client->next)
        if (!client->dead && (client->call || client->output_length > client->output_sent)) return false;
    return true;
}

void control_stop(struct control *control) {
    if (!control) return;
    for (struct client *client = control->clients; client; client = client->next) kill_client(client);
    bury_dead(control);
    struct stat st;
    if (!control->inherited && control->path && control->socket_file.inode && lstat(control->path, &st) == 0 &&
        st.st_dev == control->socket_file.device && st.st_ino == control->socket_file.inode)
        unlink(control->path);
    if (control->listener >= 0) close(control->listener);
    if (control->epoll >= 0) close(control->epoll);
    pthread_mutex_lock(&control->wake_lock);
    struct call *posted = control->posted, *next;
    control->posted = NULL;
    pthread_mutex_unlock(&control->wake_lock);
    for (; posted; posted = next) {
        next = posted->next_posted;
        call_unref(posted);
    }
    if (control->wake_fd >= 0) close(control->wake_fd);
    if (control->spare >= 0) close(control->spare);
    if (control->timer >= 0) close(control->timer);
    pthread_mutex_destroy(&control->wake_lock);
    free(control->path);
    free(control);
}
