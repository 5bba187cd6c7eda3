/*
 * charset.h - sets of code points, and regular expressions and automata over them, for the fronts regex.c and schema*.c.
 *
 * Automata are deterministic and hold code points, so that lengths are counted as JSON Schema does, and two conditions on one string
 * (a pattern and a length, two patterns, all names but the declared ones) become one. Ownership: what create functions return goes
 * to the caller. No locks: an object belongs to one thread.
 */
#ifndef SHIMMY_GRAMMAR_CHARSET_H
#define SHIMMY_GRAMMAR_CHARSET_H

#include "compute/grammar/grammar.h"

enum { SH_MAX_CODE_POINT = 0x10FFFF };

/* ---- sets of code points (charset.c) ---- */

struct sh_charset {
    struct sh_gr_range *ranges; /* after sh_charset_settle: ascending, apart from each other */
    uint32_t n, capacity;
    bool failed; /* no memory: sticky */
};
void sh_charset_free(struct sh_charset *set); /* leaves it empty */
void sh_charset_add(struct sh_charset *set, uint32_t first, uint32_t last);
void sh_charset_add_set(struct sh_charset *set, const struct sh_charset *other);
void sh_charset_settle(struct sh_charset *set);                              /* sorts and joins; surrogates are taken out */
void sh_charset_negate(struct sh_charset *set);                              /* of a settled one */
bool sh_charset_contains(const struct sh_charset *set, uint32_t code_point); /* of a settled one */
/* One code point of a settled set; in_json: as it stands in a JSON string, escaped where it must be and else plain. */
sh_gr_expr sh_charset_expr(struct sh_gr *gr, const struct sh_gr_range *ranges, uint32_t n, bool in_json);
/* UTF-8 text with the same treatment. */
sh_gr_expr sh_json_plain_text(struct sh_gr *gr, const char *text, size_t length, bool in_json);

/* ---- regular expressions, read (regex_parse.c) ---- */

enum sh_rx_kind { SH_RX_EMPTY, SH_RX_SET, SH_RX_SEQUENCE, SH_RX_CHOICE, SH_RX_REPEAT, SH_RX_START, SH_RX_END };
struct sh_rx_node {
    enum sh_rx_kind kind;
    uint32_t set;         /* SET: index into sets */
    uint32_t first, next; /* SEQUENCE, CHOICE, REPEAT: the first child; among siblings: the next one; 0: none */
    uint32_t min, max;    /* REPEAT */
};
struct sh_rx {
    struct sh_rx_node *nodes; /* [0] is not used */
    uint32_t n_nodes, nodes_capacity;
    struct sh_charset *sets; /* settled */
    uint32_t n_sets, sets_capacity;
    uint32_t root;
    bool anchors; /* there are ^ or $ in it */
};
/* SH_ERR_INVALID and SH_ERR_UNSUPPORTED name what was found and the character (1 is the first). */
enum sh_code sh_rx_parse(const char *pattern, size_t length, struct sh_rx **out, struct sh_error *err);
uint64_t sh_rx_work(const struct sh_rx *rx); /* its size: nodes and ranges */
void sh_rx_free(struct sh_rx *rx);           /* takes NULL */
/* A property as in \p{...}: adds its code points. False: there is none of that name. Any thread; what is found is kept for good.
 * (regex_property.c) */
bool sh_rx_property(const char *name, size_t length, struct sh_charset *set);
/* Appends the expression; SH_ERR_UNSUPPORTED: anchors where they are too hard. */
enum sh_code sh_rx_expr(struct sh_gr *gr, struct sh_rx *rx, bool in_json, bool search, sh_gr_expr *out, struct sh_error *err);

/* ---- automata (dfa.c) ---- */

enum { SH_DFA_MAX_STATES = 20000, SH_DFA_MAX_EDGES = 400000 };
struct sh_dfa;
/* SH_ERR_LIMIT: more states than the limits. */
enum sh_code sh_dfa_from_rx(const struct sh_rx *rx, bool search, struct sh_dfa **out, struct sh_error *err);
struct sh_text {
    const char *p;
    size_t n;
};
enum sh_code sh_dfa_from_texts(const struct sh_text *texts, uint32_t n, struct sh_dfa **out,
                               struct sh_error *err);                                                    /* one of them */
enum sh_code sh_dfa_from_lengths(uint32_t min, uint32_t max, struct sh_dfa **out, struct sh_error *err); /* in code points */
enum sh_code sh_dfa_copy(const struct sh_dfa *dfa, struct sh_dfa **out, struct sh_error *err);
void sh_dfa_free(struct sh_dfa *dfa); /* takes NULL */
/* *a becomes a and b, or a without b. */
enum sh_code sh_dfa_intersect(struct sh_dfa **a, const struct sh_dfa *b, struct sh_error *err);
enum sh_code sh_dfa_subtract(struct sh_dfa **a, const struct sh_dfa *b, struct sh_error *err);
uint64_t sh_dfa_work(const struct sh_dfa *dfa); /* what making it took, in transitions looked at */
bool sh_dfa_is_empty(const struct sh_dfa *dfa);
bool sh_dfa_matches(const struct sh_dfa *dfa, const char *text, size_t length);
enum sh_code sh_dfa_expr(struct sh_gr *gr, const struct sh_dfa *dfa, bool in_json, sh_gr_expr *out, struct sh_error *err);

#endif
