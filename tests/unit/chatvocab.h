/*
 * chatvocab.h - small vocabularies for tests of chats: bytes, marks of turns, templates.
 */
#ifndef SHIMMY_TESTS_CHATVOCAB_H
#define SHIMMY_TESTS_CHATVOCAB_H

#include "compute/engine.h"

struct chatvocab_template {
    const char *name, *text; /* name NULL: tokenizer.chat_template */
    size_t length;           /* 0: strlen */
};

/* SPM with a token for each byte, <unk> <s> </s>, and the given control tokens, in this order from id 259 on. Writes a file of that name into
 * the test's scratch folder, which sh_vocab_open reads. BOS is added. Both lists end with NULL, or are NULL. */
struct sh_vocab *chatvocab_create(const char *name, const char *const *control, const struct chatvocab_template *templates,
                                  uint32_t n_templates);
enum { CHATVOCAB_BOS = 1, CHATVOCAB_EOS = 2, CHATVOCAB_CONTROL = 259 };

#endif
