/* The attention of every table against the scalar reference. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_cpu_attention(void **state) {
    (void)state;
    struct test_rng rng = {6};
    static const struct {
        uint32_t k_dim, v_dim, n_heads, n_positions;
    } cases[] = {{64, 64, 8, 1},   {64, 64, 8, 33},  {16, 16, 1, 31}, {13, 9, 3, 70},    {128, 128, 4, 256},
                 {80, 80, 2, 257}, {64, 40, 9, 700}, {8, 8, 5, 512},  {256, 64, 1, 300}, {48, 128, 7, 1025}};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(cases); i++)
            for (int type = 0; type < 2; type++) {
                const uint32_t k_dim = cases[i].k_dim, v_dim = cases[i].v_dim, n_heads = cases[i].n_heads,
                               n = cases[i].n_positions, n_kv = 2;
                const uint32_t n_pages = (n + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS, element = type == SH_KV_F16 ? 2 : 4;
                const uint64_t k_bytes = (uint64_t)n_kv * SH_PAGE_TOKENS * k_dim * element,
                               v_bytes = (uint64_t)n_kv * SH_PAGE_TOKENS * v_dim * element;
                void **pages = calloc(n_pages, sizeof *pages);
                assert_non_null(pages);
                for (uint32_t p = 0; p < n_pages; p++) {
                    pages[p] = test_guarded(16 + k_bytes + v_bytes);
                    memset(pages[p], 0xFF, 16 + k_bytes + v_bytes); /* NaN wherever nothing is stored */
                }
                const struct sh_ref_cache cache = {.kv_type = (enum sh_kv_type)type,
                                                   .pages = pages,
                                                   .page_tokens = SH_PAGE_TOKENS,
                                                   .k_offset = 16,
                                                   .v_offset = 16 + k_bytes,
                                                   .n_kv_heads = n_kv,
                                                   .k_dim = k_dim,
                                                   .v_dim = v_dim,
                                                   .v_stride = v_dim};
                float *key = test_guarded(n_kv * k_dim * 4), *value = test_guarded(n_kv * v_dim * 4);
                for (uint32_t t = 0; t < n; t++) {
                    for (uint32_t d = 0; d < n_kv * k_dim; d++) key[d] = test_normal(&rng);
                    for (uint32_t d = 0; d < n_kv * v_dim; d++) value[d] = test_normal(&rng);
                    sh_ref_cache_store(&cache, t, key, value);
                }
                float *q = test_guarded_floats(n_heads * k_dim, 3.0f, &rng);
                const uint64_t out_bytes = n_heads * v_dim * sizeof(float);
                const uint64_t bytes = k->attention_scratch(n_heads, n, k_dim, v_dim),
                               ref_bytes = (n_heads * n + (k_dim > v_dim ? k_dim : v_dim)) * 4ull;
                float *found = test_guarded(out_bytes), *expected = test_guarded(out_bytes);
                void *scratch = test_guarded(bytes), *ref_scratch = test_guarded(ref_bytes);
                struct sh_ref_attention a = {.cache = &cache,
                                             .kv_head = 1,
                                             .q = q,
                                             .n_heads = n_heads,
                                             .position = n - 1,
                                             .end = n,
                                             .scale = 1.0f / sqrtf((float)k_dim),
                                             .out = expected};
                sh_ref_attention(&a, ref_scratch);
                a.out = found;
                k->attention(&a, scratch);
                /* scores reach about 10: k_dim roundings of them move a weight by 10 * k_dim * 2^-24 of itself, n more in the
                 * sums; values about 4 */
                const float limit = 4.0f * (10.0f * (float)k_dim + (float)n) * 0x1p-24f;
                const float off = test_max_difference(found, expected, n_heads * v_dim);
                if (!(off <= limit))
                    fail_msg("%s, case %d, type %d: off by %g, bound %g", k->tier, (int)i, type, (double)off, (double)limit);
                if (k->attention_split > 0) { /* in parts, the last first, and joined: the same bits */
                    const uint32_t parts = (n + k->attention_split - 1) / k->attention_split;
                    const uint64_t stride = k->attention_partial(n_heads, v_dim), partial_bytes = parts * stride * sizeof(float);
                    float *partials = test_guarded(partial_bytes);
                    memcpy(expected, found, out_bytes);
                    memset(found, 0xFF, out_bytes);
                    for (uint32_t part = parts; part-- > 0;) k->attention_part(&a, part, partials + part * stride, scratch);
                    k->attention_join(&a, partials);
                    assert_memory_equal(found, expected, out_bytes);
                    test_release(partials, partial_bytes);
                }
                for (uint32_t p = 0; p < n_pages; p++) test_release(pages[p], 16 + k_bytes + v_bytes);
                free(pages);
                test_release(key, n_kv * k_dim * 4);
                test_release(value, n_kv * v_dim * 4);
                test_release(q, n_heads * k_dim * 4);
                test_release(found, out_bytes);
                test_release(expected, out_bytes);
                test_release(scratch, bytes);
                test_release(ref_scratch, ref_bytes);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cpu_attention)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
