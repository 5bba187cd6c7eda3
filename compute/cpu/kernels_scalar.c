/* The scalar table: the reference kernels on matrices in file layout. */
#include "compute/cpu/kernels.h"

static bool available(void) { return true; }

static uint64_t matrix_bytes(uint32_t type, uint64_t cols, uint64_t rows) { return sh_type_row_bytes(type, cols) * rows; }

static void pack(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src) {
    const uint64_t row_bytes = sh_type_row_bytes(w->type, w->cols);
    memcpy((uint8_t *)w->data + row0 * row_bytes, src, n_rows * row_bytes);
}

static void unpack(const struct sh_cpu_matrix *w, uint64_t row, float *out) { sh_ref_embed(w->type, w->data, w->cols, row, out); }

static uint32_t operand(uint32_t type) {
    (void)type;
    return 0;
}

static uint64_t operand_bytes(uint32_t kind, uint64_t cols) {
    (void)kind;
    return sh_align_up(cols * sizeof(float), 64);
}

static void prepare(uint32_t kind, const float *x, uint64_t cols, uint32_t n_rows, void *out) {
    const uint64_t stride = operand_bytes(kind, cols);
    for (uint32_t r = 0; r < n_rows; r++) memcpy((uint8_t *)out + r * stride, x + r * cols, cols * sizeof(float));
}

static void matmul(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch) {
    const struct sh_ref_matmul ref = {
        .type = m->w->type,
        .w = m->w->data,
        .cols = m->w->cols,
        .rows = m->w->rows,
        .x = m->x,
        .x_stride = operand_bytes(0, m->w->cols) / sizeof(float),
        .n_rows = m->n_rows,
        .bias = m->bias,
        .residual = m->residual,
        .out = m->out,
    };
    sh_ref_matmul(&ref, group0 * SH_REF_LANES, sh_min_u64(group1 * SH_REF_LANES, m->w->rows), scratch);
}

static uint64_t matmul_scratch(uint64_t cols) { return SH_REF_MATMUL_SCRATCH(cols) * sizeof(float); }

static uint32_t attention_rows(uint32_t n_heads) {
    (void)n_heads;
    return 1;
}

static void attention(const struct sh_ref_attention *rows, uint32_t n_rows, void *scratch) {
    for (uint32_t r = 0; r < n_rows; r++) sh_ref_attention(&rows[r], scratch);
}

static uint64_t attention_scratch(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim) {
    return ((uint64_t)n_heads * n_positions + sh_max_u64(k_dim, v_dim)) * sizeof(float);
}

const struct sh_cpu_kernels sh_cpu_scalar = {
    .tier = "scalar",
    .requires = "",
    .available = available,
    .group_rows = SH_REF_LANES,
    .matrix_bytes = matrix_bytes,
    .pack = pack,
    .unpack = unpack,
    .operand = operand,
    .operand_bytes = operand_bytes,
    .prepare = prepare,
    .matmul = matmul,
    .matmul_scratch = matmul_scratch,
    .norm = sh_ref_norm,
    .add = sh_ref_add,
    .unary = sh_ref_unary,
    .glu = sh_ref_glu,
    .expert_sum = sh_ref_expert_sum,
    .rope = sh_ref_rope,
    .cache_store = sh_ref_cache_store,
    .conv = sh_ref_conv,
    .scan = sh_ref_scan,
    .delta_net = sh_ref_delta_net,
    .attention = attention,
    .attention_rows = attention_rows,
    .attention_scratch = attention_scratch,
};
