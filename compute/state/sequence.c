/* Sequences: their life, sampler, truncation and copies. */
#include "compute/state/context.h"

#include <stdlib.h>

struct sh_sequence *sh_context_sequence(struct sh_context *c, uint32_t sequence, struct sh_error *err) {
    if (sequence < c->params.max_sequences && c->sequences[sequence].used && !c->sequences[sequence].closing)
        return &c->sequences[sequence];
    sh_fail(err, SH_ERR_INVALID, "sequence %u does not exist in this context of up to %u", sequence, c->params.max_sequences);
    return NULL;
}

void sh_sequence_cut(struct sh_context *c, struct sh_sequence *s, uint32_t length) {
    if (length > s->length) return;
    for (uint32_t g = 0; g < c->n_groups; g++) sh_page_table_shrink(&s->tables[g], &c->pools[g], sh_pages_of(length));
    s->length = length;
}

void sh_sequence_free(struct sh_context *c, struct sh_sequence *s) {
    sh_sequence_cut(c, s, 0);
    for (uint32_t g = 0; g < c->n_groups; g++) free(s->tables[g].pages);
    free(s->tables);
    free(s->tokens);
    free(s->roles);
    sh_sampler_destroy(s->sampler);
    *s = (struct sh_sequence){0};
}

enum sh_code sh_sequence_create(struct sh_context *c, uint32_t *sequence, struct sh_error *err) {
    uint32_t id = 0;
    while (id < c->params.max_sequences && c->sequences[id].used) id++;
    if (id == c->params.max_sequences)
        return sh_fail(err, SH_ERR_LIMIT, "all %u sequences of this context are in use", c->params.max_sequences);
    struct sh_sequence *s = &c->sequences[id];
    s->tables = sh_calloc(c->n_groups, sizeof *s->tables);
    if (s->tables == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a sequence");
    const enum sh_code code = sh_sampler_create(NULL, c->model->spec.n_vocab, &s->sampler, err); /* greedy */
    if (code != SH_OK) {
        free(s->tables);
        s->tables = NULL;
        return code;
    }
    for (uint32_t i = 0; i < SH_SLOTS; i++) s->fall_back[i] = SH_NONE;
    s->used = true;
    *sequence = id;
    sh_context_update_stats(c);
    return SH_OK;
}

void sh_sequence_destroy(struct sh_context *c, uint32_t sequence) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, NULL);
    if (s == NULL) return;
    if (s->held != 0) s->closing = true; /* the wait for the last step that holds it frees it */
    else sh_sequence_free(c, s);
    sh_context_update_stats(c);
}

enum sh_code sh_sequence_set_sampler(struct sh_context *c, uint32_t sequence, const struct sh_sampler_params *params,
                                     struct sh_error *err) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    if (s->in_flight != 0)
        return sh_fail(err, SH_ERR_BUSY, "sequence %u is in flight; wait for it before setting its sampler", sequence);
    struct sh_sampler *sampler;
    const enum sh_code code = sh_sampler_create(params, c->model->spec.n_vocab, &sampler, err);
    if (code != SH_OK) return code;
    sh_sampler_destroy(s->sampler);
    s->sampler = sampler;
    return SH_OK;
}

uint32_t sh_sequence_length(const struct sh_context *c, uint32_t sequence) {
    if (sequence >= c->params.max_sequences || c->sequences[sequence].closing) return 0;
    return c->sequences[sequence].length; /* 0 where there is none */
}

enum sh_code sh_sequence_truncate(struct sh_context *c, uint32_t sequence, uint32_t length, struct sh_error *err) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    if (s->in_flight != 0) return sh_fail(err, SH_ERR_BUSY, "sequence %u is in flight; wait for it before truncating", sequence);
    if (length > s->length)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens, it cannot be truncated to %u", sequence, s->length,
                       length);
    sh_sequence_cut(c, s, length);
    sh_context_update_stats(c);
    return SH_OK;
}

enum sh_code sh_sequence_copy(struct sh_context *c, uint32_t dst, uint32_t src, uint32_t length, struct sh_error *err) {
    struct sh_sequence *to = sh_context_sequence(c, dst, err), *from = sh_context_sequence(c, src, err);
    if (to == NULL || from == NULL) return SH_ERR_INVALID;
    /* Tokens in flight may be undone, and some are not known yet: only what is certain is copied. */
    const enum sh_code code = sh_context_settle(c, from, err);
    if (code != SH_OK) return code;
    if (to == from || to->length != 0)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens; a copy goes into another, empty sequence", dst,
                       to->length);
    if (length > from->length)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens, %u cannot be copied from it", src, from->length,
                       length);
    const uint32_t n_pages = sh_pages_of(length);
    bool room = sh_grow((void **)&to->tokens, &to->cap_tokens, length, sizeof *to->tokens) &&
                sh_grow((void **)&to->roles, &to->cap_roles, length, sizeof *to->roles);
    for (uint32_t g = 0; g < c->n_groups && room; g++)
        room = sh_grow((void **)&to->tables[g].pages, &to->tables[g].capacity, n_pages, sizeof *to->tables[g].pages);
    if (!room) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to copy %u tokens of sequence %u", length, src);
    if (length == 0) return SH_OK;

    memcpy(to->tokens, from->tokens, length * sizeof *to->tokens);
    memcpy(to->roles, from->roles, length * sizeof *to->roles);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        for (uint32_t i = 0; i < n_pages; i++) {
            sh_page_share(&c->pools[g], from->tables[g].pages[i]);
            to->tables[g].pages[i] = from->tables[g].pages[i];
        }
        to->tables[g].n = n_pages;
    }
    to->length = length;
    sh_context_update_stats(c);
    return SH_OK;
}
