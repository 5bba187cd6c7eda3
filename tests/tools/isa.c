/*
 * isa - compiles every kernel on the first Vulkan device and marks each on stderr, for `make isa`: RADV's null device prints the
 * machine code and its statistics there. Runs nothing.
 */
#include "compute/program/executor.h"
#include "compute/vulkan/kernels.h"
#include "compute/vulkan/vk.h"

#include <stdio.h>

/* Not: what only software devices get, what this build has no code for, and what the null device has no feature for. */
static bool on_gpus(const struct sh_kernel_code *code) {
    static const char *const others[] = {"wide_", "column_", "coop_"};
    for (size_t i = 0; i < SH_COUNT(others); i++)
        if (strncmp(code->name, others[i], strlen(others[i])) == 0) return false;
    return code->packed != NULL;
}

int main(void) {
    struct sh_device_info infos[4];
    struct sh_error err = {0};
    uint32_t count = 0;
    struct sh_device *device = NULL;
    if (sh_vulkan_enumerate(infos, 4, &count, &err) != SH_OK || count == 0) {
        fprintf(stderr, "isa: no Vulkan device\n");
        return 1;
    }
    const struct sh_device_params params = {.size = sizeof params, .info = &infos[0]};
    if (sh_vulkan_open(&params, &device, &err) != SH_OK) {
        fprintf(stderr, "isa: %s\n", err.message);
        return 1;
    }
    fprintf(stderr, "=== device %s\n", device->info.name);
    int failed = 0;
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) {
        VkPipeline pipeline;
        if (!on_gpus(&sh_kernel_codes[k])) continue;
        fprintf(stderr, "=== kernel %s\n", sh_kernel_codes[k].name);
        if (sh_vk_pipeline(sh_vulkan_of(device), k, &pipeline, &err) == SH_OK) continue;
        fprintf(stderr, "isa: %s\n", err.message);
        failed = 1;
    }
    fprintf(stderr, "=== end\n");
    device->executor->device_close(device);
    return failed;
}
