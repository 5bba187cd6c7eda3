/* Grammars made with the builder: against a slow matcher of all short texts, masks against single steps, limits, threads. */
#include "tests/unit/shared.h"

#include "compute/gguf/write.h"
#include "compute/grammar/automaton.h"
#include "compute/text/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- vocabularies: SPM, the bytes and pieces -------------------------------------------------------------------- */

enum { FIRST_BYTE = 3, FIRST_PIECE = 259, CONTROL_A = 1, END = 2 };

struct piece {
    const char *bytes;
    size_t length;
};
#define PIECE(text)                                                                                                              \
    { text, sizeof text - 1 }

/* <unk> <a> (control) </s>, the bytes, then the pieces; blanks in them are written as the file has them. */
static struct sh_vocab *vocab_of(const struct piece *pieces, uint32_t n) {
    const uint32_t total = FIRST_PIECE + n;
    struct sh_str *tokens = calloc(total, sizeof *tokens);
    float *scores = calloc(total, sizeof *scores);
    int32_t *types = calloc(total, sizeof *types);
    char bytes[256][8], (*texts)[64] = calloc(n > 0 ? n : 1, sizeof *texts);
    assert_true(tokens != NULL && scores != NULL && types != NULL && texts != NULL);
    static const char *const first[] = {"<unk>", "<a>", "</s>"};
    static const int32_t first_types[] = {SH_TOKEN_UNKNOWN, SH_TOKEN_CONTROL, SH_TOKEN_CONTROL};
    for (uint32_t i = 0; i < total; i++) {
        if (i < FIRST_BYTE) {
            tokens[i] = (struct sh_str){first[i], strlen(first[i])};
            types[i] = first_types[i];
        } else if (i < FIRST_PIECE) {
            char *text = bytes[i - FIRST_BYTE];
            snprintf(text, 8, "<0x%02X>", i - FIRST_BYTE);
            tokens[i] = (struct sh_str){text, 6};
            types[i] = SH_TOKEN_BYTE;
        } else {
            size_t length = 0;
            const struct piece *p = &pieces[i - FIRST_PIECE];
            for (size_t k = 0; k < p->length; k++) {
                assert_true(length + 3 < sizeof *texts);
                if (p->bytes[k] == ' ') memcpy(texts[i - FIRST_PIECE] + length, "\xE2\x96\x81", 3), length += 3;
                else texts[i - FIRST_PIECE][length++] = p->bytes[k];
            }
            tokens[i] = (struct sh_str){texts[i - FIRST_PIECE], length};
            types[i] = SH_TOKEN_NORMAL;
        }
    }
    const char *path = test_scratch("vocab.gguf");
    struct sh_gguf_writer *w;
    struct sh_error err;
    assert_int_equal(sh_gguf_writer_create(path, 3, 0, &w, &err), SH_OK);
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, total);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, total);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, total);
    sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", END);
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_OK);
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_OK);
    sh_gguf_writer_destroy(w);
    struct sh_vocab *v;
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s", err.message);
    free(tokens);
    free(scores);
    free(types);
    free(texts);
    return v;
}

static const struct piece letters[] = {PIECE("a"),   PIECE("b"),  PIECE("ab"),  PIECE("ba"),   PIECE("aa"),    PIECE("abc"),
                                       PIECE("aab"), PIECE("cc"), PIECE("bca"), PIECE("aaaa"), PIECE("cabab"), PIECE("d")};

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

static struct sh_grammar *compiled(struct sh_gr *gr, sh_gr_expr root, const struct sh_vocab *v) {
    struct sh_grammar *g;
    struct sh_error err = {0};
    if (sh_gr_compile(gr, root, v, &g, &err) != SH_OK) fail_msg("%s", err.message);
    return g;
}

static struct sh_matcher *matcher_of(struct sh_grammar *g) {
    struct sh_matcher *m;
    struct sh_error err = {0};
    if (sh_matcher_create(g, &m, &err) != SH_OK) fail_msg("%s", err.message);
    return m;
}

static bool feed(struct sh_matcher *m, const char *bytes, size_t length) {
    struct sh_error err;
    for (size_t i = 0; i < length; i++)
        if (sh_matcher_accept(m, FIRST_BYTE + (uint8_t)bytes[i], &err) != SH_OK) return false;
    return true;
}

/* 2: the text is in the language; 1: it can become one; 0: not. */
static int judge(struct sh_grammar *g, const char *text, size_t length) {
    struct sh_matcher *m = matcher_of(g);
    const int verdict = !feed(m, text, length) ? 0 : sh_matcher_can_end(m) ? 2 : 1;
    sh_matcher_destroy(m);
    return verdict;
}
#define JUDGE(g, text) judge(g, text, sizeof text - 1)

/* The mask where the matcher stands, against accepting each token on its own. */
static void check_mask(struct sh_matcher *m, const struct sh_vocab *v) {
    const uint32_t *mask;
    uint32_t count, want = 0;
    int32_t only, last = -1;
    struct sh_error err;
    assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_OK);
    for (int32_t t = 0; t < (int32_t)sh_vocab_size(v); t++) {
        const uint32_t before = m->state;
        const bool accepted = sh_matcher_accept(m, t, &err) == SH_OK;
        m->state = before;
        if (accepted != (mask[t >> 5] >> (t & 31) & 1)) {
            size_t n;
            const char *piece = sh_vocab_piece(v, t, true, &n);
            fail_msg("token %d \"%.*s\": accepted %d, in the mask %d", t, (int)n, piece, accepted, !accepted);
        }
        want += accepted;
        if (accepted) last = t;
    }
    assert_int_equal(count, want);
    assert_int_equal(only, want == 1 ? last : -1);
    if (want == 0) assert_true(sh_matcher_can_end(m)); /* no dead ends */
}

/* ---- random expressions against a slow matcher ------------------------------------------------------------------- */

enum { LETTERS = 3, LONGEST = 6, N_RULES = 3, MAX_NODES = 200 };

struct slow { /* an expression once more, for the slow matcher */
    enum { S_NEVER, S_EMPTY, S_TEXT, S_SET, S_PAIR, S_CHOICE, S_REPEAT, S_RULE, S_UNTIL } kind;
    uint32_t a, b, min, max;
    char text[8];
    size_t length;
};
struct model {
    struct sh_gr *gr;
    struct slow nodes[MAX_NODES];
    sh_gr_expr fast[MAX_NODES];
    uint32_t n, rules[N_RULES], rule_numbers[N_RULES];
    /* ends of a node from each position of the text at hand, as bits */
    uint32_t ends[N_RULES][LONGEST + 1];
    const char *text;
    uint32_t length;
};

static uint32_t pick(struct test_rng *rng, uint32_t n) { return (uint32_t)(test_random(rng) % n); }

static uint32_t grow_model(struct model *m, struct test_rng *rng, uint32_t depth) {
    static const uint32_t kinds[] = {S_TEXT,   S_TEXT,   S_SET,  S_PAIR, S_PAIR,  S_CHOICE, S_CHOICE,
                                     S_REPEAT, S_REPEAT, S_RULE, S_RULE, S_EMPTY, S_UNTIL,  S_NEVER};
    struct slow s = {.kind = kinds[pick(rng, depth == 0 ? 3 : SH_COUNT(kinds))]};
    if (m->n > MAX_NODES - 20) s.kind = S_TEXT;
    struct sh_gr *gr = m->gr;
    sh_gr_expr e = SH_GR_NEVER;
    switch (s.kind) {
    case S_NEVER: break;
    case S_EMPTY: e = SH_GR_EMPTY; break;
    case S_TEXT:
    case S_UNTIL:
        s.length = 1 + pick(rng, 3);
        for (size_t i = 0; i < s.length; i++) s.text[i] = (char)('a' + pick(rng, s.kind == S_UNTIL ? 2 : LETTERS));
        e = s.kind == S_TEXT ? sh_gr_text(gr, s.text, s.length) : sh_gr_until(gr, s.text, s.length);
        break;
    case S_SET: {
        uint8_t set[32] = {0};
        s.min = 1 + pick(rng, 7);
        set['a' / 8] = (uint8_t)(s.min << ('a' % 8));
        e = sh_gr_bytes(gr, set);
        break;
    }
    case S_PAIR:
    case S_CHOICE: {
        s.a = grow_model(m, rng, depth - 1);
        s.b = grow_model(m, rng, depth - 1);
        const sh_gr_expr both[] = {m->fast[s.a], m->fast[s.b]};
        e = s.kind == S_PAIR ? sh_gr_sequence(gr, both, 2) : sh_gr_choice(gr, both, 2);
        break;
    }
    case S_REPEAT:
        s.a = grow_model(m, rng, depth - 1);
        s.min = pick(rng, 4);
        s.max = pick(rng, 3) == 0 ? SH_GR_UNLIMITED : s.min + pick(rng, pick(rng, 2) ? 4 : 100);
        e = sh_gr_repeat(gr, m->fast[s.a], s.min, s.max);
        break;
    case S_RULE:
        s.a = pick(rng, N_RULES);
        e = sh_gr_ref(gr, m->rule_numbers[s.a]);
        break;
    }
    m->nodes[m->n] = s;
    m->fast[m->n] = e;
    return m->n++;
}

static uint32_t slow_ends(const struct model *m, uint32_t node, uint32_t from);

/* The ends from each of several positions. */
static uint32_t slow_after(const struct model *m, uint32_t node, uint32_t froms) {
    uint32_t ends = 0;
    for (uint32_t i = 0; i <= m->length; i++)
        if (froms >> i & 1) ends |= slow_ends(m, node, i);
    return ends;
}

static uint32_t slow_ends(const struct model *m, uint32_t node, uint32_t from) {
    const struct slow *s = &m->nodes[node];
    switch (s->kind) {
    case S_EMPTY: return 1u << from;
    case S_TEXT:
        return m->length - from >= s->length && memcmp(m->text + from, s->text, s->length) == 0 ? 1u << (from + s->length) : 0;
    case S_SET: return from < m->length && (s->min >> (m->text[from] - 'a') & 1) ? 1u << (from + 1) : 0;
    case S_PAIR: return slow_after(m, s->b, slow_ends(m, s->a, from));
    case S_CHOICE: return slow_ends(m, s->a, from) | slow_ends(m, s->b, from);
    case S_RULE: return m->ends[s->a][from];
    case S_REPEAT: {
        uint32_t at = 1u << from, all = s->min == 0 ? at : 0;
        for (uint32_t i = 1; i <= s->max && i <= s->min + LONGEST + 1; i++) { /* more items would be empty ones */
            at = slow_after(m, s->a, at);
            if (i >= s->min) all |= at;
        }
        return all;
    }
    case S_UNTIL: {
        uint32_t all = 0;
        for (uint32_t to = from; to <= m->length; to++) { /* the first end in text + end is where the text ends */
            char both[32];
            const size_t n = to - from;
            memcpy(both, m->text + from, n);
            memcpy(both + n, s->text, s->length);
            bool early = false;
            for (size_t i = 0; i < n; i++) early |= memcmp(both + i, s->text, s->length) == 0;
            if (!early) all |= 1u << to;
        }
        return all;
    }
    default: return 0;
    }
}

static bool slow_match(struct model *m, uint32_t root, const char *text, uint32_t length) {
    m->text = text;
    m->length = length;
    memset(m->ends, 0, sizeof m->ends);
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t r = 0; r < N_RULES; r++) {
            for (uint32_t i = 0; i <= length; i++) {
                const uint32_t ends = slow_ends(m, m->rules[r], i);
                changed |= ends != m->ends[r][i];
                m->ends[r][i] = ends;
            }
        }
    }
    return slow_ends(m, root, 0) >> length & 1;
}

/* Follows random allowed bytes; the shortest way out is not known, but one must be there. */
static void check_way_out(struct sh_matcher *m, struct test_rng *rng) {
    for (uint32_t i = 0; i < 12; i++) {
        const uint32_t *mask;
        uint32_t count;
        int32_t only;
        struct sh_error err;
        assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_OK);
        if (count == 0) {
            assert_true(sh_matcher_can_end(m));
            return;
        }
        int32_t token = only;
        while (token < 0) {
            const int32_t t = (int32_t)pick(rng, m->grammar->lexicon->n_tokens);
            if (mask[t >> 5] >> (t & 31) & 1) token = t;
        }
        assert_int_equal(sh_matcher_accept(m, token, &err), SH_OK);
    }
}

static void random_expressions(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct test_rng rng = {20261121};
    struct model *m = calloc(1, sizeof *m);
    assert_non_null(m);
    uint32_t n_compiled = 0, n_left = 0, n_never = 0;
    for (uint32_t round = 0; round < 1200; round++) {
        memset(m, 0, sizeof *m);
        m->gr = sh_gr_create();
        for (uint32_t r = 0; r < N_RULES; r++) {
            char name[8];
            snprintf(name, sizeof name, "r%u", r);
            m->rule_numbers[r] = sh_gr_rule(m->gr, name);
        }
        for (uint32_t r = 0; r < N_RULES; r++) {
            m->rules[r] = grow_model(m, &rng, 3);
            sh_gr_set_rule(m->gr, m->rule_numbers[r], m->fast[m->rules[r]]);
        }
        const uint32_t root = grow_model(m, &rng, 4);
        struct sh_grammar *g = NULL;
        struct sh_error err = {0};
        const enum sh_code code = sh_gr_compile(m->gr, m->fast[root], v, &g, &err);
        if (code == SH_OK) {
            n_compiled++;
            char text[LONGEST + 1];
            for (uint32_t length = 0, many = 1; length <= LONGEST; length++, many *= LETTERS) {
                for (uint32_t i = 0; i < many; i++) {
                    for (uint32_t k = 0, rest = i; k < length; k++, rest /= LETTERS) text[k] = (char)('a' + rest % LETTERS);
                    const bool want = slow_match(m, root, text, length);
                    if ((judge(g, text, length) == 2) != want)
                        fail_msg("round %u: \"%.*s\" should be %d", round, (int)length, text, want);
                }
            }
            struct sh_matcher *matcher = matcher_of(g);
            if (round % 2) g->tables.hot = pick(&rng, 4); /* tables for everything, */
            if (round % 4 == 3) g->limit = 0;             /* and all masks made anew */
            for (uint32_t i = 0; i < 6; i++) {
                check_mask(matcher, v);
                if (!feed(matcher, &(const char){(char)('a' + pick(&rng, LETTERS))}, 1)) break;
            }
            check_way_out(matcher, &rng);
            sh_matcher_destroy(matcher);
            sh_grammar_unref(g);
        } else {
            assert_int_equal(code, SH_ERR_INVALID);
            const bool left = strstr(err.message, "left recursion") != NULL;
            n_left += left;
            n_never += !left;
            if (!left) { /* it says that there is nothing: then there is nothing short either */
                assert_non_null(strstr(err.message, "no text at all"));
                for (uint32_t length = 0, many = 1; length <= 4; length++, many *= LETTERS) {
                    for (uint32_t i = 0; i < many; i++) {
                        char text[LONGEST];
                        for (uint32_t k = 0, rest = i; k < length; k++, rest /= LETTERS) text[k] = (char)('a' + rest % LETTERS);
                        assert_false(slow_match(m, root, text, length));
                    }
                }
            }
        }
        sh_gr_destroy(m->gr);
    }
    if (n_compiled < 800 || n_left < 10 || n_never < 50)
        fail_msg("%u compiled, %u left recursive, %u of nothing", n_compiled, n_left, n_never);
    free(m);
    sh_vocab_close(v);
}

/* ---- recursion, counters, tokens --------------------------------------------------------------------------------- */

static void nested(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct sh_gr *gr = sh_gr_create();
    const uint32_t value = sh_gr_rule(gr, "value"); /* "d" or a list in brackets */
    const sh_gr_expr more = sh_gr_pair(gr, sh_gr_text(gr, ",", 1), sh_gr_ref(gr, value));
    const sh_gr_expr list[] = {sh_gr_text(gr, "[", 1), sh_gr_ref(gr, value), sh_gr_repeat(gr, more, 0, SH_GR_UNLIMITED),
                               sh_gr_text(gr, "]", 1)};
    sh_gr_set_rule(gr, value, sh_gr_choice(gr, (sh_gr_expr[]){sh_gr_text(gr, "d", 1), sh_gr_sequence(gr, list, 4)}, 2));
    struct sh_grammar *g = compiled(gr, sh_gr_ref(gr, value), v);
    sh_gr_destroy(gr);
    assert_int_equal(JUDGE(g, ""), 1);
    assert_int_equal(JUDGE(g, "d"), 2);
    assert_int_equal(JUDGE(g, "dd"), 0);
    assert_int_equal(JUDGE(g, "[]"), 0);
    assert_int_equal(JUDGE(g, "[d,[d,d],[[d]]]"), 2);
    assert_int_equal(JUDGE(g, "[d,[d,d],[[d]]"), 1);
    assert_int_equal(JUDGE(g, "[d,[d,d],[[d]]]]"), 0);
    struct sh_matcher *m = matcher_of(g);
    for (uint32_t i = 0; i < 20000; i++) assert_true(feed(m, "[", 1));
    assert_true(feed(m, "d", 1));
    check_mask(m, v);
    for (uint32_t i = 0; i < 20000; i++) {
        assert_false(sh_matcher_can_end(m));
        assert_true(feed(m, "]", 1));
    }
    assert_true(sh_matcher_can_end(m));
    assert_false(feed(m, "]", 1));
    sh_matcher_destroy(m);
    sh_grammar_unref(g);
    sh_vocab_close(v);
}

static void counters(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct sh_gr *gr = sh_gr_create();
    const sh_gr_expr item = sh_gr_choice(gr, (sh_gr_expr[]){sh_gr_text(gr, "a", 1), sh_gr_text(gr, "bc", 2)}, 2);
    struct sh_grammar *g = compiled(gr, sh_gr_pair(gr, sh_gr_repeat(gr, item, 99998, 100000), sh_gr_text(gr, "c", 1)), v);
    struct sh_matcher *m = matcher_of(g);
    for (uint32_t i = 0; i < 99998; i++) {
        if (i % 25000 == 0) assert_false(feed(m, "c", 1));
        assert_true(i % 3 == 0 ? feed(m, "bc", 2) : feed(m, "a", 1));
    }
    for (uint32_t i = 0; i < 3; i++) {
        check_mask(m, v);
        const uint32_t before = m->state;
        assert_true(feed(m, "c", 1) && sh_matcher_can_end(m));
        m->state = before;
        assert_int_equal(feed(m, "a", 1), i < 2);
    }
    sh_matcher_destroy(m);
    sh_grammar_unref(g);
    /* the same items in two ways: no more configurations than items fit */
    const sh_gr_expr aa = sh_gr_choice(gr, (sh_gr_expr[]){sh_gr_text(gr, "a", 1), sh_gr_text(gr, "aa", 2)}, 2);
    g = compiled(gr, sh_gr_repeat(gr, aa, 0, 4000), v);
    m = matcher_of(g);
    for (uint32_t i = 0; i < 8000; i++) {
        assert_true(feed(m, "a", 1));
        assert_true(g->automaton.states[m->state].n_configs <= 4);
    }
    assert_false(feed(m, "a", 1));
    sh_matcher_destroy(m);
    sh_grammar_unref(g);
    sh_gr_destroy(gr);
    sh_vocab_close(v);
}

static void tokens(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct sh_gr *gr = sh_gr_create();
    struct sh_error err;
    /* the control token, or the piece "ab" by its number, or its bytes; then "c" */
    const int32_t ab = FIRST_PIECE + 2;
    const sh_gr_expr first =
        sh_gr_choice(gr,
                     (sh_gr_expr[]){sh_gr_token(gr, CONTROL_A), sh_gr_pair(gr, sh_gr_token(gr, ab), sh_gr_text(gr, "d", 1)),
                                    sh_gr_text(gr, "ab", 2)},
                     3);
    struct sh_grammar *g = compiled(gr, sh_gr_pair(gr, first, sh_gr_text(gr, "c", 1)), v);
    struct sh_matcher *m = matcher_of(g);
    check_mask(m, v);
    assert_int_equal(sh_matcher_accept(m, END, &err), SH_ERR_INVALID);
    assert_int_equal(sh_matcher_accept(m, ab, &err), SH_OK);
    check_mask(m, v);
    const uint32_t both = m->state;
    assert_true(feed(m, "c", 1) && sh_matcher_can_end(m));
    m->state = both;
    assert_true(feed(m, "dc", 2) && sh_matcher_can_end(m));
    sh_matcher_destroy(m);
    m = matcher_of(g);
    assert_int_equal(sh_matcher_accept(m, CONTROL_A, &err), SH_OK);
    const uint32_t *mask;
    uint32_t count;
    int32_t only;
    check_mask(m, v);
    assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_OK);
    assert_int_equal(count, 1);
    assert_int_equal(only, FIRST_BYTE + 'c');
    assert_int_equal(sh_matcher_accept(m, -1, &err), SH_ERR_INVALID);
    assert_int_equal(sh_matcher_accept(m, (int32_t)sh_vocab_size(v), &err), SH_ERR_INVALID);
    sh_matcher_destroy(m);
    sh_grammar_unref(g);
    assert_int_equal(sh_gr_compile(gr, sh_gr_token(gr, (int32_t)sh_vocab_size(v)), v, &g, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "names token"));
    sh_gr_destroy(gr);
    sh_vocab_close(v);
}

/* ---- code points ------------------------------------------------------------------------------------------------- */

static uint32_t step_bytes(struct sh_gr_automaton *a, uint32_t state, const uint8_t *bytes, uint32_t n) {
    for (uint32_t i = 0; i < n && state != SH_GR_DEAD; i++) {
        const uint32_t byte_class = a->program->class_of[bytes[i]], known = a->states[state].row[byte_class];
        state = known != SH_GR_UNKNOWN ? known : sh_gr_step(a, state, byte_class);
        assert_int_not_equal(state, SH_GR_UNKNOWN);
    }
    return state;
}

static bool in_ranges(const struct sh_gr_range *ranges, uint32_t n, bool not, uint32_t code) {
    for (uint32_t i = 0; i < n; i++)
        if (code >= ranges[i].first && code <= ranges[i].last) return !not ;
    return not ;
}

/* What a byte string stands for, by its definition: one code point, or -1. */
static int64_t decode(const uint8_t *s, uint32_t n) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const uint32_t lead[] = {0, 0x00, 0xC0, 0xE0, 0xF0}, mask[] = {0, 0x80, 0xE0, 0xF0, 0xF8};
    if ((s[0] & mask[n]) != lead[n]) return -1;
    uint32_t code = s[0] & (uint32_t)(uint8_t)~mask[n];
    for (uint32_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) return -1;
        code = code << 6 | (s[i] & 0x3F);
    }
    return code < least[n] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF) ? -1 : (int64_t)code;
}

static void code_points(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct test_rng rng = {7};
    for (uint32_t round = 0; round < 40; round++) {
        struct sh_gr_range ranges[12];
        uint32_t n = round == 0 ? 0 : 1 + pick(&rng, SH_COUNT(ranges));
        static const uint32_t edges[] = {0,       0x7F,    0x80,     0x7FF,    0x800,    0xFFF,     0x1000,
                                         0xD7FF,  0xD800,  0xDFFF,   0xE000,   0xFFFF,   0x10000,   0x3FFFF,
                                         0x40000, 0xFFFFF, 0x100000, 0x10FFFF, 0x110000, UINT32_MAX};
        for (uint32_t i = 0; i < n; i++) {
            uint32_t ends[2];
            for (uint32_t k = 0; k < 2; k++)
                ends[k] = pick(&rng, 2) ? edges[pick(&rng, SH_COUNT(edges))] : pick(&rng, 1u << (7 + pick(&rng, 15)));
            ranges[i] = (struct sh_gr_range){ends[0], ends[1]}; /* now and then the wrong way round: nothing */
        }
        const bool not = round == 0 || pick(&rng, 2);
        struct sh_gr *gr = sh_gr_create();
        const sh_gr_expr e = sh_gr_class(gr, ranges, n, not );
        struct sh_grammar *g = compiled(gr, sh_gr_optional(gr, e), v);
        sh_gr_destroy(gr);
        struct sh_gr_automaton *a = &g->automaton;
        const uint32_t start = sh_gr_start(a);
        for (uint32_t code = 0; code < 0x110000; code++) {
            if (round > 3 && code > 0x3000 && pick(&rng, 61) != 0) continue; /* the rest in samples */
            uint8_t s[4];
            uint32_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
            s[0] = (uint8_t)(length == 1 ? code : (uint32_t)(0xF00 >> length & 0xFF) | code >> (6 * (length - 1)));
            for (uint32_t i = 1; i < length; i++) s[i] = (uint8_t)(0x80 | (code >> (6 * (length - 1 - i)) & 0x3F));
            const uint32_t at = step_bytes(a, start, s, length);
            const bool want = (code < 0xD800 || code > 0xDFFF) && in_ranges(ranges, n, not, code);
            if ((at != SH_GR_DEAD) != want) fail_msg("round %u: U+%04X should be %d", round, code, want);
            if (want) assert_true(a->states[at].can_end);
        }
        for (uint32_t i = 0; i < 20000; i++) { /* any bytes, most of them no UTF-8 */
            const uint32_t length = 1 + pick(&rng, 4);
            uint8_t s[4];
            for (uint32_t k = 0; k < length; k++) s[k] = (uint8_t)pick(&rng, 256) | (pick(&rng, 4) ? 0x80 : 0);
            const uint32_t at = step_bytes(a, start, s, length);
            const int64_t code = decode(s, length);
            const bool want = code >= 0 && in_ranges(ranges, n, not, (uint32_t)code);
            assert_int_equal(at != SH_GR_DEAD && a->states[at].can_end, want);
        }
        sh_grammar_unref(g);
    }
    sh_vocab_close(v);
}

/* ---- strings, whose masks take slices of the vocabulary ---------------------------------------------------------- */

static const struct piece words[] = {PIECE(" "),
                                     PIECE("a"),
                                     PIECE("ab"),
                                     PIECE("abc"),
                                     PIECE("hello"),
                                     PIECE(" hello"),
                                     PIECE("\xC3\xA9"),
                                     PIECE("\xC3\xA9t\xC3\xA9"),
                                     PIECE("\xE6\x97\xA5"),
                                     PIECE("\xE6\x97\xA5\xE6\x9C\xAC"),
                                     PIECE("\xF0\x9F\x98\x80"),
                                     PIECE("\xF0\x9F"),
                                     PIECE("\x98\x80"),
                                     PIECE("\xE6\x97"),
                                     PIECE("\xA5x"),
                                     PIECE("a\xE6\x97"),
                                     PIECE("\""),
                                     PIECE("\","),
                                     PIECE("a\""),
                                     PIECE("ab\"c"),
                                     PIECE("\":"),
                                     PIECE("\"a"),
                                     PIECE("\\"),
                                     PIECE("\\n"),
                                     PIECE("\\\\"),
                                     PIECE("a\\"),
                                     PIECE("a\\n\""),
                                     PIECE("\\u00"),
                                     PIECE("\\u00e9x"),
                                     PIECE("\n"),
                                     PIECE("a\n"),
                                     PIECE("\x7F"),
                                     PIECE("a\x7F"
                                           "b"),
                                     PIECE("12345678901234567890123456789012"),
                                     PIECE("123456789012345678901234567890123"),
                                     PIECE("1234567890123456789012345678901234567890"),
                                     PIECE("1234567"),
                                     PIECE("123456789\""),
                                     PIECE("x\",\"y"),
                                     PIECE("\"\""),
                                     PIECE("aa"),
                                     PIECE("aaaa"),
                                     PIECE("aaaaaaaa")};

static sh_gr_expr json_char(struct sh_gr *gr) {
    const struct sh_gr_range out[] = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}, hex[] = {{'0', '9'}, {'a', 'f'}};
    const struct sh_gr_range simple[] = {{'"', '"'}, {'\\', '\\'}, {'n', 'n'}};
    const sh_gr_expr digits = sh_gr_repeat(gr, sh_gr_class(gr, hex, 2, false), 4, 4);
    const sh_gr_expr items[] = {sh_gr_class(gr, out, 3, true),
                                sh_gr_pair(gr, sh_gr_text(gr, "\\", 1), sh_gr_class(gr, simple, 3, false)),
                                sh_gr_pair(gr, sh_gr_text(gr, "\\u", 2), digits)};
    return sh_gr_choice(gr, items, 3);
}

/* Something that plain characters run through, of a random kind. */
static sh_gr_expr random_run(struct sh_gr *gr, struct test_rng *rng) {
    const struct sh_gr_range quote = {'"', '"'}, lower = {'a', 'z'},
                             several[] = {{'"', '"'}, {'\\', '\\'}, {0, 0x1F}, {0x7F, 0x7F}};
    sh_gr_expr item = SH_GR_EMPTY;
    switch (pick(rng, 6)) {
    case 0: item = json_char(gr); break;
    case 1: item = sh_gr_class(gr, &quote, 1, true); break;
    case 2: item = sh_gr_class(gr, several, 4, true); break;
    case 3: item = sh_gr_class(gr, NULL, 0, true); break;
    case 4: item = sh_gr_class(gr, &lower, 1, false); break;
    default: { /* more than one plain character at a time, too */
        const sh_gr_expr both[] = {json_char(gr), sh_gr_text(gr, "aa", 2)};
        item = sh_gr_choice(gr, both, 2);
    }
    }
    if (pick(rng, 3) == 0) { /* as a rule */
        const uint32_t rule = sh_gr_rule(gr, "char");
        sh_gr_set_rule(gr, rule, item);
        item = sh_gr_ref(gr, rule);
    }
    const uint32_t min = pick(rng, 3) ? 0 : pick(rng, 40), kind = pick(rng, 4);
    const uint32_t max = kind == 0 ? SH_GR_UNLIMITED : min + (kind == 1 ? pick(rng, 5) : pick(rng, 80));
    const sh_gr_expr run = sh_gr_repeat(gr, item, min, max);
    if (pick(rng, 3) == 0) return run;
    return sh_gr_sequence(gr, (const sh_gr_expr[]){sh_gr_text(gr, "\"", 1), run, sh_gr_text(gr, "\"", 1)}, 3);
}

static void strings(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(words, SH_COUNT(words));
    struct test_rng rng = {99};
    for (uint32_t round = 0; round < 400; round++) {
        struct sh_gr *gr = sh_gr_create();
        sh_gr_expr parts[3];
        const uint32_t n = 1 + pick(&rng, 3);
        for (uint32_t i = 0; i < n; i++) parts[i] = random_run(gr, &rng);
        sh_gr_expr root = pick(&rng, 3) ? sh_gr_sequence(gr, parts, n) : sh_gr_choice(gr, parts, n);
        if (pick(&rng, 3) == 0) root = sh_gr_repeat(gr, sh_gr_pair(gr, root, sh_gr_text(gr, ",", 1)), 1, 3);
        struct sh_grammar *g = NULL;
        struct sh_error err;
        const enum sh_code code = sh_gr_compile(gr, root, v, &g, &err);
        sh_gr_destroy(gr);
        if (code != SH_OK) fail_msg("%s", err.message);
        if (round % 2) g->tables.hot = pick(&rng, 4); /* tables for everything, */
        if (round % 4 == 3) g->limit = 0;             /* and all masks made anew */
        struct sh_matcher *m = matcher_of(g);
        for (uint32_t i = 0; i < 30; i++) {
            check_mask(m, v);
            const uint32_t *mask;
            uint32_t count;
            int32_t only, token = -1;
            assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_OK);
            if (count == 0) break;
            for (uint32_t tries = 0; token < 0; tries++) { /* pieces rather than bytes */
                const int32_t t =
                    (int32_t)(tries < 40 ? FIRST_PIECE + pick(&rng, SH_COUNT(words)) : FIRST_BYTE + pick(&rng, 256));
                if (mask[t >> 5] >> (t & 31) & 1) token = t;
            }
            assert_int_equal(sh_matcher_accept(m, token, &err), SH_OK);
        }
        sh_matcher_destroy(m);
        sh_grammar_unref(g);
    }
    sh_vocab_close(v);
}

/* The same on vocabularies of real models, in samples. */
static void real_vocabularies(void **state) {
    (void)state;
    static const char *const names[] = {"tokenizers/ggml-vocab-llama-bpe.gguf", "tokenizers/ggml-vocab-llama-spm.gguf"};
    for (uint32_t which = 0; which < SH_COUNT(names); which++) {
        const char *path = TEST_SHARED(names[which]);
        struct sh_vocab *v;
        struct sh_error err;
        if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s", err.message);
        struct test_rng rng = {5 + which};
        struct sh_gr *gr = sh_gr_create();
        const sh_gr_expr parts[] = {sh_gr_text(gr, "{\"name\":\"", 9), sh_gr_repeat(gr, json_char(gr), 3, 50),
                                    sh_gr_text(gr, "\",\"text\":\"", 10), sh_gr_repeat(gr, json_char(gr), 0, SH_GR_UNLIMITED),
                                    sh_gr_text(gr, "\"}", 2)};
        struct sh_grammar *g = compiled(gr, sh_gr_sequence(gr, parts, 5), v);
        sh_gr_destroy(gr);
        struct sh_matcher *m = matcher_of(g);
        for (uint32_t i = 0; i < 40; i++) {
            const uint32_t *mask;
            uint32_t count;
            int32_t only, token = -1;
            if (i % 4 == 0) check_mask(m, v);
            assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_OK);
            if (count == 0) break;
            while (token < 0) {
                const int32_t t = only >= 0 ? only : (int32_t)pick(&rng, sh_vocab_size(v));
                if (mask[t >> 5] >> (t & 31) & 1) token = t;
            }
            assert_int_equal(sh_matcher_accept(m, token, &err), SH_OK);
        }
        sh_matcher_destroy(m);
        sh_grammar_unref(g);
        sh_vocab_close(v);
    }
}

/* ---- what is refused --------------------------------------------------------------------------------------------- */

static void refused(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct sh_grammar *g;
    struct sh_error err;
    struct sh_gr *gr = sh_gr_create();
    const uint32_t first = sh_gr_rule(gr, "first"), second = sh_gr_rule(gr, "second");
    const sh_gr_expr a = sh_gr_text(gr, "a", 1), b = sh_gr_text(gr, "b", 1);
    /* first = a? second b | a; second = first | b: behind what may be empty */
    sh_gr_set_rule(
        gr, first,
        sh_gr_choice(
            gr, (sh_gr_expr[]){sh_gr_sequence(gr, (sh_gr_expr[]){sh_gr_optional(gr, a), sh_gr_ref(gr, second), b}, 3), a}, 2));
    sh_gr_set_rule(gr, second, sh_gr_choice(gr, (sh_gr_expr[]){sh_gr_ref(gr, first), b}, 2));
    assert_int_equal(sh_gr_compile(gr, sh_gr_ref(gr, first), v, &g, &err), SH_ERR_INVALID);
    assert_true(strstr(err.message, "left recursion: rule \"first\"") != NULL ||
                strstr(err.message, "left recursion: rule \"second\"") != NULL);
    assert_null(g);
    /* right and middle recursion is none */
    sh_gr_set_rule(gr, first,
                   sh_gr_choice(gr, (sh_gr_expr[]){sh_gr_sequence(gr, (sh_gr_expr[]){a, sh_gr_ref(gr, second), b}, 3), a}, 2));
    assert_int_equal(sh_gr_compile(gr, sh_gr_ref(gr, first), v, &g, &err), SH_OK);
    sh_grammar_unref(g);
    const uint32_t unset = sh_gr_rule(gr, "unset");
    assert_int_equal(sh_gr_compile(gr, sh_gr_pair(gr, a, sh_gr_ref(gr, unset)), v, &g, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "no text at all"));
    sh_gr_destroy(gr);

    gr = sh_gr_create(); /* n rules of two of the one before, each of which may be empty: 2^n ways in */
    sh_gr_expr twice = sh_gr_optional(gr, sh_gr_text(gr, "a", 1));
    for (uint32_t i = 0; i < 40; i++) {
        const uint32_t rule = sh_gr_rule(gr, "twice");
        sh_gr_set_rule(gr, rule, sh_gr_pair(gr, twice, sh_gr_pair(gr, twice, sh_gr_text(gr, "", 0))));
        twice = sh_gr_ref(gr, rule);
    }
    assert_int_equal(sh_gr_compile(gr, twice, v, &g, &err), SH_OK);
    struct sh_matcher *m;
    assert_int_equal(sh_matcher_create(g, &m, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "ambiguous"));
    sh_grammar_unref(g);
    sh_gr_destroy(gr);

    /* (a|b)* a (a|b){500}: a state for each set of places at which an `a` stood */
    gr = sh_gr_create();
    const sh_gr_expr ab = sh_gr_class(gr, &(const struct sh_gr_range){'a', 'b'}, 1, false);
    const sh_gr_expr parts[] = {sh_gr_repeat(gr, ab, 0, SH_GR_UNLIMITED), sh_gr_text(gr, "a", 1), sh_gr_repeat(gr, ab, 500, 500)};
    assert_int_equal(sh_gr_compile(gr, sh_gr_sequence(gr, parts, 3), v, &g, &err), SH_OK);
    assert_int_equal(sh_matcher_create(g, &m, &err), SH_OK);
    struct test_rng rng = {3};
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < 700 && code == SH_OK; i++) {
        const uint32_t *mask;
        uint32_t count;
        int32_t only;
        code = sh_matcher_accept(m, FIRST_BYTE + 'a' + (int32_t)pick(&rng, 2), &err);
        if (code == SH_OK && i % 50 == 0) code = sh_matcher_mask(m, &mask, &count, &only, &err);
        assert_true(g->automaton.bytes < (uint64_t)320 << 20);
    }
    assert_int_equal(code, SH_OK); /* dear, but within the limits */
    sh_matcher_destroy(m);
    sh_grammar_unref(g);
    sh_gr_destroy(gr);

    gr = sh_gr_create(); /* expressions within each other */
    sh_gr_expr deep = sh_gr_text(gr, "a", 1);
    for (uint32_t i = 0; i < 5000; i++) deep = sh_gr_repeat(gr, sh_gr_pair(gr, deep, sh_gr_text(gr, "b", 1)), 0, 7);
    assert_int_equal(sh_gr_compile(gr, deep, v, &g, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "4096"));
    assert_int_equal(sh_gr_text(gr, "a", 1), SH_GR_NEVER); /* and so it stays */
    sh_gr_destroy(gr);

    gr = sh_gr_create();
    char *text = malloc(SH_GR_MAX_EXPRESSIONS + 1);
    assert_non_null(text);
    memset(text, 'a', SH_GR_MAX_EXPRESSIONS + 1);
    const sh_gr_expr most = sh_gr_text(gr, text, SH_GR_MAX_EXPRESSIONS - 10);
    assert_int_equal(sh_gr_compile(gr, most, v, &g, &err), SH_OK);
    sh_grammar_unref(g);
    assert_int_equal(sh_gr_compile(gr, sh_gr_text(gr, text, SH_GR_MAX_EXPRESSIONS + 1), v, &g, &err), SH_ERR_LIMIT);
    free(text);
    sh_gr_destroy(gr);
    sh_vocab_close(v);
}

/* As many texts as an enum may have: they share what they begin with. */
static void many_texts(void **state) {
    (void)state;
    enum { MANY = 20000 };
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    struct sh_gr *gr = sh_gr_create();
    sh_gr_expr *items = calloc(MANY, sizeof *items);
    assert_non_null(items);
    char text[32];
    for (uint32_t i = 0; i < MANY; i++) items[i] = sh_gr_text(gr, text, (size_t)snprintf(text, sizeof text, "item-%u", i * 37));
    struct sh_grammar *g = compiled(gr, sh_gr_choice(gr, items, MANY), v);
    for (uint32_t i = 0; i < 37 * 300; i++) {
        const int n = snprintf(text, sizeof text, "item-%u", i);
        assert_int_equal(judge(g, text, (size_t)n) == 2, i % 37 == 0);
    }
    struct sh_matcher *m = matcher_of(g);
    assert_int_equal(g->automaton.states[m->state].n_configs, 1);
    sh_matcher_destroy(m);
    free(items);
    sh_grammar_unref(g);
    sh_gr_destroy(gr);
    sh_vocab_close(v);
}

/* ---- memory, several matchers, threads --------------------------------------------------------------------------- */

static struct sh_grammar *list_grammar(const struct sh_vocab *v) { /* nested lists of strings */
    struct sh_gr *gr = sh_gr_create();
    const uint32_t value = sh_gr_rule(gr, "value");
    const sh_gr_expr ref = sh_gr_ref(gr, value), quote = sh_gr_text(gr, "\"", 1);
    const sh_gr_expr string[] = {quote, sh_gr_repeat(gr, json_char(gr), 0, 30), quote};
    const sh_gr_expr list[] = {sh_gr_text(gr, "[", 1), ref, sh_gr_repeat(gr, sh_gr_pair(gr, sh_gr_text(gr, ",", 1), ref), 0, 9),
                               sh_gr_text(gr, "]", 1)};
    sh_gr_set_rule(gr, value,
                   sh_gr_choice(gr, (const sh_gr_expr[]){sh_gr_sequence(gr, string, 3), sh_gr_sequence(gr, list, 4)}, 2));
    struct sh_grammar *g = compiled(gr, ref, v);
    sh_gr_destroy(gr);
    return g;
}

/* A random text token by token; a checksum of all its masks. */
static uint64_t follow_random(struct sh_grammar *g, uint64_t seed, uint32_t steps) {
    struct test_rng rng = {seed};
    struct sh_matcher *m = matcher_of(g);
    struct sh_error err;
    uint64_t sum = seed;
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t *mask;
        uint32_t count;
        int32_t only, token = -1;
        assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_OK);
        const uint32_t words_n = g->lexicon->n_words;
        for (uint32_t w = 0; w < words_n; w++) sum = (sum ^ mask[w]) * 0x9E3779B97F4A7C15u + (sum >> 31);
        sum += sh_matcher_can_end(m);
        if (count == 0) break;
        while (token < 0) {
            const int32_t t = (int32_t)pick(&rng, g->lexicon->n_tokens);
            if (mask[t >> 5] >> (t & 31) & 1) token = t;
        }
        assert_int_equal(sh_matcher_accept(m, token, &err), SH_OK);
    }
    sh_matcher_destroy(m);
    return sum;
}

static void begun_anew(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(words, SH_COUNT(words));
    struct sh_grammar *g = list_grammar(v), *small = list_grammar(v);
    small->limit = 0; /* nothing is kept from one call to the next */
    for (uint64_t seed = 1; seed < 20; seed++) assert_int_equal(follow_random(g, seed, 150), follow_random(small, seed, 150));
    struct sh_matcher *one = matcher_of(small), *two = matcher_of(small);
    for (uint32_t i = 0; i < 100; i++) assert_true(feed(one, "[", 1));
    assert_true(feed(two, "[\"a", 3));
    const uint32_t *lent;
    uint32_t count;
    int32_t only;
    struct sh_error err;
    assert_int_equal(sh_matcher_mask(two, &lent, &count, &only, &err), SH_OK);
    uint32_t *copy = malloc(small->lexicon->n_words * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, lent, small->lexicon->n_words * sizeof *copy);
    assert_true(feed(one, "\"\"", 2));
    for (uint32_t i = 0; i < 100; i++) assert_true(feed(one, "]", 1));
    assert_true(sh_matcher_can_end(one));
    assert_memory_equal(copy, lent, small->lexicon->n_words * sizeof *copy); /* lent until `two` is called again */
    assert_true(feed(two, "bc\"]", 4) && sh_matcher_can_end(two));
    free(copy);
    sh_matcher_destroy(one);
    sh_matcher_destroy(two);
    sh_grammar_unref(small);
    sh_grammar_unref(g);
    sh_vocab_close(v);
}

/* What takes too long fails, and the matcher stands where it stood. */
static void too_long(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(words, SH_COUNT(words));
    struct sh_grammar *g = list_grammar(v);
    struct sh_matcher *m = matcher_of(g);
    assert_true(feed(m, "[\"a", 3));
    const uint32_t *mask;
    uint32_t count;
    int32_t only;
    struct sh_error err;
    const uint64_t enough = g->automaton.max_work;
    g->automaton.max_work = 20;
    assert_int_equal(sh_matcher_mask(m, &mask, &count, &only, &err), SH_ERR_LIMIT);
    assert_int_equal(err.code, SH_ERR_LIMIT);
    g->automaton.max_work = 0;
    assert_int_equal(sh_matcher_accept(m, FIRST_PIECE + 23, &err), SH_ERR_LIMIT); /* \n, with steps that are new */
    g->automaton.max_work = enough;
    check_mask(m, v);
    assert_true(feed(m, "\"]", 2) && sh_matcher_can_end(m));
    sh_matcher_destroy(m);
    sh_grammar_unref(g);
    sh_vocab_close(v);
}

struct run {
    struct sh_grammar *grammar;
    const uint64_t *want;
    uint32_t wrong;
};
enum { RUNS = 24 };

static void *run_thread(void *data) {
    struct run *r = data;
    for (uint64_t seed = 0; seed < RUNS; seed++) r->wrong += follow_random(r->grammar, seed + 1, 120) != r->want[seed];
    return NULL;
}

static void threads(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(words, SH_COUNT(words));
    struct sh_grammar *alone = list_grammar(v), *shared = list_grammar(v);
    shared->limit = 1 << 17; /* so that it is begun anew now and then */
    uint64_t want[RUNS];
    for (uint64_t seed = 0; seed < RUNS; seed++) want[seed] = follow_random(alone, seed + 1, 120);
    pthread_t ids[4];
    struct run runs[4];
    for (uint32_t i = 0; i < 4; i++) {
        runs[i] = (struct run){shared, want, 0};
        assert_int_equal(pthread_create(&ids[i], NULL, run_thread, &runs[i]), 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        pthread_join(ids[i], NULL);
        assert_int_equal(runs[i].wrong, 0);
    }
    sh_grammar_unref(alone);
    sh_grammar_unref(shared);
    sh_vocab_close(v);
}

static void remembered(void **state) {
    (void)state;
    struct sh_vocab *v = vocab_of(letters, SH_COUNT(letters));
    assert_null(sh_grammar_recall(v, "x", 1));
    struct sh_grammar *first = list_grammar(v);
    sh_grammar_remember(v, "x", 1, first);
    sh_grammar_remember(v, "", 0, first);
    assert_int_equal(atomic_load(&first->refs), 3);
    struct sh_grammar *again = sh_grammar_recall(v, "x", 1);
    assert_ptr_equal(again, first);
    sh_grammar_unref(again);
    assert_null(sh_grammar_recall(v, "xy", 2));
    for (uint32_t i = 0; i < 40; i++) { /* the one used all the time stays, the one never used goes */
        struct sh_grammar *other = list_grammar(v);
        sh_grammar_remember(v, &i, sizeof i, other);
        sh_grammar_unref(other);
        again = sh_grammar_recall(v, "x", 1);
        assert_ptr_equal(again, first);
        sh_grammar_unref(again);
    }
    assert_null(sh_grammar_recall(v, "", 0));
    assert_int_equal(atomic_load(&first->refs), 2);
    /* what idle grammars hold is given back, what one in use needs is made again */
    first->tables.hot = 0;
    const uint64_t sum = follow_random(first, 5, 100), held = atomic_load(first->lexicon->bytes);
    assert_true(first->tables.n > 0 && first->counted > 0 && held >= first->counted);
    atomic_fetch_add(first->lexicon->bytes, SH_GR_ALL_BYTES);
    first->automaton.bytes += SH_GR_SHARE_BYTES;
    sh_gr_trim(first);
    assert_int_equal(first->tables.n, 0);
    assert_true(atomic_load(first->lexicon->bytes) < held + SH_GR_ALL_BYTES);
    atomic_fetch_sub(first->lexicon->bytes, SH_GR_ALL_BYTES);
    assert_int_equal(follow_random(first, 5, 100), sum);
    sh_grammar_unref(first);
    sh_vocab_close(v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code_points),        cmocka_unit_test(strings),
        cmocka_unit_test(real_vocabularies),  cmocka_unit_test(refused),
        cmocka_unit_test(many_texts),         cmocka_unit_test(begun_anew),
        cmocka_unit_test(too_long),           cmocka_unit_test(threads),
        cmocka_unit_test(remembered),         cmocka_unit_test(nested),
        cmocka_unit_test(counters),           cmocka_unit_test(tokens),
        cmocka_unit_test(random_expressions),
    };
    return cmocka_run_group_tests_name("grammar_core", tests, NULL, NULL);
}
