/*
 * http.h - the HTTP server as main sees it. libmicrohttpd runs its own epoll thread; streams are suspended while their
 * generation has nothing to say, and every connection's descriptor is watched by an epoll of ours, so that a client that
 * leaves is noticed in either state.
 */
#ifndef SHIMMYD_HTTP_H
#define SHIMMYD_HTTP_H

#include "daemon/config.h"

/* Answers that could not be put together for want of memory are dropped, not sent in part. Before anything of jansson is used. */
void http_watch_json_memory(void);

struct http;
/* inherited_fds: listening sockets from systemd (LISTEN_FDNAMES http), used instead of config->listen when n_inherited > 0. */
enum sh_code http_start(const struct config *config, const int *inherited_fds, uint32_t n_inherited, struct http **out,
                        struct sh_error *err);
/* Keys, rates and what else of the configuration may change while it serves. On an error nothing has changed. Any thread. */
enum sh_code http_configure(struct http *http, const struct config *config, struct sh_error *err);
/* "http://127.0.0.1:43211", NULL-terminated array; lent. */
const char *const *http_addresses(const struct http *http);
void http_stop_accepting(struct http *http); /* answers new requests with 503, lets running ones end */
void http_stop(struct http *http);           /* resumes and ends all connections */

#endif
