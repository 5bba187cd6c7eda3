/* layouts.c - repacking at load. Every function takes one row. */
#include "compute/vulkan/layouts.h"

static const struct planes {
    uint32_t quants, scales, extra, deltas; /* bytes per 8 units */
} planes_of[SH_LAYOUTS] = {
    [SH_LAYOUT_F32] = {1024, 0, 0, 0},      [SH_LAYOUT_F16] = {512, 0, 0, 0},     [SH_LAYOUT_BF16] = {512, 0, 0, 0},
    [SH_LAYOUT_Q4_0] = {128, 16, 0, 0},     [SH_LAYOUT_Q4_1] = {128, 32, 0, 0},   [SH_LAYOUT_Q5_1] = {128, 32, 32, 0},
    [SH_LAYOUT_Q8_0] = {256, 16, 0, 0},     [SH_LAYOUT_Q2_K] = {64, 16, 0, 4},    [SH_LAYOUT_Q4_K] = {128, 16, 0, 0},
    [SH_LAYOUT_Q5_K] = {128, 16, 32, 0},    [SH_LAYOUT_Q6_K] = {128, 16, 64, 2},  [SH_LAYOUT_TABLE32] = {128, 32, 0, 0},
    [SH_LAYOUT_TABLE256] = {128, 16, 0, 4}, [SH_LAYOUT_TABLE8] = {64, 16, 32, 4},
};

static uint32_t layout_of(uint32_t type) {
    switch (type) {
    case SH_TYPE_F32: return SH_LAYOUT_F32;
    case SH_TYPE_F16: return SH_LAYOUT_F16;
    case SH_TYPE_BF16: return SH_LAYOUT_BF16;
    case SH_TYPE_Q4_0: return SH_LAYOUT_Q4_0;
    case SH_TYPE_Q4_1: return SH_LAYOUT_Q4_1;
    case SH_TYPE_Q5_0:
    case SH_TYPE_Q5_1: return SH_LAYOUT_Q5_1;
    case SH_TYPE_Q8_0: return SH_LAYOUT_Q8_0;
    case SH_TYPE_Q2_K: return SH_LAYOUT_Q2_K;
    case SH_TYPE_Q4_K: return SH_LAYOUT_Q4_K;
    case SH_TYPE_Q5_K: return SH_LAYOUT_Q5_K;
    case SH_TYPE_Q6_K: return SH_LAYOUT_Q6_K;
    }
    const struct sh_table_type *table = sh_table_type(type);
    if (!table) return SH_LAYOUTS;
    if (table->block == 32) return SH_LAYOUT_TABLE32;
    static const int8_t none[8];
    return memcmp(table->values + 8, none, sizeof none) == 0 ? SH_LAYOUT_TABLE8 : SH_LAYOUT_TABLE256;
}

bool sh_layout_describe(uint32_t type, uint64_t cols, struct sh_layout *out) {
    const uint32_t layout = layout_of(type);
    const uint64_t units = (cols + SH_UNIT - 1) / SH_UNIT;
    if (layout == SH_LAYOUTS || units > UINT32_MAX / 1024) return false;
    const struct planes *planes = &planes_of[layout];
    const uint32_t per8[4] = {planes->quants, planes->scales, planes->extra, planes->deltas};
    *out = (struct sh_layout){.layout = layout, .type = type, .cols = cols, .units = (uint32_t)units};
    for (int p = 0; p < 4; p++) {
        out->row_bytes[p] = (uint32_t)(units * per8[p] / 8); /* whole: units are a multiple of 8 where per8 is not */
        out->row_bytes_all += out->row_bytes[p];
    }
    if (type == SH_TYPE_Q5_0) out->constant[0] = 16;
    const struct sh_table_type *table = sh_table_type(type);
    if (table) memcpy(out->constant, table->values, sizeof out->constant);
    return true;
}

/* 16-byte chunks of a row, C per unit, interleaved over 32 units. `src` holds whole chunks in order, but for the row's end. */
static void interleave(const struct sh_layout *l, uint32_t chunks, const uint8_t *src, uint64_t src_bytes, uint8_t *dst) {
    for (uint32_t u = 0; u < l->units; u++) {
        const uint32_t group = u & ~31u, step = l->units - group < 32 ? l->units - group : 32;
        for (uint32_t c = 0; c < chunks; c++) {
            const uint64_t from = ((uint64_t)u * chunks + c) * 16;
            uint8_t *to = dst + ((uint64_t)group * chunks + c * step + (u & 31)) * 16;
            const uint64_t have = from < src_bytes ? sh_min_u64(16, src_bytes - from) : 0;
            memcpy(to, src + (have ? from : 0), have);
            memset(to + have, 0, 16 - have);
        }
    }
}

/* Of bytes some bits each, from bit `shift` on, joined in order, eight bytes at a time: each step brings neighbours together. */
static uint64_t eight(const uint8_t *p) {
    uint64_t bytes;
    memcpy(&bytes, p, 8);
    return bytes;
}
static void join_nibbles(const uint8_t *q, int n, int shift, uint8_t *to) { /* of n bytes, a multiple of 8 */
    for (int i = 0; i < n; i += 8, to += 4) {
        uint64_t x = eight(q + i) >> shift & UINT64_C(0x0F0F0F0F0F0F0F0F);
        x = (x | x >> 4) & UINT64_C(0x00FF00FF00FF00FF);
        x = (x | x >> 8) & UINT64_C(0x0000FFFF0000FFFF);
        const uint32_t joined = (uint32_t)(x | x >> 16);
        memcpy(to, &joined, 4);
    }
}
static uint64_t join_pairs(const uint8_t *q, int shift) { /* of 32 bytes */
    uint64_t all = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t x = eight(q + 8 * i) >> shift & UINT64_C(0x0303030303030303);
        x = (x | x >> 6) & UINT64_C(0x000F000F000F000F);
        x = (x | x >> 12) & UINT64_C(0x000000FF000000FF);
        all |= ((x | x >> 24) & 0xFFFF) << (16 * i);
    }
    return all;
}
static uint32_t join_bits(const uint8_t *q, int shift) {
    uint32_t all = 0;
    for (int i = 0; i < 4; i++) { /* the product has bit b of byte b at 56 + b, and nothing else meets there */
        const uint64_t x = eight(q + 8 * i) >> shift & UINT64_C(0x0101010101010101);
        all |= (uint32_t)(x * UINT64_C(0x0102040810204080) >> 56) << (8 * i);
    }
    return all;
}

/* The low nibbles of 16 bytes are elements 0 to 15, the high ones 16 to 31. */
static void pack_halves(const uint8_t *src, uint8_t *to) {
    join_nibbles(src, 16, 0, to);
    join_nibbles(src, 16, 4, to + 8);
}

static void pack_q4_0(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t u = 0; u < l->units; u++, src += 18) {
        memcpy(to[1] + (size_t)u * 2, src, 2);
        pack_halves(src + 2, to[0] + (size_t)u * 16);
    }
}

/* Q4_1 {d, m, nibbles}, Q5_0 {d, fifth bits, nibbles}, Q5_1 {d, m, fifth bits, nibbles}. */
static void pack_q5(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    const bool has_m = l->type != SH_TYPE_Q5_0;
    for (uint32_t u = 0; u < l->units; u++) {
        memset(to[1] + (size_t)u * 4, 0, 4);
        memcpy(to[1] + (size_t)u * 4, src, has_m ? 4 : 2);
        src += has_m ? 4 : 2;
        if (to[2]) {
            memcpy(to[2] + (size_t)u * 4, src, 4);
            src += 4;
        }
        pack_halves(src, to[0] + (size_t)u * 16);
        src += 16;
    }
}

static void pack_q8_0(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t u = 0; u < l->units; u++, src += 34) {
        const uint32_t group = u & ~31u, step = l->units - group < 32 ? l->units - group : 32;
        memcpy(to[1] + (size_t)u * 2, src, 2);
        for (uint32_t c = 0; c < 2; c++) memcpy(to[0] + ((size_t)group * 2 + c * step + (u & 31)) * 16, src + 2 + 16 * c, 16);
    }
}

/* d, dmin and the twelve bytes of 6-bit scales and mins, in the order that the kernels unpack. */
static void pack_k_scales(const uint8_t *block, uint8_t head[16]) {
    memset(head, 0, 16);
    memcpy(head, block, 4);
    const uint8_t *s = block + 4;
    for (int j = 0; j < 8; j++) {
        const uint8_t scale = j < 4 ? s[j] & 63 : (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        const uint8_t min = j < 4 ? s[j + 4] & 63 : (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6) << 4);
        head[4 + j] = (uint8_t)((scale & 15) | (min & 15) << 4);
        head[12 + j / 2] = (uint8_t)(head[12 + j / 2] | ((scale >> 4) | (min >> 4) << 2) << (4 * (j & 1)));
    }
}

/* Blocks of scale | min << 4 for each 16, 2-bit quants (four runs of 32 elements share 32 bytes), d, dmin. */
static void pack_q2_k(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t b = 0; b < l->units / 8; b++, src += 84) {
        memcpy(to[1] + (size_t)b * 16, src, 16);
        memcpy(to[3] + (size_t)b * 4, src + 80, 4);
        for (int s = 0; s < 8; s++) {
            const uint64_t bits = join_pairs(src + 16 + s / 4 * 32, 2 * (s % 4));
            memcpy(to[0] + ((size_t)b * 8 + (size_t)s) * 8, &bits, 8);
        }
    }
}

static void pack_table(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    const bool small = l->layout == SH_LAYOUT_TABLE32;
    const uint32_t block = small ? 32 : 256;
    const uint64_t block_bytes = sh_type_row_bytes(l->type, block);
    for (uint32_t b = 0; b < l->units * 32 / block; b++, src += block_bytes) {
        uint8_t codes[256], *q = to[0] + (size_t)b * block / 2;
        int8_t scales[16];
        float d;
        sh_table_decode(l->type, src, codes, scales, &d);
        for (uint32_t i = 0; i < block; i += 32) join_nibbles(codes + i, 32, 0, q + i / 2);
        if (!small) memcpy(to[1] + (size_t)b * 16, scales, 16);
        memcpy((small ? to[1] : to[3]) + (size_t)b * 4, &d, 4);
    }
}

static void pack_table8(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    const uint64_t block_bytes = sh_type_row_bytes(l->type, 256);
    for (uint32_t b = 0; b < l->units / 8; b++, src += block_bytes) {
        uint8_t codes[256];
        float d;
        sh_table_decode(l->type, src, codes, (int8_t *)to[1] + (size_t)b * 16, &d);
        memcpy(to[3] + (size_t)b * 4, &d, 4);
        for (uint32_t s = 0; s < 8; s++) {
            const size_t unit = (size_t)b * 8 + s;
            const uint64_t low = join_pairs(codes + s * 32, 0);
            const uint32_t high = join_bits(codes + s * 32, 2);
            memcpy(to[0] + unit * 8, &low, 8);
            memcpy(to[2] + unit * 4, &high, 4);
        }
    }
}

static void pack_q4_k(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t b = 0; b < l->units / 8; b++, src += 144) {
        pack_k_scales(src, to[1] + (size_t)b * 16);
        for (int s = 0; s < 8; s++) join_nibbles(src + 16 + s / 2 * 32, 32, s % 2 * 4, to[0] + ((size_t)b * 8 + (size_t)s) * 16);
    }
}

static void pack_q5_k(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t b = 0; b < l->units / 8; b++, src += 176) {
        pack_k_scales(src, to[1] + (size_t)b * 16);
        for (int s = 0; s < 8; s++) {
            const size_t unit = (size_t)b * 8 + (size_t)s;
            join_nibbles(src + 48 + s / 2 * 32, 32, s % 2 * 4, to[0] + unit * 16);
            const uint32_t high = join_bits(src + 16, s);
            memcpy(to[2] + unit * 4, &high, 4);
        }
    }
}

static void pack_q6_k(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t b = 0; b < l->units / 8; b++, src += 210) {
        memcpy(to[1] + (size_t)b * 16, src + 192, 16);
        memcpy(to[3] + (size_t)b * 2, src + 208, 2);
        for (int s = 0; s < 8; s++) {
            const int half = s / 4, run = s % 4;
            const size_t unit = (size_t)b * 8 + (size_t)s;
            join_nibbles(src + half * 64 + (run & 1) * 32, 32, run < 2 ? 0 : 4, to[0] + unit * 16);
            const uint64_t high = join_pairs(src + 128 + half * 32, 2 * run);
            memcpy(to[2] + unit * 8, &high, 8);
        }
    }
}

void sh_layout_pack(const struct sh_layout *l, uint64_t n_rows, const void *src, uint8_t *const planes[4]) {
    const uint64_t file_row = sh_type_row_bytes(l->type, l->cols);
    for (uint64_t r = 0; r < n_rows; r++) {
        const uint8_t *row = (const uint8_t *)src + r * file_row;
        uint8_t *to[4];
        for (int p = 0; p < 4; p++) to[p] = l->row_bytes[p] ? planes[p] + r * l->row_bytes[p] : NULL;
        switch (l->layout) {
        case SH_LAYOUT_F32: interleave(l, 8, row, file_row, to[0]); break;
        case SH_LAYOUT_F16:
        case SH_LAYOUT_BF16: interleave(l, 4, row, file_row, to[0]); break;
        case SH_LAYOUT_Q4_0: pack_q4_0(l, row, to); break;
        case SH_LAYOUT_Q4_1:
        case SH_LAYOUT_Q5_1: pack_q5(l, row, to); break;
        case SH_LAYOUT_Q8_0: pack_q8_0(l, row, to); break;
        case SH_LAYOUT_Q2_K: pack_q2_k(l, row, to); break;
        case SH_LAYOUT_Q4_K: pack_q4_k(l, row, to); break;
        case SH_LAYOUT_Q5_K: pack_q5_k(l, row, to); break;
        case SH_LAYOUT_Q6_K: pack_q6_k(l, row, to); break;
        case SH_LAYOUT_TABLE8: pack_table8(l, row, to); break;
        default: pack_table(l, row, to); break;
        }
    }
}
