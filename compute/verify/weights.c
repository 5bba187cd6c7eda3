/* Gate WEIGHTS: a program of one EMBED per tensor makes the device dequantise it row by row. */
#include "compute/gguf/quant.h"
#include "compute/verify/verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ROWS 64
#define PAGES (ROWS / SH_PAGE_TOKENS)
#define DEFAULT_ELEMENTS (16u << 20)
#define SMALLEST_NORMAL 1.1754943508222875e-38 /* a device may flush what is below */

struct check {
    struct sh_verifier *v;
    const struct sh_tensor *tensor;
    uint64_t rows, row_bytes;
    struct sh_program program;
    struct sh_activation activation;
    struct sh_weight weight;
    struct sh_op op;
    struct sh_segment segment;
    struct sh_exec_model *model;
    struct sh_exec_context *context;
    uint8_t *data;             /* [ROWS] rows of the file */
    float *expected;           /* [cols] */
    struct sh_worst *worst;
};

static const struct sh_executor *executor(const struct check *c) { return c->v->params->device->executor; }

static void describe(struct check *c) {
    const struct sh_tensor *t = c->tensor;
    c->activation = (struct sh_activation){.name = "row", .width = (uint32_t)t->dims[0]};
    c->weight = (struct sh_weight){.type = t->type, .cols = t->dims[0], .rows = c->rows, .tensor = t, .gguf = c->v->gguf};
    snprintf(c->weight.name, sizeof c->weight.name, "%.63s", t->name);
    c->op = (struct sh_op){.kind = SH_OP_EMBED, .x = SH_NONE, .y = SH_NONE, .z = SH_NONE, .u = SH_NONE, .t = SH_NONE,
                           .residual = SH_NONE, .bias = SH_NONE, .embed = SH_EMBED_TOKEN};
    c->program = (struct sh_program){.activations = &c->activation,
                                     .n_activations = 1,
                                     .weights = &c->weight,
                                     .n_weights = 1,
                                     .ops = &c->op,
                                     .n_ops = 1,
                                     .n_layers = 1,
                                     .n_embd = c->activation.width,
                                     .n_vocab = (uint32_t)c->rows,
                                     .context_length = ROWS,
                                     .hidden = SH_NONE,
                                     .logits = SH_NONE};
    c->segment = (struct sh_segment){.program = &c->program, .n_ops = 1, .n_outputs = 1};
}

static enum sh_code read_rows(struct check *c, uint64_t row, uint64_t n, struct sh_error *err) {
    return sh_gguf_read(c->v->gguf, c->tensor, row * c->row_bytes, c->data, n * c->row_bytes, err);
}

static enum sh_code load(struct check *c, struct sh_error *err) {
    const struct sh_executor *e = executor(c);
    enum sh_code code = e->model_create(c->v->params->device, &c->segment, 1, &c->model, err);
    for (uint64_t row = 0; row < c->rows && code == SH_OK; row += ROWS) {
        const uint64_t n = sh_min_u64(ROWS, c->rows - row);
        code = read_rows(c, row, n, err);
        if (code == SH_OK) code = e->weight_rows(c->model, 0, row, n, c->data, err);
    }
    if (code == SH_OK) code = e->model_finish(c->model, err);
    const struct sh_exec_context_params params = {
        .kv_type = SH_KV_F32, .max_rows = ROWS, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = PAGES};
    if (code == SH_OK) code = e->context_create(c->model, &params, &c->context, err);
    return code;
}

static void compare_row(struct check *c, uint64_t row, const uint8_t *stored, const float *found) {
    const uint64_t cols = c->tensor->dims[0];
    SH_ASSERT(sh_dequantize(c->tensor->type, stored, c->expected, cols));
    for (uint64_t i = 0; i < cols; i++) {
        const double a = (double)found[i], b = (double)c->expected[i];
        const bool same = a == b || (isnan(a) && isnan(b)) || fabs(a - b) < SMALLEST_NORMAL;
        if (sh_worst_note(c->worst, same ? 0 : fabs(a - b)) && !same)
            snprintf(c->worst->where, sizeof c->worst->where, "%.64s, row %llu, element %llu: %.9g, expected %.9g", c->tensor->name,
                     (unsigned long long)row, (unsigned long long)i, a, b);
    }
}

static enum sh_code compare_rows(struct check *c, struct sh_error *err) {
    const struct sh_executor *e = executor(c);
    enum sh_code code = SH_OK;
    for (uint64_t row = 0; row < c->rows && code == SH_OK; row += ROWS) {
        const uint32_t n = (uint32_t)sh_min_u64(ROWS, c->rows - row);
        struct sh_step_row rows[ROWS];
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct sh_step_row){.token = (int32_t)(row + i), .sampled_from = SH_NONE, .position = i};
        const struct sh_step_sequence sequence = {.n_rows = n, .n_pages = PAGES}; /* pages of no group */
        const struct sh_step step = {.rows = rows, .n_rows = n, .sequences = &sequence, .n_sequences = 1};
        struct sh_step_result result = {0};
        code = read_rows(c, row, n, err);
        if (code == SH_OK) code = e->submit(c->context, 0, 0, &step, err);
        if (code == SH_OK) code = e->wait(c->context, 0, -1, &result, err);
        for (uint32_t i = 0; i < n && code == SH_OK; i++)
            compare_row(c, row + i, c->data + i * c->row_bytes, result.outputs[0] + (size_t)i * c->tensor->dims[0]);
    }
    return code;
}

static enum sh_code check_tensor(struct sh_verifier *v, const struct sh_tensor *t, struct sh_worst *worst, struct sh_error *err) {
    struct check c = {.v = v, .tensor = t, .worst = worst};
    c.rows = t->dims[1] * t->dims[2] * t->dims[3];
    c.row_bytes = sh_type_row_bytes(t->type, t->dims[0]);
    c.data = sh_alloc_aligned(ROWS * c.row_bytes);
    c.expected = sh_calloc(t->dims[0], sizeof *c.expected);
    enum sh_code code = SH_OK;
    if (c.data == NULL || c.expected == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to compare tensor '%s'", t->name);
    if (code == SH_OK) {
        describe(&c);
        code = load(&c, err);
    }
    if (code == SH_OK) code = compare_rows(&c, err);
    if (c.context != NULL) executor(&c)->context_destroy(c.context);
    if (c.model != NULL) executor(&c)->model_destroy(c.model);
    free(c.data);
    free(c.expected);
    return code;
}

static bool is_matrix_of(const struct sh_tensor *t, uint32_t type) { return t->type == type && t->dims[1] > 1; }

/* Tensors of one type, spread evenly over the file's order, until they hold enough elements. */
static enum sh_code check_type(struct sh_verifier *v, uint32_t type, uint64_t n_tensors, uint64_t n_elements, struct sh_error *err) {
    const uint64_t want = v->params->weight_elements != 0 ? v->params->weight_elements : DEFAULT_ELEMENTS;
    const uint64_t mean = sh_max_u64(1, n_elements / n_tensors), pick = sh_min_u64(n_tensors, (want + mean - 1) / mean);
    struct sh_worst worst = {0};
    enum sh_code code = SH_OK;
    uint64_t seen = 0, picked = 0;
    for (uint64_t i = 0; i < sh_gguf_tensor_count(v->gguf) && code == SH_OK; i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(v->gguf, i);
        if (!is_matrix_of(t, type)) continue;
        if (seen++ != picked * n_tensors / pick) continue;
        picked++;
        code = check_tensor(v, t, &worst, err);
        if (code == SH_OK) code = sh_verify_progress(v, SH_VERIFY_WEIGHTS, (double)i / (double)sh_gguf_tensor_count(v->gguf), err);
        if (picked == pick) break;
    }
    if (code == SH_OK)
        sh_verify_report(v, (struct sh_verify_line){.gate = SH_VERIFY_WEIGHTS,
                                                    .subject = sh_type_info(type)->name,
                                                    .checked = worst.checked,
                                                    .unit = "elements",
                                                    .worst = worst.value,
                                                    .limit = 0,
                                                    .measure = "absolute",
                                                    .where = worst.where});
    return code;
}

enum sh_code sh_verify_weights(struct sh_verifier *v, struct sh_error *err) {
    enum { TYPES = 64 };
    uint64_t tensors[TYPES] = {0}, elements[TYPES] = {0};
    for (uint64_t i = 0; i < sh_gguf_tensor_count(v->gguf); i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(v->gguf, i);
        const struct sh_type_info *info = sh_type_info(t->type);
        if (t->type >= TYPES || info == NULL || !info->computable || !is_matrix_of(t, t->type)) continue;
        tensors[t->type]++;
        elements[t->type] += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
    enum sh_code code = SH_OK;
    for (uint32_t type = 0; type < TYPES && code == SH_OK; type++)
        if (tensors[type] > 0) code = check_type(v, type, tensors[type], elements[type], err);
    return code;
}
