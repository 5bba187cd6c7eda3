#include "tests/unit/products.h"

#include "compute/vulkan/exec.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24

struct product products_multiply(uint32_t type, const void *w, uint32_t cols, uint32_t n, const float *x, uint32_t rows,
                               const float *bias, const float *residual) {
    struct product p = {malloc((size_t)rows * n * sizeof(float)), malloc((size_t)rows * n * sizeof(double))};
    float *row = malloc(cols * sizeof *row);
    assert_true(p.y && p.magnitude && row);
    for (uint32_t o = 0; o < n; o++) {
        assert_true(sh_dequantize(type, (const uint8_t *)w + o * sh_type_row_bytes(type, cols), row, cols));
        for (uint32_t r = 0; r < rows; r++) {
            double sum = 0, magnitude = 0;
            for (uint32_t k = 0; k < cols; k++) {
                const double term = (double)row[k] * (double)x[(size_t)r * cols + k];
                sum += term;
                magnitude += fabs(term);
            }
            const size_t i = (size_t)r * n + o;
            if (bias) sum += (double)bias[o], magnitude += fabs((double)bias[o]);
            if (residual) sum += (double)residual[i], magnitude += fabs((double)residual[i]);
            p.y[i] = (float)sum;
            p.magnitude[i] = magnitude;
        }
    }
    free(row);
    return p;
}

void products_check(const char *name, const float *got, const struct product *want, double chain, size_t n) {
    double *bound = malloc(n * sizeof *bound);
    assert_non_null(bound);
    for (size_t i = 0; i < n; i++) bound[i] = (4 * sqrt(chain) + 2) * EPS * want->magnitude[i];
    ops_compare(name, got, want->y, bound, n);
    free(bound);
}

/* Vulkan's division may be 2.5 units in the last place off, so what x * (127 / most) rounds to is the driver's choice within 127 * 3 * 2^-23 of
 * a tie. No element is left that close to one; the largest, at 127, is not moved. */
static void away_from_ties(float *x, size_t n) {
    for (size_t at = 0; at < n; at += 32) {
        float most = 0;
        for (size_t i = at; i < at + 32; i++) most = fmaxf(most, fabsf(x[i]));
        if (most < 0x1p-119f) continue;
        for (size_t i = at; i < at + 32; i++) {
            const float quant = fabsf(x[i]) * (127.0f / most);
            if (fabsf(quant - floorf(quant) - 0.5f) < 1e-4f) x[i] *= 0.999f; /* by 5e-4 of a quant at least */
        }
    }
}

/* As compute/glsl/quantise.comp rounds. */
static void to_eight_bits(float *x, size_t n) {
    for (size_t at = 0; at < n; at += 32) {
        float most = 0;
        for (size_t i = at; i < at + 32; i++) most = fmaxf(most, fabsf(x[i]));
        const float inverse = most < 0x1p-119f ? 0 : 127.0f / most, dx = most < 0x1p-119f ? 0 : most * (1.0f / 127.0f);
        for (size_t i = at; i < at + 32; i++) x[i] = dx * rintf(x[i] * inverse);
    }
}

void products_case(struct sh_device *vulkan, struct sh_device *cpu, uint32_t type, uint32_t rows, uint32_t cols, uint32_t n, bool bias,
                   bool residual) {
    char name[128];
    snprintf(name, sizeof name, "matmul %s rows=%u cols=%u n=%u bias=%d residual=%d", sh_type_info(type)->name, rows, cols, n,
             bias, residual);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {type * 1000003 + rows * 10007 + cols * 101 + n};
    void *w = ops_random_matrix(type, cols, n, &rng);
    float *x = ops_random_floats((size_t)rows * cols, 1, &rng), *b = ops_random_floats(n, 1, &rng),
          *r = ops_random_floats((size_t)rows * n, 1, &rng);
    const bool quants = strcmp(vulkan->info.tier, "base") != 0 && sh_type_info(type)->block_elements > 1;
    if (quants) away_from_ties(x, (size_t)rows * cols);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.x = ops_input(&ops, cols);
    op.w = ops_weight(&ops, type, cols, n, w);
    if (bias) op.bias = ops_weight(&ops, SH_TYPE_F32, n, 1, b);
    if (residual) op.residual = ops_input(&ops, n);
    op.out = ops_activation(&ops, n, SH_ROWS_ALL);
    ops_push(&ops, &op);
    const struct ops_step step = {.n_rows = rows, .inputs = {x, r}};
    float *met = malloc((size_t)rows * cols * sizeof *met); /* what the weights meet */
    assert_non_null(met);
    memcpy(met, x, (size_t)rows * cols * sizeof *met);
    if (quants) {
        assert_null(cpu); /* whose weights meet something else */
        to_eight_bits(met, (size_t)rows * cols);
    }
    const struct product want = products_multiply(type, w, cols, n, met, rows, bias ? b : NULL, residual ? r : NULL);
    free(met);
    struct sh_device *const devices[] = {vulkan, cpu};
    for (int d = 0; d < 2; d++) {
        if (!devices[d]) continue;
        struct ops_model m;
        ops_load(&ops, devices[d], SH_KV_F32, rows, 2, &m);
        float *y = ops_run(&ops, &m, &step, op.out);
        products_check(name, y, &want, d == 0 ? cols / 32.0 + 32 : cols, (size_t)rows * n);
        free(y);
        ops_unload(&m);
    }
    free(want.y);
    free(want.magnitude);
    free(w);
    free(x);
    free(b);
    free(r);
}

void products_same_bits(struct sh_device *vulkan, const uint32_t *types, size_t n_types) {
    static const uint32_t cols[] = {2048, 5632, 14336};
    static const uint32_t counts[] = {1, 3, 8, 9, 33};
    enum { ROWS = 64, N = 21 };
    for (size_t t = 0; t < n_types; t++) {
        for (size_t c = 0; c < SH_COUNT(cols); c++) {
            char name[128];
            snprintf(name, sizeof name, "rows %s cols=%u", sh_type_info(types[t])->name, cols[c]);
            if (!ops_wanted(name)) continue;
            struct test_rng rng = {types[t] * 77 + cols[c]};
            void *w = ops_random_matrix(types[t], cols[c], N, &rng);
            float *x = ops_random_floats((size_t)ROWS * cols[c], 1, &rng), *r = ops_random_floats((size_t)ROWS * N, 1, &rng);
            struct ops ops;
            ops_init(&ops);
            struct sh_op op = ops_op(SH_OP_MATMUL);
            op.x = ops_input(&ops, cols[c]);
            op.residual = ops_input(&ops, N);
            op.w = ops_weight(&ops, types[t], cols[c], N, w);
            op.out = ops_activation(&ops, N, SH_ROWS_ALL);
            ops_push(&ops, &op);
            float *want = NULL;
            const bool one_choice = sh_type_info(types[t])->block_elements > 1 && strcmp(vulkan->info.tier, "base") != 0;
            for (int like_gpu = 1; like_gpu >= one_choice; like_gpu--) {
                sh_vulkan_of(vulkan)->like_gpu = like_gpu == 1;
                struct ops_model m;
                ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
                const struct ops_step all = {.n_rows = ROWS, .inputs = {x, r}};
                float *found = ops_run(&ops, &m, &all, op.out);
                if (want) ops_compare(name, found, want, NULL, (size_t)ROWS * N);
                if (want) free(found);
                else want = found;
                for (size_t i = 0; i < SH_COUNT(counts); i++) {
                    if (!like_gpu && counts[i] <= 8) continue; /* the same kernels for both */
                    const uint32_t first = (ROWS - counts[i]) / 2;
                    const struct ops_step some = {.n_rows = counts[i],
                                                  .inputs = {x + (size_t)first * cols[c], r + (size_t)first * N}};
                    float *got = ops_run(&ops, &m, &some, op.out);
                    ops_compare(name, got, want + (size_t)first * N, NULL, (size_t)counts[i] * N);
                    free(got);
                }
                ops_unload(&m);
            }
            free(want);
            free(w);
            free(x);
            free(r);
        }
    }
}
