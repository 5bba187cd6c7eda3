/*
 * config.h - every option of shimmyd, from one table: file (INI), environment, flags, --help, sample file, man page check.
 *
 * One spelling in three forms: key `kv_type`, flag `--kv-type`, variable `SHIMMY_KV_TYPE`. Flags beat environment beats file.
 * A struct config is immutable once loaded; a reload makes a new one.
 */
#ifndef SHIMMYD_CONFIG_H
#define SHIMMYD_CONFIG_H

#include "compute/engine.h"

enum { CONFIG_LISTEN_MAX = 8 };

struct config {
    char *socket;              /* control socket path; "" = default by environment */
    char *listen;              /* "auto", "off", or HOST:PORT[,HOST:PORT...]; port 0 = any */
    char **model_dirs;         /* NULL-terminated: model_dir, SHIMMY_MODEL_PATHS, ./models */
    char *base_gguf;           /* SHIMMY_BASE_GGUF or "" */
    char *device;              /* "auto", "cpu", or a part of a name */
    char *cache_dir;           /* pipeline cache; "" = $CACHE_DIRECTORY, else $XDG_CACHE_HOME/shimmy */
    char *kv_type;             /* "f16", "f32" */
    char *api_key;             /* "" = none wanted; else Authorization: Bearer on /v1 routes */
    char *cors_origin;         /* "" = no CORS headers */
    char *log_level;
    char *vulkan_tier, *cpu_isa; /* "" = best */
    uint32_t context_length;   /* 0 = min(native, 8192) */
    uint32_t threads;          /* 0 = one per physical core */
    uint32_t max_sequences, max_batch_rows, prefill_chunk, max_queue;
    uint64_t kv_tokens;        /* 0 = context length times max_sequences, as memory allows */
    uint32_t max_connections;
    uint64_t max_body_bytes;
    uint32_t request_timeout_s, header_timeout_s, idle_timeout_s, drain_timeout_s;
    int32_t keep_alive_s;      /* -1 for ever */
    float rope_scale;
    bool validation;           /* Vulkan validation layer */
};

#endif
