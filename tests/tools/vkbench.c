/*
 * vkbench - how fast a Vulkan device's matmul kernels are: one product per weight layout, for one row (weights read per second)
 * and for many (operations per second). Prints one line per layout.
 * Usage: vkbench [-n|-m] [DEVICE [ROWS]]. DEVICE is a part of the device's name; without it the first usable one that is no
 * software. -n prints the device's name and driver only, -m only the bandwidth of its memory in 10^9 bytes a second: the
 * bytes read and written by the fastest of several large copies. Exit status 77: there is no such device.
 */
#include "compute/vulkan/vk.h"

#include <stdio.h>
#include <stdlib.h>

static struct sh_error err;
static void must(enum sh_code code) {
    if (code == SH_OK) return;
    fprintf(stderr, "vkbench: %s\n", err.message);
    exit(1);
}

/* Seconds of one step of `rows` rows, the best of several. */
static double measure(struct sh_device *device, uint32_t type, uint32_t cols, uint32_t n, uint32_t rows, uint64_t *weight_bytes) {
    const struct sh_executor *e = device->executor;
    struct sh_activation activations[] = {{.name = "x", .width = cols}, {.name = "y", .width = n}};
    struct sh_weight weight = {.name = "w", .type = type, .cols = cols, .rows = n};
    struct sh_op op = {.kind = SH_OP_MATMUL,
                       .y = SH_NONE,
                       .z = SH_NONE,
                       .u = SH_NONE,
                       .t = SH_NONE,
                       .blocks = 1,
                       .residual = SH_NONE,
                       .bias = SH_NONE,
                       .out = 1};
    const struct sh_program program = {.activations = activations,
                                       .n_activations = 2,
                                       .weights = &weight,
                                       .n_weights = 1,
                                       .ops = &op,
                                       .n_ops = 1,
                                       .n_layers = 1,
                                       .n_embd = cols,
                                       .n_vocab = 32,
                                       .context_length = 32,
                                       .hidden = SH_NONE,
                                       .logits = SH_NONE};
    const struct sh_segment segment = {.program = &program, .n_ops = 1, .inputs = {0}, .n_inputs = 1};
    const uint64_t row_bytes = sh_type_row_bytes(type, cols);
    *weight_bytes = row_bytes * n;
    uint8_t *data = calloc(n, row_bytes);
    float *x = calloc((size_t)rows * cols, sizeof *x);
    struct sh_step_row *step_rows = calloc(rows, sizeof *step_rows);
    if (!data || !x || !step_rows) exit(1);
    for (uint64_t i = 0; i < row_bytes * n; i++) data[i] = (uint8_t)(i * 2654435761u >> 27);
    struct sh_exec_model *model;
    struct sh_exec_context *context;
    must(e->model_create(device, &segment, 1, &model, &err));
    must(e->weight_rows(model, 0, 0, n, data, &err));
    must(e->model_finish(model, &err));
    const struct sh_exec_context_params params = {
        .max_rows = rows, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = rows / SH_PAGE_TOKENS + 1};
    must(e->context_create(model, &params, &context, &err));
    for (uint32_t r = 0; r < rows; r++) step_rows[r] = (struct sh_step_row){.sampled_from = SH_NONE, .position = r};
    uint32_t *pages = calloc(params.max_pages_per_sequence, sizeof *pages);
    const uint32_t *tables[] = {pages};
    const struct sh_step_sequence sequence = {.n_rows = rows, .pages = tables, .n_pages = params.max_pages_per_sequence};
    const struct sh_step step = {.rows = step_rows, .n_rows = rows, .sequences = &sequence, .n_sequences = 1, .inputs = {x}};
    double best = 1e9;
    const uint64_t start = sh_now_ns();
    for (uint32_t i = 0; i < 20 && (i < 3 || sh_now_ns() - start < 1000000000ull); i++) {
        const uint64_t from = sh_now_ns();
        struct sh_step_result result;
        must(e->submit(context, i & 1, 0, &step, &err));
        must(e->wait(context, i & 1, -1, &result, &err));
        const double seconds = (double)(result.busy_ns ? result.busy_ns : sh_now_ns() - from) * 1e-9;
        if (seconds < best) best = seconds;
    }
    e->context_destroy(context);
    e->model_destroy(model);
    free(pages);
    free(data);
    free(x);
    free(step_rows);
    return best;
}

#define COPY_BYTES (256ull << 20) /* beyond the caches of any device */
#define COPIES 8

static void check(struct sh_vulkan *vk, VkResult result, const char *what) {
    if (result != VK_SUCCESS) must(sh_vk_fail(vk, result, what, &err));
}

/* 10^9 bytes a second that are read and written by copies in the device's memory. */
static double memory_bandwidth(struct sh_vulkan *vk) {
    struct sh_vk_buffer from = {0}, to = {0};
    must(sh_vk_buffer_create(vk, SH_PLACE_DEVICE, SH_USE_STAGING, COPY_BYTES, "copied", &from, &err));
    must(sh_vk_buffer_create(vk, SH_PLACE_DEVICE, SH_USE_STAGING, COPY_BYTES, "copy", &to, &err));
    VkCommandPool pool;
    VkCommandBuffer commands;
    VkSemaphore semaphore;
    const VkCommandPoolCreateInfo pool_info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                               .queueFamilyIndex = vk->queue_family};
    check(vk, vk->CreateCommandPool(vk->device, &pool_info, NULL, &pool), "vkCreateCommandPool");
    const VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = pool,
                                                  .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                  .commandBufferCount = 1};
    check(vk, vk->AllocateCommandBuffers(vk->device, &allocate, &commands), "vkAllocateCommandBuffers");
    const VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                            .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore_info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    check(vk, vk->CreateSemaphore(vk->device, &semaphore_info, NULL, &semaphore), "vkCreateSemaphore");
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    check(vk, vk->BeginCommandBuffer(commands, &begin), "vkBeginCommandBuffer");
    const VkBufferCopy region = {.size = COPY_BYTES};
    const VkMemoryBarrier between = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                     .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                     .dstAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT};
    for (int i = 0; i < COPIES; i++) {
        vk->CmdCopyBuffer(commands, from.handle, to.handle, 1, &region);
        vk->CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &between, 0, NULL,
                               0, NULL);
    }
    check(vk, vk->EndCommandBuffer(commands), "vkEndCommandBuffer");
    double best = 0;
    for (uint64_t value = 1; value <= 4; value++) {
        const VkTimelineSemaphoreSubmitInfo timeline = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                                        .signalSemaphoreValueCount = 1,
                                                        .pSignalSemaphoreValues = &value};
        const VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                                     .pNext = &timeline,
                                     .commandBufferCount = 1,
                                     .pCommandBuffers = &commands,
                                     .signalSemaphoreCount = 1,
                                     .pSignalSemaphores = &semaphore};
        const uint64_t from_ns = sh_now_ns();
        check(vk, vk->QueueSubmit(vk->queue, 1, &submit, VK_NULL_HANDLE), "vkQueueSubmit");
        check(vk, sh_vk_wait_value(vk, semaphore, value, UINT64_MAX), "vkWaitSemaphores");
        const double rate = 2.0 * COPIES * (double)COPY_BYTES / (double)(sh_now_ns() - from_ns);
        if (rate > best) best = rate;
    }
    vk->DestroySemaphore(vk->device, semaphore, NULL);
    vk->DestroyCommandPool(vk->device, pool, NULL);
    sh_vk_buffer_destroy(vk, &from);
    sh_vk_buffer_destroy(vk, &to);
    return best;
}

static bool find(const char *want, struct sh_device_info *out) {
    struct sh_device_info infos[16];
    uint32_t count = 0, chosen = 0;
    must(sh_vulkan_enumerate(infos, 16, &count, &err));
    if (want) {
        if (sh_device_select(infos, count, want, &chosen, &err) != SH_OK) return false;
    } else {
        while (chosen < count && (!infos[chosen].usable || infos[chosen].kind == SH_DEVICE_SOFTWARE)) chosen++;
        if (chosen == count) return false;
    }
    *out = infos[chosen];
    return true;
}

int main(int argc, char **argv) {
    const bool name_only = argc > 1 && strcmp(argv[1], "-n") == 0, memory_only = argc > 1 && strcmp(argv[1], "-m") == 0;
    if (name_only || memory_only) argc--, argv++;
    if (argc > 3) {
        fprintf(stderr, "usage: vkbench [-n|-m] [DEVICE [ROWS]]\n");
        return 2;
    }
    struct sh_device_info info;
    if (!find(argc > 1 ? argv[1] : NULL, &info)) {
        fprintf(stderr, "vkbench: no usable Vulkan device%s%s\n", argc > 1 ? " named " : " that is not software",
                argc > 1 ? argv[1] : "");
        return 77;
    }
    if (name_only) {
        printf("%s\n%s\n", info.name, info.driver);
        return 0;
    }
    const struct sh_device_params device_params = {.size = sizeof device_params, .info = &info};
    struct sh_device *device;
    must(sh_vulkan_open(&device_params, &device, &err));
    if (memory_only) {
        printf("%.1f\n", memory_bandwidth(sh_vulkan_of(device)));
        device->executor->device_close(device);
        return 0;
    }
    const bool software = info.kind == SH_DEVICE_SOFTWARE;
    const uint32_t cols = 4096, n = software ? 4096 : 16384, rows = argc > 2 ? (uint32_t)atoi(argv[2]) : software ? 64 : 512;
    if (rows < 1 || rows > 4096) return 2;
    printf("%s, %s\n%-6s %10s %12s %14s\n", info.name, info.driver, "type", "GB/s", "1 row, us", "many, GFLOP/s");
    static const uint32_t types[] = {SH_TYPE_F32,  SH_TYPE_F16,  SH_TYPE_BF16, SH_TYPE_Q4_0,
                                     SH_TYPE_Q8_0, SH_TYPE_Q4_K, SH_TYPE_Q5_K, SH_TYPE_Q6_K};
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        uint64_t bytes;
        const double one = measure(device, types[t], cols, n, 1, &bytes), many = measure(device, types[t], cols, n, rows, &bytes);
        printf("%-6s %10.2f %12.1f %14.1f\n", sh_type_info(types[t])->name, (double)bytes / one * 1e-9, one * 1e6,
               2.0 * cols * n * rows / many * 1e-9);
    }
    device->executor->device_close(device);
    return 0;
}
