/* Streaming text: whole code points, stop strings across token boundaries. Compared with a slow and simple model. */
#include "tests/unit/shared.h"

#include "compute/engine.h"
#include "compute/text/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_TEXT = 1 << 16, MAX_TOKENS = 200, MAX_STOPS = 5 };

/* ---- the model: everything at once, by definition ------------------------------------------------------------ */

/* Length of the code point at s by arithmetic on its value; 0: there is none. */
static size_t model_code_point(const unsigned char *s, size_t n) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t need = s[0] < 0x80                   ? 1
                        : s[0] >= 0xC0 && s[0] < 0xE0 ? 2
                        : s[0] >= 0xE0 && s[0] < 0xF0 ? 3
                        : s[0] >= 0xF0 && s[0] < 0xF8 ? 4
                                                      : 0;
    if (need < 2 || need > n) return need == 1 ? 1 : 0;
    uint32_t value = s[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        value = value * 64 + (s[i] & 0x3Fu);
    }
    return value >= least[need] && value <= 0x10FFFF && (value < 0xD800 || value > 0xDFFF) ? need : 0;
}

/* Could more bytes complete these n (1 to 3)? Tries all second bytes that make a difference. */
static bool model_is_beginning(const unsigned char *s, size_t n) {
    static const unsigned char fill[] = {0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF};
    for (size_t f = 0; f < sizeof fill; f++) {
        unsigned char whole[4] = {0x80, 0x80, 0x80, 0x80};
        memcpy(whole, s, n);
        if (n == 1) whole[1] = fill[f];
        for (size_t length = n + 1; length <= 4; length++) {
            if (model_code_point(whole, length) == length) return true;
        }
    }
    return false;
}

static size_t model_repair(const char *in, size_t n, char *out) {
    size_t made = 0;
    const unsigned char *s = (const unsigned char *)in;
    for (size_t i = 0; i < n;) {
        size_t length = model_code_point(s + i, n - i);
        if (length > 0) {
            memcpy(out + made, in + i, length);
            made += length;
        } else {
            memcpy(out + made, "\xEF\xBF\xBD", 3);
            made += 3;
            length = 1;
            while (length < 3 && i + length < n && model_is_beginning(s + i, length + 1)) length++;
        }
        i += length;
    }
    return made;
}

/* Cut before the stop that is complete first, the longest of those that end together. -1: none. */
static int model_stop(const char *text, size_t n, const char *const *stops, uint32_t n_stops, size_t *cut) {
    for (size_t end = 1; end <= n; end++) {
        int which = -1;
        size_t longest = 0;
        for (uint32_t k = 0; k < n_stops; k++) {
            const size_t length = strlen(stops[k]);
            if (length > longest && length <= end && memcmp(text + end - length, stops[k], length) == 0) {
                longest = length;
                which = (int)k;
            }
        }
        if (which >= 0) {
            *cut = end - longest;
            return which;
        }
    }
    *cut = n;
    return -1;
}

/* ---- comparing -------------------------------------------------------------------------------------------------- */

static char raw[MAX_TEXT], whole[3 * MAX_TEXT], shown[3 * MAX_TEXT];

static size_t join(const struct sh_vocab *v, const int32_t *ids, size_t n, bool special) {
    size_t total = 0, length;
    for (size_t i = 0; i < n; i++) {
        const char *piece = sh_vocab_piece(v, ids[i], special, &length);
        assert_true(total + length <= MAX_TEXT);
        memcpy(raw + total, piece, length);
        total += length;
    }
    return total;
}

static void compare(const struct sh_vocab *v, const int32_t *ids, size_t n, bool special, const char *const *stops,
                    uint32_t n_stops) {
    size_t cut, length, total = 0;
    const size_t want = model_repair(raw, join(v, ids, n, special), whole);
    const int which = model_stop(whole, want, stops, n_stops, &cut);

    struct sh_text_stream *s;
    struct sh_error err;
    assert_int_equal(sh_text_stream_create(v, stops, n_stops, special, &s, &err), SH_OK);
    bool stopped = false;
    const char *text;
    for (size_t i = 0; i < n && !stopped; i++) {
        uint32_t index = 99;
        stopped = sh_text_stream_push(s, ids[i], &text, &length, &index);
        assert_true(sh_utf8_valid(text, length));
        memcpy(shown + total, text, length);
        total += length;
        if (stopped) assert_int_equal(index, which);
    }
    const bool cut_off = which >= 0 && !stopped; /* only the replacement of an unfinished character completes it */
    if (cut_off) assert_int_equal(cut + strlen(stops[which]), want);
    if (stopped) assert_true(which >= 0);
    sh_text_stream_finish(s, &text, &length);
    assert_true(sh_utf8_valid(text, length));
    if (stopped) assert_int_equal(length, 0);
    memcpy(shown + total, text, length);
    total += length;
    sh_text_stream_destroy(s);
    assert_int_equal(total, cut);
    assert_memory_equal(shown, whole, cut);
}

static const char *const sample = "Once upon a time, na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E "
                                  "\xF0\x9F\x99\x82\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x94\xAC "
                                  "aaaaabaaab ababababc \n\n\nUser: stop </s> ### END ###";

/* A stop string taken out of the text at code point boundaries, sometimes with another end. */
static void random_stop(struct test_rng *rng, const char *text, size_t n, char out[64]) {
    size_t at = n > 0 ? test_random(rng) % n : 0, length = 1 + test_random(rng) % 12;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
    while (at + length < n && ((unsigned char)text[at + length] & 0xC0) == 0x80) length++;
    if (at + length > n) length = n - at;
    memcpy(out, text + at, length);
    out[length] = '\0';
    if (memchr(out, '\0', length) != NULL) out[strlen(out)] = '\0';
    if (test_random(rng) % 4 == 0) strcpy(out + strlen(out), "~");
}

static void random_sequences(const struct sh_vocab *v, uint64_t seed, uint32_t rounds) {
    struct test_rng rng = {seed};
    static char stop_text[MAX_STOPS][64];
    uint32_t with_stop = 0;
    int32_t *words;
    size_t n_words;
    struct sh_error err;
    assert_int_equal(sh_tokenize(v, sample, strlen(sample), 0, &words, &n_words, &err), SH_OK);
    for (uint32_t round = 0; round < rounds; round++) {
        int32_t ids[MAX_TOKENS];
        size_t n = 0;
        const size_t want = 1 + test_random(&rng) % 60;
        while (n < want) {
            if (test_random(&rng) % 2 == 0) { /* a run of the sample: multi-byte characters from several tokens */
                const size_t at = test_random(&rng) % n_words;
                for (size_t k = 0; k < 8 && at + k < n_words && n < MAX_TOKENS; k++) ids[n++] = words[at + k];
            } else {
                ids[n++] = (int32_t)(test_random(&rng) % sh_vocab_size(v));
            }
        }
        const bool special = test_random(&rng) % 2 == 0;
        const size_t length = model_repair(raw, join(v, ids, n, special), whole);
        const char *stops[MAX_STOPS];
        const uint32_t n_stops = (uint32_t)(test_random(&rng) % (MAX_STOPS + 1));
        for (uint32_t k = 0; k < n_stops; k++) {
            random_stop(&rng, whole, length, stop_text[k]);
            stops[k] = stop_text[k];
        }
        size_t cut;
        with_stop += model_stop(whole, length, stops, n_stops, &cut) >= 0;
        compare(v, ids, n, special, stops, n_stops);
    }
    free(words);
    assert_true(with_stop > rounds / 4); /* the test tests something */
    assert_true(with_stop < rounds);
}

static struct sh_vocab *open_vocab(const char *path) {
    struct sh_vocab *v = NULL;
    struct sh_error err = {0};
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s: %s", path, err.message);
    return v;
}

static void random_spm(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-llama-spm.gguf"));
    random_sequences(v, 1, 3000);
    sh_vocab_close(v);
}

static void random_small_spm(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-tok512-noprefix.gguf"));
    random_sequences(v, 2, 3000); /* of 512 tokens 256 are bytes: mostly ill-formed text */
    sh_vocab_close(v);
}

static void random_bpe(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-gpt-2.gguf"));
    random_sequences(v, 3, 3000);
    sh_vocab_close(v);
}

/* The byte tokens of Llama's vocabulary are ids 3 to 258: any byte sequence can be written. */
static void bytes_of(const char *text, int32_t *ids) {
    for (size_t i = 0; text[i] != '\0'; i++) ids[i] = 3 + (unsigned char)text[i];
}

static void by_hand(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-llama-spm.gguf"));
    static const struct {
        const char *text;
        const char *stops[3];
        const char *want;
        int which;
    } cases[] = {
        {"hello world", {0}, "hello world", -1},
        {"hello world", {"o w"}, "hell", 0},
        {"hello world", {"world!"}, "hello world", -1}, /* held back, then not a stop */
        {"aaab", {"aab"}, "a", 0},                      /* begins inside what is held back */
        {"abcabd", {"abd"}, "abc", 0},
        {"xabcd", {"abce", "bcd"}, "xa", 1},    /* inside a longer one that fails */
        {"xabcd", {"cd", "bcd", "d"}, "xa", 1}, /* end together: the longest */
        {"xabcd", {"abcd", "bc"}, "xa", 1},     /* complete first */
        {"one two", {"", "two"}, "one ", 1},    /* empty ones never match */
        {"one two", {""}, "one two", -1},
        {"stop", {"stop"}, "", 0},
        {"\xC3\xA9\xF0\x9F\x99\x82!", {"!"}, "\xC3\xA9\xF0\x9F\x99\x82", 0},
        {"a\xF0\x9F\x99", {0}, "a\xEF\xBF\xBD", -1}, /* the end is missing */
        {"a\xF0\x9F\x99z", {"z"}, "a\xEF\xBF\xBD", 0},
        {"\xFF\xC0\xAF.", {0}, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD.", -1},
        {"\xED\xA0\x80", {0}, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", -1}, /* a surrogate */
        {"\xE6\x97\xA5\xE6\x9C\xAC", {"\xE6\x9C\xAC"}, "\xE6\x97\xA5", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t n_stops = 0;
        while (n_stops < 3 && cases[i].stops[n_stops] != NULL) n_stops++;
        struct sh_text_stream *s;
        struct sh_error err;
        assert_int_equal(sh_text_stream_create(v, cases[i].stops, n_stops, false, &s, &err), SH_OK);
        int32_t ids[64];
        bytes_of(cases[i].text, ids);
        char got[256];
        size_t total = 0, length;
        const char *text;
        uint32_t index = 99;
        bool stopped = false;
        for (size_t k = 0; k < strlen(cases[i].text) && !stopped; k++) {
            stopped = sh_text_stream_push(s, ids[k], &text, &length, &index);
            memcpy(got + total, text, length);
            total += length;
        }
        sh_text_stream_finish(s, &text, &length);
        memcpy(got + total, text, length);
        got[total + length] = '\0';
        assert_string_equal(got, cases[i].want);
        assert_int_equal(stopped ? (int)index : -1, cases[i].which);
        sh_text_stream_destroy(s);
    }
    struct sh_text_stream *s;
    struct sh_error err;
    const char *const bad[] = {"ok", "\xC3"};
    assert_int_equal(sh_text_stream_create(v, bad, 2, false, &s, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "stop string 1"));
    sh_text_stream_destroy(NULL);
    sh_vocab_close(v);
}

/* Nothing waits longer than it must: without stops a whole character leaves with the token that completes it. */
static void no_delay(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-llama-spm.gguf"));
    struct sh_text_stream *s;
    struct sh_error err;
    const char *const stops[] = {"\n\nUser:"};
    assert_int_equal(sh_text_stream_create(v, stops, 1, false, &s, &err), SH_OK);
    int32_t ids[16];
    bytes_of("a\xF0\x9F\x99\x82\n\nUx", ids);
    static const size_t lengths[] = {1, 0, 0, 0, 4, 0, 0, 0, 4};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        const char *text;
        size_t length;
        uint32_t index;
        assert_false(sh_text_stream_push(s, ids[i], &text, &length, &index));
        assert_int_equal(length, lengths[i]);
    }
    sh_text_stream_destroy(s);
    sh_vocab_close(v);
}

/* Stops of the first `held` bytes, one token each, are not found, nor those that begin there; nothing of them is held back. */
static void held_off(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-llama-spm.gguf"));
    static const char text[] = "xabcabcabx";
    static const char *const stops[] = {"abc"};
    static const size_t ends[] = {1, 1, 4, 4, 4, 10}; /* by `held`: where the shown text ends */
    int32_t ids[sizeof text];
    bytes_of(text, ids);
    for (size_t held = 0; held < sizeof ends / sizeof ends[0]; held++) {
        struct sh_text_stream *s;
        struct sh_error err;
        const char *part;
        size_t length, total = 0;
        bool stopped = false;
        assert_int_equal(sh_text_stream_create(v, stops, 1, false, &s, &err), SH_OK);
        for (size_t i = 0; i < strlen(text) && !stopped; i++) {
            uint32_t index;
            sh_text_stream_hold_off_stops(s, i < held);
            stopped = sh_text_stream_push(s, ids[i], &part, &length, &index);
            memcpy(shown + total, part, length);
            total += length;
            if (i < held) assert_int_equal(total, i + 1);
        }
        const size_t end = ends[held];
        sh_text_stream_finish(s, &part, &length);
        memcpy(shown + total, part, length);
        total += length;
        assert_int_equal(stopped, end < strlen(text));
        assert_int_equal(total, end);
        assert_memory_equal(shown, text, end);
        sh_text_stream_destroy(s);
    }
    sh_vocab_close(v);
}

/* Control tokens that are to be shown are written, the others are not; their text may be, or end, a stop string. */
static void shown_tokens(void **state) {
    (void)state;
    struct sh_vocab *v = open_vocab(TEST_SHARED("tokenizers/ggml-vocab-llama-spm.gguf"));
    struct sh_error err;
    int32_t ids[16];
    bytes_of("ab", ids + 1);
    ids[0] = 1, ids[3] = 2, ids[4] = 1; /* <s> a b </s> <s> */
    static const struct {
        int32_t shown[2];
        uint32_t n_shown;
        const char *stop, *want;
    } cases[] = {
        {{0}, 0, "none", "ab"},          {{2}, 1, "none", "ab</s>"}, {{2, 1}, 2, "none", "<s>ab</s><s>"},
        {{1, 97}, 2, "b<", "<s>a"},      {{2}, 1, "b</s>", "a"},     {{2}, 1, "b<s>", "ab</s>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_text_stream *s;
        const char *text;
        size_t length, total = 0;
        uint32_t index;
        bool stopped = false;
        assert_int_equal(sh_text_stream_create(v, &cases[i].stop, 1, false, &s, &err), SH_OK);
        assert_int_equal(sh_text_stream_show(s, (const int32_t[]){1, 2}, 2, &err), SH_OK); /* only the last call counts */
        assert_int_equal(sh_text_stream_show(s, cases[i].shown, cases[i].n_shown, &err), SH_OK);
        for (size_t k = 0; k < 5 && !stopped; k++) {
            stopped = sh_text_stream_push(s, ids[k], &text, &length, &index);
            memcpy(shown + total, text, length);
            total += length;
        }
        sh_text_stream_finish(s, &text, &length);
        memcpy(shown + total, text, length);
        total += length;
        assert_int_equal(total, strlen(cases[i].want));
        assert_memory_equal(shown, cases[i].want, total);
        sh_text_stream_destroy(s);
    }
    struct sh_text_stream *s;
    assert_int_equal(sh_text_stream_create(v, NULL, 0, false, &s, &err), SH_OK);
    assert_int_equal(sh_text_stream_show(s, (const int32_t[]){5, 1 << 30}, 2, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "shown token 1"));
    assert_int_equal(sh_text_stream_show(s, (const int32_t[]){-1}, 1, &err), SH_ERR_INVALID);
    sh_text_stream_destroy(s);
    sh_vocab_close(v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shown_tokens),
        cmocka_unit_test(by_hand),          cmocka_unit_test(held_off),   cmocka_unit_test(no_delay),   cmocka_unit_test(random_spm),
        cmocka_unit_test(random_small_spm), cmocka_unit_test(random_bpe),
    };
    return cmocka_run_group_tests_name("text_stream", tests, NULL, NULL);
}
