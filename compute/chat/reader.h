/*
 * reader.h - the inside of an answer's reader: what reader.c, answer.c, answer_call.c and answer_notation.c share.
 *
 * A step function goes on from `at` in the state it was called in. GO: it got further; MORE: it needs more text; BAD: no call.
 */
#ifndef SHIMMY_CHAT_READER_H
#define SHIMMY_CHAT_READER_H

#include "compute/chat/forms.h"

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
    bool cut; /* the text ended within a call that was handed out */
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

static inline bool sh_reader_is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/* ---- reader.c: pieces, and the buffer ---- */

void sh_reader_add_text(struct sh_answer *a, enum sh_answer_kind kind, const char *text, size_t length);
void sh_reader_add_content(struct sh_answer *a, const char *text, size_t length);
/* Of the call that is being read: kept until it is handed out. */
void sh_reader_add_arguments(struct sh_answer *a, const char *text, size_t length);
void sh_reader_add_escaped(struct sh_answer *a, const char *text, size_t length);
void sh_reader_begin_call(struct sh_answer *a);
void sh_reader_hand_out(struct sh_answer *a); /* the name is known */
void sh_reader_end_call(struct sh_answer *a);
bool sh_reader_set_name(struct sh_answer *a, const char *text, size_t length); /* false: that names no function */

/* Does this text stand at that place? PERHAPS: more is needed to tell. */
enum match sh_reader_match_at(const struct sh_answer *a, size_t at, const char *text);
enum match sh_reader_take(struct sh_answer *a, const char *text); /* at `at`, which moves behind it */
bool sh_reader_skip_space(struct sh_answer *a);                   /* false: no more text */
enum match sh_reader_match_message_end(const struct sh_answer *a, size_t at); /* harmony's */
void sh_reader_leave_to_content(struct sh_answer *a);             /* behind a call */
void sh_reader_give_up(struct sh_answer *a);                      /* this is no call, or none any more */

/* ---- the states ---- */

enum step sh_reader_step_call(struct sh_answer *a);     /* answer_call.c: JSON, names, sections, code */
enum step sh_reader_step_notation(struct sh_answer *a); /* answer_notation.c: tags, Python, braces */
void sh_reader_begin_code(struct sh_answer *a);
void sh_reader_begin_quoted(struct sh_answer *a);

#endif
