/*
 * grammar.h - the inside of grammars (engine.h: sh_grammar_*, sh_matcher_*).
 *
 *   build.c, expr.h          expressions, from which every front makes a grammar
 *   gbnf.c, regex.c, schema*.c   the fronts: text -> expressions
 *   bare.c                   strings between tags
 *   compile.c, automaton.c   expressions -> an automaton over bytes with a stack, its sets of configurations made states as they are met
 *   trie.c                   a vocabulary as a trie over bytes; classes of tokens that strings take whole
 *   mask.c, tables.c         which tokens may follow a state; their masks, kept
 *   matcher.c                the public functions that follow a text
 *   grammar.c                the kinds of grammar, and the grammars that a vocabulary keeps
 *
 * Arrows: chat/ -> grammar/ -> text/. Grammars know bytes and tokens, no models and no samplers.
 *
 * A builder belongs to one thread. An expression is a number; they are immutable and may be used in several places (the whole is a
 * DAG of rules). Building cannot fail on the way: after a failure (no memory, SH_GR_MAX_ expressions) every function returns
 * SH_GR_NEVER and sh_gr_compile returns the error.
 */
#ifndef SHIMMY_GRAMMAR_H
#define SHIMMY_GRAMMAR_H

#include "compute/base.h"

enum {
    SH_GR_MAX_TEXT = 1 << 20,         /* bytes of a grammar's or schema's text */
    SH_GR_MAX_EXPRESSIONS = 1 << 20,
    SH_GR_MAX_DEPTH = 256,            /* expressions, brackets, schemas within each other, while reading */
};
#define SH_GR_UNLIMITED UINT32_MAX

struct sh_gr; /* a grammar being built */
typedef uint32_t sh_gr_expr;
enum { SH_GR_NEVER = 0 /* matches nothing */, SH_GR_EMPTY = 1 /* matches the empty text */ };

struct sh_gr *sh_gr_create(void); /* NULL: no memory */
void sh_gr_destroy(struct sh_gr *gr);

sh_gr_expr sh_gr_text(struct sh_gr *gr, const char *bytes, size_t length);
sh_gr_expr sh_gr_bytes(struct sh_gr *gr, const uint8_t set[32]); /* one byte of the set */
struct sh_gr_range { uint32_t first, last; };                     /* code points, both included */
/* One code point of the ranges (in any order), as UTF-8; `not`: one of the others. Surrogates are none. */
sh_gr_expr sh_gr_class(struct sh_gr *gr, const struct sh_gr_range *ranges, uint32_t n, bool not);
sh_gr_expr sh_gr_token(struct sh_gr *gr, int32_t token);         /* that token and no other, whatever its bytes; for control tokens */
sh_gr_expr sh_gr_pair(struct sh_gr *gr, sh_gr_expr first, sh_gr_expr second);
sh_gr_expr sh_gr_sequence(struct sh_gr *gr, const sh_gr_expr *items, uint32_t n);
sh_gr_expr sh_gr_choice(struct sh_gr *gr, const sh_gr_expr *items, uint32_t n); /* n 0: NEVER */
/* min to max times. Large numbers cost no more than small ones. */
sh_gr_expr sh_gr_repeat(struct sh_gr *gr, sh_gr_expr item, uint32_t min, uint32_t max);
sh_gr_expr sh_gr_optional(struct sh_gr *gr, sh_gr_expr item);
/* Any text (bytes) in which `end` (up to 256 bytes) does not occur, also not at its end or together with an `end` that follows it. */
sh_gr_expr sh_gr_until(struct sh_gr *gr, const char *end, size_t length);

/* Rules may refer to each other and to themselves. One that was never set matches nothing. A left recursion (a rule that begins with
 * itself, perhaps behind what may be empty) fails at sh_gr_compile with the rule's name. */
uint32_t sh_gr_rule(struct sh_gr *gr, const char *name);
void sh_gr_set_rule(struct sh_gr *gr, uint32_t rule, sh_gr_expr expr);
sh_gr_expr sh_gr_ref(struct sh_gr *gr, uint32_t rule);

/* *out holds a reference. A grammar that matches no text at all is SH_ERR_INVALID. */
enum sh_code sh_gr_compile(struct sh_gr *gr, sh_gr_expr root, const struct sh_vocab *vocab, struct sh_grammar **out,
                           struct sh_error *err);

/* ---- fronts: each appends to a builder, and returns an expression for the whole ---- */

enum sh_code sh_gr_gbnf(struct sh_gr *gr, const struct sh_vocab *vocab, const char *text, size_t length, sh_gr_expr *out,
                        struct sh_error *err);
/* A regular expression as JSON Schema has them (ECMA-262 without look-around and back references), of the whole text. `in_json`: of the
 * string that a JSON string's inside stands for. `search`: it need only occur somewhere, unless anchored with ^ and $. */
enum sh_code sh_gr_regex(struct sh_gr *gr, const char *pattern, size_t length, bool in_json, bool search, sh_gr_expr *out,
                         struct sh_error *err);
/* A JSON value that the schema (JSON text) allows. References are looked up in the schema itself. */
enum sh_code sh_gr_schema(struct sh_gr *gr, const char *schema, size_t length, sh_gr_expr *out, struct sh_error *err);
sh_gr_expr sh_gr_json_object(struct sh_gr *gr); /* any JSON object, */
sh_gr_expr sh_gr_json_value(struct sh_gr *gr);  /* any value, nested at will, */
sh_gr_expr sh_gr_json_space(struct sh_gr *gr);  /* the white space that generated JSON may have between its parts: none, one blank, or a
                                                   line feed and up to 20 blanks */
/* One of the strings of a JSON array, as they are. */
enum sh_code sh_gr_choices(struct sh_gr *gr, const char *array, size_t length, sh_gr_expr *out, struct sh_error *err);

/* A string as it stands between tags, not as JSON writes it: the pattern occurs in it, the format's pattern (sh_string_format) is
 * the whole of it (NULL: no such condition), it has min to max code points, and `end` does not occur in it; nor, where there is
 * another condition, its beginning. The first two bytes of `end` are ASCII and differ. */
struct sh_gr_bare {
    const char *pattern, *format, *end;
    uint32_t min, max; /* SH_GR_UNLIMITED */
};
enum sh_code sh_gr_bare_string(struct sh_gr *gr, const struct sh_gr_bare *bare, sh_gr_expr *out, struct sh_error *err);
const char *sh_string_format(const char *name); /* its pattern; NULL: unknown */
/* One of these by its kind, as sh_grammar_create takes it. */
enum sh_code sh_gr_of_kind(struct sh_gr *gr, const struct sh_vocab *vocab, enum sh_grammar_kind kind, const char *text, size_t length,
                           sh_gr_expr *out, struct sh_error *err);

/* ---- grammars that a vocabulary keeps ---- */

/* The grammar remembered under this key (any bytes), a reference, or NULL. */
struct sh_grammar *sh_grammar_recall(const struct sh_vocab *vocab, const void *key, size_t length);
void sh_grammar_remember(const struct sh_vocab *vocab, const void *key, size_t length, struct sh_grammar *grammar);

#endif
