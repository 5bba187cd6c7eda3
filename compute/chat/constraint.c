/*
 * constraint.c - what an answer is held to: a required call in the model's own form, a response format, strict tools.
 *
 * The grammar says what answer.c reads, in the spelling that the model was shown. Before it there may be reasoning: up to its
 * closing marker where the prompt has opened it, else as the model likes. Markers that are control tokens are tokens, since
 * such a token has no bytes of its own; everything else is bytes. In forms of tags an argument that is a string stands as it
 * is; what its schema says of its length, pattern and format is enforced on that text.
 */
#include "compute/chat/forms.h"

#include "compute/chat/chat.h"
#include "compute/grammar/grammar.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_REFERENCES = 32, MAX_BRACED_DEPTH = 8 };

struct written_string { /* its texts are lent by the tools and the form */
    struct sh_gr_bare bare;
    sh_gr_expr expr;
};

struct build {
    struct sh_gr *gr;
    const struct sh_format *format;
    const struct sh_call_form *form;
    const struct sh_vocab *vocab;
    const struct sh_answer_plan *plan;
    const struct sh_chat_request *request;
    const json_t *tools;
    bool any_arguments;                /* tools that are not strict take any */
    struct written_string strings[64]; /* tools often have the same ones */
    uint32_t n_strings;
    enum sh_code code;
    struct sh_error *err;
};

/* ---- pieces ---- */

static sh_gr_expr text(struct build *b, const char *t) { return sh_gr_text(b->gr, t, strlen(t)); }

static sh_gr_expr join(struct build *b, sh_gr_expr a, sh_gr_expr c) { return sh_gr_pair(b->gr, a, c); }

static sh_gr_expr either(struct build *b, sh_gr_expr a, sh_gr_expr c) {
    const sh_gr_expr items[] = {a, c};
    return sh_gr_choice(b->gr, items, 2);
}

/* A marker: its control tokens, and the rest as bytes. NULL: nothing. */
static sh_gr_expr marker(struct build *b, const char *t) {
    sh_gr_expr e = SH_GR_EMPTY;
    if (t == NULL) return e;
    size_t plain = 0, length = strlen(t);
    for (size_t i = 0; i < length;) {
        size_t bytes;
        const int32_t token = sh_format_token_at(b->format, b->vocab, t + i, length - i, &bytes);
        if (token < 0) {
            i++;
            continue;
        }
        e = join(b, join(b, e, sh_gr_text(b->gr, t + plain, i - plain)), sh_gr_token(b->gr, token));
        i += bytes;
        plain = i;
    }
    return join(b, e, sh_gr_text(b->gr, t + plain, length - plain));
}

/* Line feeds that a form may have between its parts. */
static sh_gr_expr glue(struct build *b, uint32_t max) { return sh_gr_repeat(b->gr, text(b, "\n"), 0, max); }

static sh_gr_expr digits(struct build *b, uint32_t max) {
    const struct sh_gr_range range = {'0', '9'};
    return sh_gr_repeat(b->gr, sh_gr_class(b->gr, &range, 1, false), 1, max);
}

static sh_gr_expr letters(struct build *b, uint32_t n) {
    const struct sh_gr_range ranges[] = {{'0', '9'}, {'a', 'z'}, {'A', 'Z'}};
    return sh_gr_repeat(b->gr, sh_gr_class(b->gr, ranges, 3, false), n, n);
}

static sh_gr_expr quoted(struct build *b, const char *t) {
    struct sh_buffer s = {0};
    sh_buffer_add_string(&s, "\"");
    sh_buffer_add_escaped(&s, t, strlen(t));
    sh_buffer_add_string(&s, "\"");
    if (s.failed) b->code = sh_fail(b->err, SH_ERR_NO_MEMORY, "no memory for the grammar of a call");
    const sh_gr_expr e = s.failed ? SH_GR_NEVER : sh_gr_text(b->gr, s.text, s.length);
    free(s.text);
    return e;
}

/* item (between item)*, at most once if the request wants a single call. */
static sh_gr_expr several(struct build *b, sh_gr_expr item, sh_gr_expr between) {
    if (b->request->single_call) return item;
    return join(b, item, sh_gr_repeat(b->gr, join(b, between, item), 0, SH_GR_UNLIMITED));
}

/* ---- schemas ---- */

/* The schema, with what its references may refer to. */
static sh_gr_expr value_of(struct build *b, const json_t *root, const json_t *schema, const char *name) {
    if (b->code != SH_OK) return SH_GR_NEVER;
    static const char *const places[] = {"$defs", "definitions"};
    json_t *whole = schema == root || !json_is_object(schema) ? json_incref((json_t *)schema) : json_copy((json_t *)schema);
    for (size_t i = 0; i < SH_COUNT(places) && schema != root; i++) {
        json_t *found = json_object_get(root, places[i]);
        if (found != NULL && json_object_get(whole, places[i]) == NULL) json_object_set(whole, places[i], found);
    }
    char *dump = sh_chat_json(whole, 0);
    json_decref(whole);
    struct sh_error inner = {0};
    sh_gr_expr e = SH_GR_NEVER;
    if (dump == NULL) b->code = sh_fail(b->err, SH_ERR_NO_MEMORY, "no memory for the schema of \"%s\"", name);
    else b->code = sh_gr_schema(b->gr, dump, strlen(dump), &e, &inner);
    if (inner.code != SH_OK)
        b->code = sh_fail(b->err, inner.code, "tools: the parameters of the function \"%s\": %s", name, inner.message);
    free(dump);
    return e;
}

/* A function's arguments as a JSON object. */
static sh_gr_expr arguments_of(struct build *b, const json_t *function) {
    const json_t *schema = json_object_get(function, "parameters");
    if (b->any_arguments && !json_is_true(json_object_get(function, "strict"))) return sh_gr_json_object(b->gr);
    if (json_object_size(schema) == 0) return text(b, "{}");
    json_t *object = NULL;
    if (json_object_get(schema, "type") == NULL && json_object_get(schema, "$ref") == NULL) {
        object = json_copy((json_t *)schema);
        json_object_set_new(object, "type", json_string("object"));
    }
    const sh_gr_expr e = value_of(b, object != NULL ? object : schema, object != NULL ? object : schema,
                                  json_string_value(json_object_get(function, "name")));
    json_decref(object);
    return e;
}

static bool is_in(const json_t *array, const char *string) {
    size_t i;
    json_t *item;
    json_array_foreach(array, i, item) if (json_is_string(item) && strcmp(json_string_value(item), string) == 0) return true;
    return false;
}

static const json_t *follow(const json_t *root, const json_t *schema) {
    for (int i = 0; i < MAX_REFERENCES; i++) {
        const char *reference = json_string_value(json_object_get(schema, "$ref"));
        if (reference == NULL) break;
        const json_t *found = NULL;
        if (strncmp(reference, "#/$defs/", 8) == 0) found = json_object_get(json_object_get(root, "$defs"), reference + 8);
        if (strncmp(reference, "#/definitions/", 14) == 0)
            found = json_object_get(json_object_get(root, "definitions"), reference + 14);
        if (found == NULL) break;
        schema = found;
    }
    return schema;
}

/* The texts of the strings that the schema lists; NEVER: it lists none. */
static sh_gr_expr listed_strings(struct build *b, const json_t *schema) {
    const json_t *values = json_object_get(schema, "enum"), *value = json_object_get(schema, "const");
    if (json_is_string(value)) return text(b, json_string_value(value));
    sh_gr_expr e = SH_GR_NEVER;
    size_t i;
    json_t *item;
    json_array_foreach(values, i, item) if (json_is_string(item)) e = either(b, e, text(b, json_string_value(item)));
    return e;
}

static bool has_any(const json_t *schema, const char *const *keys, size_t n, const char **found) {
    for (size_t i = 0; i < n; i++)
        if (json_object_get(schema, *found = keys[i]) != NULL) return true;
    return false;
}

static sh_gr_expr refuse(struct build *b, const char *name, const char *what) {
    if (b->code == SH_OK)
        b->code = sh_fail(b->err, SH_ERR_UNSUPPORTED,
                          "tools: the parameters of the function \"%s\": %s is not enforced in calls of the form \"%s\"", name,
                          what, b->form->name);
    return SH_GR_NEVER;
}

static bool same_text(const char *a, const char *b) { return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0); }

/* A string as it is, up to `end`. */
static sh_gr_expr bare_string(struct build *b, const json_t *schema, const char *end, const char *name) {
    const json_t *min = json_object_get(schema, "minLength"), *max = json_object_get(schema, "maxLength");
    const char *format = json_string_value(json_object_get(schema, "format"));
    const struct sh_gr_bare bare = {
        .pattern = json_string_value(json_object_get(schema, "pattern")),
        .format = format == NULL ? NULL : sh_string_format(format),
        .end = end,
        .min = min == NULL ? 0 : (uint32_t)sh_min_u64((uint64_t)json_number_value(min), SH_GR_UNLIMITED - 1),
        .max = max == NULL ? SH_GR_UNLIMITED : (uint32_t)sh_min_u64((uint64_t)json_number_value(max), SH_GR_UNLIMITED),
    };
    if (json_object_get(schema, "enum") != NULL || json_object_get(schema, "const") != NULL) {
        if (bare.pattern != NULL || bare.format != NULL || min != NULL || max != NULL)
            return refuse(b, name, "a condition on strings that are listed");
        return listed_strings(b, schema);
    }
    for (uint32_t i = 0; i < b->n_strings; i++)
        if (same_text(b->strings[i].bare.pattern, bare.pattern) && bare.format == b->strings[i].bare.format &&
            same_text(b->strings[i].bare.end, end) && b->strings[i].bare.min == bare.min && b->strings[i].bare.max == bare.max)
            return b->strings[i].expr;
    sh_gr_expr e = SH_GR_NEVER;
    struct sh_error inner = {0};
    b->code = sh_gr_bare_string(b->gr, &bare, &e, &inner);
    if (b->code == SH_OK && b->n_strings < SH_COUNT(b->strings)) b->strings[b->n_strings++] = (struct written_string){bare, e};
    if (b->code != SH_OK) sh_fail(b->err, b->code, "tools: the parameters of the function \"%s\": %s", name, inner.message);
    return e;
}

/* The schema without its strings, which are among its listed types or values. */
static json_t *without_strings(const json_t *schema) {
    json_t *copy = json_copy((json_t *)schema), *kept, *item;
    const json_t *types = json_object_get(schema, "type"), *values = json_object_get(schema, "enum");
    size_t i;
    if (json_is_array(types)) {
        kept = json_array();
        json_array_foreach(types, i, item) {
            const char *type = json_string_value(item);
            if (type != NULL && strcmp(type, "string") != 0) json_array_append(kept, item);
        }
        json_object_set_new(copy, "type", kept);
    }
    if (json_is_array(values)) {
        kept = json_array();
        json_array_foreach(values, i, item) if (!json_is_string(item)) json_array_append(kept, item);
        json_object_set_new(copy, "enum", kept);
    }
    return copy;
}

/* A parameter's value between tags. A string stands as it is, another value as JSON. */
static sh_gr_expr tagged_value(struct build *b, const json_t *root, const json_t *schema, const char *end, const char *name,
                               int depth) {
    static const char *const conditions[] = {"type", "enum", "const", "pattern", "format", "minLength", "maxLength"};
    static const char *const parts[] = {"anyOf", "oneOf", "allOf"};
    const uint32_t types = sh_schema_types(root, schema);
    const sh_gr_expr json = value_of(b, root, schema, name); /* which refuses what would not be enforced */
    if (b->code != SH_OK || !(types & SH_TYPE_STRING)) return json;
    const json_t *own = follow(root, schema);
    const char *key, *other;
    if (has_any(own, parts, SH_COUNT(parts), &key)) {
        const json_t *list = json_object_get(own, key);
        size_t i, n_parts = 0;
        json_t *part;
        for (i = 0; i < SH_COUNT(parts); i++) n_parts += json_object_get(own, parts[i]) != NULL;
        if (n_parts > 1 || depth > MAX_BRACED_DEPTH || has_any(own, conditions, SH_COUNT(conditions), &other) ||
            (strcmp(key, "allOf") == 0 && json_array_size(list) > 1))
            return refuse(b, name, key);
        sh_gr_expr e = SH_GR_NEVER;
        uint32_t seen = 0;
        json_array_foreach(list, i, part) {
            const uint32_t of_part = sh_schema_types(root, part);
            if (strcmp(key, "oneOf") == 0 && (seen & of_part) != 0) return refuse(b, name, key);
            seen |= of_part;
            e = either(b, e, tagged_value(b, root, part, end, name, depth + 1));
        }
        return e;
    }
    const sh_gr_expr strings = bare_string(b, own, end, name);
    const json_t *values = json_object_get(own, "enum");
    size_t n_others = json_is_array(json_object_get(own, "type")) && values == NULL && json_object_get(own, "const") == NULL, i;
    json_t *item;
    json_array_foreach(values, i, item) n_others += !json_is_string(item);
    if (types == SH_TYPE_STRING || n_others == 0) return strings;
    json_t *others = without_strings(own);
    const sh_gr_expr e = either(b, strings, value_of(b, root, others, name));
    json_decref(others);
    return e;
}

/* ---- arguments that are no JSON object ---- */

/* Conditions on an object that a list of its properties does not meet. */
static const char *const beyond[] = {"anyOf",         "oneOf",         "allOf",         "not",  "if",   "patternProperties",
                                     "minProperties", "maxProperties", "propertyNames", "enum", "const"};

/* What an object has: its properties, and those required without a schema. Other conditions on it are refused by name. */
static json_t *parameters_of(struct build *b, const json_t *schema, const char *name) {
    const char *key;
    if (has_any(schema, beyond, SH_COUNT(beyond), &key)) refuse(b, name, key);
    json_t *all = json_object(), *item;
    json_object_update(all, json_object_get(schema, "properties"));
    size_t i;
    json_array_foreach(json_object_get(schema, "required"), i,
                       item) if (json_is_string(item) && json_object_get(all, json_string_value(item)) == NULL)
        json_object_set_new(all, json_string_value(item), json_object());
    return all;
}

struct object { /* whose properties are written one after another */
    const json_t *root, *schema;
    json_t *properties;
    const char *name; /* the function's */
    int depth;
};

/* Each property in the schema's order, as `item` writes it, those not required perhaps: first the separator, except before the first one
 * that is there. */
static sh_gr_expr in_order(struct build *b, const struct object *o, sh_gr_expr separator,
                           sh_gr_expr (*item)(struct build *, const struct object *, const char *key, const json_t *property)) {
    const size_t n = json_object_size(o->properties);
    sh_gr_expr *items = sh_calloc(n, sizeof *items);
    bool *required = sh_calloc(n, sizeof *required);
    sh_gr_expr later = SH_GR_EMPTY, first = SH_GR_EMPTY;
    if (n > 0 && (items == NULL || required == NULL)) {
        b->code = sh_fail(b->err, SH_ERR_NO_MEMORY, "no memory for the grammar of a call");
        free(items);
        free(required);
        return SH_GR_NEVER;
    }
    const char *key;
    json_t *property;
    size_t k = 0;
    json_object_foreach(o->properties, key, property) {
        required[k] = is_in(json_object_get(o->schema, "required"), key);
        items[k++] = item(b, o, key, property);
    }
    for (size_t i = n; i-- > 0;) {
        const sh_gr_expr with = join(b, items[i], later);
        first = required[i] ? with : either(b, with, first);
        const sh_gr_expr next = join(b, join(b, separator, items[i]), later);
        later = required[i] ? next : either(b, next, later);
    }
    free(items);
    free(required);
    return first;
}

static sh_gr_expr tagged_param(struct build *b, const struct object *o, const char *key, const json_t *schema) {
    const struct sh_call_form *f = b->form;
    const json_t *root = o->root;
    const char *name = o->name;
    const sh_gr_expr head = join(b, join(b, marker(b, f->key_open), text(b, key)), marker(b, f->key_close));
    const sh_gr_expr close = marker(b, f->value_close);
    if (f->flags & SH_FORM_TYPED) {
        const uint32_t types = sh_schema_types(root, schema);
        sh_gr_expr value = SH_GR_NEVER;
        if (types & SH_TYPE_STRING)
            value = join(b, text(b, " string=\"true\">"), tagged_value(b, root, schema, f->value_close, name, 0));
        if (types != SH_TYPE_STRING)
            value = either(b, value, join(b, text(b, " string=\"false\">"), value_of(b, root, schema, name)));
        return join(b, head, join(b, value, close));
    }
    if (f->flags & SH_FORM_NEWLINES) {
        const sh_gr_expr value = tagged_value(b, root, schema, f->value_close, name, 0);
        return join(b, join(b, head, text(b, "\n")), join(b, join(b, value, text(b, "\n")), close));
    }
    const sh_gr_expr open = f->value_open == NULL ? SH_GR_EMPTY : join(b, glue(b, 1), marker(b, f->value_open));
    return join(b, join(b, head, open), join(b, tagged_value(b, root, schema, f->value_close, name, 0), close));
}

/* Values in braces: strings between quotes, lists and objects of such; the rest as JSON has it. */
static sh_gr_expr braced_value(struct build *b, const json_t *root, const json_t *schema, const char *name, int depth);

static sh_gr_expr braced_param(struct build *b, const struct object *o, const char *key, const json_t *property) {
    const sh_gr_expr quote = key[strcspn(key, ",:=(){}[]\"'<")] == '\0' ? SH_GR_EMPTY : marker(b, b->form->quote);
    const sh_gr_expr head = join(b, quote, join(b, join(b, text(b, key), quote), text(b, ":")));
    return join(b, head, braced_value(b, o->root, property, o->name, o->depth + 1));
}

static sh_gr_expr braced_object(struct build *b, const json_t *root, const json_t *schema, const char *name, int depth) {
    const struct object o = {root, schema, parameters_of(b, schema, name), name, depth};
    const sh_gr_expr e = join(b, join(b, text(b, "{"), in_order(b, &o, text(b, ","), braced_param)), text(b, "}"));
    json_decref(o.properties);
    return e;
}

static sh_gr_expr braced_value(struct build *b, const json_t *root, const json_t *schema, const char *name, int depth) {
    const uint32_t types = sh_schema_types(root, schema);
    const sh_gr_expr json = value_of(b, root, schema, name);
    const json_t *own = follow(root, schema);
    if (b->code != SH_OK || depth > MAX_BRACED_DEPTH || own != schema || json_object_get(own, "anyOf") != NULL ||
        json_object_get(own, "oneOf") != NULL || json_object_get(own, "allOf") != NULL)
        return json;
    const sh_gr_expr quote = marker(b, b->form->quote);
    if (types == SH_TYPE_STRING) return join(b, quote, join(b, bare_string(b, own, b->form->quote, name), quote));
    const json_t *items = json_object_get(own, "items");
    if (types == SH_TYPE_ARRAY && json_is_object(items) && json_object_get(own, "prefixItems") == NULL &&
        json_object_get(own, "minItems") == NULL && json_object_get(own, "maxItems") == NULL) {
        const sh_gr_expr item = braced_value(b, root, items, name, depth + 1);
        const sh_gr_expr more = sh_gr_repeat(b->gr, join(b, text(b, ","), item), 0, SH_GR_UNLIMITED);
        return join(b, text(b, "["), join(b, sh_gr_optional(b->gr, join(b, item, more)), text(b, "]")));
    }
    const char *key;
    if (types == SH_TYPE_OBJECT && json_object_size(json_object_get(own, "properties")) > 0 &&
        !has_any(own, beyond, SH_COUNT(beyond), &key))
        return braced_object(b, root, own, name, depth);
    return json;
}

static sh_gr_expr python_param(struct build *b, const struct object *o, const char *key, const json_t *property) {
    return join(b, join(b, text(b, key), text(b, "=")), value_of(b, o->root, property, o->name));
}

/* The arguments of a form of tags, or of Python's calls without the brackets. */
static sh_gr_expr params_of(struct build *b, const json_t *function) {
    const char *name = json_string_value(json_object_get(function, "name"));
    const json_t *root = json_object_get(function, "parameters"), *schema = follow(root, root);
    const struct object o = {root, schema, parameters_of(b, schema, name), name, 0};
    arguments_of(b, function); /* refuses what would not be enforced */
    const sh_gr_expr comma = join(b, text(b, ","), sh_gr_optional(b->gr, text(b, " ")));
    const sh_gr_expr e =
        b->form->shape == SH_CALL_PYTHON ? in_order(b, &o, comma, python_param) : in_order(b, &o, glue(b, 1), tagged_param);
    json_decref(o.properties);
    return e;
}

/* ---- calls ---- */

static sh_gr_expr json_call(struct build *b, const json_t *function) {
    const struct sh_call_form *f = b->form;
    const sh_gr_expr name = quoted(b, json_string_value(json_object_get(function, "name"))), space = sh_gr_json_space(b->gr);
    const sh_gr_expr arguments = arguments_of(b, function), comma = join(b, text(b, ","), space),
                     colon = join(b, text(b, ":"), space);
    if (f->shape == SH_CALL_KEYED) return join(b, join(b, text(b, "{"), join(b, name, colon)), join(b, arguments, text(b, "}")));
    sh_gr_expr e = join(b, text(b, "{"), space);
    if (f->id_key != NULL && strcmp(f->id_key, "tool_call_id") == 0) /* before the name */
        e = join(b, e,
                 join(b, join(b, quoted(b, f->id_key), colon),
                      join(b, join(b, text(b, "\""), digits(b, 3)), join(b, text(b, "\""), comma))));
    e = join(b, e, join(b, join(b, quoted(b, f->name_key), colon), join(b, name, comma)));
    e = join(b, e, join(b, join(b, quoted(b, f->arguments_key), colon), arguments));
    if (strcmp(f->name, "mistral") == 0) { /* behind the arguments: nine letters and digits */
        const sh_gr_expr id = join(b, join(b, text(b, "\""), letters(b, 9)), text(b, "\""));
        e = join(b, e, sh_gr_optional(b->gr, join(b, comma, join(b, join(b, quoted(b, f->id_key), colon), id))));
    }
    return join(b, e, join(b, space, text(b, "}")));
}

/* What stands between the markers of a call to this function. */
static sh_gr_expr body_of(struct build *b, const json_t *function) {
    const struct sh_call_form *f = b->form;
    const char *name = json_string_value(json_object_get(function, "name"));
    switch (f->shape) {
    case SH_CALL_JSON:
    case SH_CALL_KEYED: return json_call(b, function);
    case SH_CALL_NAMED: {
        sh_gr_expr head = join(b, marker(b, f->name_open), text(b, name));
        if (f->flags & SH_FORM_KIMI)
            head = join(b, text(b, "functions."), join(b, join(b, text(b, name), text(b, ":")), digits(b, 3)));
        if (f->flags & SH_FORM_CALL_ID)
            head = join(b, head, sh_gr_optional(b->gr, join(b, marker(b, "[CALL_ID]"), letters(b, 9))));
        head = join(b, head, marker(b, f->name_close));
        sh_gr_expr arguments = arguments_of(b, function);
        if (f->flags & SH_FORM_FENCE) arguments = join(b, join(b, text(b, "```json\n"), arguments), text(b, "\n```"));
        return join(b, head, arguments);
    }
    case SH_CALL_TAGGED: {
        const char *end = f->body_close != NULL ? f->body_close : f->call_close;
        const sh_gr_expr head =
            join(b, join(b, marker(b, f->name_open), text(b, name)), join(b, marker(b, f->name_close), glue(b, 1)));
        const bool free = b->any_arguments && !json_is_true(json_object_get(function, "strict"));
        const sh_gr_expr params = free ? sh_gr_until(b->gr, end, strlen(end)) : join(b, params_of(b, function), glue(b, 1));
        return join(b, head, join(b, params, marker(b, f->body_close)));
    }
    case SH_CALL_PYTHON: return join(b, join(b, text(b, name), text(b, "(")), join(b, params_of(b, function), text(b, ")")));
    case SH_CALL_BRACED: {
        const json_t *root = json_object_get(function, "parameters"), *schema = follow(root, root);
        arguments_of(b, function); /* refuses what would not be enforced */
        return join(b, join(b, marker(b, f->name_open), text(b, name)), braced_object(b, root, schema, name, 0));
    }
    case SH_CALL_HARMONY: {
        const sh_gr_expr to = join(b, text(b, " to=functions."), text(b, name)), channel = marker(b, "<|channel|>commentary");
        const sh_gr_expr first = join(b, to, join(b, channel, text(b, " json")));
        const sh_gr_expr last = join(b, join(b, channel, to), join(b, text(b, " "), marker(b, "<|constrain|>json")));
        return join(b, join(b, either(b, first, last), marker(b, "<|message|>")), arguments_of(b, function));
    }
    }
    return SH_GR_NEVER;
}

/* One call of any function that is asked for, without the markers. */
static sh_gr_expr any_body(struct build *b) {
    const char *wanted = b->request->tool_choice == SH_TOOLS_REQUIRED ? b->request->tool_name : NULL;
    sh_gr_expr e = SH_GR_NEVER;
    size_t i;
    json_t *tool;
    json_array_foreach(b->tools, i, tool) {
        const json_t *function = sh_tool_function(tool);
        const char *name = json_string_value(json_object_get(function, "name"));
        if (b->code == SH_OK && (wanted == NULL || strcmp(name, wanted) == 0)) e = either(b, e, body_of(b, function));
    }
    return e;
}

/* The calls of an answer, all their markers included. `inside`: the prompt has the first one's marker already. */
static sh_gr_expr calls(struct build *b, bool inside) {
    const struct sh_call_form *f = b->form;
    const sh_gr_expr body = any_body(b), space = sh_gr_json_space(b->gr), open = marker(b, f->call_open),
                     close = marker(b, f->call_close);
    const sh_gr_expr comma = join(b, text(b, ","), space);
    switch (f->shape) {
    case SH_CALL_HARMONY: return body; /* the answer ends with the first */
    case SH_CALL_KEYED:
        return join(b, join(b, open, text(b, "[")), join(b, several(b, body, comma), join(b, text(b, "]"), close)));
    case SH_CALL_JSON: {
        if (f->flags & SH_FORM_BARE) {
            if (f->flags & SH_FORM_PYTHON_TAG) return several(b, body, text(b, "; "));
            if (b->request->single_call) return body;
            return either(b, body, join(b, text(b, "["), join(b, several(b, body, comma), text(b, "]"))));
        }
        const bool one_each = strcmp(f->name, "hermes") == 0;
        if (one_each)
            return several(b, join(b, join(b, open, glue(b, 1)), join(b, body, join(b, glue(b, 1), close))), glue(b, 2));
        const sh_gr_expr list =
            join(b, join(b, text(b, "["), space), join(b, several(b, body, comma), join(b, space, text(b, "]"))));
        const sh_gr_expr blank = sh_gr_optional(b->gr, text(b, " "));
        if (f->flags & SH_FORM_FENCE)
            return join(b, join(b, open, join(b, either(b, text(b, "\n"), text(b, " ")), text(b, "```json\n"))),
                        join(b, list, join(b, glue(b, 1), text(b, "```"))));
        return join(b, join(b, open, blank), join(b, list, close));
    }
    case SH_CALL_PYTHON:
        if (f->flags & SH_FORM_FENCE)
            return join(b, join(b, open, text(b, "\n```python\n")),
                        join(b, several(b, body, text(b, "\n")), join(b, text(b, "\n```\n"), close)));
        return join(
            b, join(b, open, text(b, "[")),
            join(b, several(b, body, join(b, text(b, ","), sh_gr_optional(b->gr, text(b, " ")))), join(b, text(b, "]"), close)));
    default: break;
    }
    const bool tight = f->shape == SH_CALL_NAMED || f->shape == SH_CALL_BRACED;
    const sh_gr_expr inner = tight ? body
                                   : join(b, f->call_open != NULL && f->name_open != NULL ? glue(b, 1) : SH_GR_EMPTY,
                                          join(b, body, f->call_close != NULL ? glue(b, 1) : SH_GR_EMPTY));
    const sh_gr_expr one = join(b, open, join(b, inner, close)),
                     rest = join(b, inside ? SH_GR_EMPTY : open, join(b, inner, close));
    if (f->open == NULL) {
        if (b->request->single_call) return rest;
        return join(b, rest, sh_gr_repeat(b->gr, join(b, glue(b, 1), one), 0, SH_GR_UNLIMITED));
    }
    return join(b, join(b, marker(b, f->open), glue(b, 1)),
                join(b, several(b, one, glue(b, 1)), join(b, glue(b, 1), marker(b, f->close))));
}

/* ---- reasoning ---- */

static bool ends_with(const char *t, size_t length, const char *end) {
    const size_t n = strlen(end);
    while (length > 0 && (t[length - 1] == '\n' || t[length - 1] == ' ')) length--;
    return length >= n && memcmp(t + length - n, end, n) == 0;
}

/* Reasoning that may or must come first, then `e`. */
static sh_gr_expr after_thought(struct build *b, const char *prompt, size_t length, sh_gr_expr e) {
    const struct sh_thought_form *f = b->plan->thought;
    if (f == NULL) return e;
    const sh_gr_expr space = glue(b, 2);
    const sh_gr_expr rest = join(b, sh_gr_until(b->gr, f->close, strlen(f->close)), join(b, marker(b, f->close), space));
    if (b->plan->start == SH_START_THOUGHT) return join(b, rest, e);
    if (ends_with(prompt, length, f->close)) return e; /* nothing of what the answer then begins with is dropped */
    return join(b, sh_gr_optional(b->gr, join(b, marker(b, f->open), rest)), e);
}

/* Harmony: a message of the analysis first, perhaps, then one that begins as `e` does behind "assistant". */
static sh_gr_expr after_analysis(struct build *b, sh_gr_expr e) {
    if (b->plan->start == SH_START_MESSAGE) return e;
    static const char end[] = "<|end|>";
    const bool begun = b->plan->header[0] != '\0';
    const sh_gr_expr start = marker(b, "<|start|>assistant");
    sh_gr_expr analysis = join(b, marker(b, "<|channel|>analysis<|message|>"), sh_gr_until(b->gr, end, sizeof end - 1));
    analysis = join(b, analysis, join(b, marker(b, end), start));
    return join(b, begun ? SH_GR_EMPTY : start, join(b, sh_gr_optional(b->gr, analysis), e));
}

/* ---- the whole ---- */

/* Is a tool strict, and can the arguments of the others be left free? */
static bool holds_strict(const struct sh_call_form *form, const json_t *tools) {
    size_t i, n = 0;
    json_t *tool;
    json_array_foreach(tools, i, tool) n += json_is_true(json_object_get(sh_tool_function(tool), "strict"));
    if (form->shape == SH_CALL_PYTHON || form->shape == SH_CALL_BRACED) return n > 0 && n == json_array_size(tools);
    return n > 0;
}

static sh_gr_expr response_of(struct build *b) {
    sh_gr_expr e = SH_GR_NEVER;
    if (b->code == SH_OK)
        b->code =
            sh_gr_of_kind(b->gr, b->vocab, b->request->grammar_kind, b->request->grammar, b->request->grammar_length, &e, b->err);
    if (b->plan->harmony && b->plan->start != SH_START_MESSAGE) {
        const sh_gr_expr kind = sh_gr_optional(b->gr, join(b, text(b, " "), marker(b, "<|constrain|>json")));
        e = join(b, join(b, marker(b, "<|channel|>final"), kind), join(b, marker(b, "<|message|>"), e));
    } else if (b->plan->start == SH_START_CALL) { /* a recipient is expected */
        e = join(b, text(b, "all\n"), e);
    }
    return e;
}

static enum sh_code key_of(const struct build *b, const char *prompt, size_t length, struct sh_buffer *key) {
    const struct sh_chat_request *r = b->request;
    const struct sh_thought_form *thought = b->plan->thought;
    char head[256];
    snprintf(head, sizeof head, "chat %s/%s start %d%d choice %d%d kind %d ", b->format->calls->name,
             thought != NULL ? thought->name : "", (int)b->plan->start,
             thought != NULL && ends_with(prompt, length, thought->close), (int)r->tool_choice, r->single_call,
             (int)r->grammar_kind);
    sh_buffer_add_string(key, head);
    const char *const texts[] = {b->plan->header, r->tool_choice == SH_TOOLS_NONE ? NULL : r->tools, r->tool_name};
    for (size_t i = 0; i < SH_COUNT(texts); i++) {
        if (texts[i] != NULL) sh_buffer_add_string(key, texts[i]);
        sh_buffer_add(key, "", 1);
    }
    if (r->grammar != NULL) sh_buffer_add(key, r->grammar, r->grammar_length);
    return key->failed ? sh_fail(b->err, SH_ERR_NO_MEMORY, "no memory for a grammar's key") : SH_OK;
}

enum sh_code sh_answer_constrain(const struct sh_format *format, const struct sh_vocab *vocab, const struct sh_answer_plan *plan,
                                 const struct sh_chat_request *request, const json_t *tools, const char *prompt,
                                 size_t prompt_length, struct sh_grammar **grammar, struct sh_error *err) {
    *grammar = NULL;
    const bool required = request->tool_choice == SH_TOOLS_REQUIRED, response = request->grammar_kind != SH_GRAMMAR_NONE;
    if (required && response)
        return sh_fail(err, SH_ERR_INVALID, "an answer that must be a call cannot be held to a response format, too");
    const struct sh_call_form *form = plan->n_tools > 0 ? format->calls : NULL;
    /* Calls among free text are told by a marker that is no ordinary text. */
    const bool strict = !required && !response && form != NULL && form->shape != SH_CALL_HARMONY && holds_strict(form, tools) &&
                        !(form->flags & (SH_FORM_BARE | SH_FORM_KNOWN));
    if (!required && !response && !strict) return SH_OK;
    if (response && form == NULL && plan->thought == NULL && !plan->harmony && plan->start != SH_START_CALL)
        return sh_grammar_create(vocab, request->grammar_kind, request->grammar, request->grammar_length, grammar, err);

    struct build b = {.format = format,
                      .form = form,
                      .vocab = vocab,
                      .plan = plan,
                      .request = request,
                      .tools = tools,
                      .any_arguments = !required,
                      .err = err};
    struct sh_buffer key = {0};
    b.code = key_of(&b, prompt, prompt_length, &key);
    if (b.code == SH_OK) *grammar = sh_grammar_recall(vocab, key.text, key.length);
    if (b.code != SH_OK || *grammar != NULL) goto done;
    b.gr = sh_gr_create();
    if (b.gr == NULL) {
        b.code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a grammar");
        goto done;
    }
    sh_gr_expr e = SH_GR_NEVER;
    if (form != NULL) e = calls(&b, plan->start == SH_START_CALL);
    if (strict) {
        const char *open = form->open != NULL ? form->open : form->call_open;
        e = join(&b, sh_gr_until(b.gr, open, strlen(open)), sh_gr_optional(b.gr, e));
    }
    if (response) e = either(&b, e, response_of(&b));
    e = plan->harmony ? after_analysis(&b, e) : after_thought(&b, prompt, prompt_length, e);
    if (b.code == SH_OK) b.code = sh_gr_compile(b.gr, e, vocab, grammar, err);
    if (b.code == SH_OK) sh_grammar_remember(vocab, key.text, key.length, *grammar);
done:
    sh_gr_destroy(b.gr);
    free(key.text);
    return b.code;
}
