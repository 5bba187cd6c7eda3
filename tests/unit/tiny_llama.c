#include "tests/unit/tiny_llama.h"

#include "compute/gguf/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void put_half(uint8_t *at, float value) {
    const uint16_t h = sh_f32_to_f16(value);
    memcpy(at, &h, sizeof h);
}

static void random_block(uint32_t type, float amplitude, struct test_rng *rng, uint8_t *block, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++) block[i] = (uint8_t)(test_random(rng) >> 40);
    const float vary = test_uniform(rng, 0.25f, 1.0f) * (test_random(rng) & 1 ? -1.0f : 1.0f);
    switch (type) {
    case SH_TYPE_F32: {
        const float f = test_uniform(rng, -amplitude, amplitude);
        memcpy(block, &f, sizeof f);
        break;
    }
    case SH_TYPE_F16: put_half(block, test_uniform(rng, -amplitude, amplitude)); break;
    case SH_TYPE_BF16: {
        const uint16_t b = sh_f32_to_bf16(test_uniform(rng, -amplitude, amplitude));
        memcpy(block, &b, sizeof b);
        break;
    }
    case SH_TYPE_Q4_0: put_half(block, vary * amplitude / 8.0f); break;
    case SH_TYPE_Q8_0: put_half(block, vary * amplitude / 128.0f); break;
    case SH_TYPE_Q4_K: /* d * sc * q - dmin * m, each term up to its half */
    case SH_TYPE_Q5_K:
        put_half(block, fabsf(vary) * amplitude / (63.0f * (type == SH_TYPE_Q4_K ? 15.0f : 31.0f)));
        put_half(block + 2, fabsf(vary) * amplitude / 63.0f);
        break;
    case SH_TYPE_Q6_K: put_half(block + 208, vary * amplitude / (128.0f * 32.0f)); break;
    case SH_TYPE_Q4_1: /* d * q + m */
    case SH_TYPE_Q5_1:
        put_half(block, vary * amplitude / (type == SH_TYPE_Q4_1 ? 15.0f : 31.0f));
        put_half(block + 2, -vary * amplitude / 2.0f);
        break;
    case SH_TYPE_Q5_0: put_half(block, vary * amplitude / 16.0f); break;
    case SH_TYPE_Q2_K: /* d * sc * q - dmin * m */
        put_half(block + 80, fabsf(vary) * amplitude / (15.0f * 3.0f));
        put_half(block + 82, fabsf(vary) * amplitude / 15.0f);
        break;
    case SH_TYPE_Q3_K: put_half(block + 108, vary * amplitude / (32.0f * 4.0f)); break;
    case SH_TYPE_IQ4_NL: put_half(block, vary * amplitude / 127.0f); break;
    case SH_TYPE_IQ4_XS: put_half(block, vary * amplitude / (32.0f * 127.0f)); break;
    case SH_TYPE_MXFP4: block[0] = (uint8_t)(127 + (int)lroundf(log2f(fabsf(vary) * amplitude / 6.0f))); break;
    case SH_TYPE_IQ2_XXS:
    case SH_TYPE_IQ2_XS:
    case SH_TYPE_IQ2_S: put_half(block, vary * amplitude / (3.875f * 43.0f)); break;  /* 15.5 / 4 */
    case SH_TYPE_IQ3_XXS: put_half(block, vary * amplitude / (7.75f * 62.0f)); break; /* 15.5 / 2 */
    case SH_TYPE_IQ3_S: put_half(block, vary * amplitude / (31.0f * 15.0f)); break;
    case SH_TYPE_IQ1_S: put_half(block, vary * amplitude / (15.0f * 1.125f)); break;
    case SH_TYPE_IQ1_M: { /* a nibble of d at the top of each of the four words of scales */
        const uint16_t d = sh_f32_to_f16(vary * amplitude / (15.0f * 1.125f));
        for (int i = 0; i < 4; i++) block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (d >> (4 * i) & 15) << 4);
        break;
    }
    case SH_TYPE_TQ1_0: put_half(block + 52, vary * amplitude); break;
    case SH_TYPE_TQ2_0: put_half(block + 64, vary * amplitude / 2.0f); break;
    default: fail_msg("no random blocks of type %u", type);
    }
}

void test_random_blocks(uint32_t type, uint64_t count, float amplitude, struct test_rng *rng, void *dst) {
    const struct sh_type_info *info = sh_type_info(type);
    assert_non_null(info);
    for (uint64_t i = 0; i < count / info->block_elements; i++)
        random_block(type, amplitude, rng, (uint8_t *)dst + i * info->block_bytes, info->block_bytes);
}

float test_max_difference(const float *a, const float *b, size_t n) {
    float most = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float d = fabsf(a[i] - b[i]);
        if (!(d <= most)) most = d; /* a NaN stays */
    }
    return most;
}

float test_max_magnitude(const float *b, size_t n) {
    float most = 0.0f;
    for (size_t i = 0; i < n; i++) most = fmaxf(most, fabsf(b[i]));
    return most;
}

/* cos and sin of position * 10000^(-2i / dim). */
static float *rope_table(uint32_t context, uint32_t dim) {
    float *table = malloc((size_t)context * dim * sizeof *table);
    assert_non_null(table);
    for (uint32_t p = 0; p < context; p++)
        for (uint32_t i = 0; i < dim / 2; i++) {
            const double angle = p * pow(10000.0, -2.0 * i / dim);
            table[(size_t)p * dim + 2 * i] = (float)cos(angle);
            table[(size_t)p * dim + 2 * i + 1] = (float)sin(angle);
        }
    return table;
}

static uint32_t matrix(struct sh_builder *b, const struct tiny_params *p, uint64_t cols, uint64_t rows, const char *name) {
    const uint32_t w = sh_build_matrix(b, cols, rows, "%s", name);
    if (w != SH_NONE) b->program->weights[w].type = p->type;
    return w;
}

static uint32_t layer(struct sh_builder *b, const struct tiny_params *p, uint32_t x, uint32_t table) {
    const uint32_t q_width = p->n_heads * p->head_dim, kv_width = p->n_kv_heads * p->head_dim, l = b->layer;
    char name[5][48];
    static const char *const stems[5] = {"attn_norm", "attn_q", "attn_k", "attn_v", "ffn_norm"};
    for (int i = 0; i < 5; i++) snprintf(name[i], sizeof name[i], "blk.%u.%s", l, stems[i]);
    uint32_t in = sh_build_norm(b, SH_NORM_RMS, x, 1, sh_build_vector(b, p->n_embd, "%s", name[0]), SH_NONE, 1e-5f, "attn_norm");
    uint32_t qkv[3];
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t width = i == 0 ? q_width : kv_width;
        const uint32_t bias = p->bias ? sh_build_vector(b, width, "%s.bias", name[1 + i]) : SH_NONE;
        qkv[i] = sh_build_matmul(b, in, matrix(b, p, p->n_embd, width, name[1 + i]), bias, stems[1 + i]);
    }
    const struct sh_state_group spec = {
        .kind = SH_STATE_PAGED, .n_kv_heads = p->n_kv_heads, .k_dim = p->head_dim, .v_dim = p->head_dim};
    struct sh_build_attention a = {
        .n_heads = p->n_heads,
        .n_kv_heads = p->n_kv_heads,
        .k_dim = p->head_dim,
        .v_dim = p->head_dim,
        .pairing = p->pairing,
        .n_rot = p->head_dim,
        .rope_table = table,
        .slopes = SH_NONE,
        .sinks = SH_NONE,
        .scale = 1.0f / sqrtf((float)p->head_dim),
    };
    a.group = sh_build_state(b, spec, &a.layer_in_group);
    const uint32_t attended = sh_build_attend(b, &a, qkv[0], qkv[1], qkv[2], "attn_rope", "attn");
    snprintf(name[1], sizeof name[1], "blk.%u.attn_output", l);
    x = sh_build_add(b, x, sh_build_matmul(b, attended, matrix(b, p, q_width, p->n_embd, name[1]), SH_NONE, "attn_output"),
                     "attn_sum");
    in = sh_build_norm(b, SH_NORM_RMS, x, 1, sh_build_vector(b, p->n_embd, "%s", name[4]), SH_NONE, 1e-5f, "ffn_norm");
    snprintf(name[1], sizeof name[1], "blk.%u.ffn_gate", l);
    snprintf(name[2], sizeof name[2], "blk.%u.ffn_up", l);
    snprintf(name[3], sizeof name[3], "blk.%u.ffn_down", l);
    const uint32_t gate = sh_build_matmul(b, in, matrix(b, p, p->n_embd, p->n_ff, name[1]), SH_NONE, "ffn_gate");
    const uint32_t up = sh_build_matmul(b, in, matrix(b, p, p->n_embd, p->n_ff, name[2]), SH_NONE, "ffn_up");
    const uint32_t act = sh_build_glu(b, SH_GLU_SILU, gate, up, "ffn_act");
    return sh_build_add(b, x, sh_build_matmul(b, act, matrix(b, p, p->n_ff, p->n_embd, name[3]), SH_NONE, "ffn_down"), "ffn_sum");
}

static void fill_weights(struct tiny *t) {
    struct test_rng rng = {t->params.seed};
    for (uint32_t i = 0; i < t->program->n_weights; i++) {
        const struct sh_weight *w = &t->program->weights[i];
        const uint64_t count = w->cols * w->rows;
        assert_true(sh_type_row_bytes(w->type, w->cols) > 0);
        t->data[i] = malloc(sh_type_row_bytes(w->type, w->cols) * w->rows);
        t->values[i] = malloc(count * sizeof(float));
        assert_non_null(t->data[i]);
        assert_non_null(t->values[i]);
        if (w->constant != NULL) {
            memcpy(t->data[i], w->constant, count * sizeof(float));
        } else if (w->rows == 1 && strstr(w->name, "norm") != NULL) {
            for (uint64_t k = 0; k < count; k++) ((float *)t->data[i])[k] = test_uniform(&rng, 0.5f, 1.5f);
        } else {
            const float amplitude = w->rows == 1 ? 0.2f : 1.5f / sqrtf((float)w->cols);
            test_random_blocks(w->type, count, amplitude, &rng, t->data[i]);
        }
        assert_true(sh_dequantize(w->type, t->data[i], t->values[i], count));
    }
}

struct tiny *tiny_create(const struct tiny_params *params) {
    const struct tiny_params *p = params;
    struct tiny *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->params = *p;
    t->program = sh_program_create();
    assert_non_null(t->program);
    struct sh_error err = {0};
    struct sh_builder b = {.program = t->program, .layer = SH_NONE, .err = &err};
    t->program->n_layers = p->n_layers;
    t->program->n_embd = p->n_embd;
    t->program->n_vocab = p->n_vocab;
    t->program->context_length = p->context;
    const uint32_t table = sh_build_constant(&b, p->head_dim, p->context, rope_table(p->context, p->head_dim), "rope_table");
    const uint32_t embd = matrix(&b, p, p->n_embd, p->n_vocab, "token_embd");
    uint32_t x = sh_build_embed(&b, embd, SH_EMBED_TOKEN, "embd");
    for (uint32_t l = 0; l < p->n_layers; l++) {
        b.layer = l;
        x = layer(&b, p, x, table);
    }
    b.layer = SH_NONE;
    x = sh_build_gather_out(&b, x, "gathered");
    t->program->hidden =
        sh_build_norm(&b, SH_NORM_RMS, x, 1, sh_build_vector(&b, p->n_embd, "output_norm"), SH_NONE, 1e-5f, "hidden");
    const uint32_t head = p->tied ? embd : matrix(&b, p, p->n_embd, p->n_vocab, "output");
    t->program->logits = sh_build_matmul(&b, t->program->hidden, head, SH_NONE, "logits");
    if (b.code != SH_OK) fail_msg("%s", err.message);
    t->data = calloc(t->program->n_weights, sizeof *t->data);
    t->values = calloc(t->program->n_weights, sizeof *t->values);
    assert_non_null(t->data);
    assert_non_null(t->values);
    fill_weights(t);
    return t;
}

void tiny_destroy(struct tiny *t) {
    for (uint32_t i = 0; i < t->program->n_weights; i++) {
        free(t->data[i]);
        free(t->values[i]);
    }
    free(t->data);
    free(t->values);
    sh_program_destroy(t->program);
    free(t);
}

struct sh_segment tiny_segment(const struct tiny *t) {
    return (struct sh_segment){.program = t->program, .first_op = 0, .n_ops = t->program->n_ops};
}

struct sh_exec_model *tiny_load(const struct tiny *t, struct sh_device *device, const struct sh_segment *segment) {
    struct sh_error err = {0};
    struct sh_exec_model *model = NULL;
    const struct sh_executor *e = device->executor;
    if (e->model_create(device, segment, 1, &model, &err) != SH_OK) fail_msg("%s", err.message);
    uint32_t *weights, count;
    assert_int_equal(sh_segment_weights(segment, 1, &weights, &count, &err), SH_OK);
    for (uint32_t i = 0; i < count; i++) {
        const struct sh_weight *w = &t->program->weights[weights[i]];
        const uint64_t row_bytes = sh_type_row_bytes(w->type, w->cols);
        uint64_t piece = 1;
        for (uint64_t row = 0; row < w->rows; row += piece, piece = piece % 23 + 7) {
            if (piece > w->rows - row) piece = w->rows - row;
            if (e->weight_rows(model, weights[i], row, piece, (uint8_t *)t->data[weights[i]] + row * row_bytes, &err) != SH_OK)
                fail_msg("%s", err.message);
        }
    }
    free(weights);
    if (e->model_finish(model, &err) != SH_OK) fail_msg("%s", err.message);
    return model;
}

/* ---- the plain forward pass ---- */

static const float *values(const struct tiny *t, const char *name) {
    for (uint32_t i = 0; i < t->program->n_weights; i++)
        if (strcmp(t->program->weights[i].name, name) == 0) return t->values[i];
    fail_msg("no weight %s", name);
    return NULL;
}
static const float *layer_values(const struct tiny *t, uint32_t l, const char *stem) {
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", l, stem);
    return values(t, name);
}

static void norm(const double *x, const float *w, uint32_t n, double *out) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += x[i] * x[i];
    const double scale = 1 / sqrt(sum / n + 1e-5);
    for (uint32_t i = 0; i < n; i++) out[i] = x[i] * scale * w[i];
}

static void multiply(const double *x, const float *w, uint32_t cols, uint32_t n_rows, double *out) {
    for (uint32_t n = 0; n < n_rows; n++) {
        double sum = 0;
        for (uint32_t k = 0; k < cols; k++) sum += x[k] * w[(size_t)n * cols + k];
        out[n] = sum;
    }
}

static void rotate(const struct tiny *t, double *x, uint32_t n_heads, uint32_t position) {
    const uint32_t dim = t->params.head_dim;
    for (uint32_t h = 0; h < n_heads; h++, x += dim)
        for (uint32_t i = 0; i < dim / 2; i++) {
            const double angle = position * pow(10000.0, -2.0 * i / dim), c = cos(angle), s = sin(angle);
            double *a = x + (t->params.pairing == SH_ROPE_ADJACENT ? 2 * i : i);
            double *b = x + (t->params.pairing == SH_ROPE_ADJACENT ? 2 * i + 1 : i + dim / 2);
            const double first = *a * c - *b * s, second = *a * s + *b * c;
            *a = first;
            *b = second;
        }
}

static void attend(const struct tiny_params *p, const double *q, const double *keys, const double *vals, uint32_t position,
                   double *out) {
    const uint32_t dim = p->head_dim, kv_width = p->n_kv_heads * dim;
    double *scores = calloc(position + 1, sizeof *scores);
    assert_non_null(scores);
    for (uint32_t h = 0; h < p->n_heads; h++) {
        const uint32_t base = h / (p->n_heads / p->n_kv_heads) * dim;
        double most = -INFINITY, sum = 0;
        for (uint32_t j = 0; j <= position; j++) {
            double dot = 0;
            for (uint32_t d = 0; d < dim; d++) dot += q[h * dim + d] * keys[(size_t)j * kv_width + base + d];
            scores[j] = dot / sqrt(dim);
            most = fmax(most, scores[j]);
        }
        for (uint32_t j = 0; j <= position; j++) sum += scores[j] = exp(scores[j] - most);
        for (uint32_t d = 0; d < dim; d++) {
            double v = 0;
            for (uint32_t j = 0; j <= position; j++) v += scores[j] * vals[(size_t)j * kv_width + base + d];
            out[h * dim + d] = v / sum;
        }
    }
    free(scores);
}

float *tiny_reference(const struct tiny *t, const int32_t *tokens, uint32_t n) {
    const struct tiny_params *p = &t->params;
    const uint32_t q_width = p->n_heads * p->head_dim, kv_width = p->n_kv_heads * p->head_dim, e = p->n_embd;
    const size_t cache = (size_t)p->n_layers * n * kv_width;
    double *keys = calloc(cache, sizeof *keys), *vals = calloc(cache, sizeof *vals), *x = calloc(e, sizeof *x);
    double *h = calloc(e, sizeof *h), *q = calloc(q_width, sizeof *q), *o = calloc(q_width, sizeof *o);
    double *gate = calloc(p->n_ff, sizeof *gate), *up = calloc(p->n_ff, sizeof *up), *y = calloc(p->n_vocab, sizeof *y);
    float *logits = malloc((size_t)n * p->n_vocab * sizeof *logits);
    assert_true(keys && vals && x && h && q && o && gate && up && y && logits);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < e; k++) x[k] = values(t, "token_embd")[(size_t)tokens[i] * e + k];
        for (uint32_t l = 0; l < p->n_layers; l++) {
            double *k = keys + ((size_t)l * n + i) * kv_width, *v = vals + ((size_t)l * n + i) * kv_width;
            norm(x, layer_values(t, l, "attn_norm"), e, h);
            multiply(h, layer_values(t, l, "attn_q"), e, q_width, q);
            multiply(h, layer_values(t, l, "attn_k"), e, kv_width, k);
            multiply(h, layer_values(t, l, "attn_v"), e, kv_width, v);
            for (uint32_t d = 0; p->bias && d < q_width; d++) q[d] += layer_values(t, l, "attn_q.bias")[d];
            for (uint32_t d = 0; p->bias && d < kv_width; d++) {
                k[d] += layer_values(t, l, "attn_k.bias")[d];
                v[d] += layer_values(t, l, "attn_v.bias")[d];
            }
            rotate(t, q, p->n_heads, i);
            rotate(t, k, p->n_kv_heads, i);
            attend(p, q, keys + (size_t)l * n * kv_width, vals + (size_t)l * n * kv_width, i, o);
            multiply(o, layer_values(t, l, "attn_output"), q_width, e, h);
            for (uint32_t d = 0; d < e; d++) x[d] += h[d];
            norm(x, layer_values(t, l, "ffn_norm"), e, h);
            multiply(h, layer_values(t, l, "ffn_gate"), e, p->n_ff, gate);
            multiply(h, layer_values(t, l, "ffn_up"), e, p->n_ff, up);
            for (uint32_t d = 0; d < p->n_ff; d++) gate[d] = gate[d] / (1 + exp(-gate[d])) * up[d];
            multiply(gate, layer_values(t, l, "ffn_down"), p->n_ff, e, h);
            for (uint32_t d = 0; d < e; d++) x[d] += h[d];
        }
        norm(x, values(t, "output_norm"), e, h);
        multiply(h, values(t, p->tied ? "token_embd" : "output"), e, p->n_vocab, y);
        for (uint32_t d = 0; d < p->n_vocab; d++) logits[(size_t)i * p->n_vocab + d] = (float)y[d];
    }
    double *const all[] = {keys, vals, x, h, q, o, gate, up, y};
    for (size_t i = 0; i < SH_COUNT(all); i++) free(all[i]);
    return logits;
}

float *tiny_run(const struct tiny *t, struct sh_device *device, struct sh_exec_context *context, uint32_t slot,
                const int32_t *tokens, uint32_t n, uint32_t position, uint32_t first_page, enum sh_role role) {
    const struct sh_executor *e = device->executor;
    const uint32_t n_pages = (position + n + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS;
    struct sh_step_row *rows = calloc(n, sizeof *rows);
    struct sh_step_output *outputs = calloc(n, sizeof *outputs);
    uint32_t *pages = calloc(n_pages, sizeof *pages);
    const uint32_t *groups[1] = {pages};
    float *logits = malloc((size_t)n * t->params.n_vocab * sizeof *logits);
    assert_true(rows && outputs && pages && logits);
    for (uint32_t i = 0; i < n_pages; i++) pages[i] = first_page + i;
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (struct sh_step_row){.token = tokens[i], .sampled_from = SH_NONE, .position = position + i, .role = role};
        outputs[i] = (struct sh_step_output){.row = i, .want_logits = true};
    }
    const struct sh_step_sequence sequence = {.n_rows = n, .pages = groups, .n_pages = n_pages};
    const struct sh_step step = {
        .rows = rows, .n_rows = n, .sequences = &sequence, .n_sequences = 1, .outputs = outputs, .n_outputs = n};
    struct sh_error err = {0};
    struct sh_step_result result;
    if (e->pool_reserve(context, 0, first_page + n_pages, &err) != SH_OK) fail_msg("%s", err.message);
    if (e->submit(context, slot, 0, &step, &err) != SH_OK) fail_msg("%s", err.message);
    if (e->wait(context, slot, -1, &result, &err) != SH_OK) fail_msg("%s", err.message);
    for (uint32_t i = 0; i < n; i++) {
        assert_non_null(result.logits[i]);
        memcpy(logits + (size_t)i * t->params.n_vocab, result.logits[i], t->params.n_vocab * sizeof *logits);
    }
    free(rows);
    free(outputs);
    free(pages);
    return logits;
}
