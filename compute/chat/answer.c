/*
 * answer.c - an answer's text -> content, reasoning and calls, as it comes.
 *
 * The text that was not yet dealt with is kept; a state says what is being read, and every step either goes on from `at`, or
 * needs more text, or finds that this is no call. Where it stopped is remembered inside of strings, values and markers too,
 * so that every byte is looked at a bounded number of times however the text is cut. While nothing of a call was handed out
 * its text is kept (`raw`): if it is none after all, that text is content.
 */
#include "compute/chat/forms.h"

#include <stdlib.h>

enum { MAX_NAME = 256 }; /* bytes of a function's or a parameter's name */

enum state {
    CONTENT,
    THOUGHT,
    SECTION,   /* between calls of a section */
    BODY,      /* before a call's JSON or name */
    ITEM,      /* of an array of calls: before an object, */
    ITEM_NEXT, /* behind one */
    KEY,       /* of a call's object: before a key, */
    KEY_TEXT,  /* in one, */
    COLON,
    VALUE,        /* before its value, */
    NAME_VALUE,   /* in it: the name, */
    ID_VALUE,     /* the id, */
    OTHER_VALUE,  /* something that does not matter, */
    NEXT,         /* behind it */
    NAME,         /* in a name up to a marker */
    ID,           /* in an id up to a marker */
    NAMED_BODY,   /* before arguments that follow a name */
    ARGUMENTS,    /* in arguments that are a JSON object, */
    QUOTED,       /* or a string that holds one */
    CALL_END,     /* behind a call, before its closing marker */
    PARAM,        /* TAGGED: before a key, */
    PARAM_KEY,    /* in one, */
    PARAM_TYPE,   /* in the attributes behind it, */
    PARAM_OPEN,   /* before the value, */
    PARAM_STRING, /* in a value that is a string, */
    PARAM_VALUE,  /* or may be another */
    WORD,         /* PYTHON, BRACED: in a name up to a bracket */
    CONVERTED,    /* in arguments of another notation */
    PYTHON_NEXT,  /* between calls */
    TAG,          /* behind <|python_tag|> */
    CODE,         /* in arguments that are code */
    HEADER,       /* HARMONY: in a header, */
    MESSAGE,      /* in a message that is content or reasoning, */
    MESSAGE_CALL, /* before arguments, */
    BETWEEN,      /* behind a message */
};

enum step { GO, MORE, BAD };
enum match { YES, NO, PERHAPS };

enum trigger_kind { ON_THOUGHT, ON_STRAY_CLOSE, ON_SECTION, ON_CALL, ON_NAME, ON_BARE, ON_SILENT, ON_TAG };
struct trigger {
    const char *text;
    size_t length;
    enum trigger_kind kind;
};

struct piece_range { /* of `out` */
    size_t text, length, name, id;
    bool has_id;
};

struct sh_answer {
    const struct sh_answer_plan *plan;
    struct trigger triggers[12];
    uint32_t n_triggers;
    uint8_t begins[32]; /* bytes with which a trigger begins */

    struct sh_buffer in;
    size_t keep, at, mark; /* of in: kept from here; read up to here; where the key, the name or the value began */
    bool last;
    enum state state;

    bool drop_space; /* white space that comes next is no content */
    bool fresh;      /* no content since the beginning, the last reasoning or the last call: reasoning may begin here */
    bool line_start;
    bool thought_seen;

    bool raw; /* in[keep, at) is content if this is no call */
    bool in_section, in_json, in_array, nested;
    bool named, called, arguments, muted; /* of this call: name known, handed out, arguments begun; it is not to be handed out */
    enum { KEY_NAME, KEY_ARGUMENTS, KEY_ID, KEY_FUNCTION, KEY_OTHER } key;
    uint32_t n_calls;
    struct sh_json_reader json;
    uint8_t escape; /* QUOTED: 0 plain, 1 behind a backslash, 2..5 hex digits to come + 1 */
    uint32_t code_point, high;
    bool inner_done;
    struct sh_literal_reader literal;
    struct sh_buffer converted; /* what the literal reader has written */
    struct sh_buffer param;     /* the key of a TAGGED argument */
    uint32_t types;             /* what it may be */
    enum sh_answer_kind message;
    struct sh_buffer header;
    struct sh_buffer name, id, held, scratch; /* held: arguments that came before the name */

    struct sh_buffer out;
    struct sh_answer_piece *pieces;
    struct piece_range *ranges;
    uint32_t n_pieces, pieces_capacity, ranges_capacity;
    bool failed;
};

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/* ---- pieces ---- */

static struct sh_answer_piece *new_piece(struct sh_answer *a, enum sh_answer_kind kind) {
    if (!sh_grow((void **)&a->pieces, &a->pieces_capacity, a->n_pieces + 1, sizeof *a->pieces) ||
        !sh_grow((void **)&a->ranges, &a->ranges_capacity, a->n_pieces + 1, sizeof *a->ranges)) {
        a->failed = true;
        return NULL;
    }
    a->ranges[a->n_pieces] = (struct piece_range){.text = a->out.length};
    struct sh_answer_piece *p = &a->pieces[a->n_pieces++];
    *p = (struct sh_answer_piece){.kind = kind, .call = a->n_calls};
    return p;
}

static void add_text(struct sh_answer *a, enum sh_answer_kind kind, const char *text, size_t length) {
    if (length == 0) return;
    const struct sh_answer_piece *before = a->n_pieces == 0 ? NULL : &a->pieces[a->n_pieces - 1];
    if (before == NULL || before->kind != kind || before->call != a->n_calls) {
        if (before != NULL) sh_buffer_add(&a->out, "", 1); /* the NUL of the text before */
        if (new_piece(a, kind) == NULL) return;
    }
    sh_buffer_add(&a->out, text, length);
    a->ranges[a->n_pieces - 1].length += length;
}

static void add_content(struct sh_answer *a, const char *text, size_t length) {
    if (length == 0) return;
    a->fresh = a->drop_space = false;
    for (size_t i = length; i > 0; i--) {
        if (text[i - 1] == ' ' || text[i - 1] == '\t') continue;
        a->line_start = text[i - 1] == '\n';
        break;
    }
    add_text(a, SH_ANSWER_CONTENT, text, length);
}

static void add_arguments(struct sh_answer *a, const char *text, size_t length) {
    if (a->muted) return;
    if (a->called) add_text(a, SH_ANSWER_ARGUMENTS, text, length);
    else sh_buffer_add(&a->held, text, length);
}

static void add_escaped(struct sh_answer *a, const char *text, size_t length) {
    a->scratch.length = 0;
    sh_buffer_add_escaped(&a->scratch, text, length);
    if (!a->scratch.failed) add_arguments(a, a->scratch.text, a->scratch.length);
}

/* The name is known: the call is handed out. */
static void hand_out(struct sh_answer *a) {
    if (a->called) return;
    a->called = true;
    a->raw = false;
    const char *none = a->plan->calls->not_called;
    if (none != NULL && a->name.length == strlen(none)) {
        a->muted = true; /* the two spellings in use: directly_answer, directly-answer */
        for (size_t i = 0; i < a->name.length; i++)
            a->muted &= a->name.text[i] == none[i] || (none[i] == '_' && a->name.text[i] == '-');
    }
    if (a->muted) return;
    if (a->n_pieces > 0) sh_buffer_add(&a->out, "", 1);
    if (new_piece(a, SH_ANSWER_CALL) == NULL) return;
    struct piece_range *r = &a->ranges[a->n_pieces - 1];
    r->name = a->out.length;
    sh_buffer_add(&a->out, a->name.text, a->name.length + 1);
    r->id = a->out.length;
    r->has_id = a->id.length > 0;
    if (r->has_id) sh_buffer_add(&a->out, a->id.text, a->id.length + 1);
    r->text = a->out.length;
    if (a->held.length > 0) add_text(a, SH_ANSWER_ARGUMENTS, a->held.text, a->held.length);
}

static void begin_call(struct sh_answer *a) {
    a->named = a->called = a->arguments = a->muted = a->nested = false;
    a->name.length = a->id.length = a->held.length = 0;
}

static void end_call(struct sh_answer *a) {
    if (!a->arguments) {
        a->arguments = true;
        add_arguments(a, "{}", 2);
    }
    hand_out(a);
    if (!a->muted) a->n_calls++;
    begin_call(a);
}

/* ---- reading ---- */

static enum match match_at(const struct sh_answer *a, size_t at, const char *text) {
    const size_t want = strlen(text), have = a->in.length - at;
    if (memcmp(a->in.text + at, text, want < have ? want : have) != 0) return NO;
    if (want <= have) return YES;
    return a->last ? NO : PERHAPS;
}

static enum match take(struct sh_answer *a, const char *text) {
    const enum match m = match_at(a, a->at, text);
    if (m == YES) a->at += strlen(text);
    return m;
}

/* False: no more text. */
static bool skip_space(struct sh_answer *a) {
    while (a->at < a->in.length && is_space(a->in.text[a->at])) a->at++;
    return a->at < a->in.length;
}

static void leave_to_content(struct sh_answer *a) {
    a->state = a->in_section ? SECTION : CONTENT;
    a->in_array = false;
    if (a->raw) return;
    a->keep = a->at;
    a->drop_space = a->fresh = a->line_start = true;
}

/* This is no call, or none any more. */
static void give_up(struct sh_answer *a) {
    const bool raw = a->raw;
    if (a->called && !a->muted) a->n_calls++;
    begin_call(a);
    a->in_section = a->in_array = a->raw = false;
    a->state = a->plan->harmony ? MESSAGE : CONTENT;
    a->message = SH_ANSWER_CONTENT;
    if (raw) add_content(a, a->in.text + a->keep, a->at - a->keep);
    else a->drop_space = a->fresh = a->line_start = true;
    a->keep = a->at;
}

static bool well_named(const struct sh_answer *a) {
    if (a->name.failed || a->name.length == 0 || a->name.length > MAX_NAME) return false;
    for (size_t i = 0; i < a->name.length; i++)
        if ((unsigned char)a->name.text[i] < 0x20) return false;
    if (!(a->plan->calls->flags & SH_FORM_KNOWN)) return true;
    return sh_plan_find_tool(a->plan, a->name.text, a->name.length) != NULL;
}

static bool set_name(struct sh_answer *a, const char *text, size_t length) {
    while (length > 0 && is_space(*text)) text++, length--;
    while (length > 0 && is_space(text[length - 1])) length--;
    a->name.length = 0;
    sh_buffer_add(&a->name, text, length);
    a->named = well_named(a);
    return a->named;
}

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
            add_arguments(a, a->in.text + plain, a->at - plain);
            add_escaped(a, &c, 1);
            plain = a->at + 1;
        }
        a->at++;
        if (r == SH_READ_DONE) step = GO;
    }
    add_arguments(a, a->in.text + plain, a->at - plain);
    return step;
}

/* A byte of the text that a JSON string holds, which is JSON itself. */
static bool inner_byte(struct sh_answer *a, char c) {
    if (a->inner_done) return is_space(c);
    if (!a->arguments) {
        if (is_space(c)) return true;
        if (c != '{') return false;
        a->arguments = true;
    }
    const bool bare = sh_json_in_string(&a->json) && (unsigned char)c < 0x20;
    const enum sh_read r = sh_json_step(&a->json, c);
    if (r == SH_READ_BAD) return false;
    if (bare) add_escaped(a, &c, 1);
    else add_arguments(a, &c, 1);
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

enum { MAX_HEADER = 512 };
static const char *const header_begins[] = {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", " to=", "assistant"};
static const char *const message_ends[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>"};

/* Does a message end here? */
static enum match match_message_end(const struct sh_answer *a, size_t at) {
    enum match best = NO;
    if (a->in.text[at] != '<') return NO;
    for (size_t i = 0; i < SH_COUNT(message_ends); i++) {
        const enum match m = match_at(a, at, message_ends[i]);
        if (m == YES) return YES;
        if (m == PERHAPS) best = PERHAPS;
    }
    return best;
}

/* ---- calls ---- */

static bool is_text(const struct sh_answer *a, size_t from, size_t to, const char *text) {
    return text != NULL && to - from == strlen(text) && memcmp(a->in.text + from, text, to - from) == 0;
}

/* A fence around a call's JSON; PERHAPS: more text is needed. */
static enum match take_fence(struct sh_answer *a) {
    static const char *const fences[] = {"```json", "```python", "```"};
    for (size_t i = 0; i < SH_COUNT(fences); i++) {
        const enum match m = take(a, fences[i]);
        if (m != NO) return m;
    }
    return NO;
}

static enum step step_body(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!skip_space(a)) return MORE;
    if (form->flags & SH_FORM_FENCE) {
        const enum match m = take_fence(a);
        if (m == PERHAPS) return MORE;
        if (m == YES) return GO;
    }
    const char c = a->in.text[a->at];
    if (form->shape == SH_CALL_PYTHON && c == '[') {
        begin_call(a);
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
        begin_call(a);
        return GO;
    }
    if (form->shape == SH_CALL_JSON || form->shape == SH_CALL_KEYED) return BAD;
    if (form->name_open != NULL) {
        const enum match m = take(a, form->name_open);
        if (m != YES) return m == NO ? BAD : MORE;
    }
    begin_call(a);
    a->in_json = a->in_array = false;
    a->mark = a->at;
    a->state = form->shape == SH_CALL_PYTHON || form->shape == SH_CALL_BRACED ? WORD : NAME;
    return GO;
}

static enum step step_item(struct sh_answer *a) {
    if (!skip_space(a)) return MORE;
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
    begin_call(a);
    return GO;
}

static enum step object_ended(struct sh_answer *a) {
    if (a->nested) {
        a->nested = false;
        a->state = NEXT;
        return GO;
    }
    if (!a->named) return BAD;
    end_call(a);
    a->state = a->in_array ? ITEM_NEXT : CALL_END;
    return GO;
}

static enum step step_key(struct sh_answer *a) {
    if (!skip_space(a)) return MORE;
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
        return a->scratch.length > 0 && set_name(a, a->scratch.text, a->scratch.length) ? GO : BAD;
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
static void begin_quoted(struct sh_answer *a) {
    sh_json_begin(&a->json);
    a->escape = 0;
    a->high = 0;
    a->inner_done = false;
    a->at++;
    a->state = QUOTED;
}

static enum step step_value(struct sh_answer *a) {
    if (!skip_space(a)) return MORE;
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
    if (a->named) hand_out(a);
    if (c == '{') {
        a->arguments = true;
        a->state = ARGUMENTS;
    } else if (c == '"') {
        begin_quoted(a);
    } else {
        a->state = OTHER_VALUE; /* null: none */
    }
    return GO;
}

static enum step step_name_value(struct sh_answer *a) {
    const enum step step = read_value(a);
    if (step != GO) return step;
    decode_string(&a->scratch, a->in.text + a->mark + 1, a->at - a->mark - 2);
    if (a->scratch.length == 0 || !set_name(a, a->scratch.text, a->scratch.length)) return BAD;
    if (a->arguments || !(a->plan->calls->flags & SH_FORM_BARE)) hand_out(a);
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
    if (!skip_space(a)) return MORE;
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
        const enum match id = form->flags & SH_FORM_CALL_ID ? match_at(a, a->at, "[CALL_ID]") : NO;
        const char c = a->in.text[a->at];
        const enum match m = form->name_close != NULL ? match_at(a, a->at, form->name_close) : is_space(c) || c == '<' ? YES : NO;
        if (m == NO && id == NO) continue;
        if (m != YES && id != YES) return MORE;
        const char *text = a->in.text + a->mark;
        size_t length = a->at - a->mark;
        if (form->flags & SH_FORM_KIMI) {
            while (length > 0 && is_space(*text)) text++, length--;
            while (length > 0 && is_space(text[length - 1])) length--;
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
        if (!set_name(a, text, length)) return BAD;
        if (id == YES) a->at += strlen("[CALL_ID]");
        else if (form->name_close != NULL) a->at += strlen(form->name_close);
        a->mark = a->at;
        a->state = id == YES ? ID : form->shape == SH_CALL_TAGGED ? PARAM : NAMED_BODY;
        if (id != YES) hand_out(a);
        return GO;
    }
    return MORE;
}

static enum step step_id(struct sh_answer *a) {
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_NAME) return BAD;
        const enum match m = match_at(a, a->at, a->plan->calls->name_close);
        if (m == PERHAPS) return MORE;
        if (m == NO) continue;
        sh_buffer_add(&a->id, a->in.text + a->mark, a->at - a->mark);
        a->at += strlen(a->plan->calls->name_close);
        a->state = NAMED_BODY;
        hand_out(a);
        return GO;
    }
    return MORE;
}

/* ---- code ---- */

/* Arguments that are code, not JSON: they become the one string parameter of the function. */
static void begin_code(struct sh_answer *a) {
    const struct sh_plan_tool *tool = sh_plan_find_tool(a->plan, a->name.text, a->name.length);
    const char *param = tool != NULL && tool->n_params == 1 ? tool->params[0].name : "code";
    a->arguments = true;
    a->state = CODE;
    add_arguments(a, "{\"", 2);
    add_escaped(a, param, strlen(param));
    add_arguments(a, "\": \"", 4);
}

/* Up to the next recipient, the end of the message, or the end of the answer. */
static enum step step_code(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const bool harmony = form->shape == SH_CALL_HARMONY;
    size_t plain = a->at;
    enum match m = NO;
    for (; a->at < a->in.length; a->at++) {
        if (harmony) m = match_message_end(a, a->at);
        else if (form->flags & SH_FORM_RECIPIENT) m = match_at(a, a->at, form->call_open);
        if (m != NO) break;
    }
    add_escaped(a, a->in.text + plain, a->at - plain);
    if (m != YES && !(a->last && a->at == a->in.length)) return MORE;
    add_arguments(a, "\"}", 2);
    end_call(a);
    a->state = harmony ? BETWEEN : CALL_END;
    return GO;
}

static enum step step_named_body(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!skip_space(a)) return MORE;
    if (form->flags & SH_FORM_FENCE) {
        const enum match m = take_fence(a);
        if (m == PERHAPS) return MORE;
        if (m == YES) return GO;
    }
    const char c = a->in.text[a->at];
    if (c != '{' && (form->flags & SH_FORM_RECIPIENT)) {
        begin_code(a);
        return GO;
    }
    if (c == '"') {
        begin_quoted(a);
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
    end_call(a);
    a->state = a->plan->calls->shape == SH_CALL_HARMONY ? BETWEEN : CALL_END;
    return GO;
}

static enum step step_call_end(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!skip_space(a)) return MORE;
    a->keep = a->at;
    if (form->flags & SH_FORM_FENCE) {
        const enum match m = take(a, "```");
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
        const enum match m = take(a, form->call_close);
        if (m == PERHAPS) return MORE;
    }
    leave_to_content(a);
    return GO;
}

static enum step step_section(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!a->raw) a->keep = a->at;
    if (!skip_space(a)) return MORE;
    const char *open = form->call_open != NULL ? form->call_open : form->name_open;
    const enum match close = !a->raw && form->close != NULL ? match_at(a, a->at, form->close) : NO,
                     call = match_at(a, a->at, open);
    if (close == YES) {
        a->at += strlen(form->close);
        a->in_section = false;
        leave_to_content(a);
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

/* ---- arguments between tags ---- */

static enum step step_param(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!skip_space(a)) return MORE;
    const char *end = form->body_close != NULL ? form->body_close : form->call_close;
    const enum match key = match_at(a, a->at, form->key_open), close = match_at(a, a->at, end);
    if (key == YES) {
        a->at += strlen(form->key_open);
        a->mark = a->at;
        a->state = PARAM_KEY;
        return GO;
    }
    if (close != YES) return key == PERHAPS || close == PERHAPS ? MORE : BAD;
    if (form->body_close != NULL) a->at += strlen(end);
    if (a->arguments) add_arguments(a, "}", 1);
    end_call(a);
    a->state = CALL_END;
    return GO;
}

static enum step step_param_key(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_NAME && (a->in.text[a->at] & 0xc0) != 0x80) return BAD;
        const enum match m = match_at(a, a->at, form->key_close);
        if (m == PERHAPS) return MORE;
        if (m == NO) continue;
        a->param.length = 0;
        sh_buffer_add(&a->param, a->in.text + a->mark, a->at - a->mark);
        a->types = sh_plan_param_types(sh_plan_find_tool(a->plan, a->name.text, a->name.length), a->param.text, a->param.length);
        a->at += strlen(form->key_close);
        a->mark = a->at;
        a->state = form->flags & SH_FORM_TYPED ? PARAM_TYPE : PARAM_OPEN;
        return GO;
    }
    return MORE;
}

/* string="true" and string="false" say more than the schema. */
static enum step step_param_type(struct sh_answer *a) {
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_NAME && (a->in.text[a->at] & 0xc0) != 0x80) return BAD;
        if (a->in.text[a->at] != '>') continue;
        const char *text = a->in.text + a->mark;
        const size_t length = a->at - a->mark;
        if (memmem(text, length, "string=\"true\"", 13) != NULL) a->types = SH_TYPE_STRING;
        else if (memmem(text, length, "string=\"false\"", 14) != NULL && a->types == SH_TYPE_STRING) a->types = SH_TYPE_ANY;
        a->at++;
        a->state = PARAM_OPEN;
        return GO;
    }
    return MORE;
}

static enum step step_param_open(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (form->value_open != NULL) {
        if (!skip_space(a)) return MORE;
        const enum match m = take(a, form->value_open);
        if (m != YES) return m == NO ? BAD : MORE;
    } else {
        if (a->at == a->in.length) return MORE;
        if ((form->flags & SH_FORM_NEWLINES) && a->in.text[a->at] == '\n') a->at++;
    }
    add_arguments(a, a->arguments ? ", \"" : "{\"", a->arguments ? 3 : 2);
    a->arguments = true;
    add_escaped(a, a->param.text, a->param.length);
    add_arguments(a, "\": ", 3);
    a->mark = a->at;
    a->state = a->types == SH_TYPE_STRING ? PARAM_STRING : PARAM_VALUE;
    if (a->state == PARAM_STRING) add_arguments(a, "\"", 1);
    return GO;
}

static uint32_t type_of_text(const char *text, size_t length) {
    if (!sh_json_is_value(text, length)) return 0;
    switch (*text) {
    case '{': return SH_TYPE_OBJECT;
    case '[': return SH_TYPE_ARRAY;
    case '"': return SH_TYPE_STRING;
    case 't':
    case 'f': return SH_TYPE_BOOLEAN;
    case 'n': return SH_TYPE_NULL;
    default: return SH_TYPE_NUMBER;
    }
}

/* A value that need not be a string: JSON of one of its types, or what Python writes for it, or else a string after all. */
static void add_value(struct sh_answer *a, const char *text, size_t length) {
    const char *inner = text;
    size_t n = length;
    while (n > 0 && is_space(*inner)) inner++, n--;
    while (n > 0 && is_space(inner[n - 1])) n--;
    const uint32_t type = type_of_text(inner, n);
    if (type & a->types) {
        add_arguments(a, inner, n);
        return;
    }
    a->converted.length = 0;
    sh_literal_begin(&a->literal, SH_NOTATION_PYTHON, NULL, false, &a->converted);
    enum sh_read r = n == 0 ? SH_READ_BAD : SH_READ_MORE;
    size_t i = 0;
    for (; i < n && r == SH_READ_MORE; i++) r = sh_literal_step(&a->literal, inner[i]);
    if (r == SH_READ_MORE) r = sh_literal_step(&a->literal, ' ');
    const bool whole = i == n && (r == SH_READ_DONE || r == SH_READ_BEFORE) && !a->converted.failed;
    if (whole && (type_of_text(a->converted.text, a->converted.length) & a->types & ~(uint32_t)SH_TYPE_STRING)) {
        add_arguments(a, a->converted.text, a->converted.length);
        return;
    }
    add_arguments(a, "\"", 1);
    add_escaped(a, text, length);
    add_arguments(a, "\"", 1);
}

/* A string streams, another value waits for its end. A line feed before the end is the form's. */
static enum step step_param_value(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const size_t plain = a->at, n = strlen(form->value_close);
    const bool string = a->state == PARAM_STRING;
    for (; a->at < a->in.length; a->at++) {
        const char c = a->in.text[a->at];
        size_t skip = 0;
        if (c == '\n' && (form->flags & SH_FORM_NEWLINES)) skip = 1;
        else if (c != form->value_close[0]) continue;
        const enum match m = match_at(a, a->at + skip, form->value_close);
        if (m == NO) continue;
        if (m == PERHAPS) break;
        if (string) {
            add_escaped(a, a->in.text + plain, a->at - plain);
            add_arguments(a, "\"", 1);
        } else {
            add_value(a, a->in.text + a->mark, a->at - a->mark);
        }
        a->at += skip + n;
        a->state = PARAM;
        return GO;
    }
    if (string) add_escaped(a, a->in.text + plain, a->at - plain);
    return MORE;
}

/* ---- Python's calls, and those in braces ---- */

static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
}

static enum step step_word(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const bool braced = form->shape == SH_CALL_BRACED;
    while (a->at < a->in.length && is_name(a->in.text[a->at]) && a->at - a->mark <= MAX_NAME) a->at++;
    if (a->at == a->in.length) return MORE;
    if (a->in.text[a->at] != (braced ? '{' : '(') || !set_name(a, a->in.text + a->mark, a->at - a->mark)) return BAD;
    hand_out(a);
    a->arguments = true;
    a->converted.length = 0;
    if (!braced) a->at++;
    sh_literal_begin(&a->literal, braced ? SH_NOTATION_BRACED : SH_NOTATION_PYTHON, form->quote, !braced, &a->converted);
    a->state = CONVERTED;
    return GO;
}

static enum step step_converted(struct sh_answer *a) {
    enum sh_read r = SH_READ_MORE;
    while (a->at < a->in.length && r == SH_READ_MORE) {
        r = sh_literal_step(&a->literal, a->in.text[a->at]);
        if (r != SH_READ_BAD) a->at++;
    }
    add_arguments(a, a->converted.text, a->converted.length);
    a->converted.length = 0;
    if (r != SH_READ_DONE) return r == SH_READ_MORE ? MORE : BAD;
    end_call(a);
    a->state = a->plan->calls->shape == SH_CALL_PYTHON ? PYTHON_NEXT : CALL_END;
    return GO;
}

static enum step step_python_next(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const bool first = a->raw; /* behind the opening bracket */
    if (!skip_space(a)) return MORE;
    if (!first) a->keep = a->at;
    const char c = a->in.text[a->at];
    if (a->in_array && c == ']' && !first) {
        a->at++;
        a->state = CALL_END;
        return GO;
    }
    if (a->in_array && c == '{' && first && form->name_key != NULL) {
        a->in_json = true;
        a->state = ITEM;
        return GO;
    }
    if (!first) {
        if (!a->in_array && !is_name(c)) {
            a->state = CALL_END;
            return GO;
        }
        if (a->in_array && c != ',') return BAD;
        a->raw = true;
        if (c == ',') a->at++;
        if (!skip_space(a)) return MORE;
    }
    if (!is_name(a->in.text[a->at])) return BAD;
    begin_call(a);
    a->mark = a->at;
    a->state = WORD;
    return GO;
}

/* Behind <|python_tag|>: a call of a built-in tool, name.call(key=value), or code. */
static enum step step_tag(struct sh_answer *a) {
    static const char *const interpreters[] = {"python", "code_interpreter", "ipython"};
    if (!skip_space(a)) return MORE;
    begin_call(a);
    const char c = a->in.text[a->at];
    if ((c == '{' || c == '[') && a->plan->calls->name_key != NULL) {
        a->state = BODY;
        return GO;
    }
    size_t end = a->at;
    while (end < a->in.length && is_name(a->in.text[end]) && a->in.text[end] != '.' && end - a->at <= MAX_NAME) end++;
    const enum match call = end > a->at ? match_at(a, end, ".call(") : NO;
    if (call == PERHAPS) return MORE;
    a->in_json = a->in_array = false;
    if (call == YES) {
        sh_buffer_add(&a->name, a->in.text + a->at, end - a->at);
        a->named = true;
        hand_out(a);
        a->arguments = true;
        a->at = end + strlen(".call(");
        a->converted.length = 0;
        sh_literal_begin(&a->literal, SH_NOTATION_PYTHON, NULL, true, &a->converted);
        a->state = CONVERTED;
        return GO;
    }
    const char *name = interpreters[0];
    for (size_t i = SH_COUNT(interpreters); i > 0; i--)
        if (sh_plan_find_tool(a->plan, interpreters[i - 1], strlen(interpreters[i - 1])) != NULL) name = interpreters[i - 1];
    sh_buffer_add_string(&a->name, name);
    a->named = true;
    hand_out(a);
    begin_code(a);
    return GO;
}

/* ---- harmony: <|start|>assistant<|channel|>CHANNEL to=RECIPIENT <|constrain|>json<|message|>TEXT<|end|> ---- */

/* A header is whole: what follows it? */
static void read_header(struct sh_answer *a) {
    const char *text = a->header.text;
    const char *channel = strstr(text, "<|channel|>"), *to = strstr(text, "to=");
    begin_call(a);
    a->in_json = a->in_array = false;
    a->state = MESSAGE;
    a->message =
        channel != NULL && strncmp(channel + strlen("<|channel|>"), "analysis", 8) == 0 ? SH_ANSWER_REASONING : SH_ANSWER_CONTENT;
    if (to == NULL || a->plan->calls == NULL) return;
    to += 3;
    size_t length = strcspn(to, " <\n");
    if (length > 10 && memcmp(to, "functions.", 10) == 0) to += 10, length -= 10;
    if (!set_name(a, to, length)) return;
    hand_out(a);
    a->state = MESSAGE_CALL;
}

static enum step step_header(struct sh_answer *a) {
    enum match begins = a->header.length > 0 || a->at > a->mark ? YES : NO;
    for (size_t i = 0; i < SH_COUNT(header_begins) && begins != YES; i++) {
        const enum match m = match_at(a, a->mark, header_begins[i]);
        if (m == YES || (m == PERHAPS && begins == NO)) begins = m;
    }
    if (begins == PERHAPS) return MORE;
    if (begins == NO) return BAD;
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_HEADER) return BAD;
        const enum match m = match_at(a, a->at, "<|message|>");
        if (m == PERHAPS) return MORE;
        if (m == NO) continue;
        sh_buffer_add(&a->header, a->in.text + a->mark, a->at - a->mark);
        a->at += strlen("<|message|>");
        a->raw = false;
        if (a->header.failed) return BAD;
        read_header(a);
        if (a->plan->keep_reasoning && a->state == MESSAGE && a->message == SH_ANSWER_REASONING)
            add_content(a, a->in.text + a->mark, a->at - a->mark);
        a->keep = a->at;
        return GO;
    }
    return MORE;
}

static enum step step_message(struct sh_answer *a) {
    const size_t plain = a->at;
    const bool keep = a->plan->keep_reasoning;
    enum match m = NO;
    for (; a->at < a->in.length; a->at++) {
        m = match_message_end(a, a->at);
        if (m != NO) break;
    }
    if (keep) add_content(a, a->in.text + plain, a->at - plain);
    else add_text(a, a->message, a->in.text + plain, a->at - plain);
    a->keep = a->at;
    if (m != YES) return MORE;
    if (keep && a->message == SH_ANSWER_REASONING && match_at(a, a->at, "<|end|>") == YES) add_content(a, "<|end|>", 7);
    a->state = BETWEEN;
    return GO;
}

static enum step step_message_call(struct sh_answer *a) {
    if (!skip_space(a)) return MORE;
    const enum match m = match_message_end(a, a->at);
    if (m == PERHAPS) return MORE;
    if (m == YES) {
        end_call(a);
        a->state = BETWEEN;
    } else if (a->in.text[a->at] == '{') {
        sh_json_begin(&a->json);
        a->arguments = true;
        a->state = ARGUMENTS;
    } else if (a->in.text[a->at] == '"') {
        begin_quoted(a);
    } else {
        begin_code(a);
    }
    return GO;
}

/* Anything but a header here is content. */
static enum step step_between(struct sh_answer *a) {
    if (!skip_space(a)) return MORE;
    a->keep = a->mark = a->at;
    const enum match m = match_message_end(a, a->at);
    if (m == PERHAPS) return MORE;
    for (size_t i = 0; m == YES && i + 1 < SH_COUNT(message_ends); i++) /* <|start|> belongs to the header */
        if (take(a, message_ends[i]) == YES) return GO;
    a->raw = true;
    a->header.length = 0;
    a->state = HEADER;
    return GO;
}

/* ---- content and reasoning ---- */

static void add_trigger(struct sh_answer *a, const char *text, enum trigger_kind kind) {
    if (text == NULL) return;
    a->triggers[a->n_triggers++] = (struct trigger){text, strlen(text), kind};
    a->begins[(uint8_t)*text / 8] |= (uint8_t)(1u << ((uint8_t)*text % 8));
}

static void set_triggers(struct sh_answer *a) {
    const struct sh_thought_form *thought = a->plan->thought;
    const struct sh_call_form *calls = a->plan->calls;
    if (thought != NULL) {
        add_trigger(a, thought->open, ON_THOUGHT);
        add_trigger(a, thought->close, ON_STRAY_CLOSE);
        if (!a->plan->keep_reasoning)
            for (size_t i = 0; i < SH_COUNT(thought->silent); i++) add_trigger(a, thought->silent[i], ON_SILENT);
    }
    if (calls == NULL) return;
    add_trigger(a, calls->open, ON_SECTION);
    add_trigger(a, calls->call_open, ON_CALL);
    if (calls->call_open == NULL || calls->shape == SH_CALL_TAGGED) add_trigger(a, calls->name_open, ON_NAME);
    if (calls->flags & SH_FORM_PYTHON_TAG) add_trigger(a, "<|python_tag|>", ON_TAG);
    add_trigger(a, calls->silent, ON_SILENT);
    if (calls->flags & SH_FORM_BARE) {
        if (calls->flags & SH_FORM_FENCE) add_trigger(a, "```json", ON_BARE);
        add_trigger(a, "{", ON_BARE);
        add_trigger(a, "[", ON_BARE);
    }
}

static void begin_thought(struct sh_answer *a) {
    a->state = THOUGHT;
    a->thought_seen = true;
    a->drop_space = true;
}

/* A marker in content. False: here it is ordinary text. */
static bool pull_trigger(struct sh_answer *a, const struct trigger *t) {
    switch (t->kind) {
    case ON_THOUGHT:
        if (!a->fresh && !a->plan->thought->anywhere) {
            a->thought_seen = true; /* content speaks of the marker */
            return false;
        }
        if (a->plan->keep_reasoning) add_content(a, a->in.text + a->keep, a->at + t->length - a->keep);
        a->at += t->length;
        a->keep = a->at;
        begin_thought(a);
        return true;
    case ON_STRAY_CLOSE: /* of reasoning whose opening is not in the answer */
        if (a->thought_seen || a->plan->keep_reasoning) return false;
        a->thought_seen = true;
        a->at += t->length;
        a->keep = a->at;
        a->drop_space = a->fresh = true;
        return true;
    case ON_SILENT:
        a->at += t->length;
        a->keep = a->at;
        a->drop_space = true;
        return true;
    case ON_SECTION:
        a->in_section = a->raw = true;
        a->at += t->length;
        a->state = SECTION;
        return true;
    case ON_CALL:
        a->raw = true;
        a->at += t->length;
        a->state = BODY;
        return true;
    case ON_TAG:
        a->raw = true;
        a->at += t->length;
        a->state = TAG;
        return true;
    case ON_BARE:
        if (!a->line_start) return false;
        /* fallthrough */
    case ON_NAME:
        a->raw = true;
        a->state = BODY;
        return true;
    }
    return false;
}

/* White space in front of `at` waits in [keep, at) as long as a call may follow, before which it is none of the content. */
static enum step step_content(struct sh_answer *a) {
    size_t sure = a->keep;
    enum step step = MORE;
    while (a->at < a->in.length) {
        const char c = a->in.text[a->at];
        if (is_space(c)) {
            a->at++;
            if (a->drop_space) sure = a->keep = a->at;
            continue;
        }
        if (a->begins[(uint8_t)c / 8] >> ((uint8_t)c % 8) & 1) {
            const struct trigger *found = NULL;
            bool perhaps = false;
            for (uint32_t i = 0; i < a->n_triggers; i++) {
                const enum match m = match_at(a, a->at, a->triggers[i].text);
                perhaps |= m == PERHAPS;
                if (m == YES && (found == NULL || a->triggers[i].length > found->length)) found = &a->triggers[i];
            }
            if (perhaps) break;
            if (found != NULL) {
                /* Where a line begins is told by the content so far and the white space that waits. */
                const size_t space = sure;
                add_content(a, a->in.text + a->keep, sure - a->keep);
                a->keep = space;
                for (size_t i = a->keep; i < a->at; i++) a->line_start |= a->in.text[i] == '\n';
                if (pull_trigger(a, found)) return GO;
                a->line_start = false;
            }
        }
        a->drop_space = a->line_start = false;
        sure = ++a->at;
    }
    if (a->last && a->at == a->in.length && !a->drop_space) sure = a->at;
    if (a->plan->calls == NULL && a->plan->thought == NULL) sure = a->at;
    add_content(a, a->in.text + a->keep, sure - a->keep);
    a->keep = sure;
    return step;
}

static enum step step_thought(struct sh_answer *a) {
    const struct sh_thought_form *form = a->plan->thought;
    const bool ends = a->plan->calls != NULL && (a->plan->calls->flags & SH_FORM_ENDS_THOUGHT);
    size_t sure = a->keep;
    const bool keep = a->plan->keep_reasoning;
    while (a->at < a->in.length) {
        const char c = a->in.text[a->at];
        if (is_space(c)) {
            a->at++;
            if (keep) sure = a->at;
            else if (a->drop_space) sure = a->keep = a->at;
            continue;
        }
        const enum match m = match_at(a, a->at, form->close), call = ends ? match_at(a, a->at, a->plan->calls->open) : NO;
        if (m == PERHAPS || call == PERHAPS) break;
        if (m == YES || call == YES) {
            if (keep) add_content(a, a->in.text + a->keep, a->at - a->keep + (m == YES ? strlen(form->close) : 0));
            else add_text(a, SH_ANSWER_REASONING, a->in.text + a->keep, sure - a->keep);
            if (m == YES) a->at += strlen(form->close);
            a->keep = a->at;
            a->state = CONTENT;
            a->drop_space = !keep;
            a->fresh = a->line_start = true;
            return GO;
        }
        a->drop_space = false;
        sure = ++a->at;
    }
    if (a->last && !a->drop_space) sure = a->in.length;
    if (keep) add_content(a, a->in.text + a->keep, sure - a->keep);
    else add_text(a, SH_ANSWER_REASONING, a->in.text + a->keep, sure - a->keep);
    a->keep = sure;
    return MORE;
}

static bool uses_mark(enum state state) {
    switch (state) {
    case KEY_TEXT:
    case NAME_VALUE:
    case ID_VALUE:
    case NAME:
    case ID:
    case PARAM_KEY:
    case PARAM_TYPE:
    case PARAM_VALUE:
    case WORD:
    case HEADER: return true;
    default: return false;
    }
}

static enum step step(struct sh_answer *a) {
    enum step s;
    switch (a->state) {
    case CONTENT: return step_content(a);
    case THOUGHT: return step_thought(a);
    case SECTION: return step_section(a);
    case BODY: return step_body(a);
    case ITEM:
    case ITEM_NEXT: return step_item(a);
    case KEY: return step_key(a);
    case KEY_TEXT: return step_key_text(a);
    case COLON:
        if (!skip_space(a)) return MORE;
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
    case QUOTED:
        s = read_quoted(a);
        if (s != GO) return s;
        return arguments_ended(a);
    case CALL_END: return step_call_end(a);
    case PARAM: return step_param(a);
    case PARAM_KEY: return step_param_key(a);
    case PARAM_TYPE: return step_param_type(a);
    case PARAM_OPEN: return step_param_open(a);
    case PARAM_STRING:
    case PARAM_VALUE: return step_param_value(a);
    case WORD: return step_word(a);
    case CONVERTED: return step_converted(a);
    case PYTHON_NEXT: return step_python_next(a);
    case TAG: return step_tag(a);
    case CODE: return step_code(a);
    case HEADER: return step_header(a);
    case MESSAGE: return step_message(a);
    case MESSAGE_CALL: return step_message_call(a);
    case BETWEEN: return step_between(a);
    }
    return BAD;
}

/* ---- the public functions ---- */

enum sh_code sh_answer_create(const struct sh_chat_prompt *prompt, struct sh_answer **out, struct sh_error *err) {
    *out = NULL;
    struct sh_answer *a = sh_calloc(1, sizeof *a);
    if (a == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for reading an answer");
    a->plan = prompt->plan;
    a->fresh = a->line_start = true;
    set_triggers(a);
    if (a->plan->start == SH_START_THOUGHT) begin_thought(a);
    if (a->plan->start == SH_START_CALL) {
        a->raw = true;
        a->state = BODY;
    }
    if (a->plan->start == SH_START_HEADER) {
        a->raw = true;
        a->state = HEADER;
        sh_buffer_add_string(&a->header, a->plan->header);
    }
    if (a->plan->start == SH_START_MESSAGE) {
        sh_buffer_add_string(&a->header, a->plan->header);
        if (!a->header.failed) read_header(a);
    }
    *out = a;
    return SH_OK;
}

void sh_answer_destroy(struct sh_answer *answer) {
    if (answer == NULL) return;
    free(answer->in.text);
    free(answer->name.text);
    free(answer->id.text);
    free(answer->held.text);
    free(answer->scratch.text);
    free(answer->converted.text);
    free(answer->param.text);
    free(answer->header.text);
    free(answer->out.text);
    free(answer->pieces);
    free(answer->ranges);
    free(answer);
}

enum sh_code sh_answer_push(struct sh_answer *a, const char *text, size_t length, bool last,
                            const struct sh_answer_piece **pieces, uint32_t *count, struct sh_error *err) {
    *pieces = NULL;
    *count = 0;
    a->n_pieces = 0;
    a->out.length = 0;
    a->last = last;
    sh_buffer_add(&a->in, text, length);
    while (!a->in.failed) {
        const enum step s = step(a);
        if (!a->raw && a->state != CONTENT && a->state != THOUGHT) a->keep = a->at;
        if (!uses_mark(a->state)) a->mark = a->at;
        if (s == GO) continue;
        if (s == MORE && (!last || a->state == CONTENT || a->state == THOUGHT || a->state == MESSAGE)) break;
        if (s == MORE) a->at = a->in.length; /* a call that was cut off */
        give_up(a);
    }
    if (a->n_pieces > 0) sh_buffer_add(&a->out, "", 1);
    if (a->failed || a->in.failed || a->out.failed || a->name.failed || a->id.failed || a->held.failed || a->scratch.failed ||
        a->converted.failed || a->param.failed || a->header.failed)
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for an answer of %zu bytes so far", a->in.length);
    /* What was dealt with goes once it is the larger half: each byte moves a bounded number of times. */
    const size_t done = a->keep < a->mark ? a->keep : a->mark;
    if (done > a->in.length / 2) {
        memmove(a->in.text, a->in.text + done, a->in.length - done);
        a->in.length -= done;
        a->at -= done;
        a->mark -= done;
        a->keep -= done;
    }
    for (uint32_t i = 0; i < a->n_pieces; i++) {
        struct sh_answer_piece *p = &a->pieces[i];
        const struct piece_range *r = &a->ranges[i];
        p->text = a->out.text + r->text;
        p->length = r->length;
        if (p->kind != SH_ANSWER_CALL) continue;
        p->name = a->out.text + r->name;
        p->id = r->has_id ? a->out.text + r->id : NULL;
    }
    *pieces = a->pieces;
    *count = a->n_pieces;
    return SH_OK;
}
