/* The largest logits of a row in order, without ranking the rest, and what the filters of a short list leave of them. */
#include "compute/sample/sampler.h"

#include <math.h>

enum { BLOCK = 32 }; /* tokens of a mask's word */

/* c[0..n) is a heap with the last-ranked candidate at its root. */
static void sift_down(struct candidate *c, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t last = i;
        const uint32_t left = 2 * i + 1, right = left + 1;
        if (left < n && sh_candidate_before(&c[last], &c[left])) last = left;
        if (right < n && sh_candidate_before(&c[last], &c[right])) last = right;
        if (last == i) return;
        const struct candidate swap = c[i];
        c[i] = c[last];
        c[last] = swap;
        i = last;
    }
}

/* Most blocks of a row have nothing that is still of interest: one branch for each of them. */
static bool any_above(const float *logits, float floor) {
    int above = 0;
    for (uint32_t i = 0; i < BLOCK; i++) above |= logits[i] > floor;
    return above != 0;
}

uint32_t sh_sampler_top(const float *logits, const uint32_t *mask, uint32_t n_vocab, double least, uint32_t most, struct candidate *top) {
    uint32_t n = 0;
    float floor = -INFINITY; /* ids ascend, so a logit that is not above that of a full heap's root comes too late */
    for (uint32_t begin = 0; begin < n_vocab; begin += BLOCK) {
        const uint32_t end = n_vocab - begin < BLOCK ? n_vocab : begin + BLOCK;
        const uint32_t allowed = mask != NULL ? mask[begin / BLOCK] : UINT32_MAX;
        if (allowed == 0 || (end - begin == BLOCK && !any_above(logits + begin, floor))) continue;
        for (uint32_t i = begin; i < end; i++) {
            if (!(logits[i] > floor) || (double)logits[i] < least || (allowed >> (i - begin) & 1) == 0) continue;
            const struct candidate found = {.token = (int32_t)i, .logit = logits[i]};
            if (n < most) {
                top[n++] = found;
                for (uint32_t k = n / 2; n == most && k-- > 0;) sift_down(top, n, k);
            } else {
                top[0] = found;
                sift_down(top, n, 0);
            }
            if (n == most) floor = top[0].logit;
        }
    }
    for (uint32_t k = n / 2; n < most && k-- > 0;) sift_down(top, n, k);
    for (uint32_t last = n; last-- > 1;) {
        const struct candidate root = top[0];
        top[0] = top[last];
        top[last] = root;
        sift_down(top, last, 0);
    }
    return n;
}

uint32_t sh_sampler_cut(const struct sh_sampler *s, const struct candidate *list, uint32_t n) {
    const struct sh_sampler_params *p = &s->params;
    float likely[SH_SHORT_LIST], total = 0, mass = 0;
    for (uint32_t k = 0; k < n; k++) {
        likely[k] = sh_exp_down(list[k].logit - list[0].logit);
        total += likely[k];
    }
    const bool nucleus = sh_sampler_nucleus(p);
    uint32_t kept = 0;
    while (kept < n && (kept == 0 || (!(nucleus && mass >= p->top_p * total) && !(likely[kept] < p->min_p)))) mass += likely[kept++];
    return kept;
}
