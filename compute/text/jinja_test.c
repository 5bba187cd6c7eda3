/* jinja_test.c - what may stand behind `is`. */
#include "compute/text/jinja.h"

#define TEST(name) static struct jval name(struct jinja *s, struct jval v, const struct jval *a, const struct jargs *args)
#define UNUSED (void)s, (void)a, (void)args

TEST(is_defined) {
    UNUSED;
    return jv_bool(v.kind != J_UNDEFINED);
}
TEST(is_undefined) {
    UNUSED;
    return jv_bool(v.kind == J_UNDEFINED);
}
TEST(is_none) {
    UNUSED;
    return jv_bool(v.kind == J_NONE);
}
TEST(is_boolean) {
    UNUSED;
    return jv_bool(v.kind == J_BOOL);
}
TEST(is_true) {
    UNUSED;
    return jv_bool(v.kind == J_BOOL && v.b);
}
TEST(is_false) {
    UNUSED;
    return jv_bool(v.kind == J_BOOL && !v.b);
}
TEST(is_integer) {
    UNUSED;
    return jv_bool(v.kind == J_INT);
}
TEST(is_float) {
    UNUSED;
    return jv_bool(v.kind == J_FLOAT);
}
TEST(is_number) {
    UNUSED;
    return jv_bool(jv_is_number(v));
}
TEST(is_string) {
    UNUSED;
    return jv_bool(v.kind == J_STRING);
}
TEST(is_mapping) {
    UNUSED;
    return jv_bool(v.kind == J_DICT);
}
/* In Python an undefined value can be called, if only to fail. */
TEST(is_callable) {
    UNUSED;
    return jv_bool(jinja_is_callable(v) || v.kind == J_UNDEFINED);
}

/* What has a length and elements: in Python an undefined value has both. */
TEST(is_sequence) {
    UNUSED;
    return jv_bool((jv_is_sequence(v) && !v.lazy) || v.kind == J_STRING || v.kind == J_DICT || v.kind == J_UNDEFINED);
}

TEST(is_iterable) {
    UNUSED;
    return jv_bool(jv_is_sequence(v) || v.kind == J_STRING || v.kind == J_DICT || v.kind == J_UNDEFINED);
}

static bool divisible(struct jinja *s, struct jval v, __int128 by) {
    if (v.kind != J_INT && v.kind != J_BOOL) jinja_fail(s, "found %s, expected an integer to divide", jv_type(v));
    if (by == 0) jinja_fail(s, "division by zero");
    return by == -1 || jv_integer(v) % by == 0;
}

TEST(is_even) {
    UNUSED;
    return jv_bool(divisible(s, v, 2));
}
TEST(is_odd) {
    UNUSED;
    return jv_bool(!divisible(s, v, 2));
}
TEST(is_divisible) {
    UNUSED;
    return jv_bool(divisible(s, v, jinja_arg_int(s, a[0], "divisibleby", 1)));
}

TEST(is_equal) {
    UNUSED;
    return jv_bool(jv_equal(s, v, a[0]));
}
TEST(is_unequal) {
    UNUSED;
    return jv_bool(!jv_equal(s, v, a[0]));
}
TEST(is_less) {
    UNUSED;
    return jv_bool(jv_compare(s, v, a[0], "<") < 0);
}
TEST(is_at_most) {
    UNUSED;
    return jv_bool(jv_compare(s, v, a[0], "<=") <= 0);
}
TEST(is_greater) {
    UNUSED;
    return jv_bool(jv_compare(s, v, a[0], ">") > 0);
}
TEST(is_at_least) {
    UNUSED;
    return jv_bool(jv_compare(s, v, a[0], ">=") >= 0);
}
TEST(is_in) {
    UNUSED;
    return jv_bool(jv_contains(s, a[0], v));
}

/* The same object: values that cannot change are the same if they are equal and of one kind. */
TEST(is_same) {
    UNUSED;
    if (v.kind != a[0].kind) return jv_bool(false);
    if (jv_is_sequence(v) || v.kind == J_DICT) return jv_bool(v.list == a[0].list);
    return jv_bool(jv_equal(s, v, a[0]));
}

TEST(is_lower) {
    UNUSED;
    const struct jstr t = jv_string(s, v), lower = jstr_lower(s, t);
    return jv_bool(jstr_equal(t, lower) && !jstr_equal(t, jstr_upper(s, t)));
}

TEST(is_upper) {
    UNUSED;
    const struct jstr t = jv_string(s, v), upper = jstr_upper(s, t);
    return jv_bool(jstr_equal(t, upper) && !jstr_equal(t, jstr_lower(s, t)));
}

TEST(is_filter) {
    UNUSED;
    return jv_bool(v.kind == J_STRING && jinja_find_filter(v.s));
}
TEST(is_test) {
    UNUSED;
    return jv_bool(v.kind == J_STRING && jinja_find(jinja_tests, v.s));
}

const struct jbuiltin jinja_tests[] = {
    {"defined", "", 0, is_defined},
    {"undefined", "", 0, is_undefined},
    {"none", "", 0, is_none},
    {"boolean", "", 0, is_boolean},
    {"true", "", 0, is_true},
    {"false", "", 0, is_false},
    {"integer", "", 0, is_integer},
    {"float", "", 0, is_float},
    {"number", "", 0, is_number},
    {"string", "", 0, is_string},
    {"mapping", "", 0, is_mapping},
    {"callable", "", 0, is_callable},
    {"sequence", "", 0, is_sequence},
    {"iterable", "", 0, is_iterable},
    {"even", "", 0, is_even},
    {"odd", "", 0, is_odd},
    {"divisibleby", "num", 1, is_divisible},
    {"eq", "other", 1, is_equal},
    {"equalto", "other", 1, is_equal},
    {"==", "other", 1, is_equal},
    {"ne", "other", 1, is_unequal},
    {"!=", "other", 1, is_unequal},
    {"lt", "other", 1, is_less},
    {"lessthan", "other", 1, is_less},
    {"<", "other", 1, is_less},
    {"le", "other", 1, is_at_most},
    {"<=", "other", 1, is_at_most},
    {"gt", "other", 1, is_greater},
    {"greaterthan", "other", 1, is_greater},
    {">", "other", 1, is_greater},
    {"ge", "other", 1, is_at_least},
    {">=", "other", 1, is_at_least},
    {"in", "seq", 1, is_in},
    {"sameas", "other", 1, is_same},
    {"lower", "", 0, is_lower},
    {"upper", "", 0, is_upper},
    {"filter", "", 0, is_filter},
    {"test", "", 0, is_test},
    {NULL},
};
