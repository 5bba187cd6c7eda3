/* Decoders with LayerNorm: GPT-2 and what followed it, with learned positions, ALiBi, or rotation of halves. */
#include "compute/model/decoder.h"

static void init(struct sh_decoder *d, struct sh_model_builder *m) {
    sh_decoder_init(d, m);
    d->norm = SH_NORM_LAYER;
    d->biases = SH_BIAS_NORM;
    d->ffn_kind = SH_FFN_UNGATED;
    d->act = SH_UNARY_GELU;
}

/* gpt2, starcoder (one head of keys and values) */
void sh_build_gpt2(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.biases = SH_BIAS_ALL;
    d.learned_positions = true;
    sh_decoder_build(&d);
}

void sh_build_starcoder2(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    sh_decoder_build(&d);
}

/* Each branch of a parallel layer has its norm of the layer's input. */
void sh_build_gptneox(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.biases = SH_BIAS_ALL;
    d.parallel = sh_read_bool(&m->r, "use_parallel_residual", true);
    sh_decoder_build(&d);
}

/* Parallel, from one norm; with attn_norm_2 (40B) attention reads that one and the feed-forward the other. */
void sh_build_falcon(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.parallel = true;
    d.ffn_norm = NULL;
    if (sh_build_has(&m->b, "blk.0.attn_norm_2.weight")) {
        d.attn_norm = "attn_norm_2";
        d.ffn_norm = "attn_norm";
    }
    sh_decoder_build(&d);
}

void sh_build_phi2(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.biases = SH_BIAS_ALL;
    d.parallel = true;
    d.ffn_norm = NULL;
    sh_decoder_build(&d);
}

/* Parallel if there is no norm for the feed-forward: the tensors say it, the key need not agree. */
void sh_build_stablelm(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.ffn_kind = SH_FFN_GATED;
    sh_read_bool(&m->r, "use_parallel_residual", true);
    d.parallel = !sh_build_has(&m->b, "blk.0.ffn_norm.weight");
    if (d.parallel) d.ffn_norm = NULL;
    if (sh_build_has(&m->b, "blk.0.attn_q_norm.weight")) {
        d.qk_norm = SH_QK_NORM_HEADS;
        d.qk_norm_kind = SH_NORM_LAYER;
    }
    sh_decoder_build(&d);
}

void sh_build_mpt(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.biases = 0;
    d.learned_positions = sh_build_has(&m->b, "position_embd.weight");
    d.clamp_qkv = (float)sh_read_real(&m->r, "attention.clamp_kqv", 0, 0, 1e6);
    const double bias = sh_read_real(&m->r, "attention.max_alibi_bias", 0, 0, 1e3);
    if (bias > 0) d.slopes = sh_model_alibi(m, bias);
    if (sh_build_has(&m->b, "blk.0.attn_q_norm.weight")) {
        d.qk_norm = SH_QK_NORM_ROW;
        d.qk_norm_kind = SH_NORM_LAYER;
    }
    sh_decoder_build(&d);
}

void sh_build_bloom(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.biases = SH_BIAS_ALL;
    d.embd_norm = "token_embd_norm";
    d.slopes = sh_model_alibi(m, 8);
    sh_decoder_build(&d);
}

/* The weights of its norms already hold the "+ 1". */
void sh_build_nemotron(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.act = SH_UNARY_RELU_SQUARED;
    sh_decoder_build(&d);
}

/* command-r, cohere2: parallel, from one LayerNorm without bias; a gated feed-forward, adjacent pairs, scaled logits. */
static void init_cohere(struct sh_decoder *d, struct sh_model_builder *m) {
    init(d, m);
    d->biases = 0;
    d->parallel = true;
    d->ffn_norm = NULL;
    d->ffn_kind = SH_FFN_GATED;
    d->pairing = SH_ROPE_ADJACENT;
    d->logit_scale = (float)sh_read_real_required(&m->r, "logit_scale", 1e-6, 1e6);
}

void sh_build_command_r(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_cohere(&d, m);
    if (sh_build_has(&m->b, "blk.0.attn_q_norm.weight")) { /* Command R+ */
        d.qk_norm = SH_QK_NORM_HEADS;
        d.qk_norm_kind = SH_NORM_LAYER;
    }
    sh_decoder_build(&d);
}

/* Three of four layers have the window and rotate, the fourth has neither. */
void sh_build_cohere2(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_cohere(&d, m);
    sh_decoder_window(&d, 4);
    sh_read_u32_required(&m->r, "attention.sliding_window", 1, UINT32_MAX);
    d.rope = SH_NONE;
    sh_decoder_build(&d);
}
