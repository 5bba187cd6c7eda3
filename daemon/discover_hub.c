/*
 * discover_hub.c - one repository in Hugging Face's cache: models--ORG--NAME with refs/main, snapshots/COMMIT/ (links with the files'
 * names) and blobs/ (what they lead to, and downloads that have not ended). https://huggingface.co/docs/huggingface_hub/guides/manage-cache
 *
 * Of a file that several commits have one counts: that of the commit that refs/main names, else of the snapshot changed last.
 */
#include "daemon/discover_private.h"

#include "compute/base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct snapshot {
    char *path;
    bool main;
    int64_t mtime_ns;
};

static int by_worth(const void *a, const void *b) {
    const struct snapshot *x = a, *y = b;
    if (x->main != y->main) return x->main ? -1 : 1;
    if (x->mtime_ns != y->mtime_ns) return x->mtime_ns > y->mtime_ns ? -1 : 1;
    return strcmp(x->path, y->path);
}

/* The commit in refs/main; "" if there is none. */
static void read_main(const char *path, char *out, size_t cap) {
    char file[PATH_MAX + 16];
    snprintf(file, sizeof file, "%s/refs/main", path);
    const int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const ssize_t n = fd >= 0 ? read(fd, out, cap - 1) : 0;
    if (fd >= 0) close(fd);
    out[n > 0 ? n : 0] = 0;
    out[strcspn(out, " \t\r\n")] = 0;
}

static uint32_t list_snapshots(struct found_list *list, const char *path, struct snapshot **out) {
    char commit[200], folder[PATH_MAX + 16], full[PATH_MAX];
    struct dir_names names;
    struct stat st;
    uint32_t count = 0, capacity = 0;
    *out = NULL;
    read_main(path, commit, sizeof commit);
    snprintf(folder, sizeof folder, "%s/snapshots", path);
    if (!dir_names_read(folder, &names)) {
        found_leave_out(list, folder, "cannot be read: %s", strerror(errno));
        return 0;
    }
    for (uint32_t i = 0; i < names.count; i++) {
        const char *name = names.names[i].name;
        if (name[0] == '.' || snprintf(full, sizeof full, "%s/%s", folder, name) >= (int)sizeof full) continue;
        if (fstatat(names.fd, name, &st, 0) != 0 || !S_ISDIR(st.st_mode)) continue;
        char *copy = strdup(full);
        if (!copy || !sh_grow((void **)out, &capacity, count + 1, sizeof **out)) {
            free(copy);
            found_leave_out(list, full, "no memory");
            break;
        }
        (*out)[count++] = (struct snapshot){copy, strcmp(name, commit) == 0, identity_of_stat(&st).mtime_ns};
    }
    dir_names_finish(&names);
    if (count) qsort(*out, count, sizeof **out, by_worth);
    return count;
}

static void tell_downloads(struct found_list *list, const char *path) {
    char folder[PATH_MAX + 16], full[PATH_MAX * 2];
    struct dir_names names;
    snprintf(folder, sizeof folder, "%s/blobs", path);
    if (!dir_names_read(folder, &names)) return; /* then links to it are broken, and told of */
    for (uint32_t i = 0; i < names.count; i++) {
        const char *dot = strrchr(names.names[i].name, '.');
        if (!dot || strcmp(dot, ".incomplete") != 0) continue;
        snprintf(full, sizeof full, "%s/%s", folder, names.names[i].name);
        found_leave_out(list, full, "a download that has not ended");
    }
    dir_names_finish(&names);
}

void discover_hub(struct found_list *list, const char *path, const struct dir_names *names, int depth) {
    struct snapshot *snapshots;
    struct revisions revisions = {0};
    const uint32_t count = list_snapshots(list, path, &snapshots);
    for (uint32_t i = 0; i < count; i++) {
        revisions.base = strlen(snapshots[i].path) + 1;
        discover_walk(list, snapshots[i].path, depth + 1, &revisions);
        free(snapshots[i].path);
    }
    if (dir_names_have(names, "blobs")) tell_downloads(list, path);
    for (uint32_t i = 0; i < revisions.count; i++) free(revisions.taken[i]);
    free(revisions.taken);
    hash_finish(&revisions.by_path);
    free(snapshots);
}
