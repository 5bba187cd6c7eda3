/*
 * cachefile.c - files of the cache directory: a header of ours with the length and a hash of the rest, because whoever is given the rest may
 * trust it, then the rest.
 */
#include "compute/vulkan/cachefile.h"
#include "compute/vulkan/kernels.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_BYTES (64u << 20)

struct header {
    uint32_t magic, bytes;
    uint64_t hash;
};

static uint64_t fnv1a(uint64_t hash, const void *data, size_t bytes) {
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3ull;
    return hash;
}
#define FNV_START 0xcbf29ce484222325ull

static VkPhysicalDeviceIDProperties ids(const struct sh_vulkan *vk) {
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
    vk->instance.GetPhysicalDeviceProperties2(vk->physical, &properties);
    id.pNext = NULL;
    return id;
}

static uint64_t key_of(const VkPhysicalDeviceIDProperties *id) {
    uint64_t hash = fnv1a(FNV_START, id->deviceUUID, sizeof id->deviceUUID);
    hash = fnv1a(hash, id->driverUUID, sizeof id->driverUUID);
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) hash = fnv1a(hash, sh_kernel_codes[k].packed, sh_kernel_codes[k].packed_bytes);
    return hash;
}

uint64_t sh_vk_cache_key(const struct sh_vulkan *vk) {
    const VkPhysicalDeviceIDProperties id = ids(vk);
    return key_of(&id);
}

void sh_vk_cache_path(const struct sh_vulkan *vk, const char *dir, const char *kind, char path[SH_VK_CACHE_PATH]) {
    const VkPhysicalDeviceIDProperties id = ids(vk);
    char uuid[33];
    for (int i = 0; i < 16; i++) snprintf(uuid + 2 * i, 3, "%02x", id.driverUUID[i]);
    const int n = snprintf(path, SH_VK_CACHE_PATH, "%s/%s-%s-%016llx.bin", dir, kind, uuid, (unsigned long long)key_of(&id));
    if (n < 0 || n >= SH_VK_CACHE_PATH) path[0] = 0;
}

void *sh_vk_cache_read(const char *path, uint32_t magic, size_t *bytes) {
    *bytes = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct header header;
    void *data = NULL;
    if (read(fd, &header, sizeof header) == (ssize_t)sizeof header && header.magic == magic && header.bytes > 0 &&
        header.bytes <= MAX_BYTES)
        data = malloc(header.bytes);
    if (!data || read(fd, data, header.bytes) != (ssize_t)header.bytes || fnv1a(FNV_START, data, header.bytes) != header.hash) {
        sh_log(SH_LOG_NOTICE, "%s is damaged; it is made anew", path);
        free(data);
        data = NULL;
    }
    close(fd);
    if (data) *bytes = header.bytes;
    return data;
}

bool sh_vk_cache_write(const char *path, uint32_t magic, const void *data, size_t bytes) {
    if (bytes == 0 || bytes > MAX_BYTES) return false;
    char tmp[SH_VK_CACHE_PATH + 8];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    const struct header header = {magic, (uint32_t)bytes, fnv1a(FNV_START, data, bytes)};
    const int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, &header, sizeof header) == (ssize_t)sizeof header && write(fd, data, bytes) == (ssize_t)bytes;
    if (fd >= 0 && close(fd) != 0) ok = false;
    if (ok && rename(tmp, path) == 0) return true;
    sh_log(SH_LOG_NOTICE, "%s cannot be written: %s", path, strerror(errno));
    unlink(tmp);
    return false;
}
