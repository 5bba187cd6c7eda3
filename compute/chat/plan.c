/*
 * plan.c - from a request: how its answer is read. What the answer is held to is made by constraint.c.
 */
#include "compute/chat/forms.h"

#include <stdlib.h>

enum { MAX_SCHEMA_DEPTH = 16 }; /* schemas within each other that are looked into for a parameter's types */

/* ---- what a request says of its tools ---- */

static uint32_t type_of_name(const char *name) {
    static const struct {
        const char *name;
        uint32_t type;
    } names[] = {{"string", SH_TYPE_STRING},   {"number", SH_TYPE_NUMBER}, {"integer", SH_TYPE_NUMBER},
                 {"boolean", SH_TYPE_BOOLEAN}, {"null", SH_TYPE_NULL},     {"object", SH_TYPE_OBJECT},
                 {"array", SH_TYPE_ARRAY}};
    for (size_t i = 0; name != NULL && i < SH_COUNT(names); i++)
        if (strcmp(name, names[i].name) == 0) return names[i].type;
    return SH_TYPE_ANY;
}

static uint32_t type_of_value(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return SH_TYPE_OBJECT;
    case JSON_ARRAY: return SH_TYPE_ARRAY;
    case JSON_STRING: return SH_TYPE_STRING;
    case JSON_INTEGER:
    case JSON_REAL: return SH_TYPE_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE: return SH_TYPE_BOOLEAN;
    default: return SH_TYPE_NULL;
    }
}

static uint32_t types_of_schema(const json_t *root, const json_t *schema, uint32_t depth);

uint32_t sh_schema_types(const json_t *root, const json_t *schema) { return types_of_schema(root, schema, 0); }

/* Of a local reference: #/$defs/name or #/definitions/name. */
static uint32_t types_of_reference(const json_t *root, const char *reference, uint32_t depth) {
    static const char *const places[] = {"$defs", "definitions"};
    for (size_t i = 0; i < SH_COUNT(places); i++) {
        const size_t n = strlen(places[i]);
        if (strncmp(reference, "#/", 2) != 0 || strncmp(reference + 2, places[i], n) != 0 || reference[2 + n] != '/') continue;
        const json_t *schema = json_object_get(json_object_get(root, places[i]), reference + 3 + n);
        if (schema != NULL) return types_of_schema(root, schema, depth + 1);
    }
    return SH_TYPE_ANY;
}

static uint32_t types_of_schema(const json_t *root, const json_t *schema, uint32_t depth) {
    if (!json_is_object(schema) || depth > MAX_SCHEMA_DEPTH) return SH_TYPE_ANY;
    uint32_t types = SH_TYPE_ANY;
    size_t i;
    json_t *item;
    const json_t *type = json_object_get(schema, "type");
    if (json_is_string(type)) types &= type_of_name(json_string_value(type));
    if (json_is_array(type)) {
        uint32_t any = 0;
        json_array_foreach(type, i, item) any |= type_of_name(json_string_value(item));
        types &= any;
    }
    const json_t *values = json_object_get(schema, "enum");
    if (json_is_array(values)) {
        uint32_t any = 0;
        json_array_foreach(values, i, item) any |= type_of_value(item);
        types &= any;
    }
    const json_t *value = json_object_get(schema, "const");
    if (value != NULL) types &= type_of_value(value);
    const char *const unions[] = {"anyOf", "oneOf"};
    for (size_t k = 0; k < SH_COUNT(unions); k++) {
        const json_t *list = json_object_get(schema, unions[k]);
        if (!json_is_array(list)) continue;
        uint32_t any = 0;
        json_array_foreach(list, i, item) any |= types_of_schema(root, item, depth + 1);
        types &= any;
    }
    json_array_foreach(json_object_get(schema, "allOf"), i, item) types &= types_of_schema(root, item, depth + 1);
    const char *reference = json_string_value(json_object_get(schema, "$ref"));
    if (reference != NULL) types &= types_of_reference(root, reference, depth);
    if (json_is_true(json_object_get(schema, "nullable"))) types |= SH_TYPE_NULL;
    return types == 0 ? SH_TYPE_ANY : types;
}

const struct sh_plan_tool *sh_plan_find_tool(const struct sh_answer_plan *plan, const char *name, size_t length) {
    for (uint32_t i = 0; i < plan->n_tools; i++)
        if (strlen(plan->tools[i].name) == length && memcmp(plan->tools[i].name, name, length) == 0) return &plan->tools[i];
    return NULL;
}

uint32_t sh_plan_param_types(const struct sh_plan_tool *tool, const char *name, size_t length) {
    for (uint32_t i = 0; tool != NULL && i < tool->n_params; i++)
        if (strlen(tool->params[i].name) == length && memcmp(tool->params[i].name, name, length) == 0)
            return tool->params[i].types;
    return SH_TYPE_ANY;
}

const json_t *sh_tool_function(const json_t *tool) {
    const json_t *function = json_object_get(tool, "function");
    return json_is_object(function) ? function : tool;
}

static enum sh_code add_tool(struct sh_plan_tool *out, const json_t *tool, size_t index, struct sh_error *err) {
    const json_t *function = sh_tool_function(tool);
    const char *name = json_string_value(json_object_get(function, "name"));
    if (name == NULL || *name == '\0') return sh_fail(err, SH_ERR_INVALID, "tools[%zu] has no function with a name", index);
    const json_t *schema = json_object_get(function, "parameters");
    const json_t *properties = json_object_get(schema, "properties");
    out->name = strdup(name);
    out->params = sh_calloc(json_object_size(properties), sizeof *out->params);
    if (out->name == NULL || (out->params == NULL && json_object_size(properties) > 0))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the parameters of \"%s\"", name);
    const char *key;
    json_t *property;
    json_object_foreach((json_t *)properties, key, property) {
        struct sh_plan_param *param = &out->params[out->n_params];
        param->name = strdup(key);
        if (param->name == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the parameters of \"%s\"", name);
        param->types = sh_schema_types(schema, property);
        out->n_params++;
    }
    return SH_OK;
}

static enum sh_code add_tools(struct sh_answer_plan *plan, const json_t *tools, struct sh_error *err) {
    const size_t n = json_array_size(tools);
    plan->tools = sh_calloc(n, sizeof *plan->tools);
    if (plan->tools == NULL && n > 0) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %zu tools", n);
    for (size_t i = 0; i < n; i++) {
        plan->n_tools++;
        const enum sh_code code = add_tool(&plan->tools[i], json_array_get(tools, i), i, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

static void free_tools(struct sh_answer_plan *plan) {
    for (uint32_t i = 0; i < plan->n_tools; i++) {
        for (uint32_t k = 0; k < plan->tools[i].n_params; k++) free(plan->tools[i].params[k].name);
        free(plan->tools[i].params);
        free(plan->tools[i].name);
    }
    free(plan->tools);
    plan->tools = NULL;
    plan->n_tools = 0;
}

/* ---- where an answer begins ---- */

static bool ends_with(const char *text, size_t length, const char *end) {
    const size_t n = strlen(end);
    return length >= n && memcmp(text + length - n, end, n) == 0;
}

static const char *last_of(const char *text, size_t length, const char *what) {
    const size_t n = strlen(what);
    for (size_t i = length; i >= n; i--)
        if (memcmp(text + i - n, what, n) == 0) return text + i - n;
    return NULL;
}

/* Is reasoning open at the end of the prompt? A prompt that continues a message may end within it. */
static bool thought_is_open(const struct sh_thought_form *form, const struct sh_chat_request *request, const char *prompt,
                            size_t length) {
    size_t trimmed = length;
    while (trimmed > 0 && (prompt[trimmed - 1] == '\n' || prompt[trimmed - 1] == ' ')) trimmed--;
    if (ends_with(prompt, trimmed, form->open)) return true;
    if (!request->continue_last) return false;
    const char *open = last_of(prompt, length, form->open), *close = last_of(prompt, length, form->close);
    return open != NULL && (close == NULL || close < open);
}

/* Harmony: the prompt ends in a header, in a message, or behind one. */
static enum sh_code find_harmony_start(struct sh_answer_plan *plan, const char *prompt, size_t length, struct sh_error *err) {
    const char *start = last_of(prompt, length, "<|start|>"), *header = prompt + length;
    size_t header_length = 0;
    plan->start = SH_START_HEADER;
    if (start != NULL) {
        const size_t rest = length - (size_t)(start - prompt);
        const char *message = memmem(start, rest, "<|message|>", strlen("<|message|>"));
        const bool ended = message != NULL && memmem(start, rest, "<|end|>", strlen("<|end|>")) != NULL;
        if (message != NULL && !ended) plan->start = SH_START_MESSAGE;
        if (!ended) {
            header = start;
            header_length = message != NULL ? (size_t)(message - start) : rest;
        }
    }
    plan->header = strndup(header, header_length);
    return plan->header != NULL ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plan of an answer");
}

static void find_start(struct sh_answer_plan *plan, const struct sh_chat_request *request, const char *prompt, size_t length) {
    plan->start = SH_START_CONTENT;
    if (plan->thought != NULL && thought_is_open(plan->thought, request, prompt, length)) plan->start = SH_START_THOUGHT;
    else if (plan->calls != NULL && (plan->calls->flags & SH_FORM_RECIPIENT) && ends_with(prompt, length, plan->calls->call_open))
        plan->start = SH_START_CALL;
}

/* ---- the plan ---- */

enum sh_code sh_answer_plan_create(const struct sh_format *format, const struct sh_vocab *vocab,
                                   const struct sh_chat_request *request, const char *prompt, size_t prompt_length,
                                   struct sh_answer_plan **out, struct sh_grammar **grammar, struct sh_error *err) {
    *out = NULL;
    *grammar = NULL;
    struct sh_answer_plan *plan = sh_calloc(1, sizeof *plan);
    if (plan == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plan of an answer");
    plan->keep_reasoning = request->keep_reasoning;
    plan->single_call = request->single_call;
    plan->thought = format->thought != NULL && format->thought->open != NULL ? format->thought : NULL;

    enum sh_code code = SH_OK;
    json_t *tools = NULL;
    if (request->tools != NULL) {
        json_error_t error;
        tools = json_loads(request->tools, JSON_ALLOW_NUL, &error);
        if (!json_is_array(tools)) {
            code = sh_fail(err, SH_ERR_INVALID, "tools is no JSON array%s%s", tools == NULL ? ": " : "",
                           tools == NULL ? error.text : "");
            goto fail;
        }
        code = add_tools(plan, tools, err);
        if (code != SH_OK) goto fail;
    }
    plan->harmony = format->calls->shape == SH_CALL_HARMONY || (format->thought != NULL && format->thought->open == NULL);
    const bool recipient =
        (format->calls->flags & SH_FORM_RECIPIENT) && ends_with(prompt, prompt_length, format->calls->call_open);
    if (recipient || (plan->n_tools > 0 && request->tool_choice != SH_TOOLS_NONE)) plan->calls = format->calls;
    if (request->tool_choice == SH_TOOLS_REQUIRED) {
        if (plan->n_tools == 0) {
            code = sh_fail(err, SH_ERR_INVALID, "tool_choice requires a call, but there are no tools");
            goto fail;
        }
        if (request->tool_name != NULL && sh_plan_find_tool(plan, request->tool_name, strlen(request->tool_name)) == NULL) {
            code = sh_fail(err, SH_ERR_INVALID, "tool_choice names the function \"%s\", which is none of the tools",
                           request->tool_name);
            goto fail;
        }
    }
    if (request->tool_choice == SH_TOOLS_NONE) free_tools(plan); /* a recipient is looked for all the same */
    find_start(plan, request, prompt, prompt_length);
    if (plan->harmony) {
        code = find_harmony_start(plan, prompt, prompt_length, err);
        if (code != SH_OK) goto fail;
    }
    code = sh_answer_constrain(format, vocab, plan, request, tools, prompt, prompt_length, grammar, err);
    if (code != SH_OK) goto fail;
    json_decref(tools);
    *out = plan;
    return SH_OK;
fail:
    json_decref(tools);
    sh_answer_plan_free(plan);
    return code;
}

void sh_answer_plan_free(struct sh_answer_plan *plan) {
    if (plan == NULL) return;
    free_tools(plan);
    free(plan->header);
    free(plan);
}
