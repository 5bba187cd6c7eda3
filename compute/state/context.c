/* Contexts: creation, end, statistics, capture. */
#include "compute/state/context.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- creation ---- */

/* Which devices hold layers of which group; and refuses what certainly does not fit: room for one sequence of full length. What
 * kv_tokens allows beyond that is taken slab by slab, and may turn out not to be there. */
static enum sh_code survey_groups(struct sh_context *c, struct sh_error *err) {
    const struct sh_program *p = c->model->program;
    char what[64];
    snprintf(what, sizeof what, "a cache for %u tokens (%s)", c->model->spec.context_length,
             c->params.kv_type == SH_KV_F32 ? "f32" : "f16");
    uint64_t *bytes = sh_calloc(c->model->n_devices, sizeof *bytes);
    if (bytes == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    for (uint32_t s = 0; s < c->model->n_segments; s++) {
        const struct sh_segment *segment = &c->model->segments[s];
        for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++) {
            const uint32_t group = sh_cache_op_group(&p->ops[i]);
            if (group == SH_NONE) continue;
            c->holds_group[segment->device * c->n_groups + group] = true;
            bytes[segment->device] += sh_cache_op_bytes(p, &p->ops[i], &c->params);
        }
    }
    enum sh_code code = SH_OK;
    for (uint32_t d = 0; d < c->model->n_devices && code == SH_OK; d++)
        if (bytes[d] > 0) code = sh_check_device_memory(c->model->devices[d], bytes[d], what, err);
    free(bytes);
    return code;
}

static bool allocate_slot(const struct sh_context *c, struct sh_slot *slot) {
    const struct sh_context_params *p = &c->params;
    slot->rows = sh_calloc(p->max_batch_rows, sizeof *slot->rows);
    slot->sequences = sh_calloc(p->max_sequences, sizeof *slot->sequences);
    slot->sequence_ids = sh_calloc(p->max_sequences, sizeof *slot->sequence_ids);
    slot->outputs = sh_calloc(p->max_outputs, sizeof *slot->outputs);
    slot->bare_outputs = sh_calloc(p->max_outputs, sizeof *slot->bare_outputs);
    slot->wanted = sh_calloc(p->max_outputs, sizeof *slot->wanted);
    slot->next_outputs = sh_calloc(p->max_outputs, sizeof *slot->next_outputs);
    slot->next_wanted = sh_calloc(p->max_outputs, sizeof *slot->next_wanted);
    slot->page_lists = sh_calloc((uint64_t)p->max_sequences * c->n_groups, sizeof *slot->page_lists);
    slot->made = sh_calloc(c->model->program->n_activations, sizeof *slot->made);
    slot->kept = sh_calloc(c->model->program->n_activations, sizeof *slot->kept);
    slot->tokens = sh_calloc(p->max_outputs, sizeof *slot->tokens);
    slot->results = sh_calloc(p->max_outputs, sizeof *slot->results);
    return slot->rows != NULL && slot->sequences != NULL && slot->sequence_ids != NULL && slot->outputs != NULL &&
           slot->bare_outputs != NULL && slot->wanted != NULL && slot->next_outputs != NULL && slot->next_wanted != NULL &&
           slot->page_lists != NULL && slot->made != NULL && slot->kept != NULL && slot->tokens != NULL && slot->results != NULL;
}

static uint32_t slab_pages(const struct sh_context *c, uint32_t group) {
    const struct sh_state_group *g = &c->model->program->groups[group];
    const uint64_t most = g->kind == SH_STATE_RECURRENT ? SH_SLAB_STATES : SH_SLAB_PAGES;
    return (uint32_t)sh_max_u64(1, sh_min_u64(most, SH_SLAB_BYTES / sh_cache_page_bytes(g, g->n_layers, c->params.kv_type)));
}

static bool allocate(struct sh_context *c) {
    c->pools = sh_calloc(c->n_groups, sizeof *c->pools);
    c->exec = sh_calloc(c->model->n_devices, sizeof *c->exec);
    c->holds_group = sh_calloc((uint64_t)c->model->n_devices * c->n_groups, sizeof *c->holds_group);
    c->sequences = sh_calloc(c->params.max_sequences, sizeof *c->sequences);
    c->slab_pages = sh_calloc(c->n_groups, sizeof *c->slab_pages);
    c->no_memory = sh_calloc(c->n_groups, sizeof *c->no_memory);
    c->run = sh_calloc(c->n_groups, sizeof *c->run);
    if (c->run == NULL || c->slab_pages == NULL || c->no_memory == NULL || c->pools == NULL || c->exec == NULL ||
        c->holds_group == NULL || c->sequences == NULL)
        return false;
    sh_prefix_init(&c->prefix, c->pools, c->model->program->groups, c->n_groups);
    c->prefix.most_idle = (uint32_t)(sh_min_u64(c->params.reuse_tokens, c->params.kv_tokens) / SH_PAGE_TOKENS);
    for (uint32_t d = 0; d < c->model->n_devices; d++)
        c->prefix.roles_differ = c->prefix.roles_differ || sh_context_executor(c, d)->roles_differ;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        c->slab_pages[g] = slab_pages(c, g);
        const struct sh_context_params *p = &c->params;
        if (!sh_page_pool_init(&c->pools[g], (uint32_t)sh_cache_pool_pages(sh_context_group(c, g), p))) return false;
        if (sh_context_group(c, g)->kind == SH_STATE_RECURRENT)
            c->prefix.most_states = (uint32_t)sh_cache_kept_pages(sh_context_group(c, g), p);
    }
    for (uint32_t i = 0; i < SH_SLOTS; i++)
        if (!allocate_slot(c, &c->slots[i])) return false;
    return true;
}

enum sh_code sh_context_create(struct sh_model *model, const struct sh_context_params *params, struct sh_context **out,
                               struct sh_error *err) {
    *out = NULL;
    struct sh_context_params complete;
    enum sh_code code = sh_context_params_complete(model->program, params, &complete, err);
    if (code != SH_OK) return code;
    struct sh_context *c = sh_calloc(1, sizeof *c);
    if (c == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    c->model = model;
    c->params = complete;
    atomic_init(&c->kv_limit, UINT64_MAX);
    c->n_groups = model->program->n_groups;
    c->next_ticket = c->oldest = 1;
    if (!allocate(c)) {
        sh_context_destroy(c);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context of %u sequences and %u rows", complete.max_sequences,
                       complete.max_batch_rows);
    }
    struct sh_exec_context_params exec = {
        .kv_type = complete.kv_type,
        .max_rows = complete.max_batch_rows,
        .max_outputs = complete.max_outputs,
        .max_sequences = complete.max_sequences,
        .max_pages_per_sequence = sh_pages_of(model->spec.context_length),
    };
    code = survey_groups(c, err);
    if (code == SH_OK) code = sh_context_start_trace(c, complete.trace, err);
    c->params.trace = NULL; /* the caller's */
    for (uint32_t d = 0; d < model->n_devices && code == SH_OK; d++) {
        exec.trace = c->traces != NULL ? c->traces[d] : NULL;
        if (model->exec[d] != NULL) code = sh_context_executor(c, d)->context_create(model->exec[d], &exec, &c->exec[d], err);
    }
    if (code != SH_OK) {
        sh_context_destroy(c);
        return code;
    }
    *out = c;
    return SH_OK;
}

static void free_slot(const struct sh_context *c, struct sh_slot *slot) {
    for (uint32_t a = 0; slot->kept != NULL && a < c->model->program->n_activations; a++) free(slot->kept[a].values);
    free(slot->kept);
    free(slot->rows);
    free(slot->sequences);
    free(slot->sequence_ids);
    free(slot->outputs);
    free(slot->bare_outputs);
    free(slot->wanted);
    free(slot->next_outputs);
    free(slot->next_wanted);
    free(slot->masks);
    free(slot->page_lists);
    free(slot->page_ids);
    free(slot->made);
    free(slot->tokens);
    free(slot->results);
    free(slot->tops);
    free(slot->pooled);
    free(slot->captured);
}

void sh_context_destroy(struct sh_context *c) {
    if (c == NULL) return;
    for (uint32_t d = 0; c->exec != NULL && d < c->model->n_devices; d++)
        if (c->exec[d] != NULL) sh_context_executor(c, d)->context_destroy(c->exec[d]);
    sh_context_end_trace(c);
    for (uint32_t i = 0; c->sequences != NULL && i < c->params.max_sequences; i++)
        if (c->sequences[i].used) sh_sequence_free(c, &c->sequences[i]);
    sh_prefix_finish(&c->prefix);
    for (uint32_t g = 0; c->pools != NULL && g < c->n_groups; g++) sh_page_pool_finish(&c->pools[g]);
    for (uint32_t i = 0; i < SH_SLOTS; i++) free_slot(c, &c->slots[i]);
    free(c->pools);
    free(c->no_memory);
    free(c->run);
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
    uint64_t used = 0, kept = 0, bytes = 0;
    uint32_t sequences = 0;
    sh_prefix_trim(&c->prefix);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        used += sh_page_pool_used(&c->pools[g]);
        kept += c->pools[g].n_kept;
    }
    for (uint32_t d = 0; d < c->model->n_devices; d++)
        if (c->exec[d] != NULL) bytes += sh_context_executor(c, d)->pool_bytes(c->exec[d]);
    for (uint32_t i = 0; i < c->params.max_sequences; i++) sequences += c->sequences[i].used;
    atomic_store(&c->stat_pages_used, used);
    atomic_store(&c->stat_pages_kept, kept);
    atomic_store(&c->stat_reused, c->reused_tokens);
    atomic_store(&c->stat_evicted, c->prefix.evicted);
    atomic_store(&c->stat_cache_bytes, bytes);
    atomic_store(&c->stat_sequences, sequences);
}

void sh_context_get_stats(const struct sh_context *c, struct sh_context_stats *out) {
    *out = (struct sh_context_stats){
        .page_tokens = SH_PAGE_TOKENS,
        .pages_used = atomic_load(&c->stat_pages_used),
        .pages_kept = atomic_load(&c->stat_pages_kept),
        .reused_tokens = atomic_load(&c->stat_reused),
        .kept_evicted = atomic_load(&c->stat_evicted),
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
