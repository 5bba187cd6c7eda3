#include "compute/model/moe.h"

static enum sh_gating read_gating(struct sh_reader *r, enum sh_gating family) {
    static const enum sh_gating gatings[] = {SH_GATE_SOFTMAX, SH_GATE_SIGMOID,
                                             SH_GATE_SOFTMAX_CHOSEN}; /* as the format numbers them */
    const uint32_t number = sh_read_u32(r, "expert_gating_func", 0, 0, SH_COUNT(gatings));
    return number == 0 ? family : gatings[number - 1];
}

static void read_groups(struct sh_reader *r, struct sh_build_experts *e) {
    e->n_groups = sh_read_u32(r, "expert_group_count", 0, 0, e->n_expert);
    e->n_groups_used = sh_read_u32(r, "expert_group_used_count", 0, 0, e->n_groups > 0 ? e->n_groups : 1);
    if (e->n_groups <= 1 || *r->code != SH_OK) {
        e->n_groups = e->n_groups_used = 0;
        return;
    }
    const uint32_t size = e->n_expert / e->n_groups;
    if (e->n_expert % e->n_groups != 0 || size < 2)
        sh_read_fail(r, SH_ERR_FORMAT, "expert_group_count",
                     "is %u, expected a number that divides the %u experts into groups of 2 or more", e->n_groups, e->n_expert);
    else if (e->n_groups_used == 0 || e->n_used > size * e->n_groups_used)
        sh_read_fail(r, SH_ERR_FORMAT, "expert_group_used_count", "is %u: groups of %u experts, of which %u are to be chosen",
                     e->n_groups_used, size, e->n_used);
    else if (e->gating != SH_GATE_SIGMOID)
        sh_read_fail(r, SH_ERR_UNSUPPORTED, "expert_group_count",
                     "is %u: groups of experts are computed with sigmoid scores alone "
                     "(expert_gating_func 2)",
                     e->n_groups);
}

struct sh_moe sh_moe_read(struct sh_model_builder *m, struct sh_moe_family family) {
    struct sh_reader *r = &m->r;
    struct sh_moe moe = {.glu = SH_GLU_SILU};
    struct sh_build_experts *e = &moe.experts;
    e->n_expert = sh_read_u32_required(r, "expert_count", 1, SH_MAX_EXPERTS);
    e->n_used = sh_read_u32_required(r, "expert_used_count", 1, e->n_expert);
    e->gating = read_gating(r, family.gating);
    e->normalise = sh_read_bool(r, "expert_weights_norm", family.normalise);
    e->scale = (float)sh_read_real(r, "expert_weights_scale", 1.0, 0, 1e6);
    if (e->scale == 0) e->scale = 1; /* written by converters for "none" */
    read_groups(r, e);
    moe.n_ff = sh_read_u32(r, "expert_feed_forward_length", m->spec.n_ff, 1, SH_MAX_FF);
    moe.n_dense = sh_read_u32(r, "leading_dense_block_count", 0, 0, m->spec.n_layers - 1);
    return moe;
}

void sh_moe_read_shared(struct sh_model_builder *m, struct sh_moe *moe) {
    if (m->b.code != SH_OK) return;
    const uint32_t n = sh_read_u32(&m->r, "expert_shared_count", 0, 0, SH_MAX_FF / moe->n_ff);
    moe->n_ff_shared = n * moe->n_ff;
}

static uint32_t feed_forward(struct sh_decoder *d, uint32_t x) { return sh_build_moe(d, d->family, x); }

void sh_decoder_use_moe(struct sh_decoder *d, const struct sh_moe *moe) {
    d->family = moe;
    d->ffn = feed_forward;
}

static uint32_t shared_expert(struct sh_decoder *d, const struct sh_moe *m, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const uint32_t n_embd = d->m->spec.n_embd;
    const uint32_t gate = sh_decoder_linear(d, x, n_embd, m->n_ff_shared, false, "ffn_gate_shexp");
    const uint32_t up = sh_decoder_linear(d, x, n_embd, m->n_ff_shared, false, "ffn_up_shexp");
    const uint32_t inner = sh_build_glu(b, m->glu, gate, up, "ffn_glu_shexp");
    const uint32_t out = sh_decoder_linear(d, inner, m->n_ff_shared, n_embd, false, "ffn_down_shexp");
    if (!m->shared_gate) return out;
    const uint32_t share = sh_decoder_linear(d, x, n_embd, 1, false, "ffn_gate_inp_shexp");
    return sh_build_glu(b, SH_GLU_SIGMOID, share, out, "ffn_shexp");
}

uint32_t sh_build_moe(struct sh_decoder *d, const struct sh_moe *m, uint32_t x) {
    struct sh_builder *b = &d->m->b;
    const struct sh_build_experts *e = &m->experts;
    const uint32_t l = b->layer, n_embd = d->m->spec.n_embd, n = e->n_expert;
    if (b->code != SH_OK) return SH_NONE;
    if (l < m->n_dense) return sh_decoder_ffn(d, x);
    const uint32_t w_gate = sh_build_matrices(b, n_embd, m->n_ff, n, "blk.%u.ffn_gate_exps.weight", l);
    const uint32_t w_up = sh_build_matrices(b, n_embd, m->n_ff, n, "blk.%u.ffn_up_exps.weight", l);
    const uint32_t w_down = sh_build_matrices(b, m->n_ff, n_embd, n, "blk.%u.ffn_down_exps.weight", l);
    const uint32_t preferred = m->selection_bias ? sh_build_vector(b, n, "blk.%u.exp_probs_b.bias", l) : SH_NONE;
    uint32_t b_gate = SH_NONE, b_up = SH_NONE, b_down = SH_NONE;
    if (m->biases) {
        b_gate = sh_build_vectors(b, m->n_ff, n, "blk.%u.ffn_gate_exps.bias", l);
        b_up = sh_build_vectors(b, m->n_ff, n, "blk.%u.ffn_up_exps.bias", l);
        b_down = sh_build_vectors(b, n_embd, n, "blk.%u.ffn_down_exps.bias", l);
    }
    const uint32_t logits = sh_decoder_linear(d, x, n_embd, n, m->biases, "ffn_gate_inp");
    const uint32_t route = sh_build_route(b, e, logits, preferred, "ffn_route");
    const uint32_t shared = m->n_ff_shared > 0 ? shared_expert(d, m, x) : SH_NONE;

    b->on_host = true;
    const uint32_t gate = sh_build_expert_matmul(b, e, x, false, route, w_gate, b_gate, "ffn_gate_exps");
    const uint32_t up = sh_build_expert_matmul(b, e, x, false, route, w_up, b_up, "ffn_up_exps");
    const uint32_t inner = sh_build_glu(b, m->glu, gate, up, "ffn_glu_exps");
    const uint32_t down = sh_build_expert_matmul(b, e, inner, true, route, w_down, b_down, "ffn_down_exps");
    const uint32_t out = sh_build_expert_sum(b, e, down, route, "ffn_moe");
    b->on_host = false;
    return shared != SH_NONE ? sh_build_add(b, out, shared, "ffn_moe_shared") : out;
}
