/* Text of any bytes as JSON and as names; distances of names. */
#include "daemon/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void assert_json(const char *bytes, size_t length, const char *want, size_t want_length) {
    json_t *string = json_bytes(bytes, length);
    assert_non_null(string);
    assert_int_equal(json_string_length(string), want_length);
    assert_memory_equal(json_string_value(string), want, want_length);
    json_decref(string);
}

static void test_bytes(void **state) {
    (void)state;
    assert_json("", 0, "", 0);
    assert_json("a\0b", 3, "a\0b", 3);
    assert_json("\xc3\xb6\xff!", 4, "\xc3\xb6\xef\xbf\xbd!", 6);
    assert_json("\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 9); /* a surrogate */
    assert_json("x\xe2\x82", 3, "x\xef\xbf\xbd\xef\xbf\xbd", 7);               /* cut short */
}

static void assert_exact(const char *text, const char *want) {
    json_error_t err;
    json_t *value = json_loads(text, JSON_DECODE_ANY, &err);
    assert_non_null(value);
    char *out = json_exact(value);
    assert_string_equal(out, want);
    free(out);
    json_decref(value);
}

static void test_exact(void **state) {
    (void)state;
    assert_exact("{\"b\": [0.1, 1e300, -2.5], \"a\": 3}", "{\"b\":[0.1,1e300,-2.5],\"a\":3}");
    assert_exact("[0.1, 0.30000000000000004]", "[0.10000000000000001,0.30000000000000004]");
    assert_exact("1.0", "1.0");
    assert_exact("\"\\u00e9\\u0001/\"", "\"\xc3\xa9\\u0001/\"");
    assert_exact("9223372036854775807", "9223372036854775807");
}

static void test_clean(void **state) {
    (void)state;
    char text[] = "bad\xff\xfename \xe2\x82\xac \xc3";
    text_clean(text);
    assert_string_equal(text, "bad??name \xe2\x82\xac ?");
}

static void test_distance(void **state) {
    (void)state;
    assert_int_equal(text_distance("", ""), 0);
    assert_int_equal(text_distance("kitten", "sitting"), 3);
    assert_int_equal(text_distance("", "abc"), 3);
    char longest[TEXT_DISTANCE_MAX + 1];
    memset(longest, 'x', TEXT_DISTANCE_MAX);
    longest[TEXT_DISTANCE_MAX] = 0;
    assert_int_equal(text_distance("x", longest), UINT32_MAX);
    assert_int_equal(text_distance("x", longest + 1), TEXT_DISTANCE_MAX - 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_clean),
        cmocka_unit_test(test_distance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
