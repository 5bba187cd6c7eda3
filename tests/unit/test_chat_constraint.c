/*
 * test_chat_constraint.c - required calls: what the grammar of a form lets through is read back as calls that their schemas
 * allow, and an answer as the model would write it is let through.
 *
 * The vocabulary is bytes and the form's control tokens. Walks choose among the mask's tokens at random, now and then a
 * marker, so that texts come to an end.
 */
#include "tests/unit/chatvocab.h"
#include "tests/unit/core.h"
#include "tests/unit/shared.h"

#include "compute/chat/format.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_BYTE = 3, WALKS = 60, MAX_STEPS = 6000 };

#define WEATHER                                                                                                                  \
    "{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":\"object\",\"properties\":{"         \
    "\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":99},\"unit\":{\"enum\":[\"c\","     \
    "\"f\"]}},"                                                                                                                  \
    "\"required\":[\"city\",\"days\"],\"additionalProperties\":false}}}"
#define NOW "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}"
#define SEND                                                                                                                     \
    "{\"type\":\"function\",\"function\":{\"name\":\"send\",\"parameters\":{\"type\":\"object\",\"properties\":{"                \
    "\"to\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":8}},\"zip\":{\"type\":\"string\",\"pattern\":\"^["  \
    "0-9]{5}$\"},"                                                                                                               \
    "\"short\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":4},\"opts\":{\"$ref\":\"#/$defs/opts\"},"                      \
    "\"in\":{\"type\":\"object\",\"properties\":{\"a "                                                                           \
    "b\":{\"type\":\"boolean\"},\"s\":{\"type\":\"string\",\"maxLength\":5}},\"required\":[\"s\"],"                              \
    "\"additionalProperties\":false}},\"required\":[\"zip\"],"                                                                   \
    "\"additionalProperties\":false,\"$defs\":{\"opts\":{\"type\":\"object\",\"properties\":{\"urgent\":{\"type\":\"boolean\"}}" \
    ","                                                                                                                          \
    "\"required\":[\"urgent\"],\"additionalProperties\":false}}}}}"
#define TOOLS "[" WEATHER "," NOW "," SEND "]"

struct form {
    const char *name, *template_text, *prompt;
    const char *control[12]; /* tokens */
    const char *hints[8];    /* what brings a walk to its end */
    const char *natural[3];  /* answers as the model writes them */
};

static const struct form forms[] = {
    {"hermes",
     "<tool_call> <think> </think>",
     "<think>\n",
     {"<|im_end|>"},
     {"</think>", "\"}}\n</tool_call>"},
     {"Hm.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": "
      "3}}\n</tool_call>\n<tool_call>\n"
      "{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"}},
    {"hermes",
     "<tool_call> <think> </think>",
     "",
     {"<tool_call>", "</tool_call>", "<think>", "</think>"},
     {"</think>", "\"}}\n</tool_call>"},
     {"<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
      "<think>Hm</think>\n\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>"}},
    {"qwen3-coder",
     "<tool_call> <function= <parameter= </think>",
     "<think></think>",
     {NULL},
     {"</parameter>\n", "\n</parameter>\n", "\n</function>\n</tool_call>"},
     {"<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n</"
      "function>\n</tool_call>",
      "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
      "<tool_call>\n<function=send>\n<parameter=to>\n[\"a\"]\n</parameter>\n<parameter=zip>\n01234\n</"
      "parameter>\n<parameter=opts>\n"
      "{\"urgent\": true}\n</parameter>\n</function>\n</tool_call>"}},
    {"seed-oss",
     "<seed:tool_call> <seed:think>",
     "",
     {"<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"},
     {"</seed:think>", "</parameter>\n", "</function>\n</seed:tool_call>"},
     {"<seed:tool_call>\n<function=get_weather>\n<parameter=city>Zürich</parameter>\n<parameter=days>3</parameter>\n</"
      "function>\n</seed:tool_call>"}},
    {"glm",
     "<tool_call> <arg_key>",
     "",
     {"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"},
     {"</arg_value>", "</arg_value>\n</tool_call>", "\"]</arg_value>"},
     {"<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</"
      "arg_value>\n</tool_call>",
      "<tool_call>get_weather<arg_key>city</arg_key><arg_value>x</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></"
      "tool_call>"}},
    {"dsml",
     "｜DSML｜ function_calls>",
     "",
     {"｜DSML｜"},
     {"</｜DSML｜parameter>\n", "</｜DSML｜invoke>\n</｜DSML｜function_calls>"},
     {"<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" "
      "string=\"true\">x</｜DSML｜parameter>\n"
      "<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"}},
    {"minimax-m2",
     "<minimax:tool_call>",
     "",
     {NULL},
     {"</parameter>\n", "</invoke>\n</minimax:tool_call>"},
     {"<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>"}},
    {"deepseek-r1",
     "<｜tool▁call▁begin｜> ```json",
     "",
     {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"},
     {"\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
     {"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\n<"
      "｜tool▁call▁begin｜>function<｜tool▁sep｜>"
      "get_weather\n```json\n{\"city\": \"Z\", \"days\": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"}},
    {"deepseek-v3.1",
     "<｜tool▁call▁begin｜>",
     "",
     {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"},
     {"\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
     {"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"}},
    {"kimi-k2",
     "<|tool_calls_section_begin|>",
     "",
     {"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
      "<|tool_call_argument_begin|>"},
     {"\"}<|tool_call_end|><|tool_calls_section_end|>"},
     {"<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_"
      "section_end|>"}},
    {"gemma4",
     "<|tool_call>call: <|channel>thought",
     "",
     {"<|tool_call>", "<tool_call|>", "<|\"|>", "<|channel>", "<channel|>", "<|tool_response>"},
     {"<channel|>", "<|\"|>}<tool_call|>", "<|\"|>"},
     {"<|tool_call>call:get_weather{city:<|\"|>Zürich<|\"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>",
      "<|channel>thought\nHm\n<channel|><|tool_call>call:send{to:[<|\"|>a<|\"|>],zip:<|\"|>01234<|\"|>,in:{s:<|\"|><|\"|>}}<tool_"
      "call|>"}},
    {"apertus",
     "<|tools_prefix|> <|inner_prefix|>",
     "",
     {"<|tools_prefix|>", "<|tools_suffix|>", "<|inner_prefix|>", "<|inner_suffix|>"},
     {"<|inner_suffix|>", "\"}}]<|tools_suffix|>"},
     {"<|tools_prefix|>[{\"now\": {}}, {\"get_weather\": {\"city\": \"Z\", \"days\": 3}}]<|tools_suffix|>"}},
    {"command-r7b",
     "<|START_ACTION|> <|START_THINKING|>",
     "<|START_THINKING|><|END_THINKING|>",
     {"<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"},
     {"\"}}\n]<|END_ACTION|>"},
     {"<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"now\", \"parameters\": {}},\n    {\"tool_call_id\": "
      "\"1\", \"tool_name\": "
      "\"get_weather\", \"parameters\": {\"city\": \"Z\", \"days\": 3}}\n]<|END_ACTION|>"}},
    {"command-r",
     "Action: ```json tool_name",
     "",
     {NULL},
     {"\"}}\n]```"},
     {"Action: ```json\n[\n    {\n        \"tool_name\": \"now\",\n        \"parameters\": {}\n    }\n]```"}},
    {"mistral",
     "[TOOL_CALLS]",
     "",
     {"[TOOL_CALLS]"},
     {"\"}}]"},
     {"[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {}, \"id\": \"call00001\"}, {\"name\": \"now\", \"arguments\": {}}]"}},
    {"mistral-v11",
     "[TOOL_CALLS] [ARGS] [THINK]",
     "",
     {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"},
     {"[/THINK]", "\"}"},
     {"[THINK]Hm[/THINK][TOOL_CALLS]get_weather[ARGS]{\"city\": \"Z\", \"days\": 3}[TOOL_CALLS]now[CALL_ID]abcdef123[ARGS]{}"}},
    {"functionary-v3.1",
     "<function=</function>",
     "",
     {NULL},
     {"\"}</function>"},
     {"<function=now>{}</function><function=now>{}</function>"}},
    {"functionary-v3.2", ">>> recipient", ">>>", {NULL}, {"\"}"}, {"get_weather\n{\"city\": \"Z\", \"days\": 3}>>>now\n{}"}},
    {"firefunction-v2",
     "functools[",
     "",
     {NULL},
     {"\"}}]"},
     {"functools[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\", \"arguments\": {}}]"}},
    {"granite", "<|tool_call|>", "", {"<|tool_call|>"}, {"\"}}]"}, {"<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]"}},
    {"nemotron-v2",
     "<TOOLCALL>",
     "",
     {NULL},
     {"\"}}]</TOOLCALL>"},
     {"<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>"}},
    {"jamba",
     "<tool_calls>",
     "",
     {NULL},
     {"\"}}\n]</tool_calls>"},
     {"<tool_calls>[\n    {\"name\": \"now\", \"arguments\": {}}\n]</tool_calls>"}},
    {"lfm2",
     "List of tools: ",
     "",
     {"<|tool_call_start|>", "<|tool_call_end|>"},
     {"\")]<|tool_call_end|>"},
     {"<|tool_call_start|>[get_weather(city=\"Zürich\", days=3), now()]<|tool_call_end|>"}},
    {"minicpm3",
     "<|tool_call_start|> ```python",
     "",
     {"<|tool_call_start|>", "<|tool_call_end|>"},
     {"\")\n```\n<|tool_call_end|>"},
     {"<|tool_call_start|>\n```python\nget_weather(city=\"Z\",days=3)\nnow()\n```\n<|tool_call_end|>"}},
    {"llama3",
     "ipython \"parameters\"",
     "",
     {"<|python_tag|>"},
     {"\"}}"},
     {"{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Z\", \"days\": 3}}"}},
    {"generic", "", "", {NULL}, {"\"}}"}, {"{\"name\": \"now\", \"arguments\": {}}", "[{\"name\": \"now\", \"arguments\": {}}]"}},
    {"harmony",
     "<|channel|> <|message|> analysis",
     "<|start|>assistant",
     {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"},
     {"<|end|>", "\"}"},
     {"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.now "
      "<|constrain|>json<|message|>{}",
      " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Z\", \"days\": 3}"}},
};

struct text {
    char bytes[MAX_STEPS * 32];
    size_t length;
};

static void add_token(struct text *t, const struct sh_vocab *v, int32_t token) {
    size_t n;
    const char *piece = sh_vocab_piece(v, token, true, &n);
    assert_true(t->length + n < sizeof t->bytes);
    memcpy(t->bytes + t->length, piece, n);
    t->length += n;
    t->bytes[t->length] = '\0';
}

/* The token that a text begins with: one of the control tokens, or the byte. */
static int32_t first_token(const struct sh_vocab *v, const char *text, size_t *length) {
    int32_t best = FIRST_BYTE + (uint8_t)*text;
    *length = 1;
    for (uint32_t i = CHATVOCAB_CONTROL; i < sh_vocab_size(v); i++) {
        size_t n;
        const char *piece = sh_vocab_piece(v, (int32_t)i, true, &n);
        if (n > *length && strncmp(text, piece, n) == 0) {
            best = (int32_t)i;
            *length = n;
        }
    }
    return best;
}

/* As much of the text as the matcher lets through: true if it is all. */
static bool feed(struct sh_matcher *m, const struct sh_vocab *v, const char *text, struct text *out) {
    struct sh_error err;
    while (*text != '\0') {
        size_t n;
        const int32_t token = first_token(v, text, &n);
        if (sh_matcher_accept(m, token, &err) != SH_OK) return false;
        if (out != NULL) add_token(out, v, token);
        text += n;
    }
    return true;
}

/* ---- what the tools' schemas say ---- */

static bool string_of(const json_t *value, size_t min, size_t max) {
    if (!json_is_string(value)) return false;
    size_t n = 0;
    for (const char *s = json_string_value(value); *s != '\0'; s++) n += (*s & 0xc0) != 0x80;
    return n >= min && n <= max;
}

static bool only(const json_t *object, const char *keys) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        char wrapped[64];
        snprintf(wrapped, sizeof wrapped, "|%s|", key);
        if (strstr(keys, wrapped) == NULL) return false;
    }
    return true;
}

static bool allowed(const char *name, const json_t *a) {
    if (!json_is_object(a)) return false;
    if (strcmp(name, "now") == 0) return json_object_size(a) == 0;
    if (strcmp(name, "get_weather") == 0) {
        const json_t *days = json_object_get(a, "days"), *unit = json_object_get(a, "unit");
        if (unit != NULL &&
            (!json_is_string(unit) || (strcmp(json_string_value(unit), "c") != 0 && strcmp(json_string_value(unit), "f") != 0)))
            return false;
        return only(a, "|city|days|unit|") && json_is_string(json_object_get(a, "city")) && json_is_integer(days) &&
               json_integer_value(days) >= 0 && json_integer_value(days) <= 99;
    }
    if (strcmp(name, "send") != 0 || !only(a, "|to|zip|short|opts|in|")) return false;
    const json_t *zip = json_object_get(a, "zip"), *to = json_object_get(a, "to"), *brief = json_object_get(a, "short");
    const json_t *opts = json_object_get(a, "opts"), *in = json_object_get(a, "in");
    if (!string_of(zip, 5, 5) || strspn(json_string_value(zip), "0123456789") != 5) return false;
    if (to != NULL && !json_is_array(to)) return false;
    for (size_t i = 0; i < json_array_size(to); i++)
        if (!string_of(json_array_get(to, i), 0, 8)) return false;
    if (brief != NULL && !string_of(brief, 1, 4)) return false;
    if (opts != NULL && (!only(opts, "|urgent|") || !json_is_boolean(json_object_get(opts, "urgent")))) return false;
    return in == NULL || (json_is_object(in) && only(in, "|a b|s|") && string_of(json_object_get(in, "s"), 0, 5));
}

/* Reads an answer that is nothing but reasoning and calls; how many calls. */
static uint32_t read_calls(const struct form *form, struct sh_answer_plan *plan, const struct text *text) {
    const struct sh_chat_prompt prompt = {.plan = plan};
    struct sh_answer *answer;
    const struct sh_answer_piece *pieces;
    uint32_t count, calls = 0;
    struct sh_error err;
    assert_int_equal(sh_answer_create(&prompt, &answer, &err), SH_OK);
    assert_int_equal(sh_answer_push(answer, text->bytes, text->length, true, &pieces, &count, &err), SH_OK);
    const char *name = NULL;
    for (uint32_t i = 0; i < count; i++) {
        const struct sh_answer_piece *p = &pieces[i];
        if (p->kind == SH_ANSWER_CONTENT) fail_msg("%s: content \"%s\" of %s", form->name, p->text, text->bytes);
        if (p->kind == SH_ANSWER_CALL) {
            calls++;
            name = p->name;
            if (i + 1 == count || pieces[i + 1].kind != SH_ANSWER_ARGUMENTS)
                fail_msg("%s: no arguments: %s", form->name, text->bytes);
        }
        if (p->kind != SH_ANSWER_ARGUMENTS) continue;
        json_error_t error;
        json_t *arguments = json_loadb(p->text, p->length, JSON_ALLOW_NUL, &error);
        if (arguments == NULL) fail_msg("%s: %s: %s: %s", form->name, error.text, p->text, text->bytes);
        if (!allowed(name, arguments)) fail_msg("%s: %s does not take %s: %s", form->name, name, p->text, text->bytes);
        json_decref(arguments);
    }
    sh_answer_destroy(answer);
    return calls;
}

struct asked {
    struct sh_vocab *vocab;
    struct sh_format *format;
    struct sh_answer_plan *plan;
    struct sh_grammar *grammar;
};

static struct asked ask(const struct form *form, const struct sh_chat_request *request) {
    struct asked a = {0};
    struct sh_error err = {0};
    a.vocab = chatvocab_create("chat.gguf", form->control, NULL, 0);
    assert_non_null(a.vocab);
    assert_int_equal(sh_format_recognise(a.vocab, form->template_text, strlen(form->template_text), &a.format, &err), SH_OK);
    assert_string_equal(sh_format_tools(a.format), form->name);
    if (sh_answer_plan_create(a.format, a.vocab, request, form->prompt, strlen(form->prompt), &a.plan, &a.grammar, &err) != SH_OK)
        fail_msg("%s: %s", form->name, err.message);
    return a;
}

static void finish(struct asked *a) {
    sh_grammar_unref(a->grammar);
    sh_answer_plan_free(a->plan);
    sh_format_free(a->format);
    sh_vocab_close(a->vocab);
}

static struct sh_matcher *matcher_of(const struct asked *a) {
    struct sh_matcher *m;
    struct sh_error err;
    assert_non_null(a->grammar);
    assert_int_equal(sh_matcher_create(a->grammar, &m, &err), SH_OK);
    return m;
}

/* A random walk; false: it came to no end within the limit. */
static bool walk(const struct form *form, const struct asked *a, struct test_rng *rng, struct text *out) {
    struct sh_matcher *m = matcher_of(a);
    struct sh_error err = {0};
    bool ended = false;
    out->length = 0;
    for (int step = 0; step < MAX_STEPS && !ended; step++) {
        const uint32_t *mask;
        uint32_t count;
        int32_t only_one;
        if (sh_matcher_mask(m, &mask, &count, &only_one, &err) != SH_OK) fail_msg("%s: %s", form->name, err.message);
        const bool can_end = sh_matcher_can_end(m);
        if (count == 0 && !can_end) fail_msg("%s: a dead end behind %s", form->name, out->bytes);
        if (can_end && (count == 0 || test_random(rng) % 4 == 0)) {
            ended = true;
            break;
        }
        if (test_random(rng) % 6 == 0) {
            uint32_t n = 0;
            while (n < 8 && form->hints[n] != NULL) n++;
            feed(m, a->vocab, form->hints[test_random(rng) % n], out);
            continue;
        }
        /* Text beyond ASCII only where nothing else goes, so that it stays UTF-8 in free text, too. */
        int32_t choice = -1;
        uint32_t seen = 0;
        for (int pass = 0; pass < 2 && choice < 0; pass++)
            for (int32_t t = 0; t < (int32_t)sh_vocab_size(a->vocab); t++) {
                const bool plain = t < FIRST_BYTE + 128 ? t >= FIRST_BYTE + 32 || t == FIRST_BYTE + '\n' : t >= CHATVOCAB_CONTROL;
                if (!(mask[t / 32] >> (t % 32) & 1) || (pass == 0 && !plain)) continue;
                if (test_random(rng) % ++seen == 0) choice = t;
            }
        assert_true(choice >= 0);
        assert_int_equal(sh_matcher_accept(m, choice, &err), SH_OK);
        add_token(out, a->vocab, choice);
    }
    sh_matcher_destroy(m);
    return ended;
}

static void test_walks(void **state) {
    (void)state;
    struct test_rng rng = {20};
    static struct text text;
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        for (int single = 0; single < 2; single++) {
            const struct sh_chat_request request = {.size = sizeof request,
                                                    .messages = "[]",
                                                    .tools = TOOLS,
                                                    .tool_choice = SH_TOOLS_REQUIRED,
                                                    .single_call = single};
            struct asked a = ask(&forms[f], &request);
            uint32_t ended = 0;
            for (int i = 0; i < WALKS; i++) {
                if (!walk(&forms[f], &a, &rng, &text)) continue;
                ended++;
                const uint32_t calls = read_calls(&forms[f], a.plan, &text);
                if (calls == 0 || (single && calls != 1)) fail_msg("%s: %u calls: %s", forms[f].name, calls, text.bytes);
            }
            if (ended < WALKS / 2) fail_msg("%s: %u of %d walks came to an end", forms[f].name, ended, WALKS);
            finish(&a);
        }
    }
}

static void test_natural(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        const struct sh_chat_request request = {
            .size = sizeof request, .messages = "[]", .tools = TOOLS, .tool_choice = SH_TOOLS_REQUIRED};
        struct asked a = ask(&forms[f], &request);
        for (size_t i = 0; i < 3 && forms[f].natural[i] != NULL; i++) {
            static struct text text;
            text.length = 0;
            struct sh_matcher *m = matcher_of(&a);
            if (!feed(m, a.vocab, forms[f].natural[i], &text)) fail_msg("%s: stops behind %s", forms[f].name, text.bytes);
            if (!sh_matcher_can_end(m)) fail_msg("%s: cannot end behind %s", forms[f].name, text.bytes);
            assert_true(read_calls(&forms[f], a.plan, &text) > 0);
            sh_matcher_destroy(m);
        }
        finish(&a);
    }
}

static int judge(const struct form *form, const struct sh_chat_request *request, const char *answer) {
    struct asked a = ask(form, request);
    struct sh_matcher *m = matcher_of(&a);
    const int verdict = !feed(m, a.vocab, answer, NULL) ? 0 : sh_matcher_can_end(m) ? 2 : 1;
    sh_matcher_destroy(m);
    finish(&a);
    return verdict;
}

static void test_named_tool(void **state) {
    (void)state;
    const struct sh_chat_request request = {.size = sizeof request,
                                            .messages = "[]",
                                            .tools = TOOLS,
                                            .tool_choice = SH_TOOLS_REQUIRED,
                                            .tool_name = "now",
                                            .single_call = true};
    assert_int_equal(judge(&forms[1], &request, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"), 2);
    assert_int_equal(judge(&forms[1], &request, "<tool_call>\n{\"name\": \"send"), 0);
    assert_int_equal(judge(&forms[1], &request, "<tool_call>\n{\"name\": \"now\", \"arguments\": {\""), 0);
    assert_int_equal(judge(&forms[1], &request, "Paris"), 0);
    struct sh_chat_request wrong = request;
    wrong.tool_name = "nobody";
    struct sh_format *format;
    struct sh_answer_plan *plan;
    struct sh_grammar *grammar;
    struct sh_error err;
    assert_int_equal(sh_format_recognise(NULL, "", 0, &format, &err), SH_OK);
    assert_int_equal(sh_answer_plan_create(format, NULL, &wrong, "", 0, &plan, &grammar, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "nobody"));
    wrong.tools = NULL;
    assert_int_equal(sh_answer_plan_create(format, NULL, &wrong, "", 0, &plan, &grammar, &err), SH_ERR_INVALID);
    wrong.tools = "{}";
    assert_int_equal(sh_answer_plan_create(format, NULL, &wrong, "", 0, &plan, &grammar, &err), SH_ERR_INVALID);
    sh_format_free(format);
}

static void test_response(void **state) {
    (void)state;
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"],\"additionalProperties\":false}";
    struct sh_chat_request request = {.size = sizeof request,
                                      .messages = "[]",
                                      .grammar_kind = SH_GRAMMAR_SCHEMA,
                                      .grammar = schema,
                                      .grammar_length = sizeof schema - 1};
    const struct form plain = {"generic", "", "", {NULL}, {NULL}, {NULL}};
    assert_int_equal(judge(&plain, &request, "{\"a\": 1}"), 2);
    assert_int_equal(judge(&plain, &request, "Hm"), 0);
    /* reasoning: opened in the prompt, optional, closed in the prompt */
    assert_int_equal(judge(&forms[0], &request, "Hm <thi \"</think>\n\n{\"a\": 1}"), 2);
    assert_int_equal(judge(&forms[0], &request, "Hm </think>x"), 0);
    assert_int_equal(judge(&forms[1], &request, "<think>Hm</think>\n{\"a\": 1}"), 2);
    assert_int_equal(judge(&forms[1], &request, "{\"a\": 1}"), 2);
    assert_int_equal(judge(&forms[1], &request, "Hm"), 0);
    const struct form closed = {
        "qwen3-coder", "<tool_call> <function= <parameter= </think>", "<think>\n\n</think>\n\n", {NULL}, {NULL}, {NULL}};
    assert_int_equal(judge(&closed, &request, "{\"a\": 1}"), 2);
    assert_int_equal(judge(&closed, &request, "<think>"), 0);
    /* harmony: the final channel */
    const struct form *harmony = &forms[sizeof forms / sizeof *forms - 1];
    assert_int_equal(judge(harmony, &request,
                           "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>{\"a\": 1}"),
                     2);
    assert_int_equal(judge(harmony, &request, "<|channel|>final <|constrain|>json<|message|>{\"a\": 1}"), 2);
    assert_int_equal(judge(harmony, &request, "<|channel|>final<|message|>Hm"), 0);
    /* with tools a call is as good */
    request.tools = TOOLS;
    assert_int_equal(judge(&forms[1], &request, "{\"a\": 1}"), 2);
    assert_int_equal(judge(&forms[1], &request, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"), 2);
    request.tool_choice = SH_TOOLS_NONE;
    assert_int_equal(judge(&forms[1], &request, "<tool_call>"), 0);
}

static void test_strict(void **state) {
    (void)state;
    static const char strict[] = "[{\"type\":\"function\",\"function\":{\"name\":\"get\",\"strict\":true,\"parameters\":{"
                                 "\"type\":\"object\",\"properties\":"
                                 "{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"],\"additionalProperties\":false}}}," NOW "]";
    const struct sh_chat_request request = {.size = sizeof request, .messages = "[]", .tools = strict};
    assert_int_equal(judge(&forms[1], &request, "Paris < London."), 2);
    assert_int_equal(judge(&forms[1], &request, "So\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}}\n</tool_call>"),
                     2);
    assert_int_equal(judge(&forms[1], &request, "So\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"b"), 0);
    assert_int_equal(judge(&forms[1], &request, "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"b\": 1}}\n</tool_call>"), 2);
    assert_int_equal(
        judge(&forms[2], &request, "So\n<tool_call>\n<function=get>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"),
        2);
    assert_int_equal(judge(&forms[2], &request, "So\n<tool_call>\n<function=get>\n<parameter=a>\nx"), 0);
    const struct sh_chat_request lax = {.size = sizeof lax, .messages = "[]", .tools = "[" NOW "]"};
    struct asked a = ask(&forms[1], &lax);
    assert_null(a.grammar);
    finish(&a);
}

/* One parameter between tags: its schema, a value, whether it may stand there (2), or is none (0). */
static void test_tagged_values(void **state) {
    (void)state;
    static const struct {
        const char *schema, *value;
        int verdict;
    } values[] = {
        {"{\"type\":\"string\"}", "a\n\"b\" </para>", 2},
        {"{\"type\":\"string\",\"maxLength\":3}", "ü<b", 2},
        {"{\"type\":\"string\",\"maxLength\":3}", "übcd", 0},
        {"{\"type\":\"string\",\"minLength\":2,\"pattern\":\"^[ab]*$\"}", "ab", 2},
        {"{\"type\":\"string\",\"minLength\":2,\"pattern\":\"^[ab]*$\"}", "a", 0},
        {"{\"type\":\"string\",\"format\":\"date\"}", "2024-02-28", 2},
        {"{\"type\":\"string\",\"format\":\"date\"}", "2024-13-28", 0},
        {"{\"enum\":[\"a b\",\"c\"]}", "a b", 2},
        {"{\"enum\":[\"a b\",\"c\"]}", "a", 0},
        {"{\"enum\":[\"a\",1,null]}", "1", 2},
        {"{\"type\":[\"string\",\"integer\"],\"enum\":[\"a\",1]}", "1", 2},
        {"{\"type\":[\"string\",\"null\"],\"maxLength\":2}", "null", 2},
        {"{\"type\":[\"string\",\"null\"],\"maxLength\":2}", "nul", 0},
        {"{\"anyOf\":[{\"type\":\"string\",\"maxLength\":1},{\"type\":\"integer\"}]}", "x", 2},
        {"{\"anyOf\":[{\"type\":\"string\",\"maxLength\":1},{\"type\":\"integer\"}]}", "12", 2},
        {"{\"anyOf\":[{\"type\":\"string\",\"maxLength\":1},{\"type\":\"integer\"}]}", "xy", 0},
        {"{\"allOf\":[{\"$ref\":\"#/$defs/s\"}]}", "yes", 2},
        {"{\"allOf\":[{\"$ref\":\"#/$defs/s\"}]}", "no", 0},
        {"{\"type\":\"boolean\"}", "true", 2},
        {"{\"type\":\"boolean\"}", "True", 0},
        {"{}", "what you like", 2},
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char one[512], answer[256];
        snprintf(
            one, sizeof one,
            "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"v\":%s},"
            "\"required\":[\"v\"],\"additionalProperties\":false,\"$defs\":{\"s\":{\"enum\":[\"yes\"]}}}}}]",
            values[i].schema);
        snprintf(answer, sizeof answer, "<tool_call>\n<function=f>\n<parameter=v>\n%s\n</parameter>\n</function>\n</tool_call>",
                 values[i].value);
        const struct sh_chat_request request = {
            .size = sizeof request, .messages = "[]", .tools = one, .tool_choice = SH_TOOLS_REQUIRED};
        const int verdict = judge(&forms[2], &request, answer);
        if (verdict != values[i].verdict) fail_msg("%s: \"%s\": %d", values[i].schema, values[i].value, verdict);
    }
    struct sh_answer_plan *plan;
    struct sh_grammar *grammar;
    struct sh_error err;
    const struct sh_chat_request request = {.size = sizeof request,
                                            .messages = "[]",
                                            .tool_choice = SH_TOOLS_REQUIRED,
                                            .tools = "[{\"type\":\"function\",\"function\":{\"name\":\"odd\",\"parameters\":{"
                                                     "\"type\":\"object\",\"anyOf\":[{\"required\":[\"a\"]}]}}}]"};
    struct asked a = ask(&forms[2], &(struct sh_chat_request){.size = sizeof a, .messages = "[]"});
    assert_int_equal(sh_answer_plan_create(a.format, a.vocab, &request, "", 0, &plan, &grammar, &err), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "anyOf"));
    finish(&a);
}

/* As many tools as a request may have, with strings that are counted. */
static void test_many_tools(void **state) {
    (void)state;
    enum { TOOLS_GIVEN = 1024, ROOM = TOOLS_GIVEN * 256 };
    char *tools = malloc(ROOM);
    assert_non_null(tools);
    size_t n = 0;
    for (int i = 0; i < TOOLS_GIVEN; i++)
        n += (size_t)snprintf(
            tools + n, ROOM - n,
            "%c{\"type\":\"function\",\"function\":{\"name\":\"tool_%d\",\"parameters\":{\"type\":\"object\",\"properties\":"
            "{\"s\":{\"type\":\"string\",\"maxLength\":100},\"n%d\":{\"type\":\"integer\"}},\"required\":[\"s\"]}}}",
            i == 0 ? '[' : ',', i, i);
    snprintf(tools + n, ROOM - n, "]");
    const struct sh_chat_request request = {
        .size = sizeof request, .messages = "[]", .tools = tools, .tool_choice = SH_TOOLS_REQUIRED};
    static const char answer[] =
        "<tool_call>\n<function=tool_777>\n<parameter=s>\na < b\n</parameter>\n<parameter=n777>\n1\n</parameter>\n"
        "</function>\n</tool_call>";
    assert_int_equal(judge(&forms[2], &request, answer), 2);
    assert_int_equal(judge(&forms[2], &request, "<tool_call>\n<function=tool_777>\n<parameter=n777>"), 0);
    free(tools);
}

static void test_kept(void **state) {
    (void)state;
    const struct sh_chat_request request = {
        .size = sizeof request, .messages = "[]", .tools = TOOLS, .tool_choice = SH_TOOLS_REQUIRED};
    struct asked a = ask(&forms[1], &request);
    struct sh_answer_plan *plan;
    struct sh_grammar *again;
    struct sh_error err;
    assert_int_equal(sh_answer_plan_create(a.format, a.vocab, &request, "", 0, &plan, &again, &err), SH_OK);
    assert_ptr_equal(again, a.grammar);
    sh_grammar_unref(again);
    sh_answer_plan_free(plan);
    assert_int_equal(sh_answer_plan_create(a.format, a.vocab, &request, "<think>", 7, &plan, &again, &err), SH_OK);
    assert_ptr_not_equal(again, a.grammar);
    sh_grammar_unref(again);
    sh_answer_plan_free(plan);
    /* what would not be enforced is refused with the function's name */
    struct sh_chat_request odd = request;
    odd.tools = "[{\"type\":\"function\",\"function\":{\"name\":\"odd\",\"parameters\":{\"type\":\"object\",\"dependentSchemas\":"
                "{\"a\":{\"minProperties\":3}}}}}]";
    const enum sh_code code = sh_answer_plan_create(a.format, a.vocab, &odd, "", 0, &plan, &again, &err);
    assert_int_equal(code, SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "\"odd\""));
    finish(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_natural),    cmocka_unit_test(test_walks),  cmocka_unit_test(test_named_tool),
        cmocka_unit_test(test_response),   cmocka_unit_test(test_strict), cmocka_unit_test(test_tagged_values),
        cmocka_unit_test(test_many_tools), cmocka_unit_test(test_kept),
    };
    return cmocka_run_group_tests_name("chat_constraint", tests, NULL, NULL);
}
