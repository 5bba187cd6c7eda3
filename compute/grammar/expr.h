/*
 * expr.h - the inside of a builder: expressions as numbered nodes, equal ones made once. For build.c and compile.c.
 *
 * A node refers only to nodes with smaller numbers, so a pass in ascending order sees operands first; cycles go through rules
 * alone. Chains of pairs and choices run along `b`, and `depth` counts the turns into `a` (and into repeated items, and from
 * pairs into choices and back): functions that recur there and go on along `b` need that much stack and no more.
 */
#ifndef SHIMMY_GRAMMAR_EXPR_H
#define SHIMMY_GRAMMAR_EXPR_H

#include "compute/grammar/grammar.h"

enum sh_gr_kind {
    SH_GR_KIND_NEVER,
    SH_GR_KIND_EMPTY,
    SH_GR_KIND_BYTES,  /* a: number of the set; never an empty one */
    SH_GR_KIND_TOKEN,  /* a: the token */
    SH_GR_KIND_PAIR,   /* a, then b */
    SH_GR_KIND_CHOICE, /* a or b */
    SH_GR_KIND_REPEAT, /* a, min to max times; either min < max < UNLIMITED, min == max > 1, or 0 to UNLIMITED */
    SH_GR_KIND_RULE,   /* a: number of the rule */
};

enum { SH_GR_DEEPEST = 4096 };

struct sh_gr_node {
    uint8_t kind;
    uint16_t depth;
    uint32_t a, b; /* REPEAT: b = min */
    uint32_t max;
};

struct sh_gr_set { /* of bytes */
    uint64_t words[4];
};
static inline bool sh_gr_set_has(const struct sh_gr_set *set, uint8_t byte) { return set->words[byte >> 6] >> (byte & 63) & 1; }

struct sh_gr_rule {
    char *name;
    sh_gr_expr expr; /* NEVER until it is set */
};

struct sh_gr {
    struct sh_gr_node *nodes;
    uint32_t n_nodes, nodes_capacity;
    uint32_t *slots; /* open addressing: node + 1, 0 free */
    uint32_t n_slots;
    struct sh_gr_set *sets;
    uint32_t n_sets, sets_capacity;
    uint32_t *set_slots;
    uint32_t n_set_slots;
    struct sh_gr_rule *rules;
    uint32_t n_rules, rules_capacity;
    sh_gr_expr any_tail[4]; /* [k]: any k bytes that continue a code point; 0: not made yet */
    enum sh_code failed;    /* the first failure, and what it was */
    const char *why;
};

#endif
