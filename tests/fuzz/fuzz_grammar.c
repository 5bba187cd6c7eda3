/* fuzz_grammar.c - the first byte is the kind of grammar, the rest, up to a NUL, its text; what is behind the NUL chooses tokens. What is
 * taken must lead on: from every place that masks lead to there is a token, or the text may end; what masks leave out is refused. */
#include "compute/engine.h"

#include "compute/gguf/write.h"
#include "compute/grammar/automaton.h"
#include "compute/text/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_TOKENS = 270, MAX_TOKENS = 60 };

/* The bytes, and a few pieces. */
static struct sh_vocab *make_vocab(void) {
    static const char *const pieces[] = {"<unk>", "<call>", "</s>", "{\"", "\":", "\",", "12", "\\u0",
                                         "\xC3",  "]}",     "  ",   "ab",  "}}",  "a\"", "-1"};
    static struct sh_str tokens[N_TOKENS];
    static float scores[N_TOKENS];
    static int32_t types[N_TOKENS];
    static char bytes[256][8];
    uint32_t n = 0;
    for (uint32_t i = 0; i < sizeof pieces / sizeof *pieces && n < N_TOKENS; i++) {
        tokens[n] = (struct sh_str){pieces[i], strlen(pieces[i])};
        types[n++] = i == 0 ? SH_TOKEN_UNKNOWN : i < 3 ? SH_TOKEN_CONTROL : SH_TOKEN_NORMAL;
    }
    for (uint32_t i = 0; n < N_TOKENS; i++) {
        snprintf(bytes[i], sizeof bytes[i], "<0x%02X>", i);
        tokens[n] = (struct sh_str){bytes[i], 6};
        types[n++] = SH_TOKEN_BYTE;
    }
    char path[] = "/tmp/fuzz_grammar_XXXXXX";
    struct sh_gguf_writer *w;
    struct sh_error err;
    struct sh_vocab *vocab;
    const int fd = mkstemp(path);
    if (fd < 0 || sh_gguf_writer_create(path, 3, 0, &w, &err) != SH_OK) abort();
    close(fd);
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, N_TOKENS);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, N_TOKENS);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, N_TOKENS);
    sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", 2);
    if (sh_gguf_writer_begin(w, &err) != SH_OK || sh_gguf_writer_finish(w, &err) != SH_OK) abort();
    sh_gguf_writer_destroy(w);
    if (sh_vocab_open(path, &vocab, &err) != SH_OK) abort();
    unlink(path);
    return vocab;
}

static void follow(struct sh_grammar *grammar, const uint8_t *choices, size_t n) {
    struct sh_matcher *m;
    struct sh_error err = {0};
    if (sh_matcher_create(grammar, &m, &err) != SH_OK) {
        if (err.code != SH_ERR_LIMIT) abort();
        return;
    }
    for (uint32_t i = 0; i < MAX_TOKENS; i++) {
        const uint32_t *mask;
        uint32_t count, want;
        int32_t only, pick = -1;
        if (sh_matcher_mask(m, &mask, &count, &only, &err) != SH_OK) {
            if (err.code != SH_ERR_LIMIT) abort();
            break;
        }
        if (count == 0 && !sh_matcher_can_end(m)) abort();
        if (count == 0) break;
        want = (i < n ? choices[i] : i * 7) % count;
        for (int32_t t = 0; t < N_TOKENS && pick < 0; t++) {
            if ((mask[t >> 5] >> (t & 31) & 1) && want-- == 0) pick = t;
        }
        if (pick < 0 || (count == 1) != (only >= 0) || (only >= 0 && only != pick)) abort();
        const int32_t other = (int32_t)(i * 131 + (n > 0 ? choices[i % n] : 0u) * 7u) % N_TOKENS;
        if (!(mask[other >> 5] >> (other & 31) & 1) && sh_matcher_accept(m, other, &err) == SH_OK) abort();
        if (sh_matcher_accept(m, pick, &err) != SH_OK) {
            if (err.code != SH_ERR_LIMIT) abort();
            break;
        }
    }
    sh_matcher_destroy(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct sh_vocab *vocab;
    if (vocab == NULL) vocab = make_vocab();
    if (size == 0) return 0;
    const char *const letters = "gsorc", *letter = memchr(letters, data[0], 5);
    const enum sh_grammar_kind kind = letter != NULL ? (enum sh_grammar_kind)(SH_GRAMMAR_GBNF + (letter - letters))
                                                     : (enum sh_grammar_kind)(SH_GRAMMAR_GBNF + data[0] % 5);
    const uint8_t *nul = memchr(data + 1, 0, size - 1);
    const size_t length = nul != NULL ? (size_t)(nul - data) - 1 : size - 1;
    struct sh_grammar *grammar;
    struct sh_error err = {0};
    const enum sh_code code = sh_grammar_create(vocab, kind, (const char *)data + 1, length, &grammar, &err);
    if (code != SH_OK) {
        if (code != err.code || !err.message[0]) abort();
        if (code != SH_ERR_INVALID && code != SH_ERR_UNSUPPORTED && code != SH_ERR_LIMIT) abort();
        return 0;
    }
    if (data[size - 1] % 2 != 0) grammar->tables.hot = 2; /* tables although the vocabulary is small */
    follow(grammar, nul != NULL ? nul + 1 : data, nul != NULL ? size - length - 2 : size);
    sh_grammar_unref(grammar);
    return 0;
}
