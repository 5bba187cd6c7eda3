/*
 * draft_model.h - a second, smaller model that guesses what the first will say: a context of its own, in which each choice has a
 * sequence that follows the choice's tokens.
 *
 * A guess is sampled with the choice's own sampler: the random numbers belong to seed, choice and position, so where both models think
 * alike they draw alike, at any temperature. What the second model guesses is only ever a proposal (speculate.h); whatever goes wrong here
 * costs guesses, never the request.
 *
 * Thread-safety: the runner's thread, which waits for the steps that are taken in here; draft_model_check: any thread.
 */
#ifndef SHIMMYD_DRAFT_MODEL_H
#define SHIMMYD_DRAFT_MODEL_H

#include "daemon/draft.h"

#include "compute/engine.h"

struct draft_model;
struct draft_text; /* one choice's sequence */

/* Can `draft` guess for `model`? It must have the same tokens (one may have some more at its end, as padded vocabularies do) with the same
 * texts and the same end tokens, and be able to take guesses back: SH_ERR_INVALID says what differs, SH_ERR_UNSUPPORTED what it cannot do. */
enum sh_code draft_model_check(const struct sh_model *model, const struct sh_model *draft, struct sh_error *err);

/* `context`: of the model that is guessed for; the draft's is as large in sequences and tokens. The sh_model stays the caller's and outlives it. */
enum sh_code draft_model_create(struct sh_model *draft, const struct sh_context_params *context, struct draft_model **out,
                                struct sh_error *err);
void draft_model_destroy(struct draft_model *model); /* after its texts; NULL is fine */
/* What a step of so many rows takes. */
const struct draft_cost *draft_model_cost(const struct draft_model *model);

/* A sequence for a choice whose first n_prompt tokens are its prompt; salt as for sh_sequence_reuse. NULL: no sequence or memory, or a sampler that names
 * tokens which this vocabulary lacks. */
struct draft_text *draft_text_create(struct draft_model *model, const struct sh_sampler_params *sampler, uint32_t n_prompt,
                                     uint64_t salt, bool no_reuse);
void draft_text_destroy(struct draft_text *text); /* NULL is fine */
void draft_text_empty(struct draft_text *text);   /* gives its pages back; they are computed again at the next guess */

struct draft_ask {
    struct draft_text *text;
    const int32_t *tokens; /* [n_tokens] those known so far, prompt and answer */
    uint32_t n_tokens;
    uint32_t most;         /* how many are wanted, at most DRAFT_MAX */
    int32_t *guess;        /* [most] set, */
    uint32_t n_guess;      /* and how many: fewer than wanted, or none, where it has not caught up yet, or the context ends */
};
/* Guesses for all of them in common steps. Texts that lag behind catch up first, by a bounded number of tokens in a call. An error
 * concerns this call; with SH_ERR_DEVICE_LOST or SH_ERR_DEVICE the model is of no more use. */
enum sh_code draft_model_guess(struct draft_model *model, struct draft_ask *asks, uint32_t n_asks, struct sh_error *err);
/* Tokens that it would have to take in before it can guess what follows n_tokens. */
uint32_t draft_text_lag(const struct draft_text *text, uint32_t n_tokens);

#endif
