/*
 * The Vulkan kernels of recurrent ops against their formulae in double precision with a running bound of the error, and bit for bit: a
 * sequence in pieces (the state goes from page to page), from a page again (it was not written), and beside other sequences.
 */
#include "tests/unit/ops_harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24
enum { ROWS = 19 };

/* What exp may be off by in relation to itself, its argument v being off by `relative` of itself. */
static double exp_bound(double v, double relative) { return fabs(v) * relative + (3 + 2 * fabs(v)) * 2 * EPS; }
static double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
static double softplus_bound(double x) { return (20 + 4 * fabs(x)) * EPS; } /* math.glsl */

/* Runs the sequence whole, in pieces and beside others; compares with `want`. */
static void check(struct sh_device *device, const struct ops *ops, const char *name, float *const *inputs, const double *want,
                  const double *bound) {
    const uint32_t out = ops->list[0].out, width = ops->activations[out].width;
    struct ops_model m;
    ops_load(ops, device, SH_KV_F32, 2 * ROWS, 4, &m);
    const struct ops_sequence whole = {.n_rows = ROWS, .before = SH_NONE, .after = 3};
    struct ops_step step = {.n_rows = ROWS, .sequences = &whole, .n_sequences = 1};
    for (uint32_t i = 0; i < ops->n_inputs; i++) step.inputs[i] = inputs[i];
    float *all = ops_run(ops, &m, &step, out), *expected = malloc(ROWS * width * sizeof *expected);
    double *limit = malloc(ROWS * width * sizeof *limit);
    assert_true(expected && limit);
    for (size_t i = 0; i < (size_t)ROWS * width; i++) {
        expected[i] = (float)want[i];
        limit[i] = bound[i] + fabs(want[i]) * EPS + 1e-37;
    }
    ops_compare(name, all, expected, limit, (size_t)ROWS * width);

    static const uint32_t pieces[] = {1, 1, 2, 1, 7, 7};
    uint32_t before = SH_NONE;
    for (uint32_t i = 0, at = 0; i < SH_COUNT(pieces); at += pieces[i++]) {
        struct ops_sequence piece = {.n_rows = pieces[i], .position = at, .before = before, .after = 4 + i};
        struct ops_step next = {.n_rows = pieces[i], .sequences = &piece, .n_sequences = 1};
        for (uint32_t n = 0; n < ops->n_inputs; n++)
            next.inputs[n] = inputs[n] + (size_t)at * ops->activations[ops->inputs[n]].width;
        for (int again = 0; again < 2; again++, piece.after = 2) {
            float *got = ops_run(ops, &m, &next, out);
            ops_compare(name, got, all + (size_t)at * width, NULL, (size_t)pieces[i] * width);
            free(got);
        }
        before = 4 + i;
    }

    /* The first three rows end in page 6; its last sixteen beside a fresh sequence of all rows and one of two. */
    struct ops_step mixed = {.n_rows = 2 + 16 + ROWS, .n_sequences = 3};
    const struct ops_sequence three[] = {{.n_rows = 2, .before = SH_NONE, .after = 9},
                                         {.n_rows = ROWS, .before = SH_NONE, .after = 10},
                                         {.n_rows = 16, .position = 3, .before = 8, .after = 11}};
    const struct ops_sequence first = {.n_rows = 3, .before = SH_NONE, .after = 8};
    struct ops_step head = {.n_rows = 3, .sequences = &first, .n_sequences = 1};
    memcpy(head.inputs, step.inputs, sizeof head.inputs);
    free(ops_run(ops, &m, &head, out));
    mixed.sequences = three;
    float *together[SH_BOUNDARY_MAX];
    for (uint32_t n = 0; n < ops->n_inputs; n++) {
        const size_t w = ops->activations[ops->inputs[n]].width;
        together[n] = malloc(mixed.n_rows * w * sizeof(float));
        assert_non_null(together[n]);
        memcpy(together[n], inputs[n] + w, 2 * w * sizeof(float)); /* other rows than the others' first */
        memcpy(together[n] + 2 * w, inputs[n], ROWS * w * sizeof(float));
        memcpy(together[n] + (2 + ROWS) * w, inputs[n] + 3 * w, 16 * w * sizeof(float));
        mixed.inputs[n] = together[n];
    }
    float *got = ops_run(ops, &m, &mixed, out);
    ops_compare(name, got + 2 * (size_t)width, all, NULL, (size_t)ROWS * width);
    ops_compare(name, got + (2 + ROWS) * (size_t)width, all + 3 * (size_t)width, NULL, 16 * (size_t)width);
    for (uint32_t n = 0; n < ops->n_inputs; n++) free(together[n]);
    free(got);
    free(all);
    free(expected);
    free(limit);
    ops_unload(&m);
}

static struct sh_op recurrent(struct ops *ops, enum sh_op_kind kind, uint32_t floats) {
    ops_init(ops);
    /* Two layers, of which the op has the second, and something before its own state. */
    ops->group = (struct sh_state_group){.kind = SH_STATE_RECURRENT, .n_layers = 2, .floats = floats + 5};
    ops->program.n_groups = 1;
    struct sh_op op = ops_op(kind);
    op.state.layer_in_group = 1;
    op.state.offset = 5;
    op.state.floats = floats;
    return op;
}

static void convolution(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const uint32_t shapes[][3] = {{1, 2, 0}, {70, 4, 1}, {130, 3, 0}, {33, 25, 1}}; /* channels, d_conv, bias */
    for (size_t i = 0; i < SH_COUNT(shapes); i++) {
        const uint32_t channels = shapes[i][0], d = shapes[i][1];
        char name[64];
        snprintf(name, sizeof name, "conv channels=%u d_conv=%u", channels, d);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {channels};
        float *x = ops_random_floats((size_t)ROWS * channels, 2, &rng), *w = ops_random_floats((size_t)channels * d, 1, &rng),
              *bias = ops_random_floats(channels, 1, &rng);
        struct ops ops;
        struct sh_op op = recurrent(&ops, SH_OP_CONV, channels * (d - 1));
        op.d_conv = d;
        op.x = ops_input(&ops, channels);
        op.w = ops_weight(&ops, SH_TYPE_F32, d, channels, w);
        if (shapes[i][2]) op.bias = ops_weight(&ops, SH_TYPE_F32, channels, 1, bias);
        op.out = ops_activation(&ops, channels, SH_ROWS_ALL);
        ops_push(&ops, &op);
        double *want = calloc(ROWS * channels, sizeof *want), *bound = calloc(ROWS * channels, sizeof *bound);
        assert_true(want && bound);
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t c = 0; c < channels; c++) {
                double sum = 0, size = 0;
                for (uint32_t j = 0; j < d; j++)
                    if (r + j + 1 >= d) {
                        const double term = (double)w[c * d + j] * (double)x[(r + j + 1 - d) * channels + c];
                        sum += term;
                        size += fabs(term);
                    }
                if (shapes[i][2]) sum += (double)bias[c];
                want[r * channels + c] = sum;
                bound[r * channels + c] = (size * d + fabs(sum)) * EPS;
            }
        check(vulkan, &ops, name, &x, want, bound);
        free(want);
        free(bound);
        free(x);
        free(w);
        free(bias);
    }
    ops_close(vulkan);
}

static void selective_scan(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const uint32_t shapes[][2] = {{1, 1}, {70, 16}, {65, 3}, {9, 64}}; /* channels, states */
    for (size_t i = 0; i < SH_COUNT(shapes); i++) {
        const uint32_t channels = shapes[i][0], n_state = shapes[i][1];
        char name[64];
        snprintf(name, sizeof name, "scan channels=%u states=%u", channels, n_state);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {channels};
        float *in[4] = {ops_random_floats((size_t)ROWS * channels, 2, &rng), ops_random_floats((size_t)ROWS * channels, 4, &rng),
                        ops_random_floats((size_t)ROWS * n_state, 1, &rng), ops_random_floats((size_t)ROWS * n_state, 1, &rng)};
        float *a = ops_random_floats((size_t)channels * n_state, 2, &rng), *skip = ops_random_floats(channels, 1, &rng);
        for (size_t n = 0; n < (size_t)channels * n_state; n++) a[n] = -fabsf(a[n]);
        in[1][0] = -60; /* softplus of next to nothing, and of much */
        in[1][channels] = 30;
        struct ops ops;
        struct sh_op op = recurrent(&ops, SH_OP_SCAN, channels * n_state);
        op.x = ops_input(&ops, channels);
        op.y = ops_input(&ops, channels);
        op.z = ops_input(&ops, n_state);
        op.u = ops_input(&ops, n_state);
        op.w = ops_weight(&ops, SH_TYPE_F32, n_state, channels, a);
        op.bias = ops_weight(&ops, SH_TYPE_F32, channels, 1, skip);
        op.out = ops_activation(&ops, channels, SH_ROWS_ALL);
        ops_push(&ops, &op);
        double *want = calloc(ROWS * channels, sizeof *want), *bound = calloc(ROWS * channels, sizeof *bound);
        double h[64], e[64]; /* the state and what it may be off by */
        assert_true(want && bound);
        for (uint32_t c = 0; c < channels; c++) {
            memset(h, 0, sizeof h);
            memset(e, 0, sizeof e);
            for (uint32_t r = 0; r < ROWS; r++) {
                const double x = (double)in[0][r * channels + c], dt = (double)in[1][r * channels + c], d = softplus(dt);
                double y = 0, size = 0, off = 0;
                for (uint32_t s = 0; s < n_state; s++) {
                    const double v = d * (double)a[c * n_state + s], decay = exp(v), add = d * x * (double)in[2][r * n_state + s];
                    e[s] = decay * e[s] + fabs(decay * h[s]) * exp_bound(v, softplus_bound(dt) + EPS) +
                           fabs(add) * (softplus_bound(dt) + 2 * EPS);
                    h[s] = decay * h[s] + add;
                    e[s] += fabs(h[s]) * EPS;
                    const double read = (double)in[3][r * n_state + s];
                    y += read * h[s];
                    size += fabs(read * h[s]);
                    off += fabs(read) * e[s];
                }
                y += (double)skip[c] * x;
                want[r * channels + c] = y;
                bound[r * channels + c] = 1.01 * (off + (size * n_state + fabs(y)) * EPS); /* errors of errors */
            }
        }
        check(vulkan, &ops, name, in, want, bound);
        free(want);
        free(bound);
        for (int n = 0; n < 4; n++) free(in[n]);
        free(a);
        free(skip);
    }
    ops_close(vulkan);
}

/* Heads of key, of value, dimensions of either, tiled. */
static const uint32_t delta_shapes[][5] = {{1, 1, 1, 1, 0}, {2, 4, 33, 40, 0}, {2, 4, 16, 70, 1}, {1, 1, 200, 21, 0}};

/* Column `column` of one value head over all rows. */
static void delta_column(const struct sh_op *op, float *const in[5], const float *a, const float *dt_bias, uint32_t head,
                         uint32_t column, double *want, double *bound) {
    const uint32_t k_dim = op->delta.k_dim, v_dim = op->delta.v_dim, n_k = op->delta.n_k_heads, n_v = op->delta.n_v_heads,
                   key = op->delta.tiled ? head % n_k : head / (n_v / n_k);
    double *s = calloc(k_dim, sizeof *s), *e = calloc(k_dim, sizeof *e);
    assert_true(s && e);
    for (uint32_t r = 0; r < ROWS; r++) {
        const float *q = in[0] + (size_t)(r * n_k + key) * k_dim, *k = in[1] + (size_t)(r * n_k + key) * k_dim;
        const double v = (double)in[2][(r * n_v + head) * v_dim + column], b = (double)in[4][r * n_v + head],
                     dt = (double)in[3][r * n_v + head] + (double)dt_bias[head], rate = (double)a[head] * softplus(dt), g = exp(rate),
                     beta = 1 / (1 + exp(-b));
        /* The sum below softplus is rounded, and softplus is no steeper than its argument. */
        const double g_off = exp_bound(rate, softplus_bound(dt) + EPS) + fabs((double)a[head]) * fabs(dt) * EPS,
                     beta_off = (3 + 2 * fabs(b) + 4) * 2 * EPS;
        double seen = 0, size = 0, off = 0;
        for (uint32_t i = 0; i < k_dim; i++) {
            e[i] = g * e[i] + fabs(g * s[i]) * (g_off + EPS);
            s[i] *= g;
            seen += s[i] * (double)k[i];
            size += fabs(s[i] * (double)k[i]);
            off += fabs((double)k[i]) * e[i];
        }
        const double d = beta * (v - seen);
        const double d_off = beta * (off + size * k_dim * EPS) + fabs(d) * (beta_off + 2 * EPS);
        double y = 0;
        size = off = 0;
        for (uint32_t i = 0; i < k_dim; i++) {
            s[i] += (double)k[i] * d;
            e[i] += fabs((double)k[i]) * d_off + fabs(s[i]) * EPS;
            y += s[i] * (double)q[i];
            size += fabs(s[i] * (double)q[i]);
            off += fabs((double)q[i]) * e[i];
        }
        const size_t at = (size_t)(r * n_v + head) * v_dim + column;
        want[at] = (double)op->delta.scale * y;
        bound[at] = 1.01 * (double)op->delta.scale * (off + (size * k_dim + fabs(y)) * EPS);
    }
    free(s);
    free(e);
}

static void delta_cases(struct sh_device *vulkan, size_t n_shapes) {
    for (size_t i = 0; i < n_shapes; i++) {
        const uint32_t *shape = delta_shapes[i], n_k = shape[0], n_v = shape[1], k_dim = shape[2], v_dim = shape[3];
        char name[96];
        snprintf(name, sizeof name, "delta_net heads=%u/%u dims=%u/%u tiled=%u", n_k, n_v, k_dim, v_dim, shape[4]);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {k_dim};
        const float unit = 1.0f / sqrtf((float)k_dim); /* keys of about that length, so that the state stays in bounds */
        float *in[5] = {ops_random_floats((size_t)ROWS * n_k * k_dim, 1, &rng), ops_random_floats((size_t)ROWS * n_k * k_dim, unit, &rng),
                        ops_random_floats((size_t)ROWS * n_v * v_dim, 2, &rng), ops_random_floats((size_t)ROWS * n_v, 3, &rng),
                        ops_random_floats((size_t)ROWS * n_v, 3, &rng)};
        float *a = ops_random_floats(n_v, 1, &rng), *dt_bias = ops_random_floats(n_v, 1, &rng);
        for (uint32_t n = 0; n < n_v; n++) a[n] = -fabsf(a[n]) - 0.1f;
        struct ops ops;
        struct sh_op op = recurrent(&ops, SH_OP_DELTA_NET, n_v * k_dim * v_dim);
        op.delta.n_k_heads = n_k;
        op.delta.n_v_heads = n_v;
        op.delta.k_dim = k_dim;
        op.delta.v_dim = v_dim;
        op.delta.tiled = shape[4] != 0;
        op.delta.scale = 0.37f;
        op.x = ops_input(&ops, n_k * k_dim);
        op.y = ops_input(&ops, n_k * k_dim);
        op.z = ops_input(&ops, n_v * v_dim);
        op.u = ops_input(&ops, n_v);
        op.t = ops_input(&ops, n_v);
        op.w = ops_weight(&ops, SH_TYPE_F32, n_v, 1, a);
        op.bias = ops_weight(&ops, SH_TYPE_F32, n_v, 1, dt_bias);
        op.out = ops_activation(&ops, n_v * v_dim, SH_ROWS_ALL);
        ops_push(&ops, &op);
        double *want = calloc(ROWS * n_v * v_dim, sizeof *want), *bound = calloc(ROWS * n_v * v_dim, sizeof *bound);
        assert_true(want && bound);
        for (uint32_t head = 0; head < n_v; head++)
            for (uint32_t column = 0; column < v_dim; column++) delta_column(&op, in, a, dt_bias, head, column, want, bound);
        check(vulkan, &ops, name, in, want, bound);
        free(want);
        free(bound);
        for (int n = 0; n < 5; n++) free(in[n]);
        free(a);
        free(dt_bias);
    }
}

static void gated_delta_rule(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    delta_cases(vulkan, SH_COUNT(delta_shapes));
    ops_close(vulkan);
}

/* A step that would write the page that it reads, or none, or one that is not there, and rows that are no sequence; then a good one. */
static void wrong_steps_are_refused(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const float w[2] = {1, 1}, x[2] = {3, 4};
    struct ops ops;
    struct sh_op op = recurrent(&ops, SH_OP_CONV, 1);
    op.d_conv = 2;
    op.x = ops_input(&ops, 1);
    op.w = ops_weight(&ops, SH_TYPE_F32, 2, 1, w);
    op.out = ops_activation(&ops, 1, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, 2, 4, &m);
    static const struct {
        uint32_t before, after, second; /* position of the second row */
        enum sh_code code;
    } cases[] = {{2, 2, 1, SH_ERR_INVALID},       {SH_NONE, SH_NONE, 1, SH_ERR_INVALID}, {0, 12, 1, SH_ERR_INVALID},
                 {700, 1, 1, SH_ERR_INVALID},     {SH_NONE, 1, 2, SH_ERR_INVALID},       {SH_NONE, 1, 0, SH_ERR_INVALID},
                 {SH_NONE, 1, 1, SH_OK}};
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        const uint32_t pages[2] = {cases[i].before, cases[i].after};
        const uint32_t *tables[] = {pages};
        const struct sh_step_row rows[2] = {{.sampled_from = SH_NONE}, {.sampled_from = SH_NONE, .position = cases[i].second}};
        const struct sh_step_sequence sequence = {.n_rows = 2, .pages = tables, .n_pages = 1};
        const struct sh_step step = {
            .rows = rows, .n_rows = 2, .sequences = &sequence, .n_sequences = 1, .inputs = {x}, .capture = &op.out, .n_capture = 1};
        struct sh_step_result result;
        struct sh_error err = {0};
        assert_int_equal(vulkan->executor->submit(m.context, 0, 0, &step, &err), cases[i].code);
        if (cases[i].code != SH_OK) continue;
        assert_int_equal(vulkan->executor->wait(m.context, 0, -1, &result, &err), SH_OK);
        assert_true(result.captured[0][0] == 3 && result.captured[0][1] == 7);
    }
    ops_unload(&m);
    ops_close(vulkan);
}

/* States that the kernels' shared memory cannot hold are refused by name when the model is made. */
static void large_states_are_refused(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    for (int kind = 0; kind < 2; kind++) {
        struct ops ops;
        struct sh_op op = recurrent(&ops, kind ? SH_OP_DELTA_NET : SH_OP_SCAN, 65);
        op.x = ops_input(&ops, 1);
        op.y = ops_input(&ops, 1);
        op.z = ops_input(&ops, 65);
        op.u = ops_input(&ops, 65);
        op.t = ops_input(&ops, 1);
        op.w = ops_weight(&ops, SH_TYPE_F32, 65, 1, NULL);
        op.bias = ops_weight(&ops, SH_TYPE_F32, 1, 1, NULL);
        op.out = ops_activation(&ops, 1, SH_ROWS_ALL);
        op.delta.n_k_heads = op.delta.n_v_heads = op.delta.v_dim = 1;
        op.delta.k_dim = 4097;
        ops_push(&ops, &op);
        struct sh_segment segment = {.program = &ops.program, .n_ops = 1, .n_inputs = ops.n_inputs};
        memcpy(segment.inputs, ops.inputs, sizeof segment.inputs);
        struct sh_exec_model *model = NULL;
        struct sh_error err = {0};
        assert_int_equal(vulkan->executor->model_create(vulkan, &segment, 1, &model, &err), SH_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.message, kind ? "1 heads of 4097 and 1 dimensions" : "a scan of 65 states per channel"));
        assert_null(model);
    }
    ops_close(vulkan);
}

/* llvmpipe ends the loops of an invocation after 65535 iterations and says nothing: the longest step that is taken there is
 * computed to its end, and a longer one refused. The number is that of check_iterations in context.c. */
static void longest_steps_of_a_software_device(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    enum { K_DIM = 128, MOST = (65535 - 37) / 35, LATER = 200 };
    if (vulkan->info.kind != SH_DEVICE_SOFTWARE) {
        ops_close(vulkan);
        skip();
    }
    struct test_rng rng = {5};
    float *in[5] = {ops_random_floats((size_t)MOST * K_DIM, 1, &rng), ops_random_floats((size_t)MOST * K_DIM, 0.08f, &rng),
                    ops_random_floats(MOST, 2, &rng), ops_random_floats(MOST, 3, &rng), ops_random_floats(MOST, 3, &rng)};
    const float a = -0.2f, dt_bias = 0.1f;
    struct ops ops;
    struct sh_op op = recurrent(&ops, SH_OP_DELTA_NET, K_DIM);
    op.delta.n_k_heads = op.delta.n_v_heads = op.delta.v_dim = 1;
    op.delta.k_dim = K_DIM;
    op.delta.scale = 1;
    op.x = ops_input(&ops, K_DIM);
    op.y = ops_input(&ops, K_DIM);
    op.z = ops_input(&ops, 1);
    op.u = ops_input(&ops, 1);
    op.t = ops_input(&ops, 1);
    op.w = ops_weight(&ops, SH_TYPE_F32, 1, 1, &a);
    op.bias = ops_weight(&ops, SH_TYPE_F32, 1, 1, &dt_bias);
    op.out = ops_activation(&ops, 1, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, vulkan, SH_KV_F32, MOST, 4, &m);
    const struct ops_sequence whole = {.n_rows = MOST, .before = SH_NONE, .after = 3},
                              begin = {.n_rows = MOST - LATER, .before = SH_NONE, .after = 4},
                              rest = {.n_rows = LATER, .position = MOST - LATER, .before = 4, .after = 5};
    struct ops_step step = {.n_rows = MOST, .sequences = &whole, .n_sequences = 1};
    struct ops_step first = {.n_rows = MOST - LATER, .sequences = &begin, .n_sequences = 1};
    struct ops_step second = {.n_rows = LATER, .sequences = &rest, .n_sequences = 1};
    for (uint32_t i = 0; i < 5; i++) {
        step.inputs[i] = first.inputs[i] = in[i];
        second.inputs[i] = in[i] + (size_t)(MOST - LATER) * (i < 2 ? K_DIM : 1);
    }
    float *all = ops_run(&ops, &m, &step, op.out), *before = ops_run(&ops, &m, &first, op.out),
          *after = ops_run(&ops, &m, &second, op.out);
    assert_true(after[LATER - 1] != 0);
    ops_compare("delta_net, the longest step", before, all, NULL, MOST - LATER);
    ops_compare("delta_net, the longest step's end", after, all + MOST - LATER, NULL, LATER);
    float *next[2];
    for (uint32_t i = 0; i < 2; i++) { /* and what they leave behind */
        const struct ops_sequence one = {.n_rows = 1, .position = MOST, .before = i == 0 ? 3 : 5, .after = 6};
        struct ops_step last = {.n_rows = 1, .sequences = &one, .n_sequences = 1};
        for (uint32_t n = 0; n < 5; n++) last.inputs[n] = in[n];
        next[i] = ops_run(&ops, &m, &last, op.out);
    }
    ops_compare("delta_net, after the longest step", next[0], next[1], NULL, 1);
    const struct sh_exec_context_params params = {
        .kv_type = SH_KV_F32, .max_rows = MOST + 1, .max_outputs = 1, .max_sequences = 1, .max_pages_per_sequence = 1};
    struct sh_exec_context *context = NULL;
    struct sh_error err = {0};
    assert_int_equal(vulkan->executor->context_create(m.model, &params, &context, &err), SH_ERR_LIMIT);
    assert_null(context);
    char most[16];
    snprintf(most, sizeof most, "most %d;", MOST);
    assert_non_null(strstr(err.message, most));
    ops_unload(&m);
    for (int n = 0; n < 5; n++) free(in[n]);
    free(all);
    free(before);
    free(after);
    free(next[0]);
    free(next[1]);
    ops_close(vulkan);
}

/* ops_close counts the messages of the validation layers. */
static void validation_is_silent(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan(__func__, true);
    delta_cases(vulkan, 2);
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolution),
        cmocka_unit_test(selective_scan),
        cmocka_unit_test(gated_delta_rule),
        cmocka_unit_test(wrong_steps_are_refused),
        cmocka_unit_test(large_states_are_refused),
        cmocka_unit_test(longest_steps_of_a_software_device),
        cmocka_unit_test(validation_is_silent),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
