/* text.c - see text.h. */
#include "daemon/text.h"

#include "compute/base.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

json_t *json_bytes(const char *text, size_t length) {
    json_t *string = json_stringn(text, length);
    if (string) return string;
    char *clean = malloc(length * 3 + 1); /* U+FFFD has three bytes */
    size_t n = 0;
    for (size_t i = 0; clean && i < length;) {
        size_t take = sh_utf8_length(text + i, length - i);
        memcpy(clean + n, take ? text + i : "\xef\xbf\xbd", take ? take : 3);
        n += take ? take : 3;
        i += take ? take : 1;
    }
    string = clean ? json_stringn(clean, n) : NULL;
    free(clean);
    return string;
}

/* The digits that bring back all numbers of a value. */
static size_t digits_of(const json_t *value) {
    size_t digits = 15, index;
    json_t *item;
    const char *key;
    if (json_is_real(value)) {
        char text[40];
        snprintf(text, sizeof text, "%.15g", json_real_value(value));
        return strtod(text, NULL) == json_real_value(value) ? 15 : 17;
    }
    json_array_foreach(value, index, item) digits = digits == 17 ? 17 : digits_of(item);
    json_object_foreach((json_t *)value, key, item) digits = digits == 17 ? 17 : digits_of(item);
    return digits;
}

char *json_exact(const json_t *value) {
    return json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits_of(value)));
}

void text_clean(char *text) {
    for (size_t left = strlen(text); left > 0;) {
        size_t take = sh_utf8_length(text, left);
        if (take == 0) *text = '?';
        text += take ? take : 1;
        left -= take ? take : 1;
    }
}

uint32_t text_distance(const char *a, const char *b) {
    uint32_t row[TEXT_DISTANCE_MAX];
    size_t n = strlen(b);
    if (n >= SH_COUNT(row)) return UINT32_MAX;
    for (uint32_t j = 0; j <= n; j++) row[j] = j;
    for (uint32_t i = 1; a[i - 1]; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (uint32_t j = 1; j <= n; j++) {
            uint32_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

uint64_t text_hash(const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < count; i++) h = (h ^ at[i]) * 1099511628211u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u; /* FNV's low bits see little of the last bytes */
    return h ^ h >> 32;
}

bool text_duration(const char *text, int64_t *seconds) {
    static const struct {
        const char *unit;
        double seconds;
    } units[] = {{"ns", 1e-9}, {"us", 1e-6}, {"\xc2\xb5s", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}};
    double sum = 0;
    const bool negative = *text == '-';
    const char *at = text + (*text == '-' || *text == '+');
    const bool alone = *at && at[strspn(at, "0123456789.")] == 0;
    do {
        char number[32];
        const size_t length = strspn(at, "0123456789."), dots = length ? strcspn(at, ".") : 0;
        if (length == 0 || length >= sizeof number || (dots < length && (length == 1 || memchr(at + dots + 1, '.', length - dots - 1))))
            return false;
        memcpy(number, at, length);
        number[length] = 0;
        at += length;
        double factor = alone ? 1 : 0;
        for (size_t i = 0; i < SH_COUNT(units) && factor == 0; i++) {
            const size_t n = strlen(units[i].unit);
            const bool ends = strncmp(at, units[i].unit, n) == 0 && (!at[n] || strchr("0123456789.", at[n]));
            if (ends) factor = units[i].seconds;
            if (ends) at += n;
        }
        if (factor == 0) return false;
        sum += strtod(number, NULL) * factor;
    } while (*at);
    *seconds = negative && sum > 0 ? -1 : sum > 1e9 ? 1000000000 : (int64_t)ceil(sum - 1e-9);
    return true;
}
