/* jinja_format.c - numbers from text, and Python's two ways of formatting: '%' and str.format. */
#include "compute/text/jinja.h"

#include "compute/text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- numbers from text ---- */

bool jinja_parse_int(struct jstr t, unsigned base, __int128 *out) {
    size_t i = 0, digits = 0;
    const bool negative = t.n && t.p[0] == '-';
    __int128 value = 0;
    if (t.n && (t.p[0] == '-' || t.p[0] == '+')) i++;
    if (i + 2 < t.n && t.p[i] == '0' &&
        ((base == 16 && (t.p[i + 1] | 32) == 'x') || (base == 8 && (t.p[i + 1] | 32) == 'o') ||
         (base == 2 && (t.p[i + 1] | 32) == 'b')))
        i += 2;
    for (; i < t.n; i++) {
        const char c = t.p[i];
        if (c == '_' && digits && i + 1 < t.n && t.p[i + 1] != '_') continue;
        const unsigned digit = c >= '0' && c <= '9'                 ? (unsigned)(c - '0')
                               : (c | 32) >= 'a' && (c | 32) <= 'z' ? (unsigned)((c | 32) - 'a' + 10)
                                                                    : 99;
        if (digit >= base || __builtin_mul_overflow(value, (__int128)base, &value) ||
            __builtin_add_overflow(value, (__int128)digit, &value))
            return false;
        digits++;
    }
    *out = negative ? -value : value;
    return digits > 0;
}

bool jinja_parse_float(struct jstr t, double *out) {
    static const char *const words[] = {"inf", "infinity", "nan"};
    char text[512];
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++) {
        if (t.p[i] == '_') continue;
        if (n + 1 == sizeof text) return false;
        text[n++] = t.p[i];
    }
    text[n] = 0;
    const char *p = text + (text[0] == '-' || text[0] == '+');
    bool plain = (*p >= '0' && *p <= '9') || *p == '.';
    if (*p == '0' && (p[1] | 32) == 'x') plain = false; /* strtod would read hexadecimal */
    for (size_t i = 0; i < SH_COUNT(words); i++) plain |= !strcasecmp(p, words[i]);
    char *end;
    *out = strtod(text, &end);
    return plain && n > 0 && *end == 0 && end != text;
}

/* ---- one value in a field ---- */

enum { FIELD_MAX = 10000 }; /* width and precision */
struct field {
    struct jstr fill;
    char align; /* '<' '>' '^' '='; 0: by the kind of the value */
    char sign, type;
    char group; /* ',' or '_' between digits; 0: nothing */
    bool alternate, has_precision;
    uint32_t width, precision;
};

static struct jstr grouped(struct jinja *s, const char *digits, size_t n, size_t size, char by) {
    struct jbuf b = {0};
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % size == 0) jbuf_char(s, &b, by);
        jbuf_char(s, &b, digits[i]);
    }
    return jbuf_value(&b).s;
}

/* sign and digits, padded to the width: '=' pads between them. */
static void add_number(struct jinja *s, struct jbuf *out, const struct field *f, bool negative, struct jstr digits) {
    struct jbuf b = {0};
    const char *sign = negative ? "-" : f->sign == '+' ? "+" : f->sign == ' ' ? " " : "";
    if (f->align == '=') {
        const size_t room = f->width > strlen(sign) ? f->width - strlen(sign) : 0;
        jbuf_add(s, &b, sign, strlen(sign));
        jbuf_str(s, &b, jstr_pad(s, digits, (__int128)room, f->fill, 1));
        jbuf_str(s, out, jbuf_value(&b).s);
        return;
    }
    jbuf_add(s, &b, sign, strlen(sign));
    jbuf_str(s, &b, digits);
    jbuf_str(s, out, jstr_pad(s, jbuf_value(&b).s, f->width, f->fill, f->align == '<' ? -1 : f->align == '^' ? 0 : 1));
}

static void add_int(struct jinja *s, struct jbuf *out, const struct field *f, __int128 i) {
    char digits[136];
    const unsigned __int128 size = i < 0 ? -(unsigned __int128)i : (unsigned __int128)i;
    const unsigned base = f->type == 'x' || f->type == 'X' ? 16 : f->type == 'o' ? 8 : f->type == 'b' ? 2 : 10;
    const size_t n = jv_int_digits(size, base, f->type == 'X', digits);
    struct jbuf b = {0};
    if (f->alternate && base != 10) {
        jbuf_char(s, &b, '0');
        jbuf_char(s, &b, f->type);
    }
    if (f->group) jbuf_str(s, &b, grouped(s, digits, n, base == 10 ? 3 : 4, f->group));
    else jbuf_add(s, &b, digits, n);
    add_number(s, out, f, i < 0, jbuf_value(&b).s);
}

/* Digits with a point, without a sign. */
static void add_decimal(struct jinja *s, struct jbuf *b, const struct field *f, struct jstr t) {
    const size_t whole = f->group ? strspn(t.p, "0123456789") : 0;
    if (whole) jbuf_str(s, b, grouped(s, t.p, whole, 3, f->group));
    jbuf_add(s, b, t.p + whole, t.n - whole);
}

static void add_float(struct jinja *s, struct jbuf *out, const struct field *f, double d) {
    const char type = f->type == '%' ? 'f' : f->type;
    const char fmt[] = {'%', f->alternate ? '#' : '-', '.', '*', type, 0};
    const int precision = f->has_precision ? (int)f->precision : 6;
    const double size = fabs(f->type == '%' ? d * 100 : d);
    char *text = jinja_alloc(s, (size_t)precision + 400);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = (size_t)snprintf(text, (size_t)precision + 399, fmt, precision, size); /* fmt is made of known letters above */
#pragma GCC diagnostic pop
    struct jbuf b = {0};
    add_decimal(s, &b, f, (struct jstr){text, n});
    if (f->type == '%') jbuf_char(s, &b, '%');
    add_number(s, out, f, signbit(d) && !isnan(d), jbuf_value(&b).s);
}

static void add_text(struct jinja *s, struct jbuf *out, const struct field *f, struct jstr t) {
    if (f->has_precision) t.n = jstr_offset(t, f->precision);
    jbuf_str(s, out, jstr_pad(s, t, f->width, f->fill, f->align == '>' ? 1 : f->align == '^' ? 0 : -1));
}

/* ---- '%' ---- */

struct percent {
    struct jinja *s;
    const char *p, *end;
    const struct jval *values;
    size_t n, next;
};

static struct jval next_value(struct percent *x) {
    if (x->next == x->n) jinja_fail(x->s, "format: found %zu values, expected more", x->n);
    return x->values[x->next++];
}

static uint32_t read_count(struct jinja *s, const char **p, const char *end) {
    uint32_t value = 0;
    for (; *p < end && **p >= '0' && **p <= '9'; (*p)++) {
        value = value * 10 + (uint32_t)(**p - '0');
        if (value > FIELD_MAX) jinja_limit(s, "width of a field", FIELD_MAX);
    }
    return value;
}

/* Digits, or '*': the next value. */
static int64_t percent_count(struct percent *x) {
    if (x->p == x->end || *x->p != '*') return read_count(x->s, &x->p, x->end);
    x->p++;
    const __int128 i = jinja_arg_int(x->s, next_value(x), "format: *", 0);
    if (i > FIELD_MAX || i < -FIELD_MAX) jinja_limit(x->s, "width of a field", FIELD_MAX);
    return (int64_t)i;
}

static void percent_flags(struct percent *x, struct field *f) {
    for (; x->p < x->end && *x->p && strchr("-+ 0#", *x->p); x->p++) {
        if (*x->p == '-') f->align = '<';
        else if (*x->p == '#') f->alternate = true;
        else if (*x->p != '0') f->sign = *x->p;
        else if (f->align != '<') {
            f->align = '=';
            f->fill = JSTR("0");
        }
    }
    const int64_t width = percent_count(x);
    if (width < 0) f->align = '<';
    f->width = (uint32_t)(width < 0 ? -width : width);
    if (x->p < x->end && *x->p == '.') {
        x->p++;
        const int64_t precision = percent_count(x);
        f->has_precision = precision >= 0;
        f->precision = (uint32_t)(precision < 0 ? 0 : precision);
    }
}

/* What %c writes: a string of one character, or the code point of that number. */
static struct jstr character(struct jinja *s, struct jval v, char text[4]) {
    if (v.kind == J_STRING && jstr_length(s, v.s) == 1) return v.s;
    if (v.kind != J_INT || v.i < 0 || v.i > 0x10FFFF || (v.i >= 0xD800 && v.i < 0xE000))
        jinja_fail(s, "%%c: found %s, expected one character or its code point", jv_type(v));
    return (struct jstr){text, sh_utf8_encode((uint32_t)v.i, text)};
}

static void percent_value(struct percent *x, struct jbuf *out, struct field *f, struct jval v) {
    const char type = f->type;
    const size_t since = out->n;
    struct jbuf repr = {0};
    char text[4];
    if (strchr("diuxXo", type)) {
        if (!jv_is_number(v)) jinja_fail(x->s, "%%%c: found %s, expected a number", type, jv_type(v));
        if (v.kind == J_FLOAT && !(fabs(v.f) < 1e37)) jinja_fail(x->s, "%%%c: the number is too large", type);
        add_int(x->s, out, f, v.kind == J_FLOAT ? (__int128)v.f : jv_integer(v));
    } else if (type == 'c') {
        f->has_precision = false;
        f->fill = JSTR(" ");
        if (f->align != '<') f->align = '>';
        add_text(x->s, out, f, character(x->s, v, text));
    } else if (strchr("eEfFgG", type)) {
        if (!jv_is_number(v)) jinja_fail(x->s, "%%%c: found %s, expected a number", type, jv_type(v));
        add_float(x->s, out, f, jv_double(v));
    } else {
        if (f->align != '<') f->align = '>';
        f->fill = JSTR(" ");
        if (type == 'r') jv_repr(x->s, &repr, v);
        add_text(x->s, out, f, type == 'r' ? jbuf_value(&repr).s : jv_string(x->s, v));
    }
    if (v.given || jinja_is_given(x->s, (struct jstr){x->p - 1, 1})) jbuf_mark(x->s, out, since);
}

struct jval jinja_percent(struct jinja *s, struct jstr format, const struct jval *values, size_t n, const struct jdict *named) {
    struct percent x = {s, format.p, format.p + format.n, values, n, 0};
    struct jbuf out = {0};
    while (x.p < x.end) {
        if (*x.p != '%') {
            jbuf_add(s, &out, x.p++, 1);
            continue;
        }
        struct field f = {.fill = JSTR(" ")};
        const struct jval *by_name = NULL;
        x.p++;
        const char *close = x.p < x.end && *x.p == '(' ? memchr(x.p, ')', (size_t)(x.end - x.p)) : NULL;
        if (close && named) {
            by_name = jdict_find_str(s, named, (struct jstr){x.p + 1, (size_t)(close - x.p - 1)});
            if (!by_name)
                jinja_fail(s, "format: no value is named %.*s", (int)sh_min_u64((uint64_t)(close - x.p - 1), 60), x.p + 1);
            x.p = close + 1;
        }
        percent_flags(&x, &f);
        f.type = x.p < x.end ? *x.p++ : 0;
        if (f.type == '%') jbuf_add(s, &out, x.p - 1, 1);
        else if (!f.type || !strchr("diuxXoeEfFgGsrc", f.type)) jinja_fail(s, "format: found no known letter behind %%");
        else percent_value(&x, &out, &f, by_name ? *by_name : next_value(&x));
    }
    if (x.next < n && !named) jinja_fail(s, "format: found %zu values, expected %zu", n, x.next);
    return jbuf_value(&out);
}

/* ---- str.format ---- */

/* [[fill]align][sign][#][0][width][, or _][.precision][type] */
static struct field read_spec(struct jinja *s, struct jstr spec) {
    struct field f = {.fill = JSTR(" ")};
    const char *p = spec.p, *end = spec.p + spec.n;
    size_t bytes = 0;
    if (p < end) jstr_next(p, end, &bytes);
    if (p + bytes < end && p[bytes] && strchr("<>^=", p[bytes])) {
        f.fill = (struct jstr){p, bytes};
        f.align = p[bytes];
        p += bytes + 1;
    } else if (p < end && *p && strchr("<>^=", *p)) {
        f.align = *p++;
    }
    if (p < end && *p && strchr("+- ", *p)) f.sign = *p++;
    if (p < end && *p == '#') f.alternate = *p++ != 0;
    if (p < end && *p == '0') {
        if (!f.align) {
            f.align = '=';
            f.fill = JSTR("0");
        }
        p++;
    }
    f.width = read_count(s, &p, end);
    if (p < end && (*p == ',' || *p == '_')) f.group = *p++;
    if (p < end && *p == '.') {
        p++;
        f.has_precision = true;
        f.precision = read_count(s, &p, end);
    }
    if (p < end) f.type = *p++;
    if (p != end || (f.type && !strchr("bcdnoxXeEfFgG%s", f.type)))
        jinja_fail(s, "format: found '%.*s', expected a format such as >8 or .2f", (int)sh_min_u64(spec.n, 40), spec.p);
    return f;
}

static void brace_value(struct jinja *s, struct jbuf *out, struct jval v, struct jstr spec) {
    struct field f = read_spec(s, spec);
    const size_t since = out->n;
    const bool number = jv_is_number(v) && f.type != 's', whole = number && v.kind != J_FLOAT;
    char text[4];
    if (f.type == 'n') f.type = whole ? 'd' : 'g';
    if (whole && f.type == 'c') {
        add_text(s, out, &f, character(s, jv_int(jv_integer(v)), text));
    } else if (whole && (f.type ? strchr("bdoxX", f.type) != NULL : v.kind == J_INT || spec.n)) { /* True is 1 in a field */
        add_int(s, out, &f, jv_integer(v));
    } else if (number && f.type && strchr("eEfFgG%", f.type)) {
        add_float(s, out, &f, jv_double(v));
    } else if (v.kind == J_FLOAT && !f.type) {
        if (f.has_precision) f.type = 'g';
        if (f.has_precision) add_float(s, out, &f, v.f);
        else {
            struct jbuf digits = {0};
            add_decimal(s, &digits, &f, jv_string(s, jv_float(fabs(v.f))));
            add_number(s, out, &f, signbit(v.f), jbuf_value(&digits).s);
        }
    } else if (!f.type || f.type == 's') {
        add_text(s, out, &f, jv_string(s, v));
    } else {
        jinja_fail(s, "format: '%c' has no meaning for %s", f.type, jv_type(v));
    }
    if (v.given || jinja_is_given(s, spec)) jbuf_mark(s, out, since);
}

/* name or number, then .attribute and [item] */
static struct jval brace_field(struct jinja *s, struct jstr field, const struct jargs *args, size_t *next) {
    size_t n = 0;
    while (n < field.n && field.p[n] != '.' && field.p[n] != '[') n++;
    const struct jstr name = {field.p, n};
    struct jval v = {.kind = J_ABSENT};
    __int128 index = 0;
    if (!n) index = (__int128)(*next)++;
    if (!n || jinja_parse_int(name, 10, &index)) {
        if (index >= 0 && index < (__int128)args->n) v = args->items[index];
    } else {
        for (size_t i = 0; i < args->n_named; i++) {
            if (jstr_equal(args->named[i].name, name)) v = args->named[i].value;
        }
    }
    if (v.kind == J_ABSENT) jinja_fail(s, "format: found no value for {%.*s}", (int)sh_min_u64(field.n, 60), field.p);
    while (n < field.n) {
        const bool item = field.p[n] == '[';
        const size_t begin = ++n;
        while (n < field.n && field.p[n] != (item ? ']' : '.') && (item || field.p[n] != '[')) n++;
        const struct jstr part = {field.p + begin, n - begin};
        if (item && n < field.n) n++;
        if (!item) v = jinja_attribute(s, v, part);
        else v = jinja_item(s, v, jinja_parse_int(part, 10, &index) ? jv_int(index) : jv_str(part));
    }
    return v;
}

/* Of the brace at p; within a field there may be others, one level deep. NULL: there is none. */
static const char *closing_brace(const char *p, const char *end) {
    uint32_t open = 0;
    for (; p < end; p++) {
        if (*p == '{' && ++open > 2) return NULL;
        if (*p == '}' && --open == 0) return p;
    }
    return NULL;
}

/* The spec with the values of the fields in it: {:{width}}. */
static struct jstr filled_spec(struct jinja *s, struct jstr spec, const struct jargs *args, size_t *next) {
    struct jbuf b = {0};
    if (!spec.n || !memchr(spec.p, '{', spec.n)) return spec;
    for (size_t i = 0; i < spec.n; i++) {
        const char *close = spec.p[i] == '{' ? closing_brace(spec.p + i, spec.p + spec.n) : NULL;
        if (!close) {
            jbuf_add(s, &b, spec.p + i, 1);
            continue;
        }
        const struct jstr field = {spec.p + i + 1, (size_t)(close - spec.p) - i - 1};
        jv_print(s, &b, brace_field(s, field, args, next));
        i = (size_t)(close - spec.p);
    }
    return jbuf_value(&b).s;
}

struct jval jinja_brace(struct jinja *s, struct jstr format, const struct jargs *args) {
    struct jbuf out = {0};
    size_t next = 0;
    for (size_t i = 0; i < format.n; i++) {
        const char c = format.p[i];
        if ((c != '{' && c != '}') || (i + 1 < format.n && format.p[i + 1] == c)) {
            i += c == '{' || c == '}';
            jbuf_add(s, &out, format.p + i, 1);
            continue;
        }
        const char *close = c == '{' ? closing_brace(format.p + i, format.p + format.n) : NULL;
        if (!close) jinja_fail(s, "format: found a single '%c'", c);
        struct jstr field = {format.p + i + 1, (size_t)(close - format.p) - i - 1}, spec = JSTR("");
        const char *colon = memchr(field.p, ':', field.n);
        if (colon) {
            spec = (struct jstr){colon + 1, field.n - (size_t)(colon + 1 - field.p)};
            field.n = (size_t)(colon - field.p);
        }
        bool repr = false;
        if (field.n >= 2 && field.p[field.n - 2] == '!') {
            repr = field.p[field.n - 1] == 'r';
            field.n -= 2;
        }
        struct jval v = brace_field(s, field, args, &next);
        spec = filled_spec(s, spec, args, &next);
        if (repr) {
            struct jbuf b = {0};
            jv_repr(s, &b, v);
            v = jbuf_value(&b);
        }
        brace_value(s, &out, v, spec);
        i = (size_t)(close - format.p);
    }
    return jbuf_value(&out);
}
