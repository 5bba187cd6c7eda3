/* chat.c - a model's templates, compiled, and from a request to a prompt. */
#include "compute/chat/chat.h"

#include "compute/chat/forms.h"
#include "compute/text/template.h"
#include "compute/text/vocab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_TEMPLATE_BYTES = 4 << 20, MAX_STOPS = 4, TOKEN_TEXT = 256 };

/* A template and what is known of it. */
struct variant {
    struct sh_template *tmpl;
    struct sh_format *format;
    struct sh_chat_caps caps;
    char *stop;             /* NULL: none */
    struct sh_error broken; /* code: it could not be compiled */
};

struct sh_chat {
    const struct sh_vocab *vocab;
    char bos[TOKEN_TEXT], eos[TOKEN_TEXT];
    struct variant main, tool_use; /* the latter for requests with tools; nothing in it: there is none */
    char *name, *reason;
    const char *source;
    const char *stops[MAX_STOPS];
    uint32_t n_stops;
    int32_t *shown;
    uint32_t n_shown;
};

/* ---- choosing ---- */

static const struct sh_vocab_template *find_own(const struct sh_vocab *v, const char *name) {
    for (uint32_t i = 0; i < v->n_templates; i++) {
        if (strcmp(v->templates[i].name, name) == 0) return &v->templates[i];
    }
    return NULL;
}

static bool is_file(const char *which) {
    static const char ending[] = ".jinja";
    const size_t n = strlen(which), m = sizeof ending - 1;
    return strchr(which, '/') != NULL || (n > m && strcmp(which + n - m, ending) == 0);
}

/* At most one byte more than a template may have. A pipe would keep its reader waiting, so files alone are read. */
static enum sh_code read_file(const char *path, char **text, size_t *length, struct sh_error *err) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat is;
    if (fd < 0 || fstat(fd, &is) != 0 || !S_ISREG(is.st_mode)) {
        const int why = errno;
        if (fd < 0) return sh_fail(err, why == ENOENT ? SH_ERR_NOT_FOUND : SH_ERR_IO, "%s: %s", path, strerror(why));
        close(fd);
        return sh_fail(err, SH_ERR_IO, "%s: found no regular file, expected a template's text", path);
    }
    *text = malloc(MAX_TEMPLATE_BYTES + 1);
    enum sh_code code = *text != NULL ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory for a template", path);
    *length = 0;
    for (ssize_t got = 1; code == SH_OK && got > 0 && *length <= MAX_TEMPLATE_BYTES; *length += (size_t)(got > 0 ? got : 0)) {
        got = read(fd, *text + *length, MAX_TEMPLATE_BYTES + 1 - *length);
        if (got < 0) code = sh_fail(err, SH_ERR_IO, "%s: %s", path, strerror(errno));
    }
    close(fd);
    return code;
}

/* The names of templates there are, for an error. */
static enum sh_code unknown_name(const struct sh_vocab *v, const char *which, struct sh_error *err) {
    char names[400] = "";
    size_t n = 0;
    const struct sh_chat_builtin *family;
    for (uint32_t i = 0; i < v->n_templates && n < sizeof names; i++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%.40s", i > 0 ? ", " : "", v->templates[i].name);
    for (size_t i = 0; (family = sh_chat_builtin_at(i)) != NULL && n < sizeof names; i++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s",
                              i > 0   ? ", "
                              : n > 0 ? "; built in: "
                                      : "built in: ",
                              family->name);
    return sh_fail(err, SH_ERR_NOT_FOUND, "chat template: found \"%.40s\", expected a file or one of %s", which, names);
}

/* `label` names the template in errors. */
static enum sh_code make_variant(struct variant *out, const struct sh_chat *chat, const char *label, const char *text,
                                 size_t length, struct sh_error *err) {
    struct sh_error why;
    enum sh_code code = sh_template_create(text, length, &out->tmpl, &why);
    if (code != SH_OK) return sh_fail(err, code, "%.120s: %.380s", label, why.message);
    code = sh_chat_probe(out->tmpl, text, length, chat->vocab, chat->bos, chat->eos, &out->caps, &out->stop, err);
    return code == SH_OK ? sh_format_recognise(chat->vocab, text, length, &out->format, err) : code;
}

static void free_variant(struct variant *v) {
    sh_template_destroy(v->tmpl);
    sh_format_free(v->format);
    free(v->stop);
}

static enum sh_code set_names(struct sh_chat *chat, const char *name, const char *source, const char *reason,
                              struct sh_error *err) {
    chat->name = strdup(name);
    chat->reason = strdup(reason);
    chat->source = source;
    return chat->name != NULL && chat->reason != NULL ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat");
}

static enum sh_code use_file(struct sh_chat *chat, const char *path, struct sh_error *err) {
    char *text = NULL;
    size_t length = 0;
    enum sh_code code = read_file(path, &text, &length, err);
    if (code == SH_OK) code = make_variant(&chat->main, chat, path, text, length, err);
    free(text);
    return code == SH_OK ? set_names(chat, path, "file", "asked for", err) : code;
}

static enum sh_code use_own(struct sh_chat *chat, const struct sh_vocab_template *own, const char *reason, struct sh_error *err) {
    char label[96];
    if (strcmp(own->name, "default") == 0) snprintf(label, sizeof label, "tokenizer.chat_template");
    else snprintf(label, sizeof label, "tokenizer.chat_template.%.60s", own->name);
    const enum sh_code code = make_variant(&chat->main, chat, label, own->text, own->length, err);
    return code == SH_OK ? set_names(chat, own->name, "model", reason, err) : code;
}

static enum sh_code use_builtin(struct sh_chat *chat, const struct sh_chat_builtin *family, const char *reason,
                                struct sh_error *err) {
    for (size_t i = 0; i < SH_COUNT(family->stops) && family->stops[i] != NULL; i++)
        chat->stops[chat->n_stops++] = family->stops[i];
    const enum sh_code code = make_variant(&chat->main, chat, family->name, family->text, strlen(family->text), err);
    return code == SH_OK ? set_names(chat, family->name, "built-in", reason, err) : code;
}

static enum sh_code choose(struct sh_chat *chat, struct sh_error *err) {
    const struct sh_vocab *v = chat->vocab;
    if (v->n_templates > 0) {
        const struct sh_vocab_template *own = find_own(v, "default"), *with_tools = find_own(v, "tool_use");
        const enum sh_code code =
            use_own(chat, own != NULL ? own : &v->templates[0],
                    own != NULL ? "the model's own" : "the first that the model has, none being its default", err);
        if (code != SH_OK || own == NULL || with_tools == NULL) return code;
        /* one that is wrong costs the requests with tools alone */
        if (make_variant(&chat->tool_use, chat, "tokenizer.chat_template.tool_use", with_tools->text, with_tools->length,
                         &chat->tool_use.broken) != SH_OK) {
            return chat->tool_use.broken.code == SH_ERR_NO_MEMORY ? sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat")
                                                                  : SH_OK;
        }
        chat->tool_use.broken.code = SH_OK;
        return SH_OK;
    }
    const struct sh_chat_builtin *family = sh_chat_builtin_choose(v);
    char reason[256];
    size_t n = (size_t)snprintf(reason, sizeof reason, "the model has no template, and its vocabulary %s",
                                family->tokens[0] != NULL ? "has" : "no tokens of a family's turns");
    for (size_t i = 0; i < SH_COUNT(family->tokens) && family->tokens[i] != NULL && n < sizeof reason; i++)
        n += (size_t)snprintf(reason + n, sizeof reason - n, "%s%s", i > 0 ? ", " : " ", family->tokens[i]);
    return use_builtin(chat, family, reason, err);
}

static enum sh_code use_named(struct sh_chat *chat, const char *which, struct sh_error *err) {
    const struct sh_vocab_template *own = find_own(chat->vocab, which);
    const struct sh_chat_builtin *family = sh_chat_builtin_find(which);
    if (is_file(which)) return use_file(chat, which, err);
    if (own != NULL) return use_own(chat, own, "asked for", err);
    return family != NULL ? use_builtin(chat, family, "asked for", err) : unknown_name(chat->vocab, which, err);
}

/* A stop of the template is one of the chat unless it is there already. */
static void add_stop(struct sh_chat *chat, const char *stop) {
    for (uint32_t i = 0; i < chat->n_stops; i++) {
        if (stop == NULL || strcmp(chat->stops[i], stop) == 0) return;
    }
    if (stop != NULL && chat->n_stops < MAX_STOPS) chat->stops[chat->n_stops++] = stop;
}

static bool add_shown(struct sh_chat *chat, int32_t token) {
    for (uint32_t i = 0; i < chat->n_shown; i++) {
        if (chat->shown[i] == token) return true;
    }
    int32_t *grown = realloc(chat->shown, ((size_t)chat->n_shown + 1) * sizeof *grown);
    if (grown == NULL) return false;
    chat->shown = grown;
    chat->shown[chat->n_shown++] = token;
    return true;
}

/* In harmony what follows an answer follows each of a message's channels, too, so it ends nothing. */
static bool is_harmony(const struct sh_format *format) { return strcmp(sh_format_reasoning(format), "harmony") == 0; }

static enum sh_code gather(struct sh_chat *chat, struct sh_error *err) {
    const struct variant *variants[] = {&chat->main, &chat->tool_use};
    bool memory = true;
    for (size_t i = 0; i < SH_COUNT(variants); i++) {
        uint32_t n = 0;
        if (variants[i]->format == NULL) continue;
        if (!is_harmony(variants[i]->format)) add_stop(chat, variants[i]->stop);
        const int32_t *shown = sh_format_shown(variants[i]->format, &n);
        for (uint32_t k = 0; k < n && memory; k++) memory = add_shown(chat, shown[k]);
    }
    for (uint32_t i = 0; i < chat->n_stops && memory;
         i++) { /* a token is looked for by its text, which has to be seen for that */
        const int32_t token = sh_vocab_find_special(chat->vocab, chat->stops[i], strlen(chat->stops[i]));
        if (token >= 0) memory = add_shown(chat, token);
    }
    return memory ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat");
}

/* A special token's text; "" for none, and for one that is too long to be one or no UTF-8. */
static void token_text(const struct sh_vocab *v, int32_t id, char out[TOKEN_TEXT]) {
    out[0] = '\0';
    if (id < 0 || v->texts[id].length >= TOKEN_TEXT) return;
    memcpy(out, sh_span_ptr(v, v->texts[id]), v->texts[id].length);
    out[v->texts[id].length] = '\0';
    size_t step;
    for (const char *at = out; *at != '\0'; at += step) {
        step = sh_utf8_length(at, strlen(at));
        if (step == 0) {
            out[0] = '\0';
            return;
        }
    }
}

enum sh_code sh_chat_create(const struct sh_vocab *vocab, const char *which, struct sh_chat **out, struct sh_error *err) {
    *out = NULL;
    struct sh_chat *chat = sh_calloc(1, sizeof *chat);
    if (chat == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat");
    chat->vocab = vocab;
    token_text(vocab, vocab->bos, chat->bos);
    token_text(vocab, vocab->eos, chat->eos);
    enum sh_code code = which == NULL ? choose(chat, err) : use_named(chat, which, err);
    if (code == SH_OK) code = gather(chat, err);
    if (code == SH_OK) *out = chat;
    else sh_chat_destroy(chat);
    return code;
}

void sh_chat_destroy(struct sh_chat *chat) {
    if (chat == NULL) return;
    free_variant(&chat->main);
    free_variant(&chat->tool_use);
    free(chat->name);
    free(chat->reason);
    free(chat->shown);
    free(chat);
}

void sh_chat_get_info(const struct sh_chat *chat, struct sh_chat_info *out) {
    const struct variant *with_tools = chat->tool_use.format != NULL ? &chat->tool_use : &chat->main;
    *out = (struct sh_chat_info){.name = chat->name,
                                 .source = chat->source,
                                 .reason = chat->reason,
                                 .tools = sh_format_tools(with_tools->format),
                                 .reasoning = sh_format_reasoning(chat->main.format),
                                 .stops = chat->stops,
                                 .n_stops = chat->n_stops,
                                 .shown = chat->shown,
                                 .n_shown = chat->n_shown};
}

/* ---- from a request to a prompt ---- */

/* Behind the last message's content while it is rendered: where it stands in the text the prompt ends. The space shows whether the
 * template keeps the white space at a content's end. */
#define MARK "qZ-the-prompt-ends-here-Zq"

static bool append_mark(json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    char *marked = NULL;
    if (asprintf(&marked, "%s" MARK " ", text != NULL ? text : "") < 0) return false;
    const bool done = json_object_set_new(object, key, json_string(marked)) == 0;
    free(marked);
    return done;
}

/* Of the assistant, and text to its end: calls stand behind the content, so what continues it would displace them. */
static enum sh_code check_last(const json_t *messages, struct sh_error *err) {
    const size_t last = json_array_size(messages) - 1;
    const json_t *message = json_array_get(messages, last);
    const char *role = json_string_value(json_object_get(message, "role"));
    if (strcmp(role, "assistant") != 0)
        return sh_fail(
            err, SH_ERR_INVALID,
            "messages[%zu].role: found \"%s\", expected \"assistant\": it is a message of the assistant that can be continued", last,
            role);
    const size_t calls = json_array_size(json_object_get(message, "tool_calls"));
    if (calls == 0) return SH_OK;
    return sh_fail(err, SH_ERR_INVALID,
                   "messages[%zu].tool_calls: found %zu, expected none in a message that is to be continued: leave them out, or answer "
                   "them with tool messages",
                   last, calls);
}

/* The last message's content goes on, or its reasoning if it has nothing else. */
static enum sh_code mark_end(json_t *messages, struct sh_error *err) {
    json_t *message = json_array_get(messages, json_array_size(messages) - 1), *content = json_object_get(message, "content");
    bool done;
    if (json_is_array(content)) {
        json_t *part = json_array_get(content, json_array_size(content) - 1);
        done = part != NULL ? append_mark(part, "text")
                            : json_array_append_new(content, json_pack("{s:s,s:s}", "type", "text", "text", MARK " ")) == 0;
    } else if ((content == NULL || json_is_null(content)) && json_object_get(message, "reasoning_content") != NULL) {
        done = append_mark(message, "reasoning_content");
    } else {
        done = append_mark(message, "content");
    }
    return done ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat's messages");
}

/* The parts up to `length`. */
static void cut(struct sh_chat_prompt *prompt, size_t length) {
    prompt->length = length;
    prompt->text[length] = '\0';
    while (prompt->n_parts > 0 && prompt->parts[prompt->n_parts - 1].begin >= length) prompt->n_parts--;
    if (prompt->n_parts > 0) prompt->parts[prompt->n_parts - 1].end = length;
}

static enum sh_code cut_at_mark(struct sh_chat_prompt *prompt, struct sh_error *err) {
    static const char mark[] = MARK;
    const size_t n = sizeof mark - 1;
    size_t at = prompt->length >= n ? prompt->length - n + 1 : 0;
    while (at > 0 && memcmp(prompt->text + at - 1, mark, n) != 0) at--;
    if (at == 0)
        return sh_fail(err, SH_ERR_INVALID,
                       "the chat template does not show the last message as it is, so it cannot be continued");
    at--;
    const bool keeps_space = prompt->text[at + n] == ' ';
    uint32_t part = 0; /* what the template has written before the message stays */
    while (part + 1 < prompt->n_parts && prompt->parts[part].end <= at) part++;
    const size_t begin = prompt->n_parts > 0 ? prompt->parts[part].begin : 0;
    while (!keeps_space && at > begin && strchr(" \t\r\n", prompt->text[at - 1]) != NULL) at--;
    cut(prompt, at);
    return SH_OK;
}

/* Variables of the request: what it says otherwise has no place there. */
static enum sh_code read_variables(const char *text, json_t **out, struct sh_error *err) {
    static const char *const own[] = {"messages", "tools", "add_generation_prompt"};
    json_error_t at;
    *out = text != NULL ? json_loads(text, JSON_ALLOW_NUL, &at) : json_object();
    if (*out == NULL)
        return text != NULL ? sh_fail(err, SH_ERR_INVALID, "chat_template_kwargs: no JSON: %s at line %d, column %d", at.text,
                                      at.line, at.column)
                            : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat's variables");
    if (!json_is_object(*out)) return sh_fail(err, SH_ERR_INVALID, "chat_template_kwargs: found no object, expected one");
    for (size_t i = 0; i < SH_COUNT(own); i++) {
        if (json_object_get(*out, own[i]) != NULL)
            return sh_fail(err, SH_ERR_INVALID,
                           "chat_template_kwargs.%s: found a value, expected none: the request has a field for it", own[i]);
    }
    return sh_chat_check_values(*out, "chat_template_kwargs", err);
}

static enum sh_code render(const struct sh_chat *chat, const struct variant *v, const struct sh_chat_request *request,
                           json_t *given, struct sh_chat_prompt *out, struct sh_error *err) {
    json_t *own =
        sh_chat_variables(chat->bos, chat->eos, v->caps.lists, !request->no_generation_prompt && !request->continue_last);
    char *trusted = own != NULL ? json_dumps(own, JSON_COMPACT) : NULL, *rest = json_dumps(given, JSON_COMPACT);
    const enum sh_code code = trusted != NULL && rest != NULL
                                  ? sh_template_render_parts(v->tmpl, trusted, rest, request->now, &out->text, &out->length,
                                                             &out->parts, &out->n_parts, err)
                                  : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat's variables");
    free(trusted);
    free(rest);
    json_decref(own);
    return code;
}

struct input { /* a request's parts, read and checked */
    json_t *messages, *tools, *given;
};

static enum sh_code read_input(const struct sh_chat_request *request, struct input *in, struct sh_error *err) {
    const char *name = request->tool_choice == SH_TOOLS_REQUIRED ? request->tool_name : NULL;
    enum sh_code code = sh_chat_read_messages(request->messages, &in->messages, err);
    if (code == SH_OK && request->continue_last) code = check_last(in->messages, err);
    if (code == SH_OK) code = sh_chat_read_tools(request->tools, name, &in->tools, err);
    if (code == SH_OK) code = read_variables(request->variables, &in->given, err);
    if (code == SH_OK && request->tool_choice == SH_TOOLS_REQUIRED && in->tools == NULL)
        code = sh_fail(err, SH_ERR_INVALID, "tool_choice: a call is required, but there are no tools");
    return code;
}

static void free_input(struct input *in) {
    json_decref(in->messages);
    json_decref(in->tools);
    json_decref(in->given);
}

enum sh_code sh_chat_check(const struct sh_chat_request *request, struct sh_error *err) {
    struct input in = {0};
    const enum sh_code code = read_input(request, &in, err);
    free_input(&in);
    return code;
}

/* From where on a prompt that ends within a message tells how the answer is read: behind what the request says in messages before it, lest
 * marks quoted there be taken for the template's. Harmony's headers stand where the last message begins. */
static size_t tail_of(const struct sh_chat_prompt *prompt, const struct sh_format *format, const struct sh_chat_request *request) {
    uint32_t n = prompt->n_parts;
    if (!request->continue_last || format->calls->shape == SH_CALL_HARMONY) return 0;
    if (n > 0 && prompt->parts[n - 1].literal) n--; /* what goes on */
    while (n > 0 && !prompt->parts[n - 1].literal) n--;
    return n > 0 ? prompt->parts[n - 1].end : 0;
}

static enum sh_code apply(const struct sh_chat *chat, const struct sh_chat_request *request, const struct input *in,
                          struct sh_chat_prompt *out, struct sh_error *err) {
    const bool shows = in->tools != NULL && request->tool_choice != SH_TOOLS_NONE;
    if (shows && chat->tool_use.broken.code != SH_OK) return sh_fail(err, SH_ERR_INVALID, "%s", chat->tool_use.broken.message);
    const struct variant *v = shows && chat->tool_use.tmpl != NULL ? &chat->tool_use : &chat->main;

    char *instructions = NULL;
    if (shows && !v->caps.tools) {
        instructions = sh_format_instructions(v->format, request->tools, request->single_call);
        if (instructions == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat's tools");
    }
    enum sh_code code = request->continue_last ? mark_end(in->messages, err) : SH_OK;
    if (code == SH_OK) code = sh_chat_adapt(in->messages, &v->caps, v->format->calls, instructions, err);
    free(instructions);
    if (code != SH_OK) return code;
    if (json_object_set(in->given, "messages", in->messages) != 0 ||
        (shows && v->caps.tools && json_object_set(in->given, "tools", in->tools) != 0) ||
        (v->caps.functions && !sh_chat_set_functions(in->given, shows ? in->tools : NULL, request->now))) {
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat's variables");
    }
    code = render(chat, v, request, in->given, out, err);
    struct sh_error again;
    if (code == SH_ERR_FORMAT && sh_chat_complete_tools(json_object_get(in->given, "tools")) &&
        render(chat, v, request, in->given, out, &again) == SH_OK)
        code = SH_OK;
    if (code == SH_OK && request->continue_last) code = cut_at_mark(out, err);
    if (code != SH_OK) return code;
    const size_t tail = tail_of(out, v->format, request);
    return sh_answer_plan_create(v->format, chat->vocab, request, out->text + tail, out->length - tail, &out->plan, &out->grammar,
                                 err);
}

enum sh_code sh_chat_apply(const struct sh_chat *chat, const struct sh_chat_request *request, struct sh_chat_prompt *out,
                           struct sh_error *err) {
    struct input in = {0};
    *out = (struct sh_chat_prompt){0};
    enum sh_code code = read_input(request, &in, err);
    if (code == SH_OK) code = apply(chat, request, &in, out, err);
    free_input(&in);
    if (code != SH_OK) sh_chat_prompt_finish(out);
    return code;
}

void sh_chat_prompt_finish(struct sh_chat_prompt *prompt) {
    free(prompt->text);
    free(prompt->parts);
    sh_grammar_unref(prompt->grammar);
    sh_answer_plan_free(prompt->plan);
    *prompt = (struct sh_chat_prompt){0};
}
