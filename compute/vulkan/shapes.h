/*
 * shapes.h - how workgroups of the products' kernels are cut. A shape changes no sum (compute/glsl/README.md): each output of a row is made by
 * the same additions in the same order, whichever thread makes it and whoever stands beside it. So shapes are free to be chosen for speed:
 * by a table of vendors, then, where that is wanted, by measuring.
 *
 * A kernel has one shape on a device as long as that is open. Pure functions but for what is said in pipeline.c.
 */
#ifndef SHIMMY_SHAPES_H
#define SHIMMY_SHAPES_H

#include "compute/vulkan/kernels.h"
#include "compute/vulkan/vk.h"

struct sh_vk_shape {
    uint32_t threads; /* of a workgroup: SH_SPEC_THREADS */
    uint32_t across;  /* of these, side by side over outputs: SH_SPEC_ACROSS; kernels that are no tiles do not read it */
    uint32_t rows, outputs; /* that a workgroup makes */
};
#define SH_VK_MAX_SHAPES 4 /* of a kernel */

/* All shapes that a kernel can have, *n of them; NULL and 0 for kernels that are no products. */
const struct sh_vk_shape *sh_vk_shapes(uint32_t kernel, uint32_t *n);
/* What a product's kernel multiplies with: the layout of its weights (SH_LAYOUT_*), and whether activations are quants of 8 bits. */
uint32_t sh_vk_shape_layout(uint32_t kernel, bool *quants);
/* Which of them the table has for this device. 0 for kernels without shapes. */
uint32_t sh_vk_shape_of_table(const struct sh_vulkan *vk, uint32_t kernel);

/* The one that a product's kernel has on this device. Any thread; final once the kernel's pipeline is made. (pipeline.c) */
const struct sh_vk_shape *sh_vk_shape(const struct sh_vulkan *vk, uint32_t kernel);
/* Gives a kernel another one. False, and nothing changes: its pipeline is made, or being made. Any thread. (pipeline.c) */
bool sh_vk_shape_set(struct sh_vulkan *vk, uint32_t kernel, uint32_t index);
/* A pipeline beside those of the device, in a shape of the caller's choice (NULL: of a kernel that has none); the caller destroys it. Any
 * thread. (pipeline.c) */
enum sh_code sh_vk_pipeline_in_shape(struct sh_vulkan *vk, uint32_t kernel, const struct sh_vk_shape *shape, VkPipeline *out,
                                     struct sh_error *err);
/* Before any pipeline is made: gives every kernel the shape of that index, or its last one. (pipeline.c) */
void sh_vk_shapes_for_test(struct sh_vulkan *vk, uint32_t index);

#endif
