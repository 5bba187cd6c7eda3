/* charset.c - sets of code points, and how code points stand in JSON strings. */
#include "compute/grammar/charset.h"

#include <stdio.h>
#include <stdlib.h>

void sh_charset_free(struct sh_charset *set) {
    free(set->ranges);
    *set = (struct sh_charset){0};
}

void sh_charset_add(struct sh_charset *set, uint32_t first, uint32_t last) {
    if (set->failed || first > last) return;
    if (!sh_grow((void **)&set->ranges, &set->capacity, set->n + 1, sizeof *set->ranges)) {
        set->failed = true;
        return;
    }
    set->ranges[set->n++] = (struct sh_gr_range){first, last};
}

void sh_charset_add_set(struct sh_charset *set, const struct sh_charset *other) {
    if (other->failed) set->failed = true;
    for (uint32_t i = 0; i < other->n; i++) sh_charset_add(set, other->ranges[i].first, other->ranges[i].last);
}

static int compare_ranges(const void *a, const void *b) {
    const struct sh_gr_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

void sh_charset_settle(struct sh_charset *set) {
    if (set->n == 0) return;
    const uint32_t given = set->n; /* surrogates first: what straddles them becomes two */
    for (uint32_t i = 0; i < given; i++) {
        struct sh_gr_range *r = &set->ranges[i];
        const struct sh_gr_range was = *r;
        if (was.last < 0xD800 || was.first > 0xDFFF) continue;
        if (was.first >= 0xD800 && was.last <= 0xDFFF) {
            *r = (struct sh_gr_range){1, 0};
            continue;
        }
        if (was.first >= 0xD800) {
            r->first = 0xE000;
        } else {
            r->last = 0xD7FF;
            if (was.last > 0xDFFF) sh_charset_add(set, 0xE000, was.last);
        }
    }
    qsort(set->ranges, set->n, sizeof *set->ranges, compare_ranges);
    uint32_t n = 0;
    for (uint32_t i = 0; i < set->n; i++) {
        const struct sh_gr_range r = set->ranges[i];
        if (r.first > r.last) continue;
        if (n > 0 && r.first <= set->ranges[n - 1].last + 1) {
            if (r.last > set->ranges[n - 1].last) set->ranges[n - 1].last = r.last;
        } else {
            set->ranges[n++] = r;
        }
    }
    set->n = n;
}

void sh_charset_negate(struct sh_charset *set) {
    struct sh_charset out = {.failed = set->failed};
    uint32_t next = 0;
    for (uint32_t i = 0; i < set->n; i++) {
        if (set->ranges[i].first > next) sh_charset_add(&out, next, set->ranges[i].first - 1);
        next = set->ranges[i].last + 1;
    }
    sh_charset_add(&out, next, SH_MAX_CODE_POINT);
    sh_charset_settle(&out);
    free(set->ranges);
    *set = out;
}

bool sh_charset_contains(const struct sh_charset *set, uint32_t code_point) {
    uint32_t low = 0, high = set->n;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (set->ranges[middle].last < code_point) low = middle + 1;
        else high = middle;
    }
    return low < set->n && set->ranges[low].first <= code_point;
}

/* The escape of a code point that cannot stand in a JSON string as it is; 0: it can. The NUL is written by nothing: many readers of
 * JSON refuse it. */
static size_t json_escape(uint32_t c, char out[8]) {
    switch (c) {
    case '"': memcpy(out, "\\\"", 2); return 2;
    case '\\': memcpy(out, "\\\\", 2); return 2;
    case '\n': memcpy(out, "\\n", 2); return 2;
    case '\r': memcpy(out, "\\r", 2); return 2;
    case '\t': memcpy(out, "\\t", 2); return 2;
    case '\b': memcpy(out, "\\b", 2); return 2;
    case '\f': memcpy(out, "\\f", 2); return 2;
    default: return c < 0x20 ? (size_t)snprintf(out, 8, "\\u%04x", (unsigned)c) : 0;
    }
}

/* Those of the ranges that lie in [low, high]. */
static sh_gr_expr class_between(struct sh_gr *gr, const struct sh_gr_range *ranges, uint32_t n, uint32_t low, uint32_t high) {
    struct sh_gr_range some[64];
    uint32_t n_some = 0;
    sh_gr_expr all = SH_GR_NEVER;
    for (uint32_t i = 0; i < n; i++) {
        if (ranges[i].last < low || ranges[i].first > high) continue;
        if (n_some == SH_COUNT(some)) {
            all = sh_gr_choice(gr, (sh_gr_expr[]){all, sh_gr_class(gr, some, n_some, false)}, 2);
            n_some = 0;
        }
        some[n_some++] =
            (struct sh_gr_range){ranges[i].first > low ? ranges[i].first : low, ranges[i].last < high ? ranges[i].last : high};
    }
    if (n_some == 0) return all;
    const sh_gr_expr rest = sh_gr_class(gr, some, n_some, false);
    return all == SH_GR_NEVER ? rest : sh_gr_choice(gr, (sh_gr_expr[]){all, rest}, 2);
}

sh_gr_expr sh_charset_expr(struct sh_gr *gr, const struct sh_gr_range *ranges, uint32_t n, bool in_json) {
    if (!in_json) return class_between(gr, ranges, n, 0, SH_MAX_CODE_POINT);
    sh_gr_expr choices[0x20 + 2 + 3];
    uint32_t n_choices = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t c = 1; c <= '\\'; c = c < 0x1F ? c + 1 : c < '"' ? '"' : c < '\\' ? '\\' : c + 1) {
            char escape[8];
            if (c < ranges[i].first || c > ranges[i].last) continue;
            choices[n_choices++] = sh_gr_text(gr, escape, json_escape(c, escape));
        }
    }
    choices[n_choices++] = class_between(gr, ranges, n, 0x20, '"' - 1);
    choices[n_choices++] = class_between(gr, ranges, n, '"' + 1, '\\' - 1);
    choices[n_choices++] = class_between(gr, ranges, n, '\\' + 1, SH_MAX_CODE_POINT);
    return sh_gr_choice(gr, choices, n_choices);
}

sh_gr_expr sh_json_plain_text(struct sh_gr *gr, const char *text, size_t length, bool in_json) {
    if (!in_json) return sh_gr_text(gr, text, length);
    sh_gr_expr all = SH_GR_EMPTY;
    for (size_t from = 0, i = 0; i <= length; i++) {
        char escape[8];
        const size_t escaped = i < length ? json_escape((uint8_t)text[i], escape) : 0;
        if (i < length && escaped == 0) continue;
        if (i > from) all = sh_gr_pair(gr, all, sh_gr_text(gr, text + from, i - from));
        if (escaped > 0) all = sh_gr_pair(gr, all, sh_gr_text(gr, escape, escaped));
        from = i + 1;
    }
    return all;
}
