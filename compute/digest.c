#include "compute/digest.h"

#define P1 0x9e3779b97f4a7c15u
#define P2 0xd1342543de82ef95u
#define P3 0xaf251af3b0f025b5u

static uint64_t rotl(uint64_t v, int n) { return v << n | v >> (64 - n); }

static void take(struct sh_digest *d, const uint8_t block[16]) {
    uint64_t x, y;
    memcpy(&x, block, 8);
    memcpy(&y, block + 8, 8);
    d->a = rotl(d->a ^ x * P1, 29) * P2 + d->b;
    d->b = rotl(d->b ^ y * P3, 31) * P1 + d->a;
}

void sh_digest_begin(struct sh_digest *d) { *d = (struct sh_digest){.a = P2, .b = P3}; }

void sh_digest_add(struct sh_digest *d, const void *data, size_t length) {
    const uint8_t *at = data;
    const size_t waiting = d->bytes % 16, fill = (size_t)sh_min_u64(length, 16 - waiting);
    d->bytes += length;
    if (waiting > 0) {
        memcpy(d->rest + waiting, at, fill);
        if (waiting + fill < 16) return;
        take(d, d->rest);
        at += fill;
        length -= fill;
    }
    for (; length >= 16; at += 16, length -= 16) take(d, at);
    if (length > 0) memcpy(d->rest, at, length);
}

void sh_digest_u64(struct sh_digest *d, uint64_t value) { sh_digest_add(d, &value, sizeof value); }

void sh_digest_text(struct sh_digest *d, const char *text, size_t length) {
    sh_digest_u64(d, length);
    sh_digest_add(d, text, length);
}

void sh_digest_end(const struct sh_digest *d, uint64_t out[2]) {
    struct sh_digest end = *d;
    uint8_t block[16] = {0};
    memcpy(block, d->rest, d->bytes % 16);
    take(&end, block);
    memset(block, 0, sizeof block);
    memcpy(block, &d->bytes, sizeof d->bytes);
    take(&end, block);
    memset(block, 0, sizeof block);
    take(&end, block);
    take(&end, block);
    out[0] = end.a;
    out[1] = end.b;
}
