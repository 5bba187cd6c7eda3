/* jinja_global.c - how named things are found and called, and the names that every template has. */
#include "compute/text/jinja.h"

/* ---- finding and calling ---- */

const struct jbuiltin *jinja_find(const struct jbuiltin *table, struct jstr name) {
    for (; table->name; table++) {
        if (jstr_is(name, table->name)) return table;
    }
    return NULL;
}

const struct jbuiltin *jinja_find_filter(struct jstr name) {
    const struct jbuiltin *found = jinja_find(jinja_filters, name);
    return found ? found : jinja_find(jinja_collection_filters, name);
}

/* The place of `name` among params, which are parted by spaces; -1: none. */
static int parameter_index(const char *params, struct jstr name) {
    int index = 0;
    for (const char *p = params; *p; index++) {
        const size_t n = strcspn(p, " ");
        if (jstr_equal((struct jstr){p, n}, name)) return index;
        p += n + (p[n] == ' ');
    }
    return -1;
}

static size_t parameter_count(const char *params) {
    size_t n = *params != 0;
    for (; *params; params++) n += *params == ' ';
    return n;
}

struct jval jinja_call_builtin(struct jinja *s, const struct jbuiltin *b, struct jval self, const struct jargs *args) {
    struct jval a[JINJA_PARAMS_MAX] = {{.kind = J_ABSENT}};
    jinja_spend(s, 1);
    if (!b->params) return b->call(s, self, NULL, args);
    const size_t count = parameter_count(b->params);
    if (args->n > count) jinja_fail(s, "%s: takes at most %zu arguments, found %zu", b->name, count, args->n);
    for (size_t i = 0; i < args->n; i++) a[i] = args->items[i];
    for (size_t i = 0; i < args->n_named; i++) {
        const struct jstr name = args->named[i].name;
        const int index = parameter_index(b->params, name);
        if (index < 0) jinja_fail(s, "%s: has no argument %.*s", b->name, (int)sh_min_u64(name.n, 60), name.p);
        if (a[index].kind != J_ABSENT) jinja_fail(s, "%s: argument %.*s is given twice", b->name, (int)name.n, name.p);
        a[index] = args->named[i].value;
    }
    for (uint32_t i = 0; i < b->required; i++) {
        if (a[i].kind == J_ABSENT) jinja_fail(s, "%s: needs %u arguments: %s", b->name, b->required, b->params);
    }
    return b->call(s, self, a, args);
}

struct jstr jinja_arg_str(struct jinja *s, struct jval v, const char *name) {
    if (v.kind != J_STRING) jinja_fail(s, "%s: found %s, expected a string", name, jv_type(v));
    return v.s;
}

__int128 jinja_arg_int(struct jinja *s, struct jval v, const char *name, __int128 otherwise) {
    if (v.kind == J_ABSENT) return otherwise;
    if (v.kind != J_INT && v.kind != J_BOOL) jinja_fail(s, "%s: found %s, expected an integer", name, jv_type(v));
    return jv_integer(v);
}

bool jinja_arg_bool(struct jval v, bool otherwise) { return v.kind == J_ABSENT ? otherwise : jv_truth(v); }

/* ---- the names ---- */

static struct jval global_range(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)args;
    __int128 from = 0, to = jinja_arg_int(s, a[0], "range", 0);
    const __int128 step = jinja_arg_int(s, a[2], "range", 1);
    if (a[1].kind != J_ABSENT) {
        from = to;
        to = jinja_arg_int(s, a[1], "range", 0);
    }
    if (step == 0) jinja_fail(s, "range: the step is 0");
    const struct jval list = jv_list(s, 0);
    while (step > 0 ? from < to : from > to) {
        jinja_spend(s, 1);
        jlist_add(s, list.list, jv_int(from));
        if (__builtin_add_overflow(from, step, &from)) break;
    }
    return list;
}

static struct jval dict_of(struct jinja *s, const char *name, const struct jargs *args) {
    const struct jval d = jv_dict(s);
    if (args->n > 1) jinja_fail(s, "%s: takes one argument by place, found %zu", name, args->n);
    if (args->n) jdict_merge(s, d.dict, args->items[0]);
    for (size_t i = 0; i < args->n_named; i++) jdict_set(s, d.dict, jv_str(args->named[i].name), args->named[i].value);
    return d;
}

static struct jval global_dict(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)a;
    return dict_of(s, "dict", args);
}

static struct jval global_namespace(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)a;
    struct jval v = dict_of(s, "namespace", args);
    v.kind = J_NAMESPACE;
    return v;
}

static struct jval global_raise(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)args;
    jinja_raise(s, jv_string(s, a[0]));
}

static struct jval global_strftime(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)args;
    char format[256], text[1024];
    const struct jstr f = jinja_arg_str(s, a[0], "strftime_now");
    if (f.n >= sizeof format) jinja_limit(s, "bytes of a format of strftime_now", sizeof format - 1);
    if (f.n) memcpy(format, f.p, f.n);
    format[f.n] = 0;
    struct jbuf b = {0};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    jbuf_add(s, &b, text, strftime(text, sizeof text, format, s->now)); /* strftime writes at most sizeof text for any format */
#pragma GCC diagnostic pop
    jbuf_made_of(s, &b, 0, f);
    return jbuf_value(&b);
}

static struct jval global_joiner(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)args;
    struct jcycle *cycle = jinja_alloc(s, sizeof *cycle);
    cycle->values = a[0].kind == J_ABSENT ? jv_text(", ", 2) : a[0];
    return (struct jval){.kind = J_JOINER, .cycle = cycle};
}

static struct jval global_cycler(struct jinja *s, struct jval self, const struct jval *a, const struct jargs *args) {
    (void)self, (void)a;
    if (!args->n) jinja_fail(s, "cycler: found no values, expected at least one");
    struct jcycle *cycle = jinja_alloc(s, sizeof *cycle);
    cycle->values = jv_tuple(s, args->items, args->n);
    return (struct jval){.kind = J_CYCLER, .cycle = cycle};
}

const struct jbuiltin jinja_globals[] = {
    {"range", "start stop step", 1, global_range},
    {"dict", NULL, 0, global_dict},
    {"namespace", NULL, 0, global_namespace},
    {"raise_exception", "message", 1, global_raise},
    {"strftime_now", "format", 1, global_strftime},
    {"joiner", "sep", 0, global_joiner},
    {"cycler", NULL, 0, global_cycler},
    {NULL},
};
