/*
 * What the parity files do not hold: members of a family that differ by a key or a tensor. Reference values come from the forward pass
 * below, written anew in double precision with straight loops over the file's dequantised weights, told by each variant's row in the
 * table what it should be, not by the file's keys. The first rows are files of ../shared/parity as they are, which holds the
 * reference itself to account.
 */
#include "compute/gguf/quant.h"
#include "tests/unit/core.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { TOKENS = 60, D = 128, HEADS = 4, VOCAB = 512, FF_MAX = 192, DIM = 32 };

enum qk { QK_NONE, QK_HEAD_RMS, QK_HEADS_LAYER, QK_ROW_LAYER };
enum act { SILU_GATED, GELU_GATED, GELU };

struct variant {
    const char *file;
    void (*change)(struct rewrite *r);
    uint32_t layers, kv[2], ff[2]; /* by layer */
    double eps;
    bool layer_norm, parallel, adjacent;
    enum act act;
    double base;        /* 0: nothing is rotated */
    uint32_t n_rot;     /* 0: the whole head */
    uint32_t window[2]; /* by layer, 0: none */
    bool still[2];      /* layers that do not rotate */
    enum qk qk;
    bool learned, post_norm;
    double embedding_scale, residual_scale, logit_scale, scale; /* 0: none; scale: 1 / sqrt(DIM) */
};

/* ---- the file's weights ---- */

static struct sh_gguf *file;

/* NULL: there is none. malloc'd. */
static double *weight(const char *fmt, ...) {
    char name[96];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    struct sh_error err = {0};
    const struct sh_tensor *t = sh_gguf_tensor(file, name);
    if (t == NULL) return NULL;
    const uint64_t n = t->dims[0] * t->dims[1] * t->dims[2];
    uint8_t *raw = malloc(t->bytes);
    float *f = malloc(n * sizeof *f);
    double *d = malloc(n * sizeof *d);
    assert_true(raw != NULL && f != NULL && d != NULL);
    core_ok(sh_gguf_read(file, t, 0, raw, t->bytes, &err), &err);
    assert_true(sh_dequantize(t->type, raw, f, n));
    for (uint64_t i = 0; i < n; i++) d[i] = (double)f[i];
    free(raw);
    free(f);
    return d;
}

/* ---- the reference ---- */

/* y[r] = w x[r] (+ bias); rows from `first` on of the matrix */
static void product(double *y, const double *x, uint32_t n_in, uint32_t n_out, const char *tensor, uint32_t layer,
                    uint32_t first) {
    double *w = weight("blk.%u.%s.weight", layer, tensor), *bias = weight("blk.%u.%s.bias", layer, tensor);
    assert_non_null(w);
    for (uint32_t r = 0; r < TOKENS; r++)
        for (uint32_t o = 0; o < n_out; o++) {
            double sum = bias != NULL ? bias[first + o] : 0;
            for (uint32_t i = 0; i < n_in; i++) sum += w[(size_t)(first + o) * n_in + i] * x[(size_t)r * n_in + i];
            y[(size_t)r * n_out + o] = sum;
        }
    free(w);
    free(bias);
}

static void normalise(double *x, uint32_t n, bool layer_norm, double eps, const double *w, const double *bias) {
    double mean = 0, square = 0;
    for (uint32_t i = 0; layer_norm && i < n; i++) mean += x[i] / n;
    for (uint32_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / n;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = (x[i] - mean) / sqrt(square + eps) * w[i];
        if (bias != NULL) x[i] += bias[i];
    }
}

static void norm_rows(double *y, const double *x, const struct variant *v, const char *prefix, const char *stem) {
    double *w = weight("%s%s.weight", prefix, stem), *bias = weight("%s%s.bias", prefix, stem);
    assert_non_null(w);
    memcpy(y, x, sizeof(double) * TOKENS * D);
    for (uint32_t r = 0; r < TOKENS; r++) normalise(y + (size_t)r * D, D, v->layer_norm, v->eps, w, bias);
    free(w);
    free(bias);
}

static void norm_heads(double *x, uint32_t heads, const struct variant *v, uint32_t layer, const char *stem) {
    double *w = weight("blk.%u.%s.weight", layer, stem), *bias = weight("blk.%u.%s.bias", layer, stem);
    assert_non_null(w);
    for (uint32_t r = 0; r < TOKENS; r++) {
        double *row = x + (size_t)r * heads * DIM;
        if (v->qk == QK_ROW_LAYER) normalise(row, heads * DIM, true, v->eps, w, bias);
        else
            for (uint32_t h = 0; h < heads; h++)
                normalise(row + h * DIM, DIM, v->qk == QK_HEADS_LAYER, v->eps, v->qk == QK_HEADS_LAYER ? w + h * DIM : w, NULL);
    }
    free(w);
    free(bias);
}

static void rotate(double *x, uint32_t heads, const struct variant *v) {
    const uint32_t n = v->n_rot > 0 ? v->n_rot : DIM;
    for (uint32_t r = 0; r < TOKENS; r++)
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t i = 0; i < n / 2; i++) {
                double *head = x + ((size_t)r * heads + h) * DIM;
                double *a = head + (v->adjacent ? 2 * i : i), *b = head + (v->adjacent ? 2 * i + 1 : i + n / 2);
                const double angle = r * pow(v->base, -2.0 * i / n), c = cos(angle), s = sin(angle), before = *a;
                *a = before * c - *b * s;
                *b = before * s + *b * c;
            }
}

static void attend(double *out, const double *q, const double *k, const double *values, uint32_t kv, uint32_t window,
                   double scale) {
    for (uint32_t r = 0; r < TOKENS; r++)
        for (uint32_t h = 0; h < HEADS; h++) {
            const uint32_t first = window > 0 && r + 1 > window ? r + 1 - window : 0, g = h / (HEADS / kv);
            double score[TOKENS], total = 0, *to = out + ((size_t)r * HEADS + h) * DIM;
            for (uint32_t p = first; p <= r; p++) {
                double sum = 0;
                for (uint32_t i = 0; i < DIM; i++)
                    sum += q[((size_t)r * HEADS + h) * DIM + i] * k[((size_t)p * kv + g) * DIM + i];
                score[p] = exp(sum * scale);
                total += score[p];
            }
            for (uint32_t i = 0; i < DIM; i++) {
                to[i] = 0;
                for (uint32_t p = first; p <= r; p++) to[i] += score[p] / total * values[((size_t)p * kv + g) * DIM + i];
            }
        }
}

static void attention(double *y, const double *x, const struct variant *v, uint32_t l) {
    static double q[TOKENS * D], k[TOKENS * D], values[TOKENS * D], out[TOKENS * D];
    char qkv[32];
    snprintf(qkv, sizeof qkv, "blk.%u.attn_qkv.weight", l);
    const bool fused = sh_gguf_tensor(file, qkv) != NULL;
    const uint32_t width = v->kv[l] * DIM;
    product(q, x, D, D, fused ? "attn_qkv" : "attn_q", l, 0);
    product(k, x, D, width, fused ? "attn_qkv" : "attn_k", l, fused ? D : 0);
    product(values, x, D, width, fused ? "attn_qkv" : "attn_v", l, fused ? D + width : 0);
    if (v->qk != QK_NONE) {
        norm_heads(q, HEADS, v, l, "attn_q_norm");
        norm_heads(k, v->kv[l], v, l, "attn_k_norm");
    }
    if (v->base > 0 && !v->still[l]) {
        rotate(q, HEADS, v);
        rotate(k, v->kv[l], v);
    }
    attend(out, q, k, values, v->kv[l], v->window[l], v->scale > 0 ? v->scale : 1 / sqrt(DIM));
    product(y, out, D, D, "attn_output", l, 0);
}

static void feed_forward(double *y, const double *x, const struct variant *v, uint32_t l) {
    static double gate[TOKENS * FF_MAX], up[TOKENS * FF_MAX];
    char name[32];
    snprintf(name, sizeof name, "blk.%u.ffn_gate.weight", l);
    const uint32_t n = v->ff[l];
    const bool fused = v->act != GELU && sh_gguf_tensor(file, name) == NULL;
    product(up, x, D, n, "ffn_up", l, fused ? n : 0);
    if (v->act != GELU) product(gate, x, D, n, fused ? "ffn_up" : "ffn_gate", l, 0);
    for (uint32_t i = 0; i < TOKENS * n; i++) {
        const double z = v->act == GELU ? up[i] : gate[i];
        const double f =
            v->act == SILU_GATED ? z / (1 + exp(-z)) : 0.5 * z * (1 + tanh(sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
        up[i] = v->act == GELU ? f : f * up[i];
    }
    product(y, up, n, D, "ffn_down", l, 0);
}

static void add(double *x, const double *y, double scale) {
    for (uint32_t i = 0; i < TOKENS * D; i++) x[i] += y[i] * (scale > 0 ? scale : 1);
}

/* x becomes the stream after the layer */
static void run_layer(double *x, const struct variant *v, uint32_t l) {
    static double h[TOKENS * D], a[TOKENS * D], f[TOKENS * D];
    char prefix[16];
    snprintf(prefix, sizeof prefix, "blk.%u.", l);
    if (v->post_norm) memcpy(h, x, sizeof h);
    else norm_rows(h, x, v, prefix, "attn_norm");
    attention(a, h, v, l);
    if (v->parallel) {
        feed_forward(f, h, v, l);
        add(x, a, v->residual_scale);
    } else {
        if (v->post_norm) norm_rows(a, a, v, prefix, "post_attention_norm");
        add(x, a, v->residual_scale);
        if (v->post_norm) memcpy(h, x, sizeof h);
        else norm_rows(h, x, v, prefix, "ffn_norm");
        feed_forward(f, h, v, l);
        if (v->post_norm) norm_rows(f, f, v, prefix, "post_ffw_norm");
    }
    add(x, f, v->residual_scale);
}

/* Log-probs [TOKENS][VOCAB] */
static void reference(double *logits, const int32_t *tokens, const struct variant *v) {
    static double x[TOKENS * D], h[TOKENS * D];
    double *embedding = weight("token_embd.weight"), *head = weight("output.weight"), *positions = weight("position_embd.weight");
    for (uint32_t r = 0; r < TOKENS; r++)
        for (uint32_t i = 0; i < D; i++) {
            x[r * D + i] = embedding[(size_t)tokens[r] * D + i] * (v->embedding_scale > 0 ? v->embedding_scale : 1);
            if (v->learned) x[r * D + i] += positions[(size_t)r * D + i];
        }
    for (uint32_t l = 0; l < v->layers; l++) run_layer(x, v, l);
    norm_rows(h, x, v, "", "output_norm");
    for (uint32_t r = 0; r < TOKENS; r++) {
        double *row = logits + (size_t)r * VOCAB, total = 0;
        for (uint32_t o = 0; o < VOCAB; o++) {
            row[o] = 0;
            for (uint32_t i = 0; i < D; i++) row[o] += (head != NULL ? head : embedding)[(size_t)o * D + i] * h[r * D + i];
            row[o] *= v->logit_scale > 0 ? v->logit_scale : 1;
            total += exp(row[o]);
        }
        for (uint32_t o = 0; o < VOCAB; o++) row[o] -= log(total);
    }
    free(embedding);
    free(head);
    free(positions);
}

/* ---- changes ---- */

static void add_random(struct rewrite *r, uint64_t seed, float middle, float spread, uint32_t rank, const uint64_t *dims,
                       const char *name) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < rank; i++) n *= dims[i];
    float *data = malloc(n * sizeof *data);
    assert_non_null(data);
    struct test_rng rng = {seed};
    for (uint64_t i = 0; i < n; i++) data[i] = middle + spread * test_normal(&rng);
    rewrite_tensor_f32(r, name, rank, dims, data);
    free(data);
}

static void window_everywhere(struct rewrite *r) { rewrite_u32(r, "llama.attention.sliding_window", 24); }
static void phi3_window(struct rewrite *r) { rewrite_u32(r, "phi3.attention.sliding_window", 24); }
static void exaone4_window(struct rewrite *r) {
    rewrite_u32(r, "exaone4.attention.sliding_window", 24);
    rewrite_u32s(r, "exaone4.attention.sliding_window_pattern", (const uint32_t[]){1, 0}, 2);
}
static void granite_still(struct rewrite *r) {
    rewrite_bool(r, "granite.rope.scaling.finetuned", false);
    rewrite_drop_key(r, "granite.attention.scale");
    rewrite_drop_key(r, "granite.embedding_scale");
}
static void minicpm_old(struct rewrite *r) {
    rewrite_drop_key(r, "minicpm.embedding_scale");
    rewrite_drop_key(r, "minicpm.residual_scale");
    rewrite_drop_key(r, "minicpm.logit_scale");
}
static void command_r_plus(struct rewrite *r) {
    for (uint32_t l = 0; l < 2; l++) {
        char name[48];
        snprintf(name, sizeof name, "blk.%u.attn_q_norm.weight", l);
        add_random(r, 10 + l, 1, 0.3f, 2, (const uint64_t[]){DIM, HEADS}, name);
        snprintf(name, sizeof name, "blk.%u.attn_k_norm.weight", l);
        add_random(r, 20 + l, 1, 0.3f, 2, (const uint64_t[]){DIM, 2}, name);
    }
}
static void mpt_learned(struct rewrite *r) {
    rewrite_drop_key(r, "mpt.attention.max_alibi_bias");
    rewrite_drop_key(r, "mpt.attention.clamp_kqv");
    add_random(r, 1, 0, 1, 2, (const uint64_t[]){D, 256}, "position_embd.weight");
    for (uint32_t l = 0; l < 2; l++)
        for (int k = 0; k < 4; k++) {
            char name[48];
            snprintf(name, sizeof name, "blk.%u.attn_%c_norm.%s", l, "qk"[k % 2], k < 2 ? "weight" : "bias");
            add_random(r, 10 + 4 * l + (uint64_t)k, k < 2 ? 1 : 0, 0.3f, 1, (const uint64_t[]){D}, name);
        }
}
static void uneven_layers(struct rewrite *r) {
    rewrite_u32s(r, "llama.attention.head_count_kv", (const uint32_t[]){2, 4}, 2);
    rewrite_u32s(r, "llama.feed_forward_length", (const uint32_t[]){192, 64}, 2);
    add_random(r, 1, 0, 0.1f, 2, (const uint64_t[]){D, D}, "blk.1.attn_k.weight");
    add_random(r, 2, 0, 0.1f, 2, (const uint64_t[]){D, D}, "blk.1.attn_v.weight");
    add_random(r, 3, 0, 0.1f, 2, (const uint64_t[]){D, 64}, "blk.1.ffn_gate.weight");
    add_random(r, 4, 0, 0.1f, 2, (const uint64_t[]){D, 64}, "blk.1.ffn_up.weight");
    add_random(r, 5, 0, 0.1f, 2, (const uint64_t[]){64, D}, "blk.1.ffn_down.weight");
}
/* The rows of a fused tensor as three. */
static void take_apart(struct rewrite *r, uint32_t layer, uint32_t kv) {
    char name[48];
    const uint64_t first[] = {0, D, D + kv * DIM}, rows[] = {D, kv * DIM, kv * DIM};
    for (int part = 0; part < 2; part++) {
        const char *const kind = part == 0 ? "weight" : "bias";
        const uint64_t cols = part == 0 ? D : 1;
        snprintf(name, sizeof name, "blk.%u.attn_qkv.%s", layer, kind);
        uint64_t count;
        float *all = rewrite_values(r, name, &count);
        assert_int_equal(count, cols * (D + 2 * kv * DIM));
        rewrite_drop_tensor(r, name);
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "blk.%u.attn_%c.%s", layer, "qkv"[i], kind);
            const uint64_t dims[] = {part == 0 ? D : rows[i], rows[i]};
            rewrite_tensor_f32(r, name, part == 0 ? 2 : 1, dims, all + first[i] * cols);
        }
        free(all);
    }
}
static void phi2_apart(struct rewrite *r) {
    for (uint32_t l = 0; l < 2; l++) take_apart(r, l, 4);
}
static void chatglm_apart(struct rewrite *r) {
    for (uint32_t l = 0; l < 2; l++) take_apart(r, l, 2);
}

static const struct variant variants[] = {
    {"llama-tied-Q8_0", NULL, 2, {2, 2}, {192, 192}, 0.01, .adjacent = true, .base = 10000},
    {"phi3-Q8_0", NULL, 2, {2, 2}, {192, 192}, 1e-5, .base = 10000},
    {"exaone4-Q8_0", NULL, 2, {2, 2}, {192, 192}, 1e-5, .base = 10000, .qk = QK_HEAD_RMS, .post_norm = true},
    {"command-r-F16",
     NULL,
     2,
     {2, 2},
     {192, 192},
     1e-5,
     .layer_norm = true,
     .parallel = true,
     .adjacent = true,
     .base = 10000,
     .logit_scale = 0.25},

    {"llama-tied-Q8_0", window_everywhere, 2, {2, 2}, {192, 192}, 0.01, .adjacent = true, .base = 10000, .window = {24, 24}},
    {"llama-tied-Q8_0", uneven_layers, 2, {2, 4}, {192, 64}, 0.01, .adjacent = true, .base = 10000},
    {"phi3-Q8_0", phi3_window, 2, {2, 2}, {192, 192}, 1e-5, .base = 10000, .window = {24, 24}},
    {"exaone4-Q8_0",
     exaone4_window,
     2,
     {2, 2},
     {192, 192},
     1e-5,
     .base = 10000,
     .qk = QK_HEAD_RMS,
     .post_norm = true,
     .window = {24, 0},
     .still = {false, true}},
    {"granite-Q8_0", granite_still, 2, {2, 2}, {192, 192}, 0.01, .residual_scale = 0.5, .logit_scale = 1 / 0.8},
    {"minicpm-Q8_0",
     minicpm_old,
     2,
     {2, 2},
     {192, 192},
     1e-5,
     .adjacent = true,
     .base = 10000,
     .embedding_scale = 12,
     .residual_scale = 0.98994949366116653,
     .logit_scale = 2},
    {"command-r-F16",
     command_r_plus,
     2,
     {2, 2},
     {192, 192},
     1e-5,
     .layer_norm = true,
     .parallel = true,
     .adjacent = true,
     .base = 10000,
     .logit_scale = 0.25,
     .qk = QK_HEADS_LAYER},
    {"mpt-Q8_0", mpt_learned, 2, {4, 4}, {192, 192}, 1e-5, .layer_norm = true, .act = GELU, .learned = true, .qk = QK_ROW_LAYER},
    {"chatglm-Q8_0", chatglm_apart, 2, {2, 2}, {192, 192}, 1e-5, .adjacent = true, .base = 10000, .n_rot = 16},
};

/* Largest difference of a log-prob between a file on the scalar CPU and the reference. The float32 executor is allowed what the parity
 * vectors allow it. */
static void variants_agree_with_double_precision(void **state) {
    (void)state;
    static double expected[TOKENS * VOCAB];
    static float found[TOKENS * VOCAB];
    int32_t tokens[TOKENS];
    struct test_rng rng = {7};
    for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = (int32_t)(test_random(&rng) % VOCAB);
    for (size_t i = 0; i < SH_COUNT(variants); i++) {
        const struct variant *v = &variants[i];
        char path[512];
        snprintf(path, sizeof path, "parity/%s.gguf", v->file);
        struct rewrite *r = rewrite_open(TEST_SHARED(path));
        if (v->change != NULL) v->change(r);
        snprintf(path, sizeof path, "%s", test_scratch("variant.gguf"));
        rewrite_save(r, path);
        struct sh_error err = {0};
        core_ok(sh_gguf_open(path, &file, &err), &err);
        reference(expected, tokens, v);
        sh_gguf_close(file);

        const struct sh_context_params params = {.size = sizeof params, .kv_type = SH_KV_F32, .max_outputs = TOKENS};
        struct core_model m;
        core_load(&m, "cpu-scalar", path, &params);
        core_prefill(&m, core_sequence(&m), tokens, TOKENS, 0, found, NULL);
        core_unload(&m);
        double largest = 0;
        for (uint32_t p = 0; p < TOKENS; p++) {
            double total = 0;
            for (uint32_t o = 0; o < VOCAB; o++) total += exp((double)found[p * VOCAB + o]);
            for (uint32_t o = 0; o < VOCAB; o++) {
                const double difference = fabs((double)found[p * VOCAB + o] - log(total) - expected[p * VOCAB + o]);
                if (!(difference <= largest)) largest = difference;
            }
        }
        if (getenv("SHIMMY_TEST_FIGURES") != NULL) print_message("%-16s %zu largest %.4e\n", v->file, i, largest);
        if (!(largest <= 1e-4)) fail_msg("%s, variant %zu: a log-prob differs by %.3g", v->file, i, largest);
    }
}

/* A fused tensor taken apart is the same model. */
static void apart_or_fused(void **state) {
    (void)state;
    char path[512];
    struct rewrite *r = rewrite_open(TEST_SHARED("parity/phi2-Q8_0.gguf"));
    phi2_apart(r);
    snprintf(path, sizeof path, "%s", test_scratch("apart.gguf"));
    rewrite_save(r, path);
    const int32_t tokens[] = {1, 300, 20, 511, 7, 7, 260};
    enum { N = sizeof tokens / sizeof tokens[0] };
    static float logits[2][N * VOCAB];
    for (int k = 0; k < 2; k++) {
        struct core_model m;
        core_load(&m, "cpu-scalar", k == 0 ? path : TEST_SHARED("parity/phi2-Q8_0.gguf"), NULL);
        core_prefill(&m, core_sequence(&m), tokens, N, 0, logits[k], NULL);
        core_unload(&m);
    }
    for (int i = 0; i < N * VOCAB; i++) assert_true(fabsf(logits[0][i] - logits[1][i]) < 1e-4f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_agree_with_double_precision),
        cmocka_unit_test(apart_or_fused),
    };
    return cmocka_run_group_tests_name("model_variants", tests, NULL, NULL);
}
