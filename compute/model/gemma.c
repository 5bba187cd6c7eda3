/*
 * Gemma: RMS norms whose weights already hold the "+ 1", the embedding times sqrt(its width), a GELU gate, a tied head. From the second on
 * norms after the branches, too, and layers with a window.
 */
#include "compute/model/decoder.h"

#include <math.h>

static void init_gemma(struct sh_decoder *d, struct sh_model_builder *m) {
    sh_decoder_init(d, m);
    d->glu = SH_GLU_GELU;
    d->embedding_scale = (float)sqrt((double)m->spec.n_embd);
}

static void init_post(struct sh_decoder *d, struct sh_model_builder *m) {
    init_gemma(d, m);
    d->attn_post_norm = "post_attention_norm";
    d->ffn_post_norm = "post_ffw_norm";
    d->logit_softcap = (float)sh_read_real(&m->r, "final_logit_softcapping", 0, 0, 1e6);
}

/* The 27B models scale scores by the share of a head in the embedding instead of its size; no key says so, the layers' number does. */
static void set_scale(struct sh_decoder *d, uint32_t layers_of_27b) {
    const struct sh_spec *s = &d->m->spec;
    if (s->n_layers == layers_of_27b) d->scale = (float)(1.0 / sqrt((double)s->n_embd / s->n_heads));
}

void sh_build_gemma(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_gemma(&d, m);
    sh_decoder_build(&d);
}

/* Even layers have the window. Files of before the keys mean the published models' caps and window. */
void sh_build_gemma2(struct sh_model_builder *m) {
    struct sh_decoder d;
    init_post(&d, m);
    set_scale(&d, 46);
    d.softcap = (float)sh_read_real(&m->r, "attn_logit_softcapping", 50, 0, 1e6);
    if (!sh_read_has(&m->r, "final_logit_softcapping")) d.logit_softcap = 30;
    sh_decoder_window(&d, 2);
    if (!sh_read_has(&m->r, "attention.sliding_window")) d.window = 4096;
    sh_decoder_build(&d);
}

/* Five of six layers have the window, and turn unscaled with a base of their own. */
void sh_init_gemma3(struct sh_decoder *d, struct sh_model_builder *m) {
    init_post(d, m);
    set_scale(d, 62);
    d->qk_norm = SH_QK_NORM_HEAD;
    sh_decoder_window(d, 6);
    if (d->window > 0) sh_decoder_local_rope(d, 10000);
}

/* EmbeddingGemma: Gemma 3 as an encoder: attention sees both ways, with a window no further than half of it. No head. */
void sh_build_gemma_embedding(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_init_gemma3(&d, m);
    d.encoder = true;
    sh_decoder_build(&d);
}

void sh_build_gemma3(struct sh_model_builder *m) {
    struct sh_decoder d;
    sh_init_gemma3(&d, m);
    sh_decoder_build(&d);
}
