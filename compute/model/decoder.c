/* The parts that decoders are made of. */
#include "compute/model/decoder.h"

#include <math.h>
#include <stdio.h>

void sh_decoder_init(struct sh_decoder *d, struct sh_model_builder *m) {
    *d = (struct sh_decoder){
        .m = m,
        .norm = SH_NORM_RMS,
        .attn_norm = "attn_norm",
        .ffn_norm = "ffn_norm",
        .output_norm = "output_norm",
        .q_temperature = SH_NONE,
        .pairing = SH_ROPE_HALVES,
        .slopes = SH_NONE,
        .scale = m->spec.k_dim > 0 ? (float)(1.0 / sqrt((double)m->spec.k_dim)) : 0,
        .glu = SH_GLU_SILU,
        .act = SH_UNARY_GELU,
    };
    d->rope = d->rope_windowed = sh_model_rope(m, &m->spec.rope);
}

/* ---- windows ---- */

void sh_decoder_window(struct sh_decoder *d, uint32_t period) {
    struct sh_reader *r = &d->m->r;
    const uint32_t n = d->m->spec.n_layers;
    const char *const pattern = "attention.sliding_window_pattern";
    d->window = sh_read_u32(r, "attention.sliding_window", 0, period > 0, UINT32_MAX);
    const struct sh_kv *kv = sh_gguf_find(r->g, sh_read_key(r, pattern));
    if (kv != NULL && kv->type == SH_VALUE_ARRAY) {
        uint32_t windowed[SH_MAX_LAYERS];
        sh_read_u32s(r, pattern, 0, 0, 1, windowed, n);
        for (uint32_t l = 0; l < n; l++) d->windowed[l] = windowed[l] != 0;
        return;
    }
    period = sh_read_u32(r, pattern, period, 0, SH_MAX_LAYERS);
    for (uint32_t l = 0; l < n; l++) d->windowed[l] = period == 0 || l % period < period - 1;
}

void sh_decoder_local_rope(struct sh_decoder *d, double base) {
    const uint32_t n_rot = d->m->spec.rope.n_rot;
    const struct sh_rope_spec rope = sh_rope_plain(n_rot, sh_read_real(&d->m->r, "rope.freq_base_swa", base, 1.001, 1e12));
    d->rope_windowed = sh_model_rope(d->m, &rope);
}

bool sh_decoder_is_windowed(const struct sh_decoder *d) { return d->window > 0 && d->windowed[d->m->b.layer]; }

/* ---- norms and products ---- */

/* "blk.<layer>." or "" */
static void make_prefix(const struct sh_builder *b, char prefix[24]) {
    prefix[0] = '\0';
    if (b->layer != SH_NONE) snprintf(prefix, 24, "blk.%u.", b->layer);
}

static uint32_t bias_of(struct sh_builder *b, uint32_t width, bool needed, const char *stem) {
    char prefix[24];
    make_prefix(b, prefix);
    return needed ? sh_build_vector(b, width, "%s%s.bias", prefix, stem)
                  : sh_build_vector_optional(b, width, "%s%s.bias", prefix, stem);
}

uint32_t sh_decoder_norm(struct sh_decoder *d, uint32_t x, const char *stem) {
    struct sh_builder *b = &d->m->b;
    const float eps = sh_model_eps(d->m, d->norm);
    const uint32_t n = d->m->spec.n_embd;
    uint32_t w = SH_NONE, bias = SH_NONE;
    if (!d->norm_bare) {
        char prefix[24];
        make_prefix(b, prefix);
        w = sh_build_vector(b, n, "%s%s.weight", prefix, stem);
        bias = bias_of(b, n, d->biases & SH_BIAS_NORM, stem);
    }
    return sh_build_norm(b, d->norm, x, 1, w, bias, eps, stem);
}

uint32_t sh_decoder_linear(struct sh_decoder *d, uint32_t x, uint32_t n_in, uint32_t n_out, bool biased, const char *stem) {
    struct sh_builder *b = &d->m->b;
    const uint32_t w = sh_build_matrix(b, n_in, n_out, "blk.%u.%s.weight", b->layer, stem);
    return sh_build_matmul(b, x, w, bias_of(b, n_out, biased, stem), stem);
}

/* Rows [first, first + n) of a fused matrix, and of its bias. */
static uint32_t part(struct sh_decoder *d, uint32_t x, uint64_t first, uint64_t n, uint64_t total, bool biased,
                     const char *tensor, const char *stem) {
    struct sh_builder *b = &d->m->b;
    const struct sh_row_view view = {.first = first, .take = n, .stride = n, .count = 1};
    const uint32_t w = sh_build_matrix_rows(b, d->m->spec.n_embd, total, view, "blk.%u.%s.weight", b->layer, tensor);
    const bool has = biased || sh_build_has(b, "blk.%u.%s.bias", b->layer, tensor);
    const uint32_t bias = has ? sh_build_vector_part(b, total, view, "blk.%u.%s.bias", b->layer, tensor) : SH_NONE;
    return sh_build_matmul(b, x, w, bias, stem);
}

/* ---- attention ---- */

static uint32_t qk_norm(struct sh_decoder *d, uint32_t x, uint32_t n_heads, const char *stem) {
    struct sh_builder *b = &d->m->b;
    const uint32_t dim = d->m->spec.k_dim;
    if (d->qk_norm == SH_QK_NORM_NONE) return x;
    const float eps = sh_model_eps(d->m, d->qk_norm_kind);
    const uint32_t width = d->qk_norm == SH_QK_NORM_ROW ? n_heads * dim : dim;
    const uint32_t w = d->qk_norm == SH_QK_NORM_HEADS ? sh_build_vectors(b, dim, n_heads, "blk.%u.%s.weight", b->layer, stem)
                                                      : sh_build_vector(b, width, "blk.%u.%s.weight", b->layer, stem);
    const uint32_t bias = bias_of(b, width, false, stem);
    return sh_build_norm(b, d->qk_norm_kind, x, d->qk_norm == SH_QK_NORM_ROW ? 1 : n_heads, w, bias, eps, stem);
}

static uint32_t clamp(struct sh_decoder *d, uint32_t x, const char *stem) {
    return d->clamp_qkv > 0 ? sh_build_unary(&d->m->b, SH_UNARY_CLAMP, x, d->clamp_qkv, stem) : x;
}

uint32_t sh_decoder_rows(struct sh_decoder *d, uint32_t x, const char *stem) {
    struct sh_builder *b = &d->m->b;
    return b->layer + 1 == d->m->spec.n_layers ? sh_build_gather_out(b, x, stem) : x;
}

uint32_t sh_decoder_attend(struct sh_decoder *d, uint32_t q, uint32_t k, uint32_t v) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    const uint32_t l = b->layer;
    const bool windowed = sh_decoder_is_windowed(d);
    const uint32_t reach = d->encoder ? d->window / 2 : d->window;
    const uint32_t window = windowed && reach < s->context_length ? d->window : 0; /* a longer one hides nothing */
    const bool still = d->rope_step > 0 && l % d->rope_step == d->rope_step - 1;
    const uint32_t table = still ? SH_NONE : windowed ? d->rope_windowed : d->rope;
    struct sh_build_attention a = {
        .n_heads = s->heads[l],
        .n_kv_heads = s->kv_heads[l],
        .k_dim = s->k_dim,
        .v_dim = s->v_dim,
        .pairing = d->pairing,
        .rope_first = d->rope_first,
        .n_rot = b->code == SH_OK && table != SH_NONE ? (uint32_t)b->program->weights[table].cols : 0,
        .rope_table = table,
        .scale = d->scale,
        .softcap = d->softcap,
        .bidirectional = d->encoder,
        .window = window,
        .slopes = d->slopes,
        .sinks = SH_NONE,
    };
    if (d->sinks) a.sinks = sh_build_vector(b, a.n_heads, "blk.%u.attn_sinks.weight", l);
    const bool forgets = window > 0 && !d->encoder; /* an encoder's keys are of the step, all of them */
    const struct sh_state_group state = {
        .kind = forgets ? SH_STATE_WINDOWED : SH_STATE_PAGED,
        .n_kv_heads = a.n_kv_heads,
        .k_dim = a.k_dim,
        .v_dim = a.v_dim,
        .window = forgets ? window : 0,
    };
    a.group = sh_build_state(b, state, &a.layer_in_group);
    if (!d->qk_norm_late) {
        q = qk_norm(d, q, a.n_heads, "attn_q_norm");
        k = qk_norm(d, k, a.n_kv_heads, "attn_k_norm");
    } else if (d->qk_norm != SH_QK_NORM_NONE) {
        if (a.n_rot > 0) {
            q = sh_build_rope(b, &a, q, a.n_heads, "attn_q_turned");
            k = sh_build_rope(b, &a, k, a.n_kv_heads, "attn_k_turned");
        }
        q = qk_norm(d, q, a.n_heads, "attn_q_norm");
        k = qk_norm(d, k, a.n_kv_heads, "attn_k_norm");
        a.n_rot = 0;
        a.rope_table = SH_NONE;
    }
    if (d->q_temperature != SH_NONE) q = sh_build_scale_position(b, q, d->q_temperature, "attn_q_scaled");
    return sh_build_attend(b, &a, q, k, v, "attn_q_rope", "attn");
}

uint32_t sh_decoder_attention(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    const uint32_t l = b->layer, q_width = s->heads[l] * s->k_dim, k_width = s->kv_heads[l] * s->k_dim,
                   v_width = s->kv_heads[l] * s->v_dim;
    const bool biased = d->biases & SH_BIAS_QKV;
    uint32_t q, k, v;
    if (sh_build_has(b, "blk.%u.attn_qkv.weight", l)) {
        const uint64_t total = (uint64_t)q_width + k_width + v_width;
        q = part(d, x, 0, q_width, total, biased, "attn_qkv", "attn_q");
        k = part(d, x, q_width, k_width, total, biased, "attn_qkv", "attn_k");
        v = part(d, x, (uint64_t)q_width + k_width, v_width, total, biased, "attn_qkv", "attn_v");
    } else {
        q = sh_decoder_linear(d, x, s->n_embd, q_width, biased, "attn_q");
        k = sh_decoder_linear(d, x, s->n_embd, k_width, biased, "attn_k");
        v = sh_decoder_linear(d, x, s->n_embd, v_width, biased, "attn_v");
    }
    q = clamp(d, q, "attn_q_clamped");
    k = clamp(d, k, "attn_k_clamped");
    v = clamp(d, v, "attn_v_clamped");
    const uint32_t attended = sh_decoder_rows(d, sh_decoder_attend(d, q, k, v), "attn_rows");
    return sh_decoder_linear(d, attended, s->heads[l] * s->v_dim, s->n_embd, d->biases & SH_BIAS_OUT, "attn_output");
}

/* ---- feed-forward ---- */

uint32_t sh_decoder_ffn(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    const uint32_t l = b->layer, n = s->ff[l];
    const bool biased = d->biases & SH_BIAS_FFN;
    if (b->code == SH_OK && n == 0) sh_read_fail(&d->m->r, SH_ERR_FORMAT, "feed_forward_length", "is 0 for layer %u", l);
    uint32_t inner;
    if (d->ffn_kind == SH_FFN_UNGATED) {
        const uint32_t up = sh_decoder_linear(d, x, s->n_embd, n, biased, "ffn_up");
        inner = sh_build_unary(b, d->act, up, 0, "ffn_act");
    } else {
        uint32_t gate, up;
        if (sh_build_has(b, "blk.%u.ffn_gate.weight", l) || !sh_build_has(b, "blk.%u.ffn_up.weight", l) || !d->fused_gate) {
            gate = sh_decoder_linear(d, x, s->n_embd, n, biased, "ffn_gate");
            up = sh_decoder_linear(d, x, s->n_embd, n, biased, "ffn_up");
        } else {
            gate = part(d, x, 0, n, 2ull * n, biased, "ffn_up", "ffn_gate");
            up = part(d, x, n, n, 2ull * n, biased, "ffn_up", "ffn_up");
        }
        inner = sh_build_glu(b, d->glu, gate, up, "ffn_glu");
    }
    return sh_decoder_linear(d, inner, n, s->n_embd, biased, "ffn_down");
}

/* ---- the whole ---- */

uint32_t sh_decoder_embed(struct sh_decoder *d) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    const uint32_t embedding = sh_build_matrix(b, s->n_embd, s->n_vocab, "token_embd.weight");
    uint32_t x = sh_build_embed(b, embedding, SH_EMBED_TOKEN, "token_embd");
    if (d->embedding_scale != 0) x = sh_build_unary(b, SH_UNARY_SCALE, x, d->embedding_scale, "token_embd_scaled");
    if (d->learned_positions) {
        const uint32_t positions = sh_build_matrix(b, s->n_embd, s->context_native, "position_embd.weight");
        const uint32_t at = sh_build_embed(b, positions, SH_EMBED_POSITION, "position_embd");
        x = sh_build_add(b, x, at, "positioned_embd");
    }
    return d->embd_norm != NULL ? sh_decoder_norm(d, x, d->embd_norm) : x;
}

static uint32_t scaled(struct sh_decoder *d, uint32_t x, const char *stem) {
    return d->residual_scale != 0 ? sh_build_unary(&d->m->b, SH_UNARY_SCALE, x, d->residual_scale, stem) : x;
}

static uint32_t layer(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const uint32_t normed = d->attn_norm != NULL ? sh_decoder_norm(d, x, d->attn_norm) : x;
    uint32_t a = d->attention != NULL ? d->attention(d, normed) : sh_decoder_attention(d, normed);
    if (d->attn_post_norm != NULL) a = sh_decoder_norm(d, a, d->attn_post_norm);
    a = scaled(d, a, "attn_scaled");
    const uint32_t input = sh_decoder_rows(d, x, "input_rows");
    x = sh_build_add(b, a, input, "attn_residual");

    uint32_t h = x;
    if (d->parallel) h = d->ffn_norm != NULL ? input : sh_decoder_rows(d, normed, "norm_rows");
    if (d->ffn_norm != NULL) h = sh_decoder_norm(d, h, d->ffn_norm);
    uint32_t f = d->ffn != NULL ? d->ffn(d, h) : sh_decoder_ffn(d, h);
    if (d->ffn_post_norm != NULL) f = sh_decoder_norm(d, f, d->ffn_post_norm);
    f = scaled(d, f, "ffn_scaled");
    return sh_build_add(b, f, x, "ffn_residual");
}

void sh_decoder_finish(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    b->layer = SH_NONE;
    const uint32_t hidden = sh_decoder_norm(d, x, d->output_norm);
    if (d->encoder) {
        b->program->hidden = hidden;
        b->program->encoder = true;
        return;
    }
    const uint32_t head = sh_build_has(b, "output.weight") ? sh_build_matrix(b, s->n_embd, s->n_vocab, "output.weight")
                                                           : sh_build_matrix(b, s->n_embd, s->n_vocab, "token_embd.weight");
    uint32_t logits = sh_build_matmul(b, hidden, head, sh_build_vector_optional(b, s->n_vocab, "output.bias"), "output");
    if (d->logit_scale != 0) logits = sh_build_unary(b, SH_UNARY_SCALE, logits, d->logit_scale, "output_scaled");
    if (d->logit_softcap != 0) logits = sh_build_unary(b, SH_UNARY_SOFTCAP, logits, d->logit_softcap, "output_capped");
    if (b->code != SH_OK) return;
    b->program->hidden = hidden;
    b->program->logits = logits;
}

void sh_decoder_build(struct sh_decoder *d) {
    struct sh_builder *b = &d->m->b;
    if (d->m->spec.n_expert > 0 && d->ffn == NULL)
        sh_read_fail(&d->m->r, SH_ERR_UNSUPPORTED, "expert_count", "is %u, architecture '%s' is computed without experts",
                     d->m->spec.n_expert, d->m->r.architecture);
    uint32_t x = sh_decoder_embed(d);
    for (uint32_t l = 0; l < d->m->spec.n_layers && b->code == SH_OK; l++) {
        b->layer = l;
        x = layer(d, x);
    }
    sh_decoder_finish(d, x);
}
