/* The tables of shimmyctl hold what the parser, the help and the completion rely on; MODEL arguments; text as JSON. */
#include "cli/commands.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void check_options(const char *owner, const struct cli_option *options, const struct cli_option *others) {
    size_t count = 0;
    for (const struct cli_option *o = options; o && o->name; o++, count++) {
        if ((o->kind == CLI_FLAG) != (o->value == NULL))
            fail_msg("%s --%s: a value's name for a flag, or none for a value", owner, o->name);
        if (!o->help || !*o->help) fail_msg("%s --%s has no help", owner, o->name);
        if ((o->kind == CLI_INTEGER || o->kind == CLI_NUMBER) && !(o->min < o->max))
            fail_msg("%s --%s: empty range", owner, o->name);
        for (const struct cli_option *p = o + 1; p->name; p++)
            if (!strcmp(o->name, p->name) || (o->letter && o->letter == p->letter)) fail_msg("%s: --%s twice", owner, o->name);
        for (const struct cli_option *p = others; p && p->name; p++)
            if (!strcmp(o->name, p->name) || (o->letter && o->letter == p->letter))
                fail_msg("%s --%s hides the global --%s", owner, o->name, p->name);
    }
    if (count > CLI_OPTIONS_MAX) fail_msg("%s has %zu options, the parser has room for %d", owner, count, CLI_OPTIONS_MAX);
}

static void options_are_unique_and_fit(void **state) {
    (void)state;
    check_options("shimmyctl", cli_global_options, NULL);
    for (const struct cli_command *c = cli_commands; c->name; c++) check_options(c->name, c->options, cli_global_options);
}

static void commands_are_whole(void **state) {
    (void)state;
    for (const struct cli_command *c = cli_commands; c->name; c++) {
        assert_ptr_equal(cli_find_command(cli_commands, c->name), c);
        assert_non_null(c->run);
        assert_true(c->summary && *c->summary);
        assert_true(c->min_arguments <= c->max_arguments);
        assert_int_equal(c->max_arguments == 0, *c->arguments == 0);
    }
}

static void completion_names_everything(void **state) {
    (void)state;
    char *script = NULL, word[64];
    size_t size;
    FILE *out = open_memstream(&script, &size);
    assert_non_null(out);
    cli_print_completion(out);
    fclose(out);
    for (const struct cli_command *c = cli_commands; c->name; c++) {
        assert_non_null(strstr(script, c->name));
        for (const struct cli_option *o = c->options; o && o->name; o++) {
            snprintf(word, sizeof word, " --%s", o->name);
            if (!strstr(script, word)) fail_msg("%s --%s is not completed", c->name, o->name);
        }
    }
    free(script);
}

static void model_argument(const char *model, const char *expected) {
    json_t *parameters = cli_model_parameters(model);
    assert_string_equal(json_string_value(json_object_get(parameters, "model")), expected);
    json_decref(parameters);
}

static void paths_become_absolute_and_names_stay(void **state) {
    (void)state;
    char expected[4096 + 32], *here = getcwd(NULL, 0);
    assert_non_null(here);
    snprintf(expected, sizeof expected, "%s/m.gguf", here);
    model_argument("m.gguf", expected);
    snprintf(expected, sizeof expected, "%s/./a/m", here);
    model_argument("./a/m", expected);
    model_argument("/a/m.gguf", "/a/m.gguf");
    model_argument("tinyllama.Q4_K_M", "tinyllama.Q4_K_M");
    model_argument(".gguf", ".gguf");
    model_argument("llama3.2:1b", "llama3.2:1b");
    model_argument("someone/mine:q8", "someone/mine:q8"); /* a store's name; such a file would be a path */
    snprintf(expected, sizeof expected, "%s/cli/main.c", here);
    model_argument("cli/main.c", expected);
    snprintf(expected, sizeof expected, "%s/none/m.gguf", here);
    model_argument("none/m.gguf", expected);
    assert_null(cli_model_parameters("\xff"));
    free(here);
}

static void text_as_json(const char *bytes, size_t length, const char *expected) {
    json_t *text = cli_json_text(bytes, length);
    assert_non_null(text);
    assert_int_equal(json_string_length(text), strlen(expected));
    assert_string_equal(json_string_value(text), expected);
    json_decref(text);
}

static void bytes_that_are_not_text_are_replaced(void **state) {
    (void)state;
    text_as_json("a\xc3\xa9\xf0\x9f\x98\x80", 7, "a\xc3\xa9\xf0\x9f\x98\x80");
    text_as_json("\xff"
                 "a",
                 2,
                 "\xef\xbf\xbd"
                 "a");
    text_as_json("\xf0\x9f\x98", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    text_as_json("\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");                 /* a surrogate */
    text_as_json("\xc0\xaf", 2, "\xef\xbf\xbd\xef\xbf\xbd");                                 /* overlong */
    text_as_json("\xf4\x90\x80\x80", 4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* beyond U+10FFFF */
    json_t *text = cli_json_text("a\0b", 3);
    assert_int_equal(json_string_length(text), 3);
    json_decref(text);
}

static void sizes_are_readable(void **state) {
    (void)state;
    char buf[32];
    assert_string_equal(term_bytes(0, buf, sizeof buf), "0 B");
    assert_string_equal(term_bytes(1023, buf, sizeof buf), "1023 B");
    assert_string_equal(term_bytes(1024, buf, sizeof buf), "1.0 KiB");
    assert_string_equal(term_bytes(1048575, buf, sizeof buf), "1.0 MiB");
    assert_string_equal(term_bytes(3221225472, buf, sizeof buf), "3.0 GiB");
    assert_string_equal(term_bytes(UINT64_MAX, buf, sizeof buf), "16.0 EiB");
}

static void tables_are_aligned(void **state) {
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct term_table *table = term_table_create(2);
    term_table_add(table, TERM_BOLD, "A");
    term_table_add(table, TERM_BOLD, "B");
    term_table_add(table, TERM_PLAIN, "long");
    term_table_add(table, TERM_PLAIN, NULL);
    term_table_add(table, TERM_PLAIN, "");
    term_table_add(table, TERM_PLAIN, "two\nlines");
    assert_true(term_table_print(table, out));
    fclose(out);
    assert_string_equal(text, "A     B\nlong  -\n      two lines\n");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_unique_and_fit),
        cmocka_unit_test(commands_are_whole),
        cmocka_unit_test(completion_names_everything),
        cmocka_unit_test(paths_become_absolute_and_names_stay),
        cmocka_unit_test(bytes_that_are_not_text_are_replaced),
        cmocka_unit_test(sizes_are_readable),
        cmocka_unit_test(tables_are_aligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
