/*
 * record.c - from a segment's fused ops to command buffers that are replayed: every dispatch takes its grid from the slot's
 * parameter block (vkCmdDispatchIndirect), every kernel its row count, so one recording serves all steps of its bucket.
 *
 * Barriers stand only where an op touches what was written since the last one. A recording is cut into several command buffers
 * where the predicted time of one passes SH_VK_CUT_NS, because desktop drivers reset a device whose submission takes seconds.
 */
#include "compute/vulkan/record.h"

#include <stdlib.h>

_Static_assert(SH_P_PAGE_TOKENS == SH_PAGE_TOKENS, "the kernels' page size");

#define SH_VK_CUT_NS 0.8e9

uint32_t sh_vk_stride(uint32_t width) { return (width + 31u) & ~31u; }

uint32_t sh_vk_row_bucket(uint32_t n_rows) {
    uint32_t bucket = 0;
    while ((1u << bucket) < n_rows) bucket++;
    return bucket;
}
uint32_t sh_vk_out_class(uint32_t n_outputs) {
    uint32_t class = 0;
    while (class < SH_VK_OUT_CLASSES - 1 && (1u << class) < n_outputs) class ++;
    return class;
}

/* ---- the recorder ---- */

static void barrier(struct recorder *r, VkPipelineStageFlags from, VkAccessFlags wrote, VkPipelineStageFlags to,
                    VkAccessFlags access) {
    if (r->wanted) return;
    const VkMemoryBarrier memory = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = wrote, .dstAccessMask = access};
    r->context->vk->CmdPipelineBarrier(r->commands, from, to, 0, 1, &memory, 0, NULL, 0, NULL);
}

static void begin_commands(struct recorder *r) {
    struct sh_exec_context *c = r->context;
    struct sh_vulkan *vk = c->vk;
    if (r->rec->n_commands == SH_VK_MAX_CUTS) return; /* the rest goes into the last one */
    const VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = c->commands,
                                                  .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                  .commandBufferCount = 1};
    VkResult result = vk->AllocateCommandBuffers(vk->device, &allocate, &r->commands);
    if (result != VK_SUCCESS) {
        r->code = sh_vk_fail(vk, result, "vkAllocateCommandBuffers", r->err);
        return;
    }
    r->rec->commands[r->rec->n_commands++] = r->commands;
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    result = vk->BeginCommandBuffer(r->commands, &begin);
    if (result != VK_SUCCESS) {
        r->code = sh_vk_fail(vk, result, "vkBeginCommandBuffer", r->err);
        return;
    }
    sh_vk_name(vk, VK_OBJECT_TYPE_COMMAND_BUFFER, (uint64_t)(uintptr_t)r->commands, "slot %u, %u rows, part %u",
               (uint32_t)(r->slot - c->slots), r->rows, r->rec->n_commands - 1);
    /* Everything submitted before (the other slot's step, page copies) has written what we read. */
    barrier(r, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_ACCESS_MEMORY_WRITE_BIT,
            VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT,
            VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_INDIRECT_COMMAND_READ_BIT);
    memset(r->read, 0, TOUCH_SLOTS + r->plan->fused.n_slots);
    memset(r->written, 0, TOUCH_SLOTS + r->plan->fused.n_slots);
    r->cost_ns = 0;
}

static void end_commands(struct recorder *r, bool last) {
    struct sh_exec_context *c = r->context;
    if (last)
        barrier(r, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_ACCESS_SHADER_WRITE_BIT, VK_PIPELINE_STAGE_HOST_BIT,
                VK_ACCESS_HOST_READ_BIT);
    if (last && c->queries)
        c->vk->CmdWriteTimestamp(r->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, c->queries,
                                 (uint32_t)(r->slot - c->slots) * 2 + 1);
    const VkResult result = c->vk->EndCommandBuffer(r->commands);
    if (result != VK_SUCCESS && r->code == SH_OK) r->code = sh_vk_fail(c->vk, result, "vkEndCommandBuffer", r->err);
}

/* What the next dispatch reads and writes; puts a barrier before it if one of these was touched since the last barrier. */
void sh_vk_touches(struct recorder *r, const uint32_t *reads, uint32_t n_reads, const uint32_t *writes, uint32_t n_writes) {
    bool hazard = false;
    for (uint32_t i = 0; i < n_reads; i++) hazard |= r->written[reads[i]];
    for (uint32_t i = 0; i < n_writes; i++) hazard |= r->written[writes[i]] || r->read[writes[i]];
    if (hazard) {
        barrier(r, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_ACCESS_SHADER_WRITE_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT);
        memset(r->read, 0, TOUCH_SLOTS + r->plan->fused.n_slots);
        memset(r->written, 0, TOUCH_SLOTS + r->plan->fused.n_slots);
    }
    for (uint32_t i = 0; i < n_reads; i++) r->read[reads[i]] = true;
    for (uint32_t i = 0; i < n_writes; i++) r->written[writes[i]] = true;
}

static void write_lap(struct recorder *r, uint32_t index) {
    struct sh_exec_context *c = r->context;
    c->vk->CmdWriteTimestamp(r->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, c->laps,
                             (uint32_t)(r->slot - c->slots) * (c->max_laps + 1) + index);
}

void sh_vk_lap(struct recorder *r, const struct sh_op *ops, uint32_t n_ops, const char *part) {
    if (!r->context->laps || r->wanted || r->code != SH_OK || r->rec->n_laps == r->context->max_laps) return;
    if (!sh_grow((void **)&r->rec->laps, &r->rec->cap_laps, r->rec->n_laps + 1, sizeof *r->rec->laps)) return;
    barrier(r, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_ACCESS_SHADER_WRITE_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
            VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT);
    r->rec->laps[r->rec->n_laps++] = (struct sh_vk_lap){ops, n_ops, part};
    write_lap(r, r->rec->n_laps);
}

/* The device's speed in the unit of its kernel's inner loop, a low guess: only used to decide where to cut. */
static double flops_per_ns(const struct sh_vulkan *vk) {
    switch (vk->base.info.kind) {
    case SH_DEVICE_DISCRETE: return 1000;
    case SH_DEVICE_SOFTWARE: return 2;
    default: return 100;
    }
}

void sh_vk_dispatch(struct recorder *r, enum sh_kernel kernel, const void *push, size_t push_bytes, struct sh_vk_grid grid,
                    double flops) {
    struct sh_exec_context *c = r->context;
    struct sh_vulkan *vk = c->vk;
    if (r->code != SH_OK) return;
    if (r->wanted) {
        r->wanted[kernel] = true;
        return;
    }
    VkPipeline pipeline;
    r->code = sh_vk_pipeline(vk, kernel, &pipeline, r->err);
    if (r->code != SH_OK) return;
    if (!sh_grow((void **)&r->rec->grids, &r->rec->cap_grids, r->rec->n_grids + 1, sizeof *r->rec->grids)) {
        r->code = sh_fail(r->err, SH_ERR_NO_MEMORY, "no memory for a recording");
        return;
    }
    SH_ASSERT(r->rec->n_grids < c->max_grids);
    vk->CmdBindPipeline(r->commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    vk->CmdPushConstants(r->commands, sh_vk_pipeline_layout(vk), VK_SHADER_STAGE_COMPUTE_BIT, 0, (uint32_t)push_bytes, push);
    vk->CmdDispatchIndirect(r->commands, r->slot->grids.buffer,
                            r->slot->grids.offset + r->rec->n_grids * sizeof(VkDispatchIndirectCommand));
    r->rec->grids[r->rec->n_grids++] = grid;
    r->cost_ns += flops / flops_per_ns(vk);
}
/* Cuts here if the next op, of `flops`, would make the submission too long. */
void sh_vk_maybe_cut(struct recorder *r, double flops) {
    if (r->code != SH_OK || r->cost_ns == 0 || r->cost_ns + flops / flops_per_ns(r->context->vk) < SH_VK_CUT_NS ||
        r->rec->n_commands == SH_VK_MAX_CUTS)
        return;
    end_commands(r, false);
    if (r->code == SH_OK) begin_commands(r);
}

/* ---- ops ---- */

static struct sh_pc_norm norm_push(const struct recorder *r, const struct sh_op *op) {
    const struct sh_weight *weights = r->context->model->program->weights;
    const uint32_t part = activation(r, op->out)->width / op->norm.n_groups;
    return (struct sh_pc_norm){.step = r->slot->step.address,
                               .x = address(r, op->x),
                               .w = op->w != SH_NONE ? table(r, op->w) : 0,
                               .bias = op->bias != SH_NONE ? table(r, op->bias) : 0,
                               .dst = address(r, op->out),
                               .width = part,
                               .n_groups = op->norm.n_groups,
                               .x_stride = stride(r, op->x),
                               .stride = stride(r, op->out),
                               .by_output = activation(r, op->out)->rows == SH_ROWS_OUT,
                               .kind = op->norm.kind,
                               .flags = (op->w != SH_NONE ? SH_NORM_WEIGHT : 0) | (op->bias != SH_NONE ? SH_NORM_BIAS : 0),
                               .w_step = op->w != SH_NONE && weights[op->w].cols > part ? part : 0,
                               .bias_step = op->bias != SH_NONE && weights[op->bias].cols > part ? part : 0,
                               .eps = op->eps};
}

static void record_norm(struct recorder *r, const struct sh_op *op) {
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    const struct sh_pc_norm push = norm_push(r, op);
    const struct sh_vk_grid grid = {fixed(groups(op->norm.n_groups, 1)), by(count_of(activation(r, op->out)->rows), 1)};
    DISPATCH(r, SH_KERNEL_norm, push, grid, 0);
}

/* A bundle's norm whose products take its result as int8, at least the first of them: made with it. `inner`: nobody else reads it. False, and
 * nothing recorded, where there is nothing to be made. */
static bool record_norm_quants(struct recorder *r, const struct sh_op *norm, const struct sh_op *products, uint32_t n, bool inner) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_layout *first = &m->weights[products[0].w].layout;
    if (norm->norm.n_groups != 1 || !sh_vk_takes_quants(m->vk, first)) return false;
    const uint32_t pairs = sh_vk_wants_pairs(first->layout);
    for (uint32_t i = 1; i < n; i++) {
        const struct sh_layout *other = &m->weights[products[i].w].layout;
        inner = inner && sh_vk_takes_quants(m->vk, other) && sh_vk_wants_pairs(other->layout) == pairs;
    }
    const uint32_t reads[] = {touch(r, norm->x)}, writes[] = {TOUCH_QUANTS, touch(r, norm->out)};
    sh_vk_touches(r, reads, 1, writes, inner ? 1 : 2);
    struct sh_pc_norm push = norm_push(r, norm);
    push.quants = r->context->quants.address;
    push.flags |= (inner ? SH_NORM_QUANTS_ONLY : 0) | (pairs ? SH_NORM_PAIRS : 0);
    const struct sh_vk_grid grid = {fixed(1), by(count_of(activation(r, norm->out)->rows), 1)};
    DISPATCH(r, SH_KERNEL_norm_quants, push, grid, 0);
    r->quants_of = norm->out;
    r->quants_pairs = pairs;
    return true;
}

static void record_pair(struct recorder *r, const struct sh_op *op, enum sh_kernel kernel) {
    const enum sh_rows rows = activation(r, op->out)->rows;
    const uint32_t reads[] = {touch(r, op->x), touch(r, op->y)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 2, writes, 1);
    const struct sh_pc_pair push = {.step = r->slot->step.address,
                                    .x = address(r, op->x),
                                    .y = address(r, op->y),
                                    .dst = address(r, op->out),
                                    .width = activation(r, op->out)->width,
                                    .stride = stride(r, op->out),
                                    .by_output = rows == SH_ROWS_OUT,
                                    .x_stride = stride(r, op->x),
                                    .y_stride = stride(r, op->y),
                                    .x_single = activation(r, op->x)->width != activation(r, op->out)->width};
    const struct sh_vk_grid grid = {fixed(groups(push.width, 256)), by(count_of(rows), 1)};
    DISPATCH(r, kernel, push, grid, 0);
}

static void record_unary(struct recorder *r, const struct sh_op *op) {
    static const enum sh_kernel kernels[] = {
        [SH_UNARY_SCALE] = SH_KERNEL_unary_scale,
        [SH_UNARY_SCALE_POSITION] = SH_KERNEL_unary_scale_position,
        [SH_UNARY_CLAMP] = SH_KERNEL_unary_clamp,
        [SH_UNARY_SOFTCAP] = SH_KERNEL_unary_softcap,
        [SH_UNARY_GELU] = SH_KERNEL_unary_gelu,
        [SH_UNARY_GELU_ERF] = SH_KERNEL_unary_gelu_erf,
        [SH_UNARY_SILU] = SH_KERNEL_unary_silu,
        [SH_UNARY_RELU] = SH_KERNEL_unary_relu,
        [SH_UNARY_RELU_SQUARED] = SH_KERNEL_unary_relu_squared,
    };
    const enum sh_rows rows = activation(r, op->out)->rows;
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    const struct sh_pc_unary push = {
        .step = r->slot->step.address,
        .rows = r->slot->rows.address,
        .table = op->w != SH_NONE ? table(r, op->w) : 0,
        .x = address(r, op->x),
        .dst = address(r, op->out),
        .width = activation(r, op->out)->width,
        .stride = stride(r, op->out),
        .by_output = rows == SH_ROWS_OUT,
        .n_table = op->w != SH_NONE ? (uint32_t)r->context->model->program->weights[op->w].rows : 0,
        .a = op->unary.a,
    };
    const struct sh_vk_grid grid = {fixed(groups(push.width, 256)), by(count_of(rows), 1)};
    DISPATCH(r, kernels[op->unary.kind], push, grid, 0);
}

static void record_glu(struct recorder *r, const struct sh_op *op) {
    static const enum sh_kernel kernels[] = {
        [SH_GLU_SILU] = SH_KERNEL_glu_silu, [SH_GLU_GELU] = SH_KERNEL_glu_gelu,       [SH_GLU_GELU_ERF] = SH_KERNEL_glu_gelu_erf,
        [SH_GLU_RELU] = SH_KERNEL_glu_relu, [SH_GLU_SIGMOID] = SH_KERNEL_glu_sigmoid, [SH_GLU_MUL] = SH_KERNEL_glu_mul,
        [SH_GLU_OAI] = SH_KERNEL_glu_oai,
    };
    record_pair(r, op, kernels[op->glu]);
}

static void record_concat(struct recorder *r, const struct sh_op *op) {
    const enum sh_rows rows = activation(r, op->out)->rows;
    const uint32_t reads[] = {touch(r, op->x), touch(r, op->y)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 2, writes, 1);
    const struct sh_pc_concat push = {.step = r->slot->step.address,
                                      .x = address(r, op->x),
                                      .y = address(r, op->y),
                                      .dst = address(r, op->out),
                                      .n_heads = op->concat_heads,
                                      .x_part = activation(r, op->x)->width / op->concat_heads,
                                      .y_part = activation(r, op->y)->width / op->concat_heads,
                                      .x_stride = stride(r, op->x),
                                      .y_stride = stride(r, op->y),
                                      .dst_stride = stride(r, op->out),
                                      .by_output = rows == SH_ROWS_OUT};
    const struct sh_vk_grid grid = {fixed(groups(activation(r, op->out)->width, 64)), by(count_of(rows), 1)};
    DISPATCH(r, SH_KERNEL_concat, push, grid, 0);
}

/* ROPE: the kernel of ROPE_CACHE without keys and values. */
static void record_rope(struct recorder *r, const struct sh_op *op) {
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    const struct sh_pc_rope push = {
        .step = r->slot->step.address,
        .rows = r->slot->rows.address,
        .q = address(r, op->x),
        .dst = address(r, op->out),
        .table = table(r, op->w),
        .q_stride = stride(r, op->x),
        .dst_stride = stride(r, op->out),
        .heads = op->attn.n_heads,
        .dims = op->attn.k_dim,
        .rope = op->rope.n_rot | (op->rope.pairing == SH_ROPE_HALVES ? 1u << 16 : 0),
        .rope_first = op->rope.first,
        .n_context = (uint32_t)r->context->model->program->weights[op->w].rows,
    };
    const uint32_t pairs = op->attn.n_heads * ((op->attn.k_dim + 7) & ~7u) / 2;
    const struct sh_vk_grid grid = {fixed(groups(pairs, 64)), by(SH_COUNT_ROWS, 1)};
    DISPATCH(r, SH_KERNEL_rope_cache_f32, push, grid, 0);
}

static void record_rope_cache(struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_context *c = r->context;
    const struct sh_vk_pool *pool = &c->pools[op->attn.group];
    const bool values = op->z != SH_NONE;
    const uint32_t reads[] = {touch(r, op->x), touch(r, op->y), touch(r, values ? op->z : op->y)},
                   writes[] = {touch(r, op->out), TOUCH_CACHE};
    sh_vk_touches(r, reads, 3, writes, 2);
    const uint64_t layer = (op->attn.layer_in_group - pool->first_layer) * pool->layer_bytes,
                   element = c->params.kv_type == SH_KV_F16 ? 2 : 4;
    const struct sh_pc_rope push = {
        .step = r->slot->step.address,
        .rows = r->slot->rows.address,
        .q = address(r, op->x),
        .k = address(r, op->y),
        .v = values ? address(r, op->z) : 0,
        .dst = address(r, op->out),
        .table = op->w != SH_NONE ? table(r, op->w) : 0,
        .pages = r->slot->pages[op->attn.group].address,
        .q_stride = stride(r, op->x),
        .k_stride = stride(r, op->y),
        .v_stride = values ? stride(r, op->z) : 0,
        .dst_stride = stride(r, op->out),
        .heads = op->attn.n_heads | op->attn.n_kv_heads << 16,
        .dims = op->attn.k_dim | (values ? op->attn.v_dim << 16 : 0),
        .rope = op->rope.n_rot | (op->rope.pairing == SH_ROPE_HALVES ? 1u << 16 : 0),
        .rope_first = op->rope.first,
        .n_context = op->w != SH_NONE ? (uint32_t)c->model->program->weights[op->w].rows : 1,
        .k_offset = (uint32_t)layer,
        .v_offset = (uint32_t)(layer + element * SH_PAGE_TOKENS * op->attn.n_kv_heads * pool->k_pad),
    };
    const uint32_t pairs =
        (op->attn.n_heads + 2 * op->attn.n_kv_heads) * (pool->k_pad > pool->v_pad ? pool->k_pad : pool->v_pad) / 2;
    const struct sh_vk_grid grid = {fixed(groups(pairs, 64)), by(SH_COUNT_ROWS, 1)};
    DISPATCH(r, c->params.kv_type == SH_KV_F16 ? SH_KERNEL_rope_cache_f16 : SH_KERNEL_rope_cache_f32, push, grid, 0);
}

static bool is_large(const struct sh_op *op) { return op->attn.k_dim > SH_SMALL_DIM || op->attn.v_dim > SH_SMALL_DIM; }
static uint32_t lines(const struct sh_op *op) { return is_large(op) ? SH_ATTENTION_LARGE_LINES : SH_ATTENTION_LINES; }
uint32_t sh_vk_attention_heads(const struct sh_op *op) {
    return (uint32_t)sh_min_u64(op->attn.n_heads / op->attn.n_kv_heads, lines(op));
}
uint32_t sh_vk_split_list(const struct sh_exec_context *c, const struct sh_op *op) {
    uint32_t list = 0;
    for (uint32_t i = 1; i < c->n_windows; i++)
        if (c->windows[i] == op->attn.window) list = i;
    return list;
}
uint32_t sh_vk_block_list(const struct sh_op *op) {
    uint32_t list = 0;
    while ((2u << list) * sh_vk_attention_heads(op) <= lines(op)) list++;
    return list;
}

/* Does a product of the attention's result follow that takes it as int8, in units that no two heads share? Then its matrix. */
static const struct sh_layout *takes_attention(const struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_model *m = r->context->model;
    const struct sh_op *next = op + 1;
    if (next == r->plan->fused.ops + r->plan->fused.n_ops || next->kind != SH_OP_MATMUL || next->x != op->out || op->attn.v_dim % SH_UNIT != 0)
        return NULL;
    const struct sh_layout *layout = &m->weights[next->w].layout;
    return sh_vk_takes_quants(m->vk, layout) ? layout : NULL;
}

static void record_attention(struct recorder *r, const struct sh_op *op) {
    const struct sh_exec_context *c = r->context;
    const struct sh_vk_pool *pool = &c->pools[op->attn.group];
    const bool half = c->params.kv_type == SH_KV_F16;
    const uint64_t layer = (op->attn.layer_in_group - pool->first_layer) * pool->layer_bytes, element = half ? 2 : 4;
    const bool split = r->rows <= SH_VK_SPLIT_ROWS;
    const uint32_t list = split ? sh_vk_split_list(c, op) : sh_vk_block_list(op), heads = sh_vk_attention_heads(op),
                   group = op->attn.n_heads / op->attn.n_kv_heads;
    const struct sh_vk_axis columns = fixed(op->attn.n_kv_heads * ((group + heads - 1) / heads));
    struct sh_pc_attention push = {
        .step = r->slot->step.address,
        .rows = r->slot->rows.address,
        .items = split ? r->slot->splits.address + (uint64_t)list * c->max_items * sizeof(struct sh_p_item)
                       : r->slot->blocks.address + (uint64_t)list * c->params.max_rows * sizeof(struct sh_p_sequence),
        .pages = r->slot->pages[op->attn.group].address,
        .q = address(r, op->x),
        .dst = address(r, op->out),
        .scratch = c->scratch.address,
        .slopes = op->w != SH_NONE ? table(r, op->w) : 0,
        .sinks = op->bias != SH_NONE ? table(r, op->bias) : 0,
        .q_stride = stride(r, op->x),
        .dst_stride = stride(r, op->out),
        .heads = op->attn.n_heads | op->attn.n_kv_heads << 16,
        .dims = op->attn.k_dim | op->attn.v_dim << 16,
        .k_offset = (uint32_t)layer,
        .v_offset = (uint32_t)(op->attn.v_in_k ? layer : layer + element * SH_PAGE_TOKENS * op->attn.n_kv_heads * pool->k_pad),
        .scale = op->attn.scale,
        .softcap = op->attn.softcap,
        .window = op->attn.window,
        .flags = (op->attn.bidirectional ? SH_ATTENTION_BIDIRECTIONAL : 0) | (op->w != SH_NONE ? SH_ATTENTION_SLOPES : 0) |
                 (op->bias != SH_NONE ? SH_ATTENTION_SINKS : 0) | (op->attn.v_in_k ? SH_ATTENTION_V_IN_K : 0),
    };
    const bool large = is_large(op);
    const enum sh_kernel whole[2][2] = {{SH_KERNEL_attention_f32, SH_KERNEL_attention_f16},
                                        {SH_KERNEL_attention_large_f32, SH_KERNEL_attention_large_f16}},
                         splits[2][2] = {{SH_KERNEL_attention_split_f32, SH_KERNEL_attention_split_f16},
                                         {SH_KERNEL_attention_split_large_f32, SH_KERNEL_attention_split_large_f16}};
    /* The longest cache that the context allows: what a cut must be safe for. */
    const double flops = 2.0 * (op->attn.k_dim + op->attn.v_dim) * op->attn.n_heads * (double)r->rows *
                         (double)c->params.max_pages_per_sequence * SH_PAGE_TOKENS;
    sh_vk_maybe_cut(r, flops);
    if (!split) {
        const uint32_t reads[] = {touch(r, op->x), TOUCH_CACHE}, writes[] = {touch(r, op->out)};
        sh_vk_touches(r, reads, 2, writes, 1);
        const struct sh_vk_grid grid = {columns, by(SH_COUNT_BLOCKS + list, 1)};
        DISPATCH(r, whole[large][half], push, grid, flops);
        return;
    }
    const uint32_t reads[] = {touch(r, op->x), TOUCH_CACHE}, writes[] = {TOUCH_SCRATCH};
    sh_vk_touches(r, reads, 2, writes, 1);
    const struct sh_vk_grid grid = {columns, by(SH_COUNT_ITEMS + list, 1)};
    DISPATCH(r, splits[large][half], push, grid, flops);
    const struct sh_layout *layout = takes_attention(r, op);
    const uint32_t merge_writes[] = {touch(r, op->out), TOUCH_QUANTS};
    sh_vk_touches(r, writes, 1, merge_writes, layout ? 2 : 1);
    if (layout) {
        r->quants_of = op->out;
        r->quants_pairs = sh_vk_wants_pairs(layout->layout);
        push.quants = c->quants.address;
        push.flags |= r->quants_pairs ? SH_ATTENTION_PAIRS : 0;
    }
    const struct sh_vk_grid merge = {fixed(op->attn.n_heads), by(SH_COUNT_ROWS, 1)};
    DISPATCH(r, layout ? SH_KERNEL_attention_merge_quants : SH_KERNEL_attention_merge, push, merge, 0);
}

static void record_gather(struct recorder *r, const struct sh_op *op) {
    const uint32_t reads[] = {touch(r, op->x)}, writes[] = {touch(r, op->out)};
    sh_vk_touches(r, reads, 1, writes, 1);
    const struct sh_pc_gather push = {.step = r->slot->step.address,
                                      .outputs = r->slot->outputs.address,
                                      .x = address(r, op->x),
                                      .dst = address(r, op->out),
                                      .width = activation(r, op->out)->width,
                                      .stride = stride(r, op->out)};
    const struct sh_vk_grid grid = {fixed(groups(push.width, 256)), by(SH_COUNT_OUTPUTS, 1)};
    DISPATCH(r, SH_KERNEL_gather, push, grid, 0);
}

static void record_op(struct recorder *r, const struct sh_op *op) {
    switch (op->kind) {
    case SH_OP_EMBED: sh_vk_record_embed(r, op); break;
    case SH_OP_NORM: record_norm(r, op); break;
    case SH_OP_MATMUL: sh_vk_record_products(r, op, 1); break;
    case SH_OP_ROUTE: sh_vk_record_route(r, op); break;
    case SH_OP_EXPERT_MATMUL: sh_vk_record_expert_matmul(r, op); break;
    case SH_OP_EXPERT_SUM: sh_vk_record_expert_sum(r, op); break;
    case SH_OP_ADD: record_pair(r, op, SH_KERNEL_add); break;
    case SH_OP_UNARY: record_unary(r, op); break;
    case SH_OP_CONCAT: record_concat(r, op); break;
    case SH_OP_ROPE: record_rope(r, op); break;
    case SH_OP_ROPE_CACHE: record_rope_cache(r, op); break;
    case SH_OP_ATTENTION: record_attention(r, op); break;
    case SH_OP_GLU: record_glu(r, op); break;
    case SH_OP_CONV:
    case SH_OP_SCAN:
    case SH_OP_DELTA_NET: sh_vk_record_recurrent(r, op); break;
    case SH_OP_GATHER_OUT: record_gather(r, op); break;
    default: break;
    }
}

/* ---- rows in and out ---- */

/* Between an activation and a host-visible span of rows without padding. */
static void record_copy(struct recorder *r, uint32_t a, VkDeviceAddress host, bool in, uint32_t mask, enum sh_vk_count count) {
    const uint32_t slot[] = {touch(r, a)}, none[] = {TOUCH_SLOTS};
    if (in) sh_vk_touches(r, none, 0, slot, 1);
    else sh_vk_touches(r, slot, 1, none, 0);
    const uint32_t width = activation(r, a)->width;
    const struct sh_pc_copy push = {.step = r->slot->step.address,
                                    .outputs = r->slot->outputs.address,
                                    .src = in ? host : address(r, a),
                                    .dst = in ? address(r, a) : host,
                                    .width = width,
                                    .src_stride = in ? width : stride(r, a),
                                    .dst_stride = in ? stride(r, a) : width,
                                    .mask = mask};
    const struct sh_vk_grid grid = {fixed(groups(width, 64)), by(count, 1)};
    DISPATCH(r, SH_KERNEL_copy, push, grid, 0);
}

/* All rows that the activation has. */
static void record_all_rows(struct recorder *r, uint32_t a, VkDeviceAddress host, bool in) {
    const enum sh_rows rows = activation(r, a)->rows;
    record_copy(r, a, host, in, rows == SH_ROWS_OUT ? SH_P_NONE : 0, count_of(rows));
}

static void record_captures(struct recorder *r, uint32_t made, const struct sh_vk_capture *captures, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (captures[i].activation != made || !captures[i].host.bytes) continue;
        record_all_rows(r, made, captures[i].host.address, false);
    }
}

static void record_sampling(struct recorder *r, uint32_t logits) {
    const struct sh_exec_context *c = r->context;
    const uint32_t n_vocab = activation(r, logits)->width;
    const struct sh_pc_sample push = {.step = r->slot->step.address,
                                      .outputs = r->slot->outputs.address,
                                      .logits = address(r, logits),
                                      .scratch = c->sample_scratch.address,
                                      .tokens = r->slot->tokens.address,
                                      .n_vocab = n_vocab,
                                      .stride = stride(r, logits),
                                      .chunks = (n_vocab + SH_SAMPLE_CHUNK - 1) / SH_SAMPLE_CHUNK};
    const uint32_t reads[] = {touch(r, logits)}, writes[] = {TOUCH_SAMPLE}, tokens[] = {TOUCH_TOKENS};
    const uint32_t chunks = groups(push.chunks, 1);
    const struct sh_vk_grid best = {fixed(chunks), by(SH_COUNT_OUTPUTS, 1)}, merge = {by(SH_COUNT_OUTPUTS, 64), fixed(1)},
                            top = {fixed(chunks), by(SH_COUNT_SHORT, 1)}, draw = {by(SH_COUNT_SHORT, 1), fixed(1)};
    sh_vk_touches(r, reads, 1, writes, 1);
    DISPATCH(r, SH_KERNEL_sample, push, best, 0);
    DISPATCH(r, SH_KERNEL_top, push, top, 0);
    sh_vk_touches(r, writes, 1, tokens, 1);
    DISPATCH(r, SH_KERNEL_sample_merge, push, merge, 0);
    DISPATCH(r, SH_KERNEL_draw, push, draw, 0);
}

static bool made_here(const struct sh_vk_plan *plan, uint32_t a) {
    for (uint32_t i = 0; i < plan->fused.n_ops; i++)
        if (plan->fused.ops[i].out == a) return true;
    return false;
}

/* A recorder of a plan's bucket; its tables must be freed. */
static struct recorder recorder_of(struct sh_exec_context *c, uint32_t slot, uint32_t plan, uint32_t row_bucket, uint32_t out_class,
                                   struct sh_error *err) {
    struct recorder r = {
        .context = c,
        .plan = &c->model->plans[plan],
        .slot = &c->slots[slot],
        .other = &c->slots[slot ^ 1],
        .rows = 1u << row_bucket,
        .outputs = out_class == SH_VK_OUT_CLASSES - 1 ? 1u << (SH_VK_ROW_BUCKETS - 1) : 1u << out_class,
        .list_of = SH_NONE,
        .quants_of = SH_NONE,
        .turned_of = SH_NONE,
        .err = err,
    };
    if (r.outputs > c->params.max_outputs) r.outputs = c->params.max_outputs;
    r.read = sh_calloc(TOUCH_SLOTS + (uint64_t)r.plan->fused.n_slots, 1);
    r.written = sh_calloc(TOUCH_SLOTS + (uint64_t)r.plan->fused.n_slots, 1);
    if (!r.read || !r.written) r.code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a recording");
    return r;
}

static bool is_captured(uint32_t activation, const struct sh_vk_capture *captures, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (captures[i].activation == activation) return true;
    return false;
}

/* Ops `i` and on of the plan, as many as are recorded as one; `bundle` begins at or before i. */
static uint32_t record_next(struct recorder *r, uint32_t i, uint32_t bundle, const struct sh_vk_capture *captures, uint32_t n_captures) {
    const struct sh_op *ops = &r->plan->fused.ops[i];
    const struct sh_bundle *b = &r->plan->fused.bundles[bundle];
    if (b->norm && i == bundle &&
        record_norm_quants(r, ops, ops + 1, b->n_products, b->norm_inner && !is_captured(ops->out, captures, n_captures)))
        return 1;
    if (b->n_products == 0 || i != bundle + b->norm) {
        record_op(r, ops);
        return 1;
    }
    if (b->tail && ops[2].kind == SH_OP_GLU && !is_captured(ops[0].out, captures, n_captures) &&
        !is_captured(ops[1].out, captures, n_captures) && sh_vk_record_glu_of_products(r, ops, &ops[2]))
        return 3;
    sh_vk_record_products(r, ops, b->n_products);
    return b->n_products;
}

static void record_plan(struct recorder *r, const struct sh_vk_capture *captures, uint32_t n_captures) {
    const struct sh_program *program = r->context->model->program;
    const struct sh_segment *segment = &r->plan->segment;
    for (uint32_t i = 0; i < segment->n_inputs; i++) {
        record_all_rows(r, segment->inputs[i], r->slot->inputs[i].address, true);
        record_captures(r, segment->inputs[i], captures, n_captures);
    }
    if (segment->n_inputs > 0) sh_vk_lap(r, NULL, 0, "inputs");
    const struct sh_fused *fused = &r->plan->fused;
    for (uint32_t i = 0, bundle = 0, n; i < fused->n_ops && r->code == SH_OK; i += n) {
        if (fused->bundles[i].n_ops > 0) bundle = i;
        n = record_next(r, i, bundle, captures, n_captures);
        sh_vk_lap(r, &fused->ops[i], n, NULL);
        for (uint32_t o = i; o < i + n; o++) record_captures(r, fused->ops[o].out, captures, n_captures);
    }
    if (program->logits != SH_NONE && made_here(r->plan, program->logits)) {
        record_sampling(r, program->logits);
        sh_vk_lap(r, NULL, 0, "sampling");
        if (r->slot->logits.handle || r->wanted)
            record_copy(r, program->logits, r->slot->logits.address, false, SH_OUTPUT_LOGITS, SH_COUNT_LOGITS);
    }
    if (program->hidden != SH_NONE && made_here(r->plan, program->hidden) && (r->slot->hidden.handle || r->wanted))
        record_copy(r, program->hidden, r->slot->hidden.address, false, SH_OUTPUT_HIDDEN, SH_COUNT_HIDDEN);
    for (uint32_t i = 0; i < segment->n_outputs; i++)
        record_all_rows(r, segment->outputs[i], r->slot->results[i].address, false);
    if (segment->n_outputs > 0) sh_vk_lap(r, NULL, 0, "outputs");
}

enum sh_code sh_vk_record(struct sh_exec_context *c, uint32_t slot, uint32_t plan, uint32_t row_bucket, uint32_t out_class,
                          const struct sh_vk_capture *captures, uint32_t n_captures, struct sh_vk_recording *rec,
                          struct sh_error *err) {
    struct recorder r = recorder_of(c, slot, plan, row_bucket, out_class, err);
    r.rec = rec;
    if (r.code == SH_OK) begin_commands(&r);
    if (r.code == SH_OK && c->queries) {
        c->vk->CmdResetQueryPool(r.commands, c->queries, slot * 2, 2);
        c->vk->CmdWriteTimestamp(r.commands, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, c->queries, slot * 2);
    }
    if (r.code == SH_OK && c->laps) {
        c->vk->CmdResetQueryPool(r.commands, c->laps, slot * (c->max_laps + 1), c->max_laps + 1);
        write_lap(&r, 0);
    }
    if (r.code == SH_OK) record_plan(&r, captures, n_captures);
    if (r.code == SH_OK) end_commands(&r, true);
    free(r.read);
    free(r.written);
    if (r.code != SH_OK) {
        sh_vk_recording_finish(c, rec);
        return r.code;
    }
    rec->ready = true;
    c->n_recordings++;
    return SH_OK;
}

enum sh_code sh_vk_make_pipelines(struct sh_exec_context *c, struct sh_error *err) {
    bool wanted[SH_KERNEL_COUNT] = {false};
    enum sh_code code = SH_OK;
    for (uint32_t p = 0; p < c->model->n_plans; p++)
        for (uint32_t b = 0; b <= sh_vk_row_bucket(c->params.max_rows); b++)
            for (uint32_t o = 0; o <= sh_vk_out_class(c->params.max_outputs) && code == SH_OK; o++) {
                struct recorder r = recorder_of(c, 0, p, b, o, err);
                r.wanted = wanted;
                if (r.code == SH_OK) record_plan(&r, NULL, 0);
                free(r.read);
                free(r.written);
                code = r.code;
            }
    if (code == SH_OK) code = sh_vk_pipelines_make(c->vk, wanted, err);
    if (code == SH_OK) sh_vk_pipelines_save(c->vk);
    return code;
}

void sh_vk_recording_finish(struct sh_exec_context *c, struct sh_vk_recording *rec) {
    if (rec->n_commands) c->vk->FreeCommandBuffers(c->vk->device, c->commands, rec->n_commands, rec->commands);
    free(rec->grids);
    free(rec->laps);
    *rec = (struct sh_vk_recording){0};
}

uint32_t sh_vk_count_dispatches(const struct sh_exec_model *m) {
    uint32_t most = 0;
    for (uint32_t p = 0; p < m->n_plans; p++) {
        uint32_t n = 2 * SH_BOUNDARY_MAX + 6; /* boundary copies, sampling, logits, hidden */
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &m->plans[p].fused.ops[i];
            const bool parts = op->kind == SH_OP_EMBED || op->kind == SH_OP_MATMUL || op->kind == SH_OP_EXPERT_MATMUL;
            n += parts ? m->weights[op->w].n_parts + 2 : 2; /* the list of experts, the quants or turned rows */
        }
        if (n > most) most = n;
    }
    return most;
}
