/* layouts.c - repacking at load. Every function takes one row. */
#include "compute/vulkan/layouts.h"

bool sh_layout_describe(uint32_t type, uint64_t cols, struct sh_layout *out) {
    static const struct {
        uint32_t type, layout, quants, scales, extra, deltas; /* bytes per 8 units */
    } table[] = {
        {SH_TYPE_F32, SH_LAYOUT_F32, 1024, 0, 0, 0},    {SH_TYPE_F16, SH_LAYOUT_F16, 512, 0, 0, 0},
        {SH_TYPE_BF16, SH_LAYOUT_BF16, 512, 0, 0, 0},   {SH_TYPE_Q4_0, SH_LAYOUT_Q4_0, 128, 16, 0, 0},
        {SH_TYPE_Q8_0, SH_LAYOUT_Q8_0, 256, 16, 0, 0},  {SH_TYPE_Q4_K, SH_LAYOUT_Q4_K, 128, 16, 0, 0},
        {SH_TYPE_Q5_K, SH_LAYOUT_Q5_K, 128, 16, 32, 0}, {SH_TYPE_Q6_K, SH_LAYOUT_Q6_K, 128, 16, 64, 2},
    };
    for (size_t i = 0; i < SH_COUNT(table); i++) {
        if (table[i].type != type) continue;
        const uint64_t units = (cols + SH_UNIT - 1) / SH_UNIT;
        if (units > UINT32_MAX / 1024) return false;
        const uint32_t per8[4] = {table[i].quants, table[i].scales, table[i].extra, table[i].deltas};
        *out = (struct sh_layout){.layout = table[i].layout, .type = type, .cols = cols, .units = (uint32_t)units};
        for (int p = 0; p < 4; p++) {
            out->row_bytes[p] = (uint32_t)(units * per8[p] / 8); /* whole: units are a multiple of 8 where per8 is not */
            out->row_bytes_all += out->row_bytes[p];
        }
        return true;
    }
    return false;
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

static void pack_q4_0(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t u = 0; u < l->units; u++, src += 18) {
        uint8_t *q = to[0] + (size_t)u * 16;
        memcpy(to[1] + (size_t)u * 2, src, 2);
        for (int i = 0; i < 8; i++) {
            const uint8_t a = src[2 + 2 * i], b = src[3 + 2 * i];
            q[i] = (uint8_t)((a & 15) | b << 4);
            q[8 + i] = (uint8_t)(a >> 4 | (b & 0xf0));
        }
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

static void pack_k_nibbles(const uint8_t *q, int shift, uint8_t *to) {
    for (int i = 0; i < 16; i++) to[i] = (uint8_t)((q[2 * i] >> shift & 15) | (q[2 * i + 1] >> shift & 15) << 4);
}

static void pack_q4_k(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t b = 0; b < l->units / 8; b++, src += 144) {
        pack_k_scales(src, to[1] + (size_t)b * 16);
        for (int s = 0; s < 8; s++) pack_k_nibbles(src + 16 + s / 2 * 32, s % 2 * 4, to[0] + ((size_t)b * 8 + (size_t)s) * 16);
    }
}

static void pack_q5_k(const struct sh_layout *l, const uint8_t *src, uint8_t *const to[4]) {
    for (uint32_t b = 0; b < l->units / 8; b++, src += 176) {
        pack_k_scales(src, to[1] + (size_t)b * 16);
        for (int s = 0; s < 8; s++) {
            const size_t unit = (size_t)b * 8 + (size_t)s;
            pack_k_nibbles(src + 48 + s / 2 * 32, s % 2 * 4, to[0] + unit * 16);
            uint32_t high = 0;
            for (int e = 0; e < 32; e++) high |= (uint32_t)(src[16 + e] >> s & 1) << e;
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
            pack_k_nibbles(src + half * 64 + (run & 1) * 32, run < 2 ? 0 : 4, to[0] + unit * 16);
            uint64_t high = 0;
            for (int e = 0; e < 32; e++) high |= (uint64_t)(src[128 + half * 32 + e] >> (2 * run) & 3) << (2 * e);
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
        case SH_LAYOUT_Q8_0: pack_q8_0(l, row, to); break;
        case SH_LAYOUT_Q4_K: pack_q4_k(l, row, to); break;
        case SH_LAYOUT_Q5_K: pack_q5_k(l, row, to); break;
        default: pack_q6_k(l, row, to); break;
        }
    }
}
