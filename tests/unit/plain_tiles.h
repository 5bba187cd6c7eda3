/*
 * plain_tiles.h - the tile operations of compute/cpu/amx_tiles.h in plain C, each as the processor's manual describes the instruction:
 * what a tile's shape leaves out is zero, and a product of tiles whose shapes do not fit is an error.
 */
#ifndef SHIMMY_TESTS_PLAIN_TILES_H
#define SHIMMY_TESTS_PLAIN_TILES_H

#include "compute/base.h"

#include <string.h>

struct plain_tile {
    uint32_t rows, row_bytes;
    int8_t bytes[16][64];
};
static _Thread_local struct plain_tile plain_tiles[8];

static void tiles_begin(uint8_t k) {
    for (int t = 0; t < 8; t++)
        plain_tiles[t] = (struct plain_tile){.rows = t < 6 ? 16 : k / 4, .row_bytes = t == 4 || t == 5 ? k : 64};
}
static void tiles_end(void) { memset(plain_tiles, 0, sizeof plain_tiles); }

static void plain_zero(struct plain_tile *t) { memset(t->bytes, 0, sizeof t->bytes); }
static void plain_load(struct plain_tile *t, const void *from, uint64_t stride) {
    SH_ASSERT(t->rows > 0);
    plain_zero(t);
    for (uint32_t i = 0; i < t->rows; i++) memcpy(t->bytes[i], (const uint8_t *)from + i * stride, t->row_bytes);
}
static void plain_store(const struct plain_tile *t, void *to, uint64_t stride) {
    SH_ASSERT(t->rows > 0);
    for (uint32_t i = 0; i < t->rows; i++) memcpy((uint8_t *)to + i * stride, t->bytes[i], t->row_bytes);
}
static void plain_dot(struct plain_tile *c, const struct plain_tile *a, const struct plain_tile *b) {
    SH_ASSERT(c->rows > 0 && c->rows == a->rows && c->row_bytes == b->row_bytes && a->row_bytes == 4 * b->rows);
    int32_t sums[16];
    for (uint32_t i = 0; i < c->rows; i++) {
        memcpy(sums, c->bytes[i], sizeof sums);
        for (uint32_t k = 0; k < b->rows; k++) {
            const int8_t *x = a->bytes[i] + 4 * k, *w = b->bytes[k];
            for (uint32_t n = 0; n < 16; n++)
                sums[n] += x[0] * w[4 * n] + x[1] * w[4 * n + 1] + x[2] * w[4 * n + 2] + x[3] * w[4 * n + 3];
        }
        memcpy(c->bytes[i], sums, sizeof sums);
    }
}

#define TILE_ZERO(t) plain_zero(&plain_tiles[t])
#define TILE_LOAD(t, from, stride) plain_load(&plain_tiles[t], from, stride)
#define TILE_STORE(t, to, stride) plain_store(&plain_tiles[t], to, stride)
#define TILE_DOT(c, a, b) plain_dot(&plain_tiles[c], &plain_tiles[a], &plain_tiles[b])

#endif
