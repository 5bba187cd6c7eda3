/* The AVX2 table: matrices in the layouts of lanes.h, products, attention and recurrent ops in files of their own. */
#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_math.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/avx2_ops.h"
#include "compute/cpu/avx2_recurrent.h"
#include "compute/cpu/lanes.h"

#include <cpuid.h>
#include <math.h>

bool sh_avx2_available(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    /* clang 14 does not know "f16c" here. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

uint64_t sh_avx2_matmul_scratch(uint64_t cols) {
    (void)cols;
    return 0;
}

/* ---- norms ---- */

/* Sums by 32 lanes (i mod 32), so that chains do not wait for each other; those beyond `width` add 0. */
static float join(const __m256 *sum) {
    return sh_avx2_sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

static float mean_of(const float *x, uint32_t width) {
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    uint32_t i = 0;
    for (; i + 32 <= width; i += 32)
        for (uint32_t j = 0; j < 4; j++) sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(x + i + 8 * j));
    for (uint32_t j = 0; i < width; i += 8, j++) sum[j] = _mm256_add_ps(sum[j], sh_avx2_load(x + i, width - i));
    return join(sum) / (float)width;
}

static float squares_of(const float *x, uint32_t width, float mean) {
    const __m256 m = _mm256_set1_ps(mean);
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    uint32_t i = 0;
    for (; i + 32 <= width; i += 32)
        for (uint32_t j = 0; j < 4; j++) {
            const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * j), m);
            sum[j] = _mm256_fmadd_ps(d, d, sum[j]);
        }
    for (uint32_t j = 0; i < width; i += 8, j++) {
        float rest[8] = {0};
        for (uint32_t k = i; k < width && k < i + 8; k++) rest[k - i] = x[k] - mean;
        const __m256 d = _mm256_loadu_ps(rest);
        sum[j] = _mm256_fmadd_ps(d, d, sum[j]);
    }
    return join(sum);
}

static void norm_part(const struct sh_ref_norm *n, const float *x, uint32_t width, const float *w, const float *bias,
                      float *out) {
    const float mean = n->kind == SH_NORM_LAYER ? mean_of(x, width) : 0.0f, sum = squares_of(x, width, mean);
    const float length = sqrtf(sum);
    const float scale =
        n->kind == SH_NORM_L2 ? 1.0f / (length > n->eps ? length : n->eps) : 1.0f / sqrtf(sum / (float)width + n->eps);
    const __m256 m = _mm256_set1_ps(mean), s = _mm256_set1_ps(scale);
    for (uint32_t i = 0; i < width; i += 8) {
        const uint32_t some = width - i;
        __m256 y = _mm256_mul_ps(_mm256_sub_ps(sh_avx2_load(x + i, some), m), s);
        if (w != NULL) y = _mm256_mul_ps(y, sh_avx2_load(w + i, some));
        if (bias != NULL) y = _mm256_add_ps(y, sh_avx2_load(bias + i, some));
        sh_avx2_store(out + i, some, y);
    }
}

void sh_avx2_norm(const struct sh_ref_norm *n, const float *x, uint32_t n_rows, float *out) {
    const uint32_t width = n->width / n->n_groups;
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t g = 0; g < n->n_groups; g++, x += width, out += width)
            norm_part(n, x, width, n->w != NULL ? n->w + (size_t)g * n->w_stride : NULL,
                      n->bias != NULL ? n->bias + (size_t)g * n->bias_stride : NULL, out);
}

/* ---- elementwise ---- */

void sh_avx2_add(const float *x, const float *y, uint64_t n, float *out) {
    for (uint64_t i = 0; i < n; i += 8)
        sh_avx2_store(out + i, n - i, _mm256_add_ps(sh_avx2_load(x + i, n - i), sh_avx2_load(y + i, n - i)));
}

/* x / (1 + exp(-a)) */
static __m256 logistic(__m256 x, __m256 a) {
    const __m256 e = sh_avx2_exp(_mm256_sub_ps(_mm256_setzero_ps(), a));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}
/* 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)) */
static __m256 gelu(__m256 x) {
    const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
    const __m256 inner = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x);
    return logistic(x, _mm256_mul_ps(inner, _mm256_set1_ps(2 * 0.797884560802865356f)));
}
/* min and max give their second operand where one is NaN: NaN stays NaN. */
static __m256 relu(__m256 x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
static __m256 clamp(__m256 x, __m256 a) { return _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), a), _mm256_min_ps(a, x)); }

static inline __m256 unary_of(enum sh_unary kind, __m256 a, __m256 x) {
    switch (kind) {
    case SH_UNARY_CLAMP: return clamp(x, a);
    case SH_UNARY_SOFTCAP: return _mm256_mul_ps(a, sh_avx2_tanh(_mm256_div_ps(x, a)));
    case SH_UNARY_GELU: return gelu(x);
    case SH_UNARY_SILU: return logistic(x, x);
    case SH_UNARY_RELU: return relu(x);
    case SH_UNARY_RELU_SQUARED: return _mm256_mul_ps(relu(x), relu(x));
    default: return _mm256_mul_ps(a, x);
    }
}

void sh_avx2_unary(enum sh_unary kind, float a, const float *x, uint64_t n, float *out) {
    if (kind == SH_UNARY_GELU_ERF) {
        sh_ref_unary(kind, a, x, n, out);
        return;
    }
    const __m256 all = _mm256_set1_ps(a);
    for (uint64_t i = 0; i < n; i += 8) sh_avx2_store(out + i, n - i, unary_of(kind, all, sh_avx2_load(x + i, n - i)));
}

static inline __m256 glu_of(enum sh_glu act, __m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f), seven = _mm256_set1_ps(7.0f);
    switch (act) {
    case SH_GLU_SILU: return _mm256_mul_ps(logistic(gate, gate), up);
    case SH_GLU_GELU: return _mm256_mul_ps(gelu(gate), up);
    case SH_GLU_RELU: return _mm256_mul_ps(relu(gate), up);
    case SH_GLU_SIGMOID: return _mm256_mul_ps(logistic(one, gate), up);
    case SH_GLU_OAI: {
        const __m256 g = _mm256_min_ps(seven, gate), a = _mm256_mul_ps(_mm256_set1_ps(1.702f), g);
        return _mm256_mul_ps(logistic(g, a), _mm256_add_ps(clamp(up, seven), one));
    }
    default: return _mm256_mul_ps(gate, up);
    }
}

void sh_avx2_glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                 float *out) {
    if (act == SH_GLU_GELU_ERF) {
        sh_ref_glu(act, gate, gate_width, up, n_rows, width, out);
        return;
    }
    for (uint32_t r = 0; r < n_rows; r++, gate += gate_width, up += width, out += width) {
        const __m256 one = _mm256_set1_ps(gate[0]);
        for (uint32_t i = 0; i < width; i += 8) {
            const uint32_t n = width - i;
            sh_avx2_store(out + i, n, glu_of(act, gate_width == 1 ? one : sh_avx2_load(gate + i, n), sh_avx2_load(up + i, n)));
        }
    }
}

void sh_avx2_expert_sum(const float *x, const float *route, uint32_t n_used, uint32_t width, float *out) {
    for (uint32_t i = 0; i < width; i += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (uint32_t j = 0; j < n_used; j++)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(route[n_used + j]), sh_avx2_load(x + (size_t)j * width + i, width - i), sum);
        sh_avx2_store(out + i, width - i, sum);
    }
}

const struct sh_cpu_kernels sh_cpu_avx2 = {
    .tier = "avx2",
    .requires = "AVX2, FMA and F16C",
    .available = sh_avx2_available,
    .group_rows = 8,
    .matrix_bytes = sh_lanes8_matrix_bytes,
    .pack = sh_avx2_pack,
    .unpack = sh_lanes8_unpack,
    .operand = sh_lanes_operand,
    .operand_bytes = sh_lanes_operand_bytes,
    .prepare = sh_avx2_prepare,
    .matmul = sh_avx2_matmul,
    .matmul_scratch = sh_avx2_matmul_scratch,
    .norm = sh_avx2_norm,
    .add = sh_avx2_add,
    .unary = sh_avx2_unary,
    .glu = sh_avx2_glu,
    .expert_sum = sh_avx2_expert_sum,
    .rope = sh_avx2_rope,
    .cache_store = sh_avx2_cache_store,
    .conv = sh_avx2_conv,
    .scan = sh_avx2_scan,
    .delta_net = sh_avx2_delta_net,
    .attention = sh_avx2_attention,
    .attention_rows = sh_avx2_attention_rows,
    .attention_scratch = sh_avx2_attention_scratch,
    .attention_split = SH_AVX2_ATTENTION_SPLIT,
    .attention_part = sh_avx2_attention_part,
    .attention_join = sh_avx2_attention_join,
    .attention_partial = sh_avx2_attention_partial,
};
