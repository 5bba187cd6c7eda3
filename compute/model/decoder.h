/*
 * decoder.h - decoders as a table of options. A family's builder fills a struct sh_decoder (sh_decoder_init sets what most have in
 * common), and sh_decoder_build writes the program; what a family does in its own way it hangs in as a function. The
 * parts can be called alone, too, by builders of another shape.
 *
 * A layer, in the order of the ops; x is the stream of width n_embd, every norm may be absent:
 *   a = attn_post_norm(attention(attn_norm(x))) * residual_scale
 *   sequential:  x = x + a;  x = x + ffn_post_norm(ffn(ffn_norm(x))) * residual_scale
 *   parallel:    x = x + a + ffn(ffn_norm(x)) * residual_scale; ffn_norm NULL: the feed-forward reads attn_norm's result, too
 * Then x = output_norm(x) [hidden], logits = cap(head(x) * logit_scale).
 * In the last layer whatever comes after attention is computed for the rows alone whose output is asked (sh_decoder_rows).
 *
 * Tensors are "blk.<layer>.<stem>.weight" and ".bias". A bias that a file has is used, unless the shape of the family has no place
 * for one; those in `biases` must be there. One thread.
 */
#ifndef SHIMMY_DECODER_H
#define SHIMMY_DECODER_H

#include "compute/model/build_model.h"

/* biases that must be there */
enum {
    SH_BIAS_NORM = 1, /* of norms over whole rows */
    SH_BIAS_QKV = 2,
    SH_BIAS_OUT = 4, /* of attn_output */
    SH_BIAS_FFN = 8,
    SH_BIAS_ALL = 15,
};
enum sh_qk_norm {
    SH_QK_NORM_NONE,
    SH_QK_NORM_HEAD,  /* attn_q_norm, attn_k_norm [k_dim]: each head by itself, all with one weight */
    SH_QK_NORM_HEADS, /* [k_dim, n_heads]: each head by itself, with its own */
    SH_QK_NORM_ROW,   /* [n_heads * k_dim]: the whole row */
};
enum sh_ffn_kind {
    SH_FFN_GATED,   /* down(glu(gate x) * up x) */
    SH_FFN_UNGATED, /* down(act(up x)) */
};

struct sh_decoder {
    struct sh_model_builder *m;
    const void *family; /* for the functions below */
    bool encoder;       /* attention sees both ways, and there is no head */

    /* Norms of whole rows: the stem of the tensors, NULL for no such norm. */
    enum sh_norm_kind norm;
    bool norm_bare; /* they have no weights: no tensors are looked up */
    const char *attn_norm, *attn_post_norm, *ffn_norm, *ffn_post_norm, *output_norm;
    const char *embd_norm; /* of the embedding: "token_embd_norm" */
    uint32_t biases;       /* SH_BIAS_* */
    bool parallel;

    float embedding_scale;            /* 0: none */
    bool learned_positions;           /* position_embd is added to the embedding */
    float residual_scale;             /* 0: none */
    float logit_scale, logit_softcap; /* 0: none */

    /* Attention. q, k, v come from attn_q, attn_k, attn_v, or from attn_qkv where the file has that: q, then k, then v. */
    enum sh_qk_norm qk_norm;
    enum sh_norm_kind qk_norm_kind;
    bool qk_norm_late;      /* after the rotation */
    float clamp_qkv;        /* 0: none */
    uint32_t q_temperature; /* a constant [context][1] that multiplies q by its position; SH_NONE */
    enum sh_rope_pairing pairing;
    uint32_t rope_first;    /* the first dimension of a head that is rotated */
    uint32_t rope;          /* the table, SH_NONE: no rotation */
    uint32_t rope_windowed; /* of layers with a window */
    uint32_t rope_step;     /* n > 0: layers n - 1, 2n - 1, .. rotate nothing */
    uint32_t slopes;        /* ALiBi, SH_NONE */
    bool sinks;             /* attn_sinks */
    float scale;            /* of scores; 1 / sqrt(k_dim) */
    float softcap;          /* 0: none */
    uint32_t window;        /* 0: none; else layers with `windowed` see the last so many positions */
    bool windowed[SH_MAX_LAYERS];

    enum sh_ffn_kind ffn_kind;
    enum sh_glu glu;   /* GATED */
    bool fused_gate;   /* GATED: where there is no ffn_gate, ffn_up holds both, the gate first */
    enum sh_unary act; /* UNGATED */

    /* In place of the usual: x is the branch's input after its norm, [R][n_embd]; the result is the branch's, before post-norm, scale and
     * residual. Of attention it must have the rows that sh_decoder_rows gives. NULL: sh_decoder_attention, sh_decoder_ffn. */
    uint32_t (*attention)(struct sh_decoder *d, uint32_t x);
    uint32_t (*ffn)(struct sh_decoder *d, uint32_t x);
};

/* A sequential pre-norm decoder: RMS norms, q, k, v rotated by the file's rope keys in halves, a gated feed-forward with SiLU. */
void sh_decoder_init(struct sh_decoder *d, struct sh_model_builder *m);
/* Keys attention.sliding_window (absent: none; 0, too, but refused where `period` says that the family has some) and
 * sliding_window_pattern: which layers have it, or a period p: those with l % p < p - 1, with p = 0 all of them; `period` where the
 * key is absent. */
void sh_decoder_window(struct sh_decoder *d, uint32_t period);
/* Layers with a window turn unscaled, with the base of key rope.freq_base_swa, else this one. rope_scale does not touch them: what they see
 * is never further away than they were trained for. */
void sh_decoder_local_rope(struct sh_decoder *d, double base);
/* Families that others build on. */
void sh_init_granite(struct sh_decoder *d, struct sh_model_builder *m);
void sh_init_gemma3(struct sh_decoder *d, struct sh_model_builder *m);
/* The whole program. */
void sh_decoder_build(struct sh_decoder *d);

/* ---- its parts; the layer is d->m->b.layer ---- */

/* A norm over whole rows (kind and biases as in d) with the tensors "blk.<layer>.<stem>", or "<stem>" outside layers. */
uint32_t sh_decoder_norm(struct sh_decoder *d, uint32_t x, const char *stem);
/* x w^T with "blk.<layer>.<stem>.weight" [n_in -> n_out] and its bias, which must be there if `biased`. */
uint32_t sh_decoder_linear(struct sh_decoder *d, uint32_t x, uint32_t n_in, uint32_t n_out, bool biased, const char *stem);
/* From the normed input to attn_output's result. */
uint32_t sh_decoder_attention(struct sh_decoder *d, uint32_t x);
/* q (norm, clamp, rotation as in d), k, v [R][heads * dim] -> attention's result [R][n_heads * v_dim], all rows. */
uint32_t sh_decoder_attend(struct sh_decoder *d, uint32_t q, uint32_t k, uint32_t v);
/* What attn_output reads: in the last layer the rows alone whose output is asked. */
uint32_t sh_decoder_rows(struct sh_decoder *d, uint32_t x, const char *stem);
uint32_t sh_decoder_ffn(struct sh_decoder *d, uint32_t x);
bool sh_decoder_is_windowed(const struct sh_decoder *d);
/* The embedding with its scale, positions and norm. */
uint32_t sh_decoder_embed(struct sh_decoder *d);
/* Final norm and head: "output.weight", or the embedding again where the file has none. */
void sh_decoder_finish(struct sh_decoder *d, uint32_t x);

#endif
