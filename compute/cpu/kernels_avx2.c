/* The AVX2 table: matrices in the layouts of lanes8.h, products and attention in files of their own. */
#include "compute/cpu/avx2_attention.h"
#include "compute/cpu/avx2_math.h"
#include "compute/cpu/avx2_matmul.h"
#include "compute/cpu/lanes8.h"

#include <cpuid.h>
#include <math.h>

static bool available(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    /* clang 14 does not know "f16c" here. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static uint64_t matmul_scratch(uint64_t cols) {
    (void)cols;
    return 0;
}

/* Eight floats from x; those from n on are 0. */
static __m256 load_some(const float *x, uint64_t n) {
    if (n >= 8) return _mm256_loadu_ps(x);
    float lanes[8] = {0};
    memcpy(lanes, x, n * sizeof *x);
    return _mm256_loadu_ps(lanes);
}
static void store_some(float *out, uint64_t n, __m256 v) {
    if (n >= 8) {
        _mm256_storeu_ps(out, v);
        return;
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, v);
    memcpy(out, lanes, n * sizeof *out);
}

static void rms_norm(const float *x, const float *w, uint32_t width, float eps, float *out) {
    __m256 squares = _mm256_setzero_ps();
    for (uint32_t i = 0; i < width; i += 8) {
        const __m256 v = load_some(x + i, width - i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(sh_avx2_sum(squares) / (float)width + eps));
    for (uint32_t i = 0; i < width; i += 8) {
        const __m256 v = _mm256_mul_ps(load_some(x + i, width - i), scale);
        store_some(out + i, width - i, _mm256_mul_ps(v, load_some(w + i, width - i)));
    }
}

static void norm(const struct sh_ref_norm *n, const float *x, uint32_t n_rows, float *out) {
    if (n->kind != SH_NORM_RMS || n->w == NULL || n->bias != NULL) {
        sh_ref_norm(n, x, n_rows, out);
        return;
    }
    const uint32_t width = n->width / n->n_groups;
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t g = 0; g < n->n_groups; g++, x += width, out += width)
            rms_norm(x, n->w + (size_t)g * n->w_stride, width, n->eps, out);
}

static void add(const float *x, const float *y, uint64_t n, float *out) {
    for (uint64_t i = 0; i < n; i += 8)
        store_some(out + i, n - i, _mm256_add_ps(load_some(x + i, n - i), load_some(y + i, n - i)));
}

static void silu_gate(const float *gate, const float *up, uint64_t n, float *out) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (uint64_t i = 0; i < n; i += 8) {
        const __m256 g = load_some(gate + i, n - i);
        const __m256 down = _mm256_add_ps(one, sh_avx2_exp(_mm256_sub_ps(_mm256_setzero_ps(), g)));
        store_some(out + i, n - i, _mm256_mul_ps(_mm256_div_ps(g, down), load_some(up + i, n - i)));
    }
}

static void glu(enum sh_glu act, const float *gate, uint32_t gate_width, const float *up, uint32_t n_rows, uint32_t width,
                float *out) {
    if (act == SH_GLU_SILU && gate_width == width) silu_gate(gate, up, (uint64_t)n_rows * width, out);
    else sh_ref_glu(act, gate, gate_width, up, n_rows, width, out);
}

const struct sh_cpu_kernels sh_cpu_avx2 = {
    .tier = "avx2",
    .requires = "AVX2, FMA and F16C",
    .available = available,
    .group_rows = 8,
    .matrix_bytes = sh_lanes8_matrix_bytes,
    .pack = sh_lanes8_pack,
    .unpack = sh_lanes8_unpack,
    .operand = sh_lanes8_operand,
    .operand_bytes = sh_lanes8_operand_bytes,
    .prepare = sh_avx2_prepare,
    .matmul = sh_avx2_matmul,
    .matmul_scratch = matmul_scratch,
    .norm = norm,
    .add = add,
    .unary = sh_ref_unary,
    .glu = glu,
    .expert_sum = sh_ref_expert_sum,
    .conv = sh_ref_conv,
    .scan = sh_ref_scan,
    .delta_net = sh_ref_delta_net,
    .attention = sh_avx2_attention,
    .attention_scratch = sh_avx2_attention_scratch,
    .attention_split = SH_AVX2_ATTENTION_SPLIT,
    .attention_part = sh_avx2_attention_part,
    .attention_join = sh_avx2_attention_join,
    .attention_partial = sh_avx2_attention_partial,
};
