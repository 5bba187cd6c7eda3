/*
 * ref.h - the scalar reference kernels: the arithmetic that every other kernel, on any executor, is tested against.
 *
 * Arithmetic. float32 throughout, a multiply and an add are two roundings (never contracted). A dot product is one sequential sum
 * in ascending k, starting from 0. Weights are dequantised to float (quant.h). Softmax subtracts the maximum and uses expf; its
 * sum ascends over positions. Nothing depends on how many rows are computed together, on chunks, on threads, or on a token's
 * role.
 *
 * All functions are pure: no state, no allocation; any thread. Arrays are row-major, the last dimension contiguous. Outputs may
 * not overlap inputs unless said.
 */
#ifndef SHIMMY_CPU_REF_H
#define SHIMMY_CPU_REF_H

#include "compute/gguf/quant.h"
#include "compute/program/program.h"

/* out[cols] = row `row` of w, a matrix of `type` in file layout with rows of `cols` elements. */
void sh_ref_embed(uint32_t type, const void *w, uint64_t cols, uint64_t row, float *out);

/* out[r][i] = x[r][i] / sqrt(mean_i(x[r][i]^2) + eps) * w[i]; x, out [n_rows][width], w [width]. out may be x. */
void sh_ref_rms_norm(const float *x, const float *w, uint32_t n_rows, uint32_t width, float eps, float *out);

/* out[r][n] = sum_k x[r][k] * w[n][k] (+ bias[n]) (+ residual[r][n]) for weight rows n in [n0, n1), added in this order.
 * w: [rows][cols] of `type` in file layout; x: rows of `cols` floats, x_stride floats apart; residual and out: [n_rows][rows];
 * residual may be out. bias and residual may be NULL. scratch: SH_REF_MATMUL_SCRATCH(cols) floats, 16-byte aligned. */
#define SH_REF_LANES 16
#define SH_REF_MATMUL_SCRATCH(cols) ((uint64_t)(cols) * (SH_REF_LANES + 1))
struct sh_ref_matmul {
    uint32_t type;
    const void *w;
    uint64_t cols, rows;
    const float *x;
    uint64_t x_stride;
    uint32_t n_rows;
    const float *bias, *residual;
    float *out;
};
void sh_ref_matmul(const struct sh_ref_matmul *m, uint64_t n0, uint64_t n1, float *scratch);

/* out = x + y over n elements; out may be x or y. */
void sh_ref_add(const float *x, const float *y, uint64_t n, float *out);

/* Rotates n_heads heads of `dim` floats by one row of the RoPE table, [n_rot / 2][2] (cos, sin): (a, b) -> (a cos - b sin, a sin
 * + b cos). Dimensions from n_rot on are copied. out may be x. */
void sh_ref_rope(const float *x, uint32_t n_heads, uint32_t dim, uint32_t n_rot, enum sh_rope_pairing pairing, const float *table,
                 float *out);

/* The keys and values of one layer of one sequence, as stored. */
struct sh_ref_cache {
    enum sh_kv_type kv_type;
    void *const *pages; /* by position / page_tokens */
    uint32_t page_tokens;
    uint64_t k_offset, v_offset; /* bytes, of this layer in a page */
    uint32_t n_kv_heads, k_dim, v_dim;
};
/* In a page: K [n_kv_heads][page_tokens][k_dim] at k_offset, V [n_kv_heads][page_tokens][v_dim] at v_offset. */
static inline uint64_t sh_ref_cache_k(const struct sh_ref_cache *c, uint32_t head, uint32_t position) {
    const uint64_t element = ((uint64_t)head * c->page_tokens + position % c->page_tokens) * c->k_dim;
    return c->k_offset + element * (c->kv_type == SH_KV_F16 ? 2 : 4);
}
static inline uint64_t sh_ref_cache_v(const struct sh_ref_cache *c, uint32_t head, uint32_t position) {
    const uint64_t element = ((uint64_t)head * c->page_tokens + position % c->page_tokens) * c->v_dim;
    return c->v_offset + element * (c->kv_type == SH_KV_F16 ? 2 : 4);
}
/* Stores k [n_kv_heads][k_dim] and v [n_kv_heads][v_dim] of one position; f16 rounds to nearest even. */
void sh_ref_cache_store(const struct sh_ref_cache *cache, uint32_t position, const float *k, const float *v);

/* Attention of n_heads query heads that share one key/value head over positions [0, n_positions): q [n_heads][k_dim],
 * out [n_heads][v_dim] = softmax_t(q . k_t * scale) v. n_positions >= 1. scratch: n_heads * n_positions + max(k_dim, v_dim)
 * floats. */
void sh_ref_attention(const struct sh_ref_cache *cache, uint32_t kv_head, const float *q, uint32_t n_heads, uint32_t n_positions,
                      float scale, float *scratch, float *out);

/* out = act(gate) * up over n elements; silu(a) = a / (1 + exp(-a)). out may be gate or up. */
void sh_ref_glu(enum sh_glu act, const float *gate, const float *up, uint64_t n, float *out);

/* out[o] = x[rows[o]]; x [*][width], out [n_out][width]. */
void sh_ref_gather(const float *x, uint32_t width, const uint32_t *rows, uint32_t n_out, float *out);

#endif
