/* layouts.h - from the file's blocks to the planes that the kernels read (compute/glsl/weights.glsl says how they lie). Pure
 * functions. */
#ifndef SHIMMY_LAYOUTS_H
#define SHIMMY_LAYOUTS_H

#include "compute/gguf/quant.h"
#include "compute/glsl/params.h"

struct sh_layout {
    uint32_t layout; /* SH_LAYOUT_* */
    uint32_t type;   /* of the file */
    uint64_t cols;
    uint32_t units;        /* of a row */
    uint32_t row_bytes[4]; /* of each plane; 0: the layout has no such plane */
    uint64_t row_bytes_all;
    uint32_t constant[4]; /* what the kernels know of the type: weights.glsl */
};
/* False: this build has no layout for the type. cols must be a multiple of the type's block. */
bool sh_layout_describe(uint32_t type, uint64_t cols, struct sh_layout *out);
/* Repacks n rows of the file into planes; planes[i] is where the first of these rows starts in plane i. */
void sh_layout_pack(const struct sh_layout *layout, uint64_t n_rows, const void *src, uint8_t *const planes[4]);

#endif
