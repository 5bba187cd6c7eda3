/* jinja_json.c - variables from JSON (RFC 8259), and values to JSON as Python's json.dumps writes it. */
#include "compute/text/jinja.h"

#include "compute/text/utf8.h"

#include <math.h>
#include <stdio.h>

/* ---- reading ---- */

struct reader {
    struct jinja *s;
    const char *begin, *p, *end;
    uint32_t level;
};

static struct jval read_value(struct reader *r);

_Noreturn static void wrong(struct reader *r, const char *expected) {
    struct jinja *s = r->s;
    s->code = sh_fail(s->err, SH_ERR_INVALID, "variables: at byte %zu: found %.*s, expected %s", (size_t)(r->p - r->begin),
                      r->p < r->end ? 1 : 7, r->p < r->end ? r->p : "the end", expected);
    longjmp(s->out, 1);
}

static void skip_space(struct reader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\t' || *r->p == '\n' || *r->p == '\r')) r->p++;
}

static bool skip_char(struct reader *r, char c) {
    skip_space(r);
    if (r->p == r->end || *r->p != c) return false;
    r->p++;
    return true;
}

static uint32_t read_hex4(struct reader *r) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, r->p++) {
        const char c = r->p < r->end ? *r->p : 0;
        const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) wrong(r, "four hexadecimal digits");
        value = value << 4 | (uint32_t)digit;
    }
    return value;
}

/* Behind \u; a surrogate without its other half becomes U+FFFD. */
static void read_unicode_escape(struct reader *r, struct jbuf *b) {
    uint32_t c = read_hex4(r);
    if (c >= 0xD800 && c < 0xDC00 && r->end - r->p >= 2 && r->p[0] == '\\' && r->p[1] == 'u') {
        const char *back = r->p;
        r->p += 2;
        const uint32_t low = read_hex4(r);
        if (low >= 0xDC00 && low < 0xE000) c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        else r->p = back;
    }
    if (c >= 0xD800 && c < 0xE000) c = 0xFFFD;
    char out[4];
    jbuf_add(r->s, b, out, sh_utf8_encode(c, out));
}

static struct jstr read_string(struct reader *r) { /* behind its quote */
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    struct jbuf b = {0};
    const char *begin = r->p;
    while (r->p < r->end && *r->p != '"' && *r->p != '\\' && (uint8_t)*r->p >= 0x20) r->p++;
    if (r->p < r->end && *r->p == '"') return (struct jstr){begin, (size_t)(r->p++ - begin)}; /* as it stands in the text */
    jbuf_add(r->s, &b, begin, (size_t)(r->p - begin));
    for (;;) {
        if (r->p == r->end || (uint8_t)*r->p < 0x20) wrong(r, "the end of a string");
        const char c = *r->p++;
        if (c == '"') return jbuf_value(&b).s;
        if (c != '\\') {
            jbuf_add(r->s, &b, r->p - 1, 1);
            continue;
        }
        const char *known = r->p < r->end && *r->p ? strchr(from, *r->p) : NULL;
        const size_t since = b.n;
        const char *escape = r->p - 1;
        if (known) {
            jbuf_char(r->s, &b, to[known - from]);
            r->p++;
        } else if (r->p < r->end && *r->p == 'u') {
            r->p++;
            read_unicode_escape(r, &b);
        } else {
            wrong(r, "an escape");
        }
        jbuf_made_of(r->s, &b, since, (struct jstr){escape, 1});
    }
}

static struct jval read_number(struct reader *r) {
    const char *begin = r->p;
    bool is_float = false;
    for (; r->p < r->end && *r->p && strchr("+-0123456789.eE", *r->p); r->p++) is_float |= strchr(".eE", *r->p) != NULL;
    const struct jstr text = {begin, (size_t)(r->p - begin)};
    struct jval v = jv_int(0);
    if (!is_float && jinja_parse_int(text, 10, &v.i)) return v;
    v.kind = J_FLOAT; /* also an integer of more than 127 bits */
    if (!jinja_parse_float(text, &v.f)) {
        r->p = begin;
        wrong(r, "a value");
    }
    return v;
}

static struct jval read_array(struct reader *r) {
    const struct jval v = jv_list(r->s, 0);
    if (skip_char(r, ']')) return v;
    do jlist_add(r->s, v.list, read_value(r));
    while (skip_char(r, ','));
    if (!skip_char(r, ']')) wrong(r, "',' or ']'");
    return v;
}

static struct jval read_object(struct reader *r) {
    const struct jval v = jv_dict(r->s);
    if (skip_char(r, '}')) return v;
    do {
        if (!skip_char(r, '"')) wrong(r, "a key in quotes");
        const struct jstr key = read_string(r);
        if (!skip_char(r, ':')) wrong(r, "':'");
        jdict_set(r->s, v.dict, jv_str(key), read_value(r));
    } while (skip_char(r, ','));
    if (!skip_char(r, '}')) wrong(r, "',' or '}'");
    return v;
}

static bool skip_word(struct reader *r, const char *word) {
    const size_t n = strlen(word);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, word, n)) return false;
    r->p += n;
    return true;
}

static struct jval read_value(struct reader *r) {
    struct jval v;
    if (++r->level > JINJA_MAX_NESTING) jinja_limit(r->s, "levels of JSON", JINJA_MAX_NESTING);
    skip_space(r);
    if (skip_char(r, '{')) v = read_object(r);
    else if (skip_char(r, '[')) v = read_array(r);
    else if (skip_char(r, '"')) v = jv_str(read_string(r));
    else if (skip_word(r, "true")) v = jv_bool(true);
    else if (skip_word(r, "false")) v = jv_bool(false);
    else if (skip_word(r, "null")) v = jv_none();
    else if (r->p < r->end && (*r->p == '-' || (*r->p >= '0' && *r->p <= '9'))) v = read_number(r);
    else wrong(r, "a value");
    v.given = jv_is_number(v) && jinja_is_given(r->s, (struct jstr){r->p - 1, 1});
    r->level--;
    return v;
}

struct jdict *jinja_read_json(struct jinja *s, const char *text, size_t n) {
    struct reader r = {.s = s, .begin = text, .p = text, .end = text + n};
    if (!sh_utf8_valid(text, n)) {
        s->code = sh_fail(s->err, SH_ERR_INVALID, "variables: not UTF-8");
        longjmp(s->out, 1);
    }
    skip_space(&r);
    if (r.p == r.end || *r.p != '{') wrong(&r, "a JSON object");
    const struct jval v = read_value(&r);
    skip_space(&r);
    if (r.p != r.end) wrong(&r, "the end of the text");
    return v.dict;
}

/* ---- writing ---- */

static void write_string(struct jinja *s, struct jbuf *b, struct jstr t, bool ascii) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    size_t bytes;
    jinja_spend(s, t.n / 16);
    jbuf_char(s, b, '"');
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        const char *known = c && c < 0x80 ? strchr(from, (int)c) : NULL;
        char escape[16];
        int n = 0;
        if (known) n = snprintf(escape, sizeof escape, "\\%c", to[known - from]);
        else if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000)) n = snprintf(escape, sizeof escape, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            n = snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                         0xDC00 + ((c - 0x10000) & 0x3FF));
        jbuf_add(s, b, n ? escape : t.p + i, n ? (size_t)n : bytes);
        if (n) jbuf_made_of(s, b, b->n - (size_t)n, (struct jstr){t.p + i, bytes});
    }
    jbuf_char(s, b, '"');
}

static void new_line(struct jinja *s, struct jbuf *b, const struct jjson_style *style, uint32_t level) {
    if (!style->indent.p) return;
    jbuf_char(s, b, '\n');
    jbuf_fill(s, b, style->indent, level);
}

/* A key that is no string is written as one. */
static void write_key(struct jinja *s, struct jbuf *b, struct jval key, const struct jjson_style *style) {
    if (key.kind == J_STRING) {
        write_string(s, b, key.s, style->ascii);
        return;
    }
    if (!jv_is_number(key) && key.kind != J_NONE)
        jinja_fail(s, "tojson: found a key of type %s, expected a string", jv_type(key));
    jbuf_char(s, b, '"');
    jinja_write_json(s, b, key, style, 0);
    jbuf_char(s, b, '"');
}

static struct jentry *sorted_entries(struct jinja *s, const struct jdict *d) {
    struct jval keys = jv_list(s, d->n);
    struct jargs none = {0};
    for (size_t i = 0; i < d->n; i++) jlist_add(s, keys.list, d->entries[i].key);
    const struct jval case_sensitive[] = {{.kind = J_ABSENT}, jv_bool(true), {.kind = J_ABSENT}};
    keys = jinja_find_filter(JSTR("sort"))->call(s, keys, case_sensitive, &none);
    struct jentry *sorted = jinja_alloc(s, d->n * sizeof *sorted);
    for (size_t i = 0; i < d->n; i++) sorted[i] = (struct jentry){keys.list->items[i], *jdict_find(s, d, keys.list->items[i])};
    return sorted;
}

static void write_dict(struct jinja *s, struct jbuf *b, const struct jdict *d, const struct jjson_style *style, uint32_t level) {
    const struct jentry *entries = style->sort ? sorted_entries(s, d) : d->entries;
    jbuf_char(s, b, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i) jbuf_str(s, b, style->item);
        new_line(s, b, style, level + 1);
        write_key(s, b, entries[i].key, style);
        jbuf_str(s, b, style->key);
        jinja_write_json(s, b, entries[i].value, style, level + 1);
    }
    if (d->n) new_line(s, b, style, level);
    jbuf_char(s, b, '}');
}

static void write_list(struct jinja *s, struct jbuf *b, const struct jlist *list, const struct jjson_style *style,
                       uint32_t level) {
    jbuf_char(s, b, '[');
    for (size_t i = 0; i < list->n; i++) {
        if (i) jbuf_str(s, b, style->item);
        new_line(s, b, style, level + 1);
        jinja_write_json(s, b, list->items[i], style, level + 1);
    }
    if (list->n) new_line(s, b, style, level);
    jbuf_char(s, b, ']');
}

static void write_float(struct jinja *s, struct jbuf *b, double f) {
    if (isnan(f)) jbuf_str(s, b, JSTR("NaN"));
    else if (isinf(f)) jbuf_str(s, b, f < 0 ? JSTR("-Infinity") : JSTR("Infinity"));
    else jv_print_float(s, b, f);
}

void jinja_write_json(struct jinja *s, struct jbuf *b, struct jval v, const struct jjson_style *style, uint32_t level) {
    const size_t since = b->n;
    jinja_spend(s, 1);
    jinja_enter(s);
    switch (v.kind) {
    case J_NONE: jbuf_str(s, b, JSTR("null")); break;
    case J_BOOL: jbuf_str(s, b, v.b ? JSTR("true") : JSTR("false")); break;
    case J_INT: jv_print(s, b, v); break;
    case J_FLOAT: write_float(s, b, v.f); break;
    case J_STRING: write_string(s, b, v.s, style->ascii); break;
    case J_LIST:
    case J_TUPLE: write_list(s, b, v.list, style, level); break;
    case J_DICT: write_dict(s, b, v.dict, style, level); break;
    default: jinja_fail(s, "tojson: a value of type %s cannot be written", jv_type(v));
    }
    if (v.given) jbuf_mark(s, b, since);
    s->depth--;
}
