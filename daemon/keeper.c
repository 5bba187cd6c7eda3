/*
 * keeper.c - the thread that unloads models and minds the time: drained models go, idle ones after keep_alive, waits for loads end at
 * their deadlines. What it does takes no time from loads, and it holds registry.lock only to look and to write results down.
 */
#include "daemon/budget.h"

#include "compute/base.h"
#include "daemon/devices.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <malloc.h>
#include <stdlib.h>

/* A model that keep_alive 0 would unload before it was ever used stays this long for its first request. */
#define FIRST_USE_NS 60000000000ull

/* ---- unloading --------------------------------------------------------------------------------------- */

static const char *why_name(enum drain_why why) {
    static const char *const names[] = {"unload", "reload", "idle", "memory", "lost", "shutdown"};
    return names[why];
}

/* Ends runner and engine of a model that has nothing left to do. The lock is held, and given up meanwhile. */
static void unload(struct model *m) {
    struct runner *runner = m->runner;
    struct sh_model *engine = m->engine, *draft = m->draft;
    struct sh_device *device = m->device, *host = m->host;
    bool lost = m->lost != NULL;
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    m->runner = NULL; /* from here on nobody sees what goes away */
    m->engine = m->draft = NULL;
    m->device = m->host = NULL;
    while (m->runner_users > 0) registry_wait_changed(UINT64_MAX);
    pthread_mutex_unlock(&registry.lock);
    log_write(SH_LOG_INFO, m->id, "unloading");
    runner_destroy(runner);
    sh_model_unload(engine);
    sh_model_unload(draft);
    devices_release(device, lost);
    devices_release(host, false);
    malloc_trim(0);
    pthread_mutex_lock(&registry.lock);
    m->counted = false;
    m->need = (struct memory_need){0};
    struct budget budget = {.device = m->device_used};
    memcpy(budget.limit, m->limits, sizeof budget.limit);
    budget_share_out(&budget);
    if (!m->loads) m->keep_alive_set = false; /* else it comes back at once, and keeps it */
    m->prompt_tokens += stats.prompt_tokens;
    m->generated_tokens += stats.generated_tokens;
    if (atomic_load(&m->refs) == 1) model_forget_vocabs(m);
    const char *const labels[] = {m->id}, *const why[] = {m->id, why_name(m->drain_why)};
    metric_remove(METRIC_MODEL_LOAD_SECONDS, labels);
    if (m->drain_why != DRAIN_SHUTDOWN) metric_add(METRIC_MODELS_EVICTED, why, 1);
    m->stuck = false;
    set_text(&m->error, m->lost);
    model_set_state(m, m->lost ? MODEL_FAILED : MODEL_DISCOVERED);
    free(m->lost);
    m->lost = NULL;
    tell_status(NULL, NULL);
    registry_wake();

    struct unload_wait *waits = m->unloads, *next;
    m->unloads = NULL;
    pthread_mutex_unlock(&registry.lock);
    for (; waits; waits = next) {
        next = waits->next;
        waits->done(waits->user);
        free(waits);
    }
    pthread_mutex_lock(&registry.lock);
}

/* A drained model, or NULL; cuts off those whose time is over. The lock is held. */
static struct model *drained(uint64_t now, uint64_t *deadline) {
    for (struct model *m = registry.models; m; m = m->next) {
        if (m->state != MODEL_DRAINING || !m->runner) continue;
        struct runner_stats stats;
        runner_get_stats(m->runner, &stats);
        if (stats.idle_since_ns) return m;
        if (now >= m->drain_deadline_ns && !m->drain_cut) {
            m->drain_cut = true;
            log_write(SH_LOG_NOTICE, m->id, "drain_timeout is over: %u running and %u waiting requests are cancelled", stats.running, stats.queued);
            runner_cancel_all(m->runner, registry.stopping ? "shutdown" : "unloaded");
        } else if (!m->drain_cut && m->drain_deadline_ns < *deadline) {
            *deadline = m->drain_deadline_ns;
        }
    }
    return NULL;
}

/* ---- time -------------------------------------------------------------------------------------------- */

bool model_expires(const struct model *m, uint64_t *at_ns) {
    struct runner_stats stats;
    const int64_t keep_s = model_keeps_alive_s(m);
    if (m->state != MODEL_READY || keep_s < 0) return false;
    runner_get_stats(m->runner, &stats);
    if (stats.idle_since_ns == 0) return false; /* its runner wakes us */
    uint64_t keep = (uint64_t)keep_s * 1000000000ull;
    const bool unused = stats.prompt_tokens == 0 && !m->keep_alive_asked;
    if (unused && keep < FIRST_USE_NS) keep = FIRST_USE_NS;
    *at_ns = sh_max_u64(stats.idle_since_ns, m->ready_since_ns) + keep;
    return true;
}

/* Starts to drain the models that have been idle for keep_alive. */
static void let_idle_go(uint64_t now, uint64_t *deadline) {
    for (struct model *m = registry.models; m; m = m->next) {
        uint64_t until;
        if (!model_expires(m, &until)) continue;
        /* Whoever holds a reference may be about to use it: look again soon. */
        if (until <= now && atomic_load(&m->refs) > 1) until = now + 100000000;
        if (until > now) {
            if (until < *deadline) *deadline = until;
            continue;
        }
        log_write(SH_LOG_INFO, m->id, "idle for keep_alive");
        model_start_drain(m, DRAIN_IDLE, 0);
        *deadline = now;
    }
}

/* Takes the waits that are over off their models. */
static struct load *take_expired(uint64_t now, uint64_t *deadline) {
    struct load *expired = NULL, **end = &expired;
    for (struct model *m = registry.models; m; m = m->next)
        for (struct load **at = &m->loads; *at;) {
            struct load *load = *at;
            if (load->deadline_ns == 0 || load->deadline_ns > now) {
                if (load->deadline_ns > 0 && load->deadline_ns < *deadline) *deadline = load->deadline_ns;
                at = &load->next;
                continue;
            }
            *at = load->next;
            load->next = NULL;
            *end = load;
            end = &load->next;
        }
    return expired;
}

static void tell_expired(struct load *loads) {
    struct sh_error err;
    pthread_mutex_unlock(&registry.lock);
    for (struct load *next; loads; loads = next) {
        next = loads->next;
        sh_fail(&err, SH_ERR_TIMEOUT, "%s was not loaded within the time that the request has", loads->model->id);
        load_finish(loads, SH_ERR_TIMEOUT, &err);
        load_unref(loads);
    }
    pthread_mutex_lock(&registry.lock);
}

void *keeper_main(void *unused) {
    (void)unused;
    pthread_mutex_lock(&registry.lock);
    for (;;) {
        uint64_t now = sh_now_ns(), deadline = UINT64_MAX;
        struct model *m = drained(now, &deadline);
        struct load *expired = m ? NULL : take_expired(now, &deadline);
        bool loaded = false;
        for (struct model *other = registry.models; other; other = other->next) loaded |= other->runner != NULL;
        if (m) {
            unload(m);
        } else if (expired) {
            tell_expired(expired);
        } else if (registry.stopping && registry.loader_ended && !loaded) {
            break;
        } else {
            if (!registry.stopping) let_idle_go(now, &deadline);
            registry_wait(&registry.tidy, deadline);
        }
    }
    pthread_mutex_unlock(&registry.lock);
    return NULL;
}
