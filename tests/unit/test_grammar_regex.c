/* Regular expressions: what they take, against PCRE2 on random texts, expressions and walks; refusals by name; hostile ones. */
#include "tests/unit/grammar_texts.h"

#include "compute/grammar/charset.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})
#define TAKES(pattern, yes, no) grammar_check(SH_GRAMMAR_REGEX, pattern, yes, no)
#define REFUSED(pattern, code, part) grammar_refused(SH_GRAMMAR_REGEX, pattern, code, part)

static void test_characters(void **state) {
    (void)state;
    TAKES("a.c",
          LIST("abc",
               "a\xC3\xA9"
               "c",
               "a\tc"),
          LIST("ac", "a\nc", "a\rc",
               "a\xE2\x80\xA8"
               "c",
               "abbc"));
    TAKES("\\d\\D\\w\\W\\s\\S", LIST("1aa- a", "0-_ \xC2\xA0\xC3\xA9"), LIST("aaa- a", "11a- a", "1aaa a", "1aa-aa"));
    TAKES("\\n\\t\\r\\v\\f\\0\\cA\\x41\\u00e9\\u{1F600}\\ud83d\\ude00", NULL, LIST("n"));
    TAKES("\\x41\\u00e9\\u{1F600}\\ud83d\\ude01\\cJ", LIST("A\xC3\xA9\xF0\x9F\x98\x80\xF0\x9F\x98\x81\n"), LIST("A"));
    TAKES("\\.\\*\\+\\?\\(\\)\\[\\]\\{\\}\\^\\$\\|\\\\\\/\\-\\_", LIST(".*+?()[]{}^$|\\/-_"), LIST(".*"));
    TAKES("[a-c\\d_-]", LIST("a", "c", "5", "_", "-"), LIST("d", "", "\\"));
    TAKES("[^a-c\\s]", LIST("d", "\xC3\xA9"), LIST("a", " ", "\n", ""));
    TAKES("[.*+?$|(){}]", LIST(".", "$", "|", "{"), LIST("a"));
    TAKES("[\\b]", LIST("\b"), LIST("b"));
    TAKES("[^]", LIST("a", "\n", "\xF4\x8F\xBF\xBF"), LIST(""));
    TAKES("a|[]", LIST("a"), LIST(""));
    TAKES("a{x}b]c}", LIST("a{x}b]c}"), LIST("abc"));
    TAKES("\\p{Lu}\\p{Ll}\\P{L}", LIST("Ab1", "\xC3\x89\xC3\xA9-"), LIST("ab1", "Abc"));
    TAKES("[\\p{Script=Greek}\\p{gc=Nd}]+\\p{Letter}",
          LIST("\xCE\xB1"
               "5z"),
          LIST("az"));
    TAKES("[^\\p{ASCII}]", LIST("\xC3\xA9"), LIST("a"));
}

static void test_structure(void **state) {
    (void)state;
    TAKES("", LIST(""), LIST("a"));
    TAKES("(a|b|)c", LIST("ac", "bc", "c"), LIST("abc"));
    TAKES("(?:ab)+(?<name>c)?", LIST("ab", "ababc"), LIST("", "c"));
    TAKES("a*b+c?d{2}e{1,}f{0,2}", LIST("bddee", "aabbcddeff"), LIST("bde", "bddefff"));
    TAKES("a*?b+?c??d{1,2}?", LIST("bd", "aabcdd"), LIST("ad"));
    TAKES("((a|b)(c|d)){2}", LIST("acbd", "adad"), LIST("ac", "abcd"));
    TAKES("^abc$", LIST("abc"), LIST("ab"));
    TAKES("^a|b$", LIST("a", "b"), LIST("ab"));
    TAKES("(^a|b)(c|d$)", LIST("ac", "bd", "ad"), LIST("c"));
    TAKES("a(^b|c)", LIST("ac"), LIST("ab"));
    TAKES("(a|b$)c*", LIST("acc", "b", "a"), LIST("bc"));
    TAKES("(a?){1000}", LIST("", "aaaa"), LIST("b"));
}

static void test_refused(void **state) {
    (void)state;
    REFUSED("(?=a)b", SH_ERR_UNSUPPORTED, "character 1: look-around");
    REFUSED("a(?!b)", SH_ERR_UNSUPPORTED, "character 2: look-around");
    REFUSED("(?<=a)b", SH_ERR_UNSUPPORTED, "look-around");
    REFUSED("(?<!a)b", SH_ERR_UNSUPPORTED, "look-around");
    REFUSED("(a)\\1", SH_ERR_UNSUPPORTED, "character 4: back references");
    REFUSED("(?<x>a)\\k<x>", SH_ERR_UNSUPPORTED, "back references");
    REFUSED("\\bword", SH_ERR_UNSUPPORTED, "word boundaries (\\b)");
    REFUSED("a\\B", SH_ERR_UNSUPPORTED, "word boundaries (\\B)");
    REFUSED("(?i)a", SH_ERR_UNSUPPORTED, "kind of group");
    REFUSED("(?P<x>a)", SH_ERR_UNSUPPORTED, "kind of group");
    REFUSED("(?>a)", SH_ERR_UNSUPPORTED, "kind of group");
    REFUSED("\\p{Nonsense}", SH_ERR_UNSUPPORTED, "\\p");
    REFUSED("\\p{Lu", SH_ERR_INVALID, "no closing '}'");
    REFUSED("\\pL", SH_ERR_INVALID, "'{'");
    REFUSED("\\A", SH_ERR_INVALID, "not of ECMA-262");
    REFUSED("\\Z", SH_ERR_INVALID, "not of ECMA-262");
    REFUSED("\\h", SH_ERR_INVALID, "not of ECMA-262");
    REFUSED("\\01", SH_ERR_INVALID, "octal");
    REFUSED("\\x4", SH_ERR_INVALID, "two hexadecimal");
    REFUSED("\\u12", SH_ERR_INVALID, "hexadecimal");
    REFUSED("\\u{110000}", SH_ERR_INVALID, "hexadecimal");
    REFUSED("\\c1", SH_ERR_INVALID, "letter");
    REFUSED("a\\", SH_ERR_INVALID, "backslash at the end");
    REFUSED("(a", SH_ERR_INVALID, "character 1: this '(' has no closing");
    REFUSED("a)", SH_ERR_INVALID, "character 2: this ')' closes nothing");
    REFUSED("[a", SH_ERR_INVALID, "no closing ']'");
    REFUSED("[z-a]", SH_ERR_INVALID, "before its beginning");
    REFUSED("[\\d-z]", SH_ERR_INVALID, "a range from or to a class");
    REFUSED("*a", SH_ERR_INVALID, "nothing before this quantifier");
    REFUSED("a**", SH_ERR_INVALID, "two quantifiers");
    REFUSED("a{2,1}", SH_ERR_INVALID, "at least more");
    REFUSED("a{2000000}", SH_ERR_LIMIT, "repetitions");
    REFUSED("^*", SH_ERR_INVALID, "an anchor");
    REFUSED("\xC3\xA9\xFF", SH_ERR_INVALID, "character 2: this is no UTF-8");
    REFUSED("(?<a-b>c)", SH_ERR_INVALID, "group's name");
    REFUSED("[]", SH_ERR_INVALID, "no text");
    REFUSED("a^b", SH_ERR_INVALID, "no text");
}

static void test_hostile(void **state) {
    (void)state;
    char *text = malloc(100001);
    assert_non_null(text);
    memset(text, '(', 100000);
    text[100000] = 0;
    REFUSED(text, SH_ERR_LIMIT, "nested too deeply");
    free(text);
    TAKES("(((a{1000}){1000}){1000}){1000}", NULL, LIST("a"));
    TAKES("(((){1000}){1000}){1000}", LIST(""), LIST("a"));
    TAKES("(a+)+b", LIST("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"), LIST("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
    REFUSED("(((x^|a){1000}){1000}){1000}", SH_ERR_UNSUPPORTED, "^ may stand only at the beginning");
}

/* ---- against PCRE2 ---------------------------------------------------------------------------------------------------- */

/* The same language in PCRE2's syntax, on the letters that the random expressions have. */
static pcre2_code *oracle(const char *pattern, bool search) {
    char whole[1200];
    snprintf(whole, sizeof whole, search ? "(?:%s)" : "\\A(?:%s)\\z", pattern);
    int number;
    PCRE2_SIZE offset;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &number, &offset, NULL);
    if (re == NULL) fail_msg("PCRE2 does not take %s", whole);
    return re;
}

static bool oracle_takes(const pcre2_code *re, const char *text, size_t length) {
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    const int found = pcre2_match(re, (PCRE2_SPTR)text, length, 0, 0, data, NULL);
    pcre2_match_data_free(data);
    assert_true(found >= 0 || found == PCRE2_ERROR_NOMATCH);
    return found >= 0;
}

struct random_pattern {
    struct test_rng *rng;
    char text[1000];
    size_t n;
    bool anchors;
};

static void add(struct random_pattern *p, const char *text) {
    const size_t n = strlen(text);
    assert_true(p->n + n < sizeof p->text);
    memcpy(p->text + p->n, text, n + 1);
    p->n += n;
}

static void random_choice(struct random_pattern *p, uint32_t depth) {
    static const char *const atoms[] = {"a", "b", "c", "\xC3\xA9", "[ab]", "[^b]", ".", "\\d", "\\w", "1", "[a-c1]"};
    static const char *const quantifiers[] = {"*", "+", "?", "{2}", "{1,3}", "{0,2}", "*?", "{2,}"};
    for (uint64_t alternatives = 1 + test_random(p->rng) % 2; alternatives > 0; alternatives--) {
        for (uint64_t terms = test_random(p->rng) % 4; terms > 0; terms--) {
            if (p->anchors && test_random(p->rng) % 8 == 0) {
                add(p, test_random(p->rng) % 2 ? "^" : "$");
                continue;
            }
            if (depth > 0 && test_random(p->rng) % 3 == 0) {
                add(p, test_random(p->rng) % 2 ? "(" : "(?:");
                random_choice(p, depth - 1);
                add(p, ")");
            } else {
                add(p, atoms[test_random(p->rng) % SH_COUNT(atoms)]);
            }
            if (test_random(p->rng) % 3 == 0) add(p, quantifiers[test_random(p->rng) % SH_COUNT(quantifiers)]);
        }
        if (alternatives > 1) add(p, "|");
    }
}

static size_t random_text(struct test_rng *rng, char *out) {
    static const char *const letters[] = {"a", "b", "c", "\xC3\xA9", "1", "\n", "-"};
    size_t n = 0;
    for (uint64_t k = test_random(rng) % 7; k > 0; k--) {
        const char *letter = letters[test_random(rng) % SH_COUNT(letters)];
        memcpy(out + n, letter, strlen(letter));
        n += strlen(letter);
    }
    return n;
}

static struct sh_grammar *search_grammar(const char *pattern) {
    struct sh_gr *gr = sh_gr_create();
    struct sh_error err = {0};
    struct sh_grammar *g = NULL;
    sh_gr_expr root;
    assert_non_null(gr);
    if (sh_gr_regex(gr, pattern, strlen(pattern), false, true, &root, &err) != SH_OK) fail_msg("%s: %s", pattern, err.message);
    const enum sh_code code = sh_gr_compile(gr, root, grammar_vocab(), &g, &err);
    if (code != SH_OK && strstr(err.message, "no text") == NULL) fail_msg("%s: %s", pattern, err.message);
    sh_gr_destroy(gr);
    return code == SH_OK ? g : NULL;
}

/* As an expression, and as an automaton, whole and searched. */
static void test_against_pcre2(void **state) {
    (void)state;
    struct test_rng rng = {7};
    uint32_t taken = 0, walks = 0, too_large = 0;
    for (uint32_t i = 0; i < 400; i++) {
        struct random_pattern p = {.rng = &rng, .anchors = i % 2 == 1};
        random_choice(&p, 2);
        for (int search = 0; search < 2; search++) {
            pcre2_code *re = oracle(p.text, search);
            struct sh_error err = {0};
            struct sh_grammar *g = NULL;
            struct sh_rx *rx;
            struct sh_dfa *dfa;
            if (search) g = search_grammar(p.text);
            else if (sh_grammar_create(grammar_vocab(), SH_GRAMMAR_REGEX, p.text, p.n, &g, &err) != SH_OK &&
                     strstr(err.message, "no text") == NULL)
                fail_msg("%s: %s", p.text, err.message);
            assert_int_equal(sh_rx_parse(p.text, p.n, &rx, &err), SH_OK);
            const enum sh_code code = sh_dfa_from_rx(rx, search, &dfa, &err);
            if (code != SH_OK) { /* some have automata that are too large */
                assert_int_equal(code, SH_ERR_LIMIT);
                dfa = NULL;
                too_large++;
            }
            sh_rx_free(rx);
            if (dfa != NULL) assert_int_equal(sh_dfa_is_empty(dfa), g == NULL);
            for (uint32_t k = 0; k < 40; k++) {
                char text[64];
                const size_t n = random_text(&rng, text);
                const bool want = oracle_takes(re, text, n);
                const bool got = g != NULL && grammar_judge(g, text, n) == GRAMMAR_YES;
                if (got != want) fail_msg("%s, search %d: %.*s: got %d, PCRE2 %d", p.text, search, (int)n, text, got, want);
                if (dfa != NULL && sh_dfa_matches(dfa, text, n) != want)
                    fail_msg("%s, search %d, automaton: %.*s: PCRE2 %d", p.text, search, (int)n, text, want);
                taken += want;
            }
            for (uint32_t k = 0; g != NULL && k < 5; k++) {
                size_t n;
                bool whole;
                char *text = grammar_walk(g, &rng, 60, &n, &whole);
                walks += whole;
                if (whole && strpbrk(text, "\r") == NULL && strstr(text, "\xE2\x80\xA8") == NULL && !oracle_takes(re, text, n)) {
                    fail_msg("%s, search %d: PCRE2 does not take: %s", p.text, search, text);
                }
                free(text);
            }
            sh_dfa_free(dfa);
            sh_grammar_unref(g);
            pcre2_code_free(re);
        }
    }
    assert_true(taken > 2000 && walks > 500 && too_large < 10);
}

/* Products and differences of automata against what their parts say. */
static void test_automata(void **state) {
    (void)state;
    struct test_rng rng = {11};
    for (uint32_t i = 0; i < 200; i++) {
        struct sh_dfa *dfa[2], *both, *less, *lengths, *texts;
        struct sh_error err = {0};
        for (int k = 0; k < 2; k++) {
            struct random_pattern p = {.rng = &rng};
            struct sh_rx *rx;
            random_choice(&p, 2);
            assert_int_equal(sh_rx_parse(p.text, p.n, &rx, &err), SH_OK);
            assert_int_equal(sh_dfa_from_rx(rx, k, &dfa[k], &err), SH_OK);
            sh_rx_free(rx);
        }
        const uint32_t min = (uint32_t)(test_random(&rng) % 4),
                       max = i % 3 == 0 ? SH_GR_UNLIMITED : min + (uint32_t)(test_random(&rng) % 3);
        const struct sh_text some[] = {{"ab", 2},
                                       {"a", 1},
                                       {"", 0},
                                       {"\xC3\xA9"
                                        "c",
                                        3},
                                       {"ab", 2}};
        assert_int_equal(sh_dfa_copy(dfa[0], &both, &err), SH_OK);
        assert_int_equal(sh_dfa_copy(dfa[0], &less, &err), SH_OK);
        assert_int_equal(sh_dfa_from_lengths(min, max, &lengths, &err), SH_OK);
        assert_int_equal(sh_dfa_from_texts(some, SH_COUNT(some), &texts, &err), SH_OK);
        assert_int_equal(sh_dfa_intersect(&both, dfa[1], &err), SH_OK);
        assert_int_equal(sh_dfa_intersect(&both, lengths, &err), SH_OK);
        assert_int_equal(sh_dfa_subtract(&less, dfa[1], &err), SH_OK);
        assert_int_equal(sh_dfa_subtract(&less, texts, &err), SH_OK);
        bool any_both = false, any_less = false;
        for (uint32_t k = 0; k < 100; k++) {
            char text[64];
            const size_t n = random_text(&rng, text);
            uint32_t length = 0;
            for (size_t c = 0; c < n; c++) length += (text[c] & 0xC0) != 0x80;
            bool listed = false;
            for (uint32_t c = 0; c < SH_COUNT(some); c++) listed |= n == some[c].n && memcmp(text, some[c].p, n) == 0;
            const bool a = sh_dfa_matches(dfa[0], text, n), b = sh_dfa_matches(dfa[1], text, n),
                       fits = length >= min && length <= max;
            assert_int_equal(sh_dfa_matches(lengths, text, n), fits);
            assert_int_equal(sh_dfa_matches(texts, text, n), listed);
            assert_int_equal(sh_dfa_matches(both, text, n), a && b && fits);
            assert_int_equal(sh_dfa_matches(less, text, n), a && !b && !listed);
            any_both |= a && b && fits;
            any_less |= a && !b && !listed;
        }
        if (any_both) assert_false(sh_dfa_is_empty(both));
        if (any_less) assert_false(sh_dfa_is_empty(less));
        sh_dfa_free(dfa[0]);
        sh_dfa_free(dfa[1]);
        sh_dfa_free(both);
        sh_dfa_free(less);
        sh_dfa_free(lengths);
        sh_dfa_free(texts);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_characters), cmocka_unit_test(test_structure),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_hostile),    cmocka_unit_test(test_against_pcre2), cmocka_unit_test(test_automata),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
