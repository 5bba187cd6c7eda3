/*
 * loader.c - the one thread that scans, reads headers (scan.c), loads and unloads: everything about models that takes time.
 *
 * Its work in order of urgency: unload what is drained, load what is waited for, scan, read headers, let idle models go. It holds
 * registry.lock only to look and to write results down.
 */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/devices.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

/* A model that keep_alive 0 would unload before it was ever used stays this long for its first request. */
#define FIRST_USE_NS 60000000000ull

/* What `systemctl status` shows. The lock is held. */
static void tell_status(const char *doing, const char *id) {
    uint32_t ready = 0;
    for (const struct model *m = registry.models; m; m = m->next) ready += m->state == MODEL_READY;
    if (registry.stopping) return; /* main tells of the end */
    if (doing) sd_notifyf(0, "STATUS=%s %s", doing, id);
    else sd_notifyf(0, "STATUS=%u models loaded", ready);
}

/* ---- loading ----------------------------------------------------------------------------------------- */

/* One load, as its thread sees it. Strings of `wants` are copies. */
struct job {
    struct model *model;
    struct config *config;
    struct model_wants wants;
    uint64_t order;            /* the model's load_order: another one means that those who wait now want something else */
    struct load_places places; /* resolved */
    struct sh_device *device;
    struct sh_device *host; /* the CPU's, if some of the model is there */
    struct sh_plan plan;    /* if the device is not the CPU */
    bool partial;           /* other models have made what room they can: fewer layers than all are good enough for auto */
    uint32_t most_layers;   /* on the device: more of them failed */
    struct sh_model *engine;
    struct runner *runner;
};

/* Everybody who waits is told; nobody left: stop. */
static bool on_progress(void *user, enum sh_load_phase phase, double fraction) {
    struct job *job = user;
    struct load *waiting[64];
    uint32_t count = 0;
    pthread_mutex_lock(&registry.lock);
    bool wanted = job->model->loads && job->model->load_order == job->order && !registry.refusing;
    for (struct load *load = job->model->loads; load && count < SH_COUNT(waiting); load = load->next) {
        if (!load->progress) continue;
        atomic_fetch_add(&load->refs, 1);
        waiting[count++] = load;
    }
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < count; i++) {
        pthread_mutex_lock(&waiting[i]->lock);
        if (!waiting[i]->finished) waiting[i]->progress(waiting[i]->user, phase, fraction);
        pthread_mutex_unlock(&waiting[i]->lock);
        load_unref(waiting[i]);
    }
    return wanted;
}

static void runner_is_idle(void *user) {
    (void)user;
    pthread_mutex_lock(&registry.lock);
    pthread_cond_signal(&registry.wake);
    pthread_mutex_unlock(&registry.lock);
}

static void runner_lost_device(void *user, const struct sh_error *err) {
    struct model *model = user;
    log_write(SH_LOG_ERROR, model->id, "the device is lost: %s", err->message);
    pthread_mutex_lock(&registry.lock);
    set_text(&model->lost, err->message);
    if (model->state == MODEL_READY) model_start_drain(model, 0);
    pthread_mutex_unlock(&registry.lock);
}

static struct sh_context_params context_params(const struct job *job) {
    const struct config *config = job->config;
    const char *kv_type = job->wants.kv_type ? job->wants.kv_type : config->kv_type;
    return (struct sh_context_params){.size = sizeof(struct sh_context_params),
                                      .kv_type = strcmp(kv_type, "f32") == 0 ? SH_KV_F32 : SH_KV_F16,
                                      .max_sequences = config->max_sequences,
                                      .max_batch_rows = config->max_batch_rows,
                                      .kv_tokens = config->kv_tokens};
}

/* Which layers go to the device, and which to the host; adds that to *params. */
static enum sh_code place(struct job *job, struct sh_model_params *params, struct sh_error *err) {
    if (sh_device_get_info(job->device)->kind == SH_DEVICE_CPU) return SH_OK;
    enum sh_code code = job->host ? SH_OK : devices_acquire("cpu", &job->host, err);
    if (code) return code;
    struct sh_device *const devices[] = {job->device, job->host};
    const struct sh_context_params context = context_params(job);
    const bool automatic = job->places.gpu_layers == SH_LAYERS_AUTO;
    params->n_host_layers = job->places.n_cpu_moe;
    code = sh_model_plan(devices, params, &context, job->most_layers < SH_LAYERS_AUTO ? job->most_layers : job->places.gpu_layers,
                         &job->plan, err);
    if (code) return code;
    if (automatic && !job->partial && job->plan.n_device_layers < job->plan.n_layers)
        return sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "%u of %u layers fit on %s", job->plan.n_device_layers, job->plan.n_layers,
                       sh_device_get_info(job->device)->name);
    if (job->plan.weights_bytes[1] == 0) { /* all of it is on the device */
        devices_release(job->host, false);
        job->host = NULL;
        params->n_host_layers = 0;
        return SH_OK;
    }
    params->placement = job->plan.placement;
    params->n_placement = job->plan.n_placement;
    params->n_host_layers = job->plan.n_host_layers;
    params->host_device = 1;
    return SH_OK;
}

static enum sh_code load_engine(struct job *job, struct sh_error *err) {
    const struct config *config = job->config;
    struct sh_model_params params = {
        .size = sizeof params,
        .path = job->model->path,
        .context_length = job->wants.context_length ? job->wants.context_length : config->context_length,
        .rope_scale = config->rope_scale,
        .progress = on_progress,
        .progress_user = job,
    };
    struct sh_lora *lora = sh_calloc(job->wants.n_lora, sizeof *lora);
    if (!lora) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u adapters", job->wants.n_lora);
    for (uint32_t i = 0; i < job->wants.n_lora; i++)
        lora[i] = (struct sh_lora){.path = job->wants.lora[i].path, .scale = job->wants.lora[i].scale};
    params.lora = lora;
    params.n_lora = job->wants.n_lora;
    enum sh_code code = place(job, &params, err); /* adapters take room, too */
    if (code == SH_OK) {
        struct sh_device *const devices[] = {job->device, job->host};
        code = sh_model_load(devices, job->host ? 2 : 1, &params, &job->engine, err);
    }
    free(lora);
    if (code) return code;

    struct sh_model_info info;
    sh_model_get_info(job->engine, &info);
    /* An encoder's text enters in one step, and every row of it is an output. */
    const uint32_t whole =
        info.encoder && info.context_length > config->max_batch_rows ? info.context_length : config->max_batch_rows;
    struct runner_params runner = {
        .context = context_params(job),
        .prefill_chunk = config->prefill_chunk,
        .prefill_share = config->prefill_share,
        .max_queue = config->max_queue,
        .overlap = sh_device_get_info(job->device)->kind != SH_DEVICE_CPU,
        .id = job->model->id,
        .idle = runner_is_idle,
        .lost = runner_lost_device,
        .user = job->model,
    };
    runner.context.max_batch_rows = whole;
    if (info.encoder) runner.context.max_outputs = whole;
    if (config->kv_tokens == 0) runner.context.kv_tokens = (uint64_t)info.context_length * config->max_sequences;
    runner.context.reuse_tokens = config->prefix_cache == SH_LAYERS_AUTO ? 2ull * info.context_length : config->prefix_cache;
    code = runner_create(job->engine, &runner, &job->runner, err);
    if (code) {
        sh_model_unload(job->engine);
        job->engine = NULL;
    }
    return code;
}

static bool memory_is_short(enum sh_code code) { return code == SH_ERR_NO_MEMORY || code == SH_ERR_NO_DEVICE_MEMORY; }

/* The idle model that was used longest ago and that nobody is about to use, or NULL. The lock is held. */
static struct model *evictable(void) {
    struct model *best = NULL;
    uint64_t oldest = UINT64_MAX;
    for (struct model *m = registry.models; m; m = m->next) {
        if (m->state != MODEL_READY || atomic_load(&m->refs) > 1) continue;
        struct runner_stats stats;
        runner_get_stats(m->runner, &stats);
        if (stats.idle_since_ns == 0 || stats.idle_since_ns >= oldest) continue;
        best = m;
        oldest = stats.idle_since_ns;
    }
    return best;
}

/* Ends runner and engine of a model that has nothing left to do. The lock is held, and given up meanwhile. */
static void unload(struct model *m) {
    struct runner *runner = m->runner;
    struct sh_model *engine = m->engine;
    struct sh_device *device = m->device, *host = m->host;
    bool lost = m->lost != NULL;
    struct runner_stats stats;
    runner_get_stats(runner, &stats);
    m->runner = NULL; /* from here on nobody sees what goes away */
    m->engine = NULL;
    m->device = m->host = NULL;
    pthread_mutex_unlock(&registry.lock);
    log_write(SH_LOG_INFO, m->id, "unloading");
    runner_destroy(runner);
    sh_model_unload(engine);
    devices_release(device, lost);
    devices_release(host, false);
    malloc_trim(0);
    pthread_mutex_lock(&registry.lock);
    m->prompt_tokens += stats.prompt_tokens;
    m->generated_tokens += stats.generated_tokens;
    if (atomic_load(&m->refs) == 1) model_forget_vocabs(m);
    const char *const labels[] = {m->id};
    metric_remove(METRIC_MODEL_LOAD_SECONDS, labels);
    set_text(&m->error, m->lost);
    model_set_state(m, m->lost ? MODEL_FAILED : MODEL_DISCOVERED);
    free(m->lost);
    m->lost = NULL;
    tell_status(NULL, NULL);

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

/* Makes room by letting the least recently used model go. The lock is not held. */
static bool evict_one(const struct model *for_model) {
    pthread_mutex_lock(&registry.lock);
    struct model *victim = evictable();
    if (victim) {
        log_write(SH_LOG_NOTICE, victim->id, "unloaded to make room for %s", for_model->id);
        model_start_drain(victim, 0);
        unload(victim);
    }
    pthread_mutex_unlock(&registry.lock);
    return victim != NULL;
}

/* Loads, making room: idle models go first, then, under auto, layers stay on the host. */
static enum sh_code load_somehow(struct job *job, uint64_t size_bytes, struct sh_error *err) {
    enum sh_code code = load_engine(job, err);
    /* Others go only for one that could fit at all. */
    const uint64_t memory = sh_device_get_info(job->device)->memory_bytes;
    const bool automatic = job->places.gpu_layers == SH_LAYERS_AUTO;
    const bool could_fit = memory == 0 || size_bytes < memory || !automatic;
    while (memory_is_short(code) && could_fit && evict_one(job->model)) code = load_engine(job, err);
    if (!memory_is_short(code) || !automatic || sh_device_get_info(job->device)->kind == SH_DEVICE_CPU) return code;
    job->partial = true;
    code = load_engine(job, err);
    while (code == SH_ERR_NO_DEVICE_MEMORY && job->plan.n_device_layers > 0) { /* the plan is an estimate */
        job->most_layers = job->plan.n_device_layers - 1 - job->plan.n_device_layers / 10;
        log_write(SH_LOG_NOTICE, job->model->id, "%s; trying with %u layers there", err->message, job->most_layers);
        code = load_engine(job, err);
    }
    return code;
}

/* What is where, for those who ask and for the log. */
static void note_parts(const struct job *job, struct model *m) {
    const struct sh_model_info *info = &m->info;
    const bool split = job->host != NULL;
    const uint32_t on_device = split ? job->plan.n_device_layers : info->n_layers;
    m->n_parts = split ? 2 : 1;
    m->parts[0] = (struct model_part){
        .first_layer = info->n_layers - on_device, .n_layers = on_device, .weights_bytes = info->weights_bytes[0]};
    snprintf(m->parts[0].device, sizeof m->parts[0].device, "%s", sh_device_get_info(job->device)->name);
    if (!split) return;
    m->parts[1] = (struct model_part){.n_layers = info->n_layers - on_device, .weights_bytes = info->weights_bytes[1]};
    if (info->n_expert > 0 && job->plan.n_host_layers > m->parts[1].n_layers)
        m->parts[1].n_expert_layers = job->plan.n_host_layers;
    snprintf(m->parts[1].device, sizeof m->parts[1].device, "%s", sh_device_get_info(job->host)->name);
    for (uint32_t i = 0; i < 2; i++) {
        const struct model_part *part = &m->parts[i];
        char layers[100] = "no whole layer", experts[60] = "";
        if (part->n_layers > 0)
            snprintf(layers, sizeof layers, "layers %u to %u%s", part->first_layer, part->first_layer + part->n_layers - 1,
                     part->first_layer + part->n_layers == info->n_layers ? " and the output layer" : "");
        if (part->n_expert_layers > 0)
            snprintf(experts, sizeof experts, ", the experts of the first %u layers", part->n_expert_layers);
        log_write(SH_LOG_NOTICE, m->id, "on %s: %s%s, %.1f MiB of weights", part->device, layers, experts,
                  (double)part->weights_bytes / (1 << 20));
    }
}

/* Vocabulary and chat (of a model that has logits). Before the weights where a template was asked for, which may be wrong; after them
 * else, so that a load that fails leaves nothing behind. */
static enum sh_code hold_texts(const struct job *job, const struct file_identity *identity, const char *chat_template, json_t **chat,
                               struct sh_error *err) {
    const enum sh_code code = model_hold_vocab(job->model, identity, err);
    struct sh_model_info info = {.has_logits = true};
    if (job->engine) sh_model_get_info(job->engine, &info);
    return code == SH_OK && info.has_logits ? model_hold_chat(job->model, identity, chat_template, chat, err) : code;
}

static void load(struct model *m) {
    struct job job = {.model = model_ref(m), .config = config_ref(registry.config)};
    job.wants = wants_copy(&m->wants);
    job.places = places_resolve(job.config, job.wants.places);
    job.most_layers = SH_LAYERS_AUTO;
    const char *configured = *job.config->chat_template ? job.config->chat_template : NULL;
    const char *chat_template = job.wants.chat_template ? job.wants.chat_template : configured;
    job.order = m->load_order;
    uint64_t size_bytes = m->size_bytes;
    model_set_state(m, MODEL_LOADING);
    set_text(&m->error, "");
    tell_status("loading", m->id);
    pthread_mutex_unlock(&registry.lock);

    struct sh_error err = {0};
    struct file_identity identity = {0};
    json_t *chat = NULL;
    uint64_t start = sh_now_ns();
    log_write(SH_LOG_INFO, m->id, "loading %s", m->path);
    on_progress(&job, SH_LOAD_HEADER, 0);
    identity_of(m->path, &identity);
    enum sh_code code = devices_acquire(job.wants.device, &job.device, &err);
    if (code == SH_OK && chat_template) code = hold_texts(&job, &identity, chat_template, &chat, &err);
    if (code == SH_OK) code = load_somehow(&job, size_bytes, &err);
    if (code == SH_OK && !chat_template && (code = hold_texts(&job, &identity, NULL, &chat, &err)) != SH_OK) {
        runner_destroy(job.runner);
        sh_model_unload(job.engine);
    }
    uint64_t took = sh_now_ns() - start;

    pthread_mutex_lock(&registry.lock);
    if (code == SH_OK && (registry.refusing || !m->loads || m->load_order != job.order)) {
        code = sh_fail(&err, SH_ERR_CANCELLED, "nobody waits for it any more");
        pthread_mutex_unlock(&registry.lock);
        runner_destroy(job.runner);
        sh_model_unload(job.engine);
        pthread_mutex_lock(&registry.lock);
    }
    if (code != SH_OK && job.device) {
        pthread_mutex_unlock(&registry.lock);
        devices_release(job.device, code == SH_ERR_DEVICE_LOST);
        devices_release(job.host, false);
        pthread_mutex_lock(&registry.lock);
    }
    if (code == SH_OK) {
        m->device = job.device;
        m->host = job.host;
        m->engine = job.engine;
        m->runner = job.runner;
        json_decref(m->chat);
        m->chat = json_incref(chat);
        m->loaded = m->identity = identity;
        sh_model_get_info(m->engine, &m->info);
        m->info.load_ns = took;
        m->ready_since_ns = sh_now_ns();
        wants_finish(&m->wants);
        m->wants = (struct model_wants){strdup(job.wants.device ? job.wants.device : job.config->device),
                                        m->info.context_length,
                                        strdup(job.wants.kv_type ? job.wants.kv_type : job.config->kv_type),
                                        job.places,
                                        job.wants.lora,
                                        job.wants.n_lora,
                                        chat_template ? strdup(chat_template) : NULL};
        job.wants.lora = NULL; /* handed over */
        job.wants.n_lora = 0;
        const char *const labels[] = {m->id};
        metric_set(METRIC_MODEL_LOAD_SECONDS, labels, (double)took / 1e9);
        log_write(SH_LOG_NOTICE, m->id, "loaded on %s in %.2f s: context %u, %.1f MiB of weights",
                  sh_device_get_info(m->device)->name, (double)took / 1e9, m->info.context_length,
                  (double)(m->info.weights_bytes[0] + m->info.weights_bytes[1]) / (1 << 20));
        note_parts(&job, m);
        model_set_state(m, MODEL_READY);
    } else if (code == SH_ERR_CANCELLED) {
        log_write(SH_LOG_INFO, m->id, "load stopped: nobody waits for it any more");
        model_set_state(m, MODEL_DISCOVERED);
    } else {
        log_write(SH_LOG_ERROR, m->id, "load failed: %s", err.message);
        set_text(&m->error, err.message);
        model_set_state(m, MODEL_FAILED);
    }
    tell_status(NULL, NULL);
    /* One that came while a stopped load was ending starts it anew. */
    struct load *loads = code == SH_ERR_CANCELLED && !registry.refusing ? NULL : m->loads, *next;
    if (loads) m->loads = NULL;
    pthread_mutex_unlock(&registry.lock);
    for (; loads; loads = next) {
        next = loads->next;
        load_finish(loads, code, code ? &err : NULL);
        load_unref(loads);
    }
    json_decref(chat);
    wants_finish(&job.wants);
    config_unref(job.config);
    model_unref(m);
    pthread_mutex_lock(&registry.lock);
}

/* ---- the thread -------------------------------------------------------------------------------------- */

/* A drained model, or NULL; cuts off those whose time is over. The lock is held. */
static struct model *drained(uint64_t now, uint64_t *deadline) {
    for (struct model *m = registry.models; m; m = m->next) {
        if (m->state != MODEL_DRAINING) continue;
        struct runner_stats stats;
        runner_get_stats(m->runner, &stats);
        if (stats.idle_since_ns) return m;
        if (now >= m->drain_deadline_ns && !m->drain_cut) {
            m->drain_cut = true;
            runner_cancel_all(m->runner, registry.stopping ? "shutdown" : "unloaded");
        } else if (!m->drain_cut && m->drain_deadline_ns < *deadline) {
            *deadline = m->drain_deadline_ns;
        }
    }
    return NULL;
}

static struct model *waited_for(void) {
    struct model *best = NULL;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->loads && (m->state == MODEL_DISCOVERED || m->state == MODEL_FAILED) && (!best || m->load_order < best->load_order))
            best = m;
    return best;
}

static struct model *without_header(void) {
    for (struct model *m = registry.models; m; m = m->next)
        if (!m->header_read) return m;
    return NULL;
}

/* Starts to drain the models that have been idle for keep_alive. */
static void let_idle_go(uint64_t now, uint64_t *deadline) {
    if (registry.config->keep_alive_s < 0) return;
    for (struct model *m = registry.models; m; m = m->next) {
        if (m->state != MODEL_READY) continue;
        struct runner_stats stats;
        runner_get_stats(m->runner, &stats);
        if (stats.idle_since_ns == 0) continue; /* its runner wakes us */
        uint64_t keep = (uint64_t)registry.config->keep_alive_s * 1000000000ull;
        bool unused = stats.prompt_tokens == 0;
        if (unused && keep < FIRST_USE_NS) keep = FIRST_USE_NS;
        uint64_t since = stats.idle_since_ns > m->ready_since_ns ? stats.idle_since_ns : m->ready_since_ns;
        uint64_t until = since + keep;
        /* Whoever holds a reference may be about to use it: look again soon. */
        if (until <= now && atomic_load(&m->refs) > 1) until = now + 100000000;
        if (until > now) {
            if (until < *deadline) *deadline = until;
            continue;
        }
        log_write(SH_LOG_INFO, m->id, "idle for keep_alive");
        model_start_drain(m, 0);
        *deadline = now;
    }
}

static void wait_until(uint64_t deadline) {
    if (deadline == UINT64_MAX) {
        pthread_cond_wait(&registry.wake, &registry.lock);
        return;
    }
    uint64_t now = sh_now_ns();
    if (deadline <= now) return;
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    uint64_t ns = (uint64_t)at.tv_nsec + (deadline - now);
    at.tv_sec += (time_t)(ns / 1000000000);
    at.tv_nsec = (long)(ns % 1000000000);
    pthread_cond_timedwait(&registry.wake, &registry.lock, &at);
}

void *loader_main(void *unused) {
    (void)unused;
    pthread_mutex_lock(&registry.lock);
    for (;;) {
        uint64_t now = sh_now_ns(), deadline = UINT64_MAX;
        struct model *m = drained(now, &deadline);
        bool loaded = false;
        registry_tell_settled();
        for (struct model *other = registry.models; other; other = other->next) loaded |= other->runner != NULL;
        if (m) {
            unload(m);
        } else if (registry.stopping) {
            if (!loaded) break;
            wait_until(deadline);
        } else if ((m = waited_for())) {
            load(m);
        } else if (registry.scan_wanted) {
            registry_scan();
        } else if ((m = without_header())) {
            model_read_header(m);
        } else if (!registry_scan_ended()) {
            let_idle_go(now, &deadline);
            wait_until(deadline);
        }
    }
    pthread_mutex_unlock(&registry.lock);
    return NULL;
}
