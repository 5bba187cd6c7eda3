/* Metadata -> spec. Every number is checked against a cap before anything is computed from it. */
#include "compute/model/spec.h"

#include <math.h>
#include <stdio.h>

/* Far beyond any model; they keep products of two of them inside 64 bits and a hostile file's demands small. */
enum {
    MAX_LAYERS = 1024,
    MAX_EMBD = 1 << 16,
    MAX_FF = 1 << 20,
    MAX_HEADS = 1 << 12,
    MAX_HEAD_DIM = 1 << 12,
    MAX_VOCAB = 1 << 22,
    MAX_CONTEXT = 1 << 24,
};

struct reader {
    const struct sh_gguf *g;
    const char *architecture;
    struct sh_error *err;
    enum sh_code code; /* the first failure sticks */
};

static void key_of(const struct reader *r, const char *suffix, char key[128]) {
    snprintf(key, 128, "%s.%s", r->architecture, suffix);
}

static uint32_t integer(struct reader *r, const char *suffix, bool required, uint32_t fallback, uint32_t lowest,
                        uint32_t highest) {
    char key[128];
    key_of(r, suffix, key);
    uint32_t value = fallback;
    if (r->code != SH_OK) return value;
    r->code = required ? sh_gguf_u32_req(r->g, key, &value, r->err) : sh_gguf_u32(r->g, key, &value, r->err);
    if (r->code == SH_OK && (value < lowest || value > highest))
        r->code = sh_fail(r->err, SH_ERR_FORMAT, "%s: key '%s' is %u, expected %u to %u", sh_gguf_path(r->g, 0), key, value,
                          lowest, highest);
    return value;
}

static double real(struct reader *r, const char *suffix, double fallback, double lowest, double highest) {
    char key[128];
    key_of(r, suffix, key);
    float value = (float)fallback;
    if (r->code != SH_OK) return fallback;
    const bool present = sh_gguf_find(r->g, key) != NULL;
    r->code = sh_gguf_f32(r->g, key, &value, r->err);
    const double v = present ? (double)value : fallback;
    if (r->code == SH_OK && !(v >= lowest && v <= highest))
        r->code = sh_fail(r->err, SH_ERR_FORMAT, "%s: key '%s' is %g, expected %g to %g", sh_gguf_path(r->g, 0), key, v, lowest,
                          highest);
    return v;
}

static bool str_is(struct sh_str s, const char *text) { return s.length == strlen(text) && memcmp(s.ptr, text, s.length) == 0; }

static void read_heads(struct reader *r, struct sh_spec *s) {
    s->n_heads = integer(r, "attention.head_count", true, 0, 1, MAX_HEADS);
    s->n_kv_heads = integer(r, "attention.head_count_kv", false, s->n_heads, 1, MAX_HEADS);
    if (r->code != SH_OK) return;
    const char *path = sh_gguf_path(r->g, 0);
    if (s->n_heads % s->n_kv_heads != 0) {
        r->code =
            sh_fail(r->err, SH_ERR_FORMAT, "%s: key '%s.attention.head_count' is %u, expected a multiple of head_count_kv, %u",
                    path, r->architecture, s->n_heads, s->n_kv_heads);
        return;
    }
    char key[128];
    key_of(r, "attention.key_length", key);
    if (sh_gguf_find(r->g, key) == NULL && s->n_embd % s->n_heads != 0) {
        r->code =
            sh_fail(r->err, SH_ERR_FORMAT, "%s: key '%s' is missing and embedding_length %u does not divide by head_count %u",
                    path, key, s->n_embd, s->n_heads);
        return;
    }
    s->k_dim = integer(r, "attention.key_length", false, s->n_embd / s->n_heads, 1, MAX_HEAD_DIM);
    s->v_dim = integer(r, "attention.value_length", false, s->k_dim, 1, MAX_HEAD_DIM);
}

static void read_rope(struct reader *r, struct sh_spec *s, double extend) {
    struct sh_rope_spec *rope = &s->rope;
    *rope = (struct sh_rope_spec){.factor = 1, .extend = extend};
    rope->n_rot = integer(r, "rope.dimension_count", false, s->k_dim, 2, s->k_dim > 2 ? s->k_dim : 2);
    if (r->code == SH_OK && (rope->n_rot % 2 != 0 || rope->n_rot > s->k_dim))
        r->code =
            sh_fail(r->err, SH_ERR_FORMAT, "%s: %u dimensions of a head are to be rotated, expected an even number up to %u",
                    sh_gguf_path(r->g, 0), rope->n_rot, s->k_dim);
    rope->base = real(r, "rope.freq_base", 10000.0, 1.001, 1e12);
    if (r->code != SH_OK) return;

    char key[128];
    struct sh_str type = {.ptr = "linear", .length = 6};
    key_of(r, "rope.scaling.type", key);
    r->code = sh_gguf_str(r->g, key, &type, r->err);
    if (r->code != SH_OK || str_is(type, "none")) return;
    if (!str_is(type, "linear") && !str_is(type, "yarn")) {
        r->code = sh_fail(r->err, SH_ERR_UNSUPPORTED, "%s: key '%s' is '%.*s', this build computes none, linear and yarn",
                          sh_gguf_path(r->g, 0), key, (int)(type.length < 64 ? type.length : 64), type.ptr);
        return;
    }
    const double older = real(r, "rope.scale_linear", 1.0, 0, 1e6); /* the key's name before rope.scaling */
    rope->factor = real(r, "rope.scaling.factor", older, 0, 1e6);
    if (rope->factor == 0) rope->factor = 1; /* written by converters for "no scaling" */
    if (str_is(type, "linear")) {
        rope->scaling = rope->factor != 1 ? SH_ROPE_LINEAR : SH_ROPE_PLAIN;
        return;
    }
    rope->scaling = SH_ROPE_YARN;
    rope->original_context = integer(r, "rope.scaling.original_context_length", false, s->context_native, 1, MAX_CONTEXT);
    rope->attention_factor = real(r, "rope.scaling.attn_factor", 1.0, 1e-3, 1e3);
    rope->beta_fast = real(r, "rope.scaling.yarn_beta_fast", 32.0, 1e-3, 1e6);
    rope->beta_slow = real(r, "rope.scaling.yarn_beta_slow", 1.0, 1e-3, 1e6);
    if (r->code == SH_OK && rope->factor < 1)
        r->code = sh_fail(r->err, SH_ERR_FORMAT, "%s: key '%s.rope.scaling.factor' is %g, expected at least 1 for yarn",
                          sh_gguf_path(r->g, 0), r->architecture, rope->factor);
}

static void choose_context(struct reader *r, struct sh_spec *s, uint32_t wanted) {
    const double limit = floor((double)s->context_native * s->rope.extend);
    if (wanted == 0) {
        s->context_length = s->context_native < SH_DEFAULT_CONTEXT ? s->context_native : SH_DEFAULT_CONTEXT;
    } else if (wanted > limit || wanted > MAX_CONTEXT) {
        r->code = sh_fail(
            r->err, SH_ERR_INVALID,
            "%s: a context of %u tokens was asked for, the model has %u%s; ask for at most %.0f, or extend it with a rope "
            "scale of at least %.3g",
            sh_gguf_path(r->g, 0), wanted, s->context_native, s->rope.extend > 1 ? " before scaling" : "",
            fmin(limit, MAX_CONTEXT), (double)wanted / (double)s->context_native);
    } else {
        s->context_length = wanted;
    }
}

enum sh_code sh_spec_read(const struct sh_gguf *g, const char *architecture, const struct sh_model_params *params,
                          struct sh_spec *out, struct sh_error *err) {
    struct reader r = {.g = g, .architecture = architecture, .err = err};
    struct sh_spec s = {0};
    const float extend = params != NULL && params->rope_scale != 0 ? params->rope_scale : 1.0f;
    if (!(extend >= 1.0f && extend <= 1e6f))
        return sh_fail(err, SH_ERR_INVALID, "rope_scale is %g, expected a factor of at least 1", (double)extend);

    const uint32_t experts = integer(&r, "expert_count", false, 0, 0, UINT32_MAX);
    if (r.code == SH_OK && experts > 0)
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "%s: key '%s.expert_count' is %u: mixture-of-experts models (Mixtral) are not computed yet",
                       sh_gguf_path(g, 0), architecture, experts);
    s.n_layers = integer(&r, "block_count", true, 0, 1, MAX_LAYERS);
    s.n_embd = integer(&r, "embedding_length", true, 0, 1, MAX_EMBD);
    s.n_ff = integer(&r, "feed_forward_length", true, 0, 1, MAX_FF);
    s.context_native = integer(&r, "context_length", true, 0, 1, MAX_CONTEXT);
    s.norm_eps = (float)real(&r, "attention.layer_norm_rms_epsilon", 1e-5, 0, 1);
    read_heads(&r, &s);
    if (r.code == SH_OK) read_rope(&r, &s, extend);
    if (r.code == SH_OK) choose_context(&r, &s, params != NULL ? params->context_length : 0);
    if (r.code != SH_OK) return r.code;

    const struct sh_tensor *embedding = sh_gguf_tensor(g, "token_embd.weight");
    if (embedding == NULL) return sh_fail(err, SH_ERR_FORMAT, "%s: tensor 'token_embd.weight' is missing", sh_gguf_path(g, 0));
    if (embedding->dims[1] < 1 || embedding->dims[1] > MAX_VOCAB)
        return sh_fail(err, SH_ERR_FORMAT, "%s: tensor 'token_embd.weight' has %llu rows, expected a vocabulary of 1 to %d",
                       sh_gguf_path(g, embedding->shard), (unsigned long long)embedding->dims[1], MAX_VOCAB);
    s.n_vocab = (uint32_t)embedding->dims[1];
    const struct sh_kv *tokens = sh_gguf_find(g, "tokenizer.ggml.tokens");
    if (tokens != NULL && tokens->count != s.n_vocab)
        return sh_fail(err, SH_ERR_FORMAT, "%s: tensor 'token_embd.weight' has %u rows, expected one for each of the %llu tokens",
                       sh_gguf_path(g, embedding->shard), s.n_vocab, (unsigned long long)tokens->count);
    *out = s;
    return SH_OK;
}
