/* One file's header. Counts are never trusted: tables grow as entries are read, so they cost what the file really holds. */
#include "compute/gguf/header.h"
#include "compute/gguf/cursor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_KVS 65536u
#define MAX_TENSORS (1u << 20)
#define MAX_STRINGS (1u << 23) /* in all arrays of strings together: the largest vocabularies have 2^18 tokens and merges each */
#define MAX_KEY_BYTES 65535u
#define MAX_TENSOR_NAME_BYTES 1023u
#define MAX_ARRAY_DEPTH 4u /* arrays inside arrays */
#define MIN_ALIGNMENT 8u
#define MAX_ALIGNMENT (1u << 20)
#define DEFAULT_ALIGNMENT 32u

#define MIN_KV_BYTES 14u     /* empty-but-one key 9, type 4, value 1 */
#define MIN_TENSOR_BYTES 33u /* name 9, rank 4, one dimension 8, type 4, offset 8 */

/* What parsing collects before addresses are final. */
struct raw_kv {
    struct sh_span key, data;
    uint64_t offset, count, first_string; /* first_string: index into strings, where there are any */
    enum sh_value_type type, element_type;
};
struct raw_tensor {
    struct sh_span name;
    uint64_t entry_offset, data_offset, dims[4];
    uint32_t type, rank;
};
struct parse {
    struct sh_cursor c;
    struct raw_kv *kvs;
    struct raw_tensor *tensors;
    struct sh_span *strings;
    uint32_t n_kvs, kv_capacity, n_tensors, tensor_capacity, n_strings, string_capacity;
    uint64_t name_bytes; /* of keys and names with their NULs */
};

/* Bytes of a scalar; 0 for strings, arrays and unknown types. */
static uint32_t scalar_bytes(uint32_t type) {
    switch (type) {
    case SH_VALUE_U8:
    case SH_VALUE_I8:
    case SH_VALUE_BOOL: return 1;
    case SH_VALUE_U16:
    case SH_VALUE_I16: return 2;
    case SH_VALUE_U32:
    case SH_VALUE_I32:
    case SH_VALUE_F32: return 4;
    case SH_VALUE_U64:
    case SH_VALUE_I64:
    case SH_VALUE_F64: return 8;
    default: return 0;
    }
}

static bool out_of_memory(struct parse *p) {
    sh_cursor_fail(&p->c, SH_ERR_NO_MEMORY, p->c.at, "no memory for the tables of the header");
    return false;
}

/* Keys and tensor names are shown to people and used as C strings: UTF-8 without control characters. */
static struct sh_span read_name(struct parse *p, uint64_t max_bytes) {
    const uint64_t at = p->c.at;
    const struct sh_span name = sh_cursor_string(&p->c, max_bytes);
    if (p->c.failed) return name;
    if (name.length == 0) {
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, at, "found an empty name, expected at least one byte");
        return name;
    }
    const char *text = (const char *)sh_cursor_at(&p->c, name.offset);
    for (size_t i = 0, n; i < name.length; i += n) {
        n = sh_utf8_length(text + i, (size_t)name.length - i);
        if (n == 0 || (unsigned char)text[i] < 0x20 || text[i] == 0x7F) {
            sh_cursor_fail(&p->c, SH_ERR_FORMAT, name.offset + i,
                           "found byte 0x%02X in a name, expected UTF-8 without control characters", (unsigned char)text[i]);
            return name;
        }
    }
    p->name_bytes += name.length + 1;
    return name;
}

static bool add_string(struct parse *p, struct sh_span s) {
    if (!sh_grow((void **)&p->strings, &p->string_capacity, p->n_strings + 1, sizeof *p->strings)) return out_of_memory(p);
    p->strings[p->n_strings++] = s;
    return true;
}

/* n scalars; bools are checked to be 0 or 1 as the format demands. */
static struct sh_span read_scalars(struct parse *p, uint32_t type, uint64_t n) {
    const struct sh_span span = sh_cursor_bytes(&p->c, n * scalar_bytes(type));
    if (type == SH_VALUE_BOOL && !p->c.failed) {
        const uint8_t *b = sh_cursor_at(&p->c, span.offset);
        for (uint64_t i = 0; i < n; i++)
            if (b[i] > 1) {
                sh_cursor_fail(&p->c, SH_ERR_FORMAT, span.offset + i, "found bool %u, expected 0 or 1", b[i]);
                break;
            }
    }
    return span;
}

/* An array's element type and count, checked against what is left of the file. */
static bool read_array_head(struct parse *p, uint32_t *element, uint64_t *count) {
    const uint64_t at = p->c.at;
    *element = sh_cursor_u32(&p->c);
    *count = sh_cursor_u64(&p->c);
    if (p->c.failed) return false;
    const uint32_t least = *element == SH_VALUE_STRING ? 8 : *element == SH_VALUE_ARRAY ? 12 : scalar_bytes(*element);
    if (least == 0) {
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, at, "found array element type %u, expected 0 to 12", *element);
        return false;
    }
    if (*count > sh_cursor_left(&p->c) / least) {
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, at + 4,
                       "found an array of %" PRIu64 " elements, expected at most the %" PRIu64
                       " that the rest of the file can hold",
                       *count, sh_cursor_left(&p->c) / least);
        return false;
    }
    return true;
}

/* Walks over the elements of a nested array without keeping them apart. */
static void skip_elements(struct parse *p, uint32_t element, uint64_t count, uint32_t depth) {
    if (scalar_bytes(element) != 0) {
        read_scalars(p, element, count);
        return;
    }
    if (depth > MAX_ARRAY_DEPTH) {
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, p->c.at, "found arrays nested %u deep, expected at most %u", depth, MAX_ARRAY_DEPTH);
        return;
    }
    for (uint64_t i = 0; i < count && !p->c.failed; i++) {
        uint32_t inner;
        uint64_t n;
        if (element == SH_VALUE_STRING) sh_cursor_string(&p->c, UINT64_MAX);
        else if (read_array_head(p, &inner, &n)) skip_elements(p, inner, n, depth + 1);
    }
}

static bool read_kv(struct parse *p) {
    struct sh_cursor *c = &p->c;
    struct raw_kv kv = {.offset = c->at, .count = 1};
    sh_cursor_context(c, "metadata entry %u ", p->n_kvs);
    kv.key = read_name(p, MAX_KEY_BYTES);
    if (c->failed) return false;
    sh_cursor_context(c, "key '%.*s' ", (int)sh_min_u64(kv.key.length, 100), (const char *)sh_cursor_at(c, kv.key.offset));

    const uint64_t type_at = c->at;
    uint32_t type = sh_cursor_u32(c);
    kv.type = type;
    if (!c->failed && type != SH_VALUE_STRING && type != SH_VALUE_ARRAY && scalar_bytes(type) == 0)
        sh_cursor_fail(c, SH_ERR_FORMAT, type_at, "found value type %u, expected 0 to 12", type);
    if (!c->failed && type == SH_VALUE_ARRAY && !read_array_head(p, &type, &kv.count)) return false;
    if (c->failed) return false;

    kv.element_type = type;
    kv.first_string = p->n_strings;
    kv.data.offset = c->at;
    if (type == SH_VALUE_STRING) {
        if (kv.count > MAX_STRINGS - p->n_strings) {
            sh_cursor_fail(c, SH_ERR_FORMAT, type_at, "found %" PRIu64 " strings, expected at most %u in all", kv.count,
                           MAX_STRINGS);
            return false;
        }
        for (uint64_t i = 0; i < kv.count && !c->failed; i++) {
            const struct sh_span s = sh_cursor_string(c, UINT64_MAX);
            if (c->failed || !add_string(p, s)) return false;
        }
    } else if (type == SH_VALUE_ARRAY) {
        skip_elements(p, type, kv.count, 2);
    } else {
        read_scalars(p, type, kv.count);
    }
    if (c->failed) return false;
    kv.data.length = c->at - kv.data.offset;
    if (!sh_grow((void **)&p->kvs, &p->kv_capacity, p->n_kvs + 1, sizeof *p->kvs)) return out_of_memory(p);
    p->kvs[p->n_kvs++] = kv;
    return true;
}

static bool read_tensor(struct parse *p) {
    struct sh_cursor *c = &p->c;
    struct raw_tensor t = {.entry_offset = c->at, .dims = {1, 1, 1, 1}};
    sh_cursor_context(c, "tensor %u ", p->n_tensors);
    t.name = read_name(p, MAX_TENSOR_NAME_BYTES);
    if (c->failed) return false;
    sh_cursor_context(c, "tensor '%.*s' ", (int)sh_min_u64(t.name.length, 100), (const char *)sh_cursor_at(c, t.name.offset));

    uint64_t at = c->at;
    t.rank = sh_cursor_u32(c);
    if (!c->failed && (t.rank < 1 || t.rank > 4))
        sh_cursor_fail(c, SH_ERR_FORMAT, at, "found %u dimensions, expected 1 to 4", t.rank);
    for (uint32_t i = 0; i < t.rank && !c->failed; i++) {
        at = c->at;
        t.dims[i] = sh_cursor_u64(c);
        if (!c->failed && (t.dims[i] == 0 || t.dims[i] > INT64_MAX))
            sh_cursor_fail(c, SH_ERR_FORMAT, at,
                           "found %" PRIu64 " elements in dimension %u, expected at least 1 and less than 2^63", t.dims[i], i);
    }
    t.type = sh_cursor_u32(c);
    t.data_offset = sh_cursor_u64(c);
    if (c->failed) return false;
    if (!sh_grow((void **)&p->tensors, &p->tensor_capacity, p->n_tensors + 1, sizeof *p->tensors)) return out_of_memory(p);
    p->tensors[p->n_tensors++] = t;
    return true;
}

static bool read_head(struct parse *p, uint32_t *version, uint64_t *n_tensors, uint64_t *n_kvs) {
    struct sh_cursor *c = &p->c;
    sh_cursor_context(c, "header ");
    const struct sh_span magic = sh_cursor_bytes(c, 4);
    if (c->failed) return false;
    const uint8_t *m = sh_cursor_at(c, magic.offset);
    if (memcmp(m, "GGUF", 4) != 0) {
        sh_cursor_fail(c, SH_ERR_FORMAT, 0, "found bytes %02X %02X %02X %02X, expected 47 47 55 46 (\"GGUF\"): not a GGUF file",
                       m[0], m[1], m[2], m[3]);
        return false;
    }
    *version = sh_cursor_u32(c);
    if (c->failed) return false;
    if (*version != 0 && (*version & 0xFFFF) == 0) {
        sh_cursor_fail(c, SH_ERR_UNSUPPORTED, 4, "found a big-endian file (version %u), expected little-endian",
                       __builtin_bswap32(*version));
        return false;
    }
    if (*version != 2 && *version != 3) {
        sh_cursor_fail(c, SH_ERR_UNSUPPORTED, 4,
                       "found GGUF version %u, expected 2 or 3: convert the file again with a current tool", *version);
        return false;
    }
    *n_tensors = sh_cursor_u64(c);
    *n_kvs = sh_cursor_u64(c);
    if (c->failed) return false;
    const uint64_t most_tensors = sh_min_u64(MAX_TENSORS, sh_cursor_left(c) / MIN_TENSOR_BYTES);
    const uint64_t most_kvs = sh_min_u64(MAX_KVS, sh_cursor_left(c) / MIN_KV_BYTES);
    if (*n_tensors > most_tensors)
        sh_cursor_fail(c, SH_ERR_FORMAT, 8,
                       "found a count of %" PRIu64 " tensors, expected at most %" PRIu64 " in a file of %" PRIu64 " bytes",
                       *n_tensors, most_tensors, c->file_bytes);
    if (*n_kvs > most_kvs)
        sh_cursor_fail(c, SH_ERR_FORMAT, 16,
                       "found a count of %" PRIu64 " metadata entries, expected at most %" PRIu64 " in a file of %" PRIu64
                       " bytes",
                       *n_kvs, most_kvs, c->file_bytes);
    return !c->failed;
}

static int by_key(const void *a, const void *b, void *kvs) {
    return strcmp(((const struct sh_kv *)kvs)[*(const uint32_t *)a].key, ((const struct sh_kv *)kvs)[*(const uint32_t *)b].key);
}

static int by_name(const void *a, const void *b, void *tensors) {
    return strcmp(((const struct sh_tensor *)tensors)[*(const uint32_t *)a].name,
                  ((const struct sh_tensor *)tensors)[*(const uint32_t *)b].name);
}

static int by_place(const void *a, const void *b, void *tensors) {
    const struct sh_tensor *x = &((const struct sh_tensor *)tensors)[*(const uint32_t *)a];
    const struct sh_tensor *y = &((const struct sh_tensor *)tensors)[*(const uint32_t *)b];
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static uint32_t *sorted(uint32_t n, void *table, int (*compare)(const void *, const void *, void *)) {
    uint32_t *order = sh_calloc(n, sizeof *order);
    if (order == NULL) return NULL;
    for (uint32_t i = 0; i < n; i++) order[i] = i;
    qsort_r(order, n, sizeof *order, compare, table);
    return order;
}

static const char *copy_name(struct parse *p, struct sh_span name, char **next) {
    char *copy = *next;
    memcpy(copy, sh_cursor_at(&p->c, name.offset), (size_t)name.length);
    copy[name.length] = '\0';
    *next += name.length + 1;
    return copy;
}

/* The file is read: turns offsets into addresses. */
static bool resolve(struct parse *p, struct sh_header *h) {
    sh_cursor_trim(&p->c);
    h->names = sh_calloc(p->name_bytes, 1);
    h->strings = sh_calloc(p->n_strings, sizeof *h->strings);
    h->kvs = sh_calloc(p->n_kvs, sizeof *h->kvs);
    h->tensors = sh_calloc(p->n_tensors, sizeof *h->tensors);
    if (h->names == NULL || h->strings == NULL || h->kvs == NULL || h->tensors == NULL) return out_of_memory(p);
    char *next = h->names;
    for (uint32_t i = 0; i < p->n_strings; i++)
        h->strings[i] = (struct sh_str){(const char *)sh_cursor_at(&p->c, p->strings[i].offset), (size_t)p->strings[i].length};
    for (uint32_t i = 0; i < p->n_kvs; i++) {
        const struct raw_kv *r = &p->kvs[i];
        h->kvs[i] = (struct sh_kv){.key = copy_name(p, r->key, &next),
                                   .type = r->type,
                                   .element_type = r->element_type,
                                   .count = r->count,
                                   .offset = r->offset,
                                   .data = sh_cursor_at(&p->c, r->data.offset),
                                   .strings = r->element_type == SH_VALUE_STRING ? h->strings + r->first_string : NULL};
    }
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        const struct raw_tensor *r = &p->tensors[i];
        struct sh_tensor *t = &h->tensors[i];
        *t = (struct sh_tensor){.name = copy_name(p, r->name, &next), .type = r->type, .rank = r->rank};
        memcpy(t->dims, r->dims, sizeof t->dims);
    }
    h->n_kvs = p->n_kvs;
    h->n_tensors = p->n_tensors;
    return true;
}

static bool order_names(struct parse *p, struct sh_header *h) {
    h->kv_order = sorted(h->n_kvs, h->kvs, by_key);
    h->tensor_order = sorted(h->n_tensors, h->tensors, by_name);
    if (h->kv_order == NULL || h->tensor_order == NULL) return out_of_memory(p);
    for (uint32_t i = 1; i < h->n_kvs; i++) {
        const struct sh_kv *a = &h->kvs[h->kv_order[i - 1]], *b = &h->kvs[h->kv_order[i]];
        if (strcmp(a->key, b->key) != 0) continue;
        sh_cursor_context(&p->c, "key '%.100s' ", a->key);
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, sh_max_u64(a->offset, b->offset),
                       "found the key again, expected it once (it stands at byte %" PRIu64 ")", sh_min_u64(a->offset, b->offset));
        return false;
    }
    for (uint32_t i = 1; i < h->n_tensors; i++) {
        const uint32_t a = h->tensor_order[i - 1], b = h->tensor_order[i];
        if (strcmp(h->tensors[a].name, h->tensors[b].name) != 0) continue;
        const uint64_t at = p->tensors[a].entry_offset, other = p->tensors[b].entry_offset;
        sh_cursor_context(&p->c, "tensor '%.100s' ", h->tensors[a].name);
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, sh_max_u64(at, other),
                       "found the tensor again, expected it once (it stands at byte %" PRIu64 ")", sh_min_u64(at, other));
        return false;
    }
    return true;
}

static bool read_alignment(struct parse *p, struct sh_header *h) {
    h->alignment = DEFAULT_ALIGNMENT;
    const struct sh_kv *kv = sh_header_find(h, "general.alignment");
    if (kv == NULL) return true;
    sh_cursor_context(&p->c, "key 'general.alignment' ");
    int64_t v;
    if (kv->type == SH_VALUE_ARRAY || !sh_kv_to_i64(kv, 0, &v)) {
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, kv->offset, "found type %s, expected u32", sh_value_type_name(kv->type));
        return false;
    }
    if (v < MIN_ALIGNMENT || v > MAX_ALIGNMENT || (v & (v - 1)) != 0) {
        sh_cursor_fail(&p->c, SH_ERR_FORMAT, kv->offset, "found %" PRId64 ", expected a power of two from %u to %u", v,
                       MIN_ALIGNMENT, MAX_ALIGNMENT);
        return false;
    }
    h->alignment = (uint64_t)v;
    return true;
}

/* Size and place of tensor i: whole blocks, aligned, inside the file. An unknown type has no size; only its start is checked. */
static bool place_tensor(struct parse *p, struct sh_header *h, uint32_t i, uint64_t data_start) {
    struct sh_cursor *c = &p->c;
    const struct raw_tensor *r = &p->tensors[i];
    struct sh_tensor *t = &h->tensors[i];
    const struct sh_type_info *info = sh_type_info(r->type);
    sh_cursor_context(c, "tensor '%.100s' ", t->name);
    const uint64_t at = r->entry_offset;
    uint64_t elements = 1, bytes = 0, end;
    for (uint32_t d = 0; d < 4; d++)
        if (!sh_mul_u64(elements, t->dims[d], &elements) || elements > INT64_MAX) {
            sh_cursor_fail(c, SH_ERR_FORMAT, at,
                           "found %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64 " elements, expected less than 2^63",
                           t->dims[0], t->dims[1], t->dims[2], t->dims[3]);
            return false;
        }
    if (info != NULL) {
        if (t->dims[0] % info->block_elements != 0) {
            sh_cursor_fail(c, SH_ERR_FORMAT, at,
                           "found rows of %" PRIu64 " elements, expected a multiple of %u, the block of type %s", t->dims[0],
                           info->block_elements, info->name);
            return false;
        }
        if (!sh_mul_u64(elements / info->block_elements, info->block_bytes, &bytes)) {
            sh_cursor_fail(c, SH_ERR_FORMAT, at, "found %" PRIu64 " elements of type %s, expected less than 2^64 bytes", elements,
                           info->name);
            return false;
        }
    }
    if (r->data_offset % h->alignment != 0) {
        sh_cursor_fail(c, SH_ERR_FORMAT, at, "found data offset %" PRIu64 ", expected a multiple of the alignment %" PRIu64,
                       r->data_offset, h->alignment);
        return false;
    }
    if (!sh_add_u64(data_start, r->data_offset, &t->offset) || !sh_add_u64(t->offset, bytes, &end) || end > c->file_bytes ||
        t->offset >= c->file_bytes) {
        sh_cursor_fail(c, SH_ERR_FORMAT, at,
                       "found data of %" PRIu64 " bytes at offset %" PRIu64 " after byte %" PRIu64
                       ", expected it inside the file of %" PRIu64 " bytes: the file is truncated or damaged",
                       bytes, r->data_offset, data_start, c->file_bytes);
        return false;
    }
    t->bytes = bytes;
    return true;
}

static bool check_overlap(struct parse *p, struct sh_header *h) {
    uint32_t *order = sorted(h->n_tensors, h->tensors, by_place);
    if (order == NULL) return out_of_memory(p);
    uint64_t end = 0;
    const struct sh_tensor *last = NULL;
    for (uint32_t i = 0; i < h->n_tensors && !p->c.failed; i++) {
        const struct sh_tensor *t = &h->tensors[order[i]];
        if (t->offset < end) {
            sh_cursor_context(&p->c, "tensor '%.100s' ", t->name);
            sh_cursor_fail(&p->c, SH_ERR_FORMAT, p->tensors[order[i]].entry_offset,
                           "found data at byte %" PRIu64 ", expected it after '%.100s', which ends at byte %" PRIu64, t->offset,
                           last->name, end);
        }
        if (t->offset + t->bytes >= end) {
            end = t->offset + t->bytes;
            last = t;
        }
    }
    free(order);
    return !p->c.failed;
}

enum sh_code sh_header_read(int fd, const char *file, uint64_t file_bytes, struct sh_header *out, struct sh_error *err) {
    struct parse p = {0};
    struct sh_header h = {0};
    uint64_t n_tensors = 0, n_kvs = 0;
    sh_cursor_init(&p.c, fd, file, file_bytes);
    bool ok = read_head(&p, &h.version, &n_tensors, &n_kvs);
    for (uint64_t i = 0; i < n_kvs && ok; i++) ok = read_kv(&p);
    for (uint64_t i = 0; i < n_tensors && ok; i++) ok = read_tensor(&p);
    ok = ok && resolve(&p, &h) && order_names(&p, &h) && read_alignment(&p, &h);
    const uint64_t data_start = ok ? sh_align_up(p.c.at, h.alignment) : 0;
    for (uint32_t i = 0; i < h.n_tensors && ok; i++) ok = place_tensor(&p, &h, i, data_start);
    ok = ok && check_overlap(&p, &h);

    if (ok) h.bytes = sh_cursor_take(&p.c);
    free(p.kvs);
    free(p.tensors);
    free(p.strings);
    sh_cursor_finish(&p.c);
    if (!ok) {
        sh_header_free(&h);
        *out = (struct sh_header){0};
        if (err != NULL) *err = p.c.error;
        return p.c.error.code;
    }
    *out = h;
    return SH_OK;
}

void sh_header_free(struct sh_header *h) {
    free(h->kvs);
    free(h->tensors);
    free(h->kv_order);
    free(h->tensor_order);
    free(h->bytes);
    free(h->strings);
    free(h->names);
    *h = (struct sh_header){0};
}

const struct sh_kv *sh_header_find(const struct sh_header *h, const char *key) {
    uint32_t low = 0, high = h->n_kvs;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const int order = strcmp(key, h->kvs[h->kv_order[middle]].key);
        if (order == 0) return &h->kvs[h->kv_order[middle]];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

bool sh_kv_to_i64(const struct sh_kv *kv, uint64_t i, int64_t *out) {
    const uint32_t size = scalar_bytes(kv->element_type);
    if (size == 0 || i >= kv->count) return false;
    uint64_t u = 0;
    memcpy(&u, (const uint8_t *)kv->data + i * size, size);
    switch (kv->element_type) {
    case SH_VALUE_U8:
    case SH_VALUE_U16:
    case SH_VALUE_U32: *out = (int64_t)u; return true;
    case SH_VALUE_I8: *out = (int8_t)u; return true;
    case SH_VALUE_I16: *out = (int16_t)u; return true;
    case SH_VALUE_I32: *out = (int32_t)u; return true;
    case SH_VALUE_I64: *out = (int64_t)u; return true;
    case SH_VALUE_U64: *out = (int64_t)u; return u <= INT64_MAX;
    default: return false;
    }
}
