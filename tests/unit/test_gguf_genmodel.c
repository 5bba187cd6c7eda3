/* Generated models: complete, deterministic, of the deviation they promise, with a vocabulary that tokenises. */
#include "compute/gguf/quant.h"
#include "compute/text/text.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error err;
#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s: %s", #call, err.message);                                                             \
    } while (0)

static const char *const types[] = {"F32",     "F16",    "BF16",   "Q4_0",   "Q8_0",    "Q4_K_S", "Q4_K_M",
                                    "Q5_K_S",  "Q5_K_M", "Q6_K",   "Q4_1",   "Q5_0",    "Q5_1",   "Q2_K",
                                    "Q3_K_S",  "Q3_K_M", "IQ1_S",  "IQ1_M",  "IQ2_XXS", "IQ2_XS", "IQ2_S",
                                    "IQ3_XXS", "IQ3_S",  "IQ4_NL", "IQ4_XS", "TQ1_0",   "TQ2_0",  "MXFP4"};

static void check_values(const struct sh_gguf *g, const struct sh_tensor *t, double want_mean, double want_deviation) {
    const uint64_t n = t->dims[0] * t->dims[1];
    uint8_t *raw = malloc(t->bytes);
    float *x = malloc(n * sizeof *x);
    OK(sh_gguf_read(g, t, 0, raw, t->bytes, &err));
    assert_true(sh_dequantize(t->type, raw, x, n));
    double sum = 0, square = 0;
    for (uint64_t i = 0; i < n; i++) sum += (double)x[i];
    const double mean = sum / (double)n;
    for (uint64_t i = 0; i < n; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean);
    const double deviation = sqrt(square / (double)n);
    if (!(fabs(mean - want_mean) <= (0.02 + 4 / sqrt((double)n)) * want_deviation))
        fail_msg("%s: mean %g, want %g", t->name, mean, want_mean);
    if (!(fabs(deviation - want_deviation) <= (0.1 + 2 / sqrt((double)n)) * want_deviation))
        fail_msg("%s (%s): deviation %g, want %g", t->name, sh_type_info(t->type)->name, deviation, want_deviation);
    free(raw);
    free(x);
}

static void test_types(void **state) {
    (void)state;
    const char *path = test_scratch("types.gguf");
    for (size_t k = 0; k < SH_COUNT(types); k++) {
        struct genmodel_params p = genmodel_defaults();
        struct sh_gguf *g;
        p.type = types[k];
        p.bias = true;
        OK(genmodel_write(path, &p, &err));
        OK(sh_gguf_open(path, &g, &err));
        check_values(g, sh_gguf_tensor(g, "token_embd.weight"), 0, 1);
        check_values(g, sh_gguf_tensor(g, "blk.0.attn_q.weight"), 0, 1 / sqrt(256));
        check_values(g, sh_gguf_tensor(g, "blk.1.attn_output.weight"), 0, 0.5 / sqrt(256));
        check_values(g, sh_gguf_tensor(g, "blk.1.ffn_down.weight"), 0, 1 / sqrt(512));
        check_values(g, sh_gguf_tensor(g, "output.weight"), 0, 2 / sqrt(256));
        check_values(g, sh_gguf_tensor(g, "output_norm.weight"), 1, 0.1);
        check_values(g, sh_gguf_tensor(g, "blk.1.attn_k.bias"), 0, 0.1);
        assert_int_equal(sh_gguf_tensor(g, "blk.0.attn_k.weight")->dims[1], 128);
        assert_int_equal(sh_gguf_tensor(g, "blk.0.ffn_gate.weight")->dims[1], 512);
        sh_gguf_close(g);

        struct sh_file *f;
        struct sh_file_summary s;
        OK(sh_file_open(path, &f, &err));
        sh_file_get_summary(f, &s);
        assert_string_equal(s.type_name, types[k]);
        assert_int_equal(s.context_length, 256);
        sh_file_close(f);
    }
}

/* Shards hold what one file holds; another seed does not. */
static void test_same_values(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    struct sh_gguf *whole, *split, *other;
    char first[4096];
    p.type = "Q4_K_M";
    p.layers = 9;
    p.rope_freqs = true;
    const char *path = test_scratch("same.gguf"), *path2 = test_scratch("other.gguf");
    OK(genmodel_write(path, &p, &err));
    p.shards = 3;
    OK(genmodel_write(path, &p, &err));
    genmodel_shard_path(path, 0, 3, first, sizeof first);
    p.shards = 0;
    p.seed = 2;
    OK(genmodel_write(path2, &p, &err));
    OK(sh_gguf_open(path, &whole, &err));
    OK(sh_gguf_open(first, &split, &err));
    OK(sh_gguf_open(path2, &other, &err));
    assert_int_equal(sh_gguf_tensor_count(whole), sh_gguf_tensor_count(split));
    uint32_t in_shard[3] = {0}, kinds[40] = {0};
    for (uint64_t i = 0; i < sh_gguf_tensor_count(whole); i++) {
        const struct sh_tensor *a = sh_gguf_tensor_at(whole, i), *b = sh_gguf_tensor(split, a->name),
                               *c = sh_gguf_tensor(other, a->name);
        assert_int_equal(a->bytes, b->bytes);
        uint8_t *x = malloc(a->bytes), *y = malloc(a->bytes);
        OK(sh_gguf_read(whole, a, 0, x, a->bytes, &err));
        OK(sh_gguf_read(split, b, 0, y, a->bytes, &err));
        assert_memory_equal(x, y, a->bytes);
        OK(sh_gguf_read(other, c, 0, y, a->bytes, &err));
        if (strcmp(a->name, "rope_freqs.weight") != 0) assert_memory_not_equal(x, y, a->bytes);
        in_shard[b->shard]++;
        kinds[a->type]++;
        free(x);
        free(y);
    }
    for (int i = 0; i < 3; i++) assert_true(in_shard[i] > 0);
    /* of 9 layers, the mix spends 6 bits on attn_v and ffn_down of 0 (i < 9/8), 3, 6 (each third) and 7, 8 (the last eighth),
     * and on the head */
    assert_int_equal(kinds[SH_TYPE_Q6_K], 2 * 5 + 1);
    sh_gguf_close(whole);
    sh_gguf_close(split);
    sh_gguf_close(other);
}

static int by_text(const void *a, const void *b) {
    const struct sh_str *x = a, *y = b;
    const int order = memcmp(x->ptr, y->ptr, x->length < y->length ? x->length : y->length);
    return order != 0 ? order : (x->length > y->length) - (x->length < y->length);
}

static void check_vocabulary(enum genmodel_vocab kind, uint32_t n) {
    static const char text[] = "the quick brown fox: 12 \xC3\xA4pfel\nand more";
    struct genmodel_params p = genmodel_defaults();
    struct sh_gguf *g;
    struct sh_vocab *vocab;
    int32_t *ids;
    size_t count, length;
    char *back;
    p.vocab = n;
    p.vocab_kind = kind;
    p.embd = 32;
    p.heads = p.kv_heads = 1;
    p.head_dim = 32;
    p.ff = 32;
    p.tied = true;
    const char *path = test_scratch("vocab.gguf");
    OK(genmodel_write(path, &p, &err));
    OK(sh_gguf_open(path, &g, &err));
    assert_null(sh_gguf_tensor(g, "output.weight"));
    const struct sh_kv *tokens = sh_gguf_find(g, "tokenizer.ggml.tokens");
    assert_int_equal(tokens->count, n);
    struct sh_str *sorted = malloc(n * sizeof *sorted);
    memcpy(sorted, tokens->strings, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_text);
    for (uint32_t i = 1; i < n; i++)
        if (by_text(&sorted[i - 1], &sorted[i]) == 0) fail_msg("token '%.*s' twice", (int)sorted[i].length, sorted[i].ptr);
    free(sorted);
    OK(sh_vocab_create(g, &vocab, &err));
    sh_gguf_close(g);
    assert_int_equal(sh_vocab_size(vocab), n);
    OK(sh_tokenize(vocab, text, sizeof text - 1, 0, &ids, &count, &err));
    /* words are joined from letters wherever the vocabulary has them */
    if (n >= 32000) assert_true(count < sizeof text - 10);
    OK(sh_detokenize(vocab, ids, count, false, true, &back, &length, &err));
    assert_string_equal(back, text);
    free(ids);
    free(back);
    OK(sh_tokenize(vocab, text, 3, SH_TOKENIZE_SPECIAL, &ids, &count, &err));
    assert_int_equal(ids[0], sh_vocab_bos(vocab));
    free(ids);
    sh_vocab_destroy(vocab);
}

static void test_vocabularies(void **state) {
    (void)state;
    check_vocabulary(GENMODEL_SPM, 260);
    check_vocabulary(GENMODEL_SPM, 512);
    check_vocabulary(GENMODEL_SPM, 32000);
    check_vocabulary(GENMODEL_BPE, 258);
    check_vocabulary(GENMODEL_BPE, 128000);
    check_vocabulary(GENMODEL_BPE, 262144);
}

/* What a model that chats has: pieces that merges really make, tokens and templates as given, an end token of them. */
static void check_chat(enum genmodel_vocab kind) {
    static const char *const control[] = {"<|im_start|>", "<|im_end|>"}, *const user_defined[] = {"<tool_call>", "<think>"};
    static const struct genmodel_template templates[] = {{NULL, "{{ messages }}"}, {"tool_use", "{{ tools }}"}};
    /* with the number of tokens that each is; SentencePiece puts a space before them */
    static const struct {
        const char *text;
        uint32_t bpe, spm;
    } joined[] = {
        {"{\"name\":\"", 3, 4},
        {"100", 1, 2},
        {"\xE6\x97\xA5\xE6\x9C\xAC", 1, 2},
        {"true", 1, 1},
    };
    struct genmodel_params p = genmodel_defaults();
    struct sh_gguf *g;
    struct sh_vocab *vocab;
    struct sh_str text;
    int32_t *ids;
    size_t count, length;
    char *back;
    p.vocab = 1500;
    p.vocab_kind = kind;
    p.pieces = true;
    p.control = control;
    p.n_control = SH_COUNT(control);
    p.user_defined = user_defined;
    p.n_user_defined = SH_COUNT(user_defined);
    p.eos = "<|im_end|>";
    p.templates = templates;
    p.n_templates = SH_COUNT(templates);
    const char *path = test_scratch("chat.gguf");
    OK(genmodel_write(path, &p, &err));
    OK(sh_gguf_open(path, &g, &err));
    OK(sh_gguf_str(g, "tokenizer.chat_template.tool_use", &text, &err));
    assert_int_equal(text.length, 11);
    assert_memory_equal(text.ptr, "{{ tools }}", 11);
    OK(sh_vocab_create(g, &vocab, &err));
    sh_gguf_close(g);
    assert_string_equal(sh_vocab_chat_template(vocab), "{{ messages }}");
    static const char turn[] = "x\xF0\x9F\x98\x80\xF0\x9F\x98\x81\x07<tool_call><|im_start|><|im_end|>";
    OK(sh_tokenize(vocab, turn, sizeof turn - 1, SH_TOKENIZE_PARSE, &ids, &count, &err));
    assert_int_equal(ids[count - 1], sh_vocab_eos(vocab));
    assert_true(sh_vocab_is_end(vocab, sh_vocab_eos(vocab)));
    OK(sh_detokenize(vocab, ids, count, true, true, &back, &length, &err));
    assert_string_equal(back, turn);
    free(ids);
    free(back);
    for (size_t i = 0; i < SH_COUNT(joined); i++) {
        OK(sh_tokenize(vocab, joined[i].text, strlen(joined[i].text), 0, &ids, &count, &err));
        const uint32_t want = kind == GENMODEL_BPE ? joined[i].bpe : joined[i].spm;
        if (count != want) fail_msg("'%s': %zu tokens, want %u", joined[i].text, count, want);
        free(ids);
    }
    sh_vocab_destroy(vocab);
}

/* Another file's vocabulary comes over whole, without its templates. */
static void test_vocab_from(void **state) {
    (void)state;
    static const struct genmodel_template template = {NULL, "{{ messages }}"};
    const char *from = test_scratch("from.gguf"), *to = test_scratch("to.gguf");
    struct genmodel_params p = genmodel_defaults();
    struct sh_gguf *a, *b;
    p.vocab = 700;
    p.vocab_kind = GENMODEL_BPE;
    p.templates = &template;
    p.n_templates = 1;
    OK(genmodel_write(from, &p, &err));
    p = genmodel_defaults();
    p.vocab_from = from;
    OK(genmodel_write(to, &p, &err));
    OK(sh_gguf_open(from, &a, &err));
    OK(sh_gguf_open(to, &b, &err));
    assert_int_equal(sh_gguf_tensor(b, "output.weight")->dims[1], 700);
    assert_null(sh_gguf_find(b, "tokenizer.chat_template"));
    uint32_t same = 0;
    for (uint64_t i = 0; i < sh_gguf_kv_count(a); i++) {
        const struct sh_kv *x = sh_gguf_kv_at(a, i), *y = sh_gguf_find(b, x->key);
        if (strncmp(x->key, "tokenizer.ggml.", 15) != 0) continue;
        assert_non_null(y);
        assert_int_equal(x->type, y->type);
        assert_int_equal(x->count, y->count);
        for (uint64_t k = 0; x->strings != NULL && k < x->count; k++) {
            assert_int_equal(x->strings[k].length, y->strings[k].length);
            assert_memory_equal(x->strings[k].ptr, y->strings[k].ptr, x->strings[k].length);
        }
        same++;
    }
    assert_int_equal(same, 9);
    sh_gguf_close(a);
    sh_gguf_close(b);
}

static void test_chat(void **state) {
    (void)state;
    check_chat(GENMODEL_BPE);
    check_chat(GENMODEL_SPM);
}

/* Generated models run, and what they say is neither flat nor wild: logits of mean near 0 and deviation around 2. */
static void check_logits(const char *what, const char *path) {
    static const int32_t tokens[] = {1, 300, 17, 421, 5, 99};
    struct core_model m;
    core_load(&m, "cpu-scalar", path, NULL);
    float *logits = malloc(m.n_vocab * sizeof *logits);
    core_prefill(&m, core_sequence(&m), tokens, SH_COUNT(tokens), 0, NULL, logits);
    double sum = 0, square = 0;
    for (uint32_t i = 0; i < m.n_vocab; i++) sum += (double)logits[i];
    for (uint32_t i = 0; i < m.n_vocab; i++) square += (double)logits[i] * (double)logits[i];
    const double deviation = sqrt(square / m.n_vocab), mean = sum / m.n_vocab;
    if (!(deviation > 1 && deviation < 4 && fabs(mean) < 0.5))
        fail_msg("%s: logits of mean %g, deviation %g", what, mean, deviation);
    free(logits);
    core_unload(&m);
}

static void test_logits(void **state) {
    (void)state;
    const char *path = test_scratch("logits.gguf");
    char first[4096];
    for (size_t k = 0; k < SH_COUNT(types); k++) {
        struct genmodel_params p = genmodel_defaults();
        p.type = types[k];
        OK(genmodel_write(path, &p, &err));
        check_logits(types[k], path);
    }
    struct genmodel_params p = genmodel_defaults();
    p.layers = 12;
    OK(genmodel_write(path, &p, &err));
    check_logits("12 layers", path);
    p = genmodel_defaults();
    p.tied = p.bias = p.rope_freqs = true;
    p.head_dim = 32;
    p.vocab_kind = GENMODEL_BPE;
    p.shards = 2;
    OK(genmodel_write(path, &p, &err));
    genmodel_shard_path(path, 1, 2, first, sizeof first);
    check_logits("tied, with biases and rope factors, split", first);
}

static void refused(struct genmodel_params p, const char *part) {
    assert_int_not_equal(genmodel_write(test_scratch("refused.gguf"), &p, &err), SH_OK);
    if (strstr(err.message, part) == NULL) fail_msg("'%s' is not in: %s", part, err.message);
}

static void test_refused(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "Q9";
    refused(p, "'Q9'");
    p = genmodel_defaults();
    p.type = "Q4_K";
    p.ff = 320;
    refused(p, "ffn_down.weight': rows of 320");
    p = genmodel_defaults();
    p.kv_heads = 3;
    refused(p, "multiple of 3");
    p = genmodel_defaults();
    p.arch = "gpt9";
    refused(p, "'gpt9'");
    p = genmodel_defaults();
    p.vocab = 100;
    refused(p, "260 to 262144");
    static const char *const twice[] = {"<a>", "<b>", "<a>"};
    p = genmodel_defaults();
    p.control = twice;
    p.n_control = 3;
    refused(p, "'<a>' twice");
    p.n_control = 2;
    p.eos = "<c>";
    refused(p, "eos '<c>'");
    p = genmodel_defaults();
    p.vocab_from = "/nonexistent.gguf";
    refused(p, "/nonexistent.gguf");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),   cmocka_unit_test(test_same_values), cmocka_unit_test(test_vocabularies),
        cmocka_unit_test(test_chat),    cmocka_unit_test(test_vocab_from),  cmocka_unit_test(test_logits),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
