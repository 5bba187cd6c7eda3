/* Convolution, selective scan and delta net of every table against their definitions in double precision; in chunks as whole, bit
 * for bit; the state before is never written, and channels may be shared out. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void near(const char *what, const char *tier, uint64_t at, float found, double expected, double bound) {
    if (!(fabs((double)found - expected) <= bound))
        fail_msg("%s, %s: element %d is %.9g, expected %.9g within %g", what, tier, (int)at, (double)found, expected, bound);
}

/* A state before, its copy to hold it against, and two for after. */
struct states {
    float *before, *copy, *after, *second;
    uint64_t n;
};
static struct states make_states(uint64_t n, struct test_rng *rng) {
    struct states s = {.before = test_guarded_floats(n, 1.0f, rng), .n = n};
    s.copy = test_guarded(n * sizeof *s.copy);
    s.after = test_guarded(n * sizeof *s.after);
    s.second = test_guarded(n * sizeof *s.second);
    memcpy(s.copy, s.before, n * sizeof *s.copy);
    return s;
}
static void drop_states(struct states *s) {
    assert_memory_equal(s->before, s->copy, s->n * sizeof *s->copy);
    test_release_floats(s->before, s->n);
    test_release_floats(s->copy, s->n);
    test_release_floats(s->after, s->n);
    test_release_floats(s->second, s->n);
}

/* ---- convolution ---- */

static void check_conv(const struct sh_cpu_kernels *k, uint32_t channels, uint32_t d_conv, uint32_t n_rows, bool zeros,
                       bool has_bias, struct test_rng *rng) {
    const uint32_t kept = d_conv - 1, n = n_rows * channels;
    struct states s = make_states((uint64_t)channels * kept, rng);
    float *x = test_guarded_floats(n, 2.0f, rng), *w = test_guarded_floats(channels * d_conv, 1.0f, rng);
    float *bias = test_guarded_floats(channels, 1.0f, rng), *out = test_guarded(n * sizeof *out),
          *again = test_guarded(n * sizeof *out);
    struct sh_ref_conv c = {.before = zeros ? NULL : s.before,
                            .after = s.after,
                            .x = x,
                            .w = w,
                            .bias = has_bias ? bias : NULL,
                            .n_rows = n_rows,
                            .channels = channels,
                            .d_conv = d_conv,
                            .out = out};
    k->conv(&c, 0, channels);
    for (uint32_t r = 0; r < n_rows + kept; r++) /* beyond the rows: the state after */
        for (uint32_t i = 0; i < channels; i++) {
            double y = has_bias ? (double)bias[i] : 0, magnitude = fabs(y);
            for (uint32_t j = 0; j < d_conv && r < n_rows; j++) {
                const int64_t at = (int64_t)r - kept + j;
                const double past = at >= 0 ? (double)x[at * channels + i]
                                    : zeros ? 0
                                            : (double)s.before[i * kept + (uint64_t)(at + kept)];
                y += (double)w[i * d_conv + j] * past;
                magnitude += fabs((double)w[i * d_conv + j] * past);
            }
            if (r < n_rows) {
                near("conv", k->tier, r * channels + i, out[r * channels + i], y, (d_conv + 2) * 0x1p-24 * magnitude);
                continue;
            }
            const int64_t at = (int64_t)r - kept;
            const float past = at >= 0 ? x[at * channels + i] : zeros ? 0 : s.before[i * kept + (uint64_t)(at + kept)];
            assert_true(s.after[i * kept + r - n_rows] == past);
        }
    /* row by row, the channels in two parts */
    float *from = s.second, *to = s.after;
    for (uint32_t r = 0; r < n_rows; r++) {
        struct sh_ref_conv one = c;
        one.before = r == 0 ? c.before : from;
        one.after = to;
        one.x = x + r * channels;
        one.out = again + r * channels;
        one.n_rows = 1;
        k->conv(&one, channels / 3, channels);
        k->conv(&one, 0, channels / 3);
        float *swap = from;
        from = to;
        to = swap;
    }
    assert_memory_equal(again, out, n * sizeof *out);
    test_release_floats(x, n);
    test_release_floats(w, channels * d_conv);
    test_release_floats(bias, channels);
    test_release_floats(out, n);
    test_release_floats(again, n);
    drop_states(&s);
}

static void test_cpu_conv(void **state) {
    (void)state;
    struct test_rng rng = {1};
    static const uint32_t channels[] = {1, 3, 8, 13, 70}, taps[] = {1, 2, 3, 4, 7};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(channels); i++)
            for (size_t j = 0; j < SH_COUNT(taps); j++)
                for (uint32_t n_rows = 1; n_rows <= 10; n_rows += 3)
                    check_conv(k, channels[i], taps[j], n_rows, n_rows % 2, j % 2, &rng);
}

/* ---- selective scan ---- */

static double softplus(double x) { return x > 40 ? x : log1p(exp(x)); }

static void check_scan(const struct sh_cpu_kernels *k, uint32_t d_inner, uint32_t n_state, uint32_t n_rows, bool zeros,
                       struct test_rng *rng) {
    const uint32_t n = n_rows * d_inner;
    struct states s = make_states((uint64_t)d_inner * n_state, rng);
    float *x = test_guarded_floats(n, 2.0f, rng), *dt = test_guarded_floats(n, 3.0f, rng);
    float *b = test_guarded_floats(n_rows * n_state, 1.0f, rng), *c = test_guarded_floats(n_rows * n_state, 1.0f, rng);
    float *a = test_guarded_floats(d_inner * n_state, 4.0f, rng), *d = test_guarded_floats(d_inner, 1.0f, rng);
    float *out = test_guarded(n * sizeof *out), *again = test_guarded(n * sizeof *out);
    for (uint32_t i = 0; i < d_inner * n_state; i++) a[i] = -fabsf(a[i]);
    dt[0] = 25.0f;
    dt[n - 1] = -80.0f;
    struct sh_ref_scan scan = {.before = zeros ? NULL : s.before,
                               .after = s.after,
                               .x = x,
                               .dt = dt,
                               .b = b,
                               .c = c,
                               .a = a,
                               .d = d,
                               .n_rows = n_rows,
                               .d_inner = d_inner,
                               .n_state = n_state,
                               .out = out};
    k->scan(&scan, 0, d_inner);
    for (uint32_t i = 0; i < d_inner; i++) {
        double y[16] = {0}, size[16] = {0};
        assert_true(n_rows <= 16);
        for (uint32_t t = 0; t < n_state; t++) {
            double h = zeros ? 0 : (double)s.before[i * n_state + t], magnitude = fabs(h);
            for (uint32_t r = 0; r < n_rows; r++) {
                const double delta = softplus((double)dt[r * d_inner + i]), kept = exp(delta * (double)a[i * n_state + t]);
                const double more = delta * (double)b[r * n_state + t] * (double)x[r * d_inner + i];
                h = kept * h + more;
                magnitude = kept * magnitude * (1 + 2 * delta * fabs((double)a[i * n_state + t])) + fabs(more);
                y[r] += (double)c[r * n_state + t] * h;
                size[r] += fabs((double)c[r * n_state + t]) * magnitude;
            }
            near("scan state", k->tier, i * n_state + t, s.after[i * n_state + t], h, (8 * n_rows + 8) * 0x1p-23 * magnitude);
        }
        for (uint32_t r = 0; r < n_rows; r++) {
            const double skip = (double)d[i] * (double)x[r * d_inner + i];
            near("scan", k->tier, r * d_inner + i, out[r * d_inner + i], y[r] + skip,
                 (8 * n_rows + n_state + 8) * 0x1p-23 * (size[r] + fabs(skip)));
        }
    }
    float *from = s.second, *to = s.after;
    for (uint32_t r = 0; r < n_rows; r++) {
        struct sh_ref_scan one = scan;
        one.before = r == 0 ? scan.before : from;
        one.after = to;
        one.x += r * d_inner;
        one.dt += r * d_inner;
        one.b += r * n_state;
        one.c += r * n_state;
        one.out = again + r * d_inner;
        one.n_rows = 1;
        k->scan(&one, d_inner / 2, d_inner);
        k->scan(&one, 0, d_inner / 2);
        float *swap = from;
        from = to;
        to = swap;
    }
    assert_memory_equal(again, out, n * sizeof *out);
    test_release_floats(x, n);
    test_release_floats(dt, n);
    test_release_floats(b, n_rows * n_state);
    test_release_floats(c, n_rows * n_state);
    test_release_floats(a, d_inner * n_state);
    test_release_floats(d, d_inner);
    test_release_floats(out, n);
    test_release_floats(again, n);
    drop_states(&s);
}

static void test_cpu_scan(void **state) {
    (void)state;
    struct test_rng rng = {2};
    static const uint32_t channels[] = {1, 5, 8, 21}, states[] = {1, 5, 8, 16, 33};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(channels); i++)
            for (size_t j = 0; j < SH_COUNT(states); j++)
                for (uint32_t n_rows = 1; n_rows <= 9; n_rows += 4) check_scan(k, channels[i], states[j], n_rows, j % 2, &rng);
}

/* ---- delta net ---- */

static void check_delta(const struct sh_cpu_kernels *k, uint32_t n_k_heads, uint32_t n_v_heads, uint32_t k_dim, uint32_t v_dim,
                        uint32_t n_rows, bool tiled, struct test_rng *rng) {
    const uint32_t k_width = n_k_heads * k_dim, v_width = n_v_heads * v_dim, n = n_rows * v_width;
    struct states s = make_states((uint64_t)n_v_heads * k_dim * v_dim, rng);
    float *q = test_guarded_floats(n_rows * k_width, 1.0f, rng), *key = test_guarded_floats(n_rows * k_width, 1.0f, rng);
    float *v = test_guarded_floats(n, 1.0f, rng), *decay = test_guarded_floats(n_rows * n_v_heads, 3.0f, rng);
    float *beta = test_guarded_floats(n_rows * n_v_heads, 3.0f, rng), *a = test_guarded_floats(n_v_heads, 1.0f, rng);
    float *dt = test_guarded_floats(n_v_heads, 1.0f, rng), *out = test_guarded(n * sizeof *out),
          *again = test_guarded(n * sizeof *out);
    const uint64_t scratch_n = 2 * (uint64_t)v_dim;
    float *scratch = test_guarded(scratch_n * sizeof *scratch);
    double *S = malloc(k_dim * v_dim * sizeof *S);
    assert_non_null(S);
    for (uint32_t h = 0; h < n_v_heads; h++) a[h] = -fabsf(a[h]);
    for (uint32_t i = 0; i < n_rows * k_width; i++) key[i] /= sqrtf((float)k_dim); /* so that the state does not grow */
    struct sh_ref_delta d = {.before = s.before,
                             .after = s.after,
                             .q = q,
                             .k = key,
                             .v = v,
                             .decay = decay,
                             .beta = beta,
                             .a = a,
                             .dt_bias = dt,
                             .n_rows = n_rows,
                             .n_k_heads = n_k_heads,
                             .n_v_heads = n_v_heads,
                             .k_dim = k_dim,
                             .v_dim = v_dim,
                             .tiled = tiled,
                             .scale = 0.3f,
                             .out = out};
    for (uint32_t h = 0; h < n_v_heads; h++) k->delta_net(&d, h, 0, v_dim, scratch);
    for (uint32_t h = 0; h < n_v_heads; h++) {
        const uint32_t k_head = tiled ? h % n_k_heads : h * n_k_heads / n_v_heads;
        for (uint32_t i = 0; i < k_dim * v_dim; i++) S[i] = (double)s.before[h * k_dim * v_dim + i];
        for (uint32_t r = 0; r < n_rows; r++) {
            const float *kr = key + r * k_width + k_head * k_dim, *qr = q + r * k_width + k_head * k_dim;
            const double g = exp((double)a[h] * softplus((double)decay[r * n_v_heads + h] + (double)dt[h]));
            const double rate = 1 / (1 + exp(-(double)beta[r * n_v_heads + h]));
            for (uint32_t j = 0; j < v_dim; j++) {
                double read = 0, y = 0;
                for (uint32_t i = 0; i < k_dim; i++) read += g * S[i * v_dim + j] * (double)kr[i];
                const double change = rate * ((double)v[r * v_width + h * v_dim + j] - read);
                for (uint32_t i = 0; i < k_dim; i++) {
                    S[i * v_dim + j] = g * S[i * v_dim + j] + (double)kr[i] * change;
                    y += S[i * v_dim + j] * (double)qr[i];
                }
                /* all numbers are of magnitude 1 or a few; k_dim of them are added up, n_rows times one after the other */
                near("delta net", k->tier, r * v_width + h * v_dim + j, out[r * v_width + h * v_dim + j], 0.3f * y,
                     8 * (double)(n_rows + 1) * (k_dim + 8) * 0x1p-24);
            }
        }
        for (uint32_t i = 0; i < k_dim * v_dim; i++)
            near("delta net state", k->tier, i, s.after[h * k_dim * v_dim + i], S[i],
                 8 * (double)(n_rows + 1) * (k_dim + 8) * 0x1p-24);
    }
    float *from = s.second, *to = s.after;
    for (uint32_t r = 0; r < n_rows; r++) { /* row by row, the columns in two parts */
        struct sh_ref_delta one = d;
        one.before = r == 0 ? d.before : from;
        one.after = to;
        one.q += r * k_width;
        one.k += r * k_width;
        one.v += r * v_width;
        one.decay += r * n_v_heads;
        one.beta += r * n_v_heads;
        one.out = again + r * v_width;
        one.n_rows = 1;
        for (uint32_t h = n_v_heads; h-- > 0;) {
            k->delta_net(&one, h, v_dim / 3, v_dim, scratch);
            k->delta_net(&one, h, 0, v_dim / 3, scratch);
        }
        float *swap = from;
        from = to;
        to = swap;
    }
    assert_memory_equal(again, out, n * sizeof *out);
    free(S);
    test_release_floats(scratch, scratch_n);
    test_release_floats(q, n_rows * k_width);
    test_release_floats(key, n_rows * k_width);
    test_release_floats(v, n);
    test_release_floats(decay, n_rows * n_v_heads);
    test_release_floats(beta, n_rows * n_v_heads);
    test_release_floats(a, n_v_heads);
    test_release_floats(dt, n_v_heads);
    test_release_floats(out, n);
    test_release_floats(again, n);
    drop_states(&s);
}

static void test_cpu_delta_net(void **state) {
    (void)state;
    struct test_rng rng = {3};
    static const struct {
        uint32_t n_k_heads, n_v_heads, k_dim, v_dim;
    } cases[] = {{1, 1, 1, 1}, {2, 4, 8, 8}, {2, 6, 13, 9}, {3, 3, 32, 70}, {1, 2, 64, 64}};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(cases); i++)
            for (uint32_t n_rows = 1; n_rows <= 9; n_rows += 4)
                check_delta(k, cases[i].n_k_heads, cases[i].n_v_heads, cases[i].k_dim, cases[i].v_dim, n_rows, n_rows % 3 == 0,
                            &rng);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_conv),
        cmocka_unit_test(test_cpu_scan),
        cmocka_unit_test(test_cpu_delta_net),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
