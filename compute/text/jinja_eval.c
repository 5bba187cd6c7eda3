/* jinja_eval.c - runs the tree: expressions to values, statements to text. */
#include "compute/text/jinja.h"

#include <math.h>

struct jvariable {
    struct jstr name;
    struct jval value;
};
struct jscope { /* names that were set here, newest search first: blocks set few */
    struct jscope *parent;
    struct jvariable *variables;
    size_t n, capacity;
};
struct jloop {
    const struct jnode *node;
    struct jscope *scope; /* around the loop */
    const struct jval *items;
    size_t n, index;
    uint32_t level;       /* 1: not within itself */
    struct jval *changed; /* what loop.changed saw last */
};
enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

static struct jval evaluate(struct jinja *s, const struct jnode *n);
static enum flow run(struct jinja *s, const struct jnode *n);

/* ---- scopes ---- */

static struct jscope *push_scope(struct jinja *s, struct jscope *parent) {
    struct jscope *scope = jinja_alloc(s, sizeof *scope);
    scope->parent = parent;
    return scope;
}

static void set_variable(struct jinja *s, struct jscope *scope, struct jstr name, struct jval value) {
    jinja_spend(s, scope->n / 8);
    for (size_t i = 0; i < scope->n; i++) {
        if (jstr_equal(scope->variables[i].name, name)) {
            scope->variables[i].value = value;
            return;
        }
    }
    if (scope->n == scope->capacity) {
        const size_t capacity = scope->capacity ? scope->capacity * 2 : 4;
        struct jvariable *grown = jinja_alloc(s, capacity * sizeof *grown);
        if (scope->n) memcpy(grown, scope->variables, scope->n * sizeof *grown);
        scope->variables = grown;
        scope->capacity = capacity;
    }
    scope->variables[scope->n++] = (struct jvariable){name, value};
}

static struct jval look_up(struct jinja *s, struct jstr name) {
    for (const struct jscope *scope = s->scope; scope; scope = scope->parent) {
        jinja_spend(s, 1 + scope->n / 8);
        for (size_t i = 0; i < scope->n; i++) {
            if (jstr_equal(scope->variables[i].name, name)) return scope->variables[i].value;
        }
    }
    const struct jval *given = jdict_find_str(s, s->variables, name);
    if (given) return *given;
    const struct jbuiltin *global = jinja_find(jinja_globals, name);
    return global ? (struct jval){.kind = J_FUNCTION, .function = global} : jv_undefined(name);
}

/* ---- attributes and items ---- */

static struct jval loop_attribute(struct jinja *s, const struct jloop *loop, struct jstr name) {
    const size_t i = loop->index, n = loop->n;
    if (jstr_is(name, "index")) return jv_int((__int128)i + 1);
    if (jstr_is(name, "index0")) return jv_int((__int128)i);
    if (jstr_is(name, "revindex")) return jv_int((__int128)(n - i));
    if (jstr_is(name, "revindex0")) return jv_int((__int128)(n - i - 1));
    if (jstr_is(name, "first")) return jv_bool(i == 0);
    if (jstr_is(name, "last")) return jv_bool(i + 1 == n);
    if (jstr_is(name, "length")) return jv_int((__int128)n);
    if (jstr_is(name, "depth")) return jv_int(loop->level);
    if (jstr_is(name, "depth0")) return jv_int((__int128)loop->level - 1);
    if (jstr_is(name, "previtem") && i > 0) return loop->items[i - 1];
    if (jstr_is(name, "nextitem") && i + 1 < n) return loop->items[i + 1];
    const struct jval self = {.kind = J_LOOP, .loop = (struct jloop *)loop};
    const struct jbuiltin *method = jinja_find_method(self, name);
    if (!method) return jv_undefined(name);
    struct jmethod *bound = jinja_alloc(s, sizeof *bound);
    *bound = (struct jmethod){method, self};
    return (struct jval){.kind = J_METHOD, .method = bound};
}

static struct jval macro_attribute(struct jinja *s, const struct jmacro *macro, struct jstr name) {
    const struct jnode *n = macro->node;
    if (jstr_is(name, "name")) return jv_str(n->name);
    if (jstr_is(name, "catch_kwargs")) return jv_bool((n->uses & JINJA_USES_KWARGS) != 0);
    if (jstr_is(name, "catch_varargs")) return jv_bool((n->uses & JINJA_USES_VARARGS) != 0);
    if (!jstr_is(name, "arguments")) return jv_undefined(name);
    const struct jval list = jv_tuple(s, NULL, 0);
    for (size_t i = 0; i < n->n_named; i++) jlist_add(s, list.list, jv_str(n->named[i].name));
    return list;
}

static struct jval method_of(struct jinja *s, struct jval v, struct jstr name) { /* undefined: none of that name */
    const struct jbuiltin *method = jinja_find_method(v, name);
    if (!method) return jv_undefined(name);
    struct jmethod *bound = jinja_alloc(s, sizeof *bound);
    *bound = (struct jmethod){method, v};
    return (struct jval){.kind = J_METHOD, .method = bound};
}

_Noreturn static void undefined_used(struct jinja *s, struct jval v) {
    jinja_fail(s, "'%.*s' is undefined", (int)sh_min_u64(v.s.n, 80), v.s.p);
}

struct jval jinja_attribute(struct jinja *s, struct jval v, struct jstr name) {
    if (v.kind == J_UNDEFINED) undefined_used(s, v);
    if (v.kind == J_LOOP) return loop_attribute(s, v.loop, name);
    if (v.kind == J_MACRO) return macro_attribute(s, v.macro, name);
    if (v.kind == J_CYCLER && jstr_is(name, "current")) return v.cycle->values.list->items[v.cycle->at % v.cycle->values.list->n];
    const struct jval method = method_of(s, v, name);
    if (method.kind != J_UNDEFINED) return method;
    if (v.kind == J_TUPLE && v.list->group && jstr_is(name, "grouper")) return v.list->items[0];
    if (v.kind == J_TUPLE && v.list->group && jstr_is(name, "list")) return v.list->items[1];
    const struct jval *found = v.kind == J_DICT || v.kind == J_NAMESPACE ? jdict_find_str(s, v.dict, name) : NULL;
    return found ? *found : method;
}

/* Python's index: from the end if negative. False: beyond either end. */
static bool element(__int128 index, size_t n, size_t *out) {
    if (index < 0) index += (__int128)n;
    if (index < 0 || index >= (__int128)n) return false;
    *out = (size_t)index;
    return true;
}

struct jval jinja_item(struct jinja *s, struct jval v, struct jval key) {
    size_t at, bytes;
    const struct jval missing = jv_undefined(key.kind == J_STRING ? key.s : JSTR("an element"));
    if (v.kind == J_UNDEFINED) undefined_used(s, v);
    if (v.kind == J_DICT) {
        const bool hashable = key.kind == J_STRING || key.kind == J_NONE || jv_is_number(key) || key.kind == J_TUPLE;
        const struct jval *found = hashable ? jdict_find(s, v.dict, key) : NULL;
        if (found) return *found;
    }
    if (jv_is_sequence(v) && (key.kind == J_INT || key.kind == J_BOOL))
        return element(jv_integer(key), v.list->n, &at) ? v.list->items[at] : missing;
    if (v.kind == J_STRING && (key.kind == J_INT || key.kind == J_BOOL)) {
        if (!element(jv_integer(key), jstr_length(s, v.s), &at)) return missing;
        at = jstr_offset(v.s, at);
        jstr_next(v.s.p + at, v.s.p + v.s.n, &bytes);
        return jv_text(v.s.p + at, bytes);
    }
    return key.kind == J_STRING ? jinja_attribute(s, v, key.s) : missing;
}

struct jval jinja_path(struct jinja *s, struct jval v, struct jval path) {
    if (path.kind != J_STRING) return jinja_item(s, v, path);
    for (size_t begin = 0, end; begin <= path.s.n; begin = end + 1) {
        for (end = begin; end < path.s.n && path.s.p[end] != '.'; end++) {
        }
        const struct jstr part = {path.s.p + begin, end - begin};
        __int128 index;
        const bool number = part.n && part.p[0] >= '0' && part.p[0] <= '9' && jinja_parse_int(part, 10, &index);
        v = jinja_item(s, v, number ? jv_int(index) : jv_str(part));
    }
    return v;
}

/* A part of a slice as Python clips it; otherwise where it is not given. */
static __int128 slice_part(struct jinja *s, const struct jnode *n, __int128 length, __int128 low, __int128 otherwise) {
    const struct jval v = n ? evaluate(s, n) : jv_none();
    if (v.kind == J_NONE) return otherwise;
    if (v.kind != J_INT && v.kind != J_BOOL) jinja_fail(s, "slice: found %s, expected an integer", jv_type(v));
    __int128 i = jv_integer(v);
    if (i < 0) i += length;
    const __int128 high = length + low; /* low is -1 for a negative step, and the highest index length - 1 */
    return i < low ? low : i > high ? high : i;
}

static struct jval slice(struct jinja *s, const struct jnode *n) {
    struct jval v = evaluate(s, n->a);
    if (v.kind == J_UNDEFINED) undefined_used(s, v);
    const bool string = v.kind == J_STRING;
    if (!string && !jv_is_sequence(v)) jinja_fail(s, "found %s, expected a list or a string to slice", jv_type(v));
    const struct jval by = n->items[2] ? evaluate(s, n->items[2]) : jv_none();
    if (by.kind != J_NONE && (by.kind != J_INT || by.i == 0)) jinja_fail(s, "slice: the step is no integer or 0");
    const __int128 step = by.kind == J_NONE ? 1 : by.i;
    const __int128 length = jv_length(s, v), low = step < 0 ? -1 : 0;
    const __int128 from = slice_part(s, n->items[0], length, low, step < 0 ? length - 1 : 0);
    const __int128 to = slice_part(s, n->items[1], length, low, step < 0 ? -1 : length);
    if (string && step == 1) {
        if (from >= to) return jv_text("", 0);
        const size_t begin = jstr_offset(v.s, (size_t)from);
        const struct jstr rest = {v.s.p + begin, v.s.n - begin};
        return jv_text(rest.p, jstr_offset(rest, (size_t)(to - from)));
    }
    const struct jval items = jv_iterate(s, v);
    struct jval out = v.kind == J_TUPLE ? jv_tuple(s, NULL, 0) : jv_list(s, 0);
    for (__int128 i = from; step < 0 ? i > to : i < to;) {
        jinja_spend(s, 1);
        jlist_add(s, out.list, items.list->items[i]);
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    if (!string) return out;
    struct jbuf b = {0};
    for (size_t i = 0; i < out.list->n; i++) jbuf_str(s, &b, out.list->items[i].s);
    return jbuf_value(&b);
}

/* ---- arithmetic ---- */

_Noreturn static void no_meaning(struct jinja *s, const char *op, struct jval a, struct jval b) {
    if (a.kind == J_UNDEFINED) undefined_used(s, a);
    if (b.kind == J_UNDEFINED) undefined_used(s, b);
    jinja_fail(s, "'%s' has no meaning between %s and %s", op, jv_type(a), jv_type(b));
}

_Noreturn static void too_large(struct jinja *s) { jinja_fail(s, "an integer would need more than 127 bits"); }

static struct jval concatenate_lists(struct jinja *s, struct jval a, struct jval b) {
    struct jval out = jv_list(s, a.list->n + b.list->n);
    out.kind = a.kind;
    jinja_spend(s, a.list->n + b.list->n);
    for (size_t i = 0; i < a.list->n; i++) jlist_add(s, out.list, a.list->items[i]);
    for (size_t i = 0; i < b.list->n; i++) jlist_add(s, out.list, b.list->items[i]);
    return out;
}

static struct jval sum_of(struct jinja *s, struct jval a, struct jval b) {
    __int128 sum;
    struct jbuf text = {0};
    if (a.kind == J_STRING && b.kind == J_STRING) {
        jv_print(s, &text, a);
        jv_print(s, &text, b);
        return jbuf_value(&text);
    }
    if (jv_is_sequence(a) && a.kind == b.kind) return concatenate_lists(s, a, b);
    if (!jv_is_number(a) || !jv_is_number(b)) no_meaning(s, "+", a, b);
    if (a.kind == J_FLOAT || b.kind == J_FLOAT) return jv_float(jv_double(a) + jv_double(b));
    if (__builtin_add_overflow(jv_integer(a), jv_integer(b), &sum)) too_large(s);
    return jv_int(sum);
}

struct jval jinja_add(struct jinja *s, struct jval a, struct jval b) {
    const struct jval v = sum_of(s, a, b);
    return jv_is_number(v) ? jv_made_of(v, a.given || b.given) : v;
}

static struct jval repeat(struct jinja *s, struct jval v, struct jval times) {
    const __int128 count = jv_integer(times);
    const size_t n = count <= 0 ? 0 : count > JINJA_MAX_OUTPUT ? JINJA_MAX_OUTPUT + (size_t)1 : (size_t)count;
    struct jbuf b = {0};
    if (v.kind == J_STRING) {
        jbuf_fill(s, &b, v.s, n);
        return jbuf_value(&b);
    }
    struct jval out = jv_list(s, 0);
    out.kind = v.kind;
    for (size_t i = 0; i < n && v.list->n; i++) {
        jinja_spend(s, v.list->n);
        for (size_t k = 0; k < v.list->n; k++) jlist_add(s, out.list, v.list->items[k]);
    }
    return out;
}

static struct jval multiply(struct jinja *s, struct jval a, struct jval b) {
    __int128 product;
    const bool a_whole = a.kind == J_INT || a.kind == J_BOOL, b_whole = b.kind == J_INT || b.kind == J_BOOL;
    if ((a.kind == J_STRING || jv_is_sequence(a)) && b_whole) return repeat(s, a, b);
    if ((b.kind == J_STRING || jv_is_sequence(b)) && a_whole) return repeat(s, b, a);
    if (!jv_is_number(a) || !jv_is_number(b)) no_meaning(s, "*", a, b);
    if (!a_whole || !b_whole) return jv_float(jv_double(a) * jv_double(b));
    if (__builtin_mul_overflow(jv_integer(a), jv_integer(b), &product)) too_large(s);
    return jv_int(product);
}

/* Division rounds down, and the remainder has the divisor's sign. */
static struct jval divide(struct jinja *s, struct jval a, struct jval b, uint32_t op) {
    if (!jv_is_number(a) || !jv_is_number(b)) no_meaning(s, op == '/' ? "/" : op == '%' ? "%" : "//", a, b);
    if (jv_double(b) == 0) jinja_fail(s, "division by zero");
    if (op == '/') return jv_float(jv_double(a) / jv_double(b));
    if (a.kind == J_FLOAT || b.kind == J_FLOAT) {
        const double x = jv_double(a), y = jv_double(b);
        double rest = fmod(x, y);
        if (rest != 0 && (rest < 0) != (y < 0)) rest += y;
        return jv_float(op == '%' ? rest : round((x - rest) / y));
    }
    const __int128 x = jv_integer(a), y = jv_integer(b);
    __int128 quotient;
    if (y == -1 && op == '%') return jv_int(0);
    if (y == -1) {
        if (__builtin_sub_overflow((__int128)0, x, &quotient)) too_large(s);
        return jv_int(quotient);
    }
    __int128 rest = x % y;
    quotient = x / y;
    if (rest != 0 && (rest < 0) != (y < 0)) {
        rest += y;
        quotient--;
    }
    return jv_int(op == '%' ? rest : quotient);
}

static struct jval power(struct jinja *s, struct jval a, struct jval b) {
    if (!jv_is_number(a) || !jv_is_number(b)) no_meaning(s, "**", a, b);
    if (a.kind == J_FLOAT || b.kind == J_FLOAT || jv_integer(b) < 0) {
        if (jv_double(a) == 0 && jv_double(b) < 0) jinja_fail(s, "0 to a negative power");
        return jv_float(pow(jv_double(a), jv_double(b)));
    }
    __int128 result = 1, base = jv_integer(a);
    for (__int128 e = jv_integer(b); e > 0; e >>= 1) {
        if ((e & 1) && __builtin_mul_overflow(result, base, &result)) too_large(s);
        if (e > 1 && __builtin_mul_overflow(base, base, &base)) too_large(s);
    }
    return jv_int(result);
}

static struct jval subtract(struct jinja *s, struct jval a, struct jval b) {
    __int128 difference;
    if (!jv_is_number(a) || !jv_is_number(b)) no_meaning(s, "-", a, b);
    if (a.kind == J_FLOAT || b.kind == J_FLOAT) return jv_float(jv_double(a) - jv_double(b));
    if (__builtin_sub_overflow(jv_integer(a), jv_integer(b), &difference)) too_large(s);
    return jv_int(difference);
}

static struct jval remainder_or_format(struct jinja *s, struct jval a, struct jval b) {
    if (a.kind != J_STRING) return divide(s, a, b, '%');
    if (b.kind == J_TUPLE) return jinja_percent(s, a.s, b.list->items, b.list->n, NULL);
    return jinja_percent(s, a.s, &b, 1, b.kind == J_DICT ? b.dict : NULL);
}

static struct jval operate(struct jinja *s, uint32_t op, struct jval a, struct jval b) {
    switch (op) {
    case '+': return jinja_add(s, a, b);
    case '-': return subtract(s, a, b);
    case '*': return multiply(s, a, b);
    case '%': return remainder_or_format(s, a, b);
    case JOP('*', '*'): return power(s, a, b);
    default: return divide(s, a, b, op);
    }
}

static struct jval binary(struct jinja *s, const struct jnode *n) {
    const struct jval a = evaluate(s, n->a), b = evaluate(s, n->b);
    s->line = n->line;
    const struct jval v = operate(s, n->op, a, b);
    return jv_is_number(v) ? jv_made_of(v, a.given || b.given) : v;
}

static struct jval negate(struct jinja *s, struct jval v) {
    if (v.kind == J_FLOAT) return jv_made_of(jv_float(-v.f), v.given);
    return jv_made_of(subtract(s, jv_int(0), v), v.given);
}

static bool holds(struct jinja *s, uint32_t op, struct jval a, struct jval b) {
    switch (op) {
    case JOP('=', '='): return jv_equal(s, a, b);
    case JOP('!', '='): return !jv_equal(s, a, b);
    case JINJA_IN: return jv_contains(s, b, a);
    case JINJA_NOT_IN: return !jv_contains(s, b, a);
    default: break;
    }
    if (a.kind == J_UNDEFINED) undefined_used(s, a);
    if (b.kind == J_UNDEFINED) undefined_used(s, b);
    const char name[] = {(char)(op & 0xFF), (char)(op >> 8), 0};
    if ((a.kind == J_FLOAT && isnan(a.f)) || (b.kind == J_FLOAT && isnan(b.f))) return false;
    const int order = jv_compare(s, a, b, name);
    return op == '<' ? order < 0 : op == '>' ? order > 0 : op == JOP('<', '=') ? order <= 0 : order >= 0;
}

static struct jval compare(struct jinja *s, const struct jnode *n) {
    struct jval a = evaluate(s, n->a);
    for (size_t i = 0; i < n->n; i++) {
        const struct jval b = evaluate(s, n->items[i]);
        s->line = n->line;
        if (!holds(s, n->ops[i], a, b)) return jv_bool(false);
        a = b;
    }
    return jv_bool(true);
}

/* ---- calls ---- */

/* **value brings as many named arguments as it has entries. */
static struct jkwarg *evaluate_named(struct jinja *s, const struct jnode *n, size_t *count) {
    struct jval *values = jinja_alloc(s, n->n_named * sizeof *values);
    *count = 0;
    for (size_t i = 0; i < n->n_named; i++) {
        values[i] = evaluate(s, n->named[i].value);
        const bool spread = n->named[i].name.n == 0;
        if (spread && values[i].kind != J_DICT) jinja_fail(s, "found %s behind **, expected a dict", jv_type(values[i]));
        *count += spread ? values[i].dict->n : 1;
    }
    struct jkwarg *named = jinja_alloc(s, *count * sizeof *named);
    size_t at = 0;
    for (size_t i = 0; i < n->n_named; i++) {
        if (n->named[i].name.n) named[at++] = (struct jkwarg){n->named[i].name, values[i]};
        for (size_t k = 0; !n->named[i].name.n && k < values[i].dict->n; k++) {
            const struct jentry *e = &values[i].dict->entries[k];
            named[at++] = (struct jkwarg){jinja_arg_str(s, e->key, "a key behind **"), e->value};
        }
    }
    return named;
}

static struct jargs evaluate_arguments(struct jinja *s, const struct jnode *n) {
    struct jargs args = {0};
    const struct jval items = n->n ? jv_list(s, n->n) : jv_none();
    for (size_t i = 0; i < n->n; i++) {
        const bool spread = n->items[i]->kind == N_SPREAD;
        const struct jval v = evaluate(s, spread ? n->items[i]->a : n->items[i]);
        const struct jval more = spread ? jv_iterate(s, v) : jv_none();
        if (!spread) jlist_add(s, items.list, v);
        for (size_t k = 0; spread && k < more.list->n; k++) jlist_add(s, items.list, more.list->items[k]);
    }
    if (n->n) args = (struct jargs){.items = items.list->items, .n = items.list->n};
    if (n->n_named) args.named = evaluate_named(s, n, &args.n_named);
    s->line = n->line;
    return args;
}

/* Runs statements in a scope, and gives their text. */
static struct jval capture(struct jinja *s, const struct jnode *body, struct jscope *scope) {
    struct jbuf text = {0}, *const outer_text = s->to;
    struct jscope *const outer = s->scope;
    s->to = &text;
    s->scope = scope;
    run(s, body);
    s->scope = outer;
    s->to = outer_text;
    return jbuf_value(&text);
}

static const struct jval *named_argument(const struct jargs *args, struct jstr name) {
    for (size_t i = 0; i < args->n_named; i++) {
        if (jstr_equal(args->named[i].name, name)) return &args->named[i].value;
    }
    return NULL;
}

static bool is_parameter(const struct jnode *macro, struct jstr name) {
    for (size_t i = 0; i < macro->n_named; i++) {
        if (jstr_equal(macro->named[i].name, name)) return true;
    }
    return false;
}

/* What no parameter takes goes to varargs and kwargs, if the body looks at them. */
static void bind_rest(struct jinja *s, const struct jnode *n, const struct jargs *args, struct jscope *scope) {
    const struct jval rest = jv_dict(s);
    const size_t taken = args->n < n->n_named ? args->n : n->n_named;
    for (size_t i = 0; i < args->n_named; i++) {
        const struct jkwarg *a = &args->named[i];
        if (is_parameter(n, a->name)) continue;
        if (jstr_is(a->name, "caller")) set_variable(s, scope, a->name, a->value);
        else if (n->uses & JINJA_USES_KWARGS) jdict_set(s, rest.dict, jv_str(a->name), a->value);
        else jinja_fail(s, "macro %.*s has no argument %.*s", (int)n->name.n, n->name.p, (int)a->name.n, a->name.p);
    }
    if (n->uses & JINJA_USES_KWARGS) set_variable(s, scope, JSTR("kwargs"), rest);
    if (n->uses & JINJA_USES_VARARGS)
        set_variable(s, scope, JSTR("varargs"), jv_tuple(s, args->items ? args->items + taken : NULL, args->n - taken));
    else if (args->n > taken)
        jinja_fail(s, "macro %.*s takes %zu arguments, found %zu", (int)n->name.n, n->name.p, n->n_named, args->n);
}

static struct jval call_macro(struct jinja *s, const struct jmacro *macro, const struct jargs *args) {
    const struct jnode *n = macro->node;
    struct jscope *scope = push_scope(s, macro->scope), *const outer = s->scope;
    jinja_spend(s, (args->n_named + 1) * (n->n_named / 8 + 1));
    for (size_t i = 0; i < n->n_named; i++) {
        const struct jnamed *parameter = &n->named[i];
        const struct jval *named = named_argument(args, parameter->name);
        if (named && i < args->n) jinja_fail(s, "argument %.*s is given twice", (int)parameter->name.n, parameter->name.p);
        struct jval v = named ? *named : i < args->n ? args->items[i] : jv_undefined(parameter->name);
        if (!named && i >= args->n && parameter->value) {
            s->scope = scope;
            v = evaluate(s, parameter->value);
            s->scope = outer;
        }
        set_variable(s, scope, parameter->name, v);
    }
    bind_rest(s, n, args, scope);
    return capture(s, n->body, scope);
}

static void run_loop(struct jinja *s, const struct jnode *n, struct jval over, struct jscope *scope, uint32_t level);

static struct jval call_loop(struct jinja *s, const struct jloop *loop, const struct jargs *args) {
    if (!loop->node->flag) jinja_fail(s, "loop() is called in a loop that is not recursive");
    if (args->n != 1 || args->n_named) jinja_fail(s, "loop() takes one argument");
    struct jbuf text = {0}, *const outer = s->to;
    s->to = &text;
    run_loop(s, loop->node, args->items[0], loop->scope, loop->level + 1);
    s->to = outer;
    return jbuf_value(&text);
}

static struct jval call_joiner(struct jcycle *joiner) { return joiner->at++ ? joiner->values : jv_text("", 0); }

bool jinja_is_callable(struct jval v) {
    return v.kind == J_MACRO || v.kind == J_FUNCTION || v.kind == J_METHOD || v.kind == J_LOOP || v.kind == J_JOINER;
}

struct jval jinja_call(struct jinja *s, struct jval callee, const struct jargs *args) {
    struct jval result;
    jinja_enter(s);
    switch (callee.kind) {
    case J_UNDEFINED: undefined_used(s, callee);
    case J_MACRO: result = call_macro(s, callee.macro, args); break;
    case J_FUNCTION: result = jinja_call_builtin(s, callee.function, jv_none(), args); break;
    case J_METHOD: result = jinja_call_builtin(s, callee.method->builtin, callee.method->self, args); break;
    case J_LOOP: result = call_loop(s, callee.loop, args); break;
    case J_JOINER: result = call_joiner(callee.cycle); break;
    default: jinja_fail(s, "a value of type %s cannot be called", jv_type(callee));
    }
    s->depth--;
    return result;
}

/* loop.changed(...) and loop.cycle(...): methods whose object only this file knows. */
static struct jval loop_changed(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    const struct jval now = jv_tuple(s, args->items, args->n);
    (void)a;
    const bool same = self.loop->changed && jv_equal(s, *self.loop->changed, now);
    if (!self.loop->changed) self.loop->changed = jinja_alloc(s, sizeof now);
    *self.loop->changed = now;
    return jv_bool(!same);
}

static struct jval loop_cycle(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)a;
    if (!args->n) jinja_fail(s, "loop.cycle: found no values, expected at least one");
    return args->items[self.loop->index % args->n];
}

const struct jbuiltin jinja_loop_methods[] = {{"changed", NULL, 0, loop_changed}, {"cycle", NULL, 0, loop_cycle}, {NULL}};

/* ---- expressions ---- */

static struct jval collection(struct jinja *s, const struct jnode *n) {
    struct jval v = jv_list(s, n->n);
    if (n->kind == N_TUPLE) v.kind = J_TUPLE;
    for (size_t i = 0; i < n->n; i++) jlist_add(s, v.list, evaluate(s, n->items[i]));
    return v;
}

static struct jval dict(struct jinja *s, const struct jnode *n) {
    const struct jval v = jv_dict(s);
    for (size_t i = 0; i < n->n; i += 2) {
        const struct jval key = evaluate(s, n->items[i]);
        jdict_set(s, v.dict, key, evaluate(s, n->items[i + 1]));
    }
    return v;
}

static struct jval concatenate(struct jinja *s, const struct jnode *n) {
    struct jbuf b = {0};
    for (size_t i = 0; i < n->n; i++) jv_print(s, &b, evaluate(s, n->items[i]));
    return jbuf_value(&b);
}

static struct jval filter_or_test(struct jinja *s, const struct jnode *n) {
    const struct jval self = evaluate(s, n->a);
    s->line = n->line;
    if (!n->builtin) {
        jinja_fail(s, "found %s '%.*s', which does not exist", n->kind == N_FILTER ? "filter" : "test",
                   (int)sh_min_u64(n->name.n, 60), n->name.p);
    }
    const struct jargs args = evaluate_arguments(s, n);
    return jinja_call_builtin(s, n->builtin, self, &args);
}

static struct jval call(struct jinja *s, const struct jnode *n) {
    const struct jval callee = evaluate(s, n->a);
    s->line = n->line;
    if (callee.kind == J_UNDEFINED) undefined_used(s, callee);
    const struct jargs args = evaluate_arguments(s, n);
    return jinja_call(s, callee, &args);
}

static struct jval condition(struct jinja *s, const struct jnode *n) {
    if (jv_truth(evaluate(s, n->b))) return evaluate(s, n->a);
    return n->c ? evaluate(s, n->c) : jv_undefined(JSTR("the other case of `if`"));
}

static struct jval item(struct jinja *s, const struct jnode *n) {
    const struct jval of = evaluate(s, n->a), key = evaluate(s, n->b);
    s->line = n->line;
    return jinja_item(s, of, key);
}

static struct jval attribute(struct jinja *s, const struct jnode *n) {
    const struct jval of = evaluate(s, n->a);
    s->line = n->line;
    return jinja_attribute(s, of, n->name);
}

static struct jval evaluate_node(struct jinja *s, const struct jnode *n) {
    struct jval v;
    switch (n->kind) {
    case N_CONST: return n->value;
    case N_NAME: return look_up(s, n->name);
    case N_LIST:
    case N_TUPLE: return collection(s, n);
    case N_DICT: return dict(s, n);
    case N_ATTRIBUTE: return attribute(s, n);
    case N_ITEM: return item(s, n);
    case N_SLICE: return slice(s, n);
    case N_CALL: return call(s, n);
    case N_FILTER:
    case N_TEST: return filter_or_test(s, n);
    case N_NOT: return jv_bool(!jv_truth(evaluate(s, n->a)));
    case N_NEGATE: return negate(s, evaluate(s, n->a));
    case N_PLUS: return jinja_add(s, jv_int(0), evaluate(s, n->a));
    case N_BINARY: return binary(s, n);
    case N_AND: v = evaluate(s, n->a); return jv_truth(v) ? evaluate(s, n->b) : v;
    case N_OR: v = evaluate(s, n->a); return jv_truth(v) ? v : evaluate(s, n->b);
    case N_CONDITION: return condition(s, n);
    case N_COMPARE: return compare(s, n);
    case N_CONCAT: return concatenate(s, n);
    default: return s->captured; /* N_CAPTURED; the others are statements */
    }
}

static struct jval evaluate(struct jinja *s, const struct jnode *n) {
    jinja_enter(s);
    jinja_spend(s, 1);
    const struct jval v = evaluate_node(s, n);
    s->depth--;
    return v;
}

/* ---- statements ---- */

static void assign(struct jinja *s, struct jscope *scope, const struct jnode *target, struct jval v) {
    if (target->kind == N_NAME) {
        set_variable(s, scope, target->name, v);
    } else if (target->kind == N_ATTRIBUTE) {
        const struct jval of = evaluate(s, target->a);
        if (of.kind != J_NAMESPACE) jinja_fail(s, "found %s, expected a namespace to assign to", jv_type(of));
        jdict_set(s, of.dict, jv_str(target->name), v);
    } else {
        if (v.kind == J_UNDEFINED) undefined_used(s, v);
        const struct jval parts = jv_iterate(s, v);
        if (parts.list->n != target->n) jinja_fail(s, "found %zu values, expected %zu to assign", parts.list->n, target->n);
        for (size_t i = 0; i < target->n; i++) assign(s, scope, target->items[i], parts.list->items[i]);
    }
}

static enum flow if_statement(struct jinja *s, const struct jnode *n) {
    for (size_t i = 0; i < n->n; i += 2) {
        if (jv_truth(evaluate(s, n->items[i]))) return run(s, n->items[i + 1]);
    }
    return run(s, n->b);
}

/* The elements for which the loop's `if` holds. */
static struct jval selected(struct jinja *s, const struct jnode *n, struct jval over, struct jscope *scope) {
    const struct jval out = jv_list(s, 0);
    struct jscope *const outer = s->scope;
    for (size_t i = 0; i < over.list->n; i++) {
        s->scope = push_scope(s, scope);
        assign(s, s->scope, n->a, over.list->items[i]);
        if (jv_truth(evaluate(s, n->c))) jlist_add(s, out.list, over.list->items[i]);
    }
    s->scope = outer;
    return out;
}

static void run_loop(struct jinja *s, const struct jnode *n, struct jval over, struct jscope *scope, uint32_t level) {
    over = jv_iterate(s, over);
    if (n->c) over = selected(s, n, over, scope);
    /* The elements as they are now: what a body appends to the list is not looped over. */
    struct jloop *loop = jinja_alloc(s, sizeof *loop);
    *loop = (struct jloop){n, scope, over.list->items, over.list->n, 0, level, NULL};
    struct jscope *const outer = s->scope;
    enum flow flow = FLOW_NEXT;
    for (; loop->index < loop->n && flow != FLOW_BREAK; loop->index++) {
        s->scope = push_scope(s, scope);
        assign(s, s->scope, n->a, loop->items[loop->index]);
        set_variable(s, s->scope, JSTR("loop"), (struct jval){.kind = J_LOOP, .loop = loop});
        flow = run(s, n->body);
    }
    s->scope = outer;
    if (!loop->n && n->other) {
        s->scope = push_scope(s, scope);
        run(s, n->other);
        s->scope = outer;
    }
}

static void set_block(struct jinja *s, const struct jnode *n) {
    const struct jval outer = s->captured;
    struct jval v = capture(s, n->body, push_scope(s, s->scope));
    if (n->b) {
        s->captured = v;
        v = evaluate(s, n->b);
        s->captured = outer;
    }
    assign(s, s->scope, n->a, v);
}

static void filter_block(struct jinja *s, const struct jnode *n) {
    const struct jval outer = s->captured;
    s->captured = capture(s, n->body, push_scope(s, s->scope));
    const struct jval v = evaluate(s, n->b);
    s->captured = outer;
    jv_print(s, s->to, v);
}

static struct jval make_macro(struct jinja *s, const struct jnode *n) {
    struct jmacro *macro = jinja_alloc(s, sizeof *macro);
    *macro = (struct jmacro){n, s->scope};
    return (struct jval){.kind = J_MACRO, .macro = macro};
}

static void call_block(struct jinja *s, const struct jnode *n) {
    const struct jval callee = evaluate(s, n->a->a);
    const struct jargs given = evaluate_arguments(s, n->a);
    struct jkwarg *named = jinja_alloc(s, (given.n_named + 1) * sizeof *named);
    if (given.n_named) memcpy(named, given.named, given.n_named * sizeof *named);
    named[given.n_named] = (struct jkwarg){JSTR("caller"), make_macro(s, n->b)};
    const struct jargs args = {given.items, given.n, named, given.n_named + 1};
    jv_print(s, s->to, jinja_call(s, callee, &args));
}

static enum flow with_statement(struct jinja *s, const struct jnode *n) {
    struct jscope *const outer = s->scope, *scope = push_scope(s, outer);
    for (size_t i = 0; i < n->n; i += 2) assign(s, scope, n->items[i], evaluate(s, n->items[i + 1]));
    s->scope = scope;
    const enum flow flow = run(s, n->body);
    s->scope = outer;
    return flow;
}

static enum flow run_one(struct jinja *s, const struct jnode *n) {
    s->line = n->line;
    switch (n->kind) {
    case N_DATA: jbuf_str(s, s->to, n->name); break;
    case N_OUTPUT: jv_print(s, s->to, evaluate(s, n->a)); break;
    case N_IF: return if_statement(s, n);
    case N_FOR: run_loop(s, n, evaluate(s, n->b), s->scope, 1); break;
    case N_SET: assign(s, s->scope, n->a, evaluate(s, n->b)); break;
    case N_DO: evaluate(s, n->a); break;
    case N_SET_BLOCK: set_block(s, n); break;
    case N_MACRO: set_variable(s, s->scope, n->name, make_macro(s, n)); break;
    case N_CALL_BLOCK: call_block(s, n); break;
    case N_FILTER_BLOCK: filter_block(s, n); break;
    case N_WITH: return with_statement(s, n);
    case N_BREAK: return FLOW_BREAK;
    default: return FLOW_CONTINUE; /* N_CONTINUE; the others are expressions */
    }
    return FLOW_NEXT;
}

static enum flow run(struct jinja *s, const struct jnode *n) {
    enum flow flow = FLOW_NEXT;
    jinja_enter(s);
    for (; n && flow == FLOW_NEXT; n = n->next) {
        jinja_spend(s, 1);
        flow = run_one(s, n);
    }
    s->depth--;
    return flow;
}

void jinja_execute(struct jinja *s, const struct jnode *statements) {
    s->scope = push_scope(s, NULL);
    run(s, statements);
}
