#include "compute/grammar/automaton.h"

#include <stdlib.h>

enum {
    MAX_LEVELS = 32,
    MAX_MADE = 6, /* times that one table is made, each time with more classes */
};
static const uint64_t max_bytes = (uint64_t)16 << 20;

struct sh_gr_table *sh_gr_find_table(struct sh_gr_tables *tables, uint32_t place, uint32_t loop, uint32_t node) {
    for (uint32_t i = 0; i < tables->n; i++) {
        struct sh_gr_table *t = &tables->items[i];
        if (t->place == place && t->loop == loop && t->node == node) return t;
    }
    return NULL;
}

void sh_gr_note_table(struct sh_gr_tables *tables, uint32_t place, uint32_t loop, uint32_t node) {
    if (tables->n == SH_GR_MAX_TABLES || sh_gr_find_table(tables, place, loop, node) != NULL) return;
    tables->items[tables->n++] = (struct sh_gr_table){.place = place, .loop = loop, .node = node, .kind = SH_GR_TABLE_HOT};
}

static void empty(struct sh_gr_table *t) {
    free(t->slices);
    free(t->deep);
    free(t->gates);
    free(t->exits);
    free(t->first_exit);
    t->slices = t->first_exit = NULL;
    t->deep = t->gates = t->exits = NULL;
}

void sh_gr_tables_forget(struct sh_gr_tables *tables) {
    for (uint32_t i = 0; i < tables->n; i++) {
        sh_gr_mask_unref(tables->items[i].far);
        tables->items[i].far = NULL;
    }
}

void sh_gr_tables_finish(struct sh_gr_tables *tables) {
    sh_gr_tables_forget(tables);
    for (uint32_t i = 0; i < tables->n; i++) empty(&tables->items[i]);
    tables->n = 0;
    tables->bytes = 0;
}

/* What a walk along the trie finds. */
struct found {
    struct sh_gr_exit *tokens; /* node: the token, done: items begun */
    struct sh_gr_exit *gates, *exits;
    uint32_t n_tokens, tokens_capacity, n_gates, gates_capacity, n_exits, exits_capacity, most_begun;
    bool single; /* a text can be cut into items in one way only */
};

static bool add(struct sh_gr_automaton *a, struct sh_gr_exit **list, uint32_t *n, uint32_t *capacity, uint32_t node,
                uint32_t done, bool gated) {
    if (!sh_grow((void **)list, capacity, *n + 1, sizeof **list)) {
        a->failed = SH_ERR_NO_MEMORY;
        return false;
    }
    (*list)[(*n)++] = (struct sh_gr_exit){node, done & INT32_MAX, gated};
    return true;
}

static bool walk(struct sh_gr_automaton *a, const struct sh_gr_lexicon *l, const struct sh_gr_table *t, uint32_t hot,
                 struct found *f) {
    const struct sh_gr_program *p = a->program;
    const struct sh_gr_trie_node *nodes = l->all.nodes;
    uint32_t top = 0, between = SH_GR_DEAD;
    if (t->loop != 0) {
        top = sh_gr_frame_of(a, 0, t->loop, SH_GR_RELATIVE);
        between = top != UINT32_MAX ? sh_gr_state_at(a, t->loop, 0, SH_GR_RELATIVE) : SH_GR_UNKNOWN;
        if (between == SH_GR_UNKNOWN) return false;
    }
    const uint32_t start = sh_gr_state_of(a, (struct sh_gr_config){t->place, top});
    if (start == SH_GR_UNKNOWN) return false;
    a->levels[nodes[t->node].depth] = (struct sh_gr_level){a->states[start].row, start, 0, false};
    for (uint32_t i = t->node + 1; i < nodes[t->node].skip;) {
        const struct sh_gr_trie_node *node = &nodes[i];
        const struct sh_gr_level from = a->levels[node->depth - 1];
        const uint32_t byte_class = p->class_of[node->byte];
        if (a->states[from.state].can_end && (t->wanted[byte_class >> 6] >> (byte_class & 63) & 1) &&
            !add(a, &f->exits, &f->n_exits, &f->exits_capacity, i, from.done, from.gate))
            return false;
        uint32_t to = from.row[byte_class];
        if (to == SH_GR_UNKNOWN) to = sh_gr_step(a, from.state, byte_class);
        if (to == SH_GR_UNKNOWN) return false;
        if (to == SH_GR_DEAD) {
            i = node->skip;
            continue;
        }
        const bool complete = a->states[to].can_end;
        if (t->loop != 0 && complete && to != between) {
            f->single = false;
            return true;
        }
        const uint32_t done = from.done + complete, begun = t->loop == 0 ? 1 : complete ? done : done + 1;
        for (int32_t token = node->token; token >= 0; token = l->same[token])
            if (!add(a, &f->tokens, &f->n_tokens, &f->tokens_capacity, (uint32_t)token, begun, false)) return false;
        if (node->token >= 0 && begun > f->most_begun) f->most_begun = begun;
        const bool gate = complete && node->skip - i > hot;
        if (gate && !add(a, &f->gates, &f->n_gates, &f->gates_capacity, i, done, false)) return false;
        a->levels[node->depth] = (struct sh_gr_level){a->states[to].row, to, done, gate};
        i++;
    }
    return true;
}

/* Puts what was found into the table. False: no memory. */
static bool fill(struct sh_gr_table *t, const struct sh_gr_lexicon *l, const struct sh_gr_program *p, const struct found *f) {
    t->levels = f->most_begun < 1 ? 1 : f->most_begun < MAX_LEVELS ? f->most_begun : MAX_LEVELS;
    t->most_begun = f->most_begun;
    t->n_deep = 0;
    for (uint32_t i = 0; i < f->n_tokens; i++) t->n_deep += f->tokens[i].done > t->levels;
    t->slices = sh_calloc((uint64_t)t->levels * l->n_words, sizeof *t->slices);
    t->deep = sh_calloc(t->n_deep, sizeof *t->deep);
    t->n_gates = f->n_gates;
    t->gates = sh_calloc(f->n_gates, sizeof *t->gates);
    t->exits = sh_calloc(f->n_exits, sizeof *t->exits);
    t->first_exit = sh_calloc((uint64_t)p->n_classes + 1, sizeof *t->first_exit);
    if (t->slices == NULL || t->deep == NULL || t->gates == NULL || t->exits == NULL || t->first_exit == NULL) return false;
    if (f->n_gates > 0) memcpy(t->gates, f->gates, f->n_gates * sizeof *t->gates);
    uint32_t deep = 0;
    for (uint32_t i = 0; i < f->n_tokens; i++) {
        const struct sh_gr_exit token = f->tokens[i];
        if (token.done > t->levels) t->deep[deep++] = token;
        else t->slices[(size_t)(token.done - 1) * l->n_words + (token.node >> 5)] |= 1u << (token.node & 31);
    }
    for (size_t i = l->n_words; i < (size_t)t->levels * l->n_words; i++) t->slices[i] |= t->slices[i - l->n_words];
    /* a stable sort by class */
    for (uint32_t i = 0; i < f->n_exits; i++) t->first_exit[p->class_of[l->all.nodes[f->exits[i].node].byte] + 1]++;
    for (uint32_t c = 0; c < p->n_classes; c++) t->first_exit[c + 1] += t->first_exit[c];
    for (uint32_t i = 0; i < f->n_exits; i++)
        t->exits[t->first_exit[p->class_of[l->all.nodes[f->exits[i].node].byte]]++] = f->exits[i];
    for (uint32_t c = p->n_classes; c-- > 0;) t->first_exit[c + 1] = t->first_exit[c];
    t->first_exit[0] = 0;
    return true;
}

static uint64_t bytes_of(const struct sh_gr_table *t, const struct sh_gr_lexicon *l, const struct sh_gr_program *p) {
    return ((uint64_t)t->levels * l->n_words + p->n_classes + 1) * sizeof(uint32_t) +
           ((uint64_t)t->n_deep + t->n_gates + t->first_exit[p->n_classes]) * sizeof(struct sh_gr_exit);
}

bool sh_gr_make_table(struct sh_gr_automaton *a, const struct sh_gr_lexicon *l, struct sh_gr_tables *tables,
                      struct sh_gr_table *t, const uint64_t wanted[4]) {
    if (t->kind == SH_GR_TABLE_READY) tables->bytes -= bytes_of(t, l, a->program);
    empty(t);
    t->kind = SH_GR_TABLE_NEVER;
    if (t->times_made++ == MAX_MADE || tables->bytes > max_bytes) return true;
    for (unsigned w = 0; w < 4; w++) t->wanted[w] |= wanted[w];
    struct found f = {.single = true};
    bool ok = walk(a, l, t, tables->hot, &f);
    if (ok && f.single) {
        ok = fill(t, l, a->program, &f);
        if (ok) {
            t->kind = SH_GR_TABLE_READY;
            tables->bytes += bytes_of(t, l, a->program);
        } else {
            empty(t);
            a->failed = SH_ERR_NO_MEMORY;
        }
    }
    free(f.tokens);
    free(f.gates);
    free(f.exits);
    return ok;
}
