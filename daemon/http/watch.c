/*
 * watch.c - an epoll of ours over all connections' descriptors, and the deadlines that libmicrohttpd does not keep.
 *
 * libmicrohttpd looks at a descriptor only while it wants to read or write it; a suspended connection neither times out nor
 * notices that its client left. Here each descriptor is watched, edge-triggered, for the end of the peer's stream (EPOLLRDHUP)
 * and for errors (EPOLLHUP, EPOLLERR). The latter end the request. The former may be a client that only closed its writing
 * side: the request goes on, and is probed twice a second by writing, which a client that is gone answers with a reset. A
 * stream gets a comment every 15 s in any case, for proxies that lose patience.
 *
 * Deadlines: a request's head must be complete header_timeout after its first byte (or after the connection was opened), its
 * body may take as long again plus one second for each 16 KiB that came; both end with a 408. The whole request's deadline
 * wakes one that waits for its model. An answer has to be read: while bytes wait in the kernel, some have to be taken every
 * stall_timeout, and a whole answer within that and a second for each 16 KiB; else the connection is cut. When nearly all
 * connections that there may be are open, those that have sent no head for a second, or idle between requests, are closed, so
 * that whoever only holds connections keeps nobody out.
 */
#include "daemon/http/internal.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SCAN_MS = 250, BODY_BYTES_PER_S = 16 << 10, KEEP_ALIVE_S = 15 };
static const uint64_t SECOND = 1000000000u;

enum phase {
    IDLE,      /* between requests: libmicrohttpd's inactivity timeout rules */
    HEAD,      /* the deadline is the head's */
    BODY,      /* the deadline is the body's */
    ANSWERING, /* the request's own deadline */
};

struct http_conn {
    struct http_conn *prev, *next;
    int fd;
    uint64_t id; /* never used again: what an event that comes late is told by */
    enum phase phase;
    uint64_t deadline_ns, probe_ns /* next one */, phase_ns /* when it began */;
    bool writing;        /* ANSWERING: there is an answer */
    uint64_t acked;      /* bytes that the peer's kernel has taken, as last seen */
    uint64_t moved_ns;   /* when there was nothing to take, or some of it was taken */
    bool half_closed, expired;
    struct http_request *request; /* a reference */
};

enum { TABLE_SIZE = 4096 }; /* buckets by id */
struct http_watch {
    struct http *http;
    int epoll, wake;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;
    /* under lock */
    struct http_conn *table[TABLE_SIZE];
    uint64_t last_id;
    uint32_t count;
    bool stop;
};

static void arm(struct http_watch *w, struct http_conn *conn, int op, bool readable) {
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET | (readable ? EPOLLIN : 0), .data.u64 = conn->id};
    epoll_ctl(w->epoll, op, conn->fd, &event);
}

static struct http_conn *find(struct http_watch *w, uint64_t id) {
    struct http_conn *conn = w->table[id % TABLE_SIZE];
    while (conn && conn->id != id) conn = conn->next;
    return conn;
}

static void on_event(struct http_watch *w, uint64_t id, uint32_t events, uint64_t now) {
    pthread_mutex_lock(&w->lock);
    struct http_conn *conn = find(w, id);
    if (conn) {
        if ((events & EPOLLIN) && conn->phase == IDLE) { /* the first byte of the next request */
            conn->phase = HEAD;
            conn->deadline_ns = now + w->http->header_timeout_s * SECOND;
            arm(w, conn, EPOLL_CTL_MOD, false);
        }
        if (events & EPOLLRDHUP) conn->half_closed = true;
        if ((events & (EPOLLHUP | EPOLLERR)) && conn->request) request_gone(conn->request);
    }
    pthread_mutex_unlock(&w->lock);
}

static void count_cut(const char *reason) {
    const char *const labels[] = {reason};
    metric_add(METRIC_CONNECTIONS_CUT, labels, 1);
}

/* Nothing was answered yet, so libmicrohttpd writes nothing and the descriptor is free for these few bytes. */
static void time_out(struct http_conn *conn, const char *reason) {
    static const char body[] =
        "{\"error\":{\"message\":\"the request did not arrive in time\",\"type\":\"invalid_request_error\",\"param\":null,"
        "\"code\":\"request_timeout\"}}";
    char text[512];
    int n = snprintf(
        text, sizeof(text),
        "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
        sizeof(body) - 1, body);
    const char *const refusal[] = {"request_timeout"};
    if (conn->phase == HEAD || conn->phase == BODY) {
        (void)!send(conn->fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
        metric_add(METRIC_REQUESTS_REFUSED, refusal, 1);
    }
    count_cut(reason);
    shutdown(conn->fd, SHUT_RDWR);
    conn->expired = true;
}

static bool is_stalled(struct http_conn *conn, uint64_t now, uint64_t limit_ns) {
    struct tcp_info info;
    socklen_t length = sizeof(info);
    int unread = 0;
    if (conn->deadline_ns && now > conn->deadline_ns) return true;
    if (ioctl(conn->fd, SIOCOUTQ, &unread) != 0 || getsockopt(conn->fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return false;
    if (unread == 0 || info.tcpi_bytes_acked != conn->acked) conn->moved_ns = now;
    conn->acked = info.tcpi_bytes_acked;
    return now > conn->moved_ns + limit_ns;
}

/* crowd: so many connections should make room for others: those that have asked for nothing. */
static void scan_conn(const struct http_watch *w, struct http_conn *conn, uint64_t now, uint32_t *crowd) {
    const bool asked = conn->phase == BODY || conn->phase == ANSWERING;
    if (*crowd && !asked && !conn->expired && now > conn->phase_ns + SECOND) {
        time_out(conn, "overload");
        --*crowd;
    } else if (conn->phase == HEAD || conn->phase == BODY) {
        if (!conn->expired && now > conn->deadline_ns) time_out(conn, conn->phase == HEAD ? "head" : "body");
    } else if (conn->phase == ANSWERING && !conn->expired && conn->writing && is_stalled(conn, now, w->http->stall_timeout_s * SECOND)) {
        count_cut("stalled");
        shutdown(conn->fd, SHUT_RDWR); /* which ends its request, as if the client had */
        conn->expired = true;
    } else if (conn->phase == ANSWERING) {
        /* The first probe of a quiet stream comes after a while, that of a half-closed connection at once. */
        uint64_t first = conn->half_closed ? 0 : conn->phase_ns + KEEP_ALIVE_S * SECOND;
        if (now >= sh_max_u64(first, conn->probe_ns)) {
            conn->probe_ns = now + (conn->half_closed ? SECOND / 2 : KEEP_ALIVE_S * SECOND);
            request_probe(conn->request, !conn->half_closed);
        }
        if (!conn->expired && request_expired(conn->request)) {
            conn->expired = true;
            request_wake(conn->request);
        }
    }
}

static void *watch_main(void *arg) {
    struct http_watch *w = arg;
    struct epoll_event events[256];
    uint64_t next_scan = 0;
    for (;;) {
        pthread_mutex_lock(&w->lock);
        bool stop = w->stop;
        int timeout = w->count ? SCAN_MS : -1;
        pthread_mutex_unlock(&w->lock);
        if (stop) return NULL;
        int n = epoll_wait(w->epoll, events, (int)SH_COUNT(events), timeout);
        uint64_t now = sh_now_ns(), value;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64) on_event(w, events[i].data.u64, events[i].events, now);
            else (void)!read(w->wake, &value, sizeof(value));
        }
        if (now < next_scan) continue;
        next_scan = now + SCAN_MS * (SECOND / 1000) / 2;
        pthread_mutex_lock(&w->lock);
        const uint32_t most = w->http->max_connections, fine = most - most / 16;
        uint32_t crowd = w->count > fine ? w->count - fine : 0;
        for (size_t i = 0; i < TABLE_SIZE && w->count; i++)
            for (struct http_conn *conn = w->table[i]; conn; conn = conn->next) scan_conn(w, conn, now, &crowd);
        pthread_mutex_unlock(&w->lock);
    }
}

static void poke(struct http_watch *w) {
    const uint64_t one = 1;
    (void)!write(w->wake, &one, sizeof(one));
}

enum sh_code watch_create(struct http *http, struct http_watch **out, struct sh_error *err) {
    struct http_watch *w = sh_calloc(1, sizeof(*w));
    if (!w) return sh_fail(err, SH_ERR_NO_MEMORY, "http: no memory");
    w->http = http;
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&w->lock, NULL);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (w->epoll < 0 || w->wake < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->wake, &event) != 0 ||
        pthread_create(&w->thread, NULL, watch_main, w) != 0) {
        enum sh_code code = sh_fail(err, SH_ERR_IO, "http: cannot watch connections: %s", strerror(errno));
        watch_destroy(w);
        return code;
    }
    w->running = true;
    *out = w;
    return SH_OK;
}

void watch_destroy(struct http_watch *w) {
    if (!w) return;
    if (w->running) {
        pthread_mutex_lock(&w->lock);
        w->stop = true;
        pthread_mutex_unlock(&w->lock);
        poke(w);
        pthread_join(w->thread, NULL);
    }
    if (w->epoll >= 0) close(w->epoll);
    if (w->wake >= 0) close(w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static void set_phase(struct http_conn *conn, enum phase phase, uint64_t seconds) {
    conn->phase = phase;
    conn->phase_ns = sh_now_ns();
    conn->deadline_ns = conn->phase_ns + seconds * SECOND;
    conn->probe_ns = 0;
    conn->expired = conn->writing = false;
}

struct http_conn *watch_open(struct http_watch *w, int fd) {
    struct http_conn *conn = sh_calloc(1, sizeof(*conn));
    if (!conn) return NULL;
    conn->fd = fd;
    set_phase(conn, HEAD, w->http->header_timeout_s);
    pthread_mutex_lock(&w->lock);
    conn->id = ++w->last_id;
    struct http_conn **bucket = &w->table[conn->id % TABLE_SIZE];
    conn->next = *bucket;
    if (conn->next) conn->next->prev = conn;
    *bucket = conn;
    bool first = w->count++ == 0;
    arm(w, conn, EPOLL_CTL_ADD, false);
    pthread_mutex_unlock(&w->lock);
    if (first) poke(w); /* it may be waiting without a timeout */
    return conn;
}

void watch_close(struct http_watch *w, struct http_conn *conn) {
    pthread_mutex_lock(&w->lock);
    epoll_ctl(w->epoll, EPOLL_CTL_DEL, conn->fd, NULL);
    if (conn->prev) conn->prev->next = conn->next;
    else w->table[conn->id % TABLE_SIZE] = conn->next;
    if (conn->next) conn->next->prev = conn->prev;
    w->count--;
    pthread_mutex_unlock(&w->lock);
    if (conn->request) request_unref(conn->request);
    free(conn);
}

void watch_request(struct http_watch *w, struct http_conn *conn, struct http_request *request) {
    request_ref(request);
    pthread_mutex_lock(&w->lock);
    conn->request = request;
    set_phase(conn, BODY, w->http->header_timeout_s);
    pthread_mutex_unlock(&w->lock);
}

void watch_body(struct http_watch *w, struct http_conn *conn, uint64_t bytes) {
    pthread_mutex_lock(&w->lock);
    conn->deadline_ns = conn->phase_ns + (w->http->header_timeout_s + bytes / BODY_BYTES_PER_S) * SECOND;
    pthread_mutex_unlock(&w->lock);
}

void watch_answering(struct http_watch *w, struct http_conn *conn) {
    pthread_mutex_lock(&w->lock);
    set_phase(conn, ANSWERING, 0);
    pthread_mutex_unlock(&w->lock);
}

void watch_writing(struct http_watch *w, struct http_conn *conn, uint64_t bytes) {
    pthread_mutex_lock(&w->lock);
    conn->writing = true;
    conn->moved_ns = sh_now_ns();
    conn->deadline_ns = bytes ? conn->moved_ns + (w->http->stall_timeout_s + bytes / BODY_BYTES_PER_S) * SECOND : 0;
    pthread_mutex_unlock(&w->lock);
}

void watch_done(struct http_watch *w, struct http_conn *conn) {
    pthread_mutex_lock(&w->lock);
    struct http_request *request = conn->request;
    conn->request = NULL;
    set_phase(conn, IDLE, 0);
    arm(w, conn, EPOLL_CTL_MOD, true);
    pthread_mutex_unlock(&w->lock);
    if (request) request_unref(request);
}

void watch_end_all(struct http_watch *w) {
    pthread_mutex_lock(&w->lock);
    for (size_t i = 0; i < TABLE_SIZE; i++)
        for (struct http_conn *conn = w->table[i]; conn; conn = conn->next)
            if (conn->request) request_gone(conn->request);
    pthread_mutex_unlock(&w->lock);
}
