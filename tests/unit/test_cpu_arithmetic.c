/*
 * Whole models on the AVX2 table, and on those that promise its bits, against the AVX2 table with its matrix products in plain C,
 * element by element as kernels.h states their arithmetic: every logit of a prompt and of a few decoded tokens has the same bits. The
 * files of ../shared/parity hold every weight type, and mixtures of experts.
 */
#include "compute/cpu/cpu.h"
#include "tests/unit/amx_plain.h"
#include "tests/unit/core.h"
#include "tests/unit/shared.h"
#include "tests/unit/stated.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#if defined(__x86_64__)

static uint64_t matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows) { return sh_type_row_bytes(type, cols) * rows; }
static void pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {
    const uint64_t row_bytes = sh_type_row_bytes(w->type, w->cols);
    memcpy((uint8_t *)w->data + row0 * row_bytes, src, n_rows * row_bytes);
}
static void unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out) {
    sh_dequantize(w->type, (const uint8_t *)w->data + row * sh_type_row_bytes(w->type, w->cols), out, w->cols);
}
static uint32_t operand(uint32_t type) {
    (void)type;
    return 0;
}
static uint64_t operand_bytes(uint32_t kind, uint64_t cols) {
    (void)kind;
    return sh_align_up(cols * sizeof(float), 64);
}
static void prepare(uint32_t kind, const float *x, uint64_t cols, uint32_t n_rows, void *out) {
    for (uint32_t r = 0; r < n_rows; r++) memcpy((uint8_t *)out + r * operand_bytes(kind, cols), x + r * cols, cols * sizeof *x);
}
static void matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    (void)scratch;
    const uint64_t cols = m->w->cols, end = sh_min_u64(group1 * 8, m->w->rows);
    float *y = malloc(m->n_rows * sizeof *y);
    SH_ASSERT(y != NULL);
    for (uint64_t row = group0 * 8; row < end; row++) {
        const uint8_t *w = (const uint8_t *)m->w->data + row * sh_type_row_bytes(m->w->type, cols);
        stated_products(m->w->type, w, cols, m->x, operand_bytes(0, cols) / sizeof(float), m->n_rows, y);
        for (uint32_t r = 0; r < m->n_rows; r++) {
            const uint64_t at = r * m->w->rows + row;
            if (m->bias != NULL) y[r] += m->bias[row];
            if (m->residual != NULL) y[r] += m->residual[at];
            m->out[at] = y[r];
        }
    }
    free(y);
}

#define N_PROMPT 19
#define N_STEPS 3

/* The AVX2 table with the products in plain C. */
static struct sh_cpu_kernels modelled(void) {
    struct sh_cpu_kernels table = sh_cpu_avx2;
    table.matrix_bytes = matrix_bytes;
    table.pack = pack;
    table.unpack = unpack;
    table.operand = operand;
    table.operand_bytes = operand_bytes;
    table.prepare = prepare;
    table.matmul = matmul;
    return table;
}

/* Logits [N_PROMPT + N_STEPS][n_vocab] of some tokens on a CPU device with another table. */
static float *run(const char *path, const struct sh_cpu_kernels *table, uint32_t *n_vocab) {
    struct sh_error err = {0};
    struct core_model m = {.devices = {core_open_device("cpu-avx2")}};
    ((struct sh_cpu_device *)m.devices[0])->kernels = table;
    const struct sh_model_params params = {.size = sizeof params, .path = path};
    core_ok(sh_model_load(m.devices, 1, &params, &m.model, &err), &err);
    core_ok(sh_context_create(m.model, NULL, &m.context, &err), &err);
    struct sh_model_info info;
    sh_model_get_info(m.model, &info);
    m.n_vocab = *n_vocab = info.n_vocab;
    float *logits = calloc((N_PROMPT + N_STEPS) * (size_t)info.n_vocab, sizeof *logits);
    assert_non_null(logits);
    int32_t tokens[N_PROMPT + N_STEPS];
    for (uint32_t i = 0; i < N_PROMPT + N_STEPS; i++) tokens[i] = (int32_t)(3 + i * 37 % 400);
    const uint32_t sequence = core_sequence(&m);
    core_prefill(&m, sequence, tokens, N_PROMPT, 0, logits, NULL);
    for (uint32_t i = N_PROMPT; i < N_PROMPT + N_STEPS; i++)
        core_step(&m, sequence, tokens[i], SH_ROLE_GENERATED, logits + (size_t)i * info.n_vocab);
    core_unload(&m);
    return logits;
}

static const char *const files[] = {
    "llama-F32",    "llama-F16",   "llama-BF16",   "llama-Q4_0",      "llama-Q4_1",     "llama-Q5_0",    "llama-Q5_1",
    "llama-Q8_0",   "llama-Q2_K",  "llama-Q3_K_M", "llama-Q4_K_M",    "llama-Q5_K_M",   "llama-Q6_K",    "llama-IQ1_S",
    "llama-IQ1_M",  "llama-IQ2_S", "llama-IQ2_XS", "llama-IQ2_XXS",   "llama-IQ3_S",    "llama-IQ3_XXS", "llama-IQ4_NL",
    "llama-IQ4_XS", "llama-TQ1_0", "llama-TQ2_0",  "llama-bias-Q8_0", "mixtral-Q4_K_M", "gpt-oss-MXFP4"};

/* Each model on `table` with its own products has the logits of the AVX2 table with products in plain C. */
static void compare(const char *test, const struct sh_cpu_kernels *table) {
    if (!sh_cpu_avx2.available()) test_skip(test, "this CPU has no AVX2, FMA and F16C");
    if (!table->available()) test_skip(test, "this CPU lacks some of %s", table->requires);
    const struct sh_cpu_kernels stated = modelled();
    for (size_t i = 0; i < SH_COUNT(files); i++) {
        char relative[128];
        snprintf(relative, sizeof relative, "parity/%s.gguf", files[i]);
        const char *path = TEST_SHARED(relative);
        uint32_t n_vocab;
        float *found = run(path, table, &n_vocab), *expected = run(path, &stated, &n_vocab);
        for (size_t k = 0; k < (N_PROMPT + N_STEPS) * (size_t)n_vocab; k++)
            if (!(found[k] == expected[k]))
                fail_msg("%s on %s: logit %zu of row %zu is %.9g, as stated %.9g", files[i], table->tier, k % n_vocab,
                         k / n_vocab, (double)found[k], (double)expected[k]);
        free(found);
        free(expected);
    }
}

static void avx2_is_as_stated(void **state) {
    (void)state;
    compare(__func__, &sh_cpu_avx2);
}
static void avxvnni_is_as_stated(void **state) {
    (void)state;
    compare(__func__, &sh_cpu_avxvnni);
}
static void avx512_is_as_stated(void **state) {
    (void)state;
    compare(__func__, &sh_cpu_avx512);
}
static void amx_is_as_stated(void **state) {
    (void)state;
    compare(__func__, &sh_cpu_amx);
}
static void amx_with_plain_tiles_is_as_stated(void **state) {
    (void)state;
    compare(__func__, &amx_plain);
}

#else

static void avx2_is_as_stated(void **state) {
    (void)state;
    TEST_SKIP("the AVX2 table is not part of this build");
}
static void avxvnni_is_as_stated(void **state) {
    (void)state;
    TEST_SKIP("the AVX-VNNI table is not part of this build");
}
static void avx512_is_as_stated(void **state) {
    (void)state;
    TEST_SKIP("the AVX-512 table is not part of this build");
}
static void amx_is_as_stated(void **state) {
    (void)state;
    TEST_SKIP("the amx table is not part of this build");
}
static void amx_with_plain_tiles_is_as_stated(void **state) {
    (void)state;
    TEST_SKIP("the amx table is not part of this build");
}

#endif

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(avx2_is_as_stated), cmocka_unit_test(avxvnni_is_as_stated),
                                       cmocka_unit_test(avx512_is_as_stated), cmocka_unit_test(amx_is_as_stated),
                                       cmocka_unit_test(amx_with_plain_tiles_is_as_stated)};
    return cmocka_run_group_tests_name("cpu_arithmetic", tests, NULL, NULL);
}
