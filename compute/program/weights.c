/* Weights of a program: looked up in the file by name, shape and type; constants that the loader computes. */
#include "compute/program/build.h"

#include <stdio.h>
#include <stdlib.h>

static uint32_t out_of_memory(struct sh_builder *b) { return sh_build_fail(b, SH_ERR_NO_MEMORY, "no memory for the program"); }

static uint32_t append_weight(struct sh_builder *b, const struct sh_weight *w) {
    struct sh_program *p = b->program;
    for (uint32_t i = 0; i < p->n_weights; i++)
        if (p->weights[i].gguf == w->gguf && strcmp(p->weights[i].name, w->name) == 0) return i; /* a tied head names the embedding again */
    if (!sh_grow((void **)&p->weights, &p->cap_weights, p->n_weights + 1, sizeof *p->weights)) return out_of_memory(b);
    p->weights[p->n_weights] = *w;
    return p->n_weights++;
}

/* "[2048, 5632]", as the file writes it: the contiguous dimension first. */
static void shape_text(char *buf, size_t cap, uint32_t rank, const uint64_t *dims) {
    size_t n = 0;
    for (uint32_t i = 0; i < rank && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s%llu", i == 0 ? "[" : ", ", (unsigned long long)dims[i]);
    if (n < cap) snprintf(buf + n, cap - n, "]");
}

/* What a builder expects of a tensor, and which part of it it takes. */
struct wanted {
    uint64_t dims[3]; /* as the file writes them; 1 beyond rank */
    uint32_t rank;
    bool plain;    /* F32, F16 or BF16, converted to F32 */
    bool optional; /* absent is SH_NONE */
    bool part;
    struct sh_row_view view;  /* of the rows, or of a vector's elements; whole unless `part` */
    uint64_t cols, rows;      /* of the weight */
};

static enum sh_code check_type(struct sh_builder *b, const struct sh_tensor *t, bool plain) {
    const struct sh_type_info *info = sh_type_info(t->type);
    const bool is_plain = t->type == SH_TYPE_F32 || t->type == SH_TYPE_F16 || t->type == SH_TYPE_BF16;
    if (info != NULL && info->computable && (!plain || is_plain)) return SH_OK;
    char number[24];
    snprintf(number, sizeof number, "type %u", t->type);
    sh_build_fail(b, SH_ERR_UNSUPPORTED, "%s: tensor '%s' is %s, this build computes with %s", sh_gguf_path(b->gguf, t->shard),
                  t->name, info != NULL ? info->name : number, plain ? "F32, F16 and BF16 here" : sh_computable_types());
    return b->code;
}

static uint32_t add_weight(struct sh_builder *b, const struct wanted *want, const char *fmt, va_list args) {
    if (b->code != SH_OK) return SH_NONE;
    struct sh_weight w = {.cols = want->cols, .rows = want->rows, .type = SH_TYPE_F32, .view = want->view};
    char name[64];
    const int length = vsnprintf(name, sizeof name, fmt, args);
    SH_ASSERT(length > 0 && (size_t)length < sizeof name);
    if (!want->part) {
        memcpy(w.name, name, sizeof name);
    } else {
        const int n = snprintf(w.name, sizeof w.name, "%s[%llu:%llu]", name, (unsigned long long)want->view.first,
                               (unsigned long long)(want->view.first + want->view.take));
        SH_ASSERT(n > 0 && (size_t)n < sizeof w.name);
    }
    if (b->gguf == NULL) return append_weight(b, &w);

    const struct sh_tensor *t = sh_gguf_tensor(b->gguf, name);
    if (t == NULL && want->optional) return SH_NONE;
    char expected[96], found[128];
    shape_text(expected, sizeof expected, want->rank, want->dims);
    if (t == NULL)
        return sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s' is missing, expected one of shape %s", sh_gguf_path(b->gguf, 0), name,
                             expected);
    bool same = t->dims[3] == 1;
    for (uint32_t i = 0; i < 3; i++) same = same && t->dims[i] == want->dims[i];
    if (!same) {
        shape_text(found, sizeof found, t->rank, t->dims);
        return sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s' has shape %s, expected %s by the file's hyper-parameters",
                             sh_gguf_path(b->gguf, t->shard), name, found, expected);
    }
    if (check_type(b, t, want->plain) != SH_OK) return SH_NONE;
    w.type = want->plain ? SH_TYPE_F32 : t->type;
    w.tensor = t;
    w.gguf = b->gguf;
    return append_weight(b, &w);
}

/* Expands to the rest of a function that ends in (fmt, ...). */
#define ADD_WEIGHT(want)                                       \
    va_list args;                                              \
    va_start(args, fmt);                                       \
    const uint32_t weight = add_weight(b, &(want), fmt, args); \
    va_end(args);                                              \
    return weight

static struct wanted matrix(uint64_t cols, uint64_t rows) {
    return (struct wanted){.dims = {cols, rows, 1}, .rank = 2, .view = {0, rows, rows, 1}, .cols = cols, .rows = rows};
}
static struct wanted vector(uint64_t cols) {
    return (struct wanted){.dims = {cols, 1, 1}, .rank = 1, .plain = true, .view = {0, cols, cols, 1}, .cols = cols, .rows = 1};
}
static void take_part(struct wanted *want, struct sh_row_view view, uint64_t of) {
    SH_ASSERT(view.take > 0 && view.count > 0 && view.take <= view.stride && view.first < of && view.take <= of - view.first &&
              (view.count - 1) <= (of - view.first - view.take) / view.stride);
    want->part = true;
    want->view = view;
}

bool sh_build_has(const struct sh_builder *b, const char *fmt, ...) {
    char name[64];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return b->gguf != NULL && sh_gguf_tensor(b->gguf, name) != NULL;
}

uint32_t sh_build_matrix(struct sh_builder *b, uint64_t cols, uint64_t rows, const char *fmt, ...) {
    const struct wanted want = matrix(cols, rows);
    ADD_WEIGHT(want);
}

uint32_t sh_build_matrix_rows(struct sh_builder *b, uint64_t cols, uint64_t rows, struct sh_row_view view, const char *fmt, ...) {
    struct wanted want = matrix(cols, rows);
    take_part(&want, view, rows);
    want.rows = view.take * view.count;
    ADD_WEIGHT(want);
}

uint32_t sh_build_matrices(struct sh_builder *b, uint64_t cols, uint64_t rows, uint64_t n, const char *fmt, ...) {
    struct wanted want = matrix(cols, rows * n);
    want.dims[1] = rows;
    want.dims[2] = n;
    want.rank = 3;
    ADD_WEIGHT(want);
}

uint32_t sh_build_table(struct sh_builder *b, uint64_t cols, uint64_t rows, const char *fmt, ...) {
    struct wanted want = matrix(cols, rows);
    want.plain = true;
    ADD_WEIGHT(want);
}

uint32_t sh_build_table_rows(struct sh_builder *b, uint64_t cols, uint64_t rows, struct sh_row_view view, const char *fmt, ...) {
    struct wanted want = matrix(cols, rows);
    want.plain = true;
    take_part(&want, view, rows);
    want.rows = view.take * view.count;
    ADD_WEIGHT(want);
}

uint32_t sh_build_vector(struct sh_builder *b, uint64_t cols, const char *fmt, ...) {
    const struct wanted want = vector(cols);
    ADD_WEIGHT(want);
}

uint32_t sh_build_vector_part(struct sh_builder *b, uint64_t cols, struct sh_row_view view, const char *fmt, ...) {
    struct wanted want = vector(cols);
    take_part(&want, view, cols);
    want.cols = view.take * view.count;
    ADD_WEIGHT(want);
}

uint32_t sh_build_vectors(struct sh_builder *b, uint64_t cols, uint64_t n, const char *fmt, ...) {
    struct wanted want = vector(cols * n);
    want.dims[0] = cols;
    want.dims[1] = n;
    want.rank = 2;
    ADD_WEIGHT(want);
}

uint32_t sh_build_vector_optional(struct sh_builder *b, uint64_t cols, const char *fmt, ...) {
    struct wanted want = vector(cols);
    want.optional = true;
    ADD_WEIGHT(want);
}

uint32_t sh_build_constant(struct sh_builder *b, uint64_t cols, uint64_t rows, float *data, const char *name) {
    struct sh_weight w = {.cols = cols, .rows = rows, .type = SH_TYPE_F32, .view = {0, rows, rows, 1}, .constant = data};
    uint32_t index = SH_NONE;
    if (b->code == SH_OK && data == NULL) out_of_memory(b);
    if (b->code == SH_OK) {
        snprintf(w.name, sizeof w.name, "%s", name);
        index = append_weight(b, &w);
    }
    if (index == SH_NONE || b->program->weights[index].constant != data) free(data);
    return index;
}
