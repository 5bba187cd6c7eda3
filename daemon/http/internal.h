/*
 * internal.h - the HTTP room's own view of server, connections and requests.
 *
 * Threads: each listening address has a libmicrohttpd daemon with a few epoll threads; a connection stays with one of them.
 * All of a request is worked on by its connection's thread, which suspends the connection when there is nothing to do. Others
 * (runners, the loader, the watcher) only call request_wake, request_gone and request_probe, which take the request's lock and
 * resume it.
 *
 * Lock order: the watcher's lock, then a request's lock, then libmicrohttpd's own. Nothing of other rooms is called with one
 * of them held.
 */
#ifndef SHIMMYD_HTTP_INTERNAL_H
#define SHIMMYD_HTTP_INTERNAL_H

#include "daemon/http/http.h"
#include "daemon/http/params.h"
#include "daemon/limits.h"
#include "daemon/text.h"

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

/* ---- listen.c: sockets, bound once and kept ---- */

enum { HTTP_SOCKETS_MAX = 16 };
struct http_socket {
    int fd;
    char address[80]; /* "http://127.0.0.1:43211" */
    bool loopback;
};
/* listen: "auto" or HOST:PORT[,HOST:PORT...]. On an error nothing stays open. */
enum sh_code http_listen_open(const char *listen, struct http_socket *sockets, uint32_t *count, struct sh_error *err);
/* Fills *out for a socket that listens already. SH_ERR_INVALID: it is none. */
enum sh_code http_listen_adopt(int fd, struct http_socket *out, struct sh_error *err);

/* ---- server.c ---- */

struct http_watch;
struct http {
    struct http_socket sockets[HTTP_SOCKETS_MAX];
    struct MHD_Daemon *daemons[HTTP_SOCKETS_MAX];
    const char *addresses[HTTP_SOCKETS_MAX + 1];
    uint32_t n_sockets;
    struct http_watch *watch;
    char *cors_origin; /* "" = none */
    struct limits *limits;
    atomic_uint max_prompt_tokens, max_choices; /* these three change at a reload */
    atomic_bool separate_clients;
    uint32_t max_connections, request_timeout_s, header_timeout_s, idle_timeout_s, stall_timeout_s;
    uint64_t max_body_bytes;
    uint32_t max_header_bytes;
    uint64_t started_ns;
    atomic_uint connections, requests; /* open; being worked on */
    atomic_ullong body_bytes;          /* held for bodies, all requests */
    atomic_ullong answer_bytes;        /* the same for whole answers */
    pthread_mutex_t parsing;           /* of a large body: one at a time */
    atomic_bool draining, stopping;
};

/* ---- watch.c: connections' descriptors and deadlines ---- */

struct http_request;
struct http_conn;
enum sh_code watch_create(struct http *http, struct http_watch **out, struct sh_error *err);
void watch_destroy(struct http_watch *watch);
struct http_conn *watch_open(struct http_watch *watch, int fd); /* NULL: no memory, the connection goes unwatched */
void watch_close(struct http_watch *watch, struct http_conn *conn);
/* The head of a request has come, its body is awaited. Takes a reference of the request's until watch_done. */
void watch_request(struct http_watch *watch, struct http_conn *conn, struct http_request *request);
void watch_body(struct http_watch *watch, struct http_conn *conn, uint64_t bytes); /* of body received so far */
void watch_answering(struct http_watch *watch, struct http_conn *conn);            /* the whole request is here */
/* The answer is being written, all of its `bytes` (0: nobody knows how many); from here on the client has to read. */
void watch_writing(struct http_watch *watch, struct http_conn *conn, uint64_t bytes);
void watch_done(struct http_watch *watch, struct http_conn *conn);                 /* the next request's head may come */
void watch_end_all(struct http_watch *watch);                                      /* request_gone for every request */

/* ---- request.c ---- */

enum http_step {
    HTTP_WAIT,     /* nothing to do before request_wake */
    HTTP_ANSWERED, /* a response is queued */
    HTTP_DROP,     /* close the connection */
};
enum { HTTP_GET = 1, HTTP_POST = 2 };

struct http_route {
    const char *path;  /* ends in '/': a prefix, the rest is request->rest */
    const char *label; /* for metrics */
    unsigned methods;
    bool open;                                              /* needs no API key */
    enum http_step (*handle)(struct http_request *request); /* called until it does not return HTTP_WAIT */
};
const struct http_route *http_route_find(const char *path, const char **rest);

struct http_request {
    struct http *http;
    struct http_conn *conn;         /* NULL: unwatched */
    struct MHD_Connection *mhd;     /* the connection's thread only, and under `lock` while suspended */
    const struct http_route *route; /* NULL: none fits */
    const char *label;
    char *path, *rest; /* rest: within path, what follows a prefix route */
    unsigned method;   /* HTTP_GET (also HEAD) or HTTP_POST, 0 for others */
    bool options, http11;
    char *body;
    size_t body_length, body_capacity;
    bool parse_locked;
    uint64_t body_total;              /* discarded bytes too */
    struct api_error refusal;         /* status != 0: known before the body came */
    bool refuse_now;                  /* without waiting for the body */
    bool last;                        /* of its connection, which is closed after it */
    uint64_t address;                 /* limits_address */
    struct limits_client client;      /* whose it is */
    bool counted;                     /* limits_begin let it through, limits_end follows */
    struct limits_state rates;        /* for its answer's headers; all 0: there are none */
    bool complete;                    /* head and body are here */
    bool settled;                     /* libmicrohttpd knows that nothing more is to be read */
    uint64_t started_ns, deadline_ns; /* deadline 0: none */
    uint64_t number;
    unsigned status; /* of the response queued, 0 none */
    uint32_t retry_after_s;
    bool replayed; /* the response cache had all of the answer */

    void *job;                    /* of the handler */
    void (*job_close)(void *job); /* connection's thread, when the request ends: cancels what runs for it */
    void (*job_free)(void *job);  /* when the last reference goes */
    bool stream; /* the response is read by `read`; set before it is queued, read by others once `answering` is set */
    /* Up to max bytes of the stream: > 0 bytes, 0: none now, -1: end, -2: broken off. probe: say something harmless, the
     * client may be gone. */
    ssize_t (*read)(void *job, char *buf, size_t max, bool probe);

    pthread_mutex_t lock;
    atomic_uint refs;
    /* under lock */
    int fd;
    bool suspended, woken, gone, probe, answering, ended;
};
void request_ref(struct http_request *request);
void request_unref(struct http_request *request);
void request_wake(struct http_request *request); /* any thread: its handler or reader is called again */
void request_gone(struct http_request *request); /* any thread: the client left, or the server stops */
/* Any thread: writes something that harms no client that only closed its writing side, and makes the kernel of one that is
 * gone answer with a reset. */
void request_probe(struct http_request *request, bool streams_only);
/* Parses the body and gives it back. JSON values take a hundred times the memory of their text, so of large bodies only one is in
 * this state at a time: between the two calls. *body NULL: *err says why. */
void request_parse_begin(struct http_request *request, json_t **body, struct api_error *err);
void request_parse_end(struct http_request *request, json_t *body);
bool request_is_gone(struct http_request *request);
bool request_expired(const struct http_request *request);
struct MHD_Response *request_stream_response(struct http_request *request); /* reads by request->read; NULL: no memory */

enum MHD_Result http_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                            const char *upload, size_t *upload_size, void **con_cls);
void http_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode code);

/* ---- respond.c: all return HTTP_ANSWERED, or HTTP_DROP when there is no memory ---- */

enum http_step answer_json(struct http_request *request, unsigned status,
                           json_t *value); /* takes the reference; NULL: no memory */
enum http_step answer_error(struct http_request *request, const struct api_error *error);
/* A request that a limit refuses is counted; what is wrong with a request, or fails later, is not. */
void count_refusal(const struct api_error *error);
enum http_step answer_text(struct http_request *request, unsigned status, const char *type, char *text,
                           size_t length); /* takes text */
enum http_step answer_options(struct http_request *request);
enum http_step answer_stream(struct http_request *request); /* text/event-stream, by request->read */
json_t *api_error_json(const struct api_error *error);
/* JSON as it is sent: compact, floats to 9 digits. malloc'd, NULL: no memory. */
char *json_text(const json_t *value);

/* ---- one file per family of routes ---- */

enum http_step health_get(struct http_request *request);
enum http_step metrics_get(struct http_request *request);
enum http_step models_list(struct http_request *request);
enum http_step models_one(struct http_request *request);
enum http_step completions_post(struct http_request *request);
enum http_step chat_post(struct http_request *request);
enum http_step embeddings_post(struct http_request *request);
enum http_step tokenize_post(struct http_request *request);
enum http_step detokenize_post(struct http_request *request);

/* The model that a request names, or the only one that is loaded if it names none. A reference. */
struct model;
bool api_find_model(const char *name, struct model **out, struct api_error *err);

#endif
