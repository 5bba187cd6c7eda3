/* scheduler.c - see scheduler.h: the runner's thread, which admits generations, submits steps, hands out what they gave, and ends what is over. */
#include "daemon/scheduler.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/scheduler_private.h"

#include <stdio.h>
#include <stdlib.h>

void runner_count_prompt(struct runner *r, uint32_t tokens) {
    const char *const labels[] = {r->params.id};
    metric_add(METRIC_PROMPT_TOKENS, labels, tokens);
    pthread_mutex_lock(&r->lock);
    r->prompt_tokens += tokens;
    pthread_mutex_unlock(&r->lock);
}

/* Tokens made since the last call: counted together, since there may be many in a step. */
static void count_made(struct runner *r) {
    const char *const labels[] = {r->params.id};
    if (r->made > 0) metric_add(METRIC_GENERATED_TOKENS, labels, (double)r->made);
    if (r->forced > 0) metric_add(METRIC_FORCED_TOKENS, labels, (double)r->forced);
    pthread_mutex_lock(&r->lock);
    r->generated_tokens += r->made;
    r->draft_tokens += r->guessed;
    r->accepted_tokens += r->guessed_right;
    pthread_mutex_unlock(&r->lock);
    r->made = r->forced = r->guessed = r->guessed_right = 0;
}

/* ---- runs ---------------------------------------------------------------------------------------------- */

void run_over(struct run *run, enum sh_code code, const struct sh_error *err) {
    if (run->over) return;
    run->over = true;
    run->code = code;
    if (err) run->err = *err;
}

static bool is_finished(const struct run *run) {
    for (uint32_t i = 0; run->choices && i < run->g->params.n_choices; i++)
        if (run->choices[i].active) return false;
    return run->choices != NULL;
}

/* Into the list, behind those that come first. */
static void insert(struct runner *r, struct run *run) {
    struct run **at = &r->runs;
    pthread_mutex_lock(&r->lock);
    while (*at && ((*at)->g->params.priority < run->g->params.priority ||
                   ((*at)->g->params.priority == run->g->params.priority && (*at)->order < run->order)))
        at = &(*at)->next;
    run->next = *at;
    *at = run;
    r->beginning = NULL;
    pthread_mutex_unlock(&r->lock);
}

uint32_t run_last_page(const struct run *run) {
    const uint32_t page = sh_context_page_tokens(run->runner->context);
    return (run->g->params.n_prompt - 1) / page * page;
}

void run_begin(struct runner *r, struct generation *g) {
    struct run *run = sh_calloc(1, sizeof *run);
    struct sh_error err = {0};
    if (!run) {
        sh_fail(&err, SH_ERR_NO_MEMORY, "no memory for a request");
        pthread_mutex_lock(&r->lock);
        r->n_runs--;
        r->n_seats -= queue_sequences_of(g);
        r->beginning = NULL;
        pthread_mutex_unlock(&r->lock);
        metric_add(METRIC_REQUESTS_RUNNING, NULL, -1);
        gen_end(g, GEN_FAILED, &err);
        gen_unref(g);
        return;
    }
    *run = (struct run){.runner = r, .g = g, .order = ++r->last_order, .start_ns = sh_now_ns()};
    pthread_mutex_lock(&g->lock);
    g->usage.queued_ns = run->start_ns - g->submitted_ns;
    pthread_mutex_unlock(&g->lock);
    metric_observe(METRIC_QUEUE_TIME, NULL, (double)(run->start_ns - g->submitted_ns) / 1e9);
    run_push(run, GEN_EVENT_STARTED, -1);
    const enum sh_code code = g->params.n_texts > 0 ? embedding_begin(run, &err) : choices_begin(run, &err);
    if (code) run_over(run, code, &err);
    insert(r, run);
}

static void free_run(struct run *run) {
    choices_end(run);
    embedding_end(run);
    free(run);
}

/* Of a run that is over, and of which nothing is in flight. */
static void end(struct run *run) {
    struct runner *r = run->runner;
    struct generation *g = run->g;
    const enum sh_code code = run->code;
    const struct sh_error err = run->err;
    const uint64_t start_ns = run->start_ns;
    count_made(r);
    session_remember(run);
    /* Before the front end hears of the end, so that what it looks at next (metrics, Status) no longer counts this one. */
    pthread_mutex_lock(&r->lock);
    struct run **at = &r->runs;
    while (*at != run) at = &(*at)->next;
    *at = run->next;
    r->n_runs--;
    r->n_seats -= queue_sequences_of(g);
    pthread_mutex_unlock(&r->lock);
    free_run(run);
    metric_add(METRIC_REQUESTS_RUNNING, NULL, -1);

    struct gen_usage usage;
    gen_get_usage(g, &usage);
    log_write(SH_LOG_DEBUG, r->params.id, "request %llu: %s, %u prompt tokens and %u generated in %.3f s",
              (unsigned long long)g->id, code == SH_OK ? "done" : sh_code_name(code), usage.prompt_tokens,
              usage.completion_tokens, (double)(sh_now_ns() - start_ns) / 1e9);
    if (code == SH_OK) {
        gen_end(g, GEN_STOP, NULL);
    } else if (code == SH_ERR_CANCELLED) {
        gen_end(g, GEN_CANCELLED, NULL);
    } else {
        log_write(SH_LOG_WARNING, r->params.id, "request %llu failed: %s", (unsigned long long)g->id, err.message);
        gen_end(g, GEN_FAILED, &err);
    }
    gen_unref(g);
}

/* Notices what was cancelled, is late or has all it wanted, and ends what is over. */
static void sweep_runs(struct runner *r) {
    const uint64_t now = sh_now_ns();
    struct run *next;
    bool any = false;
    for (struct run *run = r->runs; run; run = next) {
        next = run->next;
        if (run->g->params.deadline_ns && now >= run->g->params.deadline_ns && !is_finished(run))
            gen_mark_cancelled(run->g, "deadline");
        if (is_finished(run)) run_over(run, SH_OK, NULL);
        else if (atomic_load(&run->g->cancelled)) run_over(run, SH_ERR_CANCELLED, NULL);
        if (!run->over || run->in_flight > 0) continue;
        end(run);
        any = true;
    }
    if (any) r->params.idle(r->params.user);
}

/* ---- steps ------------------------------------------------------------------------------------------------ */

/* The device is gone, and with it all that runs and waits. */
static void lose(struct runner *r, const struct sh_error *err) {
    pthread_mutex_lock(&r->lock);
    const bool news = !r->lost;
    r->lost = true;
    pthread_mutex_unlock(&r->lock);
    for (struct run *run = r->runs; run; run = run->next) run_over(run, SH_ERR_DEVICE_LOST, err);
    if (news) r->params.lost(r->params.user, err);
}

static bool is_want_of_room(enum sh_code code) {
    return code == SH_ERR_NO_PAGES || code == SH_ERR_NO_DEVICE_MEMORY || code == SH_ERR_NO_MEMORY;
}

static bool any_over(const struct runner *r) {
    for (const struct run *run = r->runs; run; run = run->next)
        if (run->over) return true;
    return false;
}

/* The step failed: whose fault that was will be seen. */
static void undo(struct runner *r, const struct step *step, const struct sh_error *err) {
    r->failure = *err;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        struct run *run = step->parts[i].run;
        r->undone += !run->undone;
        run->undone = true;
    }
}

/* True: another step is in flight. */
static bool submit_next(struct runner *r) {
    struct step *step = &r->flights[r->n_flights];
    for (;;) {
        struct sh_error err;
        batch_make(r, step);
        if (step->n_rows == 0) return false;
        step->submitted_ns = sh_now_ns();
        const enum sh_code code = sh_submit(r->context, &(struct sh_batch){r->rows, step->n_rows}, &step->ticket, &err);
        if (code == SH_OK) {
            r->n_flights++;
            batch_submitted(r, step);
            return true;
        }
        if (code == SH_ERR_DEVICE_LOST) {
            lose(r, &err);
            return false;
        }
        /* What is in flight may give pages back, and belongs to runs that could be put aside only afterwards; and so may what is over. */
        if (r->n_flights > 0 || any_over(r)) return false;
        if (is_want_of_room(code)) {
            admission_make_room(r, code, &err);
        } else {
            undo(r, step, &err);
            admission_after_failure(r);
        }
    }
}

static void take_result(struct runner *r, const struct sh_result *result) {
    const struct seat seat = r->seats[result->sequence];
    struct sh_error err;
    if (!seat.run || seat.run->over || (seat.choice && !seat.choice->active)) return; /* it ended while this was under way */
    const enum sh_code code =
        seat.choice ? choice_take_result(seat.choice, result, &err) : embedding_take_result(seat.run, result, &err);
    if (code) run_over(seat.run, code, &err);
}

/* How long the oldest step took by itself: without the time that it waited behind the one before. */
static uint64_t own_ns(struct runner *r, const struct step *step, uint64_t step_ns) {
    const uint64_t now = sh_now_ns(), begun = step->submitted_ns > r->last_done_ns ? step->submitted_ns : r->last_done_ns;
    r->last_done_ns = now;
    return now - begun < step_ns ? now - begun : step_ns;
}

static void wait_oldest(struct runner *r) {
    const struct step step = r->flights[0];
    struct sh_results results = {0};
    struct sh_error err;
    pthread_mutex_lock(&r->lock);
    r->step_rows = step.n_rows;
    pthread_mutex_unlock(&r->lock);
    const enum sh_code code = sh_wait(r->context, step.ticket, -1, &results, &err);
    if (code == SH_OK) {
        const uint64_t ns = own_ns(r, &step, results.step_ns);
        pace_step(&r->pace, step.n_decoded, step.n_rows - step.n_decoded, ns);
        speculator_step(r->speculator, step.n_rows, step.n_rows > step.n_decoded, ns);
    }
    metric_observe(METRIC_BATCH_ROWS, NULL, step.n_rows);
    pthread_mutex_lock(&r->lock);
    const uint64_t now = sh_now_ns();
    if (now - r->progress_ns > r->longest_step_ns) r->longest_step_ns = now - r->progress_ns;
    r->steps++;
    r->step_rows = 0;
    r->progress_ns = now;
    pthread_mutex_unlock(&r->lock);

    for (uint32_t i = 0; i < step.n_parts; i++) {
        const struct part *part = &step.parts[i];
        part->run->in_flight--;
        if (part->choice) part->choice->in_flight--;
        if (part->choice && !code) part->choice->settled += part->n_rows;
    }
    if (code == SH_ERR_DEVICE_LOST) lose(r, &err);
    else if (code) undo(r, &step, &err);
    else if (r->careful > 0) r->careful--;
    for (uint32_t i = 0; i < results.count && code == SH_OK; i++) take_result(r, &results.items[i]);
    for (uint32_t i = 0; i < step.n_parts && code == SH_OK; i++) {
        const struct part *part = &step.parts[i];
        if (part->n_guess == 0) continue;
        const enum sh_code cut = choice_settle_guess(part->choice, &err);
        if (cut) run_over(part->run, cut, &err);
    }
    count_made(r);
    r->flights[0] = r->flights[1]; /* its list of parts goes to the other end, for the next one */
    r->flights[1] = (struct step){.parts = step.parts};
    r->n_flights--;
}

/* ---- the thread -------------------------------------------------------------------------------------- */

/* Nothing is to be computed: waits for something. False: the runner ends. */
static bool rest(struct runner *r) {
    pthread_mutex_lock(&r->lock);
    bool go_on = true, idle = false;
    if (r->queue.first || r->queue.dropped || r->runs || r->sessions.jobs) {
        /* something came meanwhile */
    } else if (r->idle_since_ns == 0) {
        r->idle_since_ns = sh_now_ns();
        idle = true;
    } else if (r->stopping) {
        go_on = false;
    } else {
        pthread_cond_wait(&r->wake, &r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    if (idle) r->params.idle(r->params.user);
    return go_on;
}

static void *runner_main(void *user) {
    struct runner *r = user;
    const uint32_t depth = r->params.overlap ? STEPS : 1;
    for (;;) {
        queue_sweep(r);
        sweep_runs(r);
        if (r->undone > 0 && r->n_flights == 0) admission_after_failure(r);
        if (r->undone == 0) admission_next(r);
        if (r->n_flights == 0) session_serve(r, false);
        while (r->n_flights < depth && r->undone == 0 && !session_waits(r) && submit_next(r)) {
        }
        if (r->n_flights > 0) wait_oldest(r);
        else if (!r->runs && !rest(r)) return NULL;
    }
}

void runner_drain(struct runner *r) {
    pthread_mutex_lock(&r->lock);
    r->draining = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

void runner_get_stats(struct runner *r, struct runner_stats *out) {
    uint64_t now = sh_now_ns();
    pthread_mutex_lock(&r->lock);
    bool busy = r->n_runs > 0 || r->queue.n > 0;
    *out = (struct runner_stats){
        .running = r->n_runs,
        .queued = r->queue.n,
        .prompt_tokens = r->prompt_tokens,
        .generated_tokens = r->generated_tokens,
        .draft_tokens = r->draft_tokens,
        .accepted_tokens = r->accepted_tokens,
        .preemptions = r->preemptions,
        .idle_since_ns = busy ? 0 : r->idle_since_ns,
        .step_rows = r->step_rows,
        .steps = r->steps,
        .longest_step_ns = r->longest_step_ns,
        .silence_ns = busy && now > r->progress_ns ? now - r->progress_ns : 0,
    };
    pthread_mutex_unlock(&r->lock);
    sh_context_get_stats(r->context, &out->context);
}

void runner_limit_cache(struct runner *r, uint64_t kv_tokens) {
    pthread_mutex_lock(&r->lock);
    r->cache_limit = kv_tokens;
    pthread_mutex_unlock(&r->lock);
    sh_context_limit(r->context, kv_tokens);
}

static void free_runner(struct runner *r) {
    speculator_destroy(r->speculator);
    sh_context_destroy(r->context);
    free(r->asks);
    free(r->asking);
    for (uint32_t i = 0; i < STEPS; i++) free(r->flights[i].parts);
    session_free(&r->sessions);
    free(r->seats);
    free(r->rows);
    free((char *)r->params.id);
    free(r->stuck);
    free(r);
}

static enum sh_code allocate(struct runner *r, struct sh_error *err) {
    const struct sh_context_params *c = &r->params.context;
    bool complete = r->params.id != NULL;
    r->rows = sh_calloc(c->max_batch_rows, sizeof *r->rows);
    r->seats = sh_calloc(c->max_sequences, sizeof *r->seats);
    r->asks = sh_calloc(c->max_sequences, sizeof *r->asks);
    r->asking = sh_calloc(c->max_sequences, sizeof(struct choice *));
    complete = complete && r->rows && r->seats && r->asks && r->asking;
    for (uint32_t i = 0; i < STEPS; i++) {
        r->flights[i].parts = sh_calloc(c->max_sequences, sizeof *r->flights[i].parts);
        complete = complete && r->flights[i].parts;
    }
    return complete ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a runner");
}

enum sh_code runner_create(struct sh_model *engine, const struct runner_params *params, struct runner **out,
                           struct sh_error *err) {
    struct runner *r = sh_calloc(1, sizeof *r);
    if (!r) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a runner");
    r->params = *params;
    r->params.id = strdup(params->id);
    struct sh_context_params *c = &r->params.context;
    if (c->max_sequences == 0) c->max_sequences = 8;
    if (c->max_batch_rows == 0) c->max_batch_rows = 512;
    if (c->max_outputs == 0) c->max_outputs = c->max_sequences > 64 ? c->max_sequences : 64;
    if (c->max_outputs > c->max_batch_rows) c->max_outputs = c->max_batch_rows;
    r->max_outputs = c->max_outputs;
    sh_model_get_info(engine, &r->info);
    if (c->kv_tokens == 0) c->kv_tokens = r->info.context_length;
    r->engine = engine;
    r->vocab = sh_model_vocab(engine);
    pace_init(&r->pace, params->prefill_chunk < c->max_batch_rows ? params->prefill_chunk : c->max_batch_rows);
    queue_init(&r->queue);
    r->idle_since_ns = sh_now_ns();
    r->cache_limit = UINT64_MAX;
    enum sh_code code = allocate(r, err);
    if (code == SH_OK) code = sh_context_create(engine, c, &r->context, err);
    if (code == SH_OK) code = warm_up(r->context, &r->info, c->max_batch_rows, err);
    const struct speculator_params speculation = {.model = engine,
                                                  .context = c,
                                                  .draft = params->draft,
                                                  .lookup = params->lookup,
                                                  .draft_tokens = params->draft_tokens,
                                                  .id = r->params.id};
    if (code == SH_OK) code = speculator_create(&speculation, &r->speculator, err);
    if (code) goto fail;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->wake, NULL);
    pthread_cond_init(&r->sessions.served, NULL);
    if (pthread_create(&r->thread, NULL, runner_main, r) != 0) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no thread can be made for %s", r->params.id);
        pthread_mutex_destroy(&r->lock);
        pthread_cond_destroy(&r->wake);
        pthread_cond_destroy(&r->sessions.served);
        goto fail;
    }
    *out = r;
    return SH_OK;
fail:
    free_runner(r);
    return code;
}

void runner_destroy(struct runner *r) {
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->draining = r->stopping = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    runner_cancel_all(r, "shutdown");
    pthread_join(r->thread, NULL);
    session_serve(r, true);
    session_leave(r);
    pthread_cond_destroy(&r->sessions.served);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->wake);
    free_runner(r);
}
