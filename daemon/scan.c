/*
 * scan.c - the loader's search for models, what it makes of the registry, and the reading of headers.
 *
 * A search and what is known of headers come together without the lock; the registry is then brought into agreement under it, in time
 * proportional to the number of models. Headers that are not known are read one by one between other work. When all are, those who wait
 * for the scan are told.
 */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/text.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

enum { LOG_LEFT_OUT_MAX = 20 };

/* ---- what is found ----------------------------------------------------------------------------------- */

struct scan {
    struct found_list list;
    const struct header **headers; /* [list.count]; NULL: not known yet */
    bool *taken;                   /* [list.count]: a model of the registry is this one */
    struct hash_index by_path;     /* list's items */
};

static bool scan_prepare(struct scan *scan) {
    scan->headers = sh_calloc(scan->list.count + 1ull, sizeof *scan->headers);
    scan->taken = sh_calloc(scan->list.count + 1ull, sizeof *scan->taken);
    if (!scan->headers || !scan->taken) return false;
    for (uint32_t i = 0; i < scan->list.count; i++) {
        const struct found_model *found = &scan->list.items[i];
        if (!hash_put(&scan->by_path, hash_text(found->path), i)) return false;
        scan->headers[i] = headers_find(registry.headers, found->path, &found->identity, found->parts);
    }
    return true;
}

static void scan_finish(struct scan *scan) {
    hash_finish(&scan->by_path);
    free(scan->headers);
    free(scan->taken);
    found_list_finish(&scan->list);
}

static uint32_t find_path(const struct scan *scan, const char *path) {
    uint32_t at = 0, i;
    while (hash_next(&scan->by_path, hash_text(path), &at, &i))
        if (strcmp(scan->list.items[i].path, path) == 0) return i;
    return UINT32_MAX;
}

/* Two scans mostly tell the same in the same order: *at is where the last one was found. */
static bool was_left_out(const struct found_list *before, const struct left_out *out, uint32_t *at) {
    for (uint32_t n = 0; n < before->n_left_out; n++) {
        const uint32_t i = (*at + n) % before->n_left_out;
        if (strcmp(before->left_out[i].path, out->path) != 0 || strcmp(before->left_out[i].reason, out->reason) != 0) continue;
        *at = i + 1;
        return true;
    }
    return false;
}

/* What the scan before this one did not say. */
static void log_news(const struct found_list *before, const struct found_list *now) {
    uint32_t news = 0, at = 0;
    for (uint32_t i = 0; i < now->n_roots; i++) {
        const struct found_root *root = &now->roots[i];
        bool known = !root->error;
        for (uint32_t j = 0; j < before->n_roots && !known; j++)
            known = before->roots[j].error && strcmp(before->roots[j].path, root->path) == 0 &&
                    strcmp(before->roots[j].error, root->error) == 0;
        if (known) continue;
        if (root->configured) log_warning("models in %s are not found: %s", root->path, root->error);
        else log_notice("models in %s are not found: %s", root->path, root->error);
    }
    for (uint32_t i = 0; i < now->n_left_out && news <= LOG_LEFT_OUT_MAX; i++) {
        if (was_left_out(before, &now->left_out[i], &at) || ++news > LOG_LEFT_OUT_MAX) continue;
        log_notice("left out: %s: %s", now->left_out[i].path, now->left_out[i].reason);
    }
    if (news > LOG_LEFT_OUT_MAX) log_notice("more is left out: shimmyctl discover --all lists it");
}

/* ---- the registry ------------------------------------------------------------------------------------ */

static bool is_idle(const struct model *m) { return (m->state == MODEL_DISCOVERED || m->state == MODEL_FAILED) && !m->loads; }

/* Takes over the further names of what was found; of a model that is in use under another id that one, too. */
static void take_names(struct model *m, struct found_model *found) {
    model_drop_names(m);
    if (strcmp(m->id, found->id) != 0) {
        char **names = realloc(found->names, (found->n_names + 1) * sizeof *names);
        if (names) {
            found->names = names;
            names[found->n_names++] = found->id;
            found->id = NULL;
        }
    }
    m->names = found->names;
    m->n_names = found->n_names;
    found->names = NULL;
    found->n_names = 0;
}

static void leave_out(const char *path, const char *other) { found_leave_out(&registry.found, path, "no language model, but %s", other); }

static void apply_header(struct model *m, const struct header *header) {
    m->header_read = true;
    m->header_passing = header->passing;
    if (header->size_bytes) {
        set_text(&m->arch, header->arch);
        set_text(&m->type, header->type);
        set_text(&m->name, header->name);
        set_text(&m->base, header->base);
        m->adapter = header->adapter;
        if (m->adapter) registry.adapters_known = true;
        m->size_bytes = header->size_bytes;
    }
    if (!is_idle(m)) return;
    char error[600];
    if (*header->other) snprintf(error, sizeof error, "%s: no language model, but %s", m->path, header->other);
    else snprintf(error, sizeof error, "%s", header->error);
    if (*error && strcmp(m->error, error) != 0) log_write(SH_LOG_NOTICE, m->id, "cannot be loaded: %s", error);
    set_text(&m->error, error);
    model_set_state(m, *error ? MODEL_FAILED : MODEL_DISCOVERED);
}

/* A model of the registry is what was found. */
static void adopt(struct model *m, struct found_model *found, const struct header *header) {
    m->listed = true;
    m->root = found->root;
    take_names(m, found);
    const bool same = identity_equal(&m->identity, &found->identity) && m->split_hash == found->parts;
    if (!same) {
        m->identity = found->identity;
        m->split_hash = found->parts;
        m->size_bytes = found->size_bytes;
        m->header_read = false;
    }
    if (header && !m->header_read) apply_header(m, header);
    if (!header && m->header_passing) m->header_read = false;
}

/* The model in use that goes by the name of a file which lies elsewhere now: a store puts a new version beside the old one. */
static struct model *moved(const struct scan *scan, const struct found_model *found) {
    for (struct model *m = registry.models; m; m = m->next)
        if (!is_idle(m) && !m->by_path && m->listed && strcmp(m->id, found->id) == 0 && find_path(scan, m->path) == UINT32_MAX) return m;
    return NULL;
}

static void set_path(struct model *m, char *path) {
    struct old_path *old = sh_calloc(1, sizeof *old);
    if (!old) return;
    *old = (struct old_path){m->path, m->old_paths}; /* others may be reading it */
    m->old_paths = old;
    m->path = path;
}

static void add_found(struct scan *scan, uint32_t i) {
    struct found_model *found = &scan->list.items[i];
    struct model *m = moved(scan, found);
    if (m) {
        char *path = strdup(found->path);
        if (path) set_path(m, path);
        adopt(m, found, scan->headers[i]);
        return;
    }
    m = model_create(found);
    if (!m) {
        found_leave_out(&registry.found, found->path, "no memory");
        return;
    }
    adopt(m, found, scan->headers[i]);
    m->next = registry.models; /* in order later */
    registry.models = m;
}

static void forget(struct model *m) {
    m->listed = false;
    for (int state = MODEL_DISCOVERED; state <= MODEL_FAILED; state++) {
        const char *const labels[] = {m->id, model_state_name((enum model_state)state)};
        metric_remove(METRIC_MODEL_STATE, labels);
    }
    model_unref(m);
}

static void drop_unlisted(void) {
    for (struct model **at = &registry.models; *at;) {
        struct model *m = *at;
        if (m->listed && !(m->gone && is_idle(m))) {
            at = &m->next;
            continue;
        }
        *at = m->next;
        forget(m);
    }
}

static int by_id(const void *a, const void *b) {
    const struct model *x = *(struct model *const *)a, *y = *(struct model *const *)b;
    const int order = strcmp(x->id, y->id);
    return order ? order : strcmp(x->path, y->path);
}

static void sort_models(void) {
    uint32_t n = 0;
    for (struct model *m = registry.models; m; m = m->next) n++;
    struct model **all = sh_calloc(n + 1ull, sizeof(struct model *));
    if (!all) return;
    n = 0;
    for (struct model *m = registry.models; m; m = m->next) all[n++] = m;
    qsort(all, n, sizeof(struct model *), by_id);
    registry.models = n ? all[0] : NULL;
    for (uint32_t i = 0; i < n; i++) all[i]->next = all[i + 1];
    free(all);
}

/* Brings the registry into agreement with what was found. The lock is held. */
static void merge(struct scan *scan) {
    for (struct model *m = registry.models; m; m = m->next) {
        const uint32_t i = find_path(scan, m->path);
        m->listed = m->by_path || !is_idle(m);
        if (i == UINT32_MAX) continue;
        m->gone = false;
        struct found_model *found = &scan->list.items[i];
        const struct header *header = scan->headers[i];
        const bool as_before = strcmp(m->id, found->id) == 0 && m->store_name == found->store_name && !(header && *header->other);
        if (!as_before && is_idle(m) && !m->by_path) continue; /* it is made anew, if at all */
        scan->taken[i] = true;
        adopt(m, found, header);
    }
    for (uint32_t i = 0; i < scan->list.count; i++) {
        if (scan->taken[i]) continue;
        const struct header *header = scan->headers[i];
        if (header && *header->other) leave_out(scan->list.items[i].path, header->other);
        else add_found(scan, i);
    }
    drop_unlisted();
    sort_models();
}

/* Models that were registered by their path: is the file still there? Looked at without the lock. */
static void look_at_paths(void) {
    uint32_t n = 0, count = 0;
    pthread_mutex_lock(&registry.lock);
    for (struct model *m = registry.models; m; m = m->next) count += m->by_path;
    struct model **all = sh_calloc(count + 1ull, sizeof(struct model *));
    bool *gone = sh_calloc(count + 1ull, sizeof *gone);
    for (struct model *m = registry.models; m && all && gone; m = m->next)
        if (m->by_path) all[n++] = model_ref(m);
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < n; i++) {
        struct file_identity identity;
        gone[i] = !identity_of(all[i]->path, &identity);
    }
    pthread_mutex_lock(&registry.lock);
    for (uint32_t i = 0; i < n; i++) all[i]->gone = gone[i];
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < n; i++) model_unref(all[i]);
    free(all);
    free(gone);
}

static void open_headers(const struct config *config) {
    char path[PATH_MAX], *name = NULL;
    if (registry.headers) return;
    if (config_cache_directory(config, path, sizeof path - 20)) {
        name = path;
        strcat(path, "/discovered");
    } else if (*path) {
        log_warning("cache_dir %s cannot be made (%s): headers are read anew at each start", path, strerror(errno));
    }
    registry.headers = headers_open(name);
}

void registry_scan(void) {
    struct config *config = config_ref(registry.config);
    registry.scan_wanted = false;
    registry.scan_told = false;
    pthread_mutex_unlock(&registry.lock);
    struct scan scan = {0};
    const uint64_t start = sh_now_ns();
    open_headers(config);
    discover_all(config, &scan.list);
    look_at_paths();
    const bool ready = registry.headers && scan_prepare(&scan);
    config_unref(config);
    pthread_mutex_lock(&registry.lock);
    if (ready) {
        struct found_list before = registry.found; /* the loader's thread alone writes it */
        registry.found = (struct found_list){.left_out = scan.list.left_out,
                                             .n_left_out = scan.list.n_left_out,
                                             .left_out_capacity = scan.list.left_out_capacity,
                                             .roots = scan.list.roots,
                                             .n_roots = scan.list.n_roots,
                                             .roots_capacity = scan.list.roots_capacity};
        scan.list.left_out = NULL;
        scan.list.roots = NULL;
        scan.list.n_left_out = scan.list.n_roots = 0;
        merge(&scan);
        registry.scan_ns = sh_now_ns() - start;
        log_news(&before, &registry.found);
        found_list_finish(&before);
    } else {
        log_error("no memory to look for models");
    }
    log_info("%u model files found in %.1f ms", scan.list.count, (double)(sh_now_ns() - start) / 1e6);
    scan_finish(&scan);
    if (registry.settled) registry.settled(registry.settled_user); /* a name that was waited for may be known now */
}

/* ---- headers ----------------------------------------------------------------------------------------- */

void model_read_header(struct model *m) {
    struct header header;
    const struct file_identity identity = m->identity;
    const uint64_t parts = m->split_hash;
    model_ref(m);
    pthread_mutex_unlock(&registry.lock);
    const bool read = header_read(m->path, &header);
    pthread_mutex_lock(&registry.lock);
    m->header_read = true; /* without memory it is not tried again before the next scan */
    m->header_passing = !read;
    if (read) {
        const bool drop = *header.other && is_idle(m) && !m->by_path && m->listed;
        if (drop) {
            leave_out(m->path, header.other);
            log_notice("left out: %s: no language model, but %s", m->path, header.other);
            for (struct model **at = &registry.models; *at; at = &(*at)->next) {
                if (*at != m) continue;
                *at = m->next;
                forget(m);
                break;
            }
        } else {
            apply_header(m, &header);
        }
        headers_put(registry.headers, m->path, &identity, parts, &header);
        header_finish(&header);
    }
    model_unref(m);
}

bool registry_scan_ended(void) {
    if (registry.scan_told) return false;
    registry.scan_told = true;
    registry.scanned = true;
    pthread_cond_broadcast(&registry.changed);
    registry_tell_settled();
    struct scan_wait *waits = registry.scan_waits;
    registry.scan_waits = NULL;
    pthread_mutex_unlock(&registry.lock);
    malloc_trim(0); /* what headers took */
    if (registry.headers && !headers_save(registry.headers))
        log_info("what headers said cannot be kept for the next start: %s", strerror(errno));
    scan_waits_done(waits);
    pthread_mutex_lock(&registry.lock);
    return true;
}

void scan_waits_done(struct scan_wait *waits) {
    for (struct scan_wait *next; waits; waits = next) {
        next = waits->next;
        waits->done(waits->user);
        free(waits);
    }
}

void registry_tell_settled(void) {
    if (registry.settled_told || !(registry.scanned || sh_now_ns() >= registry.patience_ns)) return;
    registry.settled_told = true;
    if (registry.settled) registry.settled(registry.settled_user);
}

/* ---- what callers see -------------------------------------------------------------------------------- */

void models_on_settled(void (*fn)(void *user), void *user) {
    pthread_mutex_lock(&registry.lock);
    registry.settled = fn;
    registry.settled_user = user;
    pthread_mutex_unlock(&registry.lock);
}

void models_discover(void) {
    pthread_mutex_lock(&registry.lock);
    registry.scan_wanted = true;
    pthread_cond_signal(&registry.wake);
    pthread_mutex_unlock(&registry.lock);
}

bool models_discover_then(void (*done)(void *user), void *user) {
    struct scan_wait *wait = sh_calloc(1, sizeof *wait);
    if (!wait) return false;
    pthread_mutex_lock(&registry.lock);
    const bool can = registry.started && !registry.stopping;
    if (can) {
        *wait = (struct scan_wait){done, user, registry.scan_waits};
        registry.scan_waits = wait;
        registry.scan_wanted = true;
        pthread_cond_signal(&registry.wake);
    }
    pthread_mutex_unlock(&registry.lock);
    if (!can) free(wait);
    return can;
}

json_t *models_discovery(void) {
    json_t *left_out = json_array(), *roots = json_array();
    pthread_mutex_lock(&registry.lock);
    const struct found_list *found = &registry.found;
    uint32_t *counts = sh_calloc(found->n_roots + 1ull, sizeof *counts);
    for (const struct model *m = registry.models; m && counts; m = m->next)
        if (m->listed && !m->adapter && m->root < found->n_roots) counts[m->root]++;
    for (uint32_t i = 0; i < found->n_left_out; i++) {
        const struct left_out *out = &found->left_out[i];
        json_array_append_new(left_out, json_pack("{so so}", "path", json_bytes(out->path, strlen(out->path)), "reason",
                                                  json_bytes(out->reason, strlen(out->reason))));
    }
    for (uint32_t i = 0; i < found->n_roots; i++) {
        const struct found_root *root = &found->roots[i];
        json_array_append_new(roots, json_pack("{so si so}", "path", json_bytes(root->path, strlen(root->path)), "models",
                                               counts ? (int)counts[i] : 0, "error",
                                               root->error ? json_bytes(root->error, strlen(root->error)) : json_null()));
    }
    const double milliseconds = (double)registry.scan_ns / 1e6;
    pthread_mutex_unlock(&registry.lock);
    free(counts);
    return json_pack("{so so sf}", "left_out", left_out, "roots", roots, "milliseconds", milliseconds);
}
