/* Log-probs of the raw distribution. */
#include "compute/sample/sample.h"

#include <math.h>

/* Does a stand before b? Descending, ties by id. */
static bool before(const struct sh_top *a, const struct sh_top *b) {
    return a->logprob > b->logprob || (a->logprob == b->logprob && a->token < b->token);
}

/* top[0..n) is a heap with the last-ranked entry at its root. */
static void sift_down(struct sh_top *top, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t last = i;
        const uint32_t left = 2 * i + 1, right = left + 1;
        if (left < n && before(&top[last], &top[left])) last = left;
        if (right < n && before(&top[last], &top[right])) last = right;
        if (last == i) return;
        const struct sh_top swap = top[i];
        top[i] = top[last];
        top[last] = swap;
        i = last;
    }
}

static void sift_up(struct sh_top *top, uint32_t i) {
    while (i > 0 && before(&top[(i - 1) / 2], &top[i])) {
        const struct sh_top swap = top[i];
        top[i] = top[(i - 1) / 2];
        top[(i - 1) / 2] = swap;
        i = (i - 1) / 2;
    }
}

/* logit - log_sum; where one logit is infinite, all that are the largest share the whole probability. */
static float log_probability(float logit, float largest, double log_sum) {
    if (isinf(largest)) return logit == largest ? (float)-log_sum : -INFINITY;
    return (float)((double)logit - log_sum);
}

void sh_logprobs(const float *logits, uint32_t n_vocab, int32_t token, float *logprob, struct sh_top *top, uint32_t n_top) {
    float largest = -INFINITY;
    for (uint32_t i = 0; i < n_vocab; i++)
        if (logits[i] > largest) largest = logits[i];
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (isnan(logits[i])) continue;
        sum += logits[i] == largest ? 1 : exp((double)logits[i] - (double)largest);
        if (n_top == 0) continue;
        const struct sh_top entry = {.token = (int32_t)i, .logprob = logits[i]};
        if (n < n_top) {
            top[n] = entry;
            sift_up(top, n++);
        } else if (before(&entry, &top[0])) {
            top[0] = entry;
            sift_down(top, n, 0);
        }
    }
    const double log_sum = log(sum) + (isinf(largest) ? 0 : (double)largest);
    for (uint32_t end = n; end > 1; end--) { /* heap sort: the last-ranked goes to the end */
        const struct sh_top swap = top[0];
        top[0] = top[end - 1];
        top[end - 1] = swap;
        sift_down(top, end - 1, 0);
    }
    for (uint32_t i = 0; i < n; i++) top[i].logprob = log_probability(top[i].logprob, largest, log_sum);
    for (uint32_t i = n; i < n_top; i++) top[i] = (struct sh_top){.token = -1, .logprob = -INFINITY};
    if (logprob != NULL) *logprob = token >= 0 && (uint32_t)token < n_vocab ? log_probability(logits[token], largest, log_sum) : 0.0f;
}
