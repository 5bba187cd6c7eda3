#include "compute/state/cache.h"

enum sh_code sh_context_params_complete(const struct sh_program *program, const struct sh_context_params *given,
                                        struct sh_context_params *p, struct sh_error *err) {
    *p = (struct sh_context_params){0};
    if (given != NULL) memcpy(p, given, sh_min_u64(given->size, sizeof *p));
    p->size = sizeof *p;
    if (p->kv_type != SH_KV_F16 && p->kv_type != SH_KV_F32)
        return sh_fail(err, SH_ERR_INVALID, "context: kv_type is %d, expected f16 (0) or f32 (1)", (int)p->kv_type);
    if (program->encoder) p->kv_type = SH_KV_F32; /* scratch of one step: nothing is gained by rounding it */
    if (p->max_sequences == 0) p->max_sequences = 8;
    if (p->max_batch_rows == 0) p->max_batch_rows = 512;
    if (p->kv_tokens == 0) p->kv_tokens = program->context_length;
    if (p->max_outputs == 0) p->max_outputs = p->max_sequences > 64 ? p->max_sequences : 64;
    if (p->max_outputs > p->max_batch_rows) p->max_outputs = p->max_batch_rows;
    const struct {
        const char *name;
        uint64_t value, highest;
    } ranges[] = {
        {"max_sequences", p->max_sequences, 1u << 16},  {"max_batch_rows", p->max_batch_rows, 1u << 16},
        {"kv_tokens", p->kv_tokens, (uint64_t)1 << 32}, {"reuse_tokens", p->reuse_tokens, (uint64_t)1 << 32},
        {"back_tokens", p->back_tokens, 1u << 16},
    };
    for (size_t i = 0; i < SH_COUNT(ranges); i++)
        if (ranges[i].value > ranges[i].highest)
            return sh_fail(err, SH_ERR_INVALID, "context: %s is %llu, expected at most %llu", ranges[i].name,
                           (unsigned long long)ranges[i].value, (unsigned long long)ranges[i].highest);
    return SH_OK;
}

uint64_t sh_cache_page_bytes(const struct sh_state_group *g, uint32_t n_layers, enum sh_kv_type type) {
    if (g->kind == SH_STATE_RECURRENT) return (uint64_t)n_layers * g->floats * sizeof(float);
    const uint64_t dims = g->v_in_k ? g->k_dim : g->k_dim + g->v_dim;
    return (uint64_t)SH_PAGE_TOKENS * n_layers * g->n_kv_heads * dims * (type == SH_KV_F32 ? 4 : 2);
}

/* Of a window: its own pages and one begun at either end for each sequence, and what two steps add. Of a recurrent group: the
 * present state, those before the steps in flight, and snapshots. */
uint64_t sh_cache_pages(const struct sh_state_group *g, const struct sh_context_params *p, uint64_t n, uint64_t tokens) {
    if (g->kind == SH_STATE_RECURRENT) return n * (1 + SH_SLOTS + SH_MAX_SNAPSHOTS);
    const uint64_t all = (tokens + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS;
    if (g->kind == SH_STATE_PAGED) return all;
    const uint64_t of_each = ((uint64_t)g->window + p->back_tokens + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS + 2;
    return sh_min_u64(all, n * of_each + SH_SLOTS * (uint64_t)sh_pages_of(p->max_batch_rows));
}

uint64_t sh_cache_kept_pages(const struct sh_state_group *g, const struct sh_context_params *p) {
    const uint64_t pages = sh_min_u64(p->reuse_tokens, p->kv_tokens) / SH_PAGE_TOKENS;
    return g->kind == SH_STATE_RECURRENT ? sh_min_u64(pages, (uint64_t)p->max_sequences * SH_KEPT_STATES) : pages;
}

uint64_t sh_cache_pool_pages(const struct sh_state_group *g, const struct sh_context_params *p) {
    const uint64_t held = sh_cache_pages(g, p, p->max_sequences, p->kv_tokens);
    if (g->kind == SH_STATE_PAGED) return held;
    const uint64_t both = held + sh_cache_kept_pages(g, p);
    return g->kind == SH_STATE_RECURRENT ? both : sh_min_u64(both, (p->kv_tokens + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS);
}

uint32_t sh_cache_op_group(const struct sh_op *op) {
    switch (op->kind) {
    case SH_OP_ROPE_CACHE: return op->attn.group;
    case SH_OP_CONV:
    case SH_OP_SCAN:
    case SH_OP_DELTA_NET: return op->state.group;
    default: return SH_NONE;
    }
}

uint64_t sh_cache_op_bytes(const struct sh_program *program, const struct sh_op *op, const struct sh_context_params *p) {
    const uint32_t group = sh_cache_op_group(op);
    if (group == SH_NONE) return 0;
    const struct sh_state_group *g = &program->groups[group];
    /* the present state, and the two that steps in flight can fall back to; an op's share is its own floats */
    if (g->kind == SH_STATE_RECURRENT) return (1ull + SH_SLOTS) * op->state.floats * sizeof(float);
    const uint64_t pages =
        sh_min_u64(sh_cache_pages(g, p, p->max_sequences, p->kv_tokens), sh_cache_pages(g, p, 1, program->context_length));
    return sh_cache_page_bytes(g, 1, p->kv_type) * pages;
}
