/* fields.c - single fields of a request's JSON, and what is said of wrong ones. */
#include "daemon/http/fields.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool api_no_memory(struct api_error *err) { return api_fail(err, 503, "out_of_memory", NULL, "no memory for this request"); }

/* "the string \"hot\"", "the integer 3", "an object": what stands there, short. */
const char *api_found(const json_t *value, char *buf, size_t cap) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: snprintf(buf, cap, "an object"); break;
    case JSON_ARRAY: snprintf(buf, cap, "an array of %zu", json_array_size(value)); break;
    case JSON_STRING: {
        const char *text = json_string_value(value);
        int shown = 0; /* not within a code point */
        for (int i = 0; i <= 40; i++) {
            if (((unsigned char)text[i] & 0xc0) != 0x80) shown = i;
            if (!text[i]) break;
        }
        snprintf(buf, cap, "the string \"%.*s\"%s", shown, text, text[shown] ? "..." : "");
        break;
    }
    case JSON_INTEGER: snprintf(buf, cap, "the integer %lld", (long long)json_integer_value(value)); break;
    case JSON_REAL: snprintf(buf, cap, "the number %g", json_real_value(value)); break;
    default: snprintf(buf, cap, "%s", json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
    return buf;
}

bool api_wrong(struct api_error *err, const char *param, const json_t *value, const char *expected) {
    char buf[128];
    if (!value) return api_fail(err, 400, "missing_required_parameter", param, "%s: missing, expected %s", param, expected);
    return api_fail(err, 400, "invalid_type", param, "%s: found %s, expected %s", param, api_found(value, buf, sizeof(buf)),
                    expected);
}

bool api_out_of_range(struct api_error *err, const char *param, const json_t *value, const char *expected) {
    api_wrong(err, param, value, expected);
    err->code = "invalid_value";
    return false;
}

/* ---- single fields; null and absent mean the default, which *out holds already ---- */

const json_t *api_field(const json_t *body, const char *name) {
    const json_t *value = json_object_get(body, name);
    return value && !json_is_null(value) ? value : NULL;
}

bool api_get_bool(const json_t *body, const char *name, bool *out, struct api_error *err) {
    const json_t *value = api_field(body, name);
    if (value && !json_is_boolean(value)) return api_wrong(err, name, value, "a boolean");
    if (value) *out = json_is_true(value);
    return true;
}

bool api_read_integer(const json_t *value, const char *param, int64_t min, int64_t max, int64_t *out, struct api_error *err) {
    char expected[80];
    if (max == INT64_MAX) snprintf(expected, sizeof(expected), "an integer");
    else snprintf(expected, sizeof(expected), "an integer from %lld to %lld", (long long)min, (long long)max);
    double real = json_is_real(value) ? json_real_value(value) : 0;
    if (json_is_integer(value)) *out = json_integer_value(value);
    else if (json_is_real(value) && real == floor(real) && fabs(real) < 9e15) /* 16.0 is what some languages make of 16 */
        *out = (int64_t)real;
    else return api_wrong(err, param, value, expected);
    return (*out >= min && *out <= max) || api_out_of_range(err, param, value, expected);
}

bool api_get_integer(const json_t *body, const char *name, int64_t min, int64_t max, int64_t *out, struct api_error *err) {
    const json_t *value = api_field(body, name);
    return !value || api_read_integer(value, name, min, max, out, err);
}

bool api_get_count(const json_t *body, const char *name, uint32_t min, uint32_t max, uint32_t *out, struct api_error *err) {
    int64_t value = *out;
    if (!api_get_integer(body, name, min, max, &value, err)) return false;
    *out = (uint32_t)value;
    return true;
}

bool api_get_number(const json_t *body, const char *name, double min, double max, float *out, struct api_error *err) {
    const json_t *value = api_field(body, name);
    char expected[80];
    if (!value) return true;
    snprintf(expected, sizeof(expected), "a number from %g to %g", min, max);
    if (!json_is_number(value)) return api_wrong(err, name, value, expected);
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) return api_out_of_range(err, name, value, expected);
    *out = (float)number;
    return true;
}

/* A copy of a string without NULs. */
bool api_copy_string(const json_t *value, const char *param, char **out, struct api_error *err) {
    if (!json_is_string(value)) return api_wrong(err, param, value, "a string");
    if (strlen(json_string_value(value)) != json_string_length(value))
        return api_fail(err, 400, "invalid_value", param, "%s: found a string with a NUL character, expected none", param);
    *out = strdup(json_string_value(value));
    return *out || api_no_memory(err);
}

bool api_copy_text(const json_t *value, const char *param, char **out, size_t *length, struct api_error *err) {
    if (!json_is_string(value)) return api_wrong(err, param, value, "a string");
    *length = json_string_length(value);
    if (!(*out = malloc(*length + 1))) return api_no_memory(err);
    memcpy(*out, json_string_value(value), *length + 1);
    return true;
}

bool api_copy_ids(const json_t *array, const char *param, int32_t **out, uint32_t *count, struct api_error *err) {
    size_t n = json_array_size(array);
    if (n > INT32_MAX / sizeof(int32_t))
        return api_fail(err, 400, "invalid_value", param, "%s: found %zu token ids, too many", param, n);
    if (!(*out = malloc(n ? n * sizeof(**out) : 1))) return api_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        int64_t id = json_integer_value(value);
        char at[96]; /* written only for what is not plainly right: there may be millions */
        if (!json_is_integer(value) || id < 0 || id > INT32_MAX) {
            snprintf(at, sizeof(at), "%s[%zu]", param, i);
            if (!api_read_integer(value, at, 0, INT32_MAX, &id, err)) return false;
        }
        (*out)[i] = (int32_t)id;
    }
    *count = (uint32_t)n;
    return true;
}

bool api_copy_json(const json_t *value, char **out, struct api_error *err) {
    *out = json_exact(value);
    return *out || api_no_memory(err);
}
