/* Op times: what ops cost at least, and what a context tells of its steps on any executor. */
#include "compute/program/build.h"
#include "compute/program/trace.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { LAYERS = 3, EMBD = 256, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, FF = 512, VOCAB = 512, PROMPT = 40, STEPS = 5 };
static struct sh_error error;
static char model_path[256];

static int write_model(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.layers = LAYERS;
    snprintf(model_path, sizeof model_path, "%s", test_scratch("trace.gguf"));
    core_ok(genmodel_write(model_path, &p, &error), &error);
    return 0;
}

static int no_environment(void **state) {
    (void)state;
    unsetenv("SHIMMY_TRACE");
    return 0;
}

/* ---- costs, by hand ---- */

static void costs_of_a_product(void **state) {
    (void)state;
    struct sh_program *p = sh_program_create();
    struct sh_builder b = {.program = p, .layer = SH_NONE, .err = &error};
    const uint32_t table = sh_build_matrix(&b, 64, 100, "token_embd.weight"), w = sh_build_matrix(&b, 64, 96, "w.weight");
    const uint32_t x = sh_build_embed(&b, table, SH_EMBED_TOKEN, "embd"), y = sh_build_matmul(&b, x, w, SH_NONE, "y");
    assert_true(b.code == SH_OK && y != SH_NONE);
    const struct sh_step_shape shape = {.n_rows = 5, .n_outputs = 1, .n_sequences = 1, .element_bytes = 2};
    const uint64_t row = sh_type_row_bytes(p->weights[w].type, 64);
    const struct sh_op_cost embed = sh_op_cost(p, &p->ops[0], &shape), product = sh_op_cost(p, &p->ops[1], &shape);
    assert_int_equal(embed.bytes, 5 * row + 5 * 64 * 4);
    assert_int_equal(embed.macs, 0);
    assert_int_equal(product.bytes, 96 * row + 5 * (64 + 96) * 4);
    assert_int_equal(product.macs, 5 * 64 * 96);
    sh_program_destroy(p);
}

/* Two sequences: 3 rows behind 10, and 1 row behind 20. */
static void shapes_and_attention(void **state) {
    (void)state;
    struct sh_activation activations[] = {{.name = "q", .width = 8 * 16}, {.name = "out", .width = 8 * 16}};
    struct sh_program p = {.activations = activations, .n_activations = 2};
    struct sh_op op = {.kind = SH_OP_ATTENTION,
                       .x = 0,
                       .y = SH_NONE,
                       .z = SH_NONE,
                       .u = SH_NONE,
                       .t = SH_NONE,
                       .residual = SH_NONE,
                       .w = SH_NONE,
                       .bias = SH_NONE,
                       .out = 1,
                       .attn = {.n_heads = 8, .n_kv_heads = 2, .k_dim = 16, .v_dim = 16}};
    const struct sh_step_row rows[] = {{.position = 10}, {.position = 11}, {.position = 12}, {.sequence = 1, .position = 20}};
    const struct sh_step_sequence sequences[] = {{.first_row = 0, .n_rows = 3}, {.first_row = 3, .n_rows = 1}};
    const struct sh_step step = {.rows = rows, .n_rows = 4, .sequences = sequences, .n_sequences = 2};
    struct sh_step_shape shape = sh_step_shape(&p, &step, SH_KV_F16);
    assert_int_equal(shape.seen, 11 + 12 + 13 + 21);
    assert_int_equal(shape.cached, 13 + 21);
    assert_int_equal(shape.element_bytes, 2);
    struct sh_op_cost cost = sh_op_cost(&p, &op, &shape);
    assert_int_equal(cost.macs, 57 * 8 * 32);
    assert_int_equal(cost.bytes, 34 * 2 * 32 * 2 + 2 * 4 * 128 * 4);
    op.attn.window = 4; /* every row sees a whole window: 3 + 4 - 1 and 1 + 4 - 1 positions are read */
    cost = sh_op_cost(&p, &op, &shape);
    assert_int_equal(cost.macs, 4 * 4 * 8 * 32);
    assert_int_equal(cost.bytes, (6 + 4) * 2 * 32 * 2 + 2 * 4 * 128 * 4);
    op.attn.window = 0;
    op.attn.v_in_k = true;
    assert_int_equal(sh_op_cost(&p, &op, &shape).bytes, 34 * 2 * 16 * 2 + 2 * 4 * 128 * 4);
    p.encoder = true;
    shape = sh_step_shape(&p, &step, SH_KV_F32);
    assert_int_equal(shape.seen, 3 * 13 + 21);
    assert_int_equal(shape.element_bytes, 4);
}

/* Of 16 experts a row uses 4: one row reads a quarter of them, many rows nearly all. */
static void costs_of_experts(void **state) {
    (void)state;
    struct sh_activation activations[] = {
        {.name = "x", .width = 32}, {.name = "route", .width = 8}, {.name = "out", .width = 4 * 64}};
    struct sh_weight w = {.name = "w", .type = SH_TYPE_F32, .cols = 32, .rows = 16 * 64};
    const struct sh_program p = {.activations = activations, .n_activations = 3, .weights = &w, .n_weights = 1};
    const struct sh_op op = {.kind = SH_OP_EXPERT_MATMUL,
                             .x = 0,
                             .y = 1,
                             .z = SH_NONE,
                             .u = SH_NONE,
                             .t = SH_NONE,
                             .residual = SH_NONE,
                             .bias = SH_NONE,
                             .out = 2,
                             .expert = {.n_expert = 16, .n_used = 4}};
    struct sh_step_shape shape = {.n_rows = 1, .n_sequences = 1};
    const uint64_t one = 64 * 32 * 4, activation_bytes = (32 + 8 + 256) * 4;
    assert_int_equal(sh_op_cost(&p, &op, &shape).bytes, 4 * one + activation_bytes);
    assert_int_equal(sh_op_cost(&p, &op, &shape).macs, 4 * 64 * 32);
    shape.n_rows = 200;
    assert_int_equal(sh_op_cost(&p, &op, &shape).bytes, 16 * one + 200 * activation_bytes); /* all but 10^-24 of them */
}

/* ---- lines ---- */

static void ops_that_run_as_one_are_one_line(void **state) {
    (void)state;
    struct sh_program *p = sh_program_create();
    struct sh_builder b = {.program = p, .layer = 0, .err = &error};
    const uint32_t w = sh_build_matrix(&b, 32, 32, "blk.0.up.weight"), v = sh_build_matrix(&b, 32, 32, "blk.1.up.weight");
    const uint32_t x = sh_build_embed(&b, w, SH_EMBED_TOKEN, "embd");
    const uint32_t n = sh_build_norm(&b, SH_NORM_RMS, x, 1, SH_NONE, SH_NONE, 1e-5f, "norm");
    sh_build_matmul(&b, n, w, SH_NONE, "up");
    b.layer = 1;
    sh_build_matmul(&b, n, v, SH_NONE, "up");
    assert_int_equal(b.code, SH_OK);
    struct sh_trace *t = sh_trace_create(p);
    assert_non_null(t);
    const struct sh_step_shape shape = {.n_rows = 2, .n_sequences = 1, .element_bytes = 2};
    sh_trace_add(t, &p->ops[1], 2, NULL, &shape, 100);
    sh_trace_add(t, &p->ops[3], 1, "operands", &shape, 7);
    sh_trace_add(t, &p->ops[2], 1, NULL, &shape, 20);
    sh_trace_add(t, &p->ops[3], 1, NULL, &shape, 30); /* the same weight of another layer */
    sh_trace_add(t, NULL, 0, "sampling", &shape, 1);
    struct sh_op_time lines[8];
    assert_int_equal(sh_trace_lines(t, NULL, 0), 4);
    assert_int_equal(sh_trace_lines(t, lines, 8), 4);
    assert_string_equal(lines[0].op, "norm+matmul");
    assert_string_equal(lines[0].name, "norm+up");
    assert_int_equal(lines[0].macs, 2 * 32 * 32);
    assert_string_equal(lines[1].part, "operands");
    assert_int_equal(lines[1].bytes + lines[1].macs, 0);
    assert_string_equal(lines[2].op, "matmul");
    assert_string_equal(lines[2].name, "up");
    assert_string_equal(lines[2].type, sh_type_info(p->weights[w].type)->name);
    assert_int_equal(lines[2].count, 2);
    assert_int_equal(lines[2].ns, 50);
    assert_int_equal(lines[2].macs, 2 * 2 * 32 * 32);
    assert_string_equal(lines[3].op, "sampling");
    sh_trace_reset(t);
    assert_int_equal(sh_trace_lines(t, lines, 8), 0);
    sh_trace_destroy(t);
    sh_program_destroy(p);
}

/* ---- steps of a model ---- */

static uint64_t macs_of(const struct sh_op_time *lines, uint32_t n, const char *word) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        if (strstr(lines[i].op, word) != NULL) sum += lines[i].macs;
    return sum;
}

static void steps_are_told_op_by_op(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    const struct sh_context_params params = {.size = sizeof params, .trace = "ops"};
    static const int32_t prompt[PROMPT] = {1, 17, 300, 42, 511, 9, 9, 260};
    for (uint32_t d = 0; d < n_devices; d++) {
        struct core_model m;
        core_load(&m, names[d], model_path, &params);
        const uint32_t s = core_sequence(&m);
        core_prefill(&m, s, prompt, PROMPT, 0, NULL, NULL);
        sh_context_reset_op_times(m.context);
        assert_int_equal(sh_context_op_times(m.context, NULL, 0), 0);
        int32_t token = 3;
        const uint64_t begin = sh_now_ns();
        for (uint32_t i = 0; i < STEPS; i++) token = core_step(&m, s, token, SH_ROLE_GENERATED, NULL);
        const uint64_t took = sh_now_ns() - begin;
        struct sh_op_time lines[64];
        const uint32_t n = sh_context_op_times(m.context, lines, 64);
        assert_in_range(n, 3, 64);
        uint64_t ns = 0, counts = 0;
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(lines[i].device, 0);
            assert_int_equal(lines[i].count % STEPS, 0);
            ns += lines[i].ns;
            counts += lines[i].count;
        }
        assert_true(counts >= STEPS * LAYERS);
        assert_in_range(ns, 1, took);
        const uint64_t layer = EMBD * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * EMBD * FF;
        assert_int_equal(macs_of(lines, n, "matmul"), STEPS * (LAYERS * layer + EMBD * VOCAB));
        uint64_t seen = 0;
        for (uint32_t i = 0; i < STEPS; i++) seen += PROMPT + i + 1;
        assert_int_equal(macs_of(lines, n, "attention"), LAYERS * seen * HEADS * 2 * HEAD_DIM);
        core_unload(&m);
    }
}

static void log_line(void *user, enum sh_log_level level, const char *line) {
    if (level == SH_LOG_NOTICE && strncmp(line, "trace: device 0, ", 17) == 0) ++*(int *)user;
}

static void the_environment_asks_for_it(void **state) {
    (void)state;
    struct core_model m;
    core_load(&m, "cpu", model_path, NULL);
    core_step(&m, core_sequence(&m), 3, SH_ROLE_PROMPT, NULL);
    assert_int_equal(sh_context_op_times(m.context, NULL, 0), 0);
    sh_context_reset_op_times(m.context);
    core_unload(&m);

    int logged = 0;
    sh_set_log(log_line, &logged, SH_LOG_NOTICE);
    setenv("SHIMMY_TRACE", "ops", 1);
    core_load(&m, "cpu", model_path, NULL);
    core_step(&m, core_sequence(&m), 3, SH_ROLE_PROMPT, NULL);
    const uint32_t n = sh_context_op_times(m.context, NULL, 0);
    assert_true(n > 3);
    core_unload(&m);
    sh_set_log(NULL, NULL, SH_LOG_ERROR);
    assert_int_equal(logged, n);

    const struct sh_context_params none = {.size = sizeof none, .trace = ""};
    core_load(&m, "cpu", model_path, &none);
    core_step(&m, core_sequence(&m), 3, SH_ROLE_PROMPT, NULL);
    assert_int_equal(sh_context_op_times(m.context, NULL, 0), 0);

    struct sh_context *context = NULL;
    setenv("SHIMMY_TRACE", "everything", 1);
    assert_int_equal(sh_context_create(m.model, NULL, &context, &error), SH_ERR_INVALID);
    assert_null(context);
    assert_string_equal(error.message, "SHIMMY_TRACE: found \"everything\", expected \"ops\"");
    unsetenv("SHIMMY_TRACE");
    const struct sh_context_params wrong = {.size = sizeof wrong, .trace = "op"};
    assert_int_equal(sh_context_create(m.model, &wrong, &context, &error), SH_ERR_INVALID);
    assert_string_equal(error.message, "context: trace: found \"op\", expected \"ops\"");
    core_unload(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_of_a_product),
        cmocka_unit_test(shapes_and_attention),
        cmocka_unit_test(costs_of_experts),
        cmocka_unit_test(ops_that_run_as_one_are_one_line),
        cmocka_unit_test_setup(steps_are_told_op_by_op, no_environment),
        cmocka_unit_test_setup(the_environment_asks_for_it, no_environment),
    };
    return cmocka_run_group_tests(tests, write_model, NULL);
}
