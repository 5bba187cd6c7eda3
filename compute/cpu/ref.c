#include "compute/cpu/ref.h"

#include <math.h>

/* Four independent sums side by side. A lane is one output, so the order of additions within an output stays sequential. */
typedef float quad __attribute__((vector_size(16)));
#define QUADS (SH_REF_LANES / 4)

void sh_ref_embed(uint32_t type, const void *w, uint64_t cols, uint64_t row, float *out) {
    sh_dequantize(type, (const uint8_t *)w + row * sh_type_row_bytes(type, cols), out, cols);
}

/* Mean of one part and the number that its elements are multiplied by. */
static void statistics(const struct sh_ref_norm *norm, const float *x, uint32_t n, float *mean, float *scale) {
    float sum = 0.0f;
    *mean = 0.0f;
    if (norm->kind == SH_NORM_LAYER) {
        for (uint32_t i = 0; i < n; i++) sum += x[i];
        *mean = sum / (float)n;
        sum = 0.0f;
    }
    for (uint32_t i = 0; i < n; i++) {
        const float d = x[i] - *mean;
        sum += d * d;
    }
    if (norm->kind == SH_NORM_L2) {
        const float length = sqrtf(sum);
        *scale = 1.0f / (length > norm->eps ? length : norm->eps);
    } else {
        *scale = 1.0f / sqrtf(sum / (float)n + norm->eps);
    }
}

void sh_ref_norm(const struct sh_ref_norm *norm, const float *x, uint32_t n_rows, float *out) {
    const uint32_t n = norm->width / norm->n_groups;
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t g = 0; g < norm->n_groups; g++, x += n, out += n) {
            const float *w = norm->w != NULL ? norm->w + (size_t)g * norm->w_stride : NULL;
            const float *bias = norm->bias != NULL ? norm->bias + (size_t)g * norm->bias_stride : NULL;
            float mean, scale;
            statistics(norm, x, n, &mean, &scale);
            for (uint32_t i = 0; i < n; i++) {
                float y = (x[i] - mean) * scale;
                if (w != NULL) y *= w[i];
                if (bias != NULL) y += bias[i];
                out[i] = y;
            }
        }
}

/* Dequantises up to SH_REF_LANES weight rows into tile[k][lane]; missing lanes are zero. */
static void load_tile(const struct sh_ref_matmul *m, uint64_t n, uint32_t lanes, float *row, float *tile) {
    const uint64_t row_bytes = sh_type_row_bytes(m->type, m->cols);
    for (uint32_t lane = 0; lane < SH_REF_LANES; lane++) {
        if (lane >= lanes) {
            for (uint64_t k = 0; k < m->cols; k++) tile[k * SH_REF_LANES + lane] = 0.0f;
            continue;
        }
        sh_dequantize(m->type, (const uint8_t *)m->w + (n + lane) * row_bytes, row, m->cols);
        for (uint64_t k = 0; k < m->cols; k++) tile[k * SH_REF_LANES + lane] = row[k];
    }
}

void sh_ref_matmul(const struct sh_ref_matmul *m, uint64_t n0, uint64_t n1, float *scratch) {
    float *tile = scratch, *row = scratch + m->cols * SH_REF_LANES;
    for (uint64_t n = n0; n < n1; n += SH_REF_LANES) {
        const uint32_t lanes = (uint32_t)sh_min_u64(SH_REF_LANES, n1 - n);
        load_tile(m, n, lanes, row, tile);
        for (uint32_t r = 0; r < m->n_rows; r++) {
            const float *x = m->x + r * m->x_stride;
            const quad *w = (const quad *)(const void *)tile;
            quad sum[QUADS] = {{0}};
            for (uint64_t k = 0; k < m->cols; k++, w += QUADS) {
                const quad xk = {x[k], x[k], x[k], x[k]};
                for (uint32_t i = 0; i < QUADS; i++) sum[i] += xk * w[i];
            }
            float y[SH_REF_LANES];
            memcpy(y, sum, sizeof y);
            const uint64_t at = r * m->rows + n;
            for (uint32_t lane = 0; lane < lanes; lane++) {
                float value = y[lane];
                if (m->bias != NULL) value += m->bias[n + lane];
                if (m->residual != NULL) value += m->residual[at + lane];
                m->out[at + lane] = value;
            }
        }
    }
}

void sh_ref_add(const float *x, const float *y, uint64_t n, float *out) {
    for (uint64_t i = 0; i < n; i++) out[i] = x[i] + y[i];
}

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
static float gelu(float x) {
    const float inner = 0.797884560802865356f * (x + 0.044715f * (x * x * x));
    return 0.5f * x * (1.0f + tanhf(inner));
}
static float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106781186547524f)); }
static float silu(float x) { return x / (1.0f + expf(-x)); }
static float relu(float x) { return x < 0.0f ? 0.0f : x; }
static float clamp(float x, float a) { return x < -a ? -a : x > a ? a : x; }

static float unary(enum sh_unary kind, float a, float x) {
    switch (kind) {
    case SH_UNARY_SCALE:
    case SH_UNARY_SCALE_POSITION: return a * x;
    case SH_UNARY_CLAMP: return clamp(x, a);
    case SH_UNARY_SOFTCAP: return a * tanhf(x / a);
    case SH_UNARY_GELU: return gelu(x);
    case SH_UNARY_GELU_ERF: return gelu_erf(x);
    case SH_UNARY_SILU: return silu(x);
    case SH_UNARY_RELU: return relu(x);
    case SH_UNARY_RELU_SQUARED: return relu(x) * relu(x);
    }
    return x;
}

void sh_ref_unary(enum sh_unary kind, float a, const float *x, uint64_t n, float *out) {
    for (uint64_t i = 0; i < n; i++) out[i] = unary(kind, a, x[i]);
}

static float glu(enum sh_glu act, float gate, float up) {
    switch (act) {
    case SH_GLU_SILU: return silu(gate) * up;
    case SH_GLU_GELU: return gelu(gate) * up;
    case SH_GLU_GELU_ERF: return gelu_erf(gate) * up;
    case SH_GLU_RELU: return relu(gate) * up;
    case SH_GLU_SIGMOID: return sigmoid(gate) * up;
    case SH_GLU_MUL: return gate * up;
    case SH_GLU_OAI: {
        const float g = gate > 7.0f ? 7.0f : gate;
        return g / (1.0f + expf(-1.702f * g)) * (clamp(up, 7.0f) + 1.0f);
    }
    }
    return gate;
}

void sh_ref_glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                float *out) {
    for (uint32_t r = 0; r < n_rows; r++, gate += gate_width, up += width, out += width)
        for (uint32_t i = 0; i < width; i++) out[i] = glu(act, gate[gate_width == 1 ? 0 : i], up[i]);
}

void sh_ref_concat(const float *x, uint32_t x_dim, const float *y, uint32_t y_dim, uint32_t n_heads, uint32_t n_rows,
                   float *out) {
    const uint64_t n = (uint64_t)n_rows * n_heads;
    for (uint64_t i = 0; i < n; i++, x += x_dim, y += y_dim, out += x_dim + y_dim) {
        memcpy(out, x, x_dim * sizeof *out);
        memcpy(out + x_dim, y, y_dim * sizeof *out);
    }
}

void sh_ref_rope(const struct sh_ref_rope *rope, const float *x, const float *table, float *out) {
    const uint32_t dim = rope->dim, half = rope->n_rot / 2;
    if (out != x) memcpy(out, x, (size_t)rope->n_heads * dim * sizeof *x);
    for (uint32_t h = 0; h < rope->n_heads; h++, out += dim) {
        float *rotated = out + rope->first;
        for (uint32_t i = 0; i < half; i++) {
            const uint32_t first = rope->pairing == SH_ROPE_ADJACENT ? 2 * i : i;
            const uint32_t second = rope->pairing == SH_ROPE_ADJACENT ? 2 * i + 1 : i + half;
            const float a = rotated[first], b = rotated[second], c = table[2 * i], s = table[2 * i + 1];
            rotated[first] = a * c - b * s;
            rotated[second] = a * s + b * c;
        }
    }
}

void sh_ref_gather(const float *x, uint32_t width, const uint32_t *rows, uint32_t n_out, float *out) {
    for (uint32_t o = 0; o < n_out; o++) memcpy(out + (size_t)o * width, x + (size_t)rows[o] * width, width * sizeof *x);
}
