/*
 * pool.h - the process's compute threads. One pool for all CPU devices, and for models that are loaded on others, whose weights
 * it repacks: it exists while somebody has acquired it and has as many workers as who wants most. Idle workers sleep on a
 * condition variable and cost nothing; while somebody holds the pool they spin briefly between parallel sections, because those
 * follow each other within microseconds.
 *
 * Holding: sh_pool_enter/leave bracket a step or a piece of a load. Steps are served in order of arrival; a load enters when no
 * step holds or awaits the pool. Where steps never leave a gap, loads have a fifth of the time: what steps take earns them a
 * quarter of it, up to 8 ms, and as long as some is left a piece goes before the next step.
 *
 * Thread-safety: sh_pool_acquire/release/enter/leave any thread; sh_pool_run only the thread that has entered. Items of one run
 * must be independent of each other: then results depend neither on the number of workers nor on who runs which item.
 */
#ifndef SHIMMY_CPU_POOL_H
#define SHIMMY_CPU_POOL_H

#include "compute/base.h"

#define SH_POOL_MAX_WORKERS 256

struct sh_pool;
enum sh_pool_use { SH_POOL_STEP, SH_POOL_LOAD };

/* The process's pool with at least `workers` (1..SH_POOL_MAX_WORKERS) workers, the entering thread counted. Released once per
 * acquire; the last release ends the threads. SH_ERR_NO_MEMORY where the system gives no more threads. */
enum sh_code sh_pool_acquire(uint32_t workers, struct sh_pool **out, struct sh_error *err);
void sh_pool_release(struct sh_pool *pool);

void sh_pool_enter(struct sh_pool *pool, enum sh_pool_use use);
void sh_pool_leave(struct sh_pool *pool);

/* Runs fn over items [0, n_items) in pieces of at most `grain` items on up to `workers` workers, the caller being worker 0, and
 * returns when all are done. Each worker begins with its own contiguous part, all of one size, and helps the others when it is done;
 * pieces get smaller towards a part's end. A worker that does not get to run in time is not waited for. worker < workers. */
typedef void (*sh_pool_fn)(void *arg, uint32_t worker, uint64_t begin, uint64_t end);
void sh_pool_run(struct sh_pool *pool, uint32_t workers, uint64_t n_items, uint64_t grain, sh_pool_fn fn, void *arg);

#endif
