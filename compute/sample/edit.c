/* What changes logits before a token is chosen: bias, penalties, DRY, and tokens that may not be drawn now. */
#include "compute/sample/sampler.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

static bool penalised(const struct sh_sampler_params *p) {
    return (p->repeat_penalty != 0 && p->repeat_penalty != 1) || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

bool sh_sampler_edits(const struct sh_sampler_params *p) {
    return p->n_bias > 0 || penalised(p) || p->dry_multiplier > 0 || (p->min_tokens > 0 && p->n_end_tokens > 0) ||
           p->bad_words.count > 0;
}

static bool is_token(const struct sh_sampler *s, int32_t token) { return token >= 0 && (uint32_t)token < s->n_vocab; }

/* ---- penalties ---- */

static void repeat_penalty(struct sh_sampler *s, const struct sh_token_history *h) {
    const float r = s->params.repeat_penalty;
    if (r == 0 || r == 1) return;
    const uint32_t from = h->count > s->params.repeat_last_n ? h->count - s->params.repeat_last_n : 0;
    for (uint32_t i = from; i < h->count; i++) {
        const int32_t t = h->tokens[i];
        if (!is_token(s, t) || s->counts[t]++ > 0) continue; /* once per token */
        s->logits[t] = s->logits[t] > 0 ? s->logits[t] / r : s->logits[t] * r;
    }
    for (uint32_t i = from; i < h->count; i++)
        if (is_token(s, h->tokens[i])) s->counts[h->tokens[i]] = 0;
}

static bool is_generated(const struct sh_sampler *s, const struct sh_token_history *h, uint32_t i) {
    return h->roles[i] == SH_ROLE_GENERATED && is_token(s, h->tokens[i]);
}

static void frequency_penalty(struct sh_sampler *s, const struct sh_token_history *h) {
    const float frequency = s->params.frequency_penalty, presence = s->params.presence_penalty;
    if (frequency == 0 && presence == 0) return;
    for (uint32_t i = 0; i < h->count; i++)
        if (is_generated(s, h, i)) s->counts[h->tokens[i]]++;
    for (uint32_t i = 0; i < h->count; i++) {
        if (!is_generated(s, h, i)) continue;
        const int32_t t = h->tokens[i];
        if (s->counts[t] == 0) continue; /* done at its first occurrence */
        s->logits[t] -= (float)s->counts[t] * frequency + presence;
        s->counts[t] = 0;
    }
}

/* ---- DRY (p-e-w, "DRY: A modern repetition penalty that reliably prevents looping", 2024) ---- */

/* The tokens looked at, latest first: back[-i]. Embeddings (-1) equal nothing, not even each other. */
struct window {
    const int32_t *back;
    uint32_t n;
};

static int32_t at(const struct window *w, uint32_t i) { return w->back[-(ptrdiff_t)i]; }

static bool same(const struct window *w, uint32_t i, uint32_t j) { return at(w, i) >= 0 && at(w, i) == at(w, j); }

/* The first breaker with that head, or the place where one would stand. */
static uint32_t find_breaker(const struct sh_sampler *s, int32_t head) {
    uint32_t low = 0, high = s->params.dry_breakers.count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (s->breakers[middle].head < head) low = middle + 1;
        else high = middle;
    }
    return low;
}

static bool breaks_alone(const struct sh_sampler *s, int32_t token) {
    const uint32_t i = find_breaker(s, token);
    return i < s->params.dry_breakers.count && s->breakers[i].head == token && s->breakers[i].n_tail == 0;
}

/* How long a repetition that ends with the latest token can be: it begins after the last breaker. */
static uint32_t repetition_limit(const struct sh_sampler *s, const struct window *w) {
    for (uint32_t i = 0; i < w->n; i++) {
        bool found = false;
        uint32_t longest = 0;
        for (uint32_t b = find_breaker(s, at(w, i)); b < s->params.dry_breakers.count && s->breakers[b].head == at(w, i); b++) {
            const struct breaker *breaker = &s->breakers[b];
            uint32_t k = 0;
            while (k < breaker->n_tail && k < i && breaker->tail[k] == at(w, i - 1 - k)) k++;
            if (k < breaker->n_tail) continue;
            found = true;
            longest = breaker->n_tail; /* they ascend */
        }
        if (found) return i - longest;
    }
    return w->n;
}

/* z[j]: how many tokens from the j-th last backwards are those from the last backwards (Main and Lorentz's Z function). */
static void repetitions(const struct window *w, uint32_t *z) {
    uint32_t begin = 0, end = 0; /* of the match known that reaches furthest back */
    for (uint32_t j = 1; j < w->n; j++) {
        uint32_t k = 0;
        if (j < end) k = z[j - begin] < end - j ? z[j - begin] : end - j;
        while (j + k < w->n && same(w, k, j + k)) k++;
        z[j] = k;
        if (j + k > end) {
            begin = j;
            end = j + k;
        }
    }
}

static enum sh_code dry(struct sh_sampler *s, const struct sh_token_history *h, struct sh_error *err) {
    const struct sh_sampler_params *p = &s->params;
    if (p->dry_multiplier <= 0 || h->count == 0) return SH_OK;
    const uint32_t n = p->dry_penalty_last_n > 0 && p->dry_penalty_last_n < h->count ? p->dry_penalty_last_n : h->count;
    const struct window w = {h->tokens + h->count - 1, n};
    if (n <= p->dry_allowed_length) return SH_OK;
    const uint32_t limit = repetition_limit(s, &w);
    if (limit < p->dry_allowed_length) return SH_OK;
    if (!sh_grow((void **)&s->repeats, &s->cap_repeats, n, sizeof *s->repeats))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to look for repetitions in %u tokens", n);
    repetitions(&w, s->repeats);
    for (uint32_t j = 1; j < n; j++) { /* the token after a repetition would continue it */
        const uint32_t length = s->repeats[j] < limit ? s->repeats[j] : limit;
        const int32_t t = at(&w, j - 1);
        if (length >= p->dry_allowed_length && is_token(s, t) && s->counts[t] < length) s->counts[t] = length;
    }
    /* so that the power stays a float */
    const double most = p->dry_base > 1.000001f ? floor(log((double)FLT_MAX) / log((double)p->dry_base)) : (double)n;
    for (uint32_t j = 0; j < n; j++) {
        const int32_t t = at(&w, j);
        if (!is_token(s, t) || s->counts[t] == 0) continue;
        const double exponent = fmin((double)(s->counts[t] - p->dry_allowed_length), most);
        s->counts[t] = 0;
        if (breaks_alone(s, t)) continue;
        s->logits[t] -= (float)fmin((double)p->dry_multiplier * pow((double)p->dry_base, exponent), (double)FLT_MAX);
    }
    return SH_OK;
}

/* ---- what may not be drawn ---- */

static void forbid_end(struct sh_sampler *s, const struct sh_token_history *h) {
    const struct sh_sampler_params *p = &s->params;
    uint32_t generated = 0;
    for (uint32_t i = h->count; i-- > 0 && generated < p->min_tokens;) generated += h->roles[i] == SH_ROLE_GENERATED;
    if (generated >= p->min_tokens) return;
    for (uint32_t i = 0; i < p->n_end_tokens; i++) s->logits[p->end_tokens[i]] = -INFINITY;
}

static void forbid_words(struct sh_sampler *s, const struct sh_token_history *h) {
    const int32_t *word = s->params.bad_words.tokens;
    for (uint32_t i = 0; i < s->params.bad_words.count; i++) {
        const uint32_t begun = s->params.bad_words.lengths[i] - 1;
        uint32_t k = 0;
        if (begun <= h->count)
            while (k < begun && is_generated(s, h, h->count - begun + k) && h->tokens[h->count - begun + k] == word[k]) k++;
        if (k == begun) s->logits[word[begun]] = -INFINITY;
        word += begun + 1;
    }
}

enum sh_code sh_sampler_edit(struct sh_sampler *s, const float *logits, const struct sh_token_history *history,
                             struct sh_error *err) {
    memcpy(s->logits, logits, s->n_vocab * sizeof *logits);
    for (uint32_t i = 0; i < s->params.n_bias; i++) s->logits[s->params.bias[i].token] += s->params.bias[i].bias;
    repeat_penalty(s, history);
    frequency_penalty(s, history);
    const enum sh_code code = dry(s, history, err);
    if (code != SH_OK) return code;
    forbid_end(s, history);
    forbid_words(s, history);
    return SH_OK;
}
