/* probe.c - what a template can take. Nothing tells it but the template itself: it is given small conversations, and is seen to take what
 * appears in its text. A conversation that it refuses or fails on shows that it does not take that. */
#include "compute/chat/chat.h"

#include "compute/text/vocab.h"

#include <stdlib.h>
#include <time.h>

struct probe {
    const struct sh_template *tmpl;
    const char *bos, *eos;
    bool lists, always_tools, functions; /* what the template fails without */
    bool given_up;                       /* a rendering went beyond the limits: no time for more of them */
    bool failed;                         /* no memory */
};

#define NOW "2025-01-01T00:00:00"
/* Words that no template contains. */
#define SAID "Qz1said1zQ"
#define NEXT "Qz2next2zQ"
#define TOOL "qz3tool3zq"
#define PARAMETER "qz7parameter7zq"
#define CALLED "qz8called8zq" /* not the tool's name, which may be told for another reason */
#define KEY "qz4key4zq"
#define VALUE "qz5value5zq"
#define CALL_ID "qz6call6z" /* nine characters, which some templates insist on */

json_t *sh_chat_variables(const char *bos, const char *eos, bool lists, bool add_generation_prompt) {
    return lists ? json_pack("{s:s,s:s,s:b,s:[],s:[]}", "bos_token", bos, "eos_token", eos, "add_generation_prompt",
                             (int)add_generation_prompt, "tools", "documents")
                 : json_pack("{s:s,s:s,s:b,s:n,s:n}", "bos_token", bos, "eos_token", eos, "add_generation_prompt",
                             (int)add_generation_prompt, "tools", "documents");
}

static json_t *a_tool(void) {
    return json_pack("[{s:s,s:{s:s,s:s,s:{s:s,s:{s:{s:s,s:s}},s:[s]}}}]", "type", "function", "function", "name", TOOL,
                     "description", "It helps", "parameters", "type", "object", "properties", PARAMETER, "type", "string",
                     "description", "a text", "required", PARAMETER);
}

bool sh_chat_set_functions(json_t *variables, const json_t *tools, const char *now) {
    char date[64] = "", *text = tools != NULL ? sh_chat_json(tools, 4) : strdup("");
    struct tm moment = {0};
    const time_t present = time(NULL);
    if (now == NULL) gmtime_r(&present, &moment);
    else strptime(now, "%Y-%m-%dT%H:%M:%S", &moment);
    strftime(date, sizeof date, "%b %d %Y %H:%M:%S GMT", &moment);
    bool done = text != NULL;
    if (done && json_object_get(variables, "functions") == NULL)
        done = json_object_set_new(variables, "functions", json_string(text)) == 0;
    if (done && json_object_get(variables, "datetime") == NULL)
        done = json_object_set_new(variables, "datetime", json_string(date)) == 0;
    free(text);
    return done;
}

/* Takes over both references; tools may be NULL. malloc'd; NULL: the template does not take that. */
static char *render(struct probe *p, json_t *messages, json_t *tools, bool prompt) {
    json_t *variables = sh_chat_variables(p->bos, p->eos, p->lists, prompt);
    if (tools == NULL && p->always_tools) tools = a_tool();
    char *json = NULL, *text = NULL;
    size_t length;
    if (tools != NULL && json_object_set(variables, "tools", tools) != 0) p->failed = true;
    if (json_object_set(variables, "messages", messages) != 0) p->failed = true;
    if (p->functions && !sh_chat_set_functions(variables, tools, NOW)) p->failed = true;
    if (!p->failed) json = json_dumps(variables, JSON_COMPACT);
    if (json == NULL) p->failed = true;
    if (!p->failed && !p->given_up) {
        struct sh_error why;
        const enum sh_code code = sh_template_render(p->tmpl, json, strlen(json), NOW, &text, &length, &why);
        if (code == SH_ERR_NO_MEMORY) p->failed = true;
        if (code == SH_ERR_LIMIT) p->given_up = true;
    }
    free(json);
    json_decref(variables);
    json_decref(messages);
    json_decref(tools);
    return text;
}

static bool contains(const char *text, const char *what) { return text != NULL && strstr(text, what) != NULL; }

/* A message of one part, or of a text. */
static json_t *message(const char *role, const char *text, bool parts) {
    if (parts) return json_pack("{s:s,s:[{s:s,s:s}]}", "role", role, "content", "type", "text", "text", text);
    return json_pack("{s:s,s:s}", "role", role, "content", text);
}

#define LONG_ID "call_0123456789abcdefghijkl"

/* A message of a call: with a content, or `nothing`. The arguments as an object or as the text of one. */
static json_t *calling(bool object, uint32_t nothing, const char *content) {
    json_t *arguments = object ? json_pack("{s:s}", KEY, VALUE) : json_string("{\"" KEY "\": \"" VALUE "\"}");
    json_t *m = json_pack("{s:s,s:[{s:s,s:s,s:{s:s,s:o}}]}", "role", "assistant", "tool_calls", "id", CALL_ID, "type", "function",
                          "function", "name", CALLED, "arguments", arguments);
    if (nothing == SH_NOTHING_NULL) json_object_set_new(m, "content", json_null());
    else if (nothing != SH_NOTHING_ABSENT) json_object_set_new(m, "content", json_string(content));
    return m;
}

static json_t *result(const char *text, bool parts) {
    json_t *m = message("tool", text, parts);
    json_object_set_new(m, "name", json_string(CALLED));
    json_object_set_new(m, "tool_call_id", json_string(CALL_ID));
    return m;
}

/* Arguments that came out as Python writes a dict, or as a string within quotes, were not meant so. */
static bool takes_arguments(const char *text, bool object) {
    const char *at = text;
    if (!contains(text, CALLED)) return false;
    if (!object) {
        static const char whole[] = "{\"" KEY "\": \"" VALUE "\"}";
        while ((at = strstr(at, whole)) != NULL) {
            if (at == text || (at[-1] != '\'' && at[-1] != '"')) return true;
            at++;
        }
        return false;
    }
    return contains(text, KEY) && contains(text, VALUE) && !contains(text, "'" KEY "'") && !contains(text, "\\\"" KEY);
}

/* A list of parts that was printed as it is shows its keys. */
static bool is_raw(const char *text) {
    return contains(text, "'text': '" SAID) || contains(text, "\"text\": \"" SAID) || contains(text, "\"text\":\"" SAID);
}

/* Whether the content of the one message with SAID is taken as text or as parts; `make` gives the conversation. */
static uint8_t takes_content(struct probe *p, json_t *(*make)(bool parts)) {
    uint8_t takes = 0;
    for (int parts = 0; parts < 2; parts++) {
        char *text = render(p, make(parts != 0), NULL, true);
        if (contains(text, SAID) && !is_raw(text)) takes |= parts != 0 ? SH_TAKES_PARTS : SH_TAKES_TEXT;
        free(text);
    }
    return takes;
}

static json_t *by_system(bool parts) { return json_pack("[o,o]", message("system", SAID, parts), message("user", NEXT, parts)); }
static json_t *by_user(bool parts) { return json_pack("[o]", message("user", SAID, parts)); }
static json_t *by_assistant(bool parts) {
    return json_pack("[o,o,o]", message("user", NEXT, parts), message("assistant", SAID, parts), message("user", NEXT, parts));
}
static json_t *by_developer(bool parts) {
    return json_pack("[o,o]", message("developer", SAID, parts), message("user", NEXT, parts));
}

/* The user asks, the call, and what the tool said. */
static char *render_call(struct probe *p, const struct sh_chat_caps *caps, json_t *call, const char *said, bool parts) {
    const bool user_parts = (caps->content[SH_CHAT_USER] & SH_TAKES_TEXT) == 0;
    return render(p, json_pack("[o,o,o]", message("user", NEXT, user_parts), call, result(said, parts)), a_tool(), true);
}

static bool has_json(const char *text) {
    return contains(text, "{\"" KEY "\": \"" VALUE "\"}") || contains(text, "{\"" KEY "\":\"" VALUE "\"}");
}

/* In which form the arguments are taken, and next to which kind of nothing. Text that is taken, but is put where the template writes
 * objects in another form than JSON, is not meant to be. */
static void probe_arguments(struct probe *p, struct sh_chat_caps *caps) {
    bool as_json = true;
    for (int object = 1; object >= 0; object--) {
        uint32_t shown = 0, plain = 0; /* nothings with which the call is shown; and as JSON */
        bool prints_null[8] = {false};
        for (uint32_t nothing = SH_NOTHING_NULL; nothing <= SH_NOTHING_EMPTY; nothing *= 2) {
            char *text = render_call(p, caps, calling(object != 0, nothing, ""), NEXT, false);
            if (takes_arguments(text, object != 0)) shown |= nothing;
            if (has_json(text)) plain |= nothing;
            prints_null[nothing] = contains(text, "None") || contains(text, "null");
            free(text);
        }
        if (shown == 0 || !as_json) continue;
        as_json = plain != 0;
        caps->arguments |= object != 0 ? SH_TAKES_OBJECT : SH_TAKES_JSON;
        if ((shown & SH_NOTHING_EMPTY) != 0 && prints_null[SH_NOTHING_NULL] && !prints_null[SH_NOTHING_EMPTY])
            shown &= ~(uint32_t)SH_NOTHING_NULL;
        if ((shown & SH_NOTHING_EMPTY) != 0 && prints_null[SH_NOTHING_ABSENT] && !prints_null[SH_NOTHING_EMPTY])
            shown &= ~(uint32_t)SH_NOTHING_ABSENT;
        caps->nothing = (uint8_t)(caps->nothing == 0 ? shown : caps->nothing & shown);
    }
}

/* A second call of the same message, or of a message behind the result; its argument is SAID. */
static json_t *second_call(bool object) {
    json_t *arguments = object ? json_pack("{s:s}", KEY, SAID) : json_string("{\"" KEY "\": \"" SAID "\"}");
    return json_pack("{s:s,s:s,s:{s:s,s:o}}", "id", CALL_ID, "type", "function", "function", "name", CALLED, "arguments",
                     arguments);
}

static void probe_one_call(struct probe *p, struct sh_chat_caps *caps, bool object, uint32_t nothing) {
    const bool user_parts = (caps->content[SH_CHAT_USER] & SH_TAKES_TEXT) == 0;
    json_t *both = calling(object, nothing, ""), *again = calling(object, nothing, "");
    json_array_append_new(json_object_get(both, "tool_calls"), second_call(object));
    json_array_set_new(json_object_get(again, "tool_calls"), 0, second_call(object));
    char *text =
        render(p, json_pack("[o,o,o,o]", message("user", NEXT, user_parts), both, result(NEXT, false), result(NEXT, false)),
               a_tool(), true);
    char *apart = render(p,
                         json_pack("[o,o,o,o,o]", message("user", NEXT, user_parts), calling(object, nothing, ""),
                                   result(NEXT, false), again, result(NEXT, false)),
                         a_tool(), true);
    caps->one_call = !contains(text, SAID) && contains(apart, SAID);
    free(text);
    free(apart);
}

static void probe_ids(struct probe *p, struct sh_chat_caps *caps, bool object, uint32_t nothing) {
    const bool user_parts = (caps->content[SH_CHAT_USER] & SH_TAKES_TEXT) == 0;
    json_t *call = calling(object, nothing, ""), *answer = result(NEXT, false);
    json_object_set_new(json_array_get(json_object_get(call, "tool_calls"), 0), "id", json_string(LONG_ID));
    json_object_set_new(answer, "tool_call_id", json_string(LONG_ID));
    char *text = render(p, json_pack("[o,o,o]", message("user", NEXT, user_parts), call, answer), a_tool(), true);
    caps->short_ids = !takes_arguments(text, object);
    free(text);
}

static void probe_calls(struct probe *p, struct sh_chat_caps *caps) {
    probe_arguments(p, caps);
    const bool object = (caps->arguments & SH_TAKES_OBJECT) != 0;
    const uint32_t nothing = caps->nothing & SH_NOTHING_NULL ? SH_NOTHING_NULL : SH_NOTHING_EMPTY;
    char *both = render_call(p, caps, calling(object, 0, SAID), NEXT, false);
    caps->beside = takes_arguments(both, object);
    free(both);
    if (caps->arguments != 0) {
        probe_one_call(p, caps, object, nothing);
        probe_ids(p, caps, object, nothing);
    }
    for (int parts = 0; parts < 2; parts++) {
        char *text = render_call(p, caps, calling(object, nothing, ""), SAID, parts != 0);
        if (contains(text, SAID) && !is_raw(text)) caps->content[SH_CHAT_TOOL] |= parts != 0 ? SH_TAKES_PARTS : SH_TAKES_TEXT;
        free(text);
    }
}

static void probe_tools(struct probe *p, struct sh_chat_caps *caps) {
    const bool user_parts = (caps->content[SH_CHAT_USER] & SH_TAKES_TEXT) == 0;
    const bool system_parts = (caps->content[SH_CHAT_SYSTEM] & SH_TAKES_TEXT) == 0;
    char *text = render(p, json_pack("[o]", message("user", NEXT, user_parts)), a_tool(), true);
    caps->tools = contains(text, TOOL);
    free(text);
    if (caps->tools || caps->content[SH_CHAT_SYSTEM] == 0) return;
    text =
        render(p, json_pack("[o,o]", message("system", NEXT, system_parts), message("user", NEXT, user_parts)), a_tool(), true);
    caps->tools = contains(text, TOOL);
    free(text);
}

/* Templates leave out the reasoning of earlier turns, so it is looked for in the last one, with and without calls. */
static void probe_reasoning(struct probe *p, struct sh_chat_caps *caps) {
    static const char *const keys[] = {"reasoning_content", "thinking", "reasoning"};
    const bool user_parts = (caps->content[SH_CHAT_USER] & SH_TAKES_TEXT) == 0;
    for (size_t i = 0; i < SH_COUNT(keys) && caps->reasoning == NULL; i++) {
        for (int with_call = 0; with_call < 2 && caps->reasoning == NULL; with_call++) {
            json_t *answer =
                with_call ? calling((caps->arguments & SH_TAKES_OBJECT) != 0, 0, "") : message("assistant", NEXT, false);
            json_object_set_new(answer, keys[i], json_string(SAID));
            json_t *dialogue = json_pack("[o,o]", message("user", NEXT, user_parts), answer);
            if (with_call) json_array_append_new(dialogue, result(NEXT, false));
            char *text = render(p, dialogue, with_call ? a_tool() : NULL, false);
            if (contains(text, SAID)) caps->reasoning = keys[i];
            free(text);
        }
    }
}

/* ---- what ends an answer ---- */

static bool has_token(const struct sh_vocab *v, const char *text, size_t length) {
    return sh_vocab_find_special(v, text, length) >= 0;
}

/* Is there a special token of the vocabulary in the text? */
static bool has_any_token(const struct sh_vocab *v, const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (text[i] != '<' && text[i] != '[') continue;
        for (size_t n = 2; n <= 64 && i + n <= length; n++) {
            if ((text[i + n - 1] == '>' || text[i + n - 1] == ']') && has_token(v, text + i, n)) return true;
        }
    }
    return false;
}

/* A mark such as <|im_end|> at the text's beginning; 0: none. */
static size_t mark_length(const char *text, size_t length) {
    if (length < 3 || (text[0] != '<' && text[0] != '[')) return 0;
    const char close = text[0] == '<' ? '>' : ']';
    for (size_t n = 1; n < length && n < 64; n++) {
        if (text[n] == close) return n + 1;
        if (strchr(" \t\n", text[n]) != NULL) return 0;
    }
    return 0;
}

/* A model that was tuned on the text of marks that its vocabulary has no tokens for writes that text; tokens that the file does not say
 * end a text do end an answer; a transcript's speaker is announced by a word. */
static void probe_stop(struct probe *p, const struct sh_chat_caps *caps, const struct sh_vocab *v, char **stop) {
    if (caps->content[SH_CHAT_ASSISTANT] == 0 || caps->content[SH_CHAT_USER] == 0) return;
    char *text = render(p, by_assistant((caps->content[SH_CHAT_ASSISTANT] & SH_TAKES_TEXT) == 0), NULL, true);
    const char *at = text != NULL ? strstr(text, SAID) : NULL, *end = at != NULL ? strstr(at, NEXT) : NULL;
    if (end != NULL) {
        at += strlen(SAID);
        while (end > at && strchr(" \t\n", end[-1]) != NULL) end--;
        const char *word = at;
        while (word < end && strchr(" \t\n", *word) != NULL) word++;
        const size_t mark = mark_length(word, (size_t)(end - word));
        if (mark > 0) {
            if (!sh_vocab_is_end(v, sh_vocab_find_special(v, word, mark))) *stop = strndup(word, mark);
        } else if (word < end && end - at <= 64 && !has_any_token(v, at, (size_t)(end - at))) {
            *stop = strndup(at, (size_t)(end - at));
        }
    }
    free(text);
}

/* What the template needs to render anything at all. False: it needs something else. */
static bool probe_basics(struct probe *p, struct sh_chat_caps *caps) {
    for (int attempt = 0; attempt < 4; attempt++) {
        p->lists = attempt == 1;
        p->always_tools = attempt == 2;
        p->functions = attempt == 3;
        caps->content[SH_CHAT_USER] = takes_content(p, by_user);
        if (caps->content[SH_CHAT_USER] != 0) break;
    }
    caps->lists = p->lists;
    caps->functions = p->functions;
    return caps->content[SH_CHAT_USER] != 0;
}

enum sh_code sh_chat_probe(const struct sh_template *tmpl, const char *text, size_t length, const struct sh_vocab *vocab,
                           const char *bos, const char *eos, struct sh_chat_caps *out, char **stop, struct sh_error *err) {
    struct probe p = {.tmpl = tmpl, .bos = bos, .eos = eos};
    *out = (struct sh_chat_caps){0};
    *stop = NULL;
    if (probe_basics(&p, out)) {
        out->content[SH_CHAT_SYSTEM] = takes_content(&p, by_system);
        out->content[SH_CHAT_ASSISTANT] = takes_content(&p, by_assistant);
        /* the word as a role, not in what the template says; any role is as good as this one to many */
        const bool named = memmem(text, length, "'developer'", 11) != NULL || memmem(text, length, "\"developer\"", 11) != NULL;
        out->developer = named && takes_content(&p, by_developer) != 0;
        probe_tools(&p, out);
        probe_calls(&p, out);
        probe_reasoning(&p, out);
        probe_stop(&p, out, vocab, stop);
        if (memmem(text, length, "tool", 4) == NULL) out->content[SH_CHAT_TOOL] = 0; /* any role is as good as this one to it */
    } else { /* it wants variables that a request may bring: what it says is left to it */
        *out = (struct sh_chat_caps){.arguments = SH_TAKES_OBJECT, .nothing = 7, .beside = true, .tools = true};
        for (size_t i = 0; i < SH_CHAT_SPEAKERS; i++) out->content[i] = SH_TAKES_TEXT;
    }
    return p.failed ? sh_fail(err, SH_ERR_NO_MEMORY, "no memory to look at a chat template") : SH_OK;
}
