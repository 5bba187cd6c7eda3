/*
 * bert, nomic-bert, jina-bert-v2: encoders with a LayerNorm after each branch's residual. They differ in how positions enter
 * (learned; rotated; ALiBi by distance) and in the feed-forward (GELU; SwiGLU; gated by GELU). Token types are those of a
 * text's first part. The result is the last layer's rows; there is no head.
 */
#include "compute/model/decoder.h"

#define ALIBI_MAX 8.0

static uint32_t embedding(struct sh_decoder *d) {
    struct sh_builder *b = &d->m->b;
    const uint32_t n = d->m->spec.n_embd;
    uint32_t x = sh_decoder_embed(d);
    uint32_t n_types = 0;
    if (b->code == SH_OK) b->code = sh_gguf_u32_req(b->gguf, "tokenizer.ggml.token_type_count", &n_types, b->err);
    if (b->code == SH_OK && (n_types == 0 || n_types > SH_MAX_EMBD))
        sh_build_fail(b, SH_ERR_FORMAT, "%s: key 'tokenizer.ggml.token_type_count' is %u, expected 1 to %d",
                      sh_gguf_path(b->gguf, 0), n_types, SH_MAX_EMBD);
    const uint32_t types = sh_build_matrix(b, n, n_types, "token_types.weight");
    x = sh_build_add(b, sh_build_embed(b, types, SH_EMBED_FIRST, "token_types"), x, "typed_embd");
    return sh_decoder_norm(d, x, "token_embd_norm");
}

static void build(struct sh_decoder *d) {
    struct sh_builder *b = &d->m->b;
    if (sh_read_bool(&d->m->r, "attention.causal", false))
        sh_read_fail(&d->m->r, SH_ERR_UNSUPPORTED, "attention.causal",
                     "is true, architecture '%s' is computed without a causal mask alone", d->m->r.architecture);
    d->norm = SH_NORM_LAYER;
    d->biases |= SH_BIAS_NORM;
    d->encoder = true;
    uint32_t x = embedding(d);
    for (uint32_t l = 0; l < d->m->spec.n_layers && b->code == SH_OK; l++) {
        b->layer = l;
        const uint32_t attended = sh_decoder_attention(d, x);
        x = sh_build_add(b, attended, sh_decoder_rows(d, x, "input_rows"), "attn_residual");
        x = sh_decoder_norm(d, x, "attn_output_norm");
        x = sh_build_add(b, sh_decoder_ffn(d, x), x, "ffn_residual");
        x = sh_decoder_norm(d, x, "layer_output_norm");
    }
    if (b->code != SH_OK) return;
    b->program->hidden = x;
    b->program->encoder = true;
}

void sh_build_bert(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.learned_positions = true;
    d.biases = SH_BIAS_ALL;
    d.ffn_kind = SH_FFN_UNGATED;
    build(&d);
}

void sh_build_nomic_bert(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    build(&d);
}

void sh_build_jina_bert_v2(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.biases = SH_BIAS_QKV | SH_BIAS_OUT;
    d.slopes = sh_model_alibi(m, ALIBI_MAX);
    d.glu = SH_GLU_GELU;
    build(&d);
}
