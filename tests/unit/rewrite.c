#include "tests/unit/rewrite.h"
#include "compute/gguf/quant.h"
#include "compute/gguf/write.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_KEYS = 64, MAX_TENSORS = 1024 };

struct key {
    char name[96];
    bool dropped;
    enum sh_value_type type; /* U32, F32, BOOL, STRING; ARRAY: of u32 */
    uint32_t u32;
    float f32;
    char *text;
    uint32_t *list;
    uint64_t count;
};
struct tensor {
    char name[64], source[64]; /* source "": new */
    uint32_t type, rank;
    uint64_t dims[4];
    void *data; /* NULL: the source's, or zeros if `changed` */
    bool dropped, changed;
};
struct rewrite {
    struct sh_gguf *source;
    struct key keys[MAX_KEYS];
    size_t n_keys;
    struct tensor tensors[MAX_TENSORS];
    size_t n_tensors;
};

#define OK(call)                                                                  \
    do {                                                                          \
        struct sh_error err = {0};                                                \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message); \
    } while (0)

struct rewrite *rewrite_empty(void) {
    struct rewrite *r = calloc(1, sizeof *r);
    assert_non_null(r);
    return r;
}

struct rewrite *rewrite_open(const char *path) {
    struct rewrite *r = rewrite_empty();
    OK(sh_gguf_open(path, &r->source, &err));
    assert_int_equal(sh_gguf_shards(r->source), 1);
    for (uint64_t i = 0; i < sh_gguf_tensor_count(r->source); i++) {
        const struct sh_tensor *from = sh_gguf_tensor_at(r->source, i);
        assert_true(r->n_tensors < MAX_TENSORS);
        struct tensor *t = &r->tensors[r->n_tensors++];
        t->type = from->type;
        t->rank = from->rank;
        memcpy(t->dims, from->dims, sizeof t->dims);
        snprintf(t->name, sizeof t->name, "%s", from->name);
        snprintf(t->source, sizeof t->source, "%s", from->name);
    }
    return r;
}

const struct sh_gguf *rewrite_source(const struct rewrite *r) { return r->source; }

/* ---- keys ---- */

static struct key *key_of(struct rewrite *r, const char *name, enum sh_value_type type) {
    struct key *k = NULL;
    for (size_t i = 0; i < r->n_keys; i++)
        if (strcmp(r->keys[i].name, name) == 0) k = &r->keys[i];
    if (k == NULL) {
        assert_true(r->n_keys < MAX_KEYS);
        k = &r->keys[r->n_keys++];
    }
    free(k->text);
    free(k->list);
    *k = (struct key){.type = type};
    snprintf(k->name, sizeof k->name, "%s", name);
    return k;
}

void rewrite_drop_key(struct rewrite *r, const char *key) { key_of(r, key, SH_VALUE_U32)->dropped = true; }
void rewrite_u32(struct rewrite *r, const char *key, uint32_t value) { key_of(r, key, SH_VALUE_U32)->u32 = value; }
void rewrite_f32(struct rewrite *r, const char *key, float value) { key_of(r, key, SH_VALUE_F32)->f32 = value; }
void rewrite_bool(struct rewrite *r, const char *key, bool value) { key_of(r, key, SH_VALUE_BOOL)->u32 = value; }
void rewrite_str(struct rewrite *r, const char *key, const char *value) {
    struct key *k = key_of(r, key, SH_VALUE_STRING);
    k->text = strdup(value);
    assert_non_null(k->text);
}
void rewrite_u32s(struct rewrite *r, const char *key, const uint32_t *values, uint64_t count) {
    struct key *k = key_of(r, key, SH_VALUE_ARRAY);
    k->list = malloc(count * sizeof *values + 1);
    assert_non_null(k->list);
    memcpy(k->list, values, count * sizeof *values);
    k->count = count;
}

static const struct key *changed_key(const struct rewrite *r, const char *name) {
    for (size_t i = 0; i < r->n_keys; i++)
        if (strcmp(r->keys[i].name, name) == 0) return &r->keys[i];
    return NULL;
}

static void write_key(struct sh_gguf_writer *w, const struct key *k) {
    if (k->dropped) return;
    switch (k->type) {
    case SH_VALUE_F32: sh_gguf_add_f32(w, k->name, k->f32); break;
    case SH_VALUE_BOOL: sh_gguf_add_bool(w, k->name, k->u32 != 0); break;
    case SH_VALUE_STRING: sh_gguf_add_str(w, k->name, k->text, strlen(k->text)); break;
    case SH_VALUE_ARRAY: sh_gguf_add_array(w, k->name, SH_VALUE_U32, k->list, k->count); break;
    default: sh_gguf_add_u32(w, k->name, k->u32); break;
    }
}

static void copy_key(struct sh_gguf_writer *w, const struct sh_kv *kv) {
    if (strcmp(kv->key, "general.alignment") == 0) return; /* the writer's own affair */
    if (kv->type == SH_VALUE_STRING) sh_gguf_add_str(w, kv->key, kv->strings[0].ptr, kv->strings[0].length);
    else if (kv->type != SH_VALUE_ARRAY) sh_gguf_add_scalar(w, kv->key, kv->type, kv->data);
    else if (kv->element_type == SH_VALUE_STRING) sh_gguf_add_strings(w, kv->key, kv->strings, kv->count);
    else sh_gguf_add_array(w, kv->key, kv->element_type, kv->data, kv->count);
}

/* ---- tensors ---- */

static struct tensor *tensor_of(struct rewrite *r, const char *name) {
    for (size_t i = 0; i < r->n_tensors; i++)
        if (strcmp(r->tensors[i].name, name) == 0) return &r->tensors[i];
    return NULL;
}

static struct tensor *existing(struct rewrite *r, const char *name) {
    struct tensor *t = tensor_of(r, name);
    if (t == NULL) fail_msg("there is no tensor '%s'", name);
    return t;
}

static void set_shape(struct tensor *t, uint32_t rank, const uint64_t *dims) {
    t->rank = rank;
    for (uint32_t i = 0; i < 4; i++) t->dims[i] = i < rank ? dims[i] : 1;
    t->changed = true;
}

void rewrite_drop_tensor(struct rewrite *r, const char *name) { existing(r, name)->dropped = true; }
void rewrite_shape(struct rewrite *r, const char *name, uint32_t rank, const uint64_t *dims) {
    set_shape(existing(r, name), rank, dims);
}
void rewrite_type(struct rewrite *r, const char *name, uint32_t type) {
    struct tensor *t = existing(r, name);
    t->type = type;
    t->changed = true;
}
void rewrite_rename(struct rewrite *r, const char *name, const char *to) {
    struct tensor *t = existing(r, name);
    snprintf(t->name, sizeof t->name, "%s", to);
}

static uint64_t elements_of(const struct tensor *t) { return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]; }
static uint64_t bytes_of(const struct tensor *t) {
    const struct sh_type_info *info = sh_type_info(t->type);
    return info == NULL ? 0 : elements_of(t) / info->block_elements * info->block_bytes;
}

void rewrite_tensor_f32(struct rewrite *r, const char *name, uint32_t rank, const uint64_t *dims, const float *data) {
    struct tensor *t = tensor_of(r, name);
    if (t == NULL) {
        assert_true(r->n_tensors < MAX_TENSORS);
        t = &r->tensors[r->n_tensors++];
        snprintf(t->name, sizeof t->name, "%s", name);
    }
    set_shape(t, rank, dims);
    t->type = SH_TYPE_F32;
    free(t->data);
    t->data = malloc(bytes_of(t));
    assert_non_null(t->data);
    memcpy(t->data, data, bytes_of(t));
}

float *rewrite_values(const struct rewrite *r, const char *name, uint64_t *count) {
    const struct sh_tensor *t = sh_gguf_tensor(r->source, name);
    if (t == NULL) fail_msg("there is no tensor '%s'", name);
    *count = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    void *stored = malloc(t->bytes);
    float *values = malloc(*count * sizeof *values);
    assert_true(stored != NULL && values != NULL);
    OK(sh_gguf_read(r->source, t, 0, stored, t->bytes, &err));
    assert_true(sh_dequantize(t->type, stored, values, *count));
    free(stored);
    return values;
}

/* ---- the file ---- */

static void write_tensor(const struct rewrite *r, struct sh_gguf_writer *w, const struct tensor *t) {
    const uint64_t bytes = bytes_of(t);
    void *zeros = NULL;
    const void *data = t->data;
    if (data == NULL) {
        data = zeros = calloc(bytes + 1, 1);
        assert_non_null(zeros);
        if (!t->changed) OK(sh_gguf_read(r->source, sh_gguf_tensor(r->source, t->source), 0, zeros, bytes, &err));
    }
    OK(sh_gguf_writer_data(w, data, bytes, &err));
    free(zeros);
}

void rewrite_save(struct rewrite *r, const char *path) {
    if (!test_is_scratch(path)) fail_msg("%s is not in this process's scratch folder", path);
    struct sh_gguf_writer *w = NULL;
    OK(sh_gguf_writer_create(path, 3, 0, &w, &err));
    for (uint64_t i = 0; r->source != NULL && i < sh_gguf_kv_count(r->source); i++) {
        const struct sh_kv *kv = sh_gguf_kv_at(r->source, i);
        const struct key *changed = changed_key(r, kv->key);
        if (changed == NULL) copy_key(w, kv);
        else write_key(w, changed);
    }
    for (size_t i = 0; i < r->n_keys; i++)
        if (r->source == NULL || sh_gguf_find(r->source, r->keys[i].name) == NULL) write_key(w, &r->keys[i]);
    for (size_t i = 0; i < r->n_tensors; i++)
        if (!r->tensors[i].dropped)
            sh_gguf_add_tensor(w, r->tensors[i].name, r->tensors[i].type, r->tensors[i].rank, r->tensors[i].dims);
    OK(sh_gguf_writer_begin(w, &err));
    for (size_t i = 0; i < r->n_tensors; i++)
        if (!r->tensors[i].dropped) write_tensor(r, w, &r->tensors[i]);
    OK(sh_gguf_writer_finish(w, &err));
    sh_gguf_writer_destroy(w);
    for (size_t i = 0; i < r->n_keys; i++) {
        free(r->keys[i].text);
        free(r->keys[i].list);
    }
    for (size_t i = 0; i < r->n_tensors; i++) free(r->tensors[i].data);
    sh_gguf_close(r->source);
    free(r);
}
