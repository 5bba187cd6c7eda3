/*
 * answer_call.c - calls in JSON and behind names: their keys, arguments, sections and ends.
 */
#include "compute/chat/reader.h"

#include <stdlib.h>

/* What a backslash and this stand for in JSON; '\0': nothing. */
static char unescaped(char c) {
    switch (c) {
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case '"':
    case '\\':
    case '/': return c;
    default: return '\0';
    }
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The inside of a JSON string that the reader accepted, decoded. */
static void decode_string(struct sh_buffer *b, const char *text, size_t length) {
    b->length = 0;
    uint32_t high = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] != '\\') {
            sh_buffer_add(b, text + i, 1);
            continue;
        }
        const char c = text[++i];
        if (c != 'u') {
            const char plain = unescaped(c);
            sh_buffer_add(b, &plain, 1);
            continue;
        }
        uint32_t code = 0;
        for (int k = 0; k < 4; k++) code = code << 4 | (uint32_t)hex_digit(text[++i]);
        if (high != 0 && code >= 0xdc00 && code < 0xe000) {
            code = 0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00);
            b->length -= 3; /* U+FFFD, which stood for the first half alone */
        }
        high = code >= 0xd800 && code < 0xdc00 ? code : 0;
        sh_buffer_add_code_point(b, code >= 0xd800 && code < 0xe000 ? 0xfffd : code);
        if (high != 0 && !(i + 2 < length && text[i + 1] == '\\' && text[i + 2] == 'u')) high = 0;
    }
}

/* On to the end of the JSON value that the reader is in. */
static enum step read_value(struct sh_answer *a) {
    while (a->at < a->in.length) {
        const enum sh_read r = sh_json_step(&a->json, a->in.text[a->at]);
        if (r == SH_READ_BAD) return BAD;
        if (r != SH_READ_BEFORE) a->at++;
        if (r != SH_READ_MORE) return GO;
    }
    return MORE;
}

static enum step read_arguments(struct sh_answer *a) {
    size_t plain = a->at;
    enum step step = MORE;
    while (a->at < a->in.length && step == MORE) {
        const char c = a->in.text[a->at];
        const bool bare = sh_json_in_string(&a->json) && (unsigned char)c < 0x20;
        const enum sh_read r = sh_json_step(&a->json, c);
        if (r == SH_READ_BAD) {
            step = BAD;
            break;
        }
        if (bare) { /* a control character that should have been escaped */
            sh_reader_add_arguments(a, a->in.text + plain, a->at - plain);
            sh_reader_add_escaped(a, &c, 1);
            plain = a->at + 1;
        }
        a->at++;
        if (r == SH_READ_DONE) step = GO;
    }
    sh_reader_add_arguments(a, a->in.text + plain, a->at - plain);
    return step;
}

/* A byte of the text that a JSON string holds, which is JSON itself. */
static bool inner_byte(struct sh_answer *a, char c) {
    if (a->inner_done) return sh_reader_is_space(c);
    if (!a->arguments) {
        if (sh_reader_is_space(c)) return true;
        if (c != '{') return false;
        a->arguments = true;
    }
    const bool bare = sh_json_in_string(&a->json) && (unsigned char)c < 0x20;
    const enum sh_read r = sh_json_step(&a->json, c);
    if (r == SH_READ_BAD) return false;
    if (bare) sh_reader_add_escaped(a, &c, 1);
    else sh_reader_add_arguments(a, &c, 1);
    a->inner_done = r == SH_READ_DONE;
    return true;
}

static bool inner_code_point(struct sh_answer *a, uint32_t code) {
    a->scratch.length = 0;
    sh_buffer_add_code_point(&a->scratch, code);
    if (a->scratch.failed) return false;
    char bytes[4]; /* inner_byte uses the scratch text, too */
    const size_t n = a->scratch.length;
    memcpy(bytes, a->scratch.text, n);
    for (size_t i = 0; i < n; i++)
        if (!inner_byte(a, bytes[i])) return false;
    return true;
}

static enum step read_quoted(struct sh_answer *a) {
    for (; a->at < a->in.length; a->at++) {
        const char c = a->in.text[a->at];
        if (a->high != 0 && a->escape == 0 && c != '\\') return BAD; /* half a pair */
        if (a->escape == 0) {
            if (c == '"') {
                a->at++;
                return a->arguments && !a->inner_done ? BAD : GO;
            }
            if (c == '\\') a->escape = 1;
            else if (!inner_byte(a, c)) return BAD;
        } else if (a->escape == 1) {
            if (a->high != 0 && c != 'u') return BAD;
            a->escape = 0;
            if (c == 'u') {
                a->escape = 5;
                a->code_point = 0;
            } else {
                if (unescaped(c) == '\0' || !inner_byte(a, unescaped(c))) return BAD;
            }
        } else {
            const int digit = hex_digit(c);
            if (digit < 0) return BAD;
            a->code_point = a->code_point << 4 | (uint32_t)digit;
            if (--a->escape > 1) continue;
            a->escape = 0;
            const uint32_t code = a->code_point;
            if (a->high != 0) {
                if (code < 0xdc00 || code > 0xdfff) return BAD;
                const uint32_t whole = 0x10000 + ((a->high - 0xd800) << 10) + (code - 0xdc00);
                a->high = 0;
                if (!inner_code_point(a, whole)) return BAD;
            } else if (code >= 0xd800 && code < 0xdc00) {
                a->high = code;
            } else if ((code >= 0xdc00 && code < 0xe000) || !inner_code_point(a, code)) {
                return BAD;
            }
        }
    }
    return MORE;
}

/* ---- calls ---- */

static bool is_text(const struct sh_answer *a, size_t from, size_t to, const char *text) {
    return text != NULL && to - from == strlen(text) && memcmp(a->in.text + from, text, to - from) == 0;
}

/* Past white space and the fences that a form has around a call's JSON. False: more text is needed. */
static bool skip_to_value(struct sh_answer *a) {
    static const char *const fences[] = {"```json", "```python", "```"};
    for (;;) {
        enum match m = NO;
        if (!sh_reader_skip_space(a)) return false;
        for (size_t i = 0; (a->plan->calls->flags & SH_FORM_FENCE) && i < SH_COUNT(fences) && m == NO; i++)
            m = sh_reader_take(a, fences[i]);
        if (m != YES) return m == NO;
    }
}

static enum step step_body(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!skip_to_value(a)) return MORE;
    const char c = a->in.text[a->at];
    if (form->shape == SH_CALL_PYTHON && c == '[') {
        sh_reader_begin_call(a);
        a->in_json = false;
        a->in_array = true;
        a->at++;
        a->state = PYTHON_NEXT;
        return GO;
    }
    if (c == '{' || c == '[') {
        if (form->name_key == NULL && form->shape != SH_CALL_KEYED) return BAD;
        a->in_json = true;
        a->in_array = c == '[';
        a->at++;
        a->state = a->in_array ? ITEM : KEY;
        sh_reader_begin_call(a);
        return GO;
    }
    if (form->shape == SH_CALL_JSON || form->shape == SH_CALL_KEYED) return BAD;
    if (form->name_open != NULL) {
        const enum match m = sh_reader_take(a, form->name_open);
        if (m != YES) return m == NO ? BAD : MORE;
    }
    sh_reader_begin_call(a);
    a->in_json = a->in_array = false;
    a->mark = a->at;
    a->state = form->shape == SH_CALL_PYTHON || form->shape == SH_CALL_BRACED ? WORD : NAME;
    return GO;
}

static enum step step_item(struct sh_answer *a) {
    if (!sh_reader_skip_space(a)) return MORE;
    const char c = a->in.text[a->at];
    if (a->state == ITEM_NEXT) {
        if (c != ',' && c != ']') return BAD;
        if (c == ',') {
            a->raw = true;
            a->keep = a->at;
        }
        a->at++;
        a->state = c == ',' ? ITEM : CALL_END;
        return GO;
    }
    if (c != '{') return BAD;
    a->at++;
    a->state = KEY;
    sh_reader_begin_call(a);
    return GO;
}

static enum step object_ended(struct sh_answer *a) {
    if (a->nested) {
        a->nested = false;
        a->state = NEXT;
        return GO;
    }
    if (!a->named) return BAD;
    sh_reader_end_call(a);
    a->state = a->in_array ? ITEM_NEXT : CALL_END;
    return GO;
}

static enum step step_key(struct sh_answer *a) {
    if (!sh_reader_skip_space(a)) return MORE;
    const char c = a->in.text[a->at];
    if (c != '"' && c != '}') return BAD;
    a->mark = a->at;
    sh_json_begin(&a->json);
    if (c == '"') {
        a->state = KEY_TEXT;
        return GO;
    }
    a->at++;
    return object_ended(a);
}

static enum step step_key_text(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const enum step step = read_value(a);
    if (step != GO) return step;
    const size_t from = a->mark + 1, to = a->at - 1;
    a->state = COLON;
    if (form->shape == SH_CALL_KEYED) {
        a->key = KEY_ARGUMENTS;
        if (a->named) return BAD;
        decode_string(&a->scratch, a->in.text + from, to - from);
        return a->scratch.length > 0 && sh_reader_set_name(a, a->scratch.text, a->scratch.length) ? GO : BAD;
    }
    if (is_text(a, from, to, form->name_key)) a->key = KEY_NAME;
    else if (is_text(a, from, to, form->id_key)) a->key = KEY_ID;
    else if (is_text(a, from, to, "arguments") || is_text(a, from, to, "parameters")) a->key = KEY_ARGUMENTS;
    else if (is_text(a, from, to, "function") && !a->named) a->key = KEY_FUNCTION;
    else if ((form->flags & SH_FORM_BARE) && !is_text(a, from, to, "type") && !is_text(a, from, to, "id")) return BAD;
    else a->key = KEY_OTHER;
    return GO;
}

/* Arguments that are a JSON string, in which the object stands. */
void sh_reader_begin_quoted(struct sh_answer *a) {
    sh_json_begin(&a->json);
    a->escape = 0;
    a->high = 0;
    a->inner_done = false;
    a->at++;
    a->state = QUOTED;
}

static enum step step_value(struct sh_answer *a) {
    if (!sh_reader_skip_space(a)) return MORE;
    const char c = a->in.text[a->at];
    sh_json_begin(&a->json);
    a->mark = a->at;
    switch (a->key) {
    case KEY_FUNCTION:
        if (c == '{') {
            if (a->nested) return BAD;
            a->nested = true;
            a->at++;
            a->state = KEY;
            return GO;
        }
        /* fallthrough */
    case KEY_NAME:
        if (c != '"' || a->named) return BAD;
        a->state = NAME_VALUE;
        return GO;
    case KEY_ID: a->state = ID_VALUE; return GO;
    case KEY_OTHER: a->state = OTHER_VALUE; return GO;
    case KEY_ARGUMENTS: break;
    }
    if (a->arguments) return BAD;
    if (c != '{' && c != '"' && c != 'n') return BAD;
    if (a->named) sh_reader_hand_out(a);
    if (c == '{') {
        a->arguments = true;
        a->state = ARGUMENTS;
    } else if (c == '"') {
        sh_reader_begin_quoted(a);
    } else {
        a->state = OTHER_VALUE; /* null: none */
    }
    return GO;
}

static enum step step_name_value(struct sh_answer *a) {
    const enum step step = read_value(a);
    if (step != GO) return step;
    decode_string(&a->scratch, a->in.text + a->mark + 1, a->at - a->mark - 2);
    if (a->scratch.length == 0 || !sh_reader_set_name(a, a->scratch.text, a->scratch.length)) return BAD;
    if (a->arguments || !(a->plan->calls->flags & SH_FORM_BARE)) sh_reader_hand_out(a);
    a->state = NEXT;
    return GO;
}

static enum step step_id_value(struct sh_answer *a) {
    const enum step step = read_value(a);
    if (step != GO) return step;
    const char *text = a->in.text + a->mark;
    const size_t length = a->at - a->mark;
    if (*text == '"') decode_string(&a->id, text + 1, length - 2);
    else sh_buffer_add(&a->id, text, length);
    if (memchr(a->id.text == NULL ? "" : a->id.text, '\0', a->id.length) != NULL) a->id.length = 0;
    a->state = NEXT;
    return GO;
}

static enum step step_next(struct sh_answer *a) {
    if (!sh_reader_skip_space(a)) return MORE;
    const char c = a->in.text[a->at];
    if (c != ',' && c != '}') return BAD;
    a->at++;
    a->state = KEY;
    return c == ',' ? GO : object_ended(a);
}

/* A name up to its marker. */
static enum step step_name(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_NAME) return BAD;
        const enum match id = form->flags & SH_FORM_CALL_ID ? sh_reader_match_at(a, a->at, "[CALL_ID]") : NO;
        const char c = a->in.text[a->at];
        const enum match m = form->name_close != NULL            ? sh_reader_match_at(a, a->at, form->name_close)
                             : sh_reader_is_space(c) || c == '<' ? YES
                                                                 : NO;
        if (m == NO && id == NO) continue;
        if (m != YES && id != YES) return MORE;
        const char *text = a->in.text + a->mark;
        size_t length = a->at - a->mark;
        if (form->flags & SH_FORM_KIMI) {
            while (length > 0 && sh_reader_is_space(*text)) text++, length--;
            while (length > 0 && sh_reader_is_space(text[length - 1])) length--;
            sh_buffer_add(&a->id, text, length);
            const char *colon = memrchr(text, ':', length);
            if (colon != NULL) length = (size_t)(colon - text);
            if (length > 10 && memcmp(text, "functions.", 10) == 0) text += 10, length -= 10;
        }
        if ((form->flags & SH_FORM_RECIPIENT) && length == 3 && memcmp(text, "all", 3) == 0) {
            a->at += strlen(form->name_close);
            a->raw = false;
            a->keep = a->at;
            a->state = CONTENT;
            a->fresh = a->line_start = true;
            a->drop_space = false;
            return GO;
        }
        if (!sh_reader_set_name(a, text, length)) return BAD;
        if (id == YES) a->at += strlen("[CALL_ID]");
        else if (form->name_close != NULL) a->at += strlen(form->name_close);
        a->mark = a->at;
        a->state = id == YES ? ID : form->shape == SH_CALL_TAGGED ? PARAM : NAMED_BODY;
        if (id != YES) sh_reader_hand_out(a);
        return GO;
    }
    return MORE;
}

static enum step step_id(struct sh_answer *a) {
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_NAME) return BAD;
        const enum match m = sh_reader_match_at(a, a->at, a->plan->calls->name_close);
        if (m == PERHAPS) return MORE;
        if (m == NO) continue;
        sh_buffer_add(&a->id, a->in.text + a->mark, a->at - a->mark);
        a->at += strlen(a->plan->calls->name_close);
        a->state = NAMED_BODY;
        sh_reader_hand_out(a);
        return GO;
    }
    return MORE;
}

/* ---- code ---- */

/* Arguments that are code, not JSON: they become the one string parameter of the function. */
void sh_reader_begin_code(struct sh_answer *a) {
    const struct sh_plan_tool *tool = sh_plan_find_tool(a->plan, a->name.text, a->name.length);
    const char *param = tool != NULL && tool->n_params == 1 ? tool->params[0].name : "code";
    a->arguments = true;
    a->state = CODE;
    sh_reader_add_arguments(a, "{\"", 2);
    sh_reader_add_escaped(a, param, strlen(param));
    sh_reader_add_arguments(a, "\": \"", 4);
}

/* Up to the next recipient, the end of the message, or the end of the answer. */
static enum step step_code(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const bool harmony = form->shape == SH_CALL_HARMONY;
    size_t plain = a->at;
    enum match m = NO;
    for (; a->at < a->in.length; a->at++) {
        if (harmony) m = sh_reader_match_message_end(a, a->at);
        else if (form->flags & SH_FORM_RECIPIENT) m = sh_reader_match_at(a, a->at, form->call_open);
        if (m != NO) break;
    }
    sh_reader_add_escaped(a, a->in.text + plain, a->at - plain);
    if (m != YES && !(a->last && a->at == a->in.length)) return MORE;
    sh_reader_add_arguments(a, "\"}", 2);
    sh_reader_end_call(a);
    a->state = harmony ? BETWEEN : CALL_END;
    return GO;
}

static enum step step_named_body(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!skip_to_value(a)) return MORE;
    const char c = a->in.text[a->at];
    if (c != '{' && (form->flags & SH_FORM_RECIPIENT)) {
        sh_reader_begin_code(a);
        return GO;
    }
    if (c == '"') {
        sh_reader_begin_quoted(a);
        return GO;
    }
    if (c != '{') return BAD;
    sh_json_begin(&a->json);
    a->arguments = true;
    a->state = ARGUMENTS;
    return GO;
}

/* Arguments have ended. */
static enum step arguments_ended(struct sh_answer *a) {
    if (a->in_json) {
        a->state = NEXT;
        return GO;
    }
    sh_reader_end_call(a);
    a->state = a->plan->calls->shape == SH_CALL_HARMONY ? BETWEEN : CALL_END;
    return GO;
}

static enum step step_call_end(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!sh_reader_skip_space(a)) return MORE;
    a->keep = a->at;
    if (form->flags & SH_FORM_FENCE) {
        const enum match m = sh_reader_take(a, "```");
        if (m == PERHAPS) return MORE;
        if (m == YES) return GO;
    }
    if (a->in_json && !(form->flags & SH_FORM_BARE) && a->in.text[a->at] == '{') {
        a->raw = true;
        a->state = BODY;
        return GO;
    }
    if ((form->flags & SH_FORM_BARE) && a->in.text[a->at] == ';') {
        a->raw = true;
        a->at++;
        a->state = BODY;
        return GO;
    }
    if (form->call_close != NULL) {
        const enum match m = sh_reader_take(a, form->call_close);
        if (m == PERHAPS) return MORE;
    }
    sh_reader_leave_to_content(a);
    return GO;
}

static enum step step_section(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!a->raw) a->keep = a->at;
    if (!sh_reader_skip_space(a)) return MORE;
    const char *open = form->call_open != NULL ? form->call_open : form->name_open;
    const enum match close = !a->raw && form->close != NULL ? sh_reader_match_at(a, a->at, form->close) : NO,
                     call = sh_reader_match_at(a, a->at, open);
    if (close == YES) {
        a->at += strlen(form->close);
        a->in_section = false;
        sh_reader_leave_to_content(a);
        return GO;
    }
    if (call == YES) {
        if (!a->raw) a->keep = a->at;
        a->raw = true;
        if (form->call_open != NULL) a->at += strlen(open);
        a->state = BODY;
        return GO;
    }
    return close == PERHAPS || call == PERHAPS ? MORE : BAD;
}

enum step sh_reader_step_call(struct sh_answer *a) {
    enum step s;
    switch (a->state) {
    case SECTION: return step_section(a);
    case BODY: return step_body(a);
    case ITEM:
    case ITEM_NEXT: return step_item(a);
    case KEY: return step_key(a);
    case KEY_TEXT: return step_key_text(a);
    case COLON:
        if (!sh_reader_skip_space(a)) return MORE;
        if (a->in.text[a->at] != ':') return BAD;
        a->at++;
        a->state = VALUE;
        return GO;
    case VALUE: return step_value(a);
    case NAME_VALUE: return step_name_value(a);
    case ID_VALUE: return step_id_value(a);
    case OTHER_VALUE:
        s = read_value(a);
        if (s == GO) a->state = NEXT;
        return s;
    case NEXT: return step_next(a);
    case NAME: return step_name(a);
    case ID: return step_id(a);
    case NAMED_BODY: return step_named_body(a);
    case ARGUMENTS: s = read_arguments(a); return s == GO ? arguments_ended(a) : s;
    case QUOTED: s = read_quoted(a); return s == GO ? arguments_ended(a) : s;
    case CODE: return step_code(a);
    case CALL_END: return step_call_end(a);
    default: return sh_reader_step_notation(a);
    }
}
