/* schema.c - JSON Schema: the document, its references, the keywords, and the alternatives of what has to hold together. */
#include "compute/grammar/schema.h"

#include <stdio.h>
#include <stdlib.h>

#define FREE UINT32_MAX
enum { MAX_PATH = 256 }; /* bytes of a node's path that are kept */

const struct sh_keyword sh_keywords[] = {
    {"type", SH_KEYWORD_ENFORCED},
    {"enum", SH_KEYWORD_ENFORCED},
    {"const", SH_KEYWORD_ENFORCED},
    {"nullable", SH_KEYWORD_ENFORCED},
    {"properties", SH_KEYWORD_ENFORCED},
    {"required", SH_KEYWORD_ENFORCED},
    {"additionalProperties", SH_KEYWORD_ENFORCED},
    {"patternProperties", SH_KEYWORD_ENFORCED},
    {"unevaluatedProperties", SH_KEYWORD_ENFORCED},
    {"minProperties", SH_KEYWORD_ENFORCED},
    {"maxProperties", SH_KEYWORD_ENFORCED},
    {"items", SH_KEYWORD_ENFORCED},
    {"prefixItems", SH_KEYWORD_ENFORCED},
    {"additionalItems", SH_KEYWORD_ENFORCED},
    {"minItems", SH_KEYWORD_ENFORCED},
    {"maxItems", SH_KEYWORD_ENFORCED},
    {"propertyNames", SH_KEYWORD_ENFORCED},
    {"uniqueItems", SH_KEYWORD_ENFORCED},
    {"multipleOf", SH_KEYWORD_ENFORCED},
    {"minLength", SH_KEYWORD_ENFORCED},
    {"maxLength", SH_KEYWORD_ENFORCED},
    {"pattern", SH_KEYWORD_ENFORCED},
    {"format", SH_KEYWORD_ENFORCED},
    {"minimum", SH_KEYWORD_ENFORCED},
    {"maximum", SH_KEYWORD_ENFORCED},
    {"exclusiveMinimum", SH_KEYWORD_ENFORCED},
    {"exclusiveMaximum", SH_KEYWORD_ENFORCED},
    {"anyOf", SH_KEYWORD_ENFORCED},
    {"oneOf", SH_KEYWORD_ENFORCED},
    {"allOf", SH_KEYWORD_ENFORCED},
    {"$ref", SH_KEYWORD_ENFORCED},

    {"$defs", SH_KEYWORD_NO_EFFECT},
    {"definitions", SH_KEYWORD_NO_EFFECT},
    {"$schema", SH_KEYWORD_NO_EFFECT},
    {"$comment", SH_KEYWORD_NO_EFFECT},
    {"title", SH_KEYWORD_NO_EFFECT},
    {"description", SH_KEYWORD_NO_EFFECT},
    {"default", SH_KEYWORD_NO_EFFECT},
    {"example", SH_KEYWORD_NO_EFFECT},
    {"examples", SH_KEYWORD_NO_EFFECT},
    {"deprecated", SH_KEYWORD_NO_EFFECT},
    {"readOnly", SH_KEYWORD_NO_EFFECT},
    {"writeOnly", SH_KEYWORD_NO_EFFECT},
    {"contentEncoding", SH_KEYWORD_NO_EFFECT},
    {"contentMediaType", SH_KEYWORD_NO_EFFECT},
    {"contentSchema", SH_KEYWORD_NO_EFFECT},

    {"not", SH_KEYWORD_REFUSED},
    {"if", SH_KEYWORD_REFUSED},
    {"then", SH_KEYWORD_REFUSED},
    {"else", SH_KEYWORD_REFUSED},
    {"dependencies", SH_KEYWORD_REFUSED},
    {"dependentRequired", SH_KEYWORD_REFUSED},
    {"dependentSchemas", SH_KEYWORD_REFUSED},
    {"contains", SH_KEYWORD_REFUSED},
    {"minContains", SH_KEYWORD_REFUSED},
    {"maxContains", SH_KEYWORD_REFUSED},
    {"unevaluatedItems", SH_KEYWORD_REFUSED},
    {"$id", SH_KEYWORD_REFUSED},
    {"id", SH_KEYWORD_REFUSED},
    {"$anchor", SH_KEYWORD_REFUSED},
    {"$dynamicRef", SH_KEYWORD_REFUSED},
    {"$dynamicAnchor", SH_KEYWORD_REFUSED},
    {"$recursiveRef", SH_KEYWORD_REFUSED},
    {"$recursiveAnchor", SH_KEYWORD_REFUSED},
    {"$vocabulary", SH_KEYWORD_REFUSED},
    {NULL, SH_KEYWORD_REFUSED},
};

enum sh_code sh_schema_fail(struct sh_schema *s, uint32_t node, enum sh_code code, const char *fmt, ...) {
    char what[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return sh_fail(s->err, code, "schema, %.200s: %s", s->nodes[node].path, what);
}

enum sh_code sh_schema_no_memory(struct sh_schema *s) { return sh_fail(s->err, SH_ERR_NO_MEMORY, "no memory for a schema"); }

/* ---- nodes ---------------------------------------------------------------------------------------------------------- */

static uint32_t hash_pointer(const void *p) {
    const uint64_t h = (uint64_t)(uintptr_t)p * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32);
}

static uint32_t *node_slot(const struct sh_schema *s, const json_t *json) {
    uint32_t slot = hash_pointer(json) & (s->n_slots - 1);
    while (s->slots[slot] != FREE && s->nodes[s->slots[slot]].json != json) slot = (slot + 1) & (s->n_slots - 1);
    return &s->slots[slot];
}

static uint32_t *new_slots(uint32_t n) {
    uint32_t *slots = malloc(n * sizeof *slots);
    if (slots != NULL) memset(slots, 0xFF, n * sizeof *slots);
    return slots;
}

/* The node of this JSON, made with the path (which is taken over) if there is none. */
static enum sh_code intern_node(struct sh_schema *s, const json_t *json, char *path, uint32_t *out) {
    if (path == NULL) return sh_schema_no_memory(s);
    if (s->n_nodes * 2 >= s->n_slots) {
        const uint32_t n = s->n_slots > 0 ? s->n_slots * 2 : 256;
        uint32_t *slots = new_slots(n);
        if (slots == NULL) {
            free(path);
            return sh_schema_no_memory(s);
        }
        free(s->slots);
        s->slots = slots;
        s->n_slots = n;
        for (uint32_t i = 0; i < s->n_nodes; i++) *node_slot(s, s->nodes[i].json) = i;
    }
    uint32_t *slot = node_slot(s, json);
    if (*slot != FREE) {
        free(path);
        *out = *slot;
        return SH_OK;
    }
    if (!sh_grow((void **)&s->nodes, &s->nodes_capacity, s->n_nodes + 1, sizeof *s->nodes)) {
        free(path);
        return sh_schema_no_memory(s);
    }
    s->nodes[s->n_nodes] = (struct sh_schema_node){.json = json, .path = path};
    *slot = *out = s->n_nodes++;
    return SH_OK;
}

enum sh_code sh_schema_child(struct sh_schema *s, uint32_t parent, const json_t *json, const char *key, const char *name,
                             size_t index, uint32_t *out) {
    uint32_t *slot = s->n_slots > 0 ? node_slot(s, json) : NULL;
    if (slot != NULL && *slot != FREE) {
        *out = *slot;
        return SH_OK;
    }
    char path[MAX_PATH]; /* what does not fit is left out: it is for people */
    size_t at = (size_t)snprintf(path, sizeof path, "%s/%s", s->nodes[parent].path, key);
    if (name == NULL && index != SIZE_MAX && at < sizeof path) {
        snprintf(path + at, sizeof path - at, "/%zu", index);
    } else if (name != NULL && at + 1 < sizeof path) {
        path[at++] = '/';
        for (; *name != 0 && at + 2 < sizeof path; name++) {
            if (*name == '~' || *name == '/') path[at++] = '~';
            path[at++] = *name == '~' ? '0' : *name == '/' ? '1' : *name;
        }
        path[at] = 0;
    }
    return intern_node(s, json, strdup(path), out);
}

bool sh_schema_add(struct sh_schema_list *list, uint32_t node) {
    for (uint32_t i = 0; i < list->n; i++) {
        if (list->items[i] == node) return true;
    }
    if (!sh_grow((void **)&list->items, &list->capacity, list->n + 1, sizeof *list->items)) return false;
    list->items[list->n++] = node;
    return true;
}

bool sh_schema_is_false(const struct sh_schema *s, const struct sh_schema_list *list) {
    for (uint32_t i = 0; i < list->n; i++) {
        if (json_is_false(s->nodes[list->items[i]].json)) return true;
    }
    return false;
}

/* ---- what a schema may hold ------------------------------------------------------------------------------------------- */

static enum sh_code wrong(struct sh_schema *s, uint32_t node, const char *key, const char *wanted) {
    return sh_schema_fail(s, node, SH_ERR_INVALID, "\"%s\" must be %s", key, wanted);
}

static enum sh_code check_value(struct sh_schema *s, uint32_t node, const char *key, const json_t *value) {
    static const char *const schemas[] = {"additionalProperties", "unevaluatedProperties", "additionalItems", "propertyNames"};
    static const char *const maps[] = {"properties", "patternProperties"};
    static const char *const lists[] = {"prefixItems", "anyOf", "oneOf", "allOf"};
    static const char *const counts[] = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"};
    static const char *const numbers[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};
    static const char *const strings[] = {"pattern", "format", "$ref"};
    const char *wanted = NULL;
    for (size_t i = 0; i < SH_COUNT(schemas); i++) {
        if (strcmp(key, schemas[i]) == 0 && !json_is_object(value) && !json_is_boolean(value))
            wanted = "a schema: an object, true or false";
    }
    for (size_t i = 0; i < SH_COUNT(maps); i++) {
        const char *name;
        json_t *one;
        if (strcmp(key, maps[i]) != 0) continue;
        if (!json_is_object(value)) wanted = "an object of schemas";
        json_object_foreach((json_t *)value, name, one) {
            if (!json_is_object(one) && !json_is_boolean(one)) wanted = "an object of schemas";
        }
    }
    for (size_t i = 0; i < SH_COUNT(lists); i++) {
        size_t k;
        const json_t *one;
        if (strcmp(key, lists[i]) != 0) continue;
        if (json_array_size(value) == 0) wanted = "an array of at least one schema";
        json_array_foreach(value, k, one) {
            if (!json_is_object(one) && !json_is_boolean(one)) wanted = "an array of schemas";
        }
    }
    for (size_t i = 0; i < SH_COUNT(counts); i++) {
        if (strcmp(key, counts[i]) == 0 &&
            !(json_is_number(value) && sh_json_is_integer(value) && json_number_value(value) >= 0)) {
            wanted = "a whole number, 0 or more";
        }
    }
    for (size_t i = 0; i < SH_COUNT(numbers); i++) {
        if (strcmp(key, numbers[i]) == 0 && !json_is_number(value)) wanted = "a number";
    }
    for (size_t i = 0; i < SH_COUNT(strings); i++) {
        if (strcmp(key, strings[i]) == 0 && !json_is_string(value)) wanted = "a string";
    }
    if (strcmp(key, "items") == 0) {
        size_t k;
        const json_t *one;
        if (!json_is_object(value) && !json_is_boolean(value) && !json_is_array(value))
            wanted = "a schema: an object, true or false";
        json_array_foreach(value, k, one) {
            if (!json_is_object(one) && !json_is_boolean(one)) wanted = "a schema, or an array of schemas";
        }
    }
    if (strcmp(key, "enum") == 0 && json_array_size(value) == 0) wanted = "an array of at least one value";
    if (strcmp(key, "multipleOf") == 0 && !(json_is_number(value) && json_number_value(value) > 0)) wanted = "a number above 0";
    if ((strcmp(key, "nullable") == 0 || strcmp(key, "uniqueItems") == 0) && !json_is_boolean(value)) wanted = "true or false";
    if (strcmp(key, "required") == 0) {
        size_t k;
        const json_t *one;
        if (!json_is_array(value)) wanted = "an array of names";
        json_array_foreach(value, k, one) {
            if (!json_is_string(one)) wanted = "an array of names";
        }
    }
    return wanted != NULL ? wrong(s, node, key, wanted) : SH_OK;
}

enum sh_code sh_schema_check(struct sh_schema *s, uint32_t node) {
    if (s->nodes[node].checked) return SH_OK;
    s->nodes[node].checked = true;
    const json_t *json = s->nodes[node].json;
    if (json_is_boolean(json)) return SH_OK;
    if (!json_is_object(json)) return sh_schema_fail(s, node, SH_ERR_INVALID, "expected a schema: an object, true or false");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)json, key, value) {
        const struct sh_keyword *known = sh_keywords;
        while (known->name != NULL && strcmp(known->name, key) != 0) known++;
        if (known->name == NULL || known->use == SH_KEYWORD_NO_EFFECT) continue;
        if (known->use == SH_KEYWORD_ENFORCED) {
            const enum sh_code code = check_value(s, node, key, value);
            if (code != SH_OK) return code;
            continue;
        }
        if ((strcmp(key, "$id") == 0 || strcmp(key, "$anchor") == 0) && node == 0)
            continue; /* a name for the whole, which nothing here refers to */
        return sh_schema_fail(s, node, SH_ERR_UNSUPPORTED, "\"%s\" is not enforced here; leave it out", key);
    }
    if (json_is_object(json_object_get(json, "unevaluatedProperties"))) {
        return sh_schema_fail(s, node, SH_ERR_UNSUPPORTED,
                              "\"unevaluatedProperties\" is not enforced here with a schema; write false, or leave it out");
    }
    return SH_OK;
}

/* ---- references --------------------------------------------------------------------------------------------------------- */

static int hex_of(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One part of a JSON pointer in a URI's fragment, decoded in place; returns what is behind it. */
static char *decode_part(char *at) {
    char *to = at;
    while (*at != 0 && *at != '/') {
        char c = *at++;
        if (c == '%' && hex_of(at[0]) >= 0 && hex_of(at[1]) >= 0) {
            c = (char)(hex_of(at[0]) * 16 + hex_of(at[1]));
            at += 2;
        }
        if (c == '~' && (*at == '0' || *at == '1')) c = *at++ == '0' ? '~' : '/';
        *to++ = c;
    }
    char *rest = *at == '/' ? at + 1 : NULL;
    *to = 0;
    return rest;
}

static enum sh_code resolve(struct sh_schema *s, uint32_t node, const char *ref, uint32_t *out) {
    if (strcmp(ref, "#") == 0) {
        *out = 0;
        return SH_OK;
    }
    if (strncmp(ref, "#/", 2) != 0) {
        return sh_schema_fail(s, node, SH_ERR_UNSUPPORTED,
                              "the reference \"%s\" does not begin with #/; only those into this schema are followed", ref);
    }
    char *parts = strdup(ref + 2);
    if (parts == NULL) return sh_schema_no_memory(s);
    const json_t *at = s->document;
    for (char *part = parts, *rest; part != NULL && at != NULL; part = rest) {
        rest = decode_part(part);
        if (json_is_object(at)) {
            at = json_object_get(at, part);
        } else if (json_is_array(at) && part[0] >= '0' && part[0] <= '9' && strspn(part, "0123456789") == strlen(part) &&
                   strlen(part) < 10) {
            at = json_array_get(at, strtoul(part, NULL, 10));
        } else {
            at = NULL;
        }
    }
    free(parts);
    if (at == NULL) return sh_schema_fail(s, node, SH_ERR_INVALID, "the reference \"%s\" leads nowhere", ref);
    return intern_node(s, at, strndup(ref, MAX_PATH), out);
}

/* ---- conjunctions ------------------------------------------------------------------------------------------------------- */

static int compare_u32(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t *rule_slot(const struct sh_schema *s, const struct sh_schema_list *list) {
    uint64_t h = list->n;
    for (uint32_t i = 0; i < list->n; i++) h = (h ^ list->items[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    uint32_t slot = (uint32_t)(h >> 16) & (s->n_rule_slots - 1);
    for (; s->rule_slots[slot] != FREE; slot = (slot + 1) & (s->n_rule_slots - 1)) {
        const struct sh_schema_list *have = &s->rules[s->rule_slots[slot]].nodes;
        if (have->n == list->n && memcmp(have->items, list->items, list->n * sizeof *list->items) == 0) break;
    }
    return &s->rule_slots[slot];
}

enum sh_code sh_schema_rule(struct sh_schema *s, struct sh_schema_list *list, bool may_be_never, sh_gr_expr *out) {
    uint32_t n = 0; /* `true` and {} say nothing */
    for (uint32_t i = 0; i < list->n; i++) {
        const json_t *json = s->nodes[list->items[i]].json;
        if (!json_is_true(json) && !(json_is_object(json) && json_object_size(json) == 0)) list->items[n++] = list->items[i];
    }
    list->n = n;
    if (n == 0) {
        free(list->items);
        *list = (struct sh_schema_list){0};
        if (s->any_value == SH_GR_NEVER) s->any_value = sh_gr_json_value(s->gr);
        *out = s->any_value;
        return SH_OK;
    }
    qsort(list->items, n, sizeof *list->items, compare_u32);
    if (s->n_rules * 2 >= s->n_rule_slots) {
        const uint32_t more = s->n_rule_slots > 0 ? s->n_rule_slots * 2 : 256;
        uint32_t *slots = new_slots(more);
        if (slots == NULL) return sh_schema_no_memory(s);
        free(s->rule_slots);
        s->rule_slots = slots;
        s->n_rule_slots = more;
        for (uint32_t i = 0; i < s->n_rules; i++) *rule_slot(s, &s->rules[i].nodes) = i;
    }
    uint32_t *slot = rule_slot(s, list);
    if (*slot == FREE) {
        if (s->n_rules >= SH_SCHEMA_MAX_RULES) {
            return sh_fail(s->err, SH_ERR_LIMIT, "the schema makes more than %d combinations of its parts", SH_SCHEMA_MAX_RULES);
        }
        if (!sh_grow((void **)&s->rules, &s->rules_capacity, s->n_rules + 1, sizeof *s->rules)) return sh_schema_no_memory(s);
        char name[200];
        snprintf(name, sizeof name, "schema %s", s->nodes[list->items[0]].path);
        s->rules[s->n_rules] = (struct sh_conjunction){*list, sh_gr_rule(s->gr, name), true};
        *slot = s->n_rules++;
    } else {
        free(list->items);
    }
    *list = (struct sh_schema_list){0};
    struct sh_conjunction *rule = &s->rules[*slot];
    rule->may_be_never &= may_be_never;
    if (rule->contradiction != NULL && !may_be_never) {
        return sh_schema_fail(s, rule->contradiction_node, SH_ERR_INVALID, "%s", rule->contradiction);
    }
    *out = sh_gr_ref(s->gr, rule->rule);
    return SH_OK;
}

/* ---- the alternatives of a conjunction ---------------------------------------------------------------------------------- */

struct shapes {
    struct sh_shape *items;
    uint32_t n, capacity;
};

static void shapes_free(struct shapes *shapes) {
    for (uint32_t i = 0; i < shapes->n; i++) sh_shape_finish(&shapes->items[i]);
    free(shapes->items);
}

struct expansion {                        /* a way through the alternatives, so far */
    struct sh_schema_list parts, parents; /* parents[i]: index in parts of what part i came from, UINT32_MAX: the conjunction */
    struct sh_schema_list choices; /* anyOf and oneOf still to be taken: node, 0 or 1 for oneOf, index of the part, in turns */
    uint32_t choices_taken;
    struct sh_schema_list taken; /* oneOf: node and number of the branch, in turns */
};

static void expansion_free(struct expansion *x) {
    free(x->parts.items);
    free(x->parents.items);
    free(x->choices.items);
    free(x->taken.items);
}

static bool append(struct sh_schema_list *list, uint32_t item) {
    if (!sh_grow((void **)&list->items, &list->capacity, list->n + 1, sizeof *list->items)) return false;
    list->items[list->n++] = item;
    return true;
}

static bool copy_list(struct sh_schema_list *to, const struct sh_schema_list *from) {
    *to = (struct sh_schema_list){0};
    for (uint32_t i = 0; i < from->n; i++) {
        if (!append(to, from->items[i])) return false;
    }
    return true;
}

/* The part comes from others by references alone, so that it knows of every member that is described. */
static bool sees_all(const struct sh_schema *s, const struct expansion *x, uint32_t part) {
    static const char *const others[] = {"properties", "patternProperties", "additionalProperties", "allOf", "anyOf", "oneOf"};
    for (uint32_t i = 0; i < part; i++) {
        for (size_t k = 0; k < SH_COUNT(others); k++) {
            if (json_object_get(s->nodes[x->parts.items[i]].json, others[k]) != NULL) return false;
        }
    }
    return true;
}

static enum sh_code too_many_steps(struct sh_schema *s, uint32_t node) {
    return sh_schema_fail(s, node, SH_ERR_LIMIT, "the schema's combinations and patterns take more than %d steps",
                          SH_SCHEMA_MAX_STEPS);
}

enum sh_code sh_schema_charge(struct sh_schema *s, uint32_t node, uint64_t work) {
    if (work / 8 >= SH_SCHEMA_MAX_STEPS) return too_many_steps(s, node);
    s->steps += (uint32_t)(work / 8) + 1;
    return s->steps > SH_SCHEMA_MAX_STEPS ? too_many_steps(s, node) : SH_OK;
}

/* Takes a schema, and all that applies together with it without a choice, into the expansion. *dead: it allows nothing. */
static enum sh_code take(struct sh_schema *s, struct expansion *x, uint32_t node, uint32_t parent, bool *dead, uint32_t depth) {
    if (++s->steps > SH_SCHEMA_MAX_STEPS) return too_many_steps(s, node);
    if (depth > SH_GR_MAX_DEPTH)
        return sh_schema_fail(s, node, SH_ERR_LIMIT, "more than %d references or allOf within each other", SH_GR_MAX_DEPTH);
    enum sh_code code = sh_schema_check(s, node);
    if (code != SH_OK) return code;
    const json_t *json = s->nodes[node].json;
    if (json_is_false(json)) *dead = true;
    if (json_is_boolean(json)) return SH_OK;
    for (uint32_t up = parent; up != FREE; up = x->parents.items[up]) {
        if (x->parts.items[up] == node) {
            return sh_schema_fail(s, node, SH_ERR_INVALID, "this schema refers to itself for the same value, which says nothing");
        }
    }
    for (uint32_t i = 0; i < x->parts.n; i++) {
        if (x->parts.items[i] == node) return SH_OK;
    }
    if (x->parts.n >= SH_SCHEMA_MAX_PARTS) {
        return sh_schema_fail(s, node, SH_ERR_LIMIT, "more than %d schemas for one value", SH_SCHEMA_MAX_PARTS);
    }
    const uint32_t self = x->parts.n;
    if (!append(&x->parts, node) || !append(&x->parents, parent)) return sh_schema_no_memory(s);
    if (json_is_false(json_object_get(json, "unevaluatedProperties")) && !sees_all(s, x, self)) {
        return sh_schema_fail(s, node, SH_ERR_UNSUPPORTED,
                              "\"unevaluatedProperties\" is not enforced here within allOf, anyOf or oneOf; write it outside");
    }
    const json_t *ref = json_object_get(json, "$ref");
    if (ref != NULL) {
        uint32_t to = 0;
        code = resolve(s, node, json_string_value(ref), &to);
        if (code == SH_OK) code = take(s, x, to, self, dead, depth + 1);
    }
    size_t i;
    const json_t *one;
    json_array_foreach(json_object_get(json, "allOf"), i, one) {
        uint32_t child = 0;
        if (code == SH_OK) code = sh_schema_child(s, node, one, "allOf", NULL, i, &child);
        if (code == SH_OK) code = take(s, x, child, self, dead, depth + 1);
    }
    for (uint32_t k = 0; code == SH_OK && k < 2; k++) {
        if (json_object_get(json, k == 0 ? "anyOf" : "oneOf") == NULL) continue;
        if (!append(&x->choices, node) || !append(&x->choices, k) || !append(&x->choices, self)) code = sh_schema_no_memory(s);
    }
    return code;
}

static enum sh_code expand(struct sh_schema *s, const struct expansion *x, struct shapes *out);

/* Each branch of the next choice. */
static enum sh_code expand_choice(struct sh_schema *s, const struct expansion *x, struct shapes *out) {
    const uint32_t *choice = &x->choices.items[x->choices_taken * 3];
    const char *key = choice[1] == 0 ? "anyOf" : "oneOf";
    enum sh_code code = SH_OK;
    size_t i;
    const json_t *branch;
    json_array_foreach(json_object_get(s->nodes[choice[0]].json, key), i, branch) {
        struct expansion next = {.choices_taken = x->choices_taken + 1};
        uint32_t node = 0;
        bool dead = false;
        if (!copy_list(&next.parts, &x->parts) || !copy_list(&next.parents, &x->parents) ||
            !copy_list(&next.choices, &x->choices) || !copy_list(&next.taken, &x->taken) ||
            (choice[1] != 0 && (!append(&next.taken, choice[0]) || !append(&next.taken, (uint32_t)i)))) {
            code = sh_schema_no_memory(s);
        }
        if (code == SH_OK) code = sh_schema_child(s, choice[0], branch, key, NULL, i, &node);
        if (code == SH_OK) code = take(s, &next, node, choice[2], &dead, 0);
        if (code == SH_OK && !dead) code = expand(s, &next, out);
        expansion_free(&next);
        if (code != SH_OK) break;
    }
    return code;
}

static enum sh_code expand(struct sh_schema *s, const struct expansion *x, struct shapes *out) {
    if (x->choices_taken * 3 < x->choices.n) return expand_choice(s, x, out);
    if (out->n >= SH_SCHEMA_MAX_SHAPES) {
        return sh_schema_fail(s, x->parts.items[0], SH_ERR_LIMIT, "anyOf and oneOf together make more than %d alternatives",
                              SH_SCHEMA_MAX_SHAPES);
    }
    if (!sh_grow((void **)&out->items, &out->capacity, out->n + 1, sizeof *out->items)) return sh_schema_no_memory(s);
    const enum sh_code code = sh_shape_gather(s, &x->parts, &out->items[out->n]);
    if (code != SH_OK) return code;
    return copy_list(&out->items[out->n++].taken, &x->taken) ? SH_OK : sh_schema_no_memory(s);
}

static enum sh_code shapes_of(struct sh_schema *s, const uint32_t *nodes, uint32_t n, struct shapes *out) {
    struct expansion x = {0};
    bool dead = false;
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; code == SH_OK && i < n; i++) {
        code = take(s, &x, nodes[i], FREE, &dead, 0);
        for (uint32_t k = 0; code == SH_OK && i > 0 && k < x.parts.n; k++) {
            if (!json_is_false(json_object_get(s->nodes[x.parts.items[k]].json, "unevaluatedProperties"))) continue;
            code = sh_schema_fail(s, x.parts.items[k], SH_ERR_UNSUPPORTED,
                                  "\"unevaluatedProperties\" is not enforced here beside another schema for the same value");
        }
    }
    if (code == SH_OK && !dead) code = expand(s, &x, out);
    expansion_free(&x);
    return code;
}

enum sh_code sh_schema_values(struct sh_schema *s, const struct sh_schema_list *list, const json_t **values, uint32_t most,
                              uint32_t *n) {
    struct shapes shapes = {0};
    enum sh_code code = shapes_of(s, list->items, list->n, &shapes);
    bool listed = true;
    *n = 0;
    for (uint32_t i = 0; code == SH_OK && listed && i < shapes.n; i++) {
        const struct sh_shape *shape = &shapes.items[i];
        if (shape->types == 0) continue;
        listed = shape->has_enum; /* also of one that nothing is generated for */
        for (uint32_t k = 0; listed && k < shape->n_values; k++) {
            uint32_t same = 0;
            while (same < *n && !sh_json_equal(values[same], shape->values[k])) same++;
            if (same < *n) continue;
            listed = *n < most;
            if (listed) values[(*n)++] = shape->values[k];
        }
    }
    if (!listed) *n = 0;
    shapes_free(&shapes);
    return code;
}

/* oneOf is taken as anyOf, so shapes that took different branches of one must exclude each other. */
static enum sh_code check_one_of(struct sh_schema *s, const struct sh_shape *a, const struct sh_shape *b) {
    for (uint32_t i = 0; i < a->taken.n; i += 2) {
        for (uint32_t k = 0; k < b->taken.n; k += 2) {
            const uint32_t node = a->taken.items[i], first = a->taken.items[i + 1], second = b->taken.items[k + 1];
            if (node != b->taken.items[k] || first == second || sh_shape_apart(s, a, b)) continue;
            if (s->steps > SH_SCHEMA_MAX_STEPS) return too_many_steps(s, node);
            return sh_schema_fail(
                s, node, SH_ERR_UNSUPPORTED,
                "\"oneOf\": a value may satisfy branches %u and %u at once, which is not excluded here; use anyOf, or tell "
                "them apart by type or by a required constant",
                (unsigned)(first < second ? first : second), (unsigned)(first < second ? second : first));
        }
    }
    return SH_OK;
}

static enum sh_code write_rule(struct sh_schema *s, uint32_t number) {
    struct shapes shapes = {0};
    struct sh_schema_list nodes;
    if (!copy_list(&nodes, &s->rules[number].nodes)) return sh_schema_no_memory(s);
    enum sh_code code = shapes_of(s, nodes.items, nodes.n, &shapes);
    sh_gr_expr *items = sh_calloc((uint64_t)shapes.n + 1, sizeof *items);
    uint32_t n = 0;
    const struct sh_shape *contradiction = NULL;
    if (code == SH_OK && items == NULL) code = sh_schema_no_memory(s);
    for (uint32_t i = 0; code == SH_OK && i < shapes.n; i++) {
        struct sh_shape *shape = &shapes.items[i];
        if (shape->contradiction == NULL) code = sh_shape_expr(s, shape, &items[n]);
        if (shape->contradiction == NULL) n++;
        else if (contradiction == NULL) contradiction = shape;
        for (uint32_t k = 0; code == SH_OK && shape->contradiction == NULL && k < shapes.n; k++) {
            if (k != i) code = check_one_of(s, shape, &shapes.items[k]);
        }
    }
    if (code == SH_OK && n == 0 && contradiction != NULL && s->rules[number].may_be_never) {
        s->rules[number].contradiction = contradiction->contradiction;
        s->rules[number].contradiction_node = contradiction->contradiction_node;
    } else if (code == SH_OK && n == 0 && contradiction != NULL) {
        code = sh_schema_fail(s, contradiction->contradiction_node, SH_ERR_INVALID, "%s", contradiction->contradiction);
    }
    if (code == SH_OK) sh_gr_set_rule(s->gr, s->rules[number].rule, sh_gr_choice(s->gr, items, n));
    free(items);
    free(nodes.items);
    shapes_free(&shapes);
    return code;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------ */

static bool too_deep(const json_t *json, uint32_t depth) {
    if (depth > SH_GR_MAX_DEPTH) return true;
    const char *key;
    json_t *value;
    size_t i;
    json_object_foreach((json_t *)json, key, value) {
        if (too_deep(value, depth + 1)) return true;
    }
    json_array_foreach(json, i, value) {
        if (too_deep(value, depth + 1)) return true;
    }
    return false;
}

enum sh_code sh_gr_schema(struct sh_gr *gr, const char *schema, size_t length, sh_gr_expr *out, struct sh_error *err) {
    if (length > SH_GR_MAX_TEXT)
        return sh_fail(err, SH_ERR_LIMIT, "the schema has %zu bytes, at most %d are allowed", length, SH_GR_MAX_TEXT);
    json_error_t why;
    struct sh_schema s = {
        .gr = gr, .err = err, .document = json_loadb(schema, length, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &why)};
    if (s.document == NULL) {
        return sh_fail(err, SH_ERR_INVALID, "the schema is no JSON: %s in line %d, column %d", why.text, why.line, why.column);
    }
    s.int32[0] = json_integer(INT32_MIN);
    s.int32[1] = json_integer(INT32_MAX);
    uint32_t root;
    enum sh_code code = s.int32[0] == NULL || s.int32[1] == NULL ? sh_schema_no_memory(&s)
                        : too_deep(s.document, 0)
                            ? sh_fail(err, SH_ERR_LIMIT, "the schema is nested more than %d deep", SH_GR_MAX_DEPTH)
                            : intern_node(&s, s.document, strdup("#"), &root);
    struct sh_schema_list list = {0};
    if (code == SH_OK) code = sh_schema_check(&s, root);
    if (code == SH_OK && json_is_false(s.document))
        code = sh_schema_fail(&s, root, SH_ERR_INVALID, "the schema `false` allows no value");
    if (code == SH_OK && !append(&list, root)) code = sh_schema_no_memory(&s);
    if (code == SH_OK) code = sh_schema_rule(&s, &list, false, out);
    for (uint32_t i = 0; code == SH_OK && i < s.n_rules; i++) code = write_rule(&s, i);
    free(list.items);
    for (uint32_t i = 0; i < s.n_rules; i++) free(s.rules[i].nodes.items);
    free(s.rules);
    free(s.rule_slots);
    for (uint32_t i = 0; i < s.n_nodes; i++) free(s.nodes[i].path);
    free(s.nodes);
    free(s.slots);
    for (uint32_t i = 0; i < s.n_patterns; i++) sh_dfa_free(s.patterns[i].dfa);
    json_decref(s.int32[0]);
    json_decref(s.int32[1]);
    json_decref(s.document);
    return code;
}
