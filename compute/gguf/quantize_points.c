/*
 * IQ2_S, IQ3_XXS and IQ3_S: groups of 8 or 4 magnitudes that are points of a codebook, odd numbers 1, 3, 5... times a scale for each
 * run of 16 or 32, signs apart. Candidate scales move the largest magnitude of a run around the outermost level; for each one the
 * groups are rounded, what is no point takes the best of the points around it, and least squares judges the candidate.
 *
 * Which points, candidates and weights: as ggml has them where there is no importance matrix (github.com/ggml-org/ggml,
 * src/ggml-quants.c), and its order of additions in float32, so that the blocks are the same, bit by bit.
 */
#include "compute/gguf/codebooks.h"
#include "compute/gguf/quantize.h"

#include <pthread.h>

enum {
    MAX_GROUP = 8,
    MAX_LEVELS = 8,
    CELLS_IQ3 = 4096,           /* 8 levels to the power of 4 */
    CELLS_IQ2 = 6561,           /* 3 levels to the power of 8 */
    MAX_DISTANCE = 4 * 49,      /* squared, in levels; IQ2's is 8 * 4 */
    NEIGHBOURS_IQ3_XXS = 19241, /* of all cells; they follow from the codebooks */
    NEIGHBOURS_IQ3_S = 25245,
    NEIGHBOURS_IQ2_S = 45740
};

/* A cell is one combination of levels, lowest element first in base `levels`. Its candidates are the point that has these levels, else
 * all points at the `shells` smallest distances from it, nearer ones first, then in the codebook's order. */
struct points {
    const uint16_t *codebook;
    int n_points, group, bits, levels, shells, cells, neighbours;
    uint16_t *first;     /* [cells + 1]: where a cell's candidates begin */
    uint16_t *candidate; /* [neighbours] */
};

static uint16_t first_iq2_s[CELLS_IQ2 + 1], first_iq3_xxs[CELLS_IQ3 + 1], first_iq3_s[CELLS_IQ3 + 1];
static uint16_t candidate_iq2_s[NEIGHBOURS_IQ2_S], candidate_iq3_xxs[NEIGHBOURS_IQ3_XXS], candidate_iq3_s[NEIGHBOURS_IQ3_S];

static const struct points points_iq2_s = {
    sh_codebook_iq2_s, 1024, 8, 2, 3, 1, CELLS_IQ2, NEIGHBOURS_IQ2_S, first_iq2_s, candidate_iq2_s};
static const struct points points_iq3_xxs = {
    sh_codebook_iq3_xxs, 256, 4, 3, 8, 2, CELLS_IQ3, NEIGHBOURS_IQ3_XXS, first_iq3_xxs, candidate_iq3_xxs};
static const struct points points_iq3_s = {
    sh_codebook_iq3_s, 512, 4, 3, 8, 3, CELLS_IQ3, NEIGHBOURS_IQ3_S, first_iq3_s, candidate_iq3_s};

static int level_of(const struct points *p, uint32_t point, int i) {
    return p->codebook[point] >> (p->bits * i) & ((1 << p->bits) - 1);
}

/* The largest distance whose points are candidates of a cell, from how many points there are at each. */
static int reach(const uint16_t *count, int shells) {
    int d = 0;
    if (count[0] > 0) return 0;
    while (shells > 0)
        if (count[++d] > 0) shells--;
    return d;
}

static void list_candidates(const struct points *p) {
    int listed = 0;
    for (int cell = 0; cell < p->cells; cell++) {
        uint16_t count[MAX_DISTANCE + 1] = {0}, at[MAX_DISTANCE + 1];
        uint8_t distance[1024];
        int level[MAX_GROUP];
        for (int i = 0, rest = cell; i < p->group; i++, rest /= p->levels) level[i] = rest % p->levels;
        for (int k = 0; k < p->n_points; k++) {
            int d = 0;
            for (int i = 0; i < p->group; i++) {
                const int step = level_of(p, (uint32_t)k, i) - level[i];
                d += step * step;
            }
            distance[k] = (uint8_t)d;
            count[d]++;
        }
        const int farthest = reach(count, p->shells);
        p->first[cell] = (uint16_t)listed;
        for (int d = 0; d <= farthest; listed += count[d++]) at[d] = (uint16_t)listed;
        SH_ASSERT(listed <= p->neighbours);
        for (int k = 0; k < p->n_points; k++)
            if (distance[k] <= farthest) p->candidate[at[distance[k]]++] = (uint16_t)k;
    }
    SH_ASSERT(listed == p->neighbours);
    p->first[p->cells] = (uint16_t)listed;
}

static void list_iq2_s(void) { list_candidates(&points_iq2_s); }
static void list_iq3_xxs(void) { list_candidates(&points_iq3_xxs); }
static void list_iq3_s(void) { list_candidates(&points_iq3_s); }

struct method {
    const struct points *points;
    int run;         /* values of one scale */
    int tries;       /* candidate scales to each side */
    float step;      /* between them, in units of the outermost level */
    float flat;      /* a value's weight is its square and this much of the block's mean square */
    float least;     /* a run whose magnitudes are all below is zero; 0: only zeros are */
    float widening;  /* of the block's scale, since points are not spread evenly */
    bool even_signs; /* the eighth sign of a group of eight is the parity of the others */
    bool all_again;  /* the last rounding takes in groups that the best candidate put on a point as they were */
};

struct run { /* what does not depend on the candidate */
    float magnitude[32], weight[32], root[32], product[32]; /* root of the weight, weight times magnitude */
    float largest;
};

struct rounded {
    uint16_t point[8];
    bool as_is[8];        /* the group's rounded levels were a point */
    float sum_xq, sum_qq; /* weighted, over the run */
};

struct block { /* what is stored, each type in its own order */
    uint16_t point[64];
    uint8_t signs[32], scale[16];
    float d;
};

/* Magnitudes, signs and weights of a run. */
static void read_run(const struct method *m, const float *x, float flat, struct run *r, uint8_t *signs) {
    for (int i = 0; i < m->run; i++) {
        r->weight[i] = flat + x[i] * x[i];
        r->root[i] = sqrtf(r->weight[i]);
        r->magnitude[i] = x[i] >= 0 ? x[i] : -x[i];
    }
    for (int k = 0; k < m->run / 8; k++) {
        uint32_t negative = 0;
        for (int i = 0; i < 8; i++) negative |= (uint32_t)!(x[8 * k + i] >= 0) << i;
        if (m->even_signs && __builtin_parity(negative)) { /* the sign that costs least is wrong, and its magnitude below zero */
            int cheapest = 0;
            float least = INFINITY;
            for (int i = 0; i < 8; i++) {
                const float *v = x + 8 * k + i;
                const float cost = r->weight[8 * k + i] * *v * *v;
                if (!(cost < least)) continue;
                least = cost;
                cheapest = i;
            }
            r->magnitude[8 * k + cheapest] = -r->magnitude[8 * k + cheapest];
            negative ^= 1u << cheapest;
        }
        signs[k] = (uint8_t)negative;
    }
    r->largest = -INFINITY;
    for (int i = 0; i < m->run; i++) {
        r->product[i] = r->weight[i] * r->magnitude[i];
        if (r->magnitude[i] > r->largest) r->largest = r->magnitude[i];
    }
}

/* The point of a group of magnitudes at a scale. What an element costs at each level is worked out once for all candidates. Inlined with
 * the shape as constants: nearly all of the time goes here. */
static inline __attribute__((always_inline)) uint16_t nearest_of_shape(const struct points *p, int group, int bits, int levels,
                                                                       const float *magnitude, const float *weight, float scale,
                                                                       float inverse, bool *as_is) {
    const uint32_t mask = (1u << bits) - 1;
    uint32_t cell = 0, rounded = 0;
    for (int i = group - 1; i >= 0; i--) {
        const uint32_t level = (uint32_t)sh_nearest(0.5f * (inverse * magnitude[i] - 1), 0, levels - 1);
        cell = cell * (uint32_t)levels + level;
        rounded = rounded << bits | level;
    }
    const uint16_t *candidate = p->candidate + p->first[cell];
    const int n = p->first[cell + 1] - p->first[cell];
    uint16_t best = candidate[0];
    *as_is = p->codebook[best] == rounded;
    if (*as_is) return best;
    float cost[MAX_GROUP][MAX_LEVELS], least = INFINITY;
    for (int i = 0; i < group; i++)
        for (int l = 0; l < levels; l++) {
            const float difference = scale * (float)(2 * l + 1) - magnitude[i];
            cost[i][l] = weight[i] * difference * difference;
        }
    for (int k = 0; k < n; k++) {
        uint32_t levels_left = p->codebook[candidate[k]];
        float sum = 0;
        for (int i = 0; i < group; i++, levels_left >>= bits) sum += cost[i][levels_left & mask];
        if (!(sum < least)) continue;
        least = sum;
        best = candidate[k];
    }
    return best;
}

static uint16_t nearest_point(const struct points *p, const float *magnitude, const float *weight, float scale, float inverse,
                              bool *as_is) {
    return p->group == 4 ? nearest_of_shape(p, 4, 3, 8, magnitude, weight, scale, inverse, as_is)
                         : nearest_of_shape(p, 8, 2, 3, magnitude, weight, scale, inverse, as_is);
}

static void add_up(const struct method *m, const struct run *r, struct rounded *o) {
    const struct points *p = m->points;
    const uint32_t mask = (1u << p->bits) - 1;
    o->sum_xq = o->sum_qq = 0;
    for (int i = 0; i < m->run;) {
        uint32_t levels = p->codebook[o->point[i / p->group]];
        for (const int end = i + p->group; i < end; i++, levels >>= p->bits) {
            const float q = (float)(2 * (levels & mask) + 1);
            o->sum_xq += r->product[i] * q;
            o->sum_qq += r->weight[i] * q * q;
        }
    }
}

/* Points and scale of a run that is not zero. */
static float fit_run(const struct method *m, const struct run *r, uint16_t *point) {
    const struct points *p = m->points;
    const int n = m->run / p->group;
    const float outermost = (float)(2 * p->levels - 1);
    struct rounded best = {0}, now;
    float scale = r->largest / outermost, gain = 0;
    bool settled = !m->all_again;
    for (int c = -m->tries; c <= m->tries; c++) {
        const float inverse = (outermost + (float)c * m->step) / r->largest;
        for (int k = 0; k < n; k++)
            now.point[k] = nearest_point(p, r->magnitude + p->group * k, r->root + p->group * k, 1 / inverse, inverse, &now.as_is[k]);
        add_up(m, r, &now);
        /* the best scale for these points is sum_xq / sum_qq; it lowers the squared error by sum_xq^2 / sum_qq */
        if (!(now.sum_qq > 0 && now.sum_xq * now.sum_xq > gain * now.sum_qq)) continue;
        scale = now.sum_xq / now.sum_qq;
        gain = scale * now.sum_xq;
        best = now;
        settled = true;
        for (int k = 0; k < n; k++) settled &= now.as_is[k];
    }
    if (!settled && scale > 0) {
        for (int k = 0; k < n; k++)
            if (m->all_again || !best.as_is[k])
                best.point[k] =
                    nearest_point(p, r->magnitude + p->group * k, r->root + p->group * k, scale, 1 / scale, &now.as_is[k]);
        add_up(m, r, &best);
        if (best.sum_qq > 0) scale = best.sum_xq / best.sum_qq;
    }
    memcpy(point, best.point, (size_t)n * sizeof *point);
    return scale;
}

static void quantize_block(const struct method *m, const float *x, struct block *b) {
    const int n_runs = 256 / m->run, groups = m->run / m->points->group, bytes = m->run / 8;
    float squares = 0, scales[16], largest = 0;
    memset(b, 0, sizeof *b);
    for (int i = 0; i < 256; i++) squares += x[i] * x[i];
    const float flat = m->flat > 0 ? m->flat * (squares / 256) : 0;
    for (int s = 0; s < n_runs; s++) {
        struct run r;
        uint8_t *signs = b->signs + bytes * s;
        read_run(m, x + m->run * s, flat, &r, signs);
        scales[s] = 0;
        if (r.largest < m->least || r.largest == 0) {
            memset(signs, 0, (size_t)bytes);
            continue;
        }
        scales[s] = fit_run(m, &r, b->point + groups * s);
        if (scales[s] < 0) { /* stored without a sign */
            scales[s] = -scales[s];
            for (int k = 0; k < bytes; k++) signs[k] = (uint8_t)~signs[k];
        }
        largest = fmaxf(largest, scales[s]);
    }
    if (largest == 0) {
        memset(b, 0, sizeof *b);
        return;
    }
    const float d = largest / 31, inverse = 1 / d;
    b->d = d * m->widening;
    for (int s = 0; s < n_runs; s++) b->scale[s] = (uint8_t)sh_nearest(0.5f * (inverse * scales[s] - 1), 0, 15);
}

void sh_quantize_iq2_s(const float *x, uint8_t *b) {
    static const struct method method = {
        .points = &points_iq2_s, .run = 16, .tries = 9, .step = 0.1f, .flat = 0.5f, .least = 1e-8f, .widening = 0.9875f};
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct block q;
    pthread_once(&once, list_iq2_s);
    quantize_block(&method, x, &q);
    sh_put_half(b, q.d);
    memset(b + 66, 0, 8);
    for (int k = 0; k < 32; k++) {
        b[2 + k] = (uint8_t)q.point[k];
        b[34 + k] = q.signs[k];
        b[66 + k / 4] = (uint8_t)(b[66 + k / 4] | q.point[k] >> 8 << (2 * (k % 4)));
    }
    for (int s = 0; s < 8; s++) b[74 + s] = (uint8_t)(q.scale[2 * s] | q.scale[2 * s + 1] << 4);
}

void sh_quantize_iq3_xxs(const float *x, uint8_t *b) {
    static const struct method method = {
        .points = &points_iq3_xxs, .run = 32, .tries = 15, .step = 0.2f, .least = 1e-8f, .widening = 1.0125f, .even_signs = true};
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct block q;
    pthread_once(&once, list_iq3_xxs);
    quantize_block(&method, x, &q);
    sh_put_half(b, q.d);
    for (int k = 0; k < 64; k++) b[2 + k] = (uint8_t)q.point[k];
    for (int s = 0; s < 8; s++) {
        uint32_t word = (uint32_t)q.scale[s] << 28;
        for (int k = 0; k < 4; k++) word |= (q.signs[4 * s + k] & 127u) << (7 * k);
        for (int i = 0; i < 4; i++) b[66 + 4 * s + i] = (uint8_t)(word >> (8 * i));
    }
}

void sh_quantize_iq3_s(const float *x, uint8_t *b) {
    static const struct method method = {
        .points = &points_iq3_s, .run = 32, .tries = 9, .step = 0.2f, .widening = 1.033f, .all_again = true};
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct block q;
    pthread_once(&once, list_iq3_s);
    quantize_block(&method, x, &q);
    sh_put_half(b, q.d);
    memset(b + 66, 0, 8);
    for (int k = 0; k < 64; k++) {
        b[2 + k] = (uint8_t)q.point[k];
        b[66 + k / 8] = (uint8_t)(b[66 + k / 8] | q.point[k] >> 8 << (k % 8));
    }
    memcpy(b + 74, q.signs, 32);
    for (int s = 0; s < 4; s++) b[106 + s] = (uint8_t)(q.scale[2 * s] | q.scale[2 * s + 1] << 4);
}
