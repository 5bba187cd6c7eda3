/* jinja.c - a run of the template engine: its memory, its limits, how it fails; and the public functions. */
#include "compute/text/jinja.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- memory ---- */

struct jchunk {
    struct jchunk *next;
    size_t used, capacity;
    _Alignas(16) char data[];
};
enum { CHUNK_BYTES = 32 << 10 };

void *jinja_alloc(struct jinja *s, size_t bytes) {
    if (bytes > JINJA_MAX_MEMORY) jinja_limit(s, "memory in bytes", JINJA_MAX_MEMORY);
    const size_t need = (bytes + 15) / 16 * 16;
    struct jchunk *c = s->chunks;
    if (!c || c->capacity - c->used < need) {
        const size_t capacity = need > CHUNK_BYTES / 4 ? need : CHUNK_BYTES;
        if (s->memory + capacity > JINJA_MAX_MEMORY) jinja_limit(s, "memory in bytes", JINJA_MAX_MEMORY);
        struct jchunk *fresh = calloc(1, sizeof *fresh + capacity);
        if (!fresh) {
            s->code = sh_fail(s->err, SH_ERR_NO_MEMORY, "template: out of memory");
            longjmp(s->out, 1);
        }
        fresh->capacity = capacity;
        s->memory += capacity;
        if (c && capacity == need) { /* a large one goes behind the first, which keeps its room */
            fresh->next = c->next;
            c->next = fresh;
        } else {
            fresh->next = c;
            s->chunks = fresh;
        }
        c = fresh;
    }
    void *p = c->data + c->used;
    c->used += need;
    return p;
}

static void release(struct jchunk *c) {
    while (c) {
        struct jchunk *next = c->next;
        free(c);
        c = next;
    }
}

void jbuf_add(struct jinja *s, struct jbuf *b, const char *p, size_t n) {
    if (!n) return;
    if (n > JINJA_MAX_OUTPUT || b->n + n > JINJA_MAX_OUTPUT) jinja_limit(s, "text in bytes", JINJA_MAX_OUTPUT);
    if (b->n + n > b->capacity) {
        size_t capacity = b->capacity ? b->capacity * 2 : 64;
        while (capacity < b->n + n) capacity *= 2;
        char *grown = jinja_alloc(s, capacity);
        if (b->n) memcpy(grown, b->p, b->n);
        b->p = grown;
        b->capacity = capacity;
    }
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

void jbuf_fill(struct jinja *s, struct jbuf *b, struct jstr text, size_t times) {
    size_t total;
    if (!text.n) return;
    if (__builtin_mul_overflow(text.n, times, &total) || total > JINJA_MAX_OUTPUT)
        jinja_limit(s, "text in bytes", JINJA_MAX_OUTPUT);
    jinja_spend(s, total / 64 + 1);
    for (size_t i = 0; i < times; i++) jbuf_str(s, b, text);
}

struct jval jbuf_value(const struct jbuf *b) {
    return jv_text(b->p ? b->p : "", b->n);
}

/* ---- failures and limits ---- */

void jinja_fail(struct jinja *s, const char *fmt, ...) {
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    s->code = sh_fail(s->err, SH_ERR_FORMAT, "template, line %u: %s", s->line, text);
    longjmp(s->out, 1);
}

void jinja_limit(struct jinja *s, const char *what, uint64_t limit) {
    s->code = sh_fail(s->err, SH_ERR_LIMIT, "template, line %u: goes beyond the limit of %s, %llu", s->line, what,
                      (unsigned long long)limit);
    longjmp(s->out, 1);
}

void jinja_raise(struct jinja *s, struct jstr message) {
    s->code = sh_fail(s->err, SH_ERR_INVALID, "%.*s", (int)sh_min_u64(message.n, 500), message.p);
    longjmp(s->out, 1);
}

void jinja_spend(struct jinja *s, uint64_t steps) {
    s->steps += steps;
    if (s->steps > JINJA_MAX_STEPS) jinja_limit(s, "steps", JINJA_MAX_STEPS);
}

void jinja_enter(struct jinja *s) {
    if (++s->depth > JINJA_MAX_DEPTH) jinja_limit(s, "depth", JINJA_MAX_DEPTH);
}

/* ---- public ---- */

struct sh_template {
    struct jchunk *chunks;
    struct jnode *statements;
};

static bool compile(struct jinja *s, const char *text, size_t length, struct jnode **out) {
    if (setjmp(s->out)) return false;
    *out = jinja_parse(s, jinja_lex(s, text, length));
    return true;
}

enum sh_code sh_template_create(const char *text, size_t length, struct sh_template **out, struct sh_error *err) {
    *out = NULL;
    if (length > JINJA_MAX_TEMPLATE)
        return sh_fail(err, SH_ERR_LIMIT, "template: has %zu bytes, at most %d are read", length, JINJA_MAX_TEMPLATE);
    struct sh_template *t = calloc(1, sizeof *t);
    if (!t) return sh_fail(err, SH_ERR_NO_MEMORY, "template: out of memory");
    struct jinja s = {.err = err};
    if (!compile(&s, text, length, &t->statements)) {
        release(s.chunks);
        free(t);
        return s.code;
    }
    t->chunks = s.chunks;
    *out = t;
    return SH_OK;
}

void sh_template_destroy(struct sh_template *t) {
    if (!t) return;
    release(t->chunks);
    free(t);
}

/* "2025-02-21T14:30:05", or the local time now. */
static bool read_moment(const char *text, struct tm *out) {
    if (!text) {
        const time_t now = time(NULL);
        return localtime_r(&now, out) != NULL;
    }
    *out = (struct tm){0};
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", out);
    if (!end || *end) return false;
    timegm(out); /* fills in the days of the week and the year */
    return true;
}

static bool render(struct jinja *s, const struct sh_template *t, const char *variables, size_t length) {
    if (setjmp(s->out)) return false;
    s->variables = jinja_read_json(s, variables, length);
    s->line = 1;
    jinja_execute(s, t->statements);
    return true;
}

enum sh_code sh_template_render(const struct sh_template *t, const char *variables, size_t variables_length, const char *now,
                                char **text, size_t *length, struct sh_error *err) {
    struct tm moment;
    struct jbuf output = {0};
    struct jinja s = {.err = err, .to = &output, .now = &moment};
    *text = NULL;
    *length = 0;
    if (!read_moment(now, &moment))
        return sh_fail(err, SH_ERR_INVALID, "now: found \"%.40s\", expected a moment such as 2025-02-21T14:30:05",
                       now ? now : "");
    if (!render(&s, t, variables, variables_length)) {
        release(s.chunks);
        return s.code;
    }
    *text = malloc(output.n + 1);
    if (*text) {
        if (output.n) memcpy(*text, output.p, output.n);
        (*text)[output.n] = 0;
        *length = output.n;
    }
    release(s.chunks);
    return *text ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "template: out of memory");
}
