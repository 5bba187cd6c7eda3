/*
 * scheduler.h - the runner of one ready model: a thread that owns the model's context and turns queued generations into events.
 *
 * Requests are served in the order in which they came; the choices of one request run as one batch. The prompt is computed in
 * chunks of at most prefill_chunk rows, fewer where a step would take long, then each step decodes one token per choice; where
 * sampling happens on the device and the device works asynchronously, the next step is submitted before the last one is looked
 * at. A grammar (constraint.h) forces tokens: those a step takes as further rows of a choice, as many as its share of a chunk.
 *
 * Thread-safety: runner_create and runner_destroy: the loader. The others: any thread while the runner lives.
 */
#ifndef SHIMMYD_SCHEDULER_H
#define SHIMMYD_SCHEDULER_H

#include "daemon/generation.h"

struct runner;

struct runner_params {
    struct sh_context_params context;
    uint32_t prefill_chunk; /* rows, at most */
    uint32_t max_queue;     /* generations waiting, the running one not counted */
    bool overlap;           /* the device works asynchronously: keep two steps in flight */
    const char *id;         /* the model's, copied: for logs and metrics */
    /* Called when a generation ended and when a drained runner has nothing left to do; from the runner's thread, under no lock.
     */
    void (*idle)(void *user);
    /* The device is lost: the model cannot be used any more. From the runner's thread, once. */
    void (*lost)(void *user, const struct sh_error *err);
    void *user;
};
/* engine stays the caller's and outlives the runner. */
enum sh_code runner_create(struct sh_model *engine, const struct runner_params *params, struct runner **out,
                           struct sh_error *err);
void runner_destroy(struct runner *runner); /* cancels what is left ("shutdown"), ends the thread; NULL is fine */

/* Takes over a reference of the generation's on success. SH_ERR_BUSY: queue full; SH_ERR_NOT_FOUND: draining. */
enum sh_code runner_enqueue(struct runner *runner, struct generation *generation, struct sh_error *err);
void runner_drain(struct runner *runner); /* refuses new generations from now on */
void runner_cancel_all(struct runner *runner, const char *reason);

struct runner_stats {
    uint32_t running, queued;
    uint64_t prompt_tokens, generated_tokens;
    uint64_t idle_since_ns; /* monotonic; 0: busy */
    uint64_t silence_ns;    /* busy: since the last finished submission, else 0 */
    struct sh_context_stats context;
};
void runner_get_stats(struct runner *runner, struct runner_stats *out);

#endif
