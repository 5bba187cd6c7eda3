/* params_constraint.c - what an answer is held to: response_format and the fields that other servers have for the same. */
#include "daemon/http/fields.h"

#include "compute/base.h"

#include <stdio.h>
#include <stdlib.h>

enum form { SCHEMA, TEXT /* a string without further form */, STRINGS };

/* One constraint; a second one is refused. */
static bool put(struct api_request *out, const char *name, enum sh_grammar_kind kind, const json_t *value, enum form form,
                struct api_error *err) {
    struct api_constraint *c = &out->constraint;
    if (c->kind != SH_GRAMMAR_NONE)
        return api_fail(err, 400, "invalid_value", name, "%s and %s: found both, expected at most one of them", c->field, name);
    c->kind = kind;
    c->field = name;
    if (!value) return true;
    if (form == STRINGS) {
        size_t i;
        json_t *item;
        if (!json_is_array(value)) return api_wrong(err, name, value, "an array of strings");
        if (!json_array_size(value))
            return api_fail(err, 400, "invalid_value", name, "%s: found an empty array, expected at least one string", name);
        json_array_foreach(value, i, item) {
            char at[96];
            snprintf(at, sizeof(at), "%s[%zu]", name, i);
            if (!json_is_string(item)) return api_wrong(err, at, item, "a string");
        }
    } else if (json_is_string(value)) {
        if (!json_string_length(value))
            return api_fail(err, 400, "invalid_value", name, "%s: found an empty string, expected %s", name,
                            form == SCHEMA ? "a JSON Schema" : "a text");
        return api_copy_text(value, name, &c->text, &c->length, err);
    } else if (form == TEXT || !json_is_object(value)) {
        return api_wrong(err, name, value, form == TEXT ? "a string" : "a JSON Schema, as an object or as its text");
    }
    if (!api_copy_json(value, &c->text, err)) return false;
    c->length = strlen(c->text);
    return true;
}

static bool parse_response_format(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *format = api_field(body, "response_format"), *type = json_object_get(format, "type");
    char buf[128];
    if (!format) return true;
    if (!json_is_object(format)) return api_wrong(err, "response_format", format, "an object");
    if (!json_is_string(type)) return api_wrong(err, "response_format.type", type, "\"text\", \"json_object\" or \"json_schema\"");
    const char *name = json_string_value(type);
    if (strcmp(name, "text") == 0) return true;
    if (strcmp(name, "json_object") == 0) {
        const json_t *schema = api_field(format, "schema");
        return schema ? put(out, "response_format.schema", SH_GRAMMAR_SCHEMA, schema, SCHEMA, err)
                      : put(out, "response_format", SH_GRAMMAR_OBJECT, NULL, TEXT, err);
    }
    if (strcmp(name, "json_schema") != 0)
        return api_fail(err, 400, "unsupported_parameter", "response_format",
                        "response_format.type: found %s; this server does \"text\", \"json_object\" and \"json_schema\"",
                        api_found(type, buf, sizeof(buf)));
    const json_t *inner = json_object_get(format, "json_schema"), *given = json_object_get(inner, "name");
    bool strict = true; /* whatever it is, the schema is enforced */
    if (!json_is_object(inner)) return api_wrong(err, "response_format.json_schema", inner, "an object with name and schema");
    if (given && !json_is_string(given)) return api_wrong(err, "response_format.json_schema.name", given, "a string");
    if (!api_get_bool(inner, "strict", &strict, err)) {
        snprintf(err->param, sizeof(err->param), "response_format.json_schema.strict");
        return false;
    }
    const json_t *schema = json_object_get(inner, "schema");
    if (!json_is_object(schema)) return api_wrong(err, "response_format.json_schema.schema", schema, "a JSON Schema, as an object");
    return put(out, "response_format.json_schema.schema", SH_GRAMMAR_SCHEMA, schema, SCHEMA, err);
}

static bool parse_structured_outputs(const json_t *body, struct api_request *out, struct api_error *err) {
    static const struct {
        const char *name, *field;
        enum sh_grammar_kind kind;
        enum form form;
    } known[] = {
        {"json", "structured_outputs.json", SH_GRAMMAR_SCHEMA, SCHEMA},
        {"regex", "structured_outputs.regex", SH_GRAMMAR_REGEX, TEXT},
        {"choice", "structured_outputs.choice", SH_GRAMMAR_CHOICE, STRINGS},
        {"grammar", "structured_outputs.grammar", SH_GRAMMAR_GBNF, TEXT},
    };
    const json_t *object = api_field(body, "structured_outputs");
    char at[96], buf[128];
    const char *key;
    json_t *value;
    bool any_object = false;
    if (!object) return true;
    if (!json_is_object(object)) return api_wrong(err, "structured_outputs", object, "an object");
    json_object_foreach((json_t *)object, key, value) {
        size_t i = 0;
        while (i < SH_COUNT(known) && strcmp(key, known[i].name) != 0) i++;
        if (i < SH_COUNT(known) || strcmp(key, "json_object") == 0 || strcmp(key, "disable_fallback") == 0 || json_is_null(value) ||
            json_is_false(value))
            continue;
        snprintf(at, sizeof(at), "structured_outputs.%.60s", key);
        return api_fail(err, 400, "unsupported_parameter", at, "%s: found %s; this server does not do that, leave it out", at,
                        api_found(value, buf, sizeof(buf)));
    }
    if (!api_get_bool(object, "json_object", &any_object, err)) {
        snprintf(err->param, sizeof(err->param), "structured_outputs.json_object");
        return false;
    }
    if (any_object && !put(out, "structured_outputs.json_object", SH_GRAMMAR_OBJECT, NULL, TEXT, err)) return false;
    for (size_t i = 0; i < SH_COUNT(known); i++) {
        const json_t *one = api_field(object, known[i].name);
        if (one && !put(out, known[i].field, known[i].kind, one, known[i].form, err)) return false;
    }
    return true;
}

bool api_constraint_parse(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *grammar = api_field(body, "grammar"), *schema = api_field(body, "json_schema");
    const json_t *json = api_field(body, "guided_json"), *regex = api_field(body, "guided_regex");
    const json_t *choice = api_field(body, "guided_choice"), *guided = api_field(body, "guided_grammar");
    if (json_is_string(grammar) && !json_string_length(grammar)) grammar = NULL; /* llama.cpp's clients send it for "none" */
    return parse_response_format(body, out, err) && parse_structured_outputs(body, out, err) &&
           (!grammar || put(out, "grammar", SH_GRAMMAR_GBNF, grammar, TEXT, err)) &&
           (!schema || put(out, "json_schema", SH_GRAMMAR_SCHEMA, schema, SCHEMA, err)) &&
           (!json || put(out, "guided_json", SH_GRAMMAR_SCHEMA, json, SCHEMA, err)) &&
           (!regex || put(out, "guided_regex", SH_GRAMMAR_REGEX, regex, TEXT, err)) &&
           (!choice || put(out, "guided_choice", SH_GRAMMAR_CHOICE, choice, STRINGS, err)) &&
           (!guided || put(out, "guided_grammar", SH_GRAMMAR_GBNF, guided, TEXT, err));
}
