/* discover_walk.c - searching directories (see discover.h). */
#include "daemon/discover_private.h"

#include "compute/base.h"
#include "daemon/discover_shard.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- directories ------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct dir_name *)a)->name, ((const struct dir_name *)b)->name);
}

void dir_names_finish(struct dir_names *names) {
    for (uint32_t i = 0; i < names->count; i++) free(names->names[i].name);
    free(names->names);
    if (names->fd >= 0) close(names->fd);
    *names = (struct dir_names){.fd = -1};
}

bool dir_names_read(const char *path, struct dir_names *out) {
    *out = (struct dir_names){.fd = open(*path ? path : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (out->fd < 0) return false;
    const int copy = fcntl(out->fd, F_DUPFD_CLOEXEC, 0);
    DIR *directory = copy >= 0 ? fdopendir(copy) : NULL;
    int failed = directory ? 0 : errno;
    if (!directory && copy >= 0) close(copy);
    while (directory && !failed) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry) {
            failed = errno;
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *name = strdup(entry->d_name);
        if (!name || !sh_grow((void **)&out->names, &out->capacity, out->count + 1, sizeof *out->names)) {
            free(name);
            failed = ENOMEM;
            break;
        }
        out->names[out->count++] = (struct dir_name){name, entry->d_type};
    }
    if (directory) closedir(directory);
    if (failed) {
        dir_names_finish(out);
        errno = failed;
        return false;
    }
    if (out->count) qsort(out->names, out->count, sizeof *out->names, by_name);
    return true;
}

bool dir_names_have(const struct dir_names *names, const char *name) {
    const struct dir_name wanted = {.name = (char *)(uintptr_t)name};
    return names->count && bsearch(&wanted, names->names, names->count, sizeof wanted, by_name);
}

struct entered {
    dev_t device;
    ino_t inode;
    int depth;
};

/* Notes a directory as searched. False: it has been, at this depth or a smaller one; so loops of links end. */
static bool enter(struct found_list *list, const char *path, const struct stat *st, int depth) {
    const uint64_t numbers[] = {st->st_dev, st->st_ino};
    const uint64_t hash = hash_bytes(HASH_BEGIN, numbers, sizeof numbers);
    uint32_t at = 0, i;
    while (hash_next(&list->by_directory, hash, &at, &i)) {
        struct entered *known = &list->entered[i];
        if (known->device != st->st_dev || known->inode != st->st_ino) continue;
        if (known->depth <= depth) return false;
        known->depth = depth;
        return true;
    }
    if (list->n_entered >= DISCOVER_MAX_DIRECTORIES) {
        if (!list->directories_full)
            found_leave_out(list, path, "%d directories have been searched: this one and those after it are not",
                            DISCOVER_MAX_DIRECTORIES);
        list->directories_full = true;
        return false;
    }
    if (!sh_grow((void **)&list->entered, &list->entered_capacity, list->n_entered + 1, sizeof *list->entered) ||
        !hash_put(&list->by_directory, hash, list->n_entered)) {
        found_leave_out(list, path, "no memory");
        return false;
    }
    list->entered[list->n_entered++] = (struct entered){st->st_dev, st->st_ino, depth};
    return true;
}

/* ---- files ------------------------------------------------------------------------------------------- */

/* What programs call a download that has not ended: llama.cpp and Hugging Face, LM Studio, browsers, wget and aria2. */
static bool is_unfinished(const char *name) {
    static const char *const endings[] = {".gguf.incomplete",       ".gguf.downloadInProgress", ".gguf.part", ".gguf.partial",
                                          ".gguf.crdownload",       ".gguf.download",           ".gguf.tmp",  ".gguf.aria2"};
    const size_t length = strlen(name);
    for (uint32_t i = 0; i < SH_COUNT(endings); i++) {
        const size_t n = strlen(endings[i]);
        if (length > n && strcasecmp(name + length - n, endings[i]) == 0) return true;
    }
    return false;
}

/* In a repository: has an earlier revision a file of that name? Else this one is noted as the one that counts. */
static bool is_taken(struct found_list *list, struct revisions *revisions, const char *path) {
    if (!revisions) return false;
    const uint64_t hash = hash_text(path + revisions->base);
    uint32_t at = 0, i;
    while (hash_next(&revisions->by_path, hash, &at, &i)) {
        const char *known = revisions->taken[i];
        /* Commits have names of one length; where they have not the rest of the path still tells. */
        const size_t length = strlen(path + revisions->base), have = strlen(known);
        if (have < length || strcmp(known + have - length, path + revisions->base) != 0) continue;
        struct file_identity a, b;
        if (identity_of(path, &a) && identity_of(known, &b) && a.device == b.device && a.inode == b.inode) return true;
        found_leave_out(list, path, "another revision of %s, which is the one taken", known);
        return true;
    }
    char *copy = strdup(path);
    if (!copy || !sh_grow((void **)&revisions->taken, &revisions->capacity, revisions->count + 1, sizeof *revisions->taken) ||
        !hash_put(&revisions->by_path, hash, revisions->count)) {
        free(copy);
        return false;
    }
    revisions->taken[revisions->count++] = copy;
    return false;
}

struct part { /* a file of a split model */
    const char *name;
    struct shard shard;
    struct stat st;
};

/* Parts of one model side by side, in order. */
static int by_model(const void *a, const void *b) {
    const struct part *x = a, *y = b;
    const size_t n = strlen(x->name), m = strlen(y->name), suffix = strlen(".gguf") + SHARD_MARK;
    if (n != m) return n < m ? -1 : 1;
    const int prefix = memcmp(x->name, y->name, n - suffix);
    if (prefix) return prefix;
    if (x->shard.count != y->shard.count) return x->shard.count < y->shard.count ? -1 : 1;
    return x->shard.number < y->shard.number ? -1 : x->shard.number > y->shard.number;
}

static bool same_model(const struct part *a, const struct part *b) {
    const size_t n = strlen(a->name);
    return a->shard.count == b->shard.count && n == strlen(b->name) &&
           memcmp(a->name, b->name, n - strlen(".gguf") - SHARD_MARK) == 0;
}

/* Parts (one, for a file that is not split) as one model. */
static void add_parts(struct found_list *list, const char *path, const struct part *parts, uint32_t count, bool split,
                      struct revisions *revisions) {
    char full[PATH_MAX];
    struct found_model found;
    snprintf(full, sizeof full, "%s/%s", path, parts->name);
    if (is_taken(list, revisions, full)) return;
    if (!found_make(full, parts->name, split ? &parts->shard : NULL, &found)) {
        found_leave_out(list, full, "no memory");
        return;
    }
    found.identity = identity_of_stat(&parts->st);
    for (uint32_t i = 0; i < count; i++) {
        found.size_bytes += (uint64_t)parts[i].st.st_size;
        if (split) found.parts = shard_hash(found.parts, &parts[i].st);
    }
    found_add(list, &found);
}

static void add_split(struct found_list *list, const char *path, struct part *parts, uint32_t count, struct revisions *revisions) {
    if (count) qsort(parts, count, sizeof *parts, by_model);
    for (uint32_t i = 0, next; i < count; i = next) {
        for (next = i + 1; next < count && same_model(&parts[i], &parts[next]);) next++;
        add_parts(list, path, parts + i, next - i, true, revisions);
    }
}

/* ---- the walk ---------------------------------------------------------------------------------------- */

static void tell_broken(struct found_list *list, const struct dir_names *names, const char *name, const char *full) {
    char target[300];
    const int why = errno;
    const ssize_t n = readlinkat(names->fd, name, target, sizeof target - 1);
    if (n < 0 && why == ENOENT) return; /* it has gone meanwhile */
    if (n >= 0) {
        target[n] = 0;
        found_leave_out(list, full, "a link to %s: %s", target, strerror(why));
    } else {
        found_leave_out(list, full, "%s", strerror(why));
    }
}

/* A link to a directory that has been searched is in order unless it leads to one in which it lies. */
static void tell_loop(struct found_list *list, const char *path, const char *full) {
    char target[PATH_MAX], here[PATH_MAX];
    if (!realpath(full, target) || !realpath(*path ? path : "/", here)) return;
    const size_t n = strlen(target);
    if (strncmp(here, target, n) == 0 && (here[n] == 0 || here[n] == '/' || n == 1))
        found_leave_out(list, full, "a link to %s, in which it lies: not followed", target);
}

void discover_walk(struct found_list *list, const char *path, int depth, struct revisions *revisions) {
    struct dir_names names;
    if (!dir_names_read(path, &names)) {
        found_leave_out(list, path, "cannot be read: %s", strerror(errno));
        return;
    }
    const char *own = strrchr(path, '/');
    if (!revisions && own && strncmp(own + 1, "models--", 8) == 0 && dir_names_have(&names, "snapshots")) {
        discover_hub(list, path, &names, depth);
        dir_names_finish(&names);
        return;
    }
    const bool ollama = !revisions && dir_names_have(&names, "manifests") && dir_names_have(&names, "blobs");
    if (ollama) discover_ollama(list, path);
    struct part *parts = NULL;
    uint32_t n_parts = 0, parts_capacity = 0;
    for (uint32_t i = 0; i < names.count; i++) {
        const char *name = names.names[i].name;
        const unsigned char type = names.names[i].type;
        const bool model = is_model_name(name);
        if (name[0] == '.' || (ollama && (strcmp(name, "manifests") == 0 || strcmp(name, "blobs") == 0))) continue;
        if (type != DT_DIR && type != DT_LNK && type != DT_UNKNOWN && !model && !is_unfinished(name)) continue;
        char full[PATH_MAX];
        if (snprintf(full, sizeof full, "%s/%s", path, name) >= (int)sizeof full) {
            found_leave_out(list, path, "%.200s in it: the path is longer than %d bytes", name, PATH_MAX - 1);
            continue;
        }
        struct stat st;
        if (fstatat(names.fd, name, &st, 0) != 0) {
            tell_broken(list, &names, name, full);
        } else if (S_ISDIR(st.st_mode)) {
            if (depth >= DISCOVER_DEPTH) found_leave_out(list, full, "lies deeper than %d levels: not searched", DISCOVER_DEPTH);
            else if (enter(list, full, &st, depth + 1)) discover_walk(list, full, depth + 1, revisions);
            else if (type == DT_LNK) tell_loop(list, path, full);
        } else if (is_unfinished(name)) {
            found_leave_out(list, full, "a download that has not ended");
        } else if (model && !S_ISREG(st.st_mode)) {
            found_leave_out(list, full, "not a regular file");
        } else if (model) {
            struct part part = {.name = name, .st = st};
            if (!shard_read(name, &part.shard)) add_parts(list, path, &part, 1, false, revisions);
            else if (sh_grow((void **)&parts, &parts_capacity, n_parts + 1, sizeof *parts)) parts[n_parts++] = part;
            else found_leave_out(list, full, "no memory");
        }
    }
    add_split(list, path, parts, n_parts, revisions);
    free(parts);
    dir_names_finish(&names);
}

enum sh_code discover_directory(const char *root, bool configured, struct found_list *list, struct sh_error *err) {
    char full[PATH_MAX];
    struct stat st;
    if (!realpath(root, full) || stat(full, &st) != 0)
        return sh_fail(err, errno == ENOENT ? SH_ERR_NOT_FOUND : SH_ERR_IO, "%s: %s", root, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return sh_fail(err, SH_ERR_INVALID, "%s: not a directory", root);
    if (access(full, R_OK | X_OK) != 0) return sh_fail(err, SH_ERR_IO, "%s: %s", root, strerror(errno));
    if (!found_add_root(list, full, configured, NULL)) return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory", root);
    if (enter(list, full, &st, 1)) discover_walk(list, strcmp(full, "/") == 0 ? "" : full, 1, NULL);
    return SH_OK;
}
