#include "compute/cpu/avx2_recurrent.h"

#include "compute/cpu/avx2_math.h"

#include <math.h>

/* ---- convolution: eight channels side by side ---- */

#define MOST_TAPS 8 /* kept in registers; longer ones are the reference's */

/* Element k of eight channels' lists of `stride` floats; channels from n on are 0. */
static __m256 column(const float *x, uint32_t stride, uint32_t k, uint32_t n) {
    float lanes[8] = {0};
    for (uint32_t i = 0; i < n && i < 8; i++) lanes[i] = x[(size_t)i * stride + k];
    return _mm256_loadu_ps(lanes);
}
static void store_column(float *out, uint32_t stride, uint32_t k, uint32_t n, __m256 v) {
    float lanes[8];
    _mm256_storeu_ps(lanes, v);
    for (uint32_t i = 0; i < n && i < 8; i++) out[(size_t)i * stride + k] = lanes[i];
}

static void conv_eight(const struct sh_ref_conv *c, uint32_t c0, uint32_t n) {
    const uint32_t taps = c->d_conv, kept = taps - 1;
    __m256 w[MOST_TAPS], past[MOST_TAPS];
    for (uint32_t j = 0; j < taps; j++) w[j] = column(c->w + (size_t)c0 * taps, taps, j, n);
    for (uint32_t j = 0; j < kept; j++)
        past[j] = c->before != NULL ? column(c->before + (size_t)c0 * kept, kept, j, n) : _mm256_setzero_ps();
    for (uint32_t r = 0; r < c->n_rows; r++) {
        past[kept] = sh_avx2_load(c->x + (size_t)r * c->channels + c0, n);
        __m256 sum = _mm256_setzero_ps();
        for (uint32_t j = 0; j < taps; j++) sum = _mm256_fmadd_ps(w[j], past[j], sum);
        if (c->bias != NULL) sum = _mm256_add_ps(sum, sh_avx2_load(c->bias + c0, n));
        sh_avx2_store(c->out + (size_t)r * c->channels + c0, n, sum);
        for (uint32_t j = 0; j < kept; j++) past[j] = past[j + 1];
    }
    for (uint32_t j = 0; j < kept; j++) store_column(c->after + (size_t)c0 * kept, kept, j, n, past[j]);
}

void sh_avx2_conv(const struct sh_ref_conv *c, uint32_t c0, uint32_t c1) {
    if (c->d_conv > MOST_TAPS) {
        sh_ref_conv(c, c0, c1);
        return;
    }
    for (; c0 < c1; c0 += c1 - c0 < 8 ? c1 - c0 : 8) conv_eight(c, c0, c1 - c0);
}

/* ---- selective scan: eight states of a channel side by side ---- */

static float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

static void scan_channel(const struct sh_ref_scan *s, uint32_t i) {
    const uint32_t n = s->n_state;
    const float *a = s->a + (size_t)i * n;
    float *h = s->after + (size_t)i * n;
    if (s->before != NULL) memcpy(h, s->before + (size_t)i * n, n * sizeof *h);
    else memset(h, 0, n * sizeof *h);
    for (uint32_t r = 0; r < s->n_rows; r++) {
        const size_t at = (size_t)r * s->d_inner + i;
        const float *b = s->b + (size_t)r * n, *c = s->c + (size_t)r * n;
        const float delta = softplus(s->dt[at]);
        const __m256 d = _mm256_set1_ps(delta), dx = _mm256_set1_ps(delta * s->x[at]);
        __m256 sum = _mm256_setzero_ps();
        for (uint32_t k = 0; k < n; k += 8) {
            const __m256 kept = sh_avx2_exp(_mm256_mul_ps(d, sh_avx2_load(a + k, n - k)));
            const __m256 more = _mm256_mul_ps(sh_avx2_load(b + k, n - k), dx);
            const __m256 state = _mm256_fmadd_ps(kept, sh_avx2_load(h + k, n - k), more);
            sh_avx2_store(h + k, n - k, state);
            sum = _mm256_fmadd_ps(sh_avx2_load(c + k, n - k), state, sum);
        }
        s->out[at] = sh_avx2_sum(sum) + s->d[i] * s->x[at];
    }
}

void sh_avx2_scan(const struct sh_ref_scan *s, uint32_t c0, uint32_t c1) {
    for (uint32_t i = c0; i < c1; i++) scan_channel(s, i);
}

/* ---- delta net: columns side by side, so that a part of the state stays close while the rows go by ---- */

/* One row of `n` <= 8 * `wide` columns from j; `wide` is a constant at each call. */
static inline void delta_row(const struct sh_ref_delta *d, uint32_t r, uint32_t h, uint32_t j, uint32_t n, const uint32_t wide) {
    const struct sh_ref_delta_gate gate = sh_ref_delta_gate(d, r, h);
    const float *k = d->k + ((size_t)r * d->n_k_heads + gate.k_head) * d->k_dim;
    const float *q = d->q + ((size_t)r * d->n_k_heads + gate.k_head) * d->k_dim;
    const size_t at = ((size_t)r * d->n_v_heads + h) * d->v_dim + j;
    float *state = d->after + (size_t)h * d->k_dim * d->v_dim + j;
    const __m256 g = _mm256_set1_ps(gate.g), beta = _mm256_set1_ps(gate.beta), scale = _mm256_set1_ps(d->scale);
    __m256 change[4], sum[4];
    for (uint32_t v = 0; v < wide; v++) change[v] = sum[v] = _mm256_setzero_ps();
    for (uint32_t i = 0; i < d->k_dim; i++) {
        const __m256 ki = _mm256_set1_ps(k[i]);
        const float *s = state + (size_t)i * d->v_dim;
        for (uint32_t v = 0; v < wide; v++)
            change[v] = _mm256_fmadd_ps(ki, _mm256_mul_ps(g, sh_avx2_load(s + 8 * v, n - 8 * v)), change[v]);
    }
    for (uint32_t v = 0; v < wide; v++)
        change[v] = _mm256_mul_ps(beta, _mm256_sub_ps(sh_avx2_load(d->v + at + 8 * v, n - 8 * v), change[v]));
    for (uint32_t i = 0; i < d->k_dim; i++) {
        const __m256 ki = _mm256_set1_ps(k[i]), qi = _mm256_set1_ps(q[i]);
        float *s = state + (size_t)i * d->v_dim;
        for (uint32_t v = 0; v < wide; v++) {
            const __m256 old = _mm256_mul_ps(g, sh_avx2_load(s + 8 * v, n - 8 * v)), new = _mm256_fmadd_ps(ki, change[v], old);
            sh_avx2_store(s + 8 * v, n - 8 * v, new);
            sum[v] = _mm256_fmadd_ps(qi, new, sum[v]);
        }
    }
    for (uint32_t v = 0; v < wide; v++) sh_avx2_store(d->out + at + 8 * v, n - 8 * v, _mm256_mul_ps(scale, sum[v]));
}

void sh_avx2_delta_net(const struct sh_ref_delta *d, uint32_t h, uint32_t j0, uint32_t j1, float *scratch) {
    (void)scratch;
    const size_t head = (size_t)h * d->k_dim * d->v_dim;
    for (uint32_t i = 0; i < d->k_dim; i++) {
        const size_t at = head + (size_t)i * d->v_dim + j0;
        if (d->before != NULL) memcpy(d->after + at, d->before + at, (j1 - j0) * sizeof *d->after);
        else memset(d->after + at, 0, (j1 - j0) * sizeof *d->after);
    }
    for (uint32_t j = j0; j < j1;) {
        const uint32_t n = j1 - j >= 32 ? 32 : j1 - j >= 8 ? 8 : j1 - j;
        for (uint32_t r = 0; r < d->n_rows; r++) {
            if (n == 32) delta_row(d, r, h, j, n, 4);
            else delta_row(d, r, h, j, n, 1);
        }
        j += n;
    }
}
