/* llama: pre-norm, grouped-query attention with rotation of adjacent pairs, SwiGLU. Biases and a head of its own where the file has them. */
#include "compute/model/decoder.h"

void sh_build_llama(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.pairing = SH_ROPE_ADJACENT;
    sh_decoder_window(&d, 0); /* Mistral 7B v0.1 has one in every layer */
    sh_decoder_build(&d);
}
