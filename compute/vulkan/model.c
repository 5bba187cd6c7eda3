/*
 * model.c - the weights of a device's segments: planned at creation, repacked as their rows arrive, written in place where memory
 * is unified and through a staging ring elsewhere.
 */
#include "compute/cpu/pool.h"
#include "compute/cpu/topology.h"
#include "compute/vulkan/exec.h"

#include <stdlib.h>

#define STAGING_BYTES (16u << 20) /* of each half of the ring */
#define CHUNK_BYTES (512ull << 20)
#define PLANE_ALIGN 256u
#define PACK_BYTES (64u << 10) /* that one thread repacks at a time */

static _Atomic uint64_t part_bytes_for_test;
void sh_vk_part_bytes_for_test(uint64_t bytes) { atomic_store(&part_bytes_for_test, bytes); }

/* ---- the staging ring: two halves, one is filled while the device copies the other ---- */

struct sh_vk_staging {
    struct sh_vk_buffer buffer;
    VkCommandPool pool;
    VkCommandBuffer commands[2];
    VkSemaphore semaphore;
    uint64_t value[2], last; /* timeline values that free each half */
    uint32_t half;
};

static void staging_destroy(struct sh_vulkan *vk, struct sh_vk_staging *s) {
    if (!s) return;
    if (s->semaphore) {
        if (!atomic_load(&vk->lost)) sh_vk_wait_value(vk, s->semaphore, s->last, UINT64_MAX);
        vk->DestroySemaphore(vk->device, s->semaphore, NULL);
    }
    if (s->pool) vk->DestroyCommandPool(vk->device, s->pool, NULL);
    sh_vk_buffer_destroy(vk, &s->buffer);
    free(s);
}

static enum sh_code staging_create(struct sh_vulkan *vk, struct sh_vk_staging **out, struct sh_error *err) {
    struct sh_vk_staging *s = *out = calloc(1, sizeof *s);
    if (!s) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the staging ring");
    enum sh_code code = sh_vk_buffer_create(vk, SH_PLACE_UPLOAD, SH_USE_STAGING, 2 * STAGING_BYTES, "staging", &s->buffer, err);
    if (code != SH_OK) return code;
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT |
                                                   VK_COMMAND_POOL_CREATE_TRANSIENT_BIT,
                                          .queueFamilyIndex = vk->queue_family};
    VkResult result = vk->CreateCommandPool(vk->device, &pool, NULL, &s->pool);
    if (result != VK_SUCCESS) {
        s->pool = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreateCommandPool", err);
    }
    const VkCommandBufferAllocateInfo commands = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = s->pool,
                                                  .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                  .commandBufferCount = 2};
    result = vk->AllocateCommandBuffers(vk->device, &commands, s->commands);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkAllocateCommandBuffers", err);
    const VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                            .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    result = vk->CreateSemaphore(vk->device, &semaphore, NULL, &s->semaphore);
    if (result != VK_SUCCESS) {
        s->semaphore = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreateSemaphore", err);
    }
    return SH_OK;
}

/* Waits until the device has read the current half. */
static enum sh_code staging_wait(struct sh_vulkan *vk, struct sh_vk_staging *s, struct sh_error *err) {
    const VkResult result = sh_vk_wait_value(vk, s->semaphore, s->value[s->half], UINT64_MAX);
    return result == VK_SUCCESS ? SH_OK : sh_vk_fail(vk, result, "vkWaitSemaphores", err);
}

/* Copies regions of the current half into a buffer and turns to the other half. */
static enum sh_code staging_send(struct sh_vulkan *vk, struct sh_vk_staging *s, VkBuffer to, const VkBufferCopy *regions,
                                 uint32_t n, struct sh_error *err) {
    const VkCommandBuffer commands = s->commands[s->half];
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                            .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkResult result = vk->BeginCommandBuffer(commands, &begin);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkBeginCommandBuffer", err);
    vk->CmdCopyBuffer(commands, s->buffer.handle, to, n, regions);
    result = vk->EndCommandBuffer(commands);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkEndCommandBuffer", err);
    const uint64_t value = s->last + 1;
    const enum sh_code code = sh_vk_queue_commands(vk, &commands, 1, s->semaphore, value, err);
    if (code != SH_OK) return code;
    s->last = s->value[s->half] = value;
    s->half ^= 1;
    return SH_OK;
}

/* ---- planning ---- */

/* The matrices that an op takes one by one. */
static void mark_matrices(struct sh_exec_model *m, const struct sh_op *op) {
    const bool experts = op->kind == SH_OP_EXPERT_MATMUL;
    if (!experts && (op->kind != SH_OP_MATMUL || op->blocks == 1)) return;
    const uint64_t rows = m->program->weights[op->w].rows, each = rows / (experts ? op->expert.n_expert : op->blocks);
    uint64_t *marked = &m->weights[op->w].matrix_rows;
    *marked = *marked == 0 || *marked == each ? each : rows; /* taken apart in two ways: one part serves both */
}

static enum sh_code mark_uses(struct sh_exec_model *m, const struct sh_vk_plan *plan, struct sh_error *err) {
    for (uint32_t i = 0; i < plan->fused.n_ops; i++) {
        const struct sh_op *op = &plan->fused.ops[i];
        const bool matrix = op->kind == SH_OP_EMBED || op->kind == SH_OP_MATMUL || op->kind == SH_OP_EXPERT_MATMUL;
        if (op->w != SH_NONE) *(matrix ? &m->weights[op->w].matrix : &m->weights[op->w].vector) = true;
        if (op->bias != SH_NONE) m->weights[op->bias].vector = true;
        mark_matrices(m, op);
        const bool rope = op->kind == SH_OP_ROPE || op->kind == SH_OP_ROPE_CACHE, attention = op->kind == SH_OP_ATTENTION;
        if ((rope || attention) && (op->attn.k_dim > 0xffff || op->attn.n_heads > 0xffff)) /* fields of the push constants */
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: %u heads of %u dimensions, the kernels take up to 65535 of 65535",
                           m->vk->base.info.name, op->attn.n_heads, op->attn.k_dim);
        if (attention && (op->attn.k_dim > SH_MAX_K_DIM || op->attn.v_dim > SH_MAX_V_DIM))
            return sh_fail(err, SH_ERR_UNSUPPORTED,
                           "%s: attention with keys of %u and values of %u dimensions, the kernels take up to %d and %d",
                           m->vk->base.info.name, op->attn.k_dim, op->attn.v_dim, SH_MAX_K_DIM, SH_MAX_V_DIM);
        if (op->kind == SH_OP_SCAN && m->program->activations[op->z].width > SH_MAX_SCAN_STATE)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: a scan of %u states per channel, the kernel takes up to %d",
                           m->vk->base.info.name, m->program->activations[op->z].width, SH_MAX_SCAN_STATE);
        if (op->kind == SH_OP_DELTA_NET && (op->delta.k_dim > SH_DELTA_STATE || op->delta.v_dim > 0xffff || op->delta.n_v_heads > 0xffff))
            return sh_fail(err, SH_ERR_UNSUPPORTED,
                           "%s: a delta net of %u heads of %u and %u dimensions, the kernel takes up to 65535 of %d and 65535",
                           m->vk->base.info.name, op->delta.n_v_heads, op->delta.k_dim, op->delta.v_dim, SH_DELTA_STATE);
    }
    return SH_OK;
}

static enum sh_code create_plans(struct sh_exec_model *m, const struct sh_segment *segments, uint32_t n, struct sh_error *err) {
    m->plans = sh_calloc(n, sizeof *m->plans);
    if (!m->plans) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plans of %u segments", n);
    for (; m->n_plans < n; m->n_plans++) {
        struct sh_vk_plan *plan = &m->plans[m->n_plans];
        SH_ASSERT(segments[m->n_plans].program == m->program);
        plan->segment = segments[m->n_plans];
        enum sh_code code = sh_fuse(&plan->segment, SH_FUSE_RESIDUAL | SH_FUSE_BUNDLES, &plan->fused, err);
        if (code == SH_OK) code = mark_uses(m, plan, err);
        if (code != SH_OK) {
            sh_fused_finish(&plan->fused);
            return code;
        }
        if (plan->fused.n_slots > m->n_slots) m->n_slots = plan->fused.n_slots;
    }
    return SH_OK;
}

/* Is there a kernel for every weight that the plans use? */
static enum sh_code check_weights(struct sh_exec_model *m, struct sh_error *err) {
    const struct sh_program *program = m->program;
    for (uint32_t w = 0; w < program->n_weights; w++) {
        const struct sh_weight *weight = &program->weights[w];
        if (m->weights[w].matrix && (!sh_layout_describe(weight->type, weight->cols, &m->weights[w].layout) ||
                                     weight->rows > UINT32_MAX || weight->cols > UINT32_MAX / 64))
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: tensor '%s' has type %s, for which there is no Vulkan kernel",
                           m->vk->base.info.name, weight->name,
                           sh_type_info(weight->type) ? sh_type_info(weight->type)->name : "unknown");
        if (m->weights[w].vector &&
            weight->rows > INT32_MAX / weight->cols) /* the kernels' indices; the RoPE table of a huge context */
            return sh_fail(err, SH_ERR_UNSUPPORTED,
                           "%s: '%s' has %llu rows of %llu, the kernels take up to %d elements; ask for a shorter context",
                           m->vk->base.info.name, weight->name, (unsigned long long)weight->rows,
                           (unsigned long long)weight->cols, INT32_MAX);
    }
    enum sh_code code = SH_OK;
    for (uint32_t p = 0; p < m->n_plans; p++)
        for (uint32_t i = 0; i < m->plans[p].fused.n_ops && code == SH_OK; i++)
            code = sh_vk_check_matrices(m, &m->plans[p].fused.ops[i], err);
    return code;
}

static uint64_t part_span_bytes(const struct sh_layout *l, uint64_t rows, uint64_t plane[4]) {
    uint64_t at = 0;
    for (int p = 0; p < 4; p++) {
        plane[p] = at;
        at += sh_align_up(l->row_bytes[p] * rows, PLANE_ALIGN);
    }
    return at;
}

static uint64_t rows_per_part(const struct sh_exec_model *m, const struct sh_layout *l) {
    return sh_max_u64(1, (m->part_bytes - 4 * PLANE_ALIGN) / l->row_bytes_all);
}

/* ---- matrices one below the other ---- */

/* May the rows of `next` follow those of `w`? Each belongs to one row of weights, which is used in one way; a vector counts as a row of a
 * table. Kernels read planes by 16 bytes. */
static bool may_follow(const struct sh_exec_model *m, uint32_t w, uint32_t next) {
    const struct sh_vk_weight *a = &m->weights[w], *b = &m->weights[next];
    if (w == next || a->below != SH_NONE || b->below != SH_NONE || b->rows_above > 0 || a->matrix == a->vector ||
        a->matrix != b->matrix || a->vector != b->vector || a->matrix_rows > 0 || b->matrix_rows > 0)
        return false;
    if (a->vector) return true;
    const uint64_t rows = a->rows_above + m->program->weights[w].rows;
    bool alike = a->layout.type == b->layout.type && a->layout.cols == b->layout.cols;
    for (int p = 0; p < 4; p++) alike = alike && rows * a->layout.row_bytes[p] % 16 == 0;
    return alike && rows + m->program->weights[next].rows <= rows_per_part(m, &a->layout);
}
static void follow(struct sh_exec_model *m, uint32_t w, uint32_t next) {
    m->weights[w].below = next;
    m->weights[next].rows_above = m->weights[w].rows_above + m->program->weights[w].rows;
}

/* Products whose results stand side by side become one where their matrices can lie one below the other, and their biases, too. */
static void join_matrices(struct sh_exec_model *m, const struct sh_fused *f) {
    for (uint32_t i = 0; i < f->n_ops; i++) {
        const struct sh_bundle *bundle = &f->bundles[i];
        const struct sh_op *ops = &f->ops[i + bundle->norm];
        for (uint32_t o = 1; bundle->beside && o < bundle->n_products; o++) {
            const struct sh_op *a = &ops[o - 1], *b = &ops[o];
            const bool none = a->bias == SH_NONE && b->bias == SH_NONE, both = a->bias != SH_NONE && b->bias != SH_NONE;
            if (m->program->activations[a->out].width % SH_COLUMN_ALIGN != 0 || (!none && !both) || !may_follow(m, a->w, b->w) ||
                (both && !may_follow(m, a->bias, b->bias)))
                continue;
            follow(m, a->w, b->w);
            if (both) follow(m, a->bias, b->bias);
        }
    }
}

/* Bytes of everything that will be taken from the arena. */
static uint64_t plan_bytes(const struct sh_exec_model *m) {
    const struct sh_program *program = m->program;
    uint64_t sum = 0;
    for (uint32_t w = 0; w < program->n_weights; w++) {
        const struct sh_vk_weight *weight = &m->weights[w];
        if (weight->matrix) sum += weight->layout.row_bytes_all * program->weights[w].rows + 4 * PLANE_ALIGN;
        if (weight->vector) sum += sh_align_up(program->weights[w].rows * program->weights[w].cols * 4, PLANE_ALIGN);
    }
    return sum;
}

/* A piece of the arena; `left` is what the plan still holds, so that the last buffer is no larger than needed. */
static enum sh_code take(struct sh_exec_model *m, uint64_t bytes, uint64_t *left, struct sh_vk_span *out, struct sh_error *err) {
    m->arena.chunk_bytes = sh_min_u64(*left + 4096, CHUNK_BYTES);
    *left -= sh_min_u64(*left, bytes);
    return sh_vk_arena_take(&m->arena, bytes, out, err);
}

/* The part of weight w and of those below it. */
static enum sh_code take_joined(struct sh_exec_model *m, uint32_t w, uint64_t *left, struct sh_error *err) {
    const struct sh_layout *l = &m->weights[w].layout;
    uint64_t rows = 0;
    for (uint32_t i = w; i != SH_NONE; i = m->weights[i].below) rows += m->program->weights[i].rows;
    struct sh_vk_part whole = {0};
    enum sh_code code = take(m, part_span_bytes(l, rows, whole.plane), left, &whole.span, err);
    for (; w != SH_NONE && code == SH_OK; w = m->weights[w].below) {
        struct sh_vk_weight *weight = &m->weights[w];
        weight->parts = sh_calloc(1, sizeof *weight->parts);
        if (!weight->parts) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a weight's parts");
        weight->n_parts = 1;
        weight->parts[0] = whole;
        weight->parts[0].n_rows = m->program->weights[w].rows;
        for (int p = 0; p < 4; p++) weight->parts[0].plane[p] += weight->rows_above * l->row_bytes[p];
    }
    return code;
}

/* The table of weight w and of those below it. */
static enum sh_code take_table(struct sh_exec_model *m, uint32_t w, uint64_t *left, struct sh_error *err) {
    uint64_t bytes = 0;
    for (uint32_t i = w; i != SH_NONE; i = m->weights[i].below) bytes += m->program->weights[i].rows * m->program->weights[i].cols * 4;
    struct sh_vk_span span;
    const enum sh_code code = take(m, bytes, left, &span, err);
    for (; w != SH_NONE && code == SH_OK; w = m->weights[w].below) {
        bytes = m->program->weights[w].rows * m->program->weights[w].cols * 4;
        m->weights[w].table = span;
        span.address += bytes;
        span.offset += bytes;
        if (span.mapped) span.mapped += bytes;
    }
    return code;
}

static enum sh_code take_matrix(struct sh_exec_model *m, uint32_t w, uint64_t *left, struct sh_error *err) {
    struct sh_vk_weight *weight = &m->weights[w];
    const uint64_t rows = m->program->weights[w].rows;
    if (weight->below != SH_NONE) return take_joined(m, w, left, err);
    uint64_t per_part = rows_per_part(m, &weight->layout);
    if (weight->matrix_rows) per_part = sh_max_u64(weight->matrix_rows, per_part - per_part % weight->matrix_rows);
    weight->n_parts = (uint32_t)((rows + per_part - 1) / per_part);
    weight->parts = sh_calloc(weight->n_parts, sizeof *weight->parts);
    if (!weight->parts) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a weight's parts");
    for (uint32_t i = 0; i < weight->n_parts; i++) {
        struct sh_vk_part *part = &weight->parts[i];
        part->first_row = i * per_part;
        part->n_rows = sh_min_u64(per_part, rows - part->first_row);
        const enum sh_code code = take(m, part_span_bytes(&weight->layout, part->n_rows, part->plane), left, &part->span, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

/* A type of memory that runs out is replaced by the next one, so that some buffers may be reachable for the host and others not.
 * */
static bool all_mapped(const struct sh_vk_arena *arena) {
    for (uint32_t i = 0; i < arena->n_buffers; i++)
        if (!arena->buffers[i].mapped) return false;
    return true;
}

enum sh_code sh_vk_model_create(struct sh_device *device, const struct sh_segment *segments, uint32_t n_segments,
                                struct sh_exec_model **out, struct sh_error *err) {
    struct sh_vulkan *vk = sh_vulkan_of(device);
    SH_ASSERT(n_segments > 0);
    const struct sh_program *program = segments[0].program;
    *out = NULL;
    struct sh_exec_model *m = calloc(1, sizeof *m);
    if (!m) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a model");
    m->vk = vk;
    m->program = program;
    m->part_bytes = atomic_load(&part_bytes_for_test) ? atomic_load(&part_bytes_for_test) : SH_VK_PART_BYTES;
    m->weights = sh_calloc(program->n_weights, sizeof *m->weights);
    for (uint32_t w = 0; m->weights && w < program->n_weights; w++) m->weights[w].below = SH_NONE;
    enum sh_code code = m->weights ? sh_vk_alive(vk, err) : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of weights");
    if (code == SH_OK) code = create_plans(m, segments, n_segments, err);
    if (code == SH_OK) code = check_weights(m, err);
    for (uint32_t p = 0; p < m->n_plans && code == SH_OK; p++) join_matrices(m, &m->plans[p].fused);
    uint64_t need = 0;
    if (code == SH_OK) {
        need = plan_bytes(m);
        const uint64_t have = sh_vk_free_bytes(vk);
        sh_vk_arena_init(&m->arena, vk, SH_PLACE_DEVICE, SH_USE_WEIGHTS, CHUNK_BYTES, "weights");
        if (need > have)
            code = sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "%s: the weights take %llu MiB, %llu MiB are free on the device",
                           vk->base.info.name, (unsigned long long)(need >> 20), (unsigned long long)(have >> 20));
    }
    for (uint32_t w = 0; code == SH_OK && w < program->n_weights; w++) {
        if (m->weights[w].rows_above > 0) continue; /* with the one above */
        if (m->weights[w].matrix) code = take_matrix(m, w, &need, err);
        if (code == SH_OK && m->weights[w].vector) code = take_table(m, w, &need, err);
    }
    m->n_threads = sh_topology_threads(SH_POOL_MAX_WORKERS);
    if (code == SH_OK) code = sh_pool_acquire(m->n_threads, &m->pool, err);
    if (code == SH_OK && (vk->stage_always || !all_mapped(&m->arena))) code = staging_create(vk, &m->staging, err);
    if (code != SH_OK) {
        sh_vk_model_destroy(m);
        return code;
    }
    *out = m;
    return SH_OK;
}

/* ---- rows arrive ---- */

struct packing {
    const struct sh_layout *layout;
    const uint8_t *src;
    uint8_t *const *planes;
};
static void pack_some(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct packing *p = arg;
    uint8_t *planes[4];
    for (int i = 0; i < 4; i++) planes[i] = p->planes[i] + begin * p->layout->row_bytes[i];
    sh_layout_pack(p->layout, end - begin, p->src + begin * sh_type_row_bytes(p->layout->type, p->layout->cols), planes);
}

/* All threads repack; rows are independent. A piece of the stream takes them a few milliseconds. */
static void pack(struct sh_exec_model *m, const struct sh_layout *l, uint64_t n, const uint8_t *src, uint8_t *const planes[4]) {
    struct packing packing = {.layout = l, .src = src, .planes = planes};
    const uint64_t grain = sh_max_u64(1, PACK_BYTES / l->row_bytes_all);
    sh_pool_enter(m->pool, SH_POOL_LOAD);
    sh_pool_run(m->pool, m->n_threads, n, grain, pack_some, &packing);
    sh_pool_leave(m->pool);
}

/* Rows of the file into one part, as many at a time as half the ring takes. */
static enum sh_code matrix_rows(struct sh_exec_model *m, const struct sh_vk_weight *weight, const struct sh_vk_part *part,
                                uint64_t row, uint64_t n, const uint8_t *src, const char *name, struct sh_error *err) {
    const struct sh_layout *l = &weight->layout;
    if (part->span.mapped && !m->vk->stage_always) {
        uint8_t *planes[4];
        for (int p = 0; p < 4; p++) planes[p] = part->span.mapped + part->plane[p] + row * l->row_bytes[p];
        pack(m, l, n, src, planes);
        return SH_OK;
    }
    const uint64_t file_row = sh_type_row_bytes(l->type, l->cols), at_once = STAGING_BYTES / l->row_bytes_all;
    if (at_once == 0)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: a row of '%s' is larger than the staging ring", m->vk->base.info.name, name);
    while (n > 0) {
        struct sh_vk_staging *s = m->staging;
        enum sh_code code = staging_wait(m->vk, s, err);
        if (code != SH_OK) return code;
        const uint64_t now = sh_min_u64(n, at_once), half = s->half * (uint64_t)STAGING_BYTES;
        uint8_t *planes[4];
        VkBufferCopy regions[4];
        uint32_t n_regions = 0;
        uint64_t at = half;
        for (int p = 0; p < 4; p++) {
            planes[p] = s->buffer.mapped + at;
            if (!l->row_bytes[p]) continue;
            regions[n_regions++] = (VkBufferCopy){.srcOffset = at,
                                                  .dstOffset = part->span.offset + part->plane[p] + row * l->row_bytes[p],
                                                  .size = now * l->row_bytes[p]};
            at += now * l->row_bytes[p];
        }
        pack(m, l, now, src, planes);
        code = staging_send(m->vk, s, part->span.buffer, regions, n_regions, err);
        if (code != SH_OK) return code;
        row += now;
        n -= now;
        src += now * file_row;
    }
    return SH_OK;
}

static enum sh_code table_rows(struct sh_exec_model *m, const struct sh_vk_weight *weight, const struct sh_weight *w,
                               uint64_t row0, uint64_t n_rows, const void *src, struct sh_error *err) {
    uint64_t at = row0 * w->cols * 4, left = n_rows * w->cols * 4;
    float *values = sh_alloc_aligned(sh_max_u64(left, 4));
    if (!values) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %llu bytes of '%s'", (unsigned long long)left, w->name);
    enum sh_code code = SH_OK;
    if (!sh_dequantize(w->type, src, values, n_rows * w->cols)) {
        code = sh_fail(err, SH_ERR_UNSUPPORTED, "tensor '%s': type %u cannot be computed with", w->name, w->type);
    } else if (weight->table.mapped && !m->vk->stage_always) {
        memcpy(weight->table.mapped + at, values, left);
    } else {
        for (const uint8_t *from = (const uint8_t *)values; left > 0 && code == SH_OK;) {
            struct sh_vk_staging *s = m->staging;
            const uint64_t now = sh_min_u64(left, STAGING_BYTES), half = s->half * (uint64_t)STAGING_BYTES;
            code = staging_wait(m->vk, s, err);
            if (code != SH_OK) break;
            memcpy(s->buffer.mapped + half, from, now);
            const VkBufferCopy region = {.srcOffset = half, .dstOffset = weight->table.offset + at, .size = now};
            code = staging_send(m->vk, s, weight->table.buffer, &region, 1, err);
            from += now;
            at += now;
            left -= now;
        }
    }
    free(values);
    return code;
}

enum sh_code sh_vk_weight_rows(struct sh_exec_model *m, uint32_t index, uint64_t row0, uint64_t n_rows, const void *src,
                               struct sh_error *err) {
    const struct sh_weight *w = &m->program->weights[index];
    struct sh_vk_weight *weight = &m->weights[index];
    SH_ASSERT(index < m->program->n_weights && row0 == weight->rows_done && n_rows <= w->rows - row0);
    enum sh_code code = SH_OK;
    const uint64_t file_row = sh_type_row_bytes(w->type, w->cols);
    for (uint32_t i = 0; i < weight->n_parts && code == SH_OK; i++) {
        const struct sh_vk_part *part = &weight->parts[i];
        const uint64_t from = sh_max_u64(row0, part->first_row), to = sh_min_u64(row0 + n_rows, part->first_row + part->n_rows);
        if (from >= to) continue;
        code = matrix_rows(m, weight, part, from - part->first_row, to - from, (const uint8_t *)src + (from - row0) * file_row,
                           w->name, err);
    }
    if (code == SH_OK && weight->vector) code = table_rows(m, weight, w, row0, n_rows, src, err);
    if (code == SH_OK) weight->rows_done += n_rows;
    return code;
}

enum sh_code sh_vk_model_finish(struct sh_exec_model *m, struct sh_error *err) {
    for (uint32_t w = 0; w < m->program->n_weights; w++)
        SH_ASSERT(!(m->weights[w].matrix || m->weights[w].vector) ||
                  m->weights[w].rows_done == m->program->weights[w].rows);
    enum sh_code code = SH_OK;
    if (m->staging) {
        code = staging_wait(m->vk, m->staging, err);
        m->staging->half ^= 1;
        if (code == SH_OK) code = staging_wait(m->vk, m->staging, err);
        staging_destroy(m->vk, m->staging);
        m->staging = NULL;
    }
    sh_pool_release(m->pool);
    m->pool = NULL;
    return code;
}

uint64_t sh_vk_model_bytes(const struct sh_exec_model *m) { return sh_vk_arena_bytes(&m->arena); }

void sh_vk_model_destroy(struct sh_exec_model *m) {
    if (!m) return;
    staging_destroy(m->vk, m->staging);
    sh_pool_release(m->pool);
    sh_vk_arena_finish(&m->arena);
    for (uint32_t w = 0; m->weights && w < m->program->n_weights; w++) free(m->weights[w].parts);
    free(m->weights);
    for (uint32_t p = 0; p < m->n_plans; p++) sh_fused_finish(&m->plans[p].fused);
    free(m->plans);
    free(m);
}

void sh_vk_part_planes(const struct sh_exec_model *m, uint32_t weight, uint32_t part, struct sh_p_weight *out) {
    const struct sh_vk_part *p = &m->weights[weight].parts[part];
    const VkDeviceAddress base = p->span.address;
    *out = (struct sh_p_weight){
        .quants = base + p->plane[0], .scales = base + p->plane[1], .extra = base + p->plane[2], .deltas = base + p->plane[3]};
}
