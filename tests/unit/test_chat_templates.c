/* Chats over the published templates: what each can take, that a request renders as the template's own reference does, and that no message
 * smuggles in a control token. */
#include "tests/unit/chatvocab.h"
#include "tests/unit/shared.h"

#include "compute/chat/chat.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Marks of many families, so that there is something to smuggle. */
static const char *const marks[] = {"<|im_start|>",
                                    "<|im_end|>",
                                    "<|eot_id|>",
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<start_of_turn>",
                                    "<end_of_turn>",
                                    "[INST]",
                                    "[/INST]",
                                    "<|user|>",
                                    "<|assistant|>",
                                    "<|system|>",
                                    "<|end|>",
                                    "<|start|>",
                                    "<|channel|>",
                                    "<|message|>",
                                    "<|return|>",
                                    "<｜User｜>",
                                    "<｜Assistant｜>",
                                    "<｜end▁of▁sentence｜>",
                                    "<|START_OF_TURN_TOKEN|>",
                                    "<|END_OF_TURN_TOKEN|>",
                                    "<|USER_TOKEN|>",
                                    "<|CHATBOT_TOKEN|>",
                                    "[TOOL_CALLS]",
                                    "<tool_call>",
                                    "</tool_call>",
                                    "<|python_tag|>",
                                    "[gMASK]",
                                    "<sop>",
                                    "<|turn>",
                                    "<turn|>",
                                    NULL};

/* ---- what templates can take ---- */

struct expected_caps {
    const char *name;
    uint8_t system, user, assistant, tool; /* SH_TAKES_ */
    uint8_t arguments, nothing;
    bool beside, lists, tools, developer;
    const char *reasoning; /* "": not shown */
    bool one_call, short_ids, functions;
};
#define T SH_TAKES_TEXT
#define B (SH_TAKES_TEXT | SH_TAKES_PARTS)
#define P SH_TAKES_PARTS
#define O SH_TAKES_OBJECT
#define J SH_TAKES_JSON
static const struct expected_caps table[] = {
    {"Apertus-8B-Instruct", T, T, T, T, O, 7, true, false, true, false, ""},
    {"ByteDance-Seed-OSS", T, T, T, T, O, 7, true, false, true, false, "reasoning_content"},
    {"CohereForAI-c4ai-command-r-plus-tool_use", T, T, T, T, O, 6, true, true, true, false, ""},
    {"CohereForAI-c4ai-command-r-v01", T, T, T, 0, 0, 0, false, true, false, false, ""},
    {"CohereForAI-c4ai-command-r7b-12-2024-tool_use", T, T, T, T, O, 7, true, false, true, false, "reasoning_content"},
    {"GLM-4.6", B, B, B, T, O, 6, true, false, true, false, "reasoning_content"},
    {"GLM-4.7-Flash", B, B, B, T, O, 6, true, false, true, false, "reasoning_content"},
    {"HuggingFaceH4-zephyr-7b-beta", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"HuggingFaceH4-zephyr-7b-gemma-v0.1", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"HuggingFaceTB-SmolLM3-3B-full", T, T, T, T, 0, 0, false, false, true, false, ""},
    {"HuggingFaceTB-SmolLM3-3B", T, T, T, T, 0, 0, false, false, false, false, ""},
    {"HuggingFaceTB-SmolVLM-Instruct", P, P, P, 0, 0, 0, false, false, false, false, ""},
    {"Kimi-K2-Instruct", B, B, B, B, O | J, 7, true, false, true, false, ""},
    {"Kimi-K2-Thinking", B, B, B, B, O | J, 7, true, false, true, false, "reasoning_content"},
    {"LFM2-8B-A1B", T, T, T, T, 0, 0, false, false, true, false, ""},
    {"LFM2.5-Instruct", T, T, T, T, 0, 0, false, false, true, false, ""},
    {"MiMo-VL", T, T, T, T, O, 7, true, false, true, false, ""},
    {"Mistral-Small-3.2-24B-Instruct-2506", B, B, B, T, O, 7, true, false, true, false, "", false, true},
    {"NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", T, T, T, T, O, 7, true, false, true, false, "reasoning_content"},
    {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use", T, T, T, T, O | J, 7, true, true, true, false, ""},
    {"Qwen-QwQ-32B", T, T, T, T, O, 4, true, false, true, false, ""},
    {"Qwen-Qwen2.5-7B-Instruct", T, T, T, T, O, 7, true, false, true, false, ""},
    {"Qwen-Qwen2.5-VL-7B-Instruct", B, B, B, 0, 0, 0, false, false, false, false, ""},
    {"Qwen-Qwen3-0.6B", T, T, T, T, O | J, 4, true, false, true, false, "reasoning_content"},
    {"Qwen3-Coder", T, T, T, T, O, 7, true, false, true, false, ""},
    {"Qwen3.5-4B", B, B, B, B, O, 7, true, false, true, false, "reasoning_content"},
    {"abacusai-Smaug-34B-v0.1", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"ai21labs-AI21-Jamba-Large-1.6", T, T, T, T, O | J, 7, true, false, true, false, ""},
    {"chatml", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"codellama-CodeLlama-70b-Instruct-hf", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"deepseek-ai-DeepSeek-R1-Distill-Llama-8B", T, T, T, T, J, 1, false, false, false, false, ""},
    {"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", T, T, T, T, O, 5, true, false, false, false, ""},
    {"deepseek-ai-DeepSeek-V3.1", T, T, T, T, O, 7, true, false, false, false, ""},
    {"deepseek-ai-DeepSeek-V4", T, T, T, T, O, 7, true, false, true, true, ""},
    {"deepseek-ai-deepseek-coder-33b-instruct", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"fireworks-ai-llama-3-firefunction-v2", T, T, T, T, O, 7, true, false, true, false, "", false, false, true},
    {"google-gemma-2-2b-it", 0, T, T, 0, 0, 0, false, false, false, false, ""},
    {"google-gemma-4-31B-it", T, B, B, B, O, 7, true, false, true, true, "reasoning_content"},
    {"ibm-granite-granite-3.3-2B-Instruct", T, T, T, T, 0, 0, false, false, true, false, ""},
    {"llama-cpp-deepseek-r1", T, T, T, T, O, 7, false, false, true, false, ""},
    {"llama-cpp-rwkv-world", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"meetkai-functionary-medium-v3.1", T, T, T, T, O, 7, true, false, true, false, ""},
    {"meetkai-functionary-medium-v3.2", T, T, T, T, J, 7, true, false, true, false, ""},
    {"meta-llama-Llama-2-chat", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"meta-llama-Llama-3.1-8B-Instruct", T, T, T, T, O, 7, true, false, true, false, "", true},
    {"meta-llama-Llama-3.2-3B-Instruct", T, T, T, T, O, 7, true, false, true, false, "", true},
    {"microsoft-Phi-3.5-mini-instruct", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"mistral-common-v1_spm", B, B, B, 0, 0, 0, false, false, false, false, ""},
    {"mistral-common-v3_spm", B, B, B, T, O | J, 7, false, false, true, false, "", false, true},
    {"mistral-common-v7_spm", B, B, B, T, O | J, 7, true, false, true, false, "", false, true},
    {"mistralai-Ministral-3-14B-Reasoning-2512", B, B, B, T, O | J, 6, true, false, true, false, ""},
    {"mistralai-Mistral-Nemo-Instruct-2407", T, T, T, T, O, 7, true, false, true, false, "", false, true},
    {"mistralai-Mixtral-8x7B-Instruct-v0.1", 0, T, T, 0, 0, 0, false, false, false, false, ""},
    {"moonshotai-Kimi-K2", B, B, B, T, O, 7, true, false, true, false, ""},
    {"ollama-gemma4_e2b", B, B, B, B, O, 7, true, false, true, true, "reasoning_content"},
    {"openai-gpt-oss-120b", T, T, T, T, O, 6, true, false, true, true, "thinking", true},
    {"openbmb-MiniCPM3-4B", T, T, T, T, O, 7, true, false, true, false, ""},
    {"openchat-openchat-3.5-0106", T, T, T, 0, 0, 0, false, false, false, false, ""},
    {"stepfun-ai-Step-3.5-Flash", B, B, B, B, O, 7, true, false, true, false, "reasoning_content"},
};

static char *base_name(const char *path) {
    const char *base = strrchr(path, '/') + 1;
    return strndup(base, strlen(base) - strlen(".jinja"));
}

static void test_capabilities(void **state) {
    (void)state;
    char pattern[4096];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.jinja", TEST_SHARED("templates"));
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    struct sh_vocab *v = chatvocab_create("caps.gguf", marks, NULL, 0);
    size_t wrong = 0;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        size_t length, row = 0;
        char *text = test_read_file(found.gl_pathv[i], &length), *name = base_name(found.gl_pathv[i]), *stop;
        struct sh_template *t;
        struct sh_error err;
        struct sh_chat_caps c;
        assert_int_equal(sh_template_create(text, length, &t, &err), SH_OK);
        assert_int_equal(sh_chat_probe(t, text, length, v, "<s>", "</s>", &c, &stop, &err), SH_OK);
        while (row < sizeof table / sizeof *table && strcmp(table[row].name, name) != 0) row++;
        const struct expected_caps *e = &table[row];
        const char *reasoning = c.reasoning != NULL ? c.reasoning : "";
        if (row == sizeof table / sizeof *table || c.content[0] != e->system || c.content[1] != e->user ||
            c.content[2] != e->assistant || c.content[3] != e->tool || c.arguments != e->arguments || c.nothing != e->nothing ||
            c.beside != e->beside || c.lists != e->lists || c.tools != e->tools || c.developer != e->developer ||
            strcmp(reasoning, e->reasoning) != 0 || c.one_call != e->one_call || c.short_ids != e->short_ids ||
            c.functions != e->functions) {
            print_error("{\"%s\", %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, \"%s\", %d, %d, %d},\n", name, c.content[0],
                        c.content[1], c.content[2], c.content[3], c.arguments, c.nothing, c.beside, c.lists, c.tools, c.developer,
                        reasoning, c.one_call, c.short_ids, c.functions);
            wrong++;
        }
        free(stop);
        free(text);
        free(name);
        sh_template_destroy(t);
    }
    assert_int_equal(found.gl_pathc, sizeof table / sizeof *table);
    globfree(&found);
    sh_vocab_close(v);
    assert_int_equal(wrong, 0);
}

/* ---- renderings ---- */

/* The request of a case; texts are malloc'd. */
struct texts {
    char *messages, *tools, *variables;
};

static struct sh_chat_request request_of(const json_t *c, struct texts *texts) {
    const json_t *tools = json_object_get(c, "tools");
    json_t *variables =
        json_pack("{s:O,s:O}", "bos_token", json_object_get(c, "bos_token"), "eos_token", json_object_get(c, "eos_token"));
    json_object_update(variables, json_object_get(c, "kwargs"));
    texts->messages = json_dumps(json_object_get(c, "messages"), 0);
    texts->tools = json_is_array(tools) ? json_dumps(tools, 0) : NULL;
    texts->variables = json_dumps(variables, 0);
    json_decref(variables);
    return (struct sh_chat_request){.size = sizeof(struct sh_chat_request),
                                    .messages = texts->messages,
                                    .tools = texts->tools,
                                    .variables = texts->variables,
                                    .now = json_string_value(json_object_get(c, "now")),
                                    .no_generation_prompt = !json_is_true(json_object_get(c, "add_generation_prompt"))};
}

static void free_texts(struct texts *texts) {
    free(texts->messages);
    free(texts->tools);
    free(texts->variables);
}

static void check_parts(const struct sh_chat_prompt *p) {
    size_t at = 0;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        assert_int_equal(p->parts[i].begin, at);
        assert_true(p->parts[i].end > at);
        at = p->parts[i].end;
    }
    assert_int_equal(at, p->length);
}

struct tally {
    size_t equal, refused, invalid, adapted, wrong;
};

static bool takes(uint8_t content, const json_t *value) {
    return json_is_array(value) ? (content & SH_TAKES_PARTS) != 0 : !json_is_string(value) || (content & SH_TAKES_TEXT) != 0;
}

/* Does the request hold nothing that the template has to be spared? */
static bool as_it_is(const struct expected_caps *e, const json_t *c) {
    const json_t *m, *call;
    size_t i, k;
    const json_t *tools = json_object_get(c, "tools"); /* an empty list is none to a request */
    if (json_is_array(tools) && (!e->tools || json_array_size(tools) == 0)) return false;
    json_array_foreach(json_object_get(c, "messages"), i, m) {
        const char *role = json_string_value(json_object_get(m, "role"));
        const json_t *content = json_object_get(m, "content"), *calls = json_object_get(m, "tool_calls");
        const int nothing = content == NULL                    ? SH_NOTHING_ABSENT
                            : json_is_null(content)            ? SH_NOTHING_NULL
                            : json_string_length(content) == 0 ? SH_NOTHING_EMPTY
                                                               : 0;
        if (strcmp(role, "tool") == 0 ? e->tool == 0 || !takes(e->tool, content)
                                      : !takes(strcmp(role, "system") == 0 && e->system != 0 ? e->system
                                               : strcmp(role, "assistant") == 0              ? e->assistant
                                                                                             : e->user,
                                               content)) {
            return false;
        }
        const char *id = json_string_value(json_object_get(json_array_get(calls, 0), "id"));
        if (e->short_ids && id != NULL && strlen(id) != 9) return false;
        if (e->one_call && json_array_size(calls) > 1) return false;
        if (calls != NULL && (nothing != 0 ? (e->nothing & nothing) == 0 : !e->beside)) return false;
        json_array_foreach(calls, k, call) {
            const json_t *arguments = json_object_get(json_object_get(call, "function"), "arguments");
            if ((e->arguments & (json_is_string(arguments) ? SH_TAKES_JSON : SH_TAKES_OBJECT)) == 0) return false;
        }
    }
    return true;
}

static void run_case(const struct expected_caps *e, const struct sh_chat *chat, const json_t *c, struct tally *tally) {
    struct texts texts;
    struct sh_chat_prompt prompt;
    struct sh_error err, why;
    const struct sh_chat_request request = request_of(c, &texts);
    const char *want = json_string_value(json_object_get(c, "expect")),
               *alt = json_string_value(json_object_get(c, "expect_alt")),
               *refusal = json_string_value(json_object_get(c, "expect_error"));
    const enum sh_code code = sh_chat_apply(chat, &request, &prompt, &err);
    if (sh_chat_check(&request, &why) != SH_OK) {
        assert_int_equal(code, SH_ERR_INVALID); /* roles and parts that a request cannot have */
        tally->invalid++;
    } else if (!as_it_is(e, c)) {
        tally->adapted++;
    } else if (refusal != NULL && code == SH_ERR_INVALID) {
        tally->refused++;
    } else if (refusal == NULL && code == SH_OK &&
               (strcmp(prompt.text, want) == 0 || (alt != NULL && strcmp(prompt.text, alt) == 0))) {
        tally->equal++;
    } else {
        print_error("%s: %s\n want: %s\n got:  %s\n", e->name, json_string_value(json_object_get(c, "name")),
                    want != NULL ? want : refusal, code == SH_OK ? prompt.text : err.message);
        tally->wrong++;
    }
    if (code == SH_OK) {
        check_parts(&prompt);
        sh_chat_prompt_finish(&prompt);
    }
    free_texts(&texts);
}

static void test_renderings(void **state) {
    (void)state;
    char pattern[4096];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.jinja", TEST_SHARED("templates"));
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    struct sh_vocab *v = chatvocab_create("cases.gguf", marks, NULL, 0);
    struct tally tally = {0};
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *name = base_name(found.gl_pathv[i]), path[4200];
        struct sh_chat *chat;
        struct sh_error err;
        json_error_t why;
        size_t row = 0, k;
        json_t *c;
        if (sh_chat_create(v, found.gl_pathv[i], &chat, &err) != SH_OK) fail_msg("%s: %s", name, err.message);
        snprintf(path, sizeof path, "%.*s.cases.json", (int)(strlen(found.gl_pathv[i]) - strlen(".jinja")), found.gl_pathv[i]);
        json_t *cases = json_load_file(path, 0, &why);
        assert_non_null(cases);
        while (row + 1 < sizeof table / sizeof *table && strcmp(table[row].name, name) != 0) row++;
        json_array_foreach(cases, k, c) run_case(&table[row], chat, c, &tally);
        json_decref(cases);
        sh_chat_destroy(chat);
        free(name);
    }
    globfree(&found);
    sh_vocab_close(v);
    assert_int_equal(tally.wrong, 0);
    assert_true(tally.equal >= 1710);
    assert_true(tally.refused >= 45);
    assert_true(tally.invalid <= 153);
}

/* ---- smuggling ---- */

/* How often each control token stands in the prompt of a conversation in which `text` is said by everybody and stands wherever a request can
 * have text. False: the template refuses it. */
static bool count_tokens(const struct sh_vocab *v, const struct sh_chat *chat, int kind, const char *text, size_t *counts,
                         size_t n_counts) {
    json_t *messages = json_pack("[{s:s,s:s},{s:s,s:s},{s:s,s:s}]", "role", "user", "content", text, "role", "assistant",
                                 "content", text, "role", "user", "content", text);
    json_t *arguments = json_pack("{s:s}", "key", text), *tools = NULL;
    char *arguments_text = json_dumps(arguments, 0);
    if (kind == 1) json_array_insert_new(messages, 0, json_pack("{s:s,s:s}", "role", "system", "content", text));
    if (kind == 2) {
        tools =
            json_pack("[{s:s,s:{s:s,s:s,s:{s:s,s:{s:{s:s,s:s}}}}}]", "type", "function", "function", "name", "f", "description",
                      text, "parameters", "type", "object", "properties", "key", "type", "string", "description", text);
        json_array_append_new(messages, json_pack("{s:s,s:n,s:s,s:[{s:s,s:s,s:{s:s,s:s}}]}", "role", "assistant", "content",
                                                  "reasoning_content", text, "tool_calls", "id", "call00001", "type", "function",
                                                  "function", "name", "f", "arguments", arguments_text));
        json_array_append_new(
            messages, json_pack("{s:s,s:s,s:s,s:s}", "role", "tool", "tool_call_id", "call00001", "name", "f", "content", text));
    }
    if (kind == 3) { /* names, keys, ids, and what stands in a schema besides */
        tools = json_pack("[{s:s,s:{s:s,s:s,s:{s:s,s:{s:{s:s,s:[s]}},s:[s]}}}]", "type", "function", "function", "name", text,
                          "description", "d", "parameters", "type", "object", "properties", text, "type", "string", "enum", text,
                          "required", text);
        json_t *call = json_pack("{s:s,s:s,s:{s:s,s:{s:{s:s}}}}", "id", text, "type", "function", "function", "name", text,
                                 "arguments", text, text, text);
        json_array_append_new(messages, json_pack("{s:s,s:s,s:[o]}", "role", "assistant", "content", "", "tool_calls", call));
        json_array_append_new(messages,
                              json_pack("{s:s,s:s,s:s,s:s}", "role", "tool", "tool_call_id", text, "name", text, "content", "c"));
    }
    json_t *variables = json_object(); /* those that templates print */
    static const char *const printed[] = {"date_string",         "system_message",  "model_identity", "reasoning_effort",
                                          "custom_instructions", "thinking_budget", "datetime",       "functions",
                                          "bos_token",           "eos_token"};
    for (size_t i = 0; kind == 4 && i < sizeof printed / sizeof *printed; i++)
        json_object_set_new(variables, printed[i], json_string(text));
    char *variables_text = json_dumps(variables, 0);
    json_decref(variables);
    char *messages_text = json_dumps(messages, 0), *tools_text = tools != NULL ? json_dumps(tools, 0) : NULL;
    const struct sh_chat_request request = {
        .size = sizeof request, .messages = messages_text, .tools = tools_text, .variables = variables_text};
    struct sh_chat_prompt prompt;
    struct sh_error err;
    int32_t *ids;
    size_t n;
    const bool rendered = sh_chat_apply(chat, &request, &prompt, &err) == SH_OK;
    memset(counts, 0, n_counts * sizeof *counts);
    if (rendered) {
        assert_int_equal(sh_chat_tokenize(v, prompt.text, prompt.parts, prompt.n_parts, &ids, &n, &err), SH_OK);
        for (size_t i = 0; i < n; i++) {
            if (ids[i] < 3) counts[ids[i]]++;
            if (ids[i] >= CHATVOCAB_CONTROL) counts[3 + ids[i] - CHATVOCAB_CONTROL]++;
        }
        free(ids);
        sh_chat_prompt_finish(&prompt);
    }
    free(messages_text);
    free(tools_text);
    free(variables_text);
    free(arguments_text);
    json_decref(arguments);
    json_decref(messages);
    json_decref(tools);
    return rendered;
}

static void test_no_smuggling(void **state) {
    (void)state;
    enum { N = 3 + sizeof marks / sizeof *marks - 1 };
    char pattern[4096], hostile[2048] = "a</s><s><unk>", split[2048] = "";
    glob_t found;
    size_t rendered = 0, tokens = 0, wrong = 0;
    for (size_t i = 0; marks[i] != NULL; i++) {
        snprintf(hostile + strlen(hostile), sizeof hostile - strlen(hostile), "%s ", marks[i]);
        snprintf(split + strlen(split), sizeof split - strlen(split), "%s\n", marks[i] + 1); /* without its first character */
    }
    snprintf(pattern, sizeof pattern, "%s/*.jinja", TEST_SHARED("templates"));
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    struct sh_vocab *v = chatvocab_create("smuggle.gguf", marks, NULL, 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct sh_chat *chat;
        struct sh_error err;
        assert_int_equal(sh_chat_create(v, found.gl_pathv[i], &chat, &err), SH_OK);
        for (int kind = 0; kind < 5; kind++) {
            size_t honest[N], counts[N];
            if (!count_tokens(v, chat, kind, "x", honest, N)) continue;
            rendered++;
            for (size_t k = 0; k < N; k++) tokens += honest[k];
            for (int which = 0; which < 2; which++) {
                if (!count_tokens(v, chat, kind, which == 0 ? hostile : split, counts, N)) continue; /* refusing it is safe */
                for (size_t k = 0; k < N; k++) {
                    if (counts[k] == honest[k]) continue;
                    print_error("%s, conversation %d: token %zu %zu times instead of %zu\n", found.gl_pathv[i], kind, k,
                                counts[k], honest[k]);
                    wrong++;
                }
            }
        }
        sh_chat_destroy(chat);
    }
    globfree(&found);
    sh_vocab_close(v);
    assert_int_equal(wrong, 0);
    assert_true(rendered >= 5 * 59 - 20 && tokens > 500);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_capabilities), cmocka_unit_test(test_renderings),
                                       cmocka_unit_test(test_no_smuggling)};
    return cmocka_run_group_tests_name("chat_templates", tests, NULL, NULL);
}
