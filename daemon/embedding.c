/*
 * embedding.c - a request for vectors on a runner: texts in, one vector of length 1 for each. Several texts share a step where they
 * fit. A decoder's texts may be cut into chunks; an encoder's enter whole. The rows that the pooling takes in ask for the pooled
 * output, and the text's last row has the one that counts. One step at a time: the next one's rows do not wait for anything but the device.
 */
#include "daemon/scheduler_private.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <math.h>
#include <stdlib.h>

struct text {
    uint32_t first, length; /* tokens of the prompt */
    uint32_t sent, taken;   /* of them submitted, and to be submitted with the step that is being made */
    uint32_t sequence;
    bool has_sequence;
};

struct job {
    struct runner *r;
    struct generation *g;
    struct text *texts; /* [n_texts] */
    struct sh_row *rows;
    uint32_t max_rows, max_outputs; /* of a step: rows, and those among them that ask for an output */
    enum sh_pooling pooling;        /* never NONE */
    uint32_t next;       /* the first text that is not done */
    uint32_t max_shared; /* texts in one step */
    uint32_t dimensions;
};

/* What a context gives: 0 in the params is its default. */
static uint32_t outputs_of(const struct runner *r) {
    const struct sh_context_params *c = &r->params.context;
    const uint32_t outputs = c->max_outputs ? c->max_outputs : c->max_sequences > 64 ? c->max_sequences : 64;
    return outputs < c->max_batch_rows ? outputs : c->max_batch_rows;
}

enum sh_code embedding_check(const struct runner *r, const struct gen_params *p, struct sh_error *err) {
    if (p->dimensions > r->info.n_embd)
        return sh_fail(err, SH_ERR_INVALID, "%u dimensions are wanted, the vectors of %s have %u", p->dimensions, r->params.id,
                       r->info.n_embd);
    uint32_t most = r->info.context_length;
    if (r->info.encoder && outputs_of(r) < most) most = outputs_of(r); /* one step */
    for (uint32_t i = 0; i < p->n_texts; i++)
        if (p->text_lengths[i] > most)
            return sh_fail(err, SH_ERR_LIMIT,
                           "text %u of %u has %u tokens, %s takes at most %u at once: shorten it, or cut it into parts", i + 1,
                           p->n_texts, p->text_lengths[i], r->params.id, most);
    return SH_OK;
}

static enum sh_code begin_text(struct job *job, struct text *text, struct sh_error *err) {
    if (text->has_sequence) return SH_OK;
    enum sh_code code = sh_sequence_create(job->r->context, &text->sequence, err);
    if (code) return code;
    text->has_sequence = true;
    return sh_sequence_set_pooling(job->r->context, text->sequence, job->pooling, err);
}

static void drop_text(struct job *job, struct text *text) {
    if (text->has_sequence) sh_sequence_destroy(job->r->context, text->sequence);
    text->has_sequence = false;
}

/* Whether row k of a text asks for the pooled output, and how many of the next `take` rows do. */
static bool asks(const struct job *job, const struct text *text, uint32_t k) {
    return job->pooling == SH_POOL_MEAN || k == 0 || k + 1 == text->length;
}

static uint32_t count_asking(const struct job *job, const struct text *text, uint32_t take) {
    uint32_t count = 0;
    for (uint32_t k = text->sent; k < text->sent + take; k++) count += asks(job, text, k);
    return count;
}

/* The next step's rows: what is left of the first text that is not done, and of those behind it as far as they fit. */
static enum sh_code fill(struct job *job, uint32_t *n_rows, struct sh_error *err) {
    const struct gen_params *p = &job->g->params;
    uint32_t room = job->max_rows, outputs = job->max_outputs, n = 0;
    *n_rows = 0;
    if (job->r->chunk < room) room = job->r->chunk;
    const struct text *first = &job->texts[job->next];
    if (job->r->info.encoder && first->length > room) room = first->length; /* no more than max_rows: it was checked */
    for (uint32_t i = job->next; i < p->n_texts && i - job->next < job->max_shared; i++) {
        struct text *text = &job->texts[i];
        uint32_t take = text->length - text->sent;
        if (take > room - n && job->r->info.encoder) break;
        if (take > room - n) take = room - n;
        if (job->pooling == SH_POOL_MEAN && take > outputs && !job->r->info.encoder) take = outputs;
        const uint32_t asking = count_asking(job, text, take);
        if (take == 0 || asking > outputs) break;
        outputs -= asking;
        enum sh_code code = begin_text(job, text, err);
        if (code) return code;
        for (uint32_t k = text->sent; k < text->sent + take; k++) {
            job->rows[n++] = (struct sh_row){.sequence = text->sequence,
                                             .input = SH_INPUT_TOKEN,
                                             .role = SH_ROLE_PROMPT,
                                             .token = p->prompt[text->first + k],
                                             .position = k,
                                             .outputs = asks(job, text, k) ? SH_OUT_POOLED : 0};
        }
        text->taken = take;
    }
    *n_rows = n;
    return SH_OK;
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

static enum sh_code finish_text(struct job *job, uint32_t index, const float *pooled, struct sh_error *err) {
    struct gen_event event = {.kind = GEN_EVENT_EMBEDDING, .choice = index, .token = -1, .stop_index = -1};
    event.vector = sh_calloc(job->dimensions, sizeof *event.vector);
    event.n_vector = job->dimensions;
    event.text = strdup("");
    if (!event.vector || !event.text) {
        gen_event_finish(&event);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a vector of %u numbers", job->dimensions);
    }
    if (!normalise(pooled, job->dimensions, event.vector)) {
        gen_event_finish(&event);
        return sh_fail(err, SH_ERR_DEVICE, "the vector of text %u is not of numbers: the model's weights or the device are at fault",
                       index + 1);
    }
    gen_push(job->g, &event);
    const char *const labels[] = {job->r->params.id};
    metric_add(METRIC_EMBEDDINGS, labels, 1);
    return SH_OK;
}

static enum sh_code take_results(struct job *job, const struct sh_results *results, struct sh_error *err) {
    const struct gen_params *p = &job->g->params;
    for (uint32_t i = 0; i < results->count && job->next < p->n_texts; i++) {
        const struct sh_result *result = &results->items[i];
        struct text *text = &job->texts[job->next];
        if (result->sequence != text->sequence || result->position + 1 != text->length) continue; /* its text goes on */
        const enum sh_code code = finish_text(job, job->next, result->pooled, err);
        if (code) return code;
        drop_text(job, text);
        job->next++;
    }
    return SH_OK;
}

static enum sh_code step(struct job *job, struct sh_error *err) {
    struct runner *r = job->r;
    const struct gen_params *p = &job->g->params;
    uint32_t n_rows;
    sh_ticket ticket;
    enum sh_code code = fill(job, &n_rows, err);
    if (code == SH_OK) code = sh_submit(r->context, &(struct sh_batch){job->rows, n_rows}, &ticket, err);
    for (uint32_t i = job->next; i < p->n_texts && job->texts[i].taken > 0; i++) {
        if (code == SH_OK) job->texts[i].sent += job->texts[i].taken;
        job->texts[i].taken = 0;
    }
    if (code == SH_ERR_NO_PAGES && job->max_shared > 1) { /* one alone may have room */
        for (uint32_t i = job->next + 1; i < p->n_texts && job->texts[i].has_sequence; i++) drop_text(job, &job->texts[i]);
        job->max_shared = 1;
        return SH_OK;
    }
    if (code) return code;
    runner_count_prompt(r, n_rows);
    struct sh_results results = {0};
    code = sh_wait(r->context, ticket, -1, &results, err);
    runner_step_done(r, code == SH_OK ? n_rows : 0, results.step_ns);
    return code ? code : take_results(job, &results, err);
}

enum sh_code embedding_serve(struct runner *r, struct generation *g, struct sh_error *err) {
    const struct gen_params *p = &g->params;
    struct job job = {.r = r,
                      .g = g,
                      .max_rows = r->params.context.max_batch_rows,
                      .max_outputs = outputs_of(r),
                      .max_shared = r->params.context.max_sequences,
                      .pooling = r->info.pooling};
    if (job.pooling == SH_POOL_NONE) job.pooling = r->info.encoder ? SH_POOL_MEAN : SH_POOL_LAST;
    job.dimensions = p->dimensions ? p->dimensions : r->info.n_embd;
    job.texts = sh_calloc(p->n_texts, sizeof *job.texts);
    job.rows = sh_calloc(job.max_rows, sizeof *job.rows);
    enum sh_code code = job.texts && job.rows ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    for (uint32_t i = 0, at = 0; i < p->n_texts && code == SH_OK; at += p->text_lengths[i++])
        job.texts[i] = (struct text){.first = at, .length = p->text_lengths[i]};
    while (code == SH_OK && job.next < p->n_texts) code = runner_may_continue(r, g) ? step(&job, err) : SH_ERR_CANCELLED;
    for (uint32_t i = 0; job.texts && i < p->n_texts; i++) drop_text(&job, &job.texts[i]);
    free(job.texts);
    free(job.rows);
    return code;
}
