/* sh_submit: the whole batch is checked first, then tokens and pages are taken, then the step is started; any failure undoes it
 * all. */
#include "compute/state/context.h"

#include <stdlib.h>

/* ---- checking ---- */

/* The index of the output of `row` in that slot's step, or SH_NONE. Outputs ascend by row. */
static uint32_t find_output(const struct sh_slot *slot, uint32_t row) {
    uint32_t low = 0, high = slot->step.n_outputs;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (slot->outputs[middle].row < row) low = middle + 1;
        else high = middle;
    }
    return low < slot->step.n_outputs && slot->outputs[low].row == row ? low : SH_NONE;
}

static enum sh_code check_sampled(const struct sh_context *c, uint32_t i, const struct sh_row *row, struct sh_error *err) {
    const struct sh_slot *slot = &c->slots[row->ticket % SH_SLOTS];
    if (row->ticket == 0 || slot->ticket != row->ticket || (slot->state != SH_SLOT_RUNNING && slot->code != SH_OK))
        return sh_fail(err, SH_ERR_INVALID,
                       "row %u: ticket %llu holds no tokens; refer to the latest submission or the one waited for last", i,
                       (unsigned long long)row->ticket);
    const uint32_t output = find_output(slot, row->sampled_row);
    if (output == SH_NONE || (slot->wanted[output].outputs & SH_OUT_SAMPLE) == 0)
        return sh_fail(err, SH_ERR_INVALID, "row %u: row %u of ticket %llu was not sampled", i, row->sampled_row,
                       (unsigned long long)row->ticket);
    return SH_OK;
}

static enum sh_code check_mask(const struct sh_context *c, uint32_t i, const struct sh_row *row, struct sh_error *err) {
    if ((row->outputs & SH_OUT_SAMPLE) == 0)
        return sh_fail(err, SH_ERR_INVALID, "row %u: a mask, but the row samples no token (outputs 0x%x)", i, row->outputs);
    if (sh_mask_count(row->mask, c->model->spec.n_vocab) == 0)
        return sh_fail(err, SH_ERR_INVALID, "row %u: the mask allows none of the tokens 0 to %u, expected at least one", i,
                       c->model->spec.n_vocab - 1);
    return SH_OK;
}

static enum sh_code check_row(const struct sh_context *c, uint32_t i, const struct sh_row *row, struct sh_error *err) {
    const uint32_t n_vocab = c->model->spec.n_vocab;
    if (row->role != SH_ROLE_PROMPT && row->role != SH_ROLE_GENERATED)
        return sh_fail(err, SH_ERR_INVALID, "row %u: role %d, expected prompt (0) or generated (1)", i, (int)row->role);
    const uint32_t known = SH_OUT_SAMPLE | SH_OUT_LOGITS | SH_OUT_HIDDEN | SH_OUT_LOGPROBS | SH_OUT_POOLED;
    if ((row->outputs & ~known) != 0 || ((row->outputs & SH_OUT_LOGPROBS) != 0 && (row->outputs & SH_OUT_SAMPLE) == 0))
        return sh_fail(err, SH_ERR_INVALID, "row %u: outputs 0x%x, expected SH_OUT_ bits, log-probs only with a sample", i,
                       row->outputs);
    if ((row->outputs & (SH_OUT_SAMPLE | SH_OUT_LOGITS)) != 0 && c->model->program->logits == SH_NONE)
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "row %u: '%s' has no output layer: it gives hidden states and pooled embeddings, no tokens", i,
                       c->model->info.architecture);
    if ((row->outputs & SH_OUT_LOGPROBS) != 0 && (row->n_top > 64 || row->n_top > n_vocab))
        return sh_fail(err, SH_ERR_INVALID, "row %u: n_top is %u, expected at most %u", i, row->n_top,
                       n_vocab < 64 ? n_vocab : 64);
    if (row->mask != NULL) {
        const enum sh_code code = check_mask(c, i, row, err);
        if (code != SH_OK) return code;
    }
    if (row->position >= c->model->spec.context_length)
        return sh_fail(err, SH_ERR_LIMIT, "row %u: position %u is beyond the context of %u tokens", i, row->position,
                       c->model->spec.context_length);
    switch (row->input) {
    case SH_INPUT_TOKEN:
        if (row->token >= 0 && (uint32_t)row->token < n_vocab) return SH_OK;
        return sh_fail(err, SH_ERR_INVALID, "row %u: token %d, the vocabulary has 0 to %u", i, row->token, n_vocab - 1);
    case SH_INPUT_EMBEDDING:
        return row->embedding != NULL ? SH_OK : sh_fail(err, SH_ERR_INVALID, "row %u: the embedding is NULL", i);
    case SH_INPUT_SAMPLED: return check_sampled(c, i, row, err);
    }
    return sh_fail(err, SH_ERR_INVALID, "row %u: input %d is not known", i, (int)row->input);
}

/* The rows that the pooling needs must all have asked for it. *end: of those so far. */
static enum sh_code check_pooled(const struct sh_sequence *s, uint32_t i, const struct sh_row *row, uint32_t *end,
                                 struct sh_error *err) {
    if ((row->outputs & SH_OUT_POOLED) == 0) return SH_OK;
    if (s->pooling == SH_POOL_MEAN && row->position != *end)
        return sh_fail(err, SH_ERR_INVALID, "row %u: the mean of positions 0 to %u is asked, %u is the first that was not", i,
                       row->position, *end);
    if (s->pooling == SH_POOL_CLS && row->position > 0 && *end == 0)
        return sh_fail(err, SH_ERR_INVALID, "row %u: the first position's embedding is asked; its own row did not ask for it", i);
    *end = row->position + 1;
    return SH_OK;
}

static enum sh_code check_batch(struct sh_context *c, const struct sh_batch *batch, struct sh_error *err) {
    if (batch->n_rows == 0) return sh_fail(err, SH_ERR_INVALID, "the batch has no rows");
    if (batch->n_rows > c->params.max_batch_rows)
        return sh_fail(err, SH_ERR_LIMIT, "the batch has %u rows, this context takes %u", batch->n_rows,
                       c->params.max_batch_rows);
    const uint64_t attempt = ++c->attempts;
    uint32_t n_outputs = 0, expected = 0, pooled = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct sh_row *row = &batch->rows[i];
        struct sh_sequence *s = sh_context_sequence(c, row->sequence, err);
        if (s == NULL) return SH_ERR_INVALID;
        if (i == 0 || batch->rows[i - 1].sequence != row->sequence) {
            if (s->seen == attempt)
                return sh_fail(err, SH_ERR_INVALID, "row %u: sequence %u again; its rows must stand together", i, row->sequence);
            s->seen = attempt;
            expected = s->length;
            pooled = s->n_pooled;
            if (c->model->program->encoder && s->length > 0)
                return sh_fail(err, SH_ERR_INVALID,
                               "row %u: sequence %u has its %u tokens; an encoder takes a sequence whole, in one submission", i,
                               row->sequence, s->length);
        }
        if (row->position != expected)
            return sh_fail(err, SH_ERR_INVALID, "row %u: position %u of sequence %u, expected %u", i, row->position,
                           row->sequence, expected);
        expected++;
        enum sh_code code = check_row(c, i, row, err);
        if (code == SH_OK) code = check_pooled(s, i, row, &pooled, err);
        if (code != SH_OK) return code;
        n_outputs += row->outputs != 0;
    }
    if (n_outputs > c->params.max_outputs)
        return sh_fail(err, SH_ERR_LIMIT, "%u rows of the batch ask for an output, this context gives %u", n_outputs,
                       c->params.max_outputs);
    return SH_OK;
}

/* ---- rows ---- */

/* Can the device hand the token of that output to its own next step? Then the host need not know it. */
static bool device_hands_on(const struct sh_context *c, const struct sh_slot *slot, uint32_t output) {
    return slot->state == SH_SLOT_RUNNING && c->model->n_segments == 1 && !slot->wanted[output].host_sample;
}

static enum sh_code fill_row(struct sh_context *c, struct sh_step_row *to, uint32_t i, const struct sh_row *row,
                             struct sh_error *err) {
    *to = (struct sh_step_row){.sampled_from = SH_NONE, .position = row->position, .role = row->role};
    if (row->input == SH_INPUT_TOKEN) {
        to->token = row->token;
    } else if (row->input == SH_INPUT_EMBEDDING) {
        to->token = -1;
        to->embedding = row->embedding;
    } else {
        struct sh_slot *slot = &c->slots[row->ticket % SH_SLOTS];
        const uint32_t output = find_output(slot, row->sampled_row);
        if (device_hands_on(c, slot, output)) {
            to->token = -1;
            to->sampled_from = output;
            return SH_OK;
        }
        to->token = slot->tokens[output];
        if (to->token < 0)
            return sh_fail(err, SH_ERR_INVALID, "row %u: row %u of ticket %llu has no token: its logits are not numbers", i,
                           row->sampled_row, (unsigned long long)row->ticket);
    }
    return SH_OK;
}

/* Finishes the step in flight if one row needs a token of it on the host: before any row is filled, because then the host knows the
 * others' too, and nobody would tell this batch later. */
static enum sh_code finish_needed(struct sh_context *c, const struct sh_batch *batch, struct sh_error *err) {
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct sh_row *row = &batch->rows[i];
        if (row->input != SH_INPUT_SAMPLED) continue;
        struct sh_slot *slot = &c->slots[row->ticket % SH_SLOTS];
        if (slot->state != SH_SLOT_RUNNING || device_hands_on(c, slot, find_output(slot, row->sampled_row))) continue;
        return sh_slot_finish(c, slot, -1, err); /* the only one: the batch's own slot is idle */
    }
    return SH_OK;
}

/* Rows, and the sequences they belong to. */
static enum sh_code fill_rows(struct sh_context *c, struct sh_slot *slot, const struct sh_batch *batch, struct sh_error *err) {
    const enum sh_code finished = finish_needed(c, batch, err);
    if (finished != SH_OK) return finished;
    uint32_t n = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        if (i == 0 || batch->rows[i - 1].sequence != batch->rows[i].sequence) {
            slot->sequence_ids[n] = batch->rows[i].sequence;
            slot->sequences[n++] = (struct sh_step_sequence){.first_row = i};
        }
        const enum sh_code code = fill_row(c, &slot->rows[i], i, &batch->rows[i], err);
        if (code != SH_OK) return code;
        slot->rows[i].sequence = n - 1;
        slot->sequences[n - 1].n_rows++;
    }
    slot->step.n_sequences = n;
    return SH_OK;
}

/* Tokens beyond a sequence's length count for nothing until the length is raised. */
static enum sh_code write_history(struct sh_context *c, struct sh_slot *slot, struct sh_error *err) {
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        struct sh_sequence *s = &c->sequences[slot->sequence_ids[q]];
        const struct sh_step_sequence *rows = &slot->sequences[q];
        const uint32_t end = s->length + rows->n_rows;
        if (!sh_grow((void **)&s->tokens, &s->cap_tokens, end, sizeof *s->tokens) ||
            !sh_grow((void **)&s->roles, &s->cap_roles, end, sizeof *s->roles))
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the history of a sequence of %u tokens", end);
        for (uint32_t r = 0; r < rows->n_rows; r++) {
            s->tokens[s->length + r] = slot->rows[rows->first_row + r].token;
            s->roles[s->length + r] = (uint8_t)slot->rows[rows->first_row + r].role;
        }
    }
    return SH_OK;
}

/* ---- pages ---- */

/* Puts a fresh page at `index` of the table: appended, or instead of one that is shared; of a recurrent group instead of the one
 * that `before` (else NULL) keeps from now on. */
static enum sh_code place_page(struct sh_context *c, uint32_t sequence, uint32_t group, uint32_t index, uint32_t *before,
                               struct sh_error *err) {
    struct sh_page_table *table = &c->sequences[sequence].tables[group];
    struct sh_page_pool *pool = &c->pools[group];
    if (!sh_grow((void **)&c->changes, &c->cap_changes, c->n_changes + 1, sizeof *c->changes) ||
        !sh_grow((void **)&table->pages, &table->capacity, index + 1, sizeof *table->pages))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a page table of %u pages", index + 1);
    const enum sh_code code = sh_context_make_room(c, group, err);
    if (code != SH_OK) return code;
    if (index < table->n && before == NULL && pool->refs[table->pages[index]] == 1)
        return SH_OK; /* only the index held it, too, and gave it up to make room */
    struct sh_page_change *change = &c->changes[c->n_changes++];
    *change = (struct sh_page_change){.sequence = sequence, .group = group, .index = index, .old_page = SH_NONE};
    if (index < table->n) {
        change->old_page = table->pages[index];
        change->held = before == NULL && pool->owner[change->old_page] != SH_NONE && pool->refs[change->old_page] == 2;
        if (before == NULL && !change->held)
            sh_page_release(pool, change->old_page); /* others hold it: that is why it is replaced */
    } else {
        table->n = index + 1;
    }
    table->pages[index] = sh_page_take(pool);
    if (before != NULL) *before = change->old_page;
    change->before = before;
    return SH_OK;
}

static void undo_pages(struct sh_context *c) {
    while (c->n_changes > 0) {
        const struct sh_page_change *change = &c->changes[--c->n_changes];
        struct sh_page_table *table = &c->sequences[change->sequence].tables[change->group];
        struct sh_page_pool *pool = &c->pools[change->group];
        sh_page_release(pool, table->pages[change->index]);
        if (change->before != NULL) *change->before = SH_NONE;
        else if (change->old_page != SH_NONE && !change->held) sh_page_share(pool, change->old_page);
        if (change->old_page != SH_NONE) table->pages[change->index] = change->old_page;
        else table->n = change->index;
    }
}

static enum sh_code take_pages(struct sh_context *c, const struct sh_slot *slot, struct sh_error *err) {
    c->n_changes = 0;
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        const uint32_t id = slot->sequence_ids[q];
        const struct sh_sequence *s = &c->sequences[id];
        const uint32_t begin = s->length / SH_PAGE_TOKENS, length_end = sh_pages_of(s->length + slot->sequences[q].n_rows);
        for (uint32_t g = 0; g < c->n_groups; g++) {
            const bool state = sh_context_group(c, g)->kind == SH_STATE_RECURRENT;
            const uint32_t first = state ? 0 : begin, end = state ? 1 : length_end;
            for (uint32_t i = first; i < end; i++) {
                if (!state && i < s->tables[g].n && c->pools[g].refs[s->tables[g].pages[i]] == 1)
                    continue; /* its own, half full */
                const enum sh_code code = place_page(c, id, g, i, state ? &s->before[slot - c->slots][g] : NULL, err);
                if (code != SH_OK) return code;
            }
        }
    }
    return SH_OK;
}

/* Copy on write: what stands in a replaced page before the sequence's end. */
static enum sh_code copy_replaced(struct sh_context *c, struct sh_error *err) {
    for (uint32_t i = 0; i < c->n_changes; i++) {
        const struct sh_page_change *change = &c->changes[i];
        if (change->old_page == SH_NONE || change->before != NULL) continue;
        const struct sh_sequence *sequence = &c->sequences[change->sequence];
        const uint32_t page = sequence->tables[change->group].pages[change->index], n_tokens = sequence->length % SH_PAGE_TOKENS;
        for (uint32_t d = 0; d < c->model->n_devices; d++) {
            if (!c->holds_group[d * c->n_groups + change->group]) continue;
            const enum sh_code code =
                sh_context_executor(c, d)->page_copy(c->exec[d], change->group, change->old_page, page, n_tokens, err);
            if (code != SH_OK) return code;
        }
    }
    return SH_OK;
}

/* The step's own copy of the page tables: a later segment may start when the sequences have already grown. */
static enum sh_code fill_page_lists(struct sh_context *c, struct sh_slot *slot, struct sh_error *err) {
    uint64_t total = 0;
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        struct sh_step_sequence *to = &slot->sequences[q];
        to->n_pages = sh_pages_of(c->sequences[slot->sequence_ids[q]].length + to->n_rows);
        total += (uint64_t)sh_max_u64(to->n_pages, 2) * c->n_groups;
    }
    if (total > UINT32_MAX || !sh_grow((void **)&slot->page_ids, &slot->cap_page_ids, (uint32_t)total, sizeof *slot->page_ids))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for page tables of %llu pages", (unsigned long long)total);
    uint32_t *at = slot->page_ids;
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        struct sh_step_sequence *to = &slot->sequences[q];
        to->pages = slot->page_lists + (size_t)q * c->n_groups;
        const struct sh_sequence *s = &c->sequences[slot->sequence_ids[q]];
        for (uint32_t g = 0; g < c->n_groups; g++) {
            slot->page_lists[(size_t)q * c->n_groups + g] = at;
            if (sh_context_group(c, g)->kind == SH_STATE_RECURRENT) {
                *at++ = s->before[slot - c->slots][g];
                *at++ = s->tables[g].pages[0];
                continue;
            }
            memcpy(at, s->tables[g].pages, to->n_pages * sizeof *at);
            at += to->n_pages;
        }
    }
    return SH_OK;
}

/* ---- outputs ---- */

static enum sh_code prepare_pool(const struct sh_context *c, struct sh_sequence *s, struct sh_error *err) {
    if (s->pool == NULL) s->pool = sh_calloc(c->model->spec.n_embd, sizeof *s->pool);
    return s->pool != NULL ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to pool a sequence");
}

/* The masks are the caller's only during sh_submit: the host samples later, and so may a device that has the last segment. */
static enum sh_code copy_masks(struct sh_context *c, struct sh_slot *slot, const struct sh_batch *batch, struct sh_error *err) {
    const uint32_t words = sh_mask_words(c->model->spec.n_vocab);
    uint64_t total = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++) total += batch->rows[i].mask != NULL ? words : 0;
    if (total > slot->cap_masks) {
        free(slot->masks);
        slot->cap_masks = 0;
        slot->masks = sh_calloc(total, sizeof *slot->masks);
        if (slot->masks == NULL)
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for masks of %u tokens", c->model->spec.n_vocab);
        slot->cap_masks = total;
    }
    uint32_t *to = slot->masks;
    for (uint32_t n = 0; n < slot->n_next; n++) {
        const uint32_t *mask = batch->rows[slot->next_outputs[n].row].mask;
        if (mask == NULL) continue;
        memcpy(to, mask, words * sizeof *to);
        slot->next_wanted[n].mask = to;
        slot->next_outputs[n].mask = slot->next_outputs[n].sample ? to : NULL;
        to += words;
    }
    return SH_OK;
}

bool sh_sequence_samples_on_device(const struct sh_context *c, uint32_t sequence) {
    if (sequence >= c->params.max_sequences || c->sequences[sequence].sampler == NULL || c->model->program->logits == SH_NONE) return false;
    const struct sh_executor *last = sh_context_executor(c, c->model->segments[c->model->n_segments - 1].device);
    return last->device_sampling && sh_sampler_suits_device(c->sequences[sequence].sampler);
}

static enum sh_code fill_outputs(struct sh_context *c, struct sh_slot *slot, const struct sh_batch *batch, struct sh_error *err) {
    uint32_t n = 0, n_tops = 0;
    uint64_t n_pooled = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct sh_row *row = &batch->rows[i];
        if (row->outputs == 0) continue;
        const struct sh_sampler *sampler = c->sequences[row->sequence].sampler;
        const struct sh_sampler_params *p = sh_sampler_params(sampler);
        const bool sample = (row->outputs & SH_OUT_SAMPLE) != 0, logprobs = (row->outputs & SH_OUT_LOGPROBS) != 0;
        const bool on_device = sample && !logprobs && sh_sequence_samples_on_device(c, row->sequence);
        slot->next_wanted[n] = (struct sh_wanted){
            .sequence = row->sequence,
            .position = row->position,
            .outputs = row->outputs,
            .n_top = logprobs ? row->n_top : 0,
            .host_sample = sample && !on_device,
        };
        slot->next_outputs[n] = (struct sh_step_output){
            .row = i,
            .want_logits = (row->outputs & SH_OUT_LOGITS) != 0 || (sample && !on_device),
            .want_hidden = (row->outputs & (SH_OUT_HIDDEN | SH_OUT_POOLED)) != 0,
            .sample = on_device,
            .temperature = p->temperature,
            .top_k = sh_sampler_has_short_list(sampler) ? p->top_k : 0,
            .top_p = p->top_p,
            .min_p = p->min_p,
            .seed = p->seed,
            .choice = p->choice,
            .position = row->position + 1,
        };
        slot->bare_outputs[n] = (struct sh_step_output){.row = i};
        n_tops += slot->next_wanted[n].n_top;
        n++;
        if ((row->outputs & SH_OUT_POOLED) == 0) continue;
        n_pooled++;
        const enum sh_code code = prepare_pool(c, &c->sequences[row->sequence], err);
        if (code != SH_OK) return code;
    }
    slot->n_next = n;
    n_pooled *= c->model->spec.n_embd;
    if (n_pooled > slot->cap_pooled) {
        free(slot->pooled);
        slot->cap_pooled = 0;
        slot->pooled = sh_calloc(n_pooled, sizeof *slot->pooled);
        if (slot->pooled == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for pooled embeddings");
        slot->cap_pooled = n_pooled;
    }
    if (!sh_grow((void **)&slot->tops, &slot->cap_tops, n_tops, sizeof *slot->tops))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u log-probs", n_tops);
    return copy_masks(c, slot, batch, err);
}

/* ---- the door ---- */

static void exchange_outputs(struct sh_slot *slot) {
    struct sh_step_output *const outputs = slot->outputs;
    struct sh_wanted *const wanted = slot->wanted;
    const uint32_t n = slot->step.n_outputs;
    slot->outputs = slot->next_outputs;
    slot->wanted = slot->next_wanted;
    slot->step.n_outputs = slot->n_next;
    slot->next_outputs = outputs;
    slot->next_wanted = wanted;
    slot->n_next = n;
}

/* The slot is the step's from here on; if it cannot begin, it stays that of the last one. */
static enum sh_code begin_step(struct sh_context *c, struct sh_slot *slot, uint32_t n_rows, struct sh_error *err) {
    const enum sh_code last = slot->code;
    exchange_outputs(slot);
    slot->code = SH_OK;
    slot->poisoned = false;
    slot->segment = 0;
    slot->n_captured = c->n_capture;
    slot->n_results = 0;
    slot->begun_ns = sh_now_ns();
    slot->step.rows = slot->rows;
    slot->step.n_rows = n_rows;
    slot->step.sequences = slot->sequences;
    slot->step.outputs = slot->outputs;
    const enum sh_code code = sh_slot_start_segment(c, slot, err);
    if (code == SH_OK) return SH_OK;
    exchange_outputs(slot);
    slot->code = last;
    slot->n_captured = 0;
    return code;
}

static void commit(struct sh_context *c, struct sh_slot *slot, const struct sh_batch *batch, sh_ticket *ticket) {
    const uint32_t index = (uint32_t)(slot - c->slots);
    for (uint32_t i = 0; i < c->n_changes; i++)
        if (c->changes[i].held) sh_page_release(&c->pools[c->changes[i].group], c->changes[i].old_page);
    c->n_changes = 0;
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        struct sh_sequence *s = &c->sequences[slot->sequence_ids[q]];
        s->fall_back[index] = s->length;
        s->in_flight |= 1u << index;
        s->held |= 1u << index;
        s->length += slot->sequences[q].n_rows;
    }
    for (uint32_t i = 0; i < batch->n_rows; i++)
        if ((batch->rows[i].outputs & SH_OUT_POOLED) != 0)
            c->sequences[batch->rows[i].sequence].n_pooled = batch->rows[i].position + 1;
    slot->state = SH_SLOT_RUNNING;
    slot->ticket = c->next_ticket++;
    *ticket = slot->ticket;
    sh_context_update_stats(c);
}

enum sh_code sh_submit(struct sh_context *c, const struct sh_batch *batch, sh_ticket *ticket, struct sh_error *err) {
    struct sh_slot *slot = &c->slots[c->next_ticket % SH_SLOTS];
    if (c->lost) return sh_fail(err, SH_ERR_DEVICE_LOST, "the device of this context was lost; load the model again");
    if (slot->state != SH_SLOT_IDLE)
        return sh_fail(err, SH_ERR_BUSY, "%d submissions are in flight; wait for ticket %llu first", SH_SLOTS,
                       (unsigned long long)c->oldest);
    /* Rows may refer to what the slot's last step sampled, so its outputs stay until this one has begun: a batch that is refused,
     * for want of pages or memory, can be submitted again as it is. */
    enum sh_code code = check_batch(c, batch, err);
    if (code == SH_OK) code = fill_rows(c, slot, batch, err);
    if (code == SH_OK) code = write_history(c, slot, err);
    if (code != SH_OK) return code;
    code = take_pages(c, slot, err);
    if (code == SH_OK) code = fill_page_lists(c, slot, err);
    if (code == SH_OK) code = copy_replaced(c, err);
    if (code == SH_OK) code = fill_outputs(c, slot, batch, err);
    if (code == SH_OK) code = begin_step(c, slot, batch->n_rows, err);
    if (code != SH_OK) {
        undo_pages(c);
        c->lost = c->lost || code == SH_ERR_DEVICE_LOST;
        sh_context_update_stats(c);
        return code;
    }
    commit(c, slot, batch, ticket);
    return SH_OK;
}
