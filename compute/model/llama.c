/*
 * The layout of llama: pre-norm with RMS norms, grouped-query attention with rotation of adjacent pairs, SwiGLU. Biases, and a head
 * of its own, where the file has them.
 */
#include "compute/model/moe.h"

#include <math.h>

static void init(struct sh_decoder *d, struct sh_model_builder *m) {
    sh_decoder_init(d, m);
    d->pairing = SH_ROPE_ADJACENT;
}

/* A sliding window (Mistral 7B v0.1 has one in every layer) is honoured, as its authors computed it. */
void sh_build_llama(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    sh_decoder_window(&d, 0);
    struct sh_moe moe;
    if (m->spec.n_expert > 0) { /* Mixtral */
        moe = sh_moe_read(m, (struct sh_moe_family){SH_GATE_SOFTMAX, true});
        sh_decoder_use_moe(&d, &moe);
    }
    sh_decoder_build(&d);
}

/* Nothing beside the layout: internlm2, ernie4_5. */
void sh_build_llama_like(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    sh_decoder_build(&d);
}

/* Queries grow with the logarithm of how many times the position exceeds the original context. */
void sh_build_mistral3(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    const double scale = sh_read_real(&m->r, "attention.temperature_scale", 0, 0, 1e3);
    if (scale != 0) d.q_temperature = sh_model_temperature(m, scale, m->spec.rope.original_context);
    sh_decoder_build(&d);
}

/* An ungated feed-forward with squared ReLU. */
void sh_build_arcee(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.ffn_kind = SH_FFN_UNGATED;
    d.act = SH_UNARY_RELU_SQUARED;
    sh_decoder_build(&d);
}

/* Every fourth layer rotates nothing. */
void sh_build_smollm3(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    d.rope_step = 4;
    sh_decoder_build(&d);
}

/* Files of before these keys mean the factors of MiniCPM 2B: 12, 1.4 / sqrt(layers), and a head made for a width of 256. */
void sh_build_minicpm(struct sh_model_builder *m) {
    struct sh_decoder d;
    init(&d, m);
    const double layers = m->spec.n_layers, width = m->spec.n_embd;
    d.embedding_scale = (float)sh_read_real(&m->r, "embedding_scale", 12, 1e-6, 1e6);
    d.residual_scale = (float)sh_read_real(&m->r, "residual_scale", 1.4 / sqrt(fmax(layers, 1)), 1e-6, 1e6);
    d.logit_scale = (float)(1.0 / sh_read_real(&m->r, "logit_scale", width / 256, 1e-6, 1e6));
    sh_decoder_build(&d);
}

void sh_init_granite(struct sh_decoder *d, struct sh_model_builder *m) {
    init(d, m);
    d->embedding_scale = (float)sh_read_real(&m->r, "embedding_scale", 0, 0, 1e6);
    d->residual_scale = (float)sh_read_real(&m->r, "residual_scale", 0, 0, 1e6);
    d->logit_scale = (float)(1.0 / sh_read_real_required(&m->r, "logit_scale", 1e-6, 1e6));
    const float scale = (float)sh_read_real(&m->r, "attention.scale", 0, 0, 1e3);
    if (scale > 0) d->scale = scale;
    if (!sh_read_bool(&m->r, "rope.scaling.finetuned", true)) d->rope = SH_NONE; /* how a Granite says that it rotates nothing */
}

void sh_build_granite(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_init_granite(&d, m);
    sh_decoder_build(&d);
}
