/* fuzz_grammar.c - any bytes as a grammar of the kind that the first byte names: gbnf, schema, regex, choice. What compiles is followed
 * for some tokens that its masks allow, chosen by the bytes themselves; it must never lead to where nothing goes on. */
#include "compute/gguf/write.h"
#include "compute/text/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { STEPS = 24, FIRST_BYTE = 3, FIRST_PIECE = 259 };

/* <unk> <s> </s>, all bytes, some pieces. */
static struct sh_vocab *make_vocab(void) {
    static const char *const pieces[] = {"ab", "the", "\xE2\x96\x81", "\xE2\x96\x81the", "\":", "\",", "{\"", "\"}", "]}", "[[", "12", "345", "true", "null",
                                         "\xC3\xA9", "\xE6\x97\xA5\xE6\x9C\xAC", "a\"", "aaaa", "0123456789", "\\n", "-0", ".5"};
    enum { TOTAL = FIRST_PIECE + sizeof pieces / sizeof *pieces };
    static struct sh_str tokens[TOTAL];
    static char bytes[256][8];
    static float scores[TOTAL];
    static int32_t types[TOTAL] = {SH_TOKEN_UNKNOWN, SH_TOKEN_CONTROL, SH_TOKEN_CONTROL};
    static const char *const first[] = {"<unk>", "<s>", "</s>"};
    for (unsigned i = 0; i < TOTAL; i++) {
        const char *text = i < FIRST_BYTE ? first[i] : i < FIRST_PIECE ? bytes[i - FIRST_BYTE] : pieces[i - FIRST_PIECE];
        if (i >= FIRST_BYTE) types[i] = i < FIRST_PIECE ? SH_TOKEN_BYTE : SH_TOKEN_NORMAL;
        if (types[i] == SH_TOKEN_BYTE) snprintf(bytes[i - FIRST_BYTE], sizeof *bytes, "<0x%02X>", i - FIRST_BYTE);
        tokens[i] = (struct sh_str){text, strlen(text)};
    }
    char path[] = "/tmp/fuzz_grammar.XXXXXX";
    const int fd = mkstemp(path);
    struct sh_gguf_writer *w;
    struct sh_error err;
    struct sh_vocab *v;
    if (fd < 0 || sh_gguf_writer_create(path, 3, 0, &w, &err)) abort();
    close(fd);
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, TOTAL);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, TOTAL);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, TOTAL);
    sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", 2);
    if (sh_gguf_writer_begin(w, &err) || sh_gguf_writer_finish(w, &err)) abort();
    sh_gguf_writer_destroy(w);
    if (sh_vocab_open(path, &v, &err)) abort();
    unlink(path);
    return v;
}

static void follow(struct sh_grammar *grammar, const struct sh_vocab *vocab, const uint8_t *data, size_t size) {
    struct sh_matcher *m;
    struct sh_error err = {0};
    if (sh_matcher_create(grammar, &m, &err)) {
        if (!err.message[0]) abort();
        return;
    }
    uint64_t choice = size;
    for (unsigned step = 0; step < STEPS; step++) {
        const uint32_t *mask;
        uint32_t count, bits = 0;
        int32_t only, token = -1;
        if (sh_matcher_mask(m, &mask, &count, &only, &err)) {
            if (!err.message[0]) abort();
            break;
        }
        const uint32_t n = sh_vocab_size(vocab);
        for (uint32_t i = 0; i < n; i++) bits += mask[i >> 5] >> (i & 31) & 1;
        if (bits != count || (count == 1) != (only >= 0) || (count == 0 && !sh_matcher_can_end(m))) abort();
        if (count == 0) break;
        choice = (choice ^ data[step % size]) * 0x9E3779B97F4A7C15u + step;
        uint32_t skip = (uint32_t)((choice >> 32) % count);
        for (uint32_t i = 0; i < n; i++)
            if ((mask[i >> 5] >> (i & 31) & 1) && skip-- == 0) token = (int32_t)i;
        if (only >= 0 && only != token) abort();
        if (sh_matcher_accept(m, token, &err)) {
            if (err.code == SH_ERR_INVALID) abort(); /* the mask allowed it */
            break;
        }
    }
    sh_matcher_destroy(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct sh_vocab *vocab;
    static const enum sh_grammar_kind kinds[] = {SH_GRAMMAR_GBNF, SH_GRAMMAR_SCHEMA, SH_GRAMMAR_REGEX, SH_GRAMMAR_CHOICE};
    if (vocab == NULL) vocab = make_vocab();
    if (size == 0) return 0;
    const enum sh_grammar_kind kind = kinds[data[0] % 4];
    struct sh_grammar *grammar;
    struct sh_error err = {0};
    if (sh_grammar_create(vocab, kind, (const char *)data + 1, size - 1, &grammar, &err)) {
        if (!err.message[0] || grammar != NULL) abort();
        return 0;
    }
    follow(grammar, vocab, data, size);
    sh_grammar_unref(grammar);
    return 0;
}
