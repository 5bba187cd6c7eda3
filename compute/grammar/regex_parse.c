/*
 * regex_parse.c - ECMA-262 regular expressions (as with the flag u) to a tree over sets of code points.
 *
 * More lenient than the flag u: '{', '}' and ']' where they can mean nothing else stand for themselves, and so does any escaped
 * punctuation. Lazy quantifiers and groups' names and numbers make no difference to what matches.
 */
#include "compute/grammar/charset.h"

#include "compute/text/utf8.h"

#include <stdlib.h>

enum { MAX_PROPERTIES = 64, MAX_COUNT = 1 << 20 };

struct parser {
    struct sh_rx *rx;
    const char *text, *at, *end;
    uint32_t depth, properties;
    struct sh_error *err;
};

static enum sh_code fail_at(const struct parser *p, const char *at, enum sh_code code, const char *what) {
    unsigned character = 1;
    for (const char *c = p->text; c < at; c++) character += (*c & 0xC0) != 0x80;
    return sh_fail(p->err, code, "regular expression, character %u: %s", character, what);
}

static enum sh_code no_memory(const struct parser *p) {
    return sh_fail(p->err, SH_ERR_NO_MEMORY, "no memory for a regular expression");
}

/* ---- the tree ---- */

static uint32_t add_node(struct sh_rx *rx, struct sh_rx_node node) { /* 0: no memory */
    if (!sh_grow((void **)&rx->nodes, &rx->nodes_capacity, rx->n_nodes + 1, sizeof *rx->nodes)) return 0;
    rx->nodes[rx->n_nodes] = node;
    return rx->n_nodes++;
}

/* Takes the set's contents over. */
static uint32_t add_set(struct sh_rx *rx, struct sh_charset *set) {
    if (set->failed || !sh_grow((void **)&rx->sets, &rx->sets_capacity, rx->n_sets + 1, sizeof *rx->sets)) {
        sh_charset_free(set);
        return 0;
    }
    rx->sets[rx->n_sets] = *set;
    *set = (struct sh_charset){0};
    return add_node(rx, (struct sh_rx_node){.kind = SH_RX_SET, .set = rx->n_sets++});
}

/* ---- sets ---- */

static void add_digits(struct sh_charset *set) { sh_charset_add(set, '0', '9'); }

static void add_word(struct sh_charset *set) {
    add_digits(set);
    sh_charset_add(set, 'A', 'Z');
    sh_charset_add(set, '_', '_');
    sh_charset_add(set, 'a', 'z');
}

/* WhiteSpace and LineTerminator of ECMA-262. */
static void add_space(struct sh_charset *set) {
    static const struct sh_gr_range space[] = {{9, 13},          {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                                               {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                               {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    for (uint32_t i = 0; i < SH_COUNT(space); i++) sh_charset_add(set, space[i].first, space[i].last);
}

static void add_lines(struct sh_charset *set) {
    sh_charset_add(set, '\n', '\n');
    sh_charset_add(set, '\r', '\r');
    sh_charset_add(set, 0x2028, 0x2029);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool read_hex(struct parser *p, uint32_t digits, uint32_t *out) {
    if (p->end - p->at < (ptrdiff_t)digits) return false;
    uint32_t c = 0;
    for (uint32_t i = 0; i < digits; i++) {
        const int d = hex_digit(p->at[i]);
        if (d < 0) return false;
        c = c << 4 | (uint32_t)d;
    }
    p->at += digits;
    *out = c;
    return true;
}

static bool read_unicode_escape(struct parser *p, uint32_t *out) { /* behind \u */
    if (p->at < p->end && *p->at == '{') {
        uint32_t c = 0, n = 0;
        for (p->at++; p->at < p->end && hex_digit(*p->at) >= 0 && c <= SH_MAX_CODE_POINT; p->at++, n++)
            c = c << 4 | (uint32_t)hex_digit(*p->at);
        if (n == 0 || c > SH_MAX_CODE_POINT || p->at >= p->end || *p->at != '}') return false;
        p->at++;
        *out = c;
        return true;
    }
    uint32_t low;
    if (!read_hex(p, 4, out)) return false;
    if (*out < 0xD800 || *out > 0xDBFF || p->end - p->at < 6 || p->at[0] != '\\' || p->at[1] != 'u') return true;
    const char *was = p->at;
    p->at += 2;
    if (read_hex(p, 4, &low) && low >= 0xDC00 && low <= 0xDFFF) {
        *out = 0x10000 + ((*out - 0xD800) << 10) + (low - 0xDC00);
    } else {
        p->at = was;
    }
    return true;
}

static enum sh_code read_property(struct parser *p, const char *begin, struct sh_charset *set) { /* behind \p */
    if (p->at >= p->end || *p->at != '{')
        return fail_at(p, begin, SH_ERR_INVALID, "expected '{' and a property's name behind \\p");
    const char *name = ++p->at;
    while (p->at < p->end && *p->at != '}') p->at++;
    if (p->at >= p->end) return fail_at(p, begin, SH_ERR_INVALID, "this property has no closing '}'");
    if (++p->properties > MAX_PROPERTIES)
        return fail_at(p, begin, SH_ERR_LIMIT, "more than 64 properties (\\p) in one expression");
    if (!sh_rx_property(name, (size_t)(p->at - name), set)) {
        return fail_at(p, begin, SH_ERR_UNSUPPORTED,
                       "this property of characters (\\p) is not known here; write the characters as ranges");
    }
    p->at++;
    return SH_OK;
}

static enum sh_code read_code_point(struct parser *p, uint32_t *out) {
    size_t length;
    if (sh_utf8_scan(p->at, (size_t)(p->end - p->at), &length, out) != SH_UTF8_OK)
        return fail_at(p, p->at, SH_ERR_INVALID, "this is no UTF-8");
    p->at += length;
    return SH_OK;
}

/* An escape; p->at is at the backslash. Either a set (*is_set), which is added, or one code point. */
static enum sh_code read_escape(struct parser *p, bool in_class, struct sh_charset *set, bool *is_set, uint32_t *out) {
    const char *begin = p->at++;
    *is_set = false;
    if (p->at >= p->end) return fail_at(p, begin, SH_ERR_INVALID, "a backslash at the end");
    const char c = *p->at++;
    struct sh_charset some = {0};
    void (*const add)(struct sh_charset *) = (c | 0x20) == 'd' ? add_digits : (c | 0x20) == 'w' ? add_word : add_space;
    enum sh_code code = SH_OK;
    switch (c) {
    case 'd':
    case 'D':
    case 'w':
    case 'W':
    case 's':
    case 'S':
    case 'p':
    case 'P':
        *is_set = true;
        if ((c | 0x20) == 'p') code = read_property(p, begin, &some);
        else add(&some);
        if (code == SH_OK) {
            sh_charset_settle(&some);
            if (c < 'a') sh_charset_negate(&some);
            sh_charset_add_set(set, &some);
        }
        sh_charset_free(&some);
        return code;
    case 'n': *out = '\n'; return SH_OK;
    case 'r': *out = '\r'; return SH_OK;
    case 't': *out = '\t'; return SH_OK;
    case 'v': *out = '\v'; return SH_OK;
    case 'f': *out = '\f'; return SH_OK;
    case 'b':
        *out = '\b';
        return in_class ? SH_OK : fail_at(p, begin, SH_ERR_UNSUPPORTED, "word boundaries (\\b) are not enforced here");
    case 'B': return fail_at(p, begin, SH_ERR_UNSUPPORTED, "word boundaries (\\B) are not enforced here");
    case 'k': return fail_at(p, begin, SH_ERR_UNSUPPORTED, "back references (\\k) are not enforced here");
    case '0':
        if (p->at < p->end && *p->at >= '0' && *p->at <= '9')
            return fail_at(p, begin, SH_ERR_INVALID, "octal escapes are not of ECMA-262");
        *out = 0;
        return SH_OK;
    case 'c':
        if (p->at >= p->end || (*p->at | 0x20) < 'a' || (*p->at | 0x20) > 'z')
            return fail_at(p, begin, SH_ERR_INVALID, "expected a letter behind \\c");
        *out = (uint32_t)*p->at++ & 31;
        return SH_OK;
    case 'x':
        return read_hex(p, 2, out) ? SH_OK : fail_at(p, begin, SH_ERR_INVALID, "expected two hexadecimal digits behind \\x");
    case 'u':
        return read_unicode_escape(p, out)
                   ? SH_OK
                   : fail_at(p, begin, SH_ERR_INVALID, "expected four hexadecimal digits, or {digits}, behind \\u");
    default: break;
    }
    if (c >= '1' && c <= '9') return fail_at(p, begin, SH_ERR_UNSUPPORTED, "back references are not enforced here");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return fail_at(p, begin, SH_ERR_INVALID, "this escape is not of ECMA-262");
    p->at--;
    return read_code_point(p, out);
}

static enum sh_code read_class_atom(struct parser *p, struct sh_charset *set, bool *is_set, uint32_t *out) {
    *is_set = false;
    return *p->at == '\\' ? read_escape(p, true, set, is_set, out) : read_code_point(p, out);
}

static enum sh_code read_class(struct parser *p, uint32_t *node) {
    const char *begin = p->at++;
    struct sh_charset set = {0};
    const bool negated = p->at < p->end && *p->at == '^';
    if (negated) p->at++;
    enum sh_code code = SH_OK;
    while (code == SH_OK) {
        if (p->at >= p->end) {
            code = fail_at(p, begin, SH_ERR_INVALID, "this '[' has no closing ']'");
            break;
        }
        if (*p->at == ']') break;
        bool is_set, last_is_set = false;
        uint32_t first = 0, last = 0;
        const char *from = p->at;
        code = read_class_atom(p, &set, &is_set, &first);
        last = first;
        if (code == SH_OK && p->end - p->at >= 2 && *p->at == '-' && p->at[1] != ']') {
            p->at++;
            code = read_class_atom(p, &set, &last_is_set, &last);
            if (code == SH_OK && (is_set || last_is_set)) {
                code = fail_at(p, from, SH_ERR_INVALID, "a range from or to a class like \\d; write the '-' first or last");
            }
            if (code == SH_OK && last < first)
                code = fail_at(p, from, SH_ERR_INVALID, "the range's end lies before its beginning");
        }
        if (code == SH_OK && !is_set) sh_charset_add(&set, first, last);
    }
    if (code == SH_OK) {
        p->at++;
        sh_charset_settle(&set);
        if (negated) sh_charset_negate(&set);
        *node = add_set(p->rx, &set);
        if (*node == 0) code = no_memory(p);
    }
    sh_charset_free(&set);
    return code;
}

/* ---- structure ---- */

static enum sh_code read_choice(struct parser *p, uint32_t *node);

static enum sh_code read_group(struct parser *p, uint32_t *node) {
    const char *begin = p->at++;
    if (p->at < p->end && *p->at == '?') {
        const ptrdiff_t left = p->end - p->at;
        if (left >= 2 && p->at[1] == ':') {
            p->at += 2;
        } else if ((left >= 2 && (p->at[1] == '=' || p->at[1] == '!')) ||
                   (left >= 3 && p->at[1] == '<' && (p->at[2] == '=' || p->at[2] == '!'))) {
            return fail_at(p, begin, SH_ERR_UNSUPPORTED, "look-around is not enforced here");
        } else if (left >= 3 && p->at[1] == '<') {
            for (p->at += 2; p->at < p->end && *p->at != '>'; p->at++) {
                const char c = *p->at;
                if ((c & 0x80) == 0 && c != '_' && c != '$' && !(c >= '0' && c <= '9') &&
                    !((c | 0x20) >= 'a' && (c | 0x20) <= 'z')) {
                    return fail_at(p, p->at, SH_ERR_INVALID, "expected a group's name and '>'");
                }
            }
            if (p->at >= p->end) return fail_at(p, begin, SH_ERR_INVALID, "this group's name has no closing '>'");
            p->at++;
        } else {
            return fail_at(p, begin, SH_ERR_UNSUPPORTED,
                           "this kind of group is not enforced here; (...), (?:...) and (?<name>...) are");
        }
    }
    if (++p->depth > SH_GR_MAX_DEPTH) return fail_at(p, begin, SH_ERR_LIMIT, "groups are nested too deeply");
    const enum sh_code code = read_choice(p, node);
    if (code != SH_OK) return code;
    p->depth--;
    if (p->at >= p->end) return fail_at(p, begin, SH_ERR_INVALID, "this '(' has no closing ')'");
    p->at++;
    return SH_OK;
}

/* {m}, {m,}, {m,n}; false: it is none, and p->at as before. */
static bool read_counts(struct parser *p, uint32_t *min, uint32_t *max) {
    const char *at = p->at + 1;
    uint64_t n[2] = {0, 0};
    uint32_t i = 0;
    bool digits[2] = {false, false};
    for (; at < p->end && *at != '}'; at++) {
        if (*at == ',' && i == 0) {
            i = 1;
        } else if (*at >= '0' && *at <= '9') {
            n[i] = n[i] * 10 + (uint32_t)(*at - '0');
            if (n[i] > UINT32_MAX) n[i] = UINT32_MAX;
            digits[i] = true;
        } else {
            return false;
        }
    }
    if (at >= p->end || !digits[0]) return false;
    p->at = at + 1;
    *min = (uint32_t)n[0];
    *max = i == 0 ? *min : digits[1] ? (uint32_t)n[1] : SH_GR_UNLIMITED;
    return true;
}

static enum sh_code read_quantifier(struct parser *p, bool anchor, uint32_t *node) {
    if (p->at >= p->end) return SH_OK;
    const char *begin = p->at;
    uint32_t min = 0, max = SH_GR_UNLIMITED;
    if (*p->at == '*' || *p->at == '+' || *p->at == '?') {
        if (*p->at == '+') min = 1;
        if (*p->at == '?') max = 1;
        p->at++;
    } else if (*p->at != '{' || !read_counts(p, &min, &max)) {
        return SH_OK;
    }
    if (max < min) return fail_at(p, begin, SH_ERR_INVALID, "at least more than at most");
    if (min > MAX_COUNT || (max > MAX_COUNT && max != SH_GR_UNLIMITED))
        return fail_at(p, begin, SH_ERR_LIMIT, "more repetitions than 1048576");
    if (p->at < p->end && *p->at == '?') p->at++;
    if (anchor) return fail_at(p, begin, SH_ERR_INVALID, "an anchor cannot be repeated");
    if (p->at < p->end && (*p->at == '*' || *p->at == '+' || *p->at == '?')) {
        return fail_at(p, p->at, SH_ERR_INVALID, "two quantifiers in a row; put a group around the first");
    }
    *node = add_node(p->rx, (struct sh_rx_node){.kind = SH_RX_REPEAT, .first = *node, .min = min, .max = max});
    return *node != 0 ? SH_OK : no_memory(p);
}

static enum sh_code read_term(struct parser *p, uint32_t *node) {
    struct sh_charset set = {0};
    enum sh_code code = SH_OK;
    uint32_t c = 0;
    bool is_set;
    switch (*p->at) {
    case '(': return read_group(p, node);
    case '[': return read_class(p, node);
    case '^':
    case '$':
        p->rx->anchors = true;
        *node = add_node(p->rx, (struct sh_rx_node){.kind = *p->at++ == '^' ? SH_RX_START : SH_RX_END});
        return *node != 0 ? SH_OK : no_memory(p);
    case '*':
    case '+':
    case '?': return fail_at(p, p->at, SH_ERR_INVALID, "there is nothing before this quantifier that it could repeat");
    case '.':
        p->at++;
        add_lines(&set);
        sh_charset_settle(&set);
        sh_charset_negate(&set);
        break;
    case '\\':
        code = read_escape(p, false, &set, &is_set, &c);
        if (code == SH_OK && !is_set) sh_charset_add(&set, c, c);
        break;
    default: code = read_code_point(p, &c); sh_charset_add(&set, c, c);
    }
    if (code == SH_OK) {
        sh_charset_settle(&set);
        *node = add_set(p->rx, &set);
        if (*node == 0) code = no_memory(p);
    }
    sh_charset_free(&set);
    return code;
}

static enum sh_code read_sequence(struct parser *p, uint32_t *node) {
    uint32_t first = 0, last = 0, n = 0;
    while (p->at < p->end && *p->at != '|' && *p->at != ')') {
        uint32_t term = 0;
        const bool anchor = *p->at == '^' || *p->at == '$';
        enum sh_code code = read_term(p, &term);
        if (code == SH_OK) code = read_quantifier(p, anchor, &term);
        if (code != SH_OK) return code;
        if (n++ == 0) first = term;
        else p->rx->nodes[last].next = term;
        last = term;
    }
    *node = n == 1 ? first : add_node(p->rx, (struct sh_rx_node){.kind = n == 0 ? SH_RX_EMPTY : SH_RX_SEQUENCE, .first = first});
    return *node != 0 ? SH_OK : no_memory(p);
}

static enum sh_code read_choice(struct parser *p, uint32_t *node) {
    uint32_t first = 0, last = 0, n = 0;
    for (;; p->at++) {
        uint32_t one = 0;
        const enum sh_code code = read_sequence(p, &one);
        if (code != SH_OK) return code;
        if (n++ == 0) first = one;
        else p->rx->nodes[last].next = one;
        last = one;
        if (p->at >= p->end || *p->at != '|') break;
    }
    if (n == 1) {
        *node = first;
        return SH_OK;
    }
    *node = add_node(p->rx, (struct sh_rx_node){.kind = SH_RX_CHOICE, .first = first});
    return *node != 0 ? SH_OK : no_memory(p);
}

enum sh_code sh_rx_parse(const char *pattern, size_t length, struct sh_rx **out, struct sh_error *err) {
    if (length > SH_GR_MAX_TEXT) {
        return sh_fail(err, SH_ERR_LIMIT, "the regular expression has %zu bytes, at most %d are allowed", length, SH_GR_MAX_TEXT);
    }
    struct parser p = {.text = pattern, .at = pattern, .end = pattern + length, .err = err, .rx = sh_calloc(1, sizeof *p.rx)};
    if (p.rx == NULL || add_node(p.rx, (struct sh_rx_node){0}) != 0 || p.rx->n_nodes != 1) {
        sh_rx_free(p.rx);
        return no_memory(&p);
    }
    enum sh_code code = read_choice(&p, &p.rx->root);
    if (code == SH_OK && p.at < p.end) code = fail_at(&p, p.at, SH_ERR_INVALID, "this ')' closes nothing");
    if (code != SH_OK) {
        sh_rx_free(p.rx);
        return code;
    }
    *out = p.rx;
    return SH_OK;
}

uint64_t sh_rx_work(const struct sh_rx *rx) {
    uint64_t work = rx->n_nodes;
    for (uint32_t i = 0; i < rx->n_sets; i++) work += rx->sets[i].n;
    return work;
}

void sh_rx_free(struct sh_rx *rx) {
    if (rx == NULL) return;
    for (uint32_t i = 0; i < rx->n_sets; i++) sh_charset_free(&rx->sets[i]);
    free(rx->sets);
    free(rx->nodes);
    free(rx);
}
