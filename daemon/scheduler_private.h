/*
 * scheduler_private.h - the inside of a runner, for scheduler.c (the queue, the thread, generations) and embedding.c (texts to
 * vectors). What follows the struct is for the runner's own thread.
 */
#ifndef SHIMMYD_SCHEDULER_PRIVATE_H
#define SHIMMYD_SCHEDULER_PRIVATE_H

#include "daemon/generation_private.h"
#include "daemon/scheduler.h"

struct runner {
    struct runner_params params; /* id is ours */
    struct sh_model *engine;
    struct sh_context *context;
    const struct sh_vocab *vocab;
    struct sh_model_info info;
    pthread_t thread;
    uint32_t chunk; /* our thread's: rows of a prompt step now, at most prefill_chunk */

    pthread_mutex_t lock; /* the rest */
    pthread_cond_t wake;
    struct generation *queue, **queue_end;
    struct generation *dropped; /* taken out of the queue, to be ended by our thread */
    struct generation *current;
    uint32_t n_queued;
    bool draining, stopping, lost;
    uint64_t prompt_tokens, generated_tokens;
    uint64_t idle_since_ns, progress_ns;
};

/* Between steps: ends what waits and was cancelled or is late, and says whether `g`, which runs, is to go on. */
bool runner_may_continue(struct runner *r, struct generation *g);
void runner_count_prompt(struct runner *r, uint32_t tokens); /* submitted */
/* After a step: the watchdog is told of it, and the next chunk is sized by it. */
void runner_step_done(struct runner *r, uint32_t rows, uint64_t step_ns);

/* embedding.c: every text of g to a vector, as events. SH_ERR_CANCELLED: g was cancelled or is late. Nothing is in flight when
 * it returns. */
enum sh_code embedding_serve(struct runner *r, struct generation *g, struct sh_error *err);
/* Whether texts of these lengths can be embedded at all: before they are queued. Any thread. */
enum sh_code embedding_check(const struct runner *r, const struct gen_params *p, struct sh_error *err);

#endif
