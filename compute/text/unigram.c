/*
 * unigram.c - SentencePiece's Unigram: of all ways to write the normalised text as pieces, the one whose scores (log
 * probabilities) have the greatest sum, by Viterbi's algorithm over its code points. A code point that is no piece of its own may be
 * unknown, at the score of the worst piece less 10; unknown ones side by side become one unknown token, or their bytes where the
 * vocabulary has a token for every byte. User-defined tokens cost nothing.
 *
 * Ways of the same pieces in another order are common ("--" and "-" in "---"), so the arithmetic decides: sums run from the
 * beginning of the text and are kept in single precision; a new sum is computed and compared in double precision, and replaces
 * the kept one, rounded, if it is greater. Places are gone through from left to right, shorter pieces first. The files' reference
 * values come out so. Beyond FRESH_SUM, some thousand pieces, a sum begins anew at the next place where all ways meet: single
 * precision would begin to choose wrong pieces.
 *
 * Linear in the text: at each place at most the longest piece's bytes are followed through a trie. Whenever no piece reaches over a
 * place, all ways meet there and what lies before is decided, so the table is as long as a word and not as the text.
 */
#include "compute/text/vocab.h"

#include "compute/text/normaliser.h"
#include "compute/text/utf8.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_PIECE = 1024 }; /* bytes; longer texts are never taken for a piece, so that a place has a bounded cost */

/* Scores beyond it count as it: a sum over the longest text (2^31 places) stays finite. Real ones are logarithms, some tens at
 * most. */
#define MAX_SCORE 1e28f
#define FRESH_SUM 16384.0f

struct node {       /* its children are those from `first` up to the next node's `first`, by their bytes */
    uint32_t first;
    int32_t piece; /* -1: none ends here */
};

struct sh_unigram {
    struct sh_normaliser *normaliser;
    struct node *nodes; /* [n_nodes + 1] */
    uint8_t *bytes;     /* [n_nodes] that leads to the node */
    uint32_t n_nodes;
    float unknown_score;
    bool byte_fallback; /* byte_token is complete */
};

/* ---- set-up --------------------------------------------------------------------------------------------------- */

struct range { /* of sorted pieces: those below a node */
    uint32_t low, high;
};

/* Nodes in the order of their depth, so that the children of one lie side by side and those of the next behind them. */
static bool build_trie(const struct sh_vocab *v, struct sh_unigram *u, const int32_t *sorted, uint32_t n_sorted) {
    struct range *ranges = NULL;
    uint32_t nodes_capacity = 0, bytes_capacity = 0, ranges_capacity = 0;
    bool ok = sh_grow((void **)&u->nodes, &nodes_capacity, 2, sizeof *u->nodes) &&
              sh_grow((void **)&u->bytes, &bytes_capacity, 1, 1) && sh_grow((void **)&ranges, &ranges_capacity, 1, sizeof *ranges);
    if (ok) {
        u->bytes[0] = 0;
        ranges[0] = (struct range){0, n_sorted};
        u->n_nodes = 1;
    }
    uint32_t depth = 0, level_end = 1;
    for (uint32_t i = 0; i < u->n_nodes && ok; i++) {
        if (i == level_end) {
            depth++;
            level_end = u->n_nodes;
        }
        uint32_t low = ranges[i].low;
        const uint32_t high = ranges[i].high;
        struct node node = {u->n_nodes, -1};
        /* pieces that end here; of equal texts the last one is taken, as in the other vocabularies */
        for (; low < high && v->keys[sorted[low]].length == depth; low++) node.piece = sorted[low];
        u->nodes[i] = node;
        while (low < high && ok) {
            const uint8_t byte = (uint8_t)sh_span_ptr(v, v->keys[sorted[low]])[depth];
            uint32_t end = low + 1;
            while (end < high && (uint8_t)sh_span_ptr(v, v->keys[sorted[end]])[depth] == byte) end++;
            const uint32_t child = u->n_nodes;
            ok = child < INT32_MAX && sh_grow((void **)&u->nodes, &nodes_capacity, child + 2, sizeof *u->nodes) &&
                 sh_grow((void **)&u->bytes, &bytes_capacity, child + 1, 1) &&
                 sh_grow((void **)&ranges, &ranges_capacity, child + 1, sizeof *ranges);
            if (!ok) break;
            u->bytes[child] = byte;
            ranges[child] = (struct range){low, end};
            u->n_nodes++;
            low = end;
        }
    }
    if (ok) u->nodes[u->n_nodes] = (struct node){u->n_nodes, -1};
    free(ranges);
    return ok;
}

static float score_of(const struct sh_vocab *v, int32_t piece) {
    if (v->types[piece] == SH_TOKEN_USER_DEFINED) return 0;
    return fminf(fmaxf(v->scores[piece], -MAX_SCORE), MAX_SCORE);
}

/* A normal, unused or user-defined token. One that marks the turns of a chat comes from special tokens only: a character map could
 * make it of a message's text. */
static bool is_piece(const struct sh_vocab *v, uint32_t token) {
    const uint8_t type = v->types[token];
    if (v->keys[token].length == 0 || v->keys[token].length > MAX_PIECE) return false;
    return type == SH_TOKEN_NORMAL || type == SH_TOKEN_UNUSED ||
           (type == SH_TOKEN_USER_DEFINED && (v->flags[token] & SH_TOKEN_STRUCTURAL) == 0);
}

static void find_bytes(struct sh_vocab *v, struct sh_unigram *u) {
    for (uint32_t b = 0; b < 256; b++) v->byte_token[b] = -1;
    for (uint32_t i = 0; i < v->n_tokens; i++) { /* a byte token renders as its byte */
        if (v->types[i] == SH_TOKEN_BYTE && v->rendered[i].length == 1)
            v->byte_token[(uint8_t)*sh_span_ptr(v, v->rendered[i])] = (int32_t)i;
    }
    u->byte_fallback = true;
    for (uint32_t b = 0; b < 256; b++) u->byte_fallback &= v->byte_token[b] >= 0;
}

enum sh_code sh_unigram_prepare(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err) {
    struct sh_unigram *u = v->unigram = sh_calloc(1, sizeof *u);
    int32_t *sorted = sh_calloc(v->n_tokens, sizeof *sorted);
    if (u == NULL || sorted == NULL) {
        free(sorted);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the vocabulary");
    }
    uint32_t n_sorted = 0;
    float worst = INFINITY;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (v->types[i] == SH_TOKEN_NORMAL) worst = fminf(worst, score_of(v, (int32_t)i));
        if (is_piece(v, i)) sorted[n_sorted++] = (int32_t)i;
    }
    u->unknown_score = (isinf(worst) ? 0 : worst) - 10.0f;
    find_bytes(v, u);
    if (n_sorted > 0) qsort_r(sorted, n_sorted, sizeof *sorted, sh_vocab_compare_keys, v);
    const bool built = build_trie(v, u, sorted, n_sorted);
    free(sorted);
    if (!built) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the vocabulary");
    return sh_normaliser_create(g, &u->normaliser, err);
}

void sh_unigram_destroy(struct sh_unigram *u) {
    if (u == NULL) return;
    sh_normaliser_destroy(u->normaliser);
    free(u->nodes);
    free(u->bytes);
    free(u);
}

/* ---- encoding -------------------------------------------------------------------------------------------------- */

struct place {     /* between two bytes of the text */
    float score;   /* of the best way from the beginning; -INFINITY: none is known */
    uint32_t from; /* where that way's last piece begins, and the piece; -1: unknown */
    int32_t piece;
    uint32_t next; /* set when the way is followed back */
};

struct unigram_work {
    const struct sh_vocab *v;
    const char *text;
    uint32_t base;         /* the place of places[0]: everything before it is decided */
    struct place *places;  /* base to reach; numbers in them count from base */
    uint32_t reach, capacity;
    bool was_unknown;
};

/* The child of a node by its byte; 0, the root, where there is none. */
static uint32_t child_of(const struct sh_unigram *u, uint32_t node, uint8_t byte) {
    uint32_t low = u->nodes[node].first, high = u->nodes[node + 1].first;
    while (high - low > 8) {
        const uint32_t middle = low + (high - low) / 2;
        if (u->bytes[middle] <= byte) low = middle;
        else high = middle;
    }
    for (; low < high; low++) {
        if (u->bytes[low] == byte) return low;
    }
    return 0;
}

/* A way to `end` whose last piece begins at `from`. */
static bool offer(struct unigram_work *w, uint32_t from, uint32_t end, int32_t piece, double score) {
    const uint32_t index = end - w->base;
    if (end > w->reach) {
        if (!sh_grow((void **)&w->places, &w->capacity, index + 1, sizeof *w->places)) return false;
        for (uint32_t i = w->reach - w->base + 1; i <= index; i++) w->places[i].score = -INFINITY;
        w->reach = end;
    }
    if (score > (double)w->places[index].score) w->places[index] = (struct place){(float)score, from - w->base, piece, 0};
    return true;
}

static bool emit(struct unigram_work *w, int32_t piece, uint32_t at, uint32_t end, struct sh_ids *ids) {
    const struct sh_vocab *v = w->v;
    if (piece >= 0) {
        w->was_unknown = false;
        return sh_ids_push(ids, piece);
    }
    if (v->unigram->byte_fallback) {
        for (; at < end; at++) {
            if (!sh_ids_push(ids, v->byte_token[(uint8_t)w->text[at]])) return false;
        }
        return true;
    }
    const int32_t unknown = sh_vocab_fallback(v);
    const bool again = w->was_unknown;
    w->was_unknown = true;
    return again || unknown < 0 || sh_ids_push(ids, unknown);
}

/* All ways meet at `reach`: writes the best one, which becomes the beginning of what follows. */
static bool decide(struct unigram_work *w, struct sh_ids *ids) {
    const uint32_t last = w->reach - w->base;
    for (uint32_t at = last; at > 0; at = w->places[at].from) w->places[w->places[at].from].next = at;
    for (uint32_t at = 0; at < last; at = w->places[at].next) {
        const uint32_t next = w->places[at].next;
        if (!emit(w, w->places[next].piece, w->base + at, w->base + next, ids)) return false;
    }
    w->base = w->reach;
    w->places[0].score = fabsf(w->places[last].score) < FRESH_SUM ? w->places[last].score : 0;
    return true;
}

static bool encode(struct unigram_work *w, uint32_t length, struct sh_ids *ids) {
    const struct sh_unigram *u = w->v->unigram;
    if (!sh_grow((void **)&w->places, &w->capacity, 64, sizeof *w->places)) return false;
    w->places[0] = (struct place){.score = 0};
    size_t step;
    for (uint32_t at = 0; at < length; at += (uint32_t)step) {
        if (sh_utf8_scan(w->text + at, length - at, &step, NULL) != SH_UTF8_OK) step = 1;
        const double score = (double)w->places[at - w->base].score;
        bool whole = false; /* the code point is a piece */
        uint32_t node = 0;
        for (uint32_t end = at; end < length;) {
            node = child_of(u, node, (uint8_t)w->text[end++]);
            if (node == 0) break;
            const int32_t piece = u->nodes[node].piece;
            if (piece < 0) continue;
            whole |= end - at == step;
            if (!offer(w, at, end, piece, score + (double)score_of(w->v, piece))) return false;
        }
        if (!whole && !offer(w, at, at + (uint32_t)step, -1, score + (double)u->unknown_score)) return false;
        if (w->reach == at + step && !decide(w, ids)) return false;
    }
    return true;
}

enum sh_code sh_unigram_encode(const struct sh_vocab *v, const char *text, size_t length, struct sh_ids *ids,
                                struct sh_error *err) {
    char *normalised;
    uint32_t n;
    const enum sh_code code = sh_normalise(v->unigram->normaliser, text, length, v->add_space_prefix, &normalised, &n, err);
    if (code != SH_OK) return code;
    struct unigram_work work = {.v = v, .text = normalised};
    const bool ok = encode(&work, n, ids);
    free(work.places);
    free(normalised);
    return ok ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
}
