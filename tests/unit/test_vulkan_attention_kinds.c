/*
 * Every kind of attention that the Vulkan kernels know against a softmax in double precision over the positions that a row sees: caps,
 * windows (with the pages before them missing), slopes, sinks, both directions, values in keys, large heads. A row's bits depend
 * neither on the pieces that its sequence enters in nor on the sequences beside it: steps of few rows take the split kernels, the others
 * the whole-row kernel. Keys are not rotated here (n_rot 0), and the cache is poisoned with NaN where nothing was stored.
 */
#include "tests/unit/ops_harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24

struct shape {
    uint32_t n_heads, n_kv_heads, k_dim, v_dim, n; /* n rows of the sequence */
    enum sh_kv_type kv_type;
    float softcap;
    uint32_t window;
    bool bidirectional, v_in_k, slopes, sinks;
};

struct data {
    float *in[3]; /* q, k, v; v in k: no v */
    float *slopes, *sinks;
    double *want, *bound;
};

static float stored(const struct shape *s, float x) { return s->kv_type == SH_KV_F16 ? sh_f16_to_f32(sh_f32_to_f16(x)) : x; }

/* Element i of the key or value of a position, as the cache holds it. */
static double key_at(const struct shape *s, const struct data *d, uint32_t t, uint32_t kv, uint32_t i) {
    return (double)stored(s, d->in[1][(t * s->n_kv_heads + kv) * s->k_dim + i]);
}
static double value_at(const struct shape *s, const struct data *d, uint32_t t, uint32_t kv, uint32_t i) {
    return s->v_in_k ? key_at(s, d, t, kv, i) : (double)stored(s, d->in[2][(t * s->n_kv_heads + kv) * s->v_dim + i]);
}

/*
 * One row and head. `off` of a score: a chain of k_dim roundings of sums up to the sum of magnitudes, the scale, the cap (division
 * and tanh: math.glsl; it never widens an error), the slope. A weight is off by that of its own score and of the greatest, by exp's
 * error, and by those of the factors that merge splits, whose exponents together are no larger than the distance to the maximum and
 * which are at most two for each split. The quotient's error follows from the weights'; sums are chains of up to 256 + 64.
 */
static void attend(const struct shape *s, const struct data *d, float scale, uint32_t r, uint32_t head, double *score, double *off) {
    const uint32_t kv = head / (s->n_heads / s->n_kv_heads), reach = s->bidirectional ? s->window / 2 : s->window - 1;
    uint32_t first = s->window && r > reach ? r - reach : 0, end = s->bidirectional ? s->n : r + 1;
    if (s->window && s->bidirectional && end > r + reach + 1) end = r + reach + 1;
    double most = s->sinks ? (double)d->sinks[head] : -1e300, most_off = 0, sum = 0;
    for (uint32_t t = first; t < end; t++) {
        double dot = 0, size = 0;
        for (uint32_t i = 0; i < s->k_dim; i++) {
            const double term = (double)d->in[0][(r * s->n_heads + head) * s->k_dim + i] * key_at(s, d, t, kv, i);
            dot += term;
            size += fabs(term);
        }
        score[t] = dot * (double)scale;
        off[t] = (size * s->k_dim * (double)scale + fabs(score[t])) * EPS;
        if (s->softcap != 0) {
            score[t] = (double)s->softcap * tanh(score[t] / (double)s->softcap);
            off[t] += fabs(score[t]) * (16 + 5 + 2) * EPS;
        }
        if (s->slopes) {
            const double bias = (double)d->slopes[head] * fabs((double)r - (double)t);
            score[t] -= bias;
            off[t] += (fabs(bias) + fabs(score[t])) * EPS;
        }
        most_off = fmax(most_off, off[t]);
        most = fmax(most, score[t]);
    }
    if (s->sinks) sum = exp((double)d->sinks[head] - most);
    for (uint32_t t = first; t < end; t++) sum += exp(score[t] - most);
    const uint32_t splits = s->n / 256 + 2, row = (r * s->n_heads + head) * s->v_dim;
    for (uint32_t i = 0; i < s->v_dim; i++) {
        double y = 0, size = 0, wrong = 0;
        for (uint32_t t = first; t < end; t++) y += exp(score[t] - most) / sum * value_at(s, d, t, kv, i);
        for (uint32_t t = first; t < end; t++) {
            const double p = exp(score[t] - most) / sum, v = value_at(s, d, t, kv, i), away = fabs(score[t] - most);
            wrong += p * (fabs(v) + fabs(y)) * (off[t] + most_off + ((2 * splits + 1) * 3 + 3 * away) * 2 * EPS);
            size += p * fabs(v);
        }
        d->want[row + i] = y;
        d->bound[row + i] = wrong + (size + fabs(y)) * (256 + 64 + 4 * splits + 6) * EPS;
    }
}

/* Makes the program and what it should give. */
static void prepare(const struct shape *s, struct ops *ops, struct data *d) {
    struct test_rng rng = {s->k_dim * 31 + s->n};
    const uint32_t qw = s->n_heads * s->k_dim, kw = s->n_kv_heads * s->k_dim, vw = s->n_kv_heads * s->v_dim;
    *d = (struct data){.in = {ops_random_floats((size_t)s->n * qw, 2, &rng), ops_random_floats((size_t)s->n * kw, 2, &rng),
                              s->v_in_k ? NULL : ops_random_floats((size_t)s->n * vw, 1, &rng)},
                       .slopes = ops_random_floats(s->n_heads, 0.5f, &rng),
                       .sinks = ops_random_floats(s->n_heads, 3, &rng),
                       .want = calloc((size_t)s->n * s->n_heads * s->v_dim, sizeof *d->want),
                       .bound = calloc((size_t)s->n * s->n_heads * s->v_dim, sizeof *d->bound)};
    assert_true(d->want && d->bound);
    ops_init(ops);
    ops->program.encoder = s->bidirectional;
    ops->program.n_groups = 1;
    ops->group = (struct sh_state_group){.kind = s->window && !s->bidirectional ? SH_STATE_WINDOWED : SH_STATE_PAGED,
                                         .n_layers = 2,
                                         .n_kv_heads = s->n_kv_heads,
                                         .k_dim = s->k_dim,
                                         .v_dim = s->v_dim,
                                         .v_in_k = s->v_in_k,
                                         .window = s->window};
    struct sh_op store = ops_op(SH_OP_ROPE_CACHE), attention = ops_op(SH_OP_ATTENTION);
    store.x = ops_input(ops, qw);
    store.y = ops_input(ops, kw);
    if (!s->v_in_k) store.z = ops_input(ops, vw);
    store.out = ops_activation(ops, qw, SH_ROWS_ALL);
    store.attn.layer_in_group = 1; /* the only one that the segment has */
    store.attn.n_heads = s->n_heads;
    store.attn.n_kv_heads = s->n_kv_heads;
    store.attn.k_dim = s->k_dim;
    store.attn.v_dim = s->v_dim;
    store.attn.scale = 1.0f / sqrtf((float)s->k_dim);
    store.attn.softcap = s->softcap;
    store.attn.window = s->window;
    store.attn.bidirectional = s->bidirectional;
    store.attn.v_in_k = s->v_in_k;
    attention.attn = store.attn;
    attention.x = store.out;
    if (s->slopes) attention.w = ops_weight(ops, SH_TYPE_F32, s->n_heads, 1, d->slopes);
    if (s->sinks) attention.bias = ops_weight(ops, SH_TYPE_F32, s->n_heads, 1, d->sinks);
    attention.out = ops_activation(ops, s->n_heads * s->v_dim, SH_ROWS_ALL);
    ops_push(ops, &store);
    ops_push(ops, &attention);
    double *score = calloc(s->n, sizeof *score), *off = calloc(s->n, sizeof *off);
    assert_true(score && off);
    for (uint32_t r = 0; r < s->n; r++)
        for (uint32_t head = 0; head < s->n_heads; head++) attend(s, d, store.attn.scale, r, head, score, off);
    free(score);
    free(off);
}

/* Rows [first, first + rows) of the inputs. */
static void point(const struct ops *ops, const struct data *d, uint32_t first, struct ops_step *step) {
    for (uint32_t i = 0; i < ops->n_inputs; i++)
        step->inputs[i] = d->in[i] + (size_t)first * ops->activations[ops->inputs[i]].width;
}

/* In pieces, the pages before the window forgotten. */
static void in_pieces(const char *name, const struct shape *s, const struct ops *ops, const struct data *d, struct ops_model *m,
                      const float *all) {
    static const uint32_t pieces[] = {1, 8, 3, 20, 9, 1, 2};
    const uint32_t width = s->n_heads * s->v_dim;
    for (uint32_t i = 0, at = 0; at < s->n; i++) {
        const uint32_t rows = (uint32_t)sh_min_u64(i < SH_COUNT(pieces) ? pieces[i] : i % 2 ? 60 : 5, s->n - at);
        const struct ops_sequence piece = {.n_rows = rows,
                                           .position = at,
                                           .first_page = 16,
                                           .n_missing = s->window && at >= s->window ? (at + 1 - s->window) / SH_PAGE_TOKENS : 0};
        struct ops_step step = {.n_rows = rows, .sequences = &piece, .n_sequences = 1};
        point(ops, d, at, &step);
        float *got = ops_run(ops, m, &step, ops->list[1].out);
        ops_compare(name, got, all + (size_t)at * width, NULL, (size_t)rows * width);
        free(got);
        at += rows;
    }
}

/* Both directions: twice the sequence in one step, which then has many rows. */
static void beside_another(const char *name, const struct shape *s, const struct ops *ops, const struct data *d, struct ops_model *m,
                           const float *all) {
    const uint32_t width = s->n_heads * s->v_dim;
    const struct ops_sequence two[] = {{.n_rows = s->n - 1, .first_page = 16}, {.n_rows = s->n, .first_page = 32}};
    struct ops_step step = {.n_rows = 2 * s->n - 1, .sequences = two, .n_sequences = 2};
    float *together[3] = {NULL};
    for (uint32_t i = 0; i < ops->n_inputs; i++) {
        const size_t w = ops->activations[ops->inputs[i]].width;
        together[i] = malloc(2 * s->n * w * sizeof(float));
        assert_non_null(together[i]);
        memcpy(together[i], d->in[i] + w, (s->n - 1) * w * sizeof(float));
        memcpy(together[i] + (s->n - 1) * w, d->in[i], s->n * w * sizeof(float));
        step.inputs[i] = together[i];
    }
    float *got = ops_run(ops, m, &step, ops->list[1].out);
    ops_compare(name, got + (size_t)(s->n - 1) * width, all, NULL, (size_t)s->n * width);
    for (int i = 0; i < 3; i++) free(together[i]);
    free(got);
}

static void attention_case(struct sh_device *vulkan, const struct shape *s) {
    char name[200];
    snprintf(name, sizeof name, "attention heads=%u/%u dims=%u/%u n=%u cache=%s cap=%g window=%u both=%d v_in_k=%d slopes=%d sinks=%d",
             s->n_heads, s->n_kv_heads, s->k_dim, s->v_dim, s->n, s->kv_type == SH_KV_F16 ? "f16" : "f32", (double)s->softcap,
             s->window, s->bidirectional, s->v_in_k, s->slopes, s->sinks);
    if (!ops_wanted(name)) return;
    struct ops ops;
    struct data d;
    prepare(s, &ops, &d);
    struct ops_model m;
    ops_load(&ops, vulkan, s->kv_type, 2 * s->n, 16, &m);
    struct ops_step step = {.n_rows = s->n};
    point(&ops, &d, 0, &step);
    float *all = ops_run(&ops, &m, &step, ops.list[1].out);
    const size_t n = (size_t)s->n * s->n_heads * s->v_dim;
    float *want = malloc(n * sizeof *want);
    assert_non_null(want);
    for (size_t i = 0; i < n; i++) {
        want[i] = (float)d.want[i];
        d.bound[i] += fabs(d.want[i]) * EPS;
    }
    ops_compare(name, all, want, d.bound, n);
    if (s->bidirectional) beside_another(name, s, &ops, &d, &m, all);
    else in_pieces(name, s, &ops, &d, &m, all);
    ops_unload(&m);
    free(all);
    free(want);
    for (int i = 0; i < 3; i++) free(d.in[i]);
    free(d.slopes);
    free(d.sinks);
    free(d.want);
    free(d.bound);
}

#define F16 .kv_type = SH_KV_F16
#define F32 .kv_type = SH_KV_F32
static void run_cases_on(struct sh_device *vulkan, const struct shape *shapes, size_t n) {
    for (size_t i = 0; i < n; i++) attention_case(vulkan, &shapes[i]);
    ops_close(vulkan);
}
static void run_cases(const char *test, const struct shape *shapes, size_t n) {
    run_cases_on(ops_open_vulkan(test, false), shapes, n);
}

static void capped_sloped_and_sunk(void **state) {
    (void)state;
    static const struct shape shapes[] = {
        {4, 2, 24, 24, 41, F32, .softcap = 1.5f},  {3, 1, 36, 20, 270, F16, .slopes = true}, {4, 4, 16, 8, 33, F32, .sinks = true},
        {2, 1, 16, 16, 300, F32, .sinks = true},   {3, 3, 5, 7, 41, F16},
        {2, 1, 12, 12, 290, F32, .softcap = 2, .slopes = true, .sinks = true, .window = 37},
    };
    run_cases(__func__, shapes, SH_COUNT(shapes));
}

static void windows_with_missing_pages(void **state) {
    (void)state;
    static const struct shape shapes[] = {
        {2, 1, 16, 16, 330, F32, .window = 40}, {2, 2, 8, 8, 70, F16, .window = 1}, {2, 1, 8, 8, 100, F32, .window = 32},
        {1, 1, 8, 8, 300, F32, .window = 257},  {1, 1, 8, 8, 40, F32, .window = 5000},
    };
    run_cases(__func__, shapes, SH_COUNT(shapes));
}

static void both_directions(void **state) {
    (void)state;
    static const struct shape shapes[] = {
        {4, 2, 16, 16, 5, F32, .bidirectional = true},
        {2, 2, 20, 12, 41, F32, .bidirectional = true, .slopes = true},
        {2, 2, 16, 16, 45, F16, .bidirectional = true, .window = 10},
        {2, 1, 16, 16, 6, F32, .bidirectional = true, .window = 5},
        {1, 1, 8, 8, 300, F32, .bidirectional = true, .window = 64},
    };
    run_cases(__func__, shapes, SH_COUNT(shapes));
}

static void large_heads_and_values_in_keys(void **state) {
    (void)state;
    static const struct shape shapes[] = {
        {3, 1, 48, 40, 41, F32, .v_in_k = true},  {2, 1, 576, 512, 37, F16, .v_in_k = true}, {2, 1, 576, 512, 9, F32, .v_in_k = true},
        {2, 2, 512, 512, 12, F32},                {1, 1, 288, 64, 34, F16},                   {2, 1, 64, 300, 10, F32, .sinks = true},
        {1, 1, 571, 509, 10, F32, .v_in_k = true},
    };
    run_cases(__func__, shapes, SH_COUNT(shapes));
}

/* A copied page of keys alone continues like the first; what lies before a window may be missing, what lies in it may not. */
static void pages_are_copied_and_missed(void **state) {
    (void)state;
    static const struct shape s = {2, 1, 48, 40, 50, F32, .v_in_k = true, .window = 33};
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    struct ops ops;
    struct data d;
    prepare(&s, &ops, &d);
    struct ops_model m;
    ops_load(&ops, vulkan, s.kv_type, s.n, 16, &m);
    struct sh_error err = {0};
    struct ops_step whole = {.n_rows = s.n}, head = {.n_rows = 11}, tail = {.n_rows = s.n - 11, .n_sequences = 1};
    point(&ops, &d, 0, &whole);
    point(&ops, &d, 0, &head);
    point(&ops, &d, 11, &tail);
    float *all = ops_run(&ops, &m, &whole, ops.list[1].out);
    free(ops_run(&ops, &m, &head, ops.list[1].out)); /* in page 1 */
    assert_int_equal(vulkan->executor->page_copy(m.context, 0, 1, 33, 11, &err), SH_OK);
    const struct ops_sequence elsewhere = {.n_rows = s.n - 11, .position = 11, .first_page = 32};
    tail.sequences = &elsewhere;
    float *got = ops_run(&ops, &m, &tail, ops.list[1].out);
    const size_t width = s.n_heads * s.v_dim;
    ops_compare("a copied page", got, all + 11 * width, NULL, (s.n - 11) * width);

    const uint32_t pages[3] = {SH_NONE, SH_NONE, 5};
    const uint32_t *tables[] = {pages};
    struct sh_step_row row = {.sampled_from = SH_NONE, .position = 95};
    const struct sh_step_sequence sequence = {.n_rows = 1, .pages = tables, .n_pages = 3};
    struct sh_step step = {.rows = &row, .n_rows = 1, .sequences = &sequence, .n_sequences = 1};
    memcpy(step.inputs, head.inputs, sizeof step.inputs);
    assert_int_equal(vulkan->executor->submit(m.context, 0, 0, &step, &err), SH_ERR_INVALID); /* 63 is seen, in page 1 */
    assert_non_null(strstr(err.message, "names page"));
    free(got);
    free(all);
    ops_unload(&m);
    for (int i = 0; i < 3; i++) free(d.in[i]);
    free(d.slopes);
    free(d.sinks);
    free(d.want);
    free(d.bound);
    ops_close(vulkan);
}

/* ops_close counts the messages of the validation layers. */
static void validation_is_silent(void **state) {
    (void)state;
    static const struct shape shapes[] = {{2, 1, 16, 16, 70, F32, .window = 9, .sinks = true, .slopes = true, .softcap = 3},
                                          {1, 1, 300, 260, 9, F16, .v_in_k = true},
                                          {2, 1, 16, 16, 12, F32, .bidirectional = true}};
    run_cases_on(ops_open_vulkan(__func__, true), shapes, SH_COUNT(shapes));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capped_sloped_and_sunk),
        cmocka_unit_test(windows_with_missing_pages),
        cmocka_unit_test(both_directions),
        cmocka_unit_test(large_heads_and_values_in_keys),
        cmocka_unit_test(pages_are_copied_and_missed),
        cmocka_unit_test(validation_is_silent),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
