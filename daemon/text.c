/* text.c - see text.h. */
#include "daemon/text.h"

#include "compute/base.h"

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
