/* record_weights.c - dispatches of the ops that read matrices by parts and layouts. */
#include "compute/vulkan/record.h"

_Static_assert(SH_KERNEL_embed_q6_k - SH_KERNEL_embed_f32 == SH_LAYOUT_Q6_K &&
                   SH_KERNEL_matmul_r1o2_q6_k - SH_KERNEL_matmul_r1o2_f32 == SH_LAYOUT_Q6_K &&
                   SH_KERNEL_matmul_r1o4_q6_k - SH_KERNEL_matmul_r1o4_f32 == SH_LAYOUT_Q6_K &&
                   SH_KERNEL_matmul_r4o4_q6_k - SH_KERNEL_matmul_r4o4_f32 == SH_LAYOUT_Q6_K &&
                   SH_KERNEL_tile_q6_k - SH_KERNEL_tile_f32 == SH_LAYOUT_Q6_K,
               "kernels of a family stand in the order of the layouts");

/* Which matmul kernel makes `rows` rows (a power of two, the bucket's size): all give the same bits. */
struct matmul_choice {
    enum sh_kernel kernel;  /* of the layout f32; the others follow it */
    uint32_t rows, outputs; /* of a workgroup */
};
static struct matmul_choice choose_matmul(const struct sh_vulkan *vk, uint32_t rows, uint64_t n) {
    if (rows > 8) return (struct matmul_choice){SH_KERNEL_tile_f32, 64, 64};
    if (rows > 1) return (struct matmul_choice){SH_KERNEL_matmul_r4o4_f32, 4, 16};
    /* Fewer outputs a workgroup where the matrix is small, so that there are enough of them for a GPU. */
    const bool few = n < 8192 && (vk->base.info.kind != SH_DEVICE_SOFTWARE || vk->like_gpu);
    return few ? (struct matmul_choice){SH_KERNEL_matmul_r1o2_f32, 1, 8}
               : (struct matmul_choice){SH_KERNEL_matmul_r1o4_f32, 1, 16};
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
        };
        sh_vk_part_planes(m, op->w, i, &push.w);
        const struct sh_vk_grid grid = {fixed(groups(push.width, 512)), by(SH_COUNT_ROWS, 1)};
        DISPATCH(r, SH_KERNEL_embed_f32 + w->layout.layout, push, grid, 0);
    }
}

void sh_vk_record_matmul(struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_vk_weight *w = &m->weights[op->w];
    const struct sh_weight *weight = &m->program->weights[op->w];
    const bool by_output = activation(r, op->out)->rows == SH_ROWS_OUT;
    const uint32_t rows = by_output ? r->outputs : r->rows;
    const double flops = 2.0 * (double)weight->cols * (double)weight->rows * rows;
    sh_vk_maybe_cut(r, flops);
    const uint32_t reads[] = {touch(r, op->x), op->residual != SH_NONE ? touch(r, op->residual) : touch(r, op->x)};
    const uint32_t writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 2, writes, 1);
    for (uint32_t i = 0; i < w->n_parts; i++) {
        const struct sh_vk_part *part = &w->parts[i];
        struct sh_pc_matmul push = {
            .step = r->slot->step.address,
            .x = address(r, op->x),
            .dst = address(r, op->out),
            .cols = (uint32_t)weight->cols,
            .units = w->layout.units,
            .n = (uint32_t)part->n_rows,
            .first_n = (uint32_t)part->first_row,
            .x_stride = stride(r, op->x),
            .dst_stride = stride(r, op->out),
            .flags = by_output ? SH_MATMUL_BY_OUTPUT : 0,
        };
        sh_vk_part_planes(m, op->w, i, &push.w);
        if (op->bias != SH_NONE) {
            push.bias = table(r, op->bias);
            push.flags |= SH_MATMUL_BIAS;
        }
        if (op->residual != SH_NONE) {
            push.residual = address(r, op->residual);
            push.residual_stride = stride(r, op->residual);
            push.flags |= SH_MATMUL_RESIDUAL;
        }
        const struct matmul_choice choice = choose_matmul(r->context->vk, rows, part->n_rows);
        const enum sh_vk_count count = by_output ? SH_COUNT_OUTPUTS : SH_COUNT_ROWS;
        const double part_flops = flops * (double)part->n_rows / (double)weight->rows;
        const struct sh_vk_grid grid = {fixed(groups(part->n_rows, choice.outputs)), by(count, choice.rows)};
        DISPATCH(r, choice.kernel + w->layout.layout, push, grid, part_flops);
    }
}

static enum sh_code warm_plan(const struct sh_exec_model *m, const struct sh_fused *fused, struct sh_error *err) {
    enum sh_code code = SH_OK;
    VkPipeline made;
    for (uint32_t i = 0; i < fused->n_ops && code == SH_OK; i++) {
        const struct sh_op *op = &fused->ops[i];
        if (op->kind != SH_OP_MATMUL) continue;
        const uint32_t layout = m->weights[op->w].layout.layout;
        const uint64_t n = m->weights[op->w].parts[0].n_rows;
        for (uint32_t rows = 1; rows <= 16 && code == SH_OK; rows *= 4)
            code = sh_vk_pipeline(m->vk, choose_matmul(m->vk, rows, n).kernel + layout, &made, err);
    }
    return code;
}

enum sh_code sh_vk_warm_pipelines(const struct sh_exec_model *m, struct sh_error *err) {
    enum sh_code code = SH_OK;
    for (uint32_t p = 0; p < m->n_plans && code == SH_OK; p++) code = warm_plan(m, &m->plans[p].fused, err);
    return code;
}
