/* jinja.c - a run of the template engine: its memory, its limits, how it fails; and the public functions. */
#include "compute/text/jinja.h"

#include "compute/engine.h"
#include "compute/text/template.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

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

/* ---- strings whose origin is kept ---- */

enum { STRINGS_STEP = 64 << 10 }; /* bytes; a multiple of any page's size */

/* Addresses only: pages are asked for as strings need them. */
static bool reserve_strings(struct jinja *s) {
    void *range = mmap(NULL, 2 * (size_t)JINJA_MAX_MEMORY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return false;
    s->strings = range;
    return true;
}

static void release_strings(struct jinja *s) {
    if (s->strings) munmap(s->strings, 2 * (size_t)JINJA_MAX_MEMORY);
}

char *jinja_alloc_string(struct jinja *s, size_t bytes) {
    if (!s->strings) return jinja_alloc(s, bytes);
    if (bytes > JINJA_MAX_MEMORY - s->memory) jinja_limit(s, "memory in bytes", JINJA_MAX_MEMORY);
    if (bytes > s->strings_ready - s->strings_used) { /* used <= memory, so what is missing lies within the range */
        size_t more = s->strings_used + bytes - s->strings_ready;
        if (more < s->strings_ready) more = s->strings_ready;
        more = (more + STRINGS_STEP - 1) / STRINGS_STEP * STRINGS_STEP;
        if (more > JINJA_MAX_MEMORY - s->strings_ready) more = JINJA_MAX_MEMORY - s->strings_ready;
        char *fresh = s->strings + s->strings_ready;
        if (mprotect(fresh, more, PROT_READ | PROT_WRITE) || mprotect(fresh + JINJA_MAX_MEMORY, more, PROT_READ | PROT_WRITE)) {
            s->code = sh_fail(s->err, SH_ERR_NO_MEMORY, "template: out of memory");
            longjmp(s->out, 1);
        }
        s->strings_ready += more;
    }
    char *p = s->strings + s->strings_used;
    s->strings_used += bytes;
    s->memory += bytes;
    return p;
}

bool jinja_is_given(const struct jinja *s, struct jstr t) {
    const uint8_t *marks = jinja_marks(s, t.p);
    return marks && memchr(marks, 1, t.n);
}

void jbuf_mark(struct jinja *s, struct jbuf *b, size_t since) {
    if (b->n > since && s->strings) memset(jinja_marks(s, b->p + since), 1, b->n - since);
}

/* ---- texts being built ---- */

void jbuf_add(struct jinja *s, struct jbuf *b, const char *p, size_t n) {
    if (!n) return;
    if (n > JINJA_MAX_OUTPUT || b->n + n > JINJA_MAX_OUTPUT) jinja_limit(s, "text in bytes", JINJA_MAX_OUTPUT);
    if (b->n + n > b->capacity) {
        size_t capacity = b->capacity ? b->capacity * 2 : 64;
        while (capacity < b->n + n) capacity *= 2;
        char *grown = jinja_alloc_string(s, capacity);
        if (b->n) {
            memcpy(grown, b->p, b->n);
            if (s->strings) memcpy(jinja_marks(s, grown), jinja_marks(s, b->p), b->n);
        }
        b->p = grown;
        b->capacity = capacity;
    }
    memcpy(b->p + b->n, p, n);
    const uint8_t *marks = jinja_marks(s, p);
    if (marks) memcpy(jinja_marks(s, b->p + b->n), marks, n);
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
    char where[32] = "variables"; /* they are read before the first line is run */
    if (s->line > 0) snprintf(where, sizeof where, "template, line %u", s->line);
    s->code = sh_fail(s->err, SH_ERR_LIMIT, "%s: goes beyond the limit of %s, %llu", where, what, (unsigned long long)limit);
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

/* messages[i].role: words that templates build control tokens of. */
static void trust_roles(struct jinja *s, const struct jdict *given) {
    const struct jval *messages = jdict_find_str(s, given, JSTR("messages"));
    for (size_t i = 0; messages && messages->kind == J_LIST && i < messages->list->n; i++) {
        const struct jval message = messages->list->items[i];
        const struct jval *role = message.kind == J_DICT ? jdict_find_str(s, message.dict, JSTR("role")) : NULL;
        if (role && role->kind == J_STRING && role->s.n) memset(jinja_marks(s, role->s.p), 0, role->s.n);
    }
}

/* The variables in `given`, from a copy whose bytes are marked: what is read of it points into it. */
static void add_given(struct jinja *s, struct jstr given) {
    if (given.n > JINJA_MAX_MEMORY) jinja_limit(s, "memory in bytes", JINJA_MAX_MEMORY);
    char *copy = jinja_alloc_string(s, given.n + 1);
    if (given.n) memcpy(copy, given.p, given.n);
    memset(jinja_marks(s, copy), 1, given.n + 1);
    struct jdict *variables = jinja_read_json(s, copy, given.n);
    trust_roles(s, variables);
    jdict_merge(s, s->variables, (struct jval){.kind = J_DICT, .dict = variables});
}

/* given.p NULL: there are trusted ones only. */
static bool render(struct jinja *s, const struct sh_template *t, struct jstr trusted, struct jstr given) {
    if (setjmp(s->out)) return false;
    s->variables = jinja_read_json(s, trusted.p, trusted.n);
    if (given.p) add_given(s, given);
    s->line = 1;
    jinja_execute(s, t->statements);
    return true;
}

static enum sh_code moment_of(const char *now, struct tm *out, struct sh_error *err) {
    if (read_moment(now, out)) return SH_OK;
    return sh_fail(err, SH_ERR_INVALID, "now: found \"%.40s\", expected a moment such as 2025-02-21T14:30:05", now ? now : "");
}

static enum sh_code copy_text(const struct jbuf *output, char **text, size_t *length, struct sh_error *err) {
    *text = malloc(output->n + 1);
    if (!*text) return sh_fail(err, SH_ERR_NO_MEMORY, "template: out of memory");
    if (output->n) memcpy(*text, output->p, output->n);
    (*text)[output->n] = 0;
    *length = output->n;
    return SH_OK;
}

/* The runs of equal marks. */
static enum sh_code copy_parts(const struct jinja *s, const struct jbuf *output, struct sh_chat_part **parts, uint32_t *n_parts,
                               struct sh_error *err) {
    const uint8_t *marks = jinja_marks(s, output->p);
    uint32_t n = 0; /* a text has at most JINJA_MAX_OUTPUT bytes */
    for (size_t i = 0; i < output->n; i++) n += !i || marks[i] != marks[i - 1];
    *parts = malloc((n + 1) * sizeof **parts);
    if (!*parts) return sh_fail(err, SH_ERR_NO_MEMORY, "template: out of memory");
    *n_parts = n;
    n = 0;
    for (size_t i = 0; i < output->n; i++) {
        if (!i || marks[i] != marks[i - 1]) (*parts)[n++] = (struct sh_chat_part){.begin = i, .literal = marks[i] != 0};
        (*parts)[n - 1].end = i + 1;
    }
    return SH_OK;
}

enum sh_code sh_template_render(const struct sh_template *t, const char *variables, size_t variables_length, const char *now,
                                char **text, size_t *length, struct sh_error *err) {
    struct tm moment;
    struct jbuf output = {0};
    struct jinja s = {.err = err, .to = &output, .now = &moment};
    *text = NULL;
    *length = 0;
    enum sh_code code = moment_of(now, &moment, err);
    if (code != SH_OK) return code;
    code = render(&s, t, (struct jstr){variables, variables_length}, (struct jstr){0}) ? copy_text(&output, text, length, err)
                                                                                       : s.code;
    release(s.chunks);
    return code;
}

enum sh_code sh_template_render_parts(const struct sh_template *t, const char *trusted, const char *given, const char *now,
                                      char **text, size_t *length, struct sh_chat_part **parts, uint32_t *n_parts,
                                      struct sh_error *err) {
    struct tm moment;
    struct jbuf output = {0};
    struct jinja s = {.err = err, .to = &output, .now = &moment};
    *text = NULL;
    *length = 0;
    *parts = NULL;
    *n_parts = 0;
    enum sh_code code = moment_of(now, &moment, err);
    if (code != SH_OK) return code;
    if (!reserve_strings(&s)) return sh_fail(err, SH_ERR_NO_MEMORY, "template: out of memory");
    if (render(&s, t, (struct jstr){trusted, strlen(trusted)}, (struct jstr){given, strlen(given)})) {
        code = copy_text(&output, text, length, err);
        if (code == SH_OK) code = copy_parts(&s, &output, parts, n_parts, err);
    } else {
        code = s.code;
    }
    if (code != SH_OK) {
        free(*text);
        *text = NULL;
        *length = 0;
    }
    release(s.chunks);
    release_strings(&s);
    return code;
}
