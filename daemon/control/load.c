/* load.c - Load and Unload. The registry calls back in the loader's thread; what it says is kept in the call's state until main
 * takes it. */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/text.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

struct load_state {
    pthread_mutex_t lock;
    struct load *load;
    enum sh_load_phase phase; /* lock, as are the following */
    double fraction;
    bool progressed, done;
    enum sh_code code;
    struct model *model; /* when done well: held for us */
    struct sh_error err;
    char name[300];
};

static void free_load(struct call *call) {
    struct load_state *state = call->state;
    load_release(state->load);
    model_unref(state->model);
    pthread_mutex_destroy(&state->lock);
    free(state);
}

static void load_progress(void *user, enum sh_load_phase phase, double fraction) {
    struct call *call = user;
    struct load_state *state = call->state;
    pthread_mutex_lock(&state->lock);
    state->phase = phase;
    state->fraction = fraction;
    state->progressed = true;
    pthread_mutex_unlock(&state->lock);
    if (call->more) call_post(call);
}

static void load_done(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct call *call = user;
    struct load_state *state = call->state;
    pthread_mutex_lock(&state->lock);
    state->done = true;
    state->code = code;
    state->model = model;
    if (err) state->err = *err;
    pthread_mutex_unlock(&state->lock);
    call_post(call);
    call_unref(call); /* the registry's */
}

static void load_wake(struct call *call) {
    struct load_state *state = call->state;
    pthread_mutex_lock(&state->lock);
    bool done = state->done, progressed = state->progressed;
    enum sh_load_phase phase = state->phase;
    double fraction = state->fraction;
    state->progressed = false;
    pthread_mutex_unlock(&state->lock);
    if (done) {
        if (state->code) call_load_error(call, state->name, state->code, state->err.message);
        else
            call_reply(call,
                       json_pack("{ss sf so}", "phase", sh_load_phase_name(SH_LOAD_DONE), "fraction", 1.0, "model",
                                 model_json(state->model)),
                       false);
    } else if (progressed && call->more && call_can_write(call)) {
        call_reply(call, json_pack("{ss sf}", "phase", sh_load_phase_name(phase), "fraction", fraction), true);
    }
}

static void load_left(struct call *call) {
    struct load_state *state = call->state;
    if (state->load) load_cancel(state->load);
}

#define NOT_GIVEN INT64_MIN
enum { ADAPTERS_MAX = 16 };

static void free_adapters(struct lora_want *list, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) free((char *)(uintptr_t)list[i].path);
}

/* [{adapter, scale}] -> list, paths malloc'd. False: answered. */
static bool read_adapters(struct call *call, const char *model, json_t *array, struct lora_want list[ADAPTERS_MAX], uint32_t *n) {
    size_t i;
    json_t *item;
    *n = 0;
    if (json_array_size(array) > ADAPTERS_MAX) {
        call_invalid_parameter(call, "lora", "lora: %zu adapters, expected at most %d", json_array_size(array), ADAPTERS_MAX);
        return false;
    }
    json_array_foreach(array, i, item) {
        const json_t *scale = json_object_get(item, "scale");
        const char *name = json_string_value(json_object_get(item, "adapter"));
        const double value = scale && !json_is_null(scale) ? json_number_value(scale) : 1.0;
        struct sh_error err = {0};
        char *path;
        if (!name || (scale && !json_is_number(scale) && !json_is_null(scale)) || !(value >= -1000 && value <= 1000) || value == 0) {
            free_adapters(list, *n);
            call_invalid_parameter(call, "lora", "lora: element %zu: expected {adapter: a path or name, scale: a number, not 0}", i);
            return false;
        }
        const enum sh_code code = adapter_path(name, &path, &err);
        if (code) {
            free_adapters(list, *n);
            call_load_error(call, model, code, err.message);
            return false;
        }
        list[(*n)++] = (struct lora_want){.path = path, .scale = (float)value};
    }
    return true;
}

void method_load(struct call *call) {
    struct {
        const char *model, *device, *kv_type, *chat_template, *draft, *keep_alive;
        int64_t context_length, gpu_layers, n_cpu_moe;
        bool reload, cpu_moe;
        json_t *lora;
    } in = {.gpu_layers = NOT_GIVEN, .n_cpu_moe = NOT_GIVEN};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"device", FIELD_STRING, offsetof(__typeof__(in), device), false, 0, 0},
        {"context_length", FIELD_INT, offsetof(__typeof__(in), context_length), false, 0, 1 << 24},
        {"kv_type", FIELD_STRING, offsetof(__typeof__(in), kv_type), false, 0, 0},
        {"chat_template", FIELD_STRING, offsetof(__typeof__(in), chat_template), false, 0, 0},
        {"draft", FIELD_STRING, offsetof(__typeof__(in), draft), false, 0, 0},
        {"keep_alive", FIELD_STRING, offsetof(__typeof__(in), keep_alive), false, 0, 0},
        {"gpu_layers", FIELD_INT, offsetof(__typeof__(in), gpu_layers), false, -1, 100000},
        {"cpu_moe", FIELD_BOOL, offsetof(__typeof__(in), cpu_moe), false, 0, 0},
        {"n_cpu_moe", FIELD_INT, offsetof(__typeof__(in), n_cpu_moe), false, 0, 100000},
        {"lora", FIELD_ARRAY, offsetof(__typeof__(in), lora), false, 0, 0},
        {"reload", FIELD_BOOL, offsetof(__typeof__(in), reload), false, 0, 0},
    };
    struct lora_want adapters[ADAPTERS_MAX];
    uint32_t n_adapters = 0;
    struct model *model;
    if (!call_fields(call, fields, SH_COUNT(fields), &in)) return;
    if (in.kv_type && strcmp(in.kv_type, "f16") != 0 && strcmp(in.kv_type, "f32") != 0) {
        call_invalid_parameter(call, "kv_type", "kv_type: '%s' is not known: expected f16 or f32", in.kv_type);
        return;
    }
    int64_t keep_alive_s = 0;
    if (in.keep_alive && !text_duration(in.keep_alive, &keep_alive_s)) {
        call_invalid_parameter(call, "keep_alive", "keep_alive: found \"%.40s\", expected seconds, or a time such as 5m", in.keep_alive);
        return;
    }
    if (!read_adapters(call, in.model, in.lora, adapters, &n_adapters)) return;
    if (!call_model(call, in.model, &model)) {
        free_adapters(adapters, n_adapters);
        return;
    }
    struct load_state *state = sh_calloc(1, sizeof *state);
    if (!state) {
        free_adapters(adapters, n_adapters);
        model_unref(model);
        call_load_error(call, in.model, SH_ERR_NO_MEMORY, "no memory");
        return;
    }
    pthread_mutex_init(&state->lock, NULL);
    snprintf(state->name, sizeof state->name, "%s", in.model);
    call->state = state;
    call->free_state = free_load;
    call->wake = load_wake;
    call->left = load_left;

    call_ref(call); /* until load_done */
    struct load_params params = {
        .device = in.device, .context_length = (uint32_t)in.context_length, .kv_type = in.kv_type, .reload = in.reload};
    params.places = (struct load_places){.set_layers = in.gpu_layers != NOT_GIVEN,
                                         .gpu_layers = in.gpu_layers < 0 ? SH_LAYERS_AUTO : (uint32_t)in.gpu_layers,
                                         .set_experts = in.cpu_moe || in.n_cpu_moe != NOT_GIVEN,
                                         .n_cpu_moe = in.cpu_moe ? UINT32_MAX : (uint32_t)in.n_cpu_moe};
    params.chat_template = in.chat_template;
    params.draft = in.draft;
    params.set_keep_alive = in.keep_alive != NULL;
    params.keep_alive_s = keep_alive_s;
    params.set_lora = in.lora != NULL;
    params.lora = adapters;
    params.n_lora = n_adapters;
    if (call->more) call_reply(call, json_pack("{ss sf}", "phase", "queued", "fraction", 0.0), true);
    state->load = model_load(model, &params, load_done, load_progress, call);
    free_adapters(adapters, n_adapters);
    model_unref(model);
    if (!state->load) {
        call_load_error(call, in.model, SH_ERR_NO_MEMORY, "no memory");
        call_unref(call);
    }
}

/* ---- Unload ------------------------------------------------------------------------------------------ */

struct unload_state {
    atomic_bool done;
};

static void free_unload(struct call *call) { free(call->state); }

static void unload_done(void *user) {
    struct call *call = user;
    struct unload_state *state = call->state;
    atomic_store(&state->done, true);
    call_post(call);
    call_unref(call); /* the registry's */
}

static void unload_wake(struct call *call) {
    struct unload_state *state = call->state;
    if (atomic_load(&state->done)) call_reply(call, NULL, false);
}

void method_unload(struct call *call) {
    const char *name = NULL;
    const struct field fields[] = {{"model", FIELD_STRING, 0, true, 0, 0}};
    struct model *model;
    if (!call_fields(call, fields, 1, &name) || !call_model(call, name, &model)) return;
    struct unload_state *state = sh_calloc(1, sizeof *state);
    struct sh_error err = {0};
    enum sh_code code = SH_ERR_NO_MEMORY;
    if (state) {
        call->state = state;
        call->free_state = free_unload;
        call->wake = unload_wake;
        call_ref(call); /* until unload_done */
        code = model_unload(model, unload_done, call, &err);
        if (code) call_unref(call);
    }
    if (code == SH_ERR_NOT_FOUND) call_error(call, "ModelNotLoaded", json_pack("{ss ss}", "model", name, "message", err.message));
    else if (code) call_load_error(call, name, code, state ? err.message : "no memory");
    model_unref(model);
}
