/*
 * wide_attention.h - attention of a block of query rows, whose arithmetic is stated in kernels.h. Included by avx2_attention.c and
 * avx512_attention.c after the words for their vectors:
 *
 *   LANES, floats; zero(), all(f), load(p), store(p, v), halves(p) (LANES 16-bit floats); fma_of(a, b, c), mul, plus, minus, over (a /
 *   b), larger(a, b); exp_of(v), tanh_of(v) as avx2_math.h has them; largest(v) of all lanes; sum_of(const floats *) of the 16
 *   lanes of 16 / LANES vectors, lane i and i + 8 first; turn(src, src_stride, out, out_stride): 8 by 8 floats transposed
 *   SCORE_TILE, SCORE_TILE_BITS, VALUE_TILE: queries whose sums stay in registers, two vectors of positions or four of dimensions
 *   of each
 *
 * A query is one head of one row. The queries of a block share one kv head, so each page of keys and values becomes floats once for
 * all of them. Keys lie [k_dim][positions] in a page: a lane is a position, and a score needs no sum across lanes. A row's positions
 * that others of its block see beyond its own are computed for keys, where lanes do not touch each other, and left out for values.
 */
#ifndef SHIMMY_CPU_WIDE_ATTENTION_H
#define SHIMMY_CPU_WIDE_ATTENTION_H

#include "compute/cpu/avx2_attention.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)
#define SPLIT SH_AVX2_ATTENTION_SPLIT
#define PIECE SH_AVX2_ATTENTION_PIECE
#define SCORES SH_AVX2_ATTENTION_SCORES
#define MOST_ROWS SH_AVX2_ATTENTION_QUERIES

/* A block's scratch, and which positions of the present part its rows see. */
struct work {
    const struct sh_ref_attention *rows;
    uint32_t n_rows, n_heads, n_queries, k_dim, v_pad;
    float *q;      /* by tiles of score(): from query s on [k_dim][tile] at s * k_dim */
    float *keys;   /* [k_dim][PIECE] */
    float *values; /* [PIECE][v_pad] */
    float *scores; /* [n_queries][SCORES]; by position from the part's begin on */
    struct sh_avx2_partial part, total;
    uint32_t begin[MOST_ROWS], end[MOST_ROWS]; /* from the part's begin on; begin = end: the row sees none of it */
};

static uint32_t pad16(uint32_t n) { return (n + 15) / 16 * 16; }
static uint32_t tile_of(uint32_t n_left) {
    uint32_t tile = SCORE_TILE;
    while (tile > n_left) tile /= 2;
    return tile;
}

static void lay_out(struct work *w, const struct sh_ref_attention *rows, uint32_t n_rows, float *scratch) {
    const struct sh_ref_cache *c = rows->cache;
    w->rows = rows;
    w->n_rows = n_rows;
    w->n_heads = rows->n_heads;
    w->n_queries = n_rows * rows->n_heads;
    w->k_dim = c->k_dim;
    w->v_pad = pad16(c->v_dim);
    w->keys = scratch;
    w->values = w->keys + (size_t)PIECE * c->k_dim;
    w->scores = w->values + (size_t)PIECE * w->v_pad;
    float *partials = w->scores + (size_t)w->n_queries * SCORES;
    w->part = sh_avx2_partial_at(w->n_queries, c->v_dim, partials);
    partials += sh_avx2_attention_partial(w->n_queries, c->v_dim);
    w->total = sh_avx2_partial_at(w->n_queries, c->v_dim, partials);
    w->q = partials + sh_avx2_attention_partial(w->n_queries, c->v_dim);
    for (uint32_t s = 0, tile; s < w->n_queries; s += tile) {
        tile = tile_of(w->n_queries - s);
        for (uint32_t i = 0; i < tile; i++) {
            const float *from = rows[(s + i) / w->n_heads].q + (size_t)((s + i) % w->n_heads) * c->k_dim;
            float *to = w->q + (size_t)s * c->k_dim + i;
            for (uint32_t d = 0; d < c->k_dim; d++) to[(size_t)d * tile] = from[d];
        }
    }
}

/* ---- keys and values as floats ---- */

static const uint8_t *page_of(const struct sh_ref_cache *c, uint32_t position) { return c->pages[position / PIECE]; }

/* Pages are far apart: the next one's is asked for, to the second level, while this one's is computed. Inlined: to GCC a call that
 * only fetches does nothing, and is left out. */
INLINE void fetch(const uint8_t *next, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
}

/* [k_dim][PIECE]: of the page itself where it holds floats. */
static const float *keys_of(const struct sh_ref_cache *c, const uint8_t *page, uint32_t kv_head, uint32_t dim, float *out) {
    const uint8_t *from = page + sh_ref_cache_keys(c, kv_head);
    if (c->kv_type == SH_KV_F32) return (const float *)(const void *)from;
    const uint16_t *half = (const uint16_t *)(const void *)from;
    for (uint32_t i = 0; i < dim * PIECE; i += 16)
        UNROLLED (j, 16 / LANES) store(out + i + LANES * j, halves(half + i + LANES * j));
    return out;
}

/* Rows [begin, end) of [PIECE][v_pad], zeros from v_dim on. */
static void values_of(const struct sh_ref_cache *c, const uint8_t *page, uint32_t kv_head, uint32_t begin, uint32_t end,
                      float *keys, uint32_t v_pad, float *out) {
    if (c->v_in_k) { /* a piece is turned whole: pages have room for all its positions */
        const float *from = keys_of(c, page, kv_head, c->v_dim, keys);
        uint32_t d = 0;
        for (; d + 8 <= c->v_dim; d += 8)
            for (uint32_t t = 0; t < PIECE; t += 8) turn(from + (size_t)d * PIECE + t, PIECE, out + (size_t)t * v_pad + d, v_pad);
        for (; d < v_pad; d++)
            for (uint32_t t = 0; t < PIECE; t++) out[(size_t)t * v_pad + d] = d < c->v_dim ? from[(size_t)d * PIECE + t] : 0.0f;
        return;
    }
    const uint32_t dim = c->v_dim, whole = dim / LANES * LANES;
    for (uint32_t t = begin; t < end; t++) {
        const uint8_t *from = page + sh_ref_cache_v(c, kv_head, t);
        float *to = out + (size_t)t * v_pad;
        if (c->kv_type == SH_KV_F32) {
            memcpy(to, from, dim * sizeof *to);
        } else {
            const uint16_t *half = (const uint16_t *)(const void *)from;
            for (uint32_t d = 0; d < whole; d += LANES) store(to + d, halves(half + d));
            for (uint32_t d = whole; d < dim; d++) to[d] = _cvtsh_ss(half[d]);
        }
        for (uint32_t d = dim; d < v_pad; d++) to[d] = 0.0f;
    }
}

/* ---- scores ---- */

/* PIECE positions of `n` queries: chains over the dimensions in ascending order. */
INLINE void score(const float *q, const float *keys, uint32_t k_dim, float scale, float *scores, const int n) {
    const floats factor = all(scale);
    for (uint32_t t = 0; t < PIECE; t += 2 * LANES) {
        floats first[SCORE_TILE], second[SCORE_TILE];
        UNROLLED (i, n) first[i] = second[i] = zero();
        const float *x = q, *k = keys + t;
        for (uint32_t d = 0; d < k_dim; d++, x += n, k += PIECE) {
            const floats a = load(k), b = load(k + LANES);
            UNROLLED (i, n) {
                const floats each = all(x[i]);
                first[i] = fma_of(each, a, first[i]);
                second[i] = fma_of(each, b, second[i]);
            }
        }
        UNROLLED (i, n) {
            store(scores + (size_t)i * SCORES + t, mul(first[i], factor));
            store(scores + (size_t)i * SCORES + t + LANES, mul(second[i], factor));
        }
    }
}

typedef void score_fn(const float *q, const float *keys, uint32_t k_dim, float scale, float *scores);
#define SCORE(n)                                                                                                                 \
    static void score_##n(const float *q, const float *keys, uint32_t k_dim, float scale, float *scores) {                       \
        score(q, keys, k_dim, scale, scores, n);                                                                                 \
    }
SCORE(1) SCORE(2) SCORE(4)
#if SCORE_TILE >= 8
SCORE(8)
static score_fn *const score_tiles[] = {[1] = score_1, [2] = score_2, [4] = score_4, [8] = score_8};
#else
static score_fn *const score_tiles[] = {[1] = score_1, [2] = score_2, [4] = score_4};
#endif

/* Does any of the queries [s, s + n) see positions [at, at + PIECE) of the part? Rows of a tile are neighbours. */
static bool is_seen(const struct work *w, uint32_t s, uint32_t n, uint32_t at) {
    for (uint32_t r = s / w->n_heads; r <= (s + n - 1) / w->n_heads; r++)
        if (w->begin[r] < at + PIECE && w->end[r] > at) return true;
    return false;
}

static void scores_of_piece(const struct work *w, const float *keys, uint32_t at) {
    for (uint32_t s = 0, n; s < w->n_queries; s += n) {
        n = tile_of(w->n_queries - s);
        if (is_seen(w, s, n, at))
            score_tiles[n](w->q + (size_t)s * w->k_dim, keys, w->k_dim, w->rows->scale, w->scores + (size_t)s * SCORES + at);
    }
}

/* ---- softmax ---- */

/* Caps and slopes of the scores of positions [begin, end) from `first` on. */
static void adjust(const struct sh_ref_attention *a, uint32_t h, uint32_t first, uint32_t begin, uint32_t end, float *scores) {
    if (a->softcap != 0.0f) {
        const floats cap = all(a->softcap);
        for (uint32_t t = begin / LANES * LANES; t < end; t += LANES)
            store(scores + t, mul(cap, tanh_of(over(load(scores + t), cap))));
    }
    for (uint32_t t = begin; a->slopes != NULL && t < end; t++) {
        const uint32_t at = first + t;
        scores[t] -= a->slopes[h] * (float)(at > a->position ? at - a->position : a->position - at);
    }
}

/* scores [begin, end) -> exp(score - most); the rest of the sixteens that they lie in becomes 0. */
static void soften(float *scores, uint32_t begin, uint32_t end, float *most, float *sum) {
    const uint32_t first = begin / 16 * 16, last = pad16(end);
    for (uint32_t t = first; t < begin; t++) scores[t] = -INFINITY;
    for (uint32_t t = end; t < last; t++) scores[t] = -INFINITY;
    floats high = load(scores + first);
    for (uint32_t t = first + LANES; t < last; t += LANES) high = larger(high, load(scores + t));
    *most = largest(high);
    const floats top = all(*most);
    floats sums[16 / LANES];
    UNROLLED (j, 16 / LANES) sums[j] = zero();
    for (uint32_t t = first; t < last; t += 16)
        UNROLLED (j, 16 / LANES) {
            const floats p = exp_of(minus(load(scores + t + LANES * j), top));
            store(scores + t + LANES * j, p);
            sums[j] = plus(sums[j], p);
        }
    *sum = sum_of(sums);
}

/* ---- values ---- */

/* What a tile of queries sees of a piece: positions [begin[i], end[i]). */
struct seen {
    uint32_t begin[VALUE_TILE], end[VALUE_TILE];
};

/* `vectors` of `n` queries: chains over the positions in ascending order, continued from what out holds. */
INLINE void accumulate(const float *p, const float *values, uint32_t v_pad, float *out, const struct seen *seen, const int n,
                       const int vectors) {
    uint32_t first = seen->begin[0], from = first, to = seen->end[0], last = to;
    UNROLLED (i, n) {
        if (seen->begin[i] < first) first = seen->begin[i];
        if (seen->begin[i] > from) from = seen->begin[i];
        if (seen->end[i] < to) to = seen->end[i];
        if (seen->end[i] > last) last = seen->end[i];
    }
    if (to < from) to = from; /* all see [from, to) */
    floats sum[VALUE_TILE][4];
    UNROLLED (i, n)
        UNROLLED (j, vectors) sum[i][j] = load(out + (size_t)i * v_pad + LANES * j);
    uint32_t t = first;
    const float *v = values + (size_t)t * v_pad;
    for (int side = 0; side < 2; side++) { /* those that some do not see, before and behind */
        for (const uint32_t stop = side == 0 ? from : last; t < stop; t++, v += v_pad)
            UNROLLED (i, n) {
                if (t < seen->begin[i] || t >= seen->end[i]) continue;
                const floats weight = all(p[(size_t)i * SCORES + t]);
                UNROLLED (j, vectors) sum[i][j] = fma_of(weight, load(v + LANES * j), sum[i][j]);
            }
        for (; t < to; t++, v += v_pad) {
            floats x[4];
            UNROLLED (j, vectors) x[j] = load(v + LANES * j);
            UNROLLED (i, n) {
                const floats weight = all(p[(size_t)i * SCORES + t]);
                UNROLLED (j, vectors) sum[i][j] = fma_of(weight, x[j], sum[i][j]);
            }
        }
    }
    UNROLLED (i, n)
        UNROLLED (j, vectors) store(out + (size_t)i * v_pad + LANES * j, sum[i][j]);
}

INLINE void accumulate_all(const float *p, const float *values, uint32_t v_pad, float *out, const struct seen *seen,
                           const int n) {
    uint32_t d = 0;
    for (; d + 4 * LANES <= v_pad; d += 4 * LANES) accumulate(p, values + d, v_pad, out + d, seen, n, 4);
    for (; d < v_pad; d += LANES) accumulate(p, values + d, v_pad, out + d, seen, n, 1);
}

static void values_of_piece(const struct work *w, uint32_t at) {
    for (uint32_t s = 0, n; s < w->n_queries; s += n) {
        n = w->n_queries - s >= VALUE_TILE ? VALUE_TILE : 1;
        if (!is_seen(w, s, n, at)) continue;
        struct seen seen;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t r = (s + i) / w->n_heads, begin = w->begin[r], end = w->end[r];
            seen.begin[i] = begin < at ? 0 : begin > at + PIECE ? PIECE : begin - at;
            seen.end[i] = end < at ? 0 : end > at + PIECE ? PIECE : end - at;
        }
        const float *p = w->scores + (size_t)s * SCORES + at;
        float *out = w->part.values + (size_t)s * w->v_pad;
        if (n == VALUE_TILE) accumulate_all(p, w->values, w->v_pad, out, &seen, VALUE_TILE);
        else accumulate_all(p, w->values, w->v_pad, out, &seen, 1);
    }
}

/* ---- parts ---- */

/* The part of all rows that begins at position `first`, a multiple of SPLIT. */
static void run_part(struct work *w, uint32_t first) {
    const struct sh_ref_cache *c = w->rows->cache;
    const uint32_t kv_head = w->rows->kv_head;
    uint32_t begin = SPLIT, end = 0;
    for (uint32_t r = 0; r < w->n_rows; r++) {
        const struct sh_ref_attention *a = &w->rows[r];
        w->begin[r] = a->first > first ? (uint32_t)sh_min_u64(a->first - first, SPLIT) : 0;
        w->end[r] = a->end > first ? (uint32_t)sh_min_u64(a->end - first, SPLIT) : 0;
        if (w->end[r] <= w->begin[r]) {
            w->begin[r] = w->end[r] = 0;
            continue;
        }
        if (w->begin[r] < begin) begin = w->begin[r];
        if (w->end[r] > end) end = w->end[r];
    }
    const uint64_t element = c->kv_type == SH_KV_F16 ? 2 : 4, k_bytes = element * PIECE * c->k_dim;
    const uint64_t v_at = c->v_in_k ? sh_ref_cache_keys(c, kv_head) : sh_ref_cache_v(c, kv_head, 0),
                   v_bytes = element * PIECE * c->v_dim;
    for (uint32_t at = begin / PIECE * PIECE; at < end; at += PIECE) {
        const float *keys = keys_of(c, page_of(c, first + at), kv_head, c->k_dim, w->keys);
        if (at + PIECE < end) fetch(page_of(c, first + at + PIECE) + sh_ref_cache_keys(c, kv_head), k_bytes);
        scores_of_piece(w, keys, at);
    }
    for (uint32_t s = 0; s < w->n_queries; s++) {
        const uint32_t r = s / w->n_heads;
        if (w->begin[r] == w->end[r]) continue;
        float *scores = w->scores + (size_t)s * SCORES;
        adjust(&w->rows[r], s % w->n_heads, first, w->begin[r], w->end[r], scores);
        soften(scores, w->begin[r], w->end[r], &w->part.most[s], &w->part.sum[s]);
    }
    memset(w->part.values, 0, (size_t)w->n_queries * w->v_pad * sizeof *w->part.values);
    for (uint32_t at = begin / PIECE * PIECE; at < end; at += PIECE) {
        values_of(c, page_of(c, first + at), kv_head, at < begin ? begin - at : 0, end - at < PIECE ? end - at : PIECE, w->keys,
                  w->v_pad, w->values);
        if (at + PIECE < end) fetch(page_of(c, first + at + PIECE) + v_at, v_bytes);
        values_of_piece(w, at);
    }
}

/* Joins query i of a part to what came before it: total = total * exp(most - new most) + part * exp(part's most - new most). */
static void join(const struct sh_avx2_partial *total, const struct sh_avx2_partial *part, uint32_t i, uint32_t v_pad) {
    const float most = part->most[i] > total->most[i] ? part->most[i] : total->most[i];
    float factors[LANES];
    store(factors, exp_of(all(total->most[i] - most)));
    const float old = factors[0];
    store(factors, exp_of(all(part->most[i] - most)));
    const float new = factors[0];
    float *values = total->values + (size_t)i * v_pad;
    const float *more = part->values + (size_t)i * v_pad;
    for (uint32_t d = 0; d < v_pad; d += LANES)
        store(values + d, fma_of(load(more + d), all(new), mul(load(values + d), all(old))));
    total->sum[i] = total->sum[i] * old + part->sum[i] * new;
    total->most[i] = most;
}

/* The sink joins last, like a part of one score without values. */
static void finish(const struct sh_ref_attention *a, uint32_t h, const struct sh_avx2_partial *total, uint32_t i) {
    const uint32_t v_dim = a->cache->v_dim, v_pad = pad16(v_dim);
    float kept = 1.0f, sum = total->sum[i];
    if (a->sinks != NULL) {
        const float most = a->sinks[h] > total->most[i] ? a->sinks[h] : total->most[i];
        float factors[LANES];
        store(factors, exp_of(all(total->most[i] - most)));
        kept = factors[0];
        store(factors, exp_of(all(a->sinks[h] - most)));
        sum = sum * kept + factors[0];
    }
    float *values = total->values + (size_t)i * v_pad;
    for (uint32_t d = 0; d < v_pad; d += LANES) store(values + d, over(mul(load(values + d), all(kept)), all(sum)));
    memcpy(a->out + (size_t)h * v_dim, values, v_dim * sizeof *values);
}

INLINE void attention_of_rows(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch) {
    struct work w;
    lay_out(&w, rows, n_rows, scratch);
    uint32_t first = rows->first, end = rows->end;
    for (uint32_t r = 1; r < n_rows; r++) {
        if (rows[r].first < first) first = rows[r].first;
        if (rows[r].end > end) end = rows[r].end;
    }
    for (first = first / SPLIT * SPLIT; first < end; first += SPLIT) {
        run_part(&w, first);
        for (uint32_t i = 0; i < w.n_queries; i++) {
            const uint32_t r = i / w.n_heads;
            if (w.begin[r] == w.end[r]) continue;
            if (rows[r].first < first) {
                join(&w.total, &w.part, i, w.v_pad);
                continue;
            }
            w.total.most[i] = w.part.most[i];
            w.total.sum[i] = w.part.sum[i];
            memcpy(w.total.values + (size_t)i * w.v_pad, w.part.values + (size_t)i * w.v_pad, w.v_pad * sizeof(float));
        }
    }
    for (uint32_t i = 0; i < w.n_queries; i++) finish(&rows[i / w.n_heads], i % w.n_heads, &w.total, i);
}

INLINE void attention_of_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch) {
    struct work w;
    lay_out(&w, a, 1, scratch);
    w.part = sh_avx2_partial_at(a->n_heads, a->cache->v_dim, partial);
    run_part(&w, (a->first / SPLIT + part) * SPLIT);
}

#endif
