#include "compute/cpu/cpu.h"

#include <inttypes.h>
#include <stdlib.h>

/* Of a load, as the file has them, between which steps may enter: a few milliseconds' work. */
#define SLICE_BYTES (2u << 20)

static enum sh_code want_store(struct sh_exec_model *m, uint32_t weight, enum sh_cpu_store store, uint32_t n_parts,
                               struct sh_error *err) {
    if (weight == SH_NONE) return SH_OK;
    struct sh_cpu_weight *w = &m->weights[weight];
    const struct sh_weight *spec = &m->program->weights[weight];
    if (w->store != SH_CPU_UNUSED && (w->store == SH_CPU_VECTOR) != (store == SH_CPU_VECTOR))
        return sh_fail(err, SH_ERR_UNSUPPORTED, "weight %s is used both as a vector and as a matrix", spec->name);
    if (n_parts == 0 || spec->rows % n_parts != 0 || (w->store != SH_CPU_UNUSED && w->n_parts != n_parts))
        return sh_fail(err, SH_ERR_UNSUPPORTED, "weight %s of %" PRIu64 " rows is used as %u matrices, and elsewhere as %u",
                       spec->name, spec->rows, n_parts, w->n_parts);
    const struct sh_type_info *type = sh_type_info(spec->type);
    if (type == NULL || !type->computable)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "weight %s: type %s is not computed by the CPU executor", spec->name,
                       type != NULL ? type->name : "unknown");
    if (spec->cols == 0 || spec->rows == 0 || sh_type_row_bytes(spec->type, spec->cols) == 0)
        return sh_fail(err, SH_ERR_FORMAT, "weight %s: a row of %" PRIu64 " is no multiple of the %u elements of a block of %s",
                       spec->name, spec->cols, type->block_elements, type->name);
    if (store > w->store) w->store = store;
    w->n_parts = n_parts;
    w->matrix = (struct sh_cpu_matrix){.type = spec->type, .cols = spec->cols, .rows = spec->rows};
    return SH_OK;
}

static enum sh_code choose_stores(struct sh_exec_model *m, const struct sh_segment *segment, struct sh_error *err) {
    for (uint32_t i = 0; i < segment->n_ops; i++) {
        const struct sh_op *op = &m->program->ops[segment->first_op + i];
        enum sh_cpu_store store = SH_CPU_VECTOR;
        uint32_t n_parts = 1;
        if (op->kind == SH_OP_EMBED) {
            store = SH_CPU_TABLE;
        } else if (op->kind == SH_OP_MATMUL) {
            store = SH_CPU_MATRIX;
            n_parts = op->blocks;
        } else if (op->kind == SH_OP_EXPERT_MATMUL) {
            store = SH_CPU_MATRIX;
            n_parts = op->expert.n_expert;
        }
        enum sh_code code = want_store(m, op->w, store, n_parts, err);
        if (code == SH_OK) code = want_store(m, op->bias, SH_CPU_VECTOR, 1, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

static bool stored_bytes(const struct sh_exec_model *m, struct sh_cpu_weight *w, uint64_t *out) {
    const struct sh_cpu_matrix *x = &w->matrix;
    uint64_t elements;
    if (!sh_mul_u64(x->cols, x->rows, &elements) || elements > UINT64_MAX / 16) return false;
    switch (w->store) {
    case SH_CPU_UNUSED: *out = 0; break;
    case SH_CPU_VECTOR: *out = elements * sizeof(float); break;
    case SH_CPU_TABLE: *out = sh_type_row_bytes(x->type, x->cols) * x->rows; break;
    case SH_CPU_MATRIX:
        w->part_bytes = sh_align_up(m->device->kernels->matrix_bytes(x->type, x->cols, x->rows / w->n_parts), 64);
        return sh_mul_u64(w->part_bytes, w->n_parts, out);
    }
    return true;
}

/* One mapping for all weights: huge pages cover the small ones too. */
static enum sh_code allocate(struct sh_exec_model *m, struct sh_error *err) {
    const struct sh_program *program = m->program;
    uint64_t total = 0;
    for (uint32_t i = 0; i < program->n_weights; i++) {
        uint64_t bytes = 0;
        if (!stored_bytes(m, &m->weights[i], &bytes) || !sh_add_u64(total, sh_align_up(bytes, 64), &total))
            return sh_fail(err, SH_ERR_FORMAT, "weight %s: %" PRIu64 " x %" PRIu64 " elements are more than an address space",
                           program->weights[i].name, program->weights[i].rows, program->weights[i].cols);
        m->weights[i].offset = total - sh_align_up(bytes, 64);
    }
    enum sh_code code = sh_cpu_memory_check(total, "weights", err);
    if (code == SH_OK) code = sh_cpu_block_alloc(m->device, SH_CPU_WEIGHTS, total, "weights", &m->block, err);
    if (code != SH_OK) return code;
    for (uint32_t i = 0; i < program->n_weights; i++)
        if (m->weights[i].store != SH_CPU_UNUSED) m->weights[i].matrix.data = (uint8_t *)m->block.data + m->weights[i].offset;
    return SH_OK;
}

/* ---- what is computed ---- */

/* Has the op's part of a recurrent state the size that it computes with? */
static bool has_state(const struct sh_op *op, const struct sh_state_group *group, uint64_t floats) {
    return group->kind == SH_STATE_RECURRENT && op->state.floats == floats && floats <= group->floats &&
           op->state.offset <= group->floats - floats;
}

/* Sizes that the step relies on, which a builder's assertions hold already. */
static bool is_sound(const struct sh_program *p, const struct sh_op *op) {
    const uint64_t out = p->activations[op->out].width;
    const struct sh_weight *w = op->w != SH_NONE ? &p->weights[op->w] : NULL;
    const struct sh_state_group *group = NULL;
    if (op->kind == SH_OP_ROPE_CACHE || op->kind == SH_OP_ATTENTION) group = &p->groups[op->attn.group];
    if (op->kind == SH_OP_CONV || op->kind == SH_OP_SCAN || op->kind == SH_OP_DELTA_NET) group = &p->groups[op->state.group];
    switch (op->kind) {
    case SH_OP_NORM: return op->norm.n_groups > 0 && out % op->norm.n_groups == 0;
    case SH_OP_ROPE: return op->rope.first <= op->attn.k_dim && op->rope.n_rot <= op->attn.k_dim - op->rope.first;
    case SH_OP_ROPE_CACHE:
        return op->rope.first <= op->attn.k_dim && op->rope.n_rot <= op->attn.k_dim - op->rope.first &&
               group->kind != SH_STATE_RECURRENT && group->n_kv_heads == op->attn.n_kv_heads && group->k_dim == op->attn.k_dim &&
               group->v_in_k == op->attn.v_in_k &&
               (group->v_in_k ? op->attn.v_dim <= op->attn.k_dim : group->v_dim == op->attn.v_dim);
    case SH_OP_ATTENTION: /* a windowed group's missing pages are not read */
        return op->attn.n_heads % op->attn.n_kv_heads == 0 &&
               (group->kind == SH_STATE_PAGED ||
                (group->kind == SH_STATE_WINDOWED &&
                 (op->attn.bidirectional || (op->attn.window > 0 && op->attn.window <= group->window))));
    case SH_OP_ROUTE:
        if (op->expert.n_groups > 1 &&
            (op->expert.n_expert % op->expert.n_groups != 0 || op->expert.n_groups_used > op->expert.n_groups ||
             op->expert.n_used > op->expert.n_expert / op->expert.n_groups * op->expert.n_groups_used))
            return false;
        return op->expert.n_used > 0 && op->expert.n_used <= op->expert.n_expert;
    case SH_OP_CONV: return op->d_conv > 0 && w->cols == op->d_conv && has_state(op, group, out * (op->d_conv - 1));
    case SH_OP_SCAN: return w->rows == out && has_state(op, group, out * w->cols);
    case SH_OP_DELTA_NET:
        return op->delta.n_k_heads > 0 && op->delta.n_v_heads % op->delta.n_k_heads == 0 &&
               has_state(op, group, (uint64_t)op->delta.n_v_heads * op->delta.k_dim * op->delta.v_dim);
    default: return true;
    }
}

static enum sh_code check_ops(struct sh_exec_model *m, const struct sh_segment *segment, struct sh_error *err) {
    for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++) {
        const struct sh_op *op = &m->program->ops[i];
        if (!is_sound(m->program, op))
            return sh_fail(err, SH_ERR_UNSUPPORTED, "op %s of %s: its sizes do not fit together", sh_op_name(op->kind),
                           m->program->activations[op->out].name);
        if (op->w == SH_NONE) continue;
        const uint32_t rows = (uint32_t)sh_min_u64(m->program->weights[op->w].rows, UINT32_MAX);
        uint32_t *limit = NULL;
        if (op->kind == SH_OP_ROPE || op->kind == SH_OP_ROPE_CACHE) limit = &m->position_limit;
        if (op->kind == SH_OP_UNARY && op->unary.kind == SH_UNARY_SCALE_POSITION) limit = &m->position_limit;
        if (op->kind == SH_OP_EMBED && op->embed == SH_EMBED_POSITION) limit = &m->position_limit;
        if (op->kind == SH_OP_EMBED && op->embed == SH_EMBED_TOKEN) limit = &m->token_limit;
        if (limit != NULL && rows < *limit) *limit = rows;
    }
    return SH_OK;
}

/* ---- the memory plan ---- */

static bool outlives_step(const struct sh_cpu_segment *s, uint32_t plan_slot) {
    const struct sh_program *program = s->segment.program;
    bool found = sh_cpu_plan_slot(s, program->hidden) == plan_slot || sh_cpu_plan_slot(s, program->logits) == plan_slot;
    for (uint32_t i = 0; i < s->segment.n_inputs; i++) found = found || s->fused.slot[s->segment.inputs[i]] == plan_slot;
    for (uint32_t i = 0; i < s->segment.n_outputs; i++) found = found || s->fused.slot[s->segment.outputs[i]] == plan_slot;
    return found;
}

/* Buffers in order of size, so that those which segments share are of like size. */
static enum sh_code place_slots(struct sh_cpu_segment *s, uint32_t *n_shared, uint32_t *n_owned, struct sh_error *err) {
    s->places = sh_calloc(s->fused.n_slots, sizeof *s->places);
    if (s->places == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plan of a segment");
    uint32_t shared = 0, owned = 0;
    for (uint32_t i = 0; i < s->fused.n_slots; i++) {
        s->places[i].owned = outlives_step(s, i);
        if (s->places[i].owned) {
            s->places[i].buffer = owned++;
            continue;
        }
        uint32_t before = 0; /* how many shared ones are larger */
        for (uint32_t j = 0; j < s->fused.n_slots; j++) {
            if (j == i || outlives_step(s, j)) continue;
            const bool wider = s->fused.slots[j].width > s->fused.slots[i].width,
                       equal = s->fused.slots[j].width == s->fused.slots[i].width, all = s->fused.slots[j].rows == SH_ROWS_ALL,
                       mine = s->fused.slots[i].rows == SH_ROWS_ALL;
            before += all != mine ? all : wider || (equal && j < i);
        }
        s->places[i].buffer = before;
        shared++;
    }
    if (shared > *n_shared) *n_shared = shared;
    if (owned > *n_owned) *n_owned = owned;
    return SH_OK;
}

static struct sh_cpu_follow follow_of(const struct sh_exec_model *m, const struct sh_cpu_segment *s, uint32_t i) {
    const struct sh_op *op = &s->fused.ops[i];
    struct sh_cpu_follow follow = {.operand = SH_NONE};
    if (op->kind != SH_OP_NORM && op->kind != SH_OP_GLU) return follow;
    uint32_t n_reads = 0, n_products = 0;
    for (uint32_t j = i + 1; j < s->fused.n_ops; j++) {
        uint32_t reads[SH_OP_READS];
        sh_op_reads(&s->fused.ops[j], reads);
        for (int r = 0; r < SH_OP_READS; r++) n_reads += reads[r] == op->out;
    }
    for (uint32_t j = i + 1; j < s->fused.n_ops; j++, n_products++) {
        const struct sh_op *next = &s->fused.ops[j];
        if (next->kind != SH_OP_MATMUL || next->blocks > 1 || next->x != op->out) break;
        const uint32_t operand = m->device->kernels->operand(m->program->weights[next->w].type);
        if (n_products == 0) follow.operand = operand;
        if (operand != follow.operand) break;
    }
    follow.only = n_reads == n_products && !outlives_step(s, s->fused.slot[op->out]);
    return follow;
}

static enum sh_code add_segment(struct sh_exec_model *m, const struct sh_segment *segment, struct sh_error *err) {
    enum sh_code code = check_ops(m, segment, err);
    if (code == SH_OK) code = choose_stores(m, segment, err);
    if (code != SH_OK) return code;
    struct sh_cpu_segment *s = &m->segments[m->n_segments++];
    s->segment = *segment;
    code = sh_fuse(&s->segment, SH_FUSE_RESIDUAL, &s->fused, err);
    if (code == SH_OK) code = place_slots(s, &m->n_shared, &m->n_owned, err);
    if (code != SH_OK) return code;
    s->follows = sh_calloc(s->fused.n_ops, sizeof *s->follows);
    if (s->follows == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plan of a segment of %u ops", s->fused.n_ops);
    for (uint32_t i = 0; i < s->fused.n_ops; i++) s->follows[i] = follow_of(m, s, i);
    return SH_OK;
}

enum sh_code sh_cpu_model_create(struct sh_device *device, const struct sh_segment *segments, uint32_t n_segments,
                                 struct sh_exec_model **out, struct sh_error *err) {
    *out = NULL;
    SH_ASSERT(n_segments > 0);
    const struct sh_program *program = segments[0].program;
    struct sh_exec_model *m = sh_calloc(1, sizeof *m);
    if (m == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a model of the CPU executor");
    m->device = (struct sh_cpu_device *)device;
    m->program = program;
    m->position_limit = UINT32_MAX;
    m->token_limit = program->n_vocab;
    m->segments = sh_calloc(n_segments, sizeof *m->segments);
    m->weights = sh_calloc(program->n_weights, sizeof *m->weights);
    enum sh_code code = SH_OK;
    if (m->segments == NULL || m->weights == NULL)
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u segments and %u weights", n_segments, program->n_weights);
    for (uint32_t s = 0; code == SH_OK && s < n_segments; s++) code = add_segment(m, &segments[s], err);
    if (code == SH_OK) code = allocate(m, err);
    if (code != SH_OK) {
        sh_cpu_model_destroy(m);
        return code;
    }
    *out = m;
    return SH_OK;
}

/* ---- loading ---- */

/* Rows [row0, row0 + n_rows) of a weight, cut into units that have one writer each: `unit` rows of one part. */
struct load {
    const struct sh_cpu_device *device;
    const struct sh_cpu_weight *w;
    const uint8_t *src;
    uint64_t row0, n_rows, row_bytes;
    uint64_t unit, part_rows, units_per_part;
    uint64_t first_unit; /* of the slice, counted from row0's */
};

static uint64_t unit_of(const struct load *l, uint64_t row) {
    return row / l->part_rows * l->units_per_part + row % l->part_rows / l->unit;
}

static void load_unit(const struct load *l, uint64_t unit) {
    const uint32_t part = (uint32_t)(unit / l->units_per_part);
    const uint64_t part_row = part * l->part_rows, in_part = unit % l->units_per_part * l->unit;
    const uint64_t from = sh_max_u64(l->row0, part_row + in_part);
    const uint64_t to = sh_min_u64(l->row0 + l->n_rows, part_row + sh_min_u64(l->part_rows, in_part + l->unit));
    const uint8_t *src = l->src + (from - l->row0) * l->row_bytes;
    const struct sh_cpu_matrix *x = &l->w->matrix;
    switch (l->w->store) {
    case SH_CPU_UNUSED: break;
    case SH_CPU_VECTOR: sh_dequantize(x->type, src, (float *)x->data + from * x->cols, (to - from) * x->cols); break;
    case SH_CPU_TABLE: memcpy((uint8_t *)x->data + from * l->row_bytes, src, (to - from) * l->row_bytes); break;
    case SH_CPU_MATRIX: {
        const struct sh_cpu_matrix matrix = sh_cpu_weight_part(l->w, part);
        l->device->kernels->pack(&matrix, from - part_row, to - from, src);
        break;
    }
    }
}

/* Item i: the i-th unit of the slice. */
static void load_units(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct load *l = arg;
    const uint64_t first = unit_of(l, l->row0) + l->first_unit;
    for (uint64_t i = begin; i < end; i++) load_unit(l, first + i);
}

enum sh_code sh_cpu_weight_rows(struct sh_exec_model *model, uint32_t weight, uint64_t row0, uint64_t n_rows, const void *src,
                                struct sh_error *err) {
    if (weight >= model->program->n_weights) return sh_fail(err, SH_ERR_INVALID, "weight %u does not exist", weight);
    struct sh_cpu_weight *w = &model->weights[weight];
    const char *name = model->program->weights[weight].name;
    if (w->store == SH_CPU_UNUSED) return sh_fail(err, SH_ERR_INVALID, "weight %s is not used by this segment", name);
    if (row0 != w->rows_loaded || n_rows > w->matrix.rows - row0)
        return sh_fail(err, SH_ERR_INVALID,
                       "weight %s: found rows %" PRIu64 " + %" PRIu64 ", expected them from %" PRIu64 " of %" PRIu64, name, row0,
                       n_rows, w->rows_loaded, w->matrix.rows);
    if (n_rows == 0) return SH_OK;
    struct load load = {
        .device = model->device,
        .w = w,
        .src = src,
        .row0 = row0,
        .n_rows = n_rows,
        .row_bytes = sh_type_row_bytes(w->matrix.type, w->matrix.cols),
        .unit = model->device->kernels->group_rows,
        .part_rows = w->matrix.rows / w->n_parts,
    };
    load.units_per_part = (load.part_rows + load.unit - 1) / load.unit;
    const uint64_t units = unit_of(&load, row0 + n_rows - 1) - unit_of(&load, row0) + 1;
    /* In slices that no step waits for long, in between of which it may enter. */
    const uint64_t per_slice = sh_max_u64(1, SLICE_BYTES / sh_max_u64(1, load.unit * load.row_bytes));
    for (load.first_unit = 0; load.first_unit < units; load.first_unit += per_slice) {
        sh_pool_enter(model->device->pool, SH_POOL_LOAD);
        sh_pool_run(model->device->pool, model->device->threads, sh_min_u64(per_slice, units - load.first_unit), 4, load_units, &load);
        sh_pool_leave(model->device->pool);
    }
    w->rows_loaded += n_rows;
    return SH_OK;
}

enum sh_code sh_cpu_model_finish(struct sh_exec_model *model, struct sh_error *err) {
    for (uint32_t i = 0; i < model->program->n_weights; i++) {
        const struct sh_cpu_weight *w = &model->weights[i];
        if (w->store != SH_CPU_UNUSED && w->rows_loaded != w->matrix.rows)
            return sh_fail(err, SH_ERR_INVALID, "weight %s: found %" PRIu64 " rows, expected %" PRIu64,
                           model->program->weights[i].name, w->rows_loaded, w->matrix.rows);
    }
    return SH_OK;
}

uint64_t sh_cpu_model_bytes(const struct sh_exec_model *model) { return model->block.bytes; }

void sh_cpu_model_destroy(struct sh_exec_model *model) {
    if (model == NULL) return;
    sh_cpu_block_free(model->device, SH_CPU_WEIGHTS, &model->block);
    for (uint32_t s = 0; s < model->n_segments; s++) {
        sh_fused_finish(&model->segments[s].fused);
        free(model->segments[s].places);
        free(model->segments[s].follows);
    }
    free(model->segments);
    free(model->weights);
    free(model);
}
