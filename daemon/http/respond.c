/* respond.c - responses: JSON, text, errors in OpenAI's shape, event streams; and the headers that all of them carry. */
#include "daemon/http/internal.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* A value that was put together without enough memory lacks what could not be added, and nobody looks at each addition: so this thread
 * remembers that it was so, and such a value is not written out. */
static _Thread_local bool json_lacks;

static void *json_allocate(size_t bytes) {
    void *memory = malloc(bytes);
    json_lacks |= !memory;
    return memory;
}

void http_watch_json_memory(void) { json_set_alloc_funcs(json_allocate, free); }

char *json_text(const json_t *value) {
    char *text = json_lacks ? NULL : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    json_lacks = false;
    return text;
}

enum {
    LONG_BYTES = 256 << 10,    /* answers up to this are given in any case */
    ANSWERS_BYTES = 256 << 20, /* held for whole answers at once */
};

json_t *api_error_json(const struct api_error *error) {
    return json_pack("{s:{s:o,s:s,s:s?,s:s?}}", "error", "message", json_bytes(error->message, strlen(error->message)), "type",
                     error->type, "param", error->param[0] ? error->param : NULL, "code", error->code);
}

static void add_cors(struct http_request *r, struct MHD_Response *response) {
    const char *origin = r->http->cors_origin;
    if (!*origin) return;
    MHD_add_response_header(response, "Access-Control-Allow-Origin", origin);
    if (strcmp(origin, "*") != 0) MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, "Origin");
    if (!r->options) return;
    const char *wanted = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, "Access-Control-Request-Headers");
    MHD_add_response_header(response, "Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS");
    MHD_add_response_header(response, "Access-Control-Allow-Headers", wanted ? wanted : "Authorization, Content-Type");
    MHD_add_response_header(response, "Access-Control-Max-Age", "86400");
}

static const char *allowed(const struct http_request *r) {
    return !r->route || r->route->methods == (HTTP_GET | HTTP_POST) ? "GET, HEAD, POST, OPTIONS"
           : r->route->methods & HTTP_POST                          ? "POST, OPTIONS"
                                                                    : "GET, HEAD, OPTIONS";
}

/* As OpenAI's: "120ms", "7.5s", "1m30s". */
static void add_reset(struct MHD_Response *response, const char *name, double seconds) {
    char text[48];
    if (seconds < 0.9995) snprintf(text, sizeof(text), "%.0fms", seconds * 1000);
    else if (seconds < 59.95) snprintf(text, sizeof(text), "%.3gs", seconds);
    else snprintf(text, sizeof(text), "%.0fm%.0fs", floor((seconds + 0.05) / 60), floor(fmod(seconds + 0.05, 60)));
    MHD_add_response_header(response, name, text);
}

static void add_number(struct MHD_Response *response, const char *name, uint64_t number) {
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
    MHD_add_response_header(response, name, text);
}

static void add_rates(struct MHD_Response *response, const struct limits_state *rates) {
    if (rates->requests) {
        add_number(response, "x-ratelimit-limit-requests", rates->requests);
        add_number(response, "x-ratelimit-remaining-requests", rates->requests_left);
        add_reset(response, "x-ratelimit-reset-requests", rates->requests_reset_s);
    }
    if (rates->tokens) {
        add_number(response, "x-ratelimit-limit-tokens", rates->tokens);
        add_number(response, "x-ratelimit-remaining-tokens", rates->tokens_left);
        add_reset(response, "x-ratelimit-reset-tokens", rates->tokens_reset_s);
    }
}

/* Takes the response. */
static enum http_step queue(struct http_request *r, unsigned status, struct MHD_Response *response, const char *type, size_t length) {
    char number[32];
    if (!response) return HTTP_DROP;
    snprintf(number, sizeof(number), "req-%llu", (unsigned long long)r->number);
    if (type) MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, "Server", "shimmyd/" SHIMMY_VERSION);
    MHD_add_response_header(response, "X-Request-Id", number);
    if (status == 405 || r->options) MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allowed(r));
    if (status == 401) MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (status == 429 || status == 503) add_number(response, MHD_HTTP_HEADER_RETRY_AFTER, r->retry_after_s ? r->retry_after_s : 1);
    if (r->replayed) MHD_add_response_header(response, "X-Shimmy-Response-Cache", "hit");
    add_rates(response, &r->rates);
    if (!r->complete || r->last || (atomic_load(&r->http->draining) && !r->stream))
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    add_cors(r, response);
    pthread_mutex_lock(&r->lock);
    r->answering = true; /* from here on libmicrohttpd writes to the descriptor */
    pthread_mutex_unlock(&r->lock);
    if (r->conn && r->complete) watch_writing(r->http->watch, r->conn, length);
    enum MHD_Result queued = MHD_queue_response(r->mhd, status, response);
    MHD_destroy_response(response);
    if (queued != MHD_YES) return HTTP_DROP;
    r->status = status;
    return HTTP_ANSWERED;
}

struct answer { /* a whole one, while it is written */
    struct http *http;
    size_t length;
    char *text;
};

static void free_answer(void *user) {
    struct answer *answer = user;
    atomic_fetch_sub(&answer->http->answer_bytes, answer->length);
    free(answer->text);
    free(answer);
}

static enum http_step refuse_long(struct http_request *r) {
    struct api_error err;
    api_fail(&err, 503, "out_of_memory", NULL, "no memory for the answer: too many long ones wait to be read, try again later");
    return answer_error(r, &err);
}

enum http_step answer_text(struct http_request *r, unsigned status, const char *type, char *text, size_t length) {
    if (!text) return HTTP_DROP;
    /* Clients that do not read keep what they were answered: of long ones only so much at once. */
    const uint64_t held = atomic_fetch_add(&r->http->answer_bytes, length);
    struct answer *answer = malloc(sizeof(*answer));
    const bool refuse = length > LONG_BYTES && held + length > ANSWERS_BYTES && held;
    if (!answer || refuse) {
        atomic_fetch_sub(&r->http->answer_bytes, length);
        free(answer);
        free(text);
        return refuse ? refuse_long(r) : HTTP_DROP;
    }
    *answer = (struct answer){.http = r->http, .length = length, .text = text};
    struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback_cls(length, text, free_answer, answer);
    if (!response) free_answer(answer);
    return queue(r, status, response, type, length);
}

enum http_step answer_json(struct http_request *r, unsigned status, json_t *value) {
    char *text = value ? json_text(value) : NULL;
    json_decref(value);
    return answer_text(r, status, "application/json", text, text ? strlen(text) : 0);
}

void count_refusal(const struct api_error *error) {
    static const char *const reasons[] = {"queue_full", "rate_limit_exceeded", "token_rate_limit_exceeded", "too_many_requests",
                                          "too_many_connections", "header_too_large", "body_too_large", "prompt_too_long",
                                          "too_many_choices", "context_length_exceeded", "invalid_api_key", "shutting_down",
                                          "out_of_memory", "request_timeout"};
    for (size_t i = 0; error->code && i < SH_COUNT(reasons); i++)
        if (strcmp(error->code, reasons[i]) == 0) metric_add(METRIC_REQUESTS_REFUSED, &reasons[i], 1);
}

enum http_step answer_error(struct http_request *r, const struct api_error *error) {
    r->retry_after_s = error->retry_after_s;
    count_refusal(error);
    return answer_json(r, error->status, api_error_json(error));
}

enum http_step answer_options(struct http_request *r) {
    return queue(r, MHD_HTTP_NO_CONTENT, MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT), NULL, 0);
}

enum http_step answer_stream(struct http_request *r) {
    struct MHD_Response *response = request_stream_response(r);
    r->stream = true;
    if (response) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
        /* node-fetch 2, which the openai client of Node 18 uses, takes the end of a chunked answer on a connection that stays
         * open for a "premature close". A stream pays for its connection anyway. */
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
        MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* a proxy is not to collect the stream */
    }
    return queue(r, MHD_HTTP_OK, response, "text/event-stream; charset=utf-8", 0);
}
