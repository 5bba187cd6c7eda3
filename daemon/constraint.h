/*
 * constraint.h - what a request's grammar lets one choice say next: its matcher, and the tokens that end a choice.
 *
 * The runner asks constraint_next before it submits a row that samples, and hands every token that the choice gets and that does not
 * end it to constraint_accept, whether it was sampled or not. The grammar comes before everything else that a request may say: its mask
 * is the one that no bias, penalty or min_tokens overrules (see sh_row.mask).
 *
 * Thread-safety: one thread at a time, the runner's. Errors: SH_ERR_LIMIT, SH_ERR_UNSUPPORTED: the grammar cannot go on here; they
 * concern this text alone, and the message says so.
 */
#ifndef SHIMMYD_CONSTRAINT_H
#define SHIMMYD_CONSTRAINT_H

#include "compute/engine.h"

struct constraint;

/* At the beginning of a text. ends [n_ends]: the tokens that end a choice; lent, and outlive it. Holds a reference of the grammar. */
enum sh_code constraint_create(struct sh_grammar *grammar, uint32_t n_vocab, const int32_t *ends, uint32_t n_ends,
                               struct constraint **out, struct sh_error *err);
void constraint_destroy(struct constraint *constraint);

enum constraint_kind {
    CONSTRAINT_SAMPLE, /* one of the mask's tokens; of `ends` all are among them where the text may end */
    CONSTRAINT_FORCED, /* the mask has one token alone: it need not be sampled */
    CONSTRAINT_END,    /* nothing may follow: the text is complete */
};
struct constraint_next {
    enum constraint_kind kind;
    const uint32_t *mask; /* SAMPLE, FORCED: for sh_row.mask; lent until constraint_accept */
    int32_t token;        /* FORCED */
};
/* Asked again without a token between, it answers the same. */
enum sh_code constraint_next(struct constraint *constraint, struct constraint_next *out, struct sh_error *err);
enum sh_code constraint_accept(struct constraint *constraint, int32_t token, struct sh_error *err);

#endif
