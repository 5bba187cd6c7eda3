#include "compute/grammar/automaton.h"

#include <stdlib.h>

void sh_gr_mask_unref(struct sh_gr_mask *mask) {
    if (mask != NULL && --mask->refs == 0) free(mask);
}

static void add_token(struct sh_gr_mask *mask, const struct sh_gr_lexicon *l, int32_t token) {
    for (; token >= 0; token = l->same[token]) {
        mask->words[token >> 5] |= 1u << (token & 31);
        mask->count++;
        mask->only = token;
    }
}

/* Depth first along the trie, and over all descendants of a node that no byte of a text can reach. */
static bool walk(struct sh_gr_automaton *a, const struct sh_gr_lexicon *l, const struct sh_gr_trie *trie, uint32_t state,
                 struct sh_gr_mask *mask) {
    const struct sh_gr_program *p = a->program;
    struct level {
        uint32_t *row;
        uint32_t state;
    } *levels = sh_calloc((uint64_t)l->depth + 1, sizeof *levels);
    if (levels == NULL) {
        a->failed = SH_ERR_NO_MEMORY;
        return false;
    }
    levels[0] = (struct level){a->states[state].row, state};
    const struct sh_gr_trie_node *const nodes = trie->nodes;
    const uint32_t n_nodes = trie->n_nodes;
    bool ok = true;
    for (uint32_t i = 1; i < n_nodes;) {
        const struct sh_gr_trie_node *node = &nodes[i];
        const struct level *from = &levels[node->depth - 1];
        const uint32_t byte_class = p->class_of[node->byte];
        uint32_t to = from->row[byte_class];
        if (to == SH_GR_UNKNOWN) {
            to = sh_gr_step(a, from->state, byte_class);
            if (to == SH_GR_UNKNOWN) {
                ok = false;
                break;
            }
        }
        if (to == SH_GR_DEAD) {
            i = node->skip;
            continue;
        }
        if (node->token >= 0) add_token(mask, l, node->token);
        levels[node->depth] = (struct level){a->states[to].row, to};
        i++;
    }
    free(levels);
    return ok;
}

/* How many plain characters may come, each of them any, without the other configurations or what follows having a say about plain
 * characters: 0 none, SH_GR_SLICES all that matter. -1: failed. */
static int plain_reach(struct sh_gr_automaton *a, uint32_t state) {
    const struct sh_gr_program *p = a->program;
    uint32_t loop = 0, below = 0, reach = 0, n_plain = 0;
    for (uint32_t i = 0; i < a->states[state].n_configs; i++) {
        const struct sh_gr_config c = a->states[state].configs[i];
        const uint8_t plain = p->places[c.place].plain;
        if (plain == SH_GR_PLAIN_LOOP) return SH_GR_SLICES;
        n_plain += plain != SH_GR_PLAIN_NONE;
        if ((plain != SH_GR_PLAIN_ITEM && plain != SH_GR_PLAIN_MIXED) || c.frame == 0) continue;
        const struct sh_gr_frame f = a->frames[c.frame];
        if (f.back & SH_GR_REPEAT_BIT) {
            const struct sh_gr_loop *l = &p->loops[f.back & ~SH_GR_REPEAT_BIT];
            if (l->item != c.place) continue;
            const uint32_t left = l->max - f.count + 1;
            if (left >= SH_GR_SLICES) return SH_GR_SLICES;
            if (plain == SH_GR_PLAIN_MIXED) continue;
            reach = left;
            loop = f.back & ~SH_GR_REPEAT_BIT;
            below = f.below;
        } else {
            for (uint32_t j = p->places[f.back].jump; j < p->places[f.back + 1].jump; j++)
                if (p->jumps[j].into == c.place && p->jumps[j].back == f.back) return SH_GR_SLICES;
        }
    }
    if (reach == 0 || n_plain > 1) return 0;
    const int behind = sh_gr_plain_behind(a, loop, below);
    return behind < 0 ? -1 : behind > 0 ? 0 : (int)reach;
}

struct sh_gr_mask *sh_gr_make_mask(struct sh_gr_automaton *a, const struct sh_gr_lexicon *l, uint32_t state) {
    if (a->states[state].mask != NULL) return a->states[state].mask;
    const size_t bytes = l->n_words * sizeof(uint32_t);
    const int reach = plain_reach(a, state);
    if (reach < 0) return NULL;
    struct sh_gr_mask *mask = malloc(sizeof *mask + bytes);
    if (mask == NULL) {
        a->failed = SH_ERR_NO_MEMORY;
        return NULL;
    }
    *mask = (struct sh_gr_mask){.refs = 1, .only = -1};
    if (reach > 0) {
        memcpy(mask->words, l->slices[reach], bytes);
        mask->count = l->slice_count[reach];
    } else {
        memset(mask->words, 0, bytes);
    }
    if (!walk(a, l, reach > 0 ? &l->other : &l->all, state, mask)) {
        free(mask);
        return NULL;
    }
    const struct sh_gr_state *s = &a->states[state];
    for (uint32_t i = 0; i < s->n_configs; i++) {
        const struct sh_gr_place *place = &a->program->places[s->configs[i].place];
        for (uint32_t e = place->token; e < place[1].token; e++) {
            const int32_t token = a->program->tokens[e].token;
            if (mask->words[token >> 5] >> (token & 31) & 1) continue;
            mask->words[token >> 5] |= 1u << (token & 31);
            mask->count++;
            mask->only = token;
        }
    }
    if (mask->count != 1) mask->only = -1;
    else if (mask->only < 0) /* the only one of a slice */
        for (uint32_t w = 0; w < l->n_words; w++)
            if (mask->words[w] != 0) mask->only = (int32_t)(w * 32) + __builtin_ctz(mask->words[w]);
    a->states[state].mask = mask;
    a->bytes += sizeof *mask + bytes;
    return mask;
}
