/* A model file quantised into another: which tensor gets which type, their bytes, and what goes wrong. */
#include "compute/engine.h"
#include "compute/gguf/quant.h"
#include "compute/gguf/write.h"
#include "compute/quantize/recipe.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error err;
#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s: %s", #call, err.message);                                                             \
    } while (0)

/* What llama-quantize (build 11669) gives the tensors of a llama of 24 layers, 8 heads and 2 of keys and values. */
static void test_recipes(void **state) {
    (void)state;
    static const struct {
        const char *recipe, *tensor;
        uint32_t type;
    } cases[] = {
        {"Q4_K_M", "blk.0.attn_v.weight", SH_TYPE_Q6_K},
        {"Q4_K_M", "blk.3.attn_v.weight", SH_TYPE_Q4_K},
        {"q4_k", "blk.5.ffn_down.weight", SH_TYPE_Q6_K},
        {"Q4_K_M", "blk.21.ffn_down.weight", SH_TYPE_Q6_K},
        {"Q4_K_M", "blk.20.ffn_up.weight", SH_TYPE_Q4_K},
        {"Q4_K_M", "output.weight", SH_TYPE_Q6_K},
        {"Q4_K_M", "token_embd.weight", SH_TYPE_Q4_K},
        {"Q4_K_S", "blk.3.attn_v.weight", SH_TYPE_Q5_K},
        {"Q4_K_S", "blk.4.attn_v.weight", SH_TYPE_Q4_K},
        {"Q4_K_S", "blk.2.ffn_down.weight", SH_TYPE_Q5_K},
        {"Q4_K_S", "blk.3.ffn_down.weight", SH_TYPE_Q4_K},
        {"Q3_K_M", "blk.0.ffn_down.weight", SH_TYPE_Q5_K},
        {"Q3_K_M", "blk.10.ffn_down.weight", SH_TYPE_Q4_K},
        {"Q3_K_M", "blk.1.attn_v.weight", SH_TYPE_Q5_K},
        {"Q3_K_M", "blk.2.attn_v.weight", SH_TYPE_Q4_K},
        {"Q3_K_L", "blk.7.attn_output.weight", SH_TYPE_Q5_K},
        {"Q2_K", "blk.7.attn_v.weight", SH_TYPE_Q4_K},
        {"Q2_K", "blk.7.ffn_down.weight", SH_TYPE_Q3_K},
        {"Q2_K", "blk.7.ffn_up.weight", SH_TYPE_Q2_K},
        {"IQ4_NL", "blk.2.ffn_down.weight", SH_TYPE_Q5_K},
        {"IQ4_NL", "blk.9.attn_v.weight", SH_TYPE_Q5_K},
        {"IQ3_M", "blk.2.ffn_down.weight", SH_TYPE_Q4_K},
        {"IQ3_M", "blk.3.ffn_down.weight", SH_TYPE_IQ3_S},
        {"IQ3_M", "blk.9.attn_v.weight", SH_TYPE_Q4_K},
        {"IQ3_M", "blk.9.attn_output.weight", SH_TYPE_Q4_K},
        {"IQ3_M", "blk.9.attn_q.weight", SH_TYPE_IQ3_S},
        {"IQ3_S", "blk.9.attn_v.weight", SH_TYPE_Q4_K},
        {"IQ3_S", "blk.9.attn_output.weight", SH_TYPE_IQ3_S},
        {"IQ3_S", "blk.0.ffn_down.weight", SH_TYPE_IQ3_S},
        {"IQ3_S", "token_embd.weight", SH_TYPE_IQ3_S},
        {"IQ3_S", "output.weight", SH_TYPE_Q6_K},
        {"IQ3_XS", "blk.9.attn_q.weight", SH_TYPE_IQ3_XXS},
        {"IQ3_XS", "blk.9.attn_k.weight", SH_TYPE_IQ3_XXS},
        {"IQ3_XS", "blk.2.ffn_up.weight", SH_TYPE_IQ3_S},
        {"IQ3_XS", "blk.3.ffn_up.weight", SH_TYPE_IQ3_XXS},
        {"IQ3_XS", "blk.20.ffn_gate.weight", SH_TYPE_IQ3_XXS},
        {"IQ3_XS", "blk.21.ffn_gate.weight", SH_TYPE_IQ3_S},
        {"IQ3_XS", "blk.9.ffn_down.weight", SH_TYPE_IQ3_S},
        {"IQ3_XS", "output.weight", SH_TYPE_Q6_K},
        {"IQ3_XXS", "blk.9.attn_q.weight", SH_TYPE_IQ2_S},
        {"IQ3_XXS", "blk.9.attn_k.weight", SH_TYPE_IQ2_S},
        {"IQ3_XXS", "blk.9.attn_v.weight", SH_TYPE_Q4_K},
        {"IQ3_XXS", "blk.9.attn_output.weight", SH_TYPE_IQ3_S},
        {"IQ3_XXS", "blk.2.ffn_down.weight", SH_TYPE_Q4_K},
        {"IQ3_XXS", "blk.3.ffn_down.weight", SH_TYPE_Q3_K},
        {"IQ3_XXS", "blk.3.ffn_up.weight", SH_TYPE_IQ3_XXS},
        {"IQ3_XXS", "token_embd.weight", SH_TYPE_IQ3_S},
        {"IQ3_XXS", "output.weight", SH_TYPE_Q5_K},
        {"IQ3_S", "blk.9.attn_qkv.weight", SH_TYPE_Q4_K},
        {"Q4_K_M", "blk.0.attn_qkv.weight", SH_TYPE_Q6_K},
        {"Q4_K_M", "blk.3.attn_kv_b.weight", SH_TYPE_Q4_K},
        {"Q3_K_M", "blk.1.attn_qkv.weight", SH_TYPE_Q5_K},
        {"IQ2_M", "blk.9.attn_q.weight", SH_TYPE_IQ2_S},
        {"IQ2_M", "blk.9.attn_v.weight", SH_TYPE_Q4_K},
        {"IQ2_M", "blk.9.attn_output.weight", SH_TYPE_IQ3_S},
        {"IQ2_M", "blk.2.ffn_down.weight", SH_TYPE_IQ3_S},
        {"IQ2_M", "blk.3.ffn_down.weight", SH_TYPE_IQ2_S},
        {"IQ2_M", "token_embd.weight", SH_TYPE_IQ3_S},
        {"IQ2_M", "output.weight", SH_TYPE_Q5_K},
        {"Q5_K", "blk.0.attn_v.weight", SH_TYPE_Q6_K},
        {"Q5_K_S", "blk.0.attn_v.weight", SH_TYPE_Q5_K},
        {"Q4_0", "output.weight", SH_TYPE_Q6_K},
        {"Q8_0", "output.weight", SH_TYPE_Q8_0},
        {"Q4_0", "blk.0.attn_norm.weight", SH_TYPE_F32},
        {"Q4_0", "blk.0.ffn_gate_inp.weight", SH_TYPE_F32},
        {"MXFP4_MOE", "blk.0.ffn_up_exps.weight", SH_TYPE_MXFP4},
        {"MXFP4_MOE", "blk.0.attn_q.weight", SH_TYPE_Q8_0},
        {"TQ2_0", "token_embd.weight", SH_TYPE_Q4_K},
    };
    const struct sh_recipe_model model = {.n_layers = 24, .n_heads_per_kv = 4};
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        const struct sh_tensor t = {.name = cases[i].tensor, .type = SH_TYPE_F32, .rank = 2, .dims = {256, 512, 1, 1}};
        const struct sh_recipe *recipe = sh_recipe_find(cases[i].recipe);
        assert_non_null(recipe);
        const uint32_t type = sh_recipe_type(recipe, &model, &t);
        if (type != cases[i].type)
            fail_msg("%s of %s: found type %u, expected %u", cases[i].tensor, cases[i].recipe, type, cases[i].type);
    }
    assert_null(sh_recipe_find("Q4"));
    /* rows that are no whole number of blocks */
    struct sh_tensor odd = {.name = "blk.0.attn_q.weight", .type = SH_TYPE_F32, .rank = 2, .dims = {96, 512, 1, 1}};
    assert_int_equal(sh_recipe_type(sh_recipe_find("Q4_K_M"), &model, &odd), SH_TYPE_Q5_0);
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ3_S"), &model, &odd), SH_TYPE_IQ4_NL);
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ3_XXS"), &model, &odd), SH_TYPE_IQ4_NL);
    odd.dims[0] = 40;
    assert_int_equal(sh_recipe_type(sh_recipe_find("Q4_K_M"), &model, &odd), SH_TYPE_F16);
    /* eight experts: attention is a small part of the weights */
    const struct sh_recipe_model eight = {.n_layers = 24, .n_heads_per_kv = 4, .n_experts = 8};
    const struct sh_tensor output = {
        .name = "blk.7.attn_output.weight", .type = SH_TYPE_F32, .rank = 2, .dims = {256, 512, 1, 1}};
    assert_int_equal(sh_recipe_type(sh_recipe_find("Q4_K_M"), &eight, &output), SH_TYPE_Q5_K);
    assert_int_equal(sh_recipe_type(sh_recipe_find("Q3_K_L"), &eight, &output), SH_TYPE_Q3_K);
    assert_int_equal(sh_recipe_type(sh_recipe_find("Q6_K"), &eight, &output), SH_TYPE_Q6_K);
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ3_XXS"), &eight, &output), SH_TYPE_Q5_K);
    const struct sh_tensor key = {.name = "blk.7.attn_k.weight", .type = SH_TYPE_F32, .rank = 2, .dims = {256, 512, 1, 1}};
    const struct sh_tensor value = {.name = "blk.7.attn_v.weight", .type = SH_TYPE_F32, .rank = 2, .dims = {256, 512, 1, 1}};
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ3_XS"), &eight, &key), SH_TYPE_Q8_0);
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ2_M"), &eight, &key), SH_TYPE_Q4_K);
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ2_M"), &eight, &value), SH_TYPE_Q4_K);
    /* two heads to each of keys and values: the values' matrix is larger */
    const struct sh_recipe_model two = {.n_layers = 24, .n_heads_per_kv = 2};
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ3_S"), &two, &value), SH_TYPE_IQ3_S);
    assert_int_equal(sh_recipe_type(sh_recipe_find("IQ2_M"), &two, &value), SH_TYPE_IQ3_S);
    assert_string_equal(sh_quantize_type("q4_k"), "Q4_K_M");
    assert_true(sh_recipe_needs_importance("iq2_xs") && sh_recipe_needs_importance("IQ1_M"));
    assert_false(sh_recipe_needs_importance("IQ3_XXS") || sh_recipe_needs_importance("Q9"));
    assert_null(sh_quantize_type("IQ2_XS"));
    assert_null(sh_quantize_type("Q9"));
    /* tied: the embedding is the output, too */
    const struct sh_recipe_model tied = {.n_layers = 24, .n_heads_per_kv = 4, .tied = true};
    const struct sh_tensor embd = {.name = "token_embd.weight", .type = SH_TYPE_F32, .rank = 2, .dims = {256, 512, 1, 1}};
    assert_int_equal(sh_recipe_type(sh_recipe_find("Q4_K_M"), &tied, &embd), SH_TYPE_Q6_K);
}

static char in_path[512], out_path[512], other_path[512];

static void quantize(const char *out, const char *type, uint32_t threads) {
    const struct sh_quantize_file_params params = {
        .size = sizeof params, .in = in_path, .out = out, .type = type, .threads = threads};
    OK(sh_quantize_file(&params, &err));
}

static void *read_tensor(const struct sh_gguf *g, const struct sh_tensor *t) {
    void *bytes = malloc(t->bytes);
    assert_non_null(bytes);
    OK(sh_gguf_read(g, t, 0, bytes, t->bytes, &err));
    return bytes;
}

/* Every tensor of the copy is the reference quantisation of the same one of the source. */
static void check_copy(const char *type) {
    struct sh_gguf *a, *b;
    OK(sh_gguf_open(in_path, &a, &err));
    OK(sh_gguf_open(out_path, &b, &err));
    assert_int_equal(sh_gguf_tensor_count(a), sh_gguf_tensor_count(b));
    bool changed = false;
    for (uint64_t i = 0; i < sh_gguf_tensor_count(a); i++) {
        const struct sh_tensor *from = sh_gguf_tensor_at(a, i), *to = sh_gguf_tensor(b, from->name);
        assert_non_null(to);
        const uint64_t n = from->dims[0] * from->dims[1] * from->dims[2] * from->dims[3];
        void *src = read_tensor(a, from), *dst = read_tensor(b, to), *want = malloc(to->bytes);
        float *floats = malloc(n * sizeof *floats);
        assert_true(want && floats);
        if (from->type == to->type) {
            memcpy(want, src, to->bytes);
        } else {
            changed = true;
            assert_true(sh_dequantize(from->type, src, floats, n) && sh_quantize(to->type, floats, want, n));
        }
        if (memcmp(want, dst, to->bytes) != 0) fail_msg("%s as %s: other bytes", from->name, type);
        free(src);
        free(dst);
        free(want);
        free(floats);
    }
    assert_true(changed);
    sh_gguf_close(a);
    sh_gguf_close(b);
    struct sh_file *file;
    struct sh_file_summary summary;
    OK(sh_file_open(out_path, &file, &err));
    sh_file_get_summary(file, &summary);
    assert_string_equal(summary.type_name, type);
    OK(sh_file_check(file, &err)); /* it would load */
    sh_file_close(file);
}

static int set_up(void **state) {
    (void)state;
    snprintf(in_path, sizeof in_path, "%s", test_scratch("in.gguf"));
    snprintf(out_path, sizeof out_path, "%s", test_scratch("out.gguf"));
    snprintf(other_path, sizeof other_path, "%s", test_scratch("other.gguf"));
    struct genmodel_params params = genmodel_defaults();
    params.type = "F16";
    params.shards = 1;
    return genmodel_write(in_path, &params, &err) == SH_OK ? 0 : -1;
}

static void test_files(void **state) {
    (void)state;
    static const char *const types[] = {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "BF16", "TQ2_0", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M"};
    for (size_t i = 0; i < SH_COUNT(types); i++) {
        quantize(out_path, types[i], 2);
        check_copy(types[i]);
    }
}

static void test_threads_do_not_show(void **state) {
    (void)state;
    quantize(out_path, "Q4_K_M", 1);
    quantize(other_path, "Q4_K_M", 7);
    size_t n_a, n_b;
    void *a = test_read_file(out_path, &n_a), *b = test_read_file(other_path, &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    free(a);
    free(b);
}

static bool stop_at_once(void *user, const char *tensor, double fraction) {
    (void)user;
    assert_true(tensor[0] != '\0' && fraction > 0 && fraction <= 1);
    return false;
}

static void expect_failure(struct sh_quantize_file_params params, enum sh_code code, const char *said) {
    params.size = sizeof params;
    unlink(out_path);
    params.out = params.out ? params.out : out_path;
    assert_int_equal(sh_quantize_file(&params, &err), code);
    if (!strstr(err.message, said)) fail_msg("found \"%s\", expected something with \"%s\"", err.message, said);
    assert_int_not_equal(access(out_path, F_OK), 0);
}

static void test_failures(void **state) {
    (void)state;
    expect_failure((struct sh_quantize_file_params){.in = in_path, .type = "Q4"}, SH_ERR_NOT_FOUND, "found \"Q4\"");
    expect_failure((struct sh_quantize_file_params){.in = in_path, .type = "iq1_s"}, SH_ERR_UNSUPPORTED, "importance matrix");
    expect_failure((struct sh_quantize_file_params){.in = "/nonexistent.gguf", .type = "Q8_0"}, SH_ERR_NOT_FOUND,
                   "/nonexistent.gguf");
    expect_failure((struct sh_quantize_file_params){.in = in_path, .type = "Q8_0", .progress = stop_at_once}, SH_ERR_CANCELLED,
                   "cancelled");
    expect_failure((struct sh_quantize_file_params){.in = in_path, .type = "Q8_0", .out = "/nonexistent/x.gguf"}, SH_ERR_IO,
                   "/nonexistent/x.gguf");
    quantize(other_path, "Q4_0", 1);
    expect_failure((struct sh_quantize_file_params){.in = other_path, .type = "Q8_0"}, SH_ERR_UNSUPPORTED, "found type Q4_0");
    /* a value that is no number */
    struct sh_gguf_writer *w;
    float values[64] = {1, 2, 3};
    values[40] = -1.0f / 0.0f;
    OK(sh_gguf_writer_create(other_path, 3, 0, &w, &err));
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_tensor(w, "blk.0.attn_q.weight", SH_TYPE_F32, 2, (const uint64_t[4]){32, 2, 1, 1});
    OK(sh_gguf_writer_begin(w, &err));
    OK(sh_gguf_writer_data(w, values, sizeof values, &err));
    OK(sh_gguf_writer_finish(w, &err));
    sh_gguf_writer_destroy(w);
    expect_failure((struct sh_quantize_file_params){.in = other_path, .type = "Q8_0"}, SH_ERR_FORMAT, "blk.0.attn_q.weight");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recipes), cmocka_unit_test(test_files),
                                       cmocka_unit_test(test_threads_do_not_show), cmocka_unit_test(test_failures)};
    return cmocka_run_group_tests(tests, set_up, NULL);
}
