/* kernels.h - the kernels of compute/glsl/manifest.def as SPIR-V, embedded at build time, each compressed by gzip: as it stands the SPIR-V of
 * unrolled loops would be half of the program, and a process unpacks only what its models use. */
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
    const uint8_t *packed; /* NULL: this build's glslc could not compile it (cooperative matrices) */
    size_t packed_bytes;
    size_t bytes; /* of the SPIR-V */
};
extern const struct sh_kernel_code sh_kernel_codes[SH_KERNEL_COUNT];

/* The SPIR-V of a kernel, code->bytes of it, malloc'd; NULL: no memory. */
uint32_t *sh_kernel_words(const struct sh_kernel_code *code);

#endif
