/* constraint.c - see constraint.h. */
#include "daemon/constraint.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <stdlib.h>

struct constraint {
    struct sh_matcher *matcher;
    const int32_t *ends;
    uint32_t n_ends, n_words;
    uint32_t n_accepted;
    bool known; /* next is of the present place */
    struct constraint_next next;
    uint32_t *mask; /* [n_words] the matcher's, and the ends */
};

enum sh_code constraint_create(struct sh_grammar *grammar, uint32_t n_vocab, const int32_t *ends, uint32_t n_ends,
                               struct constraint **out, struct sh_error *err) {
    *out = NULL;
    struct constraint *c = sh_calloc(1, sizeof *c);
    if (!c) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a grammar's matcher");
    *c = (struct constraint){.ends = ends, .n_ends = n_ends, .n_words = n_vocab / 32 + (n_vocab % 32 != 0)};
    c->mask = sh_calloc(c->n_words, sizeof *c->mask);
    enum sh_code code = c->mask ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a mask of %u tokens", n_vocab);
    if (code == SH_OK) code = sh_matcher_create(grammar, &c->matcher, err);
    if (code) {
        constraint_destroy(c);
        return code;
    }
    *out = c;
    return SH_OK;
}

void constraint_destroy(struct constraint *c) {
    if (!c) return;
    sh_matcher_destroy(c->matcher);
    free(c->mask);
    free(c);
}

static enum sh_code grammar_failed(const struct constraint *c, enum sh_code code, const struct sh_error *why, struct sh_error *err) {
    return sh_fail(err, code, "the grammar that the answer is held to cannot go on after %u tokens: %s", c->n_accepted, why->message);
}

/* The tokens that end a choice join the mask; `count` counts those that were not in it. */
static void add_ends(struct constraint *c, uint32_t *count) {
    for (uint32_t i = 0; i < c->n_ends; i++) {
        const uint32_t token = (uint32_t)c->ends[i], bit = 1u << token % 32;
        *count += (c->mask[token / 32] & bit) == 0;
        c->mask[token / 32] |= bit;
    }
}

static enum sh_code look(struct constraint *c, struct sh_error *err) {
    const uint32_t *mask;
    uint32_t count;
    int32_t only;
    struct sh_error why = {0};
    enum sh_code code = sh_matcher_mask(c->matcher, &mask, &count, &only, &why);
    if (code) return grammar_failed(c, code, &why, err);
    bool can_end = sh_matcher_can_end(c->matcher);
    if (count == 0 && !can_end) {
        sh_fail(&why, SH_ERR_UNSUPPORTED, "the model has no token for what has to come there, and the text may not end there");
        return grammar_failed(c, SH_ERR_UNSUPPORTED, &why, err);
    }
    if (count == 0) {
        c->next = (struct constraint_next){.kind = CONSTRAINT_END, .token = -1};
        return SH_OK;
    }
    memcpy(c->mask, mask, c->n_words * sizeof *mask);
    if (can_end) add_ends(c, &count);
    bool forced = count == 1;
    c->next = (struct constraint_next){
        .kind = forced ? CONSTRAINT_FORCED : CONSTRAINT_SAMPLE, .mask = c->mask, .token = forced ? only : -1};
    return SH_OK;
}

enum sh_code constraint_next(struct constraint *c, struct constraint_next *out, struct sh_error *err) {
    if (!c->known) {
        uint64_t begun = sh_now_ns();
        enum sh_code code = look(c, err);
        metric_observe(METRIC_GRAMMAR_MASK, NULL, (double)(sh_now_ns() - begun) / 1e9);
        if (code) return code;
        c->known = true;
    }
    *out = c->next;
    return SH_OK;
}

enum sh_code constraint_accept(struct constraint *c, int32_t token, struct sh_error *err) {
    struct sh_error why = {0};
    enum sh_code code = sh_matcher_accept(c->matcher, token, &why);
    if (code) return grammar_failed(c, code, &why, err);
    c->known = false;
    c->n_accepted++;
    return SH_OK;
}
