/* tune.c - see tune.h. */
#include "compute/vulkan/tune.h"

#include "compute/vulkan/cachefile.h"
#include "compute/vulkan/layouts.h"
#include "compute/vulkan/shapes.h"

#include <stdlib.h>

#define MAGIC 0x31544b56u /* "VKT1" */
#define COLS 4096u
#define ROUNDS 4u /* of which the first only warms up */
#define CHECK_BYTES 65536u /* of what a shape makes, half of them from the beginning and half from the end: the first and the last rows */
#define PIECES 64u          /* of the weights, which differ: what takes another row's has other results */
#define FILL 0x3c003c00u /* of weights: halves of 1, floats of 2^-7, whatever quants */
#define MARGIN 0.97 /* how much faster than the table's a shape has to be: less is noise */

enum state { UNKNOWN, KEPT, MEASURED }; /* KEPT: the file knew it */

struct sh_vk_tuner {
    pthread_mutex_t lock; /* of all that follows */
    char path[SH_VK_CACHE_PATH]; /* "" without a cache directory */
    uint64_t key;
    uint64_t left_ns;
    uint8_t state[SH_KERNEL_COUNT];
    uint8_t chosen[SH_KERNEL_COUNT]; /* of those that are not UNKNOWN */
};

/* ---- the file ---- */

struct record { /* of one kernel; the file is the key, then records */
    uint32_t kernel;
    struct sh_vk_shape shape; /* rather than its index: shapes.c may have others next time */
};

static void read_choices(struct sh_vulkan *vk) {
    struct sh_vk_tuner *t = vk->tuner;
    size_t bytes;
    uint8_t *data = sh_vk_cache_read(t->path, MAGIC, &bytes);
    if (data && bytes >= sizeof t->key && memcmp(data, &t->key, sizeof t->key) == 0)
        for (size_t at = sizeof t->key; at + sizeof(struct record) <= bytes; at += sizeof(struct record)) {
            struct record r;
            memcpy(&r, data + at, sizeof r);
            if (r.kernel >= SH_KERNEL_COUNT) continue;
            uint32_t n;
            const struct sh_vk_shape *shapes = sh_vk_shapes(r.kernel, &n);
            for (uint32_t i = 0; i < n; i++)
                if (memcmp(&shapes[i], &r.shape, sizeof r.shape) == 0 && sh_vk_shape_set(vk, r.kernel, i)) {
                    t->state[r.kernel] = KEPT;
                    t->chosen[r.kernel] = (uint8_t)i;
                }
        }
    free(data);
}

static void write_choices(const struct sh_vk_tuner *t) {
    uint8_t *data = malloc(sizeof t->key + SH_KERNEL_COUNT * sizeof(struct record));
    if (!data) return;
    memcpy(data, &t->key, sizeof t->key);
    size_t bytes = sizeof t->key;
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) {
        uint32_t n;
        const struct sh_vk_shape *shapes = sh_vk_shapes(k, &n);
        if (t->state[k] == UNKNOWN || n < 2) continue;
        const struct record r = {k, shapes[t->chosen[k]]};
        memcpy(data + bytes, &r, sizeof r);
        bytes += sizeof r;
    }
    sh_vk_cache_write(t->path, MAGIC, data, bytes);
    free(data);
}

/* ---- measuring ---- */

struct bench { /* one kernel's */
    struct sh_vulkan *vk;
    uint32_t kernel, n_shapes, rows, n; /* rows and outputs of the product */
    const struct sh_vk_shape *shapes;
    struct sh_layout layout;
    bool quants;
    struct sh_vk_buffer device, upload, readback;
    uint64_t x_bytes, plane_at[4], plane_bytes[4], dst_at[SH_VK_MAX_SHAPES], dst_bytes;
    VkPipeline pipelines[SH_VK_MAX_SHAPES];
    VkCommandPool pool;
    VkCommandBuffer commands;
    VkQueryPool queries;
    VkSemaphore semaphore;
    uint64_t submitted;
    uint64_t best_ns[SH_VK_MAX_SHAPES];
};

#define X_AT 256u /* in both buffers; before it the step's parameters */

static const uint32_t type_of_layout[SH_LAYOUTS] = {
    [SH_LAYOUT_F32] = SH_TYPE_F32,   [SH_LAYOUT_F16] = SH_TYPE_F16,       [SH_LAYOUT_BF16] = SH_TYPE_BF16,
    [SH_LAYOUT_Q4_0] = SH_TYPE_Q4_0, [SH_LAYOUT_Q4_1] = SH_TYPE_Q4_1,     [SH_LAYOUT_Q5_1] = SH_TYPE_Q5_1,
    [SH_LAYOUT_Q8_0] = SH_TYPE_Q8_0, [SH_LAYOUT_Q2_K] = SH_TYPE_Q2_K,     [SH_LAYOUT_Q4_K] = SH_TYPE_Q4_K,
    [SH_LAYOUT_Q5_K] = SH_TYPE_Q5_K, [SH_LAYOUT_Q6_K] = SH_TYPE_Q6_K,     [SH_LAYOUT_TABLE32] = SH_TYPE_MXFP4,
    [SH_LAYOUT_TABLE256] = SH_TYPE_IQ4_XS, [SH_LAYOUT_TABLE8] = SH_TYPE_Q3_K,
};

/* As many outputs as keep a device busy for a fraction of a millisecond to a few, and whose weights a GPU's caches do not hold. */
static void size_of_product(struct bench *b) {
    uint64_t weights = 64u << 20;
    double ops = 2e10;
    if (b->vk->base.info.kind == SH_DEVICE_SOFTWARE) weights = 2u << 20, ops = 3e7;
    else if (b->vk->base.info.kind != SH_DEVICE_DISCRETE) ops = 2e9;
    uint32_t most_rows = 0;
    for (uint32_t i = 0; i < b->n_shapes; i++) most_rows = most_rows > b->shapes[i].rows ? most_rows : b->shapes[i].rows;
    b->rows = most_rows;
    if (most_rows > 16 && b->vk->base.info.kind != SH_DEVICE_SOFTWARE) b->rows = 256;
    const double by_ops = ops / (2.0 * COLS * b->rows);
    const uint64_t n = sh_min_u64(weights / b->layout.row_bytes_all, (uint64_t)by_ops);
    b->n = (uint32_t)sh_max_u64(n & ~63ull, 64);
}

static enum sh_code make_buffers(struct bench *b, struct sh_error *err) {
    b->x_bytes = sh_align_up((uint64_t)b->rows * COLS * (b->quants ? 48 / SH_UNIT + 1 : 4), 256);
    uint64_t at = X_AT + b->x_bytes;
    for (uint32_t p = 0; p < 4; p++) {
        b->plane_at[p] = at;
        b->plane_bytes[p] = sh_align_up((uint64_t)b->layout.row_bytes[p] * b->n, 256);
        at += b->plane_bytes[p];
    }
    b->dst_bytes = sh_align_up((uint64_t)b->rows * b->n * 4, 256);
    for (uint32_t i = 0; i < b->n_shapes; i++, at += b->dst_bytes) b->dst_at[i] = at;
    enum sh_code code = sh_vk_buffer_create(b->vk, SH_PLACE_DEVICE, SH_USE_ACTIVATION, at, "measuring", &b->device, err);
    if (code == SH_OK)
        code = sh_vk_buffer_create(b->vk, SH_PLACE_UPLOAD, SH_USE_STAGING, X_AT + b->x_bytes, "measuring: x", &b->upload, err);
    if (code == SH_OK)
        code = sh_vk_buffer_create(b->vk, SH_PLACE_READBACK, SH_USE_STAGING, (uint64_t)CHECK_BYTES * b->n_shapes, "measuring: results",
                                   &b->readback, err);
    if (code != SH_OK) return code;
    memset(b->upload.mapped, 0, X_AT);
    const struct sh_p_step step = {.n_rows = b->rows, .n_outputs = b->rows};
    memcpy(b->upload.mapped, &step, sizeof step);
    uint32_t random = 1;
    for (uint64_t i = 0; i < b->x_bytes / 4; i++) {
        random = random * 1664525u + 1013904223u;
        const float value = (float)(int32_t)random * 0x1p-31f;
        uint32_t word = random; /* four quants, or the sums of two halves of a unit */
        if (!b->quants || i % 12 == 8) memcpy(&word, &value, sizeof word);
        memcpy(b->upload.mapped + X_AT + 4 * i, &word, sizeof word);
    }
    return SH_OK;
}

static enum sh_code make_objects(struct bench *b, struct sh_error *err) {
    struct sh_vulkan *vk = b->vk;
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                          .queueFamilyIndex = vk->queue_family};
    VkResult result = vk->CreateCommandPool(vk->device, &pool, NULL, &b->pool);
    if (result != VK_SUCCESS) b->pool = VK_NULL_HANDLE;
    const VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = b->pool,
                                                  .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                  .commandBufferCount = 1};
    if (result == VK_SUCCESS) result = vk->AllocateCommandBuffers(vk->device, &allocate, &b->commands);
    const VkQueryPoolCreateInfo queries = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                           .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                           .queryCount = SH_VK_MAX_SHAPES + 1};
    if (result == VK_SUCCESS && (result = vk->CreateQueryPool(vk->device, &queries, NULL, &b->queries)) != VK_SUCCESS)
        b->queries = VK_NULL_HANDLE;
    const VkSemaphoreTypeCreateInfo timeline = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                                .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &timeline};
    if (result == VK_SUCCESS && (result = vk->CreateSemaphore(vk->device, &semaphore, NULL, &b->semaphore)) != VK_SUCCESS)
        b->semaphore = VK_NULL_HANDLE;
    return result == VK_SUCCESS ? SH_OK : sh_vk_fail(vk, result, "objects for measuring", err);
}

struct making { /* one pipeline, in a thread of its own */
    struct bench *b;
    uint32_t shape;
    enum sh_code code;
};
static void *make_one(void *arg) {
    struct making *m = arg;
    struct sh_error err;
    m->code = sh_vk_pipeline_in_shape(m->b->vk, m->b->kernel, &m->b->shapes[m->shape], &m->b->pipelines[m->shape], &err);
    return NULL;
}
static enum sh_code make_pipelines(struct bench *b, struct sh_error *err) {
    struct making m[SH_VK_MAX_SHAPES];
    pthread_t threads[SH_VK_MAX_SHAPES];
    bool started[SH_VK_MAX_SHAPES] = {false};
    for (uint32_t i = 0; i < b->n_shapes; i++) {
        m[i] = (struct making){b, i, SH_OK};
        started[i] = i + 1 < b->n_shapes && pthread_create(&threads[i], NULL, make_one, &m[i]) == 0;
        if (!started[i]) make_one(&m[i]);
    }
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < b->n_shapes; i++) {
        if (started[i]) pthread_join(threads[i], NULL);
        if (m[i].code != SH_OK) code = m[i].code;
    }
    return code == SH_OK ? SH_OK : sh_fail(err, code, "%s: kernels cannot be made in other shapes", b->vk->base.info.name);
}

static void barrier(struct bench *b, VkPipelineStageFlags from, VkPipelineStageFlags to) {
    const VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                 .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                                 .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    b->vk->CmdPipelineBarrier(b->commands, from, to, 0, 1, &all, 0, NULL, 0, NULL);
}

static enum sh_code begin(struct bench *b, struct sh_error *err) {
    const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                           .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    const VkResult result = b->vk->BeginCommandBuffer(b->commands, &info);
    return result == VK_SUCCESS ? SH_OK : sh_vk_fail(b->vk, result, "vkBeginCommandBuffer", err);
}

static enum sh_code run(struct bench *b, struct sh_error *err) {
    struct sh_vulkan *vk = b->vk;
    VkResult result = vk->EndCommandBuffer(b->commands);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkEndCommandBuffer", err);
    const uint64_t value = b->submitted + 1;
    const enum sh_code code = sh_vk_queue_commands(vk, &b->commands, 1, b->semaphore, value, err);
    if (code != SH_OK) return code;
    b->submitted = value;
    result = sh_vk_wait_value(vk, b->semaphore, value, UINT64_MAX);
    return result == VK_SUCCESS ? SH_OK : sh_vk_fail(vk, result, "vkWaitSemaphores", err);
}

static enum sh_code fill(struct bench *b, struct sh_error *err) {
    const enum sh_code code = begin(b, err);
    if (code != SH_OK) return code;
    const VkBufferCopy copy = {.size = b->upload.bytes};
    b->vk->CmdCopyBuffer(b->commands, b->upload.handle, b->device.handle, 1, &copy);
    for (uint64_t i = 0, piece = b->plane_bytes[0] / PIECES; i < PIECES; i++)
        b->vk->CmdFillBuffer(b->commands, b->device.handle, b->plane_at[0] + i * piece, piece, FILL | (uint32_t)i * 0x00010001u);
    if (b->dst_at[0] > b->plane_at[1])
        b->vk->CmdFillBuffer(b->commands, b->device.handle, b->plane_at[1], b->dst_at[0] - b->plane_at[1], FILL);
    b->vk->CmdFillBuffer(b->commands, b->device.handle, b->dst_at[0], VK_WHOLE_SIZE, 0);
    barrier(b, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT);
    return run(b, err);
}

/* Every shape once, one after the other. */
static enum sh_code round_of_all(struct bench *b, uint64_t ns[SH_VK_MAX_SHAPES], struct sh_error *err) {
    struct sh_vulkan *vk = b->vk;
    const enum sh_code code = begin(b, err);
    if (code != SH_OK) return code;
    const VkDeviceAddress base = b->device.address;
    vk->CmdResetQueryPool(b->commands, b->queries, 0, b->n_shapes + 1);
    vk->CmdWriteTimestamp(b->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, b->queries, 0);
    for (uint32_t i = 0; i < b->n_shapes; i++) {
        struct sh_pc_matmul push = {
            .step = base,
            .x = base + X_AT,
            .dst = base + b->dst_at[i],
            .w = {base + b->plane_at[0], base + b->plane_at[1], base + b->plane_at[2], base + b->plane_at[3]},
            .cols = COLS,
            .units = b->layout.units,
            .n = b->n,
            .x_stride = COLS,
            .dst_stride = b->n,
        };
        memcpy(push.constant, b->layout.constant, sizeof push.constant);
        vk->CmdBindPipeline(b->commands, VK_PIPELINE_BIND_POINT_COMPUTE, b->pipelines[i]);
        vk->CmdPushConstants(b->commands, sh_vk_pipeline_layout(vk), VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, &push);
        vk->CmdDispatch(b->commands, (b->n + b->shapes[i].outputs - 1) / b->shapes[i].outputs,
                        (b->rows + b->shapes[i].rows - 1) / b->shapes[i].rows, 1);
        barrier(b, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT);
        vk->CmdWriteTimestamp(b->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, b->queries, i + 1);
    }
    for (uint32_t i = 0; i < b->n_shapes; i++) {
        const uint64_t half = sh_min_u64(CHECK_BYTES, b->dst_bytes) / 2, to = (uint64_t)CHECK_BYTES * i;
        const VkBufferCopy copies[2] = {{b->dst_at[i], to, half}, {b->dst_at[i] + b->dst_bytes - half, to + half, half}};
        vk->CmdCopyBuffer(b->commands, b->device.handle, b->readback.handle, 2, copies);
    }
    barrier(b, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT);
    const enum sh_code done = run(b, err);
    if (done != SH_OK) return done;
    uint64_t stamps[SH_VK_MAX_SHAPES + 1];
    const VkResult result = vk->GetQueryPoolResults(vk->device, b->queries, 0, b->n_shapes + 1, sizeof stamps, stamps, sizeof *stamps,
                                                    VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, "vkGetQueryPoolResults", err);
    for (uint32_t i = 0; i < b->n_shapes; i++) {
        const uint64_t ticks = stamps[i + 1] > stamps[i] ? stamps[i + 1] - stamps[i] : 0;
        ns[i] = (uint64_t)((double)ticks * (double)vk->limits.timestampPeriod);
    }
    return SH_OK;
}

/* The bits of what a shape made are those of the shape of the table. */
static bool same_bits(const struct bench *b, uint32_t shape, uint32_t of_table) {
    const uint64_t bytes = sh_min_u64(CHECK_BYTES, b->dst_bytes);
    return memcmp(b->readback.mapped + (uint64_t)CHECK_BYTES * shape, b->readback.mapped + (uint64_t)CHECK_BYTES * of_table, bytes) == 0;
}

static enum sh_code measure(struct bench *b, uint64_t until_ns, uint32_t *choice, struct sh_error *err) {
    size_of_product(b);
    enum sh_code code = make_pipelines(b, err);
    if (code == SH_OK) code = make_objects(b, err);
    if (code == SH_OK) code = make_buffers(b, err);
    if (code == SH_OK) code = fill(b, err);
    memset(b->best_ns, 0xff, sizeof b->best_ns);
    uint32_t rounds = 0;
    for (; code == SH_OK && rounds < ROUNDS && (rounds < 2 || sh_now_ns() < until_ns); rounds++) {
        uint64_t ns[SH_VK_MAX_SHAPES];
        code = round_of_all(b, ns, err);
        for (uint32_t i = 0; code == SH_OK && rounds > 0 && i < b->n_shapes; i++)
            if (ns[i] > 0) b->best_ns[i] = sh_min_u64(b->best_ns[i], ns[i]);
    }
    if (code != SH_OK) return code;
    const uint32_t of_table = sh_vk_shape_of_table(b->vk, b->kernel);
    double best = (double)b->best_ns[of_table] * MARGIN;
    *choice = of_table;
    for (uint32_t i = 0; i < b->n_shapes; i++) {
        if (i == of_table || (double)b->best_ns[i] >= best) continue;
        if (!same_bits(b, i, of_table)) {
            sh_log(SH_LOG_WARNING, "%s: the kernel %s has other results with workgroups of %u threads; they are not used", b->vk->base.info.name,
                   sh_kernel_codes[b->kernel].name, b->shapes[i].threads);
            continue;
        }
        best = (double)b->best_ns[i];
        *choice = i;
    }
    sh_log(SH_LOG_DEBUG, "%s: %s: %u rows of %u outputs take %.3f ms with %u threads, %.3f ms with the table's %u", b->vk->base.info.name,
           sh_kernel_codes[b->kernel].name, b->rows, b->n, (double)b->best_ns[*choice] / 1e6, b->shapes[*choice].threads,
           (double)b->best_ns[of_table] / 1e6, b->shapes[of_table].threads);
    return SH_OK;
}

static void finish(struct bench *b) {
    struct sh_vulkan *vk = b->vk;
    for (uint32_t i = 0; i < SH_VK_MAX_SHAPES; i++)
        if (b->pipelines[i]) vk->DestroyPipeline(vk->device, b->pipelines[i], NULL);
    if (b->queries) vk->DestroyQueryPool(vk->device, b->queries, NULL);
    if (b->semaphore) vk->DestroySemaphore(vk->device, b->semaphore, NULL);
    if (b->pool) vk->DestroyCommandPool(vk->device, b->pool, NULL);
    sh_vk_buffer_destroy(vk, &b->device);
    sh_vk_buffer_destroy(vk, &b->upload);
    sh_vk_buffer_destroy(vk, &b->readback);
}

/* ---- the tuner ---- */

void sh_vk_tuner_create(struct sh_vulkan *vk, const char *cache_dir) {
    if (!vk->limits.timestampComputeAndGraphics || vk->limits.timestampPeriod <= 0) return;
    struct sh_vk_tuner *t = vk->tuner = calloc(1, sizeof *t);
    if (!t) return;
    pthread_mutex_init(&t->lock, NULL);
    t->key = sh_vk_cache_key(vk);
    t->left_ns = SH_VK_TUNE_NS;
    if (!cache_dir) return;
    sh_vk_cache_path(vk, cache_dir, "shapes", t->path);
    if (t->path[0]) read_choices(vk);
}

void sh_vk_tune(struct sh_vulkan *vk, const bool wanted[]) {
    struct sh_vk_tuner *t = vk->tuner;
    bool changed = false;
    pthread_mutex_lock(&t->lock);
    for (uint32_t k = 0; k < SH_KERNEL_COUNT && t->left_ns > 0; k++) {
        struct bench b = {.vk = vk, .kernel = k};
        if (!wanted[k] || t->state[k] != UNKNOWN) continue;
        b.shapes = sh_vk_shapes(k, &b.n_shapes);
        if (b.n_shapes < 2) continue;
        const uint64_t begun = sh_now_ns();
        struct sh_error err = {0};
        uint32_t choice = 0;
        const uint32_t layout = sh_vk_shape_layout(k, &b.quants);
        enum sh_code code = SH_OK;
        if (!sh_layout_describe(type_of_layout[layout], COLS, &b.layout)) continue;
        code = measure(&b, begun + t->left_ns, &choice, &err);
        finish(&b);
        if (code != SH_OK) sh_log(SH_LOG_NOTICE, "shapes of kernels are not measured: %s", err.message);
        t->left_ns -= code == SH_OK ? sh_min_u64(t->left_ns, sh_now_ns() - begun) : t->left_ns;
        if (code != SH_OK || !sh_vk_shape_set(vk, k, choice)) continue; /* or its pipeline was made meanwhile */
        t->state[k] = MEASURED;
        t->chosen[k] = (uint8_t)choice;
        changed = true;
    }
    if (changed && t->path[0]) write_choices(t);
    pthread_mutex_unlock(&t->lock);
}

void sh_vk_tuner_destroy(struct sh_vulkan *vk) {
    if (!vk->tuner) return;
    pthread_mutex_destroy(&vk->tuner->lock);
    free(vk->tuner);
    vk->tuner = NULL;
}

uint32_t sh_vk_tuned_for_test(const struct sh_vulkan *vk, bool measured) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) n += vk->tuner->state[k] == (measured ? MEASURED : KEPT);
    return n;
}
