/*
 * reads.c - a library for LD_PRELOAD that fails reads of model files by a script (script.h; its path is in SHIMMY_FAULTS): files named *.gguf and
 * Ollama's blobs (sha256-*).
 *
 *   pread SKIP COUNT EIO        the read fails
 *   pread SKIP COUNT SHORT      it comes with half of what was asked for
 *   pread SKIP COUNT END        it comes with nothing, as at a file's end
 *   pread SKIP COUNT SLOW       it takes 20 ms longer
 *   pread SKIP COUNT HOLD       it does not come back as long as the rule stands
 */
#include "tests/faults/script.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

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
        while (strcmp(what, "HOLD") == 0 && fault_stands(script(), "pread", "HOLD")) nanosleep(&nap, NULL);
    }
    return syscall(SYS_pread64, fd, buffer, bytes, offset);
}
