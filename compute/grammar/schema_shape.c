/* schema_shape.c - what the schemas of one shape say together, and whether two shapes exclude each other. */
#include "compute/grammar/schema.h"

#include <stdlib.h>

static const struct {
    const char *name;
    unsigned types;
} type_names[] = {{"null", SH_TYPE_NULL},     {"boolean", SH_TYPE_BOOLEAN}, {"integer", SH_TYPE_INTEGER},
                  {"number", SH_TYPE_NUMBER}, {"string", SH_TYPE_STRING},   {"array", SH_TYPE_ARRAY},
                  {"object", SH_TYPE_OBJECT}};

/* What a keyword is about, for schemas that name no type. */
static const struct {
    const char *name;
    unsigned types;
} about[] = {{"properties", SH_TYPE_OBJECT},
             {"required", SH_TYPE_OBJECT},
             {"additionalProperties", SH_TYPE_OBJECT},
             {"patternProperties", SH_TYPE_OBJECT},
             {"unevaluatedProperties", SH_TYPE_OBJECT},
             {"minProperties", SH_TYPE_OBJECT},
             {"maxProperties", SH_TYPE_OBJECT},
             {"propertyNames", SH_TYPE_OBJECT},
             {"uniqueItems", SH_TYPE_ARRAY},
             {"multipleOf", SH_TYPE_NUMBER},
             {"items", SH_TYPE_ARRAY},
             {"prefixItems", SH_TYPE_ARRAY},
             {"minItems", SH_TYPE_ARRAY},
             {"maxItems", SH_TYPE_ARRAY},
             {"minLength", SH_TYPE_STRING},
             {"maxLength", SH_TYPE_STRING},
             {"pattern", SH_TYPE_STRING},
             {"format", SH_TYPE_STRING},
             {"minimum", SH_TYPE_NUMBER},
             {"maximum", SH_TYPE_NUMBER},
             {"exclusiveMinimum", SH_TYPE_NUMBER},
             {"exclusiveMaximum", SH_TYPE_NUMBER}};

#define UP_TO_99 "[0-9]{1,2}"
#define MONTH_AND_DAY                                                                                                            \
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
#define YEAR "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
#define LEAP_YEAR "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#define DATE "(?:" YEAR "-" MONTH_AND_DAY "|" LEAP_YEAR "-02-29)"
#define TIME "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,29}[A-Za-z0-9])?"
#define ATOM "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
#define IN_URI "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
#define HEX_DIGITS "[0-9A-Fa-f]"
#define EMAIL ATOM "(?:\\." ATOM "){0,2}@(?:" LABEL "\\.){1,4}[A-Za-z]{2,20}"
#define HOSTNAME LABEL "(?:\\." LABEL "){0,4}"
/* A path, a query and a fragment of so many characters or escapes of three. */
#define URI(path, query, fragment)                                                                                               \
    "(?:https?|ftp)://" HOSTNAME "(?::[1-9][0-9]{0,3})?(?:/(?:" IN_URI "|/)" path ")?(?:\\?(?:" IN_URI "|[/?])" query            \
    ")?(?:#(?:" IN_URI "|[/?])" fragment ")?"
#define URI_LONGEST(path, query, fragment) (8 + 5 * 31 + 4 + 5 + 3 + 3 * ((path) + (query) + (fragment)))

const struct sh_format_of_string sh_string_formats[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"duration", "P(?:[0-9]{1,6}W|(?:[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)?"
                 "(?:T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S))"
                 "|[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)"},
    {"uuid", HEX_DIGITS "{8}-" HEX_DIGITS "{4}-" HEX_DIGITS "{4}-" HEX_DIGITS "{4}-" HEX_DIGITS "{12}"},
    {"ipv4", BYTE "\\." BYTE "\\." BYTE "\\." BYTE},
    {"ipv6", "(?:" HEX_DIGITS "{1,4}:){7}" HEX_DIGITS "{1,4}|::|(?:" HEX_DIGITS "{1,4}:){1,6}(?::" HEX_DIGITS
             "{1,4})|(?:" HEX_DIGITS "{1,4}:){1,7}:|:(?::" HEX_DIGITS "{1,4}){1,7}"},
    {"email", EMAIL, EMAIL, 6, 3 * 20 + 2 + 1 + 4 * 32 + 20},
    {"email", EMAIL, ATOM "@" LABEL "\\.[A-Za-z]{2,20}", 6, 20 + 1 + 32 + 20},
    {"hostname", HOSTNAME, HOSTNAME, 1, 5 * 31 + 4},
    {"uri", URI("*", "*", "*"), URI("{0,380}", "{0,200}", "{0,30}"), 7, URI_LONGEST(380, 200, 30)}, /* within 2048 */
    {"uri", URI("*", "*", "*"), URI("{0,60}", "{0,30}", "{0,10}"), 7, URI_LONGEST(60, 30, 10)},     /* within 500 */
    {"uri", URI("*", "*", "*"), URI("{0,20}", "{0,4}", "{0,1}"), 7, URI_LONGEST(20, 4, 1)},         /* within 255 */
    {NULL, NULL},
};

const char *const sh_number_formats[] = {"int32", "int64", "float", "double", NULL};

static bool is_number_format(const json_t *format) {
    for (size_t i = 0; sh_number_formats[i] != NULL; i++) {
        if (strcmp(json_string_value(format), sh_number_formats[i]) == 0) return true;
    }
    return false;
}

const char *sh_string_format(const char *name) {
    const struct sh_format_of_string *known = sh_string_formats;
    while (known->name != NULL && strcmp(known->name, name) != 0) known++;
    return known->pattern;
}

const char *sh_string_format_within(const char *name, uint32_t min, uint32_t max) {
    for (const struct sh_format_of_string *f = sh_string_formats; f->name != NULL; f++)
        if (strcmp(f->name, name) == 0 && f->bounded != NULL && min <= f->shortest && max >= f->longest) return f->bounded;
    return NULL;
}

static const json_t *json_of(const struct sh_schema *s, uint32_t node) { return s->nodes[node].json; }

static void contradict(struct sh_shape *shape, uint32_t node, const char *why) {
    if (shape->contradiction != NULL) return;
    shape->contradiction = why;
    shape->contradiction_node = node;
}

/* ---- gathering ------------------------------------------------------------------------------------------------------------ */

static enum sh_code read_types(struct sh_schema *s, uint32_t node, const json_t *json, unsigned *out) {
    const json_t *type = json_object_get(json, "type");
    *out = SH_TYPE_ALL;
    if (type == NULL) return SH_OK;
    *out = 0;
    if (json_is_string(type) || json_array_size(type) > 0) {
        for (size_t i = 0; i < (json_is_array(type) ? json_array_size(type) : 1); i++) {
            const json_t *one = json_is_array(type) ? json_array_get(type, i) : type;
            unsigned found = 0;
            for (size_t k = 0; json_is_string(one) && k < SH_COUNT(type_names); k++) {
                if (strcmp(json_string_value(one), type_names[k].name) == 0) found = type_names[k].types;
            }
            if (found == 0) {
                *out = 0;
                break;
            }
            *out |= found;
        }
    }
    if (*out == 0) {
        return sh_schema_fail(s, node, SH_ERR_INVALID,
                              "\"type\" must be one or several of null, boolean, integer, number, string, array, object");
    }
    if (json_is_true(json_object_get(json, "nullable"))) *out |= SH_TYPE_NULL;
    return SH_OK;
}

static void tighten(uint32_t *limit, const json_t *json, const char *key, bool least) {
    const json_t *value = json_object_get(json, key);
    if (value == NULL) return;
    const double v = json_number_value(value);
    const uint32_t n = v < (double)UINT32_MAX ? (uint32_t)v : UINT32_MAX;
    if (least ? n > *limit : n < *limit) *limit = n;
}

static void tighten_bound(struct sh_bound *b, const json_t *value, uint32_t node, bool exclusive, bool lower) {
    const int order = b->number != NULL ? sh_json_compare(value, b->number) : lower ? 1 : -1;
    if (lower ? order > 0 : order < 0) *b = (struct sh_bound){value, exclusive, node};
    else if (order == 0 && exclusive) b->exclusive = true;
}

static void bound(struct sh_bound *b, const json_t *json, uint32_t node, const char *key, bool exclusive, bool lower) {
    const json_t *value = json_object_get(json, key);
    if (value != NULL) tighten_bound(b, value, node, exclusive, lower);
}

static unsigned type_of(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_NULL: return SH_TYPE_NULL;
    case JSON_TRUE:
    case JSON_FALSE: return SH_TYPE_BOOLEAN;
    case JSON_INTEGER: return SH_TYPE_INTEGER;
    case JSON_REAL: return sh_json_is_integer(value) ? SH_TYPE_INTEGER : SH_TYPE_FRACTION;
    case JSON_STRING: return SH_TYPE_STRING;
    case JSON_ARRAY: return SH_TYPE_ARRAY;
    case JSON_OBJECT: return SH_TYPE_OBJECT;
    }
    return 0;
}

static uint32_t code_points(const json_t *string) {
    uint32_t n = 0;
    for (size_t i = 0; i < json_string_length(string); i++) n += (json_string_value(string)[i] & 0xC0) != 0x80;
    return n;
}

static bool structural(const struct sh_schema *s, const struct sh_shape *shape, unsigned type, uint32_t *node) {
    static const char *const arrays[] = {"items", "prefixItems", "uniqueItems"};
    static const char *const objects[] = {
        "properties", "required", "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"};
    const char *const *keys = type == SH_TYPE_ARRAY ? arrays : objects;
    const size_t n = type == SH_TYPE_ARRAY ? SH_COUNT(arrays) : SH_COUNT(objects);
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        for (size_t k = 0; k < n; k++) {
            *node = shape->parts.items[i];
            if (json_object_get(json_of(s, *node), keys[k]) != NULL) return true;
        }
    }
    return false;
}

/* Whether the other keywords allow a value that enum or const names. */
static enum sh_code allows(struct sh_schema *s, const struct sh_shape *shape, const struct sh_dfa *string, const json_t *value,
                           bool *ok) {
    const unsigned type = type_of(value);
    *ok = (type & shape->types) != 0;
    if (!*ok) return SH_OK;
    if (json_is_string(value)) {
        const uint32_t n = code_points(value);
        *ok = n >= shape->min_length && n <= shape->max_length;
        if (*ok && string != NULL) *ok = sh_dfa_matches(string, json_string_value(value), json_string_length(value));
    } else if (json_is_number(value)) {
        const int low = shape->min.number != NULL ? sh_json_compare(value, shape->min.number) : 1;
        const int high = shape->max.number != NULL ? sh_json_compare(value, shape->max.number) : -1;
        for (uint32_t i = 0; i < shape->parts.n; i++) {
            if (!sh_json_is_multiple(value, json_object_get(json_of(s, shape->parts.items[i]), "multipleOf")))
                return *ok = false, SH_OK;
        }
        *ok = low >= (shape->min.exclusive ? 1 : 0) && high <= (shape->max.exclusive ? -1 : 0);
    } else if (json_is_array(value) || json_is_object(value)) {
        uint32_t node;
        const size_t n = json_is_array(value) ? json_array_size(value) : json_object_size(value);
        if (structural(s, shape, type, &node)) {
            return sh_schema_fail(
                s, node, SH_ERR_UNSUPPORTED,
                "\"enum\" or \"const\" with %s beside keywords for their parts is not enforced here; leave those out",
                json_is_array(value) ? "arrays" : "objects");
        }
        *ok = json_is_array(value) ? n >= shape->min_items && n <= shape->max_items
                                   : n >= shape->min_properties && n <= shape->max_properties;
    }
    return SH_OK;
}

static bool among(const json_t *value, const json_t *node) {
    const json_t *list = json_object_get(node, "enum"), *constant = json_object_get(node, "const");
    if (constant != NULL && !sh_json_equal(constant, value)) return false;
    if (list == NULL) return true;
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (sh_json_equal(json_array_get(list, i), value)) return true;
    }
    return false;
}

/* The values of the first enum or const that the others have too and that the other keywords allow. */
static enum sh_code gather_values(struct sh_schema *s, struct sh_shape *shape) {
    uint32_t first = UINT32_MAX;
    for (uint32_t i = 0; i < shape->parts.n && first == UINT32_MAX; i++) {
        const json_t *json = json_of(s, shape->parts.items[i]);
        if (json_object_get(json, "enum") != NULL || json_object_get(json, "const") != NULL) first = shape->parts.items[i];
    }
    if (first == UINT32_MAX) return SH_OK;
    shape->has_enum = true;
    const json_t *constant = json_object_get(json_of(s, first), "const"), *list = json_object_get(json_of(s, first), "enum");
    const size_t n = constant != NULL ? 1 : json_array_size(list);
    struct sh_dfa *string = NULL;
    enum sh_code code = sh_shape_string(s, shape, &string);
    shape->values = sh_calloc(n, sizeof *shape->values);
    if (code == SH_OK && shape->values == NULL) code = sh_schema_no_memory(s);
    for (size_t i = 0; code == SH_OK && i < n; i++) {
        const json_t *value = constant != NULL ? constant : json_array_get(list, i);
        bool ok = true;
        for (uint32_t k = 0; ok && k < shape->parts.n; k++) {
            const json_t *json = json_of(s, shape->parts.items[k]);
            if (shape->parts.items[k] == first && (constant == NULL || json_object_get(json, "enum") == NULL)) continue;
            s->steps += 1 + (uint32_t)json_array_size(json_object_get(json, "enum")) / 16;
            ok = among(value, json);
        }
        if (s->steps > SH_SCHEMA_MAX_STEPS)
            code = sh_schema_fail(s, first, SH_ERR_LIMIT, "several \"enum\" of this size cannot be joined");
        if (ok) code = allows(s, shape, string, value, &ok);
        if (code == SH_OK && ok) shape->values[shape->n_values++] = value;
    }
    sh_dfa_free(string);
    if (code == SH_OK && shape->n_values == 0)
        contradict(shape, first, "no value of \"enum\" or \"const\" is allowed by the rest of the schema");
    return code;
}

struct exclusions { /* types of which no value is left, each once */
    unsigned types;
    struct {
        unsigned types;
        uint32_t node;
        const char *why;
    } items[4];
    uint32_t n;
};

static void exclude(struct exclusions *gone, unsigned types, uint32_t node, const char *why) {
    if (gone->types & types) return;
    gone->types |= types;
    gone->items[gone->n].types = types;
    gone->items[gone->n].node = node;
    gone->items[gone->n++].why = why;
}

static enum sh_code gather(struct sh_schema *s, struct sh_shape *shape) {
    unsigned meant = 0;
    struct exclusions gone = {0};
    bool typed = false;
    uint32_t type_node = shape->parts.items[0];
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const uint32_t node = shape->parts.items[i];
        const json_t *json = json_of(s, node);
        unsigned types;
        const enum sh_code code = read_types(s, node, json, &types);
        if (code != SH_OK) return code;
        if (json_object_get(json, "type") != NULL) typed = true, type_node = node;
        shape->types &= types;
        for (size_t k = 0; k < SH_COUNT(about); k++) {
            if (json_object_get(json, about[k].name) != NULL) meant |= about[k].types;
        }
        const json_t *format = json_object_get(json, "format");
        if (format != NULL && is_number_format(format)) {
            meant = (meant & ~(unsigned)SH_TYPE_STRING) | SH_TYPE_NUMBER;
            shape->whole |= strncmp(json_string_value(format), "int", 3) == 0;
            if (strcmp(json_string_value(format), "int32") == 0) {
                tighten_bound(&shape->min, s->int32[0], node, false, true);
                tighten_bound(&shape->max, s->int32[1], node, false, false);
            }
        } else if (format != NULL && sh_string_format(json_string_value(format)) == NULL) {
            return sh_schema_fail(s, node, SH_ERR_UNSUPPORTED, "the format \"%s\" is not enforced here; leave it out",
                                  json_string_value(format));
        }
        tighten(&shape->min_length, json, "minLength", true);
        tighten(&shape->max_length, json, "maxLength", false);
        tighten(&shape->min_items, json, "minItems", true);
        tighten(&shape->max_items, json, "maxItems", false);
        tighten(&shape->min_properties, json, "minProperties", true);
        tighten(&shape->max_properties, json, "maxProperties", false);
        bound(&shape->min, json, node, "minimum", false, true);
        bound(&shape->min, json, node, "exclusiveMinimum", true, true);
        bound(&shape->max, json, node, "maximum", false, false);
        bound(&shape->max, json, node, "exclusiveMaximum", true, false);
        const uint32_t last = node;
        if (shape->min_length > shape->max_length)
            exclude(&gone, SH_TYPE_STRING, last, "\"minLength\" is greater than \"maxLength\"");
        if (shape->min_items > shape->max_items) exclude(&gone, SH_TYPE_ARRAY, last, "\"minItems\" is greater than \"maxItems\"");
        if (shape->min_properties > shape->max_properties)
            exclude(&gone, SH_TYPE_OBJECT, last, "\"minProperties\" is greater than \"maxProperties\"");
        if (shape->min.number != NULL && shape->max.number != NULL) {
            const int order = sh_json_compare(shape->min.number, shape->max.number);
            if (order > 0 || (order == 0 && (shape->min.exclusive || shape->max.exclusive)))
                exclude(&gone, SH_TYPE_NUMBER, last, "the lower bound is above the upper one");
        }
    }
    if (shape->types == 0) contradict(shape, type_node, "the schemas for this value have no \"type\" in common");
    const unsigned wanted = !typed && meant != 0 ? shape->types & meant : shape->types;
    shape->types &= ~gone.types;
    /* Validators differ in whether such a format says that a number is whole: it is generated so, and taken for either by oneOf. */
    shape->generated = wanted & ~gone.types & ~(shape->whole ? (unsigned)SH_TYPE_FRACTION : 0u);
    for (uint32_t i = 0; i < gone.n && shape->generated == 0; i++)
        if (gone.items[i].types & wanted) contradict(shape, gone.items[i].node, gone.items[i].why);
    if (shape->contradiction != NULL) return SH_OK;
    return gather_values(s, shape);
}

enum sh_code sh_shape_gather(struct sh_schema *s, const struct sh_schema_list *parts, struct sh_shape *out) {
    *out = (struct sh_shape){
        .types = SH_TYPE_ALL, .max_length = SH_GR_UNLIMITED, .max_items = SH_GR_UNLIMITED, .max_properties = SH_GR_UNLIMITED};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; code == SH_OK && i < parts->n; i++) {
        if (!sh_schema_add(&out->parts, parts->items[i])) code = sh_schema_no_memory(s);
    }
    if (code == SH_OK && out->parts.n > 0) code = gather(s, out);
    if (code != SH_OK) sh_shape_finish(out);
    return code;
}

void sh_shape_finish(struct sh_shape *shape) {
    free(shape->parts.items);
    free(shape->taken.items);
    free(shape->values);
    *shape = (struct sh_shape){0};
}

/* ---- strings ---------------------------------------------------------------------------------------------------------------- */

static enum sh_code intersect(struct sh_schema *s, uint32_t node, const char *pattern, bool search, struct sh_dfa **all) {
    struct sh_rx *rx = NULL;
    struct sh_dfa *dfa = NULL;
    struct sh_error why = {0};
    enum sh_code code = sh_rx_parse(pattern, strlen(pattern), &rx, &why);
    if (code == SH_OK) code = sh_dfa_from_rx(rx, search, &dfa, &why);
    sh_rx_free(rx);
    if (code == SH_OK && *all == NULL) {
        *all = dfa;
        return sh_schema_charge(s, node, sh_dfa_work(dfa));
    }
    if (code == SH_OK) code = sh_dfa_intersect(all, dfa, &why);
    sh_dfa_free(dfa);
    return code == SH_OK ? sh_schema_charge(s, node, sh_dfa_work(*all))
                         : sh_schema_fail(s, node, code == SH_ERR_LIMIT ? SH_ERR_UNSUPPORTED : code, "%s", why.message);
}

enum sh_code sh_shape_string(struct sh_schema *s, const struct sh_shape *shape, struct sh_dfa **out) {
    enum sh_code code = SH_OK;
    uint32_t node = 0;
    *out = NULL;
    for (uint32_t i = 0; code == SH_OK && i < shape->parts.n; i++) {
        const json_t *pattern = json_object_get(json_of(s, shape->parts.items[i]), "pattern");
        const json_t *format = json_object_get(json_of(s, shape->parts.items[i]), "format");
        node = pattern != NULL || format != NULL ? shape->parts.items[i] : node;
        if (pattern != NULL) code = intersect(s, node, json_string_value(pattern), true, out);
        if (code == SH_OK && format != NULL) {
            const char *known = sh_string_format(json_string_value(format)); /* NULL: a format of numbers */
            if (known != NULL) code = intersect(s, node, known, false, out);
        }
    }
    if (code == SH_OK && *out != NULL && (shape->min_length > 0 || shape->max_length != SH_GR_UNLIMITED)) {
        struct sh_dfa *lengths = NULL;
        struct sh_error why = {0};
        code = sh_dfa_from_lengths(shape->min_length, shape->max_length, &lengths, &why);
        if (code == SH_OK) code = sh_dfa_intersect(out, lengths, &why);
        sh_dfa_free(lengths);
        if (code == SH_OK) {
            code = sh_schema_charge(s, node, sh_dfa_work(*out));
        } else {
            code = sh_schema_fail(s, node, code == SH_ERR_LIMIT ? SH_ERR_UNSUPPORTED : code,
                                  "\"pattern\" or \"format\" together with these lengths is not enforced here: %s", why.message);
        }
    }
    if (code != SH_OK) {
        sh_dfa_free(*out);
        *out = NULL;
    }
    return code;
}

/* Takes the automaton over. */
static enum sh_code keep_pattern(struct sh_schema *s, struct sh_name_pattern pattern, const struct sh_name_pattern **out) {
    if (s->n_patterns == SH_SCHEMA_MAX_PATTERNS) {
        sh_dfa_free(pattern.dfa);
        return sh_schema_fail(s, pattern.parent, SH_ERR_LIMIT,
                              "more than %d patterns in \"patternProperties\" and \"propertyNames\", over the whole schema",
                              SH_SCHEMA_MAX_PATTERNS);
    }
    s->patterns[s->n_patterns] = pattern;
    *out = &s->patterns[s->n_patterns++];
    return SH_OK;
}

enum sh_code sh_schema_names(struct sh_schema *s, uint32_t node, const struct sh_dfa **out) {
    static const char *const others[] = {"$ref", "allOf", "anyOf", "oneOf"};
    const json_t *schema = json_object_get(json_of(s, node), "propertyNames");
    *out = NULL;
    if (schema == NULL || json_is_true(schema)) return SH_OK;
    for (uint32_t i = 0; i < s->n_patterns; i++) {
        if (s->patterns[i].parent != node || s->patterns[i].text != NULL) continue;
        *out = s->patterns[i].dfa;
        return SH_OK;
    }
    uint32_t child = 0;
    enum sh_code code = sh_schema_child(s, node, schema, "propertyNames", NULL, SIZE_MAX, &child);
    if (code == SH_OK) code = sh_schema_check(s, child);
    for (size_t i = 0; code == SH_OK && i < SH_COUNT(others); i++) {
        if (json_object_get(schema, others[i]) == NULL) continue;
        return sh_schema_fail(s, child, SH_ERR_UNSUPPORTED,
                              "\"%s\" in \"propertyNames\" is not enforced here; write the keywords themselves", others[i]);
    }
    struct sh_shape shape;
    struct sh_dfa *dfa = NULL;
    struct sh_text *texts = NULL;
    uint32_t n = 0;
    if (code == SH_OK) code = sh_shape_gather(s, &(const struct sh_schema_list){&child, json_is_object(schema), 1}, &shape);
    if (code != SH_OK) return code;
    const bool never = json_is_false(schema) || shape.contradiction != NULL || !(shape.types & SH_TYPE_STRING);
    if (never || shape.has_enum) { /* the strings of the list, or none */
        texts = sh_calloc((uint64_t)shape.n_values + 1, sizeof *texts);
        if (texts == NULL) code = sh_schema_no_memory(s);
        for (uint32_t i = 0; !never && texts != NULL && i < shape.n_values; i++) {
            if (!json_is_string(shape.values[i])) continue;
            texts[n++] = (struct sh_text){json_string_value(shape.values[i]), json_string_length(shape.values[i])};
        }
        if (code == SH_OK) code = sh_dfa_from_texts(texts, n, &dfa, s->err);
    } else {
        code = sh_shape_string(s, &shape, &dfa);
        if (code == SH_OK && dfa == NULL && (shape.min_length > 0 || shape.max_length != SH_GR_UNLIMITED)) {
            code = sh_dfa_from_lengths(shape.min_length, shape.max_length, &dfa, s->err);
        }
    }
    free(texts);
    sh_shape_finish(&shape);
    const struct sh_name_pattern *kept = NULL;
    if (code == SH_OK) code = keep_pattern(s, (struct sh_name_pattern){node, child, NULL, dfa}, &kept);
    if (code == SH_OK) *out = kept->dfa;
    return code;
}

enum sh_code sh_schema_name_pattern(struct sh_schema *s, uint32_t parent, const char *pattern, const json_t *schema,
                                    const struct sh_name_pattern **out) {
    uint32_t node = 0;
    enum sh_code code = sh_schema_child(s, parent, schema, "patternProperties", pattern, 0, &node);
    for (uint32_t i = 0; code == SH_OK && i < s->n_patterns; i++) {
        if (s->patterns[i].parent != parent || s->patterns[i].text == NULL || strcmp(s->patterns[i].text, pattern) != 0) continue;
        *out = &s->patterns[i];
        return SH_OK;
    }
    struct sh_dfa *dfa = NULL;
    if (code == SH_OK) code = intersect(s, parent, pattern, true, &dfa);
    if (code != SH_OK) {
        sh_dfa_free(dfa);
        return code;
    }
    return keep_pattern(s, (struct sh_name_pattern){parent, node, pattern, dfa}, out);
}

/* ---- objects ---------------------------------------------------------------------------------------------------------------- */

bool sh_shape_requires(const struct sh_schema *s, const struct sh_shape *shape, const char *name) {
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const json_t *list = json_object_get(json_of(s, shape->parts.items[i]), "required");
        for (size_t k = 0; k < json_array_size(list); k++) {
            if (strcmp(json_string_value(json_array_get(list, k)), name) == 0) return true;
        }
    }
    return false;
}

enum sh_code sh_shape_member(struct sh_schema *s, const struct sh_shape *shape, const char *name, struct sh_schema_list *out,
                             bool *forbidden) {
    enum sh_code code = SH_OK;
    s->steps += shape->parts.n;
    *forbidden = false;
    bool evaluated = false, all_evaluated = false;
    for (uint32_t i = 0; code == SH_OK && i < shape->parts.n; i++) {
        const uint32_t node = shape->parts.items[i];
        const json_t *json = json_of(s, node), *own = json_object_get(json_object_get(json, "properties"), name);
        uint32_t child = 0;
        bool matched = own != NULL;
        if (own != NULL) {
            code = sh_schema_child(s, node, own, "properties", name, 0, &child);
            if (code == SH_OK && !sh_schema_add(out, child)) code = sh_schema_no_memory(s);
        }
        const char *pattern;
        json_t *schema;
        json_object_foreach((json_t *)json_object_get(json, "patternProperties"), pattern, schema) {
            const struct sh_name_pattern *known = NULL;
            if (code == SH_OK) code = sh_schema_name_pattern(s, node, pattern, schema, &known);
            if (code != SH_OK || !sh_dfa_matches(known->dfa, name, strlen(name))) continue;
            matched = true;
            if (!sh_schema_add(out, known->node)) code = sh_schema_no_memory(s);
        }
        const json_t *additional = json_object_get(json, "additionalProperties");
        if (code == SH_OK && !matched && additional != NULL) {
            if (json_is_false(additional)) *forbidden = true;
            code = sh_schema_child(s, node, additional, "additionalProperties", NULL, SIZE_MAX, &child);
            if (code == SH_OK && !sh_schema_add(out, child)) code = sh_schema_no_memory(s);
        }
        const struct sh_dfa *names = NULL;
        if (code == SH_OK) code = sh_schema_names(s, node, &names);
        if (code == SH_OK && names != NULL && !sh_dfa_matches(names, name, strlen(name))) *forbidden = true;
        evaluated |= matched || additional != NULL;
        all_evaluated |= json_is_false(json_object_get(json, "unevaluatedProperties"));
    }
    if (all_evaluated && !evaluated) *forbidden = true;
    if (code == SH_OK && sh_schema_is_false(s, out)) *forbidden = true;
    return code;
}

bool sh_shape_has_extras(const struct sh_schema *s, const struct sh_shape *shape) {
    bool named = false, wanted = false;
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const json_t *json = json_of(s, shape->parts.items[i]);
        const json_t *more = json_object_get(json, "additionalProperties"),
                     *rest = json_object_get(json, "unevaluatedProperties");
        if (json_is_false(more) && json_object_get(json, "patternProperties") == NULL) return false;
        if (json_is_false(rest)) named = true;
        if (json_object_get(json, "properties") != NULL) named = true;
        if (json_object_get(json, "patternProperties") != NULL || (more != NULL && !json_is_false(more))) wanted = true;
    }
    return wanted || !named;
}

/* ---- apart -------------------------------------------------------------------------------------------------------------------- */

enum { MAX_LISTED = 256 }; /* values of a member that are compared */

/* The values that the schemas of a member list, perhaps behind references; 0: none. */
static uint32_t listed(struct sh_schema *s, const struct sh_schema_list *member, const json_t **values) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < member->n; i++) { /* the usual case, quickly */
        const json_t *constant = json_object_get(json_of(s, member->items[i]), "const");
        if (constant == NULL) continue;
        values[0] = constant;
        return 1;
    }
    return sh_schema_values(s, member, values, MAX_LISTED, &n) == SH_OK ? n : 0;
}

static bool lists_meet(const json_t *const *a, uint32_t n_a, const json_t *const *b, uint32_t n_b) {
    for (uint32_t i = 0; i < n_a; i++) {
        for (uint32_t k = 0; k < n_b; k++) {
            if (sh_json_equal(a[i], b[k])) return true;
        }
    }
    return false;
}

/* A required member of a is forbidden in b, or its listed values are others than in b; or b requires what a never has. */
static bool objects_apart(struct sh_schema *s, const struct sh_shape *a, const struct sh_shape *b) {
    for (int swap = 0; swap < 2; swap++) {
        const struct sh_shape *x = swap ? b : a, *y = swap ? a : b;
        for (uint32_t i = 0; i < x->parts.n; i++) {
            const json_t *list = json_object_get(json_of(s, x->parts.items[i]), "required");
            for (size_t k = 0; k < json_array_size(list); k++) {
                const char *name = json_string_value(json_array_get(list, k));
                struct sh_schema_list in_x = {0}, in_y = {0};
                bool no_x = false, no_y = false;
                bool apart = false;
                if (sh_shape_member(s, x, name, &in_x, &no_x) == SH_OK && sh_shape_member(s, y, name, &in_y, &no_y) == SH_OK) {
                    const json_t *values_x[MAX_LISTED], *values_y[MAX_LISTED];
                    const uint32_t n_x = listed(s, &in_x, values_x), n_y = n_x > 0 ? listed(s, &in_y, values_y) : 0;
                    apart = no_y || (n_x > 0 && n_y > 0 && !lists_meet(values_x, n_x, values_y, n_y));
                    /* Of b's requirements: a is generated without extras, and without a member that it does not name. */
                    if (swap && !sh_shape_has_extras(s, y) && in_y.n == 0 && !sh_shape_requires(s, y, name)) apart = true;
                }
                free(in_x.items);
                free(in_y.items);
                if (apart) return true;
            }
        }
    }
    return false;
}

static bool numbers_apart(const struct sh_shape *a, const struct sh_shape *b) {
    for (int swap = 0; swap < 2; swap++) {
        const struct sh_bound *max = swap ? &b->max : &a->max, *min = swap ? &a->min : &b->min;
        if (max->number == NULL || min->number == NULL) continue;
        const int order = sh_json_compare(max->number, min->number);
        if (order < 0 || (order == 0 && (max->exclusive || min->exclusive))) return true;
    }
    return false;
}

bool sh_shape_apart(struct sh_schema *s, const struct sh_shape *a, const struct sh_shape *b) {
    const unsigned common = a->generated & b->types;
    if (common == 0) return true;
    if (a->has_enum || b->has_enum) {
        const struct sh_shape *x = a->has_enum ? a : b, *y = a->has_enum ? b : a;
        bool met = false;
        for (uint32_t i = 0; !met && i < x->n_values; i++) {
            const unsigned type = type_of(x->values[i]);
            if ((type & y->types) == 0) continue;
            if (!y->has_enum) {
                bool ok = true; /* lengths and bounds; what patterns and parts would exclude is not looked at */
                if (!(type & (SH_TYPE_ARRAY | SH_TYPE_OBJECT))) allows(s, y, NULL, x->values[i], &ok);
                met = ok;
            }
            for (uint32_t k = 0; y->has_enum && !met && k < y->n_values; k++) met = sh_json_equal(x->values[i], y->values[k]);
        }
        return !met;
    }
    if (common & (SH_TYPE_NULL | SH_TYPE_BOOLEAN)) return false;
    if ((common & SH_TYPE_NUMBER) && !numbers_apart(a, b)) return false;
    if ((common & SH_TYPE_STRING) && !(a->max_length < b->min_length || b->max_length < a->min_length)) return false;
    if ((common & SH_TYPE_ARRAY) && !(a->max_items < b->min_items || b->max_items < a->min_items)) return false;
    return !(common & SH_TYPE_OBJECT) || objects_apart(s, a, b);
}
