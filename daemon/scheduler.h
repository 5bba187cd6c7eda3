/*
 * scheduler.h - the runner of one ready model: a thread that owns the model's context and turns queued generations into events.
 *
 * Every step is a mix: one row (with speculation or forced tokens more) of each running choice, and chunks of the prompts that are
 * being taken in, oldest first, within a budget of rows that keeps a step from taking much longer than the running choices alone
 * would make it (`prefill_share`); with nothing running, a step of prompts is bounded by time alone. Waiting generations are admitted as sequences
 * and pages suffice for what they take next: normal priority before low, within a priority the clients in turn, within a client in order. When
 * pages run out, the youngest generation of the lowest priority is suspended; it comes back first, and its tokens are computed or
 * reused again: its client sees a pause. Where sampling happens on the device and the device works asynchronously, the next step is submitted before
 * the last one is looked at, for the choices that need not be looked at; the others skip that step. A step that fails is repeated
 * with half of the generations that were in it, and with half of these, so that only one that is alone in such a step fails; a lost device costs
 * all. What a generation gets never depends on what else is running: the numerics contract.
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
    uint32_t prefill_share; /* percent: how much longer a step may take for each request that waits for its first token than for what is decoded in it */
    uint32_t max_queue;     /* generations waiting, those admitted not counted */
    struct sh_model *draft; /* a small model with the same vocabulary that proposes tokens; NULL: none; the caller's, outlives the runner */
    bool lookup;            /* propose what followed in prompt and answer before */
    uint32_t draft_tokens;  /* proposed at once, at most */
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
    uint64_t draft_tokens, accepted_tokens, preemptions; /* so far */
    uint64_t idle_since_ns; /* monotonic; 0: busy */
    uint64_t silence_ns;    /* busy: since the last finished submission, else 0 */
    uint32_t step_rows;     /* of the submission that is waited for; 0: none is */
    uint64_t steps, longest_step_ns; /* so far; the longest between two that were finished, or since there was something to do */
    struct sh_context_stats context;
};
/* Sessions: what the last request of that name (gen_params.session) had in the cache when it ended, to a file and back. Both are done
 * between steps and wait for that; any thread. *tokens: how many. SH_ERR_NOT_FOUND: no request had that name; SH_ERR_CANCELLED: the runner ends;
 * SH_ERR_DEVICE: it is stuck. */
enum sh_code runner_save_session(struct runner *runner, const char *session, uint64_t salt, int fd, uint32_t *tokens, struct sh_error *err);
enum sh_code runner_restore_session(struct runner *runner, const char *session, uint64_t salt, int fd, uint32_t *tokens, struct sh_error *err);

/* The watchdog's: the runner is stuck, for the reason given; NULL: it goes on again. While it is stuck nothing is accepted; what was
 * accepted is returned with references, so that the caller ends it (gen_fail) when it holds no locks. *n of them, malloc'd. */
struct generation **runner_set_stuck(struct runner *runner, const char *reason, uint32_t *n);

/* Its cache grows no further than for so many tokens, until this is called again (sh_context_limit). */
void runner_limit_cache(struct runner *runner, uint64_t kv_tokens);
void runner_get_stats(struct runner *runner, struct runner_stats *out);

#endif
