/*
 * answer_notation.c - arguments that are no JSON object: between tags, as Python writes them, in braces; JSON is made of them.
 */
#include "compute/chat/reader.h"

/* ---- arguments between tags ---- */

static enum step step_param(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    if (!sh_reader_skip_space(a)) return MORE;
    const char *end = form->body_close != NULL ? form->body_close : form->call_close;
    const enum match key = sh_reader_match_at(a, a->at, form->key_open), close = sh_reader_match_at(a, a->at, end);
    if (key == YES) {
        a->at += strlen(form->key_open);
        a->mark = a->at;
        a->state = PARAM_KEY;
        return GO;
    }
    if (close != YES) return key == PERHAPS || close == PERHAPS ? MORE : BAD;
    if (form->body_close != NULL) a->at += strlen(end);
    if (a->arguments) sh_reader_add_arguments(a, "}", 1);
    sh_reader_end_call(a);
    a->state = CALL_END;
    return GO;
}

static enum step step_param_key(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_NAME && (a->in.text[a->at] & 0xc0) != 0x80) return BAD;
        const enum match m = sh_reader_match_at(a, a->at, form->key_close);
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
        if (!sh_reader_skip_space(a)) return MORE;
        const enum match m = sh_reader_take(a, form->value_open);
        if (m != YES) return m == NO ? BAD : MORE;
    } else {
        if (a->at == a->in.length) return MORE;
        if ((form->flags & SH_FORM_NEWLINES) && a->in.text[a->at] == '\n') a->at++;
    }
    sh_reader_add_arguments(a, a->arguments ? ", \"" : "{\"", a->arguments ? 3 : 2);
    a->arguments = true;
    sh_reader_add_escaped(a, a->param.text, a->param.length);
    sh_reader_add_arguments(a, "\": ", 3);
    a->mark = a->at;
    a->state = a->types == SH_TYPE_STRING ? PARAM_STRING : PARAM_VALUE;
    if (a->state == PARAM_STRING) sh_reader_add_arguments(a, "\"", 1);
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
    while (n > 0 && sh_reader_is_space(*inner)) inner++, n--;
    while (n > 0 && sh_reader_is_space(inner[n - 1])) n--;
    const uint32_t type = type_of_text(inner, n);
    if ((type & a->types) && (type != SH_TYPE_STRING || a->types == SH_TYPE_ANY)) {
        sh_reader_add_arguments(a, inner, n);
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
        sh_reader_add_arguments(a, a->converted.text, a->converted.length);
        return;
    }
    sh_reader_add_arguments(a, "\"", 1);
    sh_reader_add_escaped(a, text, length);
    sh_reader_add_arguments(a, "\"", 1);
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
        const enum match m = sh_reader_match_at(a, a->at + skip, form->value_close);
        if (m == NO) continue;
        if (m == PERHAPS) break;
        if (string) {
            sh_reader_add_escaped(a, a->in.text + plain, a->at - plain);
            sh_reader_add_arguments(a, "\"", 1);
        } else {
            add_value(a, a->in.text + a->mark, a->at - a->mark);
        }
        a->at += skip + n;
        a->state = PARAM;
        return GO;
    }
    if (string) sh_reader_add_escaped(a, a->in.text + plain, a->at - plain);
    return MORE;
}

/* ---- Python's calls, and those in braces ---- */

static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-' ||
           c == ':' || c == '/';
}

static enum step step_word(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const bool braced = form->shape == SH_CALL_BRACED;
    while (a->at < a->in.length && is_name(a->in.text[a->at]) && a->at - a->mark <= MAX_NAME) a->at++;
    if (a->at == a->in.length) return MORE;
    if (a->in.text[a->at] != (braced ? '{' : '(') || !sh_reader_set_name(a, a->in.text + a->mark, a->at - a->mark)) return BAD;
    sh_reader_hand_out(a);
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
    sh_reader_add_arguments(a, a->converted.text, a->converted.length);
    a->converted.length = 0;
    if (r != SH_READ_DONE) return r == SH_READ_MORE ? MORE : BAD;
    sh_reader_end_call(a);
    a->state = a->plan->calls->shape == SH_CALL_PYTHON ? PYTHON_NEXT : CALL_END;
    return GO;
}

static enum step step_python_next(struct sh_answer *a) {
    const struct sh_call_form *form = a->plan->calls;
    const bool first = a->raw; /* behind the opening bracket */
    if (!sh_reader_skip_space(a)) return MORE;
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
        if (!sh_reader_skip_space(a)) return MORE;
    }
    if (!is_name(a->in.text[a->at])) return BAD;
    sh_reader_begin_call(a);
    a->mark = a->at;
    a->state = WORD;
    return GO;
}

/* Behind <|python_tag|>: a call of a built-in tool, name.call(key=value), or code. */
static enum step step_tag(struct sh_answer *a) {
    static const char *const interpreters[] = {"python", "code_interpreter", "ipython"};
    if (!sh_reader_skip_space(a)) return MORE;
    sh_reader_begin_call(a);
    const char c = a->in.text[a->at];
    if ((c == '{' || c == '[') && a->plan->calls->name_key != NULL) {
        a->state = BODY;
        return GO;
    }
    size_t end = a->at;
    while (end < a->in.length && is_name(a->in.text[end]) && a->in.text[end] != '.' && end - a->at <= MAX_NAME) end++;
    const enum match call = end > a->at ? sh_reader_match_at(a, end, ".call(") : NO;
    if (call == PERHAPS) return MORE;
    a->in_json = a->in_array = false;
    if (call == YES) {
        sh_buffer_add(&a->name, a->in.text + a->at, end - a->at);
        a->named = true;
        sh_reader_hand_out(a);
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
    sh_reader_hand_out(a);
    sh_reader_begin_code(a);
    return GO;
}

enum step sh_reader_step_notation(struct sh_answer *a) {
    switch (a->state) {
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
    default: return BAD;
    }
}
