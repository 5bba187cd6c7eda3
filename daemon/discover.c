/* discover.c - see discover.h. */
#include "daemon/discover.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

bool identity_equal(const struct file_identity *a, const struct file_identity *b) {
    return a->device == b->device && a->inode == b->inode && a->size_bytes == b->size_bytes && a->mtime_ns == b->mtime_ns;
}

static struct file_identity identity_of_stat(const struct stat *st) {
    return (struct file_identity){st->st_dev, st->st_ino, (uint64_t)st->st_size,
                                  (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec};
}

bool identity_of(const char *path, struct file_identity *out) {
    struct stat st;
    if (stat(path, &st) != 0) return false;
    *out = identity_of_stat(&st);
    return true;
}

static bool has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), m = strlen(suffix);
    return n > m && strcasecmp(name + n - m, suffix) == 0;
}

/* "...-00002-of-00005.gguf": true, with where the number stands. */
static bool is_shard(const char *path, size_t *prefix_length, unsigned *number, unsigned *count) {
    static const char form[] = "-#####-of-#####";
    size_t length = strlen(path), suffix = strlen(".gguf");
    if (length < suffix + sizeof form || !has_suffix(path, ".gguf")) return false;
    const char *at = path + length - suffix - (sizeof form - 1);
    for (size_t i = 0; i < sizeof form - 1; i++)
        if (form[i] == '#' ? !isdigit((unsigned char)at[i]) : at[i] != form[i]) return false;
    *prefix_length = (size_t)(at - path);
    *number = (unsigned)strtoul(at + 1, NULL, 10);
    *count = (unsigned)strtoul(at + strlen("-#####-of-"), NULL, 10);
    return *number >= 1 && *number <= *count;
}

static void shard_path(const char *path, size_t prefix_length, unsigned number, unsigned count, char *out, size_t cap) {
    snprintf(out, cap, "%.*s-%05u-of-%05u%s", (int)prefix_length, path, number, count, path + strlen(path) - strlen(".gguf"));
}

enum sh_code discover_file(const char *path, struct found_model *out, struct sh_error *err) {
    /* The directory is made absolute, the file's own name is kept: it may be a link with a better name than what it points to. */
    char directory[PATH_MAX], first[PATH_MAX * 2], full[PATH_MAX * 2];
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    snprintf(full, sizeof full, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (!realpath(full, directory))
        return sh_fail(err, errno == ENOENT ? SH_ERR_NOT_FOUND : SH_ERR_IO, "%s: %s", path, strerror(errno));
    snprintf(full, sizeof full, "%s/%s", strcmp(directory, "/") == 0 ? "" : directory, name);

    size_t prefix;
    unsigned number, count;
    bool split = is_shard(full, &prefix, &number, &count);
    uint64_t total = 0;
    struct stat st, first_st;
    bool have_first = false;
    for (unsigned i = 1; split && i <= count; i++) {
        char shard[PATH_MAX * 2];
        shard_path(full, prefix, i, count, shard, sizeof shard);
        if (stat(shard, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        if (!have_first) {
            first_st = st;
            strcpy(first, shard);
            have_first = true;
        }
        total += (uint64_t)st.st_size;
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

    const char *stem = strrchr(first, '/') + 1;
    size_t stem_length =
        split ? prefix - (size_t)(stem - first) : strlen(stem) - (has_suffix(stem, ".gguf") ? strlen(".gguf") : 0);
    *out = (struct found_model){
        .path = strdup(first), .id = strndup(stem, stem_length), .size_bytes = total, .identity = identity_of_stat(&first_st)};
    if (!out->path || !out->id) {
        found_model_finish(out);
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory", path);
    }
    text_clean(out->id); /* JSON and Prometheus carry nothing else */
    return SH_OK;
}

void found_model_finish(struct found_model *found) {
    free(found->path);
    free(found->id);
    *found = (struct found_model){0};
}

bool discover_add_file(const char *path, struct found_list *list, struct sh_error *err) {
    struct found_model found;
    if (list->count >= DISCOVER_MAX_MODELS) {
        sh_fail(err, SH_ERR_LIMIT, "%s: %d models are known already, more are not listed", path, DISCOVER_MAX_MODELS);
        return false;
    }
    if (discover_file(path, &found, err) != SH_OK) return false;
    for (uint32_t i = 0; i < list->count; i++) {
        const struct file_identity *other = &list->items[i].identity;
        if (other->device == found.identity.device && other->inode == found.identity.inode) {
            found_model_finish(&found);
            return true;
        }
    }
    if (!sh_grow((void **)&list->items, &list->capacity, list->count + 1, sizeof *list->items)) {
        found_model_finish(&found);
        sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory", path);
        return false;
    }
    list->items[list->count++] = found;
    return true;
}

void found_list_finish(struct found_list *list) {
    for (uint32_t i = 0; i < list->count; i++) found_model_finish(&list->items[i]);
    free(list->items);
    *list = (struct found_list){0};
}

struct walk {
    struct found_list *list;
    struct file_identity *seen; /* directories, against loops of links */
    uint32_t n_seen, seen_capacity;
};

static bool enter_once(struct walk *walk, const struct stat *st) {
    for (uint32_t i = 0; i < walk->n_seen; i++)
        if (walk->seen[i].device == st->st_dev && walk->seen[i].inode == st->st_ino) return false;
    if (!sh_grow((void **)&walk->seen, &walk->seen_capacity, walk->n_seen + 1, sizeof *walk->seen)) return false;
    walk->seen[walk->n_seen++] = identity_of_stat(st);
    return true;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static int scan(struct walk *walk, const char *directory, int depth) {
    struct dirent **entries;
    int count = scandir(directory, &entries, NULL, by_name);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        char path[PATH_MAX];
        struct stat st;
        int length = snprintf(path, sizeof path, "%s/%s", directory, name);
        if (name[0] != '.' && length > 0 && (size_t)length < sizeof path && stat(path, &st) == 0) {
            if (S_ISDIR(st.st_mode) && depth < DISCOVER_DEPTH && enter_once(walk, &st)) scan(walk, path, depth + 1);
            else if (S_ISREG(st.st_mode) && has_suffix(name, ".gguf")) discover_add_file(path, walk->list, NULL);
        }
        free(entries[i]);
    }
    if (count >= 0) free(entries);
    return count;
}

enum sh_code discover_directory(const char *root, struct found_list *list, struct sh_error *err) {
    struct walk walk = {.list = list};
    struct stat st;
    if (stat(root, &st) != 0)
        return sh_fail(err, errno == ENOENT ? SH_ERR_NOT_FOUND : SH_ERR_IO, "%s: %s", root, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return sh_fail(err, SH_ERR_INVALID, "%s: not a directory", root);
    enter_once(&walk, &st);
    int count = scan(&walk, root, 1);
    int saved = errno;
    free(walk.seen);
    if (count < 0) return sh_fail(err, SH_ERR_IO, "%s: %s", root, strerror(saved));
    return SH_OK;
}
