/* Grammars in the notation of llama.cpp, and lists of choices: what they take, where mistakes are found, hostile texts. */
#include "tests/unit/grammar_texts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})
#define TAKES(grammar, yes, no) grammar_check(SH_GRAMMAR_GBNF, grammar, yes, no)
#define REFUSED(grammar, code, part) grammar_refused(SH_GRAMMAR_GBNF, grammar, code, part)

static void test_literals(void **state) {
    (void)state;
    TAKES("root ::= \"abc\"", LIST("abc"), LIST("", "ab", "abcd", "Abc"));
    TAKES("root::=\"\"", LIST(""), LIST(" "));
    TAKES("root ::= \"a\\nb\\t\\r\\\\\\\"\\[\\]\"", LIST("a\nb\t\r\\\"[]"), LIST("a\\nb"));
    TAKES("root ::= \"\\x41\\u00e9\\U0001F600\\xe9\"", LIST("A\xC3\xA9\xF0\x9F\x98\x80\xC3\xA9"), LIST("A\xE9"));
    TAKES("root ::= \"\xC3\xA9#not a comment\" # a comment \" ( [\n", LIST("\xC3\xA9#not a comment"), LIST("\xC3\xA9"));
    char text[1200] = "root ::= \"";
    char *want = text + 10;
    memset(want, 'x', 1000);
    memcpy(want + 1000, "\"", 2);
    char value[1001];
    memset(value, 'x', 1000);
    value[1000] = 0;
    TAKES(text, LIST(value), LIST(value + 1));
}

static void test_classes(void **state) {
    (void)state;
    TAKES("root ::= [a-c0_]", LIST("a", "c", "0", "_"), LIST("d", "-", "", "ab"));
    TAKES("root ::= [^a-c\\n]", LIST("d", "A", "\xC3\xA9", "\xF0\x9F\x98\x80", "\t"), LIST("a", "b", "\n", ""));
    TAKES("root ::= [-a]", LIST("-", "a"), LIST("b"));
    TAKES("root ::= [a-]", LIST("-", "a"), LIST("b"));
    TAKES("root ::= [\\]\\[\\\\\\x30-\\x32]", LIST("]", "[", "\\", "0", "2"), LIST("3"));
    TAKES("root ::= [\xE3\x81\x81-\xE3\x82\x9F]+", LIST("\xE3\x81\x82", "\xE3\x82\x9F\xE3\x81\x81"), LIST("a", "\xE3\x82\xA0"));
    TAKES("root ::= .", LIST("a", "\n", "\xF4\x8F\xBF\xBF", "\x01"), LIST("", "ab", "\xED\xA0\x80", "\xFF", "\xC0\x80"));
    TAKES("root ::= [^]", LIST("a", "\n"), LIST(""));
}

static void test_repeats(void **state) {
    (void)state;
    TAKES("root ::= \"ab\"*", LIST("", "ab", "ababab"), LIST("a", "aab"));
    TAKES("root ::= [ab]+ \"c\"?", LIST("a", "abc", "b"), LIST("", "c", "cc"));
    TAKES("root ::= \"a\"{3}", LIST("aaa"), LIST("aa", "aaaa"));
    TAKES("root ::= \"a\"{2,}", LIST("aa", "aaaaa"), LIST("a", ""));
    TAKES("root ::= \"a\"{ 1 , 3 }", LIST("a", "aa", "aaa"), LIST("", "aaaa"));
    TAKES("root ::= \"a\"{0,2}", LIST("", "a", "aa"), LIST("aaa"));
    TAKES("root ::= (\"a\" | \"b\"){2} \"c\"{0}", LIST("ab", "bb"), LIST("a", "abc"));
    TAKES("root ::= (\"a\"?)*", LIST("", "aaa"), LIST("b"));
    TAKES("root ::= \"a\"+?", LIST("", "a", "aa"), LIST("b"));
}

static void test_rules(void **state) {
    (void)state;
    TAKES("# first\n\nroot ::= a | b c # end\na ::= \"x\"\nb ::= \"y\"\r\nc-1 ::= \"u\"\nc ::= c-1 | under_score\nunder_score "
          "::= \"z\"",
          LIST("x", "yu", "yz"), LIST("y", "xz", ""));
    TAKES("root ::= (\n  \"a\" # one\n  \"b\"\n  | \"c\"\n)+", LIST("ab", "c", "abc"), LIST("a", "b"));
    TAKES("root ::= \"a\" |\n \"b\"\n | \"c\"", LIST("a", "b", "c"), LIST("ab"));
    TAKES("root ::=\n \"a\"\n \"b\"\nother ::= \"c\"", LIST("ab"), LIST("a", "abc"));
    TAKES("root ::= | \"a\"", LIST("", "a"), LIST("b"));
    TAKES("root ::= x\nx ::= \"(\" x \")\" | \"\"", LIST("", "()", "((()))"), LIST("(", ")(", "(()"));
}

/* An arithmetic, a list and a small JSON: constructs as they occur together. */
static void test_whole(void **state) {
    (void)state;
    TAKES("root  ::= (expr \"=\" ws term \"\\n\")+\n"
          "expr  ::= term ([-+*/] term)*\n"
          "term  ::= ident | num | \"(\" ws expr \")\" ws\n"
          "ident ::= [a-z] [a-z0-9_]* ws\n"
          "num   ::= [0-9]+ ws\n"
          "ws    ::= [ \\t\\n]*\n",
          LIST("a=1\n", "(a +2) *b = c1\nx=y\n"), LIST("a=\n", "1+=2\n", "=1\n"));
    TAKES("root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"", LIST("- a\n- b c\n"),
          LIST("- a", "-a\n"));
    TAKES("root   ::= object\n"
          "value  ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n"
          "object ::=\n  \"{\" ws (\n            string \":\" ws value\n    (\",\" ws string \":\" ws value)*\n  )? \"}\" ws\n"
          "array  ::=\n  \"[\" ws (\n            value\n    (\",\" ws value)*\n  )? \"]\" ws\n"
          "string ::=\n  \"\\\"\" (\n    [^\"\\\\\\x7F\\x00-\\x1F] |\n    \"\\\\\" ([\"\\\\bfnrt] | \"u\" [0-9a-fA-F]{4}) # "
          "escapes\n  )* \"\\\"\" ws\n"
          "number ::= (\"-\"? ([0-9] | [1-9] [0-9]{0,15})) (\".\" [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws\n"
          "# Optional space: by convention, applied in this grammar after literal chars when allowed\nws ::= | \" \" | \"\\n\" [ "
          "\\t]{0,20}\n",
          LIST("{}", "{\"a\": [1, -2.5e3, true, null], \"b\\u00e9\": {\"c\": \"\\n\"}}"),
          LIST("[]", "{\"a\"}", "{\"a\":01}", "{a:1}"));
}

static enum grammar_verdict judge_tokens(struct sh_grammar *g, const int32_t *tokens, size_t n) {
    struct sh_matcher *m;
    struct sh_error err;
    assert_int_equal(sh_matcher_create(g, &m, &err), SH_OK);
    size_t at = 0;
    while (at < n && sh_matcher_accept(m, tokens[at], &err) == SH_OK) at++;
    const enum grammar_verdict verdict = at < n ? GRAMMAR_NO : sh_matcher_can_end(m) ? GRAMMAR_YES : GRAMMAR_BEGINNING;
    sh_matcher_destroy(m);
    return verdict;
}

static void test_tokens(void **state) {
    (void)state;
    const int32_t a = GRAMMAR_FIRST_BYTE + 'a', open = GRAMMAR_CONTROL;
    static const char *const same[] = {"root ::= <think> \"a\"*", "root ::= <[1]> \"a\"*"};
    for (size_t i = 0; i < SH_COUNT(same); i++) {
        struct sh_grammar *g = grammar_of(SH_GRAMMAR_GBNF, same[i]);
        assert_int_equal(judge_tokens(g, (const int32_t[]){open}, 1), GRAMMAR_YES);
        assert_int_equal(judge_tokens(g, (const int32_t[]){open, a, a}, 3), GRAMMAR_YES);
        assert_int_equal(judge_tokens(g, (const int32_t[]){a}, 1), GRAMMAR_NO);
        assert_int_equal(judge_tokens(g, (const int32_t[]){GRAMMAR_FIRST_BYTE + '<'}, 1),
                         GRAMMAR_NO); /* its text is not the token */
        sh_grammar_unref(g);
    }
    struct sh_grammar *g = grammar_of(SH_GRAMMAR_GBNF, "root ::= !<call>* <call>");
    const int32_t less = GRAMMAR_FIRST_BYTE + '<';
    assert_int_equal(judge_tokens(g, (const int32_t[]){a, less, a, GRAMMAR_CALL}, 4), GRAMMAR_YES);
    assert_int_equal(judge_tokens(g, (const int32_t[]){a, GRAMMAR_CALL, a}, 3), GRAMMAR_NO);
    sh_grammar_unref(g);
    REFUSED("root ::= <nothing of this>", SH_ERR_INVALID, "not one token");
    REFUSED("root ::= <[100000]>", SH_ERR_INVALID, "no token of this number");
    REFUSED("root ::= <[99999999999999999999]>", SH_ERR_INVALID, "line 1, column");
    REFUSED("root ::= <[x]>", SH_ERR_INVALID, "a token's number");
    REFUSED("root ::= <[1>", SH_ERR_INVALID, "]>");
    REFUSED("root ::= <think", SH_ERR_INVALID, "no closing '>'");
    REFUSED("root ::= !<think>", SH_ERR_UNSUPPORTED, "any token but this one");
    REFUSED("root ::= !<think>+", SH_ERR_UNSUPPORTED, "any token but this one");
    REFUSED("root ::= !\"a\"", SH_ERR_INVALID, "a token behind '!'");
}

static void test_mistakes(void **state) {
    (void)state;
    REFUSED("", SH_ERR_INVALID, "no rule \"root\"");
    REFUSED("a ::= \"x\"", SH_ERR_INVALID, "no rule \"root\"");
    REFUSED("root ::= \"a\"\n  missing \"b\"", SH_ERR_INVALID, "line 2, column 3: there is no rule \"missing\"");
    REFUSED("root ::= \"\xC3\xA9\" other", SH_ERR_INVALID, "line 1, column 14: there is no rule \"other\"");
    REFUSED("root ::= \"a\"\nroot ::= \"b\"", SH_ERR_INVALID, "line 2, column 1: this rule was defined before");
    REFUSED("root := \"a\"", SH_ERR_INVALID, "line 1, column 6: expected \"::=\" behind the rule's name, found ':'");
    REFUSED("root", SH_ERR_INVALID, "found the end");
    REFUSED("::= \"a\"", SH_ERR_INVALID, "expected a rule");
    REFUSED("root ::= \"a", SH_ERR_INVALID, "column 10: this text has no closing");
    REFUSED("root ::= \"a\nb\"", SH_ERR_INVALID, "no closing");
    REFUSED("root ::= [a", SH_ERR_INVALID, "no closing ']'");
    REFUSED("root ::= []", SH_ERR_INVALID, "an empty class");
    REFUSED("root ::= [z-a]", SH_ERR_INVALID, "column 11: the range's end lies before its beginning");
    REFUSED("root ::= (\"a\"", SH_ERR_INVALID, "expected ')', found the end");
    REFUSED("root ::= \"a\")", SH_ERR_INVALID, "found ')'");
    REFUSED("root ::= \"\\q\"", SH_ERR_INVALID, "expected an escape");
    REFUSED("root ::= \"\\x4\"", SH_ERR_INVALID, "two hexadecimal digits, found '\"'");
    REFUSED("root ::= \"\\u12\"", SH_ERR_INVALID, "four hexadecimal digits");
    REFUSED("root ::= \"\\ud800\"", SH_ERR_INVALID, "no Unicode character");
    REFUSED("root ::= \"\\U00110000\"", SH_ERR_INVALID, "no Unicode character");
    REFUSED("root ::= \"a\"{2,1}", SH_ERR_INVALID, "at least more than at most");
    REFUSED("root ::= \"a\"{", SH_ERR_INVALID, "a number of repetitions");
    REFUSED("root ::= \"a\"{1,2", SH_ERR_INVALID, "expected '}'");
    REFUSED("root ::= \"a\"{99999999999}", SH_ERR_LIMIT, "repetitions");
    REFUSED("root ::= *", SH_ERR_INVALID, "found '*'");
    REFUSED("root ::= $x", SH_ERR_INVALID, "found '$'");
    REFUSED("root ::= \xFF", SH_ERR_INVALID, "line 1, column 10");
    REFUSED("root ::= \"\xFF\"", SH_ERR_INVALID, "no UTF-8");
    REFUSED("root ::= root \"a\" | \"b\"", SH_ERR_INVALID, "root");
    REFUSED("root ::= \"a\" root", SH_ERR_INVALID, "no text");
    grammar_refused_bytes(SH_GRAMMAR_GBNF, "root ::= \"a\0b", 13, SH_ERR_INVALID, "no closing");
}

static void test_hostile(void **state) {
    (void)state;
    enum { MANY = 100000 };
    char *text = malloc(MANY * 8 + 200);
    assert_non_null(text);
    size_t n = (size_t)sprintf(text, "root ::= ");
    memset(text + n, '(', MANY);
    text[n + MANY] = 0;
    REFUSED(text, SH_ERR_LIMIT, "nested too deeply");
    for (size_t i = 0; i < MANY / 2; i++) n += (size_t)sprintf(text + n, "r%zu ", i);
    REFUSED(text, SH_ERR_INVALID, "there is no rule \"r0\"");
    n = (size_t)sprintf(text, "root ::= r0\n");
    for (size_t i = 0; i < 5000; i++) n += (size_t)sprintf(text + n, "r%zu ::= r%zu r%zu\n", i, i + 1, i + 1);
    sprintf(text + n, "r5000 ::= \"\"\n"); /* 2^5000 times nothing: read, whether or not it can be followed */
    sh_grammar_unref(grammar_of(SH_GRAMMAR_GBNF, text));
    sprintf(text + n, "r5000 ::= \"a\"\n");
    TAKES(text, NULL, LIST("", "a"));
    free(text);
    char *huge = calloc(1, (1 << 20) + 2);
    assert_non_null(huge);
    memset(huge, ' ', (1 << 20) + 1);
    REFUSED(huge, SH_ERR_LIMIT, "1048576");
    free(huge);
    TAKES("root ::= ((\"a\"?){1000}){1000}", LIST("", "aaaa"), LIST("b"));
    TAKES("root ::= [a-z]{1000000}", NULL, LIST("a"));
}

static void test_choices(void **state) {
    (void)state;
    grammar_check(SH_GRAMMAR_CHOICE, "[\"yes\", \"no\", \"yes, but\", \"\\u00e9\\n\"]",
                  LIST("yes", "no", "yes, but", "\xC3\xA9\n"), LIST("", "y", "\"no\"", "yesno"));
    grammar_refused(SH_GRAMMAR_CHOICE, "[]", SH_ERR_INVALID, "at least one string");
    grammar_refused(SH_GRAMMAR_CHOICE, "{}", SH_ERR_INVALID, "at least one string");
    grammar_refused(SH_GRAMMAR_CHOICE, "[\"a\", 1]", SH_ERR_INVALID, "choice 2 is no string");
    grammar_refused(SH_GRAMMAR_CHOICE, "[\"a\", \"\"]", SH_ERR_INVALID, "choice 2 is empty");
    grammar_refused(SH_GRAMMAR_CHOICE, "[\"a\"", SH_ERR_INVALID, "no JSON");
}

static void test_walks(void **state) {
    (void)state;
    static const char *const grammars[] = {
        "root ::= (\"a\" [b-d]{1,3} | <think> .{2} )* \"x\"",
        "root ::= \"[\" (root (\",\" root)*)? \"]\" | \"12\" | \"a\xC3\xA9\"",
        "root ::= !<call>* <call>",
    };
    struct test_rng rng = {1};
    uint32_t ended = 0;
    for (size_t i = 0; i < SH_COUNT(grammars); i++) {
        struct sh_grammar *g = grammar_of(SH_GRAMMAR_GBNF, grammars[i]);
        for (uint32_t k = 0; k < 100; k++) {
            size_t length;
            bool whole;
            char *text = grammar_walk(g, &rng, 200, &length, &whole);
            ended += whole;
            if (whole && strstr(grammars[i], "<") == NULL) assert_int_equal(grammar_judge(g, text, length), GRAMMAR_YES);
            free(text);
        }
        sh_grammar_unref(g);
    }
    assert_true(ended > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_literals), cmocka_unit_test(test_classes), cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_rules),    cmocka_unit_test(test_whole),   cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_mistakes), cmocka_unit_test(test_hostile), cmocka_unit_test(test_choices),
        cmocka_unit_test(test_walks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
