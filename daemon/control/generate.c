/*
 * generate.c - Generate and Cancel. A call goes through: load (if need be), tokenising, submission, events until the last. The
 * registry's and the runner's threads only leave word with call_post; tokenising happens in work.h's threads, everything else in
 * main's.
 */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/generation.h"
#include "daemon/limits.h"
#include "daemon/sessions.h"
#include "daemon/text.h"
#include "daemon/work.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

struct input { /* parameters as they came; JSON is lent by the call */
    const char *model;
    json_t *prompt, *prompt_tokens, *logit_bias, *stop, *stop_token_ids, *bad_words, *dry_sequence_breakers;
    json_t *grammar, *json_schema, *regex, *choices; /* at most one of them */
    bool add_special, parse_special, ignore_eos, special, cache_prompt, speculation;
    const char *cache_salt, *session;
    struct call_service service;
    int64_t max_tokens, n, top_k, repeat_last_n, seed, logprobs, dry_allowed_length, dry_penalty_last_n, mirostat, min_tokens;
    double temperature, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty, timeout_seconds;
    double top_n_sigma, typical_p, xtc_probability, xtc_threshold, dry_multiplier, dry_base, mirostat_tau, mirostat_eta;
};

struct constraint { /* the parameter that says what the text is held to; name NULL: none */
    const char *name;
    json_t *value; /* lent by the call */
    enum sh_grammar_kind kind;
};

struct collected { /* of one choice */
    char *text;
    size_t length, capacity;
    json_t *tokens;
    json_t *finished; /* a Choice, without text and tokens */
};

struct generate_state {
    struct input in;
    struct constraint constraint;
    bool seeded; /* by the caller */
    uint64_t started_ns, deadline_ns;
    pthread_t caller;
    struct call *call;
    struct load *load;
    struct generation
        *generation; /* main's thread only, like all that follows; NULL before submission and after the last event */
    uint64_t id;
    struct call_wait wait; /* until submission */
    struct model *model;
    struct collected *choices; /* [n] */

    struct work work; /* makes the next four of model, prompt and what the text is held to */
    const struct sh_vocab *vocab;
    struct sh_grammar *grammar; /* NULL: none */
    int32_t *ids; /* NULL: text_err, or the prompt came as tokens */
    size_t n_ids;
    struct sh_error text_err; /* code SH_OK: none */
    const char *wrong;        /* the parameter that text_err is about, if it is about one */
    bool text_begun;          /* main's */
    atomic_bool text_done;    /* the above is there */

    pthread_mutex_t lock;
    bool load_done;   /* lock, as are the following */
    uint64_t load_ns; /* 0: it was ready */
    enum sh_code load_code;
    struct sh_error load_err;
    struct model *loaded; /* held for us */
};

static void free_generate(struct call *call) {
    struct generate_state *state = call->state;
    load_release(state->load);
    sh_grammar_unref(state->grammar); /* before the model, whose vocabulary it needs */
    model_unref(state->model);
    model_unref(state->loaded);
    for (int64_t i = 0; state->choices && i < state->in.n; i++) {
        free(state->choices[i].text);
        json_decref(state->choices[i].tokens);
        json_decref(state->choices[i].finished);
    }
    free(state->choices);
    free(state->ids);
    pthread_mutex_destroy(&state->lock);
    free(state);
}

/* ---- parameters -------------------------------------------------------------------------------------- */

#define AT(member) offsetof(struct input, member)
static const struct field fields[] = {
    {"model", FIELD_STRING, AT(model), true, 0, 0},
    {"prompt", FIELD_TEXT, AT(prompt), false, 0, 0},
    {"prompt_tokens", FIELD_ARRAY, AT(prompt_tokens), false, 0, 0},
    {"add_special", FIELD_BOOL, AT(add_special), false, 0, 0},
    {"parse_special", FIELD_BOOL, AT(parse_special), false, 0, 0},
    {"max_tokens", FIELD_INT, AT(max_tokens), false, 1, INT32_MAX},
    {"n", FIELD_INT, AT(n), false, 1, 1024},
    {"temperature", FIELD_FLOAT, AT(temperature), false, 0, 100},
    {"top_k", FIELD_INT, AT(top_k), false, 0, INT32_MAX},
    {"top_p", FIELD_FLOAT, AT(top_p), false, 0, 1},
    {"min_p", FIELD_FLOAT, AT(min_p), false, 0, 1},
    {"repeat_penalty", FIELD_FLOAT, AT(repeat_penalty), false, 0, 100},
    {"repeat_last_n", FIELD_INT, AT(repeat_last_n), false, 0, INT32_MAX},
    {"frequency_penalty", FIELD_FLOAT, AT(frequency_penalty), false, -100, 100},
    {"presence_penalty", FIELD_FLOAT, AT(presence_penalty), false, -100, 100},
    {"seed", FIELD_INT, AT(seed), false, 0, 9223372036854775807.0},
    {"logit_bias", FIELD_ARRAY, AT(logit_bias), false, 0, 0},
    {"stop", FIELD_ARRAY, AT(stop), false, 0, 0},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos), false, 0, 0},
    {"special", FIELD_BOOL, AT(special), false, 0, 0},
    {"logprobs", FIELD_INT, AT(logprobs), false, 0, 20},
    {"timeout_seconds", FIELD_FLOAT, AT(timeout_seconds), false, 0.001, 1e9},
    {"top_n_sigma", FIELD_FLOAT, AT(top_n_sigma), false, 0, 1000},
    {"typical_p", FIELD_FLOAT, AT(typical_p), false, 0, 1},
    {"xtc_probability", FIELD_FLOAT, AT(xtc_probability), false, 0, 1},
    {"xtc_threshold", FIELD_FLOAT, AT(xtc_threshold), false, 1e-6, 1},
    {"dry_multiplier", FIELD_FLOAT, AT(dry_multiplier), false, 0, 100},
    {"dry_base", FIELD_FLOAT, AT(dry_base), false, 1, 100},
    {"dry_allowed_length", FIELD_INT, AT(dry_allowed_length), false, 1, INT32_MAX},
    {"dry_penalty_last_n", FIELD_INT, AT(dry_penalty_last_n), false, 0, INT32_MAX},
    {"dry_sequence_breakers", FIELD_ARRAY, AT(dry_sequence_breakers), false, 0, 0},
    {"mirostat", FIELD_INT, AT(mirostat), false, 0, 2},
    {"mirostat_tau", FIELD_FLOAT, AT(mirostat_tau), false, 1e-6, 100},
    {"mirostat_eta", FIELD_FLOAT, AT(mirostat_eta), false, 1e-6, 100},
    {"min_tokens", FIELD_INT, AT(min_tokens), false, 0, INT32_MAX},
    {"stop_token_ids", FIELD_ARRAY, AT(stop_token_ids), false, 0, 0},
    {"bad_words", FIELD_ARRAY, AT(bad_words), false, 0, 0},
    {"grammar", FIELD_TEXT, AT(grammar), false, 0, 0},
    {"json_schema", FIELD_OBJECT, AT(json_schema), false, 0, 0},
    {"regex", FIELD_TEXT, AT(regex), false, 0, 0},
    {"choices", FIELD_ARRAY, AT(choices), false, 0, 0},
    {"priority", FIELD_STRING, AT(service.priority), false, 0, 0},
    {"keep_alive", FIELD_STRING, AT(service.keep_alive), false, 0, 0},
    {"cache_prompt", FIELD_BOOL, AT(cache_prompt), false, 0, 0},
    {"cache_salt", FIELD_STRING, AT(cache_salt), false, 0, 0},
    {"session", FIELD_STRING, AT(session), false, 0, 0},
    {"speculation", FIELD_BOOL, AT(speculation), false, 0, 0},
};

static struct sh_logit_bias *read_bias(struct call *call, json_t *array, uint32_t *count) {
    size_t n = json_array_size(array);
    struct sh_logit_bias *bias = sh_calloc(n + 1, sizeof *bias);
    for (size_t i = 0; bias && i < n; i++) {
        const json_t *item = json_array_get(array, i), *token = json_object_get(item, "token"),
                     *value = json_object_get(item, "bias");
        json_int_t id = json_integer_value(token);
        if (!json_is_integer(token) || id < 0 || id > INT32_MAX || !json_is_number(value)) {
            call_invalid_parameter(call, "logit_bias", "logit_bias: element %zu is not {\"token\": id, \"bias\": number}", i);
            free(bias);
            return NULL;
        }
        bias[i] = (struct sh_logit_bias){(int32_t)id, (float)json_number_value(value)};
    }
    if (!bias) call_invalid_parameter(call, "logit_bias", "logit_bias: no memory");
    *count = (uint32_t)n;
    return bias;
}

/* Strings that are not empty; NULL: answered. They are lent by the array. */
static const char **read_texts(struct call *call, const char *name, json_t *array, uint32_t *count) {
    size_t n = json_array_size(array);
    const char **texts = sh_calloc(n + 1, sizeof *texts);
    for (size_t i = 0; texts && i < n; i++) {
        const json_t *text = json_array_get(array, i);
        texts[i] = json_string_value(text);
        if (!texts[i] || !*texts[i] || strlen(texts[i]) != json_string_length(text)) {
            call_invalid_parameter(call, name, "%s: element %zu is not a string of at least one character, without NULs", name, i);
            free(texts);
            return NULL;
        }
    }
    if (!texts) call_invalid_parameter(call, name, "%s: no memory", name);
    *count = (uint32_t)n;
    return texts;
}

/* ---- events ------------------------------------------------------------------------------------------ */

static void notify(void *user) { call_post(user); }

static json_t *choice_json(const struct generate_state *state, const struct gen_event *event) {
    json_t *stop = event->stop_index >= 0 ? json_incref(json_array_get(state->in.stop, (size_t)event->stop_index)) : json_null();
    return json_pack("{si ss so}", "choice", event->choice, "finish_reason", gen_finish_name(event->finish), "stop", stop);
}

static void add_logprobs(const struct generate_state *state, json_t *out, const struct gen_logprob *logprob) {
    json_t *top = json_array();
    for (uint32_t i = 0; i < logprob->n_top; i++) {
        size_t length;
        const char *piece = sh_vocab_piece(state->vocab, logprob->top[i].token, true, &length);
        json_array_append_new(top, json_pack("{si so sf}", "token", logprob->top[i].token, "text", json_bytes(piece, length),
                                             "logprob", (double)logprob->top[i].logprob));
    }
    json_object_set_new(out, "logprob", json_real((double)logprob->logprob));
    json_object_set_new(out, "top", top);
}

static void collect(struct generate_state *state, const struct gen_event *event) {
    struct collected *choice = &state->choices[event->choice];
    if (event->kind == GEN_EVENT_TOKEN) json_array_append_new(choice->tokens, json_integer(event->token));
    size_t need = choice->length + event->text_length;
    if (need > choice->capacity) {
        size_t capacity = need * 2;
        char *text = realloc(choice->text, capacity);
        if (!text) {
            gen_cancel(state->generation, "no memory");
            return;
        }
        choice->text = text;
        choice->capacity = capacity;
    }
    if (event->text_length) memcpy(choice->text + choice->length, event->text, event->text_length);
    choice->length = need;
}

static json_t *timings_json(const struct gen_usage *u) {
    double prefill_s = (double)u->prefill_ns / 1e9, decode_s = (double)u->decode_ns / 1e9;
    uint32_t computed = u->prompt_tokens - u->cached_tokens;
    return json_pack("{sf sf sf sf sf sf sf}", "queued_ms", (double)u->queued_ns / 1e6, "load_ms", (double)u->load_ns / 1e6,
                     "prefill_ms", (double)u->prefill_ns / 1e6, "first_token_ms", (double)u->first_token_ns / 1e6, "decode_ms",
                     (double)u->decode_ns / 1e6, "prompt_per_second", prefill_s > 0 ? computed / prefill_s : 0.0,
                     "generated_per_second",
                     decode_s > 0 && u->completion_tokens > 1 ? (u->completion_tokens - 1) / decode_s : 0.0);
}

static void finish(struct call *call, const struct gen_event *event) {
    struct generate_state *state = call->state;
    json_int_t id = (json_int_t)state->id;
    if (event->finish == GEN_CANCELLED) {
        call_cancelled(call, state->id, event->error.message);
        return;
    }
    if (event->finish == GEN_FAILED && event->error.code == SH_ERR_BUSY) { /* it waited for a load, and found the queue full */
        call_submit_error(call, state->in.model, SH_ERR_BUSY, event->error.message);
        return;
    }
    if (event->finish == GEN_FAILED) {
        call_error(call, "GenerationFailed",
                   json_pack("{sI ss ss}", "id", id, "code", sh_code_name(event->error.code), "message", event->error.message));
        return;
    }
    json_t *choices = json_array();
    for (int64_t i = 0; i < state->in.n; i++) {
        struct collected *choice = &state->choices[i];
        if (!choice->finished) continue;
        if (!call->more) {
            json_object_set_new(choice->finished, "text", json_bytes(choice->text ? choice->text : "", choice->length));
            json_object_set(choice->finished, "tokens", choice->tokens);
        }
        json_array_append(choices, choice->finished);
    }
    struct gen_usage usage;
    gen_get_usage(state->generation, &usage);
    json_t *out =
        json_pack("{sI so so so}", "id", id, "choices", choices, "usage", usage_json(&usage), "timings", timings_json(&usage));
    if (!call->more) json_object_set_new(out, "seed", json_integer(state->in.seed));
    call_reply(call, out, false);
}

/* True: the last event. */
static bool take_event(struct call *call, const struct gen_event *event) {
    struct generate_state *state = call->state;
    json_int_t id = (json_int_t)state->id;
    switch (event->kind) {
    case GEN_EVENT_STARTED:
    case GEN_EVENT_PROMPT:
    case GEN_EVENT_EMBEDDING: break;
    case GEN_EVENT_TOKEN:
        if (call->more) {
            json_t *out = json_pack("{sI si si so}", "id", id, "choice", event->choice, "token", event->token, "text",
                                    json_bytes(event->text, event->text_length));
            if (event->logprob) add_logprobs(state, out, event->logprob);
            call_reply(call, out, true);
        } else {
            collect(state, event);
        }
        break;
    case GEN_EVENT_CHOICE:
        state->choices[event->choice].finished = choice_json(state, event);
        if (call->more)
            call_reply(call,
                       json_pack("{sI si so sO}", "id", id, "choice", event->choice, "text",
                                 json_bytes(event->text, event->text_length), "finished", state->choices[event->choice].finished),
                       true);
        else collect(state, event);
        break;
    case GEN_EVENT_END: finish(call, event); return true;
    }
    return false;
}

/* ---- submission -------------------------------------------------------------------------------------- */

static void load_done(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct call *call = user;
    struct generate_state *state = call->state;
    pthread_mutex_lock(&state->lock);
    state->load_done = true;
    /* A ready model is handed over within model_load, any other by the loader's thread. */
    state->load_ns = pthread_equal(pthread_self(), state->caller) ? 0 : sh_now_ns() - state->started_ns;
    state->load_code = code;
    state->loaded = model;
    if (err) state->load_err = *err;
    pthread_mutex_unlock(&state->lock);
    call_post(call);
    call_unref(call); /* the registry's */
}

/* False: there are two, answered. */
static bool find_constraint(struct call *call, const struct input *in, struct constraint *out) {
    const struct constraint all[] = {{"grammar", in->grammar, SH_GRAMMAR_GBNF},
                                     {"json_schema", in->json_schema, SH_GRAMMAR_SCHEMA},
                                     {"regex", in->regex, SH_GRAMMAR_REGEX},
                                     {"choices", in->choices, SH_GRAMMAR_CHOICE}};
    *out = (struct constraint){0};
    for (size_t i = 0; i < SH_COUNT(all); i++) {
        if (!all[i].value) continue;
        if (out->name) {
            call_invalid_parameter(call, all[i].name, "%s, %s: at most one of the two may be given", out->name, all[i].name);
            return false;
        }
        *out = all[i];
    }
    return true;
}

static enum sh_code compile(struct generate_state *state) {
    const struct constraint c = state->constraint;
    if (!c.name) return SH_OK;
    const bool plain = json_is_string(c.value);
    char *text = plain ? NULL : json_exact(c.value);
    if (!plain && !text) return sh_fail(&state->text_err, SH_ERR_NO_MEMORY, "no memory for %s", c.name);
    enum sh_code code = plain ? sh_grammar_create(state->vocab, c.kind, json_string_value(c.value), json_string_length(c.value),
                                                  &state->grammar, &state->text_err)
                              : sh_grammar_create(state->vocab, c.kind, text, strlen(text), &state->grammar, &state->text_err);
    free(text);
    if (code == SH_ERR_INVALID || code == SH_ERR_UNSUPPORTED || code == SH_ERR_LIMIT) state->wrong = c.name;
    return code;
}

static void run_text(struct work *work) {
    struct generate_state *state = (struct generate_state *)((char *)work - offsetof(struct generate_state, work));
    uint32_t flags = (state->in.add_special ? SH_TOKENIZE_SPECIAL : 0u) | (state->in.parse_special ? SH_TOKENIZE_PARSE : 0u);
    state->text_err.code = model_get_vocab(state->model, &state->vocab, &state->text_err);
    if (state->text_err.code == SH_OK && state->in.prompt)
        state->text_err.code =
            sh_tokenize(state->vocab, json_string_value(state->in.prompt), json_string_length(state->in.prompt), flags,
                        &state->ids, &state->n_ids, &state->text_err);
    if (state->text_err.code == SH_OK) state->text_err.code = compile(state);
}

static void text_done(struct work *work, bool ran) {
    struct generate_state *state = (struct generate_state *)((char *)work - offsetof(struct generate_state, work));
    struct call *call = state->call;
    if (!ran) sh_fail(&state->text_err, SH_ERR_CANCELLED, "shutting down");
    atomic_store(&state->text_done, true);
    call_post(call);
    call_unref(call);
}

/* The ids to continue, malloc'd, or NULL: answered. */
static int32_t *prompt_ids(struct call *call, uint32_t *count) {
    struct generate_state *state = call->state;
    if (state->in.prompt_tokens) return call_ids(call, "prompt_tokens", state->in.prompt_tokens, count);
    int32_t *ids = state->ids;
    state->ids = NULL;
    *count = (uint32_t)state->n_ids;
    return ids;
}

static void submit(struct call *call) {
    struct generate_state *state = call->state;
    struct input *in = &state->in;
    struct sh_error err;
    if (state->wrong) {
        call_invalid_parameter(call, state->wrong, "%s: %s", state->wrong, state->text_err.message);
        return;
    }
    if (state->text_err.code) {
        call_error(call, "TokenizeFailed",
                   json_pack("{ss ss ss}", "model", in->model, "code", sh_code_name(state->text_err.code), "message",
                             state->text_err.message));
        return;
    }
    static const char *const usual_breakers[] = {"\n", ":", "\"", "*"};
    uint32_t n_prompt = 0, n_bias = 0, n_stops = 0, n_stop_tokens = 0, n_words = 0, n_breakers = 0;
    /* Each of these answers for itself when it fails. */
    int32_t *ids = prompt_ids(call, &n_prompt);
    struct sh_logit_bias *bias = ids ? read_bias(call, in->logit_bias, &n_bias) : NULL;
    const char **stops = bias ? read_texts(call, "stop", in->stop, &n_stops) : NULL;
    int32_t *stop_tokens = stops ? call_ids(call, "stop_token_ids", in->stop_token_ids, &n_stop_tokens) : NULL;
    const char **words = stop_tokens ? read_texts(call, "bad_words", in->bad_words, &n_words) : NULL;
    const char **breakers = words ? read_texts(call, "dry_sequence_breakers", in->dry_sequence_breakers, &n_breakers) : NULL;
    char *source = NULL; /* of the grammar, with the parameter that it came in; without memory the answer is not kept */
    if (breakers && state->grammar) {
        json_t *named = json_pack("{sO}", state->constraint.name, state->constraint.value);
        source = named ? json_exact(named) : NULL;
        json_decref(named);
    }
    if (breakers && call_check_prompt(call, in->model, n_prompt)) {
        const bool usual = !in->dry_sequence_breakers;
        struct gen_params params = {
            .prompt = ids,
            .n_prompt = n_prompt,
            .n_choices = (uint32_t)in->n,
            .max_tokens = (uint32_t)in->max_tokens,
            .sampler = {.size = sizeof params.sampler,
                        .temperature = (float)in->temperature,
                        .top_k = (uint32_t)in->top_k,
                        .top_p = (float)in->top_p,
                        .min_p = (float)in->min_p,
                        .repeat_penalty = (float)in->repeat_penalty,
                        .repeat_last_n = (uint32_t)in->repeat_last_n,
                        .frequency_penalty = (float)in->frequency_penalty,
                        .presence_penalty = (float)in->presence_penalty,
                        .seed = (uint64_t)in->seed,
                        .bias = bias,
                        .n_bias = n_bias,
                        .top_n_sigma = (float)in->top_n_sigma,
                        .typical_p = (float)in->typical_p,
                        .xtc_probability = (float)in->xtc_probability,
                        .xtc_threshold = (float)in->xtc_threshold,
                        .dry_multiplier = (float)in->dry_multiplier,
                        .dry_base = (float)in->dry_base,
                        .dry_allowed_length = (uint32_t)in->dry_allowed_length,
                        .dry_penalty_last_n = (uint32_t)in->dry_penalty_last_n,
                        .mirostat = (uint32_t)in->mirostat,
                        .mirostat_tau = (float)in->mirostat_tau,
                        .mirostat_eta = (float)in->mirostat_eta,
                        .min_tokens = (uint32_t)in->min_tokens},
            .stops = stops,
            .n_stops = n_stops,
            .stop_tokens = stop_tokens,
            .n_stop_tokens = n_stop_tokens,
            .bad_words = words,
            .n_bad_words = n_words,
            .dry_breakers = usual ? usual_breakers : breakers,
            .n_dry_breakers = usual ? SH_COUNT(usual_breakers) : n_breakers,
            .ignore_eos = in->ignore_eos,
            .special = in->special,
            .grammar = state->grammar,
            .grammar_source = source,
            .n_grammar_source = source ? strlen(source) : 0,
            .repeatable = state->seeded || in->temperature < 1e-6,
            .logprobs = in->logprobs >= 0,
            .n_top = in->logprobs > 0 ? (uint32_t)in->logprobs : 0,
            .priority = in->service.level,
            .client = call->owner,
            .salt = limits_salt(control_state(call->control)->separate_clients ? call->owner : 0, in->cache_salt),
            .no_reuse = !in->cache_prompt,
            .session = in->session,
            .speculation = in->speculation ? GEN_SPECULATION_CONFIGURED : GEN_SPECULATION_OFF,
            .id = state->id,
            .deadline_ns = state->deadline_ns,
            .vocab = state->vocab,
            .load_ns = state->load_ns,
            .notify = notify,
            .user = call,
        };
        enum sh_code code = gen_submit(state->model, &params, &state->generation, &err);
        if (code) call_submit_error(call, in->model, code, err.message);
    }
    free(source);
    free(breakers);
    free(words);
    free(stop_tokens);
    free(stops);
    free(bias);
    free(ids);
}

static void generate_left(struct call *call) {
    struct generate_state *state = call->state;
    call_wait_end(&state->wait);
    /* Released here and not with the state: notify must not find a call whose last reference is gone. */
    gen_release(state->generation);
    state->generation = NULL;
    if (state->load) load_cancel(state->load);
}

static void generate_wake(struct call *call) {
    struct generate_state *state = call->state;
    if (!state->generation) {
        if (state->wait.cancelled) {
            generate_left(call);
            call_cancelled(call, state->id, "cancelled");
            return;
        }
        pthread_mutex_lock(&state->lock);
        bool done = state->load_done;
        pthread_mutex_unlock(&state->lock);
        if (!done) return;
        if (state->load_code) {
            call_wait_end(&state->wait);
            call_load_error(call, state->in.model, state->load_code, state->load_err.message);
            return;
        }
        if (!state->text_begun) {
            state->text_begun = true;
            state->call = call_ref(call); /* until text_done */
            work_submit(&state->work);
        }
        if (!atomic_load(&state->text_done)) return;
        call_wait_end(&state->wait);
        if (state->in.service.keep_alive) model_keep_alive(state->model, state->in.service.keep_alive_s);
        submit(call);
    }
    struct gen_event event;
    while (state->generation && call_can_write(call) && gen_next(state->generation, &event)) {
        bool last = take_event(call, &event);
        gen_event_finish(&event);
        if (last) {
            gen_release(state->generation);
            state->generation = NULL;
        }
    }
}

void method_generate(struct call *call) {
    struct input in = {.add_special = true,
                       .parse_special = true,
                       .n = 1,
                       .temperature = 0.8,
                       .top_k = 40,
                       .top_p = 0.95,
                       .min_p = 0.05,
                       .seed = -1,
                       .logprobs = -1,
                       .cache_prompt = true,
                       .speculation = true};
    if (!call_fields(call, fields, SH_COUNT(fields), &in)) return;
    if (!in.prompt == !in.prompt_tokens) {
        call_invalid_parameter(call, "prompt", "prompt, prompt_tokens: exactly one of the two is needed");
        return;
    }
    const bool seeded = in.seed >= 0;
    if (!seeded) { /* small enough that a client with doubles for numbers can repeat it */
        uint64_t random = 0;
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) random = sh_now_ns();
        in.seed = (int64_t)(random >> 11);
    }
    if (in.mirostat == 1) {
        call_invalid_parameter(call, "mirostat", "mirostat: found 1, expected 0 (off) or 2");
        return;
    }
    struct sh_error err;
    if (in.session && session_name_check(in.session, &err) != SH_OK) {
        call_invalid_parameter(call, "session", "session: %s", err.message);
        return;
    }
    if (!call_read_service(call, &in.service)) return;
    struct constraint constraint;
    struct model *model;
    if (!find_constraint(call, &in, &constraint) || !call_model(call, in.model, &model)) return;
    struct generate_state *state = sh_calloc(1, sizeof *state);
    struct collected *choices = sh_calloc((uint64_t)in.n, sizeof *choices);
    if (!state || !choices) {
        free(state);
        free(choices);
        model_unref(model);
        call_error(call, "GenerationFailed",
                   json_pack("{ss ss}", "code", sh_code_name(SH_ERR_NO_MEMORY), "message", "no memory"));
        return;
    }
    for (int64_t i = 0; i < in.n; i++) choices[i].tokens = json_array();
    pthread_mutex_init(&state->lock, NULL);
    state->in = in;
    state->constraint = constraint;
    state->seeded = seeded;
    state->model = model;
    state->choices = choices;
    state->work =
        (struct work){.run = run_text, .done = text_done, .large = in.prompt && json_string_length(in.prompt) > WORK_LARGE_BYTES};
    state->started_ns = sh_now_ns();
    state->caller = pthread_self();
    if (in.timeout_seconds > 0) state->deadline_ns = state->started_ns + (uint64_t)(in.timeout_seconds * 1e9);
    call->state = state;
    call->free_state = free_generate;
    call->wake = generate_wake;
    call->left = generate_left;
    state->id = gen_new_id();
    call_wait_begin(&state->wait, call, state->id);
    if (call->more) /* before the load, so that it can be cancelled by its id */
        call_reply(call, json_pack("{sI ss sI}", "id", (json_int_t)state->id, "model", model_id(model), "seed", (json_int_t)in.seed), true);

    call_ref(call); /* until load_done */
    const struct load_params on_demand = {.on_demand = true, .deadline_ns = state->deadline_ns};
    state->load = model_load(model, &on_demand, load_done, NULL, call);
    if (!state->load) {
        call_wait_end(&state->wait);
        call_load_error(call, in.model, SH_ERR_NO_MEMORY, "no memory");
        call_unref(call);
    }
}

/* ---- Cancel ------------------------------------------------------------------------------------------ */

void method_cancel(struct call *call) {
    int64_t id = 0;
    const struct field cancel_fields[] = {{"id", FIELD_INT, 0, true, 0, 9223372036854775807.0}};
    if (!call_fields(call, cancel_fields, 1, &id)) return;
    if (call_wait_cancel((uint64_t)id) || gen_cancel_id((uint64_t)id, "cancelled")) {
        call_reply(call, NULL, false);
        return;
    }
    char message[80];
    snprintf(message, sizeof message, "no request with id %lld is running or waiting", (long long)id);
    call_error(call, "GenerationNotFound", json_pack("{sI ss}", "id", (json_int_t)id, "message", message));
}
