#include "compute/cpu/lanes8.h"

#define LANES 8
#define VECTOR 32 /* bytes */

uint64_t sh_lanes8_group_bytes(uint32_t type, uint64_t cols) {
    switch (type) {
    case SH_TYPE_F16:
    case SH_TYPE_BF16: return sh_align_up(cols, 4) * LANES * 2;
    case SH_TYPE_Q4_0: return cols / 32 * SH_LANES8_Q4_0;
    case SH_TYPE_Q8_0: return cols / 32 * SH_LANES8_Q8_0;
    case SH_TYPE_Q4_K: return cols / 256 * SH_LANES8_Q4_K;
    case SH_TYPE_Q5_K: return cols / 256 * SH_LANES8_Q5_K;
    case SH_TYPE_Q6_K: return cols / 256 * SH_LANES8_Q6_K;
    default: return sh_align_up(cols, 4) * LANES * 4; /* F32, and what has no layout of its own: as floats */
    }
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

/* One block of one row, file layout -> its lane of a packed block. */
static void pack_block(uint32_t type, const uint8_t *src, uint32_t lane, uint8_t *dst) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
        memcpy(dst + 2 * lane, src, 2);
        words_to_lane(src + 2, type == SH_TYPE_Q4_0 ? 4 : 8, lane, dst + 16);
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
    default: break;
    }
}

static void unpack_block(uint32_t type, const uint8_t *src, uint32_t lane, uint8_t *dst) {
    switch (type) {
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
        memcpy(dst, src + 2 * lane, 2);
        lane_to_words(src + 16, type == SH_TYPE_Q4_0 ? 4 : 8, lane, dst + 2);
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

static uint32_t float_bytes(uint32_t type) {
    switch (type) {
    case SH_TYPE_F16:
    case SH_TYPE_BF16: return 2;
    case SH_TYPE_Q4_0:
    case SH_TYPE_Q8_0:
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K:
    case SH_TYPE_Q6_K: return 0;
    default: return 4;
    }
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
        if (info->block_elements > 1 && float_bytes(w->type) == 4) {
            float values[256];
            for (uint64_t b = 0; b < n_blocks; b++) {
                sh_dequantize(w->type, from + b * info->block_bytes, values, info->block_elements);
                pack_floats(4, (const uint8_t *)values, info->block_elements, lane, to + b * packed_bytes);
            }
            continue;
        }
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
    uint8_t element[256]; /* one element, or one block of the largest type (210 bytes) */
    if (bytes != 0) {
        for (uint64_t k = 0; k < w->cols; k++) {
            memcpy(element, from + (k * LANES + lane) * bytes, bytes);
            sh_dequantize(bytes == 4 ? SH_TYPE_F32 : w->type, element, out + k, 1);
        }
        return;
    }
    const uint64_t n_blocks = w->cols / info->block_elements, packed_bytes = group_bytes / n_blocks;
    for (uint64_t b = 0; b < n_blocks; b++) {
        unpack_block(w->type, from + b * packed_bytes, lane, element);
        sh_dequantize(w->type, element, out + b * info->block_elements, info->block_elements);
    }
}

uint32_t sh_lanes8_operand(uint32_t type) {
    if (float_bytes(type) != 0) return SH_LANES8_FLOAT; /* also of types that are stored as floats */
    return type == SH_TYPE_Q4_0 || type == SH_TYPE_Q8_0 ? SH_LANES8_Q8_32 : SH_LANES8_Q8_256;
}

uint64_t sh_lanes8_operand_bytes(uint32_t operand, uint64_t cols) {
    switch (operand) {
    case SH_LANES8_Q8_32: return sh_align_up(sh_lanes8_sums_at(operand, cols) + cols / 32 * sizeof(int32_t), 64);
    case SH_LANES8_Q8_256: return sh_align_up(sh_lanes8_sums32_at(cols) + cols / 32 * sizeof(int16_t), 64);
    default: return sh_align_up(cols * sizeof(float), 64);
    }
}
