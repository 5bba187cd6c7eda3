/*
 * sampler.h - the inside of a sampler, for the files of this folder: sampler.c (its life, the draw), edit.c (what changes logits
 * before anything is chosen) and filter.c (what leaves candidates out). The order of all is in engine.h.
 */
#ifndef SHIMMY_SAMPLER_H
#define SHIMMY_SAMPLER_H

#include "compute/sample/sample.h"

struct candidate {
    int32_t token;
    float logit;
};

struct breaker { /* DRY: token `head`, followed by these */
    int32_t head;
    uint32_t n_tail;
    const int32_t *tail;
};

struct drawn { /* mirostat */
    int32_t token; /* -1: none was drawn */
    double surprise; /* bits, within what the truncation left */
};

struct sh_sampler {
    struct sh_sampler_params params; /* what it points to is owned */
    uint32_t n_vocab;
    bool edits, filters;          /* logits are changed; candidates are left out (temperature > 0) */
    float *logits;                /* [n_vocab] edited or masked copy; made with edits, else at the first mask */
    uint32_t *counts;             /* [n_vocab] all zero between calls, if edits */
    struct candidate *candidates; /* [n_vocab], if filters */
    struct typical *typical;      /* [n_vocab], with typical_p; see filter.c */
    struct breaker *breakers;     /* [params.dry_breakers.count], by head, then n_tail */
    uint32_t *repeats;            /* [cap_repeats] scratch of DRY */
    uint32_t cap_repeats;
    struct drawn *drawn;          /* [n_drawn], for positions from first_drawn on */
    uint32_t first_drawn, n_drawn, cap_drawn;
};

/* edit.c */
bool sh_sampler_edits(const struct sh_sampler_params *params);
/* s->logits becomes the edited logits. */
enum sh_code sh_sampler_edit(struct sh_sampler *s, const float *logits, const struct sh_token_history *history,
                             struct sh_error *err);

/* filter.c. What is left is in s->candidates, from *first on (mirostat: from 0); they return how many, at least one. The largest
 * logit is finite. */
bool sh_sampler_filters(const struct sh_sampler_params *params, uint32_t n_vocab);
bool sh_sampler_typical(const struct sh_sampler_params *params);
size_t sh_sampler_typical_size(void); /* of one element of s->typical */
uint32_t sh_sampler_filter(struct sh_sampler *s, const float *logits, uint32_t position, uint32_t *first);
/* Mirostat 2: those with a surprise of at most mu bits, and `largest`. *log_total: natural logarithm of the sum of
 * exp((l - largest's) / T) over them. */
uint32_t sh_sampler_mirostat(struct sh_sampler *s, const float *logits, int32_t largest, double mu, double *log_total);

#endif
