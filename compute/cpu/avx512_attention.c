#include "compute/cpu/avx512_attention.h"

#include "compute/cpu/avx512_math.h"

/* The words of wide_attention.h with sixteen lanes. */
#define LANES 16
#define SCORE_TILE 8
#define VALUE_TILE 4
typedef __m512 floats;

static inline floats zero(void) { return _mm512_setzero_ps(); }
static inline floats all(float x) { return _mm512_set1_ps(x); }
static inline floats load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, floats v) { _mm512_storeu_ps(p, v); }
static inline floats halves(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
static inline floats fma_of(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
static inline floats plus(floats a, floats b) { return _mm512_add_ps(a, b); }
static inline floats minus(floats a, floats b) { return _mm512_sub_ps(a, b); }
static inline floats over(floats a, floats b) { return _mm512_div_ps(a, b); }
static inline floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
static inline floats exp_of(floats v) { return sh_avx512_exp(v); }
static inline floats tanh_of(floats v) { return sh_avx512_tanh(v); }
static inline float largest(floats v) {
    return sh_avx2_max(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
static inline float sum_of(const floats *v) {
    return sh_avx2_sum(_mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1)));
}
static inline void turn(const float *src, size_t src_stride, float *out, size_t out_stride) {
    sh_avx2_turn(src, src_stride, out, out_stride);
}

#include "compute/cpu/wide_attention.h"

void sh_avx512_attention_part(const struct sh_ref_attention *a, uint32_t part, float *partial, void *scratch) {
    attention_of_part(a, part, partial, scratch);
}
void sh_avx512_attention(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch) {
    attention_of_rows(rows, n_rows, scratch);
}
