/* status.c - Status, List, Discover, Devices: what is there. */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/devices.h"
#include "daemon/text.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static json_t *text_of(const char *text) { return json_bytes(text, strlen(text)); }
static json_t *text_or_null(const char *text) { return *text ? text_of(text) : json_null(); }

static json_t *placement_json(const struct model_view *view) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < view->n_parts; i++) {
        const struct model_part *part = &view->parts[i];
        json_array_append_new(list, json_pack("{so si si si sI}", "device", text_of(part->device), "first_layer",
                                              (int)part->first_layer, "layers", (int)part->n_layers, "expert_layers",
                                              (int)part->n_expert_layers, "weights_bytes", (json_int_t)part->weights_bytes));
    }
    return list;
}

json_t *model_json(struct model *model) {
    struct model_view view;
    model_get_view(model, &view);
    json_t *out = json_pack("{so so ss so so sI so so so sb si si sI sI}", "id", text_of(view.id), "path", text_of(view.path),
                            "state", model_state_name(view.state), "arch", text_of(view.arch), "type", text_of(view.type),
                            "size_bytes", (json_int_t)view.size_bytes, "error", text_or_null(view.error), "name",
                            text_or_null(view.name), "device", text_or_null(view.device), "stale", view.stale, "running",
                            view.running, "queued", view.queued, "prompt_tokens_total", (json_int_t)view.prompt_tokens_total,
                            "generated_tokens_total", (json_int_t)view.generated_tokens_total);
    if (out) json_object_set_new(out, "capabilities", model_capabilities(view.arch));
    if (out) json_object_set(out, "names", view.names);
    if (out) json_object_set_new(out, "adapters", model_adapters(model));
    if (out && (view.state == MODEL_READY || view.state == MODEL_DRAINING)) {
        json_t *loaded =
            json_pack("{sI sI sI sI sI so sI sI sI sf}", "context_length", (json_int_t)view.info.context_length, "context_native",
                      (json_int_t)view.info.context_native, "parameters", (json_int_t)view.info.n_parameters, "layers",
                      (json_int_t)view.info.n_layers, "weights_bytes",
                      (json_int_t)(view.info.weights_bytes[0] + view.info.weights_bytes[1]), "placement", placement_json(&view),
                      "cache_bytes", (json_int_t)view.context.cache_bytes, "kv_pages_used", (json_int_t)view.context.pages_used,
                      "kv_pages_total", (json_int_t)view.context.pages_total, "load_ms", (double)view.load_ns / 1e6);
        json_object_update(out, loaded);
        json_object_set_new(out, "keep_alive_seconds", json_integer(view.keep_alive_s));
        json_object_set_new(out, "draft", text_or_null(view.draft));
        json_object_set_new(out, "expires", view.expires_s ? json_integer((json_int_t)view.expires_s) : json_null());
        json_object_set_new(out, "memory_bytes", json_integer((json_int_t)view.memory_bytes));
        json_object_set_new(out, "kv_tokens", json_integer((json_int_t)view.kv_tokens));
        if (view.lora) json_object_set(out, "lora", view.lora);
        if (view.chat) json_object_set(out, "chat", view.chat);
        json_decref(loaded);
    }
    model_view_finish(&view);
    return out ? out : json_object();
}

static void append_model(struct model *model, void *user) { json_array_append_new(user, model_json(model)); }

static json_t *all_models(void) {
    json_t *list = json_array();
    models_each(append_model, list);
    return list;
}

/* Devices are known when the probe has ended, moments after the start: until then those who ask wait without holding up the
 * others. */
static bool wait_for_devices(struct call *call) {
    if (devices_probed()) return false;
    call_park(call);
    /* It may have ended, and woken nobody, in between. */
    if (devices_probed()) control_wake(call->control);
    return true;
}

static json_t *device_error(void) {
    char *error = devices_error();
    json_t *out = error ? json_string(error) : json_null();
    free(error);
    return out;
}

void method_status(struct call *call) {
    if (!call_fields(call, NULL, 0, NULL) || wait_for_devices(call)) return;
    const struct control_state *state = control_state(call->control);
    json_t *http = json_array();
    for (const char *const *address = state->http_addresses; address && *address; address++)
        json_array_append_new(http, json_string(*address));
    call_reply(call,
               json_pack("{ss si ss sf ss so so so so}", "version", sh_version(), "pid", (int)getpid(), "state",
                         state->stopping ? "stopping" : "running", "uptime_seconds",
                         (double)(sh_now_ns() - state->started_ns) / 1e9, "socket", state->path, "http", http, "models",
                         all_models(), "devices", devices_json(), "device_error", device_error()),
               false);
}

/* ---- List and Discover ------------------------------------------------------------------------------- */

struct search_state {
    atomic_bool done;
    bool tell; /* what was left out, and where was looked */
};

static void free_search(struct call *call) { free(call->state); }

static void search_done(void *user) {
    struct call *call = user;
    struct search_state *state = call->state;
    atomic_store(&state->done, true);
    call_post(call);
    call_unref(call); /* the registry's */
}

static void answer_search(struct call *call, bool tell) {
    json_t *reply = tell ? models_discovery() : json_object();
    if (reply) json_object_set_new(reply, "models", all_models());
    call_reply(call, reply, false);
}

static void refuse_search(struct call *call) { call_error(call, "ShuttingDown", json_pack("{ss}", "message", "shutting down")); }

static void search_wake(struct call *call) {
    struct search_state *state = call->state;
    if (!atomic_load(&state->done)) return;
    if (control_state(call->control)->stopping) refuse_search(call);
    else answer_search(call, state->tell);
}

/* Answers when the search has ended. */
static void search(struct call *call, bool tell) {
    struct search_state *state = sh_calloc(1, sizeof *state);
    if (state) {
        state->tell = tell;
        call->state = state;
        call->free_state = free_search;
        call->wake = search_wake;
        call_ref(call); /* until search_done */
        if (models_discover_then(search_done, call)) return;
        call_unref(call);
    }
    refuse_search(call);
}

void method_list(struct call *call) {
    bool rescan = false;
    const struct field fields[] = {{"rescan", FIELD_BOOL, 0, false, 0, 0}};
    if (!call_fields(call, fields, 1, &rescan)) return;
    if (rescan) search(call, false);
    else answer_search(call, false);
}

void method_discover(struct call *call) {
    if (call_fields(call, NULL, 0, NULL)) search(call, true);
}

void method_devices(struct call *call) {
    if (!call_fields(call, NULL, 0, NULL) || wait_for_devices(call)) return;
    call_reply(call, json_pack("{so so}", "devices", devices_json(), "device_error", device_error()), false);
}
