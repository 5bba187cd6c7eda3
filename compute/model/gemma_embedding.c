/*
 * gemma-embedding (EmbeddingGemma): Gemma 3's layers as an encoder: attention sees both ways, in layers with a window no further than half
 * of it. The embedding is scaled by sqrt(n_embd), norms stand before and after each branch, q and k are normed per head. The
 * result is the final norm's; there is no head.
 */
#include "compute/model/decoder.h"

#include <math.h>

#define WINDOW_PERIOD 6         /* five layers with a window, one without */
#define WINDOW_ROPE_BASE 10000.0 /* of layers with a window, and without the file's scaling */

void sh_build_gemma_embedding(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.encoder = true;
    sh_decoder_window(&d, WINDOW_PERIOD);
    const struct sh_rope_spec local =
        sh_rope_plain(m->spec.rope.n_rot, sh_read_real(&m->r, "rope.freq_base_swa", WINDOW_ROPE_BASE, 1.001, 1e12));
    d.rope_windowed = sh_model_rope(m, &local);
    d.embedding_scale = (float)sqrt((double)m->spec.n_embd);
    d.qk_norm = SH_QK_NORM_HEAD;
    d.attn_post_norm = "post_attention_norm";
    d.ffn_post_norm = "post_ffw_norm";
    d.glu = SH_GLU_GELU;
    sh_decoder_build(&d);
}
