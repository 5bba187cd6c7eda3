#include "compute/cpu/avx2_attention.h"

#include "compute/cpu/avx2_math.h"

#include <math.h>

#define SPLIT SH_AVX2_ATTENTION_SPLIT /* positions whose softmax is computed together; parts are joined in ascending order */
#define PIECE SH_AVX2_ATTENTION_PIECE

/* Scratch of one item, all 32-byte aligned. Dimensions are padded with zeros to multiples of 8. */
struct work {
    uint32_t k_pad, v_pad;
    float *q;        /* [n_heads][k_pad] */
    float *rows;     /* [PIECE][max(k_pad, v_pad)] keys or values of a piece */
    float *scores;   /* [n_heads][SPLIT] */
    float *partials; /* two: that of this part, and that of all parts before */
};

/* A partial: values [n_heads][v_pad], not yet divided by the sum; then per head the largest score and the sum of exp(score -
 * largest). */
struct partial {
    float *values, *most, *sum;
};

static uint32_t pad8(uint32_t n) { return (n + 7) / 8 * 8; }

uint64_t sh_avx2_attention_partial(uint32_t n_heads, uint32_t v_dim) {
    return (uint64_t)n_heads * pad8(v_dim) + 2 * (uint64_t)pad8(n_heads);
}

static struct partial partial_at(const struct sh_ref_attention *a, float *at) {
    float *most = at + (size_t)a->n_heads * pad8(a->cache->v_dim);
    return (struct partial){at, most, most + pad8(a->n_heads)};
}

uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim) {
    (void)n_positions;
    const uint64_t k = pad8(k_dim), v = pad8(v_dim);
    return (n_heads * k + PIECE * sh_max_u64(k, v) + n_heads * SPLIT + 2 * sh_avx2_attention_partial(n_heads, v_dim)) *
           sizeof(float);
}

static struct work lay_out(const struct sh_ref_attention *a, float *scratch) {
    struct work w = {.k_pad = pad8(a->cache->k_dim), .v_pad = pad8(a->cache->v_dim)};
    w.q = scratch;
    w.rows = w.q + (size_t)a->n_heads * w.k_pad;
    w.scores = w.rows + PIECE * (size_t)(w.k_pad > w.v_pad ? w.k_pad : w.v_pad);
    w.partials = w.scores + (size_t)a->n_heads * SPLIT;
    for (uint32_t h = 0; h < a->n_heads; h++) {
        float *q = w.q + (size_t)h * w.k_pad;
        memcpy(q, a->q + (size_t)h * a->cache->k_dim, a->cache->k_dim * sizeof *q);
        for (uint32_t d = a->cache->k_dim; d < w.k_pad; d++) q[d] = 0.0f;
    }
    return w;
}

/* n rows of `dim` elements, `stride` elements apart -> floats padded to `pad`. */
static void convert(enum sh_kv_type type, const void *src, uint32_t stride, uint32_t n, uint32_t dim, uint32_t pad, float *out) {
    const uint32_t whole = dim / 8 * 8;
    for (uint32_t t = 0; t < n; t++, out += pad) {
        if (type == SH_KV_F32) {
            memcpy(out, (const float *)src + (size_t)t * stride, dim * sizeof *out);
        } else {
            const uint16_t *half = (const uint16_t *)src + (size_t)t * stride;
            for (uint32_t d = 0; d < whole; d += 8)
                _mm256_storeu_ps(out + d, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(half + d))));
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
        for (uint32_t t = 0; t < n; t++)
            o = _mm256_fmadd_ps(_mm256_broadcast_ss(p + t), _mm256_loadu_ps(values + (size_t)t * pad + d), o);
        _mm256_storeu_ps(out + d, o);
    }
}

static void scores_of_piece(const struct sh_avx2_piece *p) {
    convert(p->type, p->src, p->stride, p->n, p->dim, p->pad, p->rows);
    for (uint32_t h = 0; h < p->n_heads; h++)
        score(p->q + (size_t)h * p->pad, p->rows, p->n, p->pad, p->scale, p->scores + (size_t)h * SPLIT);
}

static void values_of_piece(const struct sh_avx2_piece *p) {
    convert(p->type, p->src, p->stride, p->n, p->dim, p->pad, p->rows);
    for (uint32_t h = 0; h < p->n_heads; h++)
        accumulate(p->scores + (size_t)h * SPLIT, p->rows, p->n, p->pad, p->values + (size_t)h * p->pad);
}

static const struct sh_avx2_pieces pieces = {scores_of_piece, values_of_piece};

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

/* Joins a part to what came before it, head by head: total = total * exp(most - new most) + part * exp(part's most - new most).
 */
static void join(const struct sh_ref_attention *a, const struct partial *total, const struct partial *part) {
    const uint32_t v_pad = pad8(a->cache->v_dim);
    for (uint32_t h = 0; h < a->n_heads; h++) {
        const float most = part->most[h] > total->most[h] ? part->most[h] : total->most[h];
        const float old = exp_of(total->most[h] - most), new = exp_of(part->most[h] - most);
        const __m256 old8 = _mm256_set1_ps(old), new8 = _mm256_set1_ps(new);
        float *values = total->values + (size_t)h * v_pad;
        const float *more = part->values + (size_t)h * v_pad;
        for (uint32_t d = 0; d < v_pad; d += 8) {
            const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(values + d), old8);
            _mm256_storeu_ps(values + d, _mm256_fmadd_ps(_mm256_loadu_ps(more + d), new8, kept));
        }
        total->sum[h] = total->sum[h] * old + part->sum[h] * new;
        total->most[h] = most;
    }
}

/* Caps and slopes of scores[0..n) of head h, whose first is of position t. */
static void adjust(const struct sh_ref_attention *a, uint32_t h, uint32_t t, uint32_t n, float *scores) {
    if (a->softcap != 0.0f) {
        const __m256 cap = _mm256_set1_ps(a->softcap);
        for (uint32_t i = 0; i < n; i += 8) {
            float lanes[8] = {0};
            const uint32_t some = n - i < 8 ? n - i : 8;
            memcpy(lanes, scores + i, some * sizeof *lanes);
            _mm256_storeu_ps(lanes, _mm256_mul_ps(cap, sh_avx2_tanh(_mm256_div_ps(_mm256_loadu_ps(lanes), cap))));
            memcpy(scores + i, lanes, some * sizeof *lanes);
        }
    }
    if (a->slopes == NULL) return;
    for (uint32_t i = 0; i < n; i++, t++)
        scores[i] -= a->slopes[h] * (float)(t > a->position ? t - a->position : a->position - t);
}

/* Positions of a part, by its number from the first one. */
static void part_range(const struct sh_ref_attention *a, uint32_t part, uint32_t *begin, uint32_t *end) {
    const uint32_t at = (a->first / SPLIT + part) * SPLIT;
    *begin = at > a->first ? at : a->first;
    *end = a->end - at < SPLIT ? a->end : at + SPLIT;
}

/* Positions from t that lie in one piece: pieces begin at multiples of PIECE, so that they do not cross pages. */
static uint32_t piece_at(uint32_t t, uint32_t end) {
    const uint32_t n = PIECE - t % PIECE;
    return end - t < n ? end - t : n;
}

static void run_part(const struct sh_avx2_pieces *by, const struct sh_ref_attention *a, const struct work *w, uint32_t part,
                     const struct partial *out) {
    const struct sh_ref_cache *c = a->cache;
    uint32_t begin, end;
    part_range(a, part, &begin, &end);
    struct sh_avx2_piece p = {.type = c->kv_type, .n_heads = a->n_heads, .q = w->q, .scale = a->scale, .rows = w->rows};
    p.stride = p.dim = c->k_dim;
    p.pad = w->k_pad;
    for (uint32_t t = begin; t < end; t += p.n) {
        p.n = piece_at(t, end);
        p.src = (const uint8_t *)c->pages[t / c->page_tokens] + sh_ref_cache_k(c, a->kv_head, t);
        p.scores = w->scores + (t - begin);
        by->scores(&p);
        for (uint32_t h = 0; h < a->n_heads; h++) adjust(a, h, t, p.n, p.scores + (size_t)h * SPLIT);
    }
    for (uint32_t h = 0; h < a->n_heads; h++) out->sum[h] = soften(w->scores + (size_t)h * SPLIT, end - begin, &out->most[h]);
    memset(out->values, 0, (size_t)a->n_heads * w->v_pad * sizeof *out->values);
    p.stride = c->v_stride;
    p.dim = c->v_dim;
    p.pad = w->v_pad;
    p.values = out->values;
    for (uint32_t t = begin; t < end; t += p.n) {
        p.n = piece_at(t, end);
        p.src = (const uint8_t *)c->pages[t / c->page_tokens] + sh_ref_cache_v(c, a->kv_head, t);
        p.scores = w->scores + (t - begin);
        by->values(&p);
    }
}

/* The sink joins last, like a part of one score without values. */
static void finish(const struct sh_ref_attention *a, const struct partial *total) {
    const uint32_t v_dim = a->cache->v_dim, v_pad = pad8(v_dim);
    for (uint32_t h = 0; h < a->n_heads; h++) {
        float kept = 1.0f, sum = total->sum[h];
        if (a->sinks != NULL) {
            const float most = a->sinks[h] > total->most[h] ? a->sinks[h] : total->most[h];
            kept = exp_of(total->most[h] - most);
            sum = sum * kept + exp_of(a->sinks[h] - most);
        }
        for (uint32_t d = 0; d < v_dim; d++) a->out[(size_t)h * v_dim + d] = total->values[(size_t)h * v_pad + d] * kept / sum;
    }
}

static uint32_t parts_of(const struct sh_ref_attention *a) { return (a->end - 1) / SPLIT - a->first / SPLIT + 1; }

void sh_avx2_part_by(const struct sh_avx2_pieces *by, const struct sh_ref_attention *a, uint32_t part, float *partial,
                     void *scratch) {
    const struct work w = lay_out(a, scratch);
    const struct partial out = partial_at(a, partial);
    run_part(by, a, &w, part, &out);
}

void sh_avx2_attention_join(const struct sh_ref_attention *a, float *partials) {
    const uint64_t stride = sh_avx2_attention_partial(a->n_heads, a->cache->v_dim);
    const struct partial total = partial_at(a, partials);
    for (uint32_t i = 1; i < parts_of(a); i++) {
        const struct partial part = partial_at(a, partials + i * stride);
        join(a, &total, &part);
    }
    finish(a, &total);
}

void sh_avx2_attention_by(const struct sh_avx2_pieces *by, const struct sh_ref_attention *a, void *scratch) {
    const struct work w = lay_out(a, scratch);
    const struct partial total = partial_at(a, w.partials);
    const struct partial part = partial_at(a, w.partials + sh_avx2_attention_partial(a->n_heads, a->cache->v_dim));
    run_part(by, a, &w, 0, &total);
    for (uint32_t i = 1; i < parts_of(a); i++) {
        run_part(by, a, &w, i, &part);
        join(a, &total, &part);
    }
    finish(a, &total);
}

void sh_avx2_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch) {
    sh_avx2_part_by(&pieces, a, part, partial, scratch);
}
void sh_avx2_attention(const struct sh_ref_attention *a, void *scratch) { sh_avx2_attention_by(&pieces, a, scratch); }
