/*
 * literal.c - values as models write them, read a byte at a time: JSON, strictly, and other notations that are made JSON on the way.
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
        case '"': case '\\': escape[1] = (char)c; break;
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

enum { J_VALUE, J_FIRST_ITEM, J_FIRST_KEY, J_KEY, J_COLON, J_NEXT, J_STRING, J_ESCAPE, J_HEX, J_MINUS, J_ZERO, J_DIGITS, J_POINT, J_FRACTION,
       J_E, J_E_SIGN, J_EXPONENT, J_LITERAL };

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
    case '"': r->state = J_STRING; r->key = false; return SH_READ_MORE;
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
    case J_POINT:
        r->state = J_FRACTION;
        return is_digit(c) ? SH_READ_MORE : SH_READ_BAD;
    case J_FRACTION:
        if (is_digit(c)) return SH_READ_MORE;
        if (c != 'e' && c != 'E') return after_number(r, c);
        r->state = J_E;
        return SH_READ_MORE;
    case J_E:
        r->state = is_digit(c) ? J_EXPONENT : J_E_SIGN;
        return is_digit(c) || c == '+' || c == '-' ? SH_READ_MORE : SH_READ_BAD;
    case J_E_SIGN:
        r->state = J_EXPONENT;
        return is_digit(c) ? SH_READ_MORE : SH_READ_BAD;
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
