/*
 * sampler.h - the inside of a sampler, for the files of this folder: sampler.c (its life, the draw), edit.c (what changes logits
 * before anything is chosen), top.c (the largest logits, the short list) and filter.c (what else leaves candidates out). The order of all is in engine.h.
 */
#ifndef SHIMMY_SAMPLER_H
#define SHIMMY_SAMPLER_H

#include "compute/glsl/draw.h"
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
    bool short_list;              /* filters, and these are of a short list (sample.h) */
    float inverse_temperature;    /* 0 if greedy */
    float *logits;                /* [n_vocab] edited or masked copy; made with edits, else at the first mask */
    uint32_t *counts;             /* [n_vocab] all zero between calls, if edits */
    struct candidate *candidates; /* [n_vocab], if filters; [SH_SHORT_LIST] for a short list */
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

/* top.c. The order in which filters see tokens. */
static inline bool sh_candidate_before(const struct candidate *a, const struct candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}
/* The first `most` (at least 1) in that order of the mask's tokens (NULL: all) with a logit above -infinity and not below `least`, into
 * top, in order. Returns how many there are. */
uint32_t sh_sampler_top(const float *logits, const uint32_t *mask, uint32_t n_vocab, double least, uint32_t most, struct candidate *top);
/* How many of the n > 0 of a short list stay; the first logit is finite. */
uint32_t sh_sampler_cut(const struct sh_sampler *s, const struct candidate *list, uint32_t n);

/* filter.c. What is left is in s->candidates, from *first on (mirostat: from 0); they return how many, at least one. The largest
 * logit is finite, and `largest`. */
bool sh_sampler_filters(const struct sh_sampler_params *params, uint32_t n_vocab);
bool sh_sampler_short(const struct sh_sampler_params *params, uint32_t n_vocab);
bool sh_sampler_nucleus(const struct sh_sampler_params *params);
bool sh_sampler_typical(const struct sh_sampler_params *params);
size_t sh_sampler_typical_size(void); /* of one element of s->typical */
uint32_t sh_sampler_filter(struct sh_sampler *s, const float *logits, float largest, uint32_t position, uint32_t *first);
/* Mirostat 2: those with a surprise of at most mu bits, and `largest`. *log_total: natural logarithm of the sum of
 * exp((l - largest's) / T) over them. */
uint32_t sh_sampler_mirostat(struct sh_sampler *s, const float *logits, int32_t largest, double mu, double *log_total);

#endif
