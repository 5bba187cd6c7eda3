/* kernels.h - the kernels of compute/glsl/manifest.def as SPIR-V, embedded at build time. */
#ifndef SHIMMY_KERNELS_H
#define SHIMMY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum sh_kernel {
#define KERNEL(name, source, defines) SH_KERNEL_##name,
#include "compute/glsl/manifest.def"
#undef KERNEL
    SH_KERNEL_COUNT
};

struct sh_kernel_code {
    const char *name; /* symbol, pipeline and label */
    const uint32_t *words;
    size_t bytes;
};
extern const struct sh_kernel_code sh_kernel_codes[SH_KERNEL_COUNT];

#endif
