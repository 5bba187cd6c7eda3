/*
 * What the Vulkan recorder makes of bundles (program.h) in fewer dispatches has the bits of the ops one by one: matrices one below the other
 * as one product, two products with their GLU, and norms and attention with the 8 bits that are made of them. Of every layout, in the tiers
 * base and intdot, by kernels for GPUs and for software devices, for few and for many rows, with biases, and where matrices cannot be
 * joined. How many dispatches there were is counted.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const uint32_t types[] = {SH_TYPE_F32,  SH_TYPE_F16,   SH_TYPE_BF16,   SH_TYPE_Q4_0, SH_TYPE_Q4_1, SH_TYPE_Q5_0, SH_TYPE_Q5_1, SH_TYPE_Q8_0,
                                 SH_TYPE_Q2_K, SH_TYPE_Q4_K,  SH_TYPE_Q5_K,   SH_TYPE_Q6_K, SH_TYPE_MXFP4, SH_TYPE_IQ4_XS, SH_TYPE_Q3_K};
static const uint32_t row_counts[] = {1, 3, 9};
enum { ROWS = 9 };

/* Dispatches of the last step that ops_run made, without those that bring the inputs and take the activation away. */
static uint32_t dispatches(const struct ops *ops, const struct ops_model *m) { return m->context->slots[0].once.n_grids - ops->n_inputs - 1; }
/* One more, where kernels of software devices take many rows of floats turned (turn.comp). */
static uint32_t turning(struct sh_device *vulkan, uint32_t type, uint32_t cols, uint32_t n_rows) {
    const struct sh_vulkan *vk = sh_vulkan_of(vulkan);
    const bool quants = vk->tier >= SH_TIER_INTDOT && sh_type_info(type)->block_elements > 1;
    return n_rows > 8 && vk->base.info.kind == SH_DEVICE_SOFTWARE && !vk->like_gpu && !quants && cols % SH_UNIT == 0;
}

/* ---- one by one ---- */

static float *product(struct sh_device *vulkan, uint32_t type, const void *w, const float *bias, const float *x, uint32_t cols, uint32_t n) {
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.x = ops_input(&ops, cols);
    op.w = ops_weight(&ops, type, cols, n, w);
    if (bias) op.bias = ops_weight(&ops, SH_TYPE_F32, n, 1, bias);
    op.out = ops_activation(&ops, n, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
    float *y = ops_run(&ops, &m, &(struct ops_step){.n_rows = ROWS, .inputs = {x}}, op.out);
    ops_unload(&m);
    return y;
}

static float *norm_of(struct sh_device *vulkan, const float *x, const float *w, uint32_t width) {
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_NORM);
    op.norm.n_groups = 1;
    op.eps = 1e-5f;
    op.x = ops_input(&ops, width);
    op.w = ops_weight(&ops, SH_TYPE_F32, width, 1, w);
    op.out = ops_activation(&ops, width, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
    float *out = ops_run(&ops, &m, &(struct ops_step){.n_rows = ROWS, .inputs = {x}}, op.out);
    ops_unload(&m);
    return out;
}

static float *glu_of(struct sh_device *vulkan, enum sh_glu kind, const float *x, const float *y, uint32_t n) {
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_GLU);
    op.glu = kind;
    op.x = ops_input(&ops, n);
    op.y = ops_input(&ops, n);
    op.out = ops_activation(&ops, n, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
    float *out = ops_run(&ops, &m, &(struct ops_step){.n_rows = ROWS, .inputs = {x, y}}, op.out);
    ops_unload(&m);
    return out;
}

/* ---- gate, up and GLU ---- */

struct glu_case {
    uint32_t type, cols, n;
    enum sh_glu kind;
    bool norm, bias, swapped; /* swapped: the second product is the gate */
    uint32_t few, many;       /* dispatches of products and GLU, for up to 8 rows and for more */
};

static void a_glu_case(struct sh_device *vulkan, const struct glu_case *c) {
    char name[128];
    snprintf(name, sizeof name, "glu %s cols=%u n=%u kind=%d norm=%d bias=%d swapped=%d", sh_type_info(c->type)->name, c->cols, c->n,
             (int)c->kind, c->norm, c->bias, c->swapped);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {c->type * 31 + c->kind};
    float *x = ops_random_floats((size_t)ROWS * c->cols, 1, &rng), *norms = ops_random_floats(c->cols, 1, &rng), *y[2], *bias[2];
    float *normed = c->norm ? norm_of(vulkan, x, norms, c->cols) : NULL;
    void *w[2];
    struct ops ops;
    ops_init(&ops);
    struct sh_op norm = ops_op(SH_OP_NORM), op = ops_op(SH_OP_MATMUL), glu = ops_op(SH_OP_GLU);
    op.x = norm.x = ops_input(&ops, c->cols);
    norm.norm.n_groups = 1;
    norm.eps = 1e-5f;
    if (c->norm) {
        norm.w = ops_weight(&ops, SH_TYPE_F32, c->cols, 1, norms);
        op.x = norm.out = ops_activation(&ops, c->cols, SH_ROWS_ALL);
        ops_push(&ops, &norm);
    }
    for (int i = 0; i < 2; i++) {
        w[i] = ops_random_matrix(c->type, c->cols, c->n, &rng);
        bias[i] = ops_random_floats(c->n, 1, &rng);
        op.w = ops_weight(&ops, c->type, c->cols, c->n, w[i]);
        if (c->bias) op.bias = ops_weight(&ops, SH_TYPE_F32, c->n, 1, bias[i]);
        op.out = ops_activation(&ops, c->n, SH_ROWS_ALL);
        ops_push(&ops, &op);
        *((i == 0) == !c->swapped ? &glu.x : &glu.y) = op.out;
        y[i] = product(vulkan, c->type, w[i], c->bias ? bias[i] : NULL, c->norm ? normed : x, c->cols, c->n);
    }
    glu.glu = c->kind;
    glu.out = ops_activation(&ops, c->n, SH_ROWS_ALL);
    ops_push(&ops, &glu);
    float *want = glu_of(vulkan, c->kind, y[c->swapped], y[!c->swapped], c->n);
    const bool quants = sh_vulkan_of(vulkan)->tier >= SH_TIER_INTDOT && sh_type_info(c->type)->block_elements > 1;
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
    for (size_t i = 0; i < SH_COUNT(row_counts); i++) {
        const uint32_t n = row_counts[i], first = (ROWS - n) / 2;
        const struct ops_step step = {.n_rows = n, .inputs = {x + (size_t)first * c->cols}};
        float *got = ops_run(&ops, &m, &step, glu.out);
        assert_int_equal(dispatches(&ops, &m), (c->norm || quants) + (n <= 8 ? c->few : c->many) + turning(vulkan, c->type, c->cols, n));
        ops_compare(name, got, want + (size_t)first * c->n, NULL, (size_t)n * c->n);
        free(got);
        got = ops_run(&ops, &m, &step, op.out); /* a product that is asked for is written, and a norm */
        ops_compare(name, got, y[1] + (size_t)first * c->n, NULL, (size_t)n * c->n);
        free(got);
        if (!c->norm) continue;
        got = ops_run(&ops, &m, &step, norm.out);
        ops_compare(name, got, normed + (size_t)first * c->cols, NULL, (size_t)n * c->cols);
        free(got);
    }
    ops_unload(&m);
    for (int i = 0; i < 2; i++) {
        free(w[i]);
        free(bias[i]);
        free(y[i]);
    }
    free(x);
    free(norms);
    free(normed);
    free(want);
}

/* On a software device every other layout by its own kernels: what follows a product is the same of all layouts. */
static void glus(struct sh_device *vulkan, bool quantised_only) {
    for (size_t t = 0; t < SH_COUNT(types); t++) {
        const uint32_t block = sh_type_info(types[t])->block_elements;
        if (quantised_only && block == 1) continue;
        sh_vulkan_of(vulkan)->like_gpu = t % 2 == 0;
        const struct glu_case c = {.type = types[t],
                                   .cols = types[t] == SH_TYPE_F32 ? 197 : block == 256 ? 1280 : 1120,
                                   .n = 96,
                                   .kind = SH_GLU_SILU,
                                   .norm = t % 3 != 1,
                                   .bias = t % 3 == 0,
                                   .swapped = t % 4 < 2,
                                   .few = 1,
                                   .many = 2};
        a_glu_case(vulkan, &c);
    }
}

static void a_glu_of_every_layout(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    glus(vulkan, false);
    ops_close(vulkan);
}

static void a_glu_of_eight_bits(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "intdot");
    glus(vulkan, true);
    ops_close(vulkan);
}

static void a_glu_of_every_kind(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    for (enum sh_glu kind = SH_GLU_SILU; kind <= SH_GLU_OAI; kind++)
        a_glu_case(vulkan, &(struct glu_case){.type = SH_TYPE_Q8_0, .cols = 64, .n = 160, .kind = kind, .swapped = kind % 2 == 0, .few = 1, .many = 2});
    ops_close(vulkan);
}

/* Widths that leave gaps between columns, and rows that do not end on 16 bytes of every plane. */
static void what_cannot_be_joined(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    a_glu_case(vulkan, &(struct glu_case){.type = SH_TYPE_Q4_0, .cols = 96, .n = 77, .bias = true, .few = 3, .many = 3});
    a_glu_case(vulkan, &(struct glu_case){.type = SH_TYPE_F16, .cols = 33, .n = 1, .few = 3, .many = 3});
    sh_vk_part_bytes_for_test(20000); /* one matrix is a part, two are not; then either is in parts */
    a_glu_case(vulkan, &(struct glu_case){.type = SH_TYPE_Q8_0, .cols = 128, .n = 96, .swapped = true, .few = 3, .many = 3});
    a_glu_case(vulkan, &(struct glu_case){.type = SH_TYPE_Q8_0, .cols = 128, .n = 192, .few = 5, .many = 5});
    sh_vk_part_bytes_for_test(0);
    ops_close(vulkan);
}

/* ---- q, k, v, their rotation, attention ---- */

struct qkv_case {
    uint32_t type[3], n_heads, n_kv_heads, dim, cols;
    bool norm, bias;
    bool heads;          /* norms of each head of q and k before the rotation */
    uint32_t output;     /* the type of a product of what attention gives; F32: there is none */
    uint32_t dispatches, many; /* of few rows, and of many, whose attention is one less */
};

static void a_qkv_case(struct sh_device *vulkan, const struct qkv_case *c) {
    char name[128];
    snprintf(name, sizeof name, "qkv %s %s %s heads=%u/%u dim=%u norm=%d bias=%d heads=%d", sh_type_info(c->type[0])->name, sh_type_info(c->type[1])->name,
             sh_type_info(c->type[2])->name, c->n_heads, c->n_kv_heads, c->dim, c->norm, c->bias, c->heads);
    if (!ops_wanted(name)) return;
    const uint32_t widths[3] = {c->n_heads * c->dim, c->n_kv_heads * c->dim, c->n_kv_heads * c->dim};
    struct test_rng rng = {c->type[2] * 31 + c->dim};
    float *x = ops_random_floats((size_t)ROWS * c->cols, 1, &rng), *table = ops_random_floats((size_t)ROWS * c->dim, 1, &rng), *y[3], *bias[3];
    float *norms = ops_random_floats(c->cols, 1, &rng), *normed = c->norm ? norm_of(vulkan, x, norms, c->cols) : NULL;
    void *w[3];
    struct ops joined, apart; /* from x; from q, k, v */
    ops_init(&joined);
    ops_init(&apart);
    struct sh_op norm = ops_op(SH_OP_NORM), op = ops_op(SH_OP_MATMUL), rope = ops_op(SH_OP_ROPE_CACHE), attention = ops_op(SH_OP_ATTENTION);
    op.x = norm.x = ops_input(&joined, c->cols);
    norm.norm.n_groups = 1;
    norm.eps = 1e-5f;
    if (c->norm) {
        norm.w = ops_weight(&joined, SH_TYPE_F32, c->cols, 1, norms);
        op.x = norm.out = ops_activation(&joined, c->cols, SH_ROWS_ALL);
        ops_push(&joined, &norm);
    }
    uint32_t from[2][3];
    for (int i = 0; i < 3; i++) {
        w[i] = ops_random_matrix(c->type[i], c->cols, widths[i], &rng);
        bias[i] = ops_random_floats(widths[i], 1, &rng);
        op.w = ops_weight(&joined, c->type[i], c->cols, widths[i], w[i]);
        if (c->bias) op.bias = ops_weight(&joined, SH_TYPE_F32, widths[i], 1, bias[i]);
        from[0][i] = op.out = ops_activation(&joined, widths[i], SH_ROWS_ALL);
        ops_push(&joined, &op);
        from[1][i] = ops_input(&apart, widths[i]);
        y[i] = product(vulkan, c->type[i], w[i], c->bias ? bias[i] : NULL, c->norm ? normed : x, c->cols, widths[i]);
    }
    rope.rope.pairing = SH_ROPE_HALVES;
    rope.rope.n_rot = c->dim;
    rope.attn.n_heads = c->n_heads;
    rope.attn.n_kv_heads = c->n_kv_heads;
    rope.attn.k_dim = rope.attn.v_dim = c->dim;
    rope.attn.scale = 0.3f;
    attention.attn = rope.attn;
    void *output_w = ops_random_matrix(c->output, widths[0], widths[0], &rng);
    uint32_t output = SH_NONE;
    struct ops *both[2] = {&joined, &apart};
    struct ops_model m[2];
    for (int i = 0; i < 2; i++) {
        struct ops *ops = both[i];
        ops->group = (struct sh_state_group){SH_STATE_PAGED, 1, c->n_kv_heads, c->dim, c->dim};
        ops->program.n_groups = 1;
        rope.x = from[i][0];
        rope.y = from[i][1];
        if (c->heads) {
            norm.w = SH_NONE;
            for (int q = 0; q < 2; q++) {
                norm.x = from[i][q];
                norm.norm.n_groups = widths[q] / c->dim;
                *(q == 0 ? &rope.x : &rope.y) = norm.out = ops_activation(ops, widths[q], SH_ROWS_ALL);
                ops_push(ops, &norm);
            }
        }
        rope.z = from[i][2];
        rope.w = ops_weight(ops, SH_TYPE_F32, c->dim, ROWS, table);
        attention.x = rope.out = ops_activation(ops, widths[0], SH_ROWS_ALL);
        attention.out = ops_activation(ops, widths[0], SH_ROWS_ALL);
        ops_push(ops, &rope);
        ops_push(ops, &attention);
        if (i == 0 && c->output != SH_TYPE_F32) {
            struct sh_op last = ops_op(SH_OP_MATMUL);
            last.x = attention.out;
            last.w = ops_weight(ops, c->output, widths[0], widths[0], output_w);
            output = last.out = ops_activation(ops, widths[0], SH_ROWS_ALL);
            ops_push(ops, &last);
        }
        ops_load(ops, vulkan, SH_KV_F16, ROWS, 2, &m[i]);
    }
    const struct ops_step whole = {.n_rows = ROWS, .inputs = {y[0], y[1], y[2]}};
    float *attended = ops_run(&apart, &m[1], &whole, attention.out);
    float *end = c->output != SH_TYPE_F32 ? product(vulkan, c->output, output_w, NULL, attended, widths[0], widths[0]) : NULL;
    for (size_t k = 0; k < SH_COUNT(row_counts); k++) {
        const uint32_t n = row_counts[k];
        const struct ops_step step = {.n_rows = n, .inputs = {x}}, parts = {.n_rows = n, .inputs = {y[0], y[1], y[2]}};
        for (int i = 0; i < 3; i++) {
            float *got = ops_run(&joined, &m[0], &step, from[0][i]);
            ops_compare(name, got, y[i], NULL, (size_t)n * widths[i]);
            free(got);
        }
        for (uint32_t o = 0; o < 2; o++) { /* rotated, attended */
            float *got = ops_run(&joined, &m[0], &step, joined.list[c->norm + 3 + 2 * c->heads + o].out),
                  *want = ops_run(&apart, &m[1], &parts, apart.list[2 * c->heads + o].out);
            ops_compare(name, got, want, NULL, (size_t)n * widths[0]);
            free(got);
            free(want);
        }
        if (end) {
            float *got = ops_run(&joined, &m[0], &step, output);
            ops_compare(name, got, end, NULL, (size_t)n * widths[0]);
            free(got);
        }
        const uint32_t expected = n <= 8 ? c->dispatches : c->many ? c->many : c->dispatches - 1;
        assert_int_equal(dispatches(&joined, &m[0]), expected + turning(vulkan, c->type[0], c->cols, n));
    }
    for (int i = 0; i < 2; i++) ops_unload(&m[i]);
    for (int i = 0; i < 3; i++) {
        free(w[i]);
        free(bias[i]);
        free(y[i]);
    }
    free(x);
    free(norms);
    free(normed);
    free(table);
    free(output_w);
    free(attended);
    free(end);
}

static void q_k_and_v(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    const struct qkv_case cases[] = {
        {.type = {SH_TYPE_Q4_0, SH_TYPE_Q4_0, SH_TYPE_Q4_0}, .n_heads = 4, .n_kv_heads = 2, .dim = 16, .cols = 1120, .dispatches = 4},
        {.type = {SH_TYPE_Q8_0, SH_TYPE_Q8_0, SH_TYPE_Q8_0}, .n_heads = 6, .n_kv_heads = 2, .dim = 32, .cols = 96, .bias = true, .dispatches = 4},
        {.type = {SH_TYPE_Q4_K, SH_TYPE_Q4_K, SH_TYPE_Q6_K}, .n_heads = 4, .n_kv_heads = 4, .dim = 16, .cols = 256, .dispatches = 5},
        {.type = {SH_TYPE_Q4_K, SH_TYPE_Q6_K, SH_TYPE_Q6_K}, .n_heads = 2, .n_kv_heads = 1, .dim = 64, .cols = 512, .dispatches = 5},
        {.type = {SH_TYPE_F16, SH_TYPE_F16, SH_TYPE_F16}, .n_heads = 2, .n_kv_heads = 1, .dim = 32, .cols = 45, .dispatches = 4},
        {.type = {SH_TYPE_Q4_K, SH_TYPE_Q4_K, SH_TYPE_Q6_K}, .n_heads = 4, .n_kv_heads = 2, .dim = 32, .cols = 256, .heads = true, .dispatches = 7},
        {.type = {SH_TYPE_Q5_0, SH_TYPE_Q5_1, SH_TYPE_Q5_0}, .n_heads = 2, .n_kv_heads = 2, .dim = 32, .cols = 64, .dispatches = 6},
        {.type = {SH_TYPE_Q4_0, SH_TYPE_Q4_0, SH_TYPE_Q4_0}, .n_heads = 3, .n_kv_heads = 1, .dim = 24, .cols = 64, .bias = true, .dispatches = 6},
    };
    for (int like_gpu = 0; like_gpu < 2; like_gpu++) {
        sh_vulkan_of(vulkan)->like_gpu = like_gpu == 1;
        for (size_t i = 0; i < SH_COUNT(cases); i++) a_qkv_case(vulkan, &cases[i]);
    }
    ops_close(vulkan);
}

/* Activations of 8 bits are made once, by the norm or what merges attention if its heads are whole units, and once more where a layout wants
 * them in another order. */
static void q_k_and_v_of_eight_bits(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan_tier(__func__, "intdot");
    const struct qkv_case cases[] = {
        {.type = {SH_TYPE_Q4_K, SH_TYPE_Q4_K, SH_TYPE_Q6_K},
         .n_heads = 4, .n_kv_heads = 2, .dim = 16, .cols = 512, .norm = true, .output = SH_TYPE_Q5_0, .dispatches = 8},
        {.type = {SH_TYPE_Q4_0, SH_TYPE_Q8_0, SH_TYPE_Q4_0},
         .n_heads = 2, .n_kv_heads = 2, .dim = 32, .cols = 96, .norm = true, .output = SH_TYPE_Q8_0, .dispatches = 10, .many = 10},
        {.type = {SH_TYPE_Q8_0, SH_TYPE_F16, SH_TYPE_Q8_0},
         .n_heads = 2, .n_kv_heads = 1, .dim = 32, .cols = 96, .norm = true, .output = SH_TYPE_Q4_1, .dispatches = 8, .many = 8},
        {.type = {SH_TYPE_Q4_K, SH_TYPE_Q4_K, SH_TYPE_Q4_K},
         .n_heads = 2, .n_kv_heads = 1, .dim = 288, .cols = 256, .output = SH_TYPE_Q4_0, .dispatches = 6, .many = 6},
    };
    for (size_t i = 0; i < SH_COUNT(cases); i++) a_qkv_case(vulkan, &cases[i]);
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_glu_of_every_layout), cmocka_unit_test(a_glu_of_eight_bits), cmocka_unit_test(a_glu_of_every_kind),
        cmocka_unit_test(what_cannot_be_joined), cmocka_unit_test(q_k_and_v),           cmocka_unit_test(q_k_and_v_of_eight_bits),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
