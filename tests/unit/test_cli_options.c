/* The command line parser of shimmyctl: forms, ranges, and what it says about mistakes. */
#include "cli/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct cli_option global[] = {
    {"socket", 's', CLI_TEXT, "PATH", "socket"},
    {"json", 'j', CLI_FLAG, NULL, "json"},
    {"verbose", 'v', CLI_FLAG, NULL, "verbose"},
    {"help", 'h', CLI_FLAG, NULL, "help"},
    {NULL},
};
static const struct cli_option run_options[] = {
    {"count", 'n', CLI_INTEGER, "N", "count", NULL, 1, 9223372036854774784.0},
    {"bias", 0, CLI_NUMBER, "B", "bias", NULL, -2, 2},
    {"stop", 0, CLI_TEXTS, "TEXT", "stop"},
    {"fast", 0, CLI_FLAG, NULL, "fast"},
    {NULL},
};
static const struct cli_command commands[] = {
    {"run", "MODEL [PROMPT]", "runs", NULL, 1, 2, run_options, NULL, NULL},
    {"stop", "", "stops", NULL, 0, 0, NULL, NULL, NULL},
    {NULL},
};

static char error[512];
static struct cli_line line;

static bool parse(const char *words) {
    static char copy[512];
    char *argv[32] = {"shimmyctl"};
    int argc = 1;
    cli_line_finish(&line);
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    return cli_parse(global, commands, argc, argv, &line, error, sizeof error);
}

static void assert_refused(const char *words, const char *expected) {
    assert_false(parse(words));
    if (!strstr(error, expected)) fail_msg("\"%s\": found \"%s\", expected something with \"%s\"", words, error, expected);
}

static void options_stand_anywhere(void **state) {
    (void)state;
    assert_true(parse("-s /a/b run --count 5 m --json p --fast"));
    assert_string_equal(line.command->name, "run");
    assert_string_equal(cli_text(&line, "socket"), "/a/b");
    assert_int_equal(cli_value(&line, "count")->integer, 5);
    assert_true(cli_flag(&line, "json"));
    assert_true(cli_flag(&line, "fast"));
    assert_false(cli_flag(&line, "verbose"));
    assert_int_equal(line.n_arguments, 2);
    assert_string_equal(line.arguments[0], "m");
    assert_string_equal(line.arguments[1], "p");
}

static void values_in_all_forms(void **state) {
    (void)state;
    assert_true(parse("run m --count=7 --bias -0.5 --stop a --stop=b=c"));
    assert_int_equal(cli_value(&line, "count")->integer, 7);
    assert_true(cli_value(&line, "bias")->number == -0.5);
    assert_int_equal(cli_value(&line, "stop")->n_texts, 2);
    assert_string_equal(cli_value(&line, "stop")->texts[1], "b=c");
    assert_true(parse("run m -n8 -jv"));
    assert_int_equal(cli_value(&line, "count")->integer, 8);
    assert_true(cli_flag(&line, "json") && cli_flag(&line, "verbose"));
    assert_true(parse("run m -n 9 -js /x"));
    assert_int_equal(cli_value(&line, "count")->integer, 9);
    assert_string_equal(cli_text(&line, "socket"), "/x");
    assert_null(cli_text(&line, "bias"));
    assert_true(parse("run m -n 1 -n 2"));
    assert_int_equal(cli_value(&line, "count")->integer, 2);
}

static void double_dash_ends_options(void **state) {
    (void)state;
    assert_true(parse("run m -- --count"));
    assert_string_equal(line.arguments[1], "--count");
    assert_false(cli_value(&line, "count")->set);
    assert_true(parse("run m -"));
    assert_string_equal(line.arguments[1], "-");
}

static void mistakes_are_named(void **state) {
    (void)state;
    assert_refused("walk", "\"walk\"");
    assert_refused("run m --speed 3", "--speed");
    assert_refused("--count 3 run m", "after its name");
    assert_refused("run m -x", "-x");
    assert_refused("run m --count", "value is missing");
    assert_refused("run m -n", "value is missing");
    assert_refused("run m --fast=1", "takes no value");
    assert_refused("run", "MODEL [PROMPT]");
    assert_refused("run a b c", "\"c\"");
    assert_refused("stop now", "expected none");
}

static void numbers_are_checked(void **state) {
    (void)state;
    assert_refused("run m --count 0", "from 1");
    assert_refused("run m --count 5x", "\"5x\"");
    assert_refused("run m --count 9223372036854775808", "whole number");
    assert_refused("run m --count 1.5", "whole number");
    assert_refused("run m --bias 2.1", "from -2 to 2");
    assert_refused("run m --bias nan", "number");
    assert_refused("run m --bias inf", "number");
    assert_refused("run m --bias=", "number");
    assert_true(parse("run m --count 9223372036854774784 --bias 2"));
    assert_true(cli_value(&line, "count")->integer == 9223372036854774784);
}

static void help_needs_no_arguments(void **state) {
    (void)state;
    assert_true(parse("run --help"));
    assert_true(cli_flag(&line, "help"));
    assert_true(parse("--help"));
    assert_null(line.command);
}

static void too_many_of_one(void **state) {
    (void)state;
    char *argv[CLI_TEXTS_MAX * 2 + 8] = {"shimmyctl", "run", "m"};
    int argc = 3;
    for (int i = 0; i <= CLI_TEXTS_MAX; i++) {
        argv[argc++] = "--stop";
        argv[argc++] = "x";
    }
    cli_line_finish(&line);
    assert_true(cli_parse(global, commands, argc - 2, argv, &line, error, sizeof error));
    assert_int_equal(cli_value(&line, "stop")->n_texts, CLI_TEXTS_MAX);
    cli_line_finish(&line);
    assert_false(cli_parse(global, commands, argc, argv, &line, error, sizeof error));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_stand_anywhere),   cmocka_unit_test(values_in_all_forms),
        cmocka_unit_test(double_dash_ends_options), cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(numbers_are_checked),      cmocka_unit_test(help_needs_no_arguments),
        cmocka_unit_test(too_many_of_one),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cli_line_finish(&line);
    return failed;
}
