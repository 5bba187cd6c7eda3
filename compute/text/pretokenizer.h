/*
 * pretokenizer.h - cutting text into words before byte-level merging, with the regular expressions of `tokenizer.ggml.pre`.
 *
 * A pre-tokenizer is a list of expressions. Each one cuts every piece that the earlier ones left into its matches and what lies
 * between them; some find digits, which are cut into groups of three. Compiled once per vocabulary (PCRE2, Unicode properties, JIT
 * where the system allows it); immutable afterwards, match data belongs to the call: any thread.
 */
#ifndef SHIMMY_PRETOKENIZER_H
#define SHIMMY_PRETOKENIZER_H

#include "compute/base.h"

struct sh_pretokenizer;

struct sh_pre_rules {   /* what else hangs on the name */
    const char *name;   /* static; "default" for an absent one */
    bool add_bos;       /* unless the file says otherwise */
    bool ignore_merges; /* a whole word that is a token is taken before merging */
};

/* `name` need not be NUL-terminated; empty is "default". Unknown: SH_ERR_UNSUPPORTED that names it. */
enum sh_code sh_pretokenizer_create(const char *name, size_t length, struct sh_pretokenizer **out, struct sh_pre_rules *rules,
                                    struct sh_error *err);
void sh_pretokenizer_destroy(struct sh_pretokenizer *pretokenizer);

struct sh_words {      /* zeroed before the first use; reused over calls */
    uint32_t *lengths; /* bytes of each word, in order; they cover the text */
    uint32_t count, capacity;
    uint32_t *scratch;
    uint32_t scratch_capacity;
};
void sh_words_free(struct sh_words *words);

/* `text` may hold anything. Ill-formed bytes count as a control character of one byte each. */
enum sh_code sh_pretokenize(const struct sh_pretokenizer *p, const char *text, size_t length, struct sh_words *words,
                            struct sh_error *err);

#endif
