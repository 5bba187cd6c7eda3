/* The elementwise and row-wise kernels of every table against their formulae in double precision, at odd sizes. */
#include "tests/unit/guarded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define EPS 0x1p-24 /* a rounding */

static void near(const char *what, const char *tier, uint64_t at, float found, double expected, double bound) {
    if (!(fabs((double)found - expected) <= bound))
        fail_msg("%s, %s: element %d is %.9g, expected %.9g within %g", what, tier, (int)at, (double)found, expected, bound);
}

/* ---- norms ---- */

struct norm_case {
    enum sh_norm_kind kind;
    uint32_t n_groups, part;
    bool whole_w, whole_bias, has_w, has_bias;
    float eps;
};

/* Part p of all rows, one after the other. */
static void check_part(const struct sh_cpu_kernels *k, const struct norm_case *c, const float *x, const float *w,
                       const float *bias, const float *out, uint32_t p) {
    const uint32_t n = c->part, at = p * n, in_row = p % c->n_groups * n;
    double mean = 0, square = 0, magnitude = 0;
    for (uint32_t j = 0; j < n; j++) mean += (double)x[at + j] / n;
    if (c->kind != SH_NORM_LAYER) mean = 0;
    for (uint32_t j = 0; j < n; j++) {
        square += pow((double)x[at + j] - mean, 2);
        magnitude += fabs((double)x[at + j]) / n;
    }
    const double scale = c->kind == SH_NORM_L2 ? 1 / fmax(sqrt(square), (double)c->eps) : 1 / sqrt(square / n + (double)c->eps);
    for (uint32_t j = 0; j < n; j++) {
        const double weight = c->has_w ? (double)w[c->whole_w ? in_row + j : j] : 1;
        const double plus = c->has_bias ? (double)bias[c->whole_bias ? in_row + j : j] : 0;
        const double y = ((double)x[at + j] - mean) * scale * weight + plus;
        /* n roundings in the mean and in the sum of squares, halved by the root; a handful after that */
        const double off = (n + 8) * EPS * (fabs((double)x[at + j]) + magnitude) * scale * fabs(weight) + 2 * EPS * fabs(y);
        near("norm", k->tier, at + j, out[at + j], y, off);
    }
}

static void check_norm(const struct sh_cpu_kernels *k, const struct norm_case *c, struct test_rng *rng) {
    const uint32_t width = c->n_groups * c->part, n_rows = 3;
    float *x = test_guarded_floats(n_rows * width, 4.0f, rng), *out = test_guarded(n_rows * width * sizeof *out);
    float *w = test_guarded_floats(width, 2.0f, rng), *bias = test_guarded_floats(width, 2.0f, rng);
    for (uint32_t i = 0; i < width; i++) x[i] += 3.0f; /* a mean that is not 0 */
    memset(x + 2 * width, 0, width * sizeof *x);
    const struct sh_ref_norm norm = {
        .kind = c->kind,
        .n_groups = c->n_groups,
        .width = width,
        .eps = c->eps,
        .w = c->has_w ? w : NULL,
        .bias = c->has_bias ? bias : NULL,
        .w_stride = c->whole_w ? c->part : 0,
        .bias_stride = c->whole_bias ? c->part : 0,
    };
    k->norm(&norm, x, n_rows, out);
    for (uint32_t p = 0; p < n_rows * c->n_groups; p++) check_part(k, c, x, w, bias, out, p);
    k->norm(&norm, x, n_rows, x); /* in place */
    assert_memory_equal(x, out, n_rows * width * sizeof *x);
    test_release_floats(x, n_rows * width);
    test_release_floats(out, n_rows * width);
    test_release_floats(w, width);
    test_release_floats(bias, width);
}

static void test_cpu_norms(void **state) {
    (void)state;
    struct test_rng rng = {1};
    static const uint32_t parts[] = {1, 2, 7, 8, 33, 64, 173, 2048};
    FOR_EACH_TIER (k)
        for (int kind = SH_NORM_RMS; kind <= SH_NORM_L2; kind++)
            for (size_t i = 0; i < SH_COUNT(parts); i++)
                for (uint32_t variant = 0; variant < 9; variant++) {
                    const struct norm_case c = {
                        .kind = (enum sh_norm_kind)kind,
                        .n_groups = 1 + variant % 3,
                        .part = parts[i],
                        .has_w = variant % 3 != 0,
                        .has_bias = variant / 3 > 0,
                        .whole_w = variant % 3 == 2,
                        .whole_bias = variant / 3 == 2,
                        .eps = kind == SH_NORM_L2 ? 0.5f : 1e-2f,
                    };
                    check_norm(k, &c, &rng);
                }
}

/* ---- functions of one number ---- */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x))); }
static double gelu_erf(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }

static double unary(enum sh_unary kind, double a, double x) {
    switch (kind) {
    case SH_UNARY_SCALE:
    case SH_UNARY_SCALE_POSITION: return a * x;
    case SH_UNARY_CLAMP: return fmin(fmax(x, -a), a);
    case SH_UNARY_SOFTCAP: return a * tanh(x / a);
    case SH_UNARY_GELU: return gelu(x);
    case SH_UNARY_GELU_ERF: return gelu_erf(x);
    case SH_UNARY_SILU: return x * sigmoid(x);
    case SH_UNARY_RELU: return fmax(x, 0);
    case SH_UNARY_RELU_SQUARED: return pow(fmax(x, 0), 2);
    }
    return NAN;
}

/* The functions with 1 + tanh or 1 + erf lose to cancellation what is small against x; the others keep 2e-7 of their exp. An exp
 * of what is beyond 87.3 is 0 or infinite in the fast tables: then a result below 1e-35 may be 0. */
static double unary_bound(enum sh_unary kind, double a, double x, double y) {
    switch (kind) {
    case SH_UNARY_SOFTCAP: return 5e-7 * a;
    case SH_UNARY_GELU:
    case SH_UNARY_GELU_ERF: return 1e-6 * fabs(x);
    case SH_UNARY_SILU: return 6e-7 * fabs(y) + 1e-35;
    default: return 2 * EPS * fabs(y) + 0x1p-149;
    }
}

static float sample(uint64_t i, struct test_rng *rng) {
    static const float special[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 87.2f, -87.2f, 99.0f, -99.0f, 3.0f, -3.0f, 7.0f, -7.0f};
    return i < SH_COUNT(special) ? special[i] : test_uniform(rng, -12.0f, 12.0f);
}

static void test_cpu_unary(void **state) {
    (void)state;
    struct test_rng rng = {2};
    static const uint64_t sizes[] = {1, 3, 8, 13, 64, 1001};
    FOR_EACH_TIER (k)
        for (int kind = 0; kind <= SH_UNARY_RELU_SQUARED; kind++)
            for (size_t i = 0; i < SH_COUNT(sizes); i++) {
                const uint64_t n = sizes[i];
                const float a = kind == SH_UNARY_SCALE ? -1.7f : 3.0f;
                float *x = test_guarded(n * sizeof *x), *out = test_guarded(n * sizeof *out);
                for (uint64_t e = 0; e < n; e++) x[e] = sample(e, &rng);
                k->unary((enum sh_unary)kind, a, x, n, out);
                for (uint64_t e = 0; e < n; e++) {
                    const double y = unary((enum sh_unary)kind, (double)a, (double)x[e]);
                    near("unary", k->tier, e, out[e], y, unary_bound((enum sh_unary)kind, (double)a, (double)x[e], y));
                }
                k->unary((enum sh_unary)kind, a, x, n, x);
                assert_memory_equal(x, out, n * sizeof *x);
                test_release_floats(x, n);
                test_release_floats(out, n);
            }
}

static double glu(enum sh_glu act, double gate, double up) {
    switch (act) {
    case SH_GLU_SILU: return gate * sigmoid(gate) * up;
    case SH_GLU_GELU: return gelu(gate) * up;
    case SH_GLU_GELU_ERF: return gelu_erf(gate) * up;
    case SH_GLU_RELU: return fmax(gate, 0) * up;
    case SH_GLU_SIGMOID: return sigmoid(gate) * up;
    case SH_GLU_MUL: return gate * up;
    case SH_GLU_OAI: {
        const double g = fmin(gate, 7);
        return g * sigmoid(1.702 * g) * (fmin(fmax(up, -7), 7) + 1);
    }
    }
    return NAN;
}

static double glu_bound(enum sh_glu act, double gate, double up, double y) {
    if (act == SH_GLU_GELU || act == SH_GLU_GELU_ERF) return 1e-6 * fabs(gate * up);
    /* 1.702 and its product are rounded before exp */
    return (1e-6 + (act == SH_GLU_OAI ? 4 * fabs(gate) * EPS : 0)) * fabs(y) + 1e-34;
}

static void test_cpu_glu(void **state) {
    (void)state;
    struct test_rng rng = {3};
    static const uint32_t widths[] = {1, 5, 8, 100, 515};
    FOR_EACH_TIER (k)
        for (int act = 0; act <= SH_GLU_OAI; act++)
            for (size_t i = 0; i < SH_COUNT(widths); i++)
                for (uint32_t one = 0; one < 2; one++) {
                    const uint32_t width = widths[i], gate_width = one ? 1 : width, n_rows = 3;
                    float *gate = test_guarded(n_rows * gate_width * sizeof *gate),
                          *out = test_guarded(n_rows * width * sizeof *out);
                    float *up = test_guarded_floats(n_rows * width, 9.0f, &rng);
                    for (uint64_t e = 0; e < n_rows * gate_width; e++) gate[e] = sample(e, &rng);
                    k->glu((enum sh_glu)act, gate, gate_width, up, n_rows, width, out);
                    for (uint32_t e = 0; e < n_rows * width; e++) {
                        const double g = (double)gate[one ? e / width : e], y = glu((enum sh_glu)act, g, (double)up[e]);
                        near("glu", k->tier, e, out[e], y, glu_bound((enum sh_glu)act, g, (double)up[e], y));
                    }
                    k->glu((enum sh_glu)act, gate, gate_width, up, n_rows, width, up);
                    assert_memory_equal(up, out, n_rows * width * sizeof *up);
                    test_release_floats(gate, n_rows * gate_width);
                    test_release_floats(up, n_rows * width);
                    test_release_floats(out, n_rows * width);
                }
}

/* What is no number stays none, so that a broken row shows in its logits. */
static void test_cpu_no_numbers(void **state) {
    (void)state;
    const float x[9] = {1, NAN, 2, 3, 4, 5, 6, 7, NAN}, ones[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    float out[9];
    FOR_EACH_TIER (k) {
        for (int kind = 0; kind <= SH_UNARY_RELU_SQUARED; kind++) {
            k->unary((enum sh_unary)kind, 2.0f, x, 9, out);
            for (uint32_t i = 0; i < 9; i++) assert_int_equal(isnan(out[i]) != 0, isnan(x[i]) != 0);
        }
        for (int act = 0; act <= SH_GLU_OAI; act++) {
            k->glu((enum sh_glu)act, x, 9, ones, 1, 9, out);
            for (uint32_t i = 0; i < 9; i++) assert_int_equal(isnan(out[i]) != 0, isnan(x[i]) != 0);
            k->glu((enum sh_glu)act, ones, 9, x, 1, 9, out);
            for (uint32_t i = 0; i < 9; i++) assert_int_equal(isnan(out[i]) != 0, isnan(x[i]) != 0);
        }
    }
}

static void test_cpu_add_and_expert_sum(void **state) {
    (void)state;
    struct test_rng rng = {4};
    static const uint32_t widths[] = {1, 7, 8, 19, 128, 333};
    FOR_EACH_TIER (k)
        for (size_t i = 0; i < SH_COUNT(widths); i++) {
            const uint32_t width = widths[i], n_used = 1 + (uint32_t)i * 2;
            float *x = test_guarded_floats(n_used * width, 3.0f, &rng), *route = test_guarded_floats(2 * n_used, 1.0f, &rng);
            float *out = test_guarded(width * sizeof *out);
            k->expert_sum(x, route, n_used, width, out);
            for (uint32_t e = 0; e < width; e++) {
                double y = 0, magnitude = 0;
                for (uint32_t j = 0; j < n_used; j++) {
                    const double term = (double)route[n_used + j] * (double)x[j * width + e];
                    y += term;
                    magnitude += fabs(term);
                }
                near("expert_sum", k->tier, e, out[e], y, (n_used + 1) * EPS * magnitude);
            }
            float *sum = test_guarded(width * sizeof *sum);
            k->add(x, out, width, sum);
            for (uint32_t e = 0; e < width; e++) assert_true(sum[e] == x[e] + out[e]);
            test_release_floats(x, n_used * width);
            test_release_floats(route, 2 * n_used);
            test_release_floats(out, width);
            test_release_floats(sum, width);
        }
}

/* ---- the bits of avx2, where they are promised (kernels.h) ---- */

static const struct sh_cpu_kernels *tier_of(const char *name) {
    FOR_EACH_TIER (k)
        if (strcmp(k->tier, name) == 0) return k;
    return NULL;
}

static void test_cpu_bits_of_avx2(void **state) {
    (void)state;
    struct test_rng rng = {8};
    const struct sh_cpu_kernels *avx2 = tier_of("avx2");
    static const uint32_t types[] = {SH_TYPE_F16, SH_TYPE_Q4_0, SH_TYPE_Q4_K};
    FOR_EACH_TIER (k) {
        if (avx2 == NULL || strcmp(k->tier, "scalar") == 0) continue;
        for (int act = 0; act <= SH_GLU_OAI; act++)
            for (uint32_t width = 1; width < 200; width += 11) {
                float *gate = test_guarded(2 * width * sizeof *gate), *up = test_guarded_floats(2 * width, 9.0f, &rng);
                float *out = test_guarded(2 * width * sizeof *out), *expected = test_guarded(2 * width * sizeof *expected);
                for (uint64_t e = 0; e < 2 * width; e++) gate[e] = sample(e * 7 + width, &rng);
                k->glu((enum sh_glu)act, gate, width, up, 2, width, out);
                avx2->glu((enum sh_glu)act, gate, width, up, 2, width, expected);
                assert_memory_equal(out, expected, 2 * width * sizeof *out);
                test_release_floats(gate, 2 * width);
                test_release_floats(up, 2 * width);
                test_release_floats(out, 2 * width);
                test_release_floats(expected, 2 * width);
            }
        for (size_t t = 0; t < SH_COUNT(types); t++)
            for (uint32_t blocks = 1; blocks < 6; blocks++) {
                const uint32_t cols = blocks * sh_type_info(types[t])->block_elements, operand = k->operand(types[t]), n_rows = 3;
                const uint64_t bytes = n_rows * k->operand_bytes(operand, cols);
                assert_int_equal(bytes, n_rows * avx2->operand_bytes(avx2->operand(types[t]), cols));
                float *x = test_guarded_floats((uint64_t)n_rows * cols, 5.0f, &rng);
                for (uint32_t e = 0; e < cols; e++) x[cols + e] *= 0x1p-122f; /* all quants 0, and scales beside */
                for (uint32_t e = 0; e < cols; e++) x[2 * cols + e] = (float)(127 - (int)(e % 255)) / (e % 3 == 0 ? 2.0f : 1.0f);
                uint8_t *out = test_guarded(bytes), *expected = test_guarded(bytes);
                memset(out, 0x55, bytes);
                memset(expected, 0x55, bytes);
                k->prepare(operand, x, cols, n_rows, out);
                avx2->prepare(operand, x, cols, n_rows, expected);
                assert_memory_equal(out, expected, bytes);
                test_release_floats(x, (uint64_t)n_rows * cols);
                test_release(out, bytes);
                test_release(expected, bytes);
            }
    }
}

/* ---- moved and rotated numbers: the reference, and all others with its bits ---- */

static void test_cpu_rope(void **state) {
    (void)state;
    struct test_rng rng = {5};
    static const struct {
        uint32_t n_heads, dim, first, n_rot;
    } cases[] = {{1, 2, 0, 2}, {3, 64, 0, 64}, {4, 80, 0, 32}, {2, 48, 32, 16}, {5, 13, 3, 6}, {2, 10, 0, 0}, {1, 576, 512, 64}};
    for (size_t i = 0; i < SH_COUNT(cases); i++)
        for (int pairing = 0; pairing < 2; pairing++) {
            const uint32_t dim = cases[i].dim, first = cases[i].first, n_rot = cases[i].n_rot, n = cases[i].n_heads * dim;
            float *x = test_guarded_floats(n, 3.0f, &rng), *table = test_guarded_floats(n_rot, 1.0f, &rng);
            float *out = test_guarded(n * sizeof *out);
            const struct sh_ref_rope rope = {cases[i].n_heads, dim, first, n_rot, (enum sh_rope_pairing)pairing};
            sh_ref_rope(&rope, x, table, out);
            for (uint32_t e = 0; e < n; e++) {
                const uint32_t d = e % dim;
                if (d < first || d >= first + n_rot) {
                    assert_true(out[e] == x[e]);
                    continue;
                }
                /* as a product of complex numbers: pair p, this being its real or imaginary part */
                const uint32_t at = d - first, half = n_rot / 2;
                const uint32_t p = pairing == SH_ROPE_ADJACENT ? at / 2 : at % half;
                const bool imaginary = pairing == SH_ROPE_ADJACENT ? at % 2 == 1 : at >= half;
                const uint32_t base = e - d + first;
                const double re = (double)x[base + (pairing == SH_ROPE_ADJACENT ? 2 * p : p)],
                             im = (double)x[base + (pairing == SH_ROPE_ADJACENT ? 2 * p + 1 : p + half)];
                const double c = (double)table[2 * p], s = (double)table[2 * p + 1];
                near("rope", "scalar", e, out[e], imaginary ? re * s + im * c : re * c - im * s, 4 * EPS * (fabs(re) + fabs(im)));
            }
            float *turned = test_guarded(n * sizeof *turned);
            FOR_EACH_TIER (k) {
                k->rope(&rope, x, table, turned);
                assert_memory_equal(turned, out, n * sizeof *out);
                memcpy(turned, x, n * sizeof *x);
                k->rope(&rope, turned, table, turned);
                assert_memory_equal(turned, out, n * sizeof *out);
            }
            test_release_floats(turned, n);
            sh_ref_rope(&rope, x, table, x);
            assert_memory_equal(x, out, n * sizeof *x);
            test_release_floats(x, n);
            test_release_floats(table, n_rot);
            test_release_floats(out, n);
        }
}

/* Keys by dimension, values by position; a page is touched nowhere else. */
static void test_cpu_cache_store(void **state) {
    (void)state;
    struct test_rng rng = {9};
    static const struct {
        uint32_t n_heads, k_dim, v_dim, position;
        bool v_in_k;
    } cases[] = {{1, 1, 1, 0, false}, {4, 64, 64, 33, false}, {3, 13, 9, 31, false}, {2, 24, 40, 69, false}, {1, 576, 512, 3, true}};
    static const float special[] = {0.0f, -0.0f, 65504.0f, 65520.0f, -1e9f, 1e-8f, -3e-6f, 6.0e-5f, 1.00048828125f, INFINITY};
    for (size_t i = 0; i < SH_COUNT(cases); i++)
        for (int type = 0; type < 2; type++) {
            const uint32_t h = cases[i].n_heads, nk = h * cases[i].k_dim, nv = h * cases[i].v_dim, at = cases[i].position;
            const uint64_t element = type == 0 ? 4 : 2, k_bytes = element * nk * 32, v_bytes = cases[i].v_in_k ? 0 : element * nv * 32;
            float *key = test_guarded_floats(nk, 3.0f, &rng), *value = test_guarded_floats(nv, 3.0f, &rng);
            for (uint32_t e = 0; e < SH_COUNT(special) && e < nk && e < nv; e++) key[nk - 1 - e] = value[e] = special[e];
            uint8_t *expected = test_guarded(k_bytes + v_bytes), *page = test_guarded(k_bytes + v_bytes);
            void *pages[3] = {NULL, NULL, NULL};
            const struct sh_ref_cache cache = {.kv_type = type == 0 ? SH_KV_F32 : SH_KV_F16,
                                               .pages = pages,
                                               .page_tokens = 32,
                                               .v_offset = cases[i].v_in_k ? 0 : k_bytes,
                                               .n_kv_heads = h,
                                               .k_dim = cases[i].k_dim,
                                               .v_dim = cases[i].v_dim,
                                               .v_in_k = cases[i].v_in_k};
            memset(expected, 0x55, k_bytes + v_bytes);
            for (uint32_t e = 0; e < nk; e++) {
                uint8_t *to = expected + element * ((uint64_t)e * 32 + at % 32);
                const uint16_t half = sh_f32_to_f16(key[e]);
                memcpy(to, type == 0 ? (const void *)&key[e] : &half, element);
            }
            for (uint32_t e = 0; v_bytes > 0 && e < nv; e++) {
                const uint64_t head = e / cases[i].v_dim, d = e % cases[i].v_dim;
                uint8_t *to = expected + k_bytes + element * ((head * 32 + at % 32) * cases[i].v_dim + d);
                const uint16_t half = sh_f32_to_f16(value[e]);
                memcpy(to, type == 0 ? (const void *)&value[e] : &half, element);
            }
            pages[at / 32] = page;
            FOR_EACH_TIER (k) {
                memset(page, 0x55, k_bytes + v_bytes);
                k->cache_store(&cache, at, key, cases[i].v_in_k ? NULL : value);
                assert_memory_equal(page, expected, k_bytes + v_bytes);
            }
            test_release(expected, k_bytes + v_bytes);
            test_release(page, k_bytes + v_bytes);
            test_release_floats(key, nk);
            test_release_floats(value, nv);
        }
}

static void test_cpu_concat(void **state) {
    (void)state;
    struct test_rng rng = {6};
    const uint32_t n_rows = 3, n_heads = 2, x_dim = 5, y_dim = 3;
    float *x = test_guarded_floats(n_rows * n_heads * x_dim, 1.0f, &rng),
          *y = test_guarded_floats(n_rows * n_heads * y_dim, 1.0f, &rng);
    float *out = test_guarded(n_rows * n_heads * (x_dim + y_dim) * sizeof *out);
    sh_ref_concat(x, x_dim, y, y_dim, n_heads, n_rows, out);
    for (uint32_t e = 0; e < n_rows * n_heads * (x_dim + y_dim); e++) {
        const uint32_t head = e / (x_dim + y_dim), d = e % (x_dim + y_dim);
        assert_true(out[e] == (d < x_dim ? x[head * x_dim + d] : y[head * y_dim + d - x_dim]));
    }
    test_release_floats(x, n_rows * n_heads * x_dim);
    test_release_floats(y, n_rows * n_heads * y_dim);
    test_release_floats(out, n_rows * n_heads * (x_dim + y_dim));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_norms),  cmocka_unit_test(test_cpu_no_numbers),         cmocka_unit_test(test_cpu_unary),
        cmocka_unit_test(test_cpu_glu),    cmocka_unit_test(test_cpu_add_and_expert_sum), cmocka_unit_test(test_cpu_rope),
        cmocka_unit_test(test_cpu_concat), cmocka_unit_test(test_cpu_cache_store),
        cmocka_unit_test(test_cpu_bits_of_avx2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
