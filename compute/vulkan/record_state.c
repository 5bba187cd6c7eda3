/*
 * record_state.c - dispatches of the recurrent ops. They read the page of a sequence's state before the step and write the one after;
 * no step reads a page that it writes, so they touch nothing that a barrier inside a recording would have to order.
 */
#include "compute/vulkan/record.h"

/* Bytes of the op's state in a page. */
static uint32_t state_offset(const struct recorder *r, const struct sh_op *op) {
    const struct sh_vk_pool *pool = &r->context->pools[op->state.group];
    return (uint32_t)((op->state.layer_in_group - pool->first_layer) * pool->layer_bytes + op->state.offset * 4ull);
}
static VkDeviceAddress states(const struct recorder *r, const struct sh_op *op) {
    return r->slot->pages[op->state.group].address;
}

static void record_conv(struct recorder *r, const struct sh_op *op) {
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    const struct sh_pc_conv push = {.step = r->slot->step.address,
                                    .rows = r->slot->rows.address,
                                    .sequences = r->slot->sequences.address,
                                    .states = states(r, op),
                                    .x = address(r, op->x),
                                    .w = table(r, op->w),
                                    .bias = op->bias != SH_NONE ? table(r, op->bias) : 0,
                                    .dst = address(r, op->out),
                                    .channels = activation(r, op->out)->width,
                                    .d_conv = op->d_conv,
                                    .x_stride = stride(r, op->x),
                                    .dst_stride = stride(r, op->out),
                                    .state_offset = state_offset(r, op),
                                    .has_bias = op->bias != SH_NONE};
    const struct sh_vk_grid grid = {fixed(groups(push.channels, 64)), by(SH_COUNT_ROWS, 1)};
    DISPATCH(r, SH_KERNEL_conv, push, grid, 0);
}

static void record_scan(struct recorder *r, const struct sh_op *op) {
    const uint32_t reads[] = {touch(r, op->x), touch(r, op->y), touch(r, op->z), touch(r, op->u)}, writes[] = {touch(r, op->out)};
    const uint32_t channels = activation(r, op->x)->width, n_state = activation(r, op->z)->width;
    const double flops = 16.0 * channels * n_state * r->rows; /* one exponential each */
    sh_vk_maybe_cut(r, flops);
    sh_vk_touches(r, reads, 4, writes, 1);
    const struct sh_pc_scan push = {.sequences = r->slot->sequences.address,
                                    .states = states(r, op),
                                    .x = address(r, op->x),
                                    .dt = address(r, op->y),
                                    .b = address(r, op->z),
                                    .c = address(r, op->u),
                                    .a = table(r, op->w),
                                    .skip = table(r, op->bias),
                                    .dst = address(r, op->out),
                                    .channels = channels,
                                    .n_state = n_state,
                                    .x_stride = stride(r, op->x),
                                    .b_stride = stride(r, op->z),
                                    .state_offset = state_offset(r, op)};
    const struct sh_vk_grid grid = {fixed(groups(channels, 64)), by(SH_COUNT_SEQUENCES, 1)};
    DISPATCH(r, SH_KERNEL_scan, push, grid, flops);
}

static void record_delta(struct recorder *r, const struct sh_op *op) {
    const uint32_t reads[] = {touch(r, op->x), touch(r, op->y), touch(r, op->z), touch(r, op->u), touch(r, op->t)},
                   writes[] = {touch(r, op->out)};
    const uint32_t k_dim = op->delta.k_dim, v_dim = op->delta.v_dim,
                   columns = k_dim * 32 <= SH_DELTA_STATE ? 32 : SH_DELTA_STATE / k_dim;
    const double flops = 6.0 * op->delta.n_v_heads * k_dim * v_dim * r->rows;
    sh_vk_maybe_cut(r, flops);
    sh_vk_touches(r, reads, 5, writes, 1);
    const struct sh_pc_delta push = {.sequences = r->slot->sequences.address,
                                     .states = states(r, op),
                                     .q = address(r, op->x),
                                     .k = address(r, op->y),
                                     .v = address(r, op->z),
                                     .decay = address(r, op->u),
                                     .beta = address(r, op->t),
                                     .a = table(r, op->w),
                                     .dt_bias = table(r, op->bias),
                                     .dst = address(r, op->out),
                                     .heads = op->delta.n_k_heads | op->delta.n_v_heads << 16,
                                     .dims = k_dim | v_dim << 16,
                                     .qk_stride = stride(r, op->x),
                                     .v_stride = stride(r, op->z),
                                     .gate_stride = stride(r, op->u),
                                     .state_offset = state_offset(r, op),
                                     .tiled = op->delta.tiled,
                                     .scale = op->delta.scale};
    const uint64_t blocks = (uint64_t)op->delta.n_v_heads * ((v_dim + columns - 1) / columns);
    const struct sh_vk_grid grid = {fixed(groups(blocks, 1)), by(SH_COUNT_SEQUENCES, 1)};
    DISPATCH(r, SH_KERNEL_delta_net, push, grid, flops);
}

void sh_vk_record_recurrent(struct recorder *r, const struct sh_op *op) {
    switch (op->kind) {
    case SH_OP_CONV: record_conv(r, op); break;
    case SH_OP_SCAN: record_scan(r, op); break;
    default: record_delta(r, op); break;
    }
}
