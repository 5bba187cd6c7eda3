/* Pre-norm with RMS norms, rotation of halves, SwiGLU: the Qwen family and its relatives. */
#include "compute/model/decoder.h"

/* Biases and a head of its own where the file has them: qwen2, exaone. */
void sh_build_qwen2(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    sh_decoder_build(&d);
}

/* The key counts gate and up together. */
void sh_build_qwen(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.biases = SH_BIAS_QKV;
    for (uint32_t l = 0; l < m->spec.n_layers; l++) m->spec.ff[l] /= 2;
    sh_decoder_build(&d);
}

void sh_build_qwen3(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.qk_norm = SH_QK_NORM_HEAD;
    sh_decoder_build(&d);
}

/* Norms of q and k after the rotation. */
void sh_build_hunyuan_dense(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.qk_norm = SH_QK_NORM_HEAD;
    d.qk_norm_late = true;
    sh_decoder_build(&d);
}

/* The norm before the feed-forward has another name. */
void sh_build_seed_oss(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.ffn_norm = "post_attention_norm";
    sh_decoder_build(&d);
}
