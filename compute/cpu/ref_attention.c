/* The scalar reference: keys and values as stored, and attention over them. */
#include "compute/cpu/ref.h"

#include <math.h>

/* Elements `stride` apart in the cache. */
static void store(enum sh_kv_type type, const float *src, uint32_t n, void *dst, uint32_t stride) {
    if (type == SH_KV_F32) {
        for (uint32_t i = 0; i < n; i++) ((float *)dst)[(size_t)i * stride] = src[i];
        return;
    }
    uint16_t *half = dst;
    for (uint32_t i = 0; i < n; i++) half[(size_t)i * stride] = sh_f32_to_f16(src[i]);
}

static void fetch(enum sh_kv_type type, const void *src, uint32_t n, uint32_t stride, float *dst) {
    if (type == SH_KV_F32) {
        for (uint32_t i = 0; i < n; i++) dst[i] = ((const float *)src)[(size_t)i * stride];
        return;
    }
    const uint16_t *half = src;
    for (uint32_t i = 0; i < n; i++) dst[i] = sh_f16_to_f32(half[(size_t)i * stride]);
}

static void *key_at(const struct sh_ref_cache *c, uint32_t head, uint32_t position) {
    const uint32_t in_page = position % c->page_tokens * (c->kv_type == SH_KV_F16 ? 2 : 4);
    return (uint8_t *)c->pages[position / c->page_tokens] + sh_ref_cache_keys(c, head) + in_page;
}
static void *value_at(const struct sh_ref_cache *c, uint32_t head, uint32_t position) {
    return (uint8_t *)c->pages[position / c->page_tokens] + sh_ref_cache_v(c, head, position);
}

void sh_ref_cache_store(const struct sh_ref_cache *cache, uint32_t position, const float *k, const float *v) {
    for (uint32_t h = 0; h < cache->n_kv_heads; h++) {
        store(cache->kv_type, k + (size_t)h * cache->k_dim, cache->k_dim, key_at(cache, h, position), cache->page_tokens);
        if (cache->v_in_k) continue;
        store(cache->kv_type, v + (size_t)h * cache->v_dim, cache->v_dim, value_at(cache, h, position), 1);
    }
}

/* scores[h][t - first] of all heads; `row` takes one key. */
static void score(const struct sh_ref_attention *a, float *scores, float *row) {
    const struct sh_ref_cache *cache = a->cache;
    const uint32_t n = a->end - a->first;
    for (uint32_t t = a->first; t < a->end; t++) {
        fetch(cache->kv_type, key_at(cache, a->kv_head, t), cache->k_dim, cache->page_tokens, row);
        const float distance = (float)(t > a->position ? t - a->position : a->position - t);
        for (uint32_t h = 0; h < a->n_heads; h++) {
            const float *q = a->q + (size_t)h * cache->k_dim;
            float s = 0.0f;
            for (uint32_t d = 0; d < cache->k_dim; d++) s += q[d] * row[d];
            s *= a->scale;
            if (a->softcap != 0.0f) s = a->softcap * tanhf(s / a->softcap);
            if (a->slopes != NULL) s -= a->slopes[h] * distance;
            scores[(size_t)h * n + (t - a->first)] = s;
        }
    }
}

static void soften(float *p, uint32_t n, const float *sink) {
    float max = sink != NULL ? *sink : p[0], sum = 0.0f;
    for (uint32_t t = 0; t < n; t++) max = p[t] > max ? p[t] : max;
    for (uint32_t t = 0; t < n; t++) {
        p[t] = expf(p[t] - max);
        sum += p[t];
    }
    if (sink != NULL) sum += expf(*sink - max);
    for (uint32_t t = 0; t < n; t++) p[t] = p[t] / sum;
}

void sh_ref_attention(const struct sh_ref_attention *a, float *scratch) {
    const struct sh_ref_cache *cache = a->cache;
    const uint32_t n = a->end - a->first, v_dim = cache->v_dim;
    float *scores = scratch, *row = scratch + (size_t)a->n_heads * n;
    score(a, scores, row);
    for (uint32_t h = 0; h < a->n_heads; h++) soften(scores + (size_t)h * n, n, a->sinks != NULL ? &a->sinks[h] : NULL);
    memset(a->out, 0, (size_t)a->n_heads * v_dim * sizeof *a->out);
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t position = a->first + t;
        if (cache->v_in_k) fetch(cache->kv_type, key_at(cache, a->kv_head, position), v_dim, cache->page_tokens, row);
        else fetch(cache->kv_type, value_at(cache, a->kv_head, position), v_dim, 1, row);
        for (uint32_t h = 0; h < a->n_heads; h++) {
            const float p = scores[(size_t)h * n + t];
            float *o = a->out + (size_t)h * v_dim;
            for (uint32_t d = 0; d < v_dim; d++) o[d] += p * row[d];
        }
    }
}
