/*
 * embedding.c - a request for vectors on a runner: texts in, one vector of length 1 for each. Texts share steps with each other, with
 * those of other requests and with generations. A decoder's texts may be cut into chunks; an encoder's enter whole. The rows that the pooling
 * takes in ask for the pooled output, and the text's last row has the one that counts.
 */
#include "daemon/scheduler_private.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <math.h>
#include <stdlib.h>

struct text {
    uint32_t first, length; /* tokens of the prompt */
    uint32_t sent;          /* of them submitted */
    uint32_t sequence;
    bool has_sequence;
};

struct texts {
    struct text *items;      /* [n_texts] */
    enum sh_pooling pooling; /* never NONE */
    uint32_t next;           /* the first that is not done */
    bool one_by_one;         /* there are not pages for several at once */
    uint32_t dimensions;
};

enum sh_code embedding_check(const struct runner *r, const struct gen_params *p, struct sh_error *err) {
    if (p->dimensions > r->info.n_embd)
        return sh_fail(err, SH_ERR_INVALID, "%u dimensions are wanted, the vectors of %s have %u", p->dimensions, r->params.id,
                       r->info.n_embd);
    uint32_t most = r->info.context_length;
    if (r->info.encoder && r->max_outputs < most) most = r->max_outputs; /* one step */
    for (uint32_t i = 0; i < p->n_texts; i++)
        if (p->text_lengths[i] > most)
            return sh_fail(err, SH_ERR_LIMIT,
                           "text %u of %u has %u tokens, %s takes at most %u at once: shorten it, or cut it into parts", i + 1,
                           p->n_texts, p->text_lengths[i], r->params.id, most);
    return SH_OK;
}

/* SH_ERR_LIMIT: there is no sequence for it now. */
static enum sh_code begin_text(struct run *run, struct text *text, struct sh_error *err) {
    struct runner *r = run->runner;
    if (text->has_sequence) return SH_OK;
    const enum sh_code code = sh_sequence_create(r->context, &text->sequence, err);
    if (code) return code;
    text->has_sequence = true;
    r->seats[text->sequence] = (struct seat){.run = run};
    return sh_sequence_set_pooling(r->context, text->sequence, run->texts->pooling, err);
}

static void drop_text(struct run *run, struct text *text) {
    if (!text->has_sequence) return;
    run->runner->seats[text->sequence] = (struct seat){0};
    sh_sequence_destroy(run->runner->context, text->sequence);
    text->has_sequence = false;
}

/* Whether row k of a text asks for the pooled output, and how many of the next `take` rows do. */
static bool asks(const struct texts *texts, const struct text *text, uint32_t k) {
    return texts->pooling == SH_POOL_MEAN || k == 0 || k + 1 == text->length;
}

static uint32_t count_asking(const struct texts *texts, const struct text *text, uint32_t take) {
    uint32_t count = 0;
    for (uint32_t k = text->sent; k < text->sent + take; k++) count += asks(texts, text, k);
    return count;
}

/* How many rows of the text the step takes: of an encoder's all or none. */
static uint32_t rows_of(const struct run *run, const struct step *step, const struct text *text, uint32_t room) {
    const struct runner *r = run->runner;
    const uint32_t outputs = r->max_outputs - step->n_outputs;
    uint32_t take = text->length - text->sent;
    if (take > room) take = r->info.encoder ? 0 : room;
    if (run->texts->pooling == SH_POOL_MEAN && take > outputs && !r->info.encoder) take = outputs;
    return count_asking(run->texts, text, take) > outputs ? 0 : take;
}

/* What is left of the first text that is not done, and of those behind it as far as they fit: a text begins when the one before is submitted whole. */
enum sh_code embedding_rows(struct run *run, struct step *step, uint32_t room, struct sh_error *err) {
    struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    struct texts *texts = run->texts;
    const uint32_t most = r->params.context.max_batch_rows - step->n_rows, end = step->n_rows + room;
    for (uint32_t i = texts->next; i < p->n_texts; i++) {
        struct text *text = &texts->items[i];
        if (text->sent == text->length) continue;
        if (texts->one_by_one && i > texts->next) return SH_OK;
        /* An encoder's text that is longer than the steps should be has to be computed nevertheless. */
        const bool alone = r->info.encoder && step->n_rows == 0;
        const uint32_t take = rows_of(run, step, text, alone ? most : step->n_rows < end ? end - step->n_rows : 0);
        if (take == 0) return SH_OK;
        struct sh_error full;
        enum sh_code code = begin_text(run, text, &full);
        if (code == SH_ERR_LIMIT) return SH_OK;
        if (code) {
            if (err) *err = full;
            return code;
        }
        struct part *part = batch_part(step, run, NULL, i);
        for (uint32_t k = text->sent; k < text->sent + take; k++) {
            struct sh_row *row = batch_add(r, step, text->sequence, k);
            row->input = SH_INPUT_TOKEN;
            row->role = SH_ROLE_PROMPT;
            row->token = p->prompt[text->first + k];
            if (!asks(texts, text, k)) continue;
            row->outputs = SH_OUT_POOLED;
            step->n_outputs++;
        }
        part->n_rows = take;
        if (text->sent + take < text->length) return SH_OK;
    }
    return SH_OK;
}

void embedding_submitted(struct run *run, const struct part *part) {
    run->texts->items[part->text].sent += part->n_rows;
    runner_count_prompt(run->runner, part->n_rows);
}

/* The first `dimensions` numbers, brought to length 1. False: they are not numbers. */
static bool normalise(const float *in, uint32_t dimensions, float *out) {
    double sum = 0;
    for (uint32_t i = 0; i < dimensions; i++) sum += (double)in[i] * (double)in[i];
    if (!isfinite(sum)) return false;
    const double scale = sum > 0 ? 1 / sqrt(sum) : 0;
    for (uint32_t i = 0; i < dimensions; i++) out[i] = (float)((double)in[i] * scale);
    return true;
}

static enum sh_code finish_text(struct run *run, uint32_t index, const float *pooled, struct sh_error *err) {
    const uint32_t dimensions = run->texts->dimensions;
    struct gen_event event = {.kind = GEN_EVENT_EMBEDDING, .choice = index, .token = -1, .stop_index = -1};
    event.vector = sh_calloc(dimensions, sizeof *event.vector);
    event.n_vector = dimensions;
    event.text = strdup("");
    if (!event.vector || !event.text) {
        gen_event_finish(&event);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a vector of %u numbers", dimensions);
    }
    if (!normalise(pooled, dimensions, event.vector)) {
        gen_event_finish(&event);
        return sh_fail(err, SH_ERR_DEVICE, "the vector of text %u is not of numbers: the model's weights or the device are at fault",
                       index + 1);
    }
    gen_push(run->g, &event);
    const char *const labels[] = {run->runner->params.id};
    metric_add(METRIC_EMBEDDINGS, labels, 1);
    return SH_OK;
}

/* Texts are done in their order, since that is how they are submitted. */
enum sh_code embedding_take_result(struct run *run, const struct sh_result *result, struct sh_error *err) {
    struct texts *texts = run->texts;
    struct text *text = &texts->items[texts->next];
    if (!text->has_sequence || result->sequence != text->sequence || result->position + 1 != text->length)
        return SH_OK; /* its text goes on */
    const enum sh_code code = finish_text(run, texts->next, result->pooled, err);
    if (code) return code;
    drop_text(run, text);
    if (++texts->next < run->g->params.n_texts) return SH_OK;
    pthread_mutex_lock(&run->g->lock);
    run->g->usage.prefill_ns = sh_now_ns() - run->start_ns;
    pthread_mutex_unlock(&run->g->lock);
    run_over(run, SH_OK, NULL);
    return SH_OK;
}

void embedding_restart(struct run *run) {
    struct texts *texts = run->texts;
    for (uint32_t i = texts->next; i < run->g->params.n_texts; i++) {
        drop_text(run, &texts->items[i]);
        texts->items[i].sent = 0;
    }
}

bool embedding_shrink(struct run *run) {
    struct texts *texts = run->texts;
    bool any = false;
    for (uint32_t i = texts->next + 1; i < run->g->params.n_texts; i++) {
        any = any || texts->items[i].has_sequence;
        drop_text(run, &texts->items[i]);
        texts->items[i].sent = 0;
    }
    texts->one_by_one = true;
    return any;
}

enum sh_code embedding_begin(struct run *run, struct sh_error *err) {
    const struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    struct texts *texts = run->texts = sh_calloc(1, sizeof *run->texts);
    if (!texts) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    texts->pooling = r->info.pooling;
    if (texts->pooling == SH_POOL_NONE) texts->pooling = r->info.encoder ? SH_POOL_MEAN : SH_POOL_LAST;
    texts->dimensions = p->dimensions ? p->dimensions : r->info.n_embd;
    texts->items = sh_calloc(p->n_texts, sizeof *texts->items);
    if (!texts->items) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    for (uint32_t i = 0, at = 0; i < p->n_texts; at += p->text_lengths[i++])
        texts->items[i] = (struct text){.first = at, .length = p->text_lengths[i]};
    return begin_text(run, &texts->items[0], err); /* others as there are sequences */
}

void embedding_end(struct run *run) {
    struct texts *texts = run->texts;
    if (!texts) return;
    for (uint32_t i = 0; texts->items && i < run->g->params.n_texts; i++) drop_text(run, &texts->items[i]);
    free(texts->items);
    free(texts);
}
