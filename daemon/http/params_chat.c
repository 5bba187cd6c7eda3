/* params_chat.c - what only chats have: messages, tools, and how the template is to be rendered. What the engine reads itself is kept as JSON
 * text, and the engine says whether its form is right. */
#include "daemon/http/fields.h"

#include "compute/base.h"

#include <stdio.h>
#include <stdlib.h>

static bool parse_messages(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *messages = api_field(body, "messages");
    size_t n = json_array_size(messages);
    if (!json_is_array(messages)) return api_wrong(err, "messages", messages, "an array of messages");
    if (!n || n > API_MESSAGES_MAX)
        return api_fail(err, 400, "invalid_value", "messages", "messages: found %zu messages, expected 1 to %d", n,
                        API_MESSAGES_MAX);
    return api_copy_json(messages, &out->chat.messages, err);
}

/* The form of what was read so far, as the engine wants it. */
static bool check(const struct api_chat *chat, struct api_error *err) {
    struct sh_error why;
    const struct sh_chat_request request = {
        .size = sizeof(request), .messages = chat->messages, .tools = chat->tools, .variables = chat->variables};
    enum sh_code code = sh_chat_check(&request, &why);
    return code == SH_OK || api_fail_chat(err, code, why.message);
}

/* ---- tools ---- */

enum { NAME_MAX_BYTES = 128 };

/* Names stand in grammars and templates between all kinds of marks, so only harmless characters may be in them. */
static bool check_name(const json_t *name, const char *at, struct api_error *err) {
    static const char expected[] = "1 to 128 letters, digits or any of _ - . : /";
    char buf[128];
    if (!json_is_string(name)) return api_wrong(err, at, name, "a string");
    const char *text = json_string_value(name);
    size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:/");
    return (length > 0 && length <= NAME_MAX_BYTES && length == json_string_length(name)) ||
           api_fail(err, 400, "invalid_value", at, "%s: found %s, expected %s", at, api_found(name, buf, sizeof(buf)), expected);
}

static const char *tool_name(const json_t *tool) {
    return json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
}

static json_t *find_tool(const json_t *tools, const char *name) {
    size_t i;
    json_t *tool;
    json_array_foreach(tools, i, tool) if (strcmp(tool_name(tool), name) == 0) return tool;
    return NULL;
}

/* Tools whose form is right: may they be told apart, and are their arguments objects? */
static bool check_functions(const json_t *tools, struct api_error *err) {
    size_t i;
    json_t *tool;
    json_t *names = json_object();
    bool ok = names != NULL || api_no_memory(err);
    json_array_foreach(tools, i, tool) {
        char at[64];
        snprintf(at, sizeof(at), "tools[%zu].function.name", i);
        if (!ok || !(ok = check_name(json_object_get(json_object_get(tool, "function"), "name"), at, err))) break;
        const json_t *type = json_object_get(json_object_get(json_object_get(tool, "function"), "parameters"), "type");
        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "object") != 0)) {
            snprintf(at, sizeof(at), "tools[%zu].function.parameters.type", i);
            ok = api_out_of_range(err, at, type, "\"object\"");
        } else if (json_object_get(names, tool_name(tool)))
            ok = api_fail(err, 400, "invalid_value", at, "%s: found \"%s\" a second time, expected different names", at,
                          tool_name(tool));
        else json_object_set_new(names, tool_name(tool), json_true());
    }
    json_decref(names);
    return ok;
}

/* A tool's name in tool_choice: {"type": "function", "function": {"name"}}. */
static bool chosen_name(const json_t *choice, const json_t *tools, const char *param, const char **out, struct api_error *err) {
    char at[96];
    const json_t *name = json_object_get(json_object_get(choice, "function"), "name");
    snprintf(at, sizeof(at), "%s.function.name", param);
    if (!json_is_string(name)) return api_wrong(err, at, name, "a tool's name");
    *out = json_string_value(name);
    return find_tool(tools, *out) || api_fail(err, 400, "invalid_value", at, "%s: found \"%.80s\", expected one of tools", at, *out);
}

/* {"type": "allowed_tools", "allowed_tools": {"mode", "tools": [...]}}: *tools becomes those. */
static bool choose_allowed(const json_t *choice, json_t **tools, struct api_request *out, struct api_error *err) {
    static const char at[] = "tool_choice.allowed_tools";
    const json_t *allowed = json_object_get(choice, "allowed_tools"), *list = json_object_get(allowed, "tools");
    const char *mode = json_string_value(json_object_get(allowed, "mode"));
    size_t i;
    json_t *one;
    if (!json_is_object(allowed)) return api_wrong(err, at, allowed, "an object with mode and tools");
    if (!mode || (strcmp(mode, "auto") != 0 && strcmp(mode, "required") != 0))
        return api_out_of_range(err, "tool_choice.allowed_tools.mode", json_object_get(allowed, "mode"), "\"auto\" or \"required\"");
    if (!json_array_size(list)) return api_wrong(err, "tool_choice.allowed_tools.tools", list, "an array of at least one tool");
    json_t *chosen = json_array();
    bool ok = chosen || api_no_memory(err);
    json_array_foreach(list, i, one) {
        char param[64];
        const char *name = NULL;
        snprintf(param, sizeof(param), "tool_choice.allowed_tools.tools[%zu]", i);
        if (!ok || !(ok = chosen_name(one, *tools, param, &name, err))) break;
        if (!find_tool(chosen, name)) json_array_append(chosen, find_tool(*tools, name));
    }
    if (ok && mode[0] == 'r') out->chat.tool_choice = SH_TOOLS_REQUIRED;
    json_decref(*tools);
    *tools = chosen;
    return ok;
}

/* *tools, owned, is made smaller where only some are allowed. */
static bool parse_choice(const json_t *choice, json_t **tools, struct api_request *out, struct api_error *err) {
    static const char expected[] = "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\"}}";
    const char *word = json_string_value(choice), *type = json_string_value(json_object_get(choice, "type")), *name;
    if (!choice) return true;
    if (word && strcmp(word, "none") == 0) out->chat.tool_choice = SH_TOOLS_NONE;
    if (word && (strcmp(word, "none") == 0 || strcmp(word, "auto") == 0)) return true;
    if (!(word && strcmp(word, "required") == 0) && !json_is_object(choice)) return api_out_of_range(err, "tool_choice", choice, expected);
    if (!json_array_size(*tools))
        return api_fail(err, 400, "invalid_value", "tool_choice", "tool_choice: found one that wants a call, expected tools with it");
    if (word) {
        out->chat.tool_choice = SH_TOOLS_REQUIRED;
        return true;
    }
    if (type && strcmp(type, "allowed_tools") == 0) return choose_allowed(choice, tools, out, err);
    if (!type || strcmp(type, "function") != 0) return api_out_of_range(err, "tool_choice", choice, expected);
    out->chat.tool_choice = SH_TOOLS_REQUIRED;
    return chosen_name(choice, *tools, "tool_choice", &name, err) &&
           ((out->chat.tool_name = strdup(name)) != NULL || api_no_memory(err));
}

/* OpenAI's former functions and function_call, as tools and as a choice of one. Both are new references. */
static bool former_functions(const json_t *body, struct api_request *out, json_t **tools, json_t **choice, struct api_error *err) {
    const json_t *functions = api_field(body, "functions"), *call = api_field(body, "function_call");
    size_t i;
    json_t *function;
    if (functions && !json_is_array(functions)) return api_wrong(err, "functions", functions, "an array of functions");
    if (!json_array_size(functions)) return true;
    if (json_array_size(*tools))
        return api_fail(err, 400, "invalid_value", "functions", "tools and functions: found both, expected at most one of them");
    out->chat.functions = out->chat.single_call = true;
    json_decref(*tools);
    *tools = json_array();
    json_array_foreach(functions, i, function) {
        json_array_append_new(*tools, json_pack("{s:s,s:O}", "type", "function", "function", function));
    }
    json_decref(*choice);
    *choice = NULL;
    if (!call) return true;
    if (json_is_string(call)) *choice = json_incref((json_t *)call);
    else *choice = json_pack("{s:s,s:O}", "type", "function", "function", call);
    if (json_is_string(call) && strcmp(json_string_value(call), "none") != 0 && strcmp(json_string_value(call), "auto") != 0)
        return api_out_of_range(err, "function_call", call, "\"none\", \"auto\" or {\"name\"}");
    return *choice || api_no_memory(err);
}

static bool parse_tools(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *given = api_field(body, "tools");
    bool parallel = true;
    if (given && !json_is_array(given) && !json_is_false(given)) return api_wrong(err, "tools", given, "an array of tools");
    if (!api_get_bool(body, "parallel_tool_calls", &parallel, err)) return false;
    out->chat.single_call = !parallel;
    json_t *tools = json_is_array(given) ? json_incref((json_t *)given) : json_array();
    json_t *choice = json_incref((json_t *)api_field(body, "tool_choice"));
    bool ok = (tools || api_no_memory(err)) && former_functions(body, out, &tools, &choice, err) &&
              (!json_array_size(tools) || api_copy_json(tools, &out->chat.tools, err)) && check(&out->chat, err) &&
              check_functions(tools, err);
    json_t *all = json_incref(tools);
    ok = ok && parse_choice(choice, &tools, out, err);
    if (ok && tools != all) { /* only some are allowed */
        free(out->chat.tools);
        ok = api_copy_json(tools, &out->chat.tools, err);
    }
    json_decref(all);
    json_decref(choice);
    json_decref(tools);
    return ok;
}

/* ---- the template ---- */

/* Variables that the request has fields of its own for. */
static const char *const own_fields[] = {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"};

static bool parse_variables(const json_t *body, struct api_request *out, struct api_error *err) {
    static const char *const efforts[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
    const json_t *given = api_field(body, "chat_template_kwargs"), *effort = api_field(body, "reasoning_effort");
    const json_t *thinking = api_field(body, "enable_thinking");
    bool known = !effort;
    if (given && !json_is_object(given)) return api_wrong(err, "chat_template_kwargs", given, "an object of template variables");
    if (thinking && !json_is_boolean(thinking)) return api_wrong(err, "enable_thinking", thinking, "a boolean");
    for (size_t i = 0; i < SH_COUNT(efforts) && json_is_string(effort); i++)
        known |= strcmp(json_string_value(effort), efforts[i]) == 0;
    if (!known)
        return api_out_of_range(err, "reasoning_effort", effort,
                                "\"none\", \"minimal\", \"low\", \"medium\", \"high\", \"xhigh\" or \"max\"");
    for (size_t i = 0; i < SH_COUNT(own_fields); i++) {
        char at[64];
        snprintf(at, sizeof(at), "chat_template_kwargs.%s", own_fields[i]);
        if (json_object_get(given, own_fields[i]))
            return api_fail(err, 400, "invalid_value", at, "%s: expected as a field of the request itself", at);
    }
    json_t *all = given ? json_copy((json_t *)given) : json_object();
    if (effort) json_object_set(all, "reasoning_effort", (json_t *)effort);
    if (effort && strcmp(json_string_value(effort), "none") == 0) json_object_set_new(all, "enable_thinking", json_false());
    if (thinking) json_object_set(all, "enable_thinking", (json_t *)thinking);
    bool ok = all || api_no_memory(err);
    if (ok && json_object_size(all)) ok = api_copy_json(all, &out->chat.variables, err);
    json_decref(all);
    return ok;
}

/* A name only: a path would read the server's files, and a text would be run. */
static bool parse_template(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *value = api_field(body, "chat_template");
    if (!value) return true;
    if (!api_copy_string(value, "chat_template", &out->chat.template_name, err)) return false;
    const char *name = out->chat.template_name;
    size_t length = strlen(name);
    if (!length || strpbrk(name, "/{}\n") || (length >= 6 && strcmp(name + length - 6, ".jinja") == 0))
        return api_fail(err, 400, "unsupported_parameter", "chat_template",
                        "chat_template: this server takes only the name of one of the model's templates, such as \"tool_use\"");
    return true;
}

static bool parse_reasoning(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *format = api_field(body, "reasoning_format");
    const char *name = json_string_value(format);
    bool include = true;
    if (format && (!name || (strcmp(name, "auto") != 0 && strcmp(name, "deepseek") != 0 && strcmp(name, "none") != 0)))
        return api_out_of_range(err, "reasoning_format", format, "\"auto\", \"deepseek\" or \"none\"");
    out->chat.keep_reasoning = name && strcmp(name, "none") == 0;
    if (!api_get_bool(body, "include_reasoning", &include, err)) return false;
    out->chat.drop_reasoning = !include;
    if (!include && out->chat.keep_reasoning)
        return api_fail(err, 400, "invalid_value", "include_reasoning",
                        "reasoning_format \"none\" and include_reasoning false: found both, expected at most one of them");
    return true;
}

bool api_chat_parse(const json_t *body, struct api_request *out, struct api_error *err) {
    struct api_chat *chat = &out->chat;
    chat->add_generation_prompt = true;
    if (!parse_messages(body, out, err) || !parse_variables(body, out, err) || !parse_tools(body, out, err) ||
        !parse_template(body, out, err) || !parse_reasoning(body, out, err) ||
        !api_get_bool(body, "add_generation_prompt", &chat->add_generation_prompt, err) ||
        !api_get_bool(body, "continue_final_message", &chat->continue_last, err))
        return false;
    if (chat->continue_last && chat->add_generation_prompt)
        return api_fail(err, 400, "invalid_value", "continue_final_message",
                        "continue_final_message: found true while add_generation_prompt is true, as it is unless given; expected "
                        "\"add_generation_prompt\": false with it");
    if (chat->tool_choice == SH_TOOLS_REQUIRED && out->constraint.kind != SH_GRAMMAR_NONE)
        return api_fail(err, 400, "invalid_value", "tool_choice",
                        "tool_choice and %s: found a call that is required together with a form of the answer, expected at most one "
                        "of them",
                        out->constraint.field);
    return true;
}

void api_chat_finish(struct api_chat *chat) {
    free(chat->messages);
    free(chat->tools);
    free(chat->tool_name);
    free(chat->variables);
    free(chat->template_name);
    memset(chat, 0, sizeof(*chat));
}
