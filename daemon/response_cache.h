/*
 * response_cache.h - whole answers, kept for requests that would be answered the same again: greedy ones, and those with a seed of the client's.
 *
 * It sits between front ends and runners, within gen_submit: a generation whose answer is kept is ended before it is queued, with the same events
 * (tokens, texts, log-probs, reasons) as the first time; any other is written down while the runner works on it, and kept if all of its choices
 * ended by themselves. A key is all that decides an answer, compared byte for byte: the load of the model, the prompt's tokens, everything
 * about sampling, stops, what the text is held to, the salt. Not kept are answers of more than RESPONSE_TEXT_BYTES bytes or
 * RESPONSE_EVENTS events, vectors, those of sessions, and of requests that want nothing cached (gen_params.no_reuse).
 *
 * The least recently used go when there are too many, or too many bytes; each goes when it is too old. Thread-safety: all functions but
 * those of one record, any thread. A record has one user at a time.
 */
#ifndef SHIMMYD_RESPONSE_CACHE_H
#define SHIMMYD_RESPONSE_CACHE_H

#include "daemon/config.h"
#include "daemon/generation.h"

enum { RESPONSE_TEXT_BYTES = 8192, RESPONSE_EVENTS = 2 * GEN_RING_EVENTS };

/* Takes its options; off drops all that is kept. */
void response_cache_configure(const struct config *config);

struct response;        /* a kept answer, reference counted and constant */
struct response_record; /* an answer on its way to be one */

/* The answer to a request, a reference for the caller, or NULL. Then *record, unless that is NULL too, is to be told all events.
 * instance: of the model's load, never 0. now_ns: CLOCK_MONOTONIC. */
struct response *response_cache_find(const struct gen_params *params, uint64_t instance, uint64_t now_ns, struct response_record **record);
void response_unref(struct response *response); /* NULL is fine */
/* Copies event number `index` (from 0); false: there are no more, or no memory for it (*index is not advanced then). */
bool response_event(const struct response *response, uint32_t *index, struct gen_event *out);
uint32_t response_events(const struct response *response);
void response_usage(const struct response *response, struct gen_usage *out); /* all of the prompt is cached, no time was spent */

void response_record_add(struct response_record *record, const struct gen_event *event); /* copies it */
/* It is over; keeps what was written down if it is `whole`. Frees the record; NULL is fine. */
void response_record_finish(struct response_record *record, bool whole, const struct gen_usage *usage, uint64_t now_ns);

#endif
