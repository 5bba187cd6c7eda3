/* Metadata -> what most architectures share. Every number is checked against a cap before anything is computed from it. */
#include "compute/model/spec.h"

#include <math.h>

static uint32_t largest(const uint32_t *values, uint32_t n) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) most = values[i] > most ? values[i] : most;
    return most;
}

static void read_heads(struct sh_reader *r, struct sh_spec *s, uint32_t flags) {
    if (flags & SH_SPEC_NO_ATTENTION) {
        sh_read_u32s(r, "attention.head_count", 0, 0, 0, s->heads, s->n_layers);
        sh_read_u32s(r, "attention.head_count_kv", 0, 0, 0, s->kv_heads, s->n_layers);
        return;
    }
    if (!sh_read_has(r, "attention.head_count")) sh_read_u32_required(r, "attention.head_count", 1, SH_MAX_HEADS);
    sh_read_u32s(r, "attention.head_count", 1, 1, SH_MAX_HEADS, s->heads, s->n_layers);
    if (sh_read_has(r, "attention.head_count_kv"))
        sh_read_u32s(r, "attention.head_count_kv", 1, flags & SH_SPEC_SOME_ATTENTION ? 0 : 1, SH_MAX_HEADS, s->kv_heads,
                     s->n_layers);
    else memcpy(s->kv_heads, s->heads, sizeof s->heads);
    if (*r->code != SH_OK) return;
    for (uint32_t l = 0; l < s->n_layers; l++)
        if (s->kv_heads[l] > 0 && s->heads[l] % s->kv_heads[l] != 0)
            return sh_read_fail(r, SH_ERR_FORMAT, "attention.head_count", "is %u, expected a multiple of head_count_kv, %u",
                                s->heads[l], s->kv_heads[l]);
    s->n_heads = largest(s->heads, s->n_layers);
    s->n_kv_heads = largest(s->kv_heads, s->n_layers);
    if (!sh_read_has(r, "attention.key_length") && s->n_embd % s->n_heads != 0)
        return sh_read_fail(r, SH_ERR_FORMAT, "attention.key_length",
                            "is missing and embedding_length %u does not divide by head_count %u", s->n_embd, s->n_heads);
    s->k_dim = sh_read_u32(r, "attention.key_length", s->n_embd / s->n_heads, 1, SH_MAX_HEAD_DIM);
    s->v_dim = sh_read_u32(r, "attention.value_length", s->k_dim, 1, SH_MAX_HEAD_DIM);
}

/*
 * YaRN's magnitude: 1 + 0.1 ln(factor). Where the file has a log multiplier m the scores are scaled by another formula, and what
 * is left to cos and sin is (1 + 0.1 ln f) / (1 + 0.1 m ln f); DeepSeek-V2 differs and its builder says so.
 */
static void read_yarn(struct sh_reader *r, struct sh_rope_spec *rope) {
    rope->beta_fast = sh_read_real(r, "rope.scaling.yarn_beta_fast", 32.0, 1e-3, 1e6);
    rope->beta_slow = sh_read_real(r, "rope.scaling.yarn_beta_slow", 1.0, 1e-3, 1e6);
    rope->extrapolation = sh_read_real(r, "rope.scaling.yarn_ext_factor", 1.0, 0, 1);
    rope->log_multiplier = sh_read_real(r, "rope.scaling.yarn_log_multiplier", 0, 0, 1e3);
    rope->attention_factor *= sh_read_real(r, "rope.scaling.yarn_attn_factor", 1.0, 1e-3, 1e3);
    if (*r->code == SH_OK && rope->factor < 1)
        return sh_read_fail(r, SH_ERR_FORMAT, "rope.scaling.factor", "is %g, expected at least 1 for yarn", rope->factor);
    const double turn = log(rope->factor);
    rope->magnitude = rope->attention_factor;
    if (rope->extrapolation > 0) rope->magnitude *= (1.0 + 0.1 * turn) / (1.0 + 0.1 * rope->log_multiplier * turn);
}

static void read_scaling(struct sh_reader *r, struct sh_rope_spec *rope, uint32_t context_native) {
    const struct sh_str type = sh_read_str(r, "rope.scaling.type", "linear");
    const double older = sh_read_real(r, "rope.scale_linear", 1.0, 0, 1e6); /* the key's name before rope.scaling */
    rope->factor = sh_read_real(r, "rope.scaling.factor", older, 0, 1e6);
    if (rope->factor == 0) rope->factor = 1; /* written by converters for "no scaling" */
    rope->original_context = sh_read_u32(r, "rope.scaling.original_context_length", context_native, 1, SH_MAX_CONTEXT);
    rope->attention_factor = sh_read_real(r, "rope.scaling.attn_factor", 1.0, 1e-3, 1e3);
    rope->magnitude = rope->attention_factor;
    if (sh_str_is(type, "none")) {
        rope->factor = 1;
    } else if (sh_str_is(type, "linear")) {
        rope->scaling = rope->factor != 1 ? SH_ROPE_LINEAR : SH_ROPE_PLAIN;
    } else if (sh_str_is(type, "yarn")) {
        rope->scaling = SH_ROPE_YARN;
        read_yarn(r, rope);
    } else if (sh_str_is(type, "longrope")) {
        rope->scaling = SH_ROPE_LONG;
    } else {
        sh_read_fail(r, SH_ERR_UNSUPPORTED, "rope.scaling.type", "is '%.*s', this build computes none, linear, yarn and longrope",
                     (int)(type.length < 64 ? type.length : 64), type.ptr);
    }
}

/* Divisors in tensors: one set for all (Llama 3.1), or one for contexts up to the original one and one beyond it: the configured
 * context decides, never the length of a text. */
static void choose_factors(struct sh_reader *r, struct sh_rope_spec *rope, uint32_t context) {
    if (sh_gguf_tensor(r->g, "rope_freqs.weight") != NULL) rope->factors = "rope_freqs.weight";
    if (sh_gguf_tensor(r->g, "rope_factors_long.weight") == NULL && sh_gguf_tensor(r->g, "rope_factors_short.weight") == NULL) {
        if (rope->scaling == SH_ROPE_LONG)
            sh_read_fail(r, SH_ERR_FORMAT, "rope.scaling.type",
                         "is 'longrope', but the tensors 'rope_factors_long.weight' and 'rope_factors_short.weight' are missing");
        return;
    }
    rope->factors = context > rope->original_context ? "rope_factors_long.weight" : "rope_factors_short.weight";
}

static void read_rope(struct sh_reader *r, struct sh_spec *s, double extend) {
    struct sh_rope_spec *rope = &s->rope;
    const uint32_t most = s->k_dim > 2 ? s->k_dim : 2;
    *rope = sh_rope_plain(sh_read_u32(r, "rope.dimension_count", s->k_dim, 2, most), 0);
    rope->extend = extend;
    if (*r->code == SH_OK && (rope->n_rot % 2 != 0 || rope->n_rot > s->k_dim))
        sh_read_fail(r, SH_ERR_FORMAT, "rope.dimension_count",
                     "asks for %u dimensions of a head to be rotated, expected an even number up to %u", rope->n_rot, s->k_dim);
    rope->base = sh_read_real(r, "rope.freq_base", 10000.0, 1.001, 1e12);
    read_scaling(r, rope, s->context_native);
}

static void choose_context(struct sh_reader *r, struct sh_spec *s, uint32_t wanted, double extend) {
    if (*r->code != SH_OK) return;
    const double limit = fmin(floor((double)s->context_native * extend), SH_MAX_CONTEXT);
    if (wanted == 0) {
        s->context_length = s->context_native < SH_DEFAULT_CONTEXT ? s->context_native : SH_DEFAULT_CONTEXT;
    } else if (wanted > limit) {
        *r->code = sh_fail(
            r->err, SH_ERR_INVALID,
            "%s: a context of %u tokens was asked for, the model has %u%s; ask for at most %.0f, or extend it with a rope "
            "scale of at least %.3g",
            sh_gguf_path(r->g, 0), wanted, s->context_native, extend > 1 ? " before scaling" : "", limit,
            (double)wanted / (double)s->context_native);
    } else {
        s->context_length = wanted;
    }
}

static void read_vocabulary(struct sh_reader *r, struct sh_spec *s) {
    if (*r->code != SH_OK) return;
    const struct sh_tensor *embedding = sh_gguf_tensor(r->g, "token_embd.weight");
    const struct sh_kv *tokens = sh_gguf_find(r->g, "tokenizer.ggml.tokens");
    if (embedding == NULL) {
        *r->code = sh_fail(r->err, SH_ERR_FORMAT, "%s: tensor 'token_embd.weight' is missing", sh_gguf_path(r->g, 0));
        return;
    }
    const char *path = sh_gguf_path(r->g, embedding->shard);
    s->n_vocab = (uint32_t)embedding->dims[1];
    if (embedding->dims[1] < 1 || embedding->dims[1] > SH_MAX_VOCAB)
        *r->code =
            sh_fail(r->err, SH_ERR_FORMAT, "%s: tensor 'token_embd.weight' has %llu rows, expected a vocabulary of 1 to %d", path,
                    (unsigned long long)embedding->dims[1], SH_MAX_VOCAB);
    else if (tokens != NULL && tokens->count != s->n_vocab)
        *r->code =
            sh_fail(r->err, SH_ERR_FORMAT, "%s: tensor 'token_embd.weight' has %u rows, expected one for each of the %llu tokens",
                    path, s->n_vocab, (unsigned long long)tokens->count);
}

/* Converters write both for dense models, too. How many are used is a matter of the builders that have experts. */
static void read_experts(struct sh_reader *r, struct sh_spec *s) {
    s->n_expert = sh_read_u32(r, "expert_count", 0, 0, SH_MAX_EXPERTS);
    s->n_expert_used = sh_read_u32(r, "expert_used_count", 0, 0, SH_MAX_EXPERTS);
}

void sh_spec_read(struct sh_reader *r, const struct sh_model_params *params, uint32_t flags, struct sh_spec *s) {
    *s = (struct sh_spec){0};
    if (*r->code != SH_OK) return;
    const double extend = params != NULL && params->rope_scale != 0 ? (double)params->rope_scale : 1.0;
    if (!(extend >= 1.0 && extend <= 1e6)) {
        *r->code = sh_fail(r->err, SH_ERR_INVALID, "rope_scale is %g, expected a factor of at least 1", extend);
        return;
    }
    s->n_layers = sh_read_u32_required(r, "block_count", 1, SH_MAX_LAYERS);
    s->n_embd = sh_read_u32_required(r, "embedding_length", 1, SH_MAX_EMBD);
    s->context_native = sh_read_u32_required(r, "context_length", 1, SH_MAX_CONTEXT);
    if ((flags & SH_SPEC_NO_FF) == 0 && !sh_read_has(r, "feed_forward_length"))
        sh_read_u32_required(r, "feed_forward_length", 1, SH_MAX_FF);
    sh_read_u32s(r, "feed_forward_length", 0, flags & SH_SPEC_NO_FF ? 0 : 1, SH_MAX_FF, s->ff, s->n_layers);
    s->n_ff = largest(s->ff, s->n_layers);
    s->rms_eps = sh_read_real(r, "attention.layer_norm_rms_epsilon", -1, 0, 1);
    s->layer_eps = sh_read_real(r, "attention.layer_norm_epsilon", -1, 0, 1);
    s->causal = sh_read_bool(r, "attention.causal", true);
    if (!s->causal && (flags & SH_SPEC_ENCODER) == 0)
        sh_read_fail(r, SH_ERR_UNSUPPORTED, "attention.causal",
                     "is false, architecture '%s' is computed with causal attention alone", r->architecture);
    s->pooling = (enum sh_pooling)sh_read_u32(r, "pooling_type", SH_POOL_NONE, SH_POOL_NONE, SH_POOL_LAST);
    read_experts(r, s);
    read_heads(r, s, flags);
    const bool rotates = (flags & (SH_SPEC_NO_ROPE | SH_SPEC_NO_ATTENTION)) == 0;
    if (rotates) read_rope(r, s, extend);
    else if (extend != 1 && *r->code == SH_OK)
        *r->code = sh_fail(r->err, SH_ERR_INVALID, "rope_scale is %g, but architecture '%s' rotates nothing; set no rope scale",
                           extend, r->architecture);
    choose_context(r, s, params != NULL ? params->context_length : 0, extend);
    if (rotates && *r->code == SH_OK) choose_factors(r, &s->rope, s->context_length);
    read_vocabulary(r, s);
}
