/*
 * digest.h - 128 bits that tell whether bytes are the same ones as before: damage in files, and what a model is. It is no proof against
 * somebody who wants two things to look the same: whoever reads a file checks all that it could do harm with.
 *
 * Two words x, y of 64 bits (little-endian) at a time: a = rotl(a ^ x P1, 29) P2 + b, b = rotl(b ^ y P3, 31) P1 + a; the last ones filled
 * up with zeros; then the number of bytes, and twice more with zeros. Every step is one to one in what came before, so a change is not lost.
 * One thread per digest.
 */
#ifndef SHIMMY_DIGEST_H
#define SHIMMY_DIGEST_H

#include "compute/base.h"

struct sh_digest {
    uint64_t a, b, bytes;
    uint8_t rest[16]; /* the first bytes % 16 wait for more */
};
void sh_digest_begin(struct sh_digest *d);
/* How bytes are cut into calls does not matter. */
void sh_digest_add(struct sh_digest *d, const void *data, size_t length);
void sh_digest_text(struct sh_digest *d, const char *text, size_t length); /* with its length: texts behind each other stay apart */
void sh_digest_u64(struct sh_digest *d, uint64_t value);
void sh_digest_end(const struct sh_digest *d, uint64_t out[2]);

#endif
