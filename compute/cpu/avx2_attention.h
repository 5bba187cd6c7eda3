/*
 * avx2_attention.h - attention of the AVX2 table; the arithmetic is stated in kernels.h.
 */
#ifndef SHIMMY_CPU_AVX2_ATTENTION_H
#define SHIMMY_CPU_AVX2_ATTENTION_H

#include "compute/cpu/kernels.h"

#define SH_AVX2_ATTENTION_SPLIT 256

void sh_avx2_attention(const struct sh_ref_attention *a, void *scratch);
void sh_avx2_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch);
void sh_avx2_attention_join(const struct sh_ref_attention *a, float *partials);
uint64_t sh_avx2_attention_partial(uint32_t n_heads, uint32_t v_dim);
uint64_t sh_avx2_attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim);

/* The loops that take the time, for a piece of positions that does not cross a page; tables with wider vectors bring their own. */
#define SH_AVX2_ATTENTION_PIECE 32 /* divides a part and every page */
struct sh_avx2_piece {
    enum sh_kv_type type;
    const void *src;      /* keys or values in the cache: [n] rows of `dim` elements, `stride` elements apart */
    uint32_t stride, dim; /* in elements */
    uint32_t pad;         /* dim, rounded up to 8 */
    uint32_t n;           /* positions, at most SH_AVX2_ATTENTION_PIECE */
    uint32_t n_heads;
    float *rows;    /* scratch: [SH_AVX2_ATTENTION_PIECE][pad] */
    const float *q; /* [n_heads][pad], zeros from dim on */
    float scale;
    float *scores; /* [n_heads][SH_AVX2_ATTENTION_SPLIT], n of each */
    float *values; /* [n_heads][pad] */
};
struct sh_avx2_pieces {
    void (*scores)(const struct sh_avx2_piece *p); /* scores = q . keys * scale */
    void (*values)(const struct sh_avx2_piece *p); /* values += scores . rows */
};
void sh_avx2_attention_by(const struct sh_avx2_pieces *by, const struct sh_ref_attention *a, void *scratch);
void sh_avx2_part_by(const struct sh_avx2_pieces *by, const struct sh_ref_attention *a, uint32_t part, float *partial,
                     void *scratch);

#endif
