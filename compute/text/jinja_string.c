/* jinja_string.c - strings as sequences of code points: searching, cutting, case. */
#include "compute/text/jinja.h"

#include "compute/text/unicode.h"
#include "compute/text/utf8.h"

uint32_t jstr_next(const char *p, const char *end, size_t *bytes) {
    uint32_t c = 0xFFFD;
    if (sh_utf8_scan(p, (size_t)(end - p), bytes, &c) == SH_UTF8_OK) return c;
    *bytes = 1;
    return 0xFFFD;
}

size_t jstr_length(struct jinja *s, struct jstr t) {
    size_t n = 0, bytes;
    jinja_spend(s, t.n / 64);
    for (size_t i = 0; i < t.n; i += bytes, n++) jstr_next(t.p + i, t.p + t.n, &bytes);
    return n;
}

size_t jstr_offset(struct jstr t, size_t characters) {
    size_t i = 0, bytes;
    for (; i < t.n && characters; i += bytes, characters--) jstr_next(t.p + i, t.p + t.n, &bytes);
    return i;
}

size_t jstr_find(struct jinja *s, struct jstr t, struct jstr what, size_t from) {
    if (from > t.n || what.n > t.n - from) return SIZE_MAX;
    if (!what.n) return from;
    jinja_spend(s, (t.n - from) / 64);
    const char *found = memmem(t.p + from, t.n - from, what.p, what.n);
    return found ? (size_t)(found - t.p) : SIZE_MAX;
}

size_t jstr_rfind(struct jinja *s, struct jstr t, struct jstr what) {
    if (what.n > t.n) return SIZE_MAX;
    for (size_t i = t.n - what.n + 1; i-- > 0;) {
        if (i % 16 == 0) jinja_spend(s, 1 + what.n / 16);
        if (!what.n || !memcmp(t.p + i, what.p, what.n)) return i;
    }
    return SIZE_MAX;
}

bool jstr_is_space(uint32_t c) {
    if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
    return sh_unicode_class_of(c) == SH_UNICODE_SPACE;
}

static uint32_t upper_of(uint32_t c);

/* A letter: of ASCII, or with a case, or of a script without one (beyond U+02FF what is no punctuation, space or control). */
bool jstr_is_alpha(uint32_t c) {
    if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (sh_unicode_lower(c) != c || upper_of(c) != c || c == 0xDF) return true;
    return c >= 0x300 && (c < 0x2000 || c >= 0x2C00) && c < 0x1F000 && sh_unicode_class_of(c) == SH_UNICODE_OTHER;
}

bool jstr_is_printable(uint32_t c) {
    const enum sh_unicode_class what = sh_unicode_class_of(c);
    return c == ' ' || (what != SH_UNICODE_SPACE && what != SH_UNICODE_CONTROL);
}

bool jstr_is_title(struct jinja *s, struct jstr t) {
    bool within = false, any = false; /* within: behind a letter that has a case */
    size_t bytes;
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        const bool upper = sh_unicode_lower(c) != c, lower = !upper && (upper_of(c) != c || c == 0xDF);
        if (within ? upper : lower) return false;
        within = upper || lower;
        any |= within;
    }
    return any;
}

static bool in_set(uint32_t c, const char *p, size_t bytes, const struct jstr *set) {
    if (!set) return jstr_is_space(c);
    size_t n;
    for (size_t i = 0; i < set->n; i += n) {
        jstr_next(set->p + i, set->p + set->n, &n);
        if (n == bytes && !memcmp(set->p + i, p, n)) return true;
    }
    return false;
}

struct jstr jstr_strip(struct jstr t, const struct jstr *set, bool left, bool right) {
    size_t bytes;
    while (left && t.n) {
        const uint32_t c = jstr_next(t.p, t.p + t.n, &bytes);
        if (!in_set(c, t.p, bytes, set)) break;
        t.p += bytes;
        t.n -= bytes;
    }
    while (right && t.n) {
        size_t at = t.n - 1; /* of the last code point: back over at most three continuation bytes */
        while (at > 0 && t.n - at < 4 && ((uint8_t)t.p[at] & 0xC0) == 0x80) at--;
        uint32_t c = jstr_next(t.p + at, t.p + t.n, &bytes);
        if (at + bytes != t.n) {
            at = t.n - 1;
            bytes = 1;
            c = 0xFFFD;
        }
        if (!in_set(c, t.p + at, bytes, set)) break;
        t.n = at;
    }
    return t;
}

struct jstr jstr_replace(struct jinja *s, struct jstr t, struct jstr what, struct jstr with, __int128 at_most) {
    struct jbuf b = {0};
    size_t at = 0, bytes;
    for (__int128 done = 0; at_most < 0 || done < at_most; done++) {
        const size_t found = jstr_find(s, t, what, at);
        if (found == SIZE_MAX) break;
        jinja_spend(s, 1);
        jbuf_add(s, &b, t.p + at, found - at);
        jbuf_str(s, &b, with);
        at = found + what.n;
        if (what.n) continue;
        if (at == t.n) break; /* an empty one is between all characters, and at both ends */
        jstr_next(t.p + at, t.p + t.n, &bytes);
        jbuf_add(s, &b, t.p + at, bytes);
        at += bytes;
    }
    jbuf_add(s, &b, t.p + at, t.n - at);
    return jbuf_value(&b).s;
}

/* ---- case ---- */

/* The code point whose lower case is c. */
static uint32_t upper_of(uint32_t c) {
    if (c < 0x80) return c >= 'a' && c <= 'z' ? c - ('a' - 'A') : c;
    if (c == 0xB5) return 0x39C;  /* the micro sign is a mu */
    if (c == 0x17F) return 'S';   /* the long one */
    if (c == 0x131) return 'I';   /* without a dot */
    if (c == 0x3C2) return 0x3A3; /* the sigma at the end of a word */
    for (uint32_t i = 0; i < sh_unicode_lower_runs_count; i++) {
        const struct sh_unicode_run *run = &sh_unicode_lower_runs[i];
        if (run->target < 0x80 || c < run->target) continue; /* K of Kelvin and the like are no upper case of ASCII */
        const uint32_t distance = c - run->target, k = run->target_step ? distance / run->target_step : 0;
        if (k < run->count && k * run->target_step == distance && run->first + k * run->step != c)
            return run->first + k * run->step;
    }
    return c;
}

static void add_code_point(struct jinja *s, struct jbuf *b, uint32_t c) {
    char out[4];
    jbuf_add(s, b, out, sh_utf8_encode(c, out));
}

enum letter_case { LOWER, UPPER, TITLE, SWAP, FOLD };

/* Writes the code point of `bytes` at p in another case. */
static void add_cased(struct jinja *s, struct jbuf *b, const char *p, size_t bytes, uint32_t c, enum letter_case to) {
    const size_t since = b->n;
    if (to == SWAP) to = sh_unicode_lower(c) != c ? LOWER : UPPER;
    const bool folds = to == FOLD && (c == 0x17F || c == 0x3C2 || c == 0xB5); /* lower case of another one's upper case */
    const uint32_t lower = sh_unicode_lower(folds ? upper_of(c) : c);
    if (c == 0xFFFD) jbuf_add(s, b, p, bytes);
    else if (to == FOLD && (c == 0xDF || c == 0x1E9E)) jbuf_str(s, b, JSTR("ss"));
    else if (c == 0xDF && to != LOWER) jbuf_str(s, b, to == UPPER ? JSTR("SS") : JSTR("Ss"));
    else if (c == 0x130 && (to == LOWER || to == FOLD)) jbuf_str(s, b, JSTR("i\xCC\x87"));
    else add_code_point(s, b, to == LOWER || to == FOLD ? lower : upper_of(c));
    jbuf_made_of(s, b, since, (struct jstr){p, bytes});
}

static struct jstr cased(struct jinja *s, struct jstr t, enum letter_case first, enum letter_case others) {
    struct jbuf b = {0};
    size_t bytes;
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        add_cased(s, &b, t.p + i, bytes, c, i ? others : first);
    }
    return jbuf_value(&b).s;
}

struct jstr jstr_upper(struct jinja *s, struct jstr t) {
    return cased(s, t, UPPER, UPPER);
}
struct jstr jstr_lower(struct jinja *s, struct jstr t) {
    return cased(s, t, LOWER, LOWER);
}
struct jstr jstr_fold(struct jinja *s, struct jstr t) {
    return cased(s, t, FOLD, FOLD);
}
struct jstr jstr_swapcase(struct jinja *s, struct jstr t) {
    return cased(s, t, SWAP, SWAP);
}
struct jstr jstr_capitalize(struct jinja *s, struct jstr t) {
    return cased(s, t, TITLE, LOWER);
}

/* str.title begins a word behind everything that has no case; the filter behind white space, hyphens and opening brackets. */
struct jstr jstr_title(struct jinja *s, struct jstr t, bool python) {
    struct jbuf b = {0};
    size_t bytes;
    bool begins = true;
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        add_cased(s, &b, t.p + i, bytes, c, begins ? TITLE : LOWER);
        if (python) begins = sh_unicode_lower(c) == c && upper_of(c) == c && c != 0xDF;
        else begins = jstr_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    }
    return jbuf_value(&b).s;
}

/* ---- lines, widths ---- */

static bool is_line_end(uint32_t c) {
    return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

struct jval jstr_split_lines(struct jinja *s, struct jstr t, bool keep_ends) {
    const struct jval list = jv_list(s, 0);
    size_t begin = 0, bytes;
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        if (!is_line_end(c)) continue;
        const size_t end = i;
        if (c == '\r' && i + 1 < t.n && t.p[i + 1] == '\n') bytes = 2;
        jlist_add(s, list.list, jv_text(t.p + begin, (keep_ends ? i + bytes : end) - begin));
        begin = i + bytes;
    }
    if (begin < t.n) jlist_add(s, list.list, jv_text(t.p + begin, t.n - begin));
    return list;
}

/* Columns are counted from the last line feed or carriage return. */
struct jstr jstr_expand_tabs(struct jinja *s, struct jstr t, __int128 width) {
    struct jbuf b = {0};
    size_t column = 0, bytes;
    if (width > JINJA_MAX_OUTPUT) jinja_limit(s, "text in bytes", JINJA_MAX_OUTPUT);
    jinja_spend(s, t.n / 16);
    for (size_t i = 0; i < t.n; i += bytes) {
        const uint32_t c = jstr_next(t.p + i, t.p + t.n, &bytes);
        if (c != '\t') {
            jbuf_add(s, &b, t.p + i, bytes);
            column = c == '\n' || c == '\r' ? 0 : column + 1;
            continue;
        }
        const size_t since = b.n, missing = width > 0 ? (size_t)width - column % (size_t)width : 0;
        jbuf_fill(s, &b, JSTR(" "), missing);
        jbuf_made_of(s, &b, since, (struct jstr){t.p + i, 1});
        column += missing;
    }
    return jbuf_value(&b).s;
}

struct jstr jstr_pad(struct jinja *s, struct jstr t, __int128 width, struct jstr fill, int align) {
    const size_t length = jstr_length(s, t);
    struct jbuf b = {0};
    if (width <= (__int128)length) return t;
    if (width > JINJA_MAX_OUTPUT) jinja_limit(s, "text in bytes", JINJA_MAX_OUTPUT);
    const size_t missing = (size_t)width - length;
    size_t left = align > 0 ? missing : align < 0 ? 0 : missing / 2;
    if (align == 0) left += missing & (size_t)width & 1; /* Python: the odd one goes left if the width is odd */
    jbuf_fill(s, &b, fill, left);
    jbuf_str(s, &b, t);
    jbuf_fill(s, &b, fill, missing - left);
    return jbuf_value(&b).s;
}
