/*
 * moe.h - the mixture-of-experts feed-forward that the families share: its metadata, routing, the chosen experts, the shared
 * expert. One thread.
 */
#ifndef SHIMMY_MOE_H
#define SHIMMY_MOE_H

#include "compute/model/decoder.h"

struct sh_moe {
    struct sh_build_experts experts;
    enum sh_glu glu;
    uint32_t n_dense;     /* so many layers at the beginning have the decoder's feed-forward and no experts */
    uint32_t n_ff;        /* of one expert */
    uint32_t n_ff_shared; /* of the shared expert, which every token passes; 0: none */
    bool shared_gate;     /* the shared expert's output times the sigmoid of a number of its own */
    bool selection_bias;  /* exp_probs_b: added to the scores for choosing alone */
    bool biases;          /* of the router and of the experts' matrices */
};

/* What a family does where the file's keys expert_gating_func and expert_weights_norm say nothing. */
struct sh_moe_family {
    enum sh_gating gating;
    bool normalise;
};

/* Reads and checks the keys expert_* and leading_dense_block_count. SwiGLU, no shared expert, no biases. */
struct sh_moe sh_moe_read(struct sh_model_builder *m, struct sh_moe_family family);
/* expert_shared_count experts as one that is as much wider. */
void sh_moe_read_shared(struct sh_model_builder *m, struct sh_moe *moe);

/* The branch of layer d->m->b.layer on the normalised rows x [R][n_embd], before the residual. The ops that read experts' weights
 * are marked on_host; routing and the shared expert are not. */
uint32_t sh_build_moe(struct sh_decoder *d, const struct sh_moe *moe, uint32_t x);
/* Makes that the decoder's feed-forward: d->family is *moe then, which must stay until the program is built. */
void sh_decoder_use_moe(struct sh_decoder *d, const struct sh_moe *moe);

#endif
