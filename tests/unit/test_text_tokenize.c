/* Tokenising and detokenising against reference values of real vocabularies. */
#include "tests/unit/shared.h"

#include "compute/engine.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

static const char *const vocabularies[] = {
    "llama-spm", "phi-3",     "baichuan", "mistral-v3",   "tok512-noprefix", "gpt-2",     "gpt-neox", "mpt",
    "falcon",    "starcoder", "refact",   "deepseek-llm", "deepseek-coder",  "llama-bpe", "qwen2",    "gpt-4o",
    "bert-bge", "unigram-en", "unigram-ja",
};

static struct sh_vocab *open_vocab(const char *path) {
    struct sh_vocab *v = NULL;
    struct sh_error err = {0};
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s: %s", path, err.message);
    return v;
}

static void print_ids(const char *what, const int32_t *ids, size_t n) {
    print_message("    %s", what);
    for (size_t i = 0; i < n && i < 60; i++) print_message(" %d", ids[i]);
    print_message("\n");
}

static bool same_ids(const json_t *want, const int32_t *ids, size_t n) {
    if (json_array_size(want) != n) return false;
    for (size_t i = 0; i < n; i++) {
        if (json_integer_value(json_array_get(want, i)) != ids[i]) return false;
    }
    return true;
}

static int32_t *ids_of(const json_t *array, size_t *n) {
    *n = json_array_size(array);
    int32_t *ids = malloc((*n + 1) * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

/* The bytes that a case expects under `key`: `key_hex` if it is not valid UTF-8, else key, else the fallback. */
static char *expected(const json_t *c, const char *key, const char *fallback_key, size_t *n) {
    char hex_key[64];
    snprintf(hex_key, sizeof hex_key, "%s_hex", key);
    const json_t *hex = json_object_get(c, hex_key), *text = json_object_get(c, key);
    if (hex == NULL && text == NULL && fallback_key != NULL) return expected(c, fallback_key, NULL, n);
    if (hex != NULL) {
        const char *s = json_string_value(hex);
        *n = strlen(s) / 2;
        char *out = malloc(*n + 1);
        assert_non_null(out);
        for (size_t i = 0; i < *n; i++) {
            unsigned byte;
            assert_int_equal(sscanf(s + 2 * i, "%2x", &byte), 1);
            out[i] = (char)byte;
        }
        return out;
    }
    if (text == NULL) text = json_object_get(c, "text");
    if (text == NULL) return NULL;
    *n = json_string_length(text);
    char *out = malloc(*n + 1);
    assert_non_null(out);
    memcpy(out, json_string_value(text), *n + 1);
    return out;
}

static bool check_detokenize(const struct sh_vocab *v, const json_t *c, bool special, bool strip, const char *key,
                             const char *other) {
    size_t n, want_length, length;
    char *want = expected(c, key, other, &want_length);
    if (want == NULL) return true;
    int32_t *ids = ids_of(json_object_get(c, "ids"), &n);
    char *text;
    struct sh_error err;
    assert_int_equal(sh_detokenize(v, ids, n, special, strip, &text, &length, &err), SH_OK);
    const bool same = length == want_length && memcmp(text, want, length) == 0;
    if (!same) {
        print_ids(key, ids, n);
        print_message("    want \"%.200s\"\n    got  \"%.200s\"\n", want, text);
    }
    free(text);
    free(want);
    free(ids);
    return same;
}

static void reference_values(void **state) {
    char relative[128];
    snprintf(relative, sizeof relative, "tokenizers/ggml-vocab-%s.gguf", (const char *)*state);
    struct sh_vocab *v = open_vocab(TEST_SHARED(relative));
    snprintf(relative, sizeof relative, "tokenizers/ggml-vocab-%s.extra.json", (const char *)*state);
    json_error_t error;
    json_t *root = json_load_file(TEST_SHARED(relative), JSON_ALLOW_NUL, &error);
    if (root == NULL) fail_msg("%s: %s", relative, error.text);
    const bool prefixed = strcmp(sh_vocab_kind(v), "spm") == 0 || strcmp(sh_vocab_kind(v), "unigram") == 0;
    size_t index, wrong = 0, n;
    const json_t *c;
    assert_true(json_array_size(json_object_get(root, "cases")) > 300);
    json_array_foreach(json_object_get(root, "cases"), index, c) {
        const json_t *text = json_object_get(c, "text");
        const uint32_t flags = (json_is_true(json_object_get(c, "add_special")) ? (uint32_t)SH_TOKENIZE_SPECIAL : 0) |
                               (json_is_true(json_object_get(c, "parse_special")) ? (uint32_t)SH_TOKENIZE_PARSE : 0);
        int32_t *ids;
        struct sh_error err;
        assert_int_equal(sh_tokenize(v, json_string_value(text), json_string_length(text), flags, &ids, &n, &err), SH_OK);
        const json_t *alt = json_object_get(c, "ids_alt");
        if (!same_ids(json_object_get(c, "ids"), ids, n) && (alt == NULL || !same_ids(alt, ids, n))) {
            if (++wrong <= 5) {
                size_t want_n;
                int32_t *want = ids_of(json_object_get(c, "ids"), &want_n);
                print_message("  case %zu flags %u \"%.100s\"\n", index, flags, json_string_value(text));
                print_ids("want", want, want_n);
                print_ids("got ", ids, n);
                free(want);
            }
        }
        free(ids);
    }
    const char *const lists[] = {"cases", "detokenize"};
    for (size_t k = 0; k < 2; k++) {
        json_array_foreach(json_object_get(root, lists[k]), index, c) {
            bool right = check_detokenize(v, c, false, false, "pieces", NULL);
            right &= check_detokenize(v, c, true, false, "pieces_special", NULL);
            if (prefixed) { /* BPE's "detok" also cleans up spaces before punctuation, which loses text: not done here */
                right &= check_detokenize(v, c, false, true, "detok", "pieces");
                right &= check_detokenize(v, c, true, true, "detok_special", "pieces_special");
            }
            if (!right && ++wrong <= 5) print_message("  %s %zu\n", lists[k], index);
        }
    }
    json_decref(root);
    sh_vocab_close(v);
    assert_int_equal(wrong, 0);
}

/* The texts and ids that come with the vocabularies: separated by a line, one line of ids each. */
static void bundled_texts(void **state) {
    char relative[128];
    snprintf(relative, sizeof relative, "tokenizers/ggml-vocab-%s.gguf.inp", (const char *)*state);
    size_t in_length, out_length;
    char *in = test_read_file(TEST_SHARED(relative), &in_length);
    snprintf(relative, sizeof relative, "tokenizers/ggml-vocab-%s.gguf.out", (const char *)*state);
    char *out = test_read_file(TEST_SHARED(relative), &out_length);
    snprintf(relative, sizeof relative, "tokenizers/ggml-vocab-%s.gguf", (const char *)*state);
    struct sh_vocab *v = open_vocab(TEST_SHARED(relative));
    static const char mark[] = "\n__ggml_vocab_test__\n";
    const char *text = in, *line = out, *const in_end = in + in_length, *const out_end = out + out_length;
    size_t cases = 0, wrong = 0;
    while (text <= in_end && line < out_end) {
        const char *end = memmem(text, (size_t)(in_end - text), mark, sizeof mark - 1);
        if (end == NULL) end = in_end;
        const char *line_end = memchr(line, '\n', (size_t)(out_end - line));
        if (line_end == NULL) line_end = out_end;
        int32_t want[4096];
        size_t want_n = 0, n;
        for (const char *p = line; p < line_end;) {
            char *after;
            const long id = strtol(p, &after, 10);
            if (after == p || after > line_end) break;
            assert_true(want_n < 4096);
            want[want_n++] = (int32_t)id;
            p = after;
        }
        int32_t *ids;
        struct sh_error err;
        assert_int_equal(sh_tokenize(v, text, (size_t)(end - text), 0, &ids, &n, &err), SH_OK);
        if (n != want_n || memcmp(ids, want, n * sizeof *ids) != 0) {
            if (++wrong <= 3) {
                print_message("  case %zu \"%.*s\"\n", cases, (int)(end - text), text);
                print_ids("want", want, want_n);
                print_ids("got ", ids, n);
            }
        }
        if (strcmp(sh_vocab_kind(v), "wpm") != 0) { /* which lowers the case */
            char *back;
            size_t length;
            assert_int_equal(sh_detokenize(v, ids, n, true, true, &back, &length, &err), SH_OK);
            if (length != (size_t)(end - text) || memcmp(back, text, length) != 0) {
                if (++wrong <= 3) print_message("  case %zu \"%.*s\"\n  back \"%s\"\n", cases, (int)(end - text), text, back);
            }
            free(back);
        }
        free(ids);
        cases++;
        text = end + sizeof mark - 1;
        line = line_end + 1;
    }
    free(in);
    free(out);
    sh_vocab_close(v);
    assert_true(cases > 40);
    assert_int_equal(wrong, 0);
}

/* No vocabulary of the reference data is left out here. */
static void all_are_listed(void **state) {
    (void)state;
    char pattern[4096];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.extra.json", TEST_SHARED("tokenizers"));
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        const char *name = strrchr(found.gl_pathv[i], '/') + strlen("/ggml-vocab-");
        bool listed = false;
        for (size_t k = 0; k < sizeof vocabularies / sizeof *vocabularies; k++) {
            const size_t n = strlen(vocabularies[k]);
            listed |= strncmp(name, vocabularies[k], n) == 0 && strcmp(name + n, ".extra.json") == 0;
        }
        if (!listed) fail_msg("%s is not tested", found.gl_pathv[i]);
    }
    assert_int_equal(found.gl_pathc, sizeof vocabularies / sizeof *vocabularies);
    globfree(&found);
}

int main(void) {
    static const char *const without_texts[] = {"baichuan", "mistral-v3", "tok512-noprefix", "gpt-neox",
                                               "gpt-4o",   "unigram-en", "unigram-ja"};
    struct CMUnitTest tests[2 * sizeof vocabularies / sizeof *vocabularies + 1];
    static char names[2 * sizeof vocabularies / sizeof *vocabularies][64];
    size_t count = 0;
    for (size_t i = 0; i < sizeof vocabularies / sizeof *vocabularies; i++) {
        snprintf(names[count], sizeof names[count], "reference_values %s", vocabularies[i]);
        tests[count] = (struct CMUnitTest){names[count], reference_values, NULL, NULL, (void *)(uintptr_t)vocabularies[i]};
        count++;
        bool bundled = true;
        for (size_t k = 0; k < sizeof without_texts / sizeof *without_texts; k++) {
            bundled &= strcmp(without_texts[k], vocabularies[i]) != 0;
        }
        if (!bundled) continue;
        snprintf(names[count], sizeof names[count], "bundled_texts %s", vocabularies[i]);
        tests[count] = (struct CMUnitTest){names[count], bundled_texts, NULL, NULL, (void *)(uintptr_t)vocabularies[i]};
        count++;
    }
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(all_are_listed);
    return _cmocka_run_group_tests("text_tokenize", tests, count, NULL, NULL);
}
