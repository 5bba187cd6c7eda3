/*
 * cursor.h - reads the header region of one file, front to back, with a sticky error.
 *
 * The region is copied with pread into a buffer that grows as the cursor advances; positions are byte offsets from the start of
 * the file, and because the buffer moves while it grows, pointers into it are taken only after the last read (sh_cursor_at).
 * After the first failure every read returns 0 and consumes nothing, so a parser may check once per entry. One thread.
 */
#ifndef SHIMMY_GGUF_CURSOR_H
#define SHIMMY_GGUF_CURSOR_H

#include "compute/base.h"

/* A header larger than this is refused: the largest known ones (262,144 tokens with merges) are under 20 MiB. */
#define SH_HEADER_MAX_BYTES (128u << 20)

struct sh_span { /* bytes of the file */
    uint64_t offset, length;
};

struct sh_cursor {
    int fd;           /* lent */
    const char *file; /* lent: how messages name the file */
    uint64_t file_bytes;
    uint64_t at;   /* next byte */
    uint8_t *data; /* owned: bytes [0, loaded) */
    uint64_t loaded, capacity;
    char context[160]; /* "key 'general.name' ": what is being read, for messages; may be empty */
    bool failed;
    struct sh_error error; /* the first one */
};

void sh_cursor_init(struct sh_cursor *c, int fd, const char *file, uint64_t file_bytes);
void sh_cursor_finish(struct sh_cursor *c);   /* frees the copy unless it was taken */
void sh_cursor_trim(struct sh_cursor *c);     /* gives back what was read ahead beyond the next byte */
uint8_t *sh_cursor_take(struct sh_cursor *c); /* the copy becomes the caller's */

/* Names what is read next; what does not fit is cut. */
void sh_cursor_context(struct sh_cursor *c, const char *fmt, ...) SH_PRINTF(2, 3);
/* "FILE: CONTEXTat byte AT: MESSAGE"; keeps the first error. Returns the code of the first error. */
enum sh_code sh_cursor_fail(struct sh_cursor *c, enum sh_code code, uint64_t at, const char *fmt, ...) SH_PRINTF(4, 5);

uint64_t sh_cursor_left(const struct sh_cursor *c); /* bytes from here to the end of the file */
uint8_t sh_cursor_u8(struct sh_cursor *c);
uint32_t sh_cursor_u32(struct sh_cursor *c);
uint64_t sh_cursor_u64(struct sh_cursor *c);
/* `length` bytes; an empty span after a failure. */
struct sh_span sh_cursor_bytes(struct sh_cursor *c, uint64_t length);
/* A string: 64-bit length, then its bytes. */
struct sh_span sh_cursor_string(struct sh_cursor *c, uint64_t max_length);

/* The copy at `offset`, which has been read. Valid until the next read. */
static inline const uint8_t *sh_cursor_at(const struct sh_cursor *c, uint64_t offset) { return c->data + offset; }

#endif
