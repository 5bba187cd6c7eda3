/* phi3 and chatglm: q, k and v in one tensor, gate and up in another. */
#include "compute/model/decoder.h"

/* A window below the context is honoured in every layer, as the authors of Phi-3-mini-4k compute it (reference builds disagree). */
void sh_build_phi3(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.fused_gate = true;
    sh_decoder_window(&d, 0);
    sh_decoder_build(&d);
}

void sh_build_chatglm(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.fused_gate = true;
    d.pairing = SH_ROPE_ADJACENT;
    sh_decoder_build(&d);
}
