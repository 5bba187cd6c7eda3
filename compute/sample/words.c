/* Strings of a request as the token lists that a sampler takes. */
#include "compute/base.h"

#include <stdlib.h>

/* The first so many bytes of a breaker, and tokens of its rest, count: together they bound the search in each step. */
enum { BREAKER_BYTES = 40, BREAKER_TAIL = 20 };

struct builder {
    int32_t *tokens;
    uint32_t *lengths;
    uint32_t n_tokens, cap_tokens, count, cap_lengths;
};

/* Adds `head` (unless it is negative) and the tokens behind it as one list. */
static bool add(struct builder *b, int32_t head, const int32_t *tokens, size_t count) {
    if (count > INT32_MAX - b->n_tokens - 1u) return false;
    const uint32_t length = (head >= 0) + (uint32_t)count;
    if (!sh_grow((void **)&b->tokens, &b->cap_tokens, b->n_tokens + length, sizeof *b->tokens) ||
        !sh_grow((void **)&b->lengths, &b->cap_lengths, b->count + 1, sizeof *b->lengths))
        return false;
    if (head >= 0) b->tokens[b->n_tokens] = head;
    if (count > 0) memcpy(b->tokens + b->n_tokens + (head >= 0), tokens, count * sizeof *tokens);
    b->n_tokens += length;
    b->lengths[b->count++] = length;
    return true;
}

static enum sh_code finish(struct builder *b, enum sh_code code, struct sh_token_lists *out) {
    *out = (struct sh_token_lists){.tokens = b->tokens, .lengths = b->lengths, .count = b->count};
    if (code != SH_OK) sh_token_lists_finish(out);
    return code;
}

void sh_token_lists_finish(struct sh_token_lists *lists) {
    free((void *)lists->tokens);
    free((void *)lists->lengths);
    *lists = (struct sh_token_lists){0};
}

static enum sh_code no_memory(struct sh_error *err) { return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request's words"); }

/* ---- bad words ---- */

static enum sh_code add_word(struct builder *b, const struct sh_vocab *vocab, const char *word, uint32_t index,
                             struct sh_error *err) {
    word += strspn(word, " ");
    const size_t length = strlen(word);
    char *spaced = malloc(length + 2);
    int32_t *plain_ids = NULL, *spaced_ids = NULL;
    size_t n_plain = 0, n_spaced = 0;
    if (spaced == NULL) return no_memory(err);
    spaced[0] = ' ';
    memcpy(spaced + 1, word, length + 1);
    enum sh_code code = sh_tokenize(vocab, word, length, 0, &plain_ids, &n_plain, err);
    if (code == SH_OK) code = sh_tokenize(vocab, spaced, length + 1, 0, &spaced_ids, &n_spaced, err);
    if (code == SH_OK && (length == 0 || n_plain == 0))
        code = sh_fail(err, SH_ERR_INVALID, "bad_words[%u]: found nothing but spaces, expected a text to keep out", index);
    if (code == SH_OK && !add(b, -1, plain_ids, n_plain)) code = no_memory(err);
    const bool other = code == SH_OK && n_spaced == n_plain && spaced_ids[0] != plain_ids[0];
    if (other && !add(b, -1, spaced_ids, n_spaced)) code = no_memory(err);
    free(plain_ids);
    free(spaced_ids);
    free(spaced);
    return code;
}

enum sh_code sh_bad_words(const struct sh_vocab *vocab, const char *const *words, uint32_t n_words, struct sh_token_lists *out,
                          struct sh_error *err) {
    struct builder b = {0};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < n_words && code == SH_OK; i++) code = add_word(&b, vocab, words[i], i, err);
    return finish(&b, code, out);
}

/* ---- breakers ---- */

struct rest { /* of a breaker, from some byte on */
    int32_t *ids;
    size_t count;
    bool known;
};

static bool contains(const char *piece, size_t n, const char *text, size_t length) {
    return n >= length && memmem(piece, n, text, length) != NULL;
}

static enum sh_code add_overlaps(struct builder *b, const struct sh_vocab *vocab, int32_t token, const char *text, size_t length,
                                 struct rest *rests, struct sh_error *err) {
    size_t n;
    const char *piece = sh_vocab_piece(vocab, token, true, &n);
    if (contains(piece, n, text, length)) return add(b, token, NULL, 0) ? SH_OK : no_memory(err);
    for (size_t k = n < length ? n : length - 1; k > 0; k--) { /* its last k bytes are the breaker's first? */
        if (memcmp(piece + n - k, text, k) != 0) continue;
        if (!rests[k].known) {
            const enum sh_code code = sh_tokenize(vocab, text + k, length - k, 0, &rests[k].ids, &rests[k].count, err);
            if (code != SH_OK) return code;
            rests[k].known = true;
            if (rests[k].count > BREAKER_TAIL) rests[k].count = BREAKER_TAIL;
        }
        if (!add(b, token, rests[k].ids, rests[k].count)) return no_memory(err);
    }
    return SH_OK;
}

static enum sh_code add_breaker(struct builder *b, const struct sh_vocab *vocab, const char *text, uint32_t index,
                                struct sh_error *err) {
    struct rest rests[BREAKER_BYTES] = {0};
    const size_t length = strnlen(text, BREAKER_BYTES);
    if (length == 0)
        return sh_fail(err, SH_ERR_INVALID, "dry_sequence_breakers[%u]: found an empty string, expected a text", index);
    enum sh_code code = SH_OK;
    for (uint32_t t = 0; t < sh_vocab_size(vocab) && code == SH_OK; t++)
        code = add_overlaps(b, vocab, (int32_t)t, text, length, rests, err);
    for (size_t k = 0; k < SH_COUNT(rests); k++) free(rests[k].ids);
    return code;
}

enum sh_code sh_dry_breakers(const struct sh_vocab *vocab, const char *const *breakers, uint32_t n_breakers,
                             struct sh_token_lists *out, struct sh_error *err) {
    struct builder b = {0};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < n_breakers && code == SH_OK; i++) code = add_breaker(&b, vocab, breakers[i], i, err);
    return finish(&b, code, out);
}
