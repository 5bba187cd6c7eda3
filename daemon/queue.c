/*
 * queue.c - the generations that wait for a runner, in order of arrival, and whose turn it is: normal priority before low; within a priority the
 * client whose last turn is longest ago, one that had none first; of a client the oldest. So a client that sends a thousand requests delays its own.
 */
#include "compute/base.h"
#include "daemon/metrics.h"
#include "daemon/scheduler_private.h"

#include <stdlib.h>

void queue_init(struct queue *queue) { queue->end = &queue->first; }

uint32_t queue_sequences_of(const struct generation *g) { return g->params.n_texts > 0 ? 1 : g->params.n_choices; }

/* ---- asking for tokens: any thread ------------------------------------------------------------------------ */

static enum sh_code check_tokens(const struct runner *r, const char *what, const int32_t *tokens, uint32_t n, struct sh_error *err) {
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= r->info.n_vocab)
            return sh_fail(err, SH_ERR_INVALID, "%s token %u is %d: the vocabulary of %s has ids 0 to %u", what, i, tokens[i],
                           r->params.id, r->info.n_vocab - 1);
    return SH_OK;
}

static enum sh_code check(const struct runner *r, const struct gen_params *p, struct sh_error *err) {
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
    enum sh_code code = check_tokens(r, "prompt", p->prompt, p->n_prompt, err);
    if (code == SH_OK) code = check_tokens(r, "stop", p->stop_tokens, p->n_stop_tokens, err);
    if (code) return code;
    /* It was compiled before the model was loaded: a file that was replaced in between may have another vocabulary. */
    if (p->grammar && sh_grammar_n_vocab(p->grammar) != r->info.n_vocab)
        return sh_fail(err, SH_ERR_INVALID,
                       "the grammar is for a vocabulary of %u tokens, that of %s has %u: its file was replaced; send the request "
                       "again",
                       sh_grammar_n_vocab(p->grammar), r->params.id, r->info.n_vocab);
    return SH_OK;
}

/* One that can be admitted at once does not wait, as far as sequences tell. The lock is held. */
static enum sh_code find_room(const struct runner *r, const struct generation *g, struct sh_error *err) {
    const struct queue *queue = &r->queue;
    if (r->n_seats + queue->n_sequences + queue_sequences_of(g) <= r->params.context.max_sequences) return SH_OK;
    if (queue->n < r->params.max_queue) return SH_OK;
    if (r->params.max_queue == 0)
        return sh_fail(err, SH_ERR_BUSY, "%s is busy and no request may wait (option max_queue is 0): try again later",
                       r->params.id);
    return sh_fail(err, SH_ERR_BUSY, "%u requests wait for %s already (option max_queue): try again later", queue->n, r->params.id);
}

enum sh_code runner_enqueue(struct runner *r, struct generation *g, struct sh_error *err) {
    enum sh_code code = check(r, &g->params, err);
    if (code) return code;
    pthread_mutex_lock(&g->lock);
    pthread_mutex_lock(&r->lock);
    if (r->lost) code = sh_fail(err, SH_ERR_DEVICE_LOST, "the device of %s is lost", r->params.id);
    else if (r->draining || r->stopping) code = sh_fail(err, SH_ERR_NOT_FOUND, "%s is being unloaded", r->params.id);
    else if (r->stuck) code = sh_fail(err, SH_ERR_DEVICE, "%s", r->stuck);
    else code = find_room(r, g, err);
    if (code == SH_OK) {
        struct queue *queue = &r->queue;
        atomic_fetch_add(&g->refs, 1);
        g->runner = r;
        g->queued = true;
        g->next_queued = NULL;
        *queue->end = g;
        queue->end = &g->next_queued;
        queue->n_sequences += queue_sequences_of(g);
        if (r->n_runs == 0 && queue->n == 0) r->progress_ns = sh_now_ns();
        queue->n++;
        r->idle_since_ns = 0;
        metric_add(METRIC_GENERATIONS_ACCEPTED, NULL, 1);
        metric_add(METRIC_REQUESTS_QUEUED, NULL, 1);
        pthread_cond_signal(&r->wake);
    }
    pthread_mutex_unlock(&r->lock);
    pthread_mutex_unlock(&g->lock);
    return code;
}

/* Out of the queue; the lock is held. */
static void unlink_locked(struct runner *r, struct generation *g) {
    struct queue *queue = &r->queue;
    struct generation **at = &queue->first;
    while (*at != g) at = &(*at)->next_queued;
    *at = g->next_queued;
    if (!*at) queue->end = at;
    g->queued = false;
    queue->n--;
    queue->n_sequences -= queue_sequences_of(g);
    metric_add(METRIC_REQUESTS_QUEUED, NULL, -1);
}

bool runner_dequeue(struct runner *r, struct generation *g, bool hand_over) {
    pthread_mutex_lock(&r->lock);
    bool was_queued = g->queued;
    if (was_queued) {
        unlink_locked(r, g);
        if (hand_over) {
            g->next_queued = r->queue.dropped;
            r->queue.dropped = g;
        }
        pthread_cond_signal(&r->wake);
    }
    pthread_mutex_unlock(&r->lock);
    return was_queued && !hand_over;
}

/* All that waits and runs, with references; malloc'd, with room for what was dropped, too. The lock is held. */
static struct generation **all_locked(struct runner *r, uint32_t *n) {
    uint64_t count = r->queue.n + r->n_runs + 1ull;
    for (struct generation *g = r->queue.dropped; g; g = g->next_queued) count++;
    struct generation **all = sh_calloc(count, sizeof *all);
    *n = 0;
    for (struct generation *g = r->queue.first; g && all; g = g->next_queued) all[(*n)++] = g;
    for (struct run *run = r->runs; run && all; run = run->next) all[(*n)++] = run->g;
    if (r->beginning && all) all[(*n)++] = r->beginning;
    for (uint32_t i = 0; i < *n; i++) atomic_fetch_add(&all[i]->refs, 1);
    return all;
}

struct generation **runner_set_stuck(struct runner *r, const char *reason, uint32_t *n) {
    struct generation **all = NULL;
    *n = 0;
    pthread_mutex_lock(&r->lock);
    free(r->stuck);
    r->stuck = reason ? strdup(reason) : NULL;
    if (reason) all = all_locked(r, n);
    for (struct generation *g = r->queue.dropped; g && all; g = g->next_queued) all[(*n)++] = g; /* with the queue's reference */
    if (all) r->queue.dropped = NULL;
    if (reason) session_fail_locked(r, reason);
    pthread_mutex_unlock(&r->lock);
    return all;
}

void runner_cancel_all(struct runner *r, const char *reason) {
    uint32_t n;
    pthread_mutex_lock(&r->lock);
    struct generation **all = all_locked(r, &n);
    pthread_mutex_unlock(&r->lock);
    for (uint32_t i = 0; i < n; i++) { /* their locks come before ours */
        gen_cancel(all[i], reason);
        gen_unref(all[i]);
    }
    free(all);
}

/* ---- whose turn it is: the runner's thread ------------------------------------------------------------------- */

void queue_sweep(struct runner *r) {
    uint64_t now = sh_now_ns();
    pthread_mutex_lock(&r->lock);
    struct generation *ended = r->queue.dropped, *expired = NULL, *next;
    r->queue.dropped = NULL;
    for (struct generation *g = r->queue.first; g; g = next) {
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

static uint64_t last_turn(const struct queue *queue, uint64_t client) {
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (queue->clients[i].turn > 0 && queue->clients[i].id == client) return queue->clients[i].turn;
    return 0;
}

struct generation *queue_next_locked(struct runner *r, bool (*later)(struct runner *r, struct generation *g)) {
    struct generation *best = NULL;
    uint64_t best_turn = 0;
    for (struct generation *g = r->queue.first; g; g = g->next_queued) {
        if (best && g->params.priority > best->params.priority) continue;
        const uint64_t turn = last_turn(&r->queue, g->params.client);
        if (best && g->params.priority == best->params.priority && turn >= best_turn) continue;
        if (later(r, g)) continue;
        best = g;
        best_turn = turn;
    }
    return best;
}

/* Of clients that are forgotten the one goes whose turn is longest ago: it would be the next anyway. */
void queue_take_locked(struct runner *r, struct generation *g) {
    struct client *entry = &r->queue.clients[0];
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct client *client = &r->queue.clients[i];
        if (client->turn > 0 && client->id == g->params.client) {
            entry = client;
            break;
        }
        if (client->turn < entry->turn) entry = client;
    }
    *entry = (struct client){.id = g->params.client, .turn = ++r->queue.turns};
    unlink_locked(r, g);
}
