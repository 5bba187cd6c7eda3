/*
 * session.c - SaveSession, RestoreSession, ListSessions, RemoveSession. Files are slow and a runner serves these between its steps, so all of it
 * happens in work.h's threads.
 */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/limits.h"
#include "daemon/sessions.h"
#include "daemon/work.h"

#include <stdatomic.h>
#include <stdlib.h>

enum action { SAVE, RESTORE, LIST, REMOVE };

struct session_state {
    struct work work;
    struct call *call; /* a reference, until done */
    enum action action;
    const char *name; /* lent by the call's request */
    uint64_t salt;
    struct model *model; /* a reference; NULL: LIST */
    /* of the work */
    struct session_file file;
    json_t *list;
    enum sh_code code;
    struct sh_error err;
    atomic_bool done;
};

static void free_session(struct call *call) {
    struct session_state *state = call->state;
    model_unref(state->model);
    json_decref(state->list);
    free(state);
}

static enum sh_code write_session(void *user, int fd, uint32_t *tokens, struct sh_error *err) {
    const struct session_state *state = user;
    return model_save_session(state->model, state->name, state->salt, fd, tokens, err);
}

static enum sh_code read_session(void *user, int fd, uint32_t *tokens, struct sh_error *err) {
    const struct session_state *state = user;
    return model_restore_session(state->model, state->name, state->salt, fd, tokens, err);
}

static void run_session(struct work *work) {
    struct session_state *state = (struct session_state *)work;
    const char *id = state->model ? model_id(state->model) : "";
    switch (state->action) {
    case SAVE: state->code = session_save(id, state->name, write_session, state, &state->file, &state->err); break;
    case RESTORE: state->code = session_restore(id, state->name, read_session, state, &state->file, &state->err); break;
    case REMOVE: state->code = session_remove(id, state->name, &state->err); break;
    case LIST:
        state->list = sessions_list(&state->err);
        state->code = state->list ? SH_OK : state->err.code;
        break;
    }
}

static void session_done(struct work *work, bool ran) {
    struct session_state *state = (struct session_state *)work;
    struct call *call = state->call;
    if (!ran) state->code = sh_fail(&state->err, SH_ERR_CANCELLED, "shutting down");
    atomic_store(&state->done, true);
    call_post(call);
    call_unref(call);
}

static void session_wake(struct call *call) {
    struct session_state *state = call->state;
    if (!atomic_load(&state->done)) return;
    if (state->code)
        call_error(call, "SessionFailed",
                   json_pack("{ss ss ss ss}", "model", state->model ? model_id(state->model) : "", "session", state->name ? state->name : "",
                             "code", sh_code_name(state->code), "message", state->err.message));
    else if (state->action == LIST) call_reply(call, json_pack("{sO}", "sessions", state->list), false);
    else if (state->action == REMOVE) call_reply(call, NULL, false);
    else
        call_reply(call, json_pack("{sI sI ss}", "tokens", (json_int_t)state->file.tokens, "bytes", (json_int_t)state->file.bytes, "path",
                                   state->file.path), false);
}

static void run(struct call *call, enum action action) {
    struct {
        const char *model, *session, *cache_salt;
    } in = {0};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"session", FIELD_STRING, offsetof(__typeof__(in), session), true, 0, 0},
        {"cache_salt", FIELD_STRING, offsetof(__typeof__(in), cache_salt), false, 0, 0},
    };
    const uint32_t n_fields = action == LIST ? 0 : action == REMOVE ? 2 : 3;
    struct sh_error err;
    struct model *model = NULL;
    if (!call_fields(call, fields, n_fields, &in)) return;
    if (in.session && session_name_check(in.session, &err) != SH_OK) {
        call_invalid_parameter(call, "session", "session: %s", err.message);
        return;
    }
    if (in.model && !call_model(call, in.model, &model)) return;
    struct session_state *state = sh_calloc(1, sizeof *state);
    if (!state) {
        model_unref(model);
        call_error(call, "SessionFailed", json_pack("{ss ss ss ss}", "model", in.model ? in.model : "", "session",
                                                    in.session ? in.session : "", "code", sh_code_name(SH_ERR_NO_MEMORY), "message", "no memory"));
        return;
    }
    state->action = action;
    state->name = in.session;
    state->model = model;
    state->salt = limits_salt(control_state(call->control)->separate_clients ? call->owner : 0, in.cache_salt);
    state->work = (struct work){.run = run_session, .done = session_done, .large = true};
    call->state = state;
    call->free_state = free_session;
    call->wake = session_wake;
    state->call = call_ref(call);
    work_submit(&state->work);
}

void method_save_session(struct call *call) { run(call, SAVE); }
void method_restore_session(struct call *call) { run(call, RESTORE); }
void method_list_sessions(struct call *call) { run(call, LIST); }
void method_remove_session(struct call *call) { run(call, REMOVE); }
