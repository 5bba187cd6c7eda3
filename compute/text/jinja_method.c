/* jinja_method.c - methods of strings, lists, dicts and the other objects. */
#include "compute/text/jinja.h"

#define METHOD(name) static struct jval name(struct jinja *s, struct jval v, const struct jval *a, const struct jargs *args)
#define UNUSED (void)s, (void)a, (void)args

/* ---- strings ---- */

METHOD(str_upper) {
    UNUSED;
    return jv_str(jstr_upper(s, v.s));
}
METHOD(str_lower) {
    UNUSED;
    return jv_str(jstr_lower(s, v.s));
}
METHOD(str_title) {
    UNUSED;
    return jv_str(jstr_title(s, v.s, true));
}
METHOD(str_capitalize) {
    UNUSED;
    return jv_str(jstr_capitalize(s, v.s));
}
METHOD(str_swapcase) {
    UNUSED;
    return jv_str(jstr_swapcase(s, v.s));
}

static struct jval strip(struct jinja *s, struct jval v, struct jval set, bool left, bool right) {
    jinja_spend(s, v.s.n / 16);
    if (set.kind == J_ABSENT || set.kind == J_NONE) return jv_str(jstr_strip(v.s, NULL, left, right));
    const struct jstr characters = jinja_arg_str(s, set, "strip");
    jinja_spend(s, (v.s.n + 1) * (characters.n / 16));
    return jv_str(jstr_strip(v.s, &characters, left, right));
}

METHOD(str_strip) {
    UNUSED;
    return strip(s, v, a[0], true, true);
}
METHOD(str_lstrip) {
    UNUSED;
    return strip(s, v, a[0], true, false);
}
METHOD(str_rstrip) {
    UNUSED;
    return strip(s, v, a[0], false, true);
}

/* White space parts; at most `most` cuts (negative: all). */
static struct jval split_spaces(struct jinja *s, struct jstr t, __int128 most) {
    const struct jval list = jv_list(s, 0);
    jinja_spend(s, t.n / 16);
    t = jstr_strip(t, NULL, true, false);
    while (t.n) {
        size_t i = 0, bytes;
        while (i < t.n && !jstr_is_space(jstr_next(t.p + i, t.p + t.n, &bytes))) i += bytes;
        if (most-- == 0) i = t.n;
        jlist_add(s, list.list, jv_text(t.p, i));
        t = jstr_strip((struct jstr){t.p + i, t.n - i}, NULL, true, false);
    }
    return list;
}

METHOD(str_split) {
    UNUSED;
    __int128 most = jinja_arg_int(s, a[1], "split", -1);
    if (a[0].kind == J_ABSENT || a[0].kind == J_NONE) return split_spaces(s, v.s, most);
    const struct jstr by = jinja_arg_str(s, a[0], "split");
    const struct jval list = jv_list(s, 0);
    if (!by.n) jinja_fail(s, "split: found an empty separator");
    size_t at = 0, found;
    while (most-- != 0 && (found = jstr_find(s, v.s, by, at)) != SIZE_MAX) {
        jlist_add(s, list.list, jv_text(v.s.p + at, found - at));
        at = found + by.n;
    }
    jlist_add(s, list.list, jv_text(v.s.p + at, v.s.n - at));
    return list;
}

static void reverse_list(struct jlist *list) {
    for (size_t i = 0; i < list->n / 2; i++) {
        const struct jval swap = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = swap;
    }
}

static struct jval rsplit_spaces(struct jinja *s, struct jstr t, __int128 most) {
    const struct jval list = jv_list(s, 0);
    jinja_spend(s, t.n / 16);
    t = jstr_strip(t, NULL, false, true);
    while (t.n) {
        size_t i = t.n;
        while (i > 0) { /* back to white space; a code point begins at no continuation byte */
            size_t at = i - 1, bytes;
            while (at > 0 && ((uint8_t)t.p[at] & 0xC0) == 0x80) at--;
            if (jstr_is_space(jstr_next(t.p + at, t.p + t.n, &bytes))) break;
            i = at;
        }
        if (most-- == 0) i = 0;
        jlist_add(s, list.list, jv_text(t.p + i, t.n - i));
        t = jstr_strip((struct jstr){t.p, i}, NULL, false, true);
    }
    reverse_list(list.list);
    return list;
}

METHOD(str_rsplit) {
    UNUSED;
    __int128 most = jinja_arg_int(s, a[1], "rsplit", -1);
    if (a[0].kind == J_ABSENT || a[0].kind == J_NONE) return rsplit_spaces(s, v.s, most);
    const struct jstr by = jinja_arg_str(s, a[0], "rsplit");
    const struct jval list = jv_list(s, 0);
    if (!by.n) jinja_fail(s, "rsplit: found an empty separator");
    struct jstr t = v.s;
    size_t found;
    while (most-- != 0 && (found = jstr_rfind(s, t, by)) != SIZE_MAX) {
        jlist_add(s, list.list, jv_text(t.p + found + by.n, t.n - found - by.n));
        t.n = found;
    }
    jlist_add(s, list.list, jv_str(t));
    reverse_list(list.list);
    return list;
}

METHOD(str_splitlines) {
    UNUSED;
    return jstr_split_lines(s, v.s, jinja_arg_bool(a[0], false));
}

static struct jval three(struct jinja *s, struct jstr x, struct jstr y, struct jstr z) {
    const struct jval parts[] = {jv_str(x), jv_str(y), jv_str(z)};
    return jv_tuple(s, parts, 3);
}

static struct jval parted(struct jinja *s, struct jstr t, struct jstr by, size_t at) {
    return three(s, (struct jstr){t.p, at}, by, (struct jstr){t.p + at + by.n, t.n - at - by.n});
}

METHOD(str_partition) {
    UNUSED;
    const struct jstr by = jinja_arg_str(s, a[0], "partition");
    const size_t at = by.n ? jstr_find(s, v.s, by, 0) : SIZE_MAX;
    return at == SIZE_MAX ? three(s, v.s, JSTR(""), JSTR("")) : parted(s, v.s, by, at);
}

METHOD(str_rpartition) {
    UNUSED;
    const struct jstr by = jinja_arg_str(s, a[0], "rpartition");
    const size_t at = by.n ? jstr_rfind(s, v.s, by) : SIZE_MAX;
    return at == SIZE_MAX ? three(s, JSTR(""), JSTR(""), v.s) : parted(s, v.s, by, at);
}

static bool has_affix(struct jinja *s, struct jstr t, struct jval affix, bool at_end) {
    if (affix.kind == J_TUPLE) {
        for (size_t i = 0; i < affix.list->n; i++) {
            if (affix.list->items[i].kind == J_STRING && has_affix(s, t, affix.list->items[i], at_end)) return true;
        }
        return false;
    }
    const struct jstr x = jinja_arg_str(s, affix, at_end ? "endswith" : "startswith");
    jinja_spend(s, x.n / 64);
    return x.n <= t.n && jstr_equal((struct jstr){at_end ? t.p + t.n - x.n : t.p, x.n}, x);
}

/* The part of t from a[0] to a[1], as a slice has them, and how many characters are in front of it. False: it begins behind its
 * end, so that nothing is found in it, not even an empty string. */
static bool window(struct jinja *s, struct jstr t, const struct jval *a, struct jstr *part, size_t *before) {
    *part = t;
    *before = 0;
    if (a[0].kind == J_ABSENT && a[1].kind == J_ABSENT) return true;
    const __int128 n = (__int128)jstr_length(s, t);
    __int128 edges[] = {0, n};
    for (size_t i = 0; i < 2; i++) {
        if (a[i].kind != J_NONE) edges[i] = jinja_arg_int(s, a[i], i ? "end" : "start", edges[i]);
        if (edges[i] < 0) edges[i] = edges[i] + n < 0 ? 0 : edges[i] + n;
    }
    if (edges[1] > n) edges[1] = n;
    if (edges[0] > edges[1]) return false;
    *before = (size_t)edges[0];
    const size_t begin = jstr_offset(t, *before);
    *part = (struct jstr){t.p + begin, t.n - begin};
    part->n = jstr_offset(*part, (size_t)(edges[1] - edges[0]));
    return true;
}

static struct jval affixed(struct jinja *s, struct jval v, const struct jval *a, bool at_end) {
    struct jstr part;
    size_t before;
    return jv_bool(window(s, v.s, a + 1, &part, &before) && has_affix(s, part, a[0], at_end));
}

METHOD(str_startswith) {
    UNUSED;
    return affixed(s, v, a, false);
}
METHOD(str_endswith) {
    UNUSED;
    return affixed(s, v, a, true);
}

METHOD(str_removeprefix) {
    UNUSED;
    if (!has_affix(s, v.s, jv_str(jinja_arg_str(s, a[0], "removeprefix")), false)) return v;
    return jv_text(v.s.p + a[0].s.n, v.s.n - a[0].s.n);
}

METHOD(str_removesuffix) {
    UNUSED;
    if (!has_affix(s, v.s, jv_str(jinja_arg_str(s, a[0], "removesuffix")), true)) return v;
    return jv_text(v.s.p, v.s.n - a[0].s.n);
}

/* Where a[0] is between a[1] and a[2], in characters from the beginning; -1: nowhere. */
static __int128 position(struct jinja *s, struct jval v, const struct jval *a, const char *name, bool last) {
    const struct jstr what = jinja_arg_str(s, a[0], name);
    struct jstr part;
    size_t before;
    if (!window(s, v.s, a + 1, &part, &before)) return -1;
    const size_t at = last ? jstr_rfind(s, part, what) : jstr_find(s, part, what, 0);
    return at == SIZE_MAX ? -1 : (__int128)(before + jstr_length(s, (struct jstr){part.p, at}));
}

METHOD(str_find) {
    UNUSED;
    return jv_int(position(s, v, a, "find", false));
}
METHOD(str_rfind) {
    UNUSED;
    return jv_int(position(s, v, a, "rfind", true));
}

METHOD(str_index) {
    UNUSED;
    const __int128 at = position(s, v, a, "index", false);
    if (at < 0) jinja_fail(s, "index: the string is not found");
    return jv_int(at);
}

METHOD(str_rindex) {
    UNUSED;
    const __int128 at = position(s, v, a, "rindex", true);
    if (at < 0) jinja_fail(s, "rindex: the string is not found");
    return jv_int(at);
}

METHOD(str_count) {
    UNUSED;
    const struct jstr what = jinja_arg_str(s, a[0], "count");
    struct jstr part;
    size_t before;
    if (!window(s, v.s, a + 1, &part, &before)) return jv_int(0);
    if (!what.n) return jv_int((__int128)jstr_length(s, part) + 1);
    __int128 n = 0;
    for (size_t at = 0; (at = jstr_find(s, part, what, at)) != SIZE_MAX; at += what.n) n++;
    return jv_int(n);
}

METHOD(str_replace) {
    UNUSED;
    const struct jstr what = jinja_arg_str(s, a[0], "replace"), with = jinja_arg_str(s, a[1], "replace");
    return jv_str(jstr_replace(s, v.s, what, with, jinja_arg_int(s, a[2], "replace", -1)));
}

METHOD(str_join) {
    UNUSED;
    const struct jval list = jv_iterate(s, a[0]);
    struct jbuf b = {0};
    for (size_t i = 0; i < list.list->n; i++) {
        if (i) jbuf_str(s, &b, v.s);
        jv_print(s, &b, jv_str(jinja_arg_str(s, list.list->items[i], "join")));
    }
    return jbuf_value(&b);
}

METHOD(str_format) {
    UNUSED;
    return jinja_brace(s, v.s, args);
}

METHOD(str_format_map) {
    UNUSED;
    if (a[0].kind != J_DICT) jinja_fail(s, "format_map: found %s, expected a dict", jv_type(a[0]));
    const struct jdict *d = a[0].dict;
    struct jkwarg *named = jinja_alloc(s, d->n * sizeof *named);
    for (size_t i = 0; i < d->n; i++)
        named[i] = (struct jkwarg){jinja_arg_str(s, d->entries[i].key, "a key of format_map"), d->entries[i].value};
    return jinja_brace(s, v.s, &(struct jargs){.named = named, .n_named = d->n});
}

METHOD(str_casefold) {
    UNUSED;
    return jv_str(jstr_fold(s, v.s));
}
METHOD(str_expandtabs) {
    UNUSED;
    return jv_str(jstr_expand_tabs(s, v.s, jinja_arg_int(s, a[0], "expandtabs", 8)));
}

/* All code points of a string that is not empty are of a class. */
static struct jval all_are(struct jinja *s, struct jstr t, bool (*is)(uint32_t)) {
    size_t bytes;
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        if (!is(jstr_next(t.p + i, t.p + t.n, &bytes))) return jv_bool(false);
    }
    return jv_bool(t.n > 0);
}

static bool is_digit(uint32_t c) { return c >= '0' && c <= '9'; }
static bool is_alnum(uint32_t c) { return is_digit(c) || jstr_is_alpha(c); }
static bool is_name(uint32_t c) { return c == '_' || is_alnum(c); }

METHOD(str_isalpha) {
    UNUSED;
    return all_are(s, v.s, jstr_is_alpha);
}
METHOD(str_isdigit) {
    UNUSED;
    return all_are(s, v.s, is_digit);
}
METHOD(str_isalnum) {
    UNUSED;
    return all_are(s, v.s, is_alnum);
}
METHOD(str_isspace) {
    UNUSED;
    return all_are(s, v.s, jstr_is_space);
}

METHOD(str_isprintable) {
    UNUSED;
    return jv_bool(!v.s.n || all_are(s, v.s, jstr_is_printable).b);
}
METHOD(str_isidentifier) {
    UNUSED;
    size_t bytes;
    return jv_bool(all_are(s, v.s, is_name).b && !is_digit(jstr_next(v.s.p, v.s.p + v.s.n, &bytes)));
}
METHOD(str_istitle) {
    UNUSED;
    return jv_bool(jstr_is_title(s, v.s));
}

METHOD(str_isascii) {
    UNUSED;
    jinja_spend(s, v.s.n / 64);
    for (size_t i = 0; i < v.s.n; i++) {
        if (v.s.p[i] & 0x80) return jv_bool(false);
    }
    return jv_bool(true);
}

METHOD(str_isupper) {
    UNUSED;
    return jv_bool(jstr_equal(v.s, jstr_upper(s, v.s)) && !jstr_equal(v.s, jstr_lower(s, v.s)));
}

METHOD(str_islower) {
    UNUSED;
    return jv_bool(jstr_equal(v.s, jstr_lower(s, v.s)) && !jstr_equal(v.s, jstr_upper(s, v.s)));
}

static struct jval pad(struct jinja *s, struct jval v, const struct jval *a, int align) {
    const struct jstr fill = a[1].kind == J_ABSENT ? JSTR(" ") : jinja_arg_str(s, a[1], "fill");
    if (jstr_length(s, fill) != 1) jinja_fail(s, "the fill has to be one character");
    return jv_str(jstr_pad(s, v.s, jinja_arg_int(s, a[0], "width", 0), fill, align));
}

METHOD(str_center) {
    UNUSED;
    return pad(s, v, a, 0);
}
METHOD(str_ljust) {
    UNUSED;
    return pad(s, v, a, -1);
}
METHOD(str_rjust) {
    UNUSED;
    return pad(s, v, a, 1);
}

METHOD(str_zfill) {
    UNUSED;
    const __int128 width = jinja_arg_int(s, a[0], "zfill", 0);
    const bool sign = v.s.n && (v.s.p[0] == '-' || v.s.p[0] == '+');
    struct jbuf b = {0};
    jbuf_add(s, &b, v.s.p, sign);
    jbuf_str(s, &b, jstr_pad(s, (struct jstr){v.s.p + sign, v.s.n - sign}, width > 0 ? width - sign : 0, JSTR("0"), 1));
    return jbuf_value(&b);
}

static const struct jbuiltin string_methods[] = {
    {"upper", "", 0, str_upper},
    {"lower", "", 0, str_lower},
    {"title", "", 0, str_title},
    {"capitalize", "", 0, str_capitalize},
    {"swapcase", "", 0, str_swapcase},
    {"strip", "chars", 0, str_strip},
    {"lstrip", "chars", 0, str_lstrip},
    {"rstrip", "chars", 0, str_rstrip},
    {"split", "sep maxsplit", 0, str_split},
    {"rsplit", "sep maxsplit", 0, str_rsplit},
    {"splitlines", "keepends", 0, str_splitlines},
    {"partition", "sep", 1, str_partition},
    {"rpartition", "sep", 1, str_rpartition},
    {"startswith", "prefix start end", 1, str_startswith},
    {"endswith", "suffix start end", 1, str_endswith},
    {"removeprefix", "prefix", 1, str_removeprefix},
    {"removesuffix", "suffix", 1, str_removesuffix},
    {"find", "sub start end", 1, str_find},
    {"rfind", "sub start end", 1, str_rfind},
    {"index", "sub start end", 1, str_index},
    {"rindex", "sub start end", 1, str_rindex},
    {"count", "sub start end", 1, str_count},
    {"replace", "old new count", 2, str_replace},
    {"join", "iterable", 1, str_join},
    {"format", NULL, 0, str_format},
    {"format_map", "mapping", 1, str_format_map},
    {"casefold", "", 0, str_casefold},
    {"expandtabs", "tabsize", 0, str_expandtabs},
    {"isalpha", "", 0, str_isalpha},
    {"isdigit", "", 0, str_isdigit},
    {"isdecimal", "", 0, str_isdigit},
    {"isnumeric", "", 0, str_isdigit},
    {"isalnum", "", 0, str_isalnum},
    {"isspace", "", 0, str_isspace},
    {"isascii", "", 0, str_isascii},
    {"isprintable", "", 0, str_isprintable},
    {"isidentifier", "", 0, str_isidentifier},
    {"istitle", "", 0, str_istitle},
    {"isupper", "", 0, str_isupper},
    {"islower", "", 0, str_islower},
    {"center", "width fillchar", 1, str_center},
    {"ljust", "width fillchar", 1, str_ljust},
    {"rjust", "width fillchar", 1, str_rjust},
    {"zfill", "width", 1, str_zfill},
    {NULL},
};

/* ---- lists and tuples ---- */

METHOD(list_index) {
    UNUSED;
    const __int128 n = (__int128)v.list->n;
    __int128 from = jinja_arg_int(s, a[1], "index", 0), to = jinja_arg_int(s, a[2], "index", n);
    if (from < 0) from = from + n < 0 ? 0 : from + n;
    if (to < 0) to += n;
    for (size_t i = from < n ? (size_t)from : v.list->n; i < v.list->n && (__int128)i < to; i++) {
        if (jv_equal(s, v.list->items[i], a[0])) return jv_int((__int128)i);
    }
    jinja_fail(s, "index: the value is not in the list");
}

METHOD(list_count) {
    UNUSED;
    __int128 n = 0;
    for (size_t i = 0; i < v.list->n; i++) n += jv_equal(s, v.list->items[i], a[0]);
    return jv_int(n);
}

METHOD(list_copy) {
    UNUSED;
    struct jval copy = jv_tuple(s, v.list->items, v.list->n);
    jinja_spend(s, v.list->n);
    copy.kind = J_LIST;
    return copy;
}

METHOD(list_append) {
    UNUSED;
    jlist_add(s, v.list, a[0]);
    return jv_none();
}

METHOD(list_extend) {
    UNUSED;
    const struct jval more = jv_iterate(s, a[0]);
    const size_t n = more.list->n; /* it may be the list itself */
    for (size_t i = 0; i < n; i++) {
        jinja_spend(s, 1);
        jlist_add(s, v.list, more.list->items[i]);
    }
    return jv_none();
}

METHOD(list_insert) {
    UNUSED;
    const __int128 n = (__int128)v.list->n;
    __int128 at = jinja_arg_int(s, a[0], "insert", 0);
    if (at < 0) at = at + n < 0 ? 0 : at + n;
    if (at > n) at = n;
    jinja_spend(s, v.list->n);
    jlist_add(s, v.list, a[1]);
    struct jval *place = v.list->items + (size_t)at;
    memmove(place + 1, place, (size_t)(n - at) * sizeof *place);
    *place = a[1];
    return jv_none();
}

METHOD(list_pop) {
    UNUSED;
    const __int128 n = (__int128)v.list->n;
    __int128 at = jinja_arg_int(s, a[0], "pop", -1);
    if (at < 0) at += n;
    if (at < 0 || at >= n) jinja_fail(s, "pop: the list has no such element");
    struct jval *place = v.list->items + (size_t)at;
    const struct jval taken = *place;
    jinja_spend(s, v.list->n / 8);
    memmove(place, place + 1, (size_t)(n - at - 1) * sizeof *place);
    v.list->n--;
    return taken;
}

METHOD(list_remove) {
    UNUSED;
    size_t at = 0;
    while (at < v.list->n && !jv_equal(s, v.list->items[at], a[0])) at++;
    if (at == v.list->n) jinja_fail(s, "remove: the value is not in the list");
    v.list->n--;
    jinja_spend(s, v.list->n / 8);
    memmove(v.list->items + at, v.list->items + at + 1, (v.list->n - at) * sizeof *v.list->items);
    return jv_none();
}

METHOD(list_clear) {
    UNUSED;
    v.list->n = 0;
    return jv_none();
}

METHOD(list_reverse) {
    UNUSED;
    jinja_spend(s, v.list->n);
    reverse_list(v.list);
    return jv_none();
}

static const struct jbuiltin tuple_methods[] = {
    {"index", "value start stop", 1, list_index},
    {"count", "value", 1, list_count},
    {NULL},
};
static const struct jbuiltin list_methods[] = {
    {"index", "value start stop", 1, list_index},
    {"count", "value", 1, list_count},
    {"copy", "", 0, list_copy},
    {"append", "object", 1, list_append},
    {"extend", "iterable", 1, list_extend},
    {"insert", "index object", 2, list_insert},
    {"pop", "index", 0, list_pop},
    {"remove", "value", 1, list_remove},
    {"clear", "", 0, list_clear},
    {"reverse", "", 0, list_reverse},
    {NULL},
};

/* ---- dicts ---- */

METHOD(dict_keys) {
    UNUSED;
    return jv_iterate(s, v);
}
METHOD(dict_items) {
    UNUSED;
    return jdict_pairs(s, v.dict);
}

METHOD(dict_values) {
    UNUSED;
    const struct jval list = jv_list(s, v.dict->n);
    jinja_spend(s, v.dict->n);
    for (size_t i = 0; i < v.dict->n; i++) jlist_add(s, list.list, v.dict->entries[i].value);
    return list;
}

METHOD(dict_get) {
    UNUSED;
    const struct jval *found = jdict_find(s, v.dict, a[0]);
    return found ? *found : a[1].kind == J_ABSENT ? jv_none() : a[1];
}

METHOD(dict_copy) {
    UNUSED;
    const struct jval copy = jv_dict(s);
    jdict_merge(s, copy.dict, v);
    return copy;
}

METHOD(dict_update) {
    UNUSED;
    if (args->n > 1) jinja_fail(s, "update: takes one argument by place, found %zu", args->n);
    if (args->n) jdict_merge(s, v.dict, args->items[0]);
    for (size_t i = 0; i < args->n_named; i++) jdict_set(s, v.dict, jv_str(args->named[i].name), args->named[i].value);
    return jv_none();
}

METHOD(dict_setdefault) {
    UNUSED;
    const struct jval *found = jdict_find(s, v.dict, a[0]);
    if (found) return *found;
    const struct jval value = a[1].kind == J_ABSENT ? jv_none() : a[1];
    jdict_set(s, v.dict, a[0], value);
    return value;
}

METHOD(dict_pop) {
    UNUSED;
    struct jval value;
    if (jdict_remove(s, v.dict, a[0], &value)) return value;
    if (a[1].kind == J_ABSENT) jinja_fail(s, "pop: the dict has no such key");
    return a[1];
}

static const struct jbuiltin dict_methods[] = {
    {"keys", "", 0, dict_keys},
    {"values", "", 0, dict_values},
    {"items", "", 0, dict_items},
    {"get", "key default", 1, dict_get},
    {"copy", "", 0, dict_copy},
    {"update", NULL, 0, dict_update},
    {"setdefault", "key default", 1, dict_setdefault},
    {"pop", "key default", 1, dict_pop},
    {NULL},
};

/* ---- cycler ---- */

METHOD(cycler_next) {
    UNUSED;
    const struct jlist *values = v.cycle->values.list;
    return values->items[v.cycle->at++ % values->n];
}

METHOD(cycler_reset) {
    UNUSED;
    v.cycle->at = 0;
    return jv_none();
}

static const struct jbuiltin cycler_methods[] = {{"next", "", 0, cycler_next}, {"reset", "", 0, cycler_reset}, {NULL}};

const struct jbuiltin *jinja_find_method(struct jval v, struct jstr name) {
    switch (v.kind) {
    case J_STRING: return jinja_find(string_methods, name);
    case J_LIST: return jinja_find(list_methods, name);
    case J_TUPLE: return jinja_find(tuple_methods, name);
    case J_DICT: return jinja_find(dict_methods, name);
    case J_LOOP: return jinja_find(jinja_loop_methods, name);
    case J_CYCLER: return jinja_find(cycler_methods, name);
    default: return NULL;
    }
}
