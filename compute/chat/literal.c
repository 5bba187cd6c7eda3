/*
 * literal.c - values as models write them, read a byte at a time: JSON, strictly, and other notations that are made JSON on
 * the way.
 */
#include "compute/chat/forms.h"

#include <stdlib.h>

/* ---- growing text ---- */

void sh_buffer_add(struct sh_buffer *b, const char *text, size_t length) {
    if (b->failed) return;
    if (b->capacity - b->length <= length) { /* room for a NUL, always */
        size_t capacity = b->capacity == 0 ? 256 : b->capacity;
        while (capacity - b->length <= length) {
            if (capacity > SIZE_MAX / 4) {
                b->failed = true;
                return;
            }
            capacity *= 2;
        }
        char *grown = realloc(b->text, capacity);
        if (grown == NULL) {
            b->failed = true;
            return;
        }
        b->text = grown;
        b->capacity = capacity;
    }
    if (length > 0) memcpy(b->text + b->length, text, length);
    b->length += length;
    b->text[b->length] = '\0';
}

void sh_buffer_add_string(struct sh_buffer *b, const char *text) { sh_buffer_add(b, text, strlen(text)); }

void sh_buffer_add_escaped(struct sh_buffer *b, const char *text, size_t length) {
    size_t plain = 0;
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        sh_buffer_add(b, text + plain, i - plain);
        plain = i + 1;
        static const char digits[] = "0123456789abcdef";
        char escape[6] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};
        size_t n = 2;
        switch (c) {
        case '"':
        case '\\': escape[1] = (char)c; break;
        case '\n': escape[1] = 'n'; break;
        case '\t': escape[1] = 't'; break;
        case '\r': escape[1] = 'r'; break;
        case '\b': escape[1] = 'b'; break;
        case '\f': escape[1] = 'f'; break;
        default: n = 6;
        }
        sh_buffer_add(b, escape, n);
    }
    sh_buffer_add(b, text + plain, length - plain);
}

void sh_buffer_add_code_point(struct sh_buffer *b, uint32_t c) {
    char bytes[4];
    size_t n = 0;
    if (c < 0x80) {
        bytes[n++] = (char)c;
    } else if (c < 0x800) {
        bytes[n++] = (char)(0xc0 | c >> 6);
        bytes[n++] = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        bytes[n++] = (char)(0xe0 | c >> 12);
        bytes[n++] = (char)(0x80 | (c >> 6 & 63));
        bytes[n++] = (char)(0x80 | (c & 63));
    } else {
        bytes[n++] = (char)(0xf0 | c >> 18);
        bytes[n++] = (char)(0x80 | (c >> 12 & 63));
        bytes[n++] = (char)(0x80 | (c >> 6 & 63));
        bytes[n++] = (char)(0x80 | (c & 63));
    }
    sh_buffer_add(b, bytes, n);
}

/* ---- JSON ---- */

enum {
    J_VALUE,
    J_FIRST_ITEM,
    J_FIRST_KEY,
    J_KEY,
    J_COLON,
    J_NEXT,
    J_STRING,
    J_ESCAPE,
    J_HEX,
    J_MINUS,
    J_ZERO,
    J_DIGITS,
    J_POINT,
    J_FRACTION,
    J_E,
    J_E_SIGN,
    J_EXPONENT,
    J_LITERAL
};

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

void sh_json_begin(struct sh_json_reader *r) { *r = (struct sh_json_reader){.state = J_VALUE}; }

bool sh_json_in_string(const struct sh_json_reader *r) { return r->state == J_STRING; }

static bool in_object(const struct sh_json_reader *r) { return r->objects[(r->depth - 1) / 8] >> ((r->depth - 1) % 8) & 1; }

/* A value has ended with the byte just read. */
static enum sh_read value_ended(struct sh_json_reader *r) {
    r->state = J_NEXT;
    return r->depth == 0 ? SH_READ_DONE : SH_READ_MORE;
}

static enum sh_read open_bracket(struct sh_json_reader *r, bool object) {
    if (r->depth == SH_VALUE_DEPTH) return SH_READ_BAD;
    const uint8_t bit = (uint8_t)(1u << (r->depth % 8));
    uint8_t *byte = &r->objects[r->depth / 8];
    *byte = (uint8_t)(object ? *byte | bit : *byte & ~bit);
    r->depth++;
    r->state = object ? J_FIRST_KEY : J_FIRST_ITEM;
    return SH_READ_MORE;
}

static enum sh_read close_bracket(struct sh_json_reader *r) {
    r->depth--;
    return value_ended(r);
}

static enum sh_read begin_value(struct sh_json_reader *r, char c) {
    switch (c) {
    case '{': return open_bracket(r, true);
    case '[': return open_bracket(r, false);
    case '"':
        r->state = J_STRING;
        r->key = false;
        return SH_READ_MORE;
    case '-': r->state = J_MINUS; return SH_READ_MORE;
    case '0': r->state = J_ZERO; return SH_READ_MORE;
    case 't': r->literal = "true"; break;
    case 'f': r->literal = "false"; break;
    case 'n': r->literal = "null"; break;
    default:
        if (!is_digit(c)) return SH_READ_BAD;
        r->state = J_DIGITS;
        return SH_READ_MORE;
    }
    r->index = 1;
    r->state = J_LITERAL;
    return SH_READ_MORE;
}

/* The byte behind a number: the value is over before it. */
static enum sh_read after_number(struct sh_json_reader *r, char c) {
    r->state = J_NEXT;
    return r->depth == 0 ? SH_READ_BEFORE : sh_json_step(r, c);
}

enum sh_read sh_json_step(struct sh_json_reader *r, char c) {
    switch (r->state) {
    case J_FIRST_ITEM:
        if (c == ']') return close_bracket(r);
        /* fallthrough */
    case J_VALUE: return is_space(c) ? SH_READ_MORE : begin_value(r, c);
    case J_FIRST_KEY:
        if (c == '}') return close_bracket(r);
        /* fallthrough */
    case J_KEY:
        if (is_space(c)) return SH_READ_MORE;
        if (c != '"') return SH_READ_BAD;
        r->state = J_STRING;
        r->key = true;
        return SH_READ_MORE;
    case J_COLON:
        if (is_space(c)) return SH_READ_MORE;
        r->state = J_VALUE;
        return c == ':' ? SH_READ_MORE : SH_READ_BAD;
    case J_NEXT:
        if (is_space(c)) return SH_READ_MORE;
        if (c == ',') {
            r->state = in_object(r) ? J_KEY : J_VALUE;
            return SH_READ_MORE;
        }
        return c == (in_object(r) ? '}' : ']') ? close_bracket(r) : SH_READ_BAD;
    case J_STRING:
        if (c == '\\') r->state = J_ESCAPE;
        if (c != '"') return SH_READ_MORE;
        if (!r->key) return value_ended(r);
        r->state = J_COLON;
        return SH_READ_MORE;
    case J_ESCAPE:
        if (c == 'u') {
            r->index = 0;
            r->state = J_HEX;
            return SH_READ_MORE;
        }
        r->state = J_STRING;
        return c != '\0' && strchr("\"\\/bfnrt", c) != NULL ? SH_READ_MORE : SH_READ_BAD;
    case J_HEX:
        if (!is_hex(c)) return SH_READ_BAD;
        if (++r->index == 4) r->state = J_STRING;
        return SH_READ_MORE;
    case J_MINUS:
        if (!is_digit(c)) return SH_READ_BAD;
        r->state = c == '0' ? J_ZERO : J_DIGITS;
        return SH_READ_MORE;
    case J_DIGITS:
        if (is_digit(c)) return SH_READ_MORE;
        /* fallthrough */
    case J_ZERO:
        if (c != '.' && c != 'e' && c != 'E') return after_number(r, c);
        r->state = c == '.' ? J_POINT : J_E;
        return SH_READ_MORE;
    case J_POINT: r->state = J_FRACTION; return is_digit(c) ? SH_READ_MORE : SH_READ_BAD;
    case J_FRACTION:
        if (is_digit(c)) return SH_READ_MORE;
        if (c != 'e' && c != 'E') return after_number(r, c);
        r->state = J_E;
        return SH_READ_MORE;
    case J_E:
        r->state = is_digit(c) ? J_EXPONENT : J_E_SIGN;
        return is_digit(c) || c == '+' || c == '-' ? SH_READ_MORE : SH_READ_BAD;
    case J_E_SIGN: r->state = J_EXPONENT; return is_digit(c) ? SH_READ_MORE : SH_READ_BAD;
    case J_EXPONENT: return is_digit(c) ? SH_READ_MORE : after_number(r, c);
    default: /* J_LITERAL */
        if (c != r->literal[r->index]) return SH_READ_BAD;
        return r->literal[++r->index] == '\0' ? value_ended(r) : SH_READ_MORE;
    }
}

bool sh_json_is_value(const char *text, size_t length) {
    struct sh_json_reader r;
    sh_json_begin(&r);
    enum sh_read read = SH_READ_MORE;
    for (size_t i = 0; i < length; i++) {
        if (read == SH_READ_DONE) {
            if (!is_space(text[i])) return false;
            continue;
        }
        if (sh_json_in_string(&r) && (unsigned char)text[i] < 0x20) return false;
        read = sh_json_step(&r, text[i]);
        if (read == SH_READ_BAD) return false;
        if (read == SH_READ_BEFORE) {
            if (!is_space(text[i])) return false;
            read = SH_READ_DONE;
        }
    }
    return read == SH_READ_DONE || sh_json_step(&r, ' ') == SH_READ_BEFORE;
}

/* ---- other notations ---- */

enum {
    L_VALUE,
    L_FIRST,
    L_KEY,
    L_BARE_KEY,
    L_SEPARATOR,
    L_NEXT,
    L_OPENING,
    L_QUOTE,
    L_TWO_QUOTES,
    L_STRING,
    L_CLOSING,
    L_ESCAPE,
    L_DIGITS,
    L_WORD
};

void sh_literal_begin(struct sh_literal_reader *r, enum sh_notation notation, const char *quote, bool arguments,
                      struct sh_buffer *out) {
    memset(r, 0, sizeof *r);
    r->notation = notation;
    r->quote = quote;
    r->out = out;
    r->state = L_VALUE;
    if (!arguments) return;
    r->closers[r->depth++] = 'k';
    r->state = L_FIRST;
    sh_buffer_add_string(out, "{");
}

static bool in_map(const struct sh_literal_reader *r) {
    return r->depth > 0 && (r->closers[r->depth - 1] == '}' || r->closers[r->depth - 1] == 'k');
}

static void before_element(struct sh_literal_reader *r) {
    if (r->comma) sh_buffer_add_string(r->out, ", ");
    r->comma = false;
}

static enum sh_read literal_ended(struct sh_literal_reader *r) {
    r->state = L_NEXT;
    r->comma = true;
    return r->depth == 0 ? SH_READ_DONE : SH_READ_MORE;
}

static enum sh_read literal_close(struct sh_literal_reader *r) {
    const uint8_t closer = r->closers[--r->depth];
    sh_buffer_add_string(r->out, closer == '}' || closer == 'k' ? "}" : "]");
    return literal_ended(r);
}

static bool closes(const struct sh_literal_reader *r, char c) {
    const uint8_t closer = r->closers[r->depth - 1];
    return c == (closer == 'k' ? ')' : (char)closer);
}

static enum sh_read literal_open(struct sh_literal_reader *r, char c) {
    if (r->depth == SH_VALUE_DEPTH) return SH_READ_BAD;
    r->closers[r->depth++] = c == '{' ? '}' : c == '[' ? ']' : ')';
    sh_buffer_add_string(r->out, c == '{' ? "{" : "[");
    r->state = L_FIRST;
    r->comma = false;
    return SH_READ_MORE;
}

static enum sh_read string_ended(struct sh_literal_reader *r) {
    if (r->high != 0) sh_buffer_add_code_point(r->out, 0xfffd);
    r->high = 0;
    sh_buffer_add_string(r->out, "\"");
    if (!r->key) return literal_ended(r);
    r->state = L_SEPARATOR;
    return SH_READ_MORE;
}

static void begin_string(struct sh_literal_reader *r, bool key) {
    before_element(r);
    r->key = key;
    r->triple = false;
    r->index = 0;
    sh_buffer_add_string(r->out, "\"");
}

static void begin_word(struct sh_literal_reader *r, char c, uint8_t state) {
    r->word[0] = c;
    r->word_length = 1;
    r->state = state;
}

/* False: too long. That never happens within a code point. */
static bool add_to_word(struct sh_literal_reader *r, char c) {
    if (r->word_length == sizeof r->word || (r->word_length >= sizeof r->word - 4 && (c & 0xc0) != 0x80)) return false;
    r->word[r->word_length++] = c;
    return true;
}

/* A byte with which a key or a value begins. */
static enum sh_read begin_literal(struct sh_literal_reader *r, char c, bool key) {
    if (r->notation == SH_NOTATION_BRACED && c == r->quote[0]) {
        begin_string(r, key);
        r->marked = true;
        r->index = 1;
        r->state = r->quote[1] == '\0' ? L_STRING : L_OPENING;
        return SH_READ_MORE;
    }
    if ((c == '"' || (c == '\'' && r->notation == SH_NOTATION_PYTHON)) &&
        (r->depth == 0 || r->closers[r->depth - 1] != 'k' || !key)) {
        begin_string(r, key);
        r->marked = false;
        r->quote_byte = c;
        r->state = r->notation == SH_NOTATION_PYTHON ? L_QUOTE : L_STRING;
        return SH_READ_MORE;
    }
    if (key) {
        if (strchr(",:=(){}[]\"'", c) != NULL || (r->notation == SH_NOTATION_PYTHON && r->closers[r->depth - 1] == '}'))
            return SH_READ_BAD;
        begin_word(r, c, L_BARE_KEY);
        return SH_READ_MORE;
    }
    if (c == '{' || c == '[' || (c == '(' && r->notation == SH_NOTATION_PYTHON)) {
        before_element(r);
        return literal_open(r, c);
    }
    if (strchr(",:=(){}[]\"'", c) != NULL) return SH_READ_BAD;
    begin_word(r, c, L_WORD);
    return SH_READ_MORE;
}

/* A word that is a value. Of bare words that mean nothing else, those in braces are strings. */
static bool word_ended(struct sh_literal_reader *r) {
    static const char *const names[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"}};
    while (r->word_length > 0 && is_space(r->word[r->word_length - 1])) r->word_length--;
    before_element(r);
    for (size_t i = 0; i < SH_COUNT(names); i++) {
        if (strlen(names[i][0]) != r->word_length || memcmp(names[i][0], r->word, r->word_length) != 0) continue;
        sh_buffer_add_string(r->out, names[i][1]);
        return true;
    }
    if (sh_json_is_value(r->word, r->word_length)) {
        sh_buffer_add(r->out, r->word, r->word_length);
        return true;
    }
    if (r->notation != SH_NOTATION_BRACED) return false;
    sh_buffer_add_string(r->out, "\"");
    sh_buffer_add_escaped(r->out, r->word, r->word_length);
    sh_buffer_add_string(r->out, "\"");
    return true;
}

static void add_character(struct sh_literal_reader *r, uint32_t c) {
    if (c >= 0xdc00 && c < 0xe000 && r->high != 0) {
        c = 0x10000 + ((r->high - 0xd800) << 10) + (c - 0xdc00);
        r->high = 0;
    }
    if (r->high != 0) sh_buffer_add_code_point(r->out, 0xfffd);
    r->high = c >= 0xd800 && c < 0xdc00 ? c : 0;
    if (r->high != 0) return;
    if ((c >= 0xd800 && c < 0xe000) || c > 0x10ffff) c = 0xfffd;
    const char byte = (char)c;
    if (c < 0x80) sh_buffer_add_escaped(r->out, &byte, 1);
    else sh_buffer_add_code_point(r->out, c);
}

static void add_byte(struct sh_literal_reader *r, char c) {
    if (r->high != 0) sh_buffer_add_code_point(r->out, 0xfffd);
    r->high = 0;
    sh_buffer_add_escaped(r->out, &c, 1);
}

static enum sh_read string_byte(struct sh_literal_reader *r, char c) {
    if (r->marked) {
        if (c == r->quote[0]) {
            r->index = 1;
            r->state = L_CLOSING;
            return r->quote[1] == '\0' ? string_ended(r) : SH_READ_MORE;
        }
    } else if (c == '\\') {
        r->state = L_ESCAPE;
        return SH_READ_MORE;
    } else if (c == r->quote_byte) {
        if (!r->triple) return string_ended(r);
        r->index = 1;
        r->state = L_CLOSING;
        return SH_READ_MORE;
    }
    add_byte(r, c);
    return SH_READ_MORE;
}

/* Quotes that may or may not be the closing ones. */
static enum sh_read closing_byte(struct sh_literal_reader *r, char c) {
    const bool braced = r->marked;
    if (c == (braced ? r->quote[r->index] : r->quote_byte)) {
        r->index++;
        return (braced ? r->quote[r->index] == '\0' : r->index == 3) ? string_ended(r) : SH_READ_MORE;
    }
    for (uint8_t i = 0; i < r->index; i++) add_byte(r, braced ? r->quote[i] : r->quote_byte);
    r->state = L_STRING;
    return string_byte(r, c); /* a quote's first byte occurs in it once */
}

static enum sh_read escape_byte(struct sh_literal_reader *r, char c) {
    static const char plain[] = "n\nt\tr\rb\bf\fv\va\a\\\\''\"\"//";
    r->state = L_STRING;
    r->code_point = 0;
    r->base = 16;
    switch (c) {
    case 'x': r->digits = 2; break;
    case 'u': r->digits = 4; break;
    case 'U': r->digits = 8; break;
    case '\n': return SH_READ_MORE;
    default:
        if (c >= '0' && c <= '7') {
            r->base = 8;
            r->digits = 2;
            r->code_point = (uint32_t)(c - '0');
            r->state = L_DIGITS;
            return SH_READ_MORE;
        }
        for (size_t i = 0; plain[i] != '\0'; i += 2)
            if (plain[i] == c) {
                add_character(r, (uint32_t)plain[i + 1]);
                return SH_READ_MORE;
            }
        add_byte(r, '\\');
        return string_byte(r, c);
    }
    r->state = L_DIGITS;
    return SH_READ_MORE;
}

static enum sh_read digit_byte(struct sh_literal_reader *r, char c) {
    const bool digit = r->base == 8 ? c >= '0' && c <= '7' : is_hex(c);
    if (digit) {
        const uint32_t value = is_digit(c) ? (uint32_t)(c - '0') : (uint32_t)((c | 32) - 'a' + 10);
        r->code_point = r->code_point * r->base + value;
        if (--r->digits > 0) return SH_READ_MORE;
    } else if (r->base == 16) {
        return SH_READ_BAD;
    }
    r->state = L_STRING;
    add_character(r, r->code_point);
    return digit ? SH_READ_MORE : string_byte(r, c);
}

enum sh_read sh_literal_step(struct sh_literal_reader *r, char c) {
    switch (r->state) {
    case L_FIRST:
        if (is_space(c)) return SH_READ_MORE;
        if (closes(r, c)) return literal_close(r);
        return begin_literal(r, c, in_map(r));
    case L_VALUE: return is_space(c) ? SH_READ_MORE : begin_literal(r, c, false);
    case L_KEY: return is_space(c) ? SH_READ_MORE : closes(r, c) ? literal_close(r) : begin_literal(r, c, true);
    case L_SEPARATOR:
        if (is_space(c)) return SH_READ_MORE;
        r->state = L_VALUE;
        sh_buffer_add_string(r->out, ": ");
        return c == ':' ? SH_READ_MORE : SH_READ_BAD;
    case L_NEXT:
        if (is_space(c)) return SH_READ_MORE;
        if (closes(r, c)) return literal_close(r);
        r->state = in_map(r) ? L_KEY : L_FIRST; /* a comma may end a list */
        return c == ',' ? SH_READ_MORE : SH_READ_BAD;
    case L_OPENING:
        if (c != r->quote[r->index]) return SH_READ_BAD;
        if (r->quote[++r->index] == '\0') r->state = L_STRING;
        return SH_READ_MORE;
    case L_QUOTE:
        r->state = c == r->quote_byte ? L_TWO_QUOTES : L_STRING;
        return c == r->quote_byte ? SH_READ_MORE : string_byte(r, c);
    case L_TWO_QUOTES: {
        if (c == r->quote_byte) {
            r->triple = true;
            r->state = L_STRING;
            return SH_READ_MORE;
        }
        const enum sh_read ended = string_ended(r);
        return ended == SH_READ_DONE ? SH_READ_BEFORE : sh_literal_step(r, c);
    }
    case L_STRING: return string_byte(r, c);
    case L_CLOSING: return closing_byte(r, c);
    case L_ESCAPE: return escape_byte(r, c);
    case L_DIGITS: return digit_byte(r, c);
    case L_BARE_KEY:
        if (c == (r->closers[r->depth - 1] == 'k' ? '=' : ':')) {
            while (r->word_length > 0 && is_space(r->word[r->word_length - 1])) r->word_length--;
            before_element(r);
            sh_buffer_add_string(r->out, "\"");
            sh_buffer_add_escaped(r->out, r->word, r->word_length);
            sh_buffer_add_string(r->out, "\": ");
            r->state = L_VALUE;
            return SH_READ_MORE;
        }
        if (strchr(",:=(){}[]\"'", c) != NULL) return SH_READ_BAD;
        return add_to_word(r, c) ? SH_READ_MORE : SH_READ_BAD;
    default: /* L_WORD */
        if (c != '\0' && strchr(",:=(){}[]\"'", c) == NULL && !(is_space(c) && r->notation == SH_NOTATION_PYTHON))
            return add_to_word(r, c) ? SH_READ_MORE : SH_READ_BAD;
        if (!word_ended(r)) return SH_READ_BAD;
        return literal_ended(r) == SH_READ_DONE ? SH_READ_BEFORE : sh_literal_step(r, c);
    }
}
