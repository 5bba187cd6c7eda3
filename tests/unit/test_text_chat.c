/* Chat forms: which templates are recognised, what is rendered for them, and that a message cannot smuggle in a control token. */
#include "tests/unit/shared.h"

#include "compute/text/chat.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

static const struct {
    const char *name;
    enum sh_chat_family family;
} known[] = {
    {"HuggingFaceH4-zephyr-7b-beta", SH_CHAT_ZEPHYR},
    {"HuggingFaceH4-zephyr-7b-gemma-v0.1", SH_CHAT_CHATML},
    {"Qwen-Qwen2.5-7B-Instruct", SH_CHAT_CHATML},
    {"Qwen-Qwen2.5-VL-7B-Instruct", SH_CHAT_CHATML},
    {"chatml", SH_CHAT_CHATML},
    {"google-gemma-2-2b-it", SH_CHAT_GEMMA},
    {"meta-llama-Llama-2-chat", SH_CHAT_LLAMA2},
    {"meta-llama-Llama-3.1-8B-Instruct", SH_CHAT_LLAMA3},
    {"meta-llama-Llama-3.2-3B-Instruct", SH_CHAT_LLAMA3},
    {"MiMo-VL", SH_CHAT_CHATML},
};

static enum sh_chat_family expected_family(const char *name) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) == 0) return known[i].family;
    }
    return SH_CHAT_UNKNOWN;
}

enum { MAX_MESSAGES = 64 };

/* System, user and assistant messages of text, nothing else: what this rendering is for. */
static bool plain_case(const json_t *c, struct sh_chat_message *messages, uint32_t *n) {
    const json_t *tools = json_object_get(c, "tools"), *list = json_object_get(c, "messages");
    if (!json_is_null(tools) || json_object_size(json_object_get(c, "kwargs")) > 0) return false;
    *n = (uint32_t)json_array_size(list);
    if (*n == 0 || *n > MAX_MESSAGES) return false;
    for (uint32_t i = 0; i < *n; i++) {
        const json_t *m = json_array_get(list, i);
        messages[i].role = json_string_value(json_object_get(m, "role"));
        messages[i].content = json_string_value(json_object_get(m, "content"));
        if (json_object_size(m) != 2 || messages[i].content == NULL) return false;
        if (strcmp(messages[i].role, "system") != 0 && strcmp(messages[i].role, "user") != 0 &&
            strcmp(messages[i].role, "assistant") != 0) {
            return false;
        }
    }
    return true;
}

static void check_parts(const char *text, const struct sh_chat_part *parts, uint32_t n) {
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(parts[i].begin, at);
        assert_true(parts[i].end > at);
        if (i > 0) assert_true(parts[i].literal != parts[i - 1].literal);
        at = parts[i].end;
    }
    assert_int_equal(at, strlen(text));
}

static bool check_case(const struct sh_chat_form *form, const json_t *c, const struct sh_chat_message *messages, uint32_t n) {
    struct tm today = {.tm_year = 100, .tm_mon = 0, .tm_mday = 1};
    const char *now = json_string_value(json_object_get(c, "now"));
    if (now != NULL) {
        assert_int_equal(sscanf(now, "%d-%d-%d", &today.tm_year, &today.tm_mon, &today.tm_mday), 3);
        today.tm_year -= 1900;
        today.tm_mon--;
    }
    char *text;
    struct sh_chat_part *parts;
    uint32_t n_parts;
    struct sh_error err;
    const enum sh_code code = sh_chat_render_form(
        form, json_string_value(json_object_get(c, "bos_token")), json_string_value(json_object_get(c, "eos_token")), &today,
        messages, n, json_is_true(json_object_get(c, "add_generation_prompt")), &text, &parts, &n_parts, &err);
    const char *want_error = json_string_value(json_object_get(c, "expect_error"));
    bool right;
    if (want_error != NULL) {
        right = code == SH_ERR_INVALID && strstr(err.message, want_error) != NULL;
        if (!right) print_message("  %s: want error %s\n", json_string_value(json_object_get(c, "name")), want_error);
    } else {
        const char *want = json_string_value(json_object_get(c, "expect")),
                   *alt = json_string_value(json_object_get(c, "expect_alt"));
        right = code == SH_OK && (strcmp(text, want) == 0 || (alt != NULL && strcmp(text, alt) == 0));
        if (!right) {
            print_message("  %s: want \"%s\"\n got \"%s\"\n", json_string_value(json_object_get(c, "name")), want,
                          code == SH_OK ? text : err.message);
        }
    }
    if (code == SH_OK) check_parts(text, parts, n_parts);
    free(text);
    free(parts);
    return right;
}

static void published_templates(void **state) {
    (void)state;
    char pattern[4096];
    snprintf(pattern, sizeof pattern, "%s/*.jinja", TEST_SHARED("templates"));
    glob_t files;
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    size_t recognised = 0, wrong = 0;
    for (size_t i = 0; i < files.gl_pathc; i++) {
        char name[256];
        const char *base = strrchr(files.gl_pathv[i], '/') + 1;
        snprintf(name, sizeof name, "%.*s", (int)(strlen(base) - strlen(".jinja")), base);
        size_t length;
        char *text = test_read_file(files.gl_pathv[i], &length);
        struct sh_chat_form form;
        struct sh_error err;
        assert_int_equal(sh_chat_recognise(text, length, &form, &err), SH_OK);
        free(text);
        if (form.family != expected_family(name)) {
            print_message("  %s: recognised as %d, expected %d\n", name, form.family, expected_family(name));
            wrong++;
        }
        if (form.family != SH_CHAT_UNKNOWN) {
            recognised++;
            char relative[300];
            snprintf(relative, sizeof relative, "templates/%s.cases.json", name);
            json_error_t error;
            json_t *cases = json_load_file(TEST_SHARED(relative), 0, &error);
            if (cases == NULL) fail_msg("%s: %s", relative, error.text);
            size_t index, compared = 0;
            const json_t *c;
            json_array_foreach(cases, index, c) {
                struct sh_chat_message messages[MAX_MESSAGES];
                uint32_t n;
                if (!plain_case(c, messages, &n)) continue;
                if (!check_case(&form, c, messages, n)) {
                    print_message("  in %s\n", name);
                    wrong++;
                }
                compared++;
            }
            assert_true(compared >= 15);
            json_decref(cases);
        }
        sh_chat_form_free(&form);
    }
    globfree(&files);
    assert_int_equal(recognised, sizeof known / sizeof *known);
    assert_int_equal(wrong, 0);
}

/* ---- forms that the reference data has no template of -------------------------------------------------------------- */

static void recognise(const char *template, struct sh_chat_form *form) {
    struct sh_error err;
    assert_int_equal(sh_chat_recognise(template, strlen(template), form, &err), SH_OK);
}

static char *rendered(const struct sh_chat_form *form, const struct sh_chat_message *messages, uint32_t n, bool prompt) {
    char *text;
    struct sh_chat_part *parts;
    uint32_t n_parts;
    struct sh_error err = {0};
    const struct tm today = {.tm_year = 126, .tm_mon = 10, .tm_mday = 3};
    if (sh_chat_render_form(form, "<s>", "</s>", &today, messages, n, prompt, &text, &parts, &n_parts, &err) != SH_OK) {
        fail_msg("%s", err.message);
    }
    check_parts(text, parts, n_parts);
    free(parts);
    return text;
}

static const struct sh_chat_message one[] = {{"user", " Hi "}};
static const struct sh_chat_message three[] = {{"developer", "Be brief."}, {"user", "Hi"}, {"assistant", "Yes? "}};

static void other_spellings(void **state) {
    (void)state;
    static const struct {
        const char *template;
        enum sh_chat_family family;
        const char *one, *three; /* with and without a generation prompt */
    } cases[] = {
        {NULL, SH_CHAT_PLAIN, "User:  Hi \nAssistant:", "System: Be brief.\nUser: Hi\nAssistant: Yes? \n"},
        /* the same form in other words: blanks, quotes, attributes, raw text, comments, line ends */
        {"{#- chat -#}{%- for message in messages -%}\r\n<|im_start|>{{ message.role }}\r\n{{ message[\"content\"] "
         "}}<|im_end|>\r\n"
         "{% endfor %}\r\n{%- if add_generation_prompt %}<|im_start|>{{ 'assistant\\n' }}{% endif %}\r\n",
         SH_CHAT_CHATML, "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes? <|im_end|>\n"},
        {"{# chat #}{% for message in messages %}{{ \"<|im_start|>\" + message.role }}\n{{ message['content'] }}<|im_end|>{{ "
         "'\\n' }}"
         "{%endfor%}{% if add_generation_prompt %}<|im_start|>assistant{{\"\\n\"}}{% endif %}\n",
         SH_CHAT_CHATML, "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes? <|im_end|>\n"},
        {"{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% for message in "
         "messages %}"
         "{{'<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
         SH_CHAT_CHATML, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"},
        {"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nIt\\'s "
         "me.<|im_end|>\n"
         "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
         SH_CHAT_CHATML, "<|im_start|>system\nIt's me.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes? <|im_end|>\n"},
        {"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
         "'<|im_start|>system\nS<|im_end|>\n' }}"
         "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}{% if (loop.last and add_generation_prompt) "
         "or not "
         "loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != "
         "'assistant' %}"
         "{{ '<|im_start|>assistant\n' }}{% endif %}",
         SH_CHAT_CHATML, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes? "},
        {"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
         "message['role'] + "
         "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = "
         "bos_token + content "
         "%}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
         "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
         "{% endif %}",
         SH_CHAT_LLAMA3,
         "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
         "<s><|start_header_id|>system<|end_header_id|>\n\nBe "
         "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"},
        {"{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- if messages[0]['content'] is string -%}\n"
         "        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n"
         "        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%}\n"
         "    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n    {%- set first_user_prefix = \"\" -%}\n"
         "    {%- set loop_messages = messages -%}\n{%- endif -%}\n{%- for message in loop_messages -%}\n"
         "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
         "        {{ raise_exception(\"Conversation roles must alternate user/assistant/user/assistant/...\") }}\n    {%- endif "
         "-%}\n"
         "    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%}\n    {%- else -%}\n"
         "        {%- set role = message['role'] -%}\n    {%- endif -%}\n"
         "    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}\n"
         "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n"
         "    {%- elif message['content'] is iterable -%}\n        {%- for item in message['content'] -%}\n"
         "            {%- if item['type'] == 'image' -%}\n                {{ '<start_of_image>' }}\n            {%- endif -%}\n"
         "        {%- endfor -%}\n    {%- else -%}\n        {{ raise_exception(\"Invalid content type\") }}\n    {%- endif -%}\n"
         "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- "
         "endif -%}\n",
         SH_CHAT_GEMMA, "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
         "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"},
        {"{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
         "messages[0]['content'] %}"
         "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages "
         "%}"
         "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
         "user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
         "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
         "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
         "{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
         "{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
         SH_CHAT_LLAMA2, "<s>[INST] Hi [/INST]", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Yes? </s>"},
        /* one word more than a known form is another form */
        {"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% "
         "endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
         SH_CHAT_UNKNOWN, NULL, NULL},
        {"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
         SH_CHAT_UNKNOWN, NULL, NULL},
        {"{{ '<|im_start|>", SH_CHAT_UNKNOWN, NULL, NULL},
        {"{% for message in messages", SH_CHAT_UNKNOWN, NULL, NULL},
        {"chatml", SH_CHAT_UNKNOWN, NULL, NULL},
        {"", SH_CHAT_UNKNOWN, NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sh_chat_form form;
        struct sh_error err;
        if (cases[i].template != NULL) recognise(cases[i].template, &form);
        else assert_int_equal(sh_chat_recognise(NULL, 0, &form, &err), SH_OK);
        if (form.family != cases[i].family) print_message("  template %zu\n", i);
        assert_int_equal(form.family, cases[i].family);
        if (form.family != SH_CHAT_UNKNOWN) {
            char *text = rendered(&form, one, 1, true);
            assert_string_equal(text, cases[i].one);
            free(text);
            text = rendered(&form, three, 3, false);
            assert_string_equal(text, cases[i].three);
            free(text);
        }
        sh_chat_form_free(&form);
    }
}

static void refusals(void **state) {
    (void)state;
    struct sh_chat_form form;
    struct sh_error err;
    char *text;
    struct sh_chat_part *parts;
    uint32_t n_parts;
    const struct tm today = {0};
    recognise("{{ messages }}", &form);
    assert_int_equal(sh_chat_render_form(&form, "", "", &today, one, 1, true, &text, &parts, &n_parts, &err), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "chatml, llama2, llama3, gemma, zephyr"));
    assert_int_equal(sh_chat_recognise(NULL, 0, &form, &err), SH_OK);
    assert_int_equal(sh_chat_render_form(&form, "", "", &today, one, 0, true, &text, &parts, &n_parts, &err), SH_ERR_INVALID);
    const struct sh_chat_message odd[] = {{"user", "a"}, {"tool", "b"}};
    assert_int_equal(sh_chat_render_form(&form, "", "", &today, odd, 2, true, &text, &parts, &n_parts, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "messages[1].role is \"tool\""));
}

/* Mutated templates: whatever comes, no crash, and text of no known form stays unknown. */
static void mutated_templates(void **state) {
    (void)state;
    struct test_rng rng = {7};
    size_t length;
    char *text = test_read_file(TEST_SHARED("templates/meta-llama-Llama-3.1-8B-Instruct.jinja"), &length);
    char *copy = malloc(length);
    assert_non_null(copy);
    static const char bytes[] = "{}%#-'\"\\[]()+|. \n\0x";
    for (uint32_t round = 0; round < 5000; round++) {
        memcpy(copy, text, length);
        const size_t n = test_random(&rng) % length;
        for (uint32_t k = 0; k < 4 && n > 0; k++) copy[test_random(&rng) % n] = bytes[test_random(&rng) % (sizeof bytes - 1)];
        struct sh_chat_form form;
        struct sh_error err;
        assert_int_equal(sh_chat_recognise(copy, n, &form, &err), SH_OK);
        assert_int_equal(form.family, SH_CHAT_UNKNOWN); /* it is cut short */
        sh_chat_form_free(&form);
    }
    free(copy);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_templates),
        cmocka_unit_test(other_spellings),
        cmocka_unit_test(refusals),
        cmocka_unit_test(mutated_templates),
    };
    return cmocka_run_group_tests_name("text_chat", tests, NULL, NULL);
}
