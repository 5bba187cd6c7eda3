/*
 * test_chat_answer.c - reading answers: every form, however the text is cut into pushes.
 *
 * An answer's pieces are written down as one text: C[content] R[reasoning] 0:name#id(arguments). Each answer is read whole,
 * cut in two at every character, and one character at a time, and gives the same each time.
 */
#include "tests/unit/core.h"
#include "tests/unit/shared.h"

#include "compute/base.h"
#include "compute/chat/format.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":\"object\",\"properties\":{"
    "\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"},\"unit\":{\"enum\":[\"c\",\"f\"]},\"note\":{\"type\":["
    "\"string\",\"null\"]},"
    "\"opts\":{\"$ref\":\"#/$defs/opts\"},\"any\":{}},\"$defs\":{\"opts\":{\"type\":\"object\"}}}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"now\"}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"python\",\"parameters\":{\"type\":\"object\",\"properties\":{\"code\":{"
    "\"type\":\"string\"}}}}}]";

struct reading {
    char text[16384];
    size_t length;
    int kind; /* of the piece that is open; -1: none */
    uint32_t call;
};

static void put(struct reading *r, const char *text, size_t length) {
    assert_true(r->length + length < sizeof r->text);
    memcpy(r->text + r->length, text, length);
    r->length += length;
    r->text[r->length] = '\0';
}

static void close_piece(struct reading *r) {
    if (r->kind < 0) return;
    const char *end = r->kind == SH_ANSWER_CALL || r->kind == SH_ANSWER_ARGUMENTS ? ")" : "]";
    put(r, end, 1);
    r->kind = -1;
}

static void note(struct reading *r, const struct sh_answer_piece *p) {
    assert_int_equal(strlen(p->text), p->length);
    const bool of_call = p->kind == SH_ANSWER_CALL || p->kind == SH_ANSWER_ARGUMENTS;
    if (p->kind == SH_ANSWER_CALL || (of_call ? r->kind != SH_ANSWER_ARGUMENTS : r->kind != (int)p->kind)) close_piece(r);
    if (p->kind == SH_ANSWER_CALL) {
        char head[512];
        const int n =
            snprintf(head, sizeof head, "%u:%s%s%s(", p->call, p->name, p->id != NULL ? "#" : "", p->id != NULL ? p->id : "");
        put(r, head, (size_t)n);
        r->kind = SH_ANSWER_ARGUMENTS;
        r->call = p->call;
        assert_int_equal(p->length, 0);
        return;
    }
    assert_true(p->length > 0);
    if (of_call) assert_int_equal(p->call, r->call);
    if (r->kind < 0) {
        assert_int_not_equal(p->kind, SH_ANSWER_ARGUMENTS);
        put(r, p->kind == SH_ANSWER_CONTENT ? "C[" : "R[", 2);
    }
    r->kind = (int)p->kind;
    put(r, p->text, p->length);
}

static void push(struct reading *r, struct sh_answer *answer, const char *text, size_t length, bool last) {
    const struct sh_answer_piece *pieces;
    uint32_t count;
    char *exact = malloc(length + 1); /* so that a sanitizer sees reads behind it */
    assert_non_null(exact);
    memcpy(exact, text, length);
    assert_int_equal(sh_answer_push(answer, exact, length, last, &pieces, &count, NULL), SH_OK);
    free(exact);
    for (uint32_t i = 0; i < count; i++) note(r, &pieces[i]);
    if (last) close_piece(r);
}

static size_t character(const char *text) {
    size_t n = 1;
    while (((unsigned char)text[n] & 0xc0) == 0x80) n++;
    return n;
}

struct asked {
    const char *template_text, *prompt, *tools;
    bool keep_reasoning, continue_last, single_call;
};

static void read_answer(const struct asked *asked, const char *text, const char *expected) {
    struct sh_format *format = NULL;
    struct sh_error err = {0};
    assert_int_equal(sh_format_recognise(NULL, asked->template_text, strlen(asked->template_text), &format, &err), SH_OK);
    const struct sh_chat_request request = {.size = sizeof request,
                                            .messages = "[]",
                                            .tools = asked->tools,
                                            .keep_reasoning = asked->keep_reasoning,
                                            .continue_last = asked->continue_last,
                                            .single_call = asked->single_call};
    struct sh_chat_prompt prompt = {0};
    const char *before = asked->prompt != NULL ? asked->prompt : "";
    assert_int_equal(sh_answer_plan_create(format, NULL, &request, before, strlen(before), &prompt.plan, &prompt.grammar, &err),
                     SH_OK);
    assert_null(prompt.grammar);
    const size_t length = strlen(text);
    for (size_t cut = 0;; cut = cut > length ? cut + 1 : cut == length ? length + 1 : cut + character(text + cut)) {
        struct sh_answer *answer = NULL;
        assert_int_equal(sh_answer_create(&prompt, &answer, &err), SH_OK);
        struct reading *r = calloc(1, sizeof *r);
        assert_non_null(r);
        r->kind = -1;
        if (cut <= length) {
            push(r, answer, text, cut, false);
            push(r, answer, text + cut, length - cut, true);
        } else {
            for (size_t i = 0; i < length; i += character(text + i)) push(r, answer, text + i, character(text + i), false);
            push(r, answer, "", 0, true);
        }
        if (strcmp(r->text, expected) != 0)
            fail_msg("%s, cut at %zu of %zu\n  answer:   %s\n  expected: %s\n  got:      %s", sh_format_tools(format), cut,
                     length, text, expected, r->text);
        free(r);
        sh_answer_destroy(answer);
        if (cut > length) break;
    }
    sh_answer_plan_free(prompt.plan);
    sh_format_free(format);
}

static void answer(const char *template_text, const char *text, const char *expected) {
    read_answer(&(struct asked){.template_text = template_text, .tools = tools}, text, expected);
}

#define HERMES "<tool_call> <think> </think>"

static void test_plain(void **state) {
    (void)state;
    read_answer(&(struct asked){.template_text = ""}, "Paris.", "C[Paris.]");
    read_answer(&(struct asked){.template_text = ""}, "", "");
    read_answer(&(struct asked){.template_text = ""}, "  Zürich \n\n ", "C[  Zürich \n\n ]");
    read_answer(&(struct asked){.template_text = HERMES}, "<tool_call>{\"name\":\"now\"}</tool_call>",
                "C[<tool_call>{\"name\":\"now\"}</tool_call>]");
    answer(HERMES, "  Zürich \n\n ", "C[  Zürich \n\n ]");
    answer(HERMES, "a < b <tool <tool_cal", "C[a < b <tool <tool_cal]");
}

/* Is the last call whole? */
static void test_cut(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool cut;
    } cases[] = {
        {"<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1}}</tool_call>", false},
        {"<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1}}</tool", false},
        {"<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1", true},
        {"<tool_call>{\"name\": \"now\", \"arguments\": ", true},
        {"<tool_call>{\"name\": \"no", false}, /* content: no call was begun */
        {"Paris", false},
    };
    struct sh_format *format = NULL;
    struct sh_error err = {0};
    assert_int_equal(sh_format_recognise(NULL, HERMES, strlen(HERMES), &format, &err), SH_OK);
    const struct sh_chat_request request = {.size = sizeof request, .messages = "[]", .tools = tools};
    struct sh_chat_prompt prompt = {0};
    assert_int_equal(sh_answer_plan_create(format, NULL, &request, "", 0, &prompt.plan, &prompt.grammar, &err), SH_OK);
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        struct sh_answer *answer = NULL;
        const struct sh_answer_piece *pieces;
        uint32_t count;
        assert_int_equal(sh_answer_create(&prompt, &answer, &err), SH_OK);
        assert_int_equal(sh_answer_push(answer, cases[i].text, strlen(cases[i].text), true, &pieces, &count, &err), SH_OK);
        if (sh_answer_is_cut(answer) != cases[i].cut) fail_msg("%s: %s", cases[i].text, cases[i].cut ? "whole" : "cut");
        sh_answer_destroy(answer);
    }
    sh_answer_plan_free(prompt.plan);
    sh_format_free(format);
}

static void test_thinking(void **state) {
    (void)state;
    answer(HERMES, "<think>\nHm.\n\nSo \n</think>\n\nParis.\n", "R[Hm.\n\nSo]C[Paris.\n]");
    answer(HERMES, "\n<think></think>\n\nParis.", "C[Paris.]");
    answer(HERMES, "<think>Hm. ", "R[Hm. ]");
    answer(HERMES, "<think>Hm.</thin", "R[Hm.</thin]");
    answer(HERMES, "One writes <think> first and </think> last.", "C[One writes <think> first and </think> last.]");
    answer(HERMES, "</think>\n\nParis.", "C[Paris.]");
    answer("Here is my thought process: Here is my response:",
           "Here is my thought process: Hm.\n\nHere is my response:\n\nParis.", "R[Hm.]C[Paris.]");
    answer("<think> </think> <response>", "<think>Hm</think><response>Paris.</response>", "R[Hm]C[Paris.]");
    const struct asked open = {.template_text = HERMES, .tools = tools, .prompt = "<|im_start|>assistant\n<think>\n"};
    read_answer(&open, "Hm.\n</think>\n\nParis.", "R[Hm.]C[Paris.]");
    read_answer(&open, "Hm. <tool_call>?</think><tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
                "R[Hm. <tool_call>?]0:now({})");
    const struct asked closed = {.template_text = HERMES, .prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"};
    read_answer(&closed, "Paris.", "C[Paris.]");
    const struct asked within = {.template_text = HERMES, .prompt = "<think>One </think>two<think>three", .continue_last = true};
    read_answer(&within, " four</think>five", "R[four]C[five]");
    const struct asked keep = {.template_text = HERMES, .tools = tools, .keep_reasoning = true};
    read_answer(&keep, "<think>\nHm. \n</think>\n\nParis.", "C[<think>\nHm. \n</think>\n\nParis.]");
    read_answer(&keep, "<think>Hm.</think>\n<tool_call>{\"name\": \"now\"}</tool_call>", "C[<think>Hm.</think>]0:now({})");
}

static void test_hermes(void **state) {
    (void)state;
    answer(HERMES, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 3}}\n</tool_call>",
           "0:get_weather({\"city\": \"Zürich\", \"days\": 3})");
    answer(
        HERMES,
        "I look.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", "
        "\"arguments\": {\"opts\": {\"a\": [1, {\"b\": \"}\\\"\"}]}}}\n</tool_call>\n",
        "C[I look.]0:now({})1:get_weather({\"opts\": {\"a\": [1, {\"b\": \"}\\\"\"}]}})");
    answer(HERMES, "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"now\"}</tool_call> Done. ", "0:now({\"a\": 1})C[Done. ]");
    answer(HERMES,
           "<tool_call>{\"name\": \"now\", \"arguments\": \"{\\\"a\\\": \\\"\\\\u00fc\\\\n\\ud83d\\ude00\\\"}\"}</tool_call>",
           "0:now({\"a\": \"\\u00fc\\n😀\"})");
    answer(HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": \"\"}</tool_call>", "0:now({})");
    answer(HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", "0:now({})");
    answer(HERMES, "<tool_call>{\"name\": \"python\", \"arguments\": {\"code\": \"a\n\tb\"}}</tool_call>",
           "0:python({\"code\": \"a\\n\\tb\"})");
    answer(HERMES, "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"now\", \"arguments\": {}}}</tool_call>",
           "0:now({})");
    answer(HERMES, "<tool_call>{\"id\": \"x1\", \"name\": \"now\", \"arguments\": {}}</tool_call>", "0:now#x1({})");
    answer(HERMES, "<tool_call>[{\"name\": \"now\"}, {\"name\": \"now\"}]</tool_call>", "0:now({})1:now({})");
    answer(HERMES, "<tool_call>{\"name\": \"now\"}\n{\"name\": \"now\"}</tool_call>", "0:now({})1:now({})");
    answer(HERMES, "<tool_call>{\"name\": \"now\"}", "0:now({})");
    answer(HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": [1", "0:now({\"a\": [1)");
}

static void test_single_call(void **state) {
    (void)state;
    const struct asked one = {.template_text = HERMES, .tools = tools, .single_call = true};
    read_answer(
        &one,
        "<tool_call>{\"name\": \"now\"}</tool_call><tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1}}</tool_call>So.",
        "0:now({})C[So.]");
}

static void test_malformed(void **state) {
    (void)state;
    answer(HERMES, "Hm <tool_call>\n{\"nam", "C[Hm <tool_call>\n{\"nam]");
    answer(HERMES, "Hm <tool_call> no </tool_call> x", "C[Hm <tool_call> no </tool_call> x]");
    answer(HERMES, "<tool_call><tool_call>{\"name\": \"now\"}</tool_call>", "C[<tool_call>]0:now({})");
    answer(HERMES, "<tool_call>{\"name\": 1}</tool_call>", "C[<tool_call>{\"name\": 1}</tool_call>]");
    answer(HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\" 1}}", "0:now({\"a\" )C[1}}]");
    answer(HERMES, "<tool_call>{\"arguments\": {\"a\": 1}, \"x\": [}", "C[<tool_call>{\"arguments\": {\"a\": 1}, \"x\": [}]");
}

static void test_bare(void **state) {
    (void)state;
    static const char *const llama3 = "ipython \"parameters\"";
    answer(llama3, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Zürich\"}}",
           "0:get_weather({\"city\": \"Zürich\"})");
    answer(llama3, "{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}", "0:now({})");
    answer(llama3, "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {\"a\": \"1\"}}",
           "0:now({})1:now({\"a\": \"1\"})");
    answer(llama3, "{\"name\": \"Anna\", \"parameters\": {}}", "C[{\"name\": \"Anna\", \"parameters\": {}}]");
    answer(llama3, "{\"age\": 7}", "C[{\"age\": 7}]");
    answer(llama3, "So {\"name\": \"now\"} it is", "C[So {\"name\": \"now\"} it is]");
    answer(llama3, "{\"name\": \"now\"}; and", "0:now({})C[; and]");
    answer("", "```json\n{\"name\": \"now\", \"arguments\": {}}\n```\n", "0:now({})");
    answer("", "Look:\n[{\"name\": \"now\", \"arguments\": {}}]", "C[Look:]0:now({})");
    answer("", "```json\n{\"a\": 1}\n```\n", "C[```json\n{\"a\": 1}\n```\n]");
    answer("", "[1, 2]", "C[[1, 2]]");
}

static void test_arrays(void **state) {
    (void)state;
    answer("[TOOL_CALLS]",
           "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\"}, \"id\": \"call00001\"}, {\"name\": "
           "\"now\"}]",
           "0:get_weather({\"city\": \"Zürich\"})1:now({})");
    answer("<|tool_call|>", "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]", "0:now({})");
    answer("<TOOLCALL>", "<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>", "0:now({})");
    answer(
        "<tool_calls>",
        " <tool_calls>[\n    {\"name\": \"now\", \"arguments\": {}},\n    {\"name\": \"now\", \"arguments\": {}}\n]</tool_calls>",
        "0:now({})1:now({})");
    answer("functools[", " functools[{\"name\": \"now\", \"arguments\": {}}]", "0:now({})");
    answer("functools[", "import functools", "C[import functools]");
    answer("<|START_ACTION|> <|START_THINKING|>",
           "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"now\", "
           "\"parameters\": {}}\n]"
           "<|END_ACTION|>",
           "R[Hm.]0:now#0({})");
    answer("<|START_ACTION|> <|START_THINKING|>", "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Paris.<|END_RESPONSE|>",
           "R[Hm.]C[Paris.]");
    static const char *const command_r = "Action: ```json tool_name";
    answer(command_r, "Action:\n```json\n[\n    {\n        \"tool_name\": \"now\",\n        \"parameters\": {}\n    }\n]```",
           "0:now({})");
    answer(command_r, "Action: ```json\n[{\"tool_name\": \"directly-answer\", \"parameters\": {}}]\n```\nParis.", "C[Paris.]");
    answer(command_r, "Action: none", "C[Action: none]");
    answer(
        "<|tools_prefix|> <|inner_prefix|>",
        "<|inner_prefix|>Hm<|inner_suffix|><|tools_prefix|>[{\"now\": {}}, {\"get_weather\": {\"city\": \"x\"}}]<|tools_suffix|>",
        "R[Hm]0:now({})1:get_weather({\"city\": \"x\"})");
    answer("[TOOL_CALLS]", "[TOOL_CALLS][{\"name\": \"now\"}, 1]", "0:now({})C[, 1]]");
}

static void test_named(void **state) {
    (void)state;
    static const char *const v11 = "[TOOL_CALLS] [ARGS] [THINK]";
    answer(v11, "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{\"city\": \"x\"}",
           "0:now({})1:get_weather({\"city\": \"x\"})");
    answer(v11, "[THINK]Hm[/THINK]So[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}", "R[Hm]C[So]0:now#abc({})");
    answer(v11, "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}]", "0:now({})");
    answer(v11, "[TOOL_CALLS]now[ARGS]\"{\\\"a\\\": 1}\"", "0:now({\"a\": 1})");
    answer("<function=</function>", "<function=now>{\"a\": 1}</function><function=now>{}</function>",
           "0:now({\"a\": 1})1:now({})");
    static const char *const r1 = "<｜tool▁call▁begin｜> ```json <think> </think>";
    answer(r1,
           "<think>Hm</think>\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{\"a\": "
           "\"```\"}\n```<｜tool▁call▁end｜>\n"
           "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
           "R[Hm]0:now({\"a\": \"```\"})1:get_weather({})");
    answer("<｜tool▁call▁begin｜>",
           "So<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁call▁begin｜>"
           "now<｜tool▁sep｜>{\"ü\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
           "C[So]0:now({})1:now({\"ü\": 1})");
    static const char *const kimi = "<|tool_calls_section_begin|> <think></think>";
    answer(
        kimi,
        "<think>Hm<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_call_begin|>functions.get_weather:1<|tool_call_argument_begin|>{\"city\": "
        "\"x\"}<|tool_call_end|><|tool_calls_section_end|>",
        "R[Hm]0:now#functions.now:0({})1:get_weather#functions.get_weather:1({\"city\": \"x\"})");
    answer(kimi, "<|tool_calls_section_begin|><|tool_calls_section_end|>x",
           "C[<|tool_calls_section_begin|><|tool_calls_section_end|>x]");
}

static void test_tagged(void **state) {
    (void)state;
    static const char *const qwen = "<tool_call> <function= <parameter= <think> </think>";
    answer(qwen,
           "I "
           "look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n\"a\"\n\n</parameter>\n<parameter=days>\n3\n</"
           "parameter>\n"
           "<parameter=opts>\n{'urgent': True, 'x': (1, "
           "None)}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n"
           "</tool_call>",
           "C[I look.]0:get_weather({\"city\": \"Zürich\\n\\\"a\\\"\\n\", \"days\": 3, \"opts\": {\"urgent\": true, \"x\": [1, "
           "null]}})1:now({})");
    answer(qwen, "<function=get_weather>\n<parameter=note>\nNone\n</parameter>\n<parameter=unit>c</parameter>\n</function>",
           "0:get_weather({\"note\": null, \"unit\": \"c\"})");
    answer(
        qwen,
        "<tool_call><function=get_weather><parameter=note>12</parameter><parameter=any>12</parameter><parameter=any>x "
        "y</parameter>"
        "<parameter=days>many</parameter><parameter=city></parameter><parameter=days></parameter></function></tool_call>",
        "0:get_weather({\"note\": \"12\", \"any\": 12, \"any\": \"x y\", \"days\": \"many\", \"city\": \"\", \"days\": \"\"})");
    answer(qwen, "<tool_call><function=now><parameter=city>a </para> b</parameter></function></tool_call>",
           "0:now({\"city\": \"a </para> b\"})");
    answer(qwen, "<tool_call>\n<function=now", "C[<tool_call>\n<function=now]");
    answer(qwen, "<tool_call>\n<function=get_weather>\n<parameter=city>\nZü", "0:get_weather({\"city\": \"Zü)");
    answer("<seed:tool_call> <seed:think>",
           "<seed:think>Hm</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Zürich\n</parameter>\n"
           "<parameter=days>3</parameter>\n</function>\n</seed:tool_call>",
           "R[Hm]0:get_weather({\"city\": \"Zürich\\n\", \"days\": 3})");
    static const char *const glm = "<tool_call> <arg_key> <think> </think>";
    answer(glm,
           "\n<think></think>\nSo\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</"
           "arg_value>\n<arg_key>days</arg_key>\n"
           "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
           "C[So]0:get_weather({\"city\": \"Zürich\", \"days\": 3})1:now({})");
    answer(glm, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>x</arg_value></tool_call><tool_call>now</tool_call>",
           "0:get_weather({\"city\": \"x\"})1:now({})");
    static const char *const dsml = "｜DSML｜ function_calls>";
    answer(dsml,
           "So\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" "
           "string=\"true\">3</｜DSML｜parameter>\n"
           "<｜DSML｜parameter name=\"any\" string=\"true\">3</｜DSML｜parameter>\n<｜DSML｜parameter name=\"any\" "
           "string=\"false\">[3]</｜DSML｜parameter>\n"
           "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
           "C[So]0:get_weather({\"city\": \"3\", \"any\": \"3\", \"any\": [3]})1:now({})");
    answer("｜DSML｜", "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
           "0:now({})");
    answer("<minimax:tool_call>",
           "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter "
           "name=\"city\">x</parameter>\n</invoke>\n</minimax:tool_call>",
           "0:get_weather({\"city\": \"x\"})");
}

static void test_pythonic(void **state) {
    (void)state;
    static const char *const lfm2 = "List of tools: ";
    answer(lfm2,
           "<|tool_call_start|>[get_weather(city=\"Zür'ich\", days=3, opts={'a': [True, None, -1.5e3, (1,)]}), "
           "now()]<|tool_call_end|>Wait.",
           "0:get_weather({\"city\": \"Zür'ich\", \"days\": 3, \"opts\": {\"a\": [true, null, -1.5e3, [1]]}})1:now({})C[Wait.]");
    answer(lfm2,
           "<|tool_call_start|>[get_weather(city='a\\'\\\"\\n\\x41\\u00fc\\ud83d\\ude00\\101\\q\t', note=''\n)]<|tool_call_end|>",
           "0:get_weather({\"city\": \"a'\\\"\\nAü😀A\\\\q\\t\", \"note\": \"\"})");
    answer(lfm2, "<|tool_call_start|>[python(code=\"\"\"print(\"a\")\n\"\"\")]<|tool_call_end|>",
           "0:python({\"code\": \"print(\\\"a\\\")\\n\"})");
    answer(lfm2, "<|tool_call_start|>[{\"name\": \"now\", \"arguments\": {}}]<|tool_call_end|>", "0:now({})");
    answer(lfm2, "<|tool_call_start|>[now(]<|tool_call_end|>", "0:now({)C[]<|tool_call_end|>]");
    answer(lfm2, "<|tool_call_start|>[now(), 7]", "0:now({})C[, 7]]");
    answer(lfm2, "<|tool_call_start|>[mcp/a.b:c-d(x=1)]<|tool_call_end|>", "0:mcp/a.b:c-d({\"x\": 1})");
    answer(lfm2, "<|tool_call_start|>none", "C[<|tool_call_start|>none]");
    answer("<|tool_call_start|> ```python <|thought_start|>",
           "<|thought_start|>\nHm.\n<|thought_end|>\n<|tool_call_start|>\n```python\nget_weather(city=\"Zürich\",days=3)\nnow()"
           "\n```\n<|tool_call_end|>\n",
           "R[Hm.]0:get_weather({\"city\": \"Zürich\", \"days\": 3})1:now({})");
    static const char *const gemma = "<|tool_call>call: <|channel>thought";
    answer(gemma,
           "<|channel>thought\nHm.\n<channel|><|tool_call>call:get_weather{city:<|\"|>Zü<|\" "
           "\"rich<|\"|>,days:3,opts:{a:[true,None,<|\"|><|\"|>],"
           "<|\"|>b c<|\"|>:-1}}<tool_call|><|tool_call>call:now{}<tool_call|><|tool_response>",
           "R[Hm.]0:get_weather({\"city\": \"Zü<|\\\" \\\"rich\", \"days\": 3, \"opts\": {\"a\": [true, null, \"\"], \"b c\": "
           "-1}})1:now({})");
    answer(gemma, "<|tool_call>call:get_weather{unit:celsius}<tool_call|>Done", "0:get_weather({\"unit\": \"celsius\"})C[Done]");
    static const char *const llama3 = "ipython \"parameters\"";
    answer(llama3, "<|python_tag|>brave_search.call(query=\"a b\")", "0:brave_search({\"query\": \"a b\"})");
    answer(llama3, "<|python_tag|>print(\"ü\")\n", "0:python({\"code\": \"print(\\\"ü\\\")\\n\"})");
    answer(llama3, "<|python_tag|>{\"name\": \"now\", \"parameters\": {}}", "0:now({})");
}

static void test_functionary(void **state) {
    (void)state;
    const struct asked asked = {.template_text = ">>> recipient", .tools = tools, .prompt = "assistant\n\n>>>"};
    read_answer(&asked, "all\nParis > London.", "C[Paris > London.]");
    read_answer(&asked, "get_weather\n{\"city\": \"x\"}", "0:get_weather({\"city\": \"x\"})");
    read_answer(&asked, "all\nI look.\n>>>now\n{}>>>python\nprint(1)\n>>>all\nDone.",
                "C[I look.]0:now({})1:python({\"code\": \"print(1)\\n\"})C[Done.]");
    read_answer(&asked, "nobody\nx", "C[nobody\nx]");
    const struct asked none = {.template_text = ">>> recipient", .prompt = "assistant\n\n>>>"};
    read_answer(&none, "all\nParis.", "C[Paris.]");
    read_answer(&none, "now\n{}", "C[now\n{}]");
}

static void test_harmony(void **state) {
    (void)state;
    struct asked asked = {
        .template_text = "<|channel|> <|message|> analysis", .tools = tools, .prompt = "<|end|><|start|>assistant"};
    read_answer(
        &asked,
        "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant<|channel|>final<|message|>\nParis < London.<|return|>",
        "R[Hm.\n]C[\nParis < London.]");
    read_answer(&asked,
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
                "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": "
                "\"Zürich\"}<|call|>",
                "R[Hm.]C[I look.]0:get_weather({\"city\": \"Zürich\"})");
    read_answer(&asked, " to=functions.now<|channel|>commentary json<|message|>{}", "0:now({})");
    read_answer(&asked, "<|channel|>commentary to=functions.now<|message|><|call|>", "0:now({})");
    read_answer(&asked, "<|channel|>analysis to=python code<|message|>print(1)<|call|>", "0:python({\"code\": \"print(1)\"})");
    read_answer(&asked, "Paris.", "C[Paris.]");
    read_answer(&asked, "<|channel|>fin", "C[<|channel|>fin]");
    read_answer(&asked,
                "<|channel|>commentary to=functions.now<|message|>{\"a\" 1}<|end|><|start|>assistant<|channel|>final<|message|>x",
                "0:now({\"a\" )C[1}x]");
    asked.keep_reasoning = true;
    read_answer(&asked, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
                "C[<|channel|>analysis<|message|>Hm.<|end|>Paris.]");
    asked = (struct asked){.template_text = "<|channel|> <|message|> analysis",
                           .prompt = "<|start|>assistant<|channel|>final<|message|>The",
                           .continue_last = true};
    read_answer(&asked, " answer<|end|>", "C[ answer]");
    asked.prompt = "<|start|>assistant";
    read_answer(&asked, "<|channel|>commentary to=functions.now<|message|>{}", "C[{}]");
}

/* Texts that tempt a reader to look at the same bytes again and again: a quadratic one would take minutes. */
static void test_linear(void **state) {
    (void)state;
    static const struct {
        const char *template_text, *head, *repeated, *tail;
    } texts[] = {
        {HERMES, "", "<", ""},
        {HERMES, "", "<tool_call", ""},
        {HERMES, "", "<tool_call>", ""},
        {HERMES, "x", " \n", ""},
        {HERMES, "<think>", " \n", ""},
        {HERMES, "<tool_call>{\"arguments\": {\"a\": \"", "x", "\"}, \"n\": }"},
        {HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": \"{", " \\n", "}"},
        {HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": [", "1, ", "2]}}"},
        {"<tool_call> <function= <parameter=", "<tool_call><function=get_weather><parameter=days>", "\n</paramete",
         "</parameter>"},
        {"<tool_call> <function= <parameter=", "<tool_call><function=get_weather><parameter=city>", "\n</paramete",
         "</parameter>"},
        {"", "", "{\n", ""},
        {"", "", "[{\n", ""},
        {"", "{\"name\": \"", "x", ""},
        {"List of tools: ", "<|tool_call_start|>[now(a=[", "1, ", ""},
        {"List of tools: ", "<|tool_call_start|>[", "now(), ", ""},
        {"<|channel|> <|message|> analysis", "", "<|channel|>", ""},
        {"<|channel|> <|message|> analysis", "<|channel|>final<|message|>", "<|en", ""},
    };
    enum { BYTES = 300000 };
    for (size_t i = 0; i < SH_COUNT(texts); i++) {
        struct sh_format *format;
        const char *t = texts[i].template_text;
        assert_int_equal(sh_format_recognise(NULL, t, strlen(t), &format, NULL), SH_OK);
        const struct sh_chat_request request = {.size = sizeof request, .messages = "[]", .tools = tools};
        struct sh_chat_prompt prompt = {0};
        struct sh_answer *answer;
        const struct sh_answer_piece *pieces;
        uint32_t count;
        size_t total = 0, n = 0;
        assert_int_equal(sh_answer_plan_create(format, NULL, &request, "", 0, &prompt.plan, &prompt.grammar, NULL), SH_OK);
        assert_int_equal(sh_answer_create(&prompt, &answer, NULL), SH_OK);
        for (int part = 0; part < 3; part++) {
            const char *text = part == 0 ? texts[i].head : part == 1 ? texts[i].repeated : texts[i].tail;
            const size_t length = strlen(text), end = part == 1 ? BYTES : length;
            for (size_t k = 0; k < end; k++, n++) {
                assert_int_equal(sh_answer_push(answer, text + k % length, 1, false, &pieces, &count, NULL), SH_OK);
                for (uint32_t p = 0; p < count; p++) total += pieces[p].length;
            }
        }
        assert_int_equal(sh_answer_push(answer, "", 0, true, &pieces, &count, NULL), SH_OK);
        for (uint32_t p = 0; p < count; p++) total += pieces[p].length;
        assert_true(total <= 2 * n);
        sh_answer_destroy(answer);
        sh_answer_plan_free(prompt.plan);
        sh_format_free(format);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),       cmocka_unit_test(test_thinking), cmocka_unit_test(test_hermes),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_malformed),   cmocka_unit_test(test_bare),     cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_named),       cmocka_unit_test(test_tagged),   cmocka_unit_test(test_pythonic),
        cmocka_unit_test(test_functionary), cmocka_unit_test(test_harmony),  cmocka_unit_test(test_linear),
        cmocka_unit_test(test_single_call),
    };
    return cmocka_run_group_tests_name("chat_answer", tests, NULL, NULL);
}
