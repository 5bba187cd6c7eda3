/*
 * regex.c - regular expressions as grammars.
 *
 * An expression with anchors only at the edges of its alternatives becomes an expression of the builder of the same shape, so counts
 * stay counts. Anchors anywhere else are decided by an automaton (dfa.c).
 */
#include "compute/grammar/charset.h"

#include <stdlib.h>

struct writer {
    struct sh_gr *gr;
    const struct sh_rx *rx;
    bool in_json, anchor; /* anchor: one was met */
    sh_gr_expr *stack;
    uint32_t n_stack, stack_capacity;
    bool failed;
};

static void push(struct writer *w, sh_gr_expr expr) {
    if (w->failed || !sh_grow((void **)&w->stack, &w->stack_capacity, w->n_stack + 1, sizeof *w->stack)) w->failed = true;
    else w->stack[w->n_stack++] = expr;
}

static sh_gr_expr write_node(struct writer *w, uint32_t node);

/* The children from `first` to before `stop`. */
static sh_gr_expr write_children(struct writer *w, uint32_t first, uint32_t stop, bool choice) {
    const uint32_t base = w->n_stack;
    for (uint32_t child = first; child != stop && !w->anchor; child = w->rx->nodes[child].next) push(w, write_node(w, child));
    if (w->failed || w->anchor) return SH_GR_NEVER;
    const uint32_t n = w->n_stack - base;
    w->n_stack = base;
    const sh_gr_expr *items = n > 0 ? w->stack + base : NULL; /* the stack may not be there yet */
    return choice ? sh_gr_choice(w->gr, items, n) : sh_gr_sequence(w->gr, items, n);
}

static sh_gr_expr write_node(struct writer *w, uint32_t node) {
    const struct sh_rx_node *n = &w->rx->nodes[node];
    switch (n->kind) {
    case SH_RX_EMPTY: return SH_GR_EMPTY;
    case SH_RX_SET: return sh_charset_expr(w->gr, w->rx->sets[n->set].ranges, w->rx->sets[n->set].n, w->in_json);
    case SH_RX_SEQUENCE: return write_children(w, n->first, 0, false);
    case SH_RX_CHOICE: return write_children(w, n->first, 0, true);
    case SH_RX_REPEAT: return sh_gr_repeat(w->gr, write_node(w, n->first), n->min, n->max);
    case SH_RX_START:
    case SH_RX_END: break;
    }
    w->anchor = true;
    return SH_GR_NEVER;
}

static sh_gr_expr write_anything(struct writer *w) {
    const struct sh_gr_range all = {0, SH_MAX_CODE_POINT};
    return sh_gr_repeat(w->gr, sh_charset_expr(w->gr, &all, 1, w->in_json), 0, SH_GR_UNLIMITED);
}

/* One alternative of the whole, without the anchors at its edges. */
static sh_gr_expr write_alternative(struct writer *w, uint32_t node, bool search) {
    const struct sh_rx_node *nodes = w->rx->nodes;
    const bool sequence = nodes[node].kind == SH_RX_SEQUENCE;
    uint32_t first = sequence ? nodes[node].first : node, stop = sequence ? 0 : nodes[node].next;
    bool from_start = false;
    while (first != stop && nodes[first].kind == SH_RX_START) first = nodes[first].next, from_start = true;
    uint32_t ends = stop; /* the first of the $ at the end */
    for (uint32_t child = first; child != stop; child = nodes[child].next) {
        if (nodes[child].kind != SH_RX_END) ends = stop;
        else if (ends == stop) ends = child;
    }
    sh_gr_expr all = write_children(w, first, ends, false);
    if (search && ends == stop) all = sh_gr_pair(w->gr, all, write_anything(w));
    if (search && !from_start) all = sh_gr_pair(w->gr, write_anything(w), all);
    return all;
}

enum sh_code sh_rx_expr(struct sh_gr *gr, struct sh_rx *rx, bool in_json, bool search, sh_gr_expr *out, struct sh_error *err) {
    struct writer w = {.gr = gr, .rx = rx, .in_json = in_json};
    const struct sh_rx_node *root = &rx->nodes[rx->root];
    if (root->kind != SH_RX_CHOICE) {
        *out = write_alternative(&w, rx->root, search);
    } else {
        for (uint32_t child = root->first; child != 0 && !w.anchor; child = rx->nodes[child].next)
            push(&w, write_alternative(&w, child, search));
        *out = w.failed || w.anchor ? SH_GR_NEVER : sh_gr_choice(gr, w.stack, w.n_stack);
    }
    free(w.stack);
    if (w.failed) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a regular expression");
    if (!w.anchor) return SH_OK;
    struct sh_dfa *dfa = NULL;
    enum sh_code code = sh_dfa_from_rx(rx, search, &dfa, err);
    if (code == SH_ERR_LIMIT) {
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "regular expression: in one of this size ^ may stand only at the beginning and $ only at the end");
    }
    if (code == SH_OK) code = sh_dfa_expr(gr, dfa, in_json, out, err);
    sh_dfa_free(dfa);
    return code;
}

enum sh_code sh_gr_regex(struct sh_gr *gr, const char *pattern, size_t length, bool in_json, bool search, sh_gr_expr *out,
                         struct sh_error *err) {
    struct sh_rx *rx;
    enum sh_code code = sh_rx_parse(pattern, length, &rx, err);
    if (code != SH_OK) return code;
    code = sh_rx_expr(gr, rx, in_json, search, out, err);
    sh_rx_free(rx);
    return code;
}
