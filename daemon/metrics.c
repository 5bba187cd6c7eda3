/* metrics.c - the table of families, their series, and the text that Prometheus reads. One mutex guards all of it. */
#include "daemon/metrics.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { LABELS_MAX = 2, BUCKETS_MAX = 20, SERIES_MAX = 1000 };

enum metric_type { COUNTER, GAUGE, HISTOGRAM, UNTYPED };
static const char *const type_names[] = {"counter", "gauge", "histogram", "untyped"};

struct family {
    const char *name, *help;
    enum metric_type type;
    const char *labels[LABELS_MAX + 1]; /* NULL-terminated */
    double buckets[BUCKETS_MAX + 1];    /* ascending upper bounds, 0-terminated */
};

#define SECONDS_FIRST                                                                                                            \
    { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300 }
#define SECONDS_TOKEN                                                                                                            \
    { 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5 }

#define ROWS                                                                                                                     \
    { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096 }

#define SECONDS_MASK                                                                                                             \
    { 1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 0.0025, 0.005, 0.01, 0.1, 1 }

static const struct family families[METRIC_COUNT] = {
    [METRIC_REQUESTS] = {"shimmy_requests_total",
                         "HTTP requests answered, by route and status code.",
                         COUNTER,
                         {"route", "code"}},
    [METRIC_REQUESTS_RUNNING] = {"shimmy_requests_running", "Generations that a model is working on now.", GAUGE},
    [METRIC_REQUESTS_QUEUED] = {"shimmy_requests_queued", "Generations that wait for their turn.", GAUGE},
    [METRIC_REQUESTS_CANCELLED] = {"shimmy_requests_cancelled_total",
                                   "Generations that ended early, by reason.",
                                   COUNTER,
                                   {"reason"}},
    [METRIC_GENERATIONS_ACCEPTED] = {"shimmy_generations_accepted_total", "Generations that a model's queue took.", COUNTER},
    [METRIC_GENERATIONS_ENDED] = {"shimmy_generations_ended_total",
                                  "Generations that were accepted and are over: finished, failed or cancelled.",
                                  COUNTER,
                                  {"result"}},
    [METRIC_QUEUE_TIME] = {"shimmy_queue_time_seconds",
                           "From a generation's submission until a model works on it.",
                           HISTOGRAM,
                           {NULL},
                           SECONDS_FIRST},
    [METRIC_BATCH_ROWS] = {"shimmy_batch_rows", "Tokens computed together in one step.", HISTOGRAM, {NULL}, ROWS},
    [METRIC_REQUESTS_REFUSED] = {"shimmy_requests_refused_total",
                                 "Requests that a limit refused before any work was done for them, by the error's code.",
                                 COUNTER,
                                 {"reason"}},
    [METRIC_CLIENT_REQUESTS] = {"shimmy_client_requests_total", "HTTP requests with an API key that has a name.", COUNTER, {"client"}},
    [METRIC_CLIENT_TOKENS] = {"shimmy_client_tokens_total",
                              "Tokens used with an API key that has a name, of prompts and generated.",
                              COUNTER,
                              {"client", "kind"}},
    [METRIC_CONNECTIONS_CUT] = {"shimmy_connections_cut_total",
                                "Connections closed because their client did not send or read in time, or to make room for others.",
                                COUNTER,
                                {"reason"}},
    [METRIC_RESPONSE_CACHE_HITS] = {"shimmy_response_cache_hits_total", "Requests that were answered with a kept answer.", COUNTER},
    [METRIC_RESPONSE_CACHE_MISSES] = {"shimmy_response_cache_misses_total",
                                      "Requests whose answer may be kept and was not there.",
                                      COUNTER},
    [METRIC_RESPONSE_CACHE_EVICTIONS] = {"shimmy_response_cache_evictions_total",
                                         "Kept answers that went, for want of room or because of their age.",
                                         COUNTER,
                                         {"reason"}},
    [METRIC_RESPONSE_CACHE_ENTRIES] = {"shimmy_response_cache_entries", "Answers that are kept.", GAUGE},
    [METRIC_RESPONSE_CACHE_BYTES] = {"shimmy_response_cache_bytes", "Memory of the answers that are kept.", GAUGE},
    [METRIC_TIME_TO_FIRST_TOKEN] = {"shimmy_time_to_first_token_seconds",
                                    "From a generation's submission to its first token.",
                                    HISTOGRAM,
                                    {NULL},
                                    SECONDS_FIRST},
    [METRIC_TIME_PER_OUTPUT_TOKEN] = {"shimmy_time_per_output_token_seconds",
                                      "Between the tokens of a generation after the first.",
                                      HISTOGRAM,
                                      {NULL},
                                      SECONDS_TOKEN},
    [METRIC_REQUEST_DURATION] = {"shimmy_request_duration_seconds",
                                 "From an HTTP request's first line to the end of its answer.",
                                 HISTOGRAM,
                                 {"route"},
                                 SECONDS_FIRST},
    [METRIC_PROMPT_TOKENS] = {"shimmy_prompt_tokens_total", "Prompt tokens computed; those that were reused are not among them.", COUNTER, {"model"}},
    [METRIC_GENERATED_TOKENS] = {"shimmy_generated_tokens_total", "Tokens generated.", COUNTER, {"model"}},
    [METRIC_FORCED_TOKENS] = {"shimmy_forced_tokens_total",
                              "Generated tokens that were not sampled because a grammar left no other.",
                              COUNTER,
                              {"model"}},
    [METRIC_DRAFT_TOKENS] = {"shimmy_draft_tokens_total",
                             "Tokens guessed ahead by speculation, by what guessed them: lookup or model.",
                             COUNTER,
                             {"model", "source"}},
    [METRIC_DRAFT_ACCEPTED] = {"shimmy_draft_accepted_total",
                               "Tokens guessed ahead that turned out right.",
                               COUNTER,
                               {"model", "source"}},
    [METRIC_GRAMMAR_MASK] = {"shimmy_grammar_mask_seconds",
                             "Finding out which tokens a grammar lets come next.",
                             HISTOGRAM,
                             {NULL},
                             SECONDS_MASK},
    [METRIC_REUSED_TOKENS] = {"shimmy_reused_tokens_total", "Tokens that were found in the cache instead of computed.", COUNTER, {"model"}},
    [METRIC_PREEMPTIONS] = {"shimmy_preemptions_total",
                            "How often a generation was put aside because the cache had no room for all.",
                            COUNTER,
                            {"model"}},
    [METRIC_EMBEDDINGS] = {"shimmy_embeddings_total", "Texts turned into vectors.", COUNTER, {"model"}},
    [METRIC_KV_PAGES_USED] = {"shimmy_kv_pages_used", "Pages of the key-value cache in use.", GAUGE, {"model"}},
    [METRIC_KV_PAGES_KEPT] = {"shimmy_kv_pages_kept", "Pages of the key-value cache kept for reuse alone.", GAUGE, {"model"}},
    /* A gauge in meaning, but its name ends as only a counter's should: untyped is what promtool lets pass. */
    [METRIC_KV_PAGES_TOTAL] = {"shimmy_kv_pages_total", "Pages that the key-value cache may grow to.", UNTYPED, {"model"}},
    [METRIC_RUNNER_STUCK] = {"shimmy_runner_stuck", "1 for a loaded model whose step does not end, else 0.", GAUGE, {"model"}},
    [METRIC_LOADER_STUCK] = {"shimmy_loader_stuck", "1 while a load does not get on, else 0.", GAUGE, {NULL}},
    [METRIC_MODEL_STATE] = {"shimmy_model_state", "1 for the state that a model is in, else 0.", GAUGE, {"model", "state"}},
    [METRIC_MODEL_LOAD_SECONDS] = {"shimmy_model_load_seconds", "How long a model's last load took.", GAUGE, {"model"}},
    [METRIC_MODEL_LOADS] = {"shimmy_model_loads_total", "Loads that ended, by result: ready, failed or cancelled.", COUNTER, {"model", "result"}},
    [METRIC_MODELS_EVICTED] = {"shimmy_models_evicted_total",
                               "Models unloaded, by reason: memory, idle, unload, reload or lost.",
                               COUNTER,
                               {"model", "reason"}},
    [METRIC_DEVICE_MEMORY] = {"shimmy_device_memory_bytes",
                              "Memory that this process holds on a device, by use.",
                              GAUGE,
                              {"device", "kind"}},
    [METRIC_HTTP_CONNECTIONS] = {"shimmy_http_connections", "Open HTTP connections.", GAUGE},
    [METRIC_CONTROL_CONNECTIONS] = {"shimmy_control_connections", "Open connections on the control socket.", GAUGE},
    [METRIC_BUILD_INFO] = {"shimmy_build_info", "Always 1; the label tells the version.", GAUGE, {"version"}},
};

struct series {
    struct series *next;
    uint64_t hash;
    char *labels[LABELS_MAX];         /* valid UTF-8 */
    double value;                     /* counters, gauges; a histogram's sum */
    uint64_t counts[BUCKETS_MAX + 1]; /* observations per bucket, the last one without upper bound */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    struct series *first, **end;
    uint32_t count;
} stores[METRIC_COUNT];

static uint32_t n_labels(const struct family *f) {
    uint32_t n = 0;
    while (f->labels[n]) n++;
    return n;
}

static uint32_t n_buckets(const struct family *f) {
    uint32_t n = 0;
    while (f->buckets[n] > 0) n++;
    return n;
}

static uint64_t hash_labels(const char *const *labels, uint32_t n) {
    uint64_t h = 1469598103934665603u; /* FNV-1a; the NUL between two values is hashed too */
    for (uint32_t i = 0; i < n; i++)
        for (const char *p = labels[i];; p++) {
            h = (h ^ (unsigned char)*p) * 1099511628211u;
            if (!*p) break;
        }
    return h;
}

/* A copy in which bytes that are no UTF-8 are '?': a scraper refuses the whole page for one such byte in a file's name. */
static char *copy_label(const char *value) {
    char *copy = strdup(value);
    if (copy) text_clean(copy);
    return copy;
}

static struct series *find(enum metric_id id, const char *const *labels, uint32_t n, uint64_t hash) {
    for (struct series *s = stores[id].first; s; s = s->next) {
        uint32_t same = 0;
        while (s->hash == hash && same < n && strcmp(s->labels[same], labels[same]) == 0) same++;
        if (s->hash == hash && same == n) return s;
    }
    return NULL;
}

static void free_series(struct series *s) {
    for (uint32_t i = 0; i < LABELS_MAX; i++) free(s->labels[i]);
    free(s);
}

/* The series of these labels, made if there is none. NULL: no memory (the observation is lost). */
static struct series *get(enum metric_id id, const char *const *labels) {
    static const char *const other[LABELS_MAX] = {"other", "other"};
    uint32_t n = n_labels(&families[id]);
    const char *clean[LABELS_MAX] = {0};
    char *copies[LABELS_MAX] = {0};
    struct series *s = NULL;
    for (uint32_t i = 0; i < n; i++)
        if (!(clean[i] = copies[i] = copy_label(labels[i]))) goto done;
    uint64_t hash = hash_labels(clean, n);
    s = find(id, clean, n, hash);
    if (!s && n && stores[id].count >= SERIES_MAX - 1) {
        hash = hash_labels(other, n);
        s = find(id, other, n, hash);
        for (uint32_t i = 0; !s && i < n; i++) {
            free(copies[i]);
            if (!(copies[i] = strdup(other[i]))) goto done;
        }
    }
    if (s || !(s = sh_calloc(1, sizeof(*s)))) goto done;
    s->hash = hash;
    memcpy(s->labels, copies, sizeof(s->labels));
    memset(copies, 0, sizeof(copies));
    if (!stores[id].end) stores[id].end = &stores[id].first;
    *stores[id].end = s;
    stores[id].end = &s->next;
    stores[id].count++;
done:
    for (uint32_t i = 0; i < LABELS_MAX; i++) free(copies[i]);
    return s;
}

void metric_add(enum metric_id id, const char *const *labels, double value) {
    pthread_mutex_lock(&lock);
    struct series *s = get(id, labels);
    if (s) s->value += value;
    pthread_mutex_unlock(&lock);
}

void metric_set(enum metric_id id, const char *const *labels, double value) {
    pthread_mutex_lock(&lock);
    struct series *s = get(id, labels);
    if (s) s->value = value;
    pthread_mutex_unlock(&lock);
}

void metric_observe(enum metric_id id, const char *const *labels, double value) {
    pthread_mutex_lock(&lock);
    struct series *s = get(id, labels);
    if (s) {
        uint32_t i = 0;
        while (families[id].buckets[i] > 0 && !(value <= families[id].buckets[i])) i++;
        s->counts[i]++;
        s->value += value;
    }
    pthread_mutex_unlock(&lock);
}

void metric_remove(enum metric_id id, const char *const *labels) {
    uint32_t n = n_labels(&families[id]);
    pthread_mutex_lock(&lock);
    struct series *s = find(id, labels, n, hash_labels(labels, n));
    for (struct series **p = &stores[id].first; s && *p; p = &(*p)->next)
        if (*p == s) {
            if (stores[id].end == &s->next) stores[id].end = p;
            *p = s->next;
            stores[id].count--;
            free_series(s);
            break;
        }
    pthread_mutex_unlock(&lock);
}

static void write_number(FILE *out, double v) {
    if (isnan(v)) {
        fputs("NaN", out);
    } else if (isinf(v)) {
        fputs(v > 0 ? "+Inf" : "-Inf", out);
    } else {
        char text[40];
        for (int digits = 6; digits <= 17; digits++) { /* the shortest that reads back as the same number */
            snprintf(text, sizeof(text), "%.*g", digits, v);
            if (strtod(text, NULL) == v) break;
        }
        fputs(text, out);
    }
}

static void write_series(FILE *out, const struct family *f, const char *suffix, const struct series *s, const char *le) {
    char open = '{';
    fprintf(out, "%s%s", f->name, suffix);
    for (uint32_t i = 0; f->labels[i]; i++, open = ',') {
        fprintf(out, "%c%s=\"", open, f->labels[i]);
        for (const char *p = s->labels[i]; *p; p++) {
            if (*p == '\\' || *p == '"') fputc('\\', out);
            if (*p == '\n') fputs("\\n", out);
            else fputc(*p, out);
        }
        fputc('"', out);
    }
    if (le) {
        fprintf(out, "%cle=\"%s\"", open, le);
        open = ',';
    }
    fputs(open == '{' ? " " : "} ", out);
}

static void write_histogram(FILE *out, const struct family *f, const struct series *s) {
    uint32_t n = n_buckets(f);
    uint64_t sum = 0;
    for (uint32_t i = 0; i <= n; i++) {
        char le[40] = "+Inf";
        if (i < n) snprintf(le, sizeof(le), "%g", f->buckets[i]);
        sum += s->counts[i];
        write_series(out, f, "_bucket", s, le);
        fprintf(out, "%llu\n", (unsigned long long)sum);
    }
    write_series(out, f, "_sum", s, NULL);
    write_number(out, s->value);
    fputc('\n', out);
    write_series(out, f, "_count", s, NULL);
    fprintf(out, "%llu\n", (unsigned long long)sum);
}

char *metrics_text(size_t *length) {
    static const struct series zero;
    char *text = NULL;
    FILE *out = open_memstream(&text, length);
    if (!out) return NULL;
    pthread_mutex_lock(&lock);
    for (uint32_t id = 0; id < METRIC_COUNT; id++) {
        const struct family *f = &families[id];
        fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name, type_names[f->type]);
        /* A family without labels is there from the first scrape on. */
        for (const struct series *s = stores[id].first || f->labels[0] ? stores[id].first : &zero; s; s = s->next) {
            if (f->type == HISTOGRAM) {
                write_histogram(out, f, s);
            } else {
                write_series(out, f, "", s, NULL);
                write_number(out, s->value);
                fputc('\n', out);
            }
        }
    }
    pthread_mutex_unlock(&lock);
    bool bad = ferror(out) != 0;
    if (fclose(out) != 0 || bad) {
        free(text);
        return NULL;
    }
    return text;
}
