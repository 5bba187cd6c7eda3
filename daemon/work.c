/* work.c - see work.h. */
#include "daemon/work.h"

#include <pthread.h>
#include <stdint.h>

enum { THREADS_MAX = 3, LARGE_MAX = THREADS_MAX - 1 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, told;
    struct work *first, **end;
    uint32_t waiting;              /* works in the list */
    uint32_t threads, idle, large; /* all; of them without work, and at large work */
    uint32_t telling;              /* done is being called */
    bool stopped;
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .told = PTHREAD_COND_INITIALIZER, .end = &pool.first};

/* The next that may run now, or NULL. The lock is held. */
static struct work *take(void) {
    struct work **at = &pool.first;
    while (*at && (*at)->large && pool.large >= LARGE_MAX) at = &(*at)->next;
    struct work *work = *at;
    if (!work) return NULL;
    *at = work->next;
    if (!work->next) pool.end = at;
    pool.waiting--;
    return work;
}

static void *worker_main(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct work *work = take();
        if (!work) {
            pool.idle++;
            pthread_cond_wait(&pool.wake, &pool.lock);
            pool.idle--;
            continue;
        }
        bool large = work->large;
        pool.large += large;
        pthread_mutex_unlock(&pool.lock);
        work->run(work);
        pthread_mutex_lock(&pool.lock);
        pool.large -= large;
        if (large) pthread_cond_signal(&pool.wake); /* another large one may go now */
        if (pool.stopped) continue;
        pool.telling++;
        pthread_mutex_unlock(&pool.lock);
        work->done(work, true);
        pthread_mutex_lock(&pool.lock);
        if (--pool.telling == 0) pthread_cond_broadcast(&pool.told);
    }
    return NULL;
}

/* The lock is held. False: there is none, and none can be made. */
static bool have_thread(void) {
    if (pool.idle > pool.waiting || pool.threads == THREADS_MAX) return true;
    pthread_t thread;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &detached, worker_main, NULL) == 0) pool.threads++;
    pthread_attr_destroy(&detached);
    return pool.threads > 0;
}

void work_submit(struct work *work) {
    pthread_mutex_lock(&pool.lock);
    bool stopped = pool.stopped, queued = !stopped && have_thread();
    if (queued) {
        work->next = NULL;
        *pool.end = work;
        pool.end = &work->next;
        pool.waiting++;
        pthread_cond_signal(&pool.wake);
    }
    pthread_mutex_unlock(&pool.lock);
    if (queued) return;
    if (!stopped) work->run(work);
    work->done(work, !stopped);
}

void work_stop(void) {
    pthread_mutex_lock(&pool.lock);
    pool.stopped = true;
    struct work *waiting = pool.first, *next;
    pool.first = NULL;
    pool.end = &pool.first;
    pool.waiting = 0;
    while (pool.telling > 0) pthread_cond_wait(&pool.told, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    for (; waiting; waiting = next) {
        next = waiting->next;
        waiting->done(waiting, false);
    }
}
