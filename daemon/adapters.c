/* adapters.c - LoRA adapters as the registry sees them: files that are no models, but go with one. */
#include "daemon/models_private.h"

#include "compute/base.h"

#include <stdlib.h>

struct lora_want *lora_copy(const struct lora_want *list, uint32_t *n) {
    const uint32_t count = *n;
    *n = 0;
    if (count == 0) return NULL;
    struct lora_want *copy = sh_calloc(count, sizeof *copy);
    if (!copy) return NULL;
    for (uint32_t i = 0; i < count; i++) {
        char *path = strdup(list[i].path);
        if (!path) {
            lora_free(copy, i);
            return NULL;
        }
        copy[i] = (struct lora_want){.path = path, .scale = list[i].scale};
    }
    *n = count;
    return copy;
}

void lora_free(struct lora_want *list, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) free((char *)(uintptr_t)list[i].path);
    free(list);
}

bool lora_equal(const struct lora_want *a, uint32_t n_a, const struct lora_want *b, uint32_t n_b) {
    if (n_a != n_b) return false;
    for (uint32_t i = 0; i < n_a; i++)
        if (a[i].scale != b[i].scale || strcmp(a[i].path, b[i].path) != 0) return false;
    return true;
}

json_t *lora_json(const struct lora_want *list, uint32_t n) {
    json_t *array = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(array, json_pack("{s:s%, s:f}", "path", list[i].path, strlen(list[i].path), "scale", (double)list[i].scale));
    return array;
}

json_t *model_adapters(struct model *model) {
    json_t *ids = json_array();
    pthread_mutex_lock(&registry.lock);
    for (struct model *m = registry.adapters_known ? registry.models : NULL; m; m = m->next) {
        if (!m->listed || !m->adapter || !*m->base) continue;
        const bool fits = same_name(m->base, model->id) || (*model->name && same_name(m->base, model->name));
        if (fits) json_array_append_new(ids, json_string(m->id));
    }
    pthread_mutex_unlock(&registry.lock);
    return ids;
}

enum sh_code adapter_path(const char *name, char **path, struct sh_error *err) {
    *path = NULL;
    uint32_t found = 0;
    if (is_path(name)) {
        *path = strdup(name);
        found = 1;
    } else {
        pthread_mutex_lock(&registry.lock);
        for (struct model *m = registry.models; m; m = m->next) {
            if (!m->listed || !m->adapter || !same_name(m->id, name)) continue;
            if (found++ == 0) *path = strdup(m->path);
        }
        pthread_mutex_unlock(&registry.lock);
    }
    if (found == 1 && *path) return SH_OK;
    free(*path);
    *path = NULL;
    if (found == 0)
        return sh_fail(err, SH_ERR_NOT_FOUND, "no adapter is known by the name '%s'; give the path of its file", name);
    if (found > 1) return sh_fail(err, SH_ERR_INVALID, "%u adapters are named '%s'; give the path of one", found, name);
    return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for an adapter's path");
}
