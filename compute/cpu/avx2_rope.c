/* Rotation and the storing of keys and values: the bits of ref.h's functions, products and sums rounded each by itself. */
#include "compute/cpu/avx2_attention.h"

#include <immintrin.h>
#include <string.h>

/* Pairs [i, n) of a head one by one. */
static void turn_rest(float *x, const float *table, uint32_t i, uint32_t half, enum sh_rope_pairing pairing) {
    for (; i < half; i++) {
        const uint32_t first = pairing == SH_ROPE_ADJACENT ? 2 * i : i, second = pairing == SH_ROPE_ADJACENT ? 2 * i + 1 : i + half;
        const float a = x[first], b = x[second], c = table[2 * i], s = table[2 * i + 1];
        x[first] = a * c - b * s;
        x[second] = a * s + b * c;
    }
}

/* Eight pairs (i, i + half) of all heads. */
static void turn_halves(float *x, uint32_t n_heads, uint32_t dim, uint32_t half, const float *table) {
    const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    const __m256 c = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88)), 0xD8));
    const __m256 s = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xDD)), 0xD8));
    for (uint32_t h = 0; h < n_heads; h++, x += dim) {
        const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + half);
        _mm256_storeu_ps(x, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + half, _mm256_add_ps(_mm256_mul_ps(a, s), _mm256_mul_ps(b, c)));
    }
}

/* Four pairs (2 i, 2 i + 1) of all heads. */
static void turn_adjacent(float *x, uint32_t n_heads, uint32_t dim, const float *table) {
    const __m256 angles = _mm256_loadu_ps(table), c = _mm256_moveldup_ps(angles), s = _mm256_movehdup_ps(angles);
    for (uint32_t h = 0; h < n_heads; h++, x += dim) {
        const __m256 v = _mm256_loadu_ps(x);
        _mm256_storeu_ps(x, _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), s)));
    }
}

void sh_avx2_rope(const struct sh_ref_rope *rope, const float *x, const float *table, float *out) {
    const uint32_t dim = rope->dim, half = rope->n_rot / 2;
    if (out != x) memcpy(out, x, (size_t)rope->n_heads * dim * sizeof *x);
    float *first = out + rope->first;
    uint32_t i = 0;
    if (rope->pairing == SH_ROPE_ADJACENT)
        for (; i + 4 <= half; i += 4) turn_adjacent(first + 2 * i, rope->n_heads, dim, table + 2 * i);
    else
        for (; i + 8 <= half; i += 8) turn_halves(first + i, rope->n_heads, dim, half, table + 2 * i);
    for (uint32_t h = 0; i < half && h < rope->n_heads; h++)
        turn_rest(first + (size_t)h * dim, table, i, half, rope->pairing);
}

/* `stride`: elements of the cache from one to the next. */
static void store(enum sh_kv_type type, const float *src, uint32_t n, void *dst, uint32_t stride) {
    if (type == SH_KV_F32) {
        for (uint32_t i = 0; i < n; i++) ((float *)dst)[(size_t)i * stride] = src[i];
        return;
    }
    uint16_t *half = dst, eight[8];
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i v = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (stride == 1) {
            _mm_storeu_si128((void *)(half + i), v);
            continue;
        }
        _mm_storeu_si128((void *)eight, v);
        for (uint32_t j = 0; j < 8; j++) half[(size_t)(i + j) * stride] = eight[j];
    }
    for (; i < n; i++) half[(size_t)i * stride] = _cvtss_sh(src[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void sh_avx2_cache_store(const struct sh_ref_cache *c, uint32_t position, const float *k, const float *v) {
    uint8_t *page = c->pages[position / c->page_tokens];
    const uint32_t in_page = position % c->page_tokens * (c->kv_type == SH_KV_F16 ? 2 : 4);
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        store(c->kv_type, k + (size_t)h * c->k_dim, c->k_dim, page + sh_ref_cache_keys(c, h) + in_page, c->page_tokens);
        if (!c->v_in_k) store(c->kv_type, v + (size_t)h * c->v_dim, c->v_dim, page + sh_ref_cache_v(c, h, position), 1);
    }
}
