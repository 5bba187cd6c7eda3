/*
 * tokenize.c - text to ids and back, prompts of chats among it: special tokens are found first, the text between them goes to the vocabulary's tokenizer.
 */
#include "compute/text/vocab.h"

#include <stdlib.h>

struct fragment { /* a special token, or text between */
    size_t at, length;
    int32_t token; /* -1: text */
};
struct fragments {
    struct fragment *items;
    uint32_t count, capacity;
};

static bool add_fragment(struct fragments *list, size_t at, size_t length, int32_t token) {
    if (length == 0 && token < 0) return true;
    if (!sh_grow((void **)&list->items, &list->capacity, list->count + 1, sizeof *list->items)) return false;
    list->items[list->count++] = (struct fragment){at, length, token};
    return true;
}

static bool bit(const uint64_t set[4], unsigned char c) { return (set[c >> 6] >> (c & 63) & 1) != 0; }
static bool is_white(unsigned char c) { return c == ' ' || (c >= 9 && c <= 13); }

/* Which parts of the text are literal; asked for ascending and descending positions, so it is a search. */
struct literals {
    const struct sh_chat_part *parts;
    uint32_t count;
};
static bool touches_literal(const struct literals *l, size_t begin, size_t end) {
    uint32_t low = 0, high = l->count; /* the first part that ends behind begin */
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (l->parts[middle].end > begin) high = middle;
        else low = middle + 1;
    }
    for (; low < l->count && l->parts[low].begin < end; low++) {
        if (l->parts[low].literal) return true;
    }
    return false;
}

/* The special token of this length at `at`, if there is one that may be parsed there; else -1. */
static int32_t special_at(const struct sh_vocab *v, const char *text, size_t at, uint32_t length, bool control,
                          const struct literals *literals) {
    const int32_t id = sh_vocab_find_special(v, text + at, length);
    if (id < 0) return -1;
    const bool user_defined = v->types[id] == SH_TOKEN_USER_DEFINED;
    if (!user_defined && !control) return -1;
    if (literals->count > 0 && (!user_defined || (v->flags[id] & SH_TOKEN_STRUCTURAL)) &&
        touches_literal(literals, at, at + length)) {
        return -1;
    }
    return id;
}

/* Longer tokens are found first in the whole text, then shorter ones in what is left; of one length from left to right. */
static bool find_specials(const struct sh_vocab *v, const char *text, size_t length, bool control,
                          const struct literals *literals, struct fragments *out) {
    struct fragments next = {0};
    out->count = 0;
    bool ok = add_fragment(out, 0, length, -1);
    const uint32_t which = control ? 1 : 0;
    for (uint32_t g = 0; g < v->n_groups[which] && ok; g++) {
        const struct sh_special_group *group = &v->groups[which][g];
        next.count = 0;
        for (uint32_t i = 0; i < out->count && ok; i++) {
            const struct fragment f = out->items[i];
            if (f.token >= 0 || f.length < group->length) {
                ok = add_fragment(&next, f.at, f.length, f.token);
                continue;
            }
            size_t begin = f.at;
            const size_t end = f.at + f.length;
            for (size_t at = begin; at + group->length <= end && ok;) {
                int32_t id = -1;
                if (bit(group->first, (unsigned char)text[at]) && bit(group->last, (unsigned char)text[at + group->length - 1])) {
                    id = special_at(v, text, at, group->length, control, literals);
                }
                if (id < 0) {
                    at++;
                    continue;
                }
                ok = add_fragment(&next, begin, at - begin, -1) && add_fragment(&next, at, group->length, id);
                at += group->length;
                if (v->flags[id] & SH_TOKEN_STRIP_RIGHT) {
                    while (at < end && is_white((unsigned char)text[at])) at++;
                }
                begin = at;
            }
            ok = ok && add_fragment(&next, begin, end - begin, -1);
        }
        const struct fragments old = *out;
        *out = next;
        next = old;
    }
    free(next.items);
    return ok;
}

enum sh_code sh_tokenize_parts(const struct sh_vocab *v, const char *text, size_t length, uint32_t flags,
                               const struct sh_chat_part *parts, uint32_t n_parts, struct sh_ids *ids, struct sh_error *err) {
    struct fragments fragments = {0};
    const struct literals literals = {parts, n_parts};
    struct sh_bpe_scratch *scratch = NULL;
    enum sh_code code = SH_OK;
    if (!find_specials(v, text, length, (flags & SH_TOKENIZE_PARSE) != 0, &literals, &fragments)) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    }
    bool fresh = true; /* SPM: text at the very beginning or behind a special token gets the space prefix */
    for (uint32_t i = 0; i < fragments.count && code == SH_OK; i++) {
        const struct fragment f = fragments.items[i];
        if (f.token >= 0) {
            if (!sh_ids_push(ids, f.token)) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
        } else if (v->model == SH_VOCAB_SPM) {
            code = sh_spm_encode(v, text + f.at, f.length, fresh && v->add_space_prefix, ids, err);
        } else if (v->model == SH_VOCAB_WPM) {
            code = sh_wpm_encode(v, text + f.at, f.length, ids, err);
        } else if (v->model == SH_VOCAB_UNIGRAM) {
            code = sh_unigram_encode(v, text + f.at, f.length, ids, err);
        } else {
            code = sh_bpe_encode(v, text + f.at, f.length, &scratch, ids, err);
        }
        fresh = f.token >= 0;
    }
    sh_bpe_scratch_free(scratch);
    free(fragments.items);
    return code;
}

enum sh_code sh_tokenize(const struct sh_vocab *v, const char *text, size_t length, uint32_t flags, int32_t **ids, size_t *count,
                         struct sh_error *err) {
    *ids = NULL;
    *count = 0;
    struct sh_ids list = {0};
    enum sh_code code = SH_OK;
    if ((flags & SH_TOKENIZE_SPECIAL) && v->add_bos && !sh_ids_push(&list, v->bos)) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    }
    if (code == SH_OK) code = sh_tokenize_parts(v, text, length, flags, NULL, 0, &list, err);
    if (code == SH_OK && (flags & SH_TOKENIZE_SPECIAL) && v->add_eos && !sh_ids_push(&list, v->eos)) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    }
    if (code == SH_OK && list.items == NULL) { /* an empty list is a list that can be freed, too */
        list.items = malloc(sizeof *list.items);
        if (list.items == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    }
    if (code != SH_OK) {
        free(list.items);
        return code;
    }
    *ids = list.items;
    *count = list.count;
    return SH_OK;
}

enum sh_code sh_chat_tokenize(const struct sh_vocab *v, const char *text, const struct sh_chat_part *parts, uint32_t n_parts,
                              int32_t **ids, size_t *count, struct sh_error *err) {
    *ids = NULL;
    *count = 0;
    struct sh_ids list = {0};
    const size_t length = n_parts > 0 ? parts[n_parts - 1].end : 0;
    /* The first slot is for a BOS that the rendering may lack. */
    enum sh_code code = sh_ids_push(&list, v->bos)
                            ? sh_tokenize_parts(v, text, length, SH_TOKENIZE_PARSE, parts, n_parts, &list, err)
                            : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    if (code != SH_OK) {
        free(list.items);
        return code;
    }
    if (!v->add_bos || (list.count > 1 && list.items[1] == v->bos)) {
        list.count--;
        memmove(list.items, list.items + 1, list.count * sizeof *list.items);
    }
    *ids = list.items;
    *count = list.count;
    return SH_OK;
}

enum sh_code sh_detokenize(const struct sh_vocab *v, const int32_t *ids, size_t count, bool special, bool strip_prefix,
                           char **text, size_t *length, struct sh_error *err) {
    *text = NULL;
    *length = 0;
    size_t total = 0, n;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= v->n_tokens) {
            return sh_fail(err, SH_ERR_INVALID, "token %zu is %d, but the vocabulary has ids 0 to %u", i, ids[i],
                           v->n_tokens - 1);
        }
        sh_vocab_piece(v, ids[i], special, &n);
        if (!sh_add_u64(total, n, &total)) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the text of %zu tokens", count);
    }
    char *out = total < SIZE_MAX / 2 ? malloc(total + 1) : NULL;
    if (out == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the text of %zu tokens", count);
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        const char *piece = sh_vocab_piece(v, ids[i], special, &n);
        if (i == 0 && strip_prefix && v->add_space_prefix && n > 0 && piece[0] == ' ') {
            piece++;
            n--;
        }
        memcpy(out + at, piece, n);
        at += n;
    }
    out[at] = '\0';
    *text = out;
    *length = at;
    return SH_OK;
}
