/* jinja_filter.c - filters on one value: text, numbers, JSON. */
#include "compute/text/jinja.h"

#include <math.h>
#include <stdio.h>

#define FILTER(name) static struct jval name(struct jinja *s, struct jval v, const struct jval *a, const struct jargs *args)
#define UNUSED (void)s, (void)a, (void)args

/* ---- text ---- */

FILTER(filter_upper) {
    UNUSED;
    return jv_str(jstr_upper(s, jv_string(s, v)));
}
FILTER(filter_lower) {
    UNUSED;
    return jv_str(jstr_lower(s, jv_string(s, v)));
}
FILTER(filter_capitalize) {
    UNUSED;
    return jv_str(jstr_capitalize(s, jv_string(s, v)));
}
FILTER(filter_title) {
    UNUSED;
    return jv_str(jstr_title(s, jv_string(s, v), false));
}
FILTER(filter_string) {
    UNUSED;
    return jv_str(jv_string(s, v));
}
FILTER(filter_safe) {
    UNUSED;
    return v;
}

FILTER(filter_trim) {
    UNUSED;
    const struct jstr t = jv_string(s, v);
    jinja_spend(s, t.n / 16);
    if (a[0].kind == J_ABSENT || a[0].kind == J_NONE) return jv_str(jstr_strip(t, NULL, true, true));
    const struct jstr characters = jinja_arg_str(s, a[0], "trim");
    jinja_spend(s, (t.n + 1) * (characters.n / 16));
    return jv_str(jstr_strip(t, &characters, true, true));
}

FILTER(filter_replace) {
    UNUSED;
    const __int128 count = a[2].kind == J_NONE ? -1 : jinja_arg_int(s, a[2], "replace", -1);
    return jv_str(jstr_replace(s, jv_string(s, v), jv_string(s, a[0]), jv_string(s, a[1]), count));
}

FILTER(filter_indent) {
    UNUSED;
    const bool first = jinja_arg_bool(a[1], false), blank = jinja_arg_bool(a[2], false);
    struct jbuf space = {0}, b = {0};
    if (a[0].kind == J_STRING) jbuf_str(s, &space, a[0].s);
    else {
        const __int128 width = jinja_arg_int(s, a[0], "indent", 4);
        jbuf_fill(s, &space, JSTR(" "), width < 0 ? 0 : width > JINJA_MAX_OUTPUT ? JINJA_MAX_OUTPUT + (size_t)1 : (size_t)width);
    }
    const struct jstr t = jv_string(s, v), by = jbuf_value(&space).s;
    jinja_spend(s, t.n / 16);
    for (size_t begin = 0; begin <= t.n;) {
        const char *feed = begin < t.n ? memchr(t.p + begin, '\n', t.n - begin) : NULL;
        const size_t end = feed ? (size_t)(feed - t.p) : t.n;
        if (begin ? blank || end > begin : first) jbuf_str(s, &b, by);
        jbuf_add(s, &b, t.p + begin, end - begin);
        if (feed) jbuf_add(s, &b, feed, 1);
        begin = end + 1;
    }
    return jbuf_value(&b);
}

FILTER(filter_wordcount) {
    UNUSED;
    const struct jstr t = jv_string(s, v);
    __int128 n = 0;
    bool within = false;
    size_t bytes;
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        const bool word = c == '_' || (c >= '0' && c <= '9') || jstr_is_alpha(c);
        n += word && !within;
        within = word;
    }
    return jv_int(n);
}

FILTER(filter_truncate) {
    UNUSED;
    const struct jstr t = jv_string(s, v), end = a[2].kind == J_ABSENT ? JSTR("...") : jinja_arg_str(s, a[2], "truncate");
    const __int128 length = jinja_arg_int(s, a[0], "truncate", 255), leeway = jinja_arg_int(s, a[3], "truncate", 5);
    const __int128 keep = length - (__int128)jstr_length(s, end);
    if (keep < 0) jinja_fail(s, "truncate: found a length below that of the end, %zu", end.n);
    if (leeway < 0 || (__int128)jstr_length(s, t) - leeway <= length) return jv_str(t);
    size_t n = jstr_offset(t, (size_t)keep);
    if (!jinja_arg_bool(a[1], false)) { /* back to the last space, if there is one */
        const size_t space = jstr_rfind(s, (struct jstr){t.p, n}, JSTR(" "));
        if (space != SIZE_MAX) n = space;
    }
    struct jbuf b = {0};
    jbuf_add(s, &b, t.p, n);
    jbuf_str(s, &b, end);
    return jbuf_value(&b);
}

FILTER(filter_escape) {
    UNUSED;
    const struct jstr t = jv_string(s, v);
    struct jbuf b = {0};
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i++) {
        const char c = t.p[i];
        const size_t since = b.n;
        if (c == '&') jbuf_str(s, &b, JSTR("&amp;"));
        else if (c == '<') jbuf_str(s, &b, JSTR("&lt;"));
        else if (c == '>') jbuf_str(s, &b, JSTR("&gt;"));
        else if (c == '"') jbuf_str(s, &b, JSTR("&#34;"));
        else if (c == '\'') jbuf_str(s, &b, JSTR("&#39;"));
        else jbuf_char(s, &b, c);
        jbuf_made_of(s, &b, since, (struct jstr){t.p + i, 1});
    }
    return jbuf_value(&b);
}

/* Without <...>, and with single spaces. */
FILTER(filter_striptags) {
    UNUSED;
    const struct jstr t = jv_string(s, v);
    struct jbuf b = {0};
    struct jstr space = {0}; /* the last one in front of what follows */
    size_t bytes;
    const char *no_more = NULL; /* from here on there is no '>' */
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        const char *close = c == '<' && !no_more ? memchr(t.p + i, '>', t.n - i) : NULL;
        if (c == '<' && !close) no_more = t.p + i;
        if (close) {
            bytes = (size_t)(close - t.p) + 1 - i;
        } else if (jstr_is_space(c)) {
            space = (struct jstr){t.p + i, bytes};
        } else {
            const size_t since = b.n;
            if (space.n && b.n) jbuf_char(s, &b, ' ');
            jbuf_made_of(s, &b, since, space);
            space = (struct jstr){0};
            jbuf_add(s, &b, t.p + i, bytes);
        }
    }
    return jbuf_value(&b);
}

/* In a query (pairs) a space is '+'; else '/' stays. */
static void quote_url(struct jinja *s, struct jbuf *b, struct jstr t, bool query) {
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i++) {
        const uint8_t c = (uint8_t)t.p[i];
        char escape[4];
        const size_t since = b->n;
        const bool plain = (c >= '0' && c <= '9') || (c < 0x80 && jstr_is_alpha(c)) || (c && strchr(query ? "-._~" : "-._~/", c));
        if (plain) jbuf_char(s, b, (char)c);
        else if (query && c == ' ') jbuf_char(s, b, '+');
        else jbuf_add(s, b, escape, (size_t)snprintf(escape, sizeof escape, "%%%02X", c));
        jbuf_made_of(s, b, since, (struct jstr){t.p + i, 1});
    }
}

FILTER(filter_urlencode) {
    UNUSED;
    struct jbuf b = {0};
    if (v.kind != J_DICT && !jv_is_sequence(v)) {
        quote_url(s, &b, jv_string(s, v), false);
        return jbuf_value(&b);
    }
    const struct jval pairs = v.kind == J_DICT ? jdict_pairs(s, v.dict) : v;
    for (size_t i = 0; i < pairs.list->n; i++) {
        const struct jval pair = jv_iterate(s, pairs.list->items[i]);
        if (pair.list->n != 2) jinja_fail(s, "urlencode: found %zu parts, expected a key and a value", pair.list->n);
        if (i) jbuf_char(s, &b, '&');
        quote_url(s, &b, jv_string(s, pair.list->items[0]), true);
        jbuf_char(s, &b, '=');
        quote_url(s, &b, jv_string(s, pair.list->items[1]), true);
    }
    return jbuf_value(&b);
}

FILTER(filter_center) {
    UNUSED;
    return jv_str(jstr_pad(s, jv_string(s, v), jinja_arg_int(s, a[0], "center", 80), JSTR(" "), 0));
}

FILTER(filter_format) {
    UNUSED;
    if (args->n && args->n_named) jinja_fail(s, "format: takes values by place or by name, not both");
    struct jval named = jv_dict(s);
    for (size_t i = 0; i < args->n_named; i++) jdict_set(s, named.dict, jv_str(args->named[i].name), args->named[i].value);
    return jinja_percent(s, jv_string(s, v), args->items, args->n, args->n_named ? named.dict : NULL);
}

/* ---- numbers ---- */

FILTER(filter_int) {
    UNUSED;
    const __int128 base = jinja_arg_int(s, a[1], "int", 10);
    const struct jval otherwise = a[0].kind == J_ABSENT ? jv_int(0) : a[0];
    struct jval result = jv_int(0);
    double d = 0;
    if (base < 2 || base > 36) jinja_fail(s, "int: found a base that is not from 2 to 36");
    if (v.kind == J_INT || v.kind == J_BOOL) return jv_made_of(jv_int(jv_integer(v)), v.given);
    result.given = v.kind == J_STRING ? jinja_is_given(s, v.s) : v.given;
    if (v.kind == J_STRING) {
        const struct jstr t = jstr_strip(v.s, NULL, true, true);
        if (jinja_parse_int(t, (unsigned)base, &result.i)) return result;
        if (!jinja_parse_float(t, &d)) return otherwise;
    } else if (v.kind == J_FLOAT) {
        d = v.f;
    } else {
        return otherwise;
    }
    return fabs(d) < 1e38 ? jv_made_of(jv_int((__int128)d), result.given) : otherwise;
}

FILTER(filter_float) {
    UNUSED;
    double d;
    if (jv_is_number(v)) return jv_made_of(jv_float(jv_double(v)), v.given);
    if (v.kind == J_STRING && jinja_parse_float(jstr_strip(v.s, NULL, true, true), &d))
        return jv_made_of(jv_float(d), jinja_is_given(s, v.s));
    return a[0].kind == J_ABSENT ? jv_float(0) : a[0];
}

FILTER(filter_abs) {
    UNUSED;
    if (v.kind == J_FLOAT) return jv_made_of(jv_float(fabs(v.f)), v.given);
    if (v.kind != J_INT && v.kind != J_BOOL) jinja_fail(s, "abs: found %s, expected a number", jv_type(v));
    const __int128 i = jv_integer(v);
    if (i < 0 && -(unsigned __int128)i == (unsigned __int128)i) jinja_fail(s, "an integer would need more than 127 bits");
    return jv_made_of(jv_int(i < 0 ? -i : i), v.given);
}

static struct jval round_number(struct jinja *s, struct jval v, const struct jval *a) {
    const __int128 precision = jinja_arg_int(s, a[0], "round", 0);
    const struct jstr method = a[1].kind == J_ABSENT ? JSTR("common") : jinja_arg_str(s, a[1], "round");
    if (!jv_is_number(v)) jinja_fail(s, "round: found %s, expected a number", jv_type(v));
    if (precision < -300 || precision > 300) jinja_fail(s, "round: the precision is not from -300 to 300");
    const double d = jv_double(v), scale = pow(10, (double)precision);
    if (jstr_is(method, "ceil")) return jv_float(ceil(d * scale) / scale);
    if (jstr_is(method, "floor")) return jv_float(floor(d * scale) / scale);
    if (!jstr_is(method, "common")) jinja_fail(s, "round: found another method than common, ceil, floor");
    if (v.kind != J_FLOAT && precision >= 0) return jv_int(jv_integer(v));
    if (precision < 0) {
        const double rounded = nearbyint(d * scale) / scale;
        return v.kind == J_FLOAT || fabs(rounded) > 1e37 ? jv_float(rounded) : jv_int((__int128)rounded);
    }
    /* The decimal number with so many digits that is nearest to d: what printf writes. */
    char text[800];
    double rounded = d;
    const int n = snprintf(text, sizeof text, "%.*f", (int)precision, d);
    jinja_parse_float((struct jstr){text, (size_t)n}, &rounded);
    return jv_float(isfinite(d) ? rounded : d);
}

FILTER(filter_filesizeformat) {
    UNUSED;
    static const char *const units[][8] = {{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"},
                                           {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    const bool binary = jinja_arg_bool(a[0], false);
    const double base = binary ? 1024 : 1000;
    double size = jv_is_number(v) ? jv_double(v) : 0;
    if (!jv_is_number(v) && (v.kind != J_STRING || !jinja_parse_float(jstr_strip(v.s, NULL, true, true), &size)))
        jinja_fail(s, "filesizeformat: found %s, expected a number of bytes", jv_type(v));
    char text[400];
    int n;
    size_t unit = 0;
    if (size == 1) {
        n = snprintf(text, sizeof text, "1 Byte");
    } else if (size < base) {
        n = snprintf(text, sizeof text, "%.0f Bytes", trunc(size));
    } else {
        for (size /= base; size >= base && unit + 1 < SH_COUNT(units[0]); unit++) size /= base;
        n = snprintf(text, sizeof text, "%.1f %s", size, units[binary][unit]);
    }
    struct jbuf b = {0};
    jbuf_add(s, &b, text, (size_t)n);
    if (v.kind == J_STRING ? jinja_is_given(s, v.s) : v.given) jbuf_mark(s, &b, 0);
    return jbuf_value(&b);
}

FILTER(filter_round) {
    UNUSED;
    return jv_made_of(round_number(s, v, a), v.given);
}

/* ---- others ---- */

FILTER(filter_default) {
    UNUSED;
    const struct jval otherwise = a[0].kind == J_ABSENT ? jv_text("", 0) : a[0];
    return v.kind == J_UNDEFINED || (jinja_arg_bool(a[1], false) && !jv_truth(v)) ? otherwise : v;
}

FILTER(filter_attr) {
    UNUSED;
    const struct jstr name = jinja_arg_str(s, a[0], "attr");
    const bool has_others = v.kind == J_LOOP || v.kind == J_MACRO || v.kind == J_TUPLE;
    if (has_others || jinja_find_method(v, name)) return jinja_attribute(s, v, name);
    return jv_undefined(name);
}

FILTER(filter_tojson) {
    UNUSED;
    struct jjson_style style = {
        .item = JSTR(", "), .key = JSTR(": "), .ascii = jinja_arg_bool(a[1], false), .sort = jinja_arg_bool(a[3], false)};
    struct jbuf spaces = {0}, b = {0};
    if (a[0].kind == J_STRING) {
        style.indent = a[0].s;
    } else if (a[0].kind != J_ABSENT && a[0].kind != J_NONE) {
        const __int128 width = jinja_arg_int(s, a[0], "tojson: indent", 0);
        if (width > 1000) jinja_limit(s, "tojson's indent", 1000);
        jbuf_fill(s, &spaces, JSTR(" "), width < 0 ? 0 : (size_t)width);
        style.indent = jbuf_value(&spaces).s;
    }
    if (style.indent.p) style.item = JSTR(",");
    if (a[2].kind != J_ABSENT && a[2].kind != J_NONE) {
        const struct jval parts = jv_iterate(s, a[2]);
        if (parts.list->n != 2) jinja_fail(s, "tojson: separators: found %zu, expected two", parts.list->n);
        style.item = jinja_arg_str(s, parts.list->items[0], "tojson: separators");
        style.key = jinja_arg_str(s, parts.list->items[1], "tojson: separators");
    }
    jinja_write_json(s, &b, v, &style, 0);
    return jbuf_value(&b);
}

const struct jbuiltin jinja_filters[] = {
    {"trim", "chars", 0, filter_trim},
    {"tojson", "indent ensure_ascii separators sort_keys", 0, filter_tojson},
    {"default", "default_value boolean", 0, filter_default},
    {"d", "default_value boolean", 0, filter_default},
    {"string", "", 0, filter_string},
    {"safe", "", 0, filter_safe},
    {"upper", "", 0, filter_upper},
    {"lower", "", 0, filter_lower},
    {"capitalize", "", 0, filter_capitalize},
    {"title", "", 0, filter_title},
    {"replace", "old new count", 2, filter_replace},
    {"indent", "width first blank", 0, filter_indent},
    {"wordcount", "", 0, filter_wordcount},
    {"truncate", "length killwords end leeway", 0, filter_truncate},
    {"escape", "", 0, filter_escape},
    {"e", "", 0, filter_escape},
    {"forceescape", "", 0, filter_escape},
    {"striptags", "", 0, filter_striptags},
    {"urlencode", "", 0, filter_urlencode},
    {"center", "width", 0, filter_center},
    {"format", NULL, 0, filter_format},
    {"int", "default base", 0, filter_int},
    {"float", "default", 0, filter_float},
    {"abs", "", 0, filter_abs},
    {"round", "precision method", 0, filter_round},
    {"filesizeformat", "binary", 0, filter_filesizeformat},
    {"attr", "name", 1, filter_attr},
    {NULL},
};
