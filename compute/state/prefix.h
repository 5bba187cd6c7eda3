/*
 * prefix.h - the index of beginnings whose keys, values and states the context holds: a forest of nodes, each one full page of
 * SH_PAGE_TOKENS tokens behind its parent. A sequence that takes part stands on the node of its last full page; a new one walks down
 * from the root of its salt and takes over what it finds. Only bookkeeping; no function here touches a device. One thread, the context's.
 *
 * What a node holds: a reference of one page per group, or SH_NONE. PAGED: the page, always. WINDOWED: the page, until it is evicted by
 * itself. RECURRENT: the state at the page's end, where a submission ended there. Pages in the index are never written again: their owner
 * counts two references at least, and so copies before it writes.
 *
 * Who may go. `live` counts the sequences that stand on a node or below it. Nodes without are in a list in the order in which they were
 * left, deepest first, so that its oldest is always a leaf; it is bounded, and its oldest go when a PAGED group needs a page. Pages of the other
 * groups go by themselves, in the order in which no sequence held them any more (the list is the pool's, see pages.h): windows move on and
 * leave pages on nodes that are still lived on.
 */
#ifndef SHIMMY_PREFIX_H
#define SHIMMY_PREFIX_H

#include "compute/program/executor.h"
#include "compute/state/pages.h"

struct sh_prefix_node {
    uint64_t hash, salt; /* of the tokens from the root on, and of the salt */
    uint32_t parent;     /* SH_NONE: a root's child */
    uint32_t depth;      /* pages from the root on, this one included */
    uint32_t next;       /* in its bucket, or in the list of free nodes */
    uint32_t older, newer;
    uint32_t live;
    int32_t tokens[SH_PAGE_TOKENS];
    uint8_t roles[SH_PAGE_TOKENS]; /* enum sh_role */
};

struct sh_prefix_index {
    struct sh_page_pool *pools; /* [n_groups] the context's, lent */
    const struct sh_state_group *groups;
    uint32_t n_groups;
    bool roles_differ;
    struct sh_prefix_node *nodes;
    uint32_t *pages; /* [cap_nodes][n_groups] */
    uint32_t n_nodes, cap_nodes, cap_pages, free_node;
    uint32_t *buckets; /* [n_buckets], a power of two */
    uint32_t n_buckets;
    uint32_t oldest, newest, n_idle; /* nodes that no sequence lives on */
    uint32_t most_idle;              /* nodes, and pages of WINDOWED groups */
    uint32_t most_states;            /* pages of RECURRENT groups that no sequence holds */
    uint64_t evicted;                /* pages so far */
};

void sh_prefix_init(struct sh_prefix_index *x, struct sh_page_pool *pools, const struct sh_state_group *groups,
                    uint32_t n_groups);
void sh_prefix_finish(struct sh_prefix_index *x);

static inline uint32_t sh_prefix_page(const struct sh_prefix_index *x, uint32_t node, uint32_t group) {
    return x->pages[(size_t)node * x->n_groups + group];
}
/* The node of these SH_PAGE_TOKENS tokens behind `parent` (SH_NONE: at the root of the salt), or SH_NONE. */
uint32_t sh_prefix_find(const struct sh_prefix_index *x, uint32_t parent, uint64_t salt, const int32_t *tokens,
                        const uint8_t *roles);
/* The same, made if there is none: idle and without pages. SH_NONE: no memory. */
uint32_t sh_prefix_add(struct sh_prefix_index *x, uint32_t parent, uint64_t salt, const int32_t *tokens, const uint8_t *roles);
/* The node takes a reference of the page, unless it has one of that group, or another node has this one. */
void sh_prefix_give(struct sh_prefix_index *x, uint32_t node, uint32_t group, uint32_t page);
/* The node's page of a group that is not PAGED goes, if no sequence holds it. */
void sh_prefix_drop_page(struct sh_prefix_index *x, uint32_t node, uint32_t group);

/* A sequence moves onto a node from its parent, from which it need not be counted again; or off it, to its parent, which is the result. */
void sh_prefix_enter(struct sh_prefix_index *x, uint32_t node);
uint32_t sh_prefix_leave(struct sh_prefix_index *x, uint32_t node);
/* A sequence settles on a node from nowhere: counted up to the root. SH_NONE is nothing. */
void sh_prefix_settle(struct sh_prefix_index *x, uint32_t node);

/* Makes a page of the group free, if anything that is kept can give one. */
bool sh_prefix_evict(struct sh_prefix_index *x, uint32_t group);
/* An idle node without children goes, whatever its place in the list. */
void sh_prefix_remove(struct sh_prefix_index *x, uint32_t node);
/* Back within the bounds. */
void sh_prefix_trim(struct sh_prefix_index *x);
/* All nodes that no sequence lives on, and all pages that none holds. */
void sh_prefix_drop_idle(struct sh_prefix_index *x);

#endif
