/* names.c - from a name to a model (see models.h): how names are compared, what they fit, and what is near where they fit none. */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <ctype.h>
#include <stdio.h>

enum { NAME_MAX_LENGTH = TEXT_DISTANCE_MAX, CANDIDATES_MAX = 8 };

/* How names are compared: lower case, `_` and space as `-`. */
static char even(char c) { return c == '_' || c == ' ' ? '-' : (char)tolower((unsigned char)c); }

static void normalise(const char *name, char *out, size_t cap) {
    size_t i = 0;
    for (; name[i] && i + 1 < cap; i++) out[i] = even(name[i]);
    out[i] = 0;
}

bool same_name(const char *a, const char *b) {
    while (*a && even(*a) == even(*b)) a++, b++;
    return !*a && !*b;
}

/* A store's name of a model, NAME:TAG, is also meant by what Ollama takes for it: without its usual registry and namespace, and without a
 * tag that is "latest". */
static bool same_store_name(const char *have, const char *wanted) {
    static const char *const usual[] = {"registry.ollama.ai/", "library/"};
    for (uint32_t i = 0; i < SH_COUNT(usual); i++)
        if (strncasecmp(wanted, usual[i], strlen(usual[i])) == 0) wanted += strlen(usual[i]);
    if (same_name(have, wanted)) return true;
    const char *last = strrchr(wanted, '/'), *tag = strrchr(have, ':');
    if (strchr(last ? last : wanted, ':') || !tag || !same_name(tag, ":latest")) return false;
    for (; have < tag && even(*have) == even(*wanted); have++) wanted++;
    return have == tag && !*wanted;
}

bool is_path(const char *name) {
    size_t length = strlen(name);
    return strchr(name, '/') || (length > 5 && strcasecmp(name + length - 5, ".gguf") == 0);
}

/* A name as somebody asked for it. The file that it may be the path of is looked at before the registry's lock is taken. */
struct asked {
    const char *name;
    bool is_file;
    struct file_identity file;
};

static struct asked asked_for(const char *name) {
    struct asked asked = {.name = name};
    asked.is_file = is_path(name) && identity_of(name, &asked.file);
    return asked;
}

struct match {
    struct model *models[CANDIDATES_MAX];
    uint32_t count; /* may be more than fit */
};

static void add_match(struct match *match, struct model *model) {
    if (match->count < CANDIDATES_MAX) match->models[match->count] = model;
    match->count++;
}

static bool has_store_name(const struct model *m, const char *name) {
    if (m->store_name && same_store_name(m->id, name)) return true;
    for (uint32_t i = 0; i < m->n_names; i++)
        if (same_store_name(m->names[i], name)) return true;
    return false;
}

/* All models that a name fits, by the first rule that any fits. The lock is held. */
static struct match match_locked(const struct asked *asked) {
    struct match match = {0};
    const char *name = asked->name;
    if (asked->is_file) {
        for (struct model *m = registry.models; m && !match.count; m = m->next)
            if (m->identity.device == asked->file.device && m->identity.inode == asked->file.inode) add_match(&match, m);
        if (match.count) return match;
    }
    char stem[NAME_MAX_LENGTH];
    size_t length = strlen(name);
    snprintf(stem, sizeof stem, "%s", name);
    if (!strchr(name, '/') && is_path(name) && length < sizeof stem) stem[length - 5] = 0;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->listed && !m->store_name && same_name(m->id, stem)) add_match(&match, m);
    if (match.count) return match;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->listed && has_store_name(m, stem)) add_match(&match, m);
    for (struct model *m = registry.models; m && !match.count; m = m->next)
        if (m->listed && strcmp(m->path, name) == 0) add_match(&match, m);
    if (match.count) return match;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->listed && *m->name && same_name(m->name, name)) add_match(&match, m);
    return match;
}

static uint32_t distance_of(const char *name, const char *wanted) {
    char other[NAME_MAX_LENGTH];
    normalise(name, other, sizeof other);
    /* A part of the name is near, however long the rest is. */
    const bool part = *wanted && (strstr(other, wanted) || strstr(wanted, other));
    return part ? 1 : text_distance(wanted, other);
}

/* The models whose names come nearest to an unknown one, best first. The lock is held. */
static struct match nearest_locked(const char *name) {
    struct match match = {0};
    uint32_t distances[CANDIDATES_MAX];
    char wanted[NAME_MAX_LENGTH];
    normalise(name, wanted, sizeof wanted);
    for (struct model *m = registry.models; m; m = m->next) {
        if (!m->listed) continue;
        uint32_t distance = distance_of(m->id, wanted);
        for (uint32_t i = 0; i < m->n_names; i++) {
            const uint32_t further = distance_of(m->names[i], wanted);
            if (further < distance) distance = further;
        }
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

/* In the first moments the scan may be what is missing; the lock is held. */
static bool is_settled(void) { return !registry.started || registry.scanned || sh_now_ns() >= registry.patience_ns; }

static enum sh_code resolve_locked(const struct asked *asked, bool patient, struct model **out, struct sh_error *err) {
    const char *name = asked->name;
    struct match match = match_locked(asked);
    while (patient && !match.count && !is_settled() && registry_wait_changed(registry.patience_ns)) match = match_locked(asked);
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
    const struct asked asked = asked_for(name);
    pthread_mutex_lock(&registry.lock);
    enum sh_code code = resolve_locked(&asked, true, out, err);
    pthread_mutex_unlock(&registry.lock);
    return code;
}

bool models_settled(void) {
    pthread_mutex_lock(&registry.lock);
    const bool settled = is_settled();
    pthread_mutex_unlock(&registry.lock);
    return settled;
}

enum sh_code models_resolve_path(const char *name, struct model **out, struct sh_error *err) {
    struct asked asked = asked_for(name);
    pthread_mutex_lock(&registry.lock);
    enum sh_code code = resolve_locked(&asked, false, out, err);
    pthread_mutex_unlock(&registry.lock);
    if (code != SH_ERR_NOT_FOUND || !is_path(name)) return code;

    struct found_model found;
    struct sh_error why;
    const size_t length = strlen(name);
    const bool may_be_name = name[0] != '/' && (length <= 5 || strcasecmp(name + length - 5, ".gguf") != 0); /* NAMESPACE/NAME:TAG */
    code = discover_file(name, &found, &why);
    if (code && !(code == SH_ERR_NOT_FOUND && may_be_name) && err) *err = why;
    if (code) return code;
    asked = asked_for(found.path); /* any shard leads to the first */
    pthread_mutex_lock(&registry.lock);
    struct match match = match_locked(&asked);
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
    const struct asked asked = asked_for(name);
    pthread_mutex_lock(&registry.lock);
    struct match match = match_locked(&asked);
    bool fits = match.count > 0;
    if (!fits) match = nearest_locked(name);
    for (uint32_t i = 0; i < match.count && i < CANDIDATES_MAX; i++) {
        const char *text = fits ? match.models[i]->path : match.models[i]->id;
        json_array_append_new(list, json_bytes(text, strlen(text)));
    }
    pthread_mutex_unlock(&registry.lock);
    return list;
}
