#include "compute/cpu/cpu.h"

#include <inttypes.h>
#include <stdlib.h>

static enum sh_code want_store(struct sh_exec_model *m, uint32_t weight, enum sh_cpu_store store, struct sh_error *err) {
    if (weight == SH_NONE) return SH_OK;
    struct sh_cpu_weight *w = &m->weights[weight];
    const struct sh_weight *spec = &m->segment.program->weights[weight];
    if (w->store != SH_CPU_UNUSED && (w->store == SH_CPU_VECTOR) != (store == SH_CPU_VECTOR))
        return sh_fail(err, SH_ERR_UNSUPPORTED, "weight %s is used both as a vector and as a matrix", spec->name);
    if (store > w->store) w->store = store;
    const struct sh_type_info *type = sh_type_info(spec->type);
    if (type == NULL || !type->computable)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "weight %s: type %s is not computed by the CPU executor", spec->name,
                       type != NULL ? type->name : "unknown");
    if (spec->cols == 0 || spec->rows == 0 || sh_type_row_bytes(spec->type, spec->cols) == 0)
        return sh_fail(err, SH_ERR_FORMAT, "weight %s: a row of %" PRIu64 " is no multiple of the %u elements of a block of %s",
                       spec->name, spec->cols, type->block_elements, type->name);
    w->matrix = (struct sh_cpu_matrix){.type = spec->type, .cols = spec->cols, .rows = spec->rows};
    return SH_OK;
}

static enum sh_code choose_stores(struct sh_exec_model *m, struct sh_error *err) {
    const struct sh_program *program = m->segment.program;
    for (uint32_t i = 0; i < m->segment.n_ops; i++) {
        const struct sh_op *op = &program->ops[m->segment.first_op + i];
        const enum sh_cpu_store store = op->kind == SH_OP_MATMUL  ? SH_CPU_MATRIX
                                        : op->kind == SH_OP_EMBED ? SH_CPU_TABLE
                                                                  : SH_CPU_VECTOR;
        enum sh_code code = want_store(m, op->w, store, err);
        if (code == SH_OK) code = want_store(m, op->bias, SH_CPU_VECTOR, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

static bool stored_bytes(const struct sh_exec_model *m, const struct sh_cpu_weight *w, uint64_t *out) {
    const struct sh_cpu_matrix *x = &w->matrix;
    uint64_t elements;
    if (!sh_mul_u64(x->cols, x->rows, &elements) || elements > UINT64_MAX / 16) return false;
    switch (w->store) {
    case SH_CPU_UNUSED: *out = 0; break;
    case SH_CPU_VECTOR: *out = elements * sizeof(float); break;
    case SH_CPU_TABLE: *out = sh_type_row_bytes(x->type, x->cols) * x->rows; break;
    case SH_CPU_MATRIX: *out = m->device->kernels->matrix_bytes(x->type, x->cols, x->rows); break;
    }
    return true;
}

/* One mapping for all weights: huge pages cover the small ones too. */
static enum sh_code allocate(struct sh_exec_model *m, struct sh_error *err) {
    const struct sh_program *program = m->segment.program;
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

/* What this executor computes of the program's ops. */
static enum sh_code check_ops(const struct sh_segment *segment, struct sh_error *err) {
    for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++) {
        const struct sh_op *op = &segment->program->ops[i];
        bool known = true;
        switch (op->kind) {
        case SH_OP_EMBED: known = op->embed == SH_EMBED_TOKEN; break;
        case SH_OP_NORM:
            known = op->norm.kind == SH_NORM_RMS && op->norm.n_groups == 1 && op->w != SH_NONE && op->bias == SH_NONE;
            break;
        case SH_OP_MATMUL: known = op->blocks == 1; break;
        case SH_OP_GLU: known = op->glu == SH_GLU_SILU; break;
        case SH_OP_ROPE_CACHE: known = op->rope.first == 0 && op->rope.n_rot > 0 && !op->attn.v_in_k; break;
        case SH_OP_ATTENTION:
            known = !op->attn.bidirectional && op->attn.window == 0 && op->attn.softcap == 0 && op->w == SH_NONE && op->bias == SH_NONE;
            break;
        case SH_OP_ADD:
        case SH_OP_GATHER_OUT: break;
        default: known = false;
        }
        if (!known)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "op %s of %s is not computed by this executor", sh_op_name(op->kind),
                           segment->program->activations[op->out].name);
    }
    return SH_OK;
}

enum sh_code sh_cpu_model_create(struct sh_device *device, const struct sh_segment *segments, uint32_t n_segments,
                                 struct sh_exec_model **out, struct sh_error *err) {
    *out = NULL;
    SH_ASSERT(n_segments == 1);
    const struct sh_segment *segment = segments;
    const enum sh_code known = check_ops(segment, err);
    if (known != SH_OK) return known;
    struct sh_exec_model *m = sh_calloc(1, sizeof *m);
    if (m == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a model of the CPU executor");
    m->device = (struct sh_cpu_device *)device;
    m->segment = *segment;
    m->weights = sh_calloc(segment->program->n_weights, sizeof *m->weights);
    enum sh_code code =
        m->weights != NULL ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u weights", segment->program->n_weights);
    if (code == SH_OK) code = choose_stores(m, err);
    if (code == SH_OK) code = sh_fuse(&m->segment, SH_FUSE_RESIDUAL, &m->fused, err);
    if (code == SH_OK) code = allocate(m, err);
    if (code != SH_OK) {
        sh_cpu_model_destroy(m);
        return code;
    }
    *out = m;
    return SH_OK;
}

struct load {
    const struct sh_cpu_device *device;
    const struct sh_cpu_weight *w;
    const uint8_t *src;
    uint64_t row0, n_rows, row_bytes, unit;
};

/* Item i: the rows of [row0, row0 + n_rows) that fall into the i-th unit counted from row0's, so that a packed group has one
 * writer. */
static void load_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct load *l = arg;
    const uint64_t first_unit = l->row0 / l->unit;
    const uint64_t from = sh_max_u64(l->row0, (first_unit + begin) * l->unit);
    const uint64_t to = sh_min_u64(l->row0 + l->n_rows, (first_unit + end) * l->unit);
    const uint8_t *src = l->src + (from - l->row0) * l->row_bytes;
    const struct sh_cpu_matrix *x = &l->w->matrix;
    switch (l->w->store) {
    case SH_CPU_UNUSED: break;
    case SH_CPU_VECTOR: sh_dequantize(x->type, src, (float *)x->data + from * x->cols, (to - from) * x->cols); break;
    case SH_CPU_TABLE: memcpy((uint8_t *)x->data + from * l->row_bytes, src, (to - from) * l->row_bytes); break;
    case SH_CPU_MATRIX: l->device->kernels->pack(x, from, to - from, src); break;
    }
}

enum sh_code sh_cpu_weight_rows(struct sh_exec_model *model, uint32_t weight, uint64_t row0, uint64_t n_rows, const void *src,
                                struct sh_error *err) {
    if (weight >= model->segment.program->n_weights) return sh_fail(err, SH_ERR_INVALID, "weight %u does not exist", weight);
    struct sh_cpu_weight *w = &model->weights[weight];
    const char *name = model->segment.program->weights[weight].name;
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
    };
    const uint64_t units = (row0 + n_rows - 1) / load.unit - row0 / load.unit + 1;
    sh_pool_enter(model->device->pool, SH_POOL_LOAD);
    sh_pool_run(model->device->pool, model->device->threads, units, 4, load_rows, &load);
    sh_pool_leave(model->device->pool);
    w->rows_loaded += n_rows;
    return SH_OK;
}

enum sh_code sh_cpu_model_finish(struct sh_exec_model *model, struct sh_error *err) {
    for (uint32_t i = 0; i < model->segment.program->n_weights; i++) {
        const struct sh_cpu_weight *w = &model->weights[i];
        if (w->store != SH_CPU_UNUSED && w->rows_loaded != w->matrix.rows)
            return sh_fail(err, SH_ERR_INVALID, "weight %s: found %" PRIu64 " rows, expected %" PRIu64,
                           model->segment.program->weights[i].name, w->rows_loaded, w->matrix.rows);
    }
    return SH_OK;
}

uint64_t sh_cpu_model_bytes(const struct sh_exec_model *model) { return model->block.bytes; }

void sh_cpu_model_destroy(struct sh_exec_model *model) {
    if (model == NULL) return;
    sh_cpu_block_free(model->device, SH_CPU_WEIGHTS, &model->block);
    free(model->weights);
    sh_fused_finish(&model->fused);
    free(model);
}
