/*
 * sample.h - from logits to a token: the host sampler and the counter-based random numbers that host and device share.
 *
 * Random numbers: Philox4x32-10 (Salmon et al., SC 2011), key = {seed low, seed high}, counter = {choice, position, token / 4,
 * 0}; word token % 4 of the result is token's. u = ((word >> 9) + 0.5) * 2^-23, in (0, 1), exact in float32; Gumbel =
 * -log(-log(u)). argmax(logit / T + Gumbel) draws from softmax(logit / T): one independent number per token, so a GPU needs no
 * prefix sum and filters only remove candidates. Ties: the lowest id. The key is logit * (1 / T) + Gumbel, each operation rounded to
 * float32, with the logarithm of compute/glsl/draw.h: host and device draw the same token.
 *
 * A short list is what top_k leaves, if that is at most SH_SHORT_LIST tokens, in order: the largest first, on ties the lowest id. Of filters
 * that need nothing but such a list (top_k, top_p, min_p) the host and the device keep the same tokens. With p_k = exp(l_k - l_0) of draw.h,
 * and their sums float32 in the list's order, the list ends before its first entry k > 0 with p_0 + ... + p_(k-1) >= top_p * (the sum
 * of all) or p_k < min_p. Sums of at most 256 terms are off by 2^-16 of them; so are the cuts.
 */
#ifndef SHIMMY_SAMPLE_H
#define SHIMMY_SAMPLE_H

#include "compute/base.h"

void sh_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
float sh_gumbel(uint64_t seed, uint32_t choice, uint32_t position, uint32_t token);
/* XTC's number for a position: u of word 0 at counter {choice, position, 0, 1}. */
float sh_uniform(uint64_t seed, uint32_t choice, uint32_t position);

/* One sequence's sampler: parameters and the history its penalties look at. */
struct sh_sampler;
enum sh_code sh_sampler_create(const struct sh_sampler_params *params, uint32_t n_vocab, struct sh_sampler **out,
                               struct sh_error *err);
void sh_sampler_destroy(struct sh_sampler *sampler);
/* What a device can sample itself, given the parameters: greedily, or by temperature from the whole vocabulary (top_k 0 there) or from a
 * short list. Nothing that changes logits or looks at the history, no filter but top_k, top_p and min_p, and of them none without a top_k
 * from 1 to SH_SHORT_LIST. */
bool sh_sampler_suits_device(const struct sh_sampler *sampler);
/* Among its filters are top_k, top_p and min_p at most, and they make a short list of the vocabulary. */
bool sh_sampler_has_short_list(const struct sh_sampler *sampler);
const struct sh_sampler_params *sh_sampler_params(const struct sh_sampler *sampler);

struct sh_token_history { /* a sequence's tokens before the one being sampled */
    const int32_t *tokens;
    const uint8_t *roles; /* enum sh_role */
    uint32_t count;
};
/* The sequence was cut to `length` tokens: forgets what was drawn for positions beyond. NULL is none. */
void sh_sampler_truncate(struct sh_sampler *sampler, uint32_t length);
/* The history holds the tokens before `position` (none may be missing where mirostat, DRY or penalties look at them).
 * logits [n_vocab] are not changed. NaN logits never win; if all are NaN it is SH_ERR_DEVICE ("logits are not numbers").
 *   mask: sh_row.mask, or NULL. It is as if the vocabulary had its tokens alone: only they are candidates, of every filter and of the draw,
 * each with the random number that it has anyway. If bias, penalties, DRY, min_tokens and bad_words leave none of them with a logit above
 * -infinity, the draw is from the mask's raw logits, as if there were none of these. A token that is the only one of its mask teaches
 * mirostat nothing, so that it makes no difference whether such a token is drawn or just written down. */
enum sh_code sh_sampler_pick(struct sh_sampler *sampler, const float *logits, const uint32_t *mask,
                             const struct sh_token_history *history, uint32_t position, int32_t *token, struct sh_error *err);

/* Masks: bit token % 32 of word token / 32; bits from n_vocab on count for nothing. */
static inline uint32_t sh_mask_words(uint32_t n_vocab) { return n_vocab / 32 + (n_vocab % 32 != 0); }
static inline bool sh_mask_has(const uint32_t *mask, uint32_t token) { return (mask[token / 32] >> token % 32 & 1) != 0; }
/* How many tokens it has; 2 for more. */
uint32_t sh_mask_count(const uint32_t *mask, uint32_t n_vocab);

#endif
