/* params.c - request JSON to structs. */
#include "daemon/http/fields.h"

#include "compute/base.h"
#include "daemon/sessions.h"
#include "daemon/text.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- errors ---- */

bool api_fail(struct api_error *err, unsigned status, const char *code, const char *param, const char *fmt, ...) {
    struct sh_error line; /* sh_fail's rules: one line, cut at a UTF-8 boundary */
    char text[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    sh_fail(&line, SH_ERR_INVALID, "%s", text);
    memset(err, 0, sizeof(*err));
    err->status = status;
    err->type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
    err->code = code;
    snprintf(err->param, sizeof(err->param), "%s", param ? param : "");
    snprintf(err->message, sizeof(err->message), "%s", line.message);
    return false;
}

bool api_fail_code(struct api_error *err, enum sh_code code, const char *param, const char *message) {
    switch (code) {
    case SH_ERR_INVALID: return api_fail(err, 400, "invalid_value", param, "%s", message);
    case SH_ERR_NOT_FOUND: return api_fail(err, 404, "model_not_found", param, "%s", message);
    case SH_ERR_LIMIT: return api_fail(err, 400, "context_length_exceeded", param, "%s", message);
    case SH_ERR_BUSY: return api_fail(err, 429, "queue_full", NULL, "%s", message);
    case SH_ERR_NO_MEMORY:
    case SH_ERR_NO_DEVICE_MEMORY:
    case SH_ERR_NO_PAGES: return api_fail(err, 503, "out_of_memory", NULL, "%s", message);
    case SH_ERR_CANCELLED: return api_fail(err, 503, "cancelled", NULL, "%s", message);
    case SH_ERR_DEVICE:
    case SH_ERR_DEVICE_LOST: return api_fail(err, 503, sh_code_name(code), NULL, "%s", message);
    case SH_ERR_TIMEOUT: return api_fail(err, 503, "deadline_exceeded", NULL, "%s", message);
    default: return api_fail(err, 500, sh_code_name(code), NULL, "%s", message);
    }
}

bool api_fail_chat(struct api_error *err, enum sh_code code, const char *message) {
    const char *colon = strstr(message, ": ");
    char param[sizeof(err->param)] = "messages";
    static const char *const fields[] = {"messages", "tools", "tool_choice", "chat_template_kwargs"};
    for (size_t i = 0; colon && i < SH_COUNT(fields); i++)
        if (strncmp(message, fields[i], strlen(fields[i])) == 0 && (size_t)(colon - message) < sizeof(param))
            snprintf(param, sizeof(param), "%.*s", (int)(colon - message), message);
    return api_fail_code(err, code, param, message);
}

json_t *api_parse_body(const char *body, size_t length, struct api_error *err) {
    json_error_t at;
    json_t *root = json_loadb(body ? body : "", length, JSON_ALLOW_NUL, &at);
    if (!root) {
        if (!length) api_fail(err, 400, "invalid_json", NULL, "the body is empty, expected a JSON object");
        else
            api_fail(err, 400, "invalid_json", NULL, "the body is not valid JSON: %s at line %d, column %d", at.text, at.line,
                     at.column);
        return NULL;
    }
    if (!json_is_object(root)) {
        char buf[128];
        api_fail(err, 400, "invalid_type", NULL, "the body is %s, expected a JSON object", api_found(root, buf, sizeof(buf)));
        json_decref(root);
        return NULL;
    }
    return root;
}

static bool get_model(const json_t *body, char **out, struct api_error *err) {
    const json_t *value = api_field(body, "model");
    if (!value) return true;
    if (!api_copy_string(value, "model", out, err)) return false;
    return **out || api_fail(err, 400, "invalid_value", "model", "model: found an empty string, expected a model's id");
}

/* ---- what changes an answer and is not done here ---- */

enum harmless { ONLY_NULL, FALSE_OR_EMPTY, ZERO, ONE, AS_N };
static const struct unsupported {
    const char *name;
    enum harmless harmless; /* the value, besides null, that has no effect */
    int kinds;              /* 1 completions, 2 chat, 4 embeddings */
} unsupported[] = {
    {"suffix", FALSE_OR_EMPTY, 1},
    {"best_of", AS_N, 3},
    {"tools", FALSE_OR_EMPTY, 1},
    {"functions", FALSE_OR_EMPTY, 1},
    {"audio", ONLY_NULL, 3},
    {"prediction", ONLY_NULL, 3},
    {"web_search_options", ONLY_NULL, 3},
    {"allowed_token_ids", FALSE_OR_EMPTY, 3},
    {"include_stop_str_in_output", FALSE_OR_EMPTY, 3},
    {"use_beam_search", FALSE_OR_EMPTY, 3},
    {"prompt_logprobs", ONLY_NULL, 3},
    {"prompt_embeds", ONLY_NULL, 3},
    {"truncate_prompt_tokens", ONLY_NULL, 7},
    {"structural_tag", ONLY_NULL, 3},
    {"guided_whitespace_pattern", ONLY_NULL, 3},
    {"grammar_lazy", FALSE_OR_EMPTY, 3},
    {"logits_processors", FALSE_OR_EMPTY, 3},
    {"tfs_z", ONE, 3},
    {"top_a", ZERO, 3},
    {"dynatemp_range", ZERO, 3},
    {"documents", FALSE_OR_EMPTY, 2},
    {"thinking_token_budget", ONLY_NULL, 2},
    {"lora", FALSE_OR_EMPTY, 7},
};

static bool is_harmless(const json_t *value, enum harmless harmless, uint32_t n) {
    switch (harmless) {
    case ONLY_NULL: return false;
    case FALSE_OR_EMPTY:
        return json_is_false(value) || (json_is_string(value) && !json_string_length(value)) ||
               (json_is_array(value) && !json_array_size(value));
    case ZERO: return json_is_number(value) && json_number_value(value) == 0;
    case ONE: return json_is_number(value) && json_number_value(value) == 1;
    case AS_N: return json_is_integer(value) && json_integer_value(value) == (json_int_t)n;
    }
    return false;
}

static bool check_unsupported(const json_t *body, enum api_kind kind, uint32_t n, struct api_error *err) {
    char buf[128];
    for (size_t i = 0; i < SH_COUNT(unsupported); i++) {
        const struct unsupported *u = &unsupported[i];
        const json_t *value = api_field(body, u->name);
        if (value && (u->kinds & 1 << kind) && !is_harmless(value, u->harmless, n))
            return api_fail(err, 400, "unsupported_parameter", u->name,
                            "%s: found %s; this server does not do that, leave it out%s", u->name, api_found(value, buf, sizeof(buf)),
                            u->harmless == AS_N ? " or make it equal to n" : "");
    }
    const json_t *modalities = api_field(body, "modalities");
    size_t i;
    json_t *modality;
    json_array_foreach(modalities, i, modality) if (!json_is_string(modality) ||
                                                    strcmp(json_string_value(modality), "text") !=
                                                        0) return api_fail(err, 400, "unsupported_parameter", "modalities",
                                                                           "modalities: found %s; this server does only \"text\"",
                                                                           api_found(modality, buf, sizeof(buf)));
    return true;
}

/* ---- parts of a generation request ---- */

static bool parse_stops(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *stop = api_field(body, "stop");
    if (!stop) return true;
    bool array = json_is_array(stop);
    size_t n = array ? json_array_size(stop) : 1;
    if (!array && !json_is_string(stop)) return api_wrong(err, "stop", stop, "a string or an array of strings");
    if (n > API_STOPS_MAX)
        return api_fail(err, 400, "invalid_value", "stop", "stop: found %zu strings, expected at most %d", n, API_STOPS_MAX);
    if (n && !(out->stops = sh_calloc(n, sizeof(*out->stops)))) return api_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        char at[32] = "stop";
        if (array) snprintf(at, sizeof(at), "stop[%zu]", i);
        if (!api_copy_string(array ? json_array_get(stop, i) : stop, at, &out->stops[i], err)) return false;
        out->n_stops++;
        if (!out->stops[i][0])
            return api_fail(err, 400, "invalid_value", at, "%s: found an empty string, expected a text to stop at", at);
    }
    return true;
}

/* The array `name` of at most `most` strings, each with something else than spaces. */
static bool parse_texts(const json_t *body, const char *name, size_t most, char ***out, uint32_t *count, struct api_error *err) {
    const json_t *array = api_field(body, name);
    if (!array) return true;
    if (!json_is_array(array)) return api_wrong(err, name, array, "an array of strings");
    size_t n = json_array_size(array);
    if (n > most) return api_fail(err, 400, "invalid_value", name, "%s: found %zu strings, expected at most %zu", name, n, most);
    if (n && !(*out = sh_calloc(n, sizeof(**out)))) return api_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        char at[64];
        snprintf(at, sizeof(at), "%s[%zu]", name, i);
        if (!api_copy_string(json_array_get(array, i), at, &(*out)[i], err)) return false;
        (*count)++;
        if (!(*out)[i][strspn((*out)[i], " ")])
            return api_fail(err, 400, "invalid_value", at, "%s: found nothing but spaces, expected a text", at);
    }
    return true;
}

static bool parse_bias(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *map = api_field(body, "logit_bias");
    if (!map) return true;
    if (!json_is_object(map)) return api_wrong(err, "logit_bias", map, "an object from token ids to numbers");
    if (!json_object_size(map)) return true;
    if (!(out->bias = sh_calloc(json_object_size(map), sizeof(*out->bias)))) return api_no_memory(err);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value) {
        char at[96], *end;
        long id = strtol(key, &end, 10);
        snprintf(at, sizeof(at), "logit_bias[\"%.40s\"]", key);
        if (*key < '0' || *key > '9' || *end || id < 0 || id > INT32_MAX)
            return api_fail(err, 400, "invalid_value", "logit_bias",
                            "logit_bias: found the key \"%.40s\", expected token ids as keys", key);
        if (!json_is_number(value)) return api_wrong(err, at, value, "a number from -100 to 100");
        double bias = json_number_value(value);
        if (!(bias >= -100 && bias <= 100)) return api_out_of_range(err, at, value, "a number from -100 to 100");
        out->bias[out->sampler.n_bias++] = (struct sh_logit_bias){(int32_t)id, bias <= -100 ? -INFINITY : (float)bias};
    }
    out->sampler.bias = out->bias;
    return true;
}

static bool parse_breakers(const json_t *body, struct api_request *out, struct api_error *err) {
    static const char *const usual[] = {"\n", ":", "\"", "*"};
    if (api_field(body, "dry_sequence_breakers"))
        return parse_texts(body, "dry_sequence_breakers", API_BREAKERS_MAX, &out->dry_breakers, &out->n_dry_breakers, err);
    if (!(out->dry_breakers = sh_calloc(SH_COUNT(usual), sizeof(*out->dry_breakers)))) return api_no_memory(err);
    for (size_t i = 0; i < SH_COUNT(usual); i++)
        if (!(out->dry_breakers[out->n_dry_breakers++] = strdup(usual[i]))) return api_no_memory(err);
    return true;
}

/* Where zero means something to a client and "the default" or "off" to the sampler, the next best number stands for it. */
static bool parse_chain(const json_t *body, struct api_request *out, struct api_error *err) {
    struct sh_sampler_params *s = &out->sampler;
    int64_t last_n = -1, mirostat = 0;
    s->xtc_threshold = 0.1f;
    s->dry_base = 1.75f;
    s->dry_allowed_length = 2;
    s->mirostat_tau = 5;
    s->mirostat_eta = 0.1f;
    s->typical_p = 1;
    if (!api_get_number(body, "top_n_sigma", -1, 1000, &s->top_n_sigma, err) ||
        !api_get_number(body, "typical_p", 0, 1, &s->typical_p, err) ||
        !api_get_number(body, "xtc_probability", 0, 1, &s->xtc_probability, err) ||
        !api_get_number(body, "xtc_threshold", 0, 1, &s->xtc_threshold, err) ||
        !api_get_number(body, "dry_multiplier", 0, 100, &s->dry_multiplier, err) ||
        !api_get_number(body, "dry_base", 1, 100, &s->dry_base, err) ||
        !api_get_count(body, "dry_allowed_length", 1, INT32_MAX, &s->dry_allowed_length, err) ||
        !api_get_integer(body, "dry_penalty_last_n", -1, INT32_MAX, &last_n, err) || !parse_breakers(body, out, err) ||
        !api_get_integer(body, "mirostat", 0, 2, &mirostat, err) || !api_get_number(body, "mirostat_tau", 0, 100, &s->mirostat_tau, err) ||
        !api_get_number(body, "mirostat_eta", 0, 100, &s->mirostat_eta, err) ||
        !api_get_count(body, "min_tokens", 0, INT32_MAX, &s->min_tokens, err) ||
        !parse_texts(body, "bad_words", API_WORDS_MAX, &out->bad_words, &out->n_bad_words, err))
        return false;
    if (mirostat == 1) return api_out_of_range(err, "mirostat", api_field(body, "mirostat"), "0 or 2");
    s->mirostat = (uint32_t)mirostat;
    if (s->top_n_sigma < 0) s->top_n_sigma = 0;
    if (s->typical_p < 1e-6f) s->typical_p = 1e-6f;
    if (s->xtc_threshold < 1e-30f) s->xtc_threshold = 1e-30f;
    if (s->mirostat_tau < 1e-30f) s->mirostat_tau = 1e-30f;
    if (s->mirostat_eta < 1e-30f) s->mirostat_eta = 1e-30f;
    if (last_n == 0) s->dry_multiplier = 0;
    s->dry_penalty_last_n = last_n < 0 ? 0 : (uint32_t)last_n;
    return true;
}

static bool parse_stop_tokens(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *ids = api_field(body, "stop_token_ids");
    if (!ids) return true;
    if (!json_is_array(ids)) return api_wrong(err, "stop_token_ids", ids, "an array of token ids");
    if (json_array_size(ids) > API_STOP_TOKENS_MAX)
        return api_fail(err, 400, "invalid_value", "stop_token_ids", "stop_token_ids: found %zu token ids, expected at most %d",
                        json_array_size(ids), API_STOP_TOKENS_MAX);
    return api_copy_ids(ids, "stop_token_ids", &out->stop_tokens, &out->n_stop_tokens, err);
}

static bool parse_sampling(const json_t *body, struct api_request *out, struct api_error *err) {
    struct sh_sampler_params *s = &out->sampler;
    *s = (struct sh_sampler_params){
        .size = sizeof(*s), .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1};
    int64_t top_k = s->top_k, last_n = 64, seed = -1;
    if (!api_get_number(body, "temperature", 0, 100, &s->temperature, err) || !api_get_number(body, "top_p", 0, 1, &s->top_p, err) ||
        !api_get_number(body, "min_p", 0, 1, &s->min_p, err) || !api_get_integer(body, "top_k", -1, INT32_MAX, &top_k, err) ||
        !api_get_number(body, "repetition_penalty", 0.01, 100, &s->repeat_penalty, err) ||
        !api_get_number(body, "repeat_penalty", 0.01, 100, &s->repeat_penalty, err) ||
        !api_get_integer(body, "repeat_last_n", -1, INT32_MAX, &last_n, err) ||
        !api_get_number(body, "frequency_penalty", -2, 2, &s->frequency_penalty, err) ||
        !api_get_number(body, "presence_penalty", -2, 2, &s->presence_penalty, err) ||
        !api_get_integer(body, "seed", INT64_MIN, INT64_MAX, &seed, err) || !parse_bias(body, out, err) ||
        !parse_chain(body, out, err) || !parse_stop_tokens(body, out, err))
        return false;
    s->top_k = top_k < 0 ? 0 : (uint32_t)top_k;
    if (api_field(body, "top_p") && s->top_p < 1e-6f)
        s->top_p = 1e-6f; /* zero is "off" to the sampler, and "only the best" to a client */
    if (last_n == 0) s->repeat_penalty = 1;
    s->repeat_last_n = last_n < 0 ? UINT32_MAX : (uint32_t)last_n;
    out->has_seed = seed != -1; /* -1 asks for a random one, as llama.cpp's clients do */
    s->seed = (uint64_t)seed;
    return true;
}

static bool parse_limits(const json_t *body, struct api_request *out, struct api_error *err) {
    int64_t max_tokens = -1;
    if (!api_get_integer(body, "max_tokens", -1, INT32_MAX, &max_tokens, err) ||
        !api_get_integer(body, "max_completion_tokens", -1, INT32_MAX, &max_tokens, err))
        return false;
    if (out->kind == API_COMPLETIONS && !api_field(body, "max_tokens") && !api_field(body, "max_completion_tokens")) max_tokens = 16;
    if (out->kind == API_CHAT && max_tokens == 0)
        return api_fail(err, 400, "invalid_value", "max_tokens", "max_tokens: found 0, expected at least 1");
    out->has_max_tokens = max_tokens >= 0;
    out->max_tokens = max_tokens < 0 ? 0 : (uint32_t)max_tokens;
    return true;
}

static bool parse_logprobs(const json_t *body, struct api_request *out, struct api_error *err) {
    if (out->kind == API_COMPLETIONS) {
        out->logprobs = api_field(body, "logprobs") != NULL;
        return api_get_count(body, "logprobs", 0, API_TOP_MAX, &out->n_top, err);
    }
    if (!api_get_bool(body, "logprobs", &out->logprobs, err) || !api_get_count(body, "top_logprobs", 0, API_TOP_MAX, &out->n_top, err))
        return false;
    if (out->n_top && !out->logprobs)
        return api_fail(err, 400, "invalid_value", "top_logprobs",
                        "top_logprobs: found %u without \"logprobs\": true, expected both", out->n_top);
    return true;
}

static bool parse_prompt(const json_t *value, const char *param, struct api_prompt *out, struct api_error *err) {
    if (json_is_array(value))
        return json_array_size(value)
                   ? api_copy_ids(value, param, &out->ids, &out->n_ids, err)
                   : api_fail(err, 400, "invalid_value", param, "%s: found an empty array, expected token ids", param);
    return api_copy_text(value, param, &out->text, &out->length, err);
}

/* The field `name`: one text or list of token ids, or an array of up to `most` of one kind. */
static bool parse_prompts(const json_t *body, const char *name, size_t most, struct api_request *out, struct api_error *err) {
    const json_t *prompt = api_field(body, name), *first = json_array_get(prompt, 0);
    if (!json_is_string(prompt) && !json_is_array(prompt))
        return api_wrong(err, name, prompt, "a string, token ids, or an array of either");
    bool many = json_is_string(first) || json_is_array(first);
    size_t n = many ? json_array_size(prompt) : 1;
    if (n > most)
        return api_fail(err, 400, "invalid_value", name, "%s: found %zu %ss, expected at most %zu", name, n, name, most);
    if (!(out->prompts = sh_calloc(n, sizeof(*out->prompts)))) return api_no_memory(err);
    out->n_prompts = (uint32_t)n;
    if (!many) return parse_prompt(prompt, name, &out->prompts[0], err);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(prompt, i);
        char at[32], expected[64];
        snprintf(at, sizeof(at), "%s[%zu]", name, i);
        snprintf(expected, sizeof(expected), "%s, like %s[0]", json_is_string(first) ? "a string" : "an array of token ids", name);
        if (json_is_string(first) != json_is_string(one) || json_is_array(first) != json_is_array(one))
            return api_wrong(err, at, one, expected);
        if (!parse_prompt(one, at, &out->prompts[i], err)) return false;
    }
    return true;
}

static bool parse_stream(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *options = api_field(body, "stream_options");
    if (!api_get_bool(body, "stream", &out->stream, err)) return false;
    if (!options) return true;
    if (!json_is_object(options)) return api_wrong(err, "stream_options", options, "an object");
    if (!out->stream)
        return api_fail(err, 400, "invalid_value", "stream_options",
                        "stream_options: found without \"stream\": true, expected only with it");
    if (!api_get_bool(options, "include_usage", &out->include_usage, err)) {
        snprintf(err->param, sizeof(err->param), "stream_options.include_usage");
        return false;
    }
    return true;
}

/* How urgent it is, and how long its model is to stay. */
static bool parse_service(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *tier = api_field(body, "service_tier"), *priority = api_field(body, "priority"), *keep = api_field(body, "keep_alive");
    static const char expected[] = "seconds, or a time such as \"5m\"";
    int64_t number = 0;
    if (tier && !json_is_string(tier)) return api_wrong(err, "service_tier", tier, "a string");
    if (tier) out->low_priority = strcmp(json_string_value(tier), "flex") == 0;
    if (json_is_integer(priority)) { /* vLLM's: what is lower comes first, and 0 is usual */
        out->low_priority = json_integer_value(priority) > 0;
    } else if (priority) {
        const char *word = json_string_value(priority);
        if (!word) return api_wrong(err, "priority", priority, "\"normal\", \"low\" or an integer");
        if (strcmp(word, "normal") != 0 && strcmp(word, "low") != 0)
            return api_out_of_range(err, "priority", priority, "\"normal\", \"low\" or an integer");
        out->low_priority = strcmp(word, "low") == 0;
    }
    if (!keep) return true;
    out->has_keep_alive = true;
    if (json_is_string(keep))
        return (strlen(json_string_value(keep)) == json_string_length(keep) && text_duration(json_string_value(keep), &out->keep_alive_s)) ||
               api_out_of_range(err, "keep_alive", keep, expected);
    if (!json_is_number(keep)) return api_wrong(err, "keep_alive", keep, expected);
    const double seconds = json_number_value(keep);
    number = seconds < 0 ? -1 : seconds > 1e9 ? 1000000000 : (int64_t)ceil(seconds);
    out->keep_alive_s = number;
    return true;
}

/* What is shared with other requests, and what is left for later ones. */
static bool parse_sharing(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *salt = api_field(body, "cache_salt"), *session = api_field(body, "session");
    bool cache_prompt = true, speculation = true;
    struct sh_error why;
    if (!api_get_bool(body, "cache_prompt", &cache_prompt, err) || !api_get_bool(body, "speculation", &speculation, err) ||
        (salt && !api_copy_string(salt, "cache_salt", &out->cache_salt, err)) ||
        (session && !api_copy_string(session, "session", &out->session, err)))
        return false;
    out->no_reuse = !cache_prompt;
    out->no_speculation = !speculation;
    if (out->cache_salt && !*out->cache_salt)
        return api_fail(err, 400, "invalid_value", "cache_salt", "cache_salt: found an empty string, expected a text");
    if (out->session && session_name_check(out->session, &why) != SH_OK)
        return api_fail(err, 400, "invalid_value", "session", "session: %s", why.message);
    return true;
}

static bool parse_embeddings(const json_t *body, struct api_request *out, struct api_error *err) {
    const json_t *format = api_field(body, "encoding_format");
    const char *text = json_string_value(format);
    if (format && !text) return api_wrong(err, "encoding_format", format, "\"float\" or \"base64\"");
    if (format && strcmp(text, "float") != 0 && strcmp(text, "base64") != 0)
        return api_out_of_range(err, "encoding_format", format, "\"float\" or \"base64\"");
    out->base64 = format && strcmp(text, "base64") == 0;
    if (!get_model(body, &out->model, err) || !check_unsupported(body, API_EMBEDDINGS, 1, err) || !parse_service(body, out, err) ||
        !api_get_count(body, "dimensions", 1, INT32_MAX, &out->dimensions, err) ||
        !api_get_bool(body, "add_special_tokens", &out->add_special, err) ||
        !parse_prompts(body, "input", API_INPUTS_MAX, out, err))
        return false;
    for (uint32_t i = 0; i < out->n_prompts; i++) {
        char at[32] = "input";
        if (out->n_prompts > 1) snprintf(at, sizeof(at), "input[%u]", i);
        if (out->prompts[i].text && out->prompts[i].length == 0)
            return api_fail(err, 400, "invalid_value", at, "%s: found an empty string, expected a text", at);
    }
    return true;
}

bool api_request_parse(const json_t *body, enum api_kind kind, struct api_request *out, struct api_error *err) {
    *out = (struct api_request){.kind = kind, .n = 1, .add_special = true};
    bool skip_special = true;
    if (kind == API_EMBEDDINGS) return parse_embeddings(body, out, err);
    if (!get_model(body, &out->model, err) || !api_get_count(body, "n", 1, API_CHOICES_MAX, &out->n, err) ||
        !check_unsupported(body, kind, out->n, err))
        return false;
    if (!api_constraint_parse(body, out, err) ||
        !(kind == API_CHAT ? api_chat_parse(body, out, err) : parse_prompts(body, "prompt", API_PROMPTS_MAX, out, err)))
        return false;
    if (!parse_stream(body, out, err) || !parse_stops(body, out, err) || !parse_sampling(body, out, err) ||
        !parse_limits(body, out, err) || !parse_logprobs(body, out, err) || !parse_service(body, out, err) ||
        !parse_sharing(body, out, err) ||
        !api_get_bool(body, "ignore_eos", &out->ignore_eos, err) ||
        !api_get_bool(body, "return_token_ids", &out->return_token_ids, err) ||
        !api_get_bool(body, "return_tokens_as_token_ids", &out->tokens_as_ids, err) ||
        !api_get_bool(body, "skip_special_tokens", &skip_special, err))
        return false;
    out->special = !skip_special;
    return kind == API_CHAT ||
           (api_get_bool(body, "echo", &out->echo, err) && api_get_bool(body, "add_special_tokens", &out->add_special, err));
}

void api_request_finish(struct api_request *request) {
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        free(request->prompts[i].text);
        free(request->prompts[i].ids);
    }
    for (uint32_t i = 0; i < request->n_stops; i++) free(request->stops[i]);
    for (uint32_t i = 0; i < request->n_bad_words; i++) free(request->bad_words[i]);
    for (uint32_t i = 0; i < request->n_dry_breakers; i++) free(request->dry_breakers[i]);
    free(request->bad_words);
    free(request->dry_breakers);
    free(request->stop_tokens);
    free(request->prompts);
    free(request->constraint.text);
    api_chat_finish(&request->chat);
    free(request->stops);
    free(request->bias);
    free(request->model);
    free(request->cache_salt);
    free(request->session);
    memset(request, 0, sizeof(*request));
}

/* ---- tokenize, detokenize ---- */

bool api_tokenize_parse(const json_t *body, struct api_tokenize *out, struct api_error *err) {
    *out = (struct api_tokenize){.parse_special = true};
    const json_t *content = json_object_get(body, "content");
    return get_model(body, &out->model, err) && api_get_bool(body, "add_special", &out->add_special, err) &&
           api_get_bool(body, "parse_special", &out->parse_special, err) &&
           api_copy_text(content, "content", &out->content, &out->length, err);
}

void api_tokenize_finish(struct api_tokenize *request) {
    free(request->model);
    free(request->content);
    memset(request, 0, sizeof(*request));
}

bool api_detokenize_parse(const json_t *body, struct api_detokenize *out, struct api_error *err) {
    *out = (struct api_detokenize){0};
    const json_t *tokens = json_object_get(body, "tokens");
    if (!get_model(body, &out->model, err)) return false;
    if (!json_is_array(tokens)) return api_wrong(err, "tokens", tokens, "an array of token ids");
    return api_copy_ids(tokens, "tokens", &out->tokens, &out->n_tokens, err);
}

void api_detokenize_finish(struct api_detokenize *request) {
    free(request->model);
    free(request->tokens);
    memset(request, 0, sizeof(*request));
}
