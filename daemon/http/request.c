/* request.c - a request's life: head, body, handler, end; and the waking of a suspended one. */
#include "daemon/http/internal.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/socket.h>

enum {
    DISCARD_BYTES = 16 << 20, /* of a body that is refused, read and thrown away so that the client gets to read why */
    BODIES_BYTES = 256 << 20, /* held for bodies at once */
    LARGE_BYTES = 256 << 10,  /* a body whose parsing is to be had one at a time */
};

static void free_body(struct http_request *r) {
    if (!r->body) return; /* a request may outlive the server by its last reference, its body does not */
    atomic_fetch_sub(&r->http->body_bytes, r->body_capacity);
    free(r->body);
    r->body = NULL;
    r->body_length = r->body_capacity = 0;
}

void request_ref(struct http_request *r) { atomic_fetch_add(&r->refs, 1); }

void request_unref(struct http_request *r) {
    if (atomic_fetch_sub(&r->refs, 1) != 1) return;
    if (r->job) r->job_free(r->job);
    pthread_mutex_destroy(&r->lock);
    free(r->path);
    free_body(r);
    free(r);
}

/* Under the lock: lets the connection's thread have it again. */
static void resume(struct http_request *r) {
    r->woken = true;
    if (r->suspended) {
        r->suspended = false;
        MHD_resume_connection(r->mhd);
    }
}

void request_wake(struct http_request *r) {
    pthread_mutex_lock(&r->lock);
    resume(r);
    pthread_mutex_unlock(&r->lock);
}

void request_gone(struct http_request *r) {
    pthread_mutex_lock(&r->lock);
    r->gone = true;
    resume(r);
    pthread_mutex_unlock(&r->lock);
}

void request_probe(struct http_request *r, bool streams_only) {
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    pthread_mutex_lock(&r->lock);
    if (r->answering && r->stream) {
        r->probe = true;
        resume(r);
    } else if (!streams_only && !r->answering && r->http11 && !r->ended) {
        /* Until the response is queued libmicrohttpd writes nothing: the descriptor is ours while we hold the lock. Any
         * HTTP/1.1 client skips it. */
        (void)!send(r->fd, interim, sizeof(interim) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    pthread_mutex_unlock(&r->lock);
}

bool request_is_gone(struct http_request *r) {
    pthread_mutex_lock(&r->lock);
    bool gone = r->gone;
    pthread_mutex_unlock(&r->lock);
    return gone;
}

bool request_expired(const struct http_request *r) { return r->deadline_ns && sh_now_ns() > r->deadline_ns; }

/* Suspends (false) unless something came in the meantime (true: go on). */
static bool keep_going(struct http_request *r, bool *probe) {
    pthread_mutex_lock(&r->lock);
    bool go = r->woken || r->gone || atomic_load(&r->http->stopping);
    r->woken = false;
    *probe = r->probe;
    r->probe = false;
    if (!go) {
        r->suspended = true;
        MHD_suspend_connection(r->mhd);
    }
    pthread_mutex_unlock(&r->lock);
    return go;
}

/* ---- head ---- */

/* Whose it is: an API key's where there are any, else an address's. */
static bool find_client(struct http_request *r) {
    const char *value = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    struct limits *limits = r->http->limits;
    r->client = (struct limits_client){.id = r->address};
    if (!limits_has_keys(limits)) return true;
    if (value && strncasecmp(value, "Bearer ", 7) == 0 && limits_find_key(limits, value + 7 + strspn(value + 7, " "), &r->client)) return true;
    return api_fail(&r->refusal, 401, "invalid_api_key", NULL, "%s, expected \"Authorization: Bearer KEY\" with a key of this server's",
                    value ? "the API key is not valid" : "no API key was given");
}

static bool check_rates(struct http_request *r) {
    const enum limits_verdict verdict = limits_begin(r->http->limits, r->client.id, sh_now_ns(), &r->rates);
    struct api_error *err = &r->refusal;
    switch (verdict) {
    case LIMITS_GO: r->counted = true; return true;
    case LIMITS_REQUESTS:
        api_fail(err, 429, "rate_limit_exceeded", NULL, "too many requests: %llu a minute are allowed, try again in %u s (rate_limit)",
                 (unsigned long long)r->rates.requests, r->rates.retry_s);
        break;
    case LIMITS_TOKENS:
        api_fail(err, 429, "token_rate_limit_exceeded", NULL,
                 "too many tokens: %llu a minute are used up, try again in %u s (token_rate_limit)", (unsigned long long)r->rates.tokens,
                 r->rates.retry_s);
        break;
    case LIMITS_RUNNING:
        api_fail(err, 429, "too_many_requests", NULL,
                 "%u requests of this client are under way, all that it may have at once, try again later (max_requests_per_client)",
                 r->rates.running);
        break;
    }
    err->retry_after_s = r->rates.retry_s;
    return false;
}

/* What no handler could undo: how long the head is, and where the body ends. */
static bool check_form(struct http_request *r, const char *length) {
    struct http *http = r->http;
    const size_t head = MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE)->header_size;
    const char *coding = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    if (head > http->max_header_bytes)
        api_fail(&r->refusal, 431, "header_too_large", NULL, "the head has %zu bytes, expected at most %u (max_header)", head,
                 http->max_header_bytes);
    else if (coding && strcasecmp(coding, "chunked") != 0)
        api_fail(&r->refusal, 501, "unsupported_transfer_encoding", NULL, "Transfer-Encoding: found \"%.60s\", expected chunked or none",
                 coding);
    else if (coding && length) /* two who disagree on where a request ends can be made to see different requests */
        api_fail(&r->refusal, 400, "invalid_header", NULL, "found both Transfer-Encoding and Content-Length, expected one of them");
    r->refuse_now = r->refusal.status != 0;
    return !r->refuse_now;
}

static void check_head(struct http_request *r, const char *method) {
    struct http *http = r->http;
    const char *length = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const bool open = r->route && r->route->open;
    if (!check_form(r, length)) return;
    if (atomic_load(&http->draining) && !open) api_fail(&r->refusal, 503, "shutting_down", NULL, "the server is shutting down");
    else if (atomic_load(&http->connections) > http->max_connections && !open)
        api_fail(&r->refusal, 503, "too_many_connections", NULL,
                 "%u connections are open, all that max_connections allows; try again later", http->max_connections);
    else if (limits_too_many_connections(http->limits, r->address, 0))
        api_fail(&r->refusal, 429, "too_many_connections", NULL,
                 "this address has more connections open than it may; try again later (max_connections_per_address)");
    else if (!open && !r->options && (!find_client(r) || !check_rates(r))) return;
    else if (!r->route) api_fail(&r->refusal, 404, "not_found", NULL, "there is nothing at %.200s", r->path);
    else if (!(r->route->methods & r->method))
        api_fail(&r->refusal, 405, "method_not_allowed", NULL, "%s is not answered at %s, expected %s", method, r->label,
                 r->route->methods & HTTP_POST ? "POST" : "GET");
    else if (length && strtoull(length, NULL, 10) > http->max_body_bytes)
        api_fail(&r->refusal, 413, "body_too_large", NULL, "the body has %s bytes, expected at most %llu (max_body)", length,
                 (unsigned long long)http->max_body_bytes);
}

static struct http_request *request_create(struct http *http, struct MHD_Connection *mhd, const char *url, const char *method,
                                           const char *version) {
    static atomic_ullong numbers;
    struct http_request *r = sh_calloc(1, sizeof(*r));
    const char *rest;
    if (!r) return NULL;
    atomic_init(&r->refs, 1);
    pthread_mutex_init(&r->lock, NULL);
    r->http = http;
    r->mhd = mhd;
    r->conn = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    r->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    r->address = limits_address(MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr);
    r->started_ns = sh_now_ns();
    r->number = atomic_fetch_add(&numbers, 1) + 1;
    r->http11 = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
    r->method = strcmp(method, "POST") == 0                                 ? HTTP_POST
                : strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0 ? HTTP_GET
                                                                            : 0;
    r->options = strcmp(method, "OPTIONS") == 0;
    if (http->request_timeout_s) r->deadline_ns = r->started_ns + (uint64_t)http->request_timeout_s * 1000000000u;
    if (!(r->path = strdup(url))) {
        request_unref(r);
        return NULL;
    }
    r->route = http_route_find(r->path, &rest);
    r->rest = r->route ? r->path + (rest - r->path) : NULL;
    r->label = r->route ? r->route->label : "other";
    atomic_fetch_add(&http->requests, 1);
    if (r->conn) watch_request(http->watch, r->conn, r);
    return r;
}

/* ---- body ---- */

static bool take_body(struct http_request *r, const char *data, size_t size) {
    uint64_t limit = r->http->max_body_bytes;
    r->body_total += size;
    if (r->conn) watch_body(r->http->watch, r->conn, r->body_total);
    if (!r->refusal.status && r->body_total > limit)
        api_fail(&r->refusal, 413, "body_too_large", NULL, "the body has more than %llu bytes (max_body)",
                 (unsigned long long)limit);
    if (r->refusal.status) {
        free_body(r);
        return r->body_total <= limit + DISCARD_BYTES;
    }
    if (r->body_length + size + 1 > r->body_capacity) {
        size_t capacity = (size_t)sh_max_u64(r->body_capacity * 2, sh_align_up(r->body_length + size + 1, 4096));
        uint64_t held = atomic_fetch_add(&r->http->body_bytes, capacity - r->body_capacity) + capacity - r->body_capacity;
        char *grown = held <= sh_max_u64(BODIES_BYTES, limit * 2) ? realloc(r->body, capacity) : NULL;
        if (!grown) {
            atomic_fetch_sub(&r->http->body_bytes, capacity - r->body_capacity);
            api_fail(&r->refusal, 503, "out_of_memory", NULL,
                     "no memory for the body: too many large requests at once, try again later");
            return true;
        }
        r->body = grown;
        r->body_capacity = capacity;
    }
    memcpy(r->body + r->body_length, data, size);
    r->body_length += size;
    r->body[r->body_length] = 0;
    return true;
}

void request_parse_begin(struct http_request *r, json_t **body, struct api_error *err) {
    if (r->body_length > LARGE_BYTES) {
        pthread_mutex_lock(&r->http->parsing);
        r->parse_locked = true;
    }
    *body = api_parse_body(r->body, r->body_length, err);
}

void request_parse_end(struct http_request *r, json_t *body) {
    json_decref(body);
    if (r->parse_locked) pthread_mutex_unlock(&r->http->parsing);
    r->parse_locked = false;
    free_body(r);
}

/* ---- answer ---- */

static enum http_step run(struct http_request *r) {
    if (r->options) return answer_options(r);
    if (r->refusal.status) return answer_error(r, &r->refusal);
    return r->route->handle(r);
}

static enum MHD_Result answer(struct http_request *r) {
    bool probe;
    if (!r->complete) {
        r->complete = true;
        if (r->conn) watch_answering(r->http->watch, r->conn);
    }
    do {
        if (request_is_gone(r) || atomic_load(&r->http->stopping)) return MHD_NO;
        switch (run(r)) {
        case HTTP_ANSWERED: return MHD_YES;
        case HTTP_DROP: return MHD_NO;
        case HTTP_WAIT:
            if (r->settled) break;
            /* libmicrohttpd notes what a connection waits for only when it was not suspended meanwhile. Suspended right now it
             * would still wait for more to read, read when it is resumed, and take a client that closed its writing side for
             * one that is gone. It calls again at once. */
            r->settled = true;
            return MHD_YES;
        }
    } while (keep_going(r, &probe));
    return MHD_YES;
}

enum MHD_Result http_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                            const char *upload, size_t *upload_size, void **con_cls) {
    struct http_request *r = *con_cls;
    if (!r) {
        if (!(r = request_create(cls, mhd, url, method, version))) return MHD_NO;
        *con_cls = r;
        check_head(r, method);
        r->last = r->refusal.status && strcmp(r->refusal.code, "too_many_connections") == 0; /* to give back its place */
        const char *length = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
        /* Answering now closes the connection under a client that is still sending: only if it waits to be told to, or has too
         * much to say. */
        const bool asks = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_EXPECT) != NULL;
        if (r->refusal.status && (r->refuse_now || asks || (length && strtoull(length, NULL, 10) > DISCARD_BYTES))) return answer(r);
        return MHD_YES;
    }
    if (*upload_size) {
        bool go_on = take_body(r, upload, *upload_size);
        *upload_size = 0;
        return go_on ? MHD_YES : MHD_NO;
    }
    return answer(r);
}

static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max) {
    struct http_request *r = cls;
    bool probe = false;
    (void)pos;
    for (;;) {
        if (request_is_gone(r) || atomic_load(&r->http->stopping)) return MHD_CONTENT_READER_END_WITH_ERROR;
        ssize_t n = r->read(r->job, buf, max, probe);
        if (n) return n == -1 ? MHD_CONTENT_READER_END_OF_STREAM : n < 0 ? MHD_CONTENT_READER_END_WITH_ERROR : n;
        if (!keep_going(r, &probe)) return 0;
    }
}

static void free_stream(void *cls) { request_unref(cls); }

struct MHD_Response *request_stream_response(struct http_request *r) {
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 << 10, read_stream, r, free_stream);
    if (response) request_ref(r);
    return response;
}

void http_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode code) {
    struct http_request *r = *con_cls;
    struct http *http = cls;
    (void)mhd;
    if (!r) return;
    *con_cls = NULL;
    pthread_mutex_lock(&r->lock);
    r->ended = true; /* the connection is not ours any more */
    r->suspended = false;
    pthread_mutex_unlock(&r->lock);
    if (r->conn) watch_done(http->watch, r->conn);
    if (r->job) r->job_close(r->job);
    if (r->counted) limits_end(http->limits, r->client.id);
    const char *const client[] = {r->client.name};
    if (*r->client.name) metric_add(METRIC_CLIENT_REQUESTS, client, 1);
    char status[16];
    snprintf(status, sizeof(status), "%u",
             r->status ? r->status : 499); /* 499, as others log it: gone before there was an answer */
    const char *labels[] = {r->label, status};
    double seconds = (double)(sh_now_ns() - r->started_ns) * 1e-9;
    metric_add(METRIC_REQUESTS, labels, 1);
    metric_observe(METRIC_REQUEST_DURATION, labels, seconds);
    log_debug("http: request %llu %s: %s in %.3f s%s", (unsigned long long)r->number, r->path, status, seconds,
              code == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : ", cut off");
    atomic_fetch_sub(&http->requests, 1);
    request_unref(r);
}
