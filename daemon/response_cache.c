/* response_cache.c - see response_cache.h: keys, the table with its two lists, records. One mutex guards the table. */
#include "daemon/response_cache.h"

#include "compute/base.h"
#include "daemon/metrics.h"
#include "daemon/text.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUCKETS = 4096 };
static const uint64_t SECOND = 1000000000u;

struct response {
    atomic_uint refs; /* the table's, those who read it */
    char *key;
    size_t key_length;
    struct gen_event *events;
    uint32_t n_events, n_capacity;
    struct gen_usage usage;
    /* the table's lock: */
    uint64_t hash, bytes, kept_ns;
    struct response *next; /* of its bucket */
    struct response *older, *newer;
};

struct response_record {
    struct response *response; /* not in the table yet */
    size_t text_bytes;
    uint32_t n_tokens;
    bool spoiled; /* too long, or no memory */
};

static struct {
    pthread_mutex_t lock;
    atomic_bool on; /* written under the lock */
    uint32_t most;
    uint64_t most_bytes, ttl_ns;
    struct response *table[BUCKETS];
    struct response *newest, *oldest;
    uint32_t count;
    uint64_t bytes, swept_ns;
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- keys -------------------------------------------------------------------------------------------- */

/* So that a field that is added is not forgotten here. */
_Static_assert(sizeof(struct sh_sampler_params) == 184 || sizeof(void *) != 8, "what decides an answer belongs into its key");

static void put(FILE *to, const void *bytes, size_t count) { fwrite(bytes, 1, count, to); }
static void put_number(FILE *to, uint64_t number) { put(to, &number, sizeof number); }
static void put_float(FILE *to, float number) { put(to, &number, sizeof number); }

static void put_ids(FILE *to, const int32_t *ids, uint32_t count) {
    put_number(to, count);
    if (count) put(to, ids, count * sizeof *ids);
}

static void put_texts(FILE *to, const char *const *texts, uint32_t count) {
    put_number(to, count);
    for (uint32_t i = 0; i < count; i++) put(to, texts[i], strlen(texts[i]) + 1);
}

static void put_sampler(FILE *to, const struct sh_sampler_params *s) {
    const bool greedy = s->temperature < 1e-6f;
    put_number(to, greedy ? 0 : s->seed); /* which then decides nothing */
    const float numbers[] = {greedy ? 0 : s->temperature, s->top_p,          s->min_p,           s->repeat_penalty,  s->frequency_penalty,
                             s->presence_penalty,         s->top_n_sigma,    s->typical_p,       s->xtc_probability, s->xtc_threshold,
                             s->dry_multiplier,           s->dry_base,       s->mirostat_tau,    s->mirostat_eta};
    const uint32_t counts[] = {s->top_k, s->repeat_last_n, s->dry_allowed_length, s->dry_penalty_last_n, s->mirostat, s->min_tokens};
    for (size_t i = 0; i < SH_COUNT(numbers); i++) put_float(to, numbers[i]);
    for (size_t i = 0; i < SH_COUNT(counts); i++) put_number(to, counts[i]);
    put_number(to, s->n_bias);
    for (uint32_t i = 0; i < s->n_bias; i++) {
        put_number(to, (uint64_t)s->bias[i].token);
        put_float(to, s->bias[i].bias);
    }
}

/* malloc'd; NULL: no memory. Token lists and end tokens, which the runner makes of the words and of the model, are in them. */
static char *make_key(const struct gen_params *p, uint64_t instance, size_t *length) {
    char *key = NULL;
    FILE *to = open_memstream(&key, length);
    if (!to) return NULL;
    put_number(to, instance);
    put_number(to, p->salt);
    put_ids(to, p->prompt, p->n_prompt);
    put_number(to, p->n_choices);
    put_number(to, p->max_tokens);
    put_sampler(to, &p->sampler);
    put_texts(to, p->stops, p->n_stops);
    put_ids(to, p->stop_tokens, p->n_stop_tokens);
    put_texts(to, p->bad_words, p->n_bad_words);
    put_texts(to, p->dry_breakers, p->n_dry_breakers);
    put_ids(to, p->shown, p->n_shown);
    const bool flags[] = {p->ignore_eos, p->special, p->logprobs, p->echo_logprobs, p->grammar != NULL};
    for (size_t i = 0; i < SH_COUNT(flags); i++) put_number(to, flags[i]);
    put_number(to, p->n_top);
    put_number(to, p->grammar ? p->n_grammar_source : 0);
    if (p->grammar) put(to, p->grammar_source, p->n_grammar_source);
    const bool bad = ferror(to) != 0;
    if (fclose(to) == 0 && !bad) return key;
    free(key);
    return NULL;
}

static bool may_be_kept(const struct gen_params *p) {
    return p->repeatable && !p->no_reuse && !p->session && p->n_texts == 0 && (!p->grammar || p->grammar_source);
}

/* ---- the table --------------------------------------------------------------------------------------- */

static void free_events(struct response *response) {
    for (uint32_t i = 0; i < response->n_events; i++) gen_event_finish(&response->events[i]);
    free(response->events);
    response->events = NULL;
    response->n_events = response->n_capacity = 0;
}

void response_unref(struct response *response) {
    if (!response || atomic_fetch_sub_explicit(&response->refs, 1, memory_order_acq_rel) != 1) return;
    free_events(response);
    free(response->key);
    free(response);
}

static void set_gauges(void) {
    metric_set(METRIC_RESPONSE_CACHE_ENTRIES, NULL, cache.count);
    metric_set(METRIC_RESPONSE_CACHE_BYTES, NULL, (double)cache.bytes);
}

/* Takes it out of the table and drops the table's reference. The lock is held, here and in what follows. */
static void drop(struct response *gone, const char *reason) {
    struct response **at = &cache.table[gone->hash % BUCKETS];
    while (*at != gone) at = &(*at)->next;
    *at = gone->next;
    if (gone->newer) gone->newer->older = gone->older;
    else cache.newest = gone->older;
    if (gone->older) gone->older->newer = gone->newer;
    else cache.oldest = gone->newer;
    cache.count--;
    cache.bytes -= gone->bytes;
    const char *const labels[] = {reason};
    if (reason) metric_add(METRIC_RESPONSE_CACHE_EVICTIONS, labels, 1);
    response_unref(gone);
}

static void to_front(struct response *used) {
    if (cache.newest == used) return;
    if (used->newer) used->newer->older = used->older;
    if (used->older) used->older->newer = used->newer;
    else if (cache.oldest == used) cache.oldest = used->newer;
    used->newer = NULL;
    used->older = cache.newest;
    if (cache.newest) cache.newest->newer = used;
    cache.newest = used;
    if (!cache.oldest) cache.oldest = used;
}

static bool is_old(const struct response *response, uint64_t now_ns) {
    return now_ns > response->kept_ns && now_ns - response->kept_ns > cache.ttl_ns;
}

static struct response *lookup(uint64_t hash, const char *key, size_t length) {
    struct response *at = cache.table[hash % BUCKETS];
    while (at && (at->hash != hash || at->key_length != length || memcmp(at->key, key, length) != 0)) at = at->next;
    return at;
}

static void make_room(void) {
    while (cache.oldest && (cache.count > cache.most || cache.bytes > cache.most_bytes)) drop(cache.oldest, "room");
    set_gauges();
}

/* Those that are too old take room from others until somebody asks for them: not for longer than some seconds. */
static void sweep(uint64_t now_ns) {
    if (now_ns < cache.swept_ns + 5 * SECOND) return;
    cache.swept_ns = now_ns;
    for (struct response *at = cache.oldest, *newer; at; at = newer) {
        newer = at->newer;
        if (is_old(at, now_ns)) drop(at, "age");
    }
}

void response_cache_configure(const struct config *config) {
    pthread_mutex_lock(&cache.lock);
    cache.most = config->response_cache_entries;
    cache.most_bytes = config->response_cache_bytes;
    cache.ttl_ns = config->response_cache_ttl_s * SECOND;
    atomic_store(&cache.on, config->response_cache);
    while (!config->response_cache && cache.oldest) drop(cache.oldest, NULL);
    make_room();
    pthread_mutex_unlock(&cache.lock);
}

struct response *response_cache_find(const struct gen_params *params, uint64_t instance, uint64_t now_ns, struct response_record **record) {
    *record = NULL;
    if (!atomic_load(&cache.on) || !may_be_kept(params)) return NULL;
    size_t length = 0;
    char *key = make_key(params, instance, &length);
    if (!key) return NULL;
    const uint64_t hash = text_hash(key, length);
    pthread_mutex_lock(&cache.lock);
    struct response *found = lookup(hash, key, length);
    if (found && is_old(found, now_ns)) {
        drop(found, "age");
        set_gauges();
        found = NULL;
    }
    if (found) {
        to_front(found);
        atomic_fetch_add(&found->refs, 1);
    }
    pthread_mutex_unlock(&cache.lock);
    metric_add(found ? METRIC_RESPONSE_CACHE_HITS : METRIC_RESPONSE_CACHE_MISSES, NULL, 1);
    if (found) {
        free(key);
        return found;
    }
    struct response *fresh = sh_calloc(1, sizeof *fresh);
    struct response_record *made = sh_calloc(1, sizeof *made);
    if (!fresh || !made) {
        free(fresh);
        free(made);
        free(key);
        return NULL;
    }
    atomic_init(&fresh->refs, 1);
    fresh->key = key;
    fresh->key_length = length;
    fresh->hash = hash;
    fresh->bytes = sizeof *fresh + length;
    made->response = fresh;
    *record = made;
    return NULL;
}

/* ---- events ------------------------------------------------------------------------------------------ */

static size_t event_bytes(const struct gen_event *event) {
    return sizeof *event + event->text_length + 1 + (event->logprob ? sizeof *event->logprob : 0);
}

static bool copy_event(const struct gen_event *from, struct gen_event *to) {
    *to = *from;
    to->vector = NULL;
    to->logprob = NULL;
    if (!(to->text = malloc(from->text_length + 1))) return false;
    if (from->text_length) memcpy(to->text, from->text, from->text_length);
    to->text[from->text_length] = 0;
    if (from->logprob && (to->logprob = malloc(sizeof *to->logprob))) *to->logprob = *from->logprob;
    if (!from->logprob || to->logprob) return true;
    gen_event_finish(to);
    return false;
}

uint32_t response_events(const struct response *response) { return response->n_events; }

bool response_event(const struct response *response, uint32_t *index, struct gen_event *out) {
    if (*index >= response->n_events || !copy_event(&response->events[*index], out)) return false;
    ++*index;
    return true;
}

void response_usage(const struct response *response, struct gen_usage *out) { *out = response->usage; }

/* ---- records ----------------------------------------------------------------------------------------- */

void response_record_add(struct response_record *record, const struct gen_event *event) {
    struct response *response = record->response;
    if (record->spoiled) return;
    record->text_bytes += event->text_length;
    record->n_tokens += event->kind == GEN_EVENT_TOKEN;
    /* A replayed answer comes all at once, which a ring of tokens has to hold; a prompt's log-probs, which it does not count, are events, too. */
    record->spoiled = record->text_bytes > RESPONSE_TEXT_BYTES || record->n_tokens >= GEN_RING_EVENTS || response->n_events >= RESPONSE_EVENTS;
    if (!record->spoiled && response->n_events == response->n_capacity) {
        const uint32_t capacity = response->n_capacity ? response->n_capacity * 2 : 16;
        struct gen_event *grown = realloc(response->events, capacity * sizeof *grown);
        record->spoiled = !grown;
        if (grown) {
            response->events = grown;
            response->n_capacity = capacity;
        }
    }
    if (!record->spoiled) record->spoiled = !copy_event(event, &response->events[response->n_events]);
    if (record->spoiled) {
        free_events(response); /* the rest of a long answer does not wait for its end */
        return;
    }
    response->bytes += event_bytes(&response->events[response->n_events++]);
}

void response_record_finish(struct response_record *record, bool whole, const struct gen_usage *usage, uint64_t now_ns) {
    if (!record) return;
    struct response *response = record->response;
    const bool keep = whole && !record->spoiled;
    free(record);
    if (keep) {
        response->usage = (struct gen_usage){.prompt_tokens = usage->prompt_tokens,
                                             .completion_tokens = usage->completion_tokens,
                                             .cached_tokens = usage->prompt_tokens,
                                             .replayed = true};
        response->kept_ns = now_ns;
        pthread_mutex_lock(&cache.lock);
        struct response *twin = lookup(response->hash, response->key, response->key_length); /* two were on their way */
        if (atomic_load(&cache.on) && !twin && response->bytes <= cache.most_bytes) {
            sweep(now_ns);
            atomic_fetch_add(&response->refs, 1);
            response->next = cache.table[response->hash % BUCKETS];
            cache.table[response->hash % BUCKETS] = response;
            to_front(response);
            cache.count++;
            cache.bytes += response->bytes;
            make_room();
        }
        pthread_mutex_unlock(&cache.lock);
    }
    response_unref(response);
}
