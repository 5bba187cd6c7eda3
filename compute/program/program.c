/* The program's growth while it is built, and its end. */
#include "compute/program/build.h"

#include <stdio.h>
#include <stdlib.h>

const char *sh_op_name(enum sh_op_kind kind) {
    static const char *const names[] = {
        [SH_OP_EMBED] = "embed", [SH_OP_RMS_NORM] = "rms_norm",     [SH_OP_MATMUL] = "matmul",
        [SH_OP_ADD] = "add",     [SH_OP_ROPE_CACHE] = "rope_cache", [SH_OP_ATTENTION] = "attention",
        [SH_OP_GLU] = "glu",     [SH_OP_GATHER_OUT] = "gather_out",
    };
    return (size_t)kind < SH_COUNT(names) ? names[kind] : "unknown";
}

struct sh_program *sh_program_create(void) {
    struct sh_program *p = sh_calloc(1, sizeof *p);
    if (p != NULL) p->hidden = p->logits = SH_NONE;
    return p;
}

void sh_program_destroy(struct sh_program *p) {
    if (p == NULL) return;
    for (uint32_t i = 0; i < p->n_weights; i++) free(p->weights[i].constant);
    free(p->activations);
    free(p->weights);
    free(p->ops);
    free(p->groups);
    free(p);
}

uint32_t sh_build_fail(struct sh_builder *b, enum sh_code code, const char *fmt, ...) {
    if (b->code != SH_OK) return SH_NONE;
    b->code = code;
    char message[sizeof b->err->message];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    sh_fail(b->err, code, "%s", message);
    return SH_NONE;
}

static uint32_t out_of_memory(struct sh_builder *b) { return sh_build_fail(b, SH_ERR_NO_MEMORY, "no memory for the program"); }

/* ---- weights ---- */

static uint32_t append_weight(struct sh_builder *b, const struct sh_weight *w) {
    struct sh_program *p = b->program;
    for (uint32_t i = 0; i < p->n_weights; i++)
        if (strcmp(p->weights[i].name, w->name) == 0) return i; /* a tied head names the embedding again */
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

static uint32_t add_weight(struct sh_builder *b, uint64_t cols, uint64_t rows, bool vector, bool optional, const char *fmt,
                           va_list args) {
    if (b->code != SH_OK) return SH_NONE;
    struct sh_weight w = {.cols = cols, .rows = rows, .type = SH_TYPE_F32};
    const int length = vsnprintf(w.name, sizeof w.name, fmt, args);
    SH_ASSERT(length > 0 && (size_t)length < sizeof w.name);
    if (b->gguf == NULL) return append_weight(b, &w);

    const struct sh_tensor *t = sh_gguf_tensor(b->gguf, w.name);
    if (t == NULL && optional) return SH_NONE;
    uint64_t want[2] = {cols, rows};
    char expected[64], found[128];
    shape_text(expected, sizeof expected, vector ? 1 : 2, want);
    if (t == NULL)
        return sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s' is missing, expected one of shape %s", sh_gguf_path(b->gguf, 0),
                             w.name, expected);
    const char *file = sh_gguf_path(b->gguf, t->shard);
    bool same = t->dims[0] == cols && t->dims[1] == rows;
    for (uint32_t i = 2; i < 4; i++) same = same && t->dims[i] == 1;
    if (!same) {
        shape_text(found, sizeof found, t->rank, t->dims);
        return sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s' has shape %s, expected %s by the file's hyper-parameters", file,
                             w.name, found, expected);
    }
    const struct sh_type_info *info = sh_type_info(t->type);
    const bool plain = t->type == SH_TYPE_F32 || t->type == SH_TYPE_F16 || t->type == SH_TYPE_BF16;
    if (info == NULL || !info->computable || (vector && !plain)) {
        char number[24];
        snprintf(number, sizeof number, "type %u", t->type);
        return sh_build_fail(b, SH_ERR_UNSUPPORTED, "%s: tensor '%s' is %s, this build computes with %s", file, w.name,
                             info != NULL ? info->name : number,
                             vector ? "F32, F16 and BF16 vectors" : "F32, F16, BF16, Q4_0, Q8_0, Q4_K, Q5_K and Q6_K");
    }
    w.type = vector ? SH_TYPE_F32 : t->type;
    w.tensor = t;
    return append_weight(b, &w);
}

uint32_t sh_build_matrix(struct sh_builder *b, uint64_t cols, uint64_t rows, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    const uint32_t w = add_weight(b, cols, rows, false, false, fmt, args);
    va_end(args);
    return w;
}

uint32_t sh_build_vector(struct sh_builder *b, uint64_t cols, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    const uint32_t w = add_weight(b, cols, 1, true, false, fmt, args);
    va_end(args);
    return w;
}

uint32_t sh_build_vector_optional(struct sh_builder *b, uint64_t cols, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    const uint32_t w = add_weight(b, cols, 1, true, true, fmt, args);
    va_end(args);
    return w;
}

uint32_t sh_build_constant(struct sh_builder *b, uint64_t cols, uint64_t rows, float *data, const char *name) {
    struct sh_weight w = {.cols = cols, .rows = rows, .type = SH_TYPE_F32, .constant = data};
    uint32_t index = SH_NONE;
    if (b->code == SH_OK && data == NULL) out_of_memory(b);
    if (b->code == SH_OK) {
        snprintf(w.name, sizeof w.name, "%s", name);
        index = append_weight(b, &w);
    }
    if (index == SH_NONE || b->program->weights[index].constant != data) free(data);
    return index;
}

/* ---- state, activations ---- */

uint32_t sh_build_state(struct sh_builder *b, struct sh_state_group spec, uint32_t *layer_in_group) {
    *layer_in_group = 0;
    if (b->code != SH_OK) return SH_NONE;
    struct sh_program *p = b->program;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        struct sh_state_group *have = &p->groups[g];
        if (have->kind == spec.kind && have->n_kv_heads == spec.n_kv_heads && have->k_dim == spec.k_dim &&
            have->v_dim == spec.v_dim) {
            *layer_in_group = have->n_layers++;
            return g;
        }
    }
    if (!sh_grow((void **)&p->groups, &p->cap_groups, p->n_groups + 1, sizeof *p->groups)) return out_of_memory(b);
    spec.n_layers = 1;
    p->groups[p->n_groups] = spec;
    return p->n_groups++;
}

uint32_t sh_build_activation(struct sh_builder *b, uint32_t width, enum sh_rows rows, const char *name) {
    if (b->code != SH_OK) return SH_NONE;
    struct sh_program *p = b->program;
    if (!sh_grow((void **)&p->activations, &p->cap_activations, p->n_activations + 1, sizeof *p->activations))
        return out_of_memory(b);
    struct sh_activation *a = &p->activations[p->n_activations];
    *a = (struct sh_activation){.width = width, .rows = rows};
    snprintf(a->name, sizeof a->name, "%s", name);
    return p->n_activations++;
}

/* ---- ops ---- */

static uint32_t result(struct sh_builder *b, uint32_t width, enum sh_rows rows, const char *stem) {
    char name[48];
    if (b->layer == SH_NONE) snprintf(name, sizeof name, "%s", stem);
    else snprintf(name, sizeof name, "blk.%u.%s", b->layer, stem);
    return sh_build_activation(b, width, rows, name);
}

static uint32_t append_op(struct sh_builder *b, struct sh_op op) {
    struct sh_program *p = b->program;
    if (b->code != SH_OK) return SH_NONE;
    if (!sh_grow((void **)&p->ops, &p->cap_ops, p->n_ops + 1, sizeof *p->ops)) return out_of_memory(b);
    op.layer = b->layer;
    p->ops[p->n_ops++] = op;
    return op.out;
}

static struct sh_op blank(enum sh_op_kind kind) {
    return (struct sh_op){.kind = kind,
                          .x = SH_NONE,
                          .y = SH_NONE,
                          .z = SH_NONE,
                          .out = SH_NONE,
                          .residual = SH_NONE,
                          .w = SH_NONE,
                          .bias = SH_NONE};
}

static const struct sh_activation *activation(const struct sh_builder *b, uint32_t a) {
    SH_ASSERT(a < b->program->n_activations);
    return &b->program->activations[a];
}

static const struct sh_weight *weight(const struct sh_builder *b, uint32_t w) {
    SH_ASSERT(w < b->program->n_weights);
    return &b->program->weights[w];
}

uint32_t sh_build_embed(struct sh_builder *b, uint32_t w, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    struct sh_op op = blank(SH_OP_EMBED);
    op.w = w;
    op.out = result(b, (uint32_t)weight(b, w)->cols, SH_ROWS_ALL, stem);
    return append_op(b, op);
}

uint32_t sh_build_rms_norm(struct sh_builder *b, uint32_t x, uint32_t w, float eps, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = *activation(b, x);
    SH_ASSERT(weight(b, w)->cols == in.width);
    struct sh_op op = blank(SH_OP_RMS_NORM);
    op.x = x;
    op.w = w;
    op.eps = eps;
    op.out = result(b, in.width, in.rows, stem);
    return append_op(b, op);
}

uint32_t sh_build_matmul(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t bias, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = *activation(b, x);
    SH_ASSERT(weight(b, w)->cols == in.width);
    SH_ASSERT(bias == SH_NONE || weight(b, bias)->cols == weight(b, w)->rows);
    struct sh_op op = blank(SH_OP_MATMUL);
    op.x = x;
    op.w = w;
    op.bias = bias;
    op.out = result(b, (uint32_t)weight(b, w)->rows, in.rows, stem);
    return append_op(b, op);
}

static uint32_t pointwise(struct sh_builder *b, enum sh_op_kind kind, uint32_t x, uint32_t y, enum sh_glu glu, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = *activation(b, x);
    SH_ASSERT(activation(b, y)->width == in.width && activation(b, y)->rows == in.rows);
    struct sh_op op = blank(kind);
    op.x = x;
    op.y = y;
    op.glu = glu;
    op.out = result(b, in.width, in.rows, stem);
    return append_op(b, op);
}

uint32_t sh_build_add(struct sh_builder *b, uint32_t x, uint32_t y, const char *stem) {
    return pointwise(b, SH_OP_ADD, x, y, SH_GLU_SILU, stem);
}

uint32_t sh_build_glu(struct sh_builder *b, enum sh_glu glu, uint32_t gate, uint32_t up, const char *stem) {
    return pointwise(b, SH_OP_GLU, gate, up, glu, stem);
}

uint32_t sh_build_gather_out(struct sh_builder *b, uint32_t x, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = *activation(b, x);
    SH_ASSERT(in.rows == SH_ROWS_ALL);
    struct sh_op op = blank(SH_OP_GATHER_OUT);
    op.x = x;
    op.out = result(b, in.width, SH_ROWS_OUT, stem);
    return append_op(b, op);
}

uint32_t sh_build_attend(struct sh_builder *b, const struct sh_build_attention *a, uint32_t q, uint32_t k, uint32_t v,
                         const char *rope_stem, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    SH_ASSERT(a->n_kv_heads > 0 && a->n_heads % a->n_kv_heads == 0 && a->n_rot % 2 == 0 && a->n_rot <= a->k_dim);
    SH_ASSERT(activation(b, q)->width == a->n_heads * a->k_dim && activation(b, k)->width == a->n_kv_heads * a->k_dim &&
              activation(b, v)->width == a->n_kv_heads * a->v_dim);
    SH_ASSERT(weight(b, a->rope_table)->cols == a->n_rot);
    struct sh_op op = blank(SH_OP_ROPE_CACHE);
    op.x = q;
    op.y = k;
    op.z = v;
    op.w = a->rope_table;
    op.rope.pairing = a->pairing;
    op.rope.n_rot = a->n_rot;
    op.attn.group = a->group;
    op.attn.layer_in_group = a->layer_in_group;
    op.attn.n_heads = a->n_heads;
    op.attn.n_kv_heads = a->n_kv_heads;
    op.attn.k_dim = a->k_dim;
    op.attn.v_dim = a->v_dim;
    op.attn.scale = a->scale;
    op.out = result(b, a->n_heads * a->k_dim, SH_ROWS_ALL, rope_stem);
    const uint32_t rotated = append_op(b, op);

    struct sh_op attention = blank(SH_OP_ATTENTION);
    attention.attn = op.attn;
    attention.x = rotated;
    attention.out = result(b, a->n_heads * a->v_dim, SH_ROWS_ALL, stem);
    return append_op(b, attention);
}
