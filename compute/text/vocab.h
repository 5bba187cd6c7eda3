/*
 * vocab.h - inside view of a vocabulary, for the files of this folder.
 *
 * A *piece* is a string of bytes that a tokenizer can produce. Pieces 0..n_tokens-1 are the tokens; behind them stand strings
 * that occur only as intermediate results of merges (byte-level BPE). For SPM and Unigram a piece's key is the token's text (spaces
 * written as U+2581); for byte-level BPE it is the bytes that the text stands for, so that tokenising never encodes anything. For
 * WordPiece it is the token's text, in which U+2581 marks the beginning of a word (files have no "##" before the pieces that
 * continue one).
 *
 * Immutable after creation but for what `kept` locks: any thread. What a call needs besides (heaps, match data) it allocates itself.
 */
#ifndef SHIMMY_VOCAB_H
#define SHIMMY_VOCAB_H

#include "compute/text/text.h"

#include <pthread.h>

/* Numbered as in the file format. */
enum sh_token_type {
    SH_TOKEN_UNDEFINED = 0,
    SH_TOKEN_NORMAL = 1,
    SH_TOKEN_UNKNOWN = 2,
    SH_TOKEN_CONTROL = 3,
    SH_TOKEN_USER_DEFINED = 4,
    SH_TOKEN_UNUSED = 5,
    SH_TOKEN_BYTE = 6,
};

/* Flags of a token. */
enum {
    SH_TOKEN_END = 1,         /* ends a generation */
    SH_TOKEN_STRIP_RIGHT = 2, /* swallows the white space that follows it in a text */
    SH_TOKEN_STRUCTURAL = 4,  /* marks the turns of a chat: never taken from a message's text, whatever its type */
};

enum sh_vocab_model { SH_VOCAB_SPM, SH_VOCAB_BPE, SH_VOCAB_WPM, SH_VOCAB_UNIGRAM };

/* String -> number, open addressing; the strings belong to the vocabulary's pool. */
struct sh_map_slot {
    uint32_t hash;
    int32_t value; /* -1: free */
};
struct sh_map {
    struct sh_map_slot *slots;
    uint32_t mask; /* number of slots - 1 */
    uint32_t used;
};

struct sh_span { /* of a pool */
    uint32_t at, length;
};

/* Special tokens of one length: a text is searched once for each group, longest first. Those of more than 512 bytes are in none:
 * they are never found in a text. */
struct sh_special_group {
    uint32_t length;
    uint64_t first[4], last[4]; /* which first and last bytes occur: bit sets that spare most hash look-ups */
};

struct sh_merge {        /* open addressing by the pair */
    int32_t left, right; /* pieces; left -1: free */
    int32_t result;      /* piece */
    uint32_t rank;
};

struct sh_vocab_template { /* both NUL-terminated */
    char *name; /* "default", or NAME of tokenizer.chat_template.NAME */
    char *text;
    size_t length;
};

struct sh_pretokenizer; /* pretokenizer.h */
struct sh_unigram;      /* unigram.c */

/* What rooms above this one make of a vocabulary when it is first needed, and keep with it. */
struct sh_vocab_kept {
    pthread_mutex_t lock;
    void *data;             /* NULL: nothing yet; under the lock */
    void (*destroy)(void *data); /* called with the vocabulary's end, unless data is NULL */
};

struct sh_vocab {
    enum sh_vocab_model model;
    uint32_t n_tokens, n_pieces;

    char *pool; /* token texts, keys of pieces, rendered pieces */
    uint64_t pool_used, pool_capacity;

    struct sh_span *texts;    /* [n_tokens] as in the file */
    struct sh_span *keys;     /* [n_pieces] */
    struct sh_span *rendered; /* [n_tokens] the bytes that a token generates, special ones written out */
    uint32_t pieces_capacity;
    float *scores;                  /* [n_tokens] */
    uint8_t *types, *flags;         /* [n_tokens] */
    uint32_t max_key, max_rendered; /* bytes */

    struct sh_map by_key;               /* pieces; no control tokens, so that plain text can never become one */
    struct sh_map by_special;           /* control, unknown and user-defined tokens by text */
    struct sh_special_group *groups[2]; /* [0] user-defined tokens, [1] control and unknown ones too; length descending */
    uint32_t n_groups[2];

    int32_t bos, eos, eot, eom, unk; /* -1: none */
    bool add_bos, add_eos, add_space_prefix;

    /* SPM */
    int32_t byte_token[256]; /* BPE: piece of each byte; Unigram: -1 where there is none */
    bool word_cut;           /* no token continues over the beginning of a space run, so words are merged one by one */

    /* BPE */
    struct sh_merge *merges;
    uint32_t merge_mask;
    bool ignore_merges;
    char pre[64];
    struct sh_pretokenizer *pretokenizer;

    /* WordPiece */
    int32_t *sorted; /* [n_sorted] pieces by their bytes */
    uint32_t n_sorted;
    uint32_t *firsts; /* [2][257] where those with a byte at their beginning, and with one behind a mark, begin in `sorted` */
    int32_t mark_piece; /* the longest that a mark begins with; -1: none */
    bool lower_case, strip_accents;

    struct sh_unigram *unigram;

    struct sh_vocab_template *templates; /* of chats, the default first */
    uint32_t n_templates;

    struct sh_vocab_kept *kept;
};

static inline const char *sh_span_ptr(const struct sh_vocab *v, struct sh_span s) { return v->pool + s.at; }

/* What stands for a byte without a token: the unknown token, unless the file names a control token so (often EOS). -1: none. */
static inline int32_t sh_vocab_fallback(const struct sh_vocab *v) {
    return v->unk >= 0 && v->types[v->unk] != SH_TOKEN_CONTROL ? v->unk : -1;
}

/* -1: not there. */
int32_t sh_vocab_find_key(const struct sh_vocab *v, const char *key, size_t length);
int32_t sh_vocab_find_special(const struct sh_vocab *v, const char *text, size_t length);
int32_t sh_vocab_find_text(const struct sh_vocab *v, const char *text); /* a token of any type by its text; slow, for set-up */

/* The piece that a merge gives, or -1; *rank is the merge's place in the list. */
int32_t sh_vocab_find_merge(const struct sh_vocab *v, int32_t left, int32_t right, uint32_t *rank);

/* Growing list of token ids. */
struct sh_ids {
    int32_t *items;
    uint32_t count, capacity;
};
bool sh_ids_push(struct sh_ids *ids, int32_t id); /* false: no memory */

/* Tokenisers of plain text (no special tokens), appending to ids. `before` for SPM: a space is put before the text. */
enum sh_code sh_spm_encode(const struct sh_vocab *v, const char *text, size_t length, bool before, struct sh_ids *ids,
                           struct sh_error *err);

/* For qsort_r over token numbers, with the vocabulary: by the bytes of their keys, of equal ones by number. */
int sh_vocab_compare_keys(const void *a, const void *b, void *vocab);

/* Sorts the pieces, once; false: no memory. */
bool sh_wpm_prepare(struct sh_vocab *v);
enum sh_code sh_wpm_encode(const struct sh_vocab *v, const char *text, size_t length, struct sh_ids *ids, struct sh_error *err);

/* Makes v->unigram of the tokens and the file's character map, once. */
enum sh_code sh_unigram_prepare(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err);
void sh_unigram_destroy(struct sh_unigram *unigram);
enum sh_code sh_unigram_encode(const struct sh_vocab *v, const char *text, size_t length, struct sh_ids *ids,
                                struct sh_error *err);

/* BPE keeps its scratch over the fragments of one call. */
struct sh_bpe_scratch;
enum sh_code sh_bpe_encode(const struct sh_vocab *v, const char *text, size_t length, struct sh_bpe_scratch **scratch,
                           struct sh_ids *ids, struct sh_error *err);
void sh_bpe_scratch_free(struct sh_bpe_scratch *scratch);

/* sh_tokenize with the parts of a text in which only user-defined tokens are parsed (n_parts 0: flags alone decide). */
enum sh_code sh_tokenize_parts(const struct sh_vocab *v, const char *text, size_t length, uint32_t flags,
                               const struct sh_chat_part *parts, uint32_t n_parts, struct sh_ids *ids, struct sh_error *err);

#endif
