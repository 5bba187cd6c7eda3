#include "compute/gguf/cursor.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void sh_cursor_init(struct sh_cursor *c, int fd, const char *file, uint64_t file_bytes) {
    *c = (struct sh_cursor){.fd = fd, .file = file, .file_bytes = file_bytes};
}

void sh_cursor_finish(struct sh_cursor *c) {
    free(c->data);
    c->data = NULL;
}

void sh_cursor_trim(struct sh_cursor *c) {
    uint8_t *trimmed = c->failed ? NULL : realloc(c->data, (size_t)sh_max_u64(c->at, 1));
    if (trimmed == NULL) return;
    c->data = trimmed;
    c->loaded = c->capacity = c->at;
}

uint8_t *sh_cursor_take(struct sh_cursor *c) {
    uint8_t *data = c->data;
    c->data = NULL;
    return data;
}

void sh_cursor_context(struct sh_cursor *c, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->context, sizeof c->context, fmt, args);
    va_end(args);
}

enum sh_code sh_cursor_fail(struct sh_cursor *c, enum sh_code code, uint64_t at, const char *fmt, ...) {
    if (c->failed) return c->error.code;
    char message[320];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    c->failed = true;
    return sh_fail(&c->error, code, "%s: %sat byte %" PRIu64 ": %s", c->file, c->context, at, message);
}

uint64_t sh_cursor_left(const struct sh_cursor *c) { return c->file_bytes - c->at; }

/* Makes bytes [at, at + n) readable. */
static bool need(struct sh_cursor *c, uint64_t n) {
    if (c->failed) return false;
    if (n > c->file_bytes - c->at) {
        sh_cursor_fail(c, SH_ERR_FORMAT, c->at, "the file ends: found %" PRIu64 " bytes, expected %" PRIu64,
                       c->file_bytes - c->at, n);
        return false;
    }
    if (n > SH_HEADER_MAX_BYTES - c->at) { /* at never exceeds the limit */
        sh_cursor_fail(c, SH_ERR_FORMAT, c->at,
                       "the header goes on for another %" PRIu64 " bytes, expected at most %u bytes in all", n,
                       SH_HEADER_MAX_BYTES);
        return false;
    }
    const uint64_t end = c->at + n;
    if (end <= c->loaded) return true;
    /* read ahead: as much again as is there, at least 64 KiB, but never beyond the file */
    const uint64_t ahead = sh_max_u64(end, sh_max_u64(c->loaded * 2, 65536));
    const uint64_t want = sh_min_u64(sh_min_u64(ahead, c->file_bytes), SH_HEADER_MAX_BYTES);
    if (want > c->capacity) {
        uint8_t *grown = realloc(c->data, (size_t)want);
        if (grown == NULL) {
            sh_cursor_fail(c, SH_ERR_NO_MEMORY, c->at, "no memory for %" PRIu64 " bytes of header", want);
            return false;
        }
        c->data = grown;
        c->capacity = want;
    }
    while (c->loaded < want) {
        const ssize_t got = pread(c->fd, c->data + c->loaded, (size_t)(want - c->loaded), (off_t)c->loaded);
        if (got > 0) {
            c->loaded += (uint64_t)got;
        } else if (got == 0) {
            if (c->loaded >= end) break;
            sh_cursor_fail(c, SH_ERR_IO, c->loaded, "the file became shorter while it was read: expected %" PRIu64 " bytes",
                           c->file_bytes);
            return false;
        } else if (errno != EINTR) {
            sh_cursor_fail(c, SH_ERR_IO, c->loaded, "cannot read: %s", strerror(errno));
            return false;
        }
    }
    return true;
}

uint8_t sh_cursor_u8(struct sh_cursor *c) {
    if (!need(c, 1)) return 0;
    return c->data[c->at++];
}

uint32_t sh_cursor_u32(struct sh_cursor *c) {
    uint32_t v;
    if (!need(c, sizeof v)) return 0;
    memcpy(&v, c->data + c->at, sizeof v);
    c->at += sizeof v;
    return v;
}

uint64_t sh_cursor_u64(struct sh_cursor *c) {
    uint64_t v;
    if (!need(c, sizeof v)) return 0;
    memcpy(&v, c->data + c->at, sizeof v);
    c->at += sizeof v;
    return v;
}

struct sh_span sh_cursor_bytes(struct sh_cursor *c, uint64_t length) {
    if (!need(c, length)) return (struct sh_span){c->at, 0};
    const struct sh_span span = {c->at, length};
    c->at += length;
    return span;
}

struct sh_span sh_cursor_string(struct sh_cursor *c, uint64_t max_length) {
    const uint64_t at = c->at, length = sh_cursor_u64(c);
    if (!c->failed && length > max_length)
        sh_cursor_fail(c, SH_ERR_FORMAT, at, "found a string of %" PRIu64 " bytes, expected at most %" PRIu64, length,
                       max_length);
    if (!c->failed && length > sh_cursor_left(c))
        sh_cursor_fail(c, SH_ERR_FORMAT, at,
                       "found a string of %" PRIu64 " bytes, expected at most the %" PRIu64 " that are left of the file", length,
                       sh_cursor_left(c));
    return sh_cursor_bytes(c, c->failed ? 0 : length);
}
