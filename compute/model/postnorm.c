/* Decoders with norms after their branches: olmo2, exaone4, glm4; and olmo, whose norms have no weights. */
#include "compute/model/decoder.h"

static void init_post(struct sh_decoder *d, struct sh_model_builder *m) {
    sh_decoder_init(d, m);
    d->attn_norm = d->ffn_norm = NULL;
    d->attn_post_norm = "post_attention_norm";
    d->ffn_post_norm = "post_ffw_norm";
}

/* With a window (OLMo 3) three of four layers have it and turn unscaled, whatever the scaling of the fourth. */
void sh_build_olmo2(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_post(&d, m);
    d.qk_norm = SH_QK_NORM_ROW;
    sh_decoder_window(&d, 4);
    if (d.window > 0) sh_decoder_local_rope(&d, m->spec.rope.base);
    sh_decoder_build(&d);
}

/* With a window (the 32B) three of four layers have it, and the fourth rotates nothing. */
void sh_build_exaone4(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_post(&d, m);
    d.qk_norm = SH_QK_NORM_HEAD;
    sh_decoder_window(&d, 4);
    if (d.window > 0) d.rope = SH_NONE;
    sh_decoder_build(&d);
}

/* Norms before and after. */
void sh_build_glm4(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_post(&d, m);
    d.attn_norm = "attn_norm";
    d.ffn_norm = "ffn_norm";
    d.pairing = SH_ROPE_ADJACENT;
    d.fused_gate = true;
    sh_decoder_build(&d);
}

void sh_build_olmo(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.norm = SH_NORM_LAYER;
    d.norm_bare = true;
    d.pairing = SH_ROPE_ADJACENT;
    d.clamp_qkv = (float)sh_read_real(&m->r, "attention.clamp_kqv", 0, 0, 1e6);
    sh_decoder_build(&d);
}
