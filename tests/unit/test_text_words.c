/* Words before byte-level merging: what each kind of pre-tokenizer cuts, and that no text takes it more than a time that grows with
 * its length. */
#include "compute/text/pretokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static struct sh_pretokenizer *create(const char *name) {
    struct sh_pretokenizer *p;
    struct sh_pre_rules rules;
    struct sh_error err = {0};
    if (sh_pretokenizer_create(name, strlen(name), &p, &rules, &err) != SH_OK) fail_msg("%s", err.message);
    assert_string_equal(rules.name, name);
    return p;
}

/* Texts with a bar where they are cut. Found with the published expressions in another engine of regular expressions (the module
 * `regex` of Python). */
static void words(void **state) {
    (void)state;
    static const struct {
        const char *kind, *words;
    } cases[] = {
        {"superbpe", "In |1|234|567| of |12| years, |999| and |1|000|!"},
        {"superbpe", "x|\xC2\xB2" "12|345| |100\xC2\xB2| |\xD9\xA3|\xD9\xA4\xD9\xA5\xD9\xA6"},
        {"kimi-k2", "HTTPServer's| |\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E|\xE3\x81\xAEtext| |\xE6\xBC\xA2\xE5\xAD\x97|"
         " |123|45| \xC2\xAB|ok|\xC2\xBB\n\n| x"},
        {"kimi-k2", "\xE3\x80\x85\xE3\x80\x87|a|\xE6\xBC\xA2|B| \xCC\x81\xC3\xA9"},
        {"youtu", "\xED\x95\x9C\xEA\xB5\xAD\xEC\x96\xB4\xE3\x84\xB1|\xEF\xBC\x8C\xE3\x80\x81|"
         "\xE6\x97\xA5\xE6\x9C\xAC\xE3\x82\xAB\xE3\x83\x8A| Hello|World's| |1|2|3| |\xE3\x84\x85\xE3\x84\x86"},
        {"tiny_aya", "1|234|567| |123|45|a| |1|_|000| |99| Don't| |\xD9\xA3|\xD9\xA4\xD9\xA5\xD9\xA6"},
        {"afmoe", "ab|1|234|567|cd| (|12|)| |999|\xE0\xB8\x81\xE0\xB8\x82|\xED\x95\x9C|\xE6\xBC\xA2|x| it|'s"},
        {"jais-2", "It|'s| |123|4|    |  | x|     \n|  | y|  "},
        {"exaone-moe", "Two words here|,| a|1| b\xCC\x81" "c d|!/| \n\n|It|'s"},
        {"chameleon", "a|<|sentinel|:|1|2|>|IMGIMGABZ| b|\t|\t|c|    |d|  |e| |1|2|.|5|?|!"},
        {"llama-bpe", "It|'s| |123|45| DON|'T|\n\n| | x"},
        {"qwen2", "It|'s| |1|2|3|4|5|\n\n| | x"},
        {"gpt-2", "It|'s| 12345| DON|'|T| | x|\n"},
        {"gpt-4o", "HTTPServer's| |123|45| a|/b|//\n"},
        {"tekken", "HTTPServer|'s| |1|2|3|4|5| a|/b|//\n"},
    };
    size_t wrong = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_pretokenizer *p = create(cases[i].kind);
        struct sh_words cut = {0};
        struct sh_error err;
        char text[256], got[512], *end = text, *out = got;
        for (const char *c = cases[i].words; *c != 0; c++) {
            if (*c != '|') *end++ = *c;
        }
        assert_int_equal(sh_pretokenize(p, text, (size_t)(end - text), &cut, &err), SH_OK);
        const char *from = text;
        for (uint32_t k = 0; k < cut.count; k++) {
            if (k > 0) *out++ = '|';
            memcpy(out, from, cut.lengths[k]);
            out += cut.lengths[k];
            from += cut.lengths[k];
        }
        *out = 0;
        assert_ptr_equal(from, end);
        if (strcmp(got, cases[i].words) != 0) {
            print_error("%s\n  want %s\n  got  %s\n", cases[i].kind, cases[i].words, got);
            wrong++;
        }
        sh_words_free(&cut);
        sh_pretokenizer_destroy(p);
    }
    assert_int_equal(wrong, 0);
}

/* Long runs of one thing. What is quadratic takes minutes for them. */
static void long_runs(void **state) {
    (void)state;
    enum { LENGTH = 200000, SECONDS = 5 };
    static const char *const kinds[] = {
        "default", "gpt-2",  "llama-bpe", "qwen2",      "qwen35",     "deepseek-llm", "deepseek-coder", "deepseek-v3",
        "falcon",  "refact", "gpt-4o",    "tekken",     "bloom",      "viking",       "seed-coder",     "bailingmoe",
        "youtu",   "jais-2", "superbpe",  "exaone-moe", "chameleon",  "kimi-k2",      "tiny_aya",     "afmoe",
    };
    static const char *const parts[] = {"7", "a", "A", " ", "\n", "!", "ab cd ", "\xCC\x81", "\xE6\xBC\xA2", " \n", "IMG", "'"};
    char *text = malloc(LENGTH + 8);
    assert_non_null(text);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct sh_pretokenizer *p = create(kinds[k]);
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            struct sh_words cut = {0};
            struct sh_error err;
            size_t n = 0, total = 0;
            while (n < LENGTH) n += (size_t)(stpcpy(text + n, parts[i]) - (text + n));
            text[n++] = 'x'; /* what a look-ahead at the end of the run does not like */
            const clock_t begin = clock();
            assert_int_equal(sh_pretokenize(p, text, n, &cut, &err), SH_OK);
            const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
            if (seconds > SECONDS) fail_msg("%s: %.1f s for %zu bytes of \"%s\"", kinds[k], seconds, n, parts[i]);
            for (uint32_t w = 0; w < cut.count; w++) total += cut.lengths[w];
            assert_int_equal(total, n);
            sh_words_free(&cut);
        }
        sh_pretokenizer_destroy(p);
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(words), cmocka_unit_test(long_runs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
