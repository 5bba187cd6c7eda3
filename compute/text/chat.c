#include "compute/text/vocab.h"

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
static void put_literal(struct writer *w, const char *s) { put_bytes(w, s, strlen(s), true); }

/* ---- families --------------------------------------------------------------------------------------------- */

enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT };

static bool role_of(const char *name, enum role *out) {
    if (strcmp(name, "system") == 0 || strcmp(name, "developer") == 0) *out = ROLE_SYSTEM;
    else if (strcmp(name, "user") == 0) *out = ROLE_USER;
    else if (strcmp(name, "assistant") == 0) *out = ROLE_ASSISTANT;
    else return false;
    return true;
}

static void render_plain(struct writer *w, const struct sh_chat_message *messages, const enum role *roles, uint32_t n, bool generate) {
    static const char *const names[] = {"System: ", "User: ", "Assistant: "};
    for (uint32_t i = 0; i < n; i++) {
        put(w, names[roles[i]]);
        put_literal(w, messages[i].content);
        put(w, "\n");
    }
    if (generate) put(w, "Assistant:");
}

enum sh_code sh_chat_render(const struct sh_vocab *v, const struct sh_chat_message *messages, uint32_t n_messages,
                            bool add_generation_prompt, char **text, struct sh_chat_part **parts, uint32_t *n_parts,
                            struct sh_error *err) {
    *text = NULL;
    *parts = NULL;
    *n_parts = 0;
    if (v->chat.family == SH_CHAT_UNKNOWN) {
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "the model's chat template is none of the supported families (chatml, llama2, llama3, gemma, zephyr); "
                       "render the prompt yourself and use a plain completion");
    }
    if (n_messages == 0) return sh_fail(err, SH_ERR_INVALID, "messages is empty; a chat needs at least one");
    enum role *roles = sh_calloc(n_messages, sizeof *roles);
    if (roles == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to render %u messages", n_messages);
    struct writer w = {0};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < n_messages && code == SH_OK; i++) {
        if (!role_of(messages[i].role, &roles[i])) {
            code = sh_fail(err, SH_ERR_INVALID, "messages[%u].role is \"%.64s\", expected system, developer, user or assistant", i,
                           messages[i].role);
        }
    }
    if (code == SH_OK) {
        render_plain(&w, messages, roles, n_messages, add_generation_prompt);
        if (w.failed || !sh_grow((void **)&w.text, &w.capacity, w.length + 1, 1)) {
            code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to render %u messages", n_messages);
        }
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

enum sh_code sh_chat_tokenize(const struct sh_vocab *v, const char *text, const struct sh_chat_part *parts, uint32_t n_parts,
                              int32_t **ids, size_t *count, struct sh_error *err) {
    *ids = NULL;
    *count = 0;
    struct sh_ids list = {0};
    const size_t length = n_parts > 0 ? parts[n_parts - 1].end : 0;
    /* The first slot is for a BOS that the rendering may lack. */
    enum sh_code code = sh_ids_push(&list, v->bos) ? sh_tokenize_parts(v, text, length, SH_TOKENIZE_PARSE, parts, n_parts, &list, err)
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
        [SH_CHAT_UNKNOWN] = NULL,      [SH_CHAT_PLAIN] = "plain", [SH_CHAT_CHATML] = "chatml", [SH_CHAT_LLAMA2] = "llama2",
        [SH_CHAT_LLAMA3] = "llama3", [SH_CHAT_GEMMA] = "gemma", [SH_CHAT_ZEPHYR] = "zephyr",
    };
    return names[v->chat.family];
}

const char *const *sh_chat_stops(const struct sh_vocab *v, uint32_t *count) {
    static const char *const plain[] = {"\nUser:", "\nSystem:"};
    *count = v->chat.family == SH_CHAT_PLAIN ? (uint32_t)SH_COUNT(plain) : 0;
    return plain;
}

enum sh_code sh_chat_recognise(const char *text, size_t length, struct sh_chat_form *out, struct sh_error *err) {
    (void)length;
    (void)err;
    out->family = text == NULL ? SH_CHAT_PLAIN : SH_CHAT_UNKNOWN;
    return SH_OK;
}

void sh_chat_form_free(struct sh_chat_form *form) { form->family = SH_CHAT_UNKNOWN; }
