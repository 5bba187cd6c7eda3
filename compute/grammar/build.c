#include "compute/grammar/expr.h"

#include <stdlib.h>

enum {
    CODE_POINTS = 0x110000,
    FACTOR_DEPTH = 512, /* bytes of a common beginning that choices share */
};

static sh_gr_expr fail(struct sh_gr *gr, enum sh_code code, const char *why) {
    if (gr->failed == SH_OK) {
        gr->failed = code;
        gr->why = why;
    }
    return SH_GR_NEVER;
}

static sh_gr_expr no_memory(struct sh_gr *gr) { return fail(gr, SH_ERR_NO_MEMORY, "no memory for a grammar's expressions"); }

/* ---- nodes and sets, each made once ------------------------------------------------------------------------------ */

static uint32_t mix(uint64_t h) {
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(h >> 32);
}

static uint32_t hash_node(const struct sh_gr_node *n) {
    return mix(((uint64_t)n->a << 32 | n->b) ^ ((uint64_t)mix(((uint64_t)n->max << 8) | n->kind) << 16));
}

static uint32_t hash_set(const struct sh_gr_set *s) {
    uint64_t h = 0;
    for (unsigned i = 0; i < 4; i++) h = (h ^ s->words[i]) * 0x9E3779B97F4A7C15u + (h >> 29);
    return mix(h);
}

static bool more_slots(uint32_t **slots, uint32_t *n_slots, uint32_t entries) {
    if (*n_slots > entries * 2) return true;
    const uint32_t n = *n_slots > 0 ? *n_slots * 2 : 256;
    uint32_t *grown = sh_calloc(n, sizeof *grown);
    if (grown == NULL) return false;
    free(*slots);
    *slots = grown;
    *n_slots = n;
    return true;
}

static bool grow_node_slots(struct sh_gr *gr) {
    const uint32_t before = gr->n_slots;
    if (!more_slots(&gr->slots, &gr->n_slots, gr->n_nodes + 1)) return false;
    if (gr->n_slots == before) return true;
    for (uint32_t i = 0; i < gr->n_nodes; i++) {
        uint32_t at = hash_node(&gr->nodes[i]) & (gr->n_slots - 1);
        while (gr->slots[at] != 0) at = (at + 1) & (gr->n_slots - 1);
        gr->slots[at] = i + 1;
    }
    return true;
}

static uint32_t depth_of(const struct sh_gr *gr, const struct sh_gr_node *n) {
    switch (n->kind) {
    case SH_GR_KIND_PAIR:
    case SH_GR_KIND_CHOICE: {
        const struct sh_gr_node *next = &gr->nodes[n->b];
        const uint32_t a = gr->nodes[n->a].depth + 1u, b = next->depth + (next->kind != n->kind);
        return a > b ? a : b;
    }
    case SH_GR_KIND_REPEAT: return gr->nodes[n->a].depth + 1u;
    default: return 0;
    }
}

static sh_gr_expr make(struct sh_gr *gr, enum sh_gr_kind kind, uint32_t a, uint32_t b, uint32_t max) {
    if (gr->failed != SH_OK) return SH_GR_NEVER;
    struct sh_gr_node n = {.kind = (uint8_t)kind, .a = a, .b = b, .max = max};
    if (!grow_node_slots(gr)) return no_memory(gr);
    uint32_t at = hash_node(&n) & (gr->n_slots - 1);
    for (; gr->slots[at] != 0; at = (at + 1) & (gr->n_slots - 1)) {
        const struct sh_gr_node *have = &gr->nodes[gr->slots[at] - 1];
        if (have->kind == n.kind && have->a == a && have->b == b && have->max == max) return gr->slots[at] - 1;
    }
    if (gr->n_nodes >= SH_GR_MAX_EXPRESSIONS) return fail(gr, SH_ERR_LIMIT, "the grammar has more than 1048576 expressions");
    const uint32_t depth = depth_of(gr, &n);
    if (depth > SH_GR_DEEPEST) return fail(gr, SH_ERR_LIMIT, "the grammar's expressions are nested more than 4096 deep");
    n.depth = (uint16_t)depth;
    if (!sh_grow((void **)&gr->nodes, &gr->nodes_capacity, gr->n_nodes + 1, sizeof *gr->nodes)) return no_memory(gr);
    gr->nodes[gr->n_nodes] = n;
    gr->slots[at] = gr->n_nodes + 1;
    return gr->n_nodes++;
}

struct sh_gr *sh_gr_create(void) {
    struct sh_gr *gr = calloc(1, sizeof *gr);
    if (gr == NULL) return NULL;
    make(gr, SH_GR_KIND_NEVER, 0, 0, 0);
    make(gr, SH_GR_KIND_EMPTY, 0, 0, 0);
    if (gr->failed != SH_OK) {
        sh_gr_destroy(gr);
        return NULL;
    }
    return gr;
}

void sh_gr_destroy(struct sh_gr *gr) {
    if (gr == NULL) return;
    for (uint32_t i = 0; i < gr->n_rules; i++) free(gr->rules[i].name);
    free(gr->rules);
    free(gr->nodes);
    free(gr->slots);
    free(gr->sets);
    free(gr->set_slots);
    free(gr);
}

static sh_gr_expr bytes_of(struct sh_gr *gr, const struct sh_gr_set *set) {
    if (gr->failed != SH_OK || (set->words[0] | set->words[1] | set->words[2] | set->words[3]) == 0) return SH_GR_NEVER;
    const uint32_t before = gr->n_set_slots;
    if (!more_slots(&gr->set_slots, &gr->n_set_slots, gr->n_sets + 1)) return no_memory(gr);
    if (gr->n_set_slots != before) {
        for (uint32_t i = 0; i < gr->n_sets; i++) {
            uint32_t at = hash_set(&gr->sets[i]) & (gr->n_set_slots - 1);
            while (gr->set_slots[at] != 0) at = (at + 1) & (gr->n_set_slots - 1);
            gr->set_slots[at] = i + 1;
        }
    }
    uint32_t at = hash_set(set) & (gr->n_set_slots - 1);
    for (; gr->set_slots[at] != 0; at = (at + 1) & (gr->n_set_slots - 1))
        if (memcmp(&gr->sets[gr->set_slots[at] - 1], set, sizeof *set) == 0)
            return make(gr, SH_GR_KIND_BYTES, gr->set_slots[at] - 1, 0, 0);
    if (!sh_grow((void **)&gr->sets, &gr->sets_capacity, gr->n_sets + 1, sizeof *gr->sets)) return no_memory(gr);
    gr->sets[gr->n_sets] = *set;
    gr->set_slots[at] = ++gr->n_sets;
    return make(gr, SH_GR_KIND_BYTES, gr->n_sets - 1, 0, 0);
}

static void add_byte(struct sh_gr_set *set, uint32_t byte) { set->words[byte >> 6] |= (uint64_t)1 << (byte & 63); }

/* ---- expressions ------------------------------------------------------------------------------------------------- */

sh_gr_expr sh_gr_bytes(struct sh_gr *gr, const uint8_t set[32]) {
    struct sh_gr_set words;
    memcpy(words.words, set, sizeof words.words);
    return bytes_of(gr, &words);
}

static sh_gr_expr one_byte(struct sh_gr *gr, uint8_t byte) {
    struct sh_gr_set set = {{0}};
    add_byte(&set, byte);
    return bytes_of(gr, &set);
}

sh_gr_expr sh_gr_pair(struct sh_gr *gr, sh_gr_expr first, sh_gr_expr second) {
    if (first == SH_GR_NEVER || second == SH_GR_NEVER) return SH_GR_NEVER;
    if (first == SH_GR_EMPTY) return second;
    if (second == SH_GR_EMPTY) return first;
    return make(gr, SH_GR_KIND_PAIR, first, second, 0);
}

sh_gr_expr sh_gr_text(struct sh_gr *gr, const char *bytes, size_t length) {
    sh_gr_expr e = gr->failed == SH_OK ? SH_GR_EMPTY : SH_GR_NEVER;
    for (size_t i = length; i-- > 0 && gr->failed == SH_OK;) e = sh_gr_pair(gr, one_byte(gr, (uint8_t)bytes[i]), e);
    return e;
}

sh_gr_expr sh_gr_sequence(struct sh_gr *gr, const sh_gr_expr *items, uint32_t n) {
    sh_gr_expr e = gr->failed == SH_OK ? SH_GR_EMPTY : SH_GR_NEVER;
    for (uint32_t i = n; i-- > 0;) e = sh_gr_pair(gr, items[i], e);
    return e;
}

sh_gr_expr sh_gr_token(struct sh_gr *gr, int32_t token) {
    if (token < 0) return fail(gr, SH_ERR_INVALID, "a grammar names a token with a number below 0");
    return make(gr, SH_GR_KIND_TOKEN, (uint32_t)token, 0, 0);
}

/* The first item that e begins with, and what follows it. */
static sh_gr_expr head_of(struct sh_gr *gr, sh_gr_expr e, sh_gr_expr *rest) {
    *rest = SH_GR_EMPTY;
    while (gr->nodes[e].kind == SH_GR_KIND_PAIR) {
        *rest = sh_gr_pair(gr, gr->nodes[e].b, *rest);
        e = gr->nodes[e].a;
    }
    return e;
}
static sh_gr_expr first_of(const struct sh_gr *gr, sh_gr_expr e) {
    while (gr->nodes[e].kind == SH_GR_KIND_PAIR) e = gr->nodes[e].a;
    return e;
}

struct alternative {
    sh_gr_expr head, expr;
};

static int compare_alternatives(const void *a, const void *b) {
    const struct alternative *x = a, *y = b;
    if (x->head != y->head) return x->head < y->head ? -1 : 1;
    return x->expr < y->expr ? -1 : x->expr > y->expr;
}

static sh_gr_expr choose(struct sh_gr *gr, const struct alternative *list, uint32_t n) { /* as a tree, so that it is not deep */
    if (n == 1) return list[0].expr;
    const sh_gr_expr a = choose(gr, list, n / 2), b = choose(gr, list + n / 2, n - n / 2);
    return make(gr, SH_GR_KIND_CHOICE, a, b, 0);
}

/* What begins alike is put together (texts so become a trie), and alternatives of one byte are one set. The list is used up. */
static sh_gr_expr choice(struct sh_gr *gr, struct alternative *list, uint32_t n, uint32_t depth) {
    struct sh_gr_set set = {{0}};
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        const sh_gr_expr e = list[i].expr;
        if (e == SH_GR_NEVER) continue;
        if (gr->nodes[e].kind == SH_GR_KIND_BYTES) {
            for (unsigned w = 0; w < 4; w++) set.words[w] |= gr->sets[gr->nodes[e].a].words[w];
            continue;
        }
        list[kept++] = (struct alternative){first_of(gr, e), e};
    }
    const sh_gr_expr bytes = bytes_of(gr, &set);
    if (bytes != SH_GR_NEVER) list[kept++] = (struct alternative){bytes, bytes};
    if (gr->failed != SH_OK || kept == 0) return SH_GR_NEVER;
    qsort(list, kept, sizeof *list, compare_alternatives);
    uint32_t out = 0;
    for (uint32_t i = 0, end; i < kept; i = end) {
        end = i + 1;
        uint32_t distinct = 1;
        for (; end < kept && list[end].head == list[i].head; end++)
            if (list[end].expr != list[i + distinct - 1].expr) list[i + distinct++] = list[end];
        if (distinct > 1 && depth < FACTOR_DEPTH) {
            const sh_gr_expr head = list[i].head;
            for (uint32_t k = i; k < i + distinct; k++) head_of(gr, list[k].expr, &list[k].expr);
            const sh_gr_expr rest = choice(gr, list + i, distinct, depth + 1);
            list[out++].expr = sh_gr_pair(gr, head, rest);
        } else {
            for (uint32_t k = i; k < i + distinct; k++) list[out++] = list[k];
        }
        if (gr->failed != SH_OK) return SH_GR_NEVER;
    }
    return choose(gr, list, out);
}

sh_gr_expr sh_gr_choice(struct sh_gr *gr, const sh_gr_expr *items, uint32_t n) {
    if (gr->failed != SH_OK || n == 0) return SH_GR_NEVER;
    struct alternative *list = sh_calloc((uint64_t)n + 1, sizeof *list);
    if (list == NULL) return no_memory(gr);
    for (uint32_t i = 0; i < n; i++) list[i].expr = items[i];
    const sh_gr_expr e = choice(gr, list, n, 0);
    free(list);
    return e;
}

sh_gr_expr sh_gr_optional(struct sh_gr *gr, sh_gr_expr item) {
    return sh_gr_choice(gr, (const sh_gr_expr[]){item, SH_GR_EMPTY}, 2);
}

sh_gr_expr sh_gr_repeat(struct sh_gr *gr, sh_gr_expr item, uint32_t min, uint32_t max) {
    if (gr->failed != SH_OK || min > max) return SH_GR_NEVER;
    if (max == 0 || item == SH_GR_EMPTY) return SH_GR_EMPTY;
    if (item == SH_GR_NEVER) return min == 0 ? SH_GR_EMPTY : SH_GR_NEVER;
    if (max == 1) return min == 1 ? item : sh_gr_optional(gr, item);
    if (max != SH_GR_UNLIMITED) return make(gr, SH_GR_KIND_REPEAT, item, min, max);
    const sh_gr_expr any = make(gr, SH_GR_KIND_REPEAT, item, 0, SH_GR_UNLIMITED);
    if (min == 0) return any;
    return sh_gr_pair(gr, min == 1 ? item : make(gr, SH_GR_KIND_REPEAT, item, min, min), any);
}

uint32_t sh_gr_rule(struct sh_gr *gr, const char *name) {
    if (gr->failed != SH_OK) return 0;
    if (gr->n_rules >= SH_GR_MAX_EXPRESSIONS) return fail(gr, SH_ERR_LIMIT, "the grammar has more than 1048576 rules");
    char *copy = strdup(name);
    if (copy == NULL || !sh_grow((void **)&gr->rules, &gr->rules_capacity, gr->n_rules + 1, sizeof *gr->rules)) {
        free(copy);
        return no_memory(gr);
    }
    gr->rules[gr->n_rules] = (struct sh_gr_rule){copy, SH_GR_NEVER};
    return gr->n_rules++;
}

void sh_gr_set_rule(struct sh_gr *gr, uint32_t rule, sh_gr_expr expr) {
    if (gr->failed == SH_OK) gr->rules[rule].expr = expr;
}

sh_gr_expr sh_gr_ref(struct sh_gr *gr, uint32_t rule) { return make(gr, SH_GR_KIND_RULE, rule, 0, 0); }

/* ---- code points as UTF-8 ---------------------------------------------------------------------------------------- */

static int compare_ranges(const void *a, const void *b) {
    const struct sh_gr_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static sh_gr_expr any_tail(struct sh_gr *gr, uint32_t k) {
    if (k == 0) return SH_GR_EMPTY;
    if (gr->any_tail[k] == SH_GR_NEVER)
        gr->any_tail[k] = sh_gr_pair(gr, bytes_of(gr, &(const struct sh_gr_set){{[2] = UINT64_MAX}}), any_tail(gr, k - 1));
    return gr->any_tail[k];
}

/* One byte for each of `n` blocks of 64^k code points from `base` on, the first of them `lead`, and k more bytes: those of
 * them that are in the ranges, which are in order and apart. */
static sh_gr_expr blocks(struct sh_gr *gr, const struct sh_gr_range *ranges, uint32_t n_ranges, uint32_t base, uint32_t n,
                         uint32_t lead, uint32_t k) {
    struct sh_gr_set sets[64];
    sh_gr_expr tails[64], items[64];
    uint32_t n_items = 0;
    const uint32_t size = 1u << (6 * k);
    for (uint32_t i = 0; i < n && gr->failed == SH_OK; i++, base += size) {
        while (n_ranges > 0 && ranges->last < base) ranges++, n_ranges--;
        if (n_ranges == 0) break;
        if (ranges->first >= base + size) continue;
        const bool whole = ranges->first <= base && ranges->last >= base + size - 1;
        const sh_gr_expr tail = whole ? any_tail(gr, k) : blocks(gr, ranges, n_ranges, base, 64, 0x80, k - 1);
        uint32_t at = 0;
        while (at < n_items && tails[at] != tail) at++;
        if (at == n_items) {
            sets[n_items] = (struct sh_gr_set){{0}};
            tails[n_items++] = tail;
        }
        add_byte(&sets[at], lead + i);
    }
    for (uint32_t i = 0; i < n_items; i++) items[i] = sh_gr_pair(gr, bytes_of(gr, &sets[i]), tails[i]);
    return sh_gr_choice(gr, items, n_items);
}

sh_gr_expr sh_gr_class(struct sh_gr *gr, const struct sh_gr_range *ranges, uint32_t n, bool not ) {
    if (gr->failed != SH_OK) return SH_GR_NEVER;
    /* in order and apart, then the ones between them if it is `not`, then without the surrogates */
    struct sh_gr_range *list = sh_calloc((uint64_t)n * 2 + 4, sizeof *list);
    if (list == NULL) return no_memory(gr);
    struct sh_gr_range *kept = list + n + 2;
    uint32_t used = 0, n_kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (ranges[i].first <= ranges[i].last && ranges[i].first < CODE_POINTS)
            list[used++] = (struct sh_gr_range){ranges[i].first, ranges[i].last < CODE_POINTS ? ranges[i].last : CODE_POINTS - 1};
    if (used > 0) qsort(list, used, sizeof *list, compare_ranges);
    uint32_t merged = 0;
    for (uint32_t i = 0; i < used; i++) {
        if (merged > 0 && list[i].first <= list[merged - 1].last + 1) {
            if (list[i].last > list[merged - 1].last) list[merged - 1].last = list[i].last;
        } else {
            list[merged++] = list[i];
        }
    }
    if (not ) {
        uint32_t from = 0, out = 0;
        for (uint32_t i = 0; i <= merged; i++) {
            const struct sh_gr_range r = i < merged ? list[i] : (struct sh_gr_range){CODE_POINTS, CODE_POINTS};
            if (r.first > from) kept[out++] = (struct sh_gr_range){from, r.first - 1};
            from = r.last + 1;
        }
        merged = out;
        memcpy(list, kept, merged * sizeof *list);
    }
    for (uint32_t i = 0; i < merged; i++) {
        const struct sh_gr_range r = list[i];
        if (r.first < 0xD800) kept[n_kept++] = (struct sh_gr_range){r.first, r.last < 0xD800 ? r.last : 0xD7FF};
        if (r.last > 0xDFFF) kept[n_kept++] = (struct sh_gr_range){r.first > 0xDFFF ? r.first : 0xE000, r.last};
    }
    /* lengths 1 to 4: first code point, first leading byte, number of leading bytes */
    static const struct { uint32_t base, lead, n; } forms[4] = {{0, 0, 128}, {0x80, 0xC2, 30}, {0, 0xE0, 16}, {0, 0xF0, 5}};
    static const uint32_t begin[5] = {0, 0x80, 0x800, 0x10000, CODE_POINTS};
    sh_gr_expr items[5];
    for (uint32_t k = 0; k < 4; k++) {
        uint32_t n_cut = 0;
        for (uint32_t i = 0; i < n_kept; i++) { /* into `list`, which is no longer needed and has room */
            if (kept[i].last < begin[k] || kept[i].first >= begin[k + 1]) continue;
            list[n_cut++] = (struct sh_gr_range){kept[i].first > begin[k] ? kept[i].first : begin[k],
                                                 kept[i].last < begin[k + 1] ? kept[i].last : begin[k + 1] - 1};
        }
        if (k > 0) {
            items[k] = blocks(gr, list, n_cut, forms[k].base, forms[k].n, forms[k].lead, k);
        } else {
            struct sh_gr_set set = {{0}};
            for (uint32_t i = 0; i < n_cut; i++)
                for (uint32_t b = list[i].first; b <= list[i].last; b++) add_byte(&set, b);
            items[k] = bytes_of(gr, &set);
        }
    }
    free(list);
    return sh_gr_choice(gr, items, 4);
}

/* ---- text up to an end ------------------------------------------------------------------------------------------- */

/* The automaton of Knuth, Morris and Pratt, a rule per state, each of which ends in the next one's rule. The text may end
 * in state s if `end`, read from there, is complete with its last byte and no earlier. */
sh_gr_expr sh_gr_until(struct sh_gr *gr, const char *end, size_t length) {
    if (gr->failed != SH_OK) return SH_GR_NEVER;
    if (length == 0) return SH_GR_EMPTY;
    if (length > SH_GR_MAX_DEPTH) return fail(gr, SH_ERR_LIMIT, "an end of more than 256 bytes");
    const uint8_t *text = (const uint8_t *)end;
    const uint32_t n = (uint32_t)length;
    uint16_t(*next)[256] = sh_calloc(n, sizeof *next);
    if (next == NULL) return no_memory(gr);
    uint32_t fall = 0; /* the state of the longest proper suffix */
    for (uint32_t s = 0; s < n; s++) {
        if (s > 0) memcpy(next[s], next[fall], sizeof *next);
        next[s][text[s]] = (uint16_t)(s + 1);
        if (s > 0) fall = next[fall][text[s]];
    }
    uint32_t first = 0;
    for (uint32_t s = 0; s < n; s++) {
        const uint32_t rule = sh_gr_rule(gr, "text before an end");
        if (s == 0) first = rule;
    }
    sh_gr_expr items[257];
    for (uint32_t s = 0; s < n && gr->failed == SH_OK; s++) {
        uint32_t n_items = 0;
        for (uint32_t to = 0; to <= s; to++) {
            struct sh_gr_set set = {{0}};
            for (uint32_t b = 0; b < 256; b++)
                if (next[s][b] == to) add_byte(&set, b);
            const sh_gr_expr byte = bytes_of(gr, &set);
            if (byte != SH_GR_NEVER) items[n_items++] = sh_gr_pair(gr, byte, sh_gr_ref(gr, first + to));
        }
        if (s + 1 < n) items[n_items++] = sh_gr_pair(gr, one_byte(gr, text[s]), sh_gr_ref(gr, first + s + 1));
        uint32_t at = s, read = 0;
        while (read < n && at < n) at = next[at][text[read++]];
        if (at == n && read == n) items[n_items++] = SH_GR_EMPTY;
        sh_gr_set_rule(gr, first + s, sh_gr_choice(gr, items, n_items));
    }
    free(next);
    return gr->failed == SH_OK ? sh_gr_ref(gr, first) : SH_GR_NEVER;
}
