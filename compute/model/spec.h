/*
 * spec.h - hyper-parameters: a reader of metadata keys whose first error sticks, what most architectures share, read from
 * metadata once, checked and capped; and the rotation tables they ask for. One thread.
 */
#ifndef SHIMMY_SPEC_H
#define SHIMMY_SPEC_H

#include "compute/gguf/gguf.h"

#define SH_DEFAULT_CONTEXT 8192 /* tokens, where the model's own is longer and nothing is configured */

/* Far beyond any model; they keep products of two of them inside 64 bits and a hostile file's demands small. */
enum {
    SH_MAX_LAYERS = 1024,
    SH_MAX_EMBD = 1 << 16,
    SH_MAX_FF = 1 << 20,
    SH_MAX_HEADS = 1 << 12,
    SH_MAX_HEAD_DIM = 1 << 12,
    SH_MAX_VOCAB = 1 << 22,
    SH_MAX_CONTEXT = 1 << 24,
    SH_MAX_EXPERTS = 1 << 10,
};

/*
 * Keys "<architecture>.<suffix>". A key that is absent gives the fallback, one of another type or out of its range fails
 * (SH_ERR_FORMAT) naming key, found and expected. After the first failure, in *code, calls do nothing and return the fallback,
 * so a builder is a straight list of calls. Which keys were asked for is kept: sh_reader_check_all_read.
 */
#define SH_READER_KEYS 160
struct sh_reader {
    const struct sh_gguf *g;
    const char *architecture;
    struct sh_error *err;
    enum sh_code *code;
    const struct sh_kv *asked[SH_READER_KEYS];
    uint32_t n_asked;
};

bool sh_read_has(struct sh_reader *r, const char *suffix);
uint32_t sh_read_u32(struct sh_reader *r, const char *suffix, uint32_t fallback, uint32_t lowest, uint32_t highest);
uint32_t sh_read_u32_required(struct sh_reader *r, const char *suffix, uint32_t lowest, uint32_t highest);
double sh_read_real(struct sh_reader *r, const char *suffix, double fallback, double lowest, double highest);
double sh_read_real_required(struct sh_reader *r, const char *suffix, double lowest, double highest);
bool sh_read_bool(struct sh_reader *r, const char *suffix, bool fallback);
/* Lent by the file; the fallback's length is its strlen. */
struct sh_str sh_read_str(struct sh_reader *r, const char *suffix, const char *fallback);
bool sh_str_is(struct sh_str s, const char *text);
/* One value for all of out[n], or an array of at least n of them (bools count as 0 and 1). */
void sh_read_u32s(struct sh_reader *r, const char *suffix, uint32_t fallback, uint32_t lowest, uint32_t highest, uint32_t *out,
                  uint32_t n);
/* Fails, naming "<architecture>.<suffix>" and what is said of it. */
void sh_read_fail(struct sh_reader *r, enum sh_code code, const char *suffix, const char *fmt, ...) SH_PRINTF(4, 5);
/* The key as messages name it. Lent until the next call on any reader of this thread. */
const char *sh_read_key(const struct sh_reader *r, const char *suffix);
/* A key of this architecture's that nobody asked for means that the file wants something that would silently be left out: it is
 * refused by name, unless it is known to change nothing (vocab_size, zeros, factors of 1, ...). */
void sh_reader_check_all_read(struct sh_reader *r);

/* ---- rotation ---- */

enum sh_rope_scaling {
    SH_ROPE_PLAIN,
    SH_ROPE_LINEAR,
    SH_ROPE_YARN,
    SH_ROPE_LONG, /* longrope: nothing but the divisors and the magnitude */
};
/*
 * Pair i of n = n_rot turns by the angle position * theta_i, theta_i = base^(-2i/n) / factors_i.
 * LINEAR divides positions by the factor. YARN (Peng et al., 2023) does so only for pairs that turn less than beta_slow times
 * over the original context, not at all for those that turn more than beta_fast times, and ramps between (times `extrapolation`,
 * 1 for all of it). cos and sin are multiplied by `magnitude`.
 */
struct sh_rope_spec {
    enum sh_rope_scaling scaling;
    double base;
    double factor;                              /* LINEAR, YARN: >= 1 */
    double extend;                              /* positions are divided by this too: sh_model_params.rope_scale, else 1 */
    double original_context;                    /* YARN, LONG: tokens */
    double beta_fast, beta_slow, extrapolation; /* YARN */
    double attention_factor;                    /* the file's own, 1 if it has none; already in magnitude */
    double log_multiplier;                      /* YARN: rope.scaling.yarn_log_multiplier, 0 if absent */
    double magnitude;
    uint32_t n_rot;      /* dimensions of a head that are rotated; even. 0: the model rotates nothing */
    const char *factors; /* a tensor F32 [n_rot / 2] of divisors, NULL: none */
};

/* The table F32 [context][n_rot / 2][2] of (cos, sin), computed in double. `factors` [n_rot / 2] divide the frequencies, or NULL.
 * malloc'd; NULL: no memory. */
float *sh_rope_table(const struct sh_rope_spec *rope, const float *factors, uint32_t context);

/* ---- what most architectures share ---- */

/* what an architecture has not, or has in its own way */
enum {
    SH_SPEC_NO_ATTENTION = 1,    /* no heads at all: their numbers are 0 */
    SH_SPEC_NO_FF = 2,           /* feed_forward_length may be absent or 0 */
    SH_SPEC_NO_ROPE = 4,         /* no rotation: rope.n_rot is 0 and no rope key is read */
    SH_SPEC_ENCODER = 8,         /* attention.causal may be false */
    SH_SPEC_SOME_ATTENTION = 16, /* layers with 0 key/value heads have no attention */
};

struct sh_spec {
    uint32_t n_layers, n_embd, n_vocab;
    uint32_t n_ff, n_heads, n_kv_heads;      /* the largest of the layers */
    uint32_t k_dim, v_dim;                   /* per head */
    uint32_t context_native, context_length; /* tokens */
    double rms_eps, layer_eps;               /* attention.layer_norm_rms_epsilon and .layer_norm_epsilon; -1: absent */
    bool causal;
    enum sh_pooling pooling;
    uint32_t n_expert, n_expert_used; /* 0: none; not held against each other */
    struct sh_rope_spec rope;
    uint32_t heads[SH_MAX_LAYERS], kv_heads[SH_MAX_LAYERS], ff[SH_MAX_LAYERS]; /* of each layer */
};

/* `params` may be NULL (defaults); flags: SH_SPEC_*. */
void sh_spec_read(struct sh_reader *r, const struct sh_model_params *params, uint32_t flags, struct sh_spec *out);

/* Unscaled rotation: layers that see only a window, where the file says nothing else. */
struct sh_rope_spec sh_rope_plain(uint32_t n_rot, double base);

#endif
