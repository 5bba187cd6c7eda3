/*
 * session.c - sessions of a runner: the tokens of the last request of each name, and files of what the cache holds of them. A file is written and
 * read by the runner's thread, between steps; who asks waits.
 */
#include "compute/base.h"
#include "daemon/scheduler_private.h"

#include <stdlib.h>

struct session_job {
    struct session_job *next;
    bool restore, done;
    const char *name;
    uint64_t salt;
    int fd;
    uint32_t *tokens;
    struct sh_error *err;
    enum sh_code code;
};

/* ---- what is remembered: the runner's thread ------------------------------------------------------------------ */

static struct session *find(struct sessions *sessions, const char *name, uint64_t salt) {
    for (uint32_t i = 0; i < SESSIONS; i++) {
        struct session *session = &sessions->items[i];
        if (session->name && session->salt == salt && strcmp(session->name, name) == 0) return session;
    }
    return NULL;
}

/* Takes over the tokens. Without memory the session is not remembered. */
static void remember(struct sessions *sessions, const char *name, uint64_t salt, int32_t *tokens, uint32_t n) {
    struct session *session = find(sessions, name, salt);
    for (uint32_t i = 0; !session && i < SESSIONS; i++)
        if (!sessions->items[i].name) session = &sessions->items[i];
    if (!session) { /* the one that was used longest ago goes */
        session = &sessions->items[0];
        for (uint32_t i = 1; i < SESSIONS; i++)
            if (sessions->items[i].used < session->used) session = &sessions->items[i];
    }
    char *copy = strdup(name);
    free(session->name);
    free(session->tokens);
    *session = (struct session){.name = copy, .salt = salt, .tokens = tokens, .n = n, .used = ++sessions->uses};
    if (copy) return;
    free(tokens);
    *session = (struct session){0};
}

void session_remember(struct run *run) {
    const struct gen_params *p = &run->g->params;
    if (!p->session || !run->choices || p->no_reuse || !run->choices[0].run) return;
    const struct choice *choice = &run->choices[0];
    const uint32_t n = p->n_prompt + choice->received;
    int32_t *tokens = sh_calloc(n, sizeof *tokens);
    if (!tokens) return;
    memcpy(tokens, p->prompt, p->n_prompt * sizeof *tokens);
    if (choice->received > 0) memcpy(tokens + p->n_prompt, choice->tokens, choice->received * sizeof *tokens);
    remember(&run->runner->sessions, p->session, p->salt, tokens, n);
}

void session_free(struct sessions *sessions) {
    for (uint32_t i = 0; i < SESSIONS; i++) {
        free(sessions->items[i].name);
        free(sessions->items[i].tokens);
    }
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static enum sh_code save(struct runner *r, const struct session_job *job, struct sh_error *err) {
    struct session *session = find(&r->sessions, job->name, job->salt);
    if (!session)
        return sh_fail(err, SH_ERR_NOT_FOUND, "no request of %s had the session '%s' since the model was loaded", r->params.id,
                       job->name);
    session->used = ++r->sessions.uses;
    return sh_context_save(r->context, session->tokens, session->n, job->salt, job->fd, job->tokens, err);
}

static enum sh_code restore(struct runner *r, const struct session_job *job, struct sh_error *err) {
    int32_t *tokens = NULL;
    const enum sh_code code = sh_context_restore(r->context, job->fd, job->salt, &tokens, job->tokens, err);
    if (code == SH_OK) remember(&r->sessions, job->name, job->salt, tokens, *job->tokens);
    return code;
}

void session_serve(struct runner *r, bool refuse) {
    pthread_mutex_lock(&r->lock);
    struct session_job *jobs = r->sessions.jobs;
    r->sessions.jobs = NULL;
    pthread_mutex_unlock(&r->lock);
    while (jobs) {
        struct session_job *job = jobs;
        jobs = job->next; /* who asked may be gone once it is done */
        enum sh_code code;
        if (refuse) code = sh_fail(job->err, SH_ERR_CANCELLED, "%s is being unloaded", r->params.id);
        else code = job->restore ? restore(r, job, job->err) : save(r, job, job->err);
        pthread_mutex_lock(&r->lock);
        job->code = code;
        job->done = true;
        r->progress_ns = sh_now_ns();
        pthread_cond_broadcast(&r->sessions.served);
        pthread_mutex_unlock(&r->lock);
    }
}

void session_fail_locked(struct runner *r, const char *reason) {
    for (struct session_job *job = r->sessions.jobs; job; job = job->next) {
        job->code = sh_fail(job->err, SH_ERR_DEVICE, "%s", reason);
        job->done = true;
    }
    r->sessions.jobs = NULL;
    pthread_cond_broadcast(&r->sessions.served);
}

bool session_waits(struct runner *r) {
    pthread_mutex_lock(&r->lock);
    const bool any = r->sessions.jobs != NULL;
    pthread_mutex_unlock(&r->lock);
    return any;
}

static enum sh_code ask(struct runner *r, struct session_job *job) {
    pthread_mutex_lock(&r->lock);
    enum sh_code code = SH_OK;
    if (r->lost) code = sh_fail(job->err, SH_ERR_DEVICE_LOST, "the device of %s is lost", r->params.id);
    else if (r->stuck) code = sh_fail(job->err, SH_ERR_DEVICE, "%s", r->stuck);
    else if (r->stopping) code = sh_fail(job->err, SH_ERR_CANCELLED, "%s is being unloaded", r->params.id);
    if (code == SH_OK) {
        job->next = r->sessions.jobs;
        r->sessions.jobs = job;
        r->sessions.n_askers++;
        pthread_cond_signal(&r->wake);
        while (!job->done) pthread_cond_wait(&r->sessions.served, &r->lock);
        code = job->code;
        if (--r->sessions.n_askers == 0) pthread_cond_broadcast(&r->sessions.served); /* for session_leave */
    }
    pthread_mutex_unlock(&r->lock);
    return code;
}

void session_leave(struct runner *r) {
    pthread_mutex_lock(&r->lock);
    while (r->sessions.n_askers > 0) pthread_cond_wait(&r->sessions.served, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

enum sh_code runner_save_session(struct runner *r, const char *session, uint64_t salt, int fd, uint32_t *tokens, struct sh_error *err) {
    return ask(r, &(struct session_job){.name = session, .salt = salt, .fd = fd, .tokens = tokens, .err = err});
}

enum sh_code runner_restore_session(struct runner *r, const char *session, uint64_t salt, int fd, uint32_t *tokens,
                                    struct sh_error *err) {
    return ask(r, &(struct session_job){.restore = true, .name = session, .salt = salt, .fd = fd, .tokens = tokens, .err = err});
}
