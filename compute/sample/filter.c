/* What leaves candidates out before the draw: top_n_sigma, top_k, typical_p, top_p, min_p and XTC, or mirostat instead of all. */
#include "compute/sample/sampler.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

struct typical {
    double distance; /* of the surprise from the entropy */
    uint32_t rank;
    bool kept;
};

bool sh_sampler_nucleus(const struct sh_sampler_params *p) { return p->top_p > 0 && p->top_p < 1; }

bool sh_sampler_typical(const struct sh_sampler_params *p) { return p->typical_p > 0 && p->typical_p < 1; }

size_t sh_sampler_typical_size(void) { return sizeof(struct typical); }

bool sh_sampler_filters(const struct sh_sampler_params *p, uint32_t n_vocab) {
    if (p->temperature <= 0) return false;
    return p->mirostat != 0 || p->top_n_sigma > 0 || (p->top_k > 0 && p->top_k < n_vocab) || sh_sampler_typical(p) ||
           sh_sampler_nucleus(p) || p->min_p > 0 || p->xtc_probability > 0;
}

bool sh_sampler_short(const struct sh_sampler_params *p, uint32_t n_vocab) {
    return p->temperature > 0 && p->top_k > 0 && p->top_k <= SH_SHORT_LIST && p->top_k < n_vocab && p->mirostat == 0 &&
           p->top_n_sigma <= 0 && !sh_sampler_typical(p) && p->xtc_probability <= 0;
}

/* c[0..n) is a heap with the first-ranked candidate at its root. */
static void sift_down(struct candidate *c, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t first = i;
        const uint32_t left = 2 * i + 1, right = left + 1;
        if (left < n && sh_candidate_before(&c[left], &c[first])) first = left;
        if (right < n && sh_candidate_before(&c[right], &c[first])) first = right;
        if (first == i) return;
        const struct candidate swap = c[i];
        c[i] = c[first];
        c[first] = swap;
        i = first;
    }
}

/* Takes the first-ranked of c[0..n) and puts it at c[n - 1]. */
static void pop(struct candidate *c, uint32_t n) {
    const struct candidate top = c[0];
    c[0] = c[n - 1];
    c[n - 1] = top;
    sift_down(c, n - 1, 0);
}

/* ---- the stages ---- */

static bool takes_part(float logit) { return !isnan(logit) && logit > -INFINITY; }

/* What top_n_sigma asks of a logit (Tang et al., "Top-nσ: Not All Logits Are You Need", 2024). */
static double sigma_floor(const struct sh_sampler *s, const float *logits) {
    if (s->params.top_n_sigma <= 0) return -INFINITY;
    double sum = 0, squares = 0, largest = -INFINITY;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (!takes_part(logits[i])) continue;
        sum += (double)logits[i];
        largest = fmax(largest, (double)logits[i]);
        n++;
    }
    for (uint32_t i = 0; i < s->n_vocab; i++)
        if (takes_part(logits[i])) squares += ((double)logits[i] - sum / n) * ((double)logits[i] - sum / n);
    return largest - (double)s->params.top_n_sigma * sqrt(squares / n);
}

static int by_distance(const void *a, const void *b) {
    const struct typical *x = a, *y = b;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    return x->rank < y->rank ? -1 : 1;
}

static int by_rank(const void *a, const void *b) {
    const struct typical *x = a, *y = b;
    return x->rank < y->rank ? -1 : 1;
}

/* Locally typical sampling (Meister et al., 2023). The ranked candidates are at end[-1], end[-2], ...; what stays moves up to the
 * end. */
static uint32_t typical(struct sh_sampler *s, struct candidate *end, uint32_t n) {
    const double best = (double)end[-1].logit;
    double total = 0, entropy = 0, mass = 0;
    for (uint32_t k = 0; k < n; k++) total += exp((double)end[-1 - (ptrdiff_t)k].logit - best);
    for (uint32_t k = 0; k < n; k++) {
        const double surprise = log(total) - ((double)end[-1 - (ptrdiff_t)k].logit - best);
        entropy += exp(-surprise) * surprise;
        s->typical[k] = (struct typical){.distance = surprise, .rank = k};
    }
    for (uint32_t k = 0; k < n; k++) s->typical[k].distance = fabs(s->typical[k].distance - entropy);
    qsort(s->typical, n, sizeof *s->typical, by_distance);
    for (uint32_t k = 0; k < n && mass <= (double)s->params.typical_p; k++) {
        s->typical[k].kept = true;
        mass += exp((double)end[-1 - (ptrdiff_t)s->typical[k].rank].logit - best) / total;
    }
    qsort(s->typical, n, sizeof *s->typical, by_rank);
    uint32_t kept = 0;
    for (uint32_t k = 0; k < n; k++)
        if (s->typical[k].kept) end[-1 - (ptrdiff_t)kept++] = end[-1 - (ptrdiff_t)k];
    return kept;
}

/* Exclude top choices: how many of the first-ranked go. */
static uint32_t top_choices(const struct sh_sampler *s, const struct candidate *end, uint32_t n, uint32_t position) {
    const struct sh_sampler_params *p = &s->params;
    if (p->xtc_probability <= 0 || n < 2 || sh_uniform(p->seed, p->choice, position) > p->xtc_probability) return 0;
    const double best = (double)end[-1].logit;
    double total = 0;
    for (uint32_t k = 0; k < n; k++) total += exp((double)end[-1 - (ptrdiff_t)k].logit - best);
    uint32_t likely = 0;
    while (likely < n && exp((double)end[-1 - (ptrdiff_t)likely].logit - best) >= (double)p->xtc_threshold * total) likely++;
    return likely > 0 ? likely - 1 : 0;
}

uint32_t sh_sampler_filter(struct sh_sampler *s, const float *logits, float largest, uint32_t position, uint32_t *first) {
    const struct sh_sampler_params *p = &s->params;
    struct candidate *c = s->candidates;
    const bool nucleus = sh_sampler_nucleus(p), typical_on = sh_sampler_typical(p), few = p->top_k > 0 && p->top_k < s->n_vocab;
    double least = sigma_floor(s, logits);
    if (p->min_p > 0 && !nucleus && !typical_on) /* nobody asks how many there were: what min_p takes out need not be ranked */
        least = fmax(least, (double)largest + log((double)p->min_p));
    uint32_t n = 0;
    if (few) {
        n = sh_sampler_top(logits, NULL, s->n_vocab, least, p->top_k, c);
        for (uint32_t i = 0; i < n / 2; i++) {
            const struct candidate swap = c[i];
            c[i] = c[n - 1 - i];
            c[n - 1 - i] = swap;
        }
    } else {
        for (uint32_t i = 0; i < s->n_vocab; i++)
            if (takes_part(logits[i]) && (double)logits[i] >= least)
                c[n++] = (struct candidate){.token = (int32_t)i, .logit = logits[i]};
        for (uint32_t i = n / 2; i-- > 0;) sift_down(c, n, i);
        for (uint32_t k = 0; k < n && typical_on; k++) pop(c, n - k); /* ranked, because the sums over them are in that order */
    }
    uint32_t most = n;
    const bool popped = few || typical_on; /* they are ranked, from the end on */
    if (typical_on) most = typical(s, c + n, most);
    const double best = (double)(popped ? c[n - 1].logit : c[0].logit);
    double total = 0; /* of exp(logit - best) over what is left so far */
    for (uint32_t k = 0; k < most && nucleus; k++) total += exp((double)c[popped ? n - 1 - k : k].logit - best);
    const double floor_logit = p->min_p > 0 ? best + log((double)p->min_p) : -INFINITY;
    double mass = 0;
    uint32_t kept = 0;
    while (kept < most) {
        const float logit = popped ? c[n - 1 - kept].logit : c[0].logit;
        if (kept > 0 && ((nucleus && mass >= (double)p->top_p * total) || (double)logit < floor_logit)) break;
        if (!popped) pop(c, n - kept);
        mass += exp((double)logit - best);
        kept++;
    }
    *first = n - kept;
    return kept - top_choices(s, c + n, kept, position);
}

uint32_t sh_sampler_mirostat(struct sh_sampler *s, const float *logits, int32_t largest, double mu, double *log_total) {
    const double t = (double)s->params.temperature, best = (double)logits[largest];
    double total = 0, kept_total = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_vocab; i++)
        if (takes_part(logits[i])) total += exp(((double)logits[i] - best) / t);
    const double floor_log = log(total) - mu * log(2.0); /* of (logit - best) / T */
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (!takes_part(logits[i]) || (((double)logits[i] - best) / t < floor_log && (int32_t)i != largest)) continue;
        s->candidates[n++] = (struct candidate){.token = (int32_t)i, .logit = logits[i]};
        kept_total += exp(((double)logits[i] - best) / t);
    }
    *log_total = log(kept_total);
    return n;
}
