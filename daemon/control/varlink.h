/*
 * varlink.h - framing of the control socket: bytes in, whole JSON messages out. No sockets and no JSON library here.
 *
 * A message is one JSON object and a terminator. The first NUL or line feed after the connection's first complete object fixes
 * its terminator: NUL for Varlink clients, LF for a person with socat. With LF, line feeds inside an object are white space;
 * with NUL they are so everywhere.
 *
 * Thread-safety: a frame_reader, one thread at a time.
 */
#ifndef SHIMMYD_VARLINK_H
#define SHIMMYD_VARLINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FRAME_MAX_BYTES = 16 << 20, FRAME_MAX_DEPTH = 64 };

struct frame_reader { /* zeroed: ready for use */
    char *data;
    size_t length, capacity; /* bytes */
    size_t scanned;          /* bytes that were looked at */
    size_t value_start, value_end;
    uint32_t depth;
    bool begun, in_string, escaped, complete;
    bool terminator_known;
    char terminator; /* '\0' or '\n'; a line feed until it is known */
    size_t consumed; /* bytes of messages that were handed out, to be dropped */
};

enum frame_result { FRAME_NONE /* more bytes are needed */, FRAME_MESSAGE, FRAME_BAD };

/* False: no memory. What is appended is not limited here: ask frame_reader_room first. */
bool frame_reader_append(struct frame_reader *reader, const char *bytes, size_t count);
/* How many bytes may be appended before messages have to be taken. */
size_t frame_reader_room(const struct frame_reader *reader);
/* message: lent until the next call, NUL-terminated (it may be written to). why: with FRAME_BAD, a constant; the reader is of
 * no use after it. */
enum frame_result frame_reader_next(struct frame_reader *reader, char **message, size_t *length, const char **why);
void frame_reader_finish(struct frame_reader *reader);

#endif
