/* budget.c - see budget.h. */
#include "daemon/budget.h"

#include "compute/base.h"
#include "daemon/devices.h"
#include "daemon/log.h"

#include <inttypes.h>
#include <stdio.h>

enum { DEVICE, HOST, BUDGETS };

#define RESERVE_SHARE 16
#define RESERVE_LEAST (64ull << 20)
#define RESERVE_MOST (1ull << 30)

/* Whoever holds a reference on an idle model may be about to use it; not for longer than this. */
#define ABOUT_NS 5000000000ull

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }
static uint64_t mib(uint64_t bytes) { return bytes >> 20; }

static bool in_host(const struct sh_device *device) {
    const enum sh_device_kind kind = sh_device_get_info(device)->kind;
    return kind == SH_DEVICE_SOFTWARE || kind == SH_DEVICE_INTEGRATED;
}

void budget_measure(const struct config *config, struct sh_device *device, struct sh_device *host, struct budget *out) {
    *out = (struct budget){.limit = {UINT64_MAX, UINT64_MAX}, .device = device};
    struct sh_device_memory memory;
    sh_device_get_memory(host, &memory);
    if (memory.free_bytes > 0) {
        const uint64_t there = memory.free_bytes + devices_host_bytes();
        const uint64_t reserve = sh_min_u64(RESERVE_MOST, sh_max_u64(RESERVE_LEAST, there / RESERVE_SHARE));
        out->limit[HOST] = less(there, reserve);
    }
    if (config->memory_limit > 0 && config->memory_limit < out->limit[HOST]) {
        out->limit[HOST] = config->memory_limit;
        out->configured[HOST] = true;
    }
    if (device == host) return;
    sh_device_get_memory(device, &memory);
    const uint64_t used = memory.weights_bytes + memory.cache_bytes + memory.activation_bytes + memory.staging_bytes;
    const uint64_t size = sh_device_get_info(device)->memory_bytes;
    if (size > 0) out->limit[DEVICE] = size;
    if (memory.free_bytes > 0) out->limit[DEVICE] = sh_min_u64(out->limit[DEVICE], memory.free_bytes + used);
    if (config->device_memory_limit > 0 && config->device_memory_limit < out->limit[DEVICE]) {
        out->limit[DEVICE] = config->device_memory_limit;
        out->configured[DEVICE] = true;
    }
}

struct memory_need budget_need(const struct sh_plan *plan, const struct sh_device *device) {
    struct memory_need need = {.in_host = in_host(device)};
    const bool cpu = sh_device_get_info(device)->kind == SH_DEVICE_CPU;
    for (uint32_t place = 0; place < BUDGETS; place++) {
        need.fixed[cpu ? HOST : place] += less(plan->need_bytes[place], plan->cache_bytes[place]);
        need.cache[cpu ? HOST : place] += plan->cache_bytes[place];
    }
    return need;
}

/* ---- what is taken ----------------------------------------------------------------------------------- */

/* A cache of so many bytes in all, or the least that is counted. */
static void add_need(const struct memory_need *need, uint64_t cache_bytes, bool same_device, uint64_t taken[BUDGETS]) {
    const uint64_t least = need->cache[DEVICE] + need->cache[HOST];
    for (uint32_t place = 0; place < BUDGETS; place++) {
        uint64_t bytes = need->cache[place];
        if (cache_bytes > least && least > 0)
            bytes = (uint64_t)((double)cache_bytes * ((double)need->cache[place] / (double)least));
        bytes += need->fixed[place];
        if (place == HOST || need->in_host) taken[HOST] += bytes;
        if (place == DEVICE && same_device) taken[DEVICE] += bytes;
    }
}

/* Of one token in the caches of a model that is loaded. */
static uint64_t token_bytes(const struct model *m) {
    return m->info.context_length > 0 ? (m->need.cache[DEVICE] + m->need.cache[HOST]) / m->info.context_length : 0;
}

static uint64_t cache_bytes_of(const struct model *m) {
    struct runner_stats stats = {0};
    if (m->runner) runner_get_stats(m->runner, &stats);
    return stats.context.cache_bytes;
}

/* Of one model now, or with the largest cache that it may come to have. */
static void add_model(const struct budget *budget, const struct model *m, bool grown, uint64_t taken[BUDGETS]) {
    if (!m->counted) return;
    const uint64_t cache_bytes = grown && m->runner ? sh_max_u64(token_bytes(m) * m->kv_wanted, cache_bytes_of(m)) : cache_bytes_of(m);
    add_need(&m->need, cache_bytes, m->device_used == budget->device, taken);
}

void budget_taken(const struct budget *budget, const struct model *except, bool grown, uint64_t taken[2]) {
    taken[DEVICE] = taken[HOST] = 0;
    for (const struct model *m = registry.models; m; m = m->next)
        if (m != except) add_model(budget, m, grown, taken);
}

uint64_t budget_model_bytes(const struct model *m) {
    const struct budget none = {.device = m->device_used};
    uint64_t taken[BUDGETS] = {0};
    add_model(&none, m, false, taken);
    return taken[HOST] + (m->need.in_host ? 0 : taken[DEVICE]);
}

static bool fits(const struct budget *budget, const uint64_t taken[BUDGETS], const uint64_t needed[BUDGETS]) {
    for (uint32_t place = 0; place < BUDGETS; place++)
        if (needed[place] > 0 && (taken[place] > budget->limit[place] || needed[place] > budget->limit[place] - taken[place])) return false;
    return true;
}

/* ---- making room ------------------------------------------------------------------------------------- */

bool model_is_idle(const struct model *m, uint64_t *used_ns) {
    struct runner_stats stats;
    if (m->state != MODEL_READY) return false;
    runner_get_stats(m->runner, &stats);
    *used_ns = sh_max_u64(stats.idle_since_ns, m->ready_since_ns);
    return stats.idle_since_ns != 0 && (atomic_load(&m->refs) == 1 || sh_now_ns() - *used_ns > ABOUT_NS);
}

struct model *budget_least_used(const struct model *except) {
    struct model *best = NULL;
    uint64_t oldest = UINT64_MAX, used_ns = 0;
    for (struct model *m = registry.models; m; m = m->next) {
        if (m == except || !model_is_idle(m, &used_ns) || used_ns >= oldest) continue;
        best = m;
        oldest = used_ns;
    }
    return best;
}

static bool helps(const struct budget *budget, const struct model *m, const uint64_t taken[BUDGETS], const uint64_t needed[BUDGETS]) {
    uint64_t of_it[BUDGETS] = {0};
    add_model(budget, m, false, of_it);
    for (uint32_t place = 0; place < BUDGETS; place++)
        if (of_it[place] > 0 && needed[place] > 0 &&
            (taken[place] > budget->limit[place] || needed[place] > budget->limit[place] - taken[place]))
            return true;
    return false;
}

static void take_off(const struct budget *budget, const struct model *m, uint64_t taken[BUDGETS]) {
    uint64_t of_it[BUDGETS] = {0};
    add_model(budget, m, false, of_it);
    for (uint32_t place = 0; place < BUDGETS; place++) taken[place] = less(taken[place], of_it[place]);
}

/* The idle model that was used longest ago, among those marked as not chosen yet; or of the busy ones that had its turn longest ago. */
static struct model *next_victim(const struct budget *budget, const struct model *for_model, bool busy, const uint64_t taken[BUDGETS],
                                 const uint64_t needed[BUDGETS], uint64_t round, uint64_t *again_ns) {
    struct model *best = NULL;
    uint64_t oldest = UINT64_MAX;
    const uint64_t now = sh_now_ns();
    for (struct model *m = registry.models; m; m = m->next) {
        uint64_t used_ns = 0;
        if (m == for_model || m->state != MODEL_READY || m->chosen == round || !helps(budget, m, taken, needed)) continue;
        if (busy) {
            const uint64_t turn = m->ready_since_ns + sh_max_u64(BUDGET_TURN_NS, 2 * m->info.load_ns);
            used_ns = m->ready_since_ns;
            if (turn > now) {
                if (turn < *again_ns) *again_ns = turn;
                continue;
            }
        } else if (!model_is_idle(m, &used_ns)) {
            continue;
        }
        if (used_ns >= oldest) continue;
        best = m;
        oldest = used_ns;
    }
    return best;
}

/* Of those chosen to go, the last one first, whoever need not: one that was used later may have made more room than all before it together. */
static void spare(const struct budget *budget, struct model *last, uint64_t taken[BUDGETS], const uint64_t needed[BUDGETS]) {
    for (struct model *m = last; m; m = m->chosen_before) {
        uint64_t with[BUDGETS] = {taken[DEVICE], taken[HOST]};
        add_model(budget, m, false, with);
        if (!fits(budget, with, needed)) continue;
        m->chosen = 0;
        memcpy(taken, with, sizeof with);
    }
}

static const char *place_name(const struct budget *budget, uint32_t place) {
    return place == HOST ? "the host" : sh_device_get_info(budget->device)->name;
}

/* Needed, allowed, and who holds the rest. */
static void figures(const struct budget *budget, const struct model *for_model, const uint64_t taken[BUDGETS],
                    const uint64_t needed[BUDGETS], struct sh_error *err) {
    uint32_t place = HOST;
    if (needed[DEVICE] > 0 && (needed[HOST] == 0 || fits(budget, taken, (const uint64_t[]){0, needed[HOST]}))) place = DEVICE;
    char holders[300] = "";
    size_t n = 0;
    for (const struct model *m = registry.models; m && n < sizeof holders; m = m->next) {
        uint64_t of_it[BUDGETS] = {0};
        add_model(budget, m, false, of_it);
        if (m == for_model || of_it[place] == 0) continue;
        n += (size_t)snprintf(holders + n, sizeof holders - n, "%s%.60s %" PRIu64, n ? ", " : "; loaded are (MiB): ", m->id, mib(of_it[place]));
    }
    sh_fail(err, place == HOST ? SH_ERR_NO_MEMORY : SH_ERR_NO_DEVICE_MEMORY,
            "%s needs %" PRIu64 " MiB on %s, models may take %" PRIu64 " MiB there (%s)%s", for_model->id, mib(needed[place]),
            place_name(budget, place), mib(budget->limit[place]),
            !budget->configured[place] ? "what is free, less a reserve"
            : place == HOST            ? "option memory_limit"
                                       : "option device_memory_limit",
            holders);
}

enum room budget_make_room(const struct budget *budget, const struct model *for_model, const struct memory_need *need, bool begin,
                           uint64_t *again_ns, struct sh_error *err) {
    static const uint64_t nothing[BUDGETS];
    static uint64_t rounds; /* registry.lock */
    const uint64_t round = ++rounds;
    uint64_t taken[BUDGETS], needed[BUDGETS] = {0};
    struct model *busy = NULL, *last = NULL, *m;
    *again_ns = sh_now_ns() + 100000000; /* who holds a reference tells nobody when it goes */
    budget_taken(budget, for_model, false, taken);
    add_need(need, 0, true, needed);
    if (fits(budget, taken, needed)) return ROOM_IS;
    figures(budget, for_model, taken, needed, err);
    if (!fits(budget, nothing, needed)) return ROOM_NEVER;

    for (m = registry.models; m; m = m->next)
        if (m->counted && m->state != MODEL_READY) take_off(budget, m, taken);
    while (!fits(budget, taken, needed) && (m = next_victim(budget, for_model, false, taken, needed, round, again_ns)) != NULL) {
        m->chosen = round;
        m->chosen_before = last;
        last = m;
        take_off(budget, m, taken);
    }
    if (!fits(budget, taken, needed)) { /* not enough: the idle ones stay until it is */
        busy = next_victim(budget, for_model, true, taken, needed, round, again_ns);
        if (!begin || !busy) return ROOM_BUSY;
        log_write(SH_LOG_NOTICE, busy->id, "takes no more requests until %s has had its turn: there is room for one of them", for_model->id);
        model_start_drain(busy, DRAIN_MEMORY, UINT64_MAX);
        return ROOM_COMES;
    }
    spare(budget, last, taken, needed);
    for (m = registry.models; begin && m; m = m->next) {
        if (m->chosen != round) continue;
        log_write(SH_LOG_NOTICE, m->id, "unloaded to make room for %s", for_model->id);
        model_start_drain(m, DRAIN_MEMORY, 0);
    }
    return ROOM_COMES;
}

uint64_t budget_kv_tokens(const struct budget *budget, const struct model *for_model, const struct memory_need *need, uint64_t whole,
                          uint32_t sequences, uint64_t wanted) {
    if (wanted > 0) return wanted;
    uint64_t taken[BUDGETS], tokens = whole * sequences;
    budget_taken(budget, for_model, true, taken);
    for (uint32_t place = 0; place < BUDGETS; place++) {
        const uint64_t per_token = need->cache[place] / whole;
        uint64_t left = less(less(budget->limit[place], taken[place]), need->fixed[place]);
        if (place == DEVICE && need->in_host) /* both budgets count it */
            left = sh_min_u64(left, less(less(budget->limit[HOST], taken[HOST]), need->fixed[DEVICE] + need->fixed[HOST]));
        if (per_token > 0) tokens = sh_min_u64(tokens, left / 2 / per_token);
    }
    return sh_max_u64(tokens, whole);
}

void budget_share_out(const struct budget *budget) {
    uint64_t now[BUDGETS], most[BUDGETS];
    double share[BUDGETS];
    budget_taken(budget, NULL, false, now);
    budget_taken(budget, NULL, true, most);
    for (uint32_t place = 0; place < BUDGETS; place++) {
        const uint64_t limit = budget->limit[place];
        share[place] = most[place] <= limit ? 1 : limit > now[place] ? (double)(limit - now[place]) / (double)(most[place] - now[place]) : 0;
    }
    for (struct model *m = registry.models; m; m = m->next) {
        const uint64_t per_token = m->runner && m->counted ? token_bytes(m) : 0;
        if (per_token == 0) continue;
        double part = m->need.cache[HOST] > 0 || m->need.in_host ? share[HOST] : 1;
        if (m->need.cache[DEVICE] > 0 && m->device_used == budget->device && share[DEVICE] < part) part = share[DEVICE];
        const uint64_t held = sh_max_u64(m->info.context_length, cache_bytes_of(m) / per_token);
        uint64_t tokens = m->kv_wanted;
        if (held < tokens) tokens = held + (uint64_t)((double)(tokens - held) * part);
        if (tokens == m->kv_tokens) continue;
        log_write(SH_LOG_DEBUG, m->id, "its cache may grow to %" PRIu64 " tokens", tokens);
        m->kv_tokens = tokens;
        runner_limit_cache(m->runner, tokens);
    }
}
