/* discover.c - see discover.h: the list of what was found, and single files. */
#include "daemon/discover_private.h"

#include "compute/base.h"
#include "daemon/discover_shard.h"
#include "daemon/text.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

bool identity_equal(const struct file_identity *a, const struct file_identity *b) {
    return a->device == b->device && a->inode == b->inode && a->size_bytes == b->size_bytes && a->mtime_ns == b->mtime_ns;
}

struct file_identity identity_of_stat(const struct stat *st) {
    return (struct file_identity){st->st_dev, st->st_ino, (uint64_t)st->st_size,
                                  (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec};
}

bool identity_of(const char *path, struct file_identity *out) {
    struct stat st;
    if (stat(path, &st) != 0) return false;
    *out = identity_of_stat(&st);
    return true;
}

/* ---- the list ---------------------------------------------------------------------------------------- */

void found_model_finish(struct found_model *found) {
    for (uint32_t i = 0; i < found->n_names; i++) free(found->names[i]);
    free(found->names);
    free(found->path);
    free(found->id);
    *found = (struct found_model){0};
}

void found_leave_out(struct found_list *list, const char *path, const char *fmt, ...) {
    if (list->n_left_out >= DISCOVER_MAX_LEFT_OUT) return; /* the last one says so */
    char reason[500];
    va_list args;
    va_start(args, fmt);
    vsnprintf(reason, sizeof reason, fmt, args);
    va_end(args);
    if (list->n_left_out == DISCOVER_MAX_LEFT_OUT - 1)
        snprintf(reason, sizeof reason, "and more: %d are listed", DISCOVER_MAX_LEFT_OUT);
    text_clean(reason); /* names of files are in it */
    struct left_out out = {strdup(path), strdup(reason)};
    if (out.path && out.reason &&
        sh_grow((void **)&list->left_out, &list->left_out_capacity, list->n_left_out + 1, sizeof *list->left_out)) {
        list->left_out[list->n_left_out++] = out;
        return;
    }
    free(out.path);
    free(out.reason);
}

bool found_add_root(struct found_list *list, const char *path, bool configured, const char *error) {
    struct found_root root = {strdup(path), error ? strdup(error) : NULL, configured};
    if (root.path && (root.error || !error) &&
        sh_grow((void **)&list->roots, &list->roots_capacity, list->n_roots + 1, sizeof *list->roots)) {
        list->roots[list->n_roots++] = root;
        return true;
    }
    free(root.path);
    free(root.error);
    return false;
}

/* A further name, unless it is one already. Without memory it stays without. */
static void add_name(struct found_model *model, const char *name) {
    if (strcmp(model->id, name) == 0 || model->n_names >= DISCOVER_MAX_NAMES) return;
    for (uint32_t i = 0; i < model->n_names; i++)
        if (strcmp(model->names[i], name) == 0) return;
    char **names = realloc(model->names, (model->n_names + 1) * sizeof *names);
    if (!names) return;
    model->names = names;
    char *copy = strdup(name);
    if (copy) names[model->n_names++] = copy;
}

static uint64_t hash_of_file(const struct file_identity *identity) {
    const uint64_t numbers[] = {identity->device, identity->inode};
    return hash_bytes(HASH_BEGIN, numbers, sizeof numbers);
}

void found_add(struct found_list *list, struct found_model *found) {
    const uint64_t hash = hash_of_file(&found->identity);
    uint32_t at = 0, i;
    while (hash_next(&list->by_file, hash, &at, &i)) {
        struct found_model *known = &list->items[i];
        if (known->identity.device != found->identity.device || known->identity.inode != found->identity.inode) continue;
        add_name(known, found->id);
        found_model_finish(found);
        return;
    }
    if (list->count >= DISCOVER_MAX_MODELS) {
        if (!list->full)
            found_leave_out(list, found->path, "%d models are known already: this one and those after it are not listed",
                            DISCOVER_MAX_MODELS);
        list->full = true;
        found_model_finish(found);
        return;
    }
    found->root = list->n_roots ? list->n_roots - 1 : 0;
    if (!sh_grow((void **)&list->items, &list->capacity, list->count + 1, sizeof *list->items) ||
        !hash_put(&list->by_file, hash, list->count)) {
        found_leave_out(list, found->path, "no memory");
        found_model_finish(found);
        return;
    }
    list->items[list->count++] = *found;
    *found = (struct found_model){0};
}

void found_list_drop_items(struct found_list *list) {
    for (uint32_t i = 0; i < list->count; i++) found_model_finish(&list->items[i]);
    free(list->items);
    free(list->entered);
    hash_finish(&list->by_file);
    hash_finish(&list->by_directory);
    list->items = NULL;
    list->entered = NULL;
    list->count = list->capacity = list->n_entered = list->entered_capacity = 0;
}

void found_list_finish(struct found_list *list) {
    found_list_drop_items(list);
    for (uint32_t i = 0; i < list->n_left_out; i++) {
        free(list->left_out[i].path);
        free(list->left_out[i].reason);
    }
    for (uint32_t i = 0; i < list->n_roots; i++) {
        free(list->roots[i].path);
        free(list->roots[i].error);
    }
    free(list->left_out);
    free(list->roots);
    *list = (struct found_list){0};
}

/* ---- single files ------------------------------------------------------------------------------------ */

enum sh_code discover_file(const char *path, struct found_model *out, struct sh_error *err) {
    /* The directory is made absolute, the file's own name is kept: it may be a link with a better name than what it points to. */
    char directory[PATH_MAX], first[PATH_MAX * 2], full[PATH_MAX * 2];
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    snprintf(full, sizeof full, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (!realpath(full, directory))
        return sh_fail(err, errno == ENOENT ? SH_ERR_NOT_FOUND : SH_ERR_IO, "%s: %s", path, strerror(errno));
    snprintf(full, sizeof full, "%s/%s", strcmp(directory, "/") == 0 ? "" : directory, name);

    struct shard shard;
    struct stat st, first_st;
    uint64_t total = 0, parts = 0;
    const bool split = shard_read(full, &shard);
    bool have_first = false;
    for (unsigned i = 1; split && i <= shard.count; i++) {
        char part[PATH_MAX * 2];
        shard_path(full, &shard, i, part, sizeof part);
        if (stat(part, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        if (!have_first) {
            first_st = st;
            strcpy(first, part);
            have_first = true;
        }
        total += (uint64_t)st.st_size;
        parts = shard_hash(parts, &st);
    }
    if (!split) {
        if (stat(full, &first_st) != 0)
            return sh_fail(err, errno == ENOENT ? SH_ERR_NOT_FOUND : SH_ERR_IO, "%s: %s", path, strerror(errno));
        if (!S_ISREG(first_st.st_mode)) return sh_fail(err, SH_ERR_INVALID, "%s: not a regular file", path);
        snprintf(first, sizeof first, "%s", full);
        total = (uint64_t)first_st.st_size;
    } else if (!have_first) {
        return sh_fail(err, SH_ERR_NOT_FOUND, "%s: no such file", path);
    }
    if (!found_make(first, strrchr(first, '/') + 1, split ? &shard : NULL, out))
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory", path);
    out->size_bytes = total;
    out->identity = identity_of_stat(&first_st);
    out->parts = parts;
    return SH_OK;
}

bool found_make(const char *path, const char *name, const struct shard *shard, struct found_model *out) {
    const size_t suffix = is_model_name(name) ? strlen(".gguf") : 0;
    const size_t length = shard ? strlen(name) - suffix - SHARD_MARK : strlen(name) - suffix;
    *out = (struct found_model){.path = strdup(path), .id = strndup(name, length)};
    if (!out->path || !out->id) {
        found_model_finish(out);
        return false;
    }
    text_clean(out->id); /* JSON and Prometheus carry nothing else */
    return true;
}

enum sh_code discover_add_file(const char *path, struct found_list *list, struct sh_error *err) {
    struct found_model found;
    const enum sh_code code = discover_file(path, &found, err);
    if (code == SH_OK) found_add(list, &found);
    return code;
}
