/*
 * params.h - from a request's JSON to plain structs: pure functions that know neither libmicrohttpd nor a model.
 *
 * Each parser fills its struct or an api_error whose message names the field, what was found and what is expected. Fields that
 * it does not know are ignored, except those that are known to change an answer and that this server does not do: they are an
 * error unless set to what has no effect. A struct is valid (and must be finished) after either result. Thread-safety: no
 * shared state, any thread.
 */
#ifndef SHIMMYD_HTTP_PARAMS_H
#define SHIMMYD_HTTP_PARAMS_H

#include "compute/engine.h"

#include <jansson.h>

enum { API_STOPS_MAX = 16, API_STOP_TOKENS_MAX = 1024, API_WORDS_MAX = 256, API_BREAKERS_MAX = 64,
       API_CHOICES_MAX = 128, API_PROMPTS_MAX = 256, API_INPUTS_MAX = 2048, API_TOP_MAX = 20,
       API_MESSAGES_MAX = 16384, API_TOOLS_MAX = 1024 };

struct api_error { /* OpenAI's error object and the status that goes with it */
    unsigned status;
    const char *type, *code; /* constants; code NULL: null */
    uint32_t retry_after_s;  /* 0: not known; for 429 and 503 */
    char param[96];          /* "" = null */
    char message[640];
};
/* Fills *err and returns false, so that `return api_fail(...)` reads well. param NULL: none. */
bool api_fail(struct api_error *err, unsigned status, const char *code, const char *param, const char *fmt, ...) SH_PRINTF(5, 6);
/* The engine's and the daemon's codes as HTTP sees them. */
bool api_fail_code(struct api_error *err, enum sh_code code, const char *param, const char *message);

/* What sh_chat_check and sh_chat_apply refuse: the field that the message begins with is the param. */
bool api_fail_chat(struct api_error *err, enum sh_code code, const char *message);

/* Parses a body; NULL: *err says at which line and column. The root must be an object. New reference. */
json_t *api_parse_body(const char *body, size_t length, struct api_error *err);

struct api_prompt { /* text, or token ids if text is NULL */
    char *text;     /* NUL-terminated, may hold NULs; length does not count the last */
    size_t length;
    int32_t *ids;
    uint32_t n_ids;
};

enum api_kind { API_COMPLETIONS, API_CHAT, API_EMBEDDINGS };

struct api_constraint { /* what an answer is held to, for sh_grammar_create; owned */
    enum sh_grammar_kind kind;
    char *text; /* NULL: the kind says all */
    size_t length;
    const char *field; /* that it came in, a constant; for errors */
};

struct api_chat { /* for sh_chat_apply; strings owned, JSON as it came */
    char *messages; /* at least one */
    char *tools;    /* NULL: none */
    enum sh_tool_choice tool_choice;
    char *tool_name;
    char *variables;     /* NULL: none */
    char *template_name; /* NULL: the one that the server uses */
    bool single_call, continue_last, add_generation_prompt /* default true */;
    bool keep_reasoning; /* in the content */
    bool drop_reasoning; /* it is not answered at all */
    bool functions;      /* the tools came as OpenAI's former "functions": calls are answered in that form */
};

struct api_request {
    enum api_kind kind;
    char *model;                /* NULL: none named */
    struct api_prompt *prompts; /* completions and embeddings: at least one */
    uint32_t n_prompts;
    struct api_chat chat;
    struct api_constraint constraint; /* completions and chats */
    char **stops;
    uint32_t n_stops;
    int32_t *stop_tokens; /* not checked against a vocabulary */
    uint32_t n_stop_tokens;
    char **bad_words;
    uint32_t n_bad_words;
    char **dry_breakers; /* the usual ones where nothing was given */
    uint32_t n_dry_breakers;
    struct sh_sampler_params sampler; /* defaults of the product where nothing was given; bias owned; token lists are not filled in */
    struct sh_logit_bias *bias;
    uint32_t n;          /* choices of each prompt */
    uint32_t max_tokens; /* of each choice */
    bool has_max_tokens; /* false: up to the context's end */
    bool has_seed;       /* false: sampler.seed is to be drawn */
    bool stream, include_usage, echo, ignore_eos, logprobs, return_token_ids, tokens_as_ids, special;
    bool add_special;           /* completions and embeddings: BOS as the model wants it; default true */
    uint32_t n_top;             /* with logprobs */
    bool low_priority;          /* all kinds, like the next two */
    bool has_keep_alive;
    int64_t keep_alive_s;       /* as model_keep_alive */
    bool no_reuse, no_speculation;
    char *cache_salt;           /* NULL: none */
    char *session;              /* NULL: none; see session_name_check */
    uint32_t dimensions;        /* embeddings; 0: all */
    bool base64;                /* embeddings: little-endian float32 in base64 */
};
bool api_request_parse(const json_t *body, enum api_kind kind, struct api_request *out, struct api_error *err);
void api_request_finish(struct api_request *request);

struct api_tokenize {
    char *model;
    char *content; /* NUL-terminated, may hold NULs */
    size_t length;
    bool add_special, parse_special;
};
bool api_tokenize_parse(const json_t *body, struct api_tokenize *out, struct api_error *err);
void api_tokenize_finish(struct api_tokenize *request);

struct api_detokenize {
    char *model;
    int32_t *tokens;
    uint32_t n_tokens;
};
bool api_detokenize_parse(const json_t *body, struct api_detokenize *out, struct api_error *err);
void api_detokenize_finish(struct api_detokenize *request);

#endif
