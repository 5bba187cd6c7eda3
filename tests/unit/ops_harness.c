#include "tests/unit/ops_harness.h"

#include "compute/vulkan/vk.h"
#include "tests/unit/tiny_llama.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

void ops_init(struct ops *ops) {
    memset(ops, 0, sizeof *ops);
    ops->program = (struct sh_program){.activations = ops->activations,
                                       .weights = ops->weights,
                                       .ops = ops->list,
                                       .groups = &ops->group,
                                       .n_layers = 1,
                                       .n_embd = 32,
                                       .n_vocab = 32,
                                       .context_length = 64,
                                       .hidden = SH_NONE,
                                       .logits = SH_NONE};
}

uint32_t ops_activation(struct ops *ops, uint32_t width, enum sh_rows rows) {
    const uint32_t a = ops->program.n_activations++;
    assert_true(a < OPS_MAX);
    ops->activations[a] = (struct sh_activation){.width = width, .rows = rows};
    snprintf(ops->activations[a].name, sizeof ops->activations[a].name, "activation %u", a);
    return a;
}

uint32_t ops_input(struct ops *ops, uint32_t width) {
    assert_true(ops->n_inputs < SH_BOUNDARY_MAX);
    return ops->inputs[ops->n_inputs++] = ops_activation(ops, width, SH_ROWS_ALL);
}

uint32_t ops_weight(struct ops *ops, uint32_t type, uint64_t cols, uint64_t rows, const void *data) {
    const uint32_t w = ops->program.n_weights++;
    assert_true(w < OPS_MAX);
    ops->weights[w] = (struct sh_weight){.type = type, .cols = cols, .rows = rows};
    snprintf(ops->weights[w].name, sizeof ops->weights[w].name, "weight %u", w);
    ops->data[w] = data;
    return w;
}

struct sh_op ops_op(enum sh_op_kind kind) {
    return (struct sh_op){.kind = kind,
                          .blocks = kind == SH_OP_MATMUL,
                          .layer = 0,
                          .x = SH_NONE,
                          .y = SH_NONE,
                          .z = SH_NONE,
                          .u = SH_NONE,
                          .t = SH_NONE,
                          .out = SH_NONE,
                          .residual = SH_NONE,
                          .w = SH_NONE,
                          .bias = SH_NONE};
}

void ops_push(struct ops *ops, const struct sh_op *op) {
    assert_true(ops->program.n_ops < OPS_MAX);
    ops->list[ops->program.n_ops++] = *op;
}

struct sh_device *ops_open_cpu(void) {
    struct sh_device_info info;
    sh_cpu_describe(&info);
    const struct sh_device_params params = {.size = sizeof params, .info = &info, .tier = "scalar", .threads = 2};
    struct sh_device *device = NULL;
    struct sh_error err = {0};
    OK(sh_cpu_open(&params, &device, &err));
    return device;
}

static struct sh_device *open_vulkan(const char *test, bool validation, const char *tier) {
    struct sh_device_info infos[16];
    struct sh_error err = {0};
    uint32_t count = 0, chosen = 0;
    const char *name = getenv("SHIMMY_TEST_VULKAN");
    if (!name || !*name) name = "llvmpipe";
    OK(sh_vulkan_enumerate(infos, SH_COUNT(infos), &count, &err));
    if (sh_device_select(infos, count, name, &chosen, &err) != SH_OK) test_skip(test, "no Vulkan device '%s'", name);
    const struct sh_device_params params = {.size = sizeof params, .info = &infos[chosen], .validation = validation, .tier = tier};
    struct sh_device *device = NULL;
    const enum sh_code code = sh_vulkan_open(&params, &device, &err);
    if (code == SH_ERR_UNSUPPORTED && (validation || strcmp(tier, "base") != 0)) test_skip(test, "%s", err.message);
    OK(code);
    sh_vulkan_of(device)->poison = true;
    sh_vulkan_of(device)->like_gpu = true;
    return device;
}

struct sh_device *ops_open_vulkan(const char *test, bool validation) { return open_vulkan(test, validation, "base"); }
struct sh_device *ops_open_vulkan_tier(const char *test, const char *tier) { return open_vulkan(test, false, tier); }

void ops_close(struct sh_device *device) {
    struct sh_device_memory memory;
    device->executor->device_memory(device, &memory);
    assert_int_equal(memory.weights_bytes + memory.cache_bytes + memory.activation_bytes + memory.staging_bytes, 0);
    if (device->info.kind != SH_DEVICE_CPU) {
        assert_int_equal(atomic_load(&sh_vulkan_of(device)->guard_errors), 0);
        assert_int_equal(device->executor->validation_count(device), 0);
    }
    device->executor->device_close(device);
}

void ops_load(const struct ops *ops, struct sh_device *device, enum sh_kv_type kv_type, uint32_t max_rows, uint32_t max_pages,
              struct ops_model *out) {
    const struct sh_executor *e = device->executor;
    struct sh_segment segment = {.program = &ops->program, .n_ops = ops->program.n_ops, .n_inputs = ops->n_inputs};
    memcpy(segment.inputs, ops->inputs, sizeof segment.inputs);
    struct sh_error err = {0};
    max_pages = (uint32_t)sh_max_u64(max_pages, (max_rows + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS);
    *out = (struct ops_model){.device = device};
    OK(e->model_create(device, &segment, 1, &out->model, &err));
    for (uint32_t w = 0; w < ops->program.n_weights; w++) {
        const struct sh_weight *weight = &ops->weights[w];
        const uint64_t row_bytes = sh_type_row_bytes(weight->type, weight->cols);
        uint64_t piece = 1;
        for (uint64_t row = 0; row < weight->rows; row += piece, piece = piece * 5 + 2) {
            piece = sh_min_u64(piece, weight->rows - row);
            OK(e->weight_rows(out->model, w, row, piece, (const uint8_t *)ops->data[w] + row * row_bytes, &err));
        }
    }
    OK(e->model_finish(out->model, &err));
    const struct sh_exec_context_params params = {.kv_type = kv_type,
                                                  .max_rows = max_rows,
                                                  .max_outputs = max_rows,
                                                  .max_sequences = OPS_SEQUENCES,
                                                  .max_pages_per_sequence = max_pages};
    OK(e->context_create(out->model, &params, &out->context, &err));
    if (ops->program.n_groups) OK(e->pool_reserve(out->context, 0, (OPS_SEQUENCES * max_pages + 1) & ~1u, &err));
}

void ops_unload(struct ops_model *m) {
    m->device->executor->context_destroy(m->context);
    m->device->executor->model_destroy(m->model);
    *m = (struct ops_model){0};
}

float *ops_run(const struct ops *ops, struct ops_model *m, const struct ops_step *s, uint32_t activation) {
    struct sh_error err = {0};
    const struct ops_sequence one = {.n_rows = s->n_rows, .position = s->position, .before = SH_NONE}, *list = s->sequences ? s->sequences : &one;
    const uint32_t n_sequences = s->sequences ? s->n_sequences : 1, n_out = s->out_rows ? s->n_out : s->n_rows;
    assert_true(n_sequences <= OPS_SEQUENCES);
    struct sh_step_row *rows = calloc(s->n_rows, sizeof *rows);
    struct sh_step_output *outputs = calloc(n_out, sizeof *outputs);
    uint32_t *pages[OPS_SEQUENCES] = {NULL};
    const uint32_t *tables[OPS_SEQUENCES][1];
    struct sh_step_sequence sequences[OPS_SEQUENCES];
    assert_true(rows && outputs);
    for (uint32_t i = 0, r = 0; i < n_sequences; i++) {
        const bool recurrent = ops->group.kind == SH_STATE_RECURRENT;
        const uint32_t n_pages = (list[i].position + list[i].n_rows + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS;
        pages[i] = calloc(n_pages + 2, sizeof *pages[i]);
        assert_non_null(pages[i]);
        for (uint32_t p = 0; p < n_pages; p++) /* not in order; the pool is even */
            pages[i][p] = p < list[i].n_missing ? SH_NONE : (list[i].first_page + p) ^ 1;
        if (recurrent) {
            pages[i][0] = list[i].before;
            pages[i][1] = list[i].after;
        }
        tables[i][0] = pages[i];
        sequences[i] = (struct sh_step_sequence){.first_row = r, .n_rows = list[i].n_rows, .pages = tables[i], .n_pages = n_pages};
        for (uint32_t n = 0; n < list[i].n_rows; n++, r++)
            rows[r] = (struct sh_step_row){.token = s->tokens ? s->tokens[r] : 0,
                                           .sampled_from = SH_NONE,
                                           .sequence = i,
                                           .position = list[i].position + n,
                                           .embedding = s->embeddings ? s->embeddings + (size_t)r * ops->program.n_embd : NULL};
    }
    for (uint32_t o = 0; o < n_out; o++) {
        if (s->outputs) outputs[o] = s->outputs[o];
        outputs[o].row = s->out_rows ? s->out_rows[o] : o;
    }
    struct sh_step step = {.rows = rows,
                           .n_rows = s->n_rows,
                           .sequences = sequences,
                           .n_sequences = n_sequences,
                           .outputs = outputs,
                           .n_outputs = n_out,
                           .capture = &activation,
                           .n_capture = 1};
    memcpy(step.inputs, s->inputs, sizeof step.inputs);
    OK(m->device->executor->submit(m->context, 0, 0, &step, &err));
    struct sh_step_result result;
    OK(m->device->executor->wait(m->context, 0, -1, &result, &err));
    assert_non_null(result.captured[0]);
    const size_t n =
        (size_t)(ops->activations[activation].rows == SH_ROWS_OUT ? n_out : s->n_rows) * ops->activations[activation].width;
    float *copy = malloc(n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, result.captured[0], n * sizeof *copy);
    if (s->sampled) memcpy(s->sampled, result.tokens, n_out * sizeof *s->sampled);
    free(rows);
    free(outputs);
    for (uint32_t i = 0; i < n_sequences; i++) free(pages[i]);
    return copy;
}

bool ops_wanted(const char *name) {
    const char *filter = getenv("OPS_FILTER");
    return !filter || strstr(name, filter);
}

void ops_compare(const char *name, const float *got, const float *want, const double *bound, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const bool same = memcmp(&got[i], &want[i], sizeof *got) == 0;
        if (same || (bound && fabs((double)got[i] - (double)want[i]) <= bound[i])) continue;
        print_error("%s: element %zu of %zu is %.9g, expected %.9g (within %.3g)\nagain: OPS_FILTER='%s' build/tests/unit/%s\n",
                    name, i, n, (double)got[i], (double)want[i], bound ? bound[i] : 0.0, name, program_invocation_short_name);
        fail();
    }
}

void ops_set_filter(void) {
    const char *filter = getenv("TEST_FILTER");
    if (filter) cmocka_set_test_filter(filter);
}

float *ops_random_floats(size_t n, float amplitude, struct test_rng *rng) {
    float *f = malloc(n * sizeof *f);
    assert_non_null(f);
    for (size_t i = 0; i < n; i++) f[i] = test_uniform(rng, -amplitude, amplitude);
    return f;
}

void *ops_random_matrix(uint32_t type, uint64_t cols, uint64_t rows, struct test_rng *rng) {
    void *data = malloc(sh_type_row_bytes(type, cols) * rows);
    assert_non_null(data);
    test_random_blocks(type, cols * rows, 1.0f, rng, data);
    return data;
}
