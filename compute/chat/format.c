/*
 * format.c - the table of forms, recognising them, and what to tell a model whose template knows no tools.
 *
 * The markers are facts about the models, seen in their templates; a row's `marks` say by what its template is known. Rows
 * are tried in order, so a more particular one stands before one whose marks it has as well.
 */
#include "compute/chat/forms.h"

#include "compute/chat/chat.h"

#include <stdlib.h>

static const struct sh_call_form call_forms[] = {
    /* Known by the same marks as its reasoning, and by no token: it is a form of whole answers, which a template asks for or not. */
    {.name = "harmony", .shape = SH_CALL_HARMONY, .marks = {"<|channel|>", "<|message|>"}},
    {.name = "dsml", .shape = SH_CALL_TAGGED, .flags = SH_FORM_TYPED, .open = "<｜DSML｜function_calls>",
     .close = "</｜DSML｜function_calls>", .name_open = "<｜DSML｜invoke name=\"", .name_close = "\">",
     .key_open = "<｜DSML｜parameter name=\"", .key_close = "\"", .value_close = "</｜DSML｜parameter>",
     .body_close = "</｜DSML｜invoke>", .marks = {"｜DSML｜", "function_calls>"}},
    {.name = "dsml-v4", .shape = SH_CALL_TAGGED, .flags = SH_FORM_TYPED, .open = "<｜DSML｜tool_calls>",
     .close = "</｜DSML｜tool_calls>", .name_open = "<｜DSML｜invoke name=\"", .name_close = "\">",
     .key_open = "<｜DSML｜parameter name=\"", .key_close = "\"", .value_close = "</｜DSML｜parameter>",
     .body_close = "</｜DSML｜invoke>", .marks = {"｜DSML｜"}},
    {.name = "deepseek-r1", .shape = SH_CALL_NAMED, .flags = SH_FORM_FENCE, .open = "<｜tool▁calls▁begin｜>",
     .close = "<｜tool▁calls▁end｜>", .call_open = "<｜tool▁call▁begin｜>", .call_close = "<｜tool▁call▁end｜>",
     .name_open = "function<｜tool▁sep｜>", .name_close = "\n", .marks = {"<｜tool▁call▁begin｜>", "```json"}},
    {.name = "deepseek-v3.1", .shape = SH_CALL_NAMED, .open = "<｜tool▁calls▁begin｜>",
     .close = "<｜tool▁calls▁end｜>", .call_open = "<｜tool▁call▁begin｜>", .call_close = "<｜tool▁call▁end｜>",
     .name_close = "<｜tool▁sep｜>", .marks = {"<｜tool▁call▁begin｜>"}, .token = "<｜tool▁call▁begin｜>"},
    {.name = "kimi-k2", .shape = SH_CALL_NAMED, .flags = SH_FORM_KIMI | SH_FORM_ENDS_THOUGHT,
     .open = "<|tool_calls_section_begin|>",
     .close = "<|tool_calls_section_end|>", .call_open = "<|tool_call_begin|>", .call_close = "<|tool_call_end|>",
     .name_close = "<|tool_call_argument_begin|>", .marks = {"<|tool_calls_section_begin|>"},
     .token = "<|tool_calls_section_begin|>"},
    {.name = "gemma4", .shape = SH_CALL_BRACED, .call_open = "<|tool_call>", .call_close = "<tool_call|>", .name_open = "call:",
     .quote = "<|\"|>", .silent = "<|tool_response>", .marks = {"<|tool_call>call:"}, .token = "<|tool_call>"},
    {.name = "apertus", .shape = SH_CALL_KEYED, .call_open = "<|tools_prefix|>", .call_close = "<|tools_suffix|>",
     .marks = {"<|tools_prefix|>"}, .token = "<|tools_prefix|>"},
    {.name = "command-r7b", .shape = SH_CALL_JSON, .call_open = "<|START_ACTION|>", .call_close = "<|END_ACTION|>",
     .name_key = "tool_name", .arguments_key = "parameters", .id_key = "tool_call_id", .marks = {"<|START_ACTION|>"},
     .token = "<|START_ACTION|>"},
    {.name = "command-r", .shape = SH_CALL_JSON, .flags = SH_FORM_FENCE, .call_open = "Action:", .name_key = "tool_name",
     .arguments_key = "parameters", .not_called = "directly_answer", .marks = {"Action:", "```json", "tool_name"}},
    {.name = "mistral-v11", .shape = SH_CALL_NAMED, .flags = SH_FORM_CALL_ID, .call_open = "[TOOL_CALLS]", .name_close = "[ARGS]",
     .name_key = "name", .arguments_key = "arguments", .id_key = "id", .marks = {"[TOOL_CALLS]", "[ARGS]"}, .token = "[ARGS]"},
    {.name = "mistral", .shape = SH_CALL_JSON, .call_open = "[TOOL_CALLS]", .name_key = "name", .arguments_key = "arguments",
     .id_key = "id", .marks = {"[TOOL_CALLS]"}, .token = "[TOOL_CALLS]"},
    {.name = "seed-oss", .shape = SH_CALL_TAGGED, .call_open = "<seed:tool_call>", .call_close = "</seed:tool_call>",
     .name_open = "<function=", .name_close = ">", .key_open = "<parameter=", .key_close = ">", .value_close = "</parameter>",
     .body_close = "</function>", .marks = {"<seed:tool_call>"}, .token = "<seed:tool_call>"},
    {.name = "minimax-m2", .shape = SH_CALL_TAGGED, .open = "<minimax:tool_call>",
     .close = "</minimax:tool_call>", .name_open = "<invoke name=\"", .name_close = "\">", .key_open = "<parameter name=\"",
     .key_close = "\">", .value_close = "</parameter>", .body_close = "</invoke>", .marks = {"<minimax:tool_call>"},
     .token = "<minimax:tool_call>"},
    {.name = "glm", .shape = SH_CALL_TAGGED, .call_open = "<tool_call>", .call_close = "</tool_call>", .key_open = "<arg_key>",
     .key_close = "</arg_key>", .value_open = "<arg_value>", .value_close = "</arg_value>", .marks = {"<tool_call>", "<arg_key>"},
     .token = "<arg_key>"},
    {.name = "qwen3-coder", .shape = SH_CALL_TAGGED, .flags = SH_FORM_NEWLINES, .call_open = "<tool_call>",
     .call_close = "</tool_call>", .name_open = "<function=", .name_close = ">", .key_open = "<parameter=", .key_close = ">",
     .value_close = "</parameter>", .body_close = "</function>", .marks = {"<tool_call>", "<function=", "<parameter="}},
    {.name = "hermes", .shape = SH_CALL_JSON, .call_open = "<tool_call>", .call_close = "</tool_call>", .name_key = "name",
     .arguments_key = "arguments", .id_key = "id", .marks = {"<tool_call>"}, .token = "<tool_call>"},
    {.name = "functionary-v3.1", .shape = SH_CALL_NAMED, .flags = SH_FORM_PYTHON_TAG, .call_open = "<function=",
     .call_close = "</function>", .name_close = ">", .marks = {"<function=", "</function>"}},
    {.name = "functionary-v3.2", .shape = SH_CALL_NAMED, .flags = SH_FORM_KNOWN | SH_FORM_RECIPIENT, .call_open = ">>>",
     .name_close = "\n", .marks = {">>>", "recipient"}},
    {.name = "firefunction-v2", .shape = SH_CALL_JSON, .call_open = "functools", .name_key = "name", .arguments_key = "arguments",
     .marks = {"functools["}},
    {.name = "granite", .shape = SH_CALL_JSON, .call_open = "<|tool_call|>", .name_key = "name", .arguments_key = "arguments",
     .silent = "<|/tool_call|>", .marks = {"<|tool_call|>"}, .token = "<|tool_call|>"},
    {.name = "nemotron-v2", .shape = SH_CALL_JSON, .call_open = "<TOOLCALL>", .call_close = "</TOOLCALL>", .name_key = "name",
     .arguments_key = "arguments", .marks = {"<TOOLCALL>"}, .token = "<TOOLCALL>"},
    {.name = "jamba", .shape = SH_CALL_JSON, .call_open = "<tool_calls>", .call_close = "</tool_calls>", .name_key = "name",
     .arguments_key = "arguments", .marks = {"<tool_calls>"}, .token = "<tool_calls>"},
    {.name = "minicpm3", .shape = SH_CALL_PYTHON, .flags = SH_FORM_FENCE, .call_open = "<|tool_call_start|>",
     .call_close = "<|tool_call_end|>", .marks = {"<|tool_call_start|>", "```python"}},
    {.name = "lfm2", .shape = SH_CALL_PYTHON, .call_open = "<|tool_call_start|>", .call_close = "<|tool_call_end|>",
     .name_key = "name", .arguments_key = "arguments", .marks = {"List of tools: "}, .token = "<|tool_call_start|>"},
    {.name = "llama3", .shape = SH_CALL_JSON, .flags = SH_FORM_BARE | SH_FORM_KNOWN | SH_FORM_PYTHON_TAG, .name_key = "name",
     .arguments_key = "parameters", .marks = {"ipython", "\"parameters\""}, .token = "<|python_tag|>"},
    {.name = "generic", .shape = SH_CALL_JSON, .flags = SH_FORM_BARE | SH_FORM_KNOWN | SH_FORM_FENCE, .name_key = "name",
     .arguments_key = "arguments", .id_key = "id"},
};
#define GENERIC (&call_forms[SH_COUNT(call_forms) - 1])

static const struct sh_thought_form thought_forms[] = {
    {.name = "harmony", .marks = {"<|channel|>", "<|message|>"}},
    {.name = "gemma4", .open = "<|channel>thought", .close = "<channel|>", .anywhere = true, .marks = {"<|channel>thought"}},
    {.name = "mistral", .open = "[THINK]", .close = "[/THINK]", .anywhere = true, .marks = {"[THINK]"}},
    {.name = "cohere", .open = "<|START_THINKING|>", .close = "<|END_THINKING|>", .anywhere = true,
     .silent = {"<|START_RESPONSE|>", "<|END_RESPONSE|>"}, .marks = {"<|START_THINKING|>"}},
    {.name = "seed", .open = "<seed:think>", .close = "</seed:think>", .marks = {"<seed:think>"}},
    {.name = "apertus", .open = "<|inner_prefix|>", .close = "<|inner_suffix|>", .anywhere = true, .marks = {"<|inner_prefix|>"}},
    {.name = "minicpm3", .open = "<|thought_start|>", .close = "<|thought_end|>", .marks = {"<|thought_start|>"}},
    {.name = "granite-3.2", .open = "Here is my thought process:", .close = "Here is my response:",
     .marks = {"Here is my thought process:", "Here is my response:"}},
    {.name = "granite", .open = "<think>", .close = "</think>", .silent = {"<response>", "</response>"},
     .marks = {"<think>", "<response>"}},
    {.name = "think", .open = "<think>", .close = "</think>", .marks = {"</think>"}},
    {.name = "thought", .open = "<thought>", .close = "</thought>", .marks = {"</thought>"}},
};

static bool has(const char *text, size_t length, const char *mark) { return memmem(text, length, mark, strlen(mark)) != NULL; }

static bool has_all(const char *text, size_t length, const char *const *marks, size_t n) {
    if (marks[0] == NULL) return false;
    for (size_t i = 0; i < n; i++)
        if (marks[i] != NULL && !has(text, length, marks[i])) return false;
    return true;
}

/* Every text that a form's parts are told by, one after another. */
static uint32_t markers_of(const struct sh_format *f, const char **out) {
    uint32_t n = 0;
    const struct sh_call_form *c = f->calls;
    const char *const all[] = {c->open, c->close, c->call_open, c->call_close, c->name_open, c->name_close, c->key_open,
                               c->key_close, c->value_open, c->value_close, c->body_close, c->quote, c->silent};
    for (size_t i = 0; i < SH_COUNT(all); i++)
        if (all[i] != NULL) out[n++] = all[i];
    if (c->flags & SH_FORM_PYTHON_TAG) out[n++] = "<|python_tag|>";
    if (c->flags & SH_FORM_CALL_ID) out[n++] = "[CALL_ID]";
    if (f->thought != NULL && f->thought->open != NULL) {
        out[n++] = f->thought->open;
        out[n++] = f->thought->close;
        for (size_t i = 0; i < SH_COUNT(f->thought->silent); i++)
            if (f->thought->silent[i] != NULL) out[n++] = f->thought->silent[i];
    }
    if (c->shape == SH_CALL_HARMONY || (f->thought != NULL && f->thought->open == NULL)) {
        static const char *const harmony[] = {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>",
                                              "<|end|>", "<|call|>", "<|return|>"};
        for (size_t i = 0; i < SH_COUNT(harmony); i++) out[n++] = harmony[i];
    }
    return n;
}

static bool has_token(const struct sh_vocab *vocab, const char *text) {
    const size_t want = strlen(text);
    const uint32_t n = vocab == NULL ? 0 : sh_vocab_size(vocab);
    for (uint32_t i = 0; i < n; i++) {
        size_t length;
        const char *piece = sh_vocab_piece(vocab, (int32_t)i, true, &length);
        if (length == want && memcmp(piece, text, want) == 0) return true;
    }
    return false;
}

/* Control tokens (those that are no text unless asked for) of which a marker consists. */
static enum sh_code find_shown(struct sh_format *f, const struct sh_vocab *vocab, struct sh_error *err) {
    const char *markers[32];
    const uint32_t n_markers = markers_of(f, markers);
    const uint32_t n = vocab == NULL ? 0 : sh_vocab_size(vocab);
    uint32_t capacity = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t length, plain;
        const char *piece = sh_vocab_piece(vocab, (int32_t)i, true, &length);
        if (length < 3) continue;
        sh_vocab_piece(vocab, (int32_t)i, false, &plain);
        if (plain != 0) continue;
        bool found = false;
        for (uint32_t k = 0; k < n_markers && !found; k++) found = memmem(markers[k], strlen(markers[k]), piece, length) != NULL;
        if (!found) continue;
        if (!sh_grow((void **)&f->shown, &capacity, f->n_shown + 1, sizeof *f->shown))
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the control tokens of the form \"%s\"", f->calls->name);
        f->shown[f->n_shown++] = (int32_t)i;
    }
    return SH_OK;
}

enum sh_code sh_format_recognise(const struct sh_vocab *vocab, const char *text, size_t length, struct sh_format **out,
                                 struct sh_error *err) {
    *out = NULL;
    struct sh_format *f = sh_calloc(1, sizeof *f);
    if (f == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the form of a chat");
    for (size_t i = 0; i < SH_COUNT(call_forms) && f->calls == NULL; i++)
        if (has_all(text, length, call_forms[i].marks, SH_COUNT(call_forms[i].marks))) f->calls = &call_forms[i];
    for (size_t i = 0; i < SH_COUNT(call_forms) && f->calls == NULL; i++)
        if (call_forms[i].token != NULL && has_token(vocab, call_forms[i].token)) f->calls = &call_forms[i];
    if (f->calls == NULL) f->calls = GENERIC;
    for (size_t i = 0; i < SH_COUNT(thought_forms) && f->thought == NULL; i++)
        if (has_all(text, length, thought_forms[i].marks, SH_COUNT(thought_forms[i].marks))) f->thought = &thought_forms[i];
    const enum sh_code code = find_shown(f, vocab, err);
    if (code != SH_OK) {
        sh_format_free(f);
        return code;
    }
    *out = f;
    return SH_OK;
}

void sh_format_free(struct sh_format *format) {
    if (format == NULL) return;
    free(format->shown);
    free(format);
}

const char *sh_format_tools(const struct sh_format *format) { return format->calls->name; }

const char *sh_format_reasoning(const struct sh_format *format) { return format->thought == NULL ? "" : format->thought->name; }

const int32_t *sh_format_shown(const struct sh_format *format, uint32_t *count) {
    *count = format->n_shown;
    return format->shown;
}

int32_t sh_format_token_at(const struct sh_format *format, const struct sh_vocab *vocab, const char *text, size_t length,
                           size_t *bytes) {
    int32_t best = -1;
    *bytes = 0;
    for (uint32_t i = 0; i < format->n_shown; i++) {
        size_t n;
        const char *piece = sh_vocab_piece(vocab, format->shown[i], true, &n);
        if (n > *bytes && n <= length && memcmp(piece, text, n) == 0) {
            best = format->shown[i];
            *bytes = n;
        }
    }
    return best;
}

/* ---- for templates that know no tools ---- */

static void add_opt(struct sh_buffer *b, const char *text) {
    if (text != NULL) sh_buffer_add_string(b, text);
}

/* A call as the form has it, with words in angle brackets for what a model has to fill in. */
static void add_example(struct sh_buffer *b, const struct sh_call_form *f) {
    static const char name[] = "<function name>";
    add_opt(b, f->open);
    add_opt(b, f->call_open);
    switch (f->shape) {
    case SH_CALL_JSON:
        if (f->flags & SH_FORM_FENCE && f->call_open != NULL) sh_buffer_add_string(b, "\n```json\n[");
        sh_buffer_add_string(b, "{\"");
        sh_buffer_add_string(b, f->name_key);
        sh_buffer_add_string(b, "\": \"");
        sh_buffer_add_string(b, name);
        sh_buffer_add_string(b, "\", \"");
        sh_buffer_add_string(b, f->arguments_key);
        sh_buffer_add_string(b, "\": {<arguments as JSON>}}");
        if (f->flags & SH_FORM_FENCE && f->call_open != NULL) sh_buffer_add_string(b, "]\n```");
        break;
    case SH_CALL_KEYED: sh_buffer_add_string(b, "[{\"<function name>\": {<arguments as JSON>}}]"); break;
    case SH_CALL_NAMED:
        add_opt(b, f->name_open);
        if (f->flags & SH_FORM_KIMI) sh_buffer_add_string(b, "functions.<function name>:0");
        else sh_buffer_add_string(b, name);
        add_opt(b, f->name_close);
        sh_buffer_add_string(b, f->flags & SH_FORM_FENCE ? "```json\n{<arguments as JSON>}\n```" : "{<arguments as JSON>}");
        break;
    case SH_CALL_TAGGED:
        add_opt(b, f->name_open);
        sh_buffer_add_string(b, name);
        add_opt(b, f->name_close);
        sh_buffer_add_string(b, "\n");
        add_opt(b, f->key_open);
        sh_buffer_add_string(b, "<argument name>");
        add_opt(b, f->key_close);
        if (f->flags & SH_FORM_TYPED) sh_buffer_add_string(b, " string=\"<true: as it is, false: as JSON>\">");
        add_opt(b, f->value_open);
        sh_buffer_add_string(b, "<value>");
        add_opt(b, f->value_close);
        sh_buffer_add_string(b, "\n");
        add_opt(b, f->body_close);
        break;
    case SH_CALL_PYTHON: sh_buffer_add_string(b, "[<function name>(<argument name>=<value>)]"); break;
    case SH_CALL_BRACED:
        add_opt(b, f->name_open);
        sh_buffer_add_string(b, "<function name>{<argument name>:<value>}");
        break;
    case SH_CALL_HARMONY:
        sh_buffer_add_string(b, "<|channel|>commentary to=functions.<function name> <|constrain|>json<|message|>"
                                "{<arguments as JSON>}<|call|>");
        break;
    }
    add_opt(b, f->call_close);
    add_opt(b, f->close);
}

char *sh_format_instructions(const struct sh_format *format, const char *tools_json, bool single_call) {
    struct sh_buffer b = {0};
    json_t *tools = json_loads(tools_json, JSON_ALLOW_NUL, NULL);
    sh_buffer_add_string(&b, "# Tools\n\nYou may call functions to help with what the user asks for. "
                             "These are the functions, one per line:\n");
    size_t i;
    json_t *tool;
    json_array_foreach(tools, i, tool) {
        const json_t *function = json_object_get(tool, "function");
        char *text = sh_chat_json(json_is_object(function) ? function : tool, 0);
        if (text == NULL) b.failed = true;
        else sh_buffer_add_string(&b, text);
        free(text);
        sh_buffer_add_string(&b, "\n");
    }
    json_decref(tools);
    sh_buffer_add_string(&b, single_call ? "\nTo call a function, write this and nothing after it:\n"
                                         : "\nTo call a function, write this, once for each call, and nothing after it:\n");
    add_example(&b, format->calls);
    sh_buffer_add_string(&b, "\nIf no function is needed, just answer.");
    if (!b.failed) return b.text;
    free(b.text);
    return NULL;
}
