#include "compute/grammar/automaton.h"
#include "compute/text/vocab.h"

#include <stdlib.h>

struct piece {
    uint64_t first; /* eight bytes, as a number in their order: most comparisons need no more */
    const uint8_t *bytes;
    uint32_t length;
    int32_t token;
    uint32_t plain; /* characters, if the piece is of plain ones alone; else 0 */
};

static enum sh_code no_memory(struct sh_error *err) {
    return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a vocabulary's trie");
}

/* Whole characters that stand for themselves in a JSON string: none of the quote, the backslash and the control characters. */
static uint32_t count_plain(const uint8_t *s, uint32_t length) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < length; n++) {
        const size_t step = sh_utf8_length((const char *)s + i, length - i);
        if (step == 0 || (step == 1 && (s[i] < 0x20 || s[i] == 0x7F || s[i] == '"' || s[i] == '\\'))) return 0;
        i += (uint32_t)step;
    }
    return n <= SH_GR_SLICES ? n : 0;
}

static int compare_pieces(const void *x, const void *y) {
    const struct piece *a = x, *b = y;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    const int order = memcmp(a->bytes, b->bytes, a->length < b->length ? a->length : b->length);
    if (order != 0) return order;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

/* The trie of the sorted pieces (of all, or of those in no slice). Chains tokens with the same bytes. */
static bool build(struct sh_gr_lexicon *l, struct sh_gr_trie *trie, const struct piece *pieces, uint32_t n, bool all) {
    uint64_t total = 1;
    const struct piece *last = NULL;
    uint32_t *path = sh_calloc(UINT16_MAX, sizeof *path); /* the node at each depth */
    if (path == NULL) return false;
    for (int pass = 0; pass < 2; pass++) { /* first only counting */
        uint32_t used = 1, depth = 0;
        if (pass == 1) {
            trie->nodes = total <= UINT32_MAX ? sh_calloc(total, sizeof *trie->nodes) : NULL;
            if (trie->nodes == NULL) break;
            trie->n_nodes = (uint32_t)total;
            trie->nodes[0].token = -1;
        }
        path[0] = 0;
        last = NULL;
        for (uint32_t i = 0; i < n; i++) {
            const struct piece *p = &pieces[i];
            if (!all && p->plain > 0) continue;
            uint32_t common = 0;
            if (last != NULL)
                while (common < last->length && common < p->length && last->bytes[common] == p->bytes[common]) common++;
            if (last != NULL && common == p->length &&
                last->length == p->length) { /* the same bytes: the smaller number is in the trie */
                if (pass == 1 && all) l->same[last->token] = p->token;
                last = p;
                continue;
            }
            if (pass == 0) {
                total += p->length - common;
            } else {
                while (depth > common) trie->nodes[path[depth--]].skip = used;
                while (depth < p->length) {
                    trie->nodes[used] =
                        (struct sh_gr_trie_node){.token = -1, .depth = (uint16_t)(depth + 1), .byte = p->bytes[depth]};
                    path[++depth] = used++;
                }
                trie->nodes[used - 1].token = p->token;
                if (depth > l->depth) l->depth = depth;
            }
            last = p;
        }
        if (pass == 1) {
            while (depth > 0) trie->nodes[path[depth--]].skip = used;
            trie->nodes[0].skip = used;
        }
    }
    free(path);
    return trie->nodes != NULL;
}

enum sh_code sh_gr_lexicon_create(const struct sh_vocab *v, struct sh_gr_lexicon **out, struct sh_error *err) {
    *out = NULL;
    struct sh_gr_lexicon *l = calloc(1, sizeof *l);
    struct piece *pieces = sh_calloc(v->n_tokens, sizeof *pieces);
    if (l == NULL || pieces == NULL) goto failed;
    l->n_tokens = v->n_tokens;
    l->n_words = (v->n_tokens + 31) / 32;
    l->same = sh_calloc(l->n_tokens, sizeof *l->same);
    l->in_trie = sh_calloc((l->n_tokens + 63) / 64, sizeof *l->in_trie);
    l->bytes = malloc(sizeof *l->bytes);
    if (l->same == NULL || l->in_trie == NULL || l->bytes == NULL) goto failed;
    atomic_init(l->bytes, 0);
    uint32_t n = 0;
    for (uint32_t t = 0; t < v->n_tokens; t++) {
        l->same[t] = -1;
        const uint8_t type = v->types[t];
        if (type == SH_TOKEN_CONTROL || type == SH_TOKEN_UNKNOWN || type == SH_TOKEN_UNUSED || sh_vocab_is_end(v, (int32_t)t))
            continue;
        size_t length;
        const uint8_t *bytes = (const uint8_t *)sh_vocab_piece(v, (int32_t)t, false, &length);
        if (length == 0 || length >= UINT16_MAX) continue;
        uint64_t first = 0;
        memcpy(&first, bytes, length < sizeof first ? length : sizeof first);
        pieces[n++] =
            (struct piece){__builtin_bswap64(first), bytes, (uint32_t)length, (int32_t)t, count_plain(bytes, (uint32_t)length)};
        l->in_trie[t >> 6] |= (uint64_t)1 << (t & 63);
    }
    qsort(pieces, n, sizeof *pieces, compare_pieces);
    if (!build(l, &l->all, pieces, n, true) || !build(l, &l->other, pieces, n, false)) goto failed;
    for (uint32_t k = 1; k <= SH_GR_SLICES; k++) {
        l->slices[k] = sh_calloc(l->n_words, sizeof **l->slices);
        if (l->slices[k] == NULL) goto failed;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (pieces[i].plain == 0) continue;
        const uint32_t t = (uint32_t)pieces[i].token;
        l->slices[pieces[i].plain][t >> 5] |= 1u << (t & 31);
        l->slice_count[pieces[i].plain]++;
    }
    for (uint32_t k = 2; k <= SH_GR_SLICES; k++) {
        for (uint32_t w = 0; w < l->n_words; w++) l->slices[k][w] |= l->slices[k - 1][w];
        l->slice_count[k] += l->slice_count[k - 1];
    }
    free(pieces);
    *out = l;
    return SH_OK;
failed:
    free(pieces);
    sh_gr_lexicon_destroy(l);
    return no_memory(err);
}

void sh_gr_lexicon_destroy(struct sh_gr_lexicon *l) {
    if (l == NULL) return;
    for (uint32_t k = 0; k <= SH_GR_SLICES; k++) free(l->slices[k]);
    free(l->all.nodes);
    free(l->other.nodes);
    free(l->same);
    free(l->in_trie);
    free(l->bytes);
    free(l);
}
