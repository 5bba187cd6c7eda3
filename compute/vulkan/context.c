/*
 * context.c - a context's memory: activations, parameter blocks, results, cache pages; and page copies. Steps are in step.c.
 */
#include "compute/vulkan/exec.h"

#include <stdlib.h>

#define SLAB_BYTES (1ull << 30)

uint64_t sh_vk_recordings_for_test(const struct sh_exec_context *c) { return c->n_recordings; }

static bool model_has(const struct sh_exec_model *m, enum sh_op_kind kind) {
    for (uint32_t p = 0; p < m->n_plans; p++)
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++)
            if (m->plans[p].fused.ops[i].kind == kind) return true;
    return false;
}

/* Which work lists the model's attention takes. */
static void plan_lists(struct sh_exec_context *c) {
    c->n_windows = 1;
    for (uint32_t p = 0; p < c->model->n_plans; p++)
        for (uint32_t i = 0; i < c->model->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &c->model->plans[p].fused.ops[i];
            if (op->kind != SH_OP_ATTENTION) continue;
            c->block_lists[sh_vk_block_list(op)] = true;
            if (op->attn.window && sh_vk_split_list(c, op) == 0 && c->n_windows < SH_VK_SPLIT_LISTS)
                c->windows[c->n_windows++] = op->attn.window;
        }
}

/* ---- pools ---- */

/* The first and the last layer of each group that this device's ops touch. */
static void find_layers(struct sh_exec_context *c, const struct sh_fused *fused) {
    for (uint32_t i = 0; i < fused->n_ops; i++) {
        const struct sh_op *op = &fused->ops[i];
        const bool recurrent = op->kind == SH_OP_CONV || op->kind == SH_OP_SCAN || op->kind == SH_OP_DELTA_NET;
        if (!recurrent && op->kind != SH_OP_ROPE_CACHE && op->kind != SH_OP_ATTENTION) continue;
        struct sh_vk_pool *pool = &c->pools[recurrent ? op->state.group : op->attn.group];
        const uint32_t layer = recurrent ? op->state.layer_in_group : op->attn.layer_in_group;
        const uint32_t end = pool->n_layers ? pool->first_layer + pool->n_layers : layer + 1,
                       first = pool->n_layers && pool->first_layer < layer ? pool->first_layer : layer;
        pool->first_layer = first;
        pool->n_layers = (end > layer + 1 ? end : layer + 1) - first;
    }
}

static void plan_pools(struct sh_exec_context *c) {
    const struct sh_program *program = c->model->program;
    const uint64_t element = c->params.kv_type == SH_KV_F16 ? 2 : 4;
    for (uint32_t p = 0; p < c->model->n_plans; p++) find_layers(c, &c->model->plans[p].fused);
    for (uint32_t g = 0; g < program->n_groups; g++) {
        const struct sh_state_group *group = &program->groups[g];
        struct sh_vk_pool *pool = &c->pools[g];
        if (group->kind == SH_STATE_RECURRENT) {
            pool->layer_bytes = group->floats * 4ull;
        } else {
            pool->k_pad = (group->k_dim + 7) & ~7u;
            pool->v_pad = group->v_in_k ? 0 : (group->v_dim + 7) & ~7u;
            pool->layer_bytes = (uint64_t)SH_PAGE_TOKENS * group->n_kv_heads * (pool->k_pad + pool->v_pad) * element;
        }
        pool->page_bytes = pool->layer_bytes * pool->n_layers;
    }
}

enum sh_code sh_vk_pool_reserve(struct sh_exec_context *c, uint32_t group, uint32_t n_pages, struct sh_error *err) {
    SH_ASSERT(group < c->model->program->n_groups);
    struct sh_vk_pool *pool = &c->pools[group];
    while (pool->n_pages < n_pages) {
        uint32_t n = n_pages - pool->n_pages;
        if (pool->page_bytes > 0) {
            n = (uint32_t)sh_min_u64(n, sh_max_u64(1, sh_min_u64(SLAB_BYTES, c->vk->max_allocation_bytes) / pool->page_bytes));
            if (!sh_grow((void **)&pool->slabs, &pool->cap_slabs, pool->n_slabs + 1, sizeof *pool->slabs))
                return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of cache slabs");
            struct sh_vk_slab *slab = &pool->slabs[pool->n_slabs];
            *slab = (struct sh_vk_slab){.first_page = pool->n_pages, .n_pages = n};
            const enum sh_code code = sh_vk_buffer_create(c->vk, SH_PLACE_DEVICE, SH_USE_CACHE, n * pool->page_bytes,
                                                          "cache pages", &slab->buffer, err);
            if (code != SH_OK) return code;
            pool->n_slabs++;
        }
        pool->n_pages += n;
    }
    return SH_OK;
}

uint64_t sh_vk_pool_bytes(const struct sh_exec_context *c) {
    uint64_t sum = 0;
    for (uint32_t g = 0; g < c->model->program->n_groups; g++)
        for (uint32_t s = 0; s < c->pools[g].n_slabs; s++) sum += c->pools[g].slabs[s].buffer.bytes;
    return sum;
}

static const struct sh_vk_slab *slab_of(const struct sh_vk_pool *pool, uint32_t page) {
    for (uint32_t s = 0; s < pool->n_slabs; s++)
        if (page - pool->slabs[s].first_page < pool->slabs[s].n_pages) return &pool->slabs[s];
    return NULL;
}

uint64_t sh_vk_page_address(const struct sh_vk_pool *pool, uint32_t page) {
    const struct sh_vk_slab *slab = slab_of(pool, page);
    return slab ? slab->buffer.address + (page - slab->first_page) * pool->page_bytes : 0;
}

/* A command buffer whose last use is over, begun for one submission. */
static enum sh_code copy_commands(struct sh_exec_context *c, uint32_t *index, struct sh_error *err) {
    struct sh_vulkan *vk = c->vk;
    uint64_t done = 0;
    VkResult result = vk->GetSemaphoreCounterValue(vk->device, c->semaphore, &done);
    uint32_t oldest = 0;
    for (uint32_t i = 1; i < SH_COUNT(c->copies); i++)
        if (c->copies[i].value < c->copies[oldest].value) oldest = i;
    *index = oldest;
    if (result == VK_SUCCESS && c->copies[oldest].value > done)
        result = sh_vk_wait_value(vk, c->semaphore, c->copies[oldest].value, UINT64_MAX);
    if (result == VK_SUCCESS && !c->copies[oldest].commands) {
        const VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                      .commandPool = c->commands,
                                                      .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                      .commandBufferCount = 1};
        result = vk->AllocateCommandBuffers(vk->device, &allocate, &c->copies[oldest].commands);
    }
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                            .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    if (result == VK_SUCCESS) result = vk->BeginCommandBuffer(c->copies[oldest].commands, &begin);
    return result == VK_SUCCESS ? SH_OK : sh_vk_fail(vk, result, "preparing a page copy", err);
}

enum sh_code sh_vk_page_copy(struct sh_exec_context *c, uint32_t group, uint32_t src, uint32_t dst, uint32_t n_tokens,
                             struct sh_error *err) {
    SH_ASSERT(group < c->model->program->n_groups && n_tokens <= SH_PAGE_TOKENS);
    SH_ASSERT(c->model->program->groups[group].kind != SH_STATE_RECURRENT);
    const struct sh_vk_pool *pool = &c->pools[group];
    if (src >= pool->n_pages || dst >= pool->n_pages || src == dst)
        return sh_fail(err, SH_ERR_INVALID, "page copy %u -> %u in a pool of %u pages", src, dst, pool->n_pages);
    if (pool->page_bytes == 0 || n_tokens == 0) return SH_OK;
    enum sh_code code = sh_vk_alive(c->vk, err);
    uint32_t index = 0;
    if (code == SH_OK) code = copy_commands(c, &index, err);
    if (code != SH_OK) return code;
    struct sh_vulkan *vk = c->vk;
    const VkCommandBuffer commands = c->copies[index].commands;
    const VkMemoryBarrier before = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                    .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                                    .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
    vk->CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &before, 0, NULL,
                           0, NULL);
    const struct sh_vk_slab *from = slab_of(pool, src), *to = slab_of(pool, dst);
    const uint64_t heads = c->model->program->groups[group].n_kv_heads, element = c->params.kv_type == SH_KV_F16 ? 2 : 4;
    const uint64_t k_token = heads * pool->k_pad * element, v_token = heads * pool->v_pad * element;
    for (uint32_t layer = 0; layer < pool->n_layers; layer++) {
        const uint64_t at = layer * pool->layer_bytes, values = at + SH_PAGE_TOKENS * k_token;
        const uint64_t source = (src - from->first_page) * pool->page_bytes, target = (dst - to->first_page) * pool->page_bytes;
        const VkBufferCopy regions[] = {{.srcOffset = source + at, .dstOffset = target + at, .size = n_tokens * k_token},
                                        {.srcOffset = source + values, .dstOffset = target + values, .size = n_tokens * v_token}};
        vk->CmdCopyBuffer(commands, from->buffer.handle, to->buffer.handle, v_token ? 2 : 1, regions);
    }
    VkResult result = vk->EndCommandBuffer(commands);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkEndCommandBuffer", err);
    code = sh_vk_queue_submit(c, &commands, 1, err);
    if (code == SH_OK) c->copies[index].value = c->value;
    return code;
}

uint64_t sh_vk_page_bytes(const struct sh_exec_context *c, uint32_t group) { return c->pools[group].page_bytes; }

/* Copies a whole page to `host`, or from it, behind everything submitted before, and waits for that. */
static enum sh_code move_page(struct sh_exec_context *c, uint32_t group, uint32_t page, const struct sh_vk_buffer *host,
                              bool to_host, struct sh_error *err) {
    struct sh_vulkan *vk = c->vk;
    const struct sh_vk_pool *pool = &c->pools[group];
    uint32_t index = 0;
    enum sh_code code = copy_commands(c, &index, err);
    if (code != SH_OK) return code;
    const VkCommandBuffer commands = c->copies[index].commands;
    const VkMemoryBarrier before = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                    .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                                    .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
    vk->CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &before, 0, NULL,
                           0, NULL);
    const struct sh_vk_slab *slab = slab_of(pool, page);
    const uint64_t at = (page - slab->first_page) * pool->page_bytes;
    const VkBufferCopy region = {.srcOffset = to_host ? at : 0, .dstOffset = to_host ? 0 : at, .size = pool->page_bytes};
    vk->CmdCopyBuffer(commands, to_host ? slab->buffer.handle : host->handle, to_host ? host->handle : slab->buffer.handle, 1,
                      &region);
    const VkMemoryBarrier after = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                   .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                   .dstAccessMask = VK_ACCESS_HOST_READ_BIT | VK_ACCESS_MEMORY_READ_BIT};
    vk->CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT,
                           VK_PIPELINE_STAGE_HOST_BIT | VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, 0, 1, &after, 0, NULL, 0, NULL);
    const VkResult result = vk->EndCommandBuffer(commands);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkEndCommandBuffer", err);
    code = sh_vk_queue_submit(c, &commands, 1, err);
    if (code != SH_OK) return code;
    c->copies[index].value = c->value;
    const VkResult waited = sh_vk_wait_value(vk, c->semaphore, c->value, UINT64_MAX);
    return waited == VK_SUCCESS ? SH_OK : sh_vk_fail(vk, waited, "waiting for a cache page", err);
}

static enum sh_code exchange_page(struct sh_exec_context *c, uint32_t group, uint32_t page, void *to, const void *from,
                                  struct sh_error *err) {
    SH_ASSERT(group < c->model->program->n_groups);
    const struct sh_vk_pool *pool = &c->pools[group];
    if (page >= pool->n_pages) return sh_fail(err, SH_ERR_INVALID, "page %u of a pool of %u pages", page, pool->n_pages);
    if (pool->page_bytes == 0) return SH_OK;
    struct sh_vk_buffer host = {0};
    enum sh_code code = sh_vk_alive(c->vk, err);
    if (code == SH_OK)
        code = sh_vk_buffer_create(c->vk, to != NULL ? SH_PLACE_READBACK : SH_PLACE_UPLOAD, SH_USE_STAGING, pool->page_bytes,
                                   "a cache page on its way", &host, err);
    if (code != SH_OK) return code;
    if (from != NULL) memcpy(host.mapped, from, pool->page_bytes);
    code = move_page(c, group, page, &host, to != NULL, err);
    if (code == SH_OK && to != NULL) memcpy(to, host.mapped, pool->page_bytes);
    sh_vk_buffer_destroy(c->vk, &host);
    return code;
}

enum sh_code sh_vk_page_read(struct sh_exec_context *c, uint32_t group, uint32_t page, void *dst, struct sh_error *err) {
    return exchange_page(c, group, page, dst, NULL, err);
}

enum sh_code sh_vk_page_write(struct sh_exec_context *c, uint32_t group, uint32_t page, const void *src, struct sh_error *err) {
    return exchange_page(c, group, page, NULL, src, err);
}

/* ---- creation ---- */

/* Timestamps around every op of the largest plan, around sampling, and around what comes in and goes out. */
static enum sh_code create_laps(struct sh_exec_context *c, struct sh_error *err) {
    for (uint32_t p = 0; p < c->model->n_plans; p++)
        if (c->max_laps < c->model->plans[p].fused.n_ops) c->max_laps = c->model->plans[p].fused.n_ops;
    c->max_laps += 3;
    const VkQueryPoolCreateInfo laps = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = SH_SLOTS * (c->max_laps + 1)};
    const VkResult result = c->vk->CreateQueryPool(c->vk->device, &laps, NULL, &c->laps);
    if (result == VK_SUCCESS) return SH_OK;
    c->laps = VK_NULL_HANDLE;
    return sh_vk_fail(c->vk, result, "vkCreateQueryPool", err);
}

static enum sh_code create_objects(struct sh_exec_context *c, struct sh_error *err) {
    struct sh_vulkan *vk = c->vk;
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                          .queueFamilyIndex = vk->queue_family};
    VkResult result = vk->CreateCommandPool(vk->device, &pool, NULL, &c->commands);
    if (result != VK_SUCCESS) {
        c->commands = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreateCommandPool", err);
    }
    const VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                            .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    result = vk->CreateSemaphore(vk->device, &semaphore, NULL, &c->semaphore);
    if (result != VK_SUCCESS) {
        c->semaphore = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreateSemaphore", err);
    }
    sh_vk_name(vk, VK_OBJECT_TYPE_SEMAPHORE, (uint64_t)(uintptr_t)c->semaphore, "steps");
    if (vk->limits.timestampComputeAndGraphics && vk->limits.timestampPeriod > 0) {
        const VkQueryPoolCreateInfo queries = {
            .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = 2 * SH_SLOTS};
        result = vk->CreateQueryPool(vk->device, &queries, NULL, &c->queries);
        if (result != VK_SUCCESS) {
            c->queries = VK_NULL_HANDLE;
            return sh_vk_fail(vk, result, "vkCreateQueryPool", err);
        }
        if (c->params.trace != NULL) return create_laps(c, err);
    }
    return SH_OK;
}

/* The kernels' indices have 32 bits, and SPIR-V takes them as signed. */
static enum sh_code check_reach(const struct sh_exec_context *c, uint64_t rows, uint64_t floats_per_row, const char *what,
                                struct sh_error *err) {
    if (rows == 0 || floats_per_row <= INT32_MAX / rows) return SH_OK;
    return sh_fail(err, SH_ERR_LIMIT,
                   "%s: %s: %llu rows of %llu floats are more than the %d that a kernel can address; ask for fewer rows per step",
                   c->vk->base.info.name, what, (unsigned long long)rows, (unsigned long long)floats_per_row, INT32_MAX);
}

static enum sh_code check_reaches(const struct sh_exec_context *c, uint64_t attention, struct sh_error *err) {
    enum sh_code code = check_reach(c, c->max_items, attention / 4, "split attention", err);
    for (uint32_t p = 0; p < c->model->n_plans; p++) {
        const struct sh_fused *fused = &c->model->plans[p].fused;
        for (uint32_t s = 0; s < fused->n_slots && code == SH_OK; s++)
            code = check_reach(c, fused->slots[s].rows == SH_ROWS_OUT ? c->params.max_outputs : c->params.max_rows,
                               sh_vk_stride(fused->slots[s].width), "activations", err);
    }
    for (uint32_t g = 0; g < c->model->program->n_groups && code == SH_OK; g++)
        if (c->pools[g].page_bytes > UINT32_MAX) /* a layer's place in its page has 32 bits */
            code = sh_fail(err, SH_ERR_UNSUPPORTED, "%s: a cache page of %d tokens takes %llu bytes, the kernels take up to %u",
                           c->vk->base.info.name, SH_PAGE_TOKENS, (unsigned long long)c->pools[g].page_bytes, UINT32_MAX);
    return code;
}

/* Of the largest plan's slot of that number. */
static uint64_t slot_bytes(const struct sh_exec_context *c, uint32_t s) {
    uint64_t most = 0;
    for (uint32_t p = 0; p < c->model->n_plans; p++) {
        const struct sh_fused *fused = &c->model->plans[p].fused;
        if (s >= fused->n_slots) continue;
        const uint64_t rows = fused->slots[s].rows == SH_ROWS_OUT ? c->params.max_outputs : c->params.max_rows;
        most = sh_max_u64(most, rows * sh_vk_stride(fused->slots[s].width) * 4);
    }
    return most;
}

static enum sh_code create_activations(struct sh_exec_context *c, struct sh_error *err) {
    const struct sh_exec_model *m = c->model;
    const struct sh_program *program = m->program;
    c->spans = sh_calloc(m->n_slots, sizeof *c->spans);
    if (!c->spans && m->n_slots) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of activations");
    uint64_t attention = 0, total = 0;
    for (uint32_t p = 0; p < m->n_plans; p++)
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &m->plans[p].fused.ops[i];
            if (op->kind == SH_OP_ATTENTION)
                attention = sh_max_u64(attention, (uint64_t)op->attn.n_heads * (((op->attn.v_dim + 7) & ~7u) + 2) * 4);
        }
    enum sh_code code = check_reaches(c, attention, err);
    if (code != SH_OK) return code;
    for (uint32_t s = 0; s < m->n_slots; s++) total += slot_bytes(c, s);
    sh_vk_arena_init(&c->device, c->vk, SH_PLACE_DEVICE, SH_USE_ACTIVATION,
                     sh_min_u64(total + attention * c->max_items + 65536, 64u << 20), "activations");
    for (uint32_t s = 0; s < m->n_slots && code == SH_OK; s++)
        code = sh_vk_arena_take(&c->device, slot_bytes(c, s), &c->spans[s], err);
    if (code == SH_OK) code = sh_vk_arena_take(&c->device, attention * c->max_items, &c->scratch, err);
    const uint64_t chunks = ((uint64_t)program->n_vocab + SH_SAMPLE_CHUNK - 1) / SH_SAMPLE_CHUNK;
    if (code == SH_OK) code = sh_vk_arena_take(&c->device, chunks * c->params.max_outputs * 8, &c->sample_scratch, err);
    const uint32_t rows = c->params.max_rows > c->params.max_outputs ? c->params.max_rows : c->params.max_outputs;
    if (code == SH_OK) code = sh_vk_arena_take(&c->device, sh_vk_expert_list_bytes(m, rows), &c->expert_list, err);
    if (code == SH_OK) code = sh_vk_arena_take(&c->device, sh_vk_quants_bytes(m, rows), &c->quants, err);
    if (code == SH_OK) code = sh_vk_arena_take(&c->device, sh_vk_turned_bytes(m, rows), &c->turned, err);
    return code;
}

static enum sh_code create_slot(struct sh_exec_context *c, struct sh_vk_slot *slot, struct sh_error *err) {
    const struct sh_exec_model *m = c->model;
    const struct sh_program *program = m->program;
    const struct sh_exec_context_params *p = &c->params;
    slot->pages = sh_calloc(program->n_groups, sizeof *slot->pages);
    slot->recordings = sh_calloc(m->n_plans, sizeof *slot->recordings);
    slot->output_flags = sh_calloc(p->max_outputs, sizeof *slot->output_flags);
    slot->logits_rows_out = sh_calloc(p->max_outputs, sizeof *slot->logits_rows_out);
    slot->hidden_rows_out = sh_calloc(p->max_outputs, sizeof *slot->hidden_rows_out);
    if (!slot->recordings || (program->n_groups && !slot->pages) ||
        (p->max_outputs && (!slot->output_flags || !slot->logits_rows_out || !slot->hidden_rows_out)))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a step");
    const struct {
        struct sh_vk_span *span;
        uint64_t bytes;
    } uploads[] = {
        {&slot->step, sizeof(struct sh_p_step)},
        {&slot->rows, p->max_rows * sizeof(struct sh_p_row)},
        {&slot->outputs, p->max_outputs * sizeof(struct sh_p_output)},
        {&slot->sequences, p->max_sequences * sizeof(struct sh_p_sequence)},
        {&slot->splits, (uint64_t)c->n_windows * c->max_items * sizeof(struct sh_p_item)},
        {&slot->blocks, c->max_items ? SH_VK_BLOCK_LISTS * p->max_rows * sizeof(struct sh_p_sequence) : 0},
        {&slot->grids, c->max_grids * sizeof(VkDispatchIndirectCommand)},
    };
    enum sh_code code = SH_OK;
    for (size_t i = 0; i < SH_COUNT(uploads) && code == SH_OK; i++)
        code = sh_vk_arena_take(&c->upload, uploads[i].bytes, uploads[i].span, err);
    for (uint32_t g = 0; g < program->n_groups && code == SH_OK; g++)
        code = sh_vk_arena_take(&c->upload, (uint64_t)p->max_sequences * sh_max_u64(2, p->max_pages_per_sequence) * 8,
                                &slot->pages[g], err);
    uint64_t inputs[SH_BOUNDARY_MAX] = {0}, outputs[SH_BOUNDARY_MAX] = {0}; /* floats of a row, the widest of all segments */
    for (uint32_t s = 0; s < m->n_plans; s++) {
        const struct sh_segment *segment = &m->plans[s].segment;
        for (uint32_t i = 0; i < segment->n_inputs; i++)
            inputs[i] = sh_max_u64(inputs[i], program->activations[segment->inputs[i]].width);
        for (uint32_t i = 0; i < segment->n_outputs; i++)
            outputs[i] = sh_max_u64(outputs[i], program->activations[segment->outputs[i]].width);
    }
    for (uint32_t i = 0; i < SH_BOUNDARY_MAX && code == SH_OK; i++)
        if (inputs[i]) code = sh_vk_arena_take(&c->upload, p->max_rows * inputs[i] * 4, &slot->inputs[i], err);
    if (code == SH_OK) code = sh_vk_arena_take(&c->readback, p->max_outputs * 4, &slot->tokens, err);
    if (code == SH_OK) memset(slot->tokens.mapped, 0xff, slot->tokens.bytes); /* -1: nothing was sampled */
    for (uint32_t i = 0; i < SH_BOUNDARY_MAX && code == SH_OK; i++)
        if (outputs[i]) code = sh_vk_arena_take(&c->readback, p->max_rows * outputs[i] * 4, &slot->results[i], err);
    return code;
}

/*
 * Mesa's llvmpipe ends all loops of an invocation, nested ones counted in, after so many iterations and says nothing
 * (LP_MAX_TGSI_LOOP_ITERATIONS in its gallivm/lp_bld_limits.h). Kernels of recurrent ops loop over all rows of a step, attention in
 * steps of more than a few rows over all splits of the cache.
 */
#define SOFTWARE_ITERATIONS 65535u

/* Splits of the cache that one invocation of attention.comp may visit; a loop's last look at its condition counts, too. The count is of
 * the source's loops; the driver was seen to end some 2 % earlier, so an eighth is left. */
static uint32_t most_splits(const struct sh_op *op) {
    const uint32_t k_dim = (op->attn.k_dim + 7) / 8 * 8, lines = SH_ATTENTION_LINES, keys = SH_SPLIT_TOKENS / 64;
    const uint32_t scores = k_dim / 8 + 1, bent = keys * lines + 1, lanes = 2 * (64 / 16 + 1);
    const uint32_t ragged = 2 * (1 + (lines + 6) / 8); /* eights of positions at both ends of what all lines see */
    const uint32_t values = SH_SPLIT_TOKENS / 8 + 1 + ragged * 9, blocks = (op->attn.v_dim + 127) / 128;
    const uint32_t load = lines * ((k_dim + 63) / 64 + 1);
    return (SOFTWARE_ITERATIONS - SOFTWARE_ITERATIONS / 8 - load - 1) / (scores + bent + lanes + blocks * values + 1);
}

static enum sh_code check_attention(const struct sh_exec_model *m, const struct sh_op *op,
                                    const struct sh_exec_context_params *params, struct sh_error *err) {
    const uint64_t most = (uint64_t)most_splits(op) * SH_SPLIT_TOKENS,
                   seen = (uint64_t)params->max_pages_per_sequence * SH_PAGE_TOKENS;
    if (params->max_rows <= SH_VK_SPLIT_ROWS || seen <= most) return SH_OK;
    if (op->attn.window > 0 && op->attn.window + 2ull * SH_SPLIT_TOKENS <= most) return SH_OK;
    return sh_fail(
        err, SH_ERR_LIMIT,
        "%s: a context of %llu tokens, but this driver ends loops after %u iterations, so that %s sees at most %llu; configure "
        "a shorter context",
        m->vk->base.info.name, (unsigned long long)seen, SOFTWARE_ITERATIONS, m->program->activations[op->out].name,
        (unsigned long long)most);
}

static enum sh_code check_iterations(const struct sh_exec_model *m, const struct sh_exec_context_params *params,
                                     struct sh_error *err) {
    const uint32_t max_rows = params->max_rows;
    if (m->vk->base.info.kind != SH_DEVICE_SOFTWARE) return SH_OK;
    for (uint32_t p = 0; p < m->n_plans; p++) {
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops; i++) {
            const struct sh_op *op = &m->plans[p].fused.ops[i];
            const enum sh_code code = op->kind == SH_OP_ATTENTION ? check_attention(m, op, params, err) : SH_OK;
            if (code != SH_OK) return code;
            uint32_t pass; /* over a thread's state; a loop's last look at its condition counts, too */
            if (op->kind == SH_OP_DELTA_NET) pass = (op->delta.k_dim + 7) / 8 + 1;
            else if (op->kind == SH_OP_SCAN) pass = m->program->activations[op->z].width + 1;
            else continue;
            const uint32_t each = (op->kind == SH_OP_DELTA_NET ? 2 : 1) * pass + 1, around = 2 * pass + 3;
            const uint32_t most = (SOFTWARE_ITERATIONS - around) / each;
            if (max_rows > most)
                return sh_fail(err, SH_ERR_LIMIT,
                               "%s: steps of %u rows, but this driver ends loops after %u iterations, so that %s takes at "
                               "most %u; configure smaller steps (max_batch_rows)",
                               m->vk->base.info.name, max_rows, SOFTWARE_ITERATIONS, m->program->activations[op->out].name, most);
        }
    }
    return SH_OK;
}

enum sh_code sh_vk_context_create(struct sh_exec_model *m, const struct sh_exec_context_params *params,
                                  struct sh_exec_context **out, struct sh_error *err) {
    *out = NULL;
    const struct sh_program *program = m->program;
    const uint64_t splits = ((uint64_t)params->max_pages_per_sequence * SH_PAGE_TOKENS + SH_SPLIT_TOKENS - 1) / SH_SPLIT_TOKENS;
    if (params->max_rows == 0 || params->max_rows > UINT16_MAX || params->max_outputs > UINT16_MAX ||
        splits * SH_VK_SPLIT_ROWS > UINT16_MAX)
        return sh_fail(err, SH_ERR_LIMIT, "%s: a step of %u rows and %u outputs over %u pages each; the limits are %d, %d and %d",
                       m->vk->base.info.name, params->max_rows, params->max_outputs, params->max_pages_per_sequence, UINT16_MAX,
                       UINT16_MAX, UINT16_MAX / SH_VK_SPLIT_ROWS * SH_SPLIT_TOKENS / SH_PAGE_TOKENS);
    const enum sh_code iterations = check_iterations(m, params, err);
    if (iterations != SH_OK) return iterations;
    struct sh_exec_context *c = calloc(1, sizeof *c);
    if (!c) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a context");
    c->model = m;
    c->vk = m->vk;
    c->params = *params;
    c->max_items = model_has(m, SH_OP_ATTENTION) ? (uint32_t)splits * SH_VK_SPLIT_ROWS : 0;
    c->max_grids = sh_vk_count_dispatches(m) + program->n_activations;
    sh_vk_arena_init(&c->upload, c->vk, SH_PLACE_UPLOAD, SH_USE_STAGING, 1u << 20, "step parameters");
    sh_vk_arena_init(&c->readback, c->vk, SH_PLACE_READBACK, SH_USE_STAGING, 64u << 10, "step results");
    c->pools = sh_calloc(program->n_groups, sizeof *c->pools);
    enum sh_code code =
        c->pools || !program->n_groups ? sh_vk_alive(c->vk, err) : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for pools");
    if (code == SH_OK) {
        plan_pools(c);
        plan_lists(c);
    }
    if (code == SH_OK) code = create_objects(c, err);
    if (code == SH_OK) code = create_activations(c, err);
    for (uint32_t s = 0; s < SH_SLOTS && code == SH_OK; s++) code = create_slot(c, &c->slots[s], err);
    if (code == SH_OK) code = sh_vk_make_pipelines(c, err);
    if (code != SH_OK) {
        sh_vk_context_destroy(c);
        return code;
    }
    *out = c;
    return SH_OK;
}

void sh_vk_context_destroy(struct sh_exec_context *c) {
    if (!c) return;
    struct sh_vulkan *vk = c->vk;
    if (c->semaphore && !atomic_load(&vk->lost)) sh_vk_wait_value(vk, c->semaphore, c->value, UINT64_MAX);
    for (uint32_t s = 0; s < SH_SLOTS; s++) {
        struct sh_vk_slot *slot = &c->slots[s];
        sh_vk_drop_recordings(c, slot);
        sh_vk_arena_finish(&slot->capture_arena);
        sh_vk_buffer_destroy(vk, &slot->embeddings);
        sh_vk_buffer_destroy(vk, &slot->masks);
        sh_vk_buffer_destroy(vk, &slot->lists);
        sh_vk_buffer_destroy(vk, &slot->logits);
        sh_vk_buffer_destroy(vk, &slot->hidden);
        free(slot->pages);
        free(slot->recordings);
        free(slot->captures);
        free(slot->output_flags);
        free(slot->logits_rows_out);
        free(slot->hidden_rows_out);
        free(slot->captured_out);
    }
    if (c->queries) vk->DestroyQueryPool(vk->device, c->queries, NULL);
    if (c->laps) vk->DestroyQueryPool(vk->device, c->laps, NULL);
    if (c->semaphore) vk->DestroySemaphore(vk->device, c->semaphore, NULL);
    if (c->commands) vk->DestroyCommandPool(vk->device, c->commands, NULL); /* frees the page copies' command buffers too */
    for (uint32_t g = 0; c->pools && g < c->model->program->n_groups; g++) {
        for (uint32_t s = 0; s < c->pools[g].n_slabs; s++) sh_vk_buffer_destroy(vk, &c->pools[g].slabs[s].buffer);
        free(c->pools[g].slabs);
    }
    free(c->pools);
    free(c->spans);
    sh_vk_arena_finish(&c->device);
    sh_vk_arena_finish(&c->upload);
    sh_vk_arena_finish(&c->readback);
    free(c);
}
