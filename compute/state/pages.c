#include "compute/state/pages.h"

#include <stdlib.h>

bool sh_page_pool_init(struct sh_page_pool *pool, uint32_t n_max) {
    *pool = (struct sh_page_pool){.n_max = n_max, .oldest_kept = SH_NONE, .newest_kept = SH_NONE};
    pool->refs = sh_calloc(n_max, sizeof *pool->refs);
    pool->free = sh_calloc(n_max, sizeof *pool->free);
    pool->owner = sh_calloc(n_max, sizeof *pool->owner);
    pool->older = sh_calloc(n_max, sizeof *pool->older);
    pool->newer = sh_calloc(n_max, sizeof *pool->newer);
    return pool->refs != NULL && pool->free != NULL && pool->owner != NULL && pool->older != NULL && pool->newer != NULL;
}

void sh_page_pool_finish(struct sh_page_pool *pool) {
    free(pool->refs);
    free(pool->free);
    free(pool->owner);
    free(pool->older);
    free(pool->newer);
    *pool = (struct sh_page_pool){0};
}

void sh_page_pool_grow(struct sh_page_pool *pool, uint32_t n_pages) {
    SH_ASSERT(n_pages >= pool->n_reserved && n_pages <= pool->n_max);
    /* the lowest number on top of the stack: a short run stays in the first slab */
    const uint32_t more = n_pages - pool->n_reserved;
    memmove(pool->free + more, pool->free, pool->n_free * sizeof *pool->free);
    for (uint32_t i = 0; i < more; i++) pool->free[i] = n_pages - 1 - i;
    for (uint32_t i = pool->n_reserved; i < n_pages; i++) pool->owner[i] = SH_NONE;
    pool->n_free += more;
    pool->n_reserved = n_pages;
}

/* ---- kept pages ---- */

static void link_newest(struct sh_page_pool *pool, uint32_t page) {
    pool->older[page] = pool->newest_kept;
    pool->newer[page] = SH_NONE;
    if (pool->newest_kept != SH_NONE) pool->newer[pool->newest_kept] = page;
    else pool->oldest_kept = page;
    pool->newest_kept = page;
    pool->n_kept++;
}

static void unlink_kept(struct sh_page_pool *pool, uint32_t page) {
    const uint32_t older = pool->older[page], newer = pool->newer[page];
    if (older != SH_NONE) pool->newer[older] = newer;
    else pool->oldest_kept = newer;
    if (newer != SH_NONE) pool->older[newer] = older;
    else pool->newest_kept = older;
    pool->n_kept--;
}

void sh_page_own(struct sh_page_pool *pool, uint32_t page, uint32_t owner) {
    SH_ASSERT(pool->owner[page] == SH_NONE && owner != SH_NONE);
    sh_page_share(pool, page);
    pool->owner[page] = owner;
}

void sh_page_disown(struct sh_page_pool *pool, uint32_t page) {
    SH_ASSERT(pool->owner[page] != SH_NONE);
    if (pool->refs[page] == 1) unlink_kept(pool, page);
    pool->owner[page] = SH_NONE;
    sh_page_release(pool, page);
}

/* ---- references ---- */

uint32_t sh_page_take(struct sh_page_pool *pool) {
    SH_ASSERT(pool->n_free > 0);
    const uint32_t page = pool->free[--pool->n_free];
    SH_ASSERT(pool->refs[page] == 0);
    pool->refs[page] = 1;
    return page;
}

void sh_page_share(struct sh_page_pool *pool, uint32_t page) {
    SH_ASSERT(page < pool->n_reserved && pool->refs[page] > 0 && pool->refs[page] < UINT32_MAX);
    if (pool->refs[page]++ == 1 && pool->owner[page] != SH_NONE) unlink_kept(pool, page);
}

void sh_page_release(struct sh_page_pool *pool, uint32_t page) {
    SH_ASSERT(page < pool->n_reserved && pool->refs[page] > 0);
    if (--pool->refs[page] == 0) pool->free[pool->n_free++] = page;
    else if (pool->refs[page] == 1 && pool->owner[page] != SH_NONE) link_newest(pool, page);
}

void sh_page_table_shrink(struct sh_page_table *table, struct sh_page_pool *pool, uint32_t keep) {
    while (table->n > keep) {
        const uint32_t page = table->pages[--table->n];
        if (page != SH_NONE) sh_page_release(pool, page);
    }
    if (table->first > table->n) table->first = table->n;
}

void sh_page_table_pass(struct sh_page_table *table, struct sh_page_pool *pool, uint32_t first) {
    for (; table->first < first && table->first < table->n; table->first++) {
        sh_page_release(pool, table->pages[table->first]);
        table->pages[table->first] = SH_NONE;
    }
}
