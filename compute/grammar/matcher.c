/* The public functions that follow a text, and the memory of a grammar. */
#include "compute/grammar/automaton.h"

#include <stdlib.h>

enum { HOT_NODES = 2000 };
static const uint64_t default_limit = (uint64_t)64 << 20;

enum sh_code sh_gr_compile(struct sh_gr *gr, sh_gr_expr root, const struct sh_vocab *vocab, struct sh_grammar **out,
                           struct sh_error *err) {
    *out = NULL;
    const struct sh_gr_lexicon *lexicon;
    enum sh_code code = sh_gr_lexicon_get(vocab, &lexicon, err);
    if (code != SH_OK) return code;
    struct sh_grammar *g = sh_calloc(1, sizeof *g);
    if (g == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a grammar");
    code = sh_gr_program_init(&g->program, gr, root, sh_vocab_size(vocab), err);
    if (code != SH_OK) {
        free(g);
        return code;
    }
    if (!sh_gr_automaton_init(&g->automaton, &g->program, lexicon->depth)) {
        sh_gr_program_finish(&g->program);
        free(g);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a grammar");
    }
    pthread_mutex_init(&g->lock, NULL);
    atomic_init(&g->refs, 1);
    g->vocab = vocab;
    g->lexicon = lexicon;
    g->limit = default_limit;
    g->tables.hot = HOT_NODES;
    *out = g;
    return SH_OK;
}

struct sh_grammar *sh_grammar_ref(struct sh_grammar *g) {
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

uint32_t sh_grammar_n_vocab(const struct sh_grammar *g) { return g->lexicon->n_tokens; }

void sh_grammar_unref(struct sh_grammar *g) {
    if (g == NULL || atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) > 1) return;
    atomic_fetch_sub_explicit(g->lexicon->bytes, g->counted, memory_order_relaxed);
    sh_gr_automaton_finish(&g->automaton);
    sh_gr_tables_finish(&g->tables);
    sh_gr_program_finish(&g->program);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The difference since the last time goes into the sum over all grammars, which is returned. */
static uint64_t count_bytes(struct sh_grammar *g) {
    const uint64_t now = g->automaton.bytes + g->tables.bytes, difference = now - g->counted; /* modulo 2^64 */
    g->counted = now;
    return atomic_fetch_add_explicit(g->lexicon->bytes, difference, memory_order_relaxed) + difference;
}

/* Keeps of the automaton only where its matchers stand. Nothing has changed if it fails. */
static enum sh_code begin_anew(struct sh_grammar *g) {
    struct sh_gr_automaton fresh;
    if (!sh_gr_automaton_init(&fresh, &g->program, g->lexicon->depth)) return SH_ERR_NO_MEMORY;
    for (int pass = 0; pass < 2; pass++) { /* states are made once: the second pass finds those of the first */
        for (struct sh_matcher *m = g->matchers; m != NULL; m = m->next) {
            const uint32_t state = sh_gr_move_state(&fresh, &g->automaton, m->state);
            if (state == SH_GR_UNKNOWN) {
                const enum sh_code code = fresh.failed;
                sh_gr_automaton_finish(&fresh);
                return code;
            }
            if (pass == 1) m->state = state;
        }
    }
    sh_gr_tables_forget(&g->tables);
    sh_gr_automaton_finish(&g->automaton);
    g->automaton = fresh;
    return SH_OK;
}

static enum sh_code explain(enum sh_code code, struct sh_error *err) {
    if (code == SH_ERR_LIMIT)
        return sh_fail(err, code, "the grammar is too ambiguous: what may come next is more than can be kept track of");
    return sh_fail(err, code, "no memory for a grammar's states");
}

/* Before an operation: within the limits of memory. What does not fit then fails on its own. */
static void keep_within(struct sh_grammar *g) {
    g->automaton.work = 0;
    const uint64_t all = count_bytes(g);
    const bool crowded = all > SH_GR_ALL_BYTES && g->counted > SH_GR_SHARE_BYTES;
    if (g->automaton.bytes <= g->limit && !crowded) return;
    (void)begin_anew(g);
    if (crowded) sh_gr_tables_finish(&g->tables);
    count_bytes(g);
}

/* After an operation that failed: whether another attempt may succeed, with the memory that others left. */
static bool try_again(struct sh_grammar *g) {
    return g->automaton.failed == SH_ERR_LIMIT && g->automaton.bytes > g->limit && begin_anew(g) == SH_OK;
}

void sh_gr_trim(struct sh_grammar *g) {
    pthread_mutex_lock(&g->lock);
    if (g->matchers == NULL && g->automaton.bytes + g->tables.bytes > SH_GR_SHARE_BYTES) {
        (void)begin_anew(g);
        sh_gr_tables_finish(&g->tables);
        count_bytes(g);
    }
    pthread_mutex_unlock(&g->lock);
}

/* ---- matchers ---------------------------------------------------------------------------------------------------- */

enum sh_code sh_matcher_create(struct sh_grammar *g, struct sh_matcher **out, struct sh_error *err) {
    *out = NULL;
    struct sh_matcher *m = calloc(1, sizeof *m);
    if (m == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a matcher");
    pthread_mutex_lock(&g->lock);
    keep_within(g);
    m->state = sh_gr_start(&g->automaton);
    if (m->state == SH_GR_UNKNOWN) {
        const enum sh_code code = g->automaton.failed;
        pthread_mutex_unlock(&g->lock);
        free(m);
        return explain(code, err);
    }
    m->grammar = sh_grammar_ref(g);
    m->next = g->matchers;
    if (m->next != NULL) m->next->previous = m;
    g->matchers = m;
    pthread_mutex_unlock(&g->lock);
    *out = m;
    return SH_OK;
}

void sh_matcher_destroy(struct sh_matcher *m) {
    if (m == NULL) return;
    struct sh_grammar *g = m->grammar;
    pthread_mutex_lock(&g->lock);
    count_bytes(g);
    sh_gr_mask_unref(m->mask);
    if (m->next != NULL) m->next->previous = m->previous;
    if (m->previous != NULL) m->previous->next = m->next;
    else g->matchers = m->next;
    pthread_mutex_unlock(&g->lock);
    free(m);
    sh_grammar_unref(g);
}

bool sh_matcher_can_end(const struct sh_matcher *m) {
    pthread_mutex_lock(&m->grammar->lock);
    const bool can = m->grammar->automaton.states[m->state].can_end;
    pthread_mutex_unlock(&m->grammar->lock);
    return can;
}

enum sh_code sh_matcher_mask(struct sh_matcher *m, const uint32_t **words, uint32_t *count, int32_t *only, struct sh_error *err) {
    struct sh_grammar *g = m->grammar;
    pthread_mutex_lock(&g->lock);
    keep_within(g);
    struct sh_gr_mask *mask = sh_gr_make_mask(&g->automaton, g->lexicon, &g->tables, m->state);
    if (mask == NULL && try_again(g)) mask = sh_gr_make_mask(&g->automaton, g->lexicon, &g->tables, m->state);
    if (mask == NULL) {
        const enum sh_code code = g->automaton.failed;
        pthread_mutex_unlock(&g->lock);
        return explain(code, err);
    }
    sh_gr_mask_unref(m->mask);
    mask->refs++;
    m->mask = mask;
    *words = mask->words;
    *count = mask->count;
    *only = mask->only;
    pthread_mutex_unlock(&g->lock);
    return SH_OK;
}

/* The state behind the token, SH_GR_DEAD or SH_GR_UNKNOWN. */
static uint32_t follow(struct sh_grammar *g, uint32_t state, int32_t token) {
    struct sh_gr_automaton *a = &g->automaton;
    uint32_t at = SH_GR_DEAD;
    if (g->lexicon->in_trie[token >> 6] >> (token & 63) & 1) {
        size_t length;
        const char *bytes = sh_vocab_piece(g->vocab, token, false, &length);
        at = state;
        for (size_t i = 0; i < length && at != SH_GR_DEAD; i++) {
            const uint32_t byte_class = g->program.class_of[(uint8_t)bytes[i]];
            const uint32_t known = a->states[at].row[byte_class];
            at = known != SH_GR_UNKNOWN ? known : sh_gr_step(a, at, byte_class);
            if (at == SH_GR_UNKNOWN) return SH_GR_UNKNOWN;
        }
    }
    return g->program.n_tokens > 0 ? sh_gr_step_token(a, state, token, at) : at;
}

enum sh_code sh_matcher_accept(struct sh_matcher *m, int32_t token, struct sh_error *err) {
    struct sh_grammar *g = m->grammar;
    if (token < 0 || (uint32_t)token >= g->lexicon->n_tokens)
        return sh_fail(err, SH_ERR_INVALID, "token %d: the vocabulary has %u", token, g->lexicon->n_tokens);
    pthread_mutex_lock(&g->lock);
    keep_within(g);
    uint32_t to = follow(g, m->state, token);
    if (to == SH_GR_UNKNOWN && try_again(g)) to = follow(g, m->state, token);
    const enum sh_code code = g->automaton.failed;
    if (to != SH_GR_UNKNOWN && to != SH_GR_DEAD) m->state = to;
    pthread_mutex_unlock(&g->lock);
    if (to == SH_GR_DEAD) return sh_fail(err, SH_ERR_INVALID, "token %d may not come here: the grammar does not allow it", token);
    return to == SH_GR_UNKNOWN ? explain(code, err) : SH_OK;
}
