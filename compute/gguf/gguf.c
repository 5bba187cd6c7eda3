/* A model's files: one, or the shards of a split one; look-ups and reads over all of them. */
#include "compute/gguf/gguf.h"
#include "compute/gguf/header.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SHARDS 512u       /* each keeps a descriptor open */
#define SHARD_SUFFIX_BYTES 20 /* "-00001-of-00003.gguf" */

struct shard {
    char *path;
    const char *shown; /* how messages name it: the path, or the end of a long one */
    int fd;
    uint64_t file_bytes;
    struct sh_header header;
};

struct sh_gguf {
    struct shard *shards;
    uint32_t n_shards;
    uint64_t file_bytes;
    struct sh_tensor *tensors; /* of all shards */
    uint32_t n_tensors;
    uint32_t *by_name; /* indices of tensors, sorted */
};

/* A message has room for some 500 bytes: the end of a path says more than its beginning. */
static const char *shown_path(const char *path) {
    const size_t length = strlen(path), most = 160;
    if (length <= most) return path;
    const char *end = strchr(path + length - most, '/');
    return end != NULL ? end + 1 : path + length - most;
}

static enum sh_code open_shard(struct shard *s, const char *path, struct sh_error *err) {
    s->path = strdup(path);
    if (s->path == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to open a model");
    s->shown = shown_path(s->path);
    /* O_NONBLOCK: a FIFO must not make the open wait; it has no effect on a regular file */
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0) {
        const enum sh_code code = errno == ENOENT || errno == ENOTDIR ? SH_ERR_NOT_FOUND : SH_ERR_IO;
        return sh_fail(err, code, "%s: cannot open: %s", s->shown, strerror(errno));
    }
    struct stat st;
    if (fstat(s->fd, &st) != 0) return sh_fail(err, SH_ERR_IO, "%s: cannot stat: %s", s->shown, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return sh_fail(err, SH_ERR_INVALID, "%s: found a %s, expected a regular file", s->shown,
                       S_ISDIR(st.st_mode) ? "folder" : "special file");
    s->file_bytes = (uint64_t)st.st_size;
    return sh_header_read(s->fd, s->shown, s->file_bytes, &s->header, err);
}

static void close_shard(struct shard *s) {
    sh_header_free(&s->header);
    if (s->fd >= 0) close(s->fd);
    free(s->path);
}

/* "NAME-00002-of-00005.gguf" -> no 1 (from 0), count 5. */
static bool parse_shard_name(const char *path, uint32_t *no, uint32_t *count) {
    const size_t length = strlen(path);
    if (length < SHARD_SUFFIX_BYTES) return false;
    const char *s = path + length - SHARD_SUFFIX_BYTES;
    if (s[0] != '-' || memcmp(s + 6, "-of-", 4) != 0 || strcmp(s + 15, ".gguf") != 0) return false;
    uint32_t a = 0, b = 0;
    for (int i = 0; i < 5; i++) {
        const char x = s[1 + i], y = s[10 + i];
        if (x < '0' || x > '9' || y < '0' || y > '9') return false;
        a = a * 10 + (uint32_t)(x - '0');
        b = b * 10 + (uint32_t)(y - '0');
    }
    if (a < 1 || a > b) return false;
    *no = a - 1;
    *count = b;
    return true;
}

/* An integer of the split.* family; *out stays when the key is absent. */
static enum sh_code split_value(const struct shard *s, const char *key, int64_t *out, struct sh_error *err) {
    const struct sh_kv *kv = sh_header_find(&s->header, key);
    if (kv == NULL) return SH_OK;
    if (kv->type == SH_VALUE_ARRAY || !sh_kv_to_i64(kv, 0, out))
        return sh_fail(err, SH_ERR_FORMAT, "%s: key '%s' at byte %" PRIu64 ": found type %s, expected an integer", s->shown, key,
                       kv->offset, sh_value_type_name(kv->type));
    return SH_OK;
}

/* The file that was named is shards[0] until it is known which one it is. */
static enum sh_code open_others(struct sh_gguf *g, struct sh_error *err) {
    struct shard *given = &g->shards[0];
    int64_t count = 1, no = 0;
    uint32_t name_no = 0, name_count = 1;
    enum sh_code code;
    if ((code = split_value(given, "split.count", &count, err)) != SH_OK) return code;
    if ((code = split_value(given, "split.no", &no, err)) != SH_OK) return code;
    const bool numbered = parse_shard_name(given->path, &name_no, &name_count);
    if (count == 0 || (count == 1 && no == 0 && name_count == 1)) return SH_OK; /* not split */
    if (count < 1 || count > MAX_SHARDS)
        return sh_fail(err, SH_ERR_FORMAT, "%s: key 'split.count': found %" PRId64 ", expected 1 to %u", given->shown, count,
                       MAX_SHARDS);
    if (!numbered || name_count != (uint64_t)count)
        return sh_fail(err, SH_ERR_FORMAT, "%s: key 'split.count': found %" PRId64 ", expected %s", given->shown, count,
                       numbered ? "the count in the file's name"
                                : "a file name that ends in -00001-of-0000N.gguf: it was renamed, name it as it was");
    if (no != name_no)
        return sh_fail(err, SH_ERR_FORMAT, "%s: key 'split.no': found %" PRId64 ", expected %u as in the file's name",
                       given->shown, no, name_no);

    struct shard *shards = sh_calloc((uint64_t)count, sizeof *shards);
    const size_t length = strlen(given->path);
    char *path = malloc(length + 1);
    if (shards == NULL || path == NULL) {
        free(shards);
        free(path);
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory for %" PRId64 " shards", given->shown, count);
    }
    for (uint32_t i = 0; i < (uint32_t)count; i++) shards[i].fd = -1;
    shards[name_no] = *given;
    free(g->shards);
    g->shards = shards;
    g->n_shards = (uint32_t)count;

    code = SH_OK;
    for (uint32_t i = 0; i < g->n_shards && code == SH_OK; i++) {
        struct shard *s = &g->shards[i];
        if (i == name_no) continue;
        memcpy(path, g->shards[name_no].path, length + 1);
        char digits[16];
        snprintf(digits, sizeof digits, "%05u", i + 1);
        memcpy(path + length - SHARD_SUFFIX_BYTES + 1, digits, 5);
        if ((code = open_shard(s, path, err)) != SH_OK) break;
        int64_t its_count = -1, its_no = -1;
        if ((code = split_value(s, "split.count", &its_count, err)) != SH_OK) break;
        if ((code = split_value(s, "split.no", &its_no, err)) != SH_OK) break;
        if (its_count != count)
            code =
                sh_fail(err, SH_ERR_FORMAT, "%s: key 'split.count': found %" PRId64 " (-1: none), expected %" PRId64 " as in %s",
                        s->shown, its_count, count, g->shards[name_no].shown);
        else if (its_no != i)
            code =
                sh_fail(err, SH_ERR_FORMAT, "%s: key 'split.no': found %" PRId64 " (-1: none), expected %u as in the file's name",
                        s->shown, its_no, i);
    }
    free(path);
    return code;
}

static int by_name(const void *a, const void *b, void *tensors) {
    return strcmp(((const struct sh_tensor *)tensors)[*(const uint32_t *)a].name,
                  ((const struct sh_tensor *)tensors)[*(const uint32_t *)b].name);
}

/* One directory over all shards. */
static enum sh_code merge(struct sh_gguf *g, struct sh_error *err) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < g->n_shards; i++) {
        total += g->shards[i].header.n_tensors;
        g->file_bytes += g->shards[i].file_bytes;
    }
    const struct shard *first = &g->shards[0];
    int64_t expected = (int64_t)total;
    if (g->n_shards > 1) {
        const enum sh_code code = split_value(first, "split.tensors.count", &expected, err);
        if (code != SH_OK) return code;
    }
    if (expected != (int64_t)total)
        return sh_fail(err, SH_ERR_FORMAT,
                       "%s: key 'split.tensors.count': found %" PRId64 ", expected %" PRIu64 ", the tensors of its %u shards",
                       first->shown, expected, total, g->n_shards);
    g->tensors = sh_calloc(total, sizeof *g->tensors);
    g->by_name = sh_calloc(total, sizeof *g->by_name);
    if (g->tensors == NULL || g->by_name == NULL)
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory for %" PRIu64 " tensors", first->shown, total);
    for (uint32_t i = 0; i < g->n_shards; i++) {
        const struct sh_header *h = &g->shards[i].header;
        for (uint32_t k = 0; k < h->n_tensors; k++, g->n_tensors++) {
            g->tensors[g->n_tensors] = h->tensors[k];
            g->tensors[g->n_tensors].shard = i;
            g->by_name[g->n_tensors] = g->n_tensors;
        }
    }
    qsort_r(g->by_name, g->n_tensors, sizeof *g->by_name, by_name, g->tensors);
    for (uint32_t i = 1; i < g->n_tensors; i++) {
        const struct sh_tensor *a = &g->tensors[g->by_name[i - 1]], *b = &g->tensors[g->by_name[i]];
        if (strcmp(a->name, b->name) == 0)
            return sh_fail(err, SH_ERR_FORMAT, "%s: tensor '%.100s': found it again, expected it once (it stands in %s)",
                           g->shards[a->shard > b->shard ? a->shard : b->shard].shown, a->name,
                           g->shards[a->shard < b->shard ? a->shard : b->shard].shown);
    }
    return SH_OK;
}

enum sh_code sh_gguf_open(const char *path, struct sh_gguf **out, struct sh_error *err) {
    *out = NULL;
    struct sh_gguf *g = sh_calloc(1, sizeof *g);
    if (g == NULL || (g->shards = sh_calloc(1, sizeof *g->shards)) == NULL) {
        free(g);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to open a model");
    }
    g->n_shards = 1;
    g->shards[0].fd = -1;
    enum sh_code code = open_shard(&g->shards[0], path, err);
    if (code == SH_OK) code = open_others(g, err);
    if (code == SH_OK) code = merge(g, err);
    if (code != SH_OK) {
        sh_gguf_close(g);
        return code;
    }
    *out = g;
    return SH_OK;
}

void sh_gguf_close(struct sh_gguf *g) {
    if (g == NULL) return;
    for (uint32_t i = 0; i < g->n_shards; i++) close_shard(&g->shards[i]);
    free(g->shards);
    free(g->tensors);
    free(g->by_name);
    free(g);
}

void sh_gguf_close_files(struct sh_gguf *g) {
    for (uint32_t i = 0; i < g->n_shards; i++) {
        if (g->shards[i].fd >= 0) close(g->shards[i].fd);
        g->shards[i].fd = -1;
    }
}

const char *sh_gguf_path(const struct sh_gguf *g, uint32_t shard) { return shard < g->n_shards ? g->shards[shard].shown : ""; }
uint32_t sh_gguf_shards(const struct sh_gguf *g) { return g->n_shards; }
uint32_t sh_gguf_version(const struct sh_gguf *g) { return g->shards[0].header.version; }
uint64_t sh_gguf_alignment(const struct sh_gguf *g) { return g->shards[0].header.alignment; }
uint64_t sh_gguf_file_bytes(const struct sh_gguf *g) { return g->file_bytes; }

uint64_t sh_gguf_kv_count(const struct sh_gguf *g) { return g->shards[0].header.n_kvs; }

const struct sh_kv *sh_gguf_kv_at(const struct sh_gguf *g, uint64_t index) {
    const struct sh_header *h = &g->shards[0].header;
    return index < h->n_kvs ? &h->kvs[index] : NULL;
}

const struct sh_kv *sh_gguf_find(const struct sh_gguf *g, const char *key) { return sh_header_find(&g->shards[0].header, key); }

uint64_t sh_gguf_tensor_count(const struct sh_gguf *g) { return g->n_tensors; }

const struct sh_tensor *sh_gguf_tensor_at(const struct sh_gguf *g, uint64_t index) {
    return index < g->n_tensors ? &g->tensors[index] : NULL;
}

const struct sh_tensor *sh_gguf_tensor(const struct sh_gguf *g, const char *name) {
    uint32_t low = 0, high = g->n_tensors;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const struct sh_tensor *t = &g->tensors[g->by_name[middle]];
        const int order = strcmp(name, t->name);
        if (order == 0) return t;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

static enum sh_code wrong_type(const struct sh_gguf *g, const struct sh_kv *kv, const char *expected, struct sh_error *err) {
    const bool array = kv->type == SH_VALUE_ARRAY;
    return sh_fail(err, SH_ERR_FORMAT, "%s: key '%.100s' at byte %" PRIu64 ": found type %s%s%s, expected %s", g->shards[0].shown,
                   kv->key, kv->offset, sh_value_type_name(kv->type), array ? " of " : "",
                   array ? sh_value_type_name(kv->element_type) : "", expected);
}

enum sh_code sh_gguf_u32(const struct sh_gguf *g, const char *key, uint32_t *out, struct sh_error *err) {
    const struct sh_kv *kv = sh_gguf_find(g, key);
    if (kv == NULL) return SH_OK;
    int64_t v;
    if (kv->type == SH_VALUE_ARRAY || kv->type == SH_VALUE_STRING || kv->type == SH_VALUE_BOOL || kv->type == SH_VALUE_F32 ||
        kv->type == SH_VALUE_F64)
        return wrong_type(g, kv, "u32", err);
    if (!sh_kv_to_i64(kv, 0, &v) || v < 0 || v > UINT32_MAX) {
        char found[24];
        snprintf(found, sizeof found, kv->type == SH_VALUE_U64 ? "%" PRIu64 : "%" PRId64, sh_kv_integer(kv, 0));
        return sh_fail(err, SH_ERR_FORMAT, "%s: key '%.100s' at byte %" PRIu64 ": found %s, expected 0 to 4294967295",
                       g->shards[0].shown, key, kv->offset, found);
    }
    *out = (uint32_t)v;
    return SH_OK;
}

enum sh_code sh_gguf_u32_req(const struct sh_gguf *g, const char *key, uint32_t *out, struct sh_error *err) {
    if (sh_gguf_find(g, key) == NULL)
        return sh_fail(err, SH_ERR_FORMAT, "%s: key '%s': found none, expected a u32: the metadata is incomplete",
                       g->shards[0].shown, key);
    return sh_gguf_u32(g, key, out, err);
}

enum sh_code sh_gguf_f32(const struct sh_gguf *g, const char *key, float *out, struct sh_error *err) {
    const struct sh_kv *kv = sh_gguf_find(g, key);
    if (kv == NULL) return SH_OK;
    if (kv->type != SH_VALUE_F32 && kv->type != SH_VALUE_F64) return wrong_type(g, kv, "f32", err);
    const double v = sh_kv_number(kv, 0);
    if (isfinite(v) && fabs(v) > (double)__FLT_MAX__)
        return sh_fail(err, SH_ERR_FORMAT, "%s: key '%.100s' at byte %" PRIu64 ": found %g, expected the range of f32",
                       g->shards[0].shown, key, kv->offset, v);
    *out = (float)v;
    return SH_OK;
}

enum sh_code sh_gguf_bool(const struct sh_gguf *g, const char *key, bool *out, struct sh_error *err) {
    const struct sh_kv *kv = sh_gguf_find(g, key);
    if (kv == NULL) return SH_OK;
    if (kv->type != SH_VALUE_BOOL) return wrong_type(g, kv, "bool", err);
    *out = *(const uint8_t *)kv->data != 0;
    return SH_OK;
}

enum sh_code sh_gguf_str(const struct sh_gguf *g, const char *key, struct sh_str *out, struct sh_error *err) {
    const struct sh_kv *kv = sh_gguf_find(g, key);
    if (kv == NULL) return SH_OK;
    if (kv->type != SH_VALUE_STRING) return wrong_type(g, kv, "str", err);
    *out = kv->strings[0];
    return SH_OK;
}

double sh_kv_number(const struct sh_kv *kv, uint64_t i) {
    if (i >= kv->count) return 0;
    const uint8_t *p = kv->data;
    float f;
    double d;
    uint64_t u;
    switch (kv->element_type) {
    case SH_VALUE_F32: memcpy(&f, p + i * 4, 4); return (double)f;
    case SH_VALUE_F64: memcpy(&d, p + i * 8, 8); return d;
    case SH_VALUE_U64: memcpy(&u, p + i * 8, 8); return (double)u;
    default: return (double)sh_kv_integer(kv, i);
    }
}

int64_t sh_kv_integer(const struct sh_kv *kv, uint64_t i) {
    if (i >= kv->count) return 0;
    int64_t v = 0;
    switch (kv->element_type) {
    case SH_VALUE_BOOL: return ((const uint8_t *)kv->data)[i];
    case SH_VALUE_U64: memcpy(&v, (const uint8_t *)kv->data + i * 8, 8); return v;
    case SH_VALUE_F32:
    case SH_VALUE_F64: {
        const double d = sh_kv_number(kv, i);
        return d >= -0x1p63 && d < 0x1p63 ? (int64_t)d : 0;
    }
    default: return sh_kv_to_i64(kv, i, &v) ? v : 0;
    }
}

enum sh_code sh_gguf_read(const struct sh_gguf *g, const struct sh_tensor *t, uint64_t at, void *dst, uint64_t bytes,
                          struct sh_error *err) {
    const struct shard *s = &g->shards[t->shard];
    uint64_t end;
    if (!sh_add_u64(at, bytes, &end) || end > t->bytes)
        return sh_fail(err, SH_ERR_INVALID,
                       "%s: tensor '%.100s': asked for %" PRIu64 " bytes at %" PRIu64 ", expected them inside its %" PRIu64,
                       s->shown, t->name, bytes, at, t->bytes);
    for (uint64_t done = 0; done < bytes;) {
        const uint64_t place = t->offset + at + done, piece = sh_min_u64(bytes - done, 1u << 30);
        const ssize_t got = pread(s->fd, (uint8_t *)dst + done, (size_t)piece, (off_t)place);
        if (got > 0) done += (uint64_t)got;
        else if (got == 0)
            return sh_fail(err, SH_ERR_IO,
                           "%s: tensor '%.100s' at byte %" PRIu64 ": the file ends, expected %" PRIu64
                           " more bytes: it was truncated",
                           s->shown, t->name, place, bytes - done);
        else if (errno != EINTR)
            return sh_fail(err, SH_ERR_IO, "%s: tensor '%.100s' at byte %" PRIu64 ": cannot read: %s", s->shown, t->name, place,
                           strerror(errno));
    }
    return SH_OK;
}

bool sh_gguf_is_adapter(const struct sh_gguf *g) {
    struct sh_str type = {"", 0};
    return sh_gguf_str(g, "general.type", &type, NULL) == SH_OK && type.length == 7 && memcmp(type.ptr, "adapter", 7) == 0;
}
