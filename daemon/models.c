/* models.c - see models.h: the registry as its callers see it; loader.c does what takes time. */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/budget.h"
#include "daemon/devices.h"
#include "daemon/generation_private.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/text.h"

#include <stdio.h>
#include <stdlib.h>

struct registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER,
                            .wake = PTHREAD_COND_INITIALIZER,
                            .tidy = PTHREAD_COND_INITIALIZER,
                            .changed = PTHREAD_COND_INITIALIZER};

const char *model_state_name(enum model_state state) {
    static const char *const names[] = {"discovered", "loading", "ready", "draining", "failed"};
    return names[state];
}

/* ---- small things ------------------------------------------------------------------------------------ */

void set_text(char **slot, const char *value) {
    char *copy = strdup(value ? value : "");
    if (!copy) return; /* the old text stays */
    size_t left = strlen(copy);
    for (char *at = copy; left > 0;) {
        size_t n = sh_utf8_length(at, left);
        if (n == 0) *at = '?';
        at += n ? n : 1;
        left -= n ? n : 1;
    }
    free(*slot);
    *slot = copy;
}

void wants_finish(struct model_wants *wants) {
    free(wants->device);
    free(wants->kv_type);
    free(wants->chat_template);
    free(wants->draft);
    lora_free(wants->lora, wants->n_lora);
    *wants = (struct model_wants){0};
}

bool wants_copy(const struct model_wants *from, struct model_wants *to) {
    *to = (struct model_wants){.context_length = from->context_length, .places = from->places, .n_lora = from->n_lora};
    const struct {
        const char *from;
        char **to;
    } texts[] = {{from->device, &to->device}, {from->kv_type, &to->kv_type}, {from->chat_template, &to->chat_template},
                 {from->draft, &to->draft}};
    bool whole = true;
    for (size_t i = 0; i < SH_COUNT(texts); i++)
        if (texts[i].from && !(*texts[i].to = strdup(texts[i].from))) whole = false;
    to->lora = lora_copy(from->lora, &to->n_lora);
    whole = whole && to->n_lora == from->n_lora;
    if (!whole) wants_finish(to);
    return whole;
}

void model_set_state(struct model *model, enum model_state state) {
    if (model->state != state) log_write(SH_LOG_DEBUG, model->id, "%s", model_state_name(state));
    model->state = state;
    pthread_cond_broadcast(&registry.changed);
}

struct load_places places_resolve(const struct config *config, struct load_places places) {
    if (!places.set_layers) places.gpu_layers = config->gpu_layers;
    if (!places.set_experts) places.n_cpu_moe = config->cpu_moe ? UINT32_MAX : config->n_cpu_moe;
    places.set_layers = places.set_experts = true;
    return places;
}

struct model *model_ref(struct model *model) {
    atomic_fetch_add_explicit(&model->refs, 1, memory_order_relaxed);
    return model;
}

const char *model_id(const struct model *model) { return model->id; }

struct held_chat {
    char *which; /* NULL: what the model has */
    struct sh_chat *chat;
    struct sh_error error; /* why there is none */
    struct held_chat *next;
};

static void free_chat(struct held_chat *held) {
    sh_chat_destroy(held->chat);
    free(held->which);
    free(held);
}

void model_forget_vocabs(struct model *model) {
    for (struct held_vocab *held = model->vocabs, *next; held; held = next) {
        next = held->next;
        for (struct held_chat *chat = held->chats, *after; chat; chat = after) {
            after = chat->next;
            free_chat(chat);
        }
        sh_vocab_close(held->vocab);
        free(held);
    }
    model->vocabs = NULL;
}

void model_drop_names(struct model *model) {
    for (uint32_t i = 0; i < model->n_names; i++) free(model->names[i]);
    free(model->names);
    model->names = NULL;
    model->n_names = 0;
}

void model_unref(struct model *model) {
    if (!model || atomic_fetch_sub_explicit(&model->refs, 1, memory_order_acq_rel) != 1) return;
    model_forget_vocabs(model);
    pthread_mutex_destroy(&model->vocab_lock);
    wants_finish(&model->wants);
    wants_finish(&model->asked);
    json_decref(model->chat);
    model_drop_names(model);
    for (struct old_path *old = model->old_paths, *next; old; old = next) {
        next = old->next;
        free(old->path);
        free(old);
    }
    free(model->id);
    free(model->path);
    free(model->arch);
    free(model->type);
    free(model->name);
    free(model->error);
    free(model->base);
    free(model->draft_id);
    free(model->lost);
    free(model);
}

bool registry_wait(pthread_cond_t *condition, uint64_t deadline_ns) {
    if (deadline_ns == UINT64_MAX) {
        pthread_cond_wait(condition, &registry.lock);
        return true;
    }
    uint64_t now = sh_now_ns();
    if (now >= deadline_ns) return false;
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    uint64_t ns = (uint64_t)at.tv_nsec + (deadline_ns - now);
    at.tv_sec += (time_t)(ns / 1000000000);
    at.tv_nsec = (long)(ns % 1000000000);
    pthread_cond_timedwait(condition, &registry.lock, &at);
    return true;
}

bool registry_wait_changed(uint64_t deadline_ns) { return registry_wait(&registry.changed, deadline_ns); }

void registry_wake(void) {
    registry.retry_ns = 0;
    pthread_cond_signal(&registry.wake);
    pthread_cond_signal(&registry.tidy);
}

/* ---- start and stop ---------------------------------------------------------------------------------- */

enum sh_code models_start(struct config *config, struct sh_error *err) {
    pthread_mutex_lock(&registry.lock);
    registry.config = config_ref(config);
    registry.scan_wanted = true;
    registry.scanned = registry.refusing = registry.stopping = false;
    registry.scan_told = registry.settled_told = false;
    registry.patience_ns = sh_now_ns() + 2000000000;
    registry.loader_ended = registry.loader_stuck = false;
    registry.loader_ns = 0;
    registry.preload.begun = registry.preload.known = false;
    registry.preload.wanted = registry.preload.ready = registry.preload.failed = 0;
    bool made = pthread_create(&registry.keeper, NULL, keeper_main, NULL) == 0;
    if (made && pthread_create(&registry.loader, NULL, loader_main, NULL) != 0) {
        registry.stopping = registry.loader_ended = true;
        registry_wake();
        pthread_mutex_unlock(&registry.lock);
        pthread_join(registry.keeper, NULL);
        pthread_mutex_lock(&registry.lock);
        made = false;
    }
    if (!made) {
        config_unref(registry.config);
        registry.config = NULL;
        pthread_mutex_unlock(&registry.lock);
        return sh_fail(err, SH_ERR_NO_MEMORY, "the registry's threads cannot be made");
    }
    registry.started = true;
    /* Most directories are read faster than this; then the first Status is complete. */
    uint64_t deadline = sh_now_ns() + 50000000;
    while (!registry.scanned && registry_wait_changed(deadline)) {
    }
    pthread_mutex_unlock(&registry.lock);
    return SH_OK;
}

void models_configure(struct config *config) {
    pthread_mutex_lock(&registry.lock);
    struct config *old = registry.config;
    registry.config = config_ref(config);
    registry.scan_wanted = true;
    registry_wake();
    pthread_mutex_unlock(&registry.lock);
    config_unref(old);
}

/* Takes all waiting loads off their models. */
static struct load *take_all_loads(void) {
    struct load *all = NULL, **end = &all;
    for (struct model *m = registry.models; m; m = m->next) {
        *end = m->loads;
        while (*end) end = &(*end)->next;
        m->loads = NULL;
    }
    return all;
}

void models_stop_accepting(void) {
    pthread_mutex_lock(&registry.lock);
    registry.refusing = true;
    struct load *loads = take_all_loads(), *next;
    pthread_mutex_unlock(&registry.lock);
    struct sh_error err;
    sh_fail(&err, SH_ERR_CANCELLED, "shutting down");
    for (; loads; loads = next) {
        next = loads->next;
        load_finish(loads, SH_ERR_CANCELLED, &err);
        load_unref(loads);
    }
}

void models_stop(uint64_t limit_ns) {
    models_stop_accepting();
    pthread_mutex_lock(&registry.lock);
    if (!registry.started) {
        pthread_mutex_unlock(&registry.lock);
        return;
    }
    for (struct model *m = registry.models; m; m = m->next)
        if (m->state == MODEL_READY || (m->state == MODEL_DRAINING && m->drain_deadline_ns == UINT64_MAX))
            model_start_drain(m, DRAIN_SHUTDOWN, limit_ns);
    registry.stopping = true;
    registry_wake();
    pthread_mutex_unlock(&registry.lock);
    pthread_join(registry.loader, NULL);
    pthread_mutex_lock(&registry.lock);
    registry.loader_ended = true;
    registry_wake();
    pthread_mutex_unlock(&registry.lock);
    pthread_join(registry.keeper, NULL);

    pthread_mutex_lock(&registry.lock);
    struct model *models = registry.models, *next;
    registry.models = NULL;
    registry.started = false;
    config_unref(registry.config);
    registry.config = NULL;
    headers_close(registry.headers);
    registry.headers = NULL;
    found_list_finish(&registry.found);
    struct scan_wait *waits = registry.scan_waits;
    registry.scan_waits = NULL;
    pthread_mutex_unlock(&registry.lock);
    scan_waits_done(waits);
    for (; models; models = next) {
        next = models->next;
        model_unref(models);
    }
}

/* ---- models -------------------------------------------------------------------------------------------- */

struct model *model_create(const struct found_model *found) {
    struct model *m = sh_calloc(1, sizeof *m);
    if (!m) return NULL;
    atomic_init(&m->refs, 1);
    pthread_mutex_init(&m->vocab_lock, NULL);
    set_text(&m->id, found->id);
    m->path = strdup(found->path); /* as it is: this one is opened */
    set_text(&m->arch, "");
    set_text(&m->type, "");
    set_text(&m->name, "");
    set_text(&m->error, "");
    set_text(&m->base, "");
    if (!m->id || !m->path || !m->arch || !m->type || !m->name || !m->error || !m->base) {
        model_unref(m);
        return NULL;
    }
    m->identity = found->identity;
    m->split_hash = found->parts;
    m->size_bytes = found->size_bytes;
    m->store_name = found->store_name;
    m->root = UINT32_MAX;
    m->listed = true;
    return m;
}

void model_insert(struct model *model) {
    struct model **at = &registry.models;
    while (*at &&
           (strcmp((*at)->id, model->id) < 0 || (strcmp((*at)->id, model->id) == 0 && strcmp((*at)->path, model->path) < 0)))
        at = &(*at)->next;
    model->next = *at;
    *at = model;
}

enum sh_code models_only(struct model **out, struct sh_error *err) {
    uint32_t count = 0;
    pthread_mutex_lock(&registry.lock);
    for (struct model *m = registry.models; m; m = m->next) {
        if (m->state != MODEL_READY) continue;
        if (count++ == 0) *out = m;
    }
    if (count == 1) model_ref(*out);
    else *out = NULL;
    pthread_mutex_unlock(&registry.lock);
    if (count == 1) return SH_OK;
    return sh_fail(err, SH_ERR_INVALID, count ? "%u models are loaded: name one" : "no model is loaded (%u): name one", count);
}

/* ---- views ------------------------------------------------------------------------------------------- */

void model_get_view(struct model *m, struct model_view *out) {
    *out = (struct model_view){0};
    struct runner_stats stats = {0};
    pthread_mutex_lock(&registry.lock);
    set_text(&out->id, m->id);
    set_text(&out->path, m->path);
    set_text(&out->arch, m->arch);
    set_text(&out->type, m->type);
    set_text(&out->name, m->name);
    set_text(&out->error, m->error);
    set_text(&out->draft, m->draft_id && m->runner ? m->draft_id : "");
    set_text(&out->device, m->device ? sh_device_get_info(m->device)->name : "");
    out->names = json_array();
    for (uint32_t i = 0; i < m->n_names; i++) json_array_append_new(out->names, json_bytes(m->names[i], strlen(m->names[i])));
    out->state = m->state;
    out->stuck = m->stuck;
    out->size_bytes = m->size_bytes;
    out->created_s = (uint64_t)(m->identity.mtime_ns / 1000000000);
    bool loaded = m->runner != NULL;
    if (loaded) {
        runner_get_stats(m->runner, &stats);
        out->info = m->info;
        out->info.architecture = out->info.name = NULL;
        memcpy(out->parts, m->parts, sizeof out->parts);
        out->n_parts = m->n_parts;
        out->load_ns = m->info.load_ns;
        out->lora = lora_json(m->wants.lora, m->wants.n_lora);
        out->keep_alive_s = model_keeps_alive_s(m);
        out->kv_tokens = m->kv_tokens;
        uint64_t expires_ns, now_ns = sh_now_ns();
        if (model_expires(m, &expires_ns))
            out->expires_s = (uint64_t)time(NULL) + (expires_ns > now_ns ? (expires_ns - now_ns) / 1000000000 : 0);
        out->chat = json_incref(m->chat);
    }
    struct file_identity was = m->loaded, now;
    if (m->counted) out->memory_bytes = budget_model_bytes(m);
    out->context = stats.context;
    out->running = stats.running;
    out->queued = stats.queued;
    out->prompt_tokens_total = m->prompt_tokens + stats.prompt_tokens;
    out->generated_tokens_total = m->generated_tokens + stats.generated_tokens;
    pthread_mutex_unlock(&registry.lock);
    out->stale = loaded && !(identity_of(m->path, &now) && identity_equal(&was, &now));
}

json_t *model_capabilities(const char *arch) {
    json_t *list = json_array();
    struct sh_architecture_info a;
    for (uint32_t i = 0; sh_architecture_at(i, &a); i++) {
        if (strcmp(a.name, arch) != 0) continue;
        if (strcmp(a.family, "embedding") != 0) json_array_append_new(list, json_string("completion"));
        json_array_append_new(list, json_string("embedding"));
    }
    return list;
}

void model_view_finish(struct model_view *view) {
    free(view->id);
    free(view->path);
    free(view->arch);
    free(view->type);
    free(view->name);
    free(view->error);
    free(view->device);
    free(view->draft);
    json_decref(view->names);
    json_decref(view->lora);
    json_decref(view->chat);
    *view = (struct model_view){0};
}

void models_each(void (*fn)(struct model *model, void *user), void *user) {
    pthread_mutex_lock(&registry.lock);
    uint32_t count = 0, n = 0;
    for (struct model *m = registry.models; m; m = m->next) count += m->listed && !m->adapter;
    struct model **all = sh_calloc(count + 1ull, sizeof(struct model *));
    for (struct model *m = registry.models; m && all; m = m->next)
        if (m->listed && !m->adapter) all[n++] = model_ref(m);
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < n; i++) {
        fn(all[i], user);
        model_unref(all[i]);
    }
    free(all);
}

static void refresh_one(struct model *model, void *unused) {
    (void)unused;
    struct model_view view;
    model_get_view(model, &view);
    for (int state = MODEL_DISCOVERED; state <= MODEL_FAILED; state++) {
        const char *const labels[] = {view.id, model_state_name((enum model_state)state)};
        metric_set(METRIC_MODEL_STATE, labels, (int)view.state == state);
    }
    const char *const labels[] = {view.id};
    if (view.state == MODEL_READY || view.state == MODEL_DRAINING) {
        metric_set(METRIC_KV_PAGES_USED, labels, (double)view.context.pages_used);
        metric_set(METRIC_KV_PAGES_KEPT, labels, (double)view.context.pages_kept);
        metric_set(METRIC_KV_PAGES_TOTAL, labels, (double)view.context.pages_total);
        metric_set(METRIC_RUNNER_STUCK, labels, view.stuck);
    } else {
        metric_remove(METRIC_KV_PAGES_USED, labels);
        metric_remove(METRIC_KV_PAGES_KEPT, labels);
        metric_remove(METRIC_KV_PAGES_TOTAL, labels);
        metric_remove(METRIC_RUNNER_STUCK, labels);
    }
    model_view_finish(&view);
}

bool models_loader_stuck(struct sh_error *err) {
    pthread_mutex_lock(&registry.lock);
    const bool stuck = registry.loader_stuck;
    if (stuck && err) loader_why_stuck(err);
    pthread_mutex_unlock(&registry.lock);
    return stuck;
}

bool models_preload_state(uint32_t *wanted, uint32_t *ready, uint32_t *failed) {
    pthread_mutex_lock(&registry.lock);
    *wanted = registry.preload.wanted;
    *ready = registry.preload.ready;
    *failed = registry.preload.failed;
    const bool known = registry.preload.known;
    pthread_mutex_unlock(&registry.lock);
    return known;
}

void models_refresh_metrics(void) {
    models_each(refresh_one, NULL);
    metric_set(METRIC_LOADER_STUCK, NULL, models_loader_stuck(NULL));
    devices_refresh_metrics();
}

/* ---- loads ------------------------------------------------------------------------------------------- */

void load_unref(struct load *load) {
    if (!load || atomic_fetch_sub_explicit(&load->refs, 1, memory_order_acq_rel) != 1) return;
    pthread_mutex_destroy(&load->lock);
    model_unref(load->model);
    free(load);
}

void load_finish(struct load *load, enum sh_code code, const struct sh_error *err) {
    pthread_mutex_lock(&load->lock);
    bool first = !load->finished;
    load->finished = true;
    pthread_mutex_unlock(&load->lock);
    if (first) load->done(load->user, code, code == SH_OK ? model_ref(load->model) : NULL, err);
}

/* Does what a request asks for agree with how the model is loaded, or being loaded? The lock is held. */
static bool wants_agree(const struct model *model, const struct load_params *want) {
    const struct model_wants *have = &model->wants;
    if (!want) return true;
    if (want->device && !(have->device && strcasecmp(have->device, want->device) == 0)) {
        const struct sh_device_info *info = model->device ? sh_device_get_info(model->device) : NULL;
        bool is_cpu = strcasecmp(want->device, "cpu") == 0;
        if (!info ||
            (is_cpu ? info->kind != SH_DEVICE_CPU : info->kind == SH_DEVICE_CPU || !strcasestr(info->name, want->device)))
            return false;
    }
    if (want->chat_template && !(have->chat_template && strcmp(have->chat_template, want->chat_template) == 0)) return false;
    if (want->draft && !(have->draft && strcmp(have->draft, want->draft) == 0)) return false;
    if (want->context_length && have->context_length != want->context_length) return false;
    const struct load_places places = places_resolve(registry.config, have->places);
    if (want->places.set_layers && want->places.gpu_layers != places.gpu_layers) return false;
    if (want->places.set_experts && want->places.n_cpu_moe != places.n_cpu_moe) return false;
    if (want->set_lora && !lora_equal(want->lora, want->n_lora, have->lora, have->n_lora)) return false;
    return !want->kv_type || (have->kv_type && strcmp(have->kv_type, want->kv_type) == 0);
}

/* False: no memory. */
static bool wants_set(struct model_wants *wants, const struct load_params *params) {
    const struct model_wants asked = {.device = (char *)(uintptr_t)params->device,
                                      .kv_type = (char *)(uintptr_t)params->kv_type,
                                      .chat_template = (char *)(uintptr_t)params->chat_template,
                                      .draft = (char *)(uintptr_t)params->draft,
                                      .context_length = params->context_length,
                                      .places = params->places,
                                      .lora = (struct lora_want *)(uintptr_t)params->lora,
                                      .n_lora = params->n_lora};
    wants_finish(wants);
    return wants_copy(&asked, wants);
}

void model_start_drain(struct model *model, enum drain_why why, uint64_t limit_ns) {
    model_set_state(model, MODEL_DRAINING);
    model->drain_why = why;
    model->drain_deadline_ns = limit_ns == UINT64_MAX ? UINT64_MAX : sh_now_ns() + limit_ns;
    model->drain_cut = false;
    if (model->runner) runner_drain(model->runner);
    registry_wake();
}

static void set_keep_alive(struct model *model, int64_t seconds, bool asked) {
    model->keep_alive_s = seconds;
    model->keep_alive_set = true;
    model->keep_alive_asked = asked;
}

void model_keep_alive(struct model *model, int64_t seconds) {
    pthread_mutex_lock(&registry.lock);
    if (model->counted || model->loads) set_keep_alive(model, seconds, true);
    registry_wake();
    pthread_mutex_unlock(&registry.lock);
}

int64_t model_keeps_alive_s(const struct model *model) {
    return model->keep_alive_set ? model->keep_alive_s : registry.config->keep_alive_s;
}

static uint32_t count_loads(const struct model *model) {
    uint32_t n = 0;
    for (const struct load *load = model->loads; load; load = load->next) n++;
    return n;
}

/* What becomes of somebody who wants a model: it is ready (neither an error nor *waits), or there is a load to wait for, which may begin
 * with it. The lock is held. */
static enum sh_code join_load(struct model *model, const struct load_params *params, bool *waits, struct sh_error *err) {
    const bool reload = params && params->reload && model->state == MODEL_READY, ready = model->state == MODEL_READY && !reload;
    const uint32_t most = registry.config ? registry.config->max_queue + registry.config->max_sequences : 0;
    if (registry.refusing || !registry.config) return sh_fail(err, SH_ERR_CANCELLED, "shutting down");
    if (!model->listed) /* a search took it out of the registry while the caller held it: nobody would load it */
        return sh_fail(err, SH_ERR_NOT_FOUND, "the file of %s is not there any more, or goes by another name now: ask again", model->id);
    if (params && params->kv_type && strcmp(params->kv_type, "f16") != 0 && strcmp(params->kv_type, "f32") != 0)
        return sh_fail(err, SH_ERR_INVALID, "kv_type is '%s': expected f16 or f32", params->kv_type);
    if (!ready && registry.loader_stuck) {
        loader_why_stuck(err);
        return err->code;
    }
    if (!ready && count_loads(model) >= most)
        return sh_fail(err, SH_ERR_BUSY, "%u requests wait for %s to be loaded already (options max_queue and max_sequences): try again later",
                       most, model->id);
    if (ready || model->loads) {
        if (!wants_agree(model, params))
            return sh_fail(err, SH_ERR_INVALID,
                           "%s is %s with other settings (device %s, context %u, its chat template, the model that drafts for it, or where its "
                           "layers are): reload swaps it",
                           model->id, model->state == MODEL_READY ? "loaded" : "being loaded",
                           model->device ? sh_device_get_info(model->device)->name : "not chosen yet",
                           model->state == MODEL_READY ? model->info.context_length : model->wants.context_length);
        *waits = !ready;
        return SH_OK;
    }
    if (params && !params->on_demand) {
        if (!wants_set(&model->asked, params)) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a load");
        model->asked_proven = false;
    }
    wants_finish(&model->wants);
    if (!wants_copy(&model->asked, &model->wants)) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a load");
    if (model->state == MODEL_DISCOVERED || model->state == MODEL_FAILED) model->keep_alive_set = false; /* of a load that was given up */
    if (reload) model_start_drain(model, DRAIN_RELOAD, registry.config->drain_timeout_s * 1000000000ull);
    model->load_order = ++registry.last_order;
    *waits = true;
    return SH_OK;
}

struct load *model_load(struct model *model, const struct load_params *params, load_done_fn done, load_progress_fn progress,
                        void *user) {
    struct load *load = sh_calloc(1, sizeof *load);
    if (!load) return NULL;
    atomic_init(&load->refs, 1);
    pthread_mutex_init(&load->lock, NULL);
    load->model = model_ref(model);
    load->done = done;
    load->progress = progress;
    load->user = user;

    load->deadline_ns = params ? params->deadline_ns : 0;
    load->modest = params && params->modest;

    struct sh_error err;
    pthread_mutex_lock(&registry.lock);
    bool waits = false;
    const enum sh_code code = join_load(model, params, &waits, &err);
    if (code == SH_OK && params && params->set_keep_alive) set_keep_alive(model, params->keep_alive_s, false);
    if (waits) {
        struct load **end = &model->loads;
        while (*end) end = &(*end)->next;
        atomic_fetch_add(&load->refs, 1);
        *end = load;
        registry_wake();
    }
    pthread_mutex_unlock(&registry.lock);
    if (!waits) load_finish(load, code, code ? &err : NULL);
    return load;
}

void load_cancel(struct load *load) {
    bool listed = false;
    pthread_mutex_lock(&registry.lock);
    for (struct load **at = &load->model->loads; *at; at = &(*at)->next) {
        if (*at != load) continue;
        *at = load->next;
        listed = true;
        break;
    }
    pthread_mutex_unlock(&registry.lock);
    struct sh_error err;
    sh_fail(&err, SH_ERR_CANCELLED, "cancelled");
    load_finish(load, SH_ERR_CANCELLED, &err);
    if (listed) load_unref(load);
}

void load_release(struct load *load) { load_unref(load); }

enum sh_code model_unload(struct model *model, unload_done_fn done, void *user, struct sh_error *err) {
    struct unload_wait *wait = done ? sh_calloc(1, sizeof *wait) : NULL;
    if (done && !wait) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory");
    pthread_mutex_lock(&registry.lock);
    bool loaded = model->state == MODEL_READY || model->state == MODEL_DRAINING;
    if (loaded) {
        if (wait) {
            *wait = (struct unload_wait){done, user, model->unloads};
            model->unloads = wait;
        }
        const uint64_t limit_ns = registry.config->drain_timeout_s * 1000000000ull;
        if (model->state == MODEL_READY || model->drain_deadline_ns == UINT64_MAX) model_start_drain(model, DRAIN_UNLOAD, limit_ns);
    }
    if (!model->loads) wants_finish(&model->asked); /* it comes back as it is configured */
    pthread_mutex_unlock(&registry.lock);
    if (loaded) return SH_OK;
    free(wait);
    return sh_fail(err, SH_ERR_NOT_FOUND, "%s is not loaded", model->id);
}

uint64_t model_instance(struct model *model) {
    pthread_mutex_lock(&registry.lock);
    const uint64_t instance = model->state == MODEL_READY ? model->ready_since_ns : 0; /* the one loader made each at another time */
    pthread_mutex_unlock(&registry.lock);
    return instance;
}

/* ---- sessions ---------------------------------------------------------------------------------------- */

/* The model's runner, which stays until runner_leave; NULL: it is not loaded. */
static struct runner *runner_enter(struct model *model, struct sh_error *err) {
    pthread_mutex_lock(&registry.lock);
    struct runner *runner = model->state == MODEL_READY ? model->runner : NULL;
    if (runner) model->runner_users++;
    pthread_mutex_unlock(&registry.lock);
    if (!runner) sh_fail(err, SH_ERR_NOT_FOUND, "%s is not loaded", model->id);
    return runner;
}

static void runner_leave(struct model *model) {
    pthread_mutex_lock(&registry.lock);
    model->runner_users--;
    pthread_cond_broadcast(&registry.changed);
    pthread_mutex_unlock(&registry.lock);
}

enum sh_code model_save_session(struct model *model, const char *session, uint64_t salt, int fd, uint32_t *tokens, struct sh_error *err) {
    struct runner *runner = runner_enter(model, err);
    if (!runner) return SH_ERR_NOT_FOUND;
    const enum sh_code code = runner_save_session(runner, session, salt, fd, tokens, err);
    runner_leave(model);
    return code;
}

enum sh_code model_restore_session(struct model *model, const char *session, uint64_t salt, int fd, uint32_t *tokens,
                                   struct sh_error *err) {
    struct runner *runner = runner_enter(model, err);
    if (!runner) return SH_ERR_NOT_FOUND;
    const enum sh_code code = runner_restore_session(runner, session, salt, fd, tokens, err);
    runner_leave(model);
    return code;
}

/* ---- the vocabulary ---------------------------------------------------------------------------------- */

/* That of the file with this identity, or NULL. vocab_lock is held, here and in the next. */
static struct held_vocab *held_vocab(const struct model *model, const struct file_identity *identity) {
    for (struct held_vocab *held = model->vocabs; held; held = held->next)
        if (identity_equal(&held->identity, identity)) return held;
    return NULL;
}

static enum sh_code hold_vocab(struct model *model, const struct file_identity *identity, struct sh_error *err) {
    struct held_vocab *held = sh_calloc(1, sizeof *held);
    enum sh_code code =
        held ? sh_vocab_open(model->path, &held->vocab, err) : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a vocabulary");
    struct file_identity after;
    if (code == SH_OK && !(identity_of(model->path, &after) && identity_equal(identity, &after))) {
        sh_vocab_close(held->vocab);
        code = sh_fail(err, SH_ERR_IO, "%s: the file was replaced while it was read: try again", model->path);
    }
    if (code) {
        free(held);
        return code;
    }
    held->identity = *identity;
    held->next = model->vocabs; /* older ones may be lent */
    model->vocabs = held;
    return SH_OK;
}

const struct sh_vocab *model_held_vocab(struct model *model, const struct file_identity *identity) {
    pthread_mutex_lock(&model->vocab_lock);
    const struct held_vocab *held = held_vocab(model, identity);
    const struct sh_vocab *vocab = held ? held->vocab : NULL;
    pthread_mutex_unlock(&model->vocab_lock);
    return vocab;
}

enum sh_code model_hold_vocab(struct model *model, const struct file_identity *identity, struct sh_error *err) {
    pthread_mutex_lock(&model->vocab_lock);
    enum sh_code code = held_vocab(model, identity) ? SH_OK : hold_vocab(model, identity, err);
    pthread_mutex_unlock(&model->vocab_lock);
    return code;
}

/* The vocabulary that the model is served with: what is loaded goes on with its own, also when the file has been replaced since.
 * vocab_lock is held when this returns. *which (may be NULL): the template asked for; malloc'd. */
static enum sh_code lock_vocab(struct model *model, struct held_vocab **out, char **which, struct sh_error *err) {
    struct file_identity wanted = {0};
    identity_of(model->path, &wanted); /* a file that is not there fails when it is opened */
    pthread_mutex_lock(&registry.lock);
    if (model->runner) wanted = model->loaded;
    if (which) {
        const char *configured = registry.config ? registry.config->chat_template : NULL; /* NULL: the registry has stopped */
        const char *wanted_template = model->runner ? model->wants.chat_template : configured;
        *which = wanted_template && *wanted_template ? strdup(wanted_template) : NULL;
    }
    pthread_mutex_unlock(&registry.lock);

    pthread_mutex_lock(&model->vocab_lock);
    enum sh_code code = held_vocab(model, &wanted) ? SH_OK : hold_vocab(model, &wanted, err);
    *out = code == SH_OK ? held_vocab(model, &wanted) : NULL;
    return code;
}

enum sh_code model_get_vocab(struct model *model, const struct sh_vocab **out, struct sh_error *err) {
    struct held_vocab *held;
    enum sh_code code = lock_vocab(model, &held, NULL, err);
    if (code == SH_OK) *out = held->vocab;
    pthread_mutex_unlock(&model->vocab_lock);
    return code;
}

/* ---- chats ------------------------------------------------------------------------------------------- */

static bool same_text(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

static struct held_chat *find_chat(const struct held_vocab *vocab, const char *which) {
    for (struct held_chat *held = vocab->chats; held; held = held->next)
        if (same_text(held->which, which)) return held;
    return NULL;
}

/* What is wrong with a template is kept as well; only a lack of memory may be over the next time. */
static enum sh_code hold_chat(struct held_vocab *vocab, const char *which, struct held_chat **out, struct sh_error *err) {
    struct held_chat *held = sh_calloc(1, sizeof *held);
    if (!held || (which && !(held->which = strdup(which)))) {
        free(held);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a chat");
    }
    enum sh_code code = sh_chat_create(vocab->vocab, which, &held->chat, &held->error);
    if (code == SH_ERR_NO_MEMORY) {
        *err = held->error;
        free_chat(held);
        return code;
    }
    held->next = vocab->chats; /* older ones may be lent */
    vocab->chats = *out = held;
    return SH_OK;
}

enum sh_code model_hold_chat(struct model *model, const struct file_identity *identity, const char *which, json_t **view,
                             struct sh_error *err) {
    struct held_chat *held = NULL;
    struct sh_chat_info info;
    *view = NULL;
    pthread_mutex_lock(&model->vocab_lock);
    struct held_vocab *vocab = held_vocab(model, identity);
    if (!which || !strpbrk(which, "/.")) held = find_chat(vocab, which); /* a file may have changed since */
    enum sh_code code = held ? SH_OK : hold_chat(vocab, which, &held, err);
    if (code == SH_OK && held->chat) {
        sh_chat_get_info(held->chat, &info);
        log_write(SH_LOG_NOTICE, model->id, "chat template: %s (%s): %s; tool calls: %s; reasoning: %s", info.name, info.source,
                  info.reason, info.tools, info.reasoning[0] ? info.reasoning : "none");
        *view = json_pack("{so ss so ss ss}", "template", json_bytes(info.name, strlen(info.name)), "source", info.source, "reason",
                          json_bytes(info.reason, strlen(info.reason)), "tools", info.tools, "reasoning", info.reasoning);
    } else if (code == SH_OK && which) {
        *err = held->error;
        code = err->code;
    } else if (code == SH_OK) {
        log_write(SH_LOG_WARNING, model->id, "no chats, only completions: %s", held->error.message);
        *view = json_pack("{ss}", "error", held->error.message);
    }
    pthread_mutex_unlock(&model->vocab_lock);
    return code;
}

enum sh_code model_get_chat(struct model *model, const struct sh_chat **out, struct sh_error *err) {
    struct held_vocab *vocab;
    struct held_chat *held = NULL;
    char *which = NULL;
    enum sh_code code = lock_vocab(model, &vocab, &which, err);
    if (code == SH_OK) {
        held = find_chat(vocab, which);
        if (!held) code = hold_chat(vocab, which, &held, err);
    }
    if (code == SH_OK && !held->chat) {
        *err = held->error;
        code = err->code;
    }
    if (code == SH_OK) *out = held->chat;
    pthread_mutex_unlock(&model->vocab_lock);
    free(which);
    return code;
}
