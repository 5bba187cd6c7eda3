/*
 * pages.h - which pages of a group's pool are in use, by how many sequences, and the page table of one sequence.
 * Only bookkeeping: the memory is the executors'. One thread.
 *
 * One of a page's references may be that of its owner, a node of the index of prefixes (prefix.h). A page that only its owner holds
 * is kept: it does not count as used, and stands in a list in the order in which the others let go of it.
 */
#ifndef SHIMMY_PAGES_H
#define SHIMMY_PAGES_H

#include "compute/base.h"
#include "compute/program/program.h"

struct sh_page_pool {
    uint32_t *refs; /* [n_max] 0 = free */
    uint32_t *free; /* [n_max] stack of free pages among the reserved */
    uint32_t n_free, n_reserved, n_max;
    uint32_t *owner;         /* [n_max] or SH_NONE */
    uint32_t *older, *newer; /* [n_max] of kept pages */
    uint32_t oldest_kept, newest_kept, n_kept;
};
bool sh_page_pool_init(struct sh_page_pool *pool, uint32_t n_max); /* false: no memory */
void sh_page_pool_finish(struct sh_page_pool *pool);
/* Pages n_reserved .. n_pages - 1 become usable. */
void sh_page_pool_grow(struct sh_page_pool *pool, uint32_t n_pages);
static inline uint32_t sh_page_pool_used(const struct sh_page_pool *pool) {
    return pool->n_reserved - pool->n_free - pool->n_kept;
}

uint32_t sh_page_take(struct sh_page_pool *pool); /* with one reference; there must be a free one */
void sh_page_share(struct sh_page_pool *pool, uint32_t page);
void sh_page_release(struct sh_page_pool *pool, uint32_t page);
/* The owner's reference, of a page that has none yet; and its end. */
void sh_page_own(struct sh_page_pool *pool, uint32_t page, uint32_t owner);
void sh_page_disown(struct sh_page_pool *pool, uint32_t page);

struct sh_page_table {
    uint32_t *pages; /* [n]; those before `first` were given back: SH_NONE */
    uint32_t first, n, capacity;
};
/* Lets go of the pages from index `keep` on. */
void sh_page_table_shrink(struct sh_page_table *table, struct sh_page_pool *pool, uint32_t keep);
/* Lets go of the pages before index `first`, which stay in the table as SH_NONE. */
void sh_page_table_pass(struct sh_page_table *table, struct sh_page_pool *pool, uint32_t first);

#endif
