/*
 * bare.c - strings as they stand between tags, rather than as JSON writes them: what a schema says of them, up to a closing tag.
 */
#include "compute/grammar/charset.h"

#include <stdlib.h>

/* A string that is held to more than its end has not the first two bytes of the closing tag in it ("</"), one of a large length
 * not even the first: looking for all of the tag would multiply the states of the other conditions. */
enum { TAG_BEGINS = 2, MAX_COUNTED = 256 };

static enum sh_code add_condition(struct sh_dfa **all, struct sh_dfa *one, struct sh_error *err) {
    enum sh_code code = SH_OK;
    if (*all == NULL) {
        *all = one;
        return SH_OK;
    }
    code = sh_dfa_intersect(all, one, err);
    sh_dfa_free(one);
    return code;
}

static enum sh_code pattern_dfa(const char *pattern, size_t length, bool search, struct sh_dfa **out, struct sh_error *err) {
    struct sh_rx *rx = NULL;
    *out = NULL;
    enum sh_code code = sh_rx_parse(pattern, length, &rx, err);
    if (code == SH_OK) code = sh_dfa_from_rx(rx, search, out, err);
    sh_rx_free(rx);
    return code;
}

/* All texts in which the tag begins. */
static enum sh_code end_dfa(const char *end, struct sh_dfa **out, struct sh_error *err) {
    char pattern[2 * TAG_BEGINS];
    size_t n = 0;
    for (size_t i = 0; i < TAG_BEGINS && end[i] != '\0'; i++) {
        if (strchr("\\^$.|?*+()[]{}", end[i]) != NULL) pattern[n++] = '\\';
        pattern[n++] = end[i];
    }
    return pattern_dfa(pattern, n, true, out, err);
}

enum sh_code sh_gr_bare_string(struct sh_gr *gr, const struct sh_gr_bare *bare, sh_gr_expr *out, struct sh_error *err) {
    *out = SH_GR_NEVER;
    const bool lengths = bare->min > 0 || bare->max != SH_GR_UNLIMITED;
    if (bare->pattern == NULL && bare->format == NULL) {
        if (!lengths) {
            *out = sh_gr_until(gr, bare->end, strlen(bare->end));
            return SH_OK;
        }
        if (bare->min > MAX_COUNTED || (bare->max > MAX_COUNTED && bare->max != SH_GR_UNLIMITED)) {
            const struct sh_gr_range range = {(uint8_t)bare->end[0], (uint8_t)bare->end[0]};
            *out = sh_gr_repeat(gr, sh_gr_class(gr, &range, 1, true), bare->min, bare->max);
            return SH_OK;
        }
    }
    struct sh_dfa *all = NULL, *one = NULL;
    enum sh_code code = SH_OK;
    if (bare->pattern != NULL) code = pattern_dfa(bare->pattern, strlen(bare->pattern), true, &all, err);
    if (code == SH_OK && bare->format != NULL) {
        code = pattern_dfa(bare->format, strlen(bare->format), false, &one, err);
        if (code == SH_OK) code = add_condition(&all, one, err);
    }
    if (code == SH_OK && lengths) {
        code = sh_dfa_from_lengths(bare->min, bare->max, &one, err);
        if (code == SH_OK) code = add_condition(&all, one, err);
    }
    if (code == SH_OK) {
        code = end_dfa(bare->end, &one, err);
        if (code == SH_OK) code = sh_dfa_subtract(&all, one, err);
        sh_dfa_free(one);
    }
    if (code == SH_OK && sh_dfa_is_empty(all))
        code = sh_fail(err, SH_ERR_INVALID, "no string satisfies its pattern, format and lengths together");
    if (code == SH_OK) code = sh_dfa_expr(gr, all, false, out, err);
    sh_dfa_free(all);
    return code;
}
