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

struct matmul_choice sh_vk_choose_matmul(const struct sh_vulkan *vk, const struct sh_layout *layout, uint32_t rows, uint64_t n) {
    if (sh_vk_takes_quants(vk, layout)) return sh_vk_choose_dots(vk, layout->layout, rows);
    const bool vectors = vk->base.info.kind == SH_DEVICE_SOFTWARE && !vk->like_gpu;
    if (rows > 8 && vectors && layout->cols % SH_UNIT == 0) return (struct matmul_choice){SH_KERNEL_wide_f32, 16, 64};
    if (rows > 8) return (struct matmul_choice){SH_KERNEL_tile_f32, 64, 64};
    if (rows > 1) return (struct matmul_choice){SH_KERNEL_matmul_r4o4_f32, 4, 16};
    if (vectors && layout->cols % SH_UNIT == 0) return (struct matmul_choice){SH_KERNEL_column_f32, 1, 128};
    /* Fewer outputs a workgroup where the matrix is small, so that there are enough of them for a GPU. */
    const bool few = n < 8192 && !vectors;
    return few ? (struct matmul_choice){SH_KERNEL_matmul_r1o2_f32, 1, 8}
               : (struct matmul_choice){SH_KERNEL_matmul_r1o4_f32, 1, 16};
}

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

void sh_vk_record_matmul(struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_vk_weight *w = &m->weights[op->w];
    const struct sh_weight *weight = &m->program->weights[op->w];
    const enum sh_rows by_rows = activation(r, op->out)->rows;
    const uint32_t rows = by_rows == SH_ROWS_OUT ? r->outputs : r->rows;
    const double flops = 2.0 * (double)weight->cols * (double)weight->rows * rows;
    const bool quants = sh_vk_takes_quants(r->context->vk, &w->layout);
    sh_vk_maybe_cut(r, flops);
    if (quants) sh_vk_record_quants(r, op);
    const uint32_t x = quants ? TOUCH_QUANTS : touch(r, op->x);
    const uint32_t reads[] = {x, op->residual != SH_NONE ? touch(r, op->residual) : x};
    const uint32_t writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 2, writes, 1);
    for (uint32_t i = 0; i < w->n_parts; i++) {
        const struct sh_vk_part *part = &w->parts[i];
        struct sh_pc_matmul push = sh_vk_matmul_push(r, op, i);
        const uint64_t block_rows = op->blocks > 1 ? weight->rows / op->blocks : part->n_rows;
        push.n = (uint32_t)block_rows;
        if (op->blocks > 1) push.part = (uint32_t)(part->first_row / block_rows * weight->cols);
        if (op->residual != SH_NONE) {
            push.residual = address(r, op->residual);
            push.residual_stride = stride(r, op->residual);
            push.flags |= SH_MATMUL_RESIDUAL;
        }
        const struct matmul_choice choice = sh_vk_choose_matmul(r->context->vk, &w->layout, rows, part->n_rows);
        const double part_flops = flops * (double)part->n_rows / (double)weight->rows;
        const struct sh_vk_grid grid = {fixed(groups(block_rows, choice.outputs)), by(count_of(by_rows), choice.rows),
                                        (uint32_t)(part->n_rows / block_rows)};
        DISPATCH(r, choice.kernel + w->layout.layout, push, grid, part_flops);
    }
}
