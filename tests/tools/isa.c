/*
 * isa - compiles kernels on the first Vulkan device and marks each on stderr, with "dot" behind the name where its SPIR-V has integer dot
 * products, for `make isa`: RADV's null device prints the machine code and its statistics there. Runs nothing.
 * Usage: isa [NAME...]: only kernels whose names begin with one of these; default: all.
 */
#include "compute/program/executor.h"
#include "compute/vulkan/kernels.h"
#include "compute/vulkan/vk.h"

#include <stdio.h>
#include <stdlib.h>

/* Not: what only software devices get, what this build has no code for, and what the null device has no feature for. */
static bool on_gpus(const struct sh_kernel_code *code) {
    static const char *const others[] = {"wide_", "column_", "coop_"};
    for (size_t i = 0; i < SH_COUNT(others); i++)
        if (strncmp(code->name, others[i], strlen(others[i])) == 0) return false;
    return code->packed != NULL;
}

/* OpSDot .. OpSUDotAccSat */
static bool has_dot(const uint32_t *words, size_t n) {
    for (size_t at = 5; at < n && words[at] >> 16; at += words[at] >> 16)
        if ((words[at] & 0xffff) >= 4450 && (words[at] & 0xffff) <= 4455) return true;
    return false;
}

static bool asked_for(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strncmp(name, argv[i], strlen(argv[i])) == 0) return true;
    return argc < 2;
}

int main(int argc, char **argv) {
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
        if (!on_gpus(&sh_kernel_codes[k]) || !asked_for(sh_kernel_codes[k].name, argc, argv)) continue;
        VkPipeline pipeline;
        uint32_t *words = sh_kernel_words(&sh_kernel_codes[k]);
        if (!words) return 1;
        fprintf(stderr, "=== kernel %s%s\n", sh_kernel_codes[k].name, has_dot(words, sh_kernel_codes[k].bytes / 4) ? " dot" : "");
        free(words);
        if (sh_vk_pipeline(sh_vulkan_of(device), k, &pipeline, &err) == SH_OK) continue;
        fprintf(stderr, "isa: %s\n", err.message);
        failed = 1;
    }
    fprintf(stderr, "=== end\n");
    device->executor->device_close(device);
    return failed;
}
