/* test_daemon_varlink.c - framing: both terminators, any split of the bytes, what is refused. */
#include "daemon/control/varlink.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct expectation {
    const char *message; /* NULL: FRAME_BAD */
};

/* Feeds `bytes` in pieces of `step` and checks that exactly these messages come out. */
static void feed(const char *bytes, size_t count, size_t step, const struct expectation *expected, size_t n_expected,
                 char terminator) {
    struct frame_reader reader = {0};
    size_t got = 0;
    bool bad = false;
    for (size_t at = 0; at < count && !bad; at += step) {
        assert_true(frame_reader_append(&reader, bytes + at, count - at < step ? count - at : step));
        for (;;) {
            char *message;
            size_t length;
            const char *why = NULL;
            enum frame_result result = frame_reader_next(&reader, &message, &length, &why);
            if (result == FRAME_NONE) break;
            assert_true(got < n_expected);
            if (result == FRAME_BAD) {
                assert_null(expected[got++].message);
                assert_non_null(why);
                bad = true;
                break;
            }
            assert_non_null(expected[got].message);
            assert_int_equal(length, strlen(message));
            assert_string_equal(message, expected[got++].message);
        }
    }
    assert_int_equal(got, n_expected);
    if (!bad && n_expected) assert_int_equal(reader.terminator, terminator);
    frame_reader_finish(&reader);
}

#define FEED(bytes, terminator, ...)                                                                                             \
    do {                                                                                                                         \
        const struct expectation expected[] = {__VA_ARGS__};                                                                     \
        for (size_t step = 1; step <= sizeof(bytes); step++)                                                                     \
            feed(bytes, sizeof(bytes) - 1, step, expected, sizeof expected / sizeof *expected, terminator);                      \
    } while (0)

static void test_nul(void **state) {
    (void)state;
    FEED("{\"a\":1}\0{\"b\":[2,{}]}\0", '\0', {"{\"a\":1}"}, {"{\"b\":[2,{}]}"});
    /* Line feeds are white space there, within, before and behind. */
    FEED("{\"a\":1}\0\n {\n\"b\":\n2}\n\0", '\0', {"{\"a\":1}"}, {"{\n\"b\":\n2}"});
}

static void test_line_feed(void **state) {
    (void)state;
    FEED("{\"a\":1}\n{\"b\":2}\n", '\n', {"{\"a\":1}"}, {"{\"b\":2}"});
    /* A person's message may have several lines, CRLF and blank lines. */
    FEED("\n{\n \"a\": {\n }\n}\r\n\r\n\n{\"b\":2} \n", '\n', {"{\n \"a\": {\n }\n}"}, {"{\"b\":2}"});
}

static void test_strings(void **state) {
    (void)state;
    FEED("{\"}{\\\"\\\\\":\"[[\"}\0{}\0", '\0', {"{\"}{\\\"\\\\\":\"[[\"}"}, {"{}"});
}

static void test_refused(void **state) {
    (void)state;
    FEED("[1]\n", '\n', {NULL});
    FEED("hello\n", '\n', {NULL});
    FEED("\0", '\n', {NULL});
    FEED("{\"a\":\0}", '\n', {NULL});
    FEED("{} {}\n", '\n', {NULL});
    FEED("{}x\0", '\n', {NULL});
    /* Once it is fixed, the other one does not end a message. */
    FEED("{}\n{}\0", '\n', {"{}"}, {NULL});
    FEED("{}}\n", '\n', {NULL});
}

static void test_depth(void **state) {
    (void)state;
    struct expectation refused[] = {{NULL}};
    char text[8 * FRAME_MAX_DEPTH];
    memset(text, '{', sizeof text);
    feed(text, FRAME_MAX_DEPTH, 7, NULL, 0, 0);
    feed(text, FRAME_MAX_DEPTH + 1, 7, refused, 1, 0);
}

/* One of exactly the limit passes, one byte more does not; the reader never asks for more than that. */
static void test_size(void **state) {
    (void)state;
    for (int over = 0; over <= 1; over++) {
        struct frame_reader reader = {0};
        size_t size = (size_t)FRAME_MAX_BYTES + (size_t)over; /* without the terminator */
        char *bytes = malloc(size + 1);
        assert_non_null(bytes);
        memset(bytes, ' ', size);
        bytes[0] = '{';
        bytes[size - 1] = '}';
        bytes[size] = '\n';
        size_t at = 0;
        enum frame_result result = FRAME_NONE;
        char *message;
        size_t length;
        const char *why;
        while (result == FRAME_NONE && at <= size) {
            size_t room = frame_reader_room(&reader);
            assert_true(room > 0);
            size_t n = size + 1 - at < room ? size + 1 - at : room;
            assert_true(frame_reader_append(&reader, bytes + at, n));
            at += n;
            result = frame_reader_next(&reader, &message, &length, &why);
        }
        assert_int_equal(result, over ? FRAME_BAD : FRAME_MESSAGE);
        if (!over) assert_int_equal(length, size);
        frame_reader_finish(&reader);
        free(bytes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nul),     cmocka_unit_test(test_line_feed), cmocka_unit_test(test_strings),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_depth),     cmocka_unit_test(test_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
