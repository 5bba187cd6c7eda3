/* cachefile.h - small files in the cache directory that belong to one device, one driver and the kernels of one build. */
#ifndef SHIMMY_CACHEFILE_H
#define SHIMMY_CACHEFILE_H

#include "compute/vulkan/vk.h"

#define SH_VK_CACHE_PATH 512

/* Device, driver and all SPIR-V of this build as one number. */
uint64_t sh_vk_cache_key(const struct sh_vulkan *vk);
/* <dir>/<kind>-<driver UUID>-<key>.bin; "" if that is too long. */
void sh_vk_cache_path(const struct sh_vulkan *vk, const char *dir, const char *kind, char path[SH_VK_CACHE_PATH]);
/* What a sound file holds, malloc'd; NULL where there is none. A damaged one is logged and counts as none. `magic` says what it is of. */
void *sh_vk_cache_read(const char *path, uint32_t magic, size_t *bytes);
/* Replaces the file by rename, so that readers see a whole one. False: it was not written, which is logged unless there was nothing to write, or
 * more than a cache may be. */
bool sh_vk_cache_write(const char *path, uint32_t magic, const void *data, size_t bytes);

#endif
