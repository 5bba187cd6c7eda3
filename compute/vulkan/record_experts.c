/*
 * record_experts.c - dispatches of the ops of experts. For few rows every pair of a row and a slot is a row of its own; for more the pairs
 * are put in order of their experts on the device (expert_list.comp), once for all products of a ROUTE's result, and the kernels for
 * several rows go through the items of that list. The grid holds as many items as the bucket's rows can make: what is left over has
 * nothing to do.
 */
#include "compute/vulkan/record.h"

#define ITEMS_DOWN 32768u /* of a list's items along grid y; more stand behind them along z */
_Static_assert(ITEMS_DOWN <= MAX_GRID, "a column of items fits a grid");

/* Pairs of an expert, on average, from which the kernel of many rows is the faster one. */
#define TILE_PAIRS 24

static uint32_t pack_experts(const struct sh_op *op) { return op->expert.n_used | op->expert.n_expert << 16; }

struct matmul_choice sh_vk_choose_experts(const struct sh_vulkan *vk, const struct sh_layout *layout, const struct sh_op *op,
                                          uint32_t rows, uint64_t n) {
    const uint64_t pairs = (uint64_t)rows * op->expert.n_used;
    if (rows == 1 || pairs <= op->expert.n_expert) return sh_vk_choose_matmul(vk, layout, 1, n);
    return sh_vk_choose_matmul(vk, layout, pairs < TILE_PAIRS * (uint64_t)op->expert.n_expert ? 4 : 64, n);
}

uint32_t sh_vk_list_items(const struct sh_op *op, uint32_t rows, uint32_t per_item) {
    return (uint32_t)((uint64_t)rows * op->expert.n_used / per_item) + op->expert.n_expert;
}

uint64_t sh_vk_expert_list_bytes(const struct sh_exec_model *m, uint32_t max_rows) {
    const uint32_t rows = 1u << sh_vk_row_bucket(max_rows); /* that a recording counts with; items of 64 are fewer */
    uint64_t most = 0;
    for (uint32_t p = 0; p < m->n_plans; p++)
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &m->plans[p].fused.ops[i];
            if (op->kind != SH_OP_EXPERT_MATMUL) continue;
            most = sh_max_u64(most, sh_vk_list_items(op, rows, 4) * 16ull + (uint64_t)rows * op->expert.n_used * 4);
        }
    return most;
}

void sh_vk_record_route(struct recorder *r, const struct sh_op *op) {
    const enum sh_rows rows = activation(r, op->out)->rows;
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    struct sh_pc_route push = {
        .step = r->slot->step.address,
        .x = address(r, op->x),
        .bias = op->bias != SH_NONE ? table(r, op->bias) : 0,
        .dst = address(r, op->out),
        .x_stride = stride(r, op->x),
        .dst_stride = stride(r, op->out),
        .experts = pack_experts(op),
        .groups = op->expert.n_groups > 1 ? op->expert.n_groups_used | op->expert.n_groups << 16 : 0,
        .flags = (op->expert.normalise ? SH_ROUTE_NORMALISE : 0) | (op->bias != SH_NONE ? SH_ROUTE_BIAS : 0) |
                 (rows == SH_ROWS_OUT ? SH_ROUTE_BY_OUTPUT : 0),
        .scale = op->expert.scale,
    };
    switch (op->expert.gating) {
    case SH_GATE_SOFTMAX: push.flags |= SH_ROUTE_SOFTMAX; break;
    case SH_GATE_SOFTMAX_CHOSEN: push.flags |= SH_ROUTE_SOFTMAX_CHOSEN; break;
    case SH_GATE_SIGMOID: push.flags |= SH_ROUTE_SIGMOID; break;
    }
    const struct sh_vk_grid grid = {by(count_of(rows), 1), fixed(1), 1};
    DISPATCH(r, SH_KERNEL_route, push, grid, 0);
}

static void record_list(struct recorder *r, const struct sh_op *op, uint32_t items, uint32_t per_item) {
    if (r->list_of == op->y && r->list_per_item == per_item) return; /* the same rows, experts and kernel's size: the same list */
    r->list_of = op->y;
    r->list_per_item = per_item;
    const uint32_t reads[] = {touch(r, op->y)}, writes[] = {TOUCH_LIST};
    sh_vk_touches(r, reads, 1, writes, 1);
    const struct sh_pc_expert_list push = {
        .step = r->slot->step.address,
        .route = address(r, op->y),
        .list = r->context->expert_list.address,
        .route_stride = stride(r, op->y),
        .experts = pack_experts(op),
        .per_item = per_item,
        .items = items,
        .by_output = activation(r, op->y)->rows == SH_ROWS_OUT,
    };
    const struct sh_vk_grid grid = {fixed(op->expert.n_expert), fixed(1), 1};
    DISPATCH(r, SH_KERNEL_expert_list, push, grid, 0);
}

/* Of a part that has `n_experts` experts from the first one on. items: of the list, 0: there is none. */
static struct sh_pc_matmul expert_push(const struct recorder *r, const struct sh_op *op, uint32_t part, uint32_t items, uint32_t first,
                                       uint32_t n_experts) {
    struct sh_pc_matmul push = sh_vk_matmul_push(r, op, part);
    push.n = (uint32_t)(r->context->model->program->weights[op->w].rows / op->expert.n_expert);
    push.first_n = first;
    push.part = n_experts;
    push.experts = pack_experts(op);
    push.residual = items == 0 ? address(r, op->y) : r->context->expert_list.address;
    push.residual_stride = items == 0 ? stride(r, op->y) : items;
    push.flags |= SH_MATMUL_EXPERTS | (op->expert.per_slot ? SH_MATMUL_PER_SLOT : 0);
    return push;
}

void sh_vk_record_expert_matmul(struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_vk_weight *w = &m->weights[op->w];
    const enum sh_rows by_rows = activation(r, op->out)->rows;
    const uint32_t rows = by_rows == SH_ROWS_OUT ? r->outputs : r->rows;
    const uint64_t n = m->program->weights[op->w].rows / op->expert.n_expert;
    const double flops = 2.0 * (double)m->program->weights[op->w].cols * (double)n * op->expert.n_used * rows;
    const struct matmul_choice choice = sh_vk_choose_experts(r->context->vk, &w->layout, op, rows, n);
    const bool direct = choice.rows == 1;
    const uint32_t items = direct ? 0 : sh_vk_list_items(op, rows, choice.rows);
    sh_vk_maybe_cut(r, flops);
    if (!direct) record_list(r, op, items, choice.rows);
    const struct sh_vk_axis y = direct ? by(count_of(by_rows), 1) : fixed(items < ITEMS_DOWN ? items : ITEMS_DOWN);
    const uint32_t z = direct ? op->expert.n_used : (items + ITEMS_DOWN - 1) / ITEMS_DOWN;
    const bool quants = sh_vk_takes_quants(r->context->vk, &w->layout), turned = sh_vk_reads_turned(choice);
    if (quants) sh_vk_record_quants(r, op);
    if (turned) {
        const struct sh_pc_matmul all = expert_push(r, op, 0, items, 0, op->expert.n_expert);
        sh_vk_record_turned(r, op, &all, y, z);
    }
    const uint32_t x = quants ? TOUCH_QUANTS : turned ? TOUCH_TURNED : touch(r, op->x);
    const uint32_t reads[] = {x, direct ? touch(r, op->y) : TOUCH_LIST}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 2, writes, 1);
    for (uint32_t i = 0; i < w->n_parts; i++) { /* a part makes the pairs of its own experts */
        const struct sh_vk_part *part = &w->parts[i];
        struct sh_pc_matmul push = expert_push(r, op, i, items, (uint32_t)(part->first_row / n), (uint32_t)(part->n_rows / n));
        if (turned) sh_vk_push_turned(r, op, &push);
        const struct sh_vk_grid grid = {fixed(groups(n, choice.outputs)), y, z};
        DISPATCH(r, choice.kernel + w->layout.layout, push, grid, flops / w->n_parts);
    }
}

void sh_vk_record_expert_sum(struct recorder *r, const struct sh_op *op) {
    const enum sh_rows rows = activation(r, op->out)->rows;
    const uint32_t reads[] = {touch(r, op->x), touch(r, op->y)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 2, writes, 1);
    const struct sh_pc_expert_sum push = {
        .step = r->slot->step.address,
        .x = address(r, op->x),
        .route = address(r, op->y),
        .dst = address(r, op->out),
        .width = activation(r, op->out)->width,
        .x_stride = stride(r, op->x),
        .route_stride = stride(r, op->y),
        .dst_stride = stride(r, op->out),
        .n_used = op->expert.n_used,
        .by_output = rows == SH_ROWS_OUT,
    };
    const struct sh_vk_grid grid = {fixed(groups(push.width, 64)), by(count_of(rows), 1), 1};
    DISPATCH(r, SH_KERNEL_expert_sum, push, grid, 0);
}
