/* jinja_lex.c - template text to tokens. White space control is done here: the parser sees only the text that is to be printed. */
#include "compute/text/jinja.h"

#include "compute/text/utf8.h"

struct lexer {
    struct jinja *s;
    const char *p, *end;
    struct jtoken *tokens;
    size_t n, capacity;
    bool line_start; /* p is at the beginning of a line: nothing but line feeds and block ends before it */
};

static struct jtoken *push(struct lexer *x, enum jtoken_kind kind, struct jstr text) {
    if (x->n == x->capacity) {
        const size_t capacity = x->capacity ? x->capacity * 2 : 256;
        struct jtoken *grown = jinja_alloc(x->s, capacity * sizeof *grown);
        if (x->n) memcpy(grown, x->tokens, x->n * sizeof *grown);
        x->tokens = grown;
        x->capacity = capacity;
    }
    struct jtoken *t = &x->tokens[x->n++];
    *t = (struct jtoken){.kind = kind, .line = x->s->line, .text = text};
    return t;
}

static bool looking_at(const struct lexer *x, const char *word) {
    const size_t n = strlen(word);
    return (size_t)(x->end - x->p) >= n && !memcmp(x->p, word, n);
}

/* All moves forward go through here, so that lines are counted. */
static void skip(struct lexer *x, size_t n) {
    for (size_t i = 0; i < n; i++) x->s->line += x->p[i] == '\n';
    x->p += n;
}

static size_t space_length(const char *p, const char *end) {
    const char *at = p;
    size_t bytes;
    while (at < end && jstr_is_space(jstr_next(at, end, &bytes))) at += bytes;
    return (size_t)(at - p);
}

/* Behind a tag's end: '-' eats white space, else one line feed goes behind a block or comment that has no '+'. */
static void after_tag(struct lexer *x, char sign, bool trim) {
    x->line_start = false;
    if (sign == '-') {
        const size_t n = space_length(x->p, x->end);
        x->line_start = n > 0 && x->p[n - 1] == '\n';
        skip(x, n);
    } else if (trim && sign != '+' && x->p < x->end && *x->p == '\n') {
        skip(x, 1);
        x->line_start = true;
    }
}

/* The text in front of a tag, without the white space that the tag's sign or its place at the beginning of a line removes. */
static void push_data(struct lexer *x, struct jstr text, char sign, bool strip_line, bool line_start) {
    if (sign == '-') {
        text = jstr_strip(text, NULL, false, true);
    } else if (strip_line && sign != '+') {
        size_t line = text.n;
        while (line > 0 && text.p[line - 1] != '\n') line--;
        if ((line > 0 || line_start) && space_length(text.p + line, text.p + text.n) == text.n - line) text.n = line;
    }
    if (text.n) push(x, T_DATA, text);
}

static char take_sign(struct lexer *x, bool plus) {
    if (x->p == x->end || (*x->p != '-' && !(plus && *x->p == '+'))) return 0;
    const char sign = *x->p;
    skip(x, 1);
    return sign;
}

static void lex_comment(struct lexer *x) {
    for (; x->p < x->end; skip(x, 1)) {
        if (!looking_at(x, "#}")) continue;
        const char sign = x->p[-1];
        skip(x, 2);
        after_tag(x, sign == '-' || sign == '+' ? sign : 0, true);
        return;
    }
    jinja_fail(x->s, "found the end of the template, expected the end of a comment, #}");
}

/* At p a tag "{% word %}" with signs? Then *length is that of all of it, and the signs are told. */
static bool at_word_tag(const struct lexer *x, const char *p, const char *word, char *before, char *after, size_t *length) {
    const char *at = p + 2, *end = x->end;
    *before = *after = 0;
    if (end - p < 4 || p[0] != '{' || p[1] != '%') return false;
    if (*at == '-' || *at == '+') *before = *at++;
    at += space_length(at, end);
    const size_t n = strlen(word);
    if ((size_t)(end - at) < n || memcmp(at, word, n)) return false;
    at += n;
    at += space_length(at, end);
    if (at < end && (*at == '-' || *at == '+')) *after = *at++;
    if (end - at < 2 || at[0] != '%' || at[1] != '}') return false;
    *length = (size_t)(at + 2 - p);
    return true;
}

/* p is behind {% raw %}. */
static void lex_raw(struct lexer *x, char sign) {
    after_tag(x, sign, false);
    const bool line_start = x->line_start;
    const char *begin = x->p;
    char before, after;
    size_t length;
    for (; x->p < x->end; skip(x, 1)) {
        if (!at_word_tag(x, x->p, "endraw", &before, &after, &length)) continue;
        push_data(x, (struct jstr){begin, (size_t)(x->p - begin)}, before, true, line_start);
        skip(x, length);
        after_tag(x, after, true);
        return;
    }
    jinja_fail(x->s, "found the end of the template, expected {%% endraw %%}");
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* An escape with digits at p, at most n of them in the base; returns how many were read. */
static size_t numeric_escape(const char *p, const char *end, size_t n, int base, uint32_t *value) {
    size_t i = 0;
    for (*value = 0; i < n && p + i < end && hex_digit(p[i]) >= 0 && hex_digit(p[i]) < base; i++)
        *value = *value * (uint32_t)base + (uint32_t)hex_digit(p[i]);
    return i;
}

/* What a backslash and the character at p mean; returns the bytes read from p, 0: nothing, the backslash stays. */
static size_t unescape(const char *p, const char *end, char out[4], size_t *n_out) {
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    uint32_t code;
    *n_out = 1;
    if (*p == '\n') return *n_out = 0, 1;
    const char *known = strchr(from, *p);
    if (known && *p) return out[0] = to[known - from], 1;
    const size_t want = *p == 'x' ? 2 : *p == 'u' ? 4 : *p == 'U' ? 8 : 0;
    if (want) {
        if (numeric_escape(p + 1, end, want, 16, &code) < want || code > 0x10FFFF) return 0;
        if (code >= 0xD800 && code <= 0xDFFF) code = 0xFFFD;
        return *n_out = sh_utf8_encode(code, out), want + 1;
    }
    const size_t octal = numeric_escape(p, end, 3, 8, &code);
    if (octal) *n_out = sh_utf8_encode(code, out);
    return octal;
}

static void lex_string(struct lexer *x) {
    const char quote = *x->p, *begin = x->p;
    struct jbuf text = {0};
    skip(x, 1);
    while (x->p < x->end && *x->p != quote) {
        if (*x->p == '\\' && x->p + 1 < x->end) {
            char out[4];
            size_t n_out;
            const size_t n = unescape(x->p + 1, x->end, out, &n_out);
            jbuf_add(x->s, &text, n ? out : x->p, n ? n_out : 2);
            skip(x, n ? n + 1 : 2);
        } else {
            jbuf_char(x->s, &text, *x->p);
            skip(x, 1);
        }
    }
    if (x->p == x->end) jinja_fail(x->s, "found the end of the template, expected the end of the string %.20s", begin);
    skip(x, 1);
    push(x, T_CONST, (struct jstr){begin, (size_t)(x->p - begin)})->value = jbuf_value(&text);
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_name(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80); }

/* Digits with single underscores between them. */
static const char *digits(const char *p, const char *end) {
    while (p < end && (is_digit(*p) || (*p == '_' && p + 1 < end && is_digit(p[1])))) p++;
    return p;
}

static void lex_number(struct lexer *x) {
    const char *begin = x->p, *at = begin, *end = x->end;
    const bool behind_dot = x->n && x->tokens[x->n - 1].kind == T_OP && x->tokens[x->n - 1].op == '.';
    bool is_float = false;
    unsigned base = 10;
    if (*at == '0' && at + 2 < end && strchr("xXoObB", at[1]) && at[1]) {
        base = at[1] == 'x' || at[1] == 'X' ? 16 : at[1] == 'o' || at[1] == 'O' ? 8 : 2;
        for (at += 2; at < end && is_name(*at); at++) {
        }
    } else {
        at = digits(at, end);
        if (!behind_dot && end - at > 1 && *at == '.' && is_digit(at[1])) {
            is_float = true;
            at = digits(at + 1, end);
        }
        const char *exponent = at + 1;
        if (!behind_dot && at < end && (*at == 'e' || *at == 'E')) {
            if (exponent < end && (*exponent == '+' || *exponent == '-')) exponent++;
            if (exponent < end && is_digit(*exponent)) {
                is_float = true;
                at = digits(exponent, end);
            }
        }
    }
    struct jbuf plain = {0};
    for (const char *c = begin + (base == 10 ? 0 : 2); c < at; c++) {
        if (*c != '_') jbuf_char(x->s, &plain, *c);
    }
    const struct jstr text = {plain.p, plain.n};
    struct jval value = jv_int(0);
    if (is_float) {
        value = jv_float(0);
        if (!jinja_parse_float(text, &value.f)) jinja_fail(x->s, "found %.*s, expected a number", (int)(at - begin), begin);
    } else if (!jinja_parse_int(text, base, &value.i)) {
        jinja_fail(x->s, "found %.*s, expected an integer of at most 127 bits", (int)sh_min_u64((uint64_t)(at - begin), 60),
                   begin);
    }
    skip(x, (size_t)(at - begin));
    push(x, T_CONST, (struct jstr){begin, (size_t)(at - begin)})->value = value;
}

static void lex_operator(struct lexer *x) {
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    for (size_t i = 0; i < SH_COUNT(two); i++) {
        if (!looking_at(x, two[i])) continue;
        push(x, T_OP, (struct jstr){x->p, 2})->op = JOP(two[i][0], two[i][1]);
        skip(x, 2);
        return;
    }
    if (!strchr("+-/*%~[](){}<>=.:|,", *x->p) || !*x->p) {
        size_t bytes;
        jstr_next(x->p, x->end, &bytes);
        jinja_fail(x->s, "found '%.*s', expected an expression", (int)bytes, x->p);
    }
    push(x, T_OP, (struct jstr){x->p, 1})->op = (uint8_t)*x->p;
    skip(x, 1);
}

/* The inside of {{ }} or {% %}, and its end. */
static void lex_tag(struct lexer *x, bool block) {
    const char *close = block ? "%}" : "}}";
    size_t open = 0; /* brackets: within them }} is no end */
    for (;;) {
        skip(x, space_length(x->p, x->end));
        if (x->p == x->end) jinja_fail(x->s, "found the end of the template, expected %s", close);
        const char sign = *x->p == '-' || (block && *x->p == '+') ? *x->p : 0;
        const char *at = x->p + (sign != 0);
        if (!open && x->end - at >= 2 && !memcmp(at, close, 2)) {
            push(x, block ? T_BLOCK_END : T_VAR_END, (struct jstr){close, 2});
            skip(x, (size_t)(at + 2 - x->p));
            after_tag(x, sign, block);
            return;
        }
        if (*x->p == '\'' || *x->p == '"') {
            lex_string(x);
        } else if (is_digit(*x->p)) {
            lex_number(x);
        } else if (is_name(*x->p)) {
            const char *begin = x->p;
            for (at = begin; at < x->end && is_name(*at); at++) {
            }
            push(x, T_NAME, (struct jstr){begin, (size_t)(at - begin)});
            x->p = at;
        } else {
            open += strchr("([{", *x->p) != NULL && *x->p;
            if (open && strchr(")]}", *x->p) && *x->p) open--;
            lex_operator(x);
        }
    }
}

/* \r\n and \r become \n; one line feed at the very end goes. */
static struct jstr normalise(struct jinja *s, const char *text, size_t n) {
    char *copy = jinja_alloc(s, n + 1);
    size_t length = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n') continue;
        copy[length++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (length && copy[length - 1] == '\n') length--;
    copy[length] = 0;
    return (struct jstr){copy, length};
}

struct jtoken *jinja_lex(struct jinja *s, const char *text, size_t n) {
    const struct jstr source = normalise(s, text, n);
    struct lexer x = {.s = s, .p = source.p, .end = source.p + source.n, .line_start = true};
    s->line = 1;
    while (x.p < x.end) {
        const char *begin = x.p;
        const bool line_start = x.line_start;
        while (x.p < x.end && !looking_at(&x, "{{") && !looking_at(&x, "{%") && !looking_at(&x, "{#")) skip(&x, 1);
        const struct jstr data = {begin, (size_t)(x.p - begin)};
        if (x.p == x.end) {
            push_data(&x, data, 0, false, line_start);
            break;
        }
        const char kind = x.p[1];
        char before, after;
        size_t length;
        if (at_word_tag(&x, x.p, "raw", &before, &after, &length)) {
            push_data(&x, data, before, true, line_start);
            skip(&x, length);
            lex_raw(&x, after);
            continue;
        }
        const struct jstr open = {x.p, 2};
        const uint32_t line = s->line;
        skip(&x, 2);
        push_data(&x, data, take_sign(&x, true), kind != '{', line_start);
        if (kind == '#') {
            lex_comment(&x);
        } else {
            push(&x, kind == '{' ? T_VAR_BEGIN : T_BLOCK_BEGIN, open)->line = line;
            lex_tag(&x, kind == '%');
        }
    }
    push(&x, T_END, JSTR("the end of the template"));
    return x.tokens;
}
