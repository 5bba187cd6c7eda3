/* generation.c - see generation.h: a generation as its front end has it, and the ring of events between it and the runner. */
#include "daemon/generation_private.h"

#include "compute/base.h"
#include "daemon/metrics.h"
#include "daemon/models.h"
#include "daemon/response_cache.h"

#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t live_lock = PTHREAD_MUTEX_INITIALIZER;
static struct generation *live; /* all that exist, for gen_cancel_id */
static uint64_t last_id;

const char *gen_finish_name(enum gen_finish finish) {
    switch (finish) {
    case GEN_RUNNING: return "running";
    case GEN_STOP: return "stop";
    case GEN_LENGTH: return "length";
    case GEN_CANCELLED: return "cancelled";
    case GEN_FAILED: return "error";
    }
    return "error";
}

void gen_event_finish(struct gen_event *event) {
    free(event->text);
    free(event->logprob);
    free(event->vector);
    event->text = NULL;
    event->logprob = NULL;
    event->vector = NULL;
}

/* ---- life -------------------------------------------------------------------------------------------- */

static void free_texts(char **texts, uint32_t count) {
    for (uint32_t i = 0; texts && i < count; i++) free(texts[i]);
    free(texts);
}

static void gen_free(struct generation *g) {
    pthread_mutex_lock(&live_lock);
    if (g->previous_live) *g->previous_live = g->next_live;
    if (g->next_live) g->next_live->previous_live = g->previous_live;
    pthread_mutex_unlock(&live_lock);
    for (uint32_t i = 0; i < g->count; i++) gen_event_finish(&g->events[(g->first + i) % g->capacity]);
    free_texts(g->stops, g->params.n_stops);
    free_texts(g->bad_words, g->params.n_bad_words);
    free_texts(g->dry_breakers, g->params.n_dry_breakers);
    free(g->events);
    free((void *)g->params.prompt);
    free((void *)g->params.text_lengths);
    free((void *)g->params.sampler.bias);
    free((void *)g->params.stop_tokens);
    free((void *)g->params.shown);
    free((void *)g->params.session);
    response_record_finish(g->record, false, NULL, 0);
    sh_grammar_unref(g->params.grammar);
    pthread_mutex_destroy(&g->lock);
    pthread_mutex_destroy(&g->notify_lock);
    if (g->model) model_unref(g->model);
    free(g);
}

void gen_unref(struct generation *g) {
    if (atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) == 1) gen_free(g);
}

static void *copy_of(const void *data, uint64_t count, size_t element_bytes, bool *ok) {
    void *copy = sh_calloc(count ? count : 1, element_bytes);
    if (!copy) *ok = false;
    else if (count) memcpy(copy, data, count * element_bytes);
    return copy;
}

static char **copy_texts(const char *const *texts, uint32_t count, bool *ok) {
    char **copy = sh_calloc(count + 1ull, sizeof *copy);
    if (!copy) *ok = false;
    for (uint32_t i = 0; copy && i < count; i++)
        if (!(copy[i] = strdup(texts[i]))) *ok = false;
    return copy;
}

static bool ring_grow(struct generation *g) {
    uint32_t capacity = g->capacity ? g->capacity * 2 : 16;
    struct gen_event *events = sh_calloc(capacity, sizeof *events);
    if (!events) return false;
    for (uint32_t i = 0; i < g->count; i++) events[i] = g->events[(g->first + i) % g->capacity];
    free(g->events);
    g->events = events;
    g->capacity = capacity;
    g->first = 0;
    return true;
}

enum sh_code gen_create(const struct gen_params *params, struct generation **out, struct sh_error *err) {
    if (params->n_prompt == 0) return sh_fail(err, SH_ERR_INVALID, "the prompt has no tokens: at least one is needed");
    if (params->n_choices == 0) return sh_fail(err, SH_ERR_INVALID, "n is 0: at least one choice is needed");
    if (params->n_top > SH_COUNT(((struct gen_logprob *)0)->top))
        return sh_fail(err, SH_ERR_INVALID, "%u log-probs are wanted: at most %zu are given", params->n_top,
                       SH_COUNT(((struct gen_logprob *)0)->top));

    uint64_t in_texts = 0;
    for (uint32_t i = 0; i < params->n_texts; i++) {
        in_texts += params->text_lengths[i];
        if (params->text_lengths[i] == 0) return sh_fail(err, SH_ERR_INVALID, "text %u has no tokens: at least one is needed", i);
    }
    if (params->n_texts > 0 && (in_texts != params->n_prompt || params->n_choices != 1))
        return sh_fail(err, SH_ERR_INVALID, "%llu tokens in the texts and %u choices, expected %u and 1",
                       (unsigned long long)in_texts, params->n_choices, params->n_prompt);

    struct generation *g = sh_calloc(1, sizeof *g);
    if (!g) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    pthread_mutex_init(&g->lock, NULL);
    pthread_mutex_init(&g->notify_lock, NULL);
    atomic_init(&g->refs, 1);
    bool ok = true;
    g->params = *params;
    g->params.prompt = copy_of(params->prompt, params->n_prompt, sizeof *params->prompt, &ok);
    g->params.text_lengths = copy_of(params->text_lengths, params->n_texts, sizeof *params->text_lengths, &ok);
    g->params.sampler.bias = copy_of(params->sampler.bias, params->sampler.n_bias, sizeof *params->sampler.bias, &ok);
    g->params.stop_tokens = copy_of(params->stop_tokens, params->n_stop_tokens, sizeof *params->stop_tokens, &ok);
    if (params->grammar) g->params.grammar = sh_grammar_ref(params->grammar);
    g->params.shown = copy_of(params->shown, params->n_shown, sizeof *params->shown, &ok);
    if (params->session && !(g->params.session = strdup(params->session))) ok = false;
    g->params.grammar_source = NULL;
    g->stops = copy_texts(params->stops, params->n_stops, &ok);
    g->bad_words = copy_texts(params->bad_words, params->n_bad_words, &ok);
    g->dry_breakers = copy_texts(params->dry_breakers, params->n_dry_breakers, &ok);
    ok = ok && ring_grow(g); /* a place for its end, come what may */
    g->params.stops = (const char *const *)g->stops;
    g->params.bad_words = (const char *const *)g->bad_words;
    g->params.dry_breakers = (const char *const *)g->dry_breakers;
    g->notify = params->notify;
    g->submitted_ns = sh_now_ns();
    g->usage.prompt_tokens = params->n_prompt;
    g->usage.load_ns = params->load_ns;

    pthread_mutex_lock(&live_lock);
    g->id = params->id ? params->id : ++last_id;
    g->next_live = live;
    g->previous_live = &live;
    if (live) live->previous_live = &g->next_live;
    live = g;
    pthread_mutex_unlock(&live_lock);

    if (!ok) {
        gen_unref(g);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    }
    *out = g;
    return SH_OK;
}

void gen_release(struct generation *g) {
    if (!g) return;
    pthread_mutex_lock(&g->notify_lock);
    g->notify = NULL;
    pthread_mutex_unlock(&g->notify_lock);

    /* Nobody is to be told any more, so a queued one can be ended here and now. */
    gen_mark_cancelled(g, "client");
    gen_unpark(g);
    pthread_mutex_lock(&g->lock);
    bool mine = g->runner && runner_dequeue(g->runner, g, false);
    pthread_mutex_unlock(&g->lock);
    if (mine) {
        gen_end(g, GEN_CANCELLED, NULL);
        gen_unref(g);
    }
    gen_unref(g);
}

uint64_t gen_id(const struct generation *g) { return g->id; }

uint64_t gen_new_id(void) {
    pthread_mutex_lock(&live_lock);
    const uint64_t id = ++last_id;
    pthread_mutex_unlock(&live_lock);
    return id;
}

void gen_get_usage(const struct generation *g, struct gen_usage *out) {
    pthread_mutex_lock((pthread_mutex_t *)&g->lock);
    *out = g->usage;
    pthread_mutex_unlock((pthread_mutex_t *)&g->lock);
}

/* ---- cancelling -------------------------------------------------------------------------------------- */

static void mark_cancelled_locked(struct generation *g, const char *reason) {
    if (atomic_load(&g->cancelled)) return;
    snprintf(g->reason, sizeof g->reason, "%s", reason);
    atomic_store(&g->cancelled, true);
}

void gen_mark_cancelled(struct generation *g, const char *reason) {
    pthread_mutex_lock(&g->lock);
    mark_cancelled_locked(g, reason);
    pthread_mutex_unlock(&g->lock);
}

void gen_cancel(struct generation *g, const char *reason) {
    pthread_mutex_lock(&g->lock);
    mark_cancelled_locked(g, reason);
    if (g->runner) runner_dequeue(g->runner, g, true);
    pthread_mutex_unlock(&g->lock);
    gen_unpark(g);
}

bool gen_cancel_id(uint64_t id, const char *reason) {
    struct generation *g;
    pthread_mutex_lock(&live_lock);
    for (g = live; g && g->id != id; g = g->next_live) {
    }
    /* One that is being freed has no references left and is not revived. */
    unsigned refs = g ? atomic_load(&g->refs) : 0;
    while (refs && !atomic_compare_exchange_weak(&g->refs, &refs, refs + 1)) {
    }
    pthread_mutex_unlock(&live_lock);
    if (!refs) return false;

    pthread_mutex_lock(&g->lock);
    bool ended = g->ended;
    if (!ended) mark_cancelled_locked(g, reason);
    bool mine = g->runner && runner_dequeue(g->runner, g, false);
    pthread_mutex_unlock(&g->lock);
    gen_unpark(g);
    if (mine) {
        gen_end(g, GEN_CANCELLED, NULL);
        gen_unref(g);
    }
    gen_unref(g);
    return !ended;
}

/* ---- the ring ---------------------------------------------------------------------------------------- */

/* True if the ring was empty: notify. */
static bool push_locked(struct generation *g, struct gen_event *event) {
    bool counts = event->kind == GEN_EVENT_TOKEN;
    if (g->ended || (counts && g->counted >= GEN_RING_EVENTS)) {
        if (!g->ended) mark_cancelled_locked(g, "slow reader");
        gen_event_finish(event);
        return false;
    }
    /* The last event has a place kept for it, so that a reader is told the end even without memory. */
    bool last = event->kind == GEN_EVENT_END;
    if (g->count + (last ? 0 : 1) >= g->capacity && !ring_grow(g) && !(last && g->count < g->capacity)) {
        mark_cancelled_locked(g, "no memory");
        gen_event_finish(event);
        return false;
    }
    g->events[(g->first + g->count++) % g->capacity] = *event;
    g->counted += counts;
    if (last) {
        g->ended = true;
        g->runner = NULL;
    }
    return g->count == 1;
}

static void notify(struct generation *g) {
    pthread_mutex_lock(&g->notify_lock);
    if (g->notify) g->notify(g->params.user);
    pthread_mutex_unlock(&g->notify_lock);
}

void gen_push(struct generation *g, struct gen_event *event) {
    pthread_mutex_lock(&g->lock);
    if (g->record) response_record_add(g->record, event);
    bool first = push_locked(g, event);
    pthread_mutex_unlock(&g->lock);
    if (first) notify(g);
}

void gen_end(struct generation *g, enum gen_finish finish, const struct sh_error *err) {
    struct gen_event event = {.kind = GEN_EVENT_END, .token = -1, .finish = finish, .stop_index = -1, .text = strdup("")};
    pthread_mutex_lock(&g->lock);
    const bool news = !g->ended, accepted = news && g->runner;
    if (err) event.error = *err;
    else if (finish == GEN_CANCELLED) sh_fail(&event.error, SH_ERR_CANCELLED, "%s", g->reason);
    bool first = push_locked(g, &event);
    const char *const reason[] = {g->reason};
    const char *const result[] = {finish == GEN_FAILED ? "failed" : finish == GEN_CANCELLED ? "cancelled" : "finished"};
    if (accepted) metric_add(METRIC_GENERATIONS_ENDED, result, 1);
    if (news && finish == GEN_CANCELLED) metric_add(METRIC_REQUESTS_CANCELLED, reason, 1);
    struct response_record *record = g->record;
    const struct gen_usage usage = g->usage;
    g->record = NULL;
    pthread_mutex_unlock(&g->lock);
    response_record_finish(record, finish == GEN_STOP, &usage, sh_now_ns());
    if (first) notify(g);
}

void gen_fail(struct generation *g, const struct sh_error *err) {
    pthread_mutex_lock(&g->lock);
    mark_cancelled_locked(g, "stuck");
    const bool mine = g->runner && runner_dequeue(g->runner, g, false);
    pthread_mutex_unlock(&g->lock);
    gen_end(g, GEN_FAILED, err);
    if (mine) gen_unref(g);
}

bool gen_next(struct generation *g, struct gen_event *event) {
    pthread_mutex_lock(&g->lock);
    bool any = g->count > 0;
    if (any) {
        *event = g->events[g->first];
        g->first = (g->first + 1) % g->capacity;
        g->count--;
        g->counted -= event->kind == GEN_EVENT_TOKEN;
    }
    pthread_mutex_unlock(&g->lock);
    return any;
}

/* ---- submission --------------------------------------------------------------------------------------- */

/* Ends a generation with an answer that was kept. Takes the reference. False: no memory, nothing has happened. */
static bool replay(struct generation *g, struct response *kept) {
    const uint32_t count = response_events(kept);
    struct gen_event *events = sh_calloc(count + 1ull, sizeof *events);
    uint32_t n = 0;
    while (events && response_event(kept, &n, &events[n])) {
    }
    struct gen_usage usage;
    response_usage(kept, &usage);
    response_unref(kept);
    const bool whole = events && n == count;
    for (uint32_t i = 0; i < n && !whole; i++) gen_event_finish(&events[i]);
    if (whole) {
        usage.load_ns = g->usage.load_ns;
        g->usage = usage; /* nobody else knows it yet */
        pthread_mutex_lock(&g->lock);
        for (uint32_t i = 0; i < n; i++) push_locked(g, &events[i]);
        pthread_mutex_unlock(&g->lock);
        gen_end(g, atomic_load(&g->cancelled) ? GEN_CANCELLED : GEN_STOP, NULL);
        notify(g);
    }
    free(events);
    return whole;
}

enum sh_code gen_submit(struct model *model, const struct gen_params *params, struct generation **out, struct sh_error *err) {
    struct generation *g;
    enum sh_code code = gen_create(params, &g, err);
    if (code) return code;
    g->model = model_ref(model);
    *out = g;
    /* Loaded anew after this, the answer is written down under the number of a load that is over, where nobody will look. */
    const uint64_t instance = model_instance(model);
    struct response *kept = instance ? response_cache_find(params, instance, sh_now_ns(), &g->record) : NULL;
    if (kept && replay(g, kept)) return SH_OK;
    code = model_enqueue(model, g, err);
    if (code) {
        *out = NULL;
        gen_unref(g);
    }
    return code;
}
