/* fuzz_answer.c - any bytes as a model's answer: the first chooses a form, the second how the request is, the third where the text is cut.
 * Read whole and in pieces it gives the same. */
#include "compute/chat/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What templates are told by; the second text is the end of a prompt. */
static const char *const forms[][2] = {
    {"", ""},
    {"<tool_call> </think>", "<think>"},
    {"<tool_call> <function= <parameter= </think>", ""},
    {"<seed:tool_call> <seed:think>", ""},
    {"<tool_call> <arg_key> </think>", ""},
    {"｜DSML｜ function_calls> </think>", ""},
    {"<｜tool▁call▁begin｜> ```json </think>", ""},
    {"<｜tool▁call▁begin｜>", ""},
    {"<|tool_calls_section_begin|> </think>", "<think>"},
    {"<|tool_call>call: <|channel>thought", ""},
    {"<|tools_prefix|> <|inner_prefix|>", ""},
    {"<|START_ACTION|> <|START_THINKING|>", ""},
    {"Action: ```json tool_name", ""},
    {"[TOOL_CALLS]", ""},
    {"[TOOL_CALLS] [ARGS] [THINK]", ""},
    {"<function=</function>", ""},
    {">>> recipient", ">>>"},
    {"functools[", ""},
    {"<|tool_call|>", ""},
    {"<tool_calls>", ""},
    {"<|tool_call_start|> ```python <|thought_start|>", ""},
    {"List of tools: ", ""},
    {"ipython \"parameters\"", ""},
    {"<|channel|> <|message|> analysis", "<|start|>assistant"},
    {"<|channel|> <|message|> analysis", "<|start|>assistant<|channel|>final<|message|>"},
};

static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"s\":{\"type\":"
    "\"string\"},"
    "\"n\":{\"type\":\"integer\"},\"u\":{\"type\":[\"string\",\"null\"]},\"o\":{\"type\":\"object\"},\"a\":{}}}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"python\"}}]";

struct reading {
    char *text;
    size_t length, capacity;
    int kind;
    uint32_t calls;
};

static void put(struct reading *r, const char *text, size_t length) {
    if (r->length + length > r->capacity) {
        r->capacity = (r->length + length) * 2 + 64;
        r->text = realloc(r->text, r->capacity);
        if (!r->text) abort();
    }
    if (length > 0) memcpy(r->text + r->length, text, length);
    r->length += length;
}

static void push(struct sh_answer *answer, const uint8_t *text, size_t length, bool last, struct reading *r) {
    const struct sh_answer_piece *pieces;
    uint32_t count;
    char *exact = malloc(length + 1);
    if (!exact) abort();
    if (length > 0) memcpy(exact, text, length);
    if (sh_answer_push(answer, exact, length, last, &pieces, &count, NULL) != SH_OK) abort();
    free(exact);
    for (uint32_t i = 0; i < count; i++) {
        const struct sh_answer_piece *p = &pieces[i];
        if (p->text[p->length] != '\0') abort();
        if (p->kind == SH_ANSWER_CALL) {
            if (p->call != r->calls || p->length != 0 || p->name[0] == '\0') abort();
            r->calls++;
        } else if (p->length == 0) {
            abort();
        }
        if (p->kind == SH_ANSWER_ARGUMENTS &&
            (p->call + 1 != r->calls || (r->kind != SH_ANSWER_CALL && r->kind != SH_ANSWER_ARGUMENTS)))
            abort();
        const char kind = (char)('0' + (int)p->kind);
        if (p->kind == SH_ANSWER_CALL || r->kind != (int)p->kind) put(r, &kind, 1);
        r->kind = (int)p->kind;
        if (p->kind == SH_ANSWER_CALL) {
            put(r, p->name, strlen(p->name) + 1);
            if (p->id) put(r, p->id, strlen(p->id) + 1);
        }
        put(r, p->text, p->length);
    }
}

static struct reading read_answer(const struct sh_chat_prompt *prompt, const uint8_t *text, size_t length, uint32_t cuts) {
    struct reading r = {.kind = -1};
    struct sh_answer *answer;
    if (sh_answer_create(prompt, &answer, NULL) != SH_OK) abort();
    for (size_t at = 0; cuts != 0 && at < length;) {
        cuts = cuts * 1664525 + 1013904223;
        size_t n = 1 + (cuts >> 24) % 7;
        if (n > length - at) n = length - at;
        push(answer, text + at, n, false, &r);
        at += n;
    }
    if (cuts != 0) push(answer, text, 0, true, &r);
    else push(answer, text, length, true, &r);
    sh_answer_destroy(answer);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3) return 0;
    const char *const *form = forms[data[0] % (sizeof forms / sizeof *forms)];
    struct sh_format *format;
    if (sh_format_recognise(NULL, form[0], strlen(form[0]), &format, NULL) != SH_OK) abort();
    const char *prompt_text = data[1] & 4 ? "" : form[1];
    const struct sh_chat_request request = {
        .size = sizeof request, .messages = "[]", .tools = data[1] & 1 ? NULL : tools, .keep_reasoning = data[1] & 2};
    struct sh_chat_prompt prompt = {0};
    if (sh_answer_plan_create(format, NULL, &request, prompt_text, strlen(prompt_text), &prompt.plan, &prompt.grammar, NULL) !=
        SH_OK)
        abort();
    struct reading whole = read_answer(&prompt, data + 3, size - 3, 0),
                   cut = read_answer(&prompt, data + 3, size - 3, data[2] | 256u);
    if (whole.length != cut.length || (whole.length > 0 && memcmp(whole.text, cut.text, whole.length) != 0)) {
        fprintf(stderr, "whole: %.*s\ncut:   %.*s\n", (int)whole.length, whole.text, (int)cut.length, cut.text);
        abort();
    }
    free(whole.text);
    free(cut.text);
    sh_answer_plan_free(prompt.plan);
    sh_format_free(format);
    return 0;
}
