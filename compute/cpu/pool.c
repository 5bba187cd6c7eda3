#include "compute/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/* How long a worker polls for the next parallel section of a step before it sleeps: sections of a step are apart by less than
 * this unless the step is over or the host is busy elsewhere. */
#define SPIN_ROUNDS 4000u
/* How long the holder polls for workers that still have items before it lets others run. Beside a load, threads that read the
 * file want the cores. */
#define LOAD_SPIN_ROUNDS 100u

/*
 * The word that workers watch: the number of the run, whether it is closed, and how many workers are in it. A worker joins by
 * adding itself and looks at what was there before: if the run was closed it leaves without touching it. The holder closes the
 * run when no item is left to take, and waits only for those in it: a worker that the system did not let run in time is not
 * waited for. Numbers are added, never stored, so that those who join and leave again are not lost.
 */
#define RUN_CLOSED (UINT64_C(1) << 15)
#define RUN_WORKERS (RUN_CLOSED - 1)
#define RUN_SHIFT 16

#define LAST_PIECES 4 /* a piece is at most this part of what is left of a share */

/* Steps that leave no gap earn waiting loads a part of the time that they took, no more than the most. */
#define LOAD_PART 4
#define LOAD_CREDIT_MOST INT64_C(8000000)

struct share { /* one worker's part of a run; the others take from it when theirs is done */
    _Alignas(64) atomic_uint_fast64_t next;
    uint64_t end;
};

struct sh_pool {
    /* A run: written by the holder while nobody is in it, published by its number in `state`. */
    sh_pool_fn fn;
    void *arg;
    uint64_t grain;
    uint32_t run_workers;
    struct share shares[SH_POOL_MAX_WORKERS];
    _Alignas(64) atomic_uint_fast64_t state;
    _Alignas(64) atomic_uint sleepers;
    atomic_bool held;
    enum sh_pool_use use; /* the holder's */
    atomic_bool stopping;
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    /* Threads: changed only by acquire and release, under registry_lock, by a thread that has entered. */
    uint32_t workers;
    pthread_t threads[SH_POOL_MAX_WORKERS];
    uint64_t seen_at_start[SH_POOL_MAX_WORKERS];
    /* Who holds the pool. */
    pthread_mutex_t owner_lock;
    pthread_cond_t owner_changed;
    uint64_t next_ticket, serving; /* of steps */
    bool busy;
    uint32_t waiting_loads;
    int64_t load_credit; /* nanoseconds that loads may take before the next step; below 0: they took more than steps earned them */
    uint64_t entered_ns;
    uint32_t references;
};

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sh_pool *the_pool;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The next piece of a share; false: nothing is left of it. Towards its end pieces get smaller, so that workers that are not equally
 * fast end at nearly the same time. */
static bool take(struct share *share, uint64_t grain, uint64_t *begin, uint64_t *end) {
    *begin = atomic_load_explicit(&share->next, memory_order_relaxed);
    do {
        if (*begin >= share->end) return false;
        const uint64_t some = (share->end - *begin + LAST_PIECES - 1) / LAST_PIECES;
        *end = *begin + sh_min_u64(grain, some);
    } while (!atomic_compare_exchange_weak_explicit(&share->next, begin, *end, memory_order_relaxed, memory_order_relaxed));
    return true;
}

static void work(struct sh_pool *pool, uint32_t worker) {
    const uint32_t n = pool->run_workers;
    for (uint32_t i = 0; i < n; i++)
        for (uint64_t begin, end; take(&pool->shares[(worker + i) % n], pool->grain, &begin, &end);)
            pool->fn(pool->arg, worker, begin, end);
}

struct start {
    struct sh_pool *pool;
    uint32_t worker;
};

static void *worker_main(void *arg) {
    struct start *start = arg;
    struct sh_pool *pool = start->pool;
    const uint32_t worker = start->worker;
    free(start);
    uint64_t seen = pool->seen_at_start[worker];
    for (;;) {
        uint32_t rounds = 0;
        while (atomic_load_explicit(&pool->state, memory_order_acquire) >> RUN_SHIFT == seen) {
            if (atomic_load_explicit(&pool->held, memory_order_relaxed) && rounds < SPIN_ROUNDS) {
                rounds++;
                relax();
                continue;
            }
            pthread_mutex_lock(&pool->sleep_lock);
            atomic_fetch_add(&pool->sleepers, 1);
            while (atomic_load(&pool->state) >> RUN_SHIFT == seen) pthread_cond_wait(&pool->wake, &pool->sleep_lock);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->sleep_lock);
            break;
        }
        if (atomic_load(&pool->stopping)) return NULL;
        const uint64_t found = atomic_fetch_add_explicit(&pool->state, 1, memory_order_acquire);
        seen = found >> RUN_SHIFT;
        if (!(found & RUN_CLOSED) && worker < pool->run_workers) work(pool, worker);
        atomic_fetch_sub_explicit(&pool->state, 1, memory_order_release);
    }
}

/* Adds to the run's number, so that all threads look. Sequentially consistent on purpose: a worker announces itself as a sleeper
 * before it looks at the number for the last time, we change the number before we look for sleepers, so one of the two sees the
 * other. */
static void publish(struct sh_pool *pool, uint64_t change) {
    atomic_fetch_add(&pool->state, change);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->sleep_lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->sleep_lock);
    }
}

static uint64_t share_begin(uint64_t n_items, uint32_t worker, uint32_t workers) {
    return n_items / workers * worker + n_items % workers * worker / workers;
}

void sh_pool_run(struct sh_pool *pool, uint32_t workers, uint64_t n_items, uint64_t grain, sh_pool_fn fn, void *arg) {
    if (n_items == 0) return;
    if (grain == 0) grain = 1;
    const uint64_t pieces = (n_items + grain - 1) / grain;
    if (workers > pool->workers) workers = pool->workers;
    if (pieces < workers) workers = (uint32_t)pieces;
    if (workers <= 1) {
        for (uint64_t begin = 0; begin < n_items; begin += grain) fn(arg, 0, begin, sh_min_u64(begin + grain, n_items));
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->grain = grain;
    pool->run_workers = workers;
    for (uint32_t w = 0; w < workers; w++) {
        atomic_store_explicit(&pool->shares[w].next, share_begin(n_items, w, workers), memory_order_relaxed);
        pool->shares[w].end = share_begin(n_items, w + 1, workers);
    }
    publish(pool, (UINT64_C(1) << RUN_SHIFT) - RUN_CLOSED);
    work(pool, 0);
    atomic_fetch_add_explicit(&pool->state, RUN_CLOSED, memory_order_relaxed);
    const uint32_t patience = pool->use == SH_POOL_LOAD ? LOAD_SPIN_ROUNDS : SPIN_ROUNDS;
    uint32_t rounds = 0;
    while ((atomic_load_explicit(&pool->state, memory_order_acquire) & RUN_WORKERS) > 0) {
        if (++rounds > patience) sched_yield(); /* a worker has been descheduled: let it run */
        relax();
    }
}

/* Loads yield, but not for ever: steps of two contexts, or of one that is quick, can follow each other without a gap. */
static bool load_is_due(const struct sh_pool *pool) { return pool->waiting_loads > 0 && pool->load_credit > 0; }

void sh_pool_enter(struct sh_pool *pool, enum sh_pool_use use) {
    pthread_mutex_lock(&pool->owner_lock);
    if (use == SH_POOL_STEP) {
        const uint64_t ticket = pool->next_ticket++;
        while (pool->busy || pool->serving != ticket || load_is_due(pool))
            pthread_cond_wait(&pool->owner_changed, &pool->owner_lock);
        pool->serving++;
    } else {
        pool->waiting_loads++;
        while (pool->busy || (pool->serving != pool->next_ticket && !load_is_due(pool)))
            pthread_cond_wait(&pool->owner_changed, &pool->owner_lock);
        pool->waiting_loads--;
    }
    pool->busy = true;
    pool->use = use;
    pool->entered_ns = sh_now_ns();
    atomic_store(&pool->held, true);
    pthread_mutex_unlock(&pool->owner_lock);
}

void sh_pool_leave(struct sh_pool *pool) {
    pthread_mutex_lock(&pool->owner_lock);
    const int64_t took = (int64_t)(sh_now_ns() - pool->entered_ns);
    if (pool->use == SH_POOL_LOAD) pool->load_credit -= took;
    else pool->load_credit += took / LOAD_PART;
    if (pool->load_credit > LOAD_CREDIT_MOST) pool->load_credit = LOAD_CREDIT_MOST;
    if (pool->load_credit < -LOAD_CREDIT_MOST) pool->load_credit = -LOAD_CREDIT_MOST; /* what an idle machine gave is no debt */
    pool->busy = false;
    atomic_store(&pool->held, false);
    pthread_cond_broadcast(&pool->owner_changed);
    pthread_mutex_unlock(&pool->owner_lock);
}

static void destroy(struct sh_pool *pool) {
    atomic_store(&pool->stopping, true);
    publish(pool, UINT64_C(1) << RUN_SHIFT); /* it stays closed */
    for (uint32_t w = 1; w < pool->workers; w++) pthread_join(pool->threads[w], NULL);
    pthread_mutex_destroy(&pool->sleep_lock);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->owner_lock);
    pthread_cond_destroy(&pool->owner_changed);
    free(pool);
}

static struct sh_pool *create(void) {
    struct sh_pool *pool = sh_alloc_aligned(sizeof *pool);
    if (pool == NULL) return NULL;
    memset(pool, 0, sizeof *pool);
    pool->workers = 1;
    atomic_init(&pool->state, RUN_CLOSED);
    pthread_mutex_init(&pool->sleep_lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_mutex_init(&pool->owner_lock, NULL);
    pthread_cond_init(&pool->owner_changed, NULL);
    return pool;
}

static enum sh_code grow(struct sh_pool *pool, uint32_t workers, struct sh_error *err) {
    while (pool->workers < workers) {
        const uint32_t w = pool->workers;
        struct start *start = malloc(sizeof *start);
        if (start == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for compute thread %u of %u", w, workers);
        *start = (struct start){pool, w};
        pool->seen_at_start[w] = atomic_load(&pool->state) >> RUN_SHIFT;
        const int rc = pthread_create(&pool->threads[w], NULL, worker_main, start);
        if (rc != 0) {
            free(start);
            return sh_fail(err, SH_ERR_NO_MEMORY,
                           "compute thread %u of %u: %s; lower the number of threads or raise the limit of tasks", w, workers,
                           strerror(rc));
        }
        pthread_setname_np(pool->threads[w], "shimmy-cpu");
        pool->workers++;
    }
    return SH_OK;
}

enum sh_code sh_pool_acquire(uint32_t workers, struct sh_pool **out, struct sh_error *err) {
    *out = NULL;
    if (workers == 0 || workers > SH_POOL_MAX_WORKERS)
        return sh_fail(err, SH_ERR_INVALID, "threads: found %u, expected 1..%u", workers, SH_POOL_MAX_WORKERS);
    pthread_mutex_lock(&registry_lock);
    if (the_pool == NULL) the_pool = create();
    enum sh_code code = SH_OK;
    if (the_pool == NULL) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the compute threads");
    } else {
        struct sh_pool *pool = the_pool;
        sh_pool_enter(pool, SH_POOL_STEP); /* no run is in progress while the number of workers changes */
        code = grow(pool, workers, err);
        sh_pool_leave(pool);
        if (code == SH_OK) {
            pool->references++;
            *out = pool;
        } else if (pool->references == 0) {
            destroy(pool);
            the_pool = NULL;
        }
    }
    pthread_mutex_unlock(&registry_lock);
    return code;
}

void sh_pool_release(struct sh_pool *pool) {
    if (pool == NULL) return;
    pthread_mutex_lock(&registry_lock);
    if (--pool->references == 0) {
        the_pool = NULL;
        destroy(pool);
    }
    pthread_mutex_unlock(&registry_lock);
}
