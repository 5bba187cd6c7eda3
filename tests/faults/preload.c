/*
 * preload.c - a library for LD_PRELOAD that fails reads of model files and allocations by a script (script.h; its path is in
 * SHIMMY_FAULTS).
 *
 *   pread SKIP COUNT EIO        the read fails
 *   pread SKIP COUNT SHORT      it comes with half of what was asked for
 *   pread SKIP COUNT END        it comes with nothing, as at a file's end
 *   pread SKIP COUNT SLOW       it takes 20 ms longer
 *   alloc SKIP COUNT FAIL       malloc, calloc or realloc of 64 bytes to 256 KiB fails,
 *   big SKIP COUNT FAIL         one of more, or an anonymous mmap
 *
 * Reads are those of files named *.gguf and of Ollama's blobs (sha256-*).
 */
#include "tests/faults/script.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
/* Smaller ones are not looked at: a script is read at each. */
enum { LEAST_BYTES = 64, BIG_BYTES = 256 << 10 };

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);

static const char *script(void) { return getenv("SHIMMY_FAULTS"); }

static bool is_model(int fd) {
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return false;
    path[n] = 0;
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    return strstr(name, ".gguf") || strncmp(name, "sha256-", 7) == 0;
}

EXPORT ssize_t pread64(int fd, void *buffer, size_t bytes, off_t offset);
EXPORT ssize_t pread64(int fd, void *buffer, size_t bytes, off_t offset) {
    char what[64];
    const struct timespec nap = {0, 20000000};
    if (is_model(fd) && fault_due(script(), "pread", what, sizeof what)) {
        if (strcmp(what, "EIO") == 0) {
            errno = EIO;
            return -1;
        }
        if (strcmp(what, "END") == 0) return 0;
        if (strcmp(what, "SHORT") == 0 && bytes > 1) bytes /= 2;
        if (strcmp(what, "SLOW") == 0) nanosleep(&nap, NULL);
    }
    return syscall(SYS_pread64, fd, buffer, bytes, offset);
}

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
