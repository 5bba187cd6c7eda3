#include "compute/text/chat.h"

#include "compute/text/utf8.h"
#include "compute/text/vocab.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- writing ------------------------------------------------------------------------------------------------ */

struct writer {
    char *text;
    uint32_t length, capacity;
    struct sh_chat_part *parts;
    uint32_t n_parts, parts_capacity;
    bool failed; /* no memory */
};

static void put_bytes(struct writer *w, const char *s, size_t n, bool literal) {
    if (n == 0 || w->failed) return;
    if (n > UINT32_MAX / 2 - w->length || !sh_grow((void **)&w->text, &w->capacity, w->length + (uint32_t)n + 1, 1)) {
        w->failed = true;
        return;
    }
    memcpy(w->text + w->length, s, n);
    if (w->n_parts == 0 || w->parts[w->n_parts - 1].literal != literal) {
        if (!sh_grow((void **)&w->parts, &w->parts_capacity, w->n_parts + 1, sizeof *w->parts)) {
            w->failed = true;
            return;
        }
        w->parts[w->n_parts++] = (struct sh_chat_part){w->length, w->length, literal};
    }
    w->length += (uint32_t)n;
    w->parts[w->n_parts - 1].end = w->length;
}

static void put(struct writer *w, const char *s) { put_bytes(w, s, strlen(s), false); }

/* Takes white space off the end of the template's last part. */
static void unput_white(struct writer *w) {
    if (w->failed || w->n_parts == 0 || w->parts[w->n_parts - 1].literal) return;
    while (w->length > w->parts[w->n_parts - 1].begin && strchr(" \n", w->text[w->length - 1]) != NULL) w->length--;
    w->parts[w->n_parts - 1].end = w->length;
}

/* ---- families --------------------------------------------------------------------------------------------- */

enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT };

static bool role_of(const char *name, enum role *out) {
    if (strcmp(name, "system") == 0 || strcmp(name, "developer") == 0) *out = ROLE_SYSTEM;
    else if (strcmp(name, "user") == 0) *out = ROLE_USER;
    else if (strcmp(name, "assistant") == 0) *out = ROLE_ASSISTANT;
    else return false;
    return true;
}

/* What a rendering needs besides the writer. */
struct job {
    const struct sh_chat_form *form;
    const char *bos, *eos;
    const struct tm *today;
    const struct sh_chat_message *messages;
    const enum role *roles;
    uint32_t n;
    bool prompt;
};

static bool has(const struct job *j, uint32_t flag) { return (j->form->flags & flag) != 0; }

/* White space as Python's str.strip takes it. */
static bool is_python_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* The bounds of s without white space at its ends. */
static const char *strip(const char *s, size_t *n) {
    const char *end = s + *n;
    size_t length;
    uint32_t c;
    while (s < end && sh_utf8_scan(s, (size_t)(end - s), &length, &c) == SH_UTF8_OK && is_python_space(c)) s += length;
    for (;;) {
        const char *p = end;
        while (p > s && ((unsigned char)p[-1] & 0xC0) == 0x80) p--;
        if (p == s) break;
        p--; /* the lead byte of the last code point */
        if (sh_utf8_scan(p, (size_t)(end - p), &length, &c) != SH_UTF8_OK || p + length != end || !is_python_space(c)) break;
        end = p;
    }
    *n = (size_t)(end - s);
    return s;
}

static void put_content(struct writer *w, const char *content, bool trim) {
    size_t n = strlen(content);
    const char *s = trim ? strip(content, &n) : content;
    put_bytes(w, s, n, true);
}

static void render_plain(struct writer *w, const struct job *j) {
    static const char *const names[] = {"System: ", "User: ", "Assistant: "};
    for (uint32_t i = 0; i < j->n; i++) {
        put(w, names[j->roles[i]]);
        put_content(w, j->messages[i].content, false);
        put(w, "\n");
    }
    if (j->prompt) put(w, "Assistant:");
}

static const char *const role_names[] = {"system", "user", "assistant"};

static void render_chatml(struct writer *w, const struct job *j) {
    const enum role last = j->roles[j->n - 1];
    if (has(j, SH_CHAT_BOS) || (has(j, SH_CHAT_BOS_IF_OPENED) && j->roles[0] != ROLE_ASSISTANT)) put(w, j->bos);
    if (j->form->default_system != NULL && j->roles[0] != ROLE_SYSTEM) {
        put(w, "<|im_start|>system\n");
        put(w, j->form->default_system);
        put(w, "<|im_end|>\n");
    }
    for (uint32_t i = 0; i < j->n; i++) {
        put(w, "<|im_start|>");
        put(w, role_names[j->roles[i]]);
        put(w, "\n");
        put_content(w, j->messages[i].content, has(j, SH_CHAT_TRIM));
        if (!has(j, SH_CHAT_OPEN_LAST) || i + 1 < j->n || j->prompt) put(w, "<|im_end|>\n");
    }
    if (j->prompt && (!has(j, SH_CHAT_OPEN_LAST) || last != ROLE_ASSISTANT)) put(w, "<|im_start|>assistant\n");
    if (!j->prompt && has(j, SH_CHAT_EOS_IF_ANSWERED) && last == ROLE_ASSISTANT) put(w, j->eos);
}

static void put_llama3_header(struct writer *w, const char *role) {
    put(w, "<|start_header_id|>");
    put(w, role);
    put(w, "<|end_header_id|>\n\n");
}

static void render_llama3(struct writer *w, const struct job *j) {
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    uint32_t first = 0;
    if (has(j, SH_CHAT_BOS)) put(w, j->bos);
    if (has(j, SH_CHAT_DATE_FIXED | SH_CHAT_DATE_NOW)) {
        char date[64] = "26 Jul 2024"; /* the template's own */
        if (has(j, SH_CHAT_DATE_NOW)) {
            snprintf(date, sizeof date, "%02d %s %04d", j->today->tm_mday, months[j->today->tm_mon % 12],
                     j->today->tm_year + 1900);
        }
        put_llama3_header(w, "system");
        put(w, "Cutting Knowledge Date: December 2023\nToday Date: ");
        put(w, date);
        put(w, "\n\n");
        if (j->roles[0] == ROLE_SYSTEM) put_content(w, j->messages[first++].content, true);
        put(w, "<|eot_id|>");
    }
    for (uint32_t i = first; i < j->n; i++) {
        put_llama3_header(w, role_names[j->roles[i]]);
        put_content(w, j->messages[i].content, has(j, SH_CHAT_TRIM));
        put(w, "<|eot_id|>");
    }
    if (j->prompt || has(j, SH_CHAT_ALWAYS_PROMPT)) put_llama3_header(w, "assistant");
    else if (has(j, SH_CHAT_EOS_AT_END)) put(w, j->eos);
}

/* From messages[first] on: user, assistant, user, ... */
static enum sh_code check_alternation(const struct job *j, uint32_t first, struct sh_error *err) {
    for (uint32_t i = first; i < j->n; i++) {
        if ((j->roles[i] == ROLE_USER) != ((i - first) % 2 == 0)) {
            return sh_fail(err, SH_ERR_INVALID,
                           "Conversation roles must alternate user/assistant/user/assistant/...: messages[%u] is of the %s", i,
                           role_names[j->roles[i]]);
        }
    }
    return SH_OK;
}

static enum sh_code render_gemma(struct writer *w, const struct job *j, struct sh_error *err) {
    const bool system = j->roles[0] == ROLE_SYSTEM;
    if (system && !has(j, SH_CHAT_SYSTEM_TO_USER)) {
        return sh_fail(err, SH_ERR_INVALID, "System role not supported by this model's chat template (messages[0])");
    }
    const uint32_t first = system ? 1 : 0;
    const enum sh_code code = check_alternation(j, first, err);
    if (code != SH_OK) return code;
    if (has(j, SH_CHAT_BOS)) put(w, j->bos);
    for (uint32_t i = first; i < j->n; i++) {
        put(w, "<start_of_turn>");
        put(w, j->roles[i] == ROLE_ASSISTANT ? "model" : role_names[j->roles[i]]);
        put(w, "\n");
        if (system && i == first) {
            put_content(w, j->messages[0].content, false);
            put(w, "\n\n");
        }
        put_content(w, j->messages[i].content, has(j, SH_CHAT_TRIM));
        put(w, "<end_of_turn>\n");
    }
    if (j->prompt) put(w, "<start_of_turn>model\n");
    return SH_OK;
}

static void render_zephyr(struct writer *w, const struct job *j) {
    static const char *const marks[] = {"<|system|>\n", "<|user|>\n", "<|assistant|>\n"};
    for (uint32_t i = 0; i < j->n; i++) {
        put(w, marks[j->roles[i]]);
        put_content(w, j->messages[i].content, false);
        put(w, j->eos);
        put(w, "\n");
    }
    if (j->prompt) put(w, "<|assistant|>\n");
}

static enum sh_code render_llama2(struct writer *w, const struct job *j, struct sh_error *err) {
    const bool system = j->roles[0] == ROLE_SYSTEM;
    const uint32_t first = system ? 1 : 0;
    const enum sh_code code = check_alternation(j, first, err);
    if (code != SH_OK) return code;
    for (uint32_t i = first; i < j->n; i++) {
        const char *content = j->messages[i].content;
        switch (j->roles[i]) {
        case ROLE_USER:
            put(w, j->bos);
            put(w, "[INST] ");
            if (system && i == first) { /* the whole is stripped, of which only the end can be white space */
                put(w, "<<SYS>>\n");
                put_content(w, j->messages[0].content, false);
                put(w, "\n<</SYS>>\n\n");
                size_t n = strlen(content);
                const char *s = strip(content, &n);
                if (n > 0) put_bytes(w, content, (size_t)(s - content) + n, true);
                else unput_white(w);
            } else {
                put_content(w, content, true);
            }
            put(w, " [/INST]");
            break;
        case ROLE_ASSISTANT:
            put(w, " ");
            put_content(w, content, true);
            put(w, " ");
            put(w, j->eos);
            break;
        case ROLE_SYSTEM:
            if (!has(j, SH_CHAT_INNER_SYSTEM)) break;
            put(w, "<<SYS>>\n");
            put_content(w, content, true);
            put(w, "\n<</SYS>>\n\n");
            break;
        }
    }
    return SH_OK;
}

static enum sh_code render(struct writer *w, const struct job *j, struct sh_error *err) {
    switch (j->form->family) {
    case SH_CHAT_PLAIN: render_plain(w, j); return SH_OK;
    case SH_CHAT_CHATML: render_chatml(w, j); return SH_OK;
    case SH_CHAT_LLAMA2: return render_llama2(w, j, err);
    case SH_CHAT_LLAMA3: render_llama3(w, j); return SH_OK;
    case SH_CHAT_GEMMA: return render_gemma(w, j, err);
    case SH_CHAT_ZEPHYR: render_zephyr(w, j); return SH_OK;
    case SH_CHAT_UNKNOWN: break;
    }
    return sh_fail(err, SH_ERR_UNSUPPORTED,
                   "the model's chat template is none of the supported families (chatml, llama2, llama3, gemma, zephyr); "
                   "render the prompt yourself and ask for a plain completion");
}

enum sh_code sh_chat_render_form(const struct sh_chat_form *form, const char *bos, const char *eos, const struct tm *today,
                                 const struct sh_chat_message *messages, uint32_t n_messages, bool add_generation_prompt,
                                 char **text, struct sh_chat_part **parts, uint32_t *n_parts, struct sh_error *err) {
    *text = NULL;
    *parts = NULL;
    *n_parts = 0;
    if (n_messages == 0) return sh_fail(err, SH_ERR_INVALID, "messages is empty; a chat needs at least one");
    enum role *roles = sh_calloc(n_messages, sizeof *roles);
    if (roles == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to render %u messages", n_messages);
    struct writer w = {0};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < n_messages && code == SH_OK; i++) {
        if (!role_of(messages[i].role, &roles[i])) {
            code = sh_fail(err, SH_ERR_INVALID, "messages[%u].role is \"%.64s\", expected system, developer, user or assistant",
                           i, messages[i].role);
        }
    }
    const struct job job = {form, bos, eos, today, messages, roles, n_messages, add_generation_prompt};
    if (code == SH_OK) code = render(&w, &job, err);
    if (code == SH_OK && (w.failed || !sh_grow((void **)&w.text, &w.capacity, w.length + 1, 1))) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to render %u messages", n_messages);
    }
    free(roles);
    if (code != SH_OK) {
        free(w.text);
        free(w.parts);
        return code;
    }
    w.text[w.length] = '\0';
    *text = w.text;
    *parts = w.parts;
    *n_parts = w.n_parts;
    return SH_OK;
}

/* ---- with a vocabulary ---------------------------------------------------------------------------------------- */

/* A special token's text, NUL-terminated in buf; "" for none and for one that is too long to be one. */
static const char *special_text(const struct sh_vocab *v, int32_t id, char buf[256]) {
    buf[0] = '\0';
    if (id >= 0 && v->texts[id].length < 256) {
        memcpy(buf, sh_span_ptr(v, v->texts[id]), v->texts[id].length);
        buf[v->texts[id].length] = '\0';
    }
    return buf;
}

enum sh_code sh_chat_render(const struct sh_vocab *v, const struct sh_chat_message *messages, uint32_t n_messages,
                            bool add_generation_prompt, char **text, struct sh_chat_part **parts, uint32_t *n_parts,
                            struct sh_error *err) {
    char bos[256], eos[256];
    const time_t now = time(NULL);
    struct tm today;
    localtime_r(&now, &today);
    return sh_chat_render_form(&v->chat, special_text(v, v->bos, bos), special_text(v, v->eos, eos), &today, messages, n_messages,
                               add_generation_prompt, text, parts, n_parts, err);
}

enum sh_code sh_chat_tokenize(const struct sh_vocab *v, const char *text, const struct sh_chat_part *parts, uint32_t n_parts,
                              int32_t **ids, size_t *count, struct sh_error *err) {
    *ids = NULL;
    *count = 0;
    struct sh_ids list = {0};
    const size_t length = n_parts > 0 ? parts[n_parts - 1].end : 0;
    /* The first slot is for a BOS that the rendering may lack. */
    enum sh_code code = sh_ids_push(&list, v->bos)
                            ? sh_tokenize_parts(v, text, length, SH_TOKENIZE_PARSE, parts, n_parts, &list, err)
                            : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    if (code != SH_OK) {
        free(list.items);
        return code;
    }
    if (!v->add_bos || (list.count > 1 && list.items[1] == v->bos)) {
        list.count--;
        memmove(list.items, list.items + 1, list.count * sizeof *list.items);
    }
    *ids = list.items;
    *count = list.count;
    return SH_OK;
}

const char *sh_chat_family(const struct sh_vocab *v) {
    static const char *const names[] = {
        [SH_CHAT_UNKNOWN] = NULL,    [SH_CHAT_PLAIN] = "plain", [SH_CHAT_CHATML] = "chatml", [SH_CHAT_LLAMA2] = "llama2",
        [SH_CHAT_LLAMA3] = "llama3", [SH_CHAT_GEMMA] = "gemma", [SH_CHAT_ZEPHYR] = "zephyr",
    };
    return names[v->chat.family];
}

const char *const *sh_chat_stops(const struct sh_vocab *v, uint32_t *count) {
    static const char *const plain[] = {"\nUser:", "\nSystem:"};
    /* A vocabulary that lacks the token that ends a turn (a model fine-tuned on the text alone) writes its text. */
    static const char *const ends[] = {
        [SH_CHAT_CHATML] = "<|im_end|>", [SH_CHAT_LLAMA3] = "<|eot_id|>", [SH_CHAT_GEMMA] = "<end_of_turn>"};
    *count = 0;
    if (v->chat.family == SH_CHAT_PLAIN) {
        *count = (uint32_t)SH_COUNT(plain);
        return plain;
    }
    if (v->chat.family >= SH_COUNT(ends) || ends[v->chat.family] == NULL) return plain;
    const char *const *end = &ends[v->chat.family];
    *count = sh_vocab_find_special(v, *end, strlen(*end)) < 0 ? 1 : 0;
    return end;
}
