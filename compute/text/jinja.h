/*
 * jinja.h - the inside of the template engine (engine.h: sh_template_*): values, the compiled tree, and what its files share.
 *
 *   jinja.c          a run: memory, limits, failures, where text comes from; the public functions
 *   jinja_lex.c      template text -> tokens; white space control
 *   jinja_parse.c    tokens -> tree, once
 *   jinja_eval.c     the tree, with variables -> text
 *   jinja_value.c    values: truth, order, containers, printing as Python does
 *   jinja_json.c     variables from JSON, and `tojson`
 *   jinja_string.c   strings as sequences of code points
 *   jinja_format.c   '%' and str.format, numbers in a format
 *   jinja_filter.c, jinja_collection.c, jinja_test.c, jinja_method.c, jinja_global.c   the names that templates call
 *
 * A run (struct jinja) belongs to one thread. All memory of a run is of its arena and goes with it, so a failure anywhere leaves
 * by longjmp to the function that began the run: no function below that holds anything to release. A compiled template is the
 * arena of the run that compiled it; it is immutable afterwards, and any thread may render it.
 *
 * A template can only compute: there is no name through which it reaches a file, the environment or the process. What it may
 * use up is bounded by the JINJA_MAX_ constants; going beyond one is SH_ERR_LIMIT, and the message names it.
 *
 * All of them keep a run within 1 MiB of stack.
 *
 * Integers have 127 bits and a sign; a result that needs more is an error, never another number.
 *
 * Where text comes from (sh_template_render_parts): a run that is asked for it keeps the bytes of its strings in one range of
 * addresses, and for each byte a mark at a fixed distance behind it, 1: given. So what points into a string has its marks, too,
 * and jbuf_add copies them along. Code that writes other bytes than it read says what they are made of (jbuf_made_of). Bytes
 * outside the range (the template's, constants, `trusted`) are not given.
 */
#ifndef SHIMMY_JINJA_H
#define SHIMMY_JINJA_H

#include "compute/base.h"

#include <setjmp.h>
#include <time.h>

enum {
    JINJA_MAX_TEMPLATE = 4 << 20,  /* bytes of a template */
    JINJA_MAX_NESTING = 500,       /* expressions and blocks within each other (a bracket counts three), and levels of JSON */
    JINJA_MAX_DEPTH = 2000,        /* evaluation: nodes of the tree within each other, calls of macros included */
    JINJA_MAX_STEPS = 50000000,    /* nodes evaluated, elements and 64-byte pieces looked at by filters and methods */
    JINJA_MAX_OUTPUT = 32 << 20,   /* bytes of any text that is built */
    JINJA_MAX_MEMORY = 256 << 20,  /* bytes of a run */
};

/* ---- values ---- */

struct jstr { /* UTF-8 as it came; lent by an arena or a constant */
    const char *p;
    size_t n;
};
#define JSTR(text) ((struct jstr){(text), sizeof(text) - 1})

enum jkind {
    J_ABSENT, /* an argument that was not given; never a value of a template */
    J_UNDEFINED,
    J_NONE,
    J_BOOL,
    J_INT,
    J_FLOAT,
    J_STRING,
    J_LIST,
    J_TUPLE,
    J_DICT,
    J_NAMESPACE,
    J_MACRO,
    J_FUNCTION, /* a global */
    J_METHOD,   /* one bound to its value */
    J_LOOP,
    J_JOINER,
    J_CYCLER,
};

struct jval {
    enum jkind kind;
    bool lazy;  /* J_LIST: in Python a generator or an iterator, which is true even if it is empty */
    bool given; /* J_BOOL, J_INT, J_FLOAT: made of given text; of strings each byte knows it: see jinja_marks */
    union {
        bool b;
        __int128 i;
        double f;
        struct jstr s; /* of J_UNDEFINED: the name that was not found */
        struct jlist *list;
        struct jdict *dict; /* J_NAMESPACE, too */
        struct jmacro *macro;
        const struct jbuiltin *function;
        struct jmethod *method;
        struct jloop *loop;
        struct jcycle *cycle;
    };
};

struct jlist {
    struct jval *items;
    size_t n, capacity;
    bool group; /* of groupby: its two elements are .grouper and .list, too */
};
struct jentry {
    struct jval key, value;
};
struct jdict { /* in the order of insertion; slots: an open hash table of indexes + 1, absent while there are few entries */
    struct jentry *entries;
    size_t n, capacity;
    uint32_t *slots;
    size_t n_slots;
};
struct jmethod {
    const struct jbuiltin *builtin;
    struct jval self;
};
struct jcycle { /* joiner: values[0] is the separator */
    struct jval values;
    size_t at;
};

/* ---- a run ---- */

struct jchunk;
struct jbuf { /* a text being built */
    char *p;
    size_t n, capacity;
};
struct jinja {
    jmp_buf out;
    struct sh_error *err;
    enum sh_code code; /* of the failure, valid behind longjmp */
    struct jchunk *chunks;
    size_t memory;
    uint64_t steps;
    uint32_t depth, line;
    struct jbuf *to; /* where output goes */
    struct jscope *scope;
    struct jdict *variables;
    struct jval captured; /* the text that a filter block works on */
    char *strings; /* the range of strings whose origin is kept: JINJA_MAX_MEMORY bytes, then as many marks; NULL: it is not */
    size_t strings_used, strings_ready; /* ready: bytes that can be written, and their marks */
    const struct tm *now;
};

void *jinja_alloc(struct jinja *s, size_t bytes);        /* zeroed, aligned for anything */
char *jinja_alloc_string(struct jinja *s, size_t bytes); /* for the bytes of strings; not given until they are marked so */
/* Fails the run: "line N: " and the message. */
_Noreturn void jinja_fail(struct jinja *s, const char *fmt, ...) SH_PRINTF(2, 3);
_Noreturn void jinja_limit(struct jinja *s, const char *what, uint64_t limit);
_Noreturn void jinja_raise(struct jinja *s, struct jstr message); /* raise_exception */
void jinja_spend(struct jinja *s, uint64_t steps);
void jinja_enter(struct jinja *s); /* one level deeper; s->depth-- leaves it */

void jbuf_add(struct jinja *s, struct jbuf *b, const char *p, size_t n);
static inline void jbuf_str(struct jinja *s, struct jbuf *b, struct jstr text) { jbuf_add(s, b, text.p, text.n); }
static inline void jbuf_char(struct jinja *s, struct jbuf *b, char c) { jbuf_add(s, b, &c, 1); }
void jbuf_fill(struct jinja *s, struct jbuf *b, struct jstr text, size_t times);
struct jval jbuf_value(const struct jbuf *b);

/* The marks of the bytes at p; NULL: they have none, and are not given. */
static inline uint8_t *jinja_marks(const struct jinja *s, const char *p) {
    const size_t at = (size_t)((uintptr_t)p - (uintptr_t)s->strings);
    return s->strings && at < JINJA_MAX_MEMORY ? (uint8_t *)s->strings + JINJA_MAX_MEMORY + at : NULL;
}
bool jinja_is_given(const struct jinja *s, struct jstr t); /* any byte of it */
void jbuf_mark(struct jinja *s, struct jbuf *b, size_t since); /* what was written from there on is given */
/* What was written from there on is made of t: all of it is given if any byte of t is. */
static inline void jbuf_made_of(struct jinja *s, struct jbuf *b, size_t since, struct jstr t) {
    if (s->strings && jinja_is_given(s, t)) jbuf_mark(s, b, since);
}

/* ---- making and looking at values (jinja_value.c) ---- */

static inline struct jval jv_none(void) { return (struct jval){.kind = J_NONE}; }
static inline struct jval jv_bool(bool b) { return (struct jval){.kind = J_BOOL, .b = b}; }
static inline struct jval jv_int(__int128 i) { return (struct jval){.kind = J_INT, .i = i}; }
static inline struct jval jv_float(double f) { return (struct jval){.kind = J_FLOAT, .f = f}; }
static inline struct jval jv_str(struct jstr s) { return (struct jval){.kind = J_STRING, .s = s}; }
static inline struct jval jv_text(const char *p, size_t n) { return jv_str((struct jstr){p, n}); }
static inline struct jval jv_undefined(struct jstr name) { return (struct jval){.kind = J_UNDEFINED, .s = name}; }
static inline bool jv_is_sequence(struct jval v) { return v.kind == J_LIST || v.kind == J_TUPLE; }
static inline bool jv_is_number(struct jval v) { return v.kind == J_INT || v.kind == J_FLOAT || v.kind == J_BOOL; }
static inline __int128 jv_integer(struct jval v) { return v.kind == J_BOOL ? v.b : v.i; }
static inline double jv_double(struct jval v) { return v.kind == J_FLOAT ? v.f : (double)jv_integer(v); }
static inline struct jval jv_made_of(struct jval number, bool given) { /* the number, which is given if what it is made of is */
    number.given = given;
    return number;
}

bool jstr_equal(struct jstr a, struct jstr b);
bool jstr_is(struct jstr a, const char *text);
struct jval jv_list(struct jinja *s, size_t capacity);
struct jval jv_lazy(struct jinja *s, size_t capacity);
struct jval jv_tuple(struct jinja *s, const struct jval *items, size_t n);
struct jval jv_dict(struct jinja *s);
void jlist_add(struct jinja *s, struct jlist *list, struct jval v);
struct jval *jdict_find(struct jinja *s, const struct jdict *d, struct jval key); /* NULL: not there */
struct jval *jdict_find_str(struct jinja *s, const struct jdict *d, struct jstr key);
void jdict_set(struct jinja *s, struct jdict *d, struct jval key, struct jval value);
bool jdict_remove(struct jinja *s, struct jdict *d, struct jval key, struct jval *value);
void jdict_merge(struct jinja *s, struct jdict *d, struct jval from); /* a dict, or pairs */
struct jval jdict_pairs(struct jinja *s, const struct jdict *d);

const char *jv_type(struct jval v); /* Python's name of the type */
bool jv_truth(struct jval v);
bool jv_equal(struct jinja *s, struct jval a, struct jval b);
int jv_compare(struct jinja *s, struct jval a, struct jval b, const char *op); /* < 0, 0, > 0; not comparable: fails, naming op */
bool jv_contains(struct jinja *s, struct jval container, struct jval v);
__int128 jv_length(struct jinja *s, struct jval v);
struct jval jv_iterate(struct jinja *s, struct jval v); /* the elements as a list; not iterable: fails */
void jv_print(struct jinja *s, struct jbuf *b, struct jval v); /* str() */
void jv_repr(struct jinja *s, struct jbuf *b, struct jval v);
struct jstr jv_string(struct jinja *s, struct jval v); /* str() as a string */
void jv_print_float(struct jinja *s, struct jbuf *b, double f);
size_t jv_int_digits(unsigned __int128 i, unsigned base, bool upper, char out[130]); /* no sign; returns how many */

/* Strings (jinja_string.c). Positions and counts are code points; bytes that are not UTF-8 count one each. */
uint32_t jstr_next(const char *p, const char *end, size_t *bytes); /* the code point at p < end; U+FFFD for what is none */
size_t jstr_length(struct jinja *s, struct jstr t);
size_t jstr_offset(struct jstr t, size_t characters); /* in bytes, at most t.n */
size_t jstr_find(struct jinja *s, struct jstr t, struct jstr what, size_t from); /* byte offset, SIZE_MAX: not there */
size_t jstr_rfind(struct jinja *s, struct jstr t, struct jstr what);
bool jstr_is_space(uint32_t c);
bool jstr_is_alpha(uint32_t c);
bool jstr_is_printable(uint32_t c);
bool jstr_is_title(struct jinja *s, struct jstr t); /* as str.title writes it, with a letter that has a case */
struct jstr jstr_strip(struct jstr t, const struct jstr *set, bool left, bool right); /* set NULL: white space */
struct jstr jstr_replace(struct jinja *s, struct jstr t, struct jstr what, struct jstr with, __int128 at_most);
struct jstr jstr_upper(struct jinja *s, struct jstr t);
struct jstr jstr_lower(struct jinja *s, struct jstr t);
struct jstr jstr_fold(struct jinja *s, struct jstr t); /* lower case for comparison */
struct jstr jstr_swapcase(struct jinja *s, struct jstr t);
struct jstr jstr_capitalize(struct jinja *s, struct jstr t);
struct jstr jstr_title(struct jinja *s, struct jstr t, bool python); /* false: the filter's idea of a word */
struct jstr jstr_expand_tabs(struct jinja *s, struct jstr t, __int128 width);
struct jval jstr_split_lines(struct jinja *s, struct jstr t, bool keep_ends);
/* align: -1 left, 0 centre, 1 right */
struct jstr jstr_pad(struct jinja *s, struct jstr t, __int128 width, struct jstr fill, int align);

/* JSON (jinja_json.c) */
struct jdict *jinja_read_json(struct jinja *s, const char *text, size_t n); /* an object, or the run fails */
struct jjson_style {
    struct jstr indent; /* of one level; p NULL: all on one line */
    struct jstr item, key; /* separators */
    bool ascii, sort;
};
void jinja_write_json(struct jinja *s, struct jbuf *b, struct jval v, const struct jjson_style *style, uint32_t level);

/* Formats (jinja_format.c) */
struct jargs;
struct jval jinja_percent(struct jinja *s, struct jstr format, const struct jval *values, size_t n, const struct jdict *named);
struct jval jinja_brace(struct jinja *s, struct jstr format, const struct jargs *args);
/* Parses all of t: as Python's int(text, base) and float(text). */
bool jinja_parse_int(struct jstr t, unsigned base, __int128 *out);
bool jinja_parse_float(struct jstr t, double *out);

/* ---- what templates call ---- */

struct jkwarg {
    struct jstr name;
    struct jval value;
};
struct jargs {
    const struct jval *items;
    size_t n;
    const struct jkwarg *named;
    size_t n_named;
};
enum { JINJA_PARAMS_MAX = 8 };
/* `self`: the filter's input, the tested value, the method's object. a: one value for each name in params, J_ABSENT where it was
 * not given; params NULL: a is NULL and args is looked at instead. */
struct jbuiltin {
    const char *name, *params;
    uint32_t required; /* so many of params must be given */
    struct jval (*call)(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args);
};
/* All end with an entry whose name is NULL. */
extern const struct jbuiltin jinja_filters[], jinja_collection_filters[], jinja_tests[], jinja_globals[];
extern const struct jbuiltin jinja_loop_methods[];
const struct jbuiltin *jinja_find(const struct jbuiltin *table, struct jstr name);
const struct jbuiltin *jinja_find_filter(struct jstr name);
const struct jbuiltin *jinja_find_method(struct jval v, struct jstr name);
struct jval jinja_call_builtin(struct jinja *s, const struct jbuiltin *b, struct jval self, const struct jargs *args);
struct jval jinja_call(struct jinja *s, struct jval callee, const struct jargs *args);
bool jinja_is_callable(struct jval v);
struct jval jinja_attribute(struct jinja *s, struct jval v, struct jstr name); /* v.name */
struct jval jinja_item(struct jinja *s, struct jval v, struct jval key);       /* v[key] */
struct jval jinja_path(struct jinja *s, struct jval v, struct jval path);      /* "a.b.0" as attribute= takes it, or an index */
struct jval jinja_add(struct jinja *s, struct jval a, struct jval b);          /* a + b */

/* Arguments: what is not of the kind fails, naming the argument. Absent ones give `otherwise`. */
struct jstr jinja_arg_str(struct jinja *s, struct jval v, const char *name);
__int128 jinja_arg_int(struct jinja *s, struct jval v, const char *name, __int128 otherwise);
bool jinja_arg_bool(struct jval v, bool otherwise);

/* ---- tokens and tree ---- */

enum jtoken_kind { T_END, T_DATA, T_VAR_BEGIN, T_VAR_END, T_BLOCK_BEGIN, T_BLOCK_END, T_NAME, T_CONST, T_OP };
#define JOP(a, b) ((uint32_t)(uint8_t)(a) | (uint32_t)(uint8_t)(b) << 8) /* an operator of one (b = 0) or two characters */
struct jtoken {
    enum jtoken_kind kind;
    uint32_t line, op;
    struct jstr text;   /* DATA, NAME; as written for the others */
    struct jval value;  /* CONST */
};
struct jtoken *jinja_lex(struct jinja *s, const char *text, size_t n); /* ends with T_END */

enum jnode_kind {
    N_DATA, N_OUTPUT, N_DO, N_IF, N_FOR, N_SET, N_SET_BLOCK, N_MACRO, N_CALL_BLOCK, N_FILTER_BLOCK, N_WITH, N_BREAK, N_CONTINUE,
    N_CONST, N_NAME, N_LIST, N_TUPLE, N_DICT, N_ATTRIBUTE, N_ITEM, N_SLICE, N_CALL, N_FILTER, N_TEST, N_NOT, N_NEGATE, N_PLUS,
    N_BINARY, N_AND, N_OR, N_CONDITION, N_COMPARE, N_CONCAT, N_CAPTURED, N_SPREAD,
};
struct jnamed { /* name=value */
    struct jstr name;
    struct jnode *value; /* of a macro's parameter: its default, or NULL */
};
/* What the fields hold, by kind (a list of statements is linked by next):
 *   N_DATA name; N_OUTPUT, N_DO a; N_IF items: condition and body in turns, b else; N_SET a target, b value;
 *   N_FOR a target, b iterable, c test, body, other (`else`), flag: recursive; N_SET_BLOCK a target, b filters or NULL, body;
 *   N_MACRO name, named, body, uses; N_CALL_BLOCK a the call, b an N_MACRO; N_FILTER_BLOCK b, body;
 *   N_WITH items: target and value in turns, body;
 *   N_CONST value; N_NAME name; N_LIST, N_TUPLE items; N_DICT items: key and value in turns; N_ATTRIBUTE a, name; N_ITEM a, b;
 *   N_SLICE a, items[3] (NULL: not given); N_CALL a, items, named (one without a name, n 0, is **value);
 *   N_FILTER, N_TEST a, builtin (NULL: no such name), name, items, named; N_NOT, N_NEGATE, N_PLUS a; N_BINARY op, a, b;
 *   N_AND, N_OR a, b; N_CONDITION a if b else c; N_COMPARE a, items with ops; N_CONCAT items;
 *   N_SPREAD a, among the items of a call: *a */
struct jnode {
    enum jnode_kind kind;
    uint32_t line, op;
    bool flag;
    uint8_t uses; /* of a macro: JINJA_USES_ */
    struct jnode *a, *b, *c, *body, *other, *next;
    struct jnode **items;
    uint32_t *ops;
    size_t n;
    struct jnamed *named;
    size_t n_named;
    struct jstr name;
    struct jval value;
    const struct jbuiltin *builtin;
};
enum { JINJA_USES_VARARGS = 1, JINJA_USES_KWARGS = 2 };
enum { JINJA_IN = JOP('i', 'n'), JINJA_NOT_IN = JOP('n', 'i') }; /* operators of N_COMPARE besides < <= > >= == != */

struct jmacro {
    const struct jnode *node;
    struct jscope *scope; /* where it was defined */
};

struct jnode *jinja_parse(struct jinja *s, const struct jtoken *tokens);
void jinja_execute(struct jinja *s, const struct jnode *statements); /* the whole template, into s->to */

#endif
