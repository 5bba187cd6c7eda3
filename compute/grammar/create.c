/* The kinds of grammar that requests name. */
#include "compute/grammar/grammar.h"

#include <stdlib.h>

enum sh_code sh_gr_of_kind(struct sh_gr *gr, const struct sh_vocab *vocab, enum sh_grammar_kind kind, const char *text, size_t length,
                           sh_gr_expr *out, struct sh_error *err) {
    switch (kind) {
    case SH_GRAMMAR_GBNF: return sh_gr_gbnf(gr, vocab, text, length, out, err);
    case SH_GRAMMAR_SCHEMA: return sh_gr_schema(gr, text, length, out, err);
    case SH_GRAMMAR_REGEX: return sh_gr_regex(gr, text, length, false, false, out, err);
    case SH_GRAMMAR_CHOICE: return sh_gr_choices(gr, text, length, out, err);
    case SH_GRAMMAR_OBJECT: *out = sh_gr_json_object(gr); return SH_OK;
    default: return sh_fail(err, SH_ERR_INVALID, "grammar: kind %d is none of gbnf, schema, object, regex, choice", (int)kind);
    }
}

enum sh_code sh_grammar_create(const struct sh_vocab *vocab, enum sh_grammar_kind kind, const char *text, size_t length,
                               struct sh_grammar **out, struct sh_error *err) {
    *out = NULL;
    if (kind == SH_GRAMMAR_OBJECT) length = 0;
    if (length > SH_GR_MAX_TEXT) return sh_fail(err, SH_ERR_LIMIT, "a grammar of %zu bytes; at most %d", length, SH_GR_MAX_TEXT);
    static const char mark[] = "sh_grammar_create"; /* keys of others begin otherwise */
    char *key = malloc(sizeof mark + 1 + length);
    struct sh_gr *gr = sh_gr_create();
    enum sh_code code = SH_OK;
    if (key == NULL || gr == NULL) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a grammar");
        goto done;
    }
    memcpy(key, mark, sizeof mark);
    key[sizeof mark] = (char)kind;
    if (length > 0) memcpy(key + sizeof mark + 1, text, length);
    *out = sh_grammar_recall(vocab, key, sizeof mark + 1 + length);
    if (*out != NULL) goto done;
    sh_gr_expr root;
    code = sh_gr_of_kind(gr, vocab, kind, text, length, &root, err);
    if (code == SH_OK) code = sh_gr_compile(gr, root, vocab, out, err);
    if (code == SH_OK) sh_grammar_remember(vocab, key, sizeof mark + 1 + length, *out);
done:
    sh_gr_destroy(gr);
    free(key);
    return code;
}
