/* scan.c - the loader's scan of the configured places, and what it makes of the registry; the reading of headers. */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

/* A directory that is not there may come to be; anything else is a mistake in the configuration. */
static void note_missing(const char *what, enum sh_code code, const struct sh_error *err, bool optional) {
    if (code != SH_ERR_NOT_FOUND) log_warning("%s: %s", what, err->message);
    else if (!optional) log_notice("%s: %s", what, err->message);
}

/* What the configuration points to, without the lock. */
static void scan_roots(const struct config *config, struct found_list *list) {
    struct sh_error err;
    if (*config->base_gguf && !discover_add_file(config->base_gguf, list, &err)) note_missing("base_gguf", err.code, &err, false);
    for (char **root = config->model_dirs; root && *root; root++) {
        enum sh_code code = discover_directory(*root, list, &err);
        if (code) note_missing("model_dir", code, &err, false);
    }
    enum sh_code code = discover_directory("models", list, &err);
    if (code) note_missing("./models", code, &err, true);
}

/* Brings the registry into agreement with what was found. The lock is held. */
static void merge_found(const struct found_list *list) {
    for (struct model *m = registry.models; m; m = m->next)
        m->listed = m->by_path || m->loads || (m->state != MODEL_DISCOVERED && m->state != MODEL_FAILED);
    for (uint32_t i = 0; i < list->count; i++) {
        const struct found_model *found = &list->items[i];
        struct model *m = registry.models;
        while (m && strcmp(m->path, found->path) != 0) m = m->next;
        if (!m) {
            m = model_create(found);
            if (m) model_insert(m);
            continue;
        }
        m->listed = true;
        if (identity_equal(&m->identity, &found->identity)) continue;
        m->identity = found->identity;
        m->size_bytes = found->size_bytes;
        m->header_read = false;
    }
    for (struct model **at = &registry.models; *at;) {
        struct model *m = *at;
        struct file_identity identity;
        bool gone = (m->state == MODEL_DISCOVERED || m->state == MODEL_FAILED) && !m->loads && !identity_of(m->path, &identity);
        if (m->listed && !gone) {
            at = &m->next;
            continue;
        }
        *at = m->next;
        m->listed = false;
        for (int state = MODEL_DISCOVERED; state <= MODEL_FAILED; state++) {
            const char *const labels[] = {m->id, model_state_name((enum model_state)state)};
            metric_remove(METRIC_MODEL_STATE, labels);
        }
        model_unref(m);
    }
}

void registry_scan(void) {
    struct config *config = config_ref(registry.config);
    registry.scan_wanted = false;
    pthread_mutex_unlock(&registry.lock);
    struct found_list list = {0};
    uint64_t start = sh_now_ns();
    scan_roots(config, &list);
    log_info("%u model files found in %.1f ms", list.count, (double)(sh_now_ns() - start) / 1e6);
    config_unref(config);
    pthread_mutex_lock(&registry.lock);
    merge_found(&list);
    found_list_finish(&list);
}

void model_read_header(struct model *m) {
    model_ref(m);
    pthread_mutex_unlock(&registry.lock);
    struct sh_file *file = NULL;
    struct sh_error err;
    struct sh_file_summary summary = {0};
    enum sh_code code = sh_file_open(m->path, &file, &err);
    if (code == SH_OK) {
        sh_file_get_summary(file, &summary);
        code = sh_file_check(file, &err);
    }
    pthread_mutex_lock(&registry.lock);
    m->header_read = true;
    if (summary.architecture) {
        set_text(&m->arch, summary.architecture);
        set_text(&m->type, summary.type_name);
        set_text(&m->name, summary.name);
        set_text(&m->base, summary.base);
        m->adapter = summary.adapter;
        m->size_bytes = summary.file_bytes;
    }
    if ((m->state == MODEL_DISCOVERED || m->state == MODEL_FAILED) && !m->loads) {
        set_text(&m->error, code ? err.message : "");
        model_set_state(m, code ? MODEL_FAILED : MODEL_DISCOVERED);
        if (code) log_write(SH_LOG_NOTICE, m->id, "cannot be loaded: %s", err.message);
    }
    sh_file_close(file);
    model_unref(m);
}
