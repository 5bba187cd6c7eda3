/*
 * llama: pre-norm decoder with RMS norms, grouped-query attention with rotation of adjacent pairs, and a SwiGLU feed-forward.
 * The head is output.weight, or the embedding again where the file has none. Biases where the file has them. What follows the
 * last layer's attention is computed for the rows alone whose output is asked.
 */
#include "compute/model/build_model.h"

#include <math.h>

static uint32_t attention(struct sh_builder *b, const struct sh_spec *s, uint32_t rope_table, uint32_t x) {
    const uint32_t l = b->layer;
    const uint64_t q_width = (uint64_t)s->n_heads * s->k_dim;
    const uint64_t k_width = (uint64_t)s->n_kv_heads * s->k_dim, v_width = (uint64_t)s->n_kv_heads * s->v_dim;
    const uint64_t out_width = (uint64_t)s->n_heads * s->v_dim;
    const uint32_t wq = sh_build_matrix(b, s->n_embd, q_width, "blk.%u.attn_q.weight", l);
    const uint32_t wk = sh_build_matrix(b, s->n_embd, k_width, "blk.%u.attn_k.weight", l);
    const uint32_t wv = sh_build_matrix(b, s->n_embd, v_width, "blk.%u.attn_v.weight", l);
    const uint32_t wo = sh_build_matrix(b, out_width, s->n_embd, "blk.%u.attn_output.weight", l);
    const uint32_t bq = sh_build_vector_optional(b, q_width, "blk.%u.attn_q.bias", l);
    const uint32_t bk = sh_build_vector_optional(b, k_width, "blk.%u.attn_k.bias", l);
    const uint32_t bv = sh_build_vector_optional(b, v_width, "blk.%u.attn_v.bias", l);
    const uint32_t bo = sh_build_vector_optional(b, s->n_embd, "blk.%u.attn_output.bias", l);

    struct sh_build_attention a = {
        .n_heads = s->n_heads,
        .n_kv_heads = s->n_kv_heads,
        .k_dim = s->k_dim,
        .v_dim = s->v_dim,
        .pairing = SH_ROPE_ADJACENT,
        .n_rot = s->rope.n_rot,
        .rope_table = rope_table,
        .slopes = SH_NONE,
        .sinks = SH_NONE,
        .scale = (float)(1.0 / sqrt((double)s->k_dim)),
    };
    const struct sh_state_group state = {
        .kind = SH_STATE_PAGED, .n_kv_heads = s->n_kv_heads, .k_dim = s->k_dim, .v_dim = s->v_dim};
    a.group = sh_build_state(b, state, &a.layer_in_group);

    const uint32_t norm = sh_build_vector(b, s->n_embd, "blk.%u.attn_norm.weight", l);
    const uint32_t h = sh_build_norm(b, SH_NORM_RMS, x, 1, norm, SH_NONE, s->norm_eps, "attn_norm");
    const uint32_t q = sh_build_matmul(b, h, wq, bq, "attn_q");
    const uint32_t k = sh_build_matmul(b, h, wk, bk, "attn_k");
    const uint32_t v = sh_build_matmul(b, h, wv, bv, "attn_v");
    uint32_t attended = sh_build_attend(b, &a, q, k, v, "attn_q_rope", "attn");
    if (l + 1 == s->n_layers) {
        attended = sh_build_gather_out(b, attended, "attn_rows");
        x = sh_build_gather_out(b, x, "input_rows");
    }
    const uint32_t out = sh_build_matmul(b, attended, wo, bo, "attn_output");
    return sh_build_add(b, out, x, "attn_residual");
}

static uint32_t feed_forward(struct sh_builder *b, const struct sh_spec *s, uint32_t x) {
    const uint32_t l = b->layer;
    const uint32_t norm = sh_build_vector(b, s->n_embd, "blk.%u.ffn_norm.weight", l);
    const uint32_t w_gate = sh_build_matrix(b, s->n_embd, s->n_ff, "blk.%u.ffn_gate.weight", l);
    const uint32_t w_up = sh_build_matrix(b, s->n_embd, s->n_ff, "blk.%u.ffn_up.weight", l);
    const uint32_t w_down = sh_build_matrix(b, s->n_ff, s->n_embd, "blk.%u.ffn_down.weight", l);
    const uint32_t b_gate = sh_build_vector_optional(b, s->n_ff, "blk.%u.ffn_gate.bias", l);
    const uint32_t b_up = sh_build_vector_optional(b, s->n_ff, "blk.%u.ffn_up.bias", l);
    const uint32_t b_down = sh_build_vector_optional(b, s->n_embd, "blk.%u.ffn_down.bias", l);

    const uint32_t h = sh_build_norm(b, SH_NORM_RMS, x, 1, norm, SH_NONE, s->norm_eps, "ffn_norm");
    const uint32_t gate = sh_build_matmul(b, h, w_gate, b_gate, "ffn_gate");
    const uint32_t up = sh_build_matmul(b, h, w_up, b_up, "ffn_up");
    const uint32_t inner = sh_build_glu(b, SH_GLU_SILU, gate, up, "ffn_glu");
    const uint32_t out = sh_build_matmul(b, inner, w_down, b_down, "ffn_down");
    return sh_build_add(b, out, x, "ffn_residual");
}

void sh_build_llama(struct sh_builder *b, const struct sh_spec *s, uint32_t rope_table) {
    const uint32_t embedding = sh_build_matrix(b, s->n_embd, s->n_vocab, "token_embd.weight");
    uint32_t x = sh_build_embed(b, embedding, SH_EMBED_TOKEN, "token_embd");
    for (uint32_t l = 0; l < s->n_layers; l++) {
        b->layer = l;
        x = attention(b, s, rope_table, x);
        x = feed_forward(b, s, x);
    }
    b->layer = SH_NONE;
    const uint32_t norm = sh_build_vector(b, s->n_embd, "output_norm.weight");
    b->program->hidden = sh_build_norm(b, SH_NORM_RMS, x, 1, norm, SH_NONE, s->norm_eps, "output_norm");
    const bool tied = b->gguf != NULL && sh_gguf_tensor(b->gguf, "output.weight") == NULL;
    const uint32_t head = tied ? embedding : sh_build_matrix(b, s->n_embd, s->n_vocab, "output.weight");
    b->program->logits = sh_build_matmul(b, b->program->hidden, head, SH_NONE, "output");
}
