/*
 * loader.c - the one thread that scans, reads headers (scan.c), and loads.
 *
 * Its work in order of urgency: load what is waited for, if there is room (budget.h), scan, read headers. It holds registry.lock only to
 * look and to write results down.
 */
#include "daemon/budget.h"

#include "compute/base.h"
#include "daemon/devices.h"
#include "daemon/draft_model.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

/* More than any device has: a plan with so much room refuses nothing. */
#define ANY_ROOM (UINT64_MAX / 4)

void tell_status(const char *doing, const char *id) {
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
    struct sh_device *cpu;  /* the CPU's in any case, for as long as the load lasts */
    struct budget budget;
    struct sh_plan plan;
    bool partial;           /* other models have made what room they can: fewer layers than all are good enough for auto */
    uint32_t most_layers;   /* on the device: more of them failed */
    const char *chat_template; /* NULL: the model's own */
    struct model *draft; /* the model that drafts for it, a reference; NULL: none */
    struct memory_need draft_need;
    bool draft_asked;    /* by this load, not by the configuration: without it is not good enough */
    struct sh_model *engine, *draft_engine;
    struct runner *runner;
    const struct sh_vocab *vocab; /* what the model is served with */
};

void loader_begin(const char *doing, const char *what) {
    snprintf(registry.loader_doing, sizeof registry.loader_doing, "%s%s%.200s", doing, *what ? " " : "", what);
    registry.loader_ns = sh_now_ns();
}

void loader_heard(void) {
    registry.loader_ns = sh_now_ns();
    if (!registry.loader_stuck) return;
    registry.loader_stuck = false;
    log_notice("the loader goes on after all, with %s", registry.loader_doing);
}

void loader_end(void) {
    loader_heard();
    registry.loader_ns = 0;
}

void loader_why_stuck(struct sh_error *err) {
    sh_fail(err, SH_ERR_DEVICE, "the loader is stuck: %s, nothing was heard of it for %.1f s (option watchdog_timeout)", registry.loader_doing,
            (double)(sh_now_ns() - registry.loader_ns) / 1e9);
}

/* Everybody who waits is told; nobody left: stop. */
static bool on_progress(void *user, enum sh_load_phase phase, double fraction) {
    struct job *job = user;
    struct load *waiting[64];
    uint32_t count = 0;
    pthread_mutex_lock(&registry.lock);
    loader_heard();
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
    registry_wake();
    pthread_mutex_unlock(&registry.lock);
}

static void runner_lost_device(void *user, const struct sh_error *err) {
    struct model *model = user;
    log_write(SH_LOG_ERROR, model->id, "the device is lost: %s", err->message);
    pthread_mutex_lock(&registry.lock);
    set_text(&model->lost, err->message);
    if (model->state == MODEL_READY) model_start_drain(model, DRAIN_LOST, 0);
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

static bool on_cpu(const struct job *job) { return sh_device_get_info(job->device)->kind == SH_DEVICE_CPU; }
static bool is_automatic(const struct job *job) { return job->places.gpu_layers == SH_LAYERS_AUTO && !on_cpu(job); }

/* What of the parameters does not depend on where the model goes. lora [n_lora]. */
static struct sh_model_params model_params(struct job *job, struct sh_lora *lora) {
    const struct config *config = job->config;
    for (uint32_t i = 0; i < job->wants.n_lora; i++)
        lora[i] = (struct sh_lora){.path = job->wants.lora[i].path, .scale = job->wants.lora[i].scale};
    return (struct sh_model_params){
        .size = sizeof(struct sh_model_params),
        .path = job->model->path,
        .context_length = job->wants.context_length ? job->wants.context_length : config->context_length,
        .rope_scale = config->rope_scale,
        .progress = on_progress,
        .progress_user = job,
        .lora = lora,
        .n_lora = job->wants.n_lora,
        .n_host_layers = on_cpu(job) ? 0 : job->places.n_cpu_moe,
    };
}

/* The model that is to draft for it, if any. One that was asked for has to be there. */
static enum sh_code find_draft(struct job *job, struct sh_error *err) {
    const char *name = job->wants.draft ? job->wants.draft : job->config->speculation ? job->config->draft : "";
    job->draft_asked = job->wants.draft != NULL;
    if (!*name) return SH_OK;
    enum sh_code code = models_resolve_path(name, &job->draft, err);
    if (code == SH_OK && job->draft == job->model) {
        model_unref(job->draft);
        job->draft = NULL;
        if (job->draft_asked) code = sh_fail(err, SH_ERR_INVALID, "%s cannot draft for itself", name);
    }
    if (code == SH_OK || job->draft_asked) return code;
    log_write(SH_LOG_WARNING, job->model->id, "no draft model: %s", err->message);
    return SH_OK;
}

static void add_draft_need(const struct job *job, struct memory_need *need) {
    for (uint32_t i = 0; i < 2; i++) {
        need->fixed[i] += job->draft_need.fixed[i];
        need->cache[i] += job->draft_need.cache[i];
    }
}

static struct sh_model_params draft_params(const struct job *job) {
    return (struct sh_model_params){.size = sizeof(struct sh_model_params), .path = job->draft->path};
}

/* What it will need, all of it where it is wanted, and its draft on the same device. */
static enum sh_code survey(struct job *job, struct memory_need *need, struct sh_error *err) {
    struct sh_device *const devices[] = {job->device, job->cpu};
    const struct sh_context_params context = context_params(job);
    struct sh_lora *lora = sh_calloc(job->wants.n_lora, sizeof *lora);
    if (!lora) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u adapters", job->wants.n_lora);
    struct sh_model_params params = model_params(job, lora);
    params.room_bytes[0] = params.room_bytes[1] = ANY_ROOM;
    const uint32_t layers = on_cpu(job) || is_automatic(job) ? SH_LAYERS_AUTO - 1 : job->places.gpu_layers;
    enum sh_code code = sh_model_plan(devices, &params, &context, layers, &job->plan, err);
    free(lora);
    if (code) return code;
    *need = budget_need(&job->plan, job->device);
    if (!job->draft) return SH_OK;
    struct sh_plan plan;
    params = draft_params(job);
    params.room_bytes[0] = params.room_bytes[1] = ANY_ROOM;
    code = sh_model_plan(devices, &params, &context, SH_LAYERS_AUTO - 1, &plan, err);
    if (code) return code;
    job->draft_need = budget_need(&plan, job->device);
    add_draft_need(job, need);
    return SH_OK;
}

/* What other models leave of the budgets. */
static void measure_room(struct job *job, uint64_t room[2]) {
    uint64_t taken[2];
    budget_measure(job->config, job->device, job->cpu, &job->budget);
    pthread_mutex_lock(&registry.lock);
    budget_taken(&job->budget, job->model, false, taken);
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < 2; i++) room[i] = job->budget.limit[i] > taken[i] ? sh_min_u64(job->budget.limit[i] - taken[i], ANY_ROOM) : 1;
}

/* Which layers go to the device, and which to the host; adds that to *params. */
static enum sh_code place(struct job *job, struct sh_model_params *params, struct sh_error *err) {
    if (on_cpu(job)) return SH_OK;
    struct sh_device *const devices[] = {job->device, job->cpu};
    const struct sh_context_params context = context_params(job);
    measure_room(job, params->room_bytes);
    enum sh_code code = sh_model_plan(devices, params, &context,
                                      job->most_layers < SH_LAYERS_AUTO ? job->most_layers : job->places.gpu_layers, &job->plan, err);
    if (code) return code;
    if (is_automatic(job) && !job->partial && job->plan.n_device_layers < job->plan.n_layers)
        return sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "%u of %u layers fit on %s", job->plan.n_device_layers, job->plan.n_layers,
                       sh_device_get_info(job->device)->name);
    pthread_mutex_lock(&registry.lock);
    job->model->need = budget_need(&job->plan, job->device);
    add_draft_need(job, &job->model->need);
    pthread_mutex_unlock(&registry.lock);
    if (job->plan.weights_bytes[1] == 0) { /* all of it is on the device */
        devices_release(job->host, false);
        job->host = NULL;
        params->n_host_layers = 0;
        return SH_OK;
    }
    if (!job->host && (code = devices_acquire("cpu", &job->host, err)) != SH_OK) return code;
    params->placement = job->plan.placement;
    params->n_placement = job->plan.n_placement;
    params->n_host_layers = job->plan.n_host_layers;
    params->host_device = 1;
    return SH_OK;
}

/* The cache's size, within the budgets. */
static uint64_t choose_kv_tokens(struct job *job, const struct sh_model_info *info) {
    const struct config *config = job->config;
    struct model *m = job->model;
    budget_measure(config, job->device, job->cpu, &job->budget);
    pthread_mutex_lock(&registry.lock);
    const uint64_t whole = (uint64_t)info->context_length * config->max_sequences;
    const uint64_t tokens =
        budget_kv_tokens(&job->budget, m, &m->need, info->context_length, config->max_sequences, config->kv_tokens);
    const uint64_t per_token = (m->need.cache[0] + m->need.cache[1]) / info->context_length;
    m->kv_wanted = m->kv_tokens = tokens;
    pthread_mutex_unlock(&registry.lock);
    log_write(SH_LOG_INFO, m->id, "its cache may grow to %llu tokens, %.1f MiB%s", (unsigned long long)tokens,
              (double)(tokens * per_token) / (1 << 20),
              config->kv_tokens > 0 ? " (option kv_tokens)"
              : tokens < whole      ? ": half of what the memory budget leaves"
                                    : "");
    return tokens;
}

static void unload_engines(struct job *job) {
    sh_model_unload(job->engine);
    sh_model_unload(job->draft_engine);
    job->engine = job->draft_engine = NULL;
}

/* The model that drafts, on the same device. */
static enum sh_code load_draft(struct job *job, const struct sh_model_info *info, struct sh_error *err) {
    if (!job->draft) return SH_OK;
    struct sh_model_params params = draft_params(job);
    struct sh_file *file = NULL;
    enum sh_code code = sh_file_open(params.path, &file, err);
    if (code == SH_OK) {
        struct sh_file_summary summary;
        sh_file_get_summary(file, &summary);
        params.context_length = summary.context_length > 0 ? (uint32_t)sh_min_u64(summary.context_length, info->context_length) : 0;
        sh_file_close(file);
        code = sh_model_load(&job->device, 1, &params, &job->draft_engine, err);
    }
    if (code == SH_OK) code = draft_model_check(job->engine, job->draft_engine, err);
    if (code == SH_OK || job->draft_asked) return code;
    log_write(SH_LOG_WARNING, job->model->id, "%s does not draft for it: %s", job->draft->id, err->message);
    sh_model_unload(job->draft_engine);
    job->draft_engine = NULL;
    pthread_mutex_lock(&registry.lock);
    for (uint32_t i = 0; i < 2; i++) {
        job->model->need.fixed[i] -= job->draft_need.fixed[i];
        job->model->need.cache[i] -= job->draft_need.cache[i];
    }
    job->draft_need = (struct memory_need){0};
    pthread_mutex_unlock(&registry.lock);
    return SH_OK;
}

static enum sh_code load_engine(struct job *job, struct sh_error *err) {
    const struct config *config = job->config;
    struct sh_lora *lora = sh_calloc(job->wants.n_lora, sizeof *lora);
    if (!lora) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u adapters", job->wants.n_lora);
    struct sh_model_params params = model_params(job, lora);
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
        .overlap = !on_cpu(job),
        .id = job->model->id,
        .idle = runner_is_idle,
        .lost = runner_lost_device,
        .user = job->model,
    };
    runner.context.max_batch_rows = whole;
    if (info.encoder) runner.context.max_outputs = whole;
    runner.context.kv_tokens = choose_kv_tokens(job, &info);
    runner.lookup = config->speculation;
    runner.draft_tokens = config->draft_tokens;
    code = load_draft(job, &info, err);
    runner.draft = job->draft_engine;
    if (code == SH_OK)
        runner.context.reuse_tokens = config->prefix_cache == SH_LAYERS_AUTO ? 2ull * info.context_length : config->prefix_cache;
    if (runner.lookup || runner.draft) runner.context.back_tokens = runner.draft_tokens; /* guesses that are wrong are taken back */
    if (code == SH_OK) code = runner_create(job->engine, &runner, &job->runner, err);
    if (code) unload_engines(job);
    return code;
}

static bool memory_is_short(enum sh_code code) { return code == SH_ERR_NO_MEMORY || code == SH_ERR_NO_DEVICE_MEMORY; }

/* Makes room by letting the least recently used model go: where the estimates were wrong, or others took memory meanwhile. */
static bool evict_one(const struct model *for_model) {
    pthread_mutex_lock(&registry.lock);
    struct model *victim = budget_least_used(for_model);
    if (victim) {
        log_write(SH_LOG_NOTICE, victim->id, "unloaded to make room for %s", for_model->id);
        model_ref(victim);
        model_start_drain(victim, DRAIN_MEMORY, 0);
        while (victim->counted) registry_wait_changed(UINT64_MAX);
    }
    pthread_mutex_unlock(&registry.lock);
    model_unref(victim);
    return victim != NULL;
}

/* Loads; if memory is short all the same idle models go first, then, under auto, layers stay on the host. */
static enum sh_code load_somehow(struct job *job, struct sh_error *err) {
    enum sh_code code = load_engine(job, err);
    while (memory_is_short(code) && !job->partial && !job->model->modest && evict_one(job->model)) code = load_engine(job, err);
    if (!memory_is_short(code) || !is_automatic(job)) return code;
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

/* Opens the devices, and finds out what the model needs and whether there is room. ROOM_IS with an error code: it cannot be loaded. The lock is
 * not held. */
static enum room find_room(struct job *job, enum sh_code *code, struct sh_error *err) {
    struct model *m = job->model;
    struct memory_need need;
    *code = devices_acquire(job->wants.device, &job->device, err);
    if (*code == SH_OK) *code = devices_acquire("cpu", &job->cpu, err);
    if (*code == SH_OK) *code = find_draft(job, err);
    if (*code == SH_OK && m->need_order == job->order) { /* nobody else writes them */
        need = m->need;
        job->draft_need = m->draft_need;
    } else if (*code == SH_OK) {
        *code = survey(job, &need, err);
    }
    if (*code != SH_OK) return ROOM_IS;
    budget_measure(job->config, job->device, job->cpu, &job->budget);

    uint64_t again_ns = 0;
    pthread_mutex_lock(&registry.lock);
    m->need = need;
    m->draft_need = job->draft_need;
    m->need_order = job->order;
    m->device_used = job->device;
    m->modest = true;
    for (const struct load *load = m->loads; load; load = load->next) m->modest = m->modest && load->modest;
    enum room room = budget_make_room(&job->budget, m, &need, !m->modest, &again_ns, err);
    if (is_automatic(job) && (room == ROOM_BUSY || room == ROOM_NEVER)) {
        job->partial = true; /* fewer layers there are better than to wait, or nothing */
        room = ROOM_IS;
    }
    if (room == ROOM_COMES || room == ROOM_BUSY) registry.retry_ns = again_ns;
    if (room == ROOM_NEVER || (room != ROOM_IS && m->modest)) {
        *code = err->code;
        room = ROOM_IS;
    } else if (room != ROOM_IS && m->told_order != job->order) {
        m->told_order = job->order;
        log_write(SH_LOG_NOTICE, m->id, "waits for room: %s", err->message);
    }
    pthread_mutex_unlock(&registry.lock);
    return room;
}

/* From the file to an engine with a runner, and the texts that go with it. */
static enum sh_code load_all(struct job *job, struct file_identity *identity, json_t **chat, struct sh_error *err) {
    struct model *m = job->model;
    log_write(SH_LOG_INFO, m->id, "loading %s", m->path);
    on_progress(job, SH_LOAD_HEADER, 0);
    identity_of(m->path, identity);
    enum sh_code code = SH_OK;
    if (job->chat_template) code = hold_texts(job, identity, job->chat_template, chat, err);
    if (code == SH_OK) code = load_somehow(job, err);
    if (code == SH_OK && !job->chat_template && (code = hold_texts(job, identity, NULL, chat, err)) != SH_OK) {
        runner_destroy(job->runner);
        unload_engines(job);
    }
    job->vocab = model_held_vocab(m, identity);
    return code;
}

/* The lock is held. */
static void note_ready(struct job *job, const struct file_identity *identity, json_t *chat, uint64_t took) {
    struct model *m = job->model;
    m->device = job->device;
    m->host = job->host;
    m->engine = job->engine;
    m->draft = job->draft_engine;
    set_text(&m->draft_id, job->draft_engine ? job->draft->id : "");
    m->runner = job->runner;
    m->vocab = job->vocab;
    json_decref(m->chat);
    m->chat = json_incref(chat);
    m->loaded = m->identity = *identity;
    sh_model_get_info(m->engine, &m->info);
    m->info.load_ns = took;
    m->ready_since_ns = sh_now_ns();
    m->asked_proven = true;
    struct model_wants have = {.device = strdup(job->wants.device ? job->wants.device : job->config->device),
                               .context_length = m->info.context_length,
                               .kv_type = strdup(job->wants.kv_type ? job->wants.kv_type : job->config->kv_type),
                               .places = job->places,
                               .lora = job->wants.lora,
                               .n_lora = job->wants.n_lora,
                               .chat_template = job->chat_template ? strdup(job->chat_template) : NULL,
                               .draft = job->wants.draft ? strdup(job->wants.draft) : NULL};
    job->wants.lora = NULL; /* handed over */
    job->wants.n_lora = 0;
    wants_finish(&m->wants);
    m->wants = have;
    const char *const labels[] = {m->id};
    metric_set(METRIC_MODEL_LOAD_SECONDS, labels, (double)took / 1e9);
    log_write(SH_LOG_NOTICE, m->id, "loaded on %s in %.2f s: context %u, %.1f MiB of weights", sh_device_get_info(m->device)->name,
              (double)took / 1e9, m->info.context_length,
              (double)(m->info.weights_bytes[0] + m->info.weights_bytes[1]) / (1 << 20));
    note_parts(job, m);
    model_set_state(m, MODEL_READY);
    memcpy(m->limits, job->budget.limit, sizeof m->limits);
    budget_share_out(&job->budget);
}

/* The lock is held. */
static void note_failed(const struct job *job, enum sh_code code, const struct sh_error *err) {
    struct model *m = job->model;
    m->counted = false;
    m->need = (struct memory_need){0};
    m->need_order = 0;
    if (!m->loads) m->keep_alive_set = false;
    if (code == SH_ERR_CANCELLED) {
        log_write(SH_LOG_INFO, m->id, "load stopped: nobody waits for it any more");
        model_set_state(m, MODEL_DISCOVERED);
        return;
    }
    if (!m->asked_proven && m->load_order == job->order) wants_finish(&m->asked); /* the next request is not to fail for it, too */
    log_write(SH_LOG_ERROR, m->id, "load failed: %s", err->message);
    set_text(&m->error, err->message);
    model_set_state(m, MODEL_FAILED);
}

static void release_devices(struct job *job, bool lost) {
    devices_release(job->device, lost);
    devices_release(job->host, false);
    job->device = job->host = NULL;
}

static void load(struct model *m) {
    struct job job = {.model = model_ref(m), .config = config_ref(registry.config), .order = m->load_order, .most_layers = SH_LAYERS_AUTO};
    struct sh_error err = {0};
    struct file_identity identity = {0};
    json_t *chat = NULL;
    enum sh_code code = SH_OK;
    if (!wants_copy(&m->wants, &job.wants)) code = sh_fail(&err, SH_ERR_NO_MEMORY, "no memory for a load");
    job.places = places_resolve(job.config, job.wants.places);
    const char *configured = *job.config->chat_template ? job.config->chat_template : NULL;
    job.chat_template = job.wants.chat_template ? job.wants.chat_template : configured;
    pthread_mutex_unlock(&registry.lock);

    const enum room room = code == SH_OK ? find_room(&job, &code, &err) : ROOM_IS;
    uint64_t start = sh_now_ns();
    pthread_mutex_lock(&registry.lock);
    const bool later = room != ROOM_IS;
    if (!later) {
        m->counted = code == SH_OK;
        model_set_state(m, MODEL_LOADING);
        set_text(&m->error, "");
        tell_status("loading", m->id);
    }
    pthread_mutex_unlock(&registry.lock);
    if (!later && code == SH_OK) code = load_all(&job, &identity, &chat, &err);
    uint64_t took = sh_now_ns() - start;

    pthread_mutex_lock(&registry.lock);
    if (!later && code == SH_OK && (registry.refusing || !m->loads || m->load_order != job.order)) {
        code = sh_fail(&err, SH_ERR_CANCELLED, "nobody waits for it any more");
        pthread_mutex_unlock(&registry.lock);
        runner_destroy(job.runner);
        unload_engines(&job);
        pthread_mutex_lock(&registry.lock);
    }
    /* Those who wait now came after the load was given up, and may want something else: its failure is not theirs. */
    if (!later && code != SH_OK && m->loads && m->load_order != job.order) code = sh_fail(&err, SH_ERR_CANCELLED, "nobody waits for it any more");
    if (later || code != SH_OK) {
        pthread_mutex_unlock(&registry.lock);
        release_devices(&job, code == SH_ERR_DEVICE_LOST);
        pthread_mutex_lock(&registry.lock);
    }
    struct load *loads = NULL, *next;
    if (!later) {
        const char *const result[] = {m->id, code == SH_OK ? "ready" : code == SH_ERR_CANCELLED ? "cancelled" : "failed"};
        metric_add(METRIC_MODEL_LOADS, result, 1);
        if (code == SH_OK) note_ready(&job, &identity, chat, took);
        else note_failed(&job, code, &err);
        tell_status(NULL, NULL);
        /* One that came while a stopped load was ending starts it anew. */
        loads = code == SH_ERR_CANCELLED && !registry.refusing ? NULL : m->loads;
        if (loads) m->loads = NULL;
        registry_wake(); /* the keeper, of a new time to mind */
    }
    pthread_mutex_unlock(&registry.lock);
    for (; loads; loads = next) {
        next = loads->next;
        load_finish(loads, code, code ? &err : NULL);
        load_unref(loads);
    }
    devices_release(job.cpu, false);
    model_unref(job.draft);
    json_decref(chat);
    wants_finish(&job.wants);
    config_unref(job.config);
    model_unref(m);
    pthread_mutex_lock(&registry.lock);
}

/* ---- the thread -------------------------------------------------------------------------------------- */

/* The load whose turn it is. One with a draft has to wait for the first scan, which knows what that is called. */
static struct model *waited_for(void) {
    struct model *best = NULL;
    for (struct model *m = registry.models; m; m = m->next)
        if (m->loads && (m->state == MODEL_DISCOVERED || m->state == MODEL_FAILED) && (!best || m->load_order < best->load_order))
            best = m;
    const char *draft = best && best->wants.draft ? best->wants.draft : registry.config->draft;
    return registry.scanned || !*draft ? best : NULL;
}

static struct model *without_header(void) {
    for (struct model *m = registry.models; m; m = m->next)
        if (!m->header_read) return m;
    return NULL;
}

static void preloaded(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    (void)user;
    if (code) log_warning("preload: %s", err->message);
    pthread_mutex_lock(&registry.lock);
    if (code) registry.preload.failed++;
    else registry.preload.ready++;
    pthread_mutex_unlock(&registry.lock);
    model_unref(model);
}

/* Once, when the first scan has found what there is. The lock is held, and given up meanwhile. */
static void begin_preload(void) {
    registry.preload.begun = true;
    char *names = strdup(registry.config->preload), *rest = names;
    pthread_mutex_unlock(&registry.lock);
    for (char *name; names && (name = strsep(&rest, ",")) != NULL;) {
        name += strspn(name, " ");
        for (size_t n = strlen(name); n > 0 && name[n - 1] == ' '; n--) name[n - 1] = '\0';
        if (!*name) continue;
        struct model *model = NULL;
        struct sh_error err;
        const struct load_params params = {.on_demand = true, .modest = true, .set_keep_alive = true, .keep_alive_s = -1};
        pthread_mutex_lock(&registry.lock);
        registry.preload.wanted++;
        pthread_mutex_unlock(&registry.lock);
        enum sh_code code = models_resolve_path(name, &model, &err);
        struct load *load = code == SH_OK ? model_load(model, &params, preloaded, NULL, NULL) : NULL;
        if (code == SH_OK && !load) code = sh_fail(&err, SH_ERR_NO_MEMORY, "no memory to load %s", name);
        if (code) preloaded(NULL, code, NULL, &err);
        load_release(load);
        model_unref(model);
    }
    free(names);
    pthread_mutex_lock(&registry.lock);
    registry.preload.known = true;
}

void *loader_main(void *unused) {
    (void)unused;
    pthread_mutex_lock(&registry.lock);
    for (;;) {
        struct model *m;
        registry_tell_settled();
        if (registry.stopping) {
            break;
        } else if ((m = waited_for()) && sh_now_ns() >= registry.retry_ns) {
            registry.retry_ns = 0;
            loader_begin("loading", m->id);
            load(m);
            loader_end();
        } else if (registry.scan_wanted) {
            registry_scan(); /* not under the watchdog: a search of a slow disk tells nothing of itself */
        } else if ((m = without_header())) {
            loader_begin("reading the header of", m->path);
            model_read_header(m);
            loader_end();
        } else if (registry_scan_ended()) {
            continue;
        } else if (!registry.preload.begun) {
            begin_preload();
        } else {
            registry_wait(&registry.wake, waited_for() ? registry.retry_ns : UINT64_MAX);
        }
    }
    pthread_mutex_unlock(&registry.lock);
    return NULL;
}
