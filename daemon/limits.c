/* limits.c - see limits.h. One mutex guards all of it; nothing is done under it that takes long. */
#include "daemon/limits.h"

#include "compute/base.h"
#include "daemon/hash.h"
#include "daemon/text.h"

#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

enum { BUCKETS = 4096, SERVICE_SLOTS = 64, EVICT_LOOKS = 64 };

struct key {
    char *text;
    struct limits_client client;
};

struct entry {
    struct entry *next;
    uint64_t id;
    double requests, tokens; /* spent, at time_ns */
    uint64_t time_ns;
    uint32_t running, connections;
};

struct limits {
    pthread_mutex_t lock;
    struct limits_rates rates;
    struct key *keys;
    uint32_t n_keys;
    struct entry *table[BUCKETS];
    uint32_t count, hand; /* hand: the bucket where the next search for one to forget begins */
    double service_s[SERVICE_SLOTS]; /* by the hash of a model's id; two models in one slot only make an estimate worse */
};

/* ---- keys and addresses ------------------------------------------------------------------------------ */

static uint64_t number_of(const void *bytes, size_t count) {
    const uint64_t id = text_hash(bytes, count);
    return id ? id : 1;
}

static void free_keys(struct key *keys, uint32_t count) {
    for (uint32_t i = 0; keys && i < count; i++) free(keys[i].text);
    free(keys);
}

static enum sh_code add_key(struct key **keys, uint32_t *count, const char *text, const char *name, const char *where,
                            struct sh_error *err) {
    const size_t length = strlen(text);
    if (length > LIMITS_KEY_BYTES)
        return sh_fail(err, SH_ERR_INVALID, "%s: the key has %zu bytes, expected at most %d", where, length, LIMITS_KEY_BYTES);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c <= ' ' || *c > '~') /* it has to fit into a header's value */
            return sh_fail(err, SH_ERR_INVALID, "%s: found a key with a space or a byte that is not ASCII, expected neither", where);
    if (strlen(name) >= LIMITS_NAME_BYTES)
        return sh_fail(err, SH_ERR_INVALID, "%s: the name has %zu bytes, expected at most %d", where, strlen(name), LIMITS_NAME_BYTES - 1);
    if (*count == LIMITS_KEYS_MAX) return sh_fail(err, SH_ERR_LIMIT, "%s: expected at most %d keys", where, LIMITS_KEYS_MAX);
    for (uint32_t i = 0; i < *count; i++)
        if (strcmp((*keys)[i].text, text) == 0) return sh_fail(err, SH_ERR_INVALID, "%s: the key is there twice", where);
    struct key *grown = realloc(*keys, (*count + 1ull) * sizeof *grown);
    if (!grown) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for API keys");
    *keys = grown;
    struct key *key = &grown[*count];
    *key = (struct key){.text = strdup(text), .client = {.id = number_of(text, length)}};
    if (!key->text) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for API keys");
    snprintf(key->client.name, sizeof key->client.name, "%s", name);
    text_clean(key->client.name);
    ++*count;
    return SH_OK;
}

static enum sh_code read_keys(const char *path, struct key **keys, uint32_t *count, struct sh_error *err) {
    FILE *file = fopen(path, "re");
    if (!file) return sh_fail(err, SH_ERR_IO, "api_key_file %s: %s", path, strerror(errno));
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    enum sh_code code = SH_OK;
    for (uint32_t number = 1; code == SH_OK && (length = getline(&line, &capacity, file)) >= 0; number++) {
        char where[600];
        snprintf(where, sizeof where, "%s:%u", path, number);
        while (length > 0 && strchr(" \t\r\n", line[length - 1])) line[--length] = 0;
        char *key = line + strspn(line, " \t");
        if (!*key || *key == '#') continue;
        char *name = key + strcspn(key, " \t");
        if (*name) {
            *name++ = 0;
            name += strspn(name, " \t");
        }
        code = add_key(keys, count, key, name, where, err);
    }
    if (code == SH_OK && ferror(file)) code = sh_fail(err, SH_ERR_IO, "api_key_file %s: cannot be read", path);
    if (code == SH_OK && *count == 0) /* an empty file would leave the door open that it was to shut */
        code = sh_fail(err, SH_ERR_INVALID, "api_key_file %s: found no keys, expected at least one", path);
    free(line);
    fclose(file);
    return code;
}

static bool same_secret(const char *a, const char *b) {
    const size_t n = strlen(a), m = strlen(b);
    unsigned char different = n != m;
    for (size_t i = 0; i < m; i++) /* takes as long for any guess of one length */
        different |= (unsigned char)(a[n ? i % n : 0] ^ b[i]);
    return !different;
}

bool limits_has_keys(struct limits *limits) {
    pthread_mutex_lock(&limits->lock);
    const bool any = limits->n_keys > 0;
    pthread_mutex_unlock(&limits->lock);
    return any;
}

bool limits_find_key(struct limits *limits, const char *given, struct limits_client *out) {
    bool found = false;
    pthread_mutex_lock(&limits->lock);
    for (uint32_t i = 0; i < limits->n_keys; i++) /* all of them, whichever it is */
        if (same_secret(given, limits->keys[i].text)) {
            *out = limits->keys[i].client;
            found = true;
        }
    pthread_mutex_unlock(&limits->lock);
    return found;
}

uint64_t limits_address(const struct sockaddr *address) {
    if (address && address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        return number_of(&v4->sin_addr, sizeof v4->sin_addr);
    }
    if (address && address->sa_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
        return IN6_IS_ADDR_V4MAPPED(v6) ? number_of(v6->s6_addr + 12, 4) : number_of(v6->s6_addr, 8);
    }
    return number_of("", 0);
}

/* Known to nobody: else a text could be made that has the salt of another client, whose number may be that of a known address. */
static uint64_t secrets[2];
static pthread_once_t secrets_drawn = PTHREAD_ONCE_INIT;

static void draw_secrets(void) {
    if (getrandom(secrets, sizeof secrets, 0) != (ssize_t)sizeof secrets) secrets[0] = sh_now_ns(); /* better than none */
}

uint64_t limits_salt(uint64_t client, const char *cache_salt) {
    if (!client && !cache_salt) return 0;
    pthread_once(&secrets_drawn, draw_secrets);
    const uint64_t parts[3] = {client, cache_salt != NULL, cache_salt ? hash_keyed(secrets, cache_salt, strlen(cache_salt)) : 0};
    const uint64_t salt = hash_keyed(secrets, parts, sizeof parts);
    return salt ? salt : 1;
}

/* ---- clients ----------------------------------------------------------------------------------------- */

/* What is spent melts at the rate of the minute. */
static void melt(const struct limits_rates *rates, struct entry *entry, uint64_t now_ns) {
    const double minutes = now_ns > entry->time_ns ? (double)(now_ns - entry->time_ns) / 60e9 : 0;
    entry->requests = fmax(0, entry->requests - minutes * rates->requests);
    entry->tokens = fmax(0, entry->tokens - minutes * (double)rates->tokens);
    if (rates->requests == 0) entry->requests = 0;
    if (rates->tokens == 0) entry->tokens = 0;
    if (now_ns > entry->time_ns) entry->time_ns = now_ns;
}

static struct entry **place_of(struct limits *limits, uint64_t id) {
    struct entry **at = &limits->table[id % BUCKETS];
    while (*at && (*at)->id != id) at = &(*at)->next;
    return at;
}

/* Makes room by forgetting one that is not there now: the one among a few that has least to lose. */
static bool forget_one(struct limits *limits, uint64_t now_ns) {
    struct entry **best = NULL;
    for (uint32_t looked = 0, buckets = 0; looked < EVICT_LOOKS && buckets < BUCKETS; buckets++) {
        limits->hand = (limits->hand + 1) % BUCKETS;
        for (struct entry **at = &limits->table[limits->hand]; *at; at = &(*at)->next) {
            struct entry *entry = *at;
            if (entry->running || entry->connections) continue;
            looked++;
            melt(&limits->rates, entry, now_ns);
            if (!best || entry->requests + entry->tokens < (*best)->requests + (*best)->tokens) best = at;
        }
    }
    if (!best) return false;
    struct entry *gone = *best;
    *best = gone->next;
    free(gone);
    limits->count--;
    return true;
}

/* NULL: no memory, or too many clients are here at once; such a one is not limited. */
static struct entry *get(struct limits *limits, uint64_t id, uint64_t now_ns) {
    struct entry **at = place_of(limits, id);
    if (*at) return *at;
    if (limits->count >= LIMITS_CLIENTS_MAX && !forget_one(limits, now_ns)) return NULL;
    at = place_of(limits, id);
    if (!(*at = sh_calloc(1, sizeof **at))) return NULL;
    (*at)->id = id;
    (*at)->time_ns = now_ns;
    limits->count++;
    return *at;
}

/* One that nothing is known of any more needs no entry. */
static void drop_if_blank(struct limits *limits, uint64_t id) {
    struct entry **at = place_of(limits, id), *entry = *at;
    if (!entry || entry->running || entry->connections || entry->requests > 0 || entry->tokens > 0) return;
    *at = entry->next;
    free(entry);
    limits->count--;
}

void limits_connect(struct limits *limits, uint64_t address, uint64_t now_ns) {
    pthread_mutex_lock(&limits->lock);
    struct entry *entry = get(limits, address, now_ns);
    if (entry) entry->connections++;
    pthread_mutex_unlock(&limits->lock);
}

void limits_disconnect(struct limits *limits, uint64_t address) {
    pthread_mutex_lock(&limits->lock);
    struct entry *entry = *place_of(limits, address);
    if (entry && entry->connections) entry->connections--;
    drop_if_blank(limits, address);
    pthread_mutex_unlock(&limits->lock);
}

bool limits_too_many_connections(struct limits *limits, uint64_t address, uint32_t spare) {
    pthread_mutex_lock(&limits->lock);
    const struct entry *entry = *place_of(limits, address);
    const bool many = entry && limits->rates.connections && entry->connections > (uint64_t)limits->rates.connections + spare;
    pthread_mutex_unlock(&limits->lock);
    return many;
}

static uint32_t whole_seconds(double seconds) { return seconds <= 1 ? 1 : seconds >= 86400 ? 86400 : (uint32_t)ceil(seconds); }

enum limits_verdict limits_begin(struct limits *limits, uint64_t client, uint64_t now_ns, struct limits_state *state) {
    enum limits_verdict verdict = LIMITS_GO;
    *state = (struct limits_state){.retry_s = 1};
    pthread_mutex_lock(&limits->lock);
    const struct limits_rates rates = limits->rates;
    const double burst = rates.burst ? rates.burst : rates.requests, tokens = (double)rates.tokens;
    struct entry *entry = get(limits, client, now_ns);
    if (entry) {
        melt(&rates, entry, now_ns);
        if (rates.requests && entry->requests + 1 > burst + 1e-9) {
            verdict = LIMITS_REQUESTS;
            state->retry_s = whole_seconds((entry->requests + 1 - burst) * 60 / rates.requests);
        } else if (rates.tokens && entry->tokens >= tokens) {
            verdict = LIMITS_TOKENS;
            state->retry_s = whole_seconds((entry->tokens - tokens + 1) * 60 / tokens);
        } else if (rates.running && entry->running >= rates.running) {
            verdict = LIMITS_RUNNING;
            state->running = rates.running;
        } else {
            entry->running++;
            if (rates.requests) entry->requests += 1;
        }
        if (rates.requests) {
            state->requests = rates.requests;
            state->requests_left = (uint64_t)fmax(0, burst - entry->requests + 1e-9);
            state->requests_reset_s = entry->requests * 60 / rates.requests;
        }
        if (rates.tokens) {
            state->tokens = rates.tokens;
            state->tokens_left = (uint64_t)fmax(0, tokens - entry->tokens);
            state->tokens_reset_s = entry->tokens * 60 / tokens;
        }
    }
    pthread_mutex_unlock(&limits->lock);
    return verdict;
}

void limits_end(struct limits *limits, uint64_t client) {
    pthread_mutex_lock(&limits->lock);
    struct entry *entry = *place_of(limits, client);
    if (entry && entry->running) entry->running--;
    drop_if_blank(limits, client);
    pthread_mutex_unlock(&limits->lock);
}

void limits_charge(struct limits *limits, uint64_t client, uint64_t tokens, uint64_t now_ns) {
    pthread_mutex_lock(&limits->lock);
    struct entry *entry = limits->rates.tokens && tokens ? get(limits, client, now_ns) : NULL;
    if (entry) {
        melt(&limits->rates, entry, now_ns);
        entry->tokens += (double)tokens;
    }
    pthread_mutex_unlock(&limits->lock);
}

/* ---- how long others take ---------------------------------------------------------------------------- */

void limits_note_service(struct limits *limits, const char *model, double seconds) {
    pthread_mutex_lock(&limits->lock);
    double *slot = &limits->service_s[text_hash(model, strlen(model)) % SERVICE_SLOTS];
    *slot = *slot > 0 ? *slot * 0.8 + seconds * 0.2 : seconds;
    pthread_mutex_unlock(&limits->lock);
}

uint32_t limits_estimate_wait(struct limits *limits, const char *model, uint32_t queued, uint32_t running) {
    pthread_mutex_lock(&limits->lock);
    const double service = limits->service_s[text_hash(model, strlen(model)) % SERVICE_SLOTS];
    pthread_mutex_unlock(&limits->lock);
    /* A place in the queue is free when one of those before it has gone; all of it moves on by `running` in the time of one. */
    const uint32_t wait = whole_seconds(service * (queued + 1.0) / (running ? running : 1));
    return wait < 600 ? wait : 600;
}

/* ---- life -------------------------------------------------------------------------------------------- */

enum sh_code limits_create(struct limits **out, struct sh_error *err) {
    struct limits *limits = sh_calloc(1, sizeof *limits);
    if (!limits) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the limits of clients");
    pthread_mutex_init(&limits->lock, NULL);
    *out = limits;
    return SH_OK;
}

void limits_destroy(struct limits *limits) {
    if (!limits) return;
    for (uint32_t i = 0; i < BUCKETS; i++)
        for (struct entry *entry = limits->table[i], *next; entry; entry = next) {
            next = entry->next;
            free(entry);
        }
    free_keys(limits->keys, limits->n_keys);
    pthread_mutex_destroy(&limits->lock);
    free(limits);
}

enum sh_code limits_configure(struct limits *limits, const struct limits_rates *rates, const char *api_key, const char *key_file,
                              struct sh_error *err) {
    struct key *keys = NULL;
    uint32_t count = 0;
    enum sh_code code = SH_OK;
    if (*key_file) code = read_keys(key_file, &keys, &count, err);
    if (code == SH_OK && *api_key) code = add_key(&keys, &count, api_key, "", "api_key", err);
    if (code) {
        free_keys(keys, count);
        return code;
    }
    pthread_mutex_lock(&limits->lock);
    struct key *old = limits->keys;
    const uint32_t n_old = limits->n_keys;
    limits->keys = keys;
    limits->n_keys = count;
    limits->rates = *rates;
    pthread_mutex_unlock(&limits->lock);
    free_keys(old, n_old);
    return SH_OK;
}
