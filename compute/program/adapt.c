/*
 * Low-rank adapters (Hu et al., 2021) as ops: out + scale * B (A x), beside the product that they adapt, so that one weight serves
 * with and without them and no executor knows of adapters.
 */
#include "compute/program/build.h"

#include <stdio.h>

/* The tensor `name`.lora_a or .lora_b of the adapter, or NULL. */
static const struct sh_tensor *part_of(const struct sh_build_adapter *a, const char *name, char which) {
    char full[80];
    snprintf(full, sizeof full, "%s.lora_%c", name, which);
    return sh_gguf_tensor(a->gguf, full);
}

/* The weights A and B of an adapter for the tensor that weight w is a view of. */
static void bind(struct sh_builder *b, const struct sh_build_adapter *a, uint32_t w, const struct sh_build_experts *e, uint64_t rank,
                 uint32_t *wa, uint32_t *wb) {
    const struct sh_weight base = b->program->weights[w]; /* by value: the list moves */
    const struct sh_gguf *model = b->gguf;
    const char *name = base.tensor->name;
    const uint64_t rows = base.tensor->dims[1];
    b->gguf = a->gguf;
    if (e != NULL) {
        *wa = sh_build_matrices(b, base.cols, rank, e->n_expert, "%s.lora_a", name);
        *wb = sh_build_matrices(b, rank, rows, e->n_expert, "%s.lora_b", name);
    } else {
        *wa = sh_build_matrix(b, base.cols, rank, "%s.lora_a", name);
        *wb = base.rows == rows ? sh_build_matrix(b, rank, rows, "%s.lora_b", name)
                                : sh_build_matrix_rows(b, rank, rows, base.view, "%s.lora_b", name);
    }
    b->gguf = model;
}

uint32_t sh_build_adapted(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t out, const struct sh_build_experts *e,
                          bool per_slot, uint32_t route, const char *stem) {
    for (uint32_t i = 0; i < b->n_adapters && b->code == SH_OK; i++) {
        const struct sh_build_adapter *a = &b->adapters[i];
        const struct sh_tensor *base = b->program->weights[w].tensor;
        if (base == NULL || b->program->weights[w].gguf == a->gguf) continue; /* a constant, or an adapter's own product */
        const struct sh_tensor *down = part_of(a, base->name, 'a'), *up = part_of(a, base->name, 'b');
        if (down == NULL && up == NULL) continue;
        if (down == NULL || up == NULL)
            return sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s.lora_%c' is missing beside its other half",
                                 sh_gguf_path(a->gguf, 0), base->name, down == NULL ? 'a' : 'b');
        const uint64_t rank = down->dims[1];
        if (rank == 0 || rank > base->dims[0] || up->dims[0] != rank)
            return sh_build_fail(b, SH_ERR_FORMAT,
                                 "%s: the adapter of '%s' has rank %llu in lora_a and %llu in lora_b, expected the same, 1 to %llu",
                                 sh_gguf_path(a->gguf, 0), base->name, (unsigned long long)rank, (unsigned long long)up->dims[0],
                                 (unsigned long long)base->dims[0]);
        uint32_t wa = SH_NONE, wb = SH_NONE;
        bind(b, a, w, e, rank, &wa, &wb);
        char name[3][40];
        static const char *const suffixes[3] = {"lora_a", "lora_scaled", "lora_b"};
        for (int n = 0; n < 3; n++) snprintf(name[n], sizeof name[n], "%.18s.%u.%s", stem, i, suffixes[n]);
        const float scale = a->alpha != 0 ? a->scale * a->alpha / (float)rank : a->scale;
        const uint32_t inner = e == NULL ? sh_build_matmul(b, x, wa, SH_NONE, name[0])
                                         : sh_build_expert_matmul(b, e, x, per_slot, route, wa, SH_NONE, name[0]);
        const uint32_t scaled = sh_build_unary(b, SH_UNARY_SCALE, inner, scale, name[1]);
        const uint32_t delta = e == NULL ? sh_build_matmul(b, scaled, wb, SH_NONE, name[2])
                                         : sh_build_expert_matmul(b, e, scaled, true, route, wb, SH_NONE, name[2]);
        char sum[48];
        snprintf(sum, sizeof sum, "%.24s.%u.adapted", stem, i);
        out = sh_build_add(b, delta, out, sum);
    }
    return out;
}

void sh_build_check_adapters(struct sh_builder *b) {
    for (uint32_t i = 0; i < b->n_adapters && b->code == SH_OK; i++) {
        const struct sh_gguf *g = b->adapters[i].gguf;
        for (uint64_t n = 0; n < sh_gguf_tensor_count(g); n++) {
            const struct sh_tensor *t = sh_gguf_tensor_at(g, n);
            bool used = false;
            for (uint32_t w = 0; w < b->program->n_weights && !used; w++) used = b->program->weights[w].tensor == t;
            if (used) continue;
            sh_build_fail(b, SH_ERR_UNSUPPORTED, "%s: tensor '%s' adapts nothing that this model multiplies by", sh_gguf_path(g, 0),
                          t->name);
            return;
        }
    }
}
