/*
 * schema.h - the inside of the JSON Schema front.
 *
 *   schema.c         the document, references, what keywords are known; schemas that hold together become one value's rule
 *   schema_shape.c   the keywords of one value gathered, whether two values can be told apart
 *   schema_value.c   a shape -> an expression: enumerations, strings, arrays, objects
 *   schema_number.c  bounds -> digits
 *   json.c           JSON as it is generated
 *
 * A value has to satisfy several schemas at once (allOf, $ref, a property named in two places): a *conjunction*, a set of schemas.
 * Its alternatives (anyOf, oneOf) are multiplied out; each is a list of schemas that have no parts of that kind any more, a *shape*.
 * Each conjunction is a rule of the grammar and is written once, from a queue, so references may go in circles.
 */
#ifndef SHIMMY_GRAMMAR_SCHEMA_H
#define SHIMMY_GRAMMAR_SCHEMA_H

#include "compute/grammar/charset.h"

#include <jansson.h>

enum {
    SH_JSON_DIGITS =
        15, /* of an integer that no bound calls for, before and behind the point of a number: doubles tell these apart */
};
sh_gr_expr sh_json_string(struct sh_gr *gr, uint32_t min, uint32_t max); /* with its quotes; lengths in code points */
sh_gr_expr sh_json_digits(struct sh_gr *gr, uint32_t min, uint32_t max);
sh_gr_expr sh_json_number(struct sh_gr *gr);
/* Brackets around items that are not empty, or, if that may be, around nothing. */
sh_gr_expr sh_json_list(struct sh_gr *gr, const char *open, sh_gr_expr items, const char *close, bool may_be_empty);
sh_gr_expr sh_json_next(struct sh_gr *gr, sh_gr_expr item);                     /* a comma and the item */
sh_gr_expr sh_json_member(struct sh_gr *gr, sh_gr_expr name, sh_gr_expr value); /* name with its quotes */

/* ---- keywords: one table, which the manual page is held against ---- */

enum sh_keyword_use {
    SH_KEYWORD_ENFORCED,
    SH_KEYWORD_NO_EFFECT, /* annotations, and places where other schemas lie */
    SH_KEYWORD_REFUSED,
};
struct sh_keyword {
    const char *name;
    enum sh_keyword_use use;
};
extern const struct sh_keyword sh_keywords[]; /* ends with a name of NULL */
struct sh_format_of_string {
    const char *name, *pattern; /* of the whole string */
    const char *bounded;        /* the same or narrower, with texts of shortest to longest characters; NULL: not known */
    uint32_t shortest, longest;
};
extern const struct sh_format_of_string sh_string_formats[]; /* a name's rows: longest first; ends with a name of NULL */
/* The format's pattern where all its texts have min to max characters, so that nothing has to be counted; else NULL. */
const char *sh_string_format_within(const char *name, uint32_t min, uint32_t max);
extern const char *const sh_number_formats[]; /* of numbers, as OpenAPI has them; ends with NULL */

/* ---- the document ---- */

enum {
    SH_SCHEMA_MAX_RULES = 20000,   /* conjunctions */
    SH_SCHEMA_MAX_SHAPES = 256,    /* of one conjunction */
    SH_SCHEMA_MAX_PARTS = 256,     /* schemas of one shape */
    SH_SCHEMA_MAX_STEPS = 2000000, /* schemas looked at, over all, and work on patterns in units of 8 */
    SH_SCHEMA_MAX_PATTERNS = 32,   /* of patternProperties, over all */
};

struct sh_schema_node { /* a schema in the document */
    const json_t *json;
    char *path;   /* "#/properties/x" */
    bool checked; /* its keywords are known */
};
struct sh_schema_list { /* numbers of nodes */
    uint32_t *items, n, capacity;
};
struct sh_conjunction {
    struct sh_schema_list nodes; /* ascending, each once */
    uint32_t rule;
    bool may_be_never;         /* it is no error that nothing satisfies it, */
    const char *contradiction; /* and then this says why */
    uint32_t contradiction_node;
};
struct sh_name_pattern {   /* of patternProperties */
    uint32_t parent, node; /* the schema that has it, and that of the values */
    const char *text;      /* NULL: the names that propertyNames of parent allows; dfa NULL: all */
    struct sh_dfa *dfa;
};
struct sh_schema {
    struct sh_gr *gr;
    json_t *document;
    json_t *int32[2]; /* the bounds of that format */
    struct sh_schema_node *nodes;
    uint32_t n_nodes, nodes_capacity;
    uint32_t *slots, n_slots; /* nodes by their JSON, open addressing; UINT32_MAX: free */
    struct sh_conjunction *rules;
    uint32_t n_rules, rules_capacity;
    uint32_t *rule_slots, n_rule_slots;
    struct sh_name_pattern patterns[SH_SCHEMA_MAX_PATTERNS];
    uint32_t n_patterns, steps;
    sh_gr_expr any_value; /* NEVER: not made yet */
    struct sh_error *err;
};

/* "schema, #/path: ..." */
enum sh_code sh_schema_fail(struct sh_schema *s, uint32_t node, enum sh_code code, const char *fmt, ...) SH_PRINTF(4, 5);
enum sh_code sh_schema_no_memory(struct sh_schema *s);
/* Counts work on patterns; SH_ERR_LIMIT. */
enum sh_code sh_schema_charge(struct sh_schema *s, uint32_t node, uint64_t work);
/* The node of a schema that lies in `parent` under key, and there under name (NULL: none) or index. */
enum sh_code sh_schema_child(struct sh_schema *s, uint32_t parent, const json_t *json, const char *key, const char *name,
                             size_t index, uint32_t *out);
enum sh_code sh_schema_check(struct sh_schema *s, uint32_t node); /* that it is a schema whose keywords are enforced */
bool sh_schema_add(struct sh_schema_list *list, uint32_t node);   /* if it is not in it; false: no memory */
/* The rule for values that satisfy all of the list (none: any value), as an expression. The list is taken over. That nothing can
 * satisfy it is the schema's error, unless it may_be_never. */
enum sh_code sh_schema_rule(struct sh_schema *s, struct sh_schema_list *list, bool may_be_never, sh_gr_expr *out);
/* The pattern of parent's patternProperties; lent. */
enum sh_code sh_schema_name_pattern(struct sh_schema *s, uint32_t parent, const char *pattern, const json_t *schema,
                                    const struct sh_name_pattern **out);
/* The values that a conjunction lists, each once; *n 0: it lists none, or more than `most`. */
enum sh_code sh_schema_values(struct sh_schema *s, const struct sh_schema_list *list, const json_t **values, uint32_t most,
                              uint32_t *n);
bool sh_schema_is_false(const struct sh_schema *s, const struct sh_schema_list *list); /* one of them is the schema `false` */

/* ---- shapes ---- */

enum { /* types of values */
       SH_TYPE_NULL = 1,
       SH_TYPE_BOOLEAN = 2,
       SH_TYPE_INTEGER = 4,
       SH_TYPE_FRACTION = 8, /* numbers that are no integers */
       SH_TYPE_STRING = 16,
       SH_TYPE_ARRAY = 32,
       SH_TYPE_OBJECT = 64,
       SH_TYPE_NUMBER = SH_TYPE_INTEGER | SH_TYPE_FRACTION,
       SH_TYPE_ALL = 127,
};
struct sh_bound {
    const json_t *number; /* NULL: none */
    bool exclusive;
    uint32_t node;
};
struct sh_shape {
    struct sh_schema_list parts;
    struct sh_schema_list taken; /* which branch of which oneOf it comes from: node and branch, in turns */
    unsigned types;              /* what the schemas allow */
    unsigned
        generated; /* the part of it that is generated: where no schema names a type, those that the other keywords are about */
    bool has_enum;
    const json_t **values; /* what all enum and const have in common and the other keywords allow */
    uint32_t n_values;
    struct sh_bound min, max;
    uint32_t min_length, max_length, min_items, max_items, min_properties, max_properties;
    bool whole; /* a format asks for whole numbers: no others are generated, though a validator may take the format for a note */
    const char *contradiction; /* NULL: none; else why nothing is generated. What `types` still has may be valid all the same */
    uint32_t contradiction_node;
};
/* SH_ERR_UNSUPPORTED, SH_ERR_INVALID: what one of the schemas says. On failure there is nothing to finish. */
enum sh_code sh_shape_gather(struct sh_schema *s, const struct sh_schema_list *parts, struct sh_shape *out);
void sh_shape_finish(struct sh_shape *shape);
/* True: no value that is generated for a is valid for b. */
bool sh_shape_apart(struct sh_schema *s, const struct sh_shape *a, const struct sh_shape *b);
bool sh_shape_requires(const struct sh_schema *s, const struct sh_shape *shape, const char *name);
/* What the value of a member of this name must satisfy; *forbidden: there must be no such member. */
enum sh_code sh_shape_member(struct sh_schema *s, const struct sh_shape *shape, const char *name, struct sh_schema_list *out,
                             bool *forbidden);
/* What propertyNames of this node allows; lent. *out NULL: there is none, or it allows all. */
enum sh_code sh_schema_names(struct sh_schema *s, uint32_t node, const struct sh_dfa **out);
/* Whether members that `properties` does not name are generated. */
bool sh_shape_has_extras(const struct sh_schema *s, const struct sh_shape *shape);
/* All that the keywords want of a string as one automaton; *out NULL: nothing. */
enum sh_code sh_shape_string(struct sh_schema *s, const struct sh_shape *shape, struct sh_dfa **out);
enum sh_code sh_shape_expr(struct sh_schema *s, struct sh_shape *shape, sh_gr_expr *out);

/* ---- numbers ---- */

sh_gr_expr sh_json_integers(struct sh_gr *gr, const struct sh_bound *min, const struct sh_bound *max);
bool sh_json_no_integers(const struct sh_bound *min, const struct sh_bound *max); /* nothing lies between them */
/* False: a bound has more digits than are generated. */
bool sh_json_numbers(struct sh_gr *gr, const struct sh_bound *min, const struct sh_bound *max, sh_gr_expr *out);
/* Integers between the bounds that are multiples of all n numbers, listed unless any is one; 0: there are none. Below 0: too many,
 * too large for doubles, or the numbers are no integers. */
int sh_json_multiples(struct sh_gr *gr, const struct sh_bound *min, const struct sh_bound *max, const json_t *const *factors,
                      uint32_t n, sh_gr_expr *out);
bool sh_json_is_multiple(const json_t *number, const json_t *factor); /* factor NULL: true */
int sh_json_compare(const json_t *a, const json_t *b);                /* two numbers, exactly: < 0, 0, > 0 */
bool sh_json_is_integer(const json_t *number);                        /* 2 and 2.0 */
bool sh_json_equal(const json_t *a, const json_t *b);                 /* as JSON Schema has it: 1 equals 1.0 */

#endif
