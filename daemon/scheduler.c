/* scheduler.c - see scheduler.h. */
#include "daemon/scheduler.h"

#include "compute/base.h"
#include "daemon/constraint.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/scheduler_private.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    ECHO_CHUNK = 16,   /* rows of a step whose logits all come back: at a vocabulary of 128k tokens that is 8 MiB */
    FIRST_CHUNK = 128, /* rows of a model's first prompt step */
    LEAST_CHUNK = 16,
};
/* A prompt's chunks are sized so that a step takes about this long: between steps cancellations are noticed. What is computed
 * does not depend on how a prompt is cut. */
#define STEP_LONG_NS 500000000ull
#define STEP_SHORT_NS 150000000ull

/* One choice of the request that runs. */
struct choice {
    uint32_t sequence;
    bool has_sequence, active;
    struct sh_text_stream *stream;
    uint32_t sampled;   /* rows submitted that sample a token of it, */
    uint32_t received;  /* those whose token the host knows, */
    uint32_t generated; /* and tokens reported */
    uint32_t row;       /* of its last sampling row in that submission */
    uint32_t entered;   /* tokens of it that were submitted as rows */
    int32_t *waiting;   /* [run.share] those known and not submitted yet: received - entered of them */
    struct constraint *constraint; /* NULL: no grammar */
    bool empty; /* its grammar allows nothing but the empty text */
    uint64_t first_ns;
};

struct run { /* one generation being served */
    struct runner *runner;
    struct generation *g;
    struct choice *choices;  /* [n_choices] */
    struct sh_row *rows;     /* [max(chunk, n_choices)] */
    sh_ticket flights[2];    /* submissions not waited for yet, oldest first, */
    uint32_t flight_rows[2]; /* and their rows */
    uint32_t n_flights;
    uint32_t prompt_at, shared; /* prompt rows submitted, and to submit in the first sequence */
    uint32_t chunk_limit;       /* rows in one step */
    bool forked;
    bool overlap_prompt, overlap_decode;
    uint32_t limit; /* tokens per choice */
    uint32_t share; /* of a step's rows, for one choice that is decoded */
    int32_t *end_tokens; /* those that end a choice; only with min_tokens or a grammar */
    uint32_t n_end_tokens;
    uint64_t start_ns;
};

/* ---- the queue --------------------------------------------------------------------------------------- */

enum sh_code runner_enqueue(struct runner *r, struct generation *g, struct sh_error *err) {
    const struct gen_params *p = &g->params;
    if (p->n_texts > 0) {
        const enum sh_code code = embedding_check(r, p, err);
        if (code) return code;
    } else if (!r->info.has_logits) {
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "%s is an embedding model, which continues no text: ask it for embeddings (/v1/embeddings, shimmyctl embed)",
                       r->params.id);
    }
    if (p->n_texts == 0 && p->n_prompt > r->info.context_length)
        return sh_fail(
            err, SH_ERR_LIMIT,
            "the prompt has %u tokens, the context of %s holds %u: shorten it, or load the model with a longer context",
            p->n_prompt, r->params.id, r->info.context_length);
    if (p->n_choices > r->params.context.max_sequences)
        return sh_fail(err, SH_ERR_INVALID, "%u choices are wanted, at most %u are computed at once (option max_sequences)",
                       p->n_choices, r->params.context.max_sequences);
    for (uint32_t i = 0; i < p->n_prompt; i++)
        if (p->prompt[i] < 0 || (uint32_t)p->prompt[i] >= r->info.n_vocab)
            return sh_fail(err, SH_ERR_INVALID, "prompt token %u is %d: the vocabulary of %s has ids 0 to %u", i, p->prompt[i],
                           r->params.id, r->info.n_vocab - 1);
    for (uint32_t i = 0; i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] < 0 || (uint32_t)p->stop_tokens[i] >= r->info.n_vocab)
            return sh_fail(err, SH_ERR_INVALID, "stop token %u is %d: the vocabulary of %s has ids 0 to %u", i, p->stop_tokens[i],
                           r->params.id, r->info.n_vocab - 1);
    /* It was compiled before the model was loaded: a file that was replaced in between may have another vocabulary. */
    if (p->grammar && sh_grammar_n_vocab(p->grammar) != r->info.n_vocab)
        return sh_fail(err, SH_ERR_INVALID,
                       "the grammar is for a vocabulary of %u tokens, that of %s has %u: its file was replaced; send the request "
                       "again",
                       sh_grammar_n_vocab(p->grammar), r->params.id, r->info.n_vocab);

    enum sh_code code = SH_OK;
    pthread_mutex_lock(&g->lock);
    pthread_mutex_lock(&r->lock);
    if (r->lost) {
        code = sh_fail(err, SH_ERR_DEVICE_LOST, "the device of %s is lost", r->params.id);
    } else if (r->draining || r->stopping) {
        code = sh_fail(err, SH_ERR_NOT_FOUND, "%s is being unloaded", r->params.id);
    } else if (r->n_queued > 0 && r->n_queued >= r->params.max_queue + (r->current ? 0u : 1u)) {
        code = sh_fail(err, SH_ERR_BUSY, "%u requests wait for %s already (option max_queue): try again later", r->n_queued,
                       r->params.id);
    } else if (r->current && r->params.max_queue == 0) {
        code = sh_fail(err, SH_ERR_BUSY, "%s is busy and no request may wait (option max_queue is 0): try again later",
                       r->params.id);
    } else {
        atomic_fetch_add(&g->refs, 1);
        g->runner = r;
        g->queued = true;
        g->next_queued = NULL;
        *r->queue_end = g;
        r->queue_end = &g->next_queued;
        r->n_queued++;
        if (!r->current && r->n_queued == 1) r->progress_ns = sh_now_ns();
        r->idle_since_ns = 0;
        metric_add(METRIC_REQUESTS_QUEUED, NULL, 1);
        pthread_cond_signal(&r->wake);
    }
    pthread_mutex_unlock(&r->lock);
    pthread_mutex_unlock(&g->lock);
    return code;
}

/* Out of the queue; the lock is held. */
static void unlink_locked(struct runner *r, struct generation *g) {
    struct generation **at = &r->queue;
    while (*at != g) at = &(*at)->next_queued;
    *at = g->next_queued;
    if (!*at) r->queue_end = at;
    g->queued = false;
    r->n_queued--;
    metric_add(METRIC_REQUESTS_QUEUED, NULL, -1);
}

bool runner_dequeue(struct runner *r, struct generation *g, bool hand_over) {
    pthread_mutex_lock(&r->lock);
    bool was_queued = g->queued;
    if (was_queued) {
        unlink_locked(r, g);
        if (hand_over) {
            g->next_queued = r->dropped;
            r->dropped = g;
        }
        pthread_cond_signal(&r->wake);
    }
    pthread_mutex_unlock(&r->lock);
    return was_queued && !hand_over;
}

void runner_drain(struct runner *r) {
    pthread_mutex_lock(&r->lock);
    r->draining = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

void runner_cancel_all(struct runner *r, const char *reason) {
    pthread_mutex_lock(&r->lock);
    uint32_t count = r->n_queued + (r->current ? 1 : 0), n = 0;
    struct generation **all = sh_calloc(count + 1ull, sizeof *all);
    for (struct generation *g = r->queue; g && all; g = g->next_queued) all[n++] = g;
    if (r->current && all) all[n++] = r->current;
    for (uint32_t i = 0; i < n; i++) atomic_fetch_add(&all[i]->refs, 1);
    pthread_mutex_unlock(&r->lock);
    for (uint32_t i = 0; i < n; i++) { /* their locks come before ours */
        gen_cancel(all[i], reason);
        gen_unref(all[i]);
    }
    free(all);
}

void runner_get_stats(struct runner *r, struct runner_stats *out) {
    uint64_t now = sh_now_ns();
    pthread_mutex_lock(&r->lock);
    bool busy = r->current || r->n_queued;
    *out = (struct runner_stats){
        .running = r->current ? 1 : 0,
        .queued = r->n_queued,
        .prompt_tokens = r->prompt_tokens,
        .generated_tokens = r->generated_tokens,
        .idle_since_ns = busy ? 0 : r->idle_since_ns,
        .silence_ns = busy && now > r->progress_ns ? now - r->progress_ns : 0,
    };
    pthread_mutex_unlock(&r->lock);
    sh_context_get_stats(r->context, &out->context);
}

/* Ends generations that were cancelled in the queue, and those whose time is over. */
static void sweep_queue(struct runner *r) {
    uint64_t now = sh_now_ns();
    pthread_mutex_lock(&r->lock);
    struct generation *ended = r->dropped, *expired = NULL, *next;
    r->dropped = NULL;
    for (struct generation *g = r->queue; g; g = next) {
        next = g->next_queued;
        if (g->params.deadline_ns == 0 || g->params.deadline_ns > now) continue;
        unlink_locked(r, g);
        g->next_queued = expired;
        expired = g;
    }
    pthread_mutex_unlock(&r->lock);
    for (; expired; expired = next) {
        next = expired->next_queued;
        gen_mark_cancelled(expired, "deadline");
        gen_end(expired, GEN_CANCELLED, NULL);
        gen_unref(expired);
    }
    for (; ended; ended = next) {
        next = ended->next_queued;
        gen_end(ended, GEN_CANCELLED, NULL);
        gen_unref(ended);
    }
}

/* ---- tokens ------------------------------------------------------------------------------------------ */

static void push_text(struct run *run, enum gen_event_kind kind, uint32_t index, int32_t token, const char *text, size_t length,
                      struct gen_logprob *logprob, enum gen_finish finish, int32_t stop_index) {
    struct gen_event event = {
        .kind = kind, .choice = index, .token = token, .logprob = logprob, .finish = finish, .stop_index = stop_index};
    event.text = malloc(length + 1);
    if (event.text) {
        if (length) memcpy(event.text, text, length);
        event.text[length] = 0;
        event.text_length = length;
        gen_push(run->g, &event);
    } else {
        free(logprob);
        gen_mark_cancelled(run->g, "no memory");
    }
}

static struct gen_logprob *logprob_of_row(const float *logits, uint32_t n_vocab, int32_t token, uint32_t n_top) {
    struct gen_logprob *out = sh_calloc(1, sizeof *out);
    if (!out) return NULL;
    out->token = token;
    out->n_top = n_top < n_vocab ? n_top : n_vocab;
    sh_logprobs(logits, n_vocab, token, &out->logprob, out->top, out->n_top);
    return out;
}

static struct gen_logprob *logprob_of_result(const struct sh_result *result) {
    struct gen_logprob *out = sh_calloc(1, sizeof *out);
    if (!out) return NULL;
    out->token = result->token;
    out->logprob = result->logprob;
    out->n_top = result->n_top;
    for (uint32_t i = 0; i < result->n_top; i++) out->top[i] = result->top[i];
    return out;
}

static void drop_sequence(struct run *run, struct choice *choice) {
    if (choice->has_sequence) sh_sequence_destroy(run->runner->context, choice->sequence);
    choice->has_sequence = false;
}

static void finish_choice(struct run *run, uint32_t index, enum gen_finish finish, int32_t stop_index) {
    struct choice *choice = &run->choices[index];
    const char *text = "";
    size_t length = 0;
    if (stop_index < 0) sh_text_stream_finish(choice->stream, &text, &length);
    push_text(run, GEN_EVENT_CHOICE, index, -1, text, length, NULL, finish, stop_index);
    choice->active = false;
    drop_sequence(run, choice);
    if (choice->generated > 1)
        metric_observe(METRIC_TIME_PER_OUTPUT_TOKEN, NULL,
                       (double)(sh_now_ns() - choice->first_ns) / 1e9 / (choice->generated - 1));
}

static bool ends_choice(const struct runner *r, const struct gen_params *p, int32_t token) {
    for (uint32_t i = 0; i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] == token) return true;
    return !p->ignore_eos && sh_vocab_is_end(r->vocab, token);
}

/* What becomes of a token: an event, and perhaps the end of the choice. `result` is NULL for one that was not sampled. */
static enum sh_code take_token(struct run *run, uint32_t index, int32_t token, const struct sh_result *result, struct sh_error *err) {
    struct runner *r = run->runner;
    struct generation *g = run->g;
    struct choice *choice = &run->choices[index];
    if (choice->received >= choice->entered) choice->waiting[choice->received - choice->entered] = token;
    choice->received++;
    if (ends_choice(r, &g->params, token)) {
        finish_choice(run, index, GEN_STOP, -1);
        return SH_OK;
    }
    enum sh_code code = choice->constraint ? constraint_accept(choice->constraint, token, err) : SH_OK;
    if (code) return code;

    uint64_t now = sh_now_ns();
    if (choice->generated++ == 0) choice->first_ns = now;
    pthread_mutex_lock(&g->lock);
    bool first = g->usage.completion_tokens++ == 0;
    if (first) {
        g->usage.first_token_ns = now - g->submitted_ns;
        g->usage.prefill_ns = now - run->start_ns;
    } else {
        g->usage.decode_ns = now - run->start_ns - g->usage.prefill_ns;
    }
    pthread_mutex_unlock(&g->lock);
    if (first) metric_observe(METRIC_TIME_TO_FIRST_TOKEN, NULL, (double)(now - g->submitted_ns) / 1e9);
    const char *const labels[] = {r->params.id};
    metric_add(METRIC_GENERATED_TOKENS, labels, 1);
    if (!result) metric_add(METRIC_FORCED_TOKENS, labels, 1);
    pthread_mutex_lock(&r->lock);
    r->generated_tokens++;
    pthread_mutex_unlock(&r->lock);

    const char *text;
    size_t length;
    uint32_t stop_index = 0;
    sh_text_stream_hold_off_stops(choice->stream, choice->generated <= g->params.sampler.min_tokens);
    bool stopped = sh_text_stream_push(choice->stream, token, &text, &length, &stop_index);
    struct gen_logprob *logprob = g->params.logprobs && result ? logprob_of_result(result) : NULL;
    push_text(run, GEN_EVENT_TOKEN, index, token, text, length, logprob, GEN_RUNNING, -1);
    if (stopped) finish_choice(run, index, GEN_STOP, (int32_t)stop_index);
    else if (choice->generated >= run->limit) finish_choice(run, index, GEN_LENGTH, -1);
    return SH_OK;
}

/* The tokens that the grammar leaves no choice about, as many as fit the next step. Then the choice is finished, or *mask is what its
 * next token is sampled under, or that is NULL: more such tokens follow, so the step's last row samples nothing. */
static enum sh_code take_forced(struct run *run, uint32_t index, uint32_t share, const uint32_t **mask, struct sh_error *err) {
    struct choice *choice = &run->choices[index];
    struct constraint_next next;
    *mask = NULL;
    while (choice->active) {
        enum sh_code code = constraint_next(choice->constraint, &next, err);
        if (code) return code;
        if (next.kind == CONSTRAINT_END) {
            finish_choice(run, index, GEN_STOP, -1);
        } else if (next.kind == CONSTRAINT_SAMPLE || run->g->params.logprobs) {
            *mask = next.mask;
            return SH_OK;
        } else {
            if (choice->received - choice->entered >= share) return SH_OK;
            choice->sampled++;
            code = take_token(run, index, next.token, NULL, err);
            if (code) return code;
        }
    }
    return SH_OK;
}

/* ---- steps ------------------------------------------------------------------------------------------- */

bool runner_may_continue(struct runner *r, struct generation *g) {
    sweep_queue(r);
    if (g->params.deadline_ns && sh_now_ns() >= g->params.deadline_ns) gen_mark_cancelled(g, "deadline");
    return !atomic_load(&g->cancelled);
}

/* Makes a choice's row sample its next token. */
static void set_sampling(const struct run *run, struct choice *choice, struct sh_row *row, const uint32_t *mask) {
    const struct gen_params *p = &run->g->params;
    row->outputs = SH_OUT_SAMPLE | (p->logprobs ? SH_OUT_LOGPROBS : 0u);
    row->n_top = p->logprobs ? p->n_top : 0;
    row->mask = mask;
    choice->sampled++;
    choice->row = (uint32_t)(row - run->rows);
}

/* The prompt's last row, which samples a choice's first token. It does so even if there is but one, since it has to be computed anyway. */
static enum sh_code first_row(struct run *run, struct choice *choice, uint32_t at, struct sh_error *err) {
    const uint32_t position = run->g->params.n_prompt - 1;
    struct constraint_next next = {.kind = CONSTRAINT_SAMPLE};
    if (choice->constraint) {
        enum sh_code code = constraint_next(choice->constraint, &next, err);
        if (code) return code;
        choice->empty = next.kind == CONSTRAINT_END;
    }
    run->rows[at] = (struct sh_row){.sequence = choice->sequence,
                                    .role = SH_ROLE_PROMPT,
                                    .position = position,
                                    .input = SH_INPUT_TOKEN,
                                    .token = run->g->params.prompt[position]};
    set_sampling(run, choice, &run->rows[at], next.mask);
    return SH_OK;
}

void runner_count_prompt(struct runner *r, uint32_t tokens) {
    const char *const labels[] = {r->params.id};
    metric_add(METRIC_PROMPT_TOKENS, labels, tokens);
    pthread_mutex_lock(&r->lock);
    r->prompt_tokens += tokens;
    pthread_mutex_unlock(&r->lock);
}

/* The next chunk of the prompt, in the first choice's sequence. With one choice the last token is among it and samples; with
 * more it is left to fork_rows. */
static enum sh_code prompt_rows(struct run *run, uint32_t *n_rows, struct sh_error *err) {
    struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    uint32_t n = r->chunk < run->chunk_limit ? r->chunk : run->chunk_limit;
    if (n > run->shared - run->prompt_at) n = run->shared - run->prompt_at;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t position = run->prompt_at + i;
        struct sh_row *row = &run->rows[i];
        if (position + 1 == p->n_prompt) {
            enum sh_code code = first_row(run, &run->choices[0], i, err);
            if (code) return code;
            continue;
        }
        *row = (struct sh_row){.sequence = run->choices[0].sequence,
                               .role = SH_ROLE_PROMPT,
                               .position = position,
                               .input = SH_INPUT_TOKEN,
                               .token = p->prompt[position]};
        if (p->echo_logprobs) row->outputs = SH_OUT_LOGITS;
    }
    run->prompt_at += n;
    runner_count_prompt(r, n);
    *n_rows = n;
    return SH_OK;
}

/* Every choice shares the prompt's pages but for its last token, which is computed for each because each samples from it. */
static enum sh_code fork_rows(struct run *run, uint32_t *n_rows, struct sh_error *err) {
    const struct gen_params *p = &run->g->params;
    for (uint32_t i = 0; i < p->n_choices; i++) {
        struct choice *choice = &run->choices[i];
        if (i > 0 && run->shared > 0) {
            enum sh_code code =
                sh_sequence_copy(run->runner->context, choice->sequence, run->choices[0].sequence, run->shared, err);
            if (code) return code;
        }
        enum sh_code code = first_row(run, choice, i, err);
        if (code) return code;
    }
    run->forked = true;
    runner_count_prompt(run->runner, 1); /* as in the usage: the prompt counts once */
    *n_rows = p->n_choices;
    return SH_OK;
}

/* One token for each choice that goes on, and before it those that came without sampling. A token that is still being sampled on the
 * device is named by its submission and row. */
static enum sh_code decode_rows(struct run *run, uint32_t *n_rows, struct sh_error *err) {
    uint32_t share = run->runner->chunk / run->g->params.n_choices, n = 0;
    if (share > run->share) share = run->share;
    for (uint32_t i = 0; i < run->g->params.n_choices; i++) {
        struct choice *choice = &run->choices[i];
        const uint32_t *mask = NULL;
        if (!choice->active || choice->sampled >= run->limit) continue;
        if (choice->constraint) {
            enum sh_code code = take_forced(run, i, share > 0 ? share : 1, &mask, err);
            if (code) return code;
            if (!choice->active) continue;
        }
        uint32_t waiting = choice->received - choice->entered;
        for (uint32_t k = 0; k < (waiting > 0 ? waiting : 1); k++) {
            struct sh_row *row = &run->rows[n++];
            *row = (struct sh_row){.sequence = choice->sequence,
                                   .role = SH_ROLE_GENERATED,
                                   .position = run->g->params.n_prompt + choice->entered++};
            if (waiting > 0) {
                row->input = SH_INPUT_TOKEN;
                row->token = choice->waiting[k];
            } else {
                row->input = SH_INPUT_SAMPLED;
                row->ticket = run->flights[run->n_flights - 1];
                row->sampled_row = choice->row;
            }
        }
        if (!choice->constraint || mask) set_sampling(run, choice, &run->rows[n - 1], mask);
    }
    *n_rows = n;
    return SH_OK;
}

/* The rows of the next submission; 0: what is in flight has to come back first, or all is done. */
static enum sh_code next_rows(struct run *run, uint32_t *n_rows, struct sh_error *err) {
    *n_rows = 0;
    bool busy = run->n_flights > 0;
    if (run->prompt_at < run->shared) {
        return !busy || run->overlap_prompt ? prompt_rows(run, n_rows, err) : SH_OK;
    }
    if (run->g->params.n_choices > 1 && !run->forked) return busy ? SH_OK : fork_rows(run, n_rows, err);
    return !busy || run->overlap_decode ? decode_rows(run, n_rows, err) : SH_OK;
}

static enum sh_code not_numbers(const struct sh_result *result, struct sh_error *err) {
    return sh_fail(err, SH_ERR_DEVICE,
                   "the logits for position %u are not numbers: the model's weights or the device are at fault",
                   result->position + 1);
}

static enum sh_code take_results(struct run *run, const struct sh_results *results, struct sh_error *err) {
    const struct gen_params *p = &run->g->params;
    for (uint32_t i = 0; i < results->count; i++) {
        const struct sh_result *result = &results->items[i];
        if (result->token < 0 && result->logits) { /* echo_logprobs: how probable was the prompt's next token? */
            int32_t next = p->prompt[result->position + 1];
            struct gen_logprob *logprob = logprob_of_row(result->logits, run->runner->info.n_vocab, next, p->n_top);
            if (logprob && isnan(logprob->logprob)) {
                free(logprob);
                return not_numbers(result, err);
            }
            push_text(run, GEN_EVENT_PROMPT, 0, next, "", 0, logprob, GEN_RUNNING, -1);
            continue;
        }
        for (uint32_t c = 0; c < p->n_choices; c++) {
            if (run->choices[c].sequence != result->sequence) continue;
            if (!run->choices[c].active) continue; /* a step that was under way when the choice ended */
            if (run->choices[c].empty) {
                finish_choice(run, c, GEN_STOP, -1);
                continue;
            }
            if (result->token < 0) return not_numbers(result, err);
            enum sh_code code = take_token(run, c, result->token, result, err);
            if (code) return code;
        }
    }
    return SH_OK;
}

void runner_step_done(struct runner *r, uint32_t rows, uint64_t step_ns) {
    /* of a whole chunk: was it of a good length? */
    if (rows >= r->chunk && step_ns > STEP_LONG_NS) r->chunk = r->chunk / 2 > LEAST_CHUNK ? r->chunk / 2 : LEAST_CHUNK;
    else if (rows == r->chunk && step_ns < STEP_SHORT_NS) r->chunk *= 2;
    if (r->chunk > r->params.prefill_chunk) r->chunk = r->params.prefill_chunk;
    pthread_mutex_lock(&r->lock);
    r->progress_ns = sh_now_ns();
    pthread_mutex_unlock(&r->lock);
}

static enum sh_code wait_oldest(struct run *run, struct sh_results *results, struct sh_error *err) {
    struct runner *r = run->runner;
    enum sh_code code = sh_wait(r->context, run->flights[0], -1, results, err);
    runner_step_done(r, run->flight_rows[0], code == SH_OK ? results->step_ns : STEP_SHORT_NS);
    run->flights[0] = run->flights[1];
    run->flight_rows[0] = run->flight_rows[1];
    run->n_flights--;
    return code;
}

static enum sh_code run_steps(struct run *run, struct sh_error *err) {
    for (;;) {
        if (!runner_may_continue(run->runner, run->g)) return SH_ERR_CANCELLED;
        while (run->n_flights < SH_COUNT(run->flights)) {
            uint32_t n_rows;
            enum sh_code code = next_rows(run, &n_rows, err);
            if (code == SH_OK && n_rows > 0)
                code = sh_submit(run->runner->context, &(struct sh_batch){run->rows, n_rows}, &run->flights[run->n_flights], err);
            if (code) return code;
            if (n_rows == 0) break;
            run->flight_rows[run->n_flights++] = n_rows;
        }
        if (run->n_flights == 0) return SH_OK;
        struct sh_results results;
        enum sh_code code = wait_oldest(run, &results, err);
        if (code == SH_OK) code = take_results(run, &results, err);
        if (code) return code;
    }
}

/* ---- one generation ---------------------------------------------------------------------------------- */

/* Whether the device can draw the token by itself, so that the host need not see the logits between two steps. */
static bool sampling_is_plain(const struct gen_params *p) {
    const struct sh_sampler_params *s = &p->sampler;
    bool cut = s->top_k != 0 || (s->top_p > 0 && s->top_p < 1) || s->min_p > 0 || s->top_n_sigma > 0 ||
               (s->typical_p > 0 && s->typical_p < 1) || s->xtc_probability > 0 || s->mirostat != 0;
    bool penalised = (s->repeat_penalty > 0 && s->repeat_penalty != 1) || s->frequency_penalty != 0 || s->presence_penalty != 0;
    bool forbidden = s->min_tokens > 0 || p->n_bad_words > 0;
    return (s->temperature <= 0 || !cut) && !penalised && s->dry_multiplier <= 0 && !forbidden && s->n_bias == 0 && !p->logprobs;
}

/* The request's texts and ends as the tokens that the sampler takes. `sampler` points into *run and *lists from then on. */
static enum sh_code sampler_tokens(struct run *run, struct sh_sampler_params *sampler, struct sh_token_lists lists[2],
                                   struct sh_error *err) {
    const struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    enum sh_code code = sh_bad_words(r->vocab, p->bad_words, p->n_bad_words, &lists[0], err);
    if (code == SH_OK && sampler->dry_multiplier > 0)
        code = sh_dry_breakers(r->vocab, p->dry_breakers, p->n_dry_breakers, &lists[1], err);
    if (code) return code;
    sampler->bad_words = lists[0];
    sampler->dry_breakers = lists[1];
    if (sampler->min_tokens == 0 && !p->grammar) return SH_OK;
    run->end_tokens = sh_calloc(r->info.n_vocab, sizeof *run->end_tokens);
    if (!run->end_tokens) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    for (uint32_t t = 0; t < r->info.n_vocab; t++)
        if (ends_choice(r, p, (int32_t)t)) run->end_tokens[run->n_end_tokens++] = (int32_t)t;
    sampler->end_tokens = run->end_tokens;
    sampler->n_end_tokens = run->n_end_tokens;
    return SH_OK;
}

static enum sh_code start_choices(struct run *run, const struct sh_sampler_params *params, struct sh_error *err) {
    struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    for (uint32_t i = 0; i < p->n_choices; i++) {
        struct choice *choice = &run->choices[i];
        struct sh_sampler_params sampler = *params;
        sampler.choice = i;
        enum sh_code code = sh_sequence_create(r->context, &choice->sequence, err);
        if (code == SH_OK) {
            choice->has_sequence = true;
            code = sh_sequence_set_sampler(r->context, choice->sequence, &sampler, err);
        }
        if (code == SH_OK) code = sh_text_stream_create(r->vocab, p->stops, p->n_stops, p->special, &choice->stream, err);
        if (code == SH_OK) code = sh_text_stream_show(choice->stream, p->shown, p->n_shown, err);
        if (code == SH_OK && p->grammar)
            code = constraint_create(p->grammar, r->info.n_vocab, run->end_tokens, run->n_end_tokens, &choice->constraint, err);
        if (code) return code;
        choice->waiting = sh_calloc(run->share, sizeof *choice->waiting);
        if (!choice->waiting) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
        choice->active = true;
    }
    return SH_OK;
}

static enum sh_code prepare(struct run *run, struct sh_error *err) {
    struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    uint32_t room = r->info.context_length - p->n_prompt + 1; /* the last token sampled need not be stored */
    run->limit = p->max_tokens > 0 && p->max_tokens < room ? p->max_tokens : room;
    run->shared = p->n_choices == 1 ? p->n_prompt : p->n_prompt - 1;
    run->chunk_limit = p->echo_logprobs && r->params.prefill_chunk > ECHO_CHUNK ? ECHO_CHUNK : r->params.prefill_chunk;
    run->overlap_prompt = r->params.overlap && !p->echo_logprobs;
    /* What a grammar allows next is known when the token before it is. */
    run->overlap_decode = r->params.overlap && sampling_is_plain(p) && !p->grammar;
    run->share = p->grammar && run->chunk_limit > p->n_choices ? run->chunk_limit / p->n_choices : 1;
    run->rows = sh_calloc(run->chunk_limit > p->n_choices ? run->chunk_limit : p->n_choices, sizeof *run->rows);
    run->choices = sh_calloc(p->n_choices, sizeof *run->choices);
    if (!run->rows || !run->choices) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");

    struct sh_sampler_params sampler = p->sampler;
    struct sh_token_lists lists[2] = {0};
    sampler.size = sizeof sampler;
    enum sh_code code = sampler_tokens(run, &sampler, lists, err);
    if (code == SH_OK) code = start_choices(run, &sampler, err);
    for (size_t i = 0; i < SH_COUNT(lists); i++) sh_token_lists_finish(&lists[i]);
    if (code) return code;
    if (p->echo_logprobs) push_text(run, GEN_EVENT_PROMPT, 0, p->prompt[0], "", 0, NULL, GEN_RUNNING, -1);
    return SH_OK;
}

static void serve(struct runner *r, struct generation *g) {
    struct run run = {.runner = r, .g = g, .start_ns = sh_now_ns()};
    struct sh_error err = {0};
    pthread_mutex_lock(&g->lock);
    g->usage.queued_ns = run.start_ns - g->submitted_ns;
    pthread_mutex_unlock(&g->lock);
    push_text(&run, GEN_EVENT_STARTED, 0, -1, "", 0, NULL, GEN_RUNNING, -1);

    enum sh_code code;
    if (g->params.n_texts > 0) {
        code = embedding_serve(r, g, &err);
        pthread_mutex_lock(&g->lock);
        g->usage.prefill_ns = sh_now_ns() - run.start_ns;
        pthread_mutex_unlock(&g->lock);
    } else {
        code = prepare(&run, &err);
        if (code == SH_OK) code = run_steps(&run, &err);
    }
    while (run.n_flights > 0) { /* after an error or a cancellation: nobody wants what is still under way */
        struct sh_results ignored;
        enum sh_code late = wait_oldest(&run, &ignored, NULL);
        if (late == SH_ERR_DEVICE_LOST) code = late;
    }
    for (uint32_t i = 0; run.choices && i < g->params.n_choices; i++) {
        drop_sequence(&run, &run.choices[i]);
        sh_text_stream_destroy(run.choices[i].stream);
        constraint_destroy(run.choices[i].constraint);
        free(run.choices[i].waiting);
    }
    free(run.choices);
    free(run.rows);
    free(run.end_tokens);

    /* Before the front end hears of the end, so that what it looks at next (metrics, Status) no longer counts this one. */
    pthread_mutex_lock(&r->lock);
    r->current = NULL;
    if (code == SH_ERR_DEVICE_LOST) r->lost = true;
    pthread_mutex_unlock(&r->lock);
    metric_add(METRIC_REQUESTS_RUNNING, NULL, -1);

    struct gen_usage usage;
    gen_get_usage(g, &usage);
    log_write(SH_LOG_DEBUG, r->params.id, "request %llu: %s, %u prompt tokens and %u generated in %.3f s",
              (unsigned long long)g->id, code == SH_OK ? "done" : sh_code_name(code), usage.prompt_tokens,
              usage.completion_tokens, (double)(sh_now_ns() - run.start_ns) / 1e9);
    if (code == SH_OK) {
        gen_end(g, GEN_STOP, NULL);
    } else if (code == SH_ERR_CANCELLED) {
        gen_end(g, GEN_CANCELLED, NULL);
    } else {
        log_write(SH_LOG_WARNING, r->params.id, "request %llu failed: %s", (unsigned long long)g->id, err.message);
        gen_end(g, GEN_FAILED, &err);
    }
    gen_unref(g);
    if (code == SH_ERR_DEVICE_LOST) r->params.lost(r->params.user, &err);
}

/* ---- the thread -------------------------------------------------------------------------------------- */

static void *runner_main(void *user) {
    struct runner *r = user;
    for (;;) {
        sweep_queue(r);
        pthread_mutex_lock(&r->lock);
        struct generation *g = r->queue;
        if (!g && !r->dropped) {
            if (r->idle_since_ns == 0) {
                r->idle_since_ns = sh_now_ns();
                pthread_mutex_unlock(&r->lock);
                r->params.idle(r->params.user);
                continue;
            }
            if (r->stopping) {
                pthread_mutex_unlock(&r->lock);
                return NULL;
            }
            pthread_cond_wait(&r->wake, &r->lock);
            g = NULL;
        } else if (g) {
            unlink_locked(r, g);
            r->current = g;
            r->progress_ns = sh_now_ns();
            metric_add(METRIC_REQUESTS_RUNNING, NULL, 1);
        }
        pthread_mutex_unlock(&r->lock);
        if (g) serve(r, g);
    }
}

enum sh_code runner_create(struct sh_model *engine, const struct runner_params *params, struct runner **out,
                           struct sh_error *err) {
    struct runner *r = sh_calloc(1, sizeof *r);
    char *id = strdup(params->id);
    enum sh_code code = SH_OK;
    if (!r || !id) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a runner");
        goto fail;
    }
    r->params = *params;
    r->params.id = id;
    r->engine = engine;
    r->vocab = sh_model_vocab(engine);
    r->chunk = params->prefill_chunk < FIRST_CHUNK ? params->prefill_chunk : FIRST_CHUNK;
    sh_model_get_info(engine, &r->info);
    r->queue_end = &r->queue;
    r->idle_since_ns = sh_now_ns();
    code = sh_context_create(engine, &params->context, &r->context, err);
    if (code) goto fail;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->wake, NULL);
    if (pthread_create(&r->thread, NULL, runner_main, r) != 0) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no thread can be made for %s", id);
        pthread_mutex_destroy(&r->lock);
        pthread_cond_destroy(&r->wake);
        goto fail;
    }
    *out = r;
    return SH_OK;
fail:
    if (r) sh_context_destroy(r->context);
    free(id);
    free(r);
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
    sh_context_destroy(r->context);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->wake);
    free((char *)r->params.id);
    free(r);
}
