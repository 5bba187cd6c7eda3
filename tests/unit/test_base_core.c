/* compute/base: messages, checked arithmetic, growth, halves. */
#include "compute/base.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static bool valid_line(const char *s) {
    for (size_t i = 0, left = strlen(s), n; left > 0; i += n, left -= n) {
        n = sh_utf8_length(s + i, left);
        if (n == 0 || (unsigned char)s[i] < 0x20 || s[i] == 0x7F) return false;
    }
    return true;
}

static void test_fail(void **state) {
    (void)state;
    struct sh_error err;
    assert_int_equal(sh_fail(NULL, SH_ERR_IO, "%d", 1), SH_ERR_IO);
    assert_int_equal(sh_fail(&err, SH_ERR_LIMIT, "%s is %d", "n", 5), SH_ERR_LIMIT);
    assert_int_equal(err.code, SH_ERR_LIMIT);
    assert_string_equal(err.message, "n is 5");
    sh_fail(&err, SH_ERR_IO, "again: %s", err.message); /* the old message as an argument */
    assert_string_equal(err.message, "again: n is 5");
    sh_fail(&err, SH_ERR_IO, "a\nb\x1B[1m \xFF\xC3(\xE2\x82\xAC \xED\xA0\x80");
    assert_string_equal(err.message, "a?b?[1m ?\?(\xE2\x82\xAC ???");
}

/* Cut at every place within a code point: what remains is whole. */
static void test_fail_cut(void **state) {
    (void)state;
    static const char *const points[] = {"\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "x"};
    struct sh_error err;
    for (size_t k = 0; k < SH_COUNT(points); k++)
        for (size_t lead = 0; lead < 8; lead++) {
            char text[2048] = "";
            memset(text, 'a', lead);
            for (size_t at = lead; at + 5 < sizeof text; at += strlen(points[k])) strcpy(text + at, points[k]);
            sh_fail(&err, SH_ERR_IO, "%s", text);
            const size_t length = strlen(err.message);
            assert_true(length <= 511 && length + strlen(points[k]) > 511);
            assert_true(valid_line(err.message));
            assert_memory_equal(err.message, text, length);
            assert_null(strchr(err.message, '?'));
        }
}

static void test_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n, length;
    } cases[] = {
        {"", 0, 0},
        {"a", 1, 1},
        {"\0", 1, 1},
        {"\x7F", 1, 1},
        {"\x80", 1, 0},
        {"\xC1\xBF", 2, 0},
        {"\xC2\x80", 2, 2},
        {"\xC2", 1, 0},
        {"\xDF\xBF", 2, 2},
        {"\xE0\x9F\xBF", 3, 0},
        {"\xE0\xA0\x80", 3, 3},
        {"\xED\x9F\xBF", 3, 3},
        {"\xED\xA0\x80", 3, 0},
        {"\xEF\xBF\xBF", 3, 3},
        {"\xEF\xBF", 2, 0},
        {"\xF0\x8F\xBF\xBF", 4, 0},
        {"\xF0\x90\x80\x80", 4, 4},
        {"\xF4\x8F\xBF\xBF", 4, 4},
        {"\xF4\x90\x80\x80", 4, 0},
        {"\xF5\x80\x80\x80", 4, 0},
        {"\xFF", 1, 0},
        {"\xE2\x28\xA1", 3, 0},
        {"\xF0\x9F\x98", 3, 0},
        {"ab", 2, 1},
    };
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        const size_t got = sh_utf8_length(cases[i].text, cases[i].n);
        if (got != cases[i].length) fail_msg("case %zu: %zu, want %zu", i, got, cases[i].length);
    }
}

static void test_arithmetic(void **state) {
    (void)state;
    uint64_t v;
    assert_true(sh_mul_u64(1ull << 32, (1ull << 32) - 1, &v));
    assert_true(v == 0xFFFFFFFF00000000u);
    assert_false(sh_mul_u64(1ull << 32, 1ull << 32, &v));
    assert_true(sh_add_u64(UINT64_MAX - 1, 1, &v));
    assert_false(sh_add_u64(UINT64_MAX, 1, &v));
    assert_int_equal(sh_align_up(0, 32), 0);
    assert_int_equal(sh_align_up(1, 32), 32);
    assert_int_equal(sh_align_up(32, 32), 32);
    assert_int_equal(sh_min_u64(3, 5), 3);
    assert_int_equal(sh_max_u64(3, 5), 5);
}

static void test_memory(void **state) {
    (void)state;
    assert_null(sh_calloc(UINT64_MAX, 8));
    assert_null(sh_calloc(1ull << 63, 1));
    assert_null(sh_alloc_aligned(UINT64_MAX));
    uint8_t *zero = sh_calloc(0, 0), *page = sh_alloc_aligned(3);
    assert_non_null(zero);
    assert_int_equal((uintptr_t)page % 64, 0);
    free(zero);
    free(page);

    uint32_t *array = NULL, capacity = 0, last = 0, moves = 0;
    for (uint32_t i = 0; i < 100000; i++) {
        assert_true(sh_grow((void **)&array, &capacity, i + 1, sizeof *array));
        array[i] = i;
        moves += capacity != last;
        last = capacity;
    }
    for (uint32_t i = 0; i < 100000; i++) assert_int_equal(array[i], i);
    assert_true(moves <= 18); /* it doubles */
    uint32_t *const before = array;
    assert_false(sh_grow((void **)&array, &capacity, UINT32_MAX, SIZE_MAX / 4));
    assert_ptr_equal(array, before);
    assert_int_equal(capacity, last);
    free(array);
}

/* The value of a half by powers of two. */
static double half_value(uint32_t h) {
    const int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
    const double magnitude = exponent == 31  ? (mantissa != 0 ? (double)NAN : (double)INFINITY)
                             : exponent == 0 ? mantissa * 0x1p-24
                                             : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void test_half_to_float(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const double want = half_value(h), got = (double)sh_f16_to_f32((uint16_t)h);
        if (isnan(want) ? !isnan(got) : !(got == want && signbit(got) == signbit(want)))
            fail_msg("0x%04X: %g, want %g", h, got, want);
        if (!isnan(want)) assert_int_equal(sh_f32_to_f16((float)got), h);
    }
}

/* Between any two neighbouring halves: the nearer one, the even one at the middle. */
static void test_float_to_half(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7BFF; h++) {
        const double low = half_value(h), high = half_value(h + 1), middle = (low + high) / 2;
        assert_int_equal(sh_f32_to_f16((float)middle), h % 2 == 0 ? h : h + 1);
        assert_int_equal(sh_f32_to_f16(nextafterf((float)middle, 0)), h);
        assert_int_equal(sh_f32_to_f16(nextafterf((float)middle, INFINITY)), h + 1);
        assert_int_equal(sh_f32_to_f16(-(float)middle), (h % 2 == 0 ? h : h + 1) | 0x8000);
    }
    assert_int_equal(sh_f32_to_f16(65519.996f), 0x7BFF);
    assert_int_equal(sh_f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(sh_f32_to_f16(INFINITY), 0x7C00);
    assert_int_equal(sh_f32_to_f16(-INFINITY), 0xFC00);
    assert_true((sh_f32_to_f16(NAN) & 0x7FFF) > 0x7C00);
    assert_int_equal(sh_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(sh_f32_to_f16(1e-45f), 0);
}

static void test_bfloat(void **state) {
    (void)state;
    for (uint32_t b = 0; b < 65536; b++) {
        const float f = sh_bf16_to_f32((uint16_t)b);
        if (isnan(f)) assert_true(isnan(sh_bf16_to_f32(sh_f32_to_bf16(f))));
        else assert_int_equal(sh_f32_to_bf16(f), b);
    }
    assert_int_equal(sh_f32_to_bf16(1 + 0x1p-8f), 0x3F80);           /* the middle, to even */
    assert_int_equal(sh_f32_to_bf16(1 + 0x1p-7f + 0x1p-8f), 0x3F82); /* the middle, to even */
    assert_int_equal(sh_f32_to_bf16(1 + 0x1p-8f + 0x1p-20f), 0x3F81);
    assert_int_equal(sh_f32_to_bf16(__FLT_MAX__), 0x7F80);
}

static void count_lines(void *user, enum sh_log_level level, const char *line) {
    assert_int_equal(level, SH_LOG_INFO);
    assert_string_equal(line, "seven 7");
    ++*(int *)user;
}

static void test_log(void **state) {
    (void)state;
    int lines = 0;
    assert_false(sh_log_enabled(SH_LOG_ERROR));
    sh_log(SH_LOG_ERROR, "nobody listens");
    sh_set_log(count_lines, &lines, SH_LOG_INFO);
    assert_true(sh_log_enabled(SH_LOG_INFO));
    assert_false(sh_log_enabled(SH_LOG_DEBUG));
    sh_log(SH_LOG_INFO, "seven %d", 7);
    sh_log(SH_LOG_DEBUG, "seven %d", 7);
    assert_int_equal(lines, 1);
    sh_set_log(NULL, NULL, SH_LOG_ERROR);
}

static void test_names(void **state) {
    (void)state;
    assert_string_equal(sh_code_name(SH_OK), "ok");
    assert_string_equal(sh_code_name(SH_ERR_DEVICE_LOST), "device_lost");
    assert_string_equal(sh_code_name((enum sh_code)99), "unknown");
    assert_string_equal(sh_value_type_name(SH_VALUE_STRING), "str");
    assert_string_equal(sh_value_type_name((enum sh_value_type)13), "unknown");
    assert_true(sh_version()[0] != '\0');
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail),          cmocka_unit_test(test_fail_cut), cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_arithmetic),    cmocka_unit_test(test_memory),   cmocka_unit_test(test_half_to_float),
        cmocka_unit_test(test_float_to_half), cmocka_unit_test(test_bfloat),   cmocka_unit_test(test_log),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
