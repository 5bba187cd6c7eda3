/* server.c - start and stop of the HTTP server, and the table of routes. */
#include "daemon/http/internal.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    THREADS = 2, /* per address: while one parses a long body, the other answers */
    SPARE = 16,  /* connections beyond the configured number, which are told so with a 503 */
    LAST_WORDS_MS = 1000,
    SEND_BYTES = 256 << 10, /* left to themselves, the kernel's buffers would take megabytes for a client that does not read */
    SPARE_PER_ADDRESS = 4, /* of one address beyond its number, which are told so with a 429 */
    ARENA_HEADS = 8, /* libmicrohttpd's memory for one connection, in heads: one that does not fit gets a page of its own making instead of our 431 */
};

static const struct http_route routes[] = {
    {"/health", "/health", HTTP_GET, true, health_get},
    {"/metrics", "/metrics", HTTP_GET, true, metrics_get},
    {"/v1/models", "/v1/models", HTTP_GET, false, models_list},
    {"/v1/models/", "/v1/models/{id}", HTTP_GET, false, models_one},
    {"/v1/completions", "/v1/completions", HTTP_POST, false, completions_post},
    {"/v1/chat/completions", "/v1/chat/completions", HTTP_POST, false, chat_post},
    {"/v1/embeddings", "/v1/embeddings", HTTP_POST, false, embeddings_post},
    {"/tokenize", "/tokenize", HTTP_POST, false, tokenize_post},
    {"/detokenize", "/detokenize", HTTP_POST, false, detokenize_post},
};

const struct http_route *http_route_find(const char *path, const char **rest) {
    for (size_t i = 0; i < SH_COUNT(routes); i++) {
        size_t n = strlen(routes[i].path);
        bool prefix = routes[i].path[n - 1] == '/';
        if (prefix ? strncmp(path, routes[i].path, n) == 0 && path[n] : strcmp(path, routes[i].path) == 0) {
            *rest = path + n;
            return &routes[i];
        }
    }
    *rest = NULL;
    return NULL;
}

static void log_line(void *cls, const char *fmt, va_list args) __attribute__((format(printf, 2, 0)));
static void log_line(void *cls, const char *fmt, va_list args) {
    char line[512];
    (void)cls;
    vsnprintf(line, sizeof(line), fmt, args);
    line[strcspn(line, "\n")] = 0;
    log_debug("http: %s", line);
}

static void notify_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                              enum MHD_ConnectionNotificationCode code) {
    struct http *http = cls;
    const uint64_t address = limits_address(MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr);
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        int fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        /* A peer whose machine vanished says nothing at all: only these notice. */
        const int yes = 1, idle_s = 30, interval_s = 10;
        const unsigned unsent_ms = (unsigned)sh_max_u64(60000, http->stall_timeout_s * 2000ull); /* the watcher comes first */
        const int send_bytes = SEND_BYTES;
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unsent_ms, sizeof(unsent_ms));
        atomic_fetch_add(&http->connections, 1);
        metric_add(METRIC_HTTP_CONNECTIONS, NULL, 1);
        limits_connect(http->limits, address, sh_now_ns());
        *socket_context = watch_open(http->watch, fd);
    } else {
        if (*socket_context) watch_close(http->watch, *socket_context);
        atomic_fetch_sub(&http->connections, 1);
        metric_add(METRIC_HTTP_CONNECTIONS, NULL, -1);
        limits_disconnect(http->limits, address);
    }
}

/* One who opens many more than it may is not worth an answer. */
static enum MHD_Result accept_connection(void *cls, const struct sockaddr *address, socklen_t length) {
    struct http *http = cls;
    static const char *const reason[] = {"too_many_connections"};
    (void)length;
    if (!limits_too_many_connections(http->limits, limits_address(address), SPARE_PER_ADDRESS - 1)) return MHD_YES;
    metric_add(METRIC_REQUESTS_REFUSED, reason, 1);
    return MHD_NO;
}

static enum sh_code start_daemon(struct http *http, uint32_t i, struct sh_error *err) {
    unsigned limit = http->max_connections / http->n_sockets + THREADS + SPARE;
    http->daemons[i] = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, accept_connection, http, http_access, http,
        MHD_OPTION_EXTERNAL_LOGGER, log_line, http, MHD_OPTION_LISTEN_SOCKET, http->sockets[i].fd, MHD_OPTION_CONNECTION_LIMIT,
        limit, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)http->idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)http->max_header_bytes * ARENA_HEADS,
        MHD_OPTION_THREAD_POOL_SIZE, (unsigned)THREADS, MHD_OPTION_NOTIFY_COMPLETED, http_completed, http,
        MHD_OPTION_NOTIFY_CONNECTION, notify_connection, http, MHD_OPTION_END);
    if (!http->daemons[i])
        return sh_fail(err, SH_ERR_IO, "%s: the HTTP server did not start (no memory or no threads)", http->sockets[i].address);
    http->addresses[i] = http->sockets[i].address;
    return SH_OK;
}

enum sh_code http_configure(struct http *http, const struct config *config, struct sh_error *err) {
    const struct limits_rates rates = {.requests = config->rate_limit,
                                       .burst = config->rate_burst,
                                       .tokens = config->token_rate_limit,
                                       .running = config->max_requests_per_client,
                                       .connections = config->max_connections_per_address};
    const enum sh_code code = limits_configure(http->limits, &rates, config->api_key, config->api_key_file, err);
    if (code) return code;
    atomic_store(&http->max_prompt_tokens, config->max_prompt_tokens);
    atomic_store(&http->max_choices, config->max_choices);
    atomic_store(&http->separate_clients, config->separate_clients);
    return SH_OK;
}

enum sh_code http_start(const struct config *config, const int *inherited_fds, uint32_t n_inherited, struct http **out,
                        struct sh_error *err) {
    enum sh_code code = SH_OK;
    struct http *http = sh_calloc(1, sizeof(*http));
    if (!http) return sh_fail(err, SH_ERR_NO_MEMORY, "http: no memory");
    http->cors_origin = strdup(config->cors_origin);
    http->max_connections = config->max_connections;
    http->max_body_bytes = config->max_body_bytes;
    http->max_header_bytes = config->max_header_bytes;
    http->request_timeout_s = config->request_timeout_s;
    http->header_timeout_s = config->header_timeout_s;
    http->idle_timeout_s = config->idle_timeout_s;
    http->stall_timeout_s = config->stall_timeout_s;
    http->started_ns = sh_now_ns();
    pthread_mutex_init(&http->parsing, NULL);
    if (!http->cors_origin) code = sh_fail(err, SH_ERR_NO_MEMORY, "http: no memory");
    if (!code) code = limits_create(&http->limits, err);
    if (!code) code = http_configure(http, config, err);
    if (!code && n_inherited > HTTP_SOCKETS_MAX)
        code =
            sh_fail(err, SH_ERR_INVALID, "http: %u inherited sockets, at most %d are supported", n_inherited, HTTP_SOCKETS_MAX);
    for (; !code && http->n_sockets < n_inherited; http->n_sockets += !code)
        code = http_listen_adopt(inherited_fds[http->n_sockets], &http->sockets[http->n_sockets], err);
    if (!code && !n_inherited && strcmp(config->listen, "off") != 0)
        code = http_listen_open(config->listen, http->sockets, &http->n_sockets, err);
    if (!code) code = watch_create(http, &http->watch, err);
    for (uint32_t i = 0; !code && i < http->n_sockets; i++) {
        code = start_daemon(http, i, err);
        if (!code && !http->sockets[i].loopback && !limits_has_keys(http->limits))
            log_warning("%s is reachable from other machines and no api_key is set: anybody who reaches it can use it",
                        http->addresses[i]);
    }
    if (code) {
        http_stop(http);
        return code;
    }
    *out = http;
    return SH_OK;
}

const char *const *http_addresses(const struct http *http) { return http->addresses; }

void http_stop_accepting(struct http *http) { atomic_store(&http->draining, true); }

void http_stop(struct http *http) {
    if (!http) return;
    atomic_store(&http->draining, true);
    /* What just ended by models_stop still has to reach its client. */
    for (uint32_t ms = 0; ms < LAST_WORDS_MS && atomic_load(&http->requests); ms += 10)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    atomic_store(&http->stopping, true); /* from here on nothing suspends; what is suspended is resumed and ends */
    if (http->watch) watch_end_all(http->watch);
    for (uint32_t i = 0; i < http->n_sockets; i++) {
        if (http->daemons[i]) MHD_stop_daemon(http->daemons[i]); /* closes the listening socket too */
        else close(http->sockets[i].fd);
    }
    watch_destroy(http->watch);
    pthread_mutex_destroy(&http->parsing);
    limits_destroy(http->limits);
    free(http->cors_origin);
    free(http);
}
