/*
 * admission.c - who gets sequences and pages: generations out of the queue, generations that were put aside when pages ran out, and who is
 * put aside.
 *
 * A generation is admitted when there are sequences for its choices and pages for what it takes in next: its prompt, as far as that is not shared, and a
 * page for each choice, beside a page for each choice that runs. Nothing is kept for tokens that may never come. So pages may run out,
 * and then the last run in the order (low priority before normal, within that the youngest) gives up its pages. It comes back before
 * others are admitted, computes again what nobody kept, and goes on.
 *
 * Everybody gets done: the first run in the order is never put aside while another holds pages, so it goes on until it ends; then the next one is the
 * first, whether it was put aside or not. One that finds no page although it is alone ends there (GEN_LENGTH), or fails if it has said nothing
 * yet. What makes a run wait is always another that was admitted before or stands before it, so nobody waits in a circle.
 */
#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/scheduler_private.h"

#include <stdlib.h>

enum {
    MOST_HOLDS = 4,
    CAREFUL_LEAST = 32, /* steps after a failed one with those alone that are left in it; twice as many after the next one */
    CAREFUL_MOST = 1024,
};

/* ---- beginnings ---------------------------------------------------------------------------------------- */

static bool may_share(const struct gen_params *p) { return p->n_texts == 0 && !p->no_reuse && !p->echo_logprobs; }

/* Takes over what the cache has of its tokens, prompt and answer; all but the last, since its row is to be computed. */
static enum sh_code take_over(struct choice *choice, uint32_t *reused, struct sh_error *err) {
    const struct gen_params *p = &choice->run->g->params;
    struct sh_context *context = choice->run->runner->context;
    const uint32_t known = p->n_prompt + choice->received, n = known - 1;
    if (choice->received == 0) return sh_sequence_reuse(context, choice->sequence, p->prompt, NULL, n, p->salt, reused, err);
    int32_t *tokens = sh_calloc(known, sizeof *tokens);
    enum sh_role *roles = sh_calloc(known, sizeof *roles);
    enum sh_code code = SH_ERR_NO_MEMORY;
    if (tokens && roles) {
        memcpy(tokens, p->prompt, p->n_prompt * sizeof *tokens);
        memcpy(tokens + p->n_prompt, choice->tokens, choice->received * sizeof *tokens);
        for (uint32_t i = 0; i < known; i++) roles[i] = i < p->n_prompt ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
        code = sh_sequence_reuse(context, choice->sequence, tokens, roles, n, p->salt, reused, err);
    } else {
        sh_fail(err, code, "no memory for %u tokens", known);
    }
    free(tokens);
    free(roles);
    return code;
}

enum sh_code choice_reuse(struct choice *choice, struct sh_error *err) {
    struct run *run = choice->run;
    struct runner *r = run->runner;
    uint32_t reused = 0;
    if (!may_share(&run->g->params)) return SH_OK;
    const enum sh_code code =
        choice->follows ? sh_sequence_reuse(r->context, choice->sequence, NULL, NULL, 0, run->g->params.salt, &reused, err)
                        : take_over(choice, &reused, err);
    if (code || reused == 0) return code;
    choice->at = choice->settled = reused;
    const char *const labels[] = {r->params.id};
    metric_add(METRIC_REUSED_TOKENS, labels, reused);
    if (run->preempted || choice->index != run->leader) return SH_OK;
    run->counted = reused;
    pthread_mutex_lock(&run->g->lock);
    run->g->usage.cached_tokens = reused;
    pthread_mutex_unlock(&run->g->lock);
    return SH_OK;
}

/* How many tokens of whole pages both prompts begin with, the last token of `of` apart. */
static uint32_t common(const struct runner *r, const struct gen_params *of, const struct gen_params *with) {
    const uint32_t page = sh_context_page_tokens(r->context);
    if (!may_share(of) || !may_share(with) || of->salt != with->salt) return 0;
    const uint32_t most = of->n_prompt - 1 < with->n_prompt ? of->n_prompt - 1 : with->n_prompt;
    uint32_t n = 0;
    while (n + page <= most && memcmp(of->prompt + n, with->prompt + n, page * sizeof *of->prompt) == 0) n += page;
    return n;
}

/* Another is just computing what its prompt begins with: when that is done it need not be computed twice. It waits for few such, one after the other,
 * and each gets done: not for one of lower priority, which may get on only when no others do. */
static bool wait_for_beginning(struct runner *r, struct generation *g) {
    for (struct run *run = r->runs; run; run = run->next) {
        if (!run->choices || run->over || run->suspended || run->g->params.priority > g->params.priority) continue;
        const struct choice *leader = &run->choices[run->leader];
        if (leader->settled >= run->g->params.n_prompt - 1) continue;
        uint32_t n = common(r, &g->params, &run->g->params);
        /* a recurrent state is kept at the last page's end alone */
        if (r->info.state_bytes_per_sequence > 0 && n < run_last_page(run)) n = 0;
        if (n <= leader->settled) continue;
        if (g->held_for != run->order && g->holds == MOST_HOLDS) continue;
        if (g->held_for != run->order) g->holds++;
        g->held_for = run->order;
        return true;
    }
    return false;
}

/* ---- room ---------------------------------------------------------------------------------------------- */

/* Tokens of pages that those that run are about to take: what they have yet to take in, and a page for each choice. */
static uint64_t promised(const struct runner *r) {
    const uint32_t page = sh_context_page_tokens(r->context);
    uint64_t tokens = 0;
    for (const struct run *run = r->runs; run; run = run->next) {
        if (run->over || run->suspended || !run->choices) continue;
        for (uint32_t i = 0; i < run->g->params.n_choices; i++) {
            const struct choice *choice = &run->choices[i];
            if (!choice->active) continue;
            tokens += page;
            if (!choice->follows && choice->at < choice->entry) tokens += choice->entry - choice->at;
        }
    }
    return tokens;
}

static uint64_t wanted_by_new(const struct runner *r, const struct generation *g) {
    const uint32_t page = sh_context_page_tokens(r->context);
    if (g->params.n_texts > 0) return g->params.text_lengths[0];
    uint32_t shared = 0; /* with one that runs: those pages are there */
    for (const struct run *run = r->runs; run; run = run->next) {
        if (!run->choices || run->over || run->suspended) continue;
        uint32_t n = common(r, &g->params, &run->g->params);
        if (n > run->choices[run->leader].settled) n = run->choices[run->leader].settled / page * page;
        if (n > shared) shared = n;
    }
    return g->params.n_prompt - shared + (uint64_t)g->params.n_choices * page;
}

static uint64_t wanted_by_old(const struct run *run) {
    const uint32_t page = sh_context_page_tokens(run->runner->context);
    if (run->texts) return run->g->params.text_lengths[0];
    uint64_t tokens = run->g->params.n_prompt;
    for (uint32_t i = 0; i < run->g->params.n_choices; i++)
        if (run->choices[i].active) tokens += run->choices[i].received + page;
    return tokens;
}

static bool fits(const struct runner *r, uint64_t wanted) {
    return sh_context_free_tokens(r->context) >= wanted + promised(r);
}

static bool any_runs(const struct runner *r) {
    for (const struct run *run = r->runs; run; run = run->next)
        if (!run->over && !run->suspended) return true;
    return false;
}

/* ---- putting aside, and coming back ---------------------------------------------------------------------- */

/* Nothing of it is in flight: what was submitted and not received was undone. */
static void give_up_pages(struct run *run) {
    struct runner *r = run->runner;
    struct sh_error err;
    enum sh_code code = SH_OK;
    run->suspended = run->preempted = true;
    if (run->texts) embedding_restart(run);
    for (uint32_t i = 0; run->choices && i < run->g->params.n_choices && code == SH_OK; i++) {
        struct choice *choice = &run->choices[i];
        if (!choice->active) continue;
        code = sh_sequence_suspend(r->context, choice->sequence, &err);
        speculation_suspend(choice->speculation);
        choice->at = choice->settled = 0;
        choice->sampled = choice->received;
        choice->ask.n_guess = choice->right = 0;
        choice->differed = false;
    }
    if (code) run_over(run, code, &err);
}

static void suspend(struct run *run) {
    struct runner *r = run->runner;
    give_up_pages(run);
    pthread_mutex_lock(&run->g->lock);
    run->g->usage.preemptions++;
    pthread_mutex_unlock(&run->g->lock);
    const char *const labels[] = {r->params.id};
    metric_add(METRIC_PREEMPTIONS, labels, 1);
    pthread_mutex_lock(&r->lock);
    r->preemptions++;
    pthread_mutex_unlock(&r->lock);
    log_write(SH_LOG_DEBUG, r->params.id, "request %llu is put aside: there is no room for all that run",
              (unsigned long long)run->g->id);
}

/* Its choices begin again, or where the cache still has them; the first one takes in the prompt for those of which nothing is there. */
static void resume(struct run *run) {
    struct sh_error err;
    enum sh_code code = SH_OK;
    struct choice *leader = NULL;
    run->suspended = false;
    for (uint32_t i = 0; run->choices && i < run->g->params.n_choices && code == SH_OK; i++) {
        struct choice *choice = &run->choices[i];
        if (!choice->active) continue;
        choice->entry = run->g->params.n_prompt + (choice->received > 0 ? choice->received - 1 : 0);
        choice->follows = false;
        if (!leader) run->leader = i;
        code = choice_reuse(choice, &err);
        if (!leader) leader = choice;
        else choice->follows = choice->at == 0 && leader->at <= run->shared && run->shared > 0;
    }
    if (code) run_over(run, code, &err);
}

/* The last of its choices that goes on, and has said something; NULL: one is still without. */
static struct choice *last_with_text(const struct run *run) {
    struct choice *last = NULL;
    for (uint32_t i = 0; run->choices && i < run->g->params.n_choices; i++) {
        if (!run->choices[i].active) continue;
        last = &run->choices[i];
        if (last->generated == 0) return NULL;
    }
    return last;
}

/* Nobody else has pages. What was said so far stands: its choices end as at the context's end, one after the other, since the others may
 * go on with the room of the last one. A prompt that does not fit is refused. */
static void cut_or_fail(struct run *run, enum sh_code code, struct sh_error *err) {
    struct runner *r = run->runner;
    struct choice *last = code == SH_ERR_NO_PAGES ? last_with_text(run) : NULL;
    if (last) {
        choice_cut(last);
        return;
    }
    pthread_mutex_lock(&r->lock);
    const uint64_t limit = sh_max_u64(r->cache_limit, r->info.context_length); /* less it never is */
    pthread_mutex_unlock(&r->lock);
    if (code == SH_ERR_NO_PAGES)
        code = sh_fail(err, SH_ERR_LIMIT,
                       "the request needs room for %llu tokens at least, the cache of %s holds %llu in all: load the model with a larger one "
                       "(option kv_tokens), or ask for less",
                       (unsigned long long)wanted_by_old(run), r->params.id,
                       (unsigned long long)sh_min_u64(r->params.context.kv_tokens, limit));
    run_over(run, code, err);
}

static void be_careful(struct runner *r) {
    r->careful = r->care;
    if (r->care < CAREFUL_MOST) r->care *= 2;
}

void admission_make_room(struct runner *r, enum sh_code code, struct sh_error *err) {
    struct run *last = NULL;
    uint32_t n = 0;
    for (struct run *run = r->runs; run; run = run->next) {
        if (run->over || run->suspended) continue;
        last = run;
        n++;
    }
    if (n == 0) return; /* they were over before the step was submitted */
    if (n > 1) suspend(last);
    else if (!last->texts || !embedding_shrink(last)) cut_or_fail(last, code, err);
    if (n > 1 && code != SH_ERR_NO_PAGES) be_careful(r); /* what the device lacks is not told by counting pages */
}

void admission_after_failure(struct runner *r) {
    const bool alone = r->undone == 1; /* one that ended meanwhile may have been at fault, too */
    uint32_t n = 0;
    r->undone = 0;
    for (struct run *run = r->runs; run; run = run->next) n += run->undone && !run->over;
    uint32_t left = (n + 1) / 2; /* the older ones */
    for (struct run *run = r->runs; run; run = run->next) {
        if (!run->undone) continue;
        run->undone = false;
        if (run->over) continue;
        if (alone) {
            run_over(run, r->failure.code, &r->failure);
        } else if (left > 0) {
            left--;
            give_up_pages(run);
            resume(run);
        } else {
            suspend(run);
        }
    }
    if (alone || n == 0) return;
    log_write(r->careful > 0 ? SH_LOG_DEBUG : SH_LOG_WARNING, r->params.id,
              "a step of %u requests failed, it is repeated with half of them: %s", n, r->failure.message);
    be_careful(r);
}

/* ---- one after the other ----------------------------------------------------------------------------------- */

static struct run *first_suspended(const struct runner *r) {
    for (struct run *run = r->runs; run; run = run->next)
        if (run->suspended && !run->over) return run;
    return NULL;
}

/* The next out of the queue that there is room for now; it is counted as running. NULL: none. */
static struct generation *take_next(struct runner *r, const struct run *before) {
    struct sh_context_stats stats;
    sh_context_get_stats(r->context, &stats);
    pthread_mutex_lock(&r->lock);
    struct generation *g = stats.sequences < r->params.context.max_sequences ? queue_next_locked(r, wait_for_beginning) : NULL;
    if (g && before && before->g->params.priority <= g->params.priority) g = NULL;
    if (g && stats.sequences + queue_sequences_of(g) > r->params.context.max_sequences) g = NULL;
    if (g && any_runs(r) && !fits(r, wanted_by_new(r, g))) g = NULL;
    if (g) {
        queue_take_locked(r, g);
        r->beginning = g;
        if (r->n_runs == 0) r->progress_ns = sh_now_ns();
        r->n_runs++;
        r->n_seats += queue_sequences_of(g);
        metric_add(METRIC_REQUESTS_RUNNING, NULL, 1);
    }
    pthread_mutex_unlock(&r->lock);
    return g;
}

void admission_next(struct runner *r) {
    struct run *run;
    struct generation *g;
    const bool any = any_runs(r);
    if (r->careful > 0 && any) return;
    if (!any) r->care = CAREFUL_LEAST;
    do {
        while ((run = first_suspended(r)) && (!any_runs(r) || fits(r, wanted_by_old(run)))) resume(run);
        g = take_next(r, run);
        if (g) run_begin(r, g);
    } while (g);
}
