/* What a row may ask for, and rows that come as embeddings; captured activations; the rotation table. */
#include "compute/gguf/quant.h"
#include "compute/model/spec.h"
#include "compute/sample/sample.h"
#include "compute/state/context.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;
static char model_path[256];

static int write_model(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.layers = 3;
    snprintf(model_path, sizeof model_path, "%s", test_scratch("outputs.gguf"));
    core_ok(genmodel_write(model_path, &p, &error), &error);
    return 0;
}

static const int32_t prompt[] = {1, 17, 300, 42, 511, 9, 9, 260};
enum { N = sizeof prompt / sizeof prompt[0] };

static struct sh_results run(struct core_model *m, const struct sh_row *rows, uint32_t n, sh_ticket *ticket) {
    struct sh_results results;
    core_ok(sh_submit(m->context, &(struct sh_batch){rows, n}, ticket, &error), &error);
    core_ok(sh_wait(m->context, *ticket, -1, &results, &error), &error);
    return results;
}

/* Rows give what they ask for and nothing else, in row order. */
static void rows_get_what_they_ask_for(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++) {
        struct core_model m;
        core_load(&m, names[d], model_path, NULL);
        const uint32_t s = core_sequence(&m);
        struct sh_row rows[N];
        static const uint32_t wishes[N] = {0,
                                           SH_OUT_LOGITS,
                                           SH_OUT_HIDDEN,
                                           SH_OUT_SAMPLE,
                                           0,
                                           SH_OUT_SAMPLE | SH_OUT_LOGPROBS,
                                           SH_OUT_LOGITS | SH_OUT_HIDDEN,
                                           SH_OUT_SAMPLE | SH_OUT_LOGPROBS | SH_OUT_LOGITS | SH_OUT_HIDDEN};
        for (uint32_t i = 0; i < N; i++)
            rows[i] = (struct sh_row){.sequence = s, .token = prompt[i], .position = i, .outputs = wishes[i], .n_top = i};
        float *plain = calloc((size_t)N * m.n_vocab, sizeof *plain);
        assert_non_null(plain);
        core_prefill(&m, core_sequence(&m), prompt, N, 0, plain, NULL);
        sh_ticket ticket;
        const struct sh_results results = run(&m, rows, N, &ticket);
        assert_int_equal(results.count, 6);
        assert_true(results.step_ns > 0);
        uint32_t at = 0;
        for (uint32_t i = 0; i < N; i++) {
            if (wishes[i] == 0) continue;
            const struct sh_result *r = &results.items[at++];
            const float *expected = plain + (size_t)i * m.n_vocab;
            assert_int_equal(r->row, i);
            assert_int_equal(r->position, i);
            assert_int_equal(r->sequence, s);
            assert_int_equal(r->logits != NULL, (wishes[i] & SH_OUT_LOGITS) != 0);
            assert_int_equal(r->hidden != NULL, (wishes[i] & SH_OUT_HIDDEN) != 0);
            if (r->logits != NULL) assert_memory_equal(r->logits, expected, m.n_vocab * sizeof *expected);
            int32_t best = 0;
            for (uint32_t t = 1; t < m.n_vocab; t++)
                if (expected[t] > expected[best]) best = (int32_t)t;
            assert_int_equal(r->token, wishes[i] & SH_OUT_SAMPLE ? best : -1);
            if ((wishes[i] & SH_OUT_LOGPROBS) == 0) {
                assert_int_equal(r->n_top, 0);
                continue;
            }
            struct sh_top top[64];
            float logprob;
            sh_logprobs(expected, m.n_vocab, best, &logprob, top, i);
            assert_true(r->logprob == logprob);
            assert_int_equal(r->n_top, i);
            assert_memory_equal(r->top, top, i * sizeof top[0]);
        }
        free(plain);
        core_unload(&m);
    }
}

/* An embedding row that holds what the token's row of the table holds is that token. */
static void embeddings_stand_for_tokens(void **state) {
    (void)state;
    struct sh_gguf *g = NULL;
    core_ok(sh_gguf_open(model_path, &g, &error), &error);
    const struct sh_tensor *t = sh_gguf_tensor(g, "token_embd.weight");
    assert_non_null(t);
    const uint32_t width = (uint32_t)t->dims[0];
    const uint64_t row_bytes = sh_type_row_bytes(t->type, width);
    void *stored = malloc(row_bytes);
    float *embeddings = calloc((size_t)N * width, sizeof *embeddings);
    assert_true(stored != NULL && embeddings != NULL);
    for (uint32_t i = 0; i < N; i++) {
        core_ok(sh_gguf_read(g, t, (uint64_t)prompt[i] * row_bytes, stored, row_bytes, &error), &error);
        assert_true(sh_dequantize(t->type, stored, embeddings + (size_t)i * width, width));
    }
    free(stored);
    sh_gguf_close(g);
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++) {
        struct core_model m;
        core_load(&m, names[d], model_path, NULL);
        float *plain = calloc((size_t)2 * m.n_vocab, sizeof *plain);
        assert_non_null(plain);
        core_prefill(&m, core_sequence(&m), prompt, N, 0, NULL, plain);
        const uint32_t s = core_sequence(&m);
        struct sh_row rows[N];
        for (uint32_t i = 0; i < N; i++) {
            const bool as_token = i == 2 || i == 5; /* mixed */
            rows[i] = (struct sh_row){.sequence = s,
                                      .input = as_token ? SH_INPUT_TOKEN : SH_INPUT_EMBEDDING,
                                      .token = prompt[i],
                                      .embedding = embeddings + (size_t)i * width,
                                      .position = i,
                                      .outputs = i + 1 == N ? SH_OUT_LOGITS : 0};
        }
        float *lent = calloc((size_t)N * width, sizeof *lent); /* freed at once: it is read during the submit */
        assert_non_null(lent);
        memcpy(lent, embeddings, (size_t)N * width * sizeof *lent);
        for (uint32_t i = 0; i < N; i++) rows[i].embedding = lent + (size_t)i * width;
        sh_ticket ticket;
        struct sh_results results;
        core_ok(sh_submit(m.context, &(struct sh_batch){rows, N}, &ticket, &error), &error);
        memset(lent, 0xFF, (size_t)N * width * sizeof *lent);
        free(lent);
        core_ok(sh_wait(m.context, ticket, -1, &results, &error), &error);
        assert_memory_equal(results.items[0].logits, plain, m.n_vocab * sizeof *plain);
        free(plain);
        core_unload(&m);
    }
    free(embeddings);
}

/* Captured activations: the hidden state by its name, and the residual stream across a cut, equal on both sides and in one
 * segment. */
static void captured_activations(void **state) {
    (void)state;
    static const char *const wanted[] = {"output_norm", "blk.0.ffn_residual", "blk.2.attn", "token_embd", "blk.1.attn_output"};
    enum { WANTED = sizeof wanted / sizeof wanted[0] };
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++) {
        float *values[2][WANTED] = {{0}};
        for (int split = 0; split < 2; split++) {
            struct core_model m;
            char pair[128];
            snprintf(pair, sizeof pair, "%s+%s", names[d], names[d]);
            if (split == 0) core_load(&m, names[d], model_path, NULL);
            else core_load_split(&m, pair, model_path, NULL);
            core_ok(sh_context_capture(m.context, wanted, WANTED, &error), &error);
            const uint32_t s = core_sequence(&m);
            struct sh_row rows[N];
            for (uint32_t i = 0; i < N; i++)
                rows[i] =
                    (struct sh_row){.sequence = s, .token = prompt[i], .position = i, .outputs = i % 3 == 0 ? SH_OUT_HIDDEN : 0};
            sh_ticket ticket;
            const struct sh_results results = run(&m, rows, N, &ticket);
            for (uint32_t w = 0; w < WANTED; w++) {
                uint32_t n_rows = 0, width = 0;
                const float *found = sh_context_captured(m.context, ticket, w, &n_rows, &width);
                if (w == 4) { /* fused into the residual: materialised by nobody, or as it is */
                    if (found == NULL) continue;
                } else {
                    assert_non_null(found);
                }
                assert_int_equal(n_rows, w == 0 ? results.count : N);
                assert_int_equal(width, 256);
                if (w == 0)
                    for (uint32_t i = 0; i < results.count; i++)
                        assert_memory_equal(found + (size_t)i * width, results.items[i].hidden, width * sizeof *found);
                values[split][w] = calloc((size_t)n_rows * width, sizeof *found);
                assert_non_null(values[split][w]);
                memcpy(values[split][w], found, (size_t)n_rows * width * sizeof *found);
                if (split == 1 && values[0][w] != NULL)
                    assert_memory_equal(values[0][w], found, (size_t)n_rows * width * sizeof *found);
            }
            const char *const unknown[] = {"blk.9.attn"};
            assert_int_equal(sh_context_capture(m.context, unknown, 1, &error), SH_ERR_NOT_FOUND);
            uint32_t unused[2];
            assert_null(sh_context_captured(m.context, ticket + 1, 0, &unused[0], &unused[1]));
            assert_null(sh_context_captured(m.context, ticket, WANTED, &unused[0], &unused[1]));
            core_ok(sh_context_capture(m.context, NULL, 0, &error), &error);
            core_unload(&m);
        }
        for (int split = 0; split < 2; split++)
            for (int w = 0; w < WANTED; w++) free(values[split][w]);
    }
}

/* All activations of a step by name, NULL where the executor keeps none; *rows of each. */
static float **all_activations(const char *device, uint32_t *n, uint32_t *sizes, char tier[32]) {
    const struct sh_context_params params = {.size = sizeof params, .kv_type = SH_KV_F32};
    struct core_model m;
    core_load(&m, device, model_path, &params);
    snprintf(tier, 32, "%s", sh_device_get_info(m.devices[0])->tier);
    const struct sh_program *p = m.context->model->program;
    *n = p->n_activations;
    const char *names[256];
    assert_in_range(*n, 1, 256);
    for (uint32_t a = 0; a < *n; a++) names[a] = p->activations[a].name;
    core_ok(sh_context_capture(m.context, names, *n, &error), &error);
    struct sh_row rows[N];
    const uint32_t s = core_sequence(&m);
    for (uint32_t i = 0; i < N; i++)
        rows[i] = (struct sh_row){
            .sequence = s, .token = prompt[i], .position = i, .outputs = i % 2 == 0 ? SH_OUT_LOGITS | SH_OUT_HIDDEN : 0};
    sh_ticket ticket;
    run(&m, rows, N, &ticket);
    float **values = calloc(*n, sizeof *values);
    assert_non_null(values);
    for (uint32_t a = 0; a < *n; a++) {
        uint32_t n_rows = 0, width = 0;
        const float *found = sh_context_captured(m.context, ticket, a, &n_rows, &width);
        if (found == NULL) continue;
        sizes[a] = n_rows * width;
        values[a] = calloc(sizes[a], sizeof *found);
        assert_non_null(values[a]);
        memcpy(values[a], found, sizes[a] * sizeof *found);
    }
    core_unload(&m);
    return values;
}

/*
 * Every executor against the scalar reference, activation by activation: the root mean square of the difference over that of the
 * values, with an f32 cache (a difference of 1e-7 may round to another half). Float activations leave sums in another order, 1e-6
 * or so an op; 8-bit ones are off by up to 1/254 of a block's largest value, at most 1e-2 of its rms, at every matmul, and there
 * are a dozen between the first and the last.
 */
static void executors_agree_at_named_activations(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    uint32_t sizes[256] = {0}, n, compared = 0;
    char tier[32];
    float **reference = all_activations("cpu-scalar", &n, sizes, tier);
    for (uint32_t d = 0; d < n_devices; d++) {
        uint32_t found_n = 0, found_sizes[256] = {0};
        float **found = all_activations(names[d], &found_n, found_sizes, tier);
        assert_int_equal(found_n, n);
        const double allowed = strcmp(tier, "scalar") == 0 ? 0 : strcmp(tier, "base") == 0 ? 1e-5 : 5e-2;
        uint32_t here = 0;
        for (uint32_t a = 0; a < n; a++) {
            if (reference[a] == NULL || found[a] == NULL) continue;
            assert_int_equal(sizes[a], found_sizes[a]);
            double difference = 0, size = 0;
            for (uint32_t i = 0; i < sizes[a]; i++) {
                const double x = (double)reference[a][i], y = (double)found[a][i];
                difference += (x - y) * (x - y);
                size += x * x;
            }
            const double off = sqrt(difference / size);
            if (!(off <= allowed))
                fail_msg("%s: activation %u of %u is off by %.3g of its size, allowed %.3g", names[d], a, n, off, allowed);
            here++;
        }
        assert_true(here > n / 2);
        compared += here;
        for (uint32_t a = 0; a < n; a++) free(found[a]);
        free(found);
    }
    assert_true(compared > 0);
    for (uint32_t a = 0; a < n; a++) free(reference[a]);
    free(reference);
}

/* The table against cos and sin by the definition; a factor and an extension of f make position f * p what p was. */
static void rotation_tables(void **state) {
    (void)state;
    enum { PAIRS = 16, CONTEXT = 64 };
    const struct sh_rope_spec plain = sh_rope_plain(2 * PAIRS, 10000);
    struct sh_rope_spec linear = plain, extended = plain, both = plain;
    linear.scaling = SH_ROPE_LINEAR;
    linear.factor = 4;
    extended.extend = 4;
    both.scaling = SH_ROPE_LINEAR;
    both.factor = both.extend = 2;
    float *p = sh_rope_table(&plain, NULL, CONTEXT);
    float *scaled[] = {sh_rope_table(&linear, NULL, CONTEXT), sh_rope_table(&extended, NULL, CONTEXT),
                       sh_rope_table(&both, NULL, CONTEXT)};
    float factors[PAIRS];
    for (int i = 0; i < PAIRS; i++) factors[i] = (float)(1 + i);
    float *divided = sh_rope_table(&plain, factors, CONTEXT);
    assert_true(p != NULL && divided != NULL && scaled[0] != NULL && scaled[1] != NULL && scaled[2] != NULL);
    for (int at = 0; at < CONTEXT; at++) {
        for (int i = 0; i < PAIRS; i++) {
            const double angle = at * pow(10000, -2.0 * i / (2 * PAIRS));
            const float *pair = p + (size_t)at * 2 * PAIRS + 2 * i, *other = divided + (size_t)at * 2 * PAIRS + 2 * i;
            assert_true(fabs((double)pair[0] - cos(angle)) < 1e-6 && fabs((double)pair[1] - sin(angle)) < 1e-6);
            assert_true(fabs((double)other[0] - cos(angle / (1 + i))) < 1e-6 &&
                        fabs((double)other[1] - sin(angle / (1 + i))) < 1e-6);
        }
        for (int k = 0; k < 3 && at % 4 == 0; k++)
            assert_memory_equal(scaled[k] + (size_t)at * 2 * PAIRS, p + (size_t)at / 4 * 2 * PAIRS, 2 * PAIRS * sizeof *p);
    }
    free(p);
    free(divided);
    for (int k = 0; k < 3; k++) free(scaled[k]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_get_what_they_ask_for),
        cmocka_unit_test(embeddings_stand_for_tokens),
        cmocka_unit_test(captured_activations),
        cmocka_unit_test(executors_agree_at_named_activations),
        cmocka_unit_test(rotation_tables),
    };
    return cmocka_run_group_tests_name("core_outputs", tests, write_model, NULL);
}
