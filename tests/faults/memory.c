/*
 * memory.c - a library for LD_PRELOAD that fails allocations by a script (script.h; its path is in SHIMMY_FAULTS). Not for programs built with a
 * sanitizer, which has an allocator of its own.
 *
 *   alloc SKIP COUNT FAIL       malloc, calloc or realloc of 64 bytes to 256 KiB fails,
 *   big SKIP COUNT FAIL         one of more, or an anonymous mmap
 */
#include "tests/faults/script.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
/* Smaller ones are not looked at: a script is read at each. */
enum { LEAST_BYTES = 64, BIG_BYTES = 256 << 10 };

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);

static const char *script(void) { return getenv("SHIMMY_FAULTS"); }

static bool refused(size_t bytes) {
    char what[64];
    if (bytes < LEAST_BYTES || !script()) return false;
    if (!fault_due(script(), bytes >= BIG_BYTES ? "big" : "alloc", what, sizeof what)) return false;
    errno = ENOMEM;
    return true;
}

EXPORT void *malloc(size_t bytes) { return refused(bytes) ? NULL : __libc_malloc(bytes); }
EXPORT void *calloc(size_t count, size_t bytes) {
    return bytes && count <= SIZE_MAX / bytes && refused(count * bytes) ? NULL : __libc_calloc(count, bytes);
}
EXPORT void *realloc(void *old, size_t bytes) { return refused(bytes) ? NULL : __libc_realloc(old, bytes); }

EXPORT void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
EXPORT void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fd < 0 && (protection & PROT_WRITE) && refused(bytes)) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}
