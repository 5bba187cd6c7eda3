/*
 * dfa.c - deterministic automata over code points: from regular expressions, lists of texts and lengths; intersections and differences.
 *
 * The code points are cut into intervals, and these are sorted into classes that the automaton does not tell apart. State 0 is the
 * start, NONE leads nowhere; states from which no end can be reached are taken out.
 */
#include "compute/grammar/charset.h"

#include "compute/text/utf8.h"

#include <stdlib.h>

#define NONE UINT32_MAX
enum {
    MAX_NFA_STATES = 40000,
    MAX_STEPS = 400000,          /* of building an NFA, */
    MAX_WORK = 16 * 1000 * 1000, /* of making it deterministic: edges looked at, and members of sets put in order */
};

struct sh_dfa {
    uint32_t n_intervals; /* interval i: starts[i] to before starts[i + 1] */
    uint32_t *starts, *class_of;
    uint32_t n_classes, n_states;
    uint32_t *next;  /* [n_states][n_classes] */
    uint8_t *accept; /* [n_states] */
    uint64_t work;   /* that making it took */
};

static enum sh_code no_memory(struct sh_error *err) { return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for an automaton"); }
static enum sh_code too_large(struct sh_error *err) {
    return sh_fail(err, SH_ERR_LIMIT, "the conditions on a string together are too large for an automaton of %d states",
                   SH_DFA_MAX_STATES);
}

void sh_dfa_free(struct sh_dfa *dfa) {
    if (dfa == NULL) return;
    free(dfa->starts);
    free(dfa->class_of);
    free(dfa->next);
    free(dfa->accept);
    free(dfa);
}

static struct sh_dfa *new_dfa(uint32_t n_intervals) {
    struct sh_dfa *dfa = sh_calloc(1, sizeof *dfa);
    if (dfa == NULL) return NULL;
    dfa->starts = sh_calloc((uint64_t)n_intervals + 1, sizeof *dfa->starts);
    dfa->class_of = sh_calloc((uint64_t)n_intervals + 1, sizeof *dfa->class_of);
    if (dfa->starts != NULL && dfa->class_of != NULL) return dfa;
    sh_dfa_free(dfa);
    return NULL;
}

/* Room for the state's row; SH_ERR_LIMIT. Rows are written by index, as they move. */
static enum sh_code add_state(struct sh_dfa *dfa, uint32_t *capacity, bool accept, uint32_t *out, struct sh_error *err) {
    if (dfa->n_states >= SH_DFA_MAX_STATES || (uint64_t)(dfa->n_states + 1) * dfa->n_classes > 8u * SH_DFA_MAX_EDGES)
        return too_large(err);
    if (dfa->n_states == *capacity) {
        const uint32_t more = *capacity > 0 ? *capacity * 2 : 16;
        uint32_t *next = realloc(dfa->next, (size_t)more * dfa->n_classes * sizeof *next);
        if (next == NULL) return no_memory(err);
        dfa->next = next;
        uint8_t *accepts = realloc(dfa->accept, more);
        if (accepts == NULL) return no_memory(err);
        dfa->accept = accepts;
        *capacity = more;
    }
    memset(dfa->next + (size_t)dfa->n_states * dfa->n_classes, 0xFF, dfa->n_classes * sizeof *dfa->next);
    dfa->accept[dfa->n_states] = accept;
    *out = dfa->n_states++;
    return SH_OK;
}

/* Transitions into states that can reach no end become NONE. */
static enum sh_code trim(struct sh_dfa *dfa, struct sh_error *err) {
    const uint32_t n = dfa->n_states, width = dfa->n_classes;
    uint32_t *first = sh_calloc((uint64_t)n + 2, sizeof *first), *sources = sh_calloc((uint64_t)n * width + 1, sizeof *sources);
    uint32_t *queue = sh_calloc((uint64_t)n + 1, sizeof *queue);
    uint8_t *alive = sh_calloc((uint64_t)n + 1, 1);
    enum sh_code code = SH_OK;
    if (first == NULL || sources == NULL || queue == NULL || alive == NULL) {
        code = no_memory(err);
        goto out;
    }
    for (size_t i = 0; i < (size_t)n * width; i++) {
        if (dfa->next[i] != NONE) first[dfa->next[i] + 2]++;
    }
    for (uint32_t i = 2; i <= n + 1; i++) first[i] += first[i - 1];
    for (size_t i = 0; i < (size_t)n * width; i++) {
        if (dfa->next[i] != NONE) sources[first[dfa->next[i] + 1]++] = (uint32_t)(i / width);
    }
    uint32_t queued = 0;
    for (uint32_t s = 0; s < n; s++) {
        if (dfa->accept[s]) alive[s] = 1, queue[queued++] = s;
    }
    for (uint32_t i = 0; i < queued; i++) {
        for (uint32_t k = first[queue[i]]; k < first[queue[i] + 1]; k++) {
            if (!alive[sources[k]]) alive[sources[k]] = 1, queue[queued++] = sources[k];
        }
    }
    for (size_t i = 0; i < (size_t)n * width; i++) {
        if (dfa->next[i] != NONE && !alive[dfa->next[i]]) dfa->next[i] = NONE;
    }
out:
    free(first);
    free(sources);
    free(queue);
    free(alive);
    return code;
}

/* ---- sets of numbers, each kept once ------------------------------------------------------------------------------ */

struct keys {
    uint32_t *pool; /* of each: its length and its members */
    uint32_t used, pool_capacity;
    uint32_t *at; /* [n] places in the pool */
    uint32_t n, at_capacity;
    uint32_t *slots, n_slots;
};

static void keys_free(struct keys *k) {
    free(k->pool);
    free(k->at);
    free(k->slots);
}

static uint32_t keys_slot(const struct keys *k, const uint32_t *members, uint32_t n) {
    uint64_t h = n;
    for (uint32_t i = 0; i < n; i++) h = (h ^ members[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    uint32_t slot = (uint32_t)(h >> 16) & (k->n_slots - 1);
    for (; k->slots[slot] != NONE; slot = (slot + 1) & (k->n_slots - 1)) {
        const uint32_t *have = k->pool + k->at[k->slots[slot]];
        if (have[0] == n && memcmp(have + 1, members, n * sizeof *members) == 0) break;
    }
    return slot;
}

/* Its number, a new one if it is new; NONE: no memory. */
static uint32_t keys_find(struct keys *k, const uint32_t *members, uint32_t n) {
    if (k->n * 2 >= k->n_slots) {
        const uint32_t more = k->n_slots > 0 ? k->n_slots * 2 : 256;
        uint32_t *slots = malloc(more * sizeof *slots);
        if (slots == NULL) return NONE;
        memset(slots, 0xFF, more * sizeof *slots);
        free(k->slots);
        k->slots = slots;
        k->n_slots = more;
        for (uint32_t i = 0; i < k->n; i++) {
            const uint32_t *have = k->pool + k->at[i];
            k->slots[keys_slot(k, have + 1, have[0])] = i;
        }
    }
    const uint32_t slot = keys_slot(k, members, n);
    if (k->slots[slot] != NONE) return k->slots[slot];
    if (!sh_grow((void **)&k->pool, &k->pool_capacity, k->used + n + 1, sizeof *k->pool)) return NONE;
    if (!sh_grow((void **)&k->at, &k->at_capacity, k->n + 1, sizeof *k->at)) return NONE;
    k->at[k->n] = k->used;
    k->pool[k->used] = n;
    if (n > 0) memcpy(k->pool + k->used + 1, members, n * sizeof *members);
    k->used += n + 1;
    k->slots[slot] = k->n;
    return k->n++;
}

/* ---- from regular expressions -------------------------------------------------------------------------------------- */

enum { STEP = NONE, AT_START = NONE - 1, AT_END = NONE - 2 }; /* labels that take no code point; STEP always may be gone */
struct edge {
    uint32_t label; /* a set, or one of those */
    uint32_t to, next;
};
struct nfa {
    const struct sh_rx *rx;
    uint32_t *edges_of; /* [n_states] first edge, NONE: none */
    uint32_t n_states, states_capacity;
    struct edge *edges;
    uint32_t n_edges, edges_capacity;
    uint32_t steps, any; /* any: number of the set of everything, rx->n_sets */
    enum sh_code code;   /* of the first failure */
};

static uint32_t nfa_state(struct nfa *nfa) {
    if (nfa->code != SH_OK) return 0;
    if (nfa->n_states >= MAX_NFA_STATES) {
        nfa->code = SH_ERR_LIMIT;
        return 0;
    }
    if (!sh_grow((void **)&nfa->edges_of, &nfa->states_capacity, nfa->n_states + 1, sizeof *nfa->edges_of)) {
        nfa->code = SH_ERR_NO_MEMORY;
        return 0;
    }
    nfa->edges_of[nfa->n_states] = NONE;
    return nfa->n_states++;
}

static void nfa_edge(struct nfa *nfa, uint32_t from, uint32_t label, uint32_t to) {
    if (nfa->code != SH_OK) return;
    if (!sh_grow((void **)&nfa->edges, &nfa->edges_capacity, nfa->n_edges + 1, sizeof *nfa->edges)) {
        nfa->code = SH_ERR_NO_MEMORY;
        return;
    }
    nfa->edges[nfa->n_edges] = (struct edge){label, to, nfa->edges_of[from]};
    nfa->edges_of[from] = nfa->n_edges++;
}

/* What the node matches leads from `from` to the state returned. */
static uint32_t nfa_build(struct nfa *nfa, uint32_t node, uint32_t from) {
    if (nfa->code == SH_OK && ++nfa->steps > MAX_STEPS) nfa->code = SH_ERR_LIMIT;
    if (nfa->code != SH_OK) return from;
    const struct sh_rx_node *n = &nfa->rx->nodes[node];
    uint32_t to;
    switch (n->kind) {
    case SH_RX_EMPTY: return from;
    case SH_RX_SET:
    case SH_RX_START:
    case SH_RX_END:
        to = nfa_state(nfa);
        nfa_edge(nfa, from, n->kind == SH_RX_SET ? n->set : n->kind == SH_RX_START ? AT_START : AT_END, to);
        return to;
    case SH_RX_SEQUENCE:
        for (uint32_t child = n->first; child != 0; child = nfa->rx->nodes[child].next) from = nfa_build(nfa, child, from);
        return from;
    case SH_RX_CHOICE:
        to = nfa_state(nfa);
        for (uint32_t child = n->first; child != 0; child = nfa->rx->nodes[child].next) {
            const uint32_t begin = nfa_state(nfa);
            nfa_edge(nfa, from, STEP, begin);
            nfa_edge(nfa, nfa_build(nfa, child, begin), STEP, to);
        }
        return to;
    case SH_RX_REPEAT:
        for (uint32_t i = 0; i < n->min && nfa->code == SH_OK; i++) from = nfa_build(nfa, n->first, from);
        to = nfa_state(nfa);
        if (n->max == SH_GR_UNLIMITED) {
            nfa_edge(nfa, from, STEP, to);
            const uint32_t begin = nfa_state(nfa);
            nfa_edge(nfa, to, STEP, begin);
            nfa_edge(nfa, nfa_build(nfa, n->first, begin), STEP, to);
            return to;
        }
        for (uint32_t i = n->min; i < n->max && nfa->code == SH_OK; i++) {
            nfa_edge(nfa, from, STEP, to);
            from = nfa_build(nfa, n->first, from);
        }
        nfa_edge(nfa, from, STEP, to);
        return to;
    }
    return from;
}

static int compare_u32(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

struct scratch {
    uint32_t *list, n; /* states found */
    uint32_t *mark, round;
};

/* Adds what can be reached from the states in the list without a code point. */
static void close_over(const struct nfa *nfa, struct scratch *s, bool at_start, bool at_end) {
    for (uint32_t i = 0; i < s->n; i++) {
        for (uint32_t e = nfa->edges_of[s->list[i]]; e != NONE; e = nfa->edges[e].next) {
            const struct edge *edge = &nfa->edges[e];
            if (edge->label != STEP && !(edge->label == AT_START && at_start) && !(edge->label == AT_END && at_end)) continue;
            if (s->mark[edge->to] == s->round) continue;
            s->mark[edge->to] = s->round;
            s->list[s->n++] = edge->to;
        }
    }
}

/* Intervals and classes for the sets of rx. inside[set * n_classes + class]. */
static enum sh_code make_classes(const struct sh_rx *rx, struct sh_dfa **out, uint8_t **inside, struct sh_error *err) {
    uint64_t n_ranges = 0;
    for (uint32_t i = 0; i < rx->n_sets; i++) n_ranges += rx->sets[i].n;
    if (n_ranges > SH_DFA_MAX_EDGES || (n_ranges + 1) * (rx->n_sets + 1) > MAX_WORK) return too_large(err);
    struct sh_dfa *dfa = new_dfa((uint32_t)n_ranges * 2 + 1);
    if (dfa == NULL) return no_memory(err);
    uint32_t n = 1; /* starts[0] is 0 */
    for (uint32_t i = 0; i < rx->n_sets; i++) {
        for (uint32_t k = 0; k < rx->sets[i].n; k++) {
            dfa->starts[n++] = rx->sets[i].ranges[k].first;
            dfa->starts[n++] = rx->sets[i].ranges[k].last + 1;
        }
    }
    qsort(dfa->starts, n, sizeof *dfa->starts, compare_u32);
    for (uint32_t i = 0; i < n; i++) {
        if (dfa->starts[i] > SH_MAX_CODE_POINT || (dfa->n_intervals > 0 && dfa->starts[dfa->n_intervals - 1] == dfa->starts[i]))
            continue;
        dfa->starts[dfa->n_intervals++] = dfa->starts[i];
    }
    /* Each set splits the classes in two: what is in it and what is not. */
    uint32_t *split = malloc(((size_t)dfa->n_intervals + 1) * 2 * sizeof *split);
    dfa->n_classes = 1;
    for (uint32_t i = 0; split != NULL && i < rx->n_sets; i++) {
        memset(split, 0xFF, (size_t)dfa->n_classes * 2 * sizeof *split);
        uint32_t fresh = 0;
        for (uint32_t k = 0; k < dfa->n_intervals; k++) {
            uint32_t *number = &split[dfa->class_of[k] * 2 + sh_charset_contains(&rx->sets[i], dfa->starts[k])];
            if (*number == NONE) *number = fresh++;
            dfa->class_of[k] = *number;
        }
        dfa->n_classes = fresh;
    }
    free(split);
    if (split != NULL && (uint64_t)rx->n_sets * dfa->n_classes > MAX_WORK) {
        sh_dfa_free(dfa);
        return too_large(err);
    }
    *inside = split != NULL ? sh_calloc((uint64_t)rx->n_sets * dfa->n_classes + 1, 1) : NULL;
    if (*inside == NULL) {
        sh_dfa_free(dfa);
        return no_memory(err);
    }
    for (uint32_t i = 0; i < rx->n_sets; i++) {
        for (uint32_t k = 0; k < dfa->n_intervals; k++) {
            (*inside)[(size_t)i * dfa->n_classes + dfa->class_of[k]] = sh_charset_contains(&rx->sets[i], dfa->starts[k]);
        }
    }
    *out = dfa;
    return SH_OK;
}

static enum sh_code determinise(const struct nfa *nfa, uint32_t end, struct sh_dfa *dfa, const uint8_t *inside,
                                struct sh_error *err) {
    struct keys keys = {0};
    struct scratch s = {.list = sh_calloc((uint64_t)nfa->n_states + 1, sizeof *s.list),
                        .mark = sh_calloc((uint64_t)nfa->n_states + 1, sizeof *s.mark)};
    enum sh_code code = SH_OK;
    uint32_t capacity = 0, work = 0, unused;
    uint32_t *members = sh_calloc((uint64_t)nfa->n_states + 1, sizeof *members);
    if (s.list == NULL || s.mark == NULL || members == NULL) code = no_memory(err);
    /* The start is told apart from a state of equal members, since only there ^ holds: it has a number of its own. */
    for (uint32_t state = 0; code == SH_OK && (state == 0 || state < dfa->n_states); state++) {
        uint32_t n_members = 1;
        if (state == 0) {
            members[0] = nfa->n_states; /* no state's number */
            if (keys_find(&keys, members, 1) == NONE) code = no_memory(err);
            else code = add_state(dfa, &capacity, false, &unused, err);
            members[0] = 0;
        } else {
            const uint32_t *key = keys.pool + keys.at[state];
            n_members = key[0];
            memcpy(members, key + 1, n_members * sizeof *members);
        }
        if (code != SH_OK) break;
        for (int going_on = 0; going_on < 2; going_on++) { /* first whether it may end here, then where it goes on */
            s.round++;
            s.n = 0;
            for (uint32_t i = 0; i < n_members; i++) {
                s.mark[members[i]] = s.round;
                s.list[s.n++] = members[i];
            }
            close_over(nfa, &s, state == 0, !going_on);
            if (!going_on) dfa->accept[state] = s.mark[end] == s.round;
        }
        n_members = s.n;
        memcpy(members, s.list, n_members * sizeof *members);
        for (uint32_t c = 0; code == SH_OK && c < dfa->n_classes; c++) {
            s.round++;
            s.n = 0;
            for (uint32_t i = 0; i < n_members; i++) {
                for (uint32_t e = nfa->edges_of[members[i]]; e != NONE; e = nfa->edges[e].next) {
                    const struct edge *edge = &nfa->edges[e];
                    work++;
                    if (edge->label > nfa->any || (edge->label < nfa->any && !inside[(size_t)edge->label * dfa->n_classes + c]))
                        continue;
                    if (s.mark[edge->to] == s.round) continue;
                    s.mark[edge->to] = s.round;
                    s.list[s.n++] = edge->to;
                }
            }
            work += s.n * 8;
            if (work > MAX_WORK) code = too_large(err);
            if (s.n == 0 || code != SH_OK) continue;
            qsort(s.list, s.n, sizeof *s.list, compare_u32);
            const uint32_t to = keys_find(&keys, s.list, s.n);
            if (to == NONE || keys.used > MAX_WORK / 2) code = to == NONE ? no_memory(err) : too_large(err);
            else if (to == dfa->n_states) code = add_state(dfa, &capacity, false, &unused, err);
            if (code == SH_OK) dfa->next[(size_t)state * dfa->n_classes + c] = to;
        }
    }
    dfa->work = work + (uint64_t)dfa->n_states * dfa->n_classes + (uint64_t)dfa->n_intervals * nfa->rx->n_sets;
    keys_free(&keys);
    free(s.list);
    free(s.mark);
    free(members);
    return code;
}

enum sh_code sh_dfa_from_rx(const struct sh_rx *rx, bool search, struct sh_dfa **out, struct sh_error *err) {
    struct nfa nfa = {.rx = rx, .any = rx->n_sets};
    uint32_t at = nfa_state(&nfa);
    if (search) { /* anything before it */
        const uint32_t begin = nfa_state(&nfa);
        nfa_edge(&nfa, at, nfa.any, at);
        nfa_edge(&nfa, at, STEP, begin);
        at = begin;
    }
    uint32_t end = nfa_build(&nfa, rx->root, at);
    if (search) { /* and behind it */
        const uint32_t last = nfa_state(&nfa);
        nfa_edge(&nfa, end, STEP, last);
        nfa_edge(&nfa, last, nfa.any, last);
        end = last;
    }
    struct sh_dfa *dfa = NULL;
    uint8_t *inside = NULL;
    enum sh_code code = nfa.code == SH_OK ? SH_OK : nfa.code == SH_ERR_LIMIT ? too_large(err) : no_memory(err);
    if (code == SH_OK) code = make_classes(rx, &dfa, &inside, err);
    if (code == SH_OK) code = determinise(&nfa, end, dfa, inside, err);
    if (code == SH_OK) code = trim(dfa, err);
    free(inside);
    free(nfa.edges);
    free(nfa.edges_of);
    if (code != SH_OK) {
        sh_dfa_free(dfa);
        return code;
    }
    *out = dfa;
    return SH_OK;
}

/* ---- from texts and lengths ---------------------------------------------------------------------------------------- */

static uint32_t class_at(const struct sh_dfa *dfa, uint32_t code_point) {
    uint32_t low = 0, high = dfa->n_intervals;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (dfa->starts[middle] <= code_point) low = middle;
        else high = middle;
    }
    return dfa->class_of[low];
}

enum sh_code sh_dfa_from_texts(const struct sh_text *texts, uint32_t n, struct sh_dfa **out, struct sh_error *err) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) total += texts[i].n;
    if (total > SH_GR_MAX_TEXT) return too_large(err);
    struct sh_dfa *dfa = new_dfa((uint32_t)total * 2 + 1);
    if (dfa == NULL) return no_memory(err);
    uint32_t n_starts = 1;
    for (uint32_t i = 0; i < n; i++) {
        for (size_t at = 0, length; at < texts[i].n; at += length) {
            uint32_t c;
            if (sh_utf8_scan(texts[i].p + at, texts[i].n - at, &length, &c) != SH_UTF8_OK) {
                sh_dfa_free(dfa);
                return sh_fail(err, SH_ERR_INVALID, "a text is no UTF-8");
            }
            dfa->starts[n_starts++] = c;
            dfa->starts[n_starts++] = c + 1;
        }
    }
    qsort(dfa->starts, n_starts, sizeof *dfa->starts, compare_u32);
    for (uint32_t i = 0; i < n_starts; i++) {
        if (dfa->starts[i] > SH_MAX_CODE_POINT || (dfa->n_intervals > 0 && dfa->starts[dfa->n_intervals - 1] == dfa->starts[i]))
            continue;
        dfa->class_of[dfa->n_intervals] = dfa->n_intervals;
        dfa->starts[dfa->n_intervals++] = dfa->starts[i];
    }
    dfa->n_classes = dfa->n_intervals;
    uint32_t capacity = 0, state;
    enum sh_code code = add_state(dfa, &capacity, false, &state, err);
    for (uint32_t i = 0; code == SH_OK && i < n; i++) {
        state = 0;
        for (size_t at = 0, length; code == SH_OK && at < texts[i].n; at += length) {
            uint32_t c, to;
            sh_utf8_scan(texts[i].p + at, texts[i].n - at, &length, &c);
            const size_t cell = class_at(dfa, c);
            to = dfa->next[(size_t)state * dfa->n_classes + cell];
            if (to == NONE) code = add_state(dfa, &capacity, false, &to, err);
            if (code == SH_OK) dfa->next[(size_t)state * dfa->n_classes + cell] = to;
            state = to;
        }
        if (code == SH_OK) dfa->accept[state] = 1;
    }
    if (code != SH_OK) {
        sh_dfa_free(dfa);
        return code;
    }
    *out = dfa;
    return SH_OK;
}

enum sh_code sh_dfa_from_lengths(uint32_t min, uint32_t max, struct sh_dfa **out, struct sh_error *err) {
    const uint32_t last = max == SH_GR_UNLIMITED ? min : max;
    struct sh_dfa *dfa = new_dfa(1);
    if (dfa == NULL) return no_memory(err);
    dfa->n_intervals = dfa->n_classes = 1;
    enum sh_code code = SH_OK;
    uint32_t capacity = 0, state;
    for (uint32_t i = 0; code == SH_OK && i <= last; i++) {
        code = add_state(dfa, &capacity, i >= min, &state, err);
        if (code == SH_OK && i > 0) dfa->next[i - 1] = i;
    }
    if (code == SH_OK && max == SH_GR_UNLIMITED) dfa->next[last] = last;
    if (code == SH_OK) code = trim(dfa, err);
    if (code != SH_OK) {
        sh_dfa_free(dfa);
        return code;
    }
    *out = dfa;
    return SH_OK;
}

enum sh_code sh_dfa_copy(const struct sh_dfa *dfa, struct sh_dfa **out, struct sh_error *err) {
    struct sh_dfa *copy = new_dfa(dfa->n_intervals);
    const size_t cells = (size_t)dfa->n_states * dfa->n_classes;
    if (copy != NULL) {
        copy->next = sh_calloc(cells + 1, sizeof *copy->next);
        copy->accept = sh_calloc((uint64_t)dfa->n_states + 1, 1);
    }
    if (copy == NULL || copy->next == NULL || copy->accept == NULL) {
        sh_dfa_free(copy);
        return no_memory(err);
    }
    memcpy(copy->starts, dfa->starts, dfa->n_intervals * sizeof *dfa->starts);
    memcpy(copy->class_of, dfa->class_of, dfa->n_intervals * sizeof *dfa->class_of);
    memcpy(copy->next, dfa->next, cells * sizeof *dfa->next);
    memcpy(copy->accept, dfa->accept, dfa->n_states);
    copy->n_intervals = dfa->n_intervals;
    copy->n_classes = dfa->n_classes;
    copy->n_states = dfa->n_states;
    copy->work = dfa->work;
    *out = copy;
    return SH_OK;
}

/* ---- two together -------------------------------------------------------------------------------------------------- */

/* minus: what b does not match, where a state of b may be NONE. */
static enum sh_code product(struct sh_dfa **a_inout, const struct sh_dfa *b, bool minus, struct sh_error *err) {
    const struct sh_dfa *a = *a_inout;
    if ((uint64_t)a->n_classes * b->n_classes > SH_DFA_MAX_EDGES * 8u) return too_large(err);
    struct sh_dfa *dfa = new_dfa(a->n_intervals + b->n_intervals);
    struct keys keys = {0};
    uint32_t *number = malloc((size_t)a->n_classes * b->n_classes * sizeof *number);
    uint32_t *pairs = sh_calloc((uint64_t)a->n_intervals + b->n_intervals, 2 * sizeof *pairs); /* [class] of a, of b */
    enum sh_code code = dfa != NULL && number != NULL && pairs != NULL ? SH_OK : no_memory(err);
    if (code != SH_OK) goto out;
    memset(number, 0xFF, (size_t)a->n_classes * b->n_classes * sizeof *number);
    for (uint32_t i = 0, k = 0; i < a->n_intervals || k < b->n_intervals;) {
        const uint32_t from_a = i < a->n_intervals ? a->starts[i] : NONE, from_b = k < b->n_intervals ? b->starts[k] : NONE;
        const uint32_t from = from_a < from_b ? from_a : from_b;
        i += from_a == from;
        k += from_b == from;
        const uint32_t ca = a->class_of[i - 1], cb = b->class_of[k - 1]; /* both begin at 0 */
        uint32_t *c = &number[(size_t)ca * b->n_classes + cb];
        if (*c == NONE) {
            pairs[dfa->n_classes * 2] = ca;
            pairs[dfa->n_classes * 2 + 1] = cb;
            *c = dfa->n_classes++;
        }
        dfa->starts[dfa->n_intervals] = from;
        dfa->class_of[dfa->n_intervals++] = *c;
    }
    uint32_t capacity = 0, unused;
    const uint32_t start[2] = {0, 0};
    if (keys_find(&keys, start, 2) == NONE) code = no_memory(err);
    if (code == SH_OK) code = add_state(dfa, &capacity, a->accept[0] && b->accept[0] != minus, &unused, err);
    for (uint32_t state = 0; code == SH_OK && state < dfa->n_states; state++) {
        const uint32_t sa = keys.pool[keys.at[state] + 1], sb = keys.pool[keys.at[state] + 2];
        for (uint32_t c = 0; code == SH_OK && c < dfa->n_classes; c++) {
            const uint32_t pair[2] = {a->next[(size_t)sa * a->n_classes + pairs[c * 2]],
                                      sb == NONE ? NONE : b->next[(size_t)sb * b->n_classes + pairs[c * 2 + 1]]};
            if (pair[0] == NONE || (pair[1] == NONE && !minus)) continue;
            const uint32_t to = keys_find(&keys, pair, 2);
            if (to == NONE) code = no_memory(err);
            else if (to == dfa->n_states) {
                const bool in_b = pair[1] != NONE && b->accept[pair[1]];
                code = add_state(dfa, &capacity, a->accept[pair[0]] && in_b != minus, &unused, err);
            }
            if (code == SH_OK) dfa->next[(size_t)state * dfa->n_classes + c] = to;
        }
    }
    dfa->work = a->work + b->work + (uint64_t)dfa->n_states * dfa->n_classes;
    if (code == SH_OK) code = trim(dfa, err);
out:
    free(number);
    free(pairs);
    keys_free(&keys);
    if (code != SH_OK) {
        sh_dfa_free(dfa);
        return code;
    }
    sh_dfa_free(*a_inout);
    *a_inout = dfa;
    return SH_OK;
}

enum sh_code sh_dfa_intersect(struct sh_dfa **a, const struct sh_dfa *b, struct sh_error *err) {
    return product(a, b, false, err);
}
enum sh_code sh_dfa_subtract(struct sh_dfa **a, const struct sh_dfa *b, struct sh_error *err) { return product(a, b, true, err); }

/* ---- asking ---------------------------------------------------------------------------------------------------------- */

uint64_t sh_dfa_work(const struct sh_dfa *dfa) { return dfa->work; }

bool sh_dfa_is_empty(const struct sh_dfa *dfa) {
    if (dfa->accept[0]) return false;
    for (uint32_t c = 0; c < dfa->n_classes; c++) {
        if (dfa->next[c] != NONE) return false;
    }
    return true;
}

bool sh_dfa_matches(const struct sh_dfa *dfa, const char *text, size_t length) {
    uint32_t state = 0;
    for (size_t at = 0, n; at < length && state != NONE; at += n) {
        uint32_t c;
        if (sh_utf8_scan(text + at, length - at, &n, &c) != SH_UTF8_OK) return false;
        state = dfa->next[(size_t)state * dfa->n_classes + class_at(dfa, c)];
    }
    return state != NONE && dfa->accept[state];
}

struct writer {
    struct sh_gr *gr;
    const struct sh_dfa *dfa;
    bool in_json;
    struct keys sets;    /* of classes, */
    sh_gr_expr *written; /* and their expressions */
    uint32_t written_capacity;
    uint32_t *classes;          /* [n_classes] at work */
    struct sh_gr_range *ranges; /* [n_intervals] */
};

/* One code point of the n classes, which are ascending. */
static bool write_classes(struct writer *w, uint32_t n, sh_gr_expr *out) {
    const uint32_t before = w->sets.n, number = keys_find(&w->sets, w->classes, n);
    if (number == NONE || !sh_grow((void **)&w->written, &w->written_capacity, w->sets.n, sizeof *w->written)) return false;
    if (number == before) {
        uint32_t n_ranges = 0;
        for (uint32_t i = 0; i < w->dfa->n_intervals; i++) {
            if (bsearch(&w->dfa->class_of[i], w->classes, n, sizeof *w->classes, compare_u32) == NULL) continue;
            const uint32_t first = w->dfa->starts[i],
                           last = i + 1 < w->dfa->n_intervals ? w->dfa->starts[i + 1] - 1 : SH_MAX_CODE_POINT;
            if (n_ranges > 0 && w->ranges[n_ranges - 1].last + 1 == first) w->ranges[n_ranges - 1].last = last;
            else w->ranges[n_ranges++] = (struct sh_gr_range){first, last};
        }
        w->written[number] = sh_charset_expr(w->gr, w->ranges, n_ranges, w->in_json);
    }
    *out = w->written[number];
    return true;
}

/* A rule per state, each of which ends in another one's. */
enum sh_code sh_dfa_expr(struct sh_gr *gr, const struct sh_dfa *dfa, bool in_json, sh_gr_expr *out, struct sh_error *err) {
    struct writer w = {.gr = gr, .dfa = dfa, .in_json = in_json};
    uint32_t *rules = sh_calloc((uint64_t)dfa->n_states + 1, sizeof *rules);
    uint32_t *targets = sh_calloc((uint64_t)dfa->n_classes + 1, sizeof *targets);
    sh_gr_expr *items = sh_calloc((uint64_t)dfa->n_classes + 1, sizeof *items);
    w.classes = sh_calloc((uint64_t)dfa->n_classes + 1, sizeof *w.classes);
    w.ranges = sh_calloc((uint64_t)dfa->n_intervals + 1, sizeof *w.ranges);
    bool ok = rules != NULL && targets != NULL && items != NULL && w.classes != NULL && w.ranges != NULL;
    for (uint32_t s = 0; ok && s < dfa->n_states; s++) rules[s] = sh_gr_rule(gr, "string");
    for (uint32_t s = 0; ok && s < dfa->n_states; s++) {
        const uint32_t *next = dfa->next + (size_t)s * dfa->n_classes;
        uint32_t n_targets = 0, n_items = 0;
        for (uint32_t c = 0; c < dfa->n_classes; c++) {
            if (next[c] != NONE) targets[n_targets++] = next[c];
        }
        qsort(targets, n_targets, sizeof *targets, compare_u32);
        for (uint32_t t = 0; ok && t < n_targets; t++) {
            if (t > 0 && targets[t] == targets[t - 1]) continue;
            uint32_t n = 0;
            for (uint32_t c = 0; c < dfa->n_classes; c++) {
                if (next[c] == targets[t]) w.classes[n++] = c;
            }
            sh_gr_expr characters;
            ok = write_classes(&w, n, &characters);
            if (ok) items[n_items++] = sh_gr_pair(gr, characters, sh_gr_ref(gr, rules[targets[t]]));
        }
        if (dfa->accept[s]) items[n_items++] = SH_GR_EMPTY;
        if (ok) sh_gr_set_rule(gr, rules[s], sh_gr_choice(gr, items, n_items));
    }
    if (ok) *out = sh_gr_ref(gr, rules[0]);
    free(rules);
    free(targets);
    free(items);
    free(w.classes);
    free(w.ranges);
    free(w.written);
    keys_free(&w.sets);
    return ok ? SH_OK : no_memory(err);
}
