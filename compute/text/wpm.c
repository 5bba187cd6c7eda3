/*
 * wpm.c - WordPiece, as BERT's tokenizer does it. The basic tokenizer first: control characters and U+FFFD are dropped, white space
 * parts words, punctuation (the symbols of ASCII too) and CJK ideographs are words of their own; where the file wants it, a letter loses
 * its accents and its case. Then each word, written with U+2581 before it, is taken apart from the left, always by the longest
 * piece that fits; a word that cannot be taken apart to its end is one unknown token.
 *
 * A code point is replaced by the first one of its canonical decomposition and combining marks of the text itself stay, as the
 * files' reference engine has it: texts that are composed (NFC), as nearly all are, come out as with BERT's own tokenizer.
 *
 * Pieces are sorted by their bytes, and the longest one is found by narrowing a range byte by byte: O(length of the longest piece *
 * log of their number) per piece, whatever the text is. The first and widest steps, to the mark and the byte behind it, or to a first
 * byte in the middle of a word, are a table.
 */
#include "compute/text/vocab.h"

#include "compute/text/unicode.h"
#include "compute/text/utf8.h"

#include <stdlib.h>

enum { MAX_PIECE = 1024 }; /* bytes; a longer "piece" is none that a word could be made of */

static const char word_mark[] = "\xE2\x96\x81";
enum { MARK = sizeof word_mark - 1 };

/* The byte of a sorted piece at `depth`, -1 where it is shorter. */
static int byte_at(const struct sh_vocab *v, uint32_t index, uint32_t depth) {
    const struct sh_span key = v->keys[v->sorted[index]];
    return depth < key.length ? (uint8_t)sh_span_ptr(v, key)[depth] : -1;
}

/* The first of sorted[low, high) whose byte at `depth` is at least `byte`. */
static uint32_t first_from(const struct sh_vocab *v, uint32_t low, uint32_t high, uint32_t depth, int byte) {
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (byte_at(v, middle, depth) < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The piece of sorted[low, high) that ends behind `depth`, if there is one; of equal texts the last, as in the other vocabularies. */
static void ended_at(const struct sh_vocab *v, uint32_t low, uint32_t high, uint32_t depth, int32_t *piece) {
    for (uint32_t i = low; i < high && v->keys[v->sorted[i]].length == depth + 1; i++) *piece = v->sorted[i];
}

bool sh_wpm_prepare(struct sh_vocab *v) {
    v->sorted = sh_calloc(v->n_tokens, sizeof *v->sorted);
    v->firsts = sh_calloc(2 * 257, sizeof *v->firsts);
    if (v->sorted == NULL || v->firsts == NULL) return false;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const uint32_t length = v->keys[i].length;
        if (length > 0 && length <= MAX_PIECE) v->sorted[v->n_sorted++] = (int32_t)i;
    }
    if (v->n_sorted > 0) qsort_r(v->sorted, v->n_sorted, sizeof *v->sorted, sh_vocab_compare_keys, v);
    uint32_t low = 0, high = v->n_sorted;
    v->mark_piece = -1;
    for (int byte = 0; byte <= 256; byte++) v->firsts[byte] = first_from(v, low, high, 0, byte);
    for (uint32_t depth = 0; depth < MARK; depth++) {
        const int byte = (uint8_t)word_mark[depth];
        low = first_from(v, low, high, depth, byte);
        high = first_from(v, low, high, depth, byte + 1);
        ended_at(v, low, high, depth, &v->mark_piece);
    }
    for (int byte = 0; byte <= 256; byte++) v->firsts[257 + byte] = first_from(v, low, high, MARK, byte);
    return true;
}

/* The longest piece that the text begins with; -1: none. */
static int32_t longest_piece(const struct sh_vocab *v, const char *text, uint32_t length) {
    const bool marked = length > MARK && memcmp(text, word_mark, MARK) == 0;
    int32_t found = marked ? v->mark_piece : -1;
    const uint32_t begin = marked ? MARK : 0;
    const uint32_t *const firsts = v->firsts + (marked ? 257 : 0) + (uint8_t)text[begin];
    uint32_t low = firsts[0], high = firsts[1];
    for (uint32_t depth = begin; depth < length && low < high; depth++) {
        if (depth > begin) {
            const int byte = (uint8_t)text[depth];
            low = first_from(v, low, high, depth, byte);
            high = first_from(v, low, high, depth, byte + 1);
        }
        ended_at(v, low, high, depth, &found);
    }
    return found;
}

struct word {
    char *bytes;
    uint32_t length, capacity;
};

static bool append(struct word *word, uint32_t code_point) {
    if (!sh_grow((void **)&word->bytes, &word->capacity, word->length + MARK + 4, 1)) return false;
    if (word->length == 0) {
        memcpy(word->bytes, word_mark, MARK);
        word->length = MARK;
    }
    word->length += (uint32_t)sh_utf8_encode(code_point, word->bytes + word->length);
    return true;
}

/* Takes the word apart and forgets it. */
static bool finish_word(const struct sh_vocab *v, struct word *word, struct sh_ids *ids) {
    const uint32_t length = word->length, before = ids->count;
    word->length = 0;
    for (uint32_t at = 0; at < length;) {
        const int32_t piece = longest_piece(v, word->bytes + at, length - at);
        if (piece < 0) {
            ids->count = before;
            return v->unk < 0 || sh_ids_push(ids, v->unk);
        }
        if (!sh_ids_push(ids, piece)) return false;
        at += v->keys[piece].length;
    }
    return true;
}

/* The blocks of ideographs that BERT's published tokenizers part (the sixth begins at U+2B920 there). */
static bool is_ideograph(uint32_t c) {
    static const uint32_t blocks[][2] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},   {0x20000, 0x2A6DF},
                                         {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
    for (uint32_t i = 0; i < SH_COUNT(blocks); i++) {
        if (c >= blocks[i][0] && c <= blocks[i][1]) return true;
    }
    return false;
}

static bool is_ascii_symbol(uint32_t c) { return c < 0x80 && c != 0 && strchr("$+<=>^`|~", (int)c) != NULL; }

enum sh_code sh_wpm_encode(const struct sh_vocab *v, const char *text, size_t length, struct sh_ids *ids, struct sh_error *err) {
    struct word word = {0};
    bool ok = length <= INT32_MAX / 2;
    if (!ok) return sh_fail(err, SH_ERR_LIMIT, "the text is too long to tokenise: %zu bytes", length);
    size_t step;
    for (size_t i = 0; i < length && ok; i += step) {
        uint32_t c;
        if (sh_utf8_scan(text + i, length - i, &step, &c) != SH_UTF8_OK) continue; /* as U+FFFD, which is dropped */
        if (v->strip_accents) c = sh_unicode_base(c);
        const enum sh_unicode_class what = sh_unicode_class_of(c);
        if (what == SH_UNICODE_SPACE) {
            ok = finish_word(v, &word, ids);
            continue;
        }
        if (what == SH_UNICODE_CONTROL || c == 0xFFFD) continue;
        const bool alone = what == SH_UNICODE_PUNCTUATION || is_ascii_symbol(c) || is_ideograph(c);
        if (alone) ok = finish_word(v, &word, ids);
        ok = ok && append(&word, v->lower_case ? sh_unicode_lower(c) : c);
        if (alone) ok = ok && finish_word(v, &word, ids);
    }
    ok = ok && finish_word(v, &word, ids);
    free(word.bytes);
    return ok ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to tokenise %zu bytes", length);
}
