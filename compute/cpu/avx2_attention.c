#include "compute/cpu/avx2_attention.h"

#include "compute/cpu/avx2_math.h"

#include <math.h>

#define SPLIT 256 /* positions whose softmax is computed together; splits are joined in ascending order */
#define PIECE 32  /* positions converted to floats at a time; divides SPLIT and every page */

/* Scratch of one item, all 32-byte aligned. Dimensions are padded with zeros to multiples of 8. */
struct work {
    uint32_t k_pad, v_pad;
    float *q;      /* [n_heads][k_pad] */
    float *rows;   /* [PIECE][max(k_pad, v_pad)] keys or values of a piece */
    float *scores; /* [n_heads][SPLIT] */
    float *part;   /* [n_heads][v_pad] values of this split */
    float *total;  /* [n_heads][v_pad] of the splits before, too */
    float *most, *sum; /* [n_heads] of the splits before */
    float *split_most, *split_sum;
};

static uint32_t pad8(uint32_t n) { return (n + 7) / 8 * 8; }

uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim) {
    (void)n_positions;
    const uint64_t k = pad8(k_dim), v = pad8(v_dim), heads = pad8(n_heads);
    return (heads * k + PIECE * sh_max_u64(k, v) + heads * SPLIT + 2 * heads * v + 4 * heads) * sizeof(float);
}

static struct work lay_out(const struct sh_cpu_attention *a, float *scratch) {
    struct work w = {.k_pad = pad8(a->cache->k_dim), .v_pad = pad8(a->cache->v_dim)};
    const size_t heads = pad8(a->n_heads);
    w.q = scratch;
    w.rows = w.q + heads * w.k_pad;
    w.scores = w.rows + PIECE * (size_t)(w.k_pad > w.v_pad ? w.k_pad : w.v_pad);
    w.part = w.scores + heads * SPLIT;
    w.total = w.part + heads * w.v_pad;
    w.most = w.total + heads * w.v_pad;
    w.sum = w.most + heads;
    w.split_most = w.sum + heads;
    w.split_sum = w.split_most + heads;
    return w;
}

/* n rows of `dim` elements that stand one after the other -> floats padded to `pad`. */
static void convert(enum sh_kv_type type, const void *src, uint32_t n, uint32_t dim, uint32_t pad, float *out) {
    const uint32_t whole = dim / 8 * 8;
    for (uint32_t t = 0; t < n; t++, out += pad) {
        if (type == SH_KV_F32) {
            memcpy(out, (const float *)src + (size_t)t * dim, dim * sizeof *out);
        } else {
            const uint16_t *half = (const uint16_t *)src + (size_t)t * dim;
            for (uint32_t d = 0; d < whole; d += 8) _mm256_storeu_ps(out + d, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(half + d))));
            for (uint32_t d = whole; d < dim; d++) out[d] = _cvtsh_ss(half[d]);
        }
        for (uint32_t d = dim; d < pad; d++) out[d] = 0.0f;
    }
}

/* scores[t] = sum over lanes (d mod 8), each an fma chain in ascending d, times scale. Four positions side by side. */
static void score(const float *q, const float *keys, uint32_t n, uint32_t pad, float scale, float *scores) {
    uint32_t t = 0;
    for (; t + 4 <= n; t += 4, keys += 4 * (size_t)pad) {
        __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
        for (uint32_t d = 0; d < pad; d += 8) {
            const __m256 x = _mm256_loadu_ps(q + d);
            s0 = _mm256_fmadd_ps(x, _mm256_loadu_ps(keys + d), s0);
            s1 = _mm256_fmadd_ps(x, _mm256_loadu_ps(keys + pad + d), s1);
            s2 = _mm256_fmadd_ps(x, _mm256_loadu_ps(keys + 2 * (size_t)pad + d), s2);
            s3 = _mm256_fmadd_ps(x, _mm256_loadu_ps(keys + 3 * (size_t)pad + d), s3);
        }
        scores[t] = sh_avx2_sum(s0) * scale;
        scores[t + 1] = sh_avx2_sum(s1) * scale;
        scores[t + 2] = sh_avx2_sum(s2) * scale;
        scores[t + 3] = sh_avx2_sum(s3) * scale;
    }
    for (; t < n; t++, keys += pad) {
        __m256 s = _mm256_setzero_ps();
        for (uint32_t d = 0; d < pad; d += 8) s = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(keys + d), s);
        scores[t] = sh_avx2_sum(s) * scale;
    }
}

/* out[d] = fma chain over the piece's positions in ascending order, continued from what out holds. */
static void accumulate(const float *p, const float *values, uint32_t n, uint32_t pad, float *out) {
    uint32_t d = 0;
    for (; d + 32 <= pad; d += 32) {
        __m256 o0 = _mm256_loadu_ps(out + d), o1 = _mm256_loadu_ps(out + d + 8);
        __m256 o2 = _mm256_loadu_ps(out + d + 16), o3 = _mm256_loadu_ps(out + d + 24);
        const float *v = values + d;
        for (uint32_t t = 0; t < n; t++, v += pad) {
            const __m256 weight = _mm256_broadcast_ss(p + t);
            o0 = _mm256_fmadd_ps(weight, _mm256_loadu_ps(v), o0);
            o1 = _mm256_fmadd_ps(weight, _mm256_loadu_ps(v + 8), o1);
            o2 = _mm256_fmadd_ps(weight, _mm256_loadu_ps(v + 16), o2);
            o3 = _mm256_fmadd_ps(weight, _mm256_loadu_ps(v + 24), o3);
        }
        _mm256_storeu_ps(out + d, o0);
        _mm256_storeu_ps(out + d + 8, o1);
        _mm256_storeu_ps(out + d + 16, o2);
        _mm256_storeu_ps(out + d + 24, o3);
    }
    for (; d < pad; d += 8) {
        __m256 o = _mm256_loadu_ps(out + d);
        for (uint32_t t = 0; t < n; t++) o = _mm256_fmadd_ps(_mm256_broadcast_ss(p + t), _mm256_loadu_ps(values + (size_t)t * pad + d), o);
        _mm256_storeu_ps(out + d, o);
    }
}

/* scores -> exp(score - largest); the rest of the last eight becomes 0. Returns the sum by lanes (position mod 8). */
static float soften(float *scores, uint32_t n, float *largest) {
    const uint32_t end = pad8(n);
    for (uint32_t t = n; t < end; t++) scores[t] = -INFINITY;
    __m256 m = _mm256_loadu_ps(scores);
    for (uint32_t t = 8; t < end; t += 8) m = _mm256_max_ps(m, _mm256_loadu_ps(scores + t));
    *largest = sh_avx2_max(m);
    const __m256 most = _mm256_set1_ps(*largest);
    __m256 sum = _mm256_setzero_ps();
    for (uint32_t t = 0; t < end; t += 8) {
        const __m256 p = sh_avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(scores + t), most));
        _mm256_storeu_ps(scores + t, p);
        sum = _mm256_add_ps(sum, p);
    }
    return sh_avx2_sum(sum);
}

static float exp_of(float x) { return _mm256_cvtss_f32(sh_avx2_exp(_mm256_set1_ps(x))); }

/* Joins the split's part of a head to the running total. */
static void join(struct work *w, uint32_t head, bool first) {
    const float largest = w->split_most[head], sum = w->split_sum[head];
    float *total = w->total + (size_t)head * w->v_pad;
    const float *part = w->part + (size_t)head * w->v_pad;
    if (first) {
        memcpy(total, part, w->v_pad * sizeof *total);
        w->most[head] = largest;
        w->sum[head] = sum;
        return;
    }
    const float most = largest > w->most[head] ? largest : w->most[head];
    const float old = exp_of(w->most[head] - most), new = exp_of(largest - most);
    const __m256 old8 = _mm256_set1_ps(old), new8 = _mm256_set1_ps(new);
    for (uint32_t d = 0; d < w->v_pad; d += 8) {
        const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(total + d), old8);
        _mm256_storeu_ps(total + d, _mm256_fmadd_ps(_mm256_loadu_ps(part + d), new8, kept));
    }
    w->sum[head] = w->sum[head] * old + sum * new;
    w->most[head] = most;
}

static void run_split(const struct sh_cpu_attention *a, struct work *w, uint32_t begin, uint32_t end) {
    const struct sh_ref_cache *c = a->cache;
    for (uint32_t t = begin; t < end; t += PIECE) {
        const uint32_t n = end - t < PIECE ? end - t : PIECE;
        convert(c->kv_type, (const uint8_t *)c->pages[t / c->page_tokens] + sh_ref_cache_k(c, a->kv_head, t), n, c->k_dim, w->k_pad, w->rows);
        for (uint32_t h = 0; h < a->n_heads; h++)
            score(w->q + (size_t)h * w->k_pad, w->rows, n, w->k_pad, a->scale, w->scores + (size_t)h * SPLIT + (t - begin));
    }
    for (uint32_t h = 0; h < a->n_heads; h++)
        w->split_sum[h] = soften(w->scores + (size_t)h * SPLIT, end - begin, &w->split_most[h]);
    memset(w->part, 0, (size_t)a->n_heads * w->v_pad * sizeof *w->part);
    for (uint32_t t = begin; t < end; t += PIECE) {
        const uint32_t n = end - t < PIECE ? end - t : PIECE;
        convert(c->kv_type, (const uint8_t *)c->pages[t / c->page_tokens] + sh_ref_cache_v(c, a->kv_head, t), n, c->v_dim, w->v_pad, w->rows);
        for (uint32_t h = 0; h < a->n_heads; h++)
            accumulate(w->scores + (size_t)h * SPLIT + (t - begin), w->rows, n, w->v_pad, w->part + (size_t)h * w->v_pad);
    }
    for (uint32_t h = 0; h < a->n_heads; h++) join(w, h, begin == 0);
}

void sh_avx2_attention(const struct sh_cpu_attention *a, void *scratch) {
    const uint32_t k_dim = a->cache->k_dim, v_dim = a->cache->v_dim;
    struct work w = lay_out(a, scratch);
    for (uint32_t h = 0; h < a->n_heads; h++) {
        memcpy(w.q + (size_t)h * w.k_pad, a->q + (size_t)h * k_dim, k_dim * sizeof(float));
        for (uint32_t d = k_dim; d < w.k_pad; d++) w.q[(size_t)h * w.k_pad + d] = 0.0f;
    }
    for (uint32_t t = 0; t < a->n_positions; t += SPLIT) run_split(a, &w, t, t + SPLIT < a->n_positions ? t + SPLIT : a->n_positions);
    for (uint32_t h = 0; h < a->n_heads; h++) {
        const float *total = w.total + (size_t)h * w.v_pad;
        for (uint32_t d = 0; d < v_dim; d++) a->out[(size_t)h * v_dim + d] = total[d] / w.sum[h];
    }
}
