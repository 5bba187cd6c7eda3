/*
 * embed.c - Embed: texts or lists of token ids to vectors. As a generation's, a call goes through load, tokenising (in work.h's
 * threads), submission and events; the registry's and the runner's threads only leave word with call_post.
 */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/generation.h"
#include "daemon/work.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { TEXTS_MAX = 2048 };

struct embed_state {
    struct call *call; /* a reference, while work is under way */
    const char *name;  /* lent by the call's request, like the next two */
    json_t *texts, *tokens;
    bool add_special;
    uint32_t dimensions, n_texts;
    uint64_t started_ns, deadline_ns;
    pthread_t caller;
    struct model *model;
    struct load *load;
    struct generation *generation; /* main's thread only; NULL before submission and after the last event */
    uint64_t id;
    struct call_wait wait; /* until submission */
    struct call_service service;
    json_t *vectors;               /* without "more": those that are there */

    struct work work; /* makes the next three */
    int32_t *ids;
    uint64_t n_ids;
    uint32_t *lengths; /* [n_texts] */
    const struct sh_vocab *vocab; /* lent with the model */
    struct sh_error text_err;
    bool text_begun; /* main's */
    atomic_bool text_done;

    pthread_mutex_t lock;
    bool load_done; /* lock, as are the following */
    uint64_t load_ns;
    enum sh_code load_code;
    struct sh_error load_err;
    struct model *loaded; /* held for us */
};

static void free_embed(struct call *call) {
    struct embed_state *state = call->state;
    load_release(state->load);
    model_unref(state->model);
    model_unref(state->loaded);
    json_decref(state->vectors);
    free(state->ids);
    free(state->lengths);
    pthread_mutex_destroy(&state->lock);
    free(state);
}

static void load_done(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct call *call = user;
    struct embed_state *state = call->state;
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

/* ---- texts to ids ------------------------------------------------------------------------------------ */

static enum sh_code add_ids(struct embed_state *state, uint32_t text, const int32_t *ids, size_t count) {
    if (state->n_ids + count > INT32_MAX)
        return sh_fail(&state->text_err, SH_ERR_LIMIT, "the texts have more than %d tokens: send them in parts", INT32_MAX);
    int32_t *grown = realloc(state->ids, (size_t)(state->n_ids + count + 1) * sizeof *grown);
    if (!grown) return sh_fail(&state->text_err, SH_ERR_NO_MEMORY, "no memory for %zu tokens", count);
    state->ids = grown;
    if (count) memcpy(state->ids + state->n_ids, ids, count * sizeof *ids);
    state->n_ids += count;
    state->lengths[text] = (uint32_t)count;
    return SH_OK;
}

static void run_text(struct work *work) {
    struct embed_state *state = (struct embed_state *)((char *)work - offsetof(struct embed_state, work));
    const uint32_t flags = SH_TOKENIZE_PARSE | (state->add_special ? (uint32_t)SH_TOKENIZE_SPECIAL : 0u);
    enum sh_code code = model_get_vocab(state->model, &state->vocab, &state->text_err);
    for (uint32_t i = 0; i < state->n_texts && code == SH_OK; i++) {
        const json_t *text = json_array_get(state->texts, i);
        int32_t *ids = NULL;
        size_t count = 0;
        code = sh_tokenize(state->vocab, json_string_value(text), json_string_length(text), flags, &ids, &count, &state->text_err);
        if (code == SH_OK) code = add_ids(state, i, ids, count);
        free(ids);
    }
}

static void text_done(struct work *work, bool ran) {
    struct embed_state *state = (struct embed_state *)((char *)work - offsetof(struct embed_state, work));
    struct call *call = state->call;
    if (!ran) sh_fail(&state->text_err, SH_ERR_CANCELLED, "shutting down");
    atomic_store(&state->text_done, true);
    call_post(call);
    call_unref(call);
}

/* ---- events ------------------------------------------------------------------------------------------ */

static void notify(void *user) { call_post(user); }

static json_t *vector_json(const struct gen_event *event) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < event->n_vector; i++) json_array_append_new(list, json_real((double)event->vector[i]));
    return list;
}

static void finish(struct call *call, const struct gen_event *event) {
    struct embed_state *state = call->state;
    const json_int_t id = (json_int_t)state->id;
    if (event->finish == GEN_CANCELLED) {
        call_cancelled(call, state->id, event->error.message);
    } else if (event->finish == GEN_FAILED && event->error.code == SH_ERR_BUSY) { /* it waited for a load, and found the queue full */
        call_submit_error(call, state->name, SH_ERR_BUSY, event->error.message);
    } else if (event->finish == GEN_FAILED) {
        call_error(call, "GenerationFailed",
                   json_pack("{sI ss ss}", "id", id, "code", sh_code_name(event->error.code), "message", event->error.message));
    } else {
        struct gen_usage usage;
        gen_get_usage(state->generation, &usage);
        usage.completion_tokens = 0;
        json_t *out = json_pack("{sI so}", "id", id, "usage", usage_json(&usage));
        if (!call->more) {
            json_object_set_new(out, "model", json_string(model_id(state->model)));
            json_object_set(out, "embeddings", state->vectors);
        }
        call_reply(call, out, false);
    }
}

/* True: the last event. */
static bool take_event(struct call *call, const struct gen_event *event) {
    struct embed_state *state = call->state;
    if (event->kind == GEN_EVENT_EMBEDDING && call->more)
        call_reply(call,
                   json_pack("{sI sI so}", "id", (json_int_t)state->id, "index", (json_int_t)event->choice,
                             "embedding", vector_json(event)),
                   true);
    else if (event->kind == GEN_EVENT_EMBEDDING) json_array_append_new(state->vectors, vector_json(event));
    if (event->kind == GEN_EVENT_END) finish(call, event);
    return event->kind == GEN_EVENT_END;
}

/* ---- submission -------------------------------------------------------------------------------------- */

static void submit(struct call *call) {
    struct embed_state *state = call->state;
    struct sh_error err;
    if (state->text_err.code) {
        call_error(call, "TokenizeFailed",
                   json_pack("{ss ss ss}", "model", state->name, "code", sh_code_name(state->text_err.code), "message",
                             state->text_err.message));
        return;
    }
    if (!call_check_prompt(call, state->name, state->n_ids)) return;
    const struct gen_params params = {
        .prompt = state->ids,
        .n_prompt = (uint32_t)state->n_ids,
        .n_choices = 1,
        .text_lengths = state->lengths,
        .n_texts = state->n_texts,
        .dimensions = state->dimensions,
        .priority = state->service.level,
        .client = call->owner,
        .id = state->id,
        .deadline_ns = state->deadline_ns,
        .vocab = state->vocab,
        .load_ns = state->load_ns,
        .notify = notify,
        .user = call,
    };
    const enum sh_code code = gen_submit(state->model, &params, &state->generation, &err);
    if (code) call_submit_error(call, state->name, code, err.message);
}

static void embed_left(struct call *call) {
    struct embed_state *state = call->state;
    call_wait_end(&state->wait);
    /* Released here and not with the state: notify must not find a call whose last reference is gone. */
    gen_release(state->generation);
    state->generation = NULL;
    if (state->load) load_cancel(state->load);
}

static void embed_wake(struct call *call) {
    struct embed_state *state = call->state;
    if (!state->generation) {
        if (state->wait.cancelled) {
            embed_left(call);
            call_cancelled(call, state->id, "cancelled");
            return;
        }
        pthread_mutex_lock(&state->lock);
        const bool done = state->load_done;
        pthread_mutex_unlock(&state->lock);
        if (!done) return;
        if (state->load_code) {
            call_wait_end(&state->wait);
            call_load_error(call, state->name, state->load_code, state->load_err.message);
            return;
        }
        if (!state->text_begun) {
            state->text_begun = true;
            state->call = call_ref(call); /* until text_done */
            work_submit(&state->work);
        }
        if (!atomic_load(&state->text_done)) return;
        call_wait_end(&state->wait);
        if (state->service.keep_alive) model_keep_alive(state->model, state->service.keep_alive_s);
        submit(call);
    }
    struct gen_event event;
    while (state->generation && call_can_write(call) && gen_next(state->generation, &event)) {
        const bool last = take_event(call, &event);
        gen_event_finish(&event);
        if (last) {
            gen_release(state->generation);
            state->generation = NULL;
        }
    }
}

/* ---- parameters -------------------------------------------------------------------------------------- */

/* Token lists are taken over at once; texts wait for the vocabulary. False: answered. */
static bool read_input(struct call *call, struct embed_state *state, size_t *bytes) {
    json_t *list = state->texts ? state->texts : state->tokens;
    const char *parameter = state->texts ? "texts" : "tokens";
    if (json_array_size(list) == 0 || json_array_size(list) > TEXTS_MAX) {
        call_invalid_parameter(call, parameter, "%s: has %zu elements, expected 1 to %d", parameter, json_array_size(list),
                               TEXTS_MAX);
        return false;
    }
    state->n_texts = (uint32_t)json_array_size(list);
    if (!(state->lengths = sh_calloc(state->n_texts, sizeof *state->lengths))) {
        call_invalid_parameter(call, parameter, "%s: no memory", parameter);
        return false;
    }
    for (uint32_t i = 0; i < state->n_texts; i++) {
        json_t *one = json_array_get(list, i);
        if (state->texts ? !json_is_string(one) || json_string_length(one) == 0
                         : !json_is_array(one) || json_array_size(one) == 0) {
            call_invalid_parameter(call, parameter, "%s: element %u is not %s", parameter, i,
                                   state->texts ? "a text of at least one character" : "a list of at least one token id");
            return false;
        }
        *bytes += json_string_length(one);
        if (state->texts) continue;
        uint32_t count;
        int32_t *ids = call_ids(call, parameter, one, &count);
        const bool taken = ids && add_ids(state, i, ids, count) == SH_OK;
        free(ids);
        if (ids && !taken) call_invalid_parameter(call, parameter, "%s: %s", parameter, state->text_err.message);
        if (!taken) return false;
    }
    return true;
}

void method_embed(struct call *call) {
    struct {
        const char *model;
        json_t *texts, *tokens;
        bool add_special;
        int64_t dimensions;
        double timeout_seconds;
        struct call_service service;
    } in = {.add_special = true};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"texts", FIELD_ARRAY, offsetof(__typeof__(in), texts), false, 0, 0},
        {"tokens", FIELD_ARRAY, offsetof(__typeof__(in), tokens), false, 0, 0},
        {"add_special", FIELD_BOOL, offsetof(__typeof__(in), add_special), false, 0, 0},
        {"dimensions", FIELD_INT, offsetof(__typeof__(in), dimensions), false, 1, INT32_MAX},
        {"timeout_seconds", FIELD_FLOAT, offsetof(__typeof__(in), timeout_seconds), false, 0.001, 1e9},
        {"priority", FIELD_STRING, offsetof(__typeof__(in), service.priority), false, 0, 0},
        {"keep_alive", FIELD_STRING, offsetof(__typeof__(in), service.keep_alive), false, 0, 0},
    };
    if (!call_fields(call, fields, SH_COUNT(fields), &in)) return;
    if (!in.texts == !in.tokens) {
        call_invalid_parameter(call, "texts", "texts, tokens: exactly one of the two is needed");
        return;
    }
    if (!call_read_service(call, &in.service)) return;
    struct embed_state *state = sh_calloc(1, sizeof *state);
    if (!state) {
        call_invalid_parameter(call, "texts", "texts: no memory");
        return;
    }
    pthread_mutex_init(&state->lock, NULL);
    state->name = in.model;
    state->texts = in.texts;
    state->tokens = in.tokens;
    state->add_special = in.add_special;
    state->dimensions = (uint32_t)in.dimensions;
    state->service = in.service;
    state->started_ns = sh_now_ns();
    state->caller = pthread_self();
    if (in.timeout_seconds > 0) state->deadline_ns = state->started_ns + (uint64_t)(in.timeout_seconds * 1e9);
    call->state = state;
    call->free_state = free_embed;
    size_t bytes = 0;
    if (!read_input(call, state, &bytes) || !call_model(call, in.model, &state->model)) return;
    state->vectors = json_array();
    state->work = (struct work){.run = run_text, .done = text_done, .large = bytes > WORK_LARGE_BYTES};
    atomic_store(&state->text_done, in.tokens != NULL);
    state->text_begun = in.tokens != NULL;
    call->wake = embed_wake;
    call->left = embed_left;
    state->id = gen_new_id();
    call_wait_begin(&state->wait, call, state->id);
    if (call->more) /* before the load, so that it can be cancelled by its id */
        call_reply(call, json_pack("{sI ss}", "id", (json_int_t)state->id, "model", model_id(state->model)), true);

    call_ref(call); /* until load_done */
    state->load = model_load(state->model, NULL, load_done, NULL, call);
    if (!state->load) {
        call_wait_end(&state->wait);
        call_load_error(call, in.model, SH_ERR_NO_MEMORY, "no memory");
        call_unref(call);
    }
}
