/* names.c - from a name to a model (see models.h): how names are compared, what they fit, and what is near where they fit none. */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <ctype.h>
#include <stdio.h>

/* How names are compared: lower case, `_` and space as `-`. */
static void normalise(const char *name, char *out, size_t cap) {
    size_t i = 0;
    for (; name[i] && i + 1 < cap; i++) {
        unsigned char c = (unsigned char)name[i];
        out[i] = c == '_' || c == ' ' ? '-' : (char)tolower(c);
    }
    out[i] = 0;
}

enum { NAME_MAX_LENGTH = TEXT_DISTANCE_MAX, CANDIDATES_MAX = 8 };

bool same_name(const char *a, const char *b) {
    char x[NAME_MAX_LENGTH], y[NAME_MAX_LENGTH];
    normalise(a, x, sizeof x);
    normalise(b, y, sizeof y);
    return strcmp(x, y) == 0;
}

bool is_path(const char *name) {
    size_t length = strlen(name);
    return strchr(name, '/') || (length > 5 && strcasecmp(name + length - 5, ".gguf") == 0);
}

struct match {
    struct model *models[CANDIDATES_MAX];
    uint32_t count; /* may be more than fit */
};

static void add_match(struct match *match, struct model *model) {
    if (match->count < CANDIDATES_MAX) match->models[match->count] = model;
    match->count++;
}

/* All models that a name fits, by the first rule that any fits. The lock is held. */
static struct match match_locked(const char *name) {
    struct match match = {0};
    struct file_identity identity;
    if (is_path(name) && identity_of(name, &identity)) {
        for (struct model *m = registry.models; m && !match.count; m = m->next)
            if (m->identity.device == identity.device && m->identity.inode == identity.inode) add_match(&match, m);
        if (match.count) return match;
    }
    char stem[NAME_MAX_LENGTH];
    size_t length = strlen(name);
    snprintf(stem, sizeof stem, "%s", name);
    if (!strchr(name, '/') && is_path(name) && length < sizeof stem) stem[length - 5] = 0;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->listed && same_name(m->id, stem)) add_match(&match, m);
    for (struct model *m = registry.models; m && !match.count; m = m->next)
        if (m->listed && strcmp(m->path, name) == 0) add_match(&match, m);
    if (match.count) return match;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->listed && *m->name && same_name(m->name, name)) add_match(&match, m);
    return match;
}

/* The models whose names come nearest to an unknown one, best first. The lock is held. */
static struct match nearest_locked(const char *name) {
    struct match match = {0};
    uint32_t distances[CANDIDATES_MAX];
    char wanted[NAME_MAX_LENGTH], other[NAME_MAX_LENGTH];
    normalise(name, wanted, sizeof wanted);
    for (struct model *m = registry.models; m; m = m->next) {
        if (!m->listed) continue;
        normalise(m->id, other, sizeof other);
        /* A part of the name is near, however long the rest is. */
        bool part = *wanted && (strstr(other, wanted) || strstr(wanted, other));
        uint32_t distance = part ? 1 : text_distance(wanted, other);
        if (distance > 2 + (uint32_t)strlen(wanted) / 3) continue;
        uint32_t at = match.count < 4 ? match.count++ : 4;
        while (at > 0 && distances[at - 1] > distance) at--;
        if (at >= 4) continue;
        for (uint32_t j = match.count - 1; j > at; j--) {
            distances[j] = distances[j - 1];
            match.models[j] = match.models[j - 1];
        }
        distances[at] = distance;
        match.models[at] = m;
    }
    return match;
}

static void SH_PRINTF(3, 4) append(char *text, size_t cap, const char *fmt, ...) {
    size_t have = strlen(text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + have, cap - have, fmt, args);
    va_end(args);
}

static enum sh_code resolve_locked(const char *name, struct model **out, struct sh_error *err) {
    struct match match = match_locked(name);
    /* In the first moments the scan may be what is missing. */
    uint64_t deadline = sh_now_ns() + 2000000000;
    while (!match.count && registry.started && !registry.scanned && registry_wait_changed(deadline)) match = match_locked(name);
    if (match.count == 1) {
        *out = model_ref(match.models[0]);
        return SH_OK;
    }
    char list[400] = "";
    if (match.count > 1) {
        for (uint32_t i = 0; i < match.count && i < CANDIDATES_MAX; i++)
            append(list, sizeof list, "%s%s", i ? ", " : "", match.models[i]->path);
        return sh_fail(err, SH_ERR_INVALID, "'%.80s' fits %u models: give the path of one of %s", name, match.count, list);
    }
    match = nearest_locked(name);
    for (uint32_t i = 0; i < match.count; i++) append(list, sizeof list, "%s%s", i ? ", " : "", match.models[i]->id);
    if (match.count) return sh_fail(err, SH_ERR_NOT_FOUND, "no model is called '%.80s': the nearest are %s", name, list);
    return sh_fail(err, SH_ERR_NOT_FOUND, "no model is called '%.80s': %s", name,
                   registry.models ? "`shimmyctl list` shows those there are"
                                   : "no models are known (option model_dir says where they are)");
}

enum sh_code models_resolve(const char *name, struct model **out, struct sh_error *err) {
    pthread_mutex_lock(&registry.lock);
    enum sh_code code = resolve_locked(name, out, err);
    pthread_mutex_unlock(&registry.lock);
    return code;
}

enum sh_code models_resolve_path(const char *name, struct model **out, struct sh_error *err) {
    if (!is_path(name)) return models_resolve(name, out, err);
    pthread_mutex_lock(&registry.lock);
    struct match match = match_locked(name);
    pthread_mutex_unlock(&registry.lock);
    if (match.count) return models_resolve(name, out, err);

    struct found_model found;
    enum sh_code code = discover_file(name, &found, err);
    if (code) return code;
    pthread_mutex_lock(&registry.lock);
    match = match_locked(found.path); /* any shard leads to the first */
    if (match.count == 1) {
        *out = model_ref(match.models[0]);
    } else {
        struct model *model = model_create(&found);
        if (model) {
            model->by_path = true;
            model_insert(model);
            *out = model_ref(model);
            pthread_cond_signal(&registry.wake); /* its header is to be read */
        } else {
            code = sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory", name);
        }
    }
    pthread_mutex_unlock(&registry.lock);
    found_model_finish(&found);
    return code;
}

json_t *models_candidates(const char *name) {
    json_t *list = json_array();
    pthread_mutex_lock(&registry.lock);
    struct match match = match_locked(name);
    bool fits = match.count > 0;
    if (!fits) match = nearest_locked(name);
    for (uint32_t i = 0; i < match.count && i < CANDIDATES_MAX; i++) {
        const char *text = fits ? match.models[i]->path : match.models[i]->id;
        json_array_append_new(list, json_bytes(text, strlen(text)));
    }
    pthread_mutex_unlock(&registry.lock);
    return list;
}
