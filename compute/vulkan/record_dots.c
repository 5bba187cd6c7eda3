/*
 * record_dots.c - products in the tier intdot: their inputs become int8 once for all products that take them next to each other, then the
 * kernels of dot.comp and dot_tile.comp (or coop.comp), which give the same bits, take the place of those of matmul.comp and tile.comp.
 */
#include "compute/vulkan/record.h"

#define IN_ORDER(family) (SH_KERNEL_##family##_table8 - SH_KERNEL_##family##_q4_0 == SH_LAYOUT_TABLE8 - SH_LAYOUT_Q4_0)
_Static_assert(IN_ORDER(dot_r1o4) && IN_ORDER(dot_r4o2) && IN_ORDER(dot_tile) && IN_ORDER(coop), "kernels of a family stand in the order of the layouts");
#define OF_F32(family) (enum sh_kernel)(SH_KERNEL_##family##_q4_0 - SH_LAYOUT_Q4_0) /* where the family's first layout would be */

#define UNIT_BYTES 48u /* of quantise.glsl */

bool sh_vk_takes_quants(const struct sh_vulkan *vk, const struct sh_layout *layout) {
    return vk->tier >= SH_TIER_INTDOT && layout->layout >= SH_LAYOUT_Q4_0;
}

struct matmul_choice sh_vk_choose_dots(const struct sh_vulkan *vk, uint32_t layout, uint32_t rows) {
    const bool halves = layout == SH_LAYOUT_Q2_K || layout == SH_LAYOUT_Q6_K || layout == SH_LAYOUT_TABLE256 || layout == SH_LAYOUT_TABLE8;
    if (rows > FEW_ROWS && vk->tier == SH_TIER_COOPMAT && vk->coop.k <= (halves ? 16 : 32)) return sh_vk_choice(vk, OF_F32(coop), layout);
    if (rows > FEW_ROWS) return sh_vk_choice(vk, OF_F32(dot_tile), layout);
    return sh_vk_choice(vk, rows > 1 ? OF_F32(dot_r4o2) : OF_F32(dot_r1o4), layout);
}

uint32_t sh_vk_wants_pairs(uint32_t layout) {
    switch (layout) {
    case SH_LAYOUT_Q4_0:
    case SH_LAYOUT_Q4_1:
    case SH_LAYOUT_Q5_1:
    case SH_LAYOUT_Q4_K:
    case SH_LAYOUT_Q5_K:
    case SH_LAYOUT_Q6_K: return 1;
    default: return 0;
    }
}

uint64_t sh_vk_quants_bytes(const struct sh_exec_model *m, uint32_t max_rows) {
    uint64_t most = 0;
    for (uint32_t p = 0; p < m->n_plans; p++)
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &m->plans[p].fused.ops[i];
            if ((op->kind == SH_OP_MATMUL || op->kind == SH_OP_EXPERT_MATMUL) && sh_vk_takes_quants(m->vk, &m->weights[op->w].layout))
                most = sh_max_u64(most, (uint64_t)m->program->activations[op->x].width / SH_UNIT * UNIT_BYTES);
        }
    return most * max_rows;
}

void sh_vk_record_quants(struct recorder *r, const struct sh_op *op) {
    const uint32_t pairs = sh_vk_wants_pairs(r->context->model->weights[op->w].layout.layout);
    if (r->quants_of == op->x && r->quants_pairs == pairs) return;
    r->quants_of = op->x;
    r->quants_pairs = pairs;
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {TOUCH_QUANTS};
    sh_vk_touches(r, reads, 1, writes, 1);
    const enum sh_rows rows = activation(r, op->x)->rows;
    const struct sh_pc_quantise push = {
        .step = r->slot->step.address,
        .x = address(r, op->x),
        .dst = r->context->quants.address,
        .x_stride = stride(r, op->x),
        .units = activation(r, op->x)->width / SH_UNIT,
        .by_output = rows == SH_ROWS_OUT,
        .pairs = pairs,
    };
    const struct sh_vk_grid grid = {fixed(groups(push.units, 8)), by(count_of(rows), 1), 1};
    DISPATCH(r, SH_KERNEL_quantise, push, grid, 0);
}

void sh_vk_push_quants(const struct recorder *r, const struct sh_op *op, struct sh_pc_matmul *push) {
    push->x = r->context->quants.address;
    push->x_stride = activation(r, op->x)->width;
}
