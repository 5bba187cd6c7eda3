/*
 * deepseek2: attention over a compressed state (MLA). A head's key is [from the latent | rotated], the rotated part shared by
 * all heads. Computed in the absorbed form, so that the cache holds the latent and one rotated key per token and nothing per
 * head: with k = K c and v = V c for the latent c, q.k = (K^T q).c and sum(p v) = V sum(p c); K^T and V are block diagonal, a
 * head each.
 *
 * Files have K^T and V as attn_k_b and attn_v_b, or (older ones) K and V per head in attn_kv_b: there K is transposed at load
 * into an F32 constant of n_heads * kv_lora_rank * nope floats per layer, since no block format can be transposed exactly.
 */
#include "compute/gguf/quant.h"
#include "compute/model/moe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct mla {
    uint32_t q_rank, kv_rank;    /* q_rank 0: queries are not compressed */
    uint32_t nope, n_rot, v_dim; /* per head: unrotated, rotated, value */
    uint32_t n_heads;
    bool split;
    struct sh_build_attention attend;
    struct sh_moe moe;
};

/* Of each head's nope + v_dim rows of attn_kv_b the first nope, transposed: [n_heads][kv_rank][nope]. NULL: b has failed. */
static float *transposed_keys(struct sh_model_builder *m, const struct mla *a, const struct sh_tensor *t) {
    struct sh_builder *b = &m->b;
    const uint64_t per_head = (uint64_t)a->kv_rank * a->nope, row_bytes = sh_type_row_bytes(t->type, a->kv_rank);
    float *out = sh_calloc(per_head * a->n_heads, sizeof *out);
    float *rows = sh_calloc(per_head, sizeof *rows);
    void *stored = sh_calloc(a->nope, row_bytes);
    if (out == NULL || rows == NULL || stored == NULL)
        sh_build_fail(b, SH_ERR_NO_MEMORY, "no memory to transpose tensor '%s'", t->name);
    for (uint64_t h = 0; h < a->n_heads && b->code == SH_OK && !m->check_only; h++) {
        const uint64_t first = h * (a->nope + a->v_dim);
        b->code = sh_gguf_read(b->gguf, t, first * row_bytes, stored, a->nope * row_bytes, b->err);
        if (b->code != SH_OK) break;
        SH_ASSERT(sh_dequantize(t->type, stored, rows, per_head));
        float *to = out + h * per_head;
        for (uint64_t n = 0; n < a->nope; n++)
            for (uint64_t c = 0; c < a->kv_rank; c++) to[c * a->nope + n] = rows[n * a->kv_rank + c];
    }
    free(stored);
    free(rows);
    if (b->code == SH_OK) return out;
    free(out);
    return NULL;
}

/* The constants of all layers lie in this process's memory until the devices have them. */
static void check_memory(struct sh_model_builder *m, const struct mla *a) {
    const uint64_t layer = (uint64_t)a->n_heads * a->kv_rank * a->nope * sizeof(float), bytes = layer * m->spec.n_layers;
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    if (a->split || pages <= 0 || page_bytes <= 0 || bytes <= (uint64_t)pages * (uint64_t)page_bytes / 2) return;
    sh_build_fail(
        &m->b, SH_ERR_NO_MEMORY,
        "%s: the keys in attn_kv_b take %llu MiB once transposed, this machine has %llu MiB; use a file in which attn_k_b and "
        "attn_v_b stand for attn_kv_b",
        sh_gguf_path(m->b.gguf, 0), (unsigned long long)(bytes >> 20),
        (unsigned long long)((uint64_t)pages * (uint64_t)page_bytes >> 20));
}

static void read_mla(struct sh_model_builder *m, struct mla *a) {
    struct sh_reader *r = &m->r;
    const struct sh_spec *s = &m->spec;
    *a = (struct mla){.n_heads = s->n_heads, .n_rot = s->rope.n_rot};
    a->kv_rank = sh_read_u32_required(r, "attention.kv_lora_rank", 1, 1 << 16);
    a->q_rank = sh_read_u32(r, "attention.q_lora_rank", 0, 0, 1 << 16);
    const uint32_t k_dim = sh_read_u32(r, "attention.key_length_mla", s->k_dim, 1, SH_MAX_HEAD_DIM);
    a->v_dim = sh_read_u32(r, "attention.value_length_mla", s->v_dim, 1, SH_MAX_HEAD_DIM);
    a->split = sh_build_has(&m->b, "blk.0.attn_k_b.weight");
    if (a->n_rot >= k_dim)
        sh_read_fail(r, SH_ERR_FORMAT, "rope.dimension_count", "is %u, expected less than the %u dimensions of a key", a->n_rot,
                     k_dim);
    sh_model_equal_heads(m);
    if (m->b.code != SH_OK) return;
    a->nope = k_dim - a->n_rot;
    check_memory(m, a);

    /* YaRN's magnitude goes into the scores, (1 + m ln f)^2 over the whole head, and not into cos and sin */
    struct sh_rope_spec *rope = &m->spec.rope;
    rope->magnitude = 1;
    const double magnitude =
        rope->attention_factor * (rope->scaling == SH_ROPE_YARN ? 1 + rope->log_multiplier * log(rope->factor) : 1);
    a->attend = (struct sh_build_attention){
        .n_heads = a->n_heads,
        .n_kv_heads = 1,
        .k_dim = a->kv_rank + a->n_rot,
        .v_dim = a->kv_rank,
        .v_in_k = true,
        .pairing = SH_ROPE_ADJACENT,
        .rope_first = a->kv_rank,
        .n_rot = a->n_rot,
        .rope_table = sh_model_rope(m, rope),
        .scale = (float)(magnitude * magnitude / sqrt((double)k_dim)),
        .slopes = SH_NONE,
        .sinks = SH_NONE,
    };
}

struct halves {
    uint32_t key, value; /* weights of n_heads blocks: [kv_rank][nope] and [v_dim][kv_rank] each */
};

static struct halves bind_kv(struct sh_model_builder *m, const struct mla *a) {
    struct sh_builder *b = &m->b;
    const uint32_t l = b->layer;
    struct halves w = {SH_NONE, SH_NONE};
    if (a->split) {
        w.key = sh_build_matrices(b, a->nope, a->kv_rank, a->n_heads, "blk.%u.attn_k_b.weight", l);
        w.value = sh_build_matrices(b, a->kv_rank, a->v_dim, a->n_heads, "blk.%u.attn_v_b.weight", l);
        return w;
    }
    const uint64_t head = (uint64_t)a->nope + a->v_dim;
    const struct sh_row_view values = {.first = a->nope, .take = a->v_dim, .stride = head, .count = a->n_heads};
    w.value = sh_build_matrix_rows(b, a->kv_rank, head * a->n_heads, values, "blk.%u.attn_kv_b.weight", l);
    if (b->code != SH_OK) return w;
    char name[64];
    snprintf(name, sizeof name, "blk.%u.attn_kv_b.keys_transposed", l);
    float *keys = transposed_keys(m, a, b->program->weights[w.value].tensor);
    if (keys != NULL) w.key = sh_build_constant(b, a->nope, (uint64_t)a->kv_rank * a->n_heads, keys, name);
    return w;
}

static uint32_t attention(struct sh_decoder *d, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct sh_spec *s = &d->m->spec;
    const struct mla *a = d->family;
    const float eps = sh_model_eps(d->m, SH_NORM_RMS);
    const uint32_t l = b->layer;
    const uint64_t q_head = (uint64_t)a->nope + a->n_rot;
    const struct sh_row_view nope = {.first = 0, .take = a->nope, .stride = q_head, .count = a->n_heads};
    const struct sh_row_view rotated = {.first = a->nope, .take = a->n_rot, .stride = q_head, .count = a->n_heads};
    const struct sh_row_view latent = {.first = 0, .take = a->kv_rank, .stride = a->kv_rank, .count = 1};
    const struct sh_row_view key = {.first = a->kv_rank, .take = a->n_rot, .stride = a->n_rot, .count = 1};
    struct sh_build_attention at = a->attend;
    const struct sh_state_group state = {
        .kind = SH_STATE_PAGED, .n_kv_heads = 1, .k_dim = at.k_dim, .v_dim = at.v_dim, .v_in_k = true};
    at.group = sh_build_state(b, state, &at.layer_in_group);

    uint32_t q_in = x, q_cols = s->n_embd;
    const char *q_name = "attn_q";
    if (a->q_rank > 0) {
        const uint32_t down = sh_build_matrix(b, s->n_embd, a->q_rank, "blk.%u.attn_q_a.weight", l);
        const uint32_t norm = sh_build_vector(b, a->q_rank, "blk.%u.attn_q_a_norm.weight", l);
        q_in = sh_build_matmul(b, x, down, SH_NONE, "attn_q_a");
        q_in = sh_build_norm(b, SH_NORM_RMS, q_in, 1, norm, SH_NONE, eps, "attn_q_a_norm");
        q_cols = a->q_rank;
        q_name = "attn_q_b";
    }
    const uint64_t q_rows = q_head * a->n_heads, kv_rows = (uint64_t)a->kv_rank + a->n_rot;
    const uint32_t w_nope = sh_build_matrix_rows(b, q_cols, q_rows, nope, "blk.%u.%s.weight", l, q_name);
    const uint32_t w_rotated = sh_build_matrix_rows(b, q_cols, q_rows, rotated, "blk.%u.%s.weight", l, q_name);
    const uint32_t w_latent = sh_build_matrix_rows(b, s->n_embd, kv_rows, latent, "blk.%u.attn_kv_a_mqa.weight", l);
    const uint32_t w_key = sh_build_matrix_rows(b, s->n_embd, kv_rows, key, "blk.%u.attn_kv_a_mqa.weight", l);
    const uint32_t latent_norm = sh_build_vector(b, a->kv_rank, "blk.%u.attn_kv_a_norm.weight", l);
    const struct halves w = bind_kv(d->m, a);

    const uint32_t q_nope = sh_build_matmul(b, q_in, w_nope, SH_NONE, "attn_q_nope");
    const uint32_t q_rope = sh_build_matmul(b, q_in, w_rotated, SH_NONE, "attn_q_pe");
    const uint32_t absorbed = sh_build_matmul_blocks(b, q_nope, w.key, a->n_heads, "attn_q_absorbed");
    const uint32_t q = sh_build_concat(b, absorbed, q_rope, a->n_heads, "attn_q");
    uint32_t c = sh_build_matmul(b, x, w_latent, SH_NONE, "attn_kv_a");
    c = sh_build_norm(b, SH_NORM_RMS, c, 1, latent_norm, SH_NONE, eps, "attn_kv_a_norm");
    const uint32_t k_rope = sh_build_matmul(b, x, w_key, SH_NONE, "attn_k_pe");
    const uint32_t k = sh_build_concat(b, c, k_rope, 1, "attn_k");
    const uint32_t latents = sh_build_attend(b, &at, q, k, SH_NONE, "attn_q_rope", "attn_latent");
    const uint32_t attended = sh_build_matmul_blocks(b, sh_decoder_rows(d, latents, "attn_rows"), w.value, a->n_heads, "attn");
    return sh_decoder_linear(d, attended, a->n_heads * a->v_dim, s->n_embd, false, "attn_output");
}

static uint32_t feed_forward(struct sh_decoder *d, uint32_t x) {
    const struct mla *a = d->family;
    return sh_build_moe(d, &a->moe, x);
}

void sh_build_deepseek2(struct sh_model_builder *m) {
    struct mla a;
    read_mla(m, &a);
    a.moe = sh_moe_read(m, (struct sh_moe_family){.gating = SH_GATE_SOFTMAX});
    sh_moe_read_shared(m, &a.moe);
    a.moe.selection_bias = sh_build_has(&m->b, "blk.%u.exp_probs_b.bias", a.moe.n_dense);
    struct sh_decoder d;
    sh_decoder_init(&d, m);
    d.family = &a;
    d.attention = attention;
    d.ffn = feed_forward;
    sh_decoder_build(&d);
}
