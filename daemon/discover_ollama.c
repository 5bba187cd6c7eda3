/*
 * discover_ollama.c - a store of Ollama: manifests/REGISTRY/NAMESPACE/NAME/TAG, each a JSON object whose layers have a mediaType and a
 * digest, and blobs/sha256-HEX (sha256:HEX in old ones), the files that digests mean.
 *
 * A model is called NAME:TAG if it is of the usual registry and its namespace "library", else NAMESPACE/NAME:TAG, else
 * REGISTRY/NAMESPACE/NAME:TAG. Manifests are read anew by each search; they are small, and one that is not is refused.
 */
#include "daemon/discover_private.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MANIFEST_LEVELS = 4, MANIFEST_MAX_BYTES = 256 * 1024, DIGEST_DIGITS = 64 };

static const char model_layer[] = "application/vnd.ollama.image.model";
static const char adapter_layer[] = "application/vnd.ollama.image.adapter";

struct store {
    struct found_list *list;
    const char *path;
    char *parts[MANIFEST_LEVELS]; /* registry, namespace, name, tag */
};

static void call_by_name(const struct store *store, char *out, size_t cap) {
    const bool usual = strcmp(store->parts[0], "registry.ollama.ai") == 0;
    const bool library = usual && strcmp(store->parts[1], "library") == 0;
    snprintf(out, cap, "%s%s%s%s%s:%s", usual ? "" : store->parts[0], usual ? "" : "/", library ? "" : store->parts[1],
             library ? "" : "/", store->parts[2], store->parts[3]);
    text_clean(out);
}

/* "sha256:" and 64 hexadecimal digits, in one of the two spellings: so it names a file in blobs/ and nothing else. */
static const char *digits_of(const char *digest) {
    if (strncmp(digest, "sha256", 6) != 0 || (digest[6] != ':' && digest[6] != '-')) return NULL;
    const char *digits = digest + 7;
    return strspn(digits, "0123456789abcdef") == DIGEST_DIGITS && !digits[DIGEST_DIGITS] ? digits : NULL;
}

static void add_blob(const struct store *store, const char *manifest, const json_t *layer) {
    struct found_list *list = store->list;
    const json_t *digest_value = json_object_get(layer, "digest"), *size_value = json_object_get(layer, "size");
    const char *digest = json_string_value(digest_value), *digits = digest ? digits_of(digest) : NULL;
    char path[PATH_MAX + 100], name[PATH_MAX];
    struct stat st;
    if (!digits || strlen(digest) != json_string_length(digest_value)) {
        found_leave_out(list, manifest, "the digest of its model is '%.80s', expected sha256: and %d hexadecimal digits",
                        digest ? digest : "no text", DIGEST_DIGITS);
        return;
    }
    snprintf(path, sizeof path, "%s/blobs/sha256-%s", store->path, digits);
    if (stat(path, &st) != 0) {
        snprintf(path, sizeof path, "%s/blobs/sha256:%s", store->path, digits);
        if (stat(path, &st) != 0) {
            found_leave_out(list, manifest, "its model blobs/sha256-%s: %s", digits, strerror(errno));
            return;
        }
    }
    if (!S_ISREG(st.st_mode)) {
        found_leave_out(list, manifest, "its model blobs/sha256-%s is not a regular file", digits);
        return;
    }
    if (json_is_integer(size_value) && json_integer_value(size_value) != (json_int_t)st.st_size) {
        found_leave_out(list, manifest, "its model blobs/sha256-%s has %lld bytes, expected %lld: fetch it again", digits,
                        (long long)st.st_size, (long long)json_integer_value(size_value));
        return;
    }
    call_by_name(store, name, sizeof name);
    struct found_model found = {.path = strdup(path), .id = strdup(name), .store_name = true};
    if (!found.path || !found.id) {
        found_model_finish(&found);
        found_leave_out(list, manifest, "no memory");
        return;
    }
    found.size_bytes = (uint64_t)st.st_size;
    found.identity = identity_of_stat(&st);
    found_add(list, &found);
}

/* The text of a small file, malloc'd; NULL: it has been left out with the reason. */
static char *read_manifest(struct found_list *list, const char *path, size_t *length) {
    char *text = NULL;
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0) {
        found_leave_out(list, path, "cannot be read: %s", strerror(errno));
    } else if (!S_ISREG(st.st_mode) || st.st_size > MANIFEST_MAX_BYTES) {
        found_leave_out(list, path, S_ISREG(st.st_mode) ? "no manifest: it is larger than %d KiB" : "no manifest: not a regular file",
                        MANIFEST_MAX_BYTES / 1024);
    } else if (!(text = malloc((size_t)st.st_size + 1))) {
        found_leave_out(list, path, "no memory");
    } else {
        size_t have = 0;
        for (ssize_t n; have < (size_t)st.st_size && (n = read(fd, text + have, (size_t)st.st_size - have)) > 0;) have += (size_t)n;
        *length = have;
    }
    if (fd >= 0) close(fd);
    return text;
}

static void add_manifest(const struct store *store, const char *path) {
    size_t length = 0;
    char *text = read_manifest(store->list, path, &length);
    if (!text) return;
    json_error_t error;
    json_t *manifest = json_loadb(text, length, 0, &error);
    const json_t *layers = json_object_get(manifest, "layers"), *layer, *model = NULL;
    uint32_t models = 0, adapters = 0;
    size_t i;
    free(text);
    json_array_foreach(layers, i, layer) {
        const char *type = json_string_value(json_object_get(layer, "mediaType"));
        if (type && strcmp(type, model_layer) == 0 && models++ == 0) model = layer;
        if (type && strcmp(type, adapter_layer) == 0) adapters++;
    }
    if (!manifest) found_leave_out(store->list, path, "no manifest: byte %d: %s", error.position, error.text);
    else if (!json_is_array(layers)) found_leave_out(store->list, path, "no manifest: it has no array 'layers'");
    else if (models != 1) found_leave_out(store->list, path, "it has %u layers of type %s, expected 1", models, model_layer);
    else if (adapters) found_leave_out(store->list, path, "it is a model with an adapter: load the model it was made from with that");
    else add_blob(store, path, model);
    json_decref(manifest);
}

/* The tag that stands for a name alone comes last: where a file has another tag as well, that is its id. */
static int latest_last(const void *a, const void *b) {
    const char *x = ((const struct dir_name *)a)->name, *y = ((const struct dir_name *)b)->name;
    const bool x_latest = strcmp(x, "latest") == 0, y_latest = strcmp(y, "latest") == 0;
    return x_latest != y_latest ? (x_latest ? 1 : -1) : strcmp(x, y);
}

static void walk_manifests(struct store *store, const char *path, int level) {
    struct dir_names names;
    if (!dir_names_read(path, &names)) {
        found_leave_out(store->list, path, "cannot be read: %s", strerror(errno));
        return;
    }
    if (level == MANIFEST_LEVELS - 1 && names.count) qsort(names.names, names.count, sizeof *names.names, latest_last);
    for (uint32_t i = 0; i < names.count; i++) {
        char full[PATH_MAX];
        struct stat st;
        store->parts[level] = names.names[i].name;
        if (names.names[i].name[0] == '.' || snprintf(full, sizeof full, "%s/%s", path, names.names[i].name) >= (int)sizeof full)
            continue;
        if (fstatat(names.fd, names.names[i].name, &st, 0) != 0) found_leave_out(store->list, full, "%s", strerror(errno));
        else if (level == MANIFEST_LEVELS - 1) add_manifest(store, full);
        else if (S_ISDIR(st.st_mode)) walk_manifests(store, full, level + 1);
        else found_leave_out(store->list, full, "no manifest: these lie in REGISTRY/NAMESPACE/NAME");
    }
    dir_names_finish(&names);
}

/* A download is written to sha256-HEX-partial, with notes about its pieces beside it. */
static void tell_downloads(struct found_list *list, const char *folder) {
    static const char mark[] = "-partial";
    char full[PATH_MAX * 2];
    struct dir_names names;
    if (!dir_names_read(folder, &names)) {
        found_leave_out(list, folder, "cannot be read: %s", strerror(errno));
        return;
    }
    for (uint32_t i = 0; i < names.count; i++) {
        const char *name = names.names[i].name;
        const size_t length = strlen(name);
        if (length <= strlen(mark) || strcmp(name + length - strlen(mark), mark) != 0) continue;
        snprintf(full, sizeof full, "%s/%s", folder, name);
        found_leave_out(list, full, "a download that has not ended");
    }
    dir_names_finish(&names);
}

void discover_ollama(struct found_list *list, const char *path) {
    struct store store = {.list = list, .path = path};
    char folder[PATH_MAX + 16];
    snprintf(folder, sizeof folder, "%s/manifests", path);
    walk_manifests(&store, folder, 0);
    snprintf(folder, sizeof folder, "%s/blobs", path);
    tell_downloads(list, folder);
}
