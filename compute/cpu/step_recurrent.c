/* Ops whose state goes from row to row. Items are (sequence, some channels or columns); a sequence's rows are taken in order, so that a
 * chunk's end cannot show. */
#include "compute/cpu/step.h"

#define CHANNELS 64 /* of a convolution or scan that one worker takes */
#define COLUMNS 64  /* of a delta net's head */

/* A state's pages hold this op's part here; before is NULL where there is none yet. */
static void find_state(const struct sh_cpu_step *s, const struct sh_op *op, uint32_t sequence, const float **before,
                       float **after) {
    const struct sh_cpu_pages *pages = &s->context->groups[op->state.group];
    const uint64_t at = pages->layer_bytes * (op->state.layer_in_group - pages->first_layer) + op->state.offset * sizeof(float);
    void *const *page = s->slot->pages + s->slot->sequences[sequence].first_page[op->state.group];
    *before = page[0] != NULL ? (const float *)(const void *)((const uint8_t *)page[0] + at) : NULL;
    *after = (float *)(void *)((uint8_t *)page[1] + at);
}

static const float *rows_at(const struct sh_cpu_step *s, uint32_t activation, uint32_t row) {
    return sh_step_buffer(s, activation) + (size_t)row * sh_step_width(s, activation);
}

static void conv_item(const struct sh_cpu_run *o, uint32_t sequence, uint32_t c0, uint32_t c1) {
    const struct sh_cpu_step *s = o->step;
    const struct sh_cpu_sequence *q = &s->slot->sequences[sequence];
    struct sh_ref_conv conv = {
        .x = rows_at(s, o->op->x, q->first_row),
        .w = sh_step_vector(s, o->op->w),
        .bias = sh_step_vector(s, o->op->bias),
        .n_rows = q->n_rows,
        .channels = o->width,
        .d_conv = o->op->d_conv,
        .out = sh_step_buffer(s, o->op->out) + (size_t)q->first_row * o->width,
    };
    find_state(s, o->op, sequence, &conv.before, &conv.after);
    s->kernels->conv(&conv, c0, c1);
}

static void scan_item(const struct sh_cpu_run *o, uint32_t sequence, uint32_t c0, uint32_t c1) {
    const struct sh_cpu_step *s = o->step;
    const struct sh_op *op = o->op;
    const struct sh_cpu_sequence *q = &s->slot->sequences[sequence];
    struct sh_ref_scan scan = {
        .x = rows_at(s, op->x, q->first_row),
        .dt = rows_at(s, op->y, q->first_row),
        .b = rows_at(s, op->z, q->first_row),
        .c = rows_at(s, op->u, q->first_row),
        .a = sh_step_vector(s, op->w),
        .d = sh_step_vector(s, op->bias),
        .n_rows = q->n_rows,
        .d_inner = o->width,
        .n_state = sh_step_width(s, op->z),
        .out = sh_step_buffer(s, op->out) + (size_t)q->first_row * o->width,
    };
    find_state(s, op, sequence, &scan.before, &scan.after);
    s->kernels->scan(&scan, c0, c1);
}

static uint32_t channel_items(const struct sh_cpu_run *o) { return (o->width + CHANNELS - 1) / CHANNELS; }

static void channel_ops(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const uint32_t per_sequence = channel_items(o);
    for (uint64_t i = begin; i < end; i++) {
        const uint32_t sequence = (uint32_t)(i / per_sequence), c0 = (uint32_t)(i % per_sequence) * CHANNELS;
        const uint32_t c1 = o->width - c0 < CHANNELS ? o->width : c0 + CHANNELS;
        if (o->op->kind == SH_OP_CONV) conv_item(o, sequence, c0, c1);
        else scan_item(o, sequence, c0, c1);
    }
}

/* Items of one head. */
static uint32_t column_items(const struct sh_op *op) { return (op->delta.v_dim + COLUMNS - 1) / COLUMNS; }

static void delta_items(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const struct sh_op *op = o->op;
    const uint32_t per_head = column_items(op), per_sequence = per_head * op->delta.n_v_heads;
    for (uint64_t i = begin; i < end; i++) {
        const uint32_t sequence = (uint32_t)(i / per_sequence), head = (uint32_t)(i % per_sequence) / per_head;
        const uint32_t j0 = (uint32_t)(i % per_head) * COLUMNS;
        const struct sh_cpu_sequence *q = &s->slot->sequences[sequence];
        struct sh_ref_delta delta = {
            .q = rows_at(s, op->x, q->first_row),
            .k = rows_at(s, op->y, q->first_row),
            .v = rows_at(s, op->z, q->first_row),
            .decay = rows_at(s, op->u, q->first_row),
            .beta = rows_at(s, op->t, q->first_row),
            .a = sh_step_vector(s, op->w),
            .dt_bias = sh_step_vector(s, op->bias),
            .n_rows = q->n_rows,
            .n_k_heads = op->delta.n_k_heads,
            .n_v_heads = op->delta.n_v_heads,
            .k_dim = op->delta.k_dim,
            .v_dim = op->delta.v_dim,
            .tiled = op->delta.tiled,
            .scale = op->delta.scale,
            .out = sh_step_buffer(s, op->out) + (size_t)q->first_row * o->width,
        };
        find_state(s, op, sequence, &delta.before, &delta.after);
        const uint32_t j1 = op->delta.v_dim - j0 < COLUMNS ? op->delta.v_dim : j0 + COLUMNS;
        s->kernels->delta_net(&delta, head, j0, j1, sh_step_scratch(s, worker));
    }
}

void sh_step_recurrent(struct sh_cpu_step *s, const struct sh_op *op) {
    struct sh_cpu_run o = {.step = s, .op = op, .n_rows = sh_step_rows(s, op->out), .width = sh_step_width(s, op->out)};
    const uint64_t n = s->slot->n_sequences;
    if (op->kind == SH_OP_DELTA_NET) sh_step_pool(s, n * op->delta.n_v_heads * column_items(op), 1, delta_items, &o);
    else sh_step_pool(s, n * channel_items(&o), 1, channel_ops, &o);
}

void sh_step_recurrent_memory(const struct sh_op *op, struct sh_cpu_step_memory *need) {
    if (op->kind == SH_OP_DELTA_NET) need->scratch = sh_max_u64(need->scratch, 2 * COLUMNS * sizeof(float));
}
