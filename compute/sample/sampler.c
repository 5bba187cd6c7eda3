/* The host sampler: its life, and the draw. */
#include "compute/sample/sampler.h"

#include <math.h>
#include <stdlib.h>

/* Below this logit / T may overflow, and ties between infinities would go to the lowest id. The noise is under 17, so that a colder draw
 * takes the largest logit anyway unless another is within 2e-5 of it. */
#define COLDEST 1e-6f

/* ---- life ---- */

static enum sh_code check_token(int32_t token, const char *name, uint32_t n_vocab, struct sh_error *err) {
    if (token >= 0 && (uint32_t)token < n_vocab) return SH_OK;
    return sh_fail(err, SH_ERR_INVALID, "sampler: %s for token %d, the vocabulary has 0 to %u", name, token, n_vocab - 1);
}

static enum sh_code check_lists(const struct sh_token_lists *lists, const char *name, uint32_t n_vocab, struct sh_error *err) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < lists->count; i++) {
        if (lists->lengths[i] == 0) return sh_fail(err, SH_ERR_INVALID, "sampler: list %u of %s has no tokens", i, name);
        for (uint32_t k = 0; k < lists->lengths[i]; k++) {
            const enum sh_code code = check_token(lists->tokens[at++], name, n_vocab, err);
            if (code != SH_OK) return code;
        }
    }
    return SH_OK;
}

static enum sh_code check(const struct sh_sampler_params *p, uint32_t n_vocab, struct sh_error *err) {
    const struct {
        const char *name;
        float value, lowest, highest;
    } ranges[] = {
        {"temperature", p->temperature, 0, 1e6f},
        {"top_p", p->top_p, 0, 1e6f},
        {"min_p", p->min_p, 0, 1},
        {"top_n_sigma", p->top_n_sigma, 0, 1e6f},
        {"typical_p", p->typical_p, 0, 1e6f},
        {"xtc_probability", p->xtc_probability, 0, 1},
        {"xtc_threshold", p->xtc_threshold, 0, 1},
        {"dry_multiplier", p->dry_multiplier, 0, 1e6f},
        {"dry_base", p->dry_base, 1, 1e6f},
        {"mirostat_tau", p->mirostat_tau, 0, 1e6f},
        {"mirostat_eta", p->mirostat_eta, 0, 1e6f},
        {"repeat_penalty", p->repeat_penalty, 0, 1e6f},
        {"frequency_penalty", p->frequency_penalty, -1e6f, 1e6f},
        {"presence_penalty", p->presence_penalty, -1e6f, 1e6f},
    };
    for (size_t i = 0; i < SH_COUNT(ranges); i++)
        if (!(ranges[i].value >= ranges[i].lowest && ranges[i].value <= ranges[i].highest))
            return sh_fail(err, SH_ERR_INVALID, "sampler: %s is %g, expected %g to %g", ranges[i].name, (double)ranges[i].value,
                           (double)ranges[i].lowest, (double)ranges[i].highest);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        const enum sh_code code = check_token(p->bias[i].token, "logit_bias", n_vocab, err);
        if (code != SH_OK) return code;
        if (isnan(p->bias[i].bias) || p->bias[i].bias == INFINITY)
            return sh_fail(err, SH_ERR_INVALID, "sampler: logit_bias of token %d is %g, expected a number or -infinity",
                           p->bias[i].token, (double)p->bias[i].bias);
    }
    for (uint32_t i = 0; i < p->n_end_tokens; i++) {
        const enum sh_code code = check_token(p->end_tokens[i], "end_tokens", n_vocab, err);
        if (code != SH_OK) return code;
    }
    if (p->mirostat != 0 && p->mirostat != 2)
        return sh_fail(err, SH_ERR_INVALID, "sampler: mirostat is %u, expected 0 (off) or 2", p->mirostat);
    const enum sh_code code = check_lists(&p->dry_breakers, "dry_breakers", n_vocab, err);
    return code == SH_OK ? check_lists(&p->bad_words, "bad_words", n_vocab, err) : code;
}

/* Fields whose zero stands for another number. */
static void set_defaults(struct sh_sampler_params *p) {
    if (p->repeat_last_n == 0) p->repeat_last_n = 64;
    if (p->xtc_threshold == 0) p->xtc_threshold = 0.1f;
    if (p->dry_base == 0) p->dry_base = 1.75f;
    if (p->dry_allowed_length == 0) p->dry_allowed_length = 2;
    if (p->mirostat_tau == 0) p->mirostat_tau = 5;
    if (p->mirostat_eta == 0) p->mirostat_eta = 0.1f;
}

/* Replaces *data by a copy of its own. False: no memory, *data is NULL. */
static bool own(const void **data, uint64_t count, size_t element_bytes) {
    void *copy = count > 0 ? sh_calloc(count, element_bytes) : NULL;
    if (copy != NULL) memcpy(copy, *data, count * element_bytes);
    *data = copy;
    return count == 0 || copy != NULL;
}

static bool own_lists(struct sh_token_lists *lists) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < lists->count; i++) total += lists->lengths[i];
    const bool tokens = own((const void **)&lists->tokens, total, sizeof *lists->tokens);
    return own((const void **)&lists->lengths, lists->count, sizeof *lists->lengths) && tokens;
}

static int by_head(const void *a, const void *b) {
    const struct breaker *x = a, *y = b;
    if (x->head != y->head) return x->head < y->head ? -1 : 1;
    return (x->n_tail > y->n_tail) - (x->n_tail < y->n_tail);
}

/* s->params points to what the caller owns: makes it the sampler's, all of it, so that destroying is right after a failure too. */
static bool own_params(struct sh_sampler *s) {
    struct sh_sampler_params *p = &s->params;
    const bool bias = own((const void **)&p->bias, p->n_bias, sizeof *p->bias);
    const bool ends = own((const void **)&p->end_tokens, p->n_end_tokens, sizeof *p->end_tokens);
    const bool breakers = own_lists(&p->dry_breakers), words = own_lists(&p->bad_words);
    if (!bias || !ends || !breakers || !words) return false;
    if (p->dry_multiplier <= 0 || p->dry_breakers.count == 0) return true;
    s->breakers = sh_calloc(p->dry_breakers.count, sizeof *s->breakers);
    if (s->breakers == NULL) return false;
    const int32_t *tokens = p->dry_breakers.tokens;
    for (uint32_t i = 0; i < p->dry_breakers.count; i++) {
        s->breakers[i] = (struct breaker){.head = tokens[0], .n_tail = p->dry_breakers.lengths[i] - 1, .tail = tokens + 1};
        tokens += p->dry_breakers.lengths[i];
    }
    qsort(s->breakers, p->dry_breakers.count, sizeof *s->breakers, by_head);
    return true;
}

enum sh_code sh_sampler_create(const struct sh_sampler_params *params, uint32_t n_vocab, struct sh_sampler **out,
                               struct sh_error *err) {
    SH_ASSERT(n_vocab > 0);
    struct sh_sampler_params p = {0};
    if (params != NULL) memcpy(&p, params, params->size < sizeof p ? params->size : sizeof p);
    p.size = sizeof p;
    set_defaults(&p);
    const enum sh_code code = check(&p, n_vocab, err);
    if (code != SH_OK) return code;
    if (p.temperature < COLDEST) p.temperature = 0;

    struct sh_sampler *s = sh_calloc(1, sizeof *s);
    if (s == NULL) goto no_memory;
    s->n_vocab = n_vocab;
    s->params = p;
    s->edits = sh_sampler_edits(&p);
    s->filters = sh_sampler_filters(&p, n_vocab);
    s->short_list = sh_sampler_short(&p, n_vocab);
    s->inverse_temperature = p.temperature > 0 ? 1 / p.temperature : 0;
    if (!own_params(s)) goto no_memory;
    if (s->edits) {
        s->logits = sh_calloc(n_vocab, sizeof *s->logits);
        s->counts = sh_calloc(n_vocab, sizeof *s->counts);
        if (s->logits == NULL || s->counts == NULL) goto no_memory;
    }
    if (s->filters) {
        s->candidates = sh_calloc(s->short_list ? SH_SHORT_LIST : n_vocab, sizeof *s->candidates);
        if (s->candidates == NULL) goto no_memory;
    }
    if (s->filters && sh_sampler_typical(&p)) {
        s->typical = sh_calloc(n_vocab, sh_sampler_typical_size());
        if (s->typical == NULL) goto no_memory;
    }
    *out = s;
    return SH_OK;

no_memory:
    sh_sampler_destroy(s);
    return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a sampler over %u tokens", n_vocab);
}

void sh_sampler_destroy(struct sh_sampler *s) {
    if (s == NULL) return;
    free((void *)s->params.bias);
    free((void *)s->params.end_tokens);
    free((void *)s->params.dry_breakers.tokens);
    free((void *)s->params.dry_breakers.lengths);
    free((void *)s->params.bad_words.tokens);
    free((void *)s->params.bad_words.lengths);
    free(s->logits);
    free(s->counts);
    free(s->candidates);
    free(s->typical);
    free(s->breakers);
    free(s->repeats);
    free(s->drawn);
    free(s);
}

bool sh_sampler_has_short_list(const struct sh_sampler *s) { return s->short_list; }

bool sh_sampler_suits_device(const struct sh_sampler *s) { return !s->edits && (!s->filters || s->short_list); }

const struct sh_sampler_params *sh_sampler_params(const struct sh_sampler *s) { return &s->params; }

/* ---- what mirostat remembers ---- */

void sh_sampler_truncate(struct sh_sampler *s, uint32_t length) {
    if (s == NULL || s->n_drawn == 0 || length >= s->first_drawn + s->n_drawn) return;
    s->n_drawn = length >= s->first_drawn ? length - s->first_drawn + 1 : 0;
}

/* What is recorded for `position` from now on; positions that were left out are holes. */
static enum sh_code remember(struct sh_sampler *s, uint32_t position, int32_t token, double surprise, struct sh_error *err) {
    if (s->n_drawn == 0 || position < s->first_drawn) {
        s->n_drawn = 0;
        s->first_drawn = position;
    }
    const uint32_t index = position - s->first_drawn;
    if (!sh_grow((void **)&s->drawn, &s->cap_drawn, index + 1, sizeof *s->drawn))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for mirostat's record of %u tokens", index + 1);
    for (uint32_t i = s->n_drawn; i < index; i++) s->drawn[i] = (struct drawn){.token = -1};
    s->drawn[index] = (struct drawn){.token = token, .surprise = surprise};
    s->n_drawn = index + 1;
    return SH_OK;
}

static double mirostat_mu(const struct sh_sampler *s, const struct sh_token_history *h, uint32_t position) {
    const double tau = (double)s->params.mirostat_tau, eta = (double)s->params.mirostat_eta;
    double mu = 2 * tau;
    for (uint32_t i = 0; i < s->n_drawn; i++) {
        const uint32_t p = s->first_drawn + i;
        if (p >= position || p >= h->count) break;
        if (s->drawn[i].token >= 0 && s->drawn[i].token == h->tokens[p]) mu -= eta * (s->drawn[i].surprise - tau);
    }
    return mu;
}

/* ---- picking ---- */

uint32_t sh_mask_count(const uint32_t *mask, uint32_t n_vocab) {
    uint32_t n = 0;
    for (uint32_t w = 0; w < sh_mask_words(n_vocab) && n < 2; w++) {
        const uint32_t left = n_vocab - w * 32, bits = left < 32 ? mask[w] & ((1u << left) - 1) : mask[w];
        if (bits != 0) n += (bits & (bits - 1)) != 0 ? 2 : 1;
    }
    return n < 2 ? n : 2;
}

/* The largest of the mask's, lowest id on ties; -1 if there is no number at all. */
static int32_t argmax(const float *logits, const uint32_t *mask, uint32_t n) {
    int32_t best = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (mask != NULL && i % 32 == 0 && mask[i / 32] == 0) { /* most words of most masks */
            i += 31;
            continue;
        }
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best]) && (mask == NULL || sh_mask_has(mask, i)))
            best = (int32_t)i;
    }
    return best;
}

/* The largest of the mask's tokens, and what it is judged by: the edited logits, or the raw ones where nothing of the mask is left. */
static int32_t largest_of_mask(const struct sh_sampler *s, const float *logits, const uint32_t *mask, const float **edited) {
    const int32_t largest = argmax(*edited, mask, s->n_vocab);
    if (*edited == logits || (largest >= 0 && (*edited)[largest] > -INFINITY)) return largest;
    *edited = logits;
    return argmax(logits, mask, s->n_vocab);
}

/* s->logits becomes logits in which only the mask's tokens take part. */
static enum sh_code apply_mask(struct sh_sampler *s, const float *logits, const uint32_t *mask, struct sh_error *err) {
    if (s->logits == NULL) s->logits = sh_calloc(s->n_vocab, sizeof *s->logits);
    if (s->logits == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for masked logits of %u tokens", s->n_vocab);
    for (uint32_t w = 0; w < sh_mask_words(s->n_vocab); w++) {
        const uint32_t left = s->n_vocab - w * 32, n = left < 32 ? left : 32, bits = mask[w];
        const float *from = logits + (size_t)w * 32;
        float *to = s->logits + (size_t)w * 32;
        if (bits == 0) {
            for (uint32_t k = 0; k < n; k++) to[k] = -INFINITY;
        } else {
            for (uint32_t k = 0; k < n; k++) to[k] = (bits >> k & 1) != 0 ? from[k] : -INFINITY;
        }
    }
    return SH_OK;
}

/* What the draw compares. */
static float draw_key(const struct sh_sampler *s, float logit, uint32_t position, uint32_t token) {
    return logit * s->inverse_temperature + sh_gumbel(s->params.seed, s->params.choice, position, token);
}

/* The candidate of the largest key; the order they come in does not matter. */
static int32_t draw(const struct sh_sampler *s, const struct candidate *c, uint32_t n, uint32_t position) {
    int32_t best = -1;
    float best_key = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        const float key = draw_key(s, c[i].logit, position, (uint32_t)c[i].token);
        if (best < 0 || key > best_key || (key == best_key && c[i].token < best)) {
            best = c[i].token;
            best_key = key;
        }
    }
    return best;
}

/* The same over the whole vocabulary. u stays within [2^-24, 1 - 2^-24], so Gumbel noise stays below 16.7: a token whose logit/T
 * is further than that behind a key already seen cannot win, and needs no random number. */
static int32_t draw_all(const struct sh_sampler *s, const float *logits, int32_t largest, uint32_t position) {
    const float most = 16.7f;
    int32_t best = largest;
    float best_key = draw_key(s, logits[largest], position, (uint32_t)largest);
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        const float scaled = logits[i] * s->inverse_temperature;
        if (isnan(scaled) || scaled == -INFINITY || scaled + most < best_key) continue;
        const float key = draw_key(s, logits[i], position, i);
        if (key > best_key || (key == best_key && (int32_t)i < best)) {
            best = (int32_t)i;
            best_key = key;
        }
    }
    return best;
}

static enum sh_code draw_mirostat(struct sh_sampler *s, const float *logits, int32_t largest, bool only,
                                  const struct sh_token_history *history, uint32_t position, int32_t *token,
                                  struct sh_error *err) {
    double log_total;
    const uint32_t n = sh_sampler_mirostat(s, logits, largest, mirostat_mu(s, history, position), &log_total);
    *token = draw(s, s->candidates, n, position);
    if (only) return SH_OK;
    const double scaled = ((double)logits[*token] - (double)logits[largest]) / (double)s->params.temperature;
    return remember(s, position, *token, (log_total - scaled) / log(2.0), err);
}

/* The mask's tokens by what they are judged by: as largest_of_mask. False: none has a logit above -infinity. */
static bool pick_short(struct sh_sampler *s, const float *logits, const float *edited, const uint32_t *mask, uint32_t position,
                       int32_t *token) {
    struct candidate *c = s->candidates;
    uint32_t n = sh_sampler_top(edited, mask, s->n_vocab, -INFINITY, s->params.top_k, c);
    if (n == 0 && mask != NULL && edited != logits) n = sh_sampler_top(logits, mask, s->n_vocab, -INFINITY, s->params.top_k, c);
    if (n == 0) return false;
    *token = isinf(c[0].logit) ? c[0].token : draw(s, c, sh_sampler_cut(s, c, n), position);
    return true;
}

enum sh_code sh_sampler_pick(struct sh_sampler *s, const float *logits, const uint32_t *mask,
                             const struct sh_token_history *history, uint32_t position, int32_t *token, struct sh_error *err) {
    const float *edited = logits;
    if (s->edits) {
        const enum sh_code code = sh_sampler_edit(s, logits, history, err);
        if (code != SH_OK) return code;
        edited = s->logits;
    }
    if (s->short_list && pick_short(s, logits, edited, mask, position, token)) return SH_OK;
    const int32_t largest = mask != NULL ? largest_of_mask(s, logits, mask, &edited) : argmax(edited, NULL, s->n_vocab);
    if (largest < 0)
        return sh_fail(err, SH_ERR_DEVICE,
                       "the logits for position %u are not numbers: the model's weights or the device are at fault", position);
    if (s->params.temperature == 0 || isinf(edited[largest])) {
        *token = largest;
        return SH_OK;
    }
    if (mask != NULL) {
        const enum sh_code code = apply_mask(s, edited, mask, err);
        if (code != SH_OK) return code;
        edited = s->logits;
    }
    if (s->params.mirostat != 0) {
        const bool only = mask != NULL && sh_mask_count(mask, s->n_vocab) == 1;
        return draw_mirostat(s, edited, largest, only, history, position, token, err);
    } else if (s->filters) {
        uint32_t first;
        const uint32_t kept = sh_sampler_filter(s, edited, edited[largest], position, &first);
        *token = draw(s, s->candidates + first, kept, position);
    } else {
        *token = draw_all(s, edited, largest, position);
    }
    return SH_OK;
}
