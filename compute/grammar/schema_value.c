/*
 * schema_value.c - a shape as an expression: the values of an enumeration, or each type that is generated.
 *
 * Members come in the order in which the schemas name them, optional ones may be left out; then the others, whose names are written
 * without escapes. A member's name could otherwise be told only after the whole object was read.
 */
#include "compute/grammar/schema.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_NAME_CLASSES = 64 }; /* of extra names, by the patterns that they match */

static const json_t *json_of(const struct sh_schema *s, uint32_t node) { return s->nodes[node].json; }
static sh_gr_expr text(struct sh_gr *gr, const char *bytes) { return sh_gr_text(gr, bytes, strlen(bytes)); }

static sh_gr_expr quoted(struct sh_gr *gr, const char *bytes, size_t length) {
    const sh_gr_expr quote = text(gr, "\"");
    return sh_gr_sequence(gr, (const sh_gr_expr[]){quote, sh_json_plain_text(gr, bytes, length, true), quote}, 3);
}

/* Nothing of this type is generated; a contradiction where no other is left. */
static void drop(struct sh_shape *shape, unsigned types, uint32_t node, const char *why) {
    shape->generated &= ~types;
    if (shape->generated != 0 || shape->contradiction != NULL) return;
    shape->contradiction = why;
    shape->contradiction_node = node;
}

/* ---- listed values ------------------------------------------------------------------------------------------------------------ */

static sh_gr_expr constant(struct sh_gr *gr, const json_t *value) {
    char number[40];
    sh_gr_expr all = SH_GR_EMPTY;
    switch (json_typeof(value)) {
    case JSON_NULL: return text(gr, "null");
    case JSON_TRUE: return text(gr, "true");
    case JSON_FALSE: return text(gr, "false");
    case JSON_INTEGER: snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value)); return text(gr, number);
    case JSON_REAL:
        for (int precision = 15; precision <= 17; precision++) { /* the shortest that is this number */
            snprintf(number, sizeof number, "%.*g", precision, json_real_value(value));
            if (strtod(number, NULL) == json_real_value(value)) break;
        }
        return text(gr, number);
    case JSON_STRING: return quoted(gr, json_string_value(value), json_string_length(value));
    case JSON_ARRAY:
        for (size_t i = json_array_size(value); i-- > 0;) {
            const sh_gr_expr item = constant(gr, json_array_get(value, i));
            all = sh_gr_pair(gr, i > 0 ? sh_json_next(gr, item) : item, all);
        }
        return json_array_size(value) > 0 ? sh_json_list(gr, "[", all, "]", false) : text(gr, "[]");
    case JSON_OBJECT: {
        const char *key;
        json_t *member;
        json_object_foreach((json_t *)value, key, member) {
            const sh_gr_expr item = sh_json_member(gr, quoted(gr, key, strlen(key)), constant(gr, member));
            all = sh_gr_pair(gr, all, all != SH_GR_EMPTY ? sh_json_next(gr, item) : item);
        }
        return json_object_size(value) > 0 ? sh_json_list(gr, "{", all, "}", false) : text(gr, "{}");
    }
    }
    return SH_GR_NEVER;
}

static enum sh_code write_values(struct sh_schema *s, const struct sh_shape *shape, sh_gr_expr *out) {
    sh_gr_expr *items = sh_calloc((uint64_t)shape->n_values + 1, sizeof *items);
    if (items == NULL) return sh_schema_no_memory(s);
    uint32_t n = 0;
    for (uint32_t i = 0; i < shape->n_values; i++) {
        const bool fraction = json_is_real(shape->values[i]) && !sh_json_is_integer(shape->values[i]);
        if (!fraction || !shape->whole) items[n++] = constant(s->gr, shape->values[i]);
    }
    *out = sh_gr_choice(s->gr, items, n);
    free(items);
    return SH_OK;
}

/* ---- strings -------------------------------------------------------------------------------------------------------------------- */

/* One pattern or format and no lengths: as it is written, so that counts stay counts. */
static enum sh_code write_one_pattern(struct sh_schema *s, uint32_t node, const char *pattern, bool search, sh_gr_expr *out) {
    struct sh_error why = {0};
    struct sh_rx *rx = NULL;
    enum sh_code code = sh_rx_parse(pattern, strlen(pattern), &rx, &why);
    const uint64_t work = code == SH_OK ? sh_rx_work(rx) : 0;
    if (code == SH_OK) code = sh_rx_expr(s->gr, rx, true, search, out, &why);
    sh_rx_free(rx);
    return code == SH_OK ? sh_schema_charge(s, node, work * 8) : sh_schema_fail(s, node, code, "%s", why.message);
}

static enum sh_code write_string(struct sh_schema *s, struct sh_shape *shape, sh_gr_expr *out) {
    uint32_t conditions = 0, node = 0;
    const char *pattern = NULL, *within = NULL;
    bool search = false;
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const json_t *json = json_of(s, shape->parts.items[i]);
        const json_t *own = json_object_get(json, "pattern"), *format = json_object_get(json, "format");
        if (format != NULL && sh_string_format(json_string_value(format)) == NULL) format = NULL; /* one of numbers */
        if (own == NULL && format == NULL) continue;
        node = shape->parts.items[i];
        conditions += (own != NULL) + (format != NULL);
        search = own != NULL;
        pattern = own != NULL ? json_string_value(own) : sh_string_format(json_string_value(format));
        if (own == NULL) within = sh_string_format_within(json_string_value(format), shape->min_length, shape->max_length);
    }
    bool lengths = shape->min_length > 0 || shape->max_length != SH_GR_UNLIMITED;
    if (lengths && conditions == 1 && within != NULL) {
        pattern = within;
        lengths = false;
    }
    sh_gr_expr inside = SH_GR_NEVER;
    if (conditions == 0) {
        *out = sh_json_string(s->gr, shape->min_length, shape->max_length);
        return SH_OK;
    }
    enum sh_code code = SH_OK;
    if (conditions == 1 && !lengths && pattern != NULL) {
        code = write_one_pattern(s, node, pattern, search, &inside);
    } else {
        struct sh_dfa *dfa = NULL;
        code = sh_shape_string(s, shape, &dfa);
        if (code == SH_OK && sh_dfa_is_empty(dfa))
            drop(shape, SH_TYPE_STRING, node, "no string satisfies its patterns, formats and lengths together");
        if (code == SH_OK) code = sh_dfa_expr(s->gr, dfa, true, &inside, s->err);
        sh_dfa_free(dfa);
    }
    const sh_gr_expr quote = text(s->gr, "\"");
    *out = sh_gr_sequence(s->gr, (const sh_gr_expr[]){quote, inside, quote}, 3);
    return code;
}

/* ---- arrays --------------------------------------------------------------------------------------------------------------------- */

/* The schema that a part has for the item at this place; NULL: none. */
static const json_t *item_at(const json_t *json, size_t place, const char **key, size_t *index) {
    const json_t *items = json_object_get(json, "items"), *prefix = json_object_get(json, "prefixItems");
    *key = "prefixItems";
    *index = place;
    if (prefix == NULL && json_is_array(items)) { /* as it was written before 2020 */
        prefix = items;
        *key = "items";
        items = json_object_get(json, "additionalItems");
    }
    if (place < json_array_size(prefix)) return json_array_get(prefix, place);
    *key = strcmp(*key, "items") == 0 ? "additionalItems" : "items";
    *index = SIZE_MAX;
    return json_is_array(items) ? NULL : items;
}

static enum sh_code write_item(struct sh_schema *s, const struct sh_shape *shape, size_t place, sh_gr_expr *out, bool *none) {
    struct sh_schema_list list = {0};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; code == SH_OK && i < shape->parts.n; i++) {
        const char *key;
        size_t index;
        uint32_t child = 0;
        const json_t *schema = item_at(json_of(s, shape->parts.items[i]), place, &key, &index);
        if (schema == NULL) continue;
        code = sh_schema_child(s, shape->parts.items[i], schema, key, NULL, index, &child);
        if (code == SH_OK && !sh_schema_add(&list, child)) code = sh_schema_no_memory(s);
    }
    *none = sh_schema_is_false(s, &list);
    *out = SH_GR_NEVER;
    if (code == SH_OK && !*none) code = sh_schema_rule(s, &list, false, out);
    free(list.items);
    return code;
}

enum { MAX_UNIQUE = 10 }; /* values of items that must differ: each set of them is a rule */

static bool is_unique(const struct sh_schema *s, const struct sh_shape *shape, uint32_t *node) {
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        *node = shape->parts.items[i];
        if (json_is_true(json_object_get(json_of(s, *node), "uniqueItems"))) return true;
    }
    return false;
}

/* Items that must differ, and are listed: rule m is what may come when those in the set m were there. */
static enum sh_code write_unique(struct sh_schema *s, struct sh_shape *shape, uint32_t node, sh_gr_expr *out) {
    const json_t *values[MAX_UNIQUE];
    struct sh_schema_list list = {0};
    uint32_t n = 0, rules[1 << MAX_UNIQUE];
    bool prefix = false;
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; code == SH_OK && i < shape->parts.n; i++) {
        const json_t *json = json_of(s, shape->parts.items[i]), *items = json_object_get(json, "items");
        uint32_t child = 0;
        prefix |= json_object_get(json, "prefixItems") != NULL || json_is_array(items);
        if (items == NULL || json_is_array(items)) continue;
        code = sh_schema_child(s, shape->parts.items[i], items, "items", NULL, SIZE_MAX, &child);
        if (code == SH_OK && !sh_schema_add(&list, child)) code = sh_schema_no_memory(s);
    }
    if (code == SH_OK && !prefix && list.n > 0) code = sh_schema_values(s, &list, values, MAX_UNIQUE, &n);
    free(list.items);
    if (code == SH_OK && n == 0) {
        code = sh_schema_fail(s, node, SH_ERR_UNSUPPORTED,
                              "\"uniqueItems\" is enforced only where \"items\" lists at most %d values with enum; leave it out",
                              MAX_UNIQUE);
    }
    *out = SH_GR_NEVER;
    if (code == SH_OK && n < shape->min_items)
        drop(shape, SH_TYPE_ARRAY, node, "\"minItems\" asks for more different items than there are");
    if (code != SH_OK || n < shape->min_items) return code;
    for (uint32_t m = 0; m < 1u << n; m++) rules[m] = sh_gr_rule(s->gr, "different items");
    for (uint32_t m = 0; m < 1u << n; m++) {
        const uint32_t count = (uint32_t)__builtin_popcount(m);
        sh_gr_expr items[MAX_UNIQUE + 1];
        uint32_t n_items = 0;
        for (uint32_t i = 0; i < n && count < shape->max_items; i++) {
            if (m >> i & 1) continue;
            const sh_gr_expr value = constant(s->gr, values[i]);
            items[n_items++] =
                sh_gr_pair(s->gr, m != 0 ? sh_json_next(s->gr, value) : value, sh_gr_ref(s->gr, rules[m | 1u << i]));
        }
        if (m != 0 && count >= shape->min_items) items[n_items++] = SH_GR_EMPTY;
        sh_gr_set_rule(s->gr, rules[m], sh_gr_choice(s->gr, items, n_items));
    }
    *out = sh_json_list(s->gr, "[", sh_gr_ref(s->gr, rules[0]), "]", shape->min_items == 0);
    return SH_OK;
}

static enum sh_code write_array(struct sh_schema *s, struct sh_shape *shape, sh_gr_expr *out) {
    size_t n = 0;
    bool rest = false; /* something is said about items behind the prefix */
    uint32_t node = shape->parts.items[0], min = shape->min_items, max = shape->max_items;
    if (max > 1 && is_unique(s, shape, &node)) return write_unique(s, shape, node, out);
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const json_t *json = json_of(s, shape->parts.items[i]), *items = json_object_get(json, "items");
        const json_t *prefix = json_object_get(json, "prefixItems");
        if (prefix == NULL && json_is_array(items)) prefix = items, items = json_object_get(json, "additionalItems");
        if (json_array_size(prefix) > n) n = json_array_size(prefix);
        if (items != NULL && !json_is_array(items)) rest = true;
        if (items != NULL || prefix != NULL) node = shape->parts.items[i];
    }
    sh_gr_expr *places = sh_calloc((uint64_t)n + 1, sizeof *places);
    enum sh_code code = places != NULL ? SH_OK : sh_schema_no_memory(s);
    for (size_t i = 0; code == SH_OK && i <= n; i++) {
        bool none;
        code = write_item(s, shape, i, &places[i], &none);
        if (none && i < max) max = (uint32_t)i;
    }
    if (n > 0 && !rest && n < max) max = (uint32_t)n > min ? (uint32_t)n : min;
    if (code == SH_OK && min > max) drop(shape, SH_TYPE_ARRAY, node, "the array must have more items than are allowed");
    *out = SH_GR_NEVER;
    if (code == SH_OK && min <= max && max == 0) {
        *out = text(s->gr, "[]");
    } else if (code == SH_OK && min <= max) {
        if (n > max) n = max;
        sh_gr_expr all = SH_GR_EMPTY;
        const uint32_t fixed = (uint32_t)n;
        if (max > fixed) {
            const uint32_t more = max == SH_GR_UNLIMITED ? max : max - fixed, least = min > fixed ? min - fixed : 0;
            const sh_gr_expr next = sh_json_next(s->gr, places[n]);
            if (fixed > 0) all = sh_gr_repeat(s->gr, next, least, more);
            else
                all = sh_gr_pair(s->gr, places[0],
                                 sh_gr_repeat(s->gr, next, least > 1 ? least - 1 : 0, more == SH_GR_UNLIMITED ? more : more - 1));
        }
        for (uint32_t i = fixed; i-- > 0;) {
            all = sh_gr_pair(s->gr, i > 0 ? sh_json_next(s->gr, places[i]) : places[i], all);
            if (i > 0 && i >= min) all = sh_gr_optional(s->gr, all);
        }
        *out = sh_json_list(s->gr, "[", all, "]", min == 0);
    }
    free(places);
    return code;
}

/* ---- objects -------------------------------------------------------------------------------------------------------------------- */

struct member {
    const char *name;
    sh_gr_expr expr;
    bool required;
};
struct members {
    struct member *items;
    uint32_t n, capacity, n_required;
    json_t *names, *required; /* sets */
};

static enum sh_code add_member(struct sh_schema *s, struct sh_shape *shape, struct members *all, const char *name,
                               uint32_t node) {
    if (json_object_get(all->names, name) != NULL) return SH_OK;
    if (json_object_set_new(all->names, name, json_true()) != 0) return sh_schema_no_memory(s);
    struct member m = {name, SH_GR_NEVER, json_object_get(all->required, name) != NULL};
    struct sh_schema_list list = {0};
    bool forbidden = false;
    enum sh_code code = sh_shape_member(s, shape, name, &list, &forbidden);
    if (code == SH_OK && !forbidden) {
        sh_gr_expr value;
        code = sh_schema_rule(s, &list, false, &value);
        if (code == SH_OK) m.expr = sh_json_member(s->gr, quoted(s->gr, name, strlen(name)), value);
        if (code == SH_OK && !sh_grow((void **)&all->items, &all->capacity, all->n + 1, sizeof *all->items))
            code = sh_schema_no_memory(s);
        if (code == SH_OK) all->items[all->n++] = m, all->n_required += m.required;
    } else if (code == SH_OK && m.required) {
        drop(shape, SH_TYPE_OBJECT, node, "a name in \"required\" is not allowed by the rest of the schema");
    }
    free(list.items);
    return code;
}

static enum sh_code gather_members(struct sh_schema *s, struct sh_shape *shape, struct members *all) {
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const json_t *list = json_object_get(json_of(s, shape->parts.items[i]), "required");
        for (size_t k = 0; k < json_array_size(list); k++) {
            if (json_object_set_new(all->required, json_string_value(json_array_get(list, k)), json_true()) != 0)
                return sh_schema_no_memory(s);
        }
    }
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const char *name;
        json_t *schema;
        json_object_foreach((json_t *)json_object_get(json_of(s, shape->parts.items[i]), "properties"), name, schema) {
            if (code == SH_OK) code = add_member(s, shape, all, name, shape->parts.items[i]);
        }
    }
    for (uint32_t i = 0; i < shape->parts.n; i++) { /* required and described nowhere */
        const json_t *list = json_object_get(json_of(s, shape->parts.items[i]), "required");
        for (size_t k = 0; code == SH_OK && k < json_array_size(list); k++) {
            code = add_member(s, shape, all, json_string_value(json_array_get(list, k)), shape->parts.items[i]);
        }
    }
    return code;
}

struct extras {
    struct sh_schema *s;
    const struct sh_shape *shape;
    const struct sh_name_pattern *patterns[SH_SCHEMA_MAX_PATTERNS];
    bool matched[SH_SCHEMA_MAX_PATTERNS];
    uint32_t n_patterns;
    sh_gr_expr items[MAX_NAME_CLASSES];
    uint32_t n_items;
};

/* Names that match these patterns and no others. */
static enum sh_code write_extra_class(struct extras *x, const struct sh_dfa *names) {
    struct sh_schema *s = x->s;
    struct sh_schema_list list = {0};
    enum sh_code code = SH_OK;
    bool evaluated = false, closed = false;
    for (uint32_t i = 0; code == SH_OK && i < x->shape->parts.n; i++) {
        const uint32_t node = x->shape->parts.items[i];
        const json_t *more = json_object_get(json_of(s, node), "additionalProperties");
        bool matched = false;
        for (uint32_t k = 0; code == SH_OK && k < x->n_patterns; k++) {
            if (x->patterns[k]->parent != node || !x->matched[k]) continue;
            matched = true;
            if (!sh_schema_add(&list, x->patterns[k]->node)) code = sh_schema_no_memory(s);
        }
        uint32_t child = 0;
        if (code == SH_OK && !matched && more != NULL) {
            code = sh_schema_child(s, node, more, "additionalProperties", NULL, SIZE_MAX, &child);
            if (code == SH_OK && !sh_schema_add(&list, child)) code = sh_schema_no_memory(s);
        }
        evaluated |= matched || more != NULL;
        closed |= json_is_false(json_object_get(json_of(s, node), "unevaluatedProperties"));
    }
    /* Without patterns sh_shape_has_extras has decided; with them what matches none is generated only where it is asked for. */
    const bool none = sh_schema_is_false(s, &list) || (!evaluated && (closed || x->n_patterns > 0));
    if (code == SH_OK && !none) {
        if (x->n_items == MAX_NAME_CLASSES) {
            code = sh_schema_fail(s, x->shape->parts.items[0], SH_ERR_LIMIT,
                                  "\"patternProperties\" tell more than %d kinds of names apart", MAX_NAME_CLASSES);
        }
        sh_gr_expr name = SH_GR_NEVER, value = SH_GR_NEVER;
        const sh_gr_expr quote = text(s->gr, "\"");
        if (code == SH_OK) code = sh_dfa_expr(s->gr, names, false, &name, s->err);
        if (code == SH_OK) code = sh_schema_rule(s, &list, true, &value);
        if (code == SH_OK) {
            x->items[x->n_items++] =
                sh_json_member(s->gr, sh_gr_sequence(s->gr, (const sh_gr_expr[]){quote, name, quote}, 3), value);
        }
    }
    free(list.items);
    return code;
}

static enum sh_code split_names(struct extras *x, const struct sh_dfa *names, uint32_t pattern) {
    if (sh_dfa_is_empty(names)) return SH_OK;
    if (pattern == x->n_patterns) return write_extra_class(x, names);
    enum sh_code code = SH_OK;
    for (int in = 0; code == SH_OK && in < 2; in++) {
        struct sh_dfa *part = NULL;
        code = sh_dfa_copy(names, &part, x->s->err);
        if (code == SH_OK) code = (in ? sh_dfa_intersect : sh_dfa_subtract)(&part, x->patterns[pattern]->dfa, x->s->err);
        if (code == SH_OK) code = sh_schema_charge(x->s, x->shape->parts.items[0], sh_dfa_work(part) - sh_dfa_work(names));
        x->matched[pattern] = in;
        if (code == SH_OK) code = split_names(x, part, pattern + 1);
        sh_dfa_free(part);
    }
    return code;
}

/* A member of any name but those in `members`; NEVER: there are none. */
static enum sh_code write_extra(struct sh_schema *s, const struct sh_shape *shape, const struct members *members,
                                sh_gr_expr *out) {
    *out = SH_GR_NEVER;
    if (!sh_shape_has_extras(s, shape)) return SH_OK;
    struct extras x = {.s = s, .shape = shape};
    struct sh_dfa *names = NULL, *declared = NULL;
    struct sh_text *texts = NULL;
    uint32_t n = 0;
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; code == SH_OK && i < shape->parts.n; i++) {
        const char *pattern;
        json_t *schema;
        json_object_foreach((json_t *)json_object_get(json_of(s, shape->parts.items[i]), "patternProperties"), pattern, schema) {
            const struct sh_name_pattern *known = NULL;
            if (code == SH_OK) code = sh_schema_name_pattern(s, shape->parts.items[i], pattern, schema, &known);
            if (code == SH_OK) x.patterns[x.n_patterns++] = known;
        }
    }
    if (code == SH_OK) {
        static const char plain[] = "[^\"\\\\\\u0000-\\u001f]*"; /* what stands in JSON as it is */
        struct sh_rx *rx = NULL;
        code = sh_rx_parse(plain, sizeof plain - 1, &rx, s->err);
        if (code == SH_OK) code = sh_dfa_from_rx(rx, false, &names, s->err);
        sh_rx_free(rx);
    }
    if (code == SH_OK && json_object_size(members->names) > 0) {
        texts = sh_calloc(json_object_size(members->names), sizeof *texts);
        if (texts == NULL) code = sh_schema_no_memory(s);
        const char *name;
        json_t *unused;
        json_object_foreach(members->names, name, unused) {
            if (texts != NULL) texts[n++] = (struct sh_text){name, strlen(name)};
        }
        if (code == SH_OK) code = sh_dfa_from_texts(texts, n, &declared, s->err);
        if (code == SH_OK) code = sh_dfa_subtract(&names, declared, s->err);
    }
    for (uint32_t i = 0; code == SH_OK && i < shape->parts.n; i++) {
        const struct sh_dfa *allowed = NULL;
        code = sh_schema_names(s, shape->parts.items[i], &allowed);
        if (code == SH_OK && allowed != NULL) code = sh_dfa_intersect(&names, allowed, s->err);
    }
    if (code == SH_OK) code = split_names(&x, names, 0);
    if (code == SH_OK) *out = sh_gr_choice(s->gr, x.items, x.n_items);
    sh_dfa_free(names);
    sh_dfa_free(declared);
    free(texts);
    return code;
}

/* The members from `i` on, in order, when `count` of those before are there, which `after` one of them makes begin with a comma.
 * Extra names may repeat, and readers keep the last: however many there are, only one of them counts for minProperties. */
static enum sh_code write_members(struct sh_schema *s, struct sh_shape *shape, const struct members *m, sh_gr_expr extra,
                                  sh_gr_expr *out, bool *may_be_empty) {
    const uint32_t min = shape->min_properties, max = shape->max_properties;
    const bool counted =
        min > m->n_required || max < m->n + (extra != SH_GR_NEVER) || (extra != SH_GR_NEVER && max != SH_GR_UNLIMITED);
    const uint32_t width = counted ? m->n + 1 : 1;
    if ((uint64_t)width * (m->n + 1) > SH_GR_MAX_EXPRESSIONS) {
        return sh_schema_fail(s, shape->parts.items[0], SH_ERR_LIMIT,
                              "too many members for \"minProperties\" or \"maxProperties\"");
    }
    sh_gr_expr *after = sh_calloc((uint64_t)width * 2, sizeof *after), *before = after != NULL ? after + width : NULL;
    if (after == NULL) return sh_schema_no_memory(s);
    const sh_gr_expr next_extra = extra != SH_GR_NEVER ? sh_json_next(s->gr, extra) : SH_GR_NEVER;
    sh_gr_expr first = SH_GR_NEVER; /* what there is when nothing stands before it */
    *may_be_empty = min == 0;
    for (uint32_t c = 0; c < width; c++) {
        const uint32_t count = counted ? c : min;
        const uint32_t room = max == SH_GR_UNLIMITED ? max : count > max ? 0 : max - count;
        after[c] = SH_GR_NEVER;
        if (counted && (count > max || count + 1 < min)) continue;
        after[c] = sh_gr_repeat(s->gr, next_extra, count < min ? 1 : 0, extra == SH_GR_NEVER ? (count < min ? 1 : 0) : room);
    }
    if (extra != SH_GR_NEVER && min <= 1 && max > 0) {
        first = sh_gr_pair(s->gr, extra, sh_gr_repeat(s->gr, next_extra, 0, max == SH_GR_UNLIMITED ? max : max - 1));
    }
    for (uint32_t i = m->n; i-- > 0;) {
        const struct member *member = &m->items[i];
        memcpy(before, after, width * sizeof *after);
        const sh_gr_expr with = sh_gr_pair(s->gr, member->expr, before[counted ? 1 : 0]);
        if (member->required) first = with, *may_be_empty = false;
        else first = sh_gr_choice(s->gr, (const sh_gr_expr[]){with, first}, 2);
        const sh_gr_expr next = sh_json_next(s->gr, member->expr);
        for (uint32_t c = 0; c < width; c++) {
            const sh_gr_expr taken = sh_gr_pair(s->gr, next, !counted ? before[0] : c + 1 < width ? before[c + 1] : SH_GR_NEVER);
            after[c] = member->required ? taken : sh_gr_choice(s->gr, (const sh_gr_expr[]){taken, before[c]}, 2);
        }
    }
    *out = first;
    free(after);
    return SH_OK;
}

static enum sh_code write_object(struct sh_schema *s, struct sh_shape *shape, sh_gr_expr *out) {
    struct members members = {.names = json_object(), .required = json_object()};
    enum sh_code code = members.names != NULL && members.required != NULL ? SH_OK : sh_schema_no_memory(s);
    const uint32_t node = shape->parts.items[0];
    sh_gr_expr extra = SH_GR_NEVER, all = SH_GR_NEVER;
    bool may_be_empty = false;
    if (code == SH_OK) code = gather_members(s, shape, &members);
    if (code == SH_OK) code = write_extra(s, shape, &members, &extra);
    if (code == SH_OK && members.n_required > shape->max_properties)
        drop(shape, SH_TYPE_OBJECT, node, "more names are required than \"maxProperties\" allows");
    if (code == SH_OK && shape->min_properties > members.n && extra == SH_GR_NEVER) {
        drop(shape, SH_TYPE_OBJECT, node,
             "\"minProperties\" asks for more members than are generated; list them in \"properties\"");
    }
    if (code == SH_OK && shape->min_properties > members.n + 1) {
        code = sh_schema_fail(
            s, node, SH_ERR_UNSUPPORTED,
            "\"minProperties\" is enforced only up to one more than \"properties\" names, as other names may repeat; lower it");
    }
    const bool there = (shape->generated & SH_TYPE_OBJECT) != 0;
    if (code == SH_OK && there) code = write_members(s, shape, &members, extra, &all, &may_be_empty);
    *out = SH_GR_NEVER;
    if (code == SH_OK && there) *out = sh_json_list(s->gr, "{", all, "}", may_be_empty);
    json_decref(members.names);
    json_decref(members.required);
    free(members.items);
    return code;
}

/* ---- all types ------------------------------------------------------------------------------------------------------------------ */

enum sh_code sh_shape_expr(struct sh_schema *s, struct sh_shape *shape, sh_gr_expr *out) {
    if (shape->parts.n == 0) {
        struct sh_schema_list none = {0};
        return sh_schema_rule(s, &none, false, out);
    }
    if (shape->has_enum) return write_values(s, shape, out);
    sh_gr_expr kinds[7] = {SH_GR_NEVER}; /* what a contradiction leaves unwritten */
    uint32_t n = 0;
    enum sh_code code = SH_OK;
    if (shape->generated & SH_TYPE_NULL) kinds[n++] = text(s->gr, "null");
    if (shape->generated & SH_TYPE_BOOLEAN) kinds[n++] = text(s->gr, "true"), kinds[n++] = text(s->gr, "false");
    const json_t *factors[SH_SCHEMA_MAX_PARTS];
    uint32_t n_factors = 0, factor_node = 0;
    for (uint32_t i = 0; i < shape->parts.n; i++) {
        const json_t *factor = json_object_get(json_of(s, shape->parts.items[i]), "multipleOf");
        if (factor != NULL) factors[n_factors++] = factor, factor_node = shape->parts.items[i];
    }
    if (n_factors > 0 && (shape->generated & SH_TYPE_NUMBER)) {
        const int listed = sh_json_multiples(s->gr, &shape->min, &shape->max, factors, n_factors, &kinds[n++]);
        if (listed < 0) {
            return sh_schema_fail(
                s, factor_node, SH_ERR_UNSUPPORTED,
                "\"multipleOf\" is enforced only if it is 1, or an integer with bounds between which are at most 4096 multiples; "
                "leave it out");
        }
        if (listed == 0) drop(shape, SH_TYPE_NUMBER, factor_node, "no multiple lies between the bounds");
    } else if (shape->generated & SH_TYPE_FRACTION) {
        if (!sh_json_numbers(s->gr, &shape->min, &shape->max, &kinds[n++])) {
            return sh_schema_fail(s, shape->min.number != NULL ? shape->min.node : shape->max.node, SH_ERR_UNSUPPORTED,
                                  "a number's bound may have at most %d digits before and %d behind the point", SH_JSON_DIGITS,
                                  SH_JSON_DIGITS);
        }
    } else if (shape->generated & SH_TYPE_INTEGER) {
        kinds[n++] = sh_json_integers(s->gr, &shape->min, &shape->max);
        if (sh_json_no_integers(&shape->min, &shape->max))
            drop(shape, SH_TYPE_INTEGER, shape->min.number != NULL ? shape->min.node : shape->max.node,
                 "no integer lies between the bounds");
    }
    if (shape->generated & SH_TYPE_STRING) code = write_string(s, shape, &kinds[n++]);
    if (code == SH_OK && (shape->generated & SH_TYPE_ARRAY)) code = write_array(s, shape, &kinds[n++]);
    if (code == SH_OK && (shape->generated & SH_TYPE_OBJECT)) code = write_object(s, shape, &kinds[n++]);
    if (code == SH_OK) *out = sh_gr_choice(s->gr, kinds, n);
    return code;
}
