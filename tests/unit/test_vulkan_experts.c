/*
 * ROUTE, EXPERT_MATMUL, EXPERT_SUM and block diagonal MATMUL on the Vulkan executor and the scalar one, against sums in double precision.
 *
 * Tolerances of products: test_vulkan_matmul.c. Of weights: exp is good to 3 + 2 |x| units in the last place on Vulkan, x within 12
 * here; a sum of n positive terms adds n roundings, a division 2.5 units: relative 2^-23 * (2 * 27 + n + 8). Logits are drawn until no two
 * scores that decide lie within 1e-4, so that the numbers of the experts are to be the same.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24

/* ---- block diagonal and expert products: a list of single products ---- */

struct single { /* one row of x with one matrix */
    const float *x, *bias;
    uint32_t first_row; /* of w */
};
static void single_product(uint32_t type, const uint8_t *w, uint32_t cols, uint32_t n, struct single s, double chain, float *y,
                           double *bound) {
    float *row = malloc(cols * sizeof *row);
    assert_non_null(row);
    for (uint32_t o = 0; o < n; o++) {
        assert_true(sh_dequantize(type, w + (s.first_row + o) * sh_type_row_bytes(type, cols), row, cols));
        double sum = s.bias ? (double)s.bias[o] : 0.0, magnitude = fabs(sum);
        for (uint32_t k = 0; k < cols; k++) {
            sum += (double)row[k] * (double)s.x[k];
            magnitude += fabs((double)row[k] * (double)s.x[k]);
        }
        y[o] = (float)sum;
        bound[o] = (4 * sqrt(chain) + 2) * EPS * magnitude;
    }
    free(row);
}

static void blocks_case(struct sh_device *device, uint32_t type, uint32_t rows, uint32_t blocks, uint32_t cols, uint32_t n,
                        bool residual) {
    char name[128];
    snprintf(name, sizeof name, "blocks %s rows=%u blocks=%u cols=%u n=%u residual=%d", sh_type_info(type)->name, rows, blocks,
             cols, n, residual);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {type + rows * 31 + blocks * 1009 + cols * 7};
    void *w = ops_random_matrix(type, cols, (uint64_t)n * blocks, &rng);
    float *x = ops_random_floats((size_t)rows * cols * blocks, 1, &rng), *b = ops_random_floats((size_t)n * blocks, 1, &rng),
          *add = ops_random_floats((size_t)rows * n * blocks, 1, &rng);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_MATMUL);
    op.blocks = blocks;
    op.x = ops_input(&ops, cols * blocks);
    op.w = ops_weight(&ops, type, cols, (uint64_t)n * blocks, w);
    op.bias = ops_weight(&ops, SH_TYPE_F32, (uint64_t)n * blocks, 1, b);
    if (residual) op.residual = ops_input(&ops, n * blocks);
    op.out = ops_activation(&ops, n * blocks, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, device, SH_KV_F32, rows, 2, &m);
    const struct ops_step step = {.n_rows = rows, .inputs = {x, add}};
    float *y = ops_run(&ops, &m, &step, op.out);
    float *want = malloc(n * sizeof *want);
    double *bound = malloc(n * sizeof *bound);
    assert_true(want && bound);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < blocks; k++) {
            const struct single s = {x + ((size_t)r * blocks + k) * cols, b + (size_t)k * n, k * n};
            single_product(type, w, cols, n, s, cols / 32.0 + 32, want, bound);
            const size_t at = ((size_t)r * blocks + k) * n;
            for (uint32_t o = 0; residual && o < n; o++) {
                want[o] += add[at + o];
                bound[o] += 2 * EPS * (double)(fabsf(want[o]) + fabsf(add[at + o]));
            }
            ops_compare(name, y + at, want, bound, n);
        }
    const struct ops_step last = {.n_rows = 1,
                                  .inputs = {x + (size_t)(rows - 1) * cols * blocks, add + (size_t)(rows - 1) * n * blocks}};
    float *alone = ops_run(&ops, &m, &last, op.out);
    ops_compare(name, alone, y + (size_t)(rows - 1) * n * blocks, NULL, (size_t)n * blocks);
    free(alone);
    ops_unload(&m);
    free(want);
    free(bound);
    free(y);
    free(w);
    free(x);
    free(b);
    free(add);
}

/* A plain product and one of blocks share what is made of their input (quants, turned rows): in either order they find the same. */
static void shared_input_case(struct sh_device *device, uint32_t type, uint32_t rows, uint32_t blocks, uint32_t cols, uint32_t n) {
    char name[128];
    snprintf(name, sizeof name, "shared input %s rows=%u blocks=%u cols=%u n=%u", sh_type_info(type)->name, rows, blocks, cols, n);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {type + rows * 31 + blocks * 1009 + cols * 7};
    void *w_plain = ops_random_matrix(type, cols * blocks, n, &rng), *w_blocks = ops_random_matrix(type, cols, (uint64_t)n * blocks, &rng);
    float *x = ops_random_floats((size_t)rows * cols * blocks, 1, &rng), *y[2][2]; /* [who comes first][of whom] */
    for (int order = 0; order < 2; order++) {
        struct ops ops;
        ops_init(&ops);
        const uint32_t input = ops_input(&ops, cols * blocks);
        struct sh_op op[2] = {ops_op(SH_OP_MATMUL), ops_op(SH_OP_MATMUL)};
        op[0].w = ops_weight(&ops, type, cols * blocks, n, w_plain);
        op[0].out = ops_activation(&ops, n, SH_ROWS_ALL);
        op[1].w = ops_weight(&ops, type, cols, (uint64_t)n * blocks, w_blocks);
        op[1].out = ops_activation(&ops, n * blocks, SH_ROWS_ALL);
        op[1].blocks = blocks;
        op[0].x = op[1].x = input;
        ops_push(&ops, &op[order]);
        ops_push(&ops, &op[!order]);
        struct ops_model m;
        ops_load(&ops, device, SH_KV_F32, rows, 2, &m);
        const struct ops_step step = {.n_rows = rows, .inputs = {x}};
        for (int i = 0; i < 2; i++) y[order][i] = ops_run(&ops, &m, &step, op[i].out);
        ops_unload(&m);
    }
    ops_compare(name, y[0][0], y[1][0], NULL, (size_t)rows * n);
    ops_compare(name, y[0][1], y[1][1], NULL, (size_t)rows * n * blocks);
    for (int i = 0; i < 4; i++) free(y[i / 2][i % 2]);
    free(x);
    free(w_plain);
    free(w_blocks);
}

static void block_diagonal_products(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan(__func__, true);
    for (int like_gpu = 1; like_gpu >= 0; like_gpu--) { /* the kernels of GPUs and those of software devices */
        sh_vulkan_of(vulkan)->like_gpu = like_gpu == 1;
        blocks_case(vulkan, SH_TYPE_F16, 1, 128, 64, 40, false); /* one dispatch for all heads */
        blocks_case(vulkan, SH_TYPE_F32, 3, 5, 33, 7, true);     /* inputs that begin anywhere */
        blocks_case(vulkan, SH_TYPE_F32, 20, 3, 35, 70, false);
        blocks_case(vulkan, SH_TYPE_Q8_0, 6, 4, 96, 31, true);
        blocks_case(vulkan, SH_TYPE_Q4_K, 70, 3, 512, 65, false);
        sh_vk_part_bytes_for_test(20000);
        blocks_case(vulkan, SH_TYPE_F16, 2, 7, 64, 40, true); /* 5,120 bytes a block: two parts and a rest */
        blocks_case(vulkan, SH_TYPE_F16, 17, 7, 64, 40, true);
        sh_vk_part_bytes_for_test(0);
        shared_input_case(vulkan, SH_TYPE_Q4_0, 3, 3, 64, 33);
        shared_input_case(vulkan, SH_TYPE_Q4_0, 20, 3, 64, 33);
        shared_input_case(vulkan, SH_TYPE_F16, 37, 4, 32, 70);
    }
    ops_close(vulkan);
}

struct shape {
    uint32_t type, rows, n_expert, n_used, cols, n;
    bool bias, per_slot;
    enum { ANY, ONE_EXPERT, HOSTILE } choice;
    uint32_t parts; /* that the weight is to have; 0: any number */
};

static uint32_t expert_named(float e, uint32_t n_expert) { /* what the contract makes of any float */
    return e < (float)n_expert ? (e > 0 ? (uint32_t)e : 0) : n_expert - 1;
}

/* The route of `rows` rows: different experts for each, or what `choice` asks. */
static float *make_route(const struct shape *s, struct test_rng *rng) {
    static const float hostile[] = {-3.0f, 1e30f, NAN, -INFINITY, INFINITY, 0.75f};
    float *route = ops_random_floats((size_t)s->rows * 2 * s->n_used, 1, rng);
    for (uint32_t r = 0; r < s->rows; r++) {
        const uint32_t first = (uint32_t)(test_random(rng) % s->n_expert), step = 1 + 2 * (uint32_t)(test_random(rng) % 2);
        for (uint32_t j = 0; j < s->n_used; j++) {
            float *e = &route[(size_t)r * 2 * s->n_used + j];
            *e = (float)((first + j * step) % s->n_expert);
            if (s->choice == ONE_EXPERT) *e = (float)(s->n_expert / 2);
            if (s->choice == HOSTILE) *e = hostile[(r + j) % SH_COUNT(hostile)];
        }
    }
    return route;
}

static void experts_case(struct sh_device *device, struct shape s) {
    char name[160];
    snprintf(name, sizeof name, "experts %s rows=%u of=%u used=%u cols=%u n=%u bias=%d per_slot=%d choice=%d",
             sh_type_info(s.type)->name, s.rows, s.n_expert, s.n_used, s.cols, s.n, s.bias, s.per_slot, (int)s.choice);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {s.type + s.rows * 31 + s.n_expert * 1009 + s.cols * 7};
    const uint32_t slots = s.per_slot ? s.n_used : 1, x_width = s.cols * slots;
    void *w = ops_random_matrix(s.type, s.cols, (uint64_t)s.n * s.n_expert, &rng);
    float *x = ops_random_floats((size_t)s.rows * x_width, 1, &rng), *b = ops_random_floats((size_t)s.n * s.n_expert, 1, &rng);
    float *route = make_route(&s, &rng);
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_EXPERT_MATMUL);
    op.x = ops_input(&ops, x_width);
    op.y = ops_input(&ops, 2 * s.n_used);
    op.w = ops_weight(&ops, s.type, s.cols, (uint64_t)s.n * s.n_expert, w);
    if (s.bias) op.bias = ops_weight(&ops, SH_TYPE_F32, (uint64_t)s.n * s.n_expert, 1, b);
    op.expert.n_expert = s.n_expert;
    op.expert.n_used = s.n_used;
    op.expert.per_slot = s.per_slot;
    op.out = ops_activation(&ops, s.n * s.n_used, SH_ROWS_ALL);
    ops_push(&ops, &op);
    struct ops_model m;
    ops_load(&ops, device, SH_KV_F32, s.rows, 2, &m);
    if (s.parts) assert_int_equal(m.model->weights[op.w].n_parts, s.parts);
    const struct ops_step step = {.n_rows = s.rows, .inputs = {x, route}};
    float *y = ops_run(&ops, &m, &step, op.out);
    float *want = malloc(s.n * sizeof *want);
    double *bound = malloc(s.n * sizeof *bound);
    assert_true(want && bound);
    for (uint32_t p = 0; p < s.rows * s.n_used; p++) {
        const uint32_t r = p / s.n_used, j = p % s.n_used, e = expert_named(route[(size_t)r * 2 * s.n_used + j], s.n_expert);
        const struct single one = {x + (size_t)r * x_width + (s.per_slot ? j * s.cols : 0), s.bias ? b + (size_t)e * s.n : NULL,
                                   e * s.n};
        single_product(s.type, w, s.cols, s.n, one, device->info.kind == SH_DEVICE_CPU ? s.cols : s.cols / 32.0 + 32, want,
                       bound);
        ops_compare(name, y + (size_t)p * s.n, want, bound, s.n);
    }
    for (uint32_t some = 1; some < s.rows; some = some * 3 + 1) { /* the last rows by themselves: another kernel, the same bits */
        const size_t first = s.rows - some;
        const struct ops_step few = {.n_rows = some, .inputs = {x + first * x_width, route + first * 2 * s.n_used}};
        float *got = ops_run(&ops, &m, &few, op.out);
        ops_compare(name, got, y + first * s.n * s.n_used, NULL, (size_t)some * s.n * s.n_used);
        free(got);
    }
    ops_unload(&m);
    free(want);
    free(bound);
    free(y);
    free(w);
    free(x);
    free(b);
    free(route);
}

static void products_of_experts(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan(__func__, true);
    static const struct shape shapes[] = {
        {SH_TYPE_F32, 1, 7, 3, 33, 5, true, false, ANY},         {SH_TYPE_F32, 70, 7, 3, 35, 66, true, true, ANY},
        {SH_TYPE_Q4_K, 1, 16, 4, 512, 40, false, false, ANY},    {SH_TYPE_Q4_K, 150, 16, 4, 512, 130, true, false, ANY},
        {SH_TYPE_MXFP4, 130, 4, 2, 96, 65, true, true, ANY},     {SH_TYPE_Q8_0, 200, 2, 2, 64, 33, false, true, ANY},
        {SH_TYPE_Q8_0, 33, 512, 8, 32, 3, true, false, ANY},     {SH_TYPE_Q8_0, 100, 8, 2, 96, 70, true, true, ONE_EXPERT},
        {SH_TYPE_F16, 5, 40, 32, 40, 9, false, true, ANY},       {SH_TYPE_F16, 90, 1, 1, 64, 20, true, false, ANY},
        {SH_TYPE_Q6_K, 12, 5, 3, 256, 17, true, false, HOSTILE}, {SH_TYPE_IQ2_XS, 100, 3, 2, 256, 20, false, true, HOSTILE},
    };
    for (int like_gpu = 1; like_gpu >= 0; like_gpu--) {
        sh_vulkan_of(vulkan)->like_gpu = like_gpu == 1;
        sh_vulkan_of(vulkan)->stage_always = false;
        for (size_t i = 0; i < SH_COUNT(shapes); i++) experts_case(vulkan, shapes[i]);
        /* An expert's rows stay together, even where a part would be smaller; 8 KiB an expert, parts of 20,000 and of 1,000 bytes. */
        for (uint64_t part = 1000; part <= 20000; part += 19000) {
            sh_vk_part_bytes_for_test(part + 1024);
            const uint32_t parts = part == 1000 ? 7 : 4;
            experts_case(vulkan, (struct shape){SH_TYPE_F32, 1, 7, 3, 48, 32, true, false, ANY, parts});
            experts_case(vulkan, (struct shape){SH_TYPE_F32, 30, 7, 3, 48, 32, true, true, ANY, parts});
            experts_case(vulkan, (struct shape){SH_TYPE_F32, 100, 7, 3, 48, 32, true, true, ANY, parts});
            sh_vulkan_of(vulkan)->stage_always = true;
        }
        sh_vk_part_bytes_for_test(0);
    }
    ops_close(vulkan);
    struct sh_device *cpu = ops_open_cpu();
    for (size_t i = 0; i < 4; i++) experts_case(cpu, shapes[i]);
    ops_close(cpu);
}

/* ---- ROUTE ---- */

struct routing {
    uint32_t n_expert, n_used;
    enum sh_gating gating;
    bool bias, normalise;
    float scale;
    uint32_t n_groups, n_groups_used;
};
/* In double; returns the smallest distance between scores that decide. */
static double route_row(const struct routing *q, const float *logits, const float *bias, uint32_t *ids, double *weights) {
    double gate[SH_MAX_EXPERTS], score[SH_MAX_EXPERTS], most = -INFINITY, sum = 0, gap = INFINITY;
    bool out[SH_MAX_EXPERTS] = {false};
    for (uint32_t e = 0; e < q->n_expert; e++) most = fmax(most, (double)logits[e]);
    for (uint32_t e = 0; e < q->n_expert; e++) sum += exp((double)logits[e] - most);
    for (uint32_t e = 0; e < q->n_expert; e++) {
        const double l = (double)logits[e];
        gate[e] = q->gating == SH_GATE_SOFTMAX ? exp(l - most) / sum : q->gating == SH_GATE_SIGMOID ? 1 / (1 + exp(-l)) : l;
        score[e] = gate[e] + (q->bias ? (double)bias[e] : 0.0);
    }
    if (q->n_groups > 1) {
        const uint32_t size = q->n_expert / q->n_groups;
        double of[SH_MAX_EXPERTS];
        for (uint32_t g = 0; g < q->n_groups; g++) {
            double best = -INFINITY, second = -INFINITY;
            for (uint32_t e = g * size; e < (g + 1) * size; e++) {
                second = fmax(second, fmin(best, score[e]));
                best = fmax(best, score[e]);
            }
            of[g] = best + (size > 1 ? second : 0);
        }
        for (uint32_t g = 0; g < q->n_groups; g++) {
            uint32_t better = 0;
            for (uint32_t o = 0; o < q->n_groups; o++) {
                better += of[o] > of[g];
                if (o != g) gap = fmin(gap, fabs(of[o] - of[g]));
            }
            for (uint32_t e = g * size; e < (g + 1) * size; e++) out[e] = better >= q->n_groups_used;
        }
    }
    double before = INFINITY;
    for (uint32_t j = 0; j <= q->n_used; j++) { /* one more, for the distance */
        uint32_t best = SH_NONE;
        for (uint32_t e = 0; e < q->n_expert; e++)
            if (!out[e] && (best == SH_NONE || score[e] > score[best])) best = e;
        if (best == SH_NONE) break;
        out[best] = true;
        gap = fmin(gap, before - score[best]);
        before = score[best];
        if (j == q->n_used) break;
        ids[j] = best;
        weights[j] = gate[best];
    }
    if (q->gating == SH_GATE_SOFTMAX_CHOSEN) {
        double top = -INFINITY, all = 0;
        for (uint32_t j = 0; j < q->n_used; j++) top = fmax(top, weights[j]);
        for (uint32_t j = 0; j < q->n_used; j++) all += exp(weights[j] - top);
        for (uint32_t j = 0; j < q->n_used; j++) weights[j] = exp(weights[j] - top) / all;
    }
    double all = 0;
    for (uint32_t j = 0; j < q->n_used; j++) all += weights[j];
    for (uint32_t j = 0; j < q->n_used; j++) weights[j] = weights[j] / (q->normalise ? fmax(all, 0x1p-14) : 1) * (double)q->scale;
    return gap;
}

static struct sh_op route_op(struct ops *ops, const struct routing *q, const float *bias) {
    ops_init(ops);
    struct sh_op op = ops_op(SH_OP_ROUTE);
    op.x = ops_input(ops, q->n_expert);
    if (q->bias) op.bias = ops_weight(ops, SH_TYPE_F32, q->n_expert, 1, bias);
    op.expert.n_expert = q->n_expert;
    op.expert.n_used = q->n_used;
    op.expert.gating = q->gating;
    op.expert.normalise = q->normalise;
    op.expert.scale = q->scale;
    op.expert.n_groups = q->n_groups;
    op.expert.n_groups_used = q->n_groups_used;
    op.out = ops_activation(ops, 2 * q->n_used, SH_ROWS_ALL);
    ops_push(ops, &op);
    return op;
}

static void route_case(struct sh_device *device, struct routing q, uint32_t rows) {
    char name[160];
    snprintf(name, sizeof name, "route rows=%u of=%u used=%u gating=%d bias=%d normalise=%d groups=%u/%u", rows, q.n_expert,
             q.n_used, (int)q.gating, q.bias, q.normalise, q.n_groups_used, q.n_groups);
    if (!ops_wanted(name)) return;
    struct test_rng rng = {q.n_expert * 31 + q.n_used * 7 + rows};
    float *bias = ops_random_floats(q.n_expert, 0.3f, &rng), *x = malloc((size_t)rows * q.n_expert * sizeof *x);
    float *want = malloc((size_t)rows * 2 * q.n_used * sizeof *want);
    double *bound = malloc((size_t)rows * 2 * q.n_used * sizeof *bound);
    assert_true(x && want && bound);
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t ids[SH_MAX_EXPERTS_USED];
        double weights[SH_MAX_EXPERTS_USED], gap = 0;
        for (int tries = 0; gap < 1e-4; tries++) {
            assert_true(tries < 10000);
            for (uint32_t e = 0; e < q.n_expert; e++) x[(size_t)r * q.n_expert + e] = test_uniform(&rng, -3, 3);
            for (uint32_t j = 0; j < q.n_used; j++) /* some stand out, or among hundreds all would be near each other */
                x[(size_t)r * q.n_expert + test_random(&rng) % q.n_expert] = 3 + 0.1f * (float)j;
            gap = route_row(&q, x + (size_t)r * q.n_expert, bias, ids, weights);
        }
        for (uint32_t j = 0; j < q.n_used; j++) {
            const size_t at = (size_t)r * 2 * q.n_used + j;
            want[at] = (float)ids[j];
            bound[at] = 0;
            want[at + q.n_used] = (float)weights[j];
            bound[at + q.n_used] = fabs(weights[j]) * 0x1p-23 * (2 * 27 + q.n_expert + 8);
        }
    }
    struct ops ops;
    const struct sh_op op = route_op(&ops, &q, bias);
    struct ops_model m;
    ops_load(&ops, device, SH_KV_F32, rows, 2, &m);
    const struct ops_step step = {.n_rows = rows, .inputs = {x}};
    float *got = ops_run(&ops, &m, &step, op.out);
    ops_compare(name, got, want, bound, (size_t)rows * 2 * q.n_used);
    const struct ops_step last = {.n_rows = 1, .inputs = {x + (size_t)(rows - 1) * q.n_expert}};
    float *alone = ops_run(&ops, &m, &last, op.out);
    ops_compare(name, alone, got + (size_t)(rows - 1) * 2 * q.n_used, NULL, 2 * q.n_used);
    free(alone);
    free(got);
    ops_unload(&m);
    free(bias);
    free(x);
    free(want);
    free(bound);
}

static void routes(void **state) {
    (void)state;
    struct sh_device *const devices[] = {ops_open_vulkan(__func__, true), ops_open_cpu()};
    static const struct routing routings[] = {
        {8, 2, SH_GATE_SOFTMAX, false, true, 1, 0, 0},          {128, 8, SH_GATE_SOFTMAX, false, false, 2.5f, 0, 0},
        {32, 4, SH_GATE_SOFTMAX_CHOSEN, false, false, 1, 0, 0}, {60, 4, SH_GATE_SOFTMAX_CHOSEN, true, true, 1, 0, 0},
        {64, 6, SH_GATE_SIGMOID, true, true, 2.5f, 8, 4},       {12, 3, SH_GATE_SIGMOID, true, false, 1, 4, 2},
        {6, 2, SH_GATE_SIGMOID, false, true, 1, 6, 3},          {512, 10, SH_GATE_SOFTMAX, false, true, 1, 0, 0},
        {64, 32, SH_GATE_SIGMOID, false, true, 1, 0, 0},        {1, 1, SH_GATE_SOFTMAX, false, true, 1, 0, 0},
        {3, 3, SH_GATE_SOFTMAX_CHOSEN, false, false, 1, 0, 0},
    };
    for (size_t i = 0; i < SH_COUNT(routings); i++)
        for (int d = 0; d < 2; d++) route_case(devices[d], routings[i], i % 2 ? 5 : 70);
    ops_close(devices[0]);
    ops_close(devices[1]);
}

/* Equal logits choose the lower numbers; where there are no numbers the choice is still one of different experts. */
static void routes_of_equals_and_of_no_numbers(void **state) {
    (void)state;
    struct sh_device *const devices[] = {OPS_OPEN_VULKAN(), ops_open_cpu()};
    enum { N = 40, USED = 6, ROWS = 5 };
    static const enum sh_gating gatings[] = {SH_GATE_SOFTMAX, SH_GATE_SOFTMAX_CHOSEN, SH_GATE_SIGMOID};
    float x[ROWS][N];
    for (int e = 0; e < N; e++) {
        x[0][e] = 0.5f;
        x[1][e] = e % 7 == 3 ? 2.0f : -1.0f;
        x[2][e] = NAN;
        x[3][e] = e % 2 ? NAN : (float)e;
        x[4][e] = e == 5 ? INFINITY : -INFINITY;
    }
    for (int d = 0; d < 2; d++)
        for (size_t g = 0; g < 2 * SH_COUNT(gatings); g++) {
            const struct routing q = {N, USED, gatings[g / 2], false, true, 1, g % 2 ? 5 : 0, g % 2 ? 2 : 0};
            struct ops ops;
            const struct sh_op op = route_op(&ops, &q, NULL);
            struct ops_model m;
            ops_load(&ops, devices[d], SH_KV_F32, ROWS, 2, &m);
            const struct ops_step step = {.n_rows = ROWS, .inputs = {&x[0][0]}};
            float *got = ops_run(&ops, &m, &step, op.out);
            for (int r = 0; r < ROWS; r++) {
                bool seen[N] = {false};
                for (int j = 0; j < USED; j++) {
                    const float e = got[r * 2 * USED + j];
                    assert_true(e >= 0 && e < N && e == floorf(e));
                    assert_false(seen[(int)e]);
                    seen[(int)e] = true;
                    if (r == 0) assert_true(e == (float)j);
                    if (r == 1 && g % 2 == 0 && j < 5) assert_true(e == (float)(3 + 7 * j));
                    if (r == 3 && gatings[g / 2] == SH_GATE_SOFTMAX_CHOSEN && g % 2 == 0)
                        assert_true(e == (float)(N - 2 - 2 * j));
                    if (r == 3 && gatings[g / 2] == SH_GATE_SIGMOID && g % 2 == 0) assert_true((int)e % 2 == 0);
                }
            }
            free(got);
            ops_unload(&m);
        }
    ops_close(devices[0]);
    ops_close(devices[1]);
}

/* ---- EXPERT_SUM, and all together ---- */

static void sums_of_experts(void **state) {
    (void)state;
    struct sh_device *const devices[] = {OPS_OPEN_VULKAN(), ops_open_cpu()};
    static const uint32_t shapes[][3] = {{1, 1, 1}, {3, 8, 70}, {40, 2, 129}, {2, 32, 33}}; /* rows, used, width */
    for (size_t i = 0; i < SH_COUNT(shapes); i++) {
        const uint32_t rows = shapes[i][0], used = shapes[i][1], width = shapes[i][2];
        struct test_rng rng = {i + 1};
        float *x = ops_random_floats((size_t)rows * used * width, 1, &rng),
              *route = ops_random_floats((size_t)rows * 2 * used, 1, &rng);
        float *want = malloc((size_t)rows * width * sizeof *want);
        double *bound = malloc((size_t)rows * width * sizeof *bound);
        assert_true(want && bound);
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t c = 0; c < width; c++) {
                double sum = 0, magnitude = 0;
                for (uint32_t j = 0; j < used; j++) {
                    const double term =
                        (double)route[(size_t)r * 2 * used + used + j] * (double)x[((size_t)r * used + j) * width + c];
                    sum += term;
                    magnitude += fabs(term);
                }
                want[(size_t)r * width + c] = (float)sum;
                bound[(size_t)r * width + c] = EPS * (used + 2) * magnitude;
            }
        for (int d = 0; d < 2; d++) {
            struct ops ops;
            ops_init(&ops);
            struct sh_op op = ops_op(SH_OP_EXPERT_SUM);
            op.x = ops_input(&ops, used * width);
            op.y = ops_input(&ops, 2 * used);
            op.expert.n_expert = 64;
            op.expert.n_used = used;
            op.out = ops_activation(&ops, width, SH_ROWS_ALL);
            ops_push(&ops, &op);
            struct ops_model m;
            ops_load(&ops, devices[d], SH_KV_F32, rows, 2, &m);
            const struct ops_step step = {.n_rows = rows, .inputs = {x, route}};
            float *got = ops_run(&ops, &m, &step, op.out);
            ops_compare("sum of experts", got, want, bound, (size_t)rows * width);
            free(got);
            ops_unload(&m);
        }
        free(x);
        free(route);
        free(want);
        free(bound);
    }
    ops_close(devices[0]);
    ops_close(devices[1]);
}

/* Logits to the sum, of all rows and of those with an output only: two products of one list, two routes one after the other. */
static void a_layer_of_experts(void **state) {
    (void)state;
    struct sh_device *vulkan = ops_open_vulkan(__func__, true);
    enum { E = 8, USED = 3, COLS = 64, N = 96, ROWS = 63, OUT = 63 }; /* the list is longer than 64 rows' */
    struct test_rng rng = {11};
    void *up = ops_random_matrix(SH_TYPE_Q4_0, COLS, E * N, &rng), *down = ops_random_matrix(SH_TYPE_Q5_0, N, E * COLS, &rng);
    float *x = ops_random_floats((size_t)ROWS * COLS, 1, &rng), *logits = ops_random_floats((size_t)ROWS * E, 3, &rng);
    float *all = NULL;
    uint32_t rows_out[OUT];
    for (uint32_t o = 0; o < OUT; o++) rows_out[o] = 2 * o % ROWS; /* every row, in another order */
    for (int pass = 0; pass < 4; pass++) { /* with the kernels of GPUs, then with those of software devices */
        const bool gathered = pass % 2 == 1;
        sh_vulkan_of(vulkan)->like_gpu = pass < 2;
        struct ops ops;
        ops_init(&ops);
        const uint32_t a = ops_input(&ops, COLS), l = ops_input(&ops, E);
        const enum sh_rows rows = gathered ? SH_ROWS_OUT : SH_ROWS_ALL;
        struct sh_op ops_of[6] = {ops_op(SH_OP_GATHER_OUT),    ops_op(SH_OP_GATHER_OUT),    ops_op(SH_OP_ROUTE),
                                  ops_op(SH_OP_EXPERT_MATMUL), ops_op(SH_OP_EXPERT_MATMUL), ops_op(SH_OP_EXPERT_SUM)};
        ops_of[0].x = a;
        ops_of[1].x = l;
        ops_of[0].out = gathered ? ops_activation(&ops, COLS, rows) : a;
        ops_of[1].out = gathered ? ops_activation(&ops, E, rows) : l;
        ops_of[2].x = ops_of[1].out;
        ops_of[2].out = ops_activation(&ops, 2 * USED, rows);
        ops_of[3].x = ops_of[0].out;
        ops_of[3].w = ops_weight(&ops, SH_TYPE_Q4_0, COLS, E * N, up);
        ops_of[3].out = ops_activation(&ops, USED * N, rows);
        ops_of[4].x = ops_of[3].out;
        ops_of[4].w = ops_weight(&ops, SH_TYPE_Q5_0, N, E * COLS, down);
        ops_of[4].out = ops_activation(&ops, USED * COLS, rows);
        ops_of[5].x = ops_of[4].out;
        ops_of[5].out = ops_activation(&ops, COLS, rows);
        for (int i = gathered ? 0 : 2; i < 6; i++) {
            struct sh_op *op = &ops_of[i];
            if (i > 2) op->y = ops_of[2].out;
            op->expert.n_expert = E;
            op->expert.n_used = USED;
            op->expert.gating = SH_GATE_SOFTMAX;
            op->expert.scale = 1;
            op->expert.per_slot = i == 4;
            ops_push(&ops, op);
        }
        struct ops_model m;
        ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
        const struct ops_step step = {.n_rows = ROWS, .inputs = {x, logits}, .out_rows = rows_out, .n_out = OUT};
        float *got = ops_run(&ops, &m, &step, ops_of[5].out);
        if (!all) all = got;
        for (uint32_t o = 0; o < OUT; o++)
            ops_compare("a layer of experts", got + (size_t)o * COLS, all + (size_t)(gathered ? rows_out[o] : o) * COLS, NULL, COLS);
        if (got != all) free(got);
        if (!gathered) {
            const struct ops_step one = {.n_rows = 1, .inputs = {x + (size_t)9 * COLS, logits + (size_t)9 * E}};
            float *alone = ops_run(&ops, &m, &one, ops_of[5].out);
            ops_compare("a layer of experts, alone", alone, all + (size_t)9 * COLS, NULL, COLS);
            free(alone);
        }
        ops_unload(&m);
    }
    free(all);
    free(up);
    free(down);
    free(x);
    free(logits);
    ops_close(vulkan);
}

static void beyond_the_limits_is_refused(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    const struct routing routings[] = {{513, 2, SH_GATE_SOFTMAX, false, false, 1, 0, 0},
                                       {64, 33, SH_GATE_SOFTMAX, false, false, 1, 0, 0}};
    static const char *const names[] = {"513", "33"};
    for (size_t i = 0; i < SH_COUNT(routings); i++) {
        struct ops ops;
        route_op(&ops, &routings[i], NULL);
        struct sh_segment segment = {.program = &ops.program, .n_ops = 1, .n_inputs = 1, .inputs = {ops.inputs[0]}};
        struct sh_exec_model *model = NULL;
        struct sh_error err = {0};
        assert_int_equal(vulkan->executor->model_create(vulkan, &segment, 1, &model, &err), SH_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.message, names[i]));
        assert_null(model);
    }
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(block_diagonal_products),
        cmocka_unit_test(products_of_experts),
        cmocka_unit_test(routes),
        cmocka_unit_test(routes_of_equals_and_of_no_numbers),
        cmocka_unit_test(sums_of_experts),
        cmocka_unit_test(a_layer_of_experts),
        cmocka_unit_test(beyond_the_limits_is_refused),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
