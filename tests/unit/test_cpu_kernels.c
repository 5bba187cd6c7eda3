/* The products of every table that this CPU can run, and of amx with its tiles in plain C: against the scalar reference within derived
 * bounds, those of avx2, avxvnni, avx512 and amx bit for bit against their stated arithmetic in plain C, and the equalities that the
 * executor relies on. Buffers stand between guard bytes. */
#include "compute/cpu/amx_matmul.h"
#include "compute/cpu/kernels.h"
#include "tests/unit/amx_plain.h"
#include "tests/unit/stated.h"
#include "tests/unit/tiny_llama.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const uint32_t all_types[] = {SH_TYPE_F32,    SH_TYPE_F16,    SH_TYPE_BF16,    SH_TYPE_Q4_0,    SH_TYPE_Q4_1,
                                     SH_TYPE_Q5_0,   SH_TYPE_Q5_1,   SH_TYPE_Q8_0,    SH_TYPE_Q2_K,    SH_TYPE_Q3_K,
                                     SH_TYPE_Q4_K,   SH_TYPE_Q5_K,   SH_TYPE_Q6_K,    SH_TYPE_IQ2_XXS, SH_TYPE_IQ2_XS,
                                     SH_TYPE_IQ2_S,  SH_TYPE_IQ3_S,  SH_TYPE_IQ3_XXS, SH_TYPE_IQ1_S,   SH_TYPE_IQ1_M,
                                     SH_TYPE_IQ4_NL, SH_TYPE_IQ4_XS, SH_TYPE_MXFP4,   SH_TYPE_TQ1_0,   SH_TYPE_TQ2_0};

static const struct sh_cpu_kernels *tier_at(uint32_t i) {
    if (i < sh_cpu_n_tables) return sh_cpu_tables[i];
#if defined(__x86_64__)
    if (i == sh_cpu_n_tables) return &amx_plain;
#endif
    return NULL;
}
#define FOR_EACH_TIER(k)                                                                                                         \
    for (uint32_t tier_ = 0; tier_at(tier_) != NULL; tier_++)                                                                    \
        for (const struct sh_cpu_kernels *k = tier_at(tier_); k != NULL && k->available(); k = NULL)

/* ---- buffers between guards ---- */

#define GUARD 256
static void *guarded(uint64_t bytes) { /* 64-byte aligned, content 0xA5 as the guards */
    uint8_t *p = sh_alloc_aligned(bytes + 2 * GUARD);
    assert_non_null(p);
    memset(p, 0xA5, bytes + 2 * GUARD);
    return p + GUARD;
}
static void release(void *p, uint64_t bytes) {
    uint8_t *base = (uint8_t *)p - GUARD;
    for (uint64_t i = 0; i < GUARD; i++) {
        assert_int_equal(base[i], 0xA5);
        assert_int_equal(base[GUARD + bytes + i], 0xA5);
    }
    free(base);
}
static float *random_floats(uint64_t n, float amplitude, struct test_rng *rng) {
    float *f = guarded(n * sizeof *f);
    for (uint64_t i = 0; i < n; i++) f[i] = test_uniform(rng, -amplitude, amplitude);
    return f;
}

/* A matrix packed for a table, and its source. */
struct packed {
    struct sh_cpu_matrix w;
    uint8_t *file;
    uint64_t bytes, file_bytes;
};
static struct packed pack(const struct sh_cpu_kernels *k, uint32_t type, uint64_t cols, uint64_t rows, struct test_rng *rng) {
    struct packed p = {.w = {.type = type, .cols = cols, .rows = rows}};
    p.bytes = k->matrix_bytes(type, cols, rows);
    p.file_bytes = sh_type_row_bytes(type, cols) * rows;
    p.file = guarded(p.file_bytes);
    p.w.data = guarded(p.bytes);
    memset(p.w.data, 0, p.bytes);
    test_random_blocks(type, cols * rows, 1.0f, rng, p.file);
    const uint64_t row_bytes = sh_type_row_bytes(type, cols), cut = rows / 3;
    k->pack(&p.w, 0, cut, p.file);
    k->pack(&p.w, cut, rows - cut, p.file + cut * row_bytes);
    return p;
}
static void unpack_all(struct packed *p) {
    release(p->file, p->file_bytes);
    release(p->w.data, p->bytes);
}

static float *product(const struct sh_cpu_kernels *k, const struct sh_cpu_matrix *w, const float *x, uint32_t n_rows,
                      const float *bias, const float *residual) {
    const uint32_t operand = k->operand(w->type);
    const uint64_t stride = k->operand_bytes(operand, w->cols), scratch_bytes = k->matmul_scratch(w->cols) + 64;
    assert_int_equal(stride % 64, 0);
    uint8_t *operands = guarded(stride * n_rows);
    float *out = guarded(n_rows * w->rows * sizeof *out);
    void *scratch = guarded(scratch_bytes);
    k->prepare(operand, x, w->cols, n_rows, operands);
    const struct sh_cpu_matmul m = {.w = w, .x = operands, .n_rows = n_rows, .bias = bias, .residual = residual, .out = out};
    const uint64_t groups = (w->rows + k->group_rows - 1) / k->group_rows;
    k->matmul(&m, groups / 2, groups, scratch);
    k->matmul(&m, 0, groups / 2, scratch);
    release(scratch, scratch_bytes);
    release(operands, stride * n_rows);
    return out;
}

/* ---- matrices ---- */

static void test_cpu_unpack_is_dequantise(void **state) {
    (void)state;
    struct test_rng rng = {1};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(all_types); i++) {
            const uint64_t cols = sh_type_info(all_types[i])->block_elements * 3, rows = 19;
            struct packed p = pack(k, all_types[i], cols, rows, &rng);
            float *found = guarded(cols * sizeof *found), *expected = guarded(cols * sizeof *expected);
            for (uint64_t r = 0; r < rows; r++) {
                k->unpack(&p.w, r, found);
                sh_ref_embed(all_types[i], p.file, cols, r, expected);
                assert_memory_equal(found, expected, cols * sizeof *found);
            }
            release(found, cols * sizeof *found);
            release(expected, cols * sizeof *expected);
            unpack_all(&p);
        }
}

/* Bound of |kernel - scalar reference| for one output: activations rounded to 1/127 of their block's largest move each product by
 * at most half a step; besides, K roundings of each of the two sums. */
static double bound(uint32_t type, const float *w, const float *x, uint64_t cols) {
    const uint64_t block = sh_type_info(type)->block_elements == 32 ? 32 : 256;
    const bool rounded = sh_type_info(type)->block_elements > 1;
    double quantised = 0, products = 0;
    for (uint64_t b = 0; b < cols; b += block) {
        const uint64_t end = b + block < cols ? b + block : cols;
        double most = 0, weights = 0;
        for (uint64_t i = b; i < end; i++) {
            most = fmax(most, fabs((double)x[i]));
            weights += fabs((double)w[i]);
            products += fabs((double)w[i] * (double)x[i]);
        }
        if (rounded) quantised += (most < 0x1p-119 ? most : most / 127 * 0.50001) * weights; /* tiny ones become 0 */
    }
    /* the K types add the mins apart from the scales, two sums that partly cancel: their magnitude is at most three times the
     * values' here */
    return quantised + 3 * 2 * (double)(cols + 8) * 0x1p-24 * products + 1e-30;
}

static void test_cpu_matmul_near_reference(void **state) {
    (void)state;
    struct test_rng rng = {2};
    static const uint64_t some_rows[] = {1, 7, 8, 17, 40};
    static const uint32_t some_n[] = {1, 2, 3, 4, 5, 9, 16, 27, 137};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(all_types); i++)
            for (size_t j = 0; j < SH_COUNT(some_rows); j++) {
                const uint32_t type = all_types[i], n = some_n[(i + j) % SH_COUNT(some_n)];
                const uint64_t block = sh_type_info(type)->block_elements, cols = block == 1 ? 61 + j * 13 : block * (j + 1),
                               rows = some_rows[j];
                struct packed p = pack(k, type, cols, rows, &rng);
                float *x = random_floats(n * cols, 2.0f, &rng), *bias = random_floats(rows, 1.0f, &rng);
                float *residual = random_floats(n * rows, 1.0f, &rng);
                float *plain = product(k, &p.w, x, n, NULL, NULL), *full = product(k, &p.w, x, n, bias, residual);
                float *weights = guarded(cols * sizeof *weights);
                const uint64_t scratch_bytes = SH_REF_MATMUL_SCRATCH(cols) * sizeof(float), out_bytes = n * rows * sizeof(float);
                float *expected = guarded(out_bytes), *scratch = guarded(scratch_bytes);
                const struct sh_ref_matmul ref = {.type = type,
                                                  .w = p.file,
                                                  .cols = cols,
                                                  .rows = rows,
                                                  .x = x,
                                                  .x_stride = cols,
                                                  .n_rows = n,
                                                  .out = expected};
                sh_ref_matmul(&ref, 0, rows, scratch);
                for (uint64_t r = 0; r < rows; r++) {
                    sh_ref_embed(type, p.file, cols, r, weights);
                    for (uint32_t t = 0; t < n; t++) {
                        const uint64_t at = t * rows + r;
                        const double limit = bound(type, weights, x + t * cols, cols),
                                     off = fabs((double)plain[at] - (double)expected[at]);
                        if (!(off <= limit))
                            fail_msg("%s %s, %d x %d, row %u: off by %g, bound %g", k->tier, sh_type_info(type)->name, (int)cols,
                                     (int)rows, t, off, limit);
                        assert_true(full[at] == plain[at] + bias[r] + residual[at]);
                    }
                }
                release(x, n * cols * sizeof *x);
                release(bias, rows * sizeof *bias);
                release(residual, n * rows * sizeof *residual);
                release(plain, out_bytes);
                release(full, out_bytes);
                release(weights, cols * sizeof *weights);
                release(expected, out_bytes);
                release(scratch, scratch_bytes);
                unpack_all(&p);
            }
}

/* ---- the stated arithmetic of the products of avx2, avxvnni and avx512 ---- */

static float stated(uint32_t type, const uint8_t *row, const float *x, uint64_t cols) {
    float y;
    stated_products(type, row, cols, x, cols, 1, &y);
    return y;
}

/* Many rows, enough for any kernel of a table, that repeat n rows give each what it has in `found`. */
static void many_rows(const struct sh_cpu_kernels *k, const struct sh_cpu_matrix *w, const float *x, uint32_t n,
                      const float *found) {
    enum { MANY = 53 };
    float *all = guarded(MANY * w->cols * sizeof *all);
    for (uint32_t t = 0; t < MANY; t++) memcpy(all + t * w->cols, x + t % n * w->cols, w->cols * sizeof *all);
    float *out = product(k, w, all, MANY, NULL, NULL);
    for (uint32_t t = 0; t < MANY; t++)
        for (uint64_t r = 0; r < w->rows; r++) {
            const float y = out[t * w->rows + r], one = found[t % n * w->rows + r];
            if (!(y == one || (isnan(y) && isnan(one))))
                fail_msg("%s %s, row %u of many: found %.9g, of few %.9g", k->tier, sh_type_info(w->type)->name, t, (double)y,
                         (double)one);
        }
    release(all, MANY * w->cols * sizeof *all);
    release(out, MANY * w->rows * sizeof *out);
}

/* Runs a test of one table; a CPU or build without that table skips it. */
static void for_stated(const char *name, const char *tier, void (*test)(const struct sh_cpu_kernels *k)) {
    FOR_EACH_TIER (k)
        if (strcmp(k->tier, tier) == 0) {
            test(k);
            return;
        }
    test_skip(name, "this build or CPU has no table %s", tier);
}
#define STATED(test)                                                                                                             \
    static void test##_avx2(void **state) {                                                                                      \
        (void)state;                                                                                                             \
        for_stated(__func__, "avx2", test);                                                                                      \
    }                                                                                                                            \
    static void test##_avxvnni(void **state) {                                                                                   \
        (void)state;                                                                                                             \
        for_stated(__func__, "avxvnni", test);                                                                                   \
    }                                                                                                                            \
    static void test##_avx512(void **state) {                                                                                    \
        (void)state;                                                                                                             \
        for_stated(__func__, "avx512", test);                                                                                    \
    }                                                                                                                            \
    static void test##_amx(void **state) {                                                                                       \
        (void)state;                                                                                                             \
        for_stated(__func__, "amx", test);                                                                                       \
    }                                                                                                                            \
    static void test##_amx_plain(void **state) {                                                                                 \
        (void)state;                                                                                                             \
        for_stated(__func__, "amx-plain", test);                                                                                 \
    }
#define STATED_TESTS(test)                                                                                                       \
    cmocka_unit_test(test##_avx2), cmocka_unit_test(test##_avxvnni), cmocka_unit_test(test##_avx512),                            \
        cmocka_unit_test(test##_amx), cmocka_unit_test(test##_amx_plain)

static void test_cpu_arithmetic(const struct sh_cpu_kernels *k) {
    struct test_rng rng = {3};
    for (size_t i = 0; i < SH_COUNT(all_types); i++) {
        const uint32_t type = all_types[i];
        const uint64_t block = sh_type_info(type)->block_elements, cols = block == 1 ? 1027 : 1024 + block, rows = 21;
        struct packed p = pack(k, type, cols, rows, &rng);
        float *x = random_floats(6 * cols, 3.0f, &rng);
        memset(x + cols, 0, cols * sizeof *x);                                           /* a row of zeros */
        for (uint64_t e = 0; e < cols; e++) x[2 * cols + e] = e % 3 == 0 ? -4.0f : 4.0f; /* quants at their limits, +-127 */
        if (block > 1) memset(p.file + sh_type_row_bytes(type, cols) + 4, 0xFF, 12);     /* and weights, in row 1 */
        if (block > 1) k->pack(&p.w, 1, 1, p.file + sh_type_row_bytes(type, cols));
        float *found = product(k, &p.w, x, 6, NULL, NULL);
        many_rows(k, &p.w, x, 6, found);
        for (uint64_t r = 0; r < rows; r++) {
            const uint8_t *row = p.file + r * sh_type_row_bytes(type, cols);
            for (uint32_t t = 0; t < 6; t++) {
                const float expected = stated(type, row, x + t * cols, cols);
                if (found[t * rows + r] != expected)
                    fail_msg("%s, weight row %d, row %u: found %.9g, expected %.9g", sh_type_info(type)->name, (int)r, t,
                             (double)found[t * rows + r], (double)expected);
            }
        }
        release(x, 6 * cols * sizeof *x);
        release(found, 6 * rows * sizeof *found);
        unpack_all(&p);
    }
}
STATED(test_cpu_arithmetic)

/* Blocks of one byte value throughout, each value in a row of its own, with quants of the operand at their limits: the largest sums
 * that a type allows do not overflow 16 bits. */
static void test_cpu_largest_sums(const struct sh_cpu_kernels *k) {
    for (size_t i = 0; i < SH_COUNT(all_types); i++) {
        const uint32_t type = all_types[i];
        const struct sh_type_info *info = sh_type_info(type);
        if (info->block_elements == 1) continue;
        enum { ROWS = 256, N = 4 };
        const uint64_t cols = 2 * info->block_elements, row_bytes = sh_type_row_bytes(type, cols);
        struct packed p = {.w = {.type = type, .cols = cols, .rows = ROWS}, .bytes = k->matrix_bytes(type, cols, ROWS)};
        p.file_bytes = row_bytes * ROWS;
        p.file = guarded(p.file_bytes);
        p.w.data = guarded(p.bytes);
        memset(p.w.data, 0, p.bytes);
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t b = 0; b < 2; b++) {
                uint8_t *block = p.file + r * row_bytes + b * info->block_bytes;
                memset(block, (int)r, info->block_bytes);
                if (type == SH_TYPE_MXFP4) block[0] = 125;
                else stated_set_scale(type, block, 0x3400); /* 1/4 */
                if (stated_has_min(type)) memcpy(block + stated_scale_at(type) + 2, (const uint16_t[]){0x3800}, 2);
            }
        k->pack(&p.w, 0, ROWS, p.file);
        float *x = guarded(N * cols * sizeof *x);
        for (uint64_t e = 0; e < cols; e++) {
            x[e] = 4;
            x[cols + e] = -4;
            x[2 * cols + e] = e / 4 % 2 == 0 ? 4 : -4;
            x[3 * cols + e] = e % 32 < 16 ? 4 : -4;
        }
        float *found = product(k, &p.w, x, N, NULL, NULL);
        many_rows(k, &p.w, x, N, found);
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t t = 0; t < N; t++) {
                const float expected = stated(type, p.file + r * row_bytes, x + t * cols, cols);
                if (found[t * ROWS + r] != expected)
                    fail_msg("%s of bytes %02x, row %u: found %.9g, expected %.9g", info->name, r, t, (double)found[t * ROWS + r],
                             (double)expected);
            }
        release(x, N * cols * sizeof *x);
        release(found, N * ROWS * sizeof *found);
        unpack_all(&p);
    }
}
STATED(test_cpu_largest_sums)

/* Scales from 0 and subnormal to the largest, operands of any size: the bits of the stated arithmetic, and a number wherever the
 * reference has one. */
static void test_cpu_extremes(const struct sh_cpu_kernels *k) {
    static const uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00};
    static const uint8_t exponents[] = {0, 1, 2, 3, 100, 126, 127, 128, 150, 250, 251, 252, 253, 254, 255};
    struct test_rng rng = {7};
    uint32_t compared = 0;
    for (size_t i = 0; i < SH_COUNT(all_types); i++) {
        const uint32_t type = all_types[i];
        const struct sh_type_info *info = sh_type_info(type);
        if (info->block_elements == 1) continue;
        enum { ROWS = 24, N = 8 };
        const uint64_t cols = 2 * info->block_elements, row_bytes = sh_type_row_bytes(type, cols);
        struct packed p = pack(k, type, cols, ROWS, &rng);
        for (uint32_t b = 0; b < 2 * ROWS; b++) {
            uint8_t *block = p.file + b * info->block_bytes;
            const uint64_t r = test_random(&rng) >> 8;
            if (type == SH_TYPE_MXFP4) {
                block[0] = exponents[r % SH_COUNT(exponents)];
                if (r / 64 % 3 == 0) memset(block + 1, 0, 16);
                if (r / 64 % 3 == 1) memset(block + 1, 0x10, 16);
            } else {
                stated_set_scale(type, block, halves[r % SH_COUNT(halves)]);
                if (stated_has_min(type)) memcpy(block + stated_scale_at(type) + 2, &halves[r / 64 % SH_COUNT(halves)], 2);
            }
        }
        k->pack(&p.w, 0, ROWS, p.file);
        float *x = random_floats(N * cols, 1.0f, &rng), *weights = guarded(cols * sizeof *weights);
        static const float sizes[N] = {1, 0, 1e-30f, 1e-38f, 1e-3f, 40, 1e5f, 1e25f};
        for (uint64_t e = 0; e < N * cols; e++) x[e] *= sizes[e / cols];
        float *found = product(k, &p.w, x, N, NULL, NULL);
        many_rows(k, &p.w, x, N, found);
        for (uint32_t r = 0; r < ROWS; r++) {
            sh_ref_embed(type, p.file, cols, r, weights);
            for (uint32_t t = 0; t < N; t++) {
                const float y = found[t * ROWS + r], *xt = x + t * cols;
                const float expected = stated(type, p.file + r * row_bytes, xt, cols);
                if (!(y == expected || (isnan(y) && isnan(expected))))
                    fail_msg("%s row %u of %g: found %.9g, expected %.9g", info->name, r, (double)sizes[t], (double)y,
                             (double)expected);
                double sum = 0, all = 0;
                for (uint64_t e = 0; e < cols; e++) {
                    sum += (double)weights[e] * (double)xt[e];
                    all += fabs((double)weights[e] * (double)xt[e]);
                }
                if (!(all < 1e38)) continue; /* the reference overflows, or may */
                const double limit = bound(type, weights, xt, cols);
                if (!(fabs((double)y - sum) <= limit))
                    fail_msg("%s row %u of %g: found %g, the reference %g, bound %g", info->name, r, (double)sizes[t], (double)y,
                             sum, limit);
                compared++;
            }
        }
        release(x, N * cols * sizeof *x);
        release(weights, cols * sizeof *weights);
        release(found, N * ROWS * sizeof *found);
        unpack_all(&p);
    }
    assert_true(compared > SH_COUNT(all_types) * 24 * 5);
}
STATED(test_cpu_extremes)

/* Any number of rows from 1 to 64 gives each row the bits that it has alone, at the widths of real models. */
static void test_cpu_rows_do_not_matter(void **state) {
    (void)state;
    struct test_rng rng = {4};
    static const uint64_t some_cols[] = {2048, 5632, 14336};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(all_types); i++)
            for (size_t j = 0; j < SH_COUNT(some_cols); j++) {
                const uint64_t cols = some_cols[j], rows = 11;
                struct packed p = pack(k, all_types[i], cols, rows, &rng);
                float *x = random_floats(64 * cols, 2.0f, &rng);
                float *alone = guarded(64 * rows * sizeof *alone);
                for (uint32_t r = 0; r < 64; r++) {
                    float *one = product(k, &p.w, x + r * cols, 1, NULL, NULL);
                    memcpy(alone + r * rows, one, rows * sizeof *one);
                    release(one, rows * sizeof *one);
                }
                for (uint32_t n = 2; n <= 64; n += k == &sh_cpu_scalar ? 31 : 1) {
                    float *together = product(k, &p.w, x, n, NULL, NULL);
                    assert_memory_equal(together, alone, n * rows * sizeof *alone);
                    release(together, n * rows * sizeof *together);
                }
                release(x, 64 * cols * sizeof *x);
                release(alone, 64 * rows * sizeof *alone);
                unpack_all(&p);
            }
}

#if defined(__x86_64__)
/* As the plain tiles, but one lane of one row is off by one bit where there are many rows. */
static void wrong_matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    amx_plain_matmul(m, group0, group1, scratch);
    uint32_t bits;
    memcpy(&bits, m->out + m->w->rows * (m->n_rows - 1), sizeof bits);
    bits ^= 1;
    memcpy(m->out + m->w->rows * (m->n_rows - 1), &bits, sizeof bits);
}
static void test_cpu_amx_check(void **state) {
    (void)state;
    if (!amx_plain.available()) TEST_SKIP("this CPU has no AVX-512 VNNI");
    assert_true(sh_amx_agrees(amx_plain_matmul));
    assert_false(sh_amx_agrees(wrong_matmul));
}
#else
static void test_cpu_amx_check(void **state) {
    (void)state;
    TEST_SKIP("the amx table is not part of this build");
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_unpack_is_dequantise),
        cmocka_unit_test(test_cpu_matmul_near_reference),
        STATED_TESTS(test_cpu_arithmetic),
        STATED_TESTS(test_cpu_largest_sums),
        STATED_TESTS(test_cpu_extremes),
        cmocka_unit_test(test_cpu_rows_do_not_matter),
        cmocka_unit_test(test_cpu_amx_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
