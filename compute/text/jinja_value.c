/* jinja_value.c - values: containers, truth, equality, order, and printing as Python does it. */
#include "compute/text/jinja.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- strings of bytes ---- */

bool jstr_equal(struct jstr a, struct jstr b) { return a.n == b.n && (!a.n || !memcmp(a.p, b.p, a.n)); }
bool jstr_is(struct jstr a, const char *text) { return a.n == strlen(text) && !memcmp(a.p, text, a.n); }

/* ---- lists ---- */

struct jval jv_list(struct jinja *s, size_t capacity) {
    struct jlist *list = jinja_alloc(s, sizeof *list);
    if (capacity > JINJA_MAX_MEMORY / sizeof *list->items) jinja_limit(s, "memory in bytes", JINJA_MAX_MEMORY);
    list->capacity = capacity;
    if (capacity) list->items = jinja_alloc(s, capacity * sizeof *list->items);
    return (struct jval){.kind = J_LIST, .list = list};
}

struct jval jv_lazy(struct jinja *s, size_t capacity) {
    struct jval v = jv_list(s, capacity);
    v.lazy = true;
    return v;
}

struct jval jv_tuple(struct jinja *s, const struct jval *items, size_t n) {
    struct jval v = jv_list(s, n);
    v.kind = J_TUPLE;
    if (n) memcpy(v.list->items, items, n * sizeof *items);
    v.list->n = n;
    return v;
}

void jlist_add(struct jinja *s, struct jlist *list, struct jval v) {
    if (list->n == list->capacity) {
        const size_t capacity = list->capacity ? list->capacity * 2 : 8;
        struct jval *grown = jinja_alloc(s, capacity * sizeof *grown);
        if (list->n) memcpy(grown, list->items, list->n * sizeof *grown);
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->n++] = v;
}

/* ---- dicts ---- */

enum { FEW = 8 }; /* entries up to which a search looks at all of them */

struct jval jv_dict(struct jinja *s) {
    return (struct jval){.kind = J_DICT, .dict = jinja_alloc(s, sizeof(struct jdict))};
}

static uint64_t mix(uint64_t h) { return (h ^ h >> 31) * 0x9E3779B97F4A7C15ull; }

/* Equal keys have equal hashes: numbers by their value as a double. */
static uint64_t hash(struct jinja *s, struct jval v) {
    uint64_t h = 14695981039346656037ull;
    switch (v.kind) {
    case J_STRING:
        jinja_spend(s, v.s.n / 64);
        for (size_t i = 0; i < v.s.n; i++) h = (h ^ (uint8_t)v.s.p[i]) * 1099511628211ull;
        return mix(h);
    case J_BOOL:
    case J_INT:
    case J_FLOAT: {
        const double d = jv_double(v) + 0.0;
        memcpy(&h, &d, sizeof h);
        return mix(h);
    }
    case J_TUPLE:
        jinja_enter(s);
        jinja_spend(s, v.list->n);
        for (size_t i = 0; i < v.list->n; i++) h = mix(h + hash(s, v.list->items[i]));
        s->depth--;
        return h;
    case J_NONE: return mix(1);
    default: jinja_fail(s, "found a value of type %s as a key, expected a string, a number or none", jv_type(v));
    }
}

/* The slot of the key, or the free one where it would go. */
static uint32_t *slot_of(struct jinja *s, const struct jdict *d, struct jval key) {
    size_t i = hash(s, key) & (d->n_slots - 1);
    for (size_t tries = 0; d->slots[i]; i = (i + 1) & (d->n_slots - 1)) {
        if (jv_equal(s, d->entries[d->slots[i] - 1].key, key)) break;
        if (++tries % FEW == 0) jinja_spend(s, 1);
    }
    return &d->slots[i];
}

static void rebuild_slots(struct jinja *s, struct jdict *d) {
    d->slots = NULL;
    d->n_slots = 0;
    if (d->capacity <= FEW) return;
    const size_t n_slots = d->capacity * 2; /* capacities are powers of two */
    d->slots = jinja_alloc(s, n_slots * sizeof *d->slots);
    d->n_slots = n_slots;
    for (size_t i = 0; i < d->n; i++) *slot_of(s, d, d->entries[i].key) = (uint32_t)(i + 1);
}

static struct jentry *find_entry(struct jinja *s, const struct jdict *d, struct jval key) {
    if (d->slots) {
        const uint32_t *slot = slot_of(s, d, key);
        return *slot ? &d->entries[*slot - 1] : NULL;
    }
    if (key.kind != J_STRING) hash(s, key); /* refuses what cannot be a key */
    for (size_t i = 0; i < d->n; i++) {
        if (jv_equal(s, d->entries[i].key, key)) return &d->entries[i];
    }
    return NULL;
}

struct jval *jdict_find(struct jinja *s, const struct jdict *d, struct jval key) {
    struct jentry *e = find_entry(s, d, key);
    return e ? &e->value : NULL;
}

struct jval *jdict_find_str(struct jinja *s, const struct jdict *d, struct jstr key) {
    return jdict_find(s, d, jv_str(key));
}

void jdict_set(struct jinja *s, struct jdict *d, struct jval key, struct jval value) {
    struct jentry *e = find_entry(s, d, key);
    if (e) {
        e->value = value;
        return;
    }
    if (d->n == d->capacity) {
        const size_t capacity = d->capacity ? d->capacity * 2 : 4;
        struct jentry *grown = jinja_alloc(s, capacity * sizeof *grown);
        if (d->n) memcpy(grown, d->entries, d->n * sizeof *grown);
        d->entries = grown;
        d->capacity = capacity;
        rebuild_slots(s, d);
    }
    d->entries[d->n++] = (struct jentry){key, value};
    if (d->slots) *slot_of(s, d, key) = (uint32_t)d->n;
}

bool jdict_remove(struct jinja *s, struct jdict *d, struct jval key, struct jval *value) {
    struct jentry *e = find_entry(s, d, key);
    if (!e) return false;
    *value = e->value;
    const size_t at = (size_t)(e - d->entries);
    jinja_spend(s, d->n);
    memmove(e, e + 1, (d->n - at - 1) * sizeof *e);
    d->n--;
    rebuild_slots(s, d);
    return true;
}

void jdict_merge(struct jinja *s, struct jdict *d, struct jval from) {
    if (from.kind == J_DICT || from.kind == J_NAMESPACE) {
        jinja_spend(s, from.dict->n);
        for (size_t i = 0; i < from.dict->n; i++) jdict_set(s, d, from.dict->entries[i].key, from.dict->entries[i].value);
        return;
    }
    const struct jval pairs = jv_iterate(s, from);
    for (size_t i = 0; i < pairs.list->n; i++) {
        const struct jval pair = jv_iterate(s, pairs.list->items[i]);
        if (pair.list->n != 2) jinja_fail(s, "element %zu has %zu parts, expected a key and a value", i, pair.list->n);
        jdict_set(s, d, pair.list->items[0], pair.list->items[1]);
    }
}

struct jval jdict_pairs(struct jinja *s, const struct jdict *d) {
    struct jval list = jv_list(s, d->n);
    jinja_spend(s, d->n);
    for (size_t i = 0; i < d->n; i++) {
        const struct jval pair[] = {d->entries[i].key, d->entries[i].value};
        jlist_add(s, list.list, jv_tuple(s, pair, 2));
    }
    return list;
}

/* ---- kinds, truth, equality, order ---- */

const char *jv_type(struct jval v) {
    switch (v.kind) {
    case J_UNDEFINED: return "undefined";
    case J_NONE: return "none";
    case J_BOOL: return "bool";
    case J_INT: return "int";
    case J_FLOAT: return "float";
    case J_STRING: return "string";
    case J_LIST: return "list";
    case J_TUPLE: return "tuple";
    case J_DICT: return "dict";
    case J_NAMESPACE: return "namespace";
    case J_MACRO: return "macro";
    case J_LOOP: return "loop";
    case J_ABSENT:
    case J_FUNCTION:
    case J_METHOD:
    case J_JOINER:
    case J_CYCLER: break;
    }
    return "function";
}

bool jv_truth(struct jval v) {
    switch (v.kind) {
    case J_ABSENT:
    case J_UNDEFINED:
    case J_NONE: return false;
    case J_BOOL: return v.b;
    case J_INT: return v.i != 0;
    case J_FLOAT: return v.f != 0;
    case J_STRING: return v.s.n > 0;
    case J_LIST:
    case J_TUPLE: return v.lazy || v.list->n > 0;
    case J_DICT: return v.dict->n > 0;
    default: return true;
    }
}

static bool equal_dicts(struct jinja *s, const struct jdict *a, const struct jdict *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct jval *other = jdict_find(s, b, a->entries[i].key);
        if (!other || !jv_equal(s, a->entries[i].value, *other)) return false;
    }
    return true;
}

static bool equal_lists(struct jinja *s, const struct jlist *a, const struct jlist *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        if (!jv_equal(s, a->items[i], b->items[i])) return false;
    }
    return true;
}

bool jv_equal(struct jinja *s, struct jval a, struct jval b) {
    jinja_spend(s, 1);
    if (jv_is_number(a) && jv_is_number(b)) {
        return a.kind == J_FLOAT || b.kind == J_FLOAT ? jv_double(a) == jv_double(b) : jv_integer(a) == jv_integer(b);
    }
    if (a.kind != b.kind) return false;
    bool result;
    switch (a.kind) {
    case J_ABSENT:
    case J_UNDEFINED:
    case J_NONE: return true;
    case J_STRING:
        if (a.s.n == b.s.n) jinja_spend(s, a.s.n / 64);
        return jstr_equal(a.s, b.s);
    case J_LIST:
    case J_TUPLE:
        jinja_enter(s);
        result = equal_lists(s, a.list, b.list);
        s->depth--;
        return result;
    case J_DICT:
        jinja_enter(s);
        result = equal_dicts(s, a.dict, b.dict);
        s->depth--;
        return result;
    case J_FUNCTION: return a.function == b.function;
    default: return a.dict == b.dict; /* the same object: any pointer of the union */
    }
}

static int compare_lists(struct jinja *s, const struct jlist *a, const struct jlist *b, const char *op) {
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        if (!jv_equal(s, a->items[i], b->items[i])) return jv_compare(s, a->items[i], b->items[i], op);
    }
    return a->n < b->n ? -1 : a->n > b->n;
}

int jv_compare(struct jinja *s, struct jval a, struct jval b, const char *op) {
    jinja_spend(s, 1);
    if (jv_is_number(a) && jv_is_number(b)) {
        if (a.kind == J_FLOAT || b.kind == J_FLOAT) return jv_double(a) < jv_double(b) ? -1 : jv_double(a) > jv_double(b);
        return jv_integer(a) < jv_integer(b) ? -1 : jv_integer(a) > jv_integer(b);
    }
    if (a.kind == J_STRING && b.kind == J_STRING) { /* the order of UTF-8 is that of code points */
        const size_t n = a.s.n < b.s.n ? a.s.n : b.s.n;
        jinja_spend(s, n / 64);
        const int order = n ? memcmp(a.s.p, b.s.p, n) : 0;
        return order ? order : a.s.n < b.s.n ? -1 : a.s.n > b.s.n;
    }
    if (jv_is_sequence(a) && a.kind == b.kind) {
        jinja_enter(s);
        const int order = compare_lists(s, a.list, b.list, op);
        s->depth--;
        return order;
    }
    jinja_fail(s, "'%s' has no meaning between %s and %s", op, jv_type(a), jv_type(b));
}

bool jv_contains(struct jinja *s, struct jval container, struct jval v) {
    switch (container.kind) {
    case J_STRING:
        if (v.kind != J_STRING) jinja_fail(s, "'in': found %s, expected a string to look for in a string", jv_type(v));
        return jstr_find(s, container.s, v.s, 0) != SIZE_MAX;
    case J_DICT: return jdict_find(s, container.dict, v) != NULL;
    case J_UNDEFINED: return false;
    default: break;
    }
    const struct jval list = jv_iterate(s, container);
    for (size_t i = 0; i < list.list->n; i++) {
        if (jv_equal(s, list.list->items[i], v)) return true;
    }
    return false;
}

__int128 jv_length(struct jinja *s, struct jval v) {
    switch (v.kind) {
    case J_STRING: return (__int128)jstr_length(s, v.s);
    case J_LIST:
    case J_TUPLE: return (__int128)v.list->n;
    case J_DICT: return (__int128)v.dict->n;
    case J_UNDEFINED: return 0;
    default: jinja_fail(s, "a value of type %s has no length", jv_type(v));
    }
}

static struct jval characters(struct jinja *s, struct jstr t) {
    const struct jval list = jv_list(s, jstr_length(s, t));
    jinja_spend(s, list.list->capacity);
    size_t bytes;
    for (size_t i = 0; i < t.n; i += bytes) {
        jstr_next(t.p + i, t.p + t.n, &bytes);
        jlist_add(s, list.list, jv_text(t.p + i, bytes));
    }
    return list;
}

struct jval jv_iterate(struct jinja *s, struct jval v) {
    struct jval list;
    switch (v.kind) {
    case J_LIST:
    case J_TUPLE: jinja_spend(s, v.list->n / 8); return v;
    case J_STRING: return characters(s, v.s);
    case J_UNDEFINED: return jv_list(s, 0);
    case J_DICT:
        list = jv_list(s, v.dict->n);
        jinja_spend(s, v.dict->n);
        for (size_t i = 0; i < v.dict->n; i++) jlist_add(s, list.list, v.dict->entries[i].key);
        return list;
    default: jinja_fail(s, "found %s, expected something to iterate over", jv_type(v));
    }
}

/* ---- printing ---- */

size_t jv_int_digits(unsigned __int128 i, unsigned base, bool upper, char out[130]) {
    char reversed[130];
    size_t n = 0;
    do reversed[n++] = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[(unsigned)(i % base)];
    while (i /= base);
    for (size_t k = 0; k < n; k++) out[k] = reversed[n - 1 - k];
    return n;
}

static void print_int(struct jinja *s, struct jbuf *b, __int128 i) {
    char digits[130];
    if (i < 0) jbuf_char(s, b, '-');
    const size_t n = jv_int_digits(i < 0 ? -(unsigned __int128)i : (unsigned __int128)i, 10, false, digits);
    jbuf_add(s, b, digits, n);
}

/* The fewest digits that read back as the same number; an exponent below 1e-4 and from 1e16. */
void jv_print_float(struct jinja *s, struct jbuf *b, double f) {
    char text[64], digits[32];
    if (isnan(f) || isinf(f)) {
        const char *name = isnan(f) ? "nan" : f < 0 ? "-inf" : "inf";
        jbuf_add(s, b, name, strlen(name));
        return;
    }
    int precision = 0;
    do snprintf(text, sizeof text, "%.*e", precision, f);
    while (strtod(text, NULL) != f && ++precision < 17);
    const char *p = text;
    if (*p == '-') jbuf_char(s, b, *p++);
    int n = 0;
    for (; *p != 'e'; p++) {
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    }
    const int exponent = (int)strtol(p + 1, NULL, 10);
    while (n > 1 && digits[n - 1] == '0') n--;
    if (exponent < -4 || exponent >= 16) {
        jbuf_add(s, b, digits, 1);
        if (n > 1) jbuf_char(s, b, '.');
        jbuf_add(s, b, digits + 1, (size_t)(n - 1));
        jbuf_add(s, b, text, (size_t)snprintf(text, sizeof text, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent)));
        return;
    }
    const int whole = exponent + 1; /* digits in front of the point */
    if (whole <= 0) jbuf_char(s, b, '0');
    for (int i = 0; i < whole; i++) jbuf_char(s, b, i < n ? digits[i] : '0');
    jbuf_char(s, b, '.');
    for (int i = whole; i < 0; i++) jbuf_char(s, b, '0');
    const int first = whole > 0 ? whole : 0;
    if (first >= n) jbuf_char(s, b, '0');
    else jbuf_add(s, b, digits + first, (size_t)(n - first));
}

static void repr_string(struct jinja *s, struct jbuf *b, struct jstr t) {
    const char quote = memchr(t.p, '\'', t.n) && !memchr(t.p, '"', t.n) ? '"' : '\'';
    size_t bytes;
    jinja_spend(s, t.n / 16);
    jbuf_char(s, b, quote);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        const char *named = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
        const size_t since = b->n;
        char escape[16];
        if (named) {
            jbuf_add(s, b, named, 2);
        } else if (c == (uint32_t)quote) {
            jbuf_char(s, b, '\\');
            jbuf_char(s, b, quote);
        } else if (jstr_is_printable(c)) {
            jbuf_add(s, b, t.p + i, bytes);
        } else {
            const int n = snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
            jbuf_add(s, b, escape, (size_t)n);
        }
        jbuf_made_of(s, b, since, (struct jstr){t.p + i, bytes});
    }
    jbuf_char(s, b, quote);
}

static void repr_sequence(struct jinja *s, struct jbuf *b, struct jval v) {
    jbuf_char(s, b, v.kind == J_LIST ? '[' : '(');
    for (size_t i = 0; i < v.list->n; i++) {
        if (i) jbuf_str(s, b, JSTR(", "));
        jv_repr(s, b, v.list->items[i]);
    }
    if (v.kind == J_TUPLE && v.list->n == 1) jbuf_char(s, b, ',');
    jbuf_char(s, b, v.kind == J_LIST ? ']' : ')');
}

static void repr_dict(struct jinja *s, struct jbuf *b, const struct jdict *d) {
    jbuf_char(s, b, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i) jbuf_str(s, b, JSTR(", "));
        jv_repr(s, b, d->entries[i].key);
        jbuf_str(s, b, JSTR(": "));
        jv_repr(s, b, d->entries[i].value);
    }
    jbuf_char(s, b, '}');
}

void jv_repr(struct jinja *s, struct jbuf *b, struct jval v) {
    const char *name = jv_type(v);
    const size_t since = b->n;
    jinja_spend(s, 1);
    jinja_enter(s);
    switch (v.kind) {
    case J_UNDEFINED: jbuf_str(s, b, JSTR("Undefined")); break;
    case J_NONE: jbuf_str(s, b, JSTR("None")); break;
    case J_BOOL: jbuf_str(s, b, v.b ? JSTR("True") : JSTR("False")); break;
    case J_INT: print_int(s, b, v.i); break;
    case J_FLOAT: jv_print_float(s, b, v.f); break;
    case J_STRING: repr_string(s, b, v.s); break;
    case J_LIST:
    case J_TUPLE: repr_sequence(s, b, v); break;
    case J_DICT: repr_dict(s, b, v.dict); break;
    default:
        jbuf_char(s, b, '<');
        jbuf_add(s, b, name, strlen(name));
        jbuf_char(s, b, '>');
    }
    if (v.given) jbuf_mark(s, b, since);
    s->depth--;
}

void jv_print(struct jinja *s, struct jbuf *b, struct jval v) {
    if (v.kind == J_STRING) {
        jinja_spend(s, v.s.n / 64 + 1);
        jbuf_str(s, b, v.s);
    } else if (v.kind != J_UNDEFINED) {
        jv_repr(s, b, v);
    }
}

struct jstr jv_string(struct jinja *s, struct jval v) {
    struct jbuf b = {0};
    if (v.kind == J_STRING) return v.s;
    jv_print(s, &b, v);
    return jbuf_value(&b).s;
}
