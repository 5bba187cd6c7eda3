/* The CPU executor on programs of a few ops: experts and blocks against single products bit for bit, states and windows across steps,
 * several segments on one device; with every instruction set that this machine has. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define MOST_WEIGHTS 24
#define MOST_CAPTURES 8
#define N_EMBD 256 /* the width of the rows that tests give */
#define CONTEXT 128

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

/* ---- a program with random weights ---- */

struct room {
    struct sh_program *program;
    struct sh_builder b;
    struct sh_error err;
    struct test_rng rng;
    void *data[MOST_WEIGHTS];
    uint32_t x; /* the rows that a step gives */
};

static uint32_t matrix(struct room *r, uint32_t type, uint64_t cols, uint64_t rows) {
    const uint32_t w = sh_build_matrix(&r->b, cols, rows, "matrix %u", r->program->n_weights);
    assert_true(w < MOST_WEIGHTS);
    r->program->weights[w].type = type;
    r->data[w] = malloc(sh_type_row_bytes(type, cols) * rows);
    assert_non_null(r->data[w]);
    test_random_blocks(type, cols * rows, 0.2f, &r->rng, r->data[w]);
    return w;
}

static uint32_t vector(struct room *r, uint64_t n, float low, float high) {
    const uint32_t w = sh_build_vector(&r->b, n, "vector %u", r->program->n_weights);
    assert_true(w < MOST_WEIGHTS);
    float *values = malloc(n * sizeof *values);
    assert_non_null(values);
    for (uint64_t i = 0; i < n; i++) values[i] = test_uniform(&r->rng, low, high);
    r->data[w] = values;
    return w;
}

static uint32_t table(struct room *r, uint64_t cols, uint64_t rows, float low, float high) {
    const uint32_t w = vector(r, cols * rows, low, high);
    r->program->weights[w].cols = cols;
    r->program->weights[w].rows = rows;
    return w;
}

static void open_room(struct room *r) {
    memset(r, 0, sizeof *r);
    r->rng.state = 7;
    r->program = sh_program_create();
    assert_non_null(r->program);
    r->program->n_layers = 1;
    r->program->n_embd = N_EMBD;
    r->program->n_vocab = 8;
    r->program->context_length = CONTEXT;
    r->program->hidden = r->program->logits = SH_NONE;
    r->b = (struct sh_builder){.program = r->program, .layer = SH_NONE, .err = &r->err};
    r->x = sh_build_embed(&r->b, matrix(r, SH_TYPE_F32, N_EMBD, 8), SH_EMBED_TOKEN, "x");
}

static void close_room(struct room *r) {
    for (uint32_t w = 0; w < r->program->n_weights; w++) free(r->data[w]);
    sh_program_destroy(r->program);
}

/* ---- and a device that runs it ---- */

struct placed {
    struct sh_device *device;
    struct sh_exec_model *model;
    struct sh_exec_context *context;
};

static struct sh_device *open_device(const char *tier, uint32_t threads) {
    const struct sh_device_params params = {.size = sizeof params, .tier = tier, .threads = threads};
    struct sh_device *device = NULL;
    struct sh_error err = {0};
    OK(sh_cpu_open(&params, &device, &err));
    return device;
}

static void load(struct placed *p, const struct sh_program *program, void *const *data, const struct sh_segment *segments,
                 uint32_t n_segments) {
    const struct sh_executor *e = p->device->executor;
    struct sh_error err = {0};
    uint32_t *weights, count;
    OK(e->model_create(p->device, segments, n_segments, &p->model, &err));
    OK(sh_segment_weights(segments, n_segments, &weights, &count, &err));
    for (uint32_t i = 0; i < count; i++) {
        const struct sh_weight *w = &program->weights[weights[i]];
        const uint64_t row_bytes = sh_type_row_bytes(w->type, w->cols);
        uint64_t piece = 1;
        for (uint64_t row = 0; row < w->rows; row += piece, piece = piece % 23 + 7) {
            piece = sh_min_u64(piece, w->rows - row);
            OK(e->weight_rows(p->model, weights[i], row, piece, (const uint8_t *)data[weights[i]] + row * row_bytes, &err));
        }
    }
    free(weights);
    OK(e->model_finish(p->model, &err));
    const struct sh_exec_context_params params = {
        .kv_type = SH_KV_F32, .max_rows = 64, .max_outputs = 64, .max_sequences = 3, .max_pages_per_sequence = 4};
    OK(e->context_create(p->model, &params, &p->context, &err));
    for (uint32_t g = 0; g < program->n_groups; g++) OK(e->pool_reserve(p->context, g, 8, &err));
}

static struct placed place(const struct room *r, const char *tier, uint32_t threads) {
    if (r->b.code != SH_OK) fail_msg("%s", r->err.message);
    struct placed p = {.device = open_device(tier, threads)};
    const struct sh_segment segment = {.program = r->program, .n_ops = r->program->n_ops};
    load(&p, r->program, r->data, &segment, 1);
    return p;
}

static void unload(struct placed *p) {
    p->device->executor->context_destroy(p->context);
    p->device->executor->model_destroy(p->model);
}

static void remove_all(struct placed *p) {
    unload(p);
    struct sh_device_memory memory;
    p->device->executor->device_memory(p->device, &memory);
    assert_int_equal(memory.weights_bytes + memory.cache_bytes + memory.activation_bytes, 0);
    p->device->executor->device_close(p->device);
}

/* Rows of one sequence at positions from `position`, given as embeddings [n_rows][N_EMBD]. */
struct rows {
    const float *x;
    uint32_t n_rows, position;
    const uint32_t *const *pages;
    uint32_t n_pages;
};
static const uint32_t some_pages[4] = {2, 0, 3, 1};
static const uint32_t *const same_pages[4] = {some_pages, some_pages, some_pages, some_pages};

static enum sh_code try_step(const struct placed *p, const struct rows *rows, const uint32_t *capture, uint32_t n_capture,
                             struct sh_step_result *result, struct sh_error *err) {
    struct sh_step_row list[64];
    assert_true(rows->n_rows <= SH_COUNT(list));
    for (uint32_t i = 0; i < rows->n_rows; i++)
        list[i] = (struct sh_step_row){
            .token = -1, .sampled_from = SH_NONE, .embedding = rows->x + (size_t)i * N_EMBD, .position = rows->position + i};
    const struct sh_step_sequence sequence = {.n_rows = rows->n_rows,
                                              .pages = rows->pages != NULL ? rows->pages : same_pages,
                                              .n_pages = rows->pages != NULL ? rows->n_pages : 4};
    const struct sh_step step = {.rows = list,
                                 .n_rows = rows->n_rows,
                                 .sequences = &sequence,
                                 .n_sequences = 1,
                                 .capture = capture,
                                 .n_capture = n_capture};
    const enum sh_code code = p->device->executor->submit(p->context, 0, 0, &step, err);
    return code == SH_OK ? p->device->executor->wait(p->context, 0, -1, result, err) : code;
}

/* Copies of the captured activations [n_rows][width], malloc'd. */
static void run(const struct room *r, const struct placed *p, const struct rows *rows, const uint32_t *capture,
                uint32_t n_capture, float **out) {
    struct sh_step_result result;
    struct sh_error err = {0};
    OK(try_step(p, rows, capture, n_capture, &result, &err));
    for (uint32_t c = 0; c < n_capture; c++) {
        const size_t bytes = (size_t)rows->n_rows * r->program->activations[capture[c]].width * sizeof(float);
        assert_non_null(result.captured[c]);
        out[c] = malloc(bytes);
        assert_non_null(out[c]);
        memcpy(out[c], result.captured[c], bytes);
    }
}

static void free_all(float **out, uint32_t n) {
    for (uint32_t c = 0; c < n; c++) free(out[c]);
}

/* Each row in a step of its own gives the bits that it has among the others. */
static void alone_is_together(const struct room *r, const struct placed *p, const struct rows *rows, const uint32_t *capture,
                              uint32_t n_capture, float *const *together) {
    for (uint32_t i = 0; i < rows->n_rows; i++) {
        struct rows one = *rows;
        one.x += (size_t)i * N_EMBD;
        one.n_rows = 1;
        one.position += i;
        float *alone[MOST_CAPTURES];
        run(r, p, &one, capture, n_capture, alone);
        for (uint32_t c = 0; c < n_capture; c++) {
            const uint32_t width = r->program->activations[capture[c]].width;
            assert_memory_equal(alone[c], together[c] + (size_t)i * width, width * sizeof(float));
        }
        free_all(alone, n_capture);
    }
}

/* ---- products of many matrices ---- */

/* Rows [row0, row0 + n) of a matrix through the table's own product, for one vector. */
static void product(const struct sh_cpu_kernels *k, const struct sh_weight *spec, const uint8_t *data, uint64_t row0, uint64_t n,
                    const float *x, const float *bias, float *out) {
    struct sh_cpu_matrix w = {.type = spec->type, .cols = spec->cols, .rows = n};
    const uint64_t bytes = k->matrix_bytes(w.type, w.cols, n), operand = k->operand(w.type);
    const uint64_t operand_bytes = k->operand_bytes((uint32_t)operand, w.cols), scratch_bytes = k->matmul_scratch(w.cols) + 64;
    w.data = test_guarded(bytes);
    memset(w.data, 0, bytes);
    k->pack(&w, 0, n, data + row0 * sh_type_row_bytes(w.type, w.cols));
    void *operands = test_guarded(operand_bytes), *scratch = test_guarded(scratch_bytes);
    k->prepare((uint32_t)operand, x, w.cols, 1, operands);
    const struct sh_cpu_matmul m = {.w = &w, .x = operands, .n_rows = 1, .bias = bias, .out = out};
    k->matmul(&m, 0, (n + k->group_rows - 1) / k->group_rows, scratch);
    test_release(w.data, bytes);
    test_release(operands, operand_bytes);
    test_release(scratch, scratch_bytes);
}

static const uint32_t some_types[] = {SH_TYPE_F32, SH_TYPE_F16, SH_TYPE_Q8_0, SH_TYPE_Q4_K};

static void check_experts(const struct sh_cpu_kernels *k, uint32_t type, uint32_t n_rows, uint32_t threads) {
    enum { N_EXPERT = 7, N_USED = 3, N_FF = 256, N_OUT = 21 };
    const struct sh_build_experts e = {
        .n_expert = N_EXPERT, .n_used = N_USED, .gating = SH_GATE_SOFTMAX, .normalise = true, .scale = 1};
    struct room r;
    open_room(&r);
    const uint32_t logits = sh_build_matmul(&r.b, r.x, matrix(&r, SH_TYPE_F32, N_EMBD, N_EXPERT), SH_NONE, "logits");
    const uint32_t route = sh_build_route(&r.b, &e, logits, SH_NONE, "route");
    const uint32_t up_w = matrix(&r, type, N_EMBD, N_EXPERT * N_FF), up_bias = vector(&r, N_EXPERT * N_FF, -1, 1);
    const uint32_t down_w = matrix(&r, type, N_FF, N_EXPERT * N_OUT);
    const uint32_t up = sh_build_expert_matmul(&r.b, &e, r.x, false, route, up_w, up_bias, "up");
    const uint32_t down = sh_build_expert_matmul(&r.b, &e, up, true, route, down_w, SH_NONE, "down");
    const uint32_t sum = sh_build_expert_sum(&r.b, &e, down, route, "sum");
    struct placed p = place(&r, k->tier, threads);
    float *x = test_guarded_floats(n_rows * N_EMBD, 1.0f, &r.rng);
    const struct rows rows = {.x = x, .n_rows = n_rows};
    const uint32_t capture[] = {route, up, down, sum};
    float *out[4], one[N_FF];
    run(&r, &p, &rows, capture, 4, out);
    for (uint32_t i = 0; i < n_rows * N_USED; i++) {
        const uint32_t row = i / N_USED, expert = (uint32_t)out[0][row * 2 * N_USED + i % N_USED];
        product(k, &r.program->weights[up_w], r.data[up_w], expert * N_FF, N_FF, x + row * N_EMBD,
                (const float *)r.data[up_bias] + expert * N_FF, one);
        assert_memory_equal(out[1] + i * N_FF, one, sizeof one);
        product(k, &r.program->weights[down_w], r.data[down_w], expert * N_OUT, N_OUT, out[1] + i * N_FF, NULL, one);
        assert_memory_equal(out[2] + i * N_OUT, one, N_OUT * sizeof *one);
    }
    for (uint32_t row = 0; row < n_rows; row++) {
        k->expert_sum(out[2] + row * N_USED * N_OUT, out[0] + row * 2 * N_USED, N_USED, N_OUT, one);
        assert_memory_equal(out[3] + row * N_OUT, one, N_OUT * sizeof *one);
    }
    alone_is_together(&r, &p, &rows, capture, 4, out);
    free_all(out, 4);
    test_release_floats(x, n_rows * N_EMBD);
    remove_all(&p);
    close_room(&r);
}

static void test_cpu_experts(void **state) {
    (void)state;
    FOR_EACH_TIER (k)
        for (size_t t = 0; t < SH_COUNT(some_types); t++) {
            check_experts(k, some_types[t], 1, 1);
            check_experts(k, some_types[t], 13, 3);
        }
}

static void check_blocks(const struct sh_cpu_kernels *k, uint32_t type, uint32_t n_rows, uint32_t threads) {
    enum { BLOCKS = 4, N_IN = N_EMBD, N_OUT = 19 };
    struct room r;
    open_room(&r);
    const uint32_t wide_w = matrix(&r, SH_TYPE_F32, N_EMBD, BLOCKS * N_IN), w = matrix(&r, type, N_IN, BLOCKS * N_OUT);
    const uint32_t other_w = matrix(&r, SH_TYPE_F32, N_EMBD, BLOCKS * N_OUT);
    const uint32_t wide = sh_build_matmul(&r.b, r.x, wide_w, SH_NONE, "wide");
    const uint32_t other = sh_build_matmul(&r.b, r.x, other_w, SH_NONE, "other");
    const uint32_t blocks = sh_build_matmul_blocks(&r.b, wide, w, BLOCKS, "blocks");
    const uint32_t sum = sh_build_add(&r.b, other, blocks, "sum"); /* becomes the residual */
    const uint32_t after = sh_build_matmul(&r.b, wide, matrix(&r, SH_TYPE_F32, BLOCKS * N_IN, 5), SH_NONE, "after");
    struct placed p = place(&r, k->tier, threads);
    float *x = test_guarded_floats(n_rows * N_EMBD, 1.0f, &r.rng);
    const struct rows rows = {.x = x, .n_rows = n_rows};
    const uint32_t capture[] = {wide, other, sum, after};
    float *out[4], one[N_OUT];
    run(&r, &p, &rows, capture, 4, out);
    for (uint32_t i = 0; i < n_rows * BLOCKS; i++) {
        product(k, &r.program->weights[w], r.data[w], i % BLOCKS * N_OUT, N_OUT, out[0] + i * N_IN, NULL, one);
        for (uint32_t j = 0; j < N_OUT; j++) assert_true(out[2][i * N_OUT + j] == one[j] + out[1][i * N_OUT + j]);
    }
    alone_is_together(&r, &p, &rows, capture, 4, out);
    free_all(out, 4);
    test_release_floats(x, n_rows * N_EMBD);
    remove_all(&p);
    close_room(&r);
}

static void test_cpu_blocks(void **state) {
    (void)state;
    FOR_EACH_TIER (k)
        for (size_t t = 0; t < SH_COUNT(some_types); t++) {
            check_blocks(k, some_types[t], 1, 3);
            check_blocks(k, some_types[t], 11, 3);
        }
}

/* Logits that are no numbers go through experts that exist; the step ends, other rows keep their bits. */
static void test_cpu_experts_of_no_numbers(void **state) {
    (void)state;
    const struct sh_build_experts e = {.n_expert = 5, .n_used = 2, .gating = SH_GATE_SOFTMAX, .normalise = true, .scale = 1};
    FOR_EACH_TIER (k) {
        struct room r;
        open_room(&r);
        const uint32_t logits = sh_build_matmul(&r.b, r.x, matrix(&r, SH_TYPE_F32, N_EMBD, 5), SH_NONE, "logits");
        const uint32_t route = sh_build_route(&r.b, &e, logits, SH_NONE, "route");
        const uint32_t up =
            sh_build_expert_matmul(&r.b, &e, r.x, false, route, matrix(&r, SH_TYPE_Q8_0, N_EMBD, 5 * 9), SH_NONE, "up");
        struct placed p = place(&r, k->tier, 2);
        float *x = test_guarded_floats(3 * N_EMBD, 1.0f, &r.rng);
        float *clean[1], *out[1];
        const struct rows rows = {.x = x, .n_rows = 3};
        run(&r, &p, &rows, &up, 1, clean);
        x[N_EMBD + 3] = NAN; /* row 1 */
        run(&r, &p, &rows, &up, 1, out);
        assert_memory_equal(out[0], clean[0], 2 * 9 * sizeof(float));
        assert_memory_equal(out[0] + 2 * 2 * 9, clean[0] + 2 * 2 * 9, 2 * 9 * sizeof(float));
        free_all(clean, 1);
        free_all(out, 1);
        test_release_floats(x, 3 * N_EMBD);
        remove_all(&p);
        close_room(&r);
    }
}

/* A route that another executor made may hold anything. */
static void test_cpu_hostile_route(void **state) {
    (void)state;
    const struct sh_build_experts e = {.n_expert = 5, .n_used = 5, .gating = SH_GATE_SOFTMAX, .scale = 1};
    struct room r;
    open_room(&r);
    const uint32_t route = sh_build_activation(&r.b, 10, SH_ROWS_ALL, "route");
    const uint32_t up =
        sh_build_expert_matmul(&r.b, &e, r.x, false, route, matrix(&r, SH_TYPE_F32, N_EMBD, 5 * 9), SH_NONE, "up");
    const struct sh_segment segment = {.program = r.program, .n_ops = r.program->n_ops, .inputs = {route}, .n_inputs = 1};
    struct placed p = {.device = open_device("scalar", 2)};
    load(&p, r.program, r.data, &segment, 1);
    float *x = test_guarded_floats(N_EMBD, 1.0f, &r.rng);
    const float hostile[10] = {NAN, -1, 5, 1e30f, -INFINITY, 1, 1, 1, 1, 1};
    const struct sh_step_row row = {.token = -1, .sampled_from = SH_NONE, .embedding = x};
    const struct sh_step_sequence sequence = {.n_rows = 1, .pages = same_pages, .n_pages = 1};
    const struct sh_step step = {
        .rows = &row, .n_rows = 1, .sequences = &sequence, .n_sequences = 1, .inputs = {hostile}, .capture = &up, .n_capture = 1};
    struct sh_step_result result;
    struct sh_error err = {0};
    OK(p.device->executor->submit(p.context, 0, 0, &step, &err));
    OK(p.device->executor->wait(p.context, 0, -1, &result, &err));
    for (uint32_t j = 1; j < 5; j++) assert_memory_equal(result.captured[0] + j * 9, result.captured[0], 9 * sizeof(float));
    test_release_floats(x, N_EMBD);
    remove_all(&p);
    close_room(&r);
}

/* ---- rows by position, and the ops that only move or rotate ---- */

static void test_cpu_positions(void **state) {
    (void)state;
    enum { N = 5, AT = 17 };
    FOR_EACH_TIER (k) {
        struct room r;
        open_room(&r);
        const uint32_t places = matrix(&r, SH_TYPE_F16, 40, 40), types = matrix(&r, SH_TYPE_F32, 40, 3);
        const uint32_t scales = table(&r, 1, 64, 0.5f, 2.0f), angles = table(&r, 6, 33, -1, 1);
        const struct sh_build_attention a = {.k_dim = 10,
                                             .pairing = SH_ROPE_HALVES,
                                             .rope_first = 3,
                                             .n_rot = 6,
                                             .rope_table = angles,
                                             .slopes = SH_NONE,
                                             .sinks = SH_NONE};
        const uint32_t at = sh_build_embed(&r.b, places, SH_EMBED_POSITION, "at");
        const uint32_t first = sh_build_embed(&r.b, types, SH_EMBED_FIRST, "first");
        const uint32_t sum = sh_build_add(&r.b, at, first, "sum");
        const uint32_t scaled = sh_build_scale_position(&r.b, sum, scales, "scaled");
        const uint32_t rotated = sh_build_rope(&r.b, &a, scaled, 4, "rotated");
        const uint32_t joined = sh_build_concat(&r.b, rotated, first, 2, "joined");
        struct placed p = place(&r, k->tier, 2);
        float *x = test_guarded_floats(N * N_EMBD, 1.0f, &r.rng);
        const struct rows rows = {.x = x, .n_rows = N, .position = AT};
        const uint32_t capture[] = {at, first, scaled, rotated, joined};
        float *out[5], row[40];
        run(&r, &p, &rows, capture, 5, out);
        for (uint32_t i = 0; i < N; i++) {
            sh_ref_embed(SH_TYPE_F16, r.data[places], 40, AT + i, row);
            assert_memory_equal(out[0] + i * 40, row, sizeof row);
            assert_memory_equal(out[1] + i * 40, r.data[types], sizeof row);
            for (uint32_t d = 0; d < 40; d++)
                assert_true(out[2][i * 40 + d] ==
                            ((const float *)r.data[scales])[AT + i] * (row[d] + ((const float *)r.data[types])[d]));
            const struct sh_ref_rope rope = {.n_heads = 4, .dim = 10, .first = 3, .n_rot = 6, .pairing = SH_ROPE_HALVES};
            sh_ref_rope(&rope, out[2] + i * 40, (const float *)r.data[angles] + (AT + i) * 6, row);
            assert_memory_equal(out[3] + i * 40, row, sizeof row);
            for (uint32_t h = 0; h < 2; h++) {
                assert_memory_equal(out[4] + i * 80 + h * 40, out[3] + i * 40 + h * 20, 20 * sizeof *row);
                assert_memory_equal(out[4] + i * 80 + h * 40 + 20, out[1] + i * 40 + h * 20, 20 * sizeof *row);
            }
        }
        free_all(out, 5);
        /* the shortest table has 33 rows: the row at position 33 is refused, not read */
        struct sh_step_result result;
        struct sh_error err = {0};
        const struct rows last = {.x = x, .n_rows = 1, .position = 32}, beyond = {.x = x, .n_rows = 1, .position = 33};
        OK(try_step(&p, &last, capture, 5, &result, &err));
        assert_int_equal(try_step(&p, &beyond, capture, 5, &result, &err), SH_ERR_INVALID);
        test_release_floats(x, N * N_EMBD);
        remove_all(&p);
        close_room(&r);
    }
}

/* ---- states across steps ---- */

/* Convolution, scan and delta net share the pages of one group, in two layers. */
static uint32_t recurrent_layer(struct room *r, uint32_t x) {
    enum { WIDTH = 48, N_STATE = 5, TAPS = 4, CONV = WIDTH * (TAPS - 1), SCAN = WIDTH * N_STATE, DELTA = 4 * 8 * 12 };
    uint32_t layer;
    const struct sh_state_group spec = {.kind = SH_STATE_RECURRENT, .floats = CONV + SCAN + DELTA};
    const uint32_t group = sh_build_state(&r->b, spec, &layer);
    const struct sh_build_recurrent conv = {group, layer, 0, CONV}, scan = {group, layer, CONV, SCAN},
                                    delta = {group, layer, CONV + SCAN, DELTA};
    const uint32_t in = sh_build_matmul(&r->b, x, matrix(r, SH_TYPE_F32, r->program->activations[x].width, WIDTH), SH_NONE, "in");
    const uint32_t c = sh_build_conv(&r->b, &conv, in, table(r, TAPS, WIDTH, -1, 1), vector(r, WIDTH, -1, 1), "conv");
    const uint32_t bb = sh_build_matmul(&r->b, c, matrix(r, SH_TYPE_F32, WIDTH, N_STATE), SH_NONE, "b");
    const uint32_t s =
        sh_build_scan(&r->b, &scan, c, in, bb, bb, table(r, N_STATE, WIDTH, -2, 0), vector(r, WIDTH, -1, 1), "scan");
    const struct sh_build_delta d = {.n_k_heads = 2, .n_v_heads = 4, .k_dim = 8, .v_dim = 12, .scale = 0.5f};
    const uint32_t qw = matrix(r, SH_TYPE_F32, WIDTH, 16), gw = matrix(r, SH_TYPE_F32, WIDTH, 4);
    const uint32_t q = sh_build_matmul(&r->b, s, qw, SH_NONE, "q");
    const uint32_t q1 = sh_build_norm(&r->b, SH_NORM_L2, q, 2, SH_NONE, SH_NONE, 1e-6f, "q1");
    const uint32_t gate = sh_build_matmul(&r->b, s, gw, SH_NONE, "gate");
    return sh_build_delta_net(&r->b, &delta, &d, q1, q1, s, gate, gate, vector(r, 4, -1, 0), vector(r, 4, -1, 1), "delta");
}

static void test_cpu_recurrent_pages(void **state) {
    (void)state;
    enum { N = 23 };
    FOR_EACH_TIER (k) {
        struct room r;
        open_room(&r);
        r.program->n_layers = 2;
        r.b.layer = 0;
        uint32_t y = recurrent_layer(&r, r.x);
        r.b.layer = 1;
        y = recurrent_layer(&r, y);
        struct placed p = place(&r, k->tier, 3);
        float *x = test_guarded_floats(N * N_EMBD, 1.0f, &r.rng);
        float *whole[1];
        uint32_t pages[2] = {SH_NONE, 5};
        const uint32_t *tables[1] = {pages};
        const struct rows all = {.x = x, .n_rows = N, .pages = tables, .n_pages = 1};
        run(&r, &p, &all, &y, 1, whole);
        const uint32_t width = r.program->activations[y].width;
        /* in chunks, from page to page; each twice, since what was read is not written */
        uint32_t done = 0, page = 0;
        static const uint32_t chunks[] = {1, 1, 7, 3, 11};
        for (size_t i = 0; i < SH_COUNT(chunks); i++)
            for (int again = 0; again < 2; again++) {
                pages[0] = i == 0 ? SH_NONE : page;
                pages[1] = (page + 1 + (uint32_t)again) % 4;
                const struct rows some = {
                    .x = x + done * N_EMBD, .n_rows = chunks[i], .position = done, .pages = tables, .n_pages = 1};
                float *part[1];
                run(&r, &p, &some, &y, 1, part);
                assert_memory_equal(part[0], whole[0] + done * width, chunks[i] * width * sizeof(float));
                free_all(part, 1);
                if (again == 1) {
                    done += chunks[i];
                    page = pages[1];
                }
            }
        assert_int_equal(done, N);
        struct sh_step_result result;
        struct sh_error err = {0};
        pages[0] = pages[1] = 2; /* in place */
        assert_int_equal(try_step(&p, &all, &y, 1, &result, &err), SH_ERR_INVALID);
        pages[0] = SH_NONE;
        pages[1] = SH_NONE; /* nowhere to leave it */
        assert_int_equal(try_step(&p, &all, &y, 1, &result, &err), SH_ERR_INVALID);
        pages[0] = 1u << 30;
        pages[1] = 1;
        assert_int_equal(try_step(&p, &all, &y, 1, &result, &err), SH_ERR_INVALID);
        assert_int_equal(p.device->executor->page_copy(p.context, 0, 0, 1, 1, &err), SH_ERR_INVALID);
        free_all(whole, 1);
        test_release_floats(x, N * N_EMBD);
        remove_all(&p);
        close_room(&r);
    }
}

/* Two sequences in one step have the bits that each has alone. */
static void test_cpu_recurrent_sequences(void **state) {
    (void)state;
    enum { FIRST = 4, SECOND = 6 };
    FOR_EACH_TIER (k) {
        struct room r;
        open_room(&r);
        r.b.layer = 0;
        const uint32_t y = recurrent_layer(&r, r.x), width = r.program->activations[y].width;
        struct placed p = place(&r, k->tier, 2);
        float *x = test_guarded_floats((FIRST + SECOND) * N_EMBD, 1.0f, &r.rng);
        uint32_t pages[2][2] = {{SH_NONE, 0}, {SH_NONE, 1}};
        const uint32_t *tables[2] = {pages[0], pages[1]};
        float *first[1], *second[1];
        const struct rows a = {.x = x, .n_rows = FIRST, .pages = &tables[0], .n_pages = 1};
        const struct rows b = {.x = x + FIRST * N_EMBD, .n_rows = SECOND, .pages = &tables[1], .n_pages = 1};
        run(&r, &p, &a, &y, 1, first);
        run(&r, &p, &b, &y, 1, second);
        struct sh_step_row rows[FIRST + SECOND];
        for (uint32_t i = 0; i < FIRST + SECOND; i++)
            rows[i] = (struct sh_step_row){.token = -1,
                                           .sampled_from = SH_NONE,
                                           .embedding = x + i * N_EMBD,
                                           .sequence = i >= FIRST,
                                           .position = i < FIRST ? i : i - FIRST};
        pages[0][1] = 2;
        pages[1][1] = 3;
        const struct sh_step_sequence sequences[2] = {
            {.n_rows = FIRST, .pages = &tables[0], .n_pages = 1},
            {.first_row = FIRST, .n_rows = SECOND, .pages = &tables[1], .n_pages = 1},
        };
        const struct sh_step step = {
            .rows = rows, .n_rows = FIRST + SECOND, .sequences = sequences, .n_sequences = 2, .capture = &y, .n_capture = 1};
        struct sh_step_result result;
        struct sh_error err = {0};
        OK(p.device->executor->submit(p.context, 0, 0, &step, &err));
        OK(p.device->executor->wait(p.context, 0, -1, &result, &err));
        assert_memory_equal(result.captured[0], first[0], FIRST * width * sizeof(float));
        assert_memory_equal(result.captured[0] + FIRST * width, second[0], SECOND * width * sizeof(float));
        free_all(first, 1);
        free_all(second, 1);
        test_release_floats(x, (FIRST + SECOND) * N_EMBD);
        remove_all(&p);
        close_room(&r);
    }
}

/* ---- attention over pages ---- */

static uint32_t attend(struct room *r, enum sh_state_kind kind, uint32_t window, bool bidirectional, bool v_in_k) {
    const struct sh_state_group spec = {.kind = kind,
                                        .n_kv_heads = 1,
                                        .k_dim = 24,
                                        .v_dim = 16,
                                        .v_in_k = v_in_k,
                                        .window = kind == SH_STATE_WINDOWED ? window : 0};
    struct sh_build_attention a = {.n_heads = 3,
                                   .n_kv_heads = 1,
                                   .k_dim = 24,
                                   .v_dim = 16,
                                   .n_rot = 0,
                                   .rope_table = SH_NONE,
                                   .scale = 0.2f,
                                   .bidirectional = bidirectional,
                                   .window = window,
                                   .v_in_k = v_in_k,
                                   .slopes = SH_NONE,
                                   .sinks = SH_NONE};
    a.group = sh_build_state(&r->b, spec, &a.layer_in_group);
    const uint32_t q = sh_build_matmul(&r->b, r->x, matrix(r, SH_TYPE_F32, N_EMBD, 72), SH_NONE, "q");
    const uint32_t key = sh_build_matmul(&r->b, r->x, matrix(r, SH_TYPE_F32, N_EMBD, 24), SH_NONE, "k");
    const uint32_t v = v_in_k ? SH_NONE : sh_build_matmul(&r->b, r->x, matrix(r, SH_TYPE_F32, N_EMBD, 16), SH_NONE, "v");
    return sh_build_attend(&r->b, &a, q, key, v, "rotated", "attended");
}

static void test_cpu_windowed_pages(void **state) {
    (void)state;
    enum { WINDOW = 20, N = 100 };
    FOR_EACH_TIER (k) {
        struct room r;
        open_room(&r);
        r.b.layer = 0;
        const uint32_t windowed = attend(&r, SH_STATE_WINDOWED, WINDOW, false, false);
        struct placed p = place(&r, k->tier, 2);
        float *x = test_guarded_floats(N * N_EMBD, 1.0f, &r.rng);
        uint32_t pages[4] = {0, 1, 2, 3};
        const uint32_t *tables[1] = {pages};
        float *before[1], *out[1];
        struct rows rows = {.x = x, .n_rows = 64, .pages = tables, .n_pages = 4};
        run(&r, &p, &rows, &windowed, 1, before);
        /* position 84 sees from 65: the first two pages may be gone; 83 sees 64, 82 sees 63, of the second */
        rows = (struct rows){.x = x + 64 * N_EMBD, .n_rows = 36, .position = 64, .pages = tables, .n_pages = 4};
        run(&r, &p, &rows, &windowed, 1, out);
        struct sh_step_result result;
        struct sh_error err = {0};
        pages[0] = pages[1] = SH_NONE;
        const uint32_t width = r.program->activations[windowed].width;
        rows = (struct rows){.x = x + 83 * N_EMBD, .n_rows = 17, .position = 83, .pages = tables, .n_pages = 4};
        OK(try_step(&p, &rows, &windowed, 1, &result, &err));
        assert_memory_equal(result.captured[0], out[0] + 19 * width, 17 * width * sizeof(float));
        rows = (struct rows){.x = x + 82 * N_EMBD, .n_rows = 1, .position = 82, .pages = tables, .n_pages = 4};
        assert_int_equal(try_step(&p, &rows, &windowed, 1, &result, &err), SH_ERR_INVALID);
        free_all(before, 1);
        free_all(out, 1);
        test_release_floats(x, N * N_EMBD);
        remove_all(&p);
        close_room(&r);
    }
}

/* Keys that are values too: copies of pages carry them; an encoder's rows see all of their sequence. */
static void test_cpu_values_in_keys(void **state) {
    (void)state;
    FOR_EACH_TIER (k) {
        struct room r;
        open_room(&r);
        r.b.layer = 0;
        const uint32_t y = attend(&r, SH_STATE_PAGED, 0, false, true), width = r.program->activations[y].width;
        struct placed p = place(&r, k->tier, 2);
        float *x = test_guarded_floats(40 * N_EMBD, 1.0f, &r.rng);
        uint32_t pages[2] = {4, 1};
        const uint32_t *tables[1] = {pages};
        float *whole[1], *rest[1];
        struct rows rows = {.x = x, .n_rows = 40, .pages = tables, .n_pages = 2};
        run(&r, &p, &rows, &y, 1, whole);
        struct sh_error err = {0};
        OK(p.device->executor->page_copy(p.context, 0, 1, 6, 7, &err)); /* positions 32..38 */
        pages[1] = 6;
        rows = (struct rows){.x = x + 39 * N_EMBD, .n_rows = 1, .position = 39, .pages = tables, .n_pages = 2};
        run(&r, &p, &rows, &y, 1, rest);
        assert_memory_equal(rest[0], whole[0] + 39 * width, width * sizeof(float));
        free_all(whole, 1);
        free_all(rest, 1);
        test_release_floats(x, 40 * N_EMBD);
        remove_all(&p);
        close_room(&r);
    }
}

static void test_cpu_bidirectional(void **state) {
    (void)state;
    enum { N = 40, WINDOW = 11, REACH = WINDOW / 2 };
    FOR_EACH_TIER (k)
        for (int windowed = 0; windowed < 2; windowed++) {
            struct room r;
            open_room(&r);
            r.b.layer = 0;
            const uint32_t y = attend(&r, SH_STATE_PAGED, windowed ? WINDOW : 0, true, false),
                           width = r.program->activations[y].width;
            struct placed p = place(&r, k->tier, 2);
            float *x = test_guarded_floats(N * N_EMBD, 1.0f, &r.rng);
            const struct rows rows = {.x = x, .n_rows = N};
            float *out[1], *changed[1];
            run(&r, &p, &rows, &y, 1, out);
            for (uint32_t d = 0; d < N_EMBD; d++) x[20 * N_EMBD + d] += 1.0f;
            run(&r, &p, &rows, &y, 1, changed);
            for (uint32_t i = 0; i < N; i++) { /* row 20 is seen from where it should be, and from nowhere else */
                const bool sees = !windowed || (i + REACH >= 20 && i <= 20 + REACH);
                assert_int_equal(memcmp(out[0] + i * width, changed[0] + i * width, width * sizeof(float)) != 0, sees);
            }
            free_all(out, 1);
            free_all(changed, 1);
            test_release_floats(x, N * N_EMBD);
            remove_all(&p);
            close_room(&r);
        }
}

/* ---- programs that no builder makes ---- */

static struct sh_op *find_op(const struct room *r, enum sh_op_kind kind) {
    for (uint32_t i = 0; i < r->program->n_ops; i++)
        if (r->program->ops[i].kind == kind) return &r->program->ops[i];
    fail_msg("no op %s", sh_op_name(kind));
    return NULL;
}

static void is_refused(const struct room *r, struct sh_device *device) {
    const struct sh_segment segment = {.program = r->program, .n_ops = r->program->n_ops};
    struct sh_exec_model *model = NULL;
    struct sh_error err = {0};
    assert_int_equal(device->executor->model_create(device, &segment, 1, &model, &err), SH_ERR_UNSUPPORTED);
    assert_null(model);
    assert_true(strlen(err.message) > 0);
}

/* `field` of an op, given `value`, makes the program one that is refused. */
#define REFUSED(kind, field, value)                                                                                              \
    do {                                                                                                                         \
        struct sh_op *op_ = find_op(&r, kind);                                                                                   \
        const struct sh_op right_ = *op_;                                                                                        \
        op_->field = (value);                                                                                                    \
        is_refused(&r, device);                                                                                                  \
        *op_ = right_;                                                                                                           \
    } while (0)

static void test_cpu_unsound_programs(void **state) {
    (void)state;
    const struct sh_build_experts e = {
        .n_expert = 8, .n_used = 2, .gating = SH_GATE_SIGMOID, .scale = 1, .n_groups = 4, .n_groups_used = 2};
    struct room r;
    open_room(&r);
    r.b.layer = 0;
    recurrent_layer(&r, r.x);
    attend(&r, SH_STATE_WINDOWED, 20, false, false);
    const uint32_t logits = sh_build_matmul(&r.b, r.x, matrix(&r, SH_TYPE_F32, N_EMBD, 8), SH_NONE, "logits");
    const uint32_t route = sh_build_route(&r.b, &e, logits, SH_NONE, "route");
    sh_build_expert_matmul(&r.b, &e, r.x, false, route, matrix(&r, SH_TYPE_F32, N_EMBD, 8 * 3), SH_NONE, "up");
    struct placed p = place(&r, "scalar", 1); /* as built it is fine */
    unload(&p);
    struct sh_device *device = p.device;
    REFUSED(SH_OP_CONV, state.offset, r.program->groups[0].floats);
    REFUSED(SH_OP_CONV, state.floats, 1);
    REFUSED(SH_OP_CONV, d_conv, 9);
    REFUSED(SH_OP_SCAN, state.floats, 7);
    REFUSED(SH_OP_SCAN, state.group, 1);
    REFUSED(SH_OP_DELTA_NET, delta.n_k_heads, 3);
    REFUSED(SH_OP_DELTA_NET, delta.k_dim, 9);
    REFUSED(SH_OP_NORM, norm.n_groups, 5);
    REFUSED(SH_OP_ROPE_CACHE, attn.k_dim, 23);
    REFUSED(SH_OP_ROPE_CACHE, attn.v_in_k, true);
    REFUSED(SH_OP_ROPE_CACHE, rope.first, 25);
    REFUSED(SH_OP_ATTENTION, attn.window, 21);
    REFUSED(SH_OP_ATTENTION, attn.window, 0);
    REFUSED(SH_OP_ATTENTION, attn.group, 0);
    REFUSED(SH_OP_ROUTE, expert.n_used, 5);
    REFUSED(SH_OP_ROUTE, expert.n_groups, 3);
    REFUSED(SH_OP_EXPERT_MATMUL, expert.n_expert, 7);
    REFUSED(SH_OP_MATMUL, blocks, 0);
    device->executor->device_close(device);
    close_room(&r);
}

/* ---- several segments ---- */

static const struct tiny_params llama = {
    .n_layers = 4,
    .n_embd = 64,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 16,
    .n_ff = 100,
    .n_vocab = 90,
    .context = 128,
    .type = SH_TYPE_F32,
    .pairing = SH_ROPE_ADJACENT,
    .tied = true,
    .seed = 3,
};

/* The segments of a step, each on the model that holds it, in the program's order. */
struct cut {
    struct sh_segment *segments;
    uint32_t n_segments;
    struct placed devices[2];
    float *values[2][64]; /* [step slot][activation] of what crosses */
};

static void submit(struct cut *c, const struct tiny *t, uint32_t slot, uint32_t s, uint32_t local, struct sh_step step) {
    const struct sh_segment *segment = &c->segments[s];
    const struct placed *p = &c->devices[segment->device];
    struct sh_error err = {0};
    for (uint32_t i = 0; i < segment->n_inputs; i++) step.inputs[i] = c->values[slot][segment->inputs[i]];
    if (s + 1 < c->n_segments) step.n_outputs = 0;
    OK(p->device->executor->submit(p->context, slot, local, &step, &err));
    struct sh_step_result result;
    OK(p->device->executor->wait(p->context, slot, -1, &result, &err));
    for (uint32_t i = 0; i < segment->n_outputs; i++) {
        const uint32_t a = segment->outputs[i];
        const size_t n = (size_t)step.n_rows * t->program->activations[a].width;
        float *copy = realloc(c->values[slot][a], n * sizeof *copy);
        assert_non_null(copy);
        memcpy(copy, result.outputs[i], n * sizeof *copy);
        c->values[slot][a] = copy;
    }
    if (s + 1 < c->n_segments) return;
    for (uint32_t o = 0; o < step.n_outputs; o++) assert_non_null(result.logits[o]);
    const size_t n = (size_t)step.n_outputs * t->params.n_vocab;
    float *copy = realloc(c->values[slot][63], n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, result.logits[0], n * sizeof *copy);
    c->values[slot][63] = copy;
}

/* Two sequences in the two slots, their segments in turn; layers go to device layer_device[l]. Holds the logits against `expected`. */
static void check_cut(const struct tiny *t, const uint32_t *device_of_layer, uint32_t n_devices, const int32_t *tokens,
                      float *const expected[2], const char *tier) {
    struct cut c = {0};
    struct sh_error err = {0};
    uint32_t *device_of_op = calloc(t->program->n_ops, sizeof *device_of_op);
    assert_non_null(device_of_op);
    assert_true(t->program->n_activations < 63);
    sh_program_place(t->program, device_of_layer, 0, 0, device_of_op);
    OK(sh_program_cut(t->program, device_of_op, &c.segments, &c.n_segments, &err));
    uint32_t n_local[2] = {0}, local[16];
    struct sh_segment *of_device[2] = {calloc(16, sizeof *c.segments), calloc(16, sizeof *c.segments)};
    assert_true(of_device[0] && of_device[1] && c.n_segments <= 16);
    for (uint32_t s = 0; s < c.n_segments; s++) {
        const uint32_t d = c.segments[s].device %= n_devices;
        local[s] = n_local[d];
        of_device[d][n_local[d]++] = c.segments[s];
    }
    for (uint32_t d = 0; d < n_devices; d++) {
        c.devices[d].device = open_device(tier, 2);
        load(&c.devices[d], t->program, t->data, of_device[d], n_local[d]);
    }
    struct sh_step_row rows[2][40];
    struct sh_step_output outputs[40];
    uint32_t pages[2][2] = {{0, 1}, {2, 3}};
    const uint32_t *tables[2] = {pages[0], pages[1]};
    struct sh_step_sequence sequences[2];
    struct sh_step steps[2];
    for (uint32_t slot = 0; slot < 2; slot++) {
        for (uint32_t i = 0; i < 40; i++) {
            rows[slot][i] = (struct sh_step_row){.token = tokens[slot * 40 + i], .sampled_from = SH_NONE, .position = i};
            outputs[i] = (struct sh_step_output){.row = i, .want_logits = true};
        }
        sequences[slot] = (struct sh_step_sequence){.n_rows = 40, .pages = &tables[slot], .n_pages = 2};
        steps[slot] = (struct sh_step){.rows = rows[slot],
                                       .n_rows = 40,
                                       .sequences = &sequences[slot],
                                       .n_sequences = 1,
                                       .outputs = outputs,
                                       .n_outputs = 40};
    }
    for (uint32_t s = 0; s < c.n_segments; s++)
        for (uint32_t slot = 0; slot < 2; slot++) submit(&c, t, slot, s, local[s], steps[slot]);
    for (uint32_t slot = 0; slot < 2; slot++)
        assert_memory_equal(c.values[slot][63], expected[slot], 40 * t->params.n_vocab * sizeof(float));
    for (uint32_t slot = 0; slot < 2; slot++)
        for (uint32_t a = 0; a < 64; a++) free(c.values[slot][a]);
    assert_int_equal(c.devices[0].device->executor->submit(c.devices[0].context, 0, n_local[0], &steps[0], &err), SH_ERR_INVALID);
    for (uint32_t d = 0; d < n_devices; d++) remove_all(&c.devices[d]);
    free(of_device[0]);
    free(of_device[1]);
    free(c.segments);
    free(device_of_op);
}

static void test_cpu_segments(void **state) {
    (void)state;
    FOR_EACH_TIER (k) {
        struct tiny *t = tiny_create(&llama);
        int32_t tokens[80];
        struct test_rng rng = {9};
        for (uint32_t i = 0; i < 80; i++) tokens[i] = (int32_t)(test_random(&rng) % llama.n_vocab);
        const struct sh_segment all = tiny_segment(t);
        struct placed p = {.device = open_device(k->tier, 2)};
        load(&p, t->program, t->data, &all, 1);
        float *expected[2];
        for (uint32_t s = 0; s < 2; s++)
            expected[s] = tiny_run(t, p.device, p.context, 0, tokens + 40 * s, 40, 0, 2 * s, SH_ROLE_PROMPT);
        remove_all(&p);
        static const uint32_t there_and_back[4] = {0, 1, 0, 1}, inner[4] = {0, 1, 1, 0};
        check_cut(t, there_and_back, 2, tokens, expected, k->tier);
        check_cut(t, inner, 2, tokens, expected, k->tier);
        check_cut(t, there_and_back, 1, tokens, expected, k->tier); /* all on one device, which is cut nevertheless */
        free(expected[0]);
        free(expected[1]);
        tiny_destroy(t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_experts),
        cmocka_unit_test(test_cpu_blocks),
        cmocka_unit_test(test_cpu_experts_of_no_numbers),
        cmocka_unit_test(test_cpu_hostile_route),
        cmocka_unit_test(test_cpu_positions),
        cmocka_unit_test(test_cpu_recurrent_pages),
        cmocka_unit_test(test_cpu_recurrent_sequences),
        cmocka_unit_test(test_cpu_windowed_pages),
        cmocka_unit_test(test_cpu_values_in_keys),
        cmocka_unit_test(test_cpu_bidirectional),
        cmocka_unit_test(test_cpu_unsound_programs),
        cmocka_unit_test(test_cpu_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
