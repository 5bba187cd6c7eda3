/* WordPiece vocabularies made for the purpose: keys of the file, case and accents, taking words apart against a slow and simple model,
 * any bytes, damaged files, and that a long text takes time in proportion. The reference values of a real vocabulary are in
 * test_text_tokenize. */
#include "tests/unit/expect_ids.h"
#include "tests/unit/shared.h"

#include "compute/base.h"
#include "compute/gguf/write.h"
#include "compute/text/text.h"
#include "compute/text/unicode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define MARK "\xE2\x96\x81"

struct plan {
    const char *tokens[64];
    int32_t types[64];
    uint32_t n;
    int64_t cls, sep, bos, eos, unk;                   /* -1: absent */
    int add_bos, add_sep, lowercase, strip, add_types; /* -1: absent */
};

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4 };
enum { PAD, UNK, CLS, SEP, FIRST };

static int32_t add(struct plan *p, const char *text, int32_t type) {
    p->tokens[p->n] = text;
    p->types[p->n] = type;
    return (int32_t)p->n++;
}

static struct plan new_plan(void) {
    struct plan p = {.cls = -1, .sep = -1, .bos = -1, .eos = -1, .unk = -1};
    p.add_bos = p.add_sep = p.lowercase = p.strip = -1;
    p.add_types = 1;
    add(&p, "[PAD]", CONTROL);
    add(&p, "[UNK]", UNKNOWN);
    add(&p, "[CLS]", CONTROL);
    add(&p, "[SEP]", CONTROL);
    return p;
}

static void build(const struct plan *p, const char *path) {
    struct sh_error err;
    struct sh_gguf_writer *w;
    struct sh_str tokens[64];
    for (uint32_t i = 0; i < p->n; i++) tokens[i] = (struct sh_str){p->tokens[i], strlen(p->tokens[i])};
    assert_int_equal(sh_gguf_writer_create(path, 3, 0, &w, &err), SH_OK);
    sh_gguf_add_str(w, "general.architecture", "bert", 4);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "bert", 4);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, p->n);
    if (p->add_types) sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, p->types, p->n);
    const struct {
        const char *key;
        int64_t value;
    } ids[] = {{"tokenizer.ggml.cls_token_id", p->cls},
               {"tokenizer.ggml.seperator_token_id", p->sep},
               {"tokenizer.ggml.bos_token_id", p->bos},
               {"tokenizer.ggml.eos_token_id", p->eos},
               {"tokenizer.ggml.unknown_token_id", p->unk}};
    for (size_t i = 0; i < SH_COUNT(ids); i++)
        if (ids[i].value >= 0) sh_gguf_add_u32(w, ids[i].key, (uint32_t)ids[i].value);
    const struct {
        const char *key;
        int value;
    } flags[] = {{"tokenizer.ggml.add_bos_token", p->add_bos},
                 {"tokenizer.ggml.add_sep_token", p->add_sep},
                 {"tokenizer.ggml.normalizer.lowercase", p->lowercase},
                 {"tokenizer.ggml.normalizer.strip_accents", p->strip}};
    for (size_t i = 0; i < SH_COUNT(flags); i++)
        if (flags[i].value >= 0) sh_gguf_add_bool(w, flags[i].key, flags[i].value);
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_OK);
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_OK);
    sh_gguf_writer_destroy(w);
}

static struct sh_vocab *built(const struct plan *p) {
    const char *path = test_scratch("wordpiece.gguf");
    build(p, path);
    struct sh_vocab *v;
    struct sh_error err;
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s", err.message);
    return v;
}

/* ---- what the file says -------------------------------------------------------------------------------------- */

static void special_tokens(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t a = add(&p, MARK "a", NORMAL), other = add(&p, "[X]", CONTROL), user = add(&p, "<u>", USER);
    struct sh_vocab *v = built(&p); /* no key at all: by their texts */
    assert_string_equal(sh_vocab_kind(v), "wpm");
    assert_string_equal(sh_vocab_pre(v), "");
    assert_int_equal(sh_vocab_bos(v), CLS);
    assert_int_equal(sh_vocab_eos(v), SEP);
    EXPECT(v, "a ? a", SH_TOKENIZE_SPECIAL, CLS, a, UNK, a, SEP);
    EXPECT(v, "", SH_TOKENIZE_SPECIAL, CLS, SEP);
    EXPECT(v, "a[SEP]a<u>", SH_TOKENIZE_PARSE, a, SEP, a, user);
    EXPECT(v, "a[SEP]<u>", 0, a, UNK, UNK, UNK, user); /* brackets are words, user-defined tokens always are one */
    sh_vocab_close(v);

    p.bos = a; /* the key of [CLS] goes before that of BOS */
    p.cls = other;
    p.eos = a;
    p.sep = PAD;
    p.unk = a;
    v = built(&p);
    EXPECT(v, "? a", SH_TOKENIZE_SPECIAL, other, a, a, PAD);
    sh_vocab_close(v);
    p.add_bos = 0;
    v = built(&p);
    EXPECT(v, "a", SH_TOKENIZE_SPECIAL, a, PAD);
    sh_vocab_close(v);
    p.add_bos = 1;
    p.add_sep = 0;
    v = built(&p);
    EXPECT(v, "a", SH_TOKENIZE_SPECIAL, other, a);
    sh_vocab_close(v);
    p.cls = p.sep = -1; /* BOS and EOS where there is nothing more particular */
    p.add_sep = -1;
    v = built(&p);
    EXPECT(v, "a", SH_TOKENIZE_SPECIAL, a, a, a);
    sh_vocab_close(v);
}

static void no_unknown_token(void **state) {
    (void)state;
    struct plan p = {.cls = -1, .sep = -1, .bos = -1, .eos = -1, .unk = -1, .add_types = 0};
    p.add_bos = p.add_sep = p.lowercase = p.strip = -1;
    add(&p, MARK "a", NORMAL);
    add(&p, "b", NORMAL);
    struct sh_vocab *v = built(&p);
    assert_int_equal(sh_vocab_bos(v), -1);
    EXPECT(v, "ab x abc a", SH_TOKENIZE_SPECIAL, 0, 1, 0); /* words that cannot be taken apart leave nothing */
    sh_vocab_close(v);
}

static void case_and_accents(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t e = add(&p, MARK "e", NORMAL), acute = add(&p, MARK "\xC3\xA9", NORMAL), sharp = add(&p, MARK "\xC3\x9F", NORMAL);
    struct sh_vocab *v = built(&p); /* without capitals: uncased */
    EXPECT(v, "e E \xC3\x89 \xC3\xA9 \xE1\xBB\x86 \xC3\x9F", 0, e, e, e, e, e, sharp);
    sh_vocab_close(v);
    p.lowercase = 0; /* and accents stay with the case */
    v = built(&p);
    EXPECT(v, "e E \xC3\xA9 \xC3\x89", 0, e, UNK, acute, UNK);
    sh_vocab_close(v);
    p.strip = 1;
    v = built(&p);
    EXPECT(v, "e E \xC3\xA9 \xC3\x89", 0, e, UNK, e, UNK);
    sh_vocab_close(v);
    p.lowercase = 1;
    p.strip = 0;
    v = built(&p);
    EXPECT(v, "E \xC3\xA9 \xC3\x89", 0, e, acute, acute);
    sh_vocab_close(v);
    p.lowercase = p.strip = -1;
    const int32_t capital = add(&p, MARK "Et", NORMAL);
    v = built(&p); /* a vocabulary with capitals tells them apart */
    EXPECT(v, "Et et e \xC3\xA9", 0, capital, UNK, e, acute);
    sh_vocab_close(v);
    p.lowercase = 1; /* unless the file knows better */
    v = built(&p);
    EXPECT(v, "E \xC3\xA9", 0, e, e);
    sh_vocab_close(v);
}

static void code_points(void **state) {
    (void)state;
    static const struct {
        uint32_t from, lower, base;
    } maps[] = {{'A', 'a', 'A'},          {'z', 'z', 'z'},          {0xC9, 0xE9, 'E'},       {0x130, 'i', 'I'},
                {0x3A3, 0x3C3, 0x3A3},    {0x1E9E, 0xDF, 0x1E9E},   {0x1EC7, 0x1EC7, 'e'},   {0x10400, 0x10428, 0x10400},
                {0xAC01, 0xAC01, 0x1100}, {0xD7A3, 0xD7A3, 0x1112}, {0x2126, 0x3C9, 0x3A9},  {0x37E, 0x37E, ';'},
                {0x10FFFF, 0x10FFFF, 0x10FFFF}};
    for (size_t i = 0; i < SH_COUNT(maps); i++) {
        assert_int_equal(sh_unicode_lower(maps[i].from), maps[i].lower);
        assert_int_equal(sh_unicode_base(maps[i].from), maps[i].base);
    }
    static const struct {
        uint32_t code_point;
        enum sh_unicode_class what;
    } classes[] = {{' ', SH_UNICODE_SPACE},      {0x3000, SH_UNICODE_SPACE},      {'\n', SH_UNICODE_SPACE},   {0, SH_UNICODE_CONTROL},
                   {0x7F, SH_UNICODE_CONTROL},   {0x200B, SH_UNICODE_CONTROL},    {0xE000, SH_UNICODE_CONTROL}, {'!', SH_UNICODE_PUNCTUATION},
                   {0x3002, SH_UNICODE_PUNCTUATION}, {'$', SH_UNICODE_OTHER},     {'a', SH_UNICODE_OTHER},    {0x301, SH_UNICODE_OTHER},
                   {0x378, SH_UNICODE_OTHER},    {0x10FFFF, SH_UNICODE_OTHER}};
    for (size_t i = 0; i < SH_COUNT(classes); i++) assert_int_equal(sh_unicode_class_of(classes[i].code_point), classes[i].what);
    /* the mappings end where they say: nothing maps to something that maps on */
    for (uint32_t c = 0; c < 0x110000; c++) {
        assert_int_equal(sh_unicode_base(sh_unicode_base(c)), sh_unicode_base(c));
        if (c != 0x130) assert_int_equal(sh_unicode_lower(sh_unicode_lower(c)), sh_unicode_lower(c));
    }
}

/* ---- taking words apart -------------------------------------------------------------------------------------------- */

/* Of one word of ASCII letters: the longest piece, tried from the whole rest down. */
static size_t model_word(const struct plan *p, const char *word, int32_t *out) {
    char text[200];
    size_t made = 0;
    const size_t n = (size_t)snprintf(text, sizeof text, MARK "%s", word);
    for (size_t at = 0; at < n;) {
        int32_t found = -1;
        for (size_t length = n - at; length > 0 && found < 0; length--) {
            for (uint32_t i = p->n; i-- > FIRST && found < 0;)
                if (strlen(p->tokens[i]) == length && memcmp(p->tokens[i], text + at, length) == 0) found = (int32_t)i;
        }
        if (found < 0) {
            out[0] = UNK;
            return 1;
        }
        out[made++] = found;
        at += strlen(p->tokens[found]);
    }
    return made;
}

static void random_words(void **state) {
    (void)state;
    struct test_rng rng = {77};
    for (uint32_t round = 0; round < 60; round++) {
        struct plan p = new_plan();
        static char texts[64][16];
        for (uint32_t i = 0; i < 40; i++) {
            size_t n = 0;
            if (test_random(&rng) % 3 == 0) n = (size_t)sprintf(texts[i], MARK);
            const uint64_t first = n > 0 ? 3 : 4; /* no d behind a mark */
            texts[i][n++] = "abcd"[test_random(&rng) % first];
            for (uint64_t k = test_random(&rng) % 4; k > 0; k--) texts[i][n++] = "abc"[test_random(&rng) % 3];
            texts[i][n] = '\0';
            add(&p, texts[i], NORMAL);
        }
        if (round % 2 == 0) add(&p, MARK, NORMAL);
        struct sh_vocab *v = built(&p);
        for (uint32_t k = 0; k < 40; k++) {
            char text[300] = "";
            int32_t want[300];
            size_t want_n = 0;
            for (uint32_t w = 0; w < 4; w++) {
                char word[40];
                const size_t n = 1 + test_random(&rng) % 12;
                for (size_t i = 0; i < n; i++) word[i] = "abcd"[test_random(&rng) % 4];
                word[n] = '\0';
                want_n += model_word(&p, word, want + want_n);
                strcat(strcat(text, word), " \t" + test_random(&rng) % 2);
            }
            expect_ids(v, text, strlen(text), 0, want, want_n);
        }
        sh_vocab_close(v);
    }
}

static void any_bytes(void **state) {
    (void)state;
    struct plan p = new_plan();
    const int32_t a = add(&p, MARK "a", NORMAL), b = add(&p, "b", NORMAL);
    struct sh_vocab *v = built(&p);
    expect_ids(v, "a\0\xFF" "b\xC3", 5, 0, (const int32_t[]){a, b}, 2); /* dropped: the word goes on */
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

/* One word of four megabytes, and as many words: seconds would be quadratic. */
static void long_texts(void **state) {
    (void)state;
    struct plan p = new_plan();
    add(&p, MARK "a", NORMAL);
    const int32_t a = add(&p, "a", NORMAL);
    add(&p, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", NORMAL); /* looked for at every place, never there */
    struct sh_vocab *v = built(&p);
    const size_t n = 4 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    for (int spaces = 0; spaces < 2; spaces++) {
        memset(text, 'a', n);
        for (size_t i = 1; spaces && i < n; i += 2) text[i] = ' ';
        int32_t *ids;
        size_t count;
        struct sh_error err;
        assert_int_equal(sh_tokenize(v, text, n, 0, &ids, &count, &err), SH_OK);
        assert_int_equal(count, spaces ? n / 2 : n);
        if (!spaces) assert_int_equal(ids[n - 1], a);
        free(ids);
    }
    free(text);
    sh_vocab_close(v);
}

static void damaged_files(void **state) {
    (void)state;
    struct plan p = new_plan();
    add(&p, MARK "once", NORMAL);
    add(&p, "upon", NORMAL);
    add(&p, "", NORMAL);
    add(&p, "<u>", USER);
    p.cls = CLS;
    p.sep = SEP;
    p.lowercase = 1;
    build(&p, test_scratch("whole.gguf"));
    size_t n;
    unsigned char *bytes = test_read_file(test_scratch("whole.gguf"), &n), *copy = malloc(n);
    assert_non_null(copy);
    struct test_rng rng = {91};
    uint32_t opened = 0;
    for (uint32_t round = 0; round < 1500; round++) {
        memcpy(copy, bytes, n);
        for (uint64_t k = 1 + test_random(&rng) % 4; k > 0; k--) copy[test_random(&rng) % n] = (unsigned char)test_random(&rng);
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
        assert_int_equal(sh_tokenize(v, "Once upon \xFF [SEP]", 16, 3, &ids, &count, &err), SH_OK);
        free(ids);
        sh_vocab_close(v);
    }
    assert_in_range(opened, 100, 1400);
    free(bytes);
    free(copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(special_tokens), cmocka_unit_test(no_unknown_token), cmocka_unit_test(case_and_accents),
        cmocka_unit_test(code_points),    cmocka_unit_test(random_words),     cmocka_unit_test(any_bytes),
        cmocka_unit_test(long_texts),     cmocka_unit_test(damaged_files),
    };
    return cmocka_run_group_tests_name("text_wordpiece", tests, NULL, NULL);
}
