/* From expressions to places: which expressions matter, what they can begin with, and their automata. */
#include "compute/grammar/automaton.h"

#include <stdlib.h>

enum {
    INLINE_SIZE = 24,     /* an expression used more than once is a rule of its own beyond this size */
    MAX_STATES = 1 << 22, /* raw ones */
    MAX_EDGES = 1 << 22,  /* of places: long rows of optional parts make many */
    UNROLL = 16,          /* size * times of a counted repeat that is written out; masks know only what is counted, so few are */
};

/* A raw state, before places are made. */
enum raw_kind { RAW_RETURN, RAW_BYTES, RAW_TOKEN, RAW_SPLIT, RAW_CALL, RAW_LOOP };
struct raw {
    uint8_t kind;
    uint32_t a;    /* BYTES: set; TOKEN: token; SPLIT: one way; CALL: part; LOOP: repeat */
    uint32_t next; /* SPLIT: the other way */
};

enum { NONE = UINT32_MAX };

enum { SEEN = 1, PRODUCTIVE = 2, NULLABLE = 4, PART = 8 };

struct compiler {
    const struct sh_gr *gr;
    uint8_t *flags;                   /* [n_nodes] */
    uint32_t *uses;                   /* [n_nodes] */
    uint32_t *size;                   /* [n_nodes] as a tree, saturating */
    uint32_t *parents, *first_parent; /* who uses a node, in rows */
    uint32_t *ref_node;               /* [n_rules] its reference, or NONE */
    uint32_t *list;                   /* [n_nodes] a stack of nodes */
    uint32_t *part;                   /* [n_nodes] the part that an expression is, or NONE */

    struct raw *raws;
    uint32_t n_raws, raws_capacity;
    uint32_t *starts; /* [n_parts] raw state in which it begins; NONE: not compiled yet */
    sh_gr_expr *part_expr;
    uint32_t n_parts, starts_capacity, part_expr_capacity;
    struct sh_gr_loop *loops; /* item: the part, next: a raw state; places later */
    uint32_t n_loops, loops_capacity;
    sh_gr_expr *chain; /* of pairs and choices in progress */
    uint32_t n_chain, chain_capacity;
    uint32_t *memo; /* open addressing: raw state + 1 of (expression, next) */
    struct memo {
        sh_gr_expr expr;
        uint32_t next, raw;
    } * memos;
    uint32_t n_memos, memos_capacity, n_memo_slots;

    struct sh_gr_program *out;
    uint32_t *place_of; /* [n_raws] or NONE */
    uint32_t *raw_of;   /* [n_places] */
    uint32_t raw_of_capacity, places_capacity, edges_capacity, tokens_capacity, jumps_capacity, program_loops_capacity;
    uint32_t *mark; /* [n_raws] the place whose closure met it last */
    uint32_t *stack;
    uint32_t n_stack, stack_capacity;

    enum sh_code failed;
    struct sh_error *err;
};

static uint32_t fail(struct compiler *c, enum sh_code code, const char *why) {
    if (c->failed == SH_OK) c->failed = sh_fail(c->err, code, "%s", why);
    return 0;
}
static uint32_t no_memory(struct compiler *c) { return fail(c, SH_ERR_NO_MEMORY, "no memory to compile a grammar"); }

/* ---- what the expressions are ------------------------------------------------------------------------------------ */

static uint32_t operands(const struct sh_gr *gr, sh_gr_expr e, uint32_t out[2]) {
    const struct sh_gr_node *n = &gr->nodes[e];
    switch (n->kind) {
    case SH_GR_KIND_PAIR:
    case SH_GR_KIND_CHOICE:
        out[0] = n->a;
        out[1] = n->b;
        return 2;
    case SH_GR_KIND_REPEAT: out[0] = n->a; return 1;
    case SH_GR_KIND_RULE: out[0] = gr->rules[n->a].expr; return 1;
    default: return 0;
    }
}

/* Marks what the root reaches, counts uses, and notes who uses what. */
static bool survey(struct compiler *c, sh_gr_expr root) {
    const struct sh_gr *gr = c->gr;
    uint32_t top = 0, operand[2], n_reached = 0, total = 0;
    c->flags[root] = SEEN;
    c->uses[root] = 1;
    c->list[top++] = root;
    while (top > 0) {
        const uint32_t e = c->list[--top];
        n_reached++;
        const uint32_t n = operands(gr, e, operand);
        total += n;
        for (uint32_t i = 0; i < n; i++) {
            if (c->uses[operand[i]] < UINT32_MAX) c->uses[operand[i]]++;
            c->first_parent[operand[i]]++;
            if (c->flags[operand[i]] & SEEN) continue;
            c->flags[operand[i]] |= SEEN;
            c->list[top++] = operand[i];
        }
    }
    c->parents = sh_calloc(total, sizeof *c->parents);
    if (c->parents == NULL) return false;
    uint32_t at = 0;
    for (uint32_t e = 0; e <= gr->n_nodes; e++) {
        const uint32_t n = c->first_parent[e];
        c->first_parent[e] = at;
        at += n;
    }
    /* fill from the rows' ends: each row's beginning is restored by its own length */
    for (uint32_t e = 0; e < gr->n_nodes; e++) {
        if (!(c->flags[e] & SEEN)) continue;
        const uint32_t n = operands(gr, e, operand);
        for (uint32_t i = 0; i < n; i++) c->parents[c->first_parent[operand[i]]++] = e;
    }
    for (uint32_t e = gr->n_nodes; e-- > 0;) c->first_parent[e + 1] = c->first_parent[e];
    c->first_parent[0] = 0;
    return true;
}

static bool holds(const struct compiler *c, sh_gr_expr e, uint8_t flag) {
    const struct sh_gr_node *n = &c->gr->nodes[e];
    switch (n->kind) {
    case SH_GR_KIND_NEVER: return false;
    case SH_GR_KIND_EMPTY: return true;
    case SH_GR_KIND_BYTES:
    case SH_GR_KIND_TOKEN: return flag == PRODUCTIVE;
    case SH_GR_KIND_PAIR: return (c->flags[n->a] & flag) && (c->flags[n->b] & flag);
    case SH_GR_KIND_CHOICE: return (c->flags[n->a] & flag) || (c->flags[n->b] & flag);
    case SH_GR_KIND_REPEAT: return n->b == 0 || (c->flags[n->a] & flag);
    case SH_GR_KIND_RULE: return (c->flags[c->gr->rules[n->a].expr] & flag) != 0;
    default: return false;
    }
}

/* The least solution: a node is looked at again when something it uses has got the flag. */
static void spread(struct compiler *c, uint8_t flag) {
    for (uint32_t e = 0; e < c->gr->n_nodes; e++) {
        if (!(c->flags[e] & SEEN) || (c->flags[e] & flag) || !holds(c, e, flag)) continue;
        uint32_t top = 0;
        c->flags[e] |= flag;
        c->list[top++] = e;
        while (top > 0) {
            const uint32_t done = c->list[--top];
            for (uint32_t i = c->first_parent[done]; i < c->first_parent[done + 1]; i++) {
                const uint32_t parent = c->parents[i];
                if ((c->flags[parent] & flag) || !holds(c, parent, flag)) continue;
                c->flags[parent] |= flag;
                c->list[top++] = parent;
            }
        }
    }
}

/* Finds a rule that can begin with itself: a depth-first search over "can begin with", in which every cycle goes through a
 * rule. */
static bool left_recursive(struct compiler *c, sh_gr_expr root) {
    enum { NEW, OPEN, DONE };
    const struct sh_gr *gr = c->gr;
    uint8_t *colour = sh_calloc(gr->n_nodes, 1), *turn = sh_calloc(gr->n_nodes, 1);
    bool found = colour == NULL || turn == NULL;
    if (found) no_memory(c);
    uint32_t top = 0;
    if (!found) {
        c->list[top++] = root;
        colour[root] = OPEN;
    }
    while (top > 0 && !found) {
        const uint32_t e = c->list[top - 1];
        uint32_t operand[2], n = operands(gr, e, operand);
        if (gr->nodes[e].kind == SH_GR_KIND_PAIR && !(c->flags[operand[0]] & NULLABLE)) n = 1;
        if (turn[e] >= n || !(c->flags[e] & PRODUCTIVE)) {
            colour[e] = DONE;
            top--;
            continue;
        }
        const uint32_t to = operand[turn[e]++];
        if (colour[to] == DONE) continue;
        if (colour[to] == NEW) {
            colour[to] = OPEN;
            c->list[top++] = to;
            continue;
        }
        found = true;
        uint32_t i = top;
        while (gr->nodes[c->list[--i]].kind != SH_GR_KIND_RULE) {
        }
        c->failed = sh_fail(c->err, SH_ERR_INVALID,
                            "left recursion: rule \"%s\" can begin with itself; put what it begins with before the "
                            "reference, or repeat it with *",
                            gr->rules[gr->nodes[c->list[i]].a].name);
    }
    free(colour);
    free(turn);
    return found;
}

/* Sizes, and which expressions are parts of their own: rules, and large ones that are used more than once. */
static void measure(struct compiler *c) {
    const struct sh_gr *gr = c->gr;
    for (uint32_t e = 0; e < gr->n_nodes; e++) {
        if (!(c->flags[e] & SEEN)) continue;
        const struct sh_gr_node *n = &gr->nodes[e];
        uint64_t size = 1;
        switch (n->kind) {
        case SH_GR_KIND_PAIR:
        case SH_GR_KIND_CHOICE: size += (uint64_t)c->size[n->a] + c->size[n->b]; break;
        case SH_GR_KIND_REPEAT:
            size += (uint64_t)c->size[n->a] * (n->max == SH_GR_UNLIMITED ? 1 : n->max <= UNROLL ? n->max : 1);
            break;
        default: break;
        }
        if (c->uses[e] > 1 && size > INLINE_SIZE) {
            c->flags[e] |= PART;
            size = 1;
        }
        c->size[e] = size < UINT32_MAX / 4 ? (uint32_t)size : UINT32_MAX / 4;
    }
}

/* ---- raw states -------------------------------------------------------------------------------------------------- */

static uint32_t add_raw(struct compiler *c, enum raw_kind kind, uint32_t a, uint32_t next) {
    if (c->failed != SH_OK) return 0;
    if (c->n_raws >= MAX_STATES) return fail(c, SH_ERR_LIMIT, "the grammar is too large: it needs more than 4194304 states");
    if (!sh_grow((void **)&c->raws, &c->raws_capacity, c->n_raws + 1, sizeof *c->raws)) return no_memory(c);
    c->raws[c->n_raws] = (struct raw){(uint8_t)kind, a, next};
    return c->n_raws++;
}

static uint32_t part_of(struct compiler *c, sh_gr_expr e) {
    if (c->part[e] != NONE) return c->part[e];
    if (!sh_grow((void **)&c->starts, &c->starts_capacity, c->n_parts + 1, sizeof *c->starts) ||
        !sh_grow((void **)&c->part_expr, &c->part_expr_capacity, c->n_parts + 1, sizeof *c->part_expr))
        return no_memory(c);
    c->starts[c->n_parts] = NONE;
    c->part_expr[c->n_parts] = e;
    return c->part[e] = c->n_parts++;
}

static uint32_t memo_slot(const struct compiler *c, sh_gr_expr e, uint32_t next) {
    uint64_t h = ((uint64_t)e << 32 | next) * 0x9E3779B97F4A7C15u;
    uint32_t at = (uint32_t)(h >> 32) & (c->n_memo_slots - 1);
    for (; c->memo[at] != 0; at = (at + 1) & (c->n_memo_slots - 1)) {
        const struct memo *m = &c->memos[c->memo[at] - 1];
        if (m->expr == e && m->next == next) break;
    }
    return at;
}

static void remember(struct compiler *c, sh_gr_expr e, uint32_t next, uint32_t raw) {
    if (c->failed != SH_OK) return;
    if (c->n_memo_slots < (c->n_memos + 1) * 2) {
        const uint32_t n = c->n_memo_slots * 2;
        uint32_t *grown = sh_calloc(n, sizeof *grown);
        if (grown == NULL) {
            no_memory(c);
            return;
        }
        free(c->memo);
        c->memo = grown;
        c->n_memo_slots = n;
        for (uint32_t i = 0; i < c->n_memos; i++) c->memo[memo_slot(c, c->memos[i].expr, c->memos[i].next)] = i + 1;
    }
    if (!sh_grow((void **)&c->memos, &c->memos_capacity, c->n_memos + 1, sizeof *c->memos)) {
        no_memory(c);
        return;
    }
    const uint32_t slot = memo_slot(c, e, next);
    c->memos[c->n_memos] = (struct memo){e, next, raw};
    c->memo[slot] = ++c->n_memos;
}

static uint32_t build(struct compiler *c, sh_gr_expr e, uint32_t next, bool as_part);

/* The operands of a chain of pairs or of choices go on the compiler's list; what is a part of its own ends the chain. */
static bool unchain(struct compiler *c, sh_gr_expr e) {
    const uint8_t kind = c->gr->nodes[e].kind;
    bool first = true;
    while (c->gr->nodes[e].kind == kind && (first || !(c->flags[e] & PART))) {
        if (!sh_grow((void **)&c->chain, &c->chain_capacity, c->n_chain + 2, sizeof *c->chain)) return false;
        c->chain[c->n_chain++] = c->gr->nodes[e].a;
        e = c->gr->nodes[e].b;
        first = false;
    }
    c->chain[c->n_chain++] = e;
    return true;
}

static uint32_t build_repeat(struct compiler *c, const struct sh_gr_node *n, uint32_t next) {
    const bool nullable = c->flags[n->a] & NULLABLE;
    if (!(c->flags[n->a] & PRODUCTIVE)) return next; /* then it need not occur */
    if (n->max == SH_GR_UNLIMITED) {
        const uint32_t loop = add_raw(c, RAW_SPLIT, next, next);
        const uint32_t item = build(c, n->a, loop, true);
        if (c->failed == SH_OK) c->raws[loop].a = item;
        return loop;
    }
    const uint32_t min = nullable ? 0 : n->b; /* items that match nothing count for those that are missing */
    if (!(c->flags[n->a] & PART) && (uint64_t)c->size[n->a] * n->max <= UNROLL) {
        uint32_t at = next;
        for (uint32_t i = n->max; i-- > 0 && c->failed == SH_OK;) {
            const uint32_t item = build(c, n->a, at, true);
            at = i >= min ? add_raw(c, RAW_SPLIT, item, next) : item;
        }
        return at;
    }
    if (!sh_grow((void **)&c->loops, &c->loops_capacity, c->n_loops + 1, sizeof *c->loops)) return no_memory(c);
    c->loops[c->n_loops] = (struct sh_gr_loop){min, n->max, part_of(c, n->a), next};
    return add_raw(c, RAW_LOOP, c->n_loops++, next);
}

/* A raw state from which e leads to `next`. `as_part`: as a call where it is a part of its own. e is productive. */
static uint32_t build(struct compiler *c, sh_gr_expr e, uint32_t next, bool as_part) {
    if (c->failed != SH_OK) return 0;
    const struct sh_gr_node *n = &c->gr->nodes[e];
    if (as_part && (c->flags[e] & PART)) return add_raw(c, RAW_CALL, part_of(c, e), next);
    if (n->kind == SH_GR_KIND_EMPTY) return next;
    const uint32_t known = c->memo[memo_slot(c, e, next)];
    if (as_part && known != 0) return c->memos[known - 1].raw;
    uint32_t raw = 0;
    switch (n->kind) {
    case SH_GR_KIND_BYTES: raw = add_raw(c, RAW_BYTES, n->a, next); break;
    case SH_GR_KIND_TOKEN: raw = add_raw(c, RAW_TOKEN, n->a, next); break;
    case SH_GR_KIND_RULE: raw = add_raw(c, RAW_CALL, part_of(c, c->gr->rules[n->a].expr), next); break;
    case SH_GR_KIND_REPEAT: raw = build_repeat(c, n, next); break;
    case SH_GR_KIND_PAIR: {
        const uint32_t base = c->n_chain;
        if (!unchain(c, e)) return no_memory(c);
        raw = next;
        while (c->n_chain > base) raw = build(c, c->chain[--c->n_chain], raw, true);
        break;
    }
    case SH_GR_KIND_CHOICE: {
        const uint32_t base = c->n_chain;
        if (!unchain(c, e)) return no_memory(c);
        bool any = false;
        while (c->n_chain > base) {
            const sh_gr_expr item = c->chain[--c->n_chain];
            bool alive = c->flags[item] & PRODUCTIVE;
            if (!alive) continue;
            const uint32_t way = build(c, item, next, true);
            raw = any ? add_raw(c, RAW_SPLIT, way, raw) : way;
            any = true;
        }
        break;
    }
    default: SH_ASSERT(false);
    }
    if (as_part) remember(c, e, next, raw);
    return raw;
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

static uint32_t place_of(struct compiler *c, uint32_t raw) {
    if (c->failed != SH_OK) return 0;
    if (c->place_of[raw] != NONE) return c->place_of[raw];
    struct sh_gr_program *p = c->out;
    if (!sh_grow((void **)&c->raw_of, &c->raw_of_capacity, p->n_places + 1, sizeof *c->raw_of) ||
        !sh_grow((void **)&p->places, &c->places_capacity, p->n_places + 2, sizeof *p->places))
        return no_memory(c);
    c->raw_of[p->n_places] = raw;
    return c->place_of[raw] = p->n_places++;
}

static void push(struct compiler *c, uint32_t raw, uint32_t mark) {
    if (c->mark[raw] == mark) return;
    c->mark[raw] = mark;
    if (!sh_grow((void **)&c->stack, &c->stack_capacity, c->n_stack + 1, sizeof *c->stack)) {
        no_memory(c);
        return;
    }
    c->stack[c->n_stack++] = raw;
}

/* Fills in one place: all that its raw state reaches without a byte and without a frame. */
static void fill_place(struct compiler *c, uint32_t place) {
    struct sh_gr_program *p = c->out;
    struct sh_gr_place *to = &p->places[place];
    *to = (struct sh_gr_place){.edge = p->n_edges, .token = p->n_tokens, .jump = p->n_jumps};
    bool returns = false;
    push(c, c->raw_of[place], place + 1);
    while (c->n_stack > 0 && c->failed == SH_OK) {
        const struct raw raw = c->raws[c->stack[--c->n_stack]];
        if (p->n_edges + p->n_jumps + p->n_tokens >= MAX_EDGES) {
            fail(c, SH_ERR_LIMIT, "the grammar is too large: more than 4194304 ways lead on from its places");
            return;
        }
        switch (raw.kind) {
        case RAW_RETURN: returns = true; break;
        case RAW_SPLIT:
            push(c, raw.next, place + 1);
            push(c, raw.a, place + 1);
            break;
        case RAW_BYTES: {
            const uint32_t target = place_of(c, raw.next);
            bool known = false;
            for (uint32_t i = p->places[place].edge; i < p->n_edges && i < p->places[place].edge + 16; i++)
                known |= p->edges[i].set == raw.a && p->edges[i].target == target;
            if (known) break;
            if (!sh_grow((void **)&p->edges, &c->edges_capacity, p->n_edges + 1, sizeof *p->edges)) {
                no_memory(c);
                return;
            }
            p->edges[p->n_edges++] = (struct sh_gr_edge){raw.a, target};
            break;
        }
        case RAW_TOKEN: {
            const uint32_t target = place_of(c, raw.next);
            if (!sh_grow((void **)&p->tokens, &c->tokens_capacity, p->n_tokens + 1, sizeof *p->tokens)) {
                no_memory(c);
                return;
            }
            p->tokens[p->n_tokens++] = (struct sh_gr_token_edge){(int32_t)raw.a, target};
            break;
        }
        default: {
            if (raw.kind == RAW_CALL && c->raws[raw.next].kind == RAW_RETURN) { /* nothing behind it: no frame */
                push(c, c->starts[raw.a], place + 1);
                break;
            }
            struct sh_gr_jump jump = {SH_GR_REPEAT_BIT | raw.a, 0};
            if (raw.kind == RAW_CALL) jump = (struct sh_gr_jump){place_of(c, c->starts[raw.a]), place_of(c, raw.next)};
            if (!sh_grow((void **)&p->jumps, &c->jumps_capacity, p->n_jumps + 1, sizeof *p->jumps)) {
                no_memory(c);
                return;
            }
            p->jumps[p->n_jumps++] = jump;
        }
        }
    }
    p->places[place].returns = returns;
}

static void make_places(struct compiler *c, uint32_t root) {
    struct sh_gr_program *p = c->out;
    p->loops = sh_calloc(c->n_loops, sizeof *p->loops);
    if (p->loops == NULL) no_memory(c);
    place_of(c, 0); /* the end of every rule */
    p->start = place_of(c, root);
    for (uint32_t i = 0; i < c->n_loops && c->failed == SH_OK; i++) {
        const struct sh_gr_loop *l = &c->loops[i];
        p->loops[i] = (struct sh_gr_loop){l->min, l->max, place_of(c, c->starts[l->item]), place_of(c, l->next)};
    }
    p->n_loops = c->n_loops;
    for (uint32_t i = 0; i < p->n_places && c->failed == SH_OK; i++) fill_place(c, i);
    if (c->failed == SH_OK)
        p->places[p->n_places] = (struct sh_gr_place){.edge = p->n_edges, .token = p->n_tokens, .jump = p->n_jumps};
}

/* Bytes that no set tells apart are one class. */
static void make_classes(struct sh_gr_program *p, const uint8_t *used) {
    p->n_classes = 1;
    for (uint32_t s = 0; s < p->n_sets && p->n_classes < 256; s++) {
        if (!used[s]) continue;
        uint16_t outside[256], inside[256];
        memset(outside, 0xFF, sizeof outside);
        memset(inside, 0xFF, sizeof inside);
        uint32_t n = 0;
        uint8_t class_of[256];
        for (uint32_t b = 0; b < 256; b++) {
            uint16_t *to = &(sh_gr_set_has(&p->sets[s], (uint8_t)b) ? inside : outside)[p->class_of[b]];
            if (*to == UINT16_MAX) *to = (uint16_t)n++;
            class_of[b] = (uint8_t)*to;
        }
        memcpy(p->class_of, class_of, sizeof class_of);
        p->n_classes = n;
    }
    for (uint32_t b = 256; b-- > 0;) p->member[p->class_of[b]] = (uint8_t)b;
}

/* ---- plain characters -------------------------------------------------------------------------------------------- */

static struct sh_gr_set span_set(uint32_t first, uint32_t last) {
    struct sh_gr_set set = {{0}};
    for (uint32_t b = first; b <= last; b++) set.words[b >> 6] |= (uint64_t)1 << (b & 63);
    return set;
}

/* The target of an edge that takes all these bytes; NONE: no single edge does. *alone becomes false if others take some of
 * them. */
static uint32_t edge_over(const struct sh_gr_program *p, uint32_t place, const struct sh_gr_set *bytes, bool *alone) {
    uint32_t target = NONE;
    for (uint32_t i = p->places[place].edge; i < p->places[place + 1].edge; i++) {
        const struct sh_gr_set *set = &p->sets[p->edges[i].set];
        bool all = true, some = false;
        for (unsigned w = 0; w < 4; w++) {
            all &= (bytes->words[w] & ~set->words[w]) == 0;
            some |= (bytes->words[w] & set->words[w]) != 0;
        }
        if (all && target == NONE) target = p->edges[i].target;
        else if (some) *alone = false;
    }
    return target;
}

/* Where every plain character leads from the place; NONE: not to one place, or not at all. *alone becomes false if some
 * lead elsewhere too. */
static uint32_t plain_target(const struct sh_gr_program *p, uint32_t place, bool *alone) {
    static const uint8_t forms[][8] = {/* well-formed UTF-8, first and last of each byte */
                                       {0xC2, 0xDF, 0x80, 0xBF},
                                       {0xE0, 0xE0, 0xA0, 0xBF, 0x80, 0xBF},
                                       {0xE1, 0xEC, 0x80, 0xBF, 0x80, 0xBF},
                                       {0xED, 0xED, 0x80, 0x9F, 0x80, 0xBF},
                                       {0xEE, 0xEF, 0x80, 0xBF, 0x80, 0xBF},
                                       {0xF0, 0xF0, 0x90, 0xBF, 0x80, 0xBF, 0x80, 0xBF},
                                       {0xF1, 0xF3, 0x80, 0xBF, 0x80, 0xBF, 0x80, 0xBF},
                                       {0xF4, 0xF4, 0x80, 0x8F, 0x80, 0xBF, 0x80, 0xBF}};
    struct sh_gr_set ascii = span_set(0x20, 0x7E);
    ascii.words[0] &= ~((uint64_t)1 << '"');
    ascii.words[1] &= ~((uint64_t)1 << ('\\' & 63));
    const uint32_t target = edge_over(p, place, &ascii, alone);
    if (target == NONE) return NONE;
    for (uint32_t f = 0; f < SH_COUNT(forms); f++) {
        uint32_t at = place;
        for (uint32_t i = 0; i < 8 && forms[f][i] != 0 && at != NONE; i += 2) {
            const struct sh_gr_set bytes = span_set(forms[f][i], forms[f][i + 1]);
            at = edge_over(p, at, &bytes, alone);
        }
        if (at != target) return NONE;
    }
    return target;
}

static void judge_plain(struct sh_gr_program *p, uint32_t place) {
    struct sh_gr_place *to = &p->places[place];
    const struct sh_gr_set ascii = span_set(0x20, 0x7E), high = span_set(0xC2, 0xF4);
    to->plain = SH_GR_PLAIN_NONE;
    for (uint32_t i = to->edge; i < to[1].edge; i++) {
        struct sh_gr_set set = p->sets[p->edges[i].set];
        set.words[0] &= ~((uint64_t)1 << '"');
        set.words[1] &= ~((uint64_t)1 << ('\\' & 63));
        for (unsigned w = 0; w < 4; w++)
            if (set.words[w] & (ascii.words[w] | high.words[w])) to->plain = SH_GR_PLAIN_SOME;
    }
    if (to->plain == SH_GR_PLAIN_NONE) return;
    bool alone = true, any = true;
    const uint32_t target = plain_target(p, place, &alone);
    if (target == NONE) return;
    if (target == 0) to->plain = alone ? SH_GR_PLAIN_ITEM : SH_GR_PLAIN_MIXED;
    else if (target == place || plain_target(p, target, &any) == target) to->plain = SH_GR_PLAIN_LOOP;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static bool check_tokens(struct compiler *c, uint32_t n_vocab) {
    for (uint32_t e = 0; e < c->gr->n_nodes; e++) {
        if (!(c->flags[e] & SEEN) || c->gr->nodes[e].kind != SH_GR_KIND_TOKEN || c->gr->nodes[e].a < n_vocab) continue;
        c->failed =
            sh_fail(c->err, SH_ERR_INVALID, "the grammar names token %u; the vocabulary has %u", c->gr->nodes[e].a, n_vocab);
        return false;
    }
    return true;
}

static void compile(struct compiler *c, sh_gr_expr root, uint32_t n_vocab) {
    const struct sh_gr *gr = c->gr;
    struct sh_gr_program *p = c->out;
    c->flags = sh_calloc(gr->n_nodes, 1);
    c->uses = sh_calloc(gr->n_nodes, sizeof *c->uses);
    c->size = sh_calloc(gr->n_nodes, sizeof *c->size);
    c->list = sh_calloc(gr->n_nodes, sizeof *c->list);
    c->part = sh_calloc(gr->n_nodes, sizeof *c->part);
    c->first_parent = sh_calloc((uint64_t)gr->n_nodes + 1, sizeof *c->first_parent);
    c->n_memo_slots = 256;
    c->memo = sh_calloc(c->n_memo_slots, sizeof *c->memo);
    p->sets = sh_calloc(gr->n_sets, sizeof *p->sets);
    if (c->flags == NULL || c->uses == NULL || c->size == NULL || c->list == NULL || c->part == NULL || c->first_parent == NULL ||
        c->memo == NULL || p->sets == NULL || !survey(c, root)) {
        no_memory(c);
        return;
    }
    spread(c, PRODUCTIVE);
    spread(c, NULLABLE);
    if (!(c->flags[root] & PRODUCTIVE)) {
        fail(c, SH_ERR_INVALID, "the grammar matches no text at all");
        return;
    }
    if (!check_tokens(c, n_vocab) || left_recursive(c, root)) return;
    measure(c);
    memset(c->part, 0xFF, gr->n_nodes * sizeof *c->part);
    add_raw(c, RAW_RETURN, 0, 0);
    part_of(c, root);
    for (uint32_t i = 0; i < c->n_parts && c->failed == SH_OK; i++) {
        const uint32_t start = build(c, c->part_expr[i], 0, false);
        if (c->failed == SH_OK) c->starts[i] = start;
    }
    if (c->failed != SH_OK) return;
    c->place_of = sh_calloc(c->n_raws, sizeof *c->place_of);
    c->mark = sh_calloc(c->n_raws, sizeof *c->mark);
    if (c->place_of == NULL || c->mark == NULL) {
        no_memory(c);
        return;
    }
    memset(c->place_of, 0xFF, c->n_raws * sizeof *c->place_of);
    make_places(c, c->starts[0]);
    if (c->failed != SH_OK) return;
    if (gr->n_sets > 0) memcpy(p->sets, gr->sets, gr->n_sets * sizeof *p->sets);
    p->n_sets = gr->n_sets;
    uint8_t *used = sh_calloc(gr->n_sets, 1);
    if (used == NULL) {
        no_memory(c);
        return;
    }
    for (uint32_t i = 0; i < p->n_edges; i++) used[p->edges[i].set] = 1;
    make_classes(p, used);
    free(used);
    for (uint32_t i = 0; i < p->n_places; i++) judge_plain(p, i);
}

enum sh_code sh_gr_program_init(struct sh_gr_program *program, const struct sh_gr *gr, sh_gr_expr root, uint32_t n_vocab,
                                struct sh_error *err) {
    *program = (struct sh_gr_program){0};
    if (gr->failed != SH_OK) return sh_fail(err, gr->failed, "%s", gr->why);
    struct compiler c = {.gr = gr, .out = program, .err = err};
    compile(&c, root, n_vocab);
    free(c.flags);
    free(c.uses);
    free(c.size);
    free(c.parents);
    free(c.first_parent);
    free(c.list);
    free(c.part);
    free(c.raws);
    free(c.starts);
    free(c.part_expr);
    free(c.loops);
    free(c.chain);
    free(c.memo);
    free(c.memos);
    free(c.place_of);
    free(c.raw_of);
    free(c.mark);
    free(c.stack);
    if (c.failed != SH_OK) sh_gr_program_finish(program);
    return c.failed;
}

void sh_gr_program_finish(struct sh_gr_program *p) {
    free(p->places);
    free(p->edges);
    free(p->tokens);
    free(p->jumps);
    free(p->loops);
    free(p->sets);
    *p = (struct sh_gr_program){0};
}
