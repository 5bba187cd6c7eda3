#include "compute/state/prefix.h"

#include <stdlib.h>

#define FIRST_BUCKETS 64

void sh_prefix_init(struct sh_prefix_index *x, struct sh_page_pool *pools, const struct sh_state_group *groups,
                    uint32_t n_groups) {
    *x = (struct sh_prefix_index){
        .pools = pools, .groups = groups, .n_groups = n_groups, .free_node = SH_NONE, .oldest = SH_NONE, .newest = SH_NONE};
}

void sh_prefix_finish(struct sh_prefix_index *x) {
    free(x->nodes);
    free(x->pages);
    free(x->buckets);
    *x = (struct sh_prefix_index){0};
}

/* ---- finding ---- */

static uint64_t mix(uint64_t a, uint64_t b) {
    const uint64_t h = (a ^ b) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint64_t hash_page(const struct sh_prefix_index *x, uint32_t parent, uint64_t salt, const int32_t *tokens,
                          const uint8_t *roles) {
    uint64_t h = parent == SH_NONE ? mix(salt, 0x51ab1e) : x->nodes[parent].hash;
    for (uint32_t i = 0; i < SH_PAGE_TOKENS; i++)
        h = mix(h, ((uint64_t)(uint32_t)tokens[i] << 1 | (x->roles_differ ? roles[i] : 0)) + 1);
    return mix(h, h >> 32);
}

static uint32_t find(const struct sh_prefix_index *x, uint64_t hash, uint32_t parent, uint64_t salt, const int32_t *tokens,
                     const uint8_t *roles) {
    if (x->n_buckets == 0) return SH_NONE;
    for (uint32_t i = x->buckets[hash & (x->n_buckets - 1)]; i != SH_NONE; i = x->nodes[i].next) {
        const struct sh_prefix_node *node = &x->nodes[i];
        if (node->hash == hash && node->parent == parent && node->salt == salt &&
            memcmp(node->tokens, tokens, sizeof node->tokens) == 0 &&
            (!x->roles_differ || memcmp(node->roles, roles, sizeof node->roles) == 0))
            return i;
    }
    return SH_NONE;
}

uint32_t sh_prefix_find(const struct sh_prefix_index *x, uint32_t parent, uint64_t salt, const int32_t *tokens,
                        const uint8_t *roles) {
    return find(x, hash_page(x, parent, salt, tokens, roles), parent, salt, tokens, roles);
}

/* ---- the list of idle nodes ---- */

static void link_newest(struct sh_prefix_index *x, uint32_t node) {
    x->nodes[node].older = x->newest;
    x->nodes[node].newer = SH_NONE;
    if (x->newest != SH_NONE) x->nodes[x->newest].newer = node;
    else x->oldest = node;
    x->newest = node;
    x->n_idle++;
}

static void unlink_idle(struct sh_prefix_index *x, uint32_t node) {
    const struct sh_prefix_node *n = &x->nodes[node];
    if (n->older != SH_NONE) x->nodes[n->older].newer = n->newer;
    else x->oldest = n->newer;
    if (n->newer != SH_NONE) x->nodes[n->newer].older = n->older;
    else x->newest = n->older;
    x->n_idle--;
}

void sh_prefix_enter(struct sh_prefix_index *x, uint32_t node) {
    if (x->nodes[node].live++ == 0) unlink_idle(x, node);
}

uint32_t sh_prefix_leave(struct sh_prefix_index *x, uint32_t node) {
    SH_ASSERT(x->nodes[node].live > 0);
    if (--x->nodes[node].live == 0) link_newest(x, node);
    return x->nodes[node].parent;
}

void sh_prefix_settle(struct sh_prefix_index *x, uint32_t node) {
    for (; node != SH_NONE; node = x->nodes[node].parent) sh_prefix_enter(x, node);
}

/* ---- nodes ---- */

static bool grow_buckets(struct sh_prefix_index *x) {
    if (x->n_nodes < x->n_buckets) return true;
    const uint32_t n = x->n_buckets == 0 ? FIRST_BUCKETS : x->n_buckets * 2;
    uint32_t *buckets = sh_calloc(n, sizeof *buckets);
    if (buckets == NULL) return x->n_buckets > 0; /* longer chains, no more */
    memset(buckets, 0xff, n * sizeof *buckets);
    for (uint32_t b = 0; b < x->n_buckets; b++)
        for (uint32_t i = x->buckets[b], next; i != SH_NONE; i = next) {
            next = x->nodes[i].next;
            x->nodes[i].next = buckets[x->nodes[i].hash & (n - 1)];
            buckets[x->nodes[i].hash & (n - 1)] = i;
        }
    free(x->buckets);
    x->buckets = buckets;
    x->n_buckets = n;
    return true;
}

static uint32_t new_node(struct sh_prefix_index *x) {
    const uint32_t node = x->free_node;
    if (node != SH_NONE) {
        x->free_node = x->nodes[node].next;
        return node;
    }
    uint64_t pages = 0;
    if (x->n_nodes == SH_NONE - 1 || !sh_mul_u64((uint64_t)x->n_nodes + 1, x->n_groups, &pages) || pages > UINT32_MAX ||
        !sh_grow((void **)&x->nodes, &x->cap_nodes, x->n_nodes + 1, sizeof *x->nodes) ||
        !sh_grow((void **)&x->pages, &x->cap_pages, (uint32_t)pages, sizeof *x->pages))
        return SH_NONE;
    return x->n_nodes; /* counted when it is in use */
}

uint32_t sh_prefix_add(struct sh_prefix_index *x, uint32_t parent, uint64_t salt, const int32_t *tokens, const uint8_t *roles) {
    const uint64_t hash = hash_page(x, parent, salt, tokens, roles);
    const uint32_t found = find(x, hash, parent, salt, tokens, roles);
    if (found != SH_NONE) return found;
    if (!grow_buckets(x)) return SH_NONE;
    const uint32_t node = new_node(x);
    if (node == SH_NONE) return SH_NONE;
    if (node == x->n_nodes) x->n_nodes++;
    struct sh_prefix_node *n = &x->nodes[node];
    uint32_t *bucket = &x->buckets[hash & (x->n_buckets - 1)];
    *n = (struct sh_prefix_node){.hash = hash,
                                 .salt = salt,
                                 .parent = parent,
                                 .depth = parent == SH_NONE ? 1 : x->nodes[parent].depth + 1,
                                 .next = *bucket};
    memcpy(n->tokens, tokens, sizeof n->tokens);
    memcpy(n->roles, roles, sizeof n->roles);
    *bucket = node;
    for (uint32_t g = 0; g < x->n_groups; g++) x->pages[(size_t)node * x->n_groups + g] = SH_NONE;
    link_newest(x, node);
    return node;
}

static void release_page(struct sh_prefix_index *x, uint32_t node, uint32_t group) {
    uint32_t *page = &x->pages[(size_t)node * x->n_groups + group];
    if (*page == SH_NONE) return;
    sh_page_disown(&x->pools[group], *page);
    *page = SH_NONE;
}

void sh_prefix_remove(struct sh_prefix_index *x, uint32_t node) {
    struct sh_prefix_node *n = &x->nodes[node];
    SH_ASSERT(n->live == 0);
    unlink_idle(x, node);
    uint32_t *at = &x->buckets[n->hash & (x->n_buckets - 1)];
    while (*at != node) at = &x->nodes[*at].next;
    *at = n->next;
    for (uint32_t g = 0; g < x->n_groups; g++) release_page(x, node, g);
    n->next = x->free_node;
    x->free_node = node;
}

/* ---- pages ---- */

void sh_prefix_give(struct sh_prefix_index *x, uint32_t node, uint32_t group, uint32_t page) {
    uint32_t *at = &x->pages[(size_t)node * x->n_groups + group];
    if (*at != SH_NONE || x->pools[group].owner[page] != SH_NONE) return;
    sh_page_own(&x->pools[group], page, node);
    *at = page;
}

void sh_prefix_drop_page(struct sh_prefix_index *x, uint32_t node, uint32_t group) {
    const uint32_t page = sh_prefix_page(x, node, group);
    if (page != SH_NONE && x->pools[group].refs[page] == 1) release_page(x, node, group);
}

static uint64_t n_kept(const struct sh_prefix_index *x) {
    uint64_t sum = 0;
    for (uint32_t g = 0; g < x->n_groups; g++) sum += x->pools[g].n_kept;
    return sum;
}

bool sh_prefix_evict(struct sh_prefix_index *x, uint32_t group) {
    const struct sh_page_pool *pool = &x->pools[group];
    const uint64_t before = n_kept(x);
    if (x->groups[group].kind == SH_STATE_PAGED)
        while (pool->n_free == 0 && x->oldest != SH_NONE) sh_prefix_remove(x, x->oldest);
    else if (pool->n_free == 0 && pool->oldest_kept != SH_NONE) release_page(x, pool->owner[pool->oldest_kept], group);
    x->evicted += before - n_kept(x);
    return pool->n_free > 0;
}

static void trim(struct sh_prefix_index *x, uint32_t nodes, uint32_t states) {
    const uint64_t before = n_kept(x);
    while (x->n_idle > nodes) sh_prefix_remove(x, x->oldest);
    for (uint32_t g = 0; g < x->n_groups; g++) {
        const struct sh_page_pool *pool = &x->pools[g];
        if (x->groups[g].kind == SH_STATE_PAGED) continue;
        const uint32_t most = x->groups[g].kind == SH_STATE_RECURRENT ? states : nodes;
        while (pool->n_kept > most) release_page(x, pool->owner[pool->oldest_kept], g);
    }
    if (nodes > 0) x->evicted += before - n_kept(x); /* else nothing was to be kept */
}

void sh_prefix_trim(struct sh_prefix_index *x) { trim(x, x->most_idle, x->most_states); }

void sh_prefix_drop_idle(struct sh_prefix_index *x) { trim(x, 0, 0); }
