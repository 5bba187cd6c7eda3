#include "tests/unit/grammar_texts.h"

#include "compute/gguf/write.h"
#include "compute/text/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const pieces[] = {
    "{\"",  "\":",  "\", \"",   "\"}",      "[1",       "]]",    "}}",    "},{",   "12",     "34",  "00",   "-1",    ".5",
    "e1",   "true", "null",     "als",      "the",      "ing",   "ab",    "abc",   "foo",    "x\"", "\\\"", "\\u00", "\\n",
    "\xC3", "\xA9", "\xC3\xA9", "\xF0\x9F", "\x98\x80", "a\xC3", "  ",    "\n ",   "-0",     "20",  "24-",  "T1",    ":00",
    "Z\"",  "::",   "@a.",      "b.c",      "://",      "name",  "id\":", "\"a\"", "\"b\":", ",\"", "]}",   "\n\n",  "\t",
};
enum { N_TOKENS = GRAMMAR_CALL + 1 + SH_COUNT(pieces) };

static struct sh_vocab *vocab;

static void close_vocab(void) { sh_vocab_close(vocab); }

const struct sh_vocab *grammar_vocab(void) {
    if (vocab != NULL) return vocab;
    static struct sh_str tokens[N_TOKENS];
    static float scores[N_TOKENS];
    static int32_t types[N_TOKENS];
    static char bytes[256][8], texts[SH_COUNT(pieces)][32];
    static const char *const special[] = {"<unk>", "<think>", "</s>"};
    for (uint32_t i = 0; i < N_TOKENS; i++) {
        if (i < GRAMMAR_FIRST_BYTE) {
            tokens[i] = (struct sh_str){special[i], strlen(special[i])};
            types[i] = i == 0 ? SH_TOKEN_UNKNOWN : SH_TOKEN_CONTROL;
        } else if (i < GRAMMAR_CALL) {
            snprintf(bytes[i - GRAMMAR_FIRST_BYTE], 8, "<0x%02X>", i - GRAMMAR_FIRST_BYTE);
            tokens[i] = (struct sh_str){bytes[i - GRAMMAR_FIRST_BYTE], 6};
            types[i] = SH_TOKEN_BYTE;
        } else if (i == GRAMMAR_CALL) {
            tokens[i] = (struct sh_str){"<call>", 6};
            types[i] = SH_TOKEN_USER_DEFINED;
        } else { /* blanks as SentencePiece writes them */
            char *to = texts[i - GRAMMAR_CALL - 1];
            for (const char *p = pieces[i - GRAMMAR_CALL - 1]; *p != 0; p++) {
                if (*p == ' ') memcpy(to, "\xE2\x96\x81", 3), to += 3;
                else *to++ = *p;
            }
            tokens[i] = (struct sh_str){texts[i - GRAMMAR_CALL - 1], (size_t)(to - texts[i - GRAMMAR_CALL - 1])};
            types[i] = SH_TOKEN_NORMAL;
        }
    }
    const char *path = test_scratch("grammar.gguf");
    struct sh_gguf_writer *w;
    struct sh_error err;
    assert_int_equal(sh_gguf_writer_create(path, 3, 0, &w, &err), SH_OK);
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, N_TOKENS);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, N_TOKENS);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, N_TOKENS);
    sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", 2);
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_OK);
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_OK);
    sh_gguf_writer_destroy(w);
    if (sh_vocab_open(path, &vocab, &err) != SH_OK) fail_msg("%s", err.message);
    atexit(close_vocab);
    return vocab;
}

struct sh_grammar *grammar_of(enum sh_grammar_kind kind, const char *text) {
    struct sh_grammar *g;
    struct sh_error err = {0};
    if (sh_grammar_create(grammar_vocab(), kind, text, strlen(text), &g, &err) != SH_OK) fail_msg("%s: %s", text, err.message);
    return g;
}

void grammar_refused_bytes(enum sh_grammar_kind kind, const char *text, size_t length, enum sh_code code, const char *part) {
    struct sh_grammar *g;
    struct sh_error err = {0};
    const enum sh_code got = sh_grammar_create(grammar_vocab(), kind, text, length, &g, &err);
    if (got == SH_OK) {
        sh_grammar_unref(g);
        fail_msg("taken, expected \"%s\": %.200s", part, text);
    }
    if (got != code || err.code != code || strstr(err.message, part) == NULL) {
        fail_msg("%.200s: code %d, \"%s\"; expected code %d, \"%s\"", text, got, err.message, code, part);
    }
}

void grammar_refused(enum sh_grammar_kind kind, const char *text, enum sh_code code, const char *part) {
    grammar_refused_bytes(kind, text, strlen(text), code, part);
}

static struct sh_matcher *matcher_of(struct sh_grammar *g) {
    struct sh_matcher *m;
    struct sh_error err = {0};
    if (sh_matcher_create(g, &m, &err) != SH_OK) fail_msg("%s", err.message);
    return m;
}

enum grammar_verdict grammar_judge(struct sh_grammar *grammar, const char *text, size_t length) {
    struct sh_matcher *m = matcher_of(grammar);
    struct sh_error err;
    size_t at = 0;
    while (at < length && sh_matcher_accept(m, GRAMMAR_FIRST_BYTE + (uint8_t)text[at], &err) == SH_OK) at++;
    const enum grammar_verdict verdict = at < length ? GRAMMAR_NO : sh_matcher_can_end(m) ? GRAMMAR_YES : GRAMMAR_BEGINNING;
    sh_matcher_destroy(m);
    return verdict;
}

void grammar_check(enum sh_grammar_kind kind, const char *text, const char *const *yes, const char *const *no) {
    struct sh_grammar *g = grammar_of(kind, text);
    for (; yes != NULL && *yes != NULL; yes++) {
        for (size_t n = 0; n < strlen(*yes); n++) {
            if (grammar_judge(g, *yes, n) == GRAMMAR_NO) fail_msg("%s: does not take %zu bytes of: %s", text, n, *yes);
        }
        if (grammar_judge(g, *yes, strlen(*yes)) != GRAMMAR_YES) fail_msg("%s: does not take: %s", text, *yes);
    }
    for (; no != NULL && *no != NULL; no++) {
        if (grammar_judge(g, *no, strlen(*no)) == GRAMMAR_YES) fail_msg("%s: takes: %s", text, *no);
    }
    sh_grammar_unref(g);
}

/* How much a token is liked: endings more than all else, so that walks end. */
static uint32_t weight(int32_t token) {
    size_t n;
    const char *piece = sh_vocab_piece(vocab, token, true, &n);
    return n > 0 && strchr("\"]}", piece[0]) != NULL ? 40 : n > 1 ? 4 : 1;
}

char *grammar_walk(struct sh_grammar *grammar, struct test_rng *rng, size_t most, size_t *length, bool *whole) {
    struct sh_matcher *m = matcher_of(grammar);
    struct sh_error err = {0};
    char *out = malloc(most + 64);
    assert_non_null(out);
    *length = 0;
    *whole = false;
    while (*length < most) {
        const uint32_t *mask;
        uint32_t count;
        int32_t only;
        if (sh_matcher_mask(m, &mask, &count, &only, &err) != SH_OK) fail_msg("%s", err.message);
        const bool can_end = sh_matcher_can_end(m);
        if (count == 0 && !can_end) fail_msg("a dead end behind: %.*s", (int)*length, out);
        if (count == 0 || (can_end && test_random(rng) % 4 == 0)) {
            *whole = true;
            break;
        }
        uint64_t total = 0;
        for (int32_t t = 0; t < N_TOKENS; t++) total += mask[t >> 5] >> (t & 31) & 1 ? weight(t) : 0;
        uint64_t at = test_random(rng) % total;
        int32_t pick = 0;
        for (int32_t t = 0; t < N_TOKENS; t++) {
            if (!(mask[t >> 5] >> (t & 31) & 1)) continue;
            pick = t;
            if (at < weight(t)) break;
            at -= weight(t);
        }
        if (sh_matcher_accept(m, pick, &err) != SH_OK) fail_msg("token %d of the mask: %s", pick, err.message);
        size_t n;
        const char *piece = sh_vocab_piece(vocab, pick, true, &n);
        assert_true(n < 64);
        memcpy(out + *length, piece, n);
        *length += n;
    }
    out[*length] = 0;
    sh_matcher_destroy(m);
    return out;
}
