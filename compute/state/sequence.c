/* Sequences: their life, sampler, truncation and copies. */
#include "compute/state/context.h"

#include <stdlib.h>

struct sh_sequence *sh_context_sequence(struct sh_context *c, uint32_t sequence, struct sh_error *err) {
    if (sequence < c->params.max_sequences && c->sequences[sequence].used && !c->sequences[sequence].closing)
        return &c->sequences[sequence];
    sh_fail(err, SH_ERR_INVALID, "sequence %u does not exist in this context of up to %u", sequence, c->params.max_sequences);
    return NULL;
}

static bool is_recurrent(const struct sh_context *c, uint32_t group) {
    return sh_context_group(c, group)->kind == SH_STATE_RECURRENT;
}

/* Lets go of a recurrent group's page, if there is one. */
static void release_state(struct sh_context *c, uint32_t group, uint32_t *page) {
    if (*page != SH_NONE) sh_page_release(&c->pools[group], *page);
    *page = SH_NONE;
}

/* The state becomes `page`, whose reference it takes over; SH_NONE: that of an empty sequence. */
static void set_state(struct sh_context *c, struct sh_sequence *s, uint32_t group, uint32_t page) {
    struct sh_page_table *table = &s->tables[group];
    sh_page_table_shrink(table, &c->pools[group], 0);
    if (page == SH_NONE) return;
    SH_ASSERT(table->capacity > 0); /* it had a state before */
    table->pages[0] = page;
    table->n = 1;
}

static void drop_snapshots(struct sh_context *c, struct sh_sequence *s, uint32_t length) {
    while (s->n_snapshots > 0 && s->snapshots[s->n_snapshots - 1].length > length) {
        struct sh_snapshot *last = &s->snapshots[--s->n_snapshots];
        for (uint32_t g = 0; g < c->n_groups; g++) release_state(c, g, &last->pages[g]);
        free(last->pages);
        last->pages = NULL;
    }
}

static const struct sh_snapshot *find_snapshot(const struct sh_sequence *s, uint32_t length) {
    for (uint32_t i = 0; i < s->n_snapshots; i++)
        if (s->snapshots[i].length == length) return &s->snapshots[i];
    return NULL;
}

void sh_sequence_cut(struct sh_context *c, struct sh_sequence *s, uint32_t length) {
    if (length > s->length) return;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (is_recurrent(c, g) && length > 0) continue;
        sh_page_table_shrink(&s->tables[g], &c->pools[g], sh_pages_of(length));
    }
    drop_snapshots(c, s, length);
    sh_sequence_leave(c, s, length);
    s->length = length;
    if (s->n_pooled > length) s->n_pooled = length;
    sh_sampler_truncate(s->sampler, length > s->suspended ? length : s->suspended);
}

void sh_sequence_fall_back(struct sh_context *c, struct sh_sequence *s, uint32_t slot) {
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!is_recurrent(c, g)) continue;
        set_state(c, s, g, s->before[slot][g]);
        s->before[slot][g] = SH_NONE;
        for (uint32_t i = 0; i < SH_SLOTS; i++) release_state(c, g, &s->before[i][g]);
    }
    sh_sequence_cut(c, s, s->fall_back[slot]);
    for (uint32_t i = 0; i < SH_SLOTS; i++) s->fall_back[i] = SH_NONE;
}

uint32_t sh_first_page_seen(const struct sh_state_group *g, uint32_t length) {
    return g->kind == SH_STATE_WINDOWED && length >= g->window ? (length - g->window + 1) / SH_PAGE_TOKENS : 0;
}

void sh_sequence_let_go(struct sh_context *c, struct sh_sequence *s, uint32_t slot, bool well) {
    uint32_t settled = s->length;
    const uint32_t *states = NULL; /* in the present tables */
    s->fall_back[slot] = SH_NONE;
    s->in_flight &= ~(1u << slot);
    for (uint32_t i = 0; i < SH_SLOTS; i++) {
        if (s->fall_back[i] >= settled) continue; /* SH_NONE is the highest */
        settled = s->fall_back[i];
        states = s->before[i];
    }
    if (settled >= s->suspended) s->suspended = 0;
    if (well && s->takes_part) sh_sequence_enter(c, s, settled, states);
    const uint32_t back = c->params.back_tokens < settled ? c->params.back_tokens : settled;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_state_group *group = sh_context_group(c, g);
        release_state(c, g, &s->before[slot][g]);
        if (c->model->program->encoder) sh_page_table_shrink(&s->tables[g], &c->pools[g], 0);
        else if (group->kind == SH_STATE_WINDOWED)
            sh_page_table_pass(&s->tables[g], &c->pools[g], sh_first_page_seen(group, settled - back));
    }
}

void sh_sequence_free(struct sh_context *c, struct sh_sequence *s) {
    s->suspended = 0;
    sh_sequence_cut(c, s, 0);
    for (uint32_t g = 0; g < c->n_groups; g++) free(s->tables[g].pages);
    free(s->tables);
    for (uint32_t i = 0; i < SH_SLOTS; i++) free(s->before[i]);
    free(s->pool);
    free(s->tokens);
    free(s->roles);
    sh_sampler_destroy(s->sampler);
    *s = (struct sh_sequence){0};
}

static enum sh_pooling default_pooling(const struct sh_context *c) {
    const struct sh_program *p = c->model->program;
    return p->pooling != SH_POOL_NONE ? p->pooling : p->encoder ? SH_POOL_MEAN : SH_POOL_LAST;
}

enum sh_code sh_sequence_create(struct sh_context *c, uint32_t *sequence, struct sh_error *err) {
    uint32_t id = 0;
    while (id < c->params.max_sequences && c->sequences[id].used) id++;
    if (id == c->params.max_sequences)
        return sh_fail(err, SH_ERR_LIMIT, "all %u sequences of this context are in use", c->params.max_sequences);
    struct sh_sequence *s = &c->sequences[id];
    s->tables = sh_calloc(c->n_groups, sizeof *s->tables);
    bool complete = s->tables != NULL;
    for (uint32_t i = 0; i < SH_SLOTS; i++) {
        s->before[i] = sh_calloc(c->n_groups, sizeof *s->before[i]);
        complete = complete && s->before[i] != NULL;
        for (uint32_t g = 0; g < c->n_groups && complete; g++) s->before[i][g] = SH_NONE;
        s->fall_back[i] = SH_NONE;
    }
    const enum sh_code code = complete ? sh_sampler_create(NULL, c->model->spec.n_vocab, &s->sampler, err) /* greedy */
                                       : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a sequence");
    if (code != SH_OK) {
        free(s->tables);
        for (uint32_t i = 0; i < SH_SLOTS; i++) free(s->before[i]);
        *s = (struct sh_sequence){0};
        return code;
    }
    s->pooling = default_pooling(c);
    s->node = s->state_node = SH_NONE;
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

enum sh_code sh_sequence_set_pooling(struct sh_context *c, uint32_t sequence, enum sh_pooling pooling, struct sh_error *err) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    if (pooling != SH_POOL_NONE && pooling != SH_POOL_MEAN && pooling != SH_POOL_CLS && pooling != SH_POOL_LAST)
        return sh_fail(err, SH_ERR_INVALID, "pooling is %d, expected none (0), mean (1), cls (2) or last (3)", (int)pooling);
    if (s->length != 0)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens; the pooling of an empty one alone can be set", sequence,
                       s->length);
    s->pooling = pooling != SH_POOL_NONE ? pooling : default_pooling(c);
    return SH_OK;
}

uint32_t sh_sequence_length(const struct sh_context *c, uint32_t sequence) {
    if (sequence >= c->params.max_sequences || c->sequences[sequence].closing) return 0;
    return c->sequences[sequence].length; /* 0 where there is none */
}

/* Can the sequence, of which nothing is in flight, be taken back to its first `length` tokens? */
static enum sh_code check_back(const struct sh_context *c, uint32_t sequence, const struct sh_sequence *s, uint32_t length,
                               struct sh_error *err) {
    if (length == s->length && !c->model->program->encoder) return SH_OK;
    if (length == 0) return SH_OK;
    if (c->model->program->encoder)
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "sequence %u: an encoder keeps nothing of a text; truncate to 0 and compute it again", sequence);
    if (s->n_pooled > 0)
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "sequence %u: %u rows of it are pooled, it cannot be taken back to %u tokens; truncate to 0", sequence,
                       s->n_pooled, length);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_state_group *group = sh_context_group(c, g);
        if (group->kind == SH_STATE_RECURRENT && find_snapshot(s, length) == NULL)
            return sh_fail(err, SH_ERR_UNSUPPORTED,
                           "sequence %u: recurrent layers keep the state at its length of %u tokens, at 0 and at %u snapshots; "
                           "they cannot go back to %u",
                           sequence, s->length, s->n_snapshots, length);
        if (group->kind == SH_STATE_WINDOWED && sh_first_page_seen(group, length) < s->tables[g].first)
            return sh_fail(err, SH_ERR_UNSUPPORTED,
                           "sequence %u: layers with a window of %u tokens hold positions from %u on; they cannot go back to %u",
                           sequence, group->window, s->tables[g].first * SH_PAGE_TOKENS, length);
    }
    return SH_OK;
}

uint32_t sh_sequence_undoable(const struct sh_context *c, uint32_t sequence) {
    const uint32_t next = sh_sequence_length(c, sequence) + 1;
    uint32_t most = c->model->program->encoder ? 0 : UINT32_MAX;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_state_group *group = sh_context_group(c, g);
        if (group->kind == SH_STATE_RECURRENT) most = 0;
        if (group->kind != SH_STATE_WINDOWED) continue;
        /* the longest sequence that still sees the first page that one of `next` tokens sees */
        const uint64_t seen = (uint64_t)group->window - 1 + (sh_first_page_seen(group, next) + 1ull) * SH_PAGE_TOKENS - 1;
        const uint64_t longest = seen + c->params.back_tokens;
        most = (uint32_t)sh_min_u64(most, longest - next);
    }
    return most;
}

enum sh_code sh_sequence_truncate(struct sh_context *c, uint32_t sequence, uint32_t length, struct sh_error *err) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    if (s->in_flight != 0) return sh_fail(err, SH_ERR_BUSY, "sequence %u is in flight; wait for it before truncating", sequence);
    if (length > s->length)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens, it cannot be truncated to %u", sequence, s->length,
                       length);
    if (length == s->length) return SH_OK;
    const enum sh_code code = check_back(c, sequence, s, length, err);
    if (code != SH_OK) return code;
    s->suspended = 0; /* it takes another way */
    const struct sh_snapshot *snapshot = find_snapshot(s, length);
    for (uint32_t g = 0; g < c->n_groups && snapshot != NULL; g++) {
        if (!is_recurrent(c, g)) continue;
        sh_page_share(&c->pools[g], snapshot->pages[g]);
        set_state(c, s, g, snapshot->pages[g]);
    }
    sh_sequence_cut(c, s, length);
    sh_context_update_stats(c);
    return SH_OK;
}

enum sh_code sh_sequence_snapshot(struct sh_context *c, uint32_t sequence, struct sh_error *err) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    const enum sh_code code = sh_context_settle(c, s, err);
    if (code != SH_OK) return code;
    bool recurrent = false;
    for (uint32_t g = 0; g < c->n_groups; g++) recurrent = recurrent || is_recurrent(c, g);
    if (!recurrent || s->length == 0 || find_snapshot(s, s->length) != NULL) return SH_OK;
    if (s->n_snapshots == SH_MAX_SNAPSHOTS)
        return sh_fail(err, SH_ERR_LIMIT, "sequence %u has %u snapshots, at most %d are kept", sequence, s->n_snapshots,
                       SH_MAX_SNAPSHOTS);
    uint32_t *pages = sh_calloc(c->n_groups, sizeof *pages);
    if (pages == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a snapshot of sequence %u", sequence);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        pages[g] = SH_NONE;
        if (!is_recurrent(c, g)) continue;
        pages[g] = s->tables[g].pages[0];
        sh_page_share(&c->pools[g], pages[g]);
    }
    s->snapshots[s->n_snapshots++] = (struct sh_snapshot){.length = s->length, .pages = pages};
    return SH_OK;
}

/* The pages of the first `length` tokens, shared; there is room for them. */
static void share_pages(struct sh_context *c, struct sh_sequence *to, const struct sh_sequence *from, uint32_t length) {
    const struct sh_snapshot *snapshot = length == from->length ? NULL : find_snapshot(from, length);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_page_table *pages = &from->tables[g];
        struct sh_page_table *table = &to->tables[g];
        if (is_recurrent(c, g)) {
            table->pages[0] = snapshot != NULL ? snapshot->pages[g] : pages->pages[0];
            table->n = 1;
            sh_page_share(&c->pools[g], table->pages[0]);
            continue;
        }
        table->first = sh_first_page_seen(sh_context_group(c, g), length);
        table->n = sh_pages_of(length);
        for (uint32_t i = 0; i < table->n; i++) {
            table->pages[i] = i < table->first ? SH_NONE : pages->pages[i];
            if (i >= table->first) sh_page_share(&c->pools[g], table->pages[i]);
        }
    }
}

enum sh_code sh_sequence_copy(struct sh_context *c, uint32_t dst, uint32_t src, uint32_t length, struct sh_error *err) {
    struct sh_sequence *to = sh_context_sequence(c, dst, err), *from = sh_context_sequence(c, src, err);
    if (to == NULL || from == NULL) return SH_ERR_INVALID;
    /* Tokens in flight may be undone, and some are not known yet: only what is certain is copied. */
    enum sh_code code = sh_context_settle(c, from, err);
    if (code != SH_OK) return code;
    if (to == from || to->length != 0)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens; a copy goes into another, empty sequence", dst,
                       to->length);
    if (length > from->length)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens, %u cannot be copied from it", src, from->length,
                       length);
    if (length > 0 && from->n_pooled > 0)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "sequence %u: %u rows of it are pooled; such a sequence is not copied", src,
                       from->n_pooled);
    code = check_back(c, src, from, length, err);
    if (code != SH_OK) return code;
    const uint32_t n_pages = sh_pages_of(length);
    bool room = sh_grow((void **)&to->tokens, &to->cap_tokens, length, sizeof *to->tokens) &&
                sh_grow((void **)&to->roles, &to->cap_roles, length, sizeof *to->roles);
    for (uint32_t g = 0; g < c->n_groups && room; g++)
        room = sh_grow((void **)&to->tables[g].pages, &to->tables[g].capacity, n_pages, sizeof *to->tables[g].pages);
    if (!room) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to copy %u tokens of sequence %u", length, src);
    if (length == 0) return SH_OK;

    memcpy(to->tokens, from->tokens, length * sizeof *to->tokens);
    memcpy(to->roles, from->roles, length * sizeof *to->roles);
    share_pages(c, to, from, length);
    to->length = length;
    to->takes_part = from->takes_part;
    to->salt = from->salt;
    to->node = from->node;
    while (to->node != SH_NONE && (uint64_t)c->prefix.nodes[to->node].depth * SH_PAGE_TOKENS > length)
        to->node = c->prefix.nodes[to->node].parent;
    sh_prefix_settle(&c->prefix, to->node);
    sh_context_update_stats(c);
    return SH_OK;
}
