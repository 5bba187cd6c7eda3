/*
 * lfm2: layers without key/value heads are gated short convolutions, y = C * conv(B * x) with B, C and x from one matrix; the
 * others are attention with norms of each head of q and k. SwiGLU after both. The final norm is stored as token_embd_norm.
 */
#include "compute/model/decoder.h"

struct convolution {
    uint32_t width; /* in time */
};

static uint32_t third(struct sh_decoder *d, uint32_t x, uint32_t i, const char *stem) {
    struct sh_builder *b = &d->m->b;
    const uint32_t n = d->m->spec.n_embd;
    const struct sh_row_view rows = {.first = (uint64_t)i * n, .take = n, .stride = n, .count = 1};
    const uint32_t w = sh_build_matrix_rows(b, n, 3ull * n, rows, "blk.%u.shortconv.in_proj.weight", b->layer);
    return sh_build_matmul(b, x, w, SH_NONE, stem);
}

static uint32_t short_convolution(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct convolution *c = d->family;
    const uint32_t n = d->m->spec.n_embd;
    struct sh_build_recurrent at = {.floats = n * (c->width - 1)};
    at.group = sh_build_state(b, (struct sh_state_group){.kind = SH_STATE_RECURRENT, .floats = at.floats}, &at.layer_in_group);
    const uint32_t kernel = sh_build_table(b, c->width, n, "blk.%u.shortconv.conv.weight", b->layer);
    const uint32_t in_gate = third(d, x, 0, "shortconv_b"), out_gate = third(d, x, 1, "shortconv_c"),
                   u = third(d, x, 2, "shortconv_x");
    uint32_t y = sh_build_glu(b, SH_GLU_MUL, in_gate, u, "shortconv_bx");
    y = sh_build_conv(b, &at, y, kernel, SH_NONE, "shortconv_conv");
    y = sh_build_glu(b, SH_GLU_MUL, out_gate, y, "shortconv_cy");
    return sh_decoder_linear(d, sh_decoder_rows(d, y, "shortconv_rows"), n, n, false, "shortconv.out_proj");
}

static uint32_t either(struct sh_decoder *d, uint32_t x) {
    return d->m->spec.kv_heads[d->m->b.layer] == 0 ? short_convolution(d, x) : sh_decoder_attention(d, x);
}

void sh_build_lfm2(struct sh_model_builder *m) {
    const struct convolution c = {.width = sh_read_u32_required(&m->r, "shortconv.l_cache", 2, 64)};
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.family = &c;
    d.attention = either;
    d.qk_norm = SH_QK_NORM_HEAD;
    d.output_norm = "token_embd_norm";
    sh_decoder_build(&d);
}
