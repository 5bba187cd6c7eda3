/* step.c - runs the fused ops of one step, each as one or two parallel sections on the pool. */
#include "compute/cpu/cpu.h"

#define PIECES_PER_WORKER 8 /* so that a worker that was held up can be helped */
#define SMALL_PIECE 65536   /* multiply-adds; a smaller piece of a product is not worth handing to another thread */

struct step {
    const struct sh_exec_context *context;
    const struct sh_exec_model *model;
    const struct sh_cpu_kernels *kernels;
    struct sh_cpu_slot *slot;
    /* The operands now in context->operands: those of `prepared` for weights of kind `prepared_kind`. */
    uint32_t prepared, prepared_kind;
};

struct op_run {
    const struct step *step;
    const struct sh_op *op;
    uint32_t n_rows; /* of op->out */
    struct sh_cpu_matmul matmul;
    uint32_t operand;
    uint64_t cols, operand_bytes;
    uint32_t n_parts; /* attention */
    uint64_t partial;
};

static float *buffer(const struct step *s, uint32_t activation) {
    return activation == SH_NONE ? NULL : s->slot->activations[s->model->fused.slot[activation]];
}
static uint32_t width(const struct step *s, uint32_t activation) {
    return s->model->segment.program->activations[activation].width;
}
static uint32_t rows(const struct step *s, uint32_t activation) {
    return s->model->segment.program->activations[activation].rows == SH_ROWS_ALL ? s->slot->n_rows : s->slot->n_outputs;
}
static const struct sh_cpu_weight *weight(const struct step *s, uint32_t w) { return &s->model->weights[w]; }
static const float *vector(const struct step *s, uint32_t w) { return w == SH_NONE ? NULL : s->model->weights[w].matrix.data; }
static void *scratch(const struct step *s, uint32_t worker) {
    return (uint8_t *)s->context->scratch.data + worker * s->context->scratch_stride;
}

static void run(const struct step *s, uint64_t n_items, uint64_t grain, sh_pool_fn fn, void *arg) {
    sh_pool_run(s->model->device->pool, s->model->device->threads, n_items, grain, fn, arg);
}
/* Row-wise ops that touch less than this run on one thread: waking the others costs more. */
static uint64_t grain_of_rows(uint64_t floats_per_row) { return sh_max_u64(1, 16384 / sh_max_u64(1, floats_per_row)); }

/* ---- one function per op: items are rows unless said ---- */

static void embed_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct op_run *o = arg;
    const struct step *s = o->step;
    const struct sh_cpu_weight *w = weight(s, o->op->w);
    const uint32_t n = width(s, o->op->out);
    for (uint64_t r = begin; r < end; r++) {
        const struct sh_step_row *row = &s->slot->rows[r];
        float *out = buffer(s, o->op->out) + r * n;
        if (row->embedding != NULL) memcpy(out, row->embedding, n * sizeof *out);
        else if (w->store == SH_CPU_MATRIX) s->kernels->unpack(&w->matrix, (uint32_t)row->token, out);
        else sh_ref_embed(w->matrix.type, w->matrix.data, w->matrix.cols, (uint32_t)row->token, out);
    }
}

static void rms_norm_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct op_run *o = arg;
    const struct step *s = o->step;
    const uint32_t n = width(s, o->op->out);
    s->kernels->rms_norm(buffer(s, o->op->x) + begin * n, vector(s, o->op->w), (uint32_t)(end - begin), n, o->op->eps,
                         buffer(s, o->op->out) + begin * n);
}

static void add_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct op_run *o = arg;
    const struct step *s = o->step;
    const uint64_t n = width(s, o->op->out);
    s->kernels->add(buffer(s, o->op->x) + begin * n, buffer(s, o->op->y) + begin * n, (end - begin) * n,
                    buffer(s, o->op->out) + begin * n);
}

static void glu_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct op_run *o = arg;
    const struct step *s = o->step;
    const uint64_t n = width(s, o->op->out);
    s->kernels->glu(o->op->glu, buffer(s, o->op->x) + begin * n, buffer(s, o->op->y) + begin * n, (end - begin) * n,
                    buffer(s, o->op->out) + begin * n);
}

static void prepare_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct op_run *o = arg;
    o->step->kernels->prepare(o->operand, buffer(o->step, o->op->x) + begin * o->cols, o->cols, (uint32_t)(end - begin),
                              (uint8_t *)o->step->context->operands.data + begin * o->operand_bytes);
}

static void matmul_groups(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct op_run *o = arg;
    o->step->kernels->matmul(&o->matmul, begin, end, scratch(o->step, worker));
}

static void matmul(struct step *s, struct op_run *o) {
    const struct sh_op *op = o->op;
    const struct sh_cpu_weight *w = weight(s, op->w);
    o->cols = w->matrix.cols;
    o->operand = s->kernels->operand(w->matrix.type);
    o->operand_bytes = s->kernels->operand_bytes(o->operand, o->cols);
    if (s->prepared != op->x || s->prepared_kind != o->operand) {
        run(s, o->n_rows, grain_of_rows(o->cols), prepare_rows, o);
        s->prepared = op->x;
        s->prepared_kind = o->operand;
    }
    o->matmul = (struct sh_cpu_matmul){
        .w = &w->matrix,
        .x = s->context->operands.data,
        .n_rows = o->n_rows,
        .bias = vector(s, op->bias),
        .residual = buffer(s, op->residual),
        .out = buffer(s, op->out),
    };
    const uint64_t groups = (w->matrix.rows + s->kernels->group_rows - 1) / s->kernels->group_rows;
    const uint64_t products = sh_max_u64(1, o->cols * s->kernels->group_rows * o->n_rows); /* of one group */
    const uint64_t grain = sh_max_u64(sh_min_u64(32, groups / ((uint64_t)s->model->device->threads * PIECES_PER_WORKER) + 1),
                                      SMALL_PIECE / products);
    run(s, groups, grain, matmul_groups, o);
}

static struct sh_ref_cache cache_of(const struct step *s, const struct sh_op *op, uint32_t sequence) {
    const struct sh_cpu_pages *pages = &s->context->groups[op->attn.group];
    const struct sh_cpu_slot *slot = s->slot;
    const uint64_t k_offset = (pages->k_bytes + pages->v_bytes) * (op->attn.layer_in_group - pages->first_layer);
    return (struct sh_ref_cache){
        .kv_type = s->context->params.kv_type,
        .pages = slot->pages + slot->first_page[sequence] + (size_t)op->attn.group * slot->sequence_pages[sequence],
        .page_tokens = SH_PAGE_TOKENS,
        .k_offset = k_offset,
        .v_offset = k_offset + pages->k_bytes,
        .n_kv_heads = op->attn.n_kv_heads,
        .k_dim = op->attn.k_dim,
        .v_dim = op->attn.v_dim,
    };
}

/* k stays as the matmul made it: the rotated key goes to the cache by way of the worker's scratch. */
static void rope_cache_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct op_run *o = arg;
    const struct step *s = o->step;
    const struct sh_op *op = o->op;
    const float *table = vector(s, op->w);
    float *key = scratch(s, worker);
    const uint32_t q_width = width(s, op->x), k_width = width(s, op->y), v_width = width(s, op->z);
    for (uint64_t r = begin; r < end; r++) {
        const struct sh_step_row *row = &s->slot->rows[r];
        const float *angles = table + (size_t)row->position * op->rope.n_rot;
        const struct sh_ref_cache cache = cache_of(s, op, row->sequence);
        sh_ref_rope(buffer(s, op->x) + r * q_width, op->attn.n_heads, op->attn.k_dim, op->rope.n_rot, op->rope.pairing, angles,
                    buffer(s, op->out) + r * q_width);
        sh_ref_rope(buffer(s, op->y) + r * k_width, op->attn.n_kv_heads, op->attn.k_dim, op->rope.n_rot, op->rope.pairing, angles,
                    key);
        sh_ref_cache_store(&cache, row->position, key, buffer(s, op->z) + r * v_width);
    }
}

/* The attention of item i = (row, kv head); `cache` is what it refers to. */
static struct sh_cpu_attention attention_of(const struct op_run *o, uint64_t i, struct sh_ref_cache *cache) {
    const struct step *s = o->step;
    const struct sh_op *op = o->op;
    const uint32_t n_kv = op->attn.n_kv_heads, per_kv = op->attn.n_heads / n_kv, kv_head = (uint32_t)(i % n_kv);
    const uint64_t r = i / n_kv;
    const struct sh_step_row *row = &s->slot->rows[r];
    *cache = cache_of(s, op, row->sequence);
    return (struct sh_cpu_attention){
        .cache = cache,
        .kv_head = kv_head,
        .q = buffer(s, op->x) + r * width(s, op->x) + (size_t)kv_head * per_kv * op->attn.k_dim,
        .n_heads = per_kv,
        .n_positions = row->position + 1,
        .scale = op->attn.scale,
        .out = buffer(s, op->out) + r * width(s, op->out) + (size_t)kv_head * per_kv * op->attn.v_dim,
    };
}

static void attention_items(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct op_run *o = arg;
    for (uint64_t i = begin; i < end; i++) {
        struct sh_ref_cache cache;
        const struct sh_cpu_attention a = attention_of(o, i, &cache);
        o->step->kernels->attention(&a, scratch(o->step, worker));
    }
}

/* Items are (row, kv head, part); those beyond a row's positions do nothing. */
static void attention_parts(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct op_run *o = arg;
    for (uint64_t i = begin; i < end; i++) {
        struct sh_ref_cache cache;
        const struct sh_cpu_attention a = attention_of(o, i / o->n_parts, &cache);
        const uint32_t part = (uint32_t)(i % o->n_parts);
        if ((uint64_t)part * o->step->kernels->attention_split >= a.n_positions) continue;
        o->step->kernels->attention_part(&a, part, (float *)o->step->context->partials.data + i * o->partial,
                                         scratch(o->step, worker));
    }
}

static void attention_joins(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct op_run *o = arg;
    for (uint64_t i = begin; i < end; i++) {
        struct sh_ref_cache cache;
        const struct sh_cpu_attention a = attention_of(o, i, &cache);
        o->step->kernels->attention_join(&a, (float *)o->step->context->partials.data + i * o->n_parts * o->partial);
    }
}

/* Few rows over a long cache leave workers without an item of their own: then the parts of an item are shared out, with the same
 * result. */
static void attention(struct step *s, struct op_run *o) {
    const struct sh_op *op = o->op;
    const uint64_t items = (uint64_t)o->n_rows * op->attn.n_kv_heads;
    const uint32_t split = s->kernels->attention_split, threads = s->model->device->threads;
    uint32_t last = 0;
    for (uint32_t r = 0; r < o->n_rows; r++) last = s->slot->rows[r].position > last ? s->slot->rows[r].position : last;
    o->n_parts = split > 0 ? last / split + 1 : 1;
    if (threads == 1 || o->n_parts == 1 || items > (uint64_t)SH_CPU_SPLIT_ITEMS * threads) {
        run(s, items, 1, attention_items, o);
        return;
    }
    o->partial = s->kernels->attention_partial(op->attn.n_heads / op->attn.n_kv_heads, op->attn.v_dim);
    run(s, items * o->n_parts, 1, attention_parts, o);
    run(s, items, 1, attention_joins, o);
}

static void run_op(struct step *s, const struct sh_op *op) {
    struct op_run o = {.step = s, .op = op, .n_rows = rows(s, op->out)};
    const uint64_t grain = grain_of_rows(width(s, op->out));
    switch (op->kind) {
    case SH_OP_EMBED: run(s, o.n_rows, grain, embed_rows, &o); break;
    case SH_OP_NORM: run(s, o.n_rows, grain, rms_norm_rows, &o); break;
    case SH_OP_MATMUL: matmul(s, &o); break;
    case SH_OP_ADD: run(s, o.n_rows, grain, add_rows, &o); break;
    case SH_OP_ROPE_CACHE: run(s, o.n_rows, grain, rope_cache_rows, &o); break;
    case SH_OP_ATTENTION: attention(s, &o); break;
    case SH_OP_GLU: run(s, o.n_rows, grain_of_rows(16 * (uint64_t)width(s, op->out)), glu_rows, &o); break;
    case SH_OP_GATHER_OUT:
        sh_ref_gather(buffer(s, op->x), width(s, op->out), s->slot->output_rows, s->slot->n_outputs, buffer(s, op->out));
        break;
    default: break;
    }
    if (s->prepared != SH_NONE && s->model->fused.slot[s->prepared] == s->model->fused.slot[op->out]) s->prepared = SH_NONE;
}

static void capture(const struct step *s, uint32_t activation) {
    struct sh_cpu_slot *slot = s->slot;
    for (uint32_t c = 0; c < slot->n_capture; c++) {
        if (slot->capture[c] != activation) continue;
        memcpy(slot->captured[c].data, buffer(s, activation), (size_t)rows(s, activation) * width(s, activation) * sizeof(float));
        slot->captures[c] = slot->captured[c].data;
    }
}

void sh_cpu_step_run(struct sh_exec_context *context, struct sh_cpu_slot *slot) {
    struct step s = {
        .context = context,
        .model = context->model,
        .kernels = context->model->device->kernels,
        .slot = slot,
        .prepared = SH_NONE,
    };
    for (uint32_t i = 0; i < s.model->segment.n_inputs; i++) capture(&s, s.model->segment.inputs[i]);
    for (uint32_t i = 0; i < s.model->fused.n_ops; i++) {
        const struct sh_op *op = &s.model->fused.ops[i];
        if (rows(&s, op->out) == 0) continue; /* the head of a step that asks for no output */
        run_op(&s, op);
        capture(&s, op->out);
    }
}

uint64_t sh_cpu_step_operand_bytes(const struct sh_exec_model *model) {
    const struct sh_cpu_kernels *kernels = model->device->kernels;
    uint64_t most = 0;
    for (uint32_t i = 0; i < model->segment.program->n_weights; i++) {
        const struct sh_cpu_matrix *x = &model->weights[i].matrix;
        if (model->weights[i].store == SH_CPU_MATRIX)
            most = sh_max_u64(most, kernels->operand_bytes(kernels->operand(x->type), x->cols));
    }
    return most;
}

uint64_t sh_cpu_step_scratch_bytes(const struct sh_exec_model *model, uint64_t n_positions) {
    const struct sh_cpu_kernels *kernels = model->device->kernels;
    uint64_t most = 64;
    for (uint32_t i = 0; i < model->segment.program->n_weights; i++)
        if (model->weights[i].store == SH_CPU_MATRIX)
            most = sh_max_u64(most, kernels->matmul_scratch(model->weights[i].matrix.cols));
    for (uint32_t i = 0; i < model->fused.n_ops; i++) {
        const struct sh_op *op = &model->fused.ops[i];
        if (op->kind == SH_OP_ROPE_CACHE) most = sh_max_u64(most, (uint64_t)op->attn.n_kv_heads * op->attn.k_dim * sizeof(float));
        if (op->kind == SH_OP_ATTENTION)
            most = sh_max_u64(most, kernels->attention_scratch(op->attn.n_heads / op->attn.n_kv_heads, (uint32_t)n_positions,
                                                               op->attn.k_dim, op->attn.v_dim));
    }
    return sh_align_up(most, 64);
}

uint64_t sh_cpu_step_partial_bytes(const struct sh_exec_model *model, uint64_t n_positions) {
    const struct sh_cpu_kernels *kernels = model->device->kernels;
    if (kernels->attention_split == 0) return 0;
    const uint64_t parts = n_positions / kernels->attention_split + 1;
    uint64_t most = 0;
    for (uint32_t i = 0; i < model->fused.n_ops; i++) {
        const struct sh_op *op = &model->fused.ops[i];
        if (op->kind != SH_OP_ATTENTION) continue;
        most = sh_max_u64(most, kernels->attention_partial(op->attn.n_heads / op->attn.n_kv_heads, op->attn.v_dim));
    }
    return most * parts * SH_CPU_SPLIT_ITEMS * model->device->threads * sizeof(float);
}
