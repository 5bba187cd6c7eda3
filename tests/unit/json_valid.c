#include "tests/unit/json_valid.h"

#include <math.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static bool is_integer(const json_t *v) { return json_is_number(v) && floor(json_number_value(v)) == json_number_value(v); }

static bool is_type(const json_t *v, const char *type) {
    if (strcmp(type, "null") == 0) return json_is_null(v);
    if (strcmp(type, "boolean") == 0) return json_is_boolean(v);
    if (strcmp(type, "integer") == 0) return is_integer(v);
    if (strcmp(type, "number") == 0) return json_is_number(v);
    if (strcmp(type, "string") == 0) return json_is_string(v);
    if (strcmp(type, "array") == 0) return json_is_array(v);
    if (strcmp(type, "object") == 0) return json_is_object(v);
    fail_msg("type %s", type);
    return false;
}

static bool same(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) == json_number_value(b);
    return json_equal((json_t *)a, (json_t *)b);
}

static bool finds(const char *pattern, const char *text) {
    int number;
    PCRE2_SIZE offset;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_DOLLAR_ENDONLY | PCRE2_ALT_BSUX,
                                   &number, &offset, NULL);
    if (re == NULL) fail_msg("PCRE2 does not take %s", pattern);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    const bool found = pcre2_match(re, (PCRE2_SPTR)text, strlen(text), 0, 0, data, NULL) >= 0;
    pcre2_match_data_free(data);
    pcre2_code_free(re);
    return found;
}

static bool number_in(const char *text, size_t digits, long low, long high) {
    char copy[8] = "";
    if (strspn(text, "0123456789") < digits) return false;
    memcpy(copy, text, digits);
    const long v = strtol(copy, NULL, 10);
    return v >= low && v <= high;
}

static bool is_date(const char *t, size_t n) {
    if (n != 10 || t[4] != '-' || t[7] != '-' || !number_in(t, 4, 1, 9999) || !number_in(t + 5, 2, 1, 12) ||
        !number_in(t + 8, 2, 1, 31))
        return false;
    const int year = atoi(t), month = atoi(t + 5), day = atoi(t + 8);
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return day <= days[month - 1] + (month == 2 && leap);
}

static bool is_time(const char *t) {
    if (strlen(t) < 9 || !number_in(t, 2, 0, 23) || t[2] != ':' || !number_in(t + 3, 2, 0, 59) || t[5] != ':' ||
        !number_in(t + 6, 2, 0, 59))
        return false;
    t += 8;
    if (*t == '.') {
        const size_t digits = strspn(t + 1, "0123456789");
        if (digits == 0) return false;
        t += 1 + digits;
    }
    if (strcmp(t, "Z") == 0) return true;
    return (*t == '+' || *t == '-') && strlen(t) == 6 && number_in(t + 1, 2, 0, 23) && t[3] == ':' && number_in(t + 4, 2, 0, 59);
}

static bool is_format(const char *t, const char *format) {
    if (strcmp(format, "date") == 0) return is_date(t, strlen(t));
    if (strcmp(format, "time") == 0) return is_time(t);
    if (strcmp(format, "date-time") == 0) return strlen(t) > 11 && is_date(t, 10) && t[10] == 'T' && is_time(t + 11);
    if (strcmp(format, "uuid") == 0) return finds("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", t);
    if (strcmp(format, "ipv4") == 0) {
        unsigned part[4];
        char again[32];
        if (sscanf(t, "%3u.%3u.%3u.%3u", &part[0], &part[1], &part[2], &part[3]) != 4) return false;
        for (int i = 0; i < 4; i++) {
            if (part[i] > 255) return false;
        }
        snprintf(again, sizeof again, "%u.%u.%u.%u", part[0], part[1], part[2], part[3]);
        return strcmp(again, t) == 0;
    }
    if (strcmp(format, "duration") == 0)
        return finds("^P(?!$)(\\d+Y)?(\\d+M)?(\\d+D)?(T(?=\\d)(\\d+H)?(\\d+M)?(\\d+S)?)?$|^P\\d+W$", t);
    if (strcmp(format, "email") == 0)
        return strlen(t) < 254 &&
               finds("^[^@\\s\"()<>,;:\\[\\]]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\\.)+[A-Za-z]+$", t);
    if (strcmp(format, "hostname") == 0)
        return strlen(t) < 254 &&
               finds("^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$", t);
    if (strcmp(format, "uri") == 0)
        return finds("^[a-z]+://[A-Za-z0-9.-]+(:\\d+)?(/"
                     "([^\\s%<>\"{}|\\\\^`#?\\[\\]]|%[0-9A-F]{2})*)?(\\?([^\\s%<>\"{}|\\\\^`#\\[\\]]|%[0-9A-F]{2})*)?(#([^\\s%<>"
                     "\"{}|\\\\^`#\\[\\]]|%[0-9A-F]{2})*)?$",
                     t);
    if (strcmp(format, "ipv6") == 0) {
        unsigned groups = 0, gaps = 0;
        for (const char *p = t; *p != 0;) {
            const size_t digits = strspn(p, "0123456789abcdefABCDEF");
            if (digits > 4) return false;
            groups += digits > 0;
            p += digits;
            if (*p == 0) break;
            if (*p != ':') return false;
            if (p[1] == ':') gaps++, p++;
            else if (digits == 0 || p[1] == 0) return false;
            p++;
        }
        return gaps == 0 ? groups == 8 : gaps == 1 && groups < 8;
    }
    fail_msg("format %s", format);
    return false;
}

static const json_t *pointed(const json_t *root, const char *ref) {
    assert_int_equal(ref[0], '#');
    char copy[200];
    assert_true(strlen(ref) < sizeof copy);
    strcpy(copy, ref + 1);
    for (char *save = NULL, *part = strtok_r(copy, "/", &save); part != NULL; part = strtok_r(NULL, "/", &save)) {
        root = json_is_array(root) ? json_array_get(root, (size_t)atol(part)) : json_object_get(root, part);
    }
    assert_non_null(root);
    return root;
}

static double length_of(const json_t *v) {
    double n = 0;
    for (const char *p = json_string_value(v); *p != 0; p++) n += (*p & 0xC0) != 0x80;
    return n;
}

static bool one_keyword(const json_t *root, const json_t *schema, const char *key, const json_t *k, const json_t *v) {
    static const char *const ignored[] = {"$schema", "$id",      "$defs",    "definitions", "title",   "description",
                                          "default", "examples", "$comment", "x-more",      "nullable"};
    size_t i;
    const json_t *one;
    const char *name;
    json_t *member;
    for (i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        if (strcmp(key, ignored[i]) == 0) return true;
    }
#define KEY(text) (strcmp(key, text) == 0)
    const double limit = json_number_value(k), number = json_number_value(v);
    if (KEY("type")) {
        if (json_is_null(v) && json_is_true(json_object_get(schema, "nullable"))) return true;
        if (json_is_string(k)) return is_type(v, json_string_value(k));
        json_array_foreach(k, i, one) {
            if (is_type(v, json_string_value(one))) return true;
        }
        return false;
    }
    if (KEY("enum")) {
        json_array_foreach(k, i, one) {
            if (same(one, v)) return true;
        }
        return false;
    }
    if (KEY("const")) return same(k, v);
    if (KEY("$ref")) return json_valid(root, pointed(root, json_string_value(k)), v);
    if (KEY("anyOf") || KEY("oneOf") || KEY("allOf")) {
        size_t n = 0;
        json_array_foreach(k, i, one) n += json_valid(root, one, v);
        return KEY("anyOf") ? n > 0 : KEY("oneOf") ? n == 1 : n == json_array_size(k);
    }
    if (KEY("minimum")) return !json_is_number(v) || number >= limit;
    if (KEY("maximum")) return !json_is_number(v) || number <= limit;
    if (KEY("exclusiveMinimum")) return !json_is_number(v) || number > limit;
    if (KEY("exclusiveMaximum")) return !json_is_number(v) || number < limit;
    if (KEY("multipleOf")) return !json_is_number(v) || fmod(number, limit) == 0;
    if (KEY("minLength")) return !json_is_string(v) || length_of(v) >= limit;
    if (KEY("maxLength")) return !json_is_string(v) || length_of(v) <= limit;
    if (KEY("pattern")) return !json_is_string(v) || finds(json_string_value(k), json_string_value(v));
    if (KEY("format")) return !json_is_string(v) || is_format(json_string_value(v), json_string_value(k));
    if (KEY("minItems")) return !json_is_array(v) || (double)json_array_size(v) >= limit;
    if (KEY("maxItems")) return !json_is_array(v) || (double)json_array_size(v) <= limit;
    if (KEY("minProperties")) return !json_is_object(v) || (double)json_object_size(v) >= limit;
    if (KEY("maxProperties")) return !json_is_object(v) || (double)json_object_size(v) <= limit;
    if (KEY("prefixItems")) {
        json_array_foreach(k, i, one) {
            if (json_is_array(v) && i < json_array_size(v) && !json_valid(root, one, json_array_get(v, i))) return false;
        }
        return true;
    }
    if (KEY("items")) {
        json_array_foreach(v, i, one) {
            if (i >= json_array_size(json_object_get(schema, "prefixItems")) && !json_valid(root, k, one)) return false;
        }
        return true;
    }
    if (KEY("uniqueItems")) {
        json_array_foreach(v, i, one) {
            for (size_t j = 0; j < i; j++) {
                if (same(one, json_array_get(v, j))) return false;
            }
        }
        return true;
    }
    if (KEY("properties")) {
        json_object_foreach((json_t *)k, name, member) {
            const json_t *own = json_object_get(v, name);
            if (own != NULL && !json_valid(root, member, own)) return false;
        }
        return true;
    }
    if (KEY("required")) {
        json_array_foreach(k, i, one) {
            if (json_is_object(v) && json_object_get(v, json_string_value(one)) == NULL) return false;
        }
        return true;
    }
    if (KEY("propertyNames")) {
        json_object_foreach((json_t *)v, name, member) {
            json_t *text = json_string(name);
            const bool ok = json_valid(root, k, text);
            json_decref(text);
            if (!ok) return false;
        }
        return true;
    }
    if (KEY("patternProperties") || KEY("additionalProperties") || KEY("unevaluatedProperties")) {
        json_object_foreach((json_t *)v, name, member) {
            const char *pattern;
            json_t *sub;
            bool matched = json_object_get(json_object_get(schema, "properties"), name) != NULL;
            json_object_foreach((json_t *)json_object_get(schema, "patternProperties"), pattern, sub) {
                if (!finds(pattern, name)) continue;
                matched = true;
                if (KEY("patternProperties") && !json_valid(root, sub, member)) return false;
            }
            if (KEY("unevaluatedProperties")) { /* of allOf's branches alone */
                json_array_foreach(json_object_get(schema, "allOf"), i, one) {
                    matched |= json_object_get(json_object_get(one, "properties"), name) != NULL;
                }
            }
            if (!KEY("patternProperties") && !matched && !json_valid(root, k, member)) return false;
        }
        return true;
    }
#undef KEY
    fail_msg("the keyword %s", key);
    return false;
}

bool json_valid(const json_t *root, const json_t *schema, const json_t *value) {
    if (json_is_boolean(schema)) return json_is_true(schema);
    const char *key;
    json_t *k;
    json_object_foreach((json_t *)schema, key, k) {
        if (!one_keyword(root, schema, key, k, value)) return false;
    }
    return true;
}
