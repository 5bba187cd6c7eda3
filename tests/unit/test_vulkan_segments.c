/*
 * A model cut into many segments that go back and forth between two executor models, as between two devices: the logits are those of the
 * model in one piece bit for bit, also where the steps of both slots interleave segment by segment; and captures of a segment.
 */
#include "compute/vulkan/exec.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s:%d: %s", __FILE__, __LINE__, err.message);                                             \
    } while (0)

enum { ROWS = 40, PAGES = 2 };

static const struct tiny_params small = {
    .n_layers = 3,
    .n_embd = 96,
    .n_heads = 6,
    .n_kv_heads = 2,
    .head_dim = 16,
    .n_ff = 160,
    .n_vocab = 203,
    .context = 64,
    .type = SH_TYPE_Q8_0,
    .pairing = SH_ROPE_HALVES,
    .seed = 11,
};

/* Both sides of the cut, on one Vulkan device. */
struct halves {
    struct tiny *t;
    struct sh_device *device;
    struct sh_segment *segments;
    uint32_t n_segments;
    struct sh_exec_model *models[2];
    struct sh_exec_context *contexts[2];
};

static struct sh_exec_model *load(const struct halves *h, uint32_t side) {
    const struct sh_executor *e = h->device->executor;
    struct sh_segment *own = calloc(h->n_segments, sizeof *own);
    uint32_t n = 0, *weights, count;
    struct sh_exec_model *model = NULL;
    struct sh_error err = {0};
    assert_non_null(own);
    for (uint32_t s = 0; s < h->n_segments; s++)
        if (h->segments[s].device == side) own[n++] = h->segments[s];
    OK(e->model_create(h->device, own, n, &model, &err));
    OK(sh_segment_weights(own, n, &weights, &count, &err));
    for (uint32_t i = 0; i < count; i++)
        OK(e->weight_rows(model, weights[i], 0, h->t->program->weights[weights[i]].rows, h->t->data[weights[i]], &err));
    OK(e->model_finish(model, &err));
    free(weights);
    free(own);
    return model;
}

/* Side 1 has layer 1 but for its gated unit, and the gated units of the other layers. */
static struct halves open_halves(const char *test) {
    struct halves h = {.t = tiny_create(&small), .device = ops_open_vulkan(test, false)};
    const struct sh_program *p = h.t->program;
    uint32_t *device_of_op = calloc(p->n_ops, sizeof *device_of_op);
    struct sh_error err = {0};
    assert_non_null(device_of_op);
    for (uint32_t i = 0; i < p->n_ops; i++) device_of_op[i] = (p->ops[i].layer == 1) != (p->ops[i].kind == SH_OP_GLU);
    OK(sh_program_cut(p, device_of_op, &h.segments, &h.n_segments, &err));
    assert_int_equal(h.n_segments, 9);
    free(device_of_op);
    const struct sh_exec_context_params params = {
        .max_rows = ROWS, .max_outputs = ROWS, .max_sequences = 1, .max_pages_per_sequence = PAGES};
    for (uint32_t side = 0; side < 2; side++) {
        h.models[side] = load(&h, side);
        OK(h.device->executor->context_create(h.models[side], &params, &h.contexts[side], &err));
        OK(h.device->executor->pool_reserve(h.contexts[side], 0, 2 * PAGES, &err));
    }
    return h;
}

static void close_halves(struct halves *h) {
    for (int side = 0; side < 2; side++) {
        h->device->executor->context_destroy(h->contexts[side]);
        h->device->executor->model_destroy(h->models[side]);
    }
    free(h->segments);
    ops_close(h->device);
    tiny_destroy(h->t);
}

/* A step on its way through the segments. */
struct journey {
    uint32_t slot, n_rows, position;
    const int32_t *tokens;
    uint32_t first_page;
    float **values; /* [n_activations]: what has crossed so far */
    float *logits;  /* [n_rows][n_vocab] after the last segment */
};

static void advance(const struct halves *h, struct journey *j, uint32_t s) {
    const struct sh_segment *segment = &h->segments[s];
    const struct sh_executor *e = h->device->executor;
    const bool last = s + 1 == h->n_segments;
    uint32_t index = 0;
    for (uint32_t i = 0; i < s; i++) index += h->segments[i].device == segment->device;
    struct sh_step_row rows[ROWS];
    struct sh_step_output outputs[ROWS];
    const uint32_t pages[PAGES] = {j->first_page, j->first_page + 1};
    const uint32_t *tables[] = {pages};
    for (uint32_t r = 0; r < j->n_rows; r++) {
        rows[r] = (struct sh_step_row){.token = j->tokens[r], .sampled_from = SH_NONE, .position = j->position + r};
        outputs[r] = (struct sh_step_output){.row = r, .want_logits = true};
    }
    const struct sh_step_sequence sequence = {.n_rows = j->n_rows, .pages = tables, .n_pages = PAGES};
    struct sh_step step = {.rows = rows,
                           .n_rows = j->n_rows,
                           .sequences = &sequence,
                           .n_sequences = 1,
                           .outputs = outputs,
                           .n_outputs = last ? j->n_rows : 0};
    for (uint32_t i = 0; i < segment->n_inputs; i++) {
        step.inputs[i] = j->values[segment->inputs[i]];
        assert_non_null(step.inputs[i]);
    }
    struct sh_exec_context *context = h->contexts[segment->device];
    struct sh_step_result result;
    struct sh_error err = {0};
    OK(e->submit(context, j->slot, index, &step, &err));
    OK(e->wait(context, j->slot, -1, &result, &err));
    for (uint32_t i = 0; i < segment->n_outputs; i++) {
        const uint32_t a = segment->outputs[i];
        const size_t bytes = (size_t)j->n_rows * h->t->program->activations[a].width * sizeof(float);
        free(j->values[a]);
        j->values[a] = malloc(bytes);
        assert_non_null(j->values[a]);
        memcpy(j->values[a], result.outputs[i], bytes);
    }
    for (uint32_t r = 0; last && r < j->n_rows; r++)
        memcpy(j->logits + (size_t)r * small.n_vocab, result.logits[r], small.n_vocab * sizeof(float));
}

static void start(const struct halves *h, struct journey *j) {
    j->values = calloc(h->t->program->n_activations, sizeof *j->values);
    j->logits = malloc((size_t)j->n_rows * small.n_vocab * sizeof *j->logits);
    assert_true(j->values && j->logits);
}
static void finish(const struct halves *h, struct journey *j, const float *want) {
    assert_memory_equal(j->logits, want, (size_t)j->n_rows * small.n_vocab * sizeof *want);
    for (uint32_t a = 0; a < h->t->program->n_activations; a++) free(j->values[a]);
    free(j->values);
    free(j->logits);
}

/* Two prompts of the length that the steps of both slots take, then a token each, in one piece. */
static void in_one_piece(const struct halves *h, const int32_t tokens[2][ROWS], float *want[2][2]) {
    const struct sh_segment segment = tiny_segment(h->t);
    struct sh_exec_model *model = tiny_load(h->t, h->device, &segment);
    const struct sh_exec_context_params params = {
        .max_rows = ROWS, .max_outputs = ROWS, .max_sequences = 1, .max_pages_per_sequence = PAGES};
    struct sh_exec_context *context = NULL;
    struct sh_error err = {0};
    OK(h->device->executor->context_create(model, &params, &context, &err));
    for (uint32_t i = 0; i < 2; i++) {
        want[i][0] = tiny_run(h->t, h->device, context, i, tokens[i], 33, 0, i * PAGES, SH_ROLE_PROMPT);
        want[i][1] = tiny_run(h->t, h->device, context, i, tokens[i] + 33, 1, 33, i * PAGES, SH_ROLE_GENERATED);
    }
    h->device->executor->context_destroy(context);
    h->device->executor->model_destroy(model);
}

static void there_and_back_is_the_same(void **state) {
    (void)state;
    struct halves h = open_halves(__func__);
    int32_t tokens[2][ROWS];
    for (uint32_t i = 0; i < ROWS; i++) {
        tokens[0][i] = (int32_t)(i * 31 % small.n_vocab);
        tokens[1][i] = (int32_t)(i * 57 % small.n_vocab);
    }
    float *want[2][2];
    in_one_piece(&h, (const int32_t(*)[ROWS])tokens, want);
    for (uint32_t phase = 0; phase < 2; phase++) {
        struct journey steps[2];
        for (uint32_t i = 0; i < 2; i++) {
            steps[i] = (struct journey){.slot = i,
                                        .n_rows = phase ? 1 : 33,
                                        .position = phase ? 33 : 0,
                                        .tokens = tokens[i] + (phase ? 33 : 0),
                                        .first_page = i * PAGES};
            start(&h, &steps[i]);
        }
        for (uint32_t s = 0; s < h.n_segments; s++)
            for (uint32_t i = 0; i < 2; i++) advance(&h, &steps[i], s);
        for (uint32_t i = 0; i < 2; i++) {
            finish(&h, &steps[i], want[i][phase]);
            free(want[i][phase]);
        }
    }
    close_halves(&h);
}

/* Of a capture that another segment makes there is nothing; of its own, what it makes. */
static void captures_belong_to_their_segment(void **state) {
    (void)state;
    struct halves h = open_halves(__func__);
    const struct sh_executor *e = h.device->executor;
    const struct sh_program *p = h.t->program;
    const uint32_t capture[2] = {p->ops[0].out, p->ops[p->n_ops - 1].out}, page = 0;
    const uint32_t *tables[] = {&page};
    const struct sh_step_row row = {.token = 5, .sampled_from = SH_NONE};
    const struct sh_step_sequence sequence = {.n_rows = 1, .pages = tables, .n_pages = 1};
    const struct sh_step step = {
        .rows = &row, .n_rows = 1, .sequences = &sequence, .n_sequences = 1, .capture = capture, .n_capture = 2};
    struct sh_step_result result;
    struct sh_error err = {0};
    OK(e->submit(h.contexts[0], 0, 0, &step, &err));
    OK(e->wait(h.contexts[0], 0, -1, &result, &err));
    assert_non_null(result.captured[0]);
    assert_null(result.captured[1]);
    float expected[96];
    const struct sh_weight *w = &p->weights[p->ops[0].w];
    assert_true(sh_dequantize(w->type, (const uint8_t *)h.t->data[p->ops[0].w] + 5 * sh_type_row_bytes(w->type, w->cols), expected, 96));
    assert_memory_equal(result.captured[0], expected, sizeof expected);
    close_halves(&h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back_is_the_same),
        cmocka_unit_test(captures_belong_to_their_segment),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
