/*
 * limits.h - who an HTTP client is, and how much each may ask for: API keys, rates per key or address, connections per address.
 *
 * A client is told by its API key where keys are configured, else by its address: an IPv4 address, or the first 64 bits of an IPv6 one, which is
 * what one customer of a network has. Its number is a hash that never is 0. Rates are token buckets: what was spent melts away at the configured
 * rate, and a request is let through while what is spent leaves room in the bucket. Tokens are charged when they are known, that is afterwards, so
 * a client may run into debt and then waits until it is paid.
 *
 * Times are CLOCK_MONOTONIC nanoseconds of the caller's. Nothing here grows without bound: at most LIMITS_CLIENTS_MAX clients are remembered, and those
 * forgotten first have nothing spent. Thread-safety: all functions but limits_create and limits_destroy, any thread.
 */
#ifndef SHIMMYD_LIMITS_H
#define SHIMMYD_LIMITS_H

#include "compute/engine.h"

#include <sys/socket.h>

enum { LIMITS_CLIENTS_MAX = 65536, LIMITS_KEYS_MAX = 4096, LIMITS_KEY_BYTES = 256, LIMITS_NAME_BYTES = 64 };

struct limits;

struct limits_rates {
    uint32_t requests;    /* a minute; 0: no limit, as in the others */
    uint32_t burst;       /* at once; 0: as many as `requests` */
    uint64_t tokens;      /* a minute, of prompts and answers; also the size of the bucket */
    uint32_t running;     /* requests of a client that are worked on at once */
    uint32_t connections; /* of one address */
};

struct limits_client {
    uint64_t id;
    char name[LIMITS_NAME_BYTES]; /* that the file of keys gives it; "": none */
};

enum limits_verdict { LIMITS_GO, LIMITS_REQUESTS, LIMITS_TOKENS, LIMITS_RUNNING }; /* what there is too much of */

struct limits_state { /* of a client, after limits_begin; what is not limited is 0 */
    uint64_t requests, requests_left, tokens, tokens_left;
    double requests_reset_s, tokens_reset_s; /* until the bucket is full again */
    uint32_t running;                        /* refused as LIMITS_RUNNING: how many may be at once */
    uint32_t retry_s;                        /* refused: when it is worth another try; at least 1 */
};

enum sh_code limits_create(struct limits **out, struct sh_error *err); /* without limits and keys */
void limits_destroy(struct limits *limits);                            /* NULL is fine */

/* api_key: one key, "": none. key_file: lines of a key, and after a space its name; those that begin with # are comments; "": none. On an error
 * nothing has changed. What clients have spent stays. Messages never hold a key. */
enum sh_code limits_configure(struct limits *limits, const struct limits_rates *rates, const char *api_key, const char *key_file,
                              struct sh_error *err);

bool limits_has_keys(struct limits *limits);
/* Is it one of the keys? Takes as long for a wrong one. */
bool limits_find_key(struct limits *limits, const char *given, struct limits_client *out);
uint64_t limits_address(const struct sockaddr *address); /* the number of a client that is told by its address */

/* What keeps the cached prompts of a request apart (gen_params.salt): the text that it gives (NULL: none), and the client's number where
 * clients are separated, else 0. 0: nothing does. The same in one process only: nobody can find a text with the salt of another. */
uint64_t limits_salt(uint64_t client, const char *cache_salt);

/* A connection was opened; closed. */
void limits_connect(struct limits *limits, uint64_t address, uint64_t now_ns);
void limits_disconnect(struct limits *limits, uint64_t address);
/* Has the address more connections than it may, and `spare` more? */
bool limits_too_many_connections(struct limits *limits, uint64_t address, uint32_t spare);

/* A request comes; with LIMITS_GO it counts, and limits_end has to follow. */
enum limits_verdict limits_begin(struct limits *limits, uint64_t client, uint64_t now_ns, struct limits_state *state);
void limits_end(struct limits *limits, uint64_t client);
void limits_charge(struct limits *limits, uint64_t client, uint64_t tokens, uint64_t now_ns);

/* How long a model's generations took lately, and from that how long one would wait for its turn behind `queued` while `running` are under
 * way: whole seconds, from 1 to 600; 1 where nothing is known. */
void limits_note_service(struct limits *limits, const char *model, double seconds);
uint32_t limits_estimate_wait(struct limits *limits, const char *model, uint32_t queued, uint32_t running);

#endif
