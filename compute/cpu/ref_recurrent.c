/* The scalar reference: ops that carry a state from row to row. */
#include "compute/cpu/ref.h"

#include <math.h>

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
static float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/* The part [begin, begin + n) of a state, as it is before the rows. */
static void begin_state(const float *before, float *after, uint64_t begin, uint64_t n) {
    if (before != NULL) memcpy(after + begin, before + begin, n * sizeof *after);
    else memset(after + begin, 0, n * sizeof *after);
}

void sh_ref_conv(const struct sh_ref_conv *c, uint32_t c0, uint32_t c1) {
    const uint32_t kept = c->d_conv - 1;
    begin_state(c->before, c->after, (uint64_t)c0 * kept, (uint64_t)(c1 - c0) * kept);
    for (uint32_t r = 0; r < c->n_rows; r++)
        for (uint32_t i = c0; i < c1; i++) {
            const float *w = c->w + (size_t)i * c->d_conv, x = c->x[(size_t)r * c->channels + i];
            float *past = c->after + (size_t)i * kept, sum = 0.0f;
            for (uint32_t j = 0; j < kept; j++) sum += w[j] * past[j];
            sum += w[kept] * x;
            if (c->bias != NULL) sum += c->bias[i];
            for (uint32_t j = 0; j + 1 < kept; j++) past[j] = past[j + 1];
            if (kept > 0) past[kept - 1] = x;
            c->out[(size_t)r * c->channels + i] = sum;
        }
}

void sh_ref_scan(const struct sh_ref_scan *s, uint32_t c0, uint32_t c1) {
    const uint32_t n = s->n_state;
    begin_state(s->before, s->after, (uint64_t)c0 * n, (uint64_t)(c1 - c0) * n);
    for (uint32_t r = 0; r < s->n_rows; r++) {
        const float *b = s->b + (size_t)r * n, *c = s->c + (size_t)r * n;
        for (uint32_t i = c0; i < c1; i++) {
            const size_t at = (size_t)r * s->d_inner + i;
            const float delta = softplus(s->dt[at]), dx = delta * s->x[at], *a = s->a + (size_t)i * n;
            float *h = s->after + (size_t)i * n, sum = 0.0f;
            for (uint32_t k = 0; k < n; k++) {
                h[k] = expf(delta * a[k]) * h[k] + b[k] * dx;
                sum += c[k] * h[k];
            }
            s->out[at] = sum + s->d[i] * s->x[at];
        }
    }
}

struct sh_ref_delta_gate sh_ref_delta_gate(const struct sh_ref_delta *d, uint32_t r, uint32_t h) {
    const size_t at = (size_t)r * d->n_v_heads + h;
    return (struct sh_ref_delta_gate){
        .k_head = d->tiled ? h % d->n_k_heads : h / (d->n_v_heads / d->n_k_heads),
        .g = expf(d->a[h] * softplus(d->decay[at] + d->dt_bias[h])),
        .beta = sigmoid(d->beta[at]),
    };
}

void sh_ref_delta_net(const struct sh_ref_delta *d, uint32_t h, uint32_t j0, uint32_t j1, float *scratch) {
    const uint32_t n = j1 - j0;
    const size_t head = (size_t)h * d->k_dim * d->v_dim;
    float *change = scratch, *sum = scratch + n;
    for (uint32_t i = 0; i < d->k_dim; i++) begin_state(d->before, d->after, head + (size_t)i * d->v_dim + j0, n);
    for (uint32_t r = 0; r < d->n_rows; r++) {
        const struct sh_ref_delta_gate gate = sh_ref_delta_gate(d, r, h);
        const float *k = d->k + ((size_t)r * d->n_k_heads + gate.k_head) * d->k_dim;
        const float *q = d->q + ((size_t)r * d->n_k_heads + gate.k_head) * d->k_dim;
        const size_t at = ((size_t)r * d->n_v_heads + h) * d->v_dim + j0;
        for (uint32_t j = 0; j < n; j++) change[j] = sum[j] = 0.0f;
        for (uint32_t i = 0; i < d->k_dim; i++) {
            float *s = d->after + head + (size_t)i * d->v_dim + j0;
            for (uint32_t j = 0; j < n; j++) {
                s[j] *= gate.g;
                change[j] += s[j] * k[i];
            }
        }
        for (uint32_t j = 0; j < n; j++) change[j] = gate.beta * (d->v[at + j] - change[j]);
        for (uint32_t i = 0; i < d->k_dim; i++) {
            float *s = d->after + head + (size_t)i * d->v_dim + j0;
            for (uint32_t j = 0; j < n; j++) {
                s[j] += k[i] * change[j];
                sum[j] += s[j] * q[i];
            }
        }
        for (uint32_t j = 0; j < n; j++) d->out[at + j] = d->scale * sum[j];
    }
}
