/*
 * Every weight type on the Vulkan executor: blocks of random bytes, which hold subnormal, infinite and undefined scales too, and one of
 * zeros come out of EMBED as the reference dequantisation has them, bit for bit. What is no number there need only be no number; what is
 * subnormal as a float may be zero, as many devices flush.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { BLOCKS = 10000, ROWS = 500 };

static bool same(float got, float want) {
    if (isnan(want)) return isnan(got);
    if (memcmp(&got, &want, sizeof got) == 0) return true;
    return got == want || (got == 0.0f && fabsf(want) < 0x1p-126f);
}

static void compare(const char *name, const float *got, const float *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!same(got[i], want[i])) fail_msg("%s: element %zu is %.9g, expected %.9g", name, i, (double)got[i], (double)want[i]);
}

/* A table of ROWS rows whose first row, or rows, a step takes by `index`. */
struct table {
    struct ops ops;
    struct ops_model m;
    uint32_t out, cols, rows;
    float *want;
    void *data;
};
static void make_table(struct table *t, struct sh_device *device, uint32_t type, uint32_t cols, uint32_t rows,
                       enum sh_embed_index index) {
    struct test_rng rng = {type * 31 + index + 1};
    const uint64_t bytes = sh_type_row_bytes(type, cols) * rows;
    t->cols = cols;
    t->rows = rows;
    uint8_t *data = t->data = malloc(bytes);
    t->want = malloc((size_t)cols * rows * sizeof *t->want);
    assert_true(data && t->want);
    for (uint64_t i = 0; i < bytes; i++) data[i] = (uint8_t)test_random(&rng);
    memset(data, 0, sh_type_info(type)->block_bytes);
    assert_true(sh_dequantize(type, data, t->want, (uint64_t)cols * rows));
    ops_init(&t->ops);
    t->ops.program.n_vocab = rows;
    struct sh_op op = ops_op(SH_OP_EMBED);
    op.embed = index;
    op.w = ops_weight(&t->ops, type, cols, rows, data);
    op.out = t->out = ops_activation(&t->ops, cols, SH_ROWS_ALL);
    ops_push(&t->ops, &op);
    ops_load(&t->ops, device, SH_KV_F32, rows, 2, &t->m);
}
static void free_table(struct table *t) {
    ops_unload(&t->m);
    free(t->data);
    free(t->want);
}

static void elements_of_every_type(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    for (uint32_t type = 0; type < 64; type++) {
        const struct sh_type_info *info = sh_type_info(type);
        if (!info || !info->computable || !ops_wanted(info->name)) continue;
        const uint32_t block = info->block_elements, cols = block == 1 ? 77 : BLOCKS / ROWS * block;
        struct table t;
        make_table(&t, vulkan, type, cols, ROWS, SH_EMBED_TOKEN);
        int32_t tokens[ROWS];
        for (int32_t i = 0; i < ROWS; i++) tokens[i] = ROWS - 1 - i;
        const struct ops_step step = {.n_rows = ROWS, .tokens = tokens};
        float *got = ops_run(&t.ops, &t.m, &step, t.out);
        for (uint32_t r = 0; r < ROWS; r++)
            compare(info->name, got + (size_t)r * cols, t.want + (size_t)(ROWS - 1 - r) * cols, cols);
        free(got);
        free_table(&t);
    }
    ops_close(vulkan);
}

/* Rows by position, which is clamped to the table, and row 0; the table in many parts. A row's own embedding input changes nothing. */
static void embed_by_position_and_first_row(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    enum { N = 40, COLS = 64, STEP = 7 };
    float *own = calloc((size_t)STEP * 32, sizeof *own);
    assert_non_null(own);
    sh_vk_part_bytes_for_test(3000);
    for (int first = 0; first < 2; first++) {
        struct table t;
        make_table(&t, vulkan, SH_TYPE_Q8_0, COLS, N, first ? SH_EMBED_FIRST : SH_EMBED_POSITION);
        assert_true(t.m.model->weights[0].n_parts > 1);
        const struct ops_step step = {.n_rows = STEP, .position = N - 4, .embeddings = own};
        float *got = ops_run(&t.ops, &t.m, &step, t.out);
        for (uint32_t r = 0; r < STEP; r++) {
            const uint32_t row = first ? 0 : N - 4 + r < N ? N - 4 + r : N - 1;
            compare(first ? "first" : "position", got + (size_t)r * COLS, t.want + (size_t)row * COLS, COLS);
        }
        free(got);
        free_table(&t);
    }
    sh_vk_part_bytes_for_test(0);
    free(own);
    ops_close(vulkan);
}

static void a_type_without_a_layout_is_refused_by_name(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    struct ops ops;
    ops_init(&ops);
    struct sh_op op = ops_op(SH_OP_EMBED);
    op.w = ops_weight(&ops, 9, 32, 4, NULL); /* Q8_1 */
    op.out = ops_activation(&ops, 32, SH_ROWS_ALL);
    ops_push(&ops, &op);
    const struct sh_segment segment = {.program = &ops.program, .n_ops = 1};
    struct sh_exec_model *model = NULL;
    struct sh_error err = {0};
    assert_int_equal(vulkan->executor->model_create(vulkan, &segment, 1, &model, &err), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "Q8_1"));
    assert_null(model);
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elements_of_every_type),
        cmocka_unit_test(embed_by_position_and_first_row),
        cmocka_unit_test(a_type_without_a_layout_is_refused_by_name),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
