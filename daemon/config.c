/*
 * config.c - the option table and its four readers: file, environment, flags, and the printers of --help and of the sample
 * file.
 *
 * A row of the table says everything about an option. A setting passes through set_option whatever it comes from, so that the
 * same words are accepted, and refused, everywhere.
 */
#include "daemon/config.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/text.h"
#include "paths.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <ini.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

enum option_type {
    OPT_STRING,
    OPT_CHOICE,
    OPT_LISTEN,
    OPT_LIST,
    OPT_COUNT,
    OPT_OR_AUTO,
    OPT_BYTES,
    OPT_SECONDS,
    OPT_FACTOR,
    OPT_BOOL
};

struct option {
    const char *name;
    enum option_type type;
    size_t offset;
    uint8_t bytes;       /* of a number's field: 4 or 8 */
    const char *initial; /* as written in a file */
    double min, max;
    const char *choices;    /* OPT_CHOICE: "a|b|c"; "" among them means empty is one */
    const char *aliases;    /* environment variables besides SHIMMY_<NAME>, separated by a space */
    const char *value_name; /* of --help */
    bool restart;           /* a reload cannot put it into force */
    const char *help;       /* full sentences, for --help, the sample file */
};

#define FIELD(name) offsetof(struct config, name), sizeof(((struct config *)0)->name)

static const struct option options[] = {
    {"socket", OPT_STRING, FIELD(socket), "", 0, 0, NULL, NULL, "PATH", true,
     "The control socket. Empty: control.sock in $RUNTIME_DIRECTORY under systemd, else in $XDG_RUNTIME_DIR/shimmy."},
    {"listen", OPT_LISTEN, FIELD(listen), "auto", 0, 0, NULL, NULL, "ADDRESS", true,
     "Where HTTP is served: auto (127.0.0.1:11435, or the next free port up to 11535), off, or HOST:PORT, several separated by "
     "commas. "
     "Port 0 takes any free one. [::1]:11435 is how IPv6 is written."},
    {"model_dir", OPT_LIST, FIELD(model_dirs), "", 0, 0, NULL, "SHIMMY_MODEL_PATHS", "DIR", false,
     "A directory that is searched for .gguf files, with its subdirectories; also a store of Ollama's or Hugging Face's. May be given "
     "several times, and as a list separated by colons (or semicolons)."},
    {"discover", OPT_BOOL, FIELD(discover), "yes", 0, 0, NULL, NULL, NULL, false,
     "Also searches where models usually are: ./models, Hugging Face's cache ($HF_HUB_CACHE, $HF_HOME/hub), Ollama's store "
     "($OLLAMA_MODELS, ~/.ollama/models, that of its service), LM Studio's, ~/models, ~/.local/share/shimmy/models, "
     "share/shimmy/models of the prefix it was installed to, /usr/share/shimmy/models. no: only model_dir and base_gguf."},
    {"base_gguf", OPT_STRING, FIELD(base_gguf), "", 0, 0, NULL, NULL, "FILE", false, "One more model file, wherever it lies."},
    {"device", OPT_STRING, FIELD(device), "auto", 0, 0, NULL, NULL, "auto|cpu|NAME", false,
     "What models run on: auto (the best GPU, else the CPU; never a software Vulkan driver), cpu, or a part of a device's name "
     "as "
     "`shimmyctl devices` shows it. A device that is named and cannot be used is refused, not replaced."},
    {"vulkan_tier", OPT_CHOICE, FIELD(vulkan_tier), "", 0, 0, "|base|intdot|coopmat", "SHIMMY_VULKAN", "TIER", true,
     "Forces a tier of Vulkan kernels: base (float activations), intdot (quantised weights meet activations of 8 bits) or coopmat "
     "(the same results, many rows by cooperative matrices, if the build has them). Empty: intdot where integer "
     "dot products are the device's own, else base."},
    {"vulkan_tune", OPT_CHOICE, FIELD(vulkan_tune), "auto", 0, 0, "auto|on|off", NULL, "auto|on|off", true,
     "Measures which size of workgroup makes each Vulkan kernel fastest, before a model's first step, for about half a second (the kernel "
     "that is being measured then is ended); choices are "
     "kept in cache_dir. Results are the same. auto: on GPUs; on: on software devices, too; off: by a table."},
    {"cpu_isa", OPT_CHOICE, FIELD(cpu_isa), "", 0, 0, "|scalar|avx2|avxvnni|avx512|amx", "SHIMMY_CPU", "ISA", true,
     "Forces the instruction set of CPU kernels: scalar, avx2, avxvnni, avx512 or amx. Empty: the best that the CPU has."},
    {"validation", OPT_BOOL, FIELD(validation), "no", 0, 0, NULL, NULL, NULL, true,
     "Runs Vulkan under its validation layer, which must be installed; its messages are logged as errors. Slow."},
    {"threads", OPT_COUNT, FIELD(threads), "0", 0, 1024, NULL, NULL, "N", true,
     "Threads of the CPU executor. 0: one for each physical core, as far as the quota of the control group goes."},
    {"gpu_layers", OPT_OR_AUTO, FIELD(gpu_layers), "auto", 0, 100000, NULL, NULL, "N|auto", false,
     "How many layers run on the device, where that is not the CPU: the last N and the output layer; the others and the "
     "embedding "
     "stay in host memory and are computed by the CPU. auto: as many as fit into what is free on the device."},
    {"cpu_moe", OPT_BOOL, FIELD(cpu_moe), "no", 0, 0, NULL, NULL, NULL, false,
     "Keeps the experts of all layers of a mixture of experts in host memory, where the CPU computes them."},
    {"n_cpu_moe", OPT_COUNT, FIELD(n_cpu_moe), "0", 0, 100000, NULL, NULL, "N", false,
     "Keeps the experts of the first N layers in host memory."},
    {"context_length", OPT_COUNT, FIELD(context_length), "0", 0, 16777216, NULL, "SHIMMY_MAX_CTX", "TOKENS", false,
     "The longest context, prompt and answer together. 0: what the model was trained for, at most 8192. More than it was trained "
     "for needs "
     "rope_scale."},
    {"rope_scale", OPT_FACTOR, FIELD(rope_scale), "0", 0, 1024, NULL, NULL, "FACTOR", false,
     "Extends the context linearly by this factor. 0: as the model's file says. A factor below 1 is read as its inverse."},
    {"kv_type", OPT_CHOICE, FIELD(kv_type), "f16", 0, 0, "f16|f32", "SHIMMY_KV_QUANT", "f16|f32", false,
     "How keys and values are kept: f16, or f32, which takes twice the memory."},
    {"chat_template", OPT_STRING, FIELD(chat_template), "", 0, 0, NULL, NULL, "FILE|NAME", false,
     "The chat template of models that are loaded: a file (with a slash, or ending in .jinja), the name of one that the model has "
     "(such as tool_use), or a built-in one (such as chatml or llama3). Empty: the model's own, or for a model without one a "
     "built-in one that fits its vocabulary."},
    {"kv_tokens", OPT_COUNT, FIELD(kv_tokens), "0", 0, 1e15, NULL, NULL, "TOKENS", false,
     "The room of a model's cache in tokens over all sequences; memory is taken as it fills. 0: context_length for each of "
     "max_sequences, but not more than half of what memory_limit leaves when the model is loaded."},
    {"prefix_cache", OPT_OR_AUTO, FIELD(prefix_cache), "auto", 0, 4e9, NULL, NULL, "TOKENS|auto", false,
     "How many tokens of ended requests a model's cache keeps, so that what begins like one of them need not be computed again; they go when room "
     "is wanted. auto: twice the context length. 0: only what is in use is shared."},
    {"max_sequences", OPT_COUNT, FIELD(max_sequences), "32", 1, 1024, NULL, NULL, "N", false,
     "Sequences that a model works on at once: requests, of which one with n answers counts n times, and the largest n of a request. "
     "Others wait in the queue."},
    {"max_batch_rows", OPT_COUNT, FIELD(max_batch_rows), "512", 1, 65536, NULL, NULL, "ROWS", false,
     "The most tokens computed in one step; activation memory grows with it."},
    {"prefill_chunk", OPT_COUNT, FIELD(prefill_chunk), "512", 1, 65536, NULL, NULL, "ROWS", false,
     "Prompt tokens computed in one step at most (and not more than max_batch_rows). Where such a step takes long, fewer are "
     "taken, so that "
     "cancellations are noticed soon."},
    {"prefill_share", OPT_COUNT, FIELD(prefill_share), "50", 1, 10000, NULL, NULL, "PERCENT", false,
     "How much longer a step may take for each request that waits for its first token than for the tokens that it generates, up to a quarter of a "
     "second in all: more lets answers begin sooner, less keeps the time between the tokens of those that run even. Without any running, "
     "prompts take what they need."},
    {"max_queue", OPT_COUNT, FIELD(max_queue), "256", 0, 100000, NULL, NULL, "N", false,
     "Requests that wait for a model until there are sequences and room in the cache for them; more are refused as busy."},
    {"keep_alive", OPT_SECONDS, FIELD(keep_alive_s), "30min", -1, 1e9, NULL, NULL, "TIME", false,
     "How long an idle model stays loaded: seconds, or with a unit (90s, 30min, 2h, 1d). 0 unloads it after its last request, -1 "
     "keeps it for ever."},
    {"speculation", OPT_BOOL, FIELD(speculation), "yes", 0, 0, NULL, NULL, NULL, false,
     "Guesses tokens that are likely to follow (from what followed before in prompt and answer, and by the model of draft), and verifies several "
     "in one step. Answers are the same with and without it; where guesses do not pay, none are made."},
    {"draft", OPT_STRING, FIELD(draft), "", 0, 0, NULL, NULL, "MODEL", false,
     "A small model with the same vocabulary that guesses for the models that are loaded: a name or a path. It is loaded with each of them; a model that "
     "it does not fit does without, which the log tells. Empty: none."},
    {"draft_tokens", OPT_COUNT, FIELD(draft_tokens), "16", 1, 64, NULL, NULL, "N", false,
     "Tokens that are guessed at once, at most. Fewer are where fewer pay."},
    {"memory_limit", OPT_BYTES, FIELD(memory_limit), "0", 0, 1e15, NULL, NULL, "BYTES", false,
     "How much of the host's memory loaded models may take together, with K, M or G: weights, caches and activations. 0: what is "
     "available within the limits of the machine, of control groups and of the process, less a reserve. Models that are idle are "
     "unloaded for another that needs their room, the least recently used first."},
    {"device_memory_limit", OPT_BYTES, FIELD(device_memory_limit), "0", 0, 1e15, NULL, NULL, "BYTES", false,
     "The same for the memory of each device that is not the CPU. 0: what its driver says is free."},
    {"preload", OPT_STRING, FIELD(preload), "", 0, 0, NULL, NULL, "MODELS", true,
     "Models that are loaded at start, in this order, separated by commas: names or paths. They stay loaded however long they are idle, "
     "unless a request sets another keep_alive, or a model that is asked for needs their room. One that cannot be loaded is logged."},
    {"preload_wait", OPT_BOOL, FIELD(preload_wait), "no", 0, 0, NULL, NULL, NULL, true,
     "Tells the service manager that the daemon is ready only after the models of preload are loaded, or have failed."},
    {"cache_dir", OPT_STRING, FIELD(cache_dir), "", 0, 0, NULL, NULL, "DIR", true,
     "Where compiled pipelines, choices of vulkan_tune, and what the headers of model files said, are kept between runs. Empty: "
     "$CACHE_DIRECTORY under systemd, else $XDG_CACHE_HOME/shimmy."},
    {"api_key", OPT_STRING, FIELD(api_key), "", 0, 0, NULL, NULL, "KEY", false,
     "If set, all HTTP routes but /health and /metrics want it as `Authorization: Bearer KEY`. Give it by file or environment: flags are seen "
     "by other users."},
    {"api_key_file", OPT_STRING, FIELD(api_key_file), "", 0, 0, NULL, NULL, "FILE", false,
     "A file of more keys, one on a line, each with a name after a space that metrics tell its requests by. Lines that begin with # are "
     "comments. It is read again at a reload."},
    {"rate_limit", OPT_COUNT, FIELD(rate_limit), "0", 0, 1e9, NULL, NULL, "N", false,
     "HTTP requests a minute that each client may make; a client is an API key, or an address where no keys are set. More are a 429. 0: no limit."},
    {"rate_burst", OPT_COUNT, FIELD(rate_burst), "0", 0, 1e9, NULL, NULL, "N", false,
     "How many of these may come at once. 0: as many as rate_limit."},
    {"token_rate_limit", OPT_COUNT, FIELD(token_rate_limit), "0", 0, 1e15, NULL, NULL, "TOKENS", false,
     "Tokens a minute, of prompts and answers, that each client may use. They are charged when they are known; a client that has used up its own "
     "gets a 429 until some are free again. 0: no limit."},
    {"max_requests_per_client", OPT_COUNT, FIELD(max_requests_per_client), "0", 0, 65536, NULL, NULL, "N", false,
     "HTTP requests of one client that are worked on or wait at once; more are a 429. 0: no limit."},
    {"max_prompt_tokens", OPT_COUNT, FIELD(max_prompt_tokens), "0", 0, 2147483647, NULL, NULL, "TOKENS", false,
     "The tokens that the prompts or texts of one request may have together; more are refused. 0: no limit but the context's."},
    {"max_choices", OPT_COUNT, FIELD(max_choices), "1024", 1, 65536, NULL, NULL, "N", false,
     "Choices that an HTTP request may ask for, over all its prompts."},
    {"response_cache", OPT_BOOL, FIELD(response_cache), "no", 0, 0, NULL, NULL, NULL, false,
     "Keeps whole answers, and gives them again to requests that would be answered the same: greedy ones, and those with a seed. Answers of more "
     "than 8192 bytes are not kept."},
    {"response_cache_entries", OPT_COUNT, FIELD(response_cache_entries), "1000", 1, 1e6, NULL, NULL, "N", false,
     "How many answers are kept; the least recently used go first."},
    {"response_cache_bytes", OPT_BYTES, FIELD(response_cache_bytes), "512M", 1024, 1e15, NULL, NULL, "BYTES", false,
     "How much memory kept answers may take, with K, M or G."},
    {"response_cache_ttl", OPT_SECONDS, FIELD(response_cache_ttl_s), "1h", 1, 1e9, NULL, NULL, "TIME", false,
     "How long an answer is kept."},
    {"session_dir", OPT_STRING, FIELD(session_dir), "", 0, 0, NULL, NULL, "DIR", false,
     "Where saved sessions lie. Empty: $STATE_DIRECTORY under systemd, else $XDG_STATE_HOME/shimmy/sessions."},
    {"session_bytes", OPT_BYTES, FIELD(session_bytes), "8G", 0, 1e15, NULL, NULL, "BYTES", false,
     "How much room the files of saved sessions may take together, with K, M or G; a session that needs more is not saved. 0: no limit."},
    {"separate_clients", OPT_BOOL, FIELD(separate_clients), "no", 0, 0, NULL, NULL, NULL, false,
     "Requests of different clients share no cached beginnings of prompts and no kept answers, so that none can tell from the time what "
     "others have asked."},
    {"cors_origin", OPT_STRING, FIELD(cors_origin), "", 0, 0, NULL, NULL, "ORIGIN", true,
     "Sent as Access-Control-Allow-Origin, so that web pages of that origin may use the API; * allows all. Empty: no such "
     "header."},
    {"max_connections", OPT_COUNT, FIELD(max_connections), "256", 1, 65536, NULL, NULL, "N", true,
     "HTTP connections at once; more are refused."},
    {"max_connections_per_address", OPT_COUNT, FIELD(max_connections_per_address), "0", 0, 65536, NULL, NULL, "N", false,
     "HTTP connections at once from one address (of IPv6: from one /64 network). 0: no limit."},
    {"max_header", OPT_BYTES, FIELD(max_header_bytes), "16K", 1024, 1 << 20, NULL, NULL, "BYTES", true,
     "The longest head of an HTTP request, with K or M."},
    {"max_body", OPT_BYTES, FIELD(max_body_bytes), "16M", 1024, 1 << 30, NULL, NULL, "BYTES", true,
     "The longest body of an HTTP request, with K, M or G."},
    {"header_timeout", OPT_SECONDS, FIELD(header_timeout_s), "10", 1, 86400, NULL, NULL, "TIME", true,
     "How long an HTTP client may take to send a request's head."},
    {"idle_timeout", OPT_SECONDS, FIELD(idle_timeout_s), "120", 1, 86400, NULL, NULL, "TIME", true,
     "How long an HTTP connection may stay open without a request."},
    {"stall_timeout", OPT_SECONDS, FIELD(stall_timeout_s), "30", 1, 86400, NULL, NULL, "TIME", true,
     "How long a client, of HTTP or the control socket, may leave unread what is sent to it before its connection is closed; for a long answer "
     "a second is added for each 16 KiB."},
    {"request_timeout", OPT_SECONDS, FIELD(request_timeout_s), "0", 0, 86400 * 30, NULL, NULL, "TIME", true,
     "How long an HTTP request may take in all; it is cancelled then. 0: no limit."},
    {"drain_timeout", OPT_SECONDS, FIELD(drain_timeout_s), "30", 0, 86400, NULL, NULL, "TIME", false,
     "How long running requests may go on when the daemon stops or a model is unloaded; they are cancelled then."},
    {"watchdog_timeout", OPT_SECONDS, FIELD(watchdog_timeout_s), "10min", 1, 86400, NULL, NULL, "TIME", false,
     "How long a step of a model may take before the model counts as stuck: its requests fail then, /health and systemd are told. Once it has "
     "shown how long its steps take, a hundred times the longest of them is enough, but not less than 30 seconds. A load of which nothing is heard "
     "for so long counts as stuck, too, but systemd is not told: loaded models serve on."},
    {"log_level", OPT_CHOICE, FIELD(log_level), "info", 0, 0, "error|warning|notice|info|debug", NULL, "LEVEL", false,
     "What is logged: error, warning, notice, info or debug, each with those before it."},
};
enum { OPTION_COUNT = SH_COUNT(options) };

const char *config_option_name(uint32_t index) { return index < OPTION_COUNT ? options[index].name : NULL; }

/* ---- complaints -------------------------------------------------------------------------------------- */

struct loader {
    struct config *config;
    config_report_fn report;
    void *user;
    uint32_t errors;
    const char *path; /* the file being parsed, */
    FILE *file;
    uint32_t line; /* and where */
};

static void SH_PRINTF(3, 4) complain(struct loader *loader, enum sh_log_level level, const char *fmt, ...) {
    char line[700];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (level == SH_LOG_ERROR) loader->errors++;
    loader->report(loader->user, level, line);
}

/* The option that a misspelt name was probably meant to be, or NULL. */
static const char *near_option(const char *name) {
    const char *best = NULL;
    uint32_t best_distance = 1 + (uint32_t)strlen(name) / 2;
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        uint32_t distance = strncmp(options[i].name, name, strlen(name)) == 0 ? 1 : text_distance(name, options[i].name);
        if (distance < best_distance) {
            best = options[i].name;
            best_distance = distance;
        }
    }
    return best;
}

static const struct option *find_option(const char *name) {
    for (uint32_t i = 0; i < OPTION_COUNT; i++)
        if (strcmp(options[i].name, name) == 0) return &options[i];
    return NULL;
}

/* ---- values ------------------------------------------------------------------------------------------ */

static void *field_of(const struct config *config, const struct option *option) { return (char *)config + option->offset; }

/* A word of `choices` ("a|b|c"). */
static bool is_choice(const char *choices, const char *value) {
    size_t length = strlen(value);
    for (const char *at = choices;; at++) {
        const char *end = strchrnul(at, '|');
        if ((size_t)(end - at) == length && memcmp(at, value, length) == 0) return true;
        if (!*end) return false;
        at = end;
    }
}

/* "auto", "off", or HOST:PORT separated by commas. */
static bool listen_is_valid(const char *value, char *why, size_t cap) {
    if (strcmp(value, "auto") == 0 || strcmp(value, "off") == 0) return true;
    uint32_t count = 0;
    for (const char *at = value;; at++) {
        const char *end = strchrnul(at, ',');
        char one[300], *rest;
        if (end == at || (size_t)(end - at) >= sizeof one || ++count > CONFIG_LISTEN_MAX) {
            snprintf(why, cap, "expected auto, off, or at most %d HOST:PORT separated by commas", CONFIG_LISTEN_MAX);
            return false;
        }
        memcpy(one, at, (size_t)(end - at));
        one[end - at] = 0;
        char *colon = strrchr(one, ':');
        if (!colon || colon == one || !isdigit((unsigned char)colon[1]) || (strchr(one, ':') != colon && one[0] != '[')) {
            snprintf(why, cap, "'%.200s' is not HOST:PORT (IPv6 as [::1]:11435)", one);
            return false;
        }
        unsigned long port = strtoul(colon + 1, &rest, 10);
        if (*rest || port > 65535) {
            snprintf(why, cap, "'%s' is not a port: expected 0 to 65535", colon + 1);
            return false;
        }
        if (!*end) return true;
        at = end;
    }
}

static bool add_to_list(char ***list, const char *value) {
    size_t have = 0;
    for (; *list && (*list)[have]; have++) {
    }
    for (const char *at = value;; at++) {
        const char *end = at + strcspn(at, ":;");
        if (end > at) {
            char **grown = realloc(*list, (have + 2) * sizeof *grown);
            if (!grown) return false;
            *list = grown;
            grown[have] = strndup(at, (size_t)(end - at));
            if (!grown[have]) return false;
            grown[++have] = NULL;
        }
        if (!*end) return true;
        at = end;
    }
}

/* What follows a number: factor of a unit, or 0 if it is none. */
static double unit_factor(enum option_type type, const char *unit) {
    static const struct {
        enum option_type type;
        const char *unit;
        double factor;
    } units[] = {
        {OPT_BYTES, "K", 1024},      {OPT_BYTES, "M", 1 << 20}, {OPT_BYTES, "G", 1 << 30},   {OPT_SECONDS, "s", 1},
        {OPT_SECONDS, "sec", 1},     {OPT_SECONDS, "m", 60},    {OPT_SECONDS, "min", 60},    {OPT_SECONDS, "h", 3600},
        {OPT_SECONDS, "hour", 3600}, {OPT_SECONDS, "d", 86400}, {OPT_SECONDS, "day", 86400},
    };
    if (!*unit) return 1;
    for (uint32_t i = 0; i < SH_COUNT(units); i++)
        if (units[i].type == type && strcmp(units[i].unit, unit) == 0) return units[i].factor;
    return 0;
}

static bool set_number(struct config *config, const struct option *option, const char *value, char *why, size_t cap) {
    char *rest;
    errno = 0;
    double number = strtod(value, &rest);
    /* strtod also reads "nan", "inf" and hexadecimal; none is meant in a configuration. */
    bool plain = rest != value && strspn(value, "+-.0123456789eE") >= (size_t)(rest - value);
    while (*rest == ' ') rest++;
    double factor = plain ? unit_factor(option->type, rest) : 0;
    const char *kind = option->type == OPT_SECONDS  ? "a time such as 90, 90s, 30min, 2h or 1d"
                       : option->type == OPT_BYTES  ? "a size such as 65536, 64K or 16M"
                       : option->type == OPT_OR_AUTO ? "auto or a number"
                                                    : "a number";
    if (factor == 0 || errno) {
        snprintf(why, cap, "'%s' is not %s", value, kind);
        return false;
    }
    number *= factor;
    if (option->type == OPT_FACTOR ? false : number != floor(number)) {
        snprintf(why, cap, "'%s' is not a whole number", value);
        return false;
    }
    if (number < option->min || number > option->max) {
        snprintf(why, cap, "%s is out of range: expected %.0f to %.0f", value, option->min, option->max);
        return false;
    }
    void *field = field_of(config, option);
    if (option->type == OPT_FACTOR) *(float *)field = (float)number;
    else if (option->bytes == 8) *(uint64_t *)field = (uint64_t)number;
    else *(uint32_t *)field = (uint32_t)(int64_t)number;
    return true;
}

/* One setting, whatever its source (`where`: "/etc/shimmy/shimmyd.conf:3", "--kv-type", "$SHIMMY_KV_TYPE"). */
static void set_option(struct loader *loader, const struct option *option, const char *value, const char *where) {
    char why[300] = "";
    void *field = field_of(loader->config, option);
    bool ok = true;
    switch (option->type) {
    case OPT_LISTEN:
    case OPT_CHOICE:
    case OPT_STRING:
        if (option->type == OPT_CHOICE && !is_choice(option->choices, value)) {
            snprintf(why, sizeof why, "'%s' is none of %s", value, option->choices + (option->choices[0] == '|'));
            ok = false;
        } else if (option->type == OPT_LISTEN) {
            ok = listen_is_valid(value, why, sizeof why);
        }
        if (ok) {
            char *copy = strdup(value);
            if (!copy) {
                snprintf(why, sizeof why, "no memory");
                ok = false;
                break;
            }
            free(*(char **)field);
            *(char **)field = copy;
        }
        break;
    case OPT_LIST:
        ok = add_to_list(field, value);
        if (!ok) snprintf(why, sizeof why, "no memory");
        break;
    case OPT_BOOL:
        ok = is_choice("yes|true|on|1|no|false|off|0", value);
        if (ok) *(bool *)field = is_choice("yes|true|on|1", value);
        else snprintf(why, sizeof why, "'%s' is neither yes nor no", value);
        break;
    case OPT_OR_AUTO:
        if (strcmp(value, "auto") == 0) {
            *(uint32_t *)field = SH_LAYERS_AUTO;
            break;
        }
        ok = set_number(loader->config, option, value, why, sizeof why);
        break;
    case OPT_FACTOR:
    case OPT_COUNT:
    case OPT_BYTES:
    case OPT_SECONDS: ok = set_number(loader->config, option, value, why, sizeof why); break;
    }
    if (!ok) {
        complain(loader, SH_LOG_ERROR, "%s: %s: %s", where, option->name, why);
        return;
    }
    if (option->type == OPT_FACTOR) {
        float *factor = field;
        if (*factor > 0 && *factor < 1) {
            complain(loader, SH_LOG_WARNING,
                     "%s: %s: %s is below 1 and read as its inverse, %g: the context is extended by that factor", where,
                     option->name, value, 1 / (double)*factor);
            *factor = 1 / *factor;
        }
    }
}

static void unknown(struct loader *loader, const char *where, const char *what, const char *name) {
    const char *near = near_option(name);
    if (near) complain(loader, SH_LOG_ERROR, "%s: %s '%s' is not known: did you mean %s?", where, what, name, near);
    else complain(loader, SH_LOG_ERROR, "%s: %s '%s' is not known: shimmyd --help lists the options", where, what, name);
}

/* ---- files ------------------------------------------------------------------------------------------- */

/* libinih as Debian builds it neither tells lines nor takes long ones (it would read the rest as another line): both are done
 * here. */
static char *ini_line(char *line, int cap, void *user) {
    struct loader *loader = user;
    char *got = fgets(line, cap, loader->file);
    if (!got) return NULL;
    loader->line++;
    if (!strchr(line, '\n') && !feof(loader->file)) {
        complain(loader, SH_LOG_ERROR, "%s:%u: the line is longer than %d bytes: give lists as several lines", loader->path,
                 loader->line, cap - 2);
        for (int c = 0; c != '\n' && c != EOF;) c = getc(loader->file);
        strcpy(line, "\n");
    }
    return got;
}

static int ini_entry(void *user, const char *section, const char *name, const char *value) {
    struct loader *loader = user;
    char where[600];
    snprintf(where, sizeof where, "%s:%u", loader->path, loader->line);
    if (*section && strcmp(section, "shimmyd") != 0) {
        complain(loader, SH_LOG_ERROR, "%s: section [%s] is not known: options stand before any section or in [shimmyd]", where,
                 section);
        return 1;
    }
    const struct option *option = find_option(name);
    if (option) set_option(loader, option, value, where);
    else unknown(loader, where, "option", name);
    return 1;
}

/* required: it was asked for by name. */
static void read_file(struct loader *loader, const char *path, bool required) {
    FILE *file = fopen(path, "re");
    if (!file) {
        if (errno == ENOENT && !required) return;
        complain(loader, required ? SH_LOG_ERROR : SH_LOG_WARNING, "%s: cannot be read: %s", path, strerror(errno));
        return;
    }
    loader->path = path;
    loader->file = file;
    loader->line = 0;
    int rc = ini_parse_stream(ini_line, loader, ini_entry, loader);
    if (rc > 0)
        complain(loader, SH_LOG_ERROR, "%s:%d: not understood: expected 'name = value', '[shimmyd]' or a comment", path, rc);
    else if (rc < 0 || ferror(file)) complain(loader, SH_LOG_ERROR, "%s: cannot be read", path);
    fclose(file);
}

static int is_conf(const struct dirent *entry) {
    size_t length = strlen(entry->d_name);
    return entry->d_name[0] != '.' && length > 5 && strcmp(entry->d_name + length - 5, ".conf") == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void read_directory(struct loader *loader, const char *directory) {
    char path[4200];
    snprintf(path, sizeof path, "%s/shimmyd.conf", directory);
    read_file(loader, path, false);
    snprintf(path, sizeof path, "%s/conf.d", directory);
    struct dirent **entries;
    int count = scandir(path, &entries, is_conf, by_name);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/conf.d/%s", directory, entries[i]->d_name);
        read_file(loader, path, false);
        free(entries[i]);
    }
    if (count >= 0) free(entries);
}

/* ---- environment ------------------------------------------------------------------------------------- */

static void variable_of(const struct option *option, char *out, size_t cap) {
    snprintf(out, cap, "SHIMMY_%s", option->name);
    for (char *c = out; *c; c++) *c = (char)toupper((unsigned char)*c);
}

static void read_variable(struct loader *loader, const struct option *option, const char *variable) {
    const char *value = getenv(variable);
    if (!value || !*value) return;
    char where[80];
    snprintf(where, sizeof where, "$%s", variable);
    set_option(loader, option, value, where);
}

/* SHIMMY_BIND_ADDRESS (HOST or HOST:PORT) and SHIMMY_PORT together are what SHIMMY_LISTEN is alone. */
static void read_bind_address(struct loader *loader) {
    const char *host = getenv("SHIMMY_BIND_ADDRESS"), *port = getenv("SHIMMY_PORT");
    bool have_host = host && *host, have_port = port && *port;
    if (!have_host && !have_port) return;
    if (!have_host) host = "127.0.0.1";
    if (!have_port) port = "11435";
    const char *first = strchr(host, ':'), *last = strrchr(host, ':');
    bool bare_ipv6 = host[0] != '[' && first != last;
    bool with_port = host[0] == '[' ? strstr(host, "]:") != NULL : first && first == last;
    char value[300];
    if (with_port) snprintf(value, sizeof value, "%s", host);
    else if (bare_ipv6) snprintf(value, sizeof value, "[%s]:%s", host, port);
    else snprintf(value, sizeof value, "%s:%s", host, port);
    set_option(loader, find_option("listen"), value, have_host ? "$SHIMMY_BIND_ADDRESS" : "$SHIMMY_PORT");
}

static void read_environment(struct loader *loader) {
    read_bind_address(loader);
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        char variable[64];
        for (const char *alias = options[i].aliases; alias && *alias;) {
            size_t length = strcspn(alias, " ");
            snprintf(variable, sizeof variable, "%.*s", (int)length, alias);
            read_variable(loader, &options[i], variable);
            alias += length + (alias[length] == ' ');
        }
        variable_of(&options[i], variable, sizeof variable);
        read_variable(loader, &options[i], variable);
    }
}

/* ---- flags ------------------------------------------------------------------------------------------- */

static const struct {
    const char *flag;
    enum config_action action;
    const char *help; /* NULL: internal */
} actions[] = {
    {"--help", CONFIG_HELP, "Shows this."},
    {"--version", CONFIG_SHOW_VERSION, "Shows the version."},
    {"--check-config", CONFIG_CHECK,
     "Reads files, environment and flags, reports what is wrong, and exits: 0 if nothing is, else 1."},
    {"--print-config", CONFIG_PRINT, "Prints a sample shimmyd.conf with every option and its default."},
    {"--probe-devices", CONFIG_PROBE_DEVICES, NULL},
};

bool config_parse_command(int argc, char **argv, struct config_command *out, config_report_fn report, void *user) {
    struct loader loader = {.report = report, .user = user};
    *out = (struct config_command){.action = CONFIG_RUN};
    out->settings = sh_calloc((uint64_t)argc + 1, sizeof *out->settings);
    if (!out->settings) {
        complain(&loader, SH_LOG_ERROR, "no memory");
        return false;
    }
    const char *truth = NULL; /* the argument before this one, if it was a flag that needs no value */
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        bool done = false;
        for (uint32_t a = 0; a < SH_COUNT(actions) && !done; a++) {
            if (strcmp(arg, actions[a].flag) == 0) {
                out->action = actions[a].action;
                done = true;
            }
        }
        if (strcmp(arg, "-h") == 0) {
            out->action = CONFIG_HELP;
            done = true;
        }
        if (done) continue;
        if (strncmp(arg, "--", 2) != 0 || !arg[2]) {
            if (truth) complain(&loader, SH_LOG_ERROR, "argument '%s' is not understood: %s takes a value only as %s=%s", arg, truth, truth, arg);
            else complain(&loader, SH_LOG_ERROR, "argument '%s' is not understood: options begin with --", arg);
            truth = NULL;
            continue;
        }
        truth = NULL;
        char name[64];
        size_t length = strcspn(arg + 2, "=");
        const char *value = arg[2 + length] ? arg + 2 + length + 1 : NULL;
        snprintf(name, sizeof name, "%.*s", (int)length, arg + 2);
        for (char *c = name; *c; c++)
            if (*c == '-') *c = '_';
        bool is_file = strcmp(name, "config") == 0;
        const struct option *option = is_file ? NULL : find_option(name);
        if (!is_file && !option) {
            unknown(&loader, "command line", "option", name);
            continue;
        }
        if (!value && option && option->type == OPT_BOOL) {
            value = "yes";
            truth = arg;
        }
        if (!value && i + 1 < argc) value = argv[++i];
        if (!value) {
            complain(&loader, SH_LOG_ERROR, "%s wants a value", arg);
        } else if (is_file) {
            out->file = value;
        } else {
            out->settings[out->n_settings++] = (struct config_setting){option->name, value};
        }
    }
    if (loader.errors) config_command_finish(out);
    return loader.errors == 0;
}

void config_command_finish(struct config_command *command) {
    free(command->settings);
    *command = (struct config_command){0};
}

static void read_flags(struct loader *loader, const struct config_command *command) {
    for (uint32_t i = 0; i < command->n_settings; i++) {
        char where[80];
        snprintf(where, sizeof where, "--%s", command->settings[i].name);
        for (char *c = where; *c; c++)
            if (*c == '_') *c = '-';
        set_option(loader, find_option(command->settings[i].name), command->settings[i].value, where);
    }
}

/* ---- loading ----------------------------------------------------------------------------------------- */

static void check_together(struct loader *loader) {
    struct config *config = loader->config;
    if (config->prefill_chunk > config->max_batch_rows) config->prefill_chunk = config->max_batch_rows;
    if (config->max_sequences > config->max_batch_rows)
        complain(loader, SH_LOG_ERROR, "max_sequences %u is more than max_batch_rows %u: each sequence needs a row of a step",
                 config->max_sequences, config->max_batch_rows);
    if (config->rate_burst && !config->rate_limit)
        complain(loader, SH_LOG_WARNING, "rate_burst %u has no effect without rate_limit", config->rate_burst);
}

bool config_load(const struct config_command *command, struct config **out, config_report_fn report, void *user) {
    struct loader loader = {.report = report, .user = user, .config = sh_calloc(1, sizeof(struct config))};
    if (!loader.config) {
        complain(&loader, SH_LOG_ERROR, "no memory");
        return false;
    }
    loader.config->refs = 1;
    for (uint32_t i = 0; i < OPTION_COUNT; i++) set_option(&loader, &options[i], options[i].initial, "default");

    if (command->file) {
        read_file(&loader, command->file, true);
    } else {
        read_directory(&loader, SHIMMY_SYSCONFDIR "/shimmy");
        char path[4100];
        const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
        if (base && *base) snprintf(path, sizeof path, "%s/shimmy", base);
        else snprintf(path, sizeof path, "%s/.config/shimmy", home ? home : "");
        if ((base && *base) || (home && *home)) read_directory(&loader, path);
    }
    read_environment(&loader);
    read_flags(&loader, command);
    if (!loader.errors) check_together(&loader);

    if (loader.errors) {
        config_unref(loader.config);
        return false;
    }
    *out = loader.config;
    return true;
}

struct config *config_ref(struct config *config) {
    __atomic_add_fetch(&config->refs, 1, __ATOMIC_RELAXED);
    return config;
}

void config_unref(struct config *config) {
    if (!config || __atomic_sub_fetch(&config->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        void *field = field_of(config, &options[i]);
        if (options[i].type == OPT_STRING || options[i].type == OPT_CHOICE || options[i].type == OPT_LISTEN)
            free(*(char **)field);
        if (options[i].type == OPT_LIST) {
            char **list = *(char ***)field;
            for (char **at = list; list && *at; at++) free(*at);
            free(list);
        }
    }
    free(config);
}

static bool same_value(const struct config *a, const struct config *b, const struct option *option) {
    const void *x = field_of(a, option), *y = field_of(b, option);
    switch (option->type) {
    case OPT_STRING:
    case OPT_CHOICE:
    case OPT_LISTEN: return strcmp(*(char *const *)x, *(char *const *)y) == 0;
    case OPT_LIST: {
        char *const *p = *(char **const *)x, *const *q = *(char **const *)y;
        while (p && q && *p && *q && strcmp(*p, *q) == 0) p++, q++;
        return (!p || !*p) && (!q || !*q);
    }
    case OPT_COUNT:
    case OPT_OR_AUTO:
    case OPT_BYTES:
    case OPT_SECONDS:
    case OPT_FACTOR:
    case OPT_BOOL: return memcmp(x, y, option->bytes) == 0;
    }
    return false;
}

void config_diff(const struct config *a, const struct config *b, void (*fn)(void *user, const char *name, bool needs_restart),
                 void *user) {
    for (uint32_t i = 0; i < OPTION_COUNT; i++)
        if (!same_value(a, b, &options[i])) fn(user, options[i].name, options[i].restart);
}

bool config_cache_directory(const struct config *config, char *out, size_t cap) {
    const char *systemd = getenv("CACHE_DIRECTORY"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (*config->cache_dir) snprintf(out, cap, "%s", config->cache_dir);
    else if (systemd && *systemd) snprintf(out, cap, "%.*s", (int)strcspn(systemd, ":"), systemd);
    else if (xdg && *xdg) snprintf(out, cap, "%s/shimmy", xdg);
    else if (home && *home) snprintf(out, cap, "%s/.cache/shimmy", home);
    else *out = 0;
    errno = ENOENT;
    if (!*out) return false;
    for (char *slash = strchr(out + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(out, 0755);
        *slash = '/';
    }
    return mkdir(out, 0755) == 0 || errno == EEXIST;
}

/* ---- printers ---------------------------------------------------------------------------------------- */

/* Text broken into lines of at most `width` columns, each with `prefix`. */
static void print_wrapped(FILE *to, const char *prefix, const char *text, size_t width) {
    size_t room = width - strlen(prefix);
    while (*text) {
        size_t take = strlen(text);
        if (take > room) {
            take = room;
            while (take > 0 && text[take] != ' ') take--;
            if (take == 0) take = strcspn(text, " ");
        }
        fprintf(to, "%s%.*s\n", prefix, (int)take, text);
        text += take;
        while (*text == ' ') text++;
    }
}

void config_print_help(FILE *to) {
    fputs(
        "Usage: shimmyd [OPTION]...\n"
        "Serves GGUF language models over a control socket (shimmyctl) and HTTP (OpenAI's API).\n\n"
        "Every option can also stand in shimmyd.conf as `name = value` (with _ for -) and in the environment as SHIMMY_NAME.\n"
        "Behind an option is its default; those of yes and no are turned off with =no (--discover=no).\n\n",
        to);
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "%s", options[i].name);
        for (char *c = flag; *c; c++)
            if (*c == '_') *c = '-';
        fprintf(to, "  --%s%s%s%s%s%s\n", flag, options[i].value_name ? " " : "",
                options[i].value_name ? options[i].value_name : "", *options[i].initial ? " (" : "", options[i].initial,
                *options[i].initial ? ")" : "");
        print_wrapped(to, "        ", options[i].help, 100);
    }
    fputs("  --config FILE\n        Reads this file instead of the usual ones.\n", to);
    for (uint32_t i = 0; i < SH_COUNT(actions); i++)
        if (actions[i].help) {
            fprintf(to, "  %s\n", actions[i].flag);
            print_wrapped(to, "        ", actions[i].help, 100);
        }
}

void config_print_sample(FILE *to) {
    fputs("# shimmyd.conf - options of shimmyd(8), explained in shimmyd.conf(5). Lines that begin with # are comments; what is "
          "commented\n"
          "# out here is the default. Flags (--kv-type) and the environment (SHIMMY_KV_TYPE) override this file. `shimmyd "
          "--check-config`\n"
          "# checks it, `systemctl reload shimmyd` puts changes into force as far as that is possible without a restart.\n\n"
          "[shimmyd]\n",
          to);
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        char variable[64];
        variable_of(&options[i], variable, sizeof variable);
        fputc('\n', to);
        print_wrapped(to, "# ", options[i].help, 100);
        if (options[i].restart) fputs("# Changes need a restart.\n", to);
        fprintf(to, "#%s =%s%s\n", options[i].name, *options[i].initial ? " " : "", options[i].initial);
    }
}
