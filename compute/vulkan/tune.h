/*
 * tune.h - measures which shape (shapes.h) makes a product's kernel fastest on the device at hand.
 *
 * Before the pipelines of a context are made, each of its products' kernels that has no choice yet is run in all of its shapes, on scratch
 * memory, by turns, and timed by the device. The choice stays for as long as the device is open, and is kept in
 * <cache_dir>/shapes-*.bin (cachefile.h), whose name and content say of which device, driver and build it is. A shape whose results were
 * not bit for bit those of the table's shape would be left out: that is a driver's fault, and is logged.
 *
 * The time that all this takes is bounded (SH_VK_TUNE_NS for a device that is opened, but for the kernel at hand); what is not reached has the
 * table's shape until the device is opened again. Nothing here fails: what cannot be measured has the table's shape.
 */
#ifndef SHIMMY_TUNE_H
#define SHIMMY_TUNE_H

#include "compute/vulkan/vk.h"

#define SH_VK_TUNE_NS 500000000u

struct sh_vk_tuner;
/* Sets vk->tuner, and the shapes that the file knows; NULL without timestamps or memory. The device's pipelines exist, none is made yet.
 * cache_dir may be NULL. */
void sh_vk_tuner_create(struct sh_vulkan *vk, const char *cache_dir);
/* Chooses for those of the kernels [SH_KERNEL_COUNT] that are wanted. Any thread; several do it one after the other. */
void sh_vk_tune(struct sh_vulkan *vk, const bool wanted[]);
void sh_vk_tuner_destroy(struct sh_vulkan *vk);
uint32_t sh_vk_tuned_for_test(const struct sh_vulkan *vk, bool measured); /* kernels whose shape was chosen: here, or by the file */

#endif
