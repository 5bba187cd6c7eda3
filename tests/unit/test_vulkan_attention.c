/*
 * The Vulkan rope, cache and attention kernels against the scalar reference: head sizes, grouped heads, both pairings, both cache
 * types, any chunking bit for bit. Tolerances are derived where they stand.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24

/* ---- rope, cache, attention ---- */

struct attention_shape {
    uint32_t n_heads, n_kv_heads, k_dim, v_dim, n_rot;
    enum sh_rope_pairing pairing;
    enum sh_kv_type kv_type;
};

/* Rows in steps of uneven size through rope_cache and attention; [n][n_heads * v_dim] of the attention, and, unless NULL, of
 * the rotated queries. */
static void run_attention(const struct ops *ops, struct sh_device *device, const struct attention_shape *s, const float *q,
                          const float *k, const float *v, uint32_t n, const uint32_t *pieces, uint32_t n_pieces, float *rotated,
                          float *attended) {
    struct ops_model m;
    ops_load(ops, device, s->kv_type, n, (n + SH_PAGE_TOKENS) / SH_PAGE_TOKENS + 1, &m);
    const uint32_t qw = s->n_heads * s->k_dim, kw = s->n_kv_heads * s->k_dim, vw = s->n_kv_heads * s->v_dim,
                   ow = s->n_heads * s->v_dim;
    uint32_t at = 0;
    for (uint32_t i = 0; at < n; i++) {
        const uint32_t piece = (uint32_t)sh_min_u64(i < n_pieces ? pieces[i] : n, n - at);
        const struct ops_step step = {
            .n_rows = piece, .position = at, .inputs = {q + (size_t)at * qw, k + (size_t)at * kw, v + (size_t)at * vw}};
        float *b = ops_run(ops, &m, &step, ops->list[1].out);
        memcpy(attended + (size_t)at * ow, b, (size_t)piece * ow * sizeof *b);
        free(b);
        if (rotated) {
            float *a = ops_run(ops, &m, &step, ops->list[0].out);
            memcpy(rotated + (size_t)at * qw, a, (size_t)piece * qw * sizeof *a);
            free(a);
        }
        at += piece;
    }
    ops_unload(&m);
}

static void attention_case(struct sh_device *vulkan, struct sh_device *cpu, const struct attention_shape *s, uint32_t n) {
    char name[160];
    snprintf(name, sizeof name, "attention heads=%u/%u dims=%u/%u rot=%u pairing=%d cache=%s n=%u", s->n_heads, s->n_kv_heads,
             s->k_dim, s->v_dim, s->n_rot, (int)s->pairing, s->kv_type == SH_KV_F16 ? "f16" : "f32", n);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {s->k_dim * 31 + n};
    const uint32_t qw = s->n_heads * s->k_dim, ow = s->n_heads * s->v_dim;
    float *q = ops_random_floats((size_t)n * qw, 2, &rng), *k = ops_random_floats((size_t)n * s->n_kv_heads * s->k_dim, 2, &rng),
          *v = ops_random_floats((size_t)n * s->n_kv_heads * s->v_dim, 1, &rng),
          *table = ops_random_floats((size_t)n * s->n_rot, 1, &rng);
    for (uint32_t i = 0; i < n * s->n_rot / 2; i++) { /* angles at random */
        const float angle = table[2 * i] * 3.14159f;
        table[2 * i] = cosf(angle);
        table[2 * i + 1] = sinf(angle);
    }
    struct ops ops;
    ops_init(&ops);
    ops.group = (struct sh_state_group){SH_STATE_PAGED, 1, s->n_kv_heads, s->k_dim, s->v_dim};
    ops.program.n_groups = 1;
    struct sh_op rope = ops_op(SH_OP_ROPE_CACHE), attention = ops_op(SH_OP_ATTENTION);
    rope.x = ops_input(&ops, qw);
    rope.y = ops_input(&ops, s->n_kv_heads * s->k_dim);
    rope.z = ops_input(&ops, s->n_kv_heads * s->v_dim);
    rope.w = ops_weight(&ops, SH_TYPE_F32, s->n_rot, n, table);
    rope.out = ops_activation(&ops, qw, SH_ROWS_ALL);
    rope.rope.pairing = s->pairing;
    rope.rope.n_rot = s->n_rot;
    rope.attn.n_heads = s->n_heads;
    rope.attn.n_kv_heads = s->n_kv_heads;
    rope.attn.k_dim = s->k_dim;
    rope.attn.v_dim = s->v_dim;
    rope.attn.scale = 1.0f / sqrtf((float)s->k_dim);
    attention.attn = rope.attn;
    attention.x = rope.out;
    attention.out = ops_activation(&ops, ow, SH_ROWS_ALL);
    ops_push(&ops, &rope);
    ops_push(&ops, &attention);

    float *out[5]; /* rotated and attended: of the reference, in pieces; attended: all at once */
    for (int i = 0; i < 5; i++) {
        out[i] = malloc((size_t)n * (qw > ow ? qw : ow) * sizeof(float));
        assert_non_null(out[i]);
    }
    static const uint32_t pieces[] = {1, 3, 8, 9, 1, 20, 2, 5, 40, 7, 1, 1, 100, 6, 60, 8};
    run_attention(&ops, cpu, s, q, k, v, n, NULL, 0, out[0], out[1]);
    run_attention(&ops, vulkan, s, q, k, v, n, pieces, SH_COUNT(pieces), out[2], out[3]);
    run_attention(&ops, vulkan, s, q, k, v, n, NULL, 0, NULL, out[4]);
    /* A step of few rows takes the split kernels, one of many rows the whole-row kernel: the same bits. */
    ops_compare(name, out[3], out[4], NULL, (size_t)n * ow);
    /* Rotation: three roundings of numbers up to 2 sqrt(2). */
    double *bound = malloc((size_t)n * (qw > ow ? qw : ow) * sizeof *bound);
    assert_non_null(bound);
    for (size_t i = 0; i < (size_t)n * qw; i++) bound[i] = 3 * 2 * sqrt(2) * EPS;
    ops_compare(name, out[2], out[0], bound, (size_t)n * qw);
    /* A score is a chain of k_dim terms whose magnitudes add to at most k_dim (rms of a uniform number in +-2, squared: 4/3),
     * scaled by 1 / sqrt(k_dim): 4 sqrt(L) eps * 4/3 sqrt(k_dim) off on each side. With a half-precision cache both sides store
     * the same halves, but a rotated key that lies at a rounding border may differ by one: 2^-11 relative, random signs over
     * k_dim. A weight e^s is off by that and by the exponential's own error (2 |s| + 3 units, |s| < 16); the output is an average
     * of values up to 1 with these weights. */
    const double score = 2 * 4 * sqrt(s->k_dim) * EPS * 4 / 3 * sqrt(s->k_dim) + (s->kv_type == SH_KV_F16 ? 4 * 0x1p-11 : 0);
    for (size_t i = 0; i < (size_t)n * ow; i++) bound[i] = score + 2 * 35 * EPS + 2 * 4 * sqrt(n) * EPS;
    ops_compare(name, out[3], out[1], bound, (size_t)n * ow);
    for (int i = 0; i < 5; i++) free(out[i]);
    free(bound);
    free(q);
    free(k);
    free(v);
    free(table);
}

static void attention_of_every_shape(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN(), *cpu = ops_open_cpu();
    static const struct attention_shape shapes[] = {
        {8, 4, 8, 8, 8, SH_ROPE_ADJACENT, SH_KV_F32},       {4, 4, 32, 32, 32, SH_ROPE_HALVES, SH_KV_F16},
        {6, 2, 64, 64, 64, SH_ROPE_ADJACENT, SH_KV_F16},    {4, 1, 80, 80, 20, SH_ROPE_HALVES, SH_KV_F32},
        {4, 2, 128, 128, 128, SH_ROPE_ADJACENT, SH_KV_F16}, {2, 1, 256, 256, 64, SH_ROPE_HALVES, SH_KV_F16},
        {2, 2, 100, 60, 50, SH_ROPE_ADJACENT, SH_KV_F16},   {3, 1, 36, 20, 36, SH_ROPE_HALVES, SH_KV_F32},
        {32, 1, 64, 128, 64, SH_ROPE_ADJACENT, SH_KV_F32},
    };
    for (size_t i = 0; i < SH_COUNT(shapes); i++) {
        attention_case(vulkan, cpu, &shapes[i], 41);
        if (i % 4 == 0) attention_case(vulkan, cpu, &shapes[i], 270); /* two splits */
    }
    attention_case(vulkan, cpu, &shapes[2], 520); /* three */
    ops_close(cpu);
    ops_close(vulkan);
}

/* With one position the softmax is one, and what comes out is the value as the cache stores it: halves rounded to nearest even.
 * */
/* One head without rotation worth the name: {x, y, z} in, attention out. */
static void one_head(struct ops *ops, uint32_t dim, float scale, uint32_t *attended) {
    static const float table[2] = {1, 0};
    ops_init(ops);
    ops->group = (struct sh_state_group){SH_STATE_PAGED, 1, 1, dim, dim};
    ops->program.n_groups = 1;
    struct sh_op rope = ops_op(SH_OP_ROPE_CACHE), attention = ops_op(SH_OP_ATTENTION);
    rope.x = ops_input(ops, dim);
    rope.y = ops_input(ops, dim);
    rope.z = ops_input(ops, dim);
    rope.w = ops_weight(ops, SH_TYPE_F32, 2, 1, table);
    rope.out = ops_activation(ops, dim, SH_ROWS_ALL);
    rope.rope.n_rot = 2;
    rope.attn.n_heads = rope.attn.n_kv_heads = 1;
    rope.attn.k_dim = rope.attn.v_dim = dim;
    rope.attn.scale = scale;
    attention.attn = rope.attn;
    attention.x = rope.out;
    attention.out = ops_activation(ops, dim, SH_ROWS_ALL);
    ops_push(ops, &rope);
    ops_push(ops, &attention);
    *attended = attention.out;
}

static void cache_rounds_to_nearest_even(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    enum { DIM = 16 };
    static const float values[DIM] = {0.0f,         -0.0f,     1.0f,     1.00048828125f, 1.0009765625f, 1.00146484375f,
                                      65504.0f,     65519.9f,  65520.0f, 6.1035e-05f,    5.9604e-08f,   2.9802e-08f,
                                      2.98024e-08f, -3.3e-06f, 0.1f,     -1e9f};
    struct ops ops;
    uint32_t attended;
    one_head(&ops, DIM, 1, &attended);
    static const float zeros[DIM];
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F16, 1, 1, &m);
    const struct ops_step step = {.n_rows = 1, .inputs = {zeros, zeros, values}};
    float *got = ops_run(&ops, &m, &step, attended);
    for (int i = 0; i < DIM; i++) {
        const float want = sh_f16_to_f32(sh_f32_to_f16(values[i])) + 0.0f; /* the sum starts at +0 */
        if (!(got[i] == want)) fail_msg("%.9g is stored as %.9g, expected %.9g", (double)values[i], (double)got[i], (double)want);
    }
    free(got);
    ops_unload(&m);
    ops_close(vulkan);
}

/* llvmpipe ends loops after so many iterations: a context in which attention would reach that is refused with the longest that is not, and
 * there it still sees everything: with equal scores and values of 1 in the last 512 of n positions it gives 512 / n. */
static void longest_context_of_a_software_driver(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    enum { DIM = 8, ROWS = 512 };
    if (vulkan->info.kind != SH_DEVICE_SOFTWARE) {
        ops_close(vulkan);
        TEST_SKIP("only software drivers end loops");
    }
    struct ops ops;
    uint32_t attended;
    one_head(&ops, DIM, 1, &attended);
    const struct sh_segment segment = {.program = &ops.program, .n_ops = 2, .n_inputs = 3, .inputs = {0, 1, 2}};
    struct sh_exec_model *model;
    struct sh_exec_context *context;
    struct sh_error err = {0};
    const struct sh_executor *e = vulkan->executor;
    assert_int_equal(e->model_create(vulkan, &segment, 1, &model, &err), SH_OK);
    struct sh_exec_context_params params = {
        .kv_type = SH_KV_F32, .max_rows = ROWS, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = 8000};
    assert_int_equal(e->context_create(model, &params, &context, &err), SH_ERR_LIMIT);
    const char *found = strstr(err.message, "at most ");
    assert_non_null(found);
    const uint32_t longest = (uint32_t)strtoul(found + strlen("at most "), NULL, 10);
    params.max_pages_per_sequence = longest / SH_PAGE_TOKENS + 1;
    assert_int_equal(e->context_create(model, &params, &context, &err), SH_ERR_LIMIT);
    params.max_pages_per_sequence = longest / SH_PAGE_TOKENS;
    assert_int_equal(e->context_create(model, &params, &context, &err), SH_OK);
    e->context_destroy(context);
    e->model_destroy(model);

    if (getenv("SHIMMY_TEST_FULL") == NULL) {
        ops_close(vulkan);
        TEST_SKIP("%u positions of a cache take a minute; SHIMMY_TEST_FULL=1 fills it", longest);
    }
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, ROWS, longest / SH_PAGE_TOKENS, &m);
    static float zeros[ROWS * DIM], values[ROWS * DIM];
    const uint32_t n = longest / ROWS * ROWS;
    for (uint32_t at = 0; at < n; at += ROWS) {
        for (uint32_t i = 0; i < ROWS * DIM; i++) values[i] = at + ROWS == n ? 1 : 0;
        const struct ops_step step = {.n_rows = ROWS, .position = at, .inputs = {zeros, zeros, values}};
        float *got = ops_run(&ops, &m, &step, attended);
        if (at + ROWS == n)
            for (uint32_t d = 0; d < DIM; d++)
                assert_float_equal(got[(ROWS - 1) * DIM + d], (float)ROWS / (float)n, 1e-6f);
        free(got);
    }
    ops_unload(&m);
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_of_every_shape),
        cmocka_unit_test(cache_rounds_to_nearest_even),
        cmocka_unit_test(longest_context_of_a_software_driver),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
