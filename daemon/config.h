/*
 * config.h - every option of shimmyd, from one table: file (INI), environment, flags, --help, sample file, man page check.
 *
 * One spelling in three forms: key `kv_type`, flag `--kv-type`, variable `SHIMMY_KV_TYPE`. Flags beat environment beats file.
 * Precedence of sources, weakest first: defaults; /etc/shimmy/shimmyd.conf and conf.d/ *.conf beside it in order of name;
 * $XDG_CONFIG_HOME/shimmy/shimmyd.conf and its conf.d; (or, instead of all these, the file given with --config); environment;
 * flags. Model directories add up over all sources, everything else is overridden.
 *
 * A struct config is immutable once loaded and reference counted; a reload makes a new one. Any thread may read it.
 */
#ifndef SHIMMYD_CONFIG_H
#define SHIMMYD_CONFIG_H

#include "compute/engine.h"

#include <stdio.h>

enum { CONFIG_LISTEN_MAX = 8 };

struct config {
    char *socket;      /* control socket path; "" = default by environment */
    char *listen;      /* "auto", "off", or HOST:PORT[,HOST:PORT...]; port 0 = any */
    char **model_dirs; /* NULL-terminated: model_dir, SHIMMY_MODEL_PATHS */
    bool discover;     /* search the usual places, too */
    char *base_gguf;   /* SHIMMY_BASE_GGUF or "" */
    char *device;      /* "auto", "cpu", or a part of a name */
    char *cache_dir;   /* see config_cache_directory; "" = by environment */
    char *kv_type;     /* "f16", "f32" */
    char *chat_template; /* see sh_chat_create; "" = as the model has it */
    char *api_key;     /* "" = none wanted; else Authorization: Bearer on /v1 routes */
    char *api_key_file; /* "" = none; see limits.h */
    char *cors_origin; /* "" = no CORS headers */
    char *log_level;
    char *vulkan_tier, *cpu_isa; /* "" = best */
    char *vulkan_tune;           /* "auto", "on", "off" */
    uint32_t context_length;     /* 0 = min(native, 8192) */
    uint32_t threads;            /* 0 = one per physical core, within the quota */
    uint32_t max_sequences, max_batch_rows, prefill_chunk, max_queue;
    uint32_t prefill_share; /* percent */
    uint32_t prefix_cache;  /* tokens; SH_LAYERS_AUTO: twice the context length */
    uint32_t gpu_layers; /* SH_LAYERS_AUTO: as many as fit */
    bool cpu_moe;
    uint32_t n_cpu_moe;
    uint64_t kv_tokens; /* 0 = context length times max_sequences, as memory allows */
    uint32_t max_connections;
    uint64_t max_body_bytes;
    uint32_t max_header_bytes;
    uint32_t rate_limit, rate_burst;                               /* requests a minute and at once, of each client; 0 = no limit */
    uint64_t token_rate_limit;                                     /* tokens a minute */
    uint32_t max_requests_per_client, max_connections_per_address; /* 0 = no limit */
    uint32_t max_prompt_tokens;                                    /* of a request; 0 = as many as the context has */
    uint32_t max_choices;                                          /* of a request, over all prompts */
    bool response_cache;
    uint32_t response_cache_entries, response_cache_ttl_s;
    uint64_t response_cache_bytes;
    char *session_dir; /* "" = by environment, see sessions.h */
    uint64_t session_bytes; /* of all files together; 0 = no limit */
    bool separate_clients;                                         /* share no cached prompts */
    uint32_t request_timeout_s, header_timeout_s, idle_timeout_s, stall_timeout_s, drain_timeout_s, watchdog_timeout_s;
    int32_t keep_alive_s; /* -1 for ever */
    uint64_t memory_limit, device_memory_limit; /* bytes; 0 = what is free */
    char *draft; /* "" = none */
    bool speculation;
    uint32_t draft_tokens;
    char *preload;                              /* names of models, separated by commas */
    bool preload_wait;
    float rope_scale;
    bool validation; /* Vulkan validation layer */

    uint32_t refs; /* config.c's */
};

/* What the command line asks for, besides options. */
enum config_action { CONFIG_RUN, CONFIG_HELP, CONFIG_SHOW_VERSION, CONFIG_CHECK, CONFIG_PRINT, CONFIG_PROBE_DEVICES };
struct config_setting {
    const char *name, *value;
};
struct config_command {
    enum config_action action;
    const char *file;                /* --config FILE or NULL */
    struct config_setting *settings; /* flags in order; strings are argv's */
    uint32_t n_settings;
};
/* Told every complaint: level error or warning, one line that names file and line, variable or flag. */
typedef void (*config_report_fn)(void *user, enum sh_log_level level, const char *line);

bool config_parse_command(int argc, char **argv, struct config_command *out, config_report_fn report, void *user);
void config_command_finish(struct config_command *command);
/* Reads all sources. False: something is wrong (everything wrong was reported), nothing is made. */
bool config_load(const struct config_command *command, struct config **out, config_report_fn report, void *user);
struct config *config_ref(struct config *config);
void config_unref(struct config *config);

/* The names of options that differ, one by one; needs_restart: a reload cannot put that one into force. */
void config_diff(const struct config *a, const struct config *b, void (*fn)(void *user, const char *name, bool needs_restart),
                 void *user);

/* Where things are kept that can be made anew: cache_dir, else $CACHE_DIRECTORY, $XDG_CACHE_HOME/shimmy, ~/.cache/shimmy; made if it is
 * not there. False: there is none, or it cannot be made (errno; *out tells which). */
bool config_cache_directory(const struct config *config, char *out, size_t cap);

void config_print_help(FILE *to);
void config_print_sample(FILE *to); /* conf/shimmyd.conf */
/* The option's name, or NULL past the end: for tests of manuals. */
const char *config_option_name(uint32_t index);

#endif
