/* JSON Schema: what is taken and what is not, random texts against a plain validator, every keyword that is refused, contradictions,
 * hostile schemas, and the manual page against the tables of keywords and formats. */
#include "tests/unit/grammar_texts.h"

#include "compute/grammar/schema.h"
#include "tests/unit/json_valid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})
#define TAKES(schema, yes, no) grammar_check(SH_GRAMMAR_SCHEMA, schema, yes, no)
#define REFUSED(schema, code, part) grammar_refused(SH_GRAMMAR_SCHEMA, schema, code, part)

/* Walks end in texts that satisfy these. */
static const char *const walked[] = {
    "{\"type\":\"null\"}",
    "{\"type\":\"boolean\"}",
    "{\"type\":\"integer\"}",
    "{\"type\":\"number\"}",
    "{\"type\":\"string\",\"maxLength\":20}",
    "{\"type\":[\"string\",\"null\",\"integer\"],\"maxLength\":8}",
    "{}",
    "{\"type\":\"array\",\"maxItems\":3}",
    "{\"type\":\"object\"}",
    "{\"enum\":[\"a\",\"b\\\"\\\\\\n\\u0001\\u00e9\",1,1.5,null,true,[1,{\"a\":[]},[]],{\"x\":{\"y\":1},\"z\":[]},-7,1e+300"
    ",1e-07]}",
    "{\"type\":\"string\",\"enum\":[\"a\",1,\"bb\"],\"minLength\":2}",
    "{\"const\":{\"a\":[1,2,{\"b\":null}]}}",
    "{\"const\":\"x\"}",
    "{\"const\":null}",
    "{\"type\":\"integer\",\"minimum\":0,\"maximum\":0}",
    "{\"type\":\"integer\",\"minimum\":-128,\"maximum\":127}",
    "{\"type\":\"integer\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":100}",
    "{\"type\":\"integer\",\"minimum\":1}",
    "{\"type\":\"integer\",\"maximum\":-1}",
    "{\"type\":\"integer\",\"minimum\":-1000000007,\"maximum\":998244353}",
    "{\"type\":\"integer\",\"minimum\":9007199254740000,\"maximum\":9007199254740991}",
    "{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":3.5}",
    "{\"type\":\"integer\",\"exclusiveMinimum\":-3.5,\"exclusiveMaximum\":-1}",
    "{\"type\":\"number\",\"minimum\":0,\"maximum\":1}",
    "{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":1}",
    "{\"type\":\"number\",\"minimum\":-1.25,\"maximum\":2.375}",
    "{\"type\":\"number\",\"minimum\":0.1,\"maximum\":0.25}",
    "{\"type\":\"number\",\"minimum\":-0.25,\"maximum\":-0.1}",
    "{\"type\":\"number\",\"exclusiveMinimum\":0.1,\"exclusiveMaximum\":0.11}",
    "{\"type\":\"number\",\"minimum\":10}",
    "{\"type\":\"number\",\"exclusiveMaximum\":-10.5}",
    "{\"type\":\"number\",\"minimum\":3,\"maximum\":3}",
    "{\"type\":\"number\",\"minimum\":1e-09,\"maximum\":2e-09}",
    "{\"type\":\"number\",\"minimum\":-1e+30,\"maximum\":5}",
    "{\"type\":\"number\",\"exclusiveMinimum\":99.5,\"maximum\":100.5}",
    "{\"type\":\"number\",\"minimum\":-2,\"exclusiveMaximum\":0}",
    "{\"type\":\"string\",\"minLength\":2,\"maxLength\":4}",
    "{\"type\":\"string\",\"pattern\":\"^[a-z]{2,5}$\"}",
    "{\"type\":\"string\",\"pattern\":\"^[^x]+$\",\"maxLength\":6}",
    "{\"type\":\"string\",\"pattern\":\"^\\\\d{3}-\\\\d{4}$|^x\",\"maxLength\":10}",
    "{\"type\":\"string\",\"pattern\":\"^(a|b)*c$\",\"minLength\":3,\"maxLength\":7}",
    "{\"type\":\"string\",\"pattern\":\"a.*b\",\"minLength\":5,\"maxLength\":9}",
    "{\"allOf\":[{\"pattern\":\"^[a-f]*$\"},{\"pattern\":\"ab\"},{\"minLength\":3,\"maxLength\":8}],\"type\":\"string\"}",
    "{\"type\":\"string\",\"pattern\":\"(^a|b)c($|d)\",\"maxLength\":8}",
    "{\"type\":\"string\",\"format\":\"date\"}",
    "{\"type\":\"string\",\"format\":\"time\"}",
    "{\"type\":\"string\",\"format\":\"date-time\"}",
    "{\"type\":\"string\",\"format\":\"duration\"}",
    "{\"type\":\"string\",\"format\":\"uuid\"}",
    "{\"type\":\"string\",\"format\":\"ipv4\"}",
    "{\"type\":\"string\",\"format\":\"ipv6\"}",
    "{\"type\":\"string\",\"format\":\"email\",\"maxLength\":30}",
    "{\"type\":\"string\",\"format\":\"hostname\"}",
    "{\"type\":\"string\",\"format\":\"uri\"}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":9},\"minItems\":2,\"maxItems\":4}",
    "{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":0,\"maxItems\":2}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\",\"maximum\":9,\"minimum\":0},{\"const\":\"x\"}],\"items\":f"
    "alse}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3},\"minItems\":1,\"maxItems\":"
    "5}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"minItems\":3,\"maxItems\":4}",
    "{\"type\":\"array\",\"maxItems\":0}",
    "{\"type\":\"array\",\"items\":false}",
    "{\"type\":\"array\",\"items\":{\"type\":\"array\",\"items\":{\"enum\":[0,1]},\"maxItems\":2},\"maxItems\":2,\"minItems"
    "\":2}",
    "{\"type\":\"array\",\"items\":{\"const\":1},\"uniqueItems\":true,\"maxItems\":1}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},false],\"items\":{\"const\":2}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},\"required\":[\"b\"]"
    ",\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"ab\":{\"const\":2}},\"additionalProperties\":{\"type\":\"bo"
    "olean\"},\"maxProperties\":4}",
    "{\"type\":\"object\",\"additionalProperties\":{\"enum\":[1,2]},\"minProperties\":1,\"maxProperties\":3}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},\"minProperties\":2,"
    "\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},\"minProperties\":1,"
    "\"maxProperties\":2}",
    "{\"type\":\"object\",\"required\":[\"x\",\"y\"],\"maxProperties\":3}",
    "{\"type\":\"object\",\"properties\":{\"foo\":{\"const\":1}},\"patternProperties\":{\"^f\":{\"type\":\"integer\"}},\"ad"
    "ditionalProperties\":{\"type\":\"null\"},\"maxProperties\":4}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":3},\"n\":false},\"required\":[\"a\"]}",
    "{\"properties\":{\"a/b~c\\\"\":{\"const\":1},\"\":{\"const\":2},\"\\u00e9\":{\"const\":0}},\"required\":[\"\",\"a/b~c"
    "\\\"\"]}",
    "{\"type\":\"object\",\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1}},\"minProperties\":2,\"additionalProperties\":{\"const\":0}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}},\"required\":[\"a\"],\"minProperties\":2"
    ",\"maxProperties\":3,\"additionalProperties\":true}",
    "{\"type\":\"object\",\"properties\":{\"v\":{\"const\":1},\"next\":{\"$ref\":\"#\"}}}",
    "{\"$defs\":{\"n\":{\"type\":\"object\",\"properties\":{\"l\":{\"anyOf\":[{\"$ref\":\"#/$defs/n\"},{\"type\":\"null\"}]"
    "},\"v\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":9}},\"required\":[\"l\",\"v\"],\"additionalProperties\":false}"
    "},\"$ref\":\"#/$defs/n\"}",
    "{\"definitions\":{\"p\":{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":3}},\"require"
    "d\":[\"name\"]}},\"allOf\":[{\"$ref\":\"#/definitions/p\"},{\"properties\":{\"age\":{\"type\":\"integer\",\"minimum\":"
    "0,\"maximum\":9}},\"required\":[\"age\"]}]}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":3},\"b\":{\"$ref\":\"#/prop"
    "erties/a\"}},\"required\":[\"a\",\"b\"]}",
    "{\"anyOf\":[{\"type\":\"string\",\"maxLength\":3},{\"type\":\"integer\",\"minimum\":0,\"maximum\":5}]}",
    "{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1}},\"required\":[\"a\"]},{\"type\":\"object\",\"pro"
    "perties\":{\"b\":{\"const\":1}},\"required\":[\"b\"]}]}",
    "{\"type\":\"object\",\"properties\":{\"k\":{\"enum\":[\"a\",\"b\"]}},\"required\":[\"k\"],\"anyOf\":[{\"properties\":{"
    "\"k\":{\"const\":\"a\"},\"x\":{\"const\":1}},\"required\":[\"x\"]},{\"properties\":{\"k\":{\"const\":\"b\"},\"y\":{\"c"
    "onst\":2}},\"required\":[\"y\"]}]}",
    "{\"oneOf\":[{\"type\":\"string\",\"maxLength\":2},{\"type\":\"integer\",\"minimum\":0,\"maximum\":3},{\"type\":\"null"
    "\"}]}",
    "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"a\"},\"v\":{\"const\":1}},\"required\":[\"t\"]},{"
    "\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"b\"},\"v\":{\"const\":2}},\"required\":[\"t\",\"v\"]}]}",
    "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1}},\"required\":[\"a\"]},{\"type\":\"object\",\"pro"
    "perties\":{\"b\":{\"const\":1}},\"required\":[\"b\"]}]}",
    "{\"type\":\"object\",\"oneOf\":[{\"properties\":{\"t\":{\"enum\":[1,2]}},\"required\":[\"t\"]},{\"properties\":{\"t\":"
    "{\"enum\":[3]}},\"required\":[\"t\"]}]}",
    "{\"oneOf\":[{\"enum\":[1,2]},{\"enum\":[3,\"x\"]}]}",
    "{\"oneOf\":[{\"type\":\"integer\",\"minimum\":0,\"maximum\":4},{\"type\":\"integer\",\"minimum\":5,\"maximum\":9}]}",
    "{\"type\":\"integer\",\"minimum\":0,\"maximum\":20,\"oneOf\":[{\"maximum\":4},{\"minimum\":10}]}",
    "{\"allOf\":[{\"type\":[\"string\",\"integer\"]},{\"type\":[\"integer\",\"null\"]}],\"minimum\":0,\"maximum\":3}",
    "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]},{\"properties\":{"
    "\"a\":{\"minimum\":1,\"maximum\":2},\"b\":{\"const\":1}},\"additionalProperties\":false}]}",
    "{\"allOf\":[{\"enum\":[1,2,3]},{\"enum\":[2,3,4]}]}",
    "{\"type\":\"object\",\"allOf\":[{\"properties\":{\"a\":{\"const\":1}}}],\"properties\":{\"b\":{\"const\":2}},\"unevalu"
    "atedProperties\":false,\"required\":[\"a\"]}",
    "{\"type\":\"string\",\"nullable\":true,\"maxLength\":2}",
    "{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"b\",1,null]},\"uniqueItems\":true,\"minItems\":2,\"maxItems\":3}",
    "{\"type\":\"array\",\"items\":{\"anyOf\":[{\"const\":1},{\"enum\":[2,3]}]},\"uniqueItems\":true}",
    "{\"type\":\"integer\",\"minimum\":-20,\"maximum\":21,\"multipleOf\":7}",
    "{\"type\":\"integer\",\"minimum\":3,\"maximum\":100,\"allOf\":[{\"multipleOf\":4},{\"multipleOf\":6}]}",
    "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-c]+$\",\"maxLength\":3},\"additionalProperties\":{\"const\":"
    "1},\"maxProperties\":3}",
    "{\"type\":\"object\",\"propertyNames\":{\"enum\":[\"x\",\"y\",\"zz\"]},\"maxProperties\":3}",
    "{\"type\":\"object\",\"properties\":{\"abc\":{\"const\":1},\"d\":{\"const\":2}},\"propertyNames\":{\"minLength\":2,\"m"
    "axLength\":6},\"additionalProperties\":{\"const\":3},\"maxProperties\":3}",
    "{\"type\":\"object\",\"propertyNames\":{\"type\":\"string\"},\"additionalProperties\":{\"const\":1},\"maxProperties\":"
    "2}",
    "{\"enum\":[5,10,12],\"multipleOf\":5}",
    "{\"$schema\":\"https://json-schema.org/draft/2020-12/schema\",\"$id\":\"https://example.com/x\",\"title\":\"t\",\"desc"
    "ription\":\"d\",\"type\":\"object\",\"properties\":{\"items\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"pro"
    "perties\":{\"id\":{\"type\":\"string\",\"format\":\"uuid\"},\"when\":{\"type\":\"string\",\"format\":\"date-time\"},\""
    "tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"enum\":[\"a\",\"b\"]},\"maxItems\":2}},\"required\":[\"id"
    "\",\"when\",\"tags\"],\"additionalProperties\":false},\"minItems\":1,\"maxItems\":2},\"total\":{\"type\":\"number\",\""
    "minimum\":0,\"maximum\":100}},\"required\":[\"items\",\"total\"],\"additionalProperties\":false}",
};

static void test_walks(void **state) {
    (void)state;
    struct test_rng rng = {3};
    uint32_t whole_texts = 0;
    for (size_t i = 0; i < SH_COUNT(walked); i++) {
        struct sh_grammar *g = grammar_of(SH_GRAMMAR_SCHEMA, walked[i]);
        json_t *schema = json_loads(walked[i], JSON_DECODE_ANY, NULL);
        assert_non_null(schema);
        uint32_t ended = 0;
        for (uint32_t k = 0; k < 25; k++) {
            size_t length;
            bool whole;
            char *text = grammar_walk(g, &rng, 4000, &length, &whole);
            json_error_t why;
            json_t *value = whole ? json_loadb(text, length, JSON_DECODE_ANY, &why) : NULL;
            if (whole && value == NULL) fail_msg("%s: no JSON (%s): %s", walked[i], why.text, text);
            if (whole && !json_valid(schema, schema, value)) fail_msg("%s: not valid: %s", walked[i], text);
            ended += whole;
            json_decref(value);
            free(text);
        }
        if (ended == 0) fail_msg("%s: no walk ended", walked[i]);
        whole_texts += ended;
        json_decref(schema);
        sh_grammar_unref(g);
    }
    assert_true(whole_texts > 20 * SH_COUNT(walked));
}

static void test_scalars(void **state) {
    (void)state;
    TAKES("{\"type\":\"null\"}", LIST("null"), LIST("nul", "true", " null", "null "));
    TAKES("{\"type\":\"boolean\"}", LIST("true", "false"), LIST("1", "\"true\""));
    TAKES("{\"type\":\"integer\"}", LIST("0", "-1", "123456789012345", "-999999999999999"),
          LIST("01", "-0", "1.0", "1e3", "1234567890123456", "+1", ""));
    TAKES("{\"type\":\"number\"}", LIST("0", "-1.5", "1e10", "-0.25E-7", "12.5e+99"),
          LIST("1.", ".5", "01.5", "1e100", "1e", "NaN"));
    TAKES("{\"type\":[\"string\",\"null\"]}", LIST("\"\"", "null", "\"a\\\"\\\\\\/\\n\\u00e9\\ud83d\\ude00\xC3\xA9\""),
          LIST("1", "\"\\ud83d\"", "\"\\udc00\"", "\"\\u0000\"", "\"\n\"", "\"\\x\"", "\"\xFF\""));
    TAKES("{\"const\":{\"a\":[1,\"x\"],\"b\":null}}",
          LIST("{\"a\":[1,\"x\"],\"b\":null}", "{ \"a\": [\n  1, \"x\"\n], \"b\": null\n}"),
          LIST("{\"b\":null,\"a\":[1,\"x\"]}", "{\"a\":[1,\"x\"]}"));
    TAKES("{\"enum\":[1,\"1\",1.5,true,[],{}]}", LIST("1", "\"1\"", "1.5", "true", "[]", "{}"), LIST("2", "false", "null"));
    TAKES("{\"type\":\"string\",\"nullable\":true}", LIST("null", "\"a\""), LIST("1"));
    TAKES("true", LIST("1", "{\"a\":[{}]}", "[[[[\"x\"]]]]"), LIST("{", "[1,]"));
    TAKES("{}", LIST("null", "{\"a\":1,\"a\":2}"), LIST("{\"a\"}"));
}

static void test_bounds(void **state) {
    (void)state;
    static const struct {
        long low, high;
    } ranges[] = {{0, 0}, {-1, 1}, {0, 9}, {7, 12}, {-12, -7}, {95, 1005}, {-1005, 95}, {100, 199}, {99, 1000}, {-100, -100}};
    for (size_t i = 0; i < SH_COUNT(ranges); i++) {
        char schema[200], text[32];
        snprintf(schema, sizeof schema, "{\"type\":\"integer\",\"minimum\":%ld,\"exclusiveMaximum\":%ld}", ranges[i].low,
                 ranges[i].high + 1);
        struct sh_grammar *g = grammar_of(SH_GRAMMAR_SCHEMA, schema);
        for (long v = ranges[i].low - 1100; v <= ranges[i].high + 1100; v++) {
            snprintf(text, sizeof text, "%ld", v);
            const bool want = v >= ranges[i].low && v <= ranges[i].high;
            if ((grammar_judge(g, text, strlen(text)) == GRAMMAR_YES) != want)
                fail_msg("%s: %s should be %d", schema, text, want);
        }
        sh_grammar_unref(g);
    }
    TAKES("{\"type\":\"integer\",\"minimum\":-9223372036854775808,\"maximum\":9223372036854775807}",
          LIST("-9223372036854775808", "9223372036854775807", "0"),
          LIST("9223372036854775808", "-9223372036854775809", "10000000000000000000"));
    TAKES("{\"type\":\"integer\",\"minimum\":1e15}", LIST("1000000000000000", "9000000000000000000"), LIST("999999999999999"));
    TAKES("{\"type\":\"integer\",\"minimum\":-1e300,\"maximum\":2.5}", LIST("2", "-5"), LIST("3"));
    /* Decimals: all of a grid around the bounds. */
    static const struct {
        const char *schema;
        double low, high;
        bool low_out, high_out;
    } decimals[] = {{"{\"type\":\"number\",\"minimum\":0,\"maximum\":1}", 0, 1, false, false},
                    {"{\"type\":\"number\",\"exclusiveMinimum\":-0.25,\"maximum\":0.5}", -0.25, 0.5, true, false},
                    {"{\"type\":\"number\",\"minimum\":-1.5,\"exclusiveMaximum\":-0.75}", -1.5, -0.75, false, true},
                    {"{\"type\":\"number\",\"minimum\":0.13,\"maximum\":0.14}", 0.13, 0.14, false, false},
                    {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":1.01}", 0, 1.01, true, true}};
    for (size_t i = 0; i < SH_COUNT(decimals); i++) {
        struct sh_grammar *g = grammar_of(SH_GRAMMAR_SCHEMA, decimals[i].schema);
        for (int v = -2000; v <= 2000; v++) {
            char text[32];
            for (int digits = 3; digits >= 0; digits--) {
                snprintf(text, sizeof text, "%.*f", digits, v / 1000.0);
                const double x = strtod(text, NULL);
                if (text[0] == '-' && x == 0) continue; /* "-0" is not generated */
                const bool want = (decimals[i].low_out ? x > decimals[i].low : x >= decimals[i].low) &&
                                  (decimals[i].high_out ? x < decimals[i].high : x <= decimals[i].high);
                if ((grammar_judge(g, text, strlen(text)) == GRAMMAR_YES) != want)
                    fail_msg("%s: %s should be %d", decimals[i].schema, text, want);
            }
        }
        sh_grammar_unref(g);
    }
}

static void test_strings(void **state) {
    (void)state;
    TAKES("{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
          LIST("\"ab\"", "\"\\u00e9\\n\xF0\x9F\x98\x80\"", "\"\\ud83d\\ude00x\""),
          LIST("\"a\"", "\"abcd\"", "\"\\ud83d\\ude00\""));
    TAKES("{\"type\":\"string\",\"pattern\":\"^[\\\"\\\\\\\\\\\\n\\\\u0001/]+$\"}", LIST("\"\\\"\"", "\"\\\\\\n\\u0001/\""),
          LIST("\"\"\"", "\"\\/\"", "\"\\\""));
    TAKES("{\"type\":\"string\",\"pattern\":\"b\"}", LIST("\"b\"", "\"abc\"", "\"\\nb\\\"\""), LIST("\"a\"", "\"\""));
    TAKES("{\"type\":\"string\",\"pattern\":\"^a|b$\",\"maxLength\":3}", LIST("\"a\"", "\"axx\"", "\"xxb\""),
          LIST("\"xa\"", "\"bx\"", "\"axxx\""));
    TAKES("{\"type\":\"string\",\"format\":\"date\"}",
          LIST("\"2024-02-29\"", "\"2000-02-29\"", "\"1999-12-31\"", "\"0001-01-01\""),
          LIST("\"2023-02-29\"", "\"1900-02-29\"", "\"2024-04-31\"", "\"2024-13-01\"", "\"0000-01-01\"", "\"24-01-01\"",
               "\"2024-00-10\""));
    TAKES("{\"type\":\"string\",\"format\":\"date-time\"}", LIST("\"2024-02-29T23:59:59Z\"", "\"2024-01-01T00:00:00.123+01:30\""),
          LIST("\"2024-01-01T24:00:00Z\"", "\"2024-01-01T00:00:60Z\"", "\"2024-01-01T00:00:00\"", "\"2023-02-29T00:00:00Z\""));
    TAKES("{\"type\":\"string\",\"format\":\"uuid\"}", LIST("\"123e4567-e89b-12d3-a456-426614174000\""),
          LIST("\"123e4567e89b12d3a456426614174000\""));
    TAKES("{\"type\":\"string\",\"format\":\"ipv4\"}", LIST("\"0.0.0.0\"", "\"255.249.199.9\""),
          LIST("\"256.0.0.0\"", "\"01.0.0.0\"", "\"1.1.1\""));
    TAKES("{\"type\":\"string\",\"format\":\"ipv6\"}", LIST("\"::\"", "\"::1\"", "\"1:2:3:4:5:6:7:8\"", "\"fe80::1\""),
          LIST("\"1:2:3\"", "\":::\"", "\"12345::\""));
}

static void test_arrays(void **state) {
    (void)state;
    TAKES("{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":9},\"minItems\":1,\"maxItems\":3}",
          LIST("[1]", "[1,2,3]", "[ 1, 2 ]", "[\n  1,\n  2\n]"), LIST("[]", "[1,2,3,4]", "[10]", "[1 ,2]", "[1,]", "[1,\n\n2]"));
    TAKES("{\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3}}", LIST("[]", "[1]", "[1,2]", "[1,2,3,3]"),
          LIST("[2]", "[1,3]"));
    TAKES("{\"items\":[{\"const\":1},{\"const\":2}],\"additionalItems\":false,\"minItems\":1}", LIST("[1]", "[1,2]"),
          LIST("[]", "[1,2,3]"));
    TAKES("{\"items\":[{\"const\":1}],\"additionalItems\":{\"const\":2}}", LIST("[]", "[1,2,2]"), LIST("[1,1]"));
    TAKES("{\"prefixItems\":[{\"const\":1}]}", LIST("[]", "[1]"),
          LIST("[1,2]")); /* others would be valid, and are not generated */
    TAKES("{\"type\":\"array\",\"maxItems\":0}", LIST("[]"), LIST("[1]"));
}

static void test_objects(void **state) {
    (void)state;
    TAKES(
        "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},\"required\":[\"b\"]}",
        LIST("{\"b\":2}", "{\"a\":1,\"b\":2,\"c\":3}", "{ \"a\": 1,\n \"b\": 2 }", "{\"b\": 2,\"c\":3}"),
        LIST("{}", "{\"a\":1}", "{\"b\":2,\"a\":1}", "{\"b\":2,\"d\":1}", "{,\"b\":2}", "{\"b\":2,}", "{\"b\":2,\"b\":2}"));
    TAKES("{\"properties\":{\"ab\":{\"const\":1}},\"additionalProperties\":{\"const\":0}}",
          LIST("{}", "{\"ab\":1}", "{\"a\":0}", "{\"abc\":0,\"b\":0}", "{\"ab\":1,\"\":0}"),
          LIST("{\"ab\":0}", "{\"a\":1}", "{\"a\\u0062\":0}", "{\"x\":0,\"ab\":1}"));
    TAKES("{\"type\":\"object\",\"additionalProperties\":false}", LIST("{}", "{ }"), LIST("{\"a\":1}"));
    TAKES("{\"type\":\"object\",\"maxProperties\":1}", LIST("{}", "{\"a\":[1]}"), LIST("{\"a\":1,\"b\":2}"));
    TAKES("{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}},\"minProperties\":1,\"maxProperties\":1}",
          LIST("{\"a\":1}", "{\"b\":2}"), LIST("{}", "{\"a\":1,\"b\":2}"));
    TAKES("{\"patternProperties\":{\"^n_\":{\"const\":1},\"_s$\":{\"enum\":[1,2]}},\"additionalProperties\":false}",
          LIST("{\"n_\":1}", "{\"x_s\":2}", "{\"n_s\":1,\"n_a\":1}"), LIST("{\"n_s\":2}", "{\"a\":1}", "{\"n_a\":2}"));
    TAKES("{\"properties\":{\"\\u00e9\\\"\\n\":{\"const\":1}},\"required\":[\"\\u00e9\\\"\\n\"]}",
          LIST("{\"\xC3\xA9\\\"\\n\":1}"), LIST("{\"\\u00e9\\\"\\n\":1}"));
    TAKES("{\"type\":\"object\",\"properties\":{\"a\":false,\"b\":true}}", LIST("{\"b\":[1]}", "{}"), LIST("{\"a\":1}"));
    TAKES("{\"type\":\"object\",\"required\":[\"z\"]}", LIST("{\"z\":0}", "{\"z\":0,\"y\":1}"), LIST("{}"));
}

static void test_distinct(void **state) {
    (void)state;
    TAKES("{\"type\":\"integer\",\"format\":\"int32\",\"minimum\":0}", LIST("0", "2147483647"), LIST("-1", "2147483648"));
    TAKES("{\"type\":[\"number\",\"string\"],\"format\":\"double\"}", LIST("0.5", "\"x\""), LIST("null"));
    /* as generators write URLs and addresses: lengths that nothing has to be counted for */
    TAKES("{\"type\":\"string\",\"format\":\"uri\",\"minLength\":1,\"maxLength\":2083}",
          LIST("\"https://a.example:80/b//c%20d?e=/f#g\"", "\"ftp://a\""), LIST("\"a\"", "\"\"", "\"https://a.b/ \""));
    TAKES("{\"type\":\"string\",\"format\":\"email\",\"maxLength\":255}", LIST("\"a@b.cd\""), LIST("\"a@b\""));
    TAKES("{\"type\":\"string\",\"format\":\"email\",\"maxLength\":100}", LIST("\"a@b.cd\""), LIST("\"a.@b.cd\""));
    TAKES("{\"type\":\"string\",\"format\":\"uri\",\"maxLength\":255}", LIST("\"http://a/b/c?d#e\""), LIST("\"/b\""));
    TAKES("{\"type\":\"string\",\"format\":\"hostname\",\"minLength\":2,\"maxLength\":253}", LIST("\"a.b\""), LIST("\"a\""));
    TAKES("{\"format\":\"int64\"}", LIST("5"), LIST("\"x\"", "0.5"));
    TAKES("{\"type\":\"number\",\"format\":\"int32\",\"maximum\":99.99}", LIST("99", "-2147483648"), LIST("44.9", "100"));
    TAKES("{\"enum\":[0.5,7,\"x\"],\"format\":\"int64\"}", LIST("7", "\"x\""), LIST("0.5"));
    REFUSED("{\"oneOf\":[{\"type\":\"number\",\"format\":\"int64\"},{\"type\":\"number\",\"minimum\":0.25,\"maximum\":0.75}]}",
            SH_ERR_UNSUPPORTED, "branches 0 and 1");
    TAKES("{\"$defs\":{\"k\":{\"enum\":[1,2]},\"l\":{\"$ref\":\"#/$defs/m\"},\"m\":{\"enum\":[3]}},\"oneOf\":["
          "{\"properties\":{\"t\":{\"$ref\":\"#/$defs/k\"}},\"required\":[\"t\"]},"
          "{\"properties\":{\"t\":{\"$ref\":\"#/$defs/l\"}},\"required\":[\"t\"]}],\"type\":\"object\"}",
          LIST("{\"t\":1}", "{\"t\":3}"), LIST("{\"t\":4}", "{}"));
    TAKES("{\"items\":{\"enum\":[\"a\",\"b\",1]},\"uniqueItems\":true}", LIST("[]", "[1]", "[\"b\",\"a\",1]"),
          LIST("[1,1]", "[\"a\",\"b\",\"a\"]", "[2]"));
    TAKES("{\"items\":{\"enum\":[1,1.0,2]},\"uniqueItems\":true,\"minItems\":2,\"maxItems\":2}", LIST("[1,2]", "[2, 1]"),
          LIST("[1]", "[1,1.0]"));
    TAKES("{\"items\":{},\"uniqueItems\":true,\"maxItems\":1}", LIST("[]", "[[2]]"), LIST("[1,2]"));
    TAKES("{\"type\":\"integer\",\"exclusiveMinimum\":-14,\"maximum\":14,\"multipleOf\":7}", LIST("-7", "0", "7", "14"),
          LIST("-14", "1", "21", "-0"));
    TAKES("{\"type\":\"number\",\"minimum\":-0.5,\"maximum\":20.5,\"multipleOf\":10}", LIST("0", "10", "20"),
          LIST("-10", "5", "0.5", "30"));
    TAKES("{\"type\":\"number\",\"multipleOf\":1}", LIST("0", "-123456", "7"), LIST("0.5", "1e1"));
    TAKES("{\"type\":\"integer\",\"multipleOf\":1.0,\"minimum\":3}", LIST("3", "999999"), LIST("2"));
    TAKES("{\"enum\":[1,2,3,4.0],\"multipleOf\":2}", LIST("2", "4"), LIST("1", "3"));
    TAKES("{\"propertyNames\":{\"pattern\":\"^[a-c]+$\",\"maxLength\":2},\"additionalProperties\":{\"const\":1}}",
          LIST("{}", "{\"ab\":1,\"c\":1}"), LIST("{\"\":1}", "{\"abc\":1}", "{\"d\":1}"));
    TAKES("{\"propertyNames\":{\"enum\":[\"x\",1]},\"properties\":{\"x\":{\"const\":1},\"y\":{\"const\":2}}}",
          LIST("{}", "{\"x\":1}"), LIST("{\"y\":2}"));
}

static void test_combined(void **state) {
    (void)state;
    TAKES("{\"$defs\":{\"t\":{\"type\":\"object\",\"properties\":{\"v\":{\"const\":1},\"k\":{\"type\":\"array\",\"items\":{\"$"
          "ref\":\"#/$defs/t\"}}},"
          "\"required\":[\"v\"]}},\"$ref\":\"#/$defs/t\"}",
          LIST("{\"v\":1}", "{\"v\":1,\"k\":[{\"v\":1,\"k\":[]},{\"v\":1}]}"), LIST("{\"k\":[]}", "{\"v\":1,\"k\":[1]}"));
    TAKES("{\"allOf\":[{\"type\":\"integer\",\"minimum\":3},{\"maximum\":5}],\"enum\":[1,4,5,9]}", LIST("4", "5"),
          LIST("1", "9", "3"));
    TAKES("{\"properties\":{\"t\":{\"type\":\"string\"}},\"required\":[\"t\"],\"oneOf\":["
          "{\"properties\":{\"t\":{\"const\":\"a\"},\"x\":{\"const\":1}},\"required\":[\"x\"]},{\"properties\":{\"t\":{\"const\":"
          "\"b\"}}}]}",
          LIST("{\"t\":\"a\",\"x\":1}", "{\"t\":\"b\"}"), LIST("{\"t\":\"a\"}", "{\"t\":\"c\"}", "{\"t\":\"b\",\"x\":1}"));
    TAKES("{\"anyOf\":[{\"type\":\"integer\"},false,{\"type\":\"null\"}]}", LIST("1", "null"), LIST("\"a\""));
    TAKES("{\"properties\":{\"x\":{\"$ref\":\"#/properties/y\",\"maximum\":3},\"y\":{\"type\":\"integer\",\"minimum\":2}}}",
          LIST("{\"x\":3,\"y\":9}"), LIST("{\"x\":4}", "{\"y\":1}"));
    TAKES("{\"$ref\":\"#/x-more/a~1b%20c/0\",\"x-more\":{\"a/b c\":[{\"const\":1}]}}", LIST("1"), LIST("2"));
    TAKES("{\"allOf\":[{\"properties\":{\"a\":{\"const\":1}}}],\"properties\":{\"b\":{\"const\":2}},\"unevaluatedProperties\":"
          "false}",
          LIST("{\"b\":2,\"a\":1}"), LIST("{\"c\":1}"));
    TAKES("{\"type\":\"integer\",\"title\":\"t\",\"default\":\"x\",\"examples\":[1],\"x-foo\":{\"multipleOf\":2},\"$comment\":"
          "\"\",\"readOnly\":true}",
          LIST("5"), LIST("\"x\""));
}

static void test_refused(void **state) {
    (void)state;
    uint32_t n = 0;
    for (const struct sh_keyword *k = sh_keywords; k->name != NULL; k++) {
        char schema[200], part[100];
        snprintf(schema, sizeof schema, "{\"properties\":{\"x\":{\"type\":\"array\",\"%s\":{}}}}", k->name);
        snprintf(part, sizeof part, "schema, #/properties/x: \"%s\" is not enforced here; leave it out", k->name);
        if (k->use == SH_KEYWORD_REFUSED) REFUSED(schema, SH_ERR_UNSUPPORTED, part), n++;
        else if (k->use == SH_KEYWORD_NO_EFFECT) sh_grammar_unref(grammar_of(SH_GRAMMAR_SCHEMA, schema));
    }
    assert_true(n >= 15);
    REFUSED("{\"type\":\"array\",\"uniqueItems\":true}", SH_ERR_UNSUPPORTED, "\"uniqueItems\" is enforced only");
    REFUSED("{\"items\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":1},\"uniqueItems\":true}", SH_ERR_UNSUPPORTED,
            "\"uniqueItems\"");
    REFUSED("{\"type\":\"number\",\"multipleOf\":0.01}", SH_ERR_UNSUPPORTED, "\"multipleOf\" is enforced only");
    REFUSED("{\"type\":\"integer\",\"multipleOf\":3,\"minimum\":9007199254740990,\"maximum\":9007199254740999}",
            SH_ERR_UNSUPPORTED, "\"multipleOf\" is enforced only");
    REFUSED("{\"type\":\"integer\",\"multipleOf\":2}", SH_ERR_UNSUPPORTED, "\"multipleOf\" is enforced only");
    REFUSED("{\"propertyNames\":{\"anyOf\":[{}]}}", SH_ERR_UNSUPPORTED, "\"anyOf\" in \"propertyNames\"");
    REFUSED("{\"type\":\"integer\",\"format\":\"uint8\"}", SH_ERR_UNSUPPORTED, "the format \"uint8\" is not enforced");
    REFUSED("{\"type\":\"string\",\"format\":\"iri\"}", SH_ERR_UNSUPPORTED, "the format \"iri\" is not enforced");
    REFUSED("{\"type\":\"string\",\"pattern\":\"(?=a)\"}", SH_ERR_UNSUPPORTED,
            "schema, #: regular expression, character 1: look-around");
    REFUSED("{\"$ref\":\"other.json#/a\"}", SH_ERR_UNSUPPORTED, "does not begin with #/");
    REFUSED("{\"properties\":{\"a\":{\"$id\":\"x\"}}}", SH_ERR_UNSUPPORTED, "\"$id\"");
    REFUSED("{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", SH_ERR_UNSUPPORTED, "branches 0 and 1 at once");
    REFUSED("{\"oneOf\":[{\"type\":\"object\"},{\"type\":\"null\"},{\"type\":\"object\",\"required\":[\"a\"]}]}",
            SH_ERR_UNSUPPORTED, "branches 0 and 2");
    REFUSED("{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"string\",\"pattern\":\"a\"}]}", SH_ERR_UNSUPPORTED, "use anyOf");
    REFUSED("{\"unevaluatedProperties\":{\"type\":\"null\"}}", SH_ERR_UNSUPPORTED, "\"unevaluatedProperties\"");
    REFUSED("{\"properties\":{\"a\":{}},\"allOf\":[{\"unevaluatedProperties\":false}]}", SH_ERR_UNSUPPORTED,
            "\"unevaluatedProperties\"");
    REFUSED("{\"enum\":[[1]],\"items\":{\"const\":1}}", SH_ERR_UNSUPPORTED, "beside keywords for their parts");
    REFUSED("{\"additionalProperties\":{},\"minProperties\":2}", SH_ERR_UNSUPPORTED, "\"minProperties\"");
    REFUSED("{\"type\":\"number\",\"minimum\":1e-20}", SH_ERR_UNSUPPORTED, "at most 15 digits");
    REFUSED("{\"type\":\"string\",\"pattern\":\"^(.*a.{20})$\",\"maxLength\":100}", SH_ERR_UNSUPPORTED, "too large");
}

static void test_contradictions(void **state) {
    (void)state;
    REFUSED("{\"properties\":{\"a\":{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}}}", SH_ERR_INVALID,
            "schema, #/properties/a: \"minLength\" is greater");
    REFUSED("{\"type\":\"array\",\"minItems\":3,\"maxItems\":2}", SH_ERR_INVALID, "\"minItems\" is greater");
    REFUSED("{\"type\":\"object\",\"minProperties\":3,\"maxProperties\":2}", SH_ERR_INVALID, "\"minProperties\" is greater");
    REFUSED("{\"type\":\"integer\",\"minimum\":3,\"exclusiveMaximum\":3}", SH_ERR_INVALID, "the lower bound is above");
    REFUSED("{\"type\":\"integer\",\"minimum\":0.25,\"maximum\":0.75}", SH_ERR_INVALID, "no integer lies between");
    REFUSED("{\"enum\":[]}", SH_ERR_INVALID, "\"enum\" must be an array of at least one value");
    REFUSED("{\"enum\":[1,2],\"type\":\"string\"}", SH_ERR_INVALID, "no value of \"enum\"");
    REFUSED("{\"allOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", SH_ERR_INVALID, "no \"type\" in common");
    REFUSED("{\"properties\":{\"a\":{}},\"required\":[\"b\"],\"additionalProperties\":false}", SH_ERR_INVALID,
            "a name in \"required\" is not allowed");
    REFUSED("{\"properties\":{\"a\":false},\"required\":[\"a\"]}", SH_ERR_INVALID, "a name in \"required\" is not allowed");
    REFUSED("{\"required\":[\"a\",\"b\"],\"maxProperties\":1}", SH_ERR_INVALID, "more names are required");
    REFUSED("{\"properties\":{\"a\":{}},\"minProperties\":2}", SH_ERR_INVALID, "\"minProperties\" asks for more members");
    REFUSED("{\"type\":\"string\",\"pattern\":\"^a{3}$\",\"maxLength\":2}", SH_ERR_INVALID, "no string satisfies");
    REFUSED("{\"prefixItems\":[{},false],\"minItems\":2}", SH_ERR_INVALID, "more items than are allowed");
    REFUSED("{\"items\":{\"enum\":[1,2]},\"uniqueItems\":true,\"minItems\":3}", SH_ERR_INVALID, "more different items");
    REFUSED("{\"type\":\"integer\",\"minimum\":1,\"maximum\":4,\"multipleOf\":5}", SH_ERR_INVALID, "no multiple lies");
    REFUSED("{\"propertyNames\":{\"maxLength\":1},\"required\":[\"ab\"]}", SH_ERR_INVALID, "a name in \"required\"");
    REFUSED("{\"multipleOf\":0}", SH_ERR_INVALID, "\"multipleOf\" must be a number above 0");
    REFUSED("false", SH_ERR_INVALID, "allows no value");
    REFUSED("{\"$ref\":\"#\"}", SH_ERR_INVALID, "refers to itself");
    REFUSED("{\"anyOf\":[{\"type\":\"null\"},{\"$ref\":\"#\"}]}", SH_ERR_INVALID, "refers to itself");
    REFUSED("{\"$defs\":{\"a\":{\"$ref\":\"#/$defs/b\"},\"b\":{\"allOf\":[{\"$ref\":\"#/$defs/a\"}]}},\"items\":{\"$ref\":\"#/"
            "$defs/a\"}}",
            SH_ERR_INVALID, "schema, #/$defs/a: this schema refers to itself");
    REFUSED("{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", SH_ERR_INVALID, "no text");
    REFUSED("{\"$ref\":\"#/$defs/x\"}", SH_ERR_INVALID, "leads nowhere");
    /* one type that cannot be leaves the others: they are generated, and seen by oneOf */
    TAKES("{\"type\":[\"integer\",\"string\"],\"maximum\":3,\"minimum\":3,\"maxLength\":2,\"format\":\"uuid\"}", LIST("3"), LIST("2"));
    TAKES("{\"type\":[\"integer\",\"string\"],\"maximum\":2,\"minimum\":3,\"maxLength\":2}", LIST("\"ab\""), LIST("2", "3"));
    REFUSED("{\"oneOf\":[{\"type\":[\"integer\",\"string\"],\"minLength\":3,\"maxLength\":2},{\"type\":\"integer\"}]}",
            SH_ERR_UNSUPPORTED, "branches 0 and 1");
    REFUSED("{\"oneOf\":[{\"minLength\":3,\"maxLength\":2},{\"type\":\"integer\"}]}", SH_ERR_UNSUPPORTED, "branches 0 and 1");
    REFUSED("{\"type\":\"text\"}", SH_ERR_INVALID, "\"type\" must be");
    REFUSED("{\"type\":[]}", SH_ERR_INVALID, "\"type\" must be");
    REFUSED("{\"properties\":[]}", SH_ERR_INVALID, "\"properties\" must be an object of schemas");
    REFUSED("{\"properties\":{\"a\":1}}", SH_ERR_INVALID, "\"properties\" must be");
    REFUSED("{\"items\":1}", SH_ERR_INVALID, "\"items\" must be a schema");
    REFUSED("{\"anyOf\":[]}", SH_ERR_INVALID, "\"anyOf\" must be");
    REFUSED("{\"required\":\"a\"}", SH_ERR_INVALID, "\"required\" must be an array of names");
    REFUSED("{\"minLength\":-1}", SH_ERR_INVALID, "\"minLength\" must be a whole number");
    REFUSED("{\"exclusiveMinimum\":true}", SH_ERR_INVALID, "\"exclusiveMinimum\" must be a number");
    REFUSED("{\"pattern\":\"(\"}", SH_ERR_INVALID, "no closing ')'");
    REFUSED("[1]", SH_ERR_INVALID, "schema, #: expected a schema");
    REFUSED("{\"a\":1,\"a\":2}", SH_ERR_INVALID, "no JSON");
    REFUSED("{\"a\":", SH_ERR_INVALID, "line 1");
    REFUSED("", SH_ERR_INVALID, "no JSON");
}

static char *repeated(const char *open, const char *middle, const char *close, uint32_t n) {
    char *text = malloc((strlen(open) + strlen(close)) * n + strlen(middle) + 1), *at = text;
    assert_non_null(text);
    for (uint32_t i = 0; i < n; i++) at = stpcpy(at, open);
    at = stpcpy(at, middle);
    for (uint32_t i = 0; i < n; i++) at = stpcpy(at, close);
    return text;
}

static void test_hostile(void **state) {
    (void)state;
    char *text = repeated("{\"items\":", "{}", "}", 300);
    REFUSED(text, SH_ERR_LIMIT, "more than 256 deep");
    free(text);
    text = repeated("{\"items\":", "{\"const\":1}", "}", 200);
    TAKES(text, LIST("[]", "[[[]]]"), LIST("1"));
    free(text);
    text = repeated("{\"anyOf\":[{\"type\":\"null\"},", "{\"type\":\"integer\"}", "]}", 100);
    TAKES(text, LIST("null", "1"), LIST("\"a\""));
    free(text);
    enum { SIZE = 1 << 19 };
    text = malloc(SIZE);
    assert_non_null(text);
    char *at = stpcpy(text, "{\"allOf\":[");
    for (int i = 0; i < 40; i++)
        at += sprintf(at, "%s{\"anyOf\":[{\"properties\":{\"a%d\":{\"const\":1}}},{\"properties\":{\"a%d\":{\"const\":2}}}]}",
                      i > 0 ? "," : "", i, i);
    strcpy(at, "]}");
    REFUSED(text, SH_ERR_LIMIT, "more than 256 alternatives");
    at = stpcpy(text, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
    for (int i = 0; i < 60; i++)
        at += sprintf(at, "\"d%d\":{\"allOf\":[{\"$ref\":\"#/$defs/d%d\"},{\"$ref\":\"#/$defs/d%d\"}]},", i, i + 1, i + 1);
    strcpy(at, "\"d60\":{\"const\":1}}}"); /* 2^60 ways to the same schema */
    TAKES(text, LIST("1"), LIST("2"));
    at = stpcpy(text, "{\"properties\":{");
    for (int i = 0; i < 2000; i++)
        at += sprintf(at, "%s\"p%d\":{\"type\":\"string\",\"pattern\":\"(a|b)*a(a|b){9}%d\",\"maxLength\":12}", i > 0 ? "," : "",
                      i, i);
    strcpy(at, "}}");
    REFUSED(text, SH_ERR_LIMIT, "patterns take more than");
    at = stpcpy(text, "{\"enum\":[");
    for (int i = 0; i < 40000; i++) at += sprintf(at, "%s\"v%d\"", i > 0 ? "," : "", i);
    strcpy(at, "]}");
    TAKES(text, LIST("\"v0\"", "\"v39999\""), LIST("\"v40000\"", "\"\""));
    at = stpcpy(text, "{\"properties\":{");
    for (int i = 0; i < 2000; i++) at += sprintf(at, "%s\"p%d\":{\"const\":%d}", i > 0 ? "," : "", i, i);
    strcpy(at, "},\"additionalProperties\":{\"const\":-1}}");
    TAKES(text, LIST("{\"p1\":1,\"p1999\":1999,\"p2000\":-1}"), LIST("{\"p5\":-1}"));
    free(text);
    TAKES("{\"type\":\"array\",\"minItems\":1000,\"items\":{\"type\":\"string\",\"minLength\":100000}}", NULL, LIST("[]"));
    text = calloc(1, (1 << 20) + 3);
    assert_non_null(text);
    memset(text, ' ', (1 << 20) + 2);
    REFUSED(text, SH_ERR_LIMIT, "1048576");
    free(text);
}

/* shimmyd-http(7) says of every keyword and format what the tables say. */
static void test_manual(void **state) {
    (void)state;
    size_t bytes;
    char *page = test_read_file("man/shimmyd-http.7", &bytes);
    char *text = realloc(page, bytes + 1);
    assert_non_null(text);
    text[bytes] = 0;
    static const char *const heads[] = {".SS Enforced keywords", ".SS Keywords without effect", ".SS Refused keywords",
                                        ".SS Formats", NULL};
    const char *part[5];
    for (int i = 0; heads[i] != NULL; i++) {
        part[i] = strstr(text, heads[i]);
        if (part[i] == NULL) fail_msg("no %s", heads[i]);
    }
    part[4] = strstr(part[3] + 3, ".S");
    assert_non_null(part[4]);
    for (const struct sh_keyword *k = sh_keywords; k->name != NULL; k++) {
        const int where = k->use == SH_KEYWORD_ENFORCED ? 0 : k->use == SH_KEYWORD_NO_EFFECT ? 1 : 2;
        char name[64];
        snprintf(name, sizeof name, "\\fB%s\\fR", k->name);
        const char *found = strstr(part[where], name);
        if (found == NULL || found >= part[where + 1]) fail_msg("\"%s\" is not named under %s", k->name, heads[where]);
    }
    for (const struct sh_format_of_string *f = sh_string_formats; f->name != NULL; f++) {
        char name[64];
        size_t n = (size_t)snprintf(name, sizeof name, "\\fB");
        for (const char *p = f->name; *p != 0; p++) { /* a minus is written \- */
            if (*p == '-') name[n++] = '\\';
            name[n++] = *p;
        }
        strcpy(name + n, "\\fR");
        const char *found = strstr(part[3], name);
        if (found == NULL || found >= part[4]) fail_msg("the format %s is not named", f->name);
    }
    for (size_t i = 0; sh_number_formats[i] != NULL; i++) {
        char name[64];
        snprintf(name, sizeof name, "\\fB%s\\fR", sh_number_formats[i]);
        const char *found = strstr(part[3], name);
        if (found == NULL || found >= part[4]) fail_msg("the format %s is not named", sh_number_formats[i]);
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_walks),          cmocka_unit_test(test_scalars),  cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_strings),        cmocka_unit_test(test_arrays),   cmocka_unit_test(test_objects),
        cmocka_unit_test(test_distinct),       cmocka_unit_test(test_combined), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_contradictions), cmocka_unit_test(test_hostile),  cmocka_unit_test(test_manual),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
