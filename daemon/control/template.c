/* template.c - Template: what a model would see of a chat. The vocabulary alone, no weights; worked on by work.h's threads. */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/control/varlink.h"
#include "daemon/text.h"
#include "daemon/work.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

struct template_state {
    struct work work;
    struct call *call; /* a reference, from work_submit until done */
    struct model *model;
    const char *name, *which; /* lent by the call's request */
    char *messages, *tools, *variables;
    bool no_generation_prompt, continue_last;
    json_t *reply; /* NULL: err */
    struct sh_error err;
    atomic_bool done; /* the above is there */
};

static void free_template(struct call *call) {
    struct template_state *state = call->state;
    json_decref(state->reply);
    model_unref(state->model);
    free(state->messages);
    free(state->tools);
    free(state->variables);
    free(state);
}

static enum sh_code answer(struct template_state *state, const struct sh_vocab *vocab, const struct sh_chat *chat) {
    const struct sh_chat_request request = {.size = sizeof request,
                                            .messages = state->messages,
                                            .tools = state->tools,
                                            .variables = state->variables,
                                            .no_generation_prompt = state->no_generation_prompt,
                                            .continue_last = state->continue_last};
    struct sh_chat_prompt prompt;
    struct sh_chat_info info;
    int32_t *ids = NULL;
    size_t count = 0;
    enum sh_code code = sh_chat_apply(chat, &request, &prompt, &state->err);
    if (code != SH_OK) return code;
    code = sh_chat_tokenize(vocab, prompt.text, prompt.parts, prompt.n_parts, &ids, &count, &state->err);
    size_t bytes = 6 * prompt.length + 2048; /* a character may take six as an escape */
    for (size_t i = 0; code == SH_OK && i < count; i++) bytes += (size_t)snprintf(NULL, 0, "%d,", ids[i]);
    if (code == SH_OK && bytes > FRAME_MAX_BYTES)
        code = sh_fail(&state->err, SH_ERR_LIMIT,
                       "the prompt has %zu bytes and %zu tokens: a message of 16 MiB may not hold them", prompt.length, count);
    if (code == SH_OK) {
        json_t *tokens = json_array();
        for (size_t i = 0; i < count; i++) json_array_append_new(tokens, json_integer(ids[i]));
        sh_chat_get_info(chat, &info);
        state->reply = json_pack("{so so so ss so ss ss}", "text", json_bytes(prompt.text, prompt.length), "tokens", tokens,
                                 "template", json_bytes(info.name, strlen(info.name)), "source", info.source, "reason",
                                 json_bytes(info.reason, strlen(info.reason)), "tools", info.tools, "reasoning", info.reasoning);
    }
    free(ids);
    sh_chat_prompt_finish(&prompt);
    return code;
}

static void run(struct work *work) {
    struct template_state *state = (struct template_state *)work;
    const struct sh_vocab *vocab;
    const struct sh_chat *chat = NULL;
    struct sh_chat *own = NULL;
    enum sh_code code = model_get_vocab(state->model, &vocab, &state->err);
    if (code == SH_OK && state->which) {
        code = sh_chat_create(vocab, state->which, &own, &state->err);
        chat = own;
    } else if (code == SH_OK) {
        code = model_get_chat(state->model, &chat, &state->err);
    }
    if (code == SH_OK) code = answer(state, vocab, chat);
    if (code == SH_OK && !state->reply) sh_fail(&state->err, SH_ERR_NO_MEMORY, "no memory for the answer");
    sh_chat_destroy(own);
}

static void done(struct work *work, bool ran) {
    struct template_state *state = (struct template_state *)work;
    struct call *call = state->call;
    if (!ran) sh_fail(&state->err, SH_ERR_CANCELLED, "shutting down");
    atomic_store(&state->done, true);
    call_post(call);
    call_unref(call);
}

static void fail(struct call *call, const char *name, enum sh_code code, const char *message) {
    call_error(call, "TemplateFailed", json_pack("{ss ss ss}", "model", name, "code", sh_code_name(code), "message", message));
}

static void template_wake(struct call *call) {
    struct template_state *state = call->state;
    if (!atomic_load(&state->done)) return;
    json_t *reply = state->reply;
    state->reply = NULL;
    if (reply) call_reply(call, reply, false);
    else fail(call, state->name, state->err.code, state->err.message);
}

void method_template(struct call *call) {
    struct {
        const char *model, *chat_template;
        json_t *messages, *tools, *variables;
        bool add_generation_prompt, continue_last;
    } in = {.add_generation_prompt = true};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"messages", FIELD_ARRAY, offsetof(__typeof__(in), messages), true, 0, 0},
        {"tools", FIELD_ARRAY, offsetof(__typeof__(in), tools), false, 0, 0},
        {"variables", FIELD_OBJECT, offsetof(__typeof__(in), variables), false, 0, 0},
        {"chat_template", FIELD_STRING, offsetof(__typeof__(in), chat_template), false, 0, 0},
        {"add_generation_prompt", FIELD_BOOL, offsetof(__typeof__(in), add_generation_prompt), false, 0, 0},
        {"continue_last", FIELD_BOOL, offsetof(__typeof__(in), continue_last), false, 0, 0},
    };
    struct model *model;
    if (!call_fields(call, fields, SH_COUNT(fields), &in) || !call_model(call, in.model, &model)) return;
    struct template_state *state = sh_calloc(1, sizeof *state);
    if (!state) {
        model_unref(model);
        fail(call, in.model, SH_ERR_NO_MEMORY, "no memory");
        return;
    }
    state->model = model;
    state->name = in.model;
    state->which = in.chat_template;
    state->no_generation_prompt = !in.add_generation_prompt;
    state->continue_last = in.continue_last;
    state->messages = json_exact(in.messages);
    state->tools = in.tools ? json_exact(in.tools) : NULL;
    state->variables = in.variables ? json_exact(in.variables) : NULL;
    call->state = state;
    call->free_state = free_template;
    call->wake = template_wake;
    if (!state->messages || (in.tools && !state->tools) || (in.variables && !state->variables)) {
        fail(call, in.model, SH_ERR_NO_MEMORY, "no memory");
        return;
    }
    state->work = (struct work){.run = run, .done = done, .large = strlen(state->messages) > WORK_LARGE_BYTES};
    state->call = call_ref(call);
    work_submit(&state->work);
}
