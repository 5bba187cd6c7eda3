/* json.c - JSON as generated texts have it: white space, strings, numbers, any value. */
#include "compute/grammar/schema.h"

static sh_gr_expr text(struct sh_gr *gr, const char *bytes) { return sh_gr_text(gr, bytes, strlen(bytes)); }

static sh_gr_expr one_of(struct sh_gr *gr, const char *bytes) {
    uint8_t set[32] = {0};
    for (; *bytes != 0; bytes++) set[(uint8_t)*bytes >> 3] |= (uint8_t)(1u << (*bytes & 7));
    return sh_gr_bytes(gr, set);
}

static sh_gr_expr choice2(struct sh_gr *gr, sh_gr_expr a, sh_gr_expr b) {
    return sh_gr_choice(gr, (const sh_gr_expr[]){a, b}, 2);
}

#define HEX "0123456789abcdefABCDEF"

sh_gr_expr sh_gr_json_space(struct sh_gr *gr) {
    const sh_gr_expr line = sh_gr_pair(gr, text(gr, "\n"), sh_gr_repeat(gr, text(gr, " "), 0, 20));
    return sh_gr_choice(gr, (const sh_gr_expr[]){SH_GR_EMPTY, text(gr, " "), line}, 3);
}

/* One code point: plain, or escaped in any way but as U+0000 or half a surrogate pair, which readers refuse. */
static sh_gr_expr character(struct sh_gr *gr) {
    static const struct sh_gr_range not_plain[] = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
    const sh_gr_expr hex = one_of(gr, HEX), hex2 = sh_gr_pair(gr, hex, hex), not_zero = one_of(gr, HEX + 1);
    const sh_gr_expr of_zero = choice2(
        gr, sh_gr_pair(gr, not_zero, hex2),
        sh_gr_pair(gr, text(gr, "0"), choice2(gr, sh_gr_pair(gr, not_zero, hex), sh_gr_pair(gr, text(gr, "0"), not_zero))));
    const sh_gr_expr unit = sh_gr_choice(
        gr,
        (const sh_gr_expr[]){sh_gr_sequence(gr, (const sh_gr_expr[]){one_of(gr, "123456789abcefABCEF"), hex, hex2}, 3),
                             sh_gr_sequence(gr, (const sh_gr_expr[]){one_of(gr, "dD"), one_of(gr, "01234567"), hex2}, 3),
                             sh_gr_pair(gr, text(gr, "0"), of_zero)},
        3);
    const sh_gr_expr high = sh_gr_sequence(gr, (const sh_gr_expr[]){one_of(gr, "dD"), one_of(gr, "89abAB"), hex2}, 3);
    const sh_gr_expr low = sh_gr_sequence(gr, (const sh_gr_expr[]){one_of(gr, "dD"), one_of(gr, "cdefCDEF"), hex2}, 3);
    const sh_gr_expr pair = sh_gr_sequence(gr, (const sh_gr_expr[]){high, text(gr, "\\u"), low}, 3);
    return sh_gr_choice(gr,
                        (const sh_gr_expr[]){sh_gr_class(gr, not_plain, SH_COUNT(not_plain), true),
                                             sh_gr_pair(gr, text(gr, "\\"), one_of(gr, "\"\\/bfnrt")),
                                             sh_gr_pair(gr, text(gr, "\\u"), choice2(gr, unit, pair))},
                        3);
}

sh_gr_expr sh_json_string(struct sh_gr *gr, uint32_t min, uint32_t max) {
    const sh_gr_expr quote = text(gr, "\"");
    return sh_gr_sequence(gr, (const sh_gr_expr[]){quote, sh_gr_repeat(gr, character(gr), min, max), quote}, 3);
}

sh_gr_expr sh_json_digits(struct sh_gr *gr, uint32_t min, uint32_t max) {
    return sh_gr_repeat(gr, one_of(gr, "0123456789"), min, max);
}

sh_gr_expr sh_json_number(struct sh_gr *gr) {
    const sh_gr_expr whole =
        choice2(gr, text(gr, "0"), sh_gr_pair(gr, one_of(gr, "123456789"), sh_json_digits(gr, 0, SH_JSON_DIGITS - 1)));
    const sh_gr_expr fraction = sh_gr_pair(gr, text(gr, "."), sh_json_digits(gr, 1, SH_JSON_DIGITS));
    const sh_gr_expr exponent = sh_gr_sequence(
        gr, (const sh_gr_expr[]){one_of(gr, "eE"), sh_gr_optional(gr, one_of(gr, "+-")), sh_json_digits(gr, 1, 2)}, 3);
    return sh_gr_sequence(gr,
                          (const sh_gr_expr[]){sh_gr_optional(gr, text(gr, "-")), whole, sh_gr_optional(gr, fraction),
                                               sh_gr_optional(gr, exponent)},
                          4);
}

sh_gr_expr sh_json_list(struct sh_gr *gr, const char *open, sh_gr_expr items, const char *close, bool may_be_empty) {
    const sh_gr_expr space = sh_gr_json_space(gr);
    const sh_gr_expr full = sh_gr_sequence(gr, (const sh_gr_expr[]){items, space, text(gr, close)}, 3);
    return sh_gr_sequence(
        gr, (const sh_gr_expr[]){text(gr, open), space, may_be_empty ? choice2(gr, full, text(gr, close)) : full}, 3);
}

sh_gr_expr sh_json_next(struct sh_gr *gr, sh_gr_expr item) {
    return sh_gr_sequence(gr, (const sh_gr_expr[]){text(gr, ","), sh_gr_json_space(gr), item}, 3);
}

sh_gr_expr sh_json_member(struct sh_gr *gr, sh_gr_expr name, sh_gr_expr value) {
    return sh_gr_sequence(gr, (const sh_gr_expr[]){name, text(gr, ":"), sh_gr_json_space(gr), value}, 4);
}

static sh_gr_expr list_of(struct sh_gr *gr, const char *open, sh_gr_expr item, const char *close) {
    return sh_json_list(gr, open, sh_gr_pair(gr, item, sh_gr_repeat(gr, sh_json_next(gr, item), 0, SH_GR_UNLIMITED)), close,
                        true);
}

static sh_gr_expr object_of(struct sh_gr *gr, sh_gr_expr value) {
    return list_of(gr, "{", sh_json_member(gr, sh_json_string(gr, 0, SH_GR_UNLIMITED), value), "}");
}

sh_gr_expr sh_gr_json_value(struct sh_gr *gr) {
    const uint32_t rule = sh_gr_rule(gr, "any JSON value");
    const sh_gr_expr value = sh_gr_ref(gr, rule);
    const sh_gr_expr kinds[] = {text(gr, "null"),
                                text(gr, "true"),
                                text(gr, "false"),
                                sh_json_number(gr),
                                sh_json_string(gr, 0, SH_GR_UNLIMITED),
                                list_of(gr, "[", value, "]"),
                                object_of(gr, value)};
    sh_gr_set_rule(gr, rule, sh_gr_choice(gr, kinds, SH_COUNT(kinds)));
    return value;
}

sh_gr_expr sh_gr_json_object(struct sh_gr *gr) { return object_of(gr, sh_gr_json_value(gr)); }
