/* A program's life, its activations and state groups. */
#include "compute/program/build.h"

#include <stdio.h>
#include <stdlib.h>

const char *sh_op_name(enum sh_op_kind kind) {
    static const char *const names[SH_OP_KINDS] = {
        [SH_OP_EMBED] = "embed",
        [SH_OP_NORM] = "norm",
        [SH_OP_MATMUL] = "matmul",
        [SH_OP_ADD] = "add",
        [SH_OP_UNARY] = "unary",
        [SH_OP_GLU] = "glu",
        [SH_OP_CONCAT] = "concat",
        [SH_OP_ROPE] = "rope",
        [SH_OP_ROPE_CACHE] = "rope_cache",
        [SH_OP_ATTENTION] = "attention",
        [SH_OP_ROUTE] = "route",
        [SH_OP_EXPERT_MATMUL] = "expert_matmul",
        [SH_OP_EXPERT_SUM] = "expert_sum",
        [SH_OP_CONV] = "conv",
        [SH_OP_SCAN] = "scan",
        [SH_OP_DELTA_NET] = "delta_net",
        [SH_OP_GATHER_OUT] = "gather_out",
    };
    return (size_t)kind < SH_COUNT(names) ? names[kind] : "unknown";
}

void sh_op_reads(const struct sh_op *op, uint32_t reads[SH_OP_READS]) {
    const uint32_t all[SH_OP_READS] = {op->x, op->y, op->z, op->u, op->t, op->residual};
    memcpy(reads, all, sizeof all);
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

uint32_t sh_build_state(struct sh_builder *b, struct sh_state_group spec, uint32_t *layer_in_group) {
    *layer_in_group = 0;
    if (b->code != SH_OK) return SH_NONE;
    struct sh_program *p = b->program;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        struct sh_state_group *have = &p->groups[g];
        if (have->kind == spec.kind && have->n_kv_heads == spec.n_kv_heads && have->k_dim == spec.k_dim &&
            have->v_dim == spec.v_dim && have->v_in_k == spec.v_in_k && have->window == spec.window &&
            have->floats == spec.floats) {
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
