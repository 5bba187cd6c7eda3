/*
 * grammar_texts.h - for tests of the fronts: texts held against a grammar byte by byte, and texts that its masks lead to.
 *
 * The vocabulary is an SPM one: three special tokens, every byte, and pieces that begin and end anywhere in JSON, words and UTF-8
 * sequences, so that masks of tokens of several bytes are walked, too. Fails the running cmocka test on any error.
 */
#ifndef SHIMMY_TESTS_GRAMMAR_TEXTS_H
#define SHIMMY_TESTS_GRAMMAR_TEXTS_H

#include "compute/base.h"
#include "tests/unit/shared.h"

enum { GRAMMAR_CONTROL = 1, GRAMMAR_FIRST_BYTE = 3, GRAMMAR_CALL = 259 /* <call>, user-defined */ };

const struct sh_vocab *grammar_vocab(void); /* made at the first call, kept until the program ends */

struct sh_grammar *grammar_of(enum sh_grammar_kind kind, const char *text); /* must be one */
/* The grammar must be refused, with this code and, in the message, this part. */
void grammar_refused(enum sh_grammar_kind kind, const char *text, enum sh_code code, const char *part);
void grammar_refused_bytes(enum sh_grammar_kind kind, const char *text, size_t length, enum sh_code code, const char *part);

enum grammar_verdict { GRAMMAR_NO, GRAMMAR_BEGINNING, GRAMMAR_YES };
enum grammar_verdict grammar_judge(struct sh_grammar *grammar, const char *text, size_t length);
/* yes and no: texts, each ended by NULL; NULL: none. Every beginning of a `yes` must be one, too. */
void grammar_check(enum sh_grammar_kind kind, const char *text, const char *const *yes, const char *const *no);

/* A random text of at most `most` bytes by way of masks, preferring what ends strings and lists; *whole: it is one of the grammar's
 * texts. malloc'd, with a NUL behind it. A place where neither a token nor the end may come fails the test. */
char *grammar_walk(struct sh_grammar *grammar, struct test_rng *rng, size_t most, size_t *length, bool *whole);

#endif
