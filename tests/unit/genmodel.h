/*
 * genmodel.h - writes model files with seeded random weights: of any size and type, with metadata and a vocabulary that works.
 *
 * For tests (in this process, into test_scratch) and, as the program tests/tools/genmodel, for benches. Weights are drawn so
 * that activations and logits stay sane: matrices with variance 1 / columns, those that end a residual branch smaller by
 * sqrt(2 layers). Quantised blocks are drawn directly (uniform quants, random scales of that variance), so a gigabyte takes about
 * a second, and the model is never in memory as a whole. A tensor's values depend on the seed and its name alone.
 */
#ifndef SHIMMY_TESTS_GENMODEL_H
#define SHIMMY_TESTS_GENMODEL_H

#include "compute/gguf/gguf.h"

enum genmodel_vocab { GENMODEL_SPM, GENMODEL_BPE };

struct genmodel_template {
    const char *name, *text; /* tokenizer.chat_template.NAME; name NULL: tokenizer.chat_template */
};

struct genmodel_params {
    const char *arch; /* "llama" */
    const char *name; /* general.name */
    uint32_t layers, embd, heads, kv_heads, head_dim, ff, vocab, context;
    uint32_t experts, experts_used; /* 0: dense; else so many experts of width ff each, and how many a token uses */
    /* A type of the table ("Q4_0", "F16", ...) for all matrices, or a mix: "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", with more bits
     * where the usual quantisers spend them */
    const char *type;
    const char *head_type, *embd_type; /* NULL: as `type` has it (Q6_K for the head below 6 bits where embd allows) */
    uint64_t seed;
    float rope_base;
    bool tied;       /* no output.weight */
    bool bias;       /* biases on attention q, k, v and output */
    bool rope_freqs; /* a rope_freqs.weight tensor, with factors as Llama 3.1 has them */
    enum genmodel_vocab vocab_kind;
    const char
        *vocab_from; /* a GGUF file whose tokenizer.* entries are taken over instead: `vocab` becomes their number of tokens */
    /* Tokens of several characters as real vocabularies have them: JSON's punctuation, digits, words, parts of UTF-8 sequences. Else there
     * are bytes and strings of a to z alone */
    bool pieces;
    const char *const *control, *const *user_defined; /* added to the end of the vocabulary, as given; lent, like templates */
    uint32_t n_control, n_user_defined;
    const char *eos; /* one of the control tokens; NULL: a token of its own */
    const struct genmodel_template *templates;
    uint32_t n_templates;
    uint32_t shards;    /* 0 or 1: one file; else NAME-00001-of-0000N.gguf next to each other */
    uint32_t version;   /* of the format: 2 or 3; 0 = 3 */
    uint32_t alignment; /* 0 = 32 */
};

/* A small sensible model: llama, 2 layers of 256 / 512, 4 heads (2 for keys and values) of 64, vocabulary 512, context 256,
 * Q8_0. */
struct genmodel_params genmodel_defaults(void);

/* Writes `path`. With shards the names are derived from it; genmodel_shard_path tells them. */
enum sh_code genmodel_write(const char *path, const struct genmodel_params *params, struct sh_error *err);
/* "DIR/NAME.gguf", shard i of n (from 0) -> "DIR/NAME-00001-of-0000N.gguf" in buf. For n <= 1 the path itself. */
void genmodel_shard_path(const char *path, uint32_t i, uint32_t n, char *buf, size_t cap);

/* Fills `count` elements of a tensor's data as genmodel does: `type` must be computable. Deterministic in seed. */
void genmodel_fill(uint32_t type, uint64_t seed, float deviation, void *dst, uint64_t count);

#endif
