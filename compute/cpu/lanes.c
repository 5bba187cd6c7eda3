#include "compute/cpu/lanes.h"

/* Bytes that a lane has of a group of blocks, 0 for types without blocks. */
static uint32_t packed_block(uint32_t type) {
    switch (type) {
    case SH_TYPE_Q4_0: return SH_LANES_Q4_0;
    case SH_TYPE_Q4_1: return SH_LANES_Q4_1;
    case SH_TYPE_Q5_0: return SH_LANES_Q5_0;
    case SH_TYPE_Q5_1: return SH_LANES_Q5_1;
    case SH_TYPE_Q8_0: return SH_LANES_Q8_0;
    case SH_TYPE_Q2_K: return SH_LANES_Q2_K;
    case SH_TYPE_Q4_K: return SH_LANES_Q4_K;
    case SH_TYPE_Q5_K: return SH_LANES_Q5_K;
    case SH_TYPE_Q6_K: return SH_LANES_Q6_K;
    case SH_TYPE_IQ4_NL:
    case SH_TYPE_MXFP4: return SH_LANES_TABLE_32;
    case SH_TYPE_IQ3_XXS:
    case SH_TYPE_IQ3_S:
    case SH_TYPE_IQ4_XS: return SH_LANES_TABLE_16;
    case SH_TYPE_IQ1_S:
    case SH_TYPE_IQ1_M:
    case SH_TYPE_IQ2_XXS:
    case SH_TYPE_IQ2_XS:
    case SH_TYPE_IQ2_S:
    case SH_TYPE_Q3_K: return SH_LANES_TABLE_8;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return SH_LANES_TERNARY;
    default: return 0;
    }
}

static uint32_t float_bytes(uint32_t type) {
    return type == SH_TYPE_F32 ? 4 : type == SH_TYPE_F16 || type == SH_TYPE_BF16 ? 2 : 0;
}

uint64_t sh_lanes_group_bytes(uint32_t lanes, uint32_t type, uint64_t cols) {
    const uint32_t bytes = packed_block(type);
    if (bytes == 0) return sh_align_up(cols, 4) * lanes * float_bytes(type);
    return cols / sh_type_info(type)->block_elements * lanes * bytes;
}

static uint64_t matrix_bytes(uint32_t lanes, uint32_t type, uint64_t cols, uint64_t rows) {
    return sh_lanes_group_bytes(lanes, type, cols) * ((rows + lanes - 1) / lanes);
}

/* One lane of a group: parts of a block follow each other, each with `lanes` times the bytes that a lane has of it. */
struct lane {
    uint32_t lanes, lane;
};

/* Moves n_words words of 4 bytes between a row's quants and its lane of a run of vectors. */
static void words_to_lane(const uint8_t *row, uint32_t n_words, struct lane l, uint8_t *vectors) {
    for (uint32_t i = 0; i < n_words; i++) memcpy(vectors + 4 * (i * l.lanes + l.lane), row + 4 * i, 4);
}
static void lane_to_words(const uint8_t *vectors, uint32_t n_words, struct lane l, uint8_t *row) {
    for (uint32_t i = 0; i < n_words; i++) memcpy(row + 4 * i, vectors + 4 * (i * l.lanes + l.lane), 4);
}

/* Where entry s of a [pair][lane][2] table lies. */
static uint32_t pair_at(uint32_t s, struct lane l) { return s / 2 * (2 * l.lanes) + 2 * l.lane + s % 2; }

/* The eight 6-bit scales and mins of a K block's 12 packed bytes, and back. */
static void split_scales(const uint8_t *packed, uint32_t s, uint8_t *scale, uint8_t *min) {
    if (s < 4) {
        *scale = packed[s] & 63;
        *min = packed[s + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[s + 4] & 15) | (packed[s - 4] >> 6) << 4);
        *min = (uint8_t)(packed[s + 4] >> 4 | (packed[s] >> 6) << 4);
    }
}
static void join_scales(uint8_t *packed, uint32_t s, uint8_t scale, uint8_t min) { /* s ascending over zeroed bytes */
    if (s < 4) {
        packed[s] = scale;
        packed[s + 4] = min;
    } else {
        packed[s + 4] = (uint8_t)((scale & 15) | min << 4);
        packed[s - 4] = (uint8_t)(packed[s - 4] | (scale >> 4) << 6);
        packed[s] = (uint8_t)(packed[s] | (min >> 4) << 6);
    }
}

/* The fifth bits of 32 elements: bit 4p + j of the file's four bytes is bit p of byte j; and back. */
static void pack_fifth(const uint8_t *from, uint8_t *to) {
    uint32_t all;
    memcpy(&all, from, 4);
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t x = all >> j & 0x11111111;
        x = (x | x >> 3) & 0x03030303;
        x = (x | x >> 6) & 0x000F000F;
        to[j] = (uint8_t)(x | x >> 12);
    }
}
static void unpack_fifth(const uint8_t *from, uint8_t *to) {
    uint32_t all = 0;
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t x = from[j];
        x = (x | x << 12) & 0x000F000F;
        x = (x | x << 6) & 0x03030303;
        all |= ((x | x << 3) & 0x11111111) << j;
    }
    memcpy(to, &all, 4);
}

/* The codes of a block of 256 as a row's bytes: two nibbles; four bit pairs; eight third bits. Eight bytes at a time. */
static uint64_t eight(const uint8_t *p) {
    uint64_t bytes;
    memcpy(&bytes, p, 8);
    return bytes;
}
static void join_nibbles(const uint8_t *codes, uint8_t *bytes, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 8) {
        const uint64_t both = eight(codes + i) | eight(codes + n + i) << 4;
        memcpy(bytes + i, &both, 8);
    }
}
static void join_pairs(const uint8_t *codes, uint8_t bytes[64]) {
    const uint64_t low = UINT64_C(0x0303030303030303);
    for (uint32_t h = 0; h < 2; h++, codes += 128)
        for (uint32_t i = 0; i < 32; i += 8) {
            uint64_t four = 0;
            for (uint32_t r = 0; r < 4; r++) four |= (eight(codes + 32 * r + i) & low) << (2 * r);
            memcpy(bytes + 32 * h + i, &four, 8);
        }
}
static void join_thirds(const uint8_t *codes, uint8_t bytes[32]) {
    const uint64_t third = UINT64_C(0x0404040404040404);
    for (uint32_t h = 0; h < 2; h++, codes += 128)
        for (uint32_t i = 0; i < 16; i += 8) {
            uint64_t all = 0;
            for (uint32_t bit = 0; bit < 8; bit++) all |= (eight(codes + 16 * bit + i) & third) >> 2 << bit;
            memcpy(bytes + 16 * h + i, &all, 8);
        }
}

/* One block of a table type of one row. */
static void pack_table(uint32_t type, const uint8_t *src, struct lane l, uint8_t *dst) {
    const uint32_t layout = packed_block(type);
    uint8_t codes[256], bytes[128];
    int8_t scales[16];
    float d;
    sh_table_decode(type, src, codes, scales, &d);
    if (layout == SH_LANES_TABLE_32) {
        const uint16_t half = type == SH_TYPE_MXFP4 ? sh_f32_to_bf16(d) : sh_f32_to_f16(d);
        memcpy(dst + 2 * l.lane, &half, 2);
        join_nibbles(codes, bytes, 16);
        words_to_lane(bytes, 4, l, dst + 2 * l.lanes);
        return;
    }
    memcpy(dst + 4 * l.lane, &d, 4);
    if (layout == SH_LANES_TERNARY) {
        join_pairs(codes, bytes);
        words_to_lane(bytes, 16, l, dst + 4 * l.lanes);
        return;
    }
    for (uint32_t s = 0; s < 16; s++) dst[4 * l.lanes + pair_at(s, l)] = (uint8_t)scales[s];
    if (layout == SH_LANES_TABLE_16) {
        for (uint32_t c = 0; c < 4; c++) join_nibbles(codes + 64 * c, bytes + 32 * c, 32);
        words_to_lane(bytes, 32, l, dst + 20 * l.lanes);
        return;
    }
    join_thirds(codes, bytes);
    words_to_lane(bytes, 8, l, dst + 20 * l.lanes);
    join_pairs(codes, bytes);
    words_to_lane(bytes, 16, l, dst + 52 * l.lanes);
}

static void unpack_table(uint32_t type, const uint8_t *src, struct lane l, float *out) {
    const uint32_t layout = packed_block(type);
    const struct sh_table_type *table = sh_table_type(type);
    uint8_t bytes[128], third[32];
    float d;
    if (layout == SH_LANES_TABLE_32) {
        uint16_t half;
        memcpy(&half, src + 2 * l.lane, 2);
        d = type == SH_TYPE_MXFP4 ? sh_bf16_to_f32(half) : sh_f16_to_f32(half);
        lane_to_words(src + 2 * l.lanes, 4, l, bytes);
        for (uint32_t e = 0; e < 32; e++) out[e] = d * (float)table->values[e < 16 ? bytes[e] & 15 : bytes[e - 16] >> 4];
        return;
    }
    const bool sixteen = layout == SH_LANES_TABLE_16, eight = layout == SH_LANES_TABLE_8;
    memcpy(&d, src + 4 * l.lane, 4);
    lane_to_words(src + (sixteen ? 20 : eight ? 52 : 4) * l.lanes, sixteen ? 32 : 16, l, bytes);
    if (eight) lane_to_words(src + 20 * l.lanes, 8, l, third);
    for (uint32_t e = 0; e < 256; e++) {
        uint32_t code = sixteen ? bytes[e / 64 * 32 + e % 32] >> (e % 64 / 32 * 4) & 15u
                                : bytes[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3u;
        if (eight) code |= (third[e / 128 * 16 + e % 16] >> (e % 128 / 16) & 1u) << 2;
        const float scale = sixteen || eight ? (float)(int8_t)src[4 * l.lanes + pair_at(e / 16, l)] : 1.0f;
        out[e] = d * scale * (float)table->values[code];
    }
}

/* One block of one row, file layout -> its lane of a packed block. */
static void pack_block(uint32_t type, const uint8_t *src, struct lane l, uint8_t *dst) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
        memcpy(dst + 2 * l.lane, src, 2);
        words_to_lane(src + 2, type == SH_TYPE_Q4_0 ? 4 : 8, l, dst + 2 * l.lanes);
        break;
    case SH_TYPE_Q4_1:
        memcpy(dst + 2 * l.lane, src, 2);
        memcpy(dst + 2 * l.lanes + 2 * l.lane, src + 2, 2);
        words_to_lane(src + 4, 4, l, dst + 4 * l.lanes);
        break;
    case SH_TYPE_Q5_0:
        memcpy(dst + 2 * l.lane, src, 2);
        pack_fifth(src + 2, dst + 2 * l.lanes + 4 * l.lane);
        words_to_lane(src + 6, 4, l, dst + 6 * l.lanes);
        break;
    case SH_TYPE_Q5_1:
        memcpy(dst + 2 * l.lane, src, 2);
        memcpy(dst + 2 * l.lanes + 2 * l.lane, src + 2, 2);
        pack_fifth(src + 4, dst + 4 * l.lanes + 4 * l.lane);
        words_to_lane(src + 8, 4, l, dst + 8 * l.lanes);
        break;
    case SH_TYPE_Q2_K: /* file: scales and mins 16, bit pairs 64, d, dmin */
        memcpy(dst + 2 * l.lane, src + 80, 2);
        memcpy(dst + 2 * l.lanes + 2 * l.lane, src + 82, 2);
        for (uint32_t s = 0; s < 16; s++) dst[4 * l.lanes + pair_at(s, l)] = src[s];
        words_to_lane(src + 16, 16, l, dst + 20 * l.lanes);
        break;
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K:
        memcpy(dst + 2 * l.lane, src, 2);
        memcpy(dst + 2 * l.lanes + 2 * l.lane, src + 2, 2);
        for (uint32_t s = 0; s < 8; s++)
            split_scales(src + 4, s, dst + 4 * l.lanes + pair_at(s, l), dst + 12 * l.lanes + pair_at(s, l));
        words_to_lane(src + 16, type == SH_TYPE_Q4_K ? 32 : 40, l, dst + 20 * l.lanes);
        break;
    case SH_TYPE_Q6_K: /* file: low nibbles 128, bit pairs 64, scales 16, d */
        memcpy(dst + 2 * l.lane, src + 208, 2);
        for (uint32_t s = 0; s < 16; s++) dst[2 * l.lanes + pair_at(s, l)] = src[192 + s];
        words_to_lane(src + 128, 16, l, dst + 18 * l.lanes);
        words_to_lane(src, 32, l, dst + 82 * l.lanes);
        break;
    default: pack_table(type, src, l, dst); break;
    }
}

/* The other way, not for table types. */
static void unpack_block(uint32_t type, const uint8_t *src, struct lane l, uint8_t *dst) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
        memcpy(dst, src + 2 * l.lane, 2);
        lane_to_words(src + 2 * l.lanes, type == SH_TYPE_Q4_0 ? 4 : 8, l, dst + 2);
        break;
    case SH_TYPE_Q4_1:
        memcpy(dst, src + 2 * l.lane, 2);
        memcpy(dst + 2, src + 2 * l.lanes + 2 * l.lane, 2);
        lane_to_words(src + 4 * l.lanes, 4, l, dst + 4);
        break;
    case SH_TYPE_Q5_0:
        memcpy(dst, src + 2 * l.lane, 2);
        unpack_fifth(src + 2 * l.lanes + 4 * l.lane, dst + 2);
        lane_to_words(src + 6 * l.lanes, 4, l, dst + 6);
        break;
    case SH_TYPE_Q5_1:
        memcpy(dst, src + 2 * l.lane, 2);
        memcpy(dst + 2, src + 2 * l.lanes + 2 * l.lane, 2);
        unpack_fifth(src + 4 * l.lanes + 4 * l.lane, dst + 4);
        lane_to_words(src + 8 * l.lanes, 4, l, dst + 8);
        break;
    case SH_TYPE_Q2_K:
        memcpy(dst + 80, src + 2 * l.lane, 2);
        memcpy(dst + 82, src + 2 * l.lanes + 2 * l.lane, 2);
        for (uint32_t s = 0; s < 16; s++) dst[s] = src[4 * l.lanes + pair_at(s, l)];
        lane_to_words(src + 20 * l.lanes, 16, l, dst + 16);
        break;
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K:
        memcpy(dst, src + 2 * l.lane, 2);
        memcpy(dst + 2, src + 2 * l.lanes + 2 * l.lane, 2);
        memset(dst + 4, 0, 12);
        for (uint32_t s = 0; s < 8; s++)
            join_scales(dst + 4, s, src[4 * l.lanes + pair_at(s, l)], src[12 * l.lanes + pair_at(s, l)]);
        lane_to_words(src + 20 * l.lanes, type == SH_TYPE_Q4_K ? 32 : 40, l, dst + 16);
        break;
    case SH_TYPE_Q6_K:
        memcpy(dst + 208, src + 2 * l.lane, 2);
        for (uint32_t s = 0; s < 16; s++) dst[192 + s] = src[2 * l.lanes + pair_at(s, l)];
        lane_to_words(src + 18 * l.lanes, 16, l, dst + 128);
        lane_to_words(src + 82 * l.lanes, 32, l, dst);
        break;
    default: break;
    }
}

static void pack_floats(uint32_t bytes, const uint8_t *src, uint64_t cols, struct lane l, uint8_t *dst) {
    if (bytes == 4)
        for (uint64_t k = 0; k < cols; k++) memcpy(dst + (k * l.lanes + l.lane) * 4, src + k * 4, 4);
    else
        for (uint64_t k = 0; k < cols; k++) memcpy(dst + (k * l.lanes + l.lane) * 2, src + k * 2, 2);
}

static void pack(uint32_t lanes, const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {
    const struct sh_type_info *info = sh_type_info(w->type);
    const uint64_t group_bytes = sh_lanes_group_bytes(lanes, w->type, w->cols), row_bytes = sh_type_row_bytes(w->type, w->cols);
    const uint64_t n_blocks = w->cols / info->block_elements;
    const uint64_t packed_bytes = group_bytes / sh_max_u64(1, n_blocks);
    for (uint64_t r = 0; r < n_rows; r++) {
        const uint8_t *from = (const uint8_t *)src + r * row_bytes;
        const struct lane l = {lanes, (uint32_t)((row0 + r) % lanes)};
        uint8_t *to = (uint8_t *)w->data + (row0 + r) / lanes * group_bytes;
        if (float_bytes(w->type) != 0) {
            pack_floats(float_bytes(w->type), from, w->cols, l, to);
            continue;
        }
        for (uint64_t b = 0; b < n_blocks; b++) pack_block(w->type, from + b * info->block_bytes, l, to + b * packed_bytes);
    }
}

static void unpack(uint32_t lanes, const struct sh_cpu_matrix *w, uint64_t row, float *out) {
    const struct sh_type_info *info = sh_type_info(w->type);
    const uint64_t group_bytes = sh_lanes_group_bytes(lanes, w->type, w->cols);
    const uint8_t *from = (const uint8_t *)w->data + row / lanes * group_bytes;
    const struct lane l = {lanes, (uint32_t)(row % lanes)};
    const uint32_t bytes = float_bytes(w->type);
    uint8_t element[256]; /* one element, or one block of the largest type (210 bytes) but for table types */
    if (bytes != 0) {
        for (uint64_t k = 0; k < w->cols; k++) {
            memcpy(element, from + (k * lanes + l.lane) * bytes, bytes);
            sh_dequantize(w->type, element, out + k, 1);
        }
        return;
    }
    const uint64_t n_blocks = w->cols / info->block_elements, packed_bytes = group_bytes / n_blocks;
    for (uint64_t b = 0; b < n_blocks; b++) {
        if (sh_table_type(w->type) != NULL) {
            unpack_table(w->type, from + b * packed_bytes, l, out + b * info->block_elements);
            continue;
        }
        unpack_block(w->type, from + b * packed_bytes, l, element);
        sh_dequantize(w->type, element, out + b * info->block_elements, info->block_elements);
    }
}

#define FOR_LANES(n)                                                                                                             \
    uint64_t sh_lanes##n##_matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows) {                                           \
        return matrix_bytes(n, type, cols, rows);                                                                                \
    }                                                                                                                            \
    void sh_lanes##n##_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {                    \
        pack(n, w, row0, n_rows, src);                                                                                           \
    }                                                                                                                            \
    void sh_lanes##n##_unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out) { unpack(n, w, row, out); }
FOR_LANES(8)
FOR_LANES(16)

uint32_t sh_lanes_operand(uint32_t type) {
    if (float_bytes(type) != 0) return SH_LANES_FLOAT;
    return sh_type_info(type)->block_elements == 32 ? SH_LANES_Q8_32 : SH_LANES_Q8_256;
}

uint64_t sh_lanes_operand_bytes(uint32_t operand, uint64_t cols) {
    switch (operand) {
    case SH_LANES_Q8_32: return sh_align_up(sh_lanes_sums_at(operand, cols) + cols / 32 * sizeof(int32_t), 64);
    case SH_LANES_Q8_256: return sh_align_up(sh_lanes_sums32_at(cols) + cols / 32 * sizeof(int16_t), 64);
    default: return sh_align_up(cols * sizeof(float), 64);
    }
}
