/* The host sampler: one sequence's filters in the order that engine.h states, and the draw. */
#include "compute/sample/sample.h"

#include <math.h>
#include <stdlib.h>

/* Below this logit / T may overflow, and ties between infinities would go to the lowest id. The noise is under 17, so that a colder draw
 * takes the largest logit anyway unless another is within 2e-5 of it. */
#define COLDEST 1e-6f

struct candidate {
    int32_t token;
    float logit;
};

struct sh_sampler {
    struct sh_sampler_params params;
    struct sh_logit_bias *bias;
    uint32_t n_vocab;
    bool edits, filters;          /* bias or penalties; top_k, top_p or min_p (temperature > 0) */
    float *logits;                /* [n_vocab] edited copy, if edits */
    uint32_t *counts;             /* [n_vocab] all zero between calls, if edits */
    struct candidate *candidates; /* [n_vocab], if filters */
};

/* ---- life ---- */

static bool penalised(const struct sh_sampler_params *p) {
    return (p->repeat_penalty != 0 && p->repeat_penalty != 1) || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

static enum sh_code check(const struct sh_sampler_params *p, uint32_t n_vocab, struct sh_error *err) {
    const struct {
        const char *name;
        float value, lowest, highest;
    } ranges[] = {
        {"temperature", p->temperature, 0, 1e6f},
        {"top_p", p->top_p, 0, 1e6f},
        {"min_p", p->min_p, 0, 1},
        {"repeat_penalty", p->repeat_penalty, 0, 1e6f},
        {"frequency_penalty", p->frequency_penalty, -1e6f, 1e6f},
        {"presence_penalty", p->presence_penalty, -1e6f, 1e6f},
    };
    for (size_t i = 0; i < SH_COUNT(ranges); i++)
        if (!(ranges[i].value >= ranges[i].lowest && ranges[i].value <= ranges[i].highest))
            return sh_fail(err, SH_ERR_INVALID, "sampler: %s is %g, expected %g to %g", ranges[i].name, (double)ranges[i].value,
                           (double)ranges[i].lowest, (double)ranges[i].highest);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].token < 0 || (uint32_t)p->bias[i].token >= n_vocab)
            return sh_fail(err, SH_ERR_INVALID, "sampler: logit_bias for token %d, the vocabulary has 0 to %u", p->bias[i].token,
                           n_vocab - 1);
        if (isnan(p->bias[i].bias) || p->bias[i].bias == INFINITY)
            return sh_fail(err, SH_ERR_INVALID, "sampler: logit_bias of token %d is %g, expected a number or -infinity",
                           p->bias[i].token, (double)p->bias[i].bias);
    }
    return SH_OK;
}

enum sh_code sh_sampler_create(const struct sh_sampler_params *params, uint32_t n_vocab, struct sh_sampler **out,
                               struct sh_error *err) {
    SH_ASSERT(n_vocab > 0);
    struct sh_sampler_params p = {0};
    if (params != NULL) memcpy(&p, params, params->size < sizeof p ? params->size : sizeof p);
    p.size = sizeof p;
    const enum sh_code code = check(&p, n_vocab, err);
    if (code != SH_OK) return code;
    if (p.repeat_last_n == 0) p.repeat_last_n = 64;
    if (p.temperature < COLDEST) p.temperature = 0;

    struct sh_sampler *s = sh_calloc(1, sizeof *s);
    if (s == NULL) goto no_memory;
    s->n_vocab = n_vocab;
    s->edits = p.n_bias > 0 || penalised(&p);
    s->filters = p.temperature > 0 && ((p.top_k > 0 && p.top_k < n_vocab) || (p.top_p > 0 && p.top_p < 1) || p.min_p > 0);
    if (p.n_bias > 0) {
        s->bias = sh_calloc(p.n_bias, sizeof *s->bias);
        if (s->bias == NULL) goto no_memory;
        memcpy(s->bias, p.bias, p.n_bias * sizeof *s->bias);
    }
    p.bias = s->bias;
    s->params = p;
    if (s->edits) {
        s->logits = sh_calloc(n_vocab, sizeof *s->logits);
        s->counts = sh_calloc(n_vocab, sizeof *s->counts);
        if (s->logits == NULL || s->counts == NULL) goto no_memory;
    }
    if (s->filters) {
        s->candidates = sh_calloc(n_vocab, sizeof *s->candidates);
        if (s->candidates == NULL) goto no_memory;
    }
    *out = s;
    return SH_OK;

no_memory:
    sh_sampler_destroy(s);
    return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a sampler over %u tokens", n_vocab);
}

void sh_sampler_destroy(struct sh_sampler *s) {
    if (s == NULL) return;
    free(s->bias);
    free(s->logits);
    free(s->counts);
    free(s->candidates);
    free(s);
}

bool sh_sampler_is_plain(const struct sh_sampler *s) { return !s->edits && !s->filters; }

const struct sh_sampler_params *sh_sampler_params(const struct sh_sampler *s) { return &s->params; }

/* ---- bias and penalties ---- */

static void repeat_penalty(struct sh_sampler *s, const struct sh_token_history *h) {
    const float r = s->params.repeat_penalty;
    if (r == 0 || r == 1) return;
    const uint32_t from = h->count > s->params.repeat_last_n ? h->count - s->params.repeat_last_n : 0;
    for (uint32_t i = from; i < h->count; i++) {
        const int32_t t = h->tokens[i];
        if (t < 0 || (uint32_t)t >= s->n_vocab || s->counts[t]++ > 0) continue; /* once per token */
        s->logits[t] = s->logits[t] > 0 ? s->logits[t] / r : s->logits[t] * r;
    }
    for (uint32_t i = from; i < h->count; i++)
        if (h->tokens[i] >= 0 && (uint32_t)h->tokens[i] < s->n_vocab) s->counts[h->tokens[i]] = 0;
}

static bool counts_for_frequency(const struct sh_sampler *s, const struct sh_token_history *h, uint32_t i) {
    return h->roles[i] == SH_ROLE_GENERATED && h->tokens[i] >= 0 && (uint32_t)h->tokens[i] < s->n_vocab;
}

static void frequency_penalty(struct sh_sampler *s, const struct sh_token_history *h) {
    const float frequency = s->params.frequency_penalty, presence = s->params.presence_penalty;
    if (frequency == 0 && presence == 0) return;
    for (uint32_t i = 0; i < h->count; i++)
        if (counts_for_frequency(s, h, i)) s->counts[h->tokens[i]]++;
    for (uint32_t i = 0; i < h->count; i++) {
        if (!counts_for_frequency(s, h, i)) continue;
        const int32_t t = h->tokens[i];
        if (s->counts[t] == 0) continue; /* done at its first occurrence */
        s->logits[t] -= (float)s->counts[t] * frequency + presence;
        s->counts[t] = 0;
    }
}

/* ---- picking ---- */

/* The largest, lowest id on ties; -1 if there is no number at all. */
static int32_t argmax(const float *logits, uint32_t n) {
    int32_t best = -1;
    for (uint32_t i = 0; i < n; i++)
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best])) best = (int32_t)i;
    return best;
}

/* argmax of logit/T + Gumbel over the candidates; the order they come in does not matter. */
static int32_t draw(const struct sh_sampler *s, const struct candidate *c, uint32_t n, uint32_t position) {
    int32_t best = -1;
    float best_key = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        const float key =
            c[i].logit / s->params.temperature + sh_gumbel(s->params.seed, s->params.choice, position, (uint32_t)c[i].token);
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
    const float t = s->params.temperature, most = 16.7f;
    int32_t best = largest;
    float best_key = logits[largest] / t + sh_gumbel(s->params.seed, s->params.choice, position, (uint32_t)largest);
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        const float scaled = logits[i] / t;
        if (isnan(scaled) || scaled == -INFINITY || scaled + most < best_key) continue;
        const float key = scaled + sh_gumbel(s->params.seed, s->params.choice, position, i);
        if (key > best_key || (key == best_key && (int32_t)i < best)) {
            best = (int32_t)i;
            best_key = key;
        }
    }
    return best;
}

static bool before(const struct candidate *a, const struct candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

/* c[0..n) is a heap with the first-ranked candidate at its root. */
static void sift_down(struct candidate *c, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t first = i;
        const uint32_t left = 2 * i + 1, right = left + 1;
        if (left < n && before(&c[left], &c[first])) first = left;
        if (right < n && before(&c[right], &c[first])) first = right;
        if (first == i) return;
        const struct candidate swap = c[i];
        c[i] = c[first];
        c[first] = swap;
        i = first;
    }
}

/* Takes the first-ranked of c[0..n) and puts it at c[n - 1]. */
static struct candidate pop(struct candidate *c, uint32_t n) {
    const struct candidate top = c[0];
    c[0] = c[n - 1];
    c[n - 1] = top;
    sift_down(c, n - 1, 0);
    return top;
}

/* Applies top_k, top_p, min_p. What is left stands at the end of candidates, best last; returns how many, *first where they
 * begin. */
static uint32_t filter(struct sh_sampler *s, const float *logits, uint32_t *first) {
    const struct sh_sampler_params *p = &s->params;
    struct candidate *c = s->candidates;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_vocab; i++)
        if (!isnan(logits[i]) && logits[i] > -INFINITY) c[n++] = (struct candidate){.token = (int32_t)i, .logit = logits[i]};
    for (uint32_t i = n / 2; i-- > 0;) sift_down(c, n, i);

    const uint32_t most = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    const float best = c[0].logit;
    const bool nucleus = p->top_p > 0 && p->top_p < 1;
    double total = 0; /* of exp(logit - best) over what top_k leaves */
    if (nucleus && most == n)
        for (uint32_t i = 0; i < n; i++) total += exp((double)c[i].logit - (double)best);
    if (nucleus && most < n) { /* pop them to know them; the loop below walks the same ones again */
        for (uint32_t k = 0; k < most; k++) total += exp((double)pop(c, n - k).logit - (double)best);
    }
    const double floor_logit = p->min_p > 0 ? (double)best + log((double)p->min_p) : -INFINITY;
    double mass = 0;
    uint32_t kept = 0;
    while (kept < most) {
        const bool popped = nucleus && most < n;
        const float logit = popped ? c[n - 1 - kept].logit : c[0].logit;
        if (kept > 0 && ((nucleus && mass >= (double)p->top_p * total) || (double)logit < floor_logit)) break;
        if (!popped) pop(c, n - kept);
        mass += exp((double)logit - (double)best);
        kept++;
    }
    *first = n - kept;
    return kept;
}

enum sh_code sh_sampler_pick(struct sh_sampler *s, const float *logits, const struct sh_token_history *history, uint32_t position,
                             int32_t *token, struct sh_error *err) {
    const float *edited = logits;
    if (s->edits) {
        memcpy(s->logits, logits, s->n_vocab * sizeof *logits);
        for (uint32_t i = 0; i < s->params.n_bias; i++) s->logits[s->bias[i].token] += s->bias[i].bias;
        repeat_penalty(s, history);
        frequency_penalty(s, history);
        edited = s->logits;
    }
    const int32_t largest = argmax(edited, s->n_vocab);
    if (largest < 0)
        return sh_fail(err, SH_ERR_DEVICE,
                       "the logits for position %u are not numbers: the model's weights or the device are at fault", position);
    if (s->params.temperature == 0 || isinf(edited[largest])) {
        *token = largest;
    } else if (s->filters) {
        uint32_t first;
        const uint32_t kept = filter(s, edited, &first);
        *token = draw(s, s->candidates + first, kept, position);
    } else {
        *token = draw_all(s, edited, largest, position);
    }
    return SH_OK;
}
