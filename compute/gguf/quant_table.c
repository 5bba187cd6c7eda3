/* The table types: blocks to codes, scales and d. Each function states the block's layout in the order of the file's bytes. */
#include "compute/gguf/codebooks.h"
#include "compute/gguf/quant.h"

#define IQ4_VALUES                                                                                                               \
    { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 }
#define IQ2_VALUES                                                                                                               \
    { 8, 25, 43, 0, -8, -25, -43 } /* index of the magnitude, sign at bit 2 */
#define IQ1_VALUES                                                                                                               \
    { -7, 1, 9, 0, -9, -1, 7 } /* eighths: 8 * (index - 1) + 1, or - 1 with bit 2 */

static const struct sh_table_type iq1 = {IQ1_VALUES, 256}, iq2 = {IQ2_VALUES, 256};
static const struct sh_table_type iq3_xxs = {{4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62}, 256};
static const struct sh_table_type iq3_s = {{1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15}, 256};
static const struct sh_table_type iq4_nl = {IQ4_VALUES, 32}, iq4_xs = {IQ4_VALUES, 256};
static const struct sh_table_type mxfp4 = {{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}, 32};
static const struct sh_table_type q3_k = {{-4, -3, -2, -1, 0, 1, 2, 3}, 256};
static const struct sh_table_type ternary = {{-1, 0, 1, 2}, 256}; /* 2 only where a TQ2_0 file holds the fourth pattern */

const struct sh_table_type *sh_table_type(uint32_t type) {
    switch (type) {
    case SH_TYPE_IQ1_S:
    case SH_TYPE_IQ1_M: return &iq1;
    case SH_TYPE_IQ2_XXS:
    case SH_TYPE_IQ2_XS:
    case SH_TYPE_IQ2_S: return &iq2;
    case SH_TYPE_IQ3_XXS: return &iq3_xxs;
    case SH_TYPE_IQ3_S: return &iq3_s;
    case SH_TYPE_IQ4_NL: return &iq4_nl;
    case SH_TYPE_IQ4_XS: return &iq4_xs;
    case SH_TYPE_MXFP4: return &mxfp4;
    case SH_TYPE_Q3_K: return &q3_k;
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return &ternary;
    default: return NULL;
    }
}

static uint32_t u16_at(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32_at(const uint8_t *p) { return u16_at(p) | u16_at(p + 2) << 16; }
static float half_at(const uint8_t *p) { return sh_f16_to_f32((uint16_t)u16_at(p)); }
static uint32_t nibble(const uint8_t *p, uint32_t i) { return p[i / 2] >> (4 * (i % 2)) & 15; } /* low halves first */

/* Eight signs stored as seven: the eighth makes the number of negative ones even. */
static uint32_t even_signs(uint32_t seven) { return seven | (uint32_t)__builtin_parity(seven) << 7; }

static uint64_t eight(const uint8_t *p) { /* bytes side by side, for operations that stay within each */
    uint64_t bytes;
    memcpy(&bytes, p, 8);
    return bytes;
}

static void both_scales(int8_t *scales, uint32_t group, uint32_t scale) { /* one scale for the group's 32 elements */
    scales[2 * group] = scales[2 * group + 1] = (int8_t)scale;
}

/* Eight numbers of 2 bits, or of 1, as the low bits of eight bytes; four of 3 bits, or of 1, of four bytes. Lowest first. */
static uint64_t spread_8x2(uint64_t x) {
    x = (x | x << 24) & UINT64_C(0x000000FF000000FF);
    x = (x | x << 12) & UINT64_C(0x000F000F000F000F);
    return (x | x << 6) & UINT64_C(0x0303030303030303);
}
static uint64_t spread_8x1(uint64_t x) {
    x = (x | x << 28) & UINT64_C(0x0000000F0000000F);
    x = (x | x << 14) & UINT64_C(0x0003000300030003);
    return (x | x << 7) & UINT64_C(0x0101010101010101);
}
static uint32_t spread_4x3(uint32_t x) {
    x = (x | x << 10) & 0x003F003F;
    return (x | x << 5) & 0x07070707;
}
static uint32_t spread_4x1(uint32_t x) {
    x = (x | x << 14) & 0x00030003;
    return (x | x << 7) & 0x01010101;
}

/* Codes of eight elements of an IQ2 entry, sign at bit 2; of IQ1, where all have the same. */
static void entry_8(uint32_t entry, uint32_t signs, uint8_t *codes) {
    const uint64_t bytes = spread_8x2(entry) | spread_8x1(signs) << 2;
    memcpy(codes, &bytes, 8);
}
/* Codes of four elements of an IQ3 entry, sign at bit 3. */
static void entry_4(uint32_t entry, uint32_t signs, uint8_t *codes) {
    const uint32_t bytes = spread_4x3(entry) | spread_4x1(signs) << 3;
    memcpy(codes, &bytes, 4);
}

/* Sixteen bytes of nibbles: element e < 16 is the low half of byte e, else the high half of byte e - 16. */
static void nibbles_32(const uint8_t *q, uint8_t *codes) {
    for (int i = 0; i < 16; i += 8) {
        const uint64_t low = eight(q + i) & UINT64_C(0x0F0F0F0F0F0F0F0F), high = eight(q + i) >> 4 & UINT64_C(0x0F0F0F0F0F0F0F0F);
        memcpy(codes + i, &low, 8);
        memcpy(codes + 16 + i, &high, 8);
    }
}

/* d:f16, 8 groups of 32: four 8-bit entries, then a word of four times seven signs and a scale at bit 28.
 * value = d * (scale + 1/2) / 4 * entry */
static float decode_iq2_xxs(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t g = 0; g < 8; g++) {
        const uint8_t *q = b + 2 + 8 * g;
        const uint32_t word = u32_at(q + 4);
        for (uint32_t k = 0; k < 4; k++)
            entry_8(sh_codebook_iq2_xxs[q[k]], even_signs(word >> (7 * k) & 127), codes + 32 * g + 8 * k);
        both_scales(scales, g, 2 * (word >> 28) + 1);
    }
    return half_at(b) / 8;
}

/* d:f16, 32 words of a 9-bit entry and seven signs, 16 nibbles of scales. Values as IQ2_XXS, a scale for each 16. */
static float decode_iq2_xs(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t word = u16_at(b + 2 + 2 * k);
        entry_8(sh_codebook_iq2_xs[word & 511], even_signs(word >> 9), codes + 8 * k);
    }
    for (uint32_t s = 0; s < 16; s++) scales[s] = (int8_t)(2 * nibble(b + 66, s) + 1);
    return half_at(b) / 8;
}

/* d:f16, 32 bytes of entries, 32 of signs, 32 bit pairs above the entries, 16 nibbles of scales. Values as IQ2_XS. */
static float decode_iq2_s(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t high = b[66 + k / 4] >> (2 * (k % 4)) & 3;
        entry_8(sh_codebook_iq2_s[b[2 + k] | high << 8], b[34 + k], codes + 8 * k);
    }
    for (uint32_t s = 0; s < 16; s++) scales[s] = (int8_t)(2 * nibble(b + 74, s) + 1);
    return half_at(b) / 8;
}

/* d:f16, 64 bytes of entries, 8 words of four times seven signs and a scale. value = d * (scale + 1/2) / 2 * entry */
static float decode_iq3_xxs(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t g = 0; g < 8; g++) {
        const uint32_t word = u32_at(b + 66 + 4 * g);
        for (uint32_t k = 0; k < 8; k++) {
            const uint32_t signs = even_signs(word >> (7 * (k / 2)) & 127);
            entry_4(sh_codebook_iq3_xxs[b[2 + 8 * g + k]], k % 2 ? signs >> 4 : signs & 15, codes + 32 * g + 4 * k);
        }
        both_scales(scales, g, 2 * (word >> 28) + 1);
    }
    return half_at(b) / 4;
}

/* d:f16, 64 bytes of entries, 64 bits above them, 256 signs, 8 nibbles of scales. value = d * (2 scale + 1) * entry */
static float decode_iq3_s(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t k = 0; k < 64; k++) {
        const uint32_t high = b[66 + k / 8] >> (k % 8) & 1;
        entry_4(sh_codebook_iq3_s[b[2 + k] | high << 8], nibble(b + 74, k), codes + 4 * k);
    }
    for (uint32_t g = 0; g < 8; g++) both_scales(scales, g, 2 * nibble(b + 106, g) + 1);
    return half_at(b);
}

/* d:f16, 32 bytes of entries, 8 words: four times the entry's upper three bits, a scale of three, and the sign of the offset.
 * value = d * (2 scale + 1) * (entry +- 1/8) */
static float decode_iq1_s(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t g = 0; g < 8; g++) {
        const uint32_t word = u16_at(b + 34 + 2 * g);
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t high = word >> (3 * k) & 7;
            entry_8(sh_codebook_iq1[b[2 + 4 * g + k] | high << 8], (word >> 15) * 255, codes + 32 * g + 8 * k);
        }
        both_scales(scales, g, 2 * (word >> 12 & 7) + 1);
    }
    return half_at(b) / 8;
}

/* 32 bytes of entries, 32 nibbles of their upper three bits and the sign of the offset, 4 words of four 3-bit scales each, whose
 * upper nibbles together are d:f16, the lowest first. Values as IQ1_S, a scale for each 16. */
static float decode_iq1_m(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    uint32_t d = 0;
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t high = nibble(b + 32, k);
        entry_8(sh_codebook_iq1[b[k] | (high & 7) << 8], (high >> 3) * 255, codes + 8 * k);
    }
    for (uint32_t w = 0; w < 4; w++) {
        const uint32_t word = u16_at(b + 48 + 2 * w);
        for (uint32_t s = 0; s < 4; s++) scales[4 * w + s] = (int8_t)(2 * (word >> (3 * s) & 7) + 1);
        d |= word >> 12 << (4 * w);
    }
    return sh_f16_to_f32((uint16_t)d) / 8;
}

/* d:f16, nibbles. */
static float decode_iq4_nl(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    (void)scales;
    nibbles_32(b + 2, codes);
    return half_at(b);
}

/* d:f16, a word of eight upper bit pairs of the scales, 8 nibbles of their lower bits, 8 times 16 bytes of nibbles.
 * value = d * (scale - 32) * table */
static float decode_iq4_xs(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    const uint32_t high = u16_at(b + 2);
    for (uint32_t g = 0; g < 8; g++) {
        nibbles_32(b + 8 + 16 * g, codes + 32 * g);
        const uint32_t scale = nibble(b + 4, g) | (high >> (2 * g) & 3) << 4;
        scales[2 * g] = scales[2 * g + 1] = (int8_t)((int)scale - 32);
    }
    return half_at(b);
}

/* e:u8, nibbles of E2M1 numbers (sign, two bits of exponent, one of mantissa), here doubled to integers. value = 2^(e - 127) *
 * E2M1, so d = 2^(e - 128), which is subnormal for e < 2; 2^127 for e = 255. */
static float decode_mxfp4(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    (void)scales;
    nibbles_32(b + 1, codes);
    const uint32_t bits = b[0] < 2 ? UINT32_C(0x00200000) << b[0] : (uint32_t)(b[0] - 1) << 23;
    float d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

/* 32 bytes of third bits, 64 bytes of bit pairs, 12 bytes of scales, d:f16. Run r of half h (32 elements) takes pair r of the
 * half's 32 bytes, and bit 4h + r. The lower nibbles of scales 0..7 and 8..15 are the low and high halves of eight bytes; the
 * upper pair of scale s is pair s / 4 of byte 8 + s % 4. value = d * (scale - 32) * (q - 4) */
static float decode_q3_k(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    const uint8_t *packed = b + 96;
    for (uint32_t run = 0; run < 8; run++)
        for (uint32_t i = 0; i < 32; i += 8, codes += 8) {
            const uint64_t low = eight(b + 32 + run / 4 * 32 + i) >> (run % 4 * 2), high = eight(b + i) >> run;
            const uint64_t bytes = (low & UINT64_C(0x0303030303030303)) | (high & UINT64_C(0x0101010101010101)) << 2;
            memcpy(codes, &bytes, 8);
        }
    for (uint32_t s = 0; s < 16; s++) {
        const uint32_t low = packed[s % 8] >> (s < 8 ? 0 : 4) & 15, high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
        scales[s] = (int8_t)((int)(low | high << 4) - 32);
    }
    return half_at(b + 108);
}

/* Digit n (0: the first) of a byte that holds base-3 digits as a fraction of 256, rounded up. */
static uint8_t ternary_digit(uint8_t byte, uint32_t n) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (uint8_t)((uint32_t)(uint8_t)(byte * power[n]) * 3 >> 8);
}

/* 48 bytes of five digits, 4 bytes of four, d:f16. The first 32 bytes hold 32 elements in each digit, the next 16 bytes 16, the
 * last 4 bytes 4. value = d * (digit - 1) */
static float decode_tq1_0(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t n = 0; n < 5; n++) {
        for (uint32_t i = 0; i < 32; i++) codes[32 * n + i] = ternary_digit(b[i], n);
        for (uint32_t i = 0; i < 16; i++) codes[160 + 16 * n + i] = ternary_digit(b[32 + i], n);
        for (uint32_t i = 0; i < 4 && n < 4; i++) codes[240 + 4 * n + i] = ternary_digit(b[48 + i], n);
    }
    memset(scales, 1, 16);
    return half_at(b + 52);
}

/* 64 bytes of bit pairs, d:f16: run r of half h takes pair r of the half's 32 bytes. value = d * (q - 1) */
static float decode_tq2_0(const uint8_t *b, uint8_t *codes, int8_t *scales) {
    for (uint32_t run = 0; run < 8; run++)
        for (uint32_t i = 0; i < 32; i += 8, codes += 8) {
            const uint64_t bytes = eight(b + run / 4 * 32 + i) >> (run % 4 * 2) & UINT64_C(0x0303030303030303);
            memcpy(codes, &bytes, 8);
        }
    memset(scales, 1, 16);
    return half_at(b + 64);
}

void sh_table_decode(uint32_t type, const void *block, uint8_t *codes, int8_t *scales, float *d) {
    switch (type) {
    case SH_TYPE_IQ1_S: *d = decode_iq1_s(block, codes, scales); break;
    case SH_TYPE_IQ1_M: *d = decode_iq1_m(block, codes, scales); break;
    case SH_TYPE_IQ2_XXS: *d = decode_iq2_xxs(block, codes, scales); break;
    case SH_TYPE_IQ2_XS: *d = decode_iq2_xs(block, codes, scales); break;
    case SH_TYPE_IQ2_S: *d = decode_iq2_s(block, codes, scales); break;
    case SH_TYPE_IQ3_XXS: *d = decode_iq3_xxs(block, codes, scales); break;
    case SH_TYPE_IQ3_S: *d = decode_iq3_s(block, codes, scales); break;
    case SH_TYPE_IQ4_NL: *d = decode_iq4_nl(block, codes, scales); break;
    case SH_TYPE_IQ4_XS: *d = decode_iq4_xs(block, codes, scales); break;
    case SH_TYPE_MXFP4: *d = decode_mxfp4(block, codes, scales); break;
    case SH_TYPE_Q3_K: *d = decode_q3_k(block, codes, scales); break;
    case SH_TYPE_TQ1_0: *d = decode_tq1_0(block, codes, scales); break;
    case SH_TYPE_TQ2_0: *d = decode_tq2_0(block, codes, scales); break;
    default: SH_ASSERT(sh_table_type(type) != NULL);
    }
    if (sh_table_type(type)->block == 32) scales[0] = scales[1] = 1;
}
