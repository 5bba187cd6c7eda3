/*
 * tokens.c - POST /tokenize and /detokenize, worked on by work.h's threads: a long text takes seconds. A model that is not loaded
 * is not loaded for these: its vocabulary alone is opened.
 */
#include "daemon/http/internal.h"

#include "compute/base.h"
#include "daemon/models.h"
#include "daemon/work.h"

#include <stdio.h>
#include <stdlib.h>

struct tokens_job { /* the connection's thread's until it is submitted, and again once it is done */
    struct work work;
    struct http_request *request; /* a reference, until done */
    struct model *model;
    struct api_tokenize text; /* one of the two */
    struct api_detokenize ids;
    bool detokenize;
    char *answer; /* JSON; NULL: err */
    size_t answer_length;
    struct api_error err;
    bool done; /* under the request's lock */
};

/* {"tokens":[...]} as text: millions of ids as JSON values would take a hundred times the body's memory. */
static char *ids_text(const int32_t *ids, size_t count, size_t *length) {
    FILE *out;
    char *text = NULL;
    if (!(out = open_memstream(&text, length))) return NULL;
    fputs("{\"tokens\":[", out);
    for (size_t i = 0; i < count; i++) fprintf(out, i ? ",%d" : "%d", ids[i]);
    fputs("]}", out);
    bool bad = ferror(out) != 0;
    if (fclose(out) == 0 && !bad) return text;
    free(text);
    return NULL;
}

static void run(struct work *work) {
    struct tokens_job *job = (struct tokens_job *)work;
    const struct api_tokenize *q = &job->text;
    const struct sh_vocab *vocab;
    struct sh_error why;
    enum sh_code code = model_get_vocab(job->model, &vocab, &why);
    if (code) {
        api_fail(&job->err, 500, "no_vocabulary", "model", "%s", why.message);
        return;
    }
    if (job->detokenize) {
        char *text = NULL;
        size_t length = 0;
        code = sh_detokenize(vocab, job->ids.tokens, job->ids.n_tokens, true, true, &text, &length, &why);
        json_t *value = code ? NULL : json_pack("{s:o}", "content", json_bytes(text, length));
        job->answer = value ? json_text(value) : NULL;
        job->answer_length = job->answer ? strlen(job->answer) : 0;
        json_decref(value);
        free(text);
    } else {
        int32_t *ids = NULL;
        size_t n = 0;
        uint32_t flags = (q->add_special ? SH_TOKENIZE_SPECIAL : 0u) | (q->parse_special ? SH_TOKENIZE_PARSE : 0u);
        code = sh_tokenize(vocab, q->content, q->length, flags, &ids, &n, &why);
        job->answer = code ? NULL : ids_text(ids, n, &job->answer_length);
        free(ids);
    }
    if (code) api_fail_code(&job->err, code, job->detokenize ? "tokens" : "content", why.message);
    else if (!job->answer) api_fail(&job->err, 503, "out_of_memory", NULL, "no memory for the answer");
}

static void done(struct work *work, bool ran) {
    struct tokens_job *job = (struct tokens_job *)work;
    struct http_request *r = job->request;
    if (!ran) api_fail(&job->err, 503, "shutting_down", NULL, "the server is shutting down");
    pthread_mutex_lock(&r->lock);
    job->done = true;
    pthread_mutex_unlock(&r->lock);
    request_wake(r);
    request_unref(r);
}

static void close_job(void *user) { (void)user; /* a tokenisation cannot be stopped; its result is dropped */ }

static void free_job(void *user) {
    struct tokens_job *job = user;
    api_tokenize_finish(&job->text);
    api_detokenize_finish(&job->ids);
    model_unref(job->model);
    free(job->answer);
    free(job);
}

static enum http_step begin(struct http_request *r, bool detokenize) {
    struct tokens_job *job = sh_calloc(1, sizeof(*job));
    if (!job) return HTTP_DROP;
    job->request = r;
    job->detokenize = detokenize;
    r->job = job;
    r->job_close = close_job;
    r->job_free = free_job;
    size_t length = r->body_length;
    json_t *body;
    request_parse_begin(r, &body, &job->err);
    bool ok =
        body && (detokenize ? api_detokenize_parse(body, &job->ids, &job->err) : api_tokenize_parse(body, &job->text, &job->err));
    request_parse_end(r, body);
    ok = ok && api_find_model(detokenize ? job->ids.model : job->text.model, &job->model, &job->err);
    if (!ok) return answer_error(r, &job->err);
    job->work = (struct work){.run = run, .done = done, .large = length > WORK_LARGE_BYTES};
    request_ref(r); /* done's */
    work_submit(&job->work);
    return HTTP_WAIT;
}

static enum http_step finish(struct http_request *r) {
    struct tokens_job *job = r->job;
    pthread_mutex_lock(&r->lock);
    bool is_done = job->done;
    pthread_mutex_unlock(&r->lock);
    if (!is_done && request_expired(r)) { /* the job's own error is not ours to write yet */
        struct api_error late;
        api_fail(&late, 503, "deadline_exceeded", NULL, "the request took longer than request_timeout allows");
        return answer_error(r, &late);
    }
    if (!is_done) return HTTP_WAIT;
    if (!job->answer) return answer_error(r, &job->err);
    char *text = job->answer;
    job->answer = NULL;
    return answer_text(r, 200, "application/json", text, job->answer_length);
}

enum http_step tokenize_post(struct http_request *r) { return r->job ? finish(r) : begin(r, false); }

enum http_step detokenize_post(struct http_request *r) { return r->job ? finish(r) : begin(r, true); }
