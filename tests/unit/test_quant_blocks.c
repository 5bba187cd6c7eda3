/* Dequantisation against formulae written per element, and against known values. */
#include "compute/gguf/codebooks.h"
#include "compute/gguf/quant.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* IEEE half by powers of two, not by bits. */
static double half_value(const uint8_t *p) {
    const int h = p[0] | p[1] << 8, exponent = h >> 10 & 31, mantissa = h & 1023;
    const double magnitude = exponent == 0 ? mantissa * 0x1p-24 : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

/* `n` bits from bit `at` of the bytes, the lowest first. */
static int field(const uint8_t *base, int at, int n) {
    int value = 0;
    for (int i = 0; i < n; i++) value += (base[(at + i) / 8] >> (at + i) % 8 & 1) << i;
    return value;
}
static int nibble_32(const uint8_t *q, int e) { return field(q, e % 16 * 8 + e / 16 * 4, 4); } /* of a block of 32 */
static int pair_256(const uint8_t *q, int e) { return field(q, (e / 128 * 32 + e % 32) * 8 + e % 128 / 32 * 2, 2); }

static int parity(int bits) {
    int odd = 0;
    for (; bits != 0; bits /= 2) odd ^= bits % 2;
    return odd;
}
/* Sign of element i of eight with seven stored signs: the eighth makes the number of negative ones even. */
static double sign_of_seven(int seven, int i) { return (i < 7 ? seven >> i & 1 : parity(seven)) ? -1 : 1; }
static double sign_of_bit(const uint8_t *base, int at) { return field(base, at, 1) ? -1 : 1; }

static double iq1_point(int entry, int i) { return (sh_codebook_iq1[entry] >> 2 * i) % 4 - 1; }
static double iq2_point(const uint16_t *book, int entry, int i) {
    return (const double[]){8, 25, 43}[(book[entry] >> 2 * i) % 4];
}
static double iq3_xxs_point(int entry, int i) {
    return (const double[]){4, 12, 20, 28, 36, 44, 52, 62}[(sh_codebook_iq3_xxs[entry] >> 3 * i) % 8];
}
static double iq3_s_point(int entry, int i) { return 1 + 2 * ((sh_codebook_iq3_s[entry] >> 3 * i) % 8); }

/* The number whose first base-3 digits a byte holds as a fraction of 256: digit n of it. */
static int ternary(int byte, int n) {
    for (int i = 0; i < n; i++) byte = byte * 3 % 256;
    return byte * 3 / 256;
}

/* E2M1: sign, exponent of bias 1, one bit of mantissa, subnormal where the exponent is 0. */
static double e2m1(int code) {
    const int exponent = code / 2 % 4, mantissa = code % 2;
    const double magnitude = exponent == 0 ? mantissa * 0.5 : ldexp(1 + mantissa * 0.5, exponent - 1);
    return code >= 8 ? -magnitude : magnitude;
}

static const double iq4_points[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The value of element e of a block, in double, from the format's definition: independent of the order in which the product walks
 * a block, and of the factors into which it splits a value. *magnitude: that of the terms that are added, for the tolerance. */
static double element(uint32_t type, const uint8_t *b, int e, double *magnitude) {
    const int g = e / 32, k = e / 8, s = e / 16, i = e % 8;
    *magnitude = 0;
    switch (type) {
    case SH_TYPE_Q4_0: return half_value(b) * (nibble_32(b + 2, e) - 8);
    case SH_TYPE_Q4_1:
        *magnitude = fabs(half_value(b)) * 15 + fabs(half_value(b + 2));
        return half_value(b) * nibble_32(b + 4, e) + half_value(b + 2);
    case SH_TYPE_Q5_0: return half_value(b) * (nibble_32(b + 6, e) + 16 * field(b + 2, e, 1) - 16);
    case SH_TYPE_Q5_1:
        *magnitude = fabs(half_value(b)) * 31 + fabs(half_value(b + 2));
        return half_value(b) * (nibble_32(b + 8, e) + 16 * field(b + 4, e, 1)) + half_value(b + 2);
    case SH_TYPE_Q8_0: return half_value(b) * (b[2 + e] < 128 ? b[2 + e] : b[2 + e] - 256);
    case SH_TYPE_Q2_K:
        *magnitude = fabs(half_value(b + 80)) * 45 + fabs(half_value(b + 82)) * 15;
        return half_value(b + 80) * field(b, s * 8, 4) * pair_256(b + 16, e) - half_value(b + 82) * field(b, s * 8 + 4, 4);
    case SH_TYPE_Q3_K: {
        const int scale = field(b + 96, s % 8 * 8 + s / 8 * 4, 4) + 16 * field(b + 104, s % 4 * 8 + s / 4 * 2, 2);
        const int high = field(b, e % 32 * 8 + g, 1);
        return half_value(b + 108) * (scale - 32) * (pair_256(b + 32, e) + 4 * high - 4);
    }
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K: {
        const uint8_t *packed = b + 4;
        const int scale = g < 4 ? packed[g] % 64 : packed[g + 4] % 16 + packed[g - 4] / 64 * 16;
        const int min = g < 4 ? packed[g + 4] % 64 : packed[g + 4] / 16 + packed[g] / 64 * 16;
        const uint8_t *nibbles = b + (type == SH_TYPE_Q4_K ? 16 : 48);
        int q = field(nibbles, (e / 64 * 32 + e % 32) * 8 + e % 64 / 32 * 4, 4);
        if (type == SH_TYPE_Q5_K) q += 16 * field(b + 16, e % 32 * 8 + e / 32, 1);
        *magnitude = fabs(half_value(b)) * 63 * 31 + fabs(half_value(b + 2)) * 63;
        return half_value(b) * scale * q - half_value(b + 2) * min;
    }
    case SH_TYPE_Q6_K: {
        const int half = e / 128, j = e % 128;
        const int low = field(b, (half * 64 + j % 64) * 8 + j / 64 * 4, 4);
        const int high = field(b + 128, (half * 32 + j % 32) * 8 + j / 32 * 2, 2);
        const int scale = (int8_t)b[192 + e / 16];
        return half_value(b + 208) * scale * (low + 16 * high - 32);
    }
    case SH_TYPE_IQ1_S: {
        const uint8_t *word = b + 34 + 2 * g;
        const int entry = b[2 + k] + 256 * field(word, 3 * (k % 4), 3);
        const double delta = field(word, 15, 1) ? -0.125 : 0.125;
        return half_value(b) * (2 * field(word, 12, 3) + 1) * (iq1_point(entry, i) + delta);
    }
    case SH_TYPE_IQ1_M: {
        const uint8_t d[2] = {(uint8_t)(b[49] / 16 + b[51] / 16 * 16), (uint8_t)(b[53] / 16 + b[55] / 16 * 16)};
        const int entry = b[k] + 256 * field(b + 32, 4 * k, 3);
        const double delta = field(b + 32, 4 * k + 3, 1) ? -0.125 : 0.125;
        return half_value(d) * (2 * field(b + 48, 16 * (s / 4) + 3 * (s % 4), 3) + 1) * (iq1_point(entry, i) + delta);
    }
    case SH_TYPE_IQ2_XXS: {
        const uint8_t *group = b + 2 + 8 * g;
        const double scale = 0.25 * (0.5 + field(group + 4, 28, 4));
        return half_value(b) * scale * iq2_point(sh_codebook_iq2_xxs, group[k % 4], i) *
               sign_of_seven(field(group + 4, 7 * (k % 4), 7), i);
    }
    case SH_TYPE_IQ2_XS: {
        const uint8_t *word = b + 2 + 2 * k;
        const double scale = 0.25 * (0.5 + field(b + 66, 4 * s, 4));
        return half_value(b) * scale * iq2_point(sh_codebook_iq2_xs, field(word, 0, 9), i) * sign_of_seven(field(word, 9, 7), i);
    }
    case SH_TYPE_IQ2_S: {
        const double scale = 0.25 * (0.5 + field(b + 74, 4 * s, 4));
        return half_value(b) * scale * iq2_point(sh_codebook_iq2_s, b[2 + k] + 256 * field(b + 66, 2 * k, 2), i) *
               sign_of_bit(b + 34, e);
    }
    case SH_TYPE_IQ3_XXS: {
        const uint8_t *word = b + 66 + 4 * g;
        return half_value(b) * 0.5 * (0.5 + field(word, 28, 4)) * iq3_xxs_point(b[2 + e / 4], e % 4) *
               sign_of_seven(field(word, 7 * (k % 4), 7), i);
    }
    case SH_TYPE_IQ3_S:
        return half_value(b) * (1 + 2 * field(b + 106, 4 * g, 4)) *
               iq3_s_point(b[2 + e / 4] + 256 * field(b + 66, e / 4, 1), e % 4) * sign_of_bit(b + 74, e);
    case SH_TYPE_IQ4_NL: return half_value(b) * iq4_points[nibble_32(b + 2, e)];
    case SH_TYPE_IQ4_XS: {
        const int scale = field(b + 4, 4 * g, 4) + 16 * field(b + 2, 2 * g, 2);
        return half_value(b) * (scale - 32) * iq4_points[nibble_32(b + 8 + 16 * g, e % 32)];
    }
    case SH_TYPE_MXFP4: return ldexp(e2m1(nibble_32(b + 1, e)), b[0] - 127);
    case SH_TYPE_TQ1_0:
        if (e < 160) return half_value(b + 52) * (ternary(b[e % 32], e / 32) - 1);
        if (e < 240) return half_value(b + 52) * (ternary(b[32 + e % 16], (e - 160) / 16) - 1);
        return half_value(b + 52) * (ternary(b[48 + e % 4], (e - 240) / 4) - 1);
    case SH_TYPE_TQ2_0: return half_value(b + 64) * (pair_256(b, e) - 1);
    default: return NAN;
    }
}

/* A half that is not infinite or NaN: the extremes of the range, subnormals and zeros in one of four. */
static uint16_t any_half(struct test_rng *rng) {
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x83FF, 0x7BFF, 0xFBFF, 0x3C00};
    const uint64_t r = test_random(rng);
    const uint16_t h = (uint16_t)(r >> 20);
    if (r % 4 == 0) return special[(r >> 8) % SH_COUNT(special)];
    return (h & 0x7C00) == 0x7C00 ? h & 0xBFFF : h;
}

/* Random bytes, and halves of any size where the format has them. */
static void random_block(uint32_t type, uint8_t *b, struct test_rng *rng) {
    const uint32_t bytes = sh_type_info(type)->block_bytes;
    for (uint32_t i = 0; i < bytes; i++) b[i] = (uint8_t)(test_random(rng) >> 24);
    const uint16_t d = any_half(rng), m = any_half(rng);
    switch (type) {
    case SH_TYPE_IQ1_M:
        for (int i = 0; i < 4; i++) b[49 + 2 * i] = (uint8_t)(b[49 + 2 * i] % 16 + (d >> 4 * i) % 16 * 16);
        break;
    case SH_TYPE_MXFP4: /* the ends of the range more often than one in 128 */
        if (test_random(rng) % 8 == 0) b[0] = (const uint8_t[]){0, 1, 2, 251, 252, 253, 254, 255}[test_random(rng) % 8];
        break;
    case SH_TYPE_Q3_K:
    case SH_TYPE_Q6_K:
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: memcpy(b + bytes - 2, &d, 2); break;
    case SH_TYPE_Q2_K:
        memcpy(b + 80, &d, 2);
        memcpy(b + 82, &m, 2);
        break;
    default:
        memcpy(b, &d, 2);
        if (type == SH_TYPE_Q4_1 || type == SH_TYPE_Q5_1 || type == SH_TYPE_Q4_K || type == SH_TYPE_Q5_K) memcpy(b + 2, &m, 2);
        break;
    }
}

static void check_type(uint32_t type) {
    const struct sh_type_info *info = sh_type_info(type);
    struct test_rng rng = {type};
    uint8_t blocks[3 * 256];
    float y[3 * 256];
    for (int round = 0; round < 4000; round++) {
        for (uint32_t k = 0; k < 3; k++) random_block(type, blocks + k * info->block_bytes, &rng);
        assert_true(sh_dequantize(type, blocks, y, 3 * info->block_elements));
        for (uint32_t i = 0; i < 3 * info->block_elements; i++) {
            const uint8_t *b = blocks + i / info->block_elements * info->block_bytes;
            double magnitude;
            const double want = element(type, b, (int)(i % info->block_elements), &magnitude);
            /* exact where nothing is added (an MXFP4 value may lie beyond the range); else two roundings of the terms */
            const bool same = magnitude == 0 ? y[i] == (float)want && (isinf(y[i]) || (double)y[i] == want)
                                             : fabs((double)y[i] - want) <= 0x1p-22 * magnitude;
            if (!same) fail_msg("%s round %d element %u: %.9g, want %.9g", info->name, round, i, (double)y[i], want);
        }
    }
}

static const uint32_t block_types[] = {
    SH_TYPE_Q4_0,    SH_TYPE_Q4_1,   SH_TYPE_Q5_0,   SH_TYPE_Q5_1,  SH_TYPE_Q8_0,  SH_TYPE_Q2_K,   SH_TYPE_Q3_K,    SH_TYPE_Q4_K,
    SH_TYPE_Q5_K,    SH_TYPE_Q6_K,   SH_TYPE_IQ1_S,  SH_TYPE_IQ1_M, SH_TYPE_IQ2_S, SH_TYPE_IQ2_XS, SH_TYPE_IQ2_XXS, SH_TYPE_IQ3_S,
    SH_TYPE_IQ3_XXS, SH_TYPE_IQ4_NL, SH_TYPE_IQ4_XS, SH_TYPE_MXFP4, SH_TYPE_TQ1_0, SH_TYPE_TQ2_0};

static void test_against_definition(void **state) {
    (void)state;
    for (size_t i = 0; i < SH_COUNT(block_types); i++) check_type(block_types[i]);
}

/* Every computable block type is in the list above. */
static void test_list_is_complete(void **state) {
    (void)state;
    for (uint32_t type = 0; type < 64; type++) {
        const struct sh_type_info *info = sh_type_info(type);
        if (info == NULL || !info->computable || info->block_elements == 1) continue;
        bool listed = false;
        for (size_t i = 0; i < SH_COUNT(block_types); i++) listed |= block_types[i] == type;
        if (!listed) fail_msg("%s is not tested", info->name);
    }
    assert_string_equal(sh_computable_types(),
                        "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, "
                        "IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4");
}

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* Codes, scales and d multiply to the same bits in every order, and stay within the bounds that quant.h states. */
static void test_table_decode(void **state) {
    (void)state;
    uint32_t n_tables = 0;
    for (size_t t = 0; t < SH_COUNT(block_types); t++) {
        const uint32_t type = block_types[t];
        const struct sh_table_type *table = sh_table_type(type);
        if (table == NULL) continue;
        n_tables++;
        assert_int_equal(table->block, sh_type_info(type)->block_elements);
        for (int v = 0; v < 16; v++) assert_in_range(table->values[v] + 127, 0, 240);
        struct test_rng rng = {100 + type};
        uint8_t block[256], codes[256];
        int8_t scales[16];
        float y[256], d;
        for (int round = 0; round < 10000; round++) {
            random_block(type, block, &rng);
            sh_table_decode(type, block, codes, scales, &d);
            assert_true(sh_dequantize(type, block, y, table->block));
            for (uint32_t e = 0; e < table->block; e++) {
                assert_true(codes[e] < 16);
                const float scale = (float)scales[e / 16], value = (float)table->values[codes[e]];
                assert_true(scale >= -32 && scale <= 31);
                assert_int_equal(bits_of(d * scale * value), bits_of(y[e]));
                assert_int_equal(bits_of(d * (scale * value)), bits_of(y[e]));
                assert_int_equal(bits_of(d * value * scale), bits_of(y[e]));
            }
        }
    }
    assert_int_equal(n_tables, 13);
    assert_null(sh_table_type(SH_TYPE_Q4_0));
    assert_null(sh_table_type(UINT32_MAX));
}

/* The codebooks, expanded to bytes as ggml writes them: FNV-1a of each, computed from ggml-common.h. */
static void test_codebooks(void **state) {
    (void)state;
    static const struct {
        const uint16_t *book;
        uint32_t n, per_entry, bits;
        uint8_t points[8];
        uint64_t expected;
    } books[] = {
        {sh_codebook_iq2_xxs, 256, 8, 2, {8, 25, 43}, UINT64_C(0xbb4ee025b5ac6e8e)},
        {sh_codebook_iq2_xs, 512, 8, 2, {8, 25, 43}, UINT64_C(0xc9b1ee61e79909bd)},
        {sh_codebook_iq2_s, 1024, 8, 2, {8, 25, 43}, UINT64_C(0x123edd38a3b62b90)},
        {sh_codebook_iq3_xxs, 256, 4, 3, {4, 12, 20, 28, 36, 44, 52, 62}, UINT64_C(0xdfa5dc83d6a155d5)},
        {sh_codebook_iq3_s, 512, 4, 3, {1, 3, 5, 7, 9, 11, 13, 15}, UINT64_C(0xfa37020c25b44829)},
        {sh_codebook_iq1, 2048, 8, 2, {255, 0, 1}, UINT64_C(0x6703ed863501ae2e)},
    };
    for (size_t i = 0; i < SH_COUNT(books); i++) {
        uint64_t hash = UINT64_C(0xcbf29ce484222325);
        for (uint32_t n = 0; n < books[i].n; n++)
            for (uint32_t e = 0; e < books[i].per_entry; e++)
                hash = (hash ^ books[i].points[books[i].book[n] >> books[i].bits * e & ((1 << books[i].bits) - 1)]) *
                       UINT64_C(0x100000001b3);
        assert_true(hash == books[i].expected);
    }
}

static void test_known_values(void **state) {
    (void)state;
    uint8_t q4[18] = {0x00, 0x40}; /* d = 2 */
    float y[256];
    memset(q4 + 2, 0x89, 16); /* low halves 9, high halves 8 */
    assert_true(sh_dequantize(SH_TYPE_Q4_0, q4, y, 32));
    assert_true(y[0] == 2.0f && y[15] == 2.0f && y[16] == 0.0f && y[31] == 0.0f);

    uint8_t q6[210] = {0};
    q6[0] = 0x5A;   /* element 0: low 10; element 64: low 5 */
    q6[128] = 0x93; /* pairs 3, 0, 1, 2 for elements 0, 32, 64, 96 */
    q6[192] = 3;
    q6[192 + 4] = 0xFE; /* -2, elements 64..79 */
    q6[209] = 0x3E;     /* d = 1.5 */
    assert_true(sh_dequantize(SH_TYPE_Q6_K, q6, y, 256));
    assert_true(y[0] == 1.5f * 3 * (10 + 48 - 32));
    assert_true(y[64] == 1.5f * -2 * (5 + 16 - 32));
    assert_true(y[1] == 1.5f * 3 * -32);
    assert_true(y[32] == 0.0f);

    const uint16_t f16[] = {0x3C00, 0xC000, 0x3E00, 0x0001, 0x7BFF, 0x8000};
    assert_true(sh_dequantize(SH_TYPE_F16, f16, y, 6));
    assert_true(y[0] == 1.0f && y[1] == -2.0f && y[2] == 1.5f && y[3] == 0x1p-24f && y[4] == 65504.0f && y[5] == 0.0f);
    assert_true(signbit(y[5]));

    const uint16_t bf16[] = {0x3F80, 0xC000, 0x4049, 0x7F7F};
    assert_true(sh_dequantize(SH_TYPE_BF16, bf16, y, 4));
    assert_true(y[0] == 1.0f && y[1] == -2.0f && y[2] == 3.140625f && y[3] == 0x1.FEp127f);

    const float f32[] = {1.25f, -3e-40f, 7e37f};
    assert_true(sh_dequantize(SH_TYPE_F32, f32, y, 3));
    assert_memory_equal(y, f32, sizeof f32);
}

static void test_not_computable(void **state) {
    (void)state;
    float y[256];
    const uint8_t zero[512] = {0};
    assert_false(sh_dequantize(9, zero, y, 256));  /* Q8_1 */
    assert_false(sh_dequantize(15, zero, y, 256)); /* Q8_K */
    assert_false(sh_dequantize(99, zero, y, 256));
}

static void test_table(void **state) {
    (void)state;
    assert_null(sh_type_info(4));
    assert_null(sh_type_info(40));
    assert_null(sh_type_info(UINT32_MAX));
    assert_string_equal(sh_type_info(SH_TYPE_Q4_K)->name, "Q4_K");
    assert_string_equal(sh_type_info(39)->name, "MXFP4");
    assert_int_equal(sh_type_row_bytes(SH_TYPE_Q4_0, 4096), 4096 / 32 * 18);
    assert_int_equal(sh_type_row_bytes(SH_TYPE_Q6_K, 512), 420);
    assert_int_equal(sh_type_row_bytes(SH_TYPE_Q6_K, 300), 0);
    assert_int_equal(sh_type_row_bytes(SH_TYPE_F32, 3), 12);
    assert_int_equal(sh_type_row_bytes(99, 32), 0);
    assert_int_equal(sh_type_row_bytes(SH_TYPE_F32, UINT64_MAX), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),          cmocka_unit_test(test_list_is_complete),   cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_codebooks),      cmocka_unit_test(test_against_definition), cmocka_unit_test(test_table_decode),
        cmocka_unit_test(test_not_computable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
