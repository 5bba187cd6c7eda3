/*
 * models_private.h - the registry's insides, for models.c (the callers' side), names.c (from names to models), loader.c (the thread
 * that scans and loads), scan.c (what that thread looks for and finds), keeper.c (the thread that unloads and minds the time), and
 * budget.c (who takes how much memory, and who has to go).
 *
 * Lock order: registry.lock, then a generation's, then a runner's. Callbacks are called under none of them.
 */
#ifndef SHIMMYD_MODELS_PRIVATE_H
#define SHIMMYD_MODELS_PRIVATE_H

#include "daemon/discover.h"
#include "daemon/headers.h"
#include "daemon/models.h"
#include "daemon/scheduler.h"

#include <pthread.h>
#include <stdatomic.h>

struct load {            /* somebody waits for a model */
    atomic_uint refs;    /* the caller's handle, the model's list */
    struct model *model; /* a reference */
    load_done_fn done;
    load_progress_fn progress;
    void *user;
    uint64_t deadline_ns; /* 0: none */
    bool modest;          /* see struct load_params */
    pthread_mutex_t lock; /* held while progress runs */
    bool finished;        /* lock; done is called or being called */
    struct load *next;    /* registry.lock */
};

struct unload_wait {
    unload_done_fn done;
    void *user;
    struct unload_wait *next;
};

struct model_wants {         /* how it is to be loaded, or is */
    char *device;            /* NULL: the configured one */
    uint32_t context_length; /* 0: configured */
    char *kv_type;           /* NULL: configured */
    struct load_places places;
    struct lora_want *lora; /* paths are copies */
    uint32_t n_lora;
    char *chat_template;    /* NULL: configured */
    char *draft;            /* NULL: configured; "": none */
};

/* A vocabulary opened alone: it outlives the engine's, so that it may be lent. One of a replaced file stays, for it may be in
 * use. */
struct held_chat;
struct held_vocab {
    struct sh_vocab *vocab;
    struct file_identity identity;
    struct held_chat *chats; /* made of it, newest first; they live as long */
    struct held_vocab *next;
};

/* What a model takes, in bytes: [0] of its device, [1] of the host. Of one on the CPU all is the host's. */
struct memory_need {
    uint64_t fixed[2]; /* weights, activations, and what is needed besides */
    uint64_t cache[2]; /* of one sequence of full length: so much is counted although it is not taken yet */
    bool in_host;      /* [0] lies in the host's memory, too: a software or an integrated device */
};

enum drain_why { DRAIN_UNLOAD, DRAIN_RELOAD, DRAIN_IDLE, DRAIN_MEMORY, DRAIN_LOST, DRAIN_SHUTDOWN };

struct model {
    atomic_uint refs; /* the registry's is one */
    char *id;         /* constant */
    _Atomic(char *) path; /* changes when a store has put a new version of a loaded model elsewhere; read without the lock, so */
    struct old_path {
        char *path;
        struct old_path *next;
    } *old_paths; /* those before stay as long as the model */

    /* registry.lock: */
    struct file_identity identity; /* of the file as last seen, */
    struct file_identity loaded;   /* and when it was loaded */
    uint64_t split_hash; /* see found_model.parts */
    uint64_t size_bytes;
    bool header_read, header_passing; /* the latter: it could not be read, and may be the next time */
    bool store_name;                  /* the id is a store's NAME:TAG; constant */
    char **names;                     /* what it is called besides its id; [n_names] */
    uint32_t n_names;
    uint32_t root; /* of registry.found's roots; UINT32_MAX: none */
    char *arch, *type, *name, *error; /* "" where there is none */
    bool adapter;                     /* no model, but an adapter for the model named */
    char *base;                       /* here; "" if it names none */
    enum model_state state;
    struct load *loads;       /* those who wait, oldest first */
    uint64_t load_order;      /* of the first of them */
    struct model_wants wants; /* of the load that is wanted, under way or done, */
    struct model_wants asked; /* and as the last Load asked for it, until an Unload: a load on demand goes by it */
    bool asked_proven;        /* it was loaded like that */
    struct unload_wait *unloads;
    enum drain_why drain_why;
    uint64_t drain_deadline_ns; /* UINT64_MAX: what runs is let finish */
    bool drain_cut;           /* what was running has been cancelled */
    int64_t keep_alive_s;     /* since it was last set, */
    bool keep_alive_set;      /* if it was since the last load; */
    bool keep_alive_asked;    /* by a request, not by the load: 0 is meant now */
    struct memory_need need;  /* of the load of need_order, and while it is loaded, until its memory is given back; else zeros */
    struct memory_need draft_need; /* of these, the draft's */
    uint64_t need_order;      /* 0: not known */
    uint64_t told_order;      /* of the load that the log knows to wait for room */
    bool modest;              /* all who wait are */
    uint64_t kv_wanted;       /* while loaded: what its cache may grow to if there is room for all, */
    uint64_t kv_tokens;       /* and as there is now; */
    uint64_t limits[2];       /* the budgets when it was loaded */
    bool counted;             /* it takes memory: loaded, or being unloaded; */
    const struct sh_device *device_used; /* of this device; only compared */
    uint64_t chosen;          /* budget.c's: the last search in which it was chosen to go, */
    struct model *chosen_before; /* and the one that was chosen before it there */
    bool stuck;               /* its runner makes no progress: `error` says so */
    char *lost;               /* the device is lost: why; it becomes failed when drained */
    struct sh_device *device; /* while loaded, */
    struct sh_device *host;   /* and the CPU's if some of it is there, else NULL */
    struct model_part parts[MODEL_PARTS];
    uint32_t n_parts;
    struct sh_model *engine;
    struct sh_model *draft; /* the engine of the model that drafts for it; NULL: none */
    char *draft_id;         /* and what it is called; "" */
    struct runner *runner;
    uint32_t runner_users; /* who call it without the lock: it is not destroyed before they are done */
    const struct sh_vocab *vocab; /* what it is served with; held in `vocabs` */
    struct sh_model_info info;
    json_t *chat; /* see struct model_view */
    uint64_t ready_since_ns;
    uint64_t prompt_tokens, generated_tokens; /* of runners that are gone */
    bool listed;                              /* found by the last scan, or registered by its path */
    bool by_path;                             /* stays although no scan finds it, */
    bool gone;                                /* unless its file is not there */
    struct model *next;

    pthread_mutex_t vocab_lock;
    struct held_vocab *vocabs; /* vocab_lock; newest first */
};

struct scan_wait {
    void (*done)(void *user);
    void *user;
    struct scan_wait *next;
};

struct registry {
    pthread_mutex_t lock;
    pthread_cond_t wake;    /* for the loader, */
    pthread_cond_t tidy;    /* and for the keeper */
    pthread_cond_t changed; /* a scan ended, a model was unloaded */
    struct config *config;
    struct model *models;
    uint64_t last_order;
    uint64_t retry_ns; /* the load whose turn it is has no room: look again then, or when somebody wakes the loader */
    bool started, scan_wanted, scanned, refusing, stopping, loader_ended;
    uint64_t loader_ns;      /* when the loader was last heard of in what it does; 0: it does nothing, */
    char loader_doing[300];  /* and what that is */
    bool loader_stuck;       /* it has not been heard of for too long (watchdog.h): nothing is loaded until it goes on */
    bool scan_told, settled_told; /* that the scan has ended, and patience; the loader's */
    uint64_t patience_ns;         /* until when unknown names wait for the first scan */
    uint64_t scan_ns;             /* what the last scan took, without the reading of headers */
    struct found_list found;      /* of the last scan: roots and left_out, to which headers add */
    struct headers *headers;      /* the loader's */
    bool adapters_known;          /* there has been one: else a list of models need not look for each one's */
    struct scan_wait *scan_waits;
    void (*settled)(void *user); /* see models_on_settled */
    void *settled_user;
    pthread_t loader, keeper;
    struct {
        bool begun, known;
        uint32_t wanted, ready, failed;
    } preload;
};
extern struct registry registry;

void registry_wake(void); /* both threads; the lock is held */
/* Waits for a condition of the registry's until a time of the monotonic clock (UINT64_MAX: for ever). False: that time is over. */
bool registry_wait(pthread_cond_t *condition, uint64_t deadline_ns);

/* These want registry.lock, up to model_forget_vocabs. */
bool registry_wait_changed(uint64_t deadline_ns); /* waits for registry.changed; false: that time is over */
void registry_scan(void);                         /* loader's thread; gives the lock up meanwhile */
void model_read_header(struct model *model);      /* likewise: architecture, type, name, and whether it could be loaded at all */
bool registry_scan_ended(void);                   /* likewise: all headers are read. False: that has been told, the lock was kept */
void registry_tell_settled(void);                 /* the loader's thread: in case that patience is over */
void model_set_state(struct model *model, enum model_state state);
/* No new generations from now on; those that run are cut off after limit_ns (UINT64_MAX: never), and then it is unloaded. */
void model_start_drain(struct model *model, enum drain_why why, uint64_t limit_ns);
/* Nothing runs or waits in it, and nobody is just about to use it. *used_ns: since when. */
int64_t model_keeps_alive_s(const struct model *model);
bool model_is_idle(const struct model *model, uint64_t *used_ns);
bool model_expires(const struct model *model, uint64_t *at_ns); /* false: it is busy, or stays */
/* The loader takes something up, gets on with it, and is done with it. The lock is held. */
void loader_begin(const char *doing, const char *what);
void loader_heard(void);
void loader_end(void);
/* Why nothing is loaded: the loader is stuck. The lock is held. */
void loader_why_stuck(struct sh_error *err);
void tell_status(const char *doing, const char *id); /* what `systemctl status` shows; NULL: nothing is being done */
void model_insert(struct model *model);
void model_forget_vocabs(struct model *model); /* nobody but the registry holds a reference */

/* A load's last step: the vocabulary of the file with that identity, so that the model serves on when the file is replaced. */
enum sh_code model_hold_vocab(struct model *model, const struct file_identity *identity, struct sh_error *err);

const struct sh_vocab *model_held_vocab(struct model *model, const struct file_identity *identity); /* NULL: it is not held */

/* Another step: the chat with that template (NULL: the model's own, or a built-in one), a file's made anew, as that may have changed. An error
 * unless NULL, which is only logged: such a model serves completions. *view: new reference, as in struct model_view. */
enum sh_code model_hold_chat(struct model *model, const struct file_identity *identity, const char *which, json_t **view,
                             struct sh_error *err);

void model_drop_names(struct model *model);
struct model *model_create(const struct found_model *found); /* one reference, the registry's */
/* A copy in which bytes that are not UTF-8 are '?' (names of files and in files hold any, JSON does not); without memory the old
 * text stays. */
void set_text(char **slot, const char *value);
/* Copies a list of adapters; NULL: there are none, or no memory (then *n is 0, too). */
struct lora_want *lora_copy(const struct lora_want *list, uint32_t *n);
void lora_free(struct lora_want *list, uint32_t n);
bool lora_equal(const struct lora_want *a, uint32_t n_a, const struct lora_want *b, uint32_t n_b);
json_t *lora_json(const struct lora_want *list, uint32_t n); /* [{path, scale}], new reference */
/* Are two names the same once case, spaces and underscores are evened out? */
bool same_name(const char *a, const char *b);
bool is_path(const char *name); /* has a slash or ends in .gguf */
bool wants_copy(const struct model_wants *from, struct model_wants *to); /* false: no memory, *to is empty */

void load_finish(struct load *load, enum sh_code code, const struct sh_error *err); /* calls done unless it was called */
void load_unref(struct load *load);
void wants_finish(struct model_wants *wants);
/* With what is not set taken from the configuration. */
struct load_places places_resolve(const struct config *config, struct load_places places);

void scan_waits_done(struct scan_wait *waits); /* without the lock */

void *loader_main(void *unused);
void *keeper_main(void *unused);

#endif
