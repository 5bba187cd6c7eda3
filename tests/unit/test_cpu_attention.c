/* The attention of every table against its formula in double precision, with windows, caps, slopes, sinks and values inside keys;
 * pages before what is seen are missing, and what is not stored is NaN. In parts as whole, and rows together as alone, bit for bit; and
 * the bits of avx2 where they are promised. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define N_KV 2
#define PAGE_MARGIN 16

struct attention_case {
    uint32_t k_dim, v_dim, n_heads;
    uint32_t first, end, position;
    float softcap;
    bool slopes, sinks, v_in_k;
};

struct stored {
    struct sh_ref_cache cache;
    void *pages[80];
    uint32_t n_pages;
    uint64_t page_bytes;
    float *keys, *values; /* [end][N_KV][dim] as stored */
    uint32_t end, v_stride; /* from one position's value to the next one's in `values`, of one head */
};

static float as_stored(float x, enum sh_kv_type type) { return type == SH_KV_F16 ? sh_f16_to_f32(sh_f32_to_f16(x)) : x; }

static void store(struct stored *s, const struct attention_case *c, enum sh_kv_type type, struct test_rng *rng) {
    const uint32_t element = type == SH_KV_F16 ? 2 : 4;
    const uint64_t k_bytes = (uint64_t)N_KV * SH_PAGE_TOKENS * c->k_dim * element;
    const uint64_t v_bytes = c->v_in_k ? 0 : (uint64_t)N_KV * SH_PAGE_TOKENS * c->v_dim * element;
    *s = (struct stored){.end = c->end, .n_pages = (c->end + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS};
    assert_true(s->n_pages <= SH_COUNT(s->pages));
    s->page_bytes = PAGE_MARGIN + k_bytes + v_bytes;
    for (uint32_t p = 0; p < s->n_pages; p++) {
        s->pages[p] = test_guarded(s->page_bytes);
        memset(s->pages[p], 0xFF, s->page_bytes);
    }
    s->v_stride = c->v_in_k ? c->k_dim : c->v_dim;
    s->cache = (struct sh_ref_cache){.kv_type = type,
                                     .pages = s->pages,
                                     .page_tokens = SH_PAGE_TOKENS,
                                     .k_offset = PAGE_MARGIN,
                                     .v_offset = PAGE_MARGIN + (c->v_in_k ? 0 : k_bytes),
                                     .n_kv_heads = N_KV,
                                     .k_dim = c->k_dim,
                                     .v_dim = c->v_dim,
                                     .v_in_k = c->v_in_k};
    s->keys = malloc(c->end * N_KV * c->k_dim * sizeof *s->keys);
    s->values = c->v_in_k ? s->keys : malloc(c->end * N_KV * c->v_dim * sizeof *s->values);
    assert_true(s->keys != NULL && s->values != NULL);
    for (uint32_t t = 0; t < c->end; t++) {
        float *key = s->keys + (size_t)t * N_KV * c->k_dim, *value = s->values + (size_t)t * N_KV * s->v_stride;
        for (uint32_t d = 0; d < N_KV * c->k_dim; d++) key[d] = test_normal(rng);
        for (uint32_t d = 0; !c->v_in_k && d < N_KV * c->v_dim; d++) value[d] = test_normal(rng);
        if (t >= c->first) sh_ref_cache_store(&s->cache, t, key, c->v_in_k ? NULL : value);
        for (uint32_t d = 0; d < N_KV * c->k_dim; d++) key[d] = as_stored(key[d], type);
        for (uint32_t d = 0; !c->v_in_k && d < N_KV * c->v_dim; d++) value[d] = as_stored(value[d], type);
    }
    for (uint32_t p = 0; p < c->first / SH_PAGE_TOKENS; p++) { /* wholly before what is seen */
        test_release(s->pages[p], s->page_bytes);
        s->pages[p] = NULL;
    }
}

static void drop(struct stored *s) {
    for (uint32_t p = 0; p < s->n_pages; p++)
        if (s->pages[p] != NULL) test_release(s->pages[p], s->page_bytes);
    if (s->values != s->keys) free(s->values);
    free(s->keys);
}

/* One head of kv head 1, in double. */
static void attend(const struct attention_case *c, const struct stored *s, const float *q, float scale, const float *slope,
                   const float *sink, double *out) {
    double *score = malloc(c->end * sizeof *score), most = sink != NULL ? (double)*sink : -INFINITY, sum = 0;
    assert_non_null(score);
    for (uint32_t t = c->first; t < c->end; t++) {
        const float *key = s->keys + ((size_t)t * N_KV + 1) * c->k_dim;
        double dot = 0;
        for (uint32_t d = 0; d < c->k_dim; d++) dot += (double)q[d] * (double)key[d];
        dot *= (double)scale;
        if (c->softcap > 0) dot = (double)c->softcap * tanh(dot / (double)c->softcap);
        if (slope != NULL) dot -= (double)*slope * fabs((double)c->position - (double)t);
        score[t] = dot;
        most = fmax(most, dot);
    }
    for (uint32_t d = 0; d < c->v_dim; d++) out[d] = 0;
    for (uint32_t t = c->first; t < c->end; t++) {
        const float *value = s->values + ((size_t)t * N_KV + 1) * s->v_stride;
        const double p = exp(score[t] - most);
        sum += p;
        for (uint32_t d = 0; d < c->v_dim; d++) out[d] += p * (double)value[d];
    }
    if (sink != NULL) sum += exp((double)*sink - most);
    for (uint32_t d = 0; d < c->v_dim; d++) out[d] /= sum;
    free(score);
}

static void check_parts(const struct sh_cpu_kernels *k, struct sh_ref_attention a, const float *whole, void *scratch) {
    const uint32_t parts = (a.end - 1) / k->attention_split - a.first / k->attention_split + 1;
    const uint32_t n = a.n_heads * a.cache->v_dim;
    const uint64_t stride = k->attention_partial(a.n_heads, a.cache->v_dim);
    float *partials = test_guarded(parts * stride * sizeof *partials);
    a.out = test_guarded(n * sizeof *a.out);
    for (uint32_t part = parts; part-- > 0;) k->attention_part(&a, part, partials + part * stride, scratch);
    k->attention_join(&a, partials);
    assert_memory_equal(a.out, whole, n * sizeof *whole);
    test_release_floats(partials, parts * stride);
    test_release_floats(a.out, n);
}

/* Tables that promise the bits of avx2 (kernels.h) have them. */
static void check_bits(const struct sh_cpu_kernels *k, struct sh_ref_attention a, const float *whole) {
    if (strcmp(k->tier, "scalar") == 0) return;
    FOR_EACH_TIER (other) {
        if (strcmp(other->tier, "avx2") != 0) continue;
        const uint32_t n = a.n_heads * a.cache->v_dim;
        const uint64_t bytes = other->attention_scratch(a.n_heads, a.end - a.first, a.cache->k_dim, a.cache->v_dim);
        void *scratch = test_guarded(bytes);
        a.out = test_guarded(n * sizeof *a.out);
        other->attention(&a, 1, scratch);
        assert_memory_equal(a.out, whole, n * sizeof *whole);
        test_release_floats(a.out, n);
        test_release(scratch, bytes);
    }
}

static void check_case(const struct sh_cpu_kernels *k, const struct attention_case *c, enum sh_kv_type type,
                       struct test_rng *rng) {
    struct stored s;
    store(&s, c, type, rng);
    const uint32_t n = c->n_heads * c->v_dim, seen = c->end - c->first;
    float *q = test_guarded_floats(c->n_heads * c->k_dim, 3.0f, rng), *out = test_guarded(n * sizeof *out);
    float *slopes = test_guarded_floats(c->n_heads, 0.5f, rng), *sinks = test_guarded_floats(c->n_heads, 6.0f, rng);
    double *expected = malloc(c->v_dim * sizeof *expected);
    assert_non_null(expected);
    for (uint32_t h = 0; h < c->n_heads; h++) slopes[h] = fabsf(slopes[h]);
    const struct sh_ref_attention a = {
        .cache = &s.cache,
        .kv_head = 1,
        .n_heads = c->n_heads,
        .q = q,
        .position = c->position,
        .first = c->first,
        .end = c->end,
        .scale = 1.0f / sqrtf((float)c->k_dim),
        .softcap = c->softcap,
        .slopes = c->slopes ? slopes : NULL,
        .sinks = c->sinks ? sinks : NULL,
        .out = out,
    };
    const uint64_t bytes = k->attention_scratch(c->n_heads, seen, c->k_dim, c->v_dim);
    void *scratch = test_guarded(bytes);
    k->attention(&a, 1, scratch);
    /* scores reach about 10: k_dim roundings of them move a weight by 10 * k_dim * 2^-24 of itself, a cap's tanh by 4e-7 of the
     * cap, `seen` more in the sums; values about 4 */
    const double limit = 4 * ((10.0 * c->k_dim + seen + 64) * 0x1p-24 + 8e-7 * (double)c->softcap);
    for (uint32_t h = 0; h < c->n_heads; h++) {
        attend(c, &s, q + h * c->k_dim, a.scale, c->slopes ? &slopes[h] : NULL, c->sinks ? &sinks[h] : NULL, expected);
        for (uint32_t d = 0; d < c->v_dim; d++)
            if (!(fabs((double)out[h * c->v_dim + d] - expected[d]) <= limit))
                fail_msg("%s, k %u v %u, positions %u..%u: head %u, element %u is %.9g, expected %.9g within %g", k->tier,
                         c->k_dim, c->v_dim, c->first, c->end, h, d, (double)out[h * c->v_dim + d], expected[d], limit);
    }
    if (k->attention_split > 0) check_parts(k, a, out, scratch);
    check_bits(k, a, out);
    test_release(scratch, bytes);
    test_release_floats(q, c->n_heads * c->k_dim);
    test_release_floats(out, n);
    test_release_floats(slopes, c->n_heads);
    test_release_floats(sinks, c->n_heads);
    free(expected);
    drop(&s);
}

static void test_cpu_attention(void **state) {
    (void)state;
    struct test_rng rng = {6};
    static const struct attention_case cases[] = {
        {64, 64, 8, 0, 1, 0, 0, false, false, false},
        {64, 64, 8, 0, 33, 32, 0, false, false, false},
        {16, 16, 1, 0, 31, 30, 0, false, false, false},
        {13, 9, 3, 0, 70, 69, 0, false, false, false},
        {128, 128, 4, 0, 256, 255, 0, false, false, false},
        {80, 80, 2, 0, 257, 256, 0, false, false, false},
        {64, 40, 9, 0, 700, 699, 0, false, false, false},
        {8, 8, 5, 0, 512, 511, 0, false, false, false},
        {48, 128, 7, 0, 1025, 1024, 0, false, false, false},
        /* windows that begin within a piece, a page, a part; at a page's and a part's first position; of one position */
        {64, 64, 2, 5, 37, 36, 0, false, false, false},
        {64, 64, 2, 31, 800, 799, 0, false, false, false},
        {32, 32, 3, 255, 256, 255, 0, false, false, false},
        {32, 32, 3, 255, 513, 512, 0, false, false, false},
        {32, 32, 3, 256, 257, 256, 0, false, false, false},
        {32, 32, 3, 512, 1030, 1029, 0, false, false, false},
        {20, 12, 3, 777, 1111, 1110, 0, false, false, false},
        /* caps, slopes, sinks, both sides of the query */
        {64, 64, 4, 0, 300, 299, 5, false, false, false},
        {30, 30, 3, 17, 300, 299, 50, false, true, false},
        {64, 64, 4, 0, 300, 299, 0, true, false, false},
        {10, 24, 5, 3, 290, 100, 0, true, true, false},
        {64, 64, 4, 0, 1, 0, 0, false, true, false},
        {64, 64, 4, 100, 612, 611, 3, true, true, false},
        {24, 24, 2, 40, 90, 65, 0, false, false, false},
        /* values in keys */
        {24, 16, 4, 0, 70, 69, 0, false, false, true},
        {13, 13, 3, 9, 270, 269, 0, false, false, true},
        {576, 512, 16, 0, 300, 299, 0, false, false, true},
        {192, 128, 2, 0, 100, 99, 0, false, false, false},
    };
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(cases); i++) {
            check_case(k, &cases[i], SH_KV_F32, &rng);
            check_case(k, &cases[i], SH_KV_F16, &rng);
        }
}

/* Rows of one sequence, as many as a table takes at once or fewer: each as alone. The last position that the first row does not see
 * holds NaN, as the values of a row that broke down would. */
static void check_block(const struct sh_cpu_kernels *k, const struct attention_case *c, uint32_t n_rows, uint32_t window,
                        enum sh_kv_type type, struct test_rng *rng) {
    struct stored s;
    store(&s, c, type, rng);
    n_rows = (uint32_t)sh_min_u64(n_rows, k->attention_rows(c->n_heads));
    const uint32_t n = c->n_heads * c->v_dim, n_q = c->n_heads * c->k_dim;
    float *q = test_guarded_floats((uint64_t)n_rows * n_q, 3.0f, rng), *out = test_guarded(n_rows * n * sizeof *out);
    float *slopes = test_guarded_floats(c->n_heads, 0.5f, rng), *sinks = test_guarded_floats(c->n_heads, 6.0f, rng);
    float *alone = test_guarded(n * sizeof *alone);
    if (!c->v_in_k && n_rows > 1) {
        float key[N_KV * 64] = {0}, value[N_KV * 64];
        for (uint32_t d = 0; d < N_KV * 64; d++) value[d] = NAN;
        assert_true(c->k_dim <= 64 && c->v_dim <= 64);
        sh_ref_cache_store(&s.cache, c->end - 1, key, value);
    }
    struct sh_ref_attention rows[64];
    assert_true(n_rows <= SH_COUNT(rows));
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint32_t end = c->end - n_rows + 1 + r;
        rows[r] = (struct sh_ref_attention){
            .cache = &s.cache,
            .kv_head = 1,
            .n_heads = c->n_heads,
            .q = q + (size_t)r * n_q,
            .position = end - 1,
            .first = window > 0 && end > c->first + window ? end - window : c->first,
            .end = end,
            .scale = 1.0f / sqrtf((float)c->k_dim),
            .softcap = c->softcap,
            .slopes = c->slopes ? slopes : NULL,
            .sinks = c->sinks ? sinks : NULL,
            .out = out + (size_t)r * n,
        };
    }
    const uint64_t bytes = k->attention_scratch(c->n_heads, c->end - c->first, c->k_dim, c->v_dim);
    void *scratch = test_guarded(bytes);
    memset(scratch, 0xFF, bytes);
    k->attention(rows, n_rows, scratch);
    for (uint32_t r = 0; r < n_rows; r++) {
        const float *together = rows[r].out;
        rows[r].out = alone;
        memset(scratch, 0xFF, bytes);
        k->attention(&rows[r], 1, scratch);
        if (r + 1 == n_rows && isnan(alone[0])) continue; /* it sees what the others do not */
        for (uint32_t i = 0; i < n; i++) assert_false(isnan(alone[i]));
        if (memcmp(together, alone, n * sizeof *alone) != 0)
            fail_msg("%s, k %u v %u, positions %u..%u, window %u: row %u of %u differs from itself alone", k->tier, c->k_dim,
                     c->v_dim, c->first, c->end, window, r, n_rows);
    }
    test_release(scratch, bytes);
    test_release_floats(q, (uint64_t)n_rows * n_q);
    test_release_floats(out, (uint64_t)n_rows * n);
    test_release_floats(alone, n);
    test_release_floats(slopes, c->n_heads);
    test_release_floats(sinks, c->n_heads);
    drop(&s);
}

static void test_cpu_attention_blocks(void **state) {
    (void)state;
    struct test_rng rng = {7};
    static const struct attention_case cases[] = {
        {16, 16, 8, 0, 40, 0, 0, false, false, false},
        {13, 9, 1, 0, 300, 0, 0, false, false, false},
        {64, 40, 3, 100, 600, 0, 0, false, true, false},
        {24, 24, 2, 0, 530, 0, 5, true, true, false},
        {24, 16, 4, 0, 290, 0, 0, false, false, true},
        {13, 13, 5, 9, 270, 0, 0, false, false, true},
    };
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(cases); i++)
            for (uint32_t n_rows = 1; n_rows <= 64; n_rows += n_rows < 4 ? 1 : 15)
                for (uint32_t window = 0; window < 300; window = window == 0 ? 5 : window * 7 + 1) {
                    check_block(k, &cases[i], n_rows, window, SH_KV_F16, &rng);
                    check_block(k, &cases[i], n_rows, window, SH_KV_F32, &rng);
                }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cpu_attention), cmocka_unit_test(test_cpu_attention_blocks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
