/* kernels.c - unpacks embedded SPIR-V. */
#include "compute/vulkan/kernels.h"

#include "compute/base.h"

#include <stdlib.h>
#include <zlib.h>

#define GZIP_WINDOW (15 + 16) /* zlib: the largest window, in gzip's wrapping */

uint32_t *sh_kernel_words(const struct sh_kernel_code *code) {
    uint32_t *words = malloc(code->bytes);
    z_stream z = {.next_in = (z_const Bytef *)(uintptr_t)code->packed, .avail_in = (uInt)code->packed_bytes};
    if (words == NULL || inflateInit2(&z, GZIP_WINDOW) != Z_OK) {
        free(words);
        return NULL;
    }
    z.next_out = (Bytef *)words;
    z.avail_out = (uInt)code->bytes;
    const int result = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    if (result == Z_MEM_ERROR) {
        free(words);
        return NULL;
    }
    SH_ASSERT(result == Z_STREAM_END && z.avail_out == 0); /* the build has packed these very bytes */
    return words;
}
