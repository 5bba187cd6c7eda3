/* What a vocabulary keeps for grammars, and the kinds of grammar that requests name. */
#include "compute/grammar/automaton.h"
#include "compute/text/vocab.h"

#include <stdlib.h>

enum { KEPT = 32 }; /* grammars */

struct kept_grammar {
    struct sh_grammar *grammar;
    void *key;
    size_t length;
    uint64_t used; /* when, in uses */
};
struct kept {
    struct sh_gr_lexicon *lexicon;
    struct kept_grammar grammars[KEPT];
    uint32_t n;
    uint64_t uses;
};

static void destroy_kept(void *data) {
    struct kept *k = data;
    for (uint32_t i = 0; i < k->n; i++) {
        sh_grammar_unref(k->grammars[i].grammar);
        free(k->grammars[i].key);
    }
    sh_gr_lexicon_destroy(k->lexicon);
    free(k);
}

/* What the vocabulary keeps, made on first use. Under its lock. NULL: no memory. */
static struct kept *kept_of(const struct sh_vocab *v) {
    if (v->kept->data == NULL) {
        v->kept->data = calloc(1, sizeof(struct kept));
        v->kept->destroy = destroy_kept;
    }
    return v->kept->data;
}

enum sh_code sh_gr_lexicon_get(const struct sh_vocab *v, const struct sh_gr_lexicon **out, struct sh_error *err) {
    enum sh_code code = SH_OK;
    pthread_mutex_lock(&v->kept->lock);
    struct kept *k = kept_of(v);
    if (k == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a vocabulary's trie");
    else if (k->lexicon == NULL) code = sh_gr_lexicon_create(v, &k->lexicon, err);
    *out = code == SH_OK ? k->lexicon : NULL;
    pthread_mutex_unlock(&v->kept->lock);
    return code;
}

static struct kept_grammar *find(struct kept *k, const void *key, size_t length) {
    for (uint32_t i = 0; i < k->n; i++) {
        struct kept_grammar *g = &k->grammars[i];
        if (g->length != length || (length > 0 && memcmp(g->key, key, length) != 0)) continue;
        g->used = ++k->uses;
        return g;
    }
    return NULL;
}

struct sh_grammar *sh_grammar_recall(const struct sh_vocab *v, const void *key, size_t length) {
    pthread_mutex_lock(&v->kept->lock);
    struct kept *k = v->kept->data;
    struct kept_grammar *g = k != NULL ? find(k, key, length) : NULL;
    struct sh_grammar *grammar = g != NULL ? sh_grammar_ref(g->grammar) : NULL;
    pthread_mutex_unlock(&v->kept->lock);
    return grammar;
}

void sh_grammar_remember(const struct sh_vocab *v, const void *key, size_t length, struct sh_grammar *grammar) {
    void *copy = malloc(length > 0 ? length : 1);
    struct kept_grammar old = {0};
    pthread_mutex_lock(&v->kept->lock);
    struct kept *k = kept_of(v);
    if (copy != NULL && k != NULL &&
        find(k, key, length) == NULL) { /* else another thread was first, or it is made anew next time */
        if (length > 0) memcpy(copy, key, length);
        uint32_t at = k->n;
        if (k->n < KEPT) {
            k->n++;
        } else {
            at = 0;
            for (uint32_t i = 1; i < KEPT; i++)
                if (k->grammars[i].used < k->grammars[at].used) at = i;
            old = k->grammars[at];
        }
        k->grammars[at] = (struct kept_grammar){sh_grammar_ref(grammar), copy, length, ++k->uses};
        copy = NULL;
        for (uint32_t i = 0; i < k->n && k->lexicon != NULL && atomic_load(k->lexicon->bytes) > SH_GR_ALL_BYTES; i++)
            sh_gr_trim(k->grammars[i].grammar);
    }
    pthread_mutex_unlock(&v->kept->lock);
    free(copy);
    free(old.key);
    sh_grammar_unref(old.grammar);
}
