/*
 * qwen35: gated delta nets (Yang et al., 2024; struct sh_op.delta), and every full_attention_interval-th layer attention whose
 * output is multiplied by the sigmoid of a gate that lies beside the query in attn_q, head by head. SwiGLU after each; the norm
 * before it is called post_attention_norm.
 */
#include "compute/model/decoder.h"

#include <math.h>

struct delta {
    uint32_t d_conv, attention_interval;
    struct sh_build_delta net;
};

static struct delta read_delta(struct sh_reader *r) {
    struct delta d = {.d_conv = sh_read_u32_required(r, "ssm.conv_kernel", 2, 64)};
    d.attention_interval = sh_read_u32(r, "full_attention_interval", 4, 1, SH_MAX_LAYERS);
    d.net.k_dim = sh_read_u32_required(r, "ssm.state_size", 1, SH_MAX_HEAD_DIM);
    d.net.n_k_heads = sh_read_u32_required(r, "ssm.group_count", 1, SH_MAX_HEADS);
    d.net.n_v_heads = sh_read_u32_required(r, "ssm.time_step_rank", 1, SH_MAX_HEADS);
    const uint32_t d_inner = sh_read_u32_required(r, "ssm.inner_size", 1, 1 << 18);
    d.net.v_dim = d_inner / d.net.n_v_heads;
    d.net.tiled = true; /* as converters order value heads */
    d.net.scale = (float)(1.0 / sqrt((double)d.net.k_dim));
    if (d_inner % d.net.n_v_heads != 0)
        sh_read_fail(r, SH_ERR_FORMAT, "ssm.inner_size", "is %u, expected a multiple of the %u value heads (ssm.time_step_rank)",
                     d_inner, d.net.n_v_heads);
    if (d.net.n_v_heads % d.net.n_k_heads != 0)
        sh_read_fail(r, SH_ERR_FORMAT, "ssm.time_step_rank", "is %u, expected a multiple of the %u key heads (ssm.group_count)",
                     d.net.n_v_heads, d.net.n_k_heads);
    return d;
}

/* One of q, k and v: its rows of attn_qkv, convolved over time by its rows of the kernel, then SiLU. */
static uint32_t convolved(struct sh_decoder *decoder, const struct delta *d, struct sh_build_recurrent at, uint32_t x,
                          uint32_t first, uint32_t width, const char *const stems[3]) {
    struct sh_builder *b = &decoder->m->b;
    const uint32_t l = b->layer, n_embd = decoder->m->spec.n_embd;
    const uint64_t rows = 2ull * d->net.n_k_heads * d->net.k_dim + (uint64_t)d->net.n_v_heads * d->net.v_dim;
    const struct sh_row_view part = {.first = first, .take = width, .stride = width, .count = 1};
    const uint32_t w = sh_build_matrix_rows(b, n_embd, rows, part, "blk.%u.attn_qkv.weight", l);
    const uint32_t kernel = sh_build_table_rows(b, d->d_conv, rows, part, "blk.%u.ssm_conv1d.weight", l);
    at.offset = first * (d->d_conv - 1);
    at.floats = width * (d->d_conv - 1);
    x = sh_build_matmul(b, x, w, SH_NONE, stems[0]);
    x = sh_build_conv(b, &at, x, kernel, SH_NONE, stems[1]);
    return sh_build_unary(b, SH_UNARY_SILU, x, 0, stems[2]);
}

static uint32_t linear_attention(struct sh_decoder *decoder, uint32_t x) {
    struct sh_builder *b = &decoder->m->b;
    const struct delta *d = decoder->family;
    static const char *const q_stems[3] = {"delta_q", "delta_q_conv", "delta_q_silu"};
    static const char *const k_stems[3] = {"delta_k", "delta_k_conv", "delta_k_silu"};
    static const char *const v_stems[3] = {"delta_v", "delta_v_conv", "delta_v_silu"};
    const uint32_t l = b->layer, n_embd = decoder->m->spec.n_embd;
    const struct sh_build_delta *n = &d->net;
    const float eps = sh_model_eps(decoder->m, SH_NORM_RMS);
    const uint32_t k_width = n->n_k_heads * n->k_dim, v_width = n->n_v_heads * n->v_dim;
    const uint32_t conv_floats = (2 * k_width + v_width) * (d->d_conv - 1);
    struct sh_build_recurrent at = {.offset = conv_floats, .floats = n->n_v_heads * n->k_dim * n->v_dim};
    const struct sh_state_group state = {.kind = SH_STATE_RECURRENT, .floats = conv_floats + at.floats};
    at.group = sh_build_state(b, state, &at.layer_in_group);

    const uint32_t dt_bias = sh_build_vector(b, n->n_v_heads, "blk.%u.ssm_dt.bias", l);
    const uint32_t a = sh_build_vector(b, n->n_v_heads, "blk.%u.ssm_a", l);
    const uint32_t norm = sh_build_vector(b, n->v_dim, "blk.%u.ssm_norm.weight", l);

    uint32_t q = convolved(decoder, d, at, x, 0, k_width, q_stems);
    uint32_t k = convolved(decoder, d, at, x, k_width, k_width, k_stems);
    const uint32_t v = convolved(decoder, d, at, x, 2 * k_width, v_width, v_stems);
    q = sh_build_norm(b, SH_NORM_L2, q, n->n_k_heads, SH_NONE, SH_NONE, eps, "delta_q_norm");
    k = sh_build_norm(b, SH_NORM_L2, k, n->n_k_heads, SH_NONE, SH_NONE, eps, "delta_k_norm");
    const uint32_t decay = sh_decoder_linear(decoder, x, n_embd, n->n_v_heads, false, "ssm_alpha");
    const uint32_t beta = sh_decoder_linear(decoder, x, n_embd, n->n_v_heads, false, "ssm_beta");
    const uint32_t z = sh_decoder_linear(decoder, x, n_embd, v_width, false, "attn_gate");
    uint32_t y = sh_build_delta_net(b, &at, n, q, k, v, decay, beta, a, dt_bias, "delta_net");
    y = sh_build_norm(b, SH_NORM_RMS, y, n->n_v_heads, norm, SH_NONE, eps, "delta_norm");
    y = sh_build_glu(b, SH_GLU_SILU, z, y, "delta_gated");
    return sh_decoder_linear(decoder, sh_decoder_rows(decoder, y, "delta_rows"), v_width, n_embd, false, "ssm_out");
}

static uint32_t full_attention(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    const uint32_t l = b->layer, n_heads = s->heads[l], n_kv_heads = s->kv_heads[l], width = n_heads * s->v_dim;
    const uint64_t rows = 2ull * n_heads * s->k_dim;
    const struct sh_row_view queries = {.first = 0, .take = s->k_dim, .stride = 2ull * s->k_dim, .count = n_heads};
    const struct sh_row_view gates = {.first = s->k_dim, .take = s->k_dim, .stride = 2ull * s->k_dim, .count = n_heads};
    const uint32_t wq = sh_build_matrix_rows(b, s->n_embd, rows, queries, "blk.%u.attn_q.weight", l);
    const uint32_t w_gate = sh_build_matrix_rows(b, s->n_embd, rows, gates, "blk.%u.attn_q.weight", l);
    const uint32_t q = sh_build_matmul(b, x, wq, SH_NONE, "attn_q");
    const uint32_t gate = sh_build_matmul(b, x, w_gate, SH_NONE, "attn_gate");
    const uint32_t k = sh_decoder_linear(d, x, s->n_embd, n_kv_heads * s->k_dim, false, "attn_k");
    const uint32_t v = sh_decoder_linear(d, x, s->n_embd, n_kv_heads * s->v_dim, false, "attn_v");
    const uint32_t attended = sh_decoder_attend(d, q, k, v);
    const uint32_t gated = sh_build_glu(b, SH_GLU_SIGMOID, gate, attended, "attn_gated");
    return sh_decoder_linear(d, sh_decoder_rows(d, gated, "attn_rows"), width, s->n_embd, false, "attn_output");
}

static uint32_t either(struct sh_decoder *d, uint32_t x) {
    const struct delta *delta = d->family;
    return (d->m->b.layer + 1) % delta->attention_interval == 0 ? full_attention(d, x) : linear_attention(d, x);
}

void sh_build_qwen35(struct sh_model_builder *m) {
    sh_model_leave_predictors(m);
    const struct delta delta = read_delta(&m->r);
    uint32_t sections[4]; /* which coordinate of an image turns which pair; of text all are equal */
    sh_read_u32s(&m->r, "rope.dimension_sections", 0, 0, SH_MAX_HEAD_DIM, sections, 4);
    if (m->spec.v_dim != m->spec.k_dim)
        sh_read_fail(&m->r, SH_ERR_FORMAT, "attention.value_length",
                     "is %u, expected the key's %u: a gate as wide as the query multiplies it", m->spec.v_dim, m->spec.k_dim);
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.family = &delta;
    d.attention = either;
    d.qk_norm = SH_QK_NORM_HEAD;
    d.ffn_norm = "post_attention_norm";
    sh_decoder_build(&d);
}
