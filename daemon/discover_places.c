/* discover_places.c - where models are looked for, and in which order: what is configured, then where people and other programs keep
 * them. */
#include "daemon/discover_private.h"

#include "compute/base.h"
#include "paths.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static bool searched(const struct found_list *list, const char *path) {
    char full[PATH_MAX];
    if (!realpath(path, full)) return false;
    for (uint32_t i = 0; i < list->n_roots; i++)
        if (!list->roots[i].error && strcmp(list->roots[i].path, full) == 0) return true;
    return false;
}

/* A usual place that is not there is no news. One of two places with one path is searched. */
static void SH_PRINTF(3, 4) search(struct found_list *list, bool configured, const char *fmt, ...) {
    char path[PATH_MAX];
    struct sh_error err;
    va_list args;
    va_start(args, fmt);
    const int length = vsnprintf(path, sizeof path, fmt, args);
    va_end(args);
    if (length <= 0 || (size_t)length >= sizeof path || searched(list, path)) return;
    const enum sh_code code = discover_directory(path, configured, list, &err);
    if (code == SH_OK || (code == SH_ERR_NOT_FOUND && !configured)) return;
    const char *why = strncmp(err.message, path, strlen(path)) == 0 && err.message[length] == ':' ? err.message + length + 2 : err.message;
    found_add_root(list, path, configured, why);
}

static void search_hub(struct found_list *list, const char *home) {
    const char *cache = variable("HF_HUB_CACHE"), *old = variable("HUGGINGFACE_HUB_CACHE");
    const char *hub = variable("HF_HOME"), *xdg = variable("XDG_CACHE_HOME");
    if (cache || old) search(list, true, "%s", cache ? cache : old);
    else if (hub) search(list, true, "%s/hub", hub);
    else if (xdg) search(list, false, "%s/huggingface/hub", xdg);
    else if (home) search(list, false, "%s/.cache/huggingface/hub", home);
}

static void search_usual(struct found_list *list) {
    const char *home = variable("HOME"), *ollama = variable("OLLAMA_MODELS");
    if (home && strcmp(home, "/") == 0) home = NULL; /* that of services without one */
    search(list, false, "models");
    search_hub(list, home);
    if (ollama) search(list, true, "%s", ollama);
    else if (home) search(list, false, "%s/.ollama/models", home);
    search(list, false, "/usr/share/ollama/.ollama/models");
    if (home) {
        search(list, false, "%s/.lmstudio/models", home);
        search(list, false, "%s/.cache/lm-studio/models", home);
        search(list, false, "%s/models", home);
        search(list, false, "%s/.local/share/shimmy/models", home);
    }
    search(list, false, "%s/shimmy/models", SHIMMY_DATADIR);
    search(list, false, "/usr/share/shimmy/models");
}

void discover_all(const struct config *config, struct found_list *list) {
    struct sh_error err;
    if (*config->base_gguf) {
        const bool there = found_add_root(list, config->base_gguf, true, NULL);
        if (there && discover_add_file(config->base_gguf, list, &err) != SH_OK)
            list->roots[list->n_roots - 1].error = strdup(err.message);
    }
    for (char **root = config->model_dirs; root && *root; root++) search(list, true, "%s", *root);
    if (config->discover) search_usual(list);
}
