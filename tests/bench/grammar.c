/*
 * grammar.c - what grammars cost: the vocabulary's trie (once per vocabulary), compiling, and masks and steps in microseconds,
 * along random texts that the grammar allows.
 *
 *   grammar VOCAB.gguf [--texts N] [--tokens N]
 *
 * Prints lines of key<TAB>value: vocabulary, tokens, trie_milliseconds; and for each grammar a line of
 * grammar<TAB>NAME<TAB>cold|new|warm<TAB>compile_ms<TAB>masks<TAB>median<TAB>p95<TAB>p99<TAB>max<TAB>accept_median
 * <TAB>accept_p99.
 * Cold: nothing is known when the first text begins, states and their masks are made on the way. New: of those masks only the
 * ones of states that no text has been in, which must be made. Warm: the same texts again.
 */
#include "compute/grammar/automaton.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static uint64_t rng_state;
static uint64_t draw(void) {
    uint64_t z = (rng_state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static const struct {
    const char *name;
    enum sh_grammar_kind kind;
    const char *text;
} grammars[] = {
    {"json_object", SH_GRAMMAR_OBJECT, ""},
    {"nested_schema", SH_GRAMMAR_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":40},\"age\":{\"type\":"
     "\"integer\"},"
     "\"tags\":{\"type\":\"array\",\"maxItems\":8,\"items\":{\"type\":\"string\",\"maxLength\":16}},"
     "\"orders\":{\"type\":\"array\",\"maxItems\":10,\"items\":{\"type\":\"object\",\"properties\":{\"sku\":{\"type\":\"string\","
     "\"maxLength\":20},\"quantity\":{\"type\":\"integer\"},\"note\":{\"type\":\"string\",\"maxLength\":200}},"
     "\"required\":[\"sku\",\"quantity\",\"note\"],\"additionalProperties\":false}}},"
     "\"required\":[\"name\",\"age\",\"tags\",\"orders\"],\"additionalProperties\":false}"},
    {"long_string", SH_GRAMMAR_SCHEMA, "{\"type\":\"string\",\"maxLength\":100000}"},
    {"short_string", SH_GRAMMAR_SCHEMA, "{\"type\":\"string\",\"minLength\":20,\"maxLength\":64}"},
    {"regex_mail", SH_GRAMMAR_REGEX, "[a-z0-9._-]{1,64}@[a-z0-9-]{1,63}\\.[a-z]{2,6}"},
    {"regex_words", SH_GRAMMAR_REGEX, "(\\w+ ){3,200}\\w+\\."},
    {"gbnf_arithmetic", SH_GRAMMAR_GBNF,
     "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] term)*\nterm ::= ident | num | \"(\" ws expr \")\" ws\n"
     "ident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*\n"},
};

struct sample {
    double *items;
    uint32_t n;
};
static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double at(const struct sample *s, double share) { return s->n > 0 ? s->items[(uint32_t)((double)(s->n - 1) * share)] : 0; }

static void report(const char *name, const char *kind, double compile_ms, struct sample *masks, const struct sample *accepted) {
    qsort(masks->items, masks->n, sizeof(double), compare);
    printf("grammar\t%s\t%s\t%.2f\t%u\t%.2f\t%.2f\t%.2f\t%.1f\t%.2f\t%.2f\n", name, kind, compile_ms, masks->n, at(masks, 0.5),
           at(masks, 0.95), at(masks, 0.99), at(masks, 1), at(accepted, 0.5), at(accepted, 0.99));
}

static void fail(const char *what, const struct sh_error *err) {
    fprintf(stderr, "%s: %s\n", what, err->message);
    exit(1);
}

/* A token of the mask, about evenly. */
static int32_t choose(const uint32_t *mask, uint32_t n_words) {
    uint32_t w = (uint32_t)(draw() % n_words);
    while (mask[w] == 0) w = (w + 1) % n_words;
    uint32_t bit = (uint32_t)(draw() % 32);
    while (!(mask[w] >> bit & 1)) bit = (bit + 1) % 32;
    return (int32_t)(w * 32 + bit);
}

int main(int argc, char **argv) {
    uint32_t n_texts = 40, n_tokens = 200;
    const char *path = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--texts") == 0 && i + 1 < argc) n_texts = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--tokens") == 0 && i + 1 < argc) n_tokens = (uint32_t)strtoul(argv[++i], NULL, 10);
        else path = argv[i];
    }
    if (path == NULL || n_texts == 0 || n_tokens == 0 || n_texts > 10000 || n_tokens > 100000) {
        fprintf(stderr, "usage: %s VOCAB.gguf [--texts N] [--tokens N]\n", argv[0]);
        return 2;
    }
    struct sh_vocab *v;
    struct sh_error err;
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail(path, &err);
    const uint32_t n_words = (sh_vocab_size(v) + 31) / 32;
    const size_t most = (size_t)n_texts * n_tokens;
    struct sample mask_us = {malloc(most * sizeof(double)), 0}, new_us = {malloc(most * sizeof(double)), 0};
    struct sample accept_us = {malloc(most * sizeof(double)), 0};
    if (mask_us.items == NULL || new_us.items == NULL || accept_us.items == NULL) return 1;
    double begin = now_us();
    struct sh_grammar *first;
    if (sh_grammar_create(v, SH_GRAMMAR_CHOICE, "[\"a\"]", 5, &first, &err) != SH_OK) fail("the first grammar", &err);
    printf("vocabulary\t%s\ntokens\t%u\ntrie_milliseconds\t%.1f\n", path, sh_vocab_size(v), (now_us() - begin) / 1e3);
    sh_grammar_unref(first);
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        struct sh_grammar *g;
        begin = now_us();
        if (sh_grammar_create(v, grammars[i].kind, grammars[i].text, strlen(grammars[i].text), &g, &err) != SH_OK)
            fail(grammars[i].name, &err);
        const double compile_ms = (now_us() - begin) / 1e3;
        for (int warm = 0; warm < 2; warm++) {
            rng_state = 7;
            mask_us.n = new_us.n = accept_us.n = 0;
            for (uint32_t t = 0; t < n_texts; t++) {
                struct sh_matcher *m;
                if (sh_matcher_create(g, &m, &err) != SH_OK) fail(grammars[i].name, &err);
                for (uint32_t k = 0; k < n_tokens; k++) {
                    const uint32_t *mask;
                    uint32_t count;
                    int32_t only;
                    const bool known = g->automaton.states[m->state].mask != NULL;
                    begin = now_us();
                    if (sh_matcher_mask(m, &mask, &count, &only, &err) != SH_OK) fail(grammars[i].name, &err);
                    const double took = now_us() - begin;
                    mask_us.items[mask_us.n++] = took;
                    if (!known) new_us.items[new_us.n++] = took;
                    if (count == 0) break;
                    const int32_t token = only >= 0 ? only : choose(mask, n_words);
                    begin = now_us();
                    if (sh_matcher_accept(m, token, &err) != SH_OK) fail(grammars[i].name, &err);
                    accept_us.items[accept_us.n++] = now_us() - begin;
                }
                sh_matcher_destroy(m);
            }
            qsort(accept_us.items, accept_us.n, sizeof(double), compare);
            report(grammars[i].name, warm ? "warm" : "cold", compile_ms, &mask_us, &accept_us);
            if (!warm) report(grammars[i].name, "new", compile_ms, &new_us, &accept_us);
        }
        sh_grammar_unref(g);
    }
    free(mask_us.items);
    free(new_us.items);
    free(accept_us.items);
    sh_vocab_close(v);
    return 0;
}
