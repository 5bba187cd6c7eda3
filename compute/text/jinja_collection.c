/* jinja_collection.c - filters on lists and dicts: choosing, ordering, putting together. */
#include "compute/text/jinja.h"

#define FILTER(name) static struct jval name(struct jinja *s, struct jval v, const struct jval *a, const struct jargs *args)
#define UNUSED (void)s, (void)a, (void)args

static bool given(struct jval v) { return v.kind != J_ABSENT && v.kind != J_NONE; }

/* ---- parts of a list ---- */

FILTER(filter_first) {
    UNUSED;
    const struct jval list = jv_iterate(s, v);
    return list.list->n ? list.list->items[0] : jv_undefined(JSTR("the first element"));
}

FILTER(filter_last) {
    UNUSED;
    const struct jval list = jv_iterate(s, v);
    return list.list->n ? list.list->items[list.list->n - 1] : jv_undefined(JSTR("the last element"));
}

FILTER(filter_length) {
    UNUSED;
    return jv_int(jv_length(s, v));
}

static struct jval copy_of(struct jinja *s, struct jval v) {
    const struct jval from = jv_iterate(s, v);
    struct jval copy = jv_tuple(s, from.list->items, from.list->n);
    jinja_spend(s, from.list->n);
    copy.kind = J_LIST;
    return copy;
}

FILTER(filter_list) {
    UNUSED;
    return copy_of(s, v);
}

FILTER(filter_reverse) {
    UNUSED;
    const struct jval from = jv_iterate(s, v);
    struct jval out = jv_lazy(s, from.list->n);
    struct jbuf text = {0};
    jinja_spend(s, from.list->n);
    for (size_t i = from.list->n; i-- > 0;) {
        if (v.kind == J_STRING) jbuf_str(s, &text, from.list->items[i].s);
        else jlist_add(s, out.list, from.list->items[i]);
    }
    return v.kind == J_STRING ? jbuf_value(&text) : out;
}

FILTER(filter_items) {
    UNUSED;
    if (v.kind == J_UNDEFINED) return jv_lazy(s, 0);
    if (v.kind != J_DICT) jinja_fail(s, "items: found %s, expected a dict", jv_type(v));
    struct jval list = jdict_pairs(s, v.dict);
    list.lazy = true;
    return list;
}

FILTER(filter_batch) {
    UNUSED;
    const struct jval from = jv_iterate(s, v), out = jv_lazy(s, 0);
    const __int128 size = jinja_arg_int(s, a[0], "batch", 0);
    if (size < 1) jinja_fail(s, "batch: found a size below 1");
    struct jval part = {.kind = J_ABSENT};
    for (size_t i = 0; i < from.list->n; i++) {
        jinja_spend(s, 1);
        if ((__int128)i % size == 0) {
            part = jv_list(s, 0);
            jlist_add(s, out.list, part);
        }
        jlist_add(s, part.list, from.list->items[i]);
    }
    while (given(a[1]) && part.kind == J_LIST && (__int128)part.list->n < size) {
        jinja_spend(s, 1);
        jlist_add(s, part.list, a[1]);
    }
    return out;
}

FILTER(filter_slice) {
    UNUSED;
    const struct jval from = jv_iterate(s, v), out = jv_lazy(s, 0);
    const __int128 parts = jinja_arg_int(s, a[0], "slice", 0), n = (__int128)from.list->n;
    if (parts < 1) jinja_fail(s, "slice: found a count below 1");
    size_t at = 0;
    for (__int128 i = 0; i < parts; i++) {
        const bool longer = i < n % parts;
        const __int128 count = n / parts + longer;
        const struct jval part = jv_list(s, 0);
        jinja_spend(s, 1 + (uint64_t)count);
        for (__int128 k = 0; k < count; k++) jlist_add(s, part.list, from.list->items[at++]);
        if (given(a[1]) && !longer && n % parts) jlist_add(s, part.list, a[1]);
        jlist_add(s, out.list, part);
    }
    return out;
}

/* ---- by attribute ---- */

/* v, or what its attribute is; otherwise where that is undefined. */
static struct jval part_of(struct jinja *s, struct jval v, struct jval attribute, struct jval otherwise) {
    if (!given(attribute)) return v;
    const struct jval part = jinja_path(s, v, attribute);
    return part.kind == J_UNDEFINED && otherwise.kind != J_ABSENT ? otherwise : part;
}

static const struct jval absent = {.kind = J_ABSENT};

FILTER(filter_join) {
    UNUSED;
    const struct jval list = jv_iterate(s, v);
    const struct jstr by = a[0].kind == J_ABSENT ? JSTR("") : jv_string(s, a[0]);
    struct jbuf b = {0};
    for (size_t i = 0; i < list.list->n; i++) {
        jinja_spend(s, 1);
        if (i) jbuf_str(s, &b, by);
        jv_print(s, &b, part_of(s, list.list->items[i], a[1], absent));
    }
    return jbuf_value(&b);
}

FILTER(filter_sum) {
    UNUSED;
    const struct jval list = jv_iterate(s, v);
    struct jval sum = a[1].kind == J_ABSENT ? jv_int(0) : a[1];
    for (size_t i = 0; i < list.list->n; i++) sum = jinja_add(s, sum, part_of(s, list.list->items[i], a[0], absent));
    return sum;
}

/* Keys that are to be compared without regard to case. */
static struct jval folded(struct jinja *s, struct jval v, bool case_sensitive) {
    return v.kind == J_STRING && !case_sensitive ? jv_str(jstr_lower(s, v.s)) : v;
}

struct keyed {
    struct jval key, value;
};

/* Sorts so that equal ones keep their order; falling: the other way round, equal ones keep it, too. */
static void sort_keyed(struct jinja *s, struct keyed *items, size_t n, bool falling) {
    struct keyed *from = items, *to = n ? jinja_alloc(s, n * sizeof *to) : NULL;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * width) {
            const size_t middle = begin + width < n ? begin + width : n, end = middle + width < n ? middle + width : n;
            size_t left = begin, right = middle;
            for (size_t out = begin; out < end; out++) {
                bool take_right = left == middle;
                if (!take_right && right < end) {
                    const int order = jv_compare(s, from[right].key, from[left].key, "<");
                    take_right = falling ? order > 0 : order < 0;
                }
                to[out] = take_right ? from[right++] : from[left++];
            }
        }
        struct keyed *swap = from;
        from = to;
        to = swap;
    }
    if (from != items) memcpy(items, from, n * sizeof *items);
}

static struct jval sorted(struct jinja *s, struct jval list, struct keyed *items, bool falling) {
    const size_t n = list.list->n;
    sort_keyed(s, items, n, falling);
    for (size_t i = 0; i < n; i++) list.list->items[i] = items[i].value;
    return list;
}

/* One attribute, or several with commas: then the key is a tuple. */
static struct jval sort_key(struct jinja *s, struct jval v, struct jval attribute, struct jval otherwise, bool case_sensitive) {
    if (attribute.kind != J_STRING || !memchr(attribute.s.p, ',', attribute.s.n))
        return folded(s, part_of(s, v, attribute, otherwise), case_sensitive);
    const struct jval key = jv_tuple(s, NULL, 0);
    for (size_t begin = 0; begin <= attribute.s.n;) {
        size_t end = begin;
        while (end < attribute.s.n && attribute.s.p[end] != ',') end++;
        const struct jval one = jv_text(attribute.s.p + begin, end - begin);
        jlist_add(s, key.list, folded(s, part_of(s, v, one, otherwise), case_sensitive));
        begin = end + 1;
    }
    return key;
}

static struct jval sort_by(struct jinja *s, struct jval v, bool falling, bool case_sensitive, struct jval attribute,
                           struct jval otherwise) {
    const struct jval list = copy_of(s, v);
    struct keyed *items = jinja_alloc(s, (list.list->n + 1) * sizeof *items);
    for (size_t i = 0; i < list.list->n; i++)
        items[i] = (struct keyed){sort_key(s, list.list->items[i], attribute, otherwise, case_sensitive), list.list->items[i]};
    return sorted(s, list, items, falling);
}

FILTER(filter_sort) {
    UNUSED;
    return sort_by(s, v, jinja_arg_bool(a[0], false), jinja_arg_bool(a[1], false), a[2], absent);
}

FILTER(filter_dictsort) {
    UNUSED;
    if (v.kind != J_DICT) jinja_fail(s, "dictsort: found %s, expected a dict", jv_type(v));
    const struct jstr by = a[1].kind == J_ABSENT ? JSTR("key") : jinja_arg_str(s, a[1], "dictsort");
    if (!jstr_is(by, "key") && !jstr_is(by, "value")) jinja_fail(s, "dictsort: by: expected key or value");
    return sort_by(s, jdict_pairs(s, v.dict), jinja_arg_bool(a[2], false), jinja_arg_bool(a[0], false),
                   jv_int(jstr_is(by, "value")), absent);
}

static struct jval extreme(struct jinja *s, struct jval v, const struct jval *a, bool largest) {
    const struct jval list = jv_iterate(s, v);
    const bool case_sensitive = jinja_arg_bool(a[0], false);
    struct jval best = jv_undefined(JSTR("an element of an empty list")), best_key = absent;
    for (size_t i = 0; i < list.list->n; i++) {
        const struct jval key = folded(s, part_of(s, list.list->items[i], a[1], absent), case_sensitive);
        if (i) {
            const int order = jv_compare(s, key, best_key, largest ? ">" : "<");
            if (largest ? order <= 0 : order >= 0) continue;
        }
        best = list.list->items[i];
        best_key = key;
    }
    return best;
}

FILTER(filter_min) {
    UNUSED;
    return extreme(s, v, a, false);
}
FILTER(filter_max) {
    UNUSED;
    return extreme(s, v, a, true);
}

FILTER(filter_unique) {
    UNUSED;
    const struct jval list = jv_iterate(s, v), seen = jv_dict(s), out = jv_lazy(s, 0);
    for (size_t i = 0; i < list.list->n; i++) {
        const struct jval key = folded(s, part_of(s, list.list->items[i], a[1], absent), jinja_arg_bool(a[0], false));
        if (jdict_find(s, seen.dict, key)) continue;
        jdict_set(s, seen.dict, key, jv_none());
        jlist_add(s, out.list, list.list->items[i]);
    }
    return out;
}

/* [(key, [elements]), ...], sorted by key. */
FILTER(filter_groupby) {
    UNUSED;
    const bool case_sensitive = jinja_arg_bool(a[2], false);
    const struct jval list = sort_by(s, v, false, case_sensitive, a[0], a[1]), out = jv_list(s, 0);
    struct jval group = absent, last = absent;
    for (size_t i = 0; i < list.list->n; i++) {
        const struct jval key = part_of(s, list.list->items[i], a[0], a[1]), same = folded(s, key, case_sensitive);
        if (!i || !jv_equal(s, same, last)) {
            group = jv_list(s, 0);
            const struct jval parts[] = {key, group}, pair = jv_tuple(s, parts, 2);
            pair.list->group = true;
            jlist_add(s, out.list, pair);
            last = same;
        }
        jlist_add(s, group.list, list.list->items[i]);
    }
    return out;
}

/* ---- by filter and test ---- */

static struct jargs rest_of(const struct jargs *args, size_t first) {
    return (struct jargs){args->items + first, args->n - first, args->named, args->n_named};
}

/* What is false has no elements here, be it none or a number. */
static struct jval elements_or_none(struct jinja *s, struct jval v) { return jv_truth(v) ? jv_iterate(s, v) : jv_list(s, 0); }

FILTER(filter_map) {
    UNUSED;
    const struct jval list = elements_or_none(s, v), out = jv_lazy(s, list.list->n);
    struct jval attribute = absent, otherwise = absent;
    for (size_t i = 0; i < args->n_named; i++) {
        if (jstr_is(args->named[i].name, "attribute")) attribute = args->named[i].value;
        if (jstr_is(args->named[i].name, "default")) otherwise = args->named[i].value;
    }
    const struct jbuiltin *by = NULL;
    struct jargs rest = {0};
    if (args->n) {
        const struct jstr name = jinja_arg_str(s, args->items[0], "map");
        by = jinja_find_filter(name);
        if (!by) jinja_fail(s, "map: found filter '%.*s', which does not exist", (int)sh_min_u64(name.n, 60), name.p);
        rest = rest_of(args, 1);
    } else if (attribute.kind == J_ABSENT) {
        jinja_fail(s, "map: needs a filter or attribute=");
    }
    jinja_enter(s);
    for (size_t i = 0; i < list.list->n; i++) {
        const struct jval one = list.list->items[i];
        jlist_add(s, out.list, by ? jinja_call_builtin(s, by, one, &rest) : part_of(s, one, attribute, otherwise));
    }
    s->depth--;
    return out;
}

/* The elements for which the test named by argument `first` holds, or that are true if there is none; keep false: the others. */
static struct jval choose(struct jinja *s, struct jval v, const struct jargs *args, bool by_attribute, bool keep) {
    const struct jval list = elements_or_none(s, v), out = jv_lazy(s, 0);
    const size_t first = by_attribute;
    if (args->n < first) jinja_fail(s, "needs the name of an attribute");
    const struct jbuiltin *by = NULL;
    struct jargs rest = {0};
    if (args->n > first) {
        const struct jstr name = jinja_arg_str(s, args->items[first], "the name of a test");
        by = jinja_find(jinja_tests, name);
        if (!by) jinja_fail(s, "found test '%.*s', which does not exist", (int)sh_min_u64(name.n, 60), name.p);
        rest = rest_of(args, first + 1);
    }
    for (size_t i = 0; i < list.list->n; i++) {
        const struct jval one = list.list->items[i], part = by_attribute ? jinja_path(s, one, args->items[0]) : one;
        jinja_spend(s, 1);
        if (jv_truth(by ? jinja_call_builtin(s, by, part, &rest) : part) == keep) jlist_add(s, out.list, one);
    }
    return out;
}

FILTER(filter_select) {
    UNUSED;
    return choose(s, v, args, false, true);
}
FILTER(filter_reject) {
    UNUSED;
    return choose(s, v, args, false, false);
}
FILTER(filter_selectattr) {
    UNUSED;
    return choose(s, v, args, true, true);
}
FILTER(filter_rejectattr) {
    UNUSED;
    return choose(s, v, args, true, false);
}

const struct jbuiltin jinja_collection_filters[] = {
    {"length", "", 0, filter_length},
    {"count", "", 0, filter_length},
    {"first", "", 0, filter_first},
    {"last", "", 0, filter_last},
    {"list", "", 0, filter_list},
    {"reverse", "", 0, filter_reverse},
    {"items", "", 0, filter_items},
    {"batch", "linecount fill_with", 1, filter_batch},
    {"slice", "slices fill_with", 1, filter_slice},
    {"join", "d attribute", 0, filter_join},
    {"sum", "attribute start", 0, filter_sum},
    {"sort", "reverse case_sensitive attribute", 0, filter_sort},
    {"dictsort", "case_sensitive by reverse", 0, filter_dictsort},
    {"min", "case_sensitive attribute", 0, filter_min},
    {"max", "case_sensitive attribute", 0, filter_max},
    {"unique", "case_sensitive attribute", 0, filter_unique},
    {"groupby", "attribute default case_sensitive", 1, filter_groupby},
    {"map", NULL, 0, filter_map},
    {"select", NULL, 0, filter_select},
    {"reject", NULL, 0, filter_reject},
    {"selectattr", NULL, 0, filter_selectattr},
    {"rejectattr", NULL, 0, filter_rejectattr},
    {NULL},
};
