/* choices.c - one of several texts. */
#include "compute/grammar/grammar.h"

#include <jansson.h>
#include <stdlib.h>

enum sh_code sh_gr_choices(struct sh_gr *gr, const char *array, size_t length, sh_gr_expr *out, struct sh_error *err) {
    if (length > SH_GR_MAX_TEXT) {
        return sh_fail(err, SH_ERR_LIMIT, "the choices have %zu bytes, at most %d are allowed", length, SH_GR_MAX_TEXT);
    }
    json_error_t why;
    json_t *list = json_loadb(array, length, 0, &why);
    if (list == NULL) {
        return sh_fail(err, SH_ERR_INVALID, "the choices are no JSON: %s in line %d, column %d; expected an array of strings",
                       why.text, why.line, why.column);
    }
    enum sh_code code = SH_OK;
    const size_t n = json_array_size(list);
    if (n == 0) {
        code = sh_fail(err, SH_ERR_INVALID, "the choices must be a JSON array of at least one string");
        json_decref(list);
        return code;
    }
    sh_gr_expr *items = sh_calloc(n, sizeof *items);
    if (items == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %zu choices", n);
    for (size_t i = 0; code == SH_OK && i < n; i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_string(item)) code = sh_fail(err, SH_ERR_INVALID, "choice %zu is no string", i + 1);
        else if (json_string_length(item) == 0) code = sh_fail(err, SH_ERR_INVALID, "choice %zu is empty; leave it out", i + 1);
        else items[i] = sh_gr_text(gr, json_string_value(item), json_string_length(item));
    }
    if (code == SH_OK) *out = sh_gr_choice(gr, items, (uint32_t)n);
    free(items);
    json_decref(list);
    return code;
}
