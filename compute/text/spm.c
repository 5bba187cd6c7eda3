/*
 * spm.c - SentencePiece's BPE: the text is cut into code points; again and again the adjacent pair whose concatenation is the
 * token of the highest score is joined, the leftmost of equals first. What is no token in the end is written byte by byte.
 * O(n log n) by a heap of candidate pairs, of which outdated ones are dropped when they come up.
 */
#include "compute/text/vocab.h"

#include "compute/text/utf8.h"

#include <stdlib.h>

struct symbol {
    uint32_t at, length; /* bytes; 0: joined into its left neighbour */
    int32_t prev, next;  /* -1: none */
};
struct candidate {
    float score;
    int32_t left, right; /* symbols */
    uint32_t length;     /* of both when it was found */
};
struct spm_work {
    const struct sh_vocab *v;
    const char *text;
    struct symbol *symbols;
    uint32_t n_symbols, symbols_capacity;
    struct candidate *heap;
    uint32_t n_heap, heap_capacity;
};

static bool before(struct candidate a, struct candidate b) {
    return a.score > b.score || (a.score == b.score && a.left < b.left);
}

static bool heap_push(struct spm_work *w, struct candidate c) {
    if (!sh_grow((void **)&w->heap, &w->heap_capacity, w->n_heap + 1, sizeof *w->heap)) return false;
    uint32_t i = w->n_heap++;
    while (i > 0 && before(c, w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
    return true;
}

static struct candidate heap_pop(struct spm_work *w) {
    const struct candidate top = w->heap[0], last = w->heap[--w->n_heap];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= w->n_heap) break;
        if (child + 1 < w->n_heap && before(w->heap[child + 1], w->heap[child])) child++;
        if (!before(w->heap[child], last)) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

static bool consider(struct spm_work *w, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return true;
    const struct symbol *l = &w->symbols[left], *r = &w->symbols[right];
    const uint32_t length = l->length + r->length;
    const int32_t id = sh_vocab_find_key(w->v, w->text + l->at, length);
    if (id < 0) return true;
    return heap_push(w, (struct candidate){w->v->scores[id], left, right, length});
}

/* A code point, or one byte that belongs to none: a space mark behind it stays a space mark. */
static uint32_t symbol_length(const char *s, uint32_t n) {
    size_t length;
    return sh_utf8_scan(s, n, &length, NULL) == SH_UTF8_OK ? (uint32_t)length : 1;
}

/* One stretch that no token crosses. */
static bool encode_stretch(struct spm_work *w, const char *text, uint32_t length, struct sh_ids *ids) {
    w->text = text;
    w->n_symbols = w->n_heap = 0;
    for (uint32_t at = 0; at < length;) {
        const uint32_t n = symbol_length(text + at, length - at);
        if (!sh_grow((void **)&w->symbols, &w->symbols_capacity, w->n_symbols + 1, sizeof *w->symbols)) return false;
        w->symbols[w->n_symbols] = (struct symbol){at, n, (int32_t)w->n_symbols - 1, (int32_t)w->n_symbols + 1};
        w->n_symbols++;
        at += n;
    }
    if (w->n_symbols == 0) return true;
    w->symbols[w->n_symbols - 1].next = -1;
    for (uint32_t i = 1; i < w->n_symbols; i++) {
        if (!consider(w, (int32_t)i - 1, (int32_t)i)) return false;
    }
    while (w->n_heap > 0) {
        const struct candidate c = heap_pop(w);
        struct symbol *l = &w->symbols[c.left], *r = &w->symbols[c.right];
        if (l->length == 0 || r->length == 0 || l->length + r->length != c.length) continue;
        l->length = c.length;
        r->length = 0;
        l->next = r->next;
        if (r->next >= 0) w->symbols[r->next].prev = c.left;
        if (!consider(w, l->prev, c.left) || !consider(w, c.left, l->next)) return false;
    }
    for (int32_t i = 0; i >= 0; i = w->symbols[i].next) {
        const struct symbol *s = &w->symbols[i];
        const int32_t id = sh_vocab_find_key(w->v, text + s->at, s->length);
        if (id >= 0) {
            if (!sh_ids_push(ids, id)) return false;
            continue;
        }
        for (uint32_t k = 0; k < s->length; k++) {
            const int32_t byte = w->v->byte_token[(uint8_t)text[s->at + k]];
            if (byte >= 0 && !sh_ids_push(ids, byte)) return false;
        }
    }
    return true;
}

enum sh_code sh_spm_encode(const struct sh_vocab *v, const char *text, size_t length, bool add_space, struct sh_ids *ids,
                           struct sh_error *err) {
    /* Spaces become U+2581, which is three bytes. */
    size_t total = length + (add_space ? 3 : 0);
    for (size_t i = 0; i < length; i++) total += text[i] == ' ' ? 2 : 0;
    if (total > INT32_MAX) return sh_fail(err, SH_ERR_LIMIT, "the text is too long to tokenise: %zu bytes", length);
    char *escaped = malloc(total > 0 ? total : 1);
    if (escaped == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
    size_t n = 0;
    if (add_space) {
        memcpy(escaped, "\xE2\x96\x81", 3);
        n = 3;
    }
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ') {
            memcpy(escaped + n, "\xE2\x96\x81", 3);
            n += 3;
        } else {
            escaped[n++] = text[i];
        }
    }
    struct spm_work work = {.v = v};
    bool ok = true;
    for (size_t at = 0; at < total && ok;) {
        size_t end = total;
        if (v->word_cut) { /* up to the next space mark that follows something else */
            end = at;
            bool mark, was_mark = true;
            do {
                const size_t step = symbol_length(escaped + end, (uint32_t)(total - end));
                mark = step == 3 && memcmp(escaped + end, "\xE2\x96\x81", 3) == 0;
                if (mark && !was_mark) break;
                was_mark = mark;
                end += step;
            } while (end < total);
        }
        ok = encode_stretch(&work, escaped + at, (uint32_t)(end - at), ids);
        at = end;
    }
    free(work.symbols);
    free(work.heap);
    free(escaped);
    return ok ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
}
