/*
 * Decoders of the usual shape whose feed-forward is a mixture of experts (moe.h): qwen2moe, qwen3moe, phimoe, olmoe, granitemoe,
 * deepseek, glm4moe, gpt-oss. Mixtral's architecture is 'llama'.
 */
#include "compute/model/moe.h"

static const struct sh_moe_family softmax = {.gating = SH_GATE_SOFTMAX}, softmax_normalised = {SH_GATE_SOFTMAX, true};

void sh_build_qwen2moe(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.biases = SH_BIAS_QKV;
    struct sh_moe moe = sh_moe_read(m, softmax);
    moe.n_ff_shared = sh_read_u32(&m->r, "expert_shared_feed_forward_length", m->spec.n_ff, 1, SH_MAX_FF);
    moe.shared_gate = true;
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

void sh_build_qwen3moe(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.qk_norm = SH_QK_NORM_HEAD;
    const struct sh_moe moe = sh_moe_read(m, softmax_normalised);
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

/* RMS norms, yet with a bias. */
void sh_build_phimoe(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.biases = SH_BIAS_NORM | SH_BIAS_QKV | SH_BIAS_OUT;
    sh_decoder_window(&d, 0);
    const struct sh_moe moe = sh_moe_read(m, softmax_normalised);
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

void sh_build_olmoe(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.qk_norm = SH_QK_NORM_ROW;
    const struct sh_moe moe = sh_moe_read(m, softmax);
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

void sh_build_granitemoe(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_init_granite(&d, m);
    const struct sh_moe moe = sh_moe_read(m, softmax_normalised);
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

void sh_build_deepseek(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.pairing = SH_ROPE_ADJACENT;
    struct sh_moe moe = sh_moe_read(m, softmax);
    sh_moe_read_shared(m, &moe);
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

/* The norm before the feed-forward is called post_attention_norm; only the larger of GLM-4.5's sizes norms q and k. */
void sh_build_glm4moe(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_model_leave_predictors(m);
    sh_decoder_init(&d, m);
    d.biases = SH_BIAS_QKV;
    if (sh_build_has(&m->b, "blk.0.attn_q_norm.weight")) d.qk_norm = SH_QK_NORM_HEAD;
    d.ffn_norm = "post_attention_norm";
    struct sh_moe moe = sh_moe_read(m, (struct sh_moe_family){.gating = SH_GATE_SIGMOID});
    sh_moe_read_shared(m, &moe);
    moe.selection_bias = true;
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}

/* Attention with sinks, a window in layers 0, 2, ..; biases everywhere but in the norms; softmax over the chosen experts' scores
 * alone. */
void sh_build_gpt_oss(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.biases = SH_BIAS_QKV | SH_BIAS_OUT;
    d.sinks = true;
    sh_read_u32_required(&m->r, "attention.sliding_window", 1, UINT32_MAX);
    sh_decoder_window(&d, 2);
    d.ffn_norm = "post_attention_norm";
    struct sh_moe moe = sh_moe_read(m, (struct sh_moe_family){.gating = SH_GATE_SOFTMAX_CHOSEN});
    moe.glu = SH_GLU_OAI;
    moe.biases = true;
    sh_decoder_use_moe(&d, &moe);
    sh_decoder_build(&d);
}
