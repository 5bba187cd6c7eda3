/* From a request to a prompt, on templates made for the purpose: which is chosen, what is refused, what is adapted, where a continued
 * message ends. */
#include "tests/unit/chatvocab.h"
#include "tests/unit/shared.h"

#include "compute/chat/chat.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#define CHATML                                                                                                                   \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"                       \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

static const char *const chatml_tokens[] = {"<|im_start|>", "<|im_end|>", NULL};

static struct sh_vocab *vocab_with(const char *const *control, const char *text) {
    const struct chatvocab_template t = {NULL, text, 0};
    return chatvocab_create("apply.gguf", control, &t, text != NULL ? 1 : 0);
}

static struct sh_chat *chat_of(const struct sh_vocab *v, const char *which) {
    struct sh_chat *chat;
    struct sh_error err;
    if (sh_chat_create(v, which, &chat, &err) != SH_OK) fail_msg("%s", err.message);
    return chat;
}

/* The prompt, malloc'd; or the error's message behind "error: ". */
static char *applied(const struct sh_chat *chat, const struct sh_chat_request *request) {
    struct sh_chat_prompt prompt;
    struct sh_error err;
    char *text = NULL;
    const enum sh_code code = sh_chat_apply(chat, request, &prompt, &err);
    if (code != SH_OK) {
        assert_int_equal(code, err.code);
        assert_null(prompt.text);
        assert_true(asprintf(&text, "error: %s", err.message) > 0);
        return text;
    }
    size_t at = 0;
    for (uint32_t i = 0; i < prompt.n_parts; i++) {
        assert_int_equal(prompt.parts[i].begin, at);
        at = prompt.parts[i].end;
    }
    assert_int_equal(at, prompt.length);
    text = strdup(prompt.text);
    sh_chat_prompt_finish(&prompt);
    return text;
}

static void expect_request(const struct sh_chat *chat, const struct sh_chat_request *request, const char *want) {
    char *got = applied(chat, request);
    if (strcmp(got, want) != 0) fail_msg("%s\n want: %s\n got:  %s", request->messages, want, got);
    free(got);
}

static void expect(const struct sh_chat *chat, const char *messages, const char *want) {
    const struct sh_chat_request request = {.size = sizeof request, .messages = messages};
    expect_request(chat, &request, want);
}

/* ---- which template ---- */

static void check_choice(const struct sh_vocab *v, const char *which, const char *name, const char *source,
                         const char *in_reason) {
    struct sh_chat *chat = chat_of(v, which);
    struct sh_chat_info info;
    sh_chat_get_info(chat, &info);
    assert_string_equal(info.name, name);
    assert_string_equal(info.source, source);
    if (strstr(info.reason, in_reason) == NULL) fail_msg("reason: %s", info.reason);
    sh_chat_destroy(chat);
}

static void test_choice(void **state) {
    (void)state;
    struct sh_chat *chat;
    struct sh_error err;
    const struct chatvocab_template named[] = {{NULL, "default:{% for m in messages %}{{ m.content }}{% endfor %}", 0},
                                               {"tool_use",
                                                "tools:{{ tools | length }}{% for t in tools %}{{ t.function.name }}{% endfor "
                                                "%}{% for m in messages %}{{ m.content }}{% endfor %}",
                                                0},
                                               {"rag", "rag", 0}};
    struct sh_vocab *v = chatvocab_create("named.gguf", chatml_tokens, named, 3);
    check_choice(v, NULL, "default", "model", "own");
    check_choice(v, "default", "default", "model", "asked for");
    check_choice(v, "rag", "rag", "model", "asked for");
    check_choice(v, "llama3", "llama3", "built-in", "asked for");
    const char *path = test_scratch("own.jinja");
    test_write_file(path, "file", 4);
    check_choice(v, path, path, "file", "asked for");
    assert_int_equal(sh_chat_create(v, "nonsense", &chat, &err), SH_ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "nonsense"));
    assert_non_null(strstr(err.message, "default, tool_use, rag; built in: "));
    assert_int_equal(sh_chat_create(v, "/nowhere/x.jinja", &chat, &err), SH_ERR_NOT_FOUND);
    assert_int_equal(sh_chat_create(v, "/", &chat, &err), SH_ERR_IO);
    path = test_scratch("pipe.jinja"); /* nobody writes into it, and nobody waits for that */
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(sh_chat_create(v, path, &chat, &err), SH_ERR_IO);
    assert_non_null(strstr(err.message, "regular file"));
    path = test_scratch("large.jinja");
    char *large = calloc(1, (4 << 20) + 2);
    assert_non_null(large);
    memset(large, 'x', (4 << 20) + 1);
    test_write_file(path, large, (4 << 20) + 1);
    assert_int_equal(sh_chat_create(v, path, &chat, &err), SH_ERR_LIMIT);
    test_write_file(path, large, 4 << 20);
    check_choice(v, path, path, "file", "asked for");
    free(large);

    /* the one for tools, unless another was asked for */
    const char *tools = "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]",
               *messages = "[{\"role\":\"user\",\"content\":\"u\"}]";
    const struct sh_chat_request with = {.size = sizeof with, .messages = messages, .tools = tools};
    const struct sh_chat_request hidden = {
        .size = sizeof hidden, .messages = messages, .tools = tools, .tool_choice = SH_TOOLS_NONE};
    chat = chat_of(v, NULL);
    expect(chat, messages, "default:u");
    expect_request(chat, &with, "tools:1fu");
    expect_request(chat, &hidden, "default:u");
    sh_chat_destroy(chat);
    chat = chat_of(v, "default");
    char *text = applied(chat, &with);
    assert_non_null(strstr(text, "default:"));
    assert_non_null(strstr(text, "\"f\"")); /* in the messages, since this one knows no tools */
    free(text);
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

static void test_broken_templates(void **state) {
    (void)state;
    struct sh_chat *chat;
    struct sh_error err;
    struct sh_vocab *v = vocab_with(NULL, "line\n{% for %}");
    assert_int_equal(sh_chat_create(v, NULL, &chat, &err), SH_ERR_FORMAT);
    assert_non_null(strstr(err.message, "tokenizer.chat_template"));
    assert_non_null(strstr(err.message, "line 2"));
    assert_null(chat);
    check_choice(v, "plain", "plain", "built-in", "asked for");
    sh_vocab_close(v);

    /* one for tools that is wrong costs requests with tools alone */
    const struct chatvocab_template named[] = {{NULL, "{{ messages[0].content }}", 0}, {"tool_use", "{{", 0}};
    v = chatvocab_create("brokentools.gguf", NULL, named, 2);
    chat = chat_of(v, NULL);
    expect(chat, "[{\"role\":\"user\",\"content\":\"u\"}]", "u");
    const struct sh_chat_request with = {.size = sizeof with,
                                         .messages = "[{\"role\":\"user\",\"content\":\"u\"}]",
                                         .tools = "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"};
    char *text = applied(chat, &with);
    assert_non_null(strstr(text, "error: tokenizer.chat_template.tool_use: template, line 1"));
    free(text);
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

static void test_families(void **state) {
    (void)state;
    static const struct {
        const char *const control[6];
        const char *name, *one, *turns; /* a user's message; system, user, assistant, user */
    } cases[] = {
        {{NULL}, "plain", "User: U1\nAssistant:", "System: S\nUser: U1\nAssistant: A\nUser: U2\nAssistant:"},
        {{"<|im_start|>", "<|im_end|>"},
         "chatml",
         "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\n"
         "U2<|im_end|>\n<|im_start|>assistant\n"},
        {{"<|im_start|>", "<|im_end|>", "<|im_sep|>"},
         "phi4",
         "<|im_start|>user<|im_sep|>U1<|im_end|><|im_start|>assistant<|im_sep|>",
         "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U1<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|>"
         "<|im_start|>user<|im_sep|>U2<|im_end|><|im_start|>assistant<|im_sep|>"},
        {{"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
         "llama3",
         "<s><|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
         "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        {{"<start_of_turn>", "<end_of_turn>"},
         "gemma",
         "<s><start_of_turn>user\nU1<end_of_turn>\n<start_of_turn>model\n",
         "<s><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nU2<end_of_"
         "turn>\n"
         "<start_of_turn>model\n"},
        {{"<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>"},
         "command-r",
         "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>U1<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
         "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>U1<|END_OF_TURN_"
         "TOKEN|>"
         "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>U2<|END_OF_TURN_"
         "TOKEN|>"
         "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"},
        {{"<｜User｜>", "<｜Assistant｜>"},
         "deepseek",
         "<s><｜User｜>U1<｜Assistant｜>",
         "<s>S<｜User｜>U1<｜Assistant｜>A</s><｜User｜>U2<｜Assistant｜>"},
        {{"<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"},
         "granite",
         "<|start_of_role|>user<|end_of_role|>U1<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
         "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|end_of_text|>\n"
         "<|start_of_role|>assistant<|end_of_role|>A<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U2<|end_of_text|>\n"
         "<|start_of_role|>assistant<|end_of_role|>"},
        {{"<|start|>", "<|channel|>", "<|message|>", "<|end|>"},
         "gpt-oss",
         "<|start|>user<|message|>U1<|end|><|start|>assistant",
         "<|start|>system<|message|>S<|end|><|start|>user<|message|>U1<|end|><|start|>assistant<|channel|>final<|message|>A<|end|"
         ">"
         "<|start|>user<|message|>U2<|end|><|start|>assistant"},
        {{"[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"},
         "glm4",
         "[gMASK]<sop><|user|>\nU1<|assistant|>\n",
         "[gMASK]<sop><|system|>\nS<|user|>\nU1<|assistant|>\nA<|user|>\nU2<|assistant|>\n"},
        {{"<|user|>", "<|assistant|>", "<|system|>", "<|end|>"},
         "phi3",
         "<|user|>\nU1<|end|>\n<|assistant|>\n",
         "<|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nU2<|end|>\n<|assistant|>\n"},
        {{"[INST]", "[/INST]"}, "mistral", "<s>[INST] U1[/INST]", "<s>[INST] S\n\nU1[/INST] A</s>[INST] U2[/INST]"},
        {{"[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
         "mistral-v7",
         "<s>[INST]U1[/INST]",
         "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U1[/INST]A</s>[INST]U2[/INST]"},
    };
    static const struct {
        const char *name, *turns, *stop;
    } by_name[] = {
        {"zephyr", "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA</s>\n<|user|>\nU2</s>\n<|assistant|>\n", "<|user|>"},
        {"llama2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A </s><s>[INST] U2 [/INST]", "[INST]"},
        {"vicuna", "S USER: U1 ASSISTANT: A</s>USER: U2 ASSISTANT:", "USER:"},
        {"alpaca", "S\n\n### Instruction:\nU1\n\n### Response:\nA\n\n### Instruction:\nU2\n\n### Response:\n",
         "### Instruction:"},
        {"chatml", NULL, "<|im_end|>"}, /* the vocabulary has no such token, so its text ends the answer */
    };
    static const char turns[] = "[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"U1\"},"
                                "{\"role\":\"assistant\",\"content\":\"A\"},{\"role\":\"user\",\"content\":\"U2\"}]";
    struct sh_chat_info info;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_vocab *v = chatvocab_create("family.gguf", cases[i].control, NULL, 0);
        struct sh_chat *chat = chat_of(v, NULL);
        sh_chat_get_info(chat, &info);
        assert_string_equal(info.name, cases[i].name);
        assert_string_equal(info.source, "built-in");
        assert_non_null(strstr(info.reason, cases[i].control[0] != NULL ? cases[i].control[0] : "no tokens"));
        expect(chat, "[{\"role\":\"user\",\"content\":\"U1\"}]", cases[i].one);
        expect(chat, turns, cases[i].turns);
        if (strcmp(info.name, "plain") == 0) {
            assert_int_equal(info.n_stops, 2);
            assert_string_equal(info.stops[0], "\nUser:");
            assert_string_equal(info.stops[1], "\nSystem:");
        } else if (strcmp(info.name, "glm4") != 0 && strcmp(info.name, "command-r") != 0) { /* their marks may end no text */
            assert_int_equal(info.n_stops, 0);
        }
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
    struct sh_vocab *v = chatvocab_create("family.gguf", NULL, NULL, 0);
    for (size_t i = 0; i < sizeof by_name / sizeof *by_name; i++) {
        struct sh_chat *chat = chat_of(v, by_name[i].name);
        if (by_name[i].turns != NULL) expect(chat, turns, by_name[i].turns);
        sh_chat_get_info(chat, &info);
        bool there = false;
        for (uint32_t k = 0; k < info.n_stops; k++) there |= strcmp(info.stops[k], by_name[i].stop) == 0;
        if (!there) fail_msg("%s: no stop %s", by_name[i].name, by_name[i].stop);
        sh_chat_destroy(chat);
    }
    for (size_t i = 0; sh_chat_builtin_at(i) != NULL; i++) { /* each by its name */
        check_choice(v, sh_chat_builtin_at(i)->name, sh_chat_builtin_at(i)->name, "built-in", "asked for");
    }
    sh_vocab_close(v);
}

/* What a template writes behind an answer ends one: by its text where it is a token that does not end a text, or none at all. */
static void test_stops(void **state) {
    (void)state;
    static const char *const tokens[] = {"<|im_end|>", "<done>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", NULL};
    static const struct {
        const char *text, *stop; /* "": none */
        int32_t shown;           /* -1: none */
    } cases[] = {
        {"{% for m in messages %}{{ m.role }} {{ m.content }}<|im_end|>\n{% endfor %}", "", -1},
        {"{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}", "", -1},
        {"{% for m in messages %}{{ m.role }} {{ m.content }}<done>\n{% endfor %}", "<done>", CHATVOCAB_CONTROL + 1},
        {"{% for m in messages %}{{ m.role }} {{ m.content }} <over>\n{% endfor %}", "<over>", -1},
        {"{% for m in messages %}{{ '\n\n' + m.role }}: {{ m.content }}{% endfor %}", "\n\nuser:", -1},
        {"{% for m in messages %}{{ m.content }}\n{% endfor %}", "", -1},
        {"{% for m in messages %}{{ m.role }}<|channel|>final<|message|>{{ m.content }}<done>{% endfor %}{# analysis #}", "", -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_vocab *v = vocab_with(tokens, cases[i].text);
        struct sh_chat *chat = chat_of(v, NULL);
        struct sh_chat_info info;
        bool shown = false;
        sh_chat_get_info(chat, &info);
        assert_int_equal(info.n_stops, *cases[i].stop != '\0');
        if (info.n_stops > 0) assert_string_equal(info.stops[0], cases[i].stop);
        for (uint32_t k = 0; k < info.n_shown; k++) shown |= info.shown[k] == CHATVOCAB_CONTROL + 1;
        assert_int_equal(shown, cases[i].shown >= 0);
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
}

/* A template that asks for harmony has calls and reasoning of that form, whatever the vocabulary has; another one has neither. */
static void test_harmony_whole(void **state) {
    (void)state;
    static const char *const tokens[] = {"<|start|>",     "<|channel|>", "<|message|>", "<|end|>",
                                         "<|constrain|>", "<|call|>",    "<tool_call>", NULL};
    static const char *const cases[][3] = {{"gpt-oss", "harmony", "harmony"}, {"chatml", "hermes", ""}};
    struct sh_vocab *v = chatvocab_create("whole.gguf", tokens, NULL, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_chat *chat = chat_of(v, cases[i][0]);
        struct sh_chat_info info;
        sh_chat_get_info(chat, &info);
        assert_string_equal(info.tools, cases[i][1]);
        assert_string_equal(info.reasoning, cases[i][2]);
        sh_chat_destroy(chat);
    }
    sh_vocab_close(v);
}

/* ---- what is refused ---- */

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *messages, *begins, *holds;
    } cases[] = {
        {"", "messages: no JSON", "line 1"},
        {"{}", "messages: found an object", "an array"},
        {"[]", "messages: found 0 messages", "1 to"},
        {"[1]", "messages[0]: found the integer 1", "object"},
        {"[{\"content\":\"x\"}]", "messages[0].role: missing", "\"user\""},
        {"[{\"role\":7,\"content\":\"x\"}]", "messages[0].role: found the integer 7", ""},
        {"[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"critic\",\"content\":\"x\"}]",
         "messages[1].role: found the string \"critic\"", ""},
        {"[{\"role\":\"us\\u0000er\",\"content\":\"x\"}]", "messages[0].role: ", ""},
        {"[{\"role\":\"user\"}]", "messages[0].content: missing", "a string or an array"},
        {"[{\"role\":\"user\",\"content\":null}]", "messages[0].content: found null", ""},
        {"[{\"role\":\"user\",\"content\":{}}]", "messages[0].content: found an object", ""},
        {"[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]", "messages[0].content: found a string with a NUL", ""},
        {"[{\"role\":\"user\",\"content\":[1]}]", "messages[0].content[0]: found the integer 1", ""},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\",\"image_url\":{}}]}]",
         "messages[0].content[1].type: found the string \"image_url\"", "text"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]",
         "messages[0].content[0].type: found the string \"input_audio\"", ""},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0].text: missing", ""},
        {"[{\"role\":\"user\",\"content\":\"x\",\"name\":1}]", "messages[0].name: found the integer 1", ""},
        {"[{\"role\":\"assistant\"}]", "messages[0].content: missing", ""},
        {"[{\"role\":\"assistant\",\"content\":null}]", "messages[0].content: found null", ""},
        {"[{\"role\":\"assistant\",\"content\":\"x\",\"reasoning_content\":[]}]", "messages[0].reasoning_content: found an array",
         ""},
        {"[{\"role\":\"assistant\",\"tool_calls\":{}}]", "messages[0].tool_calls: found an object", ""},
        {"[{\"role\":\"assistant\",\"tool_calls\":[1]}]", "messages[0].tool_calls[0]: found the integer 1", ""},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"custom\"}]}]", "messages[0].tool_calls[0].type: found",
         "\"function\""},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{}]}]", "messages[0].tool_calls[0].function: missing", ""},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]", "messages[0].tool_calls[0].function.name: missing", ""},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":1}}]}]",
         "messages[0].tool_calls[0].function.arguments: found the integer 1", ""},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":1,\"function\":{\"name\":\"f\"}}]}]",
         "messages[0].tool_calls[0].id: found", ""},
        {"[{\"role\":\"user\",\"content\":\"x\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]",
         "messages[0].tool_calls: found an array", "assistant"},
        {"[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":1}]", "messages[0].tool_call_id: found", ""},
        {"[{\"role\":\"assistant\",\"function_call\":1,\"content\":\"\"}]", "messages[0].function_call: found the integer 1", ""},
        {"[{\"role\":\"assistant\",\"content\":\"x\",\"audio\":{\"id\":\"a\"}}]", "messages[0].audio: found an object", ""},
        {"[{\"role\":\"user\",\"content\":\"x\",\"further\":[[\"a\\u0000\"]]}]", "messages[0]: found a string with a NUL", ""},
    };
    struct sh_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct sh_chat_request request = {.size = sizeof request, .messages = cases[i].messages};
        assert_int_equal(sh_chat_check(&request, &err), SH_ERR_INVALID);
        if (strncmp(err.message, cases[i].begins, strlen(cases[i].begins)) != 0 || strstr(err.message, cases[i].holds) == NULL)
            fail_msg("%s: %s", cases[i].messages, err.message);
    }
    static const struct {
        const char *tools, *name, *begins;
    } tools[] = {
        {"{}", NULL, "tools: found an object"},
        {"[1]", NULL, "tools[0]: found the integer 1"},
        {"[{}]", NULL, "tools[0].type: missing"},
        {"[{\"type\":\"web_search\"}]", NULL, "tools[0].type: found the string \"web_search\""},
        {"[{\"type\":\"function\"}]", NULL, "tools[0].function: missing"},
        {"[{\"type\":\"function\",\"function\":{}}]", NULL, "tools[0].function.name: missing"},
        {"[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]", NULL, "tools[0].function.name: found the string \"\""},
        {"[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":[]}}]", NULL,
         "tools[0].function.parameters: found an array"},
        {"[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":true}}}]", NULL,
         "tools[0].function.parameters.properties: found true"},
        {"[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", "g", "tool_choice: found the function \"g\""},
        {"[]", NULL, "tool_choice: a call is required"},
        {NULL, "g", "tool_choice: found the function"},
    };
    for (size_t i = 0; i < sizeof tools / sizeof *tools; i++) {
        const struct sh_chat_request request = {.size = sizeof request,
                                                .messages = "[{\"role\":\"user\",\"content\":\"x\"}]",
                                                .tools = tools[i].tools,
                                                .tool_choice = SH_TOOLS_REQUIRED,
                                                .tool_name = tools[i].name};
        assert_int_equal(sh_chat_check(&request, &err), SH_ERR_INVALID);
        if (strncmp(err.message, tools[i].begins, strlen(tools[i].begins)) != 0) fail_msg("%zu: %s", i, err.message);
    }
    static const char *const variables[] = {"[]", "{", "{\"messages\":[]}", "{\"tools\":null}",
                                            "{\"add_generation_prompt\":false}", "{\"a\":[\"b\\u0000\"]}"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const struct sh_chat_request request = {
            .size = sizeof request, .messages = "[{\"role\":\"user\",\"content\":\"x\"}]", .variables = variables[i]};
        assert_int_equal(sh_chat_check(&request, &err), SH_ERR_INVALID);
        assert_non_null(strstr(err.message, "chat_template_kwargs"));
        assert_null(strstr(err.message, "JSON_ALLOW_NUL")); /* in words of ours */
    }
    char deep[2000] = "[{\"role\":\"user\",\"content\":\"x\",\"x\":";
    for (int i = 0; i < 400; i++) strcat(deep, "[");
    for (int i = 0; i < 400; i++) strcat(deep, "]");
    strcat(deep, "}]");
    const struct sh_chat_request request = {.size = sizeof request, .messages = deep};
    assert_int_equal(sh_chat_check(&request, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "levels"));
}

/* What OpenAI's API lets a tool leave out is filled in where a template cannot do without it, and only there. */
static void test_bare_tools(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"{% for t in tools %}{{ t | tojson }}{% endfor %}", "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]",
         "{\"type\": \"function\", \"function\": {\"name\": \"f\"}}"},
        {"{% for t in tools %}{{ t.function.name + ':' + t.function.description }}{% endfor %}",
         "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}},{\"type\":\"function\",\"function\":{\"name\":\"g\",\"description\":\"d\"}}]",
         "f:g:d"},
        {"{% for t in tools %}{{ t.function.name }}{% for k in t.function.parameters.properties.items() %}{{ k }}{% endfor %}{% endfor %}",
         "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}},{\"type\":\"function\",\"function\":{\"name\":\"g\",\"parameters\":{}}}]",
         "fg"},
        {"{% for t in tools %}{% for k, p in t.function.parameters.properties.items() %}{{ k + ':' + p.description }}{% endfor %}{% endfor %}",
         "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{},\"b\":{\"description\":\"d\"}}}}}]",
         "a:b:d"},
        {"{% for t in tools %}{{ t.function.name + t.function.color }}{% endfor %}",
         "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", "error: template, line 1: 'color' is undefined"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_vocab *v = vocab_with(NULL, cases[i][0]);
        struct sh_chat *chat = chat_of(v, NULL);
        const struct sh_chat_request request = {
            .size = sizeof request, .messages = "[{\"role\":\"user\",\"content\":\"u\"}]", .tools = cases[i][1]};
        expect_request(chat, &request, cases[i][2]);
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
}

/* What a template says itself, and templates that go wrong while they are rendered. */
static void test_templates_that_refuse(void **state) {
    (void)state;
    struct sh_error err;
    struct sh_chat_prompt prompt;
    struct sh_vocab *v =
        vocab_with(NULL, "{% if messages[0].content == 'no' %}{{ raise_exception('I will not') }}{% endif %}"
                         "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}"
                         "{{ '' }}{% endfor %}{% endfor %}{% endif %}"
                         "{% if messages[0].content == 'add' %}{{ 'a' + 1 }}{% endif %}{{ messages[0].content }}");
    struct sh_chat *chat = chat_of(v, NULL);
    struct sh_chat_request request = {.size = sizeof request, .messages = "[{\"role\":\"user\",\"content\":\"no\"}]"};
    assert_int_equal(sh_chat_apply(chat, &request, &prompt, &err), SH_ERR_INVALID);
    assert_string_equal(err.message, "I will not");
    request.messages = "[{\"role\":\"user\",\"content\":\"loop\"}]";
    assert_int_equal(sh_chat_apply(chat, &request, &prompt, &err), SH_ERR_LIMIT);
    request.messages = "[{\"role\":\"user\",\"content\":\"add\"}]";
    assert_int_equal(sh_chat_apply(chat, &request, &prompt, &err), SH_ERR_FORMAT);
    assert_null(prompt.text);
    sh_chat_destroy(chat);
    sh_vocab_close(v);
    /* one that uses up its steps is not asked again and again */
    v = vocab_with(NULL, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
    struct sh_chat *slow = chat_of(v, NULL);
    assert_int_equal(sh_chat_apply(slow, &request, &prompt, &err), SH_ERR_LIMIT);
    sh_chat_destroy(slow);
    sh_vocab_close(v);
    v = vocab_with(NULL, "{{ raise_exception('never') }}"); /* probes fail, the chat is there all the same */
    chat = chat_of(v, NULL);
    assert_int_equal(sh_chat_apply(chat, &request, &prompt, &err), SH_ERR_INVALID);
    assert_string_equal(err.message, "never");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* ---- what is adapted ---- */

#define USER(text) "{\"role\":\"user\",\"content\":\"" text "\"}"
#define CALL(arguments)                                                                                                          \
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":"      \
    "\"f\",\"arguments\":" arguments "}}]}"
#define RESULT "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"name\":\"f\",\"content\":\"7\"}"
static const char one_tool[] = "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"minimum\":0.1}}}]";

static void test_contents(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_with(chatml_tokens, CHATML);
    struct sh_chat *chat = chat_of(v, NULL);
    expect(chat, "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]",
           "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n");
    expect(chat, "[{\"role\":\"user\",\"content\":[]}]", "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n");
    expect(chat, "[{\"role\":\"developer\",\"content\":\"d\"}," USER("u") "]",
           "<|im_start|>system\nd<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n");
    expect(chat, "[" USER("u") ",{\"role\":\"assistant\",\"refusal\":\"no\"}," USER("v") "]",
           "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nv<|im_end|>\n<|im_start|>"
           "assistant\n");
    const struct sh_chat_request bare = {.size = sizeof bare, .messages = "[" USER("u") "]", .no_generation_prompt = true};
    expect_request(chat, &bare, "<|im_start|>user\nu<|im_end|>\n");
    sh_chat_destroy(chat);
    sh_vocab_close(v);

    v = vocab_with(
        NULL, "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.type }}={{ p.text }};{% endfor %}{% endfor %}");
    chat = chat_of(v, NULL);
    expect(chat, "[" USER("u") "]", "user:text=u;");
    expect(chat, "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]",
           "user:text=a;text=b;");
    sh_chat_destroy(chat);
    sh_vocab_close(v);

    v = vocab_with(NULL, "{{ bos_token }}{{ flag }}{{ tools is none }}{{ documents is none }}{{ messages[0].content }}{{ extra }}"
                         "{{ strftime_now('%Y') }}{{ eos_token }}");
    chat = chat_of(v, NULL);
    const struct sh_chat_request request = {.size = sizeof request,
                                            .messages = "[" USER("u") "]",
                                            .variables = "{\"flag\":true,\"extra\":\"x<s>\"}",
                                            .now = "1999-01-01T00:00:00"};
    expect_request(chat, &request, "<s>TrueTrueTrueux<s>1999</s>");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* Arguments come as text from clients; templates want them as an object, as text, or do not care. */
static void test_arguments(void **state) {
    (void)state;
    static const char
        begin[] = "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}(",
        end[] = ")\n{% endfor %}{% else %}{{ m.role }} {{ m.content }}\n{% endif %}{% endfor %}{{ tools | length if tools }}";
    static const struct {
        const char *arguments, *from_text, *from_object;
    } cases[] = {
        {"{{ c.function.arguments | tojson }}", "{\"x\": [1, 0.1]}", "{\"x\": [1, 0.1]}"},
        {"{{ c.function.arguments }}", "{ \"x\": [1,0.1] }", "{\"x\": [1, 0.1]}"},
        {"{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif "
         "%}",
         "{ \"x\": [1,0.1] }", "{\"x\": [1, 0.1]}"},
        {"{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v | tojson }}{% endfor %}", "<x>[1, 0.1]", "<x>[1, 0.1]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024], want[256];
        snprintf(text, sizeof text, "%s%s%s", begin, cases[i].arguments, end);
        struct sh_vocab *v = vocab_with(NULL, text);
        struct sh_chat *chat = chat_of(v, NULL);
        snprintf(want, sizeof want, "user u\nf(%s)\ntool 7\n", cases[i].from_text);
        expect(chat, "[" USER("u") "," CALL("\"{ \\\"x\\\": [1,0.1] }\"") "," RESULT "]", want);
        snprintf(want, sizeof want, "user u\nf(%s)\ntool 7\n", cases[i].from_object);
        expect(chat, "[" USER("u") "," CALL("{\"x\": [1,0.1]}") "," RESULT "]", want);
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
    struct sh_vocab *v = vocab_with(
        NULL, "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }}"
              "){% endfor %}{{ m.role }}={{ m.content }};{% endfor %}");
    struct sh_chat *chat = chat_of(v, NULL);
    expect(chat, "[" USER("u") "," CALL("\" \"") "," RESULT "]", "user=u;f({})assistant=;tool=7;");
    expect(chat, "[" USER("u") "," CALL("null") "," RESULT "]", "user=u;f({})assistant=;tool=7;");
    char *text;
    const struct sh_chat_request bad = {.size = sizeof bad, .messages = "[" USER("u") "," CALL("\"{x\"") "]"};
    text = applied(chat, &bad);
    assert_non_null(strstr(text, "error: messages[1].tool_calls[0].function.arguments: found the string \"{x\""));
    free(text);
    /* the forms from before there were tools */
    expect(chat,
           "[" USER("u") ",{\"role\":\"assistant\",\"content\":null,\"function_call\":{\"name\":\"f\",\"arguments\":\"{}\"}},"
                         "{\"role\":\"function\",\"name\":\"f\",\"content\":\"7\"}]",
           "user=u;f({})assistant=;tool=7;");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* A template that knows neither tools nor calls: nothing is lost. */
static void test_no_tools(void **state) {
    (void)state;
    static const char history[] =
        "[{\"role\":\"system\",\"content\":\"S\"}," USER("u") "," CALL("\"{\\\"x\\\":1}\"") "," RESULT "," RESULT
                                                                                            "," USER("v") "]";
    struct sh_vocab *v = vocab_with(chatml_tokens, CHATML);
    struct sh_chat *chat = chat_of(v, NULL);
    expect(chat, history,
           "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n{\"name\": \"f\", "
           "\"arguments\": {\"x\":1}}"
           "<|im_end|>\n<|im_start|>user\nResult of the tool f:\n7\n\nResult of the tool "
           "f:\n7\n\nv<|im_end|>\n<|im_start|>assistant\n");
    struct sh_chat_request request = {.size = sizeof request, .messages = "[" USER("u") "]", .tools = one_tool};
    char *text = applied(chat, &request);
    assert_int_equal(strncmp(text, "<|im_start|>system\n", 19), 0);
    assert_non_null(strstr(text, "{\"name\": \"f\", \"parameters\": {\"minimum\": 0.1}}"));
    assert_non_null(strstr(text, "<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"));
    free(text);
    request.messages = "[{\"role\":\"system\",\"content\":\"S\"}," USER("u") "]";
    text = applied(chat, &request);
    assert_int_equal(strncmp(text, "<|im_start|>system\nS\n\n#", 23), 0);
    free(text);
    request.tool_choice = SH_TOOLS_NONE;
    expect_request(chat, &request, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n");
    sh_chat_destroy(chat);
    sh_vocab_close(v);

    /* no system messages either: the first of the user has it */
    v = vocab_with(NULL, "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif "
                         "%}[{{ m.role }}]{{ m.content }}{% endfor %}");
    chat = chat_of(v, NULL);
    const struct sh_chat_request with = {.size = sizeof with,
                                         .messages = "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"a\"}," USER("v") "]",
                                         .tools = one_tool};
    text = applied(chat, &with);
    assert_int_equal(strncmp(text, "[user]#", 7), 0);
    assert_non_null(strstr(text, "\n\nu[assistant]a[user]v"));
    free(text);
    expect(chat, "[{\"role\":\"system\",\"content\":\"S\"}]", "error: no system");
    sh_chat_destroy(chat);
    sh_vocab_close(v);

    /* calls that the template tells of tools but leaves out of what was said, in the form that it asks for */
    v = vocab_with(NULL, "{% if tools %}{{ tools | tojson }} within <tool_call></tool_call>{% endif %}{% for m in "
                         "messages %}[{{ m.role }}]{{ m.content }}{% endfor %}");
    chat = chat_of(v, NULL);
    struct sh_chat_info info;
    sh_chat_get_info(chat, &info);
    assert_string_equal(info.tools, "hermes");
    expect(chat, "[" USER("u") "," CALL("{\"x\":[1,0.1,null,true]}") "]",
           "[user]u[assistant]<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, 0.1, null, true]}}\n</tool_call>");
    expect(chat, "[" USER("u") "," CALL("\"{\\\"x\\\":1}\"") "]",
           "[user]u[assistant]<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\":1}}\n</tool_call>");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* What is written for a call reads back as that call: two of f, the first with arguments. */
static void read_back(const struct sh_chat *chat, const char *text) {
    const struct sh_chat_request request = {.size = sizeof request, .messages = "[" USER("u") "]", .tools = one_tool};
    struct sh_chat_prompt prompt;
    struct sh_answer *answer;
    struct sh_error err;
    const struct sh_answer_piece *pieces;
    uint32_t count, calls = 0;
    char arguments[2][256] = {"", ""};
    assert_int_equal(sh_chat_apply(chat, &request, &prompt, &err), SH_OK);
    assert_int_equal(sh_answer_create(&prompt, &answer, &err), SH_OK);
    assert_int_equal(sh_answer_push(answer, text, strlen(text), true, &pieces, &count, &err), SH_OK);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(pieces[i].kind == SH_ANSWER_CALL || pieces[i].kind == SH_ANSWER_ARGUMENTS);
        assert_true(pieces[i].call < 2);
        if (pieces[i].kind == SH_ANSWER_CALL) {
            assert_string_equal(pieces[i].name, "f");
            calls++;
        } else {
            assert_true(strlen(arguments[pieces[i].call]) + pieces[i].length < sizeof *arguments);
            strcat(arguments[pieces[i].call], pieces[i].text);
        }
    }
    assert_int_equal(calls, 2);
    json_t *got = json_loads(arguments[0], 0, NULL), *want = json_loads("{\"x\":[1,0.1,null,true],\"y\":{\"a\":\"b\"}}", 0, NULL);
    if (!json_equal(got, want)) fail_msg("%s: %s", text, arguments[0]);
    json_decref(got);
    json_decref(want);
    got = json_loads(arguments[1], 0, NULL);
    assert_true(json_is_object(got) && json_object_size(got) == 0);
    json_decref(got);
    sh_answer_destroy(answer);
    sh_chat_prompt_finish(&prompt);
}

/* The same for forms that write lists. */
static void test_written_calls(void **state) {
    (void)state;
    static const struct {
        const char *mark, *form, *want;
    } cases[] = {
        {"List of tools: ", "lfm2", "<|tool_call_start|>[f(x=[1, 0.1, None, True], y={\"a\": \"b\"}), f()]<|tool_call_end|>"},
        {"<|tool_call|>", "granite",
         "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"x\": [1, 0.1, null, true], \"y\": {\"a\": \"b\"}}}, "
         "{\"name\": \"f\", \"arguments\": {}}]"},
        {"<tool_call>", "hermes",
         "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, 0.1, null, true], \"y\": {\"a\": \"b\"}}}\n</tool_call>\n"
         "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>"},
        {"", "generic",
         "{\"name\": \"f\", \"arguments\": {\"x\": [1, 0.1, null, true], \"y\": {\"a\": \"b\"}}}\n{\"name\": \"f\", "
         "\"arguments\": {}}"},
        {"<function=</function>", "functionary-v3.1",
         "<function=f>{\"x\": [1, 0.1, null, true], \"y\": {\"a\": \"b\"}}</function>\n<function=f>{}</function>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "{%% if tools %%}%s{{ tools | tojson }}{%% endif %%}{%% for m in messages %%}{{ m.content }}{%% endfor %%}",
                 cases[i].mark);
        struct sh_vocab *v = vocab_with(NULL, text);
        struct sh_chat *chat = chat_of(v, NULL);
        struct sh_chat_info info;
        sh_chat_get_info(chat, &info);
        assert_string_equal(info.tools, cases[i].form);
        expect(chat,
               "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"x\":[1,0.1,null,true],"
               "\"y\":{\"a\":\"b\"}}}},"
               "{\"function\":{\"name\":\"f\"}}]}]",
               cases[i].want);
        read_back(chat, cases[i].want);
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
}

/* Calls are shown only beside no content; only beside null. */
static void test_calls_or_content(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_with(
        NULL, "{% for m in messages %}{% if m.tool_calls and m.content is none %}call {{ m.tool_calls[0].function.name }} "
              "{{ m.tool_calls[0].function.arguments | tojson }}{% else %}{{ m.role }} {{ m.content }}{% endif %};{% endfor %}");
    struct sh_chat *chat = chat_of(v, NULL);
    static const char call[] = "\"tool_calls\":[{\"id\":\"c\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}";
    char messages[512];
    snprintf(messages, sizeof messages, "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"\",%s]", call);
    expect(chat, messages, "user u;call f {};");
    snprintf(messages, sizeof messages, "[" USER("u") ",{\"role\":\"assistant\",%s]", call);
    expect(chat, messages, "user u;call f {};");
    snprintf(messages, sizeof messages, "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"let me see\",%s]", call);
    expect(chat, messages, "user u;assistant let me see;call f {};");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

#define TWO_CALLS                                                                                                                \
    "{\"role\":\"assistant\",\"content\":\"t\",\"tool_calls\":[{\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":\"{}"   \
    "\"}},"                                                                                                                      \
    "{\"id\":\"c2\",\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c2\","           \
    "\"content\":\"2\"},"                                                                                                        \
    "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"1\"}"

/* A template that takes one call of a message gets one after the other, each with its result. */
static void test_one_call(void **state) {
    (void)state;
    static const char *const heads[] = {
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}", /* refuses, */
        ""};                                                                              /* or leaves the others out */
    for (size_t i = 0; i < 2; i++) {
        char text[512];
        snprintf(
            text, sizeof text,
            "{%% for m in messages %%}%s[{{ m.role }}{{ ' ' ~ m.name if m.name }}]{{ m.content }}{%% if m.tool_calls %%}"
            "({{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}){%% endif %%}{%% endfor %%}",
            heads[i]);
        struct sh_vocab *v = vocab_with(NULL, text);
        struct sh_chat *chat = chat_of(v, NULL);
        expect(chat, "[" USER("u") "," TWO_CALLS "," USER("v") "]",
               "[user]u[assistant]t(f {})[tool f]1[assistant](g {})[tool g]2[user]v");
        expect(chat, "[" USER("u") "," TWO_CALLS "]", "[user]u[assistant]t(f {})[tool f]1[assistant](g {})[tool g]2");
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
    struct sh_vocab *v =
        vocab_with(NULL, "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}({{ c.function.name }} "
                         "{{ c.function.arguments | tojson }}){% endfor %}{% endfor %}");
    struct sh_chat *chat = chat_of(v, NULL); /* one that takes several has them as they are */
    expect(chat, "[" USER("u") "," TWO_CALLS "]", "[user]u[assistant]t(f {})(g {})[tool]2[tool]1");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* Ids that a template would refuse are replaced, the same by the same; others stay. */
static void test_ids(void **state) {
    (void)state;
    static const char show[] = "{% for m in messages %}{% for c in m.tool_calls %}{% if SHORT and c.id | length != 9 %}{{ "
                               "raise_exception('nine') }}{% endif %}"
                               "<{{ c.id }}>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{{ "
                               "m.tool_call_id }}{{ m.content }}{% endfor %}";
    for (int wants_short = 0; wants_short < 2; wants_short++) {
        char text[512], *at, id[10];
        snprintf(text, sizeof text, "%s", show);
        at = strstr(text, "SHORT");
        memcpy(at, wants_short ? "true " : "none ", 5);
        struct sh_vocab *v = vocab_with(NULL, text);
        struct sh_chat *chat = chat_of(v, NULL);
        const struct sh_chat_request request = {.size = sizeof request, .messages = "[" USER("u") "," CALL("{}") "," RESULT "]"};
        char *got = applied(chat, &request);
        if (wants_short) {
            assert_int_equal(sscanf(got, "u<%9[0-9a-zA-Z]>f {}", id), 1);
            assert_int_equal(strlen(id), 9);
            assert_non_null(strstr(strstr(got, id) + 9, id));
        } else {
            assert_string_equal(got, "u<c1>f {}c17");
        }
        free(got);
        expect(
            chat,
            "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"aB3456789\",\"function\":{\"name\":\"f\"}}]}]",
            "<aB3456789>f {}");
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
}

static void test_reasoning_key(void **state) {
    (void)state;
    struct sh_vocab *v =
        vocab_with(NULL, "{% for m in messages %}{% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}{% endfor %}");
    struct sh_chat *chat = chat_of(v, NULL);
    expect(chat, "[" USER("u") ",{\"role\":\"assistant\",\"reasoning_content\":\"hm\",\"content\":\"a\"}]", "u(hm)a");
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* ---- continuing ---- */

static void test_continue(void **state) {
    (void)state;
    static const struct {
        const char *text, *messages, *want;
    } cases[] = {
        {CHATML, "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"Sure, \"}]",
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nSure, "},
        {CHATML, "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"\"}]",
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"},
        {CHATML,
         "[" USER("u") ",{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":"
                       "\"b\"}]}]",
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na\nb"},
        /* one that trims: so does the prompt */
        {"{% for m in messages %}{{ '[' + m.role + '] ' + m.content | trim + '</s>' }}{% endfor %}",
         "[" USER("u") ",{\"role\":\"assistant\",\"content\":\" Sure, \\n\"}]", "[user] u</s>[assistant] Sure,"},
        /* the same words stand elsewhere, too */
        {"{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '</s>' }}{% endfor %} assistant",
         "[" USER("assistant") ",{\"role\":\"assistant\",\"content\":\"assistant\"}]",
         "[user] assistant</s>[assistant] assistant"},
        /* reasoning that is finished, and reasoning that is not */
        {"{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ "
         "m.content }};{% endfor %}",
         "[" USER("u") ",{\"role\":\"assistant\",\"reasoning_content\":\"hm\",\"content\":\"a\"}]",
         "user:u;assistant:<think>hm</think>a"},
        {"{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ "
         "m.content }};{% endfor %}",
         "[" USER("u") ",{\"role\":\"assistant\",\"reasoning_content\":\"hm\"}]", "user:u;assistant:<think>hm"},
        {CHATML, "[" USER("u") "]",
         "error: messages[0].role: found \"user\", expected \"assistant\": it is a message of the assistant that can be "
         "continued"},
        {CHATML,
         "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]",
         "error: messages[1].tool_calls: found 1, expected none in a message that is to be continued: leave them out, or answer "
         "them with tool messages"},
        {"{% for m in messages %}<{{ m.role }}>\n\n{{ m.content | trim }}</>{% endfor %}",
         "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"a \\n\"}]", "<user>\n\nu</><assistant>\n\na"},
        {"{% for m in messages %}<{{ m.role }}>\n\n{{ m.content | trim }}</>{% endfor %}",
         "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"\"}]", "<user>\n\nu</><assistant>\n\n"},
        {"{% for m in messages %}{{ '<' ~ m.role ~ '>\n\n' ~ m.content | trim ~ '</>' }}{% endfor %}",
         "[" USER("u") ",{\"role\":\"assistant\",\"content\":\" \\n\"}]", "<user>\n\nu</><assistant>\n\n"},
        {"{{ messages[0].content }}", "[" USER("u") ",{\"role\":\"assistant\",\"content\":\"a\"}]",
         "error: the chat template does not show the last message as it is, so it cannot be continued"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_vocab *v = vocab_with(chatml_tokens, cases[i].text);
        struct sh_chat *chat = chat_of(v, NULL);
        const struct sh_chat_request request = {.size = sizeof request, .messages = cases[i].messages, .continue_last = true};
        expect_request(chat, &request, cases[i].want);
        sh_chat_destroy(chat);
        sh_vocab_close(v);
    }
}

/* Whether the message goes on within its reasoning is told by the message, not by what others quote. */
static void test_continue_beside_marks(void **state) {
    (void)state;
    static const struct {
        const char *user, *assistant;
        enum sh_answer_kind kind;
    } cases[] = {
        {"u", "It is ", SH_ANSWER_CONTENT},
        {"What is <think>?", "It is ", SH_ANSWER_CONTENT},
        {"What is </think>?", "<think>It is ", SH_ANSWER_REASONING},
        {"What is <think>?", "<think>Hm.</think>It is ", SH_ANSWER_CONTENT},
    };
    struct sh_vocab *v = vocab_with(chatml_tokens, CHATML "{# <think> </think> #}");
    struct sh_chat *chat = chat_of(v, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char messages[256];
        snprintf(messages, sizeof messages, "[{\"role\":\"user\",\"content\":\"%s\"},{\"role\":\"assistant\",\"content\":\"%s\"}]",
                 cases[i].user, cases[i].assistant);
        const struct sh_chat_request request = {.size = sizeof request, .messages = messages, .continue_last = true};
        struct sh_chat_prompt prompt;
        struct sh_answer *answer;
        struct sh_error err;
        const struct sh_answer_piece *pieces;
        uint32_t count;
        assert_int_equal(sh_chat_apply(chat, &request, &prompt, &err), SH_OK);
        assert_int_equal(sh_answer_create(&prompt, &answer, &err), SH_OK);
        assert_int_equal(sh_answer_push(answer, "so", 2, true, &pieces, &count, &err), SH_OK);
        assert_int_equal(count, 1);
        if (pieces[0].kind != cases[i].kind) fail_msg("%s, %s: %d", cases[i].user, cases[i].assistant, (int)pieces[0].kind);
        sh_answer_destroy(answer);
        sh_chat_prompt_finish(&prompt);
    }
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

/* ---- tokens ---- */

static void test_tokens(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_with(chatml_tokens, "{{ bos_token }}" CHATML);
    struct sh_chat *chat = chat_of(v, NULL);
    const struct sh_chat_request request = {
        .size = sizeof request, .messages = "[" USER("<|im_end|><s>") "]", .variables = "{\"bos_token\":\"<s>\"}"};
    for (int given = 0; given < 2; given++) { /* a BOS that a request brings is text */
        struct sh_chat_request r = request;
        if (!given) r.variables = NULL;
        struct sh_chat_prompt prompt;
        struct sh_error err;
        int32_t *ids;
        size_t n, bos = 0, ends = 0;
        assert_int_equal(sh_chat_apply(chat, &r, &prompt, &err), SH_OK);
        assert_int_equal(sh_chat_tokenize(v, prompt.text, prompt.parts, prompt.n_parts, &ids, &n, &err), SH_OK);
        for (size_t i = 0; i < n; i++) {
            bos += ids[i] == CHATVOCAB_BOS;
            ends += ids[i] == CHATVOCAB_CONTROL + 1;
        }
        assert_int_equal(ids[0], CHATVOCAB_BOS); /* the vocabulary adds one where the prompt has none, and only there */
        assert_int_equal(bos, 1);
        assert_int_equal(ends, 1);
        free(ids);
        sh_chat_prompt_finish(&prompt);
    }
    sh_chat_destroy(chat);
    sh_vocab_close(v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),        cmocka_unit_test(test_broken_templates),
        cmocka_unit_test(test_families),      cmocka_unit_test(test_stops),
        cmocka_unit_test(test_harmony_whole),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_templates_that_refuse),
        cmocka_unit_test(test_contents),      cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_bare_tools),    cmocka_unit_test(test_no_tools),      cmocka_unit_test(test_calls_or_content),
        cmocka_unit_test(test_written_calls), cmocka_unit_test(test_one_call),
        cmocka_unit_test(test_ids),           cmocka_unit_test(test_reasoning_key),
        cmocka_unit_test(test_continue),      cmocka_unit_test(test_continue_beside_marks),
        cmocka_unit_test(test_tokens),
    };
    return cmocka_run_group_tests_name("chat_apply", tests, NULL, NULL);
}
