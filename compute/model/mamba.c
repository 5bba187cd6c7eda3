/*
 * mamba (Gu and Dao, 2023): layers of a causal convolution and a selective scan, no attention and no feed-forward. A sequence's
 * state per layer: the convolution's last inputs, then the scan's h.
 */
#include "compute/model/decoder.h"

struct dims {
    uint32_t d_conv, d_inner, n_state, dt_rank;
};

static struct dims read_dims(struct sh_reader *r) {
    const struct dims d = {
        .d_conv = sh_read_u32_required(r, "ssm.conv_kernel", 2, 64),
        .d_inner = sh_read_u32_required(r, "ssm.inner_size", 1, 1 << 18),
        .n_state = sh_read_u32_required(r, "ssm.state_size", 1, 1 << 12),
        .dt_rank = sh_read_u32_required(r, "ssm.time_step_rank", 1, 1 << 16),
    };
    if (sh_read_bool(r, "ssm.dt_b_c_rms", false))
        sh_read_fail(r, SH_ERR_UNSUPPORTED, "ssm.dt_b_c_rms", "is true: norms of dt, B and C are not computed by this build");
    return d;
}

static uint32_t mixer(struct sh_decoder *decoder, const struct dims *d, uint32_t x) {
    struct sh_builder *b = &decoder->m->b;
    const uint32_t l = b->layer, n_embd = decoder->m->spec.n_embd;
    struct sh_build_recurrent conv = {.floats = d->d_inner * (d->d_conv - 1)};
    struct sh_build_recurrent scan = {.offset = conv.floats, .floats = d->d_inner * d->n_state};
    const struct sh_state_group state = {.kind = SH_STATE_RECURRENT, .floats = conv.floats + scan.floats};
    conv.group = scan.group = sh_build_state(b, state, &conv.layer_in_group);
    scan.layer_in_group = conv.layer_in_group;

    const uint64_t n_in = 2ull * d->d_inner, n_x = (uint64_t)d->dt_rank + 2ull * d->n_state;
    const struct sh_row_view first = {0, d->d_inner, d->d_inner, 1}, second = {d->d_inner, d->d_inner, d->d_inner, 1};
    const struct sh_row_view rows_dt = {0, d->dt_rank, d->dt_rank, 1};
    const struct sh_row_view rows_b = {d->dt_rank, d->n_state, d->n_state, 1};
    const struct sh_row_view rows_c = {(uint64_t)d->dt_rank + d->n_state, d->n_state, d->n_state, 1};
    const uint32_t w_x = sh_build_matrix_rows(b, n_embd, n_in, first, "blk.%u.ssm_in.weight", l);
    const uint32_t w_z = sh_build_matrix_rows(b, n_embd, n_in, second, "blk.%u.ssm_in.weight", l);
    const uint32_t kernel = sh_build_table(b, d->d_conv, d->d_inner, "blk.%u.ssm_conv1d.weight", l);
    const uint32_t kernel_bias = sh_build_vector(b, d->d_inner, "blk.%u.ssm_conv1d.bias", l);
    const uint32_t w_dt = sh_build_matrix_rows(b, d->d_inner, n_x, rows_dt, "blk.%u.ssm_x.weight", l);
    const uint32_t w_b = sh_build_matrix_rows(b, d->d_inner, n_x, rows_b, "blk.%u.ssm_x.weight", l);
    const uint32_t w_c = sh_build_matrix_rows(b, d->d_inner, n_x, rows_c, "blk.%u.ssm_x.weight", l);
    const uint32_t w_dt_out = sh_build_matrix(b, d->dt_rank, d->d_inner, "blk.%u.ssm_dt.weight", l);
    const uint32_t dt_bias = sh_build_vector(b, d->d_inner, "blk.%u.ssm_dt.bias", l);
    const uint32_t a = sh_build_table(b, d->n_state, d->d_inner, "blk.%u.ssm_a", l);
    const uint32_t skip = sh_build_vector(b, d->d_inner, "blk.%u.ssm_d", l);
    const uint32_t w_out = sh_build_matrix(b, d->d_inner, n_embd, "blk.%u.ssm_out.weight", l);

    const uint32_t z = sh_build_matmul(b, x, w_z, SH_NONE, "ssm_in_z");
    uint32_t u = sh_build_matmul(b, x, w_x, SH_NONE, "ssm_in_x");
    u = sh_build_conv(b, &conv, u, kernel, kernel_bias, "ssm_conv");
    u = sh_build_unary(b, SH_UNARY_SILU, u, 0, "ssm_conv_silu");
    const uint32_t dt_low = sh_build_matmul(b, u, w_dt, SH_NONE, "ssm_x_dt");
    const uint32_t in = sh_build_matmul(b, u, w_b, SH_NONE, "ssm_x_b");
    const uint32_t out = sh_build_matmul(b, u, w_c, SH_NONE, "ssm_x_c");
    const uint32_t dt = sh_build_matmul(b, dt_low, w_dt_out, dt_bias, "ssm_dt");
    const uint32_t y = sh_build_scan(b, &scan, u, dt, in, out, a, skip, "ssm_scan");
    const uint32_t gated = sh_build_glu(b, SH_GLU_SILU, z, y, "ssm_gated");
    return sh_build_matmul(b, sh_decoder_rows(decoder, gated, "ssm_rows"), w_out, SH_NONE, "ssm_out");
}

void sh_build_mamba(struct sh_model_builder *m) {
    struct sh_builder *b = &m->b;
    const struct dims dims = read_dims(&m->r);
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    uint32_t x = sh_decoder_embed(&d);
    for (uint32_t l = 0; l < m->spec.n_layers && b->code == SH_OK; l++) {
        b->layer = l;
        const uint32_t out = mixer(&d, &dims, sh_decoder_norm(&d, x, "attn_norm"));
        x = sh_build_add(b, out, sh_decoder_rows(&d, x, "input_rows"), "ssm_residual");
    }
    sh_decoder_finish(&d, x);
}
