/* A step's way to its end: segment after segment, then tokens, log-probs and results; or the undoing of what it had begun. */
#include "compute/state/context.h"

#include <stdlib.h>

/* ---- segments ---- */

enum sh_code sh_slot_start_segment(struct sh_context *c, struct sh_slot *slot, struct sh_error *err) {
    const uint32_t s = slot->segment;
    const struct sh_segment *segment = &c->model->segments[s];
    struct sh_step step = slot->step;
    if (s + 1 < c->model->n_segments) step.outputs = slot->bare_outputs;
    if (s < c->model->first_out_segment) step.n_outputs = 0;
    static const float nothing[1]; /* an input of no rows: behind GATHER_OUT, in a step that wants no output */
    for (uint32_t i = 0; i < segment->n_inputs; i++) {
        const float *made = slot->made[segment->inputs[i]];
        step.inputs[i] = made != NULL ? made : nothing;
    }
    step.n_capture = 0;
    for (uint32_t i = 0; i < c->n_capture; i++)
        if (c->capture_segment[i] == s) c->segment_capture[step.n_capture++] = c->capture[i];
    step.capture = c->segment_capture;
    const uint32_t device = segment->device;
    const enum sh_code code = sh_context_executor(c, device)->submit(c->exec[device], (uint32_t)(slot - c->slots),
                                                                     c->model->index_on_device[s], &step, err);
    if (code == SH_OK && s == 0) { /* only the first segment embeds; what the caller lent is not looked at again */
        for (uint32_t i = 0; i < slot->step.n_rows; i++) slot->rows[i].embedding = NULL;
    }
    return code;
}

/* Copies an activation that is read when its device's buffers hold something else; NULL: no memory. */
static const float *keep(const struct sh_context *c, struct sh_slot *slot, uint32_t activation, const float *values) {
    const struct sh_activation *a = &c->model->program->activations[activation];
    const uint64_t n = (uint64_t)a->width * (a->rows == SH_ROWS_OUT ? slot->step.n_outputs : slot->step.n_rows);
    struct sh_kept *kept = &slot->kept[activation];
    if (n > kept->capacity || kept->values == NULL) {
        free(kept->values);
        kept->capacity = 0;
        kept->values = sh_calloc(n + 1, sizeof *kept->values);
        if (kept->values == NULL) return NULL;
        kept->capacity = n;
    }
    if (n > 0) memcpy(kept->values, values, n * sizeof *values);
    return kept->values;
}

static bool device_goes_on(const struct sh_model *m, uint32_t segment) {
    for (uint32_t t = segment + 1; t < m->n_segments; t++)
        if (m->segments[t].device == m->segments[segment].device) return true;
    return false;
}

static enum sh_code keep_segment_results(struct sh_context *c, struct sh_slot *slot, const struct sh_step_result *result,
                                         struct sh_error *err) {
    const struct sh_segment *segment = &c->model->segments[slot->segment];
    bool complete = true;
    for (uint32_t i = 0; i < segment->n_outputs && complete; i++) {
        const uint32_t a = segment->outputs[i];
        slot->made[a] = result->outputs[i];
        if (!c->model->outlives[slot->segment][i] || result->outputs[i] == NULL) continue;
        slot->made[a] = keep(c, slot, a, result->outputs[i]);
        complete = slot->made[a] != NULL;
    }
    uint32_t n = 0;
    const bool copied = c->n_capture > 0 && device_goes_on(c->model, slot->segment);
    for (uint32_t i = 0; i < c->n_capture && complete; i++) {
        if (c->capture_segment[i] != slot->segment) continue;
        slot->captured[i] = result->captured[n++];
        if (!copied || slot->captured[i] == NULL) continue;
        slot->captured[i] = keep(c, slot, c->capture[i], slot->captured[i]);
        complete = slot->captured[i] != NULL;
    }
    return complete ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for activations on their way between devices");
}

static int64_t remaining(int64_t timeout_ns, uint64_t begun) {
    if (timeout_ns < 0) return -1;
    const uint64_t passed = sh_now_ns() - begun;
    return passed >= (uint64_t)timeout_ns ? 0 : timeout_ns - (int64_t)passed;
}

/* Runs the rest of the segments. *result is the last one's. */
static enum sh_code run_segments(struct sh_context *c, struct sh_slot *slot, int64_t timeout_ns, struct sh_step_result *result,
                                 struct sh_error *err) {
    const uint64_t begun = sh_now_ns();
    for (;;) {
        *result = (struct sh_step_result){0};
        const uint32_t device = c->model->segments[slot->segment].device;
        enum sh_code code = sh_context_executor(c, device)->wait(c->exec[device], (uint32_t)(slot - c->slots),
                                                                 remaining(timeout_ns, begun), result, err);
        if (code != SH_OK) return code;
        if (slot->poisoned) {
            if (err != NULL) *err = slot->error;
            return slot->error.code;
        }
        code = keep_segment_results(c, slot, result, err);
        if (code != SH_OK) return code;
        if (slot->segment + 1 == c->model->n_segments) return SH_OK;
        slot->segment++;
        code = sh_slot_start_segment(c, slot, err);
        if (code != SH_OK) return code;
    }
}

/* ---- results ---- */

/* Tokens that the next step took from this one on the device get known to its sequences' histories. */
static void tell_next_step(struct sh_context *c, const struct sh_slot *slot) {
    const struct sh_slot *next = &c->slots[(slot->ticket + 1) % SH_SLOTS];
    if (next->state != SH_SLOT_RUNNING || next->ticket != slot->ticket + 1) return;
    for (uint32_t i = 0; i < next->step.n_rows; i++) {
        const struct sh_step_row *row = &next->rows[i];
        if (row->sampled_from == SH_NONE) continue;
        c->sequences[next->sequence_ids[row->sequence]].tokens[row->position] = slot->tokens[row->sampled_from];
    }
}

/* A failure is that row's: others of the step are none the worse for it. */
static enum sh_code sample_on_host(struct sh_context *c, const struct sh_wanted *w, const float *logits, int32_t *token) {
    const struct sh_sequence *s = &c->sequences[w->sequence];
    const struct sh_token_history history = {.tokens = s->tokens, .roles = s->roles, .count = w->position + 1};
    struct sh_error local;
    const enum sh_code code = sh_sampler_pick(s->sampler, logits, w->mask, &history, w->position + 1, token, &local);
    if (code == SH_OK) return SH_OK;
    *token = -1;
    sh_log(SH_LOG_WARNING, "sequence %u: %s", w->sequence, local.message);
    return code;
}

/* Takes the row's hidden state in, and writes what is pooled so far. Rows come in order of position. */
static void pool_row(const struct sh_context *c, struct sh_sequence *s, uint32_t position, const float *hidden, float *pooled) {
    const uint32_t n = c->model->spec.n_embd;
    if (s->pooling == SH_POOL_LAST) {
        memcpy(pooled, hidden, n * sizeof *pooled);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const double value = (double)hidden[i];
        if (position == 0) s->pool[i] = value;
        else if (s->pooling == SH_POOL_MEAN) s->pool[i] += value;
        pooled[i] = (float)(s->pooling == SH_POOL_MEAN ? s->pool[i] / ((double)position + 1) : s->pool[i]);
    }
}

/* After everything that can fail: what is taken into a pool is not taken out again. */
static void pool_results(struct sh_context *c, struct sh_slot *slot, const struct sh_step_result *result) {
    float *pooled = slot->pooled;
    for (uint32_t i = 0; i < slot->step.n_outputs; i++) {
        const struct sh_wanted *w = &slot->wanted[i];
        if ((w->outputs & SH_OUT_POOLED) == 0) continue;
        pool_row(c, &c->sequences[w->sequence], w->position, result->hidden[i], pooled);
        slot->results[i].pooled = pooled;
        pooled += c->model->spec.n_embd;
    }
}

static void make_results(struct sh_context *c, struct sh_slot *slot, const struct sh_step_result *result) {
    const uint32_t n_vocab = c->model->spec.n_vocab;
    struct sh_top *top = slot->tops;
    for (uint32_t i = 0; i < slot->step.n_outputs; i++) {
        const struct sh_wanted *w = &slot->wanted[i];
        struct sh_result *r = &slot->results[i];
        *r = (struct sh_result){.row = slot->outputs[i].row, .sequence = w->sequence, .position = w->position, .token = -1};
        if (slot->outputs[i].sample) {
            r->token = result->tokens[i];
            if (r->token < 0) r->code = SH_ERR_DEVICE;
        }
        if (w->host_sample) r->code = sample_on_host(c, w, result->logits[i], &r->token);
        slot->tokens[i] = r->token;
        if ((w->outputs & SH_OUT_LOGPROBS) != 0) {
            sh_logprobs(result->logits[i], n_vocab, r->token, &r->logprob, top, w->n_top);
            r->top = top;
            r->n_top = w->n_top;
            top += w->n_top;
        }
        if ((w->outputs & SH_OUT_LOGITS) != 0) r->logits = result->logits[i];
        if ((w->outputs & SH_OUT_HIDDEN) != 0) r->hidden = result->hidden[i];
    }
    pool_results(c, slot, result);
    slot->n_results = slot->step.n_outputs;
}

/* ---- the end ---- */

/* Does the step in `next` build on the one in `slot`? */
static bool builds_on(const struct sh_context *c, const struct sh_slot *next, uint32_t slot) {
    for (uint32_t i = 0; i < next->step.n_rows; i++)
        if (next->rows[i].sampled_from != SH_NONE) return true;
    for (uint32_t q = 0; q < next->step.n_sequences; q++)
        if (c->sequences[next->sequence_ids[q]].fall_back[slot] != SH_NONE) return true;
    return false;
}

static void undo(struct sh_context *c, struct sh_slot *slot) {
    const uint32_t index = (uint32_t)(slot - c->slots), other = 1 - index;
    struct sh_slot *next = &c->slots[other];
    if (next->state == SH_SLOT_RUNNING && next->ticket == slot->ticket + 1 && !next->poisoned && builds_on(c, next, index)) {
        next->poisoned = true;
        next->error = slot->error;
    }
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        struct sh_sequence *s = &c->sequences[slot->sequence_ids[q]];
        if (s->fall_back[index] == SH_NONE) continue; /* an earlier step's failure took it further back */
        sh_sequence_fall_back(c, s, index);
    }
    slot->step.n_outputs = 0;
    slot->n_results = 0;
    slot->n_captured = 0;
}

_Static_assert(SH_SLOTS == 2, "undo knows one other slot");

/* The step is over for its sequences. */
static void let_go(struct sh_context *c, struct sh_slot *slot, bool well) {
    const uint32_t index = (uint32_t)(slot - c->slots);
    for (uint32_t q = 0; q < slot->step.n_sequences; q++)
        sh_sequence_let_go(c, &c->sequences[slot->sequence_ids[q]], index, well);
    sh_context_update_stats(c);
}

/* Its results are given out: sequences that were destroyed meanwhile go, unless the other slot has some of theirs too. */
static void give_out(struct sh_context *c, struct sh_slot *slot) {
    const uint32_t index = (uint32_t)(slot - c->slots);
    slot->state = SH_SLOT_IDLE;
    c->oldest++;
    for (uint32_t q = 0; q < slot->step.n_sequences; q++) {
        struct sh_sequence *s = &c->sequences[slot->sequence_ids[q]];
        s->held &= ~(1u << index);
        if (s->closing && s->held == 0) sh_sequence_free(c, s);
    }
    sh_context_update_stats(c);
}

enum sh_code sh_slot_finish(struct sh_context *c, struct sh_slot *slot, int64_t timeout_ns, struct sh_error *err) {
    struct sh_step_result result;
    struct sh_error failure = {0};
    const enum sh_code code = run_segments(c, slot, timeout_ns, &result, &failure);
    if (code == SH_ERR_TIMEOUT) return sh_fail(err, code, "ticket %llu is not finished yet", (unsigned long long)slot->ticket);
    slot->code = code;
    slot->state = SH_SLOT_FINISHED;
    slot->step_ns = sh_now_ns() - slot->begun_ns;
    if (code == SH_OK) {
        make_results(c, slot, &result);
        tell_next_step(c, slot);
    } else {
        failure.code = code;
        slot->error = failure;
        c->lost = c->lost || code == SH_ERR_DEVICE_LOST;
        undo(c, slot);
        if (c->lost) sh_prefix_drop_idle(&c->prefix);
        if (err != NULL) *err = failure;
    }
    let_go(c, slot, code == SH_OK);
    return code;
}

enum sh_code sh_context_settle(struct sh_context *c, struct sh_sequence *s, struct sh_error *err) {
    enum sh_code first = SH_OK;
    for (sh_ticket t = c->oldest; t < c->next_ticket && s->in_flight != 0;
         t++) { /* in order: a later step may need the earlier one */
        struct sh_slot *slot = &c->slots[t % SH_SLOTS];
        if (slot->state != SH_SLOT_RUNNING) continue;
        const enum sh_code code = sh_slot_finish(c, slot, -1, first == SH_OK ? err : NULL);
        if (first == SH_OK) first = code;
    }
    return first;
}

enum sh_code sh_wait(struct sh_context *c, sh_ticket ticket, int64_t timeout_ns, struct sh_results *results,
                     struct sh_error *err) {
    *results = (struct sh_results){0};
    if (ticket < c->oldest || ticket >= c->next_ticket)
        return sh_fail(err, SH_ERR_INVALID, "ticket %llu is not in flight", (unsigned long long)ticket);
    if (ticket > c->oldest)
        return sh_fail(err, SH_ERR_INVALID, "ticket %llu is waited for before ticket %llu", (unsigned long long)ticket,
                       (unsigned long long)c->oldest);
    struct sh_slot *slot = &c->slots[ticket % SH_SLOTS];
    if (slot->state == SH_SLOT_RUNNING && sh_slot_finish(c, slot, timeout_ns, err) == SH_ERR_TIMEOUT) return SH_ERR_TIMEOUT;
    give_out(c, slot);
    if (slot->code != SH_OK) {
        if (err != NULL) *err = slot->error;
        return slot->code;
    }
    *results = (struct sh_results){.items = slot->results, .count = slot->n_results, .step_ns = slot->step_ns};
    return SH_OK;
}
