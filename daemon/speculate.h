/*
 * speculate.h - speculation of one runner: guesses for its choices, from what they said before (draft.h) and from a second model
 * (draft_model.h), and what is learned of them.
 *
 * How the runner verifies a guess: the choice's row of the next step, its last token, is followed by a row for each guessed token, and
 * every one of these rows samples. What the last token's row samples is the next token, as ever. If it equals the first guess, the row of that guess had
 * the right history, and what it samples is the token after it; and so on up to the first difference, behind which the sequence is cut
 * (sh_sequence_truncate). Rows do not depend on what they share a step with, and random numbers belong to positions, so the tokens are
 * those that would have been sampled one by one; a wrong guess costs time alone.
 *
 * It guesses when that is expected to bring more tokens per time, counted over all choices of the step, and tries again now and then where
 * it does not.
 *
 * Thread-safety: the runner's thread.
 */
#ifndef SHIMMYD_SPECULATE_H
#define SHIMMYD_SPECULATE_H

#include "daemon/generation.h"

struct speculator;
struct speculation; /* of one choice */

enum speculate_source { SPECULATE_LOOKUP, SPECULATE_MODEL, SPECULATE_SOURCES };
const char *speculate_source_name(enum speculate_source source); /* "lookup", "model": the metrics' label */

struct speculator_params {
    const struct sh_model *model;
    const struct sh_context_params *context; /* of the runner */
    struct sh_model *draft; /* NULL: none; outlives it */
    bool lookup;
    uint32_t draft_tokens; /* of one guess, at most */
    const char *id;        /* lent: for the log */
};
/* *out is NULL where there is nothing to guess with, or the model cannot take guesses back, which the log says. A draft model that does not fit is an
 * error (draft_model_check). */
enum sh_code speculator_create(const struct speculator_params *params, struct speculator **out, struct sh_error *err);
void speculator_destroy(struct speculator *speculator); /* after its speculations; NULL is fine */
/* A step is finished: what it took. */
void speculator_step(struct speculator *speculator, uint32_t rows, bool prompts, uint64_t step_ns);

/* For a choice of a request, whose prompt is the beginning of its text. NULL: none is wanted or possible (speculation off, a grammar, no memory):
 * all functions take that, and never guess. */
struct speculation *speculation_create(struct speculator *speculator, const struct gen_params *params,
                                       const struct sh_sampler_params *sampler);
void speculation_destroy(struct speculation *s);
/* Every token that the choice gets, in order, sampled or not. */
void speculation_token(struct speculation *s, int32_t token);
/* The choice gave up its pages: the draft model's go too, and are computed again. */
void speculation_suspend(struct speculation *s);
/* Would a guess be made now, as far as this choice goes? For runners that would otherwise submit its next row before the last token is
 * known, which leaves no time to guess. */
bool speculation_promising(struct speculation *s);

struct speculate_ask { /* one choice's part in the next step, all of whose tokens are known */
    struct speculation *s;
    uint32_t most;        /* more than so many tokens are of no use */
    const int32_t *guess; /* [n_guess] set; lent until the next call with this choice */
    uint32_t n_guess;
};
/* Guesses for a step of `rows` rows that would bring `tokens` tokens; at most `room` in all. */
void speculator_guess(struct speculator *speculator, uint32_t rows, uint32_t tokens, uint32_t room, struct speculate_ask *asks,
                      uint32_t n_asks);
/* The first `right` tokens of its last guess were what was sampled, and the next one was not; or, if `ended`, nothing was sampled behind
 * them, since the choice had ended. Counts them in the metrics, too. */
void speculation_verified(struct speculation *s, uint32_t right, bool ended);

#endif
