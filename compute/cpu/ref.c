#include "compute/cpu/ref.h"

#include <math.h>

/* Four independent sums side by side. A lane is one output, so the order of additions within an output stays sequential. */
typedef float quad __attribute__((vector_size(16)));
#define QUADS (SH_REF_LANES / 4)

void sh_ref_embed(uint32_t type, const void *w, uint64_t cols, uint64_t row, float *out) {
    sh_dequantize(type, (const uint8_t *)w + row * sh_type_row_bytes(type, cols), out, cols);
}

void sh_ref_rms_norm(const float *x, const float *w, uint32_t n_rows, uint32_t width, float eps, float *out) {
    for (uint32_t r = 0; r < n_rows; r++, x += width, out += width) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < width; i++) sum += x[i] * x[i];
        const float scale = 1.0f / sqrtf(sum / (float)width + eps);
        for (uint32_t i = 0; i < width; i++) out[i] = x[i] * scale * w[i];
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

void sh_ref_rope(const float *x, uint32_t n_heads, uint32_t dim, uint32_t n_rot, enum sh_rope_pairing pairing, const float *table,
                 float *out) {
    const uint32_t half = n_rot / 2;
    for (uint32_t h = 0; h < n_heads; h++, x += dim, out += dim) {
        for (uint32_t i = 0; i < half; i++) {
            const uint32_t first = pairing == SH_ROPE_ADJACENT ? 2 * i : i;
            const uint32_t second = pairing == SH_ROPE_ADJACENT ? 2 * i + 1 : i + half;
            const float a = x[first], b = x[second], c = table[2 * i], s = table[2 * i + 1];
            out[first] = a * c - b * s;
            out[second] = a * s + b * c;
        }
        if (out != x) memcpy(out + n_rot, x + n_rot, (dim - n_rot) * sizeof *x);
    }
}

static void store(enum sh_kv_type type, const float *src, uint32_t n, void *dst) {
    if (type == SH_KV_F32) {
        memcpy(dst, src, n * sizeof *src);
        return;
    }
    uint16_t *half = dst;
    for (uint32_t i = 0; i < n; i++) half[i] = sh_f32_to_f16(src[i]);
}

static void fetch(enum sh_kv_type type, const void *src, uint32_t n, float *dst) {
    if (type == SH_KV_F32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    const uint16_t *half = src;
    for (uint32_t i = 0; i < n; i++) dst[i] = sh_f16_to_f32(half[i]);
}

void sh_ref_cache_store(const struct sh_ref_cache *cache, uint32_t position, const float *k, const float *v) {
    uint8_t *page = cache->pages[position / cache->page_tokens];
    for (uint32_t h = 0; h < cache->n_kv_heads; h++) {
        store(cache->kv_type, k + (size_t)h * cache->k_dim, cache->k_dim, page + sh_ref_cache_k(cache, h, position));
        store(cache->kv_type, v + (size_t)h * cache->v_dim, cache->v_dim, page + sh_ref_cache_v(cache, h, position));
    }
}

void sh_ref_attention(const struct sh_ref_cache *cache, uint32_t kv_head, const float *q, uint32_t n_heads, uint32_t n_positions,
                      float scale, float *scratch, float *out) {
    const uint32_t k_dim = cache->k_dim, v_dim = cache->v_dim;
    float *scores = scratch, *row = scratch + (size_t)n_heads * n_positions;
    for (uint32_t t = 0; t < n_positions; t++) {
        const uint8_t *page = cache->pages[t / cache->page_tokens];
        fetch(cache->kv_type, page + sh_ref_cache_k(cache, kv_head, t), k_dim, row);
        for (uint32_t h = 0; h < n_heads; h++) {
            const float *qh = q + (size_t)h * k_dim;
            float sum = 0.0f;
            for (uint32_t d = 0; d < k_dim; d++) sum += qh[d] * row[d];
            scores[(size_t)h * n_positions + t] = sum * scale;
        }
    }
    for (uint32_t h = 0; h < n_heads; h++) { /* weights, normalised */
        float *p = scores + (size_t)h * n_positions;
        float max = p[0], sum = 0.0f;
        for (uint32_t t = 1; t < n_positions; t++) max = p[t] > max ? p[t] : max;
        for (uint32_t t = 0; t < n_positions; t++) {
            p[t] = expf(p[t] - max);
            sum += p[t];
        }
        for (uint32_t t = 0; t < n_positions; t++) p[t] = p[t] / sum;
    }
    memset(out, 0, (size_t)n_heads * v_dim * sizeof *out);
    for (uint32_t t = 0; t < n_positions; t++) {
        const uint8_t *page = cache->pages[t / cache->page_tokens];
        fetch(cache->kv_type, page + sh_ref_cache_v(cache, kv_head, t), v_dim, row);
        for (uint32_t h = 0; h < n_heads; h++) {
            const float p = scores[(size_t)h * n_positions + t];
            float *o = out + (size_t)h * v_dim;
            for (uint32_t d = 0; d < v_dim; d++) o[d] += p * row[d];
        }
    }
}

void sh_ref_glu(enum sh_glu act, const float *gate, const float *up, uint64_t n, float *out) {
    switch (act) {
    case SH_GLU_SILU:
        for (uint64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
        break;
    default: break;
    }
}

void sh_ref_gather(const float *x, uint32_t width, const uint32_t *rows, uint32_t n_out, float *out) {
    for (uint32_t o = 0; o < n_out; o++) memcpy(out + (size_t)o * width, x + (size_t)rows[o] * width, width * sizeof *x);
}
