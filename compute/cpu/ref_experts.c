/* The scalar reference: which experts a row goes to, and the sum of what they made of it. */
#include "compute/cpu/ref.h"

#include <math.h>

#define LEAST_SUM 0x1p-14f

/* The index of the largest score that is not excluded, the lower of equals; any such index where scores are no numbers. */
static uint32_t pick(const float *scores, const float *excluded, uint32_t begin, uint32_t end) {
    uint32_t best = SH_NONE;
    for (uint32_t e = begin; e < end; e++) {
        if (excluded[e] != 0.0f) continue;
        if (best == SH_NONE || scores[e] > scores[best] || (isnan(scores[best]) && !isnan(scores[e]))) best = e;
    }
    return best;
}

/* Probabilities that select and, but for SOFTMAX_CHOSEN, weigh. */
static void gate(const struct sh_ref_route *r, const float *logits, float *p) {
    const uint32_t n = r->n_expert;
    switch (r->gating) {
    case SH_GATE_SIGMOID:
        for (uint32_t e = 0; e < n; e++) p[e] = 1.0f / (1.0f + expf(-logits[e]));
        break;
    case SH_GATE_SOFTMAX_CHOSEN: memcpy(p, logits, n * sizeof *p); break;
    case SH_GATE_SOFTMAX: {
        float max = logits[0], sum = 0.0f;
        for (uint32_t e = 1; e < n; e++) max = logits[e] > max ? logits[e] : max;
        for (uint32_t e = 0; e < n; e++) {
            p[e] = expf(logits[e] - max);
            sum += p[e];
        }
        for (uint32_t e = 0; e < n; e++) p[e] = p[e] / sum;
        break;
    }
    }
}

/* The sum of a group's two best scores. */
static float group_score(const float *scores, float *excluded, uint32_t begin, uint32_t end) {
    const uint32_t first = pick(scores, excluded, begin, end);
    excluded[first] = 1.0f;
    const uint32_t second = pick(scores, excluded, begin, end);
    excluded[first] = 0.0f;
    return scores[first] + (second != SH_NONE ? scores[second] : 0.0f);
}

/* Excludes the experts of all groups but the best. best, taken: room for n_groups each. */
static void limit_groups(const struct sh_ref_route *r, const float *scores, float *excluded, float *best, float *taken) {
    const uint32_t size = r->n_expert / r->n_groups;
    for (uint32_t g = 0; g < r->n_groups; g++) {
        best[g] = group_score(scores, excluded, g * size, (g + 1) * size);
        taken[g] = 0.0f;
    }
    for (uint32_t i = 0; i < r->n_groups_used; i++) taken[pick(best, taken, 0, r->n_groups)] = 1.0f;
    for (uint32_t g = 0; g < r->n_groups; g++)
        for (uint32_t e = g * size; e < (g + 1) * size; e++) excluded[e] = taken[g] != 0.0f ? 0.0f : 1.0f;
}

/* Weights of the chosen from what gate() gave: p[j], in order of choice. */
static void weigh(const struct sh_ref_route *r, float *p) {
    const uint32_t n = r->n_used;
    float sum = 0.0f;
    if (r->gating == SH_GATE_SOFTMAX_CHOSEN) {
        float max = p[0];
        for (uint32_t j = 1; j < n; j++) max = p[j] > max ? p[j] : max;
        for (uint32_t j = 0; j < n; j++) {
            p[j] = expf(p[j] - max);
            sum += p[j];
        }
        for (uint32_t j = 0; j < n; j++) p[j] = p[j] / sum;
    }
    if (r->normalise) {
        sum = 0.0f;
        for (uint32_t j = 0; j < n; j++) sum += p[j];
        sum = sum < LEAST_SUM ? LEAST_SUM : sum;
        for (uint32_t j = 0; j < n; j++) p[j] = p[j] / sum;
    }
    for (uint32_t j = 0; j < n; j++) p[j] *= r->scale;
}

void sh_ref_route(const struct sh_ref_route *r, const float *logits, const float *bias, float *scratch, float *out) {
    const uint32_t n = r->n_expert;
    float *p = scratch, *scores = p + n, *excluded = scores + n, *best = excluded + n, *taken = best + n;
    gate(r, logits, p);
    for (uint32_t e = 0; e < n; e++) {
        scores[e] = bias != NULL ? p[e] + bias[e] : p[e];
        excluded[e] = 0.0f;
    }
    if (r->n_groups > 1) limit_groups(r, scores, excluded, best, taken);
    for (uint32_t j = 0; j < r->n_used; j++) {
        const uint32_t e = pick(scores, excluded, 0, n);
        excluded[e] = 1.0f;
        out[j] = (float)e;
        out[r->n_used + j] = p[e];
    }
    weigh(r, out + r->n_used);
}

void sh_ref_expert_sum(const float *x, const float *route, uint32_t n_used, uint32_t width, float *out) {
    for (uint32_t i = 0; i < width; i++) {
        float sum = 0.0f;
        for (uint32_t j = 0; j < n_used; j++) sum += route[n_used + j] * x[(size_t)j * width + i];
        out[i] = sum;
    }
}
