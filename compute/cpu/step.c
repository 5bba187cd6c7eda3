/* step.c - runs the fused ops of one step, each as one or more parallel sections on the pool. Here the row-wise ops. */
#include "compute/cpu/step.h"

/* ---- one function per op: items are rows ---- */

static uint32_t table_row(const struct sh_op *op, const struct sh_step_row *row) {
    switch (op->embed) {
    case SH_EMBED_TOKEN: return (uint32_t)row->token;
    case SH_EMBED_POSITION: return row->position;
    case SH_EMBED_FIRST: break;
    }
    return 0;
}

static void embed_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const struct sh_cpu_weight *w = sh_step_weight(s, o->op->w);
    for (uint64_t r = begin; r < end; r++) {
        const struct sh_step_row *row = &s->slot->rows[r];
        float *out = sh_step_buffer(s, o->op->out) + r * o->width;
        if (o->op->embed == SH_EMBED_TOKEN && row->embedding != NULL) memcpy(out, row->embedding, o->width * sizeof *out);
        else if (w->store == SH_CPU_MATRIX) s->kernels->unpack(&w->matrix, table_row(o->op, row), out);
        else sh_ref_embed(w->matrix.type, w->matrix.data, w->matrix.cols, table_row(o->op, row), out);
    }
}

/* Floats from one part's weights to the next one's: 0 where there is but one part's width. */
static uint32_t stride_of(const struct sh_cpu_step *s, uint32_t w, uint32_t part, uint32_t width) {
    return w != SH_NONE && sh_step_weight(s, w)->matrix.cols == width ? part : 0;
}

/* Where row r of an op that operands may follow is made, and what follows. */
static float *row_out(const struct sh_cpu_run *o, uint64_t r, uint32_t worker) {
    return o->follow.only ? sh_step_scratch(o->step, worker) : sh_step_buffer(o->step, o->op->out) + r * o->width;
}
static void follow(const struct sh_cpu_run *o, uint64_t r, const float *row) {
    const struct sh_cpu_kernels *kernels = o->step->kernels;
    if (o->follow.operand == SH_NONE) return;
    kernels->prepare(o->follow.operand, row, o->width, 1,
                     (uint8_t *)o->step->context->operands.data + r * kernels->operand_bytes(o->follow.operand, o->width));
}

static void norm_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const struct sh_op *op = o->op;
    const uint32_t part = o->width / op->norm.n_groups;
    const struct sh_ref_norm norm = {
        .kind = op->norm.kind,
        .n_groups = op->norm.n_groups,
        .width = o->width,
        .eps = op->eps,
        .w = sh_step_vector(s, op->w),
        .bias = sh_step_vector(s, op->bias),
        .w_stride = stride_of(s, op->w, part, o->width),
        .bias_stride = stride_of(s, op->bias, part, o->width),
    };
    const float *x = sh_step_buffer(s, op->x);
    for (uint64_t r = begin; r < end; r++) {
        float *out = row_out(o, r, worker);
        s->kernels->norm(&norm, x + r * o->width, 1, out);
        follow(o, r, out);
    }
}

static void add_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const uint64_t n = o->width;
    o->step->kernels->add(sh_step_buffer(o->step, o->op->x) + begin * n, sh_step_buffer(o->step, o->op->y) + begin * n,
                          (end - begin) * n, sh_step_buffer(o->step, o->op->out) + begin * n);
}

static void unary_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const float *x = sh_step_buffer(s, o->op->x), *table = sh_step_vector(s, o->op->w);
    float *out = sh_step_buffer(s, o->op->out);
    const uint64_t n = o->width;
    if (o->op->unary.kind != SH_UNARY_SCALE_POSITION) {
        s->kernels->unary(o->op->unary.kind, o->op->unary.a, x + begin * n, (end - begin) * n, out + begin * n);
        return;
    }
    for (uint64_t r = begin; r < end; r++)
        s->kernels->unary(SH_UNARY_SCALE, table[s->slot->rows[r].position], x + r * n, n, out + r * n);
}

static void glu_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const uint32_t gate_width = sh_step_width(s, o->op->x);
    for (uint64_t r = begin; r < end; r++) {
        float *out = row_out(o, r, worker);
        s->kernels->glu(o->op->glu, sh_step_buffer(s, o->op->x) + r * gate_width, gate_width,
                        sh_step_buffer(s, o->op->y) + r * o->width, 1, o->width, out);
        follow(o, r, out);
    }
}

static void concat_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const uint32_t heads = o->op->concat_heads, x_width = sh_step_width(s, o->op->x), y_width = sh_step_width(s, o->op->y);
    sh_ref_concat(sh_step_buffer(s, o->op->x) + begin * x_width, x_width / heads, sh_step_buffer(s, o->op->y) + begin * y_width,
                  y_width / heads, heads, (uint32_t)(end - begin), sh_step_buffer(s, o->op->out) + begin * o->width);
}

static void route_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const struct sh_op *op = o->op;
    const struct sh_ref_route route = {
        .n_expert = op->expert.n_expert,
        .n_used = op->expert.n_used,
        .gating = op->expert.gating,
        .normalise = op->expert.normalise,
        .scale = op->expert.scale,
        .n_groups = op->expert.n_groups,
        .n_groups_used = op->expert.n_groups_used,
    };
    for (uint64_t r = begin; r < end; r++)
        sh_ref_route(&route, sh_step_buffer(s, op->x) + r * op->expert.n_expert, sh_step_vector(s, op->bias),
                     sh_step_scratch(s, worker), sh_step_buffer(s, op->out) + r * o->width);
}

static void expert_sum_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const uint32_t n_used = o->op->expert.n_used;
    for (uint64_t r = begin; r < end; r++)
        s->kernels->expert_sum(sh_step_buffer(s, o->op->x) + r * n_used * o->width, sh_step_buffer(s, o->op->y) + r * 2 * n_used,
                               n_used, o->width, sh_step_buffer(s, o->op->out) + r * o->width);
}

/* ---- the step ---- */

static bool is_captured(const struct sh_cpu_step *s, uint32_t activation) {
    for (uint32_t c = 0; c < s->slot->n_capture; c++)
        if (s->slot->capture[c] == activation) return true;
    return false;
}

static void run_op(struct sh_cpu_step *s, const struct sh_op *op) {
    struct sh_cpu_run o = {.step = s,
                           .op = op,
                           .n_rows = sh_step_rows(s, op->out),
                           .width = sh_step_width(s, op->out),
                           .follow = s->segment->follows[op - s->segment->fused.ops]};
    if (is_captured(s, op->out)) o.follow.only = false;
    const uint64_t grain = sh_step_grain(o.width), exp_grain = sh_step_grain(16 * (uint64_t)o.width);
    switch (op->kind) {
    case SH_OP_EMBED: sh_step_pool(s, o.n_rows, grain, embed_rows, &o); break;
    case SH_OP_NORM: sh_step_pool(s, o.n_rows, grain, norm_rows, &o); break;
    case SH_OP_MATMUL:
        if (op->blocks > 1) sh_step_grouped(s, op);
        else sh_step_matmul(s, op);
        break;
    case SH_OP_ADD: sh_step_pool(s, o.n_rows, grain, add_rows, &o); break;
    case SH_OP_UNARY: sh_step_pool(s, o.n_rows, exp_grain, unary_rows, &o); break;
    case SH_OP_GLU: sh_step_pool(s, o.n_rows, exp_grain, glu_rows, &o); break;
    case SH_OP_CONCAT: sh_step_pool(s, o.n_rows, grain, concat_rows, &o); break;
    case SH_OP_ROPE: sh_step_rope(s, op); break;
    case SH_OP_ROPE_CACHE: sh_step_rope_cache(s, op); break;
    case SH_OP_ATTENTION: sh_step_attention(s, op); break;
    case SH_OP_ROUTE: sh_step_pool(s, o.n_rows, sh_step_grain(16 * (uint64_t)op->expert.n_expert), route_rows, &o); break;
    case SH_OP_EXPERT_MATMUL: sh_step_grouped(s, op); break;
    case SH_OP_EXPERT_SUM:
        sh_step_pool(s, o.n_rows, sh_step_grain((uint64_t)o.width * op->expert.n_used), expert_sum_rows, &o);
        break;
    case SH_OP_CONV:
    case SH_OP_SCAN:
    case SH_OP_DELTA_NET: sh_step_recurrent(s, op); break;
    case SH_OP_GATHER_OUT:
        sh_ref_gather(sh_step_buffer(s, op->x), o.width, s->slot->output_rows, s->slot->n_outputs, sh_step_buffer(s, op->out));
        break;
    case SH_OP_KINDS: break;
    }
    const uint32_t *slot = s->segment->fused.slot;
    if (s->prepared != SH_NONE && slot[s->prepared] == slot[op->out]) s->prepared = SH_NONE;
    if (o.follow.operand == SH_NONE) return;
    s->prepared = op->out;
    s->prepared_kind = o.follow.operand;
}

void sh_step_lap(struct sh_cpu_step *s, const struct sh_op *ops, uint32_t n_ops, const char *part) {
    struct sh_trace *trace = s->context->params.trace;
    if (trace == NULL) return;
    sh_trace_add(trace, ops, n_ops, part, &s->slot->shape, sh_now_ns() - s->lap_ns);
    s->lap_ns = sh_now_ns(); /* reporting is not counted */
}

static void capture(const struct sh_cpu_step *s, uint32_t activation) {
    struct sh_cpu_slot *slot = s->slot;
    for (uint32_t c = 0; c < slot->n_capture; c++) {
        if (slot->capture[c] != activation) continue;
        memcpy(slot->captured[c].data, sh_step_buffer(s, activation),
               (size_t)sh_step_rows(s, activation) * sh_step_width(s, activation) * sizeof(float));
        slot->captures[c] = slot->captured[c].data;
    }
}

void sh_cpu_step_run(struct sh_exec_context *context, struct sh_cpu_slot *slot) {
    struct sh_cpu_step s = {
        .context = context,
        .model = context->model,
        .segment = &context->model->segments[slot->segment],
        .kernels = context->model->device->kernels,
        .slot = slot,
        .prepared = SH_NONE,
        .lap_ns = context->params.trace != NULL ? sh_now_ns() : 0,
    };
    for (uint32_t i = 0; i < s.segment->segment.n_inputs; i++) capture(&s, s.segment->segment.inputs[i]);
    for (uint32_t i = 0; i < s.segment->fused.n_ops; i++) {
        const struct sh_op *op = &s.segment->fused.ops[i];
        if (sh_step_rows(&s, op->out) == 0) continue; /* the head of a step that asks for no output */
        run_op(&s, op);
        sh_step_lap(&s, op, 1, NULL);
        capture(&s, op->out);
    }
}

static void add_memory(const struct sh_exec_model *m, const struct sh_op *op, uint64_t max_rows, uint64_t n_positions,
                       struct sh_cpu_step_memory *need) {
    switch (op->kind) {
    case SH_OP_MATMUL:
    case SH_OP_EXPERT_MATMUL: sh_step_matmul_memory(m, op, max_rows, need); break;
    case SH_OP_NORM:
    case SH_OP_GLU:
        need->scratch = sh_max_u64(need->scratch, m->program->activations[op->out].width * sizeof(float));
        break;
    case SH_OP_ROPE_CACHE:
        need->scratch = sh_max_u64(need->scratch, (uint64_t)op->attn.n_kv_heads * op->attn.k_dim * sizeof(float));
        break;
    case SH_OP_ATTENTION: sh_step_attention_memory(m, op, n_positions, need); break;
    case SH_OP_ROUTE: need->scratch = sh_max_u64(need->scratch, SH_REF_ROUTE_SCRATCH(op->expert.n_expert) * sizeof(float)); break;
    case SH_OP_CONV:
    case SH_OP_SCAN:
    case SH_OP_DELTA_NET: sh_step_recurrent_memory(op, need); break;
    default: break;
    }
}

struct sh_cpu_step_memory sh_cpu_step_memory(const struct sh_exec_model *model, uint64_t max_rows, uint64_t n_positions) {
    struct sh_cpu_step_memory need = {.scratch = 64};
    for (uint32_t s = 0; s < model->n_segments; s++)
        for (uint32_t i = 0; i < model->segments[s].fused.n_ops; i++)
            add_memory(model, &model->segments[s].fused.ops[i], max_rows, n_positions, &need);
    need.scratch = sh_align_up(need.scratch, 64);
    return need;
}
