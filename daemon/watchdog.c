/* watchdog.c - see watchdog.h. */
#include "daemon/watchdog.h"

#include "compute/base.h"
#include "daemon/generation_private.h"
#include "daemon/log.h"
#include "daemon/models_private.h"
#include "daemon/scheduler.h"

#include <stdio.h>
#include <stdlib.h>

#define LONGEST_TIMES 100
#define STEPS_SEEN 16 /* before the longest says something */
#define PERIOD_MOST_NS 5000000000ull
#define PERIOD_LEAST_NS 100000000ull

uint64_t watchdog_period_ns(uint64_t limit_ns) {
    const uint64_t quarter = limit_ns / 4;
    return quarter < PERIOD_LEAST_NS ? PERIOD_LEAST_NS : quarter > PERIOD_MOST_NS ? PERIOD_MOST_NS : quarter;
}

static uint64_t limit_of(const struct runner_stats *stats, uint64_t limit_ns) {
    if (stats->steps < STEPS_SEEN) return limit_ns;
    uint64_t own = stats->longest_step_ns * LONGEST_TIMES;
    if (own < WATCHDOG_LEAST_NS) own = WATCHDOG_LEAST_NS;
    return own < limit_ns ? own : limit_ns;
}

/* Of one model what changed; generations that are to be ended go to *list. registry.lock is held. */
static void look_at(struct model *m, uint64_t limit_ns, uint64_t awake_ns, struct sh_error *why, struct generation ***list, uint32_t *n) {
    struct runner_stats stats;
    runner_get_stats(m->runner, &stats);
    const uint64_t silence = stats.silence_ns < awake_ns ? stats.silence_ns : awake_ns;
    const bool stuck = silence > limit_of(&stats, limit_ns);
    if (stuck == m->stuck) return;
    m->stuck = stuck;
    if (!stuck) {
        log_write(SH_LOG_NOTICE, m->id, "its step ended after all: it serves on");
        runner_set_stuck(m->runner, NULL, n);
        set_text(&m->error, "");
        return;
    }
    char doing[80] = "between two steps";
    if (stats.step_rows > 0) snprintf(doing, sizeof doing, "in a step of %u tokens", stats.step_rows);
    sh_fail(why, SH_ERR_DEVICE, "%s is stuck: %s on %s for %.1f s; its longest step so far took %.1f s", m->id, doing,
            sh_device_get_info(m->device)->name, (double)silence / 1e9, (double)stats.longest_step_ns / 1e9);
    log_write(SH_LOG_ERROR, m->id, "%s; %u requests ran and %u waited, they are ended", why->message, stats.running, stats.queued);
    set_text(&m->error, why->message);
    *list = runner_set_stuck(m->runner, why->message, n);
}

/* All loads that are waited for, if the loader has become stuck. registry.lock is held. */
static struct load *look_at_loader(uint64_t limit_ns, uint64_t now, uint64_t awake_ns, struct sh_error *why) {
    struct load *list = NULL, **end = &list;
    const uint64_t silence = registry.loader_ns > 0 && now > registry.loader_ns ? now - registry.loader_ns : 0;
    if (registry.loader_stuck || (silence < awake_ns ? silence : awake_ns) <= limit_ns) return NULL;
    registry.loader_stuck = true;
    loader_why_stuck(why);
    uint32_t n = 0;
    for (struct model *m = registry.models; m; m = m->next) {
        for (*end = m->loads; *end; end = &(*end)->next) n++;
        m->loads = NULL;
    }
    log_error("%s; %u requests that waited for a load are ended", why->message, n);
    return list;
}

static void end_loads(struct load *loads, const struct sh_error *why) {
    for (struct load *next; loads; loads = next) {
        next = loads->next;
        load_finish(loads, why->code, why);
        load_unref(loads);
    }
}

uint32_t watchdog_look(uint64_t limit_ns) {
    static uint64_t last_ns, awake_since_ns;
    const uint64_t now = sh_now_ns();
    if (now - last_ns > 4 * watchdog_period_ns(limit_ns)) awake_since_ns = now;
    last_ns = now;

    uint32_t n_stuck = 0;
    for (bool more = true; more;) {
        struct sh_error why;
        struct generation **list = NULL;
        uint32_t n = 0;
        more = false;
        n_stuck = 0;
        pthread_mutex_lock(&registry.lock);
        for (struct model *m = registry.models; m && !list; m = m->next) {
            if (m->runner) look_at(m, limit_ns, now - awake_since_ns, &why, &list, &n);
            n_stuck += m->runner && m->stuck;
        }
        more = list != NULL; /* others may have become stuck, too */
        pthread_mutex_unlock(&registry.lock);
        for (uint32_t i = 0; i < n; i++) { /* their clients are told, who may ask the registry at once */
            gen_fail(list[i], &why);
            gen_unref(list[i]);
        }
        free(list);
    }
    struct sh_error why;
    pthread_mutex_lock(&registry.lock);
    struct load *loads = look_at_loader(limit_ns, now, now - awake_since_ns, &why);
    n_stuck += registry.loader_stuck;
    pthread_mutex_unlock(&registry.lock);
    end_loads(loads, &why);
    return n_stuck;
}
