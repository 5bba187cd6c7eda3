#include "compute/text/normaliser.h"

#include "compute/text/utf8.h"

#include <stdlib.h>

struct sh_normaliser {
    uint32_t *units;
    uint32_t n_units;
    char *replacements; /* the last byte is a NUL */
    uint32_t n_replacements;
    bool merge_spaces;
};

enum {
    MAX_MATCH = 64,          /* bytes of text that one replacement stands for; NFKC's map has 10 */
    MAX_REPLACEMENT = 1024,  /* bytes; NFKC's map has 33 */
    MAX_GROWTH = 32,         /* times; NFKC's map, with space marks: 13 */
};

static const char space_mark[] = "\xE2\x96\x81", ill_formed[] = "\xEF\xBF\xBD";

/* ---- the map ------------------------------------------------------------------------------------------------- */

static enum sh_code bad_map(const struct sh_kv *kv, const char *why, struct sh_error *err) {
    return sh_fail(err, SH_ERR_FORMAT, "tokenizer.ggml.precompiled_charsmap at byte %llu: %s; convert the model again",
                   (unsigned long long)kv->offset, why);
}

static enum sh_code read_map(struct sh_normaliser *n, const struct sh_kv *kv, struct sh_error *err) {
    if (kv->type != SH_VALUE_ARRAY || (kv->element_type != SH_VALUE_U8 && kv->element_type != SH_VALUE_I8))
        return bad_map(kv, "found something else than an array of bytes", err);
    if (kv->count == 0) return SH_OK;
    const uint8_t *bytes = kv->data;
    uint32_t array_bytes = 0;
    if (kv->count > UINT32_MAX) return bad_map(kv, "more than 4 GiB are too many", err);
    if (kv->count > 4) memcpy(&array_bytes, bytes, 4);
    if (array_bytes == 0 || array_bytes % 4 != 0 || array_bytes >= kv->count - 4)
        return bad_map(kv, "the double array is empty, no whole number of units or longer than the map", err);
    const uint32_t n_replacements = (uint32_t)kv->count - 4 - array_bytes;
    const char *replacements = (const char *)bytes + 4 + array_bytes;
    if (replacements[n_replacements - 1] != '\0') return bad_map(kv, "the last replacement is not ended by a NUL", err);
    for (uint32_t at = 0; at < n_replacements;) {
        const size_t length = strlen(replacements + at);
        if (length > MAX_REPLACEMENT) return bad_map(kv, "a replacement is longer than 1024 bytes", err);
        at += (uint32_t)length + 1;
    }
    n->units = malloc(array_bytes);
    n->replacements = malloc(n_replacements);
    if (n->units == NULL || n->replacements == NULL)
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the vocabulary's character map");
    memcpy(n->units, bytes + 4, array_bytes);
    memcpy(n->replacements, replacements, n_replacements);
    n->n_units = array_bytes / 4;
    n->n_replacements = n_replacements;
    return SH_OK;
}

enum sh_code sh_normaliser_create(const struct sh_gguf *g, struct sh_normaliser **out, struct sh_error *err) {
    *out = NULL;
    struct sh_normaliser *n = sh_calloc(1, sizeof *n);
    if (n == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the vocabulary");
    n->merge_spaces = true;
    enum sh_code code = sh_gguf_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &n->merge_spaces, err);
    const struct sh_kv *map = sh_gguf_find(g, "tokenizer.ggml.precompiled_charsmap");
    if (code == SH_OK && map != NULL) code = read_map(n, map, err);
    if (code != SH_OK) {
        sh_normaliser_destroy(n);
        return code;
    }
    *out = n;
    return SH_OK;
}

void sh_normaliser_destroy(struct sh_normaliser *n) {
    if (n == NULL) return;
    free(n->units);
    free(n->replacements);
    free(n);
}

static uint32_t base_of(uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); }

/* The replacement of the longest match at the beginning of the text; 0: nothing matches, else the bytes matched. A leaf that
 * points outside of the replacements is none. */
static size_t longest_match(const struct sh_normaliser *n, const char *text, size_t length, const char **replacement) {
    size_t matched = 0;
    if (n->n_units == 0) return 0;
    uint32_t at = base_of(n->units[0]);
    for (size_t i = 0; i < length && i < MAX_MATCH && text[i] != '\0'; i++) {
        const uint8_t c = (uint8_t)text[i];
        at ^= c;
        if (at >= n->n_units) break;
        const uint32_t unit = n->units[at];
        if ((unit & (1u << 31 | 0xFF)) != c) break;
        at ^= base_of(unit);
        if ((unit & 1u << 8) == 0 || at >= n->n_units) continue;
        const uint32_t place = n->units[at] & INT32_MAX;
        if (place >= n->n_replacements) continue;
        *replacement = n->replacements + place;
        matched = i + 1;
    }
    return matched;
}

/* ---- text ---------------------------------------------------------------------------------------------------- */

struct output {
    char *bytes;
    uint32_t length, capacity;
    uint64_t limit;
    bool in_word, memory_ended;
};

static bool put(struct output *o, const char *s, uint32_t n) {
    if ((uint64_t)o->length + n > o->limit) return false;
    if (!sh_grow((void **)&o->bytes, &o->capacity, o->length + n, 1)) {
        o->memory_ended = true;
        return false;
    }
    memcpy(o->bytes + o->length, s, n);
    o->length += n;
    return true;
}

/* What a match, a code point or ill-formed bytes became. Removing extra space, a space is kept back until a word follows. */
static bool put_part(const struct sh_normaliser *n, struct output *o, bool add_space, const char *s, size_t length) {
    for (size_t i = 0; i < length;) {
        if (s[i] == ' ') {
            o->in_word = false;
            if (!n->merge_spaces && !put(o, space_mark, 3)) return false;
            i++;
            continue;
        }
        if (n->merge_spaces && !o->in_word && (o->length > 0 || add_space) && !put(o, space_mark, 3)) return false;
        o->in_word = true;
        size_t end = i + 1;
        while (end < length && s[end] != ' ') end++;
        if (!put(o, s + i, (uint32_t)(end - i))) return false;
        i = end;
    }
    return true;
}

enum sh_code sh_normalise(const struct sh_normaliser *n, const char *text, size_t length, bool add_space, char **out,
                          uint32_t *out_length, struct sh_error *err) {
    *out = NULL;
    *out_length = 0;
    if (length > INT32_MAX / 4) return sh_fail(err, SH_ERR_LIMIT, "the text is too long to tokenise: %zu bytes", length);
    struct output o = {.limit = sh_min_u64((uint64_t)length * MAX_GROWTH + MAX_REPLACEMENT, INT32_MAX)};
    bool ok = n->merge_spaces || !add_space || length == 0 || put(&o, space_mark, 3);
    for (size_t i = 0; i < length && ok;) {
        const char *part = NULL;
        const size_t matched = longest_match(n, text + i, length - i, &part);
        size_t step;
        if (matched > 0) {
            ok = put_part(n, &o, add_space, part, strlen(part));
            i += matched;
        } else if (sh_utf8_scan(text + i, length - i, &step, NULL) == SH_UTF8_OK) {
            ok = put_part(n, &o, add_space, text + i, step);
            i += step;
        } else { /* one for each byte, as SentencePiece does it */
            ok = put_part(n, &o, add_space, ill_formed, 3);
            i++;
        }
    }
    if (!ok) {
        free(o.bytes);
        if (o.memory_ended) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
        return sh_fail(err, SH_ERR_LIMIT, "the vocabulary's character map makes a text of %zu bytes longer than %llu", length,
                       (unsigned long long)o.limit);
    }
    *out = o.bytes;
    *out_length = o.length;
    return SH_OK;
}
