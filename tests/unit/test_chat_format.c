/*
 * test_chat_format.c - the form of every published template, and a round trip: what a template writes of earlier calls is what the model
 * writes, so reading that as an answer gives the calls back.
 */
#include "tests/unit/core.h"
#include "tests/unit/shared.h"

#include "compute/chat/forms.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

static const struct known {
    const char *file, *tools, *reasoning;
    bool calls; /* the template writes calls */
} known[] = {
    {"Apertus-8B-Instruct", "apertus", "apertus", true},
    {"ByteDance-Seed-OSS", "seed-oss", "seed", true},
    {"CohereForAI-c4ai-command-r-plus-tool_use", "command-r", "", true},
    {"CohereForAI-c4ai-command-r-v01", "command-r", "", false},
    {"CohereForAI-c4ai-command-r7b-12-2024-tool_use", "command-r7b", "cohere", true},
    {"GLM-4.6", "glm", "think", true},
    {"GLM-4.7-Flash", "glm", "think", true},
    {"HuggingFaceH4-zephyr-7b-beta", "generic", "", false},
    {"HuggingFaceH4-zephyr-7b-gemma-v0.1", "generic", "", false},
    {"HuggingFaceTB-SmolLM3-3B", "generic", "think", false},
    {"HuggingFaceTB-SmolLM3-3B-full", "hermes", "think", false},
    {"HuggingFaceTB-SmolVLM-Instruct", "generic", "", false},
    {"Kimi-K2-Instruct", "kimi-k2", "", true},
    {"Kimi-K2-Thinking", "kimi-k2", "think", true},
    {"LFM2-8B-A1B", "lfm2", "", false},
    {"LFM2.5-Instruct", "lfm2", "think", false},
    {"MiMo-VL", "hermes", "", true},
    {"Mistral-Small-3.2-24B-Instruct-2506", "mistral-v11", "", true},
    {"NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "qwen3-coder", "think", true},
    {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "hermes", "", true},
    {"Qwen-QwQ-32B", "hermes", "think", true},
    {"Qwen-Qwen2.5-7B-Instruct", "hermes", "", true},
    {"Qwen-Qwen2.5-VL-7B-Instruct", "generic", "", false},
    {"Qwen-Qwen3-0.6B", "hermes", "think", true},
    {"Qwen3-Coder", "qwen3-coder", "", true},
    {"Qwen3.5-4B", "qwen3-coder", "think", true},
    {"abacusai-Smaug-34B-v0.1", "generic", "", false},
    {"ai21labs-AI21-Jamba-Large-1.6", "jamba", "", true},
    {"chatml", "generic", "", false},
    {"codellama-CodeLlama-70b-Instruct-hf", "generic", "", false},
    {"deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-r1", "think", false},
    {"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-r1", "think", true},
    {"deepseek-ai-DeepSeek-V3.1", "deepseek-v3.1", "think", true},
    {"deepseek-ai-DeepSeek-V4", "dsml-v4", "think", true},
    {"deepseek-ai-deepseek-coder-33b-instruct", "generic", "", false},
    {"fireworks-ai-llama-3-firefunction-v2", "firefunction-v2", "", true},
    {"google-gemma-2-2b-it", "generic", "", false},
    {"google-gemma-4-31B-it", "gemma4", "gemma4", true},
    {"ibm-granite-granite-3.3-2B-Instruct", "granite", "granite", false},
    {"llama-cpp-deepseek-r1", "deepseek-r1", "think", false},
    {"llama-cpp-rwkv-world", "generic", "think", false},
    {"meetkai-functionary-medium-v3.1", "functionary-v3.1", "", true},
    {"meetkai-functionary-medium-v3.2", "functionary-v3.2", "", true},
    {"meta-llama-Llama-2-chat", "generic", "", false},
    {"meta-llama-Llama-3.1-8B-Instruct", "llama3", "", true},
    {"meta-llama-Llama-3.2-3B-Instruct", "llama3", "", true},
    {"microsoft-Phi-3.5-mini-instruct", "generic", "", false},
    {"mistral-common-v1_spm", "generic", "", false},
    {"mistral-common-v3_spm", "mistral", "", true},
    {"mistral-common-v7_spm", "mistral", "", true},
    {"mistralai-Ministral-3-14B-Reasoning-2512", "mistral-v11", "mistral", true},
    {"mistralai-Mistral-Nemo-Instruct-2407", "mistral", "", true},
    {"mistralai-Mixtral-8x7B-Instruct-v0.1", "generic", "", false},
    {"moonshotai-Kimi-K2", "kimi-k2", "", true},
    {"ollama-gemma4_e2b", "gemma4", "gemma4", true},
    {"openai-gpt-oss-120b", "harmony", "harmony", true},
    {"openbmb-MiniCPM3-4B", "minicpm3", "minicpm3", true},
    {"openchat-openchat-3.5-0106", "generic", "", false},
    {"stepfun-ai-Step-3.5-Flash", "qwen3-coder", "think", true},
};

static struct sh_format *format_of(const char *file, char **text, size_t *length) {
    char path[160];
    snprintf(path, sizeof path, "templates/%s.jinja", file);
    *text = test_read_file(TEST_SHARED(path), length);
    struct sh_format *format;
    struct sh_error err;
    assert_int_equal(sh_format_recognise(NULL, *text, *length, &format, &err), SH_OK);
    return format;
}

static void test_recognised(void **state) {
    (void)state;
    for (size_t i = 0; i < SH_COUNT(known); i++) {
        char *text;
        size_t length;
        struct sh_format *format = format_of(known[i].file, &text, &length);
        if (strcmp(sh_format_tools(format), known[i].tools) != 0 || strcmp(sh_format_reasoning(format), known[i].reasoning) != 0)
            fail_msg("%s: \"%s\" and \"%s\", expected \"%s\" and \"%s\"", known[i].file, sh_format_tools(format),
                     sh_format_reasoning(format), known[i].tools, known[i].reasoning);
        sh_format_free(format);
        free(text);
    }
}

/* ---- round trip ---- */

static char *render(const struct sh_template *tmpl, const json_t *one, size_t n_messages, bool prompt) {
    json_t *variables = json_copy(json_object_get(one, "kwargs"));
    json_object_set(variables, "tools", json_object_get(one, "tools"));
    json_object_set(variables, "bos_token", json_object_get(one, "bos_token"));
    json_object_set(variables, "eos_token", json_object_get(one, "eos_token"));
    json_object_set_new(variables, "add_generation_prompt", json_boolean(prompt));
    json_t *messages = json_array();
    for (size_t i = 0; i < n_messages; i++) json_array_append(messages, json_array_get(json_object_get(one, "messages"), i));
    json_object_set_new(variables, "messages", messages);
    char *text = json_dumps(variables, 0), *out = NULL;
    json_decref(variables);
    assert_non_null(text);
    size_t length;
    if (sh_template_render(tmpl, text, strlen(text), "2025-02-21T14:30:05", &out, &length, NULL) != SH_OK) out = NULL;
    free(text);
    return out;
}

/* What a turn ends with: the runner stops there. */
static void cut_end(char *answer) {
    static const char *const ends[] = {"<|im_end|>",
                                       "<|eot_id|>",
                                       "<|eom_id|>",
                                       "</s>",
                                       "<seed:eos>",
                                       "<|END_OF_TURN_TOKEN|>",
                                       "<|START_OF_TURN_TOKEN|>",
                                       "<turn|>",
                                       "<|call|>",
                                       "<｜end▁of▁sentence｜>",
                                       "<|eom|>",
                                       "<|end_of_text|>",
                                       "<|assistant_end|>",
                                       "<|user|>",
                                       "<|observation|>"};
    for (size_t i = 0; i < SH_COUNT(ends); i++) {
        char *end = strstr(answer, ends[i]);
        if (end != NULL) *end = '\0';
    }
}

struct outcome {
    json_t *calls; /* [{name, arguments}] */
    char content[4096];
};

static void read_whole(const struct sh_format *format, const char *prompt, const char *tools, const char *text,
                       struct outcome *out) {
    const struct sh_chat_request request = {.size = sizeof request, .messages = "[]", .tools = tools};
    struct sh_chat_prompt read = {0};
    struct sh_answer *answer;
    const struct sh_answer_piece *pieces;
    uint32_t count;
    struct sh_error err;
    assert_int_equal(sh_answer_plan_create(format, NULL, &request, prompt, strlen(prompt), &read.plan, &read.grammar, &err),
                     SH_OK);
    assert_int_equal(sh_answer_create(&read, &answer, &err), SH_OK);
    assert_int_equal(sh_answer_push(answer, text, strlen(text), true, &pieces, &count, &err), SH_OK);
    out->calls = json_array();
    out->content[0] = '\0';
    for (uint32_t i = 0; i < count; i++) {
        const struct sh_answer_piece *p = &pieces[i];
        if (p->kind == SH_ANSWER_CONTENT) snprintf(out->content, sizeof out->content, "%s", p->text);
        if (p->kind == SH_ANSWER_CALL) json_array_append_new(out->calls, json_pack("{s:s}", "name", p->name));
        if (p->kind == SH_ANSWER_ARGUMENTS)
            json_object_set_new(json_array_get(out->calls, p->call), "arguments",
                                json_loadb(p->text, p->length, JSON_ALLOW_NUL, NULL));
    }
    sh_answer_destroy(answer);
    sh_answer_plan_free(read.plan);
}

/* How many calls of this message came back; fails the test where they are others. */
static uint32_t round_trip(const struct known *k, const struct sh_format *format, const struct sh_template *tmpl,
                           const json_t *one, size_t index) {
    const json_t *message = json_array_get(json_object_get(one, "messages"), index),
                 *calls = json_object_get(message, "tool_calls");
    char *prompt = render(tmpl, one, index, true), *whole = render(tmpl, one, index + 1, false);
    uint32_t n = 0;
    if (prompt == NULL || whole == NULL) goto done;
    /* Where the prompt leads into something else than the history has (an opened <think>): up to where they agree. */
    size_t same = 0;
    while (prompt[same] != '\0' && prompt[same] == whole[same]) same++;
    const bool led = prompt[same] != '\0';
    if (led)
        while (same > 0 && whole[same] != '<') same--;
    prompt[same] = '\0';
    char *answer = whole + same;
    cut_end(answer);
    const char *first = json_string_value(json_object_get(json_object_get(json_array_get(calls, 0), "function"), "name"));
    if (strstr(answer, first) == NULL) goto done; /* the template leaves calls out */
    char *tools = json_dumps(json_object_get(one, "tools"), 0);
    struct outcome out;
    read_whole(format, prompt, tools, answer, &out);
    free(tools);
    n = (uint32_t)json_array_size(out.calls);
    const size_t want =
        format->calls->shape == SH_CALL_HARMONY ? 1 : json_array_size(calls); /* the template writes the first only */
    bool as_text = false;                                                     /* which some templates cannot take */
    for (size_t i = 0; i < json_array_size(calls); i++)
        as_text |= json_is_string(json_object_get(json_object_get(json_array_get(calls, i), "function"), "arguments"));
    if (n != want && as_text) n = 0;
    else if (n != want) fail_msg("%s, %s: %u calls of %s", k->file, json_string_value(json_object_get(one, "name")), n, answer);
    for (size_t i = 0; i < n; i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function"), *read = json_array_get(out.calls, i);
        json_t *arguments = json_incref(json_object_get(function, "arguments"));
        if (json_is_string(arguments)) {
            json_t *parsed = json_loads(json_string_value(arguments), 0, NULL);
            json_decref(arguments);
            arguments = parsed;
        }
        const bool same_name = json_equal(json_object_get(function, "name"), json_object_get(read, "name"));
        if (!same_name || !json_equal(arguments, json_object_get(read, "arguments"))) {
            if (as_text) {
                json_decref(arguments);
                n = 0;
                break;
            }
            char *shown = json_dumps(read, JSON_ENCODE_ANY);
            fail_msg("%s, %s: %s, of %s", k->file, json_string_value(json_object_get(one, "name")), shown, answer);
        }
        json_decref(arguments);
    }
    /* Some templates write a content of null as None, or not at all. */
    const char *content = json_string_value(json_object_get(message, "content"));
    const char *got = out.content + strspn(out.content, " \n");
    if (n > 0 && !led && content != NULL && strcmp(content, got) != 0 && *got != '\0')
        fail_msg("%s, %s: content \"%s\" of %s", k->file, json_string_value(json_object_get(one, "name")), out.content, answer);
    json_decref(out.calls);
done:
    free(prompt);
    free(whole);
    return n;
}

static void test_round_trip(void **state) {
    (void)state;
    for (size_t i = 0; i < SH_COUNT(known); i++) {
        char *text, path[160];
        size_t length;
        struct sh_format *format = format_of(known[i].file, &text, &length);
        struct sh_template *tmpl;
        struct sh_error err;
        if (sh_template_create(text, length, &tmpl, &err) != SH_OK) fail_msg("%s: %s", known[i].file, err.message);
        snprintf(path, sizeof path, "templates/%s.cases.json", known[i].file);
        json_t *cases = json_load_file(TEST_SHARED(path), 0, NULL);
        assert_true(json_is_array(cases));
        uint32_t n = 0;
        size_t c, m;
        json_t *one, *message;
        json_array_foreach(cases, c, one) {
            if (!json_is_array(json_object_get(one, "tools")) || json_object_get(one, "expect") == NULL) continue;
            json_array_foreach(json_object_get(one, "messages"), m,
                               message) if (json_array_size(json_object_get(message, "tool_calls")) > 0) n +=
                round_trip(&known[i], format, tmpl, one, m);
        }
        if ((n > 0) != known[i].calls) fail_msg("%s: %u calls came back", known[i].file, n);
        json_decref(cases);
        sh_template_destroy(tmpl);
        sh_format_free(format);
        free(text);
    }
}

static void test_instructions(void **state) {
    (void)state;
    static const char tools[] = "[{\"type\":\"function\",\"function\":{\"name\":\"now\",\"description\":\"The time.\"}}]";
    for (size_t i = 0; i < SH_COUNT(known); i++) {
        char *text;
        size_t length;
        struct sh_format *format = format_of(known[i].file, &text, &length);
        char *told = sh_format_instructions(format, tools, i % 2 == 0);
        assert_non_null(told);
        assert_non_null(strstr(told, "The time."));
        assert_non_null(strstr(told, "<function name>"));
        const char *const marks[] = {format->calls->open, format->calls->call_open, format->calls->call_close,
                                     format->calls->name_key};
        for (size_t k = 0; k < SH_COUNT(marks); k++)
            if (marks[k] != NULL && (format->calls->shape == SH_CALL_JSON || k < 3)) assert_non_null(strstr(told, marks[k]));
        free(told);
        sh_format_free(format);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recognised),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_instructions),
    };
    return cmocka_run_group_tests_name("chat_format", tests, NULL, NULL);
}
