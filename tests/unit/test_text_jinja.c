/* The template engine: the language (snippets), the templates of models with what they render, and templates that mean harm. */
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

struct outcome {
    enum sh_code code;
    char *text; /* malloc'd, NULL unless SH_OK */
    char message[512];
};

static struct outcome render_text(const char *text, size_t length, const char *variables, const char *now) {
    struct outcome o = {0};
    struct sh_template *t;
    struct sh_error err = {0};
    size_t rendered;
    o.code = sh_template_create(text, length, &t, &err);
    if (o.code == SH_OK) o.code = sh_template_render(t, variables, strlen(variables), now, &o.text, &rendered, &err);
    sh_template_destroy(t);
    if (o.code == SH_OK) assert_int_equal(rendered, strlen(o.text));
    else assert_int_equal(o.code, err.code);
    memcpy(o.message, err.message, sizeof o.message);
    return o;
}

static struct outcome render(const char *text, const char *variables) { return render_text(text, strlen(text), variables, NULL); }

/* Where two texts part, with some of what is around it. */
static void print_difference(const char *name, const char *want, const char *got) {
    size_t at = 0;
    while (want[at] && want[at] == got[at]) at++;
    const size_t from = at > 30 ? at - 30 : 0;
    print_error("%s: at byte %zu\n  want: %.90s\n  got:  %.90s\n", name, at, want + from, got + from);
}

/* True: as the case says. */
static bool check(const char *name, const json_t *c, const struct outcome *o) {
    const char *expect = json_string_value(json_object_get(c, "expect")),
               *alt = json_string_value(json_object_get(c, "expect_alt"));
    const char *refusal = json_string_value(json_object_get(c, "expect_error"));
    if (expect != NULL) {
        if (o->code == SH_OK && (strcmp(o->text, expect) == 0 || (alt != NULL && strcmp(o->text, alt) == 0))) return true;
        if (o->code != SH_OK) print_error("%s: %s\n", name, o->message);
        else print_difference(name, expect, o->text);
        return false;
    }
    if (refusal != NULL) {
        while (*refusal == ' ' || *refusal == '\n') refusal++;
        size_t n = strlen(refusal);
        while (n > 0 && (refusal[n - 1] == ' ' || refusal[n - 1] == '\n')) n--;
        if (o->code == SH_ERR_INVALID && memmem(o->message, strlen(o->message), refusal, n) != NULL) return true;
        print_error("%s: want the refusal %s, got %s\n", name, refusal, o->code ? o->message : o->text);
        return false;
    }
    if (o->code == SH_ERR_FORMAT || o->code == SH_ERR_LIMIT) return true;
    print_error("%s: should have failed\n", name);
    return false;
}

static json_t *load_json(const char *path) {
    json_error_t why;
    json_t *root = json_load_file(path, 0, &why);
    if (root == NULL) fail_msg("%s: %s", path, why.text);
    return root;
}

static void test_snippets(void **state) {
    (void)state;
    json_t *root = load_json(TEST_SHARED("templates/snippets.json")), *c;
    char *variables = json_dumps(json_object_get(root, "context"), 0);
    size_t i, wrong = 0;
    json_array_foreach(json_object_get(root, "cases"), i, c) {
        const json_t *text = json_object_get(c, "template");
        struct outcome o = render_text(json_string_value(text), json_string_length(text), variables,
                                       json_string_value(json_object_get(c, "now")));
        wrong += !check(json_string_value(json_object_get(c, "name")), c, &o);
        free(o.text);
    }
    assert_true(i >= 150);
    free(variables);
    json_decref(root);
    assert_int_equal(wrong, 0);
}

/* The variables of a case as JSON text, malloc'd. */
static char *case_variables(const json_t *c) {
    static const char *const names[] = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"};
    json_t *variables = json_pack("{s:n}", "documents");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) json_object_set(variables, names[i], json_object_get(c, names[i]));
    json_object_update(variables, json_object_get(c, "kwargs"));
    char *text = json_dumps(variables, 0);
    json_decref(variables);
    return text;
}

static size_t check_template(const char *cases_path, size_t *count) {
    char path[4096], name[4200];
    size_t length, i, wrong = 0;
    snprintf(path, sizeof path, "%.*s.jinja", (int)(strlen(cases_path) - strlen(".cases.json")), cases_path);
    char *text = test_read_file(path, &length);
    json_t *cases = load_json(cases_path), *c;
    struct sh_template *t;
    struct sh_error err = {0};
    if (sh_template_create(text, length, &t, &err) != SH_OK) fail_msg("%s: %s", path, err.message);
    free(text);
    json_array_foreach(cases, i, c) {
        struct outcome o = {0};
        char *variables = case_variables(c);
        o.code = sh_template_render(t, variables, strlen(variables), json_string_value(json_object_get(c, "now")), &o.text,
                                    &length, &err);
        memcpy(o.message, err.message, sizeof o.message);
        snprintf(name, sizeof name, "%s: %s", strrchr(path, '/') + 1, json_string_value(json_object_get(c, "name")));
        wrong += !check(name, c, &o);
        free(o.text);
        free(variables);
    }
    *count += i;
    sh_template_destroy(t);
    json_decref(cases);
    return wrong;
}

static void test_templates(void **state) {
    (void)state;
    char pattern[4096];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.cases.json", TEST_SHARED("templates"));
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    size_t count = 0, wrong = 0;
    for (size_t i = 0; i < found.gl_pathc; i++) wrong += check_template(found.gl_pathv[i], &count);
    assert_true(found.gl_pathc >= 59);
    assert_true(count >= 2331);
    globfree(&found);
    assert_int_equal(wrong, 0);
}

/* ---- without reference data ---- */

static void expect_text(const char *text, const char *variables, const char *expect) {
    struct outcome o = render(text, variables);
    if (o.code != SH_OK) fail_msg("%s: %s", text, o.message);
    assert_string_equal(o.text, expect);
    free(o.text);
}

static void expect_failure(const char *text, enum sh_code code, const char *part) {
    struct outcome o = render(text, "{}");
    if (o.code != code || strstr(o.message, part) == NULL)
        fail_msg("%.60s: want %s with \"%s\", got %s: %s", text, sh_code_name(code), part, sh_code_name(o.code),
                 o.code ? o.message : o.text);
}

static void test_language(void **state) {
    (void)state;
    expect_text("{{ a }}{% for x in l %}{{ loop.index }}{{ x }}{% endfor %}", "{\"a\": \"\\u00e9\", \"l\": [1, null]}",
                "é112None");
    expect_text("{% macro m(a, b) %}{{ a }}-{{ b }}{% endmacro %}{{ m(*[1, 2]) }} {{ m(**{'b': 1, 'a': 2}) }}", "{}", "1-2 2-1");
    expect_text("{{ 170141183460469231731687303715884105727 }} {{ 2 ** 126 }}", "{}",
                "170141183460469231731687303715884105727 85070591730234615865843651857942052864");
    expect_text("{% set l = [] %}{% for i in range(3) %}{{ l.append(i) or '' }}{% endfor %}{{ l }}{{ l.pop() }}{{ l }}", "{}",
                "[0, 1, 2]2[0, 1]");
    expect_text("{{ n }}", "{\"n\": 123456789012345678901234567890}", "123456789012345678901234567890");
    expect_text("{{ d | length }}{{ d.k99 }}{{ 'k7' in d }}", /* more entries than a linear search looks at */
                "{\"d\": {\"k0\":0,\"k1\":1,\"k2\":2,\"k3\":3,\"k4\":4,\"k5\":5,\"k6\":6,\"k7\":7,\"k8\":8,\"k99\":99}}",
                "1099True");
    expect_text("{{ 'a\\u00a0\\u200b' | list }}", "{}", "['a', '\\xa0', '\\u200b']");
    expect_text("a\r\nb\rc", "{}", "a\nb\nc");
    expect_text("{{ ' a b  c '.split(none, 1) }}{{ ' a b  c '.rsplit(none, 1) }}", "{}", "['a', 'b  c '][' a b', 'c']");
    expect_text("{{ '' | indent(2, true) }}|{{ '%3c|%c' | format('x', 233) }}|{{ {'a b': '/'} | urlencode }}", "{}",
                "  |  x|é|a+b=%2F");
    expect_text("{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.current }}{{ [{'k': 2}, {}] | groupby('k', default=1) }}", "{}",
                "12[(1, [{}]), (2, [{'k': 2}])]");
}

/* Expected texts are those of Jinja2 3.1.6 on CPython 3.11. */
static void test_methods(void **state) {
    (void)state;
    static const struct {
        const char *text, *expect;
    } cases[] = {
        {"{{ s.find('o', 5) }} {{ s.find('o', 5, 7) }} {{ s.find('o', -3) }} {{ s.find('', 99) }} {{ s.find('o', none, 5) }}",
         "7 -1 13 -1 4"},
        {"{{ s.rfind('o', 0, 5) }} {{ s.rfind('o', -9, -2) }} {{ s.index('o', 5) }} {{ s.rindex('o', 0, 6) }}", "4 7 7 4"},
        {"{{ s.count('o', 5) }} {{ s.count('o', 0, 5) }} {{ s.count('', 3) }} {{ s.count('', 99) }}", "3 1 13 0"},
        {"{{ s.startswith('World', 6) }} {{ s.startswith('lo', 3, 4) }} {{ s.startswith('', 99) }}", "True False False"},
        {"{{ s.endswith('Hello', 0, 5) }} {{ s.endswith('o', 0, -4) }}", "True False"},
        {"{{ u.find('\u00f1', 1) }} {{ u.rfind('\u00c9', 0, 2) }}", "4 1"},
        {"{{ t.expandtabs() }}|{{ t.expandtabs(4) }}|{{ t.expandtabs(0) }}",
         "a       bc      d\n        e|a   bc  d\n    e|abcd\ne"},
        {"{{ 'STRASSE \u00df \u03c2'.casefold() }}", "strasse ss \u03c3"},
        {"{{ s.isascii() }}{{ u.isascii() }}{{ s.isprintable() }}{{ t.isprintable() }}{{ ''.isprintable() }}",
         "TrueFalseTrueFalseTrue"},
        {"{{ 'a_1'.isidentifier() }}{{ '1a'.isidentifier() }}{{ ''.isidentifier() }}", "TrueFalseFalse"},
        {"{{ s.istitle() }}{{ 'Ab Cd'.istitle() }}{{ '1'.istitle() }}", "FalseTrueFalse"},
        {"{{ '{a} {b}'.format_map({'a': 1, 'b': 2}) }}", "1 2"},
        {"{{ '{:{w}}|{:{}}|{:>{w}.{p}f}'.format('a', 'b', 4, 2.345, w=5, p=1) }}", "a    |b   |  2.3"},
        {"{{ '{0!r:>10}|{1:,}|{1:_}|{2:,}|{3:_x}'.format('x', 1234567, 1234.5, 1048575) }}",
         "       'x'|1,234,567|1_234_567|1,234.5|f_ffff"},
        {"{{ '{:n}{:c}{:>5}{}'.format(42, 65, true, true) }}", "42A    1True"},
        {"{{ '%*d|%-*d|%.*f' % (5, 3, 4, 2, 2, 3.14159) }}", "    3|2   |3.14"},
        {"{{ [1, 2, 1].index(1, 1) }}{{ (1, 2).index(2, 0, 2) }}", "21"},
        {"{{ dl | groupby('c') | map(attribute='grouper') | join }}", "xy"},
        {"{% for g in dl | groupby('c') %}{{ g.grouper }}={{ g.list | map(attribute='v') | join(',') }};{% endfor %}",
         "x=1,3;y=2;"},
        {"{{ 1234567 | filesizeformat }} {{ 1234567 | filesizeformat(true) }} {{ 1 | filesizeformat }}", "1.2 MB 1.2 MiB 1 Byte"},
        {"{{ '<a>' | forceescape }}{{ nothing is callable }}", "&lt;a&gt;True"},
        {"{% macro f(a) %}{{ kwargs }}{% endmacro %}{{ f.catch_kwargs }}{{ f.catch_varargs }}", "TrueFalse"},
        {"{% do dl.append(1) %}{{ dl | length }}{% set l = [1, 2, 3] %}{% do l.remove(2) %}{{ l }}{% do l.clear() %}{{ l }}",
         "4[1, 3][]"},
    };
    const char *variables = "{\"s\": \"Hello World foo\", \"t\": \"a\\tbc\\td\\n\\te\", "
                            "\"u\": \"\\u00e7\\u00c9\\u00df \\u00f1\", "
                            "\"dl\": [{\"c\": \"x\", \"v\": 1}, {\"c\": \"y\", \"v\": 2}, {\"c\": \"x\", \"v\": 3}]}";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_text(cases[i].text, variables, cases[i].expect);
    expect_failure("{{ 'abc'.index('a', 1) }}", SH_ERR_FORMAT, "not found");
    expect_failure("{{ 'abc'.find('a', 'b') }}", SH_ERR_FORMAT, "start: found string");
    expect_failure("{{ 'a'.expandtabs(1000000000000) }}", SH_ERR_LIMIT, "text in bytes");
    expect_failure("{{ '%*d' % (100000, 1) }}", SH_ERR_LIMIT, "width of a field");
    expect_failure("{{ '{:{'.format(1) }}", SH_ERR_FORMAT, "single '{'");
    static const char *const loaders[] = {"include", "import", "extends", "from", "block"};
    for (size_t i = 0; i < sizeof loaders / sizeof *loaders; i++) {
        char text[64];
        snprintf(text, sizeof text, "{%% %s 'x' %%}", loaders[i]);
        expect_failure(text, SH_ERR_FORMAT, "a chat template is one text");
    }
}

static void test_failures(void **state) {
    (void)state;
    expect_failure("a\n\n{{ x.y }}", SH_ERR_FORMAT, "line 3: 'x' is undefined");
    expect_failure("\n{% if a %}", SH_ERR_FORMAT, "line 2: found the end of the template, expected {% endif %}");
    expect_failure("{{ 1 +* 2 }}", SH_ERR_FORMAT, "found '*', expected an expression");
    expect_failure("{{ 2 ** 127 }}", SH_ERR_FORMAT, "127 bits");
    expect_failure("{% break %}", SH_ERR_FORMAT, "within a loop");
    expect_failure("{{ raise_exception('no\nway') }}", SH_ERR_INVALID, "no");
    expect_failure("{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}", SH_ERR_FORMAT, "given twice");
    static const char *const bad_variables[] = {
        "", "[]", "{\"a\":}", "{\"a\": 1} x", "{\"a\": \"\\ud8\"}", "{\"a\": \"\xff\"}", "{\"a\": 1e}"};
    for (size_t i = 0; i < sizeof bad_variables / sizeof *bad_variables; i++) {
        struct outcome o = render("x", bad_variables[i]);
        assert_int_equal(o.code, SH_ERR_INVALID);
        assert_non_null(strstr(o.message, "variables"));
    }
    struct outcome o = render_text("x", 1, "{}", "yesterday");
    assert_int_equal(o.code, SH_ERR_INVALID);
}

static void test_limits(void **state) {
    (void)state;
    expect_failure("{{ 'x' * 10 ** 12 }}", SH_ERR_LIMIT, "text in bytes");
    expect_failure("{{ [1] * 10 ** 12 }}", SH_ERR_LIMIT, "memory in bytes");
    expect_failure("{{ 'x' | center(10 ** 30) }}", SH_ERR_LIMIT, "text in bytes");
    expect_failure("{{ 'a' | indent(10 ** 30) }}", SH_ERR_LIMIT, "text in bytes");
    expect_failure("{{ range(10 ** 12) }}", SH_ERR_LIMIT, "limit of");
    expect_failure("{% set s = 'xxxxxxxxxxxxxxxx' %}{% for i in range(40) %}{% set ns = namespace(s=s) %}{% endfor %}"
                   "{% set ns = namespace(s=s) %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
                   SH_ERR_LIMIT, "limit of");
    expect_failure(
        "{% set l = range(1000) %}{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}{% endfor %}",
        SH_ERR_LIMIT, "limit of");
    expect_failure("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", SH_ERR_LIMIT, "depth");
    expect_failure("{% macro m(a=m()) %}{% endmacro %}{{ m() }}", SH_ERR_LIMIT, "depth");
    expect_failure("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{% call a() %}{% endcall %}{% endmacro %}{{ a() }}",
                   SH_ERR_LIMIT, "depth");
    expect_failure("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", SH_ERR_LIMIT, "depth");
    expect_failure("{% set l = [] %}{{ l.append(l) }}{{ l }}", SH_ERR_LIMIT, "depth");
    expect_failure("{% set l = [] %}{{ l.append(l) }}{{ l | tojson }}", SH_ERR_LIMIT, "depth");
    expect_failure("{% set a = [] %}{% set b = [] %}{{ a.append(b) or b.append(a) }}{{ a == b }}", SH_ERR_LIMIT, "depth");
    expect_failure("{{ '%999999999d' % 1 }}", SH_ERR_LIMIT, "width of a field");
    expect_failure("{{ '{:>999999999}'.format(1) }}", SH_ERR_LIMIT, "width of a field");
}

static void test_nesting(void **state) {
    (void)state;
    static const struct {
        const char *begin, *part, *middle, *end, *close, *message;
    } deep[] = {
        {"{{ ", "(", "1", ")", " }}", "nesting"},
        {"{{ ", "[", "", "]", " }}", "nesting"},
        {"{{ ", "{1:", "1", "}", " }}", "nesting"},
        {"{{ ", "-", "1", "", " }}", "nesting"},
        {"{{ ", "not ", "1", "", " }}", "nesting"},
        {"{{ ", "1 if 1 else ", "1", "", " }}", "nesting"},
        {"{{ ", "a[", "1", "]", " }}", "nesting"},
        {"{{ ", "f(", "1", ")", " }}", "nesting"},
        {"", "{% if 1 %}", "", "{% endif %}", "", "nesting"},
        {"", "{% for x in y %}", "", "{% endfor %}", "", "nesting"},
        {"{% for ", "(", "x", ")", " in y %}{% endfor %}", "nesting"},
        {"{{ ", "1 + ", "1", "", " }}", "depth"},
        {"{{ ", "1 and ", "1", "", " }}", "depth"},
        {"{{ 1", " | string", "", "", " }}", "depth"},
    };
    const size_t count = 50000;
    for (size_t i = 0; i < sizeof deep / sizeof *deep; i++) {
        char *text = malloc(count * (strlen(deep[i].part) + strlen(deep[i].end)) + 200), *p = stpcpy(text, deep[i].begin);
        for (size_t k = 0; k < count; k++) p = stpcpy(p, deep[i].part);
        p = stpcpy(p, deep[i].middle);
        for (size_t k = 0; k < count; k++) p = stpcpy(p, deep[i].end);
        stpcpy(p, deep[i].close);
        expect_failure(text, SH_ERR_LIMIT, deep[i].message);
        free(text);
    }
    char *variables = malloc(2 * count + 20), *p = stpcpy(variables, "{\"a\":");
    for (size_t k = 0; k < count; k++) *p++ = '[';
    for (size_t k = 0; k < count; k++) *p++ = ']';
    stpcpy(p, "}");
    struct outcome o = render("x", variables);
    assert_int_equal(o.code, SH_ERR_LIMIT);
    assert_string_equal(o.message, "variables: goes beyond the limit of levels of JSON, 500");
    free(variables);
    const size_t huge = (size_t)8 << 20;
    char *text = calloc(1, huge);
    o = render_text(text, huge, "{}", NULL);
    assert_int_equal(o.code, SH_ERR_LIMIT);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_language), cmocka_unit_test(test_methods),  cmocka_unit_test(test_failures),
        cmocka_unit_test(test_limits),   cmocka_unit_test(test_nesting),  cmocka_unit_test(test_snippets),
        cmocka_unit_test(test_templates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
