/*
 * The Vulkan kernels of norms, unary functions, gated units, concatenation and rotation against their formulae in double precision,
 * at odd sizes, over values from nothing to overflow; and a row alone against the same row among others, bit for bit. Bounds are
 * derived where they stand; those of exp, division and the functions made of them are in compute/glsl/math.glsl.
 */
#include "tests/unit/ops_harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24
#define TINY 1e-37 /* results that small may be flushed to zero */
enum { ROWS = 5, FIRST = 3 /* position of the first row */ };

static const uint32_t widths[] = {1, 63, 172, 1030};

/* Runs ops over all rows, then over row 2 alone. inputs: of each input activation, its width in widths_of. */
static void check(struct sh_device *device, const struct ops *ops, const char *name, float *const *inputs, uint32_t out,
                  const double *want, const double *bound) {
    const uint32_t width = ops->activations[out].width;
    struct ops_model m;
    ops_load(ops, device, SH_KV_F32, ROWS, 2, &m);
    struct ops_step all = {.n_rows = ROWS, .position = FIRST}, alone = {.n_rows = 1, .position = FIRST + 2};
    for (uint32_t i = 0; i < ops->n_inputs; i++) {
        all.inputs[i] = inputs[i];
        alone.inputs[i] = inputs[i] + 2 * (size_t)ops->activations[ops->inputs[i]].width;
    }
    float *got = ops_run(ops, &m, &all, out), *one = ops_run(ops, &m, &alone, out), *expected = malloc(ROWS * width * sizeof *got);
    double *limit = malloc(ROWS * width * sizeof *limit);
    assert_true(expected && limit);
    for (size_t i = 0; i < (size_t)ROWS * width; i++) {
        expected[i] = (float)want[i];
        limit[i] = bound[i] + fabs(want[i]) * EPS + TINY; /* `expected` is rounded */
    }
    ops_compare(name, got, expected, limit, (size_t)ROWS * width);
    ops_compare(name, one, got + 2 * (size_t)width, NULL, width);
    free(got);
    free(one);
    free(expected);
    free(limit);
    ops_unload(&m);
}

/* ---- norms ---- */

struct norm_case {
    enum sh_norm_kind kind;
    uint32_t width, n_groups; /* of a part; parts */
    int w, bias;              /* 0: none, 1: per part, 2: per row */
};

static void norm_case(struct sh_device *vulkan, const struct norm_case *c) {
    static const char *const kinds[] = {"rms", "layer", "l2"};
    char name[128];
    snprintf(name, sizeof name, "norm %s width=%u groups=%u w=%d bias=%d", kinds[c->kind], c->width, c->n_groups, c->w, c->bias);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {c->width * 7 + c->n_groups};
    const uint32_t width = c->width * c->n_groups;
    float *x = ops_random_floats((size_t)ROWS * width, 3, &rng), *w = ops_random_floats(width, 2, &rng),
          *bias = ops_random_floats(width, 1, &rng);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_NORM);
    op.norm.kind = c->kind;
    op.norm.n_groups = c->n_groups;
    op.eps = 1e-2f;
    op.x = ops_input(&ops, width);
    if (c->w) op.w = ops_weight(&ops, SH_TYPE_F32, c->w == 1 ? c->width : width, 1, w);
    if (c->bias) op.bias = ops_weight(&ops, SH_TYPE_F32, c->bias == 1 ? c->width : width, 1, bias);
    op.out = ops_activation(&ops, width, SH_ROWS_ALL);
    ops_push(&ops, &op);
    double *want = malloc(ROWS * width * sizeof *want), *bound = malloc(ROWS * width * sizeof *bound);
    assert_true(want && bound);
    /* A sum is a chain of `chain` additions. Squares are positive, so the root is off by half as much in relation to itself; the
     * mean by `chain` roundings of numbers up to 3. */
    const double chain = c->width / 256.0 + 41;
    for (uint32_t part = 0; part < ROWS * c->n_groups; part++) {
        const uint32_t at = part * c->width, column = part % c->n_groups * c->width;
        double mean = 0, squares = 0;
        for (uint32_t i = 0; c->kind == SH_NORM_LAYER && i < c->width; i++) mean += (double)x[at + i] / c->width;
        for (uint32_t i = 0; i < c->width; i++) squares += ((double)x[at + i] - mean) * ((double)x[at + i] - mean);
        const double scale = c->kind == SH_NORM_L2 ? 1 / fmax(sqrt(squares), (double)op.eps)
                                                   : 1 / sqrt(squares / c->width + (double)op.eps);
        for (uint32_t i = 0; i < c->width; i++) {
            const double hat = ((double)x[at + i] - mean) * scale;
            const double factor = c->w ? (double)w[c->w == 1 ? i : column + i] : 1,
                         add = c->bias ? (double)bias[c->bias == 1 ? i : column + i] : 0;
            want[at + i] = hat * factor + add;
            bound[at + i] = fabs(hat * factor) * (chain / 2 + 12) * EPS + fabs(add) * EPS +
                            (c->kind == SH_NORM_LAYER ? fabs(factor) * scale * 3 * (chain + 6) * EPS : 0);
        }
    }
    check(vulkan, &ops, name, &x, op.out, want, bound);
    free(want);
    free(bound);
    free(x);
    free(w);
    free(bias);
}

static void norms_of_every_kind(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < SH_COUNT(widths); i++) {
            const struct norm_case plain = {(enum sh_norm_kind)kind, widths[i], 1, 0, 0}, both = {plain.kind, widths[i], 1, 1, 1};
            norm_case(vulkan, &plain);
            norm_case(vulkan, &both);
        }
        for (int w = 0; w < 3; w++) {
            const struct norm_case heads = {(enum sh_norm_kind)kind, 33, 7, w, (w + 1) % 3};
            norm_case(vulkan, &heads);
        }
    }
    ops_close(vulkan);
}

/* ---- functions of one number ---- */

static float *numbers(size_t n, struct test_rng *rng) { /* with the ones that break formulae first */
    static const float hard[] = {0.0f, -0.0f, 1e-20f, -1e-6f, 0.55f, -0.5499999f, 6.9999f, 7.5f, -9, 20, -21, 88, -88, 120, -120, 3e4f};
    float *x = ops_random_floats(n, 6, rng);
    for (size_t i = 0; i < SH_COUNT(hard) && i < n; i++) x[i] = hard[i];
    return x;
}

static double gelu_bound(double x) { /* exp(-2 u), where u has four roundings; a division, the sum */
    const double u = sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x);
    return (3 + 2 * fabs(2 * u) + 4 * fabs(2 * u) + 5) * 2 * EPS;
}
static double silu_bound(double x) { return (3 + 2 * fabs(x) + 5) * 2 * EPS; }
static double gelu(double x) {
    const double u = sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x);
    return x / (1 + exp(-2 * u));
}

/* f(x) and by how much a float32 kernel may miss it. */
static double unary_of(enum sh_unary kind, double x, double a, double *bound) {
    double y = 0;
    *bound = 0;
    switch (kind) {
    case SH_UNARY_SCALE:
    case SH_UNARY_SCALE_POSITION: y = a * x; break;
    case SH_UNARY_CLAMP: y = x < -a ? -a : x > a ? a : x; break;
    case SH_UNARY_SOFTCAP:
        y = a * tanh(x / a);
        *bound = fabs(y) * (16 + 5 + 2) * EPS;
        break;
    case SH_UNARY_GELU:
        y = gelu(x);
        *bound = fabs(y) * gelu_bound(x);
        break;
    case SH_UNARY_GELU_ERF:
        y = 0.5 * x * erfc(-x / sqrt(2));
        *bound = fabs(x) * 3e-7;
        break;
    case SH_UNARY_SILU:
        y = x / (1 + exp(-x));
        *bound = fabs(y) * silu_bound(x);
        break;
    case SH_UNARY_RELU: y = x > 0 ? x : 0; break;
    case SH_UNARY_RELU_SQUARED: y = x > 0 ? x * x : 0; break;
    }
    return y;
}

static void unary_of_every_kind(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    enum { TABLE = FIRST + 3 }; /* shorter than the positions: the last row takes its end */
    static const float positions[TABLE] = {1, 2, 3, 0.25f, -1.5f, 7};
    for (int kind = 0; kind <= SH_UNARY_RELU_SQUARED; kind++) {
        for (size_t i = 0; i < SH_COUNT(widths); i++) {
            const uint32_t width = widths[i];
            char name[64];
            snprintf(name, sizeof name, "unary kind=%d width=%u", kind, width);
            if (!ops_wanted(name)) continue;
            struct test_rng rng = {width};
            float *x = numbers((size_t)ROWS * width, &rng);
            struct ops ops;
            ops_init(&ops);
            struct sh_op op = ops_op(SH_OP_UNARY);
            op.unary.kind = (enum sh_unary)kind;
            op.unary.a = 5.3f;
            op.x = ops_input(&ops, width);
            if (kind == SH_UNARY_SCALE_POSITION) op.w = ops_weight(&ops, SH_TYPE_F32, 1, TABLE, positions);
            op.out = ops_activation(&ops, width, SH_ROWS_ALL);
            ops_push(&ops, &op);
            double *want = malloc(ROWS * width * sizeof *want), *bound = malloc(ROWS * width * sizeof *bound);
            assert_true(want && bound);
            for (uint32_t n = 0; n < ROWS * width; n++) {
                const uint32_t row = FIRST + n / width, last = row < TABLE ? row : TABLE - 1;
                const float a = kind == SH_UNARY_SCALE_POSITION ? positions[last] : op.unary.a;
                want[n] = unary_of(op.unary.kind, (double)x[n], (double)a, &bound[n]);
            }
            check(vulkan, &ops, name, &x, op.out, want, bound);
            free(want);
            free(bound);
            free(x);
        }
    }
    ops_close(vulkan);
}

/* ---- gated units ---- */

static double glu_of(enum sh_glu kind, double x, double y, double *bound) {
    double v = 0, ignored;
    *bound = 0;
    switch (kind) {
    case SH_GLU_SILU: v = unary_of(SH_UNARY_SILU, x, 0, bound); break;
    case SH_GLU_GELU: v = unary_of(SH_UNARY_GELU, x, 0, bound); break;
    case SH_GLU_GELU_ERF: v = unary_of(SH_UNARY_GELU_ERF, x, 0, bound); break;
    case SH_GLU_RELU: v = unary_of(SH_UNARY_RELU, x, 0, &ignored); break;
    case SH_GLU_SIGMOID:
        v = 1 / (1 + exp(-x));
        *bound = v * silu_bound(x);
        break;
    case SH_GLU_MUL: v = x; break;
    case SH_GLU_OAI: {
        const double g = fmin(x, 7), p = fmax(fmin(y, 7), -7);
        v = g / (1 + exp(-1.702 * g)) * (p + 1);
        /* The product in the exponent is rounded, and p + 1: in relation to p, where they cancel. */
        *bound = fabs(v) * (silu_bound(1.702 * g) + 2 * 1.702 * fabs(g) * EPS) + fabs(g) * fabs(p) * EPS + fabs(v) * 3 * EPS;
        return v;
    }
    }
    *bound = *bound * fabs(y) + fabs(v * y) * 2 * EPS;
    return v * y;
}

static void glu_of_every_kind(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    for (int kind = 0; kind <= SH_GLU_OAI; kind++) {
        for (size_t i = 0; i < 2 * SH_COUNT(widths); i++) {
            const uint32_t width = widths[i / 2], x_width = i % 2 ? 1 : width;
            char name[64];
            snprintf(name, sizeof name, "glu kind=%d width=%u x=%u", kind, width, x_width);
            if (!ops_wanted(name)) continue;
            struct test_rng rng = {width};
            float *in[2] = {numbers((size_t)ROWS * x_width, &rng), ops_random_floats((size_t)ROWS * width, 9, &rng)};
            struct ops ops;
            ops_init(&ops);
            struct sh_op op = ops_op(SH_OP_GLU);
            op.glu = (enum sh_glu)kind;
            op.x = ops_input(&ops, x_width);
            op.y = ops_input(&ops, width);
            op.out = ops_activation(&ops, width, SH_ROWS_ALL);
            ops_push(&ops, &op);
            double *want = malloc(ROWS * width * sizeof *want), *bound = malloc(ROWS * width * sizeof *bound);
            assert_true(want && bound);
            for (uint32_t n = 0; n < ROWS * width; n++)
                want[n] = glu_of(op.glu, (double)in[0][x_width == 1 ? n / width : n], (double)in[1][n], &bound[n]);
            check(vulkan, &ops, name, in, op.out, want, bound);
            free(want);
            free(bound);
            free(in[0]);
            free(in[1]);
        }
    }
    ops_close(vulkan);
}

/* ---- moved and rotated ---- */

static void concat_by_heads(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const uint32_t shapes[][3] = {{1, 1, 1}, {1, 31, 70}, {5, 13, 6}, {16, 128, 64}}; /* heads, x's part, y's part */
    for (size_t i = 0; i < SH_COUNT(shapes); i++) {
        const uint32_t heads = shapes[i][0], a = shapes[i][1], b = shapes[i][2], width = heads * (a + b);
        char name[64];
        snprintf(name, sizeof name, "concat heads=%u parts=%u/%u", heads, a, b);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {width};
        float *in[2] = {ops_random_floats((size_t)ROWS * heads * a, 1, &rng), ops_random_floats((size_t)ROWS * heads * b, 1, &rng)};
        struct ops ops;
        ops_init(&ops);
        struct sh_op op = ops_op(SH_OP_CONCAT);
        op.concat_heads = heads;
        op.x = ops_input(&ops, heads * a);
        op.y = ops_input(&ops, heads * b);
        op.out = ops_activation(&ops, width, SH_ROWS_ALL);
        ops_push(&ops, &op);
        double *want = malloc(ROWS * width * sizeof *want), *bound = calloc(ROWS * width, sizeof *bound);
        assert_true(want && bound);
        for (uint32_t part = 0; part < ROWS * heads; part++) {
            for (uint32_t e = 0; e < a; e++) want[part * (a + b) + e] = (double)in[0][part * a + e];
            for (uint32_t e = 0; e < b; e++) want[part * (a + b) + a + e] = (double)in[1][part * b + e];
        }
        check(vulkan, &ops, name, in, op.out, want, bound);
        free(want);
        free(bound);
        free(in[0]);
        free(in[1]);
    }
    ops_close(vulkan);
}

/* Dimensions first .. first + n_rot of each head by the angles of the row's position; the others as they are. */
static void rope_alone(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const struct {
        uint32_t heads, dim, first, n_rot;
        enum sh_rope_pairing pairing;
    } shapes[] = {{1, 2, 0, 2, SH_ROPE_HALVES},       {3, 64, 0, 64, SH_ROPE_ADJACENT}, {4, 80, 0, 20, SH_ROPE_HALVES},
                  {2, 192, 128, 64, SH_ROPE_ADJACENT}, {2, 192, 128, 64, SH_ROPE_HALVES}, {3, 37, 5, 22, SH_ROPE_ADJACENT},
                  {3, 37, 5, 22, SH_ROPE_HALVES},      {1, 576, 512, 64, SH_ROPE_ADJACENT}};
    for (size_t i = 0; i < SH_COUNT(shapes); i++) {
        const uint32_t dim = shapes[i].dim, first = shapes[i].first, n_rot = shapes[i].n_rot, width = shapes[i].heads * dim;
        char name[96];
        snprintf(name, sizeof name, "rope heads=%u dim=%u first=%u rot=%u pairing=%d", shapes[i].heads, dim, first, n_rot,
                 (int)shapes[i].pairing);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {width};
        float *x = ops_random_floats((size_t)ROWS * width, 2, &rng), *table = ops_random_floats((size_t)(FIRST + ROWS) * n_rot, 1, &rng);
        struct ops ops;
        ops_init(&ops);
        struct sh_op op = ops_op(SH_OP_ROPE);
        op.rope.pairing = shapes[i].pairing;
        op.rope.first = first;
        op.rope.n_rot = n_rot;
        op.attn.n_heads = shapes[i].heads;
        op.attn.k_dim = dim;
        op.x = ops_input(&ops, width);
        op.w = ops_weight(&ops, SH_TYPE_F32, n_rot, FIRST + ROWS, table);
        op.out = ops_activation(&ops, width, SH_ROWS_ALL);
        ops_push(&ops, &op);
        double *want = malloc(ROWS * width * sizeof *want), *bound = calloc(ROWS * width, sizeof *bound);
        assert_true(want && bound);
        for (uint32_t n = 0; n < ROWS * width; n++) want[n] = (double)x[n];
        for (uint32_t head = 0; head < ROWS * shapes[i].heads; head++) {
            const float *angles = table + (size_t)(FIRST + head / shapes[i].heads) * n_rot;
            for (uint32_t j = 0; j < n_rot / 2; j++) {
                const bool halves = shapes[i].pairing == SH_ROPE_HALVES;
                const uint32_t a = head * dim + first + (halves ? j : 2 * j), b = halves ? a + n_rot / 2 : a + 1;
                const double u = (double)x[a], v = (double)x[b], c = (double)angles[2 * j], s = (double)angles[2 * j + 1];
                want[a] = u * c - v * s;
                want[b] = u * s + v * c;
                bound[a] = bound[b] = 2 * (fabs(u) + fabs(v)) * EPS; /* two products of a factor up to 1, a sum */
            }
        }
        check(vulkan, &ops, name, &x, op.out, want, bound);
        free(want);
        free(bound);
        free(x);
        free(table);
    }
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_of_every_kind), cmocka_unit_test(unary_of_every_kind), cmocka_unit_test(glu_of_every_kind),
        cmocka_unit_test(concat_by_heads),     cmocka_unit_test(rope_alone),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
