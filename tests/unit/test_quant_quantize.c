/* The reference quantisers: error on Gaussian weights, against the reference implementation's own files, and odd blocks. */
#include "compute/gguf/quant.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static double rms_error(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sqrt(sum / (double)n);
}

static void test_gaussian(void **state) {
    (void)state;
    /* root mean square error on unit deviation; the bounds stand 3 % above what is reached */
    static const struct {
        uint32_t type;
        double bound;
    } cases[] = {{SH_TYPE_F32, 0},        {SH_TYPE_F16, 0.000214},  {SH_TYPE_BF16, 0.001724}, {SH_TYPE_Q8_0, 0.005503},
                 {SH_TYPE_Q4_0, 0.0882},  {SH_TYPE_Q4_K, 0.0721},   {SH_TYPE_Q5_K, 0.0358},   {SH_TYPE_Q6_K, 0.0180},
                 {SH_TYPE_Q4_1, 0.0707},  {SH_TYPE_Q5_0, 0.0413},   {SH_TYPE_Q5_1, 0.0342},   {SH_TYPE_Q2_K, 0.2737},
                 {SH_TYPE_Q3_K, 0.1501},  {SH_TYPE_IQ4_NL, 0.0766}, {SH_TYPE_IQ4_XS, 0.0774}, {SH_TYPE_MXFP4, 0.1188},
                 {SH_TYPE_TQ1_0, 0.8301}, {SH_TYPE_TQ2_0, 0.8301},  {SH_TYPE_IQ2_S, 0.2718},  {SH_TYPE_IQ3_XXS, 0.2186},
                 {SH_TYPE_IQ3_S, 0.1710}};
    enum { N = 1 << 16 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    uint8_t *b = malloc(N * 4), *again = malloc(N * 4);
    struct test_rng rng = {3};
    for (int i = 0; i < N; i++) x[i] = test_normal(&rng);
    for (size_t k = 0; k < SH_COUNT(cases); k++) {
        const uint64_t bytes = sh_type_row_bytes(cases[k].type, N);
        assert_true(sh_quantize(cases[k].type, x, b, N));
        assert_true(sh_quantize(cases[k].type, x, again, N));
        assert_memory_equal(b, again, bytes);
        assert_true(sh_dequantize(cases[k].type, b, y, N));
        const double e = rms_error(x, y, N);
        if (!(e <= cases[k].bound))
            fail_msg("%s: error %.6f, expected at most %.6f", sh_type_info(cases[k].type)->name, e, cases[k].bound);
    }
    free(x);
    free(y);
    free(b);
    free(again);
}

/* Values that every type must hold: zeros exactly, constants and single outliers nearly, tiny blocks without NaN. */
static void test_odd_blocks(void **state) {
    (void)state;
    static const uint32_t types[] = {SH_TYPE_Q4_0,   SH_TYPE_Q8_0,   SH_TYPE_Q4_K,  SH_TYPE_Q5_K,  SH_TYPE_Q6_K,
                                     SH_TYPE_Q4_1,   SH_TYPE_Q5_0,   SH_TYPE_Q5_1,  SH_TYPE_Q2_K,  SH_TYPE_Q3_K,
                                     SH_TYPE_IQ4_NL, SH_TYPE_IQ4_XS, SH_TYPE_MXFP4, SH_TYPE_TQ1_0, SH_TYPE_TQ2_0};
    float x[256], y[256];
    uint8_t b[1024];
    for (size_t k = 0; k < SH_COUNT(types); k++) {
        const char *name = sh_type_info(types[k])->name;
        for (int kind = 0; kind < 6; kind++) {
            for (int i = 0; i < 256; i++) {
                const float cases[6] = {
                    0, 0.75f, -0.75f, i == 77 ? -3.0f : 0.0f, 1e-30f * (float)(i - 128), i < 128 ? 0.0f : 1.0f};
                x[i] = cases[kind];
            }
            assert_true(sh_quantize(types[k], x, b, 256));
            assert_true(sh_dequantize(types[k], b, y, 256));
            for (int i = 0; i < 256; i++) {
                const double tolerance = kind == 0 || kind == 4 ? 1e-27 : kind == 3 ? 0.03 : 0.012;
                if (!(fabs((double)y[i] - (double)x[i]) <= tolerance))
                    fail_msg("%s kind %d element %d: %g, want %g", name, kind, i, (double)y[i], (double)x[i]);
            }
        }
        for (int i = 0; i < 256; i++) x[i] = i % 3 == 0 ? NAN : i % 5 == 0 ? INFINITY : 1;
        assert_true(sh_quantize(types[k], x, b, 256)); /* any values, but no crash */
    }
    assert_false(sh_quantize(SH_TYPE_IQ2_XS, x, b, 256));
    assert_false(sh_quantize(99, x, b, 256));
}

static const uint32_t point_types[] = {SH_TYPE_IQ2_S, SH_TYPE_IQ3_XXS, SH_TYPE_IQ3_S};

/* Types of codebook points have no zero, no four equal large levels (nearest to them are points with one level several steps lower), and
 * IQ3_XXS an even number of negative signs in eight: what those blocks may lose is more, but bounded. */
static void test_odd_blocks_of_points(void **state) {
    (void)state;
    float x[256], y[256];
    uint8_t b[1024];
    for (size_t k = 0; k < SH_COUNT(point_types); k++) {
        const char *name = sh_type_info(point_types[k])->name;
        for (int kind = 0; kind < 7; kind++) {
            for (int i = 0; i < 256; i++) {
                const float cases[7] = {0,     0.75f, -0.75f, i == 77 ? -3.0f : 0.0f, 1e-30f * (float)(i - 128), i < 128 ? 0.0f : 1.0f,
                                        1e-45f};
                x[i] = cases[kind];
            }
            assert_true(sh_quantize(point_types[k], x, b, 256));
            assert_true(sh_dequantize(point_types[k], b, y, 256));
            for (int i = 0; i < 256; i++) {
                /* beside an outlier of 3 a zero gets the lowest level or the next: 1/15 or 3/15 of it, in IQ2_S 8/43; a third at most */
                const double nothing = kind == 3 ? 1.0 : kind == 5 ? 0.01 : 1e-27;
                const double tolerance = x[i] == 0 || kind == 4 || kind == 6 ? nothing : 0.3 * fabs((double)x[i]);
                if (!(fabs((double)y[i] - (double)x[i]) <= tolerance))
                    fail_msg("%s kind %d element %d: %g, want %g", name, kind, i, (double)y[i], (double)x[i]);
            }
            if (kind == 3 && !(y[77] < -2.7f && y[77] > -3.3f)) fail_msg("%s: the outlier is %g", name, (double)y[77]);
        }
    }
}

/* Values that are no numbers, or whose squares are none: any result, but in bounds, and nothing written beside the blocks. */
static void test_hostile_values_and_guards(void **state) {
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e25f, 1e-45f, -1e-8f, 1, -0.0f, 65504, -1e19f};
    struct test_rng rng = {11};
    float x[5 * 256];
    uint8_t b[16 + 5 * 110 + 16];
    for (size_t k = 0; k < SH_COUNT(point_types); k++) {
        const uint64_t block = sh_type_info(point_types[k])->block_bytes;
        for (uint64_t blocks = 1; blocks <= 5; blocks += 2)
            for (int turn = 0; turn < 40; turn++) {
                const bool one_kind = turn < (int)SH_COUNT(values);
                for (int i = 0; i < (int)blocks * 256; i++)
                    x[i] = one_kind ? values[turn] : values[test_random(&rng) % SH_COUNT(values)];
                memset(b, 0xA5, sizeof b);
                assert_true(sh_quantize(point_types[k], x, b + 16, blocks * 256));
                for (uint64_t i = 0; i < sizeof b; i++)
                    if (i < 16 || i >= 16 + blocks * block) assert_int_equal(b[i], 0xA5);
            }
    }
}

/* FNV-1a over the blocks that libggml 0.27.0 (quantize_iq2_s, quantize_iq3_xxs, quantize_iq3_s without weights) makes of these values. */
static void test_same_blocks_as_reference(void **state) {
    (void)state;
    static const uint32_t hashes[] = {0xd8e654c6, 0xa0dcf98c, 0x5b8d418b};
    enum { N = 1 << 16 };
    float *x = malloc(N * sizeof *x);
    uint8_t *b = malloc(N);
    struct test_rng rng = {7};
    for (int i = 0; i < N; i++) { /* a bell, of exact numbers on every machine */
        int64_t sum = 0;
        for (int k = 0; k < 8; k++) sum += (int64_t)(test_random(&rng) >> 44);
        x[i] = (float)(sum - (8 << 19)) * 0x1p-20f;
    }
    for (size_t k = 0; k < SH_COUNT(point_types); k++) {
        assert_true(sh_quantize(point_types[k], x, b, N));
        uint32_t hash = 2166136261u;
        for (uint64_t i = 0; i < sh_type_row_bytes(point_types[k], N); i++) hash = (hash ^ b[i]) * 16777619u;
        if (hash != hashes[k])
            fail_msg("%s: blocks of hash 0x%08x, expected 0x%08x", sh_type_info(point_types[k])->name, hash, hashes[k]);
    }
    free(x);
    free(b);
}

static float *floats(const struct sh_gguf *g, const struct sh_tensor *t, uint64_t *n) {
    struct sh_error err;
    *n = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    void *raw = malloc(t->bytes);
    float *values = malloc(*n * sizeof *values);
    if (sh_gguf_read(g, t, 0, raw, t->bytes, &err) != SH_OK) fail_msg("%s", err.message);
    assert_true(sh_dequantize(t->type, raw, values, *n));
    free(raw);
    return values;
}

/* The reference quantised the same embedding (its other matrices differ from file to file): our error must not be larger than
 * its own by more than 1 %. */
static void test_reference_files(void **state) {
    (void)state;
    static const char *const files[] = {"parity/llama-Q4_0.gguf",   "parity/llama-Q8_0.gguf",  "parity/llama-Q4_K_M.gguf",
                                        "parity/llama-Q5_K_M.gguf", "parity/llama-Q6_K.gguf",  "parity/llama-F16.gguf",
                                        "parity/llama-BF16.gguf",   "parity/llama-Q4_1.gguf",  "parity/llama-Q5_0.gguf",
                                        "parity/llama-Q5_1.gguf",   "parity/llama-Q2_K.gguf",  "parity/llama-Q3_K_M.gguf",
                                        "parity/llama-IQ4_NL.gguf", "parity/llama-IQ4_XS.gguf"};
    static const char name[] = "token_embd.weight";
    struct sh_gguf *exact, *g;
    struct sh_error err;
    if (sh_gguf_open(TEST_SHARED("parity/llama-F32.gguf"), &exact, &err) != SH_OK) fail_msg("%s", err.message);
    for (size_t k = 0; k < SH_COUNT(files); k++) {
        if (sh_gguf_open(TEST_SHARED(files[k]), &g, &err) != SH_OK) fail_msg("%s", err.message);
        const struct sh_tensor *t = sh_gguf_tensor(g, name), *e = sh_gguf_tensor(exact, name);
        assert_true(t != NULL && e != NULL && t->type != e->type);
        uint64_t n;
        float *reference = floats(g, t, &n), *x = floats(exact, e, &n), *y = malloc(n * sizeof *y);
        uint8_t *b = malloc(t->bytes);
        assert_true(sh_quantize(t->type, x, b, n));
        assert_true(sh_dequantize(t->type, b, y, n));
        const double theirs = rms_error(x, reference, n), ours = rms_error(x, y, n);
        if (!(ours <= theirs * 1.01))
            fail_msg("%s (%s): error %.8f, the reference's %.8f", files[k], sh_type_info(t->type)->name, ours, theirs);
        /* the same weights, or the comparison says nothing */
        assert_true(ours >= theirs * 0.9);
        free(reference);
        free(x);
        free(y);
        free(b);
        sh_gguf_close(g);
    }
    sh_gguf_close(exact);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gaussian),
        cmocka_unit_test(test_odd_blocks),
        cmocka_unit_test(test_odd_blocks_of_points),
        cmocka_unit_test(test_hostile_values_and_guards),
        cmocka_unit_test(test_same_blocks_as_reference),
        cmocka_unit_test(test_reference_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
