/* Unigram vocabularies made for the purpose: keys of the file, the best way against all ways, white space, unknown text, character
 * maps, any bytes, damaged files and maps, and that a long text takes time in proportion. The reference values of real vocabularies
 * are in test_text_tokenize. */
#include "tests/unit/expect_ids.h"
#include "tests/unit/shared.h"

#include "compute/base.h"
#include "compute/gguf/write.h"
#include "compute/text/text.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define MARK "\xE2\x96\x81"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6, MAX_TOKENS = 400 };
enum { PAD, EOS, UNK, FIRST }; /* as T5 has them */

struct plan {
    struct sh_str tokens[MAX_TOKENS];
    float scores[MAX_TOKENS];
    int32_t types[MAX_TOKENS];
    uint32_t n;
    int64_t bos, eos, unk;                         /* -1: absent */
    int add_bos, add_eos, add_space, remove_extra; /* -1: absent */
    bool no_types;
    const void *map;
    uint64_t map_bytes;
    enum sh_value_type map_type;
};

static int32_t add_bytes(struct plan *p, const char *text, size_t length, float score, int32_t type) {
    assert_true(p->n < MAX_TOKENS);
    p->tokens[p->n] = (struct sh_str){text, length};
    p->scores[p->n] = score;
    p->types[p->n] = type;
    return (int32_t)p->n++;
}

static int32_t add(struct plan *p, const char *text, float score, int32_t type) {
    return add_bytes(p, text, strlen(text), score, type);
}

static struct plan new_plan(void) {
    struct plan p = {.bos = -1, .eos = -1, .unk = -1, .add_bos = -1, .add_eos = -1, .add_space = -1, .remove_extra = -1};
    p.map_type = SH_VALUE_U8;
    add(&p, "<pad>", 0, CONTROL);
    add(&p, "</s>", 0, CONTROL);
    add(&p, "<unk>", 0, UNKNOWN);
    return p;
}

static void build(const struct plan *p, const char *path) {
    struct sh_error err;
    struct sh_gguf_writer *w;
    assert_int_equal(sh_gguf_writer_create(path, 3, 0, &w, &err), SH_OK);
    sh_gguf_add_str(w, "general.architecture", "bert", 4);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "t5", 2);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", p->tokens, p->n);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, p->scores, p->n);
    if (!p->no_types) sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, p->types, p->n);
    if (p->map != NULL) sh_gguf_add_array(w, "tokenizer.ggml.precompiled_charsmap", p->map_type, p->map, p->map_bytes);
    if (p->bos >= 0) sh_gguf_add_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)p->bos);
    if (p->eos >= 0) sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)p->eos);
    if (p->unk >= 0) sh_gguf_add_u32(w, "tokenizer.ggml.unknown_token_id", (uint32_t)p->unk);
    if (p->add_bos >= 0) sh_gguf_add_bool(w, "tokenizer.ggml.add_bos_token", p->add_bos);
    if (p->add_eos >= 0) sh_gguf_add_bool(w, "tokenizer.ggml.add_eos_token", p->add_eos);
    if (p->add_space >= 0) sh_gguf_add_bool(w, "tokenizer.ggml.add_space_prefix", p->add_space);
    if (p->remove_extra >= 0) sh_gguf_add_bool(w, "tokenizer.ggml.remove_extra_whitespaces", p->remove_extra);
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_OK);
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_OK);
    sh_gguf_writer_destroy(w);
}

static struct sh_vocab *built(const struct plan *p) {
    const char *path = test_scratch("unigram.gguf");
    build(p, path);
    struct sh_vocab *v;
    struct sh_error err;
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s", err.message);
    return v;
}

#define EXPECT_NONE(v, text) expect_ids(v, text, strlen(text), 0, NULL, 0)

/* ---- what the file says ---------------------------------------------------------------------------------------- */

static void special_tokens(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t mark = add(&p, MARK, -2, NORMAL), a = add(&p, "a", -1, NORMAL), user = add(&p, "<u>", -50, USER);
    const int32_t bos = add(&p, "<s>", 0, CONTROL);
    struct sh_vocab *v = built(&p); /* no key at all: what T5 assigns */
    assert_string_equal(sh_vocab_kind(v), "unigram");
    assert_string_equal(sh_vocab_pre(v), "");
    assert_int_equal(sh_vocab_bos(v), -1);
    assert_int_equal(sh_vocab_eos(v), EOS);
    assert_true(sh_vocab_is_end(v, EOS));
    EXPECT(v, "a a", SH_TOKENIZE_SPECIAL, mark, a, mark, a, EOS);
    EXPECT(v, "", SH_TOKENIZE_SPECIAL, EOS);
    EXPECT(v, "a</s>a<u>", SH_TOKENIZE_PARSE, mark, a, EOS, mark, a, user);
    EXPECT(v, "</s><u>", 0, mark, UNK, user); /* control tokens only where they are asked for, user-defined ones always */
    sh_vocab_close(v);
    p.bos = bos;
    p.add_bos = 1;
    p.add_eos = 0;
    v = built(&p);
    EXPECT(v, "a", SH_TOKENIZE_SPECIAL, bos, mark, a);
    sh_vocab_close(v);
    p.eos = bos;
    p.unk = mark; /* an ordinary token may stand for what is unknown; a control token may not */
    p.add_eos = 1;
    v = built(&p);
    EXPECT(v, "a?", SH_TOKENIZE_SPECIAL, bos, mark, a, mark, bos);
    sh_vocab_close(v);
    p.unk = PAD;
    v = built(&p);
    EXPECT(v, "a?a", 0, mark, a, a);
    sh_vocab_close(v);
    p.no_types = true;
    p.unk = UNK;
    v = built(&p);
    EXPECT(v, "a?", 0, mark, a, UNK);
    sh_vocab_close(v);
}

static void white_space(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t mark = add(&p, MARK, -1, NORMAL), a = add(&p, "a", -1, NORMAL);
    struct sh_vocab *v = built(&p);
    EXPECT(v, "  a   a ", 0, mark, a, mark, a);
    EXPECT_NONE(v, "   ");
    char *text;
    size_t length;
    struct sh_error err;
    assert_int_equal(sh_detokenize(v, (int32_t[]){mark, a, mark, EOS, a}, 5, false, true, &text, &length, &err), SH_OK);
    assert_string_equal(text, "a a"); /* less the space that was added */
    free(text);
    assert_int_equal(sh_detokenize(v, (int32_t[]){mark, a, EOS}, 3, true, false, &text, &length, &err), SH_OK);
    assert_string_equal(text, " a</s>");
    free(text);
    sh_vocab_close(v);
    p.add_space = 0;
    v = built(&p);
    EXPECT(v, "  a  a ", 0, a, mark, a);
    assert_int_equal(sh_detokenize(v, (int32_t[]){mark, a}, 2, false, true, &text, &length, &err), SH_OK);
    assert_string_equal(text, " a");
    free(text);
    sh_vocab_close(v);
    p.remove_extra = 0;
    v = built(&p);
    EXPECT(v, "  a  a ", 0, mark, mark, a, mark, mark, a, mark);
    EXPECT_NONE(v, "");
    sh_vocab_close(v);
    p.add_space = 1;
    v = built(&p);
    EXPECT(v, " a ", 0, mark, mark, a, mark);
    EXPECT(v, " ", 0, mark, mark);
    EXPECT_NONE(v, "");
    sh_vocab_close(v);
}

static void unknown_text(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t mark = add(&p, MARK, -1, NORMAL), a = add(&p, "a", -2, NORMAL);
    struct sh_vocab *v = built(&p);
    EXPECT(v, "axyz\xC3\xA9" "a zz", 0, mark, a, UNK, a, mark, UNK); /* side by side they are one */
    expect_ids(v, "\0\xFF", 2, 0, (int32_t[]){mark, UNK}, 2);
    sh_vocab_close(v);

    /* a longer piece at a bad price is better than unknown text at 10 below the worst normal token */
    const int32_t bad = add(&p, "xy", -12.5f, UNUSED);
    v = built(&p);
    EXPECT(v, "xyx", 0, mark, bad, UNK);
    sh_vocab_close(v);
    p.scores[bad] = -25;
    v = built(&p);
    EXPECT(v, "xyx", 0, mark, UNK);
    sh_vocab_close(v);

    static char texts[256][8];
    int32_t byte[256];
    for (int i = 0; i < 256; i++) {
        sprintf(texts[i], "<0x%02X>", (unsigned)i);
        byte[i] = add(&p, texts[i], 0, BYTE);
    }
    v = built(&p);
    EXPECT(v, "a\xC3\xA9z<0x41>", 0, mark, a, byte[0xC3], byte[0xA9], byte['z'], byte['<'], byte['0'], byte['x'], byte['4'], byte['1'],
           byte['>']);
    size_t n;
    assert_memory_equal(sh_vocab_piece(v, byte[0xC3], false, &n), "\xC3", 1);
    assert_int_equal(n, 1);
    sh_vocab_close(v);
    p.no_types = true; /* then byte tokens are known by their text */
    v = built(&p);
    EXPECT(v, "az", 0, mark, a, byte['z']);
    sh_vocab_close(v);
    p.no_types = false;
    p.n--; /* one byte short */
    v = built(&p);
    EXPECT(v, "az", 0, mark, a, UNK);
    sh_vocab_close(v);
}

/* ---- the best way ------------------------------------------------------------------------------------------------- */

/* The greatest sum over all ways to write text[at..]; pieces are single letters at least, so there always is one. */
static double best_sum(const struct plan *p, const char *text, size_t length, double *memo) {
    memo[length] = 0;
    for (size_t at = length; at-- > 0;) {
        memo[at] = -INFINITY;
        for (uint32_t i = FIRST; i < p->n; i++) {
            const size_t n = p->tokens[i].length;
            if (n > length - at || memcmp(text + at, p->tokens[i].ptr, n) != 0) continue;
            memo[at] = fmax(memo[at], (double)p->scores[i] + memo[at + n]);
        }
    }
    return memo[0];
}

static void random_texts(void **state) {
    (void)state;
    struct test_rng rng = {77};
    for (uint32_t round = 0; round < 60; round++) {
        struct plan p = new_plan();
        p.add_space = 0;
        static char texts[64][16];
        add(&p, "a", -8, NORMAL);
        add(&p, "b", -9, NORMAL);
        add(&p, "c", -10, NORMAL);
        for (uint32_t i = 0; i < 40; i++) {
            size_t n = 0;
            for (uint64_t k = 2 + test_random(&rng) % 6; k > 0; k--) texts[i][n++] = "abc"[test_random(&rng) % 3];
            texts[i][n] = '\0';
            bool twice = false;
            for (uint32_t k = 0; k < i; k++) twice |= strcmp(texts[k], texts[i]) == 0;
            if (!twice) add(&p, texts[i], -(float)(test_random(&rng) % 400) / 8, NORMAL); /* eighths: sums are exact */
        }
        struct sh_vocab *v = built(&p);
        for (uint32_t k = 0; k < 40; k++) {
            char text[200];
            double memo[201], sum = 0;
            const size_t n = 1 + test_random(&rng) % (sizeof text - 1);
            for (size_t i = 0; i < n; i++) text[i] = "abc"[test_random(&rng) % 3];
            int32_t *ids;
            size_t count, at = 0;
            struct sh_error err;
            assert_int_equal(sh_tokenize(v, text, n, 0, &ids, &count, &err), SH_OK);
            for (size_t i = 0; i < count; i++) {
                const struct sh_str piece = p.tokens[ids[i]];
                assert_true(piece.length <= n - at && memcmp(text + at, piece.ptr, piece.length) == 0);
                at += piece.length;
                sum += (double)p.scores[ids[i]];
            }
            free(ids);
            assert_int_equal(at, n);
            assert_true(sum == best_sum(&p, text, n, memo));
        }
        sh_vocab_close(v);
    }
}

static void odd_scores(void **state) {
    (void)state;
    struct plan p = new_plan();
    p.add_space = 0;
    const int32_t a = add(&p, "a", -INFINITY, NORMAL), b = add(&p, "b", INFINITY, NORMAL), c = add(&p, "c", NAN, NORMAL);
    const int32_t again = add(&p, "b", -1, NORMAL), user = add(&p, "\xC3\xA9", -90, USER), half = add(&p, "x\xC3", 5, NORMAL);
    add(&p, "y", 1e38f, UNUSED);
    struct sh_vocab *v = built(&p);
    EXPECT(v, "abc", 0, a, again, c); /* of equal texts the last one */
    EXPECT(v, "\xC3\xA9", 0, user);
    EXPECT(v, "x\xC3\xA8" "b", 0, UNK, again); /* a piece that ends inside of a code point leads nowhere */
    assert_true(b != again && half > 0);
    char *text = malloc(100000);
    assert_non_null(text);
    for (uint32_t i = 0; i < 100000; i++) text[i] = "abcy?"[i % 5];
    int32_t *ids;
    size_t count;
    struct sh_error err;
    assert_int_equal(sh_tokenize(v, text, 100000, 0, &ids, &count, &err), SH_OK);
    assert_int_equal(count, 100000); /* sums neither overflow nor stop the search */
    free(ids);
    free(text);
    sh_vocab_close(v);
}

/* ---- character maps ------------------------------------------------------------------------------------------------- */

enum { MAX_UNITS = 256 * 64, MAX_STRINGS = 4096 };
struct map {
    uint32_t units[MAX_UNITS], block[MAX_UNITS], n_units; /* block: where a unit's children lie, each in 256 units of its own */
    char strings[MAX_STRINGS];
    uint32_t n_strings;
    uint8_t bytes[4 + 4 * MAX_UNITS + MAX_STRINGS];
    uint64_t n_bytes;
};

static struct map *new_map(void) {
    struct map *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->units[0] = 256u << 10;
    m->block[0] = 256;
    m->n_units = 512;
    return m;
}

static void map_add(struct map *m, const char *key, const char *replacement) {
    uint32_t unit = 0;
    for (const char *s = key; *s != '\0'; s++) {
        unit = m->block[unit] ^ (uint8_t)*s;
        if (m->units[unit] != 0) continue;
        assert_true(m->n_units + 256 <= MAX_UNITS);
        m->block[unit] = m->n_units;
        m->units[unit] = (unit ^ m->n_units) << 10 | (uint8_t)*s;
        m->n_units += 256;
    }
    m->units[unit] |= 1u << 8;
    m->units[m->block[unit]] = m->n_strings | 1u << 31;
    const size_t n = strlen(replacement) + 1;
    assert_true(m->n_strings + n <= MAX_STRINGS);
    memcpy(m->strings + m->n_strings, replacement, n);
    m->n_strings += (uint32_t)n;
}

static void map_use(struct map *m, struct plan *p) {
    const uint32_t bytes = m->n_units * 4;
    memcpy(m->bytes, &bytes, 4);
    memcpy(m->bytes + 4, m->units, bytes);
    memcpy(m->bytes + 4 + bytes, m->strings, m->n_strings);
    m->n_bytes = 4 + bytes + m->n_strings;
    p->map = m->bytes;
    p->map_bytes = m->n_bytes;
}

static void character_maps(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t mark = add(&p, MARK, -1, NORMAL), a = add(&p, "a", -1, NORMAL), b = add(&p, "b", -1, NORMAL);
    const int32_t user = add(&p, "<u>", 0, USER);
    add(&p, "<|im_start|>", 0, USER);
    struct map *m = new_map();
    map_add(m, "A", "a");
    map_add(m, "A\xCC\x81", "b"); /* the longest match counts */
    map_add(m, "\xE2\x80\xA6", "a b  a");
    map_add(m, "\t", " ");
    map_add(m, "-", "");
    map_add(m, "(u)", "<u>");
    map_add(m, "(i)", "<|im_start|>");
    map_add(m, "(x)", "\xC3"); /* not UTF-8 */
    map_use(m, &p);
    struct sh_vocab *v = built(&p);
    EXPECT(v, "A\xCC\x81" "AA\xCC", 0, mark, b, a, a, UNK);
    EXPECT(v, "\xE2\x80\xA6\t\ta--", 0, mark, a, mark, b, mark, a, mark, a);
    EXPECT_NONE(v, "--\t-");
    EXPECT(v, "(u)(x)(i)", 0, mark, user, UNK, a, UNK); /* what opens a turn never comes out of a text */
    EXPECT(v, "(", 0, mark, UNK);
    sh_vocab_close(v);
    p.map_type = SH_VALUE_I8;
    p.remove_extra = 0;
    v = built(&p);
    EXPECT(v, "A\t\t", 0, mark, a, mark, mark);
    sh_vocab_close(v);
    p.map_bytes = 0; /* an empty one is none */
    v = built(&p);
    EXPECT(v, "aA", 0, mark, a, UNK);
    sh_vocab_close(v);
    free(m);
}

static void expect_refused(const struct plan *p, const char *part) {
    struct sh_vocab *v;
    struct sh_error err = {0};
    build(p, test_scratch("refused.gguf"));
    assert_int_equal(sh_vocab_open(test_scratch("refused.gguf"), &v, &err), SH_ERR_FORMAT);
    assert_null(v);
    if (strstr(err.message, part) == NULL) fail_msg("\"%s\" lacks \"%s\"", err.message, part);
}

static void hostile_maps(void **state) {
    (void)state;
    struct plan p = new_plan();
    add(&p, MARK, -1, NORMAL);
    const int32_t a = add(&p, "a", -1, NORMAL);
    struct map *m = new_map();
    map_add(m, "A", "a");
    map_use(m, &p);
    p.map_type = SH_VALUE_U32;
    p.map_bytes = m->n_bytes / 4;
    expect_refused(&p, "precompiled_charsmap");
    p.map_type = SH_VALUE_U8;
    for (uint64_t n = 1; n < m->n_bytes; n += n < 8 || n > m->n_bytes - 8 ? 1 : 97) { /* cut short anywhere */
        p.map_bytes = n;
        expect_refused(&p, "precompiled_charsmap");
    }
    p.map_bytes = m->n_bytes;
    static const uint32_t sizes[] = {0, 1, 2, 3, 1026, 0x7FFFFFFC, 0xFFFFFFFC, 0xFFFFFFFF};
    for (size_t i = 0; i < SH_COUNT(sizes); i++) {
        memcpy(m->bytes, &sizes[i], 4);
        expect_refused(&p, "the double array");
    }
    map_use(m, &p);
    m->bytes[m->n_bytes - 1] = 'x';
    expect_refused(&p, "not ended by a NUL");
    char long_text[1100];
    memset(long_text, 'a', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    map_add(m, "B", long_text);
    map_use(m, &p);
    expect_refused(&p, "longer than 1024");

    /* Each unit leads to itself: every place of the text would match to the end of the text. */
    free(m);
    m = new_map();
    map_add(m, "A", "a");
    m->units[256 ^ 'A'] = (uint32_t)'A' << 10 | 1u << 8 | 'A';
    m->units[256] = 0;
    map_use(m, &p);
    struct sh_vocab *v = built(&p);
    const size_t n = 1 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'A', n);
    int32_t *ids;
    size_t count;
    struct sh_error err = {0};
    assert_int_equal(sh_tokenize(v, text, n, 0, &ids, &count, &err), SH_OK);
    assert_in_range(count, 2, 2 + n / 32);
    assert_int_equal(ids[1], a);
    free(ids);
    sh_vocab_close(v);

    /* A replacement that would make a thousand megabytes of one. */
    long_text[1000] = '\0';
    free(m);
    m = new_map();
    map_add(m, "A", long_text);
    map_use(m, &p);
    v = built(&p);
    assert_int_equal(sh_tokenize(v, text, n, 0, &ids, &count, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "character map"));
    sh_vocab_close(v);

    /* Units of any bits, and units that point to places outside. */
    struct test_rng rng = {17};
    for (uint32_t round = 0; round < 300; round++) {
        const uint32_t from = round % 2 == 0 ? 0 : 256;
        for (uint32_t i = from; i < m->n_units; i++) {
            m->units[i] = (uint32_t)test_random(&rng);
            if (test_random(&rng) % 2) m->units[i] = (m->units[i] & 0x000FFF00) | (i & 0xFF);
        }
        if (from > 0) m->units[0] = 256u << 10;
        map_use(m, &p);
        v = built(&p);
        char bytes[512];
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)test_random(&rng);
        const enum sh_code code = sh_tokenize(v, bytes, sizeof bytes, 3, &ids, &count, &err);
        assert_true(code == SH_OK || code == SH_ERR_LIMIT);
        for (size_t i = 0; code == SH_OK && i < count; i++) assert_in_range(ids[i], 0, p.n - 1);
        if (code == SH_OK) free(ids);
        sh_vocab_close(v);
    }
    free(text);
    free(m);
}

/* ---- sizes and damage -------------------------------------------------------------------------------------------------- */

/* Three megabytes of one word, of many words, of unknown text, and of pieces that always reach over the next place. */
static void long_texts(void **state) {
    (void)state;
    static char longest[1024 + 8], too_long[1025 + 8];
    memset(longest, 'b', 1024);
    memset(too_long, 'b', 1025);
    struct plan p = new_plan();
    const int32_t mark = add(&p, MARK, -4, NORMAL), a = add(&p, "a", -2, NORMAL), aaa = add(&p, "aaa", -3, NORMAL);
    add(&p, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", -1, NORMAL); /* looked for at every place, never there */
    add(&p, "aa", -30, NORMAL);
    const int32_t x = add(&p, "x", -4, NORMAL), y = add(&p, "y", -4, NORMAL);
    add(&p, "xy", -8.1f, NORMAL); /* worse by a tenth, also behind millions */
    const int32_t b = add(&p, longest, -1, NORMAL);
    add(&p, too_long, -1, NORMAL); /* taken for none */
    struct sh_vocab *v = built(&p);
    const size_t n = 3 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    static const char *const fills[] = {"a", "a ", "?", "xy "};
    const size_t want[] = {1 + n / 3, n, 2, n};
    const int32_t first[] = {aaa, a, UNK, x}, last[] = {aaa, a, UNK, y};
    for (size_t k = 0; k < SH_COUNT(fills); k++) {
        for (size_t i = 0; i < n; i++) text[i] = fills[k][i % strlen(fills[k])];
        int32_t *ids;
        size_t count;
        struct sh_error err;
        assert_int_equal(sh_tokenize(v, text, n, 0, &ids, &count, &err), SH_OK);
        assert_int_equal(count, want[k]);
        assert_int_equal(ids[0], mark);
        assert_int_equal(ids[1], first[k]);
        assert_int_equal(ids[count - 1], last[k]);
        free(ids);
    }
    free(text);
    EXPECT(v, too_long, 0, mark, UNK, b);
    sh_vocab_close(v);
}

/* Special tokens of thousands of lengths, each of which would be one more search of the text: the longer ones are not looked for. */
static void many_special_lengths(void **state) {
    (void)state;
    enum { N = 8000 };
    static struct sh_str tokens[N + 4];
    static int32_t types[N + 4];
    static char letters[N + 2];
    memset(letters, 'a', N + 1);
    tokens[0] = (struct sh_str){"<unk>", 5};
    tokens[1] = (struct sh_str){"</s>", 4};
    tokens[2] = (struct sh_str){"a", 1};
    tokens[3] = (struct sh_str){MARK, 3};
    types[0] = UNKNOWN;
    types[1] = CONTROL;
    types[2] = types[3] = NORMAL;
    for (uint32_t i = 0; i < N; i++) {
        tokens[4 + i] = (struct sh_str){letters, i + 2};
        types[4 + i] = i + 2 >= 512 ? USER : NORMAL; /* of those, 512 bytes are the longest that is looked for */
    }
    struct sh_error err;
    struct sh_gguf_writer *w;
    assert_int_equal(sh_gguf_writer_create(test_scratch("lengths.gguf"), 3, 0, &w, &err), SH_OK);
    sh_gguf_add_str(w, "general.architecture", "bert", 4);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "t5", 2);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, N + 4);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, N + 4);
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_OK);
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_OK);
    sh_gguf_writer_destroy(w);
    struct sh_vocab *v;
    if (sh_vocab_open(test_scratch("lengths.gguf"), &v, &err) != SH_OK) fail_msg("%s", err.message);
    const size_t n = 1 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'a', n);
    int32_t *ids;
    size_t count;
    assert_int_equal(sh_tokenize(v, text, n, SH_TOKENIZE_PARSE, &ids, &count, &err), SH_OK);
    assert_int_equal(count, n / 512);
    for (size_t i = 0; i < count; i++) assert_int_equal(tokens[ids[i]].length, 512);
    free(ids);
    free(text);
    sh_vocab_close(v);
}

static void any_bytes(void **state) {
    (void)state;
    struct plan p = new_plan();
    add(&p, MARK, -1, NORMAL);
    add(&p, "a", -1, NORMAL);
    add(&p, "\xEF\xBF\xBD", -1, NORMAL);
    add(&p, "\xFF\xFE", -1, NORMAL);
    struct sh_vocab *v = built(&p);
    EXPECT(v, "a\xE2\x82", 0, FIRST, FIRST + 1, FIRST + 2, FIRST + 2); /* one for each ill-formed byte */
    struct test_rng rng = {5};
    for (uint32_t round = 0; round < 2000; round++) {
        char text[64];
        const size_t n = test_random(&rng) % sizeof text;
        for (size_t i = 0; i < n; i++) text[i] = (char)test_random(&rng);
        int32_t *ids;
        size_t count;
        struct sh_error err;
        assert_int_equal(sh_tokenize(v, text, n, 3, &ids, &count, &err), SH_OK);
        for (size_t i = 0; i < count; i++) assert_in_range(ids[i], 0, p.n - 1);
        free(ids);
    }
    sh_vocab_close(v);
}

static void damaged_files(void **state) {
    (void)state;
    struct plan p = new_plan();
    add(&p, MARK "once", -1, NORMAL);
    add(&p, "upon", -2, NORMAL);
    add(&p, "", -3, NORMAL);
    add(&p, "<u>", 0, USER);
    struct map *m = new_map();
    map_add(m, "O", "o");
    map_use(m, &p);
    build(&p, test_scratch("whole.gguf"));
    size_t n;
    unsigned char *bytes = test_read_file(test_scratch("whole.gguf"), &n), *copy = malloc(n);
    assert_non_null(copy);
    struct test_rng rng = {91};
    uint32_t opened = 0;
    for (uint32_t round = 0; round < 1500; round++) {
        memcpy(copy, bytes, n);
        const size_t span = round % 2 ? n : 900; /* the map is most of the file */
        for (uint64_t k = 1 + test_random(&rng) % 4; k > 0; k--) copy[test_random(&rng) % span] = (unsigned char)test_random(&rng);
        const char *path = test_scratch("damaged.gguf");
        test_write_file(path, copy, n);
        struct sh_vocab *v;
        struct sh_error err = {0};
        if (sh_vocab_open(path, &v, &err) != SH_OK) {
            assert_true(err.message[0] != '\0');
            continue;
        }
        opened++;
        int32_t *ids;
        size_t count;
        assert_int_equal(sh_tokenize(v, "Once upon \xFF </s>", 16, 3, &ids, &count, &err), SH_OK);
        free(ids);
        sh_vocab_close(v);
    }
    assert_in_range(opened, 100, 1499);
    free(m);
    free(bytes);
    free(copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(special_tokens), cmocka_unit_test(white_space),    cmocka_unit_test(unknown_text),
        cmocka_unit_test(random_texts),   cmocka_unit_test(odd_scores),     cmocka_unit_test(character_maps),
        cmocka_unit_test(hostile_maps),   cmocka_unit_test(long_texts),     cmocka_unit_test(any_bytes),
        cmocka_unit_test(damaged_files),  cmocka_unit_test(many_special_lengths),
    };
    return cmocka_run_group_tests_name("text_unigram", tests, NULL, NULL);
}
