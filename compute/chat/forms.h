/*
 * forms.h - the inside of format.c, answer.c, plan.c and constraint.c: the tables of forms, and what a plan remembers of a
 * request.
 *
 * A form of calls is markers around a shape. All calls may stand in a section (open ... close), each between call_open and
 * call_close; white space may stand between all of these. What is within is the shape's:
 *
 *   JSON      {name_key: NAME, arguments_key: {...}}, or an array of such objects; several objects may follow each other
 *   KEYED     the same, but an object is {NAME: {...}}
 *   NAMED     name_open NAME name_close, then the arguments as a JSON object
 *   TAGGED    name_open NAME name_close, per argument key_open KEY key_close value_open VALUE value_close, then body_close
 *   PYTHON    [NAME(KEY=VALUE, ...), ...] as Python writes them, the brackets may be missing
 *   BRACED    name_open NAME, then {KEY:VALUE, ...} with bare keys and strings between quotes of their own
 *   HARMONY   messages with headers, whose recipient is the name
 */
#ifndef SHIMMY_CHAT_FORMS_H
#define SHIMMY_CHAT_FORMS_H

#include "compute/base.h"
#include "compute/chat/format.h"

#include <jansson.h>

enum sh_call_shape {
    SH_CALL_JSON,
    SH_CALL_KEYED,
    SH_CALL_NAMED,
    SH_CALL_TAGGED,
    SH_CALL_PYTHON,
    SH_CALL_BRACED,
    SH_CALL_HARMONY,
};

enum {
    SH_FORM_BARE = 1,      /* calls have no marker of their own: a '{' or '[' at the beginning of a line may be one */
    SH_FORM_KNOWN = 2,     /* the marker is also ordinary text: only names of the request's tools make a call */
    SH_FORM_FENCE = 4,     /* a fence, ```json or ```python, may stand around the JSON or the Python */
    SH_FORM_PYTHON_TAG = 8,/* <|python_tag|> begins a call as well: name.call(key=value), JSON, or code */
    SH_FORM_RECIPIENT = 16,/* the name "all" stands for content; other text than JSON is code for "python" */
    SH_FORM_KIMI = 32,     /* NAME is functions.NAME:INDEX, which is the id, too */
    SH_FORM_CALL_ID = 64,  /* NAME[CALL_ID]ID name_close */
    SH_FORM_NEWLINES = 128,/* a value stands on lines of its own */
    SH_FORM_TYPED = 256,   /* key_close is followed by attributes, string="true" or "false", up to '>' */
    SH_FORM_ENDS_THOUGHT = 512, /* open ends reasoning that is not closed */
};

struct sh_call_form {
    const char *name;
    enum sh_call_shape shape;
    uint32_t flags;
    const char *open, *close;           /* of the section; NULL: none. close may be NULL where open is not */
    const char *call_open, *call_close; /* of one call; NULL: none */
    const char *name_key, *arguments_key, *id_key;
    const char *name_open, *name_close;
    const char *key_open, *key_close, *value_open, *value_close, *body_close;
    const char *quote;                  /* BRACED: around strings */
    const char *silent;                 /* a marker that means nothing to a reader; NULL: none */
    const char *not_called;             /* a function that stands for answering directly */
    const char *marks[3];               /* a template's text has all of these (those that are not NULL) */
    const char *token;                  /* or the vocabulary has this token; NULL: no such rule */
};

struct sh_thought_form {
    const char *name;
    const char *open, *close;
    bool anywhere;              /* the marker is no ordinary text: reasoning may begin in the middle of an answer */
    const char *silent[2];      /* around what is no reasoning */
    const char *marks[2];       /* a template's text has all of these */
};

struct sh_format {
    const struct sh_call_form *calls;
    const struct sh_thought_form *thought; /* NULL: no reasoning */
    int32_t *shown;
    uint32_t n_shown;
};

/* The longest control token of the format that `text` begins with: its id and bytes, or -1. */
int32_t sh_format_token_at(const struct sh_format *format, const struct sh_vocab *vocab, const char *text, size_t length,
                           size_t *bytes);

/* ---- what a request says of its tools ---- */

enum { /* JSON types that a parameter's schema allows */
    SH_TYPE_STRING = 1, SH_TYPE_NUMBER = 2, SH_TYPE_BOOLEAN = 4, SH_TYPE_NULL = 8, SH_TYPE_OBJECT = 16, SH_TYPE_ARRAY = 32,
    SH_TYPE_ANY = 63,
};
struct sh_plan_param {
    char *name;
    uint32_t types;
};
struct sh_plan_tool {
    char *name;
    struct sh_plan_param *params;
    uint32_t n_params;
};

enum sh_answer_start { SH_START_CONTENT, SH_START_THOUGHT, SH_START_CALL, SH_START_HEADER, SH_START_MESSAGE };

struct sh_answer_plan {
    const struct sh_call_form *calls;      /* NULL: no calls are looked for */
    const struct sh_thought_form *thought; /* NULL: no reasoning */
    bool keep_reasoning;
    bool single_call;      /* calls behind the first are dropped */
    bool harmony;          /* the form of the answer is harmony, whether or not calls are looked for */
    enum sh_answer_start start;
    char *header;          /* HEADER, MESSAGE: what of the header the prompt has already; NUL-terminated */
    struct sh_plan_tool *tools;
    uint32_t n_tools;
};

const struct sh_plan_tool *sh_plan_find_tool(const struct sh_answer_plan *plan, const char *name, size_t length);
uint32_t sh_plan_param_types(const struct sh_plan_tool *tool, const char *name, size_t length); /* SH_TYPE_ANY: not known */

/* JSON types that a schema allows; `root` is what references are looked up in. */
uint32_t sh_schema_types(const json_t *root, const json_t *schema);
/* Of a tool in OpenAI's form, which may be the function itself. */
const json_t *sh_tool_function(const json_t *tool);

/* What the answer is held to (constraint.c); *grammar stays NULL where it is free. `tools`: parsed, or NULL. */
enum sh_code sh_answer_constrain(const struct sh_format *format, const struct sh_vocab *vocab, const struct sh_answer_plan *plan,
                                 const struct sh_chat_request *request, const json_t *tools, const char *prompt,
                                 size_t prompt_length, struct sh_grammar **grammar, struct sh_error *err);

/* ---- reading values, a byte at a time (literal.c) ---- */

enum sh_read { SH_READ_MORE, SH_READ_DONE /* with this byte */, SH_READ_BEFORE /* this byte is no part of it */, SH_READ_BAD };

enum { SH_VALUE_DEPTH = 256 };

/* One JSON value, strictly, but control characters may stand in strings unescaped. Numbers and
 * literals end before the byte that follows them. */
struct sh_json_reader {
    uint8_t objects[SH_VALUE_DEPTH / 8]; /* which of the open brackets are objects */
    uint16_t depth;
    uint8_t state, index;
    const char *literal;
    bool key;
};
void sh_json_begin(struct sh_json_reader *r);
enum sh_read sh_json_step(struct sh_json_reader *r, char byte);
bool sh_json_in_string(const struct sh_json_reader *r); /* the next byte is a string's, not behind a backslash */
/* Is text[0, length) one value, but for white space around it? */
bool sh_json_is_value(const char *text, size_t length);

/* A growing text. After a failed allocation `failed` stays set, and nothing is added. */
struct sh_buffer {
    char *text;
    size_t length, capacity;
    bool failed;
};
void sh_buffer_add(struct sh_buffer *b, const char *text, size_t length);
void sh_buffer_add_string(struct sh_buffer *b, const char *text);
void sh_buffer_add_escaped(struct sh_buffer *b, const char *text, size_t length); /* as the inside of a JSON string */
void sh_buffer_add_code_point(struct sh_buffer *b, uint32_t code_point);          /* as UTF-8 */

/* A value in another notation, written as JSON: Python's (with call arguments: (key=value, ...)), or bare keys and quotes of
 * their own, among which JSON may stand, too. */
enum sh_notation { SH_NOTATION_PYTHON, SH_NOTATION_BRACED };
struct sh_literal_reader {
    enum sh_notation notation;
    const char *quote;               /* BRACED */
    uint8_t closers[SH_VALUE_DEPTH]; /* what closes each open bracket: '}', ']', ')', or 'k': the ')' of call arguments */
    uint16_t depth, word_length;
    uint8_t state, index, digits, base;
    char quote_byte;                 /* PYTHON: of this string */
    bool key, comma, triple, marked; /* marked: this string stands between the notation's own quotes */
    uint32_t code_point, high;       /* high: first half of a surrogate pair */
    char word[256];                  /* a number, a literal or a bare key */
    struct sh_buffer *out;
};
/* `arguments`: what follows is the inside of (key=value, ...), up to and with the ')'. */
void sh_literal_begin(struct sh_literal_reader *r, enum sh_notation notation, const char *quote, bool arguments,
                      struct sh_buffer *out);
enum sh_read sh_literal_step(struct sh_literal_reader *r, char byte);

#endif
