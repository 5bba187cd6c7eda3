/* record_weights.c - dispatches of the ops that read matrices by parts and layouts. */
#include "compute/vulkan/record.h"

#define IN_ORDER(family) (SH_KERNEL_##family##_table8 - SH_KERNEL_##family##_f32 == SH_LAYOUT_TABLE8)
_Static_assert(IN_ORDER(embed) && IN_ORDER(matmul_r1o2) && IN_ORDER(matmul_r1o4) && IN_ORDER(matmul_r4o4) && IN_ORDER(tile) &&
                   IN_ORDER(wide) && IN_ORDER(column) &&
                   SH_LAYOUT_TABLE8 == SH_LAYOUTS - 1,
               "kernels of a family stand in the order of the layouts");
_Static_assert(SH_P_EMBED_TOKEN == (int)SH_EMBED_TOKEN && SH_P_EMBED_POSITION == (int)SH_EMBED_POSITION &&
                   SH_P_EMBED_FIRST == (int)SH_EMBED_FIRST,
               "the kernel's names of the index");

struct matmul_choice sh_vk_choice(const struct sh_vulkan *vk, enum sh_kernel of_f32, uint32_t layout) {
    const struct sh_vk_shape *shape = sh_vk_shape(vk, of_f32 + layout);
    return (struct matmul_choice){of_f32, shape->rows, shape->outputs};
}

struct matmul_choice sh_vk_choose_matmul(const struct sh_vulkan *vk, const struct sh_layout *layout, uint32_t rows, uint64_t n) {
    if (sh_vk_takes_quants(vk, layout)) return sh_vk_choose_dots(vk, layout->layout, rows);
    const bool vectors = vk->base.info.kind == SH_DEVICE_SOFTWARE && !vk->like_gpu;
    if (rows > FEW_ROWS && vectors && layout->cols % SH_UNIT == 0) return sh_vk_choice(vk, SH_KERNEL_wide_f32, layout->layout);
    if (rows > FEW_ROWS) return sh_vk_choice(vk, SH_KERNEL_tile_f32, layout->layout);
    if (rows > 1) return sh_vk_choice(vk, SH_KERNEL_matmul_r4o4_f32, layout->layout);
    if (vectors && layout->cols % SH_UNIT == 0) return sh_vk_choice(vk, SH_KERNEL_column_f32, layout->layout);
    /* Fewer outputs a workgroup where the matrix is small, so that there are enough of them for a GPU. */
    const bool few = n < 8192 && !vectors;
    return sh_vk_choice(vk, few ? SH_KERNEL_matmul_r1o2_f32 : SH_KERNEL_matmul_r1o4_f32, layout->layout);
}

_Static_assert(SH_P_GLU_SILU == (int)SH_GLU_SILU && SH_P_GLU_GELU == (int)SH_GLU_GELU && SH_P_GLU_GELU_ERF == (int)SH_GLU_GELU_ERF &&
                   SH_P_GLU_RELU == (int)SH_GLU_RELU && SH_P_GLU_SIGMOID == (int)SH_GLU_SIGMOID && SH_P_GLU_MUL == (int)SH_GLU_MUL &&
                   SH_P_GLU_OAI == (int)SH_GLU_OAI,
               "the kernels' kinds of GLU");

enum sh_code sh_vk_check_matrices(const struct sh_exec_model *m, const struct sh_op *op, struct sh_error *err) {
    const char *device = m->vk->base.info.name, *name = m->program->activations[op->out].name;
    const bool experts = op->kind == SH_OP_ROUTE || op->kind == SH_OP_EXPERT_MATMUL || op->kind == SH_OP_EXPERT_SUM;
    if (experts && (op->expert.n_expert > SH_MAX_EXPERTS || op->expert.n_used > SH_MAX_EXPERTS_USED))
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: %s: %u experts, %u of them used; the kernels take up to %d and %d", device,
                       name, op->expert.n_expert, op->expert.n_used, SH_MAX_EXPERTS, SH_MAX_EXPERTS_USED);
    if (op->kind == SH_OP_MATMUL && op->blocks > MAX_GRID)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: %s: %u blocks, the kernels take up to %u", device, name, op->blocks,
                       MAX_GRID);
    if (op->kind != SH_OP_MATMUL && op->kind != SH_OP_EXPERT_MATMUL) return SH_OK;
    const struct sh_vk_weight *w = &m->weights[op->w];
    const uint64_t bytes = w->matrix_rows * w->layout.row_bytes_all;
    if (bytes > SH_VK_PART_BYTES)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: a matrix of '%s' takes %llu MiB, the kernels take up to %llu", device,
                       m->program->weights[op->w].name, (unsigned long long)(bytes >> 20),
                       (unsigned long long)(SH_VK_PART_BYTES >> 20));
    return SH_OK;
}

void sh_vk_record_embed(struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_vk_weight *w = &m->weights[op->w];
    const uint32_t reads[] = {TOUCH_TOKENS}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    for (uint32_t i = 0; i < w->n_parts; i++) { /* parts write different rows: no barrier between them */
        struct sh_pc_embed push = {
            .step = r->slot->step.address,
            .rows = r->slot->rows.address,
            .tokens = r->other->tokens.address,
            .embeddings = r->slot->embeddings.address,
            .dst = address(r, op->out),
            .width = activation(r, op->out)->width,
            .stride = stride(r, op->out),
            .units = w->layout.units,
            .first_row = (uint32_t)w->parts[i].first_row,
            .part_rows = (uint32_t)w->parts[i].n_rows,
            .n_vocab = (uint32_t)m->program->weights[op->w].rows,
            .index = op->embed,
        };
        memcpy(push.constant, w->layout.constant, sizeof push.constant);
        sh_vk_part_planes(m, op->w, i, &push.w);
        const struct sh_vk_grid grid = {fixed(groups(push.width, 512)), by(SH_COUNT_ROWS, 1)};
        DISPATCH(r, SH_KERNEL_embed_f32 + w->layout.layout, push, grid, 0);
    }
}

struct sh_pc_matmul sh_vk_matmul_push(const struct recorder *r, const struct sh_op *op, uint32_t part) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_vk_weight *w = &m->weights[op->w];
    struct sh_pc_matmul push = {
        .step = r->slot->step.address,
        .x = address(r, op->x),
        .dst = address(r, op->out),
        .cols = (uint32_t)m->program->weights[op->w].cols,
        .units = w->layout.units,
        .first_n = (uint32_t)w->parts[part].first_row,
        .x_stride = stride(r, op->x),
        .dst_stride = stride(r, op->out),
        .flags = activation(r, op->out)->rows == SH_ROWS_OUT ? SH_MATMUL_BY_OUTPUT : 0,
    };
    if (sh_vk_takes_quants(m->vk, &w->layout)) sh_vk_push_quants(r, op, &push);
    sh_vk_part_planes(m, op->w, part, &push.w);
    memcpy(push.constant, w->layout.constant, sizeof push.constant);
    if (op->bias != SH_NONE) {
        push.bias = table(r, op->bias);
        push.flags |= SH_MATMUL_BIAS;
    }
    return push;
}

/* ---- turned rows ---- */

/* Columns of a block of turned rows: pairs of experts are turned by the matrix's inputs, rows whole, whatever blocks read of them. */
static uint32_t turned_cols(const struct sh_exec_model *m, const struct sh_op *op) {
    return op->kind == SH_OP_EXPERT_MATMUL ? (uint32_t)m->program->weights[op->w].cols : m->program->activations[op->x].width;
}

uint64_t sh_vk_turned_bytes(const struct sh_exec_model *m, uint32_t max_rows) {
    const uint32_t rows = 1u << sh_vk_row_bucket(max_rows);
    uint64_t most = 0;
    for (uint32_t p = 0; p < m->n_plans; p++)
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &m->plans[p].fused.ops[i];
            if (op->kind != SH_OP_MATMUL && op->kind != SH_OP_EXPERT_MATMUL) continue;
            const struct matmul_choice choice = sh_vk_choose_matmul(m->vk, &m->weights[op->w].layout, FEW_ROWS + 1, 1);
            if (!sh_vk_reads_turned(choice)) continue;
            const uint64_t blocks = op->kind == SH_OP_EXPERT_MATMUL ? sh_vk_list_items(op, rows, choice.rows) : (rows + choice.rows - 1) / choice.rows;
            const uint64_t floats = blocks * choice.rows * turned_cols(m, op);
            most = sh_max_u64(most, floats * sizeof(float));
        }
    return most;
}

void sh_vk_record_turned(struct recorder *r, const struct sh_op *op, const struct sh_pc_matmul *push, struct sh_vk_axis y, uint32_t z) {
    const uint32_t turned_by = op->kind == SH_OP_EXPERT_MATMUL ? op->y : SH_NONE;
    if (r->turned_of == op->x && r->turned_by == turned_by) return;
    r->turned_of = op->x;
    r->turned_by = turned_by;
    const uint32_t reads[] = {touch(r, op->x), turned_by != SH_NONE ? TOUCH_LIST : touch(r, op->x)}, writes[] = {TOUCH_TURNED};
    sh_vk_touches(r, reads, 2, writes, 1);
    struct sh_pc_matmul turn = *push;
    turn.dst = r->context->turned.address;
    turn.cols = turned_cols(r->context->model, op);
    const struct sh_vk_grid grid = {fixed(groups(turn.cols, 64)), y, z};
    DISPATCH(r, SH_KERNEL_turn, turn, grid, 0);
}

void sh_vk_push_turned(const struct recorder *r, const struct sh_op *op, struct sh_pc_matmul *push) {
    push->x = r->context->turned.address;
    push->x_stride = turned_cols(r->context->model, op);
}

/* ---- products ---- */

/* Of products side by side those that are one product with the first: their matrices lie one below the other. */
static uint32_t count_joined(const struct recorder *r, const struct sh_op *ops, uint32_t n) {
    const struct sh_fused *f = &r->plan->fused;
    for (uint32_t i = 1; i < n; i++) {
        const uint32_t above = ops[i - 1].out, out = ops[i].out;
        if (!sh_vk_follows(r->context->model, ops[i - 1].w, ops[i].w) || !sh_vk_follows(r->context->model, ops[i - 1].bias, ops[i].bias) ||
            f->slot[out] != f->slot[above] || f->column[out] != f->column[above] + activation(r, above)->width)
            return i;
    }
    return n;
}

/* Products that are one, of all rows of their matrices. */
static void record_joined(struct recorder *r, const struct sh_op *ops, uint32_t n) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_op *op = &ops[0];
    const struct sh_vk_weight *w = &m->weights[op->w];
    const struct sh_weight *weight = &m->program->weights[op->w];
    const enum sh_rows by_rows = activation(r, op->out)->rows;
    const uint32_t rows = by_rows == SH_ROWS_OUT ? r->outputs : r->rows;
    uint64_t below = 0; /* rows of the others' matrices: then there is one part */
    for (uint32_t i = 1; i < n; i++) below += m->program->weights[ops[i].w].rows;
    for (uint32_t i = 0; i < w->n_parts; i++) {
        const struct sh_vk_part *part = &w->parts[i];
        struct sh_pc_matmul push = sh_vk_matmul_push(r, op, i);
        const uint64_t part_rows = part->n_rows + below, block_rows = op->blocks > 1 ? weight->rows / op->blocks : part_rows;
        push.n = (uint32_t)block_rows;
        if (op->blocks > 1) push.part = (uint32_t)(part->first_row / block_rows * weight->cols);
        if (op->residual != SH_NONE) {
            push.residual = address(r, op->residual);
            push.residual_stride = stride(r, op->residual);
            push.flags |= SH_MATMUL_RESIDUAL;
        }
        const struct matmul_choice choice = sh_vk_choose_matmul(r->context->vk, &w->layout, rows, part_rows);
        if (sh_vk_reads_turned(choice)) sh_vk_push_turned(r, op, &push);
        const struct sh_vk_grid grid = {fixed(groups(block_rows, choice.outputs)), by(count_of(by_rows), choice.rows),
                                        (uint32_t)(part_rows / block_rows)};
        DISPATCH(r, choice.kernel + w->layout.layout, push, grid, 2.0 * (double)weight->cols * (double)part_rows * rows);
    }
}

/* False: the product's kernel does not read them. */
static bool record_turned_rows(struct recorder *r, const struct sh_op *op, uint32_t rows) {
    const struct matmul_choice choice = sh_vk_choose_matmul(r->context->vk, &r->context->model->weights[op->w].layout, rows, 1);
    if (!sh_vk_reads_turned(choice)) return false;
    const struct sh_pc_matmul push = sh_vk_matmul_push(r, op, 0);
    sh_vk_record_turned(r, op, &push, by(count_of(activation(r, op->out)->rows), choice.rows), 1);
    return true;
}

void sh_vk_record_products(struct recorder *r, const struct sh_op *ops, uint32_t n) {
    const struct sh_exec_model *m = r->context->model;
    const uint32_t rows = activation(r, ops[0].out)->rows == SH_ROWS_OUT ? r->outputs : r->rows;
    SH_ASSERT(n <= SH_BUNDLE_PRODUCTS);
    uint32_t writes[SH_BUNDLE_PRODUCTS];
    double flops = 0;
    for (uint32_t i = 0; i < n; i++) {
        writes[i] = touch(r, ops[i].out);
        flops += 2.0 * (double)m->program->weights[ops[i].w].cols * (double)m->program->weights[ops[i].w].rows * rows;
    }
    sh_vk_maybe_cut(r, flops);
    for (uint32_t i = 0, joined; i < n; i += joined) {
        joined = count_joined(r, &ops[i], n - i);
        const bool quants = sh_vk_takes_quants(r->context->vk, &m->weights[ops[i].w].layout);
        if (quants) sh_vk_record_quants(r, &ops[i]);
        const bool turned = record_turned_rows(r, &ops[i], rows);
        const uint32_t x = quants ? TOUCH_QUANTS : turned ? TOUCH_TURNED : touch(r, ops[i].x);
        const uint32_t reads[] = {x, ops[i].residual != SH_NONE ? touch(r, ops[i].residual) : x};
        sh_vk_touches(r, reads, 2, writes, i == 0 ? n : 0);
        for (uint32_t k = 0; k < n; k++) r->written[writes[k]] = true; /* results do not overlap: no barrier between them */
        record_joined(r, &ops[i], joined);
    }
}

bool sh_vk_record_glu_of_products(struct recorder *r, const struct sh_op *products, const struct sh_op *glu) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_op *first = &products[0], *second = &products[1];
    const uint32_t n = activation(r, glu->out)->width;
    const enum sh_rows by_rows = activation(r, glu->out)->rows;
    const uint32_t rows = by_rows == SH_ROWS_OUT ? r->outputs : r->rows;
    if (rows > FEW_ROWS || activation(r, first->out)->width != n || activation(r, second->out)->width != n ||
        count_joined(r, products, 2) != 2)
        return false;
    const struct sh_vk_weight *w = &m->weights[first->w];
    const bool quants = sh_vk_takes_quants(r->context->vk, &w->layout);
    const double flops = 4.0 * (double)m->program->weights[first->w].cols * n * rows;
    sh_vk_maybe_cut(r, flops);
    if (quants) sh_vk_record_quants(r, first);
    const uint32_t reads[] = {quants ? TOUCH_QUANTS : touch(r, first->x)}, writes[] = {touch(r, glu->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    struct sh_pc_matmul push = sh_vk_matmul_push(r, first, 0);
    push.dst = address(r, glu->out);
    push.dst_stride = stride(r, glu->out);
    push.n = n;
    push.flags |= SH_MATMUL_GLU | (glu->x == second->out ? SH_MATMUL_SWAPPED : 0);
    push.experts = glu->glu;
    const struct matmul_choice choice = sh_vk_choose_matmul(r->context->vk, &w->layout, rows, 2 * (uint64_t)n);
    const struct sh_vk_grid grid = {fixed(groups(n, choice.outputs / 2)), by(count_of(by_rows), choice.rows)};
    DISPATCH(r, choice.kernel + w->layout.layout, push, grid, flops);
    return true;
}
