/*
 * step.c - one step: its parameter block is filled, the recording of its bucket submitted, its results read.
 */
#include "compute/glsl/draw.h"
#include "compute/vulkan/exec.h"

#include <stdlib.h>

void sh_vk_drop_recordings(struct sh_exec_context *c, struct sh_vk_slot *slot) {
    for (uint32_t p = 0; slot->recordings && p < c->model->n_plans; p++)
        for (uint32_t b = 0; b < SH_VK_ROW_BUCKETS; b++)
            for (uint32_t o = 0; o < SH_VK_OUT_CLASSES; o++) sh_vk_recording_finish(c, &slot->recordings[p].bucket[b][o]);
    sh_vk_recording_finish(c, &slot->once);
}

enum sh_code sh_vk_queue_submit(struct sh_exec_context *c, const VkCommandBuffer *commands, uint32_t n, struct sh_error *err) {
    const enum sh_code code = sh_vk_queue_commands(c->vk, commands, n, c->semaphore, c->value + 1, err);
    if (code == SH_OK) c->value++;
    return code;
}

/* ---- what only some steps need ---- */

/* A readback buffer for at least `rows` rows of `width` floats; growing it makes the slot's recordings stale. */
static enum sh_code need_readback(struct sh_exec_context *c, struct sh_vk_slot *slot, struct sh_vk_buffer *buffer, uint32_t *have,
                                  uint32_t rows, uint32_t width, const char *name, struct sh_error *err) {
    if (rows <= *have) return SH_OK;
    uint32_t n = 1;
    while (n < rows) n *= 2;
    if (n > c->params.max_outputs) n = c->params.max_outputs;
    sh_vk_drop_recordings(c, slot);
    sh_vk_buffer_destroy(c->vk, buffer);
    *have = 0;
    const enum sh_code code =
        sh_vk_buffer_create(c->vk, SH_PLACE_READBACK, SH_USE_STAGING, (uint64_t)n * width * 4, name, buffer, err);
    if (code == SH_OK) *have = n;
    return code;
}

/* Of one mask, rounded up so that each begins at an address of its own cache lines. */
static uint64_t mask_bytes(const struct sh_exec_context *c) {
    return sh_align_up(((uint64_t)c->model->program->n_vocab + 31) / 32 * 4, 256);
}

static enum sh_code need_embeddings(struct sh_exec_context *c, struct sh_vk_slot *slot, struct sh_error *err) {
    if (slot->embeddings.handle) return SH_OK;
    sh_vk_drop_recordings(c, slot);
    const uint64_t bytes = (uint64_t)c->params.max_rows * sh_vk_stride(c->model->program->n_embd) * 4;
    return sh_vk_buffer_create(c->vk, SH_PLACE_UPLOAD, SH_USE_STAGING, bytes, "embedding inputs", &slot->embeddings, err);
}

/* Room for the step's masks, uploaded with the step. Recordings reach it through the outputs' parameters, so they stay good. */
static enum sh_code need_masks(struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_step *step, struct sh_error *err) {
    uint32_t n = 0, have = 1;
    for (uint32_t o = 0; o < step->n_outputs; o++) n += step->outputs[o].sample && step->outputs[o].mask != NULL;
    if (n <= slot->mask_rows) return SH_OK;
    while (have < n) have *= 2;
    if (have > c->params.max_outputs) have = c->params.max_outputs;
    sh_vk_buffer_destroy(c->vk, &slot->masks);
    slot->mask_rows = 0;
    const enum sh_code code = sh_vk_buffer_create(c->vk, SH_PLACE_UPLOAD, SH_USE_STAGING, have * mask_bytes(c), "token masks",
                                                  &slot->masks, err);
    if (code == SH_OK) slot->mask_rows = have;
    return code;
}

static bool has_short_list(const struct sh_step_output *output) {
    return output->sample && output->temperature > 0 && output->top_k > 0;
}

/* Of the list of one output: what each chunk of the vocabulary has to give. */
static uint64_t list_bytes(const struct sh_exec_context *c, const struct sh_step_output *output) {
    return ((uint64_t)c->model->program->n_vocab + SH_SAMPLE_CHUNK - 1) / SH_SAMPLE_CHUNK * output->top_k * 8;
}

static enum sh_code need_lists(struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_step *step, struct sh_error *err) {
    uint64_t bytes = 0, have = 4096;
    for (uint32_t o = 0; o < step->n_outputs; o++) bytes += has_short_list(&step->outputs[o]) ? list_bytes(c, &step->outputs[o]) : 0;
    if (bytes <= slot->list_bytes) return SH_OK;
    while (have < bytes) have *= 2;
    sh_vk_buffer_destroy(c->vk, &slot->lists);
    slot->list_bytes = 0;
    const enum sh_code code = sh_vk_buffer_create(c->vk, SH_PLACE_DEVICE, SH_USE_ACTIVATION, have, "short lists", &slot->lists, err);
    if (code == SH_OK) slot->list_bytes = have;
    return code;
}

static enum sh_code need_captures(struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_vk_plan *plan,
                                  const struct sh_step *step, struct sh_error *err) {
    const struct sh_program *program = c->model->program;
    sh_vk_arena_finish(&slot->capture_arena);
    slot->n_captures = 0;
    if (step->n_capture == 0) return SH_OK;
    sh_vk_arena_init(&slot->capture_arena, c->vk, SH_PLACE_READBACK, SH_USE_STAGING, 1u << 20, "captures");
    if (!sh_grow((void **)&slot->captures, &slot->cap_captures, step->n_capture, sizeof *slot->captures) ||
        !sh_grow((void **)&slot->captured_out, &slot->cap_captured_out, step->n_capture, sizeof *slot->captured_out))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u captures", step->n_capture);
    for (uint32_t i = 0; i < step->n_capture; i++) {
        const uint32_t a = step->capture[i];
        if (a >= program->n_activations)
            return sh_fail(err, SH_ERR_INVALID, "capture of activation %u of %u", a, program->n_activations);
        slot->captures[i] = (struct sh_vk_capture){.activation = a};
        const uint64_t rows = program->activations[a].rows == SH_ROWS_OUT ? step->n_outputs : step->n_rows;
        if (plan->fused.slot[a] == SH_NONE || rows == 0) continue;
        const enum sh_code code =
            sh_vk_arena_take(&slot->capture_arena, rows * program->activations[a].width * 4, &slot->captures[i].host, err);
        if (code != SH_OK) return code;
    }
    slot->n_captures = step->n_capture;
    return SH_OK;
}

/* ---- the parameter block ---- */

/* Addresses of `n` pages; only the first n_missing of them may be SH_NONE, whose address is 0. */
static enum sh_code fill_table(const struct sh_vk_pool *pool, uint32_t s, const uint32_t *pages, uint32_t n, uint32_t n_missing,
                               uint64_t *table, struct sh_error *err) {
    for (uint32_t i = 0; i < n; i++) {
        table[i] = pages[i] == SH_NONE ? 0 : sh_vk_page_address(pool, pages[i]);
        if (table[i] == 0 && (pages[i] != SH_NONE || i >= n_missing))
            return sh_fail(err, SH_ERR_INVALID, "sequence %u names page %u of a pool of %u pages", s, pages[i], pool->n_pages);
    }
    return SH_OK;
}

static enum sh_code fill_pages(struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_step *step, uint32_t s,
                               uint32_t first, struct sh_error *err) {
    const struct sh_step_sequence *sequence = &step->sequences[s];
    const uint32_t position = step->rows[sequence->first_row].position;
    enum sh_code code = SH_OK;
    for (uint32_t g = 0; g < c->model->program->n_groups && code == SH_OK; g++) {
        const struct sh_vk_pool *pool = &c->pools[g];
        const struct sh_state_group *group = &c->model->program->groups[g];
        if (pool->n_layers == 0) continue;
        const uint32_t *pages = sequence->pages[g];
        uint64_t *table = (uint64_t *)(void *)slot->pages[g].mapped;
        if (group->kind == SH_STATE_RECURRENT) {
            if (pages[0] == pages[1])
                return sh_fail(err, SH_ERR_INVALID, "sequence %u: page %u is to hold its state before and after", s, pages[0]);
            code = fill_table(pool, s, pages, 2, 1, table + 2 * (uint64_t)s, err);
        } else {
            const bool windowed = group->kind == SH_STATE_WINDOWED && position >= group->window;
            const uint32_t n_missing = windowed ? (position + 1 - group->window) / SH_PAGE_TOKENS : 0;
            code = fill_table(pool, s, pages, sequence->n_pages, n_missing, table + first, err);
        }
    }
    return code;
}

/* Splits of a row's attention: up to its last visible position. */
static uint32_t count_splits(const struct sh_exec_model *m, uint32_t position, uint32_t end) {
    return (m->program->encoder ? end - 1 : position) / SH_SPLIT_TOKENS + 1;
}

/* The splits that a row sees, to each list (attention_merge.glsl: visible). */
static void list_splits(const struct sh_exec_context *c, struct sh_vk_slot *slot, uint32_t row, uint32_t position, uint32_t end,
                        uint32_t counts[SH_COUNT_KINDS]) {
    const bool bidirectional = c->model->program->encoder;
    for (uint32_t l = 0; l < c->n_windows; l++) {
        struct sh_p_item *items = (struct sh_p_item *)(void *)slot->splits.mapped + (uint64_t)l * c->max_items;
        const uint32_t window = c->windows[l], n = count_splits(c->model, position, end);
        uint32_t first = 0, last = n - 1;
        if (window) {
            const uint32_t reach = bidirectional ? window / 2 : window - 1;
            first = (position - (uint32_t)sh_min_u64(position, reach)) / SH_SPLIT_TOKENS;
            if (bidirectional) last = (uint32_t)sh_min_u64(last, ((uint64_t)position + reach) / SH_SPLIT_TOKENS);
        }
        for (uint32_t i = first; i <= last; i++)
            items[counts[SH_COUNT_ITEMS + l]++] = (struct sh_p_item){.row = row, .split = i};
    }
}

/* A sequence's rows in blocks, to each list. */
static void list_blocks(const struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_step_sequence *sequence,
                        uint32_t counts[SH_COUNT_KINDS]) {
    for (uint32_t l = 0; l < SH_VK_BLOCK_LISTS; l++) {
        struct sh_p_sequence *blocks = (struct sh_p_sequence *)(void *)slot->blocks.mapped + (uint64_t)l * c->params.max_rows;
        for (uint32_t r = 0; c->block_lists[l] && r < sequence->n_rows; r += 1u << l)
            blocks[counts[SH_COUNT_BLOCKS + l]++] = (struct sh_p_sequence){
                .first_row = sequence->first_row + r, .n_rows = (uint32_t)sh_min_u64(1u << l, sequence->n_rows - r)};
    }
}

static enum sh_code fill_rows(struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_step *step,
                              uint32_t counts[SH_COUNT_KINDS], struct sh_error *err) {
    const struct sh_exec_model *m = c->model;
    const uint32_t n_embd = m->program->n_embd, previous = c->slots[slot == &c->slots[0]].n_tokens;
    struct sh_p_row *rows = (struct sh_p_row *)(void *)slot->rows.mapped;
    struct sh_p_sequence *sequences = (struct sh_p_sequence *)(void *)slot->sequences.mapped;
    const bool split = step->n_rows <= SH_VK_SPLIT_ROWS && c->max_items > 0;
    uint32_t first_page = 0, n_items = 0;
    for (uint32_t s = 0; s < step->n_sequences; s++) {
        const struct sh_step_sequence *sequence = &step->sequences[s];
        if (sequence->n_pages > c->params.max_pages_per_sequence || sequence->n_rows == 0 || sequence->n_rows > step->n_rows ||
            sequence->first_row > step->n_rows - sequence->n_rows)
            return sh_fail(err, SH_ERR_INVALID, "sequence %u: %u pages and rows up to %u, at most %u and %u", s,
                           sequence->n_pages, sequence->first_row + sequence->n_rows, c->params.max_pages_per_sequence,
                           step->n_rows);
        enum sh_code code = fill_pages(c, slot, step, s, first_page, err);
        if (code != SH_OK) return code;
        sequences[s] = (struct sh_p_sequence){.first_row = sequence->first_row, .n_rows = sequence->n_rows};
        const uint32_t start = step->rows[sequence->first_row].position, end = start + sequence->n_rows;
        if (c->max_items > 0 && (end <= start || (end - 1) / SH_PAGE_TOKENS >= sequence->n_pages))
            return sh_fail(err, SH_ERR_INVALID, "sequence %u: %u rows from position %u on lie beyond its %u pages", s,
                           sequence->n_rows, start, sequence->n_pages);
        for (uint32_t r = sequence->first_row; r < sequence->first_row + sequence->n_rows; r++) {
            const struct sh_step_row *row = &step->rows[r];
            if (row->position != start + (r - sequence->first_row))
                return sh_fail(err, SH_ERR_INVALID, "row %u: position %u, expected %u after the row before", r, row->position,
                               start + (r - sequence->first_row));
            if (row->sampled_from != SH_NONE && row->sampled_from >= previous)
                return sh_fail(err, SH_ERR_INVALID, "row %u: output %u of a step with %u outputs", r, row->sampled_from,
                               previous);
            rows[r] = (struct sh_p_row){
                .token = (uint32_t)row->token,
                .sampled = row->embedding ? SH_P_NONE : row->sampled_from,
                .embedding = row->embedding != NULL,
                .position = row->position,
                .first_page = first_page,
                .n_pages = sequence->n_pages ? sequence->n_pages : 1,
                .first_item = n_items,
                .end = end,
                .sequence = s,
            };
            if (row->embedding)
                memcpy(slot->embeddings.mapped + (uint64_t)r * sh_vk_stride(n_embd) * 4, row->embedding, n_embd * 4ull);
            if (!split) continue;
            n_items += count_splits(m, row->position, end);
            list_splits(c, slot, r, row->position, end, counts);
        }
        if (!split && c->max_items > 0) list_blocks(c, slot, sequence, counts);
        first_page += sequence->n_pages;
    }
    return SH_OK;
}

static void fill_outputs(const struct sh_exec_context *c, struct sh_vk_slot *slot, const struct sh_step *step) {
    const uint64_t words = ((uint64_t)c->model->program->n_vocab + 31) / 32;
    struct sh_p_output *outputs = (struct sh_p_output *)(void *)slot->outputs.mapped;
    uint64_t mask = 0, list = 0; /* where the next one goes */
    for (uint32_t o = 0; o < step->n_outputs; o++) {
        const struct sh_step_output *out = &step->outputs[o];
        const bool short_list = has_short_list(out), nucleus = out->top_p > 0 && out->top_p < 1;
        slot->output_flags[o] = (out->want_logits ? SH_OUTPUT_LOGITS : 0) | (out->want_hidden ? SH_OUTPUT_HIDDEN : 0) |
                                (short_list ? SH_OUTPUT_SHORT : out->sample ? SH_OUTPUT_SAMPLE : 0);
        outputs[o] = (struct sh_p_output){
            .row = out->row,
            .flags = slot->output_flags[o],
            .inverse_temperature = out->temperature > 0 ? 1 / out->temperature : 0,
            .seed_low = (uint32_t)out->seed,
            .seed_high = (uint32_t)(out->seed >> 32),
            .choice = out->choice,
            .position = out->position,
            .top_k = out->top_k,
            .top_p = nucleus ? out->top_p : 2,
            .min_p = out->min_p,
        };
        if (short_list) {
            outputs[o].list = slot->lists.address + list;
            list += list_bytes(c, out);
        }
        if (!out->sample || out->mask == NULL) continue;
        memcpy(slot->masks.mapped + mask, out->mask, words * 4);
        outputs[o].mask = slot->masks.address + mask;
        mask += mask_bytes(c);
    }
}

static uint32_t axis_groups(struct sh_vk_axis axis, const uint32_t counts[SH_COUNT_KINDS]) {
    return axis.count == SH_COUNT_ONE ? axis.size : (counts[axis.count] + axis.size - 1) / axis.size;
}

static void fill_grids(struct sh_vk_slot *slot, const struct sh_vk_recording *rec, const uint32_t counts[SH_COUNT_KINDS]) {
    VkDispatchIndirectCommand *grids = (VkDispatchIndirectCommand *)(void *)slot->grids.mapped;
    for (uint32_t i = 0; i < rec->n_grids; i++)
        grids[i] = (VkDispatchIndirectCommand){axis_groups(rec->grids[i].x, counts), axis_groups(rec->grids[i].y, counts),
                                               rec->grids[i].z ? rec->grids[i].z : 1};
}

static enum sh_code check_step(const struct sh_exec_context *c, const struct sh_step *step, struct sh_error *err) {
    if (step->n_rows == 0 || step->n_rows > c->params.max_rows || step->n_outputs > c->params.max_outputs ||
        step->n_sequences > c->params.max_sequences)
        return sh_fail(err, SH_ERR_LIMIT, "a step of %u rows, %u outputs, %u sequences; the context was made for %u, %u, %u",
                       step->n_rows, step->n_outputs, step->n_sequences, c->params.max_rows, c->params.max_outputs,
                       c->params.max_sequences);
    for (uint32_t o = 0; o < step->n_outputs; o++)
        if (step->outputs[o].row >= step->n_rows)
            return sh_fail(err, SH_ERR_INVALID, "output %u of row %u of %u", o, step->outputs[o].row, step->n_rows);
        else if (step->outputs[o].top_k > SH_SHORT_LIST)
            return sh_fail(err, SH_ERR_INVALID, "output %u: a short list of %u tokens, at most %u", o, step->outputs[o].top_k, SH_SHORT_LIST);
    return SH_OK;
}

enum sh_code sh_vk_submit(struct sh_exec_context *c, uint32_t index, uint32_t segment,
                           const struct sh_step *step, struct sh_error *err) {
    const struct sh_exec_model *m = c->model;
    SH_ASSERT(index < SH_SLOTS && segment < m->n_plans);
    const struct sh_vk_plan *plan = &m->plans[segment];
    const struct sh_program *program = m->program;
    struct sh_vk_slot *slot = &c->slots[index];
    if (slot->in_flight) return sh_fail(err, SH_ERR_BUSY, "slot %u is in flight", index);
    enum sh_code code = sh_vk_alive(c->vk, err);
    if (code == SH_OK) code = check_step(c, step, err);
    if (code != SH_OK) return code;

    uint32_t counts[SH_COUNT_KINDS] = {
        [SH_COUNT_ROWS] = step->n_rows, [SH_COUNT_OUTPUTS] = step->n_outputs, [SH_COUNT_SEQUENCES] = step->n_sequences};
    bool embeddings = false;
    for (uint32_t r = 0; r < step->n_rows; r++) embeddings |= step->rows[r].embedding != NULL;
    for (uint32_t o = 0; o < step->n_outputs; o++) {
        if (step->outputs[o].want_logits) counts[SH_COUNT_LOGITS] = step->n_outputs;
        if (step->outputs[o].want_hidden) counts[SH_COUNT_HIDDEN] = step->n_outputs;
        if (has_short_list(&step->outputs[o])) counts[SH_COUNT_SHORT] = step->n_outputs;
    }
    if (embeddings) code = need_embeddings(c, slot, err);
    if (code == SH_OK && counts[SH_COUNT_LOGITS])
        code = need_readback(c, slot, &slot->logits, &slot->logits_rows, step->n_outputs, program->n_vocab, "logits", err);
    if (code == SH_OK && counts[SH_COUNT_HIDDEN])
        code = need_readback(c, slot, &slot->hidden, &slot->hidden_rows, step->n_outputs, program->n_embd, "hidden", err);
    if (code == SH_OK) code = need_masks(c, slot, step, err);
    if (code == SH_OK) code = need_lists(c, slot, step, err);
    if (code == SH_OK) code = need_captures(c, slot, plan, step, err);
    if (code == SH_OK) code = fill_rows(c, slot, step, counts, err);
    if (code != SH_OK) return code;
    fill_outputs(c, slot, step);
    for (uint32_t i = 0; i < plan->segment.n_inputs; i++) {
        const struct sh_activation *a = &program->activations[plan->segment.inputs[i]];
        const uint64_t rows = a->rows == SH_ROWS_OUT ? step->n_outputs : step->n_rows;
        memcpy(slot->inputs[i].mapped, step->inputs[i], rows * a->width * 4);
    }
    *(struct sh_p_step *)(void *)slot->step.mapped =
        (struct sh_p_step){.n_rows = step->n_rows, .n_outputs = step->n_outputs, .n_vocab = program->n_vocab};

    const uint32_t bucket = sh_vk_row_bucket(step->n_rows), class = sh_vk_out_class(step->n_outputs);
    struct sh_vk_recording *rec = step->n_capture ? &slot->once : &slot->recordings[segment].bucket[bucket][class];
    if (step->n_capture) sh_vk_recording_finish(c, rec);
    if (!rec->ready) code = sh_vk_record(c, index, segment, bucket, class, slot->captures, slot->n_captures, rec, err);
    if (code != SH_OK) return code;
    fill_grids(slot, rec, counts);
    code = sh_vk_queue_submit(c, rec->commands, rec->n_commands, err);
    if (code != SH_OK) return code;
    slot->in_flight = true;
    slot->value = c->value;
    slot->plan = segment;
    slot->recording = rec;
    if (c->laps) slot->shape = sh_step_shape(program, step, c->params.kv_type);
    slot->n_rows = step->n_rows;
    slot->n_outputs = step->n_outputs;
    if (program->logits != SH_NONE && plan->fused.slot[program->logits] != SH_NONE) slot->n_tokens = step->n_outputs;
    return SH_OK;
}

/* ---- results ---- */

static uint64_t busy_ns(const struct sh_exec_context *c, uint32_t index) {
    uint64_t stamps[2];
    if (!c->queries || c->vk->GetQueryPoolResults(c->vk->device, c->queries, index * 2, 2, sizeof stamps, stamps, 8,
                                                  VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
        return 0;
    return stamps[1] > stamps[0] ? (uint64_t)((double)(stamps[1] - stamps[0]) * (double)c->vk->limits.timestampPeriod) : 0;
}

/* A trace that there is no memory for lacks the step. */
static void report_laps(struct sh_exec_context *c, uint32_t index) {
    const struct sh_vk_slot *slot = &c->slots[index];
    const struct sh_vk_recording *rec = slot->recording;
    uint64_t *stamps = sh_calloc(rec->n_laps + 1ull, sizeof *stamps);
    if (stamps != NULL && c->vk->GetQueryPoolResults(c->vk->device, c->laps, index * (c->max_laps + 1), rec->n_laps + 1,
                                                     (rec->n_laps + 1) * sizeof *stamps, stamps, sizeof *stamps,
                                                     VK_QUERY_RESULT_64_BIT) == VK_SUCCESS)
        for (uint32_t i = 0; i < rec->n_laps; i++) {
            const uint64_t ticks = stamps[i + 1] > stamps[i] ? stamps[i + 1] - stamps[i] : 0;
            sh_trace_add(c->params.trace, rec->laps[i].ops, rec->laps[i].n_ops, rec->laps[i].part, &slot->shape,
                         (uint64_t)((double)ticks * (double)c->vk->limits.timestampPeriod));
        }
    free(stamps);
}

enum sh_code sh_vk_wait(struct sh_exec_context *c, uint32_t index, int64_t timeout_ns, struct sh_step_result *result,
                        struct sh_error *err) {
    SH_ASSERT(index < SH_SLOTS);
    const struct sh_program *program = c->model->program;
    struct sh_vk_slot *slot = &c->slots[index];
    if (!slot->in_flight) return sh_fail(err, SH_ERR_INVALID, "slot %u is not in flight", index);
    const VkResult waited =
        sh_vk_wait_value(c->vk, c->semaphore, slot->value, timeout_ns < 0 ? UINT64_MAX : (uint64_t)timeout_ns);
    if (waited == VK_TIMEOUT) return sh_fail(err, SH_ERR_TIMEOUT, "%s: the step has not finished yet", c->vk->base.info.name);
    slot->in_flight = false;
    if (waited != VK_SUCCESS) return sh_vk_fail(c->vk, waited, "vkWaitSemaphores", err);
    if (c->laps) report_laps(c, index);
    const int32_t *tokens = (const int32_t *)(const void *)slot->tokens.mapped;
    for (uint32_t o = 0; o < slot->n_outputs; o++) {
        const uint32_t flags = slot->output_flags[o];
        slot->logits_rows_out[o] =
            flags & SH_OUTPUT_LOGITS ? (const float *)(const void *)slot->logits.mapped + (uint64_t)o * program->n_vocab : NULL;
        slot->hidden_rows_out[o] =
            flags & SH_OUTPUT_HIDDEN ? (const float *)(const void *)slot->hidden.mapped + (uint64_t)o * program->n_embd : NULL;
    }
    *result = (struct sh_step_result){.tokens = tokens,
                                      .logits = slot->logits_rows_out,
                                      .hidden = slot->hidden_rows_out,
                                      .captured = slot->captured_out,
                                      .busy_ns = busy_ns(c, index)};
    for (uint32_t i = 0; i < c->model->plans[slot->plan].segment.n_outputs; i++)
        result->outputs[i] = (const float *)(const void *)slot->results[i].mapped;
    for (uint32_t i = 0; i < slot->n_captures; i++)
        slot->captured_out[i] = slot->captures[i].host.bytes ? (const float *)(const void *)slot->captures[i].host.mapped : NULL;
    return SH_OK;
}
