/*
 * amx_tiles.h - the tile operations of amx_dot.h as instructions of AMX. tests/unit/plain_tiles.h has the same in plain C.
 *
 * Tiles 0..3 are sums, [16 operand rows][16 weight rows] of 32 bits; 4 and 5 operand rows, [16][k] signed bytes; 6 and 7 weights, [k /
 * 4][16 weight rows][4] signed bytes. `t`, `c`, `a`, `b`: literal numbers of tiles; strides in bytes.
 *   tiles_begin(k)                  shapes of this thread's tiles, k = 32 or 64; tiles_end() gives them back
 *   TILE_ZERO(t)                    TILE_LOAD(t, from, stride)          TILE_STORE(t, to, stride)
 *   TILE_DOT(c, a, b)               c[i][n] += sum over k of a[i][k] b[k / 4][n][k % 4]
 * The instructions are written out, since compilers' own forms of them (GCC 12) let earlier stores to what a tile is loaded from, or to
 * the shapes, move behind them.
 */
#ifndef SHIMMY_CPU_AMX_TILES_H
#define SHIMMY_CPU_AMX_TILES_H

#include <stdint.h>

/* The memory operand of LDTILECFG. */
struct tile_shapes {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_shapes) == 64, "as the instruction reads it");

static inline void tiles_begin(uint8_t k) {
    const struct tile_shapes shapes = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, k, k, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, k / 4, k / 4},
    };
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}
static inline void tiles_end(void) { __asm__ volatile("tilerelease" : : : "memory"); }

#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : : "memory")
#define TILE_LOAD(t, from, stride)                                                                                               \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"((uint64_t)(stride)) : "memory")
#define TILE_STORE(t, to, stride)                                                                                                \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"((uint64_t)(stride)) : "memory")
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

#endif
