#include "compute/program/trace.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct sh_trace {
    const struct sh_program *program;
    pthread_mutex_t lock;
    struct sh_op_time *lines;
    uint32_t n_lines, cap_lines;
};

struct sh_trace *sh_trace_create(const struct sh_program *program) {
    struct sh_trace *t = sh_calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    t->program = program;
    pthread_mutex_init(&t->lock, NULL);
    return t;
}

void sh_trace_destroy(struct sh_trace *t) {
    if (t == NULL) return;
    pthread_mutex_destroy(&t->lock);
    free(t->lines);
    free(t);
}

/* "blk.3.ffn_up.weight" -> "ffn_up" */
static void append_stem(char *out, size_t cap, const char *name) {
    if (strncmp(name, "blk.", 4) == 0) {
        const char *dot = strchr(name + 4, '.');
        if (dot != NULL) name = dot + 1;
    }
    const size_t used = strlen(out);
    snprintf(out + used, cap - used, "%s%.*s", used > 0 ? "+" : "", (int)strcspn(name, "."), name);
}

static void append_once(char *out, size_t cap, const char *word) {
    const size_t used = strlen(out), length = strlen(word);
    if (used >= length && strcmp(out + used - length, word) == 0) return;
    snprintf(out + used, cap - used, "%s%s", used > 0 ? "+" : "", word);
}

static bool is_product(const struct sh_op *op) { return op->kind == SH_OP_MATMUL || op->kind == SH_OP_EXPERT_MATMUL; }

static struct sh_op_time describe(const struct sh_program *p, const struct sh_op *ops, uint32_t n_ops, const char *part) {
    struct sh_op_time line = {0};
    for (uint32_t i = 0; i < n_ops; i++) {
        append_once(line.op, sizeof line.op, sh_op_name(ops[i].kind));
        append_stem(line.name, sizeof line.name,
                    is_product(&ops[i]) ? p->weights[ops[i].w].name : p->activations[ops[i].out].name);
        if (is_product(&ops[i])) append_once(line.type, sizeof line.type, sh_type_info(p->weights[ops[i].w].type)->name);
    }
    if (n_ops == 0) snprintf(line.op, sizeof line.op, "%s", part);
    else if (part != NULL) snprintf(line.part, sizeof line.part, "%s", part);
    return line;
}

static struct sh_op_time *find(struct sh_trace *t, const struct sh_op_time *like) {
    for (uint32_t i = 0; i < t->n_lines; i++) {
        struct sh_op_time *line = &t->lines[i];
        if (strcmp(line->name, like->name) == 0 && strcmp(line->op, like->op) == 0 && strcmp(line->type, like->type) == 0 &&
            strcmp(line->part, like->part) == 0)
            return line;
    }
    if (!sh_grow((void **)&t->lines, &t->cap_lines, t->n_lines + 1, sizeof *t->lines)) return NULL;
    t->lines[t->n_lines] = *like;
    return &t->lines[t->n_lines++];
}

void sh_trace_add(struct sh_trace *t, const struct sh_op *ops, uint32_t n_ops, const char *part,
                  const struct sh_step_shape *shape, uint64_t ns) {
    struct sh_op_time like = describe(t->program, ops, n_ops, part);
    for (uint32_t i = 0; i < n_ops && part == NULL; i++) {
        const struct sh_op_cost cost = sh_op_cost(t->program, &ops[i], shape);
        like.bytes += cost.bytes;
        like.macs += cost.macs;
    }
    const uint64_t bytes = like.bytes, macs = like.macs;
    like.bytes = like.macs = 0;
    pthread_mutex_lock(&t->lock);
    struct sh_op_time *line = find(t, &like);
    if (line != NULL) {
        line->count++;
        line->ns += ns;
        line->bytes += bytes;
        line->macs += macs;
    }
    pthread_mutex_unlock(&t->lock);
}

void sh_trace_reset(struct sh_trace *t) {
    pthread_mutex_lock(&t->lock);
    t->n_lines = 0;
    pthread_mutex_unlock(&t->lock);
}

uint32_t sh_trace_lines(struct sh_trace *t, struct sh_op_time *out, uint32_t max) {
    pthread_mutex_lock(&t->lock);
    const uint32_t n = t->n_lines;
    for (uint32_t i = 0; i < n && i < max; i++) out[i] = t->lines[i];
    pthread_mutex_unlock(&t->lock);
    return n;
}
