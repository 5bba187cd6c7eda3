/*
 * models.h - the registry: which models there are, which are loaded, and the way from a name to a ready model.
 *
 * States: discovered -> loading -> ready -> draining -> discovered; loading -> failed -> loading.
 * One loader thread loads in order, one keeper unloads; one runner thread per ready model (scheduler.h) runs its generations. Models share
 * budgets of memory: budget.h says who has to go for whom, and which load waits.
 * Thread-safety: all functions, any thread. Callbacks come from these two threads.
 */
#ifndef SHIMMYD_MODELS_H
#define SHIMMYD_MODELS_H

#include "compute/engine.h"
#include "daemon/config.h"

#include <jansson.h>

struct model; /* reference counted */

enum model_state { MODEL_DISCOVERED, MODEL_LOADING, MODEL_READY, MODEL_DRAINING, MODEL_FAILED };
const char *model_state_name(enum model_state state);

enum sh_code models_start(struct config *config,
                          struct sh_error *err); /* discovery and loader; waits at most 50 ms for the first scan */
void models_configure(struct config *config);    /* takes a reference: what is loaded or scanned from now on goes by it */
void models_discover(void);                      /* searches again for models */
/* The same; done is called once, from the loader's thread, when that is over and the headers of what is new have been read, or when the
 * registry stops. False: no memory, or it has stopped already; done is not called then. */
bool models_discover_then(void (*done)(void *user), void *user);
/* What the last search said besides the models: {left_out: [{path, reason}], roots: [{path, models, error}], milliseconds}. New reference. */
json_t *models_discovery(void);
bool models_loader_stuck(struct sh_error *err);  /* what it does has not got on for too long (watchdog.h). err (may be NULL): what that is */
void models_stop_accepting(void);                /* new generations and loads are refused: shutting down */
/* Waits until running generations are finished or the limit passes, then cancels them; unloads everything, ends the threads. */
void models_stop(uint64_t limit_ns);

/* Exact and normalised names: stems, then stores' names (NAME:TAG; NAME alone is NAME:latest) and further ones, then general.name;
 * ambiguous and unknown names are errors that list. The result holds a reference (model_unref). A path or file name is found if that
 * file is registered. SH_ERR_NOT_FOUND: unknown; SH_ERR_INVALID: ambiguous. Until the registry is settled an unknown name waits. */
enum sh_code models_resolve(const char *name, struct model **out, struct sh_error *err);
/* The same without waiting, and a path (contains '/' or ends in .gguf) to a file that is not registered registers it: for local clients
 * only. */
enum sh_code models_resolve_path(const char *name, struct model **out, struct sh_error *err);
/* Is an unknown name unknown? Not before the first search and the headers of what it found have been read, or 2 s have passed. fn is called
 * (with the registry locked) when that is so, and before then when names have become known. */
bool models_settled(void);
void models_on_settled(void (*fn)(void *user), void *user);
/* What models_resolve's error lists, as an array of strings: nearest names, or the paths that a name fits. New reference. */
json_t *models_candidates(const char *name);
/* The only ready model, for requests that name none; else SH_ERR_INVALID. */
enum sh_code models_only(struct model **out, struct sh_error *err);
struct model *model_ref(struct model *model);
const char *model_id(const struct model *model); /* lent with the reference */
void model_unref(struct model *model);

/* What one device holds of a loaded model. */
enum { MODEL_PARTS = 2 };
struct model_part {
    char device[256];
    uint32_t first_layer, n_layers;
    uint32_t n_expert_layers; /* of the first so many layers of the model it has the experts, although the layers are elsewhere */
    uint64_t weights_bytes;
};

struct model_view {                                        /* a snapshot; strings copied, model_view_finish frees */
    char *id, *path, *arch, *type, *name, *error, *device, *draft; /* never NULL; "" where there is none */
    enum model_state state;
    uint64_t size_bytes, load_ns, created_s /* mtime */;
    bool stale;
    bool stuck; /* its runner makes no progress (watchdog.h); `error` tells */
    struct sh_model_info info; /* valid when ready; its string pointers are NULL */
    struct model_part parts[MODEL_PARTS];
    uint32_t n_parts;                /* valid when ready: what is where, the device first */
    struct sh_context_stats context; /* valid when ready */
    json_t *names; /* what it is called besides its id: an array of strings */
    json_t *lora; /* when ready: [{path, scale}] */
    json_t *chat; /* when ready: {template, source, reason, tools, reasoning}, or {error} */
    int64_t keep_alive_s;  /* when ready: -1 for ever */
    uint64_t expires_s;    /* when ready and idle: the time (of the day, as time(2) counts it) at which it will go; 0: it will not */
    uint64_t memory_bytes; /* what it is counted with in the budgets, device and host together; 0: it is not loaded */
    uint64_t kv_tokens;    /* when ready: what its cache may grow to, all sequences together */
    uint32_t running, queued;
    uint64_t prompt_tokens_total, generated_tokens_total;
};
/* The ids of the adapters whose file names this model as the one they were made for (its id or general.name). New reference. */
json_t *model_adapters(struct model *model);
/* The file of an adapter: `name` itself if it is a path, else of the one that is known by that id; malloc'd. */
enum sh_code adapter_path(const char *name, char **path, struct sh_error *err);
void model_get_view(struct model *model, struct model_view *out);
void model_view_finish(struct model_view *view);
/* What a model of this architecture can be asked for: "completion" and "embedding", or the latter alone; empty for one that is not
 * computed. An array of strings, new reference. */
json_t *model_capabilities(const char *arch);
/* All models (adapters are none), sorted by id; calls fn under no lock with a reference held. */
void models_each(void (*fn)(struct model *model, void *user), void *user);

/* Loads unless ready: registers interest and returns at once; fn is called exactly once, from any thread (also before returning
 * when it is ready already): code SH_OK and a model that is ready and held for the callee (model_unref when done), or the
 * error. progress (may be NULL) is called while it loads. Cancelling: load_cancel drops this interest (fn gets
 * SH_ERR_CANCELLED, before load_cancel returns unless it is being called already); a load nobody waits for any more is stopped.
 * Never NULL but for no memory. progress and done of one load never run at the same time; neither may call load_cancel.
 * Parameters that differ from those of the loaded model are SH_ERR_INVALID unless `reload`. A load that needs the room of models that are
 * busy waits for it; one that could not fit alone is SH_ERR_NO_MEMORY or SH_ERR_NO_DEVICE_MEMORY with the figures. SH_ERR_BUSY: max_queue and
 * max_sequences requests wait for it already. */
struct load;
typedef void (*load_done_fn)(void *user, enum sh_code code, struct model *model, const struct sh_error *err);
typedef void (*load_progress_fn)(void *user, enum sh_load_phase phase, double fraction);
struct load_places { /* what of a model is where; each part of it may be left to the configuration */
    bool set_layers;
    uint32_t gpu_layers; /* SH_LAYERS_AUTO: as many as fit */
    bool set_experts;
    uint32_t n_cpu_moe; /* UINT32_MAX: of all layers */
};
struct lora_want {
    const char *path;
    float scale;
};
struct load_params {
    const char *device;      /* NULL: the configured one */
    uint32_t context_length; /* 0: configured */
    const char *kv_type;     /* NULL: configured */
    struct load_places places;
    const struct lora_want *lora; /* copied */
    uint32_t n_lora;
    bool set_lora; /* also if there are none */
    const char *chat_template; /* see sh_chat_create; NULL: configured */
    bool reload; /* swap a loaded one after draining */
    bool on_demand; /* by a request: what is given is looked at only if it is ready or being loaded; else it is loaded as the last load that was not
                       on demand asked for, until model_unload. NULL instead of parameters is on demand, too */
    bool modest;    /* for this one no other model goes: it fails if there is no room */
    const char *draft;         /* the name or path of a model that drafts for it; NULL: configured, "": none */
    bool set_keep_alive;
    int64_t keep_alive_s;      /* as model_keep_alive */
    uint64_t deadline_ns;      /* CLOCK_MONOTONIC; 0 = none: SH_ERR_TIMEOUT then. The load goes on for the others who wait */
};
struct load *model_load(struct model *model, const struct load_params *params, load_done_fn done, load_progress_fn progress,
                        void *user);
/* How long the model stays after its last request, from now until it is set again or unloaded: -1 for ever, 0: goes when idle. Requests
 * that say nothing leave it as it is; a fresh load begins with the configured one. Any state: of one that is not loaded it does nothing. */
void model_keep_alive(struct model *model, int64_t seconds);
/* runner_save_session and _restore_session of a ready model; SH_ERR_NOT_FOUND if it is not loaded. They block: not from an event loop. */
enum sh_code model_save_session(struct model *model, const char *session, uint64_t salt, int fd, uint32_t *tokens, struct sh_error *err);
enum sh_code model_restore_session(struct model *model, const char *session, uint64_t salt, int fd, uint32_t *tokens, struct sh_error *err);
void load_cancel(struct load *load);
void load_release(struct load *load); /* the caller's handle; after done or cancel */
/* Lets accepted generations finish (at most drain_timeout), then unloads; returns at once. SH_ERR_NOT_FOUND: it is not loaded.
 * done (may be NULL) is called once, from the loader's thread, when it is unloaded. */
typedef void (*unload_done_fn)(void *user);
enum sh_code model_unload(struct model *model, unload_done_fn done, void *user, struct sh_error *err);

/* The model's vocabulary, lent for as long as a reference on the model is held, whether it is loaded or not. Of a model that is
 * not loaded it is read from the file at the first call, which takes time in proportion to its size. */
enum sh_code model_get_vocab(struct model *model, const struct sh_vocab **out, struct sh_error *err);

/* How the model chats: with the template that it is loaded with, else the configured one. Compiled once, and lent as the vocabulary is. What
 * is wrong with the template is the error. */
enum sh_code model_get_chat(struct model *model, const struct sh_chat **out, struct sh_error *err);

/* The models of the option preload, true once they are known: how many there are, how many of them have been loaded, and how many could not be. */
bool models_preload_state(uint32_t *wanted, uint32_t *ready, uint32_t *failed);
/* Sets the gauges that are read off rather than counted (KV pages, model states, device memory): call before metrics_text. */
void models_refresh_metrics(void);

/* Devices as probed by the child process (daemon/devices.c): waits for the probe if it still runs. JSON array, new reference. */
json_t *devices_json(void);

#endif
