/* Packing by vectors writes the bytes that packing row by row in plain C writes, for every type, with rows that come in pieces of
 * any size, widths that are no multiple of a vector, and nothing beyond the matrix or the source. */
#include "compute/cpu/lanes.h"
#include "tests/unit/guarded.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const uint32_t types[] = {
    SH_TYPE_F32,  SH_TYPE_F16,     SH_TYPE_BF16,   SH_TYPE_Q4_0,  SH_TYPE_Q4_1,  SH_TYPE_Q5_0,    SH_TYPE_Q5_1,  SH_TYPE_Q8_0,
    SH_TYPE_Q2_K,  SH_TYPE_Q3_K, SH_TYPE_Q4_K,    SH_TYPE_Q5_K,   SH_TYPE_Q6_K,  SH_TYPE_IQ2_XXS, SH_TYPE_IQ2_XS, SH_TYPE_IQ2_S, SH_TYPE_IQ3_S,
    SH_TYPE_IQ3_XXS, SH_TYPE_IQ1_S, SH_TYPE_IQ1_M, SH_TYPE_IQ4_NL, SH_TYPE_IQ4_XS, SH_TYPE_MXFP4, SH_TYPE_TQ1_0, SH_TYPE_TQ2_0,
};

typedef void pack_fn(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);

/* Pieces of `piece` rows, 0: all at once. The source lies off any alignment, its end right before a guard. */
static void check(const struct sh_cpu_kernels *k, uint32_t type, uint64_t cols, uint64_t rows, uint64_t piece,
                  struct test_rng *rng) {
    pack_fn *plain = k->group_rows == 16 ? sh_lanes16_pack : sh_lanes8_pack;
    const uint64_t bytes = k->matrix_bytes(type, cols, rows), row_bytes = sh_type_row_bytes(type, cols);
    const uint64_t file_bytes = row_bytes * rows;
    uint8_t *file = test_guarded(file_bytes + 1);
    struct sh_cpu_matrix found = {.type = type, .cols = cols, .rows = rows, .data = test_guarded(bytes)}, expected = found;
    expected.data = test_guarded(bytes);
    memset(found.data, 0, bytes);
    memset(expected.data, 0, bytes);
    test_random_blocks(type, cols * rows, 1.0f, rng, file + 1);
    plain(&expected, 0, rows, file + 1);
    for (uint64_t r = 0; r < rows;) {
        const uint64_t n = piece == 0 ? rows : sh_min_u64(piece, rows - r);
        k->pack(&found, r, n, file + 1 + r * row_bytes);
        r += n;
    }
    if (memcmp(found.data, expected.data, bytes) != 0)
        fail_msg("%s: %s of %llu x %llu in pieces of %llu differs", k->tier, sh_type_info(type)->name, (unsigned long long)cols,
                 (unsigned long long)rows, (unsigned long long)piece);
    test_release(file, file_bytes + 1);
    test_release(found.data, bytes);
    test_release(expected.data, bytes);
}

static void test_pack_same_bytes(void **state) {
    (void)state;
    struct test_rng rng = {31};
    FOR_EACH_TIER (k) {
        if (k == &sh_cpu_scalar) continue; /* stays in file layout */
        for (size_t t = 0; t < SH_COUNT(types); t++) {
            const uint64_t block = sh_type_info(types[t])->block_elements;
            const uint64_t widths[] = {block == 1 ? 64 : block, block == 1 ? 61 : 3 * block, block == 1 ? 6 : 5 * block};
            for (size_t c = 0; c < SH_COUNT(widths); c++) {
                check(k, types[t], widths[c], 48, 0, &rng);
                check(k, types[t], widths[c], 37, 0, &rng);
                check(k, types[t], widths[c], 53, 21, &rng);
                check(k, types[t], widths[c], 19, 5, &rng);
            }
        }
    }
}

/* Scales of MXFP4 at both ends of the exponent's range, and halves that are infinite. */
static void test_pack_extreme_scales(void **state) {
    (void)state;
    FOR_EACH_TIER (k) {
        if (k == &sh_cpu_scalar) continue;
        pack_fn *plain = k->group_rows == 16 ? sh_lanes16_pack : sh_lanes8_pack;
        for (uint32_t t = 0; t < 2; t++) {
            const uint32_t type = t == 0 ? SH_TYPE_MXFP4 : SH_TYPE_IQ4_NL, block = sh_type_info(type)->block_bytes;
            const uint64_t rows = 256, bytes = k->matrix_bytes(type, 32, rows);
            uint8_t *file = test_guarded(rows * block), *found = test_guarded(bytes), *expected = test_guarded(bytes);
            for (uint32_t r = 0; r < rows; r++) {
                memset(file + r * block, (int)r, block);
                if (type == SH_TYPE_IQ4_NL) memcpy(file + r * block, &(uint16_t){(uint16_t)(r < 128 ? r << 8 : 0xFC00)}, 2);
            }
            k->pack(&(struct sh_cpu_matrix){.type = type, .cols = 32, .rows = rows, .data = found}, 0, rows, file);
            plain(&(struct sh_cpu_matrix){.type = type, .cols = 32, .rows = rows, .data = expected}, 0, rows, file);
            for (uint32_t r = 0; r < rows; r++) { /* NaN may keep its bits or become the usual one */
                const uint64_t at = r / k->group_rows * (bytes / rows * k->group_rows) + r % k->group_rows * 2;
                if (type == SH_TYPE_IQ4_NL && (r & 0x7C) == 0x7C && (r & 3) != 0) memcpy(found + at, expected + at, 2);
            }
            assert_memory_equal(found, expected, bytes);
            test_release(file, rows * block);
            test_release(found, bytes);
            test_release(expected, bytes);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_same_bytes),
        cmocka_unit_test(test_pack_extreme_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
