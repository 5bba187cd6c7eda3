/* fuzz_chat.c - any bytes as a chat request: the first chooses a template, the second how the request is, then come messages, tools and
 * variables, a NUL between them. What a request may not be is refused without a template as well as with one; what is rendered is covered by
 * its parts, and no control token comes out of what the request brought. */
#include "compute/chat/chat.h"
#include "compute/gguf/write.h"
#include "compute/text/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const control[] = {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]"};
enum { N_CONTROL = sizeof control / sizeof *control, TOTAL = N_CONTROL + 256 };

static const char *const names[] = {"chatml", "plain", "llama3", "gemma", "mistral", "tools", "parts", "one", "refuses", "null"};
static const char *const own[][2] = {
    {"tools", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name }} {{ m.content }}"
              "{{ m.reasoning_content }}{% for c in m.tool_calls %}{{ c.id }}{{ c.function.name }}{{ c.function.arguments | tojson }}"
              "{% endfor %}<|im_end|>{% endfor %}"},
    {"parts", "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text | trim }}{% endfor %}{% endfor %}"},
    {"one", "{% for m in messages %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ m.role }}"
            "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ c.function.name }}"
            "{{ c.function.arguments }}{% endfor %}{{ m.content }}</s>{% endfor %}"},
    {"refuses", "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception(m.role) }}{% endif %}"
                "{{ m.content.split('a') | join('<|im_end|>') }}{% endfor %}"},
    {"null", "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments }}"
             "{% else %}{{ m.content | upper }}{% endif %}{% endfor %}"},
};

static struct sh_vocab *make_vocab(void) {
    static struct sh_str tokens[TOTAL];
    static char bytes[256][8];
    static float scores[TOTAL];
    static int32_t types[TOTAL];
    for (unsigned i = 0; i < TOTAL; i++) {
        types[i] = i == 0 ? SH_TOKEN_UNKNOWN : i < N_CONTROL ? SH_TOKEN_CONTROL : SH_TOKEN_BYTE;
        if (i >= N_CONTROL) snprintf(bytes[i - N_CONTROL], sizeof *bytes, "<0x%02X>", i - N_CONTROL);
        const char *text = i < N_CONTROL ? control[i] : bytes[i - N_CONTROL];
        tokens[i] = (struct sh_str){text, strlen(text)};
    }
    char path[] = "/tmp/fuzz_chat.XXXXXX";
    const int fd = mkstemp(path);
    struct sh_gguf_writer *w;
    struct sh_error err;
    struct sh_vocab *v;
    if (fd < 0 || sh_gguf_writer_create(path, 3, 0, &w, &err)) abort();
    close(fd);
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, TOTAL);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, TOTAL);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, TOTAL);
    sh_gguf_add_u32(w, "tokenizer.ggml.bos_token_id", 1);
    sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", 2);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        char key[64];
        snprintf(key, sizeof key, "tokenizer.chat_template.%s", own[i][0]);
        sh_gguf_add_str(w, key, own[i][1], strlen(own[i][1]));
    }
    if (sh_gguf_writer_begin(w, &err) || sh_gguf_writer_finish(w, &err)) abort();
    sh_gguf_writer_destroy(w);
    if (sh_vocab_open(path, &v, &err)) abort();
    unlink(path);
    return v;
}

/* How often a text stands in the template's own parts. */
static size_t count_text(const struct sh_chat_prompt *p, const char *what) {
    size_t count = 0;
    const size_t n = strlen(what);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        for (size_t at = p->parts[i].begin; !p->parts[i].literal && at + n <= p->parts[i].end; at++)
            count += memcmp(p->text + at, what, n) == 0;
    }
    return count;
}

static void check_prompt(const struct sh_vocab *v, const struct sh_chat_prompt *p) {
    int32_t *ids;
    size_t count, at = 0, seen[N_CONTROL] = {0};
    struct sh_error err;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        if (p->parts[i].begin != at || p->parts[i].end <= at) abort();
        at = p->parts[i].end;
    }
    if (at != p->length || p->text[at] != '\0' || p->plan == NULL) abort();
    if (sh_chat_tokenize(v, p->text, p->parts, p->n_parts, &ids, &count, &err) != SH_OK) abort();
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < N_CONTROL) seen[ids[i]]++;
    }
    for (size_t i = 1; i < N_CONTROL; i++) {
        if (seen[i] > count_text(p, control[i]) + (i == 1)) abort(); /* BOS may be added */
    }
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct sh_vocab *vocab;
    static struct sh_chat *chats[sizeof names / sizeof *names];
    struct sh_error err = {0};
    if (vocab == NULL) {
        vocab = make_vocab();
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            if (sh_chat_create(vocab, names[i], &chats[i], &err) != SH_OK) abort();
        }
    }
    if (size < 2) return 0;
    char *text = malloc(size - 1);
    if (text == NULL) abort();
    memcpy(text, data + 2, size - 2);
    text[size - 2] = '\0';
    const size_t first = strlen(text) + 1, second = first < size - 1 ? first + strlen(text + first) + 1 : size - 1;
    const struct sh_chat_request request = {
        .size = sizeof request,
        .messages = text,
        .tools = first < size - 1 ? text + first : NULL,
        .variables = second < size - 1 ? text + second : NULL,
        .tool_choice = (enum sh_tool_choice)(data[1] % 3),
        .no_generation_prompt = (data[1] & 16) != 0,
        .continue_last = (data[1] & 32) != 0,
        .keep_reasoning = (data[1] & 64) != 0,
        .single_call = (data[1] & 128) != 0,
        .now = "2025-01-01T00:00:00",
    };
    struct sh_chat_prompt prompt;
    const enum sh_code checked = sh_chat_check(&request, &err);
    if (checked != SH_OK && checked != SH_ERR_INVALID) abort();
    const enum sh_code code = sh_chat_apply(chats[data[0] % (sizeof names / sizeof *names)], &request, &prompt, &err);
    if (checked != SH_OK && code != checked) abort();
    if (code != SH_OK && (err.message[0] == '\0' || prompt.text != NULL)) abort();
    if (code == SH_OK) check_prompt(vocab, &prompt);
    if (code == SH_OK) sh_chat_prompt_finish(&prompt);
    free(text);
    return 0;
}
