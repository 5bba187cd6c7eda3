/* What sequences share over time: beginnings that others computed, room for pages, and sequences that give theirs up for a while. */
#include "compute/state/context.h"

/* ---- room ---- */

void sh_context_limit(struct sh_context *c, uint64_t kv_tokens) { atomic_store(&c->kv_limit, sh_max_u64(kv_tokens, c->model->spec.context_length)); }

/* Pages that the group's pool may come to have: what it was created for, unless that was limited since; what it has it keeps. */
static uint32_t most_pages(const struct sh_context *c, uint32_t group) {
    const struct sh_page_pool *pool = &c->pools[group];
    const uint64_t limit = atomic_load(&c->kv_limit);
    if (limit >= c->params.kv_tokens) return pool->n_max;
    const uint64_t pages = sh_cache_pages(sh_context_group(c, group), &c->params, c->params.max_sequences, limit);
    return (uint32_t)sh_max_u64(sh_min_u64(pages, pool->n_max), pool->n_reserved);
}

static enum sh_code grow_pool(struct sh_context *c, uint32_t group, struct sh_error *err) {
    struct sh_page_pool *pool = &c->pools[group];
    const uint32_t n = (uint32_t)sh_min_u64(most_pages(c, group), (uint64_t)pool->n_reserved + c->slab_pages[group]);
    for (uint32_t d = 0; d < c->model->n_devices; d++) {
        if (!c->holds_group[d * c->n_groups + group]) continue;
        const enum sh_code code = sh_context_executor(c, d)->pool_reserve(c->exec[d], group, n, err);
        if (code != SH_OK) return code;
    }
    sh_page_pool_grow(pool, n);
    return SH_OK;
}

enum sh_code sh_context_make_room(struct sh_context *c, uint32_t group, struct sh_error *err) {
    struct sh_page_pool *pool = &c->pools[group];
    if (pool->n_free > 0) return SH_OK;
    const bool full = pool->n_reserved == most_pages(c, group);
    enum sh_code code = SH_OK;
    if (!full && !c->no_memory[group]) {
        code = grow_pool(c, group, err);
        c->no_memory[group] = code == SH_ERR_NO_MEMORY || code == SH_ERR_NO_DEVICE_MEMORY;
        if (!c->no_memory[group]) return code;
    }
    if (sh_prefix_evict(&c->prefix, group)) return SH_OK;
    if (full)
        return sh_fail(err, SH_ERR_NO_PAGES,
                       "all %u cache pages of %d tokens are in use; end a sequence, or configure a larger cache", pool->n_reserved,
                       SH_PAGE_TOKENS);
    if (code != SH_OK) return code;
    code = grow_pool(c, group, err); /* there may be memory again */
    c->no_memory[group] = code == SH_ERR_NO_MEMORY || code == SH_ERR_NO_DEVICE_MEMORY;
    return code;
}

/* Does the group limit how many tokens there can be? Recurrent ones do not, nor windows whose pool has room for those of all sequences. */
static bool limits_tokens(const struct sh_context *c, uint32_t group) {
    const struct sh_state_group *g = sh_context_group(c, group);
    if (g->kind != SH_STATE_WINDOWED) return g->kind == SH_STATE_PAGED;
    return most_pages(c, group) < sh_cache_pages(g, &c->params, c->params.max_sequences, UINT64_MAX - SH_PAGE_TOKENS);
}

uint64_t sh_context_free_tokens(const struct sh_context *c) {
    uint64_t least = (uint64_t)c->params.max_sequences * c->model->spec.context_length;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!limits_tokens(c, g)) continue;
        const struct sh_page_pool *pool = &c->pools[g];
        const uint64_t more = c->no_memory[g] ? 0 : most_pages(c, g) - pool->n_reserved;
        least = sh_min_u64(least, (pool->n_free + pool->n_kept + more) * SH_PAGE_TOKENS);
    }
    return least;
}

uint32_t sh_context_page_tokens(const struct sh_context *c) {
    (void)c;
    return SH_PAGE_TOKENS;
}

/* ---- into the index ---- */

static uint32_t depth_of(const struct sh_context *c, uint32_t node) { return node == SH_NONE ? 0 : c->prefix.nodes[node].depth; }

void sh_sequence_leave(struct sh_context *c, struct sh_sequence *s, uint32_t length) {
    while (s->node != SH_NONE && (uint64_t)depth_of(c, s->node) * SH_PAGE_TOKENS > length) {
        if (s->state_node == s->node) s->state_node = SH_NONE;
        s->node = sh_prefix_leave(&c->prefix, s->node);
    }
}

/* A sequence's own pages can be exchanged for equal ones unless a later segment of a step in flight has yet to read them: a copy into
 * such a page could come before that. */
static bool can_exchange(const struct sh_context *c, const struct sh_sequence *s) {
    return s->in_flight == 0 || c->model->n_segments == 1;
}

/* Would standing on that node mean to exchange a page? */
static bool has_other_pages(const struct sh_context *c, const struct sh_sequence *s, uint32_t node, uint32_t index) {
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (sh_context_group(c, g)->kind == SH_STATE_RECURRENT || s->tables[g].pages[index] == SH_NONE) continue;
        const uint32_t page = sh_prefix_page(&c->prefix, node, g);
        if (page != SH_NONE && page != s->tables[g].pages[index]) return true;
    }
    return false;
}

/* The sequence's page `index` of the group is that of its node from now on, whichever of the two was first. */
static void join_page(struct sh_context *c, struct sh_sequence *s, uint32_t group, uint32_t index) {
    struct sh_page_table *table = &s->tables[group];
    struct sh_page_pool *pool = &c->pools[group];
    const uint32_t kept = sh_prefix_page(&c->prefix, s->node, group), own = table->pages[index];
    if (own == SH_NONE || own == kept) return;
    if (kept == SH_NONE) {
        sh_prefix_give(&c->prefix, s->node, group, own);
        return;
    }
    sh_page_share(pool, kept);
    sh_page_release(pool, own);
    table->pages[index] = kept;
}

/* The states at the end of its node. One behind a generated token replaces the sequence's last such one: of an answer only the latest is
 * of use to a next turn. */
static void give_states(struct sh_context *c, struct sh_sequence *s, uint32_t settled, const uint32_t *states) {
    const bool generated = s->roles[settled - 1] == SH_ROLE_GENERATED;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (sh_context_group(c, g)->kind != SH_STATE_RECURRENT) continue;
        const uint32_t page = states != NULL ? states[g] : s->tables[g].pages[0];
        if (page != SH_NONE) sh_prefix_give(&c->prefix, s->node, g, page);
        if (generated && s->state_node != SH_NONE && s->state_node != s->node) sh_prefix_drop_page(&c->prefix, s->state_node, g);
    }
    if (generated) s->state_node = s->node;
}

void sh_sequence_enter(struct sh_context *c, struct sh_sequence *s, uint32_t settled, const uint32_t *states) {
    for (uint32_t index = depth_of(c, s->node); index < settled / SH_PAGE_TOKENS; index++) {
        const int32_t *tokens = s->tokens + (size_t)index * SH_PAGE_TOKENS;
        for (uint32_t i = 0; i < SH_PAGE_TOKENS; i++)
            if (tokens[i] < 0) return; /* an embedding */
        const uint32_t node = sh_prefix_add(&c->prefix, s->node, s->salt, tokens, s->roles + (size_t)index * SH_PAGE_TOKENS);
        if (node == SH_NONE) return;                                           /* no memory for it: the next step tries again */
        if (!can_exchange(c, s) && has_other_pages(c, s, node, index)) return; /* the same */
        sh_prefix_enter(&c->prefix, node);
        s->node = node;
        for (uint32_t g = 0; g < c->n_groups; g++)
            if (sh_context_group(c, g)->kind != SH_STATE_RECURRENT) join_page(c, s, g, index);
    }
    if (settled > 0 && settled % SH_PAGE_TOKENS == 0 && depth_of(c, s->node) == settled / SH_PAGE_TOKENS)
        give_states(c, s, settled, states);
}

/* ---- out of the index ---- */

/* Is everything there that a row behind the node needs? run: how many pages up to the node's are there without a gap, of windows. */
static bool can_begin_behind(const struct sh_context *c, uint32_t node, uint32_t depth, const uint32_t *run) {
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_state_group *group = sh_context_group(c, g);
        if (group->kind == SH_STATE_RECURRENT && sh_prefix_page(&c->prefix, node, g) == SH_NONE) return false;
        if (group->kind == SH_STATE_WINDOWED && depth - run[g] > sh_first_page_seen(group, depth * SH_PAGE_TOKENS)) return false;
    }
    return true;
}

uint32_t sh_context_find_beginning(struct sh_context *c, const int32_t *tokens, const uint8_t *roles, uint32_t n, uint64_t salt) {
    static const uint8_t prompt[SH_PAGE_TOKENS] = {SH_ROLE_PROMPT};
    uint32_t *run = c->run;
    uint32_t node = SH_NONE, best = SH_NONE;
    for (uint32_t g = 0; g < c->n_groups; g++) run[g] = 0;
    for (uint32_t at = 0; n - at >= SH_PAGE_TOKENS; at += SH_PAGE_TOKENS) {
        node = sh_prefix_find(&c->prefix, node, salt, tokens + at, roles != NULL ? roles + at : prompt);
        if (node == SH_NONE) break;
        for (uint32_t g = 0; g < c->n_groups; g++) run[g] = sh_prefix_page(&c->prefix, node, g) != SH_NONE ? run[g] + 1 : 0;
        if (can_begin_behind(c, node, at / SH_PAGE_TOKENS + 1, run)) best = node;
    }
    return best;
}

/* The sequence, which is empty and has room, takes over what the node and those above it hold. */
static void take_over(struct sh_context *c, struct sh_sequence *s, uint32_t node) {
    const uint32_t n_pages = depth_of(c, node), length = n_pages * SH_PAGE_TOKENS;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_state_group *group = sh_context_group(c, g);
        struct sh_page_table *table = &s->tables[g];
        const bool state = group->kind == SH_STATE_RECURRENT;
        table->n = state ? 1 : n_pages;
        table->first = state ? 0 : sh_first_page_seen(group, length);
        for (uint32_t at = node, i = table->n; i > 0; i--, at = c->prefix.nodes[at].parent) {
            table->pages[i - 1] = i > table->first ? sh_prefix_page(&c->prefix, at, g) : SH_NONE;
            if (i > table->first) sh_page_share(&c->pools[g], table->pages[i - 1]);
        }
    }
    sh_prefix_settle(&c->prefix, node);
    s->node = node;
    s->length = length;
}

enum sh_code sh_sequence_reuse(struct sh_context *c, uint32_t sequence, const int32_t *tokens, const enum sh_role *roles,
                               uint32_t n, uint64_t salt, uint32_t *reused, struct sh_error *err) {
    *reused = 0;
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    if (s->length != 0)
        return sh_fail(err, SH_ERR_INVALID, "sequence %u holds %u tokens; the beginning of an empty one alone can be reused",
                       sequence, s->length);
    if (c->lost) return sh_fail(err, SH_ERR_DEVICE_LOST, "the device of this context was lost; load the model again");
    if (c->model->program->encoder) return SH_OK; /* nothing is held of a text */
    if (n > c->model->spec.context_length) n = c->model->spec.context_length;
    const uint32_t n_pages = n / SH_PAGE_TOKENS;
    bool room = sh_grow((void **)&s->tokens, &s->cap_tokens, n, sizeof *s->tokens) &&
                sh_grow((void **)&s->roles, &s->cap_roles, n, sizeof *s->roles);
    for (uint32_t g = 0; g < c->n_groups && room; g++)
        room = sh_grow((void **)&s->tables[g].pages, &s->tables[g].capacity, n_pages, sizeof *s->tables[g].pages);
    if (!room) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the history of a sequence of %u tokens", n);
    s->takes_part = true;
    s->salt = salt;
    if (n == 0) return SH_OK;
    memcpy(s->tokens, tokens, n * sizeof *s->tokens); /* beyond its length they count for nothing */
    for (uint32_t i = 0; i < n; i++) s->roles[i] = (uint8_t)(roles != NULL ? roles[i] : SH_ROLE_PROMPT);
    const uint32_t node = sh_context_find_beginning(c, s->tokens, s->roles, n, salt);
    if (node == SH_NONE) return SH_OK;
    take_over(c, s, node);
    *reused = s->length;
    c->reused_tokens += s->length;
    if (s->length >= s->suspended) s->suspended = 0;
    sh_context_update_stats(c);
    return SH_OK;
}

enum sh_code sh_sequence_suspend(struct sh_context *c, uint32_t sequence, struct sh_error *err) {
    struct sh_sequence *s = sh_context_sequence(c, sequence, err);
    if (s == NULL) return SH_ERR_INVALID;
    if (s->n_pooled > 0)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "sequence %u: %u rows of it are pooled; such a sequence is not suspended",
                       sequence, s->n_pooled);
    sh_context_settle(c, s, NULL); /* what fails is told by its own wait; the sequence has then fallen back */
    if (s->length > s->suspended) s->suspended = s->length;
    sh_sequence_cut(c, s, 0);
    sh_context_update_stats(c);
    return SH_OK;
}
