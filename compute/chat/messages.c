/* messages.c - a request's messages and tools: read, checked, and turned into what a template takes. */
#include "compute/chat/chat.h"

#include "compute/chat/forms.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_MESSAGES = 16384, MAX_TOOLS = 1024, MAX_CALLS = 1024, MAX_LEVELS = 128, PLACE = 160 };

/* ---- checking ---- */

/* "the string \"hot\"", "an object": what stands there, short. */
static const char *found(const json_t *value, char buf[96]) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: {
        const char *text = json_string_value(value);
        size_t n = 0, step; /* not within a code point */
        while (n < 40 && (step = sh_utf8_length(text + n, strlen(text + n))) > 0) n += step;
        snprintf(buf, 96, "the string \"%.*s\"%s", (int)n, text, text[n] != '\0' ? "..." : "");
        return buf;
    }
    case JSON_INTEGER: snprintf(buf, 96, "the integer %lld", (long long)json_integer_value(value)); return buf;
    case JSON_REAL: snprintf(buf, 96, "the number %g", json_real_value(value)); return buf;
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    default: return "null";
    }
}

/* Where something stands: "messages[2].content[0].text". */
static void SH_PRINTF(2, 3) write_place(char out[PLACE], const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(out, PLACE, fmt, args);
    va_end(args);
}

static enum sh_code wrong(struct sh_error *err, const char *at, const json_t *value, const char *expected) {
    char buf[96];
    if (value == NULL) return sh_fail(err, SH_ERR_INVALID, "%s: missing, expected %s", at, expected);
    return sh_fail(err, SH_ERR_INVALID, "%s: found %s, expected %s", at, found(value, buf), expected);
}

static enum sh_code no_memory(struct sh_error *err) { return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat's messages"); }

/* A member that is not null, or NULL. */
static json_t *member(const json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    return value != NULL && !json_is_null(value) ? value : NULL;
}

/* Texts end at a NUL where C reads them, so none may hold one. */
static enum sh_code check_text(const json_t *value, const char *at, struct sh_error *err) {
    if (!json_is_string(value)) return wrong(err, at, value, "a string");
    if (strlen(json_string_value(value)) != json_string_length(value))
        return sh_fail(err, SH_ERR_INVALID, "%s: found a string with a NUL character, expected none", at);
    return SH_OK;
}

static enum sh_code check_optional_text(const json_t *object, const char *name, const char *at, struct sh_error *err) {
    char path[PLACE];
    const json_t *value = member(object, name);
    if (value == NULL) return SH_OK;
    write_place(path, "%s.%s", at, name);
    return check_text(value, path, err);
}

/* No string anywhere may hold a NUL, and nothing is nested deeper than the template engine reads. */
static enum sh_code check_levels(const json_t *value, const char *at, uint32_t level, struct sh_error *err) {
    size_t i;
    json_t *item;
    const char *key;
    enum sh_code code = SH_OK;
    if (level > MAX_LEVELS) return sh_fail(err, SH_ERR_INVALID, "%s: found more than %d levels, expected fewer", at, MAX_LEVELS);
    if (json_is_string(value)) return check_text(value, at, err);
    json_array_foreach(value, i, item) {
        if (code == SH_OK) code = check_levels(item, at, level + 1, err);
    }
    json_object_foreach((json_t *)(uintptr_t)value, key, item) {
        if (code == SH_OK) code = check_levels(item, at, level + 1, err);
    }
    return code;
}

enum sh_code sh_chat_check_values(const json_t *value, const char *at, struct sh_error *err) { return check_levels(value, at, 0, err); }

static enum sh_code check_part(json_t *part, const char *at, struct sh_error *err) {
    char path[PLACE];
    const json_t *type = json_object_get(part, "type");
    if (!json_is_object(part)) return wrong(err, at, part, "an object {\"type\": \"text\", \"text\": ...}");
    write_place(path, "%s.type", at);
    if (!json_is_string(type)) return wrong(err, path, type, "\"text\"");
    if (strcmp(json_string_value(type), "refusal") == 0) { /* what an assistant said is what it said */
        write_place(path, "%s.refusal", at);
        const enum sh_code code = check_text(json_object_get(part, "refusal"), path, err);
        if (code != SH_OK) return code;
        if (json_object_set(part, "text", json_object_get(part, "refusal")) != 0 || json_object_del(part, "refusal") != 0 ||
            json_object_set_new(part, "type", json_string("text")) != 0) {
            return no_memory(err);
        }
        return SH_OK;
    }
    if (strcmp(json_string_value(type), "text") != 0) return wrong(err, path, type, "\"text\": text alone is read");
    write_place(path, "%s.text", at);
    return check_text(json_object_get(part, "text"), path, err);
}

static enum sh_code check_content(const json_t *message, const char *at, bool needed, struct sh_error *err) {
    char path[PLACE];
    json_t *content = member(message, "content"), *part;
    size_t i;
    write_place(path, "%s.content", at);
    if (content == NULL && !needed) return SH_OK;
    if (json_is_string(content)) return check_text(content, path, err);
    if (!json_is_array(content))
        return wrong(err, path, json_object_get(message, "content"), "a string or an array of text parts");
    json_array_foreach(content, i, part) {
        char place[PLACE];
        write_place(place, "%s[%zu]", path, i);
        const enum sh_code code = check_part(part, place, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

static enum sh_code check_function(json_t *function, const char *at, struct sh_error *err) {
    char path[PLACE];
    json_t *arguments = member(function, "arguments");
    if (!json_is_object(function)) return wrong(err, at, function, "an object with name and arguments");
    write_place(path, "%s.name", at);
    enum sh_code code = check_text(json_object_get(function, "name"), path, err);
    if (code != SH_OK) return code;
    write_place(path, "%s.arguments", at);
    if (json_is_object(arguments)) return check_levels(arguments, path, 0, err);
    if (arguments == NULL) return json_object_set_new(function, "arguments", json_string("{}")) == 0 ? SH_OK : no_memory(err);
    return json_is_string(arguments) ? check_text(arguments, path, err)
                                     : wrong(err, path, arguments, "the text of a JSON object");
}

static enum sh_code check_calls(const json_t *calls, const char *at, struct sh_error *err) {
    size_t i;
    json_t *call;
    char path[PLACE];
    write_place(path, "%s.tool_calls", at);
    if (!json_is_array(calls)) return wrong(err, path, calls, "an array of calls");
    if (json_array_size(calls) > MAX_CALLS)
        return sh_fail(err, SH_ERR_INVALID, "%s: found %zu calls, expected at most %d", path, json_array_size(calls), MAX_CALLS);
    json_array_foreach(calls, i, call) {
        char place[PLACE], deeper[PLACE];
        write_place(place, "%s[%zu]", path, i);
        if (!json_is_object(call)) return wrong(err, place, call, "an object with id, type and function");
        const json_t *type = member(call, "type");
        write_place(deeper, "%s.type", place);
        if (type != NULL && (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0))
            return wrong(err, deeper, type, "\"function\"");
        enum sh_code code = check_optional_text(call, "id", place, err);
        write_place(deeper, "%s.function", place);
        if (code == SH_OK) code = check_function(json_object_get(call, "function"), deeper, err);
        if (code != SH_OK) return code;
        if (type == NULL && json_object_set_new(call, "type", json_string("function")) != 0) return no_memory(err);
    }
    return SH_OK;
}

/* The forms before there were tools: a function_call becomes the one of tool_calls. */
static enum sh_code modernise(json_t *message, const char *at, struct sh_error *err) {
    json_t *call = member(message, "function_call");
    if (call == NULL) return SH_OK;
    char path[PLACE];
    write_place(path, "%s.function_call", at);
    if (member(message, "tool_calls") != NULL)
        return sh_fail(err, SH_ERR_INVALID, "%s: found beside tool_calls, expected one of them", path);
    if (!json_is_object(call)) return wrong(err, path, call, "an object with name and arguments");
    json_t *calls = json_pack("[{s:s,s:O}]", "type", "function", "function", call);
    if (calls == NULL || json_object_set_new(message, "tool_calls", calls) != 0) return no_memory(err);
    json_object_del(message, "function_call");
    return SH_OK;
}

static enum sh_code check_message(json_t *message, size_t index, struct sh_error *err) {
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    char at[PLACE], path[PLACE];
    write_place(at, "messages[%zu]", index);
    if (!json_is_object(message)) return wrong(err, at, message, "an object with role and content");
    const json_t *role = json_object_get(message, "role");
    write_place(path, "%s.role", at);
    size_t which = 0;
    while (which < SH_COUNT(roles) && json_is_string(role) && strcmp(roles[which], json_string_value(role)) != 0) which++;
    if (!json_is_string(role) || which == SH_COUNT(roles))
        return wrong(err, path, role, "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"");
    const bool assistant = strcmp(roles[which], "assistant") == 0;
    enum sh_code code = assistant ? modernise(message, at, err) : SH_OK;
    json_t *calls = member(message, "tool_calls");
    if (code == SH_OK && calls != NULL) {
        write_place(path, "%s.tool_calls", at);
        if (!assistant) return wrong(err, path, calls, "calls in messages of the assistant alone");
        code = check_calls(calls, at, err);
    }
    if (code == SH_OK &&
        (calls == NULL || json_array_size(calls) == 0)) { /* neither null nor none means anything to a template */
        json_object_del(message, "tool_calls");
        calls = NULL;
    }
    const json_t *refusal = member(message, "refusal");
    if (code == SH_OK) code = check_optional_text(message, "refusal", at, err);
    if (code == SH_OK && refusal != NULL && member(message, "content") == NULL &&
        json_object_set(message, "content", (json_t *)(uintptr_t)refusal) != 0)
        code = no_memory(err);
    static const char *const texts[] = {"name", "tool_call_id", "reasoning_content"};
    for (size_t i = 0; i < SH_COUNT(texts) && code == SH_OK; i++) {
        code = check_optional_text(message, texts[i], at, err);
        if (json_is_null(json_object_get(message, texts[i]))) json_object_del(message, texts[i]);
    }
    if (code == SH_OK) code = check_content(message, at, calls == NULL && member(message, "reasoning_content") == NULL, err);
    if (code == SH_OK && member(message, "audio") != NULL) {
        write_place(path, "%s.audio", at);
        code = wrong(err, path, member(message, "audio"), "none: text alone is read");
    }
    if (code == SH_OK && strcmp(roles[which], "function") == 0 && json_object_set_new(message, "role", json_string("tool")) != 0)
        code = no_memory(err);
    return code == SH_OK ? check_levels(message, at, 0, err) : code;
}

static enum sh_code read_array(const char *text, const char *name, json_t **out, struct sh_error *err) {
    json_error_t at;
    *out = json_loads(text, JSON_ALLOW_NUL | JSON_DECODE_ANY, &at);
    if (*out == NULL)
        return sh_fail(err, SH_ERR_INVALID, "%s: no JSON: %s at line %d, column %d", name, at.text, at.line, at.column);
    return SH_OK;
}

enum sh_code sh_chat_read_messages(const char *text, json_t **out, struct sh_error *err) {
    json_t *list, *message;
    size_t i;
    *out = NULL;
    enum sh_code code = read_array(text, "messages", &list, err);
    if (code != SH_OK) return code;
    const size_t n = json_array_size(list);
    if (!json_is_array(list)) code = wrong(err, "messages", list, "an array of messages");
    else if (n == 0 || n > MAX_MESSAGES)
        code = sh_fail(err, SH_ERR_INVALID, "messages: found %zu messages, expected 1 to %d", n, MAX_MESSAGES);
    json_array_foreach(list, i, message) {
        if (code == SH_OK) code = check_message(message, i, err);
    }
    if (code == SH_OK) *out = list;
    else json_decref(list);
    return code;
}

static enum sh_code check_tool(json_t *tool, size_t index, struct sh_error *err) {
    char at[PLACE], path[PLACE];
    write_place(at, "tools[%zu]", index);
    if (!json_is_object(tool)) return wrong(err, at, tool, "an object with type and function");
    const json_t *type = json_object_get(tool, "type"), *function = json_object_get(tool, "function");
    write_place(path, "%s.type", at);
    if (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0) return wrong(err, path, type, "\"function\"");
    write_place(path, "%s.function", at);
    if (!json_is_object(function)) return wrong(err, path, function, "an object with name, description and parameters");
    write_place(path, "%s.function.name", at);
    enum sh_code code = check_text(json_object_get(function, "name"), path, err);
    if (code == SH_OK && json_string_length(json_object_get(function, "name")) == 0)
        code = wrong(err, path, json_object_get(function, "name"), "a name");
    write_place(path, "%s.function", at);
    if (code == SH_OK) code = check_optional_text(function, "description", path, err);
    const json_t *parameters = member(function, "parameters");
    write_place(path, "%s.function.parameters", at);
    if (code == SH_OK && parameters != NULL && !json_is_object(parameters)) code = wrong(err, path, parameters, "a JSON Schema");
    const json_t *properties = member(parameters, "properties"); /* templates walk through them */
    write_place(path, "%s.function.parameters.properties", at);
    if (code == SH_OK && properties != NULL && !json_is_object(properties))
        code = wrong(err, path, properties, "an object of JSON Schemas");
    return code == SH_OK ? check_levels(tool, at, 0, err) : code;
}

enum sh_code sh_chat_read_tools(const char *text, const char *name, json_t **out, struct sh_error *err) {
    json_t *list = NULL, *tool;
    size_t i;
    *out = NULL;
    enum sh_code code = text != NULL ? read_array(text, "tools", &list, err) : SH_OK;
    if (code != SH_OK) return code;
    if (list != NULL && !json_is_null(list) && !json_is_array(list)) code = wrong(err, "tools", list, "an array of tools");
    else if (json_array_size(list) > MAX_TOOLS)
        code = sh_fail(err, SH_ERR_INVALID, "tools: found %zu, expected at most %d", json_array_size(list), MAX_TOOLS);
    bool known = name == NULL;
    json_array_foreach(list, i, tool) {
        if (code == SH_OK) code = check_tool(tool, i, err);
        const char *own = json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
        known |= own != NULL && name != NULL && strcmp(own, name) == 0;
    }
    if (code == SH_OK && !known)
        code = sh_fail(err, SH_ERR_INVALID, "tool_choice: found the function \"%.64s\", which is none of tools", name);
    if (code == SH_OK && json_array_size(list) > 0) *out = list;
    else json_decref(list);
    return code;
}

bool sh_chat_complete_tools(json_t *tools) {
    size_t i;
    json_t *tool;
    bool changed = false;
    json_array_foreach(tools, i, tool) {
        json_t *function = json_object_get(tool, "function"), *parameters = member(function, "parameters");
        if (member(function, "description") == NULL) changed |= json_object_set_new(function, "description", json_string("")) == 0;
        if (parameters == NULL) {
            parameters = json_pack("{s:s}", "type", "object");
            changed |= json_object_set_new(function, "parameters", parameters) == 0;
        }
        if (member(parameters, "properties") == NULL) changed |= json_object_set_new(parameters, "properties", json_object()) == 0;
        const char *key;
        json_t *property;
        json_object_foreach(member(parameters, "properties"), key, property) {
            if (json_is_object(property) && member(property, "description") == NULL)
                changed |= json_object_set_new(property, "description", json_string("")) == 0;
        }
    }
    return changed;
}

char *sh_chat_json(const json_t *value, uint32_t indent) {
    const size_t flags = JSON_ENCODE_ANY | JSON_INDENT(indent);
    char *text = json_dumps(value, JSON_REAL_PRECISION(15) | flags);
    json_t *back = text != NULL ? json_loads(text, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL) : NULL;
    const bool same = back != NULL && json_equal(back, value);
    json_decref(back);
    if (same) return text;
    free(text);
    return json_dumps(value, flags);
}

/* ---- adapting ---- */

static bool is_role(const json_t *message, const char *role) {
    return strcmp(json_string_value(json_object_get(message, "role")), role) == 0;
}

/* Parts as one text, joined by line feeds; a text as it is. New reference. */
static json_t *as_text(json_t *content) {
    if (!json_is_array(content)) return json_is_string(content) ? json_incref(content) : json_string("");
    size_t length = 0, i;
    json_t *part;
    json_array_foreach(content, i, part) length += json_string_length(json_object_get(part, "text")) + 1;
    char *text = malloc(length + 1), *at = text;
    if (text == NULL) return NULL;
    json_array_foreach(content, i, part) {
        const json_t *one = json_object_get(part, "text");
        if (i > 0) *at++ = '\n';
        memcpy(at, json_string_value(one), json_string_length(one));
        at += json_string_length(one);
    }
    json_t *joined = json_stringn(text, (size_t)(at - text));
    free(text);
    return joined;
}

static json_t *as_parts(json_t *content) {
    if (json_is_array(content)) return json_incref(content);
    return json_pack("[{s:s,s:O}]", "type", "text", "text", content);
}

/* Sets a member to a new reference; false: no memory. */
static bool put(json_t *object, const char *name, json_t *value) { return json_object_set_new(object, name, value) == 0; }

static bool put_texts(json_t *message, const char *first, const char *between, const char *second) {
    const size_t length = strlen(first) + strlen(between) + strlen(second);
    char *text = malloc(length + 1);
    if (text == NULL) return false;
    snprintf(text, length + 1, "%s%s%s", first, between, second);
    const bool done = put(message, "content", json_stringn(text, length));
    free(text);
    return done;
}

/* Puts a text before a message's content, or behind it. */
static bool join_content(json_t *message, const char *text, bool before) {
    json_t *content = as_text(json_object_get(message, "content"));
    if (content == NULL) return false;
    const char *own = json_string_value(content);
    const bool done = before ? put_texts(message, text, *own != '\0' ? "\n\n" : "", own)
                             : put_texts(message, own, *own != '\0' ? "\n\n" : "", text);
    json_decref(content);
    return done;
}

static bool add_instructions(json_t *messages, const struct sh_chat_caps *caps, const char *instructions) {
    json_t *message;
    size_t i;
    const bool system = caps->content[SH_CHAT_SYSTEM] != 0;
    if (system && is_role(json_array_get(messages, 0), "system"))
        return join_content(json_array_get(messages, 0), instructions, false);
    json_array_foreach(messages, i, message) {
        if (!system && is_role(message, "user")) return join_content(message, instructions, true);
    }
    return json_array_insert_new(messages, 0,
                                 json_pack("{s:s,s:s}", "role", system ? "system" : "user", "content", instructions)) == 0;
}

static void add(struct sh_buffer *b, const char *text) {
    if (text != NULL) sh_buffer_add_string(b, text);
}

/* A value as Python writes it. */
static void write_python(struct sh_buffer *b, const json_t *value) {
    const char *key, *before = "";
    json_t *item;
    size_t i;
    if (json_is_array(value)) {
        add(b, "[");
        json_array_foreach(value, i, item) {
            if (i > 0) add(b, ", ");
            write_python(b, item);
        }
        add(b, "]");
    } else if (json_is_object(value)) {
        add(b, "{");
        json_object_foreach((json_t *)(uintptr_t)value, key, item) {
            add(b, before);
            add(b, "\"");
            sh_buffer_add_escaped(b, key, strlen(key));
            add(b, "\": ");
            write_python(b, item);
            before = ", ";
        }
        add(b, "}");
    } else if (json_is_boolean(value) || json_is_null(value)) {
        add(b, json_is_true(value) ? "True" : json_is_false(value) ? "False" : "None");
    } else {
        char *text = sh_chat_json(value, 0);
        if (text == NULL) b->failed = true;
        add(b, text);
        free(text);
    }
}

static void write_named(struct sh_buffer *b, const struct sh_call_form *form, const char *name, const char *arguments) {
    const bool fence = (form->flags & SH_FORM_FENCE) != 0;
    add(b, form->name_open);
    add(b, name);
    add(b, form->name_close);
    add(b, fence ? "```json\n" : NULL);
    add(b, arguments);
    add(b, fence ? "\n```" : NULL);
}

static void write_object(struct sh_buffer *b, const struct sh_call_form *form, const char *name, const char *arguments) {
    add(b, "{\"");
    add(b, form->name_key != NULL ? form->name_key : "name");
    add(b, "\": \"");
    sh_buffer_add_escaped(b, name, strlen(name));
    add(b, "\", \"");
    add(b, form->arguments_key != NULL ? form->arguments_key : "arguments");
    add(b, "\": ");
    add(b, arguments);
    add(b, "}");
}

static void write_call_python(struct sh_buffer *b, const char *name, const char *arguments) {
    json_t *object = json_loads(arguments, JSON_ALLOW_NUL, NULL), *value;
    const char *key, *before = "";
    add(b, name);
    add(b, "(");
    json_object_foreach(object, key, value) {
        add(b, before);
        add(b, key);
        add(b, "=");
        write_python(b, value);
        before = ", ";
    }
    add(b, ")");
    json_decref(object);
}

/* Calls as the model is told to write them, one within its marks behind the other, or all as a list behind the one mark that there is. A
 * form that is more than marks around names, JSON or Python is written as JSON alone. */
static bool write_calls(json_t *message, const struct sh_call_form *form) {
    const bool named = form->shape == SH_CALL_NAMED && (form->flags & (SH_FORM_KIMI | SH_FORM_CALL_ID)) == 0;
    const bool python = form->shape == SH_CALL_PYTHON && (form->flags & SH_FORM_FENCE) == 0;
    const bool object = form->shape == SH_CALL_JSON && form->call_open != NULL && (form->flags & SH_FORM_FENCE) == 0;
    const bool marked = named || python || object, list = python || (object && form->call_close == NULL);
    struct sh_buffer b = {0};
    json_t *call;
    size_t i;
    add(&b, marked ? form->open : NULL);
    if (list) add(&b, form->call_open);
    if (list) add(&b, "[");
    json_array_foreach(json_object_get(message, "tool_calls"), i, call) {
        const json_t *function = json_object_get(call, "function"), *arguments = json_object_get(function, "arguments");
        const char *name = json_string_value(json_object_get(function, "name"));
        char *own = json_is_string(arguments) ? NULL : sh_chat_json(arguments, 0);
        const char *text = json_is_string(arguments) ? json_string_value(arguments) : own;
        if (text == NULL) b.failed = true;
        if (text == NULL || text[strspn(text, " \t\r\n")] == '\0') text = "{}";
        if (i > 0) add(&b, list ? ", " : "\n");
        if (marked && !list) add(&b, form->call_open);
        if (object && !list) add(&b, "\n");
        if (named) write_named(&b, form, name, text);
        else if (python) write_call_python(&b, name, text);
        else write_object(&b, form, name, text);
        if (object && !list) add(&b, "\n");
        if (marked && !list) add(&b, form->call_close);
        free(own);
    }
    if (list) add(&b, "]");
    if (list) add(&b, form->call_close);
    add(&b, marked ? form->close : NULL);
    const bool done = !b.failed && join_content(message, b.text, false);
    free(b.text);
    json_object_del(message, "tool_calls");
    return done;
}

static bool is_result(const json_t *message) { return message != NULL && is_role(message, "tool"); }

static void add_result(struct sh_buffer *b, const json_t *message) {
    const char *name = json_string_value(json_object_get(message, "name"));
    json_t *content = as_text(json_object_get(message, "content"));
    if (content == NULL) b->failed = true;
    if (b->length > 0) add(b, "\n\n");
    if (is_role(message, "tool")) {
        add(b, "Result of the tool");
        add(b, name != NULL ? " " : NULL);
        add(b, name);
        add(b, ":\n");
    }
    add(b, json_string_value(content));
    json_decref(content);
}

/* Results of tools become a message of the user; those behind each other one, as templates want users and assistants in turns, and what
 * the user says next goes with it. */
static bool write_results(json_t *messages) {
    json_t *out = json_array();
    bool done = out != NULL;
    for (size_t i = 0; i < json_array_size(messages) && done;) {
        json_t *message = json_array_get(messages, i);
        if (!is_result(message)) {
            done = json_array_append(out, message) == 0;
            i++;
            continue;
        }
        struct sh_buffer b = {0};
        while (is_result(json_array_get(messages, i))) add_result(&b, json_array_get(messages, i++));
        const json_t *next = json_array_get(messages, i);
        if (next != NULL && is_role(next, "user")) add_result(&b, json_array_get(messages, i++));
        done = !b.failed && json_array_append_new(out, json_pack("{s:s,s:s%}", "role", "user", "content", b.text, b.length)) == 0;
        free(b.text);
    }
    done = done && json_array_clear(messages) == 0 && json_array_extend(messages, out) == 0;
    json_decref(out);
    return done;
}

/* Arguments as the text of an object, or as an object: what the template takes. */
static enum sh_code adapt_arguments(const json_t *message, size_t index, uint8_t takes, struct sh_error *err) {
    json_t *call;
    size_t i;
    json_array_foreach(json_object_get(message, "tool_calls"), i, call) {
        json_t *function = json_object_get(call, "function"), *arguments = json_object_get(function, "arguments");
        json_t *wanted = NULL;
        if (json_is_string(arguments) && (takes & SH_TAKES_JSON) == 0) {
            const char *text = json_string_value(arguments);
            wanted = text[strspn(text, " \t\r\n")] == '\0' ? json_object() : json_loads(text, JSON_ALLOW_NUL, NULL);
            if (!json_is_object(wanted)) {
                char at[PLACE];
                json_decref(wanted);
                write_place(at, "messages[%zu].tool_calls[%zu].function.arguments", index, i);
                return wrong(err, at, arguments, "the text of a JSON object");
            }
        } else if (json_is_object(arguments) && (takes & SH_TAKES_OBJECT) == 0) {
            char *text = sh_chat_json(arguments, 0);
            wanted = text != NULL ? json_string(text) : NULL;
            free(text);
            if (wanted == NULL) return no_memory(err);
        }
        if (wanted != NULL && !put(function, "arguments", wanted)) return no_memory(err);
    }
    return SH_OK;
}

static bool is_empty(const json_t *content) {
    return content == NULL || json_is_null(content) || (json_is_string(content) && json_string_length(content) == 0) ||
           (json_is_array(content) && json_array_size(content) == 0);
}

/* Where there is nothing beside calls, the template shows these next to one kind of nothing, and perhaps not next to another. */
static bool adapt_nothing(json_t *message, const struct sh_chat_caps *caps) {
    const json_t *content = json_object_get(message, "content");
    const uint32_t is = content == NULL ? SH_NOTHING_ABSENT : json_is_null(content) ? SH_NOTHING_NULL : SH_NOTHING_EMPTY;
    if ((caps->nothing & is) != 0 && !json_is_array(content)) return true;
    if ((caps->nothing & SH_NOTHING_EMPTY) != 0 || caps->nothing == 0) return put(message, "content", json_string(""));
    if ((caps->nothing & SH_NOTHING_NULL) != 0) return put(message, "content", json_null());
    json_object_del(message, "content");
    return true;
}

/* A template that leaves out the calls of a message with a content gets two messages. */
static bool split_calls(json_t *messages, const struct sh_chat_caps *caps) {
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i), *calls = json_object_get(message, "tool_calls");
        if (caps->beside || calls == NULL || is_empty(json_object_get(message, "content"))) continue;
        json_t *second = json_pack("{s:s,s:O}", "role", "assistant", "tool_calls", calls);
        if (second == NULL || json_array_insert_new(messages, i + 1, second) != 0) return false;
        json_object_del(message, "tool_calls");
        i++;
    }
    return true;
}

static bool adapt_content(json_t *message, enum sh_chat_speaker speaker, const struct sh_chat_caps *caps) {
    json_t *content = json_object_get(message, "content");
    const uint8_t takes = caps->content[speaker];
    if (is_empty(content) && json_object_get(message, "tool_calls") != NULL) return adapt_nothing(message, caps);
    if (content == NULL || json_is_null(content))
        return put(message, "content", takes == SH_TAKES_PARTS ? json_array() : json_string(""));
    if (json_is_array(content) && (takes & SH_TAKES_PARTS) == 0) return put(message, "content", as_text(content));
    if (json_is_string(content) && takes == SH_TAKES_PARTS) return put(message, "content", as_parts(content));
    return true;
}

/* Results tell which function they are of, as templates may want to know; OpenAI's clients give the call's id alone. */
static bool name_results(json_t *messages) {
    json_t *message, *call, *names = json_object(); /* of the functions, by the ids of their calls so far */
    size_t i, k;
    bool done = names != NULL;
    json_array_foreach(messages, i, message) {
        json_array_foreach(json_object_get(message, "tool_calls"), k, call) {
            const char *id = json_string_value(json_object_get(call, "id"));
            if (id != NULL && done)
                done = json_object_set(names, id, json_object_get(json_object_get(call, "function"), "name")) == 0;
        }
        const char *id = json_string_value(json_object_get(message, "tool_call_id"));
        if (!is_result(message) || id == NULL || json_object_get(message, "name") != NULL) continue;
        json_t *name = json_object_get(names, id);
        if (name != NULL && done) done = json_object_set(message, "name", name) == 0;
    }
    json_decref(names);
    return done;
}

/* Nine letters and digits that stand for an id (which may be such already); always the same for the same. */
static bool shorten_id(json_t *object, const char *key) {
    static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const char *id = json_string_value(json_object_get(object, key));
    if (id == NULL || (strlen(id) == 9 && strspn(id, alphabet) == 9)) return true;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (const char *at = id; *at != '\0'; at++) hash = (hash ^ (unsigned char)*at) * 1099511628211u;
    char out[10] = "";
    for (size_t i = 0; i < 9; i++, hash /= 62) out[i] = alphabet[hash % 62];
    return put(object, key, json_string(out));
}

static bool shorten_ids(json_t *messages) {
    json_t *message, *call;
    size_t i, k;
    bool done = true;
    json_array_foreach(messages, i, message) {
        done = done && shorten_id(message, "tool_call_id");
        json_array_foreach(json_object_get(message, "tool_calls"), k, call) done = done && shorten_id(call, "id");
    }
    return done;
}

static bool same_id(const json_t *call, const json_t *result) {
    const char *a = json_string_value(json_object_get(call, "id")),
               *b = json_string_value(json_object_get(result, "tool_call_id"));
    return a != NULL && b != NULL && strcmp(a, b) == 0;
}

/* Several calls of a message, and the results behind it, become one call after the other, each followed by its result. */
static bool serialise_calls(json_t *messages) {
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *calls = json_object_get(json_array_get(messages, i), "tool_calls");
        const size_t n = json_array_size(calls);
        if (n < 2) continue;
        json_incref(calls);
        json_t *first = json_pack("[O]", json_array_get(calls, 0));
        bool done = first != NULL && json_object_set_new(json_array_get(messages, i), "tool_calls", first) == 0;
        size_t at = i; /* the call whose results are being gathered */
        for (size_t k = 0; k < n && done; k++) {
            if (k > 0) {
                json_t *next = json_pack("{s:s,s:[O]}", "role", "assistant", "tool_calls", json_array_get(calls, k));
                done = next != NULL && json_array_insert_new(messages, ++at, next) == 0;
            }
            size_t from = at + 1;
            while (done && from < json_array_size(messages) && is_role(json_array_get(messages, from), "tool")) {
                json_t *result = json_array_get(messages, from++);
                if (!same_id(json_array_get(calls, k), result)) continue;
                json_incref(result);
                json_array_remove(messages, from - 1);
                done = json_array_insert_new(messages, ++at, result) == 0;
            }
        }
        json_decref(calls);
        if (!done) return false;
        i = at;
    }
    return true;
}

enum sh_code sh_chat_adapt(json_t *messages, const struct sh_chat_caps *caps, const struct sh_call_form *form,
                           const char *instructions, struct sh_error *err) {
    json_t *message;
    size_t i;
    bool done = name_results(messages);
    if (done && caps->short_ids) done = shorten_ids(messages);
    if (done && caps->one_call) done = serialise_calls(messages);
    json_array_foreach(messages, i, message) {
        if (!caps->developer && is_role(message, "developer")) done = done && put(message, "role", json_string("system"));
        if (caps->arguments == 0 && json_object_get(message, "tool_calls") != NULL) done = done && write_calls(message, form);
        const json_t *reasoning = json_object_get(message, "reasoning_content");
        if (reasoning != NULL && caps->reasoning != NULL && json_object_get(message, caps->reasoning) == NULL)
            done = done && put(message, caps->reasoning, json_incref((json_t *)(uintptr_t)reasoning));
        const enum sh_code code = adapt_arguments(message, i, caps->arguments, err);
        if (code != SH_OK) return code;
    }
    done = done && split_calls(messages, caps);
    if (done && caps->content[SH_CHAT_TOOL] == 0) done = write_results(messages);
    if (done && instructions != NULL) done = add_instructions(messages, caps, instructions);
    json_array_foreach(messages, i, message) {
        const enum sh_chat_speaker speaker = is_role(message, "user")        ? SH_CHAT_USER
                                             : is_role(message, "assistant") ? SH_CHAT_ASSISTANT
                                             : is_role(message, "tool")      ? SH_CHAT_TOOL
                                                                             : SH_CHAT_SYSTEM;
        done = done && adapt_content(message, speaker, caps);
    }
    return done ? SH_OK : no_memory(err);
}
