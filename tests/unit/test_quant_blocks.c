/* Dequantisation against formulae written per element, and against known values. */
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

static int bits_at(const uint8_t *base, int bit, int n) { /* n bits from absolute bit position `bit`, little-endian, n <= 8 */
    return (base[bit / 8] >> bit % 8) & ((1 << n) - 1);
}

/* The value of element e of a block, in double: independent of the order in which the product walks a block. */
static double element(uint32_t type, const uint8_t *b, int e) {
    switch (type) {
    case SH_TYPE_Q4_0: return half_value(b) * (bits_at(b + 2, e % 16 * 8 + e / 16 * 4, 4) - 8);
    case SH_TYPE_Q8_0: return half_value(b) * (b[2 + e] < 128 ? b[2 + e] : b[2 + e] - 256);
    case SH_TYPE_Q4_K:
    case SH_TYPE_Q5_K: {
        const int s = 2 * (e / 64) + e % 64 / 32;
        const uint8_t *packed = b + 4;
        const int scale = s < 4 ? packed[s] % 64 : packed[s + 4] % 16 + packed[s - 4] / 64 * 16;
        const int min = s < 4 ? packed[s + 4] % 64 : packed[s + 4] / 16 + packed[s] / 64 * 16;
        const uint8_t *nibbles = b + (type == SH_TYPE_Q4_K ? 16 : 48);
        int q = bits_at(nibbles, (e / 64 * 32 + e % 32) * 8 + e % 64 / 32 * 4, 4);
        if (type == SH_TYPE_Q5_K) q += 16 * bits_at(b + 16, e % 32 * 8 + e / 32, 1);
        return half_value(b) * scale * q - half_value(b + 2) * min;
    }
    case SH_TYPE_Q6_K: {
        const int half = e / 128, i = e % 128;
        const int low = bits_at(b, (half * 64 + i % 64) * 8 + i / 64 * 4, 4);
        const int high = bits_at(b + 128, (half * 32 + i % 32) * 8 + i / 32 * 2, 2);
        const int scale = (int8_t)b[192 + e / 16];
        return half_value(b + 208) * scale * (low + 16 * high - 32);
    }
    default: return NAN;
    }
}

static void sane_half(uint8_t *p, struct test_rng *rng) { /* a random half that is not infinite or NaN, subnormals included */
    const uint16_t h = (uint16_t)(test_random(rng) & 0xBFFFu);
    memcpy(p, &h, 2);
}

static void check_type(uint32_t type) {
    const struct sh_type_info *info = sh_type_info(type);
    struct test_rng rng = {type};
    uint8_t blocks[3 * 256];
    float y[3 * 256];
    for (int round = 0; round < 2000; round++) {
        for (uint32_t i = 0; i < 3 * info->block_bytes; i++) blocks[i] = (uint8_t)test_random(&rng);
        for (int k = 0; k < 3; k++) {
            uint8_t *b = blocks + (uint32_t)k * info->block_bytes;
            sane_half(b + (type == SH_TYPE_Q6_K ? 208 : 0), &rng);
            if (type == SH_TYPE_Q4_K || type == SH_TYPE_Q5_K) sane_half(b + 2, &rng);
        }
        assert_true(sh_dequantize(type, blocks, y, 3 * info->block_elements));
        for (uint32_t i = 0; i < 3 * info->block_elements; i++) {
            const uint8_t *b = blocks + i / info->block_elements * info->block_bytes;
            const double want = element(type, b, (int)(i % info->block_elements));
            /* two roundings of terms of at most this magnitude; none where there is no minimum */
            const bool min = type == SH_TYPE_Q4_K || type == SH_TYPE_Q5_K;
            const double tolerance = min ? 0x1p-22 * (fabs(half_value(b)) * 63 * 31 + fabs(half_value(b + 2)) * 63) : 0;
            if (!(fabs(y[i] - want) <= tolerance))
                fail_msg("%s round %d element %u: %.9g, want %.9g", info->name, round, i, (double)y[i], want);
        }
    }
}

static void test_q4_0(void **state) {
    (void)state;
    check_type(SH_TYPE_Q4_0);
}
static void test_q8_0(void **state) {
    (void)state;
    check_type(SH_TYPE_Q8_0);
}
static void test_q4_k(void **state) {
    (void)state;
    check_type(SH_TYPE_Q4_K);
}
static void test_q5_k(void **state) {
    (void)state;
    check_type(SH_TYPE_Q5_K);
}
static void test_q6_k(void **state) {
    (void)state;
    check_type(SH_TYPE_Q6_K);
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
    assert_false(sh_dequantize(16, zero, y, 256));
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
        cmocka_unit_test(test_table), cmocka_unit_test(test_known_values),   cmocka_unit_test(test_q4_0),
        cmocka_unit_test(test_q8_0),  cmocka_unit_test(test_q4_k),           cmocka_unit_test(test_q5_k),
        cmocka_unit_test(test_q6_k),  cmocka_unit_test(test_not_computable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
