/*
 * ref.h - the scalar reference kernels: the arithmetic that every other kernel, on any executor, is tested against. What each op
 * computes is said in program.h; here stand the orders of its roundings.
 *
 * Arithmetic. float32 throughout, a multiply and an add are two roundings (never contracted). A dot product is one sequential sum
 * in ascending k, starting from 0. Weights are dequantised to float (quant.h). Softmax subtracts the maximum and uses expf; its
 * sum ascends over positions, a sink comes last. sigmoid(x) = 1 / (1 + expf(-x)); softplus(x) = x where x > 20, else
 * log1pf(expf(x)). Nothing depends on how many rows are computed together, on chunks, on threads, or on a token's role.
 *
 * All functions are pure: no state, no allocation; any thread. Arrays are row-major, the last dimension contiguous. Outputs may
 * not overlap inputs unless said.
 */
#ifndef SHIMMY_CPU_REF_H
#define SHIMMY_CPU_REF_H

#include "compute/gguf/quant.h"
#include "compute/program/program.h"

/* ---- rows, products and elementwise ops: ref.c ---- */

/* out[cols] = row `row` of w, a matrix of `type` in file layout with rows of `cols` elements. */
void sh_ref_embed(uint32_t type, const void *w, uint64_t cols, uint64_t row, float *out);

/* NORM of n_groups parts of `width` / n_groups elements. x, out [n_rows][width]; out may be x. Sums ascend over a part; then
 * scale = 1 / sqrtf(sum / n + eps) (RMS, LAYER), or 1 / max(sqrtf(sum), eps) (L2); out = (x - mean) * scale * w + bias. */
struct sh_ref_norm {
    enum sh_norm_kind kind;
    uint32_t n_groups, width;
    float eps;
    const float *w, *bias;          /* NULL: none */
    uint32_t w_stride, bias_stride; /* floats from one part's to the next one's: 0 where all parts share them */
};
void sh_ref_norm(const struct sh_ref_norm *norm, const float *x, uint32_t n_rows, float *out);

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

/* out = f(x) over n elements, all kinds but SCALE_POSITION, which is SCALE with a row's own factor. NaN stays NaN. out may be x. */
void sh_ref_unary(enum sh_unary kind, float a, const float *x, uint64_t n, float *out);

/* out[r][i] = act(gate[r][i]) * up[r][i]; gate_width is `width`, or 1: one number for the whole row. out may be gate (of equal
 * width) or up. */
void sh_ref_glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                float *out);

/* out[r] = for each of n_heads heads x's part, then y's; x [n_rows][n_heads * x_dim], y alike. */
void sh_ref_concat(const float *x, uint32_t x_dim, const float *y, uint32_t y_dim, uint32_t n_heads, uint32_t n_rows, float *out);

/* Rotates dimensions first .. first + n_rot of n_heads heads of `dim` floats by one row of the RoPE table, [n_rot / 2][2] (cos,
 * sin): (a, b) -> (a cos - b sin, a sin + b cos). The others are copied. n_rot 0: table is not read. out may be x. */
struct sh_ref_rope {
    uint32_t n_heads, dim, first, n_rot;
    enum sh_rope_pairing pairing;
};
void sh_ref_rope(const struct sh_ref_rope *rope, const float *x, const float *table, float *out);

/* out[o] = x[rows[o]]; x [*][width], out [n_out][width]. */
void sh_ref_gather(const float *x, uint32_t width, const uint32_t *rows, uint32_t n_out, float *out);

/* ---- attention: ref_attention.c ---- */

/* The keys and values of one layer of one sequence, as stored. In a page: K [n_kv_heads][k_dim][page_tokens] at k_offset, so that
 * positions lie side by side as the lanes of a vector, and V [n_kv_heads][page_tokens][v_dim] at v_offset. With v_in_k nothing is
 * stored for V: a value is the first v_dim elements of a key. */
struct sh_ref_cache {
    enum sh_kv_type kv_type;
    void *const *pages; /* by position / page_tokens; those without a position that is read may be NULL */
    uint32_t page_tokens;
    uint64_t k_offset, v_offset; /* bytes, of this layer in a page */
    uint32_t n_kv_heads, k_dim, v_dim;
    bool v_in_k;
};
static inline uint64_t sh_ref_cache_keys(const struct sh_ref_cache *c, uint32_t head) { /* bytes in a page, of a head's first key */
    return c->k_offset + (uint64_t)head * c->page_tokens * c->k_dim * (c->kv_type == SH_KV_F16 ? 2 : 4);
}
static inline uint64_t sh_ref_cache_v(const struct sh_ref_cache *c, uint32_t head, uint32_t position) {
    const uint64_t element = ((uint64_t)head * c->page_tokens + position % c->page_tokens) * c->v_dim;
    return c->v_offset + element * (c->kv_type == SH_KV_F16 ? 2 : 4);
}
/* Stores k [n_kv_heads][k_dim] and v [n_kv_heads][v_dim] (not read with v_in_k) of one position; f16 rounds to nearest even. */
void sh_ref_cache_store(const struct sh_ref_cache *cache, uint32_t position, const float *k, const float *v);

/* Attention of n_heads query heads that share one key/value head over positions [first, end), at least one:
 * s_t = (q . k_t) * scale; with a softcap s_t = softcap * tanhf(s_t / softcap); with slopes s_t -= slope * |position - t|; p =
 * softmax over t, and the sink; out = sum_t p_t v_t, ascending. scratch: n_heads * (end - first) + max(k_dim, v_dim) floats. */
struct sh_ref_attention {
    const struct sh_ref_cache *cache;
    uint32_t kv_head, n_heads;
    const float *q;       /* [n_heads][k_dim] */
    uint32_t position;    /* the query's */
    uint32_t first, end;  /* positions seen */
    float scale, softcap; /* softcap 0: none */
    const float *slopes;  /* [n_heads] or NULL */
    const float *sinks;   /* [n_heads] or NULL */
    float *out;           /* [n_heads][v_dim] */
};
void sh_ref_attention(const struct sh_ref_attention *a, float *scratch);

/* ---- experts: ref_experts.c ---- */

/* ROUTE of one row: logits [n_expert], bias [n_expert] or NULL, out [2 * n_used]. The numbers are always n_used different ones below
 * n_expert, also where logits are no numbers; n_used experts must be left in the groups used. The sum that divides is at least
 * 2^-14. scratch: SH_REF_ROUTE_SCRATCH(n_expert) floats. */
struct sh_ref_route {
    uint32_t n_expert, n_used;
    enum sh_gating gating;
    bool normalise;
    float scale;
    uint32_t n_groups, n_groups_used; /* n_groups <= 1: none */
};
#define SH_REF_ROUTE_SCRATCH(n_expert) (5 * (uint64_t)(n_expert))
void sh_ref_route(const struct sh_ref_route *r, const float *logits, const float *bias, float *scratch, float *out);

/* EXPERT_SUM of one row: x [n_used][width], route [2 * n_used]; sums ascend from 0. */
void sh_ref_expert_sum(const float *x, const float *route, uint32_t n_used, uint32_t width, float *out);

/* ---- recurrent ops: ref_recurrent.c. Rows in order, one after the other; `before` NULL is a state of zeros; `after` is written
 * whole for the channels or columns asked for, and is no part of `before`. ---- */

/* CONV for channels [c0, c1): x, out [n_rows][channels]; w [channels][d_conv]; state [channels][d_conv - 1]. The sum ascends over the
 * taps from 0, then the bias. */
struct sh_ref_conv {
    const float *before;
    float *after;
    const float *x, *w, *bias; /* bias NULL: none */
    uint32_t n_rows, channels, d_conv;
    float *out;
};
void sh_ref_conv(const struct sh_ref_conv *c, uint32_t c0, uint32_t c1);

/* SCAN for channels [c0, c1): x, dt, out [n_rows][d_inner]; b, c [n_rows][n_state]; a [d_inner][n_state], d [d_inner]; state [d_inner]
 * [n_state]. h = expf(delta * a) * h + b * (delta * x); out = (sum_s c_s h_s, ascending from 0) + d * x. */
struct sh_ref_scan {
    const float *before;
    float *after;
    const float *x, *dt, *b, *c, *a, *d;
    uint32_t n_rows, d_inner, n_state;
    float *out;
};
void sh_ref_scan(const struct sh_ref_scan *s, uint32_t c0, uint32_t c1);

/* DELTA_NET for columns [j0, j1) of value head h: q, k [n_rows][n_k_heads][k_dim], v, out [n_rows][n_v_heads][v_dim], decay, beta
 * [n_rows][n_v_heads]; state [n_v_heads][k_dim][v_dim]. Columns do not touch each other. Sums over k_dim ascend from 0; scale
 * multiplies the sum. scratch: 2 * (j1 - j0) floats. */
struct sh_ref_delta {
    const float *before;
    float *after;
    const float *q, *k, *v, *decay, *beta;
    const float *a, *dt_bias; /* [n_v_heads] */
    uint32_t n_rows, n_k_heads, n_v_heads, k_dim, v_dim;
    bool tiled;
    float scale;
    float *out;
};
void sh_ref_delta_net(const struct sh_ref_delta *d, uint32_t h, uint32_t j0, uint32_t j1, float *scratch);
/* Of row r and value head h: the key head, g = expf(a * softplus(decay + dt_bias)) and sigmoid(beta). */
struct sh_ref_delta_gate {
    uint32_t k_head;
    float g, beta;
};
struct sh_ref_delta_gate sh_ref_delta_gate(const struct sh_ref_delta *d, uint32_t r, uint32_t h);

#endif
