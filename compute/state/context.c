/* Contexts: creation, end, statistics, capture. */
#include "compute/state/context.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- creation ---- */

static enum sh_code complete_params(const struct sh_model *m, const struct sh_context_params *given, struct sh_context_params *p,
                                    struct sh_error *err) {
    *p = (struct sh_context_params){0};
    if (given != NULL) memcpy(p, given, sh_min_u64(given->size, sizeof *p));
    p->size = sizeof *p;
    if (p->kv_type != SH_KV_F16 && p->kv_type != SH_KV_F32)
        return sh_fail(err, SH_ERR_INVALID, "context: kv_type is %d, expected f16 (0) or f32 (1)", (int)p->kv_type);
    if (p->max_sequences == 0) p->max_sequences = 8;
    if (p->max_batch_rows == 0) p->max_batch_rows = 512;
    if (p->kv_tokens == 0) p->kv_tokens = m->spec.context_length;
    if (p->max_outputs == 0) p->max_outputs = p->max_sequences > 64 ? p->max_sequences : 64;
    if (p->max_outputs > p->max_batch_rows) p->max_outputs = p->max_batch_rows;
    const struct {
        const char *name;
        uint64_t value, highest;
    } ranges[] = {
        {"max_sequences", p->max_sequences, 1u << 16},
        {"max_batch_rows", p->max_batch_rows, 1u << 16},
        {"kv_tokens", p->kv_tokens, (uint64_t)1 << 32},
    };
    for (size_t i = 0; i < SH_COUNT(ranges); i++)
        if (ranges[i].value > ranges[i].highest)
            return sh_fail(err, SH_ERR_INVALID, "context: %s is %llu, expected at most %llu", ranges[i].name,
                           (unsigned long long)ranges[i].value, (unsigned long long)ranges[i].highest);
    return SH_OK;
}

static uint64_t page_bytes(const struct sh_state_group *g, uint32_t n_layers, enum sh_kv_type type) {
    return (uint64_t)SH_PAGE_TOKENS * n_layers * g->n_kv_heads * (g->k_dim + g->v_dim) * (type == SH_KV_F32 ? 4 : 2);
}

/* Which segments hold layers of which group; and refuses what certainly does not fit: room for one sequence of full length. What
 * kv_tokens allows beyond that is taken slab by slab, and may turn out not to be there. */
static enum sh_code survey_groups(struct sh_context *c, struct sh_error *err) {
    const struct sh_program *p = c->model->program;
    const uint32_t longest = sh_pages_of(c->model->spec.context_length);
    char what[64];
    snprintf(what, sizeof what, "a cache for %u tokens (%s)", c->model->spec.context_length,
             c->params.kv_type == SH_KV_F32 ? "f32" : "f16");
    for (uint32_t s = 0; s < c->model->n_segments; s++) {
        const struct sh_segment *segment = &c->model->segments[s];
        uint64_t bytes = 0;
        for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++) {
            if (p->ops[i].kind != SH_OP_ROPE_CACHE) continue;
            const uint32_t g = p->ops[i].attn.group;
            c->holds_group[s * c->n_groups + g] = true;
            bytes +=
                page_bytes(&p->groups[g], 1, c->params.kv_type) * (c->pools[g].n_max < longest ? c->pools[g].n_max : longest);
        }
        const enum sh_code code = sh_check_device_memory(sh_model_device(c->model, s), bytes, what, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

static bool allocate_slot(const struct sh_context *c, struct sh_slot *slot) {
    const struct sh_context_params *p = &c->params;
    slot->rows = sh_calloc(p->max_batch_rows, sizeof *slot->rows);
    slot->sequences = sh_calloc(p->max_sequences, sizeof *slot->sequences);
    slot->sequence_ids = sh_calloc(p->max_sequences, sizeof *slot->sequence_ids);
    slot->outputs = sh_calloc(p->max_outputs, sizeof *slot->outputs);
    slot->wanted = sh_calloc(p->max_outputs, sizeof *slot->wanted);
    slot->page_lists = sh_calloc((uint64_t)p->max_sequences * c->n_groups, sizeof *slot->page_lists);
    slot->made = sh_calloc(c->model->program->n_activations, sizeof *slot->made);
    slot->tokens = sh_calloc(p->max_outputs, sizeof *slot->tokens);
    slot->results = sh_calloc(p->max_outputs, sizeof *slot->results);
    return slot->rows != NULL && slot->sequences != NULL && slot->sequence_ids != NULL && slot->outputs != NULL &&
           slot->wanted != NULL && slot->page_lists != NULL && slot->made != NULL && slot->tokens != NULL &&
           slot->results != NULL;
}

static uint32_t slab_pages(const struct sh_context *c, uint32_t group) {
    const struct sh_state_group *g = &c->model->program->groups[group];
    const uint64_t fit = SH_SLAB_BYTES / page_bytes(g, g->n_layers, c->params.kv_type);
    return fit < 1 ? 1 : fit > SH_SLAB_PAGES ? SH_SLAB_PAGES : (uint32_t)fit;
}

static bool allocate(struct sh_context *c) {
    c->pools = sh_calloc(c->n_groups, sizeof *c->pools);
    c->exec = sh_calloc(c->model->n_segments, sizeof *c->exec);
    c->holds_group = sh_calloc((uint64_t)c->model->n_segments * c->n_groups, sizeof *c->holds_group);
    c->sequences = sh_calloc(c->params.max_sequences, sizeof *c->sequences);
    c->slab_pages = sh_calloc(c->n_groups, sizeof *c->slab_pages);
    if (c->slab_pages == NULL || c->pools == NULL || c->exec == NULL || c->holds_group == NULL || c->sequences == NULL)
        return false;
    const uint32_t n_pages = (uint32_t)((c->params.kv_tokens + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        c->slab_pages[g] = slab_pages(c, g);
        if (!sh_page_pool_init(&c->pools[g], n_pages)) return false;
    }
    for (uint32_t i = 0; i < SH_SLOTS; i++)
        if (!allocate_slot(c, &c->slots[i])) return false;
    return true;
}

enum sh_code sh_context_create(struct sh_model *model, const struct sh_context_params *params, struct sh_context **out,
                               struct sh_error *err) {
    *out = NULL;
    struct sh_context_params complete;
    enum sh_code code = complete_params(model, params, &complete, err);
    if (code != SH_OK) return code;
    struct sh_context *c = sh_calloc(1, sizeof *c);
    if (c == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    c->model = model;
    c->params = complete;
    c->n_groups = model->program->n_groups;
    c->next_ticket = c->oldest = 1;
    if (!allocate(c)) {
        sh_context_destroy(c);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context of %u sequences and %u rows", complete.max_sequences,
                       complete.max_batch_rows);
    }
    const struct sh_exec_context_params exec = {
        .kv_type = complete.kv_type,
        .max_rows = complete.max_batch_rows,
        .max_outputs = complete.max_outputs,
        .max_sequences = complete.max_sequences,
        .max_pages_per_sequence = sh_pages_of(model->spec.context_length),
    };
    code = survey_groups(c, err);
    for (uint32_t s = 0; s < model->n_segments && code == SH_OK; s++)
        code = sh_context_executor(c, s)->context_create(model->exec[s], &exec, &c->exec[s], err);
    if (code != SH_OK) {
        sh_context_destroy(c);
        return code;
    }
    *out = c;
    return SH_OK;
}

static void free_slot(struct sh_slot *slot) {
    free(slot->rows);
    free(slot->sequences);
    free(slot->sequence_ids);
    free(slot->outputs);
    free(slot->wanted);
    free(slot->page_lists);
    free(slot->page_ids);
    free(slot->made);
    free(slot->tokens);
    free(slot->results);
    free(slot->tops);
    free(slot->captured);
}

void sh_context_destroy(struct sh_context *c) {
    if (c == NULL) return;
    for (uint32_t s = 0; c->exec != NULL && s < c->model->n_segments; s++)
        if (c->exec[s] != NULL) sh_context_executor(c, s)->context_destroy(c->exec[s]);
    for (uint32_t i = 0; c->sequences != NULL && i < c->params.max_sequences; i++)
        if (c->sequences[i].used) sh_sequence_free(c, &c->sequences[i]);
    for (uint32_t g = 0; c->pools != NULL && g < c->n_groups; g++) sh_page_pool_finish(&c->pools[g]);
    for (uint32_t i = 0; i < SH_SLOTS; i++) free_slot(&c->slots[i]);
    free(c->pools);
    free(c->exec);
    free(c->holds_group);
    free(c->sequences);
    free(c->capture);
    free(c->segment_capture);
    free(c->capture_segment);
    free(c->changes);
    free(c->slab_pages);
    free(c);
}

/* ---- statistics ---- */

void sh_context_update_stats(struct sh_context *c) {
    uint64_t used = 0, bytes = 0;
    uint32_t sequences = 0;
    for (uint32_t g = 0; g < c->n_groups; g++) used += sh_page_pool_used(&c->pools[g]);
    for (uint32_t s = 0; s < c->model->n_segments; s++) bytes += sh_context_executor(c, s)->pool_bytes(c->exec[s]);
    for (uint32_t i = 0; i < c->params.max_sequences; i++) sequences += c->sequences[i].used;
    atomic_store(&c->stat_pages_used, used);
    atomic_store(&c->stat_cache_bytes, bytes);
    atomic_store(&c->stat_sequences, sequences);
}

void sh_context_get_stats(const struct sh_context *c, struct sh_context_stats *out) {
    *out = (struct sh_context_stats){
        .page_tokens = SH_PAGE_TOKENS,
        .pages_used = atomic_load(&c->stat_pages_used),
        .cache_bytes = atomic_load(&c->stat_cache_bytes),
        .sequences = atomic_load(&c->stat_sequences),
    };
    for (uint32_t g = 0; g < c->n_groups; g++) out->pages_total += c->pools[g].n_max; /* fixed at creation */
}

/* ---- capture ---- */

static uint32_t find_activation(const struct sh_program *p, const char *name) {
    for (uint32_t a = 0; a < p->n_activations; a++)
        if (strcmp(p->activations[a].name, name) == 0) return a;
    return SH_NONE;
}

static uint32_t segment_that_makes(const struct sh_model *m, uint32_t activation) {
    for (uint32_t s = 0; s < m->n_segments; s++)
        for (uint32_t i = m->segments[s].first_op; i < m->segments[s].first_op + m->segments[s].n_ops; i++)
            if (m->program->ops[i].out == activation) return s;
    return SH_NONE;
}

enum sh_code sh_context_capture(struct sh_context *c, const char *const *names, uint32_t n, struct sh_error *err) {
    for (uint32_t i = 0; i < SH_SLOTS; i++)
        if (c->slots[i].state != SH_SLOT_IDLE)
            return sh_fail(err, SH_ERR_BUSY, "capture cannot change with a submission in flight");
    uint32_t *ids = sh_calloc(n, sizeof *ids), *makers = sh_calloc(n, sizeof *makers), *scratch = sh_calloc(n, sizeof *scratch);
    const float **captured[SH_SLOTS];
    bool complete = ids != NULL && makers != NULL && scratch != NULL;
    for (uint32_t i = 0; i < SH_SLOTS; i++) {
        captured[i] = sh_calloc(n, sizeof **captured);
        complete = complete && captured[i] != NULL;
    }
    enum sh_code code = complete ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to capture %u activations", n);
    for (uint32_t i = 0; i < n && code == SH_OK; i++) {
        ids[i] = find_activation(c->model->program, names[i]);
        if (ids[i] == SH_NONE) code = sh_fail(err, SH_ERR_NOT_FOUND, "the program has no activation '%s'", names[i]);
        else makers[i] = segment_that_makes(c->model, ids[i]);
    }
    if (code != SH_OK) {
        free(ids);
        free(makers);
        free(scratch);
        for (uint32_t i = 0; i < SH_SLOTS; i++) free(captured[i]);
        return code;
    }
    free(c->capture);
    free(c->capture_segment);
    free(c->segment_capture);
    c->capture = ids;
    c->capture_segment = makers;
    c->segment_capture = scratch;
    c->n_capture = n;
    for (uint32_t i = 0; i < SH_SLOTS; i++) {
        free(c->slots[i].captured);
        c->slots[i].captured = captured[i];
        c->slots[i].n_captured = 0;
    }
    return SH_OK;
}

const float *sh_context_captured(const struct sh_context *c, sh_ticket ticket, uint32_t index, uint32_t *rows, uint32_t *width) {
    const struct sh_slot *slot = &c->slots[ticket % SH_SLOTS];
    if (slot->ticket != ticket || slot->state != SH_SLOT_IDLE || index >= slot->n_captured) return NULL;
    const struct sh_activation *a = &c->model->program->activations[c->capture[index]];
    *rows = a->rows == SH_ROWS_ALL ? slot->step.n_rows : slot->step.n_outputs;
    *width = a->width;
    return slot->captured[index];
}
