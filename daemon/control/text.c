/* text.c - Tokenize and Detokenize: the vocabulary alone, no weights. Both are worked on by work.h's threads: a long text takes
 * seconds. */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/control/varlink.h"
#include "daemon/text.h"
#include "daemon/work.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

struct text_state {
    struct work work;
    struct call *call; /* a reference, from work_submit until done */
    struct model *model;
    const char *name; /* lent by the call's request, like the next two */
    json_t *content;  /* Tokenize */
    uint32_t flags;
    int32_t *ids; /* Detokenize */
    uint32_t n_ids;
    bool special;
    json_t *reply; /* NULL: err */
    struct sh_error err;
    atomic_bool done; /* the above is there */
};

static void free_text(struct call *call) {
    struct text_state *state = call->state;
    json_decref(state->reply);
    model_unref(state->model);
    free(state->ids);
    free(state);
}

static enum sh_code tokenize(struct text_state *state, const struct sh_vocab *vocab) {
    int32_t *ids = NULL;
    size_t count = 0;
    enum sh_code code = sh_tokenize(vocab, json_string_value(state->content), json_string_length(state->content), state->flags,
                                    &ids, &count, &state->err);
    size_t bytes = 64;
    for (size_t i = 0; code == SH_OK && i < count; i++) bytes += (size_t)snprintf(NULL, 0, "%d,", ids[i]);
    if (bytes > FRAME_MAX_BYTES)
        code = sh_fail(&state->err, SH_ERR_LIMIT,
                       "the text has %zu tokens: a message of 16 MiB cannot hold them, send it in parts", count);
    if (code == SH_OK) {
        json_t *list = json_array();
        for (size_t i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
        state->reply = json_pack("{so}", "tokens", list);
    }
    free(ids);
    return code;
}

static enum sh_code detokenize(struct text_state *state, const struct sh_vocab *vocab) {
    char *text = NULL;
    size_t length = 0;
    enum sh_code code = sh_detokenize(vocab, state->ids, state->n_ids, state->special, true, &text, &length, &state->err);
    if (code == SH_OK) state->reply = json_pack("{so}", "content", json_bytes(text, length));
    free(text);
    return code;
}

static void run(struct work *work) {
    struct text_state *state = (struct text_state *)work;
    const struct sh_vocab *vocab;
    enum sh_code code = model_get_vocab(state->model, &vocab, &state->err);
    if (code == SH_OK) code = state->content ? tokenize(state, vocab) : detokenize(state, vocab);
    if (code == SH_OK && !state->reply) sh_fail(&state->err, SH_ERR_NO_MEMORY, "no memory for the answer");
}

static void done(struct work *work, bool ran) {
    struct text_state *state = (struct text_state *)work;
    struct call *call = state->call;
    if (!ran) sh_fail(&state->err, SH_ERR_CANCELLED, "shutting down");
    atomic_store(&state->done, true);
    call_post(call);
    call_unref(call);
}

static void text_wake(struct call *call) {
    struct text_state *state = call->state;
    if (!atomic_load(&state->done)) return;
    json_t *reply = state->reply;
    state->reply = NULL;
    if (reply) call_reply(call, reply, false);
    else
        call_error(
            call, "TokenizeFailed",
            json_pack("{ss ss ss}", "model", state->name, "code", sh_code_name(state->err.code), "message", state->err.message));
}

/* Takes over model and ids; content is lent by the call. */
static void begin(struct call *call, const struct text_state *wanted, size_t bytes) {
    struct text_state *state = sh_calloc(1, sizeof *state);
    if (!state) {
        model_unref(wanted->model);
        free(wanted->ids);
        call_error(
            call, "TokenizeFailed",
            json_pack("{ss ss ss}", "model", wanted->name, "code", sh_code_name(SH_ERR_NO_MEMORY), "message", "no memory"));
        return;
    }
    *state = *wanted;
    state->work = (struct work){.run = run, .done = done, .large = bytes > WORK_LARGE_BYTES};
    state->call = call_ref(call);
    call->state = state;
    call->free_state = free_text;
    call->wake = text_wake;
    work_submit(&state->work);
}

void method_tokenize(struct call *call) {
    struct {
        const char *model;
        json_t *content;
        bool add_special, parse_special;
    } in = {.parse_special = true};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"content", FIELD_TEXT, offsetof(__typeof__(in), content), true, 0, 0},
        {"add_special", FIELD_BOOL, offsetof(__typeof__(in), add_special), false, 0, 0},
        {"parse_special", FIELD_BOOL, offsetof(__typeof__(in), parse_special), false, 0, 0},
    };
    struct model *model;
    if (!call_fields(call, fields, SH_COUNT(fields), &in) || !call_model(call, in.model, &model)) return;
    const struct text_state wanted = {
        .model = model,
        .name = in.model,
        .content = in.content,
        .flags = (in.add_special ? SH_TOKENIZE_SPECIAL : 0u) | (in.parse_special ? SH_TOKENIZE_PARSE : 0u),
    };
    begin(call, &wanted, json_string_length(in.content));
}

void method_detokenize(struct call *call) {
    struct {
        const char *model;
        json_t *tokens;
        bool special;
    } in = {0};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"tokens", FIELD_ARRAY, offsetof(__typeof__(in), tokens), true, 0, 0},
        {"special", FIELD_BOOL, offsetof(__typeof__(in), special), false, 0, 0},
    };
    struct model *model;
    uint32_t count;
    if (!call_fields(call, fields, SH_COUNT(fields), &in)) return;
    int32_t *ids = call_ids(call, "tokens", in.tokens, &count);
    if (!ids || !call_model(call, in.model, &model)) {
        free(ids);
        return;
    }
    const struct text_state wanted = {.model = model, .name = in.model, .ids = ids, .n_ids = count, .special = in.special};
    begin(call, &wanted, count);
}
