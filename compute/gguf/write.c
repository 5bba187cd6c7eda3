/* The header is composed in memory while metadata and tensors are added; begin writes it, data streams behind it. */
#include "compute/gguf/write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct bytes {
    uint8_t *data;
    uint64_t length, capacity;
};

struct pending { /* a tensor's name and size */
    char *name;
    uint64_t bytes;
};

struct sh_gguf_writer {
    char *path;
    FILE *file;
    uint32_t version;
    uint64_t alignment;
    struct bytes kvs, directory;
    char **keys;
    struct pending *tensors;
    uint32_t n_keys, key_capacity, n_tensors, tensor_capacity;
    uint64_t data_bytes; /* of the tensors added so far, padded */
    uint32_t current;    /* tensor being written */
    uint64_t done;       /* bytes of it */
    bool begun;
    struct sh_error error; /* the first one; code SH_OK: none */
};

static enum sh_code fail(struct sh_gguf_writer *w, enum sh_code code, const char *what) {
    return w->error.code != SH_OK ? w->error.code : sh_fail(&w->error, code, "%s: %s", w->path, what);
}

static void put(struct sh_gguf_writer *w, struct bytes *b, const void *data, uint64_t n) {
    if (w->error.code != SH_OK || n == 0) return;
    if (n > b->capacity - b->length) {
        uint64_t want = sh_max_u64(b->capacity * 2, 4096);
        while (want - b->length < n && want < UINT64_MAX / 4) want *= 2;
        uint8_t *grown = want < SIZE_MAX / 2 ? realloc(b->data, (size_t)want) : NULL;
        if (grown == NULL) {
            fail(w, SH_ERR_NO_MEMORY, "no memory for the header");
            return;
        }
        b->data = grown;
        b->capacity = want;
    }
    memcpy(b->data + b->length, data, (size_t)n);
    b->length += n;
}

static void put_u32(struct sh_gguf_writer *w, struct bytes *b, uint32_t v) { put(w, b, &v, sizeof v); }
static void put_u64(struct sh_gguf_writer *w, struct bytes *b, uint64_t v) { put(w, b, &v, sizeof v); }
static void put_str(struct sh_gguf_writer *w, struct bytes *b, const char *s, uint64_t length) {
    put_u64(w, b, length);
    put(w, b, s, length);
}

enum sh_code sh_gguf_writer_create(const char *path, uint32_t version, uint32_t alignment, struct sh_gguf_writer **out,
                                   struct sh_error *err) {
    *out = NULL;
    if (version != 2 && version != 3)
        return sh_fail(err, SH_ERR_INVALID, "%s: found GGUF version %u, expected 2 or 3", path, version);
    if (alignment == 0) alignment = 32;
    if (alignment < 8 || (alignment & (alignment - 1)) != 0)
        return sh_fail(err, SH_ERR_INVALID, "%s: found alignment %u, expected a power of two, at least 8", path, alignment);
    struct sh_gguf_writer *w = sh_calloc(1, sizeof *w);
    if (w == NULL || (w->path = strdup(path)) == NULL) {
        free(w);
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory to write it", path);
    }
    w->version = version;
    w->alignment = alignment;
    w->file = fopen(path, "wbe");
    if (w->file == NULL) {
        const enum sh_code code = sh_fail(err, SH_ERR_IO, "%s: cannot create: %s", path, strerror(errno));
        sh_gguf_writer_destroy(w);
        return code;
    }
    setvbuf(w->file, NULL, _IOFBF, 1 << 20);
    if (alignment != 32) sh_gguf_add_u32(w, "general.alignment", alignment);
    *out = w;
    return SH_OK;
}

void sh_gguf_writer_destroy(struct sh_gguf_writer *w) {
    if (w == NULL) return;
    if (w->file != NULL) fclose(w->file);
    for (uint32_t i = 0; i < w->n_keys; i++) free(w->keys[i]);
    for (uint32_t i = 0; i < w->n_tensors; i++) free(w->tensors[i].name);
    free(w->keys);
    free(w->tensors);
    free(w->kvs.data);
    free(w->directory.data);
    free(w->path);
    free(w);
}

static bool open_for(struct sh_gguf_writer *w, const char *what) {
    if (w->begun) fail(w, SH_ERR_INVALID, what);
    return w->error.code == SH_OK;
}

static bool add_key(struct sh_gguf_writer *w, const char *key, uint32_t type) {
    if (!open_for(w, "metadata was added after the header had been written")) return false;
    if (!sh_grow((void **)&w->keys, &w->key_capacity, w->n_keys + 1, sizeof *w->keys) ||
        (w->keys[w->n_keys] = strdup(key)) == NULL) {
        fail(w, SH_ERR_NO_MEMORY, "no memory for the header");
        return false;
    }
    w->n_keys++;
    put_str(w, &w->kvs, key, strlen(key));
    put_u32(w, &w->kvs, type);
    return w->error.code == SH_OK;
}

static uint32_t scalar_bytes(enum sh_value_type type) {
    static const uint8_t sizes[] = {
        [SH_VALUE_U8] = 1,  [SH_VALUE_I8] = 1,   [SH_VALUE_U16] = 2, [SH_VALUE_I16] = 2, [SH_VALUE_U32] = 4, [SH_VALUE_I32] = 4,
        [SH_VALUE_F32] = 4, [SH_VALUE_BOOL] = 1, [SH_VALUE_U64] = 8, [SH_VALUE_I64] = 8, [SH_VALUE_F64] = 8};
    return (size_t)type < SH_COUNT(sizes) ? sizes[type] : 0;
}

void sh_gguf_add_scalar(struct sh_gguf_writer *w, const char *key, enum sh_value_type type, const void *bytes) {
    if (scalar_bytes(type) == 0) fail(w, SH_ERR_INVALID, "a scalar was added with a type that is none");
    else if (add_key(w, key, type)) put(w, &w->kvs, bytes, scalar_bytes(type));
}

void sh_gguf_add_u32(struct sh_gguf_writer *w, const char *key, uint32_t v) { sh_gguf_add_scalar(w, key, SH_VALUE_U32, &v); }
void sh_gguf_add_f32(struct sh_gguf_writer *w, const char *key, float v) { sh_gguf_add_scalar(w, key, SH_VALUE_F32, &v); }
void sh_gguf_add_bool(struct sh_gguf_writer *w, const char *key, bool v) {
    const uint8_t byte = v;
    sh_gguf_add_scalar(w, key, SH_VALUE_BOOL, &byte);
}

void sh_gguf_add_str(struct sh_gguf_writer *w, const char *key, const char *v, size_t length) {
    if (add_key(w, key, SH_VALUE_STRING)) put_str(w, &w->kvs, v, length);
}

void sh_gguf_add_strings(struct sh_gguf_writer *w, const char *key, const struct sh_str *v, uint64_t count) {
    if (!add_key(w, key, SH_VALUE_ARRAY)) return;
    put_u32(w, &w->kvs, SH_VALUE_STRING);
    put_u64(w, &w->kvs, count);
    for (uint64_t i = 0; i < count; i++) put_str(w, &w->kvs, v[i].ptr, v[i].length);
}

void sh_gguf_add_array(struct sh_gguf_writer *w, const char *key, enum sh_value_type element, const void *data, uint64_t count) {
    uint64_t bytes;
    if (scalar_bytes(element) == 0 || !sh_mul_u64(count, scalar_bytes(element), &bytes)) {
        fail(w, SH_ERR_INVALID, "an array was added whose elements are no scalars, or too many");
        return;
    }
    if (!add_key(w, key, SH_VALUE_ARRAY)) return;
    put_u32(w, &w->kvs, element);
    put_u64(w, &w->kvs, count);
    put(w, &w->kvs, data, bytes);
}

void sh_gguf_add_tensor(struct sh_gguf_writer *w, const char *name, uint32_t type, uint32_t rank, const uint64_t *dims) {
    if (!open_for(w, "a tensor was added after the header had been written")) return;
    bool ok = rank >= 1 && rank <= 4;
    uint64_t bytes = ok ? sh_type_row_bytes(type, dims[0]) : 0, padded;
    for (uint32_t i = 1; i < rank && ok; i++) ok = sh_mul_u64(bytes, dims[i], &bytes);
    if (!ok || bytes == 0 || bytes > INT64_MAX || !sh_add_u64(w->data_bytes, sh_align_up(bytes, w->alignment), &padded)) {
        sh_fail(&w->error, SH_ERR_INVALID, "%s: tensor '%s': its type %u and dimensions make no tensor", w->path, name, type);
        return;
    }
    if (!sh_grow((void **)&w->tensors, &w->tensor_capacity, w->n_tensors + 1, sizeof *w->tensors) ||
        (w->tensors[w->n_tensors].name = strdup(name)) == NULL) {
        fail(w, SH_ERR_NO_MEMORY, "no memory for the header");
        return;
    }
    w->tensors[w->n_tensors++].bytes = bytes;
    put_str(w, &w->directory, name, strlen(name));
    put_u32(w, &w->directory, rank);
    for (uint32_t i = 0; i < rank; i++) put_u64(w, &w->directory, dims[i]);
    put_u32(w, &w->directory, type);
    put_u64(w, &w->directory, w->data_bytes);
    w->data_bytes = padded;
}

static enum sh_code emit(struct sh_gguf_writer *w, const void *data, uint64_t bytes) {
    if (w->error.code == SH_OK && bytes > 0 && fwrite(data, 1, (size_t)bytes, w->file) != bytes)
        sh_fail(&w->error, SH_ERR_IO, "%s: cannot write: %s", w->path, strerror(errno));
    return w->error.code;
}

static enum sh_code pad(struct sh_gguf_writer *w, uint64_t length) {
    static const uint8_t zeros[4096];
    for (uint64_t left = sh_align_up(length, w->alignment) - length; left > 0 && w->error.code == SH_OK;) {
        const uint64_t n = sh_min_u64(left, sizeof zeros);
        emit(w, zeros, n);
        left -= n;
    }
    return w->error.code;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* Sorts the names, which are needed for nothing else. */
static void refuse_duplicates(struct sh_gguf_writer *w, const char **names, uint32_t n, const char *what) {
    if (n > 1) qsort(names, n, sizeof *names, by_text);
    for (uint32_t i = 1; i < n && w->error.code == SH_OK; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            sh_fail(&w->error, SH_ERR_INVALID, "%s: %s '%s' was added twice", w->path, what, names[i]);
}

static enum sh_code report(const struct sh_gguf_writer *w, struct sh_error *err) {
    if (w->error.code != SH_OK && err != NULL) *err = w->error;
    return w->error.code;
}

enum sh_code sh_gguf_writer_begin(struct sh_gguf_writer *w, struct sh_error *err) {
    if (w->begun) fail(w, SH_ERR_INVALID, "the header was written before");
    const char **names = sh_calloc(w->n_tensors, sizeof *names);
    if (names == NULL) fail(w, SH_ERR_NO_MEMORY, "no memory for the header");
    if (w->error.code == SH_OK) {
        for (uint32_t i = 0; i < w->n_tensors; i++) names[i] = w->tensors[i].name;
        refuse_duplicates(w, names, w->n_tensors, "tensor");
        refuse_duplicates(w, (const char **)w->keys, w->n_keys, "key");
    }
    free(names);
    struct bytes head = {0};
    put(w, &head, "GGUF", 4);
    put_u32(w, &head, w->version);
    put_u64(w, &head, w->n_tensors);
    put_u64(w, &head, w->n_keys);
    emit(w, head.data, head.length);
    emit(w, w->kvs.data, w->kvs.length);
    emit(w, w->directory.data, w->directory.length);
    pad(w, head.length + w->kvs.length + w->directory.length);
    free(head.data);
    w->begun = true;
    return report(w, err);
}

enum sh_code sh_gguf_writer_data(struct sh_gguf_writer *w, const void *data, uint64_t bytes, struct sh_error *err) {
    if (!w->begun) fail(w, SH_ERR_INVALID, "tensor data came before the header");
    if (w->error.code != SH_OK || bytes == 0) return report(w, err);
    const struct pending *t = w->current < w->n_tensors ? &w->tensors[w->current] : NULL;
    if (t == NULL || bytes > t->bytes - w->done) {
        sh_fail(&w->error, SH_ERR_INVALID, "%s: tensor '%s': found %" PRIu64 " bytes of data, expected %" PRIu64, w->path,
                t != NULL ? t->name : "", bytes, t != NULL ? t->bytes - w->done : 0);
        return report(w, err);
    }
    emit(w, data, bytes);
    w->done += bytes;
    if (w->done == t->bytes) {
        pad(w, t->bytes);
        w->current++;
        w->done = 0;
    }
    return report(w, err);
}

enum sh_code sh_gguf_writer_finish(struct sh_gguf_writer *w, struct sh_error *err) {
    if (w->error.code == SH_OK && (!w->begun || w->current < w->n_tensors))
        sh_fail(&w->error, SH_ERR_INVALID, "%s: tensor '%s': its data is not complete", w->path,
                w->current < w->n_tensors ? w->tensors[w->current].name : "");
    if (w->file != NULL && fclose(w->file) != 0 && w->error.code == SH_OK)
        sh_fail(&w->error, SH_ERR_IO, "%s: cannot write: %s", w->path, strerror(errno));
    w->file = NULL;
    return report(w, err);
}
