/*
 * gbnf.c - grammars in the notation of llama.cpp (its grammars/README.md): rules `name ::= ...`, of which `root` is the whole.
 *
 * Beyond it a rule may go on in the next line until something that begins with `name ::=` follows. What it takes silently and is
 * surely a mistake (a rule defined twice, an unknown escape) is refused.
 */
#include "compute/grammar/grammar.h"

#include "compute/text/utf8.h"
#include "compute/text/vocab.h"

#include <stdlib.h>

struct name {
    const char *text;
    size_t length;
    uint32_t rule;
    const char *used, *defined; /* where first; NULL: never */
};

struct gbnf {
    struct sh_gr *gr;
    const struct sh_vocab *vocab;
    const char *text, *at, *end;
    struct name *names;
    uint32_t n_names, names_capacity;
    uint32_t *buckets, n_buckets; /* of names, open addressing; UINT32_MAX: free */
    sh_gr_expr *stack;            /* items of the sequences and choices that are being read */
    uint32_t n_stack, stack_capacity;
    uint32_t depth;
    struct sh_error *err;
};

/* ---- errors ---- */

/* What stands there, for people: a character in quotes, or that the text ends. */
static void describe(const struct gbnf *g, const char *at, char out[16]) {
    size_t length;
    if (at >= g->end) {
        memcpy(out, "the end", 8);
    } else if (*at == '\n' || *at == '\r') {
        memcpy(out, "the line's end", 15);
    } else {
        if (sh_utf8_scan(at, (size_t)(g->end - at), &length, NULL) != SH_UTF8_OK) length = 1;
        out[0] = '\'';
        memcpy(out + 1, at, length);
        out[length + 1] = '\'';
        out[length + 2] = 0;
    }
}

static void place(const struct gbnf *g, const char *at, uint32_t *line, uint32_t *column) {
    *line = *column = 1;
    for (const char *p = g->text; p < at; p++) {
        if (*p == '\n') {
            (*line)++;
            *column = 1;
        } else if ((*p & 0xC0) != 0x80) {
            (*column)++;
        }
    }
}

static enum sh_code fail_at(const struct gbnf *g, const char *at, enum sh_code code, const char *what) {
    uint32_t line, column;
    place(g, at, &line, &column);
    return sh_fail(g->err, code, "grammar, line %u, column %u: %s", (unsigned)line, (unsigned)column, what);
}

static enum sh_code expected(const struct gbnf *g, const char *what) {
    uint32_t line, column;
    char found[16];
    place(g, g->at, &line, &column);
    describe(g, g->at, found);
    return sh_fail(g->err, SH_ERR_INVALID, "grammar, line %u, column %u: expected %s, found %s", (unsigned)line, (unsigned)column,
                   what, found);
}

static enum sh_code no_memory(const struct gbnf *g) { return sh_fail(g->err, SH_ERR_NO_MEMORY, "no memory for a grammar"); }

/* ---- names ---- */

static uint32_t hash(const char *text, size_t length) {
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < length; i++) h = (h ^ (uint8_t)text[i]) * 16777619u;
    return h;
}

static uint32_t *bucket_of(const struct gbnf *g, const char *text, size_t length) {
    uint32_t b = hash(text, length) & (g->n_buckets - 1);
    while (g->buckets[b] != UINT32_MAX) {
        const struct name *name = &g->names[g->buckets[b]];
        if (name->length == length && memcmp(name->text, text, length) == 0) break;
        b = (b + 1) & (g->n_buckets - 1);
    }
    return &g->buckets[b];
}

static bool grow_buckets(struct gbnf *g) {
    const uint32_t n = g->n_buckets > 0 ? g->n_buckets * 2 : 64;
    uint32_t *buckets = malloc(n * sizeof *buckets);
    if (buckets == NULL) return false;
    memset(buckets, 0xFF, n * sizeof *buckets);
    free(g->buckets);
    g->buckets = buckets;
    g->n_buckets = n;
    for (uint32_t i = 0; i < g->n_names; i++) *bucket_of(g, g->names[i].text, g->names[i].length) = i;
    return true;
}

static struct name *find_name(struct gbnf *g, const char *text, size_t length) { /* NULL: no memory */
    if (g->n_names * 2 >= g->n_buckets && !grow_buckets(g)) return NULL;
    uint32_t *bucket = bucket_of(g, text, length);
    if (*bucket != UINT32_MAX) return &g->names[*bucket];
    char copy[64];
    const size_t n = length < sizeof copy ? length : sizeof copy - 1;
    if (!sh_grow((void **)&g->names, &g->names_capacity, g->n_names + 1, sizeof *g->names)) return NULL;
    memcpy(copy, text, n);
    copy[n] = 0;
    g->names[g->n_names] = (struct name){text, length, sh_gr_rule(g->gr, copy), NULL, NULL};
    *bucket = g->n_names++;
    return &g->names[*bucket];
}

/* ---- characters ---- */

static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static size_t name_length(const struct gbnf *g, const char *at) {
    size_t n = 0;
    while (at + n < g->end && is_name(at[n])) n++;
    return n;
}

static const char *skip_blanks(const struct gbnf *g, const char *at, bool lines) {
    for (; at < g->end; at++) {
        if (*at == '#') {
            while (at < g->end && *at != '\n' && *at != '\r') at++;
            at--;
        } else if (*at != ' ' && *at != '\t' && !(lines && (*at == '\n' || *at == '\r'))) {
            break;
        }
    }
    return at;
}

/* A rule begins here: a name and "::=". */
static bool rule_begins(const struct gbnf *g, const char *at) {
    const size_t n = name_length(g, at);
    if (n == 0) return false;
    at = skip_blanks(g, at + n, false);
    return g->end - at >= 3 && memcmp(at, "::=", 3) == 0;
}

/* One character of a literal or a class, perhaps an escape. */
static enum sh_code read_character(struct gbnf *g, uint32_t *out) {
    size_t length;
    const char *begin = g->at;
    if (g->at >= g->end) return expected(g, "a character");
    if (*g->at != '\\') {
        if (sh_utf8_scan(g->at, (size_t)(g->end - g->at), &length, out) != SH_UTF8_OK) {
            return fail_at(g, g->at, SH_ERR_INVALID, "this is no UTF-8");
        }
        g->at += length;
        return SH_OK;
    }
    g->at++;
    const char kind = g->at < g->end ? *g->at : 0;
    uint32_t digits = 0;
    switch (kind) {
    case 'n': *out = '\n'; break;
    case 'r': *out = '\r'; break;
    case 't': *out = '\t'; break;
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
    case '^': *out = (uint8_t)kind; break;
    case 'x': digits = 2; break;
    case 'u': digits = 4; break;
    case 'U': digits = 8; break;
    default: return expected(g, "an escape: one of \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\xHH \\uHHHH \\UHHHHHHHH");
    }
    g->at++;
    if (digits == 0) return SH_OK;
    uint64_t c = 0;
    for (uint32_t i = 0; i < digits; i++, g->at++) {
        const char d = g->at < g->end ? *g->at : 0;
        if (d >= '0' && d <= '9') c = c << 4 | (uint32_t)(d - '0');
        else if ((d >= 'a' && d <= 'f') || (d >= 'A' && d <= 'F')) c = c << 4 | (uint32_t)((d | 0x20) - 'a' + 10);
        else
            return expected(g, digits == 2   ? "two hexadecimal digits"
                               : digits == 4 ? "four hexadecimal digits"
                                             : "eight hexadecimal digits");
    }
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        return fail_at(g, begin, SH_ERR_INVALID, "this escape is no Unicode character");
    *out = (uint32_t)c;
    return SH_OK;
}

static enum sh_code read_literal(struct gbnf *g, sh_gr_expr *out) {
    const char *begin = g->at++;
    sh_gr_expr all = SH_GR_EMPTY;
    char run[256];
    size_t n = 0;
    for (;;) {
        if (g->at >= g->end || *g->at == '\n')
            return fail_at(g, begin, SH_ERR_INVALID, "this text has no closing '\"' in its line");
        if (*g->at == '"') break;
        uint32_t c;
        const enum sh_code code = read_character(g, &c);
        if (code != SH_OK) return code;
        if (n + 4 > sizeof run) {
            all = sh_gr_pair(g->gr, all, sh_gr_text(g->gr, run, n));
            n = 0;
        }
        n += sh_utf8_encode(c, run + n);
    }
    g->at++;
    *out = n > 0 ? sh_gr_pair(g->gr, all, sh_gr_text(g->gr, run, n)) : all;
    return SH_OK;
}

static enum sh_code read_class(struct gbnf *g, sh_gr_expr *out) {
    const char *begin = g->at++;
    const bool negated = g->at < g->end && *g->at == '^';
    struct sh_gr_range *ranges = NULL;
    uint32_t n = 0, capacity = 0;
    enum sh_code code = SH_OK;
    if (negated) g->at++;
    while (code == SH_OK && (g->at >= g->end || *g->at != ']')) {
        if (g->at >= g->end || *g->at == '\n') {
            code = fail_at(g, begin, SH_ERR_INVALID, "this '[' has no closing ']' in its line");
            break;
        }
        struct sh_gr_range r;
        const char *first = g->at;
        code = read_character(g, &r.first);
        r.last = r.first;
        if (code == SH_OK && g->end - g->at >= 2 && *g->at == '-' && g->at[1] != ']') {
            g->at++;
            code = read_character(g, &r.last);
            if (code == SH_OK && r.last < r.first)
                code = fail_at(g, first, SH_ERR_INVALID, "the range's end lies before its beginning");
        }
        if (code == SH_OK && !sh_grow((void **)&ranges, &capacity, n + 1, sizeof *ranges)) code = no_memory(g);
        if (code == SH_OK) ranges[n++] = r;
    }
    if (code == SH_OK && n == 0 && !negated) code = fail_at(g, begin, SH_ERR_INVALID, "an empty class matches nothing");
    if (code == SH_OK) {
        g->at++;
        *out = sh_gr_class(g->gr, ranges, n, negated);
    }
    free(ranges);
    return code;
}

/* <[17]> or <text>, which is one token. */
static enum sh_code read_token(struct gbnf *g, int32_t *out) {
    const char *begin = g->at;
    if (g->end - begin >= 2 && begin[1] == '[') {
        uint64_t id = 0;
        g->at += 2;
        const char *digits = g->at;
        for (; g->at < g->end && *g->at >= '0' && *g->at <= '9' && id < INT32_MAX; g->at++)
            id = id * 10 + (uint32_t)(*g->at - '0');
        if (g->at == digits) return expected(g, "a token's number");
        if (g->end - g->at < 2 || g->at[0] != ']' || g->at[1] != '>') return expected(g, "\"]>\" behind the token's number");
        g->at += 2;
        if (g->vocab == NULL || id >= sh_vocab_size(g->vocab)) {
            return fail_at(g, begin, SH_ERR_INVALID, "the vocabulary has no token of this number");
        }
        *out = (int32_t)id;
        return SH_OK;
    }
    while (g->at < g->end && *g->at != '>' && *g->at != '\n') g->at++;
    if (g->at >= g->end || *g->at == '\n') return fail_at(g, begin, SH_ERR_INVALID, "this '<' has no closing '>' in its line");
    g->at++;
    int32_t *ids = NULL;
    size_t count = 0;
    if (g->vocab != NULL) {
        *out = sh_vocab_find_special(g->vocab, begin, (size_t)(g->at - begin));
        if (*out >= 0) return SH_OK;
        const enum sh_code code = sh_tokenize(g->vocab, begin, (size_t)(g->at - begin), SH_TOKENIZE_PARSE, &ids, &count, g->err);
        if (code != SH_OK) return code;
        if (count == 1) *out = ids[0];
        free(ids);
    }
    return count == 1
               ? SH_OK
               : fail_at(g, begin, SH_ERR_INVALID, "this is not one token of the vocabulary; write it as a text in quotes");
}

/* ---- rules ---- */

static enum sh_code read_choice(struct gbnf *g, bool nested, sh_gr_expr *out);

/* Not this token, any number of times: the text in which it does not occur. */
static enum sh_code read_other_tokens(struct gbnf *g, sh_gr_expr *out) {
    const char *begin = g->at++;
    int32_t token;
    if (g->at >= g->end || *g->at != '<') return expected(g, "a token behind '!': <text> or <[number]>");
    const enum sh_code code = read_token(g, &token);
    if (code != SH_OK) return code;
    size_t length;
    const char *piece = sh_vocab_piece(g->vocab, token, true, &length);
    if (g->at >= g->end || *g->at != '*' || length == 0) {
        return fail_at(g, begin, SH_ERR_UNSUPPORTED, "\"any token but this one\" is taken only with a '*' directly behind it");
    }
    g->at++;
    *out = sh_gr_until(g->gr, piece, length);
    return SH_OK;
}

static enum sh_code read_count(struct gbnf *g, uint32_t *out) {
    uint64_t n = 0;
    const char *begin = g->at;
    for (; g->at < g->end && *g->at >= '0' && *g->at <= '9'; g->at++) {
        n = n * 10 + (uint32_t)(*g->at - '0');
        if (n > INT32_MAX) return fail_at(g, begin, SH_ERR_LIMIT, "more repetitions than 2147483647");
    }
    if (g->at == begin) return expected(g, "a number of repetitions");
    *out = (uint32_t)n;
    return SH_OK;
}

/* * + ? {m} {m,} {m,n}, and again. */
static enum sh_code read_repeats(struct gbnf *g, sh_gr_expr *item) {
    for (;; g->at++) {
        const char c = g->at < g->end ? *g->at : 0;
        uint32_t min = 0, max = SH_GR_UNLIMITED;
        if (c == '+') {
            min = 1;
        } else if (c == '?') {
            max = 1;
        } else if (c == '{') {
            const char *begin = g->at;
            g->at = skip_blanks(g, g->at + 1, false);
            enum sh_code code = read_count(g, &min);
            if (code != SH_OK) return code;
            g->at = skip_blanks(g, g->at, false);
            if (g->at < g->end && *g->at == ',') {
                g->at = skip_blanks(g, g->at + 1, false);
                if (g->at < g->end && *g->at != '}') code = read_count(g, &max);
                if (code != SH_OK) return code;
                g->at = skip_blanks(g, g->at, false);
            } else {
                max = min;
            }
            if (g->at >= g->end || *g->at != '}') return expected(g, "'}'");
            if (max < min) return fail_at(g, begin, SH_ERR_INVALID, "at least more than at most");
        } else if (c != '*') {
            return SH_OK;
        }
        *item = sh_gr_repeat(g->gr, *item, min, max);
    }
}

static enum sh_code read_item(struct gbnf *g, sh_gr_expr *out) {
    const char *begin = g->at;
    enum sh_code code = SH_OK;
    int32_t token;
    switch (*g->at) {
    case '"': code = read_literal(g, out); break;
    case '[': code = read_class(g, out); break;
    case '.':
        g->at++;
        *out = sh_gr_class(g->gr, NULL, 0, true);
        break;
    case '<':
        code = read_token(g, &token);
        if (code == SH_OK) *out = sh_gr_token(g->gr, token);
        break;
    case '!': code = read_other_tokens(g, out); break;
    case '(':
        g->at++;
        if (++g->depth > SH_GR_MAX_DEPTH) return fail_at(g, begin, SH_ERR_LIMIT, "brackets are nested too deeply");
        code = read_choice(g, true, out);
        g->depth--;
        if (code == SH_OK && (g->at >= g->end || *g->at != ')')) code = expected(g, "')'");
        if (code == SH_OK) g->at++;
        break;
    default: {
        const size_t n = name_length(g, begin);
        if (n == 0) return expected(g, "a text, a class, a rule's name, a token, '(' or a rule's end");
        struct name *name = find_name(g, begin, n);
        if (name == NULL) return no_memory(g);
        if (name->used == NULL) name->used = begin;
        *out = sh_gr_ref(g->gr, name->rule);
        g->at += n;
    }
    }
    if (code != SH_OK) return code;
    return read_repeats(g, out);
}

static bool push(struct gbnf *g, sh_gr_expr expr) {
    if (!sh_grow((void **)&g->stack, &g->stack_capacity, g->n_stack + 1, sizeof *g->stack)) return false;
    g->stack[g->n_stack++] = expr;
    return true;
}

/* Up to '|', ')', the end or, outside of brackets, a line that begins a rule. */
static enum sh_code read_sequence(struct gbnf *g, bool nested, sh_gr_expr *out) {
    const uint32_t base = g->n_stack;
    for (;;) {
        const char *was = g->at;
        g->at = skip_blanks(g, g->at, true);
        if (g->at >= g->end || *g->at == '|' || *g->at == ')') break;
        if (!nested && memchr(was, '\n', (size_t)(g->at - was)) != NULL && rule_begins(g, g->at)) break;
        sh_gr_expr item = SH_GR_NEVER;
        const enum sh_code code = read_item(g, &item);
        if (code != SH_OK) return code;
        if (!push(g, item)) return no_memory(g);
    }
    *out = sh_gr_sequence(g->gr, g->n_stack > base ? &g->stack[base] : NULL, g->n_stack - base);
    g->n_stack = base;
    return SH_OK;
}

static enum sh_code read_choice(struct gbnf *g, bool nested, sh_gr_expr *out) {
    const uint32_t base = g->n_stack;
    for (;; g->at++) {
        sh_gr_expr item = SH_GR_NEVER;
        const enum sh_code code = read_sequence(g, nested, &item);
        if (code != SH_OK) return code;
        if (!push(g, item)) return no_memory(g);
        if (g->at >= g->end || *g->at != '|') break;
    }
    const uint32_t n = g->n_stack - base;
    *out = n == 1 ? g->stack[base] : sh_gr_choice(g->gr, g->stack + base, n);
    g->n_stack = base;
    return SH_OK;
}

static enum sh_code read_rule(struct gbnf *g) {
    const char *begin = g->at;
    const size_t n = name_length(g, begin);
    if (n == 0) return expected(g, "a rule: name ::= ...");
    g->at = skip_blanks(g, begin + n, false);
    if (g->end - g->at < 3 || memcmp(g->at, "::=", 3) != 0) return expected(g, "\"::=\" behind the rule's name");
    g->at += 3;
    struct name *name = find_name(g, begin, n);
    if (name == NULL) return no_memory(g);
    if (name->defined != NULL)
        return fail_at(g, begin, SH_ERR_INVALID, "this rule was defined before; join alternatives with '|'");
    name->defined = begin;
    const uint32_t rule = name->rule;
    sh_gr_expr expr = SH_GR_NEVER;
    const enum sh_code code = read_choice(g, false, &expr);
    if (code != SH_OK) return code;
    if (g->at < g->end && *g->at == ')') return expected(g, "a rule's end or '|'");
    sh_gr_set_rule(g->gr, rule, expr);
    return SH_OK;
}

static enum sh_code read_grammar(struct gbnf *g, sh_gr_expr *out) {
    for (g->at = skip_blanks(g, g->at, true); g->at < g->end; g->at = skip_blanks(g, g->at, true)) {
        const enum sh_code code = read_rule(g);
        if (code != SH_OK) return code;
    }
    for (uint32_t i = 0; i < g->n_names; i++) {
        const struct name *name = &g->names[i];
        if (name->defined != NULL) continue;
        uint32_t line, column;
        place(g, name->used, &line, &column);
        return sh_fail(g->err, SH_ERR_INVALID, "grammar, line %u, column %u: there is no rule \"%.*s\"", (unsigned)line,
                       (unsigned)column, (int)(name->length < 100 ? name->length : 100), name->text);
    }
    struct name *root = find_name(g, "root", 4);
    if (root == NULL) return no_memory(g);
    if (root->defined == NULL)
        return sh_fail(g->err, SH_ERR_INVALID, "the grammar has no rule \"root\", which is the whole text");
    *out = sh_gr_ref(g->gr, root->rule);
    return SH_OK;
}

enum sh_code sh_gr_gbnf(struct sh_gr *gr, const struct sh_vocab *vocab, const char *text, size_t length, sh_gr_expr *out,
                        struct sh_error *err) {
    if (length > SH_GR_MAX_TEXT) {
        return sh_fail(err, SH_ERR_LIMIT, "the grammar has %zu bytes, at most %d are allowed", length, SH_GR_MAX_TEXT);
    }
    struct gbnf g = {.gr = gr, .vocab = vocab, .text = text, .at = text, .end = text + length, .err = err};
    const enum sh_code code = read_grammar(&g, out);
    free(g.names);
    free(g.buckets);
    free(g.stack);
    return code;
}
