#include "compute/verify/reference.h"
#include "compute/model/build_model.h"
#include "compute/model/stream.h"

#include <stdlib.h>

/* An op as a segment: what it reads comes in, what it makes goes out. */
static struct sh_segment segment_of(const struct sh_program *p, uint32_t index) {
    struct sh_segment s = {.program = p, .first_op = index, .n_ops = 1};
    uint32_t reads[SH_OP_READS];
    sh_op_reads(&p->ops[index], reads);
    for (int i = 0; i < SH_OP_READS; i++) {
        bool known = reads[i] == SH_NONE;
        for (uint32_t k = 0; k < s.n_inputs && !known; k++) known = s.inputs[k] == reads[i];
        if (!known) s.inputs[s.n_inputs++] = reads[i];
    }
    s.outputs[s.n_outputs++] = p->ops[index].out;
    return s;
}

_Static_assert(SH_OP_READS <= SH_BOUNDARY_MAX, "all inputs of an op may cross a cut");

static enum sh_code stream_weights(struct sh_reference *r, const uint32_t *list, uint32_t n, struct sh_error *err) {
    struct sh_weight_stream *stream;
    enum sh_code code = sh_weight_stream_open(r->program, list, n, &stream, err);
    while (code == SH_OK) {
        struct sh_piece piece;
        code = sh_weight_stream_next(stream, &piece, err);
        if (code != SH_OK || piece.weight == SH_NONE) break;
        code = r->device->executor->weight_rows(r->model, piece.weight, piece.row0, piece.n_rows, piece.data, err);
    }
    sh_weight_stream_close(stream);
    return code;
}

static enum sh_code load_weights(struct sh_reference *r, struct sh_error *err) {
    const struct sh_program *p = r->program;
    uint32_t *list = sh_calloc(p->n_weights, sizeof *list), *wanted = NULL, n_wanted = 0, n = 0;
    if (list == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of weights");
    enum sh_code code = sh_segment_weights(r->segments, p->n_ops, &wanted, &n_wanted, err);
    for (uint32_t i = 0; i < n_wanted && code == SH_OK; i++) {
        const struct sh_weight *w = &p->weights[wanted[i]];
        if (w->constant == NULL) list[n++] = wanted[i];
        else code = r->device->executor->weight_rows(r->model, wanted[i], 0, w->rows, w->constant, err);
    }
    if (code == SH_OK && n > 0) code = stream_weights(r, list, n, err);
    if (code == SH_OK) code = r->device->executor->model_finish(r->model, err);
    free(wanted);
    free(list);
    return code;
}

static uint32_t pages_for(uint32_t rows) { return (rows + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS; }

static enum sh_code make_context(struct sh_reference *r, struct sh_error *err) {
    const struct sh_executor *e = r->device->executor;
    const struct sh_exec_context_params params = {
        .kv_type = SH_KV_F32,
        .max_rows = r->max_rows,
        .max_outputs = r->max_rows,
        .max_sequences = 1,
        .max_pages_per_sequence = pages_for(r->max_rows),
    };
    enum sh_code code = e->context_create(r->model, &params, &r->context, err);
    for (uint32_t g = 0; g < r->program->n_groups && code == SH_OK; g++)
        code = e->pool_reserve(r->context, g, pages_for(r->max_rows), err);
    return code;
}

enum sh_code sh_reference_open(struct sh_device *device, const struct sh_gguf *g, const struct sh_model_params *params,
                               uint32_t max_rows, struct sh_reference **out, struct sh_error *err) {
    struct sh_reference *r = sh_calloc(1, sizeof *r);
    if (r == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the reference");
    r->device = device;
    r->max_rows = max_rows;
    enum sh_code code = sh_model_build(g, params, NULL, &r->spec, &r->program, err);
    if (code == SH_OK) {
        r->segments = sh_calloc(r->program->n_ops, sizeof *r->segments);
        r->made = sh_calloc(r->program->n_activations, sizeof *r->made);
        if (r->segments == NULL || r->made == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the reference");
    }
    for (uint32_t i = 0; code == SH_OK && i < r->program->n_ops; i++) r->segments[i] = segment_of(r->program, i);
    if (code == SH_OK) code = device->executor->model_create(device, r->segments, r->program->n_ops, &r->model, err);
    if (code == SH_OK) code = load_weights(r, err);
    if (code == SH_OK) code = make_context(r, err);
    if (code != SH_OK) {
        sh_reference_close(r);
        return code;
    }
    *out = r;
    return SH_OK;
}

void sh_reference_close(struct sh_reference *r) {
    if (r == NULL) return;
    if (r->context != NULL) r->device->executor->context_destroy(r->context);
    if (r->model != NULL) r->device->executor->model_destroy(r->model);
    for (uint32_t a = 0; r->made != NULL && a < r->program->n_activations; a++) free(r->made[a]);
    free(r->made);
    free(r->segments);
    sh_program_destroy(r->program);
    free(r);
}

/* Rows, pages and outputs of the prompt; `pages` of every group, whatever its kind. */
struct prompt {
    struct sh_step_row *rows;
    struct sh_step_output *outputs;
    uint32_t *pages;        /* 0, 1, 2, ... */
    const uint32_t **lists; /* [n_groups] */
};

static bool fill_prompt(const struct sh_reference *r, const int32_t *tokens, uint32_t n, struct prompt *p) {
    static const uint32_t state_pages[2] = {SH_NONE, 0}; /* recurrent: from nothing into the first */
    const struct sh_program *program = r->program;
    p->rows = sh_calloc(n, sizeof *p->rows);
    p->outputs = sh_calloc(n, sizeof *p->outputs);
    p->pages = sh_calloc(pages_for(n), sizeof *p->pages);
    p->lists = sh_calloc(program->n_groups, sizeof *p->lists);
    if (p->rows == NULL || p->outputs == NULL || p->pages == NULL || p->lists == NULL) return false;
    for (uint32_t i = 0; i < n; i++) {
        p->rows[i] = (struct sh_step_row){.token = tokens[i], .sampled_from = SH_NONE, .position = i, .role = SH_ROLE_PROMPT};
        p->outputs[i] = (struct sh_step_output){.row = i};
    }
    for (uint32_t i = 0; i < pages_for(n); i++) p->pages[i] = i;
    for (uint32_t g = 0; g < program->n_groups; g++)
        p->lists[g] = program->groups[g].kind == SH_STATE_RECURRENT ? state_pages : p->pages;
    return true;
}

static void free_prompt(struct prompt *p) {
    free(p->rows);
    free(p->outputs);
    free(p->pages);
    free(p->lists);
}

enum sh_code sh_reference_run(struct sh_reference *r, uint32_t index, const int32_t *tokens, uint32_t n_rows, struct sh_error *err) {
    const struct sh_executor *e = r->device->executor;
    const struct sh_segment *segment = &r->segments[index];
    const uint32_t out = segment->outputs[0];
    const size_t bytes = (size_t)n_rows * r->program->activations[out].width * sizeof(float);
    SH_ASSERT(n_rows > 0 && n_rows <= r->max_rows);
    struct prompt p = {0};
    if (r->made[out] == NULL) r->made[out] = malloc((size_t)r->max_rows * r->program->activations[out].width * sizeof(float));
    if (r->made[out] == NULL || !fill_prompt(r, tokens, n_rows, &p)) {
        free_prompt(&p);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a prompt of %u tokens", n_rows);
    }
    const struct sh_step_sequence sequence = {.n_rows = n_rows, .pages = p.lists, .n_pages = pages_for(n_rows)};
    struct sh_step step = {
        .rows = p.rows,
        .n_rows = n_rows,
        .sequences = &sequence,
        .n_sequences = 1,
        .outputs = p.outputs,
        .n_outputs = n_rows,
    };
    for (uint32_t i = 0; i < segment->n_inputs; i++) {
        SH_ASSERT(r->made[segment->inputs[i]] != NULL);
        step.inputs[i] = r->made[segment->inputs[i]];
    }
    struct sh_step_result result = {0};
    enum sh_code code = e->submit(r->context, 0, index, &step, err);
    if (code == SH_OK) code = e->wait(r->context, 0, -1, &result, err);
    if (code == SH_OK) memcpy(r->made[out], result.outputs[0], bytes);
    free_prompt(&p);
    return code;
}
