/*
 * spec.h - the hyper-parameters of a decoder, read from metadata once, checked and capped; and the rotation table they ask for.
 * One thread.
 */
#ifndef SHIMMY_SPEC_H
#define SHIMMY_SPEC_H

#include "compute/gguf/gguf.h"

#define SH_DEFAULT_CONTEXT 8192 /* tokens, where the model's own is longer and nothing is configured */

enum sh_rope_scaling { SH_ROPE_PLAIN, SH_ROPE_LINEAR, SH_ROPE_YARN };
struct sh_rope_spec {
    enum sh_rope_scaling scaling;
    double base;
    double factor;           /* LINEAR, YARN: >= 1 */
    double extend;           /* positions are divided by this too: sh_model_params.rope_scale, else 1 */
    double original_context; /* YARN, tokens */
    double beta_fast, beta_slow, attention_factor;
    uint32_t n_rot; /* dimensions of a head that are rotated; even */
};

struct sh_spec {
    uint32_t n_layers, n_embd, n_ff, n_vocab;
    uint32_t n_heads, n_kv_heads, k_dim, v_dim; /* dims per head */
    uint32_t context_native, context_length;    /* tokens */
    float norm_eps;
    struct sh_rope_spec rope;
};

/* Reads "<architecture>.*". `params` may be NULL (defaults). */
enum sh_code sh_spec_read(const struct sh_gguf *g, const char *architecture, const struct sh_model_params *params,
                          struct sh_spec *out, struct sh_error *err);

/* The table F32 [context][n_rot / 2][2] of (cos, sin), computed in double. `factors` [n_rot / 2] divide the frequencies, or NULL.
 * malloc'd; NULL: no memory. */
float *sh_rope_table(const struct sh_rope_spec *rope, const float *factors, uint32_t context);

#endif
