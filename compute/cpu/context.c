/*
 * context.c - state and buffers of one context, and the runner thread that makes submit asynchronous: submit copies the step into
 * its slot and returns, the runner takes slots in order of submission and runs them on the pool.
 */
#include "compute/cpu/cpu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

static uint32_t element_bytes(enum sh_kv_type type) { return type == SH_KV_F16 ? 2 : 4; }

/* Makes room for at least `bytes`; the content is lost. Grows to the next power of two, so that steps rarely allocate. */
static enum sh_code reserve(struct sh_cpu_device *device, struct sh_cpu_block *block, uint64_t bytes, const char *what,
                            struct sh_error *err) {
    if (bytes <= block->bytes) return SH_OK;
    if (bytes < UINT64_C(1) << 40) bytes = UINT64_C(1) << (64 - __builtin_clzll(bytes - 1));
    struct sh_cpu_block grown;
    const enum sh_code code = sh_cpu_block_alloc(device, SH_CPU_ACTIVATIONS, bytes, what, &grown, err);
    if (code != SH_OK) return code;
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, block);
    *block = grown;
    return SH_OK;
}

/* ---- page pools ---- */

/* The layers of a group that these segments keep: the range of those that their ops name. */
static void find_layers(struct sh_cpu_pages *pages, const struct sh_exec_model *m, uint32_t index) {
    uint32_t end = 0;
    pages->first_layer = SH_NONE;
    for (uint32_t s = 0; s < m->n_segments; s++)
        for (uint32_t i = 0; i < m->segments[s].fused.n_ops; i++) {
            const struct sh_op *op = &m->segments[s].fused.ops[i];
            uint32_t layer;
            if (op->kind == SH_OP_ROPE_CACHE && op->attn.group == index) layer = op->attn.layer_in_group;
            else if ((op->kind == SH_OP_CONV || op->kind == SH_OP_SCAN || op->kind == SH_OP_DELTA_NET) &&
                     op->state.group == index)
                layer = op->state.layer_in_group;
            else continue;
            if (layer < pages->first_layer) pages->first_layer = layer;
            if (layer >= end) end = layer + 1;
        }
    pages->n_layers = end > 0 ? end - pages->first_layer : 0;
}

static void init_pages(struct sh_cpu_pages *pages, const struct sh_exec_model *m, uint32_t index, enum sh_kv_type type) {
    const struct sh_state_group *group = &m->program->groups[index];
    find_layers(pages, m, index);
    if (group->kind == SH_STATE_RECURRENT) {
        pages->layer_bytes = (uint64_t)group->floats * sizeof(float);
    } else {
        const uint64_t per_dim = (uint64_t)group->n_kv_heads * SH_PAGE_TOKENS * element_bytes(type);
        pages->k_bytes = per_dim * group->k_dim;
        pages->v_bytes = group->v_in_k ? 0 : per_dim * group->v_dim;
        pages->layer_bytes = pages->k_bytes + pages->v_bytes;
    }
    pages->page_bytes = sh_align_up(pages->layer_bytes * pages->n_layers, 64);
    pages->slab_pages = (uint32_t)sh_max_u64(1, SH_CPU_SLAB_BYTES / sh_max_u64(pages->page_bytes, 1));
}

static void *page_address(const struct sh_cpu_pages *pages, uint32_t page) {
    return (uint8_t *)pages->slabs[page / pages->slab_pages].data + (page % pages->slab_pages) * pages->page_bytes;
}

enum sh_code sh_cpu_pool_reserve(struct sh_exec_context *context, uint32_t group, uint32_t n_pages, struct sh_error *err) {
    if (group >= context->model->program->n_groups) return sh_fail(err, SH_ERR_INVALID, "state group %u does not exist", group);
    struct sh_cpu_pages *pages = &context->groups[group];
    if (n_pages <= pages->n_pages) return SH_OK;
    const uint32_t n_slabs = (uint32_t)(((uint64_t)n_pages + pages->slab_pages - 1) / pages->slab_pages);
    const uint64_t slab_bytes = pages->slab_pages * pages->page_bytes;
    enum sh_code code = sh_cpu_memory_check((n_slabs - pages->n_slabs) * slab_bytes, "key/value cache", err);
    if (code != SH_OK) return code;
    if (!sh_grow((void **)&pages->slabs, &pages->cap_slabs, n_slabs, sizeof *pages->slabs))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of %u cache slabs", n_slabs);
    while (pages->n_slabs < n_slabs) {
        struct sh_cpu_block *slab = &pages->slabs[pages->n_slabs];
        code = sh_cpu_block_alloc(context->model->device, SH_CPU_CACHE, slab_bytes, "key/value cache", slab, err);
        if (code != SH_OK) return code;
        pages->n_slabs++;
        pages->n_pages = pages->n_slabs * pages->slab_pages;
        atomic_fetch_add(&context->cache_bytes, slab->bytes);
    }
    return SH_OK;
}

uint64_t sh_cpu_pool_bytes(const struct sh_exec_context *context) { return atomic_load(&context->cache_bytes); }

enum sh_code sh_cpu_page_copy(struct sh_exec_context *context, uint32_t group, uint32_t src, uint32_t dst, uint32_t n_tokens,
                              struct sh_error *err) {
    if (group >= context->model->program->n_groups) return sh_fail(err, SH_ERR_INVALID, "state group %u does not exist", group);
    if (context->model->program->groups[group].kind == SH_STATE_RECURRENT)
        return sh_fail(err, SH_ERR_INVALID, "state group %u is recurrent: its pages are whole states and are not copied in part",
                       group);
    const struct sh_cpu_pages *pages = &context->groups[group];
    if (src >= pages->n_pages || dst >= pages->n_pages || n_tokens > SH_PAGE_TOKENS)
        return sh_fail(err, SH_ERR_INVALID, "page copy %u -> %u of %u tokens: the pool has %u pages of %u tokens", src, dst,
                       n_tokens, pages->n_pages, SH_PAGE_TOKENS);
    if (!sh_grow((void **)&context->copies, &context->cap_copies, context->n_copies + 1, sizeof *context->copies))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a page copy");
    context->copies[context->n_copies++] = (struct sh_cpu_copy){
        .group = group, .n_tokens = n_tokens, .src = page_address(pages, src), .dst = page_address(pages, dst)};
    return SH_OK;
}

/* The first n_tokens of what n_heads heads have in a plane of a page, which holds runs of positions: of K one for each of `dim`
 * dimensions, of V one of whole values. Returns the plane's bytes. */
static uint64_t copy_plane(const uint8_t *src, uint8_t *dst, uint64_t n_runs, uint64_t position_bytes, uint32_t n_tokens) {
    const uint64_t run = position_bytes * SH_PAGE_TOKENS;
    for (uint64_t i = 0; i < n_runs; i++) memcpy(dst + i * run, src + i * run, position_bytes * n_tokens);
    return n_runs * run;
}

static void run_copies(const struct sh_exec_context *context, const struct sh_cpu_copy *copies, uint32_t n) {
    const struct sh_program *program = context->model->program;
    const uint32_t element = element_bytes(context->params.kv_type);
    for (uint32_t i = 0; i < n; i++) {
        const struct sh_cpu_copy *copy = &copies[i];
        const struct sh_state_group *g = &program->groups[copy->group];
        const uint8_t *src = copy->src;
        uint8_t *dst = copy->dst;
        for (uint32_t layer = 0; layer < context->groups[copy->group].n_layers; layer++) {
            uint64_t bytes = copy_plane(src, dst, (uint64_t)g->n_kv_heads * g->k_dim, element, copy->n_tokens);
            if (!g->v_in_k)
                bytes += copy_plane(src + bytes, dst + bytes, g->n_kv_heads, (uint64_t)g->v_dim * element, copy->n_tokens);
            src += bytes;
            dst += bytes;
        }
    }
}

uint64_t sh_cpu_page_bytes(const struct sh_exec_context *context, uint32_t group) {
    return context->groups[group].layer_bytes * context->groups[group].n_layers;
}

/* The page's place, once no step runs and no copy waits that could come in between; NULL: the pool has no such page. */
static void *settled_page(struct sh_exec_context *context, uint32_t group, uint32_t page, struct sh_error *err) {
    if (group >= context->model->program->n_groups || page >= context->groups[group].n_pages) {
        sh_fail(err, SH_ERR_INVALID, "page %u of state group %u does not exist", page, group);
        return NULL;
    }
    pthread_mutex_lock(&context->lock);
    while (context->n_queued > 0) pthread_cond_wait(&context->changed, &context->lock);
    pthread_mutex_unlock(&context->lock);
    run_copies(context, context->copies, context->n_copies);
    context->n_copies = 0;
    return page_address(&context->groups[group], page);
}

enum sh_code sh_cpu_page_read(struct sh_exec_context *context, uint32_t group, uint32_t page, void *dst, struct sh_error *err) {
    const void *src = settled_page(context, group, page, err);
    if (src == NULL) return SH_ERR_INVALID;
    memcpy(dst, src, sh_cpu_page_bytes(context, group));
    return SH_OK;
}

enum sh_code sh_cpu_page_write(struct sh_exec_context *context, uint32_t group, uint32_t page, const void *src,
                               struct sh_error *err) {
    void *dst = settled_page(context, group, page, err);
    if (dst == NULL) return SH_ERR_INVALID;
    memcpy(dst, src, sh_cpu_page_bytes(context, group));
    return SH_OK;
}

/* ---- submit ---- */

/* The first position that the group's window leaves to the sequence's first row. */
static uint32_t first_visible(const struct sh_state_group *group, const struct sh_step *step, const struct sh_step_sequence *q) {
    if (group->kind != SH_STATE_WINDOWED || q->n_rows == 0) return 0;
    const uint32_t position = step->rows[q->first_row].position;
    return position >= group->window ? position - group->window + 1 : 0;
}

static enum sh_code check_pages(const struct sh_exec_context *context, const struct sh_step *step, uint32_t index,
                                struct sh_error *err) {
    const struct sh_step_sequence *q = &step->sequences[index];
    for (uint32_t g = 0; g < context->model->program->n_groups; g++) {
        const struct sh_state_group *group = &context->model->program->groups[g];
        const uint32_t have = context->groups[g].n_pages;
        if (context->groups[g].n_layers == 0) continue;
        if (group->kind == SH_STATE_RECURRENT) {
            const uint32_t before = q->pages[g][0], after = q->pages[g][1];
            if ((before != SH_NONE && before >= have) || after >= have || before == after)
                return sh_fail(err, SH_ERR_INVALID,
                               "sequence %u of the step: state page %u, then %u, of group %u: expected two of the pool's %u",
                               index, before, after, g, have);
            continue;
        }
        const uint32_t first = first_visible(group, step, q);
        for (uint32_t i = 0; i < q->n_pages; i++) {
            const bool may_miss = group->kind == SH_STATE_WINDOWED && ((uint64_t)i + 1) * SH_PAGE_TOKENS <= first;
            if (q->pages[g][i] >= have && !(may_miss && q->pages[g][i] == SH_NONE))
                return sh_fail(err, SH_ERR_INVALID, "sequence %u of the step: page %u of group %u, the pool has %u", index,
                               q->pages[g][i], g, have);
        }
    }
    return SH_OK;
}

static enum sh_code check_sequence(const struct sh_exec_context *context, const struct sh_step *step, uint32_t index,
                                   struct sh_error *err) {
    const struct sh_step_sequence *q = &step->sequences[index];
    if (q->n_pages > context->params.max_pages_per_sequence || q->first_row > step->n_rows ||
        q->n_rows > step->n_rows - q->first_row)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u of the step: %u pages, rows %u + %u; the limits are %u and %u", index,
                       q->n_pages, q->first_row, q->n_rows, context->params.max_pages_per_sequence, step->n_rows);
    for (uint32_t r = 0; r < q->n_rows; r++) {
        const struct sh_step_row *row = &step->rows[q->first_row + r];
        if (row->sequence != index || row->position != step->rows[q->first_row].position + r)
            return sh_fail(err, SH_ERR_INVALID, "row %u: sequence %u, position %u; expected sequence %u, position %u",
                           q->first_row + r, row->sequence, row->position, index, step->rows[q->first_row].position + r);
    }
    return check_pages(context, step, index, err);
}

static enum sh_code check_row(const struct sh_exec_context *context, const struct sh_step *step, uint32_t r,
                              struct sh_error *err) {
    const struct sh_exec_model *m = context->model;
    const struct sh_step_row *row = &step->rows[r];
    if (row->sampled_from != SH_NONE)
        return sh_fail(err, SH_ERR_INVALID, "row %u refers to a token sampled on the device; the CPU executor samples none", r);
    const struct sh_step_sequence *q = row->sequence < step->n_sequences ? &step->sequences[row->sequence] : NULL;
    if (q == NULL || r < q->first_row || r - q->first_row >= q->n_rows || row->position / SH_PAGE_TOKENS >= q->n_pages)
        return sh_fail(err, SH_ERR_INVALID, "row %u: sequence %u, position %u has no page", r, row->sequence, row->position);
    if (row->position >= m->position_limit)
        return sh_fail(err, SH_ERR_INVALID, "row %u: position %u, the model's tables have %u", r, row->position,
                       m->position_limit);
    if (row->embedding == NULL && (row->token < 0 || (uint32_t)row->token >= m->token_limit))
        return sh_fail(err, SH_ERR_INVALID, "row %u: token %d, the vocabulary has %u", r, row->token, m->token_limit);
    return SH_OK;
}

static enum sh_code check_step(const struct sh_exec_context *context, const struct sh_step *step, struct sh_error *err) {
    const struct sh_exec_context_params *p = &context->params;
    const struct sh_program *program = context->model->program;
    enum sh_code code = SH_OK;
    if (step->n_rows > p->max_rows || step->n_outputs > p->max_outputs || step->n_sequences > p->max_sequences)
        return sh_fail(err, SH_ERR_LIMIT, "step of %u rows, %u outputs, %u sequences; the limits are %u, %u, %u", step->n_rows,
                       step->n_outputs, step->n_sequences, p->max_rows, p->max_outputs, p->max_sequences);
    for (uint32_t s = 0; code == SH_OK && s < step->n_sequences; s++) code = check_sequence(context, step, s, err);
    for (uint32_t r = 0; code == SH_OK && r < step->n_rows; r++) code = check_row(context, step, r, err);
    if (code != SH_OK) return code;
    for (uint32_t o = 0; o < step->n_outputs; o++)
        if (step->outputs[o].row >= step->n_rows)
            return sh_fail(err, SH_ERR_INVALID, "output %u: row %u of %u", o, step->outputs[o].row, step->n_rows);
    for (uint32_t c = 0; c < step->n_capture; c++)
        if (step->capture[c] >= program->n_activations)
            return sh_fail(err, SH_ERR_INVALID, "capture %u: activation %u of %u", c, step->capture[c], program->n_activations);
    return SH_OK;
}

static uint32_t rows_of(const struct sh_cpu_slot *slot, enum sh_rows rows) {
    return rows == SH_ROWS_ALL ? slot->n_rows : slot->n_outputs;
}

static enum sh_code copy_rows(struct sh_exec_context *context, struct sh_cpu_slot *slot, const struct sh_step *step,
                              struct sh_error *err) {
    const uint32_t n_embd = context->model->program->n_embd;
    uint32_t n_embeddings = 0;
    for (uint32_t r = 0; r < step->n_rows; r++) n_embeddings += step->rows[r].embedding != NULL;
    const enum sh_code code = reserve(context->model->device, &slot->embeddings, (uint64_t)n_embeddings * n_embd * sizeof(float),
                                      "input embeddings", err);
    if (code != SH_OK) return code;
    float *next = slot->embeddings.data;
    for (uint32_t r = 0; r < step->n_rows; r++) {
        slot->rows[r] = step->rows[r];
        if (step->rows[r].embedding == NULL) continue;
        memcpy(next, step->rows[r].embedding, n_embd * sizeof *next);
        slot->rows[r].embedding = next;
        next += n_embd;
    }
    slot->n_rows = step->n_rows;
    for (uint32_t o = 0; o < step->n_outputs; o++) slot->output_rows[o] = step->outputs[o].row;
    slot->n_outputs = step->n_outputs;
    return SH_OK;
}

/* Pages that a step names of a group. */
static uint32_t pages_of(const struct sh_state_group *group, const struct sh_step_sequence *q) {
    return group->kind == SH_STATE_RECURRENT ? 2 : q->n_pages;
}

static enum sh_code resolve_pages(struct sh_exec_context *context, struct sh_cpu_slot *slot, const struct sh_step *step,
                                  struct sh_error *err) {
    const struct sh_program *program = context->model->program;
    uint64_t need = 0;
    for (uint32_t s = 0; s < step->n_sequences; s++)
        for (uint32_t g = 0; g < program->n_groups; g++) need += pages_of(&program->groups[g], &step->sequences[s]);
    if (need > UINT32_MAX || !sh_grow((void **)&slot->pages, &slot->cap_pages, (uint32_t)need, sizeof *slot->pages))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the addresses of %" PRIu64 " cache pages", need);
    uint32_t next = 0;
    for (uint32_t s = 0; s < step->n_sequences; s++) {
        const struct sh_step_sequence *q = &step->sequences[s];
        struct sh_cpu_sequence *sequence = &slot->sequences[s];
        sequence->first_row = q->first_row;
        sequence->n_rows = q->n_rows;
        for (uint32_t g = 0; g < program->n_groups; g++) {
            const struct sh_cpu_pages *pages = &context->groups[g];
            const uint32_t n = pages_of(&program->groups[g], q);
            sequence->first_page[g] = next;
            for (uint32_t i = 0; i < n; i++)
                slot->pages[next++] =
                    pages->n_layers > 0 && q->pages[g][i] != SH_NONE ? page_address(pages, q->pages[g][i]) : NULL;
        }
    }
    slot->n_sequences = step->n_sequences;
    return SH_OK;
}

/* Room for everything that outlives the step, and the segment's inputs. */
static enum sh_code fill_activations(struct sh_exec_context *context, struct sh_cpu_slot *slot, const struct sh_step *step,
                                     struct sh_error *err) {
    const struct sh_exec_model *m = context->model;
    const struct sh_cpu_segment *s = &m->segments[slot->segment];
    for (uint32_t i = 0; i < s->fused.n_slots; i++) {
        if (!s->places[i].owned) continue;
        const uint64_t bytes = (uint64_t)rows_of(slot, s->fused.slots[i].rows) * s->fused.slots[i].width * sizeof(float);
        const enum sh_code code = reserve(m->device, &slot->owned[s->places[i].buffer], bytes, "activations", err);
        if (code != SH_OK) return code;
    }
    for (uint32_t i = 0; i < s->segment.n_inputs; i++) {
        const uint32_t input = s->segment.inputs[i];
        const struct sh_activation *a = &m->program->activations[input];
        if (step->inputs[i] == NULL) return sh_fail(err, SH_ERR_INVALID, "input %s of the segment is missing", a->name);
        const size_t bytes = (size_t)rows_of(slot, a->rows) * a->width * sizeof(float);
        if (bytes > 0) memcpy(sh_cpu_buffer(context, slot, s, s->fused.slot[input]), step->inputs[i], bytes);
    }
    return SH_OK;
}

static enum sh_code prepare_captures(struct sh_exec_context *context, struct sh_cpu_slot *slot, const struct sh_step *step,
                                     struct sh_error *err) {
    const struct sh_program *program = context->model->program;
    slot->n_capture = 0;
    if (step->n_capture > slot->cap_capture) {
        uint32_t *capture = realloc(slot->capture, step->n_capture * sizeof *capture);
        if (capture != NULL) slot->capture = capture;
        const float **captures = realloc(slot->captures, step->n_capture * sizeof *captures);
        if (captures != NULL) slot->captures = captures;
        struct sh_cpu_block *captured = realloc(slot->captured, step->n_capture * sizeof *captured);
        if (captured != NULL) slot->captured = captured;
        if (capture == NULL || captures == NULL || captured == NULL)
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for captures");
        memset(captured + slot->cap_capture, 0, (step->n_capture - slot->cap_capture) * sizeof *captured);
        slot->cap_capture = step->n_capture;
    }
    for (uint32_t c = 0; c < step->n_capture; c++) {
        const struct sh_activation *a = &program->activations[step->capture[c]];
        const enum sh_code code = reserve(context->model->device, &slot->captured[c],
                                          (uint64_t)rows_of(slot, a->rows) * a->width * sizeof(float), "captures", err);
        if (code != SH_OK) return code;
        slot->capture[c] = step->capture[c];
        slot->captures[c] = NULL;
    }
    slot->n_capture = step->n_capture;
    return SH_OK;
}

/* Where the results will be: they are valid once the slot is done. */
static void place_results(const struct sh_exec_context *context, struct sh_cpu_slot *slot, const struct sh_step *step) {
    const struct sh_program *program = context->model->program;
    const struct sh_cpu_segment *s = &context->model->segments[slot->segment];
    const uint32_t at_logits = sh_cpu_plan_slot(s, program->logits), at_hidden = sh_cpu_plan_slot(s, program->hidden);
    const float *logits = at_logits != SH_NONE ? sh_cpu_buffer(context, slot, s, at_logits) : NULL;
    const float *hidden = at_hidden != SH_NONE ? sh_cpu_buffer(context, slot, s, at_hidden) : NULL;
    for (uint32_t o = 0; o < step->n_outputs; o++) {
        const struct sh_step_output *want = &step->outputs[o];
        slot->logits[o] = want->want_logits && logits != NULL ? logits + (size_t)o * program->n_vocab : NULL;
        slot->hidden[o] = want->want_hidden && hidden != NULL ? hidden + (size_t)o * program->n_embd : NULL;
    }
}

static enum sh_code take_copies(struct sh_exec_context *context, struct sh_cpu_slot *slot, struct sh_error *err) {
    slot->n_copies = 0;
    if (!sh_grow((void **)&slot->copies, &slot->cap_copies, context->n_copies, sizeof *slot->copies))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u page copies", context->n_copies);
    for (uint32_t i = 0; i < context->n_copies; i++) slot->copies[i] = context->copies[i];
    slot->n_copies = context->n_copies;
    context->n_copies = 0;
    return SH_OK;
}

enum sh_code sh_cpu_submit(struct sh_exec_context *context, uint32_t index, uint32_t segment, const struct sh_step *step,
                           struct sh_error *err) {
    if (index >= SH_SLOTS) return sh_fail(err, SH_ERR_INVALID, "step slot %u of %u", index, SH_SLOTS);
    if (segment >= context->model->n_segments)
        return sh_fail(err, SH_ERR_INVALID, "segment %u of %u", segment, context->model->n_segments);
    struct sh_cpu_slot *slot = &context->slots[index];
    pthread_mutex_lock(&context->lock);
    const bool running = slot->state == SH_CPU_QUEUED;
    if (!running) slot->state = SH_CPU_IDLE;
    pthread_mutex_unlock(&context->lock);
    if (running) return sh_fail(err, SH_ERR_BUSY, "step slot %u is still in flight", index);
    enum sh_code code = check_step(context, step, err);
    slot->segment = segment;
    if (code == SH_OK && context->params.trace != NULL)
        slot->shape = sh_step_shape(context->model->program, step, context->params.kv_type);
    if (code == SH_OK) code = copy_rows(context, slot, step, err);
    if (code == SH_OK) code = resolve_pages(context, slot, step, err);
    if (code == SH_OK) code = fill_activations(context, slot, step, err);
    if (code == SH_OK) code = prepare_captures(context, slot, step, err);
    if (code == SH_OK) code = take_copies(context, slot, err);
    if (code != SH_OK) return code;
    place_results(context, slot, step);
    pthread_mutex_lock(&context->lock);
    slot->state = SH_CPU_QUEUED;
    context->queue[context->n_queued++] = index;
    pthread_cond_broadcast(&context->changed);
    pthread_mutex_unlock(&context->lock);
    return SH_OK;
}

/* Until `state` leaves SH_CPU_QUEUED or the time is over; the lock is held. */
static bool await_slot(struct sh_exec_context *context, const struct sh_cpu_slot *slot, int64_t timeout_ns) {
    if (timeout_ns < 0) {
        while (slot->state == SH_CPU_QUEUED) pthread_cond_wait(&context->changed, &context->lock);
        return true;
    }
    const uint64_t until = sh_now_ns() + (uint64_t)timeout_ns;
    const struct timespec deadline = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    while (slot->state == SH_CPU_QUEUED)
        if (pthread_cond_timedwait(&context->changed, &context->lock, &deadline) == ETIMEDOUT)
            return slot->state != SH_CPU_QUEUED;
    return true;
}

enum sh_code sh_cpu_wait(struct sh_exec_context *context, uint32_t index, int64_t timeout_ns, struct sh_step_result *result,
                         struct sh_error *err) {
    if (index >= SH_SLOTS) return sh_fail(err, SH_ERR_INVALID, "step slot %u of %u", index, SH_SLOTS);
    struct sh_cpu_slot *slot = &context->slots[index];
    pthread_mutex_lock(&context->lock);
    const bool idle = slot->state == SH_CPU_IDLE;
    const bool done = !idle && await_slot(context, slot, timeout_ns);
    pthread_mutex_unlock(&context->lock);
    if (idle) return sh_fail(err, SH_ERR_INVALID, "nothing was submitted to step slot %u", index);
    if (!done) return sh_fail(err, SH_ERR_TIMEOUT, "the step is still running");
    *result = (struct sh_step_result){
        .tokens = slot->tokens,
        .logits = slot->logits,
        .hidden = slot->hidden,
        .captured = slot->captures,
        .busy_ns = slot->busy_ns,
    };
    const struct sh_cpu_segment *s = &context->model->segments[slot->segment];
    for (uint32_t i = 0; i < s->segment.n_outputs; i++)
        result->outputs[i] = sh_cpu_buffer(context, slot, s, s->fused.slot[s->segment.outputs[i]]);
    return SH_OK;
}

/* ---- the runner ---- */

static void *runner_main(void *arg) {
    struct sh_exec_context *context = arg;
    struct sh_pool *pool = context->model->device->pool;
    pthread_mutex_lock(&context->lock);
    for (;;) {
        while (context->n_queued == 0 && !context->stopping) pthread_cond_wait(&context->changed, &context->lock);
        if (context->n_queued == 0) break;
        struct sh_cpu_slot *slot = &context->slots[context->queue[0]];
        pthread_mutex_unlock(&context->lock);
        sh_pool_enter(pool, SH_POOL_STEP);
        const uint64_t begin = sh_now_ns();
        run_copies(context, slot->copies, slot->n_copies);
        sh_cpu_step_run(context, slot);
        slot->busy_ns = sh_now_ns() - begin;
        sh_pool_leave(pool);
        pthread_mutex_lock(&context->lock);
        slot->state = SH_CPU_DONE;
        context->n_queued--;
        for (uint32_t i = 0; i < context->n_queued; i++) context->queue[i] = context->queue[i + 1];
        pthread_cond_broadcast(&context->changed);
    }
    pthread_mutex_unlock(&context->lock);
    return NULL;
}

/* ---- create, destroy ---- */

static bool allocate_slot(const struct sh_exec_context *context, struct sh_cpu_slot *slot) {
    const struct sh_exec_context_params *p = &context->params;
    const uint32_t n_groups = context->model->program->n_groups;
    slot->rows = sh_calloc(p->max_rows, sizeof *slot->rows);
    slot->output_rows = sh_calloc(p->max_outputs, sizeof *slot->output_rows);
    slot->sequences = sh_calloc(p->max_sequences, sizeof *slot->sequences);
    slot->first_pages = sh_calloc((size_t)p->max_sequences * n_groups, sizeof *slot->first_pages);
    slot->owned = sh_calloc(context->model->n_owned, sizeof *slot->owned);
    slot->tokens = sh_calloc(p->max_outputs, sizeof *slot->tokens);
    slot->logits = sh_calloc(p->max_outputs, sizeof *slot->logits);
    slot->hidden = sh_calloc(p->max_outputs, sizeof *slot->hidden);
    if (slot->rows == NULL || slot->output_rows == NULL || slot->sequences == NULL || slot->first_pages == NULL ||
        slot->owned == NULL || slot->tokens == NULL || slot->logits == NULL || slot->hidden == NULL)
        return false;
    for (uint32_t o = 0; o < p->max_outputs; o++) slot->tokens[o] = -1;
    for (uint32_t s = 0; s < p->max_sequences; s++) slot->sequences[s].first_page = slot->first_pages + (size_t)s * n_groups;
    return true;
}

/* Bytes of each shared buffer: the most that any segment's plan keeps there. */
static void size_shared(const struct sh_exec_context *context, uint64_t *bytes) {
    const struct sh_exec_model *m = context->model;
    for (uint32_t i = 0; i < m->n_segments; i++) {
        const struct sh_cpu_segment *s = &m->segments[i];
        for (uint32_t j = 0; j < s->fused.n_slots; j++) {
            if (s->places[j].owned) continue;
            const uint64_t rows = s->fused.slots[j].rows == SH_ROWS_ALL ? context->params.max_rows : context->params.max_outputs;
            uint64_t *most = &bytes[s->places[j].buffer];
            *most = sh_max_u64(*most, rows * s->fused.slots[j].width * sizeof(float));
        }
    }
}

static enum sh_code allocate_blocks(struct sh_exec_context *context, const uint64_t *shared, struct sh_error *err) {
    struct sh_cpu_device *device = context->model->device;
    const struct sh_exec_context_params *p = &context->params;
    const struct sh_cpu_step_memory need =
        sh_cpu_step_memory(context->model, p->max_rows, (uint64_t)p->max_pages_per_sequence * SH_PAGE_TOKENS);
    context->scratch_stride = need.scratch;
    const struct {
        struct sh_cpu_block *block;
        uint64_t bytes;
    } blocks[] = {
        {&context->operands, need.operands}, {&context->scratch, need.scratch * device->threads},
        {&context->partials, need.partials}, {&context->staging, need.staging},
        {&context->routing, need.routing},
    };
    uint64_t total = 0;
    for (size_t i = 0; i < SH_COUNT(blocks); i++) total += blocks[i].bytes;
    for (uint32_t i = 0; i < context->model->n_shared; i++) total += shared[i];
    enum sh_code code = sh_cpu_memory_check(total, "activations of a context", err);
    for (size_t i = 0; code == SH_OK && i < SH_COUNT(blocks); i++)
        code = sh_cpu_block_alloc(device, SH_CPU_ACTIVATIONS, blocks[i].bytes, "the work of a step", blocks[i].block, err);
    for (uint32_t i = 0; code == SH_OK && i < context->model->n_shared; i++)
        code = sh_cpu_block_alloc(device, SH_CPU_ACTIVATIONS, shared[i], "activations", &context->shared[i], err);
    return code;
}

static enum sh_code allocate_buffers(struct sh_exec_context *context, struct sh_error *err) {
    uint64_t *shared = sh_calloc(context->model->n_shared, sizeof *shared);
    if (shared == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    size_shared(context, shared);
    enum sh_code code = allocate_blocks(context, shared, err);
    free(shared);
    for (uint32_t s = 0; code == SH_OK && s < SH_SLOTS; s++)
        if (!allocate_slot(context, &context->slots[s]))
            code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the steps of a context");
    return code;
}

static enum sh_code start_runner(struct sh_exec_context *context, struct sh_error *err) {
    const int rc = pthread_create(&context->runner, NULL, runner_main, context);
    if (rc != 0) return sh_fail(err, SH_ERR_NO_MEMORY, "thread of a context: %s; raise the limit of tasks", strerror(rc));
    pthread_setname_np(context->runner, "shimmy-step");
    context->has_runner = true;
    return SH_OK;
}

enum sh_code sh_cpu_context_create(struct sh_exec_model *model, const struct sh_exec_context_params *params,
                                   struct sh_exec_context **out, struct sh_error *err) {
    *out = NULL;
    const struct sh_program *program = model->program;
    struct sh_exec_context *context = sh_calloc(1, sizeof *context);
    if (context == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    context->model = model;
    context->params = *params;
    pthread_mutex_init(&context->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&context->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    context->groups = sh_calloc(program->n_groups, sizeof *context->groups);
    context->shared = sh_calloc(model->n_shared, sizeof *context->shared);
    enum sh_code code = SH_OK;
    if (context->groups == NULL || context->shared == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    for (uint32_t g = 0; code == SH_OK && g < program->n_groups; g++) init_pages(&context->groups[g], model, g, params->kv_type);
    if (code == SH_OK) code = allocate_buffers(context, err);
    if (code == SH_OK) code = start_runner(context, err);
    if (code != SH_OK) {
        sh_cpu_context_destroy(context);
        return code;
    }
    *out = context;
    return SH_OK;
}

static void free_slot(const struct sh_exec_context *context, struct sh_cpu_slot *slot) {
    struct sh_cpu_device *device = context->model->device;
    for (uint32_t i = 0; slot->owned != NULL && i < context->model->n_owned; i++)
        sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &slot->owned[i]);
    for (uint32_t c = 0; c < slot->cap_capture; c++) sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &slot->captured[c]);
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &slot->embeddings);
    free(slot->rows);
    free(slot->output_rows);
    free(slot->pages);
    free(slot->sequences);
    free(slot->first_pages);
    free(slot->copies);
    free(slot->capture);
    free(slot->captured);
    free(slot->captures);
    free(slot->owned);
    free(slot->tokens);
    free(slot->logits);
    free(slot->hidden);
}

void sh_cpu_context_destroy(struct sh_exec_context *context) {
    if (context == NULL) return;
    if (context->has_runner) { /* it runs what is queued before it ends */
        pthread_mutex_lock(&context->lock);
        context->stopping = true;
        pthread_cond_broadcast(&context->changed);
        pthread_mutex_unlock(&context->lock);
        pthread_join(context->runner, NULL);
    }
    struct sh_cpu_device *device = context->model->device;
    for (uint32_t s = 0; s < SH_SLOTS; s++) free_slot(context, &context->slots[s]);
    for (uint32_t g = 0; context->groups != NULL && g < context->model->program->n_groups; g++) {
        struct sh_cpu_pages *pages = &context->groups[g];
        for (uint32_t i = 0; i < pages->n_slabs; i++) sh_cpu_block_free(device, SH_CPU_CACHE, &pages->slabs[i]);
        free(pages->slabs);
    }
    for (uint32_t i = 0; context->shared != NULL && i < context->model->n_shared; i++)
        sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &context->shared[i]);
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &context->operands);
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &context->scratch);
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &context->partials);
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &context->staging);
    sh_cpu_block_free(device, SH_CPU_ACTIVATIONS, &context->routing);
    free(context->groups);
    free(context->shared);
    free(context->copies);
    pthread_mutex_destroy(&context->lock);
    pthread_cond_destroy(&context->changed);
    free(context);
}
