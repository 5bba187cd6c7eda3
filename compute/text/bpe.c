/*
 * bpe.c - byte-level BPE: each word begins as one symbol per byte; the adjacent pair whose merge stands first in the list is
 * joined, the leftmost of equals first. Symbols are piece numbers, so a candidate costs one look-up of a pair and no text is
 * built.
 * O(n log n) per word by a heap; outdated candidates are dropped when they come up.
 */
#include "compute/text/vocab.h"

#include "compute/text/pretokenizer.h"

#include <stdlib.h>

struct symbol {
    int32_t piece; /* -1: joined into its left neighbour */
    int32_t prev, next;
    uint32_t at; /* bytes from the beginning of the word */
};
struct candidate {
    uint64_t order; /* rank, then position */
    int32_t left_piece, right_piece, result;
};
struct sh_bpe_scratch {
    struct sh_words words;
    struct symbol *symbols;
    uint32_t symbols_capacity;
    struct candidate *heap;
    uint32_t n_heap, heap_capacity;
};

void sh_bpe_scratch_free(struct sh_bpe_scratch *scratch) {
    if (scratch == NULL) return;
    sh_words_free(&scratch->words);
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch);
}

static bool heap_push(struct sh_bpe_scratch *w, struct candidate c) {
    if (!sh_grow((void **)&w->heap, &w->heap_capacity, w->n_heap + 1, sizeof *w->heap)) return false;
    uint32_t i = w->n_heap++;
    while (i > 0 && c.order < w->heap[(i - 1) / 2].order) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
    return true;
}

static struct candidate heap_pop(struct sh_bpe_scratch *w) {
    const struct candidate top = w->heap[0], last = w->heap[--w->n_heap];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= w->n_heap) break;
        if (child + 1 < w->n_heap && w->heap[child + 1].order < w->heap[child].order) child++;
        if (w->heap[child].order >= last.order) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

static bool consider(const struct sh_vocab *v, struct sh_bpe_scratch *w, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return true;
    const int32_t a = w->symbols[left].piece, b = w->symbols[right].piece;
    uint32_t rank;
    const int32_t result = sh_vocab_find_merge(v, a, b, &rank);
    if (result < 0) return true;
    return heap_push(w, (struct candidate){(uint64_t)rank << 32 | (uint32_t)left, a, b, result});
}

static bool encode_word(const struct sh_vocab *v, struct sh_bpe_scratch *w, const char *text, uint32_t length,
                        struct sh_ids *ids) {
    if (length == 1 || v->ignore_merges) {
        const int32_t id = sh_vocab_find_key(v, text, length);
        if (id >= 0 && (uint32_t)id < v->n_tokens) return sh_ids_push(ids, id);
    }
    if (!sh_grow((void **)&w->symbols, &w->symbols_capacity, length, sizeof *w->symbols)) return false;
    for (uint32_t i = 0; i < length; i++) {
        w->symbols[i] = (struct symbol){v->byte_token[(uint8_t)text[i]], (int32_t)i - 1, (int32_t)i + 1, i};
    }
    w->symbols[length - 1].next = -1;
    w->n_heap = 0;
    for (uint32_t i = 1; i < length; i++) {
        if (!consider(v, w, (int32_t)i - 1, (int32_t)i)) return false;
    }
    while (w->n_heap > 0) {
        const struct candidate c = heap_pop(w);
        const int32_t left = (int32_t)(c.order & UINT32_MAX);
        struct symbol *l = &w->symbols[left];
        if (l->piece != c.left_piece || l->next < 0 || w->symbols[l->next].piece != c.right_piece) continue;
        struct symbol *r = &w->symbols[l->next];
        l->piece = c.result;
        r->piece = -1;
        l->next = r->next;
        if (r->next >= 0) w->symbols[r->next].prev = left;
        if (!consider(v, w, l->prev, left) || !consider(v, w, left, l->next)) return false;
    }
    for (int32_t i = 0; i >= 0; i = w->symbols[i].next) {
        const struct symbol *s = &w->symbols[i];
        if ((uint32_t)s->piece < v->n_tokens) {
            if (!sh_ids_push(ids, s->piece)) return false;
            continue;
        }
        /* A result of merges that is no token: its bytes. One that is no token either, as some that UTF-8 does not use, becomes
         * the unknown token or is left out. */
        const uint32_t end = s->next >= 0 ? w->symbols[s->next].at : length;
        for (uint32_t k = s->at; k < end; k++) {
            const int32_t byte = v->byte_token[(uint8_t)text[k]];
            const int32_t id = (uint32_t)byte < v->n_tokens ? byte : sh_vocab_fallback(v);
            if (id >= 0 && !sh_ids_push(ids, id)) return false;
        }
    }
    return true;
}

enum sh_code sh_bpe_encode(const struct sh_vocab *v, const char *text, size_t length, struct sh_bpe_scratch **scratch,
                           struct sh_ids *ids, struct sh_error *err) {
    if (*scratch == NULL) *scratch = sh_calloc(1, sizeof **scratch);
    if (*scratch == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    struct sh_bpe_scratch *w = *scratch;
    const enum sh_code code = sh_pretokenize(v->pretokenizer, text, length, &w->words, err);
    if (code != SH_OK) return code;
    size_t at = 0;
    for (uint32_t i = 0; i < w->words.count; i++) {
        if (!encode_word(v, w, text + at, w->words.lengths[i], ids)) {
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
        }
        at += w->words.lengths[i];
    }
    return SH_OK;
}
