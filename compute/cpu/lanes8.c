#include "compute/cpu/lanes8.h"

#define LANES 8
#define VECTOR 32 /* bytes */

/* Bytes of a group of blocks, 0 for types without blocks. */
static uint32_t packed_block(uint32_t type) {
    switch (type) {
    case SH_TYPE_Q4_0: return SH_LANES8_Q4_0;
    case SH_TYPE_Q4_1: return SH_LANES8_Q4_1;
    case SH_TYPE_Q5_0: return SH_LANES8_Q5_0;
    case SH_TYPE_Q5_1: return SH_LANES8_Q5_1;
    case SH_TYPE_Q8_0: return SH_LANES8_Q8_0;
    case SH_TYPE_Q2_K: return SH_LANES8_Q2_K;
    case SH_TYPE_Q4_K: return SH_LANES8_Q4_K;
    case SH_TYPE_Q5_K: return SH_LANES8_Q5_K;
    case SH_TYPE_Q6_K: return SH_LANES8_Q6_K;
    case SH_TYPE_IQ4_NL:
    case SH_TYPE_MXFP4: return SH_LANES8_TABLE_32;
    case SH_TYPE_IQ3_XXS:
    case SH_TYPE_IQ3_S:
    case SH_TYPE_IQ4_XS: return SH_LANES8_TABLE_16;
    case SH_TYPE_IQ1_S:
    case SH_TYPE_IQ1_M:
    case SH_TYPE_IQ2_XXS:
    case SH_TYPE_IQ2_XS:
    case SH_TYPE_IQ2_S:
    case SH_TYPE_Q3_K: return SH_LANES8_TABLE_8;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return SH_LANES8_TERNARY;
    default: return 0;
    }
}

static uint32_t float_bytes(uint32_t type) {
    return type == SH_TYPE_F32 ? 4 : type == SH_TYPE_F16 || type == SH_TYPE_BF16 ? 2 : 0;
}

uint64_t sh_lanes8_group_bytes(uint32_t type, uint64_t cols) {
    const uint32_t bytes = packed_block(type);
    if (bytes == 0) return sh_align_up(cols, 4) * LANES * float_bytes(type);
    return cols / sh_type_info(type)->block_elements * bytes;
}

uint64_t sh_lanes8_matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows) {
    return sh_lanes8_group_bytes(type, cols) * ((rows + LANES - 1) / LANES);
}

/* Moves n_words words of 4 bytes between a row's quants and its lane of a run of vectors. */
static void words_to_lane(const uint8_t *row, uint32_t n_words, uint32_t lane, uint8_t *vectors) {
    for (uint32_t i = 0; i < n_words; i++) memcpy(vectors + i * VECTOR + 4 * lane, row + 4 * i, 4);
}
static void lane_to_words(const uint8_t *vectors, uint32_t n_words, uint32_t lane, uint8_t *row) {
    for (uint32_t i = 0; i < n_words; i++) memcpy(row + 4 * i, vectors + i * VECTOR + 4 * lane, 4);
}

/* Where entry s of a [pair][lane][2] table lies. */
static uint32_t pair_at(uint32_t s, uint32_t lane) { return s / 2 * (2 * LANES) + 2 * lane + s % 2; }

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

/* The fifth bits of 32 elements: bit e of the file's four bytes is bit e / 4 of byte e % 4; and back. */
static void transpose_bits(const uint8_t *from, uint8_t *to, bool pack) {
    uint8_t out[4] = {0};
    for (uint32_t e = 0; e < 32; e++) {
        const uint32_t file = e, lane = e % 4 * 8 + e / 4, source = pack ? file : lane, target = pack ? lane : file;
        out[target / 8] = (uint8_t)(out[target / 8] | (from[source / 8] >> source % 8 & 1) << target % 8);
    }
    memcpy(to, out, sizeof out);
}

/* Where code e of a block of 256 lies among the bytes of a row: of nibbles, with its shift; of bit pairs; of third bits. */
static uint32_t nibble_at(uint32_t e, uint32_t *shift) {
    *shift = e % 64 / 32 * 4;
    return e / 64 * 32 + e % 32;
}
static uint32_t pair_of_code(uint32_t e, uint32_t *shift) {
    *shift = e % 128 / 32 * 2;
    return e / 128 * 32 + e % 32;
}
static uint32_t third_at(uint32_t e, uint32_t *shift) {
    *shift = e % 128 / 32 * 2 + e % 32 / 16;
    return e / 128 * 16 + e % 16;
}

/* One block of a table type of one row. */
static void pack_table(uint32_t type, const uint8_t *src, uint32_t lane, uint8_t *dst) {
    uint8_t codes[256], bytes[128] = {0}, third[32] = {0};
    int8_t scales[16];
    uint32_t shift;
    float d;
    sh_table_decode(type, src, codes, scales, &d);
    switch (packed_block(type)) {
    case SH_LANES8_TABLE_32: {
        const uint16_t half = type == SH_TYPE_MXFP4 ? sh_f32_to_bf16(d) : sh_f32_to_f16(d);
        memcpy(dst + 2 * lane, &half, 2);
        for (uint32_t e = 0; e < 16; e++) bytes[e] = (uint8_t)(codes[e] | codes[e + 16] << 4);
        words_to_lane(bytes, 4, lane, dst + 16);
        return;
    }
    case SH_LANES8_TABLE_16:
        for (uint32_t e = 0; e < 256; e++) {
            const uint32_t at = nibble_at(e, &shift);
            bytes[at] = (uint8_t)(bytes[at] | codes[e] << shift);
        }
        words_to_lane(bytes, 32, lane, dst + 160);
        break;
    default: /* of 8, or of 4 */
        for (uint32_t e = 0; e < 256; e++) {
            const uint32_t at = pair_of_code(e, &shift);
            bytes[at] = (uint8_t)(bytes[at] | (codes[e] & 3) << shift);
            const uint32_t top = third_at(e, &shift);
            third[top] = (uint8_t)(third[top] | codes[e] >> 2 << shift);
        }
        if (packed_block(type) == SH_LANES8_TABLE_8) words_to_lane(third, 8, lane, dst + 160);
        words_to_lane(bytes, 16, lane, dst + (packed_block(type) == SH_LANES8_TABLE_8 ? 416 : 32));
        break;
    }
    memcpy(dst + 4 * lane, &d, 4);
    if (packed_block(type) != SH_LANES8_TERNARY)
        for (uint32_t s = 0; s < 16; s++) dst[32 + pair_at(s, lane)] = (uint8_t)scales[s];
}

static void unpack_table(uint32_t type, const uint8_t *src, uint32_t lane, float *out) {
    const struct sh_table_type *table = sh_table_type(type);
    uint8_t bytes[128], third[32] = {0};
    float d;
    if (packed_block(type) == SH_LANES8_TABLE_32) {
        uint16_t half;
        memcpy(&half, src + 2 * lane, 2);
        d = type == SH_TYPE_MXFP4 ? sh_bf16_to_f32(half) : sh_f16_to_f32(half);
        lane_to_words(src + 16, 4, lane, bytes);
        for (uint32_t e = 0; e < 32; e++) out[e] = d * (float)table->values[e < 16 ? bytes[e] & 15 : bytes[e - 16] >> 4];
        return;
    }
    const bool sixteen = packed_block(type) == SH_LANES8_TABLE_16, eight = packed_block(type) == SH_LANES8_TABLE_8;
    memcpy(&d, src + 4 * lane, 4);
    lane_to_words(src + (sixteen ? 160 : eight ? 416 : 32), sixteen ? 32 : 16, lane, bytes);
    if (eight) lane_to_words(src + 160, 8, lane, third);
    for (uint32_t e = 0; e < 256; e++) {
        uint32_t shift, code;
        if (sixteen) {
            const uint32_t at = nibble_at(e, &shift);
            code = bytes[at] >> shift & 15u;
        } else {
            const uint32_t at = pair_of_code(e, &shift);
            code = bytes[at] >> shift & 3u;
            const uint32_t top = third_at(e, &shift);
            code |= (third[top] >> shift & 1u) << 2;
        }
        const float scale = sixteen || eight ? (float)(int8_t)src[32 + pair_at(e / 16, lane)] : 1.0f;
        out[e] = d * scale * (float)table->values[code];
    }
}

/* One block of one row, file layout -> its lane of a packed block. */
static void pack_block(uint32_t type, const uint8_t *src, uint32_t lane, uint8_t *dst) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
        memcpy(dst + 2 * lane, src, 2);
        words_to_lane(src + 2, type == SH_TYPE_Q4_0 ? 4 : 8, lane, dst + 16);
        break;
    case SH_TYPE_Q4_1:
        memcpy(dst + 2 * lane, src, 2);
        memcpy(dst + 16 + 2 * lane, src + 2, 2);
        words_to_lane(src + 4, 4, lane, dst + 32);
        break;
    case SH_TYPE_Q5_0:
        memcpy(dst + 2 * lane, src, 2);
        transpose_bits(src + 2, dst + 16 + 4 * lane, true);
        words_to_lane(src + 6, 4, lane, dst + 48);
        break;
    case SH_TYPE_Q5_1:
        memcpy(dst + 2 * lane, src, 2);
        memcpy(dst + 16 + 2 * lane, src + 2, 2);
        transpose_bits(src + 4, dst + 32 + 4 * lane, true);
        words_to_lane(src + 8, 4, lane, dst + 64);
        break;
    case SH_TYPE_Q2_K: /* file: scales and mins 16, bit pairs 64, d, dmin */
        memcpy(dst + 2 * lane, src + 80, 2);
        memcpy(dst + 16 + 2 * lane, src + 82, 2);
        for (uint32_t s = 0; s < 16; s++) dst[32 + pair_at(s, lane)] = src[s];
        words_to_lane(src + 16, 16, lane, dst + 160);
        break;
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K:
        memcpy(dst + 2 * lane, src, 2);
        memcpy(dst + 16 + 2 * lane, src + 2, 2);
        for (uint32_t s = 0; s < 8; s++) split_scales(src + 4, s, dst + 32 + pair_at(s, lane), dst + 96 + pair_at(s, lane));
        words_to_lane(src + 16, type == SH_TYPE_Q4_K ? 32 : 40, lane, dst + 160);
        break;
    case SH_TYPE_Q6_K: /* file: low nibbles 128, bit pairs 64, scales 16, d */
        memcpy(dst + 2 * lane, src + 208, 2);
        for (uint32_t s = 0; s < 16; s++) dst[16 + pair_at(s, lane)] = src[192 + s];
        words_to_lane(src + 128, 16, lane, dst + 144);
        words_to_lane(src, 32, lane, dst + 656);
        break;
    default: pack_table(type, src, lane, dst); break;
    }
}

/* The other way, not for table types. */
static void unpack_block(uint32_t type, const uint8_t *src, uint32_t lane, uint8_t *dst) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
        memcpy(dst, src + 2 * lane, 2);
        lane_to_words(src + 16, type == SH_TYPE_Q4_0 ? 4 : 8, lane, dst + 2);
        break;
    case SH_TYPE_Q4_1:
        memcpy(dst, src + 2 * lane, 2);
        memcpy(dst + 2, src + 16 + 2 * lane, 2);
        lane_to_words(src + 32, 4, lane, dst + 4);
        break;
    case SH_TYPE_Q5_0:
        memcpy(dst, src + 2 * lane, 2);
        transpose_bits(src + 16 + 4 * lane, dst + 2, false);
        lane_to_words(src + 48, 4, lane, dst + 6);
        break;
    case SH_TYPE_Q5_1:
        memcpy(dst, src + 2 * lane, 2);
        memcpy(dst + 2, src + 16 + 2 * lane, 2);
        transpose_bits(src + 32 + 4 * lane, dst + 4, false);
        lane_to_words(src + 64, 4, lane, dst + 8);
        break;
    case SH_TYPE_Q2_K:
        memcpy(dst + 80, src + 2 * lane, 2);
        memcpy(dst + 82, src + 16 + 2 * lane, 2);
        for (uint32_t s = 0; s < 16; s++) dst[s] = src[32 + pair_at(s, lane)];
        lane_to_words(src + 160, 16, lane, dst + 16);
        break;
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K:
        memcpy(dst, src + 2 * lane, 2);
        memcpy(dst + 2, src + 16 + 2 * lane, 2);
        memset(dst + 4, 0, 12);
        for (uint32_t s = 0; s < 8; s++) join_scales(dst + 4, s, src[32 + pair_at(s, lane)], src[96 + pair_at(s, lane)]);
        lane_to_words(src + 160, type == SH_TYPE_Q4_K ? 32 : 40, lane, dst + 16);
        break;
    case SH_TYPE_Q6_K:
        memcpy(dst + 208, src + 2 * lane, 2);
        for (uint32_t s = 0; s < 16; s++) dst[192 + s] = src[16 + pair_at(s, lane)];
        lane_to_words(src + 144, 16, lane, dst + 128);
        lane_to_words(src + 656, 32, lane, dst);
        break;
    default: break;
    }
}

static void pack_floats(uint32_t bytes, const uint8_t *src, uint64_t cols, uint32_t lane, uint8_t *dst) {
    if (bytes == 4)
        for (uint64_t k = 0; k < cols; k++) memcpy(dst + (k * LANES + lane) * 4, src + k * 4, 4);
    else
        for (uint64_t k = 0; k < cols; k++) memcpy(dst + (k * LANES + lane) * 2, src + k * 2, 2);
}

void sh_lanes8_pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {
    const struct sh_type_info *info = sh_type_info(w->type);
    const uint64_t group_bytes = sh_lanes8_group_bytes(w->type, w->cols), row_bytes = sh_type_row_bytes(w->type, w->cols);
    const uint64_t n_blocks = w->cols / info->block_elements;
    const uint64_t packed_bytes = group_bytes / sh_max_u64(1, n_blocks);
    for (uint64_t r = 0; r < n_rows; r++) {
        const uint8_t *from = (const uint8_t *)src + r * row_bytes;
        const uint32_t lane = (uint32_t)((row0 + r) % LANES);
        uint8_t *to = (uint8_t *)w->data + (row0 + r) / LANES * group_bytes;
        if (float_bytes(w->type) != 0) {
            pack_floats(float_bytes(w->type), from, w->cols, lane, to);
            continue;
        }
        for (uint64_t b = 0; b < n_blocks; b++) pack_block(w->type, from + b * info->block_bytes, lane, to + b * packed_bytes);
    }
}

void sh_lanes8_unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out) {
    const struct sh_type_info *info = sh_type_info(w->type);
    const uint64_t group_bytes = sh_lanes8_group_bytes(w->type, w->cols);
    const uint8_t *from = (const uint8_t *)w->data + row / LANES * group_bytes;
    const uint32_t lane = (uint32_t)(row % LANES), bytes = float_bytes(w->type);
    uint8_t element[256]; /* one element, or one block of the largest type (210 bytes) but for table types */
    if (bytes != 0) {
        for (uint64_t k = 0; k < w->cols; k++) {
            memcpy(element, from + (k * LANES + lane) * bytes, bytes);
            sh_dequantize(w->type, element, out + k, 1);
        }
        return;
    }
    const uint64_t n_blocks = w->cols / info->block_elements, packed_bytes = group_bytes / n_blocks;
    for (uint64_t b = 0; b < n_blocks; b++) {
        if (sh_table_type(w->type) != NULL) {
            unpack_table(w->type, from + b * packed_bytes, lane, out + b * info->block_elements);
            continue;
        }
        unpack_block(w->type, from + b * packed_bytes, lane, element);
        sh_dequantize(w->type, element, out + b * info->block_elements, info->block_elements);
    }
}

uint32_t sh_lanes8_operand(uint32_t type) {
    if (float_bytes(type) != 0) return SH_LANES8_FLOAT;
    return sh_type_info(type)->block_elements == 32 ? SH_LANES8_Q8_32 : SH_LANES8_Q8_256;
}

uint64_t sh_lanes8_operand_bytes(uint32_t operand, uint64_t cols) {
    switch (operand) {
    case SH_LANES8_Q8_32: return sh_align_up(sh_lanes8_sums_at(operand, cols) + cols / 32 * sizeof(int32_t), 64);
    case SH_LANES8_Q8_256: return sh_align_up(sh_lanes8_sums32_at(cols) + cols / 32 * sizeof(int16_t), 64);
    default: return sh_align_up(cols * sizeof(float), 64);
    }
}
