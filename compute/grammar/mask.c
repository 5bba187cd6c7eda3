#include "compute/grammar/automaton.h"

#include <stdlib.h>

enum { MANY_BYTES = 24 }; /* that may follow: then gates are used, not the exits behind them */

void sh_gr_mask_unref(struct sh_gr_mask *mask) {
    if (mask != NULL && --mask->refs == 0) free(mask);
}

struct making { /* a mask being made */
    struct sh_gr_automaton *a;
    const struct sh_gr_lexicon *l;
    struct sh_gr_tables *tables;
    struct sh_gr_mask *mask;
    bool count_anew; /* tokens came by the word */
};

static void add_token(struct making *m, int32_t token) {
    for (; token >= 0; token = m->l->same[token]) {
        uint32_t *word = &m->mask->words[token >> 5];
        const uint32_t bit = 1u << (token & 31);
        if (*word & bit) continue;
        *word |= bit;
        m->mask->count++;
        m->mask->only = token;
    }
}

/* Depth first along the trie below a node, past all descendants of a node that the text cannot reach. *visited grows by the nodes
 * looked at. */
static bool walk(struct making *m, const struct sh_gr_trie *trie, uint32_t below, uint32_t state, uint32_t *visited) {
    struct sh_gr_automaton *a = m->a;
    const struct sh_gr_program *p = a->program;
    const struct sh_gr_trie_node *const nodes = trie->nodes;
    const uint32_t end = nodes[below].skip;
    struct sh_gr_level *const levels = a->levels;
    uint32_t n = 0;
    levels[nodes[below].depth] = (struct sh_gr_level){a->states[state].row, state, 0, false};
    for (uint32_t i = below + 1; i < end; n++) {
        const struct sh_gr_trie_node *node = &nodes[i];
        const struct sh_gr_level *from = &levels[node->depth - 1];
        const uint32_t byte_class = p->class_of[node->byte];
        uint32_t to = from->row[byte_class];
        if (to == SH_GR_UNKNOWN) {
            to = sh_gr_step(a, from->state, byte_class);
            if (to == SH_GR_UNKNOWN) return false;
        }
        if (to == SH_GR_DEAD) {
            i = node->skip;
            continue;
        }
        if (node->token >= 0) add_token(m, node->token);
        levels[node->depth].row = a->states[to].row;
        levels[node->depth].state = to;
        i++;
    }
    *visited += n;
    return true;
}

/* ---- plain characters -------------------------------------------------------------------------------------------- */

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

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static uint32_t loop_of(const struct sh_gr_automaton *a, struct sh_gr_config c) {
    const uint32_t back = a->frames[c.frame].back;
    return c.frame != 0 && (back & SH_GR_REPEAT_BIT) ? back : 0;
}

static bool cover(struct making *m, uint32_t node, uint32_t state);

/* Adds what a configuration allows below the table's node. *used: whether the table could be made. */
static bool apply(struct making *m, struct sh_gr_table *t, struct sh_gr_config c, bool *used) {
    struct sh_gr_automaton *a = m->a;
    const struct sh_gr_program *p = a->program;
    const struct sh_gr_frame f = a->frames[c.frame];
    uint32_t behind = SH_GR_DEAD, left = 1, done = 0, least = 0;
    if (t->loop != 0) {
        const struct sh_gr_loop *loop = &p->loops[t->loop & ~SH_GR_REPEAT_BIT];
        done = f.count - 1;
        left = loop->max - done;
        least = loop->min > done ? loop->min - done : 0;
        behind = sh_gr_state_at(a, loop->next, f.below, 0);
    } else if (c.frame != 0) {
        behind = sh_gr_state_at(a, f.back, f.below, f.count);
    }
    if (behind == SH_GR_UNKNOWN) return false;
    uint64_t alive[4] = {0};
    for (uint32_t k = 0; k < p->n_classes && behind != SH_GR_DEAD; k++) {
        uint32_t to = a->states[behind].row[k];
        if (to == SH_GR_UNKNOWN) to = sh_gr_step(a, behind, k);
        if (to == SH_GR_UNKNOWN) return false;
        if (to != SH_GR_DEAD) alive[k >> 6] |= (uint64_t)1 << (k & 63);
    }
    bool missing = t->kind == SH_GR_TABLE_HOT;
    for (unsigned w = 0; w < 4; w++) missing |= (alive[w] & ~t->wanted[w]) != 0;
    if (missing && !sh_gr_make_table(a, m->l, m->tables, t, alive)) return false;
    *used = t->kind == SH_GR_TABLE_READY;
    if (!*used) return true;
    const uint32_t *slice = t->slices + (size_t)((left < t->levels ? left : t->levels) - 1) * m->l->n_words;
    for (uint32_t w = 0; w < m->l->n_words; w++) m->mask->words[w] |= slice[w];
    m->count_anew = true;
    for (uint32_t i = 0; i < t->n_deep; i++)
        if (t->deep[i].done <= left) m->mask->words[t->deep[i].node >> 5] |= 1u << (t->deep[i].node & 31);
    uint32_t n_bytes = 0;
    for (uint32_t b = 0; b < 256; b++) n_bytes += alive[p->class_of[b] >> 6] >> (p->class_of[b] & 63) & 1;
    const bool gates = n_bytes > MANY_BYTES;
    for (uint32_t i = 0; i < t->n_gates && gates; i++) {
        const struct sh_gr_exit gate = t->gates[i];
        if (t->loop != 0 && (gate.done < least || gate.done > left)) continue;
        if (!cover(m, gate.node, behind)) return false;
    }
    for (uint32_t k = 0; k < p->n_classes; k++) {
        if (!(alive[k >> 6] >> (k & 63) & 1)) continue;
        const uint32_t to = a->states[behind].row[k];
        for (uint32_t i = t->first_exit[k]; i < t->first_exit[k + 1]; i++) {
            const struct sh_gr_exit exit = t->exits[i];
            if ((gates && exit.gated) || (t->loop != 0 && (exit.done < least || exit.done > left))) continue;
            add_token(m, m->l->all.nodes[exit.node].token);
            if (!cover(m, exit.node, to)) return false;
        }
    }
    return true;
}

/* Adds the tokens below a node of the trie at which a text is in this state: by tables where there are some, else by a
 * walk; where that is long, its configurations get tables the next time. */
static bool cover(struct making *m, uint32_t node, uint32_t state) {
    struct sh_gr_automaton *a = m->a;
    const struct sh_gr_trie *trie = &m->l->all;
    uint32_t visited = 0;
    if (trie->nodes[node].skip - node <= m->tables->hot) return walk(m, trie, node, state, &visited);
    const uint32_t n = a->states[state].n_configs;
    struct sh_gr_config *rest = sh_calloc(n, sizeof *rest);
    if (rest == NULL) {
        a->failed = SH_ERR_NO_MEMORY;
        return false;
    }
    uint32_t n_rest = 0;
    bool ok = true;
    for (uint32_t i = 0; i < n && ok; i++) {
        const struct sh_gr_config c = a->states[state].configs[i];
        struct sh_gr_table *t = sh_gr_find_table(m->tables, c.place, loop_of(a, c), node);
        bool used = false;
        if (t != NULL && t->kind != SH_GR_TABLE_NEVER) ok = apply(m, t, c, &used);
        if (!used) rest[n_rest++] = c;
    }
    if (ok && n_rest > 0) {
        const uint32_t from = n_rest == n ? state : sh_gr_state_of_all(a, rest, n_rest, false);
        ok = from != SH_GR_UNKNOWN && walk(m, trie, node, from, &visited);
        for (uint32_t i = 0; i < n_rest && ok && visited > m->tables->hot; i++)
            sh_gr_note_table(m->tables, rest[i].place, loop_of(a, rest[i]), node);
    }
    free(rest);
    return ok;
}

/* Whether a configuration has a table for the whole trie, or is worth one. */
static bool has_table(const struct sh_gr_automaton *a, struct sh_gr_tables *tables, uint32_t state) {
    for (uint32_t i = 0; i < a->states[state].n_configs; i++) {
        const struct sh_gr_config c = a->states[state].configs[i];
        const struct sh_gr_table *t = sh_gr_find_table(tables, c.place, loop_of(a, c), 0);
        if (t != NULL && t->kind != SH_GR_TABLE_NEVER) return true;
    }
    return false;
}

/* The table of a counted repeat that the state is far from the limits of, if its other configurations are few; they go to
 * others[4]. */
static struct sh_gr_table *far_table(const struct sh_gr_automaton *a, struct sh_gr_tables *tables, uint32_t state,
                                     uint32_t *below, struct sh_gr_config *others, uint32_t *n_others) {
    struct sh_gr_table *found = NULL;
    *n_others = 0;
    for (uint32_t i = 0; i < a->states[state].n_configs; i++) {
        const struct sh_gr_config c = a->states[state].configs[i];
        const uint32_t loop = loop_of(a, c);
        struct sh_gr_table *t = loop != 0 && found == NULL ? sh_gr_find_table(tables, c.place, loop, 0) : NULL;
        if (t != NULL && t->kind == SH_GR_TABLE_READY) {
            const struct sh_gr_loop *l = &a->program->loops[loop & ~SH_GR_REPEAT_BIT];
            const uint32_t done = a->frames[c.frame].count - 1;
            if (done < l->min || l->max - done < t->most_begun) return NULL;
            *below = a->frames[c.frame].below;
            found = t;
        } else {
            if (*n_others == SH_COUNT(found->far_others)) return NULL;
            others[(*n_others)++] = c;
        }
    }
    return found;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static void count_tokens(struct sh_gr_mask *mask, uint32_t n_words) {
    uint32_t count = 0;
    mask->only = -1;
    for (uint32_t w = 0; w < n_words; w++) {
        uint32_t x = mask->words[w]; /* bits in each 2, 4, 8, then all; compilers make vectors of it */
        x -= x >> 1 & 0x55555555u;
        x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
        x = (x + (x >> 4)) & 0x0F0F0F0Fu;
        count += x * 0x01010101u >> 24;
    }
    mask->count = count;
    for (uint32_t w = 0; count == 1 && w < n_words; w++)
        if (mask->words[w] != 0) mask->only = (int32_t)(w * 32) + __builtin_ctz(mask->words[w]);
}

struct sh_gr_mask *sh_gr_make_mask(struct sh_gr_automaton *a, const struct sh_gr_lexicon *l, struct sh_gr_tables *tables,
                                   uint32_t state) {
    if (a->states[state].mask != NULL) return a->states[state].mask;
    const size_t bytes = l->n_words * sizeof(uint32_t);
    uint32_t below = 0, n_others;
    struct sh_gr_config others[4];
    struct sh_gr_table *far = far_table(a, tables, state, &below, others, &n_others);
    if (far != NULL && far->far != NULL && far->far_below == below && far->n_far_others == n_others &&
        memcmp(far->far_others, others, n_others * sizeof *others) == 0) {
        far->far->refs++;
        return a->states[state].mask = far->far;
    }
    const int reach = has_table(a, tables, state) ? 0 : plain_reach(a, state);
    if (reach < 0) return NULL;
    struct sh_gr_mask *mask = malloc(sizeof *mask + bytes);
    if (mask == NULL) {
        a->failed = SH_ERR_NO_MEMORY;
        return NULL;
    }
    *mask = (struct sh_gr_mask){.refs = 1, .only = -1};
    struct making m = {a, l, tables, mask, false};
    uint32_t visited = 0;
    bool ok;
    if (reach > 0) {
        memcpy(mask->words, l->slices[reach], bytes);
        mask->count = l->slice_count[reach];
        m.count_anew = mask->count == 1; /* to find it */
        ok = walk(&m, &l->other, 0, state, &visited);
        for (uint32_t i = 0; i < a->states[state].n_configs && ok && visited > tables->hot; i++) {
            const struct sh_gr_config c = a->states[state].configs[i];
            if (a->program->places[c.place].plain > SH_GR_PLAIN_NONE) sh_gr_note_table(tables, c.place, loop_of(a, c), 0);
        }
    } else {
        memset(mask->words, 0, bytes);
        ok = cover(&m, 0, state);
    }
    if (!ok) {
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
    if (m.count_anew) count_tokens(mask, l->n_words);
    if (mask->count != 1) mask->only = -1;
    a->states[state].mask = mask;
    a->bytes += sizeof *mask + bytes;
    if (far != NULL && far->kind == SH_GR_TABLE_READY) {
        sh_gr_mask_unref(far->far);
        mask->refs++;
        far->far = mask;
        far->far_below = below;
        far->n_far_others = n_others;
        memcpy(far->far_others, others, n_others * sizeof *others);
    }
    return mask;
}
